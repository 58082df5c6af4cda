// SPDX-License-Identifier: GPL-2.0
/*
 * Fails every allocation in turn: the first one of a call, then the second one,
 * until the call gets by without. Each time it has to end in an error that it is
 * allowed, or do without that memory; nothing may be lost, and the same call has
 * to work right after.
 *
 *	hmm_dmirror_failnth [-s SEED] [-t SECONDS] [-l] [CALL...]
 *
 * The time is for each call. Where it does not suffice, which allocations are
 * failed is a matter of the seed. So are copies from and to user memory, where
 * the kernel can fail those.
 */
#include "../kselftest.h"

#include <sys/uio.h>

#include "hmm_dmirror_module.h"

#define SMALL_PAGES	8
#define MORE_THAN_ANY	1000000000

static int fail_nth = -1;

/* ---- the switch ---- */

/* Off, too; the write itself may be what fails. */
static void arm(int n)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%d", n), tries;

	for (tries = 0; tries < 3; tries++)
		if (pwrite(fail_nth, text, len, 0) == len)
			return;
}

/* How many were left of those before the one that fails, and off. */
static int disarm(void)
{
	char text[16] = "";
	ssize_t got = pread(fail_nth, text, sizeof(text) - 1, 0);

	arm(0);
	/* If the answer was it, then nothing before. */
	return got < 0 ? 1 : atoi(text);
}

static bool put_debugfs(const char *what, const char *name, const char *value)
{
	char path[80];

	snprintf(path, sizeof(path), "/sys/kernel/debug/%s/%s", what, name);
	return !dm_put_file(path, value);
}

/* Every allocation counts, and none is worth a stack in the log. */
static bool all_may_fail(void)
{
	bool have = put_debugfs("failslab", "ignore-gfp-wait", "N") &&
		    put_debugfs("fail_page_alloc", "ignore-gfp-wait", "N") &&
		    put_debugfs("fail_page_alloc", "ignore-gfp-highmem", "N") &&
		    put_debugfs("fail_page_alloc", "min-order", "0");

	put_debugfs("failslab", "verbose", "0");
	put_debugfs("fail_page_alloc", "verbose", "0");
	put_debugfs("fail_usercopy", "verbose", "0");
	return have;
}

/* Where a function is, and the one behind it. */
static bool find_function(const char *function, unsigned long *start, unsigned long *end)
{
	FILE *f = fopen("/proc/kallsyms", "r");
	char line[256], name[128], type;
	unsigned long addr;

	*start = 0;
	*end = ULONG_MAX;
	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx %c %127s", &addr, &type, name) != 3)
			continue;
		if (!strcmp(name, function))
			*start = addr;
	}
	if (f)
		rewind(f);
	while (f && *start && fgets(line, sizeof(line), f)) {
		addr = strtoul(line, NULL, 16);
		if (addr > *start && addr < *end)
			*end = addr;
	}
	if (f)
		fclose(f);
	return *start;
}

/*
 * Fail only what this function calls, however deep; NULL: everything. The loader
 * of modules prints a stack when it gets no memory, which is not our matter.
 */
static bool fail_only_in(const char *function)
{
	static const char * const what[] = { "failslab", "fail_page_alloc", "fail_usercopy" };
	unsigned long start = 0, end = ULONG_MAX;
	char from[24], to[24];
	bool done = true;
	size_t i;

	if (function && !find_function(function, &start, &end))
		return false;
	snprintf(from, sizeof(from), "%#lx", start);
	snprintf(to, sizeof(to), "%#lx", end);
	for (i = 0; i < sizeof(what) / sizeof(*what); i++)
		done &= put_debugfs(what[i], "stacktrace-depth", function ? "32" : "0") &&
			put_debugfs(what[i], "require-start", from) &&
			put_debugfs(what[i], "require-end", to);
	return done;
}

/* ---- what a call works on ---- */

enum kind { NOTHING, HOLE, SMALL, HUGE };
enum where { IN_RAM, ON_DEVICE, ON_OTHER };

struct state {
	const struct call *call;
	struct dm_dev dev[2];
	struct dm_mem m;
	uint64_t *was;			/* tags before a write */
	unsigned char *copy;
	int module;			/* its file */
	char params[256];
	char why[120];
};

struct call {
	const char *name;
	int (*run)(struct state *s);
	enum kind kind;
	enum where where;
	int unit;
	int may[4];			/* errors, beside -ENOMEM and -EFAULT */
	bool never;			/* it may not fail for want of memory */
	const char *within;		/* fail only what this function calls */
	bool changes;			/* the content */
	bool reload;			/* no device is open */
};

