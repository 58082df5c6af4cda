// SPDX-License-Identifier: GPL-2.0
/*
 * The pool of device memory, with a driver that can be told to fail, on a real
 * address space. The bytes of a device page are in a page of RAM, its
 * zone_device_data.
 */
#include <kunit/device.h>
#include <kunit/test.h>
#include <linux/highmem.h>
#include <linux/hmm_devmem.h>
#include <linux/ioport.h>
#include <linux/mman.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/uaccess.h>

#include "../internal.h"

#define CHUNK_SIZE	SZ_2M
#define CHUNK_PAGES	(CHUNK_SIZE / PAGE_SIZE)
#define NPAGES		(CHUNK_PAGES + 88UL)	/* more than a chunk has */

/**
 * struct driver - a device, and what it is told to do wrong
 * @copy_err: what copy returns
 * @busy_left: and how often, if not always
 * @wait_err: what wait returns
 * @fail_one: copies whose index in the batch is this fail alone; -1: none
 * @init_left: folio_init works so often; -1: always
 * @max_order: of what may be allocated
 * @copied: copy and wait are called in turns
 * @copies: how many the last batch had
 * @in_use: pages that were given out and not freed
 * @chunks: chunks that were added and not removed
 */
struct driver {
	int copy_err;
	int busy_left;
	int wait_err;
	long fail_one;
	long init_left;
	unsigned int max_order;
	int copied;
	unsigned long copies;
	atomic_long_t in_use;
	int chunks;

	/* private: */
	struct kunit *test;
	struct device *dev;
	struct hmm_devmem *devmem;
	unsigned long buf;
};

static struct driver *driver_of(struct hmm_devmem *devmem)
{
	return dev_get_drvdata(devmem->device);
}

static struct page *bytes_of(struct page *page)
{
	struct folio *folio = page_folio(page);
	struct page *bytes;

	if (!folio_is_device_private(folio))
		return page;
	bytes = folio_zone_device_data(folio);
	return bytes + folio_page_idx(folio, page);
}

static void copy_one(const struct hmm_devmem_copy *copy)
{
	unsigned long k;

	for (k = 0; k < copy->nr; k++)
		if (copy->src)
			copy_highpage(bytes_of(copy->dst + k), bytes_of(copy->src + k));
		else
			clear_highpage(bytes_of(copy->dst + k));
}

static int driver_copy(struct hmm_devmem_batch *batch)
{
	struct driver *d = driver_of(batch->devmem);
	unsigned long i;

	if (d->busy_left && !--d->busy_left) {
		d->copy_err = 0;
		return -EBUSY;
	}
	if (d->copy_err)
		return d->copy_err;
	d->copied++;
	d->copies = batch->nr;
	for (i = 0; i < batch->nr; i++) {
		struct hmm_devmem_copy *copy = &batch->copies[i];

		KUNIT_EXPECT_TRUE(d->test, folio_test_locked(page_folio(copy->dst)));
		KUNIT_EXPECT_EQ(d->test, copy->nr, folio_nr_pages(page_folio(copy->dst)));
		KUNIT_EXPECT_EQ(d->test, is_device_private_page(copy->dst),
				batch->to_device);
		copy->failed = i == d->fail_one;
		if (!copy->failed)
			copy_one(copy);
	}
	batch->data = d;
	return 0;
}

static int driver_wait(struct hmm_devmem_batch *batch)
{
	struct driver *d = driver_of(batch->devmem);

	KUNIT_EXPECT_EQ(d->test, --d->copied, 0);
	KUNIT_EXPECT_PTR_EQ(d->test, batch->data, (void *)d);
	return d->wait_err;
}

/* Pages that are not what those of a folio are that nobody has used yet. */
static unsigned long nr_used_before(struct folio *folio)
{
	unsigned long i, n = 0;

	for (i = 0; i < folio_nr_pages(folio); i++) {
		struct page *page = folio_page(folio, i);

		n += page_folio(page) != folio || page_ref_count(page) ||
		     atomic_read(&page->_mapcount) != -1 ||
		     test_bit(PG_anon_exclusive, &page->flags) ||
		     page_private(page);
	}
	return n + (folio->mapping || (folio_test_large(folio) && folio_mapcount(folio)));
}

static int driver_folio_init(struct hmm_devmem *devmem, struct folio *folio)
{
	struct driver *d = driver_of(devmem);
	unsigned int order = folio_order(folio);
	struct page *backing;

	KUNIT_EXPECT_NULL(d->test, folio_zone_device_data(folio));
	KUNIT_EXPECT_EQ(d->test, nr_used_before(folio), 0UL);
	if (!d->init_left)
		return -ENOMEM;
	if (d->init_left > 0)
		d->init_left--;
	backing = alloc_pages(GFP_KERNEL, order);
	if (!backing)
		return -ENOMEM;
	if (order)
		split_page(backing, order);
	folio_set_zone_device_data(folio, backing);
	atomic_long_add(1L << order, &d->in_use);
	return 0;
}

