// SPDX-License-Identifier: GPL-2.0
/*
 * Many threads, processes and devices at the same memory, for a time, in the
 * order of a seed:
 *
 *	hmm_dmirror_stress [-s SEED] [-t SECONDS] [-w SECONDS] [-l] [SCENARIO...]
 *
 * The time is for all scenarios together; each has one round at least. -l lists
 * them. A scenario fails if any byte is not what it has to be, if mirror and
 * page table disagree once all is quiet, if anything takes longer than -w
 * seconds (30), and if device pages or RAM are missing afterwards.
 *
 * Expected content stands although all happens at once: either nobody writes
 * meanwhile, or each page belongs to one thread, which alone writes to it and
 * alone may unmap it. Moving pages about is everybody's business.
 */
#include "../kselftest.h"

#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/swap.h>
#include <sys/syscall.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP	4
#endif

#include "hmm_dmirror_module.h"
#include "hmm_dmirror_stress.h"

/* The driver has more than the base's: FAULT_TO_DEV, and flags. */
static bool ours;

/* ---- devices ---- */

static void open_unit(struct dm_dev *d, int unit)
{
	int err = dm_open(d, unit);

	if (err) {
		st_fail("device %d: %s", unit, strerror(-err));
		_exit(1);
	}
}

/* Two devices that share the memory: of one kind, or one of each. */
static void open_pair(struct dm_dev d[2], struct st_rng *rng)
{
	static const int pair[][2] = {
		{ DM_PRIVATE0, DM_PRIVATE1 },
		{ DM_COHERENT0, DM_COHERENT1 },
		{ DM_PRIVATE1, DM_COHERENT0 },
	};
	int i = st_rnd(rng, st_have(DM_COHERENT1) ? 3 : 1);

	open_unit(&d[0], pair[i][0]);
	open_unit(&d[1], pair[i][1]);
}

static void close_pair(struct dm_dev d[2])
{
	dm_close(&d[0]);
	dm_close(&d[1]);
}

static int release_device(const struct dm_dev *d)
{
	/* Some drivers want to see a range, though none is asked for. */
	struct hmm_dmirror_cmd cmd = { .npages = 1 };

	return dm_ioctl(d, HMM_DMIRROR_RELEASE, &cmd);
}

/* ---- memory ---- */

enum size { SMALL, MTHP, THP };

static void need(int err, const char *what)
{
	if (!err)
		return;
	st_fail("%s: %s", what, strerror(-err));
	_exit(1);
}

/* A huge page's worth, or less. */
static void make_memory(struct dm_mem *m, enum size size, struct st_rng *rng)
{
	int order;

	switch (size) {
	case SMALL:
		need(dm_small(m, 1 + st_rnd(rng, 256)), "small pages");
		break;
	case MTHP:
		order = 2 + st_rnd(rng, 7);
		need(dm_mthp(m, order, 1 + st_rnd(rng, 256 >> order)), "large folios");
		break;
	case THP:
		need(dm_huge(m, 1), "huge page");
		break;
	}
}

/* All is quiet: mirror, page table and content have to agree. */
static void check_memory(const struct dm_dev d[2], const struct dm_mem *m)
{
	long count[AT_NR_PLACES], wrong;
	int i, err, tries;

	for (i = 0; i < 2; i++) {
		/* The kernel itself may change something between the two looks. */
		for (tries = 0; tries < 3; tries++) {
			err = dm_census(&d[i], m, 0, m->pages, count);
			if (!st_check(!err, "snapshot: %s", strerror(-err)))
				return;
			if (!count[AT_ERROR])
				break;
		}
		st_check(!count[AT_ERROR], "mirror and page table disagree on %ld of %ld pages",
			 count[AT_ERROR], m->pages);
	}
	/* The device first, or all is in RAM. */
	wrong = dm_dev_wrong(&d[0], m, 0, m->pages);
	st_check(wrong == DM_ALL_RIGHT, "device: page %ld of %ld", wrong, m->pages);
	wrong = dm_cpu_wrong(m, 0, m->pages);
	st_check(wrong == DM_ALL_RIGHT, "CPU: page %ld of %ld", wrong, m->pages);
}

/* Nothing is in the way any more, so it comes back. */
static void bring_home(const struct dm_dev d[2], const struct dm_mem *m)
{
	long there;
	int i, err;

	/* Each for its own pages. */
	for (i = 0; i < 2; i++) {
		err = st_do("to RAM", dm_to_sys(&d[i], m, 0, m->pages));
		st_check(!err, "to RAM: %s", strerror(-err));
	}
	there = dm_count_at(&d[0], m, 0, m->pages, AT_RAM);
	st_check(there == (long)m->pages, "%ld of %ld pages came back to RAM", there,
		 m->pages);
}

/* Of a page that another thread moves at that moment. */
static bool is_collision(int err)
{
	return err == -ENOENT || err == -EBUSY || err == -EAGAIN;
}

/* ==== migration against migration ==== */

struct shared_memory {
	struct dm_dev dev[2];
	struct dm_mem m;
	double until;
};

static void move_one_way(struct st_worker *w, struct shared_memory *s)
{
	const struct dm_dev *d = &s->dev[st_rnd(&w->rng, 2)];
	long first = 0, n = s->m.pages;
	int err;

	/* Mostly all of it; a part may split what the others move. */
	if (st_one_in(&w->rng, 4)) {
		first = st_rnd(&w->rng, n);
		n = 1 + st_rnd(&w->rng, n - first);
	}
	switch (st_rnd(&w->rng, ours ? 5 : 4)) {
	case 0:
	case 1:
		err = st_do("to the device", dm_to_dev(d, &s->m, first, n));
		break;
	case 2:
		err = st_do("to RAM", dm_to_sys(d, &s->m, first, n));
		break;
	case 3:
		err = st_do("CPU reads", dm_cpu_wrong(&s->m, first, n)) ==
			DM_ALL_RIGHT ? 0 : -EBADMSG;
		break;
	default:
		err = st_do("fault to the device", dm_fault_to_dev(d, &s->m, first, n));
		break;
	}
	st_check(!err || is_collision(err), "migration of %ld pages at %ld: %s", n,
		 first, strerror(-err));
}

static void move_about(struct st_worker *w)
{
	int i;

	for (i = 0; i < 4 && !st_failed(); i++)
		move_one_way(w, w->team->arg);
}

/* Fresh memory each round, so that a large folio is whole when they meet. */
static void movers(double until, enum size size)
{
	struct st_rng rng = st_rng(st_seed, 100 + size);
	struct shared_memory s;
	struct st_team team;

	do {
		open_pair(s.dev, &rng);
		make_memory(&s.m, size, &rng);
		st_all(&team, 2 << st_rnd(&rng, 6), &rng, move_about, &s);
		check_memory(s.dev, &s.m);
		bring_home(s.dev, &s.m);
		dm_free(&s.m);
		close_pair(s.dev);
		st_round();
	} while (!st_over(until));
}

static void movers_4k(double until)
{
	movers(until, SMALL);
}

static void movers_mthp(double until)
{
	movers(until, MTHP);
}

static void movers_thp(double until)
{
	movers(until, THP);
}

/* ==== many faults on one page ==== */

