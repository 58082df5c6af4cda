/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the dmirror tests are written in: a device, memory whose content is
 * known, and questions about where a page is and who sees what of it.
 *
 * The content of memory is kept as a model: one tag per page, from which every
 * word of the page follows. Whoever writes the memory, a CPU or the device,
 * gives pages new tags; every check compares real bytes with the model. Tag 0
 * stands for a page of zeroes. A fork() copies the model with the memory.
 *
 * Where a page is, two sources must agree on: the snapshot of the device and
 * /proc/self/pagemap. If they do not, the page counts as AT_ERROR.
 */
#ifndef _MM_HMM_DMIRROR_H
#define _MM_HMM_DMIRROR_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <lib/test_hmm_uapi.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT	21
#endif

#define DM_PAGE		4096UL
#define DM_HUGE		(2UL << 20)
#define DM_PER_HUGE	((long)(DM_HUGE / DM_PAGE))
#define DM_HUGE_ORDER	9

/* Every page asked about is as the model says. */
#define DM_ALL_RIGHT	(-1L)

/* A signal that comes again and again must not keep a test for ever. */
#define DM_EINTR_TRIES	1000

/* Threads leave their stacks to the next ones; a leak is more than this. */
#define DM_NOISE_KB	(16L << 10)

enum dm_unit {
	DM_PRIVATE0,
	DM_PRIVATE1,
	DM_COHERENT0,
	DM_COHERENT1,
};

enum dm_place {
	AT_NOWHERE,		/* nothing mapped yet, or no access */
	AT_ZERO,		/* the shared page of zeroes */
	AT_RAM,
	AT_DEVICE,		/* memory of the device that is asked */
	AT_OTHER_DEVICE,
	AT_ERROR,		/* no VMA, or the two sources disagree */
	AT_NR_PLACES,
};

struct dm_dev {
	int unit;
	int fd;
};

/* @tag: the model, an entry per page */
struct dm_mem {
	unsigned char *cpu;
	unsigned long pages;
	uint64_t *tag;
};

/* ---- the device ---- */

static inline bool dm_is_coherent(int unit)
{
	return unit >= DM_COHERENT0;
}

static inline int dm_open(struct dm_dev *d, int unit)
{
	char path[40];

	snprintf(path, sizeof(path), "/dev/hmm_dmirror%d", unit);
	d->unit = unit;
	d->fd = open(path, O_RDWR | O_CLOEXEC);
	return d->fd < 0 ? -errno : 0;
}

static inline void dm_close(struct dm_dev *d)
{
	if (d->fd >= 0)
		close(d->fd);
	d->fd = -1;
}

/* One ioctl as it is: @cmd goes in and comes out. */
static inline int dm_ioctl(const struct dm_dev *d, unsigned long op,
			   struct hmm_dmirror_cmd *cmd)
{
	int tries;

	for (tries = 0; tries < DM_EINTR_TRIES; tries++) {
		if (!ioctl(d->fd, op, cmd))
			return 0;
		if (errno != EINTR)
			return -errno;
	}
	return -EINTR;
}

static inline int dm_op(const struct dm_dev *d, unsigned long op,
			const void *addr, unsigned long npages, void *buf)
{
	struct hmm_dmirror_cmd cmd = {
		.npages = npages,
		.addr = (uintptr_t)addr,
		.ptr = (uintptr_t)buf,
	};

	return dm_ioctl(d, op, &cmd);
}

/* For the device, until the next time. */
static inline int dm_set_flags(const struct dm_dev *d, uint64_t flags)
{
	return dm_op(d, HMM_DMIRROR_FLAGS, NULL, flags, NULL);
}

/* ---- the model ---- */

static inline uint64_t dm_new_tag(void)
{
	static uint64_t last;

	/* Far apart, so that no word of one page turns up in another. */
	return __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED) << 16;
}

static inline uint64_t dm_word(uint64_t tag, unsigned long i)
{
	return tag ? (tag + i) * 0x9e3779b97f4a7c15ULL : 0;
}

