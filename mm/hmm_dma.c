// SPDX-License-Identifier: GPL-2.0
/*
 * DMA addresses for the pages of a mirror.
 *
 * A struct hmm_dma_map has three lists of one length: the words that
 * hmm_range_fault() fills in, an address for each page of them, and how that was
 * had. A driver asks for its range as often as it likes, and only what came new is
 * mapped.
 *
 * Vocabulary
 *
 *  - An *entry* is what one entry of the device's page table covers: a page, or
 *    an aligned power of two of them (dma_entry_size).
 *  - A *piece* is one mapping of the DMA API: an entry, or a row of entries that
 *    are one large folio. HMM_DMA_JOINED of a page says that it is in one piece
 *    with the page before.
 *  - The *marks* are the bits of a word that say the same as state.how.
 *
 * One copy
 *
 * Device and process work on the same page at the same time. The DMA API is made
 * for buffers that belong to one of them at a time, and may put a copy between
 * the two: a bounce buffer, or a cache that the device does not look into. Where
 * that would happen nothing is mapped. What depends on the device alone is asked
 * when the map is made, and what depends on the page when it is mapped. That is
 * also why there is no cache maintenance.
 *
 * Directions
 *
 * A page may become writable without an invalidation, so mappings are for both
 * directions. But the zero page does not, and belongs to everybody: an IOMMU lets
 * no device write to it.
 *
 * Locks
 *
 * None of its own: see struct hmm_dma_map. Nothing here sleeps but making a map.
 * Words change without a lock:
 *
 *	hmm_range_fault()		invalidate()
 *	reads a word with its mark
 *					lock
 *					unmaps, takes the mark away
 *					unlock
 *	stores a result with the mark
 *
 * Then mmu_interval_read_retry() sends the left side back, but the mark stays. So
 * nothing is decided by marks: they are an echo of state.how, which only changes
 * under the lock, and are set right whenever the page is asked for.
 */
#include <kunit/static_stub.h>
#include <kunit/visibility.h>
#include <linux/align.h>
#include <linux/dma-direct.h>
#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <linux/export.h>
#include <linux/hmm.h>
#include <linux/hmm-dma.h>
#include <linux/iommu-dma.h>
#include <linux/log2.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/pci-p2pdma.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/swiotlb.h>
#include <linux/unaligned.h>

#include "hmm_internal.h"

/* Large enough for the IOMMU's large pages, and no gigabyte comes down at once. */
#define HMM_DMA_MAX_PIECE	(PMD_SIZE >> PAGE_SHIFT)

static size_t pages_per_entry(const struct hmm_dma_map *map)
{
	return map->dma_entry_size >> PAGE_SHIFT;
}

/* --- Decisions ----------------------------------------------------------- */

/* A word without its marks. */
static unsigned long unmarked(unsigned long word)
{
	return word & ~HMM_PFN_INOUT_FLAGS;
}

/*
 * How many of @nr pages can be in one piece with the first of them: those that
 * follow it in the block which the CPU maps in one go, and are not mapped yet. 0
 * if the device would need a larger entry than that block gives; @entry is its
 * size, in pages.
 */
VISIBLE_IF_KUNIT size_t hmm_dma_piece(const unsigned long *words, const u8 *how,
				      size_t nr, size_t entry)
{
	unsigned long block = 1UL << hmm_pfn_to_map_order(words[0]);
	unsigned long pfn = words[0] & ~HMM_PFN_FLAGS;
	size_t i;

	if (!IS_ALIGNED(pfn, entry))
		return 0;
	nr = min3(nr, block - (pfn & (block - 1)),
		  max(entry, HMM_DMA_MAX_PIECE));
	for (i = 1; i < nr; i++)
		if (how[i] || unmarked(words[i]) != unmarked(words[0]) + i)
			break;
	return ALIGN_DOWN(i, entry);
}

static unsigned long marks_of(u8 how)
{
	unsigned long marks = how & HMM_DMA_MAPPED ? HMM_PFN_DMA_MAPPED : 0;

	if (likely(!(how & (HMM_DMA_PEER | HMM_DMA_BUS))))
		return marks;
	return marks | (how & HMM_DMA_PEER ? HMM_PFN_P2PDMA : 0) |
	       (how & HMM_DMA_BUS ? HMM_PFN_P2PDMA_BUS : 0);
}

