// SPDX-License-Identifier: GPL-2.0
/*
 * Calls that make no sense, and calls that make sense but for one mistake.
 *
 * Each step makes up an ioctl: a good one, as often as not changed in some place.
 * What it has to answer follows from its arguments: where FAULTS are defined, one
 * errno; otherwise one of a few. What it may write follows too: a model of the
 * memory has every byte of it, and bytes of a call that failed are what they were
 * before or what the call would have written, never anything else.
 *
 *	the zone	an address range that nothing else is near to; all good
 *			addresses and buffers are in it, and no bad address hits
 *			memory outside of it
 *	the canary	memory outside, half of it on another device: no call is
 *			about it
 *
 * The order is that of a seed, which a failure names:
 *
 *	HMM_SEED=42 HMM_STEPS=100000 hmm_dmirror_fuzz
 *
 * The program runs itself, with --gone, to be a process that has called exec().
 */
#include "../kselftest_harness.h"

#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>

#include "hmm_dmirror.h"

/*
 * No other single bit away from 0, from the zone, or from the ends of either half
 * of the address space is where the kernel puts programs, heaps or stacks.
 */
#define ZONE		0x123400000000UL
#define ZONE_PAGES	1536L
#define ZONE_SIZE	(ZONE_PAGES * DM_PAGE)
#define USER_END	0x00007ffffffff000UL
#define LOW_END		0x10000UL
#define KERNEL_ADDR	0xffff888000000000UL

#define CANARY_PAGES	32L
#define STEPS		120UL
#define SEEDS		1UL
#define MAX_PAGES	(1UL << 20)	/* of one call */
#define NR_THREADS	4

/* Seconds. RELEASE tries for ten, and there is the debug kernel. */
#define CALL_LIMIT	60.0

/* What is mapped in the zone, page by page. */
enum kind {
	PLAIN,
	READ_ONLY,
	NO_ACCESS,
	HOLE,
	SHARED_FILE,
};

#define SLICE		128L
#define FIRST_SLICE	1024L

/*
 * A huge page of plain memory, one of everything, and slices with a hole at the
 * end of each. No range of more than a huge page is all good, so the driver has
 * each good one in a single step.
 */
static enum kind kind_of(long page)
{
	switch (page) {
	case 512:
	case 700:
		return HOLE;
	case 600:
		return READ_ONLY;
	case 650:
		return NO_ACCESS;
	case 750:
		return SHARED_FILE;
	}
	return page > 512 && page % SLICE == SLICE - 1 ? HOLE : PLAIN;
}

/* ---- what the ioctls are ---- */

enum access {
	NOTHING,
	GETS,		/* a page per page into the buffer */
	GETS_BYTES,	/* a byte per page */
	PUTS,		/* a page per page from the buffer */
};

/*
 * @weight: how often; RELEASE takes its time
 * @early: the buffer is tried before anything else happens
 * @gone: the answer when the mirrored process is gone
 * @may: what can come of good arguments besides 0
 * @bad: what can come of a bad address or buffer
 */
static const struct op {
	const char *name;
	unsigned long code;
	int weight;
	enum access access;
	bool early;
	int gone;
	int may[3];
	int bad[5];
} ops[] = {
	{ "READ", HMM_DMIRROR_READ, 48, GETS, false, -EFAULT,
	  { }, { -EFAULT } },
	{ "WRITE", HMM_DMIRROR_WRITE, 48, PUTS, false, -EFAULT,
	  { }, { -EFAULT, -EPERM, -ENOMEM } },
	{ "MIGRATE_TO_DEV", HMM_DMIRROR_MIGRATE_TO_DEV, 48, GETS, true, -EINVAL,
	  { -ENOENT }, { -EFAULT, -EINVAL, -ENOENT } },
	{ "MIGRATE_TO_SYS", HMM_DMIRROR_MIGRATE_TO_SYS, 24, NOTHING, false, -EINVAL,
	  { }, { -EINVAL } },
	{ "SNAPSHOT", HMM_DMIRROR_SNAPSHOT, 24, GETS_BYTES, false, -EINVAL,
	  { }, { -EFAULT } },
	{ "EXCLUSIVE", HMM_DMIRROR_EXCLUSIVE, 16, GETS, true, -EINVAL,
	  { -EOPNOTSUPP, -EBUSY, -ENOENT }, { -EFAULT, -EPERM, -EOPNOTSUPP, -EBUSY, -ENOENT } },
	{ "CHECK_EXCLUSIVE", HMM_DMIRROR_CHECK_EXCLUSIVE, 16, NOTHING, false, -EINVAL,
	  { -EPERM }, { -EPERM } },
	{ "READ_UNLOCKED", HMM_DMIRROR_READ_UNLOCKED, 24, GETS, false, -EFAULT,
	  { }, { -EFAULT } },
	{ "WRITE_UNLOCKED", HMM_DMIRROR_WRITE_UNLOCKED, 24, PUTS, false, -EFAULT,
	  { }, { -EFAULT, -EPERM, -ENOMEM } },
	{ "FAULT_TO_DEV", HMM_DMIRROR_FAULT_TO_DEV, 40, GETS, true, -EINVAL,
	  { -ENOENT }, { -EFAULT, -EINVAL, -ENOENT } },
	{ "DMA_READ", HMM_DMIRROR_DMA_READ, 16, GETS, false, -EFAULT,
	  { }, { -EFAULT } },
	{ "FLAGS", HMM_DMIRROR_FLAGS, 8 },
	{ "RELEASE", HMM_DMIRROR_RELEASE, 1, NOTHING, false, 0, { -EBUSY } },
};

