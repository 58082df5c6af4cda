// SPDX-License-Identifier: GPL-2.0
/*
 * Device migration, first phase: from page tables to migration entries.
 *
 * Each page table of the range is taken once and goes through four steps under its
 * lock:
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
#include <linux/pgalloc.h>
#include <linux/rmap.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <asm/tlbflush.h>

#include "internal.h"
#include "migrate_device.h"
#include "migrate_device_pte.h"

/**
 * struct collect - one walk
 * @migrate: the caller's arguments and arrays
 * @to_split: large folio at which select stopped, referenced
 * @tried: large folio that select must not stop at again: splitting failed
 * @why: what a page of @tried gets for a reason
 * @claimed: select has locked a page of this table
 */
struct collect {
	struct migrate_vma *migrate;
	bool claimed;
	struct folio *to_split;
	struct folio *tried;
	enum migrate_stay why;
};

static bool takes_large(const struct migrate_vma *migrate)
{
	return migrate->flags & MIGRATE_VMA_SELECT_COMPOUND;
}

/* Does the range have all pages of the page table at @addr? */
static bool is_whole_table(unsigned long addr, unsigned long end)
{
	return IS_ALIGNED(addr, PMD_SIZE) && end - addr == PMD_SIZE;
}

static void set_entries(struct migrate_vma *migrate, unsigned long addr,
			unsigned long end, unsigned long entry)
{
	unsigned long i = migrate_index(migrate, addr);
	unsigned long nr = (end - addr) >> PAGE_SHIFT;

	memset_l(&migrate->src[i], entry, nr);
	memset_l(&migrate->dst[i], 0, nr);
	if (entry & MIGRATE_PFN_MIGRATE)
		migrate->cpages += nr;
}

/* One entry for all of [addr, end), which is a folio, or may become one. */
static void set_large_entry(struct migrate_vma *migrate, unsigned long addr,
			    unsigned long end, unsigned long entry)
{
	set_entries(migrate, addr, end, 0);
	migrate->src[migrate_index(migrate, addr)] = entry | MIGRATE_PFN_COMPOUND;
	migrate->cpages += (end - addr) >> PAGE_SHIFT;
}

/* Only anonymous memory can come into being on a device. */
static unsigned long hole_entry(const struct migrate_vma *migrate)
{
	return vma_is_anonymous(migrate->vma) ? MIGRATE_PFN_MIGRATE : 0;
}

/* What a CPU may not have as a huge page, a device gets in small ones, too. */
static bool may_be_huge(const struct migrate_vma *migrate)
{
	return takes_large(migrate) && hole_entry(migrate) &&
	       thp_vma_allowable_order(migrate->vma, migrate->vma->vm_flags,
				       TVA_IN_PF | TVA_ENFORCE_SYSFS,
				       PMD_SHIFT - PAGE_SHIFT);
}

static void fill_hole(struct migrate_vma *migrate, unsigned long addr,
		      unsigned long end)
{
	bool huge = may_be_huge(migrate);
	unsigned long next;

	for (; addr < end; addr = next) {
		next = pmd_addr_end(addr, end);
		if (huge && is_whole_table(addr, next))
			set_large_entry(migrate, addr, next, hole_entry(migrate));
		else
			set_entries(migrate, addr, next, hole_entry(migrate));
	}
}

static bool device_page_selected(const struct migrate_vma *migrate,
				 const struct page *page, unsigned long flag)
{
	return (migrate->flags & flag) &&
	       page_pgmap(page)->owner == migrate->pgmap_owner;
}

static unsigned long swap_pte_entry(const struct migrate_vma *migrate, pte_t pte)
{
	swp_entry_t swap = pte_to_swp_entry(pte);
	unsigned long entry;

	if (!(migrate->flags & MIGRATE_VMA_SELECT_DEVICE_PRIVATE) ||
	    !is_device_private_entry(swap) ||
	    !device_page_selected(migrate, pfn_swap_entry_to_page(swap),
				  MIGRATE_VMA_SELECT_DEVICE_PRIVATE))
		return 0;

	entry = migrate_pfn(swp_offset_pfn(swap)) | MIGRATE_PFN_MIGRATE;
	if (is_writable_device_private_entry(swap))
		entry |= MIGRATE_PFN_WRITE;
	return entry;
}

