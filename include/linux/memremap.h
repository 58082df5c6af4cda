/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Page maps of device memory: struct pages for memory that is not System RAM
 * (ZONE_DEVICE).
 *
 * A driver fills in a struct dev_pagemap, hands it to devm_memremap_pages(),
 * and from then on its memory has struct pages, until the page map is released.
 */
#ifndef _LINUX_MEMREMAP_H_
#define _LINUX_MEMREMAP_H_

#include <linux/ioport.h>
#include <linux/mmzone.h>
#include <linux/percpu-refcount.h>
#include <linux/range.h>

struct device;
struct resource;

/* dev_pagemap.flags: altmap is filled in */
#define PGMAP_ALTMAP_VALID	BIT(0)

/**
 * enum memory_type - what the CPU may do with the pages of a page map
 *
 * Zero is no type, so that a structure nobody filled in is refused.
 *
 * @MEMORY_DEVICE_PRIVATE: The CPU cannot address it. Its pages stand in page
 *	tables as swap entries; a CPU access calls
 *	&dev_pagemap_ops.migrate_to_ram.
 * @MEMORY_DEVICE_COHERENT: CPU and device address it, and their caches agree.
 *	Process memory lives in it like in RAM, but long-term pins move it out
 *	first, so that the driver can always evict.
 * @MEMORY_DEVICE_FS_DAX: Persistent memory below a file system. The page count
 *	is one when the page is idle, and dropping to one wakes the file
 *	system, which waits for it before it truncates.
 * @MEMORY_DEVICE_GENERIC: Memory that behaves like RAM and that no file system
 *	manages, as behind a DAX character device.
 * @MEMORY_DEVICE_PCI_P2PDMA: A PCI BAR, for transfers between devices.
 */
enum memory_type {
	MEMORY_DEVICE_PRIVATE		= 1,
	MEMORY_DEVICE_COHERENT		= 2,
	MEMORY_DEVICE_FS_DAX		= 3,
	MEMORY_DEVICE_GENERIC		= 4,
	MEMORY_DEVICE_PCI_P2PDMA	= 5,
};

/**
 * struct vmem_altmap - struct pages that live in the memory they describe
 * @base_pfn: first pfn of the page map
 * @end_pfn: last pfn of the page map, for architectures that allocate beyond
 *	one section
 * @reserve: pages at the start that belong to the driver and have no use here
 * @free: pages after those, for the struct pages
 * @align: pages of @free lost to alignment; kept by the vmemmap code
 * @alloc: pages of @free in use; kept by the vmemmap code
 * @inaccessible: the memory cannot be written before it is onlined
 */
struct vmem_altmap {
	unsigned long		base_pfn;
	const unsigned long	reserve;
	const unsigned long	end_pfn;
	unsigned long		free, align, alloc;
	bool			inaccessible;
};

/**
 * struct dev_pagemap_ops - what the driver does for its pages
 * @folio_free: The last reference of a folio is gone; called once. In any context
 *	that folio_put() may run in, thus it does not sleep. Its memory may be
 *	given out again from within, in any order.
 * @page_free: The same for drivers that give out single pages only. One of the
 *	two is required for private and coherent memory.
 * @folio_split: A large folio is being split: called for each folio @tail that
 *	comes into being behind @head, then once with NULL, when @head itself has
 *	shrunk. None is in use by anybody else. Does not sleep. Optional.
 * @migrate_to_ram: The CPU touched a private page: move it to RAM. The page is
 *	vmf->page, locked and referenced; pass it as
 *	&struct migrate_vma.fault_page. Returns 0, or a VM_FAULT code.
 *	Required for private memory.
 * @memory_failure: A range of pfns is poisoned: tell its users. Returns 0, or
 *	-EOPNOTSUPP (as if not there) for the default treatment. Optional.
 */
struct dev_pagemap_ops {
	int (*memory_failure)(struct dev_pagemap *pgmap, unsigned long first_pfn,
			      unsigned long nr_pages, int mf_flags);
	vm_fault_t (*migrate_to_ram)(struct vm_fault *vmf);
	void (*folio_free)(struct folio *folio);
	void (*page_free)(struct page *page);
	void (*folio_split)(struct folio *head, struct folio *tail);
};

/**
 * struct dev_pagemap - a page map: device memory with struct pages
 *
 * The caller fills in @type, the ranges, and what the type asks for, and keeps
 * the structure until the page map is released. Ranges start and end on
 * subsections (2 MiB).
 *
 * @altmap: see PGMAP_ALTMAP_VALID
 * @ref: held by every page in use, and by get_dev_pagemap(); private to the core
 * @done: completed when @ref is gone; private to the core
 * @type: what kind of memory it is
 * @flags: PGMAP_ALTMAP_VALID, or 0
 * @vmemmap_shift: order of the compound pages that the memory is made of; 0 for
 *	single pages
 * @ops: the driver's callbacks; required for private and coherent memory
 * @owner: whoever may use private pages without a fault, and select them for
 *	migration: compared, never dereferenced. Required for private and
 *	coherent memory
 * @nr_range: number of ranges
 * @range: the only range, when @nr_range is 1
 * @ranges: the ranges, @nr_range of them; inclusive physical addresses
 */
struct dev_pagemap {
	/* set by the driver */
	enum memory_type		type;
	unsigned int			flags;
	const struct dev_pagemap_ops	*ops;
	void				*owner;
	unsigned long			vmemmap_shift;
	struct vmem_altmap		altmap;

