// SPDX-License-Identifier: GPL-2.0
/*
 * dmirror: a device that is not there, with memory that is.
 *
 * Each /dev/hmm_dmirror* mirrors the address space of the process that opened
 * it, and can have its pages moved to memory of its own. Two devices have
 * private memory, which a CPU cannot address; with spm_addr_dev0/1 there are two
 * more, whose memory is coherent. It exists to test HMM, and to show drivers how
 * to use it.
 *
 * Vocabulary
 *
 * dmirror	an open file: one mirrored mm and the device's page table for it
 * device	one /dev/hmm_dmirror*, with all its memory
 * chunk	a page map: device memory that is added and removed in one go
 * backing	where the bytes of a device page are. Coherent: the page itself.
 *		Private: a page of RAM that nobody else knows, the stand-in for
 *		memory on a board. The page's zone_device_data points to it
 *
 * The device's page table
 *
 * An entry may be used only under dmirror->lock, and is never stale there:
 *
 *	device				CPU
 *	read_begin()
 *	hmm_range_fault()		invalidate_range_start()
 *	lock				  lock
 *	read_retry()? again		  set_seq(), erase entries
 *	store entries			  unlock
 *	unlock				changes the page table, frees the page
 *
 * There is no other way into it, but for exclusive pages, which follow the same
 * steps with make_device_exclusive() in the place of hmm_range_fault(). After a
 * migration the device asks hmm_range_fault() where its pages are, as everyone
 * has to. So invalidations need not be told apart, and two files that mirror
 * one mm are no danger to each other.
 *
 * Locks
 *
 *	device->release_lock		removal of chunks; nobody with a page waits
 *	  mmap_lock
 *	    folio lock
 *	      dmirror->lock		page table of the device; taken by invalidate
 *	        device->lock		list of chunks, free pages, counts; leaf
 *	device->grow_lock		addition of chunks; before any page is locked
 */
#include <linux/cdev.h>
#include <linux/debugfs.h>
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/hmm.h>
#include <linux/init.h>
#include <linux/memremap.h>
#include <linux/migrate.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <linux/xarray.h>

#include "test_hmm_uapi.h"

/* Pages in one step of a walk, a migration or an eviction: a PMD's worth. */
#define DMIRROR_BATCH		512

/* Pages in one ioctl: 4 GiB. WRITE copies all of it into the kernel first. */
#define DMIRROR_MAX_PAGES	(1UL << 20)

/* How long RELEASE and the last close try to get pages back. */
#define DMIRROR_EVICT_SECONDS	10

/*
 * Tags of entries in the device's page table; without one, it may only read.
 * Exclusive entries are writable, too.
 */
#define DPTE_WRITE		1UL
#define DPTE_EXCLUSIVE		3UL

static unsigned long spm_addr_dev0;
module_param(spm_addr_dev0, ulong, 0444);
MODULE_PARM_DESC(spm_addr_dev0, "Physical address of the memory of coherent device 2");

static unsigned long spm_addr_dev1;
module_param(spm_addr_dev1, ulong, 0444);
MODULE_PARM_DESC(spm_addr_dev1, "Physical address of the memory of coherent device 3");

static unsigned int spm_mb = 256;
module_param(spm_mb, uint, 0444);
MODULE_PARM_DESC(spm_mb, "MiB of memory of each coherent device (256)");

static unsigned int chunk_mb = 256;
module_param(chunk_mb, uint, 0444);
MODULE_PARM_DESC(chunk_mb, "MiB by which a private device grows (256)");

static unsigned int private_mb;
module_param(private_mb, uint, 0444);
MODULE_PARM_DESC(private_mb, "MiB up to which a private device grows (0: no limit)");

/*
 * A page is taken from the list of free ones, linked by zone_device_data, or
 * from the end that was never used. All but the first two are under
 * device->lock.
 */
struct dmirror_chunk {
	struct dev_pagemap	pgmap;
	struct dmirror_device	*device;

	struct list_head	node;
	struct page		*free;
	unsigned long		nr_fresh_used;
	unsigned long		nr_in_use;

	/* for eviction, which cannot fail for want of memory */
	unsigned long		src[DMIRROR_BATCH];
	unsigned long		dst[DMIRROR_BATCH];
};

struct dmirror_device {
	struct cdev		cdev;
	struct device		dev;
	enum memory_type	type;
	unsigned long		spm_addr;
	struct dentry		*debugfs;

	struct mutex		release_lock;
	struct mutex		grow_lock;
	spinlock_t		lock;
	/* under lock */
	struct list_head	chunks;
	unsigned long		nr_chunks;
	unsigned long		nr_free;
	unsigned long		nr_users;
	u64			allocated;
	u64			freed;
};

struct dmirror {
	struct dmirror_device		*device;
	struct mmu_interval_notifier	notifier;
	struct mutex			lock;
	struct xarray			pt;	/* pfn of the mm -> page | DPTE_* */
};

/* What an ioctl needs room for. */
struct dmirror_scratch {
	unsigned long	src[DMIRROR_BATCH];	/* or pfns of a walk */
	unsigned long	dst[DMIRROR_BATCH];
	u8		perm[DMIRROR_BATCH];
};

#define DMIRROR_NR_PRIVATE	2
#define DMIRROR_NR_DEVICES	4

static dev_t dmirror_devt;
static struct dentry *dmirror_debugfs;
static struct dmirror_device *dmirror_devices[DMIRROR_NR_DEVICES];

/* --- Device memory: pages ------------------------------------------------ */

static struct dmirror_chunk *page_chunk(const struct page *page)
{
	return container_of(page->pgmap, struct dmirror_chunk, pgmap);
}

static struct page *page_backing(struct page *page)
{
	return is_device_private_page(page) ? page->zone_device_data : page;
}

static unsigned long chunk_pfn(const struct dmirror_chunk *chunk)
{
	return PHYS_PFN(chunk->pgmap.range.start);
}

