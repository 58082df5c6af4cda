// SPDX-License-Identifier: GPL-2.0
/*
 * Pages of processes in VRAM.
 *
 * The pool of mm/hmm_devmem.c decides which page is where. Here is what it wants
 * of the board: memory for its chunks, and the copy engine.
 *
 * Vocabulary
 *
 * chunk	a buffer object of VRAM, pinned while the board is awake
 * step		one page of a job: copy it, clear it, or leave it
 * run		steps that follow each other on both sides: one launch
 * job		a batch of the pool on its way through the engine
 * orphan	a job whose end nobody has seen. The engine may still write to its
 *		pages, so they stay mapped and referenced. While there is one, no
 *		other job begins.
 *
 * A board that has pages does not suspend by itself, as a CPU fault that needs
 * one back may come any time. Before the system sleeps, they are moved to RAM.
 *
 * Locks
 *
 *	dmem->chunk_lock	buffer objects
 *	dmem->orphan_lock
 *	  client's mutex	the channel
 *
 * The pool calls copy and wait with mmap_lock and pages locked. Nobody waits for
 * either of these under a lock above.
 */
#include "nouveau_drv.h"
#include "nouveau_bo.h"
#include "nouveau_chan.h"
#include "nouveau_dma.h"
#include "nouveau_dmem.h"
#include "nouveau_dmem_priv.h"
#include "nouveau_fence.h"

#include <nvif/class.h>
#include <nvif/push906f.h>

#include <nvhw/class/cla0b5.h>

#include <kunit/static_stub.h>

#include <drm/drm_drv.h>
#include <drm/drm_managed.h>

#include <linux/dma-mapping.h>
#include <linux/highmem.h>
#include <linux/hmm_devmem.h>
#include <linux/pm_runtime.h>

/* How long to try to empty the board before it sleeps. */
#define SUSPEND_TIMEOUT	(5 * HZ)

/* How long the engine may fail before what it has not copied is given up. */
#define FINI_TIMEOUT	(5 * HZ)

/* hmm_devmem_chunk.data */
struct nouveau_dmem_chunk {
	struct list_head	node;		/* dmem->chunk_lock */
	struct nouveau_bo	*bo;
	bool			awake;		/* pinned: bo->offset is valid */
};

/* hmm_devmem_batch.data, from copy to wait */
struct nouveau_dmem_job {
	struct list_head		node;	/* dmem->orphan_lock */
	struct nouveau_dmem		*dmem;
	struct nouveau_fence		*fence;
	enum dma_data_direction		dir;
	unsigned long			nr;
	struct nouveau_dmem_step	steps[] __counted_by(nr);
};

/* --- VRAM ----------------------------------------------------------------- */

int nouveau_dmem_vram_pin(struct nouveau_bo *bo)
{
	KUNIT_STATIC_STUB_REDIRECT(nouveau_dmem_vram_pin, bo);
	return nouveau_bo_pin(bo, NOUVEAU_GEM_DOMAIN_VRAM, false);
}

void nouveau_dmem_vram_unpin(struct nouveau_bo *bo)
{
	KUNIT_STATIC_STUB_REDIRECT(nouveau_dmem_vram_unpin, bo);
	nouveau_bo_unpin(bo);
}

void nouveau_dmem_vram_put(struct nouveau_bo *bo)
{
	KUNIT_STATIC_STUB_REDIRECT(nouveau_dmem_vram_put, bo);
	nouveau_bo_fini(bo);
}

int nouveau_dmem_vram_get(struct nouveau_drm *drm, struct nouveau_bo **bo)
{
	KUNIT_STATIC_STUB_REDIRECT(nouveau_dmem_vram_get, drm, bo);
	return nouveau_bo_new(&drm->client, NOUVEAU_DMEM_CHUNK, 0,
			      NOUVEAU_GEM_DOMAIN_VRAM, 0, 0, NULL, NULL, bo);
}

