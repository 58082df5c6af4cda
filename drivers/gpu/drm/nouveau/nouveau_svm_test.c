// SPDX-License-Identifier: GPL-2.0
/*
 * Shared virtual memory without a GPU: its decisions as tables, and the fault
 * handler on a real address space. The fixture is the GPU. It writes faults
 * into a ring and keeps the page table that it is told to map.
 */
#include <kunit/device.h>
#include <kunit/resource.h>
#include <kunit/static_stub.h>
#include <kunit/test-bug.h>
#include <kunit/test.h>
#include <linux/hmm.h>
#include <linux/hmm_devmem.h>
#include <linux/mman.h>
#include <linux/sort.h>
#include <linux/uaccess.h>

#include "nouveau_drv.h"
#include "nouveau_svm.h"
#include "nouveau_svm_priv.h"

#define PFNMAP_V	NVIF_VMM_PFNMAP_V0_V
#define PFNMAP_W	NVIF_VMM_PFNMAP_V0_W
#define PFNMAP_A	NVIF_VMM_PFNMAP_V0_A
#define PFNMAP_VRAM	NVIF_VMM_PFNMAP_V0_VRAM
#define PFNMAP_ADDR	NVIF_VMM_PFNMAP_V0_ADDR

#define READABLE	HMM_PFN_VALID
#define WRITABLE	(HMM_PFN_VALID | HMM_PFN_WRITE)
#define BLOCK_ORDER	(NOUVEAU_SVM_BLOCK_SHIFT - PAGE_SHIFT)
#define IN_BLOCK	((unsigned long)BLOCK_ORDER << HMM_PFN_ORDER_SHIFT)

#define NR_PAGES	64UL
#define NR_ENTRIES	128U
#define GET_REG		offsetof(struct gpu, get)
#define PUT_REG		offsetof(struct gpu, put)
#define INST		0x123456789000ULL
#define VRAM_ADDR	0x40000000ULL

/**
 * struct gpu - what stands in for the hardware
 * @test: the test
 * @svm: the driver's part
 * @svmm: address space of the test
 * @vmm: what @svmm maps into: never looked at
 * @addr: where the process has NR_PAGES pages, a block's beginning
 * @get: register
 * @put: register
 * @ring: the fault buffer
 * @table: what is mapped of the NR_PAGES pages
 * @maps: how many calls of PFNMAP
 * @clears: how many calls of PFNCLR
 * @replays: how many
 * @cancels: how many
 * @cancelled: address of the last of them
 * @map_err: what PFNMAP returns
 * @refuse: address that PFNMAP cannot map
 * @refuse_block: PFNMAP cannot map a block in one piece
 * @one_piece: the mirror says that the process maps its block in one piece
 * @block: which then is this
 * @mapped_block: the GPU maps it so
 * @all_vram: every page of the process is in VRAM
 * @nowhere: and the board does not have it
 * @looks: how many calls of the mirror
 * @look_at: the first address of the last of them
 * @looks_there: how many came one after the other
 * @order: what the first of them found
 * @after_look: something that happens before its answer is used
 * @migrate_err: what migration returns
 * @migrated: what was migrated, in bytes
 */
struct gpu {
	struct kunit *test;
	struct nouveau_svm *svm;
	struct nouveau_svmm *svmm;
	struct nouveau_vmm vmm;
	unsigned long addr;
	u32 get;
	u32 put;
	u32 ring[NR_ENTRIES][NOUVEAU_SVM_ENTRY_WORDS];
	u64 table[NR_PAGES];
	unsigned int maps;
	unsigned int clears;
	unsigned int replays;
	unsigned int cancels;
	u64 cancelled;
	int map_err;
	unsigned long refuse;
	bool refuse_block;
	bool one_piece;
	struct page *block;
	bool mapped_block;
	bool all_vram;
	bool nowhere;
	unsigned int looks;
	unsigned long look_at;
	unsigned int looks_there;
	unsigned int order;
	void (*after_look)(struct gpu *gpu);
	int migrate_err;
	unsigned long migrated;
};

static struct gpu *this_gpu(void)
{
	return kunit_get_current_test()->priv;
}

static unsigned long addr_of(struct gpu *gpu, unsigned long i)
{
	return gpu->addr + i * PAGE_SIZE;
}

/* --- The hardware ----------------------------------------------------------- */

static void gpu_replay(struct nouveau_svm *svm)
{
	this_gpu()->replays++;
}

static void gpu_cancel(struct nouveau_svm *svm, const struct nouveau_svm_fault *fault)
{
	this_gpu()->cancels++;
	this_gpu()->cancelled = fault->addr;
}

static void set_table(struct gpu *gpu, unsigned long addr, u64 pte)
{
	if (addr >= gpu->addr && addr < addr_of(gpu, NR_PAGES))
		gpu->table[(addr - gpu->addr) >> PAGE_SHIFT] = pte;
}

static void map_block(struct gpu *gpu, struct nvif_vmm_pfnmap_v0 *map)
{
	unsigned long i;

	KUNIT_EXPECT_EQ(gpu->test, map->page, NOUVEAU_SVM_BLOCK_SHIFT);
	KUNIT_EXPECT_EQ(gpu->test, map->addr, gpu->addr);
	KUNIT_EXPECT_EQ(gpu->test, map->size, NOUVEAU_SVM_BLOCK);
	if (gpu->refuse_block) {
		map->phys[0] = 0;
		return;
	}
	gpu->mapped_block = true;
	for (i = 0; i < NR_PAGES; i++)
		gpu->table[i] = map->phys[0] + i * PAGE_SIZE;
}

static int gpu_map(struct nouveau_svmm *svmm, struct nvif_vmm_pfnmap_v0 *map)
{
	struct gpu *gpu = this_gpu();
	unsigned long i;

	KUNIT_EXPECT_TRUE(gpu->test, mutex_is_locked(&svmm->mutex));
	KUNIT_EXPECT_FALSE(gpu->test, gpu->mapped_block);
	gpu->maps++;
	if (gpu->map_err)
		return gpu->map_err;
	if (map->page != PAGE_SHIFT) {
		map_block(gpu, map);
		return 0;
	}
	for (i = 0; i < nouveau_svm_map_entries(map); i++) {
		unsigned long addr = map->addr + i * PAGE_SIZE;

		if (addr == gpu->refuse)
			map->phys[i] = 0;
		set_table(gpu, addr, map->phys[i]);
	}
	return 0;
}

/* Of a block that is mapped in one piece, the hardware clears all or nothing. */
static void gpu_clear(struct nouveau_svmm *svmm, unsigned long start,
		      unsigned long end)
{
	struct gpu *gpu = this_gpu();
	unsigned long i;

	KUNIT_EXPECT_TRUE(gpu->test, mutex_is_locked(&svmm->mutex));
	KUNIT_EXPECT_LT(gpu->test, start, end);
	gpu->clears++;
	if (gpu->mapped_block) {
		if (start > gpu->addr || end < gpu->addr + NOUVEAU_SVM_BLOCK)
			return;
		gpu->mapped_block = false;
	}
	for (i = 0; i < NR_PAGES; i++)
		if (addr_of(gpu, i) >= start && addr_of(gpu, i) < end)
			gpu->table[i] = 0;
}

static u64 gpu_place(struct page *page)
{
	struct gpu *gpu = this_gpu();

	if (gpu->nowhere)
		return 0;
	if (gpu->all_vram)
		return PFNMAP_VRAM | (VRAM_ADDR + page_to_phys(page));
	return page_to_phys(page);
}

static void say_one_piece(struct gpu *gpu, struct hmm_range *range)
{
	unsigned long first = (range->start - gpu->addr) >> PAGE_SHIFT;
	unsigned long i, nr = (range->end - range->start) >> PAGE_SHIFT;

	for (i = 0; i < nr; i++)
		range->hmm_pfns[i] = WRITABLE | IN_BLOCK |
				     (page_to_pfn(gpu->block) + first + i);
}

static int gpu_look(struct nouveau_svmm *svmm, struct hmm_range *range)
{
	struct gpu *gpu = this_gpu();
	int err;

	gpu->looks++;
	gpu->looks_there = range->start == gpu->look_at ? gpu->looks_there + 1 : 1;
	gpu->look_at = range->start;
	mmap_read_lock(svmm->mm);
	err = hmm_range_fault(range);
	mmap_read_unlock(svmm->mm);
	if (!gpu->order)
		gpu->order = hmm_pfn_to_map_order(range->hmm_pfns[0]);
	if (gpu->one_piece)
		say_one_piece(gpu, range);
	if (gpu->after_look)
		gpu->after_look(gpu);
	return err;
}

