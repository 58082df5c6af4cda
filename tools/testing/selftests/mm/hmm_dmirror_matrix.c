// SPDX-License-Identifier: GPL-2.0
/*
 * Everything a process can do to its memory, done to memory that a device has:
 * in its own memory, in its mirror, or for its exclusive use. In each test the
 * data must be what it was, for the CPU and for the device, and every device
 * page taken must be free again at the end.
 */
#include "../kselftest_harness.h"

#include <linux/io_uring.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "hmm_dmirror.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP	4
#endif

/* Not a multiple of the 64 pages that drivers like to work in. */
#define SMALL_PAGES	150

static int open_device(struct dm_dev *d, int unit, struct dm_counts *start)
{
	int err = dm_open(d, unit);

	dm_counts(unit, start);
	return err;
}

/*
 * Coherent devices need two ranges of memory set aside at boot; private ones
 * are always there, so their absence is a failure.
 */
#define OPEN_DEVICE(d, unit_nr, start) do { \
	int open_err = open_device(d, unit_nr, start); \
	if (open_err && dm_is_coherent(unit_nr)) \
		SKIP(return, "no coherent device: load with spm_addr_dev0/1"); \
	ASSERT_EQ(0, open_err); \
} while (0)

/* ==== device memory × what is done to a mapping ==== */

FIXTURE(matrix)
{
	struct dm_dev dev;
	struct dm_counts start;
	enum dm_place after_cpu;
	struct dm_mem m;
	long n;
};

FIXTURE_VARIANT(matrix)
{
	int unit;
	bool huge;
};

FIXTURE_VARIANT_ADD(matrix, private_4k)
{
	.unit = DM_PRIVATE0,
};

FIXTURE_VARIANT_ADD(matrix, private_thp)
{
	.unit = DM_PRIVATE0,
	.huge = true,
};

FIXTURE_VARIANT_ADD(matrix, coherent_4k)
{
	.unit = DM_COHERENT0,
};

FIXTURE_VARIANT_ADD(matrix, coherent_thp)
{
	.unit = DM_COHERENT0,
	.huge = true,
};

static int make_memory(struct dm_mem *m, bool huge)
{
	return huge ? dm_huge(m, 1) : dm_small(m, SMALL_PAGES);
}

FIXTURE_SETUP(matrix)
{
	OPEN_DEVICE(&self->dev, variant->unit, &self->start);
	self->after_cpu = dm_is_coherent(variant->unit) ? AT_DEVICE : AT_RAM;
	ASSERT_EQ(0, make_memory(&self->m, variant->huge));
	self->n = self->m.pages;
}

FIXTURE_TEARDOWN(matrix)
{
	dm_free(&self->m);
	dm_close(&self->dev);
	EXPECT_BALANCED(variant->unit, &self->start);
}

/* Every test of the matrix begins with all of its memory on the device. */
#define ALL_TO_DEVICE() do { \
	EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 0, self->n)); \
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, self->n); \
} while (0)

/* After @n pages were unmapped: a large folio is given back as a whole. */
#define EXPECT_GIVEN_BACK(unmapped) \
	EXPECT_IN_USE(variant->unit, &self->start, \
		      variant->huge ? self->n : self->n - (unmapped))

#define EXPECT_ALL_RIGHT() \
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, self->n)

/* A child that waits until its parent has closed the pipe, or has died. */
static pid_t fork_waiting(int go[2])
{
	pid_t pid;
	char x;

	if (pipe(go))
		return -1;
	pid = fork();
	if (pid)
		return pid;
	close(go[1]);
	while (read(go[0], &x, 1) > 0)
		;
	return 0;
}

static int let_go(int go[2], pid_t pid)
{
	int ret;

	close(go[1]);
	ret = dm_wait(pid);
	close(go[0]);
	return ret;
}

TEST_F(matrix, fork_child_writes)
{
	struct dm_mem *m = &self->m;
	pid_t pid;

	ALL_TO_DEVICE();
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		EXPECT_CPU_SEES(m, 0, self->n / 2);
		dm_cpu_write(m, 10, 100);
		EXPECT_CPU_SEES(m, 0, self->n);
		_exit(0);
	}
	EXPECT_EQ(0, dm_wait(pid));
	EXPECT_ALL_RIGHT();
}

TEST_F(matrix, fork_parent_writes)
{
	struct dm_mem *m = &self->m;
	int go[2];
	pid_t pid;

	ALL_TO_DEVICE();
	pid = fork_waiting(go);
	ASSERT_GE(pid, 0);
	if (!pid) {
		EXPECT_CPU_SEES(m, 0, self->n);
		_exit(0);
	}
	dm_cpu_write(m, 0, 40);
	EXPECT_EQ(0, dm_dev_write(&self->dev, m, 30, 80));
	EXPECT_DEVICE_SEES(&self->dev, m, 0, self->n);
	EXPECT_EQ(0, let_go(go, pid));
	EXPECT_ALL_RIGHT();
}

/* Pages that two processes share already are moved for both. */
TEST_F(matrix, migrate_after_fork)
{
	struct dm_mem *m = &self->m;
	int go[2];
	pid_t pid;

	pid = fork_waiting(go);
	ASSERT_GE(pid, 0);
	if (!pid) {
		EXPECT_CPU_SEES(m, 0, self->n);
		dm_cpu_write(m, 0, self->n / 3);
		EXPECT_CPU_SEES(m, 0, self->n);
		_exit(0);
	}
	ALL_TO_DEVICE();
	EXPECT_EQ(0, dm_dev_write(&self->dev, m, 0, 60));
	EXPECT_EQ(0, let_go(go, pid));
	EXPECT_ALL_RIGHT();
}

/* Two mirrors, one device: parent and child each with their own file. */
TEST_F(matrix, fork_child_has_own_mirror)
{
	struct dm_mem *m = &self->m;
	struct dm_dev own;
	pid_t pid;

	ALL_TO_DEVICE();
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		EXPECT_EQ(0, dm_open(&own, variant->unit));
		EXPECT_DEVICE_SEES(&own, m, 0, self->n);
		EXPECT_EQ(0, dm_dev_write(&own, m, 0, 70));
		dm_to_dev(&own, m, 0, self->n);
		EXPECT_BOTH_SEE(&own, m, 0, self->n);
		_exit(0);
	}
	EXPECT_EQ(0, dm_wait(pid));
	EXPECT_ALL_RIGHT();
}

/* The device is going to write: it gets copies of its own, as a CPU would. */
TEST_F(matrix, fault_to_device_after_fork)
{
	struct dm_mem *m = &self->m;
	int go[2];
	pid_t pid;

	pid = fork_waiting(go);
	ASSERT_GE(pid, 0);
	if (!pid) {
		EXPECT_CPU_SEES(m, 0, self->n);
		_exit(0);
	}
	EXPECT_EQ(0, dm_fault_to_dev(&self->dev, m, 0, self->n));
	EXPECT_ON_DEVICE(&self->dev, m, 0, self->n);
	EXPECT_EQ(self->n, dm_settled_in_use(variant->unit, &self->start, self->n));
	EXPECT_EQ(0, dm_dev_write(&self->dev, m, 0, 60));
	EXPECT_EQ(0, let_go(go, pid));
	EXPECT_ALL_RIGHT();
}

#define BOTH_ROUNDS	8

/* Each locks pages that the other one's faults may wait for. */
TEST_F(matrix, both_fault_to_device_after_fork)
{
	struct dm_mem *m = &self->m;
	struct dm_dev own;
	int round;
	pid_t pid;

	for (round = 0; round < BOTH_ROUNDS; round++) {
		pid = fork();
		ASSERT_GE(pid, 0);
		if (!pid) {
			if (dm_open(&own, variant->unit))
				_exit(1);
			dm_fault_to_dev(&own, m, 0, self->n);
			_exit(dm_cpu_wrong(m, 0, self->n) != DM_ALL_RIGHT);
		}
		/* A page that the other one has locked stays: -ENOENT. */
		dm_fault_to_dev(&self->dev, m, 0, self->n);
		EXPECT_CPU_SEES(m, 0, self->n / 2);
		EXPECT_EQ(0, dm_wait(pid));
		EXPECT_EQ(0, dm_fault_to_dev(&self->dev, m, 0, self->n));
		EXPECT_ON_DEVICE(&self->dev, m, 0, self->n);
		EXPECT_ALL_RIGHT();
	}
}

TEST_F(matrix, mremap_whole)
{
	struct dm_mem *m = &self->m;
	unsigned long len = self->n * DM_PAGE;
	struct dm_mem old = *m;
	void *to = dm_aligned(len, PROT_NONE);

	ASSERT_NE(MAP_FAILED, to);
	ALL_TO_DEVICE();
	ASSERT_EQ(to, mremap(m->cpu, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
			     to));
	m->cpu = to;
	EXPECT_ON_DEVICE(&self->dev, m, 0, self->n);
	EXPECT_EQ(-1000L - EFAULT, dm_dev_wrong(&self->dev, &old, 0, 1));
	EXPECT_EQ(0, dm_dev_write(&self->dev, m, 0, self->n / 2));
	EXPECT_ALL_RIGHT();
}

