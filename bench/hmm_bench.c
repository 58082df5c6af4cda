// SPDX-License-Identifier: GPL-2.0
/*
 * hmm_bench WHAT [NAME=VALUE]...: one row of the benchmark, in the machine.
 *
 * WHAT is snapshot, mirror_fault, to_dev, to_ram, cpu_fault, evict, map, unmap,
 * dma_map, dma_unmap, or dmirror_read, _write, _to_dev, _to_ram, _cpu_fault. Each
 * repetition begins with new memory, and prints
 *
 *	rep NS PAGES MOVED [NAME=VALUE]...
 *
 * the first one, which warms everything up, "warm" instead of "rep".
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/swap.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "lib/test_hmm_uapi.h"
#include "module/hmm_bench_uapi.h"

#define PAGE	4096UL
#define PMD	(2UL << 20)
#define KINDS	"/sys/kernel/mm/transparent_hugepage"
#define DISK	"/dev/ram0"
#define MAX_THREADS	64

/* What the row says; sizes in pages, folios in kB */
static struct {
	unsigned long folio, pages, batch, reps;
	unsigned long threads;	/* 0: this one, and only the core's time counts */
	const char *map;	/* pmd: as large as it can be; pte */
	const char *memory;	/* anon, hole, fork, swap (out there), private (file),
				 * shared (file), cached (file, but not mapped) */
	const char *on;		/* where: ram, device */
	unsigned long around;	/* a CPU fault brings what is around the page, too */
	bool tlb;		/* another thread is on the other CPU */
	bool read;		/* the mirror asks for no more than that */
	unsigned long ms, most;	/* more repetitions, until all took so long */
} opt = {
	.folio = 4, .pages = 2048, .batch = 512, .reps = 3,
	.map = "pmd", .memory = "anon", .on = "ram",
};

/* What is measured: memory of this process, and who else is there */
struct subject {
	char *raw, *at;
	unsigned long bytes;
	pid_t child;
};

struct result {
	__u64 ns, moved, part_ns[3], flushes;
};

static int bench_fd, dmirror_fd;

static void die(const char *what)
{
	printf("error: %s: %s\n", what, strerror(errno));
	exit(1);
}

static __u64 now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static bool is(const char *a, const char *b)
{
	return !strcmp(a, b);
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die(path);
	close(fd);
}

/* ---- memory of a kind ---- */

static void choose_folio(unsigned long kb)
{
	char path[128];
	unsigned long k;

	for (k = 16; k <= 2048; k *= 2) {
		snprintf(path, sizeof(path), KINDS "/hugepages-%lukB/enabled", k);
		put(path, k == kb ? "always" : "never");
	}
}

static int new_file(unsigned long bytes)
{
	int fd = memfd_create("hmm_bench", 0);

	if (fd < 0 || ftruncate(fd, bytes))
		die("memfd");
	return fd;
}

/* Into the page cache, and into no page table. */
static void write_file(int fd, unsigned long bytes)
{
	static const char page[PAGE] = "in the page cache";
	unsigned long at;

	for (at = 0; at < bytes; at += PAGE)
		if (pwrite(fd, page, PAGE, at) != (ssize_t)PAGE)
			die("file");
}

static void map_memory(struct subject *s)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS, fd = -1;

	s->bytes = opt.pages * PAGE;
	if (is(opt.memory, "private") || is(opt.memory, "shared") ||
	    is(opt.memory, "cached")) {
		fd = new_file(s->bytes + PMD);
		flags = is(opt.memory, "private") ? MAP_PRIVATE : MAP_SHARED;
	}
	if (is(opt.memory, "cached"))
		write_file(fd, s->bytes + PMD);
	s->raw = mmap(NULL, s->bytes + PMD, PROT_READ | PROT_WRITE,
		      flags | MAP_NORESERVE, fd, 0);
	if (s->raw == MAP_FAILED)
		die("mmap");
	if (fd >= 0)
		close(fd);
	s->at = (char *)(((uintptr_t)s->raw + PMD - 1) & -PMD);
}

static void fill(struct subject *s)
{
	unsigned long i;

	for (i = 0; i < s->bytes; i += PAGE)
		*(volatile unsigned long *)(s->at + i) = i + 1;
}

