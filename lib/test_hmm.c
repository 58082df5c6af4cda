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
 *	mmap_lock
 *	  folio lock
 *	    dmirror->lock	page table of the device; taken by invalidate
 *
 * and those of the pool of device memory, which neither sees the other's.
 */
#include <linux/capability.h>
#include <linux/cdev.h>
#include <linux/debugfs.h>
#include <linux/device.h>
#include <linux/dma-direct.h>
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/hmm.h>
#include <linux/hmm-dma.h>
#include <linux/hmm_devmem.h>
#include <linux/init.h>
#include <linux/memremap.h>
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
#include <linux/xarray.h>

#include "test_hmm_uapi.h"

/* Pages in one step of a walk, a migration or an eviction: a PMD's worth. */
#define DMIRROR_BATCH		512

/*
 * Pages in the buffer between the device and the caller: so few that it is one
 * allocation, and so many that a lock for each time it is full costs nothing.
 */
#define DMIRROR_BUFFER		32UL

/* Pages in one ioctl: 4 GiB. */
#define DMIRROR_MAX_PAGES	BIT(20)

/*
 * Tags of entries in the device's page table; without one, it may only read.
 * Exclusive entries are writable, too.
 */
#define DPTE_WRITE		1UL
#define DPTE_EXCLUSIVE		3UL

static unsigned long spm_addr_dev0;
module_param(spm_addr_dev0, ulong, 0400);
MODULE_PARM_DESC(spm_addr_dev0, "Physical address of the memory of coherent device 2");

static unsigned long spm_addr_dev1;
module_param(spm_addr_dev1, ulong, 0400);
MODULE_PARM_DESC(spm_addr_dev1, "Physical address of the memory of coherent device 3");

static unsigned int spm_mb = 256;
module_param(spm_mb, uint, 0400);
MODULE_PARM_DESC(spm_mb, "MiB of memory of each coherent device (256)");

static unsigned int chunk_mb = 256;
module_param(chunk_mb, uint, 0400);
MODULE_PARM_DESC(chunk_mb, "MiB by which a private device grows (256)");

static unsigned int private_mb;
module_param(private_mb, uint, 0400);
MODULE_PARM_DESC(private_mb, "MiB up to which a private device grows (0: no limit)");

static unsigned int evict_ms = 10000;
module_param(evict_ms, uint, 0600);
MODULE_PARM_DESC(evict_ms, "How long RELEASE and the last close try to get pages back (10000)");

struct dmirror_device {
	struct cdev		cdev;
	struct device		dev;
	struct hmm_devmem	*devmem;
	struct resource		spm;		/* of a coherent device */
	struct dentry		*debugfs;

	bool			fail_large;	/* the next large allocation */
	bool			fail_copy;	/* all copies */
	atomic_t		nr_users;
	atomic64_t		allocated;
	atomic64_t		freed;
	atomic64_t		copies;		/* one for each folio that moved */
};

struct dmirror {
	struct dmirror_device		*device;
	struct mmu_interval_notifier	notifier;
	struct mutex			lock;	/* guards pt */
	struct xarray			pt;	/* pfn of the mm -> page | DPTE_* */
};

/* What an ioctl needs room for, and how it faults: with mmap_lock, or without. */
struct dmirror_scratch {
	bool		unlocked;
	unsigned long	pfns[DMIRROR_BATCH];
	u8		perm[DMIRROR_BATCH];
};

#define DMIRROR_NR_PRIVATE	2
#define DMIRROR_NR_DEVICES	4

static dev_t dmirror_devt;
static struct dentry *dmirror_debugfs;
static struct dmirror_device *dmirror_devices[DMIRROR_NR_DEVICES];

/* --- Device memory ------------------------------------------------------- */

static struct dmirror_device *devmem_device(const struct hmm_devmem *devmem)
{
	return container_of(devmem->device, struct dmirror_device, dev);
}

/*
 * A private folio has as many pages of RAM in a row for its content: one
 * allocation, until the folio is split.
 */
static struct page *page_backing(struct page *page)
{
	struct folio *folio = page_folio(page);
	struct page *backing;