TEST_F(matrix, mremap_part)
{
	struct dm_mem *m = &self->m;
	struct dm_mem part;
	void *to = mmap(NULL, 50 * DM_PAGE, PROT_NONE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT_EQ(0, dm_adopt(&part, to, 50));
	ALL_TO_DEVICE();
	ASSERT_EQ(to, mremap(dm_addr(m, 43), 50 * DM_PAGE, 50 * DM_PAGE,
			     MREMAP_MAYMOVE | MREMAP_FIXED, to));
	memcpy(part.tag, m->tag + 43, 50 * sizeof(*part.tag));

	EXPECT_ON_DEVICE(&self->dev, &part, 0, 50);
	EXPECT_BOTH_SEE(&self->dev, &part, 0, 50);
	EXPECT_BOTH_SEE(&self->dev, m, 0, 43);
	EXPECT_BOTH_SEE(&self->dev, m, 93, self->n - 93);
	EXPECT_EQ(-1000L - EFAULT, dm_dev_wrong(&self->dev, m, 43, 50));
	dm_free(&part);
}

TEST_F(matrix, mremap_dontunmap)
{
	struct dm_mem *m = &self->m;
	unsigned long len = self->n * DM_PAGE;
	struct dm_mem moved;
	void *to;

	ALL_TO_DEVICE();
	to = mremap(m->cpu, len, len, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
	ASSERT_EQ(0, dm_adopt(&moved, to, self->n));
	memcpy(moved.tag, m->tag, self->n * sizeof(*m->tag));
	dm_zero_tags(m, 0, self->n);

	EXPECT_ON_DEVICE(&self->dev, &moved, 0, self->n);
	EXPECT_BOTH_SEE(&self->dev, &moved, 0, self->n);
	EXPECT_ALL_RIGHT();
	dm_free(&moved);
}

TEST_F(matrix, munmap_part)
{
	struct dm_mem *m = &self->m;

	ALL_TO_DEVICE();
	EXPECT_EQ(0, munmap(dm_addr(m, 20), 45 * DM_PAGE));
	EXPECT_GIVEN_BACK(45);
	EXPECT_EQ(-1000L - EFAULT, dm_dev_wrong(&self->dev, m, 64, 2));
	EXPECT_EQ(0, dm_dev_write(&self->dev, m, 65, 30));
	EXPECT_BOTH_SEE(&self->dev, m, 0, 20);
	EXPECT_BOTH_SEE(&self->dev, m, 65, self->n - 65);
}

TEST_F(matrix, mprotect_read)
{
	struct dm_mem *m = &self->m;
	unsigned long len = self->n * DM_PAGE;

	ALL_TO_DEVICE();
	EXPECT_EQ(0, mprotect(m->cpu, len, PROT_READ));
	EXPECT_ON_DEVICE(&self->dev, m, 0, self->n);
	EXPECT_EQ(0L, dm_count_perm(&self->dev, m, 0, self->n,
				    HMM_DMIRROR_PROT_WRITE));
	EXPECT_EQ(-EPERM, dm_dev_write(&self->dev, m, 0, self->n));
	EXPECT_BOTH_SEE(&self->dev, m, 0, self->n);

	EXPECT_EQ(0, mprotect(m->cpu, len, PROT_READ | PROT_WRITE));
	EXPECT_EQ(0, dm_dev_write(&self->dev, m, 5, 90));
	dm_cpu_write(m, 80, 40);
	EXPECT_ALL_RIGHT();
}

/* Read-only for a while, then writable, without anybody having looked. */
TEST_F(matrix, mprotect_there_and_back)
{
	struct dm_mem *m = &self->m;
	unsigned long len = self->n * DM_PAGE;

	ALL_TO_DEVICE();
	EXPECT_EQ(0, mprotect(m->cpu, len, PROT_READ));
	EXPECT_EQ(0, mprotect(m->cpu, len, PROT_READ | PROT_WRITE));
	EXPECT_EQ(0, dm_dev_write(&self->dev, m, 0, self->n));
	EXPECT_ALL_RIGHT();
}

TEST_F(matrix, mprotect_none)
{
	struct dm_mem *m = &self->m;

	ALL_TO_DEVICE();
	EXPECT_EQ(0, mprotect(dm_addr(m, 30), 40 * DM_PAGE, PROT_NONE));
	EXPECT_EQ(-1000L - EFAULT, dm_dev_wrong(&self->dev, m, 30, 40));
	EXPECT_BOTH_SEE(&self->dev, m, 0, 30);
	EXPECT_BOTH_SEE(&self->dev, m, 70, self->n - 70);
	EXPECT_EQ(0, mprotect(dm_addr(m, 30), 40 * DM_PAGE,
			      PROT_READ | PROT_WRITE));
	EXPECT_ALL_RIGHT();
}

TEST_F(matrix, madvise_dontneed)
{
	struct dm_mem *m = &self->m;

	ALL_TO_DEVICE();
	EXPECT_EQ(0, madvise(dm_addr(m, 33), 66 * DM_PAGE, MADV_DONTNEED));
	dm_zero_tags(m, 33, 66);
	EXPECT_GIVEN_BACK(66);
	EXPECT_ALL_RIGHT();
}

/* Lazily freed: each page is what it was, or zero; and once written, kept. */
TEST_F(matrix, madvise_free)
{
	struct dm_mem *m = &self->m;
	long i, torn = 0;

	ALL_TO_DEVICE();
	EXPECT_EQ(0, madvise(m->cpu, self->n * DM_PAGE, MADV_FREE));
	EXPECT_EQ(0, dm_dev_write(&self->dev, m, 0, 50));
	dm_cpu_write(m, 50, 20);
	for (i = 70; i < self->n; i++)
		torn += !dm_page_is(dm_addr(m, i), m->tag[i]) &&
			!dm_page_is(dm_addr(m, i), 0);
	EXPECT_EQ(0, torn);
	EXPECT_BOTH_SEE(&self->dev, m, 0, 70);
}

/* Lazily freed in RAM, then moved, then written: reclaim may not drop it. */
TEST_F(matrix, madvise_free_then_migrate)
{
	struct dm_mem *m = &self->m;

	EXPECT_EQ(0, madvise(m->cpu, self->n * DM_PAGE, MADV_FREE));
	ALL_TO_DEVICE();
	EXPECT_EQ(0, dm_dev_write(&self->dev, m, 0, self->n));
	EXPECT_EQ(0, dm_to_sys(&self->dev, m, 0, self->n));
	madvise(m->cpu, self->n * DM_PAGE, MADV_PAGEOUT);
	EXPECT_ALL_RIGHT();
}

TEST_F(matrix, madvise_pageout)
{
	struct dm_mem *m = &self->m;

	ALL_TO_DEVICE();
	EXPECT_EQ(0, madvise(m->cpu, self->n * DM_PAGE, MADV_PAGEOUT));
	EXPECT_ON_DEVICE(&self->dev, m, 0, self->n);
	EXPECT_EQ(0, madvise(m->cpu, self->n * DM_PAGE, MADV_COLD));
	EXPECT_ON_DEVICE(&self->dev, m, 0, self->n);
	EXPECT_ALL_RIGHT();
}

/* A huge page made from what is on the device, or a refusal. */
TEST_F(matrix, madvise_collapse)
{
	struct dm_mem *m = &self->m;

	ALL_TO_DEVICE();
	dm_collapse(m);
	EXPECT_ALL_RIGHT();

	EXPECT_EQ(0, dm_to_sys(&self->dev, m, 0, self->n));
	dm_to_dev(&self->dev, m, 30, 60);
	dm_collapse(m);
	EXPECT_ALL_RIGHT();
}

/* What other CPUs hold back, of pages to unlock and of counts, counts too. */
static long mlocked_kb(void)
{
	dm_put_file("/proc/sys/vm/drop_caches", "1");
	dm_put_file("/proc/sys/vm/stat_refresh", "1");
	return dm_meminfo_kb("Mlocked");
}

TEST_F(matrix, mlock)
{
	struct dm_mem *m = &self->m;
	long locked = mlocked_kb();
	unsigned long len = self->n * DM_PAGE;

	EXPECT_EQ(0, mlock(m->cpu, len));
	ALL_TO_DEVICE();
	EXPECT_EQ(0, dm_dev_write(&self->dev, m, 7, 90));
	EXPECT_ALL_RIGHT();
	EXPECT_EQ(0, dm_to_sys(&self->dev, m, 0, self->n));
	EXPECT_IN_RAM(&self->dev, m, 0, self->n);
	EXPECT_EQ(0, munlock(m->cpu, len));
	EXPECT_ALL_RIGHT();
	EXPECT_EQ(locked, mlocked_kb());
}

/* Locking pages that are on the device fetches them: they are to be in RAM. */
TEST_F(matrix, mlock_on_device)
{
	struct dm_mem *m = &self->m;
	unsigned long len = self->n * DM_PAGE;

	ALL_TO_DEVICE();
	EXPECT_EQ(0, mlock(m->cpu, len));
	EXPECT_AT(&self->dev, m, 0, self->n, self->after_cpu);
	EXPECT_EQ(0, munlock(m->cpu, len));
	EXPECT_ALL_RIGHT();
}

/* Unlocked while munlock() cannot see them, and never fetched again. */
TEST_F(matrix, munlock_on_device)
{
	struct dm_mem m;
	long locked = mlocked_kb();

	ASSERT_EQ(0, make_memory(&m, variant->huge));
	EXPECT_EQ(0, mlock(m.cpu, m.pages * DM_PAGE));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, m.pages));
	EXPECT_AT(&self->dev, &m, 0, m.pages, AT_DEVICE);
	EXPECT_EQ(0, munlock(m.cpu, m.pages * DM_PAGE));
	dm_free(&m);
	EXPECT_EQ(locked, mlocked_kb());
}

/* ---- other processes look at the memory ---- */

static int last_node(void)
{
	FILE *f = fopen("/sys/devices/system/node/has_memory", "r");
	int node = 0;
	char c;

	if (!f)
		return 0;
	while (fscanf(f, "%d%c", &node, &c) == 2 && c != '\n')
		;
	fclose(f);
	return node;
}

static int bind_to_node(const struct dm_mem *m, int node)
{
	unsigned long mask = 1UL << node;

	return syscall(SYS_mbind, m->cpu, m->pages * DM_PAGE, MPOL_BIND, &mask,
		       8 * sizeof(mask), 0) ? -errno : 0;
}

static long count_on_node(const struct dm_mem *m, int node)
{
	long i, n = 0;

	for (i = 0; i < (long)m->pages; i++) {
		void *page = dm_addr(m, i);
		int at = -1;

		if (!syscall(SYS_move_pages, 0, 1UL, &page, NULL, &at, 0))
			n += at == node;
	}
	return n;
}

/* Pages that come back go where the mapping wants its memory. */
TEST_F(matrix, memory_policy_is_obeyed)
{
	int node;

	for (node = last_node(); node >= 0; node--) {
		ALL_TO_DEVICE();
		ASSERT_EQ(0, bind_to_node(&self->m, node));
		EXPECT_CPU_SEES(&self->m, 0, self->n / 2);
		EXPECT_EQ(0, dm_to_sys(&self->dev, &self->m, 0, self->n));
		EXPECT_EQ(self->n, count_on_node(&self->m, node));
	}
	EXPECT_ALL_RIGHT();
}

