// SPDX-License-Identifier: GPL-2.0
/*
 * Does the driver of Documentation/mm/hmm.rst do what the text says it does?
 *
 * The thread of a test is the CPU, which gets at the memory by put_user() and
 * get_user(); example_read() and example_write() are the device.
 */
#include <kunit/test.h>
#include <linux/err.h>
#include <linux/hmm.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/sched.h>
#include <linux/uaccess.h>

#include "hmm_example.h"

#define NPAGES		EXAMPLE_NR_PTES

/**
 * struct scene - a process, and a device that shares its address space
 * @test: the test
 * @ex: the device; NULL if the test has taken it away
 * @mirror: the process on the device; NULL if the test has closed it
 * @buf: address of NPAGES pages that both can get at
 */
struct scene {
	struct kunit		*test;
	struct example		*ex;
	struct example_mirror	*mirror;
	unsigned long		buf;
};

static u64 __user *user_word(struct scene *s, unsigned long page)
{
	return (u64 __user *)(s->buf + page * PAGE_SIZE);
}

static void cpu_writes(struct scene *s, unsigned long page, u64 word)
{
	KUNIT_ASSERT_EQ(s->test, put_user(word, user_word(s, page)), 0);
}

static u64 cpu_reads(struct scene *s, unsigned long page)
{
	u64 word = ~0ULL;

	KUNIT_EXPECT_EQ(s->test, get_user(word, user_word(s, page)), 0);
	return word;
}

static void device_writes(struct scene *s, unsigned long page, u64 word)
{
	KUNIT_EXPECT_EQ(s->test, example_write(s->mirror,
					       s->buf + page * PAGE_SIZE, word), 0);
}

static u64 device_reads(struct scene *s, unsigned long page)
{
	u64 word = ~0ULL;

	KUNIT_EXPECT_EQ(s->test, example_read(s->mirror,
					      s->buf + page * PAGE_SIZE, &word), 0);
	return word;
}

/* What device_reads() could not: the errno of it. */
static int device_read_error(struct scene *s, unsigned long page)
{
	u64 word;

	return example_read(s->mirror, s->buf + page * PAGE_SIZE, &word);
}

static unsigned long device_pte(struct scene *s, unsigned long page)
{
	guard(mutex)(&s->mirror->lock);
	return s->mirror->ptes[page];
}

static bool device_maps_its_own(struct scene *s, unsigned long page)
{
	unsigned long pte = device_pte(s, page);

	return (pte & HMM_PFN_VALID) &&
	       hmm_devmem_has_page(s->ex->devmem, hmm_pfn_to_page(pte));
}

static unsigned long migrate(struct scene *s, unsigned long n, bool to_device)
{
	struct hmm_devmem_result result = { };

	KUNIT_ASSERT_EQ(s->test, example_migrate(s->mirror, s->buf,
						 s->buf + n * PAGE_SIZE,
						 to_device, &result), 0);
	return result.moved;
}

static void write_all(struct scene *s)
{
	unsigned long i;

	for (i = 0; i < NPAGES; i++)
		cpu_writes(s, i, i + 1);
}

/* How many pages the CPU finds as write_all() has left them. */
static unsigned long count_unchanged(struct scene *s)
{
	unsigned long i, good = 0;

	for (i = 0; i < NPAGES; i++)
		good += cpu_reads(s, i) == i + 1;
	return good;
}

static void map_buffer(struct scene *s, int prot)
{
	s->buf = kunit_vm_mmap(s->test, NULL, 0, NPAGES * PAGE_SIZE, prot,
			       MAP_ANONYMOUS | MAP_PRIVATE, 0);
	KUNIT_ASSERT_NE(s->test, s->buf, 0UL);
}

static void open_mirror(struct scene *s)
{
	s->mirror = example_open(s->ex, s->buf);
	KUNIT_ASSERT_FALSE(s->test, IS_ERR(s->mirror));
}

static void close_mirror(struct scene *s)
{
	example_close(s->mirror);
	s->mirror = NULL;
}

static int scene_init(struct kunit *test)
{
	struct scene *s = kunit_kzalloc(test, sizeof(*s), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, s);
	s->test = test;
	test->priv = s;
	map_buffer(s, PROT_READ | PROT_WRITE);
	s->ex = example_add();
	KUNIT_ASSERT_FALSE(test, IS_ERR(s->ex));
	open_mirror(s);
	return 0;
}

static void scene_exit(struct kunit *test)
{
	struct scene *s = test->priv;

	if (!s)
		return;
	if (!IS_ERR_OR_NULL(s->mirror))
		example_close(s->mirror);
	if (!IS_ERR_OR_NULL(s->ex))
		example_del(s->ex);
}

/* --- In RAM --------------------------------------------------------------- */

