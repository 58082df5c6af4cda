// SPDX-License-Identifier: GPL-2.0
/*
 * Device migration on a real address space, with a device of a few pages whose
 * memory is simulated: zone_device_data is a RAM page with the content.
 */
#include <kunit/static_stub.h>
#include <kunit/test.h>
#include <kunit/test-bug.h>
#include <linux/highmem.h>
#include <linux/hmm.h>
#include <linux/ioport.h>
#include <linux/memremap.h>
#include <linux/migrate.h>
#include <linux/migrate_device.h>
#include <linux/mman.h>
#include <linux/mm.h>
#include <linux/mm_inline.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/pagewalk.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include <linux/swap.h>
#include <linux/uaccess.h>

#include "../hmm_internal.h"

#define NPAGES		32
#define DEVICE_SIZE	SUBSECTION_SIZE
#define CANARY		0x5a5a5a5aUL

/**
 * struct mock - a process's buffer and a device
 * @buf: user address of NPAGES pages
 * @next_free: device pages are handed out once, in order
 * @freed: how often page_free was called
 * @faults: how often migrate_to_ram was called
 * @fault_flags: FAULT_FLAG_* of the last time
 * @walks: how often the mirror began to walk
 * @mirror_faults: how many faults it caused
 * @fault_result: what these return instead, if not 0
 */
struct mock {
	unsigned long buf;
	unsigned long next_free;
	atomic_t freed;
	int faults;
	unsigned int fault_flags;
	int walks;
	int mirror_faults;
	vm_fault_t fault_result;

	/* private: */
	struct kunit *test;
	struct resource *res;
	struct dev_pagemap pgmap;
	unsigned long src[NPAGES];
	unsigned long dst[NPAGES];
	struct migrate_vma args;
};

static struct mock *page_mock(struct page *page)
{
	return container_of(page->pgmap, struct mock, pgmap);
}

static void mock_page_free(struct page *page)
{
	__free_page(page->zone_device_data);
	atomic_inc(&page_mock(page)->freed);
}

static struct page *mock_alloc(struct mock *mock)
{
	unsigned long pfn = PHYS_PFN(mock->pgmap.range.start) + mock->next_free++;
	struct page *page = pfn_to_page(pfn);

	page->zone_device_data = alloc_page(GFP_KERNEL | __GFP_ZERO);
	KUNIT_ASSERT_NOT_NULL(mock->test, page->zone_device_data);
	zone_device_page_init(page);
	return page;
}

static struct page *ram_page(struct page *page)
{
	return is_device_private_page(page) ? page->zone_device_data : page;
}

static vm_fault_t mock_migrate_to_ram(struct vm_fault *vmf)
{
	struct mock *mock = page_mock(vmf->page);
	unsigned long src = 0, dst = 0;
	struct migrate_vma args = {
		.vma = vmf->vma,
		.start = vmf->address & PAGE_MASK,
		.end = (vmf->address & PAGE_MASK) + PAGE_SIZE,
		.src = &src,
		.dst = &dst,
		.pgmap_owner = mock,
		.flags = MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
		.fault_page = vmf->page,
	};
	struct page *page;

	mock->faults++;
	mock->fault_flags = vmf->flags;
	if (migrate_vma_setup(&args))
		return VM_FAULT_SIGBUS;
	if (src & MIGRATE_PFN_MIGRATE) {
		page = alloc_page_vma(GFP_HIGHUSER, vmf->vma, vmf->address);
		if (page) {
			lock_page(page);
			copy_highpage(page, ram_page(migrate_pfn_to_page(src)));
			dst = migrate_pfn(page_to_pfn(page));
		}
	}
	migrate_vma_pages(&args);
	migrate_vma_finalize(&args);
	return src & MIGRATE_PFN_MIGRATE ? 0 : VM_FAULT_SIGBUS;
}

static const struct dev_pagemap_ops mock_ops = {
	.page_free = mock_page_free,
	.migrate_to_ram = mock_migrate_to_ram,
};

/* So aligned, they are in one page table. */
static unsigned long map_buf(struct kunit *test, struct file *file)
{
	unsigned long size = NPAGES * PAGE_SIZE;
	unsigned long addr = kunit_vm_mmap(test, file, 0, 2 * size,
					   PROT_READ | PROT_WRITE, file ?
					   MAP_PRIVATE :
					   MAP_ANONYMOUS | MAP_PRIVATE, 0);

	KUNIT_ASSERT_NE(test, addr, 0UL);
	return ALIGN(addr, size);
}

static int mock_init(struct kunit *test)
{
	struct mock *mock = kunit_kzalloc(test, sizeof(*mock), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, mock);
	mock->buf = map_buf(test, NULL);

	mock->res = request_free_mem_region(&iomem_resource, DEVICE_SIZE,
					    "migrate_device_test");
	KUNIT_ASSERT_FALSE(test, IS_ERR(mock->res));
	mock->pgmap.type = MEMORY_DEVICE_PRIVATE;
	mock->pgmap.range.start = mock->res->start;
	mock->pgmap.range.end = mock->res->end;
	mock->pgmap.nr_range = 1;
	mock->pgmap.ops = &mock_ops;
	mock->pgmap.owner = mock;
	mock->test = test;
	KUNIT_ASSERT_FALSE(test, IS_ERR(memremap_pages(&mock->pgmap, 0)));
	test->priv = mock;
	return 0;
}

