// SPDX-License-Identifier: GPL-2.0
/*
 * What a driver may rely on, item by item, seen from user space through the
 * dmirror driver. The number in a test's name is the item:
 *
 *  1 a CPU access to device memory calls back the driver
 *  2 the driver's word in a device page is the driver's alone
 *  3 the driver hears once of each page that is free again
 *  4 a mirror is never stale
 *  5 device memory never shows what was in it before
 *  6 teardown waits until nothing uses the memory
 *  7 nothing is lost, whatever fails
 */
#include "../kselftest_harness.h"

#include <pthread.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "hmm_dmirror.h"

/* Not a multiple of the 64 pages that drivers like to work in. */
#define NPAGES		150L

FIXTURE(contract)
{
	struct dm_dev dev;
	struct dm_counts start;
	enum dm_place after_cpu;
};

FIXTURE_VARIANT(contract)
{
	int unit;
};

FIXTURE_VARIANT_ADD(contract, private0)
{
	.unit = DM_PRIVATE0,
};

FIXTURE_VARIANT_ADD(contract, private1)
{
	.unit = DM_PRIVATE1,
};

FIXTURE_VARIANT_ADD(contract, coherent0)
{
	.unit = DM_COHERENT0,
};

FIXTURE_VARIANT_ADD(contract, coherent1)
{
	.unit = DM_COHERENT1,
};

FIXTURE_SETUP(contract)
{
	int err = dm_open(&self->dev, variant->unit);

	if (err && dm_is_coherent(variant->unit))
		SKIP(return, "no coherent device: load with spm_addr_dev0/1");
	ASSERT_EQ(0, err);
	dm_counts(variant->unit, &self->start);
	/* Coherent memory is there for the CPU too: nothing needs to move. */
	self->after_cpu = dm_is_coherent(variant->unit) ? AT_DEVICE : AT_RAM;
}

FIXTURE_TEARDOWN(contract)
{
	dm_close(&self->dev);
	EXPECT_BALANCED(variant->unit, &self->start);
}

/* ---- 1 ---- */

TEST_F(contract, c1_cpu_read_calls_back)
{
	struct dm_mem m;

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, NPAGES));
	EXPECT_ON_DEVICE(&self->dev, &m, 0, NPAGES);

	/* One page was touched, one page moves. */
	EXPECT_CPU_SEES(&m, 70, 1);
	EXPECT_AT(&self->dev, &m, 70, 1, self->after_cpu);
	EXPECT_ON_DEVICE(&self->dev, &m, 0, 70);
	EXPECT_ON_DEVICE(&self->dev, &m, 71, NPAGES - 71);

	EXPECT_CPU_SEES(&m, 0, NPAGES);
	EXPECT_AT(&self->dev, &m, 0, NPAGES, self->after_cpu);
	dm_free(&m);
}

TEST_F(contract, c1_cpu_write_calls_back)
{
	struct dm_mem m;
	uint64_t *w;

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, NPAGES));
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 0, NPAGES));
	EXPECT_ON_DEVICE(&self->dev, &m, 0, NPAGES);

	/* One word of the CPU among the words of the device. */
	w = (uint64_t *)dm_addr(&m, 33);
	w[100]++;
	EXPECT_EQ(dm_word(m.tag[33], 100) + 1, w[100]);
	w[100]--;
	EXPECT_AT(&self->dev, &m, 33, 1, self->after_cpu);

	dm_cpu_write(&m, 100, 20);
	EXPECT_AT(&self->dev, &m, 100, 20, self->after_cpu);
	EXPECT_BOTH_SEE(&self->dev, &m, 0, NPAGES);
	dm_free(&m);
}

/* With fault-around: the aligned block of 16 that the page is in. */
TEST_F(contract, c1_fault_around)
{
	unsigned long addr, before, n = 16;
	struct dm_mem m;

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, NPAGES));
	addr = (unsigned long)dm_addr(&m, 70);
	before = addr / DM_PAGE % n;

	EXPECT_EQ(0, dm_set_flags(&self->dev, HMM_DMIRROR_FLAG_FAULT_AROUND));
	EXPECT_CPU_SEES(&m, 70, 1);
	EXPECT_EQ(0, dm_set_flags(&self->dev, 0));
	EXPECT_AT(&self->dev, &m, 70 - before, n, self->after_cpu);
	EXPECT_ON_DEVICE(&self->dev, &m, 0, 70 - before);
	EXPECT_ON_DEVICE(&self->dev, &m, 70 - before + n,
			 NPAGES - (70 - before + n));

	EXPECT_CPU_SEES(&m, 0, NPAGES);
	EXPECT_BOTH_SEE(&self->dev, &m, 0, NPAGES);
	dm_free(&m);
}

