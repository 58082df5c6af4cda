/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The inside of shared virtual memory, for nouveau_svm.c and its tests.
 *
 * What decides is pure, and stands first. What touches the hardware is a leaf
 * that a KUnit test can replace, and stands last.
 */
#ifndef __NOUVEAU_SVM_PRIV_H__
#define __NOUVEAU_SVM_PRIV_H__

#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/sizes.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include <nvif/event.h>
#include <nvif/if000c.h>
#include <nvif/object.h>

struct drm_nouveau_svm_bind;
struct hmm_devmem_result;
struct hmm_range;
struct nouveau_drm;
struct nouveau_vmm;

/* The GPU maps pages, or blocks of 2 MiB; a window lies inside of a block. */
#define NOUVEAU_SVM_BLOCK_SHIFT	21
#define NOUVEAU_SVM_BLOCK	BIT(NOUVEAU_SVM_BLOCK_SHIFT)
#define NOUVEAU_SVM_BLOCK_PAGES	(NOUVEAU_SVM_BLOCK >> PAGE_SHIFT)

/* An entry of the fault buffer: eight words. */
#define NOUVEAU_SVM_ENTRY_WORDS	8
#define NOUVEAU_SVM_ENTRY_INFO	7
#define NOUVEAU_SVM_INFO_VALID	BIT(31)

/* What the GPU was about to do, strictest last. */
enum nouveau_svm_access {
	NOUVEAU_SVM_PREFETCH,
	NOUVEAU_SVM_READ,
	NOUVEAU_SVM_WRITE,
	NOUVEAU_SVM_ATOMIC,
};

/**
 * struct nouveau_svm_fault - a fault that the GPU waits to see answered
 * @inst: instance address of the channel
 * @addr: address of the page
 * @access: what it wants
 * @hub: with @gpc and @client: who asks, as the hardware wants to hear it back
 * @gpc: see @hub
 * @client: see @hub
 */
struct nouveau_svm_fault {
	u64 inst;
	u64 addr;
	enum nouveau_svm_access access;
	u8 hub;
	u8 gpc;
	u8 client;
};

/**
 * struct nouveau_svm_window - pages to map in one go, within one block
 * @start: first address
 * @end: address behind the last page
 * @access: what all of them are to allow
 */
struct nouveau_svm_window {
	unsigned long start;
	unsigned long end;
	enum nouveau_svm_access access;
};

/**
 * struct nouveau_svm_bounds - which addresses the GPU shares with the process
 * @hole_start: first address that the driver manages
 * @hole_end: address behind the last one that it does
 * @limit: address behind the last one of the process or of the GPU
 */
struct nouveau_svm_bounds {
	unsigned long hole_start;
	unsigned long hole_end;
	unsigned long limit;
};

/**
 * struct nouveau_svm_scratch - room to answer one window at a time
 * @deadline: until when a window that is invalidated meanwhile is tried again
 * @words: what the mirror says of each page
 * @map: what the GPU is to map, with NOUVEAU_SVM_BLOCK_PAGES entries
 */
struct nouveau_svm_scratch {
	unsigned long deadline;
	unsigned long words[NOUVEAU_SVM_BLOCK_PAGES];
	struct nvif_vmm_pfnmap_v0 map;
};

/**
 * struct nouveau_svm_buffer - the ring that the GPU writes its faults to
 * @object: the ring, mapped
 * @notify: there is something in it
 * @work: answers it
 * @entries: size of the ring
 * @get_reg: register with the entry that we read next
 * @put_reg: register with the entry that the GPU writes next
 * @faults: room for as many faults as the ring has entries
 * @scratch: for @work
 *
 * Set once. What changes is @work's alone.
 */
struct nouveau_svm_buffer {
	struct nvif_object object;
	struct nvif_event notify;
	struct work_struct work;
	u32 entries;
	u32 get_reg;
	u32 put_reg;
	struct nouveau_svm_fault *faults;
	struct nouveau_svm_scratch *scratch;
};

/**
 * struct nouveau_svm - shared virtual memory of a device
 * @ref: the device has one until nouveau_svm_fini(), each svmm another
 * @drm: the device; good as long as a svmm that is not over, or the fault
 *	handler, is there
 * @lock: guards @channels and @svmms; the mutexes of svmms nest in it
 * @channels: which of @svmms a channel works in, by its instance address
 * @svmms: those that are not over
 * @buffer: the faults
 */
struct nouveau_svm {
	struct kref ref;
	struct nouveau_drm *drm;
	struct mutex lock;	/* @channels, @svmms */
	struct xarray channels;
	struct list_head svmms;
	struct nouveau_svm_buffer buffer;
};

