// SPDX-License-Identifier: GPL-2.0
/*
 * Shared virtual memory: a GPU that uses the addresses of a process.
 *
 * A client asks for it with SVM_INIT. From then on its channels work in an
 * address space, the svmm, whose page table mirrors that of the process, but
 * for a hole, the range that the driver manages itself. The table begins
 * empty. The GPU stops at a page that is not there, writes a fault into a ring,
 * and goes on when it is told to replay; a fault that has no answer is
 * cancelled, which kills the channel.
 *
 * Faults are sorted and put together into windows. Each window is answered in
 * a pass: subscribe to invalidations of the block around it, ask the mirror
 * for the pages, and, if nothing was invalidated meanwhile, map them. Atomic
 * access to RAM needs pages that no CPU touches at the same time. Atomic access
 * to VRAM does not: no CPU can.
 *
 * Migration maps nothing. It invalidates, like everybody else, and the pages
 * are mapped again where the mirror says they are. So there is one rule and no
 * exception: what the GPU maps was found by a pass, and cleared by the first
 * invalidation that came after, or before the device sleeps. Two subscriptions see
 * to that. The mirror of the svmm lasts, and clears. That of the pass makes the
 * pass notice, and clears too: which of them is called first is not defined, and a
 * pass that gets in between must not leave anything behind.
 */
#include "nouveau_svm.h"
#include "nouveau_svm_priv.h"
#include "nouveau_chan.h"
#include "nouveau_dmem.h"
#include "nouveau_drv.h"

#include <kunit/static_stub.h>
#include <linux/bitfield.h>
#include <linux/cleanup.h>
#include <linux/delay.h>
#include <linux/hmm.h>
#include <linux/hmm_devmem.h>
#include <linux/rmap.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sort.h>

#include <drm/drm_drv.h>
#include <nvif/class.h>
#include <nvif/clb069.h>
#include <nvif/ifc00d.h>
#include <nvif/vmm.h>

/* The GPU announces an entry before it has written it; for so long at most. */
#define ENTRY_WAIT_US	100

#define BLOCK_ORDER	(NOUVEAU_SVM_BLOCK_SHIFT - PAGE_SHIFT)

/* --- Decisions: no lock, no side effect ------------------------------------ */

/* The words of an entry that we need, and the fields of the last one. */
#define ENTRY_INST_LO	0
#define ENTRY_INST_HI	1
#define ENTRY_ADDR_LO	2
#define ENTRY_ADDR_HI	3
#define INFO_CLIENT	GENMASK(14, 8)
#define INFO_ACCESS	GENMASK(19, 16)
#define INFO_HUB	BIT(20)
#define INFO_GPC	GENMASK(28, 24)

/* What the hardware calls it. A kind of access that we do not know may write. */
static enum nouveau_svm_access access_of(u32 info)
{
	static const enum nouveau_svm_access known[] = {
		NOUVEAU_SVM_READ,
		NOUVEAU_SVM_WRITE,
		NOUVEAU_SVM_ATOMIC,
		NOUVEAU_SVM_PREFETCH,
	};
	u32 code = FIELD_GET(INFO_ACCESS, info);

	return code < ARRAY_SIZE(known) ? known[code] : NOUVEAU_SVM_WRITE;
}

static u64 word_pair(const u32 *words, int lo, int hi)
{
	return (u64)words[hi] << 32 | words[lo];
}

/* Reads an entry of the ring. False, and @fault as it was: it is not valid. */
bool nouveau_svm_decode(const u32 *words, struct nouveau_svm_fault *fault)
{
	u32 info = words[NOUVEAU_SVM_ENTRY_INFO];

	if (!(info & NOUVEAU_SVM_INFO_VALID))
		return false;
	*fault = (struct nouveau_svm_fault) {
		.inst	= word_pair(words, ENTRY_INST_LO, ENTRY_INST_HI),
		.addr	= word_pair(words, ENTRY_ADDR_LO, ENTRY_ADDR_HI) & PAGE_MASK,
		.access	= access_of(info),
		.hub	= FIELD_GET(INFO_HUB, info),
		.gpc	= FIELD_GET(INFO_GPC, info),
		.client	= FIELD_GET(INFO_CLIENT, info),
	};
	return true;
}

static int order_of(u64 l, u64 r)
{
	return l < r ? -1 : l > r;
}

/*
 * By channel, then by address, and of one page the strictest access first: its
 * answer is one for the others as well.
 */
int nouveau_svm_compare(const void *a, const void *b)
{
	const struct nouveau_svm_fault *l = a, *r = b;

	return order_of(l->inst, r->inst) ?: order_of(l->addr, r->addr) ?:
	       order_of(r->access, l->access);
}

static bool extends(const struct nouveau_svm_window *window,
		    const struct nouveau_svm_fault *fault,
		    unsigned long max_pages)
{
	return fault->addr == window->end && fault->access == window->access &&
	       !IS_ALIGNED(window->end, NOUVEAU_SVM_BLOCK) &&
	       (window->end - window->start) >> PAGE_SHIFT < max_pages;
}

/*
 * A window of the first faults: those of one channel and one access on neighbouring
 * pages of one block, and with them all others on these pages that ask for no
 * more. Atomic access has a window for each page. Returns how many they are.
 */
unsigned int nouveau_svm_coalesce(const struct nouveau_svm_fault *faults,
				  unsigned int nr, unsigned long max_pages,
				  struct nouveau_svm_window *window)
{
	unsigned int n;

	if (faults->access == NOUVEAU_SVM_ATOMIC)
		max_pages = 1;
	*window = (struct nouveau_svm_window) {
		.start	= faults->addr,
		.end	= faults->addr + PAGE_SIZE,
		.access	= faults->access,
	};
	for (n = 1; n < nr && faults[n].inst == faults->inst; n++) {
		if (faults[n].addr < window->end)
			continue;
		if (!extends(window, &faults[n], max_pages))
			break;
		window->end += PAGE_SIZE;
	}
	return n;
}

/* Does what was mapped last have all pages of a window, and allow as much? */
bool nouveau_svm_covers(const struct nouveau_svm_window *done,
			const struct nouveau_svm_window *window)
{
	return done->start <= window->start && window->end <= done->end &&
	       window->access <= done->access;
}

/*
 * What of a range is shared: 0, 1 or 2 pieces, with the hole between them. They
 * ask for no access.
 */
unsigned int nouveau_svm_pieces(const struct nouveau_svm_bounds *bounds,
				unsigned long start, unsigned long end,
				struct nouveau_svm_window *pieces)
{
	unsigned int n = 0;