static struct nouveau_dmem *dmem_of(const struct hmm_devmem *pool)
{
	struct nouveau_drm *drm = dev_get_drvdata(pool->device);

	return drm->dmem;
}

static int dmem_chunk_add(struct hmm_devmem_chunk *pchunk)
{
	struct nouveau_dmem *dmem = dmem_of(pchunk->devmem);
	struct nouveau_dmem_chunk *chunk;
	int err;

	chunk = kzalloc(sizeof(*chunk), GFP_KERNEL);
	if (!chunk)
		return -ENOMEM;
	err = nouveau_dmem_vram_get(dmem->drm, &chunk->bo);
	if (err)
		goto err_free;
	err = nouveau_dmem_vram_pin(chunk->bo);
	if (err)
		goto err_put;
	chunk->awake = true;
	pchunk->data = chunk;

	mutex_lock(&dmem->chunk_lock);
	list_add_tail(&chunk->node, &dmem->chunks);
	mutex_unlock(&dmem->chunk_lock);
	return 0;

err_put:
	nouveau_dmem_vram_put(chunk->bo);
err_free:
	kfree(chunk);
	return err;
}

static void dmem_chunk_remove(struct hmm_devmem_chunk *pchunk)
{
	struct nouveau_dmem *dmem = dmem_of(pchunk->devmem);
	struct nouveau_dmem_chunk *chunk = pchunk->data;

	mutex_lock(&dmem->chunk_lock);
	list_del(&chunk->node);
	mutex_unlock(&dmem->chunk_lock);

	if (chunk->awake)
		nouveau_dmem_vram_unpin(chunk->bo);
	nouveau_dmem_vram_put(chunk->bo);
	kfree(chunk);
}

static struct nouveau_dmem_chunk *page_chunk(const struct page *page)
{
	return hmm_devmem_page_chunk(page)->data;
}

/**
 * nouveau_dmem_page_addr() - where in VRAM is a page?
 * @page: page of the board
 *
 * Context: Any. Nobody moves or frees the page meanwhile.
 *
 * Return: The address in VRAM.
 */
unsigned long nouveau_dmem_page_addr(struct page *page)
{
	return page_chunk(page)->bo->offset + hmm_devmem_page_offset(page);
}

/*
 * A page keeps the board from suspending. Whoever asks the pool for pages has
 * the board awake, so there is nothing to wait for.
 */
static int dmem_folio_init(struct hmm_devmem *pool, struct folio *folio)
{
	pm_runtime_get_noresume(pool->device);
	return 0;
}

static void dmem_folio_exit(struct hmm_devmem *pool, struct folio *folio)
{
	pm_runtime_mark_last_busy(pool->device);
	pm_runtime_put_autosuspend(pool->device);
}

/* --- The copy engine ------------------------------------------------------ */

/*
 * The kernel's own client, taken with mmap_lock held. User clients take the mutex
 * of theirs, of the same class, and fault under it.
 */
static void engine_lock(struct nouveau_channel *chan)
{
	mutex_lock_nested(&chan->cli->mutex, SINGLE_DEPTH_NESTING);
}

static void engine_unlock(struct nouveau_channel *chan)
{
	mutex_unlock(&chan->cli->mutex);
}

static bool engine_stopped(struct nouveau_channel *chan)
{
	return atomic_read(&chan->killed);
}

/* A fence behind all that was launched. */
int nouveau_dmem_fence(struct nouveau_channel *chan,
		       struct nouveau_fence **fence)
{
	KUNIT_STATIC_STUB_REDIRECT(nouveau_dmem_fence, chan, fence);
	return nouveau_fence_new(fence, chan);
}

/* -EBUSY if it takes too long. A channel that was killed signals, with an error. */
int nouveau_dmem_fence_wait(struct nouveau_fence *fence)
{
	int err;

	KUNIT_STATIC_STUB_REDIRECT(nouveau_dmem_fence_wait, fence);
	err = nouveau_fence_wait(fence, true, false);
	if (err)
		return err;
	return min(dma_fence_get_status(&fence->base), 0);
}

