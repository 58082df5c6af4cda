// SPDX-License-Identifier: GPL-2.0
/*
 * Large folios move to the device and back as they are: one copy for each, and
 * the same order after it; or page by page, when one side has no room for them.
 * Each test is run with huge pages that a PMD maps, with the same mapped by
 * PTEs, and with several smaller orders.
 *
 * That the data are right whatever is done to the mapping is shown for all of
 * these in hmm_dmirror_matrix.c; what is here is about their size.
 */
#include "../kselftest_harness.h"

#include <pthread.h>

#include "hmm_dmirror.h"

#define NR_FOLIOS	3L

FIXTURE(large)
{
	struct dm_dev dev;
	struct dm_counts start;
	struct dm_mem m;
	long per_folio;
};

FIXTURE_VARIANT(large)
{
	int unit;
	int order;
	bool ptes;		/* order 9, not mapped by a PMD */
};

FIXTURE_VARIANT_ADD(large, private_16k)
{
	.unit = DM_PRIVATE0,
	.order = 2,
};

FIXTURE_VARIANT_ADD(large, private_64k)
{
	.unit = DM_PRIVATE0,
	.order = 4,
};

FIXTURE_VARIANT_ADD(large, private_256k)
{
	.unit = DM_PRIVATE0,
	.order = 6,
};

FIXTURE_VARIANT_ADD(large, private_1m)
{
	.unit = DM_PRIVATE0,
	.order = 8,
};

FIXTURE_VARIANT_ADD(large, private_2m)
{
	.unit = DM_PRIVATE0,
	.order = 9,
};

FIXTURE_VARIANT_ADD(large, private_2m_ptes)
{
	.unit = DM_PRIVATE0,
	.order = 9,
	.ptes = true,
};

FIXTURE_VARIANT_ADD(large, coherent_64k)
{
	.unit = DM_COHERENT0,
	.order = 4,
};

FIXTURE_VARIANT_ADD(large, coherent_2m)
{
	.unit = DM_COHERENT0,
	.order = 9,
};

/* Changing the protection of one page and back leaves a PMD split. */
static int split_pmds(const struct dm_mem *m)
{
	unsigned long i;

	for (i = 0; i < m->pages; i += DM_PER_HUGE)
		if (mprotect(dm_addr(m, i + 1), DM_PAGE, PROT_READ) ||
		    mprotect(dm_addr(m, i + 1), DM_PAGE, PROT_READ | PROT_WRITE))
			return -errno;
	return 0;
}

FIXTURE_SETUP(large)
{
	int err = dm_open(&self->dev, variant->unit);

	if (err && dm_is_coherent(variant->unit))
		SKIP(return, "no coherent device: load with spm_addr_dev0/1");
	ASSERT_EQ(0, err);
	dm_counts(variant->unit, &self->start);
	self->per_folio = 1L << variant->order;
	ASSERT_EQ(0, dm_folios(&self->m, variant->order, NR_FOLIOS));
	if (variant->ptes)
		ASSERT_EQ(0, split_pmds(&self->m));
}

FIXTURE_TEARDOWN(large)
{
	dm_free(&self->m);
	dm_close(&self->dev);
	EXPECT_BALANCED(variant->unit, &self->start);
}

#define ALL		((long)self->m.pages)
#define COPIES()	dm_count_file(variant->unit, "copies")

#define EXPECT_ALL_RIGHT() \
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, ALL)

/* All of it on the device, with one copy for each folio. */
#define ALL_TO_DEVICE() do { \
	long copies = COPIES(); \
	EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 0, ALL)); \
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, ALL); \
	EXPECT_EQ(NR_FOLIOS, COPIES() - copies); \
} while (0)

/* Bring all of it back to RAM, without a CPU access. */
#define ALL_TO_RAM() \
	EXPECT_EQ(0, dm_to_sys(&self->dev, &self->m, 0, ALL))

#define EXPECT_ORDER(page, want) \
	EXPECT_EQ(want, dm_order_at(&self->m, page))

