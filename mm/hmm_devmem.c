// SPDX-License-Identifier: GPL-2.0
/*
 * A pool of device memory, for drivers that do not want to write one.
 *
 * It sits on the public interfaces of page maps and migration, and is what their
 * drivers would each write for themselves: where free pages are, how a range
 * moves page by page, what a CPU fault does, how a device is emptied.
 *
 * Vocabulary
 *
 * chunk	a page map of the pool: memory that is added and removed in one go
 * block	free pages of a chunk, 2^order of them and aligned so; buddies join
 * returned	pages of a chunk that were freed, and are not in a block yet
 * hidden	a chunk that gives out no pages: it is being emptied to be removed
 *
 * A page's life
 *
 *	free, in a block
 *	  take			devmem->lock, many pages at once
 *	given out, in use	zone_device_page_init() ... the last folio_put()
 *	  return		no lock, any context: put on a list
 *	free, returned
 *	  absorb		devmem->lock, all that have returned at once
 *
 * A migration
 *
 *	setup		the core locks and unmaps the sources
 *	destinations	from the pool, or from RAM
 *	copy, wait	the driver
 *	pages		the core: those that were copied are moved
 *	finalize	the core maps what moved and what stayed
 *
 * A page moves only after it was copied, so whatever fails before leaves its
 * data where they were.
 *
 * Locks
 *
 *	devmem->shrink_lock	removal and eviction; nobody with a page waits for it
 *	  mmap_lock
 *	    folio lock
 *	      devmem->lock	chunks and blocks; leaf, with interrupts off
 *	devmem->grow_lock	addition; before any page is locked, as adding memory
 *				takes the memory hotplug lock
 */
#include <linux/device.h>
#include <linux/export.h>
#include <linux/highmem.h>
#include <linux/hmm_devmem.h>
#include <linux/ioport.h>
#include <linux/memremap.h>
#include <linux/mempolicy.h>
#include <linux/migrate.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#define BATCH		HMM_DEVMEM_BATCH

/* The largest block is a batch. */
static_assert(BATCH == 1UL << (HMM_DEVMEM_ORDERS - 1));

/* order_of: not the first page of a block */
#define NO_BLOCK	0xff

/* How often to say that somebody does not let go of a page. */
#define STUCK_TIMEOUT	(10 * HZ)

/* How long a pool that goes has its pages copied in vain. */
#define PATIENCE	(5 * HZ)

/* What one migration needs room for. */
struct hmm_devmem_scratch {
	unsigned long		src[BATCH];
	unsigned long		dst[BATCH];
	struct page		*pages[BATCH];
	u16			at[BATCH];
	struct hmm_devmem_copy	copies[BATCH];
};

/* As hmm_devmem_page_chunk(), of a page that is no tail. */
static struct hmm_devmem_chunk *folio_chunk(const struct folio *folio)
{
	return container_of(folio->page.pgmap, struct hmm_devmem_chunk, pgmap);
}

/* --- Blocks: free pages of a chunk, under devmem->lock -------------------- */

/*
 * A free page is nobody's. Its link to the next of its list is where the driver's
 * data will be, the one to the page before in index.
 */
static struct page *block_next(const struct page *page)
{
	return page->zone_device_data;
}

static void block_set_next(struct page *page, struct page *next)
{
	page->zone_device_data = next;
}

static struct page *block_prev(const struct page *page)
{
	return (struct page *)page->index;
}

static void block_set_prev(struct page *page, struct page *prev)
{
	page->index = (unsigned long)prev;
}

static unsigned long chunk_pfn(const struct hmm_devmem_chunk *chunk)
{
	return PHYS_PFN(chunk->pgmap.range.start);
}

static struct page *chunk_page(const struct hmm_devmem_chunk *chunk,
			       unsigned long i)
{
	return pfn_to_page(chunk_pfn(chunk) + i);
}

static unsigned long chunk_index(const struct hmm_devmem_chunk *chunk,
				 const struct page *page)
{
	return page_to_pfn(page) - chunk_pfn(chunk);
}

static void block_link(struct hmm_devmem_chunk *chunk, unsigned long i,
		       unsigned int order)
{
	struct page *page = chunk_page(chunk, i);
	struct page *next = chunk->free[order];

	block_set_next(page, next);
	block_set_prev(page, NULL);
	if (next)
		block_set_prev(next, page);
	chunk->free[order] = page;
	WRITE_ONCE(chunk->order_of[i], order);
}

static void block_unlink(struct hmm_devmem_chunk *chunk, unsigned long i,
			 unsigned int order)
{
	struct page *page = chunk_page(chunk, i);
	struct page *next = block_next(page);
	struct page *prev = block_prev(page);

	if (next)
		block_set_prev(next, prev);
	if (prev)
		block_set_next(prev, next);
	else
		chunk->free[order] = next;
	WRITE_ONCE(chunk->order_of[i], NO_BLOCK);
}

static bool block_is_free(const struct hmm_devmem_chunk *chunk, unsigned long i,
			  unsigned int order)
{
	return i < chunk->nr_pages && chunk->order_of[i] == order;
}

static void block_free(struct hmm_devmem_chunk *chunk, unsigned long i,
		       unsigned int order)
{
	chunk->nr_free += 1UL << order;
	for (; order < HMM_DEVMEM_ORDERS - 1; order++) {
		unsigned long buddy = i ^ (1UL << order);

		if (!block_is_free(chunk, buddy, order))
			break;
		block_unlink(chunk, buddy, order);
		i &= ~(1UL << order);
	}
	block_link(chunk, i, order);
}

/* The smallest block of at least this order, cut down to it; or NULL. */
static struct page *block_take(struct hmm_devmem_chunk *chunk,
			       unsigned int order)
{
	unsigned int from = order;
	struct page *page;
	unsigned long i;

	while (!chunk->free[from])
		if (++from == HMM_DEVMEM_ORDERS)
			return NULL;

	page = chunk->free[from];
	i = chunk_index(chunk, page);
	block_unlink(chunk, i, from);
	while (from > order) {
		from--;
		block_link(chunk, i + (1UL << from), from);
	}
	chunk->nr_free -= 1UL << order;
	return page;
}

/* --- Pages: taken and returned -------------------------------------------- */

static struct llist_node *page_node(struct page *page)
{
	return (struct llist_node *)&page->zone_device_data;
}

static struct page *node_page(struct llist_node *node)
{
	return container_of((void **)node, struct page, zone_device_data);
}

/*
 * Makes blocks of what has returned, under devmem->lock: not of all at once, as
 * a process that ends returns a lot. Says whether there is more.
 */
static bool chunk_absorb(struct hmm_devmem_chunk *chunk)
{
	unsigned long n;

	if (!chunk->pending)
		chunk->pending = llist_del_all(&chunk->returned);
	for (n = 0; chunk->pending && n < BATCH; n++) {
		struct page *page = node_page(chunk->pending);

		chunk->pending = chunk->pending->next;
		/* It still is the folio that was freed. */
		block_free(chunk, chunk_index(chunk, page),
			   folio_order(page_folio(page)));
	}
	return chunk->pending;
}

/*
 * Takes a chunk that has nothing from the list of those that may have. Pages that
 * return meanwhile: either chunk_return() sees the list without the chunk, and
 * puts it back, or this sees the pages.
 */
