// SPDX-License-Identifier: GPL-2.0
/*
 * Page maps: what is refused, who finds what when, and the life of the pages.
 *
 * The memory is not there, only room for it in the address space: nobody here
 * touches what a struct page describes. The one test that has to, because its
 * struct pages are in it, uses memory that the boot line keeps from the kernel:
 *
 *	memmap=128M$0x100000000 memremap_test.spare=0x100000000
 */
#include <kunit/device.h>
#include <kunit/test.h>
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/device.h>
#include <linux/ioport.h>
#include <linux/kthread.h>
#include <linux/memory_hotplug.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/pagemap.h>
#include <linux/slab.h>
#include <linux/swap.h>
#include <linux/wait_bit.h>

#include "../internal.h"

#define UNIT		SUBSECTION_SIZE		/* what ranges are made of */
#define UNIT_PAGES	PAGES_PER_SUBSECTION
#define ROOM_UNITS	16
#define MAX_RANGES	3
#define MUST_END	(10 * HZ)
#define MUST_NOT_END	(HZ / 5)

static unsigned long spare;
module_param(spare, ulong, 0);
MODULE_PARM_DESC(spare, "address of 128 MiB of memory that nobody uses, at a multiple of that");

/*
 * struct room - addresses to map, and what happens there
 * @again: page_free gives the page out again
 * @freed: how often page_free was called
 * @freed_count: page count that it saw last
 * @ended: memunmap_pages() in another thread has come back
 */
struct room {
	struct kunit *test;
	struct resource res;
	bool again;
	int freed;
	int freed_count;
	struct completion ended;
};

/* struct dev_pagemap ends in its ranges: here is place for some. */
struct map {
	struct room *room;
	struct dev_pagemap pgmap;
	struct range more[MAX_RANGES - 1];
};

static void map_page_free(struct page *page)
{
	struct map *map = container_of(page->pgmap, struct map, pgmap);

	map->room->freed++;
	map->room->freed_count = page_count(page);
	if (map->room->again) {
		map->room->again = false;
		zone_device_page_init(page);
	}
}

static vm_fault_t map_to_ram(struct vm_fault *vmf)
{
	return VM_FAULT_SIGBUS;
}

static const struct dev_pagemap_ops all_ops = {
	.page_free = map_page_free,
	.migrate_to_ram = map_to_ram,
};

static const struct dev_pagemap_ops no_page_free = {
	.migrate_to_ram = map_to_ram,
};

static const struct dev_pagemap_ops no_to_ram = {
	.page_free = map_page_free,
};

static u64 unit_addr(struct room *room, int unit)
{
	return room->res.start + unit * UNIT;
}

static unsigned long unit_pfn(struct room *room, int unit)
{
	return PHYS_PFN(unit_addr(room, unit));
}

/* Page @i of the page map, which may become the first of a folio. */
static struct folio *folio_at(struct map *map, unsigned long i)
{
	return (struct folio *)pfn_to_page(PHYS_PFN(map->pgmap.range.start) + i);
}

static void set_range(struct room *room, struct range *range, int unit, int nr)
{
	range->start = unit_addr(room, unit);
	range->end = unit_addr(room, unit + nr) - 1;
}

