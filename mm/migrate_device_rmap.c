// SPDX-License-Identifier: GPL-2.0
/*
 * Device migration: page tables that only the rmap knows.
 *
 * Pages that other processes map as well, and pages that a driver names by pfn.
 * To walk the rmap for each of them costs more than the rest of the migration. But
 * the pages of a range mostly came into being one after the other in one VMA. So
 * they have one anon_vma and their places in it are in a row: a *run*. One walk
 * finds all page tables of a run, and takes each of them once:
 *
 *   anon_vma lock, for reading
 *     each VMA that the run reaches into
 *       notifier
 *         each page table: its lock
 *           in chunks: clear PTEs, flush, look for pins, write migration entries
 *
 * Why these steps come in this order, and what they exclude, is the same as in
 * migrate_device_collect.c. The folios are locked, so no PTE of theirs turns into
 * a migration entry by other hands, and their anon_vma stays what it is; the
 * anon_vma lock keeps VMAs, and so their page tables. What fork copies meanwhile
 * it copies under the page-table lock of either side: a mapping of a page into a
 * VMA that comes later in the walk, as fork queues VMAs behind their parents, or a
 * migration entry.
 *
 * A folio that is still mapped after that has a mapping that this does not take:
 * the caller finds it by its mapcount.
 */
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pgtable.h>
#include <linux/rmap.h>
#include <linux/sched.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <asm/tlbflush.h>

#include "internal.h"
#include "migrate_device.h"
#include "migrate_device_pte.h"

/*
 * The run goes on for so long, and a folio more: each page table looks for its
 * place in the run from the first entry on.
 */
#define RUN_PAGES	(4 * PTRS_PER_PTE)

/**
 * struct rmap_run - entries of a migration with neighbours in one anon_vma
 * @src: the first entry; large folios have one, and zeroes behind it
 * @dst: its destination, on the way back
 * @mapping: what all folios have as ->mapping
 * @pgoff: index of the first page
 * @nr: pages
 */
struct rmap_run {
	unsigned long *src;
	const unsigned long *dst;
	const void *mapping;
	pgoff_t pgoff;
	unsigned long nr;
};

/* What is done with the part of a page table that is in the run. */
typedef void (*run_table_t)(const struct rmap_run *run,
			    struct vm_area_struct *vma, unsigned long addr,
			    unsigned long end, pte_t *ptep);

static bool is_plain_anon_mapping(const void *mapping)
{
	return ((unsigned long)mapping & PAGE_MAPPING_FLAGS) ==
	       PAGE_MAPPING_ANON;
}

static unsigned long run_index(const struct rmap_run *run,
			       const struct vm_area_struct *vma,
			       unsigned long addr)
{
	return vma->vm_pgoff + ((addr - vma->vm_start) >> PAGE_SHIFT) -
	       run->pgoff;
}

/* The addresses of the run in @vma; false if there are none. */
static bool run_addresses(const struct rmap_run *run, struct vm_area_struct *vma,
			  unsigned long *addr, unsigned long *end)
{
	*addr = vma_address(vma, run->pgoff, run->nr);
	if (*addr == -EFAULT)
		return false;
	*end = min(*addr + ((run->nr - run_index(run, vma, *addr)) << PAGE_SHIFT),
		   vma->vm_end);
	return true;
}

static void run_walk_tables(const struct rmap_run *run,
			    struct vm_area_struct *vma, unsigned long addr,
			    unsigned long end, run_table_t func)
{
	unsigned long next;

	for (; addr < end; addr = next) {
		pmd_t *pmdp = mm_find_pmd(vma->vm_mm, addr);
		pte_t *ptep = NULL;
		spinlock_t *ptl;

		cond_resched();
		next = pmd_addr_end(addr, end);
		if (pmdp)
			ptep = pte_offset_map_lock(vma->vm_mm, pmdp, addr, &ptl);
		if (!ptep)
			continue;
		func(run, vma, addr, next, ptep);
		/* While on the CPU whose mlock batch has references of the pages. */
		if (vma->vm_flags & VM_LOCKED)
			mlock_drain_local();
		pte_unmap_unlock(ptep, ptl);
	}
}