bool nouveau_dmem_fence_done(struct nouveau_fence *fence)
{
	KUNIT_STATIC_STUB_REDIRECT(nouveau_dmem_fence_done, fence);
	return nouveau_fence_done(fence);
}

void nouveau_dmem_fence_put(struct nouveau_fence *fence)
{
	KUNIT_STATIC_STUB_REDIRECT(nouveau_dmem_fence_put, fence);
	nouveau_fence_unref(&fence);
}

/* Linear memory by its physical address; the rest is zero by default. */
static u32 launch_flags(void)
{
	return NVDEF(NVA0B5, LAUNCH_DMA, DATA_TRANSFER_TYPE, NON_PIPELINED) |
	       NVDEF(NVA0B5, LAUNCH_DMA, DST_TYPE, PHYSICAL) |
	       NVDEF(NVA0B5, LAUNCH_DMA, DST_MEMORY_LAYOUT, PITCH) |
	       NVDEF(NVA0B5, LAUNCH_DMA, SRC_MEMORY_LAYOUT, PITCH) |
	       NVDEF(NVA0B5, LAUNCH_DMA, FLUSH_ENABLE, TRUE);
}

/*
 * A page is a line. Addresses have 40 bits with the class that the methods are
 * named after, and 49 with the boards this is for: no mask for the upper part.
 */
static int launch_copy(struct nvif_push *push, u64 vram, u64 bus, u32 lines,
		       bool to_vram)
{
	u64 out = to_vram ? vram : bus;
	u64 in = to_vram ? bus : vram;
	u32 flags = NVDEF(NVA0B5, LAUNCH_DMA, MULTI_LINE_ENABLE, TRUE) |
		    NVDEF(NVA0B5, LAUNCH_DMA, SRC_TYPE, PHYSICAL);
	int err = PUSH_WAIT(push, 13);

	if (err)
		return err;
	if (to_vram) {
		PUSH_IMMD(push, NVA0B5, SET_DST_PHYS_MODE,
			  NVDEF(NVA0B5, SET_DST_PHYS_MODE, TARGET, LOCAL_FB));
		PUSH_IMMD(push, NVA0B5, SET_SRC_PHYS_MODE,
			  NVDEF(NVA0B5, SET_SRC_PHYS_MODE, TARGET, COHERENT_SYSMEM));
	} else {
		PUSH_IMMD(push, NVA0B5, SET_DST_PHYS_MODE,
			  NVDEF(NVA0B5, SET_DST_PHYS_MODE, TARGET, COHERENT_SYSMEM));
		PUSH_IMMD(push, NVA0B5, SET_SRC_PHYS_MODE,
			  NVDEF(NVA0B5, SET_SRC_PHYS_MODE, TARGET, LOCAL_FB));
	}
	PUSH_MTHD(push, NVA0B5,
		  OFFSET_IN_UPPER, upper_32_bits(in),
		  OFFSET_IN_LOWER, lower_32_bits(in),
		  OFFSET_OUT_UPPER, upper_32_bits(out),
		  OFFSET_OUT_LOWER, lower_32_bits(out),
		  PITCH_IN, PAGE_SIZE,
		  PITCH_OUT, PAGE_SIZE,
		  LINE_LENGTH_IN, PAGE_SIZE,
		  LINE_COUNT, lines);
	PUSH_MTHD(push, NVA0B5, LAUNCH_DMA, launch_flags() | flags);
	return 0;
}

