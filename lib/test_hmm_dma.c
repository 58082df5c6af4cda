// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/hmm_edu: real DMA to mirrored memory, by a device that QEMU has.
 *
 * The device "edu" copies memory to a buffer of its own, and back. Its addresses
 * have 28 bits: most memory of a machine it reaches through an IOMMU only, so that
 * what arrives has passed an address that was made for it. QEMU can give it more
 * (addr_bits): then it reaches the memory of its neighbours on the bus.
 *
 * An open file mirrors one range of one process. HMM_EDU_MAP faults pages in and
 * maps them for DMA; whatever happens to them in the process unmaps them.
 *
 * Locks
 *
 *	edu_file->setup		one ioctl at a time
 *	  mmap_lock
 *	    edu_file->lock	the map; taken by invalidate, held during DMA
 *	      edu->engine	the registers
 */
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/hmm.h>
#include <linux/hmm-dma.h>
#include <linux/io.h>
#include <linux/iommu.h>
#include <linux/iopoll.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "test_hmm_uapi.h"

#define EDU_VENDOR		0x1234
#define EDU_DEVICE		0x11e8

#define EDU_REG_ID		0x00
#define EDU_REG_SRC		0x80
#define EDU_REG_DST		0x88
#define EDU_REG_COUNT		0x90
#define EDU_REG_CMD		0x98

#define EDU_ID_MASK		0xff
#define EDU_ID			0xed

#define EDU_CMD_RUN		BIT_ULL(0)
#define EDU_CMD_FROM_DEVICE	BIT_ULL(1)

#define EDU_BUFFER		0x40000

/* As many as "-device edu,dma_mask=" of QEMU says. */
static unsigned int addr_bits = 28;
module_param(addr_bits, uint, 0444);
MODULE_PARM_DESC(addr_bits, "bits of the addresses that the device uses (default 28)");

/* The device takes no transfer that touches the last byte of its buffer. */
#define EDU_CHUNK		(PAGE_SIZE / 2)

#define EDU_POLL_US		1000
#define EDU_TIMEOUT_US		(10 * USEC_PER_SEC)

#define EDU_MAX_PAGES		BIT(16)

struct edu {
	struct pci_dev		*pdev;
	void __iomem		*regs;
	struct miscdevice	misc;
	struct mutex		engine;	/* guards regs */
};

struct edu_file {
	struct edu			*edu;
	struct mutex			setup;	/* guards npages, and words while they are filled */
	struct mmu_interval_notifier	notifier;
	unsigned long			npages;	/* 0: mirrors nothing yet */
	struct mutex			lock;	/* guards map */
	struct hmm_dma_map		map;
};

/* --- The device ---------------------------------------------------------- */

static int edu_run(struct edu *edu, u64 src, u64 dst, u64 direction)
{
	u64 cmd;

	lockdep_assert_held(&edu->engine);
	writeq(src, edu->regs + EDU_REG_SRC);
	writeq(dst, edu->regs + EDU_REG_DST);
	writeq(EDU_CHUNK, edu->regs + EDU_REG_COUNT);
	writeq(EDU_CMD_RUN | direction, edu->regs + EDU_REG_CMD);
	return readq_poll_timeout(edu->regs + EDU_REG_CMD, cmd,
				  !(cmd & EDU_CMD_RUN), EDU_POLL_US,
				  EDU_TIMEOUT_US);
}

static int edu_copy_page(struct edu *edu, dma_addr_t from, dma_addr_t to)
{
	unsigned long at;
	int err = 0;

	guard(mutex)(&edu->engine);
	for (at = 0; at < PAGE_SIZE && !err; at += EDU_CHUNK) {
		err = edu_run(edu, from + at, EDU_BUFFER, 0);
		if (!err)
			err = edu_run(edu, EDU_BUFFER, to + at,
				      EDU_CMD_FROM_DEVICE);
	}
	return err;
}

/* --- The mirror ---------------------------------------------------------- */

/* As the lock is held during DMA, the device has finished with the pages. */
static bool edu_invalidate(struct mmu_interval_notifier *notifier,
			   const struct mmu_notifier_range *range,
			   unsigned long seq)
{
	struct edu_file *f = container_of(notifier, struct edu_file, notifier);
	unsigned long base = notifier->interval_tree.start;
	unsigned long end = min(range->end - 1, notifier->interval_tree.last);
	unsigned long start = max(range->start, base);

	if (mmu_notifier_range_blockable(range))
		mutex_lock(&f->lock);
	else if (!mutex_trylock(&f->lock))
		return false;
	mmu_interval_set_seq(notifier, seq);
	/* Nothing else holds addresses here, so pieces need no hmm_dma_widen(). */
	hmm_dma_unmap_range(&f->edu->pdev->dev, &f->map,
			    PHYS_PFN(start - base),
			    PHYS_PFN(end - base) - PHYS_PFN(start - base) + 1);
	mutex_unlock(&f->lock);
	return true;
}

