// SPDX-License-Identifier: GPL-2.0
/*
 * Page maps: struct pages for device memory (ZONE_DEVICE).
 *
 * Vocabulary
 *
 * page map (pgmap)
 *	Ranges of physical addresses with struct pages, of one type, that one
 *	driver added in one call. Known by pfn in the tree pgmaps.
 * born with a reference
 *	Pages of fsdax, generic and p2pdma memory have a count of one for all
 *	their life: one means idle. Each holds a reference of the page map all
 *	that time; memunmap_pages() drops these.
 * given out
 *	Pages of private and coherent memory have a count of zero until the
 *	driver gives them out with zone_device_folio_init(), alone or as a large
 *	folio; only then do they hold a reference of the page map each, until
 *	folio_free.
 *
 * Life of a page map
 *
 *	memremap_pages()		pgmap->ref	get_dev_pagemap()
 *	  check			nothing touched		-		-
 *	  reserve		ranges in the tree	dead		NULL
 *	  add			memory, struct pages	dead		NULL
 *	  publish				live		pgmap
 *	memunmap_pages()
 *	  kill			pages still in use	dying		NULL
 *	  wait			none in use		dead		NULL
 *	  retire		nobody looks		dead		NULL
 *	  remove, release	ranges free again	gone		NULL
 *
 * Nothing can fail after publish, and no page can be found before it. The ranges
 * stay reserved until the last of the memory is gone, so that nobody can add an
 * overlapping page map while this one is halfway out.
 *
 * Locks: the tree has its own; lookups are under RCU, and the grace period of
 * retire is over before the first struct page goes, and the page map itself.
 * Struct pages and the linear mapping come and go under mem_hotplug_begin().
 *
 * This file never migrates and does not know who maps its pages.
 */
#include <linux/device.h>
#include <linux/io.h>
#include <linux/kasan.h>
#include <linux/maple_tree.h>
#include <linux/memory_hotplug.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/page-isolation.h>
#include <linux/pfn_t.h>
#include <linux/swap.h>
#include <linux/wait_bit.h>

#include "internal.h"

/* pfn -> struct dev_pagemap, over all pfns of each range */
static struct maple_tree pgmaps = MTREE_INIT(pgmaps, MT_FLAGS_USE_RCU);

/* Stands there while the memory of a page map is being removed. */
#define PGMAP_RETIRED	((struct dev_pagemap *)xa_mk_value(0))

/* What sets the types apart; decided once, here. */
static const struct pgmap_rules {
	bool offered;		/* by this kernel */
	bool needs_owner;
	bool needs_free;
	bool needs_to_ram;
	bool addressable;	/* by the CPU: in the linear map */
	bool given_out;		/* pages count from use, not from birth */
} pgmap_rules[] = {
	[MEMORY_DEVICE_PRIVATE] = {
		.offered = IS_ENABLED(CONFIG_DEVICE_PRIVATE),
		.needs_owner = true,
		.needs_free = true,
		.needs_to_ram = true,
		.given_out = true,
	},
	[MEMORY_DEVICE_COHERENT] = {
		.offered = true,
		.needs_owner = true,
		.needs_free = true,
		.addressable = true,
		.given_out = true,
	},
	[MEMORY_DEVICE_FS_DAX] = {
		.offered = !IS_ENABLED(CONFIG_FS_DAX_LIMITED),
		.addressable = true,
	},
	[MEMORY_DEVICE_GENERIC] = {
		.offered = true,
		.addressable = true,
	},
	[MEMORY_DEVICE_PCI_P2PDMA] = {
		.offered = true,
		.addressable = true,
	},
};

static const struct pgmap_rules *rules_of(const struct dev_pagemap *pgmap)
{
	return &pgmap_rules[pgmap->type];
}

#ifndef CONFIG_ARCH_HAS_MEMREMAP_COMPAT_ALIGN
/**
 * memremap_compat_align() - alignment that suits every way to map a range
 *
 * A persistent memory namespace may be mapped by memremap() today and by
 * memremap_pages() tomorrow. The latter asks for more; a namespace that is
 * aligned to this many bytes can change between them.
 *
 * Return: The alignment in bytes.
 */
unsigned long memremap_compat_align(void)
{
	return SUBSECTION_SIZE;
}
EXPORT_SYMBOL_GPL(memremap_compat_align);
#endif

/* --- Page counts of fsdax ------------------------------------------------ */

#ifdef CONFIG_FS_DAX
/*
 * Not EXPORT_SYMBOL_GPL, like __put_devmap_managed_folio_refs() below: the
 * inline put_page() reaches both, so that every module that puts a page would
 * need the GPL.
 */
DEFINE_STATIC_KEY_FALSE(devmap_managed_key);
EXPORT_SYMBOL(devmap_managed_key);

/*
 * __put_devmap_managed_folio_refs() - drop references of a device folio
 * @folio: a folio in ZONE_DEVICE
 * @refs: how many
 *
 * An fsdax page is never freed: at a count of one it is idle, and whoever waits
 * to truncate its file wants to know.
 *
 * Return: true if it was an fsdax folio and the references are dropped.
 */