/* By a load, by the kernel for a system call, by another device. */
static long read_somehow(struct st_worker *w, struct shared_memory *s, long page)
{
	unsigned char copy[DM_PAGE];
	long ret;
	int fd;

	switch (w->id % 4) {
	case 2:
		fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
		if (pread(fd, copy, DM_PAGE, (uintptr_t)dm_addr(&s->m, page)) !=
		    (ssize_t)DM_PAGE)
			return -1000 - errno;
		close(fd);
		return dm_copy_wrong(&s->m, page, 1, copy);
	case 3:
		ret = dm_dev_wrong(&s->dev[1], &s->m, page, 1);
		if (ret == -1000 - EBUSY)
			st_busy();
		return ret == -1000 - EBUSY ? DM_ALL_RIGHT : ret;
	default:
		return dm_cpu_wrong(&s->m, page, 1);
	}
}

static void fault_all(struct st_worker *w)
{
	struct shared_memory *s = w->team->arg;
	long page, wrong;

	for (page = 0; page < (long)s->m.pages; page++) {
		wrong = st_do("fault", read_somehow(w, s, page));
		st_check(wrong == DM_ALL_RIGHT, "page %ld: %ld", page, wrong);
	}
}

static void faulters(double until)
{
	struct st_rng rng = st_rng(st_seed, 200);
	struct shared_memory s;
	struct st_team team;

	open_unit(&s.dev[0], DM_PRIVATE0);
	open_unit(&s.dev[1], DM_PRIVATE1);
	need(dm_small(&s.m, 4), "small pages");
	do {
		int err = st_do("to the device", dm_to_dev(&s.dev[0], &s.m, 0, 4));

		st_check(!err, "to the device: %s", strerror(-err));
		st_all(&team, 1 << st_rnd(&rng, 7), &rng, fault_all, &s);
		check_memory(s.dev, &s.m);
		dm_cpu_write(&s.m, 0, 4);
		st_round();
	} while (!st_over(until));
	dm_free(&s.m);
	close_pair(s.dev);
}

/* ==== exclusive access against everything else ==== */

/* All of one tag, whichever: nobody writes but the device, a page at a time. */
static bool is_whole(const void *page)
{
	uint64_t first = *(const uint64_t *)page;
	uint64_t back = 0x9e3779b97f4a7c15ULL;
	int i;

	if (!first)
		return dm_page_is(page, 0);
	/* The inverse of the factor of dm_word(), modulo 2^64 */
	for (i = 0; i < 6; i++)
		back *= 2 - back * 0x9e3779b97f4a7c15ULL;
	return dm_page_is(page, first * back);
}

static void fork_and_look(const struct dm_mem *m, long first, long n)
{
	pid_t pid = fork();
	long i;

	if (!st_check(pid >= 0, "fork: %s", strerror(errno)))
		return;
	if (!pid) {
		for (i = first; i < first + n; i++)
			if (!is_whole(dm_addr(m, i)))
				_exit(1);
		memset(dm_addr(m, first), 1, DM_PAGE);
		_exit(0);
	}
	st_check(!dm_wait(pid), "a child sees half a page");
}

static int nodes(void)
{
	int n = 1;
	char path[60];

	for (;; n++) {
		snprintf(path, sizeof(path), "/sys/devices/system/node/node%d", n);
		if (access(path, F_OK))
			return n;
	}
}

#define MOVE_BATCH	64

static void move_to_node(const struct dm_mem *m, long first, long n, int node)
{
	int to[MOVE_BATCH], status[MOVE_BATCH];
	void *page[MOVE_BATCH];
	long i;

	n = n < MOVE_BATCH ? n : MOVE_BATCH;
	for (i = 0; i < n; i++) {
		page[i] = dm_addr(m, first + i);
		to[i] = node;
	}
	/* Which of them go is not said; that they keep their content is. */
	syscall(__NR_move_pages, 0, n, page, to, status, MPOL_MF_MOVE);
}

/* As if nobody had touched a page, and its neighbours, for long. */
static void mark_idle(const struct dm_mem *m, long page)
{
	int fd = open("/sys/kernel/mm/page_idle/bitmap", O_WRONLY | O_CLOEXEC);
	uint64_t all = -1, entry;

	if (fd < 0)
		return;
	if (!dm_pagemap(dm_addr(m, page), 1, &entry) && entry & DM_PM_PRESENT)
		pwrite(fd, &all, sizeof(all), (entry & DM_PM_PFN) / 64 * sizeof(all));
	close(fd);
}

/* Which kind of LRU there is; moves all pages from the one to the other. */
#define LRU_GENERATIONS	"/sys/kernel/mm/lru_gen/enabled"