static void chunk_set_empty(struct hmm_devmem_chunk *chunk)
{
	list_del_init(&chunk->avail);
	/* Pairs with the barrier in chunk_return(). */
	smp_mb();
	if (chunk->pending || !llist_empty(&chunk->returned))
		list_add_tail(&chunk->avail, &chunk->devmem->avail);
}

static void chunk_set_avail(struct hmm_devmem_chunk *chunk)
{
	struct hmm_devmem *devmem = chunk->devmem;

	guard(spinlock_irqsave)(&devmem->lock);
	if (!chunk->hidden && list_empty(&chunk->avail))
		list_add_tail(&chunk->avail, &devmem->avail);
}

static void chunk_return(struct hmm_devmem_chunk *chunk, struct page *page)
{
	/* A full barrier; pairs with the one in chunk_set_empty(). */
	if (llist_add(page_node(page), &chunk->returned) &&
	    list_empty_careful(&chunk->avail))
		chunk_set_avail(chunk);
}

/* Takes up to @n pages from one chunk, in blocks as large as there are. */
static unsigned long chunk_take(struct hmm_devmem_chunk *chunk,
				struct page **pages, unsigned long n)
{
	unsigned int order = HMM_DEVMEM_ORDERS - 1;
	unsigned long taken = 0, i;

	chunk_absorb(chunk);
	while (taken < n) {
		struct page *page;

		order = min_t(unsigned int, order, ilog2(n - taken));
		page = block_take(chunk, order);
		if (!page) {
			if (!order--)
				break;
			continue;
		}
		for (i = 0; i < 1UL << order; i++)
			pages[taken++] = page + i;
	}
	return taken;
}

static unsigned long take_pages(struct hmm_devmem *devmem, struct page **pages,
				unsigned long n)
{
	struct hmm_devmem_chunk *chunk, *next;
	unsigned long taken = 0;

	guard(spinlock_irqsave)(&devmem->lock);
	list_for_each_entry_safe(chunk, next, &devmem->avail, avail) {
		taken += chunk_take(chunk, pages + taken, n - taken);
		if (taken == n)
			break;
		chunk_set_empty(chunk);
	}
	return taken;
}

/* NULL and *@more: more pages have returned, and may make a block. */
static struct page *take_block(struct hmm_devmem *devmem, unsigned int order,
			       bool *more)
{
	struct hmm_devmem_chunk *chunk;
	struct page *page;

	*more = false;
	guard(spinlock_irqsave)(&devmem->lock);
	list_for_each_entry(chunk, &devmem->avail, avail) {
		*more |= chunk_absorb(chunk);
		page = block_take(chunk, order);
		if (page)
			return page;
	}
	return NULL;
}

static void give_back(struct hmm_devmem_chunk *chunk, struct page *page,
		      unsigned int order)
{
	guard(spinlock_irqsave)(&chunk->devmem->lock);
	block_free(chunk, chunk_index(chunk, page), order);
	if (!chunk->hidden && list_empty(&chunk->avail))
		list_add_tail(&chunk->avail, &chunk->devmem->avail);
}

/*
 * From free pages to a folio, locked and with a reference; or they are free
 * again, if the driver has no use for it. What the driver sees of the folio, its
 * order and data, is there when the first reference is.
 */
static struct folio *give_out(struct hmm_devmem *devmem, struct page *page,
			      unsigned int order)
{
	struct hmm_devmem_chunk *chunk = hmm_devmem_page_chunk(page);
	struct folio *folio = (struct folio *)page;

	page->zone_device_data = NULL;
	zone_device_folio_prepare(folio, &chunk->pgmap, order);
	if (devmem->ops->folio_init && devmem->ops->folio_init(devmem, folio)) {
		give_back(chunk, page, order);
		return NULL;
	}
	zone_device_folio_get(folio);
	return folio;
}

/* Fills @pages with pages of the device, locked; returns how many there are. */
static unsigned long alloc_device_pages(struct hmm_devmem *devmem,
					struct page **pages, unsigned long n)
{
	unsigned long taken, i, given = 0;

	if (READ_ONCE(devmem->going))
		return 0;
	taken = take_pages(devmem, pages, n);
	for (i = 0; i < taken; i++)
		if (give_out(devmem, pages[i], 0))
			pages[given++] = pages[i];
	return given;
}

static struct folio *alloc_device_folio(struct hmm_devmem *devmem,
					unsigned int order)
{
	struct page *page;
	bool more;

	if (READ_ONCE(devmem->going))
		return NULL;
	do {
		page = take_block(devmem, order, &more);
		cond_resched();
	} while (!page && more);
	return page ? give_out(devmem, page, order) : NULL;
}

static void devmem_folio_free(struct folio *folio)
{
	struct hmm_devmem_chunk *chunk = folio_chunk(folio);
	struct hmm_devmem *devmem = chunk->devmem;

	if (devmem->ops->folio_exit)
		devmem->ops->folio_exit(devmem, folio);
	chunk_return(chunk, &folio->page);
}

static void devmem_folio_split(struct folio *head, struct folio *tail)
{
	const struct hmm_devmem_ops *ops =
		hmm_devmem_page_chunk(&head->page)->devmem->ops;

	if (ops->folio_split)
		ops->folio_split(head, tail);
}

/* --- Moving pages --------------------------------------------------------- */

/*
 * One batch on its way.
 *
 * Each source gets a destination as large, if there is one, or several that are
 * smaller. So there is a copy for each destination, and @at says which entry of
 * @dst it belongs to.
 */
struct move {
	struct hmm_devmem		*devmem;
	bool				to_device;
	bool				last;		/* the pool goes */
	struct vm_area_struct		*vma;		/* NULL: whoever's */
	unsigned long			start;
	gfp_t				gfp;
	unsigned long			n;
	unsigned long			*src;
	unsigned long			*dst;
	struct page			**pages;
	u16				*at;
	struct hmm_devmem_copy		*copies;
	unsigned long			nr_copies;
	int				err;
	struct hmm_devmem_result	*result;
};

static struct move move_of(struct hmm_devmem *devmem,
			   struct hmm_devmem_scratch *scratch,
			   struct hmm_devmem_result *result)
{
	return (struct move) {
		.devmem = devmem,
		.src = scratch->src,
		.dst = scratch->dst,
		.pages = scratch->pages,
		.at = scratch->at,
		.copies = scratch->copies,
		.result = result,
	};
}

/* The source, or hole, that begins at entry i, and moves; its pages, or 0. */
static unsigned long nr_to_move(const struct move *m, unsigned long i)
{
	return m->src[i] & MIGRATE_PFN_MIGRATE ? migrate_pfn_nr(m->src[i]) : 0;
}

/* After setup: what stays, and why. */
static void count_stayed(struct move *m)
{
	const unsigned long live = MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE;
	unsigned long i, n;

	for (i = 0; i < m->n; i += n) {
		n = 1;
		if (m->src[i] & live)
			n = migrate_pfn_nr(m->src[i]);
		else
			m->result->stayed[migrate_pfn_to_stay(m->src[i])]++;
	}
}

static void add_copy(struct move *m, unsigned long i, unsigned long k,
		     struct page *dst, unsigned long nr)
{
	struct page *src = migrate_pfn_to_page(m->src[i]);

