// SPDX-License-Identifier: GPL-2.0
/*
 * Pages in VRAM, with a board of RAM: its engine copies with the CPU as soon as
 * it is told to, and fails as it is told to.
 */
#include "nouveau_drv.h"
#include "nouveau_bo.h"
#include "nouveau_chan.h"
#include "nouveau_dmem.h"
#include "nouveau_dmem_priv.h"

#include <kunit/device.h>
#include <kunit/static_stub.h>
#include <kunit/test.h>
#include <kunit/test-bug.h>

#include <linux/dma-mapping.h>
#include <linux/highmem.h>
#include <linux/hmm_devmem.h>
#include <linux/mman.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#define NPAGES		16UL
#define VRAM_BASE	0x12340000000ULL
#define BUS_BASE	0x4000000000000ULL
#define FENCE		((struct nouveau_fence *)0x1000)

/**
 * struct board - a board, and what it is told to do wrong
 * @test: the test
 * @drm: what the driver knows of it
 * @nvkm: what its messages are about
 * @ddev: its DRM device
 * @chan: channel of the engine
 * @dmem: its device memory
 * @bo: the only buffer object
 * @vram: the bytes of that
 * @dma_mask: what it can address
 * @map_max: bytes that can be mapped for it in one piece
 * @buf: range of the process
 * @scatter: no page follows another one on the bus
 * @map_left: so many pages can be mapped; -1: all
 * @launch_left: so many launches are taken; -1: all
 * @refusals_left: and after so many that are not, all are; 0: never
 * @pin_err: what pinning VRAM returns
 * @fence_err: what making a fence returns
 * @wait_err: what waiting for it returns
 * @wait_left: after so many times it is done, and all is well; 0: never
 * @done: what was not waited for is done
 * @maps: how many times something was mapped
 * @mapped: pages that are mapped
 * @launches: launches that were taken
 * @fences: fences that were not put
 * @bos: buffer objects that were not put
 * @pins: and those that are pinned
 * @last: page that was mapped last
 */
struct board {
	struct kunit *test;
	struct nouveau_drm *drm;
	struct nvkm_device nvkm;
	struct drm_device ddev;
	struct nouveau_channel chan;
	struct nouveau_dmem dmem;
	struct nouveau_bo bo;
	u8 *vram;
	u64 dma_mask;
	unsigned long buf;
	bool scatter;
	size_t map_max;
	long map_left;
	long launch_left;
	long refusals_left;
	int pin_err;
	int fence_err;
	int wait_err;
	int wait_left;
	bool done;
	long maps;
	long mapped;
	long launches;
	int fences;
	int bos;
	int pins;
	struct page *last;
};

/* --- The board ------------------------------------------------------------ */

static struct board *this_board(void)
{
	return kunit_get_current_test()->priv;
}

static bool take_one(struct board *b, long *left)
{
	if (!*left) {
		if (b->refusals_left && !--b->refusals_left)
			*left = -1;
		return false;
	}
	if (*left > 0)
		--*left;
	return true;
}

static int fake_vram_get(struct nouveau_drm *drm, struct nouveau_bo **bo)
{
	struct board *b = this_board();

	if (b->bos)
		return -ENOMEM;
	b->bos++;
	*bo = &b->bo;
	return 0;
}

static void fake_vram_put(struct nouveau_bo *bo)
{
	this_board()->bos--;
}

static int fake_vram_pin(struct nouveau_bo *bo)
{
	struct board *b = this_board();

	if (!b->pin_err)
		b->pins++;
	return b->pin_err;
}

static void fake_vram_unpin(struct nouveau_bo *bo)
{
	this_board()->pins--;
}

static size_t fake_map_max(struct device *dev)
{
	return this_board()->map_max;
}

static int fake_map(struct device *dev, struct page *page, unsigned long nr,
		    enum dma_data_direction dir, dma_addr_t *bus)
{
	struct board *b = this_board();

	if (!take_one(b, &b->map_left))
		return -ENOMEM;
	b->maps++;
	b->mapped += nr;
	b->last = page;
	*bus = BUS_BASE + (page_to_phys(page) << b->scatter);
	return 0;
}

static void fake_unmap(struct device *dev, dma_addr_t bus, unsigned long nr,
		       enum dma_data_direction dir)
{
	struct board *b = this_board();

	KUNIT_EXPECT_GE(b->test, bus, BUS_BASE);
	b->mapped -= nr;
}

