// SPDX-License-Identifier: GPL-2.0
/*
 * Bad input: what each ioctl of the dmirror driver answers, in tables.
 *
 * An entry is a call that has to fail, with one errno, and without a trace: the
 * memory beside the bad range keeps its content and its place.
 *
 * The device mirrors the process that opened it, whoever calls: see the tests
 * at the end.
 */
#include "../kselftest_harness.h"

#include <sys/auxv.h>

#include "hmm_dmirror.h"

#define NPAGES		32L

/* Number of pages whose size in bytes does not fit, and becomes one page. */
#define WRAPS_TO_ONE	((1ULL << 52) + 1)
/* The driver copies through kernel memory: not so much at once. */
#define TOO_MANY	(1ULL << 34)

#define KERNEL_ADDR	0xffff888000000000ULL
#define LAST_PAGE	0x00007fffffffe000ULL
#define VSYSCALL_ADDR	0xffffffffff600000ULL

enum where {
	GOOD,			/* the memory of the test, all well */
	GOOD_UNALIGNED,
	NULL_PAGE,		/* nothing can be mapped here */
	IN_KERNEL,
	AT_END_OF_USER,		/* the last page, and on into nothing */
	AT_END_OF_ALL,		/* start and size make zero */
	UNMAPPED,		/* a gap within the memory of the test */
	NO_ACCESS,		/* PROT_NONE */
	READ_ONLY,
	VDSO,
	VVAR,
	HUGETLB,
	FILE_SHARED,
	FILE_READ_ONLY,
	SECRET,			/* memfd_secret(): nor is the kernel to see it */
	VSYSCALL,		/* code in the kernel's half, and no VMA of ours */
	NR_WHERE,
};

enum op {
	READ,
	WRITE,
	TO_DEV,
	TO_SYS,
	SNAPSHOT,
	EXCLUSIVE,
	NR_COLUMNS,		/* those below answer as READ and WRITE */
	READ_UNLOCKED = NR_COLUMNS,
	WRITE_UNLOCKED,
	NR_OPS,
};

static const unsigned long op_code[NR_OPS] = {
	[READ] = HMM_DMIRROR_READ,
	[WRITE] = HMM_DMIRROR_WRITE,
	[TO_DEV] = HMM_DMIRROR_MIGRATE_TO_DEV,
	[TO_SYS] = HMM_DMIRROR_MIGRATE_TO_SYS,
	[SNAPSHOT] = HMM_DMIRROR_SNAPSHOT,
	[EXCLUSIVE] = HMM_DMIRROR_EXCLUSIVE,
	[READ_UNLOCKED] = HMM_DMIRROR_READ_UNLOCKED,
	[WRITE_UNLOCKED] = HMM_DMIRROR_WRITE_UNLOCKED,
};

static const char * const op_name[NR_OPS] = {
	"READ", "WRITE", "MIGRATE_TO_DEV", "MIGRATE_TO_SYS", "SNAPSHOT",
	"EXCLUSIVE", "READ_UNLOCKED", "WRITE_UNLOCKED",
};

static enum op column(enum op op)
{
	switch (op) {
	case READ_UNLOCKED:
		return READ;
	case WRITE_UNLOCKED:
		return WRITE;
	default:
		return op;
	}
}

/* EXCLUSIVE last: what it got before it failed can be written to. */
static enum op in_order(int nth)
{
	return (nth + NR_COLUMNS) % NR_OPS;
}

/* @err: by column; 0 where it has to work */
struct bad {
	const char *what;
	enum where where;
	unsigned long long npages;
	int err[NR_COLUMNS];
};

#define ALL_OPS(e)	{ e, e, e, e, e, e }

/* Ranges that are none, whatever is mapped. */
static const struct bad bad_ranges[] = {
	{ "no pages", GOOD, 0, ALL_OPS(-EINVAL) },
	{ "not aligned", GOOD_UNALIGNED, 1, ALL_OPS(-EINVAL) },
	{ "size wraps to one page", GOOD, WRAPS_TO_ONE, ALL_OPS(-EINVAL) },
	{ "size wraps to nothing", GOOD, 1ULL << 52, ALL_OPS(-EINVAL) },
	{ "end wraps", GOOD, (1ULL << 52) - 1, ALL_OPS(-EINVAL) },
	{ "all bits", GOOD, ~0ULL, ALL_OPS(-EINVAL) },
	{ "end is zero", AT_END_OF_ALL, 1, ALL_OPS(-EINVAL) },
	{ "end wraps by one", AT_END_OF_ALL, 2, ALL_OPS(-EINVAL) },
};