static enum dma_data_direction direction_of(u8 how)
{
	return how & HMM_DMA_READ ? DMA_TO_DEVICE : DMA_BIDIRECTIONAL;
}

/* Does the device have the physical address, give or take an offset? */
static bool is_direct(struct device *dev)
{
	return !use_dma_iommu(dev) && !get_dma_ops(dev);
}

/*
 * Is it sure that the device sees memory as it is, wherever it reaches it? An
 * IOMMU copies what is not aligned to its pages, which entries are.
 */
static bool has_one_copy(struct device *dev, size_t entry_size)
{
	const struct dma_map_ops *ops = get_dma_ops(dev);

	if (!dev_is_dma_coherent(dev))
		return false;
	if (use_dma_iommu(dev))
		return dma_get_merge_boundary(dev) < entry_size;
	if (ops)
		return !ops->sync_single_for_cpu && !ops->sync_single_for_device;
	return !is_swiotlb_force_bounce(dev);
}

/*
 * Is an address no more than a matter of arithmetic? If the device has those of
 * RAM, reaches the page and sees it as it is, nothing else is left of what the DMA
 * API does, but for its trace events. Kernels that check how it is used have to see
 * all of it.
 */
static bool is_arithmetic(struct device *dev)
{
	return is_direct(dev) && !IS_ENABLED(CONFIG_DMA_API_DEBUG) &&
	       !IS_ENABLED(CONFIG_KMSAN);
}

/* --- The DMA API, of which tests have another one ------------------------ */

VISIBLE_IF_KUNIT dma_addr_t hmm_dma_map_page(struct device *dev,
					     struct page *page, size_t size,
					     enum dma_data_direction dir)
{
	KUNIT_STATIC_STUB_REDIRECT(hmm_dma_map_page, dev, page, size, dir);

	return dma_map_page_attrs(dev, page, 0, size, dir,
				  DMA_ATTR_SKIP_CPU_SYNC);
}

VISIBLE_IF_KUNIT void hmm_dma_unmap_page(struct device *dev, dma_addr_t addr,
					 size_t size,
					 enum dma_data_direction dir)
{
	KUNIT_STATIC_STUB_REDIRECT(hmm_dma_unmap_page, dev, addr, size, dir);

	dma_unmap_page_attrs(dev, addr, size, dir, DMA_ATTR_SKIP_CPU_SYNC);
}

VISIBLE_IF_KUNIT int hmm_dma_map_peer(struct pci_p2pdma_map_state *state,
				      struct device *dev,
				      struct scatterlist *sg)
{
	KUNIT_STATIC_STUB_REDIRECT(hmm_dma_map_peer, state, dev, sg);

	return pci_p2pdma_map_segment(state, dev, sg);
}

/* --- Pieces -------------------------------------------------------------- */

/*
 * How the device reaches memory of another PCI device: 0, and more in @how. With
 * HMM_DMA_BUS, @addr is where.
 */
static int find_peer(struct device *dev, struct page *page, size_t size,
		     struct pci_p2pdma_map_state *state, u8 *how,
		     dma_addr_t *addr)
{
	struct scatterlist sg;

	if (!dma_pci_p2pdma_supported(dev))
		return -EREMOTEIO;

	sg_init_table(&sg, 1);
	sg_set_page(&sg, page, size, 0);
	switch (hmm_dma_map_peer(state, dev, &sg)) {
	case PCI_P2PDMA_MAP_BUS_ADDR:
		*addr = sg_dma_address(&sg);
		*how |= HMM_DMA_BUS;
		return 0;
	case PCI_P2PDMA_MAP_THRU_HOST_BRIDGE:
		*how |= HMM_DMA_PEER;
		return 0;
	default:
		return -EREMOTEIO;
	}
}