static void launch_page(struct board *b, const struct nouveau_dmem_step *first,
			unsigned long i, enum dma_data_direction dir)
{
	u64 vram = first->vram + i * PAGE_SIZE - VRAM_BASE;
	u64 phys = ((first->bus - BUS_BASE) >> b->scatter) + i * PAGE_SIZE;
	u8 *bytes = b->vram + vram;

	KUNIT_ASSERT_LE(b->test, vram + PAGE_SIZE, (u64)NOUVEAU_DMEM_CHUNK);
	if (first->op == NOUVEAU_DMEM_CLEAR)
		memset(bytes, 0, PAGE_SIZE);
	else if (dir == DMA_TO_DEVICE)
		memcpy_from_page(bytes, pfn_to_page(PHYS_PFN(phys)), 0, PAGE_SIZE);
	else
		memcpy_to_page(pfn_to_page(PHYS_PFN(phys)), 0, bytes, PAGE_SIZE);
}

static int fake_launch(struct nouveau_channel *chan,
		       const struct nouveau_dmem_step *first,
		       unsigned long pages, enum dma_data_direction dir)
{
	struct board *b = this_board();
	unsigned long i;

	lockdep_assert_held(&chan->cli->mutex);
	KUNIT_EXPECT_TRUE(b->test, mutex_is_locked(&chan->cli->mutex));
	if (!take_one(b, &b->launch_left))
		return -EBUSY;
	b->launches++;
	for (i = 0; i < pages; i++)
		launch_page(b, first, i, dir);
	return 0;
}

static int fake_fence(struct nouveau_channel *chan, struct nouveau_fence **fence)
{
	struct board *b = this_board();

	lockdep_assert_held(&chan->cli->mutex);
	KUNIT_EXPECT_TRUE(b->test, mutex_is_locked(&chan->cli->mutex));
	if (b->fence_err)
		return b->fence_err;
	b->fences++;
	*fence = FENCE;
	return 0;
}

static int fake_fence_wait(struct nouveau_fence *fence)
{
	struct board *b = this_board();
	int err;

	KUNIT_EXPECT_PTR_EQ(b->test, fence, FENCE);
	KUNIT_EXPECT_FALSE(b->test, mutex_is_locked(&b->drm->client.mutex));
	if (!b->wait_left || --b->wait_left)
		return b->wait_err;
	err = b->wait_err;
	b->wait_err = 0;
	b->done = true;
	return err;
}

static bool fake_fence_done(struct nouveau_fence *fence)
{
	return this_board()->done;
}

static void fake_fence_put(struct nouveau_fence *fence)
{
	this_board()->fences--;
}

static void replace_hardware(struct kunit *test)
{
	kunit_activate_static_stub(test, nouveau_dmem_vram_get, fake_vram_get);
	kunit_activate_static_stub(test, nouveau_dmem_vram_put, fake_vram_put);
	kunit_activate_static_stub(test, nouveau_dmem_vram_pin, fake_vram_pin);
	kunit_activate_static_stub(test, nouveau_dmem_vram_unpin, fake_vram_unpin);
	kunit_activate_static_stub(test, nouveau_dmem_map_max, fake_map_max);
	kunit_activate_static_stub(test, nouveau_dmem_map, fake_map);
	kunit_activate_static_stub(test, nouveau_dmem_unmap, fake_unmap);
	kunit_activate_static_stub(test, nouveau_dmem_launch, fake_launch);
	kunit_activate_static_stub(test, nouveau_dmem_fence, fake_fence);
	kunit_activate_static_stub(test, nouveau_dmem_fence_wait, fake_fence_wait);
	kunit_activate_static_stub(test, nouveau_dmem_fence_done, fake_fence_done);
	kunit_activate_static_stub(test, nouveau_dmem_fence_put, fake_fence_put);
}

static void free_vram(void *vram)
{
	vfree(vram);
}

static void make_board(struct board *b)
{
	struct kunit *test = b->test;

	b->vram = vmalloc(NOUVEAU_DMEM_CHUNK);
	KUNIT_ASSERT_NOT_NULL(test, b->vram);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, free_vram, b->vram), 0);
	memset(b->vram, 0xaa, NOUVEAU_DMEM_CHUNK);
	b->bo.offset = VRAM_BASE;
	b->map_left = -1;
	b->map_max = SIZE_MAX;
	b->launch_left = -1;

	b->drm = kunit_kzalloc(test, sizeof(*b->drm), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, b->drm);
	b->ddev.dev = kunit_device_register(test, "nouveau_dmem_test");
	KUNIT_ASSERT_FALSE(test, IS_ERR(b->ddev.dev));
	b->dma_mask = DMA_BIT_MASK(64);
	b->ddev.dev->dma_mask = &b->dma_mask;
	dev_set_drvdata(b->ddev.dev, b->drm);
	b->drm->dev = &b->ddev;
	b->nvkm.dev = b->ddev.dev;
	b->drm->nvkm = &b->nvkm;
	mutex_init(&b->drm->client.mutex);
	b->chan.cli = &b->drm->client;
}