static int gpu_migrate(struct nouveau_svmm *svmm, unsigned long start,
		       unsigned long end, struct hmm_devmem_result *result)
{
	struct gpu *gpu = this_gpu();

	KUNIT_EXPECT_LE(gpu->test, end - start, NOUVEAU_SVM_BLOCK);
	if (gpu->migrate_err)
		return gpu->migrate_err;
	gpu->migrated += end - start;
	result->moved += (end - start) >> PAGE_SHIFT;
	return 0;
}

static void replace_leaves(struct kunit *test)
{
	kunit_activate_static_stub(test, nouveau_svm_hw_replay, gpu_replay);
	kunit_activate_static_stub(test, nouveau_svm_hw_cancel, gpu_cancel);
	kunit_activate_static_stub(test, nouveau_svm_hw_map, gpu_map);
	kunit_activate_static_stub(test, nouveau_svm_hw_clear, gpu_clear);
	kunit_activate_static_stub(test, nouveau_svm_place, gpu_place);
	kunit_activate_static_stub(test, nouveau_svm_look, gpu_look);
	kunit_activate_static_stub(test, nouveau_svm_migrate, gpu_migrate);
}

/* The access as the hardware spells it. */
static u32 code_of(enum nouveau_svm_access access)
{
	static const u32 codes[] = {
		[NOUVEAU_SVM_READ]	= 0,
		[NOUVEAU_SVM_WRITE]	= 1,
		[NOUVEAU_SVM_ATOMIC]	= 2,
		[NOUVEAU_SVM_PREFETCH]	= 3,
	};

	return codes[access];
}

/* The GPU stops at an address. */
static void raise_at(struct gpu *gpu, unsigned long addr, enum nouveau_svm_access access)
{
	u32 *words = gpu->ring[gpu->put];

	words[0] = lower_32_bits(INST);
	words[1] = upper_32_bits(INST);
	words[2] = lower_32_bits(addr);
	words[3] = upper_32_bits(addr);
	words[NOUVEAU_SVM_ENTRY_INFO] = NOUVEAU_SVM_INFO_VALID | code_of(access) << 16;
	gpu->put = (gpu->put + 1) % NR_ENTRIES;
}

static void raise(struct gpu *gpu, unsigned long i, enum nouveau_svm_access access)
{
	raise_at(gpu, addr_of(gpu, i), access);
}

static void handle(struct gpu *gpu)
{
	nouveau_svm_handle_faults(gpu->svm);
	KUNIT_EXPECT_EQ(gpu->test, gpu->get, gpu->put);
}

static void suspend(struct gpu *gpu)
{
	gpu->svm->drm->svm = gpu->svm;
	nouveau_svm_suspend(gpu->svm->drm);
}

static void expect_rights(struct gpu *gpu, unsigned long i, u64 rights)
{
	KUNIT_EXPECT_EQ_MSG(gpu->test, gpu->table[i] & ~PFNMAP_ADDR, rights,
			    "page %lu", i);
	KUNIT_EXPECT_EQ(gpu->test, !!(gpu->table[i] & PFNMAP_ADDR), !!rights);
}

static struct page *mapped_page(struct gpu *gpu, unsigned long i)
{
	u64 addr = gpu->table[i] & PFNMAP_ADDR;

	KUNIT_ASSERT_NE(gpu->test, addr, 0);
	if (gpu->table[i] & PFNMAP_VRAM)
		addr -= VRAM_ADDR;
	return pfn_to_page(PHYS_PFN(addr));
}

static void expect_answered(struct gpu *gpu, unsigned int replays, unsigned int cancels)
{
	KUNIT_EXPECT_EQ(gpu->test, gpu->replays, replays);
	KUNIT_EXPECT_EQ(gpu->test, gpu->cancels, cancels);
}

/* --- The process ------------------------------------------------------------ */

static unsigned long __user *user_word(struct gpu *gpu, unsigned long i)
{
	return (unsigned long __user *)addr_of(gpu, i);
}

static void touch(struct gpu *gpu, unsigned long i)
{
	KUNIT_ASSERT_EQ(gpu->test, put_user(~i, user_word(gpu, i)), 0);
}

static unsigned long read_back(struct gpu *gpu, unsigned long i)
{
	unsigned long word;

	KUNIT_ASSERT_EQ(gpu->test, get_user(word, user_word(gpu, i)), 0);
	return word;
}

static void unmap(struct gpu *gpu, unsigned long i, unsigned long nr)
{
	KUNIT_ASSERT_EQ(gpu->test, vm_munmap(addr_of(gpu, i), nr * PAGE_SIZE), 0);
}

/* NR_PAGES that begin with a block, and nothing behind: no THP fits in. */
static void map_pages(struct gpu *gpu)
{
	unsigned long size = 2 * NOUVEAU_SVM_BLOCK;
	unsigned long addr;

	addr = kunit_vm_mmap(gpu->test, NULL, 0, size, PROT_READ | PROT_WRITE,
			     MAP_ANONYMOUS | MAP_PRIVATE, 0);
	KUNIT_ASSERT_FALSE(gpu->test, !addr || IS_ERR_VALUE(addr));
	gpu->addr = ALIGN(addr, NOUVEAU_SVM_BLOCK);
	if (gpu->addr != addr)
		KUNIT_ASSERT_EQ(gpu->test, vm_munmap(addr, gpu->addr - addr), 0);
	unmap(gpu, NR_PAGES, (addr + size - addr_of(gpu, NR_PAGES)) >> PAGE_SHIFT);
}

/* All of a block, which the process may map in one piece. */
static void map_huge(struct gpu *gpu)
{
	unsigned long addr;
	struct vm_area_struct *vma;

	addr = kunit_vm_mmap(gpu->test, NULL, 0, 2 * NOUVEAU_SVM_BLOCK,
			     PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, 0);
	KUNIT_ASSERT_FALSE(gpu->test, !addr || IS_ERR_VALUE(addr));
	gpu->addr = ALIGN(addr, NOUVEAU_SVM_BLOCK);
	mmap_write_lock(current->mm);
	vma = find_vma(current->mm, gpu->addr);
	if (vma)
		vm_flags_set(vma, VM_HUGEPAGE);
	mmap_write_unlock(current->mm);
	KUNIT_ASSERT_NOT_NULL(gpu->test, vma);
}

static void map_readonly(struct gpu *gpu, unsigned long i)
{
	unsigned long addr;

	addr = vm_mmap(NULL, addr_of(gpu, i), PAGE_SIZE, PROT_READ,
		       MAP_ANONYMOUS | MAP_PRIVATE | MAP_FIXED, 0);
	KUNIT_ASSERT_EQ(gpu->test, addr, addr_of(gpu, i));
}

static void share(struct gpu *gpu, unsigned long hole)
{
	struct nouveau_svm_bounds bounds = {
		.hole_start	= addr_of(gpu, hole),
		.hole_end	= addr_of(gpu, hole + 1),
		.limit		= TASK_SIZE,
	};

	gpu->svmm = nouveau_svmm_new(gpu->svm, &gpu->vmm, current->mm, &bounds);
	KUNIT_ASSERT_FALSE(gpu->test, IS_ERR(gpu->svmm));
	KUNIT_ASSERT_EQ(gpu->test, nouveau_svmm_join(gpu->svmm, INST), 0);
}

static int svm_test_init(struct kunit *test)
{
	struct nouveau_drm *drm = kunit_kzalloc(test, sizeof(*drm), GFP_KERNEL);
	struct gpu *gpu = kunit_kzalloc(test, sizeof(*gpu), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, drm);
	KUNIT_ASSERT_NOT_NULL(test, gpu);
	gpu->test = test;
	test->priv = gpu;
	replace_leaves(test);
	gpu->svm = nouveau_svm_new(drm);
	KUNIT_ASSERT_NOT_NULL(test, gpu->svm);
	drm->client.device.object.map.ptr = (void __force __iomem *)gpu;
	gpu->svm->buffer.object.map.ptr = (void __force __iomem *)gpu->ring;
	gpu->svm->buffer.get_reg = GET_REG;
	gpu->svm->buffer.put_reg = PUT_REG;
	KUNIT_ASSERT_EQ(test, nouveau_svm_alloc_faults(gpu->svm, NR_ENTRIES), 0);
	return 0;
}

/* The process may end meanwhile: its last invalidation is as good as any. */
static void svm_test_exit(struct kunit *test)
{
	struct gpu *gpu = test->priv;

	if (!gpu)
		return;
	if (!IS_ERR_OR_NULL(gpu->svmm))
		nouveau_svmm_fini(&gpu->svmm);
	if (gpu->svm)
		nouveau_svm_put(gpu->svm);
	if (gpu->block)
		__free_pages(gpu->block, BLOCK_ORDER);
}

/* The hole is the page behind the last one. */
static struct gpu *sharing_gpu(struct kunit *test)
{
	map_pages(test->priv);
	share(test->priv, NR_PAGES);
	return test->priv;
}

