// SPDX-License-Identifier: GPL-2.0
/*
 * DMA addresses for a mirror: which pages are mapped in one piece, who is
 * refused, and that whatever was mapped is unmapped once.
 *
 * Most tests have a bus of their own in the place of the DMA API: it counts
 * mappings, gives out addresses that are no page's, and can run out of them. The
 * words are made here, not by hmm_range_fault().
 */
#include <kunit/device.h>
#include <kunit/resource.h>
#include <kunit/static_stub.h>
#include <kunit/test.h>
#include <kunit/test-bug.h>
#include <linux/dma-direct.h>
#include <linux/dma-mapping.h>
#include <linux/hmm.h>
#include <linux/hmm-dma.h>
#include <linux/ioport.h>
#include <linux/memory_hotplug.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/scatterlist.h>

#include "../hmm_internal.h"

#define READABLE	HMM_PFN_VALID
#define WRITABLE	(HMM_PFN_VALID | HMM_PFN_WRITE)
#define KEPT		HMM_PFN_INOUT_FLAGS
#define PFN		0x40000UL

#define ENTRIES		64
#define ORDER		4
#define NR		BIT(ORDER)

#define BUS_START	0x7700000000ULL
#define BUS_OFFSET	0x1100000000ULL

static unsigned long word_of(unsigned long pfn, unsigned int order)
{
	return WRITABLE | (unsigned long)order << HMM_PFN_ORDER_SHIFT | pfn;
}

/* --- Pieces -------------------------------------------------------------- */

struct piece_case {
	const char *name;
	unsigned long pfn;		/* of the first word */
	unsigned int order;
	unsigned long nr;		/* words that follow it as they should */
	unsigned long last;		/* and a last one */
	size_t entry, piece;
};

#define LIKE	0		/* one more that follows */
#define BIG	(PMD_SIZE >> PAGE_SHIFT)

static const struct piece_case piece_cases[] = {
	{ "a page", PFN, 0, 1, 0, 1, 1 },
	{ "two pages in a row are two pieces", PFN, 0, 8, LIKE, 1, 1 },
	{ "a large folio", PFN, 4, 15, LIKE, 1, 16 },
	{ "not beyond the folio", PFN, 3, 15, LIKE, 1, 8 },
	{ "from the middle of a folio", PFN + 5, 4, 15, LIKE, 1, 11 },
	{ "the last page of a folio", PFN + 15, 4, 15, LIKE, 1, 1 },
	{ "up to the end of the range", PFN, 9, 6, LIKE, 1, 7 },
	{ "up to a page that is elsewhere", PFN, 4, 9, WRITABLE | 0x99, 1, 9 },
	{ "up to a page that is read-only", PFN, 4, 9,
	  READABLE | 4UL << HMM_PFN_ORDER_SHIFT | (PFN + 9), 1, 9 },
	{ "marks do not matter", PFN, 4, 15, WRITABLE | HMM_PFN_DMA_MAPPED |
	  4UL << HMM_PFN_ORDER_SHIFT | (PFN + 15), 1, 16 },
	{ "up to a hole", PFN, 4, 9, HMM_PFN_ERROR, 1, 9 },
	{ "no more than a PMD", PFN, 18, BIG + 20, LIKE, 1, BIG },
	{ "an entry of the device", PFN, 4, 15, LIKE, 16, 16 },
	{ "whole entries alone", PFN, 4, 13, WRITABLE | 0x99, 4, 12 },
	{ "an entry larger than the folio", PFN, 3, 15, LIKE, 16, 0 },
	{ "an entry that is not aligned", PFN + 8, 4, 15, LIKE, 16, 0 },
	{ "an entry larger than a PMD", PFN, 18, 2 * BIG - 1, LIKE, 2 * BIG, 2 * BIG },
};

KUNIT_ARRAY_PARAM_DESC(piece, piece_cases, name);

static void piece_follows_table(struct kunit *test)
{
	const struct piece_case *c = test->param_value;
	unsigned long first = word_of(c->pfn, c->order), *words, i;
	u8 *how;

	words = kunit_kcalloc(test, c->nr + 1, sizeof(*words), GFP_KERNEL);
	how = kunit_kcalloc(test, c->nr + 1, sizeof(*how), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, words);
	KUNIT_ASSERT_NOT_NULL(test, how);
	for (i = 0; i <= c->nr; i++)
		words[i] = first + i;
	if (c->last != LIKE)
		words[c->nr] = c->last;
	KUNIT_EXPECT_EQ(test, hmm_dma_piece(words, how, c->nr + 1, c->entry), c->piece);
	/* It ends before a page that is mapped. */
	if (c->entry == 1 && c->piece > 1) {
		how[c->piece - 1] = HMM_DMA_MAPPED;
		KUNIT_EXPECT_EQ(test, hmm_dma_piece(words, how, c->nr + 1, 1), c->piece - 1);
	}
}

/* --- A bus --------------------------------------------------------------- */

/*
 * struct bus - the device and its bus
 * @page: first of NR pages of one folio
 * @next: address of the next mapping
 * @left: mappings until there are no more addresses
 * @maps: number of mappings that were made
 * @live: of these, how many there are
 * @readers: of these, how many are for reading alone
 * @size: sum of what was unmapped
 * @way: how memory of PCI devices is reached
 */