static inline void dm_paint(void *page, uint64_t tag)
{
	uint64_t *w = page;
	unsigned long i;

	for (i = 0; i < DM_PAGE / sizeof(*w); i++)
		w[i] = dm_word(tag, i);
}

static inline bool dm_page_is(const void *page, uint64_t tag)
{
	const volatile uint64_t *w = page;
	unsigned long i;

	for (i = 0; i < DM_PAGE / sizeof(*w); i++)
		if (w[i] != dm_word(tag, i))
			return false;
	return true;
}

static inline unsigned char *dm_addr(const struct dm_mem *m, long page)
{
	return m->cpu + page * DM_PAGE;
}

static inline void dm_retag(struct dm_mem *m, long first, long n)
{
	long i;

	for (i = first; i < first + n; i++)
		m->tag[i] = dm_new_tag();
}

static inline void dm_zero_tags(struct dm_mem *m, long first, long n)
{
	memset(m->tag + first, 0, n * sizeof(*m->tag));
}

/* ---- memory ---- */

/* Put memory that a test has mapped itself under the model, as zeroes. */
static inline int dm_adopt(struct dm_mem *m, void *addr, unsigned long pages)
{
	m->cpu = addr == MAP_FAILED ? NULL : addr;
	m->pages = pages;
	m->tag = calloc(pages, sizeof(*m->tag));
	return m->cpu && m->tag ? 0 : -ENOMEM;
}

static inline void dm_free(struct dm_mem *m)
{
	if (m->cpu)
		munmap(m->cpu, m->pages * DM_PAGE);
	free(m->tag);
	memset(m, 0, sizeof(*m));
}

/* The CPU writes new content. */
static inline void dm_cpu_write(struct dm_mem *m, long first, long n)
{
	long i;

	dm_retag(m, first, n);
	for (i = first; i < first + n; i++)
		dm_paint(dm_addr(m, i), m->tag[i]);
}

/* Nothing mapped yet, and never to become huge by itself. */
static inline int dm_hole(struct dm_mem *m, unsigned long pages)
{
	void *p = mmap(NULL, pages * DM_PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int err = dm_adopt(m, p, pages);

	if (!err && madvise(p, pages * DM_PAGE, MADV_NOHUGEPAGE))
		err = -errno;
	return err;
}

static inline int dm_small(struct dm_mem *m, unsigned long pages)
{
	int err = dm_hole(m, pages);

	if (!err)
		dm_cpu_write(m, 0, pages);
	return err;
}

/* Address space aligned to a huge page; access as @prot. */
static inline void *dm_aligned(unsigned long len, int prot)
{
	char *p = mmap(NULL, len + DM_HUGE, prot, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);
	unsigned long head;

	if (p == MAP_FAILED)
		return p;
	head = -(uintptr_t)p & (DM_HUGE - 1);
	if (head)
		munmap(p, head);
	munmap(p + head + len, DM_HUGE - head);
	return p + head;
}

/* A file at an address where it could be mapped in large pieces. */
static inline int dm_map_file(struct dm_mem *m, int fd, unsigned long pages,
			      int flags)
{
	void *room = dm_aligned((pages * DM_PAGE + DM_HUGE - 1) & -DM_HUGE,
				PROT_NONE);

	if (room == MAP_FAILED)
		return -ENOMEM;
	return dm_adopt(m, mmap(room, pages * DM_PAGE, PROT_READ | PROT_WRITE,
				flags | MAP_FIXED, fd, 0), pages);
}

/* New content for a file that is mapped, but not through the mapping. */
static inline int dm_write_file(struct dm_mem *m, int fd)
{
	unsigned char page[DM_PAGE];
	unsigned long i;

	dm_retag(m, 0, m->pages);
	for (i = 0; i < m->pages; i++) {
		dm_paint(page, m->tag[i]);
		if (pwrite(fd, page, DM_PAGE, i * DM_PAGE) != (ssize_t)DM_PAGE)
			return -EIO;
	}
	return 0;
}

/* Sum of a field of smaps over the VMAs of some memory, in kB. */
static inline long dm_smaps_kb(const struct dm_mem *m, const char *field)
{
	uintptr_t lo = (uintptr_t)m->cpu, hi = lo + m->pages * DM_PAGE;
	FILE *f = fopen("/proc/self/smaps", "r");
	size_t len = strlen(field);
	bool inside = false;
	long sum = 0, kb;
	char line[256];

	if (!f)
		return -errno;
	while (fgets(line, sizeof(line), f)) {
		uintptr_t from, to;

		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2)
			inside = from < hi && to > lo;
		else if (inside && !strncmp(line, field, len) &&
			 line[len] == ':' &&
			 sscanf(line + len + 1, "%ld", &kb) == 1)
			sum += kb;
	}
	fclose(f);
	return sum;
}

