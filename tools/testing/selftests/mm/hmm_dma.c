// SPDX-License-Identifier: GPL-2.0
/*
 * DMA to the memory of a process, seen from the process.
 *
 * /dev/hmm_edu is a device that is there, in QEMU at least, behind an IOMMU: it
 * copies a page to its own memory, and from there to another page, and knows
 * nothing but the addresses that hmm_dma_map_pfn() or hmm_dma_map_range() gave. It
 * can say no more than 28 bits, while the memory is anywhere. A transfer takes a
 * tenth of a second, so tests copy few pages.
 *
 * dmirror is not there, and reads by addresses that are the memory's own.
 *
 * A machine has either an IOMMU ("edu") or a switch with a second device that has
 * memory ("p2p"): -f and -F of the harness say which tests to run.
 */
#include "../kselftest_harness.h"

#include <glob.h>

#include "hmm_dmirror.h"

#define NPAGES		16L
#define EDU_SPAN	(1ULL << 28)

struct edu {
	int fd;
	struct dm_mem *mem;
};

static int edu_ioctl(struct edu *edu, unsigned long op, struct hmm_edu_cmd *cmd)
{
	return ioctl(edu->fd, op, cmd) ? -errno : 0;
}

/* Page 0 of the mirror is page 0 of @m. */
static int edu_mirror(struct edu *edu, struct dm_mem *m)
{
	struct hmm_edu_cmd cmd = {
		.addr = (uintptr_t)m->cpu,
		.npages = m->pages,
	};

	edu->mem = m;
	return edu_ioctl(edu, HMM_EDU_MIRROR, &cmd);
}

static int edu_map(struct edu *edu, long first, long n, uint64_t flags)
{
	struct hmm_edu_cmd cmd = { .from = first, .npages = n, .flags = flags };

	return edu_ioctl(edu, HMM_EDU_MAP, &cmd);
}

#define WRITE		HMM_EDU_MAP_WRITE
#define PIECES		HMM_EDU_MAP_PIECES

/* The device copies a page, and so does the model. */
static int edu_copy(struct edu *edu, long from, long to)
{
	struct hmm_edu_cmd cmd = { .from = from, .to = to };
	int err = edu_ioctl(edu, HMM_EDU_COPY, &cmd);

	if (!err)
		edu->mem->tag[to] = edu->mem->tag[from];
	return err;
}

/* Where the device has a page; 0 and less are an errno. */
static int64_t edu_where(struct edu *edu, long page, uint64_t *phys)
{
	struct hmm_edu_cmd cmd = { .from = page };
	int err = edu_ioctl(edu, HMM_EDU_WHERE, &cmd);

	if (phys)
		*phys = cmd.phys;
	return err ? err : (int64_t)cmd.dma;
}

/* What is behind an address, 0 for nothing. */
static uint64_t edu_behind(struct edu *edu, uint64_t dma)
{
	struct hmm_edu_cmd cmd = { .dma = dma };

	return edu_ioctl(edu, HMM_EDU_TRANSLATE, &cmd) ? ~0ULL : cmd.phys;
}

static uint64_t phys_of(const struct dm_mem *m, long page)
{
	uint64_t entry;

	if (dm_pagemap(dm_addr(m, page), 1, &entry) || !(entry & DM_PM_PRESENT))
		return ~0ULL;
	return (entry & DM_PM_PFN) * DM_PAGE;
}

/* Number of pages that have an address, which leads where the CPU has them. */
static long nr_right(struct edu *edu, struct dm_mem *m, long first, long n)
{
	uint64_t phys;
	long i, right = 0;

	for (i = first; i < first + n; i++) {
		int64_t dma = edu_where(edu, i, &phys);

		right += dma > 0 && dma < (int64_t)EDU_SPAN &&
			 phys == phys_of(m, i) && edu_behind(edu, dma) == phys;
	}
	return right;
}

static long nr_gone(struct edu *edu, long first, long n)
{
	long i, gone = 0;

	for (i = first; i < first + n; i++)
		gone += edu_where(edu, i, NULL) == -ENOENT;
	return gone;
}

/* ---- a device behind an IOMMU ---- */

FIXTURE(edu)
{
	struct edu edu;
};

FIXTURE_SETUP(edu)
{
	self->edu.fd = open("/dev/hmm_edu", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->edu.fd);
}