static bool is_about_device(const struct op *op)
{
	return op->code == HMM_DMIRROR_FLAGS || op->code == HMM_DMIRROR_RELEASE;
}

static const struct op *op_of(unsigned long command)
{
	const struct op *op;

	for (op = ops; op < ops + ARRAY_SIZE(ops); op++)
		if (op->code == command)
			return op;
	return NULL;
}

/* ---- a world: a caller, a mirrored process, a model of each ---- */

/*
 * @own: model of the zone of the caller, where buffers are
 * @theirs: model of the mirrored zone; the same in the process that opened
 * @before: room for what a call finds
 * @first, @n: pages of the zone that calls begin in
 * @gone: nobody is mirrored any more
 * @shared: others use the same file, but no pages of these
 * @loose: others work on the same pages, or close the file: no exact answers
 */
struct world {
	int fd;
	unsigned char *own;
	unsigned char *theirs;
	unsigned char *before[2];
	long first, n;
	bool gone;
	bool shared;
	bool loose;
	uint64_t random;
	char why[240];
};

struct call {
	unsigned long command;
	const struct op *op;
	struct hmm_dmirror_cmd cmd;
	struct hmm_dmirror_cmd *arg;	/* what the driver is given */
	bool bad_arg;
};

static unsigned char *zone(void)
{
	return (unsigned char *)ZONE;
}

static uint64_t rnd(struct world *w, uint64_t below)
{
	w->random ^= w->random << 13;
	w->random ^= w->random >> 7;
	w->random ^= w->random << 17;
	return w->random % below;
}

static bool in_zone(uint64_t addr, uint64_t len)
{
	return addr >= ZONE && addr - ZONE <= ZONE_SIZE &&
	       len <= ZONE_SIZE - (addr - ZONE);
}

/* Are all bytes there, for reading or for writing? */
static bool is_good(uint64_t addr, uint64_t len, bool write)
{
	long page;

	if (!in_zone(addr, len))
		return false;
	for (page = (addr - ZONE) / DM_PAGE;
	     page * DM_PAGE < (long)(addr - ZONE + len); page++)
		switch (kind_of(page)) {
		case PLAIN:
		case SHARED_FILE:
			break;
		case READ_ONLY:
			if (!write)
				break;
			return false;
		default:
			return false;
		}
	return true;
}

/* Can all of it be anonymous memory of a device? */
static bool is_plain(uint64_t addr, uint64_t npages)
{
	long page;

	if (!is_good(addr, npages * DM_PAGE, false))
		return false;
	for (page = (addr - ZONE) / DM_PAGE; npages--; page++)
		if (kind_of(page) == SHARED_FILE)
			return false;
	return true;
}

static int map_page(long page, int prot, int flags, int fd)
{
	void *at = zone() + page * DM_PAGE;

	return mmap(at, DM_PAGE, prot, MAP_FIXED | flags, fd, 0) == at ?
		0 : -errno;
}

static int map_shared_file(long page)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);
	int err;

	if (fd < 0 || ftruncate(fd, DM_PAGE))
		return -errno;
	err = map_page(page, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	close(fd);
	return err;
}

static int map_kind(long page)
{
	void *at = zone() + page * DM_PAGE;

	switch (kind_of(page)) {
	case READ_ONLY:
		return mprotect(at, DM_PAGE, PROT_READ) ? -errno : 0;
	case NO_ACCESS:
		return mprotect(at, DM_PAGE, PROT_NONE) ? -errno : 0;
	case HOLE:
		return munmap(at, DM_PAGE) ? -errno : 0;
	case SHARED_FILE:
		return map_shared_file(page);
	default:
		return 0;
	}
}

