// SPDX-License-Identifier: GPL-2.0
/*
 * Device migration, first phase: from page tables to migration entries.
 *
 * One walk over the range. Each page table is taken once and goes through four
 * steps under its lock:
 *
 *   select	decide about each PTE, try the folio lock, write the src entry
 *   clear	take the PTEs of the selected pages out of the table
 *   flush	one TLB flush for all of them
 *   replace	rule out pins, write migration entries, drop the rmap
 *
 * Why clear and flush come before replace. PageAnonExclusive may be dropped
 * only when nobody can take a new pin on the strength of the old PTE. GUP-fast
 * takes its pin first and looks at the PTE again afterwards; a CPU may use a
 * stale translation until the flush:
 *
 *   collect                              GUP-fast
 *   clear PTE                            read PTE
 *   flush                                pin the folio
 *   folio_try_share_anon_rmap_pte():     read PTE again, it has changed:
 *     smp_mb(), look for pins              drop the pin, go the slow way
 *
 * Either collect sees the pin and puts the old PTE back, or GUP-fast sees the
 * change and gives up. The page-table lock is held from clear to replace, so
 * nobody who takes it finds the gap: a fault that read the empty PTE without
 * the lock checks it again under the lock, zap and fork wait, and lockless
 * walkers (the mirror) are told by the notifier around the walk.
 *
 * The reference that the mapping held becomes the reference of the migration,
 * and goes back to a mapping in migrate_device_map.c.
 */
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/pagewalk.h>
#include <linux/rmap.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <asm/tlbflush.h>

#include "internal.h"
#include "migrate_device.h"

/* replace reads here what clear took: dst is scratch until the driver has it. */
static_assert(sizeof(pte_t) <= sizeof(unsigned long));

/**
 * struct collect - one walk
 * @migrate: the caller's arguments and arrays
 * @to_split: large folio at which select stopped, referenced
 * @tried: large folio that select must not stop at again: splitting failed
 * @why: what a page of @tried gets for a reason
 */
struct collect {
	struct migrate_vma *migrate;
	struct folio *to_split;
	struct folio *tried;
	enum migrate_stay why;
};

/* The same src entry for all of [addr, end). */
static void fill_entries(struct migrate_vma *migrate, unsigned long addr,
			 unsigned long end, unsigned long entry)
{
	unsigned long i = migrate_index(migrate, addr);
	unsigned long last = migrate_index(migrate, end);

	if (entry & MIGRATE_PFN_MIGRATE)
		migrate->cpages += last - i;
	for (; i < last; i++) {
		migrate->src[i] = entry;
		migrate->dst[i] = 0;
	}
}

/* Only anonymous memory can come into being on a device. */
static unsigned long hole_entry(const struct migrate_vma *migrate)
{
	return vma_is_anonymous(migrate->vma) ? MIGRATE_PFN_MIGRATE : 0;
}

static bool device_page_selected(const struct migrate_vma *migrate,
				 const struct page *page, unsigned long flag)
{
	return (migrate->flags & flag) &&
	       page->pgmap->owner == migrate->pgmap_owner;
}

static unsigned long swap_pte_entry(const struct migrate_vma *migrate, pte_t pte)
{
	swp_entry_t swap = pte_to_swp_entry(pte);
	unsigned long entry;

	if (!is_device_private_entry(swap) ||
	    !device_page_selected(migrate, pfn_swap_entry_to_page(swap),
				  MIGRATE_VMA_SELECT_DEVICE_PRIVATE))
		return 0;

	entry = migrate_pfn(swp_offset_pfn(swap)) | MIGRATE_PFN_MIGRATE;
	if (is_writable_device_private_entry(swap))
		entry |= MIGRATE_PFN_WRITE;
	return entry;
}

