// SPDX-License-Identifier: GPL-2.0
/*
 * A small driver that uses all of HMM: the example of Documentation/mm/hmm.rst.
 *
 * Its device shares the address space of a process, and has private memory that
 * pages of the process can move to. There is no hardware: the memory on the
 * board is the kernel's, and the device's accesses are functions. Where a driver
 * has to do something to its hardware, a comment says so.
 */
#include <linux/highmem.h>
#include <linux/hmm.h>
#include <linux/hmm_devmem.h>
#include <linux/jiffies.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/platform_device.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "hmm_example.h"

/* --- Memory on the board -------------------------------------------------- */

static int example_chunk_add(struct hmm_devmem_chunk *chunk)
{
	/* Hardware: find room for it behind the device's BAR. */
	chunk->data = vmalloc(range_len(&chunk->pgmap.range));
	return chunk->data ? 0 : -ENOMEM;
}

static void example_chunk_remove(struct hmm_devmem_chunk *chunk)
{
	vfree(chunk->data);
}

/* Where the content of a page is. Private memory: not where its pfn says. */
static void *example_get_content(struct page *page)
{
	if (is_device_private_page(page))
		return hmm_devmem_page_chunk(page)->data +
		       hmm_devmem_page_offset(page);
	return kmap_local_page(page);
}

static void example_put_content(struct page *page, void *content)
{
	if (!is_device_private_page(page))
		kunmap_local(content);
}

static void example_copy_page(struct page *dst, struct page *src)
{
	void *to = example_get_content(dst);
	void *from;

	if (src) {
		from = example_get_content(src);
		copy_page(to, from);
		example_put_content(src, from);
	} else {
		/* A hole. What was in the page before is another process's. */
		clear_page(to);
	}
	example_put_content(dst, to);
}

static int example_copy(struct hmm_devmem_batch *batch)
{
	unsigned long i;

	/* Hardware: begin DMA here, and wait for it in hmm_devmem_ops.wait. */
	for (i = 0; i < batch->nr; i++)
		example_copy_page(batch->copies[i].dst, batch->copies[i].src);
	return 0;
}

static const struct hmm_devmem_ops example_devmem_ops = {
	.copy		= example_copy,
	.chunk_add	= example_chunk_add,
	.chunk_remove	= example_chunk_remove,
};

/* --- The mirror ----------------------------------------------------------- */

static unsigned long example_end(const struct example_mirror *mirror)
{
	return mirror->start + EXAMPLE_NR_PTES * PAGE_SIZE;
}

static unsigned long *example_pte(struct example_mirror *mirror,
				  unsigned long addr)
{
	return &mirror->ptes[(addr - mirror->start) >> PAGE_SHIFT];
}

/* The CPU's page table is about to change: the device must let go first. */
static bool example_invalidate(struct mmu_interval_notifier *notifier,
			       const struct mmu_notifier_range *range,
			       unsigned long seq)
{
	struct example_mirror *mirror =
		container_of(notifier, struct example_mirror, notifier);
	unsigned long addr = max(range->start, mirror->start);
	unsigned long end = min(range->end, example_end(mirror));

	if (mmu_notifier_range_blockable(range))
		mutex_lock(&mirror->lock);
	else if (!mutex_trylock(&mirror->lock))
		return false;

	mmu_interval_set_seq(notifier, seq);
	for (addr = PAGE_ALIGN_DOWN(addr); addr < end; addr += PAGE_SIZE)
		*example_pte(mirror, addr) = 0;
	/* Hardware: flush the device's TLB, and wait until it has done so. */
	mutex_unlock(&mirror->lock);
	return true;
}

static const struct mmu_interval_notifier_ops example_notifier_ops = {
	.invalidate = example_invalidate,
};

