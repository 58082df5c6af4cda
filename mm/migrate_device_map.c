// SPDX-License-Identifier: GPL-2.0
/*
 * Device migration, last phase: from migration entries to page tables, one
 * page table at a time; pages for holes; and the CPU fault that starts a
 * migration to RAM.
 *
 * Who may change what is mapped between collect and here? The caller holds
 * mmap_lock, so VMAs do not move and fork does not copy. Zap can run: it takes
 * the page-table lock and removes the migration entry, and then there is
 * nothing to put back. The folio lock keeps everybody else from adding
 * migration entries of the folio. So an entry that collect wrote is where it
 * was, or gone; a page that other page tables mapped as well carries
 * MIGRATE_PFN_SHARED, and the rmap finds those entries.
 */
#include <linux/ksm.h>
#include <linux/memcontrol.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/mm_inline.h>
#include <linux/mmu_notifier.h>
#include <linux/oom.h>
#include <linux/pagemap.h>
#include <linux/pgalloc.h>
#include <linux/rmap.h>
#include <linux/sched.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <linux/userfaultfd_k.h>
#include <asm/tlbflush.h>

#include "internal.h"
#include "migrate_device.h"
#include "migrate_device_pte.h"

static pte_t device_private_pte(struct page *page, bool write, bool soft_dirty,
				bool uffd_wp)
{
	unsigned long pfn = page_to_pfn(page);
	pte_t pte;

	pte = swp_entry_to_pte(write ? make_writable_device_private_entry(pfn) :
				       make_readable_device_private_entry(pfn));
	if (soft_dirty)
		pte = pte_swp_mksoft_dirty(pte);
	if (uffd_wp)
		pte = pte_swp_mkuffd_wp(pte);
	return pte;
}

/*
 * The PTE for @page where migration entry @old stands. Soft-dirty comes last
 * but one: on some architectures pte_mkdirty() sets it.
 */
static pte_t system_pte(struct vm_area_struct *vma, struct page *page,
			pte_t old, bool young, bool dirty, bool soft_dirty)
{
	pte_t pte = mk_pte(page, READ_ONCE(vma->vm_page_prot));

	pte = young ? pte_mkyoung(pte) : pte_mkold(pte);
	if (dirty)
		pte = pte_mkdirty(pte);
	pte = soft_dirty ? pte_mksoft_dirty(pte) : pte_clear_soft_dirty(pte);
	if (is_writable_migration_entry(pte_to_swp_entry(old)))
		return pte_mkwrite(pte, vma);
	return pte_swp_uffd_wp(old) ? pte_mkuffd_wp(pte) : pte;
}

/*
 * A device may have written to any page that it could write to, and says so
 * nowhere: coming back from one counts as an access, and as dirty. The folio was
 * marked so when it moved.
 */
static pte_t target_pte(struct vm_area_struct *vma, struct page *src,
			struct page *target, pte_t old)
{
	swp_entry_t entry = pte_to_swp_entry(old);
	bool write = is_writable_migration_entry(entry);
	bool young = is_migration_entry_young(entry);
	bool dirty = is_migration_entry_dirty(entry) &&
		     folio_test_dirty(page_folio(target));
	bool soft_dirty = pte_swp_soft_dirty(old);

	if (is_device_private_page(target))
		return device_private_pte(target, write, soft_dirty,
					  pte_swp_uffd_wp(old));

	if (is_zone_device_page(src) && !is_zone_device_page(target)) {
		young = true;
		dirty |= write;
		soft_dirty |= write;
	}
	return system_pte(vma, target, old, young, dirty, soft_dirty);
}

/* The state of a place where collect, or the rmap, left a migration entry. */
enum entry_state { ENTRY_GONE, ENTRY_SHARED, ENTRY_EXCLUSIVE };

static enum entry_state entry_state(pte_t pte, struct page *src)
{
	swp_entry_t entry;

