// SPDX-License-Identifier: GPL-2.0
/*
 * Device migration: pages of a process move to device memory and back.
 *
 * The driver drives, in three calls, and copies the data in between:
 *
 *   setup	finds the pages of a range, locks them, and unmaps them, so that
 *		their content stands still. src[] says what was found.
 *   pages	gives each destination in dst[] the identity of its source: from
 *		here on it is the page of that mapping, memcg, and state.
 *   finalize	maps what moved at its destination and what stayed at its
 *		source, unlocks everything, and frees sources that moved.
 *
 * A range of virtual addresses (migrate_vma_*) finds its pages by page tables,
 * a range of device pages (migrate_device_*) has them by pfn and leaves the
 * page tables to the rmap. Both share the steps in this file; those on page
 * tables are in migrate_device_collect.c and migrate_device_map.c.
 *
 * What a page goes through, and what it leaves with if it fails there:
 *
 *   step		holds afterwards		a failure
 *   collect		folio lock, one reference	nothing taken, reason in src
 *   isolate		off the LRU			mapped again, reason in src
 *   unmap, check	no mapping, no pin		back to the LRU, the same
 *   pages		identity at dst			MIGRATE off, VALID stays
 *   finalize		nothing				-
 *
 * Nothing can fail after the identity has moved, and until then the source is
 * untouched: that is why no failure loses data.
 */
#include <linux/export.h>
#include <linux/memcontrol.h>
#include <linux/memremap.h>
#include <linux/migrate.h>
#include <linux/mm.h>
#include <linux/mm_inline.h>
#include <linux/pagemap.h>
#include <linux/pagevec.h>
#include <linux/rmap.h>
#include <linux/swap.h>

#include "internal.h"
#include "migrate_device.h"

/* Entries that are looked at in a row with the LRU locked, interrupts off. */
#define MIGRATE_LRU_BATCH	64

/*
 * References besides those of mappings, page or swap cache, the migration, and
 * the CPU fault that asked for it.
 */
static bool folio_is_pinned(struct folio *folio, struct page *fault_page)
{
	int known = folio_expected_ref_count(folio) + 1;

	if (!migrate_lock_is_ours(folio, fault_page))
		known++;
	return folio_ref_count(folio) > known;
}

/*
 * Folios wait for their place on the LRU, or to be unlocked from memory, in
 * batches of each CPU, which hold references. Only a reference that may be one
 * of these is worth the interruption of all CPUs.
 */
static void drain_lru_batches(const unsigned long *src, unsigned long npages,
			      struct page *fault_page)
{
	unsigned long i;

	lru_add_drain();
	for (i = 0; i < npages; i++) {
		struct folio *folio = migrate_pfn_folio(src[i]);

		if (!folio || !folio_is_pinned(folio, fault_page))
			continue;
		lru_add_drain_all();
		return;
	}
}

/* Take folios off the LRU; one that is not there loses MIGRATE_PFN_MIGRATE. */
static void isolate_folios(unsigned long *src, unsigned long npages)
{
	struct lruvec *lruvec = NULL;
	unsigned long i;

	for (i = 0; i < npages; i++) {
		struct folio *folio = migrate_pfn_folio(src[i]);

		if (lruvec && i % MIGRATE_LRU_BATCH == 0) {
			unlock_page_lruvec_irq(lruvec);
			lruvec = NULL;
		}
		/* Device folios are on no LRU. */
		if (!folio || folio_is_zone_device(folio))
			continue;
		if (!folio_test_clear_lru(folio)) {
			src[i] &= ~MIGRATE_PFN_MIGRATE;
			continue;
		}
		lruvec = folio_lruvec_relock_irq(folio, lruvec);
		lruvec_del_folio(lruvec, folio);
	}
	if (lruvec)
		unlock_page_lruvec_irq(lruvec);
}

/* Remove the mappings that are left, and look for pins. */
static enum migrate_stay unmap_folio(unsigned long *entry, struct folio *folio,
				     struct page *fault_page)
{
	if (!(*entry & MIGRATE_PFN_MIGRATE))
		return MIGRATE_STAY_ISOLATED;
	if (folio_mapped(folio)) {
		*entry |= MIGRATE_PFN_SHARED;
		try_to_migrate(folio, 0);
		if (folio_mapped(folio))
			return MIGRATE_STAY_MAPPED;
	}
	if (folio_is_pinned(folio, fault_page))
		return MIGRATE_STAY_PINNED;
	return MIGRATE_STAY_UNSELECTED;
}