static const struct mmu_interval_notifier_ops edu_notifier_ops = {
	.invalidate = edu_invalidate,
};

/* Has the range filled in, and returns with f->lock held. */
static int edu_ask_and_lock(struct edu_file *f, struct hmm_range *range)
{
	unsigned long deadline = jiffies +
				 msecs_to_jiffies(HMM_RANGE_DEFAULT_TIMEOUT);
	struct mm_struct *mm = f->notifier.mm;
	int err;

	do {
		if (fatal_signal_pending(current))
			return -EINTR;
		range->notifier_seq = mmu_interval_read_begin(range->notifier);
		mmap_read_lock(mm);
		err = hmm_range_fault(range);
		mmap_read_unlock(mm);
		if (err && err != -EBUSY)
			return err;
		mutex_lock(&f->lock);
		if (!err && !mmu_interval_read_retry(range->notifier,
						     range->notifier_seq))
			return 0;
		mutex_unlock(&f->lock);
	} while (!time_after(jiffies, deadline));
	return -EBUSY;
}

static int edu_map_singly(struct edu_file *f, unsigned long first,
			  unsigned long n)
{
	struct pci_p2pdma_map_state p2p = { };
	unsigned long i;

	for (i = first; i < first + n; i++)
		if (hmm_dma_map_pfn(&f->edu->pdev->dev, &f->map, i, &p2p) ==
		    DMA_MAPPING_ERROR)
			return -EIO;
	return 0;
}

/* --- What a file can do -------------------------------------------------- */

static bool has_pages(const struct edu_file *f, u64 first, u64 n)
{
	return n && first < f->npages && n <= f->npages - first;
}

static int edu_mirror(struct edu_file *f, struct hmm_edu_cmd *cmd)
{
	struct device *dev = &f->edu->pdev->dev;
	u64 end;
	int err;

	if (f->npages)
		return -EBUSY;
	if (!PAGE_ALIGNED(cmd->addr) || !cmd->npages)
		return -EINVAL;
	if (cmd->npages > EDU_MAX_PAGES)
		return -E2BIG;
	if (check_add_overflow(cmd->addr, cmd->npages << PAGE_SHIFT, &end))
		return -EINVAL;

	err = hmm_dma_map_alloc(dev, &f->map, cmd->npages, PAGE_SIZE);
	if (err)
		return err;
	err = mmu_interval_notifier_insert(&f->notifier, current->mm, cmd->addr,
					   cmd->npages << PAGE_SHIFT,
					   &edu_notifier_ops);
	if (err) {
		hmm_dma_map_free(dev, &f->map);
		return err;
	}
	f->npages = cmd->npages;
	return 0;
}

static int edu_map(struct edu_file *f, struct hmm_edu_cmd *cmd)
{
	struct hmm_range range = {
		.notifier = &f->notifier,
		.default_flags = HMM_PFN_REQ_FAULT |
				 (cmd->flags & HMM_EDU_MAP_WRITE ?
				  HMM_PFN_REQ_WRITE : 0),
	};
	int err = -EFAULT;

	if (!has_pages(f, cmd->from, cmd->npages) ||
	    (cmd->flags & ~(HMM_EDU_MAP_WRITE | HMM_EDU_MAP_PIECES)))
		return -EINVAL;
	range.hmm_pfns = f->map.pfn_list + cmd->from;
	range.start = f->notifier.interval_tree.start + (cmd->from << PAGE_SHIFT);
	range.end = range.start + (cmd->npages << PAGE_SHIFT);
	if (!mmget_not_zero(f->notifier.mm))
		return err;

	err = edu_ask_and_lock(f, &range);
	if (!err) {
		if (cmd->flags & HMM_EDU_MAP_PIECES)
			err = hmm_dma_map_range(&f->edu->pdev->dev, &f->map,
						cmd->from, cmd->npages, NULL);
		else
			err = edu_map_singly(f, cmd->from, cmd->npages);
		mutex_unlock(&f->lock);
	}
	mmput(f->notifier.mm);
	return err;
}

static int edu_copy(struct edu_file *f, struct hmm_edu_cmd *cmd)
{
	int err;

	if (!has_pages(f, cmd->from, 1) || !has_pages(f, cmd->to, 1))
		return -EINVAL;

	guard(mutex)(&f->lock);
	if (!hmm_dma_is_mapped(&f->map, cmd->from) ||
	    !hmm_dma_is_mapped(&f->map, cmd->to))
		return -ENOENT;
	if (!(f->map.pfn_list[cmd->to] & HMM_PFN_WRITE))
		return -EPERM;
	err = edu_copy_page(f->edu, f->map.dma_list[cmd->from],
			    f->map.dma_list[cmd->to]);
	set_page_dirty(hmm_pfn_to_page(f->map.pfn_list[cmd->to]));
	return err;
}