static unsigned long chunk_nr_pages(const struct dmirror_chunk *chunk)
{
	return PHYS_PFN(range_len(&chunk->pgmap.range));
}

static struct page *chunk_take_page(struct dmirror_chunk *chunk)
{
	struct page *page = chunk->free;

	if (page)
		chunk->free = page->zone_device_data;
	else if (chunk->nr_fresh_used < chunk_nr_pages(chunk))
		page = pfn_to_page(chunk_pfn(chunk) + chunk->nr_fresh_used++);
	else
		return NULL;

	chunk->nr_in_use++;
	return page;
}

static struct page *device_take_page(struct dmirror_device *device)
{
	struct dmirror_chunk *chunk;
	struct page *page = NULL;

	guard(spinlock_irqsave)(&device->lock);
	list_for_each_entry(chunk, &device->chunks, node) {
		page = chunk_take_page(chunk);
		if (page)
			break;
	}
	if (page) {
		device->nr_free--;
		device->allocated++;
	}
	return page;
}

/* Returns a page of the device, locked, or NULL when it is full. */
static struct page *device_alloc_page(struct dmirror_device *device)
{
	struct page *backing = NULL;
	struct page *page;

	if (device->type == MEMORY_DEVICE_PRIVATE) {
		backing = alloc_page(GFP_HIGHUSER | __GFP_NOWARN);
		if (!backing)
			return NULL;
	}
	page = device_take_page(device);
	if (!page) {
		if (backing)
			__free_page(backing);
		return NULL;
	}
	zone_device_page_init(page);
	page->zone_device_data = backing;
	return page;
}

static void dmirror_page_free(struct page *page)
{
	struct dmirror_chunk *chunk = page_chunk(page);
	struct dmirror_device *device = chunk->device;
	struct page *backing = page_backing(page);

	if (backing != page)
		__free_page(backing);

	guard(spinlock_irqsave)(&device->lock);
	page->zone_device_data = chunk->free;
	chunk->free = page;
	chunk->nr_in_use--;
	device->freed++;
	/* Pages of a chunk that is about to go are on nobody's account. */
	if (!list_empty(&chunk->node))
		device->nr_free++;
}

/* --- Device memory: moving pages to RAM ---------------------------------- */

/*
 * Gives each page that is to move a copy in RAM. Those that get none stay where
 * they are. Returns 0, or -ENOMEM if there were such. With __GFP_NOFAIL in @gfp
 * there are none.
 */
static int copy_to_ram(const unsigned long *src, unsigned long *dst,
		       unsigned long n, gfp_t gfp)
{
	unsigned long i;
	int err = 0;

	for (i = 0; i < n; i++) {
		struct page *from = migrate_pfn_to_page(src[i]);
		struct page *to;

		dst[i] = 0;
		if (!from || !(src[i] & MIGRATE_PFN_MIGRATE))
			continue;
		to = alloc_page(gfp);
		if (!to) {
			err = -ENOMEM;
			continue;
		}
		lock_page(to);
		copy_highpage(to, page_backing(from));
		dst[i] = migrate_pfn(page_to_pfn(to));
	}
	return err;
}

/* The CPU touched a private page. */
static vm_fault_t dmirror_migrate_to_ram(struct vm_fault *vmf)
{
	unsigned long addr = vmf->address & PAGE_MASK;
	unsigned long src = 0, dst = 0;
	struct migrate_vma args = {
		.vma = vmf->vma,
		.start = addr,
		.end = addr + PAGE_SIZE,
		.src = &src,
		.dst = &dst,
		.pgmap_owner = page_chunk(vmf->page)->device,
		.flags = MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
		.fault_page = vmf->page,
	};
	int err;

	if (migrate_vma_setup(&args))
		return VM_FAULT_SIGBUS;
	err = copy_to_ram(&src, &dst, 1, GFP_HIGHUSER_MOVABLE);
	migrate_vma_pages(&args);
	migrate_vma_finalize(&args);
	/* Or the fault would come back at once, and again. */
	return err ? VM_FAULT_OOM : 0;
}

static const struct dev_pagemap_ops dmirror_pagemap_ops = {
	.page_free	= dmirror_page_free,
	.migrate_to_ram	= dmirror_migrate_to_ram,
};

static void evict_batch(struct dmirror_chunk *chunk, unsigned long pfn,
			unsigned long n)
{
	if (migrate_device_range(chunk->src, pfn, n))
		return;
	copy_to_ram(chunk->src, chunk->dst, n,
		    GFP_HIGHUSER_MOVABLE | __GFP_NOFAIL);
	migrate_device_pages(chunk->src, chunk->dst, n);
	migrate_device_finalize(chunk->src, chunk->dst, n);
}

static void chunk_usage(struct dmirror_chunk *chunk, unsigned long *in_use,
			unsigned long *touched)
{
	guard(spinlock_irqsave)(&chunk->device->lock);
	*in_use = chunk->nr_in_use;
	*touched = chunk->nr_fresh_used;
}

/*
 * Moves all that is in the chunk to RAM, under release_lock. Pages that others
 * have locked, or hold for a moment, or have taken and not initialised yet, get
 * another chance until @deadline.
 */
static int chunk_evict(struct dmirror_chunk *chunk, unsigned long deadline)
{
	unsigned long in_use, touched, i;

	lockdep_assert_held(&chunk->device->release_lock);
	for (;;) {
		chunk_usage(chunk, &in_use, &touched);
		if (!in_use)
			return 0;
		for (i = 0; i < touched; i += DMIRROR_BATCH) {
			evict_batch(chunk, chunk_pfn(chunk) + i,
				    min(touched - i, DMIRROR_BATCH));
			cond_resched();
		}
		chunk_usage(chunk, &in_use, &touched);
		if (!in_use)
			return 0;
		if (time_after(jiffies, deadline))
			return -EBUSY;
		schedule_timeout_idle(1);
	}
}

/* --- Device memory: chunks ----------------------------------------------- */