TEST_F(large, goes_and_comes_back_whole)
{
	long copies, i;

	for (i = 0; i < NR_FOLIOS; i++)
		EXPECT_ORDER(i * self->per_folio, variant->order);
	ALL_TO_DEVICE();
	EXPECT_DEVICE_SEES(&self->dev, &self->m, 0, ALL);
	EXPECT_EQ(0, dm_smaps_kb(&self->m, "AnonHugePages"));
	/* The device may map it in one piece, too. */
	if (variant->order == DM_HUGE_ORDER)
		EXPECT_EQ(ALL, dm_count_perm(&self->dev, &self->m, 0, ALL,
					     HMM_DMIRROR_PROT_PMD));
	EXPECT_EQ(0, dm_dev_write(&self->dev, &self->m, 1, ALL - 2));

	copies = COPIES();
	ALL_TO_RAM();
	EXPECT_EQ(NR_FOLIOS, COPIES() - copies);
	EXPECT_IN_RAM(&self->dev, &self->m, 0, ALL);
	for (i = 0; i < NR_FOLIOS; i++)
		EXPECT_ORDER(i * self->per_folio, variant->order);
	if (variant->order == 9 && !dm_is_coherent(variant->unit))
		EXPECT_EQ(NR_FOLIOS * (long)(DM_HUGE >> 10),
			  dm_smaps_kb(&self->m, "AnonHugePages"));
	EXPECT_ALL_RIGHT();
}

/* Again and again, with other orders between: no state of a folio is left. */
TEST_F(large, device_pages_change_their_order)
{
	int round;

	for (round = 0; round < 4; round++) {
		if (round % 2)
			dm_set_flags(&self->dev, HMM_DMIRROR_FLAG_FAIL_ALLOC);
		EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 0, ALL));
		EXPECT_ON_DEVICE(&self->dev, &self->m, 0, ALL);
		EXPECT_EQ(0, dm_dev_write(&self->dev, &self->m, round, ALL / 2));
		ALL_TO_RAM();
		EXPECT_ALL_RIGHT();
	}
}

/* The CPU touches a byte: the folio around it is back, and no other. */
TEST_F(large, touch_brings_one_folio_back)
{
	long copies, page;

	ALL_TO_DEVICE();
	copies = COPIES();
	page = self->per_folio + self->per_folio / 2;
	EXPECT_CPU_SEES(&self->m, page, 1);
	if (dm_is_coherent(variant->unit)) {
		/* The CPU reads it where it is. */
		EXPECT_EQ(0, COPIES() - copies);
		EXPECT_ON_DEVICE(&self->dev, &self->m, 0, ALL);
		return;
	}
	EXPECT_EQ(1, COPIES() - copies);
	EXPECT_IN_USE(variant->unit, &self->start,
		      (NR_FOLIOS - 1) * self->per_folio);
	EXPECT_IN_RAM(&self->dev, &self->m, self->per_folio, self->per_folio);
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, self->per_folio);
	EXPECT_ORDER(self->per_folio, variant->order);
	if (variant->order == 9)
		EXPECT_EQ((long)(DM_HUGE >> 10),
			  dm_smaps_kb(&self->m, "AnonHugePages"));
	EXPECT_ALL_RIGHT();
}

#define NR_TOUCHERS	8

struct toucher {
	pthread_t thread;
	pthread_barrier_t *line;
	struct dm_mem *m;
	long page;
	long wrong;
};

static void *touch_page(void *arg)
{
	struct toucher *t = arg;

	pthread_barrier_wait(t->line);
	t->wrong = dm_cpu_wrong(t->m, t->page, 1) != DM_ALL_RIGHT;
	return NULL;
}

TEST_F(large, threads_touch_it_at_once)
{
	struct toucher t[NR_TOUCHERS] = { };
	pthread_barrier_t line;
	long copies;
	int i;

	ASSERT_EQ(0, pthread_barrier_init(&line, NULL, NR_TOUCHERS));
	ALL_TO_DEVICE();
	copies = COPIES();
	for (i = 0; i < NR_TOUCHERS; i++) {
		t[i].line = &line;
		t[i].m = &self->m;
		t[i].page = i * self->per_folio / NR_TOUCHERS;
		ASSERT_EQ(0, pthread_create(&t[i].thread, NULL, touch_page, &t[i]));
	}
	for (i = 0; i < NR_TOUCHERS; i++) {
		ASSERT_EQ(0, pthread_join(t[i].thread, NULL));
		EXPECT_EQ(0, t[i].wrong);
	}
	EXPECT_EQ(dm_is_coherent(variant->unit) ? 0 : 1, COPIES() - copies);
	EXPECT_ALL_RIGHT();
}