FIXTURE_TEARDOWN(edu)
{
	close(self->edu.fd);
}

TEST_F(edu, copies_from_page_to_page)
{
	struct edu *edu = &self->edu;
	struct dm_mem m;

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	ASSERT_EQ(0, edu_mirror(edu, &m));
	ASSERT_EQ(0, edu_map(edu, 0, NPAGES, WRITE));
	EXPECT_EQ(NPAGES, nr_right(edu, &m, 0, NPAGES));

	EXPECT_EQ(0, edu_copy(edu, 0, 9));
	EXPECT_EQ(0, edu_copy(edu, NPAGES - 1, 0));
	EXPECT_EQ(0, edu_copy(edu, 9, NPAGES - 1));
	EXPECT_EQ(DM_ALL_RIGHT, dm_cpu_wrong(&m, 0, NPAGES));
	dm_free(&m);
}

/* The CPU writes on, and the device reads it: there is one copy of a page. */
TEST_F(edu, sees_what_the_cpu_writes_later)
{
	struct edu *edu = &self->edu;
	struct dm_mem m;

	ASSERT_EQ(0, dm_small(&m, 2));
	ASSERT_EQ(0, edu_mirror(edu, &m));
	ASSERT_EQ(0, edu_map(edu, 0, 2, WRITE));
	dm_cpu_write(&m, 0, 1);
	EXPECT_EQ(0, edu_copy(edu, 0, 1));
	EXPECT_EQ(DM_ALL_RIGHT, dm_cpu_wrong(&m, 0, 2));
	dm_free(&m);
}

/* Some of the memory is where the device could not say. */
TEST_F(edu, reaches_memory_beyond_its_addresses)
{
	struct edu *edu = &self->edu;
	struct dm_mem m;
	long i, beyond = 0;

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	ASSERT_EQ(0, edu_mirror(edu, &m));
	ASSERT_EQ(0, edu_map(edu, 0, NPAGES, WRITE));
	for (i = 0; i < NPAGES; i++)
		beyond += phys_of(&m, i) >= EDU_SPAN;
	EXPECT_LT(0, beyond);
	EXPECT_EQ(NPAGES, nr_right(edu, &m, 0, NPAGES));
	dm_free(&m);
}

TEST_F(edu, page_keeps_its_address)
{
	struct edu *edu = &self->edu;
	int64_t dma[NPAGES];
	struct dm_mem m;
	long i;

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	ASSERT_EQ(0, edu_mirror(edu, &m));
	ASSERT_EQ(0, edu_map(edu, 0, NPAGES, 0));
	for (i = 0; i < NPAGES; i++)
		dma[i] = edu_where(edu, i, NULL);

	/* Asked for again: singly, as a range, and for more. */
	ASSERT_EQ(0, edu_map(edu, 3, 1, 0));
	ASSERT_EQ(0, edu_map(edu, 0, NPAGES, PIECES));
	ASSERT_EQ(0, edu_map(edu, 0, NPAGES, WRITE));
	for (i = 0; i < NPAGES; i++)
		EXPECT_EQ(dma[i], edu_where(edu, i, NULL));
	dm_free(&m);
}

TEST_F(edu, page_that_goes_takes_its_address_along)
{
	struct edu *edu = &self->edu;
	struct dm_mem m;
	int64_t dma;

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	ASSERT_EQ(0, edu_mirror(edu, &m));
	ASSERT_EQ(0, edu_map(edu, 0, NPAGES, WRITE));
	dma = edu_where(edu, 5, NULL);
	EXPECT_EQ(phys_of(&m, 5), edu_behind(edu, dma));

	ASSERT_EQ(0, madvise(dm_addr(&m, 5), DM_PAGE, MADV_DONTNEED));
	dm_zero_tags(&m, 5, 1);
	EXPECT_EQ(-ENOENT, edu_where(edu, 5, NULL));
	EXPECT_EQ(0, edu_behind(edu, dma));
	EXPECT_EQ(-ENOENT, edu_copy(edu, 5, 6));
	EXPECT_EQ(-ENOENT, edu_copy(edu, 6, 5));
	EXPECT_EQ(1, nr_gone(edu, 0, NPAGES));
	EXPECT_EQ(NPAGES - 1, nr_right(edu, &m, 0, 5) + nr_right(edu, &m, 6, NPAGES - 6));

	ASSERT_EQ(0, edu_map(edu, 5, 1, WRITE));
	EXPECT_EQ(0, edu_copy(edu, 5, 6));
	EXPECT_EQ(DM_ALL_RIGHT, dm_cpu_wrong(&m, 0, NPAGES));

	/* The whole mapping goes, and the file stays. */
	ASSERT_EQ(0, munmap(m.cpu, NPAGES * DM_PAGE));
	EXPECT_EQ(NPAGES, nr_gone(edu, 0, NPAGES));
	EXPECT_EQ(-EFAULT, edu_map(edu, 0, 1, 0));
	m.cpu = NULL;
	dm_free(&m);
}