static unsigned long device_max_chunks(const struct dmirror_device *device)
{
	if (device->type == MEMORY_DEVICE_COHERENT)
		return 1;
	return private_mb ? private_mb / chunk_mb : ULONG_MAX;
}

static int chunk_find_range(struct dmirror_chunk *chunk)
{
	struct range *range = &chunk->pgmap.range;
	struct resource *res;

	if (chunk->device->type == MEMORY_DEVICE_COHERENT) {
		range->start = chunk->device->spm_addr;
		range->end = range->start + ((u64)spm_mb << 20) - 1;
		return 0;
	}
	res = request_free_mem_region(&iomem_resource, (u64)chunk_mb << 20,
				      "hmm_dmirror");
	if (IS_ERR(res))
		return PTR_ERR(res);
	range->start = res->start;
	range->end = res->end;
	return 0;
}

static void chunk_put_range(struct dmirror_chunk *chunk)
{
	if (chunk->device->type == MEMORY_DEVICE_PRIVATE)
		release_mem_region(chunk->pgmap.range.start,
				   range_len(&chunk->pgmap.range));
}

static int device_add_chunk(struct dmirror_device *device)
{
	struct dmirror_chunk *chunk = kvzalloc(sizeof(*chunk), GFP_KERNEL);
	void *addr;
	int err;

	lockdep_assert_held(&device->grow_lock);
	if (!chunk)
		return -ENOMEM;
	chunk->device = device;
	chunk->pgmap.type = device->type;
	chunk->pgmap.ops = &dmirror_pagemap_ops;
	chunk->pgmap.owner = device;
	chunk->pgmap.nr_range = 1;

	err = chunk_find_range(chunk);
	if (err)
		goto err_free_chunk;
	addr = memremap_pages(&chunk->pgmap, numa_node_id());
	if (IS_ERR(addr)) {
		err = PTR_ERR(addr);
		goto err_put_range;
	}

	guard(spinlock_irqsave)(&device->lock);
	list_add_tail(&chunk->node, &device->chunks);
	device->nr_chunks++;
	device->nr_free += chunk_nr_pages(chunk);
	return 0;

err_put_range:
	chunk_put_range(chunk);
err_free_chunk:
	kvfree(chunk);
	return err;
}

/* Not on the list any more, and empty. */
static void device_remove_chunk(struct dmirror_chunk *chunk)
{
	struct dmirror_device *device = chunk->device;

	memunmap_pages(&chunk->pgmap);
	chunk_put_range(chunk);
	kvfree(chunk);

	guard(spinlock_irqsave)(&device->lock);
	device->nr_chunks--;
}

static bool device_has_room(struct dmirror_device *device, unsigned long n)
{
	guard(spinlock_irqsave)(&device->lock);
	return device->nr_free >= n ||
	       device->nr_chunks >= device_max_chunks(device);
}

/*
 * Grows the device until @n pages are free, as far as it can. Before a migration
 * begins, as adding memory must not wait for whoever waits for a locked page.
 */
static void device_make_room(struct dmirror_device *device, unsigned long n)
{
	guard(mutex)(&device->grow_lock);
	while (!device_has_room(device, n))
		if (device_add_chunk(device))
			break;
}

static void device_hide_chunk(struct dmirror_chunk *chunk)
{
	struct dmirror_device *device = chunk->device;

	guard(spinlock_irqsave)(&device->lock);
	list_del_init(&chunk->node);
	device->nr_free -= chunk_nr_pages(chunk) - chunk->nr_in_use;
}

static void device_show_chunk(struct dmirror_chunk *chunk)
{
	struct dmirror_device *device = chunk->device;

	guard(spinlock_irqsave)(&device->lock);
	list_add_tail(&chunk->node, &device->chunks);
	device->nr_free += chunk_nr_pages(chunk) - chunk->nr_in_use;
}

/* Chunks are removed under release_lock alone, so the one found stays. */
static struct dmirror_chunk *device_next_chunk(struct dmirror_device *device,
					       struct dmirror_chunk *chunk)
{
	lockdep_assert_held(&device->release_lock);
	guard(spinlock_irqsave)(&device->lock);
	if (!chunk)
		return list_first_entry_or_null(&device->chunks,
						struct dmirror_chunk, node);
	if (list_is_last(&chunk->node, &device->chunks))
		return NULL;
	return list_next_entry(chunk, node);
}

static unsigned long evict_deadline(void)
{
	return jiffies + DMIRROR_EVICT_SECONDS * HZ;
}

/*
 * Takes the device's memory away. No lock is held that a migration waits for:
 * memunmap_pages() waits for the pages that one has in hand. New chunks may come
 * meanwhile; the first one that this sees twice would be one of them.
 */
static int device_release_memory(struct dmirror_device *device)
{
	unsigned long deadline = evict_deadline();
	struct dmirror_chunk *chunk;
	unsigned long n;
	int err;

	guard(mutex)(&device->release_lock);
	for (n = READ_ONCE(device->nr_chunks); n; n--) {
		chunk = device_next_chunk(device, NULL);
		if (!chunk)
			break;
		device_hide_chunk(chunk);
		err = chunk_evict(chunk, deadline);
		if (err) {
			device_show_chunk(chunk);
			return err;
		}
		device_remove_chunk(chunk);
	}
	return 0;
}

/* The last user is gone: what is left in the device's memory goes home. */
static void device_evict(struct dmirror_device *device)
{
	unsigned long deadline = evict_deadline();
	struct dmirror_chunk *chunk = NULL;

	guard(mutex)(&device->release_lock);
	while ((chunk = device_next_chunk(device, chunk)))
		chunk_evict(chunk, deadline);
}

/* --- The mirror ---------------------------------------------------------- */