/* More than the driver takes at once; nothing is left half done. */
static const struct bad bad_counts[] = {
	{ "terabytes", GOOD, TOO_MANY, ALL_OPS(-E2BIG) },
};

/* Addresses where a process has no memory, or not of the right kind. */
static const struct bad bad_addresses[] = {
	{ "page zero", NULL_PAGE, 1,
	  { -EFAULT, -EFAULT, -EINVAL, -EINVAL, 0, -EFAULT } },
	{ "kernel", IN_KERNEL, 1,
	  { -EFAULT, -EFAULT, -EINVAL, -EINVAL, 0, -EFAULT } },
	{ "end of user space", AT_END_OF_USER, 2,
	  { -EFAULT, -EFAULT, -EINVAL, -EINVAL, 0, -EFAULT } },
	{ "unmapped", UNMAPPED, 1,
	  { -EFAULT, -EFAULT, -EINVAL, -EINVAL, 0, -EFAULT } },
	{ "half unmapped", UNMAPPED, 2,
	  { -EFAULT, -EFAULT, -EINVAL, -EINVAL, 0, -EFAULT } },
	{ "PROT_NONE", NO_ACCESS, 1,
	  { -EFAULT, -EFAULT, -EINVAL, -EINVAL, 0, -EPERM } },
	{ "read-only", READ_ONLY, 1, { 0, -EPERM, 0, 0, 0, -EPERM } },
	{ "half read-only", READ_ONLY, 2, { 0, -EPERM, 0, 0, 0, -EPERM } },
	{ "vdso", VDSO, 1, { 0, -EPERM, -EINVAL, -EINVAL, 0, -EPERM } },
	{ "vvar", VVAR, 1,
	  { -EFAULT, -EFAULT, -EINVAL, -EINVAL, 0, -EFAULT } },
	{ "hugetlb", HUGETLB, 1, { 0, 0, -EINVAL, -EINVAL, 0, -EOPNOTSUPP } },
	{ "shared file", FILE_SHARED, 1, { 0, 0, -ENOENT, 0, 0, -EOPNOTSUPP } },
	{ "read-only file", FILE_READ_ONLY, 1,
	  { 0, -EPERM, -ENOENT, 0, 0, -EPERM } },
	{ "secret memory", SECRET, 1,
	  { -EFAULT, -EFAULT, -EINVAL, -EINVAL, 0, -EOPNOTSUPP } },
	{ "vsyscall", VSYSCALL, 1,
	  { -EFAULT, -EFAULT, -EINVAL, -EINVAL, 0, -EFAULT } },
};

FIXTURE(bad_input)
{
	struct dm_dev dev;
	struct dm_counts start;
	struct dm_mem m;
	unsigned char *scratch;
	uint64_t addr[NR_WHERE];
};

FIXTURE_VARIANT(bad_input)
{
	int unit;
};

FIXTURE_VARIANT_ADD(bad_input, private0)
{
	.unit = DM_PRIVATE0,
};

FIXTURE_VARIANT_ADD(bad_input, coherent0)
{
	.unit = DM_COHERENT0,
};

static uint64_t special_mapping(const char *name)
{
	FILE *f = fopen("/proc/self/maps", "r");
	uint64_t start = 0, from;
	char line[256];

	while (f && !start && fgets(line, sizeof(line), f))
		if (strstr(line, name) &&
		    sscanf(line, "%" SCNx64 "-", &from) == 1)
			start = from;
	if (f)
		fclose(f);
	return start;
}

/* A page of it that is there. */
static uint64_t map_secret(void)
{
	int fd = syscall(__NR_memfd_secret, O_CLOEXEC);
	char *p = MAP_FAILED;

	if (fd >= 0 && !ftruncate(fd, DM_PAGE))
		p = mmap(NULL, DM_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			 0);
	if (fd >= 0)
		close(fd);
	if (p == MAP_FAILED)
		return 0;
	*p = 1;
	return (uintptr_t)p;
}

static uint64_t map_at(int prot, int flags, int fd, unsigned long len)
{
	void *p = mmap(NULL, len, prot, flags, fd, 0);

	return p == MAP_FAILED ? 0 : (uintptr_t)p;
}