/* After fork() a write of the parent's brings another page. */
TEST_F(edu, follows_cow)
{
	struct edu *edu = &self->edu;
	struct dm_mem m;
	pid_t pid;

	ASSERT_EQ(0, dm_small(&m, 2));
	ASSERT_EQ(0, edu_mirror(edu, &m));
	ASSERT_EQ(0, edu_map(edu, 0, 2, WRITE));

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		pause();
		_exit(0);
	}
	dm_cpu_write(&m, 0, 1);
	EXPECT_EQ(-ENOENT, edu_copy(edu, 0, 1));
	ASSERT_EQ(0, edu_map(edu, 0, 2, WRITE));
	EXPECT_EQ(2, nr_right(edu, &m, 0, 2));
	EXPECT_EQ(0, edu_copy(edu, 0, 1));
	EXPECT_EQ(DM_ALL_RIGHT, dm_cpu_wrong(&m, 0, 2));
	kill(pid, SIGKILL);
	dm_wait(pid);
	dm_free(&m);
}

TEST_F(edu, does_not_write_what_is_read_only)
{
	struct edu *edu = &self->edu;
	struct dm_mem m;

	ASSERT_EQ(0, dm_hole(&m, 2));
	ASSERT_EQ(0, edu_mirror(edu, &m));
	ASSERT_EQ(0, edu_map(edu, 0, 2, 0));
	EXPECT_EQ(-EPERM, edu_copy(edu, 0, 1));
	EXPECT_EQ(DM_ALL_RIGHT, dm_cpu_wrong(&m, 0, 2));
	dm_free(&m);
}

TEST_F(edu, huge_page_is_one_piece)
{
	struct edu *edu = &self->edu;
	struct dm_mem m;
	int64_t dma;
	long i;

	ASSERT_EQ(0, dm_huge(&m, 1));
	ASSERT_EQ(0, edu_mirror(edu, &m));
	ASSERT_EQ(0, edu_map(edu, 0, DM_PER_HUGE, WRITE | PIECES));
	EXPECT_EQ(DM_PER_HUGE, nr_right(edu, &m, 0, DM_PER_HUGE));
	dma = edu_where(edu, 0, NULL);
	for (i = 0; i < DM_PER_HUGE; i++)
		if (edu_where(edu, i, NULL) != dma + i * (long)DM_PAGE)
			break;
	EXPECT_EQ(DM_PER_HUGE, i);
	EXPECT_EQ(0, edu_copy(edu, DM_PER_HUGE - 1, 1));
	EXPECT_EQ(DM_ALL_RIGHT, dm_cpu_wrong(&m, 0, DM_PER_HUGE));

	/* One page goes, and the piece with it. The rest comes back alone. */
	ASSERT_EQ(0, madvise(dm_addr(&m, 100), DM_PAGE, MADV_DONTNEED));
	dm_zero_tags(&m, 100, 1);
	EXPECT_EQ(DM_PER_HUGE, nr_gone(edu, 0, DM_PER_HUGE));
	EXPECT_EQ(0, edu_behind(edu, dma));
	EXPECT_EQ(0, edu_behind(edu, dma + DM_HUGE - DM_PAGE));
	ASSERT_EQ(0, edu_map(edu, 0, DM_PER_HUGE, WRITE | PIECES));
	EXPECT_EQ(DM_PER_HUGE, nr_right(edu, &m, 0, DM_PER_HUGE));
	EXPECT_EQ(0, edu_copy(edu, 99, 100));
	EXPECT_EQ(DM_ALL_RIGHT, dm_cpu_wrong(&m, 0, DM_PER_HUGE));
	dm_free(&m);
}

