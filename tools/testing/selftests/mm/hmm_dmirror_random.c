// SPDX-License-Identifier: GPL-2.0
/*
 * Whatever happens in whatever order: a process, its device and the kernel do
 * things to the same memory at random, in pieces of any size, and after each
 * step what the CPU and the device see is compared with a model of it.
 *
 * The order is that of a seed, which a failure names:
 *
 *	HMM_SEED=42 HMM_STEPS=1000 hmm_dmirror_random
 */
#include "../kselftest_harness.h"

#include "hmm_dmirror.h"

#define NR_HUGE		4
#define NR_PAGES	(NR_HUGE * DM_PER_HUGE)
#define STEPS		100
#define SEEDS		3

struct world {
	struct dm_dev dev[2];
	struct dm_mem m;
	void *aside;		/* as much address space */
	unsigned long random;
	const char *did;
	long first, n;
	char why[120];
};

/* A small generator, so that a seed means the same on every machine. */
static unsigned long rnd(struct world *w, unsigned long below)
{
	w->random ^= w->random << 13;
	w->random ^= w->random >> 7;
	w->random ^= w->random << 17;
	return w->random % below;
}

/* Some pages: often a few, sometimes a folio's worth, or all. */
static void choose_pages(struct world *w)
{
	long n = 1L << rnd(w, 12);

	if (rnd(w, 3))
		n = 1 + rnd(w, n);
	if (n > NR_PAGES)
		n = NR_PAGES;
	w->first = rnd(w, NR_PAGES - n + 1);
	if (n == 1L << __builtin_ctzl(n) && rnd(w, 2))
		w->first &= -n;
	w->n = n;
}

static void choose_huge(struct world *w)
{
	w->first = rnd(w, NR_HUGE) * DM_PER_HUGE;
	w->n = DM_PER_HUGE;
}

static void *addr_of(const struct world *w)
{
	return dm_addr(&w->m, w->first);
}

static unsigned long len_of(const struct world *w)
{
	return w->n * DM_PAGE;
}

static const struct dm_dev *any_device(struct world *w)
{
	return &w->dev[rnd(w, 2)];
}

/* ---- things to do; 0, or -errno of what must not fail ---- */

static int cpu_writes(struct world *w)
{
	dm_cpu_write(&w->m, w->first, w->n);
	return 0;
}

static int device_writes(struct world *w)
{
	return dm_dev_write(any_device(w), &w->m, w->first, w->n);
}

/* Some pages may stay; what does arrive has to be right. */
static int to_device(struct world *w)
{
	int err = dm_to_dev(any_device(w), &w->m, w->first, w->n);

	return err == -ENOENT ? 0 : err;
}

static int to_ram(struct world *w)
{
	return dm_to_sys(any_device(w), &w->m, w->first, w->n);
}

static int fails_to_allocate(struct world *w)
{
	dm_set_flags(any_device(w), HMM_DMIRROR_FLAG_FAIL_ALLOC);
	return rnd(w, 2) ? to_device(w) : to_ram(w);
}

static int empties_device(struct world *w)
{
	struct hmm_dmirror_cmd cmd = { };

	return dm_ioctl(any_device(w), HMM_DMIRROR_RELEASE, &cmd);
}

/* Not every page can be had; what is read has to be right. */
static int takes_exclusively(struct world *w)
{
	int err = dm_exclusive(any_device(w), &w->m, w->first, w->n);

	return err == -EBADMSG ? err : 0;
}

static int drops(struct world *w)
{
	if (madvise(addr_of(w), len_of(w), MADV_DONTNEED))
		return -errno;
	dm_zero_tags(&w->m, w->first, w->n);
	return 0;
}