/* One line of elements of two times four bytes, each from a constant. */
static int launch_clear(struct nvif_push *push, u64 vram, u32 bytes)
{
	u32 flags = NVDEF(NVA0B5, LAUNCH_DMA, REMAP_ENABLE, TRUE);
	int err = PUSH_WAIT(push, 12);

	if (err)
		return err;
	PUSH_MTHD(push, NVA0B5,
		  SET_REMAP_CONST_A, 0,
		  SET_REMAP_CONST_B, 0,
		  SET_REMAP_COMPONENTS,
		  NVDEF(NVA0B5, SET_REMAP_COMPONENTS, NUM_DST_COMPONENTS, TWO) |
		  NVDEF(NVA0B5, SET_REMAP_COMPONENTS, COMPONENT_SIZE, FOUR) |
		  NVDEF(NVA0B5, SET_REMAP_COMPONENTS, DST_Y, CONST_B) |
		  NVDEF(NVA0B5, SET_REMAP_COMPONENTS, DST_X, CONST_A));
	PUSH_IMMD(push, NVA0B5, SET_DST_PHYS_MODE,
		  NVDEF(NVA0B5, SET_DST_PHYS_MODE, TARGET, LOCAL_FB));
	PUSH_MTHD(push, NVA0B5,
		  OFFSET_OUT_UPPER, upper_32_bits(vram),
		  OFFSET_OUT_LOWER, lower_32_bits(vram));
	PUSH_MTHD(push, NVA0B5, LINE_LENGTH_IN, bytes / 8);
	PUSH_MTHD(push, NVA0B5, LAUNCH_DMA, launch_flags() | flags);
	return 0;
}

/* Queues one run. The engine begins with the next fence. */
int nouveau_dmem_launch(struct nouveau_channel *chan,
			const struct nouveau_dmem_step *first, unsigned long nr,
			enum dma_data_direction dir)
{
	struct nvif_push *push = &chan->chan.push;

	KUNIT_STATIC_STUB_REDIRECT(nouveau_dmem_launch, chan, first, nr, dir);
	if (first->op == NOUVEAU_DMEM_CLEAR)
		return launch_clear(push, first->vram, nr << PAGE_SHIFT);
	return launch_copy(push, first->vram, first->bus, nr,
			   dir == DMA_TO_DEVICE);
}

/* --- Jobs ----------------------------------------------------------------- */

int nouveau_dmem_map(struct device *dev, struct page *page,
		     enum dma_data_direction dir, dma_addr_t *bus)
{
	KUNIT_STATIC_STUB_REDIRECT(nouveau_dmem_map, dev, page, dir, bus);
	*bus = dma_map_page(dev, page, 0, PAGE_SIZE, dir);
	return dma_mapping_error(dev, *bus);
}

void nouveau_dmem_unmap(struct device *dev, dma_addr_t bus,
			enum dma_data_direction dir)
{
	KUNIT_STATIC_STUB_REDIRECT(nouveau_dmem_unmap, dev, bus, dir);
	dma_unmap_page(dev, bus, PAGE_SIZE, dir);
}

/* Decides what is to be done for a page. False: it cannot be done. */
static bool step_init(struct nouveau_dmem_job *job,
		      struct nouveau_dmem_step *step, struct page *dst,
		      struct page *src)
{
	bool to_vram = job->dir == DMA_TO_DEVICE;
	struct page *vram = to_vram ? dst : src;
	struct page *ram = to_vram ? src : dst;

	if (!vram) {
		clear_highpage(ram);
		return true;
	}
	if (!READ_ONCE(page_chunk(vram)->awake))
		return false;
	step->vram = nouveau_dmem_page_addr(vram);
	if (!ram) {
		step->op = NOUVEAU_DMEM_CLEAR;
		return true;
	}
	if (nouveau_dmem_map(job->dmem->drm->dev->dev, ram, job->dir, &step->bus))
		return false;
	step->ram = ram;
	step->op = NOUVEAU_DMEM_COPY;
	return true;
}

static struct nouveau_dmem_job *job_create(struct nouveau_dmem *dmem,
					   struct hmm_devmem_batch *batch)
{
	struct nouveau_dmem_job *job;
	unsigned long i;