/* Undo all steps for a page that stays. */
static void release_folio(struct folio *folio, enum migrate_stay why,
			  struct page *fault_page)
{
	if (!folio_is_zone_device(folio) && why != MIGRATE_STAY_ISOLATED)
		folio_add_lru(folio);
	remove_migration_ptes(folio, folio, 0);
	if (migrate_lock_is_ours(folio, fault_page))
		folio_unlock(folio);
	folio_put(folio);
}

/*
 * From pages that are locked and referenced to pages whose content stands
 * still. Return how many of them, and of the holes, take part.
 */
static unsigned long unmap_folios(unsigned long *src, unsigned long npages,
				  struct page *fault_page)
{
	unsigned long i, migrating = 0;

	drain_lru_batches(src, npages, fault_page);
	isolate_folios(src, npages);

	for (i = 0; i < npages; i++) {
		struct folio *folio = migrate_pfn_folio(src[i]);
		enum migrate_stay why;

		if (folio) {
			why = unmap_folio(&src[i], folio, fault_page);
			if (why) {
				release_folio(folio, why, fault_page);
				src[i] = migrate_pfn_stay(why);
			}
		}
		if (src[i] & MIGRATE_PFN_MIGRATE)
			migrating++;
	}
	return migrating;
}

static bool selects_something(const struct migrate_vma *args)
{
	return args->flags & (MIGRATE_VMA_SELECT_SYSTEM |
			      MIGRATE_VMA_SELECT_DEVICE_PRIVATE |
			      MIGRATE_VMA_SELECT_DEVICE_COHERENT);
}

static bool is_fault_page(struct page *page)
{
	return is_device_private_page(page) && PageLocked(page);
}

static int check_vma_args(const struct migrate_vma *args)
{
	const struct vm_area_struct *vma = args->vma;

	if (!vma || !args->src || !args->dst || !selects_something(args))
		return -EINVAL;
	if (is_vm_hugetlb_page(args->vma) || vma_is_dax(vma) ||
	    (vma->vm_flags & VM_SPECIAL))
		return -EINVAL;
	if (!PAGE_ALIGNED(args->start) || !PAGE_ALIGNED(args->end) ||
	    args->start >= args->end)
		return -EINVAL;
	if (args->start < vma->vm_start || args->end > vma->vm_end)
		return -EINVAL;
	if (args->fault_page && !is_fault_page(args->fault_page))
		return -EINVAL;
	return 0;
}

/**
 * migrate_vma_setup() - find, lock and unmap the pages of a virtual range
 * @args: the migration. In: ->vma; ->start and ->end, page-aligned addresses
 *	inside of it; ->src and ->dst, arrays with an entry per page; ->flags,
 *	what to select; ->pgmap_owner, whose device pages; ->fault_page, the
 *	vmf->page of a migrate_to_ram() callback, NULL otherwise. Out: ->src,
 *	->npages entries; ->cpages, how many of these can migrate.
 *
 * Afterwards a src entry is one of
 *
 * * %MIGRATE_PFN_VALID | %MIGRATE_PFN_MIGRATE: a locked page that no CPU can
 *   reach. Its data may be copied. %MIGRATE_PFN_WRITE says whether its mapping
 *   allowed writing.
 * * %MIGRATE_PFN_MIGRATE alone: a hole or the zero page of anonymous memory.
 *   The driver may put a page there, whose content has to be zeroes.
 * * neither: the page stays; migrate_pfn_to_stay() says why.
 *
 * For each page that it wants to move the driver puts a locked, referenced page
 * into dst, by migrate_pfn(), copies, and goes on with migrate_vma_pages() and
 * migrate_vma_finalize(). It may leave any dst entry 0. After a return of 0
 * migrate_vma_finalize() has to follow.
 *
 * Context: Process context, caller holds mmap_lock, to migrate_vma_finalize().
 * May sleep. Calls the interval notifiers of the range, with
 * %MMU_NOTIFY_MIGRATE and ->pgmap_owner.
 * Return: 0, even if no page can migrate, or -EINVAL, with nothing done: an
 * argument is missing; the range is empty, not page-aligned or not inside the
 * VMA; the VMA is of hugetlb, DAX or special pages; nothing is selected;
 * ->fault_page is not a locked device-private page.
 */