bool __put_devmap_managed_folio_refs(struct folio *folio, int refs)
{
	if (!zone_device_page_is(&folio->page, MEMORY_DEVICE_FS_DAX))
		return false;
	if (folio_ref_sub_return(folio, refs) == 1)
		wake_up_var(&folio->_refcount);
	return true;
}
EXPORT_SYMBOL(__put_devmap_managed_folio_refs);

static void fsdax_count(const struct dev_pagemap *pgmap, bool add)
{
	if (pgmap->type != MEMORY_DEVICE_FS_DAX)
		return;
	if (add)
		static_branch_inc(&devmap_managed_key);
	else
		static_branch_dec(&devmap_managed_key);
}
#else
static void fsdax_count(const struct dev_pagemap *pgmap, bool add) {}
#endif

/* --- Ranges -------------------------------------------------------------- */

static u64 range_align(void)
{
	return IS_ENABLED(CONFIG_SPARSEMEM_VMEMMAP) ?
	       SUBSECTION_SIZE : PFN_PHYS(PAGES_PER_SECTION);
}

static unsigned long range_pfn(const struct range *range)
{
	return PHYS_PFN(range->start);
}

static unsigned long range_nr(const struct range *range)
{
	return PHYS_PFN(range_len(range));
}

/* Pages at the start of range @i that have no struct page: the altmap's. */
static unsigned long range_skip(struct dev_pagemap *pgmap, int i)
{
	struct vmem_altmap *altmap = pgmap_altmap(pgmap);

	return altmap && !i ? vmem_altmap_offset(altmap) : 0;
}

/* Compound pages, or pages, of all ranges. */
static unsigned long pgmap_nr_units(struct dev_pagemap *pgmap)
{
	unsigned long nr = 0;
	int i;

	for (i = 0; i < pgmap->nr_range; i++)
		nr += (range_nr(&pgmap->ranges[i]) - range_skip(pgmap, i)) >>
		      pgmap->vmemmap_shift;
	return nr;
}

/* The range that @pfn is in, or -1. */
static int pgmap_find_range(struct dev_pagemap *pgmap, unsigned long pfn)
{
	int i;

	for (i = 0; i < pgmap->nr_range; i++) {
		const struct range *range = &pgmap->ranges[i];

		if (pfn - range_pfn(range) < range_nr(range))
			return i;
	}
	return -1;
}

/**
 * pgmap_pfn_valid() - has this pfn a struct page of the page map?
 * @pgmap: a page map
 * @pfn: any pfn
 *
 * Return: false outside of the ranges, and for the pages that the altmap took.
 */
bool pgmap_pfn_valid(struct dev_pagemap *pgmap, unsigned long pfn)
{
	int i = pgmap_find_range(pgmap, pfn);

	if (i < 0)
		return false;
	return pfn - range_pfn(&pgmap->ranges[i]) >= range_skip(pgmap, i);
}

/* --- Check: may this page map exist? ------------------------------------- */

static int check_type(const struct dev_pagemap *pgmap)
{
	const struct dev_pagemap_ops *ops = pgmap->ops;
	const struct pgmap_rules *rules;

	if ((unsigned int)pgmap->type >= ARRAY_SIZE(pgmap_rules))
		return -EINVAL;

	rules = rules_of(pgmap);
	if (!rules->offered)
		return -EINVAL;
	if (rules->needs_owner && !pgmap->owner)
		return -EINVAL;
	if (rules->needs_free && !(ops && (ops->folio_free || ops->page_free)))
		return -EINVAL;
	if (rules->needs_to_ram && !(ops && ops->migrate_to_ram))
		return -EINVAL;
	return 0;
}

/*
 * The struct pages of an altmap lie in the one range, where the CPU can write
 * them, and leave something of it.
 */
static int check_altmap(struct dev_pagemap *pgmap)
{
	struct vmem_altmap *altmap = pgmap_altmap(pgmap);

	if (!altmap)
		return 0;
	if (pgmap->nr_range != 1 || !rules_of(pgmap)->addressable)
		return -EINVAL;
	if (altmap->base_pfn != range_pfn(&pgmap->range))
		return -EINVAL;
	if (altmap->reserve > range_nr(&pgmap->range) ||
	    altmap->free >= range_nr(&pgmap->range) - altmap->reserve)
		return -EINVAL;
	return 0;
}

static int check_range(struct dev_pagemap *pgmap, const struct range *range)
{
	struct range limit = mhp_get_pluggable_range(rules_of(pgmap)->addressable);

	if (range->start > range->end)
		return -EINVAL;
	if (range->start < limit.start || range->end > limit.end)
		return -ERANGE;
	if (!IS_ALIGNED(range->start | (range->end + 1), range_align()))
		return -EINVAL;
	if (region_intersects(range->start, range_len(range),
			      IORESOURCE_SYSTEM_RAM, IORES_DESC_NONE) !=
	    REGION_DISJOINT)
		return -ENXIO;
	return 0;
}