/*
 * Transparent huge pages whatever the system's THP mode is: only a collapse
 * that was asked for does not look at it.
 */
static inline int dm_collapse(const struct dm_mem *m)
{
	int tries;

	for (tries = 0; tries < 20; tries++) {
		if (!madvise(m->cpu, m->pages * DM_PAGE, MADV_COLLAPSE))
			return 0;
		if (errno != EAGAIN && errno != EBUSY)
			return -errno;
		usleep(10000);
	}
	return -EAGAIN;
}

static inline int dm_huge(struct dm_mem *m, unsigned long nr)
{
	int err = dm_adopt(m, dm_aligned(nr * DM_HUGE, PROT_READ | PROT_WRITE),
			   nr * DM_PER_HUGE);

	if (err)
		return err;
	dm_cpu_write(m, 0, m->pages);
	err = dm_collapse(m);
	if (err)
		return err;
	return dm_smaps_kb(m, "AnonHugePages") == (long)(nr * DM_HUGE >> 10) ?
		0 : -ENODATA;
}

static inline int dm_put_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t len = strlen(text), done;

	if (fd < 0)
		return -errno;
	done = write(fd, text, len);
	close(fd);
	return done == len ? 0 : -EIO;
}

#define DM_PM_PRESENT	(1ULL << 63)
#define DM_PM_SWAP	(1ULL << 62)
#define DM_PM_UFFD_WP	(1ULL << 57)
#define DM_PM_SOFT	(1ULL << 55)
#define DM_PM_PFN	((1ULL << 55) - 1)

static inline int dm_pagemap(const void *addr, long n, uint64_t *entry)
{
	off_t off = (uintptr_t)addr / DM_PAGE * sizeof(*entry);
	ssize_t want = n * sizeof(*entry), got = -1;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		got = pread(fd, entry, want, off);
		close(fd);
	}
	return got == want ? 0 : -EIO;
}

/* Of /proc/kpageflags */
#define DM_KPF_HEAD	(1ULL << 15)
#define DM_KPF_TAIL	(1ULL << 16)

/* Order of the folio in RAM whose first page is this one; or -errno. */
static inline int dm_order_at(const struct dm_mem *m, long page)
{
	uint64_t entry, flags;
	int n = 1, order, fd;

	if (dm_pagemap(dm_addr(m, page), 1, &entry))
		return -EIO;
	if (!(entry & DM_PM_PRESENT))
		return -ENOENT;
	fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	entry &= DM_PM_PFN;
	if (pread(fd, &flags, 8, entry * 8) != 8 || flags & DM_KPF_TAIL)
		n = 0;
	else if (flags & DM_KPF_HEAD)
		while (pread(fd, &flags, 8, (entry + n) * 8) == 8 &&
		       flags & DM_KPF_TAIL)
			n++;
	close(fd);
	for (order = 0; n > 1 << order; order++)
		;
	return n ? order : -EINVAL;
}