	end = min(end, bounds->limit);
	if (start < min(end, bounds->hole_start))
		pieces[n++] = (struct nouveau_svm_window) {
			start, min(end, bounds->hole_start)
		};
	if (max(start, bounds->hole_end) < end)
		pieces[n++] = (struct nouveau_svm_window) {
			max(start, bounds->hole_end), end
		};
	return n;
}

/* May all of a range be mapped? */
bool nouveau_svm_shared(const struct nouveau_svm_bounds *bounds,
			unsigned long start, unsigned long end)
{
	struct nouveau_svm_window pieces[2];

	return nouveau_svm_pieces(bounds, start, end, pieces) == 1 &&
	       pieces->start == start && pieces->end == end;
}

/*
 * What to ask of the mirror; a prefetch takes what is there. Atomic access needs
 * a page to write to, first of all: to have it copied, and taken back from who
 * has it for himself, is an invalidation, and must come before the one of
 * make_device_exclusive().
 */
unsigned long nouveau_svm_request(enum nouveau_svm_access access)
{
	switch (access) {
	case NOUVEAU_SVM_PREFETCH:
		return 0;
	case NOUVEAU_SVM_READ:
		return HMM_PFN_REQ_FAULT;
	default:
		return HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE;
	}
}

/*
 * From a word of the mirror to an entry of PFNMAP, which is 0 if there is no page
 * that can be mapped. Like all that encodes, it needs a word that still holds:
 * svmm->mutex, after mmu_interval_read_retry().
 */
u64 nouveau_svm_pte(unsigned long word)
{
	u64 pte;

	if (!(word & HMM_PFN_VALID))
		return NVIF_VMM_PFNMAP_V0_NONE;
	pte = nouveau_svm_place(hmm_pfn_to_page(word));
	if (!pte)
		return NVIF_VMM_PFNMAP_V0_NONE;
	if (word & HMM_PFN_WRITE)
		pte |= NVIF_VMM_PFNMAP_V0_W;
	if (word & HMM_PFN_WRITE && pte & NVIF_VMM_PFNMAP_V0_VRAM)
		pte |= NVIF_VMM_PFNMAP_V0_A;
	return pte | NVIF_VMM_PFNMAP_V0_V;
}

/*
 * Maps the whole block around a window, if the CPU maps it in one piece, and the
 * GPU may. @word is that of the first page. Else @map is as it was.
 */
bool nouveau_svm_encode_block(const struct nouveau_svm_bounds *bounds,
			      const struct nouveau_svm_window *window,
			      unsigned long word, struct nvif_vmm_pfnmap_v0 *map)
{
	unsigned long start = ALIGN_DOWN(window->start, NOUVEAU_SVM_BLOCK);
	u64 pte;

	if (!(word & HMM_PFN_VALID) || hmm_pfn_to_map_order(word) < BLOCK_ORDER ||
	    !nouveau_svm_shared(bounds, start, start + NOUVEAU_SVM_BLOCK))
		return false;
	pte = nouveau_svm_pte(word - ((window->start - start) >> PAGE_SHIFT));
	if (!IS_ALIGNED(pte & NVIF_VMM_PFNMAP_V0_ADDR, NOUVEAU_SVM_BLOCK))
		return false;

	*map = (struct nvif_vmm_pfnmap_v0) {
		.page	= NOUVEAU_SVM_BLOCK_SHIFT,
		.addr	= start,
		.size	= NOUVEAU_SVM_BLOCK,
	};
	map->phys[0] = pte;
	return true;
}

/* Maps each page of a window. */
void nouveau_svm_encode_pages(const struct nouveau_svm_window *window,
			      const unsigned long *words,
			      struct nvif_vmm_pfnmap_v0 *map)
{
	unsigned long i;

	*map = (struct nvif_vmm_pfnmap_v0) {
		.page	= PAGE_SHIFT,
		.addr	= window->start,
		.size	= window->end - window->start,
	};
	for (i = 0; i < nouveau_svm_map_entries(map); i++)
		map->phys[i] = nouveau_svm_pte(words[i]);
}

unsigned long nouveau_svm_map_entries(const struct nvif_vmm_pfnmap_v0 *map)
{
	return map->size >> map->page;
}

/*
 * What a call of PFNMAP allows on each of its pages; a prefetch, if there are some
 * that it does not map.
 */
enum nouveau_svm_access nouveau_svm_granted(const struct nvif_vmm_pfnmap_v0 *map)
{
	u64 common = ~0ULL;
	unsigned long i;

	for (i = 0; i < nouveau_svm_map_entries(map); i++)
		common &= map->phys[i];
	if (!(common & NVIF_VMM_PFNMAP_V0_V))
		return NOUVEAU_SVM_PREFETCH;
	if (!(common & NVIF_VMM_PFNMAP_V0_W))
		return NOUVEAU_SVM_READ;
	return common & NVIF_VMM_PFNMAP_V0_A ? NOUVEAU_SVM_ATOMIC :
					       NOUVEAU_SVM_WRITE;
}

/* How many entries of the ring wait for us; -EIO: no GPU has answered. */
int nouveau_svm_pending(u32 get, u32 put, u32 entries)
{
	if (get >= entries || put >= entries)
		return -EIO;
	return put >= get ? put - get : entries - get + put;
}

/*
 * Must a fault be cancelled? Not if it was answered; nor if others were faster, as
 * the next time they may not be; nor if nobody waits for the answer.
 */
bool nouveau_svm_cancels(enum nouveau_svm_access access, int err)
{
	switch (err) {
	case 0:
	case -EAGAIN:
	case -EBUSY:
	case -EINTR:
		return false;
	default:
		return access != NOUVEAU_SVM_PREFETCH;
	}
}

/* The priority is a hint, and any will do. */
#define BIND_HINT	((u64)NOUVEAU_SVM_BIND_PRIORITY_MASK << \
			 NOUVEAU_SVM_BIND_PRIORITY_SHIFT)
#define BIND_TO_VRAM	((u64)NOUVEAU_SVM_BIND_COMMAND__MIGRATE << \
			 NOUVEAU_SVM_BIND_COMMAND_SHIFT | \
			 (u64)NOUVEAU_SVM_BIND_TARGET__GPU_VRAM << \
			 NOUVEAU_SVM_BIND_TARGET_SHIFT)

/*
 * -EINVAL: unknown command or target, bits that mean nothing, a stride, an empty
 * range or one that is not below @limit, more pages than it has. Else the range,
 * in whole pages.
 */
