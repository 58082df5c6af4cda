// SPDX-License-Identifier: GPL-2.0
/*
 * The mirror of memory that is a file, or a device: no page cache, no struct page
 * but the one of a ZONE_DEVICE, and a file system that takes blocks away.
 *
 * Wants what "pmem up" makes: two file systems, mounted with dax=always, and a
 * character device that has its struct pages in itself.
 */
#include "../kselftest_harness.h"

#include <glob.h>
#include <linux/falloc.h>
#include <mntent.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "hmm_dmirror.h"

#define NPAGES		16L
#define NHUGE		(2 * DM_PER_HUGE)

/* A driver lets go of a device, or takes it. */
static int put_name(const char *path, const char *name)
{
	int err = dm_put_file(path, name);

	if (err)
		fprintf(stderr, "# %s: %s\n", path, strerror(-err));
	return err;
}

/* Number of the disk that is mounted there. */
static int disk_of(const char *dir)
{
	FILE *f = setmntent("/proc/mounts", "r");
	struct mntent *entry;
	int disk = -1;

	while (f && (entry = getmntent(f)))
		if (!strcmp(entry->mnt_dir, dir))
			sscanf(entry->mnt_fsname, "/dev/pmem%d", &disk);
	if (f)
		endmntent(f);
	return disk;
}

/* ---- files ---- */

FIXTURE(file)
{
	struct dm_dev dev;
	char path[40];
	int fd;
	struct dm_mem m;
};

FIXTURE_VARIANT(file)
{
	const char *type;
	const char *dir;
};

FIXTURE_VARIANT_ADD(file, ext4)
{
	.type = "ext4",
	.dir = "/mnt/ext4",
};

FIXTURE_VARIANT_ADD(file, xfs)
{
	.type = "xfs",
	.dir = "/mnt/xfs",
};

FIXTURE_SETUP(file)
{
	ASSERT_EQ(0, dm_open(&self->dev, DM_PRIVATE0));
	snprintf(self->path, sizeof(self->path), "%s/file", variant->dir);
	self->fd = open(self->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(file)
{
	dm_free(&self->m);
	close(self->fd);
	unlink(self->path);
	dm_close(&self->dev);
}

/* Blocks for all of it, content, and a mapping. */
static int fill_file(struct dm_mem *m, int fd, long pages, int flags)
{
	int err;

	if (fallocate(fd, 0, 0, pages * DM_PAGE))
		return -errno;
	err = dm_map_file(m, fd, pages, flags);
	return err ? err : dm_write_file(m, fd);
}

static long file_wrong(const struct dm_mem *m, int fd)
{
	return dm_file_wrong(fd, m->tag, m->pages);
}

TEST_F(file, device_sees_the_file)
{
	struct dm_mem *m = &self->m;

	ASSERT_EQ(0, fill_file(m, self->fd, NPAGES, MAP_SHARED));
	EXPECT_BOTH_SEE(&self->dev, m, 0, NPAGES);
	EXPECT_IN_RAM(&self->dev, m, 0, NPAGES);

	/* There is one copy: what write() brings is there without a fault. */
	dm_retag(m, 3, 1);
	dm_paint(dm_addr(m, 3), m->tag[3]);
	EXPECT_BOTH_SEE(&self->dev, m, 0, NPAGES);
	EXPECT_EQ(DM_ALL_RIGHT, file_wrong(m, self->fd));
}

TEST_F(file, device_writes_the_file)
{
	struct dm_mem *m = &self->m;

	ASSERT_EQ(0, fill_file(m, self->fd, NPAGES, MAP_SHARED));
	ASSERT_EQ(0, dm_dev_write(&self->dev, m, 2, 5));
	EXPECT_EQ(DM_ALL_RIGHT, file_wrong(m, self->fd));
	EXPECT_CPU_SEES(m, 0, NPAGES);
	EXPECT_EQ(5, dm_count_perm(&self->dev, m, 0, NPAGES, HMM_DMIRROR_PROT_WRITE));
}

/* To a block that nobody has, too: the file system is asked for it. */
TEST_F(file, device_writes_a_hole)
{
	struct dm_mem *m = &self->m;
	struct stat before, after;

	ASSERT_EQ(0, ftruncate(self->fd, NPAGES * DM_PAGE));
	ASSERT_EQ(0, dm_map_file(m, self->fd, NPAGES, MAP_SHARED));
	EXPECT_DEVICE_SEES(&self->dev, m, 0, NPAGES);
	EXPECT_AT(&self->dev, m, 0, NPAGES, AT_ZERO);
	EXPECT_EQ(0, dm_count_perm(&self->dev, m, 0, NPAGES, HMM_DMIRROR_PROT_WRITE));
	ASSERT_EQ(0, fstat(self->fd, &before));

	ASSERT_EQ(0, dm_dev_write(&self->dev, m, 7, 1));
	ASSERT_EQ(0, fstat(self->fd, &after));
	EXPECT_LT(before.st_blocks, after.st_blocks);
	EXPECT_IN_RAM(&self->dev, m, 7, 1);
	EXPECT_AT(&self->dev, m, 8, NPAGES - 8, AT_ZERO);
	EXPECT_BOTH_SEE(&self->dev, m, 0, NPAGES);
	EXPECT_EQ(DM_ALL_RIGHT, file_wrong(m, self->fd));
}

TEST_F(file, huge_extent_is_one_piece)
{
	struct dm_mem *m = &self->m;

	ASSERT_EQ(0, fill_file(m, self->fd, NHUGE, MAP_SHARED));
	EXPECT_DEVICE_SEES(&self->dev, m, 0, NHUGE);
	EXPECT_EQ(NHUGE, dm_count_perm(&self->dev, m, 0, NHUGE,
				       HMM_DMIRROR_PROT_READ | HMM_DMIRROR_PROT_PMD));
	/* From the middle of one to the middle of the other. */
	EXPECT_EQ(DM_PER_HUGE, dm_count_perm(&self->dev, m, 100, DM_PER_HUGE,
					     HMM_DMIRROR_PROT_PMD));
	ASSERT_EQ(0, dm_dev_write(&self->dev, m, 0, NHUGE));
	EXPECT_EQ(NHUGE, dm_count_perm(&self->dev, m, 0, NHUGE,
				       HMM_DMIRROR_PROT_WRITE | HMM_DMIRROR_PROT_PMD));
	EXPECT_EQ(DM_ALL_RIGHT, file_wrong(m, self->fd));

	/* One block goes, and only its half of the file is mapped page by page. */
	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       100 * DM_PAGE, DM_PAGE));
	dm_zero_tags(m, 100, 1);
	EXPECT_BOTH_SEE(&self->dev, m, 0, NHUGE);
	EXPECT_EQ(0, dm_count_perm(&self->dev, m, 0, DM_PER_HUGE, HMM_DMIRROR_PROT_PMD));
	EXPECT_EQ(DM_PER_HUGE, dm_count_perm(&self->dev, m, DM_PER_HUGE, DM_PER_HUGE,
					     HMM_DMIRROR_PROT_PMD));
}