/* Half of the plain memory has content, the rest is nothing yet. */
static int make_zone(unsigned char *model)
{
	long page;
	int err;

	if (mmap(zone(), ZONE_SIZE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != zone())
		return -errno;
	madvise(zone(), DM_HUGE, MADV_HUGEPAGE);
	for (page = 0; page < ZONE_PAGES; page++) {
		if (page / 64 % 2 == 0)
			dm_paint(zone() + page * DM_PAGE, dm_new_tag());
		memcpy(model + page * DM_PAGE, zone() + page * DM_PAGE, DM_PAGE);
	}
	for (page = 0; page < ZONE_PAGES; page++) {
		err = map_kind(page);
		if (err)
			return err;
		if (kind_of(page) == SHARED_FILE)
			memset(model + page * DM_PAGE, 0, DM_PAGE);
	}
	return 0;
}

static void *model_alloc(void)
{
	void *p = mmap(NULL, ZONE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* First page of the zone that is not what the model says, or DM_ALL_RIGHT. */
static long zone_wrong(const unsigned char *model, long first, long n)
{
	long page;

	for (page = first; page < first + n; page++)
		if (is_good(ZONE + page * DM_PAGE, DM_PAGE, false) &&
		    memcmp(zone() + page * DM_PAGE, model + page * DM_PAGE,
			   DM_PAGE))
			return page;
	return DM_ALL_RIGHT;
}

/* ---- making up calls ---- */

/* Not where memory may be that is no part of the world. */
static bool is_harmless(const struct world *w, uint64_t addr)
{
	uint64_t first = ZONE + w->first * DM_PAGE;

	if (in_zone(addr, 0))
		return addr >= first && addr < first + w->n * DM_PAGE;
	return addr < LOW_END || addr >= USER_END ||
	       (addr > ZONE - (1UL << 32) && addr < ZONE + (1UL << 34));
}

static uint64_t flip(struct world *w, uint64_t x)
{
	return x ^ 1UL << rnd(w, 64);
}

static uint64_t some_page(struct world *w)
{
	return ZONE + (w->first + rnd(w, w->n)) * DM_PAGE;
}

static uint64_t odd_value(struct world *w)
{
	static const uint64_t odd[] = {
		0, 1, 8, DM_PAGE, DM_PAGE - 1, ZONE - DM_PAGE, ZONE + ZONE_SIZE,
		ZONE + ZONE_SIZE - DM_PAGE, USER_END, USER_END - DM_PAGE,
		USER_END + DM_PAGE, 1UL << 63, KERNEL_ADDR, 0xffffffff81000000UL,
		0xffffffffff600000UL, -DM_PAGE, -2 * DM_PAGE, ~0UL, ~0UL >> 1,
	};

	return odd[rnd(w, ARRAY_SIZE(odd))];
}

static uint64_t bad_address(struct world *w)
{
	uint64_t addr;

	do {
		switch (rnd(w, 4)) {
		case 0:
			addr = odd_value(w);
			break;
		case 1:
			addr = flip(w, some_page(w));
			break;
		case 2:
			addr = some_page(w) + rnd(w, DM_PAGE);
			break;
		default:
			addr = flip(w, flip(w, odd_value(w)));
		}
	} while (!is_harmless(w, addr));
	return addr;
}

static uint64_t bad_count(struct world *w)
{
	static const uint64_t odd[] = {
		0, 513, 1024, 4096, MAX_PAGES, MAX_PAGES + 1, 1UL << 34,
		1UL << 51, (1UL << 52) - 1, 1UL << 52, (1UL << 52) + 1,
		1UL << 63, ~0UL, ~0UL - 1,
	};

	return rnd(w, 2) ? odd[rnd(w, ARRAY_SIZE(odd))] :
			   flip(w, 1 + rnd(w, 16));
}

static uint64_t good_count(struct world *w)
{
	return rnd(w, 8) ? 1 + rnd(w, 8) : 1 + rnd(w, 512);
}

static const struct op *choose_op(struct world *w)
{
	int sum = 0, at;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(ops); i++)
		sum += ops[i].weight;
	at = rnd(w, sum);
	for (i = 0; at >= ops[i].weight; i++)
		at -= ops[i].weight;
	return &ops[i];
}

/*
 * Numbers that are none of the driver's. Types and numbers that mean something to
 * each file are left out: those of 'T', 'X', 'f', 0x94, and without a type.
 */
static unsigned long bad_command(struct world *w)
{
	static const char type[] = { 'H', 'H', 'H', 'h', 'I', '\x7f' };
	unsigned long command;

	do {
		command = _IOC(rnd(w, 4), type[rnd(w, sizeof(type))], rnd(w, 256),
			       rnd(w, 2) ? sizeof(struct hmm_dmirror_cmd) :
					   rnd(w, 1 << _IOC_SIZEBITS));
	} while (op_of(command));
	return command;
}

/* All of a struct that is not there, or not quite. */
static void *bad_pointer(struct world *w)
{
	static const uint64_t bad[] = {
		0, 8, LOW_END - 8, USER_END - 8, KERNEL_ADDR, ~0UL,
		ZONE + 512 * DM_PAGE - 8, ZONE + 650 * DM_PAGE,
		ZONE + 650 * DM_PAGE - 16, ZONE - 8,
	};

	return (void *)bad[rnd(w, ARRAY_SIZE(bad))];
}

static void spoil(struct world *w, struct call *c)
{
	switch (rnd(w, 6)) {
	case 0:
		c->command = bad_command(w);
		c->op = NULL;
		break;
	case 1:
		c->arg = bad_pointer(w);
		c->bad_arg = true;
		break;
	case 2:
		c->cmd.addr = bad_address(w);
		break;
	case 3:
		c->cmd.npages = bad_count(w);
		break;
	case 4:
		c->cmd.ptr = bad_address(w);
		break;
	default:
		c->cmd.addr = bad_address(w);
		c->cmd.npages = bad_count(w);
		c->cmd.ptr = bad_address(w);
	}
}

/*
 * READ and WRITE may take as much memory of the kernel as they copy. No copy is to
 * fail.
 */
static void spare_kernel(struct call *c)
{
	if (c->command == HMM_DMIRROR_FLAGS)
		c->cmd.npages &= ~HMM_DMIRROR_FLAG_FAIL_COPY;
	if (c->op && c->op->access != GETS_BYTES && c->cmd.npages <= MAX_PAGES &&
	    c->cmd.npages > 4096)
		c->cmd.npages = 4096;
}

static struct call make_call(struct world *w)
{
	struct call c = { .op = choose_op(w) };

	c.command = c.op->code;
	c.cmd.addr = some_page(w);
	c.cmd.npages = good_count(w);
	c.cmd.ptr = some_page(w) + (rnd(w, 2) ? rnd(w, DM_PAGE) : 0);
	c.cmd.cpages = rnd(w, ~0UL);
	c.cmd.faults = rnd(w, ~0UL);
	if (c.command == HMM_DMIRROR_FLAGS)
		c.cmd.npages = rnd(w, 2);
	if (rnd(w, 2))
		spoil(w, &c);
	spare_kernel(&c);
	return c;
}

/* ---- what has to come of a call ---- */

/* Bytes at ptr that a call reads or writes. */
static uint64_t buffer_len(const struct call *c)
{
	switch (c->op->access) {
	case GETS:
	case PUTS:
		return c->cmd.npages * DM_PAGE;
	case GETS_BYTES:
		return c->cmd.npages;
	default:
		return 0;
	}
}

/* Of a range that is none whatever is mapped; 0 if it may be one. */
static int range_errno(const struct hmm_dmirror_cmd *cmd)
{
	uint64_t size, end;

	if (cmd->addr % DM_PAGE || !cmd->npages)
		return -EINVAL;
	if (__builtin_mul_overflow(cmd->npages, DM_PAGE, &size) ||
	    __builtin_add_overflow(cmd->addr, size, &end))
		return -EINVAL;
	return cmd->npages > MAX_PAGES ? -E2BIG : 0;
}

static bool is_good_buffer(const struct call *c)
{
	return c->op->access == NOTHING ||
	       is_good(c->cmd.ptr, buffer_len(c), c->op->access != PUTS);
}

static bool is_good_range(const struct call *c)
{
	uint64_t len = c->cmd.npages * DM_PAGE;

	switch (c->command) {
	case HMM_DMIRROR_SNAPSHOT:
	case HMM_DMIRROR_CHECK_EXCLUSIVE:
		return true;
	case HMM_DMIRROR_WRITE:
	case HMM_DMIRROR_WRITE_UNLOCKED:
	case HMM_DMIRROR_EXCLUSIVE:
		return is_good(c->cmd.addr, len, true);
	case HMM_DMIRROR_MIGRATE_TO_DEV:
	case HMM_DMIRROR_FAULT_TO_DEV:
		return is_plain(c->cmd.addr, c->cmd.npages);
	default:
		return is_good(c->cmd.addr, len, false);
	}
}

/* One errno, or 0; or one of these, where there is a choice. */
#define ONE_OF_MAY	1
#define ONE_OF_BAD	2

static int device_verdict(const struct call *c)
{
	if (c->command == HMM_DMIRROR_FLAGS)
		return c->cmd.npages & ~(HMM_DMIRROR_FLAG_FAIL_ALLOC |
					 HMM_DMIRROR_FLAG_FAULT_AROUND) ?
		       -EINVAL : 0;
	return ONE_OF_MAY;
}

static int verdict(const struct world *w, const struct call *c)
{
	int err;

	if (!c->op)
		return -EINVAL;
	if (c->bad_arg)
		return -EFAULT;
	if (is_about_device(c->op))
		return device_verdict(c);
	err = range_errno(&c->cmd);
	if (err)
		return err;
	if (c->op->early && !is_good_buffer(c))
		return -EFAULT;
	if (w->gone)
		return c->op->gone;
	return is_good_buffer(c) && is_good_range(c) ? ONE_OF_MAY : ONE_OF_BAD;
}

static bool is_one_of(int err, const int *list, size_t n)
{
	while (n-- && *list)
		if (err == *list++)
			return true;
	return false;
}

/* A bad address or buffer never works. */
static bool is_right(const struct world *w, const struct call *c, int want,
		     int err)
{
	/* What another thread empties may be gone each time. */
	if (want > 0 && w->shared && err == -EBUSY)
		return true;
	switch (want) {
	case ONE_OF_MAY:
		return !err || is_one_of(err, c->op->may, ARRAY_SIZE(c->op->may));
	case ONE_OF_BAD:
		return is_one_of(err, c->op->bad, ARRAY_SIZE(c->op->bad));
	default:
		return err == want;
	}
}

/* Others undo what a call does: it may give up, or find the file closed. */
static bool is_right_among_others(int err)
{
	static const int any[] = {
		-EINVAL, -EFAULT, -EPERM, -ENOENT, -ENOMEM, -EBUSY, -E2BIG, -EOPNOTSUPP,
		-EBADF, -EINTR,
	};

	return !err || is_one_of(err, any, ARRAY_SIZE(any));
}

/* ---- doing it, and looking at what it did ---- */

static int complain(struct world *w, const struct call *c, int err,
		    const char *what)
{
	snprintf(w->why, sizeof(w->why),
		 "%s (%#lx): addr %#llx npages %#llx ptr %#llx%s: errno %d: %s",
		 c->op ? c->op->name : "no command", c->command,
		 (unsigned long long)c->cmd.addr,
		 (unsigned long long)c->cmd.npages,
		 (unsigned long long)c->cmd.ptr, c->bad_arg ? ", bad struct" : "",
		 err, what);
	return -EBADMSG;
}

/* The struct comes back as it went in, but for the results of a success. */
static const char *struct_wrong(const struct call *c,
				const struct hmm_dmirror_cmd *out, int err)
{
	if (err || !c->op || is_about_device(c->op))
		return memcmp(out, &c->cmd, sizeof(*out)) ? "struct changed" : NULL;
	if (out->addr != c->cmd.addr || out->ptr != c->cmd.ptr ||
	    out->npages != c->cmd.npages)
		return "arguments changed";
	if (out->cpages > out->npages)
		return "cpages is too large";
	if (out->faults > out->npages)
		return "faults is too large";
	if (c->op->access != NOTHING && out->cpages != out->npages)
		return "success, but not of all pages";
	return NULL;
}

/* The part of [addr, addr + len) that is in the pages of @w, as offset and length. */
static uint64_t clip(const struct world *w, uint64_t addr, uint64_t len,
		     uint64_t *off)
{
	uint64_t end = ZONE + (w->first + w->n) * DM_PAGE;

	*off = 0;
	if (addr < ZONE + w->first * DM_PAGE || addr >= end)
		return 0;
	*off = addr - ZONE;
	return len < end - addr ? len : end - addr;
}

static bool page_is_good(uint64_t off, bool write)
{
	return is_good(ZONE + off, 1, write);
}

/*
 * The bytes that a call may have written, at @off: each is as before, or as in
 * @new, of which @known bytes are known. The model takes over what is there.
 */
static const char *compare(unsigned char *model, uint64_t off, uint64_t len,
			   const unsigned char *new, uint64_t known, bool all,
			   const unsigned char *seen)
{
	uint64_t i, n;

	for (i = 0; i < len; i += n) {
		n = DM_PAGE - (off + i) % DM_PAGE;
		n = n < len - i ? n : len - i;
		if (!page_is_good(off + i, true))
			continue;
		if (i + n <= known && !memcmp(seen + i, new + i, n)) {
			memcpy(model + off + i, seen + i, n);
			continue;
		}
		if (all)
			return "wrong bytes";
		if (memcmp(seen + i, model + off + i, n)) {
			uint64_t k;

			for (k = i; k < i + n; k++)
				if (seen[k] != model[off + k] &&
				    (k >= known || seen[k] != new[k]))
					return "bytes of somebody else";
			memcpy(model + off + i, seen + i, n);
		}
	}
	return NULL;
}

static bool is_prot_byte(unsigned char b)
{
	return b == HMM_DMIRROR_PROT_ERROR ||
	       (!(b & 0x80) && b >> 4 <= HMM_DMIRROR_PROT_DEV_COHERENT_REMOTE >> 4);
}

static const char *snapshot_wrong(struct world *w, uint64_t off, uint64_t len,
				  bool all)
{
	uint64_t i;

	for (i = 0; i < len; i++) {
		unsigned char b;

		if (!page_is_good(off + i, true))
			continue;
		b = zone()[off + i];
		if (!is_prot_byte(b) && (all || b != w->own[off + i]))
			return "no byte of a snapshot";
		w->own[off + i] = b;
	}
	return NULL;
}

static const char *got_wrong(struct world *w, const struct call *c, bool all)
{
	uint64_t src, known, off, len;

	len = clip(w, c->cmd.ptr, buffer_len(c), &off);
	if (c->op->access == GETS_BYTES)
		return snapshot_wrong(w, off, len, all);
	known = clip(w, c->cmd.addr, len, &src);
	return compare(w->own, off, len, w->before[0], known, all, zone() + off);
}

/* What the mirrored process has now, in w->before[1]; it may be another one. */
static bool fetch_theirs(struct world *w, uint64_t off, uint64_t len)
{
	struct hmm_dmirror_cmd cmd;
	uint64_t i;

	if (w->own == w->theirs) {
		for (i = 0; i < len; i += DM_PAGE)
			if (page_is_good(off + i, false))
				memcpy(w->before[1] + i, zone() + off + i, DM_PAGE);
		return true;
	}
	for (i = 0; i < len; i += DM_PAGE) {
		if (!page_is_good(off + i, false))
			continue;
		cmd = (struct hmm_dmirror_cmd) {
			.addr = ZONE + off + i,
			.npages = 1,
			.ptr = (uintptr_t)w->before[1] + i,
		};
		if (ioctl(w->fd, HMM_DMIRROR_READ, &cmd))
			return false;
	}
	return true;
}

static const char *put_wrong(struct world *w, const struct call *c, bool all)
{
	uint64_t src, known, off, len;

	len = clip(w, c->cmd.addr, buffer_len(c), &off);
	known = clip(w, c->cmd.ptr, len, &src);
	if (!fetch_theirs(w, off, len))
		return "cannot be read";
	return compare(w->theirs, off, len, w->before[0], known, all, w->before[1]);
}

/* What the call will copy, before it may change. */
static void keep_source(struct world *w, const struct call *c)
{
	const unsigned char *model;
	uint64_t off, len;

	if (!c->op || range_errno(&c->cmd))
		return;
	if (c->op->access == GETS) {
		len = clip(w, c->cmd.addr, buffer_len(c), &off);
		model = w->theirs;
	} else if (c->op->access == PUTS) {
		len = clip(w, c->cmd.ptr, buffer_len(c), &off);
		model = w->own;
	} else {
		return;
	}
	memcpy(w->before[0], model + off, len);
}

static const char *memory_wrong(struct world *w, const struct call *c, int err)
{
	if (!c->op || c->bad_arg || is_about_device(c->op) || range_errno(&c->cmd))
		return NULL;
	switch (c->op->access) {
	case GETS:
	case GETS_BYTES:
		return got_wrong(w, c, !err);
	case PUTS:
		return w->gone ? NULL : put_wrong(w, c, !err);
	default:
		return NULL;
	}
}

static int do_step(struct world *w)
{
	struct call c = make_call(w);
	struct hmm_dmirror_cmd out = c.cmd;
	const char *what;
	double began;
	int err;

	keep_source(w, &c);
	began = dm_now();
	err = ioctl(w->fd, c.command, c.bad_arg ? c.arg : &out) ? -errno : 0;
	if (dm_now() - began > CALL_LIMIT)
		return complain(w, &c, err, "it took too long");
	if (w->loose)
		return is_right_among_others(err) ? 0 :
			complain(w, &c, err, "not one of them");
	if (!is_right(w, &c, verdict(w, &c), err))
		return complain(w, &c, err, "not that");
	what = !c.bad_arg ? struct_wrong(&c, &out, err) : NULL;
	if (!what)
		what = memory_wrong(w, &c, err);
	return what ? complain(w, &c, err, what) : 0;
}

static int world_init(struct world *w, int fd, unsigned char *own,
		      unsigned char *theirs)
{
	memset(w, 0, sizeof(*w));
	w->fd = fd;
	w->own = own;
	w->theirs = theirs;
	w->n = ZONE_PAGES;
	w->before[0] = calloc(ZONE_PAGES, DM_PAGE);
	w->before[1] = calloc(ZONE_PAGES, DM_PAGE);
	return w->before[0] && w->before[1] ? 0 : -ENOMEM;
}

static void world_exit(struct world *w)
{
	free(w->before[0]);
	free(w->before[1]);
}

static unsigned long number_of(const char *name, unsigned long otherwise)
{
	const char *text = getenv(name);

	return text ? strtoul(text, NULL, 0) : otherwise;
}

/* Steps of one seed; on stderr what went wrong, for whoever runs them. */
static int run(struct world *w, unsigned long seed, unsigned long steps)
{
	unsigned long step;
	int err = 0;

	w->random = (seed + 1) * 0x9e3779b97f4a7c15UL;
	for (step = 0; step < steps && !err; step++) {
		err = do_step(w);
		if (!err && !w->loose && step % 64 == 63 &&
		    zone_wrong(w->own, w->first, w->n) != DM_ALL_RIGHT) {
			snprintf(w->why, sizeof(w->why), "page %ld is wrong",
				 zone_wrong(w->own, w->first, w->n));
			err = -EBADMSG;
		}
	}
	if (err)
		printf("# HMM_SEED=%lu, step %lu of %lu: %s\n", seed, step, steps,
		       w->why);
	return err;
}

static int run_all(struct world *w)
{
	unsigned long seed = number_of("HMM_SEED", 0);
	unsigned long steps = number_of("HMM_STEPS", STEPS) /
			      (w->shared ? NR_THREADS : 1);
	unsigned long from = seed ?: 1, to = seed ?: SEEDS;
	int err = 0;

	for (seed = from; seed <= to && !err; seed++)
		err = run(w, seed, steps);
	return err;
}

/* ---- the kernel's log ---- */

/* Whatever comes from now on. */
static int log_open(void)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	if (fd >= 0)
		lseek(fd, 0, SEEK_END);
	return fd;
}

/* A slow machine has its own to say, of timers and the like. */
static bool is_about_memory(const char *line)
{
	return strstr(line, "hmm") || strstr(line, "mm/") ||
	       strstr(line, "page") || strstr(line, "BUG") ||
	       strstr(line, "WARN");
}

/* Lines that the kernel itself thinks worth a warning, or more. */
static long log_warnings(int fd)
{
	char line[1024];
	long sum = 0;
	ssize_t len;

	for (;;) {
		len = read(fd, line, sizeof(line) - 1);
		if (len < 0 && errno == EPIPE)
			continue;
		if (len <= 0)
			return sum;
		line[len] = 0;
		if (atoi(line) < 5 && is_about_memory(line)) {
			printf("# %s", line);
			sum++;
		}
	}
}

/* ---- tests ---- */

FIXTURE(fuzz)
{
	struct dm_dev dev;
	struct dm_dev other;
	struct dm_counts start[2];
	struct dm_mem canary;
	unsigned char *model;
	int log;
};

FIXTURE_VARIANT(fuzz)
{
	int unit;
	int other;
};

FIXTURE_VARIANT_ADD(fuzz, private)
{
	.unit = DM_PRIVATE0,
	.other = DM_PRIVATE1,
};

FIXTURE_VARIANT_ADD(fuzz, coherent)
{
	.unit = DM_COHERENT0,
	.other = DM_PRIVATE0,
};

FIXTURE_SETUP(fuzz)
{
	dm_counts(variant->unit, &self->start[0]);
	dm_counts(variant->other, &self->start[1]);
	self->log = log_open();
	ASSERT_GE(self->log, 0);
	ASSERT_EQ(0, dm_open(&self->dev, variant->unit));
	ASSERT_EQ(0, dm_open(&self->other, variant->other));
	self->model = model_alloc();
	ASSERT_NE(NULL, self->model);
	ASSERT_EQ(0, make_zone(self->model));
	ASSERT_EQ(0, dm_small(&self->canary, CANARY_PAGES));
	ASSERT_EQ(0, dm_to_dev(&self->other, &self->canary, 0, CANARY_PAGES / 2));
}

FIXTURE_TEARDOWN(fuzz)
{
	EXPECT_ON_DEVICE(&self->other, &self->canary, 0, CANARY_PAGES / 2);
	EXPECT_IN_RAM(&self->other, &self->canary, CANARY_PAGES / 2,
		      CANARY_PAGES / 2);
	EXPECT_BOTH_SEE(&self->other, &self->canary, 0, CANARY_PAGES);
	EXPECT_EQ(DM_ALL_RIGHT, zone_wrong(self->model, 0, ZONE_PAGES));

	dm_set_flags(&self->dev, 0);
	munmap(zone(), ZONE_SIZE);
	munmap(self->model, ZONE_SIZE);
	dm_free(&self->canary);
	dm_close(&self->other);
	dm_close(&self->dev);
	EXPECT_BALANCED(variant->unit, &self->start[0]);
	EXPECT_BALANCED(variant->other, &self->start[1]);
	EXPECT_EQ(0, log_warnings(self->log));
	close(self->log);
}

TEST_F(fuzz, from_the_process_itself)
{
	struct world w;

	ASSERT_EQ(0, world_init(&w, self->dev.fd, self->model, self->model));
	EXPECT_EQ(0, run_all(&w));
	world_exit(&w);
}

/* After fork(): a file of its own, as all else is its own. */
static int unshare_zone(const unsigned char *model)
{
	long page;
	int err = 0;

	for (page = 0; page < ZONE_PAGES && !err; page++) {
		if (kind_of(page) != SHARED_FILE)
			continue;
		err = map_shared_file(page);
		if (!err)
			memcpy(zone() + page * DM_PAGE, model + page * DM_PAGE,
			       DM_PAGE);
	}
	return err;
}

/* The buffers of a child are its own, the mirrored memory is not. */
static int run_in_child(int fd, const unsigned char *own, unsigned char *theirs)
{
	unsigned char *copy = malloc(ZONE_SIZE);
	struct world w;
	int err;

	if (!copy || unshare_zone(own))
		return -ENOMEM;
	memcpy(copy, own, ZONE_SIZE);
	err = world_init(&w, fd, copy, theirs);
	return err ?: run_all(&w);
}

TEST_F(fuzz, from_a_child)
{
	pid_t pid = fork();

	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(!!run_in_child(self->dev.fd, self->model, self->model));
	EXPECT_EQ(0, dm_wait(pid));
}

static int send_fd(int socket, int fd)
{
	char room[CMSG_SPACE(sizeof(fd))] = "", byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = room,
		.msg_controllen = sizeof(room),
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&msg);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	return sendmsg(socket, &msg, 0) == 1 ? 0 : -errno;
}