/* --- Decisions -------------------------------------------------------------- */

static void decode_reads_all_fields(struct kunit *test)
{
	u32 words[NOUVEAU_SVM_ENTRY_WORDS] = {
		0x11111000, 0x22222222, 0x33333abc, 0x00004444,
		0x55555555, 0x66666666, 0x77777777,
		NOUVEAU_SVM_INFO_VALID | 0x1a << 24 | 1 << 20 | 2 << 16 | 0x5b << 8 | 0x1f,
	};
	struct nouveau_svm_fault fault;

	KUNIT_ASSERT_TRUE(test, nouveau_svm_decode(words, &fault));
	KUNIT_EXPECT_EQ(test, fault.inst, 0x2222222211111000ULL);
	KUNIT_EXPECT_EQ(test, fault.addr, 0x0000444433333000ULL);
	KUNIT_EXPECT_EQ(test, fault.access, NOUVEAU_SVM_ATOMIC);
	KUNIT_EXPECT_EQ(test, fault.gpc, 0x1a);
	KUNIT_EXPECT_EQ(test, fault.hub, 1);
	KUNIT_EXPECT_EQ(test, fault.client, 0x5b);
}

static void decode_refuses_what_is_not_valid(struct kunit *test)
{
	u32 words[NOUVEAU_SVM_ENTRY_WORDS] = { [0 ... 6] = ~0U, [7] = 0x7fffffff };
	struct nouveau_svm_fault fault = { .addr = 1 };

	KUNIT_EXPECT_FALSE(test, nouveau_svm_decode(words, &fault));
	KUNIT_EXPECT_EQ(test, fault.addr, 1ULL);
}

static void decode_knows_each_access(struct kunit *test)
{
	static const enum nouveau_svm_access want[16] = {
		[0] = NOUVEAU_SVM_READ,
		[1] = NOUVEAU_SVM_WRITE,
		[2] = NOUVEAU_SVM_ATOMIC,
		[3] = NOUVEAU_SVM_PREFETCH,
		[4 ... 15] = NOUVEAU_SVM_WRITE,	/* that we do not know */
	};
	u32 words[NOUVEAU_SVM_ENTRY_WORDS] = { };
	struct nouveau_svm_fault fault;
	u32 code;

	for (code = 0; code < ARRAY_SIZE(want); code++) {
		words[NOUVEAU_SVM_ENTRY_INFO] = NOUVEAU_SVM_INFO_VALID | code << 16;
		KUNIT_ASSERT_TRUE(test, nouveau_svm_decode(words, &fault));
		KUNIT_EXPECT_EQ_MSG(test, fault.access, want[code], "code %u", code);
	}
}

/* Each of these is less than the next one. */
static const struct nouveau_svm_fault in_order[] = {
	{ .inst = 1, .addr = 0x1000, .access = NOUVEAU_SVM_ATOMIC },
	{ .inst = 1, .addr = 0x1000, .access = NOUVEAU_SVM_WRITE },
	{ .inst = 1, .addr = 0x1000, .access = NOUVEAU_SVM_READ },
	{ .inst = 1, .addr = 0x1000, .access = NOUVEAU_SVM_PREFETCH },
	{ .inst = 1, .addr = 0x2000, .access = NOUVEAU_SVM_READ },
	{ .inst = 1, .addr = 0x80001000, .access = NOUVEAU_SVM_READ },
	{ .inst = 1, .addr = 0x100001000, .access = NOUVEAU_SVM_READ },
	{ .inst = 1, .addr = 0x8000000000001000, .access = NOUVEAU_SVM_READ },
	{ .inst = 2, .addr = 0x1000, .access = NOUVEAU_SVM_ATOMIC },
	{ .inst = 0x100000001, .addr = 0, .access = NOUVEAU_SVM_READ },
	{ .inst = 0x8000000000000001, .addr = 0, .access = NOUVEAU_SVM_READ },
};

static void compare_is_an_order(struct kunit *test)
{
	int i, j, order;

	for (i = 0; i < ARRAY_SIZE(in_order); i++) {
		for (j = 0; j < ARRAY_SIZE(in_order); j++) {
			order = nouveau_svm_compare(&in_order[i], &in_order[j]);
			KUNIT_EXPECT_EQ_MSG(test, order < 0, i < j, "%d %d", i, j);
			KUNIT_EXPECT_EQ_MSG(test, order > 0, i > j, "%d %d", i, j);
		}
	}
}

#define BASE	NOUVEAU_SVM_BLOCK

struct coalesce_case {
	const char *name;
	struct nouveau_svm_fault faults[4];
	unsigned int nr;
	unsigned long max_pages;
	unsigned int taken;
	unsigned long pages;
	enum nouveau_svm_access access;
};

#define F(_inst, _page, _access) \
	{ .inst = (_inst), .addr = BASE + (_page) * PAGE_SIZE, \
	  .access = NOUVEAU_SVM_##_access }

static const struct coalesce_case coalesce_cases[] = {
	{ "one", { F(1, 0, READ) }, 1, 8, 1, 1, NOUVEAU_SVM_READ },
	{ "neighbours", { F(1, 0, READ), F(1, 1, READ), F(1, 2, READ) }, 3, 8,
	  3, 3, NOUVEAU_SVM_READ },
	{ "a gap ends it", { F(1, 0, READ), F(1, 2, READ) }, 2, 8, 1, 1,
	  NOUVEAU_SVM_READ },
	{ "another access ends it", { F(1, 0, READ), F(1, 1, WRITE) }, 2, 8, 1, 1,
	  NOUVEAU_SVM_READ },
	{ "another channel ends it", { F(1, 0, READ), F(2, 1, READ) }, 2, 8, 1, 1,
	  NOUVEAU_SVM_READ },
	{ "the same again is dropped", { F(1, 0, READ), F(1, 0, READ), F(1, 1, READ) },
	  3, 8, 3, 2, NOUVEAU_SVM_READ },
	{ "less is dropped", { F(1, 0, WRITE), F(1, 0, READ), F(1, 1, WRITE),
	  F(1, 1, PREFETCH) }, 4, 8, 4, 2, NOUVEAU_SVM_WRITE },
	{ "no more than so many", { F(1, 0, READ), F(1, 1, READ), F(1, 2, READ) },
	  3, 2, 2, 2, NOUVEAU_SVM_READ },
	{ "atomic goes alone", { F(1, 0, ATOMIC), F(1, 0, WRITE), F(1, 1, ATOMIC) },
	  3, 8, 2, 1, NOUVEAU_SVM_ATOMIC },
	{ "not across a block", { F(1, NOUVEAU_SVM_BLOCK_PAGES - 1, READ),
	  F(1, NOUVEAU_SVM_BLOCK_PAGES, READ) }, 2, 8, 1, 1, NOUVEAU_SVM_READ },
};

KUNIT_ARRAY_PARAM_DESC(coalesce, coalesce_cases, name);

static void coalesce_follows_table(struct kunit *test)
{
	const struct coalesce_case *c = test->param_value;
	struct nouveau_svm_window window;

	KUNIT_EXPECT_EQ(test, nouveau_svm_coalesce(c->faults, c->nr, c->max_pages,
						   &window), c->taken);
	KUNIT_EXPECT_EQ(test, window.start, c->faults[0].addr);
	KUNIT_EXPECT_EQ(test, window.end - window.start, c->pages * PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, window.access, c->access);
}

static void covers_needs_pages_and_access(struct kunit *test)
{
	struct nouveau_svm_window done = { 0x1000, 0x4000, NOUVEAU_SVM_WRITE };
	struct nouveau_svm_window none = { };
	struct nouveau_svm_window window = { 0x2000, 0x3000, NOUVEAU_SVM_READ };

	KUNIT_EXPECT_TRUE(test, nouveau_svm_covers(&done, &window));
	KUNIT_EXPECT_FALSE(test, nouveau_svm_covers(&none, &window));
	window.access = NOUVEAU_SVM_ATOMIC;
	KUNIT_EXPECT_FALSE(test, nouveau_svm_covers(&done, &window));
	window.access = NOUVEAU_SVM_WRITE;
	window.end = 0x5000;
	KUNIT_EXPECT_FALSE(test, nouveau_svm_covers(&done, &window));
	window = (struct nouveau_svm_window) { 0, 0x2000, NOUVEAU_SVM_READ };
	KUNIT_EXPECT_FALSE(test, nouveau_svm_covers(&done, &window));
}

static const struct nouveau_svm_bounds some_bounds = { 0x4000, 0x8000, 0x10000 };
static const struct nouveau_svm_bounds no_hole = { .limit = 0x10000 };

struct range_case {
	const char *name;
	unsigned long start;
	unsigned long end;
	unsigned int nr;
	struct nouveau_svm_window pieces[2];
};

static const struct range_case range_cases[] = {
	{ "before the hole", 0x1000, 0x4000, 1, { { 0x1000, 0x4000 } } },
	{ "behind the hole", 0x8000, 0x9000, 1, { { 0x8000, 0x9000 } } },
	{ "into the hole", 0x1000, 0x6000, 1, { { 0x1000, 0x4000 } } },
	{ "out of the hole", 0x6000, 0x9000, 1, { { 0x8000, 0x9000 } } },
	{ "the hole", 0x4000, 0x8000, 0 },
	{ "in the hole", 0x5000, 0x6000, 0 },
	{ "around the hole", 0x1000, 0x9000, 2, { { 0x1000, 0x4000 }, { 0x8000, 0x9000 } } },
	{ "beyond the limit", 0xf000, 0x11000, 1, { { 0xf000, 0x10000 } } },
	{ "behind the limit", 0x10000, 0x11000, 0 },
	{ "everything", 0, ULONG_MAX, 2, { { 0, 0x4000 }, { 0x8000, 0x10000 } } },
	{ "nothing", 0x1000, 0x1000, 0 },
};

KUNIT_ARRAY_PARAM_DESC(range, range_cases, name);

static void pieces_leave_the_hole_out(struct kunit *test)
{
	const struct range_case *c = test->param_value;
	struct nouveau_svm_window pieces[2];
	unsigned int i, nr;
	bool whole;

	nr = nouveau_svm_pieces(&some_bounds, c->start, c->end, pieces);
	KUNIT_ASSERT_EQ(test, nr, c->nr);
	for (i = 0; i < nr; i++) {
		KUNIT_EXPECT_EQ(test, pieces[i].start, c->pieces[i].start);
		KUNIT_EXPECT_EQ(test, pieces[i].end, c->pieces[i].end);
	}
	whole = nr == 1 && pieces[0].start == c->start && pieces[0].end == c->end;
	KUNIT_EXPECT_EQ(test, nouveau_svm_shared(&some_bounds, c->start, c->end), whole);
}

static void no_hole_is_no_hole(struct kunit *test)
{
	struct nouveau_svm_window pieces[2];

	KUNIT_EXPECT_TRUE(test, nouveau_svm_shared(&no_hole, 0, 0x10000));
	KUNIT_ASSERT_EQ(test, nouveau_svm_pieces(&no_hole, 0, ULONG_MAX, pieces), 1);
	KUNIT_EXPECT_EQ(test, pieces[0].start, 0);
	KUNIT_EXPECT_EQ(test, pieces[0].end, 0x10000);
}

static void request_asks_for_access(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, nouveau_svm_request(NOUVEAU_SVM_PREFETCH), 0);
	KUNIT_EXPECT_EQ(test, nouveau_svm_request(NOUVEAU_SVM_READ), HMM_PFN_REQ_FAULT);
	KUNIT_EXPECT_EQ(test, nouveau_svm_request(NOUVEAU_SVM_WRITE),
			HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE);
	KUNIT_EXPECT_EQ(test, nouveau_svm_request(NOUVEAU_SVM_ATOMIC),
			HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE);
}