/* Whether MADV_HUGEPAGE brings nothing. */
static inline bool dm_thp_is_never(void)
{
	char text[80] = "";
	int fd = open("/sys/kernel/mm/transparent_hugepage/enabled",
		      O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		if (read(fd, text, sizeof(text) - 1) < 0)
			text[0] = 0;
		close(fd);
	}
	return strstr(text, "[never]");
}

/* Whether faults bring folios of an order: always, never, or inherit. */
static inline int dm_set_thp(int order, const char *mode)
{
	char path[80];

	snprintf(path, sizeof(path),
		 "/sys/kernel/mm/transparent_hugepage/hugepages-%lukB/enabled",
		 (DM_PAGE << order) >> 10);
	return dm_put_file(path, mode);
}

/* Folios of an order that the kernel gives on a fault, mapped by PTEs. */
static inline int dm_mthp(struct dm_mem *m, int order, unsigned long nr)
{
	unsigned long len = DM_PAGE * nr << order;
	unsigned long room = (len + DM_HUGE - 1) & -DM_HUGE;
	int err;

	err = dm_adopt(m, dm_aligned(room, PROT_READ | PROT_WRITE), nr << order);
	if (err)
		return err;
	if (room > len && munmap(m->cpu + len, room - len))
		return -errno;

	/* A huge page would be as welcome where there is room for it. */
	err = dm_set_thp(DM_HUGE_ORDER, "never");
	if (!err)
		err = dm_set_thp(order, "always");
	if (!err)
		dm_cpu_write(m, 0, m->pages);
	dm_set_thp(order, "never");
	dm_set_thp(DM_HUGE_ORDER, "inherit");
	/* Nor is khugepaged to make huge pages of it. */
	if (!err && madvise(m->cpu, len, MADV_NOHUGEPAGE))
		err = -errno;
	return err;
}

/* @nr folios of an order, whatever the THP mode is. */
static inline int dm_folios(struct dm_mem *m, int order, unsigned long nr)
{
	unsigned long i;
	int err;

	err = (order == DM_HUGE_ORDER) ? dm_huge(m, nr) :
					   dm_mthp(m, order, nr);
	for (i = 0; !err && i < nr; i++)
		if (dm_order_at(m, i << order) != order)
			err = -ENODATA;
	return err;
}

/* ---- does anybody see something else than the model? ---- */

static inline long dm_cpu_wrong(const struct dm_mem *m, long first, long n)
{
	long i;

	for (i = first; i < first + n; i++)
		if (!dm_page_is(dm_addr(m, i), m->tag[i]))
			return i;
	return DM_ALL_RIGHT;
}

static inline long dm_copy_wrong(const struct dm_mem *m, long first, long n,
				 const unsigned char *copy)
{
	long i;

	for (i = 0; i < n; i++)
		if (!dm_page_is(copy + i * DM_PAGE, m->tag[first + i]))
			return first + i;
	return DM_ALL_RIGHT;
}

/* First page of which read() gives something else. */
static inline long dm_file_wrong(int fd, const uint64_t *tag, long pages)
{
	unsigned char page[DM_PAGE];
	long i;

	for (i = 0; i < pages; i++)
		if (pread(fd, page, DM_PAGE, i * DM_PAGE) != (ssize_t)DM_PAGE ||
		    !dm_page_is(page, tag[i]))
			return i;
	return DM_ALL_RIGHT;
}

/*
 * Let the device give what it has for some pages, and compare.
 * Return: DM_ALL_RIGHT, the first wrong page, or -1000 - errno.
 */
static inline long dm_fetch(const struct dm_dev *d, unsigned long op,
			    const struct dm_mem *m, long first, long n)
{
	unsigned char *copy = malloc(n * DM_PAGE);
	long ret;

	if (!copy)
		return -1000 - ENOMEM;
	memset(copy, 0x5a, n * DM_PAGE);
	ret = dm_op(d, op, dm_addr(m, first), n, copy);
	ret = ret ? -1000 + ret : dm_copy_wrong(m, first, n, copy);
	free(copy);
	return ret;
}