	m->at[m->nr_copies] = i + k;
	m->copies[m->nr_copies++] = (struct hmm_devmem_copy) {
		.src = src ? src + k : NULL,
		.dst = dst,
		.nr = nr,
	};
}

/* --- Destinations --- */

static bool has_policy(struct vm_area_struct *vma)
{
#ifdef CONFIG_NUMA
	return vma_policy(vma) || (vma->vm_ops && vma->vm_ops->get_policy);
#else
	return false;
#endif
}

/* For many at once, nobody looks at the policy of the mapping. */
static unsigned long alloc_ram_pages(struct move *m, unsigned long n)
{
	unsigned long got, i;

	if (n == 1 || (m->vma && has_policy(m->vma)))
		return 0;
	memset(m->pages, 0, n * sizeof(*m->pages));
	/* The policy of the task is for what is its own. */
	if (IS_ENABLED(CONFIG_NUMA) && m->vma)
		got = alloc_pages_bulk_array_mempolicy(m->gfp, n, m->pages);
	else
		got = alloc_pages_bulk_array(m->gfp, n, m->pages);
	for (i = 0; i < got; i++)
		lock_page(m->pages[i]);
	return got;
}

/*
 * For the page at entry i and those behind it. Large folios are taken if they are
 * at hand: nobody is to wait for one.
 */
static struct folio *alloc_ram_folio(struct move *m, unsigned long i,
				     unsigned int order)
{
	gfp_t gfp = m->gfp;
	struct folio *folio;

	if (order)
		gfp = (gfp & ~__GFP_DIRECT_RECLAIM) | __GFP_NOWARN;
	if (m->vma)
		folio = vma_alloc_folio(gfp, order, m->vma,
					m->start + (i << PAGE_SHIFT), false);
	else
		folio = folio_alloc(gfp, order);
	if (folio)
		folio_lock(folio);
	return folio;
}

static struct folio *alloc_folio(struct move *m, unsigned long i,
				 unsigned int order)
{
	const struct hmm_devmem_ops *ops = m->devmem->ops;

	if (order > ops->max_order)
		return NULL;
	if (order && ops->may_alloc &&
	    !ops->may_alloc(m->devmem, m->to_device, order))
		return NULL;
	return m->to_device ? alloc_device_folio(m->devmem, order) :
			      alloc_ram_folio(m, i, order);
}

/* The order to try next; core mm has no anonymous folios of two pages. */
static unsigned int smaller_order(unsigned int order)
{
	return order > 2 ? order - 1 : 0;
}

/* Destinations for a large source: one, or what there is, large ones first. */
static void alloc_pieces(struct move *m, unsigned long i, unsigned long nr)
{
	unsigned int order = ilog2(nr);
	struct folio *folio;
	unsigned long k = 0;

	while (k < nr) {
		folio = alloc_folio(m, i + k, order);
		if (folio) {
			add_copy(m, i, k, &folio->page, 1UL << order);
			k += 1UL << order;
		} else if (order) {
			order = smaller_order(order);
		} else {
			break;
		}
	}
	m->result->no_memory += nr - k;
}

/* The first @got have their pages in @pages already. */
static struct page *next_single(struct move *m, unsigned long i,
				unsigned long k, unsigned long got)
{
	struct folio *folio;

	if (k < got)
		return m->pages[k];
	folio = m->to_device ? NULL : alloc_ram_folio(m, i, 0);
	return folio ? &folio->page : NULL;
}

/* Destinations for all sources of one page, at once if that can be. */
static void alloc_singles(struct move *m, unsigned long wanted)
{
	unsigned long got, i, k = 0;
	struct page *page;

	if (!wanted)
		return;
	got = m->to_device ? alloc_device_pages(m->devmem, m->pages, wanted) :
			     alloc_ram_pages(m, wanted);
	for (i = 0; k < wanted; i++) {
		if (nr_to_move(m, i) != 1)
			continue;
		page = next_single(m, i, k, got);
		if (!page)
			break;
		add_copy(m, i, 0, page, 1);
		k++;
	}
	m->result->no_memory += wanted - k;
}

/* A hole may come to be on the device. Nobody wants it filled with RAM. */
static void keep_hole(struct move *m, unsigned long i)
{
	if (!m->to_device && !(m->src[i] & MIGRATE_PFN_VALID))
		m->src[i] &= ~(MIGRATE_PFN_MIGRATE | MIGRATE_PFN_COMPOUND);
}

static void alloc_destinations(struct move *m)
{
	unsigned long i, nr, singles = 0;

	m->nr_copies = 0;
	for (i = 0; i < m->n; i++) {
		m->dst[i] = 0;
		keep_hole(m, i);
		nr = nr_to_move(m, i);
		if (nr > 1)
			alloc_pieces(m, i, nr);
		else
			singles += nr;
	}
	alloc_singles(m, singles);
}

/*
 * Is it no use to ask again? Patience begins with the first failure, after a wait
 * that may have been long. Want of memory passes.
 */
static bool is_hopeless(const struct move *m)
{
	struct hmm_devmem *devmem = m->devmem;

	if (m->err == -ENODEV)
		return true;
	if (m->err == -ENOMEM)
		return false;
	if (!devmem->failing) {
		devmem->failing = true;
		devmem->failing_since = jiffies;
	}
	return time_after(jiffies, devmem->failing_since + devmem->patience);
}

/* A CPU can read coherent memory that the device does not copy, or may try to. */
static bool rescue_page(const struct move *m, struct page *dst, struct page *src)
{
	return m->devmem->type == MEMORY_DEVICE_COHERENT &&
	       !copy_mc_highpage(dst, src);
}

/*
 * Pages that the device cannot give back any more: the process finds zeroes, as
 * the alternative is that the driver never goes.
 */
static void lose_copies(struct move *m)
{
	struct hmm_devmem_copy *copy;
	unsigned long k;

	for (copy = m->copies; copy < m->copies + m->nr_copies; copy++) {
		if (!copy->failed)
			continue;
		for (k = 0; k < copy->nr; k++) {
			if (rescue_page(m, copy->dst + k, copy->src + k))
				continue;
			clear_highpage(copy->dst + k);
			m->devmem->lost++;
		}
		copy->failed = false;
	}
}

/* Returns how many copies worked. */
static unsigned long note_failed(struct move *m)
{
	unsigned long i, good = 0;

	for (i = 0; i < m->nr_copies; i++) {
		m->copies[i].failed |= m->err != 0;
		good += !m->copies[i].failed;
	}
	return good;
}

/* Have the driver copy. @late: it may write even now, and says no more of it. */
static int run_copy(struct hmm_devmem_batch *batch, bool *late)
{
	const struct hmm_devmem_ops *ops = batch->devmem->ops;
	int err = ops->copy(batch);

	if (err || !ops->wait)
		return err;
	err = ops->wait(batch);
	*late = err == -EBUSY;
	return err;
}

