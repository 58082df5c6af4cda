/* SPDX-License-Identifier: GPL-2.0 */
/*
 * DMA addresses for the pages of a mirror.
 *
 * hmm_range_fault() says which page is behind an address. A device that reaches
 * memory over a bus needs to know where the bus has that page: these functions
 * tell, and keep it beside the words of the mirror. Documentation/mm/hmm.rst is
 * the guide.
 */
#ifndef LINUX_HMM_DMA_H
#define LINUX_HMM_DMA_H

#include <linux/bits.h>
#include <linux/dma-map-ops.h>	/* struct pci_p2pdma_map_state */
#include <linux/types.h>

struct device;

/**
 * enum hmm_dma_how - how a page is mapped
 *
 * @HMM_DMA_MAPPED: It is.
 * @HMM_DMA_JOINED: In one piece with the page before it.
 * @HMM_DMA_FRESH: First page of a piece that is new since the last
 *	hmm_dma_map_range() of it.
 * @HMM_DMA_READ: For reading alone.
 * @HMM_DMA_PEER: Memory of a PCI device, by way of the host bridge.
 * @HMM_DMA_BUS: Memory of a PCI device, by an address of the bus.
 *
 * The marks in the words say the same, and may be wrong for a while: a word is
 * written by hmm_range_fault(), without the driver's lock, while invalidate() takes
 * the mark away. Under the lock this here is right, always.
 */
enum hmm_dma_how {
	HMM_DMA_MAPPED	= BIT(0),
	HMM_DMA_JOINED	= BIT(1),
	HMM_DMA_FRESH	= BIT(2),
	HMM_DMA_READ	= BIT(3),
	HMM_DMA_PEER	= BIT(4),
	HMM_DMA_BUS	= BIT(5),
};

/**
 * struct hmm_dma_state - what struct hmm_dma_map knows for itself
 *
 * @nr_entries: length of the lists of the map
 * @how: enum hmm_dma_how, per page
 * @direct: to the device, RAM is where it is to the CPU, give or take an offset
 * @arithmetic: and nobody needs to be told of a mapping
 */
struct hmm_dma_state {
	size_t nr_entries;
	u8 *how;
	bool direct;
	bool arithmetic;
};

/**
 * struct hmm_dma_map - a range of a mirror, and its pages' addresses for DMA
 *
 * @state: private
 * @pfn_list: a word per page, for hmm_range.hmm_pfns. Those that have an address
 *	are marked by HMM_PFN_DMA_MAPPED. Who sets up words anew leaves the bits of
 *	HMM_PFN_INOUT_FLAGS as they are
 * @dma_list: the address, per page
 * @dma_entry_size: bytes that one entry of the device's page table covers
 *
 * An entry is @dma_entry_size bytes, and is counted in pages like all the rest:
 * with entries of 2 MiB and pages of 4 KiB the second one has index 512.
 *
 * A *piece* is what was mapped in one go, and is unmapped in one go: an entry,
 * or several in a row if hmm_dma_map_range() found a large folio.
 *
 * Locks: the driver's own. All but the words is changed and read under the lock
 * that the driver's callback of the interval notifier takes. Words are written by
 * hmm_range_fault() without it: one such call at a time for each word.
 */
struct hmm_dma_map {
	struct hmm_dma_state state;
	unsigned long *pfn_list;
	dma_addr_t *dma_list;
	size_t dma_entry_size;
};

int hmm_dma_map_alloc(struct device *dev, struct hmm_dma_map *map,
		      size_t nr_entries, size_t dma_entry_size);
void hmm_dma_map_free(struct device *dev, struct hmm_dma_map *map);
dma_addr_t hmm_dma_map_pfn(struct device *dev, struct hmm_dma_map *map,
			   size_t idx,
			   struct pci_p2pdma_map_state *p2pdma_state);
int hmm_dma_map_range(struct device *dev, struct hmm_dma_map *map, size_t idx,
		      size_t nr, struct pci_p2pdma_map_state *p2pdma_state);
size_t hmm_dma_unmap_range(struct device *dev, struct hmm_dma_map *map,
			   size_t idx, size_t nr);

/* hmm_dma_unmap_range() of the piece that one page is in. Was there any? */
static inline bool hmm_dma_unmap_pfn(struct device *dev, struct hmm_dma_map *map,
				     size_t idx)
{
	return hmm_dma_unmap_range(dev, map, idx, 1);
}

/**
 * hmm_dma_is_mapped - has this page an address?
 * @map: the map
 * @idx: index of the page
 *
 * Context: Any. The caller holds the lock of the lists.
 * Return: Whether dma_list of @map has one.
 */
static inline bool hmm_dma_is_mapped(const struct hmm_dma_map *map, size_t idx)
{
	return idx < map->state.nr_entries &&
	       (map->state.how[idx] & HMM_DMA_MAPPED);
}

/**
 * hmm_dma_widen - from indices to whole pieces
 * @map: the map
 * @first: in: an index; out: the first one of the piece that it is in
 * @end: in: an index behind @first; out: the one behind the piece that ends there
 *
 * Pieces come down whole. So a driver that is told to drop some pages drops, from
 * its device first and then here, all that this gives.
 *
 * Context: Any. The caller holds the lock of the lists.
 */
static inline void hmm_dma_widen(const struct hmm_dma_map *map, size_t *first,
				 size_t *end)
{
	const struct hmm_dma_state *state = &map->state;

	while (*first && *first < state->nr_entries &&
	       (state->how[*first] & HMM_DMA_JOINED))
		--*first;
	while (*end < state->nr_entries &&
	       (state->how[*end] & HMM_DMA_JOINED))
		++*end;
}

#endif /* LINUX_HMM_DMA_H */
