// SPDX-License-Identifier: GPL-2.0
/*
 * The mirror: what the CPU's page tables say, one word per page.
 *
 * A device that shares a process's address space needs to know which page is
 * behind each address, and needs pages to be there. hmm_range_fault() tells the
 * first and sees to the second, for a range of addresses at a time.
 *
 * Vocabulary
 *
 *  - A *request* is what the caller asks for one page: nothing, readable or
 *    writable (HMM_PFN_REQ_*).
 *  - An *entry* is what the page tables give for it now: a pfn with its rights
 *    and order (HMM_PFN_VALID), 0 for a page that a fault may bring, or
 *    HMM_PFN_ERROR where none can.
 *  - The *need* is what is between the two. Request, entry and need are values;
 *    hmm_internal.h computes them and touches nothing.
 *  - A *leaf* is the page-table entry that maps a page, at any level. All pages
 *    of a leaf, of a hole, or of a VMA that cannot be mirrored have entries
 *    that follow from the first one. hmm_emit() stores them in one go.
 *  - A *run* is where the walk stops: the pages from the first one in need to
 *    the end of what one PMD covers.
 *
 * Model
 *
 *   walk: read leaf, emit, read leaf, emit, ... need! --> stop, note the run
 *                                                           |
 *     ^                                                     v
 *     |                                      locks of the walk are dropped
 *     |                                                     |
 *     +-- go on where the run begins <-- fault what is still in need of it
 *
 * The walk changes nothing but the caller's array and holds no lock that a
 * fault could want, since no fault happens under it. A run is worked off with
 * a look at the page table between any two faults: one fault may have brought
 * many pages, and only pages that were asked for are ever faulted. Nothing is
 * walked twice but the run itself.
 *
 * Locks
 *
 * The walk has mmap_lock for reading at least. VMAs are stable therefore, and
 * upper page tables do not go away. PTEs and PMDs are read without their
 * spinlocks. hugetlb_vma_lock is the page walk's business.
 *
 * Who holds it is where the two entry points differ. hmm_range_fault() is
 * called with mmap_lock, and no fault is allowed to drop it.
 * hmm_range_fault_unlocked_timeout() takes it, and a fault that has to wait
 * drops it: for a monitor of userfaultfd, for I/O, for a page that somebody
 * moves. Then the run ends early, whatever was looked up for it is forgotten
 * (VMA, PMD, what is sure), and the walk goes on where the run began, with
 * mmap_lock taken again.
 *
 * Before that it tries the lock of the VMA alone, if the whole range is in one
 * anonymous VMA: then neither do mmap() and munmap() of other memory wait for
 * the mirror, nor it for them. What mmap_lock is needed for above, the VMA's lock
 * gives: who changes the VMA, takes its page tables away, or copies it for a
 * child, has it for writing. A fault that cannot do with it, or waits, drops it,
 * and the rest of the attempt has mmap_lock. So does the mirror itself, after a
 * fault, if somebody wants it for writing: that one sleeps with mmap_lock held,
 * and everybody else behind it.
 *
 * The notifier's sequence does not depend on mmap_lock. If it has not moved,
 * what was stored before the lock was dropped is as good as what comes after,
 * and the walk need not begin again. If it has, all of it begins again with a
 * new sequence, and what is still mapped costs a look, but no fault.
 *
 * What closes the races
 *
 * An entry read without the page-table lock may be outdated before it is
 * stored. So may one that is read under the lock, as soon as the lock is
 * dropped: a lock would buy nothing. Whoever changes a present leaf, or a
 * device-private one, announces it to the interval notifier of the range before
 * it does, and that moves the sequence the caller has begun with. The caller
 * looks at the sequence once more under the lock its notifier callback takes
 * too, and throws everything away if it moved. What the walk has to see to is
 * only that it never follows a stale pointer: pte_offset_map() holds off the
 * freeing of page tables by RCU, and teardown of a pgmap passes an RCU grace
 * period as well, so that a device page found meanwhile still has its pgmap.
 */
#include <kunit/static_stub.h>
#include <kunit/visibility.h>
#include <linux/bitops.h>
#include <linux/export.h>
#include <linux/hmm.h>
#include <linux/hugetlb.h>
#include <linux/huge_mm.h>
#include <linux/jiffies.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pagewalk.h>
#include <linux/pgtable.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/secretmem.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <linux/userfaultfd_k.h>

#include "hmm_internal.h"
#include "internal.h"
#include "migrate_device.h"

/*
 * Neither 0 nor an errno. The first one is handed through by walk_page_range()
 * as it is, the second one is of a fault that has dropped the lock.
 */
#define HMM_WALK_STOPPED	1
#define HMM_LOCK_DROPPED	2

/* How often a walk that is to collect stops at one page. */
#define HMM_MAX_TRIES		10

/* Where no page begins. */
#define HMM_NOWHERE		ULONG_MAX

/**
 * struct hmm_walk - state of one hmm_range_fault()
 *
 * @range: what the caller asked for
 * @may_want: union of what any page of @range can ask for
 * @fault_flags: FAULT_FLAG_* that all faults have
 * @waited: jiffies for which faults have waited without a lock
 * @tried: the page whose fault has to be repeated after that, or HMM_NOWHERE
 * @locked: VMA whose lock is held instead of mmap_lock, or NULL
 * @vma: VMA of the run that the walk stopped at
 * @addr: first page of that run, in need; every page before it is settled
 * @end: end of that run
 * @need: need of the page at @addr
 * @latest: entry of the last page that was converted without a stencil
 * @stencil: the last one that was made
 * @migrate: what can move is collected once all needs are met, or NULL
 * @last: where such a walk has stopped last
 * @tries: how often it has stopped there
 *
 * While that run is worked off, @addr is the page to fault, and
 *
 * @pmdp: the PMD of the run, once there is one
 * @single: one fault brings one page
 * @sure: how many pages from @addr on have the same need for sure
 */
struct hmm_walk {
	struct hmm_range *range;
	unsigned long may_want;
	unsigned int fault_flags;
	unsigned long waited;
	unsigned long tried;
	struct vm_area_struct *locked;
	struct vm_area_struct *vma;
	unsigned long addr;
	unsigned long end;
	enum hmm_need need;
	unsigned long latest;
	struct hmm_stencil stencil;
	struct migrate_vma *migrate;
	unsigned long last;
	unsigned int tries;

	pmd_t *pmdp;
	bool single;
	unsigned long sure;
};

static unsigned long *hmm_slot(const struct hmm_range *range,
			       unsigned long addr)
{
	return range->hmm_pfns + ((addr - range->start) >> PAGE_SHIFT);
}

/*
 * Note the run that starts at @addr. A hugetlb page is a run of its own: it
 * comes by one fault, and its page table is not one to peek at.
 */
static int hmm_stop(struct mm_walk *walk, unsigned long addr,
		    unsigned long end, enum hmm_need need)
{
	struct hmm_walk *hw = walk->private;

	if (need == HMM_NEED_IMPOSSIBLE)
		return -EFAULT;

	hw->vma = walk->vma;
	hw->addr = addr;
	hw->end = is_vm_hugetlb_page(walk->vma) ? addr + PAGE_SIZE :
						  pmd_addr_end(addr, end);
	hw->need = need;
	return HMM_WALK_STOPPED;
}

/* Whether pages can ask for something by their own word. */
static bool hmm_words_ask(const struct hmm_range *range)
{
	return range->pfn_flags_mask & HMM_PFN_REQ_MASK;
}

/* How many of @nr pages from @slot on are content with one leaf's entries. */
static unsigned long hmm_nr_content(const struct hmm_walk *hw,
				    const unsigned long *slot, unsigned long nr,
				    unsigned long entry)
{
	const struct hmm_range *range = hw->range;
	unsigned long i;

	if (hmm_need(hw->may_want, entry) == HMM_NEED_NOTHING)
		return nr;
	if (!hmm_words_ask(range))
		return 0;
	for (i = 0; i < nr; i++) {
		if (hmm_need(hmm_request(range, slot[i]), entry))
			break;
	}
	return i;
}

/* What the caller wants to keep of four words, in any of them. */
static __always_inline unsigned long hmm_kept_in_4(const unsigned long *slot)
{
	return (slot[0] | slot[1] | slot[2] | slot[3]) & HMM_PFN_INOUT_FLAGS;
}

static __always_inline unsigned long hmm_keep(unsigned long word,
					      unsigned long entry)
{
	return (word & HMM_PFN_INOUT_FLAGS) | entry;
}

static void hmm_store(unsigned long *slot, unsigned long entry)
{
	*slot = hmm_keep(*slot, entry);
}

static noinline void hmm_fill_keep(unsigned long *slot, unsigned long nr,
				   unsigned long entry, int step)
{
	for (; nr; nr--, entry += step)
		hmm_store(slot++, entry);
}

/* Store entries that are @step apart, whatever is in the words. */
static __always_inline void hmm_store_4(unsigned long *slot,
					unsigned long entry, int step)
{
	slot[0] = entry;
	slot[1] = entry + step;
	slot[2] = entry + 2 * step;
	slot[3] = entry + 3 * step;
}

