// SPDX-License-Identifier: GPL-2.0
/*
 * Who may do what, and who may see what: the dmirror driver, and the device
 * memory behind it.
 *
 *	files	nodes and knobs are root's; an open file is the right to the memory
 *		of the process that opened it, as far as it was opened for, and no
 *		right to the device
 *	memory	nobody sees what another process left in device memory, nor after
 *		a copy that failed anything but what was there before
 *	sizes	a call takes a bounded amount of the kernel's memory
 *
 * What of that has to do with a single driver is the driver's own decision; what
 * has to do with device memory holds for each.
 */
#include "../kselftest_harness.h"

#include <dirent.h>
#include <grp.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/klog.h>
#include <sys/stat.h>

#include "hmm_dmirror.h"

#define NOBODY		65534
#define NPAGES		40L
#define MAX_PAGES	(1UL << 20)	/* of one call */
#define MMAP_PAGES	512L		/* of one mapping of the device */

/* What a process leaves behind, in RAM and on the device. */
#define SECRET		0x7465726365735f5fULL
#define SECRET_SIZE	(64UL << 20)

/* ---- being nobody ---- */

static bool become_nobody(void)
{
	return !setgroups(0, NULL) && !setresgid(NOBODY, NOBODY, NOBODY) &&
	       !setresuid(NOBODY, NOBODY, NOBODY);
}

/* What open() says to a process without any right: 0, or -errno. */
static int open_as_nobody(const char *path, int flags)
{
	pid_t pid = fork();
	int fd;

	if (pid < 0)
		return -errno;
	if (pid)
		return -dm_wait(pid);
	if (!become_nobody())
		_exit(255);
	fd = open(path, flags | O_CLOEXEC);
	_exit(fd < 0 ? errno : 0);
}

/* ---- files ---- */

TEST(nodes_are_for_root)
{
	char path[40];
	struct stat st;
	int unit;

	for (unit = DM_PRIVATE0; unit <= DM_COHERENT1; unit++) {
		snprintf(path, sizeof(path), "/dev/hmm_dmirror%d", unit);
		if (dm_is_coherent(unit) && access(path, F_OK))
			SKIP(return, "no coherent device: load with spm_addr_dev0/1");
		ASSERT_EQ(0, stat(path, &st));
		EXPECT_TRUE(S_ISCHR(st.st_mode));
		EXPECT_EQ(0600, st.st_mode & 07777);
		EXPECT_EQ(0, st.st_uid);
		EXPECT_EQ(0, st.st_gid);
		EXPECT_EQ(-EACCES, open_as_nobody(path, O_RDONLY));
		EXPECT_EQ(-EACCES, open_as_nobody(path, O_WRONLY));
		EXPECT_EQ(-EACCES, open_as_nobody(path, O_RDWR));
	}
}

/* Files below a folder that others than root may read; adds to *nr all of them. */
static int count_open_files(const char *dir, int *nr)
{
	DIR *d = opendir(dir);
	struct dirent *entry;
	char path[300];
	struct stat st;
	int sum = 0;

	while (d && (entry = readdir(d))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
		if (lstat(path, &st))
			continue;
		if (S_ISDIR(st.st_mode)) {
			sum += count_open_files(path, nr);
		} else if (S_ISREG(st.st_mode)) {
			++*nr;
			sum += (st.st_mode & 0077) || st.st_uid ||
			       open_as_nobody(path, O_RDONLY) != -EACCES;
		}
	}
	if (d)
		closedir(d);
	return sum;
}

TEST(knobs_are_for_root)
{
	int nr = 0;

	EXPECT_EQ(0, count_open_files("/sys/module/test_hmm/parameters", &nr));
	EXPECT_LT(0, nr);
	nr = 0;
	EXPECT_EQ(0, count_open_files("/sys/kernel/debug/hmm_dmirror", &nr));
	EXPECT_LT(0, nr);
}

/* Sixteen digits that begin like an address of the kernel. */
static bool has_pointer(const char *line)
{
	const char *p;

	for (p = line; (p = strstr(p, "ffff")); p++)
		if (strspn(p, "0123456789abcdef") >= 16 &&
		    strncmp(p, "ffffffffffffffff", 16))
			return true;
	return false;
}

static bool is_about_us(const char *line)
{
	return strstr(line, "hmm") || strstr(line, "HMM");
}