/* Afterwards each copy says whether it failed. */
static void copy_all(struct move *m)
{
	struct hmm_devmem_batch batch = {
		.devmem = m->devmem,
		.copies = m->copies,
		.nr = m->nr_copies,
		.to_device = m->to_device,
	};
	bool late = false;
	unsigned long good;

	m->err = run_copy(&batch, &late);
	good = note_failed(m);
	if (!m->last)
		return;
	/* What a late device may still write to must not become somebody's. */
	if (good)
		m->devmem->failing = false;
	else if (is_hopeless(m) && !late)
		lose_copies(m);
}

static void drop_folio(struct folio *folio)
{
	folio_unlock(folio);
	folio_put(folio);
}

/* Destinations whose copy works are those of their sources. The others go. */
static void copy_to_destinations(struct move *m)
{
	unsigned long i;

	if (!m->nr_copies)
		return;
	copy_all(m);

	for (i = 0; i < m->nr_copies; i++) {
		const struct hmm_devmem_copy *copy = &m->copies[i];
		unsigned long *dst = &m->dst[m->at[i]];

		if (copy->failed) {
			m->result->not_copied += copy->nr;
			drop_folio(page_folio(copy->dst));
			continue;
		}
		*dst = migrate_pfn(page_to_pfn(copy->dst));
		if (copy->nr > 1)
			*dst |= MIGRATE_PFN_COMPOUND;
	}
}

/*
 * Gives the sources that are to move a destination with their content: those
 * that get one, and whose copy works. The others stay.
 */
static void fill_destinations(struct move *m)
{
	count_stayed(m);
	alloc_destinations(m);
	copy_to_destinations(m);
}

/* After the pages step: what had a destination has moved, or was in use. */
static void count_moved(struct move *m)
{
	unsigned long i, nr;

	for (i = 0; i < m->n; i++) {
		if (!m->dst[i])
			continue;
		nr = migrate_pfn_nr(m->dst[i]);
		if (m->src[i] & MIGRATE_PFN_MIGRATE)
			m->result->moved += nr;
		else
			m->result->stayed[MIGRATE_STAY_PINNED] += nr;
	}
}

static unsigned long select_flag(const struct hmm_devmem *devmem)
{
	return devmem->type == MEMORY_DEVICE_PRIVATE ?
	       MIGRATE_VMA_SELECT_DEVICE_PRIVATE :
	       MIGRATE_VMA_SELECT_DEVICE_COHERENT;
}

/* --- The CPU touches a private page --------------------------------------- */

/*
 * The pages around the address that are those of the folio, as far as the VMA
 * goes: the core finds out whether they are mapped there.
 */
static void folio_range(const struct vm_fault *vmf, unsigned long *start,
			unsigned long *end)
{
	struct folio *folio = page_folio(vmf->page);
	unsigned long addr = vmf->address & PAGE_MASK;
	unsigned long before = folio_page_idx(folio, vmf->page) << PAGE_SHIFT;
	unsigned long behind = folio_size(folio) - before;

	*start = addr - min(before, addr - vmf->vma->vm_start);
	*end = addr + min(behind, vmf->vma->vm_end - addr);
}

/* After the pages step: has page @at gone where it was to go? */
static bool has_moved(const struct move *m, unsigned long at)
{
	unsigned long i = at;

	while (i && !m->dst[i])
		i--;
	return m->dst[i] && (m->src[i] & MIGRATE_PFN_MIGRATE) &&
	       at - i < migrate_pfn_nr(m->dst[i]);
}

/* The end of a fault whose page has not moved. */
static vm_fault_t fault_error(int err)
{
	switch (err) {
	case 0:
		return 0;
	case -EBUSY:
		/* That passes, and who is killed meanwhile need not see it. */
		return fatal_signal_pending(current) ? VM_FAULT_SIGBUS : 0;
	case -ENOMEM:
		return VM_FAULT_OOM;
	default:
		/* It would fail again at once: do not come back for more. */
		return VM_FAULT_SIGBUS;
	}
}

/* Why pages have stayed: of several reasons the one that may pass. */
static int move_error(const struct move *m)
{
	if (m->err == -EBUSY)
		return -EBUSY;
	if (m->result->no_memory)
		return -ENOMEM;
	if (m->err)
		return m->err;
	return m->result->not_copied ? -EIO : 0;
}

static vm_fault_t fault_migrate(struct vm_fault *vmf, struct move *m,
				unsigned long start, unsigned long end)
{
	struct migrate_vma args = {
		.vma = vmf->vma,
		.start = start,
		.end = end,
		.src = m->src,
		.dst = m->dst,
		.pgmap_owner = m->devmem,
		.flags = MIGRATE_VMA_SELECT_DEVICE_PRIVATE |
			 MIGRATE_VMA_SELECT_COMPOUND,
		.fault_page = vmf->page,
	};
	unsigned long at = ((vmf->address & PAGE_MASK) - start) >> PAGE_SHIFT;
	bool moved;

	m->vma = vmf->vma;
	m->start = start;
	m->n = (end - start) >> PAGE_SHIFT;
	if (migrate_vma_setup(&args))
		return VM_FAULT_SIGBUS;
	fill_destinations(m);
	migrate_vma_pages(&args);
	moved = has_moved(m, at);
	migrate_vma_finalize(&args);
	return moved ? 0 : fault_error(move_error(m));
}

/* A page of RAM with the content of a page of the device, for dst. */
static int fetch_page(struct hmm_devmem *devmem, struct vm_fault *vmf,
		      struct page *page, unsigned long *dst)
{
	struct hmm_devmem_copy copy = { .src = page, .nr = 1 };
	struct hmm_devmem_batch batch = {
		.devmem = devmem,
		.copies = &copy,
		.nr = 1,
	};
	struct folio *folio;
	bool late = false;
	int err;

	folio = vma_alloc_folio(GFP_HIGHUSER_MOVABLE, 0, vmf->vma, vmf->address,
				false);
	if (!folio)
		return -ENOMEM;
	folio_lock(folio);
	copy.dst = &folio->page;
	err = run_copy(&batch, &late);
	if (!err && copy.failed)
		err = -EIO;
	if (err)
		drop_folio(folio);
	else
		*dst = migrate_pfn(folio_pfn(folio));
	return err;
}

/* Most faults are of a single page, and need no lists of what there is. */
static vm_fault_t fault_page(struct vm_fault *vmf, struct hmm_devmem *devmem)
{
	const unsigned long live = MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE;
	unsigned long addr = vmf->address & PAGE_MASK;
	unsigned long src, dst = 0;
	struct migrate_vma args = {
		.vma = vmf->vma,
		.start = addr,
		.end = addr + PAGE_SIZE,
		.src = &src,
		.dst = &dst,
		.pgmap_owner = devmem,
		.flags = MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
		.fault_page = vmf->page,
	};
	bool moved;
	int err = 0;

	if (migrate_vma_setup(&args))
		return VM_FAULT_SIGBUS;
	if ((src & live) == live)
		err = fetch_page(devmem, vmf, migrate_pfn_to_page(src), &dst);
	migrate_vma_pages(&args);
	moved = dst && (src & MIGRATE_PFN_MIGRATE);
	migrate_vma_finalize(&args);
	return moved ? 0 : fault_error(err);
}

