// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/hmm_bench: see hmm_bench.h and hmm_bench_uapi.h.
 */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "hmm_bench.h"

u64 bench_clock_ns;

static struct miscdevice bench_misc;

static void measure_clock(void)
{
	u64 from, least = U64_MAX;
	int i;

	bench_clock_ns = 0;
	for (i = 0; i < 100; i++) {
		from = ktime_get_ns();
		least = min(least, bench_since(from));
	}
	bench_clock_ns = least;
}

static int device(struct hmm_bench_cmd *cmd)
{
	bench_device_del();
	return cmd->npages ? bench_device_add(cmd->npages) : 0;
}

static bool cmd_is_sane(const struct hmm_bench_cmd *cmd)
{
	return PAGE_ALIGNED(cmd->addr) && cmd->npages <= TASK_SIZE >> PAGE_SHIFT &&
	       cmd->addr <= TASK_SIZE - (cmd->npages << PAGE_SHIFT) &&
	       cmd->batch <= BENCH_BATCH_MAX;
}

static int dma(struct hmm_bench_cmd *cmd)
{
	return bench_dma(cmd, bench_misc.this_device);
}

static long bench_ioctl(struct file *file, unsigned int nr, unsigned long arg)
{
	static int (* const calls[])(struct hmm_bench_cmd *cmd) = {
		[_IOC_NR(HMM_BENCH_MIRROR)]	= bench_mirror,
		[_IOC_NR(HMM_BENCH_MIGRATE)]	= bench_migrate,
		[_IOC_NR(HMM_BENCH_DEVICE)]	= device,
		[_IOC_NR(HMM_BENCH_EVICT)]	= bench_evict,
		[_IOC_NR(HMM_BENCH_FAULTS)]	= bench_faults,
		[_IOC_NR(HMM_BENCH_PGMAP)]	= bench_pgmap,
		[_IOC_NR(HMM_BENCH_DMA)]	= dma,
	};
	struct hmm_bench_cmd cmd;
	int err;

	if (_IOC_NR(nr) >= ARRAY_SIZE(calls) || nr != HMM_BENCH_IOC(_IOC_NR(nr)))
		return -ENOTTY;
	if (copy_from_user(&cmd, (void __user *)arg, sizeof(cmd)))
		return -EFAULT;
	if (!cmd_is_sane(&cmd))
		return -EINVAL;
	cmd.ns = 0;
	cmd.moved = 0;
	memset(cmd.part_ns, 0, sizeof(cmd.part_ns));
	err = calls[_IOC_NR(nr)](&cmd);
	if (err)
		return err;
	return copy_to_user((void __user *)arg, &cmd, sizeof(cmd)) ? -EFAULT : 0;
}

static const struct file_operations bench_fops = {
	.owner		= THIS_MODULE,
	.unlocked_ioctl	= bench_ioctl,
};

static struct miscdevice bench_misc = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "hmm_bench",
	.fops	= &bench_fops,
};

static int __init bench_init(void)
{
	measure_clock();
	return misc_register(&bench_misc);
}

static void __exit bench_exit(void)
{
	misc_deregister(&bench_misc);
	bench_device_del();
}

module_init(bench_init);
module_exit(bench_exit);
MODULE_DESCRIPTION("Cost of the device memory core");
MODULE_LICENSE("GPL");
