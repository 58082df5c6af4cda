/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Mirror of a process's page tables for a device.
 *
 * A driver describes a piece of address space by a struct hmm_range, gets one
 * word for each of its pages from hmm_range_fault(), or from
 * hmm_range_fault_unlocked_timeout(), which sees to locks, and builds the device's
 * page table from these words. Documentation/mm/hmm.rst is the guide.
 */
#ifndef LINUX_HMM_H
#define LINUX_HMM_H

#include <linux/mm.h>
#include <linux/pfn.h>

struct migrate_vma;
struct mmu_interval_notifier;

/**
 * enum hmm_pfn_flags - the bits of a word of hmm_range.hmm_pfns
 *
 * @HMM_PFN_VALID: Out: the low bits hold the pfn of a page that the device may
 *	read. It is a device-private page only if its pgmap has the owner that
 *	the range names.
 * @HMM_PFN_WRITE: Out: the device may write as well. Comes with HMM_PFN_VALID.
 * @HMM_PFN_ERROR: Out: no fault can bring a page here: no VMA, a VMA without
 *	struct pages or without read access, secret memory, a broken page table.
 * @HMM_PFN_DMA_MAPPED: Kept: the page has an address for DMA, see hmm-dma.h.
 * @HMM_PFN_P2PDMA: Kept: it is memory of a PCI device, mapped by way of the
 *	host bridge. Comes with HMM_PFN_DMA_MAPPED.
 * @HMM_PFN_P2PDMA_BUS: Kept: it is memory of a PCI device, and the address is
 *	one of the bus. Comes with HMM_PFN_DMA_MAPPED.
 * @HMM_PFN_INOUT_FLAGS: All bits that are kept: hmm_range_fault() has no
 *	meaning for them, and leaves them in each word as they were.
 * @HMM_PFN_ORDER_SHIFT: Out: lowest bit of the five that hold the order of the
 *	mapping, see hmm_pfn_to_map_order().
 * @HMM_PFN_REQ_FAULT: In: the call succeeds only if it can return HMM_PFN_VALID
 *	here, faulting the page in where that is what it takes.
 * @HMM_PFN_REQ_WRITE: In: the same for HMM_PFN_WRITE. It has a meaning only
 *	next to HMM_PFN_REQ_FAULT.
 * @HMM_PFN_REQ_MIGRATE: In, among the default flags only, and next to
 *	HMM_PFN_REQ_FAULT: pages that can move are collected for hmm_range.migrate.
 *	Has the value of HMM_PFN_ERROR.
 * @HMM_PFN_FLAGS: All bits that are not pfn.
 *
 * A word of 0 asks for nothing on the way in. On the way out it stands for a
 * page that is not there, but that a fault may bring: never touched, swapped
 * out, under migration, in somebody else's device, NUMA-hinting.
 */
enum hmm_pfn_flags {
	HMM_PFN_FLAGS		= 0x7FFUL << (BITS_PER_LONG - 11),
	HMM_PFN_ORDER_SHIFT	= BITS_PER_LONG - 11,

	HMM_PFN_P2PDMA_BUS	= 1UL << (BITS_PER_LONG - 6),
	HMM_PFN_P2PDMA		= 1UL << (BITS_PER_LONG - 5),
	HMM_PFN_DMA_MAPPED	= 1UL << (BITS_PER_LONG - 4),
	HMM_PFN_INOUT_FLAGS	= HMM_PFN_DMA_MAPPED | HMM_PFN_P2PDMA |
				  HMM_PFN_P2PDMA_BUS,

	HMM_PFN_ERROR		= 1UL << (BITS_PER_LONG - 3),
	HMM_PFN_WRITE		= 1UL << (BITS_PER_LONG - 2),
	HMM_PFN_VALID		= 1UL << (BITS_PER_LONG - 1),

	HMM_PFN_REQ_WRITE	= HMM_PFN_WRITE,
	HMM_PFN_REQ_FAULT	= HMM_PFN_VALID,
	HMM_PFN_REQ_MIGRATE	= HMM_PFN_ERROR,
};

/**
 * struct hmm_range - one request to hmm_range_fault()
 *
 * @notifier: subscription to invalidations of an interval that covers the range
 * @notifier_seq: what mmu_interval_read_begin() returned for @notifier; set by
 *	hmm_range_fault_unlocked_timeout()
 * @start: first address, page aligned
 * @end: address behind the last page, page aligned
 * @hmm_pfns: a word for each page, request on the way in, result on the way out
 * @default_flags: HMM_PFN_REQ_* that every page of the range asks for
 * @pfn_flags_mask: HMM_PFN_REQ_* that the words of @hmm_pfns may add for their
 *	own page; with 0 the words need not be initialised, but for the bits that
 *	are kept, if the driver looks at those
 * @dev_private_owner: owner of the device-private pages that the device can
 *	reach where they are; the others count as absent, and so do all if NULL
 * @migrate: with HMM_PFN_REQ_MIGRATE, arguments of a migration of this range
 */
struct hmm_range {
	struct mmu_interval_notifier *notifier;
	unsigned long notifier_seq;
	unsigned long start, end;
	unsigned long *hmm_pfns;
	unsigned long default_flags, pfn_flags_mask;
	void *dev_private_owner;
	struct migrate_vma *migrate;
};

/*
 * How many milliseconds a driver should at most go on retrying after -EBUSY
 * before it gives up on a range that somebody invalidates all the time.
 */
#define HMM_RANGE_DEFAULT_TIMEOUT 1000

/**
 * hmm_pfn_to_page - the page that a result names
 * @word: one of hmm_range.hmm_pfns, with HMM_PFN_VALID
 *
 * Context: Any. The page has no reference on behalf of the mirror: it may be
 * used under the driver's lock alone, after mmu_interval_read_retry() said
 * that the result still holds.
 * Return: The struct page.
 */
static inline struct page *hmm_pfn_to_page(unsigned long word)
{
	return pfn_to_page(word & ~HMM_PFN_FLAGS);
}

/**
 * hmm_pfn_to_phys - where the page that a result names is in memory
 * @word: one of hmm_range.hmm_pfns, with HMM_PFN_VALID
 *
 * Context: Any, under the same rules as hmm_pfn_to_page().
 * Return: Its physical address. No bus leads to that of a device-private page.
 */
static inline phys_addr_t hmm_pfn_to_phys(unsigned long word)
{
	return PFN_PHYS(word & ~HMM_PFN_FLAGS);
}

/**
 * hmm_pfn_to_map_order - how large the mapping is that a result belongs to
 * @word: one of hmm_range.hmm_pfns, with HMM_PFN_VALID
 *
 * The page belongs to a block of 1 << order pages that starts at an address
 * and a pfn aligned to its size and that the CPU maps in one piece, with the
 * same rights all over. A device with large pages can map it likewise. The
 * block may begin before the range and may end behind it.
 *
 * Context: Any, under the same rules as hmm_pfn_to_page().
 * Return: The order, 0 for a single page.
 */
static inline unsigned int hmm_pfn_to_map_order(unsigned long word)
{
	return word >> HMM_PFN_ORDER_SHIFT & 0x1F;
}

int hmm_range_fault(struct hmm_range *range);
int hmm_range_fault_unlocked_timeout(struct hmm_range *range,
				     unsigned long timeout);

#endif /* LINUX_HMM_H */