/* The same with a look at the words first. */
static __always_inline void hmm_fill_4(unsigned long *slot, unsigned long entry,
				       int step)
{
	if (unlikely(hmm_kept_in_4(slot)))
		hmm_fill_keep(slot, 4, entry, step);
	else
		hmm_store_4(slot, entry, step);
}

static __always_inline void hmm_fill_16(unsigned long *slot,
					unsigned long entry, int step)
{
	if (unlikely(hmm_kept_in_4(slot) | hmm_kept_in_4(slot + 4) |
		     hmm_kept_in_4(slot + 8) | hmm_kept_in_4(slot + 12))) {
		hmm_fill_keep(slot, 16, entry, step);
		return;
	}
	hmm_store_4(slot, entry, step);
	hmm_store_4(slot + 4, entry + 4 * step, step);
	hmm_store_4(slot + 8, entry + 8 * step, step);
	hmm_store_4(slot + 12, entry + 12 * step, step);
}

/*
 * To know whether there is something to keep takes an instruction per page, to
 * store takes two, and not much comes on top: @step is a constant.
 */
static __always_inline void hmm_fill_by(unsigned long *slot, unsigned long nr,
					unsigned long entry, int step)
{
	for (; nr >= 16; nr -= 16, slot += 16, entry += 16 * step)
		hmm_fill_16(slot, entry, step);
	for (; nr >= 4; nr -= 4, slot += 4, entry += 4 * step)
		hmm_fill_4(slot, entry, step);
	if (nr)
		hmm_fill_keep(slot, nr, entry, step);
}

/* Store @nr entries, the first one @entry, and keep what is the caller's. */
static void hmm_fill(unsigned long *slot, unsigned long nr, unsigned long entry)
{
	if (entry & HMM_PFN_VALID)
		hmm_fill_by(slot, nr, entry, 1);
	else
		hmm_fill_by(slot, nr, entry, 0);
}

/*
 * Settle the pages from @addr to @end, all of one leaf, one hole or one VMA
 * that has nothing to offer; @entry is that of the page at @addr. Stop at the
 * first page that asks for more.
 */
static int hmm_emit(struct mm_walk *walk, unsigned long addr, unsigned long end,
		    unsigned long entry)
{
	struct hmm_walk *hw = walk->private;
	unsigned long *slot = hmm_slot(hw->range, addr);
	unsigned long nr = (end - addr) >> PAGE_SHIFT;
	unsigned long content = hmm_nr_content(hw, slot, nr, entry);

	hmm_fill(slot, content, entry);
	if (content == nr)
		return 0;
	return hmm_stop(walk, addr + (content << PAGE_SHIFT), end,
			hmm_need(hmm_request(hw->range, slot[content]), entry));
}

/*
 * By how much PTEs of pages side by side differ, within a large folio: there is
 * no carry then, and if the pfn stands inverted, they count down. 0 if neither.
 */
static u64 hmm_stencil_step(u64 pte, u64 pfn, unsigned int shift)
{
	u64 bit = 1ULL << shift;
	u64 low = (bit << PMD_ORDER) - bit;
	u64 none = (pte ^ pfn << shift) & low;

	if (!none)
		return bit;
	return none == low ? -bit : 0;
}

/*
 * Compose a stencil from a PTE, the bits of it that do not matter, the place of
 * its pfn, its entry, and the pfns it is good for. See struct hmm_stencil.
 */
static struct hmm_stencil hmm_stencil_cut(pte_t pte, u64 idle,
					  unsigned int shift,
					  unsigned long entry,
					  struct hmm_pfns pfns)
{
	u64 nth = (entry & ~HMM_PFN_FLAGS) ^ pfns.first;
	u64 flip = pte_val(pte) ^ (nth << shift);
	u64 step = hmm_stencil_step(flip, pfns.first, shift);

	if (!step)
		return HMM_STENCIL_NONE;
	return (struct hmm_stencil) {
		.care = ~idle,
		.base = flip & ~idle,
		.flip = flip,
		.shift = shift,
		.step = step,
		.span = pfns.span,
		.entry = entry - nth,
	};
}

/* All bits that some pfn up to @hi has set. */
static u64 hmm_pfn_bits(u64 hi)
{
	return (1ULL << fls64(hi)) - 1;
}

#ifndef PFN_PTE_SHIFT
#define PFN_PTE_SHIFT	PAGE_SHIFT
#endif

/*
 * A stencil for present PTEs like @pte with a pfn in [@lo, @hi]. That the bits
 * of the pfn stand in the PTE in one piece at PFN_PTE_SHIFT, and that accessed
 * and dirty make no difference, is not taken for granted: the architecture is
 * asked what it would read if all of these bits were the other way round.
 */
VISIBLE_IF_KUNIT struct hmm_stencil hmm_stencil_of_pte(pte_t pte, u64 lo,
						       u64 hi)
{
	u64 idle = pte_val(pte_mkyoung(pte_mkdirty(pte))) ^
		   pte_val(pte_mkold(pte_mkclean(pte)));
	unsigned long entry = hmm_entry_of_pte(pte, 0);
	u64 bits = hmm_pfn_bits(hi);
	u64 flip = bits << PFN_PTE_SHIFT;
	pte_t other = __pte(pte_val(pte) ^ flip ^ idle);

	if ((idle & flip) || hmm_entry_of_pte(other, 0) != (entry ^ bits))
		return HMM_STENCIL_NONE;
	return hmm_stencil_cut(pte, idle, PFN_PTE_SHIFT, entry,
			       hmm_pfns_around(entry & ~HMM_PFN_FLAGS, lo, hi));
}

/*
 * The same for device-private PTEs. Where the pfn stands in them, and whether
 * inverted, is up to the architecture: flip the lowest bit and look. All bits
 * of such a PTE count.
 */
VISIBLE_IF_KUNIT struct hmm_stencil hmm_stencil_of_private(pte_t pte, u64 lo,
							   u64 hi)
{
	swp_entry_t swap = pte_to_swp_entry(pte), other;
	unsigned long entry = hmm_entry_of_private(swap);
	u64 bits = hmm_pfn_bits(hi);
	unsigned int shift;
	u64 lowest;

	other = swp_entry(swp_type(swap), swp_offset(swap) ^ 1);
	lowest = pte_val(swp_entry_to_pte(swap)) ^
		 pte_val(swp_entry_to_pte(other));
	if (!lowest)
		return HMM_STENCIL_NONE;

	shift = __ffs64(lowest);
	other = pte_to_swp_entry(__pte(pte_val(pte) ^ (bits << shift)));
	if (!is_device_private_entry(other) ||
	    hmm_entry_of_private(other) != (entry ^ bits))
		return HMM_STENCIL_NONE;
	return hmm_stencil_cut(pte, 0, shift, entry,
			       hmm_pfns_around(entry & ~HMM_PFN_FLAGS, lo, hi));
}

static const struct dev_pagemap *hmm_private_pgmap(swp_entry_t swap)
{
	return page_pgmap(pfn_swap_entry_to_page(swap));
}

/* Whether a present PTE maps something that has no struct page to hand out. */
static bool hmm_pte_is_special(struct vm_area_struct *vma, unsigned long addr,
			       pte_t pte)
{
	unsigned long pfn = pte_pfn(pte);

	if (IS_ENABLED(CONFIG_ARCH_HAS_PTE_SPECIAL) &&
	    likely(!pte_special(pte) && pfn <= highest_memmap_pfn))
		return false;
	if (pte_devmap(pte) || is_zero_pfn(pfn))
		return false;
	return !vm_normal_page(vma, addr, pte);
}

static unsigned long hmm_classify_swap(const struct hmm_range *range,
				       pte_t pte)
{
	swp_entry_t swap = pte_to_swp_entry(pte);

	if (!is_device_private_entry(swap) || !range->dev_private_owner ||
	    hmm_private_pgmap(swap)->owner != range->dev_private_owner)
		return 0;
	return hmm_entry_of_private(swap);
}

/* The entry of the page at @addr. The caller has the page table mapped. */
static unsigned long hmm_classify_pte(const struct hmm_range *range,
				      struct vm_area_struct *vma,
				      unsigned long addr, pte_t pte)
{
	unsigned long entry;

	if (pte_none(pte))
		return 0;
	if (!pte_present(pte))
		return hmm_classify_swap(range, pte);

	entry = hmm_entry_of_pte(pte, 0);
	if (entry && unlikely(hmm_pte_is_special(vma, addr, pte)))
		return HMM_PFN_ERROR;
	return entry;
}

/*
 * Like hmm_need(), but knows of one way out: a write to a private mapping puts
 * an ordinary page in the place of a special one.
 */
static enum hmm_need hmm_pte_need(unsigned long request, unsigned long entry,
				  pte_t pte)
{
	enum hmm_need need = hmm_need(request, entry);

	if (likely(need != HMM_NEED_IMPOSSIBLE))
		return need;
	if ((request & HMM_PFN_REQ_WRITE) && !pte_write(pte))
		return HMM_NEED_WRITE;
	return need;
}

/* A device gets zeroes for this without a page of them in RAM first. */
static bool hmm_pte_moves_as_hole(const struct hmm_walk *hw,
				  struct vm_area_struct *vma, pte_t pte)
{
	return hw->migrate && vma_is_anonymous(vma) &&
	       (pte_none(pte) ||
		(pte_present(pte) && is_zero_pfn(pte_pfn(pte))));
}