/* Nothing that changes the content, or who may do what. */
static void disturb(struct st_rng *rng, const struct dm_mem *m, long first, long n)
{
	void *addr = dm_addr(m, first);
	unsigned long len = n * DM_PAGE;

	switch (st_rnd(rng, 12)) {
	case 0:
		move_to_node(m, first, n, st_rnd(rng, nodes()));
		break;
	case 1:
		mprotect(addr, len, PROT_READ | PROT_WRITE | PROT_EXEC);
		mprotect(addr, len, PROT_READ | PROT_WRITE);
		break;
	case 2:
		madvise(addr, len, MADV_PAGEOUT);
		break;
	case 3:
		madvise(addr, len, MADV_COLD);
		break;
	case 4:
		madvise(addr, len, MADV_COLLAPSE);
		break;
	case 5:
		dm_put_file("/proc/self/clear_refs", "4");
		break;
	case 6:
		mlock(addr, len);
		munlock(addr, len);
		break;
	case 7:
		if (st_one_in(rng, 8))
			dm_put_file("/proc/sys/vm/compact_memory", "1");
		break;
	case 8:
		mark_idle(m, first);
		break;
	case 9:
		madvise(addr, len, st_one_in(rng, 2) ? MADV_MERGEABLE : MADV_UNMERGEABLE);
		break;
	case 10:
		if (st_one_in(rng, 8))
			dm_put_file(LRU_GENERATIONS, st_one_in(rng, 2) ? "y" : "n");
		break;
	default:
		madvise(addr, len, st_one_in(rng, 2) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
		break;
	}
}

static void choose_run(struct st_rng *rng, const struct dm_mem *m, long *first, long *n)
{
	unsigned long most = 1UL << st_rnd(rng, 10);

	*n = 1 + st_rnd(rng, most < m->pages ? most : m->pages);
	*first = st_rnd(rng, m->pages - *n + 1);
}

static void disturb_for_a_time(struct st_worker *w)
{
	struct shared_memory *s = w->team->arg;
	double until = dm_now() + 1;
	long first, n;

	if (until > s->until)
		until = s->until;
	do {
		choose_run(&w->rng, &s->m, &first, &n);
		if (st_one_in(&w->rng, 6))
			st_do("fork", (fork_and_look(&s->m, first, n), 0));
		else if (st_one_in(&w->rng, 6))
			st_do("to the device", dm_push(&s->dev[1], &s->m, first, n));
		else
			st_do("another call", (disturb(&w->rng, &s->m, first, n), 0));
	} while (!st_over(until));
}

/*
 * New content from the device. Where that was given up half-way, a page has the
 * new content or the old one, never a mixture.
 */
static void write_by_device(const struct dm_dev *d, struct dm_mem *m, long first,
			    long n)
{
	unsigned char *copy = malloc(n * DM_PAGE);
	uint64_t *tag = malloc(n * sizeof(*tag));
	long i;
	int err;

	for (i = 0; i < n; i++) {
		tag[i] = dm_new_tag();
		dm_paint(copy + i * DM_PAGE, tag[i]);
	}
	err = dm_op(d, HMM_DMIRROR_WRITE, dm_addr(m, first), n, copy);
	if (err == -EBUSY)
		st_busy();
	else
		st_check(!err, "device writes %ld pages: %s", n, strerror(-err));
	for (i = 0; i < n; i++)
		if (!err || dm_page_is(dm_addr(m, first + i), tag[i]))
			m->tag[first + i] = tag[i];
	free(tag);
	free(copy);
}

/* What the device reads, though others may keep it from that for long. */
static void read_by_device(const struct dm_dev *d, const struct dm_mem *m, long first,
			   long n)
{
	long wrong = dm_dev_wrong(d, m, first, n);

	if (wrong == -1000 - EBUSY)
		st_busy();
	else
		st_check(wrong == DM_ALL_RIGHT, "device reads page %ld of %ld at %ld",
			 wrong, n, first);
}

static void use_exclusively(struct shared_memory *s, struct st_rng *rng)
{
	long first, n, wrong;
	int err;

	choose_run(rng, &s->m, &first, &n);
	n = n < 64 ? n : 64;
	err = st_do("exclusive access", dm_exclusive(&s->dev[0], &s->m, first, n));
	/* A neighbour may be lost again before the last one is had. */
	if (is_collision(err))
		st_busy();
	else
		st_check(!err, "exclusive access to %ld pages at %ld: %s", n, first,
			 strerror(-err));
	st_do("device writes", (write_by_device(&s->dev[0], &s->m, first, n), 0));
	if (st_one_in(rng, 2))
		st_do("device reads", (read_by_device(&s->dev[0], &s->m, first, n), 0));
	if (st_one_in(rng, 2))
		return;
	wrong = st_do("CPU reads", dm_cpu_wrong(&s->m, first, n));
	st_check(wrong == DM_ALL_RIGHT, "CPU reads page %ld", wrong);
}

static void exclusive(double until)
{
	struct st_rng rng = st_rng(st_seed, 300);
	struct shared_memory s;
	struct st_team team;

	open_unit(&s.dev[0], DM_PRIVATE0);
	open_unit(&s.dev[1], DM_PRIVATE1);
	do {
		double end = dm_now() + 1;

		make_memory(&s.m, st_rnd(&rng, 3), &rng);
		s.until = until;
		st_start(&team, 1 + st_rnd(&rng, 8), &rng, disturb_for_a_time, &s);
		do
			use_exclusively(&s, &rng);
		while (!st_over(end < until ? end : until));
		st_join(&team);
		check_memory(s.dev, &s.m);
		dm_free(&s.m);
		st_round();
	} while (!st_over(until));
	close_pair(s.dev);
}

/* ==== everything at random ==== */

#define WORLD_HUGE	2
#define WORLD_PAGES	(WORLD_HUGE * DM_PER_HUGE)
#define WORLD_THREADS	8

/* Blocks of pages belong to the threads in turn. */
struct world {
	struct dm_dev dev[2];
	struct dm_mem m;
	void *aside[WORLD_THREADS];
	int threads;
	int order;		/* of a block */
	int steps;
	bool alone;		/* the process may unmap, and fork */
};

struct piece {
	struct world *world;
	struct st_rng *rng;
	int id;
	long first, n;
};

static void *piece_addr(const struct piece *p)
{
	return dm_addr(&p->world->m, p->first);
}

static unsigned long piece_len(const struct piece *p)
{
	return p->n * DM_PAGE;
}

static const struct dm_dev *some_device(const struct piece *p)
{
	return &p->world->dev[st_rnd(p->rng, 2)];
}

static bool is_own(const struct world *w, int id, long page)
{
	return (page >> w->order) % w->threads == id;
}

static void choose_own(struct piece *p)
{
	const struct world *w = p->world;
	long block = 1L << w->order;

	do
		p->first = st_rnd(p->rng, WORLD_PAGES);
	while (!is_own(w, p->id, p->first));
	p->n = 1 + st_rnd(p->rng, block - p->first % block);
}

static void choose_any(struct piece *p)
{
	choose_run(p->rng, &p->world->m, &p->first, &p->n);
	if (st_one_in(p->rng, 4)) {
		p->first &= -DM_PER_HUGE;
		p->n = DM_PER_HUGE;
	}
}

/* -- with pages of one's own: 0, or -errno of what must not fail -- */

static int cpu_writes(struct piece *p)
{
	dm_cpu_write(&p->world->m, p->first, p->n);
	return 0;
}

static int device_writes(struct piece *p)
{
	write_by_device(some_device(p), &p->world->m, p->first, p->n);
	return 0;
}

static int own_to_device(struct piece *p)
{
	int err = dm_to_dev(some_device(p), &p->world->m, p->first, p->n);

	return is_collision(err) ? 0 : err;
}

static int own_exclusive(struct piece *p)
{
	int err = dm_exclusive(some_device(p), &p->world->m, p->first, p->n);

	/* Not every page can be had; what is read has to be right. */
	return err == -EBADMSG ? err : 0;
}

/* Another thread may have some of it locked at the moment: that stays. */
static int drops(struct piece *p)
{
	struct dm_mem *m = &p->world->m;
	long i;

	if (!madvise(piece_addr(p), piece_len(p), MADV_DONTNEED)) {
		dm_zero_tags(m, p->first, p->n);
		return 0;
	}
	if (errno != EINVAL)
		return -errno;
	for (i = p->first; i < p->first + p->n; i++)
		if (dm_page_is(dm_addr(m, i), 0))
			m->tag[i] = 0;
	return 0;
}

static int maps_anew(struct piece *p)
{
	if (mmap(piece_addr(p), piece_len(p), PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		return -errno;
	dm_zero_tags(&p->world->m, p->first, p->n);
	return 0;
}

static int find_aside(struct world *w, int id)
{
	void *p = mmap(NULL, DM_PAGE << w->order, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	w->aside[id] = p == MAP_FAILED ? NULL : p;
	return w->aside[id] ? 0 : -errno;
}

#define MOVE_PAGES_ONLY	(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP)

/*
 * The addresses stay mapped all the time, or another thread's malloc() may get
 * them. mremap() takes one mapping at a time; it makes room even if it then fails.
 */
static int moves_away_and_back(struct piece *p)
{
	void *from = piece_addr(p), *to = p->world->aside[p->id];
	unsigned long len = piece_len(p);

	if (mremap(from, len, len, MOVE_PAGES_ONLY, to) == MAP_FAILED)
		return errno == EFAULT ? find_aside(p->world, p->id) : -errno;
	if (mremap(to, len, len, MOVE_PAGES_ONLY, from) == MAP_FAILED)
		return -errno;
	return 0;
}

static int protects(struct piece *p)
{
	int err = 0;

	if (mprotect(piece_addr(p), piece_len(p), PROT_READ))
		return -errno;
	if (st_one_in(p->rng, 2))
		err = own_to_device(p);
	if (mprotect(piece_addr(p), piece_len(p), PROT_READ | PROT_WRITE))
		return -errno;
	return err;
}

/* The child has the pages of this thread as they are now. */
static int forks(struct piece *p)
{
	struct world *w = p->world;
	pid_t pid = fork();
	int ret;
	long i;

	if (pid < 0)
		return -errno;
	if (!pid) {
		if (st_one_in(p->rng, 2))
			dm_cpu_write(&w->m, p->first, p->n);
		for (i = 0; i < WORLD_PAGES; i++)
			if (is_own(w, p->id, i) &&
			    !dm_page_is(dm_addr(&w->m, i), w->m.tag[i]))
				_exit(1);
		_exit(0);
	}
	if (st_one_in(p->rng, 2))
		own_to_device(p);
	if (st_one_in(p->rng, 2))
		dm_cpu_write(&w->m, p->first, p->n);
	ret = dm_wait(pid);
	/* If somebody kills all of us, it may go first. */
	return ret && ret != 128 + SIGKILL ? -ECHILD : 0;
}

/* -- with anybody's: what comes of it is not said -- */

static int any_to_device(struct piece *p)
{
	dm_push(some_device(p), &p->world->m, p->first, p->n);
	return 0;
}

static int any_to_ram(struct piece *p)
{
	dm_to_sys(some_device(p), &p->world->m, p->first, p->n);
	return 0;
}

/* One that copies the piece to somebody, whatever comes of it. */
static int any_op(struct piece *p, unsigned long code)
{
	void *copy = malloc(piece_len(p));

	dm_op(some_device(p), code, piece_addr(p), p->n, copy);
	free(copy);
	return 0;
}

static int any_faults_to_device(struct piece *p)
{
	return any_op(p, HMM_DMIRROR_FAULT_TO_DEV);
}

static int any_snapshot(struct piece *p)
{
	unsigned char perm[WORLD_PAGES];

	dm_snapshot(some_device(p), piece_addr(p), p->n, perm);
	return 0;
}

static int any_exclusive(struct piece *p)
{
	return any_op(p, HMM_DMIRROR_EXCLUSIVE);
}

static int any_disturbed(struct piece *p)
{
	disturb(p->rng, &p->world->m, p->first, p->n);
	return 0;
}

static int no_large_folio(struct piece *p)
{
	dm_set_flags(some_device(p), HMM_DMIRROR_FLAG_FAIL_ALLOC);
	return any_to_device(p);
}

static int empties_device(struct piece *p)
{
	release_device(some_device(p));
	return 0;
}

static const struct deed {
	const char *name;
	int (*deed)(struct piece *p);
	int weight;
	bool own;
} deeds[] = {
	{ "CPU writes", cpu_writes, 8, true },
	{ "device writes", device_writes, 6, true },
	{ "own to the device", own_to_device, 6, true },
	{ "own exclusively", own_exclusive, 2, true },
	{ "DONTNEED", drops, 3, true },
	{ "mapped anew", maps_anew, 2, true },
	{ "mremap", moves_away_and_back, 2, true },
	{ "mprotect", protects, 2, true },
	{ "fork", forks, 1, true },
	{ "to the device", any_to_device, 10, false },
	{ "to RAM", any_to_ram, 5, false },
	{ "fault to the device", any_faults_to_device, 4, false },
	{ "snapshot", any_snapshot, 2, false },
	{ "exclusively", any_exclusive, 1, false },
	{ "another call", any_disturbed, 6, false },
	{ "no large folio", no_large_folio, 1, false },
	{ "device is emptied", empties_device, 1, false },
};

static const struct deed *choose_deed(struct st_rng *rng)
{
	size_t i, n = sizeof(deeds) / sizeof(*deeds);
	long at, sum = 0;

	for (i = 0; i < n; i++)
		sum += deeds[i].weight;
	at = st_rnd(rng, sum);
	for (i = 0; at >= deeds[i].weight; i++)
		at -= deeds[i].weight;
	return &deeds[i];
}

/* What is one's own has to be as one left it. */
static void check_own(struct piece *p, const char *after)
{
	long wrong = dm_dev_wrong(some_device(p), &p->world->m, p->first, p->n);
	const char *who = "device";

	if (wrong == -1000 - EBUSY) {
		st_busy();
		wrong = DM_ALL_RIGHT;
	}
	if (wrong == DM_ALL_RIGHT && st_one_in(p->rng, 2)) {
		who = "CPU";
		wrong = dm_cpu_wrong(&p->world->m, p->first, p->n);
	}
	st_check(wrong == DM_ALL_RIGHT, "%s: page %ld, after %s of %ld pages at %ld", who,
		 wrong, after, p->n, p->first);
}

static void live(struct st_worker *t)
{
	struct world *w = t->team->arg;
	struct piece p = { .world = w, .rng = &t->rng, .id = t->id };
	int step, err;

	for (step = 0; step < w->steps && !st_failed(); step++) {
		const struct deed *deed = choose_deed(p.rng);

		if (deed->own)
			choose_own(&p);
		else
			choose_any(&p);
		err = st_do(deed->name, deed->deed(&p));
		st_check(!err, "%s of %ld pages at %ld: %s", deed->name, p.n, p.first,
			 strerror(-err));
		if (!deed->own)
			choose_own(&p);
		st_do("check", (check_own(&p, deed->name), 0));
	}
}

static void make_world(struct world *w, struct st_rng *rng)
{
	int i;

	open_pair(w->dev, rng);
	w->threads = 1 + st_rnd(rng, WORLD_THREADS);
	w->order = st_rnd(rng, 7);
	w->steps = 10;
	need(dm_adopt(&w->m, dm_aligned(WORLD_PAGES * DM_PAGE, PROT_READ | PROT_WRITE),
		      WORLD_PAGES), "memory");
	for (i = 0; i < w->threads; i++)
		need(find_aside(w, i), "address space");
	dm_cpu_write(&w->m, 0, WORLD_PAGES);
	if (st_one_in(rng, 2))
		dm_collapse(&w->m);
}

static void free_world(struct world *w)
{
	int i;

	for (i = 0; i < w->threads; i++)
		munmap(w->aside[i], DM_PAGE << w->order);
	dm_free(&w->m);
	close_pair(w->dev);
}

static void live_in_process(double until, uint64_t number)
{
	struct st_rng rng = st_rng(st_seed, 400 + number);
	struct st_team team;
	struct world w;
	int i;

	do {
		make_world(&w, &rng);
		for (i = 0; i < 4 && (!i || !st_over(until)); i++) {
			st_all(&team, w.threads, &rng, live, &w);
			check_memory(w.dev, &w.m);
		}
		free_world(&w);
		st_round();
	} while (!st_over(until));
}

#define PROCESSES	3

static void at_random(double until)
{
	pid_t pid[PROCESSES];
	int i, status;

	for (i = 0; i < PROCESSES; i++) {
		pid[i] = fork();
		if (!pid[i]) {
			live_in_process(until, i);
			_exit(0);
		}
	}
	for (i = 0; i < PROCESSES; i++) {
		status = pid[i] < 0 ? -errno : dm_wait(pid[i]);
		st_check(!status, "process %d ended with %d", i, status);
	}
}

/* ==== processes that are killed at any point of that ==== */

static void killed(double until)
{
	struct st_rng rng = st_rng(st_seed, 500);
	uint64_t number = 0;
	double began;
	pid_t pid;

	do {
		pid = fork();
		if (!pid) {
			setpgid(0, 0);
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			live_in_process(1e9, ++number);
			_exit(0);
		}
		if (!st_check(pid > 0, "fork: %s", strerror(errno)))
			return;
		setpgid(pid, pid);
		number++;
		usleep(10000 + st_rnd(&rng, 400000));
		began = dm_now();
		kill(-pid, SIGKILL);
		dm_wait(pid);
		st_did("end of a process", began);
		st_round();
	} while (!st_over(until));
}

/* ==== invalidations without end ==== */

static void invalidate(struct st_worker *w)
{
	struct shared_memory *s = w->team->arg;
	bool more = false;

	do {
		/* The rights that count stay as they are. */
		mprotect(s->m.cpu, s->m.pages * DM_PAGE,
			 PROT_READ | PROT_WRITE | (more ? PROT_EXEC : 0));
		more = !more;
		__atomic_add_fetch(&st->ops, 1, __ATOMIC_RELAXED);
	} while (!st_over(s->until));
}

/* The device gets there, or gives up in time; it never gets something wrong. */
static void access_in_storm(struct shared_memory *s, struct st_rng *rng)
{
	static const unsigned long ops[] = {
		HMM_DMIRROR_READ,
		HMM_DMIRROR_READ_UNLOCKED,
		HMM_DMIRROR_FAULT_TO_DEV,
		HMM_DMIRROR_MIGRATE_TO_DEV,
	};
	unsigned long op = ops[st_rnd(rng, 4)];
	long wrong;

	if (!ours && op != HMM_DMIRROR_READ)
		op = HMM_DMIRROR_MIGRATE_TO_DEV;
	wrong = st_do("access in a storm", dm_fetch(&s->dev[0], op, &s->m, 0, s->m.pages));
	if (wrong == -1000 - EBUSY || wrong == -1000 - ENOENT)
		st_busy();
	else
		st_check(wrong == DM_ALL_RIGHT, "op %lu: page %ld", _IOC_NR(op), wrong);
}

static void storm(double until)
{
	struct st_rng rng = st_rng(st_seed, 600);
	struct shared_memory s;
	struct st_team team;

	open_unit(&s.dev[0], DM_PRIVATE0);
	open_unit(&s.dev[1], DM_PRIVATE1);
	do {
		make_memory(&s.m, st_rnd(&rng, 3), &rng);
		s.until = dm_now() + 2;
		if (s.until > until)
			s.until = until;
		st_start(&team, 1 + st_rnd(&rng, 8), &rng, invalidate, &s);
		do {
			access_in_storm(&s, &rng);
			if (st_one_in(&rng, 3))
				write_by_device(&s.dev[0], &s.m, 0, s.m.pages);
		} while (!st_over(s.until));
		st_join(&team);
		check_memory(s.dev, &s.m);
		dm_free(&s.m);
		st_round();
	} while (!st_over(until));
	close_pair(s.dev);
}

/* ==== memory of another device ==== */

static void read_through_other(struct st_worker *w)
{
	struct shared_memory *s = w->team->arg;
	long wrong;
	int i;

	for (i = 0; i < 4 && !st_failed(); i++) {
		if (w->id & 1) {
			st_do("to the device", dm_push(&s->dev[0], &s->m, 0, s->m.pages));
			continue;
		}
		wrong = st_do("other device reads",
			      dm_dev_wrong(&s->dev[1], &s->m, 0, s->m.pages));
		if (wrong == -1000 - EBUSY)
			st_busy();
		else
			st_check(wrong == DM_ALL_RIGHT, "page %ld", wrong);
	}
}

static void foreign(double until)
{
	struct st_rng rng = st_rng(st_seed, 700);
	struct shared_memory s;
	struct st_team team;

	do {
		open_pair(s.dev, &rng);
		make_memory(&s.m, st_rnd(&rng, 3), &rng);
		dm_push(&s.dev[0], &s.m, 0, s.m.pages);
		write_by_device(&s.dev[1], &s.m, 0, s.m.pages);
		dm_push(&s.dev[0], &s.m, 0, s.m.pages);
		st_all(&team, 2 + st_rnd(&rng, 7), &rng, read_through_other, &s);
		check_memory(s.dev, &s.m);
		dm_free(&s.m);
		close_pair(s.dev);
		st_round();
	} while (!st_over(until));
}

/* ==== a device that is full ==== */

#define FULL_THREADS	4
#define FULL_MB		16L
#define BASE_FULL_MB	256L
#define PUSH_PAGES	DM_PER_HUGE

struct full {
	struct dm_dev d;
	struct dm_mem m;
	long there;		/* pages that went to the device */
};

static long part_of(const struct st_worker *w, const struct dm_mem *m, long *n)
{
	*n = m->pages / w->team->n;
	return w->id * *n;
}

static void push_part(struct st_worker *w)
{
	struct full *f = w->team->arg;
	void *copy = malloc(PUSH_PAGES * DM_PAGE);
	long part, first = part_of(w, &f->m, &part), page;

	for (page = first; page < first + part; page += PUSH_PAGES) {
		st_do("to a full device", dm_op(&f->d, HMM_DMIRROR_MIGRATE_TO_DEV,
						dm_addr(&f->m, page), PUSH_PAGES, copy));
		__atomic_add_fetch(&f->there, dm_count_at(&f->d, &f->m, page, PUSH_PAGES,
							  AT_DEVICE), __ATOMIC_RELAXED);
	}
	free(copy);
}

static void read_part(struct st_worker *w)
{
	struct full *f = w->team->arg;
	long part, first = part_of(w, &f->m, &part), page, wrong;

	for (page = first; page < first + part && !st_failed(); page += PUSH_PAGES) {
		wrong = st_do("CPU reads", dm_cpu_wrong(&f->m, page, PUSH_PAGES));
		st_check(wrong == DM_ALL_RIGHT, "page %ld", wrong);
	}
}

/* The rest stays in RAM, and all of it is right. */
static void fill_device(int unit, long mb, struct st_rng *rng)
{
	long pages = (mb + mb / 2) << 8, i;
	struct full f = { };
	struct st_team team;

	open_unit(&f.d, unit);
	need(dm_adopt(&f.m, dm_aligned(pages * DM_PAGE, PROT_READ | PROT_WRITE), pages),
	     "memory");
	madvise(f.m.cpu, pages * DM_PAGE,
		st_one_in(rng, 2) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	for (i = 0; i < pages; i += PUSH_PAGES)
		st_do("CPU writes", (dm_cpu_write(&f.m, i, PUSH_PAGES), 0));
	st_all(&team, FULL_THREADS, rng, push_part, &f);
	st_check(f.there >= mb << 7 && f.there <= mb << 8,
		 "%ld pages are on a device that holds %ld", f.there, mb << 8);
	st_all(&team, FULL_THREADS, rng, read_part, &f);
	dm_free(&f.m);
	dm_close(&f.d);
	st_round();
}

/* Of ours all devices can be small; of the base's, one kind has an end. */
static void full(double until)
{
	struct st_rng rng = st_rng(st_seed, 750);
	char params[256], small[320];

	if (!ours) {
		do
			fill_device(DM_COHERENT1, BASE_FULL_MB, &rng);
		while (!st_over(until));
		return;
	}
	dm_module_params(params, sizeof(params));
	snprintf(small, sizeof(small), "%s spm_mb=%ld chunk_mb=%ld private_mb=%ld", params,
		 FULL_MB, FULL_MB / 2, FULL_MB);
	need(dm_unload_module(), "rmmod");
	need(dm_load_module(small), "insmod");
	do {
		fill_device(DM_PRIVATE0, FULL_MB, &rng);
		fill_device(DM_COHERENT1, FULL_MB, &rng);
	} while (!st_over(until));
	need(dm_unload_module(), "rmmod");
	need(dm_load_module(params), "insmod");
}

/* ==== a device that is taken away under load ==== */

static void use_device(struct st_worker *w)
{
	struct shared_memory *s = w->team->arg;
	long first, n, wrong;

	do {
		choose_run(&w->rng, &s->m, &first, &n);
		switch (st_rnd(&w->rng, 3)) {
		case 0:
			st_do("to the device", dm_push(&s->dev[0], &s->m, first, n));
			break;
		case 1:
			st_do("to RAM", dm_to_sys(&s->dev[0], &s->m, first, n));
			break;
		default:
			wrong = st_do("CPU reads", dm_cpu_wrong(&s->m, first, n));
			st_check(wrong == DM_ALL_RIGHT, "CPU reads page %ld", wrong);
			break;
		}
	} while (!st_over(s->until));
}

static void released(double until)
{
	struct st_rng rng = st_rng(st_seed, 800);
	struct shared_memory s;
	struct st_team team;
	int err;

	do {
		open_pair(s.dev, &rng);
		make_memory(&s.m, st_rnd(&rng, 3), &rng);
		s.until = dm_now() + 1;
		if (s.until > until)
			s.until = until;
		st_start(&team, 16, &rng, use_device, &s);
		do {
			err = st_do("RELEASE", release_device(&s.dev[0]));
			st_check(!err || err == -EBUSY, "RELEASE: %s", strerror(-err));
			usleep(st_rnd(&rng, 20000));
		} while (!st_over(s.until));
		st_join(&team);
		check_memory(s.dev, &s.m);
		dm_free(&s.m);
		close_pair(s.dev);
		st_round();
	} while (!st_over(until));
}

/* One empties the device, the others come and go. */
static void come_and_go(struct st_worker *w)
{
	double *until = w->team->arg;
	struct dm_mem m;
	struct dm_dev d;
	int err;

	do {
		/* While the module is not there, nor are the devices. */
		if (dm_open(&d, DM_PRIVATE0)) {
			usleep(1000);
			continue;
		}
		if (!w->id) {
			st_do("RELEASE", release_device(&d));
		} else {
			need(dm_small(&m, 1 + st_rnd(&w->rng, 128)), "memory");
			err = st_do("to the device", dm_to_dev(&d, &m, 0, m.pages));
			st_check(!err || is_collision(err), "to the device: %s",
				 strerror(-err));
			st_check(dm_cpu_wrong(&m, 0, m.pages) == DM_ALL_RIGHT, "CPU reads");
			if (st_one_in(&w->rng, 2))
				dm_push(&d, &m, 0, m.pages);
			dm_free(&m);
		}
		st_do("close", (dm_close(&d), 0));
	} while (!st_over(*until));
}

static void closed(double until)
{
	struct st_rng rng = st_rng(st_seed, 900);
	struct st_team team;

	do {
		double end = dm_now() + 1;

		if (end > until)
			end = until;
		st_all(&team, 2 + st_rnd(&rng, 7), &rng, come_and_go, &end);
		st_round();
	} while (!st_over(until));
}

/* ==== the module is unloaded under load ==== */

/* Who walks all pages of the machine meets those that come and go. */
static void walk_pages(struct st_worker *w)
{
	static const char * const file[] = { "/proc/kpageflags", "/proc/kpagecount" };
	int fd = open(file[w->id % 2], O_RDONLY | O_CLOEXEC);
	double *until = w->team->arg;
	char text[1 << 16];

	while (fd >= 0 && !st_over(*until)) {
		if (pread(fd, text, sizeof(text), 0) < 0)
			break;
		/* Up to 8 GiB; where no page is, it reads as none. */
		pread(fd, text, sizeof(text), st_rnd(&w->rng, 256) * sizeof(text));
		if (st_one_in(&w->rng, 500))
			dm_put_file("/proc/sys/vm/compact_memory", "1");
	}
	if (fd >= 0)
		close(fd);
}

static void come_go_and_look(struct st_worker *w)
{
	if (w->id == 1 || w->id == 2)
		walk_pages(w);
	else
		come_and_go(w);
}

/* A module that is in use cannot go, which takes no time to say; else it goes. */
static void unload_once(const char *params)
{
	int err = st_do("rmmod", dm_unload_module());

	if (err == -EAGAIN || err == -EBUSY) {
		st_busy();
		usleep(2000);
		return;
	}
	if (!st_check(!err, "rmmod: %s", strerror(-err)))
		return;
	err = st_do("insmod", dm_load_module(params));
	if (st_check(!err, "insmod: %s", strerror(-err)))
		st_round();
}

static void unloaded(double until)
{
	struct st_rng rng = st_rng(st_seed, 1000);
	struct st_team team;
	char params[256];

	dm_module_params(params, sizeof(params));
	if (dm_open_module() < 0) {
		st_fail("no test_hmm.ko");
		return;
	}
	do {
		double end = dm_now() + 0.5;

		st_start(&team, 16, &rng, come_go_and_look, &end);
		do
			unload_once(params);
		while (!st_over(end));
		st_join(&team);
		/* Nobody holds it now. */
		unload_once(params);
	} while (!st_over(until) || !st->rounds);
}

/* ==== what is known to have gone wrong elsewhere ==== */

/*
 * A huge page of which the device has pages for itself, one end of it shared
 * again, goes to another node: the entries must stay what they are.
 */
static void exclusive_moved(double until)
{
	struct dm_mem m;
	struct dm_dev d;
	int node, last = nodes() - 1;
	long wrong, page;

	open_unit(&d, DM_PRIVATE0);
	do {
		need(dm_huge(&m, 1), "huge page");
		st_do("exclusive access", dm_exclusive(&d, &m, 0, 64));
		dm_cpu_write(&m, 40, 1);
		st_do("move_pages", (move_to_node(&m, 40, 1, last), 0));
		for (page = 0; page < (long)m.pages; page += MOVE_BATCH)
			for (node = last; node >= 0; node--)
				st_do("move_pages", (move_to_node(&m, page, MOVE_BATCH,
								  node), 0));
		wrong = st_do("CPU reads", dm_cpu_wrong(&m, 0, m.pages));
		st_check(wrong == DM_ALL_RIGHT, "page %ld", wrong);
		dm_free(&m);
		st_round();
	} while (!st_over(until));
	dm_close(&d);
}

static bool none_exclusive(const struct dm_dev *d, const struct dm_mem *m,
			   long first, long n)
{
	return !n || !dm_check_exclusive(d, m, first, n);
}

/* How many of two pages are exclusive; -1 if others are. */
static long count_two(const struct dm_dev *d, const struct dm_mem *m, long page)
{
	long behind = page + 2;

	if (!none_exclusive(d, m, 0, page) ||
	    !none_exclusive(d, m, behind, m->pages - behind))
		return -1;
	return dm_count_exclusive(d, m, page, 2);
}

/* Any page of a huge page can be had alone. */
static void exclusive_tails(double until)
{
	struct st_rng rng = st_rng(st_seed, 1100);
	struct dm_mem m;
	struct dm_dev d;
	int err, tries;
	long got;

	open_unit(&d, DM_PRIVATE0);
	do {
		long page = st_rnd(&rng, DM_PER_HUGE - 1);

		need(dm_huge(&m, 1), "huge page");
		/* NUMA balancing takes the access back now and then, as it may. */
		for (got = 0, tries = 0; got >= 0 && got < 2 && tries < 10; tries++) {
			err = st_do("exclusive access", dm_exclusive(&d, &m, page, 2));
			st_check(!err, "pages %ld and next: %s", page, strerror(-err));
			got = count_two(&d, &m, page);
		}
		st_check(got == 2, "not the two pages alone are exclusive: %ld", got);
		dm_cpu_write(&m, page, 2);
		st_check(dm_cpu_wrong(&m, 0, m.pages) == DM_ALL_RIGHT, "CPU reads");
		dm_free(&m);
		st_round();
	} while (!st_over(until));
	dm_close(&d);
}

/* Folios that PTEs map go to the device as others do. */
static void mthp_moves(double until)
{
	struct st_rng rng = st_rng(st_seed, 1200);
	struct dm_dev d[2];
	struct dm_mem m;
	long there;
	int err;

	do {
		open_pair(d, &rng);
		make_memory(&m, MTHP, &rng);
		err = st_do("to the device", dm_to_dev(&d[0], &m, 0, m.pages));
		there = dm_count_at(&d[0], &m, 0, m.pages, AT_DEVICE);
		st_check(there == (long)m.pages, "%ld of %ld pages went: %s", there,
			 m.pages, strerror(-err));
		check_memory(d, &m);
		dm_free(&m);
		close_pair(d);
		st_round();
	} while (!st_over(until));
}

/* Two threads, one huge page: who comes second keeps no reference of it. */
static void push_it(struct st_worker *w)
{
	struct shared_memory *s = w->team->arg;

	st_do("to the device", dm_push(&s->dev[0], &s->m, 0, s->m.pages));
}

static void second_mover(double until)
{
	struct st_rng rng = st_rng(st_seed, 1300);
	struct shared_memory s;
	struct st_team team;
	int round;

	open_unit(&s.dev[0], DM_PRIVATE0);
	do {
		/* Enough of them to be seen in what is free, if there is time. */
		for (round = 0; round < 20 && (round < 4 || !st_over(until)); round++) {
			make_memory(&s.m, THP, &rng);
			st_all(&team, 2, &rng, push_it, &s);
			dm_free(&s.m);
		}
		st_round();
	} while (!st_over(until));
	dm_close(&s.dev[0]);
}

/* ==== pages that KSM has merged ==== */

#define KSM_RUN		"/sys/kernel/mm/ksm/run"
#define ALIKE		32L

static bool is_merged(const struct dm_mem *m)
{
	uint64_t entry[2] = { };

	dm_pagemap(m->cpu, 2, entry);
	return entry[0] & DM_PM_PRESENT &&
	       (entry[0] & DM_PM_PFN) == (entry[1] & DM_PM_PFN);
}

static void make_alike(struct dm_mem *m)
{
	double began = dm_now();
	long i;

	need(dm_small(m, ALIKE), "small pages");
	for (i = 0; i < ALIKE; i++) {
		m->tag[i] = m->tag[0];
		dm_paint(dm_addr(m, i), m->tag[i]);
	}
	madvise(m->cpu, ALIKE * DM_PAGE, MADV_MERGEABLE);
	dm_put_file(KSM_RUN, "1");
	while (!is_merged(m) && dm_now() - began < 10)
		usleep(20000);
	if (!is_merged(m))
		st_busy();
}

/* The kernel looks at them again when they, and the memory, are gone. */
static void merged(double until)
{
	struct st_rng rng = st_rng(st_seed, 1400);
	struct dm_dev d[2];
	struct dm_mem m;

	do {
		open_pair(d, &rng);
		make_alike(&m);
		st_do("to the device", dm_push(&d[0], &m, 0, ALIKE));
		check_memory(d, &m);
		st_do("to the device", dm_push(&d[0], &m, 0, ALIKE));
		dm_free(&m);
		st_do("RELEASE", release_device(&d[0]));
		close_pair(d);
		st_do("unmerge", dm_put_file(KSM_RUN, "2"));
		st_round();
	} while (!st_over(until));
}

/* ==== memory that is broken ==== */

#define POISON		"/sys/kernel/debug/hwpoison/corrupt-pfn"
#define UNPOISON	"/sys/kernel/debug/hwpoison/unpoison-pfn"
#define POISON_PAGES	4

/* Bits of a swap entry in pagemap, before its offset: here, a pfn */
#define SWAP_TYPE_BITS	5

static uint64_t pfn_of(const struct dm_mem *m, long page)
{
	uint64_t entry = 0;

	need(dm_pagemap(dm_addr(m, page), 1, &entry), "pagemap");
	if (entry & DM_PM_SWAP)
		return (entry & DM_PM_PFN) >> SWAP_TYPE_BITS;
	return entry & DM_PM_PFN;
}

static void put_pfn(const char *path, uint64_t pfn)
{
	char text[24];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)pfn);
	/* Whether anything comes of it is not said. */
	dm_put_file(path, text);
}

/* A page of a device: nothing can be done about it, and nothing is. */
static void poison_device(int unit)
{
	struct dm_dev d[2];
	struct dm_mem m;
	int err;

	open_unit(&d[0], unit);
	open_unit(&d[1], unit ^ 1);
	need(dm_small(&m, POISON_PAGES), "small pages");
	err = dm_to_dev(&d[0], &m, 0, POISON_PAGES);
	st_check(!err, "to the device: %s", strerror(-err));
	st_do("poison", (put_pfn(POISON, pfn_of(&m, 1)), 0));
	check_memory(d, &m);
	dm_free(&m);
	close_pair(d);
}

/* Of RAM that a device has for itself. The neighbours stay as they are. */
static void poison_exclusive(void)
{
	struct dm_mem m;
	struct dm_dev d;
	uint64_t pfn;
	long wrong;
	pid_t pid;

	open_unit(&d, DM_PRIVATE0);
	need(dm_small(&m, POISON_PAGES), "small pages");
	pfn = pfn_of(&m, 1);
	need(dm_exclusive(&d, &m, 0, POISON_PAGES), "exclusive access");
	st_do("poison", (put_pfn(POISON, pfn), 0));
	pid = fork();
	if (!pid) {
		/* SIGBUS is as good. */
		dm_cpu_wrong(&m, 1, 1);
		_exit(0);
	}
	st_check(pid < 0 || dm_wait(pid) >= 0, "a reader was not seen again");
	wrong = dm_cpu_wrong(&m, 2, POISON_PAGES - 2);
	st_check(wrong == DM_ALL_RIGHT, "page %ld", wrong);
	dm_free(&m);
	dm_close(&d);
	put_pfn(UNPOISON, pfn);
}

static void poisoned(double until)
{
	do {
		poison_device(DM_PRIVATE0);
		poison_device(DM_COHERENT0);
		poison_exclusive();
		st_round();
	} while (!st_over(until));
}

/* ---- all of them ---- */

static const struct st_scenario scenarios[] = {
	{ "movers_4k", "2 to 64 threads move the same small pages",
	  movers_4k, 2, 120 },
	{ "movers_mthp", "the same with large folios that PTEs map",
	  movers_mthp, 2, 120 },
	{ "movers_thp", "the same with one huge page",
	  movers_thp, 2, 120 },
	{ "faulters", "1 to 64 threads touch the same device page at once",
	  faulters, 2, 120 },
	{ "exclusive", "exclusive access against fork, move_pages, reclaim, collapse",
	  exclusive, 2, 120 },
	{ "random", "processes, threads and devices do anything to shared memory",
	  at_random, 2, 240 },
	{ "killed", "processes are killed at any point of that",
	  killed, 2, 120 },
	{ "storm", "invalidations without end while the device reads",
	  storm, 2, 120 },
	{ "foreign", "memory of one device is read through another",
	  foreign, 2, 120 },
	{ "full", "4 threads move more than a device holds",
	  full, 4, 240 },
	{ "released", "RELEASE while 16 threads migrate and fault",
	  released, 2, 120 },
	{ "closed", "close against RELEASE",
	  closed, 1, 120 },
	{ "unloaded", "rmmod and insmod while 16 threads come and go",
	  unloaded, 1, 240 },
	{ "exclusive_moved", "a huge page with exclusive pages goes to another node",
	  exclusive_moved, 1, 120, 2 },
	{ "exclusive_tails", "any page of a huge page alone",
	  exclusive_tails, 1, 120 },
	{ "mthp_moves", "large folios that PTEs map go to the device whole",
	  mthp_moves, 1, 120 },
	{ "second_mover", "two threads move one huge page",
	  second_mover, 1, 120 },
	{ "merged", "pages that KSM has merged, on a device that goes",
	  merged, 2, 120, .file = KSM_RUN },
	{ "poisoned", "memory failure in device pages, and in exclusive ones",
	  poisoned, 4, 120, .file = POISON },
};

#define NR_SCENARIOS	((int)(sizeof(scenarios) / sizeof(*scenarios)))

static void count_loss(const struct st_before *before, long *pages, long *kb)
{
	st_empty_devices();
	*pages = st_lost_pages(before);
	*kb = dm_lost_kb(before->free_kb);
	st_check(*pages <= 0, "%ld device pages did not come back", *pages);
	st_check(*kb <= DM_NOISE_KB, "%ld kB of RAM did not come back", *kb);
}

/* Lines for whoever makes a table of it, and the result. */
static bool report(const struct st_scenario *s, double seconds, long pages, long kb)
{
	ksft_print_msg("stress: scenario=%s seed=%llu seconds=%.1f rounds=%ld failures=%ld\n",
		       s->name, (unsigned long long)st_seed, seconds, st->rounds,
		       st->failures);
	ksft_print_msg("stress: scenario=%s ops=%llu busy=%ld pages=%ld kb=%ld\n",
		       s->name, (unsigned long long)st->ops, st->busy, pages, kb);
	ksft_print_msg("stress: scenario=%s longest=%.2f slowest=%s\n", s->name,
		       st->longest / 1e6, st->slowest);
	if (st->failures)
		ksft_print_msg("%s: %s\n", s->name, st->why);
	ksft_test_result(!st->failures, "%s\n", s->name);
	return !st->failures;
}

static bool can_run(const struct st_scenario *s)
{
	if (!st_have(s->units - 1))
		ksft_test_result_skip("%s: no /dev/hmm_dmirror%d\n", s->name,
				      s->units - 1);
	else if (nodes() < s->nodes)
		ksft_test_result_skip("%s: one NUMA node\n", s->name);
	else if (s->file && access(s->file, W_OK))
		ksft_test_result_skip("%s: no %s\n", s->name, s->file);
	else
		return true;
	return false;
}

/* False if nothing can be run after it any more. */
static bool run_scenario(const struct st_scenario *s, double seconds)
{
	double began = dm_now();
	struct st_before before;
	long pages = -1, kb = 0;
	bool usable;

	if (!can_run(s))
		return true;
	memset(st, 0, sizeof(*st));
	st_look(&before);
	usable = st_run_process(s, seconds);
	if (usable)
		count_loss(&before, &pages, &kb);
	if (!report(s, dm_now() - began, pages, kb))
		ksft_print_msg("again: hmm_dmirror_stress -s %llu -t %.0f %s\n",
			       (unsigned long long)st_seed, seconds + 1, s->name);
	fflush(stdout);
	return usable;
}

#define SWAP_DISK	"/dev/ram2"

/*
 * Somewhere to go for what is paged out, if there is a RAM disk. The header is
 * what swapon() looks for: version, last page, magic.
 */
static void make_swap(void)
{
	static char page[DM_PAGE];
	uint32_t info[2] = { 1, 0 };
	int fd;

	swapoff(SWAP_DISK);
	fd = open(SWAP_DISK, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return;
	info[1] = lseek(fd, 0, SEEK_END) / DM_PAGE - 1;
	memcpy(page + 1024, info, sizeof(info));
	memcpy(page + DM_PAGE - 10, "SWAPSPACE2", 10);
	if (pwrite(fd, page, DM_PAGE, 0) == (ssize_t)DM_PAGE && !fsync(fd))
		swapon(SWAP_DISK, 0);
	close(fd);
}

/* The kind of LRU that there was before */
static char lru_before[16];

static void remember_lru(void)
{
	int fd = open(LRU_GENERATIONS, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (read(fd, lru_before, sizeof(lru_before) - 1) < 0)
		lru_before[0] = 0;
	close(fd);
}

/* What the kernel does to pages by itself, as far as it knows how. */
static void keep_kernel_busy(bool on)
{
	const char *yes = on ? "1" : "0";

	dm_put_file("/proc/sys/kernel/numa_balancing", yes);
	dm_put_file("/sys/kernel/mm/ksm/sleep_millisecs", "20");
	/* 2 undoes what was merged. */
	dm_put_file("/sys/kernel/mm/ksm/run", on ? "1" : "2");
	if (on)
		remember_lru();
	else
		dm_put_file(LRU_GENERATIONS, lru_before);
}

static int list(void)
{
	int i;

	for (i = 0; i < NR_SCENARIOS; i++)
		printf("%-18s %s\n", scenarios[i].name, scenarios[i].what);
	return 0;
}

static bool driver_is_ours(void)
{
	struct dm_dev d;
	bool yes;

	if (dm_open(&d, DM_PRIVATE0))
		return false;
	yes = !dm_set_flags(&d, 0);
	dm_close(&d);
	return yes;
}

int main(int argc, char **argv)
{
	int i, c, n = 0;
	double seconds = 2;

	while ((c = getopt(argc, argv, "s:t:w:l")) != -1)
		switch (c) {
		case 's':
			st_seed = strtoull(optarg, NULL, 0);
			break;
		case 't':
			seconds = strtod(optarg, NULL);
			break;
		case 'w':
			st_max_wait = atoi(optarg);
			break;
		case 'l':
			return list();
		default:
			return KSFT_FAIL;
		}
	argv += optind;
	argc -= optind;

	st = mmap(NULL, sizeof(*st), PROT_READ | PROT_WRITE,
		  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (i = 0; i < NR_SCENARIOS; i++)
		n += is_wanted(scenarios[i].name, argv, argc);
	ksft_print_header();
	if (st == MAP_FAILED || !n)
		ksft_exit_fail_msg("no such scenario\n");
	if (!st_have(DM_PRIVATE0))
		ksft_exit_skip("no /dev/hmm_dmirror0\n");
	ours = driver_is_ours();
	ksft_set_plan(n);
	make_swap();
	keep_kernel_busy(true);
	if (system("modprobe hwpoison_inject 2>/dev/null"))
		ksft_print_msg("no hwpoison_inject\n");
	for (i = 0; i < NR_SCENARIOS; i++)
		if (is_wanted(scenarios[i].name, argv, argc) &&
		    !run_scenario(&scenarios[i], seconds / n))
			ksft_exit_fail_msg("the machine is stuck\n");
	keep_kernel_busy(false);
	swapoff(SWAP_DISK);
	ksft_finished();
}
