// SPDX-License-Identifier: GPL-2.0
/*
 * The mirror at work: how many faults it takes for what, which kinds of memory it
 * knows, and what becomes of a device that has to wait for a page.
 *
 * READ_UNLOCKED and WRITE_UNLOCKED may wait as a CPU does: for a monitor of
 * userfaultfd, which is a thread here. A kill must end that wait, and a process
 * that invalidates the memory all the time must not make it last for ever.
 */
#include "../kselftest_harness.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "hmm_dmirror.h"

#ifndef MFD_HUGETLB
#define MFD_HUGETLB	0x0004U
#endif
#ifndef MFD_HUGE_1GB
#define MFD_HUGE_1GB	(30U << 26)
#endif

#define SMALL_PAGES	32L
#define GIANT_PAGES	(512 * DM_PER_HUGE)

/* What a CPU's fault would bring with one page of a file. */
#define AROUND		16L

/* What ends at once has ended within this, on the slowest machine. */
#define AT_ONCE		10.0

/* The driver gives up after some seconds of its own. */
#define STORM_LIMIT	60.0

/* ---- faults are counted ---- */

FIXTURE(count)
{
	struct dm_dev dev;
	struct dm_counts start;
	struct dm_mem buf;
	char balancing[8];
	unsigned long op;
};

FIXTURE_VARIANT(count)
{
	unsigned long op;
};

FIXTURE_VARIANT_ADD(count, locked)
{
	.op = HMM_DMIRROR_READ,
};

FIXTURE_VARIANT_ADD(count, unlocked)
{
	.op = HMM_DMIRROR_READ_UNLOCKED,
};

#define NUMA_BALANCING	"/proc/sys/kernel/numa_balancing"

/* Its hinting faults would be counted as well. */
static void stop_balancing(char *was, size_t size)
{
	int fd = open(NUMA_BALANCING, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, was, size - 1);

	was[n > 0 ? n : 0] = 0;
	if (fd >= 0)
		close(fd);
	dm_put_file(NUMA_BALANCING, "0");
}

static long minor_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_minflt;
}

/* Faults that one operation takes, by the kernel's count; or its errno. */
static long faults_of(const struct dm_dev *d, unsigned long op,
		      const struct dm_mem *m, long first, long n, void *buf)
{
	long before = minor_faults();
	int err = dm_op(d, op, dm_addr(m, first), n, buf);

	return err ? err : minor_faults() - before;
}

FIXTURE_SETUP(count)
{
	ASSERT_EQ(0, dm_open(&self->dev, DM_PRIVATE0));
	dm_counts(DM_PRIVATE0, &self->start);
	stop_balancing(self->balancing, sizeof(self->balancing));
	ASSERT_EQ(0, dm_small(&self->buf, DM_PER_HUGE));
	self->op = variant->op;
	/* Code and stack of the test itself are there after this. */
	ASSERT_LE(0L, faults_of(&self->dev, self->op, &self->buf, 0, 1,
				dm_addr(&self->buf, 1)));
}

FIXTURE_TEARDOWN(count)
{
	dm_free(&self->buf);
	dm_put_file(NUMA_BALANCING, self->balancing);
	dm_close(&self->dev);
	EXPECT_BALANCED(DM_PRIVATE0, &self->start);
}

#define EXPECT_FAULTS(want, m, first, n) \
	EXPECT_EQ((long)(want), faults_of(&self->dev, self->op, m, first, n, \
					  self->buf.cpu))

TEST_F(count, no_fault_for_what_is_there)
{
	struct dm_mem m;

	ASSERT_EQ(0, dm_small(&m, SMALL_PAGES));
	EXPECT_FAULTS(0, &m, 0, SMALL_PAGES);
	/* Nor if the device has to look it up anew. */
	ASSERT_EQ(0, mprotect(m.cpu, SMALL_PAGES * DM_PAGE, PROT_READ));
	EXPECT_FAULTS(0, &m, 0, SMALL_PAGES);
	EXPECT_EQ(DM_ALL_RIGHT, dm_copy_wrong(&m, 0, SMALL_PAGES,
					      self->buf.cpu));
	dm_free(&m);
}

TEST_F(count, a_fault_for_each_hole)
{
	struct dm_mem m;
	long i, holes = 0;

	ASSERT_EQ(0, dm_small(&m, SMALL_PAGES));
	for (i = 0; i < SMALL_PAGES; i += 3, holes++) {
		ASSERT_EQ(0, madvise(dm_addr(&m, i), DM_PAGE, MADV_DONTNEED));
		dm_zero_tags(&m, i, 1);
	}
	EXPECT_FAULTS(holes, &m, 0, SMALL_PAGES);
	EXPECT_EQ(DM_ALL_RIGHT, dm_copy_wrong(&m, 0, SMALL_PAGES,
					      self->buf.cpu));
	EXPECT_FAULTS(0, &m, 0, SMALL_PAGES);
	dm_free(&m);
}