static void mock_exit(struct kunit *test)
{
	struct mock *mock = test->priv;

	/*
	 * The thread that ran the test has the address space, and ends about
	 * now: this waits for the last of its device pages.
	 */
	memunmap_pages(&mock->pgmap);
	KUNIT_EXPECT_EQ(test, atomic_read(&mock->freed), (int)mock->next_free);
	release_mem_region(mock->res->start, resource_size(mock->res));
}

static unsigned long pattern(unsigned int i)
{
	return 0x1234567800000000UL + i * 0x9e3779b9UL;
}

static unsigned long __user *page_word(struct mock *mock, unsigned int i)
{
	return (unsigned long __user *)(mock->buf + i * PAGE_SIZE);
}

static void write_pattern(struct mock *mock)
{
	unsigned int i;

	for (i = 0; i < NPAGES; i++)
		KUNIT_ASSERT_EQ(mock->test,
				put_user(pattern(i), page_word(mock, i)), 0);
	lru_add_drain_all();
}

static void expect_pattern(struct mock *mock)
{
	unsigned long word;
	unsigned int i;

	for (i = 0; i < NPAGES; i++) {
		KUNIT_ASSERT_EQ(mock->test,
				get_user(word, page_word(mock, i)), 0);
		KUNIT_EXPECT_EQ(mock->test, word, pattern(i));
	}
}

/* Call with mmap_lock held. */
static void mock_args(struct mock *mock, unsigned long flags)
{
	memset(mock->src, 0, sizeof(mock->src));
	memset(mock->dst, 0, sizeof(mock->dst));
	mock->args = (struct migrate_vma) {
		.vma = vma_lookup(current->mm, mock->buf),
		.start = mock->buf,
		.end = mock->buf + NPAGES * PAGE_SIZE,
		.src = mock->src,
		.dst = mock->dst,
		.pgmap_owner = mock,
		.flags = flags,
	};
}

static void copy_to_device(struct mock *mock)
{
	unsigned int i;

	for (i = 0; i < NPAGES; i++) {
		struct page *from = migrate_pfn_to_page(mock->src[i]);
		struct page *to;

		if (!(mock->src[i] & MIGRATE_PFN_MIGRATE))
			continue;
		to = mock_alloc(mock);
		if (from)
			copy_highpage(ram_page(to), ram_page(from));
		mock->dst[i] = migrate_pfn(page_to_pfn(to));
	}
}

/* Return how many pages moved. */
static unsigned int migrate_to_device(struct mock *mock)
{
	unsigned int i, moved = 0;

	mmap_read_lock(current->mm);
	mock_args(mock, MIGRATE_VMA_SELECT_SYSTEM);
	KUNIT_EXPECT_EQ(mock->test, migrate_vma_setup(&mock->args), 0);
	copy_to_device(mock);
	migrate_vma_pages(&mock->args);
	for (i = 0; i < NPAGES; i++)
		moved += !!(mock->src[i] & MIGRATE_PFN_MIGRATE);
	migrate_vma_finalize(&mock->args);
	mmap_read_unlock(current->mm);
	return moved;
}

/* The page behind page i of the buffer, with a reference. */
static struct page *get_buf_page(struct mock *mock, unsigned int i)
{
	struct page *page = NULL;
	long n;

	mmap_read_lock(current->mm);
	n = get_user_pages(mock->buf + i * PAGE_SIZE, 1, FOLL_WRITE, &page);
	mmap_read_unlock(current->mm);
	KUNIT_ASSERT_EQ(mock->test, n, 1L);
	return page;
}

static void pages_go_and_come_back_on_cpu_access(struct kunit *test)
{
	struct mock *mock = test->priv;

	write_pattern(mock);
	KUNIT_EXPECT_EQ(test, migrate_to_device(mock), NPAGES);
	KUNIT_EXPECT_EQ(test, mock->faults, 0);
	expect_pattern(mock);
	KUNIT_EXPECT_EQ(test, mock->faults, NPAGES);
	KUNIT_EXPECT_EQ(test, atomic_read(&mock->freed), NPAGES);
}

#ifdef CONFIG_PER_VMA_LOCK

/* As the CPU's fault handler does it first. */
static vm_fault_t fault_with_vma_lock(struct mock *mock)
{
	struct vm_area_struct *vma = lock_vma_under_rcu(current->mm, mock->buf);
	vm_fault_t ret;

	KUNIT_ASSERT_NOT_NULL(mock->test, vma);
	ret = handle_mm_fault(vma, mock->buf,
			      FAULT_FLAG_DEFAULT | FAULT_FLAG_VMA_LOCK, NULL);
	if (!(ret & (VM_FAULT_RETRY | VM_FAULT_COMPLETED)))
		vma_end_read(vma);
	KUNIT_EXPECT_FALSE(mock->test, rwsem_is_locked(&vma->vm_lock->lock));
	return ret;
}