	/* kept by the core */
	struct percpu_ref		ref;
	struct completion		done;

	/* set by the driver; the array comes last */
	int				nr_range;
	union {
		DECLARE_FLEX_ARRAY(struct range, ranges);
		struct range		range;
	};
};

#ifdef CONFIG_ZONE_DEVICE

/* The page map. */
void *devm_memremap_pages(struct device *dev, struct dev_pagemap *pgmap);
void *memremap_pages(struct dev_pagemap *pgmap, int nid);
void devm_memunmap_pages(struct device *dev, struct dev_pagemap *pgmap);
void memunmap_pages(struct dev_pagemap *pgmap);

/* Its pages. */
bool pgmap_pfn_valid(struct dev_pagemap *pgmap, unsigned long pfn);
bool pfn_in_pgmap(unsigned long pfn);
struct dev_pagemap *get_dev_pagemap(unsigned long pfn,
				    struct dev_pagemap *pgmap);
void zone_device_folio_init(struct folio *folio, struct dev_pagemap *pgmap,
			    unsigned int order);
void zone_device_page_init(struct page *page);

/* For the core: the two halves of zone_device_folio_init(). */
void zone_device_folio_prepare(struct folio *folio, struct dev_pagemap *pgmap,
			       unsigned int order);
void zone_device_folio_get(struct folio *folio);

unsigned long memremap_compat_align(void);

#else

/* Without struct pages nothing asks for more than a page. */
static inline unsigned long memremap_compat_align(void)
{
	return PAGE_SIZE;
}

static inline bool pgmap_pfn_valid(struct dev_pagemap *map, unsigned long pfn)
{
	return false;
}

static inline bool pfn_in_pgmap(unsigned long pfn)
{
	return false;
}

static inline struct dev_pagemap *
get_dev_pagemap(unsigned long pfn, struct dev_pagemap *map)
{
	return NULL;
}

static inline void
devm_memunmap_pages(struct device *dev, struct dev_pagemap *map)
{
}

/* Callers look at the config first, and use devm_memremap(). */
static inline void *
devm_memremap_pages(struct device *dev, struct dev_pagemap *map)
{
	WARN_ON_ONCE(true);
	return ERR_PTR(-ENXIO);
}

#endif

/**
 * put_dev_pagemap() - give back what get_dev_pagemap() returned
 * @pgmap: a page map, or NULL
 *
 * Context: Any.
 */
static inline void put_dev_pagemap(struct dev_pagemap *pgmap)
{
	if (!pgmap)
		return;
	percpu_ref_put(&pgmap->ref);
}

/* The altmap, or NULL when the struct pages are in RAM. */
static inline struct vmem_altmap *pgmap_altmap(struct dev_pagemap *pgmap)
{
	return pgmap->flags & PGMAP_ALTMAP_VALID ? &pgmap->altmap : NULL;
}

/* Pages in each compound page of the page map. */
static inline unsigned long pgmap_vmemmap_nr(struct dev_pagemap *pgmap)
{
	return 1UL << pgmap->vmemmap_shift;
}

static inline bool pgmap_has_memory_failure(struct dev_pagemap *pgmap)
{
	const struct dev_pagemap_ops *ops = pgmap->ops;

	return ops && ops->memory_failure;
}

/**
 * page_pgmap() - the page map of a device page
 * @page: a page in ZONE_DEVICE, maybe a tail: those have no room for it
 *
 * Return: The page map.
 */
static inline struct dev_pagemap *page_pgmap(const struct page *page)
{
	return compound_head(page)->pgmap;
}

/**
 * folio_zone_device_data() - what the driver has noted on a folio
 * @folio: a device folio
 *
 * Return: What folio_set_zone_device_data() set.
 */
static inline void *folio_zone_device_data(const struct folio *folio)
{
	return folio->page.zone_device_data;
}

/**
 * folio_set_zone_device_data() - note something on a folio
 * @folio: a device folio, in use, or about to be given out
 * @data: the driver's
 */
static inline void folio_set_zone_device_data(struct folio *folio, void *data)
{
	folio->page.zone_device_data = data;
}

static inline bool zone_device_page_is(const struct page *page,
				       enum memory_type type)
{
	return is_zone_device_page(page) && page_pgmap(page)->type == type;
}

static inline bool zone_device_folio_is(const struct folio *folio,
					enum memory_type type)
{
	return is_zone_device_page(&folio->page) &&
	       folio->page.pgmap->type == type;
}

static inline bool is_pci_p2pdma_page(const struct page *page)
{
	return IS_ENABLED(CONFIG_PCI_P2PDMA) &&
	       zone_device_page_is(page, MEMORY_DEVICE_PCI_P2PDMA);
}

static inline bool is_device_coherent_page(const struct page *page)
{
	return zone_device_page_is(page, MEMORY_DEVICE_COHERENT);
}

static inline bool folio_is_device_coherent(const struct folio *folio)
{
	return zone_device_folio_is(folio, MEMORY_DEVICE_COHERENT);
}

static inline bool folio_is_device_private(const struct folio *folio)
{
	return IS_ENABLED(CONFIG_DEVICE_PRIVATE) &&
	       zone_device_folio_is(folio, MEMORY_DEVICE_PRIVATE);
}

static inline bool is_device_private_page(const struct page *page)
{
	return IS_ENABLED(CONFIG_DEVICE_PRIVATE) &&
	       zone_device_page_is(page, MEMORY_DEVICE_PRIVATE);
}

#endif /* _LINUX_MEMREMAP_H_ */