/*
 * Compound pages begin behind the altmap, wherever that is. A last one that is
 * not whole would have tails that are not ours, unless the tails of all share
 * their struct pages: there are namespaces on disk with such a range.
 */
static bool compounds_fit(struct dev_pagemap *pgmap, int i)
{
	unsigned long nr = range_nr(&pgmap->ranges[i]) - range_skip(pgmap, i);

	if (nr < pgmap_vmemmap_nr(pgmap))
		return false;
	return IS_ALIGNED(nr, pgmap_vmemmap_nr(pgmap)) ||
	       vmemmap_can_optimize(pgmap_altmap(pgmap), pgmap);
}

static int check_pgmap(struct dev_pagemap *pgmap)
{
	int err, i;

	if (pgmap->nr_range <= 0)
		return -EINVAL;
	err = check_type(pgmap);
	if (err)
		return err;
	if (pgmap->vmemmap_shift > ilog2(MAX_FOLIO_NR_PAGES))
		return -EINVAL;

	for (i = 0; i < pgmap->nr_range; i++) {
		err = check_range(pgmap, &pgmap->ranges[i]);
		if (err)
			return err;
	}
	err = check_altmap(pgmap);
	if (err)
		return err;

	for (i = 0; i < pgmap->nr_range; i++)
		if (!compounds_fit(pgmap, i))
			return -EINVAL;
	return 0;
}

/* --- Reserve: the pfns are ours ------------------------------------------ */

/*
 * Storing may have to rebalance the tree, and cannot fail: a stale entry would be
 * a stale pointer.
 */
static void store_ranges(struct dev_pagemap *pgmap, int nr, void *entry)
{
	int i;

	for (i = 0; i < nr; i++) {
		unsigned long pfn = range_pfn(&pgmap->ranges[i]);

		mtree_store_range(&pgmaps, pfn,
				  pfn + range_nr(&pgmap->ranges[i]) - 1, entry,
				  GFP_KERNEL | __GFP_NOFAIL);
	}
}

/*
 * The ranges stay reserved, but for nobody.
 *
 * Return: a grace period, for cond_synchronize_rcu(). After it no lookup looks at
 * the page map any more; and whoever found one of its pages in a page table,
 * under RCU and without a reference, is done with the struct page.
 */
static unsigned long retire_ranges(struct dev_pagemap *pgmap, int nr)
{
	store_ranges(pgmap, nr, PGMAP_RETIRED);
	return get_state_synchronize_rcu();
}

static void release_ranges(struct dev_pagemap *pgmap, int nr)
{
	store_ranges(pgmap, nr, NULL);
}

/*
 * Looking for an overlap and claiming the range is one step under the lock of
 * the tree: of two callers with overlapping ranges one gets -EEXIST.
 */
static int reserve_ranges(struct dev_pagemap *pgmap, int nr)
{
	int err, i;

	for (i = 0; i < nr; i++) {
		unsigned long pfn = range_pfn(&pgmap->ranges[i]);

		err = mtree_insert_range(&pgmaps, pfn,
					 pfn + range_nr(&pgmap->ranges[i]) - 1,
					 pgmap, GFP_KERNEL);
		if (err) {
			cond_synchronize_rcu(retire_ranges(pgmap, i));
			release_ranges(pgmap, i);
			return err;
		}
	}
	return 0;
}

/* --- Add: memory and struct pages ---------------------------------------- */

static pgprot_t pgmap_pgprot(const struct dev_pagemap *pgmap)
{
	switch (pgmap->type) {
	case MEMORY_DEVICE_FS_DAX:
		return pgprot_decrypted(PAGE_KERNEL);
	case MEMORY_DEVICE_PCI_P2PDMA:
		return pgprot_noncached(PAGE_KERNEL);
	default:
		return PAGE_KERNEL;
	}
}

/* A struct page is a multiple of this, and 8 words in most kernels. */
#define STRUCT_PAGE_WORDS	(sizeof(struct page) / sizeof(unsigned long))

/*
 * Word by word, and by an array of its own, so that the compiler keeps the model
 * in registers: as struct assignment it would be read for each page anew.
 */
static void copy_struct_pages(struct page *pages, unsigned long nr,
			      const struct page *model)
{
	unsigned long words[STRUCT_PAGE_WORDS];
	struct page *page;
	unsigned int i;

	memcpy(words, model, sizeof(words));
	for (page = pages; page < pages + nr; page++)
#pragma GCC unroll 16
		for (i = 0; i < STRUCT_PAGE_WORDS; i++)
			((unsigned long *)page)[i] = words[i];
}

/*
 * Struct pages of device memory differ in nothing, unless they are compound or
 * know their own place. Core mm initialises two, which shows whether they do; if
 * not, the others are copies. So what is in a struct page stays core mm's affair.
 */