/* An address for RAM, or for what is reached as if it were. */
static __always_inline int get_addr(struct device *dev,
				    const struct hmm_dma_map *map,
				    unsigned long word, size_t size,
				    enum dma_data_direction dir, dma_addr_t *addr)
{
	if (map->state.direct) {
		*addr = phys_to_dma(dev, hmm_pfn_to_phys(word));
		/* Not without a bounce buffer? */
		if (!dma_capable(dev, *addr, size, true))
			return -EOPNOTSUPP;
		if (map->state.arithmetic)
			return 0;
	}
	*addr = hmm_dma_map_page(dev, hmm_pfn_to_page(word), size, dir);
	return dma_mapping_error(dev, *addr) ? -ENOMEM : 0;
}

static void put_addr(struct device *dev, const struct hmm_dma_map *map,
		     dma_addr_t addr, size_t size, enum dma_data_direction dir)
{
	if (!map->state.arithmetic)
		hmm_dma_unmap_page(dev, addr, size, dir);
}

/* An address for @nr pages in a row, and how it was had. */
static int find_addr(struct device *dev, const struct hmm_dma_map *map,
		     unsigned long word, size_t nr,
		     struct pci_p2pdma_map_state *state, u8 *how,
		     dma_addr_t *addr)
{
	struct page *page = hmm_pfn_to_page(word);
	size_t size = nr << PAGE_SHIFT;
	int err;

	*how = HMM_DMA_MAPPED;
	if (is_zone_device_page(page)) {
		if (is_device_private_page(page))
			return -ENXIO;
		if (is_pci_p2pdma_page(page)) {
			err = find_peer(dev, page, size, state, how, addr);
			if (err || (*how & HMM_DMA_BUS))
				return err;
		}
	}
	if (is_zero_pfn(page_to_pfn(page)))
		*how |= HMM_DMA_READ;
	return get_addr(dev, map, word, size, direction_of(*how), addr);
}

static void set_marks(const struct hmm_dma_map *map, size_t idx)
{
	unsigned long *word = map->pfn_list + idx;

	WRITE_ONCE(*word, unmarked(*word) | marks_of(map->state.how[idx]));
}

/* A page that is nothing special, and is a piece alone: most are. */
static bool is_plain(unsigned long word, size_t entry)
{
	return entry == 1 && !hmm_pfn_to_map_order(word) &&
	       !is_zone_device_page(hmm_pfn_to_page(word)) &&
	       !is_zero_pfn(word & ~HMM_PFN_FLAGS);
}

/* map_piece() of such a page. */
static __always_inline int map_plain(struct device *dev,
				     const struct hmm_dma_map *map,
				     size_t idx, unsigned long word)
{
	dma_addr_t addr;
	int err;

	err = get_addr(dev, map, word, PAGE_SIZE, DMA_BIDIRECTIONAL, &addr);
	if (err)
		return err;
	map->dma_list[idx] = addr;
	map->state.how[idx] = HMM_DMA_MAPPED | HMM_DMA_FRESH;
	/* Not @word: the mirror may have written it since. */
	WRITE_ONCE(map->pfn_list[idx],
		   unmarked(READ_ONCE(map->pfn_list[idx])) | HMM_PFN_DMA_MAPPED);
	return 0;
}

static int map_piece(struct device *dev, struct hmm_dma_map *map, size_t first,
		     size_t nr, struct pci_p2pdma_map_state *state)
{
	struct pci_p2pdma_map_state unknown = { };
	dma_addr_t addr;
	size_t i;
	int err;
	u8 how;

	err = find_addr(dev, map, map->pfn_list[first], nr, state ? state : &unknown,
			&how, &addr);
	if (err)
		return err;

	for (i = first; i < first + nr; i++, addr += PAGE_SIZE) {
		map->dma_list[i] = addr;
		map->state.how[i] = i == first ? how : how | HMM_DMA_JOINED;
		set_marks(map, i);
	}
	return 0;
}

/* What there is to know of eight pages that are mapped each by itself. */
#define EIGHT(how)	((how) * 0x0101010101010101ULL)

/* The index behind the pages from @idx on that are plain, and pieces alone. */
static size_t end_of_plain(const struct hmm_dma_map *map, size_t idx, size_t end)
{
	const u8 *how = map->state.how;
	size_t i = idx;

	while (end - i >= 8 &&
	       (get_unaligned((const u64 *)(how + i)) & ~EIGHT(HMM_DMA_FRESH)) ==
	       EIGHT(HMM_DMA_MAPPED))
		i += 8;
	while (i < end && (how[i] & ~HMM_DMA_FRESH) == HMM_DMA_MAPPED)
		i++;
	/* The last one may be the first of a larger piece. */
	return i > idx && (how[i] & HMM_DMA_JOINED) ? i - 1 : i;
}