/* A large folio comes back whole: who touches one page will touch the others. */
static vm_fault_t fault_folio(struct vm_fault *vmf, struct hmm_devmem *devmem)
{
	struct hmm_devmem_scratch *scratch;
	struct hmm_devmem_result result = { };
	unsigned long start, end;
	struct move m;
	vm_fault_t ret;

	scratch = kvmalloc(sizeof(*scratch), GFP_KERNEL | __GFP_NOWARN);
	if (!scratch)
		return fault_page(vmf, devmem);
	folio_range(vmf, &start, &end);
	m = move_of(devmem, scratch, &result);
	m.gfp = GFP_HIGHUSER_MOVABLE;
	ret = fault_migrate(vmf, &m, start, end);
	kvfree(scratch);
	return ret;
}

/* What is next to a page is likely touched next: the aligned block around it. */
static noinline vm_fault_t fault_around(struct vm_fault *vmf,
					struct hmm_devmem *devmem,
					unsigned long nr)
{
	unsigned long start = ALIGN_DOWN(vmf->address, nr * PAGE_SIZE);
	unsigned long end = start + nr * PAGE_SIZE;
	struct hmm_devmem_copy copies[HMM_DEVMEM_AROUND_MAX];
	unsigned long src[HMM_DEVMEM_AROUND_MAX], dst[HMM_DEVMEM_AROUND_MAX];
	struct page *pages[HMM_DEVMEM_AROUND_MAX];
	struct hmm_devmem_result result = { };
	u16 at[HMM_DEVMEM_AROUND_MAX];
	vm_fault_t ret;

	start = max(start, vmf->vma->vm_start);
	end = min(end, vmf->vma->vm_end);
	ret = fault_migrate(vmf, &(struct move) {
		.devmem = devmem,
		.gfp = GFP_HIGHUSER_MOVABLE,
		.src = src,
		.dst = dst,
		.pages = pages,
		.at = at,
		.copies = copies,
		.result = &result,
	}, start, end);
	/* It may have been another page that failed. */
	return ret ? fault_page(vmf, devmem) : 0;
}

static vm_fault_t devmem_migrate_to_ram(struct vm_fault *vmf)
{
	struct folio *folio = page_folio(vmf->page);
	struct hmm_devmem *devmem = folio_chunk(folio)->devmem;
	unsigned int around = READ_ONCE(devmem->around);

	if (folio_test_large(folio))
		return fault_folio(vmf, devmem);
	return around > 1 ? fault_around(vmf, devmem, around) :
			    fault_page(vmf, devmem);
}

static const struct dev_pagemap_ops devmem_pagemap_ops = {
	.folio_free	= devmem_folio_free,
	.folio_split	= devmem_folio_split,
	.migrate_to_ram	= devmem_migrate_to_ram,
};

/* --- Chunks --------------------------------------------------------------- */

static int chunk_init_blocks(struct hmm_devmem_chunk *chunk)
{
	unsigned long i;

	chunk->order_of = kvmalloc(chunk->nr_pages, GFP_KERNEL);
	if (!chunk->order_of)
		return -ENOMEM;
	memset(chunk->order_of, NO_BLOCK, chunk->nr_pages);
	for (i = 0; i < chunk->nr_pages; i += 1UL << (HMM_DEVMEM_ORDERS - 1))
		block_link(chunk, i, HMM_DEVMEM_ORDERS - 1);
	chunk->nr_free = chunk->nr_pages;
	return 0;
}

static int chunk_map(struct hmm_devmem_chunk *chunk)
{
	struct hmm_devmem *devmem = chunk->devmem;
	void *addr;
	int err;

	chunk->pgmap.type = devmem->type;
	chunk->pgmap.flags = PGMAP_FAULT_VMA_LOCK;
	chunk->pgmap.ops = &devmem_pagemap_ops;
	chunk->pgmap.owner = devmem;
	chunk->pgmap.nr_range = 1;
	addr = memremap_pages(&chunk->pgmap, dev_to_node(devmem->device));
	if (IS_ERR(addr))
		return PTR_ERR(addr);
	err = chunk_init_blocks(chunk);
	if (err)
		memunmap_pages(&chunk->pgmap);
	return err;
}

/* Frees it; the driver's part and the struct pages are gone, or never were. */
static void chunk_free(struct hmm_devmem_chunk *chunk)
{
	if (chunk->res)
		release_mem_region(chunk->res->start, resource_size(chunk->res));
	kvfree(chunk->order_of);
	kfree(chunk);
}

/* Coherent memory is where it is; private memory is wherever there is room. */
static struct hmm_devmem_chunk *chunk_alloc(struct hmm_devmem *devmem)
{
	struct hmm_devmem_chunk *chunk = kzalloc(sizeof(*chunk), GFP_KERNEL);

	if (!chunk)
		return ERR_PTR(-ENOMEM);
	chunk->devmem = devmem;
	init_llist_head(&chunk->returned);
	INIT_LIST_HEAD(&chunk->avail);

	if (devmem->type == MEMORY_DEVICE_COHERENT) {
		chunk->pgmap.range = devmem->range;
	} else {
		struct resource *res;

		res = request_free_mem_region(&iomem_resource,
					      devmem->chunk_size,
					      dev_name(devmem->device));
		if (IS_ERR(res)) {
			kfree(chunk);
			return ERR_CAST(res);
		}
		/* It may be larger: regions are made of sections. */
		chunk->res = res;
		chunk->pgmap.range.start = res->start;
		chunk->pgmap.range.end = res->start + devmem->chunk_size - 1;
	}
	chunk->nr_pages = PHYS_PFN(range_len(&chunk->pgmap.range));
	return chunk;
}

/* From here on its pages are given out: nothing may fail any more. */
static void publish_chunk(struct hmm_devmem_chunk *chunk)
{
	struct hmm_devmem *devmem = chunk->devmem;

	guard(spinlock_irqsave)(&devmem->lock);
	list_add_tail(&chunk->node, &devmem->chunks);
	list_add_tail(&chunk->avail, &devmem->avail);
	devmem->size += chunk->nr_pages << PAGE_SHIFT;
}

static int add_chunk(struct hmm_devmem *devmem)
{
	const struct hmm_devmem_ops *ops = devmem->ops;
	struct hmm_devmem_chunk *chunk;
	int err = 0;

	lockdep_assert_held(&devmem->grow_lock);
	chunk = chunk_alloc(devmem);
	if (IS_ERR(chunk))
		return PTR_ERR(chunk);
	if (ops->chunk_add)
		err = ops->chunk_add(chunk);
	if (err)
		goto err_free;
	err = chunk_map(chunk);
	if (err)
		goto err_remove;

	publish_chunk(chunk);
	return 0;

err_remove:
	if (ops->chunk_remove)
		ops->chunk_remove(chunk);
err_free:
	chunk_free(chunk);
	return err;
}

/* It is hidden and empty. */
static void remove_chunk(struct hmm_devmem_chunk *chunk)
{
	struct hmm_devmem *devmem = chunk->devmem;
	unsigned long flags;

	spin_lock_irqsave(&devmem->lock, flags);
	list_del(&chunk->node);
	devmem->size -= chunk->nr_pages << PAGE_SHIFT;
	spin_unlock_irqrestore(&devmem->lock, flags);

	memunmap_pages(&chunk->pgmap);
	if (devmem->ops->chunk_remove)
		devmem->ops->chunk_remove(chunk);
	chunk_free(chunk);
}