static bool init_pages_by_copy(struct zone *zone, struct dev_pagemap *pgmap,
			       unsigned long pfn, unsigned long end)
{
	const struct page *model = pfn_to_page(pfn);
	unsigned long nr;

#ifdef SECTION_IN_PAGE_FLAGS
	return false;
#endif
	if (!IS_ENABLED(CONFIG_SPARSEMEM_VMEMMAP) || pgmap->vmemmap_shift ||
	    end - pfn < 2)
		return false;

	memmap_init_zone_device(zone, pfn, 2, pgmap);
	if (memcmp(model, model + 1, sizeof(*model)))
		return false;

	for (pfn += 2; pfn < end; pfn += nr) {
		struct page *page = pfn_to_page(pfn);

		nr = min(pageblock_end_pfn(pfn), end) - pfn;
		copy_struct_pages(page, nr, model);
		if (pageblock_aligned(pfn)) {
			set_pageblock_migratetype(page, MIGRATE_MOVABLE);
			cond_resched();
		}
	}
	return true;
}

static void init_pages(struct zone *zone, struct dev_pagemap *pgmap, int i)
{
	struct range *range = &pgmap->ranges[i];
	unsigned long end = range_pfn(range) + range_nr(range);
	unsigned long pfn = range_pfn(range) + range_skip(pgmap, i);

	if (!init_pages_by_copy(zone, pgmap, pfn, end))
		memmap_init_zone_device(zone, pfn, end - pfn, pgmap);
}

/* Pages of @range from @pfn on that are in the same section. */
static unsigned long nr_in_section(const struct range *range, unsigned long pfn)
{
	return min(range_pfn(range) + range_nr(range),
		   SECTION_ALIGN_UP(pfn + 1)) - pfn;
}

static bool section_has_pages(unsigned long pfn)
{
	struct mem_section *ms = __pfn_to_section(pfn);

	return ms && valid_section(ms) && pfn_section_valid(ms, pfn);
}

static bool range_has_pages(const struct range *range)
{
	unsigned long pfn = range_pfn(range);
	unsigned long end = pfn + range_nr(range);

	for (; pfn < end; pfn += PHYS_PFN(range_align()))
		if (section_has_pages(pfn))
			return true;
	return false;
}

/*
 * Earlier point releases of 6.12 do not tell those who remove memory of whose page
 * map it is. The type of these functions is what says so.
 */
typedef void remove_pages_fn(unsigned long pfn, unsigned long nr,
			     struct vmem_altmap *altmap,
			     struct dev_pagemap *pgmap);
typedef void remove_pages_of_any_fn(unsigned long pfn, unsigned long nr,
				    struct vmem_altmap *altmap);
typedef void remove_memory_fn(u64 start, u64 size, struct vmem_altmap *altmap,
			      struct dev_pagemap *pgmap);
typedef void remove_memory_of_any_fn(u64 start, u64 size,
				     struct vmem_altmap *altmap);

static void remove_pages(struct dev_pagemap *pgmap, unsigned long pfn,
			 unsigned long nr, struct vmem_altmap *altmap)
{
	void *remove = __remove_pages;

	if (__same_type(__remove_pages, remove_pages_fn))
		((remove_pages_fn *)remove)(pfn, nr, altmap, pgmap);
	else
		((remove_pages_of_any_fn *)remove)(pfn, nr, altmap);
}

static void remove_memory_of(struct dev_pagemap *pgmap, u64 start, u64 size)
{
	void *remove = arch_remove_memory;

	if (__same_type(arch_remove_memory, remove_memory_fn))
		((remove_memory_fn *)remove)(start, size, pgmap_altmap(pgmap),
					     pgmap);
	else
		((remove_memory_of_any_fn *)remove)(start, size,
						    pgmap_altmap(pgmap));
}

/*
 * The architecture's hotplug adds section by section, and an error leaves those
 * before it. None was there when it began.
 */
static void remove_partly_added(struct dev_pagemap *pgmap,
				const struct range *range)
{
	unsigned long pfn = range_pfn(range);
	unsigned long end = pfn + range_nr(range);

	for (; pfn < end; pfn += nr_in_section(range, pfn))
		if (section_has_pages(pfn))
			remove_pages(pgmap, pfn, nr_in_section(range, pfn),
				     pgmap_altmap(pgmap));
}

/*
 * The CPU cannot address private memory: it gets struct pages and no linear
 * mapping.
 */
static int add_memory_range(struct dev_pagemap *pgmap, struct range *range,
			    int nid, struct mhp_params *params)
{
	bool addressable = rules_of(pgmap)->addressable;
	u64 size = range_len(range);
	int err;

	if (range_has_pages(range))
		return -EEXIST;
	if (addressable) {
		err = kasan_add_zero_shadow(__va(range->start), size);
		if (err)
			return err;
		err = arch_add_memory(nid, range->start, size, params);
	} else {
		err = add_pages(nid, range_pfn(range), range_nr(range), params);
	}
	if (!err)
		return 0;

	remove_partly_added(pgmap, range);
	if (addressable)
		kasan_remove_zero_shadow(__va(range->start), size);
	return err;
}

