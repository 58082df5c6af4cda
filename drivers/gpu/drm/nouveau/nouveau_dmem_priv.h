/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What nouveau_dmem.c shows to its KUnit suite, and to nobody else.
 */
#ifndef __NOUVEAU_DMEM_PRIV_H__
#define __NOUVEAU_DMEM_PRIV_H__
#include <linux/atomic.h>
#include <linux/dma-direction.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/types.h>

struct device;
struct hmm_devmem;
struct nouveau_bo;
struct nouveau_channel;
struct nouveau_drm;
struct nouveau_fence;
struct page;

/* One buffer object each; of this size it is contiguous in VRAM. */
#define NOUVEAU_DMEM_CHUNK	(2UL << 20)

/**
 * struct nouveau_dmem - device memory of one board
 * @drm: the board
 * @pool: the pages; NULL until there is one
 * @chan: channel with a copy engine, shared with TTM under its client's mutex
 * @asleep: chunks did not get their VRAM back when the board woke up
 * @suspend_timeout: how long to try to empty the board before it sleeps, in jiffies
 * @orphan_lock: protects @orphans; the mutex of @chan's client nests in it
 * @orphans: jobs that the engine has not finished in time
 * @chunk_lock: protects @chunks
 * @chunks: what is allocated of VRAM
 */
struct nouveau_dmem {
	struct nouveau_drm	*drm;
	struct hmm_devmem	*pool;
	struct nouveau_channel	*chan;
	bool			asleep;
	unsigned long		suspend_timeout;
	struct mutex		orphan_lock;	/* orphans */
	struct list_head	orphans;
	struct mutex		chunk_lock;	/* chunks */
	struct list_head	chunks;
};

/**
 * enum nouveau_dmem_op - what the engine does for a step
 * @NOUVEAU_DMEM_SKIP: nothing
 * @NOUVEAU_DMEM_COPY: copies between RAM and VRAM
 * @NOUVEAU_DMEM_CLEAR: fills VRAM with zeroes
 */
enum nouveau_dmem_op {
	NOUVEAU_DMEM_SKIP,
	NOUVEAU_DMEM_COPY,
	NOUVEAU_DMEM_CLEAR,
};

/**
 * struct nouveau_dmem_step - pages of a job, in a row
 * @op: what is to be done
 * @nr: how many pages
 * @ram: the first of those that are mapped for DMA, or NULL
 * @bus: its address there
 * @vram: address of the first page of the board
 */
struct nouveau_dmem_step {
	enum nouveau_dmem_op	op;
	unsigned long		nr;
	struct page		*ram;
	dma_addr_t		bus;
	u64			vram;
};

unsigned long nouveau_dmem_run(const struct nouveau_dmem_step *steps,
			       unsigned long nr, unsigned long *pages);
void nouveau_dmem_setup(struct nouveau_dmem *dmem, struct nouveau_drm *drm,
			struct nouveau_channel *chan);
int nouveau_dmem_start(struct nouveau_dmem *dmem, u64 vram_size);

/* What touches hardware, and is replaced in tests. */
int nouveau_dmem_vram_get(struct nouveau_drm *drm, struct nouveau_bo **bo);
void nouveau_dmem_vram_put(struct nouveau_bo *bo);
int nouveau_dmem_vram_pin(struct nouveau_bo *bo);
void nouveau_dmem_vram_unpin(struct nouveau_bo *bo);
size_t nouveau_dmem_map_max(struct device *dev);
int nouveau_dmem_map(struct device *dev, struct page *page, unsigned long nr,
		     enum dma_data_direction dir, dma_addr_t *bus);
void nouveau_dmem_unmap(struct device *dev, dma_addr_t bus, unsigned long nr,
			enum dma_data_direction dir);
int nouveau_dmem_launch(struct nouveau_channel *chan,
			const struct nouveau_dmem_step *first,
			unsigned long pages, enum dma_data_direction dir);
int nouveau_dmem_fence(struct nouveau_channel *chan,
		       struct nouveau_fence **fence);
int nouveau_dmem_fence_wait(struct nouveau_fence *fence);
bool nouveau_dmem_fence_done(struct nouveau_fence *fence);
void nouveau_dmem_fence_put(struct nouveau_fence *fence);

#endif /* __NOUVEAU_DMEM_PRIV_H__ */