static void device_reads_what_the_cpu_wrote(struct kunit *test)
{
	struct scene *s = test->priv;

	cpu_writes(s, 3, 0x1234);
	KUNIT_EXPECT_EQ(test, device_reads(s, 3), 0x1234ULL);
	cpu_writes(s, 3, 0x5678);
	KUNIT_EXPECT_EQ(test, device_reads(s, 3), 0x5678ULL);
}

static void cpu_reads_what_the_device_wrote(struct kunit *test)
{
	struct scene *s = test->priv;

	device_writes(s, 0, 0xabc);
	KUNIT_EXPECT_EQ(test, cpu_reads(s, 0), 0xabcULL);
	KUNIT_EXPECT_FALSE(test, device_maps_its_own(s, 0));
}

/* The device has the zero page until the CPU's write breaks COW. */
static void device_follows_cow(struct kunit *test)
{
	struct scene *s = test->priv;

	KUNIT_EXPECT_EQ(test, device_reads(s, 5), 0ULL);
	KUNIT_EXPECT_NE(test, device_pte(s, 5), 0UL);
	cpu_writes(s, 5, 77);
	KUNIT_EXPECT_EQ(test, device_pte(s, 5), 0UL);
	KUNIT_EXPECT_EQ(test, device_reads(s, 5), 77ULL);
}

static void unmapped_page_is_efault(struct kunit *test)
{
	struct scene *s = test->priv;

	write_all(s);
	KUNIT_EXPECT_EQ(test, device_reads(s, 1), 2ULL);
	KUNIT_ASSERT_EQ(test, vm_munmap(s->buf + PAGE_SIZE, PAGE_SIZE), 0);
	KUNIT_EXPECT_EQ(test, device_pte(s, 1), 0UL);
	KUNIT_EXPECT_EQ(test, device_read_error(s, 1), -EFAULT);
	KUNIT_EXPECT_EQ(test, device_reads(s, 2), 3ULL);
}

static void write_to_read_only_is_eperm(struct kunit *test)
{
	struct scene *s = test->priv;

	close_mirror(s);
	map_buffer(s, PROT_READ);
	open_mirror(s);
	KUNIT_EXPECT_EQ(test, device_reads(s, 0), 0ULL);
	KUNIT_EXPECT_EQ(test, example_write(s->mirror, s->buf, 1), -EPERM);
}

static void bad_addresses_are_einval(struct kunit *test)
{
	struct scene *s = test->priv;
	unsigned long end = s->buf + NPAGES * PAGE_SIZE;
	u64 word;

	KUNIT_EXPECT_EQ(test, example_read(s->mirror, s->buf + 1, &word), -EINVAL);
	KUNIT_EXPECT_EQ(test, example_read(s->mirror, s->buf - 8, &word), -EINVAL);
	KUNIT_EXPECT_EQ(test, example_read(s->mirror, end, &word), -EINVAL);
	KUNIT_EXPECT_EQ(test, example_write(s->mirror, end, 0), -EINVAL);
	KUNIT_EXPECT_EQ(test, PTR_ERR(example_open(s->ex, s->buf + 1)), -EINVAL);
}

/* --- On the device -------------------------------------------------------- */

static void device_uses_its_own_memory(struct kunit *test)
{
	struct scene *s = test->priv;

	write_all(s);
	KUNIT_EXPECT_EQ(test, migrate(s, NPAGES, true), NPAGES);
	KUNIT_EXPECT_EQ(test, device_reads(s, 9), 10ULL);
	KUNIT_EXPECT_TRUE(test, device_maps_its_own(s, 9));
	device_writes(s, 9, 99);
	KUNIT_EXPECT_EQ(test, device_reads(s, 9), 99ULL);
	KUNIT_EXPECT_TRUE(test, device_maps_its_own(s, 9));
}

static void cpu_access_brings_a_page_back(struct kunit *test)
{
	struct scene *s = test->priv;

	write_all(s);
	KUNIT_EXPECT_EQ(test, migrate(s, NPAGES, true), NPAGES);
	device_writes(s, 9, 99);
	device_reads(s, 10);
	KUNIT_EXPECT_EQ(test, cpu_reads(s, 9), 99ULL);
	KUNIT_EXPECT_EQ(test, device_pte(s, 9), 0UL);
	KUNIT_EXPECT_TRUE(test, device_maps_its_own(s, 10));

	/* And the device finds it where it is now. */
	KUNIT_EXPECT_EQ(test, device_reads(s, 9), 99ULL);
	KUNIT_EXPECT_FALSE(test, device_maps_its_own(s, 9));
}

static void pages_are_moved_back(struct kunit *test)
{
	struct scene *s = test->priv;

	write_all(s);
	KUNIT_EXPECT_EQ(test, migrate(s, NPAGES, true), NPAGES);
	device_writes(s, 9, 99);
	KUNIT_EXPECT_EQ(test, migrate(s, NPAGES, false), NPAGES);
	KUNIT_EXPECT_EQ(test, cpu_reads(s, 9), 99ULL);
	KUNIT_EXPECT_EQ(test, count_unchanged(s), NPAGES - 1);
}