static void driver_folio_exit(struct hmm_devmem *devmem, struct folio *folio)
{
	struct page *backing = folio_zone_device_data(folio);
	long i, nr = folio_nr_pages(folio);

	for (i = 0; i < nr; i++)
		__free_page(backing + i);
	atomic_long_sub(nr, &driver_of(devmem)->in_use);
}

static void driver_folio_split(struct folio *head, struct folio *tail)
{
	struct page *backing = folio_zone_device_data(head);

	if (tail)
		folio_set_zone_device_data(tail, backing +
					   (folio_pfn(tail) - folio_pfn(head)));
}

static bool driver_may_alloc(struct hmm_devmem *devmem, bool to_device,
			     unsigned int order)
{
	return order <= driver_of(devmem)->max_order;
}

static int driver_chunk_add(struct hmm_devmem_chunk *chunk)
{
	driver_of(chunk->devmem)->chunks++;
	chunk->data = chunk;
	return 0;
}

static void driver_chunk_remove(struct hmm_devmem_chunk *chunk)
{
	struct driver *d = driver_of(chunk->devmem);

	KUNIT_EXPECT_PTR_EQ(d->test, chunk->data, (void *)chunk);
	d->chunks--;
}

static const struct hmm_devmem_ops driver_ops = {
	.copy		= driver_copy,
	.wait		= driver_wait,
	.folio_init	= driver_folio_init,
	.folio_exit	= driver_folio_exit,
	.folio_split	= driver_folio_split,
	.may_alloc	= driver_may_alloc,
	.max_order	= HMM_DEVMEM_ORDERS - 1,
	.chunk_add	= driver_chunk_add,
	.chunk_remove	= driver_chunk_remove,
};

static unsigned long addr_of(struct driver *d, unsigned long i)
{
	return d->buf + i * PAGE_SIZE;
}

static void write_page(struct driver *d, unsigned long i)
{
	KUNIT_ASSERT_EQ(d->test, put_user(~i, (unsigned long __user *)addr_of(d, i)), 0);
}

static void write_pages(struct driver *d, unsigned long n)
{
	unsigned long i;

	for (i = 0; i < n; i++)
		write_page(d, i);
}

/* How many of the first @n pages the process can read, and finds unchanged. */
static unsigned long read_pages(struct driver *d, unsigned long n)
{
	unsigned long i, word, good = 0;

	for (i = 0; i < n; i++)
		good += !get_user(word, (unsigned long __user *)addr_of(d, i)) &&
			word == ~i;
	return good;
}

static struct hmm_devmem_result to_device(struct driver *d, unsigned long n)
{
	struct hmm_devmem_result result = { };

	KUNIT_ASSERT_EQ(d->test, hmm_devmem_migrate_to_device(d->devmem, current->mm,
							      d->buf, addr_of(d, n),
							      &result), 0);
	return result;
}

static struct hmm_devmem_result to_ram(struct driver *d, unsigned long n)
{
	struct hmm_devmem_result result = { };

	KUNIT_ASSERT_EQ(d->test, hmm_devmem_migrate_to_ram(d->devmem, current->mm,
							   d->buf, addr_of(d, n),
							   &result), 0);
	return result;
}

static long in_use(struct driver *d)
{
	return atomic_long_read(&d->in_use);
}

static int init_driver(struct kunit *test, unsigned long len)
{
	struct driver *d = kunit_kzalloc(test, sizeof(*d), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, d);
	d->test = test;
	d->fail_one = -1;
	d->init_left = -1;
	d->max_order = HMM_DEVMEM_ORDERS - 1;
	d->buf = kunit_vm_mmap(test, NULL, 0, len, PROT_READ | PROT_WRITE,
			       MAP_ANONYMOUS | MAP_PRIVATE, 0);
	KUNIT_ASSERT_NE(test, d->buf, 0UL);
	d->dev = kunit_device_register(test, "hmm_devmem_test");
	KUNIT_ASSERT_FALSE(test, IS_ERR(d->dev));
	dev_set_drvdata(d->dev, d);
	d->devmem = hmm_devmem_add(&driver_ops, d->dev, CHUNK_SIZE);
	KUNIT_ASSERT_FALSE(test, IS_ERR(d->devmem));
	test->priv = d;
	return 0;
}

static int pool_init(struct kunit *test)
{
	return init_driver(test, NPAGES * PAGE_SIZE);
}