/* --- Unmap ---------------------------------------------------------------- */

/* Goes over the pages of a run. */
struct run_cursor {
	const unsigned long *src;
	struct page *page;
	unsigned long left;
};

static struct page *cursor_next(struct run_cursor *c, unsigned long n)
{
	struct page *page;

	while (!c->left || n > c->left) {
		n -= c->left;
		c->page = migrate_pfn_to_page(*c->src);
		c->left = migrate_pfn_nr(*c->src);
		c->src += c->left;
	}
	page = c->page + n - 1;
	c->page += n;
	c->left -= n;
	return page;
}

/* PTEs between one flush of the TLB and the next. */
#define RUN_CHUNK	32

struct run_chunk {
	struct page *pages[RUN_CHUNK];
	pte_t old[RUN_CHUNK];
};

static bool pte_maps(pte_t pte, struct page *page)
{
	swp_entry_t entry;

	if (pte_present(pte))
		return pte_pfn(pte) == page_to_pfn(page) && !PageHWPoison(page);
	if (!is_swap_pte(pte))
		return false;
	entry = pte_to_swp_entry(pte);
	return is_device_private_entry(entry) &&
	       swp_offset_pfn(entry) == page_to_pfn(page);
}

/* Return whether a CPU may hold a translation of what was cleared. */
static bool clear_chunk(struct run_chunk *chunk, struct run_cursor *cursor,
			struct vm_area_struct *vma, unsigned long addr,
			pte_t *ptep, unsigned long n)
{
	bool present = false;
	unsigned long k;

	arch_enter_lazy_mmu_mode();
	for (k = 0; k < n; k++, addr += PAGE_SIZE) {
		struct page *page = cursor_next(cursor, 1);

		chunk->pages[k] = NULL;
		if (!pte_maps(ptep_get(ptep + k), page))
			continue;
		chunk->pages[k] = page;
		chunk->old[k] = ptep_get_and_clear(vma->vm_mm, addr, ptep + k);
		present |= pte_present(chunk->old[k]);
	}
	arch_leave_lazy_mmu_mode();
	return present;
}

/*
 * Replace PTEs of one folio in a row, from the one at @k on. Return how many; the
 * one behind them is of another folio, or pinned, and then it is back and must not
 * be looked at again: it lives, and what is in @chunk is old.
 */
static unsigned long replace_row(struct run_chunk *chunk, unsigned long k,
				 unsigned long n, struct folio *folio,
				 struct vm_area_struct *vma, unsigned long addr,
				 pte_t *ptep, struct pte_rule *rule)
{
	struct page *page = chunk->pages[k];
	unsigned long i, left;

	left = folio_nr_pages(folio) - folio_page_idx(folio, page);
	n = min(n - k, left);
	for (i = 0; i < n && chunk->pages[k + i] == page + i; i++) {
		if (replace_pte(vma, addr + (i << PAGE_SHIFT), ptep + k + i,
				chunk->old[k + i], folio, page + i, rule))
			continue;
		chunk->pages[k + i] = NULL;
		break;
	}
	return i;
}

static void replace_chunk(struct run_chunk *chunk,
			  struct vm_area_struct *vma, unsigned long addr,
			  pte_t *ptep, unsigned long n,
			  struct anon_mapped *mapped, struct pte_rule *rule)
{
	unsigned long k, row;

	arch_enter_lazy_mmu_mode();
	for (k = 0; k < n; k += max(row, 1)) {
		struct page *page = chunk->pages[k];
		struct folio *folio;

		row = 0;
		if (!page)
			continue;
		folio = page_folio(page);
		row = replace_row(chunk, k, n, folio, vma,
				  addr + (k << PAGE_SHIFT), ptep, rule);
		if (!row)
			continue;
		drop_mappings(folio, page, row, vma, mapped);
		/* The migration has one more. */
		folio_ref_sub(folio, row);
	}
	arch_leave_lazy_mmu_mode();
}