/*
 * The good memory surrounds what is bad, so that harm is seen: page 10 cannot
 * be written, 20 cannot be accessed, 30 is not there.
 */
static int make_places(uint64_t *addr, struct dm_mem *m)
{
	int fd = memfd_create("errno", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, DM_PAGE))
		return -errno;
	addr[GOOD] = (uintptr_t)m->cpu;
	addr[GOOD_UNALIGNED] = addr[GOOD] + 8;
	addr[NULL_PAGE] = 0;
	addr[IN_KERNEL] = KERNEL_ADDR;
	addr[AT_END_OF_USER] = LAST_PAGE;
	addr[AT_END_OF_ALL] = -DM_PAGE;
	addr[READ_ONLY] = (uintptr_t)dm_addr(m, 10);
	addr[NO_ACCESS] = (uintptr_t)dm_addr(m, 20);
	addr[UNMAPPED] = (uintptr_t)dm_addr(m, 30);
	addr[VDSO] = getauxval(AT_SYSINFO_EHDR);
	addr[VVAR] = special_mapping("[vvar]");
	addr[HUGETLB] = map_at(PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1,
			       DM_HUGE);
	addr[FILE_SHARED] = map_at(PROT_READ | PROT_WRITE, MAP_SHARED, fd,
				   DM_PAGE);
	addr[FILE_READ_ONLY] = map_at(PROT_READ, MAP_SHARED, fd, DM_PAGE);
	addr[SECRET] = map_secret();
	addr[VSYSCALL] = VSYSCALL_ADDR;
	close(fd);

	/* The gap last, or one of the others would be mapped there. */
	if (mprotect(dm_addr(m, 10), DM_PAGE, PROT_READ) ||
	    mprotect(dm_addr(m, 20), DM_PAGE, PROT_NONE) ||
	    munmap(dm_addr(m, 30), DM_PAGE))
		return -errno;
	return 0;
}

FIXTURE_SETUP(bad_input)
{
	int err = dm_open(&self->dev, variant->unit);

	dm_counts(variant->unit, &self->start);
	if (err && dm_is_coherent(variant->unit))
		SKIP(return, "no coherent device: load with spm_addr_dev0/1");
	ASSERT_EQ(0, err);
	ASSERT_EQ(0, dm_small(&self->m, NPAGES));
	self->scratch = calloc(NPAGES, DM_PAGE);
	ASSERT_NE(NULL, self->scratch);
	ASSERT_EQ(0, make_places(self->addr, &self->m));
}

FIXTURE_TEARDOWN(bad_input)
{
	free(self->scratch);
	dm_free(&self->m);
	dm_close(&self->dev);
	EXPECT_BALANCED(variant->unit, &self->start);
}

/* Pages that any process could use must be as they were. */
#define EXPECT_UNHARMED() do { \
	EXPECT_IN_RAM(&self->dev, &self->m, 0, 10); \
	EXPECT_CPU_SEES(&self->m, 0, 20); \
	EXPECT_CPU_SEES(&self->m, 21, 9); \
	EXPECT_CPU_SEES(&self->m, 31, 1); \
} while (0)

static int one_call(const struct dm_dev *d, enum op op, uint64_t addr,
		    uint64_t npages, uint64_t ptr)
{
	struct hmm_dmirror_cmd cmd = {
		.addr = addr,
		.npages = npages,
		.ptr = ptr,
	};

	return dm_ioctl(d, op_code[op], &cmd);
}

/* Wherever the range begins for a bad reason, half of it begins before. */
static uint64_t start_of(const uint64_t *addr, const struct bad *bad)
{
	bool half = bad->npages == 2 &&
		    (bad->where == UNMAPPED || bad->where == READ_ONLY);

	return addr[bad->where] - (half ? DM_PAGE : 0);
}

#define RUN_TABLE(table) do { \
	const struct bad *bad; \
	for (bad = (table); bad < (table) + ARRAY_SIZE(table); bad++) { \
		int nth; \
		for (nth = 0; nth < NR_OPS; nth++) { \
			enum op op = in_order(nth); \
			EXPECT_EQ(bad->err[column(op)], \
				  one_call(&self->dev, op, \
					   start_of(self->addr, bad), \
					   bad->npages, \
					   (uintptr_t)self->scratch)) \
				TH_LOG("%s: %s", op_name[op], bad->what); \
		} \
	} \
} while (0)