/* All marks first: the loop behind is as short as the DMA API lets it be. */
static void unmap_plain(struct device *dev, const struct hmm_dma_map *map,
			size_t idx, size_t end)
{
	unsigned long *words = map->pfn_list;
	size_t i;

	memset(map->state.how + idx, 0, end - idx);
#pragma GCC unroll 8
	for (i = idx; i < end; i++)
		WRITE_ONCE(words[i], unmarked(words[i]));
	if (map->state.arithmetic)
		return;
	for (i = idx; i < end; i++)
		hmm_dma_unmap_page(dev, map->dma_list[i], PAGE_SIZE,
				   DMA_BIDIRECTIONAL);
}

/* Returns the index behind the piece. */
static noinline size_t unmap_piece(struct device *dev, struct hmm_dma_map *map,
				   size_t idx)
{
	size_t first = idx, end = idx + 1, i;
	u8 how;

	hmm_dma_widen(map, &first, &end);
	how = map->state.how[first];
	if (!(how & HMM_DMA_BUS))
		put_addr(dev, map, map->dma_list[first],
			 (end - first) << PAGE_SHIFT, direction_of(how));

	for (i = first; i < end; i++) {
		map->state.how[i] = 0;
		set_marks(map, i);
	}
	return end;
}

/* Is this a range of whole entries of the map? */
static bool has_range(const struct hmm_dma_map *map, size_t idx, size_t nr)
{
	return nr && idx < map->state.nr_entries &&
	       nr <= map->state.nr_entries - idx &&
	       IS_ALIGNED(idx | nr, pages_per_entry(map));
}

/* Pages that are mapped by it, or an errno. */
static noinline ssize_t map_special(struct device *dev, struct hmm_dma_map *map,
				    size_t idx, size_t nr,
				    struct pci_p2pdma_map_state *state)
{
	int err;

	nr = hmm_dma_piece(map->pfn_list + idx, map->state.how + idx, nr,
			   pages_per_entry(map));
	if (!nr)
		return -EINVAL;
	err = map_piece(dev, map, idx, nr, state);
	if (err)
		return err;
	map->state.how[idx] |= HMM_DMA_FRESH;
	return nr;
}

/*
 * Map the entry at @idx and what of @nr pages can be in one piece with it. Returns
 * how many these are, or an errno. What @same has of the map, a compiler may keep in
 * registers.
 */
static __always_inline ssize_t map_entry(struct device *dev,
					 struct hmm_dma_map *map,
					 const struct hmm_dma_map *same,
					 size_t idx, size_t nr,
					 struct pci_p2pdma_map_state *state)
{
	unsigned long word = same->pfn_list[idx];

	if (is_plain(word, pages_per_entry(same)))
		return map_plain(dev, same, idx, word) ?: 1;
	return map_special(dev, map, idx, nr, state);
}

/* --- Interface ----------------------------------------------------------- */

static bool is_sane(struct device *dev, size_t nr_entries, size_t entry_size)
{
	return dev && dev->dma_mask && nr_entries && entry_size >= PAGE_SIZE &&
	       is_power_of_2(entry_size) &&
	       IS_ALIGNED(nr_entries, entry_size >> PAGE_SHIFT);
}

/**
 * hmm_dma_map_alloc - make room for the addresses of a range
 * @dev: device that does the DMA; its DMA mask is set
 * @map: what is to be set up
 * @nr_entries: pages of the range
 * @dma_entry_size: bytes that an entry of the device's page table covers:
 *	PAGE_SIZE, or a power of two of it for a device that maps nothing less
 *
 * The words of @map are 0, and so is nothing mapped. The caller gives them to
 * hmm_range_fault(). hmm_dma_map_free() takes the map down. After an error @map
 * is empty, and may be given to it as well.
 *
 * Context: Process context. May sleep.
 *
 * Return:
 * * 0 - @map can be used.
 * * -EINVAL - there is no device or it has no DMA mask, the range is empty, or
 *   @dma_entry_size is no power of two, less than a page, or no part of the
 *   range.
 * * -EOPNOTSUPP - what @dev does to memory is not seen by the CPU at once: it is
 *   not coherent, or all its DMA goes through bounce buffers.
 * * -ENOMEM - there was no memory.
 */