static inline long dm_dev_wrong(const struct dm_dev *d, const struct dm_mem *m,
				long first, long n)
{
	return dm_fetch(d, HMM_DMIRROR_READ, m, first, n);
}

/* ---- what the device does ---- */

/*
 * Pages to the memory of the device. -ENOENT is the driver's answer when some
 * did not go; -EBADMSG when what arrived is not what the model says.
 */
static inline int dm_to_dev(const struct dm_dev *d, const struct dm_mem *m,
			    long first, long n)
{
	long ret = dm_fetch(d, HMM_DMIRROR_MIGRATE_TO_DEV, m, first, n);

	if (ret <= -1000)
		return ret + 1000;
	return ret == DM_ALL_RIGHT ? 0 : -EBADMSG;
}

/* The same, with what is swapped out or shared. */
static inline int dm_fault_to_dev(const struct dm_dev *d, const struct dm_mem *m,
				  long first, long n)
{
	long ret = dm_fetch(d, HMM_DMIRROR_FAULT_TO_DEV, m, first, n);

	if (ret <= -1000)
		return ret + 1000;
	return ret == DM_ALL_RIGHT ? 0 : -EBADMSG;
}

/* As dm_to_dev() for pages whose content nobody knows. */
static inline int dm_push(const struct dm_dev *d, const struct dm_mem *m,
			  long first, long n)
{
	void *copy = malloc(n * DM_PAGE);
	int err;

	if (!copy)
		return -ENOMEM;
	err = dm_op(d, HMM_DMIRROR_MIGRATE_TO_DEV, dm_addr(m, first), n, copy);
	free(copy);
	return err;
}

static inline int dm_to_sys(const struct dm_dev *d, const struct dm_mem *m,
			    long first, long n)
{
	return dm_op(d, HMM_DMIRROR_MIGRATE_TO_SYS, dm_addr(m, first), n, NULL);
}

/* New content by the device; the model follows only if that worked. */
static inline int dm_dev_write(const struct dm_dev *d, struct dm_mem *m,
			       long first, long n)
{
	unsigned char *copy = malloc(n * DM_PAGE);
	uint64_t *tag = malloc(n * sizeof(*tag));
	int err = -ENOMEM;
	long i;

	if (!copy || !tag)
		goto free_both;
	for (i = 0; i < n; i++) {
		tag[i] = dm_new_tag();
		dm_paint(copy + i * DM_PAGE, tag[i]);
	}
	err = dm_op(d, HMM_DMIRROR_WRITE, dm_addr(m, first), n, copy);
	if (!err)
		memcpy(m->tag + first, tag, n * sizeof(*tag));
free_both:
	free(tag);
	free(copy);
	return err;
}

/* Take pages from the CPUs; the driver reads them back as well. */
static inline int dm_exclusive(const struct dm_dev *d, const struct dm_mem *m,
			       long first, long n)
{
	long ret = dm_fetch(d, HMM_DMIRROR_EXCLUSIVE, m, first, n);

	if (ret <= -1000)
		return ret + 1000;
	return ret == DM_ALL_RIGHT ? 0 : -EBADMSG;
}

/* -EPERM while the device has one of the pages for itself, 0 if none. */
static inline int dm_check_exclusive(const struct dm_dev *d,
				     const struct dm_mem *m, long first, long n)
{
	return dm_op(d, HMM_DMIRROR_CHECK_EXCLUSIVE, dm_addr(m, first), n,
		     NULL);
}

static inline long dm_count_exclusive(const struct dm_dev *d,
				      const struct dm_mem *m, long first,
				      long n)
{
	long i, sum = 0;

	for (i = first; i < first + n; i++)
		sum += dm_check_exclusive(d, m, i, 1) == -EPERM;
	return sum;
}

static inline int dm_snapshot(const struct dm_dev *d, const void *addr, long n,
			      unsigned char *perm)
{
	return dm_op(d, HMM_DMIRROR_SNAPSHOT, addr, n, perm);
}