static unsigned long present_pte_entry(const struct migrate_vma *migrate,
				       unsigned long addr, pte_t pte)
{
	unsigned long pfn = pte_pfn(pte);
	unsigned long entry;
	struct page *page;

	if (is_zero_pfn(pfn))
		return migrate->flags & MIGRATE_VMA_SELECT_SYSTEM ?
			hole_entry(migrate) : 0;

	page = vm_normal_page(migrate->vma, addr, pte);
	if (!page)
		return 0;
	if (!is_zone_device_page(page)) {
		if (!(migrate->flags & MIGRATE_VMA_SELECT_SYSTEM))
			return 0;
	} else if (!is_device_coherent_page(page) ||
		   !device_page_selected(migrate, page,
					 MIGRATE_VMA_SELECT_DEVICE_COHERENT)) {
		return 0;
	}

	entry = migrate_pfn(pfn) | MIGRATE_PFN_MIGRATE;
	if (pte_write(pte))
		entry |= MIGRATE_PFN_WRITE;
	return entry;
}

/* What this PTE offers to the migration: decided, nothing taken. */
static unsigned long pte_entry(const struct migrate_vma *migrate,
			       unsigned long addr, pte_t pte)
{
	if (pte_present(pte))
		return present_pte_entry(migrate, addr, pte);
	if (pte_none(pte))
		return hole_entry(migrate);
	return swap_pte_entry(migrate, pte);
}

/*
 * Lock the folio of a page that is offered, or say why it has to stay. The PTE
 * maps it and is locked, so the folio needs no reference of ours here.
 */
static enum migrate_stay claim_page(struct collect *c, struct page *page)
{
	struct folio *folio = page_folio(page);

	if (!folio->mapping)
		return MIGRATE_STAY_UNSUPPORTED;
	if (PageHWPoison(page))
		return MIGRATE_STAY_POISONED;
	if (folio_test_large(folio)) {
		if (!folio_test_anon(folio))
			return MIGRATE_STAY_UNSUPPORTED;
		if (folio == c->tried)
			return c->why;
		folio_get(folio);
		c->to_split = folio;
		return MIGRATE_STAY_SPLIT;
	}
	if (migrate_lock_is_ours(folio, c->migrate->fault_page) &&
	    !folio_trylock(folio))
		return MIGRATE_STAY_LOCKED;
	return MIGRATE_STAY_UNSELECTED;
}

/*
 * Write the src entries of [addr, end), up to the first page of a large folio
 * that has to be split first. Return the address behind the last one written.
 */
static unsigned long select_ptes(struct collect *c, pte_t *ptep,
				 unsigned long addr, unsigned long end)
{
	struct migrate_vma *migrate = c->migrate;
	unsigned long i = migrate_index(migrate, addr);

	for (; addr < end; addr += PAGE_SIZE, ptep++, i++) {
		unsigned long entry = pte_entry(migrate, addr, ptep_get(ptep));

		if (entry & MIGRATE_PFN_VALID) {
			enum migrate_stay why;

			why = claim_page(c, migrate_pfn_to_page(entry));
			if (c->to_split)
				break;
			if (why)
				entry = migrate_pfn_stay(why);
		}
		migrate->src[i] = entry;
		migrate->dst[i] = 0;
		if (entry & MIGRATE_PFN_MIGRATE)
			migrate->cpages++;
	}
	return addr;
}

/* Return whether a CPU may hold a translation of what was cleared. */
static bool clear_ptes(struct migrate_vma *migrate, pte_t *ptep,
		       unsigned long addr, unsigned long end)
{
	unsigned long i = migrate_index(migrate, addr);
	bool present = false;

	flush_cache_range(migrate->vma, addr, end);
	arch_enter_lazy_mmu_mode();
	for (; addr < end; addr += PAGE_SIZE, ptep++, i++) {
		pte_t pte;

		if (!(migrate->src[i] & MIGRATE_PFN_VALID))
			continue;
		pte = ptep_get_and_clear(migrate->vma->vm_mm, addr, ptep);
		migrate->dst[i] = pte_val(pte);
		present |= pte_present(pte);
	}
	arch_leave_lazy_mmu_mode();
	return present;
}

static swp_entry_t migration_entry(struct page *page, bool write, bool exclusive)
{
	unsigned long pfn = page_to_pfn(page);

	if (write)
		return make_writable_migration_entry(pfn);
	if (exclusive)
		return make_readable_exclusive_migration_entry(pfn);
	return make_readable_migration_entry(pfn);
}