TEST(log_has_no_pointers)
{
	int size = klogctl(10, NULL, 0), len;
	char *log, *line, *rest;

	ASSERT_LT(0, size);
	log = malloc(size + 1);
	ASSERT_NE(NULL, log);
	len = klogctl(3, log, size);
	ASSERT_LT(0, len);
	log[len] = 0;
	rest = log;
	while ((line = strsep(&rest, "\n")))
		if (is_about_us(line) && has_pointer(line))
			EXPECT_STREQ("", line);
	free(log);
}

/* ---- one device ---- */

FIXTURE(security)
{
	struct dm_dev dev;
	struct dm_counts start;
	struct dm_mem m;
};

FIXTURE_VARIANT(security)
{
	int unit;
};

FIXTURE_VARIANT_ADD(security, private0)
{
	.unit = DM_PRIVATE0,
};

FIXTURE_VARIANT_ADD(security, coherent0)
{
	.unit = DM_COHERENT0,
};

FIXTURE_SETUP(security)
{
	int err = dm_open(&self->dev, variant->unit);

	dm_counts(variant->unit, &self->start);
	if (err && dm_is_coherent(variant->unit))
		SKIP(return, "no coherent device: load with spm_addr_dev0/1");
	ASSERT_EQ(0, err);
	ASSERT_EQ(0, dm_small(&self->m, NPAGES));
}

FIXTURE_TEARDOWN(security)
{
	EXPECT_EQ(0, dm_set_flags(&self->dev, 0));
	dm_free(&self->m);
	dm_close(&self->dev);
	EXPECT_BALANCED(variant->unit, &self->start);
}

/* ---- what a file is a right to ---- */

static int ioctl_of(int fd, unsigned long op, const void *addr, uint64_t npages,
		    void *buf)
{
	struct dm_dev d = { .fd = fd };

	return dm_op(&d, op, addr, npages, buf);
}

/* A file that somebody was given: the memory behind it, but not the device. */
TEST_F(security, file_in_the_hands_of_nobody)
{
	pid_t pid;

	ASSERT_EQ(0, mprotect(dm_addr(&self->m, 20), DM_PAGE, PROT_READ));
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		char *buf = malloc(DM_PAGE);

		if (!buf || !become_nobody())
			_exit(255);
		dm_paint(buf, self->m.tag[0]);
		EXPECT_DEVICE_SEES(&self->dev, &self->m, 0, NPAGES);
		EXPECT_EQ(0, ioctl_of(self->dev.fd, HMM_DMIRROR_WRITE,
				      dm_addr(&self->m, 1), 1, buf));
		/* What the process could not do, the file cannot. */
		EXPECT_EQ(-EPERM, ioctl_of(self->dev.fd, HMM_DMIRROR_WRITE,
					   dm_addr(&self->m, 20), 1, buf));
		EXPECT_EQ(-EPERM, ioctl_of(self->dev.fd, HMM_DMIRROR_RELEASE,
					   NULL, 0, NULL));
		EXPECT_EQ(-EPERM, ioctl_of(self->dev.fd, HMM_DMIRROR_FLAGS, NULL,
					   HMM_DMIRROR_FLAG_FAIL_ALLOC, NULL));
		EXPECT_EQ(-EPERM, ioctl_of(self->dev.fd, HMM_DMIRROR_FLAGS, NULL,
					   0, NULL));
		_exit(_metadata->exit_code);
	}
	EXPECT_EQ(0, dm_wait(pid));
	self->m.tag[1] = self->m.tag[0];
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, NPAGES);
}

/* No way from a file that was given to one that is one's own. */
TEST_F(security, file_is_not_opened_again)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->dev.fd);
	ASSERT_EQ(0, fcntl(self->dev.fd, F_SETFD, 0));
	EXPECT_EQ(-EACCES, open_as_nobody(path, O_RDWR));
	EXPECT_EQ(-EACCES, open_as_nobody(path, O_RDONLY));
}

/* The memory of the one who calls is not what the file is about. */
TEST_F(security, file_shows_one_process)
{
	pid_t pid = fork();

	ASSERT_GE(pid, 0);
	if (!pid) {
		struct dm_mem own;
		char *buf = malloc(DM_PAGE);

		if (!buf || dm_small(&own, 4))
			_exit(255);
		_exit(ioctl_of(self->dev.fd, HMM_DMIRROR_READ, own.cpu, 4, buf) !=
		      -EFAULT);
	}
	EXPECT_EQ(0, dm_wait(pid));
}