static int with_buffer(struct state *s, unsigned long op)
{
	return dm_op(&s->dev[0], op, s->m.cpu, s->m.pages, s->copy);
}

static int wrong_copy(struct state *s, int err)
{
	if (!err && dm_copy_wrong(&s->m, 0, s->m.pages, s->copy) != DM_ALL_RIGHT)
		return -EBADMSG;
	return err;
}

static int reads(struct state *s)
{
	return wrong_copy(s, with_buffer(s, HMM_DMIRROR_READ));
}

static int reads_unlocked(struct state *s)
{
	return wrong_copy(s, with_buffer(s, HMM_DMIRROR_READ_UNLOCKED));
}

static int reads_by_dma(struct state *s)
{
	return wrong_copy(s, with_buffer(s, HMM_DMIRROR_DMA_READ));
}

static int to_device(struct state *s)
{
	return wrong_copy(s, with_buffer(s, HMM_DMIRROR_MIGRATE_TO_DEV));
}

static int faults_to_device(struct state *s)
{
	return wrong_copy(s, with_buffer(s, HMM_DMIRROR_FAULT_TO_DEV));
}

static int takes(struct state *s)
{
	return wrong_copy(s, with_buffer(s, HMM_DMIRROR_EXCLUSIVE));
}

static int to_ram(struct state *s)
{
	return with_buffer(s, HMM_DMIRROR_MIGRATE_TO_SYS);
}

static int takes_snapshot(struct state *s)
{
	return with_buffer(s, HMM_DMIRROR_SNAPSHOT);
}

static int checks_exclusive(struct state *s)
{
	return with_buffer(s, HMM_DMIRROR_CHECK_EXCLUSIVE);
}

static int sets_flags(struct state *s)
{
	return dm_set_flags(&s->dev[0], 0);
}

static int releases(struct state *s)
{
	struct hmm_dmirror_cmd cmd = { };

	return dm_ioctl(&s->dev[0], HMM_DMIRROR_RELEASE, &cmd);
}

/* New tags; what had them before is kept, for pages that were not reached. */
static int writes_as(struct state *s, unsigned long op)
{
	long i;

	for (i = 0; i < (long)s->m.pages; i++)
		dm_paint(s->copy + i * DM_PAGE, s->m.tag[i]);
	return with_buffer(s, op);
}

static int writes(struct state *s)
{
	return writes_as(s, HMM_DMIRROR_WRITE);
}

static int writes_unlocked(struct state *s)
{
	return writes_as(s, HMM_DMIRROR_WRITE_UNLOCKED);
}

static int cpu_reads(struct state *s)
{
	return dm_cpu_wrong(&s->m, 0, s->m.pages) == DM_ALL_RIGHT ? 0 : -EBADMSG;
}

static int kernel_reads(struct state *s)
{
	struct iovec from = { s->m.cpu, s->m.pages * DM_PAGE };
	struct iovec to = { s->copy, s->m.pages * DM_PAGE };
	ssize_t got = process_vm_readv(getpid(), &to, 1, &from, 1, 0);

	if (got < 0)
		return -errno;
	return wrong_copy(s, got == (ssize_t)to.iov_len ? 0 : -EFAULT);
}

static int forks(struct state *s)
{
	pid_t pid = fork();

	if (pid < 0)
		return -errno;
	if (!pid)
		_exit(dm_cpu_wrong(&s->m, 0, s->m.pages) != DM_ALL_RIGHT);
	return dm_wait(pid) ? -ECHILD : 0;
}

static int protects(struct state *s)
{
	unsigned long len = s->m.pages * DM_PAGE;

	if (mprotect(dm_addr(&s->m, 1), len / 2, PROT_READ))
		return -errno;
	return mprotect(s->m.cpu, len, PROT_READ | PROT_WRITE) ? -errno : 0;
}

/* A part goes, and with it the large folio; zeroes come in its place. */
static int unmaps_part(struct state *s)
{
	if (madvise(dm_addr(&s->m, 1), 3 * DM_PAGE, MADV_DONTNEED))
		return -errno;
	dm_zero_tags(&s->m, 1, 3);
	return 0;
}

static int opens(struct state *s)
{
	struct dm_dev d;
	int err = dm_open(&d, DM_PRIVATE0);

	if (!err)
		dm_close(&d);
	return err;
}

static int maps_device(struct state *s)
{
	void *p = mmap(NULL, 4 * DM_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
		       s->dev[0].fd, 0);

	if (p == MAP_FAILED)
		return -errno;
	munmap(p, 4 * DM_PAGE);
	return 0;
}