int nouveau_svm_check_bind(const struct drm_nouveau_svm_bind *args,
			   unsigned long limit, unsigned long *start,
			   unsigned long *end)
{
	if ((args->header & ~BIND_HINT) != BIND_TO_VRAM || args->stride ||
	    args->reserved0 || args->reserved1 ||
	    args->va_start >= args->va_end || args->va_end > limit)
		return -EINVAL;

	*start = ALIGN_DOWN(args->va_start, PAGE_SIZE);
	*end = ALIGN(args->va_end, PAGE_SIZE);
	return args->npages > (*end - *start) >> PAGE_SHIFT ? -EINVAL : 0;
}

/* --- Leaves: the hardware, and device memory -------------------------------- */

static struct nvif_object *svm_device(struct nouveau_svm *svm)
{
	return &svm->drm->client.device.object;
}

/* The methods for faults belong to a VMM, but are for all of the GPU. */
static struct nvif_object *svm_fault_vmm(struct nouveau_svm *svm)
{
	return &svm->drm->client.vmm.vmm.object;
}

static u32 ring_offset(u32 entry, u32 word)
{
	return (entry * NOUVEAU_SVM_ENTRY_WORDS + word) * sizeof(u32);
}

static u32 ring_read(struct nouveau_svm *svm, u32 entry, u32 word)
{
	return nvif_rd32(&svm->buffer.object, ring_offset(entry, word));
}

/* The entry has been read: the next time round its valid bit must be news. */
static void ring_retire(struct nouveau_svm *svm, u32 entry, u32 info)
{
	nvif_wr32(&svm->buffer.object, ring_offset(entry, NOUVEAU_SVM_ENTRY_INFO),
		  info & ~NOUVEAU_SVM_INFO_VALID);
}

void nouveau_svm_hw_replay(struct nouveau_svm *svm)
{
	struct gp100_vmm_fault_replay_vn args = { };

	KUNIT_STATIC_STUB_REDIRECT(nouveau_svm_hw_replay, svm);
	WARN_ON_ONCE(nvif_object_mthd(svm_fault_vmm(svm), GP100_VMM_VN_FAULT_REPLAY,
				      &args, sizeof(args)));
}

void nouveau_svm_hw_cancel(struct nouveau_svm *svm,
			   const struct nouveau_svm_fault *fault)
{
	struct gp100_vmm_fault_cancel_v0 args = {
		.inst	= fault->inst,
		.hub	= fault->hub,
		.gpc	= fault->gpc,
		.client	= fault->client,
	};

	KUNIT_STATIC_STUB_REDIRECT(nouveau_svm_hw_cancel, svm, fault);
	NV_DEBUG(svm->drm, "svm: channel %llx: no answer to access %d of %llx\n",
		 fault->inst, fault->access, fault->addr);
	WARN_ON_ONCE(nvif_object_mthd(svm_fault_vmm(svm), GP100_VMM_VN_FAULT_CANCEL,
				      &args, sizeof(args)));
}

/*
 * Both of the following allocate memory, under svmm->mutex and in callbacks of
 * the mirror. If that went into reclaim, reclaim would unmap pages of some
 * process, maybe this one, and wait for the mutex that we hold.
 *
 * This is about our calls. For buffer objects nvkm allocates as well, under
 * mutexes of its own, and goes into reclaim there: that may come here, and wait
 * for what the same task holds. Only nvkm can keep that from happening.
 */
static int svmm_method(struct nouveau_svmm *svmm, u32 method, void *args, u32 size)
{
	unsigned int flags = memalloc_noreclaim_save();
	int err;

	err = nvif_object_mthd(&svmm->vmm->vmm.object, method, args, size);
	memalloc_noreclaim_restore(flags);
	return err;
}

int nouveau_svm_hw_map(struct nouveau_svmm *svmm, struct nvif_vmm_pfnmap_v0 *map)
{
	KUNIT_STATIC_STUB_REDIRECT(nouveau_svm_hw_map, svmm, map);
	return svmm_method(svmm, NVIF_VMM_V0_PFNMAP, map,
			   struct_size(map, phys, nouveau_svm_map_entries(map)));
}

void nouveau_svm_hw_clear(struct nouveau_svmm *svmm, unsigned long start,
			  unsigned long end)
{
	struct nvif_vmm_pfnclr_v0 args = {
		.addr	= start,
		.size	= end - start,
	};

	KUNIT_STATIC_STUB_REDIRECT(nouveau_svm_hw_clear, svmm, start, end);
	WARN_ON_ONCE(svmm_method(svmm, NVIF_VMM_V0_PFNCLR, &args, sizeof(args)));
}

/* Address and aperture of a page; 0: in VRAM that the board does not have now. */
u64 nouveau_svm_place(struct page *page)
{
	u64 addr;

	KUNIT_STATIC_STUB_REDIRECT(nouveau_svm_place, page);
	if (!is_device_private_page(page))
		return NVIF_VMM_PFNMAP_V0_HOST | page_to_phys(page);
	if (!nouveau_dmem_page_addr(page, &addr))
		return 0;
	return NVIF_VMM_PFNMAP_V0_VRAM | addr;
}

/*
 * Ask the mirror. Not hmm_range_fault_unlocked_timeout(), which waits for
 * userfaultfd: one worker does this for all processes, and nobody can kill it. A
 * monitor that never answers must not stop the faults of the others.
 */
int nouveau_svm_look(struct nouveau_svmm *svmm, struct hmm_range *range)
{
	int err;

	KUNIT_STATIC_STUB_REDIRECT(nouveau_svm_look, svmm, range);
	if (mmap_read_lock_killable(svmm->mm))
		return -EINTR;
	err = hmm_range_fault(range);
	mmap_read_unlock(svmm->mm);
	return err;
}

int nouveau_svm_migrate(struct nouveau_svmm *svmm, unsigned long start,
			unsigned long end, struct hmm_devmem_result *result)
{
	KUNIT_STATIC_STUB_REDIRECT(nouveau_svm_migrate, svmm, start, end, result);
	return nouveau_dmem_migrate(svmm->svm->drm, svmm->mm, start, end, result);
}

/* --- Invalidation ----------------------------------------------------------- */

/*
 * The GPU cannot clear a part of a block that it maps in one piece. It may have
 * to: the CPU may map the block by single entries, and invalidate one of them.
 */
static bool mapped_in_one(struct nouveau_svmm *svmm, unsigned long addr)
{
	return xa_load(&svmm->blocks, addr >> NOUVEAU_SVM_BLOCK_SHIFT);
}

static int remember_block(struct nouveau_svmm *svmm, unsigned long addr)
{
	return xa_err(xa_store(&svmm->blocks, addr >> NOUVEAU_SVM_BLOCK_SHIFT,
			       xa_mk_value(1), GFP_NOWAIT | __GFP_NOWARN));
}