static int receive_fd(int socket)
{
	char room[CMSG_SPACE(sizeof(int))], byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = room,
		.msg_controllen = sizeof(room),
	};
	int fd;

	if (recvmsg(socket, &msg, 0) != 1 || !CMSG_FIRSTHDR(&msg))
		return -EIO;
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
	return fd;
}

/* The other process never had the file, nor the memory that it mirrors. */
TEST_F(fuzz, from_a_process_that_got_the_file)
{
	struct dm_dev late;
	int pair[2], fd;
	pid_t pid;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		dm_close(&self->dev);
		fd = receive_fd(pair[1]);
		if (fd < 0)
			_exit(2);
		_exit(!!run_in_child(fd, self->model, self->model));
	}
	ASSERT_EQ(0, dm_open(&late, variant->unit));
	EXPECT_EQ(0, send_fd(pair[0], late.fd));
	/* Theirs is the only one. */
	dm_close(&late);
	EXPECT_EQ(0, dm_wait(pid));
	close(pair[0]);
	close(pair[1]);
}

/*
 * In a process whose file mirrors nobody: well-formed calls have one answer, and
 * the others are as bad as ever.
 */
static int run_gone(int fd)
{
	unsigned char *model = model_alloc();
	struct world w;

	if (!model || make_zone(model) || world_init(&w, fd, model, model))
		return -ENOMEM;
	w.gone = true;
	return run_all(&w);
}