/* The last user goes, with memory on the device: that comes home. */
static int closes(struct state *s)
{
	dm_close(&s->dev[1]);
	return close(s->dev[0].fd) ? -errno : 0;
}

static int loads(struct state *s)
{
	return syscall(__NR_finit_module, s->module, s->params, 0) ? -errno : 0;
}

static int unloads(struct state *s)
{
	return dm_unload_module();
}

#define P0	DM_PRIVATE0
#define C0	DM_COHERENT0

static const struct call calls[] = {
	{ "read", reads, SMALL, IN_RAM, P0 },
	{ "read_hole", reads, HOLE, IN_RAM, P0 },
	{ "read_own", reads, SMALL, ON_DEVICE, P0 },
	{ "read_other", reads, SMALL, ON_OTHER, P0 },
	{ "read_other_huge", reads, HUGE, ON_OTHER, P0 },
	{ "read_unlocked", reads_unlocked, HOLE, IN_RAM, P0 },
	{ "read_dma", reads_by_dma, SMALL, IN_RAM, P0 },
	{ "read_dma_own", reads_by_dma, SMALL, ON_DEVICE, P0 },
	{ "write", writes, SMALL, IN_RAM, P0, .changes = true },
	{ "write_hole", writes, HOLE, IN_RAM, P0, .changes = true },
	{ "write_own", writes, SMALL, ON_DEVICE, P0, .changes = true },
	{ "write_unlocked", writes_unlocked, HOLE, IN_RAM, P0, .changes = true },
	{ "to_dev", to_device, SMALL, IN_RAM, P0, { -ENOENT } },
	{ "to_dev_hole", to_device, HOLE, IN_RAM, P0, { -ENOENT } },
	{ "to_dev_huge", to_device, HUGE, IN_RAM, P0, { -ENOENT } },
	{ "to_coherent", to_device, SMALL, IN_RAM, C0, { -ENOENT } },
	{ "to_coherent_huge", to_device, HUGE, IN_RAM, C0, { -ENOENT } },
	{ "fault_to_dev", faults_to_device, HOLE, IN_RAM, P0, { -ENOENT } },
	{ "fault_to_dev_other", faults_to_device, SMALL, ON_OTHER, P0, { -ENOENT } },
	{ "fault_to_dev_huge", faults_to_device, HUGE, IN_RAM, P0, { -ENOENT } },
	{ "to_sys", to_ram, SMALL, ON_DEVICE, P0 },
	{ "to_sys_huge", to_ram, HUGE, ON_DEVICE, P0 },
	{ "to_sys_coherent", to_ram, HUGE, ON_DEVICE, C0 },
	{ "snapshot", takes_snapshot, SMALL, ON_DEVICE, P0 },
	{ "exclusive", takes, SMALL, IN_RAM, P0 },
	{ "exclusive_hole", takes, HOLE, IN_RAM, P0 },
	{ "exclusive_huge", takes, HUGE, IN_RAM, P0 },
	{ "exclusive_own", takes, SMALL, ON_DEVICE, P0 },
	{ "check_exclusive", checks_exclusive, SMALL, IN_RAM, P0 },
	{ "flags", sets_flags, SMALL, IN_RAM, P0 },
	{ "release", releases, HUGE, ON_DEVICE, P0, { -EBUSY } },
	{ "release_coherent", releases, SMALL, ON_DEVICE, C0, { -EBUSY } },
	{ "mmap", maps_device, SMALL, IN_RAM, P0, { -EAGAIN } },
	{ "open", opens, SMALL, IN_RAM, P0 },
	{ "close", closes, HUGE, ON_DEVICE, P0, .never = true },
	{ "cpu_fault", cpu_reads, SMALL, ON_DEVICE, P0, .never = true },
	{ "cpu_fault_huge", cpu_reads, HUGE, ON_DEVICE, P0, .never = true },
	{ "kernel_fault", kernel_reads, SMALL, ON_DEVICE, P0 },
	{ "fork", forks, SMALL, ON_DEVICE, P0, { -EAGAIN } },
	{ "fork_huge", forks, HUGE, ON_DEVICE, P0, { -EAGAIN } },
	{ "mprotect_huge", protects, HUGE, ON_DEVICE, P0 },
	{ "dontneed_huge", unmaps_part, HUGE, ON_DEVICE, P0 },
	{ "insmod", loads, NOTHING, IN_RAM, P0, .reload = true, .within = "do_init_module" },
	/* It reads a name from user space, which may fail. */
	{ "rmmod", unloads, NOTHING, IN_RAM, P0, { -EFAULT }, .never = true, .reload = true },
};