static bool dmirror_invalidate(struct mmu_interval_notifier *notifier,
			       const struct mmu_notifier_range *range,
			       unsigned long seq)
{
	struct dmirror *dm = container_of(notifier, struct dmirror, notifier);
	unsigned long pfn;
	void *entry;

	/*
	 * make_device_exclusive() takes the page from the CPU, for us: what the
	 * device knows of it stays true.
	 */
	if (range->event == MMU_NOTIFY_EXCLUSIVE && range->owner == dm)
		return true;

	if (mmu_notifier_range_blockable(range))
		mutex_lock(&dm->lock);
	else if (!mutex_trylock(&dm->lock))
		return false;
	mmu_interval_set_seq(notifier, seq);
	xa_for_each_range(&dm->pt, pfn, entry, range->start >> PAGE_SHIFT,
			  (range->end - 1) >> PAGE_SHIFT)
		xa_erase(&dm->pt, pfn);
	mutex_unlock(&dm->lock);
	return true;
}

static const struct mmu_interval_notifier_ops dmirror_notifier_ops = {
	.invalidate = dmirror_invalidate,
};

/* May a step that collided be tried again? 0, -EINTR or -EBUSY. */
static int may_retry(unsigned long deadline)
{
	if (fatal_signal_pending(current))
		return -EINTR;
	if (time_after(jiffies, deadline))
		return -EBUSY;
	cond_resched();
	return 0;
}

static unsigned long retry_deadline(void)
{
	return jiffies + msecs_to_jiffies(HMM_RANGE_DEFAULT_TIMEOUT);
}

/*
 * Has hmm_range_fault() fill in the range, and returns with dm->lock held, under
 * which the answer is true.
 */
static int dmirror_ask_and_lock(struct dmirror *dm, struct hmm_range *range)
{
	unsigned long deadline = retry_deadline();
	struct mm_struct *mm = dm->notifier.mm;
	int err;

	for (;;) {
		err = may_retry(deadline);
		if (err)
			return err;

		range->notifier_seq = mmu_interval_read_begin(range->notifier);
		mmap_read_lock(mm);
		err = hmm_range_fault(range);
		mmap_read_unlock(mm);
		if (err == -EBUSY)
			continue;
		if (err)
			return err;

		mutex_lock(&dm->lock);
		if (!mmu_interval_read_retry(range->notifier,
					     range->notifier_seq))
			return 0;
		mutex_unlock(&dm->lock);
	}
}

/*
 * The mutex is one that reclaim may wait for, by way of invalidate: so no
 * allocation under it reclaims.
 */
static int dmirror_store(struct dmirror *dm, unsigned long pfn,
			 struct page *page, unsigned long tag)
{
	lockdep_assert_held(&dm->lock);
	return xa_err(xa_store(&dm->pt, pfn, xa_tag_pointer(page, tag),
			       GFP_NOWAIT | __GFP_NOWARN));
}

/* Stores what was found; with @only_ours, if it is in this device's memory. */
static int dmirror_store_range(struct dmirror *dm, const struct hmm_range *range,
			       bool only_ours)
{
	unsigned long pfn = range->start >> PAGE_SHIFT;
	unsigned long n = (range->end - range->start) >> PAGE_SHIFT;
	unsigned long i;
	int err = 0;

	for (i = 0; i < n && !err; i++) {
		unsigned long entry = range->hmm_pfns[i];
		struct page *page;

		if (!(entry & HMM_PFN_VALID))
			continue;
		page = hmm_pfn_to_page(entry);
		if (only_ours && !(is_zone_device_page(page) &&
				   page->pgmap->owner == dm->device))
			continue;
		err = dmirror_store(dm, pfn + i, page,
				    entry & HMM_PFN_WRITE ? DPTE_WRITE : 0);
	}
	return err;
}

/*
 * Fills the device's page table from @start to @end. HMM_PFN_REQ_* in @flags
 * make it a fault; without them, only pages are entered that are already in the
 * device's memory.
 */
static int dmirror_map(struct dmirror *dm, unsigned long start,
		       unsigned long end, unsigned long flags,
		       struct dmirror_scratch *scratch)
{
	struct hmm_range range = {
		.notifier = &dm->notifier,
		.hmm_pfns = scratch->src,
		.default_flags = flags,
		.dev_private_owner = dm->device,
	};
	int err;

	for (range.start = start; range.start < end; range.start = range.end) {
		range.end = range.start +
			    min(end - range.start, DMIRROR_BATCH * PAGE_SIZE);
		err = dmirror_ask_and_lock(dm, &range);
		if (err)
			return err;
		err = dmirror_store_range(dm, &range, !flags);
		mutex_unlock(&dm->lock);
		if (err)
			return err;
	}
	return 0;
}

/* --- The device reads and writes ----------------------------------------- */

/* Returns the number of pages copied: up to the first that is not mapped. */
static unsigned long dmirror_copy(struct dmirror *dm, unsigned long addr,
				  unsigned long n, void *buf, bool write)
{
	unsigned long i;

	guard(mutex)(&dm->lock);
	for (i = 0; i < n; i++, buf += PAGE_SIZE) {
		void *entry = xa_load(&dm->pt, (addr >> PAGE_SHIFT) + i);
		struct page *page = xa_untag_pointer(entry);

		if (!page || (write && !(xa_pointer_tag(entry) & DPTE_WRITE)))
			break;
		if (!write) {
			memcpy_from_page(buf, page_backing(page), 0, PAGE_SIZE);
			continue;
		}
		memcpy_to_page(page_backing(page), 0, buf, PAGE_SIZE);
		/* The CPU's dirty bit knows nothing of the device's writes. */
		if (!is_device_private_page(page))
			set_page_dirty(page);
	}
	return i;
}

/*
 * Copies, and faults where it has to: up to the end of the whole command, which
 * counts as one fault, however much there is.
 */