/* A page of each PMD has other rights for a moment: the PMD is split. */
static void split_mappings(struct subject *s)
{
	unsigned long i;

	for (i = 0; i < s->bytes; i += PMD)
		if (mprotect(s->at + i, PAGE, PROT_READ) ||
		    mprotect(s->at + i, PAGE, PROT_READ | PROT_WRITE))
			die("mprotect");
}

static void share_with_child(struct subject *s)
{
	s->child = fork();
	if (s->child < 0)
		die("fork");
	if (!s->child)
		for (;;)
			pause();
}

/* A few pages are on their way elsewhere the first time. */
static void swap_out(struct subject *s)
{
	unsigned long nr = s->bytes / PAGE, i, out = 0, tries;
	int fd = open("/proc/self/pagemap", O_RDONLY);
	uint64_t entry;

	if (fd < 0)
		die("pagemap");
	for (tries = 0; tries < 20 && out < nr; tries++) {
		if (madvise(s->at, s->bytes, MADV_PAGEOUT))
			die("MADV_PAGEOUT");
		for (out = i = 0; i < nr; i++) {
			if (pread(fd, &entry, 8, ((uintptr_t)s->at / PAGE + i) * 8) != 8)
				die("pagemap");
			out += entry >> 62 & 1;
		}
	}
	close(fd);
	if (out < nr)
		printf("error: %lu of %lu pages are out\n", out, nr);
}

static void bench_call(unsigned long call, const char *name,
		       struct hmm_bench_cmd *cmd)
{
	if (ioctl(bench_fd, call, cmd))
		die(name);
}

static struct hmm_bench_cmd command(struct subject *s, unsigned long flags)
{
	return (struct hmm_bench_cmd) {
		.addr = (uintptr_t)s->at,
		.npages = s->bytes / PAGE,
		.batch = opt.batch < s->bytes / PAGE ? opt.batch : s->bytes / PAGE,
		.flags = flags,
	};
}

static void dmirror_call(unsigned long call, const char *name, struct subject *s,
			 char *buffer)
{
	struct hmm_dmirror_cmd cmd = {
		.addr = (uintptr_t)s->at,
		.ptr = (uintptr_t)buffer,
		.npages = s->bytes / PAGE,
	};

	if (ioctl(dmirror_fd, call, &cmd))
		die(name);
	if (cmd.cpages != s->bytes / PAGE)
		printf("error: %s: %llu of %lu pages\n", name,
		       (unsigned long long)cmd.cpages, s->bytes / PAGE);
}

static void to_device(struct subject *s)
{
	struct hmm_bench_cmd cmd = command(s, 0);

	bench_call(HMM_BENCH_MIGRATE, "to the device", &cmd);
}

static void prepare(struct subject *s)
{
	memset(s, 0, sizeof(*s));
	map_memory(s);
	if (is(opt.memory, "hole") || is(opt.memory, "cached"))
		return;
	fill(s);
	if (is(opt.map, "pte"))
		split_mappings(s);
	if (is(opt.memory, "fork"))
		share_with_child(s);
	if (is(opt.memory, "swap"))
		swap_out(s);
	if (is(opt.on, "device"))
		to_device(s);
}

static void dispose(struct subject *s)
{
	if (s->child) {
		kill(s->child, SIGKILL);
		waitpid(s->child, NULL, 0);
	}
	munmap(s->raw, s->bytes + PMD);
}

/* ---- what is measured ---- */

static void take(struct result *r, const struct hmm_bench_cmd *cmd)
{
	r->ns = cmd->ns;
	r->moved = cmd->moved;
	memcpy(r->part_ns, cmd->part_ns, sizeof(r->part_ns));
}

static void snapshot(struct subject *s, struct result *r)
{
	struct hmm_bench_cmd cmd = command(s, 0);

	bench_call(HMM_BENCH_MIRROR, "snapshot", &cmd);
	take(r, &cmd);
}

static void mirror_fault(struct subject *s, struct result *r)
{
	struct hmm_bench_cmd cmd =
		command(s, HMM_BENCH_FAULT | (opt.read ? HMM_BENCH_READ : 0));

	bench_call(HMM_BENCH_MIRROR, "fault", &cmd);
	take(r, &cmd);
}

static void to_dev(struct subject *s, struct result *r)
{
	struct hmm_bench_cmd cmd = command(s, 0);

	bench_call(HMM_BENCH_MIGRATE, "to the device", &cmd);
	take(r, &cmd);
}