TEST_F(matrix, process_vm_rw)
{
	struct dm_mem *m = &self->m;
	pid_t parent = getpid(), pid;
	uint64_t tag = dm_new_tag();
	char buf[DM_PAGE];

	if (process_vm_readv(parent, NULL, 0, NULL, 0, 0) && errno == ENOSYS)
		SKIP(return, "kernel without CONFIG_CROSS_MEMORY_ATTACH");
	ALL_TO_DEVICE();
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		struct iovec here = { buf, DM_PAGE };
		struct iovec there = { dm_addr(m, 9), DM_PAGE };

		EXPECT_EQ((ssize_t)DM_PAGE,
			  process_vm_readv(parent, &here, 1, &there, 1, 0));
		EXPECT_TRUE(dm_page_is(buf, m->tag[9]));
		dm_paint(buf, tag);
		there.iov_base = dm_addr(m, 77);
		EXPECT_EQ((ssize_t)DM_PAGE,
			  process_vm_writev(parent, &here, 1, &there, 1, 0));
		_exit(0);
	}
	EXPECT_EQ(0, dm_wait(pid));
	m->tag[77] = tag;
	/* To pin a page that fork shares is to copy it, to RAM. */
	EXPECT_AT(&self->dev, m, 9, 1, AT_RAM);
	EXPECT_ALL_RIGHT();
}

/* The same by the way of a file. */
TEST_F(matrix, proc_mem_rw)
{
	struct dm_mem *m = &self->m;
	uint64_t tag = dm_new_tag();
	char path[40], buf[DM_PAGE];
	pid_t pid;

	ALL_TO_DEVICE();
	snprintf(path, sizeof(path), "/proc/%d/mem", getpid());
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		int fd = open(path, O_RDWR);

		EXPECT_EQ((ssize_t)DM_PAGE,
			  pread(fd, buf, DM_PAGE, (uintptr_t)dm_addr(m, 9)));
		EXPECT_TRUE(dm_page_is(buf, m->tag[9]));
		dm_paint(buf, tag);
		EXPECT_EQ((ssize_t)DM_PAGE,
			  pwrite(fd, buf, DM_PAGE, (uintptr_t)dm_addr(m, 77)));
		_exit(0);
	}
	EXPECT_EQ(0, dm_wait(pid));
	m->tag[77] = tag;
	EXPECT_AT(&self->dev, m, 9, 1, self->after_cpu);
	EXPECT_ALL_RIGHT();
}

/* Read word 5 of a page of a stopped process, and write word 6. */
static int trace_page(pid_t pid, const struct dm_mem *m, long page)
{
	uint64_t *w = (uint64_t *)dm_addr(m, page);
	int status, err = 0;
	uint64_t seen;

	if (ptrace(PTRACE_ATTACH, pid, NULL, NULL))
		return 1;
	if (waitpid(pid, &status, __WALL) != pid)
		return 2;
	errno = 0;
	seen = ptrace(PTRACE_PEEKDATA, pid, &w[5], NULL);
	if (errno || seen != dm_word(m->tag[page], 5))
		err = 3;
	if (ptrace(PTRACE_POKEDATA, pid, &w[6], 0x1234))
		err = 4;
	ptrace(PTRACE_DETACH, pid, NULL, NULL);
	return err;
}

TEST_F(matrix, ptrace_rw)
{
	struct dm_mem *m = &self->m;
	pid_t parent = getpid(), pid;
	uint64_t *w;

	ALL_TO_DEVICE();
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(trace_page(parent, m, 40));
	EXPECT_EQ(0, dm_wait(pid));

	w = (uint64_t *)dm_addr(m, 40);
	EXPECT_EQ(0x1234, w[6]);
	w[6] = dm_word(m->tag[40], 6);
	EXPECT_ALL_RIGHT();
}

/* ---- bits of a PTE that are not the driver's to lose ---- */

/* Soft-dirty says which pages were written since it was last cleared. */
TEST_F(matrix, soft_dirty)
{
	struct dm_mem *m = &self->m;

	if (dm_count_pagemap(m, 0, self->n, DM_PM_SOFT) != self->n)
		SKIP(return, "kernel without CONFIG_MEM_SOFT_DIRTY");

	/* A VMA that merges with what is mapped beside it is dirty as a whole. */
	ASSERT_EQ(0, madvise(m->cpu, self->n * DM_PAGE, MADV_DONTDUMP));
	ASSERT_EQ(0, dm_put_file("/proc/self/clear_refs", "4"));
	EXPECT_EQ(0L, dm_count_pagemap(m, 0, self->n, DM_PM_SOFT));
	if (!variant->huge)
		dm_cpu_write(m, 20, 30);

	ALL_TO_DEVICE();
	EXPECT_EQ(variant->huge ? 0L : 30L,
		  dm_count_pagemap(m, 0, self->n, DM_PM_SOFT));
	EXPECT_EQ(0, dm_to_sys(&self->dev, m, 0, self->n));
	EXPECT_EQ(variant->huge ? 0L : 30L,
		  dm_count_pagemap(m, 0, self->n, DM_PM_SOFT));
	if (!variant->huge)
		EXPECT_EQ(30L, dm_count_pagemap(m, 20, 30, DM_PM_SOFT));

	/* Cleared while the pages are away, then written at home. */
	ALL_TO_DEVICE();
	ASSERT_EQ(0, dm_put_file("/proc/self/clear_refs", "4"));
	EXPECT_EQ(0L, dm_count_pagemap(m, 0, self->n, DM_PM_SOFT));
	dm_cpu_write(m, 60, 10);
	EXPECT_EQ(10L, dm_count_pagemap(m, 60, 10, DM_PM_SOFT));
	EXPECT_ALL_RIGHT();
}

TEST_F(matrix, uffd_wp)
{
	struct dm_mem *m = &self->m;
	int fd = dm_uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);

	ASSERT_GE(fd, 0);
	ASSERT_EQ(0, dm_uffd_register(fd, m, UFFDIO_REGISTER_MODE_WP));
	ASSERT_EQ(0, dm_uffd_protect(fd, m, 0, self->n, true));
	EXPECT_EQ(self->n, dm_count_pagemap(m, 0, self->n, DM_PM_UFFD_WP));

	ALL_TO_DEVICE();
	EXPECT_EQ(self->n, dm_count_pagemap(m, 0, self->n, DM_PM_UFFD_WP));
	/* Nobody answers here, so nobody may write. */
	EXPECT_EQ(-EFAULT, dm_dev_write(&self->dev, m, 10, 1));
	EXPECT_DEVICE_SEES(&self->dev, m, 0, self->n);
	EXPECT_EQ(0, dm_to_sys(&self->dev, m, 0, self->n));
	EXPECT_EQ(self->n, dm_count_pagemap(m, 0, self->n, DM_PM_UFFD_WP));

	ALL_TO_DEVICE();
	ASSERT_EQ(0, dm_uffd_protect(fd, m, 0, 70, false));
	EXPECT_EQ(self->n - 70, dm_count_pagemap(m, 0, self->n, DM_PM_UFFD_WP));
	EXPECT_EQ(0, dm_dev_write(&self->dev, m, 0, 70));
	dm_cpu_write(m, 60, 10);
	EXPECT_EQ(-EFAULT, dm_dev_write(&self->dev, m, 70, 1));
	EXPECT_ALL_RIGHT();
	EXPECT_EQ(self->n - 70,
		  dm_count_pagemap(m, 70, self->n - 70, DM_PM_UFFD_WP));
	close(fd);
}

/* Protected while the device has the memory already. */
TEST_F(matrix, uffd_wp_on_device)
{
	struct dm_mem *m = &self->m;
	int fd = dm_uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);

	ASSERT_GE(fd, 0);
	ASSERT_EQ(0, dm_uffd_register(fd, m, UFFDIO_REGISTER_MODE_WP));
	ALL_TO_DEVICE();
	ASSERT_EQ(0, dm_uffd_protect(fd, m, 0, self->n, true));
	EXPECT_EQ(self->n, dm_count_pagemap(m, 0, self->n, DM_PM_UFFD_WP));
	EXPECT_EQ(-EFAULT, dm_dev_write(&self->dev, m, 0, 64));
	EXPECT_ALL_RIGHT();
	EXPECT_EQ(self->n, dm_count_pagemap(m, 0, self->n, DM_PM_UFFD_WP));
	ASSERT_EQ(0, dm_uffd_protect(fd, m, 0, self->n, false));
	EXPECT_EQ(0, dm_dev_write(&self->dev, m, 0, self->n));
	EXPECT_ALL_RIGHT();
	close(fd);
}

/* A missing page is its monitor's to bring, not the device's. */
TEST_F(matrix, uffd_missing)
{
	struct dm_mem *m = &self->m;
	int fd = dm_uffd_open(0);

	ASSERT_GE(fd, 0);
	ASSERT_EQ(0, madvise(dm_addr(m, 40), 60 * DM_PAGE, MADV_DONTNEED));
	ASSERT_EQ(0, dm_uffd_register(fd, m, UFFDIO_REGISTER_MODE_MISSING));

	EXPECT_EQ(-1000L - EFAULT, dm_dev_wrong(&self->dev, m, 40, 60));
	EXPECT_EQ(-EFAULT, dm_dev_write(&self->dev, m, 40, 60));
	dm_to_dev(&self->dev, m, 0, self->n);
	EXPECT_AT(&self->dev, m, 40, 60, AT_NOWHERE);
	EXPECT_ON_DEVICE(&self->dev, m, 0, 40);
	EXPECT_ON_DEVICE(&self->dev, m, 100, self->n - 100);

	ASSERT_EQ(0, dm_uffd_fill(fd, m, 40, 60));
	EXPECT_EQ(0, dm_to_dev(&self->dev, m, 40, 60));
	EXPECT_ON_DEVICE(&self->dev, m, 0, self->n);
	EXPECT_EQ(0, dm_dev_write(&self->dev, m, 30, 30));
	EXPECT_ALL_RIGHT();
	close(fd);
}

/* ---- pins ---- */

/* An io_uring with one registered buffer: a pin for as long as it is open. */
static int pin_pages(void *addr, long n)
{
	struct io_uring_params p = { };
	struct iovec iov = { addr, n * DM_PAGE };
	int fd = syscall(__NR_io_uring_setup, 1, &p);

	if (fd < 0)
		return -errno;
	if (syscall(__NR_io_uring_register, fd, IORING_REGISTER_BUFFERS, &iov,
		    1))
		return -errno;
	return fd;
}

static int pin_page(void *addr)
{
	return pin_pages(addr, 1);
}

static int unpin_page(int fd)
{
	int ret = syscall(__NR_io_uring_register, fd,
			  IORING_UNREGISTER_BUFFERS, NULL, 0);

	close(fd);
	return ret ? -errno : 0;
}