	if (!is_swap_pte(pte))
		return ENTRY_GONE;
	entry = pte_to_swp_entry(pte);
	if (!is_migration_entry(entry) ||
	    swp_offset_pfn(entry) != page_to_pfn(src))
		return ENTRY_GONE;
	return is_readable_migration_entry(entry) ? ENTRY_SHARED :
						    ENTRY_EXCLUSIVE;
}

/* How many PTEs from @ptep on, of @nr, go on as the first of them begins? */
static unsigned long nr_alike(pte_t *ptep, unsigned long nr)
{
	pte_t first = ptep_get(ptep);
	unsigned long next = pte_val(first), step = pte_step(first);
	unsigned long i;

	for (i = 1; i < nr; i++) {
		next += step;
		if (pte_val(ptep_get(ptep + i)) != next)
			break;
	}
	return i;
}

/* What target_pte() looks at besides the VMA and the migration entry. */
enum target_traits {
	TARGET_PRIVATE	= BIT(0),
	TARGET_RETURNS	= BIT(1),	/* to RAM, from a device */
	TARGET_DIRTY	= BIT(2),
};

static __always_inline unsigned int target_traits(const struct page *src,
						  const struct folio *target)
{
	bool zone_device = folio_is_zone_device(target);
	unsigned int traits = 0;

	if (zone_device && folio_is_device_private(target))
		return TARGET_PRIVATE;
	if (!zone_device && is_zone_device_page(src))
		traits |= TARGET_RETURNS;
	if (folio_test_dirty(target))
		traits |= TARGET_DIRTY;
	return traits;
}

/*
 * What takes the place of @old, by the rule, or else anew; false if it does not
 * stand for @src.
 */
static bool find_target_pte(struct map_batch *batch, struct vm_area_struct *vma,
			    struct page *src, struct page *target, pte_t old,
			    unsigned int traits)
{
	unsigned long pfn = page_to_pfn(src);
	enum entry_state state;

	if (likely(pte_rule_holds(&batch->rule, old, pfn, traits))) {
		batch->pte = pte_rule_get(&batch->rule, page_to_pfn(target));
		return true;
	}
	state = entry_state(old, src);
	if (state == ENTRY_GONE)
		return false;
	batch->exclusive = state == ENTRY_EXCLUSIVE;
	batch->pte = target_pte(vma, src, target, old);
	pte_rule_make(&batch->rule, old, pfn, batch->pte, page_to_pfn(target),
		      traits);
	return true;
}

/**
 * migrate_map_ptes() - put mappings in the place of migration entries
 * @vma: the VMA
 * @addr: address of the first entry
 * @ptep: its PTE, whose lock the caller holds
 * @src: the page that it stands for
 * @target: the page to map
 * @nr: how many of them there are, in a row, of one page table and one folio
 * @batch: of this VMA, zeroed before the first call
 *
 * Done in stretches of entries that differ by their pfn alone.
 *
 * Context: Caller holds the page-table lock, and the folio locks.
 * Return: How many of them were there.
 */
unsigned long migrate_map_ptes(struct vm_area_struct *vma, unsigned long addr,
			       pte_t *ptep, struct page *src,
			       struct page *target, unsigned long nr,
			       struct map_batch *batch)
{
	unsigned int traits = target_traits(src, page_folio(target));
	unsigned long n, done = 0;

	for (; nr; nr -= n, addr += n * PAGE_SIZE, ptep += n, src += n, target += n) {
		pte_t old = ptep_get(ptep);

		n = 1;
		if (!find_target_pte(batch, vma, src, target, old, traits))
			continue;
		if (nr > 1)
			n = nr_alike(ptep, nr);
		add_mappings(vma, addr, target, n, batch->exclusive,
			     &batch->mapped);
		set_ptes_from(vma->vm_mm, addr, ptep, batch->pte, n);
		/* Nothing to flush: what was there was not present. */
		if (!(traits & TARGET_PRIVATE))
			update_mmu_cache_range(NULL, vma, addr, ptep, n);
		done += n;
	}
	return done;
}

/*
 * migrate_map_ptes() of a single page, which most are: alone in its folio, and like
 * the one before. False, and nothing done, if it is not.
 */