static enum hmm_need hmm_pte_walk_need(const struct hmm_walk *hw,
				       struct vm_area_struct *vma,
				       unsigned long word, unsigned long entry,
				       pte_t pte)
{
	enum hmm_need need;

	need = hmm_pte_need(hmm_request(hw->range, word), entry, pte);
	return need && hmm_pte_moves_as_hole(hw, vma, pte) ? HMM_NEED_NOTHING :
							     need;
}

/* A stencil for device-private PTEs like @pte, good for the range of its page. */
static struct hmm_stencil hmm_adopt_private(pte_t pte)
{
	swp_entry_t swap = pte_to_swp_entry(pte);
	const struct dev_pagemap *pgmap = hmm_private_pgmap(swap);
	u64 pfn = swp_offset_pfn(swap);
	int i;

	for (i = 0; i < pgmap->nr_range; i++) {
		u64 lo = PHYS_PFN(pgmap->ranges[i].start);
		u64 hi = PHYS_PFN(pgmap->ranges[i].end);

		if (pfn >= lo && pfn <= hi)
			return hmm_stencil_of_private(pte, lo, hi);
	}
	return HMM_STENCIL_NONE;
}

/* A stencil for PTEs like @pte, which @entry was found for. */
static struct hmm_stencil hmm_adopt(pte_t pte, unsigned long entry)
{
	unsigned long pfn = entry & ~HMM_PFN_FLAGS;

	if (!pte_present(pte))
		return hmm_adopt_private(pte);
	/* Only its pfn tells the zero page from what must not be mirrored. */
	if (!IS_ENABLED(CONFIG_ARCH_HAS_PTE_SPECIAL) || pte_special(pte))
		return hmm_stencil_of_pte(pte, pfn, pfn);
	return hmm_stencil_of_pte(pte, 0, highest_memmap_pfn);
}

/*
 * Is a stencil that was made in another page table good for this PTE, and those
 * like it? A device that its pages were of may be gone since.
 */
static bool hmm_is_still_good(const struct hmm_stencil *stencil, pte_t pte)
{
	u64 first = stencil->entry & ~HMM_PFN_FLAGS;
	const struct dev_pagemap *pgmap;
	int i;

	if (!hmm_stencil_fits(stencil, pte))
		return false;
	if (pte_present(pte))
		return true;
	pgmap = hmm_private_pgmap(pte_to_swp_entry(pte));
	for (i = 0; i < pgmap->nr_range; i++)
		if (first >= PHYS_PFN(pgmap->ranges[i].start) &&
		    first + stencil->span <= PHYS_PFN(pgmap->ranges[i].end))
			return true;
	return false;
}

/*
 * The smallest folio that is told from single pages, and where it begins: at a
 * multiple of its size in the address space, too, or no device would gain by it.
 * Two pages are not worth a look.
 */
#define HMM_MIN_ORDER	2
#define HMM_MIN_LARGE	BIT(HMM_MIN_ORDER)

/*
 * The order of the folio whose first page @entry is, if all of it fits between
 * @addr and @nr pages from there, at an address that a device can have a large
 * page at; else 0. What a folio says of itself while somebody splits or frees it
 * does not matter: it does not pass without a notice to the range.
 */
static __always_inline unsigned int hmm_order_at(unsigned long entry,
						 unsigned long addr,
						 unsigned long nr)
{
	unsigned long pfn = entry & ~HMM_PFN_FLAGS;
	unsigned int order;

	if (!(entry & HMM_PFN_VALID) ||
	    !IS_ALIGNED(pfn | addr >> PAGE_SHIFT, HMM_MIN_LARGE))
		return 0;
	order = compound_order(pfn_to_page(pfn));
	if (order < HMM_MIN_ORDER || order > PMD_ORDER || 1UL << order > nr ||
	    !IS_ALIGNED(pfn | addr >> PAGE_SHIFT, 1UL << order))
		return 0;
	return order;
}

static unsigned long hmm_with_order(unsigned long entry, unsigned int order)
{
	return entry | (unsigned long)order << HMM_PFN_ORDER_SHIFT;
}

/* Convert PTEs one at a time for as long as they fit the stencil. */
static unsigned long hmm_copy_some(const struct hmm_stencil *s, pte_t *ptep,
				   unsigned long *slot, unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i++) {
		u64 nth = hmm_stencil_distance(s, ptep_get_lockless(ptep + i));

		if (unlikely(nth > s->span))
			break;
		hmm_store(slot + i, s->entry + nth);
	}
	return i;
}

/* What a PTE has that others like it have not: its place, and what is idle. */
static __always_inline u64 hmm_flip(const struct hmm_stencil *s, pte_t *ptep)
{
	return pte_val(ptep_get_lockless(ptep)) ^ s->flip;
}

/* Struct pages are not in a row everywhere. */
#define HMM_PAGES_IN_ROW	(!IS_ENABLED(CONFIG_SPARSEMEM) || \
				 IS_ENABLED(CONFIG_SPARSEMEM_VMEMMAP))

/*
 * The first page that a stencil is good for. It may not exist, which makes no
 * difference where struct pages are in a row.
 */
static struct page *hmm_stencil_page(const struct hmm_stencil *s)
{
	return HMM_PAGES_IN_ROW ? pfn_to_page(s->entry & ~HMM_PFN_FLAGS) : NULL;
}

static __always_inline struct page *hmm_nth_page(const struct hmm_stencil *s,
						 struct page *page, u64 nth)
{
	return HMM_PAGES_IN_ROW ? page + nth :
				  pfn_to_page((s->entry & ~HMM_PFN_FLAGS) + nth);
}

/* Not 0 if the page is the first one of a large folio, as compound_order(). */
static __always_inline unsigned long hmm_head_flag(struct page *page)
{
	return READ_ONCE(page->flags) & BIT(PG_head);
}

/*
 * May a large folio begin at the first of four pages? Pages are told by their
 * distance from the first one of the stencil. That is a multiple of four if the
 * stencil is good for as many.
 */
static __always_inline bool hmm_may_be_large(const struct hmm_stencil *s,
					     struct page *page, u64 first,
					     u64 fourth)
{
	return IS_ALIGNED(first, HMM_MIN_LARGE) &&
	       fourth == first + HMM_MIN_LARGE - 1 &&
	       hmm_head_flag(hmm_nth_page(s, page, first));
}

/*
 * May one begin at the first or the fifth of eight pages, which these are, or
 * the fourth and the eighth? Where they are side by side, one test does for both.
 */
static __always_inline bool hmm_may_have_large(const struct hmm_stencil *s,
					       struct page *page, u64 first,
					       u64 fourth, u64 fifth,
					       u64 eighth)
{
	if (IS_ALIGNED(first, HMM_MIN_LARGE) &&
	    fifth == first + HMM_MIN_LARGE) {
		page = hmm_nth_page(s, page, first);
		return hmm_head_flag(page) |
		       hmm_head_flag(nth_page(page, HMM_MIN_LARGE));
	}
	return hmm_may_be_large(s, page, first, fourth) ||
	       hmm_may_be_large(s, page, fifth, eighth);
}

static __always_inline void hmm_put(unsigned long *slot, unsigned long entry,
				    bool keep)
{
	*slot = keep ? hmm_keep(*slot, entry) : entry;
}

/* How many PTEs are converted at a time: as many as there are registers for. */
#define HMM_COPY_BATCH	8UL

/*
 * The inner loop. Eight PTEs are read, checked as if they were one, and stored.
 * All that may differ between them is the pfn and what is idle below it; one
 * that differs in what is idle above it, if anything is there, is not for here.
 * Nor are pages that a large folio may begin with.
 *
 * Ten instructions per page on x86, one of them for what the caller keeps, and
 * one or two to see that pages are no large folio.
 */
static __always_inline bool hmm_copy_batch(const struct hmm_stencil *s,
					   u64 strict, struct page *page,
					   pte_t *ptep, unsigned long *slot,
					   bool keep)
{
	u64 a = hmm_flip(s, ptep), b = hmm_flip(s, ptep + 1),
	    c = hmm_flip(s, ptep + 2), d = hmm_flip(s, ptep + 3),
	    e = hmm_flip(s, ptep + 4), f = hmm_flip(s, ptep + 5),
	    g = hmm_flip(s, ptep + 6), h = hmm_flip(s, ptep + 7);
	u64 all = (a | b | c | d | e | f | g | h) & strict;

	if (unlikely(ror64(all, s->shift) > s->span))
		return false;

	a >>= s->shift;
	d >>= s->shift;
	e >>= s->shift;
	h >>= s->shift;
	if (unlikely(hmm_may_have_large(s, page, a, d, e, h)))
		return false;

	hmm_put(slot, s->entry + a, keep);
	hmm_put(slot + 1, s->entry + (b >> s->shift), keep);
	hmm_put(slot + 2, s->entry + (c >> s->shift), keep);
	hmm_put(slot + 3, s->entry + d, keep);
	hmm_put(slot + 4, s->entry + e, keep);
	hmm_put(slot + 5, s->entry + (f >> s->shift), keep);
	hmm_put(slot + 6, s->entry + (g >> s->shift), keep);
	hmm_put(slot + 7, s->entry + h, keep);
	return true;
}

