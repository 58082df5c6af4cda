// SPDX-License-Identifier: GPL-2.0
/*
 * The cost of migration. The time of finding destinations is the driver's, and
 * is not counted.
 */
#include <linux/atomic.h>
#include <linux/migrate.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>

#include "hmm_bench.h"

/* Each page is given out once; HMM_BENCH_DEVICE makes new ones. */
static struct {
	struct dev_pagemap	pgmap;
	unsigned long		npages;		/* 0: no device */
	atomic_long_t		next;
	atomic64_t		driver_ns;	/* in migrate_to_ram() */
	atomic64_t		faulted;	/* pages */
} dev;

/*
 * How to give out a large folio. Ours has a function for it, which is not
 * exported as no driver in the tree is without the pool of mm/hmm_devmem.c.
 */
static unsigned long folio_init;
module_param(folio_init, ulong, 0444);
MODULE_PARM_DESC(folio_init, "address of zone_device_folio_init(), or 0");

/* --- The driver's half ---------------------------------------------------- */

static bool takes_large(void)
{
	return BENCH_COMPOUND && folio_init;
}

static unsigned long select_compound(void)
{
	return takes_large() ? BENCH_COMPOUND : 0;
}

/* Pages that a src entry stands for */
static unsigned long entry_nr(unsigned long entry)
{
#ifdef MIGRATE_PFN_COMPOUND
	struct page *page = migrate_pfn_to_page(entry);

	if (entry & MIGRATE_PFN_COMPOUND)
		return page ? folio_nr_pages(page_folio(page)) : HPAGE_PMD_NR;
#endif
	return 1;
}

static unsigned long large_entry(struct page *page)
{
#ifdef MIGRATE_PFN_COMPOUND
	return migrate_pfn(page_to_pfn(page)) | MIGRATE_PFN_COMPOUND;
#else
	return 0;
#endif
}

static struct page *take_pages(unsigned long nr)
{
	long at, was = atomic_long_read(&dev.next);

	do {
		at = ALIGN(was, nr);
		if (at + nr > dev.npages)
			return NULL;
	} while (!atomic_long_try_cmpxchg(&dev.next, &was, at + nr));
	return pfn_to_page(PHYS_PFN(dev.pgmap.range.start) + at);
}

static void large_init(struct page *page, unsigned long nr)
{
	void (*init)(struct folio *folio, struct dev_pagemap *pgmap,
		     unsigned int order) = (void *)folio_init;

	init((struct folio *)page, &dev.pgmap, ilog2(nr));
}

static unsigned long device_destination(unsigned long nr)
{
	struct page *page = take_pages(nr);

	if (!page)
		return 0;
	if (nr > 1) {
		large_init(page, nr);
		return large_entry(page);
	}
	zone_device_page_init(page);
	return migrate_pfn(page_to_pfn(page));
}

static unsigned long ram_destination(unsigned long nr)
{
	struct folio *folio = folio_alloc(GFP_HIGHUSER_MOVABLE, ilog2(nr));

	if (!folio)
		return 0;
	folio_lock(folio);
	return nr > 1 ? large_entry(&folio->page) : migrate_pfn(folio_pfn(folio));
}

static void find_destinations(const unsigned long *src, unsigned long *dst,
			      unsigned long npages, bool to_ram)
{
	unsigned long i, nr;

	for (i = 0; i < npages; i += nr) {
		nr = 1;
		dst[i] = 0;
		if (!(src[i] & MIGRATE_PFN_MIGRATE))
			continue;
		nr = entry_nr(src[i]);
		dst[i] = to_ram ? ram_destination(nr) : device_destination(nr);
		if (nr > 1)
			memset(&dst[i + 1], 0, (nr - 1) * sizeof(*dst));
	}
}

static unsigned long count_moved(const unsigned long *src, unsigned long npages)
{
	unsigned long i, nr, moved = 0;

	for (i = 0; i < npages; i += nr) {
		nr = 1;
		if (!(src[i] & MIGRATE_PFN_MIGRATE))
			continue;
		nr = entry_nr(src[i]);
		moved += nr;
	}
	return moved;
}