/* All addresses that the device has, and one page more than they are enough for. */
TEST_F(edu, runs_out_of_addresses)
{
	struct edu *edu = &self->edu;
	long all = EDU_SPAN / DM_PAGE;
	struct dm_mem m;

	ASSERT_EQ(0, dm_hole(&m, all));
	ASSERT_EQ(0, edu_mirror(edu, &m));
	ASSERT_EQ(0, edu_map(edu, 7, 1, WRITE));
	EXPECT_EQ(-ENOMEM, edu_map(edu, 0, all, WRITE | PIECES));
	/* It took back what it had mapped, and not what was mapped before. */
	EXPECT_EQ(all - 1, nr_gone(edu, 0, all));
	EXPECT_EQ(1, nr_right(edu, &m, 7, 1));
	EXPECT_EQ(0, edu_map(edu, 0, NPAGES, WRITE | PIECES));
	EXPECT_EQ(NPAGES, nr_right(edu, &m, 0, NPAGES));
	dm_free(&m);
}

TEST_F(edu, bad_input)
{
	struct edu *edu = &self->edu;
	struct hmm_edu_cmd cmd = { .npages = 1 };
	struct dm_mem m;

	ASSERT_EQ(0, dm_small(&m, 2));
	EXPECT_EQ(-EINVAL, edu_map(edu, 0, 1, 0));
	EXPECT_EQ(-EINVAL, edu_ioctl(edu, HMM_EDU_IOC(5), &cmd));
	EXPECT_EQ(-EINVAL, edu_ioctl(edu, HMM_EDU_IOC(-1), &cmd));
	cmd.addr = (uintptr_t)m.cpu + 1;
	EXPECT_EQ(-EINVAL, edu_ioctl(edu, HMM_EDU_MIRROR, &cmd));
	cmd.addr = -2 * DM_PAGE;
	cmd.npages = 3;
	EXPECT_EQ(-EINVAL, edu_ioctl(edu, HMM_EDU_MIRROR, &cmd));
	cmd.npages = ~0ULL;
	EXPECT_EQ(-E2BIG, edu_ioctl(edu, HMM_EDU_MIRROR, &cmd));
	cmd.npages = 0;
	EXPECT_EQ(-EINVAL, edu_ioctl(edu, HMM_EDU_MIRROR, &cmd));

	ASSERT_EQ(0, edu_mirror(edu, &m));
	EXPECT_EQ(-EBUSY, edu_mirror(edu, &m));
	EXPECT_EQ(-EINVAL, edu_map(edu, 1, 2, 0));
	EXPECT_EQ(-EINVAL, edu_map(edu, 2, 1, 0));
	EXPECT_EQ(-EINVAL, edu_map(edu, 0, 0, 0));
	EXPECT_EQ(-EINVAL, edu_map(edu, 0, -1, 0));
	EXPECT_EQ(-EINVAL, edu_map(edu, 0, 1, 4));
	EXPECT_EQ(-EINVAL, edu_copy(edu, 0, 2));
	EXPECT_EQ(-ENOENT, edu_copy(edu, 0, 1));
	ASSERT_EQ(0, mprotect(m.cpu, DM_PAGE, PROT_NONE));
	EXPECT_EQ(-EFAULT, edu_map(edu, 0, 1, 0));
	ASSERT_EQ(0, mprotect(m.cpu, DM_PAGE, PROT_READ));
	EXPECT_EQ(-EPERM, edu_map(edu, 0, 2, WRITE));
	EXPECT_EQ(2, nr_gone(edu, 0, 2));
	dm_free(&m);
}

/* ---- a device without ---- */

FIXTURE(dmirror)
{
	struct dm_dev dev;
	struct dm_dev other;
};

FIXTURE_VARIANT(dmirror)
{
	int unit;
	int other;
	/* Where pages are that the device had, once they were read by DMA */
	enum dm_place after;
};

FIXTURE_VARIANT_ADD(dmirror, private)
{
	.unit = DM_PRIVATE0,
	.other = DM_PRIVATE1,
	.after = AT_RAM,
};

FIXTURE_VARIANT_ADD(dmirror, coherent)
{
	.unit = DM_COHERENT0,
	.other = DM_PRIVATE1,
	.after = AT_DEVICE,
};

FIXTURE_SETUP(dmirror)
{
	ASSERT_EQ(0, dm_open(&self->dev, variant->unit));
	ASSERT_EQ(0, dm_open(&self->other, variant->other));
}