TEST_F(matrix, pinned_page_stays)
{
	struct dm_mem *m = &self->m;
	int pin = pin_page(dm_addr(m, 66));

	ASSERT_GE(pin, 0);
	EXPECT_EQ(-ENOENT, dm_to_dev(&self->dev, m, 0, self->n));
	EXPECT_IN_RAM(&self->dev, m, 66, 1);
	if (!variant->huge) {
		EXPECT_ON_DEVICE(&self->dev, m, 0, 66);
		EXPECT_ON_DEVICE(&self->dev, m, 67, self->n - 67);
	}
	EXPECT_ALL_RIGHT();
	dm_cpu_write(m, 60, 20);
	EXPECT_ALL_RIGHT();
	EXPECT_EQ(0, unpin_page(pin));
	ALL_TO_DEVICE();
	EXPECT_ALL_RIGHT();
}

/* Whoever pins for long gets RAM, even where the CPU could reach the device. */
TEST_F(matrix, pin_fetches_page)
{
	struct dm_mem *m = &self->m;
	int pin;

	ALL_TO_DEVICE();
	pin = pin_page(dm_addr(m, 66));
	ASSERT_GE(pin, 0);
	EXPECT_IN_RAM(&self->dev, m, 66, 1);
	if (!variant->huge)
		EXPECT_ON_DEVICE(&self->dev, m, 0, 66);
	dm_cpu_write(m, 66, 1);
	EXPECT_DEVICE_SEES(&self->dev, m, 0, self->n);
	EXPECT_EQ(0, unpin_page(pin));
	EXPECT_ALL_RIGHT();
}

/* Of a large folio that has to move each page has a pin already. */
TEST_F(matrix, pin_fetches_many_pages)
{
	struct dm_mem *m = &self->m;
	int pin;

	ALL_TO_DEVICE();
	pin = pin_pages(dm_addr(m, 10), 100);
	ASSERT_GE(pin, 0);
	EXPECT_IN_RAM(&self->dev, m, 10, 100);
	dm_cpu_write(m, 10, 100);
	EXPECT_DEVICE_SEES(&self->dev, m, 0, self->n);
	EXPECT_EQ(0, unpin_page(pin));
	EXPECT_ALL_RIGHT();
}

/* A child shares the memory; the pinned page must stay that of its pinner. */
TEST_F(matrix, pin_and_fork)
{
	struct dm_mem *m = &self->m;
	int pin = pin_page(dm_addr(m, 66));
	int go[2];
	pid_t pid;

	ASSERT_GE(pin, 0);
	pid = fork_waiting(go);
	ASSERT_GE(pid, 0);
	if (!pid) {
		EXPECT_CPU_SEES(m, 0, self->n);
		_exit(0);
	}
	dm_to_dev(&self->dev, m, 0, self->n);
	EXPECT_IN_RAM(&self->dev, m, 66, 1);
	EXPECT_EQ(0, dm_dev_write(&self->dev, m, 66, 1));
	EXPECT_EQ(0, let_go(go, pid));
	EXPECT_ALL_RIGHT();
	EXPECT_EQ(0, unpin_page(pin));
}

/* Straight from device memory to a disk, and from the disk to device memory. */
TEST_F(matrix, direct_io)
{
	struct dm_mem *m = &self->m;
	int disk = open("/dev/ram0", O_RDWR | O_DIRECT | O_CLOEXEC);
	const ssize_t len = 32 * DM_PAGE;

	if (disk < 0)
		SKIP(return, "no /dev/ram0: CONFIG_BLK_DEV_RAM");
	ALL_TO_DEVICE();
	EXPECT_EQ(len, pwrite(disk, dm_addr(m, 3), len, 0));
	EXPECT_EQ(len, pread(disk, dm_addr(m, 90), len, 0));
	memcpy(m->tag + 90, m->tag + 3, 32 * sizeof(*m->tag));
	if (!variant->huge)
		EXPECT_ON_DEVICE(&self->dev, m, 40, 50);
	EXPECT_ALL_RIGHT();
	close(disk);
}

/* ---- how processes end ---- */

static void live_until_killed(int unit, bool huge)
{
	struct dm_dev d;
	struct dm_mem m;

	if (dm_open(&d, unit) || make_memory(&m, huge))
		_exit(1);
	for (;;) {
		dm_to_dev(&d, &m, 0, m.pages);
		dm_dev_write(&d, &m, 0, m.pages / 2);
		if (dm_cpu_wrong(&m, 0, m.pages / 3) != DM_ALL_RIGHT)
			_exit(1);
		dm_to_sys(&d, &m, 20, 60);
	}
}

TEST_F(matrix, killed_at_any_point)
{
	long before = dm_free_kb();
	unsigned int seed = 4711;
	pid_t pid[3];
	int i, round;

	for (round = 0; round < 4; round++) {
		for (i = 0; i < 3; i++) {
			pid[i] = fork();
			ASSERT_GE(pid[i], 0);
			if (!pid[i])
				live_until_killed(variant->unit, variant->huge);
		}
		for (i = 0; i < 3; i++) {
			usleep(5000 + rand_r(&seed) % 40000);
			EXPECT_EQ(0, kill(pid[i], SIGKILL));
			EXPECT_EQ(128 + SIGKILL, dm_wait(pid[i]));
		}
	}
	EXPECT_IN_USE(variant->unit, &self->start, 0);
	EXPECT_NO_LEAK(before);
	EXPECT_ALL_RIGHT();
}

/* Nobody unmaps, closes or waits. */
TEST_F(matrix, exit_with_everything_open)
{
	pid_t pid = fork();
	struct dm_dev d;
	struct dm_mem m;

	ASSERT_GE(pid, 0);
	if (!pid) {
		EXPECT_EQ(0, dm_open(&d, variant->unit));
		EXPECT_EQ(0, make_memory(&m, variant->huge));
		EXPECT_EQ(0, dm_to_dev(&d, &m, 0, m.pages));
		_exit(0);
	}
	EXPECT_EQ(0, dm_wait(pid));
	EXPECT_IN_USE(variant->unit, &self->start, 0);
}

/* ==== swap ==== */

#define SWAP_DISK	"/dev/ram1"
#define SWAPPED_PAGES	128L

FIXTURE(swap)
{
	struct dm_dev dev;
	struct dm_counts start;
	struct dm_mem m;
};

FIXTURE_VARIANT(swap)
{
	int unit;
};

FIXTURE_VARIANT_ADD(swap, private)
{
	.unit = DM_PRIVATE0,
};

FIXTURE_VARIANT_ADD(swap, coherent)
{
	.unit = DM_COHERENT0,
};

/* The header that swapon() looks for: version, last page, magic. */
static int make_swap(const char *disk)
{
	int fd = open(disk, O_RDWR | O_CLOEXEC);
	static char page[DM_PAGE];
	uint32_t info[2] = { 1, 0 };
	ssize_t done;

	if (fd < 0)
		return -errno;
	info[1] = lseek(fd, 0, SEEK_END) / DM_PAGE - 1;
	memcpy(page + 1024, info, sizeof(info));
	memcpy(page + DM_PAGE - 10, "SWAPSPACE2", 10);
	done = pwrite(fd, page, DM_PAGE, 0);
	fsync(fd);
	close(fd);
	if (done != (ssize_t)DM_PAGE)
		return -EIO;
	return swapon(disk, 0) ? -errno : 0;
}

FIXTURE_SETUP(swap)
{
	int err;

	OPEN_DEVICE(&self->dev, variant->unit, &self->start);
	/* What a test that died may have left. */
	swapoff(SWAP_DISK);
	err = make_swap(SWAP_DISK);
	if (err == -ENOENT)
		SKIP(return, "no " SWAP_DISK ": CONFIG_BLK_DEV_RAM");
	ASSERT_EQ(0, err);
	ASSERT_EQ(0, dm_small(&self->m, SWAPPED_PAGES));
}

FIXTURE_TEARDOWN(swap)
{
	dm_free(&self->m);
	EXPECT_EQ(0, swapoff(SWAP_DISK) && errno != EINVAL);
	dm_close(&self->dev);
	EXPECT_BALANCED(variant->unit, &self->start);
}

/* Reclaim may leave out a page or two that is on its way elsewhere. */
static long swap_out(const struct dm_mem *m)
{
	int tries;
	long out = 0;

	for (tries = 0; tries < 20 && out < SWAPPED_PAGES; tries++) {
		/* Some are in a batch of another CPU; this drains them all. */
		if (tries)
			dm_put_file("/proc/sys/vm/compact_memory", "1");
		madvise(m->cpu, m->pages * DM_PAGE, MADV_PAGEOUT);
		out = dm_count_pagemap(m, 0, m->pages, DM_PM_SWAP);
	}
	return out;
}

TEST_F(swap, device_reads_swapped_pages)
{
	ASSERT_EQ(SWAPPED_PAGES, swap_out(&self->m));
	EXPECT_AT(&self->dev, &self->m, 0, SWAPPED_PAGES, AT_NOWHERE);
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, SWAPPED_PAGES);
	EXPECT_IN_RAM(&self->dev, &self->m, 0, SWAPPED_PAGES);
	ASSERT_EQ(SWAPPED_PAGES, swap_out(&self->m));
	EXPECT_EQ(0, dm_dev_write(&self->dev, &self->m, 0, SWAPPED_PAGES));
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, SWAPPED_PAGES);
}

/* A page in swap is no hole: it must not come to the device as zeroes. */
TEST_F(swap, swapped_page_is_no_hole)
{
	ASSERT_EQ(SWAPPED_PAGES, swap_out(&self->m));
	dm_to_dev(&self->dev, &self->m, 0, SWAPPED_PAGES);
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, SWAPPED_PAGES);
}

/* Read back, pages are in RAM and their copies in swap. They can move. */
TEST_F(swap, swapped_page_is_faulted_to_device)
{
	ASSERT_EQ(SWAPPED_PAGES, swap_out(&self->m));
	EXPECT_EQ(0, dm_fault_to_dev(&self->dev, &self->m, 0, SWAPPED_PAGES));
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, SWAPPED_PAGES);
	EXPECT_EQ(0, dm_dev_write(&self->dev, &self->m, 10, 50));
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, SWAPPED_PAGES);
}