#define NR_CALLS	((int)(sizeof(calls) / sizeof(*calls)))

/* ---- one try ---- */

static int fill(struct state *s)
{
	switch (s->call->kind) {
	case HOLE:
		return dm_hole(&s->m, SMALL_PAGES);
	case SMALL:
		return dm_small(&s->m, SMALL_PAGES);
	default:
		return dm_huge(&s->m, 1);
	}
}

static int open_both(struct state *s)
{
	int other = s->call->unit == P0 ? DM_PRIVATE1 : DM_COHERENT1;
	int err = dm_open(&s->dev[0], s->call->unit);

	return err ? err : dm_open(&s->dev[1], other);
}

static bool is_loaded(void)
{
	return !access("/sys/module/test_hmm", F_OK);
}

/* As it has to be before: there for rmmod, not there for insmod. */
static int prepare_module(struct state *s)
{
	bool want = s->call->run == unloads;

	if (s->module < 0)
		s->module = dm_open_module();
	if (s->module < 0)
		return -ENOENT;
	if (is_loaded() == want)
		return 0;
	return want ? dm_load_module(s->params) : dm_unload_module();
}

static int prepare(struct state *s)
{
	int err;

	if (s->call->reload)
		return prepare_module(s);
	err = open_both(s);
	if (!err)
		err = fill(s);
	if (!err && s->call->where != IN_RAM)
		err = dm_to_dev(&s->dev[s->call->where == ON_OTHER], &s->m, 0, s->m.pages);
	if (err)
		return err;
	s->copy = malloc(s->m.pages * DM_PAGE);
	s->was = malloc(s->m.pages * sizeof(*s->was));
	if (!s->copy || !s->was)
		return -ENOMEM;
	/* Nothing of it is to be faulted in by the call. */
	memset(s->copy, 0, s->m.pages * DM_PAGE);
	memcpy(s->was, s->m.tag, s->m.pages * sizeof(*s->was));
	if (s->call->changes)
		dm_retag(&s->m, 0, s->m.pages);
	return 0;
}

static void clean_up(struct state *s)
{
	if (s->call->reload)
		return;
	free(s->copy);
	free(s->was);
	dm_free(&s->m);
	dm_close(&s->dev[0]);
	dm_close(&s->dev[1]);
	s->copy = NULL;
	s->was = NULL;
}

static bool is_allowed(const struct call *call, int err)
{
	size_t i;

	if (!err)
		return true;
	for (i = 0; i < sizeof(call->may) / sizeof(*call->may); i++)
		if (err == call->may[i])
			return true;
	return !call->never && (err == -ENOMEM || err == -EFAULT);
}

/* A page that the device did not come to has what it had. */
static void settle_writes(struct state *s)
{
	long i;

	for (i = 0; i < (long)s->m.pages; i++)
		if (!dm_page_is(dm_addr(&s->m, i), s->m.tag[i]))
			s->m.tag[i] = s->was[i];
}

static bool content_is_right(struct state *s)
{
	if (s->dev[0].fd < 0 || s->call->run == closes) {
		s->dev[0].fd = -1;
		return dm_cpu_wrong(&s->m, 0, s->m.pages) == DM_ALL_RIGHT;
	}
	return dm_dev_wrong(&s->dev[0], &s->m, 0, s->m.pages) == DM_ALL_RIGHT &&
	       dm_cpu_wrong(&s->m, 0, s->m.pages) == DM_ALL_RIGHT;
}

/* Without anything that fails it has to work, whatever there was before. */
static bool works_again(struct state *s)
{
	int err;

	if (s->call->run == closes)
		return true;
	if (s->call->changes)
		dm_retag(&s->m, 0, s->m.pages);
	err = s->call->run(s);
	if (err)
		snprintf(s->why, sizeof(s->why), "afterwards: %s", strerror(-err));
	return !err;
}

static bool check_after(struct state *s, int err)
{
	if (!is_allowed(s->call, err)) {
		snprintf(s->why, sizeof(s->why), "%s", strerror(-err));
		return false;
	}
	if (s->call->reload)
		return !err || works_again(s);
	if (err && s->call->changes)
		settle_writes(s);
	if (!content_is_right(s)) {
		snprintf(s->why, sizeof(s->why), "content, after %s", strerror(-err));
		return false;
	}
	return works_again(s) && content_is_right(s);
}

struct tally {
	int points, tried, errors;
};