static void unmap_table(const struct rmap_run *run, struct vm_area_struct *vma,
			unsigned long addr, unsigned long end, pte_t *ptep)
{
	struct run_cursor cursor = { .src = run->src };
	struct anon_mapped mapped = { };
	struct pte_rule rule = { };
	struct run_chunk chunk;
	unsigned long next, n;

	n = run_index(run, vma, addr);
	if (n)
		cursor_next(&cursor, n);
	flush_cache_range(vma, addr, end);
	for (; addr < end; addr = next, ptep += n) {
		next = min(end, addr + RUN_CHUNK * PAGE_SIZE);
		n = (next - addr) >> PAGE_SHIFT;
		if (clear_chunk(&chunk, &cursor, vma, addr, ptep, n))
			flush_tlb_range(vma, addr, next);
		replace_chunk(&chunk, vma, addr, ptep, n, &mapped, &rule);
	}
	anon_mapped_flush(&mapped);
}

static void unmap_vma(const struct rmap_run *run, struct vm_area_struct *vma)
{
	struct mmu_notifier_range range;
	unsigned long addr, end;

	/* exec moves its stack without a lock that this has. */
	if (vma_is_temporary_stack(vma) || !run_addresses(run, vma, &addr, &end))
		return;
	mmu_notifier_range_init(&range, MMU_NOTIFY_CLEAR, 0, vma->vm_mm, addr,
				end);
	mmu_notifier_invalidate_range_start(&range);
	run_walk_tables(run, vma, addr, end, unmap_table);
	mmu_notifier_invalidate_range_end(&range);
}

static void unmap_vmas_of(const struct rmap_run *run, struct anon_vma *anon_vma)
{
	struct anon_vma_chain *avc;

	anon_vma_lock_read(anon_vma);
	anon_vma_interval_tree_foreach(avc, &anon_vma->rb_root, run->pgoff,
				       run->pgoff + run->nr - 1)
		unmap_vma(run, avc->vma);
	anon_vma_unlock_read(anon_vma);
}

/* Is this one of the run, or the first one if there is no run yet? */
static bool run_takes_mapped(const struct rmap_run *run, unsigned long src)
{
	struct folio *folio;

	if (!(src & MIGRATE_PFN_VALID) || !(src & MIGRATE_PFN_MIGRATE))
		return false;
	folio = migrate_pfn_folio(src);
	if (!folio_mapped(folio))
		return false;
	/* A PMD that maps it would have to be split. */
	if (folio_test_large(folio) && folio_entire_mapcount(folio))
		return false;
	if (!run->nr)
		return is_plain_anon_mapping(folio->mapping);
	return folio->mapping == run->mapping &&
	       folio->index == run->pgoff + run->nr;
}

static void run_begin(struct rmap_run *run, struct folio *folio)
{
	run->mapping = folio->mapping;
	run->pgoff = folio->index;
}

/**
 * migrate_unmap_run() - unmap the folios of a run wherever they are mapped
 * @src: the src entries; the folio of the first is mapped, all are locked
 * @npages: how many entries there are
 * @keep: take a reference of the anon_vma for each folio
 *
 * Marks the entries %MIGRATE_PFN_SHARED.
 *
 * Context: Process context. Takes the anon_vma lock. May sleep.
 * Return: The entries that were in the run; 0 if the first one is for
 * try_to_migrate(), as it is no ordinary anonymous folio, or a PMD maps it.
 */
unsigned long migrate_unmap_run(unsigned long *src, unsigned long npages,
				bool keep)
{
	struct rmap_run run = { .src = src };
	struct anon_vma *anon_vma;
	unsigned long i, n;

	if (!run_takes_mapped(&run, src[0]))
		return 0;
	anon_vma = folio_get_anon_vma(migrate_pfn_folio(src[0]));
	if (!anon_vma)
		return 0;

	run_begin(&run, migrate_pfn_folio(src[0]));
	for (i = 0; i < npages && run.nr < RUN_PAGES; i += n) {
		if (!run_takes_mapped(&run, src[i]))
			break;
		n = migrate_pfn_nr(src[i]);
		run.nr += n;
		src[i] |= MIGRATE_PFN_SHARED;
		/* A folio that is mapped has an anon_vma that lives. */
		if (keep)
			get_anon_vma(anon_vma);
	}

	/* The last who had it mapped may have gone just now. */
	if (run.nr)
		unmap_vmas_of(&run, anon_vma);
	put_anon_vma(anon_vma);
	return run.nr;
}