TEST_F(bad_input, ranges)
{
	RUN_TABLE(bad_ranges);
	EXPECT_UNHARMED();
}

TEST_F(bad_input, counts)
{
	RUN_TABLE(bad_counts);
	EXPECT_UNHARMED();
}

TEST_F(bad_input, addresses)
{
	ASSERT_NE(0, self->addr[VDSO]);
	ASSERT_NE(0, self->addr[VVAR]);
	ASSERT_NE(0, self->addr[FILE_SHARED]);
	ASSERT_NE(0, self->addr[SECRET]);
	if (!self->addr[HUGETLB])
		SKIP(return, "no hugetlb pages: boot with hugepages=");
	RUN_TABLE(bad_addresses);
	/* One read-only page may have moved: it was good for that. */
	EXPECT_CPU_SEES(&self->m, 0, 20);
	EXPECT_CPU_SEES(&self->m, 21, 9);
}

/* A snapshot does not fail: it says what it found. */
TEST_F(bad_input, snapshot_says_error)
{
	static const enum where none[] = {
		NULL_PAGE, IN_KERNEL, UNMAPPED, NO_ACCESS, VVAR, SECRET,
		VSYSCALL,
	};
	unsigned char perm;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(none); i++) {
		perm = 0x77;
		EXPECT_EQ(0, one_call(&self->dev, SNAPSHOT, self->addr[none[i]],
				      1, (uintptr_t)&perm));
		EXPECT_EQ(HMM_DMIRROR_PROT_ERROR, perm)
			TH_LOG("place %d", none[i]);
	}
	EXPECT_EQ(0, one_call(&self->dev, SNAPSHOT, self->addr[READ_ONLY], 1,
			      (uintptr_t)&perm));
	EXPECT_EQ(HMM_DMIRROR_PROT_READ, perm);
}

/* The buffer is bad: no page moves for that. */
TEST_F(bad_input, buffers)
{
	static const uint64_t bad_ptr[] = { 0, 1, KERNEL_ADDR, ~0ULL };
	unsigned int i;
	int op;

	for (op = 0; op < NR_OPS; op++) {
		if (op == TO_SYS)
			continue;
		/* Exclusive access is for pages in RAM. */
		EXPECT_EQ(0, dm_to_sys(&self->dev, &self->m, 0, 10));
		for (i = 0; i < ARRAY_SIZE(bad_ptr); i++)
			EXPECT_EQ(-EFAULT, one_call(&self->dev, op,
						    self->addr[GOOD], 4,
						    bad_ptr[i]))
				TH_LOG("%s, buffer %d", op_name[op], i);
		EXPECT_EQ(-EFAULT, one_call(&self->dev, op, self->addr[GOOD], 4,
					    self->addr[NO_ACCESS]))
			TH_LOG("%s, buffer without access", op_name[op]);
		EXPECT_IN_RAM(&self->dev, &self->m, 0, 10);
	}
	EXPECT_CPU_SEES(&self->m, 0, 10);
	EXPECT_EQ(0, dm_to_sys(&self->dev, &self->m, 0, 10));
	EXPECT_UNHARMED();
}

/* A buffer that ends too early gets an error, not a partial success. */
TEST_F(bad_input, short_buffer)
{
	uint64_t last = self->addr[UNMAPPED] - DM_PAGE;

	EXPECT_EQ(-EFAULT, one_call(&self->dev, READ, self->addr[GOOD], 2,
				    last));
	EXPECT_EQ(-EFAULT, one_call(&self->dev, WRITE, self->addr[GOOD], 2,
				    last));
	EXPECT_CPU_SEES(&self->m, 0, 10);
}

/* Nor half a write, however far away the end is. */
TEST_F(bad_input, short_buffer_of_a_long_write)
{
	const unsigned long n = 1000;
	struct dm_mem to;
	char *from;

	ASSERT_EQ(0, dm_small(&to, n));
	from = mmap(NULL, n * DM_PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, from);
	ASSERT_EQ(0, mprotect(from + (n - 1) * DM_PAGE, DM_PAGE, PROT_NONE));
	EXPECT_EQ(-EFAULT, one_call(&self->dev, WRITE, (uintptr_t)to.cpu, n,
				    (uintptr_t)from));
	EXPECT_CPU_SEES(&to, 0, n);
	munmap(from, n * DM_PAGE);
	dm_free(&to);
}