int hmm_dma_map_alloc(struct device *dev, struct hmm_dma_map *map,
		      size_t nr_entries, size_t dma_entry_size)
{
	*map = (struct hmm_dma_map){ };
	if (!is_sane(dev, nr_entries, dma_entry_size))
		return -EINVAL;
	if (!has_one_copy(dev, dma_entry_size))
		return -EOPNOTSUPP;

	map->pfn_list = kvcalloc(nr_entries, sizeof(*map->pfn_list),
				 GFP_KERNEL | __GFP_NOWARN);
	map->dma_list = kvcalloc(nr_entries, sizeof(*map->dma_list),
				 GFP_KERNEL | __GFP_NOWARN);
	/* The one more is joined to nothing: who looks behind a page may look there. */
	map->state.how = kvcalloc(nr_entries + 1, sizeof(*map->state.how),
				  GFP_KERNEL | __GFP_NOWARN);
	if (!map->pfn_list || !map->dma_list || !map->state.how) {
		hmm_dma_map_free(dev, map);
		return -ENOMEM;
	}
	map->dma_entry_size = dma_entry_size;
	map->state.nr_entries = nr_entries;
	map->state.direct = is_direct(dev);
	map->state.arithmetic = is_arithmetic(dev);
	return 0;
}
EXPORT_SYMBOL_GPL(hmm_dma_map_alloc);

/**
 * hmm_dma_map_free - take a map down
 * @dev: device that the map was made for
 * @map: the map; hmm_dma_map_alloc() has set it up, or failed to
 *
 * Unmaps what still is mapped. The device uses none of it any more, and the
 * interval notifier that may unmap it is gone.
 *
 * Context: Process context. May sleep.
 */
void hmm_dma_map_free(struct device *dev, struct hmm_dma_map *map)
{
	hmm_dma_unmap_range(dev, map, 0, map->state.nr_entries);
	kvfree(map->state.how);
	kvfree(map->dma_list);
	kvfree(map->pfn_list);
	*map = (struct hmm_dma_map){ };
}
EXPORT_SYMBOL_GPL(hmm_dma_map_free);

/**
 * hmm_dma_map_pfn - the address of one entry
 * @dev: device that the map was made for
 * @map: the map
 * @idx: index of the entry's first page
 * @p2pdma_state: what was last found out about memory of PCI devices, all zero
 *	in the beginning; may be NULL
 *
 * Maps the entry, and nothing beside it, unless it is mapped already: then it has
 * the address that it was given at first.
 *
 * Device-private pages have no address. A driver that named an owner in its range
 * gets its own ones from the mirror, and has to look for them before it comes
 * here.
 *
 * Context: Any that dma_map_page() may be called in. The caller holds the lock of
 * the lists, under which mmu_interval_read_retry() said that the words hold.
 *
 * Return: The address, or DMA_MAPPING_ERROR for each reason that
 * hmm_dma_map_range() gives an errno for, and if the word has no HMM_PFN_VALID.
 */
dma_addr_t hmm_dma_map_pfn(struct device *dev, struct hmm_dma_map *map,
			   size_t idx,
			   struct pci_p2pdma_map_state *p2pdma_state)
{
	size_t nr = pages_per_entry(map);

	if (!has_range(map, idx, nr))
		return DMA_MAPPING_ERROR;
	set_marks(map, idx);
	if (!(map->pfn_list[idx] & HMM_PFN_VALID))
		return DMA_MAPPING_ERROR;
	if (!map->state.how[idx] && map_entry(dev, map, map, idx, nr, p2pdma_state) < 0)
		return DMA_MAPPING_ERROR;
	return map->dma_list[idx];
}
EXPORT_SYMBOL_GPL(hmm_dma_map_pfn);

