// SPDX-License-Identifier: GPL-2.0
/*
 * Device migration: off the LRU, and onto it again, many folios at a time.
 *
 * Folios of a range are mostly neighbours there, too: of one lruvec, one of its
 * lists and one zone. So the lruvec is locked once for many of them, and those who
 * count the pages of its lists (node, zone and control group) are told once.
 *
 * A folio is on the LRU if it has PG_lru. Who clears the flag takes the folio off,
 * and is the only one who may put it there again. Here they are ours, and locked:
 * nobody maps or charges them meanwhile, so their lruvec stays the same.
 */
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/mm_inline.h>
#include <linux/pagevec.h>
#include <linux/swap.h>
#include <trace/events/pagemap.h>

#include "internal.h"
#include "migrate_device.h"

/* Entries that are looked at in a row with the lruvec locked, interrupts off. */
#define MIGRATE_LRU_BATCH	128

/* Pages for which it is worth it to lock the lruvec: half a batch of a CPU. */
#define MIGRATE_LRU_MANY	(PAGEVEC_SIZE / 2)

/**
 * struct lru_batch - folios of one lruvec that come, or go
 * @lruvec: locked; or NULL
 * @end: if locked, index of the first entry that it is not locked for
 * @lru: list of those that are not told yet
 * @zone: and their zone
 * @pages: how many pages these are, below 0 if they go
 */
struct lru_batch {
	struct lruvec *lruvec;
	unsigned long end;
	enum lru_list lru;
	enum zone_type zone;
	long pages;
};

/* Who reads these counts without the lock gets an estimate anyway. */
static void lru_tell(struct lru_batch *batch)
{
	if (batch->pages)
		update_lru_size(batch->lruvec, batch->lru, batch->zone,
				batch->pages);
	batch->pages = 0;
}

static void lru_count(struct lru_batch *batch, const struct folio *folio,
		      enum lru_list lru, long pages)
{
	enum zone_type zone = folio_zonenum(folio);

	if (batch->lru != lru || batch->zone != zone) {
		lru_tell(batch);
		batch->lru = lru;
		batch->zone = zone;
	}
	batch->pages += pages;
}

static void lru_unlock(struct lru_batch *batch)
{
	if (!batch->lruvec)
		return;
	lru_tell(batch);
	unlock_page_lruvec_irq(batch->lruvec);
	batch->lruvec = NULL;
	batch->end = ULONG_MAX;
}

/* Lock the lruvec of @folio, which is that of entry @i. */
static __always_inline void lru_lock(struct lru_batch *batch,
				     struct folio *folio, unsigned long i)
{
	if (likely(batch->lruvec && folio_matches_lruvec(folio, batch->lruvec)))
		return;
	lru_unlock(batch);
	batch->lruvec = folio_lruvec_lock_irq(folio);
	batch->end = i + MIGRATE_LRU_BATCH;
}

static void lru_del(struct lru_batch *batch, struct folio *folio)
{
	enum lru_list lru = folio_lru_list(folio);

	/* Generations have lists and counts of their own. */
	if (lru_gen_del_folio(batch->lruvec, folio, false))
		return;
	if (lru != LRU_UNEVICTABLE)
		list_del(&folio->lru);
	lru_count(batch, folio, lru, -folio_nr_pages(folio));
}

static void lru_add(struct lru_batch *batch, struct folio *folio)
{
	enum lru_list lru = folio_lru_list(folio);

	VM_WARN_ON_ONCE_FOLIO(folio_test_lru(folio), folio);
	folio_set_lru(folio);
	trace_mm_lru_insertion(folio);
	/* They may have been switched on since is_plainly_evictable() looked. */
	if (lru_gen_add_folio(batch->lruvec, folio, false))
		return;
	list_add(&folio->lru, &batch->lruvec->lists[lru]);
	lru_count(batch, folio, lru, folio_nr_pages(folio));
}

/*
 * What mlock() and generations have to say is left to folio_add_lru(). Nobody can
 * mlock it meanwhile, as it is not mapped.
 */
static bool is_plainly_evictable(const struct folio *folio)
{
	return folio_test_anon(folio) && !folio_test_mlocked(folio) &&
	       !folio_test_unevictable(folio) && !lru_gen_enabled();
}

/**
 * migrate_isolate() - take folios off the LRU
 * @src: src entries
 * @npages: how many
 * @wanted: which of %MIGRATE_PFN_VALID and %MIGRATE_PFN_MIGRATE those have that
 *	are looked at
 *
 * %MIGRATE_PFN_MIGRATE goes from those that are not there, and comes back to those
 * that are found there after all.
 *
 * Context: Process context, caller holds the folio locks and references.
 * Return: Whether any was missing.
 */
bool migrate_isolate(unsigned long *src, unsigned long npages,
		     unsigned long wanted)
{
	struct lru_batch batch = { .end = ULONG_MAX };
	unsigned long i, nr;
	bool missing = false;

	for (i = 0; i < npages; i += nr) {
		struct folio *folio;

		if (i >= batch.end)
			lru_unlock(&batch);
		nr = migrate_pfn_nr(src[i]);
		if ((src[i] & (MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE)) != wanted)
			continue;
		folio = migrate_entry_folio(src[i]);
		/* Device folios are on no LRU. */
		if (folio_is_zone_device(folio))
			continue;
		if (!folio_test_clear_lru(folio)) {
			src[i] &= ~MIGRATE_PFN_MIGRATE;
			missing = true;
			continue;
		}
		src[i] |= MIGRATE_PFN_MIGRATE;
		lru_lock(&batch, folio, i);
		lru_del(&batch, folio);
	}
	lru_unlock(&batch);
	return missing;
}

/**
 * migrate_putback() - put what goes on living in RAM on the LRU, for reclaim
 * @src: src entries, after the pages step
 * @dst: dst entries
 * @npages: how many
 *
 * A folio that exploded and was left with pages was returned then. Few pages go
 * the way of all that CPU faults bring, by a batch of this CPU, so that many threads
 * do not meet at the lock.
 *
 * Context: Process context, caller holds the folio locks and references.
 * Return: Whether there is any page, of those or for them.
 */
bool migrate_putback(const unsigned long *src, const unsigned long *dst,
		     unsigned long npages)
{
	struct lru_batch batch = { .end = ULONG_MAX };
	unsigned long i, nr, any = 0;

	for (i = 0; i < npages; i += nr) {
		struct folio *folio;
		struct page *page;

		if (i >= batch.end)
			lru_unlock(&batch);
		nr = 1;
		any |= src[i] | dst[i];
		if (!(src[i] & MIGRATE_PFN_VALID))
			continue;
		nr = migrate_nr(src[i], dst[i]);
		page = migrate_target(src[i], dst[i]);
		if (is_zone_device_page(page))
			continue;
		folio = page_folio(page);
		if (folio_nr_pages(folio) != nr)
			continue;
		if (npages >= MIGRATE_LRU_MANY && is_plainly_evictable(folio)) {
			lru_lock(&batch, folio, i);
			lru_add(&batch, folio);
		} else {
			lru_unlock(&batch);
			folio_add_lru(folio);
		}
	}
	lru_unlock(&batch);
	return any & MIGRATE_PFN_VALID;
}