/* --- Map again ------------------------------------------------------------ */

/* Of the addresses from @addr to @end, the part of each entry of the run. */
static void map_table(const struct rmap_run *run, struct vm_area_struct *vma,
		      unsigned long addr, unsigned long end, pte_t *ptep)
{
	unsigned long first = run_index(run, vma, addr);
	unsigned long last = first + ((end - addr) >> PAGE_SHIFT);
	struct map_batch batch = { };
	unsigned long i, n, from, to;

	for (i = 0; i < last; i += n) {
		unsigned long src = run->src[i], dst = run->dst[i];

		n = migrate_nr(src, dst);
		if (i + n <= first)
			continue;
		from = max(i, first);
		to = min(i + n, last);
		migrate_map_ptes(vma, addr + ((from - first) << PAGE_SHIFT),
				 ptep + (from - first),
				 migrate_pfn_to_page(src) + (from - i),
				 migrate_target(src, dst) + (from - i),
				 to - from, &batch);
	}
	anon_mapped_flush(&batch.mapped);
}

static bool run_takes_target(const struct rmap_run *run, unsigned long src,
			     unsigned long dst)
{
	struct folio *folio;
	struct page *target;
	pgoff_t pgoff;

	if (!(src & MIGRATE_PFN_VALID) || !(src & MIGRATE_PFN_SHARED))
		return false;
	target = migrate_target(src, dst);
	folio = page_folio(target);
	if (!run->nr)
		return is_plain_anon_mapping(folio->mapping);
	/* Of a folio that exploded, the pages that stay are somewhere in it. */
	pgoff = folio->index + folio_page_idx(folio, target);
	return folio->mapping == run->mapping && pgoff == run->pgoff + run->nr;
}

/* What is of KSM or of a file. */
static void map_one(unsigned long src, unsigned long dst)
{
	struct page *target = migrate_target(src, dst);
	struct folio *folio = migrate_pfn_folio(src);

	/* These do not explode. */
	if (!WARN_ON_ONCE(migrate_nr(src, dst) != folio_nr_pages(folio)))
		remove_migration_ptes(folio, page_folio(target), 0);
}

/**
 * migrate_map_run() - map entries of a migration wherever they were mapped
 * @src: src entries, the first one has %MIGRATE_PFN_SHARED
 * @dst: dst entries
 * @npages: how many there are
 *
 * For pages that page tables besides the one of the migration map, or that were
 * found by pfn.
 *
 * Context: Process context, caller holds the folio locks, and mmap_lock of who
 * maps the pages or references of their anon_vma. Takes the anon_vma or i_mmap
 * lock. May sleep.
 * Return: How many entries were in the run that the first one began.
 */
unsigned long migrate_map_run(unsigned long *src, const unsigned long *dst,
			      unsigned long npages)
{
	struct page *target = migrate_target(src[0], dst[0]);
	struct folio *folio = page_folio(target);
	struct rmap_run run = { .src = src, .dst = dst };
	struct anon_vma_chain *avc;
	struct anon_vma *anon_vma;
	unsigned long i, n, addr, end;

	if (!run_takes_target(&run, src[0], dst[0])) {
		map_one(src[0], dst[0]);
		return migrate_nr(src[0], dst[0]);
	}
	run_begin(&run, folio);
	run.pgoff += folio_page_idx(folio, target);
	for (i = 0; i < npages && run.nr < RUN_PAGES; i += n) {
		if (!run_takes_target(&run, src[i], dst[i]))
			break;
		n = migrate_nr(src[i], dst[i]);
		run.nr += n;
	}

	anon_vma = folio_anon_vma(folio);
	anon_vma_lock_read(anon_vma);
	anon_vma_interval_tree_foreach(avc, &anon_vma->rb_root, run.pgoff,
				       run.pgoff + run.nr - 1) {
		if (run_addresses(&run, avc->vma, &addr, &end))
			run_walk_tables(&run, avc->vma, addr, end, map_table);
	}
	anon_vma_unlock_read(anon_vma);
	return run.nr;
}