static int dmirror_access(struct dmirror *dm, struct hmm_dmirror_cmd *cmd,
			  unsigned long addr, unsigned long n, void *buf,
			  bool write, struct dmirror_scratch *scratch)
{
	unsigned long end = cmd->addr + (cmd->npages << PAGE_SHIFT);
	unsigned long flags = HMM_PFN_REQ_FAULT |
			      (write ? HMM_PFN_REQ_WRITE : 0);
	unsigned long deadline = retry_deadline();
	unsigned long done;
	int err;

	for (;;) {
		done = dmirror_copy(dm, addr, n, buf, write);
		cmd->cpages += done;
		if (done == n)
			return 0;
		if (done)
			deadline = retry_deadline();
		n -= done;
		buf += done << PAGE_SHIFT;
		addr += done << PAGE_SHIFT;

		err = dmirror_map(dm, addr, end, flags, scratch);
		if (!err)
			err = may_retry(deadline);
		if (err)
			return err;
		cmd->faults++;
	}
}

static void *alloc_buffer(unsigned long npages)
{
	return __vmalloc(npages << PAGE_SHIFT, GFP_KERNEL_ACCOUNT |
			 __GFP_RETRY_MAYFAIL | __GFP_NOWARN);
}

/*
 * Gives the caller what the device reads. Without @fault, all of it has to be
 * in the device's page table: -ENOENT.
 */
static int dmirror_copy_out(struct dmirror *dm, struct hmm_dmirror_cmd *cmd,
			    bool fault, struct dmirror_scratch *scratch)
{
	char __user *uptr = u64_to_user_ptr(cmd->ptr);
	unsigned long n = min(cmd->npages, DMIRROR_BATCH);
	unsigned long addr = cmd->addr;
	unsigned long left;
	int err = 0;
	void *buf;

	buf = alloc_buffer(n);
	if (!buf)
		return -ENOMEM;

	for (left = cmd->npages; left && !err; left -= n) {
		n = min(left, DMIRROR_BATCH);
		if (fault)
			err = dmirror_access(dm, cmd, addr, n, buf, false,
					     scratch);
		else if (dmirror_copy(dm, addr, n, buf, false) != n)
			err = -ENOENT;
		else
			cmd->cpages += n;
		if (!err && copy_to_user(uptr, buf, n << PAGE_SHIFT))
			err = -EFAULT;
		addr += n << PAGE_SHIFT;
		uptr += n << PAGE_SHIFT;
	}
	vfree(buf);
	return err;
}

static int dmirror_read(struct dmirror *dm, struct hmm_dmirror_cmd *cmd,
			struct dmirror_scratch *scratch)
{
	return dmirror_copy_out(dm, cmd, true, scratch);
}

static int dmirror_write(struct dmirror *dm, struct hmm_dmirror_cmd *cmd,
			 struct dmirror_scratch *scratch)
{
	void *buf = alloc_buffer(cmd->npages);
	int err = -EFAULT;

	if (!buf)
		return -ENOMEM;
	/* All of it first: a bad buffer must not make half a write. */
	if (!copy_from_user(buf, u64_to_user_ptr(cmd->ptr),
			    cmd->npages << PAGE_SHIFT))
		err = dmirror_access(dm, cmd, cmd->addr, cmd->npages, buf, true,
				     scratch);
	vfree(buf);
	return err;
}

/* --- Snapshot ------------------------------------------------------------ */

static u8 prot_place(struct dmirror *dm, struct page *page)
{
	bool ours;

	if (is_zero_pfn(page_to_pfn(page)))
		return HMM_DMIRROR_PROT_ZERO;
	if (!is_device_private_page(page) && !is_device_coherent_page(page))
		return 0;

	ours = page->pgmap->owner == dm->device;
	if (is_device_private_page(page))
		return ours ? HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL :
			      HMM_DMIRROR_PROT_DEV_PRIVATE_REMOTE;
	return ours ? HMM_DMIRROR_PROT_DEV_COHERENT_LOCAL :
		      HMM_DMIRROR_PROT_DEV_COHERENT_REMOTE;
}

static u8 prot_size(unsigned long entry)
{
	unsigned int shift = hmm_pfn_to_map_order(entry) + PAGE_SHIFT;

	/* No switch: with fewer levels of page tables the two are the same. */
	if (shift == PMD_SHIFT)
		return HMM_DMIRROR_PROT_PMD;
	return shift == PUD_SHIFT ? HMM_DMIRROR_PROT_PUD : 0;
}

static u8 prot_of(struct dmirror *dm, unsigned long entry)
{
	if (entry & HMM_PFN_ERROR)
		return HMM_DMIRROR_PROT_ERROR;
	if (!(entry & HMM_PFN_VALID))
		return HMM_DMIRROR_PROT_NONE;
	return prot_place(dm, hmm_pfn_to_page(entry)) | prot_size(entry) |
	       (entry & HMM_PFN_WRITE ? HMM_DMIRROR_PROT_WRITE :
					HMM_DMIRROR_PROT_READ);
}

static int dmirror_snapshot(struct dmirror *dm, struct hmm_dmirror_cmd *cmd,
			    struct dmirror_scratch *scratch)
{
	unsigned long end = cmd->addr + (cmd->npages << PAGE_SHIFT);
	u8 __user *uptr = u64_to_user_ptr(cmd->ptr);
	struct hmm_range range = {
		.notifier = &dm->notifier,
		.hmm_pfns = scratch->src,
		.dev_private_owner = dm->device,
	};
	unsigned long i, n;
	int err;

	for (range.start = cmd->addr; range.start < end; range.start = range.end) {
		n = min((end - range.start) >> PAGE_SHIFT, DMIRROR_BATCH);
		range.end = range.start + (n << PAGE_SHIFT);

		err = dmirror_ask_and_lock(dm, &range);
		if (err)
			return err;
		for (i = 0; i < n; i++)
			scratch->perm[i] = prot_of(dm, scratch->src[i]);
		mutex_unlock(&dm->lock);

		if (copy_to_user(uptr + cmd->cpages, scratch->perm, n))
			return -EFAULT;
		cmd->cpages += n;
	}
	return 0;
}

/* --- Migration ----------------------------------------------------------- */

/*
 * Gives each page that is to move, and each hole, a page of the device. Those
 * that get none stay in RAM.
 */