/* One side has no large folio: page by page, and all of it moves. */
TEST_F(large, no_large_folio_on_the_device)
{
	long copies = COPIES();

	dm_set_flags(&self->dev, HMM_DMIRROR_FLAG_FAIL_ALLOC);
	EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 0, ALL));
	EXPECT_EQ(NR_FOLIOS - 1 + self->per_folio, COPIES() - copies);
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, ALL);
	EXPECT_ALL_RIGHT();
}

/* What is left of a source is freed: it has handed on what the LRU knew of it. */
TEST_F(large, active_folio_goes_in_pieces)
{
	EXPECT_EQ(0, dm_activate(&self->m, 1));
	dm_set_flags(&self->dev, HMM_DMIRROR_FLAG_FAIL_ALLOC);
	EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 0, ALL));
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, ALL);
	EXPECT_ALL_RIGHT();
}

TEST_F(large, no_large_folio_in_ram)
{
	long copies;

	ALL_TO_DEVICE();
	copies = COPIES();
	dm_set_flags(&self->dev, HMM_DMIRROR_FLAG_FAIL_ALLOC);
	ALL_TO_RAM();
	EXPECT_EQ(NR_FOLIOS - 1 + self->per_folio, COPIES() - copies);
	EXPECT_IN_RAM(&self->dev, &self->m, 0, ALL);
	EXPECT_ORDER(0, 0);
	EXPECT_ORDER(self->per_folio, variant->order);
	EXPECT_ALL_RIGHT();
}

/* Only a part of a folio is asked for: it is split, and the part moves. */
TEST_F(large, part_goes)
{
	EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 1, ALL - 2));
	EXPECT_IN_RAM(&self->dev, &self->m, 0, 1);
	EXPECT_ON_DEVICE(&self->dev, &self->m, 1, ALL - 2);
	EXPECT_IN_RAM(&self->dev, &self->m, ALL - 1, 1);
	EXPECT_ALL_RIGHT();
}

TEST_F(large, part_comes_back)
{
	ALL_TO_DEVICE();
	EXPECT_EQ(0, dm_to_sys(&self->dev, &self->m, 1, ALL - 2));
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, 1);
	EXPECT_IN_RAM(&self->dev, &self->m, 1, ALL - 2);
	EXPECT_ON_DEVICE(&self->dev, &self->m, ALL - 1, 1);
	EXPECT_IN_USE(variant->unit, &self->start, 2);
	EXPECT_ALL_RIGHT();
}

/* Memory of which a part is gone: what is left moves. */
TEST_F(large, part_is_unmapped_in_ram)
{
	long n = self->per_folio;

	ASSERT_EQ(0, munmap(dm_addr(&self->m, n), n / 2 * DM_PAGE));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 0, n));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, n + n / 2, 2 * n - n / 2));
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, n);
	EXPECT_ON_DEVICE(&self->dev, &self->m, n + n / 2, 2 * n - n / 2);
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, n);
	EXPECT_BOTH_SEE(&self->dev, &self->m, n + n / 2, 2 * n - n / 2);
}

TEST_F(large, part_is_unmapped_on_the_device)
{
	long n = self->per_folio;

	ALL_TO_DEVICE();
	ASSERT_EQ(0, munmap(dm_addr(&self->m, n), n / 2 * DM_PAGE));
	EXPECT_DEVICE_SEES(&self->dev, &self->m, n + n / 2, 2 * n - n / 2);
	EXPECT_CPU_SEES(&self->m, n + n / 2, 1);
	EXPECT_EQ(0, dm_to_sys(&self->dev, &self->m, 0, n));
	EXPECT_EQ(0, dm_to_sys(&self->dev, &self->m, n + n / 2, 2 * n - n / 2));
	EXPECT_IN_USE(variant->unit, &self->start, 0);
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, n);
	EXPECT_BOTH_SEE(&self->dev, &self->m, n + n / 2, 2 * n - n / 2);
}