/* The PTE that stands for @page until finalize, with all bits of @old. */
static pte_t migration_pte(struct page *page, pte_t old, bool write,
			   bool exclusive)
{
	swp_entry_t entry = migration_entry(page, write, exclusive);
	bool soft_dirty, uffd_wp;
	pte_t pte;

	if (pte_present(old)) {
		if (pte_young(old))
			entry = make_migration_entry_young(entry);
		if (pte_dirty(old))
			entry = make_migration_entry_dirty(entry);
		soft_dirty = pte_soft_dirty(old);
		uffd_wp = pte_uffd_wp(old);
	} else {
		soft_dirty = pte_swp_soft_dirty(old);
		uffd_wp = pte_swp_uffd_wp(old);
	}

	pte = swp_entry_to_pte(entry);
	if (soft_dirty)
		pte = pte_swp_mksoft_dirty(pte);
	if (uffd_wp)
		pte = pte_swp_mkuffd_wp(pte);
	return pte;
}

/* Return false, with nothing changed, if a pin forbids it. */
static bool replace_pte(struct migrate_vma *migrate, pte_t *ptep,
			unsigned long addr, pte_t old, unsigned long entry)
{
	struct page *page = migrate_pfn_to_page(entry);
	struct folio *folio = page_folio(page);
	bool exclusive = folio_test_anon(folio) && PageAnonExclusive(page);

	if (exclusive && folio_try_share_anon_rmap_pte(folio, page))
		return false;

	/* The last word on dirty: no CPU can set the bit any more. */
	if (pte_present(old) && pte_dirty(old))
		folio_mark_dirty(folio);
	set_pte_at(migrate->vma->vm_mm, addr, ptep,
		   migration_pte(page, old, entry & MIGRATE_PFN_WRITE,
				 exclusive));
	folio_remove_rmap_pte(folio, page, migrate->vma);
	return true;
}

static void replace_ptes(struct migrate_vma *migrate, pte_t *ptep,
			 unsigned long addr, unsigned long end)
{
	unsigned long i = migrate_index(migrate, addr);

	arch_enter_lazy_mmu_mode();
	for (; addr < end; addr += PAGE_SIZE, ptep++, i++) {
		unsigned long entry = migrate->src[i];
		struct folio *folio;
		pte_t old;

		if (!(entry & MIGRATE_PFN_VALID))
			continue;
		old = __pte(migrate->dst[i]);
		migrate->dst[i] = 0;
		if (replace_pte(migrate, ptep, addr, old, entry))
			continue;

		set_pte_at(migrate->vma->vm_mm, addr, ptep, old);
		folio = migrate_pfn_folio(entry);
		if (migrate_lock_is_ours(folio, migrate->fault_page))
			folio_unlock(folio);
		migrate->src[i] = migrate_pfn_stay(MIGRATE_STAY_PINNED);
		migrate->cpages--;
	}
	arch_leave_lazy_mmu_mode();
}

/*
 * All steps for [addr, end) of one page table. Return how far it came: @addr
 * itself when the table is gone, less than @end when c->to_split is in the way.
 */
static unsigned long collect_table(struct collect *c, pmd_t *pmdp,
				   unsigned long addr, unsigned long end)
{
	struct migrate_vma *migrate = c->migrate;
	spinlock_t *ptl;
	pte_t *ptep;

	ptep = pte_offset_map_lock(migrate->vma->vm_mm, pmdp, addr, &ptl);
	if (!ptep)
		return addr;

	end = select_ptes(c, ptep, addr, end);
	if (clear_ptes(migrate, ptep, addr, end))
		flush_tlb_range(migrate->vma, addr, end);
	replace_ptes(migrate, ptep, addr, end);

	/* While on the CPU whose mlock batch has references of the pages. */
	if (migrate->vma->vm_flags & VM_LOCKED)
		mlock_drain_local();
	pte_unmap_unlock(ptep, ptl);
	return end;
}

/*
 * Split @folio and give back the reference to it. Waits for no folio lock: the
 * range may hold some.
 */
static enum migrate_stay split_and_put(struct folio *folio)
{
	enum migrate_stay why = MIGRATE_STAY_LOCKED;

	if (folio_trylock(folio)) {
		why = split_folio(folio) ? MIGRATE_STAY_SPLIT :
					   MIGRATE_STAY_UNSELECTED;
		folio_unlock(folio);
	}
	folio_put(folio);
	return why;
}