/* The call with its allocation @n failing; or counted, if @n is more than any. */
static bool try_one(struct state *s, int n, int *left, struct tally *t)
{
	int err = prepare(s);
	bool right;

	if (err) {
		snprintf(s->why, sizeof(s->why), "preparation: %s", strerror(-err));
		clean_up(s);
		return false;
	}
	arm(n);
	err = s->call->run(s);
	*left = disarm();
	t->errors += !!err;
	right = check_after(s, err);
	clean_up(s);
	return right;
}

/* ---- all tries of a call ---- */

static uint64_t seed = 1;

/* A step that meets all numbers below @n before one comes again. */
static int stride(int n)
{
	int step = (seed * 7919 + n / 3) % n + 1, a, b, c;

	for (;; step++) {
		for (a = n, b = step; b; c = a % b, a = b, b = c)
			;
		if (a == 1)
			return step;
	}
}

static bool fail_each(struct state *s, double seconds, struct tally *t)
{
	double until = dm_now() + seconds;
	int left, i, step;

	if (!try_one(s, MORE_THAN_ANY, &left, t))
		return false;
	if (t->errors) {
		snprintf(s->why, sizeof(s->why), "an error although nothing failed");
		return false;
	}
	/* Reading what is left was one. */
	t->points = MORE_THAN_ANY - left;
	if (!t->points)
		return true;
	step = stride(t->points);
	for (i = 0; i < t->points && (!i || dm_now() < until); i++) {
		int n = 1 + (int)((long)i * step % t->points);

		if (!try_one(s, n, &left, t)) {
			char why[sizeof(s->why)];

			memcpy(why, s->why, sizeof(why));
			snprintf(s->why, sizeof(s->why), "%d of %d: %.80s", n, t->points, why);
			return false;
		}
		t->tried++;
	}
	return true;
}

static void run_call(const struct call *call, const char *params, double seconds)
{
	struct state s = {
		.call = call,
		.dev = { { .fd = -1 }, { .fd = -1 } },
		.module = -1,
	};
	long before, lost, kb;
	struct dm_counts start;
	struct tally t = { };
	bool right;

	snprintf(s.params, sizeof(s.params), "%s", params);
	/* A device that was loaded anew has all its struct pages again. */
	if (call->reload && !dm_unload_module())
		dm_load_module(params);
	dm_counts(call->unit, &start);
	before = dm_free_kb();
	right = fail_only_in(call->within) && fail_each(&s, seconds, &t);
	fail_only_in(NULL);
	if (s.module >= 0)
		close(s.module);
	if (!is_loaded())
		dm_load_module(params);
	lost = dm_settled_in_use(call->unit, &start, 0);
	if (right && lost) {
		right = false;
		snprintf(s.why, sizeof(s.why), "%ld device pages did not come back", lost);
	}
	/* A device that has grown keeps 4 MiB of struct pages for it. */
	kb = dm_lost_kb(before);
	if (right && kb > DM_NOISE_KB) {
		right = false;
		snprintf(s.why, sizeof(s.why), "%ld kB did not come back", kb);
	}
	ksft_print_msg("failnth: call=%s points=%d tried=%d errors=%d pages=%ld kb=%ld\n",
		       call->name, t.points, t.tried, t.errors, lost, kb);
	if (!right)
		ksft_print_msg("%s: %s; -s %llu\n", call->name, s.why,
			       (unsigned long long)seed);
	ksft_test_result(right, "%s\n", call->name);
	fflush(stdout);
}

static int list(void)
{
	int i;

	for (i = 0; i < NR_CALLS; i++)
		puts(calls[i].name);
	return 0;
}

int main(int argc, char **argv)
{
	double seconds = 10;
	char params[256];
	int i, c, n = 0;

	while ((c = getopt(argc, argv, "s:t:l")) != -1)
		switch (c) {
		case 's':
			seed = strtoull(optarg, NULL, 0);
			break;
		case 't':
			seconds = strtod(optarg, NULL);
			break;
		case 'l':
			return list();
		default:
			return KSFT_FAIL;
		}
	argv += optind;
	argc -= optind;

	ksft_print_header();
	fail_nth = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	if (fail_nth < 0 || !all_may_fail())
		ksft_exit_skip("no CONFIG_FAULT_INJECTION_DEBUG_FS\n");
	for (i = 0; i < NR_CALLS; i++)
		n += is_wanted(calls[i].name, argv, argc);
	if (!n)
		ksft_exit_fail_msg("no such call\n");
	dm_module_params(params, sizeof(params));
	ksft_set_plan(n);
	for (i = 0; i < NR_CALLS; i++)
		if (is_wanted(calls[i].name, argv, argc))
			run_call(&calls[i], params, seconds);
	ksft_finished();
}