/* All of it is taken away with the device's memory, wherever it is mapped. */
TEST_F(large, eviction_keeps_the_order)
{
	struct hmm_dmirror_cmd cmd = { };
	long copies;

	ALL_TO_DEVICE();
	copies = COPIES();
	EXPECT_EQ(0, dm_ioctl(&self->dev, HMM_DMIRROR_RELEASE, &cmd));
	EXPECT_EQ(NR_FOLIOS, COPIES() - copies);
	EXPECT_IN_RAM(&self->dev, &self->m, 0, ALL);
	EXPECT_ORDER(0, variant->order);
	EXPECT_ALL_RIGHT();
}

/* Two processes have it: it goes, and comes back, for both. */
TEST_F(large, is_shared_after_fork)
{
	int go[2], i;
	pid_t pid;
	char x;

	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, pipe(go));
		if (i)
			EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 0, ALL));
		pid = fork();
		ASSERT_GE(pid, 0);
		if (!pid) {
			close(go[1]);
			while (read(go[0], &x, 1) > 0)
				;
			dm_cpu_write(&self->m, 3, 1);
			_exit(dm_cpu_wrong(&self->m, 0, ALL) != DM_ALL_RIGHT);
		}
		close(go[0]);
		EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 0, ALL));
		EXPECT_ON_DEVICE(&self->dev, &self->m, 0, ALL);
		EXPECT_EQ(0, dm_dev_write(&self->dev, &self->m, 2, 1));
		close(go[1]);
		EXPECT_EQ(0, dm_wait(pid));
		EXPECT_ALL_RIGHT();
	}
}

/* A page that somebody holds keeps its folio where it is, and no other. */
TEST_F(large, held_folio_stays)
{
	long n = self->per_folio;
	struct iovec iov = {
		.iov_base = dm_addr(&self->m, n + 1),
		.iov_len = DM_PAGE,
	};
	char buf[DM_PAGE];
	int p[2];

	ASSERT_EQ(0, pipe(p));
	ASSERT_EQ((ssize_t)DM_PAGE, vmsplice(p[1], &iov, 1, 0));
	EXPECT_EQ(-ENOENT, dm_to_dev(&self->dev, &self->m, 0, ALL));
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, n);
	EXPECT_IN_RAM(&self->dev, &self->m, n, n);
	EXPECT_ON_DEVICE(&self->dev, &self->m, 2 * n, n);
	EXPECT_EQ((ssize_t)DM_PAGE, read(p[0], buf, DM_PAGE));
	EXPECT_TRUE(dm_page_is(buf, self->m.tag[n + 1]));
	ASSERT_EQ(0, dm_to_dev(&self->dev, &self->m, n, n));
	EXPECT_ALL_RIGHT();
	close(p[0]);
	close(p[1]);
}

/* ---- races ---- */

struct mover {
	pthread_t thread;
	const struct dm_dev *dev;
	const struct dm_mem *m;
	bool stop;
	volatile long rounds;
};

/* To the device and, by a touch, back again. */
static void *move_around(void *arg)
{
	struct mover *mv = arg;
	volatile char *p = (volatile char *)mv->m->cpu;

	while (!__atomic_load_n(&mv->stop, __ATOMIC_RELAXED)) {
		dm_push(mv->dev, mv->m, 0, mv->m->pages);
		(void)p[mv->rounds % mv->m->pages * DM_PAGE];
		mv->rounds++;
	}
	return NULL;
}

/* Who drops a page while its folio is on the way must not see it again. */
TEST_F(large, dropped_while_it_moves)
{
	struct mover mv = { .dev = &self->dev, .m = &self->m };
	long page = 0, wrong = 0, dropped = 0;
	double began;

	ASSERT_EQ(0, pthread_create(&mv.thread, NULL, move_around, &mv));
	began = dm_now();
	while (dm_race(began, 0.3, mv.rounds > 10 && dropped > 10)) {
		dm_cpu_write(&self->m, page, 1);
		wrong += madvise(dm_addr(&self->m, page), DM_PAGE, MADV_DONTNEED) != 0;
		dm_zero_tags(&self->m, page, 1);
		wrong += dm_cpu_wrong(&self->m, page, 1) != DM_ALL_RIGHT;
		page = (page + 7) % ALL;
		dropped++;
	}
	__atomic_store_n(&mv.stop, true, __ATOMIC_RELAXED);
	ASSERT_EQ(0, pthread_join(mv.thread, NULL));
	EXPECT_EQ(0, wrong);
	EXPECT_LT(10, mv.rounds);
	EXPECT_ALL_RIGHT();
}