static void copy_to_device(struct dmirror_device *device,
			   const unsigned long *src, unsigned long *dst,
			   unsigned long n)
{
	unsigned long i;

	for (i = 0; i < n; i++) {
		struct page *from, *to;

		dst[i] = 0;
		if (!(src[i] & MIGRATE_PFN_MIGRATE))
			continue;
		to = device_alloc_page(device);
		if (!to)
			continue;
		from = migrate_pfn_to_page(src[i]);
		if (from)
			copy_highpage(page_backing(to), from);
		else
			clear_highpage(page_backing(to));
		dst[i] = migrate_pfn(page_to_pfn(to));
	}
}

static unsigned long count_moved(const unsigned long *src, unsigned long n)
{
	unsigned long moved = 0;

	while (n--)
		moved += (src[n] & MIGRATE_PFN_VALID) &&
			 (src[n] & MIGRATE_PFN_MIGRATE);
	return moved;
}

static unsigned long device_select_flag(const struct dmirror_device *device)
{
	return device->type == MEMORY_DEVICE_PRIVATE ?
	       MIGRATE_VMA_SELECT_DEVICE_PRIVATE :
	       MIGRATE_VMA_SELECT_DEVICE_COHERENT;
}

/*
 * Moves pages from @args->start on: up to @end, the end of the VMA, or a batch;
 * @args->end says how far. Returns 0, if only some of them moved, too; or
 * -ENOMEM for want of RAM.
 */
static int dmirror_migrate_some(struct dmirror *dm, struct migrate_vma *args,
				unsigned long end)
{
	unsigned long n;
	int err;

	args->vma = vma_lookup(dm->notifier.mm, args->start);
	if (!args->vma || !(args->vma->vm_flags & VM_READ))
		return -EINVAL;
	end = min(end, args->vma->vm_end);
	n = min((end - args->start) >> PAGE_SHIFT, DMIRROR_BATCH);
	args->end = args->start + (n << PAGE_SHIFT);

	err = migrate_vma_setup(args);
	if (err)
		return err;
	if (args->flags & MIGRATE_VMA_SELECT_SYSTEM)
		copy_to_device(dm->device, args->src, args->dst, n);
	else
		err = copy_to_ram(args->src, args->dst, n, GFP_HIGHUSER_MOVABLE);
	migrate_vma_pages(args);
	migrate_vma_finalize(args);
	return err;
}

static int dmirror_migrate(struct dmirror *dm, struct hmm_dmirror_cmd *cmd,
			   unsigned long select, struct dmirror_scratch *scratch)
{
	unsigned long end = cmd->addr + (cmd->npages << PAGE_SHIFT);
	struct mm_struct *mm = dm->notifier.mm;
	struct migrate_vma args = {
		.src = scratch->src,
		.dst = scratch->dst,
		.flags = select,
		.pgmap_owner = dm->device,
	};
	int err = 0;

	for (args.start = cmd->addr; args.start < end; args.start = args.end) {
		if (fatal_signal_pending(current))
			return -EINTR;
		if (select & MIGRATE_VMA_SELECT_SYSTEM)
			device_make_room(dm->device, DMIRROR_BATCH);
		mmap_read_lock(mm);
		err = dmirror_migrate_some(dm, &args, end);
		mmap_read_unlock(mm);
		if (err)
			return err;
		cmd->cpages += count_moved(args.src,
					   (args.end - args.start) >> PAGE_SHIFT);
	}
	return err;
}

static int dmirror_migrate_to_sys(struct dmirror *dm,
				  struct hmm_dmirror_cmd *cmd,
				  struct dmirror_scratch *scratch)
{
	return dmirror_migrate(dm, cmd, device_select_flag(dm->device), scratch);
}

static int dmirror_migrate_to_dev(struct dmirror *dm,
				  struct hmm_dmirror_cmd *cmd,
				  struct dmirror_scratch *scratch)
{
	int err;

	err = dmirror_migrate(dm, cmd, MIGRATE_VMA_SELECT_SYSTEM, scratch);
	if (err)
		return err;
	err = dmirror_map(dm, cmd->addr,
			  cmd->addr + (cmd->npages << PAGE_SHIFT), 0, scratch);
	if (err)
		return err;
	/* What counts is what the device has now. */
	cmd->cpages = 0;
	return dmirror_copy_out(dm, cmd, false, scratch);
}

/* --- Exclusive access ---------------------------------------------------- */

/*
 * The page is locked until it is in the device's page table, so that no CPU can
 * have it back before. Other invalidations may come between: then the entry is
 * not made, and the answer is -EAGAIN.
 */
static int dmirror_try_exclusive(struct dmirror *dm, unsigned long addr)
{
	struct mm_struct *mm = dm->notifier.mm;
	struct folio *folio;
	struct page *page;
	unsigned long seq;
	int err = -EAGAIN;

	seq = mmu_interval_read_begin(&dm->notifier);
	mmap_read_lock(mm);
	page = make_device_exclusive(mm, addr, dm, &folio);
	mmap_read_unlock(mm);
	if (IS_ERR(page))
		return PTR_ERR(page);

	mutex_lock(&dm->lock);
	if (!mmu_interval_read_retry(&dm->notifier, seq))
		err = dmirror_store(dm, addr >> PAGE_SHIFT, page,
				    DPTE_EXCLUSIVE);
	mutex_unlock(&dm->lock);
	folio_unlock(folio);
	folio_put(folio);
	return err;
}

/*
 * The first attempt may break COW, fill a hole or split a huge page, which
 * invalidates. Another one would take the page back from ourselves first, and
 * fail for that. So the device faults it in before.
 */
static int dmirror_exclusive_page(struct dmirror *dm, unsigned long addr,
				  struct dmirror_scratch *scratch)
{
	unsigned long deadline = retry_deadline();
	int err;

	for (;;) {
		err = dmirror_try_exclusive(dm, addr);
		if (err != -EAGAIN && err != -EBUSY)
			return err;
		err = may_retry(deadline);
		if (err)
			return err;
		err = dmirror_map(dm, addr, addr + PAGE_SIZE,
				  HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE,
				  scratch);
		if (err)
			return err;
	}
}

