// SPDX-License-Identifier: GPL-2.0
/*
 * Exclusive access of a device to a page in RAM.
 *
 * For atomic operations that its bus cannot do, a device needs a page that no
 * CPU touches meanwhile. The PTE becomes a device-exclusive entry: the page
 * stays where it is, and the first CPU that touches it calls the mmu notifier
 * of the owner and gets the old PTE back.
 *
 * The entry keeps the reference of the mapping but not its place in the rmap:
 * for rmap walkers it is no mapping, like a swap entry. The reference they find
 * and cannot explain keeps migration, splitting and reclaim away from the page.
 * One entry stands for one page, so any page of a large folio will do, while
 * its neighbours stay mapped.
 *
 * Lock order: mmap_lock -> folio lock -> page-table lock. The page is handed
 * out locked, because taking the entry back takes the folio lock: until the
 * driver has programmed the device and unlocks, no CPU can get in.
 */
#include <linux/export.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/sched/signal.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <asm/tlbflush.h>

#include "internal.h"

/* A page that is moved under us each time is given up after so many looks. */
#define EXCLUSIVE_TRIES	16

static int check_vma(struct vm_area_struct *vma)
{
	if (!vma || (vma->vm_flags & (VM_IO | VM_PFNMAP)))
		return -EFAULT;
	if (!(vma->vm_flags & VM_WRITE))
		return -EPERM;
	/* Of a private file mapping the write fault makes an anonymous copy. */
	if (is_vm_hugetlb_page(vma) || (vma->vm_flags & VM_SHARED))
		return -EOPNOTSUPP;
	return 0;
}

static int check_range(struct mm_struct *mm, unsigned long start,
		       unsigned long end)
{
	unsigned long addr;

	if (!PAGE_ALIGNED(start) || !PAGE_ALIGNED(end) || start >= end)
		return -EINVAL;

	for (addr = start; addr < end; ) {
		struct vm_area_struct *vma = vma_lookup(mm, addr);
		int err = check_vma(vma);

		if (err)
			return err;
		addr = vma->vm_end;
	}
	return 0;
}

/* Fault the page in, writable; mapped by a PTE even if its folio is huge. */
static struct page *get_writable_page(struct mm_struct *mm, unsigned long addr)
{
	struct page *page;
	long n;

	n = get_user_pages_remote(mm, addr, 1,
				  FOLL_GET | FOLL_WRITE | FOLL_SPLIT_PMD |
				  FOLL_HWPOISON, &page, NULL);
	if (n < 0)
		return ERR_PTR(n);
	return n ? page : ERR_PTR(-EFAULT);
}

/* The page must not have changed since it was looked up without the lock. */
static bool is_writable_mapping(pte_t pte, struct page *page)
{
	return pte_present(pte) && pte_pfn(pte) == page_to_pfn(page) &&
	       pte_write(pte);
}

static pte_t exclusive_pte(struct page *page, pte_t old)
{
	swp_entry_t entry;
	pte_t pte;

	entry = make_writable_device_exclusive_entry(page_to_pfn(page));
	pte = swp_entry_to_pte(entry);
	if (pte_soft_dirty(old))
		pte = pte_swp_mksoft_dirty(pte);
	if (pte_uffd_wp(old))
		pte = pte_swp_mkuffd_wp(pte);
	return pte;
}

static void replace_pte(struct vm_area_struct *vma, unsigned long addr,
			pte_t *ptep, struct page *page)
{
	struct folio *folio = page_folio(page);
	pte_t old;

	flush_cache_page(vma, addr, page_to_pfn(page));
	old = ptep_clear_flush(vma, addr, ptep);
	/* The last word on dirty: the CPU cannot write any more. */
	if (pte_dirty(old))
		folio_mark_dirty(folio);
	set_pte_at(vma->vm_mm, addr, ptep, exclusive_pte(page, old));
	folio_remove_rmap_pte(folio, page, vma);
}

/* Return -EAGAIN if the page is not mapped here, or not writable, any more. */
static int replace_mapping(struct vm_area_struct *vma, unsigned long addr,
			   struct page *page, void *owner)
{
	struct mmu_notifier_range range;
	int err = -EAGAIN;
	spinlock_t *ptl;
	pte_t *ptep;
	pmd_t *pmd;

	mmu_notifier_range_init_owner(&range, MMU_NOTIFY_EXCLUSIVE, 0,
				      vma->vm_mm, addr, addr + PAGE_SIZE, owner);
	mmu_notifier_invalidate_range_start(&range);

	pmd = mm_find_pmd(vma->vm_mm, addr);
	ptep = pmd ? pte_offset_map_lock(vma->vm_mm, pmd, addr, &ptl) : NULL;
	if (ptep) {
		if (is_writable_mapping(ptep_get(ptep), page)) {
			replace_pte(vma, addr, ptep, page);
			err = 0;
		}
		pte_unmap_unlock(ptep, ptl);
	}

	mmu_notifier_invalidate_range_end(&range);
	return err;
}

static int lock_folio(struct folio *folio, bool wait)
{
	if (wait)
		return folio_lock_killable(folio);
	return folio_trylock(folio) ? 0 : -EBUSY;
}