TEST_F(security, file_for_reading_does_not_write)
{
	char path[40];
	int fd;

	snprintf(path, sizeof(path), "/dev/hmm_dmirror%d", variant->unit);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(-EBADF, ioctl_of(fd, HMM_DMIRROR_WRITE, self->m.cpu, 1,
				   dm_addr(&self->m, 1)));
	EXPECT_EQ(-EBADF, ioctl_of(fd, HMM_DMIRROR_WRITE_UNLOCKED, self->m.cpu, 1,
				   dm_addr(&self->m, 1)));
	EXPECT_CPU_SEES(&self->m, 0, NPAGES);
	/* Page 1 becomes a copy of page 0. */
	EXPECT_EQ(0, ioctl_of(fd, HMM_DMIRROR_READ, self->m.cpu, 1,
			      dm_addr(&self->m, 1)));
	EXPECT_TRUE(dm_page_is(dm_addr(&self->m, 1), self->m.tag[0]));
	close(fd);
}

/* ---- sizes ---- */

static const unsigned long ranged[] = {
	HMM_DMIRROR_READ, HMM_DMIRROR_WRITE, HMM_DMIRROR_MIGRATE_TO_DEV,
	HMM_DMIRROR_MIGRATE_TO_SYS, HMM_DMIRROR_SNAPSHOT, HMM_DMIRROR_EXCLUSIVE,
	HMM_DMIRROR_CHECK_EXCLUSIVE, HMM_DMIRROR_READ_UNLOCKED,
	HMM_DMIRROR_WRITE_UNLOCKED, HMM_DMIRROR_FAULT_TO_DEV,
	HMM_DMIRROR_DMA_READ,
};

TEST_F(security, calls_are_bounded)
{
	char *buf = malloc(DM_PAGE);
	size_t i;

	ASSERT_NE(NULL, buf);
	for (i = 0; i < ARRAY_SIZE(ranged); i++) {
		EXPECT_EQ(-E2BIG, dm_op(&self->dev, ranged[i], self->m.cpu,
					MAX_PAGES + 1, buf));
		EXPECT_EQ(-E2BIG, dm_op(&self->dev, ranged[i], NULL,
					1UL << 34, NULL));
	}
	EXPECT_IN_RAM(&self->dev, &self->m, 0, NPAGES);
	EXPECT_CPU_SEES(&self->m, 0, NPAGES);
	free(buf);
}

static void *map_device(const struct dm_dev *d, long pages)
{
	return mmap(NULL, pages * DM_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
		    d->fd, 0);
}

TEST_F(security, mappings_are_bounded)
{
	char *p = map_device(&self->dev, MMAP_PAGES + 1);
	long i, wrong = 0;

	EXPECT_EQ(MAP_FAILED, p);
	EXPECT_EQ(E2BIG, errno);
	EXPECT_EQ(MAP_FAILED, map_device(&self->dev, 1L << 30));
	EXPECT_EQ(E2BIG, errno);

	p = map_device(&self->dev, MMAP_PAGES);
	ASSERT_NE(MAP_FAILED, p);
	for (i = 0; i < MMAP_PAGES; i++)
		wrong += !dm_page_is(p + i * DM_PAGE, 0);
	EXPECT_EQ(0, wrong);
	munmap(p, MMAP_PAGES * DM_PAGE);
}