/* A block that goes beyond the VMA, on either side. */
TEST_F(contract, c1_fault_around_ends_with_the_vma)
{
	struct dm_mem m;

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, NPAGES));
	EXPECT_EQ(0, dm_set_flags(&self->dev, HMM_DMIRROR_FLAG_FAULT_AROUND));
	EXPECT_EQ(0, mprotect(dm_addr(&m, 40), 5 * DM_PAGE, PROT_READ));
	EXPECT_CPU_SEES(&m, 42, 1);
	EXPECT_AT(&self->dev, &m, 42, 1, self->after_cpu);
	EXPECT_ON_DEVICE(&self->dev, &m, 0, 40);
	EXPECT_ON_DEVICE(&self->dev, &m, 45, NPAGES - 45);
	EXPECT_EQ(0, mprotect(dm_addr(&m, 40), 5 * DM_PAGE,
			      PROT_READ | PROT_WRITE));
	EXPECT_CPU_SEES(&m, 0, NPAGES);
	EXPECT_EQ(0, dm_set_flags(&self->dev, 0));
	EXPECT_AT(&self->dev, &m, 0, NPAGES, self->after_cpu);
	dm_free(&m);
}

TEST_F(contract, c1_kernel_access_calls_back)
{
	struct dm_mem m;
	char buf[DM_PAGE];
	int p[2];

	ASSERT_EQ(0, dm_small(&m, 4));
	ASSERT_EQ(0, pipe(p));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, 4));

	EXPECT_EQ((ssize_t)DM_PAGE, write(p[1], dm_addr(&m, 1), DM_PAGE));
	EXPECT_AT(&self->dev, &m, 1, 1, self->after_cpu);
	EXPECT_EQ((ssize_t)DM_PAGE, read(p[0], buf, DM_PAGE));
	EXPECT_TRUE(dm_page_is(buf, m.tag[1]));

	m.tag[2] = dm_new_tag();
	dm_paint(buf, m.tag[2]);
	EXPECT_EQ((ssize_t)DM_PAGE, write(p[1], buf, DM_PAGE));
	EXPECT_EQ((ssize_t)DM_PAGE, read(p[0], dm_addr(&m, 2), DM_PAGE));
	EXPECT_AT(&self->dev, &m, 2, 1, self->after_cpu);

	EXPECT_ON_DEVICE(&self->dev, &m, 0, 1);
	EXPECT_BOTH_SEE(&self->dev, &m, 0, 4);
	close(p[0]);
	close(p[1]);
	dm_free(&m);
}

/* What the device changed is what the callback brings, again and again. */
TEST_F(contract, c1_round_trips)
{
	struct dm_mem m;
	int round;

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	for (round = 0; round < 8; round++) {
		EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, NPAGES));
		EXPECT_EQ(0, dm_dev_write(&self->dev, &m, round, NPAGES / 2));
		EXPECT_ON_DEVICE(&self->dev, &m, 0, NPAGES);
		if (round & 1) {
			EXPECT_EQ(0, dm_to_sys(&self->dev, &m, 0, NPAGES));
			EXPECT_IN_RAM(&self->dev, &m, 0, NPAGES);
			EXPECT_CPU_SEES(&m, 0, NPAGES);
			continue;
		}
		EXPECT_CPU_SEES(&m, 0, NPAGES);
		EXPECT_AT(&self->dev, &m, 0, NPAGES, self->after_cpu);
		/* The driver takes RAM alone: what stays would be refused. */
		EXPECT_EQ(0, dm_to_sys(&self->dev, &m, 0, NPAGES));
	}
	dm_free(&m);
}

/* ---- 2 ---- */

/*
 * The driver finds its storage by the word in the device page. Everything here
 * moves, splits or shares mappings of device pages; none may touch the word.
 */