static void to_ram(struct subject *s, struct result *r)
{
	struct hmm_bench_cmd cmd = command(s, HMM_BENCH_TO_RAM);

	bench_call(HMM_BENCH_MIGRATE, "to RAM", &cmd);
	take(r, &cmd);
}

static void evict(struct subject *s, struct result *r)
{
	struct hmm_bench_cmd cmd = command(s, 0);

	bench_call(HMM_BENCH_EVICT, "evict", &cmd);
	take(r, &cmd);
}

static __u64 touch(struct subject *s)
{
	__u64 from = now();
	unsigned long i;

	for (i = 0; i < s->bytes; i += PAGE)
		(void)*(volatile char *)(s->at + i);
	return now() - from;
}

/* What the driver had to do since it was asked last, for all threads. */
static struct hmm_bench_cmd driver_part(void)
{
	struct hmm_bench_cmd cmd = { };

	bench_call(HMM_BENCH_FAULTS, "faults", &cmd);
	return cmd;
}

/* The CPU touches one page after the other, and all of that counts. */
static void cpu_fault(struct subject *s, struct result *r)
{
	struct hmm_bench_cmd driver;

	if (!opt.threads)
		driver_part();
	r->ns = touch(s);
	driver = driver_part();
	r->moved = driver.moved;
	r->part_ns[0] = r->ns;
	/* Several threads' time in the driver is not that on the clock. */
	if (!opt.threads)
		r->ns -= driver.ns;
}

static void page_map(struct result *r, int part)
{
	struct hmm_bench_cmd cmd = { .npages = opt.pages };

	bench_call(HMM_BENCH_PGMAP, "page map", &cmd);
	take(r, &cmd);
	r->ns = cmd.part_ns[part];
}

static void map(struct subject *s, struct result *r)
{
	page_map(r, 0);
}

static void unmap(struct subject *s, struct result *r)
{
	page_map(r, 1);
}

static void dma_part(struct subject *s, struct result *r, int part)
{
	struct hmm_bench_cmd cmd = command(s, 0);

	bench_call(HMM_BENCH_DMA, "DMA", &cmd);
	take(r, &cmd);
	r->ns = cmd.part_ns[part];
}

static void dma_map(struct subject *s, struct result *r)
{
	dma_part(s, r, 0);
}

static void dma_unmap(struct subject *s, struct result *r)
{
	dma_part(s, r, 1);
}

static void dmirror_timed(unsigned long call, struct subject *s, struct result *r)
{
	static char *buffer;
	__u64 from;

	if (!buffer) {
		buffer = malloc(s->bytes);
		memset(buffer, 1, s->bytes);
	}
	from = now();
	dmirror_call(call, "dmirror", s, buffer);
	r->ns = now() - from;
	r->moved = s->bytes / PAGE;
}

static void dmirror_read(struct subject *s, struct result *r)
{
	dmirror_timed(HMM_DMIRROR_READ, s, r);
}

static void dmirror_write(struct subject *s, struct result *r)
{
	dmirror_timed(HMM_DMIRROR_WRITE, s, r);
}

static void dmirror_to_dev(struct subject *s, struct result *r)
{
	dmirror_timed(HMM_DMIRROR_MIGRATE_TO_DEV, s, r);
}

static void dmirror_to_ram(struct subject *s, struct result *r)
{
	struct result unused;

	dmirror_timed(HMM_DMIRROR_MIGRATE_TO_DEV, s, &unused);
	dmirror_timed(HMM_DMIRROR_MIGRATE_TO_SYS, s, r);
}

/* The base's driver does not have that. */
static void fault_around(void)
{
#ifdef HMM_DMIRROR_FLAG_FAULT_AROUND
	struct hmm_dmirror_cmd flags = {
		.npages = HMM_DMIRROR_FLAG_FAULT_AROUND,
	};

	if (opt.around && ioctl(dmirror_fd, HMM_DMIRROR_FLAGS, &flags))
		die("fault-around");
#endif
}

static void dmirror_cpu_fault(struct subject *s, struct result *r)
{
	struct result unused;

	fault_around();
	dmirror_timed(HMM_DMIRROR_MIGRATE_TO_DEV, s, &unused);
	r->ns = touch(s);
	r->moved = s->bytes / PAGE;
}