/* The results are counts, and what is beside the buffer stays. */
TEST_F(security, nothing_beside_the_buffer)
{
	static const unsigned long gets[] = {
		HMM_DMIRROR_EXCLUSIVE, HMM_DMIRROR_READ, HMM_DMIRROR_SNAPSHOT,
		HMM_DMIRROR_DMA_READ, HMM_DMIRROR_MIGRATE_TO_DEV,
		HMM_DMIRROR_READ_UNLOCKED, HMM_DMIRROR_FAULT_TO_DEV,
	};
	unsigned char *buf = malloc(6 * DM_PAGE);
	size_t i, k;

	ASSERT_NE(NULL, buf);
	for (i = 0; i < ARRAY_SIZE(gets); i++) {
		bool bytes = gets[i] == HMM_DMIRROR_SNAPSHOT;
		size_t len = bytes ? 4 : 4 * DM_PAGE, wrong = 0;
		struct hmm_dmirror_cmd cmd = {
			.addr = (uintptr_t)self->m.cpu,
			.ptr = (uintptr_t)buf + 100,
			.npages = 4,
			.cpages = ~0ULL,
			.faults = ~0ULL,
		};

		memset(buf, 0xa5, 6 * DM_PAGE);
		EXPECT_EQ(0, dm_ioctl(&self->dev, gets[i], &cmd));
		EXPECT_EQ(4, cmd.cpages);
		EXPECT_GE(4, cmd.faults);
		EXPECT_EQ((uintptr_t)self->m.cpu, cmd.addr);
		EXPECT_EQ((uintptr_t)buf + 100, cmd.ptr);
		for (k = 0; k < 6 * DM_PAGE; k++)
			if (k < 100 || k >= 100 + len)
				wrong += buf[k] != 0xa5;
		EXPECT_EQ(0, wrong);
		/* What is exclusive comes back. */
		EXPECT_CPU_SEES(&self->m, 0, NPAGES);
	}
	free(buf);
}

/* ---- what a process leaves behind ---- */

static void write_secret(void *p, size_t len)
{
	uint64_t *w = p;

	while (len) {
		*w++ = SECRET;
		len -= sizeof(*w);
	}
}

static size_t count_not_zero(const void *p, size_t len)
{
	const uint64_t *w = p;
	size_t sum = 0;

	for (; len; len -= sizeof(*w))
		sum += !!*w++;
	return sum;
}

/*
 * A process has secrets, has the device have them, and goes. What was free RAM
 * before is full of them, too.
 */
static int leave_secrets(int unit)
{
	pid_t pid = fork();
	struct dm_dev d;
	char *p, *buf;

	if (pid < 0)
		return -errno;
	if (pid)
		return dm_wait(pid);
	p = dm_aligned(SECRET_SIZE, PROT_READ | PROT_WRITE);
	buf = malloc(SECRET_SIZE / 4);
	if (p == MAP_FAILED || !buf || dm_open(&d, unit))
		_exit(1);
	write_secret(p, SECRET_SIZE);
	write_secret(buf, SECRET_SIZE / 4);
	if (dm_op(&d, HMM_DMIRROR_MIGRATE_TO_DEV, p, SECRET_SIZE / 4 / DM_PAGE,
		  buf) ||
	    dm_op(&d, HMM_DMIRROR_WRITE, p, SECRET_SIZE / 4 / DM_PAGE, buf))
		_exit(2);
	_exit(0);
}

enum from {
	FROM_HOLE,
	FROM_HUGE_HOLE,
	FROM_ZERO_PAGE,
	FROM_HUGE_ZERO_PAGE,
	NR_FROM,
};

static const char * const from_name[NR_FROM] = {
	"hole", "huge hole", "zero page", "huge zero page",
};

/* Memory that is nothing yet, in some way. */
static void *map_nothing(enum from from)
{
	bool huge = from == FROM_HUGE_HOLE || from == FROM_HUGE_ZERO_PAGE;
	volatile char *p = dm_aligned(DM_HUGE, PROT_READ | PROT_WRITE);
	size_t i;

	if (p == MAP_FAILED)
		return MAP_FAILED;
	madvise((void *)p, DM_HUGE, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	if (from == FROM_ZERO_PAGE || from == FROM_HUGE_ZERO_PAGE)
		for (i = 0; i < DM_HUGE; i += DM_PAGE)
			(void)p[i];
	return (void *)p;
}

/* Words that are not zero: those that came with the migration, the device's, ours. */
static size_t foreign_words(const struct dm_dev *d, unsigned long op,
			    enum from from)
{
	char *p = map_nothing(from), *buf = malloc(DM_HUGE);
	size_t sum = 0;

	if (p == MAP_FAILED || !buf)
		return -1;
	memset(buf, 0xff, DM_HUGE);
	if (dm_op(d, op, p, DM_PER_HUGE, buf))
		return -2;
	sum += count_not_zero(buf, DM_HUGE);
	memset(buf, 0xff, DM_HUGE);
	if (dm_op(d, HMM_DMIRROR_READ, p, DM_PER_HUGE, buf))
		return -3;
	sum += count_not_zero(buf, DM_HUGE);
	sum += count_not_zero(p, DM_HUGE);
	free(buf);
	munmap(p, DM_HUGE);
	return sum;
}

TEST_F(security, device_memory_begins_as_zeroes)
{
	static const unsigned long to_dev[] = {
		HMM_DMIRROR_MIGRATE_TO_DEV, HMM_DMIRROR_FAULT_TO_DEV,
	};
	int from, fail, op;

	ASSERT_EQ(0, leave_secrets(variant->unit));
	for (from = 0; from < NR_FROM; from++)
		for (fail = 0; fail < 2; fail++)
			for (op = 0; op < 2; op++) {
				dm_set_flags(&self->dev, fail ?
					     HMM_DMIRROR_FLAG_FAIL_ALLOC : 0);
				EXPECT_EQ(0, foreign_words(&self->dev, to_dev[op],
							   from))
					TH_LOG("%s, %d, %d", from_name[from],
					       fail, op);
			}
}

/* The device's own memory is no way around it, when a part of a folio is new. */
TEST_F(security, new_pages_among_old_ones)
{
	unsigned char *half;
	struct dm_mem m;

	ASSERT_EQ(0, leave_secrets(variant->unit));
	ASSERT_EQ(0, dm_huge(&m, 1));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, m.pages));
	half = dm_addr(&m, 256);
	ASSERT_EQ(half, mmap(half, DM_HUGE / 2, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	dm_zero_tags(&m, 256, 256);
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, m.pages));
	EXPECT_ON_DEVICE(&self->dev, &m, 0, m.pages);
	EXPECT_BOTH_SEE(&self->dev, &m, 0, m.pages);
	dm_free(&m);
}