#ifdef MIGRATE_PFN_COMPOUND
static void device_folio_free(struct folio *folio)
{
}
#else
static void device_page_free(struct page *page)
{
}
#endif

/* What a fault brings back: the page, or the folio around it. */
static void fault_extent(const struct vm_fault *vmf, unsigned long *start,
			 unsigned long *end)
{
	struct folio *folio = page_folio(vmf->page);
	unsigned long addr = vmf->address & PAGE_MASK;
	unsigned long before = (vmf->page - &folio->page) << PAGE_SHIFT;
	unsigned long behind = folio_size(folio) - before;

	*start = addr - min(before, addr - vmf->vma->vm_start);
	*end = addr + min(behind, vmf->vma->vm_end - addr);
}

static vm_fault_t fault_migrate(struct migrate_vma *args, u64 *from)
{
	unsigned long npages = (args->end - args->start) >> PAGE_SHIFT;
	unsigned long moved;
	u64 alloc;

	atomic64_add(bench_since(*from), &dev.driver_ns);
	if (migrate_vma_setup(args))
		return VM_FAULT_SIGBUS;
	alloc = ktime_get_ns();
	find_destinations(args->src, args->dst, npages, true);
	atomic64_add(bench_since(alloc), &dev.driver_ns);
	migrate_vma_pages(args);
	*from = ktime_get_ns();
	moved = count_moved(args->src, npages);
	atomic64_add(moved, &dev.faulted);
	atomic64_add(bench_since(*from), &dev.driver_ns);
	migrate_vma_finalize(args);
	*from = ktime_get_ns();
	return 0;
}

static vm_fault_t device_migrate_to_ram(struct vm_fault *vmf)
{
	u64 from = ktime_get_ns();
	unsigned long one[2];
	struct migrate_vma args = {
		.vma = vmf->vma,
		.src = &one[0],
		.dst = &one[1],
		.pgmap_owner = dev.pgmap.owner,
		.flags = MIGRATE_VMA_SELECT_DEVICE_PRIVATE | select_compound(),
		.fault_page = vmf->page,
	};
	unsigned long npages;
	vm_fault_t ret;

	fault_extent(vmf, &args.start, &args.end);
	npages = (args.end - args.start) >> PAGE_SHIFT;
	if (npages > 1) {
		args.src = kvcalloc(2 * npages, sizeof(*args.src), GFP_KERNEL);
		if (!args.src)
			return VM_FAULT_OOM;
		args.dst = args.src + npages;
	}
	ret = fault_migrate(&args, &from);
	if (npages > 1)
		kvfree(args.src);
	atomic64_add(bench_since(from), &dev.driver_ns);
	return ret;
}

static const struct dev_pagemap_ops device_ops = {
#ifdef MIGRATE_PFN_COMPOUND
	.folio_free	= device_folio_free,
#else
	.page_free	= device_page_free,
#endif
	.migrate_to_ram	= device_migrate_to_ram,
};

/* --- The device ----------------------------------------------------------- */

int bench_device_add(unsigned long npages)
{
	int err;

	err = bench_pgmap_prepare(&dev.pgmap, npages);
	if (err)
		return err;
	dev.pgmap.ops = &device_ops;
	err = PTR_ERR_OR_ZERO(memremap_pages(&dev.pgmap, NUMA_NO_NODE));
	if (err) {
		bench_pgmap_release(&dev.pgmap);
		return err;
	}
	atomic_long_set(&dev.next, 0);
	dev.npages = npages;
	return 0;
}

void bench_device_del(void)
{
	if (!dev.npages)
		return;
	dev.npages = 0;
	memunmap_pages(&dev.pgmap);
	bench_pgmap_release(&dev.pgmap);
}

/* --- The measured half ---------------------------------------------------- */

static int migrate_batch(struct migrate_vma *args, struct hmm_bench_cmd *cmd)
{
	unsigned long npages = (args->end - args->start) >> PAGE_SHIFT;
	u64 from;

	from = ktime_get_ns();
	if (migrate_vma_setup(args))
		return -EINVAL;
	cmd->part_ns[0] += bench_since(from);

	find_destinations(args->src, args->dst, npages,
			  cmd->flags & HMM_BENCH_TO_RAM);

	from = ktime_get_ns();
	migrate_vma_pages(args);
	cmd->part_ns[1] += bench_since(from);

	cmd->moved += count_moved(args->src, npages);

	from = ktime_get_ns();
	migrate_vma_finalize(args);
	cmd->part_ns[2] += bench_since(from);
	return 0;
}