struct bus {
	struct kunit *test;
	struct device *dev;
	struct hmm_dma_map map;
	struct page *page;
	dma_addr_t next;
	int left, maps, live, readers;
	size_t size;
	enum pci_p2pdma_map_type way;
	struct resource res;
	struct dev_pagemap pgmap;
};

static struct bus *this_bus(void)
{
	return kunit_get_current_test()->priv;
}

static dma_addr_t bus_map(struct device *dev, struct page *page, size_t size,
			  enum dma_data_direction dir)
{
	struct bus *bus = this_bus();
	dma_addr_t addr = bus->next;

	if (!bus->left)
		return DMA_MAPPING_ERROR;
	KUNIT_EXPECT_EQ(bus->test, dir, is_zero_pfn(page_to_pfn(page)) ?
					DMA_TO_DEVICE : DMA_BIDIRECTIONAL);
	bus->readers += dir == DMA_TO_DEVICE;
	bus->left--;
	bus->maps++;
	bus->live++;
	bus->next += size + PAGE_SIZE;
	return addr;
}

static void bus_unmap(struct device *dev, dma_addr_t addr, size_t size,
		      enum dma_data_direction dir)
{
	struct bus *bus = this_bus();

	bus->readers -= dir == DMA_TO_DEVICE;

	KUNIT_EXPECT_GE(bus->test, addr, BUS_START);
	KUNIT_EXPECT_LT(bus->test, addr, bus->next);
	bus->live--;
	bus->size += size;
}

static int bus_map_peer(struct pci_p2pdma_map_state *state, struct device *dev,
			struct scatterlist *sg)
{
	struct bus *bus = this_bus();

	if (bus->way == PCI_P2PDMA_MAP_BUS_ADDR)
		sg_dma_address(sg) = sg_phys(sg) + BUS_OFFSET;
	return bus->way;
}

static void bus_free_map(void *data)
{
	struct bus *bus = data;

	hmm_dma_map_free(bus->dev, &bus->map);
}

static void bus_free_page(void *data)
{
	struct bus *bus = data;

	__free_pages(bus->page, ORDER);
}

/* The stubs outlive the map, which is freed before they go. */
static void use_fake(struct kunit *test)
{
	kunit_activate_static_stub(test, hmm_dma_map_page, bus_map);
	kunit_activate_static_stub(test, hmm_dma_unmap_page, bus_unmap);
	kunit_activate_static_stub(test, hmm_dma_map_peer, bus_map_peer);
}

/* A device, a folio, and a map of ENTRIES pages. */
static struct bus *make_bus(struct kunit *test, size_t entry_size, bool fake)
{
	struct bus *bus = kunit_kzalloc(test, sizeof(*bus), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, bus);
	bus->test = test;
	bus->left = INT_MAX;
	bus->next = BUS_START;
	test->priv = bus;
	if (fake)
		use_fake(test);

	bus->page = alloc_pages(GFP_KERNEL | __GFP_COMP, ORDER);
	KUNIT_ASSERT_NOT_NULL(test, bus->page);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, bus_free_page, bus));

	bus->dev = kunit_device_register(test, "hmm_dma");
	KUNIT_ASSERT_FALSE(test, IS_ERR(bus->dev));
	KUNIT_ASSERT_EQ(test, 0, dma_coerce_mask_and_coherent(bus->dev, DMA_BIT_MASK(64)));
	KUNIT_ASSERT_EQ(test, 0, hmm_dma_map_alloc(bus->dev, &bus->map, ENTRIES, entry_size));
	if (fake)
		bus->map.state.arithmetic = false;
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, bus_free_map, bus));
	return bus;
}

static struct bus *fake_bus(struct kunit *test, size_t entry_size)
{
	return make_bus(test, entry_size, true);
}

/* With the real DMA API. */
static struct bus *real_bus(struct kunit *test)
{
	return make_bus(test, PAGE_SIZE, false);
}

/* The mirror says: here are @nr pages of the folio, which is mapped so. */
static void put_words(struct bus *bus, size_t idx, size_t nr, unsigned int order)
{
	size_t i;

	for (i = 0; i < nr; i++)
		bus->map.pfn_list[idx + i] = word_of(page_to_pfn(bus->page) + i, order);
}

static int map_range(struct bus *bus, size_t idx, size_t nr)
{
	struct pci_p2pdma_map_state state = { };

	return hmm_dma_map_range(bus->dev, &bus->map, idx, nr, &state);
}

static dma_addr_t map_pfn(struct bus *bus, size_t idx)
{
	struct pci_p2pdma_map_state state = { };

	return hmm_dma_map_pfn(bus->dev, &bus->map, idx, &state);
}

static bool unmap_pfn(struct bus *bus, size_t idx)
{
	return hmm_dma_unmap_pfn(bus->dev, &bus->map, idx);
}

static size_t nr_mapped(const struct bus *bus)
{
	size_t i, n = 0;

	for (i = 0; i < ENTRIES; i++)
		n += hmm_dma_is_mapped(&bus->map, i);
	return n;
}

/* --- One entry ----------------------------------------------------------- */