TEST_F(contract, c2_driver_word_is_left_alone)
{
	struct dm_mem m;
	pid_t pid;
	void *to;
	long i;

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, NPAGES));

	for (i = 0; i < NPAGES; i += 2)
		EXPECT_CPU_SEES(&m, i, 1);
	for (i = 0; i < NPAGES; i += 3)
		EXPECT_EQ(0, mprotect(dm_addr(&m, i), DM_PAGE, PROT_READ));
	EXPECT_EQ(0, mprotect(m.cpu, NPAGES * DM_PAGE, PROT_READ | PROT_WRITE));

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(0);
	EXPECT_EQ(0, dm_wait(pid));

	to = mremap(m.cpu, NPAGES * DM_PAGE, 2 * NPAGES * DM_PAGE,
		    MREMAP_MAYMOVE);
	ASSERT_NE(MAP_FAILED, to);
	EXPECT_EQ(0, munmap((char *)to + NPAGES * DM_PAGE, NPAGES * DM_PAGE));
	m.cpu = to;

	EXPECT_DEVICE_SEES(&self->dev, &m, 0, NPAGES);
	EXPECT_ON_DEVICE(&self->dev, &m, 1, 1);
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 0, NPAGES));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, NPAGES);
	dm_free(&m);
}

/* ---- 3 ---- */

/* Pages in use on the device while a test holds them, by the way they go. */
TEST_F(contract, c3_free_is_heard_once)
{
	struct dm_counts c;
	struct dm_mem m;

	if (!self->start.known)
		SKIP(return, "this driver does not count its pages");

	/* by munmap */
	ASSERT_EQ(0, dm_small(&m, NPAGES));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, NPAGES));
	dm_counts(variant->unit, &c);
	EXPECT_EQ(NPAGES, dm_in_use(&self->start, &c));
	EXPECT_EQ(0, munmap(dm_addr(&m, 50), 50 * DM_PAGE));
	EXPECT_IN_USE(variant->unit, &self->start, NPAGES - 50);

	/* by coming back to RAM */
	EXPECT_EQ(0, dm_to_sys(&self->dev, &m, 0, 50));
	EXPECT_IN_USE(variant->unit, &self->start, NPAGES - 100);

	/* by MADV_DONTNEED */
	EXPECT_EQ(0, madvise(dm_addr(&m, 100), (NPAGES - 100) * DM_PAGE,
			     MADV_DONTNEED));
	EXPECT_IN_USE(variant->unit, &self->start, 0);
	dm_free(&m);
}

TEST_F(contract, c3_freed_when_the_last_user_exits)
{
	struct dm_counts c;
	struct dm_mem m;
	int go[2];
	pid_t pid;
	char x;

	if (!self->start.known)
		SKIP(return, "this driver does not count its pages");

	ASSERT_EQ(0, pipe(go));
	ASSERT_EQ(0, dm_small(&m, NPAGES));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, NPAGES));
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		close(go[1]);
		while (read(go[0], &x, 1) > 0)
			;
		_exit(0);
	}

	/* Two mappings, one user less: nobody may hear of it. */
	dm_free(&m);
	dm_counts(variant->unit, &c);
	EXPECT_EQ(NPAGES, dm_in_use(&self->start, &c));

	close(go[1]);
	EXPECT_EQ(0, dm_wait(pid));
	EXPECT_IN_USE(variant->unit, &self->start, 0);
	close(go[0]);
}

/* Whatever the driver counts: storage that is not given back is missed. */
TEST_F(contract, c3_storage_comes_back)
{
	long before, round;
	struct dm_mem m;

	before = dm_free_kb();
	for (round = 0; round < 12; round++) {
		ASSERT_EQ(0, dm_hole(&m, 1024));
		EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, 1024));
		EXPECT_ON_DEVICE(&self->dev, &m, 0, 1024);
		dm_free(&m);
	}
	EXPECT_NO_LEAK(before);
}

/* ---- 4 ---- */

TEST_F(contract, c4_mirror_follows_the_cpu)
{
	struct dm_mem m;

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	EXPECT_DEVICE_SEES(&self->dev, &m, 0, NPAGES);
	dm_cpu_write(&m, 10, 100);
	EXPECT_DEVICE_SEES(&self->dev, &m, 0, NPAGES);

	EXPECT_EQ(0, madvise(dm_addr(&m, 20), 20 * DM_PAGE, MADV_DONTNEED));
	dm_zero_tags(&m, 20, 20);
	EXPECT_DEVICE_SEES(&self->dev, &m, 0, NPAGES);

	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 5, 60));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, NPAGES);
	dm_free(&m);
}