	if (!folio_is_device_private(folio))
		return page;
	backing = folio_zone_device_data(folio);
	return backing + folio_page_idx(folio, page);
}

static int dmirror_folio_init(struct hmm_devmem *devmem, struct folio *folio)
{
	unsigned int order = folio_order(folio);
	struct page *backing;

	if (devmem->type == MEMORY_DEVICE_PRIVATE) {
		backing = alloc_pages(GFP_HIGHUSER | __GFP_NOWARN, order);
		if (!backing)
			return -ENOMEM;
		/* For a split: the folio does not know it any more then. */
		set_page_private(backing, order);
		folio_set_zone_device_data(folio, backing);
	}
	atomic64_add(1UL << order, &devmem_device(devmem)->allocated);
	return 0;
}

static void dmirror_folio_exit(struct hmm_devmem *devmem, struct folio *folio)
{
	unsigned int order = folio_order(folio);

	if (devmem->type == MEMORY_DEVICE_PRIVATE)
		__free_pages(folio_zone_device_data(folio), order);
	atomic64_add(1UL << order, &devmem_device(devmem)->freed);
}

static void dmirror_folio_split(struct folio *head, struct folio *tail)
{
	struct page *backing = folio_zone_device_data(head);

	if (!tail || !folio_is_device_private(head))
		return;
	/* With the first tail: from now on its pages are freed one by one. */
	if (page_private(backing)) {
		split_page(backing, page_private(backing));
		set_page_private(backing, 0);
	}
	folio_set_zone_device_data(tail, backing +
				   (folio_pfn(tail) - folio_pfn(head)));
}

/* Large folios fail once after HMM_DMIRROR_FLAG_FAIL_ALLOC. */
static bool dmirror_may_alloc(struct hmm_devmem *devmem, bool to_device,
			      unsigned int order)
{
	struct dmirror_device *device = devmem_device(devmem);

	if (!READ_ONCE(device->fail_large))
		return true;
	/* The order is the first one tried: the smaller ones are not, either. */
	WRITE_ONCE(device->fail_large, order > 2);
	return false;
}

/* On both sides the pages are of one folio. */
static void dmirror_copy_folio(const struct hmm_devmem_copy *copy)
{
	struct page *dst = page_backing(copy->dst);
	struct page *src = copy->src ? page_backing(copy->src) : NULL;
	unsigned long k;

	for (k = 0; k < copy->nr; k++)
		if (src)
			copy_highpage(dst + k, src + k);
		else
			clear_highpage(dst + k);
}

static int dmirror_copy_pages(struct hmm_devmem_batch *batch)
{
	struct dmirror_device *device = devmem_device(batch->devmem);
	unsigned long i;

	if (READ_ONCE(device->fail_copy))
		return -EIO;
	atomic64_add(batch->nr, &device->copies);
	for (i = 0; i < batch->nr; i++)
		dmirror_copy_folio(&batch->copies[i]);
	return 0;
}

static const struct hmm_devmem_ops dmirror_devmem_ops = {
	.copy		= dmirror_copy_pages,
	.folio_init	= dmirror_folio_init,
	.folio_exit	= dmirror_folio_exit,
	.folio_split	= dmirror_folio_split,
	.may_alloc	= dmirror_may_alloc,
	.max_order	= HMM_DEVMEM_ORDERS - 1,
};

static int device_add_memory(struct dmirror_device *device, int id)
{
	struct hmm_devmem *devmem;

	if (id < DMIRROR_NR_PRIVATE) {
		devmem = hmm_devmem_add(&dmirror_devmem_ops, &device->dev,
					(unsigned long)chunk_mb << 20);
	} else {
		device->spm = DEFINE_RES_MEM(id == DMIRROR_NR_PRIVATE ?
					     spm_addr_dev0 : spm_addr_dev1,
					     (u64)spm_mb << 20);
		devmem = hmm_devmem_add_resource(&dmirror_devmem_ops,
						 &device->dev, &device->spm);
	}
	if (IS_ERR(devmem))
		return PTR_ERR(devmem);
	if (id < DMIRROR_NR_PRIVATE)
		hmm_devmem_set_limit(devmem, private_mb ?
				     (unsigned long)private_mb << 20 : ULONG_MAX);
	device->devmem = devmem;
	return 0;
}