/* Are @nr PTEs alike, and of the pages in a row from that of @first on? */
static __always_inline bool hmm_are_in_row(const struct hmm_stencil *s,
					   pte_t *ptep, u64 first,
					   unsigned long nr)
{
	pte_t *end = ptep + nr;
	u64 diff = 0;

	for (; ptep < end; ptep += 4, first += 4 * s->step)
		diff |= (pte_val(ptep_get_lockless(ptep)) ^ first) |
			(pte_val(ptep_get_lockless(ptep + 1)) ^ (first + s->step)) |
			(pte_val(ptep_get_lockless(ptep + 2)) ^ (first + 2 * s->step)) |
			(pte_val(ptep_get_lockless(ptep + 3)) ^ (first + 3 * s->step));
	return !(diff & s->care);
}

/* The order of the folio that the next PTE begins, if it fits the stencil. */
static unsigned int hmm_next_order(const struct hmm_stencil *s, pte_t *ptep,
				   unsigned long addr, unsigned long nr)
{
	u64 nth;

	if (nr < HMM_MIN_LARGE)
		return 0;
	nth = hmm_stencil_distance(s, ptep_get_lockless(ptep));
	return nth > s->span ? 0 : hmm_order_at(s->entry + nth, addr, nr);
}

/*
 * Convert the PTEs of the large folio that begins here, if there is one and all
 * of it. Returns how many.
 */
static __always_inline unsigned long hmm_copy_folio(const struct hmm_stencil *s,
						    pte_t *ptep,
						    unsigned long *slot,
						    unsigned long addr,
						    unsigned long nr)
{
	pte_t first = ptep_get_lockless(ptep);
	u64 nth = hmm_stencil_distance(s, first);
	unsigned int order;

	if (nth > s->span)
		return 0;
	order = hmm_order_at(s->entry + nth, addr, nr);
	nr = 1UL << order;
	if (!order || !hmm_are_in_row(s, ptep, pte_val(first), nr))
		return 0;
	hmm_fill_by(slot, nr, hmm_with_order(s->entry + nth, order), 1);
	return nr;
}

/* Where there is a large folio, there are others. Returns how many pages. */
static noinline unsigned long hmm_copy_folios(const struct hmm_stencil *stencil,
					      pte_t *ptep, unsigned long *slot,
					      unsigned long addr,
					      unsigned long nr)
{
	const struct hmm_stencil s = *stencil;
	pte_t *first = ptep;
	unsigned long n;

	for (; nr >= HMM_MIN_LARGE; nr -= n) {
		n = hmm_copy_folio(&s, ptep, slot, addr, nr);
		if (!n)
			break;
		ptep += n;
		slot += n;
		addr += n << PAGE_SHIFT;
	}
	return ptep - first;
}

/* The same where there is something to keep. */
static noinline bool hmm_copy_batch_keep(const struct hmm_stencil *s, u64 strict,
					 struct page *page, pte_t *ptep,
					 unsigned long *slot)
{
	return hmm_copy_batch(s, strict, page, ptep, slot, true);
}

/*
 * Convert batch after batch, up to one that is not for here; out of line lest
 * it has to share registers. Returns how many pages.
 */
static noinline unsigned long hmm_copy_batches(const struct hmm_stencil *stencil,
					       pte_t *ptep, unsigned long *slot,
					       unsigned long nr)
{
	struct hmm_stencil s = *stencil;
	u64 strict = s.care | ~((1ULL << s.shift) - 1);
	struct page *page = hmm_stencil_page(&s);
	pte_t *first = ptep, *end = ptep + ALIGN_DOWN(nr, HMM_COPY_BATCH);
	bool done;

	/* Which it is anyway; the compiler masks it for each use if not told. */
	s.shift &= 63;
	for (; ptep < end; ptep += HMM_COPY_BATCH, slot += HMM_COPY_BATCH) {
		if (unlikely(hmm_kept_in_4(slot) | hmm_kept_in_4(slot + 4)))
			done = hmm_copy_batch_keep(stencil, strict, page, ptep,
						   slot);
		else
			done = hmm_copy_batch(&s, strict, page, ptep, slot,
					      false);
		if (!done)
			break;
	}
	return ptep - first;
}

/*
 * Convert PTEs for as long as they fit the stencil, but not beyond a large folio
 * that is there and not in a row. A large folio may begin at every fourth page:
 * up to there they come one by one. Returns how many.
 */
VISIBLE_IF_KUNIT unsigned long hmm_copy_alike(const struct hmm_stencil *s,
					      pte_t *ptep, unsigned long *slot,
					      unsigned long addr,
					      unsigned long nr)
{
	unsigned long few = min(nr, -(addr >> PAGE_SHIFT) % HMM_MIN_LARGE);
	unsigned long i, n;

	n = hmm_copy_some(s, ptep, slot, few);
	for (i = n; i < nr && n == few; i += n) {
		i += hmm_copy_batches(s, ptep + i, slot + i, nr - i);
		i += hmm_copy_folios(s, ptep + i, slot + i,
				     addr + (i << PAGE_SHIFT), nr - i);
		if (hmm_next_order(s, ptep + i, addr + (i << PAGE_SHIFT),
				   nr - i))
			break;
		few = min(nr - i, HMM_MIN_LARGE);
		n = hmm_copy_some(s, ptep + i, slot + i, few);
	}
	return i;
}

/**
 * struct hmm_table - where a walk is in a page table
 * @walk: the walk
 * @ptep: next PTE
 * @slot: its word
 * @addr: its address
 * @end: where the pages that are asked for end
 * @stencil: what PTEs may look like, if that is known
 * @adopt_from: address from which on it may be replaced
 * @head: word of the first page of a folio that was converted without it, or NULL
 * @order: order of that folio
 */
struct hmm_table {
	struct mm_walk *walk;
	pte_t *ptep;
	unsigned long *slot;
	unsigned long addr;
	unsigned long end;
	const struct hmm_stencil *stencil;
	unsigned long adopt_from;
	unsigned long *head;
	unsigned int order;
};

static unsigned long hmm_nr_left(const struct hmm_table *t)
{
	return (t->end - t->addr) >> PAGE_SHIFT;
}

static void hmm_move_on(struct hmm_table *t, unsigned long nr)
{
	t->ptep += nr;
	t->slot += nr;
	t->addr += nr << PAGE_SHIFT;
}

/* A word without what is kept in it for the caller. */
static unsigned long hmm_entry_in(unsigned long word)
{
	return word & ~HMM_PFN_INOUT_FLAGS;
}

/*
 * The pages of the last large folio that did not come by a stencil from its
 * first page on: if all of them are there by now, say that they are a folio.
 */
static void hmm_settle_folio(struct hmm_table *t)
{
	unsigned long nr = 1UL << t->order;
	unsigned long i;

	if (!t->head || t->slot - t->head < nr)
		return;
	for (i = 1; i < nr; i++)
		if (hmm_entry_in(t->head[i]) != hmm_entry_in(t->head[0]) + i)
			return;
	for (i = 0; i < nr; i++)
		t->head[i] = hmm_with_order(t->head[i], t->order);
}

static void hmm_note_folio(struct hmm_table *t, unsigned int order)
{
	if (!order)
		return;
	hmm_settle_folio(t);
	t->head = t->slot;
	t->order = order;
}

/*
 * To make a stencil costs as much as to convert two or three pages without. Wait
 * for two in a row that look as if they could share it, or for a large folio,
 * and if their neighbours do not share it, wait for some pages more. The first
 * of two may be in the table before.
 */
#define HMM_ADOPT_EVERY	16

static bool hmm_looks_alike(unsigned long entry, unsigned long latest)
{
	return (entry & HMM_PFN_VALID) && !((entry ^ latest) & HMM_PFN_FLAGS);
}

static bool hmm_try_adopt(struct hmm_table *t, pte_t pte, unsigned long entry,
			  unsigned int order)
{
	struct hmm_walk *hw = t->walk->private;

	if (t->addr < t->adopt_from ||
	    (t->stencil && hmm_stencil_fits(t->stencil, pte)) ||
	    !(order || hmm_looks_alike(entry, hw->latest)))
		return false;
	if (!hmm_is_still_good(&hw->stencil, pte))
		hw->stencil = hmm_adopt(pte, entry);
	t->stencil = &hw->stencil;
	t->adopt_from = t->addr + HMM_ADOPT_EVERY * PAGE_SIZE;
	return true;
}

/* Settle pages that are not there, from one that is not there on. */
static void hmm_walk_nones(struct hmm_table *t)
{
	unsigned long nr = 1, left = hmm_nr_left(t);

	while (nr < left && pte_none(ptep_get_lockless(t->ptep + nr)))
		nr++;
	hmm_fill(t->slot, nr, 0);
	hmm_move_on(t, nr);
}

/*
 * Settle one page, looking at all that there is to it; or find that a stencil
 * will do, and leave it to that. What is not there and not asked for comes in
 * one go.
 */