static void forget_blocks(struct nouveau_svmm *svmm, unsigned long start,
			  unsigned long end)
{
	unsigned long block;
	void *entry;

	xa_for_each_range(&svmm->blocks, block, entry,
			  start >> NOUVEAU_SVM_BLOCK_SHIFT,
			  (end - 1) >> NOUVEAU_SVM_BLOCK_SHIFT)
		xa_erase(&svmm->blocks, block);
}

static void svmm_clear(struct nouveau_svmm *svmm, unsigned long start,
		       unsigned long end)
{
	struct nouveau_svm_window pieces[2];
	unsigned int nr, i;

	lockdep_assert_held(&svmm->mutex);
	if (!svmm->vmm)
		return;
	if (mapped_in_one(svmm, start))
		start = ALIGN_DOWN(start, NOUVEAU_SVM_BLOCK);
	if (mapped_in_one(svmm, end - 1))
		end = ALIGN(end, NOUVEAU_SVM_BLOCK);
	forget_blocks(svmm, start, end);

	nr = nouveau_svm_pieces(&svmm->bounds, start, end, pieces);
	for (i = 0; i < nr; i++)
		nouveau_svm_hw_clear(svmm, pieces[i].start, pieces[i].end);
}

/* What of the range the subscription covers is cleared. */
static bool svmm_invalidate(struct nouveau_svmm *svmm,
			    struct mmu_interval_notifier *notifier,
			    const struct mmu_notifier_range *range,
			    unsigned long seq)
{
	unsigned long start = max(range->start, notifier->interval_tree.start);
	unsigned long last = min(range->end - 1, notifier->interval_tree.last);

	if (!mmu_notifier_range_blockable(range))
		return false;

	guard(mutex)(&svmm->mutex);
	mmu_interval_set_seq(notifier, seq);
	svmm_clear(svmm, start, last + 1);
	return true;
}

static bool mirror_invalidate(struct mmu_interval_notifier *notifier,
			      const struct mmu_notifier_range *range,
			      unsigned long seq)
{
	return svmm_invalidate(container_of(notifier, struct nouveau_svmm, mirror),
			       notifier, range, seq);
}

static const struct mmu_interval_notifier_ops mirror_ops = {
	.invalidate = mirror_invalidate,
};

/* --- A pass: map one window ------------------------------------------------- */

/* The attempts to map a window. */
struct svm_pass {
	struct mmu_interval_notifier notifier;	/* of the block around it */
	struct nouveau_svmm *svmm;
	const struct nouveau_svm_window *window;
	struct nouveau_svm_scratch *scratch;
	unsigned long seq;			/* when this attempt began */
};

/*
 * To take a page away from the CPUs is an invalidation as well. What we know of
 * the page stays true then, if it is us who do it.
 */
static bool pass_invalidate(struct mmu_interval_notifier *notifier,
			    const struct mmu_notifier_range *range,
			    unsigned long seq)
{
	struct svm_pass *pass = container_of(notifier, struct svm_pass, notifier);

	if (range->event == MMU_NOTIFY_EXCLUSIVE && range->owner == pass->svmm)
		return true;
	return svmm_invalidate(pass->svmm, notifier, range, seq);
}

static const struct mmu_interval_notifier_ops pass_ops = {
	.invalidate = pass_invalidate,
};

/*
 * What the GPU may write to is dirty, for no CPU will see that it was written.
 * Once is enough: who cleans a page invalidates it. Nothing here waits or
 * allocates: where a file system has more to do than to set a flag, a page that can
 * be written to is dirty already.
 */
static void mark_dirty(const struct nvif_vmm_pfnmap_v0 *map)
{
	unsigned long i;

	for (i = 0; i < nouveau_svm_map_entries(map); i++) {
		u64 pte = map->phys[i];

		if (pte & NVIF_VMM_PFNMAP_V0_W && !(pte & NVIF_VMM_PFNMAP_V0_VRAM))
			set_page_dirty(pfn_to_page(PHYS_PFN(pte)));
	}
}

/* An entry that cannot be mapped comes back empty. */
static int pass_map_as(struct svm_pass *pass, struct nvif_vmm_pfnmap_v0 *map)
{
	int err;

	mark_dirty(map);
	err = nouveau_svm_hw_map(pass->svmm, map);
	if (err)
		return err;
	return nouveau_svm_granted(map) < pass->window->access ? -EIO : 0;
}

static bool pass_map_block(struct svm_pass *pass, struct nvif_vmm_pfnmap_v0 *map)
{
	svmm_clear(pass->svmm, map->addr, map->addr + map->size);
	return !remember_block(pass->svmm, map->addr) &&
	       !pass_map_as(pass, map) && *map->phys;
}

/*
 * In one piece, if that is possible, else as @map says. What is mapped already goes
 * first: an entry that is overwritten would never give back its DMA address.
 */
static int pass_map_words(struct svm_pass *pass, struct nvif_vmm_pfnmap_v0 *map)
{
	const unsigned long *words = pass->scratch->words;
	struct nouveau_svmm *svmm = pass->svmm;

	if (nouveau_svm_encode_block(&svmm->bounds, pass->window, *words, map)) {
		if (pass_map_block(pass, map))
			return 0;
		nouveau_svm_encode_pages(pass->window, words, map);
	}
	svmm_clear(svmm, map->addr, map->addr + map->size);
	return pass_map_as(pass, map);
}

/*
 * @rights: what the words do not tell. Returns -EBUSY if they are history; if they
 * are not enough -EAGAIN for an atomic access, and -EIO for others.
 */
static int pass_map(struct svm_pass *pass, u64 rights)
{
	struct nvif_vmm_pfnmap_v0 *map = &pass->scratch->map;
	enum nouveau_svm_access access = pass->window->access;

	guard(mutex)(&pass->svmm->mutex);
	if (!pass->svmm->vmm)
		return -ESHUTDOWN;
	if (mmu_interval_read_retry(&pass->notifier, pass->seq))
		return -EBUSY;

	nouveau_svm_encode_pages(pass->window, pass->scratch->words, map);
	map->phys[0] |= rights;
	if (nouveau_svm_granted(map) < access)
		return access == NOUVEAU_SVM_ATOMIC ? -EAGAIN : -EIO;
	return pass_map_words(pass, map);
}

static int pass_try_mirror(struct svm_pass *pass)
{
	struct hmm_range range = {
		.notifier		= &pass->notifier,
		.start			= pass->window->start,
		.end			= pass->window->end,
		.hmm_pfns		= pass->scratch->words,
		.default_flags		= nouveau_svm_request(pass->window->access),
		.dev_private_owner	= nouveau_dmem_owner(pass->svmm->svm->drm),
	};
	int err;

	pass->seq = mmu_interval_read_begin(&pass->notifier);
	range.notifier_seq = pass->seq;
	err = nouveau_svm_look(pass->svmm, &range);
	return err ?: pass_map(pass, 0);
}