static __always_inline bool map_another(struct vm_area_struct *vma,
					unsigned long addr, pte_t *ptep,
					unsigned long src, struct page *page,
					struct map_batch *batch)
{
	struct folio *folio = (struct folio *)page;
	unsigned int traits;

	if (!pte_rule_is_made(&batch->rule) || PageCompound(page) ||
	    !is_plain_anon(folio, vma))
		return false;
	traits = target_traits(migrate_pfn_to_page(src), folio);
	if (!pte_rule_holds(&batch->rule, ptep_get(ptep),
			    src >> MIGRATE_PFN_SHIFT, traits))
		return false;
	add_plain_mapping(folio, batch->exclusive, &batch->mapped);
	set_pte_at(vma->vm_mm, addr, ptep,
		   pte_rule_get(&batch->rule, page_to_pfn(page)));
	if (!(traits & TARGET_PRIVATE))
		update_mmu_cache_range(NULL, vma, addr, ptep, 1);
	return true;
}

/*
 * Map what one page table had. What is not found where collect left it, and what
 * other tables have as well, is left to the rmap: return whether there is any.
 */
static bool map_table(struct migrate_vma *migrate, pmd_t *pmdp,
		      unsigned long i, unsigned long last)
{
	unsigned long addr = migrate->start + (i << PAGE_SHIFT);
	struct vm_area_struct *vma = migrate->vma;
	pte_t *start_pte = NULL, *ptep = NULL;
	struct map_batch batch = { };
	bool shared = false;
	unsigned long n;
	spinlock_t *ptl;

	if (pmdp)
		start_pte = pte_offset_map_lock(vma->vm_mm, pmdp, addr, &ptl);
	if (start_pte) {
		ptep = start_pte;
		arch_enter_lazy_mmu_mode();
	}

	for (; i < last; i += n, addr += n * PAGE_SIZE) {
		unsigned long src = migrate->src[i], dst = migrate->dst[i];

		n = 1;
		if (src & MIGRATE_PFN_VALID) {
			struct page *target = migrate_target(src, dst);

			n = migrate_nr(src, dst);
			if (!ptep || (src & MIGRATE_PFN_SHARED) ||
			    (!map_another(vma, addr, ptep, src, target, &batch) &&
			     migrate_map_ptes(vma, addr, ptep,
					      migrate_pfn_to_page(src), target, n,
					      &batch) < n)) {
				migrate->src[i] |= MIGRATE_PFN_SHARED;
				shared = true;
			}
		}
		if (ptep)
			ptep += n;
	}

	anon_mapped_flush(&batch.mapped);
	if (start_pte) {
		arch_leave_lazy_mmu_mode();
		/* While on the CPU whose mlock batch has references of the pages. */
		if (vma->vm_flags & VM_LOCKED)
			mlock_drain_local();
		pte_unmap_unlock(start_pte, ptl);
	}
	return shared;
}

/*
 * In place of a huge migration entry: a table of device-private entries. It is
 * the one that was deposited, and is filled before anybody can see it.
 */
static void map_device_table(struct vm_area_struct *vma, pmd_t *pmdp,
			     unsigned long addr, struct page *page)
{
	struct mm_struct *mm = vma->vm_mm;
	pmd_t old = *pmdp, local;
	swp_entry_t entry = pmd_to_swp_entry(old);
	bool write = is_writable_migration_entry(entry);
	bool soft_dirty = pmd_swp_soft_dirty(old);
	bool uffd_wp = pmd_swp_uffd_wp(old);
	pgtable_t table = pgtable_trans_huge_withdraw(mm, pmdp);
	pte_t *ptep;

	pmd_populate(mm, &local, table);
	ptep = pte_offset_map(&local, addr);
	set_ptes_from(mm, addr, ptep,
		      device_private_pte(page, write, soft_dirty, uffd_wp),
		      PTRS_PER_PTE);
	pte_unmap(ptep);
	add_mappings(vma, addr, page, PTRS_PER_PTE,
		     !is_readable_migration_entry(entry), NULL);
	smp_wmb();	/* The PTEs before the PMD that leads to them. */
	pmd_populate(mm, pmdp, table);
}