static bool may_grow(struct hmm_devmem *devmem, unsigned long n)
{
	struct hmm_devmem_chunk *chunk;
	unsigned long nr_free = 0;

	guard(spinlock_irqsave)(&devmem->lock);
	list_for_each_entry(chunk, &devmem->avail, avail) {
		/* More is to come: enough to try before it grows. */
		if (chunk_absorb(chunk))
			return false;
		nr_free += chunk->nr_free;
		if (nr_free >= n)
			return false;
	}
	return devmem->size < devmem->max_size &&
	       devmem->max_size - devmem->size >= devmem->chunk_size;
}

/* Grows the pool until @n pages are free, as far as it may and can. */
static void make_room(struct hmm_devmem *devmem, unsigned long n)
{
	if (!may_grow(devmem, n))
		return;
	guard(mutex)(&devmem->grow_lock);
	while (!devmem->going && may_grow(devmem, n))
		if (add_chunk(devmem))
			break;
}

static void hide_chunk(struct hmm_devmem_chunk *chunk, bool hidden)
{
	struct hmm_devmem *devmem = chunk->devmem;

	guard(spinlock_irqsave)(&devmem->lock);
	chunk->hidden = hidden;
	list_del_init(&chunk->avail);
	if (!hidden)
		list_add_tail(&chunk->avail, &devmem->avail);
}

/* --- Eviction ------------------------------------------------------------- */

static unsigned long chunk_nr_in_use(struct hmm_devmem_chunk *chunk)
{
	unsigned long nr;
	bool more;

	do {
		scoped_guard(spinlock_irqsave, &chunk->devmem->lock) {
			more = chunk_absorb(chunk);
			nr = chunk->nr_pages - chunk->nr_free;
		}
		cond_resched();
	} while (more);
	return nr;
}

/* The next page from @i on that is in no block. No lock: a hint. */
static unsigned long next_in_use(struct hmm_devmem_chunk *chunk, unsigned long i)
{
	while (i < chunk->nr_pages) {
		u8 order = READ_ONCE(chunk->order_of[i]);

		if (order == NO_BLOCK)
			break;
		i += 1UL << order;
	}
	return i;
}

static void evict_batch(struct hmm_devmem_chunk *chunk, unsigned long i,
			unsigned long n, struct hmm_devmem_result *result)
{
	struct hmm_devmem *devmem = chunk->devmem;
	struct move m = move_of(devmem, devmem->scratch, result);

	m.gfp = GFP_HIGHUSER_MOVABLE | __GFP_RETRY_MAYFAIL | __GFP_NOWARN;
	m.last = devmem->leaving;
	m.n = n;
	if (migrate_device_range(m.src, chunk_pfn(chunk) + i, n))
		return;
	fill_destinations(&m);
	migrate_device_pages(m.src, m.dst, n);
	count_moved(&m);
	migrate_device_finalize(m.src, m.dst, n);
}

static void evict_pass(struct hmm_devmem_chunk *chunk,
		       struct hmm_devmem_result *result)
{
	unsigned long i = 0, n;

	while ((i = next_in_use(chunk, i)) < chunk->nr_pages) {
		/* No folio goes beyond the end of the largest block. */
		n = BATCH - i % BATCH;
		evict_batch(chunk, i, n, result);
		i += n;
		cond_resched();
	}
}

/*
 * Moves all that is in the chunk to RAM. Pages that others have locked, or hold
 * for a moment, or have taken and not initialised yet, get another chance until
 * @deadline.
 */
static int evict_chunk(struct hmm_devmem_chunk *chunk, unsigned long deadline,
		       struct hmm_devmem_result *result)
{
	struct hmm_devmem_result last;

	lockdep_assert_held(&chunk->devmem->shrink_lock);
	while (chunk_nr_in_use(chunk)) {
		/* Of the pages that stay, the last attempt counts. */
		last = (struct hmm_devmem_result) { .moved = result->moved };
		evict_pass(chunk, &last);
		result->moved = last.moved;
		if (!chunk_nr_in_use(chunk))
			break;
		if (time_after_eq(jiffies, deadline)) {
			*result = last;
			return last.no_memory ? -ENOMEM : -EBUSY;
		}
		schedule_timeout_idle(1);
	}
	return 0;
}

static void add_result(struct hmm_devmem_result *sum,
		       const struct hmm_devmem_result *result)
{
	int why;

	sum->moved += result->moved;
	sum->no_memory += result->no_memory;
	sum->not_copied += result->not_copied;
	for (why = 0; why < NR_MIGRATE_STAY; why++)
		sum->stayed[why] += result->stayed[why];
}

/* Chunks are removed under shrink_lock alone, so the one found stays. */
static struct hmm_devmem_chunk *next_chunk(struct hmm_devmem *devmem,
					   struct hmm_devmem_chunk *chunk)
{
	lockdep_assert_held(&devmem->shrink_lock);
	guard(spinlock_irqsave)(&devmem->lock);
	if (!chunk)
		return list_first_entry_or_null(&devmem->chunks,
						struct hmm_devmem_chunk, node);
	if (list_is_last(&chunk->node, &devmem->chunks))
		return NULL;
	return list_next_entry(chunk, node);
}

/**
 * hmm_devmem_evict() - move all that is in the pool's memory to RAM
 * @devmem: the pool
 * @timeout: how long to try, in jiffies; 0 is once
 * @result: what became of it; of the pages that stayed the last attempt counts
 *
 * The pool goes on to give out pages meanwhile.
 *
 * Context: Process context. Sleeps. The caller holds nothing that a migration, or
 * the driver's copy, waits for.
 *
 * Return: 0, or for at least one page
 *
 * * -EBUSY - somebody did not let go of it
 * * -ENOMEM - there was no RAM for it
 */
int hmm_devmem_evict(struct hmm_devmem *devmem, unsigned long timeout,
		     struct hmm_devmem_result *result)
{
	unsigned long deadline = jiffies + timeout;
	struct hmm_devmem_chunk *chunk = NULL;
	int err, ret = 0;

	guard(mutex)(&devmem->shrink_lock);
	while ((chunk = next_chunk(devmem, chunk))) {
		struct hmm_devmem_result of_chunk = { };

		err = evict_chunk(chunk, deadline, &of_chunk);
		if (err)
			ret = err;
		add_result(result, &of_chunk);
	}
	return ret;
}
EXPORT_SYMBOL_GPL(hmm_devmem_evict);

static unsigned long nr_chunks(struct hmm_devmem *devmem)
{
	struct list_head *pos;
	unsigned long n = 0;

	guard(spinlock_irqsave)(&devmem->lock);
	list_for_each(pos, &devmem->chunks)
		n++;
	return n;
}

/*
 * Empties and removes the chunks that are there now. New ones go to the end of
 * the list: whoever migrates meanwhile cannot keep this from ending.
 */
static int remove_chunks(struct hmm_devmem *devmem, unsigned long timeout)
{
	unsigned long deadline = jiffies + timeout;
	struct hmm_devmem_result result = { };
	struct hmm_devmem_chunk *chunk;
	unsigned long n;
	int err;

	lockdep_assert_held(&devmem->shrink_lock);
	for (n = nr_chunks(devmem); n; n--) {
		chunk = next_chunk(devmem, NULL);
		devmem->failing = false;
		hide_chunk(chunk, true);
		err = evict_chunk(chunk, deadline, &result);
		if (err) {
			hide_chunk(chunk, false);
			return err;
		}
		remove_chunk(chunk);
	}
	return 0;
}

