/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Device migration: what becomes of a PTE, and of the counts of a mapping.
 *
 * For the three parts that write page tables: collect, by a walk; rmap, where no
 * walk leads; map, on the way back. All of them have the page-table lock and the
 * folio locks.
 *
 * Two things here are done for many pages at once:
 *
 * The value of a PTE. Neighbours mostly differ by their pfn alone, and so do the
 * PTEs that take their place: struct pte_rule.
 *
 * NR_ANON_MAPPED. To change it for a page costs more than all the rest of the
 * mapping, as node and control group have one each, and each of these a copy per
 * CPU. Pages of a range are mostly of one node and group: struct anon_mapped.
 */
#ifndef _MM_MIGRATE_DEVICE_PTE_H
#define _MM_MIGRATE_DEVICE_PTE_H

#include <linux/memcontrol.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/rmap.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <linux/vmstat.h>

#include "internal.h"

/* A PTE fits in an entry of src or dst, and can be computed with as a number. */
static_assert(sizeof(pte_t) <= sizeof(unsigned long));

/* From a PTE to that of the next page of the same folio, all else the same. */
static inline unsigned long pte_step(pte_t pte)
{
	pte_t next = pte_present(pte) ? pte_next_pfn(pte) :
					pte_next_swp_offset(pte);

	return pte_val(next) - pte_val(pte);
}

/* PTEs of @nr pages in a row, from one for the first on. */
static inline void set_ptes_from(struct mm_struct *mm, unsigned long addr,
				 pte_t *ptep, pte_t pte, unsigned long nr)
{
	unsigned long value = pte_val(pte), step;

	set_pte_at(mm, addr, ptep, pte);
	if (nr == 1)
		return;
	for (step = pte_step(pte); --nr; ) {
		addr += PAGE_SIZE;
		value += step;
		set_pte_at(mm, addr, ++ptep, __pte(value));
	}
}

/**
 * struct pte_rule - what takes the place of a PTE that is like the last one
 * @from: the one, less its pfn
 * @to: the other, less its pfn
 * @from_step: what a pfn more adds to the one
 * @to_step: and to the other
 * @traits: what else decides: the same for all that the rule is good for
 * @wanted: there was more than one page to make a rule for
 *
 * A rule is made from one pair, and PTEs are numbers: all that is not the pfn is
 * compared at once, and needs no decoding: a PTE is linear in the pfn. Neighbours
 * in a folio are so everywhere. It is not worth it for one page, so the
 * first pair is let pass: a rule of zeroes holds for nothing.
 */
struct pte_rule {
	unsigned long from;
	unsigned long to;
	unsigned long from_step;
	unsigned long to_step;
	unsigned int traits;
	bool wanted;
};

static inline void pte_rule_make(struct pte_rule *rule, pte_t from,
				 unsigned long from_pfn, pte_t to,
				 unsigned long to_pfn, unsigned int traits)
{
	/* There the upper bits of a pfn stand in another place than the others. */
	if (IS_ENABLED(CONFIG_ARM64_PA_BITS_52))
		return;
	if (!rule->wanted) {
		rule->wanted = true;
		return;
	}
	rule->from_step = pte_step(from);
	rule->to_step = pte_step(to);
	rule->from = pte_val(from) - from_pfn * rule->from_step;
	rule->to = pte_val(to) - to_pfn * rule->to_step;
	rule->traits = traits;
}

static __always_inline bool pte_rule_is_made(const struct pte_rule *rule)
{
	return rule->from_step;
}

static __always_inline bool pte_rule_holds(const struct pte_rule *rule, pte_t from,
					   unsigned long pfn, unsigned int traits)
{
	return pte_val(from) == rule->from + pfn * rule->from_step &&
	       traits == rule->traits && pte_rule_is_made(rule);
}

static __always_inline pte_t pte_rule_get(const struct pte_rule *rule,
					  unsigned long pfn)
{
	return __pte(rule->to + pfn * rule->to_step);
}

static inline bool pte_allows_write(pte_t pte)
{
	return pte_present(pte) ? pte_write(pte) :
	       is_writable_device_private_entry(pte_to_swp_entry(pte));
}

static inline swp_entry_t migration_entry(struct page *page, bool write,
					  bool exclusive)
{
	unsigned long pfn = page_to_pfn(page);

	if (write)
		return make_writable_migration_entry(pfn);
	if (exclusive)
		return make_readable_exclusive_migration_entry(pfn);
	return make_readable_migration_entry(pfn);
}

/* The PTE that stands for @page until finalize, with all bits of @old. */
static inline pte_t migration_pte(struct page *page, pte_t old, bool exclusive)
{
	swp_entry_t entry = migration_entry(page, pte_allows_write(old),
					    exclusive);
	bool soft_dirty, uffd_wp;
	pte_t pte;

	if (pte_present(old)) {
		if (pte_young(old))
			entry = make_migration_entry_young(entry);
		if (pte_dirty(old))
			entry = make_migration_entry_dirty(entry);
		soft_dirty = pte_soft_dirty(old);
		uffd_wp = pte_uffd_wp(old);
	} else {
		soft_dirty = pte_swp_soft_dirty(old);
		uffd_wp = pte_swp_uffd_wp(old);
	}

	pte = swp_entry_to_pte(entry);
	if (soft_dirty)
		pte = pte_swp_mksoft_dirty(pte);
	if (uffd_wp)
		pte = pte_swp_mkuffd_wp(pte);
	return pte;
}

/*
 * The last word on dirty: no CPU can set the bit of @old any more. Nobody wants to
 * hear of an anonymous folio, and the flag says all.
 */