TEST_F(contract, c4_mirror_follows_a_new_mapping)
{
	struct dm_mem m;
	void *p;

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 0, NPAGES));

	p = mmap(dm_addr(&m, 40), 40 * DM_PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	ASSERT_EQ(dm_addr(&m, 40), p);
	dm_zero_tags(&m, 40, 40);
	EXPECT_DEVICE_SEES(&self->dev, &m, 0, NPAGES);
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 40, 40));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, NPAGES);

	EXPECT_EQ(0, munmap(dm_addr(&m, 60), 10 * DM_PAGE));
	EXPECT_EQ(-1000L - EFAULT, dm_dev_wrong(&self->dev, &m, 60, 10));
	EXPECT_DEVICE_SEES(&self->dev, &m, 0, 60);
	EXPECT_DEVICE_SEES(&self->dev, &m, 70, NPAGES - 70);
	dm_free(&m);
}

TEST_F(contract, c4_mirror_follows_protection)
{
	struct dm_mem m;

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 0, NPAGES));

	EXPECT_EQ(0, mprotect(m.cpu, NPAGES * DM_PAGE, PROT_READ));
	EXPECT_EQ(-EPERM, dm_dev_write(&self->dev, &m, 0, NPAGES));
	EXPECT_DEVICE_SEES(&self->dev, &m, 0, NPAGES);

	EXPECT_EQ(0, mprotect(m.cpu, NPAGES * DM_PAGE, PROT_NONE));
	EXPECT_EQ(-1000L - EFAULT, dm_dev_wrong(&self->dev, &m, 0, NPAGES));

	EXPECT_EQ(0, mprotect(m.cpu, NPAGES * DM_PAGE, PROT_READ | PROT_WRITE));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, NPAGES);
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 0, NPAGES));
	EXPECT_CPU_SEES(&m, 0, NPAGES);
	dm_free(&m);
}

/* The device has written a page, then it is shared, then it is written again */
TEST_F(contract, c4_mirror_follows_cow)
{
	struct dm_mem m;
	int go[2];
	pid_t pid;
	char x;

	ASSERT_EQ(0, pipe(go));
	ASSERT_EQ(0, dm_small(&m, NPAGES));
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 0, NPAGES));
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		close(go[1]);
		while (read(go[0], &x, 1) > 0)
			;
		EXPECT_CPU_SEES(&m, 0, NPAGES);
		_exit(0);
	}

	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 0, 70));
	dm_cpu_write(&m, 70, 70);
	EXPECT_BOTH_SEE(&self->dev, &m, 0, NPAGES);
	close(go[1]);
	EXPECT_EQ(0, dm_wait(pid));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, NPAGES);
	close(go[0]);
	dm_free(&m);
}

/*
 * A thread swaps the page for one with the next number, in one step, and only
 * then says so: a device that reads less than what was said before it began
 * has read a page that is no longer there.
 */
struct swapper {
	char *target;
	char *staging;
	unsigned long begun;
	volatile unsigned long done;
	bool stop;
	bool failed;
};