/**
 * hmm_devmem_shrink() - move everything to RAM, and take the memory away
 * @devmem: the pool
 * @timeout: how long to try, in jiffies
 *
 * A pool that may grow does so again with the next migration.
 *
 * Context: Process context. As hmm_devmem_evict().
 *
 * Return: 0, or -EBUSY or -ENOMEM for a page that could not be had; its chunk,
 * and those behind it, stay.
 */
int hmm_devmem_shrink(struct hmm_devmem *devmem, unsigned long timeout)
{
	guard(mutex)(&devmem->shrink_lock);
	return remove_chunks(devmem, timeout);
}
EXPORT_SYMBOL_GPL(hmm_devmem_shrink);

/* --- Migration of a range ------------------------------------------------- */

/* One page that cannot be had does not keep the others from moving. */
static bool passes_over(int err)
{
	return err == -EFAULT || err == -EHWPOISON || err == -EBUSY;
}

/* Moves a part: what is in one page table, and VMA. Sets *@next behind it. */
static int migrate_part(struct hmm_devmem *devmem, struct mm_struct *mm,
			unsigned long start, unsigned long end,
			unsigned long flags, struct hmm_devmem_scratch *scratch,
			struct hmm_devmem_result *result, unsigned long *next)
{
	struct migrate_vma args = {
		.start = start,
		.src = scratch->src,
		.dst = scratch->dst,
		.pgmap_owner = devmem,
		.flags = MIGRATE_VMA_SELECT_COMPOUND | flags,
	};
	struct move m = move_of(devmem, scratch, result);
	int err;

	args.vma = vma_lookup(mm, start);
	if (!args.vma || !(args.vma->vm_flags & VM_READ))
		return -EFAULT;
	/* Not into the next page table: what a PMD maps moves whole. */
	args.end = pmd_addr_end(start, min3(end, args.vma->vm_end,
					    start + BATCH * PAGE_SIZE));
	m.to_device = flags & MIGRATE_VMA_SELECT_SYSTEM;
	m.vma = args.vma;
	m.start = start;
	m.gfp = GFP_HIGHUSER_MOVABLE | __GFP_NOWARN;
	m.n = (args.end - start) >> PAGE_SHIFT;

	err = migrate_vma_setup(&args);
	if (err && (flags & MIGRATE_VMA_FAULT) && passes_over(err)) {
		args.flags &= ~MIGRATE_VMA_FAULT;
		err = migrate_vma_setup(&args);
	}
	if (err)
		return err;
	fill_destinations(&m);
	migrate_vma_pages(&args);
	count_moved(&m);
	migrate_vma_finalize(&args);
	*next = args.end;
	return 0;
}

static int migrate_range(struct hmm_devmem *devmem, struct mm_struct *mm,
			 unsigned long start, unsigned long end,
			 unsigned long flags, struct hmm_devmem_result *result)
{
	struct hmm_devmem_scratch *scratch;
	int err = 0;

	if (!PAGE_ALIGNED(start) || !PAGE_ALIGNED(end) || start >= end)
		return -EINVAL;
	scratch = kvmalloc(sizeof(*scratch), GFP_KERNEL);
	if (!scratch)
		return -ENOMEM;

	while (start < end && !err) {
		err = -EINTR;
		if (fatal_signal_pending(current))
			break;
		err = -ENODEV;
		if (READ_ONCE(devmem->going))
			break;
		if (flags & MIGRATE_VMA_SELECT_SYSTEM)
			make_room(devmem, min((end - start) >> PAGE_SHIFT, BATCH));
		mmap_read_lock(mm);
		err = migrate_part(devmem, mm, start, end, flags, scratch,
				   result, &start);
		mmap_read_unlock(mm);
	}
	kvfree(scratch);
	return err;
}

/**
 * hmm_devmem_migrate_to_device() - move a range of a process to the device
 * @devmem: the pool
 * @mm: address space; the caller has a reference of its users
 * @start: address of the first page
 * @end: address behind the last page
 * @result: what became of the pages
 *
 * Moves what can be moved, batch by batch. Holes become zeroed pages of the
 * device. What stays is counted by the reason, and is no error.
 *
 * Context: Process context. Takes mmap_lock. Sleeps.
 *
 * Return: 0, or, with what came before moved,
 *
 * * -EINVAL - the range is not aligned, is empty, or has a mapping that cannot
 *   migrate
 * * -EFAULT - there is no mapping, or none that can be read
 * * -EINTR - a fatal signal is pending
 * * -ENODEV - the pool is going
 * * -ENOMEM - there is no memory to work with
 */
int hmm_devmem_migrate_to_device(struct hmm_devmem *devmem,
				 struct mm_struct *mm, unsigned long start,
				 unsigned long end,
				 struct hmm_devmem_result *result)
{
	return migrate_range(devmem, mm, start, end, MIGRATE_VMA_SELECT_SYSTEM,
			     result);
}
EXPORT_SYMBOL_GPL(hmm_devmem_migrate_to_device);

/**
 * hmm_devmem_fault_to_device() - have a range of a process on the device
 * @devmem: the pool
 * @mm: address space; the caller has a reference of its users
 * @start: address of the first page
 * @end: address behind the last page
 * @result: what became of the pages
 *
 * As hmm_devmem_migrate_to_device(), but pages that are swapped out, or that a
 * write would copy, do not stay for that: they are faulted in on the way. What
 * cannot be faulted in stays. A monitor of userfaultfd is not asked.
 *
 * Context: Process context. Takes mmap_lock. Sleeps. As of migrate_vma_setup()
 * with %MIGRATE_VMA_FAULT.
 *
 * Return: As hmm_devmem_migrate_to_device(), or -EOPNOTSUPP if the kernel has no
 * mirror, which does the faults.
 */
int hmm_devmem_fault_to_device(struct hmm_devmem *devmem,
			       struct mm_struct *mm, unsigned long start,
			       unsigned long end,
			       struct hmm_devmem_result *result)
{
	return migrate_range(devmem, mm, start, end,
			     MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_FAULT,
			     result);
}
EXPORT_SYMBOL_GPL(hmm_devmem_fault_to_device);

/**
 * hmm_devmem_migrate_to_ram() - move a range of a process out of the device
 * @devmem: the pool; memory of others stays where it is
 * @mm: address space; the caller has a reference of its users
 * @start: address of the first page
 * @end: address behind the last page
 * @result: what became of the pages
 *
 * Context: Process context. Takes mmap_lock. Sleeps.
 *
 * Return: As hmm_devmem_migrate_to_device().
 */
int hmm_devmem_migrate_to_ram(struct hmm_devmem *devmem, struct mm_struct *mm,
			      unsigned long start, unsigned long end,
			      struct hmm_devmem_result *result)
{
	return migrate_range(devmem, mm, start, end, select_flag(devmem),
			     result);
}
EXPORT_SYMBOL_GPL(hmm_devmem_migrate_to_ram);

/* --- The pool ------------------------------------------------------------- */