TEST_F(file, truncate_takes_pages_from_the_device)
{
	struct dm_mem *m = &self->m;
	long half = NPAGES / 2;

	ASSERT_EQ(0, fill_file(m, self->fd, NPAGES, MAP_SHARED));
	EXPECT_DEVICE_SEES(&self->dev, m, 0, NPAGES);
	ASSERT_EQ(0, ftruncate(self->fd, half * DM_PAGE));
	EXPECT_AT(&self->dev, m, half, half, AT_NOWHERE);
	EXPECT_EQ(-1000 - EFAULT, dm_dev_wrong(&self->dev, m, half, 1));
	EXPECT_DEVICE_SEES(&self->dev, m, 0, half);

	/* What comes back is not what was there. */
	ASSERT_EQ(0, ftruncate(self->fd, NPAGES * DM_PAGE));
	dm_zero_tags(m, half, half);
	EXPECT_BOTH_SEE(&self->dev, m, 0, NPAGES);
}

TEST_F(file, hole_takes_pages_from_the_device)
{
	struct dm_mem *m = &self->m;

	ASSERT_EQ(0, fill_file(m, self->fd, NPAGES, MAP_SHARED));
	ASSERT_EQ(0, dm_dev_write(&self->dev, m, 0, NPAGES));
	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       4 * DM_PAGE, 4 * DM_PAGE));
	EXPECT_AT(&self->dev, m, 4, 4, AT_NOWHERE);
	dm_zero_tags(m, 4, 4);
	EXPECT_BOTH_SEE(&self->dev, m, 0, NPAGES);
	ASSERT_EQ(0, dm_dev_write(&self->dev, m, 5, 1));
	EXPECT_EQ(DM_ALL_RIGHT, file_wrong(m, self->fd));
}