int migrate_vma_setup(struct migrate_vma *args)
{
	int err = check_vma_args(args);

	if (err)
		return err;

	mmap_assert_locked(args->vma->vm_mm);
	migrate_vma_collect(args);
	if (args->cpages)
		args->cpages = unmap_folios(args->src, args->npages,
					    args->fault_page);
	return 0;
}
EXPORT_SYMBOL_GPL(migrate_vma_setup);

static bool is_device_folio(const struct folio *folio)
{
	return folio_is_device_private(folio) || folio_is_device_coherent(folio);
}

/*
 * Can @src become a page of the kind that @dst is? Only anonymous memory goes
 * to a device, and without ties to swap. KSM compares the content of its pages
 * through the kernel's mapping, which private memory has none of.
 */
static bool may_become(struct folio *src, struct folio *dst)
{
	if (folio_test_large(dst) || folio_test_writeback(src))
		return false;
	if (!folio_test_anon(src))
		return !folio_is_zone_device(dst) && !folio_test_private(src);
	if (!is_device_folio(dst))
		return !folio_is_zone_device(dst);
	if (folio_test_ksm(src) && folio_is_device_private(dst))
		return false;
	return !folio_test_swapcache(src) || folio_free_swap(src);
}

static bool move_identity(struct folio *src, struct folio *dst,
			  struct page *fault_page)
{
	int extra = !migrate_lock_is_ours(src, fault_page);

	if (!may_become(src, dst))
		return false;
	/* After may_become(): that may take the folio out of the swap cache. */
	if (folio_migrate_mapping(folio_mapping(src), dst, src, extra) !=
	    MIGRATEPAGE_SUCCESS)
		return false;
	folio_migrate_flags(dst, src);
	/*
	 * The device may have written without a dirty bit to say so: else what
	 * MADV_FREE made clean could be dropped with new data in it.
	 */
	if (folio_is_zone_device(src) && !folio_is_zone_device(dst))
		folio_mark_dirty(dst);
	return true;
}

static void move_folios(unsigned long *src_pfns, const unsigned long *dst_pfns,
			unsigned long npages, struct page *fault_page)
{
	unsigned long i;

	for (i = 0; i < npages; i++) {
		struct folio *src = migrate_pfn_folio(src_pfns[i]);
		struct folio *dst = migrate_pfn_folio(dst_pfns[i]);

		if (!src || !(src_pfns[i] & MIGRATE_PFN_MIGRATE))
			continue;
		if (dst && move_identity(src, dst, fault_page))
			src_pfns[i] |= MIGRATE_PFN_MOVED;
		else
			src_pfns[i] &= ~MIGRATE_PFN_MIGRATE;
	}
}

/* A hole that gets no page stays one. */
static void fill_holes(struct migrate_vma *migrate)
{
	unsigned long i, first = migrate->npages, last = 0;

	for (i = 0; i < migrate->npages; i++) {
		if (migrate->src[i] != MIGRATE_PFN_MIGRATE)
			continue;
		if (!(migrate->dst[i] & MIGRATE_PFN_VALID)) {
			migrate->src[i] = 0;
			continue;
		}
		first = min(first, i);
		last = i + 1;
	}
	if (first < last)
		migrate_vma_fill_holes(migrate, first, last);
}

/**
 * migrate_vma_pages() - let the destinations take the place of their sources
 * @migrate: the migration after migrate_vma_setup(), dst filled in
 *
 * From here on neither array may be changed by the driver. A src entry that
 * still has %MIGRATE_PFN_MIGRATE has moved; the others stay, whatever dst says,
 * and finalize gives the page in dst back by dropping its reference. Source and
 * destination stay locked, so the driver may now update its own page tables.
 *
 * A page stays if it has no destination, if it got a reference since setup, or
 * if its kind cannot be moved: device memory takes anonymous pages only, and
 * none of KSM. A hole stays if a page has come there, memory is short, or
 * userfaultfd watches for it.
 *
 * Context: Process context, caller holds mmap_lock. May sleep.
 */