/* vm_normal_page() for all that is not special. */
static struct page *pte_normal_page(struct vm_area_struct *vma,
				    unsigned long addr, pte_t pte)
{
	if (IS_ENABLED(CONFIG_ARCH_HAS_PTE_SPECIAL) && !pte_special(pte) &&
	    pte_pfn(pte) <= highest_memmap_pfn)
		return pte_page(pte);
	return vm_normal_page(vma, addr, pte);
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

	page = pte_normal_page(migrate->vma, addr, pte);
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

/* Is this the PTE of page @i of a folio whose first page @first maps? */
static bool pte_goes_on(pte_t first, pte_t pte, unsigned long i)
{
	if (!pte_present(first))
		return is_swap_pte(pte) &&
		       is_device_private_entry(pte_to_swp_entry(pte)) &&
		       swp_offset_pfn(pte_to_swp_entry(pte)) ==
		       swp_offset_pfn(pte_to_swp_entry(first)) + i;
	return pte_present(pte) && pte_pfn(pte) == pte_pfn(first) + i;
}

/*
 * Can the folio move as it is? All its pages have to be mapped here, in a row.
 * The entry says WRITE only if each of them may be written.
 */
static bool is_mapped_whole(const struct migrate_vma *migrate,
			    struct folio *folio, unsigned long addr,
			    unsigned long end, pte_t *ptep,
			    unsigned long *entry)
{
	unsigned long i, nr = folio_nr_pages(folio);
	pte_t first = ptep_get(ptep);
	unsigned long step = pte_step(first);
	unsigned long next = pte_val(first);
	bool write = true;

	if (!takes_large(migrate) || (end - addr) >> PAGE_SHIFT < nr ||
	    migrate_pfn_to_page(*entry) != &folio->page ||
	    folio_test_has_hwpoisoned(folio))
		return false;

	for (i = 0; i < nr; i++, next += step) {
		pte_t pte = ptep_get(ptep + i);

		if (likely(pte_val(pte) == next))
			continue;
		if (!pte_goes_on(first, pte, i))
			return false;
		write &= pte_allows_write(pte);
	}
	if (!write)
		*entry &= ~MIGRATE_PFN_WRITE;
	return true;
}

/*
 * Lock the folio of a page that is offered, or say why it has to stay. The PTE
 * maps it and is locked, so the folio needs no reference of ours here.
 */
static enum migrate_stay claim_folio(struct collect *c, struct folio *folio)
{
	if (migrate_lock_is_ours(folio, c->migrate->fault_page) &&
	    !folio_trylock(folio))
		return MIGRATE_STAY_LOCKED;
	return MIGRATE_STAY_UNSELECTED;
}

/* A large folio that cannot move as it is: stop here, for it to be split. */
static enum migrate_stay want_split(struct collect *c, struct folio *folio)
{
	if (folio == c->tried)
		return c->why;
	folio_get(folio);
	c->to_split = folio;
	return MIGRATE_STAY_SPLIT;
}

static enum migrate_stay check_page(struct page *page, struct folio *folio)
{
	if (!folio->mapping)
		return MIGRATE_STAY_UNSUPPORTED;
	if (PageHWPoison(page))
		return MIGRATE_STAY_POISONED;
	if (folio_test_large(folio) && !folio_test_anon(folio))
		return MIGRATE_STAY_UNSUPPORTED;
	/* The driver would only copy it in vain: see migrate_may_become(). */
	if (folio_test_ksm(folio))
		return MIGRATE_STAY_UNSUPPORTED;
	return MIGRATE_STAY_UNSELECTED;
}

/* Write the entries of the page at @addr, or of the folio there; how many. */
static unsigned long select_page(struct collect *c, pte_t *ptep,
				 unsigned long addr, unsigned long end,
				 unsigned long entry)
{
	struct page *page = migrate_pfn_to_page(entry);
	unsigned long i = migrate_index(c->migrate, addr);
	struct folio *folio = page_folio(page);
	unsigned long nr = 1;
	enum migrate_stay why;

	why = check_page(page, folio);
	if (!why && folio_test_large(folio)) {
		if (is_mapped_whole(c->migrate, folio, addr, end, ptep, &entry))
			nr = folio_nr_pages(folio);
		else
			why = want_split(c, folio);
		if (c->to_split)
			return 0;
	}
	if (!why)
		why = claim_folio(c, folio);

	end = addr + nr * PAGE_SIZE;
	if (why) {
		set_entries(c->migrate, addr, end, migrate_pfn_stay(why));
		return nr;
	}
	c->claimed = true;
	if (nr > 1) {
		set_large_entry(c->migrate, addr, end, entry);
	} else {
		c->migrate->src[i] = entry;
		c->migrate->dst[i] = 0;
		c->migrate->cpages++;
	}
	return nr;
}

/*
 * Write the src entries of [addr, end), up to the first page of a large folio
 * that has to be split first. Return the address behind the last one written.
 */
static noinline unsigned long select_ptes(struct collect *c, pte_t *ptep,
					  unsigned long addr, unsigned long end)
{
	struct migrate_vma *migrate = c->migrate;
	unsigned long i = migrate_index(migrate, addr);
	unsigned long nr;

	for (; addr < end; addr += nr * PAGE_SIZE, ptep += nr, i += nr) {
		unsigned long entry = pte_entry(migrate, addr, ptep_get(ptep));

		if (entry & MIGRATE_PFN_VALID) {
			nr = select_page(c, ptep, addr, end, entry);
			if (!nr)
				break;
			continue;
		}
		migrate->src[i] = entry;
		migrate->dst[i] = 0;
		if (entry & MIGRATE_PFN_MIGRATE)
			migrate->cpages++;
		nr = 1;
	}
	return addr;
}

/*
 * Return whether a CPU may hold a translation of what was cleared. What there was
 * goes to dst, which is scratch until the driver has it.
 */
static noinline bool clear_ptes(struct migrate_vma *migrate, pte_t *ptep,
				unsigned long addr, unsigned long end)
{
	unsigned long *src = &migrate->src[migrate_index(migrate, addr)];
	unsigned long *old = &migrate->dst[migrate_index(migrate, addr)];
	struct mm_struct *mm = migrate->vma->vm_mm;
	bool present = false;
	unsigned long n;

	flush_cache_range(migrate->vma, addr, end);
	arch_enter_lazy_mmu_mode();
	while (addr < end) {
		n = migrate_pfn_nr(*src);
		if (!(*src & MIGRATE_PFN_VALID)) {
			addr += n * PAGE_SIZE;
			ptep += n;
			src += n;
			old += n;
			continue;
		}
		for (src += n; n; n--, addr += PAGE_SIZE) {
			pte_t pte = ptep_get_and_clear(mm, addr, ptep++);

			*old++ = pte_val(pte);
			present |= pte_present(pte);
		}
	}
	arch_leave_lazy_mmu_mode();
	return present;
}

/*
 * Make @nr pages of a large folio shareable. Each that was exclusive gets its bit
 * in @exclusive. A pin of any of them is one of the folio: so the first exclusive
 * page answers for all, once the PTEs of all are gone.
 */
static bool share_pages(struct folio *folio, unsigned long nr,
			unsigned long *exclusive)
{
	unsigned long i, first;

	bitmap_zero(exclusive, nr);
	if (!folio_test_anon(folio))
		return true;
	for (i = 0; i < nr; i++)
		if (PageAnonExclusive(folio_page(folio, i)))
			__set_bit(i, exclusive);

	first = find_first_bit(exclusive, nr);
	if (first == nr)
		return true;
	if (folio_try_share_anon_rmap_pte(folio, folio_page(folio, first)))
		return false;
	i = first + 1;
	for_each_set_bit_from(i, exclusive, nr)
		ClearPageAnonExclusive(folio_page(folio, i));
	/* As folio_try_share_anon_rmap_pte(): the flag before the new PTE. */
	smp_mb__after_atomic();
	return true;
}

/* How many of @nr PTEs are like the first, but for their pfn, and as exclusive? */
static unsigned long nr_alike(const unsigned long *old,
			      const unsigned long *exclusive, unsigned long k,
			      unsigned long nr)
{
	unsigned long step = pte_step(__pte(old[k])), next = old[k];
	unsigned long i, last;

	last = test_bit(k, exclusive) ? find_next_zero_bit(exclusive, nr, k) :
					find_next_bit(exclusive, nr, k);
	for (i = k + 1; i < last; i++) {
		next += step;
		if (old[i] != next)
			break;
	}
	return i - k;
}

/*
 * Write migration entries for @nr pages of a large folio, mapped in a row by what
 * is in @old. Of the references of the mappings one is kept.
 */
static void replace_run(struct migrate_vma *migrate, pte_t *ptep,
			unsigned long addr, struct folio *folio,
			unsigned long nr, const unsigned long *old,
			const unsigned long *exclusive)
{
	unsigned long k, n;

	for (k = 0; k < nr; k += n) {
		pte_t pte = __pte(old[k]);

		n = nr_alike(old, exclusive, k, nr);
		take_dirty(folio, pte);
		set_ptes_from(migrate->vma->vm_mm, addr + k * PAGE_SIZE, ptep + k,
			      migration_pte(folio_page(folio, k), pte,
					    test_bit(k, exclusive)), n);
	}
	folio_remove_rmap_ptes(folio, &folio->page, nr, migrate->vma);
	folio_ref_sub(folio, nr - 1);
}

/* A pin: everything as it was. */
static void put_back_run(struct migrate_vma *migrate, pte_t *ptep,
			 unsigned long addr, unsigned long nr,
			 const unsigned long *old)
{
	unsigned long k;

	for (k = 0; k < nr; k++)
		set_pte_at(migrate->vma->vm_mm, addr + k * PAGE_SIZE, ptep + k,
			   __pte(old[k]));
}

static noinline bool replace_large(struct migrate_vma *migrate, pte_t *ptep,
				   unsigned long addr, struct folio *folio,
				   unsigned long nr, unsigned long *old)
{
	DECLARE_BITMAP(exclusive, MAX_PTRS_PER_PTE);

	if (!share_pages(folio, nr, exclusive)) {
		put_back_run(migrate, ptep, addr, nr, old);
		return false;
	}
	replace_run(migrate, ptep, addr, folio, nr, old, exclusive);
	memset_l(old, 0, nr);
	return true;
}

/* Everything is as it was; let go of the folio. */
static void drop_pinned(struct migrate_vma *migrate, unsigned long addr,
			struct folio *folio, unsigned long nr)
{
	if (migrate_lock_is_ours(folio, migrate->fault_page))
		folio_unlock(folio);
	migrate->cpages -= nr;
	set_entries(migrate, addr, addr + nr * PAGE_SIZE,
		    migrate_pfn_stay(MIGRATE_STAY_PINNED));
}

/* What goes on from one PTE of a table to the next. */
struct replace {
	struct anon_mapped mapped;
	struct pte_rule rule;
};

/* One page, and all that there is about it. */
static __always_inline bool replace_page(struct migrate_vma *migrate,
					 pte_t *ptep, unsigned long addr,
					 struct page *page, pte_t old,
					 struct replace *r)
{
	struct folio *folio = page_folio(page);

	if (!replace_pte(migrate->vma, addr, ptep, old, folio, page, &r->rule))
		return false;
	drop_mappings(folio, page, 1, migrate->vma, &r->mapped);
	return true;
}

static noinline void replace_ptes(struct migrate_vma *migrate, pte_t *ptep,
				  unsigned long addr, unsigned long end)
{
	unsigned long i = migrate_index(migrate, addr);
	struct replace r = { };
	unsigned long nr;
	bool done;

	arch_enter_lazy_mmu_mode();
	for (; addr < end; addr += nr * PAGE_SIZE, ptep += nr, i += nr) {
		unsigned long src = migrate->src[i], *old = &migrate->dst[i];

		nr = 1;
		if (!(src & MIGRATE_PFN_VALID))
			continue;
		if (likely(!(src & MIGRATE_PFN_COMPOUND))) {
			done = replace_page(migrate, ptep, addr,
					    migrate_pfn_to_page(src),
					    __pte(*old), &r);
			*old = 0;
		} else {
			nr = migrate_pfn_nr(src);
			done = replace_large(migrate, ptep, addr,
					     migrate_pfn_folio(src), nr, old);
		}
		if (unlikely(!done))
			drop_pinned(migrate, addr, migrate_pfn_folio(src), nr);
	}
	anon_mapped_flush(&r.mapped);
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

	c->claimed = false;
	end = select_ptes(c, ptep, addr, end);
	if (c->claimed) {
		if (clear_ptes(migrate, ptep, addr, end))
			flush_tlb_range(migrate->vma, addr, end);
		replace_ptes(migrate, ptep, addr, end);
	}

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
static enum migrate_stay split_and_put(const struct migrate_vma *migrate,
				       struct folio *folio)
{
	bool lock = migrate_lock_is_ours(folio, migrate->fault_page);
	enum migrate_stay why = MIGRATE_STAY_LOCKED;
	bool device = folio_is_zone_device(folio);

	if (lock && !folio_trylock(folio))
		goto out;
	if (device)
		why = migrate_split_device_folio(folio, migrate->fault_page);
	else
		why = split_folio(folio) ? MIGRATE_STAY_SPLIT :
					   MIGRATE_STAY_UNSELECTED;
	if (lock)
		folio_unlock(folio);
out:
	folio_put(folio);
	return why;
}

/* Only its address is remembered of a folio that could not be split. */
static void split_in_the_way(struct collect *c)
{
	struct folio *folio = c->to_split;

	c->to_split = NULL;
	c->why = split_and_put(c->migrate, folio);
	c->tried = c->why ? folio : NULL;
}

/* --- Whole page tables: PMD-mapped folios, and what was one --------------- */

/*
 * A huge PMD that is in the range as a whole: lock the folio, and let a huge
 * migration entry stand for it. The table that was deposited for a split stays.
 */
static unsigned long collect_huge_pmd(struct collect *c, pmd_t *pmdp,
				      unsigned long addr)
{
	struct page_vma_mapped_walk pvmw = {
		.vma = c->migrate->vma,
		.address = addr,
		.pmd = pmdp,
	};
	struct page *page = pmd_page(*pmdp);
	struct folio *folio = page_folio(page);
	unsigned long entry = migrate_pfn(page_to_pfn(page));
	enum migrate_stay why;

	if (!folio_test_anon(folio))
		return migrate_pfn_stay(MIGRATE_STAY_UNSUPPORTED);
	why = claim_folio(c, folio);
	if (why)
		return migrate_pfn_stay(why);
	if (pmd_write(*pmdp))
		entry |= MIGRATE_PFN_WRITE;

	/* What it puts is the mapping's reference. */
	folio_get(folio);
	if (set_pmd_migration_entry(&pvmw, page)) {
		folio_unlock(folio);
		folio_put(folio);
		return migrate_pfn_stay(MIGRATE_STAY_PINNED);
	}
	return entry | MIGRATE_PFN_MIGRATE;
}

/* Can this huge PMD be taken as it is? Under its lock. */
static bool takes_huge_pmd(const struct migrate_vma *migrate, pmd_t pmd,
			   unsigned long addr, unsigned long end)
{
	struct folio *folio = pmd_folio(pmd);

	return thp_migration_supported() && takes_large(migrate) &&
	       is_whole_table(addr, end) &&
	       folio_order(folio) == PMD_ORDER &&
	       !folio_test_has_hwpoisoned(folio);
}

/* What is to be done about a huge PMD. */
enum huge_step { HUGE_DONE, HUGE_AGAIN };

/*
 * A huge PMD: taken whole, left alone, or made a page table of small folios,
 * which the caller looks at again.
 */
static enum huge_step collect_huge(struct collect *c, pmd_t *pmdp,
				   unsigned long addr, unsigned long end)
{
	struct migrate_vma *migrate = c->migrate;
	struct vm_area_struct *vma = migrate->vma;
	unsigned long entry = 0;
	struct folio *folio;
	enum migrate_stay why;
	spinlock_t *ptl;

	ptl = pmd_lock(vma->vm_mm, pmdp);
	if (!pmd_trans_huge(*pmdp)) {
		spin_unlock(ptl);
		return HUGE_AGAIN;
	}
	folio = pmd_folio(*pmdp);
	if (!(migrate->flags & MIGRATE_VMA_SELECT_SYSTEM))
		goto out_entry;
	if (is_huge_zero_folio(folio)) {
		spin_unlock(ptl);
		split_huge_pmd(vma, pmdp, addr);
		if (!takes_large(migrate) || !is_whole_table(addr, end))
			return HUGE_AGAIN;
		set_large_entry(migrate, addr, end, hole_entry(migrate));
		return HUGE_DONE;
	}
	if (takes_huge_pmd(migrate, *pmdp, addr, end)) {
		entry = collect_huge_pmd(c, pmdp, addr);
		goto out_entry;
	}
	if (!folio_test_anon(folio)) {
		entry = migrate_pfn_stay(MIGRATE_STAY_UNSUPPORTED);
		goto out_entry;
	}
	folio_get(folio);
	spin_unlock(ptl);

	why = split_and_put(migrate, folio);
	if (!why)
		return HUGE_AGAIN;
	set_entries(migrate, addr, end, migrate_pfn_stay(why));
	return HUGE_DONE;

out_entry:
	spin_unlock(ptl);
	if (entry & MIGRATE_PFN_VALID)
		set_large_entry(migrate, addr, end, entry);
	else
		set_entries(migrate, addr, end, entry);
	return HUGE_DONE;
}

/* What all entries of a page table have in common. */
struct alike {
	struct folio *folio;
	bool write;
	bool exclusive;
	bool soft_dirty;
	bool uffd_wp;
};

/*
 * Are all entries of the table those of one device-private folio in this range,
 * and alike? Then a huge migration entry says it all. Under the lock of the
 * table.
 */
static bool is_device_table(const struct migrate_vma *migrate,
			    unsigned long addr, pte_t *ptep, struct alike *a)
{
	pte_t first = ptep_get(ptep);
	unsigned long i, next, step, entry;

	if (!is_swap_pte(first))
		return false;
	entry = swap_pte_entry(migrate, first);
	if (!(entry & MIGRATE_PFN_VALID))
		return false;
	a->folio = migrate_pfn_folio(entry);
	if (migrate_pfn_to_page(entry) != &a->folio->page ||
	    folio_order(a->folio) != PMD_ORDER)
		return false;

	a->write = entry & MIGRATE_PFN_WRITE;
	a->exclusive = PageAnonExclusive(&a->folio->page);
	a->soft_dirty = pte_swp_soft_dirty(first);
	a->uffd_wp = pte_swp_uffd_wp(first);
	step = pte_step(first);
	next = pte_val(first) + step;
	for (i = 1; i < PTRS_PER_PTE; i++, next += step) {
		if (pte_val(ptep_get(ptep + i)) != next ||
		    PageAnonExclusive(folio_page(a->folio, i)) != a->exclusive)
			return false;
	}
	return true;
}

/* A look without the lock: is it worth a page table? */
static bool may_be_device_table(pmd_t *pmdp, unsigned long addr)
{
	pte_t *ptep = pte_offset_map(pmdp, addr);
	bool ret = false;
	pte_t pte;

	if (!ptep)
		return false;
	pte = ptep_get(ptep);
	if (is_swap_pte(pte) && is_device_private_entry(pte_to_swp_entry(pte)))
		ret = folio_order(pfn_swap_entry_folio(pte_to_swp_entry(pte))) ==
		      PMD_ORDER;
	pte_unmap(ptep);
	return ret;
}

/*
 * The CPU's view of what comes back from a device: it may have been written,
 * and was used.
 */
static pmd_t device_migration_pmd(const struct alike *a)
{
	swp_entry_t entry = migration_entry(&a->folio->page, a->write,
					    a->exclusive);
	pmd_t pmd;

	entry = make_migration_entry_young(entry);
	if (a->write)
		entry = make_migration_entry_dirty(entry);
	pmd = swp_entry_to_pmd(entry);
	if (a->soft_dirty || a->write)
		pmd = pmd_swp_mksoft_dirty(pmd);
	return a->uffd_wp ? pmd_swp_mkuffd_wp(pmd) : pmd;
}

/* Nobody can pin private memory: there is nothing to look for or to order. */
static void share_all(struct folio *folio)
{
	unsigned long i, nr = folio_nr_pages(folio);

	for (i = 0; i < nr; i++)
		ClearPageAnonExclusive(folio_page(folio, i));
}

/*
 * Put a huge migration entry in place of a table full of one device folio, with
 * both locks held. Return the table, for the caller to free.
 *
 * mmap_lock is held for read only, so others are at work here. Who looks at the
 * PMD alone, as zap does, must never find it empty: the entry is written over
 * it. Who took the table before, without its lock, takes the lock and compares
 * what it read: so the table is left as it is, and freed when nobody can look at
 * it any more. No CPU has a translation by it; the flush is for what it may know
 * of the way there. What is deposited for a split is @fresh.
 */
static pgtable_t replace_device_table(struct migrate_vma *migrate, pmd_t *pmdp,
				      unsigned long addr, const struct alike *a,
				      pgtable_t fresh)
{
	struct vm_area_struct *vma = migrate->vma;
	pmd_t old = *pmdp;

	if (a->exclusive)
		share_all(a->folio);
	pgtable_trans_huge_deposit(vma->vm_mm, pmdp, fresh);
	set_pmd_at(vma->vm_mm, addr, pmdp, device_migration_pmd(a));
	flush_tlb_range(vma, addr, addr + PMD_SIZE);
	pmdp_get_lockless_sync();
	folio_remove_rmap_ptes(a->folio, &a->folio->page, PTRS_PER_PTE, vma);
	folio_ref_sub(a->folio, PTRS_PER_PTE - 1);
	return pmd_pgtable(old);
}

/*
 * The table of one large device folio goes as a whole, so that the folio can be
 * mapped by a PMD when it comes back. Return false, with nothing done, if it is
 * not that, or memory is short: then it goes PTE by PTE.
 */
static bool collect_device_table(struct collect *c, pmd_t *pmdp,
				 unsigned long addr, unsigned long end)
{
	struct migrate_vma *migrate = c->migrate;
	struct mm_struct *mm = migrate->vma->vm_mm;
	pgtable_t fresh, old = NULL;
	enum migrate_stay why = MIGRATE_STAY_UNSELECTED;
	spinlock_t *pml, *ptl;
	struct alike a = { };
	pte_t *ptep;

	/* On PowerPC a PMD has to be empty in between. */
	if (!thp_migration_supported() || IS_ENABLED(CONFIG_PPC) ||
	    !takes_large(migrate) ||
	    !(migrate->flags & MIGRATE_VMA_SELECT_DEVICE_PRIVATE) ||
	    !is_whole_table(addr, end) || !may_be_device_table(pmdp, addr))
		return false;

	fresh = pte_alloc_one(mm);
	if (!fresh)
		return false;
	pml = pmd_lock(mm, pmdp);
	ptep = pte_offset_map_nolock(mm, pmdp, addr, &ptl);
	if (!ptep)
		goto out_unlock;
	if (ptl != pml)
		spin_lock_nested(ptl, SINGLE_DEPTH_NESTING);
	if (is_device_table(migrate, addr, ptep, &a)) {
		why = claim_folio(c, a.folio);
		if (!why)
			old = replace_device_table(migrate, pmdp, addr, &a,
						   fresh);
	}
	if (ptl != pml)
		spin_unlock(ptl);
	pte_unmap(ptep);
out_unlock:
	spin_unlock(pml);

	if (why) {
		set_entries(migrate, addr, end, migrate_pfn_stay(why));
	} else if (old) {
		pte_free_defer(mm, old);
		set_large_entry(migrate, addr, end,
				migrate_pfn(folio_pfn(a.folio)) |
				MIGRATE_PFN_MIGRATE |
				(a.write ? MIGRATE_PFN_WRITE : 0));
		return true;
	}
	pte_free(mm, fresh);
	return why != MIGRATE_STAY_UNSELECTED;
}

/* What one PMD maps, or a part of it. */
static void collect_range(struct collect *c, pmd_t *pmdp, unsigned long addr,
			  unsigned long end)
{
	while (addr < end) {
		pmd_t pmd = pmdp_get_lockless(pmdp);

		if (pmd_none(pmd)) {
			fill_hole(c->migrate, addr, end);
			return;
		}
		if (pmd_trans_huge(pmd)) {
			if (collect_huge(c, pmdp, addr, end) == HUGE_DONE)
				return;
			continue;
		}
		if (!pmd_present(pmd)) {
			/* A migration entry: somebody else moves the whole. */
			set_entries(c->migrate, addr, end,
				    migrate_pfn_stay(MIGRATE_STAY_LOCKED));
			return;
		}
		if (collect_device_table(c, pmdp, addr, end))
			return;

		addr = collect_table(c, pmdp, addr, end);
		if (c->to_split)
			split_in_the_way(c);
	}
}

/* The owner tells a driver that its own device pages stay valid. */
static void collect_begin(struct migrate_vma *migrate,
			  struct mmu_notifier_range *range)
{
	migrate_assert_locked(migrate);
	migrate->cpages = 0;
	migrate->npages = (migrate->end - migrate->start) >> PAGE_SHIFT;
	mmu_notifier_range_init_owner(range, MMU_NOTIFY_MIGRATE, 0,
				      migrate->vma->vm_mm, migrate->start,
				      migrate->end, migrate->pgmap_owner);
	mmu_notifier_invalidate_range_start(range);
}

/**
 * migrate_vma_collect() - lock and unmap what is selected in a range
 * @migrate: checked arguments; src, dst, cpages and npages are filled in
 *
 * Afterwards each page in src is locked, carries the reference of the mapping
 * it had, and is mapped here by a migration entry. It may still be mapped
 * elsewhere and be on the LRU.
 *
 * Context: Process context, caller holds mmap_lock, or what the CPU fault holds.
 * May sleep.
 */
void migrate_vma_collect(struct migrate_vma *migrate)
{
	struct collect c = { .migrate = migrate };
	struct mmu_notifier_range range;
	unsigned long addr, next;

	collect_begin(migrate, &range);
	/* No page walk: that one wants mmap_lock, which a CPU fault may not have. */
	for (addr = migrate->start; addr < migrate->end; addr = next) {
		pmd_t *pmdp = mm_find_pmd(migrate->vma->vm_mm, addr);

		next = pmd_addr_end(addr, migrate->end);
		if (pmdp)
			collect_range(&c, pmdp, addr, next);
		else
			fill_hole(migrate, addr, next);
		cond_resched();
	}
	mmu_notifier_invalidate_range_end(&range);
}