	job = kvzalloc(struct_size(job, steps, batch->nr), GFP_KERNEL);
	if (!job)
		return NULL;
	job->dmem = dmem;
	job->dir = batch->to_device ? DMA_TO_DEVICE : DMA_FROM_DEVICE;
	job->nr = batch->nr;
	for (i = 0; i < batch->nr; i++)
		if (!step_init(job, &job->steps[i], batch->copies[i].dst,
			       batch->copies[i].src))
			batch->copies[i].failed = true;
	return job;
}

static void job_free(struct nouveau_dmem_job *job)
{
	struct device *dev = job->dmem->drm->dev->dev;
	unsigned long i;

	for (i = 0; i < job->nr; i++)
		if (job->steps[i].ram)
			nouveau_dmem_unmap(dev, job->steps[i].bus, job->dir);
	if (job->fence)
		nouveau_dmem_fence_put(job->fence);
	kvfree(job);
}

static bool steps_follow(const struct nouveau_dmem_step *a,
			 const struct nouveau_dmem_step *b)
{
	if (a->op != b->op || a->vram + PAGE_SIZE != b->vram)
		return false;
	return a->op == NOUVEAU_DMEM_CLEAR || a->bus + PAGE_SIZE == b->bus;
}

/**
 * nouveau_dmem_run() - how many steps are one launch?
 * @steps: the steps
 * @nr: how many, at least one
 *
 * Return: How many of the first go together, or may be skipped together.
 */
unsigned long nouveau_dmem_run(const struct nouveau_dmem_step *steps,
			       unsigned long nr)
{
	bool skip = steps->op == NOUVEAU_DMEM_SKIP;
	unsigned long n = 1;

	while (n < nr && (skip ? steps[n].op == NOUVEAU_DMEM_SKIP :
				 steps_follow(&steps[n - 1], &steps[n])))
		n++;
	return n;
}

/* Returns how many steps are queued, or need not be. */
static unsigned long job_launch(struct nouveau_dmem_job *job, bool *launched)
{
	unsigned long i, n;

	for (i = 0; i < job->nr; i += n) {
		n = nouveau_dmem_run(job->steps + i, job->nr - i);
		if (job->steps[i].op == NOUVEAU_DMEM_SKIP)
			continue;
		if (nouveau_dmem_launch(job->dmem->chan, job->steps + i, n,
					job->dir))
			break;
		*launched = true;
	}
	return i;
}

/* --- Orphans -------------------------------------------------------------- */

static void job_hold_pages(struct nouveau_dmem_job *job)
{
	unsigned long i;

	for (i = 0; i < job->nr; i++)
		if (job->steps[i].ram)
			get_page(job->steps[i].ram);
}

static void job_drop_pages(struct nouveau_dmem_job *job)
{
	unsigned long i;

	for (i = 0; i < job->nr; i++)
		if (job->steps[i].ram)
			put_page(job->steps[i].ram);
}

static void job_orphan(struct nouveau_dmem_job *job)
{
	struct nouveau_dmem *dmem = job->dmem;

	NV_ERROR(dmem->drm, "DMEM: copy engine does not answer\n");
	job_hold_pages(job);
	guard(mutex)(&dmem->orphan_lock);
	list_add_tail(&job->node, &dmem->orphans);
}

/* What was queued without a fence is done when a later fence is. */
static bool orphan_is_done(struct nouveau_dmem_job *job)
{
	struct nouveau_channel *chan = job->dmem->chan;
	int err = 0;

	if (engine_stopped(chan))
		return true;
	if (!job->fence) {
		engine_lock(chan);
		err = nouveau_dmem_fence(chan, &job->fence);
		engine_unlock(chan);
	}
	return !err && nouveau_dmem_fence_done(job->fence);
}

/* Returns true if there is no orphan any more. */
static bool reap_orphans(struct nouveau_dmem *dmem)
{
	struct nouveau_dmem_job *job, *next;

	guard(mutex)(&dmem->orphan_lock);
	list_for_each_entry_safe(job, next, &dmem->orphans, node) {
		if (!orphan_is_done(job))
			return false;
		list_del(&job->node);
		job_drop_pages(job);
		job_free(job);
	}
	return true;
}