/* --- The mirror ---------------------------------------------------------- */

/* Takes entries out of the device's page table, @last among them. */
static void dmirror_erase(struct dmirror *dm, unsigned long first,
			  unsigned long last, bool may_sleep)
{
	XA_STATE(xas, &dm->pt, first);
	unsigned long n = 0;
	void *entry;

	lockdep_assert_held(&dm->lock);
	/* As in most faults. */
	if (first == last) {
		xa_erase(&dm->pt, first);
		return;
	}
	xas_lock(&xas);
	xas_for_each(&xas, entry, last) {
		xas_store(&xas, NULL);
		if (++n % DMIRROR_BATCH)
			continue;
		xas_pause(&xas);
		xas_unlock(&xas);
		if (may_sleep)
			cond_resched();
		xas_lock(&xas);
	}
	xas_unlock(&xas);
}

static bool dmirror_invalidate(struct mmu_interval_notifier *notifier,
			       const struct mmu_notifier_range *range,
			       unsigned long seq)
{
	struct dmirror *dm = container_of(notifier, struct dmirror, notifier);
	bool may_sleep = mmu_notifier_range_blockable(range);

	/*
	 * make_device_exclusive() takes the page from the CPU, for us: what the
	 * device knows of it stays true.
	 */
	if (range->event == MMU_NOTIFY_EXCLUSIVE && range->owner == dm)
		return true;

	if (may_sleep)
		mutex_lock(&dm->lock);
	else if (!mutex_trylock(&dm->lock))
		return false;
	mmu_interval_set_seq(notifier, seq);
	dmirror_erase(dm, range->start >> PAGE_SHIFT,
		      (range->end - 1) >> PAGE_SHIFT, may_sleep);
	mutex_unlock(&dm->lock);
	return true;
}

static const struct mmu_interval_notifier_ops dmirror_notifier_ops = {
	.invalidate = dmirror_invalidate,
};

/* For how long to go on against invalidations. */
#define DMIRROR_PATIENCE	msecs_to_jiffies(HMM_RANGE_DEFAULT_TIMEOUT)

/*
 * A step that collided is tried again for some time, and some times at least: on
 * a kernel with all checks one try may take as long as that.
 */
#define DMIRROR_MIN_TRIES	8

struct dmirror_retry {
	unsigned long deadline;
	unsigned int tries;
};

static struct dmirror_retry retry_begin(void)
{
	return (struct dmirror_retry) {
		.deadline = jiffies + DMIRROR_PATIENCE,
	};
}

/* 0, -EINTR or -EBUSY. */
static int may_retry(struct dmirror_retry *retry)
{
	if (fatal_signal_pending(current))
		return -EINTR;
	if (time_after(jiffies, retry->deadline) &&
	    retry->tries >= DMIRROR_MIN_TRIES)
		return -EBUSY;
	retry->tries++;
	cond_resched();
	return 0;
}

/* Has the range filled in, as it is right now. */
static int dmirror_ask(struct dmirror *dm, struct hmm_range *range,
		       bool unlocked)
{
	struct mm_struct *mm = dm->notifier.mm;
	int err;

	if (unlocked)
		return hmm_range_fault_unlocked_timeout(range, DMIRROR_PATIENCE);

	range->notifier_seq = mmu_interval_read_begin(range->notifier);
	mmap_read_lock(mm);
	err = hmm_range_fault(range);
	mmap_read_unlock(mm);
	return err;
}

/*
 * The same, and returns with dm->lock held, under which the answer is true. The
 * first answer may take as long as userfaultfd wants: the deadline is for what
 * comes between it and the lock.
 */
static int dmirror_ask_and_lock(struct dmirror *dm, struct hmm_range *range,
				bool unlocked)
{
	int err = dmirror_ask(dm, range, unlocked);
	struct dmirror_retry retry = retry_begin();

	for (;;) {
		if (!err) {
			mutex_lock(&dm->lock);
			if (!mmu_interval_read_retry(range->notifier,
						     range->notifier_seq))
				return 0;
			mutex_unlock(&dm->lock);
		} else if (err != -EBUSY) {
			return err;
		}
		err = may_retry(&retry);
		if (err)
			return err;
		err = dmirror_ask(dm, range, unlocked);
	}
}