/*
 * Is there a huge migration entry for entry i of the migration, and is it done
 * with? Its folio moved, or stayed, as a whole: then it is mapped. If its folio
 * exploded, or is coherent memory, which core mm cannot split and so must not map
 * by a PMD, the entry is split, for map_table().
 */
static bool map_huge(struct migrate_vma *migrate, pmd_t *pmdp, unsigned long i)
{
	struct vm_area_struct *vma = migrate->vma;
	unsigned long src = migrate->src[i], dst = migrate->dst[i];
	struct page_vma_mapped_walk pvmw = {
		.vma = vma,
		.address = migrate->start + (i << PAGE_SHIFT),
		.pmd = pmdp,
	};
	bool ours = false, whole;
	struct page *target;
	spinlock_t *ptl;

	if (!thp_migration_supported() || !pmdp || !(src & MIGRATE_PFN_VALID) ||
	    !is_pmd_migration_entry(pmdp_get_lockless(pmdp)))
		return false;

	target = migrate_target(src, dst);
	whole = migrate_nr(src, dst) == PTRS_PER_PTE &&
		!is_device_coherent_page(target);
	ptl = pmd_lock(vma->vm_mm, pmdp);
	if (is_pmd_migration_entry(*pmdp))
		ours = swp_offset_pfn(pmd_to_swp_entry(*pmdp)) ==
		       page_to_pfn(migrate_pfn_to_page(src));
	if (ours && whole) {
		if (is_device_private_page(target))
			map_device_table(vma, pmdp, pvmw.address, target);
		else
			remove_migration_pmd(&pvmw, target);
	}
	/* As split_huge_pmd(), but nothing changes for those who listen. */
	if (ours && !whole)
		split_huge_pmd_locked(vma, pvmw.address, pmdp, false, NULL);
	spin_unlock(ptl);
	return ours && whole;
}

/**
 * migrate_vma_map() - turn the migration entries of a range into mappings
 * @migrate: the migration, after the pages step or in its place
 * @first: index of the first entry
 * @last: index behind the last one
 *
 * Each page of src is mapped again where it was: the destination if it has
 * moved, the source else. Every mapping takes a reference.
 *
 * Context: Process context, caller holds mmap_lock and the folio locks.
 * May sleep.
 */
void migrate_vma_map(struct migrate_vma *migrate, unsigned long first,
		     unsigned long last)
{
	unsigned long end = migrate->start + (last << PAGE_SHIFT);
	unsigned long addr, next, i;
	bool shared = false;

	for (i = first; i < last; i = next) {
		pmd_t *pmdp;

		addr = migrate->start + (i << PAGE_SHIFT);
		next = migrate_index(migrate, pmd_addr_end(addr, end));
		pmdp = mm_find_pmd(migrate->vma->vm_mm, addr);
		/* Other processes may have it in parts, or by PTEs. */
		if (map_huge(migrate, pmdp, i))
			shared |= migrate->src[i] & MIGRATE_PFN_SHARED;
		else
			shared |= map_table(migrate, pmdp, i, next);
	}
	for (i = first; shared && i < last; i = next) {
		next = i + 1;
		if ((migrate->src[i] & MIGRATE_PFN_VALID) &&
		    (migrate->src[i] & MIGRATE_PFN_SHARED))
			next = i + migrate_map_run(&migrate->src[i],
						   &migrate->dst[i], last - i);
	}
}

/* Nothing comes into being at this address: the driver's page is not used. */
static void refuse_hole(struct migrate_vma *migrate, unsigned long i)
{
	migrate->src[i] = 0;
}

static bool is_fillable(const struct migrate_vma *migrate, unsigned long i)
{
	return migrate_is_hole(migrate->src[i]);
}