/* ---- userfaultfd ---- */

static inline int dm_uffd_open(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return -errno;
	return ioctl(fd, UFFDIO_API, &api) ? -errno : fd;
}

static inline struct uffdio_range dm_uffd_range(const struct dm_mem *m,
						long first, long n)
{
	return (struct uffdio_range) {
		.start = (uintptr_t)dm_addr(m, first),
		.len = n * DM_PAGE,
	};
}

static inline int dm_uffd_register(int fd, const struct dm_mem *m, uint64_t mode)
{
	struct uffdio_register reg = {
		.mode = mode,
		.range = dm_uffd_range(m, 0, m->pages),
	};

	return ioctl(fd, UFFDIO_REGISTER, &reg) ? -errno : 0;
}

static inline int dm_uffd_protect(int fd, const struct dm_mem *m, long first,
				  long n, bool on)
{
	struct uffdio_writeprotect wp = {
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
		.range = dm_uffd_range(m, first, n),
	};

	return ioctl(fd, UFFDIO_WRITEPROTECT, &wp) ? -errno : 0;
}

/* Content for pages that are missing, as a monitor would bring it. */
static inline int dm_uffd_fill(int fd, struct dm_mem *m, long first, long n)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)dm_addr(m, first),
		.len = n * DM_PAGE,
	};
	unsigned char *src = malloc(n * DM_PAGE);
	int err = -ENOMEM;
	long i;

	if (!src)
		return err;
	dm_retag(m, first, n);
	for (i = 0; i < n; i++)
		dm_paint(src + i * DM_PAGE, m->tag[first + i]);
	copy.src = (uintptr_t)src;
	err = ioctl(fd, UFFDIO_COPY, &copy) ? -errno : 0;
	free(src);
	return err;
}

/* Map what is in the file already. */
static inline int dm_uffd_continue(int fd, const struct dm_mem *m, long first,
				   long n)
{
	struct uffdio_continue cont = { .range = dm_uffd_range(m, first, n) };

	return ioctl(fd, UFFDIO_CONTINUE, &cont) ? -errno : 0;
}

/* Who waits for these pages has another look at them. */
static inline int dm_uffd_wake(int fd, const struct dm_mem *m, long first,
			       long n)
{
	struct uffdio_range range = dm_uffd_range(m, first, n);

	return ioctl(fd, UFFDIO_WAKE, &range) ? -errno : 0;
}

/* ---- where pages are ---- */

static inline long dm_count_pagemap(const struct dm_mem *m, long first, long n,
				    uint64_t bit)
{
	uint64_t entry;
	long i, sum = 0;

	for (i = first; i < first + n; i++) {
		if (dm_pagemap(dm_addr(m, i), 1, &entry))
			return -1;
		sum += !!(entry & bit);
	}
	return sum;
}

/* What the device says, low two bits (rights) and order bits aside. */
static inline enum dm_place dm_perm_place(unsigned char perm)
{
	if (perm == HMM_DMIRROR_PROT_ERROR)
		return AT_ERROR;
	switch (perm & 0x70) {
	case HMM_DMIRROR_PROT_ZERO:
		return AT_ZERO;
	case HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL:
	case HMM_DMIRROR_PROT_DEV_COHERENT_LOCAL:
		return AT_DEVICE;
	case HMM_DMIRROR_PROT_DEV_PRIVATE_REMOTE:
	case HMM_DMIRROR_PROT_DEV_COHERENT_REMOTE:
		return AT_OTHER_DEVICE;
	case 0:
		return perm & 3 ? AT_RAM : AT_NOWHERE;
	}
	return AT_ERROR;
}