static void remove_memory_range(struct dev_pagemap *pgmap, struct range *range)
{
	u64 size = range_len(range);

	if (!rules_of(pgmap)->addressable) {
		remove_pages(pgmap, range_pfn(range), range_nr(range), NULL);
		return;
	}
	remove_memory_of(pgmap, range->start, size);
	kasan_remove_zero_shadow(__va(range->start), size);
}

static int pgmap_add_range(struct dev_pagemap *pgmap, int i, int nid)
{
	struct zone *zone = &NODE_DATA(nid)->node_zones[ZONE_DEVICE];
	struct range *range = &pgmap->ranges[i];
	struct mhp_params params = {
		.altmap = pgmap_altmap(pgmap),
		.pgmap = pgmap,
		.pgprot = pgmap_pgprot(pgmap),
	};
	int err;

	err = track_pfn_remap(NULL, &params.pgprot, range_pfn(range), 0,
			      range_len(range));
	if (err)
		return err;

	mem_hotplug_begin();
	err = add_memory_range(pgmap, range, nid, &params);
	if (!err)
		move_pfn_range_to_zone(zone, range_pfn(range), range_nr(range),
				       params.altmap, MIGRATE_MOVABLE);
	mem_hotplug_done();
	if (err) {
		untrack_pfn(NULL, range_pfn(range), range_len(range), true);
		return err;
	}

	/* The long part: without the hotplug lock. */
	init_pages(zone, pgmap, i);
	return 0;
}

/*
 * To begin hotplug takes a grace period, too. @quiet is most often the same one,
 * so that one is waited for and not two.
 */
static void pgmap_remove_range(struct dev_pagemap *pgmap, int i,
			       unsigned long quiet)
{
	struct range *range = &pgmap->ranges[i];
	/* The first one of the range that was ever initialised. */
	struct page *page = pfn_to_page(range_pfn(range) + range_skip(pgmap, i));

	mem_hotplug_begin();
	cond_synchronize_rcu(quiet);
	remove_pfn_range_from_zone(page_zone(page), range_pfn(range),
				   range_nr(range));
	remove_memory_range(pgmap, range);
	mem_hotplug_done();
	untrack_pfn(NULL, range_pfn(range), range_len(range), true);
}

/* The struct pages go when @quiet, a grace period, is over. */
static void remove_ranges(struct dev_pagemap *pgmap, int nr,
			  unsigned long quiet)
{
	int i;

	for (i = 0; i < nr; i++)
		pgmap_remove_range(pgmap, i, quiet);
	WARN_ONCE(pgmap->altmap.alloc, "struct pages of an altmap leaked\n");
}

/*
 * nr_range counts the ranges that are in while this runs: the vmemmap code
 * takes ranges[nr_range] for the one that is being added.
 */
static int add_ranges(struct dev_pagemap *pgmap, int nid)
{
	const int nr = pgmap->nr_range;
	int err = 0;

	for (pgmap->nr_range = 0; pgmap->nr_range < nr; pgmap->nr_range++) {
		err = pgmap_add_range(pgmap, pgmap->nr_range, nid);
		if (err) {
			remove_ranges(pgmap, pgmap->nr_range,
				      get_completed_synchronize_rcu());
			break;
		}
	}
	pgmap->nr_range = nr;
	return err;
}

/* --- Publish and kill ---------------------------------------------------- */

static void pgmap_ref_release(struct percpu_ref *ref)
{
	complete(&container_of(ref, struct dev_pagemap, ref)->done);
}

/* From here on get_dev_pagemap() finds it. Pairs with pgmap_kill(). */
static void pgmap_publish(struct dev_pagemap *pgmap)
{
	fsdax_count(pgmap, true);
	percpu_ref_reinit(&pgmap->ref);
	if (!rules_of(pgmap)->given_out)
		percpu_ref_get_many(&pgmap->ref, pgmap_nr_units(pgmap));
}

static void pgmap_kill(struct dev_pagemap *pgmap)
{
	percpu_ref_kill(&pgmap->ref);
	if (!rules_of(pgmap)->given_out)
		percpu_ref_put_many(&pgmap->ref, pgmap_nr_units(pgmap));
}

/**
 * memremap_pages() - give struct pages to device memory
 * @pgmap: what to map, and how. Belongs to the core until memunmap_pages(), or
 *	until this fails
 * @nid: node that the memory is close to, or NUMA_NO_NODE for the caller's
 *
 * With a struct device at hand, devm_memremap_pages() does the same and cleans
 * up by itself.
 *
 * Context: Process context. Sleeps, and takes the memory hotplug lock.
 *
 * Return: The kernel address of the first range, which must not be dereferenced
 * for MEMORY_DEVICE_PRIVATE; or an ERR_PTR(), and nothing has changed:
 *
 * * -EINVAL - no range, or one that ends before it starts, is not aligned to a
 *   subsection, or is no multiple of the compound page; a @type that is unknown
 *   or not in this kernel; owner or callbacks missing that the type needs; a
 *   vmemmap_shift above the largest folio; an altmap with several ranges, that
 *   begins elsewhere, or leaves no page
 * * -ERANGE - addresses that this machine cannot have
 * * -ENXIO - the range touches System RAM
 * * -EEXIST - it overlaps a page map, or another range of this one, or has struct
 *   pages already
 * * -ENOMEM - out of memory
 * * anything else that the architecture's hotplug returns
 */