void migrate_vma_pages(struct migrate_vma *migrate)
{
	mmap_assert_locked(migrate->vma->vm_mm);
	move_folios(migrate->src, migrate->dst, migrate->npages,
		    migrate->fault_page);
	fill_holes(migrate);
}
EXPORT_SYMBOL_GPL(migrate_vma_pages);

/* What goes on living in RAM has to be found by reclaim. */
static void return_to_lru(const unsigned long *src_pfns,
			  const unsigned long *dst_pfns, unsigned long npages)
{
	unsigned long i;

	for (i = 0; i < npages; i++) {
		struct folio *folio;

		if (!(src_pfns[i] & MIGRATE_PFN_VALID))
			continue;
		folio = migrate_target(src_pfns[i], dst_pfns[i]);
		if (!folio_is_zone_device(folio))
			folio_add_lru(folio);
	}
}

/*
 * Sources that moved have no other reference and go back to the allocator in
 * batches. Destinations that were not used do so too.
 */
static void put_folio(struct folio_batch *batch, struct folio *folio, bool last)
{
	if (!last)
		folio_put(folio);
	else if (!folio_batch_add(batch, folio))
		folios_put(batch);
}

static void unlock_and_put(const unsigned long *src_pfns,
			   const unsigned long *dst_pfns, unsigned long npages,
			   struct page *fault_page)
{
	struct folio_batch batch;
	unsigned long i;

	folio_batch_init(&batch);
	for (i = 0; i < npages; i++) {
		struct folio *src = migrate_pfn_folio(src_pfns[i]);
		struct folio *dst = migrate_pfn_folio(dst_pfns[i]);
		bool moved = src_pfns[i] & MIGRATE_PFN_MOVED;

		if (src) {
			if (migrate_lock_is_ours(src, fault_page))
				folio_unlock(src);
			put_folio(&batch, src, moved);
		}
		if (dst) {
			folio_unlock(dst);
			put_folio(&batch, dst, src && !moved);
		}
	}
	folios_put(&batch);
}

/**
 * migrate_vma_finalize() - map the pages again and let go of them
 * @migrate: the migration, after migrate_vma_pages() or, to give up, right
 *	after migrate_vma_setup()
 *
 * Copies that a device made have to be complete, and visible to CPUs if the
 * destination is. Every page of src and dst is unlocked, and loses the
 * reference that the migration or the driver held.
 *
 * Context: Process context, caller holds mmap_lock. May sleep. May call the
 * driver's callback for free device pages.
 */
void migrate_vma_finalize(struct migrate_vma *migrate)
{
	mmap_assert_locked(migrate->vma->vm_mm);
	return_to_lru(migrate->src, migrate->dst, migrate->npages);
	migrate_vma_map(migrate);
	unlock_and_put(migrate->src, migrate->dst, migrate->npages,
		       migrate->fault_page);
}
EXPORT_SYMBOL_GPL(migrate_vma_finalize);

static bool holds_device_memory(const struct dev_pagemap *pgmap)
{
	return pgmap->type == MEMORY_DEVICE_PRIVATE ||
	       pgmap->type == MEMORY_DEVICE_COHERENT;
}

/* Is every one of these a page of device memory? */
static int check_device_pfns(unsigned long start, unsigned long npages)
{
	struct dev_pagemap *pgmap = NULL;
	unsigned long pfn;

	if (start + npages < start || start + npages > PHYS_PFN(-1UL))
		return -EINVAL;

	for (pfn = start; pfn < start + npages; pfn++) {
		if (pgmap && pgmap_pfn_valid(pgmap, pfn))
			continue;
		put_dev_pagemap(pgmap);
		pgmap = get_dev_pagemap(pfn, NULL);
		if (!pgmap)
			return -EINVAL;
		if (!holds_device_memory(pgmap) || !pgmap_pfn_valid(pgmap, pfn)) {
			put_dev_pagemap(pgmap);
			return -EINVAL;
		}
	}
	put_dev_pagemap(pgmap);
	return 0;
}

/* A lock and a reference, or the reason why not. */
static unsigned long claim_device_page(unsigned long pfn)
{
	struct folio *folio = folio_get_nontail_page(pfn_to_page(pfn));

	if (!folio)
		return migrate_pfn_stay(MIGRATE_STAY_FREE);
	if (!folio_trylock(folio)) {
		folio_put(folio);
		return migrate_pfn_stay(MIGRATE_STAY_LOCKED);
	}
	return migrate_pfn(pfn) | MIGRATE_PFN_MIGRATE;
}

