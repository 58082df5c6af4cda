/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The frame of the stress tests: scenarios that run for a time, in the order of
 * a seed, and what is counted while they do.
 *
 * A scenario runs in a process of its own. What it counts is in memory that it
 * shares with the process that started it, which stays able to say how far it
 * came: it may crash, or be stuck in the kernel for good.
 */
#ifndef _MM_HMM_DMIRROR_STRESS_H
#define _MM_HMM_DMIRROR_STRESS_H

#include <ctype.h>
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/prctl.h>

#include "hmm_dmirror.h"

#define ST_MAX_THREADS	64

/* Seconds that killed processes may need to go. */
#define ST_DYING	30

struct st_shared {
	uint64_t ops;		/* things that somebody has done */
	uint64_t longest;	/* of them, in microseconds */
	long rounds;
	long failures;
	long busy;		/* times that something had to give up: no failure */
	char slowest[40];
	char why[200];		/* the first failure */
};

struct st_scenario {
	const char *name;
	const char *what;
	void (*run)(double until);
	int units;		/* devices that it needs */
	int extra;		/* seconds that it may take beyond its time */
	int nodes;		/* of memory, that it needs */
	const char *file;	/* that it needs */
};

static struct st_shared *st;
static uint64_t st_seed = 1;

/*
 * Seconds: one thing that a thread does takes no longer, whatever others do. If
 * nobody has done anything for twice as long, all is stuck.
 */
static int st_max_wait = 30;

/* ---- chance ---- */

struct st_rng {
	uint64_t state;
};

/* The same everywhere, for one seed; near seeds have nothing in common. */
static inline uint64_t st_next(struct st_rng *r)
{
	uint64_t z = r->state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

static inline unsigned long st_rnd(struct st_rng *r, unsigned long below)
{
	return st_next(r) % below;
}

static inline bool st_one_in(struct st_rng *r, unsigned long n)
{
	return !st_rnd(r, n);
}

/* Chance of its own for part @n of what has this seed. */
static inline struct st_rng st_rng(uint64_t seed, uint64_t n)
{
	struct st_rng r = { seed * 0x2545f4914f6cdd1dULL + n };

	st_next(&r);
	return r;
}

/* ---- what is counted ---- */

static inline bool st_failed(void)
{
	return __atomic_load_n(&st->failures, __ATOMIC_RELAXED);
}

/* The first one says what it was; all end as soon as they look. */
static inline __printf(1, 2)
void st_fail(const char *format, ...)
{
	va_list args;

	if (__atomic_fetch_add(&st->failures, 1, __ATOMIC_RELAXED))
		return;
	va_start(args, format);
	vsnprintf(st->why, sizeof(st->why), format, args);
	va_end(args);
}

#define st_check(fact, format, ...) ({ \
	bool __true = (fact); \
	if (!__true) \
		st_fail(format, ##__VA_ARGS__); \
	__true; \
})

static inline bool st_over(double until)
{
	return st_failed() || dm_now() > until;
}

static inline void st_round(void)
{
	__atomic_add_fetch(&st->rounds, 1, __ATOMIC_RELAXED);
}

static inline void st_busy(void)
{
	__atomic_add_fetch(&st->busy, 1, __ATOMIC_RELAXED);
}

/* Something was done that began then. */
static inline void st_did(const char *what, double began)
{
	uint64_t took = (dm_now() - began) * 1e6;
	uint64_t longest = __atomic_load_n(&st->longest, __ATOMIC_RELAXED);

	__atomic_add_fetch(&st->ops, 1, __ATOMIC_RELAXED);
	while (took > longest)
		if (__atomic_compare_exchange_n(&st->longest, &longest, took, false,
						__ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
			snprintf(st->slowest, sizeof(st->slowest), "%s", what);
			break;
		}
	if (took > st_max_wait * 1000000ULL)
		st_fail("%s took %.1f s", what, took / 1e6);
}

/* Do it, and count it. */
#define st_do(what, it) ({ \
	double __began = dm_now(); \
	typeof(it) __ret = (it); \
	st_did(what, __began); \
	__ret; \
})

/* ---- threads ---- */

struct st_team;

struct st_worker {
	struct st_team *team;
	pthread_t thread;
	int id;
	struct st_rng rng;
};

/* All begin at the same moment, whoever starts them included. */
struct st_team {
	void (*work)(struct st_worker *w);
	void *arg;
	int n;
	pthread_barrier_t line;
	struct st_worker w[ST_MAX_THREADS];
};

static inline void *st_thread(void *arg)
{
	struct st_worker *w = arg;

	pthread_barrier_wait(&w->team->line);
	w->team->work(w);
	return NULL;
}

static inline void st_start(struct st_team *t, int n, struct st_rng *rng,
			    void (*work)(struct st_worker *w), void *arg)
{
	int i, err;

	t->work = work;
	t->arg = arg;
	t->n = n;
	pthread_barrier_init(&t->line, NULL, n + 1);
	for (i = 0; i < n; i++) {
		t->w[i].team = t;
		t->w[i].id = i;
		t->w[i].rng.state = st_next(rng);
		err = pthread_create(&t->w[i].thread, NULL, st_thread, &t->w[i]);
		if (err) {
			/* The others wait for it: nothing can go on here. */
			st_fail("thread %d: %s", i, strerror(err));
			_exit(1);
		}
	}
	pthread_barrier_wait(&t->line);
}