void *memremap_pages(struct dev_pagemap *pgmap, int nid)
{
	int err;

	if (nid < 0)
		nid = numa_mem_id();

	err = check_pgmap(pgmap);
	if (err)
		return ERR_PTR(err);

	init_completion(&pgmap->done);
	err = percpu_ref_init(&pgmap->ref, pgmap_ref_release,
			      PERCPU_REF_INIT_DEAD, GFP_KERNEL);
	if (err)
		return ERR_PTR(err);

	err = reserve_ranges(pgmap, pgmap->nr_range);
	if (err)
		goto err_exit_ref;
	err = add_ranges(pgmap, nid);
	if (err)
		goto err_release_ranges;

	pgmap_publish(pgmap);
	return __va(pgmap->range.start);

err_release_ranges:
	cond_synchronize_rcu(retire_ranges(pgmap, pgmap->nr_range));
	release_ranges(pgmap, pgmap->nr_range);
err_exit_ref:
	percpu_ref_exit(&pgmap->ref);
	return ERR_PTR(err);
}
EXPORT_SYMBOL_GPL(memremap_pages);

/**
 * memunmap_pages() - take the struct pages away again
 * @pgmap: what memremap_pages() took
 *
 * No new reference can be had from now on. Waits for the ones that are out, so
 * the driver has evicted its memory, or is about to, on another CPU. It holds no
 * lock that freeing its pages needs.
 *
 * Context: Process context. Sleeps, possibly for long.
 */
void memunmap_pages(struct dev_pagemap *pgmap)
{
	pgmap_kill(pgmap);
	wait_for_completion(&pgmap->done);

	remove_ranges(pgmap, pgmap->nr_range,
		      retire_ranges(pgmap, pgmap->nr_range));
	release_ranges(pgmap, pgmap->nr_range);
	percpu_ref_exit(&pgmap->ref);
	fsdax_count(pgmap, false);
}
EXPORT_SYMBOL_GPL(memunmap_pages);

static void devm_release_pgmap(void *pgmap)
{
	memunmap_pages(pgmap);
}

/**
 * devm_memremap_pages() - memremap_pages() for the time a driver is bound
 * @dev: the device; its node is the memory's
 * @pgmap: what to map, and how
 *
 * Context: Process context. Sleeps.
 *
 * Return: As memremap_pages().
 */
void *devm_memremap_pages(struct device *dev, struct dev_pagemap *pgmap)
{
	void *addr = memremap_pages(pgmap, dev_to_node(dev));
	int err;

	if (IS_ERR(addr))
		return addr;
	err = devm_add_action_or_reset(dev, devm_release_pgmap, pgmap);
	return err ? ERR_PTR(err) : addr;
}
EXPORT_SYMBOL_GPL(devm_memremap_pages);

/**
 * devm_memunmap_pages() - memunmap_pages() before the driver is unbound
 * @dev: the device
 * @pgmap: what devm_memremap_pages() took
 *
 * Context: Process context. Sleeps, possibly for long.
 */
void devm_memunmap_pages(struct device *dev, struct dev_pagemap *pgmap)
{
	devm_release_action(dev, devm_release_pgmap, pgmap);
}
EXPORT_SYMBOL_GPL(devm_memunmap_pages);

/**
 * get_dev_pagemap() - the page map of a pfn, and a reference to it
 * @pfn: any pfn
 * @pgmap: page map of an earlier call, or NULL. Its reference goes over to the
 *	result when it covers @pfn, and is dropped when not. For loops.
 *
 * While the reference is held the struct pages stay.
 *
 * Context: Any.
 *
 * Return: The page map, for put_dev_pagemap(); NULL when @pfn is in none, or in
 * one that is not there yet or about to go.
 */
struct dev_pagemap *get_dev_pagemap(unsigned long pfn,
				    struct dev_pagemap *pgmap)
{
	if (pgmap && pgmap_find_range(pgmap, pfn) >= 0)
		return pgmap;
	put_dev_pagemap(pgmap);

	/* Pairs with the grace period of retire_ranges(). */
	guard(rcu)();
	pgmap = mtree_load(&pgmaps, pfn);
	if (!pgmap || pgmap == PGMAP_RETIRED)
		return NULL;
	return percpu_ref_tryget_live_rcu(&pgmap->ref) ? pgmap : NULL;
}
EXPORT_SYMBOL_GPL(get_dev_pagemap);

/**
 * pfn_in_pgmap() - does ZONE_DEVICE have this pfn?
 * @pfn: any pfn
 *
 * Unlike get_dev_pagemap() this says yes while the page map comes and goes, too:
 * whoever looks for RAM must not take it for that then.
 *
 * Context: Any.
 *
 * Return: true from before its struct page is there until after it is gone.
 */
bool pfn_in_pgmap(unsigned long pfn)
{
	return mtree_load(&pgmaps, pfn);
}