static void driver_may_say_that_the_vma_lock_will_do(struct kunit *test)
{
	struct mock *mock = test->priv;

	write_pattern(mock);
	KUNIT_EXPECT_EQ(test, migrate_to_device(mock), NPAGES);
	mock->pgmap.flags = PGMAP_FAULT_VMA_LOCK;
	KUNIT_EXPECT_TRUE(test, fault_with_vma_lock(mock) == 0);
	KUNIT_EXPECT_EQ(test, mock->faults, 1);
	KUNIT_EXPECT_TRUE(test, mock->fault_flags & FAULT_FLAG_VMA_LOCK);
	expect_pattern(mock);
	KUNIT_EXPECT_EQ(test, mock->faults, NPAGES);
}

static void driver_has_mmap_lock_by_default(struct kunit *test)
{
	struct mock *mock = test->priv;

	write_pattern(mock);
	KUNIT_EXPECT_EQ(test, migrate_to_device(mock), NPAGES);
	KUNIT_EXPECT_TRUE(test, fault_with_vma_lock(mock) == VM_FAULT_RETRY);
	KUNIT_EXPECT_EQ(test, mock->faults, 0);
	expect_pattern(mock);
	KUNIT_EXPECT_EQ(test, mock->faults, NPAGES);
	KUNIT_EXPECT_FALSE(test, mock->fault_flags & FAULT_FLAG_VMA_LOCK);
}

#endif /* CONFIG_PER_VMA_LOCK */

static void holes_become_zeroed_device_pages(struct kunit *test)
{
	struct mock *mock = test->priv;
	unsigned long word = 1;

	KUNIT_EXPECT_EQ(test, migrate_to_device(mock), NPAGES);
	KUNIT_EXPECT_EQ(test, get_user(word, page_word(mock, 3)), 0);
	KUNIT_EXPECT_EQ(test, word, 0UL);
	KUNIT_EXPECT_EQ(test, mock->faults, 1);
}

static void zero_page_becomes_device_page(struct kunit *test)
{
	struct mock *mock = test->priv;
	unsigned long word = 1;

	KUNIT_EXPECT_EQ(test, get_user(word, page_word(mock, 0)), 0);
	KUNIT_EXPECT_EQ(test, migrate_to_device(mock), NPAGES);
	KUNIT_EXPECT_EQ(test, get_user(word, page_word(mock, 0)), 0);
	KUNIT_EXPECT_EQ(test, word, 0UL);
}

static void range_of_device_pages_is_evicted(struct kunit *test)
{
	struct mock *mock = test->priv;
	unsigned long first = PHYS_PFN(mock->pgmap.range.start);
	unsigned int i;

	write_pattern(mock);
	KUNIT_ASSERT_EQ(test, migrate_to_device(mock), NPAGES);
	memset(mock->dst, 0, sizeof(mock->dst));
	KUNIT_ASSERT_EQ(test, migrate_device_range(mock->src, first, NPAGES), 0);
	for (i = 0; i < NPAGES; i++) {
		struct page *to;

		KUNIT_EXPECT_TRUE(test, mock->src[i] & MIGRATE_PFN_MIGRATE);
		to = alloc_page(GFP_HIGHUSER);
		KUNIT_ASSERT_NOT_NULL(test, to);
		lock_page(to);
		copy_highpage(to, ram_page(migrate_pfn_to_page(mock->src[i])));
		mock->dst[i] = migrate_pfn(page_to_pfn(to));
	}
	migrate_device_pages(mock->src, mock->dst, NPAGES);
	migrate_device_finalize(mock->src, mock->dst, NPAGES);
	KUNIT_EXPECT_EQ(test, atomic_read(&mock->freed), NPAGES);
	expect_pattern(mock);
	KUNIT_EXPECT_EQ(test, mock->faults, 0);
}

static void free_device_pages_say_so(struct kunit *test)
{
	struct mock *mock = test->priv;
	unsigned long first = PHYS_PFN(mock->pgmap.range.start);
	struct page *busy = mock_alloc(mock);

	KUNIT_EXPECT_EQ(test, migrate_device_range(mock->src, first, 2), 0);
	KUNIT_EXPECT_EQ(test, migrate_pfn_to_stay(mock->src[0]),
			MIGRATE_STAY_LOCKED);
	KUNIT_EXPECT_EQ(test, migrate_pfn_to_stay(mock->src[1]),
			MIGRATE_STAY_FREE);
	unlock_page(busy);
	put_page(busy);
}

static void given_up_after_setup_keeps_the_data(struct kunit *test)
{
	struct mock *mock = test->priv;

	write_pattern(mock);
	mmap_read_lock(current->mm);
	mock_args(mock, MIGRATE_VMA_SELECT_SYSTEM);
	KUNIT_EXPECT_EQ(test, migrate_vma_setup(&mock->args), 0);
	migrate_vma_finalize(&mock->args);
	mmap_read_unlock(current->mm);
	expect_pattern(mock);
}