static char *map_staging(struct swapper *s, int prot)
{
	return mmap(s->staging, DM_PAGE, prot,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

static bool swap_in(struct swapper *s, unsigned long number)
{
	char *p = map_staging(s, PROT_READ | PROT_WRITE);

	if (p == MAP_FAILED)
		return false;
	*(unsigned long *)p = number;
	__atomic_store_n(&s->begun, number, __ATOMIC_SEQ_CST);
	p = mremap(p, DM_PAGE, DM_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
		   s->target);
	__atomic_store_n(&s->done, number, __ATOMIC_SEQ_CST);
	/* Keep the place, or a stack of a new thread gets it. */
	return p == s->target && map_staging(s, PROT_NONE) == s->staging;
}

static void *swap_pages(void *arg)
{
	struct swapper *s = arg;
	unsigned long number = s->done;

	while (!__atomic_load_n(&s->stop, __ATOMIC_RELAXED) && !s->failed)
		s->failed = !swap_in(s, ++number);
	return NULL;
}

TEST_F(contract, c4_mirror_is_never_behind)
{
	struct swapper s = { };
	unsigned long buf[DM_PAGE / sizeof(long)];
	pthread_t thread;
	double began;
	long reads;

	s.staging = mmap(NULL, 4 * DM_PAGE, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, s.staging);
	s.target = s.staging + 2 * DM_PAGE;
	ASSERT_TRUE(swap_in(&s, 1));
	ASSERT_EQ(0, pthread_create(&thread, NULL, swap_pages, &s));

	began = dm_now();
	/* A race with one of the two standing still proves nothing. */
	for (reads = 0; dm_race(began, 0.7, reads > 20 && s.done > 20); reads++) {
		unsigned long low = __atomic_load_n(&s.done, __ATOMIC_SEQ_CST);

		buf[0] = 0;
		ASSERT_EQ(0, dm_op(&self->dev, reads % 2 ?
				   HMM_DMIRROR_READ : HMM_DMIRROR_READ_UNLOCKED,
				   s.target, 1, buf));
		ASSERT_LE(low, buf[0]);
		ASSERT_GE(__atomic_load_n(&s.begun, __ATOMIC_SEQ_CST), buf[0]);
	}
	__atomic_store_n(&s.stop, true, __ATOMIC_RELAXED);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_FALSE(s.failed);
	EXPECT_LT(20, reads);
	EXPECT_LT(20L, (long)s.done);
	munmap(s.staging, 4 * DM_PAGE);
}

/* ---- 5 ---- */

/* Leave pages with something in them behind, in RAM and on the device. */
static int leave_dirt(const struct dm_dev *d)
{
	struct dm_mem m;
	int err = dm_small(&m, 1024);

	if (!err)
		err = dm_to_dev(d, &m, 0, 512);
	dm_free(&m);
	return err;
}

TEST_F(contract, c5_hole_reads_as_zeroes)
{
	struct dm_mem m;

	ASSERT_EQ(0, leave_dirt(&self->dev));
	ASSERT_EQ(0, dm_hole(&m, 512));
	EXPECT_AT(&self->dev, &m, 0, 512, AT_NOWHERE);
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, 512));
	EXPECT_ON_DEVICE(&self->dev, &m, 0, 512);
	EXPECT_BOTH_SEE(&self->dev, &m, 0, 512);
	dm_free(&m);
}

TEST_F(contract, c5_zero_page_reads_as_zeroes)
{
	struct dm_mem m;

	ASSERT_EQ(0, leave_dirt(&self->dev));
	ASSERT_EQ(0, dm_hole(&m, 512));
	EXPECT_CPU_SEES(&m, 0, 512);
	EXPECT_AT(&self->dev, &m, 0, 512, AT_ZERO);
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, 512));
	EXPECT_ON_DEVICE(&self->dev, &m, 0, 512);
	EXPECT_DEVICE_SEES(&self->dev, &m, 0, 512);

	/* Writing what was the zero page must not write the zero page. */
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 0, 300));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, 512);
	dm_free(&m);
	ASSERT_EQ(0, dm_hole(&m, 16));
	EXPECT_CPU_SEES(&m, 0, 16);
	dm_free(&m);
}

TEST_F(contract, c5_holes_between_pages)
{
	struct dm_mem m;
	long i;

	ASSERT_EQ(0, leave_dirt(&self->dev));
	ASSERT_EQ(0, dm_hole(&m, NPAGES));
	for (i = 0; i < NPAGES; i += 7)
		dm_cpu_write(&m, i, 2);
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, NPAGES));
	EXPECT_ON_DEVICE(&self->dev, &m, 0, NPAGES);
	EXPECT_DEVICE_SEES(&self->dev, &m, 0, NPAGES);
	EXPECT_EQ(0, dm_to_sys(&self->dev, &m, 0, NPAGES));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, NPAGES);
	dm_free(&m);
}

/* A hole in memory that may only be read. */
TEST_F(contract, c5_read_only_hole)
{
	struct dm_mem m;

	ASSERT_EQ(0, leave_dirt(&self->dev));
	ASSERT_EQ(0, dm_hole(&m, NPAGES));
	EXPECT_EQ(0, mprotect(m.cpu, NPAGES * DM_PAGE, PROT_READ));
	dm_to_dev(&self->dev, &m, 0, NPAGES);
	EXPECT_EQ(-EPERM, dm_dev_write(&self->dev, &m, 0, NPAGES));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, NPAGES);
	dm_free(&m);
}

/* ---- 6 ---- */

static int release_chunks(const struct dm_dev *d)
{
	return dm_op(d, HMM_DMIRROR_RELEASE, NULL, 1, NULL);
}