/*
 * The mutex is one that reclaim may wait for, by way of invalidate: so no
 * allocation under it reclaims.
 */
#define DMIRROR_GFP		(GFP_NOWAIT | __GFP_NOWARN)

static int dmirror_store(struct dmirror *dm, unsigned long pfn,
			 struct page *page, unsigned long tag)
{
	lockdep_assert_held(&dm->lock);
	return xa_err(xa_store(&dm->pt, pfn, xa_tag_pointer(page, tag),
			       DMIRROR_GFP));
}

/* What the device's page table has for a word of the mirror, or NULL. */
static void *entry_of(struct dmirror *dm, unsigned long word, bool only_ours)
{
	struct page *page;

	if (!(word & HMM_PFN_VALID))
		return NULL;
	page = hmm_pfn_to_page(word);
	if (only_ours && !hmm_devmem_has_page(dm->device->devmem, page))
		return NULL;
	return xa_tag_pointer(page, word & HMM_PFN_WRITE ? DPTE_WRITE : 0);
}

/*
 * Stores what was found; with @only_ours, if it is in this device's memory. Goes
 * from entry to entry, and not from the root to each.
 */
static int dmirror_store_range(struct dmirror *dm, const struct hmm_range *range,
			       bool only_ours)
{
	unsigned long first = range->start >> PAGE_SHIFT;
	unsigned long end = range->end >> PAGE_SHIFT;
	XA_STATE(xas, &dm->pt, first);

	lockdep_assert_held(&dm->lock);
	do {
		xas_lock(&xas);
		while (xas.xa_index < end && !xas_error(&xas)) {
			void *entry = entry_of(dm, range->hmm_pfns[xas.xa_index - first],
					       only_ours);

			if (entry)
				xas_store(&xas, entry);
			xas_next(&xas);
		}
		xas_unlock(&xas);
	} while (xas_nomem(&xas, DMIRROR_GFP));
	return xas_error(&xas);
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
		.hmm_pfns = scratch->pfns,
		.default_flags = flags,
		.dev_private_owner = dm->device->devmem,
	};
	int err;

	for (range.start = start; range.start < end; range.start = range.end) {
		range.end = range.start +
			    min(end - range.start, DMIRROR_BATCH * PAGE_SIZE);
		err = dmirror_ask_and_lock(dm, &range, scratch->unlocked);
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
 * counts as one fault, however much there is. The deadline is for pages that are
 * gone again each time, not for the time that the first fault takes.
 */
static int dmirror_access(struct dmirror *dm, struct hmm_dmirror_cmd *cmd,
			  unsigned long addr, unsigned long n, void *buf,
			  bool write, struct dmirror_scratch *scratch)
{
	unsigned long end = cmd->addr + (cmd->npages << PAGE_SHIFT);
	unsigned long flags = HMM_PFN_REQ_FAULT |
			      (write ? HMM_PFN_REQ_WRITE : 0);
	struct dmirror_retry retry = retry_begin();
	bool again = false;
	unsigned long done;
	int err;

	for (;;) {
		done = dmirror_copy(dm, addr, n, buf, write);
		cmd->cpages += done;
		if (done == n)
			return 0;
		n -= done;
		buf += done << PAGE_SHIFT;
		addr += done << PAGE_SHIFT;

		err = again && !done ? may_retry(&retry) : 0;
		if (!err)
			err = dmirror_map(dm, addr, end, flags, scratch);
		if (err)
			return err;
		if (!again || done)
			retry = retry_begin();
		again = true;
		cmd->faults++;
	}
}

static void *alloc_buffer(unsigned long npages)
{
	return kvmalloc(npages << PAGE_SHIFT, GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
}

/*
 * Pages in a buffer. If the caller's memory overlaps with what the device reads or
 * writes it has to be all: none is written before the last is read.
 */
static unsigned long buffer_pages(const struct hmm_dmirror_cmd *cmd)
{
	unsigned long len = cmd->npages << PAGE_SHIFT;

	if (cmd->ptr < cmd->addr + len && cmd->addr < cmd->ptr + len)
		return cmd->npages;
	return min(cmd->npages, DMIRROR_BUFFER);
}

/*
 * Gives the caller what the device reads. Without @fault, all of it has to be
 * in the device's page table: -ENOENT.
 */
static int dmirror_copy_out(struct dmirror *dm, struct hmm_dmirror_cmd *cmd,
			    bool fault, struct dmirror_scratch *scratch)
{
	char __user *uptr = u64_to_user_ptr(cmd->ptr);
	unsigned long n, most = buffer_pages(cmd);
	unsigned long addr = cmd->addr;
	unsigned long left;
	int err = 0;
	void *buf;

	buf = alloc_buffer(most);
	if (!buf)
		return -ENOMEM;

	for (left = cmd->npages; left && !err; left -= n) {
		n = min(left, most);
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
	kvfree(buf);
	return err;
}

static int dmirror_read(struct dmirror *dm, struct hmm_dmirror_cmd *cmd,
			struct dmirror_scratch *scratch)
{
	return dmirror_copy_out(dm, cmd, true, scratch);
}

/* A bad buffer makes no half a write, unless it goes bad meanwhile. */
static int dmirror_write(struct dmirror *dm, struct hmm_dmirror_cmd *cmd,
			 struct dmirror_scratch *scratch)
{
	const char __user *uptr = u64_to_user_ptr(cmd->ptr);
	unsigned long n, most = buffer_pages(cmd);
	unsigned long addr = cmd->addr;
	unsigned long left;
	int err = 0;
	void *buf;

	if (fault_in_readable(uptr, cmd->npages << PAGE_SHIFT))
		return -EFAULT;
	buf = alloc_buffer(most);
	if (!buf)
		return -ENOMEM;

	for (left = cmd->npages; left && !err; left -= n) {
		n = min(left, most);
		if (copy_from_user(buf, uptr, n << PAGE_SHIFT))
			err = -EFAULT;
		else
			err = dmirror_access(dm, cmd, addr, n, buf, true,
					     scratch);
		addr += n << PAGE_SHIFT;
		uptr += n << PAGE_SHIFT;
	}
	kvfree(buf);
	return err;
}

/* --- DMA ----------------------------------------------------------------- */

/*
 * The device is on no bus, so it has what there is without an IOMMU: an address
 * that leads to memory by arithmetic.
 */
static void dmirror_dma_copy(struct device *dev, dma_addr_t addr, void *buf)
{
	struct page *page = pfn_to_page(PHYS_PFN(dma_to_phys(dev, addr)));

	memcpy_from_page(buf, page, 0, PAGE_SIZE);
}

/* Reads what the words of @map have, and leaves nothing mapped. */
static int dmirror_dma_pages(struct dmirror *dm, struct hmm_dma_map *map,
			     unsigned long n, void *buf, u64 *pieces)
{
	struct device *dev = &dm->device->dev;
	unsigned long i;
	int err;

	lockdep_assert_held(&dm->lock);
	err = hmm_dma_map_range(dev, map, 0, n, NULL);
	if (err)
		return err;
	for (i = 0; i < n; i++, buf += PAGE_SIZE) {
		dma_addr_t addr = hmm_dma_map_pfn(dev, map, i, NULL);

		if (addr == DMA_MAPPING_ERROR) {
			err = -EIO;
			break;
		}
		dmirror_dma_copy(dev, addr, buf);
	}
	*pieces += hmm_dma_unmap_range(dev, map, 0, n);
	return err;
}

static int dmirror_dma_walk(struct dmirror *dm, struct hmm_dmirror_cmd *cmd,
			    struct hmm_dma_map *map, void *buf)
{
	unsigned long end = cmd->addr + (cmd->npages << PAGE_SHIFT);
	char __user *uptr = u64_to_user_ptr(cmd->ptr);
	struct hmm_range range = {
		.notifier = &dm->notifier,
		.hmm_pfns = map->pfn_list,
		.default_flags = HMM_PFN_REQ_FAULT,
	};
	unsigned long n;
	int err;

	for (range.start = cmd->addr; range.start < end; range.start = range.end) {
		n = min((end - range.start) >> PAGE_SHIFT, DMIRROR_BATCH);
		range.end = range.start + (n << PAGE_SHIFT);

		err = dmirror_ask_and_lock(dm, &range, false);
		if (err)
			return err;
		err = dmirror_dma_pages(dm, map, n, buf, &cmd->faults);
		mutex_unlock(&dm->lock);
		if (err)
			return err;

		if (copy_to_user(uptr, buf, n << PAGE_SHIFT))
			return -EFAULT;
		uptr += n << PAGE_SHIFT;
		cmd->cpages += n;
	}
	return 0;
}

static int dmirror_dma_read(struct dmirror *dm, struct hmm_dmirror_cmd *cmd,
			    struct dmirror_scratch *scratch)
{
	unsigned long n = min(cmd->npages, DMIRROR_BATCH);
	struct device *dev = &dm->device->dev;
	struct hmm_dma_map map;
	void *buf;
	int err;

	buf = alloc_buffer(n);
	if (!buf)
		return -ENOMEM;
	err = hmm_dma_map_alloc(dev, &map, n, PAGE_SIZE);
	if (!err)
		err = dmirror_dma_walk(dm, cmd, &map, buf);
	hmm_dma_map_free(dev, &map);
	kvfree(buf);
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

	ours = hmm_devmem_has_page(dm->device->devmem, page);
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
		.hmm_pfns = scratch->pfns,
		.dev_private_owner = dm->device->devmem,
	};
	unsigned long i, n;
	int err;

	for (range.start = cmd->addr; range.start < end; range.start = range.end) {
		n = min((end - range.start) >> PAGE_SHIFT, DMIRROR_BATCH);
		range.end = range.start + (n << PAGE_SHIFT);

		err = dmirror_ask_and_lock(dm, &range, false);
		if (err)
			return err;
		for (i = 0; i < n; i++)
			scratch->perm[i] = prot_of(dm, scratch->pfns[i]);
		mutex_unlock(&dm->lock);

		if (copy_to_user(uptr + cmd->cpages, scratch->perm, n))
			return -EFAULT;
		cmd->cpages += n;
	}
	return 0;
}

/* --- Migration ----------------------------------------------------------- */

/* Memory that is not mapped is bad input, as it always was to this ioctl. */
static int migrate_errno(int err)
{
	return err == -EFAULT ? -EINVAL : err;
}

static int dmirror_migrate_to_sys(struct dmirror *dm,
				  struct hmm_dmirror_cmd *cmd,
				  struct dmirror_scratch *scratch)
{
	struct hmm_devmem_result result = { };
	int err;

	err = hmm_devmem_migrate_to_ram(dm->device->devmem, dm->notifier.mm,
					cmd->addr,
					cmd->addr + (cmd->npages << PAGE_SHIFT),
					&result);
	cmd->cpages = result.moved;
	if (!err && result.no_memory)
		err = -ENOMEM;
	return migrate_errno(err);
}

static int dmirror_to_dev(struct dmirror *dm, struct hmm_dmirror_cmd *cmd,
			  struct dmirror_scratch *scratch,
			  int (*move)(struct hmm_devmem *devmem,
				      struct mm_struct *mm, unsigned long start,
				      unsigned long end,
				      struct hmm_devmem_result *result))
{
	unsigned long end = cmd->addr + (cmd->npages << PAGE_SHIFT);
	struct hmm_devmem_result result = { };
	int err;

	err = move(dm->device->devmem, dm->notifier.mm, cmd->addr, end, &result);
	if (err)
		return migrate_errno(err);
	/* What counts is what the device has now. */
	err = dmirror_map(dm, cmd->addr, end, 0, scratch);
	if (err)
		return err;
	return dmirror_copy_out(dm, cmd, false, scratch);
}

static int dmirror_migrate_to_dev(struct dmirror *dm,
				  struct hmm_dmirror_cmd *cmd,
				  struct dmirror_scratch *scratch)
{
	return dmirror_to_dev(dm, cmd, scratch, hmm_devmem_migrate_to_device);
}

static int dmirror_fault_to_dev(struct dmirror *dm,
				struct hmm_dmirror_cmd *cmd,
				struct dmirror_scratch *scratch)
{
	return dmirror_to_dev(dm, cmd, scratch, hmm_devmem_fault_to_device);
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
	struct dmirror_retry retry = retry_begin();
	int err;

	for (;;) {
		err = dmirror_try_exclusive(dm, addr);
		if (err != -EAGAIN && err != -EBUSY)
			return err;
		err = may_retry(&retry);
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

/*
 * @no_mm: the answer when the mirrored process is gone
 * @unlocked: faults as in struct dmirror_scratch
 * @writes: changes the memory of the process
 */
static const struct dmirror_op {
	int (*run)(struct dmirror *dm, struct hmm_dmirror_cmd *cmd,
		   struct dmirror_scratch *scratch);
	int no_mm;
	unsigned long out;	/* bytes per page, wanted after pages have moved */
	bool unlocked;
	bool writes;
} dmirror_ops[] = {
	[_IOC_NR(HMM_DMIRROR_READ)]		= { dmirror_read, -EFAULT },
	[_IOC_NR(HMM_DMIRROR_WRITE)]		= { dmirror_write, -EFAULT, .writes = true },
	[_IOC_NR(HMM_DMIRROR_MIGRATE_TO_DEV)]	= { dmirror_migrate_to_dev, -EINVAL, PAGE_SIZE },
	[_IOC_NR(HMM_DMIRROR_MIGRATE_TO_SYS)]	= { dmirror_migrate_to_sys, -EINVAL },
	[_IOC_NR(HMM_DMIRROR_SNAPSHOT)]		= { dmirror_snapshot, -EINVAL },
	[_IOC_NR(HMM_DMIRROR_EXCLUSIVE)]	= { dmirror_exclusive, -EINVAL, PAGE_SIZE },
	[_IOC_NR(HMM_DMIRROR_CHECK_EXCLUSIVE)]	= { dmirror_check_exclusive, -EINVAL },
	[_IOC_NR(HMM_DMIRROR_READ_UNLOCKED)]	= { dmirror_read, -EFAULT, 0, true },
	[_IOC_NR(HMM_DMIRROR_WRITE_UNLOCKED)]	= { dmirror_write, -EFAULT, 0, true, true },
	[_IOC_NR(HMM_DMIRROR_FAULT_TO_DEV)]	= { dmirror_fault_to_dev, -EINVAL, PAGE_SIZE },
	[_IOC_NR(HMM_DMIRROR_DMA_READ)]		= { dmirror_dma_read, -EFAULT },
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
	/* Safe: not by writing zeroes there, which may be memory that is to move. */
	if (fault_in_safe_writeable(u64_to_user_ptr(cmd->ptr),
				    cmd->npages * op->out))
		return -EFAULT;
	scratch = kvmalloc(sizeof(*scratch), GFP_KERNEL_ACCOUNT);
	if (!scratch)
		return -ENOMEM;

	scratch->unlocked = op->unlocked;
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

static unsigned long dmirror_evict_time(void)
{
	return msecs_to_jiffies(READ_ONCE(evict_ms));
}

static int dmirror_shrink(struct dmirror_device *device)
{
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	return hmm_devmem_shrink(device->devmem, dmirror_evict_time());
}

static int dmirror_set_flags(struct dmirror_device *device, __u64 flags)
{
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (flags & ~(HMM_DMIRROR_FLAG_FAIL_ALLOC | HMM_DMIRROR_FLAG_FAIL_COPY |
		      HMM_DMIRROR_FLAG_FAULT_AROUND))
		return -EINVAL;
	WRITE_ONCE(device->fail_large, flags & HMM_DMIRROR_FLAG_FAIL_ALLOC);
	WRITE_ONCE(device->fail_copy, flags & HMM_DMIRROR_FLAG_FAIL_COPY);
	return hmm_devmem_set_fault_around(device->devmem,
					   flags & HMM_DMIRROR_FLAG_FAULT_AROUND ?
					   HMM_DEVMEM_AROUND_MAX : 1);
}

/*
 * Who has the file may do to the memory of the process that opened it what the
 * file was opened for: the right to it was checked then, as for /proc/pid/mem. A
 * file is no right to the device, whose memory is that of other processes, too.
 */
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
		err = dmirror_shrink(dm->device);
	else if (command == HMM_DMIRROR_FLAGS)
		err = dmirror_set_flags(dm->device, cmd.npages);
	else if (nr >= ARRAY_SIZE(dmirror_ops) || !dmirror_ops[nr].run)
		err = -EINVAL;
	else if (dmirror_ops[nr].writes && !(file->f_mode & FMODE_WRITE))
		err = -EBADF;
	else
		err = dmirror_run(dm, &dmirror_ops[nr], &cmd);

	if (!err && copy_to_user(uarg, &cmd, sizeof(cmd)))
		err = -EFAULT;
	return err;
}

/*
 * Memory of a driver: pages that are nobody's, mapped and never migrated. They
 * are there at once, so there are not many of them.
 */
static int dmirror_mmap(struct file *file, struct vm_area_struct *vma)
{
	unsigned long addr;

	if (vma_pages(vma) > DMIRROR_BATCH)
		return -E2BIG;
	for (addr = vma->vm_start; addr < vma->vm_end; addr += PAGE_SIZE) {
		struct page *page;
		int err;

		if (fatal_signal_pending(current))
			return -EINTR;
		page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
		if (!page)
			return -ENOMEM;
		err = vm_insert_page(vma, addr, page);
		put_page(page);
		if (err)
			return err;
	}
	return 0;
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
	atomic_inc(&dm->device->nr_users);
	file->private_data = dm;
	return 0;
}

static int dmirror_release(struct inode *inode, struct file *file)
{
	struct dmirror *dm = file->private_data;
	struct dmirror_device *device = dm->device;
	struct hmm_devmem_result result = { };

	mmu_interval_notifier_remove(&dm->notifier);
	xa_destroy(&dm->pt);
	kfree(dm);

	/* The last user is gone: what is left in the memory goes home. */
	if (atomic_dec_and_test(&device->nr_users))
		hmm_devmem_evict(device->devmem, dmirror_evict_time(), &result);
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

static int counter_get(void *data, u64 *val)
{
	*val = atomic64_read(data);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(counter_fops, counter_get, NULL, "%llu\n");

static void device_add_debugfs(struct dmirror_device *device)
{
	struct dentry *dir;

	dir = debugfs_create_dir(dev_name(&device->dev), dmirror_debugfs);
	debugfs_create_file_unsafe("allocated", 0400, dir, &device->allocated,
				   &counter_fops);
	debugfs_create_file_unsafe("copies", 0400, dir, &device->copies,
				   &counter_fops);
	debugfs_create_file_unsafe("freed", 0400, dir, &device->freed,
				   &counter_fops);
	device->debugfs = dir;
}

static void device_free(struct device *dev)
{
	kfree(container_of(dev, struct dmirror_device, dev));
}

static struct dmirror_device *device_create_one(unsigned int id)
{
	struct dmirror_device *device = kzalloc(sizeof(*device), GFP_KERNEL);
	int err;

	if (!device)
		return ERR_PTR(-ENOMEM);
	cdev_init(&device->cdev, &dmirror_fops);
	device->cdev.owner = THIS_MODULE;
	device_initialize(&device->dev);
	device->dev.devt = MKDEV(MAJOR(dmirror_devt), id);
	device->dev.release = device_free;

	err = dev_set_name(&device->dev, "hmm_dmirror%u", id);
	if (!err)
		err = dma_coerce_mask_and_coherent(&device->dev,
						   DMA_BIT_MASK(64));
	if (err)
		goto err_put_device;
	/* A device whose memory cannot be had is better not there. */
	err = device_add_memory(device, id);
	if (err)
		goto err_put_device;

	device_add_debugfs(device);
	return device;

err_put_device:
	put_device(&device->dev);
	return ERR_PTR(err);
}

/* Nobody has it open, and the module is going, so that nobody will. */
static void device_destroy_one(struct dmirror_device *device)
{
	hmm_devmem_remove(device->devmem);
	if (device_is_registered(&device->dev))
		cdev_device_del(&device->cdev, &device->dev);
	debugfs_remove(device->debugfs);
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