static void add_refuses(struct kunit *test)
{
	static const struct hmm_devmem_ops no_copy = { };
	static const struct hmm_devmem_ops too_large = {
		.copy = driver_copy,
		.max_order = HMM_DEVMEM_ORDERS,
	};
	struct driver *d = test->priv;
	struct resource odd = DEFINE_RES_MEM(SZ_4G + PAGE_SIZE, CHUNK_SIZE);
	struct resource small = DEFINE_RES_MEM(SZ_4G, PAGE_SIZE);

	KUNIT_EXPECT_EQ(test, PTR_ERR(hmm_devmem_add(NULL, d->dev, CHUNK_SIZE)), -EINVAL);
	KUNIT_EXPECT_EQ(test, PTR_ERR(hmm_devmem_add(&no_copy, d->dev, CHUNK_SIZE)), -EINVAL);
	KUNIT_EXPECT_EQ(test, PTR_ERR(hmm_devmem_add(&too_large, d->dev, CHUNK_SIZE)), -EINVAL);
	KUNIT_EXPECT_EQ(test, PTR_ERR(hmm_devmem_add(&driver_ops, d->dev, 0)), -EINVAL);
	KUNIT_EXPECT_EQ(test, PTR_ERR(hmm_devmem_add(&driver_ops, d->dev, PAGE_SIZE)),
			-EINVAL);
	KUNIT_EXPECT_EQ(test, PTR_ERR(hmm_devmem_add_resource(&driver_ops, d->dev, NULL)),
			-EINVAL);
	KUNIT_EXPECT_EQ(test, PTR_ERR(hmm_devmem_add_resource(&driver_ops, d->dev, &odd)),
			-EINVAL);
	KUNIT_EXPECT_EQ(test, PTR_ERR(hmm_devmem_add_resource(&driver_ops, d->dev, &small)),
			-EINVAL);
	KUNIT_EXPECT_EQ(test, d->chunks, 1);
}

static void migrate_refuses(struct kunit *test)
{
	struct driver *d = test->priv;
	struct hmm_devmem_result r = { };
	struct mm_struct *mm = current->mm;

	KUNIT_EXPECT_EQ(test, hmm_devmem_migrate_to_device(d->devmem, mm, d->buf + 1,
							   addr_of(d, 1), &r), -EINVAL);
	KUNIT_EXPECT_EQ(test, hmm_devmem_migrate_to_device(d->devmem, mm, d->buf,
							   d->buf + 1, &r), -EINVAL);
	KUNIT_EXPECT_EQ(test, hmm_devmem_migrate_to_device(d->devmem, mm, d->buf, d->buf,
							   &r), -EINVAL);
	KUNIT_EXPECT_EQ(test, hmm_devmem_migrate_to_device(d->devmem, mm, 0, PAGE_SIZE,
							   &r), -EFAULT);
	KUNIT_EXPECT_EQ(test, r.moved, 0UL);
}

static void pages_go_and_come_back(struct kunit *test)
{
	struct driver *d = test->priv;

	write_pages(d, 100);
	KUNIT_EXPECT_EQ(test, to_device(d, 100).moved, 100UL);
	KUNIT_EXPECT_EQ(test, in_use(d), 100);
	KUNIT_EXPECT_EQ(test, read_pages(d, 30), 30UL);
	KUNIT_EXPECT_EQ(test, in_use(d), 70);
	KUNIT_EXPECT_EQ(test, to_ram(d, 100).moved, 70UL);
	KUNIT_EXPECT_EQ(test, in_use(d), 0);
	KUNIT_EXPECT_EQ(test, read_pages(d, 100), 100UL);
}

static void holes_become_zeroes(struct kunit *test)
{
	struct driver *d = test->priv;
	unsigned long word = 1;

	KUNIT_EXPECT_EQ(test, to_device(d, 8).moved, 8UL);
	KUNIT_EXPECT_EQ(test, in_use(d), 8);
	KUNIT_EXPECT_EQ(test, get_user(word, (unsigned long __user *)d->buf), 0);
	KUNIT_EXPECT_EQ(test, word, 0UL);
}

static void holes_stay_when_pages_come_back(struct kunit *test)
{
	struct driver *d = test->priv;
	unsigned long before;

	write_page(d, 3);
	KUNIT_EXPECT_EQ(test, to_device(d, 1).moved, 1UL);
	before = get_mm_counter(current->mm, MM_ANONPAGES);
	KUNIT_EXPECT_EQ(test, to_ram(d, 8).moved, 1UL);
	KUNIT_EXPECT_EQ(test, get_mm_counter(current->mm, MM_ANONPAGES), before);
}

static void busy_driver_is_asked_again(struct kunit *test)
{
	struct driver *d = test->priv;

	write_pages(d, 1);
	to_device(d, 1);
	d->copy_err = -EBUSY;
	d->busy_left = 3;
	KUNIT_EXPECT_EQ(test, read_pages(d, 1), 1UL);
	KUNIT_EXPECT_EQ(test, d->busy_left, 0);
	KUNIT_EXPECT_EQ(test, in_use(d), 0);
}

static void full_pool_leaves_the_rest_in_ram(struct kunit *test)
{
	struct driver *d = test->priv;
	struct hmm_devmem_result r;

	write_pages(d, NPAGES);
	r = to_device(d, NPAGES);
	KUNIT_EXPECT_EQ(test, r.moved, CHUNK_PAGES);
	KUNIT_EXPECT_EQ(test, r.no_memory, NPAGES - CHUNK_PAGES);
	KUNIT_EXPECT_EQ(test, d->chunks, 1);

	hmm_devmem_set_limit(d->devmem, 2 * CHUNK_SIZE);
	r = to_device(d, NPAGES);
	KUNIT_EXPECT_EQ(test, r.moved, NPAGES - CHUNK_PAGES);
	KUNIT_EXPECT_EQ(test, d->chunks, 2);
	KUNIT_EXPECT_EQ(test, read_pages(d, NPAGES), NPAGES);
	KUNIT_EXPECT_EQ(test, in_use(d), 0);
}