TEST_F(contract, c6_teardown_brings_all_back)
{
	struct dm_mem m, other;
	pid_t pid;

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	ASSERT_EQ(0, dm_small(&other, NPAGES));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, NPAGES));
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 0, NPAGES));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &other, 0, NPAGES));
	EXPECT_ON_DEVICE(&self->dev, &m, 0, NPAGES);

	EXPECT_EQ(0, release_chunks(&self->dev));
	EXPECT_IN_RAM(&self->dev, &m, 0, NPAGES);
	EXPECT_IN_RAM(&self->dev, &other, 0, NPAGES);
	EXPECT_BOTH_SEE(&self->dev, &m, 0, NPAGES);
	EXPECT_BOTH_SEE(&self->dev, &other, 0, NPAGES);

	/* Shared by a child, some of it written there. */
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, NPAGES));
	EXPECT_ON_DEVICE(&self->dev, &m, 0, NPAGES);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		dm_cpu_write(&m, 0, 20);
		EXPECT_EQ(0, release_chunks(&self->dev));
		EXPECT_CPU_SEES(&m, 0, NPAGES);
		_exit(0);
	}
	EXPECT_EQ(0, dm_wait(pid));
	EXPECT_IN_RAM(&self->dev, &m, 0, NPAGES);
	EXPECT_BOTH_SEE(&self->dev, &m, 0, NPAGES);
	dm_free(&m);
	dm_free(&other);
}

/* Closing the file is the other way in which users go. */
TEST_F(contract, c6_close_brings_all_back)
{
	struct dm_dev again;
	struct dm_mem m;

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, NPAGES));
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 10, 100));
	dm_close(&self->dev);

	ASSERT_EQ(0, dm_open(&again, variant->unit));
	EXPECT_IN_RAM(&again, &m, 0, NPAGES);
	EXPECT_BOTH_SEE(&again, &m, 0, NPAGES);
	dm_close(&again);
	dm_free(&m);
}

struct user {
	struct dm_dev dev;
	struct dm_mem m;
	pthread_t thread;
	bool *stop;
	long wrong;
	volatile long rounds;
};

static void *use_device(void *arg)
{
	struct user *u = arg;
	long n = u->m.pages;

	while (!__atomic_load_n(u->stop, __ATOMIC_RELAXED) && !u->wrong) {
		/* May find no device memory, or lose it at once: no matter. */
		dm_push(&u->dev, &u->m, 0, n);
		if (u->rounds & 1)
			dm_to_sys(&u->dev, &u->m, 0, n / 2);
		if (dm_cpu_wrong(&u->m, 0, n) != DM_ALL_RIGHT)
			u->wrong++;
		dm_cpu_write(&u->m, u->rounds % n, 1);
		u->rounds++;
	}
	return NULL;
}

/*
 * Memory goes while others put pages there, fault them back, open and close.
 * A hang is the end of this test by its time limit.
 */
TEST_F(contract, c6_teardown_under_load)
{
	struct dm_dev passer_by;
	struct user u[2] = { };
	bool stop = false;
	double began;
	long rounds;
	int i;

	for (i = 0; i < 2; i++) {
		u[i].stop = &stop;
		u[i].dev = self->dev;
		ASSERT_EQ(0, dm_small(&u[i].m, 80));
		ASSERT_EQ(0, pthread_create(&u[i].thread, NULL, use_device,
					    &u[i]));
	}
	began = dm_now();
	for (rounds = 0;
	     dm_race(began, 1, rounds > 1 && u[0].rounds > 1 && u[1].rounds > 1);
	     rounds++) {
		EXPECT_EQ(0, release_chunks(&self->dev));
		EXPECT_EQ(0, dm_open(&passer_by, variant->unit));
		dm_close(&passer_by);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	EXPECT_LT(1, rounds);
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, pthread_join(u[i].thread, NULL));
		EXPECT_EQ(0, u[i].wrong);
		EXPECT_LT(1, u[i].rounds);
		EXPECT_BOTH_SEE(&self->dev, &u[i].m, 0, 80);
		dm_free(&u[i].m);
	}
}

/* ---- 7 ---- */