/* ---- copies that fail ---- */

static int fail_copies(const struct dm_dev *d, bool fail)
{
	return dm_set_flags(d, fail ? HMM_DMIRROR_FLAG_FAIL_COPY : 0);
}

TEST_F(security, failed_copy_to_the_device)
{
	struct dm_mem huge, hole;

	ASSERT_EQ(0, leave_secrets(variant->unit));
	ASSERT_EQ(0, dm_huge(&huge, 1));
	ASSERT_EQ(0, dm_hole(&hole, NPAGES));
	ASSERT_EQ(0, fail_copies(&self->dev, true));
	EXPECT_EQ(-ENOENT, dm_to_dev(&self->dev, &self->m, 0, NPAGES));
	EXPECT_EQ(-ENOENT, dm_to_dev(&self->dev, &huge, 0, huge.pages));
	EXPECT_EQ(-ENOENT, dm_to_dev(&self->dev, &hole, 0, NPAGES));
	EXPECT_EQ(-ENOENT, dm_fault_to_dev(&self->dev, &hole, 0, NPAGES));

	EXPECT_IN_RAM(&self->dev, &self->m, 0, NPAGES);
	EXPECT_IN_RAM(&self->dev, &huge, 0, huge.pages);
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, NPAGES);
	EXPECT_BOTH_SEE(&self->dev, &huge, 0, huge.pages);
	EXPECT_BOTH_SEE(&self->dev, &hole, 0, NPAGES);

	EXPECT_EQ(0, fail_copies(&self->dev, false));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &huge, 0, huge.pages));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &hole, 0, NPAGES));
	EXPECT_BOTH_SEE(&self->dev, &huge, 0, huge.pages);
	EXPECT_BOTH_SEE(&self->dev, &hole, 0, NPAGES);
	dm_free(&huge);
	dm_free(&hole);
}

TEST_F(security, failed_copy_to_ram)
{
	struct dm_mem huge;

	ASSERT_EQ(0, leave_secrets(variant->unit));
	ASSERT_EQ(0, dm_huge(&huge, 1));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 0, NPAGES));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &huge, 0, huge.pages));
	ASSERT_EQ(0, fail_copies(&self->dev, true));
	EXPECT_EQ(0, dm_to_sys(&self->dev, &self->m, 0, NPAGES));
	EXPECT_EQ(0, dm_to_sys(&self->dev, &huge, 0, huge.pages));
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, NPAGES);
	EXPECT_ON_DEVICE(&self->dev, &huge, 0, huge.pages);
	EXPECT_DEVICE_SEES(&self->dev, &self->m, 0, NPAGES);
	EXPECT_DEVICE_SEES(&self->dev, &huge, 0, huge.pages);
	EXPECT_EQ(0, fail_copies(&self->dev, false));
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, NPAGES);
	EXPECT_BOTH_SEE(&self->dev, &huge, 0, huge.pages);
	dm_free(&huge);
}

