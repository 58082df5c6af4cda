// SPDX-License-Identifier: GPL-2.0
/*
 * What heterogeneous memory management is for, on real memory: a device reads
 * the memory of a process where it is, gets it into its own memory, changes it
 * there, and the process, which was never told, goes on with what the device
 * has written. Every byte is compared at every step.
 *
 * Exit status: 0 if all was right, 1 if not, 2 if there is no device.
 */
#include "../kselftest.h"
#include "hmm_dmirror.h"

#define DEFAULT_MIB	64L
#define MIB		(1L << 20)
/* The driver copies by way of a buffer in the kernel: in slices. */
#define SLICE		(4 * MIB / (long)DM_PAGE)

static const char * const place_name[AT_NR_PLACES] = {
	[AT_RAM] = "RAM",
	[AT_DEVICE] = "device",
	[AT_ZERO] = "zero",
	[AT_NOWHERE] = "none",
	[AT_OTHER_DEVICE] = "other dev",
	[AT_ERROR] = "error",
};

struct show {
	const char *title;
	int unit;
	bool huge;
};

static const struct show shows[] = {
	{ "device-private memory, 4 KiB pages", DM_PRIVATE0, false },
	{ "device-private memory, transparent huge pages", DM_PRIVATE0, true },
	{ "device-coherent memory, 4 KiB pages", DM_COHERENT0, false },
	{ "device-coherent memory, transparent huge pages", DM_COHERENT0, true },
};

static long total_pages, total_wrong;

/* Do one thing to all of the memory, slice by slice; return what went wrong. */
static long each_slice(const struct dm_dev *d, struct dm_mem *m,
		       long (*step)(const struct dm_dev *d, struct dm_mem *m,
				    long first, long n))
{
	long first, n, wrong = 0;

	for (first = 0; first < (long)m->pages; first += n) {
		n = (long)m->pages - first;
		if (n > SLICE)
			n = SLICE;
		wrong += step(d, m, first, n);
	}
	return wrong;
}

/* Count pages rather than stop at the first: a demo should say how bad. */
static long count_wrong(const struct dm_mem *m, long first, long n,
			const unsigned char *bytes)
{
	long i, wrong = 0;

	for (i = 0; i < n; i++)
		wrong += !dm_page_is(bytes + i * DM_PAGE, m->tag[first + i]);
	return wrong;
}

static long cpu_writes(const struct dm_dev *d, struct dm_mem *m, long first,
		       long n)
{
	(void)d;
	dm_cpu_write(m, first, n);
	return 0;
}

static long cpu_compares(const struct dm_dev *d, struct dm_mem *m, long first,
			 long n)
{
	(void)d;
	return count_wrong(m, first, n, dm_addr(m, first));
}

static long device_compares(const struct dm_dev *d, struct dm_mem *m,
			    long first, long n)
{
	unsigned char *copy = calloc(n, DM_PAGE);
	long wrong = n;

	if (copy && !dm_op(d, HMM_DMIRROR_READ, dm_addr(m, first), n, copy))
		wrong = count_wrong(m, first, n, copy);
	free(copy);
	return wrong;
}

static long to_device(const struct dm_dev *d, struct dm_mem *m, long first,
		      long n)
{
	return dm_to_dev(d, m, first, n) ? n : 0;
}

static long to_system(const struct dm_dev *d, struct dm_mem *m, long first,
		      long n)
{
	return dm_to_sys(d, m, first, n) ? n : 0;
}

static long device_writes(const struct dm_dev *d, struct dm_mem *m, long first,
			  long n)
{
	return dm_dev_write(d, m, first, n) ? n : 0;
}

/* All pages have to be at @want afterwards. AT_NR_PLACES: no matter where. */
struct step {
	const char *name;
	long (*run)(const struct dm_dev *d, struct dm_mem *m, long first,
		    long n);
	enum dm_place private, coherent;
};

