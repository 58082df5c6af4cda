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
#include <linux/memremap.h>
#include <linux/migrate.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/pagevec.h>
#include <linux/rmap.h>
#include <linux/secretmem.h>
#include <linux/slab.h>
#include <linux/swap.h>

#include "internal.h"
#include "migrate_device.h"

/*
 * What a phase works on: a range of a process, or pages that are known by pfn,
 * where the rmap alone knows the page tables.
 *
 * Who has a range holds mmap_lock, and with it the VMA, and what the VMA is
 * linked to: every anon_vma of its pages. By pfn there is nobody like that, and
 * the last process may go while its pages are unmapped. So there each folio that
 * was mapped comes with a reference of its anon_vma, until it is mapped again;
 * MIGRATE_PFN_SHARED says that it has one.
 */
struct migration {
	struct migrate_vma *vma;
	unsigned long *src;
	unsigned long npages;
	struct page *fault_page;
	bool drained;	/* the LRU batches of all CPUs, once */
};

/*
 * References besides those of mappings, page or swap cache, the migration, and
 * the CPU fault that asked for it.
 */
static bool has_other_refs(const struct migration *m, struct folio *folio)
{
	int known = folio_expected_ref_count(folio) + 1;

	if (!migrate_lock_is_ours(folio, m->fault_page))
		known++;
	return folio_ref_count(folio) > known;
}

/*
 * Folios wait for their place on the LRU, or to be unlocked from memory, in
 * batches of each CPU, which hold references. Only a folio that may be in one of
 * these is worth the interruption of all CPUs. Return whether there was a point
 * in it.
 */
static bool drain_lru_batches(struct migration *m)
{
	if (m->drained)
		return false;
	lru_add_drain_all();
	m->drained = true;
	return true;
}

/* Folios in RAM are there only if the caller asked for them. */
static void isolate_all_folios(struct migration *m)
{
	if (!m->vma || !(m->vma->flags & MIGRATE_VMA_SELECT_SYSTEM))
		return;
	lru_add_drain();
	if (migrate_isolate(m->src, m->npages,
			    MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE) &&
	    drain_lru_batches(m))
		migrate_isolate(m->src, m->npages, MIGRATE_PFN_VALID);
}

/* Does the rmap still lead somewhere? Then it does until put_rmap(). */
static bool get_rmap(const struct migration *m, struct folio *folio)
{
	return m->vma || folio_get_anon_vma(folio);
}

static void put_rmap(struct folio *folio)
{
	put_anon_vma(folio_anon_vma(folio));
}

/*
 * Remove the mappings that are left of the folio of entry @i, and of those behind
 * it that the same walk of the rmap finds. Return how many entries that were.
 */
static unsigned long unmap_by_rmap(const struct migration *m, unsigned long i)
{
	struct folio *folio = migrate_pfn_folio(m->src[i]);
	unsigned long nr;

	nr = migrate_unmap_run(&m->src[i], m->npages - i, !m->vma);
	if (nr)
		return nr;
	if (get_rmap(m, folio)) {
		m->src[i] |= MIGRATE_PFN_SHARED;
		/* A huge page may go to a device, which no PMD can map. */
		try_to_migrate(folio, folio_test_pmd_mappable(folio) ?
				      TTU_SPLIT_HUGE_PMD : 0);
	}
	return 1;
}

/* Nothing shall map the folio of entry @i any more. Is it ours alone? */
static enum migrate_stay check_folio(struct migration *m, unsigned long i,
				     struct folio *folio)
{
	if (!(m->src[i] & MIGRATE_PFN_MIGRATE))
		return MIGRATE_STAY_ISOLATED;
	if (folio_mapped(folio))
		return MIGRATE_STAY_MAPPED;
	if (!has_other_refs(m, folio))
		return MIGRATE_STAY_UNSELECTED;
	if (drain_lru_batches(m) && !has_other_refs(m, folio))
		return MIGRATE_STAY_UNSELECTED;
	return MIGRATE_STAY_PINNED;
}

/* Undo all steps for what stays. */
static void release_folio(const struct migration *m, unsigned long i,
			  enum migrate_stay why)
{
	struct folio *folio = migrate_pfn_folio(m->src[i]);
	unsigned long nr = migrate_pfn_nr(m->src[i]);

