/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The decisions of the mirror, apart from the walk that takes them.
 *
 * What stands in this header looks at values only: no page table is read, no
 * lock is held and nothing is changed, so that tests can tabulate it.
 */
#ifndef _MM_HMM_INTERNAL_H
#define _MM_HMM_INTERNAL_H

#include <linux/dma-direction.h>
#include <linux/hmm.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/swap.h>
#include <linux/swapops.h>

/* What it takes to give a page what was asked for it. */
enum hmm_need {
	HMM_NEED_NOTHING,	/* the entry will do */
	HMM_NEED_READ,		/* a fault for reading */
	HMM_NEED_WRITE,		/* a fault for writing */
	HMM_NEED_IMPOSSIBLE,	/* no fault can help */
};

#define HMM_PFN_REQ_MASK	(HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE)

/**
 * hmm_request - what is asked for one page
 * @range: the range of the page
 * @word: the word of the page in hmm_range.hmm_pfns, as the caller left it
 *
 * Return: HMM_PFN_REQ_*, and bits without meaning besides.
 */
static inline unsigned long hmm_request(const struct hmm_range *range,
					unsigned long word)
{
	return (word & range->pfn_flags_mask) | range->default_flags;
}

/**
 * hmm_need - compare what is asked for with what is there
 * @request: HMM_PFN_REQ_*, see hmm_request()
 * @entry: result word that the page tables give as they are
 *
 * A request bit has the value of the result bit that satisfies it. The answer
 * is monotone: a request that needs nothing contains none that needs something.
 *
 * Return: The least that would do.
 */
static inline enum hmm_need hmm_need(unsigned long request, unsigned long entry)
{
	unsigned long missing = request & ~entry & HMM_PFN_REQ_MASK;

	if (!(request & HMM_PFN_REQ_FAULT) || !missing)
		return HMM_NEED_NOTHING;
	if (entry & HMM_PFN_ERROR)
		return HMM_NEED_IMPOSSIBLE;
	return missing & HMM_PFN_REQ_WRITE ? HMM_NEED_WRITE : HMM_NEED_READ;
}

/* A mapping of this order and these rights whose first page is @pfn. */
static inline unsigned long hmm_entry(unsigned long pfn, bool write,
				      unsigned int order)
{
	unsigned long entry = pfn | HMM_PFN_VALID;

	entry |= (unsigned long)order << HMM_PFN_ORDER_SHIFT;
	return write ? entry | HMM_PFN_WRITE : entry;
}

/* The entry of the page that comes @nr pages after the one of @entry. */
static inline unsigned long hmm_entry_after(unsigned long entry,
					    unsigned long nr)
{
	return entry & HMM_PFN_VALID ? entry + nr : entry;
}

/**
 * hmm_entry_of_pte - what a PTE that is no swap entry gives
 * @pte: value of the PTE
 * @order: 0, or the order of a hugetlb page
 *
 * A protnone PTE counts as absent: whoever made it so wants to see the fault.
 *
 * Return: The entry, 0 if the PTE does not map a page for use.
 */
static inline unsigned long hmm_entry_of_pte(pte_t pte, unsigned int order)
{
	if (!pte_present(pte) || pte_protnone(pte))
		return 0;
	return hmm_entry(pte_pfn(pte), pte_write(pte), order);
}

/* What a PMD that maps memory gives, for the first page of it. */
static inline unsigned long hmm_entry_of_pmd(pmd_t pmd)
{
	if (pmd_protnone(pmd))
		return 0;
	return hmm_entry(pmd_pfn(pmd), pmd_write(pmd), PMD_SHIFT - PAGE_SHIFT);
}

/* What a PUD that maps memory gives, for the first page of it. */
static inline unsigned long hmm_entry_of_pud(pud_t pud)
{
	return hmm_entry(pud_pfn(pud), pud_write(pud), PUD_SHIFT - PAGE_SHIFT);
}

/* What a device-private swap entry gives to the owner of its page. */
static inline unsigned long hmm_entry_of_private(swp_entry_t swap)
{
	return hmm_entry(swp_offset_pfn(swap),
			 is_writable_device_private_entry(swap), 0);
}