/* Better lost than given to somebody, and written by the board. */
static void leak_orphans(struct nouveau_dmem *dmem)
{
	if (!reap_orphans(dmem))
		NV_ERROR(dmem->drm, "DMEM: leaving pages to the copy engine\n");
}

/* --- What the pool calls -------------------------------------------------- */

/* Not for want of memory alone, nor for a moment. */
static bool engine_is_gone(struct nouveau_dmem *dmem, int err)
{
	unsigned long patience = READ_ONCE(dmem->last_copy) + FINI_TIMEOUT;

	return engine_stopped(dmem->chan) ||
	       (err != -ENOMEM && time_after(jiffies, patience));
}

/*
 * For pages that the board cannot give back any more, a process finds zeroes: the
 * alternative is that the driver never goes.
 */
static void abandon_pages(struct nouveau_dmem *dmem,
			  struct hmm_devmem_batch *batch, bool all)
{
	unsigned long i;

	for (i = 0; i < batch->nr; i++) {
		struct hmm_devmem_copy *copy = &batch->copies[i];

		if (!all && (!copy->failed || page_chunk(copy->src)->awake))
			continue;
		clear_highpage(copy->dst);
		copy->failed = false;
		atomic_long_inc(&dmem->lost);
	}
}

/* The last word about a batch. */
static int settle(struct nouveau_dmem *dmem, struct hmm_devmem_batch *batch,
		  int err)
{
	if (batch->to_device || !READ_ONCE(dmem->leaving))
		return err;
	if (err && !engine_is_gone(dmem, err))
		return err;
	abandon_pages(dmem, batch, err);
	return 0;
}

/* Sets batch->data if there is something to wait for. */
static int copy_begin(struct nouveau_dmem *dmem, struct hmm_devmem_batch *batch)
{
	struct nouveau_dmem_job *job;
	bool launched = false;
	unsigned long i;
	int err = 0;

	if (engine_stopped(dmem->chan))
		return -ENODEV;
	if (!reap_orphans(dmem))
		return -EBUSY;
	job = job_create(dmem, batch);
	if (!job)
		return -ENOMEM;

	engine_lock(dmem->chan);
	i = job_launch(job, &launched);
	if (launched)
		err = nouveau_dmem_fence(dmem->chan, &job->fence);
	else if (i < batch->nr)
		err = -EIO;
	engine_unlock(dmem->chan);

	for (; i < batch->nr; i++)
		if (job->steps[i].op != NOUVEAU_DMEM_SKIP)
			batch->copies[i].failed = true;
	if (!launched)
		job_free(job);
	else if (err)
		job_orphan(job);
	else
		batch->data = job;
	return err;
}

static int dmem_copy(struct hmm_devmem_batch *batch)
{
	struct nouveau_dmem *dmem = dmem_of(batch->devmem);
	int err = copy_begin(dmem, batch);

	return batch->data ? 0 : settle(dmem, batch, err);
}

static int dmem_wait(struct hmm_devmem_batch *batch)
{
	struct nouveau_dmem_job *job = batch->data;
	struct nouveau_dmem *dmem = dmem_of(batch->devmem);
	int err;

	if (!job)
		return 0;
	err = nouveau_dmem_fence_wait(job->fence);
	if (!err)
		WRITE_ONCE(dmem->last_copy, jiffies);
	if (err == -EBUSY)
		job_orphan(job);
	else
		job_free(job);
	return settle(dmem, batch, err);
}

static const struct hmm_devmem_ops dmem_ops = {
	.copy		= dmem_copy,
	.wait		= dmem_wait,
	.folio_init	= dmem_folio_init,
	.folio_exit	= dmem_folio_exit,
	.chunk_add	= dmem_chunk_add,
	.chunk_remove	= dmem_chunk_remove,
};

/* --- What the driver calls ------------------------------------------------ */