/* A table in which there is nothing to lock, and nothing that goes on. */
static void holes_given_up_stay_holes(struct kunit *test)
{
	struct mock *mock = test->priv;
	unsigned long word;
	unsigned int i;

	KUNIT_ASSERT_EQ(test, put_user(1UL, page_word(mock, NPAGES - 1)), 0);
	mmap_read_lock(current->mm);
	mock_args(mock, MIGRATE_VMA_SELECT_SYSTEM);
	mock->args.end -= PAGE_SIZE;
	KUNIT_EXPECT_EQ(test, migrate_vma_setup(&mock->args), 0);
	KUNIT_EXPECT_EQ(test, mock->args.cpages, NPAGES - 1UL);
	for (i = 0; i < NPAGES - 1; i++)
		KUNIT_EXPECT_EQ(test, mock->src[i], MIGRATE_PFN_MIGRATE);
	migrate_vma_finalize(&mock->args);
	mmap_read_unlock(current->mm);

	KUNIT_EXPECT_EQ(test, get_user(word, page_word(mock, 0)), 0);
	KUNIT_EXPECT_EQ(test, word, 0UL);
	KUNIT_EXPECT_EQ(test, get_user(word, page_word(mock, NPAGES - 1)), 0);
	KUNIT_EXPECT_EQ(test, word, 1UL);
}

/* Off the LRU as long as it takes, and there again at once. */
static void pages_that_stay_are_on_the_lru(struct kunit *test)
{
	struct mock *mock = test->priv;
	struct folio *folio[NPAGES];
	unsigned int i;

	write_pattern(mock);
	mmap_read_lock(current->mm);
	mock_args(mock, MIGRATE_VMA_SELECT_SYSTEM);
	KUNIT_EXPECT_EQ(test, migrate_vma_setup(&mock->args), 0);
	for (i = 0; i < NPAGES; i++) {
		folio[i] = page_folio(migrate_pfn_to_page(mock->src[i]));
		KUNIT_EXPECT_FALSE(test, folio_test_lru(folio[i]));
		folio_get(folio[i]);
	}
	migrate_vma_finalize(&mock->args);
	mmap_read_unlock(current->mm);
	/* These go by a batch. */
	if (lru_gen_enabled())
		lru_add_drain_all();
	for (i = 0; i < NPAGES; i++) {
		KUNIT_EXPECT_TRUE(test, folio_test_lru(folio[i]));
		folio_put(folio[i]);
	}
	expect_pattern(mock);
}

/* The pages step is missing: whatever is in dst, the source has not moved. */
static void finalize_without_pages_keeps_the_data(struct kunit *test)
{
	struct mock *mock = test->priv;

	write_pattern(mock);
	mmap_read_lock(current->mm);
	mock_args(mock, MIGRATE_VMA_SELECT_SYSTEM);
	KUNIT_EXPECT_EQ(test, migrate_vma_setup(&mock->args), 0);
	copy_to_device(mock);
	migrate_vma_finalize(&mock->args);
	mmap_read_unlock(current->mm);
	KUNIT_EXPECT_EQ(test, atomic_read(&mock->freed), NPAGES);
	expect_pattern(mock);
	KUNIT_EXPECT_EQ(test, mock->faults, 0);
}

static void page_without_destination_stays(struct kunit *test)
{
	struct mock *mock = test->priv;

	write_pattern(mock);
	mmap_read_lock(current->mm);
	mock_args(mock, MIGRATE_VMA_SELECT_SYSTEM);
	KUNIT_EXPECT_EQ(test, migrate_vma_setup(&mock->args), 0);
	KUNIT_EXPECT_EQ(test, mock->args.cpages, (unsigned long)NPAGES);
	migrate_vma_pages(&mock->args);
	KUNIT_EXPECT_FALSE(test, mock->src[0] & MIGRATE_PFN_MIGRATE);
	migrate_vma_finalize(&mock->args);
	mmap_read_unlock(current->mm);
	expect_pattern(mock);
}

static void locked_and_pinned_pages_stay_and_say_so(struct kunit *test)
{
	struct mock *mock = test->priv;
	struct page *locked, *pinned;

	write_pattern(mock);
	locked = get_buf_page(mock, 1);
	pinned = get_buf_page(mock, 2);
	lock_page(locked);

	mmap_read_lock(current->mm);
	mock_args(mock, MIGRATE_VMA_SELECT_SYSTEM);
	KUNIT_EXPECT_EQ(test, migrate_vma_setup(&mock->args), 0);
	KUNIT_EXPECT_EQ(test, mock->args.cpages, NPAGES - 2UL);
	KUNIT_EXPECT_EQ(test, migrate_pfn_to_stay(mock->src[1]),
			MIGRATE_STAY_LOCKED);
	KUNIT_EXPECT_EQ(test, migrate_pfn_to_stay(mock->src[2]),
			MIGRATE_STAY_PINNED);
	migrate_vma_finalize(&mock->args);
	mmap_read_unlock(current->mm);

	unlock_page(locked);
	put_page(locked);
	put_page(pinned);
	expect_pattern(mock);
}