/*
 * Lock the page and replace its mapping. The reference is given back if that
 * does not work.
 */
static int make_exclusive(struct mm_struct *mm, unsigned long addr,
			  struct page *page, void *owner, bool wait)
{
	struct folio *folio = page_folio(page);
	int err = lock_folio(folio, wait);

	if (err)
		goto err_put;

	err = -EOPNOTSUPP;
	if (folio_test_anon(folio) && !folio_is_zone_device(folio))
		err = replace_mapping(vma_lookup(mm, addr), addr, page, owner);
	if (!err)
		return 0;

	folio_unlock(folio);
err_put:
	folio_put(folio);
	return err;
}

/**
 * make_device_exclusive() - take one page away from the CPUs
 * @mm: address space
 * @addr: page-aligned address of a page in anonymous memory
 * @owner: given to notifiers with %MMU_NOTIFY_EXCLUSIVE, so that the caller
 *	knows its own invalidation
 * @foliop: where to put the folio of the page
 *
 * Faults the page in for writing and puts a device-exclusive entry in the place
 * of its PTE. The page may be any of a large folio.
 *
 * The caller programs its device, with the usual check of its interval
 * notifier, then unlocks the folio and drops the reference. From then on any
 * CPU access ends the exclusive access, by way of the notifier.
 *
 * Context: Process context, caller holds mmap_lock. May sleep, also for the
 * folio lock.
 * Return: the page, its folio locked and referenced, or an ERR_PTR() with
 * nothing converted: -EINVAL, address not aligned; -EFAULT, no memory there, or
 * of a device or special kind; -EPERM, not writable; -EOPNOTSUPP, not
 * anonymous; -ENOMEM; -EHWPOISON; -EINTR, fatal signal; -EBUSY, the page keeps
 * moving.
 */
struct page *make_device_exclusive(struct mm_struct *mm, unsigned long addr,
				   void *owner, struct folio **foliop)
{
	int tries, err;

	mmap_assert_locked(mm);
	err = check_range(mm, addr, addr + PAGE_SIZE);
	if (err)
		return ERR_PTR(err);

	for (tries = 0; tries < EXCLUSIVE_TRIES; tries++) {
		struct page *page = get_writable_page(mm, addr);

		if (IS_ERR(page))
			return page;
		err = make_exclusive(mm, addr, page, owner, true);
		if (!err) {
			*foliop = page_folio(page);
			return page;
		}
		if (err != -EAGAIN)
			return ERR_PTR(err);
	}
	return ERR_PTR(-EBUSY);
}
EXPORT_SYMBOL_GPL(make_device_exclusive);

/*
 * Each page of the range has to be locked by itself, so two of them must not
 * share a folio. Split while the only reference besides the mappings is ours.
 */
static void make_small(struct page *page)
{
	struct folio *folio = page_folio(page);

	if (!folio_test_large(folio) || !folio_test_anon(folio) ||
	    !folio_trylock(folio))
		return;
	split_huge_page(page);
	/* The lock and the reference follow the page into its own folio. */
	folio_unlock(page_folio(page));
}

/* Return how many pages, from the start, or the errno of the first. */
static int get_writable_range(struct mm_struct *mm, unsigned long start,
			      int nr, struct page **pages)
{
	int n;

	for (n = 0; n < nr; n++) {
		struct page *page = get_writable_page(mm, start + n * PAGE_SIZE);

		pages[n] = NULL;
		if (IS_ERR(page))
			return n ? n : PTR_ERR(page);
		if (nr > 1)
			make_small(page);
		pages[n] = page;
	}
	return n;
}

/**
 * make_device_exclusive_range() - take some pages away from the CPUs
 * @mm: address space
 * @start: address of the first page
 * @end: address behind the last page
 * @pages: an entry per page: locked and referenced if it was taken, NULL if not
 * @owner: as for make_device_exclusive()
 *
 * As make_device_exclusive(), but does not wait for pages that others have
 * locked, and splits large folios. A driver that needs one page at a time is
 * better off with that.
 *
 * Context: Process context, caller holds mmap_lock. May sleep.
 * Return: how many entries of @pages are filled in, from the start; a negative
 * errno as of make_device_exclusive() if that is none, or if anything in the
 * range cannot be written by the process, with nothing converted.
 */
int make_device_exclusive_range(struct mm_struct *mm, unsigned long start,
				unsigned long end, struct page **pages,
				void *owner)
{
	int err, n, i;

	mmap_assert_locked(mm);
	err = check_range(mm, start, end);
	if (err)
		return err;
	if ((end - start) >> PAGE_SHIFT > INT_MAX)
		return -EINVAL;

	/*
	 * All faults come before the first lock: a page that is exclusive already
	 * is given back by a fault that waits for the lock of its folio, and that
	 * may be one with several pages in the range.
	 */
	n = get_writable_range(mm, start, (end - start) >> PAGE_SHIFT, pages);
	for (i = 0; i < n; i++) {
		unsigned long addr = start + i * PAGE_SIZE;

		if (make_exclusive(mm, addr, pages[i], owner, false))
			pages[i] = NULL;
	}
	return n;
}
EXPORT_SYMBOL_GPL(make_device_exclusive_range);