TEST_F(swap, swap_cache_page_moves)
{
	ASSERT_EQ(SWAPPED_PAGES, swap_out(&self->m));
	EXPECT_CPU_SEES(&self->m, 0, SWAPPED_PAGES);
	EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 0, SWAPPED_PAGES));
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, SWAPPED_PAGES);
	EXPECT_EQ(0, dm_dev_write(&self->dev, &self->m, 10, 50));
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, SWAPPED_PAGES);
	EXPECT_EQ(0, dm_to_sys(&self->dev, &self->m, 0, SWAPPED_PAGES));
	ASSERT_EQ(SWAPPED_PAGES, swap_out(&self->m));
	EXPECT_CPU_SEES(&self->m, 0, SWAPPED_PAGES);
}

TEST_F(swap, swapoff_with_pages_on_device)
{
	ASSERT_EQ(SWAPPED_PAGES, swap_out(&self->m));
	EXPECT_CPU_SEES(&self->m, 0, 50);
	EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 0, 50));
	EXPECT_EQ(0, swapoff(SWAP_DISK));
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, 50);
	EXPECT_IN_RAM(&self->dev, &self->m, 50, SWAPPED_PAGES - 50);
	EXPECT_BOTH_SEE(&self->dev, &self->m, 0, SWAPPED_PAGES);
}

/* ==== files ==== */

#define FILE_PAGES	80L

FIXTURE(file)
{
	struct dm_dev dev;
	struct dm_counts start;
	struct dm_mem m;
	int fd;
};

FIXTURE_VARIANT(file)
{
	int unit;
	bool tmpfs;
};

FIXTURE_VARIANT_ADD(file, private_memfd)
{
	.unit = DM_PRIVATE0,
};

FIXTURE_VARIANT_ADD(file, private_tmpfs)
{
	.unit = DM_PRIVATE0,
	.tmpfs = true,
};

FIXTURE_VARIANT_ADD(file, coherent_memfd)
{
	.unit = DM_COHERENT0,
};

FIXTURE_VARIANT_ADD(file, coherent_tmpfs)
{
	.unit = DM_COHERENT0,
	.tmpfs = true,
};

/* A nameless file on a tmpfs of its own, which goes with the file. */
static int open_on_tmpfs(void)
{
	char dir[] = "/tmp/hmm_dmirror.XXXXXX";
	int fd = -1;

	if (!mkdtemp(dir))
		return -1;
	if (!mount("tmpfs", dir, "tmpfs", 0, NULL)) {
		fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
		umount2(dir, MNT_DETACH);
	}
	rmdir(dir);
	return fd;
}

/* The file has the content of the model at the time. */
static int write_file(int fd, struct dm_mem *m)
{
	char buf[DM_PAGE];
	long i;

	for (i = 0; i < FILE_PAGES; i++) {
		m->tag[i] = dm_new_tag();
		dm_paint(buf, m->tag[i]);
		if (pwrite(fd, buf, DM_PAGE, i * DM_PAGE) != (ssize_t)DM_PAGE)
			return -EIO;
	}
	return 0;
}

static long file_wrong(int fd, const uint64_t *tag)
{
	return dm_file_wrong(fd, tag, FILE_PAGES);
}

static int map_file(struct dm_mem *m, int fd, int flags)
{
	return dm_adopt(m, mmap(NULL, FILE_PAGES * DM_PAGE,
				PROT_READ | PROT_WRITE, flags, fd, 0),
			FILE_PAGES);
}

FIXTURE_SETUP(file)
{
	OPEN_DEVICE(&self->dev, variant->unit, &self->start);
	self->fd = variant->tmpfs ? open_on_tmpfs() :
				    memfd_create("hmm", MFD_CLOEXEC);
	ASSERT_GE(self->fd, 0);
}

FIXTURE_TEARDOWN(file)
{
	dm_free(&self->m);
	close(self->fd);
	dm_close(&self->dev);
	EXPECT_BALANCED(variant->unit, &self->start);
}

TEST_F(file, shared)
{
	struct dm_mem *m = &self->m;

	ASSERT_EQ(0, map_file(m, self->fd, MAP_SHARED));
	ASSERT_EQ(0, write_file(self->fd, m));
	EXPECT_DEVICE_SEES(&self->dev, m, 0, FILE_PAGES);
	EXPECT_EQ(0, dm_dev_write(&self->dev, m, 10, 30));
	EXPECT_EQ(DM_ALL_RIGHT, file_wrong(self->fd, m->tag));

	/* Pages of a file cannot live on a device. They stay, unharmed. */
	dm_to_dev(&self->dev, m, 0, FILE_PAGES);
	EXPECT_IN_RAM(&self->dev, m, 0, FILE_PAGES);
	EXPECT_BOTH_SEE(&self->dev, m, 0, FILE_PAGES);
	EXPECT_EQ(DM_ALL_RIGHT, file_wrong(self->fd, m->tag));
}

/* What is written in a private mapping is anonymous and moves; the rest stays */
TEST_F(file, private)
{
	uint64_t in_file[FILE_PAGES];
	struct dm_mem *m = &self->m;

	ASSERT_EQ(0, map_file(m, self->fd, MAP_PRIVATE));
	ASSERT_EQ(0, write_file(self->fd, m));
	memcpy(in_file, m->tag, sizeof(in_file));
	EXPECT_CPU_SEES(m, 0, 50);
	dm_cpu_write(m, 10, 20);

	dm_to_dev(&self->dev, m, 0, FILE_PAGES);
	EXPECT_ON_DEVICE(&self->dev, m, 10, 20);
	EXPECT_AT(&self->dev, m, 0, 10, AT_RAM);
	EXPECT_AT(&self->dev, m, 30, 20, AT_RAM);
	/* Mapped around by the CPU's faults, or not there at all. */
	EXPECT_EQ(0L, dm_count_at(&self->dev, m, 50, FILE_PAGES - 50,
				  AT_DEVICE));
	EXPECT_EQ(0, dm_dev_write(&self->dev, m, 5, 30));
	EXPECT_BOTH_SEE(&self->dev, m, 0, FILE_PAGES);
	EXPECT_EQ(DM_ALL_RIGHT, file_wrong(self->fd, in_file));

	/* Gone from the mapping, the file shows again. */
	dm_to_dev(&self->dev, m, 5, 30);
	EXPECT_ON_DEVICE(&self->dev, m, 5, 30);
	EXPECT_EQ(0, madvise(dm_addr(m, 20), 10 * DM_PAGE, MADV_DONTNEED));
	memcpy(m->tag + 20, in_file + 20, 10 * sizeof(*in_file));
	EXPECT_BOTH_SEE(&self->dev, m, 0, FILE_PAGES);
}

/* Truncation takes private copies too, wherever they are. */
TEST_F(file, private_truncated)
{
	struct dm_mem *m = &self->m;

	ASSERT_EQ(0, map_file(m, self->fd, MAP_PRIVATE));
	ASSERT_EQ(0, write_file(self->fd, m));
	dm_cpu_write(m, 0, FILE_PAGES);
	EXPECT_EQ(0, dm_to_dev(&self->dev, m, 0, FILE_PAGES));
	EXPECT_ON_DEVICE(&self->dev, m, 0, FILE_PAGES);
	EXPECT_EQ(0, ftruncate(self->fd, 40 * DM_PAGE));
	EXPECT_AT(&self->dev, m, 40, FILE_PAGES - 40, AT_NOWHERE);
	EXPECT_IN_USE(variant->unit, &self->start, 40);
	EXPECT_BOTH_SEE(&self->dev, m, 0, 40);
}

/* ==== mappings larger than a page ==== */

FIXTURE(big)
{
	struct dm_dev dev;
	struct dm_counts start;
};

FIXTURE_VARIANT(big)
{
	int unit;
};

FIXTURE_VARIANT_ADD(big, private)
{
	.unit = DM_PRIVATE0,
};

FIXTURE_VARIANT_ADD(big, coherent)
{
	.unit = DM_COHERENT0,
};

FIXTURE_SETUP(big)
{
	OPEN_DEVICE(&self->dev, variant->unit, &self->start);
}

FIXTURE_TEARDOWN(big)
{
	dm_close(&self->dev);
	EXPECT_BALANCED(variant->unit, &self->start);
}

#define PMD_WRITE	(HMM_DMIRROR_PROT_PMD | HMM_DMIRROR_PROT_WRITE)

TEST_F(big, hugetlb_mirror)
{
	struct dm_mem m;
	void *p = mmap(NULL, 2 * DM_HUGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);

	if (p == MAP_FAILED)
		SKIP(return, "no hugetlb pages: boot with hugepages=");
	ASSERT_EQ(0, dm_adopt(&m, p, 2 * DM_PER_HUGE));

	/* The device is the first to touch it. */
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 100, 300));
	EXPECT_EQ(DM_PER_HUGE, dm_count_perm(&self->dev, &m, 0, m.pages,
					     PMD_WRITE));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, m.pages);
	dm_cpu_write(&m, 500, 30);
	EXPECT_BOTH_SEE(&self->dev, &m, 0, m.pages);

	EXPECT_EQ(-EINVAL, dm_to_dev(&self->dev, &m, 0, m.pages));
	EXPECT_EQ(-EINVAL, dm_to_sys(&self->dev, &m, 0, m.pages));
	EXPECT_EQ((long)m.pages, dm_count_perm(&self->dev, &m, 0, m.pages,
					       PMD_WRITE));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, m.pages);

	EXPECT_EQ(0, mprotect(m.cpu, DM_HUGE, PROT_READ));
	EXPECT_EQ(-EPERM, dm_dev_write(&self->dev, &m, 0, 1));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, m.pages);
	dm_free(&m);
}

TEST_F(big, thp_mirror)
{
	struct dm_mem m;

	ASSERT_EQ(0, dm_huge(&m, 2));
	EXPECT_EQ((long)m.pages, dm_count_perm(&self->dev, &m, 0, m.pages,
					       PMD_WRITE));
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 300, 400));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, m.pages);
	/* Looking at it has not broken it. */
	EXPECT_EQ((long)(2 * DM_HUGE >> 10), dm_smaps_kb(&m, "AnonHugePages"));
	EXPECT_EQ(10L, dm_count_perm(&self->dev, &m, 507, 10, PMD_WRITE));

	/* A part that may not be written is no longer part of a PMD. */
	EXPECT_EQ(0, mprotect(dm_addr(&m, 5), DM_PAGE, PROT_READ));
	EXPECT_EQ(0L, dm_count_perm(&self->dev, &m, 0, DM_PER_HUGE,
				    HMM_DMIRROR_PROT_PMD));
	EXPECT_EQ(-EPERM, dm_dev_write(&self->dev, &m, 5, 1));
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 6, 100));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, m.pages);
	dm_free(&m);
}

