/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * ioctl()s of /dev/hmm_bench: one operation on memory of the caller, and how
 * long the kernel's part of it took.
 */
#ifndef _HMM_BENCH_UAPI_H
#define _HMM_BENCH_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * struct hmm_bench_cmd - argument of every ioctl
 * @addr: in: first address, page aligned
 * @npages: in: pages from @addr on; of DEVICE, PGMAP and EVICT: pages at all
 * @batch: in: pages for each call into the core
 * @flags: in: HMM_BENCH_*
 * @ns: out: time in the core; what the driver has to do is not in it
 * @part_ns: out: the same by part: setup, pages, finalize; or map, unmap
 * @moved: out: pages that are now where they were to go, or that were described
 */
struct hmm_bench_cmd {
	__u64	addr, npages, batch, flags;
	__u64	ns, part_ns[3], moved;
};

#define HMM_BENCH_IOC(nr)	_IOWR('B', nr, struct hmm_bench_cmd)

/* hmm_range_fault() */
#define HMM_BENCH_MIRROR	HMM_BENCH_IOC(0)
/* migrate_vma_*(), to the device or to the system */
#define HMM_BENCH_MIGRATE	HMM_BENCH_IOC(1)
/* Have a device of @npages. All of its pages are free. */
#define HMM_BENCH_DEVICE	HMM_BENCH_IOC(2)
/* migrate_device_*(): the @npages that were given out last */
#define HMM_BENCH_EVICT		HMM_BENCH_IOC(3)
/* Nanoseconds in migrate_to_ram that are the driver's, and pages, since asked last */
#define HMM_BENCH_FAULTS	HMM_BENCH_IOC(4)
/* memremap_pages() and memunmap_pages() of @npages */
#define HMM_BENCH_PGMAP		HMM_BENCH_IOC(5)
/* DMA addresses, there and away */
#define HMM_BENCH_DMA		HMM_BENCH_IOC(6)

/* MIRROR: fault in what is not there, for writing; else a snapshot */
#define HMM_BENCH_FAULT		0x1
/* MIGRATE: back to RAM; else to the device */
#define HMM_BENCH_TO_RAM	0x2
/* MIRROR: with FAULT, for reading only */
#define HMM_BENCH_READ		0x4

#endif /* _HMM_BENCH_UAPI_H */