static void failed_copy_leaves_pages_in_ram(struct kunit *test)
{
	struct driver *d = test->priv;
	struct hmm_devmem_result r;

	write_pages(d, 10);
	d->copy_err = -EIO;
	r = to_device(d, 10);
	KUNIT_EXPECT_EQ(test, r.moved, 0UL);
	KUNIT_EXPECT_EQ(test, r.not_copied, 10UL);
	d->copy_err = 0;

	d->wait_err = -EIO;
	r = to_device(d, 10);
	KUNIT_EXPECT_EQ(test, r.not_copied, 10UL);
	d->wait_err = 0;

	d->fail_one = 3;
	r = to_device(d, 10);
	KUNIT_EXPECT_EQ(test, r.moved, 9UL);
	KUNIT_EXPECT_EQ(test, r.not_copied, 1UL);
	KUNIT_EXPECT_EQ(test, in_use(d), 9);
	d->fail_one = -1;
	KUNIT_EXPECT_EQ(test, read_pages(d, 10), 10UL);
	KUNIT_EXPECT_EQ(test, in_use(d), 0);
}

static void failed_copy_leaves_pages_on_device(struct kunit *test)
{
	struct driver *d = test->priv;
	struct hmm_devmem_result r = { };

	write_pages(d, 10);
	to_device(d, 10);
	d->copy_err = -EIO;
	/* SIGBUS, for the kernel -EFAULT; and no endless fault. */
	KUNIT_EXPECT_EQ(test, read_pages(d, 1), 0UL);
	KUNIT_EXPECT_EQ(test, to_ram(d, 10).not_copied, 10UL);
	KUNIT_EXPECT_EQ(test, hmm_devmem_evict(d->devmem, 0, &r), -EBUSY);
	KUNIT_EXPECT_EQ(test, r.not_copied, 10UL);
	KUNIT_EXPECT_EQ(test, hmm_devmem_shrink(d->devmem, 0), -EBUSY);
	KUNIT_EXPECT_EQ(test, in_use(d), 10);

	d->copy_err = 0;
	KUNIT_EXPECT_EQ(test, read_pages(d, 10), 10UL);
	KUNIT_EXPECT_EQ(test, in_use(d), 0);
}

static void page_that_cannot_be_had_is_free_again(struct kunit *test)
{
	struct driver *d = test->priv;
	struct hmm_devmem_result r;

	write_pages(d, CHUNK_PAGES);
	d->init_left = 5;
	r = to_device(d, 20);
	KUNIT_EXPECT_EQ(test, r.moved, 5UL);
	KUNIT_EXPECT_EQ(test, r.no_memory, 15UL);
	d->init_left = -1;
	r = to_device(d, CHUNK_PAGES);
	KUNIT_EXPECT_EQ(test, r.moved, CHUNK_PAGES - 5);
	KUNIT_EXPECT_EQ(test, read_pages(d, CHUNK_PAGES), CHUNK_PAGES);
}

/* Whatever the order in which pages return, they join to what they were. */
static void blocks_join_again(struct kunit *test)
{
	struct driver *d = test->priv;
	struct hmm_devmem_chunk *chunk;
	struct hmm_devmem_result r = { };
	unsigned long i;

	write_pages(d, CHUNK_PAGES);
	to_device(d, CHUNK_PAGES);
	for (i = 0; i < CHUNK_PAGES; i++) {
		unsigned long at = addr_of(d, i * 77 % CHUNK_PAGES);

		KUNIT_ASSERT_EQ(test, fault_in_readable((void __user *)at, 1), 0);
	}
	KUNIT_EXPECT_EQ(test, hmm_devmem_evict(d->devmem, 0, &r), 0);
	KUNIT_EXPECT_EQ(test, r.moved, 0UL);
	chunk = list_first_entry(&d->devmem->chunks, struct hmm_devmem_chunk, node);
	KUNIT_EXPECT_EQ(test, chunk->nr_free, CHUNK_PAGES);
	KUNIT_EXPECT_EQ(test, chunk->order_of[0], HMM_DEVMEM_ORDERS - 1);
	for (i = 0; i < HMM_DEVMEM_ORDERS - 1; i++)
		KUNIT_EXPECT_NULL(test, chunk->free[i]);
}

static void eviction_says_what_it_could_not_move(struct kunit *test)
{
	struct driver *d = test->priv;
	struct hmm_devmem_chunk *chunk;
	struct hmm_devmem_result r = { };
	struct page *page;

	write_pages(d, 10);
	to_device(d, 10);
	chunk = list_first_entry(&d->devmem->chunks, struct hmm_devmem_chunk, node);
	page = pfn_to_page(PHYS_PFN(chunk->pgmap.range.start));
	while (!page_count(page))
		page++;
	get_page(page);
	KUNIT_EXPECT_EQ(test, hmm_devmem_evict(d->devmem, 0, &r), -EBUSY);
	KUNIT_EXPECT_EQ(test, r.moved, 9UL);
	KUNIT_EXPECT_EQ(test, r.stayed[MIGRATE_STAY_PINNED], 1UL);
	put_page(page);

	memset(&r, 0, sizeof(r));
	KUNIT_EXPECT_EQ(test, hmm_devmem_evict(d->devmem, 0, &r), 0);
	KUNIT_EXPECT_EQ(test, r.moved, 1UL);
	KUNIT_EXPECT_EQ(test, in_use(d), 0);
	KUNIT_EXPECT_EQ(test, read_pages(d, 10), 10UL);
}