/* A block is not given to another file while somebody has a page of it. */
TEST_F(file, truncate_waits_for_who_has_a_page)
{
	struct dm_mem *m = &self->m;
	unsigned char page[DM_PAGE];
	struct iovec iov;
	int pipes[2], status;
	pid_t pid;

	ASSERT_EQ(0, fill_file(m, self->fd, NPAGES, MAP_SHARED));
	EXPECT_DEVICE_SEES(&self->dev, m, 0, NPAGES);
	ASSERT_EQ(0, pipe(pipes));
	iov = (struct iovec){ dm_addr(m, 2), DM_PAGE };
	ASSERT_EQ((ssize_t)DM_PAGE, vmsplice(pipes[1], &iov, 1, 0));

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(ftruncate(self->fd, 0) ? 1 : 0);
	usleep(300000);
	EXPECT_EQ(0, waitpid(pid, &status, WNOHANG));
	/* Who does not hold pages is not waited for, and is told first. */
	EXPECT_AT(&self->dev, m, 0, NPAGES, AT_NOWHERE);

	ASSERT_EQ((ssize_t)DM_PAGE, read(pipes[0], page, DM_PAGE));
	EXPECT_TRUE(dm_page_is(page, m->tag[2]));
	EXPECT_EQ(0, dm_wait(pid));
	EXPECT_EQ(-1000 - EFAULT, dm_dev_wrong(&self->dev, m, 2, 1));
	close(pipes[0]);
	close(pipes[1]);
}

TEST_F(file, private_mapping_is_copied)
{
	struct dm_mem *m = &self->m;
	struct dm_mem file = { };

	ASSERT_EQ(0, fill_file(&file, self->fd, NPAGES, MAP_SHARED));
	ASSERT_EQ(0, dm_map_file(m, self->fd, NPAGES, MAP_PRIVATE));
	memcpy(m->tag, file.tag, NPAGES * sizeof(*m->tag));
	EXPECT_DEVICE_SEES(&self->dev, m, 0, NPAGES);
	ASSERT_EQ(0, dm_dev_write(&self->dev, m, 0, 4));
	EXPECT_EQ(DM_ALL_RIGHT, file_wrong(&file, self->fd));
	EXPECT_BOTH_SEE(&self->dev, m, 0, NPAGES);

	/* Nothing of such a mapping goes to a device, and a copy is not told apart. */
	EXPECT_EQ(-EINVAL, dm_push(&self->dev, m, 0, 4));
	EXPECT_IN_RAM(&self->dev, m, 0, NPAGES);
	EXPECT_BOTH_SEE(&self->dev, m, 0, NPAGES);
	EXPECT_EQ(DM_ALL_RIGHT, file_wrong(&file, self->fd));
	dm_free(&file);
}

/* The file system knows where it is, and would not find it elsewhere. */
TEST_F(file, file_stays_where_it_is)
{
	struct dm_mem *m = &self->m;

	ASSERT_EQ(0, fill_file(m, self->fd, NPAGES, MAP_SHARED));
	EXPECT_DEVICE_SEES(&self->dev, m, 0, NPAGES);
	EXPECT_EQ(-EINVAL, dm_push(&self->dev, m, 0, NPAGES));
	EXPECT_IN_RAM(&self->dev, m, 0, NPAGES);
	EXPECT_BOTH_SEE(&self->dev, m, 0, NPAGES);
	EXPECT_NE(0, dm_exclusive(&self->dev, m, 0, 1));
	EXPECT_EQ(0, dm_check_exclusive(&self->dev, m, 0, NPAGES));
	EXPECT_BOTH_SEE(&self->dev, m, 0, NPAGES);
}

/* What the device wrote is on the medium, whoever looks later. */
TEST_F(file, outlives_remount_and_driver)
{
	struct dm_mem *m = &self->m;
	char disk[32], namespace[32];
	int n = disk_of(variant->dir);

	ASSERT_LE(0, n);
	snprintf(disk, sizeof(disk), "/dev/pmem%d", n);
	snprintf(namespace, sizeof(namespace), "namespace%d.0", n);
	ASSERT_EQ(0, fill_file(m, self->fd, NHUGE, MAP_SHARED));
	ASSERT_EQ(0, dm_dev_write(&self->dev, m, 0, NHUGE));
	EXPECT_EQ(-1, umount(variant->dir));
	EXPECT_EQ(EBUSY, errno);
	ASSERT_EQ(0, munmap(m->cpu, NHUGE * DM_PAGE));
	EXPECT_EQ(-1000 - EFAULT, dm_dev_wrong(&self->dev, m, 0, 1));
	close(self->fd);

	ASSERT_EQ(0, umount(variant->dir));
	ASSERT_EQ(0, put_name("/sys/bus/nd/drivers/nd_pmem/unbind", namespace));
	EXPECT_EQ(-1, access(disk, F_OK));
	ASSERT_EQ(0, put_name("/sys/bus/nd/drivers/nd_pmem/bind", namespace));
	ASSERT_EQ(0, mount(disk, variant->dir, variant->type, 0, "dax=always"));

	self->fd = open(self->path, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd);
	EXPECT_EQ(DM_ALL_RIGHT, file_wrong(m, self->fd));
	ASSERT_EQ(m->cpu, mmap(m->cpu, NHUGE * DM_PAGE, PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_FIXED, self->fd, 0));
	EXPECT_BOTH_SEE(&self->dev, m, 0, NHUGE);
	EXPECT_EQ(NHUGE, dm_count_perm(&self->dev, m, 0, NHUGE, HMM_DMIRROR_PROT_PMD));
}