TEST_F(fuzz, after_the_owner_called_exec)
{
	char fd[16];
	pid_t pid = fork();

	ASSERT_GE(pid, 0);
	if (!pid) {
		struct dm_dev mine;

		if (dm_open(&mine, variant->unit) || fcntl(mine.fd, F_SETFD, 0))
			_exit(3);
		snprintf(fd, sizeof(fd), "%d", mine.fd);
		execl("/proc/self/exe", "hmm_dmirror_fuzz", "--gone", fd, NULL);
		_exit(4);
	}
	EXPECT_EQ(0, dm_wait(pid));
}

TEST_F(fuzz, after_the_owner_died)
{
	int pair[2], fd;
	pid_t pid;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		struct dm_dev mine;

		_exit(dm_open(&mine, variant->unit) || send_fd(pair[1], mine.fd));
	}
	EXPECT_EQ(0, dm_wait(pid));
	fd = receive_fd(pair[0]);
	ASSERT_GE(fd, 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		munmap(zone(), ZONE_SIZE);
		_exit(!!run_gone(fd));
	}
	EXPECT_EQ(0, dm_wait(pid));
	close(fd);
	close(pair[0]);
	close(pair[1]);
}

/* ---- many at once ---- */

struct thread {
	pthread_t id;
	struct world w;
	int err;
	volatile bool *stop;
};