/* As long as the page is locked, no CPU gets it back. */
static int pass_try_exclusive(struct svm_pass *pass)
{
	struct mm_struct *mm = pass->svmm->mm;
	struct folio *folio;
	struct page *page;
	int err;

	pass->seq = mmu_interval_read_begin(&pass->notifier);
	if (mmap_read_lock_killable(mm))
		return -EINTR;
	page = make_device_exclusive(mm, pass->window->start, pass->svmm, &folio);
	mmap_read_unlock(mm);
	if (IS_ERR(page))
		return PTR_ERR(page);

	pass->scratch->words[0] = page_to_pfn(page) | HMM_PFN_VALID | HMM_PFN_WRITE;
	err = pass_map(pass, NVIF_VMM_PFNMAP_V0_A);
	folio_unlock(folio);
	folio_put(folio);
	return err;
}

static int pass_try(struct svm_pass *pass)
{
	int err = pass_try_mirror(pass);

	/* A page in VRAM that can be written is all that an atomic access needs. */
	if (err == -EAGAIN && pass->window->access == NOUVEAU_SVM_ATOMIC)
		err = pass_try_exclusive(pass);
	return err;
}

static int pass_run(struct svm_pass *pass)
{
	int err;

	for (;;) {
		err = pass_try(pass);
		if (err != -EBUSY || time_after(jiffies, pass->scratch->deadline))
			return err;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
}

/*
 * Map a window. The subscription is to all of the block, because all of it may
 * be mapped. Returns 0; -EFAULT, it is not shared; -EBUSY, too many
 * invalidations; -EINTR, a fatal signal; -EIO, not in the page table of the
 * GPU; -ESHUTDOWN, the svmm is over; -ENOMEM; or what hmm_range_fault() and
 * make_device_exclusive() return.
 */
static int svmm_map_window(struct nouveau_svmm *svmm,
			   struct nouveau_svm_scratch *scratch,
			   const struct nouveau_svm_window *window)
{
	struct svm_pass pass = {
		.svmm		= svmm,
		.window		= window,
		.scratch	= scratch,
	};
	int err;

	if (!nouveau_svm_shared(&svmm->bounds, window->start, window->end))
		return -EFAULT;
	err = mmu_interval_notifier_insert(&pass.notifier, svmm->mm,
					   ALIGN_DOWN(window->start, NOUVEAU_SVM_BLOCK),
					   NOUVEAU_SVM_BLOCK, &pass_ops);
	if (err)
		return err;
	err = pass_run(&pass);
	mmu_interval_notifier_remove(&pass.notifier);
	return err;
}

/* --- Life of the structs ---------------------------------------------------- */

static struct nouveau_svm_scratch *scratch_alloc(void)
{
	struct nouveau_svm_scratch *scratch;

	return kvzalloc(struct_size(scratch, map.phys, NOUVEAU_SVM_BLOCK_PAGES),
			GFP_KERNEL);
}

/* For how long to be patient with those who invalidate what is to be mapped. */
static void scratch_arm(struct nouveau_svm_scratch *scratch)
{
	scratch->deadline = jiffies + msecs_to_jiffies(HMM_RANGE_DEFAULT_TIMEOUT);
}

static void svm_release(struct kref *ref)
{
	struct nouveau_svm *svm = container_of(ref, struct nouveau_svm, ref);

	WARN_ON_ONCE(!list_empty(&svm->svmms));
	xa_destroy(&svm->channels);
	mutex_destroy(&svm->lock);
	kvfree(svm->buffer.faults);
	kvfree(svm->buffer.scratch);
	kfree(svm);
}

void nouveau_svm_put(struct nouveau_svm *svm)
{
	kref_put(&svm->ref, svm_release);
}

static void svm_work(struct work_struct *work)
{
	struct nouveau_svm *svm = container_of(work, struct nouveau_svm, buffer.work);
	int idx;

	/* Device memory goes before we do, but not before the device is unplugged. */
	if (!drm_dev_enter(svm->drm->dev, &idx))
		return;
	nouveau_svm_handle_faults(svm);
	drm_dev_exit(idx);
}

/* One reference; NULL: out of memory. */
struct nouveau_svm *nouveau_svm_new(struct nouveau_drm *drm)
{
	struct nouveau_svm *svm = kzalloc(sizeof(*svm), GFP_KERNEL);

	if (!svm)
		return NULL;
	kref_init(&svm->ref);
	svm->drm = drm;
	mutex_init(&svm->lock);
	xa_init(&svm->channels);
	INIT_LIST_HEAD(&svm->svmms);
	INIT_WORK(&svm->buffer.work, svm_work);
	return svm;
}

/* All memory that answers to faults need. If it fails, what there is goes with @svm. */
int nouveau_svm_alloc_faults(struct nouveau_svm *svm, u32 entries)
{
	struct nouveau_svm_buffer *buffer = &svm->buffer;

	buffer->entries = entries;
	buffer->faults = kvcalloc(entries, sizeof(*buffer->faults), GFP_KERNEL);
	buffer->scratch = scratch_alloc();
	return buffer->faults && buffer->scratch ? 0 : -ENOMEM;
}

static void svmm_release(struct kref *ref)
{
	struct nouveau_svmm *svmm = container_of(ref, struct nouveau_svmm, ref);

	mmdrop(svmm->mm);
	nouveau_svm_put(svmm->svm);
	xa_destroy(&svmm->blocks);
	mutex_destroy(&svmm->mutex);
	kfree(svmm);
}

void nouveau_svmm_put(struct nouveau_svmm *svmm)
{
	kref_put(&svmm->ref, svmm_release);
}

/*
 * Mirrors a process, which the caller has in use, to a @vmm with nothing mapped;
 * until nouveau_svmm_fini(). -ENOMEM, or -EINTR: mmap_lock could not be had.
 */
struct nouveau_svmm *nouveau_svmm_new(struct nouveau_svm *svm,
				      struct nouveau_vmm *vmm,
				      struct mm_struct *mm,
				      const struct nouveau_svm_bounds *bounds)
{
	struct nouveau_svmm *svmm = kzalloc(sizeof(*svmm), GFP_KERNEL);
	int err;

	if (!svmm)
		return ERR_PTR(-ENOMEM);
	kref_init(&svmm->ref);
	mutex_init(&svmm->mutex);
	xa_init(&svmm->blocks);
	svmm->bounds = *bounds;
	svmm->vmm = vmm;
	svmm->mm = mm;
	mmgrab(mm);
	svmm->svm = svm;
	kref_get(&svm->ref);

	err = mmu_interval_notifier_insert(&svmm->mirror, mm, 0, ULONG_MAX,
					   &mirror_ops);
	if (err) {
		nouveau_svmm_put(svmm);
		return ERR_PTR(err);
	}
	guard(mutex)(&svm->lock);
	list_add(&svmm->node, &svm->svmms);
	return svmm;
}

/* --- Channels --------------------------------------------------------------- */

/**
 * nouveau_svmm_join() - a channel works in a shared address space
 * @svmm: the address space, or NULL if the channel has another kind
 * @inst: the channel's instance address
 *
 * Context: May sleep.
 * Return: 0, or -ENOMEM.
 */
int nouveau_svmm_join(struct nouveau_svmm *svmm, u64 inst)
{
	if (!svmm)
		return 0;
	guard(mutex)(&svmm->svm->lock);
	return xa_err(xa_store(&svmm->svm->channels, inst, svmm, GFP_KERNEL));
}

/**
 * nouveau_svmm_part() - a channel ends
 * @svmm: as for nouveau_svmm_join()
 * @inst: its instance address; need not have joined
 *
 * Context: May sleep.
 */
void nouveau_svmm_part(struct nouveau_svmm *svmm, u64 inst)
{
	if (!svmm)
		return;
	guard(mutex)(&svmm->svm->lock);
	xa_cmpxchg(&svmm->svm->channels, inst, svmm, NULL, 0);
}

/* The svmm that a channel works in, with a reference, or NULL. */
static struct nouveau_svmm *get_svmm(struct nouveau_svm *svm, u64 inst)
{
	struct nouveau_svmm *svmm;

	guard(mutex)(&svm->lock);
	svmm = xa_load(&svm->channels, inst);
	if (svmm)
		kref_get(&svmm->ref);
	return svmm;
}

/* The svmm is found no more. */
static void leave(struct nouveau_svmm *svmm)
{
	struct nouveau_svm *svm = svmm->svm;
	struct nouveau_svmm *of;
	unsigned long inst;

	guard(mutex)(&svm->lock);
	list_del(&svmm->node);
	xa_for_each(&svm->channels, inst, of)
		if (of == svmm)
			xa_erase(&svm->channels, inst);
}

/* --- Faults ----------------------------------------------------------------- */

/* Returns the last word of the entry, valid unless the GPU owes us the entry. */
static u32 wait_for_entry(struct nouveau_svm *svm, u32 entry)
{
	int us;
	u32 info;

	for (us = 0; us < ENTRY_WAIT_US; us++) {
		info = ring_read(svm, entry, NOUVEAU_SVM_ENTRY_INFO);
		if (info & NOUVEAU_SVM_INFO_VALID)
			break;
		udelay(1);
	}
	return info;
}

static bool read_entry(struct nouveau_svm *svm, u32 entry,
		       struct nouveau_svm_fault *fault)
{
	u32 words[NOUVEAU_SVM_ENTRY_WORDS];
	int i;

	words[NOUVEAU_SVM_ENTRY_INFO] = wait_for_entry(svm, entry);
	for (i = 0; i < NOUVEAU_SVM_ENTRY_INFO; i++)
		words[i] = ring_read(svm, entry, i);
	if (!nouveau_svm_decode(words, fault))
		return false;
	ring_retire(svm, entry, words[NOUVEAU_SVM_ENTRY_INFO]);
	return true;
}

/*
 * Empty the ring, so that the GPU can go on writing. Returns how many faults
 * there were. The first that is late ends it, for entries come in order: set
 * *@replay, so that there will be news, and it is read then.
 */
static unsigned int fetch_faults(struct nouveau_svm *svm, bool *replay)
{
	struct nouveau_svm_buffer *buffer = &svm->buffer;
	u32 get = nvif_rd32(svm_device(svm), buffer->get_reg);
	u32 put = nvif_rd32(svm_device(svm), buffer->put_reg);
	int n, nr = nouveau_svm_pending(get, put, buffer->entries);

	for (n = 0; n < nr; n++) {
		if (!read_entry(svm, get, &buffer->faults[n])) {
			*replay = true;
			break;
		}
		get = (get + 1) % buffer->entries;
	}
	if (n)
		nvif_wr32(svm_device(svm), buffer->get_reg, get);
	return n;
}

/* Returns whether any of the faults is to be replayed. */
static bool settle(struct nouveau_svm *svm, const struct nouveau_svm_fault *faults,
		   unsigned int nr, int err)
{
	bool replay = false;
	unsigned int i;

	for (i = 0; i < nr; i++) {
		if (nouveau_svm_cancels(faults[i].access, err))
			nouveau_svm_hw_cancel(svm, &faults[i]);
		else
			replay = true;
	}
	return replay;
}

/* Map a window, unless the last one that was mapped contains it. */
static int answer_window(struct nouveau_svm *svm, u64 inst,
			 const struct nouveau_svm_window *window,
			 struct nouveau_svm_window *done)
{
	struct nouveau_svm_scratch *scratch = svm->buffer.scratch;
	struct nouveau_svmm *svmm;
	int err = -ESRCH;

	if (nouveau_svm_covers(done, window))
		return 0;
	svmm = get_svmm(svm, inst);
	if (!svmm)
		return -ENODEV;
	if (mmget_not_zero(svmm->mm)) {
		err = svmm_map_window(svmm, scratch, window);
		mmput(svmm->mm);
	}
	nouveau_svmm_put(svmm);
	if (err)
		return err;
	*done = (struct nouveau_svm_window) {
		.start	= scratch->map.addr,
		.end	= scratch->map.addr + scratch->map.size,
		.access	= nouveau_svm_granted(&scratch->map),
	};
	return 0;
}

/*
 * Answer sorted faults, in windows of at most so many pages. A window that has no
 * answer may still have pages that do: they are tried one by one.
 */
static bool answer_faults(struct nouveau_svm *svm,
			  const struct nouveau_svm_fault *faults,
			  unsigned int nr, unsigned long max_pages)
{
	struct nouveau_svm_window window, done = { };
	bool replay = false;
	unsigned int n;
	int err;

	for (; nr; faults += n, nr -= n) {
		n = nouveau_svm_coalesce(faults, nr, max_pages, &window);
		err = answer_window(svm, faults->inst, &window, &done);
		if (nouveau_svm_cancels(window.access, err) &&
		    window.end - window.start > PAGE_SIZE)
			replay |= answer_faults(svm, faults, n, 1);
		else
			replay |= settle(svm, faults, n, err);
		if (n < nr && faults[n].inst != faults->inst)
			done = (struct nouveau_svm_window) { };
	}
	return replay;
}

/*
 * Answers all faults that are in the ring; one at a time. Whoever invalidates all
 * the time costs the clients of this device no more than one deadline.
 */
void nouveau_svm_handle_faults(struct nouveau_svm *svm)
{
	struct nouveau_svm_fault *faults = svm->buffer.faults;
	bool replay = false;
	unsigned int nr;

	scratch_arm(svm->buffer.scratch);
	nr = fetch_faults(svm, &replay);
	sort(faults, nr, sizeof(*faults), nouveau_svm_compare, NULL);
	replay |= answer_faults(svm, faults, nr, NOUVEAU_SVM_BLOCK_PAGES);
	if (replay)
		nouveau_svm_hw_replay(svm);
}

/* --- SVM_INIT, and the end of it -------------------------------------------- */

static void bounds_of(const struct drm_nouveau_svm_init *args,
		      const struct nouveau_vmm *vmm, const struct mm_struct *mm,
		      struct nouveau_svm_bounds *bounds)
{
	*bounds = (struct nouveau_svm_bounds) {
		.limit = min_t(u64, mm->task_size, vmm->vmm.limit),
	};
	if (!args->unmanaged_size)
		return;
	bounds->hole_start = ALIGN_DOWN(args->unmanaged_addr, PAGE_SIZE);
	bounds->hole_end = ALIGN(args->unmanaged_addr + args->unmanaged_size,
				 PAGE_SIZE);
}

/* Make an address space that can replay faults, and give it to the client. */
static int cli_enable_svm(struct nouveau_cli *cli,
			  const struct drm_nouveau_svm_init *args)
{
	struct gp100_vmm_v0 replay = { .fault_replay = true };
	struct nouveau_vmm *vmm = &cli->svm;
	struct nouveau_svm_bounds bounds;
	struct nouveau_svmm *svmm;
	int err;

	lockdep_assert_held(&cli->mutex);
	if (vmm->cli)
		return -EBUSY;

	err = nvif_vmm_ctor(&cli->mmu, "svmVmm", cli->vmm.vmm.object.oclass,
			    MANAGED, args->unmanaged_addr, args->unmanaged_size,
			    &replay, sizeof(replay), &vmm->vmm);
	if (err)
		return err;
	bounds_of(args, vmm, current->mm, &bounds);
	svmm = nouveau_svmm_new(cli->drm->svm, vmm, current->mm, &bounds);
	if (IS_ERR(svmm)) {
		err = PTR_ERR(svmm);
		goto err_vmm;
	}
	vmm->svmm = svmm;
	vmm->cli = cli;
	return 0;

err_vmm:
	nvif_vmm_dtor(&vmm->vmm);
	return err;
}

/**
 * nouveau_svmm_init() - SVM_INIT: share the address space of this process
 * @dev: the device
 * @data: a &struct drm_nouveau_svm_init
 * @file: the client
 *
 * Context: Process context. May sleep.
 * Return: 0, or
 *
 * * -ENOSYS - the device cannot do it
 * * -ENODEV - the device is gone
 * * -EINVAL - the hole wraps, or ends behind what the GPU can address
 * * -EBUSY - it was called before
 * * -EINTR, -ENOMEM, and what the making of an address space returns
 */
int nouveau_svmm_init(struct drm_device *dev, void *data, struct drm_file *file)
{
	const struct drm_nouveau_svm_init *args = data;
	struct nouveau_cli *cli = nouveau_cli(file);
	int err, idx;

	if (!drm_dev_enter(dev, &idx))
		return -ENODEV;
	err = cli->drm->svm ? 0 : -ENOSYS;
	if (!err) {
		mutex_lock(&cli->mutex);
		err = cli_enable_svm(cli, args);
		mutex_unlock(&cli->mutex);
	}
	drm_dev_exit(idx);
	return err;
}

/**
 * nouveau_svmm_fini() - end a shared address space
 * @psvmm: where it is, or NULL; set to NULL
 *
 * When this returns nothing is mapped, no callback of the mirror runs, and who
 * still holds a reference gets -ESHUTDOWN. The caller can destroy the VMM.
 *
 * Context: May sleep. Its channels do not run any more. No mmap_lock is held.
 */
void nouveau_svmm_fini(struct nouveau_svmm **psvmm)
{
	struct nouveau_svmm *svmm = *psvmm;

	if (!svmm)
		return;
	*psvmm = NULL;
	leave(svmm);

	mutex_lock(&svmm->mutex);
	svmm_clear(svmm, 0, ULONG_MAX);
	svmm->vmm = NULL;
	mutex_unlock(&svmm->mutex);

	mmu_interval_notifier_remove(&svmm->mirror);
	nouveau_svmm_put(svmm);
}

/* --- SVM_BIND --------------------------------------------------------------- */

/* The first part of a range that is in one VMA and one block; may be empty. */
static int next_part(struct mm_struct *mm, unsigned long start,
		     unsigned long end, struct nouveau_svm_window *part)
{
	struct vm_area_struct *vma;

	*part = (struct nouveau_svm_window) { end, end };
	if (mmap_read_lock_killable(mm))
		return -EINTR;
	vma = find_vma_intersection(mm, start, end);
	if (vma) {
		part->start = max(start, vma->vm_start);
		part->end = min3(end, vma->vm_end,
				 ALIGN(part->start + 1, NOUVEAU_SVM_BLOCK));
	}
	mmap_read_unlock(mm);
	return 0;
}

/* Best effort: what is not mapped now, the GPU faults in. */
static void map_part(struct nouveau_svmm *svmm, struct nouveau_svm_scratch *scratch,
		     const struct nouveau_svm_window *part)
{
	struct nouveau_svm_window pieces[2];
	unsigned int nr, i;

	scratch_arm(scratch);
	nr = nouveau_svm_pieces(&svmm->bounds, part->start, part->end, pieces);
	for (i = 0; i < nr; i++)
		svmm_map_window(svmm, scratch, &pieces[i]);
}

/* A mapping that cannot migrate, or is gone meanwhile, is no reason to stop. */
static bool ends_bind(int err)
{
	return err && err != -EINVAL && err != -EFAULT;
}

/*
 * Moves a range of the calling process to VRAM, and maps it. What is not mapped by
 * the process, or cannot migrate, is left out. -EINTR, -ENODEV or -ENOMEM, with
 * what came before moved.
 */
int nouveau_svmm_bind_range(struct nouveau_svmm *svmm, unsigned long start,
			    unsigned long end, struct hmm_devmem_result *result)
{
	struct nouveau_svm_scratch *scratch = scratch_alloc();
	struct nouveau_svm_window part;
	int err = scratch ? 0 : -ENOMEM;

	for (; start < end && !err; start = part.end) {
		err = fatal_signal_pending(current) ? -EINTR :
		      next_part(svmm->mm, start, end, &part);
		if (err || part.start == part.end)
			break;
		err = nouveau_svm_migrate(svmm, part.start, part.end, result);
		if (ends_bind(err))
			break;
		map_part(svmm, scratch, &part);
		err = 0;
		cond_resched();
	}
	kvfree(scratch);
	return err;
}

/* The svmm of a client, with a reference, if the process is its own. */
static struct nouveau_svmm *cli_svmm(struct nouveau_cli *cli)
{
	struct nouveau_svmm *svmm;

	guard(mutex)(&cli->mutex);
	svmm = cli->svm.svmm;
	if (!svmm || svmm->mm != current->mm)
		return NULL;
	kref_get(&svmm->ref);
	return svmm;
}

static int cli_bind(struct nouveau_cli *cli, struct drm_nouveau_svm_bind *args)
{
	struct nouveau_svmm *svmm = cli_svmm(cli);
	struct hmm_devmem_result result = { };
	unsigned long start, end;
	int err;

	if (!svmm)
		return -EINVAL;
	err = nouveau_svm_check_bind(args, svmm->bounds.limit, &start, &end) ?:
	      nouveau_svmm_bind_range(svmm, start, end, &result);
	args->result = result.moved;
	nouveau_svmm_put(svmm);
	return err;
}

/**
 * nouveau_svmm_bind() - SVM_BIND: say where a range is to be
 * @dev: the device
 * @data: a &struct drm_nouveau_svm_bind; its result is how many pages moved
 * @file: the client
 *
 * Context: Process context. May sleep.
 * Return: 0; -EINVAL, an argument that nouveau_svm_check_bind() refuses, no
 * SVM_INIT before, or not in this process; -ENODEV, the device is gone; or what
 * nouveau_svmm_bind_range() returns.
 */
int nouveau_svmm_bind(struct drm_device *dev, void *data, struct drm_file *file)
{
	int err, idx;

	if (!drm_dev_enter(dev, &idx))
		return -ENODEV;
	err = cli_bind(nouveau_cli(file), data);
	drm_dev_exit(idx);
	return err;
}

/* --- The device ------------------------------------------------------------- */

static int svm_event(struct nvif_event *event, void *argv, u32 argc)
{
	struct nouveau_svm_buffer *buffer =
		container_of(event, struct nouveau_svm_buffer, notify);

	queue_work(system_unbound_wq, &buffer->work);
	return NVIF_EVENT_KEEP;
}

/* What was not made is not undone: the dtors and svm_release() know. */
static void svm_stop(struct nouveau_svm *svm)
{
	struct nouveau_svm_buffer *buffer = &svm->buffer;

	nvif_event_block(&buffer->notify);
	cancel_work_sync(&buffer->work);
	nvif_event_dtor(&buffer->notify);
	nvif_object_dtor(&buffer->object);
	nouveau_svm_put(svm);
}

static int svm_start(struct nouveau_svm *svm)
{
	struct nouveau_svm_buffer *buffer = &svm->buffer;
	struct nvif_clb069_v0 args = { };
	int err;

	err = nvif_object_ctor(svm_device(svm), "svmFaultBuffer", 0,
			       MAXWELL_FAULT_BUFFER_A, &args, sizeof(args),
			       &buffer->object);
	if (err)
		return err;
	err = nvif_object_map(&buffer->object, NULL, 0);
	if (err)
		return err;
	buffer->get_reg = args.get;
	buffer->put_reg = args.put;
	err = nouveau_svm_alloc_faults(svm, args.entries);
	if (err)
		return err;
	err = nvif_event_ctor(&buffer->object, "svmFault", 0, svm_event, true,
			      NULL, 0, &buffer->notify);
	return err ?: nvif_event_allow(&buffer->notify);
}

/**
 * nouveau_svm_init() - offer shared virtual memory, if the device can
 * @drm: the device
 *
 * Before Pascal no fault is survived. After it a cancelled one is not survived by
 * the channels of others, so any client could stop them.
 *
 * Context: May sleep. No client is there yet.
 */
void nouveau_svm_init(struct nouveau_drm *drm)
{
	struct nouveau_svm *svm;
	int err;

	if (drm->client.device.info.family != NV_DEVICE_INFO_V0_PASCAL)
		return;
	svm = nouveau_svm_new(drm);
	if (!svm)
		return;

	err = svm_start(svm);
	if (err) {
		NV_WARN(drm, "svm: no fault buffer: %d\n", err);
		svm_stop(svm);
		return;
	}
	drm->svm = svm;
}

/**
 * nouveau_svm_fini() - answer no more faults
 * @drm: the device
 *
 * Clients may still be there, and end after this.
 *
 * Context: May sleep. The device is unplugged.
 */
void nouveau_svm_fini(struct nouveau_drm *drm)
{
	struct nouveau_svm *svm = drm->svm;

	if (!svm)
		return;
	drm->svm = NULL;
	svm_stop(svm);
}

static void svm_clear_all(struct nouveau_svm *svm)
{
	struct nouveau_svmm *svmm;

	guard(mutex)(&svm->lock);
	list_for_each_entry(svmm, &svm->svmms, node) {
		guard(mutex)(&svmm->mutex);
		svmm_clear(svmm, 0, ULONG_MAX);
	}
}

/**
 * nouveau_svm_suspend() - answer no faults until nouveau_svm_resume()
 * @drm: the device
 *
 * Nothing stays mapped: an invalidation could not clear it on a device that
 * sleeps, and what is in VRAM now may be elsewhere when it wakes up.
 *
 * Context: May sleep. The device is awake, and no process calls SVM_BIND.
 */
void nouveau_svm_suspend(struct nouveau_drm *drm)
{
	if (!drm->svm)
		return;
	nvif_event_block(&drm->svm->buffer.notify);
	flush_work(&drm->svm->buffer.work);
	svm_clear_all(drm->svm);
}

/**
 * nouveau_svm_resume() - answer faults again, first those that are waiting
 * @drm: the device
 *
 * Context: May sleep.
 */
void nouveau_svm_resume(struct nouveau_drm *drm)
{
	if (!drm->svm)
		return;
	nvif_event_allow(&drm->svm->buffer.notify);
	queue_work(system_unbound_wq, &drm->svm->buffer.work);
}
