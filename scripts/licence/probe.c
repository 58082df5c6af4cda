// SPDX-License-Identifier: GPL-2.0
/*
 * A module that claims to be proprietary, or with GPL_PROBE to be free. With
 * PROBES it takes the address of each symbol named there, without it calls
 * put_page(). It does nothing when it is loaded.
 */
#include <linux/hmm.h>
#include <linux/hmm-dma.h>
#include <linux/hmm_devmem.h>
#include <linux/memremap.h>
#include <linux/migrate.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/rmap.h>

#ifdef PROBES
void *probes[] = { PROBES };
#else
void probe(struct page *page);
void probe(struct page *page)
{
	put_page(page);
}
#endif

MODULE_DESCRIPTION("Licence probe");
#ifdef GPL_PROBE
MODULE_LICENSE("GPL");
#else
MODULE_LICENSE("Proprietary");
#endif