/* Its pages are its own, up to the next hole; the file and device are not. */
static void *run_thread(void *arg)
{
	struct thread *t = arg;

	t->err = run_all(&t->w);
	return NULL;
}

TEST_F(fuzz, threads_on_one_file)
{
	struct thread threads[NR_THREADS] = { };
	int i;

	for (i = 0; i < NR_THREADS; i++) {
		struct thread *t = &threads[i];

		ASSERT_EQ(0, world_init(&t->w, self->dev.fd, self->model,
					self->model));
		t->w.shared = true;
		t->w.first = FIRST_SLICE + i * SLICE;
		t->w.n = SLICE - 1;
		ASSERT_EQ(0, pthread_create(&t->id, NULL, run_thread, t));
	}
	for (i = 0; i < NR_THREADS; i++) {
		pthread_join(threads[i].id, NULL);
		EXPECT_EQ(0, threads[i].err);
		world_exit(&threads[i].w);
	}
}

/* Steps without a model, until somebody says stop. */
static void *run_loose(void *arg)
{
	struct thread *t = arg;

	t->w.loose = true;
	t->w.random = (uintptr_t)t | 1;
	while (!*t->stop && !t->err)
		t->err = do_step(&t->w);
	return NULL;
}

/* The zone is anybody's now: take the model from it. */
static void adopt_zone(unsigned char *model)
{
	long page;

	for (page = 0; page < ZONE_PAGES; page++)
		if (is_good(ZONE + page * DM_PAGE, DM_PAGE, false))
			memcpy(model + page * DM_PAGE, zone() + page * DM_PAGE,
			       DM_PAGE);
}

