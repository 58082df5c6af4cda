// SPDX-License-Identifier: GPL-2.0
/*
 * Device migration: large folios that have to become smaller.
 *
 * A large folio moves as it is when all of it is in the migration and the driver
 * has a destination as large. Else there are two ways:
 *
 *   split	before setup has the folio. A device folio of which only a part is
 *		mapped, is in the range, or that the driver asked for in pages,
 *		becomes a folio per page, where it is.
 *   explode	in the pages step, when the destinations are smaller. The pages of
 *		the source get the identity they would have after a split, each
 *		in its destination, and the source remains a large folio that
 *		nobody maps. If some pages have no destination they stay in it,
 *		as in a folio of which a part was unmapped.
 *
 * Both change what a folio is, so nobody may look at it: no PTE maps it (there
 * are migration entries), and its reference count is frozen, that is, zero.
 *
 *	who could look			why it cannot
 *	a CPU, GUP			no PTE
 *	fault, zap, fork		migration entries name pfns, not folios
 *	rmap walks for its owner	need the folio lock, or a reference
 *	reclaim, compaction		it is off the LRU, or never was on it
 *	walks of pfns			folio_try_get() fails
 */
#include <linux/gfp.h>
#include <linux/memcontrol.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/page_idle.h>
#include <linux/rmap.h>
#include <linux/sched/mm.h>
#include <linux/swap.h>

#include "internal.h"
#include "migrate_device.h"

/* References of those who may have one while nothing maps the folio. */
static int nr_owners(struct folio *folio, struct page *fault_page)
{
	return migrate_lock_is_ours(folio, fault_page) ? 1 : 2;
}

/* --- Split a device folio where it is ------------------------------------- */

/* What a page of its own takes over from the folio it was in. */
#define SPLIT_FLAGS	(BIT(PG_locked) | BIT(PG_referenced) | BIT(PG_uptodate) | \
			 BIT(PG_dirty) | BIT(PG_workingset) | BIT(PG_swapbacked))

/*
 * From a tail to a folio with one, frozen reference. Zap may come by way of a
 * migration entry, and finds the tail, or the folio with all that it looks at:
 * what makes it a folio comes last. The page map stands where tails have their
 * head.
 */
static void make_page_of_tail(struct folio *folio, unsigned long i)
{
	struct page *page = folio_page(folio, i);

	page->flags &= ~(PAGE_FLAGS_CHECK_AT_PREP & ~BIT(PG_reserved));
	page->flags |= folio->flags & SPLIT_FLAGS;
	page->zone_device_data = NULL;
	page->mapping = folio->mapping;
	page->index = folio->index + i;
	set_page_private(page, 0);
	/* Pairs with the address dependency of compound_head(). */
	smp_wmb();
	WRITE_ONCE(page->pgmap, folio->page.pgmap);
}

/* The folio becomes a page each, all locked, all frozen. */
static void split_frozen(struct folio *folio)
{
	struct dev_pagemap *pgmap = folio->page.pgmap;
	unsigned long i, nr = folio_nr_pages(folio);
	unsigned int order = folio_order(folio);

	split_page_memcg(&folio->page, order, 0);
	mod_mthp_stat(order, MTHP_STAT_NR_ANON, -1);

	/* The order is in the first tail. */
	for (i = nr - 1; i; i--)
		make_page_of_tail(folio, i);
	ClearPageHead(&folio->page);

	if (!pgmap->ops->folio_split)
		return;
	for (i = 1; i < nr; i++)
		pgmap->ops->folio_split(folio, page_folio(&folio->page + i));
	pgmap->ops->folio_split(folio, NULL);
}

/* Who has what of the pages after a split. */
struct split_owners {
	struct page *head;
	struct page *locked;	/* whose lock is the caller's, or the fault's */
	bool faulting;		/* that one has a reference of the fault, too */
	struct anon_vma *anon_vma; /* NULL: there was no mapping */
};

static int nr_refs(const struct split_owners *owners, const struct page *page)
{
	return (page == owners->head) +
	       (owners->faulting && page == owners->locked);
}