static int maps_anew(struct world *w)
{
	if (mmap(addr_of(w), len_of(w), PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		return -errno;
	dm_zero_tags(&w->m, w->first, w->n);
	madvise(addr_of(w), len_of(w), rnd(w, 2) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	return 0;
}

static int keep_aside(struct world *w)
{
	return mmap(w->aside, len_of(w), PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == w->aside ?
		0 : -errno;
}

/* mremap() takes one mapping at a time; it makes room even if it then fails. */
static int moves_away_and_back(struct world *w)
{
	void *from = addr_of(w), *to = w->aside;

	if (mremap(from, len_of(w), len_of(w), MREMAP_MAYMOVE | MREMAP_FIXED,
		   to) == MAP_FAILED)
		return errno == EFAULT ? keep_aside(w) : -errno;
	if (mremap(to, len_of(w), len_of(w), MREMAP_MAYMOVE | MREMAP_FIXED,
		   from) == MAP_FAILED)
		return -errno;
	return keep_aside(w);
}

static int protects(struct world *w)
{
	if (mprotect(addr_of(w), len_of(w), PROT_READ))
		return -errno;
	if (rnd(w, 2))
		to_device(w);
	return mprotect(addr_of(w), len_of(w), PROT_READ | PROT_WRITE) ?
		-errno : 0;
}

static int collapses(struct world *w)
{
	choose_huge(w);
	/* Not all that is there can be. */
	madvise(addr_of(w), len_of(w), MADV_COLLAPSE);
	return 0;
}

static int locks(struct world *w)
{
	if (mlock(addr_of(w), len_of(w)))
		return -errno;
	if (rnd(w, 2))
		to_device(w);
	return munlock(addr_of(w), len_of(w)) ? -errno : 0;
}

/* The child sees what its parent has now, and what it writes is its own. */
static int forks(struct world *w)
{
	pid_t pid = fork();
	int ret;

	if (pid < 0)
		return -errno;
	if (!pid) {
		if (rnd(w, 2))
			dm_cpu_write(&w->m, w->first, w->n);
		_exit(dm_cpu_wrong(&w->m, 0, NR_PAGES) != DM_ALL_RIGHT);
	}
	if (rnd(w, 2))
		to_device(w);
	if (rnd(w, 2))
		dm_cpu_write(&w->m, w->first, w->n);
	ret = dm_wait(pid);
	return ret ? -ECHILD : 0;
}

static const struct deed {
	const char *name;
	int (*deed)(struct world *w);
	int weight;
} deeds[] = {
	{ "CPU writes", cpu_writes, 6 },
	{ "device writes", device_writes, 5 },
	{ "to the device", to_device, 10 },
	{ "to RAM", to_ram, 5 },
	{ "no large folio", fails_to_allocate, 2 },
	{ "device is emptied", empties_device, 1 },
	{ "exclusive access", takes_exclusively, 2 },
	{ "DONTNEED", drops, 3 },
	{ "mapped anew", maps_anew, 2 },
	{ "mremap", moves_away_and_back, 3 },
	{ "mprotect", protects, 2 },
	{ "collapse", collapses, 3 },
	{ "mlock", locks, 1 },
	{ "fork", forks, 2 },
};

static const struct deed *choose_deed(struct world *w)
{
	int sum = 0;
	size_t i;
	long at;

	for (i = 0; i < ARRAY_SIZE(deeds); i++)
		sum += deeds[i].weight;
	at = rnd(w, sum);
	for (i = 0; at >= deeds[i].weight; i++)
		at -= deeds[i].weight;
	return &deeds[i];
}

/* Is everything as the model says? The device is asked first, or it is moved. */
static bool check(struct world *w, long first, long n)
{
	long wrong = dm_dev_wrong(any_device(w), &w->m, first, n);
	const char *who = "device";

	if (wrong == DM_ALL_RIGHT && rnd(w, 2)) {
		wrong = dm_cpu_wrong(&w->m, first, n);
		who = "CPU";
	}
	if (wrong == DM_ALL_RIGHT)
		return true;
	snprintf(w->why, sizeof(w->why), "%s at page %ld, after %s of %ld pages at %ld",
		 who, wrong, w->did, w->n, w->first);
	return false;
}

static bool do_step(struct world *w)
{
	const struct deed *deed = choose_deed(w);
	int err;

	choose_pages(w);
	w->did = deed->name;
	err = deed->deed(w);
	if (err) {
		snprintf(w->why, sizeof(w->why), "%s of %ld pages at %ld: %s",
			 w->did, w->n, w->first, strerror(-err));
		return false;
	}
	if (!check(w, w->first, w->n))
		return false;
	return rnd(w, 10) || check(w, 0, NR_PAGES);
}

static unsigned long number_of(const char *name, unsigned long otherwise)
{
	const char *text = getenv(name);

	return text ? strtoul(text, NULL, 0) : otherwise;
}

FIXTURE(random)
{
	struct dm_counts start[2];
	struct world w;
};

FIXTURE_VARIANT(random)
{
	int unit[2];
};

/* Both devices of a kind share the memory, or one of each. */
FIXTURE_VARIANT_ADD(random, private)
{
	.unit = { DM_PRIVATE0, DM_PRIVATE1 },
};

FIXTURE_VARIANT_ADD(random, coherent)
{
	.unit = { DM_COHERENT0, DM_COHERENT1 },
};

FIXTURE_VARIANT_ADD(random, mixed)
{
	.unit = { DM_PRIVATE0, DM_COHERENT0 },
};

FIXTURE_SETUP(random)
{
	struct world *w = &self->w;
	int i;

	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, dm_open(&w->dev[i], variant->unit[i]));
		dm_counts(variant->unit[i], &self->start[i]);
	}
	ASSERT_EQ(0, dm_adopt(&w->m, dm_aligned(NR_PAGES * DM_PAGE,
						PROT_READ | PROT_WRITE), NR_PAGES));
	w->aside = dm_aligned(NR_PAGES * DM_PAGE, PROT_NONE);
	ASSERT_NE(MAP_FAILED, w->aside);
}

FIXTURE_TEARDOWN(random)
{
	int i;

	munmap(self->w.aside, NR_PAGES * DM_PAGE);
	dm_free(&self->w.m);
	for (i = 0; i < 2; i++)
		dm_close(&self->w.dev[i]);
	for (i = 0; i < 2; i++)
		EXPECT_BALANCED(variant->unit[i], &self->start[i]);
}

TEST_F(random, all_see_what_the_model_says)
{
	unsigned long seed = number_of("HMM_SEED", 0);
	unsigned long steps = number_of("HMM_STEPS", STEPS);
	unsigned long from = seed ?: 1, to = seed ?: SEEDS, step;

	for (seed = from; seed <= to; seed++) {
		self->w.random = seed * 0x9e3779b97f4a7c15UL;
		for (step = 0; step < steps; step++)
			if (!do_step(&self->w))
				break;
		EXPECT_EQ(steps, step)
			TH_LOG("HMM_SEED=%lu HMM_STEPS=%lu, step %lu: %s",
			       seed, steps, step, self->w.why);
		if (step < steps)
			break;
	}
}

TEST_HARNESS_MAIN
