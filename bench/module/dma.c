// SPDX-License-Identifier: GPL-2.0
/*
 * The cost of DMA addresses for what the mirror found: of a range at once where
 * the kernel can do that, else of a page at a time, as drivers of 6.12 have to.
 */
#include <linux/dma-mapping.h>
#include <linux/hmm.h>
#include <linux/mmu_notifier.h>
#include <linux/pci.h>

#if __has_include(<linux/hmm-dma.h>)
#include <linux/hmm-dma.h>
#define BY_RANGE
#endif

#include "hmm_bench.h"

/* QEMU's edu, which is behind an IOMMU if there is one. It does nothing here. */
#define EDU_VENDOR	0x1234
#define EDU_DEVICE	0x11e8

/* What a device that mirrors a range has for each of its pages. */
struct table {
	struct device *dev;
	unsigned long nr;
#ifdef BY_RANGE
	struct hmm_dma_map map;
#else
	unsigned long *pfns;
	dma_addr_t *dma;
	unsigned long mapped;
	unsigned int shift;		/* of an entry of the device */
#endif
};

#ifdef BY_RANGE

static int table_alloc(struct table *t)
{
	return hmm_dma_map_alloc(t->dev, &t->map, t->nr, PAGE_SIZE);
}

static void table_free(struct table *t)
{
	hmm_dma_map_free(t->dev, &t->map);
}

static unsigned long *table_pfns(struct table *t)
{
	return t->map.pfn_list;
}

static int table_map(struct table *t)
{
	return hmm_dma_map_range(t->dev, &t->map, 0, t->nr, NULL);
}

static void table_unmap(struct table *t)
{
	hmm_dma_unmap_range(t->dev, &t->map, 0, t->nr);
}

#else

static int table_alloc(struct table *t)
{
	t->shift = PAGE_SHIFT;
	t->pfns = kvcalloc(t->nr, sizeof(*t->pfns), GFP_KERNEL);
	t->dma = kvcalloc(t->nr, sizeof(*t->dma), GFP_KERNEL);
	if (t->pfns && t->dma)
		return 0;
	kvfree(t->pfns);
	kvfree(t->dma);
	return -ENOMEM;
}

static void table_free(struct table *t)
{
	kvfree(t->pfns);
	kvfree(t->dma);
}

static unsigned long *table_pfns(struct table *t)
{
	return t->pfns;
}

static void unmap_first(struct table *t, unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i++) {
		if (!t->dma[i])
			continue;
		dma_unmap_page(t->dev, t->dma[i] & PAGE_MASK, PAGE_SIZE,
			       DMA_BIDIRECTIONAL);
		t->dma[i] = 0;
		t->mapped--;
	}
}

/* With its rights, as the device's page table has them. */
static noinline int map_page(struct table *t, unsigned long i, struct page *page,
			     unsigned long rights)
{
	dma_addr_t addr;

	if (t->dma[i])
		return 0;
	addr = dma_map_page(t->dev, page, 0, PAGE_SIZE, DMA_BIDIRECTIONAL);
	if (dma_mapping_error(t->dev, addr))
		return -EIO;
	t->dma[i] = addr | rights;
	t->mapped++;
	return 0;
}

static int table_map(struct table *t)
{
	unsigned long i;
	int err;

	/* What InfiniBand's ODP of 6.12 does for each page. */
	for (i = 0; i < t->nr; i++) {
		unsigned long pfn = t->pfns[i];

		WARN_ON(pfn & HMM_PFN_ERROR);
		if (!(pfn & HMM_PFN_VALID))
			continue;
		if (hmm_pfn_to_map_order(pfn) + PAGE_SHIFT < t->shift)
			return -EINVAL;
		err = map_page(t, i, hmm_pfn_to_page(pfn),
			       pfn & HMM_PFN_WRITE ? 3 : 1);
		if (err) {
			unmap_first(t, i);
			return err;
		}
	}
	return 0;
}

static void table_unmap(struct table *t)
{
	unmap_first(t, t->nr);
}

#endif /* BY_RANGE */

/* Nobody changes the memory: its owner waits for us. */
static int mirror(struct table *t, struct mmu_interval_notifier *notifier,
		  const struct hmm_bench_cmd *cmd)
{
	struct hmm_range range = {
		.notifier = notifier,
		.start = cmd->addr,
		.end = cmd->addr + (t->nr << PAGE_SHIFT),
		.hmm_pfns = table_pfns(t),
		.default_flags = HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE,
	};
	u64 unused = 0;

	return bench_fault_range(&range, &unused);
}

static int map_and_unmap(struct table *t, struct hmm_bench_cmd *cmd)
{
	u64 from = ktime_get_ns();
	int err;

	err = table_map(t);
	cmd->part_ns[0] = bench_since(from);
	if (err)
		return err;
	from = ktime_get_ns();
	table_unmap(t);
	cmd->part_ns[1] = bench_since(from);
	cmd->ns = cmd->part_ns[0] + cmd->part_ns[1];
	cmd->moved = t->nr;
	return 0;
}

static int run(struct table *t, struct hmm_bench_cmd *cmd)
{
	struct mmu_interval_notifier notifier = { };
	int err;

	err = table_alloc(t);
	if (err)
		return err;
	err = bench_notifier_insert(&notifier, cmd);
	if (!err) {
		err = mirror(t, &notifier, cmd);
		if (!err)
			err = map_and_unmap(t, cmd);
		mmu_interval_notifier_remove(&notifier);
	}
	table_free(t);
	return err;
}

int bench_dma(struct hmm_bench_cmd *cmd, struct device *plain)
{
	struct pci_dev *edu = pci_get_device(EDU_VENDOR, EDU_DEVICE, NULL);
	struct table t = {
		.dev = edu ? &edu->dev : plain,
		.nr = cmd->npages,
	};
	int err;

	if (!t.nr)
		err = -EINVAL;
	else if (edu)
		err = dma_set_mask_and_coherent(t.dev, DMA_BIT_MASK(64));
	else
		err = dma_coerce_mask_and_coherent(t.dev, DMA_BIT_MASK(64));
	if (!err)
		err = run(&t, cmd);
	pci_dev_put(edu);
	return err;
}