static void pte_has_rights_and_place(struct kunit *test)
{
	struct gpu *gpu = test->priv;

	KUNIT_EXPECT_EQ(test, nouveau_svm_pte(0), 0);
	KUNIT_EXPECT_EQ(test, nouveau_svm_pte(HMM_PFN_ERROR), 0);
	KUNIT_EXPECT_EQ(test, nouveau_svm_pte(READABLE | 0x123), 0x123000 | PFNMAP_V);
	KUNIT_EXPECT_EQ(test, nouveau_svm_pte(WRITABLE | 0x123),
			0x123000 | PFNMAP_V | PFNMAP_W);
	gpu->all_vram = true;
	KUNIT_EXPECT_EQ(test, nouveau_svm_pte(READABLE | 0x123),
			(VRAM_ADDR + 0x123000) | PFNMAP_VRAM | PFNMAP_V);
	KUNIT_EXPECT_EQ(test, nouveau_svm_pte(WRITABLE | 0x123),
			(VRAM_ADDR + 0x123000) | PFNMAP_VRAM | PFNMAP_V | PFNMAP_W |
			PFNMAP_A);
	gpu->nowhere = true;
	KUNIT_EXPECT_EQ(test, nouveau_svm_pte(WRITABLE | 0x123), 0);
}

static struct nvif_vmm_pfnmap_v0 *alloc_map(struct kunit *test)
{
	struct nvif_vmm_pfnmap_v0 *map;

	map = kunit_kzalloc(test, struct_size(map, phys, 4), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, map);
	return map;
}

static void encode_maps_pages(struct kunit *test)
{
	struct nouveau_svm_window window = { 0x1000, 0x4000, NOUVEAU_SVM_READ };
	unsigned long words[] = { READABLE | 5, 0, WRITABLE | 9 };
	struct nvif_vmm_pfnmap_v0 *map = alloc_map(test);

	KUNIT_EXPECT_FALSE(test, nouveau_svm_encode_block(&no_hole, &window, words[0], map));
	nouveau_svm_encode_pages(&window, words, map);
	KUNIT_EXPECT_EQ(test, map->addr, 0x1000);
	KUNIT_EXPECT_EQ(test, map->size, 0x3000);
	KUNIT_EXPECT_EQ(test, map->page, PAGE_SHIFT);
	KUNIT_EXPECT_EQ(test, nouveau_svm_map_entries(map), 3);
	KUNIT_EXPECT_EQ(test, map->phys[0], 0x5000 | PFNMAP_V);
	KUNIT_EXPECT_EQ(test, map->phys[1], 0);
	KUNIT_EXPECT_EQ(test, map->phys[2], 0x9000 | PFNMAP_V | PFNMAP_W);
	KUNIT_EXPECT_EQ(test, nouveau_svm_granted(map), NOUVEAU_SVM_PREFETCH);
}

/* A window of the third page of a block. */
static bool encode_block(struct kunit *test, const struct nouveau_svm_bounds *bounds,
			 unsigned long word)
{
	unsigned long start = BASE + 2 * PAGE_SIZE;
	struct nouveau_svm_window window = { start, start + PAGE_SIZE };
	struct nvif_vmm_pfnmap_v0 *map = alloc_map(test);

	if (!nouveau_svm_encode_block(bounds, &window, word, map))
		return false;
	KUNIT_EXPECT_EQ(test, map->page, NOUVEAU_SVM_BLOCK_SHIFT);
	KUNIT_EXPECT_EQ(test, nouveau_svm_map_entries(map), 1);
	KUNIT_EXPECT_EQ(test, map->addr, BASE);
	KUNIT_EXPECT_EQ(test, map->phys[0] & PFNMAP_ADDR,
			ALIGN_DOWN(PFN_PHYS(word & ~HMM_PFN_FLAGS), NOUVEAU_SVM_BLOCK));
	KUNIT_EXPECT_EQ(test, nouveau_svm_granted(map), NOUVEAU_SVM_WRITE);
	return true;
}

static void encode_maps_blocks(struct kunit *test)
{
	struct nouveau_svm_bounds wide = { .limit = TASK_SIZE };
	struct nouveau_svm_bounds low = { .limit = BASE + 8 * PAGE_SIZE };
	struct nouveau_svm_bounds hole = { BASE, BASE + PAGE_SIZE, TASK_SIZE };
	unsigned long pfn = 7 * NOUVEAU_SVM_BLOCK_PAGES + 2;

	KUNIT_EXPECT_TRUE(test, encode_block(test, &wide, WRITABLE | IN_BLOCK | pfn));
	/* Larger than a block: the block of it. */
	KUNIT_EXPECT_TRUE(test, encode_block(test, &wide, WRITABLE | pfn |
					     18UL << HMM_PFN_ORDER_SHIFT));
	/* Smaller, not all of it shared, not where a block begins, not there. */
	KUNIT_EXPECT_FALSE(test, encode_block(test, &wide, WRITABLE | pfn |
					      8UL << HMM_PFN_ORDER_SHIFT));
	KUNIT_EXPECT_FALSE(test, encode_block(test, &low, WRITABLE | IN_BLOCK | pfn));
	KUNIT_EXPECT_FALSE(test, encode_block(test, &hole, WRITABLE | IN_BLOCK | pfn));
	KUNIT_EXPECT_FALSE(test, encode_block(test, &wide, WRITABLE | IN_BLOCK | (pfn + 1)));
	KUNIT_EXPECT_FALSE(test, encode_block(test, &wide, 0));
}