/* One attempt to map a page; -EBUSY if the CPU's page table has changed. */
static int example_try_map(struct example_mirror *mirror, unsigned long addr,
			   bool write)
{
	struct mm_struct *mm = mirror->notifier.mm;
	unsigned long pfn;
	struct hmm_range range = {
		.notifier = &mirror->notifier,
		.start = addr,
		.end = addr + PAGE_SIZE,
		.hmm_pfns = &pfn,
		.default_flags = HMM_PFN_REQ_FAULT |
				 (write ? HMM_PFN_REQ_WRITE : 0),
		.dev_private_owner = mirror->ex->devmem,
	};
	int err;

	range.notifier_seq = mmu_interval_read_begin(range.notifier);
	mmap_read_lock(mm);
	err = hmm_range_fault(&range);
	mmap_read_unlock(mm);
	if (err)
		return err;

	/* Here pfn may be stale already. Behind the check it is not. */
	guard(mutex)(&mirror->lock);
	if (mmu_interval_read_retry(range.notifier, range.notifier_seq))
		return -EBUSY;
	*example_pte(mirror, addr) = pfn;
	return 0;
}

/* The device found no page, or may not write to it. */
static int example_fault(struct example_mirror *mirror, unsigned long addr,
			 bool write)
{
	unsigned long deadline =
		jiffies + msecs_to_jiffies(HMM_RANGE_DEFAULT_TIMEOUT);
	struct mm_struct *mm = mirror->notifier.mm;
	int err;

	/* The notifier keeps the mm, but not what is in it. */
	if (!mmget_not_zero(mm))
		return -EFAULT;
	do {
		err = example_try_map(mirror, addr, write);
	} while (err == -EBUSY && time_before(jiffies, deadline));
	mmput(mm);
	return err;
}

/* --- What the device does ------------------------------------------------- */

/* Access by the device's page table alone; false if that has no page for it. */
static bool example_try_access(struct example_mirror *mirror,
			       unsigned long addr, u64 *word, bool write)
{
	unsigned long wanted = HMM_PFN_VALID | (write ? HMM_PFN_WRITE : 0);
	unsigned long pte;
	struct page *page;
	void *content;

	guard(mutex)(&mirror->lock);
	pte = *example_pte(mirror, addr);
	if ((pte & wanted) != wanted)
		return false;

	page = hmm_pfn_to_page(pte);
	content = example_get_content(page);
	if (write) {
		*(u64 *)(content + offset_in_page(addr)) = *word;
		/* The CPU's dirty bit knows of no write by the device. */
		if (!is_device_private_page(page))
			set_page_dirty(page);
	} else {
		*word = *(u64 *)(content + offset_in_page(addr));
	}
	example_put_content(page, content);
	return true;
}

static int example_access(struct example_mirror *mirror, unsigned long addr,
			  u64 *word, bool write)
{
	int err;

	if (addr < mirror->start || addr >= example_end(mirror) ||
	    !IS_ALIGNED(addr, sizeof(*word)))
		return -EINVAL;

	while (!example_try_access(mirror, addr, word, write)) {
		/* CPUs may take the page away before the device gets to it. */
		if (fatal_signal_pending(current))
			return -EINTR;
		err = example_fault(mirror, PAGE_ALIGN_DOWN(addr), write);
		if (err)
			return err;
	}
	return 0;
}

/**
 * example_read() - have the device read a word
 * @mirror: the process
 * @addr: where, in its address space
 * @word: where to put it
 *
 * Context: Process context. Takes mmap_lock. Sleeps.
 *
 * Return: 0; -EINVAL outside of the mirror, or not aligned; else as
 * hmm_range_fault().
 */
int example_read(struct example_mirror *mirror, unsigned long addr, u64 *word)
{
	return example_access(mirror, addr, word, false);
}

/**
 * example_write() - have the device write a word
 * @mirror: the process
 * @addr: where, in its address space
 * @word: what
 *
 * Context: Process context. Takes mmap_lock. Sleeps.
 *
 * Return: As example_read().
 */
int example_write(struct example_mirror *mirror, unsigned long addr, u64 word)
{
	return example_access(mirror, addr, &word, true);
}