/* A folio is as large as before, but a device cannot map it so from there. */
TEST_F(big, moved_huge_page_has_no_order)
{
	char *to = dm_aligned(2 * DM_HUGE, PROT_NONE);
	struct dm_mem m;

	ASSERT_NE(MAP_FAILED, (void *)to);
	ASSERT_EQ(0, dm_huge(&m, 1));
	EXPECT_EQ((long)m.pages, dm_count_perm(&self->dev, &m, 0, m.pages,
					       PMD_WRITE));
	to += 16 * DM_PAGE;
	ASSERT_EQ((void *)to, mremap(m.cpu, DM_HUGE, DM_HUGE,
				     MREMAP_MAYMOVE | MREMAP_FIXED, to));
	m.cpu = (void *)to;
	EXPECT_EQ(0L, dm_count_perm(&self->dev, &m, 0, m.pages,
				    HMM_DMIRROR_PROT_PMD));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, m.pages);
	dm_free(&m);
}

/* Some pages of a huge page go, the others stay, and then the reverse. */
TEST_F(big, thp_in_parts)
{
	struct dm_mem m;

	ASSERT_EQ(0, dm_huge(&m, 1));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 100, 77));
	EXPECT_ON_DEVICE(&self->dev, &m, 100, 77);
	EXPECT_IN_RAM(&self->dev, &m, 0, 100);
	EXPECT_IN_RAM(&self->dev, &m, 177, m.pages - 177);
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 90, 50));
	EXPECT_DEVICE_SEES(&self->dev, &m, 0, m.pages);

	EXPECT_EQ(0, dm_to_sys(&self->dev, &m, 100, 77));
	EXPECT_IN_RAM(&self->dev, &m, 0, m.pages);
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, m.pages));
	EXPECT_ON_DEVICE(&self->dev, &m, 0, m.pages);
	EXPECT_BOTH_SEE(&self->dev, &m, 0, m.pages);
	dm_free(&m);
}

/* Each PTE maps its own page, but the pages are still one folio. */
TEST_F(big, pte_mapped_thp)
{
	struct dm_mem m;

	ASSERT_EQ(0, dm_huge(&m, 1));
	EXPECT_EQ(0, mprotect(dm_addr(&m, 7), DM_PAGE, PROT_READ));
	EXPECT_EQ(0, mprotect(dm_addr(&m, 7), DM_PAGE, PROT_READ | PROT_WRITE));
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, m.pages));
	EXPECT_ON_DEVICE(&self->dev, &m, 0, m.pages);
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 0, 200));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, m.pages);
	dm_free(&m);
}

/* A huge hole, and the huge page of zeroes. */
TEST_F(big, huge_zero_page)
{
	struct dm_mem m;

	ASSERT_EQ(0, dm_adopt(&m, dm_aligned(DM_HUGE, PROT_READ | PROT_WRITE),
			      DM_PER_HUGE));
	EXPECT_EQ(0, madvise(m.cpu, DM_HUGE, MADV_HUGEPAGE));
	EXPECT_CPU_SEES(&m, 0, m.pages);
	EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, m.pages));
	EXPECT_ON_DEVICE(&self->dev, &m, 0, m.pages);
	EXPECT_DEVICE_SEES(&self->dev, &m, 0, m.pages);
	EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 0, 100));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, m.pages);
	dm_free(&m);

	ASSERT_EQ(0, dm_adopt(&m, dm_aligned(DM_HUGE, PROT_READ | PROT_WRITE),
			      DM_PER_HUGE));
	EXPECT_EQ(0, madvise(m.cpu, DM_HUGE, MADV_HUGEPAGE));
	EXPECT_BOTH_SEE(&self->dev, &m, 0, m.pages);
	dm_free(&m);
}

/* ==== two devices ==== */

FIXTURE(pair)
{
	struct dm_dev a, b;
	struct dm_counts start_a, start_b;
	struct dm_mem m;
};

FIXTURE_VARIANT(pair)
{
	int a, b;
};

FIXTURE_VARIANT_ADD(pair, private_private)
{
	.a = DM_PRIVATE0,
	.b = DM_PRIVATE1,
};

FIXTURE_VARIANT_ADD(pair, coherent_coherent)
{
	.a = DM_COHERENT0,
	.b = DM_COHERENT1,
};

FIXTURE_VARIANT_ADD(pair, private_coherent)
{
	.a = DM_PRIVATE0,
	.b = DM_COHERENT0,
};

FIXTURE_VARIANT_ADD(pair, coherent_private)
{
	.a = DM_COHERENT1,
	.b = DM_PRIVATE1,
};

FIXTURE_SETUP(pair)
{
	OPEN_DEVICE(&self->a, variant->a, &self->start_a);
	OPEN_DEVICE(&self->b, variant->b, &self->start_b);
	ASSERT_EQ(0, dm_small(&self->m, SMALL_PAGES));
}

FIXTURE_TEARDOWN(pair)
{
	dm_free(&self->m);
	dm_close(&self->a);
	dm_close(&self->b);
	EXPECT_BALANCED(variant->a, &self->start_a);
	EXPECT_BALANCED(variant->b, &self->start_b);
}

TEST_F(pair, other_device_reads)
{
	struct dm_mem *m = &self->m;

	EXPECT_EQ(0, dm_to_dev(&self->a, m, 0, SMALL_PAGES));
	EXPECT_EQ(0, dm_dev_write(&self->a, m, 30, 70));
	/* Memory that only its owner can reach is nothing to another device. */
	EXPECT_AT(&self->b, m, 0, SMALL_PAGES,
		  dm_is_coherent(variant->a) ? AT_OTHER_DEVICE : AT_NOWHERE);

	EXPECT_DEVICE_SEES(&self->b, m, 0, SMALL_PAGES);
	EXPECT_AT(&self->a, m, 0, SMALL_PAGES,
		  dm_is_coherent(variant->a) ? AT_DEVICE : AT_RAM);
	EXPECT_BOTH_SEE(&self->a, m, 0, SMALL_PAGES);
}

TEST_F(pair, other_device_writes)
{
	struct dm_mem *m = &self->m;

	EXPECT_EQ(0, dm_to_dev(&self->a, m, 0, SMALL_PAGES));
	EXPECT_EQ(0, dm_dev_write(&self->b, m, 20, 100));
	EXPECT_DEVICE_SEES(&self->a, m, 0, SMALL_PAGES);
	EXPECT_EQ(0, dm_dev_write(&self->a, m, 70, 80));
	EXPECT_DEVICE_SEES(&self->b, m, 0, SMALL_PAGES);
	EXPECT_CPU_SEES(m, 0, SMALL_PAGES);
}

/* One device may not take what the other has. It gets it by way of RAM. */
TEST_F(pair, other_device_migrates)
{
	struct dm_mem *m = &self->m;

	EXPECT_EQ(0, dm_to_dev(&self->a, m, 0, SMALL_PAGES));
	EXPECT_NE(0, dm_to_dev(&self->b, m, 0, SMALL_PAGES));
	EXPECT_ON_DEVICE(&self->a, m, 0, SMALL_PAGES);
	EXPECT_EQ(0, dm_to_sys(&self->b, m, 0, SMALL_PAGES));
	EXPECT_ON_DEVICE(&self->a, m, 0, SMALL_PAGES);
	EXPECT_DEVICE_SEES(&self->a, m, 0, SMALL_PAGES);

	EXPECT_EQ(0, dm_to_sys(&self->a, m, 0, 100));
	EXPECT_EQ(0, dm_to_dev(&self->b, m, 0, 100));
	EXPECT_ON_DEVICE(&self->b, m, 0, 100);
	EXPECT_ON_DEVICE(&self->a, m, 100, SMALL_PAGES - 100);
	EXPECT_DEVICE_SEES(&self->b, m, 0, 50);
	EXPECT_DEVICE_SEES(&self->a, m, 50, 100);
	EXPECT_CPU_SEES(m, 0, SMALL_PAGES);
}

/* ==== many threads, one page ==== */

FIXTURE(faulters)
{
	struct dm_dev dev;
	struct dm_counts start;
};

FIXTURE_VARIANT(faulters)
{
	int threads;
};

FIXTURE_VARIANT_ADD(faulters, t1)
{
	.threads = 1,
};

FIXTURE_VARIANT_ADD(faulters, t2)
{
	.threads = 2,
};

FIXTURE_VARIANT_ADD(faulters, t8)
{
	.threads = 8,
};

FIXTURE_VARIANT_ADD(faulters, t16)
{
	.threads = 16,
};

#define MAX_FAULTERS	16
#define FAULT_PAGES	8L
#define FAULT_ROUNDS	8
#define MAX_WAIT	5.0

FIXTURE_SETUP(faulters)
{
	OPEN_DEVICE(&self->dev, DM_PRIVATE0, &self->start);
}

FIXTURE_TEARDOWN(faulters)
{
	dm_close(&self->dev);
	EXPECT_BALANCED(DM_PRIVATE0, &self->start);
}

struct faulter {
	pthread_t thread;
	pthread_barrier_t *line;
	const struct dm_mem *m;
	long wrong;
	double longest;
};

static void *fault_pages(void *arg)
{
	struct faulter *f = arg;
	double start, took;
	long page;
	int round;

	for (round = 0; round < FAULT_ROUNDS; round++) {
		pthread_barrier_wait(f->line);
		for (page = 0; page < FAULT_PAGES; page++) {
			start = dm_now();
			if (dm_cpu_wrong(f->m, page, 1) != DM_ALL_RIGHT)
				f->wrong++;
			took = dm_now() - start;
			if (took > f->longest)
				f->longest = took;
		}
		pthread_barrier_wait(f->line);
	}
	return NULL;
}