static void granted_is_the_least(struct kunit *test)
{
	struct nvif_vmm_pfnmap_v0 *map = alloc_map(test);

	map->page = PAGE_SHIFT;
	map->size = 2 * PAGE_SIZE;
	map->phys[0] = PFNMAP_V | PFNMAP_W | PFNMAP_A;
	map->phys[1] = PFNMAP_V | PFNMAP_W | PFNMAP_A;
	KUNIT_EXPECT_EQ(test, nouveau_svm_granted(map), NOUVEAU_SVM_ATOMIC);
	map->phys[1] = PFNMAP_V | PFNMAP_W;
	KUNIT_EXPECT_EQ(test, nouveau_svm_granted(map), NOUVEAU_SVM_WRITE);
	map->phys[1] = PFNMAP_V;
	KUNIT_EXPECT_EQ(test, nouveau_svm_granted(map), NOUVEAU_SVM_READ);
	map->phys[1] = 0;
	KUNIT_EXPECT_EQ(test, nouveau_svm_granted(map), NOUVEAU_SVM_PREFETCH);
}

static void pending_wraps(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, nouveau_svm_pending(0, 0, 8), 0);
	KUNIT_EXPECT_EQ(test, nouveau_svm_pending(2, 7, 8), 5);
	KUNIT_EXPECT_EQ(test, nouveau_svm_pending(7, 0, 8), 1);
	KUNIT_EXPECT_EQ(test, nouveau_svm_pending(7, 6, 8), 7);
	KUNIT_EXPECT_EQ(test, nouveau_svm_pending(8, 0, 8), -EIO);
	KUNIT_EXPECT_EQ(test, nouveau_svm_pending(~0U, ~0U, 8), -EIO);
	KUNIT_EXPECT_EQ(test, nouveau_svm_pending(0, ~0U, 8), -EIO);
}

static void cancels_what_has_no_answer(struct kunit *test)
{
	static const int again[] = { 0, -EAGAIN, -EBUSY, -EINTR };
	static const int never[] = {
		-EFAULT, -EPERM, -ENOMEM, -EHWPOISON, -EINVAL, -EIO, -ENODEV,
		-ESRCH, -ESHUTDOWN, -EOPNOTSUPP,
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(again); i++)
		KUNIT_EXPECT_FALSE(test, nouveau_svm_cancels(NOUVEAU_SVM_WRITE, again[i]));
	for (i = 0; i < ARRAY_SIZE(never); i++) {
		KUNIT_EXPECT_TRUE(test, nouveau_svm_cancels(NOUVEAU_SVM_READ, never[i]));
		KUNIT_EXPECT_FALSE(test, nouveau_svm_cancels(NOUVEAU_SVM_PREFETCH, never[i]));
	}
}

#define TO_VRAM	(NOUVEAU_SVM_BIND_TARGET__GPU_VRAM << NOUVEAU_SVM_BIND_TARGET_SHIFT)

struct bind_case {
	const char *name;
	struct drm_nouveau_svm_bind args;
	int err;
	unsigned long start;
	unsigned long end;
};

static const struct bind_case bind_cases[] = {
	{ "a range", { .header = TO_VRAM, .va_start = 0x1000, .va_end = 0x3000 }, 0,
	  0x1000, 0x3000 },
	{ "bytes", { .header = TO_VRAM, .va_start = 0x1fff, .va_end = 0x2001 }, 0,
	  0x1000, 0x3000 },
	{ "a priority", { .header = TO_VRAM | 0xff00, .va_start = 0, .va_end = 1 }, 0,
	  0, 0x1000 },
	{ "its pages", { .header = TO_VRAM, .va_end = 0x2000, .npages = 2 }, 0, 0, 0x2000 },
	{ "more pages", { .header = TO_VRAM, .va_end = 0x2000, .npages = 3 }, -EINVAL },
	{ "the last page", { .header = TO_VRAM, .va_start = 0xf000, .va_end = 0x10000 }, 0,
	  0xf000, 0x10000 },
	{ "beyond", { .header = TO_VRAM, .va_start = 0xf000, .va_end = 0x10001 }, -EINVAL },
	{ "empty", { .header = TO_VRAM, .va_start = 0x1000, .va_end = 0x1000 }, -EINVAL },
	{ "backwards", { .header = TO_VRAM, .va_start = 0x2000, .va_end = 0x1000 }, -EINVAL },
	{ "wraps", { .header = TO_VRAM, .va_start = 0x1000, .va_end = U64_MAX }, -EINVAL },
	{ "other command", { .header = TO_VRAM | 1, .va_end = 0x1000 }, -EINVAL },
	{ "other target", { .header = 0, .va_end = 0x1000 }, -EINVAL },
	{ "stray bits", { .header = TO_VRAM | 1ULL << 48, .va_end = 0x1000 }, -EINVAL },
	{ "a stride", { .header = TO_VRAM, .va_end = 0x1000, .stride = 1 }, -EINVAL },
	{ "reserved0", { .header = TO_VRAM, .va_end = 0x1000, .reserved0 = 1 }, -EINVAL },
	{ "reserved1", { .header = TO_VRAM, .va_end = 0x1000, .reserved1 = 1 }, -EINVAL },
};

KUNIT_ARRAY_PARAM_DESC(bind, bind_cases, name);

static void bind_follows_table(struct kunit *test)
{
	const struct bind_case *c = test->param_value;
	unsigned long start = 0, end = 0;

	KUNIT_ASSERT_EQ(test, nouveau_svm_check_bind(&c->args, 0x10000, &start, &end),
			c->err);
	if (c->err)
		return;
	KUNIT_EXPECT_EQ(test, start, c->start);
	KUNIT_EXPECT_EQ(test, end, c->end);
}

/* --- Faults ----------------------------------------------------------------- */

static void read_fault_maps(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	raise(gpu, 3, NOUVEAU_SVM_READ);
	handle(gpu);
	expect_rights(gpu, 3, PFNMAP_V);
	expect_rights(gpu, 2, 0);
	expect_rights(gpu, 4, 0);
	expect_answered(gpu, 1, 0);
}

static void write_fault_maps_writable(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	raise(gpu, 3, NOUVEAU_SVM_WRITE);
	handle(gpu);
	expect_rights(gpu, 3, PFNMAP_V | PFNMAP_W);
	expect_answered(gpu, 1, 0);
}

static void write_after_read_maps_again(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	raise(gpu, 3, NOUVEAU_SVM_READ);
	handle(gpu);
	raise(gpu, 3, NOUVEAU_SVM_WRITE);
	handle(gpu);
	expect_rights(gpu, 3, PFNMAP_V | PFNMAP_W);
	expect_answered(gpu, 2, 0);
}

static void atomic_fault_takes_the_page(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	touch(gpu, 3);
	raise(gpu, 3, NOUVEAU_SVM_ATOMIC);
	handle(gpu);
	expect_rights(gpu, 3, PFNMAP_V | PFNMAP_W | PFNMAP_A);
	expect_answered(gpu, 1, 0);

	/* And the CPU takes it back. */
	KUNIT_EXPECT_EQ(test, read_back(gpu, 3), ~3UL);
	expect_rights(gpu, 3, 0);
}

/* As after a fork, the page is to be copied first. */
static void atomic_fault_copies_first(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	KUNIT_ASSERT_EQ(test, read_back(gpu, 3), 0);
	raise(gpu, 3, NOUVEAU_SVM_ATOMIC);
	handle(gpu);
	expect_rights(gpu, 3, PFNMAP_V | PFNMAP_W | PFNMAP_A);
	expect_answered(gpu, 1, 0);
	KUNIT_EXPECT_FALSE(test, is_zero_pfn(page_to_pfn(mapped_page(gpu, 3))));
}

/* The block is no longer mapped in one piece then, which is an invalidation. */
static void atomic_fault_takes_part_of_a_block(struct kunit *test)
{
	struct gpu *gpu = test->priv;

	map_huge(gpu);
	share(gpu, NOUVEAU_SVM_BLOCK_PAGES);
	touch(gpu, 3);
	touch(gpu, 4);
	raise(gpu, 3, NOUVEAU_SVM_ATOMIC);
	handle(gpu);
	KUNIT_EXPECT_GE(test, gpu->order, BLOCK_ORDER);
	expect_rights(gpu, 3, PFNMAP_V | PFNMAP_W | PFNMAP_A);
	expect_answered(gpu, 1, 0);
	KUNIT_EXPECT_EQ(test, read_back(gpu, 4), ~4UL);
	expect_rights(gpu, 3, PFNMAP_V | PFNMAP_W | PFNMAP_A);
	KUNIT_EXPECT_EQ(test, read_back(gpu, 3), ~3UL);
	expect_rights(gpu, 3, 0);
}

