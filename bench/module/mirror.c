// SPDX-License-Identifier: GPL-2.0
/*
 * The cost of the mirror.
 */
#include <linux/hmm.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/sched/mm.h>

#include "hmm_bench.h"

static bool invalidate(struct mmu_interval_notifier *notifier,
		       const struct mmu_notifier_range *range, unsigned long seq)
{
	mmu_interval_set_seq(notifier, seq);
	return true;
}

static const struct mmu_interval_notifier_ops notifier_ops = {
	.invalidate = invalidate,
};

int bench_fault_range(struct hmm_range *range, u64 *ns)
{
	struct mm_struct *mm = range->notifier->mm;
	u64 from;
	int err;

	do {
		range->notifier_seq = mmu_interval_read_begin(range->notifier);
		mmap_read_lock(mm);
		from = ktime_get_ns();
		err = hmm_range_fault(range);
		*ns += bench_since(from);
		mmap_read_unlock(mm);
	} while (err == -EBUSY);
	return err;
}

static unsigned long request(u64 flags)
{
	if (!(flags & HMM_BENCH_FAULT))
		return 0;
	return HMM_PFN_REQ_FAULT | (flags & HMM_BENCH_READ ? 0 : HMM_PFN_REQ_WRITE);
}

/* Batch by batch, as a device with a table of that size would. */
static int mirror_batches(struct mmu_interval_notifier *notifier,
			  unsigned long *pfns, struct hmm_bench_cmd *cmd)
{
	unsigned long done, i, nr;
	int err;

	for (done = 0; done < cmd->npages; done += nr) {
		struct hmm_range range = {
			.notifier = notifier,
			.start = cmd->addr + (done << PAGE_SHIFT),
			.hmm_pfns = pfns,
			/* Everybody's page of device memory is ours. */
			.dev_private_owner = &bench_clock_ns,
			.default_flags = request(cmd->flags),
		};

		nr = min_t(unsigned long, cmd->batch, cmd->npages - done);
		range.end = range.start + (nr << PAGE_SHIFT);
		memset(pfns, 0, nr * sizeof(*pfns));
		err = bench_fault_range(&range, &cmd->ns);
		if (err)
			return err;
		for (i = 0; i < nr; i++)
			cmd->moved += !!(pfns[i] & HMM_PFN_VALID);
	}
	return 0;
}

int bench_notifier_insert(struct mmu_interval_notifier *notifier,
			  const struct hmm_bench_cmd *cmd)
{
	return mmu_interval_notifier_insert(notifier, current->mm, cmd->addr,
					    cmd->npages << PAGE_SHIFT, &notifier_ops);
}

int bench_mirror(struct hmm_bench_cmd *cmd)
{
	struct mmu_interval_notifier notifier = { };
	unsigned long *pfns;
	int err;

	if (!cmd->npages || !cmd->batch)
		return -EINVAL;
	pfns = kvcalloc(cmd->batch, sizeof(*pfns), GFP_KERNEL);
	if (!pfns)
		return -ENOMEM;
	err = bench_notifier_insert(&notifier, cmd);
	if (!err) {
		err = mirror_batches(&notifier, pfns, cmd);
		mmu_interval_notifier_remove(&notifier);
	}
	kvfree(pfns);
	return err;
}