/* --- A page's life ------------------------------------------------------- */

/*
 * Tails of a large folio are written once, not each time that it is given out: a
 * folio that is freed leaves its struct pages as they are, and marks the first.
 * While the mark is there, pages of it were given out as nothing else since.
 *
 *	given out				the mark
 *	a folio there, of that order		goes; tails are taken as they are
 *	a folio there, of another order		goes
 *	a folio within				is a tail: takes it from its head
 *	a folio around				goes: its page becomes a tail
 *
 * Nobody but who gives out these pages sets or looks at it. A split needs nothing:
 * a folio in use has no mark, and its pages, freed one by one, get none.
 *
 * Tails without a mark on their head are just old, until they are given out: what
 * they call their head may be free, or a smaller folio in use. Who comes by pfn
 * may find that:
 *
 *	migrate_device_range()	needs a reference of the head, and looks whether
 *				the page is within (claim_device_folio())
 *	memory_failure()	asks the driver by pfn; without its callback it looks
 *				at the head's mapping, and does nothing
 *	/proc/kpageflags and others of pfn_to_online_page()
 *				do not get at pages of a page map
 *	a PTE that is gone	its reader looks again before it trusts the page
 */
#define TAILS_GOOD		BIT(PG_owner_priv_1)

/* Flags that are not about what a process did with the folio. */
#define DEVICE_FOLIO_FLAGS	(BIT(PG_locked) | BIT(PG_head) | BIT(PG_reserved))

/* Of the flags of a page that was free those stay that say where it is. */
#define GONE_WHEN_GIVEN_OUT	(PAGE_FLAGS_CHECK_AT_PREP & ~BIT(PG_reserved))

/* Atomic: memory_failure() marks pages that nobody uses, too. */
static void clear_flags(struct page *page)
{
	if (page->flags & GONE_WHEN_GIVEN_OUT)
		set_mask_bits(&page->flags, GONE_WHEN_GIVEN_OUT, 0);
}

/*
 * What a page was before does not matter: head, tail or alone, in a folio of
 * whatever order.
 */
static void make_blank(struct page *page, struct dev_pagemap *pgmap)
{
	clear_flags(page);
	page->pgmap = pgmap;
	page->mapping = NULL;
	set_page_private(page, 0);
}

static void make_tails(struct page *head, unsigned int order)
{
	int i;

	for (i = 1; i < 1 << order; i++) {
		clear_flags(head + i);
		prep_compound_tail(head, i);
	}
}

/*
 * A process that ends leaves PageAnonExclusive, and memory_failure() what it
 * likes. Two pages at a time, to have done with those that have nothing, which is
 * most. The first tail has flags of the folio.
 */
static void clean_tails(struct page *head, unsigned int order)
{
	unsigned long i, seen = 0;

	clear_flags(head + 1);
	for (i = 2; i < 1UL << order; i += 2)
		seen |= head[i].flags | head[i + 1].flags;
	if (!(seen & GONE_WHEN_GIVEN_OUT))
		return;
	for (i = 2; i < 1UL << order; i++)
		clear_flags(head + i);
}

static bool has_good_tails(struct page *head, unsigned int order)
{
	unsigned long i;

	if (!(head->flags & TAILS_GOOD) || compound_order(head) != order)
		return false;
	if (!IS_ENABLED(CONFIG_DEBUG_VM))
		return true;
	for (i = 1; i < 1UL << order; i++)
		if (WARN_ON_ONCE(compound_head(head + i) != head ||
				 page_private(head + i) ||
				 (i > 2 && head[i].mapping != TAIL_MAPPING)))
			return false;
	return true;
}

/*
 * What was a folio around this page will not be it again. Its head may be in use
 * by now as something smaller, and has no mark then.
 */
static void leave_folio(struct page *page)
{
	struct page *head = compound_head(page);

	if (head != page && (READ_ONCE(head->flags) & TAILS_GOOD))
		clear_bit(PG_owner_priv_1, &head->flags);
}

static void make_compound(struct page *head, struct dev_pagemap *pgmap,
			  unsigned int order)
{
	bool good = has_good_tails(head, order);

	make_blank(head, pgmap);
	if (good)
		clean_tails(head, order);
	else
		make_tails(head, order);
	__folio_set_head((struct folio *)head);
	prep_compound_head(head, order);
}

/**
 * zone_device_folio_prepare() - make a folio of free pages, which stays free
 * @folio: its first page
 * @pgmap: the page map that it is in
 * @order: its order
 *
 * The first half of zone_device_folio_init(), for the core.
 *
 * Context: Any.
 */
void zone_device_folio_prepare(struct folio *folio, struct dev_pagemap *pgmap,
			       unsigned int order)
{
	struct page *page = &folio->page;

	if (likely(!order && !PageCompound(page)))
		return;
	/* Folios are aligned: what was around the first page was so around all. */
	leave_folio(page);
	if (order)
		make_compound(page, pgmap, order);
	else
		make_blank(page, pgmap);
}