static int hmm_walk_page(struct hmm_table *t)
{
	struct vm_area_struct *vma = t->walk->vma;
	struct hmm_walk *hw = t->walk->private;
	pte_t pte = ptep_get_lockless(t->ptep);
	unsigned long entry = hmm_classify_pte(hw->range, vma, t->addr, pte);
	unsigned int order = hmm_order_at(entry, t->addr, hmm_nr_left(t));
	enum hmm_need need = hmm_need(hw->may_want, entry);

	if (pte_none(pte) && !need) {
		hmm_walk_nones(t);
		return 0;
	}
	if (unlikely(need)) {
		need = hmm_pte_walk_need(hw, vma, *t->slot, entry, pte);
		if (need)
			return hmm_stop(t->walk, t->addr, t->end, need);
	} else if (hmm_try_adopt(t, pte, entry, order)) {
		return 0;
	}
	hmm_note_folio(t, order);
	hmm_store(t->slot, entry);
	hw->latest = entry;
	hmm_move_on(t, 1);
	return 0;
}

/* Settle pages for as long as the stencil is good for them, and one more. */
static int hmm_walk_pages(struct hmm_table *t)
{
	if (t->stencil)
		hmm_move_on(t, hmm_copy_alike(t->stencil, t->ptep, t->slot,
					      t->addr, hmm_nr_left(t)));
	return t->addr < t->end ? hmm_walk_page(t) : 0;
}

/* Settle the pages of one page table, most of them in hmm_copy_batch(). */
static int hmm_walk_table(struct mm_walk *walk, pmd_t *pmdp, unsigned long addr,
			  unsigned long end)
{
	struct hmm_walk *hw = walk->private;
	struct hmm_table t = {
		.walk = walk,
		.slot = hmm_slot(hw->range, addr),
		.addr = addr,
		.end = end,
	};
	pte_t *table;
	int ret = 0;

	table = pte_offset_map(pmdp, addr);
	if (!table) {
		/* No page table any more: see what has come instead. */
		walk->action = ACTION_AGAIN;
		return 0;
	}
	__acquire(RCU);

	/* RCU holds off the end of device pages, too: folios are looked at here. */
	t.ptep = table;
	while (!ret && t.addr < end)
		ret = hmm_walk_pages(&t);
	hmm_settle_folio(&t);
	pte_unmap(table);
	return ret;
}

static bool hmm_pmd_is_leaf(pmd_t pmd)
{
	return pmd_trans_huge(pmd) || pmd_devmap(pmd);
}

static unsigned long hmm_classify_pmd(pmd_t pmd)
{
	if (pmd_none(pmd) || is_pmd_migration_entry(pmd))
		return 0;
	if (!pmd_present(pmd) || !hmm_pmd_is_leaf(pmd))
		return HMM_PFN_ERROR;
	if (pmd_special(pmd) && !pmd_devmap(pmd))
		return HMM_PFN_ERROR;
	return hmm_entry_of_pmd(pmd);
}

static bool hmm_holes_move(const struct mm_walk *walk)
{
	const struct hmm_walk *hw = walk->private;

	return hw->migrate && vma_is_anonymous(walk->vma);
}

/* Content with nothing. */
static int hmm_skip(struct mm_walk *walk, unsigned long addr, unsigned long end)
{
	struct hmm_walk *hw = walk->private;

	hmm_fill(hmm_slot(hw->range, addr), (end - addr) >> PAGE_SHIFT, 0);
	return 0;
}

/*
 * The PMD is read once, and everything is decided by that value: a THP that is
 * being split or collapsed meanwhile is the notifier's concern.
 */
static int hmm_read_pmd(pmd_t *pmdp, unsigned long addr, unsigned long end,
			struct mm_walk *walk)
{
	pmd_t pmd = pmdp_get_lockless(pmdp);
	unsigned long entry;

	if (unlikely(hmm_holes_move(walk)) &&
	    (pmd_none(pmd) || is_huge_zero_pmd(pmd)))
		return hmm_skip(walk, addr, end);
	if (!pmd_none(pmd) && pmd_present(pmd) && !hmm_pmd_is_leaf(pmd) &&
	    likely(!pmd_bad(pmd))) {
		cond_resched();
		return hmm_walk_table(walk, pmdp, addr, end);
	}

	entry = hmm_entry_after(hmm_classify_pmd(pmd),
				(addr & ~PMD_MASK) >> PAGE_SHIFT);
	return hmm_emit(walk, addr, end, entry);
}

/*
 * A range that is to be collected has no PMD but this one. All of its pages are
 * collected at the end, not those since the walk last stopped: before that, no
 * fault might wait for a folio that the walk has locked.
 */
static int hmm_walk_pmd(pmd_t *pmdp, unsigned long addr, unsigned long end,
			struct mm_walk *walk)
{
	struct hmm_walk *hw = walk->private;
	int ret = hmm_read_pmd(pmdp, addr, end, walk);

	if (unlikely(hw->migrate) && !ret && walk->action != ACTION_AGAIN)
		migrate_vma_collect(hw->migrate);
	return ret;
}

/* A PUD that is no leaf is left to hmm_walk_pmd(), a leaf must not be split. */
static int hmm_walk_pud(pud_t *pudp, unsigned long addr, unsigned long end,
			struct mm_walk *walk)
{
	pud_t pud = pudp_get(pudp);
	unsigned long entry;

	if (!pud_trans_huge(pud) && !pud_devmap(pud))
		return 0;

	walk->action = ACTION_CONTINUE;
	entry = hmm_entry_of_pud(pud);
	if (pud_special(pud) && !pud_devmap(pud))
		entry = HMM_PFN_ERROR;
	entry = hmm_entry_after(entry, (addr & ~PUD_MASK) >> PAGE_SHIFT);
	return hmm_emit(walk, addr, end, entry);
}

static int hmm_walk_hugetlb(pte_t *ptep, unsigned long hmask,
			    unsigned long addr, unsigned long end,
			    struct mm_walk *walk)
{
	pte_t pte = huge_ptep_get(walk->mm, addr & hmask, ptep);
	unsigned long entry = hmm_entry_of_pte(pte, __ffs(hmask) - PAGE_SHIFT);

	entry = hmm_entry_after(entry, (addr & ~hmask) >> PAGE_SHIFT);
	return hmm_emit(walk, addr, end, entry);
}

/* No page table below this point, or no VMA even. */
static int hmm_walk_hole(unsigned long addr, unsigned long end,
			 __always_unused int depth, struct mm_walk *walk)
{
	struct hmm_walk *hw = walk->private;
	int ret;

	if (unlikely(hmm_holes_move(walk)))
		ret = hmm_skip(walk, addr, end);
	else
		ret = hmm_emit(walk, addr, end, walk->vma ? 0 : HMM_PFN_ERROR);
	if (unlikely(hw->migrate) && !ret)
		migrate_vma_collect(hw->migrate);
	return ret;
}

/*
 * Secret memory is hidden from the kernel, and is not for a device to see either.
 * No architecture that HMM runs on lets a page be written but not read.
 */
static bool hmm_vma_has_pages(struct vm_area_struct *vma)
{
	return (vma->vm_flags & VM_READ) &&
	       !(vma->vm_flags & (VM_IO | VM_PFNMAP)) && !vma_is_secretmem(vma);
}

/* VMAs that have nothing for a device are settled as a whole. */
static int hmm_walk_vma(unsigned long addr, unsigned long end,
			struct mm_walk *walk)
{
	int ret;

	if (hmm_vma_has_pages(walk->vma))
		return 0;

	ret = hmm_emit(walk, addr, end, HMM_PFN_ERROR);
	/* To the page walk, 1 means to go on behind this VMA. */
	return ret ? ret : 1;
}

static const struct mm_walk_ops hmm_walk_ops = {
	.test_walk	= hmm_walk_vma,
	.pte_hole	= hmm_walk_hole,
	.hugetlb_entry	= hmm_walk_hugetlb,
	.pud_entry	= hmm_walk_pud,
	.pmd_entry	= hmm_walk_pmd,
	.walk_lock	= PGWALK_RDLOCK,
};

/* A function of its own for tests, which count faults and make them fail. */
VISIBLE_IF_KUNIT vm_fault_t hmm_handle_fault(struct vm_area_struct *vma,
					     unsigned long addr,
					     unsigned int flags)
{
	KUNIT_STATIC_STUB_REDIRECT(hmm_handle_fault, vma, addr, flags);

	return handle_mm_fault(vma, addr, flags, NULL);
}

/*
 * A fault has dropped the lock. Unless it is complete it has to be repeated, and
 * must not drop mmap_lock for the same reason once more. The lock of a VMA may
 * have been dropped for no other reason than that it was not mmap_lock.
 */
static int hmm_note_drop(struct hmm_walk *hw, vm_fault_t fault,
			 unsigned long began)
{
	hw->tried = fault & VM_FAULT_RETRY && !hw->locked ? hw->addr :
							     HMM_NOWHERE;
	hw->waited += jiffies - began;
	return HMM_LOCK_DROPPED;
}