/* The page table for @addr, made if need be; none where a huge page has come. */
static pmd_t *alloc_table(struct mm_struct *mm, unsigned long addr)
{
	p4d_t *p4d = p4d_alloc(mm, pgd_offset(mm, addr), addr);
	pud_t *pud = p4d ? pud_alloc(mm, p4d, addr) : NULL;
	pmd_t *pmd = pud ? pmd_alloc(mm, pud, addr) : NULL;

	if (!pmd || pmd_leaf(*pmd) || pte_alloc(mm, pmd))
		return NULL;
	return pmd;
}

/* Everything about a new folio that may fail or sleep. */
static bool prepare_folio(struct vm_area_struct *vma, unsigned long addr,
			  struct folio *folio, unsigned long nr)
{
	if (folio_nr_pages(folio) != nr || nr > PTRS_PER_PTE ||
	    !IS_ALIGNED(addr, nr << PAGE_SHIFT))
		return false;
	if (folio_is_zone_device(folio) && !folio_is_device_private(folio) &&
	    !folio_is_device_coherent(folio))
		return false;
	if (mem_cgroup_charge(folio, vma->vm_mm, GFP_KERNEL))
		return false;
	/* Its barrier orders what the driver copied before the new PTE. */
	__folio_mark_uptodate(folio);
	return true;
}

/*
 * Is the address still empty? A mapping of the zero page is taken away, for the
 * caller to flush; one that userfaultfd protects stays.
 */
static bool vacate_pte(struct mm_struct *mm, unsigned long addr, pte_t *ptep,
		       bool *flush)
{
	pte_t pte = ptep_get(ptep);

	if (pte_none(pte))
		return true;
	if (!pte_present(pte) || !is_zero_pfn(pte_pfn(pte)) || pte_uffd_wp(pte))
		return false;
	ksm_might_unmap_zero_page(mm, ptep_get_and_clear(mm, addr, ptep));
	*flush = true;
	return true;
}

static bool vacate_ptes(struct mm_struct *mm, unsigned long addr, pte_t *ptep,
			unsigned long nr, bool *flush)
{
	for (; nr; nr--, addr += PAGE_SIZE, ptep++)
		if (!vacate_pte(mm, addr, ptep, flush))
			return false;
	return true;
}

static pte_t new_pte(struct vm_area_struct *vma, struct page *page)
{
	bool write = vma->vm_flags & VM_WRITE;
	pte_t pte;

	if (is_device_private_page(page))
		return device_private_pte(page, write, true, false);

	pte = mk_pte(page, vma->vm_page_prot);
	return write ? pte_mkwrite(pte_mkdirty(pte), vma) : pte;
}

/*
 * folio_add_new_anon_rmap() takes a folio that is as large as a PMD for mapped by
 * one. So a large folio becomes anonymous here, and is then mapped as an old one.
 */
static void make_anon(struct vm_area_struct *vma, unsigned long addr,
		      struct folio *folio)
{
	unsigned long anon_vma = (unsigned long)vma->anon_vma;

	if (!(vma->vm_flags & VM_DROPPABLE))
		__folio_set_swapbacked(folio);
	folio->index = linear_page_index(vma, addr);
	WRITE_ONCE(folio->mapping, (void *)(anon_vma | PAGE_MAPPING_ANON));
	mod_mthp_stat(folio_order(folio), MTHP_STAT_NR_ANON, 1);
}

static void install_folio(struct vm_area_struct *vma, unsigned long addr,
			  pte_t *ptep, struct folio *folio)
{
	unsigned long i, nr = folio_nr_pages(folio);

	if (nr == 1) {
		folio_get(folio);
		folio_add_new_anon_rmap(folio, vma, addr, RMAP_EXCLUSIVE);
	} else {
		make_anon(vma, addr, folio);
		add_mappings(vma, addr, &folio->page, nr, true, NULL);
	}
	if (!folio_is_zone_device(folio))
		folio_add_lru_vma(folio, vma);
	for (i = 0; i < nr; i++)
		set_pte_at(vma->vm_mm, addr + i * PAGE_SIZE, ptep + i,
			   new_pte(vma, folio_page(folio, i)));
	if (!folio_is_device_private(folio))
		update_mmu_cache_range(NULL, vma, addr, ptep, nr);
}

