/* SPDX-License-Identifier: GPL-2.0 */
/* The driver of Documentation/mm/hmm.rst. */
#ifndef _HMM_EXAMPLE_H
#define _HMM_EXAMPLE_H

#include <linux/hmm_devmem.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>

struct platform_device;

/* Pages that the device can map at a time, of each process. */
#define EXAMPLE_NR_PTES		64UL

/**
 * struct example - a device
 * @pdev: as the kernel knows it
 * @devmem: its memory
 */
struct example {
	struct platform_device	*pdev;
	struct hmm_devmem	*devmem;
};

/**
 * struct example_mirror - a process on the device
 * @ex: the device
 * @notifier: hears of all changes to the pages of @ptes
 * @start: address of the first page of @ptes
 * @lock: guards @ptes. mmap_lock -> folio lock -> @lock
 * @ptes: the device's page table: words of hmm_range_fault(), or 0
 */
struct example_mirror {
	struct example			*ex;
	struct mmu_interval_notifier	notifier;
	unsigned long			start;
	struct mutex			lock;		/* guards ptes */
	unsigned long			ptes[EXAMPLE_NR_PTES];
};

struct example *example_add(void);
void example_del(struct example *ex);

struct example_mirror *example_open(struct example *ex, unsigned long start);
void example_close(struct example_mirror *mirror);

int example_read(struct example_mirror *mirror, unsigned long addr, u64 *word);
int example_write(struct example_mirror *mirror, unsigned long addr, u64 word);
int example_migrate(struct example_mirror *mirror, unsigned long start,
		    unsigned long end, bool to_device,
		    struct hmm_devmem_result *result);

#endif /* _HMM_EXAMPLE_H */