/* The board is awake. */
static void prepare_to_migrate(struct nouveau_dmem *dmem)
{
	/* Nobody resumes us after a suspend that failed, nor for want of VRAM. */
	if (READ_ONCE(dmem->asleep))
		nouveau_dmem_resume(dmem->drm);
	/* The pages of an orphan cannot move, so no copy might look after it. */
	if (!list_empty_careful(&dmem->orphans))
		reap_orphans(dmem);
}

/**
 * nouveau_dmem_migrate() - move a range of a process to VRAM
 * @drm: the board
 * @mm: address space; the caller has a reference of its users
 * @start: address of the first page
 * @end: address behind the last page
 * @result: what became of the pages
 *
 * The GPU's page tables are not touched, but for invalidation by the notifiers.
 *
 * Context: Process context. Takes mmap_lock. Sleeps.
 *
 * Return: 0, or
 *
 * * -ENODEV - the board has no device memory, or is going
 * * what hmm_devmem_migrate_to_device() or the resume of the board returns
 */
int nouveau_dmem_migrate(struct nouveau_drm *drm, struct mm_struct *mm,
			 unsigned long start, unsigned long end,
			 struct hmm_devmem_result *result)
{
	struct device *dev = drm->dev->dev;
	int err = -ENODEV, idx;

	/* Keeps nouveau_dmem_fini() from beginning. */
	if (!drm_dev_enter(drm->dev, &idx))
		return -ENODEV;
	if (!drm->dmem)
		goto out_exit;
	err = pm_runtime_get_sync(dev);
	if (err < 0 && err != -EACCES)
		goto out_put;
	prepare_to_migrate(drm->dmem);
	err = hmm_devmem_migrate_to_device(drm->dmem->pool, mm, start, end,
					   result);
out_put:
	pm_runtime_mark_last_busy(dev);
	pm_runtime_put_autosuspend(dev);
out_exit:
	drm_dev_exit(idx);
	return err;
}

/**
 * nouveau_dmem_owner() - whose are the pages of the board?
 * @drm: the board
 *
 * Context: Any.
 *
 * Return: The value for &struct hmm_range.dev_private_owner, or NULL if the board
 * has no device memory.
 */
void *nouveau_dmem_owner(struct nouveau_drm *drm)
{
	struct nouveau_dmem *dmem = READ_ONCE(drm->dmem);

	return dmem ? dmem->pool : NULL;
}

/**
 * nouveau_dmem_suspend() - let go of VRAM before the board sleeps
 * @drm: the board
 *
 * Where a buffer object comes back may be elsewhere, so mappings of the GPU must
 * not stay: the pages are moved to RAM. Chunks stay, empty.
 *
 * Context: Process context. Sleeps. No process runs that has pages.
 */
void nouveau_dmem_suspend(struct nouveau_drm *drm)
{
	struct nouveau_dmem *dmem = drm->dmem;
	struct hmm_devmem_result result = { };
	struct nouveau_dmem_chunk *chunk;

	if (!dmem)
		return;
	if (hmm_devmem_evict(dmem->pool, SUSPEND_TIMEOUT, &result))
		NV_ERROR(drm, "DMEM: pages stay in VRAM over suspend\n");

	guard(mutex)(&dmem->chunk_lock);
	WRITE_ONCE(dmem->asleep, true);
	list_for_each_entry(chunk, &dmem->chunks, node) {
		if (!chunk->awake)
			continue;
		WRITE_ONCE(chunk->awake, false);
		nouveau_dmem_vram_unpin(chunk->bo);
	}
}

/**
 * nouveau_dmem_resume() - have VRAM again after the board slept
 * @drm: the board
 *
 * A chunk that cannot be had stays asleep: copies from and to it fail, until a
 * later migration gets it.
 *
 * Context: Process context. Sleeps.
 */