/**
 * example_migrate() - move pages of the process to the device, or back
 * @mirror: the process
 * @start: address of the first page
 * @end: address behind the last page
 * @to_device: or back
 * @result: what became of them; begins with zeroes
 *
 * An ioctl of a real driver ends up here. The device's page table loses the
 * pages by way of example_invalidate(), and gets them again when the device
 * touches them.
 *
 * Context: Process context. Takes mmap_lock. Sleeps.
 *
 * Return: 0; -EFAULT if the process is gone; else as
 * hmm_devmem_migrate_to_device().
 */
int example_migrate(struct example_mirror *mirror, unsigned long start,
		    unsigned long end, bool to_device,
		    struct hmm_devmem_result *result)
{
	struct hmm_devmem *devmem = mirror->ex->devmem;
	struct mm_struct *mm = mirror->notifier.mm;
	int err;

	if (!mmget_not_zero(mm))
		return -EFAULT;
	if (to_device)
		err = hmm_devmem_migrate_to_device(devmem, mm, start, end,
						   result);
	else
		err = hmm_devmem_migrate_to_ram(devmem, mm, start, end, result);
	mmput(mm);
	return err;
}

/* --- Coming and going ----------------------------------------------------- */

/**
 * example_open() - let the device share the address space of this process
 * @ex: the device
 * @start: page-aligned address of what it can map, EXAMPLE_NR_PTES pages
 *
 * Context: Process context, of a task that has an mm. Sleeps.
 *
 * Return: The mirror, or an ERR_PTR(): -EINVAL, not aligned; -EOVERFLOW, beyond
 * all addresses; -ENOMEM.
 */
struct example_mirror *example_open(struct example *ex, unsigned long start)
{
	struct example_mirror *mirror;
	int err;

	if (!PAGE_ALIGNED(start))
		return ERR_PTR(-EINVAL);
	mirror = kzalloc(sizeof(*mirror), GFP_KERNEL);
	if (!mirror)
		return ERR_PTR(-ENOMEM);
	mirror->ex = ex;
	mirror->start = start;
	mutex_init(&mirror->lock);

	/* From here on example_invalidate() is called. */
	err = mmu_interval_notifier_insert(&mirror->notifier, current->mm, start,
					   EXAMPLE_NR_PTES * PAGE_SIZE,
					   &example_notifier_ops);
	if (err) {
		kfree(mirror);
		return ERR_PTR(err);
	}
	return mirror;
}

/**
 * example_close() - take the device off the process again
 * @mirror: the process; nobody uses it any more
 *
 * Pages on the device stay there: they are the process's, and a CPU that
 * touches one gets it back.
 *
 * Context: Process context. Sleeps.
 */
void example_close(struct example_mirror *mirror)
{
	/* Hardware: stop the device before its page table goes. */
	mmu_interval_notifier_remove(&mirror->notifier);
	kfree(mirror);
}

/**
 * example_add() - make a device, with memory
 *
 * Context: Process context. Sleeps.
 *
 * Return: The device, or an ERR_PTR().
 */
struct example *example_add(void)
{
	struct example *ex __free(kfree) = kzalloc(sizeof(*ex), GFP_KERNEL);

	if (!ex)
		return ERR_PTR(-ENOMEM);

	/* Hardware: there is a device, and this is its driver's probe(). */
	ex->pdev = platform_device_register_simple("hmm_example",
						   PLATFORM_DEVID_AUTO, NULL, 0);
	if (IS_ERR(ex->pdev))
		return ERR_CAST(ex->pdev);
	ex->devmem = hmm_devmem_add(&example_devmem_ops, &ex->pdev->dev, SZ_2M);
	if (IS_ERR(ex->devmem)) {
		platform_device_unregister(ex->pdev);
		return ERR_CAST(ex->devmem);
	}
	return no_free_ptr(ex);
}

/**
 * example_del() - take the device away
 * @ex: the device; all mirrors are closed
 *
 * What processes have on it is moved to RAM first.
 *
 * Context: Process context. Sleeps.
 */
void example_del(struct example *ex)
{
	/* Would go by itself when a driver is unbound from a device. */
	hmm_devmem_remove(ex->devmem);
	platform_device_unregister(ex->pdev);
	kfree(ex);
}