	if (!folio_is_zone_device(folio) && why != MIGRATE_STAY_ISOLATED)
		folio_add_lru(folio);
	if (m->vma) {
		migrate_vma_map(m->vma, i, i + nr);
	} else if (m->src[i] & MIGRATE_PFN_SHARED) {
		remove_migration_ptes(folio, folio, 0);
		put_rmap(folio);
	}
	if (migrate_lock_is_ours(folio, m->fault_page))
		folio_unlock(folio);
	folio_put(folio);
	while (nr--)
		m->src[i++] = migrate_pfn_stay(why);
}

/*
 * Entry @i has the folio locked and referenced; unmap it, or let go of it. @unmapped
 * is where a walk of the rmap for those before ended.
 */
static noinline void unmap_folio(struct migration *m, unsigned long i,
				 struct folio *folio, unsigned long *unmapped)
{
	enum migrate_stay why;

	if (i >= *unmapped && folio_mapped(folio) &&
	    (m->src[i] & MIGRATE_PFN_MIGRATE))
		*unmapped = i + unmap_by_rmap(m, i);
	why = check_folio(m, i, folio);
	if (why)
		release_folio(m, i, why);
}

/*
 * From pages that are locked and referenced to pages whose content stands
 * still. Return how many of them, and of the holes, take part.
 *
 * Most need nothing here: a folio with no reference but that of the migration, and
 * that of the CPU fault which asked for it, is mapped nowhere and pinned by nobody.
 */