static int start_loose(struct thread *t, int fd, unsigned char *model,
		       volatile bool *stop)
{
	if (world_init(&t->w, fd, model, model))
		return -ENOMEM;
	t->stop = stop;
	return -pthread_create(&t->id, NULL, run_loose, t);
}

TEST_F(fuzz, file_closed_and_opened_meanwhile)
{
	unsigned long rounds = number_of("HMM_STEPS", STEPS) / 4, i;
	struct thread threads[NR_THREADS - 1] = { };
	volatile bool stop = false;
	int fd = dup(self->dev.fd);

	ASSERT_GE(fd, 0);
	for (i = 0; i < ARRAY_SIZE(threads); i++)
		ASSERT_EQ(0, start_loose(&threads[i], fd, self->model, &stop));
	for (i = 0; i < rounds; i++) {
		struct dm_dev fresh;

		ASSERT_EQ(0, dm_open(&fresh, variant->unit));
		EXPECT_EQ(fd, dup2(fresh.fd, fd));
		dm_close(&fresh);
		sched_yield();
		if (i % 4 == 3)
			close(fd);
	}
	stop = true;
	for (i = 0; i < ARRAY_SIZE(threads); i++) {
		pthread_join(threads[i].id, NULL);
		EXPECT_EQ(0, threads[i].err) TH_LOG("%s", threads[i].w.why);
		world_exit(&threads[i].w);
	}
	close(fd);
	adopt_zone(self->model);
}