TEST_F(count, a_huge_page_is_one_fault)
{
	struct dm_mem m;

	ASSERT_EQ(0, dm_adopt(&m, dm_aligned(DM_HUGE, PROT_READ | PROT_WRITE),
			      DM_PER_HUGE));
	ASSERT_EQ(0, madvise(m.cpu, DM_HUGE, MADV_HUGEPAGE));
	self->op = self->op == HMM_DMIRROR_READ ? HMM_DMIRROR_WRITE :
						  HMM_DMIRROR_WRITE_UNLOCKED;
	EXPECT_FAULTS(dm_thp_is_never() ? DM_PER_HUGE : 1, &m, 0, DM_PER_HUGE);
	EXPECT_EQ(0, memcmp(m.cpu, self->buf.cpu, DM_HUGE));
	dm_free(&m);
}

/* @pages of a file in memory, all there, none mapped. */
static int map_file(struct dm_mem *m, int fd, long pages)
{
	int err = dm_map_file(m, fd, pages, MAP_SHARED);

	return err ? err : dm_write_file(m, fd);
}

TEST_F(count, a_file_comes_with_its_neighbours)
{
	int fd = memfd_create("count", MFD_CLOEXEC);
	struct dm_mem m;

	ASSERT_EQ(0, map_file(&m, fd, DM_PER_HUGE));
	EXPECT_FAULTS(1, &m, 3, 1);
	EXPECT_FAULTS(0, &m, 0, AROUND);
	EXPECT_FAULTS(7, &m, 0, 8 * AROUND);
	EXPECT_EQ(DM_ALL_RIGHT, dm_copy_wrong(&m, 0, 8 * AROUND,
					      self->buf.cpu));
	/* And nothing that nobody has asked for. */
	EXPECT_AT(&self->dev, &m, 8 * AROUND, DM_PER_HUGE - 8 * AROUND,
		  AT_NOWHERE);
	dm_free(&m);
	close(fd);
}

/* ---- kinds of memory ---- */

#define PMD_WRITE	(HMM_DMIRROR_PROT_PMD | HMM_DMIRROR_PROT_WRITE)
#define PUD_WRITE	(HMM_DMIRROR_PROT_PUD | HMM_DMIRROR_PROT_WRITE)

static int hugetlb_map(struct dm_mem *m, unsigned int size_flag, long pages)
{
	int fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB | size_flag);
	void *p = MAP_FAILED;

	if (fd < 0)
		return -errno;
	if (!ftruncate(fd, pages * DM_PAGE))
		p = mmap(NULL, pages * DM_PAGE, PROT_READ | PROT_WRITE,
			 MAP_SHARED, fd, 0);
	close(fd);
	return dm_adopt(m, p, pages);
}

TEST_F(count, hugetlb_2m)
{
	struct dm_mem m;

	ASSERT_EQ(0, hugetlb_map(&m, 0, 2 * DM_PER_HUGE));
	EXPECT_FAULTS(1, &m, 7, 30);
	EXPECT_FAULTS(1, &m, DM_PER_HUGE - 5, 10);
	EXPECT_FAULTS(0, &m, DM_PER_HUGE, DM_PER_HUGE);
	EXPECT_EQ(2 * DM_PER_HUGE, dm_count_perm(&self->dev, &m, 0,
						 2 * DM_PER_HUGE,
						 HMM_DMIRROR_PROT_PMD));
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 500, 20));
	EXPECT_EQ(2 * DM_PER_HUGE, dm_count_perm(&self->dev, &m, 0,
						 2 * DM_PER_HUGE, PMD_WRITE));
	EXPECT_BOTH_SEE(&self->dev, &m, 480, 60);
	dm_free(&m);
}

TEST_F(count, hugetlb_1g)
{
	struct dm_mem m;

	if (hugetlb_map(&m, MFD_HUGE_1GB, GIANT_PAGES))
		SKIP(return, "no page of 1 GiB: boot with hugepagesz=1G hugepages=1");
	EXPECT_FAULTS(1, &m, 100000, 1);
	EXPECT_FAULTS(0, &m, GIANT_PAGES - 100, 100);
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 200000, 3));
	EXPECT_EQ(20L, dm_count_perm(&self->dev, &m, 0, 20, PUD_WRITE));
	EXPECT_EQ(20L, dm_count_perm(&self->dev, &m, GIANT_PAGES - 20, 20,
				     PUD_WRITE));
	EXPECT_BOTH_SEE(&self->dev, &m, 199990, 20);
	dm_free(&m);
}

/* A nameless file that may be of huge pages; its file system goes with it. */
static int huge_tmpfs(void)
{
	char dir[] = "/tmp/hmm_dmirror.XXXXXX";
	int fd = -1;

	if (!mkdtemp(dir))
		return -1;
	if (!mount("tmpfs", dir, "tmpfs", 0, "huge=always")) {
		fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
		umount2(dir, MNT_DETACH);
	}
	rmdir(dir);
	return fd;
}