static int dmem_init(struct kunit *test)
{
	struct board *b = kunit_kzalloc(test, sizeof(*b), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, b);
	test->priv = b;
	b->test = test;
	b->buf = kunit_vm_mmap(test, NULL, 0, NPAGES * PAGE_SIZE,
			       PROT_READ | PROT_WRITE,
			       MAP_ANONYMOUS | MAP_PRIVATE, 0);
	KUNIT_ASSERT_NE(test, b->buf, 0UL);
	make_board(b);
	replace_hardware(test);
	nouveau_dmem_setup(&b->dmem, b->drm, &b->chan);
	KUNIT_ASSERT_EQ(test, nouveau_dmem_start(&b->dmem, NOUVEAU_DMEM_CHUNK), 0);
	return 0;
}

static void dmem_exit(struct kunit *test)
{
	struct board *b = test->priv;

	if (!b || !b->drm)
		return;
	b->done = true;
	nouveau_dmem_fini(b->drm);
	KUNIT_EXPECT_EQ(test, b->mapped, 0);
	KUNIT_EXPECT_EQ(test, b->fences, 0);
	KUNIT_EXPECT_EQ(test, b->bos, 0);
	KUNIT_EXPECT_EQ(test, b->pins, 0);
	KUNIT_EXPECT_FALSE(test, mutex_is_locked(&b->drm->client.mutex));
}

/* --- The process ---------------------------------------------------------- */

static unsigned long __user *word_of(struct board *b, unsigned long i)
{
	return (unsigned long __user *)(b->buf + i * PAGE_SIZE);
}

static void write_pages(struct board *b)
{
	unsigned long i;

	for (i = 0; i < NPAGES; i++)
		KUNIT_ASSERT_EQ(b->test, put_user(~i, word_of(b, i)), 0);
}

/* How many pages can be read, and are @zero or as they were written. */
static unsigned long read_pages(struct board *b, bool zero)
{
	unsigned long i, word, good = 0;

	for (i = 0; i < NPAGES; i++)
		good += !get_user(word, word_of(b, i)) && word == (zero ? 0 : ~i);
	return good;
}

static struct hmm_devmem_result to_vram(struct board *b)
{
	struct hmm_devmem_result result = { };

	KUNIT_ASSERT_EQ(b->test,
			nouveau_dmem_migrate(b->drm, current->mm, b->buf,
					     b->buf + NPAGES * PAGE_SIZE,
					     &result), 0);
	return result;
}

static struct hmm_devmem_result to_ram(struct board *b)
{
	struct hmm_devmem_result result = { };

	KUNIT_ASSERT_EQ(b->test,
			hmm_devmem_migrate_to_ram(b->dmem.pool, current->mm, b->buf,
						  b->buf + NPAGES * PAGE_SIZE,
						  &result), 0);
	return result;
}

static unsigned long evicted(struct board *b)
{
	struct hmm_devmem_result result = { };

	KUNIT_EXPECT_EQ(b->test, hmm_devmem_evict(b->dmem.pool, 0, &result), 0);
	return result.moved;
}

/* --- Runs ----------------------------------------------------------------- */

#define CLEAR(v)	{ NOUVEAU_DMEM_CLEAR, 1, NULL, 0, (v) * PAGE_SIZE }
#define COPY(b, v)	ROW(1, b, v)
#define ROW(n, b, v)	{ NOUVEAU_DMEM_COPY, n, NULL, (b) * PAGE_SIZE, (v) * PAGE_SIZE }