/**
 * zone_device_folio_get() - the first reference of a folio, and its lock
 * @folio: what zone_device_folio_prepare() made
 *
 * The second half of zone_device_folio_init(), for the core.
 *
 * Context: Any.
 */
void zone_device_folio_get(struct folio *folio)
{
	struct dev_pagemap *pgmap = folio->page.pgmap;

	/*
	 * A driver that gives out pages after memunmap_pages() began is wrong.
	 * They take their references all the same, as freeing drops them.
	 */
	if (WARN_ON_ONCE(!percpu_ref_tryget_live(&pgmap->ref)))
		percpu_ref_get(&pgmap->ref);
	if (folio_test_large(folio))
		percpu_ref_get_many(&pgmap->ref, folio_nr_pages(folio) - 1);
	/*
	 * Locked first: eviction, which goes by pfn, takes whatever has a count.
	 * Who has the lock of a page that nobody uses forgot to unlock it.
	 */
	WARN_ON_ONCE(!folio_trylock(folio));
	/* What the folio is comes before the reference that others may take. */
	folio_ref_unfreeze(folio, 1);
}

/**
 * zone_device_folio_init() - give out free pages as a folio
 * @folio: its first page, of private or coherent memory; aligned to the order
 * @pgmap: the page map that it is in
 * @order: how many: 2^@order pages, none of which anybody uses
 *
 * The folio is locked and has one reference, which is the caller's. When the
 * last one is dropped, folio_free is called. The driver's data on it is what was
 * there before.
 *
 * Context: Any.
 */
void zone_device_folio_init(struct folio *folio, struct dev_pagemap *pgmap,
			    unsigned int order)
{
	zone_device_folio_prepare(folio, pgmap, order);
	zone_device_folio_get(folio);
}

/**
 * zone_device_page_init() - give out a free page
 * @page: page of private or coherent memory that nobody uses
 *
 * As zone_device_folio_init() of order 0.
 *
 * Context: Any.
 */
void zone_device_page_init(struct page *page)
{
	zone_device_folio_init((struct folio *)page, page_pgmap(page), 0);
}
EXPORT_SYMBOL_GPL(zone_device_page_init);

/*
 * The flags, PageAnonExclusive among them. Atomic: memory_failure() marks pages
 * that nobody uses, too.
 */
static __always_inline void scrub_flags(struct folio *folio, unsigned long nr)
{
	const unsigned long gone = PAGE_FLAGS_CHECK_AT_PREP & ~DEVICE_FOLIO_FLAGS;
	unsigned long flags = READ_ONCE(folio->flags);

	if (!(flags & gone))
		return;
	/* munlock() does not find a folio that the CPU cannot address. */
	if (unlikely(flags & BIT(PG_mlocked)))
		zone_stat_mod_folio(folio, NR_MLOCK, -nr);
	set_mask_bits(&folio->flags, gone, 0);
}

/*
 * What the process left on the folio goes, so that the next one finds it blank.
 * mapping may still say that it is anonymous; what it points to is gone. Tails
 * are cleaned when they are given out.
 */
static __always_inline void scrub_folio(struct folio *folio, unsigned long nr)
{
	if (folio_memcg(folio))
		mem_cgroup_uncharge(folio);
	scrub_flags(folio, nr);
	if (nr > 1 && folio_test_anon(folio))
		mod_mthp_stat(folio_order(folio), MTHP_STAT_NR_ANON, -1);
	folio->mapping = NULL;
}

static void tell_driver(const struct dev_pagemap_ops *ops, struct folio *folio)
{
	if (ops->folio_free)
		ops->folio_free(folio);
	else
		ops->page_free(&folio->page);
}

static __always_inline void free_given_out(struct folio *folio,
					   struct dev_pagemap *pgmap,
					   unsigned long nr)
{
	scrub_folio(folio, nr);
	if (nr > 1)
		set_bit(PG_owner_priv_1, &folio->flags);
	tell_driver(pgmap->ops, folio);
	/* Last: until then the struct pages stay, whatever the driver does. */
	percpu_ref_put_many(&pgmap->ref, nr);
}

/* Apart, as single pages are many. */
static noinline void free_large(struct folio *folio, struct dev_pagemap *pgmap)
{
	free_given_out(folio, pgmap, folio_nr_pages(folio));
}

/* It has its count back before the driver may hand it out again. */
static noinline void free_born(struct folio *folio,
			       const struct dev_pagemap_ops *ops)
{
	if (WARN_ON_ONCE(!ops || !(ops->folio_free || ops->page_free)))
		return;
	scrub_folio(folio, folio_nr_pages(folio));
	folio_set_count(folio, 1);
	tell_driver(ops, folio);
}

/* free_zone_device_folio() - the last reference of a device folio is gone */
void free_zone_device_folio(struct folio *folio)
{
	struct dev_pagemap *pgmap = folio->page.pgmap;

	if (!rules_of(pgmap)->given_out)
		free_born(folio, pgmap->ops);
	else if (folio_test_large(folio))
		free_large(folio, pgmap);
	else
		free_given_out(folio, pgmap, 1);
}