static void dma_pinned_page_gets_its_pte_back(struct kunit *test)
{
	struct mock *mock = test->priv;
	struct page *page;
	long n;

	write_pattern(mock);
	n = pin_user_pages_fast(mock->buf, 1, FOLL_WRITE, &page);
	KUNIT_ASSERT_EQ(test, n, 1L);
	KUNIT_EXPECT_EQ(test, migrate_to_device(mock), NPAGES - 1);
	KUNIT_EXPECT_EQ(test, migrate_pfn_to_stay(mock->src[0]),
			MIGRATE_STAY_PINNED);
	KUNIT_EXPECT_PTR_EQ(test, get_buf_page(mock, 0), page);
	put_page(page);
	unpin_user_page(page);
	expect_pattern(mock);
}

static void other_owners_pages_stay(struct kunit *test)
{
	struct mock *mock = test->priv;

	write_pattern(mock);
	KUNIT_ASSERT_EQ(test, migrate_to_device(mock), NPAGES);
	mmap_read_lock(current->mm);
	mock_args(mock, MIGRATE_VMA_SELECT_DEVICE_PRIVATE);
	mock->args.pgmap_owner = mock->src;
	KUNIT_EXPECT_EQ(test, migrate_vma_setup(&mock->args), 0);
	KUNIT_EXPECT_EQ(test, mock->args.cpages, 0UL);
	migrate_vma_finalize(&mock->args);
	mmap_read_unlock(current->mm);
	expect_pattern(mock);
}

/* One line per argument that migrate_vma_setup() must refuse. */
struct bad_args {
	const char *what;
	void (*spoil)(struct migrate_vma *args);
};

static void no_vma(struct migrate_vma *a)
{
	a->vma = NULL;
}

static void no_src(struct migrate_vma *a)
{
	a->src = NULL;
}

static void no_dst(struct migrate_vma *a)
{
	a->dst = NULL;
}

static void no_flags(struct migrate_vma *a)
{
	a->flags = 0;
}

static void empty(struct migrate_vma *a) { a->end = a->start; }
static void reversed(struct migrate_vma *a) { swap(a->start, a->end); }
static void odd_start(struct migrate_vma *a) { a->start += 8; }
static void odd_end(struct migrate_vma *a) { a->end -= 8; }
static void low(struct migrate_vma *a) { a->start = a->vma->vm_start - PAGE_SIZE; }
static void high(struct migrate_vma *a) { a->end = a->vma->vm_end + PAGE_SIZE; }
static void ram_fault(struct migrate_vma *a) { a->fault_page = ZERO_PAGE(0); }

static void fault_from_device(struct migrate_vma *a)
{
	a->flags = MIGRATE_VMA_SELECT_DEVICE_PRIVATE | MIGRATE_VMA_FAULT;
}

static const struct bad_args bad_args[] = {
	{ "no VMA", no_vma },
	{ "no src", no_src },
	{ "no dst", no_dst },
	{ "nothing selected", no_flags },
	{ "empty range", empty },
	{ "start behind end", reversed },
	{ "start not aligned", odd_start },
	{ "end not aligned", odd_end },
	{ "start before VMA", low },
	{ "end behind VMA", high },
	{ "fault_page in RAM", ram_fault },
	{ "fault of device pages", fault_from_device },
};

KUNIT_ARRAY_PARAM_DESC(bad_args, bad_args, what);

static void setup_refuses(struct kunit *test)
{
	const struct bad_args *bad = test->param_value;
	struct mock *mock = test->priv;

	write_pattern(mock);
	mmap_read_lock(current->mm);
	mock_args(mock, MIGRATE_VMA_SELECT_SYSTEM);
	mock->src[0] = CANARY;
	mock->dst[0] = CANARY;
	bad->spoil(&mock->args);
	KUNIT_EXPECT_EQ(test, migrate_vma_setup(&mock->args), -EINVAL);
	KUNIT_EXPECT_EQ(test, mock->src[0], CANARY);
	KUNIT_EXPECT_EQ(test, mock->dst[0], CANARY);
	mmap_read_unlock(current->mm);
	expect_pattern(mock);
}

static void setup_refuses_fault_page_nobody_locked(struct kunit *test)
{
	struct mock *mock = test->priv;
	struct page *page = mock_alloc(mock);

	unlock_page(page);
	mmap_read_lock(current->mm);
	mock_args(mock, MIGRATE_VMA_SELECT_DEVICE_PRIVATE);
	mock->args.fault_page = page;
	KUNIT_EXPECT_EQ(test, migrate_vma_setup(&mock->args), -EINVAL);
	mmap_read_unlock(current->mm);
	put_page(page);
}