/* A page that somebody else holds cannot move. It stays, and so does its data. */
TEST_F(contract, c7_held_page_stays)
{
	struct iovec iov;
	struct dm_mem m;
	char buf[DM_PAGE];
	int p[2];

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	ASSERT_EQ(0, pipe(p));
	iov.iov_base = dm_addr(&m, 65);
	iov.iov_len = DM_PAGE;
	ASSERT_EQ((ssize_t)DM_PAGE, vmsplice(p[1], &iov, 1, 0));

	EXPECT_EQ(-ENOENT, dm_to_dev(&self->dev, &m, 0, NPAGES));
	EXPECT_IN_RAM(&self->dev, &m, 65, 1);
	EXPECT_ON_DEVICE(&self->dev, &m, 0, 65);
	EXPECT_ON_DEVICE(&self->dev, &m, 66, NPAGES - 66);
	EXPECT_DEVICE_SEES(&self->dev, &m, 0, NPAGES);
	EXPECT_CPU_SEES(&m, 65, 1);

	/* It still is the same page: what is written now is in the pipe. */
	dm_cpu_write(&m, 65, 1);
	EXPECT_EQ((ssize_t)DM_PAGE, read(p[0], buf, DM_PAGE));
	EXPECT_TRUE(dm_page_is(buf, m.tag[65]));

	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 65, 1));
	EXPECT_ON_DEVICE(&self->dev, &m, 0, NPAGES);
	EXPECT_BOTH_SEE(&self->dev, &m, 0, NPAGES);
	close(p[0]);
	close(p[1]);
	dm_free(&m);
}

/* A range that ends in nothing: what was done before the end is kept. */
TEST_F(contract, c7_error_behind_good_pages)
{
	struct dm_mem m;

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	EXPECT_EQ(0, munmap(dm_addr(&m, 100), DM_PAGE));
	EXPECT_EQ(-EINVAL, dm_to_dev(&self->dev, &m, 0, NPAGES));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, 100);
	EXPECT_BOTH_SEE(&self->dev, &m, 101, NPAGES - 101);

	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, 100));
	EXPECT_EQ(-EINVAL, dm_to_sys(&self->dev, &m, 0, NPAGES));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, 100);
	dm_free(&m);
}

/*
 * One thread counts in every page while the pages go to and fro. A write that
 * goes to a page that was copied already is a count that is missing.
 */
struct counter {
	struct dm_mem *m;
	unsigned long *count;
	bool stop;
};

static unsigned long *count_word(const struct dm_mem *m, long page)
{
	return (unsigned long *)dm_addr(m, page) + 17;
}

static void *count_in_pages(void *arg)
{
	struct counter *c = arg;
	long i;

	while (!__atomic_load_n(&c->stop, __ATOMIC_RELAXED)) {
		for (i = 0; i < (long)c->m->pages; i++) {
			*(volatile unsigned long *)count_word(c->m, i) += 1;
			c->count[i]++;
		}
	}
	return NULL;
}

TEST_F(contract, c7_no_write_is_lost)
{
	struct counter c = { };
	pthread_t thread;
	struct dm_mem m;
	long i, wrong = 0, rounds;
	double began;

	ASSERT_EQ(0, dm_hole(&m, 40));
	c.m = &m;
	c.count = calloc(40, sizeof(*c.count));
	ASSERT_NE(NULL, c.count);
	ASSERT_EQ(0, pthread_create(&thread, NULL, count_in_pages, &c));
	began = dm_now();
	for (rounds = 0;
	     dm_race(began, 0, rounds > 20 &&
		     *(volatile unsigned long *)&c.count[39] > 5);
	     rounds++) {
		dm_push(&self->dev, &m, 0, 40);
		if (rounds & 1)
			dm_to_sys(&self->dev, &m, 0, 40);
	}
	__atomic_store_n(&c.stop, true, __ATOMIC_RELAXED);
	ASSERT_EQ(0, pthread_join(thread, NULL));

	for (i = 0; i < 40; i++)
		wrong += *count_word(&m, i) != c.count[i];
	EXPECT_EQ(0, wrong);
	EXPECT_LT(20, rounds);
	EXPECT_LT(5L, (long)c.count[39]);
	free(c.count);
	dm_free(&m);
}

/* ---- What is counted per batch, not per page ---- */

#define GROUPS		"/sys/fs/cgroup"
#define COUNTED		2048L
/* A program's own pages, and those that a CPU has not told yet. */
#define NOT_TOLD	300L

/* The number behind a name, or -1. */
static long stat_in(const char *path, const char *name)
{
	FILE *f = fopen(path, "re");
	long value = -1, v;
	char word[64];

	while (f && value < 0 && fscanf(f, "%63s", word) == 1)
		if (!strcmp(word, name) && fscanf(f, "%ld", &v) == 1)
			value = v;
	if (f)
		fclose(f);
	return value;
}