/* Map the pages again, and let go of what is nobody's. */
static void thaw_pages(const struct split_owners *owners, unsigned long nr)
{
	struct page *page, *end = owners->head + nr;

	for (page = owners->head; page < end; page++)
		folio_ref_unfreeze(page_folio(page),
				   max(nr_refs(owners, page), 1));
	for (page = owners->head; page < end; page++) {
		struct folio *folio = page_folio(page);
		bool put = !nr_refs(owners, page);

		if (owners->anon_vma)
			remove_migration_ptes(folio, folio, 0);
		if (page != owners->locked)
			folio_unlock(folio);
		if (put)
			folio_put(folio);
	}
}

/**
 * migrate_split_device_folio() - make a folio per page of a large device folio
 * @folio: private or coherent folio, locked; the caller has a reference
 * @fault_page: if it is of the folio, the lock and one more reference are those
 *	of the fault handler, and are @fault_page's afterwards. Else the lock is
 *	the caller's, and the first page's afterwards.
 *
 * The caller's reference is the first page's in either case.
 *
 * Context: Process context. Sleeps, and takes the anon_vma lock.
 * Return: %MIGRATE_STAY_UNSELECTED, which is 0, or why it could not be split,
 * with nothing changed.
 */
enum migrate_stay migrate_split_device_folio(struct folio *folio,
					     struct page *fault_page)
{
	bool faulting = !migrate_lock_is_ours(folio, fault_page);
	enum migrate_stay why = MIGRATE_STAY_UNSELECTED;
	unsigned long nr = folio_nr_pages(folio);
	struct split_owners owners = {
		.head = &folio->page,
		.locked = faulting ? fault_page : &folio->page,
		.faulting = faulting,
	};

	/* Somebody may have been faster. */
	if (!folio_test_large(folio))
		return MIGRATE_STAY_UNSELECTED;
	if (!folio_test_anon(folio))
		return MIGRATE_STAY_UNSUPPORTED;

	/* Nobody may be left who maps it; its migration entries need no more. */
	owners.anon_vma = folio_get_anon_vma(folio);
	if (owners.anon_vma)
		try_to_migrate(folio, 0);
	if (folio_mapped(folio))
		why = MIGRATE_STAY_MAPPED;
	else if (!folio_ref_freeze(folio, nr_owners(folio, fault_page)))
		why = MIGRATE_STAY_PINNED;
	if (!why) {
		split_frozen(folio);
		thaw_pages(&owners, nr);
	} else if (owners.anon_vma) {
		remove_migration_ptes(folio, folio, 0);
	}
	if (owners.anon_vma)
		put_anon_vma(owners.anon_vma);
	return why;
}

/* --- Explode: smaller destinations ---------------------------------------- */

/* The destination that begins at page @k of @nr, if it fits there; or NULL. */
static struct folio *piece_at(const unsigned long *dst, unsigned long k,
			      unsigned long nr)
{
	struct folio *piece = migrate_pfn_folio(dst[k]);
	unsigned long n;

	if (!piece)
		return NULL;
	n = migrate_pfn_nr(dst[k]);
	if (n != folio_nr_pages(piece) || n > nr - k || !IS_ALIGNED(k, n))
		return NULL;
	return piece;
}

/*
 * The source is charged until it is freed, which is soon if all of it moves. So
 * what is above the limit then does not stay there, and need not fail here.
 */
static bool charge_piece(struct folio *src, struct folio *piece)
{
	struct mem_cgroup *old;
	int err;

	old = set_active_memcg(folio_memcg(src));
	err = mem_cgroup_charge(piece, NULL, GFP_ATOMIC);
	set_active_memcg(old);
	return !err;
}

/* What folio_migrate_flags() does for a source that goes as a whole. */
static void copy_flags(struct folio *piece, struct folio *src)
{
	if (folio_test_swapbacked(src))
		__folio_set_swapbacked(piece);
	if (folio_test_uptodate(src))
		__folio_mark_uptodate(piece);
	if (folio_test_referenced(src))
		folio_set_referenced(piece);
	if (folio_test_unevictable(src))
		folio_set_unevictable(piece);
	else if (folio_test_active(src))
		folio_set_active(piece);
	if (folio_test_workingset(src))
		folio_set_workingset(piece);
	if (folio_test_dirty(src))
		folio_set_dirty(piece);
	if (folio_test_young(src))
		folio_set_young(piece);
	if (folio_test_idle(src))
		folio_set_idle(piece);
}