static void page_has_an_address_until_unmapped(struct kunit *test)
{
	struct bus *bus = fake_bus(test, PAGE_SIZE);

	put_words(bus, 3, 2, 0);
	KUNIT_EXPECT_EQ(test, map_pfn(bus, 3), BUS_START);
	KUNIT_EXPECT_EQ(test, bus->map.dma_list[3], BUS_START);
	KUNIT_EXPECT_EQ(test, bus->map.pfn_list[3] & KEPT, HMM_PFN_DMA_MAPPED);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), 1);

	KUNIT_EXPECT_TRUE(test, unmap_pfn(bus, 3));
	KUNIT_EXPECT_EQ(test, bus->live, 0);
	KUNIT_EXPECT_EQ(test, bus->size, PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, bus->map.pfn_list[3], word_of(page_to_pfn(bus->page), 0));
	KUNIT_EXPECT_FALSE(test, unmap_pfn(bus, 3));
	KUNIT_EXPECT_FALSE(test, unmap_pfn(bus, 4));
	KUNIT_EXPECT_EQ(test, bus->size, PAGE_SIZE);
}

static void mapped_twice_is_mapped_once(struct kunit *test)
{
	struct bus *bus = fake_bus(test, PAGE_SIZE);

	put_words(bus, 0, 2, 0);
	KUNIT_EXPECT_EQ(test, map_pfn(bus, 0), BUS_START);
	/* Writable from now on, and asked for again: the mark stays. */
	bus->map.pfn_list[0] |= HMM_PFN_WRITE;
	KUNIT_EXPECT_EQ(test, map_pfn(bus, 0), BUS_START);
	KUNIT_EXPECT_EQ(test, map_range(bus, 0, 2), 0);
	KUNIT_EXPECT_EQ(test, bus->map.dma_list[0], BUS_START);
	KUNIT_EXPECT_EQ(test, bus->maps, 2);
}

/*
 * hmm_range_fault() has read the word before it was unmapped, and stored it
 * afterwards: the mark is back, the address is not.
 */
static void mark_that_came_back_is_no_address(struct kunit *test)
{
	struct bus *bus = fake_bus(test, PAGE_SIZE);
	unsigned long old;
	dma_addr_t addr;

	put_words(bus, 0, 2, 0);
	addr = map_pfn(bus, 0);
	map_pfn(bus, 1);
	old = bus->map.pfn_list[0];
	KUNIT_EXPECT_TRUE(test, unmap_pfn(bus, 0));
	KUNIT_EXPECT_TRUE(test, unmap_pfn(bus, 1));
	bus->map.pfn_list[0] = old;
	bus->map.pfn_list[1] = HMM_PFN_DMA_MAPPED;
	KUNIT_EXPECT_FALSE(test, hmm_dma_is_mapped(&bus->map, 0));
	KUNIT_EXPECT_FALSE(test, unmap_pfn(bus, 0));
	KUNIT_EXPECT_EQ(test, bus->live, 0);

	KUNIT_EXPECT_NE(test, map_pfn(bus, 0), addr);
	KUNIT_EXPECT_EQ(test, map_range(bus, 0, 2), 0);
	KUNIT_EXPECT_EQ(test, bus->live, 1);
	KUNIT_EXPECT_EQ(test, bus->map.pfn_list[1], 0);
}

/* And the other way round. */
static void mark_that_got_lost_is_an_address(struct kunit *test)
{
	struct bus *bus = fake_bus(test, PAGE_SIZE);

	put_words(bus, 0, NR, ORDER);
	KUNIT_ASSERT_EQ(test, map_range(bus, 0, NR), 0);
	put_words(bus, 0, NR, ORDER);
	KUNIT_EXPECT_EQ(test, map_pfn(bus, 5), BUS_START + 5 * PAGE_SIZE);
	KUNIT_EXPECT_TRUE(test, bus->map.pfn_list[5] & HMM_PFN_DMA_MAPPED);
	KUNIT_EXPECT_EQ(test, map_range(bus, 0, NR), 0);
	KUNIT_EXPECT_TRUE(test, bus->map.pfn_list[6] & HMM_PFN_DMA_MAPPED);
	KUNIT_EXPECT_EQ(test, bus->maps, 1);
	put_words(bus, 0, NR, ORDER);
	KUNIT_EXPECT_TRUE(test, unmap_pfn(bus, 6));
	KUNIT_EXPECT_EQ(test, bus->live, 0);
}

static void zero_page_is_for_reading(struct kunit *test)
{
	struct bus *bus = fake_bus(test, PAGE_SIZE);

	put_words(bus, 0, 1, 0);
	bus->map.pfn_list[1] = READABLE | my_zero_pfn(0);
	bus->map.pfn_list[2] = READABLE | my_zero_pfn(0);
	KUNIT_ASSERT_EQ(test, map_range(bus, 0, 3), 0);
	KUNIT_EXPECT_EQ(test, bus->live, 3);
	KUNIT_EXPECT_EQ(test, bus->readers, 2);
	/* As it was mapped, not as the word is now. */
	bus->map.pfn_list[1] = 0;
	KUNIT_EXPECT_TRUE(test, unmap_pfn(bus, 1));
	KUNIT_EXPECT_TRUE(test, unmap_pfn(bus, 2));
	KUNIT_EXPECT_EQ(test, bus->readers, 0);
}

/* Though it is a large folio: the device may have its pages one by one. */
static void one_entry_is_mapped_alone(struct kunit *test)
{
	struct bus *bus = fake_bus(test, PAGE_SIZE);

	put_words(bus, 0, NR, ORDER);
	KUNIT_EXPECT_NE(test, map_pfn(bus, 4), DMA_MAPPING_ERROR);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), 1);
	KUNIT_EXPECT_TRUE(test, unmap_pfn(bus, 4));
	KUNIT_EXPECT_EQ(test, bus->size, PAGE_SIZE);
}