static void device_range_refuses(struct kunit *test)
{
	struct mock *mock = test->priv;
	unsigned long first = PHYS_PFN(mock->pgmap.range.start);
	unsigned long last = PHYS_PFN(mock->pgmap.range.end);
	struct page *ram = alloc_page(GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, ram);
	mock->src[0] = CANARY;
	KUNIT_EXPECT_EQ(test, migrate_device_range(mock->src, page_to_pfn(ram), 1),
			-EINVAL);
	KUNIT_EXPECT_EQ(test, migrate_device_range(mock->src, first - 1, 2),
			-EINVAL);
	KUNIT_EXPECT_EQ(test, migrate_device_range(mock->src, last, 2), -EINVAL);
	KUNIT_EXPECT_EQ(test, migrate_device_range(mock->src, first, -1UL),
			-EINVAL);
	KUNIT_EXPECT_EQ(test, migrate_device_range(mock->src, -1UL, 1), -EINVAL);
	KUNIT_EXPECT_EQ(test, mock->src[0], CANARY);
	__free_page(ram);
}

/* ---- fault and collect in one walk ---- */

static vm_fault_t count_fault(struct vm_area_struct *vma, unsigned long addr,
			      unsigned int flags)
{
	struct mock *mock = kunit_get_current_test()->priv;

	mock->mirror_faults++;
	if (mock->fault_result)
		return mock->fault_result;
	return handle_mm_fault(vma, addr, flags, NULL);
}

/* The address of the real one, which count_walk() stands for. */
static int count_walk(struct mm_struct *mm, unsigned long start,
		      unsigned long end, struct hmm_walk *hw)
{
	struct kunit *test = kunit_get_current_test();
	struct mock *mock = test->priv;
	int ret;

	mock->walks++;
	kunit_deactivate_static_stub(test, hmm_walk_range);
	ret = hmm_walk_range(mm, start, end, hw);
	kunit_activate_static_stub(test, hmm_walk_range, count_walk);
	return ret;
}

static void count_from_now(struct mock *mock)
{
	mock->walks = 0;
	mock->mirror_faults = 0;
	kunit_activate_static_stub(mock->test, hmm_handle_fault, count_fault);
	kunit_activate_static_stub(mock->test, hmm_walk_range, count_walk);
}

/* Have what is collected moved, and return how many pages did. */
static unsigned int finish(struct mock *mock)
{
	unsigned int i, moved = 0;

	copy_to_device(mock);
	migrate_vma_pages(&mock->args);
	for (i = 0; i < NPAGES; i++)
		moved += !!(mock->src[i] & MIGRATE_PFN_MIGRATE);
	migrate_vma_finalize(&mock->args);
	return moved;
}

static unsigned int fault_to_device(struct mock *mock)
{
	unsigned int moved;

	count_from_now(mock);
	mmap_read_lock(current->mm);
	mock_args(mock, MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_FAULT);
	KUNIT_EXPECT_EQ(mock->test, migrate_vma_setup(&mock->args), 0);
	moved = finish(mock);
	mmap_read_unlock(current->mm);
	return moved;
}

static void present_pages_need_no_fault(struct kunit *test)
{
	struct mock *mock = test->priv;

	write_pattern(mock);
	KUNIT_EXPECT_EQ(test, fault_to_device(mock), NPAGES);
	KUNIT_EXPECT_EQ(test, mock->walks, 1);
	KUNIT_EXPECT_EQ(test, mock->mirror_faults, 0);
	expect_pattern(mock);
}

static void holes_need_no_fault(struct kunit *test)
{
	struct mock *mock = test->priv;
	unsigned long word, i;

	for (i = 0; i < NPAGES; i += 3)
		KUNIT_ASSERT_EQ(test, put_user(pattern(i), page_word(mock, i)), 0);
	/* And some have the zero page. */
	for (i = 1; i < NPAGES; i += 3)
		KUNIT_ASSERT_EQ(test, get_user(word, page_word(mock, i)), 0);
	lru_add_drain_all();
	KUNIT_EXPECT_EQ(test, fault_to_device(mock), NPAGES);
	KUNIT_EXPECT_EQ(test, mock->walks, 1);
	KUNIT_EXPECT_EQ(test, mock->mirror_faults, 0);
	for (i = 0; i < NPAGES; i++) {
		KUNIT_ASSERT_EQ(test, get_user(word, page_word(mock, i)), 0);
		KUNIT_EXPECT_EQ(test, word, i % 3 ? 0 : pattern(i));
	}
}

static void untouched_range_needs_no_fault(struct kunit *test)
{
	struct mock *mock = test->priv;

	KUNIT_EXPECT_EQ(test, fault_to_device(mock), NPAGES);
	KUNIT_EXPECT_EQ(test, mock->walks, 1);
	KUNIT_EXPECT_EQ(test, mock->mirror_faults, 0);
}

static unsigned long map_file(struct kunit *test)
{
	struct file *file = shmem_kernel_file_setup("migrate_device_test",
						    2 * NPAGES * PAGE_SIZE, 0);
	unsigned long addr;

	KUNIT_ASSERT_FALSE(test, IS_ERR(file));
	addr = map_buf(test, file);
	fput(file);
	return addr;
}

