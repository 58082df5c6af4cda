/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Why a page stayed where it was, and how a CPU fault comes to the driver.
 *
 * migrate_vma_setup() and migrate_device_range() give every page of their
 * range a src entry. An entry without MIGRATE_PFN_VALID and MIGRATE_PFN_MIGRATE
 * names no page: the bits above MIGRATE_PFN_SHIFT then hold a reason instead of
 * a pfn. A driver that does not care sees what it always saw: not valid, not
 * migrating.
 */
#ifndef _LINUX_MIGRATE_DEVICE_H
#define _LINUX_MIGRATE_DEVICE_H

#include <linux/migrate.h>
#include <linux/mm.h>

/*
 * &dev_pagemap.flags, beside PGMAP_ALTMAP_VALID: migrate_to_ram() does without
 * mmap_lock. It is then called with the lock of vmf->vma alone, if vmf->flags has
 * FAULT_FLAG_VMA_LOCK.
 */
#define PGMAP_FAULT_VMA_LOCK	BIT(1)

/**
 * enum migrate_stay - reason for which a page is not part of a migration
 * @MIGRATE_STAY_UNSELECTED: nothing there, or not what the caller selected
 * @MIGRATE_STAY_FREE: the device page is free: nobody has to move it
 * @MIGRATE_STAY_LOCKED: somebody else holds the folio lock; trying again helps
 * @MIGRATE_STAY_PINNED: the page has references that no mapping explains
 * @MIGRATE_STAY_ISOLATED: reclaim, compaction or a migration has taken the page
 *	off the LRU
 * @MIGRATE_STAY_MAPPED: a mapping of the page could not be removed
 * @MIGRATE_STAY_SPLIT: the large folio around the page could not be split
 * @MIGRATE_STAY_POISONED: the page has a hardware memory error
 * @MIGRATE_STAY_UNSUPPORTED: no page of this kind can move to or from a device
 */
enum migrate_stay {
	MIGRATE_STAY_UNSELECTED,
	MIGRATE_STAY_FREE,
	MIGRATE_STAY_LOCKED,
	MIGRATE_STAY_PINNED,
	MIGRATE_STAY_ISOLATED,
	MIGRATE_STAY_MAPPED,
	MIGRATE_STAY_SPLIT,
	MIGRATE_STAY_POISONED,
	MIGRATE_STAY_UNSUPPORTED,
	/* private: how many there are */
	NR_MIGRATE_STAY,
};

#ifdef CONFIG_MIGRATION

/**
 * migrate_pfn_stay() - make the src entry of a page that stays
 * @why: the reason
 *
 * Return: the entry; %MIGRATE_STAY_UNSELECTED is plain zero.
 */
static inline unsigned long migrate_pfn_stay(enum migrate_stay why)
{
	return (unsigned long)why << MIGRATE_PFN_SHIFT;
}

/**
 * migrate_pfn_to_stay() - why does this src entry name no page?
 * @mpfn: src entry, after setup
 *
 * Return: the reason, or %MIGRATE_STAY_UNSELECTED for an entry that has a page
 * or takes part in the migration.
 */
static inline enum migrate_stay migrate_pfn_to_stay(unsigned long mpfn)
{
	if (mpfn & (MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE))
		return MIGRATE_STAY_UNSELECTED;
	return mpfn >> MIGRATE_PFN_SHIFT;
}

/**
 * migrate_pfn_nr() - how many pages does an entry stand for?
 * @mpfn: src or dst entry
 *
 * The entries behind it, of the other pages, are 0.
 *
 * Return: The pages of the folio, if the entry has %MIGRATE_PFN_COMPOUND; a
 * PMD's worth for a hole that has; else 1.
 */
static inline unsigned long migrate_pfn_nr(unsigned long mpfn)
{
	if (!(mpfn & MIGRATE_PFN_COMPOUND))
		return 1;
	return mpfn & MIGRATE_PFN_VALID ?
	       folio_nr_pages(page_folio(migrate_pfn_to_page(mpfn))) :
	       PTRS_PER_PTE;
}

#endif /* CONFIG_MIGRATION */

#endif /* _LINUX_MIGRATE_DEVICE_H */