static void entry_of_many_pages(struct kunit *test)
{
	struct bus *bus = fake_bus(test, NR << PAGE_SHIFT);

	put_words(bus, NR, NR, ORDER);
	KUNIT_EXPECT_EQ(test, map_pfn(bus, NR), BUS_START);
	KUNIT_EXPECT_EQ(test, bus->maps, 1);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), NR);

	/* Not in the middle of an entry. */
	KUNIT_EXPECT_EQ(test, map_pfn(bus, NR + 1), DMA_MAPPING_ERROR);
	KUNIT_EXPECT_EQ(test, map_range(bus, NR, NR - 1), -EINVAL);
	KUNIT_EXPECT_TRUE(test, unmap_pfn(bus, NR));
	KUNIT_EXPECT_EQ(test, bus->size, NR << PAGE_SHIFT);

	/* Nor where memory is in smaller blocks. */
	put_words(bus, NR, NR, ORDER - 1);
	KUNIT_EXPECT_EQ(test, map_pfn(bus, NR), DMA_MAPPING_ERROR);
	KUNIT_EXPECT_EQ(test, map_range(bus, NR, NR), -EINVAL);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), 0);
}

static void nothing_for_words_without_a_page(struct kunit *test)
{
	static const unsigned long words[] = {
		0, HMM_PFN_ERROR, HMM_PFN_WRITE, HMM_PFN_ERROR | HMM_PFN_WRITE,
	};
	struct bus *bus = fake_bus(test, PAGE_SIZE);
	int i;

	for (i = 0; i < ARRAY_SIZE(words); i++) {
		bus->map.pfn_list[i] = words[i];
		KUNIT_EXPECT_EQ(test, map_pfn(bus, i), DMA_MAPPING_ERROR);
	}
	KUNIT_EXPECT_EQ(test, map_range(bus, 0, ENTRIES), 0);
	KUNIT_EXPECT_EQ(test, bus->maps, 0);
	KUNIT_EXPECT_EQ(test, bus->map.pfn_list[1], HMM_PFN_ERROR);
}

static void index_out_of_range(struct kunit *test)
{
	struct bus *bus = fake_bus(test, PAGE_SIZE);

	put_words(bus, ENTRIES - 1, 1, 0);
	KUNIT_EXPECT_EQ(test, map_pfn(bus, ENTRIES), DMA_MAPPING_ERROR);
	KUNIT_EXPECT_EQ(test, map_pfn(bus, SIZE_MAX), DMA_MAPPING_ERROR);
	KUNIT_EXPECT_EQ(test, map_range(bus, ENTRIES, 1), -EINVAL);
	KUNIT_EXPECT_EQ(test, map_range(bus, 0, 0), -EINVAL);
	KUNIT_EXPECT_EQ(test, map_range(bus, ENTRIES - 1, 2), -EINVAL);
	KUNIT_EXPECT_EQ(test, map_range(bus, 1, SIZE_MAX), -EINVAL);
	KUNIT_EXPECT_FALSE(test, unmap_pfn(bus, ENTRIES));
	KUNIT_EXPECT_FALSE(test, unmap_pfn(bus, SIZE_MAX));
	KUNIT_EXPECT_EQ(test, bus->maps, 0);
}

/* --- Ranges -------------------------------------------------------------- */

static void large_folio_is_one_piece(struct kunit *test)
{
	struct bus *bus = fake_bus(test, PAGE_SIZE);
	size_t first, end, i;

	put_words(bus, 2, NR, ORDER);
	KUNIT_ASSERT_EQ(test, map_range(bus, 0, ENTRIES), 0);
	KUNIT_EXPECT_EQ(test, bus->maps, 1);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), NR);
	for (i = 0; i < NR; i++) {
		KUNIT_EXPECT_EQ(test, bus->map.dma_list[2 + i], BUS_START + i * PAGE_SIZE);
		KUNIT_EXPECT_EQ(test, map_pfn(bus, 2 + i), BUS_START + i * PAGE_SIZE);
	}

	first = 7;
	end = 8;
	hmm_dma_widen(&bus->map, &first, &end);
	KUNIT_EXPECT_EQ(test, first, 2);
	KUNIT_EXPECT_EQ(test, end, 2 + NR);
	/* No further, and not by what is beside it. */
	hmm_dma_widen(&bus->map, &first, &end);
	KUNIT_EXPECT_EQ(test, first, 2);
	KUNIT_EXPECT_EQ(test, end, 2 + NR);
	first = 0;
	end = 2;
	hmm_dma_widen(&bus->map, &first, &end);
	KUNIT_EXPECT_EQ(test, first, 0);
	KUNIT_EXPECT_EQ(test, end, 2);

	/* Any page of it takes all of it down, once. */
	KUNIT_EXPECT_TRUE(test, unmap_pfn(bus, 7));
	KUNIT_EXPECT_EQ(test, bus->live, 0);
	KUNIT_EXPECT_EQ(test, bus->size, NR << PAGE_SHIFT);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), 0);
	for (i = 0; i < ENTRIES; i++)
		KUNIT_EXPECT_FALSE(test, unmap_pfn(bus, i));
}

