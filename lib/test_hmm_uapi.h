/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * ioctl()s of /dev/hmm_dmirror*: a device that shares the address space of the
 * process that opened it. See lib/test_hmm.c.
 */
#ifndef _LIB_TEST_HMM_UAPI_H
#define _LIB_TEST_HMM_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * struct hmm_dmirror_cmd - argument of every ioctl
 * @addr: in: first address in the mirrored process, page aligned
 * @ptr: in: buffer in the caller; see each ioctl
 * @npages: in: number of pages from @addr on
 * @cpages: out: number of pages that were copied, moved or described
 * @faults: out: number of times the device had to fault
 *
 * The results are only filled in when the ioctl succeeds.
 */
struct hmm_dmirror_cmd {
	__u64	addr, ptr, npages;
	__u64	cpages, faults;
};

#define HMM_DMIRROR_IOC(nr)	_IOWR('H', nr, struct hmm_dmirror_cmd)

/*
 * The device reads @addr.., or writes there; the data is in @ptr. To write, the
 * file has to be open for that: -EBADF.
 */
#define HMM_DMIRROR_READ		HMM_DMIRROR_IOC(0x00)
#define HMM_DMIRROR_WRITE		HMM_DMIRROR_IOC(0x01)

/* Move pages to the device's memory, and read them into @ptr; and back. */
#define HMM_DMIRROR_MIGRATE_TO_DEV	HMM_DMIRROR_IOC(0x02)
#define HMM_DMIRROR_MIGRATE_TO_SYS	HMM_DMIRROR_IOC(0x03)

/* What the device sees, without a fault: a byte per page (below) into @ptr. */
#define HMM_DMIRROR_SNAPSHOT		HMM_DMIRROR_IOC(0x04)

/* Keep the CPU out, and read into @ptr; -EPERM if a page keeps it out still. */
#define HMM_DMIRROR_EXCLUSIVE		HMM_DMIRROR_IOC(0x05)
#define HMM_DMIRROR_CHECK_EXCLUSIVE	HMM_DMIRROR_IOC(0x06)

/*
 * Empty the device's memory and take it away; more comes when it is needed. -EPERM
 * without CAP_SYS_ADMIN, and for FLAGS too: they are about the whole device.
 */
#define HMM_DMIRROR_RELEASE		HMM_DMIRROR_IOC(0x07)

/* Set the flags of the device to @npages, for what follows. */
#define HMM_DMIRROR_FLAGS		HMM_DMIRROR_IOC(0x08)

/* READ and WRITE with faults that may wait, as those of a CPU: for userfaultfd. */
#define HMM_DMIRROR_READ_UNLOCKED	HMM_DMIRROR_IOC(0x09)
#define HMM_DMIRROR_WRITE_UNLOCKED	HMM_DMIRROR_IOC(0x0a)

/* As MIGRATE_TO_DEV, and what is swapped out or shared is faulted in first. */
#define HMM_DMIRROR_FAULT_TO_DEV	HMM_DMIRROR_IOC(0x21)

/* The next large folio that is needed, on either side, is not to be had. Once. */
#define HMM_DMIRROR_FLAG_FAIL_ALLOC	0x1ULL

/* A CPU fault brings back 16 pages instead of one. */
#define HMM_DMIRROR_FLAG_FAULT_AROUND	0x200000000ULL

/* Copies fail, in both directions: -EIO. Until FLAGS says otherwise. */
#define HMM_DMIRROR_FLAG_FAIL_COPY	0x100000000ULL

/*
 * The device reads @addr.. by DMA addresses, which are made for this and are gone
 * afterwards. It has no private memory then: what is there comes to RAM first.
 * @faults: out: number of pieces that the memory was mapped in.
 */
#define HMM_DMIRROR_DMA_READ		HMM_DMIRROR_IOC(0x20)

/*
 * The byte of HMM_DMIRROR_SNAPSHOT: what the page may be used for, how large
 * its mapping is, and where it is. Nothing in the last column is plain RAM.
 */
enum {
	HMM_DMIRROR_PROT_NONE			= 0,
	HMM_DMIRROR_PROT_READ			= 1 << 0,
	HMM_DMIRROR_PROT_WRITE			= 1 << 1,

	HMM_DMIRROR_PROT_PMD			= 1 << 2,
	HMM_DMIRROR_PROT_PUD			= 1 << 3,

	HMM_DMIRROR_PROT_ZERO			= 1 << 4,
	HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL	= 2 << 4,
	HMM_DMIRROR_PROT_DEV_PRIVATE_REMOTE	= 3 << 4,
	HMM_DMIRROR_PROT_DEV_COHERENT_LOCAL	= 4 << 4,
	HMM_DMIRROR_PROT_DEV_COHERENT_REMOTE	= 5 << 4,

	/* No memory here, or none that a device may see; alone */
	HMM_DMIRROR_PROT_ERROR			= 0xff,
};

/* Kinds of devices: 0 and 1 are private, 2 and 3 coherent. */
enum {
	HMM_DMIRROR_MEMORY_DEVICE_PRIVATE	= 1,
	HMM_DMIRROR_MEMORY_DEVICE_COHERENT	= 2,
};

/**
 * struct hmm_edu_cmd - argument of every ioctl of /dev/hmm_edu
 * @addr: first address of the mirror, page aligned
 * @npages: number of pages
 * @flags: HMM_EDU_MAP_*
 * @from: page of the mirror, counted from 0
 * @to: page of the mirror, counted from 0
 * @dma: an address of the device's bus
 * @phys: an address of the machine's memory, 0 for none
 *
 * /dev/hmm_edu is a PCI device that QEMU has (-device edu): it copies memory to a
 * buffer of its own, and back. See lib/test_hmm_dma.c.
 */
struct hmm_edu_cmd {
	__u64	addr, npages, flags;
	__u64	from, to;
	__u64	dma, phys;
};

#define HMM_EDU_IOC(nr)		_IOWR('H', 0x40 + (nr), struct hmm_edu_cmd)

/* Mirror @npages from @addr on; once for a file. */
#define HMM_EDU_MIRROR		HMM_EDU_IOC(0)

/* Fault in and map @npages pages of the mirror, from @from on. */
#define HMM_EDU_MAP		HMM_EDU_IOC(1)
#define HMM_EDU_MAP_WRITE	0x1ULL	/* for writing, too */
#define HMM_EDU_MAP_PIECES	0x2ULL	/* large folios in one piece */

/* The device copies page @from to page @to; -ENOENT if one is not mapped. */
#define HMM_EDU_COPY		HMM_EDU_IOC(2)

/* @dma: out: where the device has page @from; -ENOENT if it is not mapped. */
#define HMM_EDU_WHERE		HMM_EDU_IOC(3)

/* @phys: out: where @dma leads to. */
#define HMM_EDU_TRANSLATE	HMM_EDU_IOC(4)

#endif /* _LIB_TEST_HMM_UAPI_H */