static const struct run_case {
	const char *name;
	struct nouveau_dmem_step steps[4];
	unsigned long nr, run, pages;
} run_cases[] = {
	{ "one", { COPY(1, 1) }, 1, 1, 1 },
	{ "both sides follow", { COPY(1, 8), COPY(2, 9), COPY(3, 10) }, 3, 3, 3 },
	{ "no further than asked", { COPY(1, 8), COPY(2, 9), COPY(3, 10) }, 2, 2, 2 },
	{ "bus has a gap", { COPY(1, 8), COPY(3, 9) }, 2, 1, 1 },
	{ "vram has a gap", { COPY(1, 8), COPY(2, 10) }, 2, 1, 1 },
	{ "backwards", { COPY(2, 9), COPY(1, 8) }, 2, 1, 1 },
	{ "the same page", { COPY(1, 8), COPY(1, 8) }, 2, 1, 1 },
	{ "gap at the end", { COPY(1, 8), COPY(2, 9), COPY(4, 10) }, 3, 2, 2 },
	{ "rows follow", { ROW(4, 0, 8), COPY(4, 12), ROW(2, 5, 13) }, 3, 3, 7 },
	{ "row has a gap", { ROW(4, 0, 8), COPY(1, 9) }, 2, 1, 4 },
	{ "copy ends at clear", { COPY(0, 8), CLEAR(9) }, 2, 1, 1 },
	{ "clear ends at copy", { CLEAR(8), COPY(0, 9) }, 2, 1, 1 },
	{ "clear has no bus", { CLEAR(8), CLEAR(9), CLEAR(10), CLEAR(11) }, 4, 4, 4 },
	{ "clear has a gap", { CLEAR(8), CLEAR(10) }, 2, 1, 1 },
	{ "skipped splits", { COPY(1, 8), { NOUVEAU_DMEM_SKIP, 1 }, COPY(2, 9) }, 3, 1, 1 },
};

KUNIT_ARRAY_PARAM_DESC(run, run_cases, name);

static void run_is(struct kunit *test)
{
	const struct run_case *c = test->param_value;

	unsigned long pages;

	KUNIT_EXPECT_EQ(test, nouveau_dmem_run(c->steps, c->nr, &pages), c->run);
	KUNIT_EXPECT_EQ(test, pages, c->pages);
}

/* --- Pages ---------------------------------------------------------------- */

static void pages_go_and_come_back(struct kunit *test)
{
	struct board *b = test->priv;

	write_pages(b);
	KUNIT_EXPECT_EQ(test, to_vram(b).moved, NPAGES);
	KUNIT_EXPECT_EQ(test, b->mapped, 0);
	KUNIT_EXPECT_EQ(test, *(unsigned long *)b->vram, ~0UL);
	KUNIT_EXPECT_EQ(test, to_ram(b).moved, NPAGES);
	KUNIT_EXPECT_EQ(test, b->mapped, 0);
	KUNIT_EXPECT_EQ(test, b->fences, 0);
	KUNIT_EXPECT_EQ(test, read_pages(b, false), NPAGES);
}

static void cpu_faults_bring_pages_back(struct kunit *test)
{
	struct board *b = test->priv;

	b->scatter = true;
	write_pages(b);
	KUNIT_EXPECT_EQ(test, to_vram(b).moved, NPAGES);
	KUNIT_EXPECT_EQ(test, b->launches, (long)NPAGES);
	KUNIT_EXPECT_EQ(test, read_pages(b, false), NPAGES);
	KUNIT_EXPECT_EQ(test, b->launches, 2 * (long)NPAGES);
	KUNIT_EXPECT_EQ(test, evicted(b), 0UL);
}

static void holes_are_cleared_in_one_launch(struct kunit *test)
{
	struct board *b = test->priv;

	KUNIT_EXPECT_EQ(test, to_vram(b).moved, NPAGES);
	KUNIT_EXPECT_EQ(test, b->launches, 1);
	KUNIT_EXPECT_EQ(test, b->mapped, 0);
	KUNIT_EXPECT_EQ(test, read_pages(b, true), NPAGES);
}

static void page_has_its_address(struct kunit *test)
{
	struct board *b = test->priv;
	struct hmm_devmem_chunk *chunk;
	struct page *page;
	u64 addr;

	chunk = list_first_entry(&b->dmem.pool->chunks, typeof(*chunk), node);
	page = pfn_to_page(PHYS_PFN(chunk->pgmap.range.start) + 3);
	KUNIT_EXPECT_TRUE(test, nouveau_dmem_page_addr(page, &addr));
	KUNIT_EXPECT_EQ(test, addr, VRAM_BASE + 3 * PAGE_SIZE);
	KUNIT_EXPECT_PTR_EQ(test, nouveau_dmem_owner(b->drm),
			    page_pgmap(page)->owner);

	nouveau_dmem_suspend(b->drm);
	KUNIT_EXPECT_FALSE(test, nouveau_dmem_page_addr(page, &addr));
	b->bo.offset += NOUVEAU_DMEM_CHUNK;
	nouveau_dmem_resume(b->drm);
	KUNIT_EXPECT_TRUE(test, nouveau_dmem_page_addr(page, &addr));
	KUNIT_EXPECT_EQ(test, addr, VRAM_BASE + NOUVEAU_DMEM_CHUNK + 3 * PAGE_SIZE);
	b->bo.offset -= NOUVEAU_DMEM_CHUNK;
}