/* It is not mapped any more, but still out of reach for the CPUs. */
static void atomic_fault_takes_the_page_again(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);
	int i;

	touch(gpu, 3);
	for (i = 1; i < 4; i++) {
		raise(gpu, 3, NOUVEAU_SVM_ATOMIC);
		handle(gpu);
		expect_rights(gpu, 3, PFNMAP_V | PFNMAP_W | PFNMAP_A);
		expect_answered(gpu, i, 0);
		suspend(gpu);
		expect_rights(gpu, 3, 0);
	}
	KUNIT_EXPECT_EQ(test, read_back(gpu, 3), ~3UL);
}

static void atomic_lasts_for_one_fault(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	raise(gpu, 3, NOUVEAU_SVM_ATOMIC);
	raise(gpu, 4, NOUVEAU_SVM_READ);
	raise(gpu, 5, NOUVEAU_SVM_WRITE);
	handle(gpu);
	expect_rights(gpu, 3, PFNMAP_V | PFNMAP_W | PFNMAP_A);
	expect_rights(gpu, 4, PFNMAP_V);
	expect_rights(gpu, 5, PFNMAP_V | PFNMAP_W);
	expect_answered(gpu, 1, 0);
}

static void atomic_in_vram_leaves_the_page(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	touch(gpu, 3);
	gpu->all_vram = true;
	raise(gpu, 3, NOUVEAU_SVM_ATOMIC);
	handle(gpu);
	expect_rights(gpu, 3, PFNMAP_V | PFNMAP_W | PFNMAP_A | PFNMAP_VRAM);
	expect_answered(gpu, 1, 0);
	/* No CPU was shut out. */
	KUNIT_EXPECT_EQ(test, read_back(gpu, 3), ~3UL);
	expect_rights(gpu, 3, PFNMAP_V | PFNMAP_W | PFNMAP_A | PFNMAP_VRAM);
}

static void prefetch_takes_what_is_there(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	touch(gpu, 3);
	raise(gpu, 3, NOUVEAU_SVM_PREFETCH);
	raise(gpu, 4, NOUVEAU_SVM_PREFETCH);
	raise(gpu, NR_PAGES + 5, NOUVEAU_SVM_PREFETCH);
	handle(gpu);
	expect_rights(gpu, 3, PFNMAP_V | PFNMAP_W);
	expect_rights(gpu, 4, 0);
	expect_answered(gpu, 1, 0);
}

static void what_the_gpu_writes_is_dirty(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	raise(gpu, 3, NOUVEAU_SVM_READ);
	raise(gpu, 4, NOUVEAU_SVM_WRITE);
	raise(gpu, 5, NOUVEAU_SVM_ATOMIC);
	handle(gpu);
	KUNIT_EXPECT_FALSE(test, PageDirty(mapped_page(gpu, 3)));
	KUNIT_EXPECT_TRUE(test, PageDirty(mapped_page(gpu, 4)));
	KUNIT_EXPECT_TRUE(test, PageDirty(mapped_page(gpu, 5)));

	/* A page that comes back from VRAM is dirty as a matter of course. */
	gpu->all_vram = true;
	raise(gpu, 6, NOUVEAU_SVM_WRITE);
	handle(gpu);
	expect_rights(gpu, 6, PFNMAP_V | PFNMAP_W | PFNMAP_A | PFNMAP_VRAM);
	KUNIT_EXPECT_FALSE(test, PageDirty(mapped_page(gpu, 6)));
}

static void page_without_vram_is_cancelled(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	gpu->nowhere = true;
	raise(gpu, 3, NOUVEAU_SVM_WRITE);
	handle(gpu);
	KUNIT_EXPECT_EQ(test, gpu->maps, 0);
	expect_answered(gpu, 0, 1);
	KUNIT_EXPECT_EQ(test, gpu->cancelled, addr_of(gpu, 3));
}

static void unmapped_address_is_cancelled(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	unmap(gpu, 3, 1);
	raise(gpu, 3, NOUVEAU_SVM_READ);
	handle(gpu);
	expect_answered(gpu, 0, 1);
	raise(gpu, 3, NOUVEAU_SVM_ATOMIC);
	handle(gpu);
	expect_answered(gpu, 0, 2);
	KUNIT_EXPECT_EQ(test, gpu->cancelled, addr_of(gpu, 3));
	KUNIT_EXPECT_EQ(test, gpu->maps, 0);
}

static void write_to_readonly_is_cancelled(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	map_readonly(gpu, 3);
	raise(gpu, 3, NOUVEAU_SVM_WRITE);
	handle(gpu);
	expect_answered(gpu, 0, 1);
	raise(gpu, 3, NOUVEAU_SVM_ATOMIC);
	handle(gpu);
	expect_answered(gpu, 0, 2);
	raise(gpu, 3, NOUVEAU_SVM_READ);
	handle(gpu);
	expect_answered(gpu, 1, 2);
	expect_rights(gpu, 3, PFNMAP_V);
}

/* The process has memory where the driver has its hole. */
static struct gpu *gpu_with_hole(struct kunit *test, unsigned long i)
{
	struct gpu *gpu = test->priv;

	map_pages(gpu);
	share(gpu, i);
	touch(gpu, i);
	return gpu;
}

static void hole_is_cancelled(struct kunit *test)
{
	struct gpu *gpu = gpu_with_hole(test, 5);
	unsigned long i;

	for (i = 4; i < 7; i++)
		raise(gpu, i, NOUVEAU_SVM_READ);
	handle(gpu);
	expect_rights(gpu, 4, PFNMAP_V);
	expect_rights(gpu, 5, 0);
	expect_rights(gpu, 6, PFNMAP_V);
	expect_answered(gpu, 1, 1);
	KUNIT_EXPECT_EQ(test, gpu->cancelled, addr_of(gpu, 5));
}

static void outside_the_process_is_cancelled(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	raise_at(gpu, TASK_SIZE, NOUVEAU_SVM_READ);
	raise_at(gpu, PAGE_MASK, NOUVEAU_SVM_WRITE);
	handle(gpu);
	expect_answered(gpu, 0, 2);
	KUNIT_EXPECT_EQ(test, gpu->looks, 0);
}

static void other_channel_is_cancelled(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	nouveau_svmm_part(gpu->svmm, INST + 1);
	raise(gpu, 3, NOUVEAU_SVM_READ);
	handle(gpu);
	expect_answered(gpu, 1, 0);
	nouveau_svmm_part(gpu->svmm, INST);
	raise(gpu, 3, NOUVEAU_SVM_READ);
	raise(gpu, 4, NOUVEAU_SVM_READ);
	handle(gpu);
	expect_answered(gpu, 1, 2);
}

static void many_faults_are_one_map(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);
	unsigned long i;

	for (i = 0; i < NR_PAGES; i++) {
		raise(gpu, i * 37 % NR_PAGES, NOUVEAU_SVM_WRITE);
		if (i % 2)
			raise(gpu, i, NOUVEAU_SVM_READ);
	}
	handle(gpu);
	for (i = 0; i < NR_PAGES; i++)
		expect_rights(gpu, i, PFNMAP_V | PFNMAP_W);
	KUNIT_EXPECT_EQ(test, gpu->maps, 1);
	KUNIT_EXPECT_EQ(test, gpu->looks, 1);
	expect_answered(gpu, 1, 0);
}

static void one_bad_page_spoils_no_other(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);
	unsigned long i;

	unmap(gpu, 3, 1);
	for (i = 0; i < 8; i++)
		raise(gpu, i, NOUVEAU_SVM_WRITE);
	handle(gpu);
	for (i = 0; i < 8; i++)
		expect_rights(gpu, i, i == 3 ? 0 : PFNMAP_V | PFNMAP_W);
	expect_answered(gpu, 1, 1);
	KUNIT_EXPECT_EQ(test, gpu->cancelled, addr_of(gpu, 3));
}

static void ring_wraps(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);
	unsigned long i;

	gpu->get = NR_ENTRIES - 2;
	gpu->put = NR_ENTRIES - 2;
	for (i = 0; i < 5; i++)
		raise(gpu, i, NOUVEAU_SVM_READ);
	KUNIT_ASSERT_EQ(test, gpu->put, 3);
	handle(gpu);
	for (i = 0; i < 5; i++)
		expect_rights(gpu, i, PFNMAP_V);
	/* Nothing is found a second time. */
	handle(gpu);
	expect_answered(gpu, 1, 0);
}

static void dead_gpu_has_no_faults(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	gpu->get = ~0U;
	gpu->put = ~0U;
	nouveau_svm_handle_faults(gpu->svm);
	expect_answered(gpu, 0, 0);
}