/* Two pieces side by side stay two, also after one has been mapped anew. */
static void neighbours_are_two_pieces(struct kunit *test)
{
	struct bus *bus = fake_bus(test, PAGE_SIZE);
	size_t first = 0, end = 1;

	put_words(bus, 0, NR, ORDER);
	put_words(bus, NR, NR, ORDER);
	KUNIT_ASSERT_EQ(test, map_range(bus, 0, 2 * NR), 0);
	KUNIT_EXPECT_EQ(test, bus->maps, 2);
	hmm_dma_widen(&bus->map, &first, &end);
	KUNIT_EXPECT_EQ(test, end, NR);

	KUNIT_EXPECT_TRUE(test, unmap_pfn(bus, NR - 1));
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), NR);
	KUNIT_EXPECT_NE(test, map_pfn(bus, NR - 1), DMA_MAPPING_ERROR);
	KUNIT_ASSERT_EQ(test, map_range(bus, 0, 2 * NR), 0);
	KUNIT_EXPECT_EQ(test, bus->live, 3);
	KUNIT_EXPECT_TRUE(test, unmap_pfn(bus, 0));
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), NR + 1);
}

static void part_of_a_folio_is_a_piece(struct kunit *test)
{
	struct bus *bus = fake_bus(test, PAGE_SIZE);

	put_words(bus, 0, NR, ORDER);
	KUNIT_ASSERT_EQ(test, map_range(bus, 3, 5), 0);
	KUNIT_EXPECT_EQ(test, bus->maps, 1);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), 5);
	/* The rest of it, on both sides. */
	KUNIT_ASSERT_EQ(test, map_range(bus, 0, NR), 0);
	KUNIT_EXPECT_EQ(test, bus->maps, 3);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), NR);
}

static void error_halfway_takes_back_what_is_new(struct kunit *test)
{
	struct bus *bus = fake_bus(test, PAGE_SIZE);
	dma_addr_t addr;
	size_t i;

	for (i = 0; i < ENTRIES; i += NR)
		put_words(bus, i, NR, i < 2 * NR ? ORDER : 0);
	addr = map_pfn(bus, 40);
	KUNIT_ASSERT_EQ(test, addr, BUS_START);

	/* Two large ones and, of the small ones, up to the one before the last. */
	bus->left = 2 + 2 * NR - 2;
	bus->map.pfn_list[ENTRIES - 1] |= HMM_PFN_DMA_MAPPED;
	KUNIT_EXPECT_EQ(test, map_range(bus, 0, ENTRIES), -ENOMEM);
	KUNIT_EXPECT_EQ(test, bus->map.pfn_list[ENTRIES - 1] & HMM_PFN_DMA_MAPPED, 0UL);
	KUNIT_EXPECT_EQ(test, bus->live, 1);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), 1);
	KUNIT_EXPECT_EQ(test, map_pfn(bus, 40), addr);
	KUNIT_EXPECT_EQ(test, bus->size, (size_t)(ENTRIES - 2) << PAGE_SHIFT);

	bus->left = INT_MAX;
	KUNIT_EXPECT_EQ(test, map_range(bus, 0, ENTRIES), 0);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), ENTRIES);
	KUNIT_EXPECT_EQ(test, bus->live, 2 + 2 * NR);

	/* What an earlier call has mapped is no later one's to take back. */
	KUNIT_EXPECT_TRUE(test, unmap_pfn(bus, ENTRIES - 1));
	bus->left = 0;
	KUNIT_EXPECT_EQ(test, map_range(bus, 0, ENTRIES), -ENOMEM);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), ENTRIES - 1);
}

static void range_comes_down_with_all_its_pieces(struct kunit *test)
{
	struct bus *bus = fake_bus(test, PAGE_SIZE);

	put_words(bus, 0, NR, ORDER);
	put_words(bus, NR, NR, 0);
	KUNIT_ASSERT_EQ(test, map_range(bus, 0, 2 * NR), 0);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), 2 * NR);
	/* The folio, from its last page on, and two pages. */
	KUNIT_EXPECT_EQ(test, hmm_dma_unmap_range(bus->dev, &bus->map, NR - 1, 3), 3);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), NR - 2);
	KUNIT_EXPECT_FALSE(test, hmm_dma_is_mapped(&bus->map, 0));
	KUNIT_EXPECT_EQ(test, hmm_dma_unmap_range(bus->dev, &bus->map, 0, NR + 2), 0);
	/* Up to the end, and not behind it. */
	KUNIT_EXPECT_EQ(test, hmm_dma_unmap_range(bus->dev, &bus->map, 2 * NR - 1, -1UL), 1);
	KUNIT_EXPECT_EQ(test, hmm_dma_unmap_range(bus->dev, &bus->map, ENTRIES, 1), 0);
	KUNIT_EXPECT_EQ(test, hmm_dma_unmap_range(bus->dev, &bus->map, 0, 0), 0);
	KUNIT_EXPECT_EQ(test, hmm_dma_unmap_range(bus->dev, &bus->map, 0, ENTRIES), NR - 3);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), 0);
}

/* Pieces from @first to @end, which are boundaries of pieces. */
static size_t nr_pieces(const struct bus *bus, size_t first, size_t end)
{
	size_t i, n = 0;

	for (i = first; i < end; i++)
		n += hmm_dma_is_mapped(&bus->map, i) &&
		     !(bus->map.state.how[i] & HMM_DMA_JOINED);
	return n;
}