TEST_F(faulters, same_page)
{
	struct faulter f[MAX_FAULTERS] = { };
	pthread_barrier_t line;
	struct dm_mem m;
	int i, round;

	ASSERT_EQ(0, dm_small(&m, FAULT_PAGES));
	ASSERT_EQ(0, pthread_barrier_init(&line, NULL, variant->threads + 1));
	for (i = 0; i < variant->threads; i++) {
		f[i].line = &line;
		f[i].m = &m;
		ASSERT_EQ(0, pthread_create(&f[i].thread, NULL, fault_pages,
					    &f[i]));
	}
	for (round = 0; round < FAULT_ROUNDS; round++) {
		EXPECT_EQ(0, dm_to_dev(&self->dev, &m, 0, FAULT_PAGES));
		EXPECT_EQ(0, dm_dev_write(&self->dev, &m, 0, FAULT_PAGES));
		EXPECT_ON_DEVICE(&self->dev, &m, 0, FAULT_PAGES);
		pthread_barrier_wait(&line);
		pthread_barrier_wait(&line);
		EXPECT_IN_RAM(&self->dev, &m, 0, FAULT_PAGES);
	}
	for (i = 0; i < variant->threads; i++) {
		ASSERT_EQ(0, pthread_join(f[i].thread, NULL));
		EXPECT_EQ(0, f[i].wrong);
		EXPECT_GT(MAX_WAIT, f[i].longest);
	}
	EXPECT_BOTH_SEE(&self->dev, &m, 0, FAULT_PAGES);
	dm_free(&m);
}

/* ==== migration against migration ==== */

FIXTURE(movers)
{
	struct dm_dev dev;
	struct dm_counts start;
};

FIXTURE_VARIANT(movers)
{
	int unit;
	bool huge;
	int threads;
};

FIXTURE_VARIANT_ADD(movers, private_4k_2)
{
	.unit = DM_PRIVATE0,
	.threads = 2,
};

FIXTURE_VARIANT_ADD(movers, private_4k_4)
{
	.unit = DM_PRIVATE0,
	.threads = 4,
};

FIXTURE_VARIANT_ADD(movers, private_thp_2)
{
	.unit = DM_PRIVATE0,
	.huge = true,
	.threads = 2,
};

FIXTURE_VARIANT_ADD(movers, private_thp_4)
{
	.unit = DM_PRIVATE0,
	.huge = true,
	.threads = 4,
};

FIXTURE_VARIANT_ADD(movers, coherent_4k_3)
{
	.unit = DM_COHERENT0,
	.threads = 3,
};

FIXTURE_VARIANT_ADD(movers, coherent_thp_3)
{
	.unit = DM_COHERENT0,
	.huge = true,
	.threads = 3,
};

FIXTURE_SETUP(movers)
{
	OPEN_DEVICE(&self->dev, variant->unit, &self->start);
}

FIXTURE_TEARDOWN(movers)
{
	dm_close(&self->dev);
	EXPECT_BALANCED(variant->unit, &self->start);
}

#define MAX_MOVERS	4

#define MOVER_ROUNDS	12

struct mover {
	pthread_t thread;
	const struct dm_dev *dev;
	const struct dm_mem *m;
	pthread_barrier_t *line;
	bool home;
	int failed;
};

/* To the device, a page that another thread is moving is an -ENOENT. */
static void *move_pages_about(void *arg)
{
	struct mover *v = arg;
	int round, err;

	for (round = 0; round < MOVER_ROUNDS; round++) {
		pthread_barrier_wait(v->line);
		if (v->home)
			err = dm_to_sys(v->dev, v->m, 0, v->m->pages);
		else if (round & 1)
			err = dm_fault_to_dev(v->dev, v->m, 0, v->m->pages);
		else
			err = dm_to_dev(v->dev, v->m, 0, v->m->pages);
		if (err && (v->home || err != -ENOENT))
			v->failed = err;
		pthread_barrier_wait(v->line);
	}
	return NULL;
}

TEST_F(movers, same_range)
{
	struct mover v[MAX_MOVERS] = { };
	long before = dm_free_kb();
	pthread_barrier_t line;
	struct dm_mem m;
	int i, round;

	ASSERT_EQ(0, pthread_barrier_init(&line, NULL, variant->threads + 1));
	for (i = 0; i < variant->threads; i++) {
		v[i].dev = &self->dev;
		v[i].m = &m;
		v[i].line = &line;
		v[i].home = i % 3 == 2;
		ASSERT_EQ(0, pthread_create(&v[i].thread, NULL,
					    move_pages_about, &v[i]));
	}
	for (round = 0; round < MOVER_ROUNDS; round++) {
		/* Fresh, so that a huge page is whole when they meet at it. */
		ASSERT_EQ(0, make_memory(&m, variant->huge));
		pthread_barrier_wait(&line);
		pthread_barrier_wait(&line);
		EXPECT_BOTH_SEE(&self->dev, &m, 0, m.pages);
		/* Whatever was in the way is not any more. */
		EXPECT_EQ(0, dm_to_sys(&self->dev, &m, 0, m.pages));
		EXPECT_IN_RAM(&self->dev, &m, 0, m.pages);
		dm_free(&m);
	}
	for (i = 0; i < variant->threads; i++) {
		ASSERT_EQ(0, pthread_join(v[i].thread, NULL));
		EXPECT_EQ(0, v[i].failed);
	}
	EXPECT_IN_USE(variant->unit, &self->start, 0);
	EXPECT_NO_LEAK(before);
}

/* The same memory all the time, with a CPU that wants it too. */
TEST_F(movers, same_range_in_use)
{
	struct mover v[MAX_MOVERS] = { };
	pthread_barrier_t line;
	struct dm_mem m;
	int i, round;

	ASSERT_EQ(0, pthread_barrier_init(&line, NULL, variant->threads + 1));
	ASSERT_EQ(0, make_memory(&m, variant->huge));
	for (i = 0; i < variant->threads; i++) {
		v[i].dev = &self->dev;
		v[i].m = &m;
		v[i].line = &line;
		v[i].home = i & 1;
		ASSERT_EQ(0, pthread_create(&v[i].thread, NULL,
					    move_pages_about, &v[i]));
	}
	for (round = 0; round < MOVER_ROUNDS; round++) {
		pthread_barrier_wait(&line);
		EXPECT_CPU_SEES(&m, round, 5);
		pthread_barrier_wait(&line);
		dm_cpu_write(&m, round, 20);
	}
	for (i = 0; i < variant->threads; i++) {
		ASSERT_EQ(0, pthread_join(v[i].thread, NULL));
		EXPECT_EQ(0, v[i].failed);
	}
	EXPECT_BOTH_SEE(&self->dev, &m, 0, m.pages);
	dm_free(&m);
}

/* ==== pages that the device has for itself ==== */

FIXTURE(exclusive)
{
	struct dm_dev dev;
	struct dm_counts start;
	struct dm_mem m;
	long n;
};

FIXTURE_VARIANT(exclusive)
{
	bool huge;
};

FIXTURE_VARIANT_ADD(exclusive, 4k)
{
	.huge = false,
};

FIXTURE_VARIANT_ADD(exclusive, thp)
{
	.huge = true,
};

FIXTURE_SETUP(exclusive)
{
	OPEN_DEVICE(&self->dev, DM_PRIVATE0, &self->start);
	ASSERT_EQ(0, make_memory(&self->m, variant->huge));
	self->n = self->m.pages;
}

FIXTURE_TEARDOWN(exclusive)
{
	dm_free(&self->m);
	dm_close(&self->dev);
	EXPECT_BALANCED(DM_PRIVATE0, &self->start);
}

#define EXPECT_EXCLUSIVE(page, nr) \
	EXPECT_EQ((long)(nr), \
		  dm_count_exclusive(&self->dev, &self->m, page, nr))

#define EXPECT_SHARED(page, nr) \
	EXPECT_EQ(0, dm_check_exclusive(&self->dev, &self->m, page, nr))

#define TAKE(page, nr) \
	EXPECT_EQ(0, dm_exclusive(&self->dev, &self->m, page, nr))

TEST_F(exclusive, until_a_cpu_comes)
{
	struct dm_mem *m = &self->m;

	EXPECT_SHARED(0, self->n);
	TAKE(0, self->n);
	EXPECT_EXCLUSIVE(0, self->n);
	EXPECT_CPU_SEES(m, 50, 1);
	EXPECT_SHARED(50, 1);
	EXPECT_EXCLUSIVE(0, 50);
	EXPECT_EXCLUSIVE(51, self->n - 51);
	dm_cpu_write(m, 60, 40);
	EXPECT_SHARED(60, 40);
	EXPECT_ALL_RIGHT();
	EXPECT_SHARED(0, self->n);
}

/* One page of a huge page is as good as any other. */
TEST_F(exclusive, any_single_page)
{
	static const long page[] = { 0, 1, 63, 64, 100, 149 };
	struct dm_mem *m = &self->m;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(page); i++) {
		TAKE(page[i], 1);
		EXPECT_EXCLUSIVE(page[i], 1);
	}
	EXPECT_SHARED(2, 60);
	EXPECT_CPU_SEES(m, 2, 60);
	for (i = 0; i < ARRAY_SIZE(page); i++) {
		EXPECT_EXCLUSIVE(page[i], 1);
		dm_cpu_write(m, page[i], 1);
		EXPECT_SHARED(page[i], 1);
	}
	EXPECT_ALL_RIGHT();
}

TEST_F(exclusive, written_by_device)
{
	struct dm_mem *m = &self->m;

	TAKE(10, 100);
	EXPECT_EQ(0, dm_dev_write(&self->dev, m, 0, self->n));
	EXPECT_ALL_RIGHT();
	TAKE(0, self->n);
	EXPECT_ALL_RIGHT();
}

TEST_F(exclusive, taken_twice)
{
	TAKE(0, 100);
	TAKE(50, 100);
	EXPECT_EXCLUSIVE(0, 150);
	EXPECT_ALL_RIGHT();
}

TEST_F(exclusive, taken_from_a_hole)
{
	struct dm_mem *m = &self->m;

	EXPECT_EQ(0, madvise(dm_addr(m, 64), 64 * DM_PAGE, MADV_DONTNEED));
	dm_zero_tags(m, 64, 64);
	TAKE(60, 80);
	EXPECT_EXCLUSIVE(60, 80);
	EXPECT_ALL_RIGHT();
}

/* Of the pages of another device, or its own: they come to RAM first. */
TEST_F(exclusive, taken_from_device_memory)
{
	struct dm_mem *m = &self->m;

	EXPECT_EQ(0, dm_to_dev(&self->dev, m, 0, self->n));
	EXPECT_EQ(0, dm_dev_write(&self->dev, m, 20, 60));
	TAKE(0, self->n);
	EXPECT_EXCLUSIVE(0, self->n);
	EXPECT_ALL_RIGHT();
}