TEST_F(count, shmem_huge_page)
{
	int fd = huge_tmpfs();
	struct dm_mem m;

	ASSERT_EQ(0, map_file(&m, fd, DM_PER_HUGE));
	EXPECT_FAULTS(1, &m, 0, DM_PER_HUGE);
	EXPECT_EQ(DM_ALL_RIGHT, dm_copy_wrong(&m, 0, DM_PER_HUGE,
					      self->buf.cpu));
	EXPECT_EQ(DM_PER_HUGE, dm_count_perm(&self->dev, &m, 0, DM_PER_HUGE,
					     HMM_DMIRROR_PROT_PMD));
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 100, 50));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, DM_PER_HUGE);
	dm_free(&m);
	close(fd);
}

/* The fault brings it back to RAM. */
TEST_F(count, other_device_has_it)
{
	struct dm_dev other;
	struct dm_mem m;

	ASSERT_EQ(0, dm_open(&other, DM_PRIVATE1));
	ASSERT_EQ(0, dm_small(&m, SMALL_PAGES));
	ASSERT_EQ(0, dm_to_dev(&other, &m, 10, 5));
	EXPECT_EQ(DM_ALL_RIGHT, dm_fetch(&self->dev, self->op, &m, 0,
					 SMALL_PAGES));
	EXPECT_IN_RAM(&self->dev, &m, 0, SMALL_PAGES);
	dm_free(&m);
	dm_close(&other);
}

/* ---- a monitor ---- */

/*
 * @unit: pages that one answer is for
 * @before: called instead of the first answer, if it is set; true: answer
 *	nevertheless, false: just wake
 */
struct monitor {
	int fd;
	int stop[2];
	struct dm_mem *m;
	long unit;
	bool (*before)(struct monitor *mon);
	long answers;
	int failed;
	pthread_t thread;
};

static int monitor_answer(struct monitor *mon, uint64_t flags, long page)
{
	bool (*before)(struct monitor *mon) = mon->before;

	mon->before = NULL;
	if (before && !before(mon))
		return dm_uffd_wake(mon->fd, mon->m, page, mon->unit);
	if (flags & UFFD_PAGEFAULT_FLAG_WP)
		return dm_uffd_protect(mon->fd, mon->m, page, mon->unit, false);
	if (flags & UFFD_PAGEFAULT_FLAG_MINOR)
		return dm_uffd_continue(mon->fd, mon->m, page, mon->unit);
	return dm_uffd_fill(mon->fd, mon->m, page, mon->unit);
}

/* Waits for a fault: its page, or -1 if there is none any more. */
static long next_fault(int uffd, int stop, const struct dm_mem *m,
		       uint64_t *flags)
{
	struct pollfd fds[2] = {
		{ .fd = uffd, .events = POLLIN },
		{ .fd = stop, .events = POLLIN },
	};
	struct uffd_msg msg;

	for (;;) {
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return -1;
		if (fds[1].revents)
			return -1;
		if (read(uffd, &msg, sizeof(msg)) != (ssize_t)sizeof(msg))
			continue;
		*flags = msg.arg.pagefault.flags;
		return (msg.arg.pagefault.address - (uintptr_t)m->cpu) / DM_PAGE;
	}
}

static void *monitor_run(void *arg)
{
	struct monitor *mon = arg;
	uint64_t flags;
	long page;

	while ((page = next_fault(mon->fd, mon->stop[0], mon->m, &flags)) >= 0) {
		int err;

		/* Before the one who waits goes on and looks. */
		mon->answers++;
		err = monitor_answer(mon, flags, page / mon->unit * mon->unit);
		if (err)
			mon->failed = err;
	}
	return NULL;
}

static int monitor_start(struct monitor *mon, uint64_t mode)
{
	int err = dm_uffd_register(mon->fd, mon->m, mode);

	mon->answers = 0;
	mon->failed = 0;
	if (!err && pipe(mon->stop))
		err = -errno;
	return err ? err : -pthread_create(&mon->thread, NULL, monitor_run, mon);
}

/* What went wrong; else the number of answers. */
static long monitor_stop(struct monitor *mon)
{
	close(mon->stop[1]);
	pthread_join(mon->thread, NULL);
	close(mon->stop[0]);
	return mon->failed ? mon->failed : mon->answers;
}

enum memory {
	ANON,
	SHMEM,
	HUGETLB,
};

/* @alias: the same memory, if it is a file, without a monitor */
FIXTURE(monitored)
{
	struct dm_dev dev;
	struct dm_counts start;
	struct dm_mem m;
	struct monitor mon;
	unsigned char *alias;
	long n;
};

FIXTURE_VARIANT(monitored)
{
	enum memory memory;
};

FIXTURE_VARIANT_ADD(monitored, anon)
{
	.memory = ANON,
};

FIXTURE_VARIANT_ADD(monitored, shmem)
{
	.memory = SHMEM,
};

FIXTURE_VARIANT_ADD(monitored, hugetlb)
{
	.memory = HUGETLB,
};

