/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Device memory for drivers that do not want to write a page allocator.
 *
 * A pool of private or coherent device memory: it hands out pages, moves them
 * between RAM and the device, answers the CPU's faults, and empties the device.
 * The driver copies, and knows what a page number means to its hardware.
 */
#ifndef _LINUX_HMM_DEVMEM_H
#define _LINUX_HMM_DEVMEM_H

#include <linux/list.h>
#include <linux/llist.h>
#include <linux/memremap.h>
#include <linux/migrate_device.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>

struct device;
struct mm_struct;
struct resource;

/* Pages that one call of the driver's copy callback gets at most. */
#define HMM_DEVMEM_BATCH	512UL

/* Blocks of free pages are of up to this order: 2 MiB, as a range begins. */
#define HMM_DEVMEM_ORDERS	10

/**
 * struct hmm_devmem_copy - pages to copy, in a row on both sides
 * @dst: where to
 * @src: where from, or NULL: fill @dst with zeroes
 * @nr: how many pages: 1, or up to 2^&hmm_devmem_ops.max_order
 * @data: the driver's, from copy to wait: a DMA address, say
 * @failed: set by the driver: they were not copied, and stay where they are
 */
struct hmm_devmem_copy {
	struct page	*dst;
	struct page	*src;
	unsigned long	nr;
	unsigned long	data;
	bool		failed;
};

/* Most pages of hmm_devmem_set_fault_around(): 64 KiB, as for files. */
#define HMM_DEVMEM_AROUND_MAX	16

/**
 * struct hmm_devmem_batch - pages to copy, all in the same direction
 * @devmem: the pool
 * @copies: the pages
 * @nr: how many copies, at least one; %HMM_DEVMEM_BATCH pages at most
 * @to_device: from RAM to the device; else the other way
 * @data: the driver's, from copy to wait: a fence, say
 */
struct hmm_devmem_batch {
	struct hmm_devmem	*devmem;
	struct hmm_devmem_copy	*copies;
	unsigned long		nr;
	bool			to_device;
	void			*data;
};

/**
 * struct hmm_devmem_chunk - a range of device memory, added and removed in one go
 * @pgmap: its page map
 * @devmem: its pool
 * @data: the driver's
 *
 * The other members are the pool's.
 */
struct hmm_devmem_chunk {
	struct dev_pagemap	pgmap;
	struct hmm_devmem	*devmem;
	void			*data;

	/* private: set once */
	struct resource		*res;
	unsigned long		nr_pages;
	struct llist_head	returned;	/* any context, no lock */
	/* under devmem->lock */
	struct list_head	node;
	struct list_head	avail;
	struct llist_node	*pending;
	bool			hidden;
	unsigned long		nr_free;
	struct page		*free[HMM_DEVMEM_ORDERS];
	u8			*order_of;
};

/**
 * struct hmm_devmem_ops - what a driver does for its pool
 * @copy: Copy all pages of a batch, or begin to. Pages are locked, and nobody
 *	changes them. Returns 0, or -errno if no page can be copied; those that
 *	alone cannot are marked failed. Sleeps if it has to. Required.
 * @wait: Wait until what copy began is done, and mark what failed. Called once
 *	after each copy that returned 0. Returns 0, or -errno if the state of all
 *	pages is unknown: as if none had been copied. Optional. For both, -EBUSY
 *	says that it will pass: a CPU fault is then repeated. -ENOMEM is a fault
 *	that is out of memory. After any other error it ends in SIGBUS. -ENODEV
 *	says that the device will never copy again: see hmm_devmem_remove(). After
 *	any error but -EBUSY from @wait the device does not write to the
 *	destinations any more. After that one it may, although the pool puts them:
 *	the driver holds references of its own, and has @copy fail, until it knows
 *	that the device is done.
 * @folio_init: The folio is about to be given out. It may set its
 *	folio_set_zone_device_data(), which is NULL and the driver's until
 *	@folio_exit. Returns 0, or -errno, and the folio stays free; if it is
 *	large, smaller ones are tried. May sleep. Optional.
 * @folio_exit: The last reference of the folio is gone. Any context. Optional.
 * @folio_split: As &dev_pagemap_ops.folio_split. Optional.
 * @may_alloc: Asked for each destination that is large, of @order. Says no:
 *	smaller ones are tried. Optional.
 * @chunk_add: The chunk has its addresses, and no struct pages yet: find memory
 *	on the board for it. Returns 0 or -errno. Optional.
 * @chunk_remove: Nobody uses any page of it, and the struct pages are gone.
 *	Optional.
 * @max_order: order of the largest folio that @copy and the others know to
 *	handle; 0, and every folio is a page.
 */