/* Does somebody wait for the lock of the VMA? A reader would not. */
static bool hmm_is_in_the_way(const struct hmm_walk *hw)
{
#ifdef CONFIG_PER_VMA_LOCK
	return hw->locked && rwsem_is_contended(&hw->locked->vm_lock->lock);
#else
	return false;
#endif
}

static int hmm_step_aside(struct hmm_walk *hw)
{
	vma_end_read(hw->locked);
	return HMM_LOCK_DROPPED;
}

/* The PMD for @addr, or NULL if there is none or a larger leaf above it. */
static pmd_t *hmm_find_pmd(struct mm_struct *mm, unsigned long addr)
{
	pgd_t *pgdp = pgd_offset(mm, addr);
	p4d_t *p4dp;
	pud_t *pudp, pud;

	if (pgd_none(*pgdp) || unlikely(pgd_bad(*pgdp)))
		return NULL;
	p4dp = p4d_offset(pgdp, addr);
	if (p4d_none(*p4dp) || unlikely(p4d_bad(*p4dp)))
		return NULL;
	pudp = pud_offset(p4dp, addr);
	pud = pudp_get(pudp);
	if (!pud_present(pud) || pud_leaf(pud) || unlikely(pud_bad(pud)))
		return NULL;
	return pmd_offset(pudp, addr);
}

/*
 * A fault of the page in need has not waited. Was it for a monitor? Other reasons
 * are folios that somebody has locked. Tables of hugetlb are not to be looked at,
 * and its faults wait for nobody else.
 */
static bool hmm_was_for_monitor(const struct hmm_walk *hw)
{
	struct vm_area_struct *vma = hw->vma;
	bool missing = userfaultfd_missing(vma) || userfaultfd_minor(vma);
	bool wp = hw->need == HMM_NEED_WRITE && userfaultfd_wp(vma) &&
		  !userfaultfd_wp_async(vma);
	pmd_t *pmdp, pmd;
	pte_t *ptep, pte;

	if (is_vm_hugetlb_page(vma))
		return true;
	pmdp = hmm_find_pmd(vma->vm_mm, hw->addr);
	if (!pmdp)
		return missing;
	pmd = pmdp_get_lockless(pmdp);
	if (pmd_none(pmd))
		return missing;
	if (hmm_pmd_is_leaf(pmd))
		return wp && pmd_uffd_wp(pmd);
	ptep = pte_offset_map(pmdp, hw->addr);
	if (!ptep)
		return false;
	pte = ptep_get_lockless(ptep);
	pte_unmap(ptep);
	if (pte_none_mostly(pte))
		return missing;
	return wp && (pte_present(pte) ? pte_uffd_wp(pte) :
					 pte_swp_uffd_wp(pte));
}

/*
 * A fault that must not drop mmap_lock. Where a monitor might have to answer it
 * says that it does not wait: to meet one without a word is a caller's bug to
 * CONFIG_DEBUG_VM. A folio that somebody has locked is waited for all the same.
 */
static vm_fault_t hmm_fault_locked(struct hmm_walk *hw, unsigned int flags)
{
	vm_fault_t fault;

	if (userfaultfd_armed(hw->vma)) {
		fault = hmm_handle_fault(hw->vma, hw->addr,
					 flags | FAULT_FLAG_ALLOW_RETRY |
					 FAULT_FLAG_RETRY_NOWAIT);
		if (!(fault & VM_FAULT_RETRY))
			return fault;
		if (hmm_was_for_monitor(hw))
			return VM_FAULT_SIGBUS;
	}
	return hmm_handle_fault(hw->vma, hw->addr, flags);
}

/*
 * One fault. It also settles whatever stands in the way of the page: swap, a
 * migration under way, device-exclusive access, another device's private page.
 */
static int hmm_fault_page(struct hmm_walk *hw)
{
	unsigned int flags = hw->fault_flags;
	unsigned long began = jiffies;
	vm_fault_t fault;

	if (hw->need == HMM_NEED_WRITE) {
		if (!(hw->vma->vm_flags & VM_WRITE))
			return -EPERM;
		flags |= FAULT_FLAG_WRITE;
	}
	/* A page that comes and goes must not hold a dying task for good. */
	if (fatal_signal_pending(current))
		return -EINTR;
	if (hw->addr == hw->tried) {
		flags |= FAULT_FLAG_TRIED;
		hw->tried = HMM_NOWHERE;
	}

	if (flags & FAULT_FLAG_ALLOW_RETRY)
		fault = hmm_handle_fault(hw->vma, hw->addr, flags);
	else
		fault = hmm_fault_locked(hw, flags);
	if (unlikely(fault & (VM_FAULT_RETRY | VM_FAULT_COMPLETED)) &&
	    (flags & FAULT_FLAG_ALLOW_RETRY))
		return hmm_note_drop(hw, fault, began);
	if (fault & VM_FAULT_ERROR)
		return vm_fault_to_errno(fault, FOLL_HWPOISON);
	return hmm_is_in_the_way(hw) ? hmm_step_aside(hw) : 0;
}

/* Whether a fault for a PTE of this VMA brings that page and no other. */
static bool hmm_faults_are_single(struct vm_area_struct *vma)
{
	return vma_is_anonymous(vma) &&
	       !thp_vma_allowable_orders(vma, vma->vm_flags,
					 TVA_IN_PF | TVA_ENFORCE_SYSFS,
					 BIT(PMD_SHIFT - PAGE_SHIFT) - 1);
}

/* Nothing is mapped, and a fault brings it: from nowhere, or from swap. */
static bool hmm_pte_is_away(pte_t pte)
{
	return pte_none(pte) ||
	       (!pte_present(pte) && !non_swap_entry(pte_to_swp_entry(pte)));
}

/* How many PTEs in a row map nothing, of pages that have the same need. */
static unsigned long hmm_nr_away(const struct hmm_walk *hw, pte_t *ptep)
{
	const unsigned long *slot = hmm_slot(hw->range, hw->addr);
	unsigned long nr = (hw->end - hw->addr) >> PAGE_SHIFT;
	bool uniform = !hmm_words_ask(hw->range);
	unsigned long i;

	for (i = 0; i < nr && hmm_pte_is_away(ptep_get_lockless(ptep + i)); i++) {
		if (!uniform &&
		    hmm_need(hmm_request(hw->range, slot[i]), 0) != hw->need)
			break;
	}
	return i;
}

static enum hmm_need hmm_peek(const struct hmm_walk *hw, pte_t pte)
{
	unsigned long word = *hmm_slot(hw->range, hw->addr);
	unsigned long entry = hmm_classify_pte(hw->range, hw->vma, hw->addr,
					       pte);

	return hmm_pte_walk_need(hw, hw->vma, word, entry, pte);
}

/*
 * Move hw->addr on to the next page of the run that is still in need. Returns
 * false if there is none, or if no page table maps the run any more (a fault
 * brought a THP): the walk finds out the rest.
 */
static bool hmm_look_for_need(struct hmm_walk *hw, pmd_t *pmdp)
{
	pte_t *table, *ptep, pte = __pte(0), last;
	bool uniform = !hmm_words_ask(hw->range);

	table = pte_offset_map(pmdp, hw->addr);
	if (!table)
		return false;
	__acquire(RCU);

	for (ptep = table; hw->addr < hw->end; hw->addr += PAGE_SIZE, ptep++) {
		last = pte;
		pte = ptep_get_lockless(ptep);
		/* One fault has brought both, as it seems. The walk looks again. */
		if (uniform && pte_present(last) &&
		    pte_same(pte, pte_next_pfn(last)))
			continue;
		hw->need = hmm_peek(hw, pte);
		if (hw->need)
			break;
	}
	if (hw->need && hw->single && !hw->migrate)
		hw->sure = hmm_nr_away(hw, ptep);
	pte_unmap(table);
	return hw->need == HMM_NEED_READ || hw->need == HMM_NEED_WRITE;
}

static bool hmm_next_in_need(struct hmm_walk *hw)
{
	hw->addr += PAGE_SIZE;
	if (hw->addr == hw->end)
		return false;
	if (hw->sure > 1) {
		hw->sure--;
		return true;
	}
	if (!hw->pmdp)
		hw->pmdp = hmm_find_pmd(hw->vma->vm_mm, hw->addr);
	return hw->pmdp && hmm_look_for_need(hw, hw->pmdp);
}

/*
 * Work off the run that the walk has stopped at. Before each fault there is a
 * look at what the faults before it have left to do, except for PTEs that mapped
 * nothing in a VMA where one fault brings one page. If it brings more after all,
 * which a large folio from the time before may do, a fault that finds the page
 * there does no harm.
 *
 * The notifier's sequence is left alone meanwhile: breaking COW of one page
 * moves it, and to give up each time would cost the caller a retry per page,
 * not one per run.
 *
 * An error counts for the first page of a run only. Behind it, the walk first
 * stores what the faults before the error have brought, and then stops at the
 * page that fails, so that its address is where results end.
 *
 * Return: 0, an errno, or HMM_LOCK_DROPPED.
 */
static int hmm_fault_run(struct hmm_walk *hw)
{
	unsigned long start = hw->addr;
	int ret;

	cond_resched();
	hw->pmdp = NULL;
	hw->sure = 0;
	hw->single = hmm_faults_are_single(hw->vma);
	do {
		ret = hmm_fault_page(hw);
	} while (!ret && hmm_next_in_need(hw));

	if (hw->addr != start && ret != HMM_LOCK_DROPPED)
		ret = 0;
	hw->addr = start;
	return ret;
}