static inline void st_join(struct st_team *t)
{
	int i;

	for (i = 0; i < t->n; i++)
		pthread_join(t->w[i].thread, NULL);
	pthread_barrier_destroy(&t->line);
}

static inline void st_all(struct st_team *t, int n, struct st_rng *rng,
			  void (*work)(struct st_worker *w), void *arg)
{
	st_start(t, n, rng, work, arg);
	st_join(t);
}

/* ---- a scenario in its process ---- */

/* Tasks that no signal reaches, and where they are. */
static inline int st_count_stuck(char *names, size_t size)
{
	DIR *dir = opendir("/proc");
	struct dirent *e;
	int sum = 0;

	names[0] = 0;
	while (dir && (e = readdir(dir))) {
		char path[300], line[200] = "", *state;
		ssize_t got;
		int fd;

		if (!isdigit(e->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stat", e->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		got = read(fd, line, sizeof(line) - 1);
		close(fd);
		state = got > 0 ? strrchr(line, ')') : NULL;
		if (!state || state[2] != 'D')
			continue;
		sum++;
		state[1] = 0;
		strncat(names, " ", size - strlen(names) - 1);
		strncat(names, line, size - strlen(names) - 1);
	}
	if (dir)
		closedir(dir);
	return sum;
}

static inline bool st_gone(pid_t pid, double seconds, int *status)
{
	double until = dm_now() + seconds;

	do {
		if (waitpid(pid, status, WNOHANG) == pid)
			return true;
		usleep(20000);
	} while (dm_now() < until);
	return false;
}

/* End it, with all it has started. False if it does not go. */
static inline bool st_kill(pid_t pid)
{
	char names[160];
	int status;

	kill(-pid, SIGKILL);
	kill(pid, SIGKILL);
	if (st_gone(pid, ST_DYING, &status))
		return true;
	st_fail("cannot be killed; %d in D:%s",
		st_count_stuck(names, sizeof(names)), names);
	return false;
}

/* Wait for it while it does something. Returns false if it stays for ever. */
static inline bool st_watch(pid_t pid, double limit)
{
	double now = dm_now(), moved = now, until = now + limit;
	uint64_t ops = 0;
	int status = 0;

	while (!st_gone(pid, 0.2, &status)) {
		uint64_t seen = __atomic_load_n(&st->ops, __ATOMIC_RELAXED);

		now = dm_now();
		if (seen != ops)
			moved = now;
		ops = seen;
		if (now - moved > 2 * st_max_wait)
			st_fail("nothing was done for %d s", 2 * st_max_wait);
		else if (now > until)
			st_fail("not over after %.0f s", limit);
		else
			continue;
		return st_kill(pid);
	}
	if (WIFSIGNALED(status))
		st_fail("ended by signal %d", WTERMSIG(status));
	else if (WEXITSTATUS(status))
		st_check(st_failed(), "exit status %d", WEXITSTATUS(status));
	/* What it has left behind must not disturb the next one. */
	kill(-pid, SIGKILL);
	return true;
}

static inline void st_enter(const struct st_scenario *s, double seconds)
{
	setpgid(0, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	s->run(dm_now() + seconds);
	_exit(st_failed());
}

/* Run it; false if the machine is not good for any more. */
static inline bool st_run_process(const struct st_scenario *s, double seconds)
{
	pid_t pid = fork();

	if (pid < 0) {
		st_fail("fork: %s", strerror(errno));
		return true;
	}
	if (!pid)
		st_enter(s, seconds);
	setpgid(pid, pid);
	return st_watch(pid, seconds + s->extra);
}

/* ---- what is missing afterwards ---- */

#define ST_UNITS	4

struct st_before {
	struct dm_counts counts[ST_UNITS];
	long free_kb;
};

static inline bool st_have(int unit)
{
	char path[40];

	snprintf(path, sizeof(path), "/dev/hmm_dmirror%d", unit);
	return !access(path, R_OK);
}

/* Devices grow as they are needed: that is not lost. */
static inline void st_empty_devices(void)
{
	struct hmm_dmirror_cmd cmd = { .npages = 1 };
	struct dm_dev d;
	int unit;

	for (unit = 0; unit < ST_UNITS; unit++) {
		if (!st_have(unit) || dm_open(&d, unit))
			continue;
		dm_ioctl(&d, HMM_DMIRROR_RELEASE, &cmd);
		dm_close(&d);
	}
}

static inline void st_look(struct st_before *b)
{
	int unit;

	st_empty_devices();
	for (unit = 0; unit < ST_UNITS; unit++)
		dm_counts(unit, &b->counts[unit]);
	b->free_kb = dm_free_kb();
}

/* Pages of devices that nobody has, and did not come back; -1: not known. */
static inline long st_lost_pages(const struct st_before *b)
{
	bool known = false;
	long sum = 0;
	int unit;

	for (unit = 0; unit < ST_UNITS; unit++) {
		known |= b->counts[unit].known;
		sum += labs(dm_settled_in_use(unit, &b->counts[unit], 0));
	}
	return known ? sum : -1;
}

#endif /* _MM_HMM_DMIRROR_STRESS_H */