static void shrunk_pool_grows_again(struct kunit *test)
{
	struct driver *d = test->priv;

	write_pages(d, 10);
	to_device(d, 10);
	KUNIT_EXPECT_EQ(test, hmm_devmem_shrink(d->devmem, HZ), 0);
	KUNIT_EXPECT_EQ(test, d->chunks, 0);
	KUNIT_EXPECT_EQ(test, in_use(d), 0);
	KUNIT_EXPECT_EQ(test, to_device(d, 10).moved, 10UL);
	KUNIT_EXPECT_EQ(test, d->chunks, 1);
	KUNIT_EXPECT_EQ(test, read_pages(d, 10), 10UL);
}

static void unbound_device_gives_all_back(struct kunit *test)
{
	struct driver *d = test->priv;

	write_pages(d, 50);
	to_device(d, 50);
	kunit_device_unregister(test, d->dev);
	KUNIT_EXPECT_EQ(test, d->chunks, 0);
	KUNIT_EXPECT_EQ(test, in_use(d), 0);
	KUNIT_EXPECT_EQ(test, read_pages(d, 50), 50UL);
}

static void removed_pool_gives_all_back(struct kunit *test)
{
	struct driver *d = test->priv;

	write_pages(d, 50);
	to_device(d, 50);
	hmm_devmem_remove(d->devmem);
	KUNIT_EXPECT_EQ(test, d->chunks, 0);
	KUNIT_EXPECT_EQ(test, read_pages(d, 50), 50UL);
}

static void removed_pool_asks_again(struct kunit *test)
{
	struct driver *d = test->priv;

	write_pages(d, 50);
	to_device(d, 50);
	d->copy_err = -EIO;
	d->busy_left = 20;
	hmm_devmem_remove(d->devmem);
	KUNIT_EXPECT_EQ(test, d->chunks, 0);
	KUNIT_EXPECT_EQ(test, read_pages(d, 50), 50UL);
}

/* Pages that are lost are zeroes, not what was in that RAM before. */
static void expect_zeroes(struct driver *d, unsigned long n)
{
	unsigned long i, word;

	for (i = 0; i < n; i++) {
		word = 1;
		KUNIT_EXPECT_EQ(d->test, get_user(word, (unsigned long __user *)addr_of(d, i)), 0);
		KUNIT_EXPECT_EQ(d->test, word, 0UL);
	}
}

static void removed_pool_does_not_ask_for_ever(struct kunit *test)
{
	struct driver *d = test->priv;

	write_pages(d, 50);
	to_device(d, 50);
	d->copy_err = -EIO;
	d->devmem->patience = HZ / 10;
	hmm_devmem_remove(d->devmem);
	KUNIT_EXPECT_EQ(test, d->chunks, 0);
	expect_zeroes(d, 50);
}

static void removed_pool_does_not_ask_the_dead(struct kunit *test)
{
	struct driver *d = test->priv;
	unsigned long began = jiffies;

	write_pages(d, 50);
	to_device(d, 50);
	d->copy_err = -ENODEV;
	hmm_devmem_remove(d->devmem);
	KUNIT_EXPECT_EQ(test, d->chunks, 0);
	KUNIT_EXPECT_LT(test, jiffies - began, 4UL * HZ);
	expect_zeroes(d, 50);
}

static struct kunit_case hmm_devmem_cases[] = {
	KUNIT_CASE(add_refuses),
	KUNIT_CASE(migrate_refuses),
	KUNIT_CASE(pages_go_and_come_back),
	KUNIT_CASE(holes_become_zeroes),
	KUNIT_CASE(holes_stay_when_pages_come_back),
	KUNIT_CASE(busy_driver_is_asked_again),
	KUNIT_CASE(full_pool_leaves_the_rest_in_ram),
	KUNIT_CASE(failed_copy_leaves_pages_in_ram),
	KUNIT_CASE(failed_copy_leaves_pages_on_device),
	KUNIT_CASE(page_that_cannot_be_had_is_free_again),
	KUNIT_CASE(blocks_join_again),
	KUNIT_CASE(eviction_says_what_it_could_not_move),
	KUNIT_CASE(shrunk_pool_grows_again),
	KUNIT_CASE(unbound_device_gives_all_back),
	KUNIT_CASE(removed_pool_gives_all_back),
	KUNIT_CASE(removed_pool_asks_again),
	KUNIT_CASE(removed_pool_does_not_ask_for_ever),
	KUNIT_CASE(removed_pool_does_not_ask_the_dead),
	{}
};

static struct kunit_suite hmm_devmem_suite = {
	.name = "hmm_devmem",
	.init = pool_init,
	.test_cases = hmm_devmem_cases,
};

/* --- Large folios --------------------------------------------------------- */