/* --- Large folios --------------------------------------------------------- */

#define HUGE_PAGES	(NOUVEAU_DMEM_CHUNK >> PAGE_SHIFT)

/* A huge page, with a word in each page; or the test is skipped. */
static unsigned long map_huge(struct board *b)
{
	unsigned long addr, i;
	struct vm_area_struct *vma;

	addr = kunit_vm_mmap(b->test, NULL, 0, 2 * NOUVEAU_DMEM_CHUNK,
			     PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, 0);
	KUNIT_ASSERT_NE(b->test, addr, 0UL);
	addr = ALIGN(addr, NOUVEAU_DMEM_CHUNK);
	mmap_write_lock(current->mm);
	vma = find_vma(current->mm, addr);
	if (vma)
		vm_flags_set(vma, VM_HUGEPAGE);
	mmap_write_unlock(current->mm);
	for (i = 0; i < HUGE_PAGES; i++)
		KUNIT_ASSERT_EQ(b->test, put_user(~i, (unsigned long __user *)
						      (addr + i * PAGE_SIZE)), 0);
	return addr;
}

static unsigned long read_huge(unsigned long addr)
{
	unsigned long i, word, good = 0;

	for (i = 0; i < HUGE_PAGES; i++)
		good += !get_user(word, (unsigned long __user *)
					(addr + i * PAGE_SIZE)) && word == ~i;
	return good;
}

static unsigned long move_huge(struct board *b, unsigned long addr)
{
	struct hmm_devmem_result result = { };

	KUNIT_ASSERT_EQ(b->test,
			nouveau_dmem_migrate(b->drm, current->mm, addr,
					     addr + NOUVEAU_DMEM_CHUNK, &result), 0);
	return result.moved;
}

/* What keeps the board from suspending. */
static int users(struct board *b)
{
#ifdef CONFIG_PM
	return atomic_read(&b->ddev.dev->power.usage_count);
#else
	return 0;
#endif
}

static void large_folio_goes_in_one_piece(struct kunit *test)
{
	struct board *b = test->priv;
	unsigned long addr = map_huge(b);
	int before = users(b);

	KUNIT_EXPECT_EQ(test, move_huge(b, addr), HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, b->maps, 1);
	KUNIT_EXPECT_EQ(test, b->launches, 1);
	KUNIT_EXPECT_EQ(test, b->mapped, 0);
	KUNIT_EXPECT_EQ(test, users(b), before + IS_ENABLED(CONFIG_PM));

	KUNIT_EXPECT_EQ(test, read_huge(addr), HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, b->mapped, 0);
	KUNIT_EXPECT_EQ(test, users(b), before);
}

static void folio_is_as_large_as_can_be_mapped(struct kunit *test)
{
	struct board *b = test->priv;
	unsigned long addr = map_huge(b);
	int before = users(b);

	b->map_max = SZ_256K;
	KUNIT_EXPECT_EQ(test, move_huge(b, addr), HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, b->maps, (long)(NOUVEAU_DMEM_CHUNK / SZ_256K));
	KUNIT_EXPECT_EQ(test, read_huge(addr), HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, b->mapped, 0);
	KUNIT_EXPECT_EQ(test, users(b), before);
}

/* --- Failures ------------------------------------------------------------- */

static void unmappable_page_stays(struct kunit *test)
{
	struct board *b = test->priv;
	struct hmm_devmem_result r;

	write_pages(b);
	b->map_left = 5;
	r = to_vram(b);
	KUNIT_EXPECT_EQ(test, r.moved, 5UL);
	KUNIT_EXPECT_EQ(test, r.not_copied, NPAGES - 5);
	KUNIT_EXPECT_EQ(test, b->mapped, 0);

	/* Neither way: the process gets an error, and its data later. */
	KUNIT_EXPECT_EQ(test, read_pages(b, false), NPAGES - 5);
	KUNIT_EXPECT_EQ(test, to_ram(b).not_copied, 5UL);
	b->map_left = -1;
	KUNIT_EXPECT_EQ(test, read_pages(b, false), NPAGES);
}