static int migrate_batches(struct hmm_bench_cmd *cmd, unsigned long *src,
			   unsigned long *dst)
{
	unsigned long end = cmd->addr + (cmd->npages << PAGE_SHIFT);
	unsigned long addr, next;
	int err = 0;

	for (addr = cmd->addr; !err && addr < end; addr = next) {
		struct migrate_vma args = {
			.src = src,
			.dst = dst,
			.start = addr,
			.pgmap_owner = dev.pgmap.owner,
			.flags = select_compound(),
		};

		args.flags |= cmd->flags & HMM_BENCH_TO_RAM ?
			      MIGRATE_VMA_SELECT_DEVICE_PRIVATE :
			      MIGRATE_VMA_SELECT_SYSTEM;
		next = min(addr + (cmd->batch << PAGE_SHIFT), end);
		mmap_read_lock(current->mm);
		args.vma = vma_lookup(current->mm, addr);
		if (args.vma)
			next = min(next, args.vma->vm_end);
		args.end = next;
		err = args.vma ? migrate_batch(&args, cmd) : -EFAULT;
		mmap_read_unlock(current->mm);
	}
	return err;
}

static void add_up(struct hmm_bench_cmd *cmd)
{
	cmd->ns = cmd->part_ns[0] + cmd->part_ns[1] + cmd->part_ns[2];
}

/* Two arrays of @n entries behind one another */
static unsigned long *alloc_entries(unsigned long n)
{
	return kvcalloc(2 * n, sizeof(unsigned long), GFP_KERNEL);
}

int bench_migrate(struct hmm_bench_cmd *cmd)
{
	unsigned long *src;
	int err;

	if (!dev.npages || !cmd->npages || !cmd->batch)
		return -EINVAL;
	src = alloc_entries(cmd->batch);
	if (!src)
		return -ENOMEM;
	err = migrate_batches(cmd, src, src + cmd->batch);
	kvfree(src);
	add_up(cmd);
	return err;
}

static int evict_batch(unsigned long *src, unsigned long *dst, unsigned long pfn,
		       unsigned long npages, struct hmm_bench_cmd *cmd)
{
	u64 from;
	int err;

	from = ktime_get_ns();
	err = migrate_device_range(src, pfn, npages);
	if (err)
		return err;
	cmd->part_ns[0] += bench_since(from);

	find_destinations(src, dst, npages, true);

	from = ktime_get_ns();
	migrate_device_pages(src, dst, npages);
	cmd->part_ns[1] += bench_since(from);

	cmd->moved += count_moved(src, npages);

	from = ktime_get_ns();
	migrate_device_finalize(src, dst, npages);
	cmd->part_ns[2] += bench_since(from);
	return 0;
}

int bench_evict(struct hmm_bench_cmd *cmd)
{
	unsigned long given = atomic_long_read(&dev.next);
	unsigned long *src, pfn, done, nr;
	int err = 0;

	if (!dev.npages || !cmd->npages || cmd->npages > given || !cmd->batch)
		return -EINVAL;
	pfn = PHYS_PFN(dev.pgmap.range.start) + given - cmd->npages;
	src = alloc_entries(cmd->batch);
	if (!src)
		return -ENOMEM;
	for (done = 0; !err && done < cmd->npages; done += nr) {
		nr = min_t(unsigned long, cmd->batch, cmd->npages - done);
		err = evict_batch(src, src + cmd->batch, pfn + done, nr, cmd);
	}
	kvfree(src);
	add_up(cmd);
	return err;
}

int bench_faults(struct hmm_bench_cmd *cmd)
{
	cmd->ns = atomic64_xchg(&dev.driver_ns, 0);
	cmd->moved = atomic64_xchg(&dev.faulted, 0);
	return 0;
}