static const struct job {
	const char *name;
	void (*run)(struct subject *s, struct result *r);
	bool no_memory;
} jobs[] = {
	{ "snapshot", snapshot },
	{ "mirror_fault", mirror_fault },
	{ "to_dev", to_dev },
	{ "to_ram", to_ram },
	{ "cpu_fault", cpu_fault },
	{ "evict", evict },
	{ "map", map, true },
	{ "unmap", unmap, true },
	{ "dma_map", dma_map },
	{ "dma_unmap", dma_unmap },
	{ "dmirror_read", dmirror_read },
	{ "dmirror_write", dmirror_write },
	{ "dmirror_to_dev", dmirror_to_dev },
	{ "dmirror_to_ram", dmirror_to_ram },
	{ "dmirror_cpu_fault", dmirror_cpu_fault },
	{ }
};

/* ---- repetitions ---- */

/*
 * Two functions that do nothing, at addresses that nobody else has: profiler.c
 * counts from one to the other.
 */
static void (*const begin)(void) = (void (*)(void))0x123450000UL;
static void (*const end)(void) = (void (*)(void))0x123450100UL;

static void make_marks(void)
{
	char *at = mmap((void *)begin, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (at == MAP_FAILED)
		die("marks");
	memset(at, 0xc3, PAGE);		/* ret */
}

static void run_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

static void *stay_on_other_cpu(void *unused)
{
	run_on(1);
	for (;;)
		sched_yield();
	return unused;
}

static __u64 remote_flushes(void)
{
	unsigned long long n = 0;
	char line[128];
	FILE *f = fopen("/proc/vmstat", "r");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "nr_tlb_remote_flush %llu", &n) == 1)
			break;
	if (f)
		fclose(f);
	return n;
}

static void print(const char *what, const struct result *r, unsigned long pages)
{
	printf("%s %llu %lu %llu setup=%llu pages=%llu finalize=%llu flushes=%llu\n",
	       what, (unsigned long long)r->ns, pages,
	       (unsigned long long)r->moved, (unsigned long long)r->part_ns[0],
	       (unsigned long long)r->part_ns[1],
	       (unsigned long long)r->part_ns[2], (unsigned long long)r->flushes);
	fflush(stdout);
}

/* After @done repetitions, the first of which does not count, and @ns in them? */
static bool is_enough(unsigned long done, __u64 ns)
{
	return done > opt.reps && (done > opt.most || ns >= opt.ms * 1000000);
}

static void repeat_alone(const struct job *job)
{
	struct subject s = { };
	unsigned long i;
	struct result r;
	__u64 ns = 0;

	for (i = 0; !is_enough(i, ns); i++) {
		memset(&r, 0, sizeof(r));
		if (!job->no_memory)
			prepare(&s);
		if (opt.tlb)
			r.flushes = remote_flushes();
		if (i)
			begin();
		job->run(&s, &r);
		end();
		if (opt.tlb)
			r.flushes = remote_flushes() - r.flushes;
		if (!job->no_memory)
			dispose(&s);
		print(i ? "rep" : "warm", &r, opt.pages);
		ns += i ? r.ns : 0;
	}
}

/* All begin together, and the last one's end is the end. */
struct crew {
	const struct job *job;
	pthread_barrier_t ready, go, done;
	bool over;		/* says who waits at ready */
	struct result results[MAX_THREADS];
};

struct worker {
	struct crew *crew;
	unsigned long nr;
};

static void *work(void *arg)
{
	struct worker *w = arg;
	struct crew *crew = w->crew;
	struct subject s;

	for (;;) {
		prepare(&s);
		pthread_barrier_wait(&crew->ready);
		pthread_barrier_wait(&crew->go);
		if (crew->over)
			break;
		crew->job->run(&s, &crew->results[w->nr]);
		pthread_barrier_wait(&crew->done);
		dispose(&s);
	}
	dispose(&s);
	return NULL;
}