/* Both passes over a table: make sure that it is empty, flush once, install. */
static void install_ptes(struct migrate_vma *migrate, pte_t *ptep,
			 unsigned long addr, unsigned long end)
{
	unsigned long first = migrate_index(migrate, addr);
	unsigned long n = (end - addr) >> PAGE_SHIFT;
	struct vm_area_struct *vma = migrate->vma;
	unsigned long i, filled = 0;
	bool flush = false;

	for (i = 0; i < n; i++)
		if (is_fillable(migrate, first + i) &&
		    !vacate_ptes(vma->vm_mm, addr + i * PAGE_SIZE, ptep + i,
				 migrate_pfn_nr(migrate->dst[first + i]), &flush))
			refuse_hole(migrate, first + i);
	if (flush)
		flush_tlb_range(vma, addr, end);

	for (i = 0; i < n; i++) {
		if (!is_fillable(migrate, first + i))
			continue;
		install_folio(vma, addr + i * PAGE_SIZE, ptep + i,
			      migrate_pfn_folio(migrate->dst[first + i]));
		filled += migrate_pfn_nr(migrate->dst[first + i]);
	}
	add_mm_counter(vma->vm_mm, MM_ANONPAGES, filled);
}

static void refuse_holes(struct migrate_vma *migrate, unsigned long addr,
			 unsigned long end)
{
	unsigned long last = migrate_index(migrate, end);
	unsigned long i;

	for (i = migrate_index(migrate, addr); i < last; i++)
		if (is_fillable(migrate, i))
			refuse_hole(migrate, i);
}

static bool has_holes(const struct migrate_vma *migrate, unsigned long addr,
		      unsigned long end)
{
	unsigned long last = migrate_index(migrate, end);
	unsigned long i;

	for (i = migrate_index(migrate, addr); i < last; i++)
		if (is_fillable(migrate, i))
			return true;
	return false;
}

static void fill_table(struct migrate_vma *migrate, unsigned long addr,
		       unsigned long end)
{
	struct vm_area_struct *vma = migrate->vma;
	pte_t *ptep = NULL;
	spinlock_t *ptl;
	pmd_t *pmd;

	if (!has_holes(migrate, addr, end))
		return;

	pmd = alloc_table(vma->vm_mm, addr);
	if (pmd)
		ptep = pte_offset_map_lock(vma->vm_mm, pmd, addr, &ptl);
	if (!ptep) {
		refuse_holes(migrate, addr, end);
		return;
	}

	/* userfaultfd wants to be asked, and nobody here can wait for it. */
	if (check_stable_address_space(vma->vm_mm) || userfaultfd_missing(vma))
		refuse_holes(migrate, addr, end);
	else
		install_ptes(migrate, ptep, addr, end);
	pte_unmap_unlock(ptep, ptl);
}

/**
 * migrate_vma_fill_holes() - map the driver's pages where nothing was
 * @migrate: the migration, after setup
 * @first: index of the first hole
 * @last: index behind the last one; entries between them may be anything
 *
 * A src entry of a hole that was filled keeps %MIGRATE_PFN_MIGRATE, the others
 * become 0.
 *
 * Context: Process context, caller holds mmap_lock. May sleep.
 */
void migrate_vma_fill_holes(struct migrate_vma *migrate, unsigned long first,
			    unsigned long last)
{
	unsigned long addr = migrate->start + (first << PAGE_SHIFT);
	unsigned long end = migrate->start + (last << PAGE_SHIFT);
	struct vm_area_struct *vma = migrate->vma;
	struct mmu_notifier_range range;
	bool usable;
	unsigned long i, next;

	usable = vma_is_anonymous(vma) && !anon_vma_prepare(vma);
	for (i = first; i < last; i++) {
		struct folio *folio = migrate_pfn_folio(migrate->dst[i]);

		if (is_fillable(migrate, i) &&
		    (!folio || !usable ||
		     !prepare_folio(vma, migrate->start + (i << PAGE_SHIFT),
				    folio, migrate_pfn_nr(migrate->dst[i]))))
			refuse_hole(migrate, i);
	}

	mmu_notifier_range_init_owner(&range, MMU_NOTIFY_MIGRATE, 0, vma->vm_mm,
				      addr, end, migrate->pgmap_owner);
	mmu_notifier_invalidate_range_start(&range);
	for (; addr < end; addr = next) {
		next = pmd_addr_end(addr, end);
		fill_table(migrate, addr, next);
	}
	mmu_notifier_invalidate_range_end(&range);
}