/**
 * struct hmm_pfns - pfns that a stencil is good for
 *
 * @first: the first one
 * @span: distance from there to the last one
 *
 * No bit is set in both @first and a distance up to @span. So the distance of a
 * pfn that is one of these is what an exclusive or with @first leaves of it.
 */
struct hmm_pfns {
	u64 first;
	u64 span;
};

/**
 * hmm_pfns_around - the largest such set with a pfn, within a range
 * @pfn: what has to be among them
 * @lo: first pfn of the range, not above @pfn
 * @hi: last pfn of the range, not below @pfn
 *
 * All of the range if it begins at 0, else a block as buddies are. The highest
 * bit in which @pfn differs from what is just outside of the range is one that
 * may not change. All bits below may.
 *
 * Return: The set.
 */
static inline struct hmm_pfns hmm_pfns_around(u64 pfn, u64 lo, u64 hi)
{
	u64 fixed;

	if (!lo)
		return (struct hmm_pfns){ .first = 0, .span = hi };
	fixed = min(fls64(pfn ^ (lo - 1)), fls64(pfn ^ (hi + 1))) - 1;
	return (struct hmm_pfns) {
		.first = pfn >> fixed << fixed,
		.span = (1ULL << fixed) - 1,
	};
}

/**
 * struct hmm_stencil - converts PTEs that look alike
 *
 * @care: bits of a PTE that bear on its entry: all but accessed and dirty
 * @base: the cared-for bits of a PTE that looks like this, with the first pfn
 * @flip: @base and, as they were, the bits that do not matter
 * @shift: where the pfn begins in a PTE
 * @step: from a PTE to that of the next page of its folio
 * @span: how many pages behind the first one it is good for, see struct hmm_pfns
 * @entry: result for the page with the first pfn
 *
 * Neighbouring PTEs seldom differ in anything but their pfn. What one of them
 * was found to be is kept here; the next one takes no decision, but an
 * exclusive or that strips what they have in common, a rotation and a compare.
 * Rotated, the bits under the pfn come out above it: a PTE that differs in any
 * of them, or in any bit above the pfn, fails the compare with @span.
 */
struct hmm_stencil {
	u64 care;
	u64 base;
	u64 flip;
	unsigned int shift;
	u64 step;
	u64 span;
	unsigned long entry;
};

/* Fits no PTE: what is left of any is 1, and that is beyond the span. */
#define HMM_STENCIL_NONE	((struct hmm_stencil){ .base = 1 })

/* How many pages behind the first one that of @pte is, or beyond the span. */
static inline u64 hmm_stencil_distance(const struct hmm_stencil *stencil,
				       pte_t pte)
{
	u64 bits = (pte_val(pte) & stencil->care) ^ stencil->base;

	return ror64(bits, stencil->shift);
}

static inline bool hmm_stencil_fits(const struct hmm_stencil *stencil, pte_t pte)
{
	return hmm_stencil_distance(stencil, pte) <= stencil->span;
}

#if IS_ENABLED(CONFIG_KUNIT)
struct device;
struct pci_p2pdma_map_state;
struct scatterlist;

struct hmm_stencil hmm_stencil_of_pte(pte_t pte, u64 lo, u64 hi);
struct hmm_stencil hmm_stencil_of_private(pte_t pte, u64 lo, u64 hi);
unsigned long hmm_copy_alike(const struct hmm_stencil *s, pte_t *ptep,
			     unsigned long *slot, unsigned long addr,
			     unsigned long nr);
vm_fault_t hmm_handle_fault(struct vm_area_struct *vma, unsigned long addr,
			    unsigned int flags);
struct hmm_walk;
int hmm_walk_range(struct mm_struct *mm, unsigned long start,
		   unsigned long end, struct hmm_walk *hw);
size_t hmm_dma_piece(const unsigned long *words, const u8 *how, size_t nr,
		     size_t entry);
dma_addr_t hmm_dma_map_page(struct device *dev, struct page *page, size_t size,
			    enum dma_data_direction dir);
void hmm_dma_unmap_page(struct device *dev, dma_addr_t addr, size_t size,
			enum dma_data_direction dir);
int hmm_dma_map_peer(struct pci_p2pdma_map_state *state, struct device *dev,
		     struct scatterlist *sg);
#endif

#endif /* _MM_HMM_INTERNAL_H */