/* Those behind it wait, and nothing is read twice. */
static void entry_that_is_late_is_read_later(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	raise(gpu, 2, NOUVEAU_SVM_READ);
	raise(gpu, 3, NOUVEAU_SVM_READ);
	raise(gpu, 4, NOUVEAU_SVM_READ);
	gpu->ring[1][NOUVEAU_SVM_ENTRY_INFO] &= ~NOUVEAU_SVM_INFO_VALID;
	nouveau_svm_handle_faults(gpu->svm);
	KUNIT_EXPECT_EQ(test, gpu->get, 1);
	expect_rights(gpu, 2, PFNMAP_V);
	expect_rights(gpu, 4, 0);
	nouveau_svm_handle_faults(gpu->svm);
	KUNIT_EXPECT_EQ(test, gpu->get, 1);
	expect_answered(gpu, 2, 0);

	gpu->ring[1][NOUVEAU_SVM_ENTRY_INFO] |= NOUVEAU_SVM_INFO_VALID;
	handle(gpu);
	expect_rights(gpu, 3, PFNMAP_V);
	expect_rights(gpu, 4, PFNMAP_V);
	expect_answered(gpu, 3, 0);
}

static void refused_page_is_cancelled(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	gpu->refuse = addr_of(gpu, 3);
	raise(gpu, 3, NOUVEAU_SVM_READ);
	raise(gpu, 4, NOUVEAU_SVM_READ);
	handle(gpu);
	expect_rights(gpu, 4, PFNMAP_V);
	expect_answered(gpu, 1, 1);

	gpu->map_err = -EINVAL;
	raise(gpu, 5, NOUVEAU_SVM_READ);
	handle(gpu);
	expect_answered(gpu, 1, 2);
}

static struct gpu *block_gpu(struct kunit *test)
{
	struct gpu *gpu = test->priv;

	map_pages(gpu);
	share(gpu, NOUVEAU_SVM_BLOCK_PAGES);
	gpu->block = alloc_pages(GFP_KERNEL | __GFP_COMP, BLOCK_ORDER);
	KUNIT_ASSERT_NOT_NULL(test, gpu->block);
	gpu->one_piece = true;
	return gpu;
}

static void block_is_one_map(struct kunit *test)
{
	struct gpu *gpu = block_gpu(test);

	raise(gpu, 3, NOUVEAU_SVM_WRITE);
	raise(gpu, 9, NOUVEAU_SVM_READ);
	raise(gpu, 11, NOUVEAU_SVM_WRITE);
	handle(gpu);
	KUNIT_EXPECT_TRUE(test, gpu->mapped_block);
	KUNIT_EXPECT_EQ(test, gpu->maps, 1);
	KUNIT_EXPECT_TRUE(test, PageDirty(gpu->block));
	expect_rights(gpu, 5, PFNMAP_V | PFNMAP_W);
	expect_answered(gpu, 1, 0);
}

/* There may be bounce buffers, which are small. */
static void refused_block_is_mapped_by_pages(struct kunit *test)
{
	struct gpu *gpu = block_gpu(test);

	gpu->refuse_block = true;
	raise(gpu, 3, NOUVEAU_SVM_WRITE);
	raise(gpu, 4, NOUVEAU_SVM_WRITE);
	handle(gpu);
	KUNIT_EXPECT_EQ(test, gpu->maps, 2);
	expect_rights(gpu, 3, PFNMAP_V | PFNMAP_W);
	expect_rights(gpu, 4, PFNMAP_V | PFNMAP_W);
	expect_rights(gpu, 5, 0);
	raise(gpu, 5, NOUVEAU_SVM_PREFETCH);
	handle(gpu);
	expect_rights(gpu, 5, PFNMAP_V | PFNMAP_W);
	expect_answered(gpu, 2, 0);

	/* Page by page means that each is cleared alone. */
	gpu->one_piece = false;
	raise(gpu, 8, NOUVEAU_SVM_WRITE);
	raise(gpu, 9, NOUVEAU_SVM_WRITE);
	handle(gpu);
	unmap(gpu, 9, 1);
	expect_rights(gpu, 8, PFNMAP_V | PFNMAP_W);
	expect_rights(gpu, 9, 0);
}

/* --- Invalidation ----------------------------------------------------------- */

static void part_of_a_block_clears_it(struct kunit *test)
{
	struct gpu *gpu = block_gpu(test);

	raise(gpu, 3, NOUVEAU_SVM_WRITE);
	handle(gpu);
	KUNIT_ASSERT_TRUE(test, gpu->mapped_block);
	unmap(gpu, 9, 1);
	KUNIT_EXPECT_FALSE(test, gpu->mapped_block);
	expect_rights(gpu, 3, 0);

	/* And then it is pages again, and only they are cleared. */
	gpu->one_piece = false;
	raise(gpu, 3, NOUVEAU_SVM_WRITE);
	raise(gpu, 4, NOUVEAU_SVM_WRITE);
	handle(gpu);
	unmap(gpu, 4, 1);
	expect_rights(gpu, 3, PFNMAP_V | PFNMAP_W);
	expect_rights(gpu, 4, 0);
}

static void pages_replace_a_block(struct kunit *test)
{
	struct gpu *gpu = block_gpu(test);

	raise(gpu, 3, NOUVEAU_SVM_WRITE);
	handle(gpu);
	gpu->one_piece = false;
	raise(gpu, 3, NOUVEAU_SVM_ATOMIC);
	handle(gpu);
	KUNIT_EXPECT_FALSE(test, gpu->mapped_block);
	expect_rights(gpu, 3, PFNMAP_V | PFNMAP_W | PFNMAP_A);
	expect_rights(gpu, 4, 0);
	expect_answered(gpu, 2, 0);
}

static void invalidation_clears(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);
	unsigned long i;

	for (i = 0; i < 8; i++)
		raise(gpu, i, NOUVEAU_SVM_WRITE);
	handle(gpu);
	unmap(gpu, 2, 3);
	for (i = 0; i < 8; i++)
		expect_rights(gpu, i, i >= 2 && i < 5 ? 0 : PFNMAP_V | PFNMAP_W);
}

static void unmap_page_3(struct gpu *gpu)
{
	if (gpu->looks == 1)
		unmap(gpu, 3, 1);
}

static void stale_answer_is_not_mapped(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	gpu->after_look = unmap_page_3;
	raise(gpu, 3, NOUVEAU_SVM_WRITE);
	handle(gpu);
	KUNIT_EXPECT_EQ(test, gpu->looks, 2);
	KUNIT_EXPECT_EQ(test, gpu->maps, 0);
	expect_answered(gpu, 0, 1);
}

/* All of the block is watched, because all of it may be mapped. */
static void unmap_page_9(struct gpu *gpu)
{
	if (gpu->looks == 1)
		unmap(gpu, 9, 1);
}

static void change_in_the_block_is_noticed(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	gpu->after_look = unmap_page_9;
	raise(gpu, 3, NOUVEAU_SVM_WRITE);
	handle(gpu);
	KUNIT_EXPECT_EQ(test, gpu->looks, 2);
	expect_rights(gpu, 3, PFNMAP_V | PFNMAP_W);
	expect_answered(gpu, 1, 0);
}

static void invalidate_again(struct gpu *gpu)
{
	map_readonly(gpu, 9);
	unmap(gpu, 9, 1);
}

static void storm_ends_with_a_replay(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);
	unsigned long began = jiffies;

	gpu->after_look = invalidate_again;
	raise(gpu, 3, NOUVEAU_SVM_WRITE);
	handle(gpu);
	KUNIT_EXPECT_GT(test, gpu->looks, 1);
	KUNIT_EXPECT_EQ(test, gpu->maps, 0);
	KUNIT_EXPECT_TRUE(test, time_before(jiffies, began + 10 * HZ));
	expect_answered(gpu, 1, 0);
}

/* One who invalidates all the time does not keep the others waiting for long. */
static void storm_has_one_deadline(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);
	unsigned long began = jiffies, i;

	gpu->after_look = invalidate_again;
	for (i = 0; i < 8; i++)
		raise(gpu, 16 + 2 * i, NOUVEAU_SVM_WRITE);
	handle(gpu);
	KUNIT_EXPECT_TRUE(test, time_before(jiffies, began + 5 * HZ));
	KUNIT_EXPECT_EQ(test, gpu->look_at, addr_of(gpu, 30));
	KUNIT_EXPECT_EQ(test, gpu->looks_there, 1);
	KUNIT_EXPECT_EQ(test, gpu->maps, 0);
	expect_answered(gpu, 1, 0);
}

static void suspend_clears_everything(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);
	struct nouveau_svmm *other = gpu->svmm;

	raise(gpu, 3, NOUVEAU_SVM_WRITE);
	handle(gpu);
	nouveau_svmm_part(other, INST);
	share(gpu, NR_PAGES);
	raise(gpu, 4, NOUVEAU_SVM_READ);
	handle(gpu);
	gpu->clears = 0;
	suspend(gpu);
	/* What is before the hole, and what is behind it. */
	KUNIT_EXPECT_EQ(test, gpu->clears, 4);
	expect_rights(gpu, 3, 0);
	expect_rights(gpu, 4, 0);

	raise(gpu, 3, NOUVEAU_SVM_WRITE);
	handle(gpu);
	expect_rights(gpu, 3, PFNMAP_V | PFNMAP_W);
	nouveau_svmm_fini(&other);
	gpu->clears = 0;
	suspend(gpu);
	KUNIT_EXPECT_EQ(test, gpu->clears, 2);
}