/* Not mapped by this call. */
static noinline void keep_entry(struct hmm_dma_map *map, size_t idx, size_t nr)
{
	for (; nr; nr--, idx++) {
		map->state.how[idx] &= ~HMM_DMA_FRESH;
		set_marks(map, idx);
	}
}

static void take_back(struct device *dev, struct hmm_dma_map *map, size_t idx,
		      size_t end)
{
	for (; idx < end; idx++)
		if (map->state.how[idx] & HMM_DMA_FRESH)
			unmap_piece(dev, map, idx);
}

/**
 * hmm_dma_map_range - the addresses of a range of entries
 * @dev: device that the map was made for
 * @map: the map
 * @idx: index of the first page
 * @nr: number of pages
 * @p2pdma_state: as for hmm_dma_map_pfn()
 *
 * Maps all that has HMM_PFN_VALID and is not mapped yet; other words are left
 * alone. Pages of a large folio are mapped in one piece, as far as the CPU maps
 * them so and the range goes, up to the size of a PMD: their addresses follow each
 * other, and an IOMMU has fewer and larger pages of its own. Such a piece comes
 * down as one: see hmm_dma_widen().
 *
 * Either all of the range is mapped, or what was not mapped before is not mapped
 * afterwards.
 *
 * Context: As for hmm_dma_map_pfn().
 *
 * Return:
 * * 0 - dma_list of @map has the address of each page that is there.
 * * -EINVAL - the range is empty, ends behind the map, or begins or ends inside of
 *   an entry; or an entry of more than a page is not one aligned block of memory.
 * * -ENXIO - a page is in private memory of a device, its own or another one.
 * * -EREMOTEIO - a page is memory of a PCI device that @dev does not reach.
 * * -EOPNOTSUPP - @dev reaches a page by a bounce buffer only.
 * * -ENOMEM - the IOMMU has no addresses left, or no memory for its page tables.
 */
int hmm_dma_map_range(struct device *dev, struct hmm_dma_map *map, size_t idx,
		      size_t nr, struct pci_p2pdma_map_state *p2pdma_state)
{
	const struct hmm_dma_map same = *map;
	size_t end = idx + nr, i;
	ssize_t n;

	if (!has_range(map, idx, nr))
		return -EINVAL;

	for (i = idx; i < end; i += n) {
		if (same.state.how[i] || !(same.pfn_list[i] & HMM_PFN_VALID)) {
			n = pages_per_entry(&same);
			keep_entry(map, i, n);
			continue;
		}
		n = map_entry(dev, map, &same, i, end - i, p2pdma_state);
		if (n < 0) {
			keep_entry(map, i, end - i);
			take_back(dev, map, idx, i);
			return n;
		}
	}
	return 0;
}
EXPORT_SYMBOL_GPL(hmm_dma_map_range);

/**
 * hmm_dma_unmap_range - let go of the addresses of a range
 * @dev: device that the map was made for
 * @map: the map
 * @idx: index of the first page
 * @nr: number of pages
 *
 * Unmaps each piece that a page of the range is in, all of it: see hmm_dma_widen().
 * The device uses none of its pages any more. What is outside of the map is not
 * mapped.
 *
 * The pages are not marked dirty: the driver does that, before, if the device has
 * written to them.
 *
 * Context: Any that dma_unmap_page() may be called in, callbacks of interval
 * notifiers among them. The caller holds the lock of the lists.
 *
 * Return: How many pieces were unmapped.
 */
size_t hmm_dma_unmap_range(struct device *dev, struct hmm_dma_map *map,
			   size_t idx, size_t nr)
{
	size_t end, next, pieces = 0;

	if (idx >= map->state.nr_entries)
		return 0;
	end = idx + min(nr, map->state.nr_entries - idx);
	for (; idx < end; idx = next) {
		next = end_of_plain(map, idx, end);
		if (next > idx) {
			unmap_plain(dev, map, idx, next);
			pieces += next - idx;
		} else if (map->state.how[idx]) {
			next = unmap_piece(dev, map, idx);
			pieces++;
		} else {
			next = idx + 1;
		}
	}
	return pieces;
}
EXPORT_SYMBOL_GPL(hmm_dma_unmap_range);