#define ALL_FEATURES	(UFFD_FEATURE_PAGEFAULT_FLAG_WP | \
			 UFFD_FEATURE_WP_HUGETLBFS_SHMEM | \
			 UFFD_FEATURE_MISSING_SHMEM | \
			 UFFD_FEATURE_MISSING_HUGETLBFS | \
			 UFFD_FEATURE_MINOR_SHMEM | \
			 UFFD_FEATURE_MINOR_HUGETLBFS)

/* Memory with nothing in it. */
static int make_memory(struct dm_mem *m, enum memory kind, unsigned char **alias)
{
	long pages = kind == HUGETLB ? 2 * DM_PER_HUGE : SMALL_PAGES;
	unsigned char *p[2];
	int fd, i;

	*alias = NULL;
	if (kind == ANON)
		return dm_hole(m, pages);
	fd = memfd_create("monitored", kind == HUGETLB ? MFD_HUGETLB : 0);
	if (fd < 0 || ftruncate(fd, pages * DM_PAGE))
		return -errno;
	for (i = 0; i < 2; i++)
		p[i] = mmap(NULL, pages * DM_PAGE, PROT_READ | PROT_WRITE,
			    MAP_SHARED, fd, 0);
	close(fd);
	*alias = p[1];
	return p[1] == MAP_FAILED ? -errno : dm_adopt(m, p[0], pages);
}

FIXTURE_SETUP(monitored)
{
	ASSERT_EQ(0, dm_open(&self->dev, DM_PRIVATE0));
	dm_counts(DM_PRIVATE0, &self->start);
	ASSERT_EQ(0, make_memory(&self->m, variant->memory, &self->alias));
	self->n = self->m.pages;
	self->mon.m = &self->m;
	self->mon.unit = variant->memory == HUGETLB ? DM_PER_HUGE : 1;
	self->mon.fd = dm_uffd_open(ALL_FEATURES);
	ASSERT_GE(self->mon.fd, 0);
}

FIXTURE_TEARDOWN(monitored)
{
	close(self->mon.fd);
	if (self->alias)
		munmap(self->alias, self->n * DM_PAGE);
	dm_free(&self->m);
	dm_close(&self->dev);
	EXPECT_BALANCED(DM_PRIVATE0, &self->start);
}

/* The device reads everything, and waits for what is not there. */
#define EXPECT_UNLOCKED_READ_SEES(first, nr) \
	EXPECT_EQ(DM_ALL_RIGHT, dm_fetch(&self->dev, \
					 HMM_DMIRROR_READ_UNLOCKED, \
					 &self->m, first, nr))

/* New content, written by the device in the same way. */
static int write_unlocked(const struct dm_dev *d, struct dm_mem *m, long first,
			  long n)
{
	unsigned char *copy = malloc(n * DM_PAGE);
	uint64_t *tag = malloc(n * sizeof(*tag));
	int err = -ENOMEM;
	long i;

	for (i = 0; copy && tag && i < n; i++) {
		tag[i] = dm_new_tag();
		dm_paint(copy + i * DM_PAGE, tag[i]);
	}
	if (copy && tag)
		err = dm_op(d, HMM_DMIRROR_WRITE_UNLOCKED, dm_addr(m, first), n,
			    copy);
	if (!err)
		memcpy(m->tag + first, tag, n * sizeof(*tag));
	free(tag);
	free(copy);
	return err;
}

TEST_F(monitored, read_waits_for_missing_pages)
{
	ASSERT_EQ(0, monitor_start(&self->mon, UFFDIO_REGISTER_MODE_MISSING));
	EXPECT_UNLOCKED_READ_SEES(0, self->n);
	EXPECT_EQ(self->n / self->mon.unit, self->mon.answers);
	/* All is there now: nobody has to be asked. */
	EXPECT_UNLOCKED_READ_SEES(0, self->n);
	EXPECT_EQ(self->n / self->mon.unit, monitor_stop(&self->mon));
	EXPECT_CPU_SEES(&self->m, 0, self->n);
}

/* Only what was asked for, and is not there. */
TEST_F(monitored, monitor_is_asked_for_missing_pages_alone)
{
	long half = self->n / 2;

	ASSERT_EQ(0, dm_uffd_register(self->mon.fd, &self->m,
				      UFFDIO_REGISTER_MODE_MISSING));
	ASSERT_EQ(0, dm_uffd_fill(self->mon.fd, &self->m, 0, half));
	ASSERT_EQ(0, monitor_start(&self->mon, UFFDIO_REGISTER_MODE_MISSING));
	EXPECT_UNLOCKED_READ_SEES(half - 1, 2);
	EXPECT_EQ(1L, monitor_stop(&self->mon));
	EXPECT_CPU_SEES(&self->m, 0, half + self->mon.unit);
}