TEST_F(exclusive, fork)
{
	struct dm_mem *m = &self->m;
	pid_t pid;

	TAKE(0, self->n);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		EXPECT_CPU_SEES(m, 0, self->n);
		dm_cpu_write(m, 0, 60);
		EXPECT_CPU_SEES(m, 0, self->n);
		_exit(0);
	}
	EXPECT_EQ(0, dm_wait(pid));
	/* Shared with a child: no more the device's alone. */
	EXPECT_SHARED(0, self->n);
	EXPECT_ALL_RIGHT();
}

TEST_F(exclusive, taken_from_shared_pages)
{
	struct dm_mem *m = &self->m;
	int go[2];
	pid_t pid;

	pid = fork_waiting(go);
	ASSERT_GE(pid, 0);
	if (!pid) {
		EXPECT_CPU_SEES(m, 0, self->n);
		_exit(0);
	}
	TAKE(0, self->n);
	EXPECT_EXCLUSIVE(0, self->n);
	dm_cpu_write(m, 30, 30);
	EXPECT_EQ(0, let_go(go, pid));
	EXPECT_ALL_RIGHT();
}

TEST_F(exclusive, mprotect)
{
	struct dm_mem *m = &self->m;
	unsigned long len = self->n * DM_PAGE;

	TAKE(0, self->n);
	EXPECT_EQ(0, mprotect(m->cpu, len, PROT_READ));
	EXPECT_EQ(-EPERM, dm_dev_write(&self->dev, m, 0, self->n));
	EXPECT_SHARED(0, self->n);
	EXPECT_CPU_SEES(m, 0, self->n);
	EXPECT_EQ(0, mprotect(m->cpu, len, PROT_READ | PROT_WRITE));
	dm_cpu_write(m, 40, 40);
	EXPECT_ALL_RIGHT();
}

TEST_F(exclusive, mremap)
{
	struct dm_mem *m = &self->m;
	unsigned long len = self->n * DM_PAGE;
	void *to = dm_aligned(len, PROT_NONE);

	ASSERT_NE(MAP_FAILED, to);
	TAKE(0, self->n);
	ASSERT_EQ(to, mremap(m->cpu, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
			     to));
	EXPECT_SHARED(0, self->n);
	m->cpu = to;
	dm_cpu_write(m, 0, 30);
	EXPECT_ALL_RIGHT();
}

TEST_F(exclusive, unmapped_in_parts)
{
	struct dm_mem *m = &self->m;

	TAKE(0, self->n);
	EXPECT_EQ(0, madvise(dm_addr(m, 10), 50 * DM_PAGE, MADV_DONTNEED));
	dm_zero_tags(m, 10, 50);
	EXPECT_EQ(0, munmap(dm_addr(m, 100), 20 * DM_PAGE));
	EXPECT_SHARED(10, 50);
	EXPECT_SHARED(100, 20);
	EXPECT_BOTH_SEE(&self->dev, m, 0, 100);
	EXPECT_BOTH_SEE(&self->dev, m, 120, self->n - 120);
}

/* Reclaim, collapse and compaction meet the entries and leave them alone. */
TEST_F(exclusive, reclaim_collapse_compact)
{
	struct dm_mem *m = &self->m;
	unsigned long len = self->n * DM_PAGE;

	TAKE(0, self->n);
	madvise(m->cpu, len, MADV_COLD);
	madvise(m->cpu, len, MADV_PAGEOUT);
	EXPECT_EXCLUSIVE(0, self->n);
	EXPECT_EQ(0, dm_put_file("/proc/sys/vm/compact_memory", "1"));
	EXPECT_EXCLUSIVE(0, self->n);
	madvise(m->cpu, len, MADV_COLLAPSE);
	EXPECT_ALL_RIGHT();
	dm_cpu_write(m, 0, self->n);
	EXPECT_ALL_RIGHT();
}

/* What the device uses where it is cannot move meanwhile. */
TEST_F(exclusive, migrate)
{
	struct dm_mem *m = &self->m;

	TAKE(30, 60);
	dm_to_dev(&self->dev, m, 0, self->n);
	EXPECT_DEVICE_SEES(&self->dev, m, 0, self->n);
	EXPECT_EQ(0, dm_to_sys(&self->dev, m, 0, self->n));
	EXPECT_ALL_RIGHT();
	EXPECT_EQ(0, dm_to_dev(&self->dev, m, 0, self->n));
	EXPECT_ON_DEVICE(&self->dev, m, 0, self->n);
	EXPECT_ALL_RIGHT();
}

TEST_F(exclusive, uffd_wp)
{
	struct dm_mem *m = &self->m;
	int fd = dm_uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);

	ASSERT_GE(fd, 0);
	ASSERT_EQ(0, dm_uffd_register(fd, m, UFFDIO_REGISTER_MODE_WP));
	TAKE(0, self->n);
	ASSERT_EQ(0, dm_uffd_protect(fd, m, 0, self->n, true));
	EXPECT_CPU_SEES(m, 0, self->n);
	EXPECT_EQ(self->n, dm_count_pagemap(m, 0, self->n, DM_PM_UFFD_WP));
	EXPECT_EQ(-EFAULT, dm_dev_write(&self->dev, m, 0, 1));
	ASSERT_EQ(0, dm_uffd_protect(fd, m, 0, self->n, false));
	dm_cpu_write(m, 0, 20);
	EXPECT_ALL_RIGHT();
	close(fd);
}

/* Threads and device take pages from each other all the time. */
struct taker {
	struct dm_mem *m;
	unsigned long *count;
	bool stop;
};

static void *count_up(void *arg)
{
	struct taker *t = arg;
	long i;

	while (!__atomic_load_n(&t->stop, __ATOMIC_RELAXED))
		for (i = 0; i < 20; i++) {
			++*(volatile unsigned long *)dm_addr(t->m, i);
			__atomic_add_fetch(&t->count[i], 1, __ATOMIC_RELAXED);
		}
	return NULL;
}

TEST_F(exclusive, no_write_is_lost)
{
	struct taker t = { .m = &self->m };
	unsigned long count[20] = { };
	long i, wrong = 0, taken = 0;
	pthread_t thread;
	double began;

	for (i = 0; i < 20; i++)
		*(unsigned long *)dm_addr(&self->m, i) = 0;
	t.count = count;
	ASSERT_EQ(0, pthread_create(&thread, NULL, count_up, &t));
	began = dm_now();
	while (dm_race(began, 0, taken >= 30 &&
		       __atomic_load_n(&count[19], __ATOMIC_RELAXED) >= 30)) {
		char buf[DM_PAGE];

		taken += !dm_op(&self->dev, HMM_DMIRROR_EXCLUSIVE,
				dm_addr(&self->m, taken % 20), 1, buf);
	}
	__atomic_store_n(&t.stop, true, __ATOMIC_RELAXED);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	for (i = 0; i < 20; i++)
		wrong += *(unsigned long *)dm_addr(&self->m, i) != count[i];
	EXPECT_EQ(0, wrong);
	EXPECT_LE(30, taken);
	EXPECT_LE(30L, (long)count[19]);
}

/* ==== khugepaged ==== */

#define KHUGEPAGED	"/sys/kernel/mm/transparent_hugepage/khugepaged/"

static long khugepaged_get(const char *name)
{
	char path[120];
	long value = -1;
	FILE *f;

	snprintf(path, sizeof(path), KHUGEPAGED "%s", name);
	f = fopen(path, "r");
	if (!f)
		return -errno;
	if (fscanf(f, "%ld", &value) != 1)
		value = -EIO;
	fclose(f);
	return value;
}

static int khugepaged_put(const char *name, long value)
{
	char path[120], text[24];

	snprintf(path, sizeof(path), KHUGEPAGED "%s", name);
	snprintf(text, sizeof(text), "%ld", value);
	return dm_put_file(path, text);
}

/* Have it look at all memory twice; false if it does not within a minute. */
static bool khugepaged_looks(void)
{
	long first = khugepaged_get("full_scans");
	double began = dm_now();

	while (khugepaged_get("full_scans") < first + 2) {
		if (dm_now() - began > 60)
			return false;
		usleep(20000);
	}
	return true;
}

/* It makes huge pages, but not of what a device has. */
TEST(khugepaged_leaves_device_memory)
{
	long sleep = khugepaged_get("scan_sleep_millisecs");
	long pages = khugepaged_get("pages_to_scan");
	struct dm_mem shared, other;
	struct dm_counts start;
	struct dm_dev d;

	OPEN_DEVICE(&d, DM_PRIVATE0, &start);
	ASSERT_EQ(0, dm_huge(&shared, 1));
	ASSERT_EQ(0, dm_huge(&other, 1));
	EXPECT_EQ(0, dm_to_dev(&d, &shared, 0, 8));
	EXPECT_EQ(0, dm_to_dev(&d, &other, 0, 8));
	EXPECT_EQ(0, dm_to_sys(&d, &other, 0, 8));
	EXPECT_EQ(0, dm_smaps_kb(&other, "AnonHugePages"));
	dm_cpu_write(&shared, 8, shared.pages - 8);
	dm_cpu_write(&other, 0, other.pages);

	EXPECT_EQ(0, dm_set_thp(DM_HUGE_ORDER, "always"));
	/* Only then does it look at this process. */
	EXPECT_EQ(0, madvise(shared.cpu, DM_HUGE, MADV_HUGEPAGE));
	EXPECT_EQ(0, madvise(other.cpu, DM_HUGE, MADV_HUGEPAGE));
	EXPECT_EQ(0, khugepaged_put("pages_to_scan", 1 << 20));
	EXPECT_EQ(0, khugepaged_put("scan_sleep_millisecs", 10));
	EXPECT_TRUE(khugepaged_looks());
	khugepaged_put("scan_sleep_millisecs", sleep);
	khugepaged_put("pages_to_scan", pages);
	dm_set_thp(DM_HUGE_ORDER, "inherit");

	EXPECT_EQ((long)(DM_HUGE >> 10), dm_smaps_kb(&other, "AnonHugePages"));
	EXPECT_EQ(0, dm_smaps_kb(&shared, "AnonHugePages"));
	EXPECT_ON_DEVICE(&d, &shared, 0, 8);
	EXPECT_BOTH_SEE(&d, &shared, 0, shared.pages);
	EXPECT_BOTH_SEE(&d, &other, 0, other.pages);
	dm_free(&shared);
	dm_free(&other);
	EXPECT_BALANCED(DM_PRIVATE0, &start);
	dm_close(&d);
}

TEST_HARNESS_MAIN