/* Of a private mapping of a file, only copies can go: one fault each. */
static void pages_of_files_are_copied_first(struct kunit *test)
{
	struct mock *mock = test->priv;
	unsigned long word, i, anon = mock->buf;

	mock->buf = map_file(test);
	/* Half of them are there to read. */
	for (i = 0; i < NPAGES; i += 2)
		KUNIT_ASSERT_EQ(test, get_user(word, page_word(mock, i)), 0);
	KUNIT_EXPECT_EQ(test, fault_to_device(mock), NPAGES);
	KUNIT_EXPECT_EQ(test, mock->walks, 2);
	KUNIT_EXPECT_EQ(test, mock->mirror_faults, NPAGES);
	for (i = 0; i < NPAGES; i++) {
		KUNIT_ASSERT_EQ(test, get_user(word, page_word(mock, i)), 0);
		KUNIT_EXPECT_EQ(test, word, 0UL);
	}
	mock->buf = anon;
}

static void failed_fault_takes_nothing(struct kunit *test)
{
	struct mock *mock = test->priv;
	unsigned long anon = mock->buf;

	mock->buf = map_file(test);
	KUNIT_ASSERT_EQ(test, put_user(1UL, page_word(mock, 0)), 0);
	count_from_now(mock);
	mock->fault_result = VM_FAULT_OOM;
	mmap_read_lock(current->mm);
	mock_args(mock, MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_FAULT);
	KUNIT_EXPECT_EQ(test, migrate_vma_setup(&mock->args), -ENOMEM);
	mmap_read_unlock(current->mm);
	mock->fault_result = 0;
	/* Nobody has it locked. */
	KUNIT_EXPECT_EQ(test, put_user(2UL, page_word(mock, 0)), 0);
	mock->buf = anon;
}

/* The mirror's own entry point, with its words and its sequence. */
struct watch {
	struct mmu_interval_notifier notifier;
	unsigned long words[NPAGES];
	struct hmm_range range;
};

static bool watch_invalidate(struct mmu_interval_notifier *notifier,
			     const struct mmu_notifier_range *range,
			     unsigned long seq)
{
	mmu_interval_set_seq(notifier, seq);
	return true;
}

static const struct mmu_interval_notifier_ops watch_ops = {
	.invalidate = watch_invalidate,
};

static void watch_end(void *notifier)
{
	mmu_interval_notifier_remove(notifier);
}

static struct watch *watch_begin(struct mock *mock)
{
	struct kunit *test = mock->test;
	struct watch *w = kunit_kzalloc(test, sizeof(*w), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, w);
	KUNIT_ASSERT_EQ(test, mmu_interval_notifier_insert(&w->notifier, current->mm,
							   mock->buf, NPAGES * PAGE_SIZE,
							   &watch_ops), 0);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, watch_end, &w->notifier), 0);
	w->range = (struct hmm_range) {
		.notifier = &w->notifier,
		.notifier_seq = mmu_interval_read_begin(&w->notifier),
		.start = mock->buf,
		.end = mock->buf + NPAGES * PAGE_SIZE,
		.hmm_pfns = w->words,
		.default_flags = HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE,
		.dev_private_owner = mock,
		.migrate = &mock->args,
	};
	return w;
}

static void mirror_collects_what_can_move(struct kunit *test)
{
	struct mock *mock = test->priv;
	struct watch *w = watch_begin(mock);
	unsigned int i;

	write_pattern(mock);
	w->range.notifier_seq = mmu_interval_read_begin(&w->notifier);
	count_from_now(mock);
	mmap_read_lock(current->mm);
	mock_args(mock, MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_FAULT);
	w->range.default_flags |= HMM_PFN_REQ_MIGRATE;
	KUNIT_EXPECT_EQ(test, hmm_range_fault(&w->range), 0);
	for (i = 0; i < NPAGES; i++)
		KUNIT_EXPECT_EQ(test, w->words[i], 0UL);
	KUNIT_EXPECT_EQ(test, finish(mock), NPAGES);
	mmap_read_unlock(current->mm);
	KUNIT_EXPECT_TRUE(test, mmu_interval_read_retry(&w->notifier,
							w->range.notifier_seq));

	/* The mirror of what is there now is had without a fault. */
	w->range.default_flags &= ~HMM_PFN_REQ_MIGRATE;
	w->range.notifier_seq = mmu_interval_read_begin(&w->notifier);
	mmap_read_lock(current->mm);
	KUNIT_EXPECT_EQ(test, hmm_range_fault(&w->range), 0);
	mmap_read_unlock(current->mm);
	for (i = 0; i < NPAGES; i++)
		KUNIT_EXPECT_TRUE(test, is_device_private_page(hmm_pfn_to_page(w->words[i])));
	KUNIT_EXPECT_EQ(test, mock->walks, 2);
	KUNIT_EXPECT_EQ(test, mock->mirror_faults, 0);
	expect_pattern(mock);
}

/* Invalidated since: nothing is collected for a caller who has to begin again. */
static void outdated_mirror_collects_nothing(struct kunit *test)
{
	struct mock *mock = test->priv;
	struct watch *w = watch_begin(mock);

	write_pattern(mock);
	KUNIT_EXPECT_EQ(test, migrate_to_device(mock), NPAGES);
	expect_pattern(mock);
	mmap_read_lock(current->mm);
	mock_args(mock, MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_FAULT);
	mock->src[0] = CANARY;
	w->range.default_flags |= HMM_PFN_REQ_MIGRATE;
	KUNIT_EXPECT_EQ(test, hmm_range_fault(&w->range), -EBUSY);
	KUNIT_EXPECT_EQ(test, mock->src[0], CANARY);
	mmap_read_unlock(current->mm);
	expect_pattern(mock);
}