static vm_fault_t wait_for_other_fault(struct vm_fault *vmf, swp_entry_t entry)
{
	if (!fault_flag_allow_retry_first(vmf->flags)) {
		pte_unmap_unlock(vmf->pte, vmf->ptl);
		schedule_timeout_killable(1);
		return 0;
	}
	if (vmf->flags & FAULT_FLAG_RETRY_NOWAIT) {
		pte_unmap_unlock(vmf->pte, vmf->ptl);
		return VM_FAULT_RETRY;
	}
	pte_unmap(vmf->pte);
	release_fault_lock(vmf);
	migration_entry_wait_on_locked(entry, vmf->ptl);
	return VM_FAULT_RETRY;
}

static bool takes_vma_lock(const struct folio *folio)
{
	return folio->page.pgmap->flags & PGMAP_FAULT_VMA_LOCK;
}

/**
 * device_private_fault() - a CPU touches a page that is in device memory
 * @vmf: the fault; ->pte maps and ->ptl locks the entry that was found there,
 *	both are released
 * @entry: the device-private entry
 *
 * The page goes to the driver locked and referenced. While one thread has the
 * lock, others that touch the page wait for it, without a reference of theirs:
 * it would look like a pin and make the migration fail.
 *
 *   first thread                         others
 *   take the page-table lock             take the page-table lock
 *   folio: its lock, a reference         let go of mmap_lock, or the VMA
 *   page-table unlock                    queue up for the folio lock
 *   migrate_to_ram(): entry replaced     page-table unlock, sleep
 *   unlock and release the folio         wake up, fault again, find RAM
 *
 * The folio cannot go away under those who queue up, nor can the page table: the
 * entry they saw holds a reference, and is removed only under the page-table
 * lock.
 *
 * The fault has mmap_lock, or the lock of its VMA, if the driver can do with that:
 * else it comes again with mmap_lock. To a migration of one page, or of what is
 * around it in the VMA, they are alike: before the VMA, its page tables or its
 * anon_vmas go, and before fork copies it, both are taken for writing.
 *
 * A caller that cannot let go of mmap_lock may hold more that the driver waits
 * for, as one in hmm_range_fault() does. It sleeps for a moment only, and so
 * comes back to where it looks for signals and invalidations.
 *
 * Context: Process context, caller holds mmap_lock or the lock of the VMA. May
 * sleep.
 * Return: what the driver's migrate_to_ram() says; after waiting 0, or
 * %VM_FAULT_RETRY without that lock.
 */
vm_fault_t device_private_fault(struct vm_fault *vmf, swp_entry_t entry)
{
	struct folio *folio = pfn_swap_entry_folio(entry);
	vm_fault_t ret;

	if ((vmf->flags & FAULT_FLAG_VMA_LOCK) && !takes_vma_lock(folio)) {
		pte_unmap_unlock(vmf->pte, vmf->ptl);
		release_fault_lock(vmf);
		return VM_FAULT_RETRY;
	}
	if (!folio_trylock(folio))
		return wait_for_other_fault(vmf, entry);

	folio_get(folio);
	pte_unmap_unlock(vmf->pte, vmf->ptl);
	vmf->page = pfn_swap_entry_to_page(entry);
	ret = page_pgmap(vmf->page)->ops->migrate_to_ram(vmf);
	/* It may have been split: then the lock and the reference went along. */
	folio = page_folio(vmf->page);
	folio_unlock(folio);
	folio_put(folio);
	return ret;
}