TEST_F(monitored, write_waits_for_missing_pages)
{
	ASSERT_EQ(0, monitor_start(&self->mon, UFFDIO_REGISTER_MODE_MISSING));
	EXPECT_EQ(0, write_unlocked(&self->dev, &self->m, 1, self->n - 2));
	EXPECT_EQ(self->n / self->mon.unit -
		  (self->mon.unit == 1 ? 2 : 0), monitor_stop(&self->mon));
	EXPECT_CPU_SEES(&self->m, 1, self->n - 2);
}

/* Each page that is no longer protected invalidates the range. */
TEST_F(monitored, write_waits_for_protected_pages)
{
	dm_cpu_write(&self->m, 0, self->n);
	ASSERT_EQ(0, dm_uffd_register(self->mon.fd, &self->m,
				      UFFDIO_REGISTER_MODE_WP));
	ASSERT_EQ(0, dm_uffd_protect(self->mon.fd, &self->m, 0, self->n, true));
	ASSERT_EQ(0, monitor_start(&self->mon, UFFDIO_REGISTER_MODE_WP));
	EXPECT_UNLOCKED_READ_SEES(0, self->n);
	EXPECT_EQ(0, self->mon.answers);
	EXPECT_EQ(0, write_unlocked(&self->dev, &self->m, 0, self->n));
	EXPECT_EQ(self->n / self->mon.unit, monitor_stop(&self->mon));
	EXPECT_CPU_SEES(&self->m, 0, self->n);
}

TEST_F(monitored, read_waits_for_minor_faults)
{
	long i;

	if (variant->memory == ANON)
		return;
	dm_retag(&self->m, 0, self->n);
	for (i = 0; i < self->n; i++)
		dm_paint(self->alias + i * DM_PAGE, self->m.tag[i]);
	ASSERT_EQ(0, monitor_start(&self->mon, UFFDIO_REGISTER_MODE_MINOR));
	EXPECT_UNLOCKED_READ_SEES(0, self->n);
	EXPECT_EQ(self->n / self->mon.unit, monitor_stop(&self->mon));
	EXPECT_CPU_SEES(&self->m, 0, self->n);
}

static bool drop_first_page(struct monitor *mon)
{
	madvise(mon->m->cpu, mon->unit * DM_PAGE, MADV_DONTNEED);
	if (mon->m->tag[0])
		dm_zero_tags(mon->m, 0, mon->unit);
	return true;
}

/* What the device has found before it had to wait is gone when it goes on. */
TEST_F(monitored, page_goes_while_the_device_waits)
{
	long unit = self->mon.unit;

	if (variant->memory != ANON)
		return;
	ASSERT_EQ(0, dm_uffd_register(self->mon.fd, &self->m,
				      UFFDIO_REGISTER_MODE_MISSING));
	ASSERT_EQ(0, dm_uffd_fill(self->mon.fd, &self->m, 0, unit));
	self->mon.before = drop_first_page;
	ASSERT_EQ(0, monitor_start(&self->mon, UFFDIO_REGISTER_MODE_MISSING));
	EXPECT_UNLOCKED_READ_SEES(0, self->n);
	EXPECT_EQ(self->n, monitor_stop(&self->mon));
	EXPECT_CPU_SEES(&self->m, 0, self->n);
}

static bool unmap_all(struct monitor *mon)
{
	munmap(mon->m->cpu, mon->m->pages * DM_PAGE);
	return false;
}

TEST_F(monitored, memory_goes_while_the_device_waits)
{
	self->mon.before = unmap_all;
	ASSERT_EQ(0, monitor_start(&self->mon, UFFDIO_REGISTER_MODE_MISSING));
	EXPECT_EQ(-1000L - EFAULT, dm_fetch(&self->dev, HMM_DMIRROR_READ_UNLOCKED,
					    &self->m, 0, self->n));
	EXPECT_EQ(1L, monitor_stop(&self->mon));
	/* Not ours any more. */
	self->m.cpu = NULL;
}

static bool protect_all(struct monitor *mon)
{
	mprotect(mon->m->cpu, mon->m->pages * DM_PAGE, PROT_READ);
	return false;
}

TEST_F(monitored, rights_go_while_the_device_waits)
{
	self->mon.before = protect_all;
	ASSERT_EQ(0, monitor_start(&self->mon, UFFDIO_REGISTER_MODE_MISSING));
	EXPECT_EQ(-EPERM, write_unlocked(&self->dev, &self->m, 0, self->n));
	EXPECT_EQ(1L, monitor_stop(&self->mon));
}

/* A monitor that wakes and wakes, and brings nothing for a while. */
static bool wake_only(struct monitor *mon)
{
	if (mon->answers < 6)
		mon->before = wake_only;
	return false;
}

TEST_F(monitored, woken_without_an_answer)
{
	self->mon.before = wake_only;
	ASSERT_EQ(0, monitor_start(&self->mon, UFFDIO_REGISTER_MODE_MISSING));
	EXPECT_UNLOCKED_READ_SEES(0, self->n);
	EXPECT_EQ(6 + self->n / self->mon.unit, monitor_stop(&self->mon));
}