/* ---- a device without files ---- */

FIXTURE(device)
{
	struct dm_dev dev;
	char path[20];
	int fd;
	struct dm_mem m;
};

FIXTURE_SETUP(device)
{
	glob_t names;

	ASSERT_EQ(0, dm_open(&self->dev, DM_PRIVATE0));
	ASSERT_EQ(0, glob("/dev/dax*", 0, NULL, &names));
	snprintf(self->path, sizeof(self->path), "%s", names.gl_pathv[0]);
	globfree(&names);
	self->fd = open(self->path, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, dm_map_file(&self->m, self->fd, NHUGE, MAP_SHARED));
	dm_cpu_write(&self->m, 0, NHUGE);
}

FIXTURE_TEARDOWN(device)
{
	dm_free(&self->m);
	close(self->fd);
	dm_close(&self->dev);
}

TEST_F(device, is_mapped_in_large_pieces)
{
	struct dm_mem *m = &self->m;

	EXPECT_BOTH_SEE(&self->dev, m, 0, NHUGE);
	EXPECT_EQ(NHUGE, dm_count_perm(&self->dev, m, 0, NHUGE,
				       HMM_DMIRROR_PROT_WRITE | HMM_DMIRROR_PROT_PMD));
	ASSERT_EQ(0, dm_dev_write(&self->dev, m, 5, DM_PER_HUGE));
	EXPECT_BOTH_SEE(&self->dev, m, 0, NHUGE);
	EXPECT_EQ(-EINVAL, dm_push(&self->dev, m, 0, DM_PER_HUGE));
	EXPECT_BOTH_SEE(&self->dev, m, 0, NHUGE);
}

/* The device asks first: its faults map the same pieces as the CPU's. */
TEST_F(device, faults_of_the_mirror)
{
	struct dm_mem *m = &self->m, again = { };

	ASSERT_EQ(0, dm_map_file(&again, self->fd, NHUGE, MAP_SHARED));
	memcpy(again.tag, m->tag, NHUGE * sizeof(*m->tag));
	EXPECT_AT(&self->dev, &again, 0, NHUGE, AT_NOWHERE);
	EXPECT_DEVICE_SEES(&self->dev, &again, 7, 1);
	EXPECT_EQ(DM_PER_HUGE, dm_count_perm(&self->dev, &again, 0, NHUGE,
					     HMM_DMIRROR_PROT_PMD));
	ASSERT_EQ(0, dm_dev_write(&self->dev, &again, 0, NHUGE));
	memcpy(m->tag, again.tag, NHUGE * sizeof(*m->tag));
	EXPECT_CPU_SEES(m, 0, NHUGE);

	ASSERT_EQ(0, munmap(again.cpu, DM_HUGE));
	EXPECT_EQ(-1000 - EFAULT, dm_dev_wrong(&self->dev, &again, 0, 1));
	EXPECT_DEVICE_SEES(&self->dev, &again, DM_PER_HUGE, DM_PER_HUGE);
	dm_free(&again);
}

TEST_F(device, unbind_takes_pages_from_the_device)
{
	struct dm_mem *m = &self->m;
	const char *name = strrchr(self->path, '/') + 1;

	EXPECT_BOTH_SEE(&self->dev, m, 0, NHUGE);
	ASSERT_EQ(0, put_name("/sys/bus/dax/drivers/device_dax/unbind", name));
	EXPECT_AT(&self->dev, m, 0, NHUGE, AT_NOWHERE);
	EXPECT_EQ(-1000 - EFAULT, dm_dev_wrong(&self->dev, m, 0, 1));

	/* The one who has it open holds what was, and is not served. */
	ASSERT_EQ(0, put_name("/sys/bus/dax/drivers/device_dax/bind", name));
	close(self->fd);
	self->fd = open(self->path, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(m->cpu, mmap(m->cpu, NHUGE * DM_PAGE, PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_FIXED, self->fd, 0));
	EXPECT_BOTH_SEE(&self->dev, m, 0, NHUGE);
}

TEST_HARNESS_MAIN