/**
 * migrate_device_range() - find, lock and unmap a range of device pages
 * @src_pfns: an entry per page, filled in as by migrate_vma_setup()
 * @start: first pfn
 * @npages: how many
 *
 * For a driver that has to empty its memory, and knows which of it but not who
 * maps it. A page that is free and one that somebody else has locked stay
 * alike, but for the reason: only the second is worth another attempt. Goes on
 * with migrate_device_pages() and migrate_device_finalize().
 *
 * Context: Process context. May sleep. The pgmap must not be torn down
 * meanwhile.
 * Return: 0, even if no page can migrate, or -EINVAL, with nothing done: a pfn
 * in the range is not of live device-private or device-coherent memory, or the
 * range wraps.
 */
int migrate_device_range(unsigned long *src_pfns, unsigned long start,
			 unsigned long npages)
{
	int err = check_device_pfns(start, npages);
	unsigned long i;

	if (err)
		return err;

	for (i = 0; i < npages; i++)
		src_pfns[i] = claim_device_page(start + i);
	unmap_folios(src_pfns, npages, NULL);
	return 0;
}
EXPORT_SYMBOL_GPL(migrate_device_range);

/**
 * migrate_device_pages() - let the destinations take the place of their sources
 * @src_pfns: from migrate_device_range()
 * @dst_pfns: an entry per page: the driver's locked, referenced page, or 0
 * @npages: how many
 *
 * As migrate_vma_pages(), without holes.
 *
 * Context: Process context. May sleep.
 */
void migrate_device_pages(unsigned long *src_pfns, unsigned long *dst_pfns,
			  unsigned long npages)
{
	move_folios(src_pfns, dst_pfns, npages, NULL);
}
EXPORT_SYMBOL_GPL(migrate_device_pages);

/**
 * migrate_device_finalize() - map the pages again and let go of them
 * @src_pfns: from migrate_device_range(), after migrate_device_pages()
 * @dst_pfns: the same as there
 * @npages: how many
 *
 * As migrate_vma_finalize(); the rmap finds where the pages were mapped.
 *
 * Context: Process context. May sleep. May call the driver's callback for free
 * device pages.
 */
void migrate_device_finalize(unsigned long *src_pfns, unsigned long *dst_pfns,
			     unsigned long npages)
{
	unsigned long i;

	return_to_lru(src_pfns, dst_pfns, npages);
	for (i = 0; i < npages; i++)
		if (src_pfns[i] & MIGRATE_PFN_VALID)
			remove_migration_ptes(migrate_pfn_folio(src_pfns[i]),
					      migrate_target(src_pfns[i],
							     dst_pfns[i]), 0);
	unlock_and_put(src_pfns, dst_pfns, npages, NULL);
}
EXPORT_SYMBOL_GPL(migrate_device_finalize);

/**
 * migrate_device_coherent_folio() - move a device-coherent folio to RAM
 * @folio: order-0 folio with a reference of the caller, which is given away
 *
 * For somebody who wants to pin the memory for long, which would keep the
 * driver from ever getting it back.
 *
 * Context: Process context. May sleep, also for the folio lock.
 * Return: 0, or -EBUSY if the folio is in use, is large, or there is no memory
 * for a copy; it then stays as it was.
 */
int migrate_device_coherent_folio(struct folio *folio)
{
	unsigned long src, dst = 0;
	struct folio *copy;

	if (folio_test_large(folio)) {
		folio_put(folio);
		return -EBUSY;
	}

	folio_lock(folio);
	src = migrate_pfn(folio_pfn(folio)) | MIGRATE_PFN_MIGRATE;
	if (!unmap_folios(&src, 1, NULL))
		return -EBUSY;

	copy = folio_alloc(GFP_USER | __GFP_NOWARN, 0);
	if (copy) {
		folio_lock(copy);
		dst = migrate_pfn(folio_pfn(copy));
	}
	migrate_device_pages(&src, &dst, 1);
	if (src & MIGRATE_PFN_MOVED)
		folio_copy(copy, folio);
	migrate_device_finalize(&src, &dst, 1);
	return src & MIGRATE_PFN_MOVED ? 0 : -EBUSY;
}