/* Make @piece what page @k of @src is. */
static void give_identity(struct folio *piece, struct folio *src,
			  unsigned long k)
{
	piece->mapping = src->mapping;
	piece->index = src->index + k;
	copy_flags(piece, src);
	mod_mthp_stat(folio_order(piece), MTHP_STAT_NR_ANON, 1);
	if (folio_is_zone_device(src) && !folio_is_zone_device(piece))
		folio_mark_dirty(piece);
}

/* Find out which pieces are good, and charge them; return how many pages. */
static unsigned long prepare_pieces(struct folio *src, unsigned long *dst,
				    unsigned long nr, unsigned long *ready)
{
	unsigned long k, n, total = 0;
	struct folio *piece;

	bitmap_zero(ready, nr);
	for (k = 0; k < nr; k += n) {
		n = 1;
		piece = piece_at(dst, k, nr);
		if (!piece || !migrate_may_become(src, piece) ||
		    !charge_piece(src, piece))
			continue;
		n = folio_nr_pages(piece);
		__set_bit(k, ready);
		total += n;
	}
	return total;
}

/* From one entry for the folio to one for each page, or piece, of it. */
static void expand_entries(unsigned long *src, const unsigned long *dst,
			   unsigned long nr, const unsigned long *ready)
{
	unsigned long flags = src[0] & (MIGRATE_PFN_WRITE | MIGRATE_PFN_SHARED);
	unsigned long pfn = page_to_pfn(migrate_pfn_to_page(src[0]));
	unsigned long k, n;

	for (k = 0; k < nr; k += n) {
		n = 1;
		src[k] = migrate_pfn(pfn + k) | flags;
		if (!test_bit(k, ready))
			continue;
		src[k] |= MIGRATE_PFN_MIGRATE | MIGRATE_PFN_MOVED;
		n = migrate_pfn_nr(dst[k]);
		memset(&src[k + 1], 0, (n - 1) * sizeof(*src));
	}
}

/*
 * A source in RAM has handed on what the LRU knew of it. If all of it has moved it
 * is freed, and must not say that any more; else it is still somebody's, and larger
 * than it need be.
 */
static void settle_source(struct folio *folio, bool all_moved)
{
	if (all_moved) {
		folio_clear_active(folio);
		folio_clear_unevictable(folio);
	} else {
		folio_add_lru(folio);
		deferred_split_folio(folio, true);
	}
}

/**
 * migrate_explode() - move a large folio to destinations that are smaller
 * @src: entry of the folio, and the entries behind it that it stands for
 * @dst: as many; some of them have a destination
 * @nr: pages of the folio
 * @fault_page: as in &struct migrate_vma
 *
 * The pages that have one move, the others stay; afterwards @src has an entry
 * for each.
 *
 * Context: Process context, the folio and the destinations are locked.
 */
void migrate_explode(unsigned long *src, unsigned long *dst, unsigned long nr,
		     struct page *fault_page)
{
	struct folio *folio = migrate_pfn_folio(src[0]);
	int owners = nr_owners(folio, fault_page);
	DECLARE_BITMAP(ready, MAX_PTRS_PER_PTE);
	unsigned long k, moved = 0;

	if (nr <= PTRS_PER_PTE && folio_test_anon(folio))
		moved = prepare_pieces(folio, dst, nr, ready);
	if (!moved || !folio_ref_freeze(folio, owners)) {
		src[0] &= ~MIGRATE_PFN_MIGRATE;
		return;
	}

	folio_unqueue_deferred_split(folio);
	for_each_set_bit(k, ready, nr)
		give_identity(migrate_pfn_folio(dst[k]), folio, k);
	folio_ref_unfreeze(folio, owners);

	expand_entries(src, dst, nr, ready);
	if (!folio_is_zone_device(folio))
		settle_source(folio, moved == nr);
}