void nouveau_dmem_resume(struct nouveau_drm *drm)
{
	struct nouveau_dmem *dmem = drm->dmem;
	struct nouveau_dmem_chunk *chunk;
	unsigned long missing = 0;

	if (!dmem)
		return;
	guard(mutex)(&dmem->chunk_lock);
	list_for_each_entry(chunk, &dmem->chunks, node) {
		if (chunk->awake)
			continue;
		if (nouveau_dmem_vram_pin(chunk->bo))
			missing++;
		else
			WRITE_ONCE(chunk->awake, true);
	}
	WRITE_ONCE(dmem->asleep, missing);
	if (missing)
		NV_WARN(drm, "DMEM: %lu chunks have no VRAM\n", missing);
}

/**
 * nouveau_dmem_fini() - move all pages to RAM before the board goes
 * @drm: the board
 *
 * Pages that the engine cannot copy any more become zeroes, after it has been
 * given its time. Whoever holds a page is waited for.
 *
 * Context: Process context. Sleeps. The engine and TTM are still there.
 */
void nouveau_dmem_fini(struct nouveau_drm *drm)
{
	struct nouveau_dmem *dmem = drm->dmem;

	if (!dmem)
		return;
	WRITE_ONCE(dmem->last_copy, jiffies);
	WRITE_ONCE(dmem->leaving, true);
	hmm_devmem_remove(dmem->pool);
	leak_orphans(dmem);
	if (atomic_long_read(&dmem->lost))
		NV_ERROR(drm, "DMEM: %ld pages of processes are lost\n",
			 atomic_long_read(&dmem->lost));
	/* Its memory stays as long as that of @drm->dev: the SVM goes later. */
	WRITE_ONCE(drm->dmem, NULL);
}

void nouveau_dmem_setup(struct nouveau_dmem *dmem, struct nouveau_drm *drm,
			struct nouveau_channel *chan)
{
	dmem->drm = drm;
	dmem->chan = chan;
	dmem->leaving = false;
	mutex_init(&dmem->orphan_lock);
	INIT_LIST_HEAD(&dmem->orphans);
	mutex_init(&dmem->chunk_lock);
	INIT_LIST_HEAD(&dmem->chunks);
}

/* Makes the pool. It finds us by the board. */
int nouveau_dmem_start(struct nouveau_dmem *dmem, u64 vram_size)
{
	struct nouveau_drm *drm = dmem->drm;
	struct hmm_devmem *pool;

	drm->dmem = dmem;
	pool = hmm_devmem_add(&dmem_ops, drm->dev->dev, NOUVEAU_DMEM_CHUNK);
	if (IS_ERR(pool)) {
		drm->dmem = NULL;
		return PTR_ERR(pool);
	}
	hmm_devmem_set_limit(pool, vram_size);
	dmem->pool = pool;
	return 0;
}

static bool engine_is_known(s32 oclass)
{
	switch (oclass) {
	case PASCAL_DMA_COPY_A:
	case PASCAL_DMA_COPY_B:
	case VOLTA_DMA_COPY_A:
	case TURING_DMA_COPY_A:
		return true;
	default:
		return false;
	}
}

/**
 * nouveau_dmem_init() - have device memory, if the board can
 * @drm: the board; TTM works already
 *
 * GPUs before Pascal cannot take page faults. Without device memory all pages
 * stay in RAM.
 *
 * Context: Process context. Sleeps.
 */
void nouveau_dmem_init(struct nouveau_drm *drm)
{
	struct nv_device_info_v0 *info = &drm->client.device.info;
	struct nouveau_dmem *dmem;
	int err;

	if (info->family < NV_DEVICE_INFO_V0_PASCAL ||
	    !engine_is_known(drm->ttm.copy.oclass))
		return;
	dmem = drmm_kzalloc(drm->dev, sizeof(*dmem), GFP_KERNEL);
	if (!dmem)
		return;
	nouveau_dmem_setup(dmem, drm, drm->ttm.chan);
	err = nouveau_dmem_start(dmem, info->ram_user);
	if (err)
		NV_WARN(drm, "DMEM: no device memory: %d\n", err);
}