struct hmm_devmem_ops {
	int	(*copy)(struct hmm_devmem_batch *batch);
	int	(*wait)(struct hmm_devmem_batch *batch);
	int	(*folio_init)(struct hmm_devmem *devmem, struct folio *folio);
	void	(*folio_exit)(struct hmm_devmem *devmem, struct folio *folio);
	void	(*folio_split)(struct folio *head, struct folio *tail);
	bool	(*may_alloc)(struct hmm_devmem *devmem, bool to_device,
			     unsigned int order);
	int	(*chunk_add)(struct hmm_devmem_chunk *chunk);
	void	(*chunk_remove)(struct hmm_devmem_chunk *chunk);
	unsigned int max_order;
};

/**
 * struct hmm_devmem - a pool of device memory
 * @ops: the driver's callbacks
 * @device: the device, for whose time in the driver's hands the pool exists
 * @type: MEMORY_DEVICE_PRIVATE or MEMORY_DEVICE_COHERENT
 *
 * Its address is the owner of all its page maps, as in
 * &struct hmm_range.dev_private_owner. The other members are the pool's.
 */
struct hmm_devmem {
	const struct hmm_devmem_ops	*ops;
	struct device			*device;
	enum memory_type		type;

	/* private: */
	struct range			range;		/* of coherent memory */
	unsigned long			chunk_size;	/* bytes */
	unsigned long			max_size;	/* bytes */
	unsigned int			around;		/* pages of a CPU fault */
	struct mutex			grow_lock;	/* addition of chunks */
	struct mutex			shrink_lock;	/* eviction, removal */
	struct hmm_devmem_scratch	*scratch;	/* shrink_lock */
	unsigned long			patience;	/* jiffies */
	/* shrink_lock: */
	bool				leaving;	/* evicts for the last time */
	bool				failing;	/* copies, since: */
	unsigned long			failing_since;	/* jiffies */
	unsigned long			lost;		/* pages */
	bool				going;		/* grow_lock; read without */
	spinlock_t			lock;		/* what follows, and blocks */
	struct list_head		chunks;
	struct list_head		avail;
	unsigned long			size;		/* bytes */
};

/**
 * struct hmm_devmem_result - what became of a migration
 * @moved: pages, and holes, that are now where they were to go
 * @no_memory: pages that stayed, because there was no free one for them
 * @not_copied: pages that stayed, because the driver could not copy them
 * @stayed: pages that stayed, or were not selected, by &enum migrate_stay
 *
 * Adds up over calls: begin with zeroes.
 */
struct hmm_devmem_result {
	unsigned long	moved;
	unsigned long	no_memory;
	unsigned long	not_copied;
	unsigned long	stayed[NR_MIGRATE_STAY];
};

struct hmm_devmem *hmm_devmem_add(const struct hmm_devmem_ops *ops,
				  struct device *device, unsigned long size);
struct hmm_devmem *hmm_devmem_add_resource(const struct hmm_devmem_ops *ops,
					   struct device *device,
					   struct resource *res);
void hmm_devmem_remove(struct hmm_devmem *devmem);
void hmm_devmem_set_limit(struct hmm_devmem *devmem, unsigned long size);
int hmm_devmem_set_fault_around(struct hmm_devmem *devmem, unsigned int pages);

int hmm_devmem_migrate_to_device(struct hmm_devmem *devmem,
				 struct mm_struct *mm, unsigned long start,
				 unsigned long end,
				 struct hmm_devmem_result *result);
int hmm_devmem_fault_to_device(struct hmm_devmem *devmem,
			       struct mm_struct *mm, unsigned long start,
			       unsigned long end,
			       struct hmm_devmem_result *result);
int hmm_devmem_migrate_to_ram(struct hmm_devmem *devmem, struct mm_struct *mm,
			      unsigned long start, unsigned long end,
			      struct hmm_devmem_result *result);
int hmm_devmem_evict(struct hmm_devmem *devmem, unsigned long timeout,
		     struct hmm_devmem_result *result);
int hmm_devmem_shrink(struct hmm_devmem *devmem, unsigned long timeout);

/**
 * hmm_devmem_page_chunk() - the chunk of a page
 * @page: page of the memory of any pool
 *
 * Return: The chunk.
 */
static inline struct hmm_devmem_chunk *
hmm_devmem_page_chunk(const struct page *page)
{
	return container_of(page_pgmap(page), struct hmm_devmem_chunk, pgmap);
}

/**
 * hmm_devmem_page_offset() - where in its chunk is a page?
 * @page: page of the memory of any pool
 *
 * Return: The offset in bytes.
 */
static inline unsigned long hmm_devmem_page_offset(const struct page *page)
{
	return PFN_PHYS(page_to_pfn(page)) - page_pgmap(page)->range.start;
}

/**
 * hmm_devmem_has_page() - is this page in the memory of the pool?
 * @devmem: the pool
 * @page: any page
 *
 * Return: true if it is.
 */
static inline bool hmm_devmem_has_page(const struct hmm_devmem *devmem,
				       const struct page *page)
{
	return is_zone_device_page(page) && page_pgmap(page)->owner == devmem;
}

#endif /* _LINUX_HMM_DEVMEM_H */