/* A page map that all types accept, of @nr units. */
static struct map *new_map(struct room *room, enum memory_type type, int unit,
			   int nr)
{
	struct map *map = kunit_kzalloc(room->test, sizeof(*map), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(room->test, map);
	map->room = room;
	map->pgmap.type = type;
	map->pgmap.ops = &all_ops;
	map->pgmap.owner = room;
	map->pgmap.nr_range = 1;
	set_range(room, &map->pgmap.range, unit, nr);
	return map;
}

static int add_map(struct map *map)
{
	void *addr = memremap_pages(&map->pgmap, 0);

	return PTR_ERR_OR_ZERO(addr);
}

static struct map *new_mapped(struct room *room, enum memory_type type,
			      int unit, int nr)
{
	struct map *map = new_map(room, type, unit, nr);

	KUNIT_ASSERT_EQ(room->test, add_map(map), 0);
	return map;
}

/* Is @pfn in this page map (NULL: in none)? */
static bool found_in(unsigned long pfn, struct map *map)
{
	struct dev_pagemap *pgmap = get_dev_pagemap(pfn, NULL);

	put_dev_pagemap(pgmap);
	return pgmap == (map ? &map->pgmap : NULL);
}

static int unmap_thread(void *arg)
{
	struct map *map = arg;

	memunmap_pages(&map->pgmap);
	complete(&map->room->ended);
	return 0;
}

/* A missing put would make memunmap_pages() wait forever, another thread's. */
static void begin_unmap(struct map *map)
{
	struct task_struct *task;

	init_completion(&map->room->ended);
	task = kthread_run(unmap_thread, map, "memunmap");
	KUNIT_ASSERT_FALSE(map->room->test, IS_ERR(task));
}

static bool unmap_ends(struct room *room)
{
	return wait_for_completion_timeout(&room->ended, MUST_END);
}

static bool unmap_waits(struct room *room)
{
	return !wait_for_completion_timeout(&room->ended, MUST_NOT_END);
}

static void unmap(struct map *map)
{
	begin_unmap(map);
	KUNIT_ASSERT_TRUE_MSG(map->room->test, unmap_ends(map->room),
			      "a reference of the page map is left");
}

static int room_init(struct kunit *test)
{
	struct room *room = kunit_kzalloc(test, sizeof(*room), GFP_KERNEL);
	u64 size = ROOM_UNITS * UNIT;

	KUNIT_ASSERT_NOT_NULL(test, room);
	room->test = test;
	room->res.name = "memremap_test";
	/*
	 * Above the RAM, and below what needs more page tables than there are.
	 */
	KUNIT_ASSERT_EQ(test, allocate_resource(&iomem_resource, &room->res, size,
						round_up(PFN_PHYS(max_pfn), SZ_1G),
						mhp_get_pluggable_range(true).end,
						size, NULL, NULL), 0);
	test->priv = room;
	return 0;
}

static void room_exit(struct kunit *test)
{
	struct room *room = test->priv;

	release_resource(&room->res);
}

/* --- What is refused ------------------------------------------------------ */

/* The System RAM that this kernel's own data are in. */
static void over_system_ram(struct dev_pagemap *pgmap)
{
	pgmap->range.start = round_down(__pa(pgmap->owner), UNIT);
	pgmap->range.end = pgmap->range.start + UNIT - 1;
}

static void past_pluggable(struct dev_pagemap *pgmap)
{
	bool mapped = pgmap->type != MEMORY_DEVICE_PRIVATE;

	pgmap->range.start = mhp_get_pluggable_range(mapped).end + 1;
	pgmap->range.end = pgmap->range.start + UNIT - 1;
}

static void no_ranges(struct dev_pagemap *pgmap)
{
	pgmap->nr_range = 0;
}

static void minus_one_range(struct dev_pagemap *pgmap)
{
	pgmap->nr_range = -1;
}

static void type_zero(struct dev_pagemap *pgmap)
{
	pgmap->type = 0;
}

static void type_six(struct dev_pagemap *pgmap)
{
	pgmap->type = MEMORY_DEVICE_PCI_P2PDMA + 1;
}

static void type_negative(struct dev_pagemap *pgmap)
{
	pgmap->type = (enum memory_type)-1;
}

static void without_owner(struct dev_pagemap *pgmap)
{
	pgmap->owner = NULL;
}

static void without_ops(struct dev_pagemap *pgmap)
{
	pgmap->ops = NULL;
}

static void without_page_free(struct dev_pagemap *pgmap)
{
	pgmap->ops = &no_page_free;
}

static void without_to_ram(struct dev_pagemap *pgmap)
{
	pgmap->ops = &no_to_ram;
}

static void ends_before_start(struct dev_pagemap *pgmap)
{
	swap(pgmap->range.start, pgmap->range.end);
}

static void starts_unaligned(struct dev_pagemap *pgmap)
{
	pgmap->range.start += PAGE_SIZE;
}

static void ends_unaligned(struct dev_pagemap *pgmap)
{
	pgmap->range.end -= PAGE_SIZE;
}

static void ends_one_byte_late(struct dev_pagemap *pgmap)
{
	pgmap->range.end++;
}

static void compound_too_large(struct dev_pagemap *pgmap)
{
	pgmap->vmemmap_shift = BITS_PER_LONG - 1;
}

static void half_a_compound(struct dev_pagemap *pgmap)
{
	pgmap->vmemmap_shift = ilog2(UNIT_PAGES) + 1;
}

static void second_is_the_first(struct dev_pagemap *pgmap)
{
	pgmap->nr_range = 2;
	pgmap->ranges[1] = pgmap->ranges[0];
}

static void second_is_unaligned(struct dev_pagemap *pgmap)
{
	pgmap->nr_range = 2;
	pgmap->ranges[1].start = pgmap->ranges[0].end + 1;
	pgmap->ranges[1].end = pgmap->ranges[1].start + PAGE_SIZE - 1;
}

static void set_altmap(struct dev_pagemap *pgmap, unsigned long base,
		       unsigned long reserve, unsigned long free)
{
	struct vmem_altmap altmap = {
		.base_pfn = base,
		.end_pfn = PHYS_PFN(pgmap->range.end),
		.reserve = reserve,
		.free = free,
	};

	memcpy(&pgmap->altmap, &altmap, sizeof(altmap));
	pgmap->flags |= PGMAP_ALTMAP_VALID;
}

static void altmap_elsewhere(struct dev_pagemap *pgmap)
{
	set_altmap(pgmap, PHYS_PFN(pgmap->range.start) + 1, 0, 8);
}

static void altmap_takes_all(struct dev_pagemap *pgmap)
{
	set_altmap(pgmap, PHYS_PFN(pgmap->range.start), 0, UNIT_PAGES);
}

static void altmap_takes_all_in_two(struct dev_pagemap *pgmap)
{
	set_altmap(pgmap, PHYS_PFN(pgmap->range.start), 8, UNIT_PAGES - 8);
}

static void altmap_reserves_more(struct dev_pagemap *pgmap)
{
	set_altmap(pgmap, PHYS_PFN(pgmap->range.start), UNIT_PAGES + 1, 8);
}

static void altmap_wraps(struct dev_pagemap *pgmap)
{
	set_altmap(pgmap, PHYS_PFN(pgmap->range.start), 8, ULONG_MAX - 4);
}

static void compound_with_altmap_not_whole(struct dev_pagemap *pgmap)
{
	pgmap->vmemmap_shift = 4;
	set_altmap(pgmap, PHYS_PFN(pgmap->range.start), 0, 8);
}

static void altmap_of_private(struct dev_pagemap *pgmap)
{
	set_altmap(pgmap, PHYS_PFN(pgmap->range.start), 0, 8);
}

static void altmap_of_two_ranges(struct dev_pagemap *pgmap)
{
	set_altmap(pgmap, PHYS_PFN(pgmap->range.start), 0, 8);
	pgmap->nr_range = 2;
	pgmap->ranges[1].start = pgmap->ranges[0].end + 1;
	pgmap->ranges[1].end = pgmap->ranges[0].end + UNIT;
}

static const struct bad_map {
	const char *name;
	void (*spoil)(struct dev_pagemap *pgmap);
	int err;
	enum memory_type type;		/* 0: private */
} bad_maps[] = {
	{ "no ranges", no_ranges, -EINVAL },
	{ "minus one range", minus_one_range, -EINVAL },
	{ "no type", type_zero, -EINVAL },
	{ "a type above the last", type_six, -EINVAL },
	{ "a negative type", type_negative, -EINVAL },
	{ "private: no owner", without_owner, -EINVAL },
	{ "private: no callbacks", without_ops, -EINVAL },
	{ "private: no page_free", without_page_free, -EINVAL },
	{ "private: no migrate_to_ram", without_to_ram, -EINVAL },
	{ "coherent: no owner", without_owner, -EINVAL, MEMORY_DEVICE_COHERENT },
	{ "coherent: no callbacks", without_ops, -EINVAL, MEMORY_DEVICE_COHERENT },
	{ "coherent: no page_free", without_page_free, -EINVAL, MEMORY_DEVICE_COHERENT },
	{ "ends before it starts", ends_before_start, -EINVAL },
	{ "starts unaligned", starts_unaligned, -EINVAL },
	{ "ends unaligned", ends_unaligned, -EINVAL },
	{ "ends one byte late", ends_one_byte_late, -EINVAL },
	{ "compound page too large", compound_too_large, -EINVAL, MEMORY_DEVICE_GENERIC },
	{ "half a compound page", half_a_compound, -EINVAL, MEMORY_DEVICE_GENERIC },
	{ "past what can be plugged", past_pluggable, -ERANGE },
	{ "past what can be mapped", past_pluggable, -ERANGE, MEMORY_DEVICE_GENERIC },
	{ "System RAM", over_system_ram, -ENXIO },
	{ "System RAM, fsdax", over_system_ram, -ENXIO, MEMORY_DEVICE_FS_DAX },
	{ "the same range twice", second_is_the_first, -EEXIST },
	{ "second range unaligned", second_is_unaligned, -EINVAL },
	{ "altmap elsewhere", altmap_elsewhere, -EINVAL, MEMORY_DEVICE_FS_DAX },
	{ "altmap takes all", altmap_takes_all, -EINVAL, MEMORY_DEVICE_FS_DAX },
	{ "altmap takes all in two", altmap_takes_all_in_two, -EINVAL, MEMORY_DEVICE_FS_DAX },
	{ "altmap reserves more", altmap_reserves_more, -EINVAL, MEMORY_DEVICE_FS_DAX },
	{ "altmap wraps", altmap_wraps, -EINVAL, MEMORY_DEVICE_FS_DAX },
	{ "half a compound page behind the altmap", compound_with_altmap_not_whole, -EINVAL,
	  MEMORY_DEVICE_FS_DAX },
	{ "altmap of private memory", altmap_of_private, -EINVAL },
	{ "altmap of two ranges", altmap_of_two_ranges, -EINVAL, MEMORY_DEVICE_FS_DAX },
};

KUNIT_ARRAY_PARAM_DESC(bad_maps, bad_maps, name);

/* The same map without the one mistake goes in: that it was the mistake. */
static void refuses(struct kunit *test)
{
	const struct bad_map *bad = test->param_value;
	enum memory_type type = bad->type ?: MEMORY_DEVICE_PRIVATE;
	struct room *room = test->priv;
	struct map *map = new_map(room, type, 0, 1);
	int nr;

	bad->spoil(&map->pgmap);
	nr = map->pgmap.nr_range;
	KUNIT_EXPECT_EQ(test, add_map(map), bad->err);
	KUNIT_EXPECT_EQ(test, map->pgmap.nr_range, nr);
	KUNIT_EXPECT_TRUE(test, found_in(unit_pfn(room, 0), NULL));
	KUNIT_EXPECT_NULL(test, pfn_to_online_page(unit_pfn(room, 0)));

	unmap(new_mapped(room, type, 0, 1));
}

static const struct overlap {
	const char *name;
	int unit, nr;
} overlaps[] = {
	{ "the same", 4, 4 },
	{ "inside", 5, 1 },
	{ "around", 2, 8 },
	{ "head", 2, 3 },
	{ "tail", 7, 3 },
};

KUNIT_ARRAY_PARAM_DESC(overlaps, overlaps, name);

static void refuses_overlap(struct kunit *test)
{
	const struct overlap *o = test->param_value;
	struct room *room = test->priv;
	struct map *first = new_mapped(room, MEMORY_DEVICE_PRIVATE, 4, 4);
	struct map *second = new_map(room, MEMORY_DEVICE_PRIVATE, o->unit, o->nr);
	int unit;

	KUNIT_EXPECT_EQ(test, add_map(second), -EEXIST);
	for (unit = 0; unit < ROOM_UNITS; unit++)
		KUNIT_EXPECT_TRUE(test, found_in(unit_pfn(room, unit),
						 unit / 4 == 1 ? first : NULL));
	unmap(first);
	KUNIT_EXPECT_EQ(test, add_map(second), 0);
	unmap(second);
}

/* --- Ranges --------------------------------------------------------------- */

/* Units 1, 4-5 and 9. */
static struct map *new_map_of_three(struct room *room, enum memory_type type)
{
	struct map *map = new_map(room, type, 1, 1);

	map->pgmap.nr_range = 3;
	set_range(room, &map->pgmap.ranges[1], 4, 2);
	set_range(room, &map->pgmap.ranges[2], 9, 1);
	return map;
}

static bool unit_of_three(int unit)
{
	return unit == 1 || unit == 4 || unit == 5 || unit == 9;
}

static void expect_three(struct room *room, struct map *map, bool mapped)
{
	struct kunit *test = room->test;
	int unit;

	for (unit = 0; unit < ROOM_UNITS; unit++) {
		unsigned long first = unit_pfn(room, unit);
		unsigned long last = first + UNIT_PAGES - 1;
		bool in = unit_of_three(unit);

		KUNIT_EXPECT_TRUE(test, found_in(first, mapped && in ? map : NULL));
		KUNIT_EXPECT_TRUE(test, found_in(last, mapped && in ? map : NULL));
		KUNIT_EXPECT_EQ(test, pgmap_pfn_valid(&map->pgmap, first), in);
		KUNIT_EXPECT_EQ(test, pgmap_pfn_valid(&map->pgmap, last), in);
		KUNIT_EXPECT_EQ(test, pfn_valid(first), mapped && in);
	}
}

static void ranges_come_and_go_together(struct kunit *test)
{
	struct room *room = test->priv;
	struct map *map = new_map_of_three(room, MEMORY_DEVICE_GENERIC);

	KUNIT_ASSERT_EQ(test, add_map(map), 0);
	KUNIT_EXPECT_EQ(test, map->pgmap.nr_range, 3);
	expect_three(room, map, true);
	unmap(map);
	KUNIT_EXPECT_EQ(test, map->pgmap.nr_range, 3);
	expect_three(room, map, false);
}

/* The last range is taken: the ones before are given back. */
static void no_range_when_one_is_taken(struct kunit *test)
{
	struct room *room = test->priv;
	struct map *other = new_mapped(room, MEMORY_DEVICE_PRIVATE, 9, 2);
	struct map *map = new_map_of_three(room, MEMORY_DEVICE_PRIVATE);

	KUNIT_EXPECT_EQ(test, add_map(map), -EEXIST);
	KUNIT_EXPECT_EQ(test, map->pgmap.nr_range, 3);
	KUNIT_EXPECT_TRUE(test, found_in(unit_pfn(room, 1), NULL));
	KUNIT_EXPECT_TRUE(test, found_in(unit_pfn(room, 4), NULL));
	KUNIT_EXPECT_TRUE(test, found_in(unit_pfn(room, 9), other));
	unmap(other);
	KUNIT_EXPECT_EQ(test, add_map(map), 0);
	expect_three(room, map, true);
	unmap(map);
}

/* --- Struct pages --------------------------------------------------------- */

static const struct type_facts {
	const char *name;
	enum memory_type type;
	int count;		/* of a page that nobody uses */
} types[] = {
	{ "private", MEMORY_DEVICE_PRIVATE, 0 },
	{ "coherent", MEMORY_DEVICE_COHERENT, 0 },
	{ "fsdax", MEMORY_DEVICE_FS_DAX, 1 },
	{ "generic", MEMORY_DEVICE_GENERIC, 1 },
	{ "p2pdma", MEMORY_DEVICE_PCI_P2PDMA, 1 },
};

KUNIT_ARRAY_PARAM_DESC(types, types, name);

static void pages_say_what_they_are(struct kunit *test)
{
	const struct type_facts *t = test->param_value;
	struct room *room = test->priv;
	struct map *map = new_map(room, t->type, 0, 2);
	unsigned long pfn, wrong = 0;
	struct page *page;
	void *addr;

	addr = memremap_pages(&map->pgmap, NUMA_NO_NODE);
	KUNIT_ASSERT_PTR_EQ(test, addr, __va(unit_addr(room, 0)));

	for (pfn = unit_pfn(room, 0); pfn < unit_pfn(room, 2); pfn++) {
		page = pfn_to_page(pfn);
		wrong += !pfn_valid(pfn) || page_to_pfn(page) != pfn;
		wrong += !!pfn_to_online_page(pfn);
		wrong += !is_zone_device_page(page) || page->pgmap != &map->pgmap;
		wrong += page_count(page) != t->count || page_mapped(page);
		wrong += !PageReserved(page) || PageLocked(page) || PageLRU(page);
		wrong += !page_zone(page) || page_zonenum(page) != ZONE_DEVICE;
		wrong += page_to_nid(page) != zone_to_nid(page_zone(page));
		wrong += get_pageblock_migratetype(page) != MIGRATE_MOVABLE;
		wrong += is_device_private_page(page) != (t->type == MEMORY_DEVICE_PRIVATE);
		wrong += is_device_coherent_page(page) != (t->type == MEMORY_DEVICE_COHERENT);
		wrong += is_pci_p2pdma_page(page) != (t->type == MEMORY_DEVICE_PCI_P2PDMA);
	}
	KUNIT_EXPECT_EQ(test, wrong, 0UL);
	unmap(map);
}

/* Copies of two must be what core mm makes of each. */
static void pages_are_what_core_mm_makes(struct kunit *test)
{
	const struct type_facts *t = test->param_value;
	struct room *room = test->priv;
	struct map *map = new_mapped(room, t->type, 0, 2);
	struct page *pages = pfn_to_page(unit_pfn(room, 0));
	size_t size = 2 * UNIT_PAGES * sizeof(struct page);
	void *ours = kvmalloc(size, GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, ours);
	memcpy(ours, pages, size);
	memset(pages, 0xa5, sizeof(struct page));
	memmap_init_zone_device(&NODE_DATA(0)->node_zones[ZONE_DEVICE],
				unit_pfn(room, 0), 2 * UNIT_PAGES, &map->pgmap);
	KUNIT_EXPECT_EQ(test, memcmp(ours, pages, size), 0);
	kvfree(ours);
	unmap(map);
}

static void compound_pages_are_whole(struct kunit *test)
{
	const unsigned int order = ilog2(UNIT_PAGES);
	struct room *room = test->priv;
	struct map *map = new_map(room, MEMORY_DEVICE_GENERIC, 0, 4);
	int unit;

	map->pgmap.vmemmap_shift = order;
	KUNIT_ASSERT_EQ(test, add_map(map), 0);
	for (unit = 0; unit < 4; unit++) {
		struct page *head = pfn_to_page(unit_pfn(room, unit));

		KUNIT_EXPECT_EQ(test, compound_order(head), order);
		KUNIT_EXPECT_EQ(test, page_count(head), 1);
		KUNIT_EXPECT_PTR_EQ(test, compound_head(head + 1), head);
		KUNIT_EXPECT_PTR_EQ(test, compound_head(head + UNIT_PAGES - 1), head);
		KUNIT_EXPECT_TRUE(test, is_zone_device_page(head + 1));
	}
	/* As many references as compound pages, or it would wait here. */
	unmap(map);
}

/* A section, of which the driver keeps 16 pages and struct pages take some. */
static void altmap_has_its_struct_pages_inside(struct kunit *test)
{
	const unsigned long reserve = 16, room_for_pages = 1024;
	struct room *room = test->priv;
	struct map *map;
	unsigned long pfn, offset;

	if (!spare)
		kunit_skip(test, "no memory to write to: memremap_test.spare=");

	map = new_map(room, MEMORY_DEVICE_FS_DAX, 0, 1);
	map->pgmap.range.start = spare;
	map->pgmap.range.end = spare + SZ_128M - 1;
	pfn = PHYS_PFN(spare);
	set_altmap(&map->pgmap, pfn, reserve, room_for_pages);

	KUNIT_ASSERT_EQ(test, add_map(map), 0);
	KUNIT_EXPECT_GT(test, map->pgmap.altmap.alloc, 0UL);
	offset = reserve + room_for_pages;
	KUNIT_EXPECT_FALSE(test, pgmap_pfn_valid(&map->pgmap, pfn));
	KUNIT_EXPECT_FALSE(test, pgmap_pfn_valid(&map->pgmap, pfn + offset - 1));
	KUNIT_EXPECT_TRUE(test, pgmap_pfn_valid(&map->pgmap, pfn + offset));
	KUNIT_EXPECT_PTR_EQ(test, pfn_to_page(pfn + offset)->pgmap, &map->pgmap);
	KUNIT_EXPECT_EQ(test, page_count(pfn_to_page(pfn + offset)), 1);
	unmap(map);
	KUNIT_EXPECT_EQ(test, map->pgmap.altmap.alloc, 0UL);
}

/* --- The life of a page --------------------------------------------------- */

static const enum memory_type given_out[] = {
	MEMORY_DEVICE_PRIVATE, MEMORY_DEVICE_COHERENT,
};

static void given_out_desc(const enum memory_type *type, char *desc)
{
	strscpy(desc, *type == MEMORY_DEVICE_PRIVATE ? "private" : "coherent",
		KUNIT_PARAM_DESC_SIZE);
}

KUNIT_ARRAY_PARAM(given_out, given_out, given_out_desc);

static void page_is_given_out_and_freed_once(struct kunit *test)
{
	const enum memory_type *type = test->param_value;
	struct room *room = test->priv;
	struct map *map = new_mapped(room, *type, 0, 1);
	struct page *page = pfn_to_page(unit_pfn(room, 0) + 3);
	int round;

	for (round = 1; round <= 3; round++) {
		zone_device_page_init(page);
		KUNIT_EXPECT_EQ(test, page_count(page), 1);
		KUNIT_EXPECT_TRUE(test, PageLocked(page));
		unlock_page(page);

		get_page(page);
		put_page(page);
		KUNIT_EXPECT_EQ(test, room->freed, round - 1);
		/* As an anonymous page that its process has left. */
		page->mapping = (void *)PAGE_MAPPING_ANON;
		SetPageAnonExclusive(page);
		put_page(page);
		KUNIT_EXPECT_EQ(test, room->freed, round);
		KUNIT_EXPECT_EQ(test, page_count(page), 0);
		KUNIT_EXPECT_NULL(test, page->mapping);
		KUNIT_EXPECT_FALSE(test, PagePrivate(page));
		KUNIT_EXPECT_PTR_EQ(test, page->pgmap, &map->pgmap);
	}
	unmap(map);
}

static void page_free_may_give_out_again(struct kunit *test)
{
	const enum memory_type *type = test->param_value;
	struct room *room = test->priv;
	struct map *map = new_mapped(room, *type, 0, 1);
	struct page *page = pfn_to_page(unit_pfn(room, 0));

	zone_device_page_init(page);
	unlock_page(page);
	room->again = true;
	put_page(page);
	KUNIT_EXPECT_EQ(test, room->freed, 1);
	KUNIT_EXPECT_EQ(test, page_count(page), 1);

	begin_unmap(map);
	KUNIT_EXPECT_TRUE(test, unmap_waits(room));
	unlock_page(page);
	put_page(page);
	KUNIT_ASSERT_TRUE(test, unmap_ends(room));
	KUNIT_EXPECT_EQ(test, room->freed, 2);
}

/* What memunmap_pages() promises, with a page in use all the time. */
static void unmap_waits_for_pages_in_use(struct kunit *test)
{
	const enum memory_type *type = test->param_value;
	struct room *room = test->priv;
	struct map *map = new_mapped(room, *type, 0, 2);
	struct map *next = new_map(room, *type, 1, 1);
	struct page *page = pfn_to_page(unit_pfn(room, 1));

	zone_device_page_init(page);
	unlock_page(page);
	begin_unmap(map);
	KUNIT_EXPECT_TRUE(test, unmap_waits(room));

	KUNIT_EXPECT_TRUE(test, found_in(unit_pfn(room, 0), NULL));
	KUNIT_EXPECT_TRUE(test, found_in(page_to_pfn(page), NULL));
	KUNIT_EXPECT_EQ(test, add_map(next), -EEXIST);
	KUNIT_EXPECT_EQ(test, page_count(page), 1);
	KUNIT_EXPECT_PTR_EQ(test, page->pgmap, &map->pgmap);

	put_page(page);
	KUNIT_ASSERT_TRUE(test, unmap_ends(room));
	KUNIT_EXPECT_EQ(test, room->freed, 1);
	KUNIT_EXPECT_EQ(test, add_map(next), 0);
	unmap(next);
}

static void unmap_waits_for_a_lookup(struct kunit *test)
{
	struct room *room = test->priv;
	struct map *map = new_mapped(room, MEMORY_DEVICE_GENERIC, 0, 1);
	struct dev_pagemap *pgmap = get_dev_pagemap(unit_pfn(room, 0), NULL);

	KUNIT_ASSERT_PTR_EQ(test, pgmap, &map->pgmap);
	begin_unmap(map);
	KUNIT_EXPECT_TRUE(test, unmap_waits(room));
	/* A loop that is at it goes on to its end. */
	KUNIT_EXPECT_PTR_EQ(test, get_dev_pagemap(unit_pfn(room, 0) + 1, pgmap),
			    pgmap);
	KUNIT_EXPECT_TRUE(test, unmap_waits(room));
	put_dev_pagemap(pgmap);
	KUNIT_EXPECT_TRUE(test, unmap_ends(room));
}

/* One reference goes along, whatever the order of the pfns. */
static void lookup_in_a_loop_keeps_one_reference(struct kunit *test)
{
	struct room *room = test->priv;
	struct map *a = new_mapped(room, MEMORY_DEVICE_PRIVATE, 0, 2);
	struct map *b = new_mapped(room, MEMORY_DEVICE_COHERENT, 2, 2);
	const int units[] = { 0, 1, 2, 0, 3, 2, 9, 1 };
	struct dev_pagemap *pgmap = NULL;
	int i;

	for (i = 0; i < ARRAY_SIZE(units); i++) {
		struct map *want = units[i] < 2 ? a : units[i] < 4 ? b : NULL;

		pgmap = get_dev_pagemap(unit_pfn(room, units[i]), pgmap);
		KUNIT_EXPECT_PTR_EQ(test, pgmap, want ? &want->pgmap : NULL);
	}
	unmap(b);
	begin_unmap(a);
	KUNIT_EXPECT_TRUE(test, unmap_waits(room));
	put_dev_pagemap(pgmap);
	KUNIT_EXPECT_TRUE(test, unmap_ends(room));
}

static const enum memory_type born[] = {
	MEMORY_DEVICE_GENERIC, MEMORY_DEVICE_PCI_P2PDMA,
};

static void born_desc(const enum memory_type *type, char *desc)
{
	strscpy(desc, *type == MEMORY_DEVICE_GENERIC ? "generic" : "p2pdma",
		KUNIT_PARAM_DESC_SIZE);
}

KUNIT_ARRAY_PARAM(born, born, born_desc);

/* Its count is back before page_free, which may hand it out. */
static void born_page_is_freed_with_a_count_of_one(struct kunit *test)
{
	const enum memory_type *type = test->param_value;
	struct room *room = test->priv;
	struct map *map = new_mapped(room, *type, 0, 1);
	struct page *page = pfn_to_page(unit_pfn(room, 0));

	get_page(page);
	put_page(page);
	KUNIT_EXPECT_EQ(test, room->freed, 0);
	put_page(page);
	KUNIT_EXPECT_EQ(test, room->freed, 1);
	KUNIT_EXPECT_EQ(test, room->freed_count, 1);
	KUNIT_EXPECT_EQ(test, page_count(page), 1);
	unmap(map);
}

static int idle_thread(void *arg)
{
	struct page *page = arg;

	wait_var_event(&page->_refcount, page_ref_count(page) == 1);
	return 0;
}

/* What a file system does that wants to truncate a file. */
static void fsdax_page_tells_that_it_is_idle(struct kunit *test)
{
	struct room *room = test->priv;
	struct map *map = new_mapped(room, MEMORY_DEVICE_FS_DAX, 0, 1);
	struct page *page = pfn_to_page(unit_pfn(room, 0));
	struct task_struct *waiter;

	get_page(page);
	waiter = kthread_create(idle_thread, page, "fsdax idle");
	KUNIT_ASSERT_FALSE(test, IS_ERR(waiter));
	get_task_struct(waiter);
	wake_up_process(waiter);
	msleep(50);
	KUNIT_EXPECT_FALSE(test, READ_ONCE(waiter->exit_state));
	put_page(page);
	KUNIT_EXPECT_EQ(test, kthread_stop_put(waiter), 0);
	KUNIT_EXPECT_EQ(test, room->freed, 0);
	KUNIT_EXPECT_EQ(test, page_count(page), 1);
	unmap(map);
}

#ifdef CONFIG_FS_DAX
static void only_fsdax_makes_put_page_slower(struct kunit *test)
{
	const struct type_facts *t = test->param_value;
	int before = static_key_count(&devmap_managed_key.key);
	struct room *room = test->priv;
	struct map *map = new_mapped(room, t->type, 0, 1);

	KUNIT_EXPECT_EQ(test, static_key_count(&devmap_managed_key.key) - before,
			t->type == MEMORY_DEVICE_FS_DAX);
	unmap(map);
	KUNIT_EXPECT_EQ(test, static_key_count(&devmap_managed_key.key), before);
}
#endif

/* --- Large folios: written once, used again ------------------------------- */

#define LARGE_ORDER	ilog2(UNIT_PAGES)

/* Only ever set by itself, and read by who gives out the folio. */
static bool is_marked(struct folio *folio)
{
	return test_bit(PG_owner_priv_1, &folio->flags);
}

static struct folio *give_out(struct map *map, unsigned long i, unsigned int order)
{
	struct folio *folio = folio_at(map, i);

	zone_device_folio_init(folio, &map->pgmap, order);
	folio_unlock(folio);
	return folio;
}

/* Flags that it may have: where it is, and that it is the first of many. */
static bool has_strange_flags(struct page *page, unsigned long i, unsigned int order)
{
	unsigned long flags = page->flags & PAGE_FLAGS_CHECK_AT_PREP & ~BIT(PG_reserved);

	if (i == 1 && order)
		return flags != order;
	return flags != (!i && order ? BIT(PG_head) : 0);
}

/* How many pages are not what a folio of this order, just given out, has. */
static unsigned long wrong_pages(struct folio *folio, unsigned int order)
{
	unsigned long i, wrong = 0;

	for (i = 0; i < 1UL << order; i++) {
		struct page *page = &folio->page + i;

		wrong += page_folio(page) != folio || PageTail(page) != !!i ||
			 page_ref_count(page) != !i || page_private(page) ||
			 atomic_read(&page->_mapcount) != -1 ||
			 has_strange_flags(page, i, order) ||
			 (i > 2 && page->mapping != TAIL_MAPPING);
	}
	wrong += folio_order(folio) != order || folio_nr_pages(folio) != 1UL << order;
	wrong += folio->mapping || is_marked(folio);
	if (order)
		wrong += folio_mapcount(folio) || folio_maybe_dma_pinned(folio) ||
			 atomic_read(&folio->_nr_pages_mapped);
	if (order > 1)
		wrong += !list_empty(&folio->_deferred_list);
	return wrong;
}

/* As a process leaves it that ends with the folio mapped by PTEs. */
static void leave(struct folio *folio)
{
	unsigned long i;

	folio->mapping = (void *)PAGE_MAPPING_ANON;
	folio_mark_uptodate(folio);
	folio_set_swapbacked(folio);
	for (i = 0; i < folio_nr_pages(folio); i++)
		set_bit(PG_anon_exclusive, &folio_page(folio, i)->flags);
	if (folio_test_large(folio)) {
		folio_set_large_rmappable(folio);
		/* Which the rmap counts. */
		mod_mthp_stat(folio_order(folio), MTHP_STAT_NR_ANON, 1);
	}
	folio_put(folio);
}

/* Given out, found right, used and freed. */
static void live(struct map *map, unsigned long i, unsigned int order)
{
	struct folio *folio = give_out(map, i, order);

	KUNIT_EXPECT_EQ_MSG(map->room->test, wrong_pages(folio, order), 0UL,
			    "page %lu, order %u", i, order);
	leave(folio);
	KUNIT_EXPECT_EQ(map->room->test, is_marked(folio), !!order);
}

static void one_more(struct map *map) {}

static void twice_more(struct map *map)
{
	live(map, 0, LARGE_ORDER);
	live(map, 0, LARGE_ORDER);
}

static void first_page_alone(struct map *map)
{
	live(map, 0, 0);
}

static void last_page_alone(struct map *map)
{
	live(map, UNIT_PAGES - 1, 0);
}

static void first_part(struct map *map)
{
	live(map, 0, 4);
}

static void part_inside(struct map *map)
{
	live(map, 64, 4);
}

static void two_orders_in_turn(struct map *map)
{
	live(map, 0, 4);
	live(map, 0, LARGE_ORDER);
	live(map, 16, 4);
	live(map, 0, LARGE_ORDER);
	live(map, 16, 4);
}

static void all_pages_alone(struct map *map)
{
	unsigned long i;

	for (i = 0; i < UNIT_PAGES; i++)
		live(map, i, 0);
}

static void parts_of_parts(struct map *map)
{
	live(map, 256, 8);
	live(map, 256, 7);
	live(map, 384, 2);
	live(map, 256, 8);
}

static void beside(struct map *map)
{
	live(map, UNIT_PAGES, LARGE_ORDER);
	live(map, UNIT_PAGES, 0);
}

static const struct meanwhile {
	const char *name;
	void (*happens)(struct map *map);
	bool kept;		/* what the folio's tails say */
} meanwhiles[] = {
	{ "nothing", one_more, true },
	{ "the same", twice_more, true },
	{ "its neighbour is used", beside, true },
	{ "its first page alone", first_page_alone, false },
	{ "its last page alone", last_page_alone, false },
	{ "a folio where it begins", first_part, false },
	{ "a folio inside", part_inside, false },
	{ "two orders in turn", two_orders_in_turn, false },
	{ "each page alone", all_pages_alone, false },
	{ "folios inside of folios", parts_of_parts, false },
};

static void meanwhile_desc(const struct meanwhile *m, char *desc)
{
	strscpy(desc, m->name, KUNIT_PARAM_DESC_SIZE);
}

KUNIT_ARRAY_PARAM(meanwhiles, meanwhiles, meanwhile_desc);

/* A large folio begins where there was one before, and something between. */
static void large_folio_is_used_again(struct kunit *test)
{
	const struct meanwhile *m = test->param_value;
	struct map *map = new_mapped(test->priv, MEMORY_DEVICE_PRIVATE, 0, 2);
	struct page *tail = &folio_at(map, 7)->page;

	live(map, 0, LARGE_ORDER);
	m->happens(map);
	KUNIT_EXPECT_EQ(test, is_marked(folio_at(map, 0)),
			m->kept || m->happens == first_part);
	/* With all checks, it is noticed that this is not as it was left. */
	if (!IS_ENABLED(CONFIG_DEBUG_VM)) {
		set_page_private(tail, 77);
		leave(give_out(map, 0, LARGE_ORDER));
		KUNIT_EXPECT_EQ(test, page_private(tail), m->kept ? 77UL : 0UL);
		set_page_private(tail, 0);
	}
	live(map, 0, LARGE_ORDER);
	live(map, 0, LARGE_ORDER);
	unmap(map);
}

/* What its tails say of it is old, but it is not theirs to say. */
static void folio_in_use_is_left_alone(struct kunit *test)
{
	struct map *map = new_mapped(test->priv, MEMORY_DEVICE_PRIVATE, 0, 1);
	struct folio *folio;

	live(map, 0, LARGE_ORDER);
	folio = give_out(map, 0, 4);
	KUNIT_EXPECT_PTR_EQ(test, page_folio(&folio->page + 100), folio);
	live(map, 100, 0);
	live(map, 128, 5);
	KUNIT_EXPECT_EQ(test, wrong_pages(folio, 4), 0UL);
	leave(folio);
	live(map, 0, LARGE_ORDER);
	unmap(map);
}

/* memory_failure() marks whatever it is told. */
static void poison_outlives_the_folio(struct kunit *test)
{
	struct map *map = new_mapped(test->priv, MEMORY_DEVICE_PRIVATE, 0, 1);
	struct page *tail = &folio_at(map, 9)->page;

	live(map, 0, LARGE_ORDER);
	set_bit(PG_hwpoison, &tail->flags);
	live(map, 0, LARGE_ORDER);
	KUNIT_EXPECT_TRUE(test, PageHWPoison(tail));
	clear_bit(PG_hwpoison, &tail->flags);
	unmap(map);
}

/*
 * What is a tail of the large folio: two threads, each with folios of its own of
 * these pages, which do not know of each other.
 */
struct tenant {
	struct map *map;
	unsigned long at;
	unsigned int order;
	unsigned long wrong;
	struct completion go, done;
};

#define TENANT_ROUNDS	300

static int tenant_thread(void *arg)
{
	struct tenant *t = arg;
	struct folio *folio;
	int round;

	for (round = 0; round < TENANT_ROUNDS; round++) {
		wait_for_completion(&t->go);
		folio = give_out(t->map, t->at, t->order);
		t->wrong += wrong_pages(folio, t->order);
		leave(folio);
		complete(&t->done);
	}
	return 0;
}

static void parts_are_given_out_at_once(struct kunit *test)
{
	struct map *map = new_mapped(test->priv, MEMORY_DEVICE_PRIVATE, 0, 1);
	struct tenant tenants[2] = {
		{ .map = map, .at = 0, .order = 4 },
		{ .map = map, .at = 64, .order = 0 },
	};
	int i, round;

	for (i = 0; i < 2; i++) {
		init_completion(&tenants[i].go);
		init_completion(&tenants[i].done);
	}
	for (i = 0; i < 2; i++)
		KUNIT_ASSERT_FALSE(test, IS_ERR(kthread_run(tenant_thread, &tenants[i],
							    "tenant %d", i)));
	for (round = 0; round < TENANT_ROUNDS; round++) {
		live(map, 0, LARGE_ORDER);
		for (i = 0; i < 2; i++)
			complete(&tenants[i].go);
		for (i = 0; i < 2; i++)
			wait_for_completion(&tenants[i].done);
	}
	KUNIT_EXPECT_EQ(test, tenants[0].wrong + tenants[1].wrong, 0UL);
	live(map, 0, LARGE_ORDER);
	unmap(map);
}

/* --- Managed, again and again, and at the same time ------------------------ */

static void devm_unmaps_with_the_device(struct kunit *test)
{
	struct room *room = test->priv;
	struct device *dev = kunit_device_register(test, "memremap_test");
	struct map *kept = new_map(room, MEMORY_DEVICE_GENERIC, 0, 1);
	struct map *early = new_map(room, MEMORY_DEVICE_GENERIC, 1, 1);
	struct map *bad = new_map(room, MEMORY_DEVICE_GENERIC, 1, 1);

	KUNIT_ASSERT_FALSE(test, IS_ERR(dev));
	KUNIT_ASSERT_FALSE(test, IS_ERR(devm_memremap_pages(dev, &kept->pgmap)));
	KUNIT_ASSERT_FALSE(test, IS_ERR(devm_memremap_pages(dev, &early->pgmap)));
	KUNIT_EXPECT_EQ(test, PTR_ERR(devm_memremap_pages(dev, &bad->pgmap)), -EEXIST);
	KUNIT_EXPECT_TRUE(test, found_in(unit_pfn(room, 1), early));

	devm_memunmap_pages(dev, &early->pgmap);
	KUNIT_EXPECT_TRUE(test, found_in(unit_pfn(room, 1), NULL));
	KUNIT_EXPECT_TRUE(test, found_in(unit_pfn(room, 0), kept));
	kunit_device_unregister(test, dev);
	KUNIT_EXPECT_TRUE(test, found_in(unit_pfn(room, 0), NULL));
	unmap(new_mapped(room, MEMORY_DEVICE_PRIVATE, 0, 2));
}

static void maps_again_and_again(struct kunit *test)
{
	struct room *room = test->priv;
	struct map *map = NULL;
	int round;

	for (round = 0; round < 50; round++) {
		map = new_map_of_three(room, types[round % ARRAY_SIZE(types)].type);
		KUNIT_ASSERT_EQ(test, add_map(map), 0);
		memunmap_pages(&map->pgmap);
	}
	expect_three(room, map, false);
}

struct rival {
	struct map *map;
	struct completion done;
	int won, lost, wrong;
};

static int rival_thread(void *arg)
{
	struct rival *rival = arg;
	struct dev_pagemap *pgmap = &rival->map->pgmap;
	unsigned long deadline = jiffies + 20 * HZ;
	unsigned long pfn = PHYS_PFN(pgmap->ranges[0].start);

	while (rival->won < 20 && time_before(jiffies, deadline)) {
		int err = add_map(rival->map);

		if (err == -EEXIST) {
			rival->lost++;
			cond_resched();
			continue;
		}
		if (err) {
			rival->wrong = err;
			break;
		}
		rival->won++;
		if (!found_in(pfn, rival->map) ||
		    pfn_to_page(pfn)->pgmap != pgmap)
			rival->wrong = -ENXIO;
		memunmap_pages(pgmap);
	}
	complete(&rival->done);
	return 0;
}

/* Each tries to have units 1-2 while the other one has 2-3. */
static void rivals_never_both_win(struct kunit *test)
{
	struct room *room = test->priv;
	struct rival rivals[2] = { };
	int i;

	for (i = 0; i < 2; i++) {
		rivals[i].map = new_map(room, MEMORY_DEVICE_PRIVATE, 1 + i, 2);
		init_completion(&rivals[i].done);
	}
	for (i = 0; i < 2; i++)
		KUNIT_ASSERT_FALSE(test, IS_ERR(kthread_run(rival_thread, &rivals[i],
							    "rival %d", i)));
	for (i = 0; i < 2; i++) {
		wait_for_completion(&rivals[i].done);
		KUNIT_EXPECT_EQ(test, rivals[i].wrong, 0);
		KUNIT_EXPECT_GT(test, rivals[i].won, 0);
	}
	KUNIT_EXPECT_GT(test, rivals[0].lost + rivals[1].lost, 0);
	unmap(new_mapped(room, MEMORY_DEVICE_PRIVATE, 1, 3));
}

static void compat_alignment_is_what_ranges_need(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, memremap_compat_align() % UNIT, 0UL);
}