static bool be_slow(struct monitor *mon)
{
	usleep(1500000);
	return true;
}

/* Longer than the driver is patient with invalidations. */
TEST_F(monitored, slow_answer)
{
	struct hmm_dmirror_cmd cmd = { .npages = 2 };
	char buf[2 * DM_PAGE];

	if (variant->memory == HUGETLB)
		return;
	dm_cpu_write(&self->m, 0, self->n);
	ASSERT_EQ(0, dm_uffd_register(self->mon.fd, &self->m,
				      UFFDIO_REGISTER_MODE_WP));
	ASSERT_EQ(0, dm_uffd_protect(self->mon.fd, &self->m, 0, self->n, true));
	self->mon.before = be_slow;
	ASSERT_EQ(0, monitor_start(&self->mon, UFFDIO_REGISTER_MODE_WP));
	memset(buf, 0x11, sizeof(buf));
	cmd.addr = (uintptr_t)self->m.cpu;
	cmd.ptr = (uintptr_t)buf;
	EXPECT_EQ(0, dm_ioctl(&self->dev, HMM_DMIRROR_WRITE_UNLOCKED, &cmd));
	EXPECT_EQ(2UL, cmd.cpages);
	EXPECT_EQ(1UL, cmd.faults);
	EXPECT_EQ(2L, monitor_stop(&self->mon));
	EXPECT_EQ(0, memcmp(buf, self->m.cpu, sizeof(buf)));
}

/* The monitor says that there will never be anything. */
TEST_F(monitored, poisoned_page)
{
	struct uffdio_poison poison;

	ASSERT_EQ(0, dm_uffd_register(self->mon.fd, &self->m,
				      UFFDIO_REGISTER_MODE_MISSING));
	poison = (struct uffdio_poison) {
		.range = dm_uffd_range(&self->m, 0, self->mon.unit),
	};
	ASSERT_EQ(0, ioctl(self->mon.fd, UFFDIO_POISON, &poison));
	EXPECT_EQ(-1000L - EHWPOISON,
		  dm_fetch(&self->dev, HMM_DMIRROR_READ_UNLOCKED, &self->m, 0,
			   1));
	EXPECT_EQ(-1000L - EHWPOISON,
		  dm_fetch(&self->dev, HMM_DMIRROR_READ, &self->m, 0, 1));
	EXPECT_AT(&self->dev, &self->m, 0, 1, AT_NOWHERE);
}

/* ---- nobody answers ---- */

FIXTURE(unanswered)
{
	struct dm_counts start;
};

FIXTURE_SETUP(unanswered)
{
	dm_counts(DM_PRIVATE0, &self->start);
}

FIXTURE_TEARDOWN(unanswered)
{
	EXPECT_BALANCED(DM_PRIVATE0, &self->start);
}

#define HOLES	4L

/* A device, memory with nothing in it, and a monitor that is to bring it. */
struct scene {
	struct dm_dev dev;
	struct dm_mem m;
	int uffd;
};

static int set_scene(struct scene *s)
{
	int err = dm_open(&s->dev, DM_PRIVATE0);

	if (!err)
		err = dm_hole(&s->m, HOLES);
	if (err)
		return err;
	s->uffd = dm_uffd_open(0);
	if (s->uffd < 0)
		return s->uffd;
	return dm_uffd_register(s->uffd, &s->m, UFFDIO_REGISTER_MODE_MISSING);
}

static void end_scene(struct scene *s)
{
	close(s->uffd);
	dm_free(&s->m);
	dm_close(&s->dev);
}

/* One call, whatever signals come. */
static int read_once(const struct scene *s, void *buf)
{
	struct hmm_dmirror_cmd cmd = {
		.addr = (uintptr_t)s->m.cpu,
		.ptr = (uintptr_t)buf,
		.npages = HOLES,
	};

	return ioctl(s->dev.fd, HMM_DMIRROR_READ_UNLOCKED, &cmd) ? -errno : 0;
}

static void *read_in_thread(void *arg)
{
	static char buf[HOLES * DM_PAGE];

	return (void *)(intptr_t)read_once(arg, buf);
}

/* Returns when somebody waits for a page. */
static bool somebody_waits(const struct scene *s)
{
	uint64_t flags;

	return next_fault(s->uffd, -1, &s->m, &flags) >= 0;
}

/* Until the other end of the pipe is closed by all who have it. */
static void wait_for_end(int fd)
{
	char x;

	while (read(fd, &x, 1) > 0)
		;
}

/*
 * A process whose device waits. Another one keeps the monitor open, so that it
 * does not end with the process.
 */
static void be_stuck(int ready, int hold_read, int hold_write)
{
	pthread_t thread;
	struct scene s;

	if (set_scene(&s))
		_exit(1);
	if (!fork()) {
		dm_close(&s.dev);
		close(hold_write);
		close(ready);
		wait_for_end(hold_read);
		_exit(0);
	}
	if (pthread_create(&thread, NULL, read_in_thread, &s) ||
	    !somebody_waits(&s) || write(ready, "x", 1) != 1)
		_exit(2);
	pthread_join(thread, NULL);
	/* It should not have come back. */
	_exit(3);
}