/**
 * struct nouveau_svmm - the address space of a process on the GPU
 * @ref: the client has one until nouveau_svmm_fini(). Who finds the svmm by
 *	way of a channel or of the client takes another while it holds the lock
 *	under which it was found.
 * @node: in &nouveau_svm.svmms
 * @svm: the device, with a reference
 * @mm: the process, with a reference of mmgrab()
 * @bounds: what is shared; constant
 * @mirror: hears of all invalidations in @mm, until nouveau_svmm_fini()
 * @mutex: guards @blocks, @vmm and the page table of the GPU. Innermost, but for the
 *	locks of nvkm: mmap_lock -> folio lock -> mutex. Nobody may wait for
 *	memory under it, because reclaim ends up in @mirror.
 * @blocks: which blocks the GPU maps in one piece, by number
 * @vmm: where to map; NULL after nouveau_svmm_fini(), when nothing is mapped
 *	any more and nothing will be
 */
struct nouveau_svmm {
	struct kref ref;
	struct list_head node;
	struct nouveau_svm *svm;
	struct mm_struct *mm;
	struct nouveau_svm_bounds bounds;
	struct mmu_interval_notifier mirror;
	struct mutex mutex;	/* @blocks, @vmm, and what it maps */
	struct xarray blocks;
	struct nouveau_vmm *vmm;
};

/* Decisions */
bool nouveau_svm_decode(const u32 *words, struct nouveau_svm_fault *fault);
int nouveau_svm_compare(const void *a, const void *b);
unsigned int nouveau_svm_coalesce(const struct nouveau_svm_fault *faults,
				  unsigned int nr, unsigned long max_pages,
				  struct nouveau_svm_window *window);
bool nouveau_svm_covers(const struct nouveau_svm_window *done,
			const struct nouveau_svm_window *window);
unsigned int nouveau_svm_pieces(const struct nouveau_svm_bounds *bounds,
				unsigned long start, unsigned long end,
				struct nouveau_svm_window *pieces);
bool nouveau_svm_shared(const struct nouveau_svm_bounds *bounds,
			unsigned long start, unsigned long end);
unsigned long nouveau_svm_request(enum nouveau_svm_access access);
u64 nouveau_svm_pte(unsigned long word);
bool nouveau_svm_encode_block(const struct nouveau_svm_bounds *bounds,
			      const struct nouveau_svm_window *window,
			      unsigned long word, struct nvif_vmm_pfnmap_v0 *map);
void nouveau_svm_encode_pages(const struct nouveau_svm_window *window,
			      const unsigned long *words,
			      struct nvif_vmm_pfnmap_v0 *map);
unsigned long nouveau_svm_map_entries(const struct nvif_vmm_pfnmap_v0 *map);
enum nouveau_svm_access
nouveau_svm_granted(const struct nvif_vmm_pfnmap_v0 *map);
int nouveau_svm_pending(u32 get, u32 put, u32 entries);
bool nouveau_svm_cancels(enum nouveau_svm_access access, int err);
int nouveau_svm_check_bind(const struct drm_nouveau_svm_bind *args,
			   unsigned long limit, unsigned long *start,
			   unsigned long *end);

/* Life of the structs */
struct nouveau_svm *nouveau_svm_new(struct nouveau_drm *drm);
int nouveau_svm_alloc_faults(struct nouveau_svm *svm, u32 entries);
void nouveau_svm_put(struct nouveau_svm *svm);
struct nouveau_svmm *nouveau_svmm_new(struct nouveau_svm *svm,
				      struct nouveau_vmm *vmm,
				      struct mm_struct *mm,
				      const struct nouveau_svm_bounds *bounds);
void nouveau_svmm_put(struct nouveau_svmm *svmm);

/* What runs on them */
void nouveau_svm_handle_faults(struct nouveau_svm *svm);
int nouveau_svmm_bind_range(struct nouveau_svmm *svmm, unsigned long start,
			    unsigned long end, struct hmm_devmem_result *result);

/* Leaves */
void nouveau_svm_hw_replay(struct nouveau_svm *svm);
void nouveau_svm_hw_cancel(struct nouveau_svm *svm,
			   const struct nouveau_svm_fault *fault);
int nouveau_svm_hw_map(struct nouveau_svmm *svmm,
		       struct nvif_vmm_pfnmap_v0 *map);
void nouveau_svm_hw_clear(struct nouveau_svmm *svmm, unsigned long start,
			  unsigned long end);
u64 nouveau_svm_place(struct page *page);
int nouveau_svm_look(struct nouveau_svmm *svmm, struct hmm_range *range);
int nouveau_svm_migrate(struct nouveau_svmm *svmm, unsigned long start,
			unsigned long end, struct hmm_devmem_result *result);

#endif /* __NOUVEAU_SVM_PRIV_H__ */