/* Back from the device come the pages that were there, and no others. */
TEST_F(large, what_was_dropped_stays_away)
{
	long before, n = self->per_folio / 2;

	ALL_TO_DEVICE();
	ASSERT_EQ(0, madvise(dm_addr(&self->m, 1), n * DM_PAGE, MADV_DONTNEED));
	dm_zero_tags(&self->m, 1, n);
	before = dm_smaps_kb(&self->m, "Rss");
	EXPECT_CPU_SEES(&self->m, 0, 1);
	EXPECT_EQ(before, dm_smaps_kb(&self->m, "Rss"));
	EXPECT_ALL_RIGHT();
}

/* Processes go while the device is emptied, and somebody else finds their pages. */
TEST_F(large, eviction_while_owners_exit)
{
	struct hmm_dmirror_cmd cmd = { };
	struct dm_dev own;
	struct dm_mem m;
	int i, status, wrong = 0;
	pid_t pid;

	for (i = 0; i < 12; i++) {
		pid = fork();
		ASSERT_GE(pid, 0);
		if (!pid) {
			if (dm_open(&own, variant->unit) ||
			    dm_folios(&m, variant->order, 2))
				_exit(1);
			dm_push(&own, &m, 0, m.pages);
			usleep(i * 300);
			_exit(0);
		}
		do {
			wrong += dm_ioctl(&self->dev, HMM_DMIRROR_RELEASE, &cmd) != 0;
		} while (waitpid(pid, &status, WNOHANG) == 0);
		wrong += status != 0;
	}
	EXPECT_EQ(0, wrong);
	EXPECT_ALL_RIGHT();
}

/* ---- holes ---- */

FIXTURE(hole)
{
	struct dm_dev dev;
	struct dm_counts start;
	struct dm_mem m;
};

FIXTURE_SETUP(hole)
{
	ASSERT_EQ(0, dm_open(&self->dev, DM_PRIVATE0));
	dm_counts(DM_PRIVATE0, &self->start);
	ASSERT_EQ(0, dm_adopt(&self->m, dm_aligned(2 * DM_HUGE, PROT_READ | PROT_WRITE),
			      2 * DM_PER_HUGE));
	ASSERT_EQ(0, madvise(self->m.cpu, 2 * DM_HUGE, MADV_HUGEPAGE));
}

FIXTURE_TEARDOWN(hole)
{
	dm_free(&self->m);
	dm_close(&self->dev);
	EXPECT_BALANCED(DM_PRIVATE0, &self->start);
}

/* Where a huge page may come to be, the hole becomes one on the device. */
static long copies_for_holes(void)
{
	return dm_thp_is_never() ? 2 * DM_PER_HUGE : 2;
}

TEST_F(hole, becomes_one_folio)
{
	long copies = dm_count_file(DM_PRIVATE0, "copies");

	EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 0, self->m.pages));
	EXPECT_EQ(copies_for_holes(),
		  dm_count_file(DM_PRIVATE0, "copies") - copies);
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, self->m.pages);
	EXPECT_EQ(0, dm_dev_write(&self->dev, &self->m, 100, 100));
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, self->m.pages);
}

TEST_F(hole, of_the_huge_zero_page)
{
	volatile char *p = (volatile char *)self->m.cpu;

	(void)p[0];
	(void)p[DM_HUGE + 5];
	EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 0, self->m.pages));
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, self->m.pages);
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, self->m.pages);
}

TEST_F(hole, with_something_in_it)
{
	dm_cpu_write(&self->m, DM_PER_HUGE + 7, 1);
	EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 0, self->m.pages));
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, self->m.pages);
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, self->m.pages);
}

TEST_F(hole, without_a_large_folio)
{
	dm_set_flags(&self->dev, HMM_DMIRROR_FLAG_FAIL_ALLOC);
	EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 0, self->m.pages));
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, self->m.pages);
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, self->m.pages);
	dm_set_flags(&self->dev, 0);
}

TEST_HARNESS_MAIN