TEST_F(unanswered, killed)
{
	int ready[2], hold[2];
	double began;
	pid_t pid;
	char x;

	ASSERT_EQ(0, pipe(ready));
	ASSERT_EQ(0, pipe(hold));
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		close(ready[0]);
		be_stuck(ready[1], hold[0], hold[1]);
	}
	close(ready[1]);
	ASSERT_EQ(1, read(ready[0], &x, 1));
	/* Not back by itself. */
	EXPECT_EQ(0, waitpid(pid, NULL, WNOHANG));
	began = dm_now();
	ASSERT_EQ(0, kill(pid, SIGKILL));
	EXPECT_EQ(128 + SIGKILL, dm_wait(pid));
	EXPECT_GT(AT_ONCE, dm_now() - began);
	close(ready[0]);
	close(hold[0]);
	close(hold[1]);
}

/* The device is used by a process that is not the one it mirrors. */
TEST_F(unanswered, killed_in_the_memory_of_another)
{
	char buf[HOLES * DM_PAGE];
	struct scene s;
	double began;
	pid_t pid;

	ASSERT_EQ(0, set_scene(&s));
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(read_once(&s, buf) ? 1 : 0);
	ASSERT_TRUE(somebody_waits(&s));
	began = dm_now();
	ASSERT_EQ(0, kill(pid, SIGKILL));
	EXPECT_EQ(128 + SIGKILL, dm_wait(pid));
	EXPECT_GT(AT_ONCE, dm_now() - began);

	/* The memory is no worse for it. */
	EXPECT_EQ(0, dm_uffd_fill(s.uffd, &s.m, 0, HOLES));
	EXPECT_EQ(DM_ALL_RIGHT, dm_fetch(&s.dev, HMM_DMIRROR_READ_UNLOCKED, &s.m,
					 0, HOLES));
	EXPECT_CPU_SEES(&s.m, 0, HOLES);
	end_scene(&s);
}

/* Dies with a device of its that another process waits on. */
static void be_mirrored_and_die(int answer)
{
	static char buf[HOLES * DM_PAGE];
	struct scene s;
	pid_t pid;
	int err;

	if (set_scene(&s))
		_exit(1);
	pid = fork();
	if (!pid) {
		close(s.uffd);
		memset(buf, 0x77, sizeof(buf));
		err = read_once(&s, buf);
		if (!err && !dm_page_is(buf, 0))
			err = -EBADMSG;
		_exit(write(answer, &err, sizeof(err)) != sizeof(err));
	}
	_exit(pid > 0 && somebody_waits(&s) ? 0 : 2);
}

/*
 * With the process its monitor has gone, so that nobody has to answer. Its memory
 * stays for as long as the device reads.
 */
TEST_F(unanswered, mirrored_process_dies)
{
	long before = dm_free_kb();
	int answer[2], err = 1;
	double began;
	pid_t pid;

	ASSERT_EQ(0, pipe(answer));
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		be_mirrored_and_die(answer[1]);
	close(answer[1]);
	EXPECT_EQ(0, dm_wait(pid));
	began = dm_now();
	EXPECT_EQ((ssize_t)sizeof(err), read(answer[0], &err, sizeof(err)));
	EXPECT_GT(AT_ONCE, dm_now() - began);
	EXPECT_EQ(0, err);
	close(answer[0]);
	EXPECT_NO_LEAK(before);
}

static volatile sig_atomic_t signals;

static void count_signal(int nr)
{
	signals++;
}

/* A signal that does not kill does not disturb either. */
TEST_F(unanswered, signal)
{
	struct sigaction action = { .sa_handler = count_signal };
	pthread_t thread;
	struct scene s;
	void *err;

	ASSERT_EQ(0, set_scene(&s));
	ASSERT_EQ(0, sigaction(SIGUSR1, &action, NULL));
	ASSERT_EQ(0, pthread_create(&thread, NULL, read_in_thread, &s));
	ASSERT_TRUE(somebody_waits(&s));
	ASSERT_EQ(0, pthread_kill(thread, SIGUSR1));
	usleep(100000);
	EXPECT_EQ(0, signals);
	EXPECT_EQ(0, dm_uffd_fill(s.uffd, &s.m, 0, HOLES));
	ASSERT_EQ(0, pthread_join(thread, &err));
	EXPECT_EQ(0, (intptr_t)err);
	EXPECT_EQ(1, signals);
	end_scene(&s);
}

/* ---- storms ---- */

FIXTURE(storm)
{
	struct dm_dev dev;
	struct dm_counts start;
	struct dm_mem m;
	unsigned char *buf;
};

FIXTURE_VARIANT(storm)
{
	unsigned long op;
};

FIXTURE_VARIANT_ADD(storm, locked)
{
	.op = HMM_DMIRROR_READ,
};