static inline enum dm_place dm_place(unsigned char perm, uint64_t pagemap)
{
	enum dm_place at = dm_perm_place(perm);
	bool present = pagemap & DM_PM_PRESENT;
	bool private = (perm & 0x70) == HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL ||
		       (perm & 0x70) == HMM_DMIRROR_PROT_DEV_PRIVATE_REMOTE;

	if (at == AT_NOWHERE || at == AT_ERROR)
		return at;
	if (private ? !(pagemap & DM_PM_SWAP) || present : !present)
		return AT_ERROR;
	return at;
}

/* Count pages by place. */
static inline int dm_census(const struct dm_dev *d, const struct dm_mem *m,
			    long first, long n, long count[AT_NR_PLACES])
{
	unsigned char *perm = malloc(n);
	uint64_t *entry = malloc(n * sizeof(*entry));
	int err = -ENOMEM;
	long i;

	memset(count, 0, AT_NR_PLACES * sizeof(*count));
	if (!perm || !entry)
		goto free_both;
	err = dm_snapshot(d, dm_addr(m, first), n, perm);
	if (!err)
		err = dm_pagemap(dm_addr(m, first), n, entry);
	for (i = 0; !err && i < n; i++)
		count[dm_place(perm[i], entry[i])]++;
free_both:
	free(entry);
	free(perm);
	return err;
}

static inline long dm_count_at(const struct dm_dev *d, const struct dm_mem *m,
			       long first, long n, enum dm_place at)
{
	long count[AT_NR_PLACES];
	int err = dm_census(d, m, first, n, count);

	return err ? err : count[at];
}

/* How many pages does the device see with all of these PROT bits? */
static inline long dm_count_perm(const struct dm_dev *d, const struct dm_mem *m,
				 long first, long n, unsigned char bits)
{
	unsigned char *perm = malloc(n);
	int err = perm ? dm_snapshot(d, dm_addr(m, first), n, perm) : -ENOMEM;
	long i, sum = 0;

	for (i = 0; !err && i < n; i++)
		sum += (perm[i] & bits) == bits;
	free(perm);
	return err ? err : sum;
}

/*
 * As if the kernel had used every @step-th page: twice, and reclaim takes it for
 * active.
 */
static inline int dm_activate(const struct dm_mem *m, long step)
{
	int fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC), times, err = 0;
	unsigned long i;
	char c;

	if (fd < 0)
		return -errno;
	for (times = 0; times < 2; times++)
		for (i = 0; i < m->pages; i += step)
			if (pread(fd, &c, 1, (uintptr_t)dm_addr(m, i)) != 1)
				err = -EIO;
	close(fd);
	return err;
}

/* ---- the rest of the system ---- */

static inline long dm_meminfo_kb(const char *field)
{
	FILE *f = fopen("/proc/meminfo", "r");
	size_t len = strlen(field);
	char line[128];
	long kb = -1;

	while (f && kb < 0 && fgets(line, sizeof(line), f))
		if (!strncmp(line, field, len) && line[len] == ':')
			kb = atol(line + len + 1);
	if (f)
		fclose(f);
	return kb;
}

/* What is free: in the zones, and in the lists that each CPU has of them. */
static inline long dm_free_kb(void)
{
	FILE *f = fopen("/proc/zoneinfo", "r");
	long pages, free = 0;
	char line[128];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, " nr_free_pages %ld", &pages) == 1 ||
		    sscanf(line, " count: %ld", &pages) == 1)
			free += pages;
	if (f)
		fclose(f);
	return free * (sysconf(_SC_PAGESIZE) >> 10);
}

/* What KASAN keeps of what was freed, for those who use it all the same. */
static inline void dm_shrink_slabs(void)
{
	glob_t slabs;
	size_t i;

	if (glob("/sys/kernel/slab/*/shrink", 0, NULL, &slabs))
		return;
	for (i = 0; i < slabs.gl_pathc; i++)
		dm_put_file(slabs.gl_pathv[i], "1");
	globfree(&slabs);
}