static unsigned long unmap_folios(struct migration *m)
{
	const struct folio *faulted = m->fault_page ? page_folio(m->fault_page) : NULL;
	unsigned long i, nr, unmapped = 0, migrating = 0;

	isolate_all_folios(m);
	for (i = 0; i < m->npages; i += nr) {
		unsigned long src = m->src[i];

		nr = migrate_pfn_nr(src);
		if (src & MIGRATE_PFN_VALID) {
			struct folio *folio = migrate_entry_folio(src);

			if (!(src & MIGRATE_PFN_MIGRATE) ||
			    folio_ref_count(folio) != (folio == faulted ? 2 : 1))
				unmap_folio(m, i, folio, &unmapped);
		}
		if (m->src[i] & MIGRATE_PFN_MIGRATE)
			migrating += nr;
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

/* Memory that can be copied, and is not bound to where it is. */
static bool is_movable_vma(struct vm_area_struct *vma)
{
	return !is_vm_hugetlb_page(vma) && !vma_is_dax(vma) &&
	       !vma_is_secretmem(vma) && !(vma->vm_flags & VM_SPECIAL);
}

/*
 * Do faults help? Only anonymous pages move, and of a shared mapping they make
 * none, nor do faults for reading of a file.
 */
static bool is_faulted(const struct migrate_vma *args)
{
	vm_flags_t flags = args->vma->vm_flags;

	return (args->flags & MIGRATE_VMA_FAULT) &&
	       (vma_is_anonymous(args->vma) ||
		(flags & (VM_WRITE | VM_MAYSHARE)) == VM_WRITE);
}

/* The walk that faults goes over one page table, before it locks anything. */
static bool can_fault(const struct migrate_vma *args)
{
	return (args->flags & MIGRATE_VMA_SELECT_SYSTEM) && !args->fault_page &&
	       pmd_addr_end(args->start, args->end) == args->end;
}

/**
 * migrate_vma_check() - may a migration begin with these arguments?
 * @args: as of migrate_vma_setup()
 *
 * Context: Process context, caller holds mmap_lock.
 * Return: 0, or -EINVAL.
 */
int migrate_vma_check(const struct migrate_vma *args)
{
	const struct vm_area_struct *vma = args->vma;

	if (!vma || !args->src || !args->dst || !selects_something(args))
		return -EINVAL;
	if (!is_movable_vma(args->vma))
		return -EINVAL;
	if (!PAGE_ALIGNED(args->start) || !PAGE_ALIGNED(args->end) ||
	    args->start >= args->end)
		return -EINVAL;
	if (args->start < vma->vm_start || args->end > vma->vm_end)
		return -EINVAL;
	if (args->fault_page && !is_fault_page(args->fault_page))
		return -EINVAL;
	if ((args->flags & MIGRATE_VMA_FAULT) && !can_fault(args))
		return -EINVAL;
	return 0;
}

/**
 * migrate_vma_unmap() - after collect: unmap what others map, too
 * @args: the migration
 *
 * Context: Process context, caller holds mmap_lock. May sleep.
 */
void migrate_vma_unmap(struct migrate_vma *args)
{
	if (!args->cpages)
		return;
	args->cpages = unmap_folios(&(struct migration) {
		.vma = args,
		.src = args->src,
		.npages = args->npages,
		.fault_page = args->fault_page,
	});
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
 * With %MIGRATE_VMA_FAULT among the flags, pages that are swapped out, and those
 * that a write would copy, are faulted in by the same walk, for writing if the
 * VMA allows it; holes and the zero page are not, as they need no page to come
 * from. All faults are over before the first page is locked, which is why the
 * range has to be within what one PMD maps. A fault may call migrate_to_ram() of
 * any driver, the caller's own too, and wait for any folio: the caller holds
 * nothing that these want, and has no other migration under way. Mappings whose
 * pages cannot move are not faulted.
 *
 * For each page that it wants to move the driver puts a locked, referenced page
 * into dst, by migrate_pfn(), copies, and goes on with migrate_vma_pages() and
 * migrate_vma_finalize(). It may leave any dst entry 0. After a return of 0
 * migrate_vma_finalize() has to follow.
 *
 * Context: Process context, caller holds mmap_lock, to migrate_vma_finalize();
 * with ->fault_page, what the CPU fault holds. May sleep. Calls the interval
 * notifiers of the range, with %MMU_NOTIFY_MIGRATE and ->pgmap_owner.
 * Return: 0, even if no page can migrate, or -EINVAL, with nothing done: an
 * argument is missing; the range is empty, not page-aligned or not inside the
 * VMA; the VMA is of hugetlb, DAX, secret or special pages; nothing is selected;
 * ->fault_page is not a locked device-private page; %MIGRATE_VMA_FAULT goes with
 * a range in more than one page table, with ->fault_page, or without
 * %MIGRATE_VMA_SELECT_SYSTEM. With %MIGRATE_VMA_FAULT also, and with nothing
 * locked, what a fault can end in, as of hmm_range_fault(): -EFAULT, -ENOMEM,
 * -EHWPOISON, -EINTR; -EBUSY if a page is gone again after each of its faults;
 * and -EOPNOTSUPP if the kernel has no mirror.
 */
int migrate_vma_setup(struct migrate_vma *args)
{
	int err = migrate_vma_check(args);

	if (err)
		return err;

	migrate_assert_locked(args);
	if (is_faulted(args))
		return hmm_fault_and_collect(args);
	migrate_vma_collect(args);
	migrate_vma_unmap(args);
	return 0;
}
EXPORT_SYMBOL_GPL(migrate_vma_setup);

static bool is_device_folio(const struct folio *folio)
{
	return folio_is_device_private(folio) || folio_is_device_coherent(folio);
}

static __always_inline bool may_become(struct folio *src, struct folio *dst)
{
	if (folio_test_writeback(src))
		return false;
	if (!folio_test_anon(src))
		return !folio_is_zone_device(dst) && !folio_test_private(src);
	if (!is_device_folio(dst))
		return !folio_is_zone_device(dst);
	if (folio_test_ksm(src))
		return false;
	return !folio_test_swapcache(src) || folio_free_swap(src);
}

/**
 * migrate_may_become() - can a folio become one of the kind that another is?
 * @src: the folio
 * @dst: the other; their sizes are not looked at
 *
 * Only anonymous memory goes to a device, and without ties to swap. KSM knows its
 * pages by pfn, and looks at them long after the last user is gone: the memory of
 * a device, with its struct pages, may be gone as well by then.
 *
 * Context: Process context, both are locked.
 * Return: Whether it can.
 */
bool migrate_may_become(struct folio *src, struct folio *dst)
{
	return may_become(src, dst);
}

static bool move_identity(struct folio *src, struct folio *dst,
			  struct page *fault_page)
{
	int extra = !migrate_lock_is_ours(src, fault_page);
	struct address_space *mapping = NULL;

	if (!may_become(src, dst))
		return false;
	/* After that: it may have taken the folio out of the swap cache. */
	if (!folio_test_anon(src) || folio_test_swapcache(src))
		mapping = folio_mapping(src);
	if (folio_migrate_mapping(mapping, dst, src, extra) !=
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

/* Large folios are told by MIGRATE_PFN_COMPOUND: one without is a mistake. */
static bool sizes_agree(unsigned long src, unsigned long dst)
{
	return migrate_pfn_nr(src) == migrate_pfn_nr(dst) &&
	       migrate_pfn_nr(dst) == folio_nr_pages(migrate_entry_folio(dst));
}

/* Return whether there are holes. */
static bool move_folios(unsigned long *src_pfns, unsigned long *dst_pfns,
			unsigned long npages, struct page *fault_page)
{
	unsigned long i, nr;
	bool holes = false;

	for (i = 0; i < npages; i += nr) {
		unsigned long src = src_pfns[i], dst = dst_pfns[i];

		nr = migrate_pfn_nr(src);
		if (!(src & MIGRATE_PFN_MIGRATE))
			continue;
		if (!(src & MIGRATE_PFN_VALID)) {
			holes = true;
			continue;
		}
		if ((dst & MIGRATE_PFN_VALID) && sizes_agree(src, dst) &&
		    move_identity(migrate_entry_folio(src),
				  migrate_entry_folio(dst), fault_page))
			src_pfns[i] |= MIGRATE_PFN_MOVED;
		else if (nr > 1)
			migrate_explode(&src_pfns[i], &dst_pfns[i], nr,
					fault_page);
		else
			src_pfns[i] &= ~MIGRATE_PFN_MIGRATE;
	}
	return holes;
}

/* A large hole that gets anything but one large page is many small ones. */
static void break_hole(struct migrate_vma *migrate, unsigned long i)
{
	unsigned long k;

	if (!(migrate->src[i] & MIGRATE_PFN_COMPOUND) ||
	    migrate_pfn_nr(migrate->dst[i]) == PTRS_PER_PTE)
		return;
	for (k = 0; k < PTRS_PER_PTE; k++)
		migrate->src[i + k] = MIGRATE_PFN_MIGRATE;
}

/* Small holes in a row that get one large page are one large hole. */
static bool join_holes(struct migrate_vma *migrate, unsigned long i)
{
	unsigned long k, nr = migrate_pfn_nr(migrate->dst[i]);

	if (nr == 1 || migrate->src[i] & MIGRATE_PFN_COMPOUND)
		return true;
	if (nr > migrate->npages - i)
		return false;
	for (k = 1; k < nr; k++)
		if (migrate->src[i + k] != MIGRATE_PFN_MIGRATE ||
		    migrate->dst[i + k])
			return false;
	migrate->src[i] |= MIGRATE_PFN_COMPOUND;
	memset(&migrate->src[i + 1], 0, (nr - 1) * sizeof(*migrate->src));
	return true;
}

/* A hole that gets no page stays one. */
static void fill_holes(struct migrate_vma *migrate)
{
	unsigned long i, first = migrate->npages, last = 0;

	for (i = 0; i < migrate->npages; i++) {
		if (!migrate_is_hole(migrate->src[i]))
			continue;
		break_hole(migrate, i);
		if (!(migrate->dst[i] & MIGRATE_PFN_VALID) ||
		    !join_holes(migrate, i)) {
			migrate->src[i] = 0;
			continue;
		}
		first = min(first, i);
		last = i + migrate_pfn_nr(migrate->dst[i]);
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
	migrate_assert_locked(migrate);
	if (move_folios(migrate->src, migrate->dst, migrate->npages,
			migrate->fault_page))
		fill_holes(migrate);
}
EXPORT_SYMBOL_GPL(migrate_vma_pages);

/*
 * The entries that a destination stands for. Those behind it are 0, or mistakes of
 * the driver, to be looked at one by one.
 */
static unsigned long nr_behind(const unsigned long *dst)
{
	unsigned long i, nr = migrate_pfn_nr(dst[0]), any = 0;

	for (i = 1; i + 8 <= nr; i += 8)
		any |= dst[i] | dst[i + 1] | dst[i + 2] | dst[i + 3] |
		       dst[i + 4] | dst[i + 5] | dst[i + 6] | dst[i + 7];
	for (; i < nr; i++)
		any |= dst[i];
	return any ? 1 : nr;
}

/*
 * Sources that moved have no other reference and go back to the allocator in
 * batches. Destinations that were not used do so too.
 */
static void put_last(struct folio_batch *batch, struct folio *folio)
{
	if (!folio_batch_add(batch, folio))
		folios_put(batch);
}

static void unlock_and_put(const unsigned long *src_pfns,
			   const unsigned long *dst_pfns, unsigned long npages,
			   struct page *fault_page)
{
	struct folio_batch batch;
	unsigned long i, nr, src_end = 0;

	folio_batch_init(&batch);
	for (i = 0; i < npages; i += nr) {
		unsigned long src = src_pfns[i], dst = dst_pfns[i];
		bool moved = src & MIGRATE_PFN_MOVED;
		struct folio *folio;

		nr = 1;
		if (moved && (dst & MIGRATE_PFN_COMPOUND))
			nr = nr_behind(&dst_pfns[i]);
		/* The other pages of one that exploded have gone with the first. */
		if ((src & MIGRATE_PFN_VALID) && i >= src_end) {
			folio = migrate_entry_folio(src);
			src_end = i + folio_nr_pages(folio);
			if (migrate_lock_is_ours(folio, fault_page))
				folio_unlock(folio);
			if (moved)
				put_last(&batch, folio);
			else
				folio_put(folio);
		}
		if (dst & MIGRATE_PFN_VALID) {
			folio = migrate_entry_folio(dst);
			folio_unlock(folio);
			if (src && !moved)
				put_last(&batch, folio);
			else
				folio_put(folio);
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
	migrate_assert_locked(migrate);
	if (!migrate_putback(migrate->src, migrate->dst, migrate->npages))
		return;
	migrate_vma_map(migrate, 0, migrate->npages);
	unlock_and_put(migrate->src, migrate->dst, migrate->npages,
		       migrate->fault_page);
}
EXPORT_SYMBOL_GPL(migrate_vma_finalize);

static bool holds_device_memory(const struct dev_pagemap *pgmap)
{
	return pgmap->type == MEMORY_DEVICE_PRIVATE ||
	       pgmap->type == MEMORY_DEVICE_COHERENT;
}

/* Behind the last pfn of the range that a valid pfn is in. */
static unsigned long pgmap_range_end(const struct dev_pagemap *pgmap,
				     unsigned long pfn)
{
	int i;

	for (i = 0; i < pgmap->nr_range; i++)
		if (pfn >= PHYS_PFN(pgmap->ranges[i].start) &&
		    pfn <= PHYS_PFN(pgmap->ranges[i].end))
			return PHYS_PFN(pgmap->ranges[i].end) + 1;
	return pfn + 1;
}

/* Is every one of these a page of device memory? */
static int check_device_pfns(unsigned long start, unsigned long npages)
{
	unsigned long pfn, next, end = start + npages;
	struct dev_pagemap *pgmap;
	bool good;

	if (end < start || end > PHYS_PFN(-1UL))
		return -EINVAL;

	for (pfn = start; pfn < end; pfn = next) {
		pgmap = get_dev_pagemap(pfn, NULL);
		if (!pgmap)
			return -EINVAL;
		good = holds_device_memory(pgmap) && pgmap_pfn_valid(pgmap, pfn);
		next = pgmap_range_end(pgmap, pfn);
		put_dev_pagemap(pgmap);
		if (!good)
			return -EINVAL;
	}
	return 0;
}

/*
 * Why not to move the folio of @page, which is locked, or 0. It may have been
 * another one when it was looked up. Or a migration has just moved it, or its
 * last mapping has gone: what is not mapped is about to be freed, and all that it
 * was, down to its memcg, may be the destination's already. New ones are locked
 * until they are mapped. A batch of munlock() may have the last reference.
 */
static enum migrate_stay check_claim(struct folio *folio, struct page *page,
				     bool *drained)
{
	if (folio_page_idx(folio, page) >= folio_nr_pages(folio) ||
	    page_folio(page) != folio)
		return MIGRATE_STAY_FREE;
	if (folio_mapped(folio))
		return MIGRATE_STAY_UNSELECTED;
	if (folio_ref_count(folio) > 1 && !*drained) {
		lru_add_drain_all();
		*drained = true;
	}
	return folio_ref_count(folio) > 1 ? MIGRATE_STAY_PINNED :
					    MIGRATE_STAY_FREE;
}

/*
 * A lock and a reference of the folio of a page, or why not. What a free page
 * says of its folio may be old.
 */
static enum migrate_stay claim_device_folio(struct page *page,
					    struct folio **foliop,
					    bool *drained)
{
	struct folio *folio = page_folio(page);
	enum migrate_stay why;

	if (!folio_try_get(folio))
		return MIGRATE_STAY_FREE;
	if (!folio_trylock(folio)) {
		folio_put(folio);
		return MIGRATE_STAY_LOCKED;
	}
	why = check_claim(folio, page, drained);
	if (why) {
		folio_unlock(folio);
		folio_put(folio);
		return why;
	}
	*foliop = folio;
	return MIGRATE_STAY_UNSELECTED;
}

/*
 * Fill in the entry of a page, or those of its folio if that begins here and has
 * no more than @room pages; one that goes beyond is split. Return how many.
 */
static unsigned long claim_device_page(unsigned long *src, unsigned long pfn,
				       unsigned long room, bool *drained)
{
	struct page *page = pfn_to_page(pfn);
	enum migrate_stay why;
	struct folio *folio;
	unsigned long nr;

	for (;;) {
		why = claim_device_folio(page, &folio, drained);
		if (why)
			break;
		nr = folio_nr_pages(folio);
		if (&folio->page == page && nr <= room) {
			*src = migrate_pfn(pfn) | MIGRATE_PFN_MIGRATE;
			if (nr == 1)
				return 1;
			*src |= MIGRATE_PFN_COMPOUND;
			memset(src + 1, 0, (nr - 1) * sizeof(*src));
			return nr;
		}
		why = migrate_split_device_folio(folio, NULL);
		folio_unlock(folio);
		folio_put(folio);
		if (why)
			break;
	}
	*src = migrate_pfn_stay(why);
	return 1;
}

static void unmap_device_pages(unsigned long *src_pfns, unsigned long npages)
{
	unmap_folios(&(struct migration) {
		.src = src_pfns,
		.npages = npages,
	});
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
	bool drained = false;
	unsigned long i;

	if (err)
		return err;

	for (i = 0; i < npages; )
		i += claim_device_page(&src_pfns[i], start + i, npages - i,
				       &drained);
	unmap_device_pages(src_pfns, npages);
	return 0;
}
EXPORT_SYMBOL_GPL(migrate_device_range);

/* How many of the pfns from @pfns[0] on are in a row? */
static unsigned long nr_in_a_row(const unsigned long *pfns, unsigned long n)
{
	unsigned long i = 1;

	while (i < n && pfns[i] == pfns[0] + i)
		i++;
	return i;
}

/**
 * migrate_device_pfns() - find, lock and unmap device pages here and there
 * @src_pfns: in: the pfns; out: an entry per page, as of migrate_device_range()
 * @npages: how many
 *
 * A large folio moves as it is if its pfns are all there, in a row.
 *
 * Context: As migrate_device_range().
 * Return: As migrate_device_range().
 */
int migrate_device_pfns(unsigned long *src_pfns, unsigned long npages)
{
	unsigned long i, k, n, row;
	bool drained = false;
	int err;

	for (i = 0; i < npages; i += n) {
		n = nr_in_a_row(&src_pfns[i], npages - i);
		err = check_device_pfns(src_pfns[i], n);
		if (err)
			return err;
	}
	for (i = 0; i < npages; i += row) {
		unsigned long pfn = src_pfns[i];

		row = nr_in_a_row(&src_pfns[i], npages - i);
		for (k = 0; k < row; )
			k += claim_device_page(&src_pfns[i + k], pfn + k,
					       row - k, &drained);
	}
	unmap_device_pages(src_pfns, npages);
	return 0;
}

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

/* One for each folio, that of the first page if it has exploded. */
static void put_rmaps(const unsigned long *src_pfns, unsigned long npages)
{
	unsigned long i;

	for (i = 0; i < npages; i++) {
		struct page *page = migrate_pfn_to_page(src_pfns[i]);

		if (page && (src_pfns[i] & MIGRATE_PFN_SHARED) && !PageTail(page))
			put_rmap(page_folio(page));
	}
}

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
	unsigned long i, nr;

	migrate_putback(src_pfns, dst_pfns, npages);
	for (i = 0; i < npages; i += nr) {
		nr = 1;
		if (src_pfns[i] & MIGRATE_PFN_SHARED)
			nr = migrate_map_run(&src_pfns[i], &dst_pfns[i],
					     npages - i);
	}
	put_rmaps(src_pfns, npages);
	unlock_and_put(src_pfns, dst_pfns, npages, NULL);
}
EXPORT_SYMBOL_GPL(migrate_device_finalize);

/* Destinations for a folio: one as large, or small ones, as many as there are. */
static void alloc_copies(struct folio *folio, unsigned long *dst)
{
	unsigned long i, nr = folio_nr_pages(folio);
	gfp_t gfp = GFP_USER | __GFP_NOWARN;
	struct folio *copy;

	if (nr > 1) {
		copy = folio_alloc(gfp | __GFP_NORETRY, folio_order(folio));
		if (copy) {
			folio_lock(copy);
			dst[0] = migrate_pfn(folio_pfn(copy)) |
				 MIGRATE_PFN_COMPOUND;
			return;
		}
	}
	for (i = 0; i < nr; i++) {
		copy = folio_alloc(gfp, 0);
		if (!copy)
			return;
		folio_lock(copy);
		dst[i] = migrate_pfn(folio_pfn(copy));
	}
}

/* Return whether all of it has moved. */
static bool copy_moved(const unsigned long *src, const unsigned long *dst,
		       unsigned long nr)
{
	unsigned long i, n, k, moved = 0;

	for (i = 0; i < nr; i += n) {
		n = migrate_nr(src[i], dst[i]);
		if (!(src[i] & MIGRATE_PFN_MOVED))
			continue;
		for (k = 0; k < n; k++)
			copy_highpage(migrate_pfn_to_page(dst[i]) + k,
				      migrate_pfn_to_page(src[i]) + k);
		moved += n;
	}
	return moved == nr;
}

static int move_coherent_folio(struct folio *folio, unsigned long *src,
			       unsigned long *dst)
{
	unsigned long nr = folio_nr_pages(folio);
	bool moved;

	src[0] = migrate_pfn(folio_pfn(folio)) | MIGRATE_PFN_MIGRATE;
	if (nr > 1)
		src[0] |= MIGRATE_PFN_COMPOUND;
	unmap_device_pages(src, nr);
	if (!(src[0] & MIGRATE_PFN_MIGRATE))
		return -EBUSY;

	alloc_copies(folio, dst);
	migrate_device_pages(src, dst, nr);
	moved = copy_moved(src, dst, nr);
	migrate_device_finalize(src, dst, nr);
	return moved ? 0 : -EBUSY;
}

/**
 * migrate_device_coherent_folio() - move a device-coherent folio to RAM
 * @folio: folio with a reference of the caller, which is given away
 *
 * For somebody who wants to pin the memory for long, which would keep the
 * driver from ever getting it back.
 *
 * Context: Process context. May sleep, also for the folio lock.
 * Return: 0, or -EBUSY if the folio is in use, or there is no memory for a copy;
 * what has not moved stays as it was.
 */
int migrate_device_coherent_folio(struct folio *folio)
{
	unsigned long small[2] = { }, *entries = small;
	unsigned long nr = folio_nr_pages(folio);
	int err;

	if (nr > 1) {
		entries = kvcalloc(2 * nr, sizeof(*entries), GFP_KERNEL);
		if (!entries) {
			folio_put(folio);
			return -EBUSY;
		}
	}
	folio_lock(folio);
	err = move_coherent_folio(folio, entries, entries + nr);
	if (entries != small)
		kvfree(entries);
	return err;
}
