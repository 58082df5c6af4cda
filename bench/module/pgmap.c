// SPDX-License-Identifier: GPL-2.0
/*
 * The cost of a page map.
 */
#include <linux/delay.h>
#include <linux/ioport.h>
#include <linux/mm.h>
#include <linux/smp.h>
#include <linux/tick.h>

#if __has_include(<linux/migrate_device.h>)
#include <linux/migrate_device.h>
#endif

#include "hmm_bench.h"

static void page_free(struct page *page)
{
}

static vm_fault_t migrate_to_ram(struct vm_fault *vmf)
{
	return VM_FAULT_SIGBUS;
}

static const struct dev_pagemap_ops pgmap_ops = {
	.page_free	= page_free,
	.migrate_to_ram	= migrate_to_ram,
};

int bench_pgmap_prepare(struct dev_pagemap *pgmap, unsigned long npages)
{
	struct resource *res;

	res = request_free_mem_region(&iomem_resource, npages << PAGE_SHIFT,
				      "hmm_bench");
	if (IS_ERR(res))
		return PTR_ERR(res);
	memset(pgmap, 0, sizeof(*pgmap));
	pgmap->type = MEMORY_DEVICE_PRIVATE;
	pgmap->range.start = res->start;
	pgmap->range.end = res->end;
	pgmap->nr_range = 1;
	pgmap->owner = &bench_clock_ns;
#ifdef PGMAP_FAULT_VMA_LOCK
	pgmap->flags = PGMAP_FAULT_VMA_LOCK;
#endif
	return 0;
}

void bench_pgmap_release(struct dev_pagemap *pgmap)
{
	release_mem_region(pgmap->range.start, range_len(&pgmap->range));
}

/*
 * Both wait for others, and the machine that counts instructions counts a
 * nanosecond of waiting as one, too: time in which no CPU does anything is not
 * a cost.
 */
static u64 idle_ns(void)
{
	u64 us = get_cpu_idle_time_us(smp_processor_id(), NULL);

	return us == -1ULL ? 0 : us * NSEC_PER_USEC;
}

static u64 busy_since(u64 from, u64 idle)
{
	u64 ns = bench_since(from);

	if (num_online_cpus() > 1)
		return ns;
	idle = idle_ns() - idle;
	return ns > idle ? ns - idle : 0;
}

int bench_pgmap(struct hmm_bench_cmd *cmd)
{
	struct dev_pagemap pgmap;
	u64 from, idle;
	int err;

	if (!cmd->npages)
		return -EINVAL;
	err = bench_pgmap_prepare(&pgmap, cmd->npages);
	if (err)
		return err;
	pgmap.ops = &pgmap_ops;

	idle = num_online_cpus() > 1 ? 0 : idle_ns();
	from = ktime_get_ns();
	err = PTR_ERR_OR_ZERO(memremap_pages(&pgmap, NUMA_NO_NODE));
	cmd->part_ns[0] = busy_since(from, idle);
	if (!err) {
		/* Not with the grace periods that a quick map has left behind. */
		msleep(100);
		idle = num_online_cpus() > 1 ? 0 : idle_ns();
		from = ktime_get_ns();
		memunmap_pages(&pgmap);
		cmd->part_ns[1] = busy_since(from, idle);
		cmd->ns = cmd->part_ns[0] + cmd->part_ns[1];
		cmd->moved = cmd->npages;
	}
	bench_pgmap_release(&pgmap);
	return err;
}
