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
 * step		pages of a job in a row: copy them, clear them, or leave them
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

#include <nvif/push906f.h>

#include <nvhw/class/cla0b5.h>

#include <kunit/static_stub.h>

#include <drm/drm_managed.h>

#include <linux/dma-mapping.h>
#include <linux/highmem.h>
#include <linux/hmm_devmem.h>
#include <linux/pm_runtime.h>

/* How long to try to empty the board before it sleeps. */
#define SUSPEND_TIMEOUT	(5 * HZ)

/* How long to wait before somebody tries again to have a busy engine copy. */
#define RETRY_DELAY	(HZ / 100)

/* hmm_devmem_chunk.data */
struct nouveau_dmem_chunk {
	struct list_head	node;		/* dmem->chunk_lock */
	struct nouveau_bo	*bo;
	bool			awake;		/* pinned: read it before bo->offset */
};

/* hmm_devmem_batch.data, from copy to wait */
struct nouveau_dmem_job {
	struct list_head		node;	/* dmem->orphan_lock */
	struct nouveau_dmem		*dmem;
	struct nouveau_fence		*fence;
	enum dma_data_direction		dir;
	int				err;	/* if some step wants memory */
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
 * @addr: where to put the address
 *
 * Context: Any. Nobody moves or frees the page meanwhile, and the board is awake.
 *
 * Return: false if the page has no VRAM: its chunk did not get it back when the
 * board woke up.
 */
bool nouveau_dmem_page_addr(struct page *page, u64 *addr)
{
	struct nouveau_dmem_chunk *chunk = page_chunk(page);

	/* Pairs with smp_store_release() in nouveau_dmem_resume(). */
	if (!smp_load_acquire(&chunk->awake))
		return false;
	*addr = chunk->bo->offset + hmm_devmem_page_offset(page);
	return true;
}

/*
 * A folio keeps the board from suspending. Whoever asks the pool for folios has
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

/* The head keeps what the folio had. */
static void dmem_folio_split(struct folio *head, struct folio *tail)
{
	if (tail)
		dmem_folio_init(hmm_devmem_page_chunk(&head->page)->devmem, tail);
}

/* Bytes that can be mapped for DMA in one piece: bounce buffers are small. */
size_t nouveau_dmem_map_max(struct device *dev)
{
	KUNIT_STATIC_STUB_REDIRECT(nouveau_dmem_map_max, dev);
	return dma_max_mapping_size(dev);
}

/* A folio that cannot be mapped for DMA in one piece would never be copied. */
static bool dmem_may_alloc(struct hmm_devmem *pool, bool to_device,
			   unsigned int order)
{
	return PAGE_SIZE << order <= nouveau_dmem_map_max(pool->device);
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
	PUSH_IMMD(push, NVA0B5, SET_DST_PHYS_MODE, to_vram ?
		  NVDEF(NVA0B5, SET_DST_PHYS_MODE, TARGET, LOCAL_FB) :
		  NVDEF(NVA0B5, SET_DST_PHYS_MODE, TARGET, COHERENT_SYSMEM));
	PUSH_IMMD(push, NVA0B5, SET_SRC_PHYS_MODE, to_vram ?
		  NVDEF(NVA0B5, SET_SRC_PHYS_MODE, TARGET, COHERENT_SYSMEM) :
		  NVDEF(NVA0B5, SET_SRC_PHYS_MODE, TARGET, LOCAL_FB));
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

/* Queues one run, of so many pages. The engine begins with the next fence. */
int nouveau_dmem_launch(struct nouveau_channel *chan,
			const struct nouveau_dmem_step *first,
			unsigned long pages, enum dma_data_direction dir)
{
	struct nvif_push *push = &chan->chan.push;

	KUNIT_STATIC_STUB_REDIRECT(nouveau_dmem_launch, chan, first, pages, dir);
	if (first->op == NOUVEAU_DMEM_CLEAR)
		return launch_clear(push, first->vram, pages << PAGE_SHIFT);
	return launch_copy(push, first->vram, first->bus, pages,
			   dir == DMA_TO_DEVICE);
}

/* --- Jobs ----------------------------------------------------------------- */

int nouveau_dmem_map(struct device *dev, struct page *page, unsigned long nr,
		     enum dma_data_direction dir, dma_addr_t *bus)
{
	KUNIT_STATIC_STUB_REDIRECT(nouveau_dmem_map, dev, page, nr, dir, bus);
	*bus = dma_map_page(dev, page, 0, nr << PAGE_SHIFT, dir);
	return dma_mapping_error(dev, *bus);
}

void nouveau_dmem_unmap(struct device *dev, dma_addr_t bus, unsigned long nr,
			enum dma_data_direction dir)
{
	KUNIT_STATIC_STUB_REDIRECT(nouveau_dmem_unmap, dev, bus, nr, dir);
	dma_unmap_page(dev, bus, nr << PAGE_SHIFT, dir);
}

static void clear_ram(struct page *page, unsigned long nr)
{
	while (nr--)
		clear_highpage(page++);
}

/*
 * Decides what is to be done for a copy. -ENXIO: its chunk has no VRAM; -ENOMEM:
 * it cannot be mapped for DMA now.
 */
static int step_init(struct nouveau_dmem_job *job,
		     struct nouveau_dmem_step *step,
		     const struct hmm_devmem_copy *copy)
{
	bool to_vram = job->dir == DMA_TO_DEVICE;
	struct page *vram = to_vram ? copy->dst : copy->src;
	struct page *ram = to_vram ? copy->src : copy->dst;

	step->nr = copy->nr;
	if (!vram) {
		clear_ram(ram, copy->nr);
		return 0;
	}
	if (!nouveau_dmem_page_addr(vram, &step->vram))
		return -ENXIO;
	if (!ram) {
		step->op = NOUVEAU_DMEM_CLEAR;
		return 0;
	}
	if (nouveau_dmem_map(job->dmem->drm->dev->dev, ram, copy->nr, job->dir,
			     &step->bus))
		return -ENOMEM;
	step->ram = ram;
	step->op = NOUVEAU_DMEM_COPY;
	return 0;
}

static struct nouveau_dmem_job *job_create(struct nouveau_dmem *dmem,
					   struct hmm_devmem_batch *batch)
{
	struct nouveau_dmem_job *job;
	unsigned long i;
	int err;

	job = kvzalloc(struct_size(job, steps, batch->nr), GFP_KERNEL);
	if (!job)
		return NULL;
	job->dmem = dmem;
	job->dir = batch->to_device ? DMA_TO_DEVICE : DMA_FROM_DEVICE;
	job->nr = batch->nr;
	for (i = 0; i < batch->nr; i++) {
		err = step_init(job, &job->steps[i], &batch->copies[i]);
		batch->copies[i].failed = err;
		if (err == -ENOMEM)
			job->err = err;
	}
	return job;
}

static void job_free(struct nouveau_dmem_job *job)
{
	struct device *dev = job->dmem->drm->dev->dev;
	const struct nouveau_dmem_step *step;

	for (step = job->steps; step < job->steps + job->nr; step++)
		if (step->ram)
			nouveau_dmem_unmap(dev, step->bus, step->nr, job->dir);
	if (job->fence)
		nouveau_dmem_fence_put(job->fence);
	kvfree(job);
}

static bool steps_follow(const struct nouveau_dmem_step *a,
			 const struct nouveau_dmem_step *b)
{
	unsigned long size = a->nr << PAGE_SHIFT;

	if (a->op != b->op || a->vram + size != b->vram)
		return false;
	return a->op == NOUVEAU_DMEM_CLEAR || a->bus + size == b->bus;
}

/* How many of the first steps are one launch, and how many pages they have. */
unsigned long nouveau_dmem_run(const struct nouveau_dmem_step *steps,
			       unsigned long nr, unsigned long *pages)
{
	unsigned long n = 1;

	*pages = steps->nr;
	while (n < nr && steps_follow(&steps[n - 1], &steps[n]))
		*pages += steps[n++].nr;
	return n;
}

/* Sets *@done to how many steps are queued, or need not be. */
static int job_launch(struct nouveau_dmem_job *job, unsigned long *done,
		      bool *launched)
{
	struct nouveau_dmem_step *step;
	unsigned long i, n, pages;
	int err = 0;

	for (i = 0; i < job->nr && !err; i += n) {
		step = &job->steps[i];
		n = 1;
		if (step->op == NOUVEAU_DMEM_SKIP)
			continue;
		n = nouveau_dmem_run(step, job->nr - i, &pages);
		err = nouveau_dmem_launch(job->dmem->chan, step, pages, job->dir);
		if (err)
			n = 0;
		else
			*launched = true;
	}
	*done = i;
	return err;
}

/* --- Orphans -------------------------------------------------------------- */

/* Have get_page() or put_page() of what is mapped; a reference for each step. */
static void job_pages(struct nouveau_dmem_job *job, void (*fn)(struct page *))
{
	unsigned long i;

	for (i = 0; i < job->nr; i++)
		if (job->steps[i].ram)
			fn(job->steps[i].ram);
}

static void job_orphan(struct nouveau_dmem_job *job)
{
	struct nouveau_dmem *dmem = job->dmem;

	NV_ERROR(dmem->drm, "DMEM: copy engine does not answer\n");
	job_pages(job, get_page);
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
		job_pages(job, put_page);
		job_free(job);
	}
	return true;
}

/* --- What the pool calls -------------------------------------------------- */

/*
 * Sets batch->data if there is something to wait for. -EBUSY, as of the wait, asks
 * for another try later: nobody knows yet what the engine did.
 */
static int dmem_copy(struct hmm_devmem_batch *batch)
{
	struct nouveau_dmem *dmem = dmem_of(batch->devmem);
	struct nouveau_dmem_job *job;
	bool launched = false;
	unsigned long i;
	int err;

	if (engine_stopped(dmem->chan))
		return -ENODEV;
	if (!reap_orphans(dmem)) {
		/* A CPU that faults comes back at once. */
		schedule_timeout_killable(RETRY_DELAY);
		return -EBUSY;
	}
	job = job_create(dmem, batch);
	if (!job)
		return -ENOMEM;

	engine_lock(dmem->chan);
	err = job_launch(job, &i, &launched);
	/* Without a fence nobody can tell when it is done: see the wait. */
	if (launched)
		nouveau_dmem_fence(dmem->chan, &job->fence);
	engine_unlock(dmem->chan);

	for (; i < batch->nr; i++)
		if (job->steps[i].op != NOUVEAU_DMEM_SKIP)
			batch->copies[i].failed = true;
	if (launched) {
		batch->data = job;
		return 0;
	}
	if (!err)
		err = job->err;
	job_free(job);
	return err;
}

static int dmem_wait(struct hmm_devmem_batch *batch)
{
	struct nouveau_dmem_job *job = batch->data;
	int err;

	if (!job)
		return 0;
	err = job->fence ? nouveau_dmem_fence_wait(job->fence) : -EBUSY;
	if (err == -EBUSY)
		job_orphan(job);
	else
		job_free(job);
	return err;
}

static const struct hmm_devmem_ops dmem_ops = {
	.copy		= dmem_copy,
	.wait		= dmem_wait,
	.folio_init	= dmem_folio_init,
	.folio_exit	= dmem_folio_exit,
	.folio_split	= dmem_folio_split,
	.may_alloc	= dmem_may_alloc,
	.chunk_add	= dmem_chunk_add,
	.chunk_remove	= dmem_chunk_remove,
	.max_order	= HMM_DEVMEM_ORDERS - 1,
};

/* --- What the driver calls ------------------------------------------------ */

/* The board is awake. */
static void prepare_to_migrate(struct nouveau_dmem *dmem)
{
	/* There was too little VRAM when the board woke up. */
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
 * Context: Process context, with the board awake and drm_dev_enter() done, which
 * keeps nouveau_dmem_fini() from beginning. Takes mmap_lock. Sleeps.
 *
 * Return: 0, or -ENODEV, the board has no device memory, or what
 * hmm_devmem_migrate_to_device() returns.
 */
int nouveau_dmem_migrate(struct nouveau_drm *drm, struct mm_struct *mm,
			 unsigned long start, unsigned long end,
			 struct hmm_devmem_result *result)
{
	if (!drm->dmem)
		return -ENODEV;
	prepare_to_migrate(drm->dmem);
	return hmm_devmem_migrate_to_device(drm->dmem->pool, mm, start, end,
					    result);
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
	if (hmm_devmem_evict(dmem->pool, dmem->suspend_timeout, &result))
		NV_ERROR(drm, "DMEM: pages stay in VRAM over suspend\n");

	guard(mutex)(&dmem->chunk_lock);
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
		if (nouveau_dmem_vram_pin(chunk->bo)) {
			missing++;
			continue;
		}
		/* Pairs with smp_load_acquire() in nouveau_dmem_page_addr(). */
		smp_store_release(&chunk->awake, true);
	}
	WRITE_ONCE(dmem->asleep, missing);
	if (missing)
		NV_WARN(drm, "DMEM: %lu chunks have no VRAM\n", missing);
}

/**
 * nouveau_dmem_fini() - move all pages to RAM before the board goes
 * @drm: the board
 *
 * As hmm_devmem_remove(): pages that the engine cannot copy any more become
 * zeroes, after it has been given its time.
 *
 * Context: Process context. Sleeps. The engine and TTM are still there.
 */
void nouveau_dmem_fini(struct nouveau_drm *drm)
{
	struct nouveau_dmem *dmem = drm->dmem;

	if (!dmem)
		return;
	hmm_devmem_remove(dmem->pool);
	/* Better lost than given to somebody, and written by the board. */
	if (!reap_orphans(dmem))
		NV_ERROR(drm, "DMEM: leaving pages to the copy engine\n");
	/* Its memory stays as long as that of @drm->dev: the SVM goes later. */
	WRITE_ONCE(drm->dmem, NULL);
}

void nouveau_dmem_setup(struct nouveau_dmem *dmem, struct nouveau_drm *drm,
			struct nouveau_channel *chan)
{
	dmem->drm = drm;
	dmem->chan = chan;
	dmem->suspend_timeout = SUSPEND_TIMEOUT;
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

/**
 * nouveau_dmem_init() - have device memory, if the board can
 * @drm: the board; TTM works already
 *
 * It is for shared virtual memory alone. Without it all pages stay in RAM.
 *
 * Context: Process context. Sleeps. After nouveau_svm_init().
 */
void nouveau_dmem_init(struct nouveau_drm *drm)
{
	struct nouveau_dmem *dmem;
	int err;

	/* What has SVM has the copy engine of Pascal, if it has any. */
	if (!drm->svm || !drm->ttm.chan)
		return;
	dmem = drmm_kzalloc(drm->dev, sizeof(*dmem), GFP_KERNEL);
	if (!dmem)
		return;
	nouveau_dmem_setup(dmem, drm, drm->ttm.chan);
	err = nouveau_dmem_start(dmem, drm->client.device.info.ram_user);
	if (err)
		NV_WARN(drm, "DMEM: no device memory: %d\n", err);
}