static void check_unmap(struct bus *bus, size_t idx, size_t nr)
{
	size_t i, wrong = 0, first = idx, end = idx + nr, pieces;

	KUNIT_ASSERT_EQ(bus->test, map_range(bus, 0, ENTRIES), 0);
	hmm_dma_widen(&bus->map, &first, &end);
	pieces = nr_pieces(bus, first, end);
	KUNIT_EXPECT_EQ(bus->test, hmm_dma_unmap_range(bus->dev, &bus->map, idx, nr), pieces);
	for (i = 0; i < ENTRIES; i++) {
		unsigned long word = bus->map.pfn_list[i];
		bool stays = word && (i < first || i >= end);

		wrong += hmm_dma_is_mapped(&bus->map, i) != stays;
		wrong += !!(word & HMM_PFN_DMA_MAPPED) != stays;
	}
	KUNIT_EXPECT_EQ(bus->test, wrong, 0);
	KUNIT_EXPECT_EQ(bus->test, bus->live, (int)nr_pieces(bus, 0, ENTRIES));
}

/* Pages alone, more and fewer than eight; a folio; the zero page; and holes. */
static void any_range_comes_down_in_whole_pieces(struct kunit *test)
{
	struct bus *bus = fake_bus(test, PAGE_SIZE);
	size_t idx, nr;

	put_words(bus, 0, NR, 0);
	put_words(bus, NR, NR, ORDER);
	put_words(bus, 2 * NR, NR, 0);
	bus->map.pfn_list[2 * NR + 3] = word_of(page_to_pfn(ZERO_PAGE(0)), 0);
	bus->map.pfn_list[2 * NR + 6] = 0;

	for (idx = 0; idx < ENTRIES; idx++)
		for (nr = 1; nr <= ENTRIES - idx; nr++)
			check_unmap(bus, idx, nr);
}

static void free_unmaps_the_rest(struct kunit *test)
{
	struct bus *bus = fake_bus(test, PAGE_SIZE);

	put_words(bus, 0, NR, ORDER);
	put_words(bus, ENTRIES - 3, 3, 0);
	KUNIT_ASSERT_EQ(test, map_range(bus, 0, ENTRIES), 0);
	KUNIT_EXPECT_EQ(test, bus->live, 4);
	hmm_dma_map_free(bus->dev, &bus->map);
	KUNIT_EXPECT_EQ(test, bus->live, 0);
	KUNIT_EXPECT_EQ(test, bus->size, (NR + 3) << PAGE_SHIFT);
	KUNIT_EXPECT_NULL(test, bus->map.pfn_list);
}

/* --- What cannot be mapped ----------------------------------------------- */

static void alloc_refuses(struct kunit *test)
{
	struct bus *bus = real_bus(test);
	struct device *dev = bus->dev;
	struct hmm_dma_map map;
	u64 *mask = dev->dma_mask;

	KUNIT_EXPECT_EQ(test, hmm_dma_map_alloc(NULL, &map, 8, PAGE_SIZE), -EINVAL);
	KUNIT_EXPECT_EQ(test, hmm_dma_map_alloc(dev, &map, 0, PAGE_SIZE), -EINVAL);
	KUNIT_EXPECT_EQ(test, hmm_dma_map_alloc(dev, &map, 8, 0), -EINVAL);
	KUNIT_EXPECT_EQ(test, hmm_dma_map_alloc(dev, &map, 8, PAGE_SIZE / 2), -EINVAL);
	KUNIT_EXPECT_EQ(test, hmm_dma_map_alloc(dev, &map, 6, 3 * PAGE_SIZE), -EINVAL);
	KUNIT_EXPECT_EQ(test, hmm_dma_map_alloc(dev, &map, 6, 4 * PAGE_SIZE), -EINVAL);
	KUNIT_EXPECT_EQ(test, hmm_dma_map_alloc(dev, &map, SIZE_MAX, PAGE_SIZE), -ENOMEM);
	KUNIT_EXPECT_EQ(test, hmm_dma_map_alloc(dev, &map, 1UL << 50, PAGE_SIZE), -ENOMEM);
	hmm_dma_map_free(dev, &map);

	dev->dma_mask = NULL;
	KUNIT_EXPECT_EQ(test, hmm_dma_map_alloc(dev, &map, 8, PAGE_SIZE), -EINVAL);
	dev->dma_mask = mask;
	KUNIT_EXPECT_EQ(test, hmm_dma_map_alloc(dev, &map, 8, PAGE_SIZE), 0);
	hmm_dma_map_free(dev, &map);
}

/* Without an IOMMU an address is the memory's own, and nothing is copied. */
static void real_address_leads_to_the_page(struct kunit *test)
{
	struct bus *bus = real_bus(test);
	size_t i;

	put_words(bus, 0, NR, ORDER);
	put_words(bus, NR, NR, 0);
	KUNIT_ASSERT_EQ(test, map_range(bus, 0, 2 * NR), 0);
	for (i = 0; i < 2 * NR; i++) {
		KUNIT_EXPECT_EQ(test, dma_to_phys(bus->dev, bus->map.dma_list[i]),
				page_to_phys(bus->page + i % NR));
		KUNIT_EXPECT_EQ(test, dma_to_phys(bus->dev, bus->map.dma_list[i]),
				hmm_pfn_to_phys(bus->map.pfn_list[i]));
	}
	for (i = 0; i < 2 * NR; i++)
		unmap_pfn(bus, i);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), 0);
}

