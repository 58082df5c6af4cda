/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the parts of device migration tell each other.
 *
 * migrate_device.c	the phases, the exports, everything about folios
 * migrate_device_collect.c	page tables to migration entries
 * migrate_device_map.c	migration entries to page tables; holes; CPU faults
 * migrate_device_rmap.c	both, for page tables that only the rmap knows
 * migrate_device_pte.h	what becomes of a PTE, and of the counts of a mapping
 * migrate_device_lru.c	off the LRU, and onto it again
 * migrate_device_large.c	large folios that have to become smaller
 *
 * Lock order: mmap_lock -> folio lock -> anon_vma or i_mmap -> page-table lock.
 * Folio locks of a range are only ever tried, never waited for: two migrations
 * whose ranges share folios would wait for each other.
 */
#ifndef _MM_MIGRATE_DEVICE_H
#define _MM_MIGRATE_DEVICE_H

#include <linux/migrate.h>
#include <linux/migrate_device.h>
#include <linux/mm.h>
#include <linux/swap.h>
#include <linux/swapops.h>

#ifdef CONFIG_DEVICE_MIGRATION

/*
 * Marks that setup, pages and finalize leave for each other in the src entries.
 * Drivers carry them along unseen.
 *
 * MIGRATE_PFN_MOVED: the identity of the source has gone to the destination.
 *	Finalize believes this one alone, so that a driver which never called
 *	the pages step, or changed its mind, cannot lose the source.
 * MIGRATE_PFN_SHARED: page tables besides the one that collect walked hold
 *	migration entries of this page: finding them takes the rmap.
 */
#define MIGRATE_PFN_MOVED	BIT(2)
#define MIGRATE_PFN_SHARED	BIT(5)

static_assert(!((MIGRATE_PFN_MOVED | MIGRATE_PFN_SHARED) &
		(MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE | MIGRATE_PFN_WRITE |
		 MIGRATE_PFN_COMPOUND)));
static_assert(MIGRATE_PFN_SHARED < 1UL << MIGRATE_PFN_SHIFT);

static inline unsigned long migrate_index(const struct migrate_vma *migrate,
					  unsigned long addr)
{
	return (addr - migrate->start) >> PAGE_SHIFT;
}

/* The page of an entry that has one: %MIGRATE_PFN_VALID was looked at. */
static inline struct page *migrate_entry_page(unsigned long mpfn)
{
	VM_WARN_ON_ONCE(!(mpfn & MIGRATE_PFN_VALID));
	return pfn_to_page(mpfn >> MIGRATE_PFN_SHIFT);
}

static inline struct folio *migrate_entry_folio(unsigned long mpfn)
{
	return page_folio(migrate_entry_page(mpfn));
}

static inline struct folio *migrate_pfn_folio(unsigned long mpfn)
{
	struct page *page = migrate_pfn_to_page(mpfn);

	return page ? page_folio(page) : NULL;
}

static inline bool migrate_is_hole(unsigned long src)
{
	return (src & (MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE)) ==
	       MIGRATE_PFN_MIGRATE;
}

/* The fault handler, not the migration, locked this one and will unlock it. */
static inline bool migrate_lock_is_ours(const struct folio *folio,
					const struct page *fault_page)
{
	return !fault_page || page_folio(fault_page) != folio;
}

/*
 * The caller of a migration holds mmap_lock. A CPU fault may have the lock of its
 * VMA instead: see device_private_fault().
 */
static inline void migrate_assert_locked(const struct migrate_vma *migrate)
{
#ifdef CONFIG_PER_VMA_LOCK
	if (migrate->fault_page && rwsem_is_locked(&migrate->vma->vm_lock->lock))
		return;
#endif
	mmap_assert_locked(migrate->vma->vm_mm);
}

/* migrate_device_collect.c */
void migrate_vma_collect(struct migrate_vma *migrate);

/* hmm.c, whose walk has pages faulted in before they are collected */
#ifdef CONFIG_HMM_MIRROR
int hmm_fault_and_collect(struct migrate_vma *migrate);
#else
static inline int hmm_fault_and_collect(struct migrate_vma *migrate)
{
	return -EOPNOTSUPP;
}
#endif

/* migrate_device.c */
int migrate_vma_check(const struct migrate_vma *args);
void migrate_vma_unmap(struct migrate_vma *args);
bool migrate_may_become(struct folio *src, struct folio *dst);

/* migrate_device_lru.c */
bool migrate_isolate(unsigned long *src, unsigned long npages,
		     unsigned long wanted);
bool migrate_putback(const unsigned long *src, const unsigned long *dst,
		     unsigned long npages);

/* migrate_device_large.c */
enum migrate_stay migrate_split_device_folio(struct folio *folio,
					     struct page *fault_page);
void migrate_explode(unsigned long *src, unsigned long *dst, unsigned long nr,
		     struct page *fault_page);

/* migrate_device_map.c */
void migrate_vma_map(struct migrate_vma *migrate, unsigned long first,
		     unsigned long last);
struct map_batch;
unsigned long migrate_map_ptes(struct vm_area_struct *vma, unsigned long addr,
			       pte_t *ptep, struct page *src,
			       struct page *target, unsigned long nr,
			       struct map_batch *batch);
void migrate_vma_fill_holes(struct migrate_vma *migrate, unsigned long first,
			    unsigned long last);
vm_fault_t device_private_fault(struct vm_fault *vmf, swp_entry_t entry);

/* migrate_device_rmap.c */
unsigned long migrate_unmap_run(unsigned long *src, unsigned long npages,
				bool keep);
unsigned long migrate_map_run(unsigned long *src, const unsigned long *dst,
			      unsigned long npages);

/*
 * Where the mappings of a page go once it is decided: to dst, or back. What has
 * moved has a destination, so both have a page.
 */
static inline struct page *migrate_target(unsigned long src, unsigned long dst)
{
	return migrate_entry_page(src & MIGRATE_PFN_MOVED ? dst : src);
}

/* Pages that src and dst stand for, after the pages step. */
static inline unsigned long migrate_nr(unsigned long src, unsigned long dst)
{
	return migrate_pfn_nr(src & MIGRATE_PFN_MOVED ? dst : src);
}

#else

struct migrate_vma;

/* The mirror, where there is nothing to migrate to. */
static inline void migrate_vma_collect(struct migrate_vma *migrate)
{
}

/* Nobody could have put a page there. */
static inline vm_fault_t device_private_fault(struct vm_fault *vmf,
					      swp_entry_t entry)
{
	pte_unmap_unlock(vmf->pte, vmf->ptl);
	return VM_FAULT_SIGBUS;
}

#endif /* CONFIG_DEVICE_MIGRATION */

#endif /* _MM_MIGRATE_DEVICE_H */