FIXTURE_TEARDOWN(dmirror)
{
	dm_close(&self->other);
	dm_close(&self->dev);
}

/* Read by DMA, compare, and tell in how many pieces it was. */
static long dma_pieces(const struct dm_dev *d, const struct dm_mem *m,
		       long first, long n)
{
	struct hmm_dmirror_cmd cmd = {
		.addr = (uintptr_t)dm_addr(m, first),
		.npages = n,
	};
	unsigned char *copy = calloc(n, DM_PAGE);
	long ret;

	cmd.ptr = (uintptr_t)copy;
	ret = dm_ioctl(d, HMM_DMIRROR_DMA_READ, &cmd);
	if (!ret && cmd.cpages != (uint64_t)n)
		ret = -EIO;
	if (!ret && dm_copy_wrong(m, first, n, copy) != DM_ALL_RIGHT)
		ret = -EBADMSG;
	free(copy);
	return ret ? ret : (long)cmd.faults;
}

TEST_F(dmirror, reads_by_dma)
{
	struct dm_mem m;

	/* More than fits into one go. */
	ASSERT_EQ(0, dm_small(&m, 1100));
	EXPECT_EQ(1100, dma_pieces(&self->dev, &m, 0, 1100));
	EXPECT_EQ(1, dma_pieces(&self->dev, &m, 1099, 1));
	dm_free(&m);
}

TEST_F(dmirror, large_folios_are_one_piece)
{
	struct dm_mem m;

	ASSERT_EQ(0, dm_folios(&m, 4, 8));
	EXPECT_EQ(8, dma_pieces(&self->dev, &m, 0, 128));
	EXPECT_EQ(3, dma_pieces(&self->dev, &m, 15, 18));
	dm_free(&m);

	ASSERT_EQ(0, dm_huge(&m, 3));
	EXPECT_EQ(3, dma_pieces(&self->dev, &m, 0, 3 * DM_PER_HUGE));
	dm_free(&m);
}

TEST_F(dmirror, holes_read_as_zeroes)
{
	struct dm_mem m;

	ASSERT_EQ(0, dm_hole(&m, NPAGES));
	EXPECT_EQ(NPAGES, dma_pieces(&self->dev, &m, 0, NPAGES));
	dm_free(&m);
}

TEST_F(dmirror, private_memory_comes_to_ram)
{
	struct dm_mem m;

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	ASSERT_EQ(0, dm_to_dev(&self->dev, &m, 0, NPAGES / 2));
	ASSERT_EQ(0, dm_to_dev(&self->other, &m, NPAGES / 2, NPAGES / 2));
	EXPECT_EQ(NPAGES, dma_pieces(&self->dev, &m, 0, NPAGES));
	EXPECT_AT(&self->dev, &m, 0, NPAGES / 2, variant->after);
	EXPECT_AT(&self->dev, &m, NPAGES / 2, NPAGES / 2, AT_RAM);
	dm_free(&m);
}

TEST_F(dmirror, bad_input)
{
	struct dm_mem m;

	ASSERT_EQ(0, dm_small(&m, NPAGES));
	EXPECT_EQ(-EINVAL, dm_op(&self->dev, HMM_DMIRROR_DMA_READ, m.cpu, 0, NULL));
	EXPECT_EQ(-EINVAL, dm_op(&self->dev, HMM_DMIRROR_DMA_READ, m.cpu + 1, 1, NULL));
	EXPECT_EQ(-E2BIG, dm_op(&self->dev, HMM_DMIRROR_DMA_READ, m.cpu, 1UL << 34, NULL));
	EXPECT_EQ(-EFAULT, dm_op(&self->dev, HMM_DMIRROR_DMA_READ, m.cpu, 1, NULL));
	ASSERT_EQ(0, munmap(dm_addr(&m, 4), DM_PAGE));
	EXPECT_EQ(-EFAULT, dma_pieces(&self->dev, &m, 0, NPAGES));
	EXPECT_EQ(4, dma_pieces(&self->dev, &m, 0, 4));
	EXPECT_EQ(-EINVAL, dm_op(&self->dev, HMM_DMIRROR_IOC(0x1f), m.cpu, 1, NULL));
	EXPECT_EQ(-EINVAL, dm_op(&self->dev, HMM_DMIRROR_IOC(0x22), m.cpu, 1, NULL));
	dm_free(&m);
}