static void refused_launch_fails_the_rest(struct kunit *test)
{
	struct board *b = test->priv;
	struct hmm_devmem_result r;

	write_pages(b);
	b->scatter = true;
	b->launch_left = 4;
	r = to_vram(b);
	KUNIT_EXPECT_EQ(test, r.moved, 4UL);
	KUNIT_EXPECT_EQ(test, r.not_copied, NPAGES - 4);

	/* And with none at all there is nothing to wait for. */
	b->wait_err = -EBUSY;
	KUNIT_EXPECT_EQ(test, to_ram(b).not_copied, 4UL);
	KUNIT_EXPECT_EQ(test, b->mapped, 0);
	KUNIT_EXPECT_TRUE(test, list_empty(&b->dmem.orphans));
	b->wait_err = 0;
	b->launch_left = -1;
	KUNIT_EXPECT_EQ(test, read_pages(b, false), NPAGES);
}

static void killed_while_copying_moves_nothing(struct kunit *test)
{
	struct board *b = test->priv;

	write_pages(b);
	b->wait_err = -ENODEV;
	KUNIT_EXPECT_EQ(test, to_vram(b).not_copied, NPAGES);
	KUNIT_EXPECT_EQ(test, b->mapped, 0);
	KUNIT_EXPECT_EQ(test, b->fences, 0);
	b->wait_err = 0;
	KUNIT_EXPECT_EQ(test, read_pages(b, false), NPAGES);
}

static void stopped_engine_is_left_alone(struct kunit *test)
{
	struct board *b = test->priv;

	write_pages(b);
	atomic_set(&b->chan.killed, 1);
	KUNIT_EXPECT_EQ(test, to_vram(b).not_copied, NPAGES);
	KUNIT_EXPECT_EQ(test, b->launches, 0);
	atomic_set(&b->chan.killed, 0);
	KUNIT_EXPECT_EQ(test, read_pages(b, false), NPAGES);
}

/* The engine does not answer in time, and goes on later. */
static void late_engine_keeps_its_pages(struct kunit *test)
{
	struct board *b = test->priv;
	long launches;

	write_pages(b);
	KUNIT_EXPECT_EQ(test, to_vram(b).moved, NPAGES);
	b->wait_err = -EBUSY;
	KUNIT_EXPECT_EQ(test, to_ram(b).not_copied, NPAGES);
	KUNIT_EXPECT_EQ(test, b->mapped, (long)NPAGES);
	KUNIT_EXPECT_EQ(test, page_count(b->last), 1);
	launches = b->launches;
	KUNIT_EXPECT_EQ(test, to_ram(b).not_copied, NPAGES);
	KUNIT_EXPECT_EQ(test, b->launches, launches);

	b->wait_err = 0;
	b->done = true;
	KUNIT_EXPECT_EQ(test, to_ram(b).moved, NPAGES);
	KUNIT_EXPECT_EQ(test, b->mapped, 0);
	KUNIT_EXPECT_EQ(test, b->fences, 0);
	KUNIT_EXPECT_EQ(test, read_pages(b, false), NPAGES);
}

/* The process waits for its data, and no harm is done. */
static void late_engine_delays_the_cpu(struct kunit *test)
{
	struct board *b = test->priv;

	write_pages(b);
	KUNIT_EXPECT_EQ(test, to_vram(b).moved, NPAGES);
	b->wait_err = -EBUSY;
	b->wait_left = 1;
	KUNIT_EXPECT_EQ(test, read_pages(b, false), NPAGES);
	KUNIT_EXPECT_EQ(test, b->mapped, 0);
}

static void killed_engine_gives_its_pages_back(struct kunit *test)
{
	struct board *b = test->priv;

	write_pages(b);
	b->wait_err = -EBUSY;
	KUNIT_EXPECT_EQ(test, to_vram(b).not_copied, NPAGES);
	KUNIT_EXPECT_EQ(test, b->mapped, (long)NPAGES);
	atomic_set(&b->chan.killed, 1);
	nouveau_dmem_fini(b->drm);
	KUNIT_EXPECT_EQ(test, b->mapped, 0);
	KUNIT_EXPECT_EQ(test, read_pages(b, false), NPAGES);
}

static void job_without_fence_waits_for_the_next(struct kunit *test)
{
	struct board *b = test->priv;

	write_pages(b);
	b->fence_err = -ENOMEM;
	KUNIT_EXPECT_EQ(test, to_vram(b).not_copied, NPAGES);
	KUNIT_EXPECT_EQ(test, b->mapped, (long)NPAGES);
	/* They are held, and cannot move. */
	KUNIT_EXPECT_EQ(test, to_vram(b).moved, 0UL);
	KUNIT_EXPECT_EQ(test, b->mapped, (long)NPAGES);

	b->fence_err = 0;
	b->done = true;
	KUNIT_EXPECT_EQ(test, to_vram(b).moved, NPAGES);
	KUNIT_EXPECT_EQ(test, b->mapped, 0);
	KUNIT_EXPECT_EQ(test, b->fences, 0);
	KUNIT_EXPECT_EQ(test, read_pages(b, false), NPAGES);
}