/* Threads call while the process goes, by itself or by a signal. */
static void exit_at_work(int unit, unsigned char *model, unsigned long after)
{
	static volatile bool never;
	struct thread threads[NR_THREADS] = { };
	struct dm_dev d;
	int i;

	if (unshare_zone(model) || dm_open(&d, unit))
		_exit(2);
	for (i = 0; i < NR_THREADS; i++)
		if (start_loose(&threads[i], d.fd, model, &never))
			_exit(3);
	usleep(after);
	for (i = 0; i < NR_THREADS; i++)
		if (threads[i].err) {
			printf("# %s\n", threads[i].w.why);
			fflush(stdout);
			_exit(4);
		}
	if (after & 1)
		_exit(0);
	raise(SIGKILL);
}

TEST_F(fuzz, process_goes_meanwhile)
{
	unsigned long rounds = 4 + number_of("HMM_STEPS", STEPS) / 25, i;
	double began;
	pid_t pid;

	for (i = 0; i < rounds; i++) {
		unsigned long after = (i + 1) * 7919 % 40000;

		began = dm_now();
		pid = fork();
		ASSERT_GE(pid, 0);
		if (!pid)
			exit_at_work(variant->unit, self->model, after);
		EXPECT_EQ(after & 1 ? 0 : 128 + SIGKILL, dm_wait(pid));
		EXPECT_GT(CALL_LIMIT, dm_now() - began);
	}
}

/* ---- files that are not the device's, or not open ---- */

static int errno_of(int fd, unsigned long command)
{
	struct hmm_dmirror_cmd cmd = { .addr = ZONE, .npages = 1, .ptr = ZONE };

	return ioctl(fd, command, &cmd) ? errno : 0;
}

TEST_F(fuzz, other_files)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int path = open("/dev/hmm_dmirror0", O_PATH | O_CLOEXEC);
	int closed = dup(null);
	size_t i;

	ASSERT_GE(null, 0);
	ASSERT_GE(path, 0);
	close(closed);
	for (i = 0; i < ARRAY_SIZE(ops); i++) {
		EXPECT_EQ(EBADF, errno_of(closed, ops[i].code));
		EXPECT_EQ(EBADF, errno_of(path, ops[i].code));
		EXPECT_EQ(EBADF, errno_of(-1, ops[i].code));
		EXPECT_EQ(ENOTTY, errno_of(null, ops[i].code));
	}
	close(null);
	close(path);
}

/* What a file knows besides ioctl(): refused, or without effect. */
TEST_F(fuzz, other_calls)
{
	char byte = 1;

	EXPECT_EQ(-1, read(self->dev.fd, &byte, 1));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, write(self->dev.fd, &byte, 1));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, ftruncate(self->dev.fd, 0));
	EXPECT_EQ(-1, fallocate(self->dev.fd, 0, 0, DM_PAGE));
	EXPECT_EQ(0, fcntl(self->dev.fd, F_SETFL, O_NONBLOCK));
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "--gone"))
		return !!run_gone(atoi(argv[2]));
	return test_harness_run(argc, argv);
}
