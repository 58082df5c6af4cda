/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A driver without a device, that copies nothing: what remains is the core.
 *
 * It uses the interfaces of Linux 6.12, so that the same source builds against
 * the base, against ours, and against any other 6.12. What only ours has is
 * behind MIGRATE_PFN_COMPOUND and BY_RANGE.
 *
 * Pages come back with whatever was in them: for test machines only.
 */
#ifndef _HMM_BENCH_H
#define _HMM_BENCH_H

#include <linux/memremap.h>
#include <linux/timekeeping.h>
#include <linux/types.h>

#include "hmm_bench_uapi.h"

#ifdef MIGRATE_PFN_COMPOUND
#define BENCH_COMPOUND	MIGRATE_VMA_SELECT_COMPOUND
#else
#define BENCH_COMPOUND	0
#endif

/* Pages for one call into the core, at most */
#define BENCH_BATCH_MAX	262144UL

/* What reading the clock twice costs, which is in every difference */
extern u64 bench_clock_ns;

/* Time since @from, without that of the clock. */
static inline u64 bench_since(u64 from)
{
	u64 ns = ktime_get_ns() - from;

	return ns > bench_clock_ns ? ns - bench_clock_ns : 0;
}

int bench_mirror(struct hmm_bench_cmd *cmd);
int bench_migrate(struct hmm_bench_cmd *cmd);
int bench_evict(struct hmm_bench_cmd *cmd);
int bench_faults(struct hmm_bench_cmd *cmd);
int bench_pgmap(struct hmm_bench_cmd *cmd);
/* @plain: device that is behind no IOMMU, if no other one is found */
int bench_dma(struct hmm_bench_cmd *cmd, struct device *plain);

struct mmu_interval_notifier;
struct hmm_range;

/* For the memory of @cmd; and what is there now, with the core's time added to @ns. */
int bench_notifier_insert(struct mmu_interval_notifier *notifier,
			  const struct hmm_bench_cmd *cmd);
int bench_fault_range(struct hmm_range *range, u64 *ns);

int bench_device_add(unsigned long npages);
void bench_device_del(void);

/* A page map of @npages somewhere, not yet in use. */
int bench_pgmap_prepare(struct dev_pagemap *pgmap, unsigned long npages);
void bench_pgmap_release(struct dev_pagemap *pgmap);

#endif /* _HMM_BENCH_H */