#define HUGE_PAGES	PTRS_PER_PTE

/* The buffer begins with one huge page, if the kernel has one, and goes on. */
static int large_init(struct kunit *test)
{
	struct driver *d;

	if (init_driver(test, 3 * PMD_SIZE))
		return -ENOMEM;
	d = test->priv;
	d->buf = ALIGN(d->buf, PMD_SIZE);
	hmm_devmem_set_limit(d->devmem, 2 * CHUNK_SIZE);
	KUNIT_ASSERT_EQ(test, do_madvise(current->mm, d->buf, 2 * PMD_SIZE, MADV_HUGEPAGE), 0);
	return 0;
}

/* What maps the first huge page's worth of the buffer. */
static pmd_t first_pmd(struct driver *d)
{
	struct mm_struct *mm = current->mm;
	pmd_t *pmdp, pmd = { };

	mmap_read_lock(mm);
	pmdp = mm_find_pmd(mm, d->buf);
	if (pmdp)
		pmd = pmdp_get_lockless(pmdp);
	mmap_read_unlock(mm);
	return pmd;
}

static bool is_pmd_mapped(struct driver *d)
{
	return pmd_trans_huge(first_pmd(d));
}

/* Order of the folio in RAM at page i. */
static unsigned int order_at(struct driver *d, unsigned long i)
{
	struct page *page;
	unsigned int order;

	KUNIT_ASSERT_EQ(d->test, get_user_pages_fast(addr_of(d, i), 1, 0, &page), 1);
	order = folio_order(page_folio(page));
	put_page(page);
	return order;
}

static void touch(struct driver *d, unsigned long i)
{
	KUNIT_ASSERT_EQ(d->test, fault_in_readable((void __user *)addr_of(d, i), 1), 0);
}

/* The same folio, mapped by PTEs. */
static void split_first_pmd(struct driver *d)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;

	mmap_read_lock(mm);
	vma = vma_lookup(mm, d->buf);
	split_huge_pmd(vma, mm_find_pmd(mm, d->buf), d->buf);
	mmap_read_unlock(mm);
	KUNIT_ASSERT_FALSE(d->test, is_pmd_mapped(d));
}

static void huge_page_goes_and_comes_back_whole(struct kunit *test)
{
	struct driver *d = test->priv;

	write_pages(d, HUGE_PAGES);
	KUNIT_ASSERT_TRUE(test, is_pmd_mapped(d));
	KUNIT_EXPECT_EQ(test, to_device(d, HUGE_PAGES).moved, HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, d->copies, 1UL);
	KUNIT_EXPECT_EQ(test, in_use(d), HUGE_PAGES);
	KUNIT_EXPECT_FALSE(test, is_pmd_mapped(d));
	touch(d, 77);
	KUNIT_EXPECT_EQ(test, d->copies, 1UL);
	KUNIT_EXPECT_EQ(test, in_use(d), 0);
	KUNIT_EXPECT_TRUE(test, is_pmd_mapped(d));
	KUNIT_EXPECT_EQ(test, read_pages(d, HUGE_PAGES), HUGE_PAGES);
}

static void huge_page_is_used_again_and_again(struct kunit *test)
{
	struct driver *d = test->priv;
	int round;

	for (round = 0; round < 5; round++) {
		write_pages(d, HUGE_PAGES);
		d->max_order = round % 2 ? 4 : HMM_DEVMEM_ORDERS - 1;
		KUNIT_EXPECT_EQ(test, to_device(d, HUGE_PAGES).moved, HUGE_PAGES);
		/* Once they are in pieces of 16 pages they stay so, in RAM as well. */
		KUNIT_EXPECT_EQ(test, d->copies, round ? HUGE_PAGES >> 4 : 1UL);
		d->max_order = HMM_DEVMEM_ORDERS - 1;
		KUNIT_EXPECT_EQ(test, to_ram(d, HUGE_PAGES).moved, HUGE_PAGES);
		KUNIT_EXPECT_EQ(test, read_pages(d, HUGE_PAGES), HUGE_PAGES);
		KUNIT_EXPECT_EQ(test, in_use(d), 0);
	}
}

static void unmap_buffer(struct driver *d, unsigned long i, unsigned long n)
{
	KUNIT_ASSERT_EQ(d->test, vm_munmap(addr_of(d, i), n * PAGE_SIZE), 0);
	KUNIT_ASSERT_EQ(d->test, vm_mmap(NULL, addr_of(d, i), n * PAGE_SIZE,
					 PROT_READ | PROT_WRITE, MAP_ANONYMOUS |
					 MAP_PRIVATE | MAP_FIXED, 0), addr_of(d, i));
	KUNIT_ASSERT_EQ(d->test, do_madvise(current->mm, d->buf, PMD_SIZE, MADV_HUGEPAGE), 0);
}

/*
 * The device has room for this folio alone, so it is the same struct pages each
 * time: after a process has ended with it, after half of that, and after a split.
 */