static void repeat_together(const struct job *job)
{
	pthread_t threads[MAX_THREADS];
	struct worker workers[MAX_THREADS];
	struct crew crew = { .job = job };
	unsigned long i, t;
	struct result r;
	__u64 from, ns = 0;

	pthread_barrier_init(&crew.ready, NULL, opt.threads + 1);
	pthread_barrier_init(&crew.go, NULL, opt.threads + 1);
	pthread_barrier_init(&crew.done, NULL, opt.threads + 1);
	for (t = 0; t < opt.threads; t++) {
		workers[t] = (struct worker) { &crew, t };
		if (pthread_create(&threads[t], NULL, work, &workers[t]))
			die("thread");
	}
	for (i = 0; !is_enough(i, ns); i++) {
		memset(&r, 0, sizeof(r));
		pthread_barrier_wait(&crew.ready);
		if (job->run == cpu_fault)
			driver_part();
		from = now();
		pthread_barrier_wait(&crew.go);
		pthread_barrier_wait(&crew.done);
		r.ns = now() - from;
		for (t = 0; t < opt.threads; t++)
			r.moved += crew.results[t].moved;
		print(i ? "rep" : "warm", &r, opt.pages * opt.threads);
		ns += i ? r.ns : 0;
	}
	crew.over = true;
	pthread_barrier_wait(&crew.ready);
	pthread_barrier_wait(&crew.go);
	for (t = 0; t < opt.threads; t++)
		pthread_join(threads[t], NULL);
}

static bool set_option(const char *name, const char *value)
{
	static const struct {
		const char *name;
		unsigned long *number;
		const char **text;
	} options[] = {
		{ "folio", &opt.folio }, { "pages", &opt.pages },
		{ "batch", &opt.batch }, { "reps", &opt.reps },
		{ "threads", &opt.threads }, { "around", &opt.around },
		{ "ms", &opt.ms }, { "most", &opt.most }, { "map", NULL, &opt.map },
		{ "memory", NULL, &opt.memory }, { "on", NULL, &opt.on },
		{ }
	}, *o;

	for (o = options; o->name; o++) {
		if (!is(name, o->name))
			continue;
		if (o->text)
			*o->text = value;
		else
			*o->number = strtoul(value, NULL, 0);
		return true;
	}
	if (is(name, "tlb"))
		opt.tlb = atoi(value);
	else if (is(name, "read"))
		opt.read = atoi(value);
	else
		return false;
	return true;
}

static void parse(char **args)
{
	char *value;

	for (; *args; args++) {
		value = strchr(*args, '=');
		if (value)
			*value++ = 0;
		if (!value || !set_option(*args, value)) {
			printf("error: what is %s?\n", *args);
			exit(2);
		}
	}
	if (opt.threads > MAX_THREADS || !opt.pages || !opt.batch) {
		printf("error: how many?\n");
		exit(2);
	}
}

static void set_up(const struct job *job)
{
	struct hmm_bench_cmd cmd = {
		.npages = opt.pages * (opt.threads ? opt.threads : 1) *
			  ((opt.most > opt.reps ? opt.most : opt.reps) + 2),
	};
	pthread_t other;

	if (!job->no_memory)
		choose_folio(opt.folio);
	if (is(opt.memory, "swap") &&
	    (system("mkswap " DISK " > /dev/null") || swapon(DISK, 0)))
		die("swap");
	if (!strncmp(job->name, "dmirror", 7)) {
		dmirror_fd = open("/dev/hmm_dmirror0", O_RDWR);
		if (dmirror_fd < 0)
			die("/dev/hmm_dmirror0");
		return;
	}
	bench_fd = open("/dev/hmm_bench", O_RDWR);
	if (bench_fd < 0)
		die("/dev/hmm_bench");
	/* A page map is a multiple of sections. */
	cmd.npages = (cmd.npages + 32767) & ~32767UL;
	if (!job->no_memory)
		bench_call(HMM_BENCH_DEVICE, "device", &cmd);
	if (opt.tlb) {
		run_on(0);
		if (pthread_create(&other, NULL, stay_on_other_cpu, NULL))
			die("thread");
	}
}

int main(int argc, char **argv)
{
	const struct job *job = jobs;

	while (job->name && (argc < 2 || !is(job->name, argv[1])))
		job++;
	if (!job->name) {
		printf("error: what is to be measured?\n");
		return 2;
	}
	parse(argv + 2);
	make_marks();
	set_up(job);
	if (opt.threads)
		repeat_together(job);
	else
		repeat_alone(job);
	if (is(opt.memory, "swap") && swapoff(DISK))
		die("swapoff");
	return 0;
}