static bool hmm_range_is_sane(const struct hmm_range *range)
{
	return range && range->notifier && range->notifier->mm &&
	       range->hmm_pfns && range->start < range->end &&
	       PAGE_ALIGNED(range->start | range->end);
}

static struct hmm_walk hmm_walk_of(struct hmm_range *range,
				   unsigned int fault_flags)
{
	return (struct hmm_walk) {
		.range = range,
		.may_want = range->default_flags | range->pfn_flags_mask,
		.fault_flags = FAULT_FLAG_REMOTE | fault_flags,
		.tried = HMM_NOWHERE,
		.addr = range->start,
		.stencil = HMM_STENCIL_NONE,
	};
}

/* A migration that wants no mirror has no notifier. */
static bool hmm_is_outdated(const struct hmm_range *range)
{
	return range->notifier &&
	       mmu_interval_check_retry(range->notifier, range->notifier_seq);
}

/*
 * What the page walk does, which wants mmap_lock, for the VMA that is locked. An
 * anonymous one has no leaf above a PMD.
 */
static int hmm_walk_locked(struct hmm_walk *hw, unsigned long addr,
			   unsigned long end)
{
	struct mm_walk walk = {
		.ops = &hmm_walk_ops,
		.mm = hw->locked->vm_mm,
		.vma = hw->locked,
		.private = hw,
	};
	unsigned long next;
	pmd_t *pmdp;
	int ret = 0;

	for (; addr < end && !ret; addr = next) {
		next = pmd_addr_end(addr, end);
		do {
			walk.action = ACTION_SUBTREE;
			pmdp = hmm_find_pmd(walk.mm, addr);
			if (!pmdp || pmd_none(pmdp_get_lockless(pmdp)))
				ret = hmm_walk_hole(addr, next, 0, &walk);
			else
				ret = hmm_walk_pmd(pmdp, addr, next, &walk);
		} while (walk.action == ACTION_AGAIN);
	}
	return ret;
}

/* A function of its own for tests, which count walks. */
VISIBLE_IF_KUNIT int hmm_walk_range(struct mm_struct *mm, unsigned long start,
				    unsigned long end, struct hmm_walk *hw)
{
	KUNIT_STATIC_STUB_REDIRECT(hmm_walk_range, mm, start, end, hw);

	if (hw->locked)
		return hmm_walk_locked(hw, start, end);
	return walk_page_range(mm, start, end, &hmm_walk_ops, hw);
}

/*
 * A migration may have no sequence that ends it, and meet another one that takes
 * the page away each time.
 */
static bool hmm_is_stuck(struct hmm_walk *hw)
{
	if (!hw->migrate)
		return false;
	if (hw->addr != hw->last) {
		hw->last = hw->addr;
		hw->tries = 0;
	}
	return hw->tries++ == HMM_MAX_TRIES;
}

/*
 * Walk and fault by turns from hw->addr on, until all is settled or somebody has
 * dropped the lock that the caller holds.
 *
 * Return: 0, an errno, or HMM_LOCK_DROPPED.
 */
static int hmm_mirror(struct hmm_walk *hw, struct mm_struct *mm)
{
	int ret = 0;

	if (hw->locked)
		vma_assert_locked(hw->locked);
	else
		mmap_assert_locked(mm);
	while (!ret) {
		if (hmm_is_outdated(hw->range))
			return -EBUSY;
		ret = hmm_walk_range(mm, hw->addr, hw->range->end, hw);
		if (ret != HMM_WALK_STOPPED)
			break;
		if (hmm_is_stuck(hw))
			return -EBUSY;
		ret = hmm_fault_run(hw);
	}
	return ret;
}

static bool hmm_is_to_migrate(const struct hmm_range *range)
{
	return range->default_flags & HMM_PFN_REQ_MIGRATE;
}

#ifdef CONFIG_DEVICE_MIGRATION

/*
 * The migration is of the same range, and a walk can do it. All of it is asked
 * for, so that no part is passed over and left as the caller had it.
 */
static bool hmm_may_collect(const struct hmm_range *range)
{
	const struct migrate_vma *migrate = range->migrate;

	return migrate && (range->default_flags & HMM_PFN_REQ_FAULT) &&
	       migrate->start == range->start && migrate->end == range->end &&
	       (migrate->flags & MIGRATE_VMA_FAULT) &&
	       range->hmm_pfns != migrate->src &&
	       range->hmm_pfns != migrate->dst && !migrate_vma_check(migrate) &&
	       migrate->vma->vm_mm == range->notifier->mm;
}

/* Pages that are on their way are not there any more. */
static void hmm_forget_collected(struct hmm_range *range)
{
	const struct migrate_vma *migrate = range->migrate;
	unsigned long i, nr;

	for (i = 0; i < migrate->npages; i += nr) {
		nr = 1;
		if (!(migrate->src[i] & MIGRATE_PFN_MIGRATE))
			continue;
		nr = migrate_pfn_nr(migrate->src[i]);
		hmm_fill(range->hmm_pfns + i, nr, 0);
	}
}

/* No walk comes to its end without having collected, and npages says so. */
static int hmm_collect(struct hmm_walk *hw, struct migrate_vma *migrate)
{
	int ret;

	hw->migrate = migrate;
	migrate->npages = 0;
	ret = hmm_mirror(hw, migrate->vma->vm_mm);
	if (ret)
		return ret;
	if (WARN_ON_ONCE(!migrate->npages))
		return -EFAULT;
	migrate_vma_unmap(migrate);
	return 0;
}

static int hmm_mirror_and_collect(struct hmm_walk *hw)
{
	struct hmm_range *range = hw->range;
	int ret;

	if (!hmm_may_collect(range))
		return -EINVAL;
	ret = hmm_collect(hw, range->migrate);
	if (!ret)
		hmm_forget_collected(range);
	return ret;
}

/*
 * migrate_vma_setup() with MIGRATE_VMA_FAULT. Its src entries are written by
 * collect, and are free for the mirror's words before.
 */
int hmm_fault_and_collect(struct migrate_vma *migrate)
{
	bool write = migrate->vma->vm_flags & VM_WRITE;
	struct hmm_range range = {
		.start = migrate->start,
		.end = migrate->end,
		.hmm_pfns = migrate->src,
		.default_flags = HMM_PFN_REQ_FAULT |
				 (write ? HMM_PFN_REQ_WRITE : 0),
		.dev_private_owner = migrate->pgmap_owner,
	};
	struct hmm_walk hw = hmm_walk_of(&range, 0);

	return hmm_collect(&hw, migrate);
}

#else

static int hmm_mirror_and_collect(struct hmm_walk *hw)
{
	return -EINVAL;
}

#endif /* CONFIG_DEVICE_MIGRATION */

/**
 * hmm_range_fault - mirror a range of a process's address space
 * @range: what to mirror, and where to put it; see struct hmm_range
 *
 * For each page of the range a word is read from @range->hmm_pfns as a request
 * and written back as a result; enum hmm_pfn_flags has the bits. Pages that
 * nothing is asked for are reported as they are, without a fault. Those that
 * are asked for are faulted in as far as they have to, and no others.
 *
 * The bits of HMM_PFN_INOUT_FLAGS are the driver's: they stay in the words.
 *
 * Results are a snapshot. They turn into truth by the protocol of the interval
 * notifier, and may not be used without it::
 *
 *	the driver                            whoever changes the page tables
 *	----------                            -------------------------------
 *	seq = mmu_interval_read_begin()
 *	mmap_read_lock(mm)
 *	hmm_range_fault()
 *	  reads an entry
 *	mmap_read_unlock(mm)
 *	                                      ops->invalidate() of the driver:
 *	                                        lock(driver)
 *	                                        mmu_interval_set_seq()
 *	                                        removes it from the device
 *	                                        unlock(driver)
 *	lock(driver)                          changes the entry
 *	mmu_interval_read_retry(seq)?
 *	  yes: unlock(driver), start again
 *	  no: program the device
 *	unlock(driver)
 *
 * A change that comes after the unlock finds the page programmed and removes
 * it. A change that came before has moved the sequence. There is no third case,
 * so a pfn is good for use under the driver's lock from a negative answer of
 * mmu_interval_read_retry() until the lock is dropped, and what the device was
 * told is good until the next invalidate().
 *
 * With HMM_PFN_REQ_MIGRATE, pages that can move are collected on the way, as by
 * migrate_vma_setup() with @range->migrate, and migrate_vma_pages() and
 * migrate_vma_finalize() have to follow on success. A hole is not faulted in
 * then, and all faults are over before the first page is locked: that is why the
 * range has to be within what one PMD maps. Words of pages on their way are 0,
 * whatever was asked for them. Collecting is an invalidation of its own, so the
 * words of pages that stay are outdated, too: call again for the mirror, which
 * will find all pages there.
 *
 * Should the call fail, words of pages before the one it failed at are results
 * already, and that one and all behind it are still the request. A caller that
 * tries again must set up all words anew where @range->pfn_flags_mask lets them
 * speak: a result reads as a request for the same rights.
 *
 * Context: Process context. May sleep. The caller holds the mmap_lock of
 * @range->notifier->mm, for reading at least, and has a reference to the mm.
 * The lock is not dropped; userfaultfd can therefore not be waited for, which
 * is what hmm_range_fault_unlocked_timeout() is for.
 *
 * Return:
 * * 0 - every request is met; ask mmu_interval_read_retry() before use.
 * * -EBUSY - the range was invalidated since @range->notifier_seq was taken.
 *   Drop mmap_lock and begin again with a new sequence.
 * * -EINVAL - @range or a pointer in it is missing, its ends are not page
 *   aligned, or it is empty; or HMM_PFN_REQ_MIGRATE comes without
 *   HMM_PFN_REQ_FAULT, or with @range->migrate that is not of this range, has no
 *   MIGRATE_VMA_FAULT, or is not what migrate_vma_setup() would take.
 * * -EPERM - write access was asked for in a VMA that does not allow it.
 * * -EFAULT - a page was asked for where none can be: no VMA, VM_IO or
 *   VM_PFNMAP or no VM_READ, secret memory, a mapping without struct page, a
 *   fault that the process would have got SIGBUS or SIGSEGV for, or that a
 *   monitor of userfaultfd would have to answer.
 * * -EHWPOISON - a page was asked for that the hardware has lost.
 * * -ENOMEM - there was no memory to fault a page in.
 * * -EINTR - the calling task has got a fatal signal while faulting.
 */