static int edu_where(struct edu_file *f, struct hmm_edu_cmd *cmd)
{
	if (!has_pages(f, cmd->from, 1))
		return -EINVAL;

	guard(mutex)(&f->lock);
	if (!hmm_dma_is_mapped(&f->map, cmd->from))
		return -ENOENT;
	cmd->dma = f->map.dma_list[cmd->from];
	cmd->phys = hmm_pfn_to_phys(f->map.pfn_list[cmd->from]);
	return 0;
}

static int edu_translate(struct edu_file *f, struct hmm_edu_cmd *cmd)
{
	struct iommu_domain *domain;

	domain = iommu_get_domain_for_dev(&f->edu->pdev->dev);
	cmd->phys = domain ? iommu_iova_to_phys(domain, cmd->dma) : cmd->dma;
	return 0;
}

static int (* const edu_ops[])(struct edu_file *f, struct hmm_edu_cmd *cmd) = {
	edu_mirror, edu_map, edu_copy, edu_where, edu_translate,
};

static long edu_ioctl(struct file *file, unsigned int command,
		      unsigned long arg)
{
	unsigned int nr = _IOC_NR(command) - _IOC_NR(HMM_EDU_IOC(0));
	void __user *uarg = (void __user *)arg;
	struct edu_file *f = file->private_data;
	struct hmm_edu_cmd cmd;
	int err;

	if (nr >= ARRAY_SIZE(edu_ops) || command != HMM_EDU_IOC(nr))
		return -EINVAL;
	if (copy_from_user(&cmd, uarg, sizeof(cmd)))
		return -EFAULT;

	mutex_lock(&f->setup);
	err = edu_ops[nr](f, &cmd);
	mutex_unlock(&f->setup);

	if (!err && copy_to_user(uarg, &cmd, sizeof(cmd)))
		err = -EFAULT;
	return err;
}

static int edu_open(struct inode *inode, struct file *file)
{
	struct edu_file *f = kzalloc(sizeof(*f), GFP_KERNEL_ACCOUNT);

	if (!f)
		return -ENOMEM;
	f->edu = container_of(file->private_data, struct edu, misc);
	mutex_init(&f->setup);
	mutex_init(&f->lock);
	file->private_data = f;
	return 0;
}

static int edu_release(struct inode *inode, struct file *file)
{
	struct edu_file *f = file->private_data;

	if (f->npages) {
		mmu_interval_notifier_remove(&f->notifier);
		hmm_dma_map_free(&f->edu->pdev->dev, &f->map);
	}
	kfree(f);
	return 0;
}

static const struct file_operations edu_fops = {
	.owner		= THIS_MODULE,
	.open		= edu_open,
	.release	= edu_release,
	.unlocked_ioctl	= edu_ioctl,
};

/* --- Coming and going ---------------------------------------------------- */

static int edu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct edu *edu;
	int err;

	if (!addr_bits || addr_bits > 64)
		return -EINVAL;
	edu = devm_kzalloc(&pdev->dev, sizeof(*edu), GFP_KERNEL);
	if (!edu)
		return -ENOMEM;
	err = pcim_enable_device(pdev);
	if (err)
		return err;
	err = pcim_iomap_regions(pdev, BIT(0), KBUILD_MODNAME);
	if (err)
		return err;
	err = dma_set_mask_and_coherent(&pdev->dev,
					DMA_BIT_MASK(addr_bits));
	if (err)
		return err;

	mutex_init(&edu->engine);
	edu->pdev = pdev;
	edu->regs = pcim_iomap_table(pdev)[0];
	edu->misc = (struct miscdevice){
		.minor = MISC_DYNAMIC_MINOR,
		.name = "hmm_edu",
		.fops = &edu_fops,
		.parent = &pdev->dev,
	};
	if ((readl(edu->regs + EDU_REG_ID) & EDU_ID_MASK) != EDU_ID)
		return -ENODEV;
	pci_set_master(pdev);
	pci_set_drvdata(pdev, edu);
	return misc_register(&edu->misc);
}

static void edu_remove(struct pci_dev *pdev)
{
	struct edu *edu = pci_get_drvdata(pdev);

	misc_deregister(&edu->misc);
	pci_clear_master(pdev);
}

static const struct pci_device_id edu_ids[] = {
	{ PCI_DEVICE(EDU_VENDOR, EDU_DEVICE) },
	{ }
};
MODULE_DEVICE_TABLE(pci, edu_ids);

/* Open files keep the module, and it alone unbinds: no file outlives its device. */
static struct pci_driver edu_driver = {
	.name		= KBUILD_MODNAME,
	.id_table	= edu_ids,
	.probe		= edu_probe,
	.remove		= edu_remove,
	.driver.suppress_bind_attrs = true,
};
module_pci_driver(edu_driver);

MODULE_DESCRIPTION("Test of DMA to mirrored memory, by QEMU's edu device");
MODULE_LICENSE("GPL");