static int dmirror_exclusive(struct dmirror *dm, struct hmm_dmirror_cmd *cmd,
			     struct dmirror_scratch *scratch)
{
	unsigned long i;
	int err;

	for (i = 0; i < cmd->npages; i++) {
		err = dmirror_exclusive_page(dm, cmd->addr + (i << PAGE_SHIFT),
					     scratch);
		if (err)
			return err;
	}
	return dmirror_copy_out(dm, cmd, false, scratch);
}

static int dmirror_check_exclusive(struct dmirror *dm,
				   struct hmm_dmirror_cmd *cmd,
				   struct dmirror_scratch *scratch)
{
	unsigned long first = cmd->addr >> PAGE_SHIFT;
	unsigned long pfn;
	void *entry;

	guard(mutex)(&dm->lock);
	xa_for_each_range(&dm->pt, pfn, entry, first, first + cmd->npages - 1)
		if (xa_pointer_tag(entry) == DPTE_EXCLUSIVE)
			return -EPERM;
	return 0;
}

/* --- The file ------------------------------------------------------------ */

/* @no_mm: the answer when the mirrored process is gone */
static const struct dmirror_op {
	int (*run)(struct dmirror *dm, struct hmm_dmirror_cmd *cmd,
		   struct dmirror_scratch *scratch);
	int no_mm;
} dmirror_ops[] = {
	[_IOC_NR(HMM_DMIRROR_READ)]		= { dmirror_read, -EFAULT },
	[_IOC_NR(HMM_DMIRROR_WRITE)]		= { dmirror_write, -EFAULT },
	[_IOC_NR(HMM_DMIRROR_MIGRATE_TO_DEV)]	= { dmirror_migrate_to_dev, -EINVAL },
	[_IOC_NR(HMM_DMIRROR_MIGRATE_TO_SYS)]	= { dmirror_migrate_to_sys, -EINVAL },
	[_IOC_NR(HMM_DMIRROR_SNAPSHOT)]		= { dmirror_snapshot, -EINVAL },
	[_IOC_NR(HMM_DMIRROR_EXCLUSIVE)]	= { dmirror_exclusive, -EINVAL },
	[_IOC_NR(HMM_DMIRROR_CHECK_EXCLUSIVE)]	= { dmirror_check_exclusive, -EINVAL },
};

static int check_cmd(const struct hmm_dmirror_cmd *cmd)
{
	u64 size, end;

	if (!IS_ALIGNED(cmd->addr, PAGE_SIZE) || !cmd->npages)
		return -EINVAL;
	if (check_mul_overflow(cmd->npages, (u64)PAGE_SIZE, &size) ||
	    check_add_overflow(cmd->addr, size, &end) || end > ULONG_MAX)
		return -EINVAL;
	return cmd->npages > DMIRROR_MAX_PAGES ? -E2BIG : 0;
}

static int dmirror_run(struct dmirror *dm, const struct dmirror_op *op,
		       struct hmm_dmirror_cmd *cmd)
{
	struct mm_struct *mm = dm->notifier.mm;
	struct dmirror_scratch *scratch;
	int err;

	err = check_cmd(cmd);
	if (err)
		return err;
	scratch = kvmalloc(sizeof(*scratch), GFP_KERNEL_ACCOUNT);
	if (!scratch)
		return -ENOMEM;

	cmd->cpages = 0;
	cmd->faults = 0;
	err = op->no_mm;
	if (mmget_not_zero(mm)) {
		err = op->run(dm, cmd, scratch);
		mmput(mm);
	}
	kvfree(scratch);
	return err;
}

static long dmirror_ioctl(struct file *file, unsigned int command,
			  unsigned long arg)
{
	struct dmirror *dm = file->private_data;
	unsigned int nr = _IOC_NR(command);
	void __user *uarg = (void __user *)arg;
	struct hmm_dmirror_cmd cmd;
	int err;

	if (command != HMM_DMIRROR_IOC(nr))
		return -EINVAL;
	if (copy_from_user(&cmd, uarg, sizeof(cmd)))
		return -EFAULT;

	if (command == HMM_DMIRROR_RELEASE)
		err = device_release_memory(dm->device);
	else if (nr < ARRAY_SIZE(dmirror_ops))
		err = dmirror_run(dm, &dmirror_ops[nr], &cmd);
	else
		err = -EINVAL;

	if (!err && copy_to_user(uarg, &cmd, sizeof(cmd)))
		err = -EFAULT;
	return err;
}

/* Memory of a driver: pages that are nobody's, mapped and never migrated. */
static int dmirror_mmap(struct file *file, struct vm_area_struct *vma)
{
	unsigned long addr;

	for (addr = vma->vm_start; addr < vma->vm_end; addr += PAGE_SIZE) {
		struct page *page;
		int err;

		if (fatal_signal_pending(current))
			return -EINTR;
		page = alloc_page(GFP_KERNEL | __GFP_ZERO);
		if (!page)
			return -ENOMEM;
		err = vm_insert_page(vma, addr, page);
		put_page(page);
		if (err)
			return err;
	}
	return 0;
}

static void device_get_user(struct dmirror_device *device)
{
	guard(spinlock_irqsave)(&device->lock);
	device->nr_users++;
}

static bool device_put_user(struct dmirror_device *device)
{
	guard(spinlock_irqsave)(&device->lock);
	return !--device->nr_users;
}

static int dmirror_open(struct inode *inode, struct file *file)
{
	struct dmirror *dm = kzalloc(sizeof(*dm), GFP_KERNEL_ACCOUNT);
	int err;

	if (!dm)
		return -ENOMEM;
	dm->device = container_of(inode->i_cdev, struct dmirror_device, cdev);
	mutex_init(&dm->lock);
	xa_init(&dm->pt);

	err = mmu_interval_notifier_insert(&dm->notifier, current->mm, 0,
					   ULONG_MAX & PAGE_MASK,
					   &dmirror_notifier_ops);
	if (err) {
		kfree(dm);
		return err;
	}
	device_get_user(dm->device);
	file->private_data = dm;
	return 0;
}