int hmm_range_fault(struct hmm_range *range)
{
	struct hmm_walk hw;

	if (!hmm_range_is_sane(range))
		return -EINVAL;

	hw = hmm_walk_of(range, 0);
	if (hmm_is_to_migrate(range))
		return hmm_mirror_and_collect(&hw);
	return hmm_mirror(&hw, range->notifier->mm);
}
EXPORT_SYMBOL_GPL(hmm_range_fault);

static int hmm_lock(struct mm_struct *mm)
{
	if (fatal_signal_pending(current))
		return -EINTR;
	return mmap_read_lock_killable(mm);
}

/* The VMA with its lock, if that is enough for the range. */
static struct vm_area_struct *hmm_lock_vma(const struct hmm_range *range)
{
	struct vm_area_struct *vma;

	vma = lock_vma_under_rcu(range->notifier->mm, range->start);
	if (!vma)
		return NULL;
	if (vma_is_anonymous(vma) && hmm_vma_has_pages(vma) &&
	    range->end <= vma->vm_end)
		return vma;
	vma_end_read(vma);
	return NULL;
}

/* hmm_mirror() without mmap_lock; HMM_LOCK_DROPPED if it takes that. */
static int hmm_mirror_in_vma(struct hmm_walk *hw)
{
	struct vm_area_struct *vma;
	int ret;

	if (fatal_signal_pending(current))
		return -EINTR;
	vma = hmm_lock_vma(hw->range);
	if (!vma)
		return HMM_LOCK_DROPPED;

	hw->locked = vma;
	hw->fault_flags |= FAULT_FLAG_VMA_LOCK;
	ret = hmm_mirror(hw, vma->vm_mm);
	hw->fault_flags &= ~FAULT_FLAG_VMA_LOCK;
	hw->locked = NULL;
	if (ret != HMM_LOCK_DROPPED)
		vma_end_read(vma);
	return ret;
}

/*
 * The range from its first page on, with one sequence. That is begun outside of
 * all locks: it waits for invalidations to end, some of which want them.
 */
static int hmm_attempt(struct hmm_walk *hw)
{
	struct hmm_range *range = hw->range;
	struct mm_struct *mm = range->notifier->mm;
	int ret;

	hw->addr = range->start;
	range->notifier_seq = mmu_interval_read_begin(range->notifier);
	ret = hmm_mirror_in_vma(hw);
	while (ret == HMM_LOCK_DROPPED) {
		if (hmm_lock(mm))
			return -EINTR;
		ret = hmm_mirror(hw, mm);
		if (ret != HMM_LOCK_DROPPED)
			mmap_read_unlock(mm);
	}
	return ret;
}

static unsigned long hmm_nr_words(const struct hmm_range *range)
{
	return (range->end - range->start) >> PAGE_SHIFT;
}

/*
 * What pages ask for, by the words that the caller has set up and that an attempt
 * overwrites. Other bits of the words are not touched.
 */
static void hmm_ask_again(struct hmm_range *range, const unsigned long *asked)
{
	unsigned long i, nr = hmm_nr_words(range);

	for (i = 0; i < nr; i++)
		range->hmm_pfns[i] =
			(range->hmm_pfns[i] & ~HMM_PFN_REQ_MASK) |
			(asked[i] & HMM_PFN_REQ_MASK);
}

/*
 * Attempts until one is not disturbed. The wait of a fault is not held against
 * them: a monitor that takes its time, and then lifts a write protection, has
 * moved the sequence as well.
 */
static int hmm_attempt_until(struct hmm_range *range, unsigned long timeout,
			     const unsigned long *asked)
{
	struct hmm_walk hw = hmm_walk_of(range, FAULT_FLAG_ALLOW_RETRY |
						FAULT_FLAG_KILLABLE);
	unsigned long began = jiffies;
	int ret;

	for (;;) {
		ret = hmm_attempt(&hw);
		if (ret != -EBUSY)
			return ret;
		if (timeout && jiffies - began - hw.waited > timeout)
			return ret;
		if (asked)
			hmm_ask_again(range, asked);
		cond_resched();
	}
}

/**
 * hmm_range_fault_unlocked_timeout - mirror a range, and see to the locks
 * @range: what to mirror, and where to put it; see struct hmm_range. Its
 *	notifier_seq is output here
 * @timeout: for how many jiffies to go on against invalidations; 0: no limit
 *
 * Like hmm_range_fault(), but takes locks and begins the sequence by itself, as
 * often as it needs to: the lock of the VMA if one anonymous VMA has all of the
 * range, and mmap_lock if that is not so, or not enough for a fault. Faults may
 * drop the lock and wait, so that memory of userfaultfd can be mirrored: pages
 * that are missing, protected against writing or not mapped yet come when their
 * monitor answers.
 *
 * What a page asks for by its word holds for all attempts, although words are
 * overwritten by each.
 *
 * After success the caller takes its lock, asks mmu_interval_read_retry() with
 * @range->notifier_seq, and calls again if that says yes::
 *
 *	do {
 *		if (locked)
 *			unlock(driver)
 *		hmm_range_fault_unlocked_timeout(&range, timeout)
 *		lock(driver)
 *	} while (mmu_interval_read_retry(range.notifier, range.notifier_seq))
 *	program the device
 *	unlock(driver)
 *
 * @timeout bounds the attempts, of which there is always one. It does not run
 * while a fault waits without a lock, and nothing but a fatal signal ends
 * that wait early. A kernel thread gets none: if it serves many processes, one
 * of them can stop it by a monitor that never answers. Such a thread calls
 * hmm_range_fault().
 *
 * The mm is held by the call: @range->notifier keeps struct mm_struct, and the
 * call itself keeps what is in it, from mmget_not_zero() until it returns. The
 * caller needs a reference only if it uses the mm for something else. The
 * notifier is the caller's to keep.
 *
 * Context: Process context. May sleep, and for long. The caller holds neither
 * mmap_lock nor any lock that its invalidate() takes or that a monitor of the
 * memory may need to answer.
 *
 * Return:
 * * 0 - every request is met; ask mmu_interval_read_retry() before use.
 * * -EBUSY - @timeout jiffies have gone and the range was invalidated each time.
 * * -EINTR - the calling task has got a fatal signal, before, while it waited
 *   for mmap_lock, or in a fault.
 * * -EFAULT - as for hmm_range_fault(); or the process is gone; or a monitor of
 *   userfaultfd does not want to hear of faults of the kernel.
 * * -ENOMEM - there was no memory to fault a page in, or for a copy of the words
 *   where @range->pfn_flags_mask lets them speak.
 * * -EINVAL, -EPERM, -EHWPOISON - as for hmm_range_fault().
 */
int hmm_range_fault_unlocked_timeout(struct hmm_range *range,
				     unsigned long timeout)
{
	unsigned long *asked = NULL;
	struct mm_struct *mm;
	int ret = -EFAULT;

	might_sleep();
	/* A migration goes on after this, under the mmap_lock of now. */
	if (!hmm_range_is_sane(range) || hmm_is_to_migrate(range))
		return -EINVAL;

	if (hmm_words_ask(range)) {
		asked = kvmemdup(range->hmm_pfns,
				 hmm_nr_words(range) * sizeof(*asked),
				 GFP_KERNEL | __GFP_NOWARN);
		if (!asked)
			return -ENOMEM;
	}
	/* The last one out does not tear down the mm under the caller's locks. */
	mm = range->notifier->mm;
	if (mmget_not_zero(mm)) {
		ret = hmm_attempt_until(range, timeout, asked);
		mmput_async(mm);
	}
	kvfree(asked);
	return ret;
}
EXPORT_SYMBOL_GPL(hmm_range_fault_unlocked_timeout);