static struct kunit_case memremap_cases[] = {
	KUNIT_CASE_PARAM(refuses, bad_maps_gen_params),
	KUNIT_CASE_PARAM(refuses_overlap, overlaps_gen_params),
	KUNIT_CASE(ranges_come_and_go_together),
	KUNIT_CASE(no_range_when_one_is_taken),
	KUNIT_CASE_PARAM(pages_say_what_they_are, types_gen_params),
	KUNIT_CASE_PARAM(pages_are_what_core_mm_makes, types_gen_params),
	KUNIT_CASE(compound_pages_are_whole),
	KUNIT_CASE(altmap_has_its_struct_pages_inside),
	KUNIT_CASE_PARAM(page_is_given_out_and_freed_once, given_out_gen_params),
	KUNIT_CASE_PARAM(page_free_may_give_out_again, given_out_gen_params),
	KUNIT_CASE_PARAM(unmap_waits_for_pages_in_use, given_out_gen_params),
	KUNIT_CASE(unmap_waits_for_a_lookup),
	KUNIT_CASE(lookup_in_a_loop_keeps_one_reference),
	KUNIT_CASE_PARAM(born_page_is_freed_with_a_count_of_one, born_gen_params),
	KUNIT_CASE(fsdax_page_tells_that_it_is_idle),
#ifdef CONFIG_FS_DAX
	KUNIT_CASE_PARAM(only_fsdax_makes_put_page_slower, types_gen_params),
#endif
	KUNIT_CASE_PARAM(large_folio_is_used_again, meanwhiles_gen_params),
	KUNIT_CASE(folio_in_use_is_left_alone),
	KUNIT_CASE(poison_outlives_the_folio),
	KUNIT_CASE(parts_are_given_out_at_once),
	KUNIT_CASE(devm_unmaps_with_the_device),
	KUNIT_CASE(maps_again_and_again),
	KUNIT_CASE(rivals_never_both_win),
	KUNIT_CASE(compat_alignment_is_what_ranges_need),
	{}
};

static struct kunit_suite memremap_suite = {
	.name = "memremap",
	.init = room_init,
	.exit = room_exit,
	.test_cases = memremap_cases,
};

kunit_test_suite(memremap_suite);

MODULE_DESCRIPTION("KUnit tests of device page maps");
MODULE_LICENSE("GPL");