static void mirror_refuses_other_migrations(struct kunit *test)
{
	struct mock *mock = test->priv;
	struct watch *w = watch_begin(mock);

	w->range.default_flags |= HMM_PFN_REQ_MIGRATE;
	mmap_read_lock(current->mm);
	mock_args(mock, MIGRATE_VMA_SELECT_SYSTEM);
	KUNIT_EXPECT_EQ(test, hmm_range_fault(&w->range), -EINVAL);
	mock->args.flags |= MIGRATE_VMA_FAULT;
	w->range.default_flags = HMM_PFN_REQ_MIGRATE;
	KUNIT_EXPECT_EQ(test, hmm_range_fault(&w->range), -EINVAL);
	w->range.default_flags |= HMM_PFN_REQ_FAULT;
	mock->args.end -= PAGE_SIZE;
	KUNIT_EXPECT_EQ(test, hmm_range_fault(&w->range), -EINVAL);
	mock->args.end += PAGE_SIZE;
	mock->args.src = NULL;
	KUNIT_EXPECT_EQ(test, hmm_range_fault(&w->range), -EINVAL);
	w->range.migrate = NULL;
	KUNIT_EXPECT_EQ(test, hmm_range_fault(&w->range), -EINVAL);
	mmap_read_unlock(current->mm);
	w->range.migrate = &mock->args;
	KUNIT_EXPECT_EQ(test, hmm_range_fault_unlocked_timeout(&w->range, 0), -EINVAL);
}

static void fault_refuses_more_than_a_table(struct kunit *test)
{
	struct mock *mock = test->priv;
	unsigned long addr = kunit_vm_mmap(test, NULL, 0, 2 * PMD_SIZE,
					   PROT_READ | PROT_WRITE,
					   MAP_ANONYMOUS | MAP_PRIVATE, 0);

	KUNIT_ASSERT_NE(test, addr, 0UL);
	addr = ALIGN(addr + PAGE_SIZE, PMD_SIZE);
	mmap_read_lock(current->mm);
	mock_args(mock, MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_FAULT);
	mock->args.vma = vma_lookup(current->mm, addr);
	mock->args.start = addr - PAGE_SIZE;
	mock->args.end = addr + PAGE_SIZE;
	mock->src[0] = CANARY;
	KUNIT_EXPECT_EQ(test, migrate_vma_setup(&mock->args), -EINVAL);
	KUNIT_EXPECT_EQ(test, mock->src[0], CANARY);
	mmap_read_unlock(current->mm);
}

static struct kunit_case migrate_device_cases[] = {
	KUNIT_CASE(pages_go_and_come_back_on_cpu_access),
#ifdef CONFIG_PER_VMA_LOCK
	KUNIT_CASE(driver_may_say_that_the_vma_lock_will_do),
	KUNIT_CASE(driver_has_mmap_lock_by_default),
#endif
	KUNIT_CASE(holes_become_zeroed_device_pages),
	KUNIT_CASE(zero_page_becomes_device_page),
	KUNIT_CASE(range_of_device_pages_is_evicted),
	KUNIT_CASE(free_device_pages_say_so),
	KUNIT_CASE(given_up_after_setup_keeps_the_data),
	KUNIT_CASE(holes_given_up_stay_holes),
	KUNIT_CASE(pages_that_stay_are_on_the_lru),
	KUNIT_CASE(finalize_without_pages_keeps_the_data),
	KUNIT_CASE(page_without_destination_stays),
	KUNIT_CASE(locked_and_pinned_pages_stay_and_say_so),
	KUNIT_CASE(dma_pinned_page_gets_its_pte_back),
	KUNIT_CASE(other_owners_pages_stay),
	KUNIT_CASE_PARAM(setup_refuses, bad_args_gen_params),
	KUNIT_CASE(setup_refuses_fault_page_nobody_locked),
	KUNIT_CASE(device_range_refuses),
	KUNIT_CASE(present_pages_need_no_fault),
	KUNIT_CASE(holes_need_no_fault),
	KUNIT_CASE(untouched_range_needs_no_fault),
	KUNIT_CASE(pages_of_files_are_copied_first),
	KUNIT_CASE(failed_fault_takes_nothing),
	KUNIT_CASE(mirror_collects_what_can_move),
	KUNIT_CASE(outdated_mirror_collects_nothing),
	KUNIT_CASE(mirror_refuses_other_migrations),
	KUNIT_CASE(fault_refuses_more_than_a_table),
	{}
};

static struct kunit_suite migrate_device_suite = {
	.name = "migrate_device",
	.init = mock_init,
	.exit = mock_exit,
	.test_cases = migrate_device_cases,
};

kunit_test_suite(migrate_device_suite);

MODULE_DESCRIPTION("KUnit tests of device migration");
MODULE_LICENSE("GPL");