static void device_folio_begins_anew(struct kunit *test)
{
	struct driver *d = test->priv;
	int round;

	hmm_devmem_set_limit(d->devmem, CHUNK_SIZE);
	for (round = 0; round < 8; round++) {
		write_pages(d, HUGE_PAGES);
		KUNIT_EXPECT_EQ(test, to_device(d, HUGE_PAGES).moved, HUGE_PAGES);
		KUNIT_EXPECT_EQ(test, d->copies, 1UL);
		if (round % 4 == 1)
			unmap_buffer(d, 200, 100);
		else if (round % 4 == 2)
			KUNIT_EXPECT_EQ(test, to_ram(d, 100).moved, 100UL);
		else if (round % 4 == 3)
			KUNIT_EXPECT_EQ(test, read_pages(d, HUGE_PAGES), HUGE_PAGES);
		unmap_buffer(d, 0, HUGE_PAGES);
		KUNIT_EXPECT_EQ(test, in_use(d), 0);
	}
}

static void pte_mapped_folio_goes_whole(struct kunit *test)
{
	struct driver *d = test->priv;

	write_pages(d, HUGE_PAGES);
	split_first_pmd(d);
	KUNIT_EXPECT_EQ(test, to_device(d, HUGE_PAGES).moved, HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, d->copies, 1UL);
	touch(d, 511);
	KUNIT_EXPECT_EQ(test, in_use(d), 0);
	KUNIT_EXPECT_TRUE(test, is_pmd_mapped(d));
	KUNIT_EXPECT_EQ(test, read_pages(d, HUGE_PAGES), HUGE_PAGES);
}

static void small_destinations_do_as_well(struct kunit *test)
{
	struct driver *d = test->priv;
	unsigned int order;

	for (order = 0; order < HMM_DEVMEM_ORDERS - 1; order++) {
		/* Not one of core mm. */
		if (order == 1)
			continue;
		write_pages(d, HUGE_PAGES);
		d->max_order = order;
		KUNIT_EXPECT_EQ(test, to_device(d, HUGE_PAGES).moved, HUGE_PAGES);
		KUNIT_EXPECT_EQ(test, d->copies, HUGE_PAGES >> order);
		KUNIT_EXPECT_EQ(test, in_use(d), HUGE_PAGES);
		touch(d, 5);
		KUNIT_EXPECT_EQ(test, in_use(d), HUGE_PAGES - (1 << order));
		KUNIT_EXPECT_EQ(test, order_at(d, 5), order);
		KUNIT_EXPECT_EQ(test, read_pages(d, HUGE_PAGES), HUGE_PAGES);
		KUNIT_EXPECT_EQ(test, in_use(d), 0);
		unmap_buffer(d, 0, HUGE_PAGES);
	}
}

static void device_folio_comes_back_in_small_pages(struct kunit *test)
{
	struct driver *d = test->priv;

	write_pages(d, HUGE_PAGES);
	to_device(d, HUGE_PAGES);
	d->max_order = 0;
	touch(d, 300);
	KUNIT_EXPECT_EQ(test, d->copies, HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, in_use(d), 0);
	KUNIT_EXPECT_EQ(test, order_at(d, 300), 0U);
	KUNIT_EXPECT_EQ(test, read_pages(d, HUGE_PAGES), HUGE_PAGES);
}

static void part_of_device_folio_comes_back(struct kunit *test)
{
	struct driver *d = test->priv;

	write_pages(d, HUGE_PAGES);
	to_device(d, HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, to_ram(d, 100).moved, 100UL);
	KUNIT_EXPECT_EQ(test, in_use(d), HUGE_PAGES - 100);
	KUNIT_EXPECT_EQ(test, read_pages(d, HUGE_PAGES), HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, in_use(d), 0);
}

static void part_of_huge_page_goes(struct kunit *test)
{
	struct driver *d = test->priv;

	write_pages(d, HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, to_device(d, 100).moved, 100UL);
	KUNIT_EXPECT_EQ(test, in_use(d), 100);
	KUNIT_EXPECT_EQ(test, read_pages(d, HUGE_PAGES), HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, in_use(d), 0);
}

static void unmapped_part_of_device_folio_is_freed(struct kunit *test)
{
	struct driver *d = test->priv;
	struct hmm_devmem_result r = { };
	unsigned long i, word, good = 0;

	write_pages(d, HUGE_PAGES);
	to_device(d, HUGE_PAGES);
	KUNIT_ASSERT_EQ(test, vm_munmap(addr_of(d, 100), 50 * PAGE_SIZE), 0);
	KUNIT_EXPECT_EQ(test, in_use(d), HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, hmm_devmem_evict(d->devmem, HZ, &r), 0);
	KUNIT_EXPECT_EQ(test, in_use(d), 0);
	for (i = 0; i < HUGE_PAGES; i++)
		good += !get_user(word, (unsigned long __user *)addr_of(d, i)) && word == ~i;
	KUNIT_EXPECT_EQ(test, good, HUGE_PAGES - 50);
}