/* Memory that has gone since @before_kb, once what is on its way is back. */
static inline long dm_lost_kb(long before_kb)
{
	long lost = LONG_MAX;
	int tries;

	for (tries = 0; tries < 40 && lost > DM_NOISE_KB; tries++) {
		if (tries)
			usleep(50000);
		if (tries == 1)
			dm_shrink_slabs();
		lost = before_kb - dm_free_kb();
	}
	return lost;
}

static inline double dm_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* Seconds after which a race that makes no headway is given up. */
#define DM_RACE_LIMIT	60

/*
 * Should a race that began then go on? It does for some seconds at least, and
 * until there was enough of it, however slow the machine is.
 */
static inline bool dm_race(double began, double seconds, bool enough)
{
	double t = dm_now() - began;

	return t < seconds || (!enough && t < DM_RACE_LIMIT);
}

/* Exit code of a child; 128 and the signal if one killed it. */
static inline int dm_wait(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) :
				   128 + WTERMSIG(status);
}

/* ---- what the driver counts ---- */

struct dm_counts {
	bool known;
	long allocated;
	long freed;
};

static inline long dm_count_file(int unit, const char *name)
{
	char path[80], text[24] = "";
	int fd;

	snprintf(path, sizeof(path),
		 "/sys/kernel/debug/hmm_dmirror/hmm_dmirror%d/%s", unit, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	if (read(fd, text, sizeof(text) - 1) <= 0)
		text[0] = '-';
	close(fd);
	return text[0] == '-' ? -1 : atol(text);
}

static inline void dm_counts(int unit, struct dm_counts *c)
{
	c->allocated = dm_count_file(unit, "allocated");
	c->freed = dm_count_file(unit, "freed");
	c->known = c->allocated >= 0 && c->freed >= 0;
}

/* Device pages taken since @start that are not free again. */
static inline long dm_in_use(const struct dm_counts *start,
			     const struct dm_counts *now)
{
	if (!start->known || !now->known)
		return 0;
	return now->allocated - start->allocated -
	       (now->freed - start->freed);
}

/* As that is @want at last; pages held in batches take their time. */
static inline long dm_settled_in_use(int unit, const struct dm_counts *start,
				     long want)
{
	struct dm_counts now;
	int tries;

	for (tries = 0; tries < 40; tries++) {
		if (tries)
			usleep(25000);
		dm_counts(unit, &now);
		if (!start->known || dm_in_use(start, &now) == want)
			return want;
	}
	return dm_in_use(start, &now);
}

/* ---- facts, for kselftest_harness.h ---- */

/* Seconds for a test. A debug kernel in an emulator is 50 times slower. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	240

#define EXPECT_AT(d, m, first, n, place) \
	EXPECT_EQ((long)(n), dm_count_at(d, m, first, n, place))
#define EXPECT_ON_DEVICE(d, m, first, n) \
	EXPECT_AT(d, m, first, n, AT_DEVICE)
#define EXPECT_IN_RAM(d, m, first, n)	EXPECT_AT(d, m, first, n, AT_RAM)

#define EXPECT_CPU_SEES(m, first, n) \
	EXPECT_EQ(DM_ALL_RIGHT, dm_cpu_wrong(m, first, n))
#define EXPECT_DEVICE_SEES(d, m, first, n) \
	EXPECT_EQ(DM_ALL_RIGHT, dm_dev_wrong(d, m, first, n))
/* In this order: the device first, as the CPU may bring pages back. */
#define EXPECT_BOTH_SEE(d, m, first, n) do { \
	EXPECT_DEVICE_SEES(d, m, first, n); \
	EXPECT_CPU_SEES(m, first, n); \
} while (0)

#define EXPECT_IN_USE(unit, start, n) \
	EXPECT_EQ((long)(n), dm_settled_in_use(unit, start, n))
#define EXPECT_BALANCED(unit, start)	EXPECT_IN_USE(unit, start, 0)
#define EXPECT_NO_LEAK(before_kb) \
	EXPECT_GE(DM_NOISE_KB, dm_lost_kb(before_kb))

#endif /* _MM_HMM_DMIRROR_H */