/* What a group has, in pages; memory.stat says bytes. */
static long group_pages(const char *stat, const char *name)
{
	return stat_in(stat, name) / DM_PAGE;
}

static long lru_pages(const char *stat)
{
	return group_pages(stat, "active_anon") +
	       group_pages(stat, "inactive_anon");
}

static long zone_lru_pages(void)
{
	return stat_in("/proc/vmstat", "nr_zone_active_anon") +
	       stat_in("/proc/vmstat", "nr_zone_inactive_anon");
}

static bool is_about(long value, long wanted)
{
	return labs(value - wanted) <= NOT_TOLD;
}

/* Then what comes back is young again. */
static bool has_generations(void)
{
	FILE *f = fopen("/sys/kernel/mm/lru_gen/enabled", "re");
	unsigned int on = 0;

	if (f && fscanf(f, "%x", &on) != 1)
		on = 0;
	if (f)
		fclose(f);
	return on;
}

/*
 * Is what the group has mapped what the process has, and on the LRU all but what
 * is at the device? The kernel adds up what its CPUs know every two seconds.
 */
static bool has_counts(const char *stat, long at_device)
{
	double began = dm_now();
	bool good;

	do {
		long anon = group_pages(stat, "anon");
		long own = stat_in("/proc/self/status", "RssAnon:") * 1024 / DM_PAGE;

		good = is_about(anon, own) && is_about(lru_pages(stat), own - at_device);
	} while (!good && dm_now() - began < 5 && !usleep(100000));
	return good;
}

/* In a group of its own; returns the line of what went wrong. */
static int count_in_group(int unit, const char *stat)
{
	struct dm_dev dev;
	struct dm_mem m;
	long active;
	int i;

	/* Neighbours are of two lists, which costs and must not be mixed up. */
	if (dm_open(&dev, unit) || dm_small(&m, COUNTED) || dm_activate(&m, 2))
		return __LINE__;
	if (!has_counts(stat, 0))
		return __LINE__;
	active = group_pages(stat, "active_anon");
	if (!has_generations() && !is_about(active, COUNTED / 2))
		return __LINE__;
	for (i = 0; i < 10; i++) {
		if (dm_to_dev(&dev, &m, 0, COUNTED))
			return __LINE__;
		if (dm_count_at(&dev, &m, 0, COUNTED, AT_DEVICE) != COUNTED)
			return __LINE__;
		if (!i && !has_counts(stat, COUNTED))
			return __LINE__;
		if (dm_to_sys(&dev, &m, 0, COUNTED))
			return __LINE__;
	}
	if (!has_counts(stat, 0))
		return __LINE__;
	if (!has_generations() && !is_about(group_pages(stat, "active_anon"), active))
		return __LINE__;
	dm_free(&m);
	dm_close(&dev);
	return has_counts(stat, 0) ? 0 : __LINE__;
}

static int join_group(const char *group)
{
	char path[80];

	if (mkdir(group, 0755))
		return -errno;
	snprintf(path, sizeof(path), "%s/cgroup.procs", group);
	return dm_put_file(path, "0");
}

/* Control group, node and zone know how many pages are mapped, and on the LRU. */
TEST_F(contract, c7_counts_follow_the_pages)
{
	long before = zone_lru_pages(), line = 0;
	char group[60], stat[80];
	pid_t pid;

	if (dm_put_file(GROUPS "/cgroup.subtree_control", "+memory"))
		SKIP(return, "no control groups for memory");
	snprintf(group, sizeof(group), GROUPS "/hmm.%d", getpid());
	snprintf(stat, sizeof(stat), "%s/memory.stat", group);

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (join_group(group))
			_exit(1);
		line = count_in_group(variant->unit, stat);
		if (line)
			TH_LOG("line %ld: anon %ld, LRU %ld pages", line,
			       group_pages(stat, "anon"), lru_pages(stat));
		_exit(!!line);
	}
	EXPECT_EQ(0, dm_wait(pid));
	EXPECT_EQ(0, rmdir(group));
	EXPECT_LE(0, before);
	EXPECT_GT(1000 + NOT_TOLD, labs(zone_lru_pages() - before));
}

TEST_HARNESS_MAIN