static void huge_hole_is_one_folio_of_zeroes(struct kunit *test)
{
	struct driver *d = test->priv;
	unsigned long i, word, zeroes = 0;

	KUNIT_EXPECT_EQ(test, to_device(d, HUGE_PAGES).moved, HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, d->copies, 1UL);
	KUNIT_EXPECT_EQ(test, in_use(d), HUGE_PAGES);
	for (i = 0; i < HUGE_PAGES; i++)
		zeroes += !get_user(word, (unsigned long __user *)addr_of(d, i)) && !word;
	KUNIT_EXPECT_EQ(test, zeroes, HUGE_PAGES);
	KUNIT_EXPECT_TRUE(test, is_pmd_mapped(d));
	KUNIT_EXPECT_EQ(test, in_use(d), 0);
}

static void huge_hole_takes_small_folios(struct kunit *test)
{
	struct driver *d = test->priv;

	d->max_order = 3;
	KUNIT_EXPECT_EQ(test, to_device(d, HUGE_PAGES).moved, HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, d->copies, HUGE_PAGES >> 3);
	KUNIT_EXPECT_EQ(test, in_use(d), HUGE_PAGES);
	touch(d, 9);
	KUNIT_EXPECT_EQ(test, in_use(d), HUGE_PAGES - 8);
	KUNIT_EXPECT_EQ(test, order_at(d, 9), 3U);
}

static void what_has_no_room_stays(struct kunit *test)
{
	struct driver *d = test->priv;
	struct hmm_devmem_result r = { };
	unsigned long i;

	hmm_devmem_set_limit(d->devmem, CHUNK_SIZE);
	write_pages(d, HUGE_PAGES + 3);
	/* Three pages behind the huge one take the room of so many of its own. */
	KUNIT_ASSERT_EQ(test, hmm_devmem_migrate_to_device(d->devmem, current->mm,
							   addr_of(d, HUGE_PAGES),
							   addr_of(d, HUGE_PAGES + 3), &r), 0);
	i = in_use(d);
	r = to_device(d, HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, r.moved, HUGE_PAGES - i);
	KUNIT_EXPECT_EQ(test, r.no_memory, i);
	KUNIT_EXPECT_EQ(test, in_use(d), HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, read_pages(d, HUGE_PAGES + 3), HUGE_PAGES + 3);
	KUNIT_EXPECT_EQ(test, in_use(d), 0);
}

static void failed_copy_leaves_huge_page(struct kunit *test)
{
	struct driver *d = test->priv;

	write_pages(d, HUGE_PAGES);
	d->copy_err = -EIO;
	KUNIT_EXPECT_EQ(test, to_device(d, HUGE_PAGES).not_copied, HUGE_PAGES);
	KUNIT_EXPECT_TRUE(test, is_pmd_mapped(d));
	d->copy_err = 0;
	to_device(d, HUGE_PAGES);
	d->copy_err = -EIO;
	KUNIT_EXPECT_EQ(test, to_ram(d, HUGE_PAGES).not_copied, HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, in_use(d), HUGE_PAGES);
	d->copy_err = 0;
	KUNIT_EXPECT_EQ(test, read_pages(d, HUGE_PAGES), HUGE_PAGES);
	KUNIT_EXPECT_TRUE(test, is_pmd_mapped(d));
}

static void huge_pages_are_evicted(struct kunit *test)
{
	struct driver *d = test->priv;
	struct hmm_devmem_result r = { };

	write_pages(d, 2 * HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, to_device(d, 2 * HUGE_PAGES).moved, 2 * HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, hmm_devmem_evict(d->devmem, HZ, &r), 0);
	KUNIT_EXPECT_EQ(test, r.moved, 2 * HUGE_PAGES);
	KUNIT_EXPECT_EQ(test, in_use(d), 0);
	KUNIT_EXPECT_EQ(test, order_at(d, 0), HMM_DEVMEM_ORDERS - 1U);
	KUNIT_EXPECT_EQ(test, read_pages(d, 2 * HUGE_PAGES), 2 * HUGE_PAGES);
}

static struct kunit_case hmm_devmem_large_cases[] = {
	KUNIT_CASE(huge_page_goes_and_comes_back_whole),
	KUNIT_CASE(huge_page_is_used_again_and_again),
	KUNIT_CASE(device_folio_begins_anew),
	KUNIT_CASE(pte_mapped_folio_goes_whole),
	KUNIT_CASE(small_destinations_do_as_well),
	KUNIT_CASE(device_folio_comes_back_in_small_pages),
	KUNIT_CASE(part_of_device_folio_comes_back),
	KUNIT_CASE(part_of_huge_page_goes),
	KUNIT_CASE(unmapped_part_of_device_folio_is_freed),
	KUNIT_CASE(huge_hole_is_one_folio_of_zeroes),
	KUNIT_CASE(huge_hole_takes_small_folios),
	KUNIT_CASE(what_has_no_room_stays),
	KUNIT_CASE(failed_copy_leaves_huge_page),
	KUNIT_CASE(huge_pages_are_evicted),
	{}
};

static struct kunit_suite hmm_devmem_large_suite = {
	.name = "hmm_devmem_large",
	.init = large_init,
	.test_cases = hmm_devmem_large_cases,
};

kunit_test_suites(&hmm_devmem_suite, &hmm_devmem_large_suite);

MODULE_DESCRIPTION("KUnit tests of the pool of device memory");
MODULE_LICENSE("GPL");