TEST_F(bad_input, commands)
{
	EXPECT_EQ(-1, ioctl(self->dev.fd, HMM_DMIRROR_READ, NULL));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(-1, ioctl(self->dev.fd, HMM_DMIRROR_READ, KERNEL_ADDR));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(-EINVAL, dm_op(&self->dev,
				 _IOWR('H', 0x7f, struct hmm_dmirror_cmd),
				 self->m.cpu, 1, self->scratch));
	EXPECT_EQ(-EINVAL, dm_op(&self->dev,
				 _IOWR('I', 0x00, struct hmm_dmirror_cmd),
				 self->m.cpu, 1, self->scratch));
	EXPECT_UNHARMED();
}

/* Nothing on the device, nothing exclusive: not an error. */
TEST_F(bad_input, nothing_to_do)
{
	EXPECT_EQ(0, dm_to_sys(&self->dev, &self->m, 0, 10));
	EXPECT_EQ(0, dm_check_exclusive(&self->dev, &self->m, 0, 10));
	EXPECT_UNHARMED();
}

/* An error in the middle leaves the other pages as they are, for all ops. */
TEST_F(bad_input, device_memory_before_the_error)
{
	EXPECT_EQ(0, dm_to_dev(&self->dev, &self->m, 0, 10));
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, 10);
	EXPECT_EQ(-1000L - EFAULT, dm_dev_wrong(&self->dev, &self->m, 0, 21));
	EXPECT_EQ(-EINVAL, dm_to_dev(&self->dev, &self->m, 0, 21));
	EXPECT_ON_DEVICE(&self->dev, &self->m, 0, 10);
	EXPECT_DEVICE_SEES(&self->dev, &self->m, 0, 10);
	EXPECT_EQ(-EINVAL, dm_to_sys(&self->dev, &self->m, 0, 21));
	EXPECT_CPU_SEES(&self->m, 0, 20);
}

/* ---- whose memory ---- */

/* The file was opened by the parent: that is whose memory it is. */
TEST_F(bad_input, inherited_file)
{
	struct dm_mem theirs = self->m;
	pid_t pid;

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		theirs.tag = malloc(NPAGES * sizeof(*theirs.tag));
		memcpy(theirs.tag, self->m.tag, NPAGES * sizeof(*theirs.tag));
		/* Own memory changes, the mirror of the parent does not. */
		dm_cpu_write(&self->m, 0, 10);
		EXPECT_DEVICE_SEES(&self->dev, &theirs, 0, 10);
		_exit(0);
	}
	EXPECT_EQ(0, dm_wait(pid));
	EXPECT_UNHARMED();
}

/* Nobody is left whose memory it could be. */
TEST_F(bad_input, owner_is_gone)
{
	int answer[2], gone[2], err[NR_OPS], op;
	pid_t owner;
	char x;

	ASSERT_EQ(0, pipe(answer));
	ASSERT_EQ(0, pipe(gone));
	owner = fork();
	ASSERT_GE(owner, 0);
	if (!owner) {
		struct dm_dev d;

		close(gone[1]);
		EXPECT_EQ(0, dm_open(&d, variant->unit));
		if (fork())
			_exit(0);
		while (read(gone[0], &x, 1) > 0)
			;
		for (op = 0; op < NR_OPS; op++)
			err[op] = one_call(&d, op, self->addr[GOOD], 1,
					   (uintptr_t)self->scratch);
		_exit(write(answer[1], err, sizeof(err)) != sizeof(err));
	}
	EXPECT_EQ(0, dm_wait(owner));
	close(gone[1]);
	close(answer[1]);
	ASSERT_EQ((ssize_t)sizeof(err), read(answer[0], err, sizeof(err)));
	EXPECT_EQ(-EFAULT, err[READ]);
	EXPECT_EQ(-EFAULT, err[WRITE]);
	EXPECT_EQ(-EINVAL, err[TO_DEV]);
	EXPECT_EQ(-EINVAL, err[TO_SYS]);
	EXPECT_EQ(-EINVAL, err[SNAPSHOT]);
	EXPECT_EQ(-EINVAL, err[EXCLUSIVE]);
	EXPECT_EQ(-EFAULT, err[READ_UNLOCKED]);
	EXPECT_EQ(-EFAULT, err[WRITE_UNLOCKED]);
	close(gone[0]);
	close(answer[0]);
}

TEST_HARNESS_MAIN