/* Memory that another process had before: its data must not show. */
static void hole_on_the_device_reads_zeroes(struct kunit *test)
{
	struct scene *s = test->priv;

	write_all(s);
	KUNIT_EXPECT_EQ(test, migrate(s, NPAGES, true), NPAGES);
	KUNIT_ASSERT_EQ(test, vm_munmap(s->buf, NPAGES * PAGE_SIZE), 0);
	close_mirror(s);

	map_buffer(s, PROT_READ | PROT_WRITE);
	open_mirror(s);
	KUNIT_EXPECT_EQ(test, migrate(s, NPAGES, true), NPAGES);
	KUNIT_EXPECT_EQ(test, device_reads(s, 0), 0ULL);
	KUNIT_EXPECT_TRUE(test, device_maps_its_own(s, 0));
	KUNIT_EXPECT_EQ(test, cpu_reads(s, 1), 0ULL);
}

static void unmapped_device_page_is_efault(struct kunit *test)
{
	struct scene *s = test->priv;

	write_all(s);
	KUNIT_EXPECT_EQ(test, migrate(s, NPAGES, true), NPAGES);
	KUNIT_EXPECT_EQ(test, device_reads(s, 1), 2ULL);
	KUNIT_ASSERT_EQ(test, vm_munmap(s->buf + PAGE_SIZE, PAGE_SIZE), 0);
	KUNIT_EXPECT_EQ(test, device_pte(s, 1), 0UL);
	KUNIT_EXPECT_EQ(test, device_read_error(s, 1), -EFAULT);
	KUNIT_EXPECT_EQ(test, device_reads(s, 2), 3ULL);
}

/* A page of the first device reaches the second one by way of RAM. */
static void other_device_reads_it_too(struct kunit *test)
{
	struct scene *s = test->priv;
	struct scene other = { .test = test, .buf = s->buf };

	other.ex = example_add();
	KUNIT_ASSERT_FALSE(test, IS_ERR(other.ex));
	other.mirror = example_open(other.ex, other.buf);
	if (!IS_ERR(other.mirror)) {
		cpu_writes(s, 0, 11);
		KUNIT_EXPECT_EQ(test, migrate(s, 1, true), 1UL);
		KUNIT_EXPECT_EQ(test, device_reads(&other, 0), 11ULL);
		KUNIT_EXPECT_FALSE(test, device_maps_its_own(&other, 0));
		KUNIT_EXPECT_EQ(test, device_reads(s, 0), 11ULL);
		KUNIT_EXPECT_FALSE(test, device_maps_its_own(s, 0));
		example_close(other.mirror);
	} else {
		KUNIT_FAIL(test, "no mirror for the second device");
	}
	example_del(other.ex);
}

static void closed_mirror_leaves_the_data(struct kunit *test)
{
	struct scene *s = test->priv;

	write_all(s);
	KUNIT_EXPECT_EQ(test, migrate(s, NPAGES, true), NPAGES);
	close_mirror(s);
	KUNIT_EXPECT_EQ(test, count_unchanged(s), NPAGES);
}

static void removed_device_gives_all_back(struct kunit *test)
{
	struct scene *s = test->priv;

	write_all(s);
	KUNIT_EXPECT_EQ(test, migrate(s, NPAGES, true), NPAGES);
	close_mirror(s);
	example_del(s->ex);
	s->ex = NULL;
	KUNIT_EXPECT_EQ(test, count_unchanged(s), NPAGES);
}

static struct kunit_case hmm_example_cases[] = {
	KUNIT_CASE(device_reads_what_the_cpu_wrote),
	KUNIT_CASE(cpu_reads_what_the_device_wrote),
	KUNIT_CASE(device_follows_cow),
	KUNIT_CASE(unmapped_page_is_efault),
	KUNIT_CASE(write_to_read_only_is_eperm),
	KUNIT_CASE(bad_addresses_are_einval),
	KUNIT_CASE(device_uses_its_own_memory),
	KUNIT_CASE(cpu_access_brings_a_page_back),
	KUNIT_CASE(pages_are_moved_back),
	KUNIT_CASE(hole_on_the_device_reads_zeroes),
	KUNIT_CASE(unmapped_device_page_is_efault),
	KUNIT_CASE(other_device_reads_it_too),
	KUNIT_CASE(closed_mirror_leaves_the_data),
	KUNIT_CASE(removed_device_gives_all_back),
	{}
};

static struct kunit_suite hmm_example_suite = {
	.name = "hmm_example",
	.init = scene_init,
	.exit = scene_exit,
	.test_cases = hmm_example_cases,
};

kunit_test_suite(hmm_example_suite);

MODULE_DESCRIPTION("KUnit tests of the driver that Documentation/mm/hmm.rst shows");
MODULE_LICENSE("GPL");