static inline void take_dirty(struct folio *folio, pte_t old)
{
	if (!pte_present(old) || !pte_dirty(old))
		return;
	if (!folio_test_anon(folio) || folio_test_swapcache(folio))
		folio_mark_dirty(folio);
	else if (!folio_test_dirty(folio))
		folio_set_dirty(folio);
}

/**
 * struct anon_mapped - change of NR_ANON_MAPPED that is not told yet
 * @like: a folio of the node and control group that it is for
 * @memcg: that control group
 * @nid: that node
 * @nr: pages
 */
struct anon_mapped {
	struct folio *like;
	struct mem_cgroup *memcg;
	int nid;
	long nr;
};

/*
 * Tell it, while the lock of @like still keeps its control group. Before that the
 * folios are not freed, nor do their mappings change, by anybody else.
 */
static inline void anon_mapped_flush(struct anon_mapped *mapped)
{
	if (mapped->nr)
		lruvec_stat_mod_folio(mapped->like, NR_ANON_MAPPED, mapped->nr);
	mapped->nr = 0;
}

static __always_inline void anon_mapped_add(struct anon_mapped *mapped,
					    struct folio *folio, long nr)
{
	struct mem_cgroup *memcg = folio_memcg(folio);
	int nid = folio_nid(folio);

	if (unlikely(memcg != mapped->memcg || nid != mapped->nid ||
		     !mapped->like)) {
		anon_mapped_flush(mapped);
		mapped->like = folio;
		mapped->memcg = memcg;
		mapped->nid = nid;
	}
	mapped->nr += nr;
}

/* Does the rmap of a folio come down to its _mapcount? Then it is done here. */
static inline bool is_plain_anon(const struct folio *folio,
				 const struct vm_area_struct *vma)
{
	return folio_test_anon(folio) && !folio_test_large(folio) &&
	       !(vma->vm_flags & VM_LOCKED);
}

static __always_inline void drop_mappings(struct folio *folio, struct page *page,
					  unsigned long nr,
					  struct vm_area_struct *vma,
					  struct anon_mapped *mapped)
{
	if (!is_plain_anon(folio, vma))
		folio_remove_rmap_ptes(folio, page, nr, vma);
	else if (atomic_add_negative(-1, &folio->_mapcount))
		anon_mapped_add(mapped, folio, -1);
}

/* A new mapping of a page for which is_plain_anon() holds, and its reference. */
static __always_inline void add_plain_mapping(struct folio *folio, bool exclusive,
					      struct anon_mapped *mapped)
{
	folio_ref_inc(folio);
	if (atomic_inc_and_test(&folio->_mapcount))
		anon_mapped_add(mapped, folio, 1);
	if (exclusive)
		SetPageAnonExclusive(&folio->page);
}

/*
 * A new mapping of @nr pages, each with a reference of its own. For a large folio
 * @mapped may be NULL.
 */
static __always_inline void add_mappings(struct vm_area_struct *vma,
					 unsigned long addr, struct page *page,
					 unsigned long nr, bool exclusive,
					 struct anon_mapped *mapped)
{
	struct folio *folio = page_folio(page);

	if (is_plain_anon(folio, vma)) {
		add_plain_mapping(folio, exclusive, mapped);
		return;
	}
	folio_ref_add(folio, nr);
	if (folio_test_anon(folio)) {
		folio_add_anon_rmap_ptes(folio, page, nr, vma, addr,
					 exclusive ? RMAP_EXCLUSIVE : RMAP_NONE);
	} else {
		folio_add_file_rmap_ptes(folio, page, nr, vma);
	}
}

/* migration_pte() by a rule, which is made anew where it does not hold. */
static __always_inline pte_t migration_pte_by(struct pte_rule *rule,
					      struct page *page, pte_t old,
					      bool exclusive)
{
	unsigned long pfn = page_to_pfn(page);
	pte_t pte;

	if (likely(pte_rule_holds(rule, old, pfn, exclusive)))
		return pte_rule_get(rule, pfn);
	pte = migration_pte(page, old, exclusive);
	pte_rule_make(rule, old, pfn, pte, pfn, exclusive);
	return pte;
}

/**
 * struct map_batch - what goes on from one migrate_map_ptes() to the next
 * @mapped: NR_ANON_MAPPED; who has the batch tells it, while the folios are locked
 * @rule: from migration entries to what takes their place in this VMA
 * @exclusive: the entries that the rule is for are of exclusive pages
 * @pte: what takes the place of the entry that was looked at last
 */
struct map_batch {
	struct anon_mapped mapped;
	struct pte_rule rule;
	bool exclusive;
	pte_t pte;
};

/*
 * Put a migration entry where @old was taken from. The mapping is still counted.
 * False if @page is pinned: then @old is back.
 */
static __always_inline bool replace_pte(struct vm_area_struct *vma,
					unsigned long addr, pte_t *ptep,
					pte_t old, struct folio *folio,
					struct page *page,
					struct pte_rule *rule)
{
	bool exclusive = folio_test_anon(folio) && PageAnonExclusive(page);

	if (exclusive && folio_try_share_anon_rmap_pte(folio, page)) {
		set_pte_at(vma->vm_mm, addr, ptep, old);
		return false;
	}
	take_dirty(folio, old);
	set_pte_at(vma->vm_mm, addr, ptep,
		   migration_pte_by(rule, page, old, exclusive));
	return true;
}

#endif /* _MM_MIGRATE_DEVICE_PTE_H */