static void end_svmm(struct gpu *gpu)
{
	if (gpu->svmm)
		nouveau_svmm_fini(&gpu->svmm);
}

static void end_under_the_handler(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	gpu->after_look = end_svmm;
	raise(gpu, 3, NOUVEAU_SVM_WRITE);
	handle(gpu);
	KUNIT_EXPECT_NULL(test, gpu->svmm);
	KUNIT_EXPECT_EQ(test, gpu->maps, 0);
	expect_answered(gpu, 0, 1);
}

static void end_clears(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);

	raise(gpu, 3, NOUVEAU_SVM_WRITE);
	handle(gpu);
	end_svmm(gpu);
	expect_rights(gpu, 3, 0);
	raise(gpu, 3, NOUVEAU_SVM_WRITE);
	handle(gpu);
	expect_answered(gpu, 1, 1);
}

/* Two address spaces of one process: each hears of the other's exclusive access. */
static void exclusive_shuts_out_the_other(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);
	struct nouveau_svmm *other = gpu->svmm;

	touch(gpu, 3);
	raise(gpu, 3, NOUVEAU_SVM_WRITE);
	handle(gpu);
	expect_rights(gpu, 3, PFNMAP_V | PFNMAP_W);
	nouveau_svmm_part(other, INST);

	share(gpu, NR_PAGES);
	gpu->clears = 0;
	raise(gpu, 3, NOUVEAU_SVM_ATOMIC);
	handle(gpu);
	expect_rights(gpu, 3, PFNMAP_V | PFNMAP_W | PFNMAP_A);
	/* Both mirrors, and once before it is mapped. */
	KUNIT_EXPECT_GE(test, gpu->clears, 3);
	nouveau_svmm_fini(&other);
}

/* --- SVM_BIND --------------------------------------------------------------- */

static int bind(struct gpu *gpu, unsigned long i, unsigned long nr,
		struct hmm_devmem_result *result)
{
	return nouveau_svmm_bind_range(gpu->svmm, addr_of(gpu, i),
				       addr_of(gpu, i + nr), result);
}

static void bind_moves_and_maps(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);
	struct hmm_devmem_result result = { };

	touch(gpu, 1);
	touch(gpu, 2);
	KUNIT_EXPECT_EQ(test, bind(gpu, 0, 4, &result), 0);
	KUNIT_EXPECT_EQ(test, result.moved, 4);
	KUNIT_EXPECT_EQ(test, gpu->migrated, 4 * PAGE_SIZE);
	expect_rights(gpu, 0, 0);
	expect_rights(gpu, 1, PFNMAP_V | PFNMAP_W);
	expect_rights(gpu, 2, PFNMAP_V | PFNMAP_W);
	expect_rights(gpu, 3, 0);
}

/* Of terabytes of nothing, too. */
static void bind_leaves_holes_out(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);
	struct hmm_devmem_result result = { };

	unmap(gpu, 4, 4);
	touch(gpu, 8);
	KUNIT_EXPECT_EQ(test, nouveau_svmm_bind_range(gpu->svmm, addr_of(gpu, 2),
						      TASK_SIZE, &result), 0);
	KUNIT_EXPECT_GE(test, gpu->migrated, (NR_PAGES - 6) * PAGE_SIZE);
	expect_rights(gpu, 8, PFNMAP_V | PFNMAP_W);
}

static void bind_maps_nothing_in_the_hole(struct kunit *test)
{
	struct gpu *gpu = gpu_with_hole(test, 5);
	struct hmm_devmem_result result = { };

	touch(gpu, 4);
	touch(gpu, 6);
	KUNIT_EXPECT_EQ(test, bind(gpu, 4, 3, &result), 0);
	expect_rights(gpu, 4, PFNMAP_V | PFNMAP_W);
	expect_rights(gpu, 5, 0);
	expect_rights(gpu, 6, PFNMAP_V | PFNMAP_W);
}

static void bind_tells_errors(struct kunit *test)
{
	struct gpu *gpu = sharing_gpu(test);
	struct hmm_devmem_result result = { };

	touch(gpu, 1);
	gpu->migrate_err = -ENODEV;
	KUNIT_EXPECT_EQ(test, bind(gpu, 0, 4, &result), -ENODEV);
	KUNIT_EXPECT_EQ(test, gpu->maps, 0);

	/* What cannot migrate is mapped where it is. */
	gpu->migrate_err = -EINVAL;
	KUNIT_EXPECT_EQ(test, bind(gpu, 0, 4, &result), 0);
	expect_rights(gpu, 1, PFNMAP_V | PFNMAP_W);
	KUNIT_EXPECT_EQ(test, result.moved, 0);
}

static struct kunit_case svm_cases[] = {
	KUNIT_CASE(decode_reads_all_fields),
	KUNIT_CASE(decode_refuses_what_is_not_valid),
	KUNIT_CASE(decode_knows_each_access),
	KUNIT_CASE(compare_is_an_order),
	KUNIT_CASE_PARAM(coalesce_follows_table, coalesce_gen_params),
	KUNIT_CASE(covers_needs_pages_and_access),
	KUNIT_CASE_PARAM(pieces_leave_the_hole_out, range_gen_params),
	KUNIT_CASE(no_hole_is_no_hole),
	KUNIT_CASE(request_asks_for_access),
	KUNIT_CASE(pte_has_rights_and_place),
	KUNIT_CASE(encode_maps_pages),
	KUNIT_CASE(encode_maps_blocks),
	KUNIT_CASE(granted_is_the_least),
	KUNIT_CASE(pending_wraps),
	KUNIT_CASE(cancels_what_has_no_answer),
	KUNIT_CASE_PARAM(bind_follows_table, bind_gen_params),
	KUNIT_CASE(read_fault_maps),
	KUNIT_CASE(write_fault_maps_writable),
	KUNIT_CASE(write_after_read_maps_again),
	KUNIT_CASE(atomic_fault_takes_the_page),
	KUNIT_CASE(atomic_fault_copies_first),
	KUNIT_CASE(atomic_fault_takes_part_of_a_block),
	KUNIT_CASE(atomic_fault_takes_the_page_again),
	KUNIT_CASE(atomic_lasts_for_one_fault),
	KUNIT_CASE(atomic_in_vram_leaves_the_page),
	KUNIT_CASE(prefetch_takes_what_is_there),
	KUNIT_CASE(what_the_gpu_writes_is_dirty),
	KUNIT_CASE(page_without_vram_is_cancelled),
	KUNIT_CASE(unmapped_address_is_cancelled),
	KUNIT_CASE(write_to_readonly_is_cancelled),
	KUNIT_CASE(hole_is_cancelled),
	KUNIT_CASE(outside_the_process_is_cancelled),
	KUNIT_CASE(other_channel_is_cancelled),
	KUNIT_CASE(many_faults_are_one_map),
	KUNIT_CASE(one_bad_page_spoils_no_other),
	KUNIT_CASE(ring_wraps),
	KUNIT_CASE(dead_gpu_has_no_faults),
	KUNIT_CASE(entry_that_is_late_is_read_later),
	KUNIT_CASE(refused_page_is_cancelled),
	KUNIT_CASE(block_is_one_map),
	KUNIT_CASE(refused_block_is_mapped_by_pages),
	KUNIT_CASE(part_of_a_block_clears_it),
	KUNIT_CASE(pages_replace_a_block),
	KUNIT_CASE(invalidation_clears),
	KUNIT_CASE(stale_answer_is_not_mapped),
	KUNIT_CASE(change_in_the_block_is_noticed),
	KUNIT_CASE_SLOW(storm_ends_with_a_replay),
	KUNIT_CASE_SLOW(storm_has_one_deadline),
	KUNIT_CASE(suspend_clears_everything),
	KUNIT_CASE(end_under_the_handler),
	KUNIT_CASE(end_clears),
	KUNIT_CASE(exclusive_shuts_out_the_other),
	KUNIT_CASE(bind_moves_and_maps),
	KUNIT_CASE(bind_leaves_holes_out),
	KUNIT_CASE(bind_maps_nothing_in_the_hole),
	KUNIT_CASE(bind_tells_errors),
	{ }
};

static struct kunit_suite svm_suite = {
	.name		= "nouveau_svm",
	.init		= svm_test_init,
	.exit		= svm_test_exit,
	.test_cases	= svm_cases,
};

kunit_test_suite(svm_suite);