static int dmirror_release(struct inode *inode, struct file *file)
{
	struct dmirror *dm = file->private_data;
	struct dmirror_device *device = dm->device;

	mmu_interval_notifier_remove(&dm->notifier);
	xa_destroy(&dm->pt);
	kfree(dm);

	if (device_put_user(device))
		device_evict(device);
	return 0;
}

static const struct file_operations dmirror_fops = {
	.owner		= THIS_MODULE,
	.open		= dmirror_open,
	.release	= dmirror_release,
	.unlocked_ioctl	= dmirror_ioctl,
	.mmap		= dmirror_mmap,
};

/* --- Devices ------------------------------------------------------------- */

static int allocated_get(void *data, u64 *val)
{
	struct dmirror_device *device = data;

	guard(spinlock_irqsave)(&device->lock);
	*val = device->allocated;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(allocated_fops, allocated_get, NULL, "%llu\n");

static int freed_get(void *data, u64 *val)
{
	struct dmirror_device *device = data;

	guard(spinlock_irqsave)(&device->lock);
	*val = device->freed;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(freed_fops, freed_get, NULL, "%llu\n");

static void device_add_debugfs(struct dmirror_device *device)
{
	struct dentry *dir;

	dir = debugfs_create_dir(dev_name(&device->dev), dmirror_debugfs);
	debugfs_create_file_unsafe("allocated", 0400, dir, device,
				   &allocated_fops);
	debugfs_create_file_unsafe("freed", 0400, dir, device, &freed_fops);
	device->debugfs = dir;
}

static void device_free(struct device *dev)
{
	kfree(container_of(dev, struct dmirror_device, dev));
}

/* Nobody opens it any more, and nobody has it open: all memory comes back. */
static void device_empty(struct dmirror_device *device)
{
	while (device_release_memory(device))
		pr_warn_ratelimited("hmm_dmirror: %s: pages still in use\n",
				    dev_name(&device->dev));
}

static struct dmirror_device *device_create_one(unsigned int id)
{
	struct dmirror_device *device = kzalloc(sizeof(*device), GFP_KERNEL);
	int err;

	if (!device)
		return ERR_PTR(-ENOMEM);
	device->type = id < DMIRROR_NR_PRIVATE ? MEMORY_DEVICE_PRIVATE :
						 MEMORY_DEVICE_COHERENT;
	device->spm_addr = id == DMIRROR_NR_PRIVATE ? spm_addr_dev0 :
						      spm_addr_dev1;
	INIT_LIST_HEAD(&device->chunks);
	spin_lock_init(&device->lock);
	mutex_init(&device->grow_lock);
	mutex_init(&device->release_lock);
	cdev_init(&device->cdev, &dmirror_fops);
	device->cdev.owner = THIS_MODULE;
	device_initialize(&device->dev);
	device->dev.devt = MKDEV(MAJOR(dmirror_devt), id);
	device->dev.release = device_free;

	err = dev_set_name(&device->dev, "hmm_dmirror%u", id);
	if (err)
		goto err_put_device;
	/* A device whose memory cannot be had is better not there. */
	mutex_lock(&device->grow_lock);
	err = device_add_chunk(device);
	mutex_unlock(&device->grow_lock);
	if (err)
		goto err_put_device;

	device_add_debugfs(device);
	return device;

err_put_device:
	put_device(&device->dev);
	return ERR_PTR(err);
}

static void device_destroy_one(struct dmirror_device *device)
{
	if (device_is_registered(&device->dev))
		cdev_device_del(&device->cdev, &device->dev);
	debugfs_remove(device->debugfs);
	device_empty(device);
	put_device(&device->dev);
}

static void destroy_devices(void)
{
	int id;

	for (id = DMIRROR_NR_DEVICES - 1; id >= 0; id--)
		if (dmirror_devices[id])
			device_destroy_one(dmirror_devices[id]);
	debugfs_remove(dmirror_debugfs);
	unregister_chrdev_region(dmirror_devt, DMIRROR_NR_DEVICES);
}

static int check_params(void)
{
	if (!chunk_mb || !spm_mb)
		return -EINVAL;
	if (private_mb && private_mb < chunk_mb)
		return -EINVAL;
	/* Both, or none. */
	return !spm_addr_dev0 != !spm_addr_dev1 ? -EINVAL : 0;
}

static int create_devices(int n)
{
	int id;

	for (id = 0; id < n; id++) {
		struct dmirror_device *device = device_create_one(id);

		if (IS_ERR(device))
			return PTR_ERR(device);
		dmirror_devices[id] = device;
	}
	return 0;
}

/*
 * When no memory can be missing any more: a file that is open while the module
 * fails to load would outlive it.
 */
static int publish_devices(int n)
{
	int err = 0, id;

	for (id = 0; id < n && !err; id++)
		err = cdev_device_add(&dmirror_devices[id]->cdev,
				      &dmirror_devices[id]->dev);
	return err;
}

static int __init dmirror_init(void)
{
	int n = spm_addr_dev0 ? DMIRROR_NR_DEVICES : DMIRROR_NR_PRIVATE;
	int err;

	err = check_params();
	if (err)
		return err;
	err = alloc_chrdev_region(&dmirror_devt, 0, DMIRROR_NR_DEVICES,
				  "HMM_DMIRROR");
	if (err)
		return err;

	dmirror_debugfs = debugfs_create_dir("hmm_dmirror", NULL);
	err = create_devices(n);
	if (!err)
		err = publish_devices(n);
	if (err)
		destroy_devices();
	return err;
}
module_init(dmirror_init);

static void __exit dmirror_exit(void)
{
	destroy_devices();
}
module_exit(dmirror_exit);

MODULE_DESCRIPTION("dmirror: a simulated device to test HMM with");
MODULE_LICENSE("GPL");