FIXTURE_VARIANT_ADD(storm, unlocked)
{
	.op = HMM_DMIRROR_READ_UNLOCKED,
};

FIXTURE_SETUP(storm)
{
	ASSERT_EQ(0, dm_open(&self->dev, DM_PRIVATE0));
	dm_counts(DM_PRIVATE0, &self->start);
	ASSERT_EQ(0, dm_hole(&self->m, SMALL_PAGES));
	self->buf = malloc(SMALL_PAGES * DM_PAGE);
	ASSERT_NE(NULL, self->buf);
}

FIXTURE_TEARDOWN(storm)
{
	free(self->buf);
	dm_free(&self->m);
	dm_close(&self->dev);
	EXPECT_BALANCED(DM_PRIVATE0, &self->start);
}

struct wind {
	struct dm_mem *m;
	unsigned long rounds;
	bool stop;
	bool failed;
};

static bool blows(struct wind *w)
{
	w->rounds++;
	return !__atomic_load_n(&w->stop, __ATOMIC_RELAXED) && !w->failed;
}

static void *protect_again(void *arg)
{
	struct wind *w = arg;
	size_t len = w->m->pages * DM_PAGE;

	while (blows(w))
		w->failed = mprotect(w->m->cpu, len, PROT_READ) ||
			    mprotect(w->m->cpu, len, PROT_READ | PROT_WRITE);
	return NULL;
}

static void *drop_again(void *arg)
{
	struct wind *w = arg;

	while (blows(w))
		w->failed = madvise(w->m->cpu, w->m->pages * DM_PAGE,
				    MADV_DONTNEED);
	return NULL;
}

/* Each read ends soon: with what is there, which is nothing, or with -EBUSY. */
TEST_F(storm, read_ends)
{
	struct wind w[2] = { { .m = &self->m }, { .m = &self->m } };
	double began, slowest = 0;
	pthread_t thread[2];
	long reads;
	int err;

	ASSERT_EQ(0, pthread_create(&thread[0], NULL, protect_again, &w[0]));
	ASSERT_EQ(0, pthread_create(&thread[1], NULL, drop_again, &w[1]));
	began = dm_now();
	for (reads = 0; dm_race(began, 0.7, reads > 5 && w[0].rounds > 20 &&
				w[1].rounds > 20); reads++) {
		double t = dm_now();

		memset(self->buf, 0x33, SMALL_PAGES * DM_PAGE);
		err = dm_op(&self->dev, variant->op, self->m.cpu, SMALL_PAGES,
			    self->buf);
		t = dm_now() - t;
		slowest = t > slowest ? t : slowest;
		if (err == -EBUSY)
			continue;
		ASSERT_EQ(0, err);
		ASSERT_EQ(DM_ALL_RIGHT, dm_copy_wrong(&self->m, 0, SMALL_PAGES,
						      self->buf));
	}
	__atomic_store_n(&w[0].stop, true, __ATOMIC_RELAXED);
	__atomic_store_n(&w[1].stop, true, __ATOMIC_RELAXED);
	ASSERT_EQ(0, pthread_join(thread[0], NULL));
	ASSERT_EQ(0, pthread_join(thread[1], NULL));
	EXPECT_FALSE(w[0].failed);
	EXPECT_FALSE(w[1].failed);
	EXPECT_LT(0, reads);
	EXPECT_GT(STORM_LIMIT, slowest);

	/* And then it is over. */
	dm_cpu_write(&self->m, 0, SMALL_PAGES);
	EXPECT_EQ(DM_ALL_RIGHT, dm_fetch(&self->dev, variant->op, &self->m, 0,
					 SMALL_PAGES));
}

/* For as long as a device reads in a storm, it can be killed. */
TEST_F(storm, killed)
{
	int ready[2], round;
	pid_t pid;
	char x;

	for (round = 0; round < 3; round++) {
		struct wind w = { .m = &self->m };
		pthread_t thread;
		double began;

		ASSERT_EQ(0, pipe(ready));
		ASSERT_EQ(0, pthread_create(&thread, NULL, drop_again, &w));
		pid = fork();
		ASSERT_GE(pid, 0);
		if (!pid) {
			if (write(ready[1], "x", 1) != 1)
				_exit(1);
			for (;;)
				dm_op(&self->dev, variant->op, self->m.cpu,
				      SMALL_PAGES, self->buf);
		}
		ASSERT_EQ(1, read(ready[0], &x, 1));
		usleep(50000 + round * 20000);
		began = dm_now();
		EXPECT_EQ(0, kill(pid, SIGKILL));
		EXPECT_EQ(128 + SIGKILL, dm_wait(pid));
		EXPECT_GT(AT_ONCE, dm_now() - began);
		__atomic_store_n(&w.stop, true, __ATOMIC_RELAXED);
		ASSERT_EQ(0, pthread_join(thread, NULL));
		close(ready[0]);
		close(ready[1]);
	}
}

TEST_HARNESS_MAIN