/* --- Life ----------------------------------------------------------------- */

static void suspend_takes_pages_to_ram(struct kunit *test)
{
	struct board *b = test->priv;

	write_pages(b);
	KUNIT_EXPECT_EQ(test, to_vram(b).moved, NPAGES);
	nouveau_dmem_suspend(b->drm);
	KUNIT_EXPECT_EQ(test, b->pins, 0);
	KUNIT_EXPECT_EQ(test, b->bos, 1);
	memset(b->vram, 0xaa, NOUVEAU_DMEM_CHUNK);
	b->bo.offset += NOUVEAU_DMEM_CHUNK;
	KUNIT_EXPECT_EQ(test, read_pages(b, false), NPAGES);

	b->bo.offset -= NOUVEAU_DMEM_CHUNK;
	nouveau_dmem_resume(b->drm);
	KUNIT_EXPECT_EQ(test, b->pins, 1);
	KUNIT_EXPECT_EQ(test, to_vram(b).moved, NPAGES);
	KUNIT_EXPECT_EQ(test, read_pages(b, false), NPAGES);
}

static void chunk_without_vram_gets_no_pages(struct kunit *test)
{
	struct board *b = test->priv;

	write_pages(b);
	nouveau_dmem_suspend(b->drm);
	b->pin_err = -ENOSPC;
	nouveau_dmem_resume(b->drm);
	KUNIT_EXPECT_EQ(test, to_vram(b).not_copied, NPAGES);
	KUNIT_EXPECT_EQ(test, b->launches, 0);

	b->pin_err = 0;
	KUNIT_EXPECT_EQ(test, to_vram(b).moved, NPAGES);
	KUNIT_EXPECT_EQ(test, read_pages(b, false), NPAGES);
}

static void fini_takes_pages_to_ram(struct kunit *test)
{
	struct board *b = test->priv;

	write_pages(b);
	KUNIT_EXPECT_EQ(test, to_vram(b).moved, NPAGES);
	nouveau_dmem_fini(b->drm);
	KUNIT_EXPECT_EQ(test, b->bos, 0);
	KUNIT_EXPECT_NULL(test, nouveau_dmem_owner(b->drm));
	KUNIT_EXPECT_EQ(test, read_pages(b, false), NPAGES);
}

static void fini_ends_without_an_engine(struct kunit *test)
{
	struct board *b = test->priv;

	write_pages(b);
	KUNIT_EXPECT_EQ(test, to_vram(b).moved, NPAGES);
	atomic_set(&b->chan.killed, 1);
	nouveau_dmem_fini(b->drm);
	KUNIT_EXPECT_EQ(test, b->bos, 0);
	KUNIT_EXPECT_EQ(test, read_pages(b, true), NPAGES);
}

/* What it may still write to is nobody's, for ever; here until it is done. */
static void fini_ends_with_a_late_engine(struct kunit *test)
{
	struct board *b = test->priv;

	write_pages(b);
	KUNIT_EXPECT_EQ(test, to_vram(b).moved, NPAGES);
	b->wait_err = -EBUSY;
	b->dmem.pool->patience = HZ / 10;
	nouveau_dmem_fini(b->drm);
	KUNIT_EXPECT_EQ(test, b->bos, 0);
	KUNIT_EXPECT_EQ(test, b->mapped, (long)NPAGES);
	KUNIT_EXPECT_EQ(test, page_count(b->last), 1);
	KUNIT_EXPECT_EQ(test, read_pages(b, true), NPAGES);

	b->done = true;
	b->wait_err = 0;
	KUNIT_EXPECT_EQ(test, nouveau_dmem_start(&b->dmem, NOUVEAU_DMEM_CHUNK), 0);
}

static void fini_does_not_give_up_at_once(struct kunit *test)
{
	struct board *b = test->priv;

	write_pages(b);
	KUNIT_EXPECT_EQ(test, to_vram(b).moved, NPAGES);
	b->launch_left = 0;
	b->refusals_left = 20;
	nouveau_dmem_fini(b->drm);
	KUNIT_EXPECT_EQ(test, read_pages(b, false), NPAGES);
}