static const struct step steps[] = {
	{ "process writes", cpu_writes, AT_RAM, AT_RAM },
	{ "device reads its mirror", device_compares, AT_RAM, AT_RAM },
	{ "migrate to the device", to_device, AT_DEVICE, AT_DEVICE },
	{ "device reads its memory", device_compares, AT_DEVICE, AT_DEVICE },
	{ "device changes all of it", device_writes, AT_DEVICE, AT_DEVICE },
	{ "process reads the change", cpu_compares, AT_RAM, AT_DEVICE },
	{ "migrate to RAM", to_system, AT_RAM, AT_RAM },
	{ "process compares again", cpu_compares, AT_RAM, AT_RAM },
};

static void print_places(const struct dm_dev *d, const long *count)
{
	bool first = true;
	int at;

	for (at = 0; at < AT_NR_PLACES; at++) {
		if (!count[at])
			continue;
		printf("%s%ld %s%s", first ? "  " : ", ", count[at],
		       at != AT_DEVICE ? "" :
		       dm_is_coherent(d->unit) ? "coherent " : "private ",
		       place_name[at]);
		first = false;
	}
}

static long run_step(const struct dm_dev *d, struct dm_mem *m,
		     const struct step *step)
{
	enum dm_place want = dm_is_coherent(d->unit) ? step->coherent :
						       step->private;
	long count[AT_NR_PLACES], wrong;
	double start = dm_now(), took;

	wrong = each_slice(d, m, step->run);
	took = dm_now() - start;
	if (dm_census(d, m, 0, m->pages, count))
		wrong = m->pages;
	if (count[want] != (long)m->pages)
		wrong += (long)m->pages - count[want];

	printf("  %-26s %7ld %10ld %8.1f", step->name, m->pages,
	       m->pages * (long)DM_PAGE, took * 1000);
	print_places(d, count);
	if (wrong)
		printf("  WRONG: %ld", wrong);
	printf("\n");
	fflush(stdout);
	total_pages += m->pages;
	total_wrong += wrong;
	return wrong;
}

static int make_memory(struct dm_mem *m, bool huge, long mib)
{
	return huge ? dm_huge(m, mib * MIB / DM_HUGE) :
		      dm_hole(m, mib * MIB / DM_PAGE);
}

/* Return false if the device is not there. */
static bool run_show(const struct show *show, long mib)
{
	struct dm_dev d;
	struct dm_mem m;
	unsigned int i;
	int err;

	if (dm_open(&d, show->unit))
		return false;

	printf("\n%s (/dev/hmm_dmirror%d)\n", show->title, show->unit);
	printf("  %-26s %7s %10s %8s  %s\n", "step", "pages", "bytes", "ms",
	       "where the pages are");
	err = make_memory(&m, show->huge, mib);
	if (err) {
		printf("  no memory to show it on: %s\n", strerror(-err));
		total_wrong++;
	}
	for (i = 0; !err && i < ARRAY_SIZE(steps); i++)
		run_step(&d, &m, &steps[i]);
	dm_free(&m);
	dm_close(&d);
	return true;
}

int main(int argc, char **argv)
{
	long mib = argc > 1 ? atol(argv[1]) : DEFAULT_MIB;
	unsigned int i, shown = 0;

	if (argc > 2 || mib < 2 || mib > 1024 || mib % 2) {
		fprintf(stderr, "usage: %s [MiB of memory, even, 2 to 1024]\n",
			argv[0]);
		return 1;
	}
	printf("A process shares %ld MiB of its memory with a device.\n", mib);
	for (i = 0; i < ARRAY_SIZE(shows); i++)
		shown += run_show(&shows[i], mib);
	if (!shown) {
		fprintf(stderr,
			"No device: /dev/hmm_dmirror0 is missing. Is the test_hmm module loaded?\n");
		return 2;
	}
	if (!dm_is_coherent(shows[shown - 1].unit))
		printf("\nNo coherent device: test_hmm has no spm_addr_dev0= and spm_addr_dev1=\n");
	printf("\n%s: %ld pages checked, %ld wrong.\n",
	       total_wrong ? "FAILED" : "All right", total_pages, total_wrong);
	return total_wrong ? 1 : 0;
}