/* ---- a device beside a device ---- */

/* Both devices are NVMe ones that have memory; "near" is behind the same switch. */
static int p2p_device(const char *serial, char *path, size_t size)
{
	glob_t names;
	size_t i;
	int err = -ENODEV;

	if (glob("/sys/class/nvme/*/serial", 0, NULL, &names))
		return err;
	for (i = 0; i < names.gl_pathc && err; i++) {
		char text[40] = "";
		int fd = open(names.gl_pathv[i], O_RDONLY | O_CLOEXEC);

		if (fd >= 0 && read(fd, text, sizeof(text) - 1) > 0 &&
		    !strncmp(text, serial, strlen(serial))) {
			snprintf(path, size, "%.*s/device",
				 (int)(strrchr(names.gl_pathv[i], '/') - names.gl_pathv[i]),
				 names.gl_pathv[i]);
			err = 0;
		}
		close(fd);
	}
	globfree(&names);
	return err;
}

/* Some pages of the memory in place of what is at page @first of @m. */
static int p2p_map(struct dm_mem *m, const char *serial, long first, long n)
{
	char path[PATH_MAX], file[PATH_MAX + 20];
	void *addr;
	int fd, err;

	err = p2p_device(serial, path, sizeof(path));
	if (err)
		return err;
	snprintf(file, sizeof(file), "%s/p2pmem/allocate", path);
	fd = open(file, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	addr = mmap(dm_addr(m, first), n * DM_PAGE, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_FIXED, fd, 0);
	err = addr == MAP_FAILED ? -errno : 0;
	close(fd);
	if (!err)
		dm_cpu_write(m, first, n);
	return err;
}

/* The device that has the memory loses or gets its driver. */
static int p2p_driver(const char *action, const char *pci)
{
	char file[80];

	snprintf(file, sizeof(file), "/sys/bus/pci/drivers/nvme/%s", action);
	return dm_put_file(file, pci);
}

/* Number of pages at whose place on the bus the device has them. */
static long nr_direct(struct edu *edu, struct dm_mem *m, long first, long n)
{
	uint64_t phys;
	long i, direct = 0;

	for (i = first; i < first + n; i++)
		direct += edu_where(edu, i, &phys) == (int64_t)phys_of(m, i) &&
			  phys == phys_of(m, i);
	return direct;
}

#define P2P_FIRST	8L
#define P2P_NR		4L

FIXTURE(p2p)
{
	struct edu edu;
	struct dm_mem m;
};

FIXTURE_SETUP(p2p)
{
	self->edu.fd = open("/dev/hmm_edu", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->edu.fd);
	ASSERT_EQ(0, dm_small(&self->m, NPAGES));
	ASSERT_EQ(0, edu_mirror(&self->edu, &self->m));
}

FIXTURE_TEARDOWN(p2p)
{
	close(self->edu.fd);
	dm_free(&self->m);
}

TEST_F(p2p, near_memory_has_its_own_address)
{
	struct edu *edu = &self->edu;
	struct dm_mem *m = &self->m;

	ASSERT_EQ(0, p2p_map(m, "near", P2P_FIRST, P2P_NR));
	ASSERT_EQ(0, edu_map(edu, 0, NPAGES, WRITE | PIECES));
	EXPECT_EQ(NPAGES, nr_direct(edu, m, 0, NPAGES));

	/* From memory to the device's, within that, and back. */
	EXPECT_EQ(0, edu_copy(edu, 0, P2P_FIRST));
	EXPECT_EQ(0, edu_copy(edu, P2P_FIRST, P2P_FIRST + 1));
	EXPECT_EQ(0, edu_copy(edu, P2P_FIRST + 1, 3));
	EXPECT_EQ(DM_ALL_RIGHT, dm_cpu_wrong(m, 0, NPAGES));

	/* Page by page it is the same. */
	ASSERT_EQ(0, munmap(dm_addr(m, P2P_FIRST), P2P_NR * DM_PAGE));
	EXPECT_EQ(P2P_NR, nr_gone(edu, 0, NPAGES));
	ASSERT_EQ(0, p2p_map(m, "near", P2P_FIRST, P2P_NR));
	ASSERT_EQ(0, edu_map(edu, P2P_FIRST, P2P_NR, WRITE));
	EXPECT_EQ(P2P_NR, nr_direct(edu, m, P2P_FIRST, P2P_NR));
	EXPECT_EQ(0, edu_copy(edu, P2P_FIRST + 3, P2P_FIRST));
	EXPECT_EQ(DM_ALL_RIGHT, dm_cpu_wrong(m, 0, NPAGES));
}

/* No switch that both are behind, and nobody vouches for the host bridge. */
TEST_F(p2p, far_memory_is_refused)
{
	struct edu *edu = &self->edu;
	struct dm_mem *m = &self->m;

	ASSERT_EQ(0, p2p_map(m, "far", P2P_FIRST, P2P_NR));
	ASSERT_EQ(0, edu_map(edu, 0, 1, WRITE));
	EXPECT_EQ(-EREMOTEIO, edu_map(edu, 0, NPAGES, WRITE | PIECES));
	EXPECT_EQ(-EIO, edu_map(edu, P2P_FIRST, 1, WRITE));
	EXPECT_EQ(NPAGES - 1, nr_gone(edu, 0, NPAGES));
	EXPECT_EQ(1, nr_direct(edu, m, 0, 1));
	ASSERT_EQ(0, edu_map(edu, 0, P2P_FIRST, WRITE | PIECES));
	EXPECT_EQ(P2P_FIRST, nr_direct(edu, m, 0, NPAGES));
	EXPECT_EQ(DM_ALL_RIGHT, dm_cpu_wrong(m, 0, NPAGES));
}

TEST_F(p2p, memory_goes_with_its_driver)
{
	struct edu *edu = &self->edu;
	struct dm_mem *m = &self->m;
	char path[PATH_MAX], pci[PATH_MAX], *name;
	int tries;

	ASSERT_EQ(0, p2p_device("near", path, sizeof(path)));
	ASSERT_NE(NULL, realpath(path, pci));
	name = strrchr(pci, '/') + 1;
	ASSERT_EQ(0, p2p_map(m, "near", P2P_FIRST, P2P_NR));
	ASSERT_EQ(0, edu_map(edu, 0, NPAGES, WRITE | PIECES));

	ASSERT_EQ(0, p2p_driver("unbind", name));
	EXPECT_EQ(P2P_NR, nr_gone(edu, 0, NPAGES));
	EXPECT_EQ(-ENOENT, edu_copy(edu, P2P_FIRST, 0));
	EXPECT_EQ(-EFAULT, edu_map(edu, P2P_FIRST, 1, 0));
	EXPECT_EQ(NPAGES - P2P_NR, nr_direct(edu, m, 0, NPAGES));

	ASSERT_EQ(0, p2p_driver("bind", name));
	for (tries = 0; tries < 100 && p2p_device("near", path, sizeof(path)); tries++)
		usleep(100000);
	ASSERT_EQ(0, p2p_map(m, "near", P2P_FIRST, P2P_NR));
	ASSERT_EQ(0, edu_map(edu, P2P_FIRST, P2P_NR, WRITE));
	EXPECT_EQ(0, edu_copy(edu, P2P_FIRST, 0));
	EXPECT_EQ(DM_ALL_RIGHT, dm_cpu_wrong(m, 0, NPAGES));
}

/* A device that is not on the bus sees it as memory, and has no address for it. */
TEST_F(p2p, other_devices)
{
	struct dm_mem *m = &self->m;
	struct dm_dev dev;

	ASSERT_EQ(0, dm_open(&dev, DM_PRIVATE0));
	ASSERT_EQ(0, p2p_map(m, "near", P2P_FIRST, P2P_NR));
	EXPECT_BOTH_SEE(&dev, m, 0, NPAGES);
	EXPECT_IN_RAM(&dev, m, 0, NPAGES);
	ASSERT_EQ(0, dm_dev_write(&dev, m, P2P_FIRST, P2P_NR));
	EXPECT_BOTH_SEE(&dev, m, 0, NPAGES);
	EXPECT_EQ(P2P_FIRST, dma_pieces(&dev, m, 0, P2P_FIRST));
	EXPECT_EQ(-EREMOTEIO, dma_pieces(&dev, m, P2P_FIRST - 1, 2));

	/* It is the other device's, and stays there. */
	EXPECT_EQ(-EINVAL, dm_push(&dev, m, P2P_FIRST, P2P_NR));
	EXPECT_BOTH_SEE(&dev, m, 0, NPAGES);
	dm_close(&dev);
}

TEST_HARNESS_MAIN