/* The same where no DMA API is asked: see is_arithmetic(). */
static void arithmetic_gives_the_same_address(struct kunit *test)
{
	struct bus *bus = real_bus(test);
	dma_addr_t addr[NR + 1];
	size_t i;

	put_words(bus, 0, NR, ORDER);
	put_words(bus, NR, 1, 0);
	KUNIT_ASSERT_EQ(test, map_range(bus, 0, NR + 1), 0);
	memcpy(addr, bus->map.dma_list, sizeof(addr));
	hmm_dma_unmap_range(bus->dev, &bus->map, 0, ENTRIES);
	memset(bus->map.dma_list, 0, sizeof(addr));

	KUNIT_ASSERT_TRUE(test, bus->map.state.direct);
	bus->map.state.arithmetic = true;
	KUNIT_ASSERT_EQ(test, map_range(bus, 0, NR + 1), 0);
	for (i = 0; i <= NR; i++)
		KUNIT_EXPECT_EQ(test, bus->map.dma_list[i], addr[i]);
	KUNIT_EXPECT_EQ(test, hmm_dma_unmap_range(bus->dev, &bus->map, 0, ENTRIES), 2);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), 0);
}

/*
 * Whatever the DMA API would do about it, bounce or WARN: a page that the device
 * does not reach is refused, and the pages before it are taken back.
 */
static void page_out_of_reach_is_refused(struct kunit *test)
{
	struct bus *bus = real_bus(test);
	u64 *mask = bus->dev->dma_mask, all = *mask;

	put_words(bus, 0, NR, 0);
	*mask = phys_to_dma(bus->dev, page_to_phys(bus->page + 4)) - 1;
	KUNIT_EXPECT_EQ(test, map_range(bus, 0, NR), -EOPNOTSUPP);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), 0);
	KUNIT_EXPECT_EQ(test, map_range(bus, 0, 4), 0);
	KUNIT_EXPECT_NE(test, map_pfn(bus, 3), DMA_MAPPING_ERROR);
	KUNIT_EXPECT_EQ(test, map_pfn(bus, 4), DMA_MAPPING_ERROR);

	/* The last byte counts. */
	put_words(bus, NR, NR, ORDER);
	KUNIT_EXPECT_EQ(test, map_range(bus, NR, NR), -EOPNOTSUPP);
	*mask = phys_to_dma(bus->dev, page_to_phys(bus->page)) + (NR << PAGE_SHIFT) - 1;
	KUNIT_EXPECT_EQ(test, map_range(bus, NR, NR), 0);
	*mask = all;
}

/* All its DMA goes through bounce buffers: no map, and nothing to try. */
static void device_that_always_bounces_is_refused(struct kunit *test)
{
#ifdef CONFIG_SWIOTLB
	struct io_tlb_mem mem = { .force_bounce = true };
	struct bus *bus = real_bus(test);
	struct io_tlb_mem *old = bus->dev->dma_io_tlb_mem;
	struct hmm_dma_map map;

	bus->dev->dma_io_tlb_mem = &mem;
	KUNIT_EXPECT_EQ(test, hmm_dma_map_alloc(bus->dev, &map, 8, PAGE_SIZE), -EOPNOTSUPP);
	bus->dev->dma_io_tlb_mem = old;
#endif
}

static vm_fault_t bus_to_ram(struct vm_fault *vmf)
{
	return VM_FAULT_SIGBUS;
}

static void bus_page_free(struct page *page)
{
}

static const struct dev_pagemap_ops bus_pgmap_ops = {
	.page_free = bus_page_free,
	.migrate_to_ram = bus_to_ram,
};

static void bus_free_pgmap(void *data)
{
	struct bus *bus = data;

	memunmap_pages(&bus->pgmap);
}

static void bus_free_res(void *data)
{
	struct bus *bus = data;

	release_resource(&bus->res);
}

/* Pages of a device where no memory is; their first one. */
static unsigned long add_device_pages(struct bus *bus, enum memory_type type)
{
	struct kunit *test = bus->test;
	u64 size = SUBSECTION_SIZE;
	void *addr;

	bus->res.name = "hmm_dma_test";
	KUNIT_ASSERT_EQ(test, 0,
			allocate_resource(&iomem_resource, &bus->res, size,
					  round_up(PFN_PHYS(max_pfn), SZ_1G),
					  mhp_get_pluggable_range(true).end,
					  size, NULL, NULL));
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, bus_free_res, bus));

	bus->pgmap.type = type;
	bus->pgmap.ops = &bus_pgmap_ops;
	bus->pgmap.owner = bus;
	bus->pgmap.nr_range = 1;
	bus->pgmap.range.start = bus->res.start;
	bus->pgmap.range.end = bus->res.end;
	addr = memremap_pages(&bus->pgmap, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR(addr));
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, bus_free_pgmap, bus));
	return PHYS_PFN(bus->res.start);
}

static void private_page_is_refused(struct kunit *test)
{
	struct bus *bus = fake_bus(test, PAGE_SIZE);
	unsigned long pfn = add_device_pages(bus, MEMORY_DEVICE_PRIVATE);

	put_words(bus, 0, 3, 0);
	bus->map.pfn_list[2] = word_of(pfn, 0);
	KUNIT_EXPECT_EQ(test, map_range(bus, 0, 3), -ENXIO);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), 0);
	KUNIT_EXPECT_EQ(test, bus->live, 0);
	KUNIT_EXPECT_EQ(test, map_pfn(bus, 2), DMA_MAPPING_ERROR);
	KUNIT_EXPECT_EQ(test, map_range(bus, 0, 2), 0);
}