static sigjmp_buf after_fault;

static void on_sigbus(int signal)
{
	siglongjmp(after_fault, signal);
}

/* The signal that reading a byte ends in, or 0. */
static int touch(const volatile unsigned char *p)
{
	struct sigaction action = { .sa_handler = on_sigbus }, old;
	int signal;

	sigaction(SIGBUS, &action, &old);
	signal = sigsetjmp(after_fault, 1);
	if (!signal)
		(void)*p;
	sigaction(SIGBUS, &old, NULL);
	return signal;
}

/* A CPU, and a system call, get an error and no byte; later they get the data. */
static void touch_all(struct __test_metadata *_metadata, struct dm_mem *m)
{
	char *buf = calloc(1, DM_PAGE);
	int p[2];

	ASSERT_NE(NULL, buf);
	ASSERT_EQ(0, pipe(p));
	EXPECT_EQ(SIGBUS, touch(dm_addr(m, 0)));
	EXPECT_EQ(SIGBUS, touch(dm_addr(m, m->pages - 1)));
	EXPECT_EQ(-1, write(p[1], dm_addr(m, 1), DM_PAGE));
	EXPECT_EQ(EFAULT, errno);
	close(p[0]);
	close(p[1]);
	free(buf);
}

TEST_F(security, failed_copy_for_a_cpu)
{
	struct dm_mem huge;

	ASSERT_EQ(0, leave_secrets(variant->unit));
	ASSERT_EQ(0, dm_huge(&huge, 1));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 0, NPAGES));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &huge, 0, huge.pages));
	ASSERT_EQ(0, fail_copies(&self->dev, true));
	if (dm_is_coherent(variant->unit)) {
		/* No copy is needed. */
		EXPECT_CPU_SEES(&self->m, 0, NPAGES);
		EXPECT_CPU_SEES(&huge, 0, huge.pages);
	} else {
		touch_all(_metadata, &self->m);
		touch_all(_metadata, &huge);
	}
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, NPAGES);
	EXPECT_ON_DEVICE(&self->dev, &huge, 0, huge.pages);
	EXPECT_EQ(0, fail_copies(&self->dev, false));
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, NPAGES);
	EXPECT_BOTH_SEE(&self->dev, &huge, 0, huge.pages);
	dm_free(&huge);
}

/* The child gets the signal, the parent keeps the data. */
TEST_F(security, failed_copy_after_fork)
{
	int want = dm_is_coherent(variant->unit) ? 0 : SIGBUS;
	pid_t pid;

	EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 0, NPAGES));
	ASSERT_EQ(0, fail_copies(&self->dev, true));
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(touch(self->m.cpu) != want);
	EXPECT_EQ(0, dm_wait(pid));
	EXPECT_EQ(0, fail_copies(&self->dev, false));
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, NPAGES);
}

#define EVICT_MS	"/sys/module/test_hmm/parameters/evict_ms"

/* The device is to be emptied and cannot: it says so, and keeps what it has. */
TEST(failed_copy_of_release)
{
	struct dm_dev d;
	struct dm_mem m;

	ASSERT_EQ(0, dm_open(&d, DM_PRIVATE0));
	ASSERT_EQ(0, dm_small(&m, NPAGES));
	EXPECT_EQ(0, dm_to_dev(&d, &m, 0, NPAGES));
	ASSERT_EQ(0, fail_copies(&d, true));
	ASSERT_EQ(0, dm_put_file(EVICT_MS, "500"));
	EXPECT_EQ(-EBUSY, dm_op(&d, HMM_DMIRROR_RELEASE, NULL, 0, NULL));
	EXPECT_EQ(0, dm_put_file(EVICT_MS, "10000"));
	EXPECT_ON_DEVICE(&d, &m, 0, NPAGES);
	EXPECT_DEVICE_SEES(&d, &m, 0, NPAGES);
	EXPECT_EQ(0, fail_copies(&d, false));
	EXPECT_EQ(0, dm_op(&d, HMM_DMIRROR_RELEASE, NULL, 0, NULL));
	EXPECT_IN_RAM(&d, &m, 0, NPAGES);
	EXPECT_CPU_SEES(&m, 0, NPAGES);
	dm_free(&m);
	dm_close(&d);
}

TEST_HARNESS_MAIN