/* Only its address is remembered of a folio that could not be split. */
static void split_in_the_way(struct collect *c)
{
	struct folio *folio = c->to_split;

	c->to_split = NULL;
	c->why = split_and_put(folio);
	c->tried = c->why ? folio : NULL;
}

/*
 * A huge PMD is in the way: make it a page table of small folios. What the
 * caller did not select stays whole.
 */
static enum migrate_stay split_huge(struct collect *c, pmd_t *pmdp,
				    unsigned long addr, bool *selected)
{
	struct vm_area_struct *vma = c->migrate->vma;
	struct folio *folio = NULL;
	spinlock_t *ptl;

	*selected = true;
	ptl = pmd_lock(vma->vm_mm, pmdp);
	if (pmd_trans_huge(*pmdp)) {
		folio = pmd_folio(*pmdp);
		if (!(c->migrate->flags & MIGRATE_VMA_SELECT_SYSTEM))
			*selected = false;
		else if (!is_huge_zero_folio(folio))
			folio_get(folio);
	}
	spin_unlock(ptl);

	if (!folio || !*selected)
		return MIGRATE_STAY_UNSELECTED;
	if (is_huge_zero_folio(folio)) {
		split_huge_pmd(vma, pmdp, addr);
		return MIGRATE_STAY_UNSELECTED;
	}
	if (!folio_test_anon(folio)) {
		folio_put(folio);
		return MIGRATE_STAY_UNSUPPORTED;
	}
	return split_and_put(folio);
}

static int collect_pmd(pmd_t *pmdp, unsigned long addr, unsigned long end,
		       struct mm_walk *walk)
{
	struct collect *c = walk->private;

	while (addr < end) {
		pmd_t pmd = pmdp_get_lockless(pmdp);

		if (pmd_none(pmd)) {
			fill_entries(c->migrate, addr, end,
				     hole_entry(c->migrate));
			return 0;
		}
		if (pmd_trans_huge(pmd)) {
			enum migrate_stay why;
			bool selected;

			why = split_huge(c, pmdp, addr, &selected);
			if (why || !selected) {
				fill_entries(c->migrate, addr, end,
					     migrate_pfn_stay(why));
				return 0;
			}
			continue;
		}
		if (!pmd_present(pmd)) {
			/* A migration entry: somebody else moves the whole. */
			fill_entries(c->migrate, addr, end,
				     migrate_pfn_stay(MIGRATE_STAY_LOCKED));
			return 0;
		}

		addr = collect_table(c, pmdp, addr, end);
		if (c->to_split)
			split_in_the_way(c);
	}
	return 0;
}

static int collect_hole(unsigned long addr, unsigned long end, int depth,
			struct mm_walk *walk)
{
	struct collect *c = walk->private;

	fill_entries(c->migrate, addr, end, hole_entry(c->migrate));
	return 0;
}

static const struct mm_walk_ops collect_ops = {
	.pmd_entry = collect_pmd,
	.pte_hole = collect_hole,
	.walk_lock = PGWALK_RDLOCK,
};

/**
 * migrate_vma_collect() - lock and unmap what is selected in a range
 * @migrate: checked arguments; src, dst, cpages and npages are filled in
 *
 * Afterwards each page in src is locked, carries the reference of the mapping
 * it had, and is mapped here by a migration entry. It may still be mapped
 * elsewhere and be on the LRU.
 *
 * Context: Process context, caller holds mmap_lock. May sleep.
 */
void migrate_vma_collect(struct migrate_vma *migrate)
{
	struct collect c = { .migrate = migrate };
	struct mmu_notifier_range range;

	mmap_assert_locked(migrate->vma->vm_mm);

	migrate->cpages = 0;
	migrate->npages = (migrate->end - migrate->start) >> PAGE_SHIFT;

	/* The owner tells a driver that its own device pages stay valid. */
	mmu_notifier_range_init_owner(&range, MMU_NOTIFY_MIGRATE, 0,
				      migrate->vma->vm_mm, migrate->start,
				      migrate->end, migrate->pgmap_owner);
	mmu_notifier_invalidate_range_start(&range);
	walk_page_range_vma(migrate->vma, migrate->start, migrate->end,
			    &collect_ops, &c);
	mmu_notifier_invalidate_range_end(&range);
}