#ifdef CONFIG_PCI_P2PDMA
static void peer_has_an_address_of_the_bus(struct kunit *test)
{
	struct bus *bus = fake_bus(test, PAGE_SIZE);
	unsigned long pfn = add_device_pages(bus, MEMORY_DEVICE_PCI_P2PDMA);

	bus->way = PCI_P2PDMA_MAP_BUS_ADDR;
	bus->map.pfn_list[1] = word_of(pfn, 0);
	KUNIT_EXPECT_EQ(test, map_pfn(bus, 1), PFN_PHYS(pfn) + BUS_OFFSET);
	KUNIT_EXPECT_EQ(test, bus->map.pfn_list[1] & KEPT,
			HMM_PFN_DMA_MAPPED | HMM_PFN_P2PDMA_BUS);
	/* It was not mapped, and is not unmapped. */
	KUNIT_EXPECT_TRUE(test, unmap_pfn(bus, 1));
	KUNIT_EXPECT_EQ(test, bus->maps, 0);
	KUNIT_EXPECT_EQ(test, bus->live, 0);
	KUNIT_EXPECT_EQ(test, bus->map.pfn_list[1] & KEPT, 0);
}

static void peer_by_the_host_bridge_is_mapped(struct kunit *test)
{
	struct bus *bus = fake_bus(test, PAGE_SIZE);
	unsigned long pfn = add_device_pages(bus, MEMORY_DEVICE_PCI_P2PDMA);

	bus->way = PCI_P2PDMA_MAP_THRU_HOST_BRIDGE;
	bus->map.pfn_list[1] = word_of(pfn, 0);
	KUNIT_EXPECT_EQ(test, map_pfn(bus, 1), BUS_START);
	KUNIT_EXPECT_EQ(test, bus->map.pfn_list[1] & KEPT,
			HMM_PFN_DMA_MAPPED | HMM_PFN_P2PDMA);
	KUNIT_EXPECT_TRUE(test, unmap_pfn(bus, 1));
	KUNIT_EXPECT_EQ(test, bus->live, 0);
	KUNIT_EXPECT_EQ(test, bus->map.pfn_list[1] & KEPT, 0);
}

static void peer_that_is_not_reached_is_refused(struct kunit *test)
{
	struct bus *bus = fake_bus(test, PAGE_SIZE);
	unsigned long pfn = add_device_pages(bus, MEMORY_DEVICE_PCI_P2PDMA);

	bus->way = PCI_P2PDMA_MAP_NOT_SUPPORTED;
	put_words(bus, 0, 2, 0);
	bus->map.pfn_list[1] = word_of(pfn, 0);
	KUNIT_EXPECT_EQ(test, map_range(bus, 0, 2), -EREMOTEIO);
	KUNIT_EXPECT_EQ(test, nr_mapped(bus), 0);
	KUNIT_EXPECT_EQ(test, bus->live, 0);
}
#endif /* CONFIG_PCI_P2PDMA */

static struct kunit_case hmm_dma_cases[] = {
	KUNIT_CASE_PARAM(piece_follows_table, piece_gen_params),
	KUNIT_CASE(page_has_an_address_until_unmapped),
	KUNIT_CASE(mapped_twice_is_mapped_once),
	KUNIT_CASE(mark_that_came_back_is_no_address),
	KUNIT_CASE(mark_that_got_lost_is_an_address),
	KUNIT_CASE(zero_page_is_for_reading),
	KUNIT_CASE(one_entry_is_mapped_alone),
	KUNIT_CASE(entry_of_many_pages),
	KUNIT_CASE(nothing_for_words_without_a_page),
	KUNIT_CASE(index_out_of_range),
	KUNIT_CASE(large_folio_is_one_piece),
	KUNIT_CASE(neighbours_are_two_pieces),
	KUNIT_CASE(part_of_a_folio_is_a_piece),
	KUNIT_CASE(error_halfway_takes_back_what_is_new),
	KUNIT_CASE(range_comes_down_with_all_its_pieces),
	KUNIT_CASE(any_range_comes_down_in_whole_pieces),
	KUNIT_CASE(free_unmaps_the_rest),
	KUNIT_CASE(alloc_refuses),
	KUNIT_CASE(real_address_leads_to_the_page),
	KUNIT_CASE(arithmetic_gives_the_same_address),
	KUNIT_CASE(page_out_of_reach_is_refused),
	KUNIT_CASE(device_that_always_bounces_is_refused),
	KUNIT_CASE(private_page_is_refused),
#ifdef CONFIG_PCI_P2PDMA
	KUNIT_CASE(peer_has_an_address_of_the_bus),
	KUNIT_CASE(peer_by_the_host_bridge_is_mapped),
	KUNIT_CASE(peer_that_is_not_reached_is_refused),
#endif
	{ }
};

static struct kunit_suite hmm_dma_suite = {
	.name = "hmm_dma",
	.test_cases = hmm_dma_cases,
};

kunit_test_suite(hmm_dma_suite);

MODULE_DESCRIPTION("Tests of DMA addresses for a mirror");
MODULE_LICENSE("GPL");