static void fini_keeps_pages_that_cannot_be_mapped(struct kunit *test)
{
	struct board *b = test->priv;

	write_pages(b);
	KUNIT_EXPECT_EQ(test, to_vram(b).moved, NPAGES);
	b->map_left = 5;
	b->refusals_left = 20;
	nouveau_dmem_fini(b->drm);
	KUNIT_EXPECT_EQ(test, read_pages(b, false), NPAGES);
}

static void fini_gives_up_pages_without_vram(struct kunit *test)
{
	struct board *b = test->priv;

	write_pages(b);
	KUNIT_EXPECT_EQ(test, to_vram(b).moved, NPAGES);
	b->map_left = 0;
	b->dmem.suspend_timeout = HZ / 10;
	nouveau_dmem_suspend(b->drm);
	b->map_left = -1;
	b->pin_err = -ENOSPC;
	nouveau_dmem_resume(b->drm);
	b->dmem.pool->patience = HZ / 10;
	nouveau_dmem_fini(b->drm);
	KUNIT_EXPECT_EQ(test, read_pages(b, true), NPAGES);
}

static void no_device_memory(struct kunit *test)
{
	struct board *b = test->priv;
	struct hmm_devmem_result r = { };

	nouveau_dmem_fini(b->drm);
	nouveau_dmem_suspend(b->drm);
	nouveau_dmem_resume(b->drm);
	KUNIT_EXPECT_EQ(test, nouveau_dmem_migrate(b->drm, current->mm, b->buf,
						   b->buf + PAGE_SIZE, &r), -ENODEV);

	/* Nor is there any without SVM, or without an engine. */
	b->drm->ttm.chan = &b->chan;
	nouveau_dmem_init(b->drm);
	KUNIT_EXPECT_NULL(test, nouveau_dmem_owner(b->drm));
	b->drm->ttm.chan = NULL;
	b->drm->svm = (struct nouveau_svm *)b;
	nouveau_dmem_init(b->drm);
	KUNIT_EXPECT_NULL(test, nouveau_dmem_owner(b->drm));
}

static void start_fails_without_vram(struct kunit *test)
{
	struct board *b = test->priv;

	nouveau_dmem_fini(b->drm);
	b->pin_err = -ENOSPC;
	KUNIT_EXPECT_EQ(test, nouveau_dmem_start(&b->dmem, NOUVEAU_DMEM_CHUNK), -ENOSPC);
	KUNIT_EXPECT_EQ(test, b->bos, 0);
	KUNIT_EXPECT_NULL(test, nouveau_dmem_owner(b->drm));
}

static struct kunit_case dmem_cases[] = {
	KUNIT_CASE_PARAM(run_is, run_gen_params),
	KUNIT_CASE(pages_go_and_come_back),
	KUNIT_CASE(cpu_faults_bring_pages_back),
	KUNIT_CASE(holes_are_cleared_in_one_launch),
	KUNIT_CASE(page_has_its_address),
	KUNIT_CASE(large_folio_goes_in_one_piece),
	KUNIT_CASE(folio_is_as_large_as_can_be_mapped),
	KUNIT_CASE(unmappable_page_stays),
	KUNIT_CASE(refused_launch_fails_the_rest),
	KUNIT_CASE(killed_while_copying_moves_nothing),
	KUNIT_CASE(stopped_engine_is_left_alone),
	KUNIT_CASE(late_engine_keeps_its_pages),
	KUNIT_CASE(late_engine_delays_the_cpu),
	KUNIT_CASE(killed_engine_gives_its_pages_back),
	KUNIT_CASE(job_without_fence_waits_for_the_next),
	KUNIT_CASE(suspend_takes_pages_to_ram),
	KUNIT_CASE(chunk_without_vram_gets_no_pages),
	KUNIT_CASE(fini_takes_pages_to_ram),
	KUNIT_CASE(fini_ends_without_an_engine),
	KUNIT_CASE(fini_does_not_give_up_at_once),
	KUNIT_CASE(fini_keeps_pages_that_cannot_be_mapped),
	KUNIT_CASE_SLOW(fini_gives_up_pages_without_vram),
	KUNIT_CASE_SLOW(fini_ends_with_a_late_engine),
	KUNIT_CASE(no_device_memory),
	KUNIT_CASE(start_fails_without_vram),
	{ }
};

static struct kunit_suite dmem_suite = {
	.name = "nouveau_dmem",
	.init = dmem_init,
	.exit = dmem_exit,
	.test_cases = dmem_cases,
};

kunit_test_suite(dmem_suite);