static void devm_release_devmem(void *data)
{
	struct hmm_devmem *devmem = data;

	mutex_lock(&devmem->grow_lock);
	WRITE_ONCE(devmem->going, true);
	mutex_unlock(&devmem->grow_lock);

	mutex_lock(&devmem->shrink_lock);
	devmem->leaving = true;
	while (!list_empty(&devmem->chunks))
		if (remove_chunks(devmem, STUCK_TIMEOUT))
			dev_warn(devmem->device,
				 "pages of device memory are still in use\n");
	if (devmem->lost)
		dev_err(devmem->device,
			"the data of %lu pages of processes are lost\n",
			devmem->lost);
	mutex_unlock(&devmem->shrink_lock);
	kvfree(devmem->scratch);
	kfree(devmem);
}

static struct hmm_devmem *devmem_alloc(const struct hmm_devmem_ops *ops,
				       struct device *device,
				       enum memory_type type)
{
	struct hmm_devmem *devmem;

	if (!ops || !ops->copy || ops->max_order >= HMM_DEVMEM_ORDERS)
		return ERR_PTR(-EINVAL);
	devmem = kzalloc(sizeof(*devmem), GFP_KERNEL);
	if (!devmem)
		return ERR_PTR(-ENOMEM);
	/* Now, as an eviction cannot fail for want of it. */
	devmem->scratch = kvmalloc(sizeof(*devmem->scratch), GFP_KERNEL);
	if (!devmem->scratch) {
		kfree(devmem);
		return ERR_PTR(-ENOMEM);
	}
	devmem->ops = ops;
	devmem->device = device;
	devmem->type = type;
	devmem->patience = PATIENCE;
	mutex_init(&devmem->grow_lock);
	mutex_init(&devmem->shrink_lock);
	spin_lock_init(&devmem->lock);
	INIT_LIST_HEAD(&devmem->chunks);
	INIT_LIST_HEAD(&devmem->avail);
	return devmem;
}

static struct hmm_devmem *devmem_start(struct hmm_devmem *devmem,
				       unsigned long size)
{
	int err;

	devmem->chunk_size = size;
	devmem->max_size = size;
	mutex_lock(&devmem->grow_lock);
	err = add_chunk(devmem);
	mutex_unlock(&devmem->grow_lock);
	if (err) {
		kvfree(devmem->scratch);
		kfree(devmem);
		return ERR_PTR(err);
	}
	err = devm_add_action_or_reset(devmem->device, devm_release_devmem,
				       devmem);
	return err ? ERR_PTR(err) : devmem;
}

/**
 * hmm_devmem_add() - make a pool of private memory
 * @ops: the driver's callbacks
 * @device: the device; the pool goes when the driver is unbound from it
 * @size: bytes, a multiple of 2 MiB
 *
 * Takes a range of physical addresses that nobody uses. What the bus of the
 * device calls its memory is the driver's affair: see
 * &hmm_devmem_ops.chunk_add and hmm_devmem_page_offset().
 *
 * Context: Process context. Sleeps.
 *
 * Return: The pool, or an ERR_PTR():
 *
 * * -EINVAL - no copy callback; max_order is too large; @size is 0 or no multiple of 2 MiB
 * * -ENOMEM - out of memory
 * * what request_free_mem_region(), memremap_pages() and chunk_add() return
 */
struct hmm_devmem *hmm_devmem_add(const struct hmm_devmem_ops *ops,
				  struct device *device, unsigned long size)
{
	struct hmm_devmem *devmem;

	if (!size || !IS_ALIGNED(size, PAGE_SIZE << (HMM_DEVMEM_ORDERS - 1)))
		return ERR_PTR(-EINVAL);
	devmem = devmem_alloc(ops, device, MEMORY_DEVICE_PRIVATE);
	if (IS_ERR(devmem))
		return devmem;
	return devmem_start(devmem, size);
}
EXPORT_SYMBOL_GPL(hmm_devmem_add);

/**
 * hmm_devmem_add_resource() - make a pool of coherent memory
 * @ops: the driver's callbacks
 * @device: the device; the pool goes when the driver is unbound from it
 * @res: the memory, which the CPU can address as well; starts and ends at a
 *	multiple of 2 MiB
 *
 * The resource stays the driver's, and must outlive the pool.
 *
 * Context: Process context. Sleeps.
 *
 * Return: The pool, or an ERR_PTR() as of hmm_devmem_add().
 */
struct hmm_devmem *hmm_devmem_add_resource(const struct hmm_devmem_ops *ops,
					   struct device *device,
					   struct resource *res)
{
	struct hmm_devmem *devmem;

	if (!res || res->start >= res->end ||
	    !IS_ALIGNED(res->start | (res->end + 1),
			PAGE_SIZE << (HMM_DEVMEM_ORDERS - 1)))
		return ERR_PTR(-EINVAL);
	devmem = devmem_alloc(ops, device, MEMORY_DEVICE_COHERENT);
	if (IS_ERR(devmem))
		return devmem;
	devmem->range.start = res->start;
	devmem->range.end = res->end;
	return devmem_start(devmem, resource_size(res));
}
EXPORT_SYMBOL_GPL(hmm_devmem_add_resource);

/**
 * hmm_devmem_remove() - take a pool away before its device is unbound
 * @devmem: the pool
 *
 * Refuses new work, moves everything to RAM, and waits for whoever still has a
 * page, however long that takes. Pages that the driver says it can never copy, or
 * has not copied for 5 s, become zeroes; it is logged how many.
 *
 * Context: Process context. As hmm_devmem_evict().
 */
void hmm_devmem_remove(struct hmm_devmem *devmem)
{
	devm_release_action(devmem->device, devm_release_devmem, devmem);
}
EXPORT_SYMBOL_GPL(hmm_devmem_remove);

/**
 * hmm_devmem_set_limit() - let a pool of private memory grow
 * @devmem: the pool
 * @size: bytes that it may have at most; it grows by what it had at first
 *
 * Context: Any; before the first migration.
 */
void hmm_devmem_set_limit(struct hmm_devmem *devmem, unsigned long size)
{
	devmem->max_size = size;
}
EXPORT_SYMBOL_GPL(hmm_devmem_set_limit);

/**
 * hmm_devmem_set_fault_around() - let a CPU fault bring back more than a page
 * @devmem: the pool, of private memory
 * @pages: what a fault on a single page brings back, at the most: the block of so
 *	many pages that it is in. A power of two, up to %HMM_DEVMEM_AROUND_MAX; 1,
 *	as it is at first, is the page alone.
 *
 * A process that reads what a device has written goes through all of it, and a
 * fault costs more than a page. Of the block only that comes back which is in the
 * pool and in the same VMA. A large folio comes back whole, whatever this says.
 *
 * Context: Any, also while pages are in use.
 * Return: 0, or -EINVAL: @pages is not a power of two, or too many.
 */
int hmm_devmem_set_fault_around(struct hmm_devmem *devmem, unsigned int pages)
{
	if (!is_power_of_2(pages) || pages > HMM_DEVMEM_AROUND_MAX)
		return -EINVAL;
	WRITE_ONCE(devmem->around, pages);
	return 0;
}
EXPORT_SYMBOL_GPL(hmm_devmem_set_fault_around);
