// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of the mirror: its decisions as tables, and hmm_range_fault() on a real
 * mm. Every fault that the mirror takes goes through the fixture, which counts
 * it and can make it fail.
 */
#include <kunit/resource.h>
#include <kunit/static_stub.h>
#include <kunit/test.h>
#include <kunit/test-bug.h>
#include <linux/hmm.h>
#include <linux/huge_mm.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/percpu_counter.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "../hmm_internal.h"

#define ASK_READ		HMM_PFN_REQ_FAULT
#define ASK_WRITE		(HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE)
#define READABLE	HMM_PFN_VALID
#define WRITABLE	(HMM_PFN_VALID | HMM_PFN_WRITE)

#define PMD_NR		(1UL << (PMD_SHIFT - PAGE_SHIFT))
#define SOME_PFN	0x1234UL

/* Decisions and conversions */

struct need_case {
	const char *name;
	unsigned long request;
	unsigned long entry;
	enum hmm_need need;
};

static const struct need_case need_cases[] = {
	{ "nothing of a hole", 0, 0, HMM_NEED_NOTHING },
	{ "nothing of an error", 0, HMM_PFN_ERROR, HMM_NEED_NOTHING },
	{ "nothing of a page", 0, READABLE, HMM_NEED_NOTHING },
	{ "write alone means nothing", HMM_PFN_REQ_WRITE, 0, HMM_NEED_NOTHING },
	{ "read of a hole", ASK_READ, 0, HMM_NEED_READ },
	{ "read of a readable page", ASK_READ, READABLE, HMM_NEED_NOTHING },
	{ "read of a writable page", ASK_READ, WRITABLE, HMM_NEED_NOTHING },
	{ "read of an error", ASK_READ, HMM_PFN_ERROR, HMM_NEED_IMPOSSIBLE },
	{ "write of a hole", ASK_WRITE, 0, HMM_NEED_WRITE },
	{ "write of a readable page", ASK_WRITE, READABLE, HMM_NEED_WRITE },
	{ "write of a writable page", ASK_WRITE, WRITABLE, HMM_NEED_NOTHING },
	{ "write of an error", ASK_WRITE, HMM_PFN_ERROR, HMM_NEED_IMPOSSIBLE },
	{ "order and pfn do not matter", ASK_READ, READABLE | SOME_PFN |
	  9UL << HMM_PFN_ORDER_SHIFT, HMM_NEED_NOTHING },
	{ "stray bits are no request", ~ASK_WRITE, 0, HMM_NEED_NOTHING },
};

KUNIT_ARRAY_PARAM_DESC(need, need_cases, name);

static void need_follows_table(struct kunit *test)
{
	const struct need_case *c = test->param_value;

	KUNIT_EXPECT_EQ(test, hmm_need(c->request, c->entry), c->need);
}

/* hmm_emit() and the stencils skip the look at each page because of this. */
static void need_is_monotone(struct kunit *test)
{
	static const unsigned long requests[] = { 0, HMM_PFN_REQ_WRITE, ASK_READ, ASK_WRITE };
	static const unsigned long entries[] = { 0, HMM_PFN_ERROR, READABLE, WRITABLE };
	int i, j, e;

	for (e = 0; e < ARRAY_SIZE(entries); e++) {
		for (i = 0; i < ARRAY_SIZE(requests); i++) {
			if (hmm_need(requests[i], entries[e]))
				continue;
			for (j = 0; j < ARRAY_SIZE(requests); j++) {
				if (requests[j] & ~requests[i])
					continue;
				KUNIT_EXPECT_EQ(test,
						hmm_need(requests[j], entries[e]),
						HMM_NEED_NOTHING);
			}
		}
	}
}

static void request_masks_words(struct kunit *test)
{
	struct hmm_range range = { };

	KUNIT_EXPECT_EQ(test, hmm_request(&range, ~0UL), 0);
	range.default_flags = ASK_READ;
	KUNIT_EXPECT_EQ(test, hmm_request(&range, ~0UL), ASK_READ);
	range.pfn_flags_mask = HMM_PFN_REQ_WRITE;
	KUNIT_EXPECT_EQ(test, hmm_request(&range, ~0UL), ASK_WRITE);
	KUNIT_EXPECT_EQ(test, hmm_request(&range, 0), ASK_READ);
}

static pgprot_t rw_prot(void)
{
	return vm_get_page_prot(VM_READ | VM_WRITE | VM_SHARED);
}

static pgprot_t ro_prot(void)
{
	return vm_get_page_prot(VM_READ);
}

static pte_t rw_pte(unsigned long pfn)
{
	return pte_mkdirty(pte_mkyoung(pte_mkwrite_novma(pfn_pte(pfn, rw_prot()))));
}

static pte_t ro_pte(unsigned long pfn)
{
	return pte_mkyoung(pte_wrprotect(pfn_pte(pfn, ro_prot())));
}

static void pte_gives_pfn_and_rights(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, hmm_entry_of_pte(rw_pte(SOME_PFN), 0),
			WRITABLE | SOME_PFN);
	KUNIT_EXPECT_EQ(test, hmm_entry_of_pte(ro_pte(SOME_PFN), 0),
			READABLE | SOME_PFN);
	KUNIT_EXPECT_EQ(test, hmm_entry_of_pte(__pte(0), 0), 0);
	KUNIT_EXPECT_EQ(test, hmm_entry_of_pte(swp_entry_to_pte(swp_entry(1, 5)), 0), 0);
	if (IS_ENABLED(CONFIG_NUMA_BALANCING)) {
		pte_t none = pte_modify(rw_pte(SOME_PFN), PAGE_NONE);

		KUNIT_EXPECT_TRUE(test, pte_present(none));
		KUNIT_EXPECT_EQ(test, hmm_entry_of_pte(none, 0), 0);
	}
}

static void hugetlb_has_order_only_if_present(struct kunit *test)
{
	unsigned long entry = hmm_entry_of_pte(rw_pte(PMD_NR * 3), 9);

	KUNIT_EXPECT_EQ(test, hmm_pfn_to_map_order(entry), 9);
	KUNIT_EXPECT_EQ(test, entry & ~HMM_PFN_FLAGS, PMD_NR * 3);
	KUNIT_EXPECT_EQ(test, hmm_entry_of_pte(__pte(0), 9), 0);
	/* The largest order there is, PMDs of 512 GB and more aside. */
	KUNIT_EXPECT_EQ(test, hmm_pfn_to_map_order(hmm_entry(0, true, 31)), 31);
}

static void entry_advances_if_valid(struct kunit *test)
{
	unsigned long thp = hmm_entry(PMD_NR, true, 9);

	KUNIT_EXPECT_EQ(test, hmm_entry_after(thp, 7), hmm_entry(PMD_NR + 7, true, 9));
	KUNIT_EXPECT_EQ(test, hmm_entry_after(0, 7), 0);
	KUNIT_EXPECT_EQ(test, hmm_entry_after(HMM_PFN_ERROR, 7), HMM_PFN_ERROR);
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
static void pmd_gives_pfn_rights_order(struct kunit *test)
{
	pmd_t pmd = pmd_mkhuge(pfn_pmd(PMD_NR * 5, ro_prot()));
	unsigned long entry = hmm_entry_of_pmd(pmd);

	KUNIT_EXPECT_EQ(test, entry,
			hmm_entry(PMD_NR * 5, false, PMD_SHIFT - PAGE_SHIFT));
	entry = hmm_entry_of_pmd(pmd_mkwrite_novma(pmd_mkdirty(pmd)));
	KUNIT_EXPECT_EQ(test, entry,
			hmm_entry(PMD_NR * 5, true, PMD_SHIFT - PAGE_SHIFT));
	if (IS_ENABLED(CONFIG_NUMA_BALANCING))
		KUNIT_EXPECT_EQ(test,
				hmm_entry_of_pmd(pmd_modify(pmd, PAGE_NONE)), 0);
}
#endif

#ifdef CONFIG_HAVE_ARCH_TRANSPARENT_HUGEPAGE_PUD
static void pud_gives_pfn_rights_order(struct kunit *test)
{
	unsigned long pfn = 3UL << (PUD_SHIFT - PAGE_SHIFT);
	pud_t pud = pud_mkhuge(pfn_pud(pfn, ro_prot()));

	KUNIT_EXPECT_EQ(test, hmm_entry_of_pud(pud),
			hmm_entry(pfn, false, PUD_SHIFT - PAGE_SHIFT));
	KUNIT_EXPECT_EQ(test, hmm_entry_of_pud(pud_mkwrite(pud)),
			hmm_entry(pfn, true, PUD_SHIFT - PAGE_SHIFT));
}
#endif

#ifdef CONFIG_DEVICE_PRIVATE
static pte_t private_pte(unsigned long pfn, bool write)
{
	return swp_entry_to_pte(write ? make_writable_device_private_entry(pfn) :
					make_readable_device_private_entry(pfn));
}

static void private_gives_pfn_and_rights(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, hmm_entry_of_private(make_readable_device_private_entry(SOME_PFN)),
			READABLE | SOME_PFN);
	KUNIT_EXPECT_EQ(test, hmm_entry_of_private(make_writable_device_private_entry(SOME_PFN)),
			WRITABLE | SOME_PFN);
}
#endif

/* Stencils: what they accept, they convert as the slow way does. */

static bool fits(const struct hmm_stencil *stencil, pte_t pte)
{
	return hmm_stencil_distance(stencil, pte) <= stencil->span;
}

static void expect_converts(struct kunit *test, const struct hmm_stencil *s,
			    pte_t pte, unsigned long entry)
{
	KUNIT_EXPECT_TRUE(test, fits(s, pte));
	KUNIT_EXPECT_EQ(test, (unsigned long)(s->entry + hmm_stencil_distance(s, pte)),
			entry);
}

static void empty_stencil_fits_nothing(struct kunit *test)
{
	struct hmm_stencil none = HMM_STENCIL_NONE;

	KUNIT_EXPECT_FALSE(test, fits(&none, __pte(0)));
	KUNIT_EXPECT_FALSE(test, fits(&none, __pte(1)));
	KUNIT_EXPECT_FALSE(test, fits(&none, __pte(~0ULL)));
	KUNIT_EXPECT_FALSE(test, fits(&none, rw_pte(SOME_PFN)));
}

static void stencil_converts_alike_ptes(struct kunit *test)
{
	static const unsigned long pfns[] = { 0, 1, 0xfff, 0x1000, SOME_PFN, 0x7fffe, 0x7ffff };
	struct hmm_stencil s = hmm_stencil_of_pte(rw_pte(SOME_PFN), 0, 0x7ffff);
	int i;

	for (i = 0; i < ARRAY_SIZE(pfns); i++) {
		unsigned long entry = WRITABLE | pfns[i];
		pte_t pte = rw_pte(pfns[i]);

		expect_converts(test, &s, pte, entry);
		expect_converts(test, &s, pte_mkold(pte), entry);
		expect_converts(test, &s, pte_mkclean(pte), entry);
		expect_converts(test, &s, pte_mkold(pte_mkclean(pte)), entry);
	}
}

static void stencil_refuses_other_ptes(struct kunit *test)
{
	struct hmm_stencil rw = hmm_stencil_of_pte(rw_pte(SOME_PFN), 0, 0x7fffe);
	struct hmm_stencil ro = hmm_stencil_of_pte(ro_pte(SOME_PFN), 0, 0x7fffe);

	KUNIT_EXPECT_FALSE(test, fits(&rw, ro_pte(SOME_PFN)));
	KUNIT_EXPECT_FALSE(test, fits(&ro, rw_pte(SOME_PFN)));
	KUNIT_EXPECT_FALSE(test, fits(&rw, rw_pte(0x7ffff)));
	KUNIT_EXPECT_FALSE(test, fits(&rw, rw_pte(SOME_PFN | 1UL << 24)));
	KUNIT_EXPECT_FALSE(test, fits(&rw, __pte(0)));
	KUNIT_EXPECT_FALSE(test, fits(&rw, swp_entry_to_pte(swp_entry(1, SOME_PFN))));
	KUNIT_EXPECT_FALSE(test, fits(&rw, pte_modify(rw_pte(SOME_PFN), PAGE_NONE)));
	if (IS_ENABLED(CONFIG_ARCH_HAS_PTE_SPECIAL))
		KUNIT_EXPECT_FALSE(test, fits(&rw, pte_mkspecial(rw_pte(SOME_PFN))));
}

static void stencil_of_one_pfn(struct kunit *test)
{
	struct hmm_stencil s = hmm_stencil_of_pte(ro_pte(SOME_PFN), SOME_PFN, SOME_PFN);

	expect_converts(test, &s, ro_pte(SOME_PFN), READABLE | SOME_PFN);
	KUNIT_EXPECT_FALSE(test, fits(&s, ro_pte(SOME_PFN + 1)));
	KUNIT_EXPECT_FALSE(test, fits(&s, ro_pte(SOME_PFN - 1)));
	KUNIT_EXPECT_FALSE(test, fits(&s, ro_pte(0)));
}

#ifdef CONFIG_DEVICE_PRIVATE
/* No power of two at either end, as the ranges of pgmaps may be. */
#define PRIVATE_LO	0x3fff8000UL
#define PRIVATE_HI	0x4001abcdUL

static void stencil_converts_private_ptes(struct kunit *test)
{
	struct hmm_stencil s = hmm_stencil_of_private(private_pte(0x40001234, true),
						      PRIVATE_LO, PRIVATE_HI);
	pte_t pte;

	expect_converts(test, &s, private_pte(PRIVATE_LO, true), WRITABLE | PRIVATE_LO);
	expect_converts(test, &s, private_pte(PRIVATE_HI, true), WRITABLE | PRIVATE_HI);
	expect_converts(test, &s, private_pte(0x40000000, true), WRITABLE | 0x40000000);
	KUNIT_EXPECT_FALSE(test, fits(&s, private_pte(PRIVATE_LO - 1, true)));
	KUNIT_EXPECT_FALSE(test, fits(&s, private_pte(PRIVATE_HI + 1, true)));
	KUNIT_EXPECT_FALSE(test, fits(&s, private_pte(0x40001234, false)));
	KUNIT_EXPECT_FALSE(test, fits(&s, rw_pte(0x40001234)));
	KUNIT_EXPECT_FALSE(test, fits(&s, __pte(0)));

	pte = swp_entry_to_pte(make_writable_migration_entry(0x40001234));
	KUNIT_EXPECT_FALSE(test, fits(&s, pte));
	pte = swp_entry_to_pte(make_writable_device_exclusive_entry(0x40001234));
	KUNIT_EXPECT_FALSE(test, fits(&s, pte));
}
#endif

/* hmm_range_fault() */

#define MAP_PAGES	16UL

struct mirror {
	struct mmu_interval_notifier notifier;
	/* Held while the sequence moves, as the notifier wants it. */
	struct mutex lock;
	struct mm_struct *mm;
	struct hmm_range range;
	unsigned long addr;
	unsigned long nr_pages;
	unsigned long *words;

	unsigned int faults;
	unsigned int write_faults;
	unsigned int invalidations;
	unsigned long bad_addr;
	vm_fault_t bad_fault;
};

static bool mirror_invalidate(struct mmu_interval_notifier *notifier,
			      const struct mmu_notifier_range *range,
			      unsigned long seq)
{
	struct mirror *m = container_of(notifier, struct mirror, notifier);

	mutex_lock(&m->lock);
	mmu_interval_set_seq(notifier, seq);
	m->invalidations++;
	mutex_unlock(&m->lock);
	return true;
}

static const struct mmu_interval_notifier_ops mirror_ops = {
	.invalidate = mirror_invalidate,
};

static vm_fault_t mirror_fault(struct vm_area_struct *vma, unsigned long addr,
			       unsigned int flags)
{
	struct mirror *m = kunit_get_current_test()->priv;

	m->faults++;
	if (flags & FAULT_FLAG_WRITE)
		m->write_faults++;
	if (m->bad_fault && addr == m->bad_addr)
		return m->bad_fault;
	return handle_mm_fault(vma, addr, flags, NULL);
}

static void mirror_unsubscribe(void *notifier)
{
	mmu_interval_notifier_remove(notifier);
}

/* Map @nr_pages at an address that is a multiple of as many, and subscribe. */
static struct mirror *mirror_map(struct kunit *test, unsigned long nr_pages,
				 unsigned long prot)
{
	unsigned long size = nr_pages << PAGE_SHIFT;
	struct mirror *m;
	unsigned long addr;

	m = kunit_kzalloc(test, sizeof(*m), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, m);
	m->words = kunit_kcalloc(test, nr_pages, sizeof(*m->words), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, m->words);

	addr = kunit_vm_mmap(test, NULL, 0, 2 * size, prot,
			     MAP_ANONYMOUS | MAP_PRIVATE, 0);
	KUNIT_ASSERT_FALSE(test, !addr || IS_ERR_VALUE(addr));

	mutex_init(&m->lock);
	m->mm = current->mm;
	m->addr = ALIGN(addr, size);
	m->nr_pages = nr_pages;
	KUNIT_ASSERT_EQ(test, 0,
			mmu_interval_notifier_insert(&m->notifier, m->mm, m->addr,
						     size, &mirror_ops));
	KUNIT_ASSERT_EQ(test, 0,
			kunit_add_action_or_reset(test, mirror_unsubscribe,
						  &m->notifier));
	m->range = (struct hmm_range) {
		.notifier = &m->notifier,
		.start = m->addr,
		.end = m->addr + size,
		.hmm_pfns = m->words,
	};

	test->priv = m;
	kunit_activate_static_stub(test, hmm_handle_fault, mirror_fault);
	return m;
}

/* A mapping that no THP comes to. */
static struct mirror *mirror_map_small(struct kunit *test, unsigned long nr_pages,
				       unsigned long prot)
{
	struct mirror *m = mirror_map(test, nr_pages, prot);

	if (IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE))
		KUNIT_ASSERT_EQ(test, 0, do_madvise(m->mm, m->addr,
						    nr_pages << PAGE_SHIFT,
						    MADV_NOHUGEPAGE));
	return m;
}

static int mirror_try(struct mirror *m)
{
	int ret;

	mmap_read_lock(m->mm);
	ret = hmm_range_fault(&m->range);
	mmap_read_unlock(m->mm);
	return ret;
}

static int mirror_once(struct mirror *m)
{
	m->range.notifier_seq = mmu_interval_read_begin(&m->notifier);
	return mirror_try(m);
}

static int mirror_all(struct mirror *m, unsigned long request)
{
	m->faults = 0;
	m->write_faults = 0;
	m->range.default_flags = request;
	return mirror_once(m);
}

static unsigned long page_addr(const struct mirror *m, unsigned long nr)
{
	return m->addr + (nr << PAGE_SHIFT);
}

/* get_mm_counter() is off by what the CPUs have not handed in yet. */
static unsigned long anon_pages(const struct mirror *m)
{
	return percpu_counter_sum_positive(&m->mm->rss_stat[MM_ANONPAGES]);
}

static unsigned long rights(unsigned long word)
{
	return word & (HMM_PFN_VALID | HMM_PFN_WRITE | HMM_PFN_ERROR);
}

/* The page in the word is the one that the process itself finds there. */
static void expect_right_page(struct kunit *test, const struct mirror *m,
			      unsigned long nr, unsigned long word)
{
	struct page *page;

	KUNIT_ASSERT_EQ(test, 1, get_user_pages_fast(page_addr(m, nr), 1, 0, &page));
	KUNIT_EXPECT_PTR_EQ(test, hmm_pfn_to_page(word), page);
	put_page(page);
}

static void vma_flags_change(struct mirror *m, vm_flags_t set, vm_flags_t clear)
{
	struct vm_area_struct *vma;

	mmap_write_lock(m->mm);
	vma = vma_lookup(m->mm, m->addr);
	vm_flags_mod(vma, set, clear);
	mmap_write_unlock(m->mm);
}

static void bad_arguments_are_einval(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);
	const struct hmm_range good = m->range;
	struct mmu_interval_notifier orphan = { };

	m->words[0] = 0x55;
	m->range.start++;
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_WRITE), -EINVAL);
	m->range = good;
	m->range.end--;
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_WRITE), -EINVAL);
	m->range = good;
	m->range.end = good.start;
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_WRITE), -EINVAL);
	m->range = good;
	swap(m->range.start, m->range.end);
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_WRITE), -EINVAL);
	m->range = good;
	m->range.hmm_pfns = NULL;
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_WRITE), -EINVAL);
	m->range = good;
	m->range.notifier = NULL;
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_WRITE), -EINVAL);
	m->range.notifier = &orphan;
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_WRITE), -EINVAL);
	KUNIT_EXPECT_EQ(test, hmm_range_fault(NULL), -EINVAL);

	KUNIT_EXPECT_EQ(test, m->words[0], 0x55);
	KUNIT_EXPECT_EQ(test, m->faults, 0);
}

static void hole_snapshot_is_zero(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);
	unsigned long i;

	memset(m->words, 0xff, MAP_PAGES * sizeof(*m->words));
	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
	for (i = 0; i < MAP_PAGES; i++)
		KUNIT_EXPECT_EQ(test, m->words[i], 0);
	KUNIT_EXPECT_EQ(test, m->faults, 0);
}

static void write_fault_fills_hole(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);
	unsigned long i;

	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_WRITE), 0);
	KUNIT_EXPECT_EQ(test, m->faults, MAP_PAGES);
	KUNIT_EXPECT_EQ(test, m->write_faults, MAP_PAGES);
	KUNIT_EXPECT_EQ(test, anon_pages(m), MAP_PAGES);
	for (i = 0; i < MAP_PAGES; i++) {
		KUNIT_EXPECT_EQ(test, rights(m->words[i]), WRITABLE);
		KUNIT_EXPECT_EQ(test, hmm_pfn_to_map_order(m->words[i]), 0);
		expect_right_page(test, m, i, m->words[i]);
	}

	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_WRITE), 0);
	KUNIT_EXPECT_EQ(test, m->faults, 0);
	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
	KUNIT_EXPECT_EQ(test, rights(m->words[MAP_PAGES - 1]), WRITABLE);
	KUNIT_EXPECT_FALSE(test, mmu_interval_read_retry(&m->notifier,
							 m->range.notifier_seq));
}

static void read_fault_gives_zero_pages(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);
	unsigned long i;

	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_READ), 0);
	KUNIT_EXPECT_EQ(test, m->faults, MAP_PAGES);
	KUNIT_EXPECT_EQ(test, m->write_faults, 0);
	for (i = 0; i < MAP_PAGES; i++) {
		KUNIT_EXPECT_EQ(test, rights(m->words[i]), READABLE);
		KUNIT_EXPECT_TRUE(test, is_zero_pfn(m->words[i] & ~HMM_PFN_FLAGS));
	}
}

/* Each break of COW moves the sequence: one retry for the run, not per page. */
static void cow_of_a_run_takes_one_retry(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);
	unsigned long i;

	KUNIT_ASSERT_EQ(test, mirror_all(m, ASK_READ), 0);
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_WRITE), -EBUSY);
	KUNIT_EXPECT_EQ(test, m->write_faults, MAP_PAGES);
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_WRITE), 0);
	KUNIT_EXPECT_EQ(test, m->faults, 0);
	for (i = 0; i < MAP_PAGES; i++)
		KUNIT_EXPECT_EQ(test, rights(m->words[i]), WRITABLE);
}

static void only_wanted_pages_are_faulted(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);
	unsigned long i, wanted = 0;

	m->range.pfn_flags_mask = ASK_WRITE;
	for (i = 0; i < MAP_PAGES; i += 3, wanted++)
		m->words[i] = ASK_WRITE;
	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
	KUNIT_EXPECT_EQ(test, m->faults, wanted);
	KUNIT_EXPECT_EQ(test, anon_pages(m), wanted);
	for (i = 0; i < MAP_PAGES; i++)
		KUNIT_EXPECT_EQ(test, rights(m->words[i]), i % 3 ? 0 : WRITABLE);
}

static void words_ask_for_mixed_rights(struct kunit *test)
{
	static const unsigned long requests[] = { ASK_WRITE, ASK_READ, 0, HMM_PFN_REQ_WRITE };
	static const unsigned long results[] = { WRITABLE, READABLE, 0, 0 };
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);
	unsigned long i;

	m->range.pfn_flags_mask = ASK_WRITE;
	for (i = 0; i < MAP_PAGES; i++)
		m->words[i] = requests[i % 4];
	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
	KUNIT_EXPECT_EQ(test, m->faults, MAP_PAGES / 2);
	KUNIT_EXPECT_EQ(test, m->write_faults, MAP_PAGES / 4);
	for (i = 0; i < MAP_PAGES; i++) {
		KUNIT_EXPECT_EQ(test, rights(m->words[i]), results[i % 4]);
		if (m->words[i])
			expect_right_page(test, m, i, m->words[i]);
	}

	/* The same table without requests: anonymous, zero page, hole, hole. */
	m->range.pfn_flags_mask = 0;
	memset(m->words, 0xff, MAP_PAGES * sizeof(*m->words));
	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
	for (i = 0; i < MAP_PAGES; i++)
		KUNIT_EXPECT_EQ(test, rights(m->words[i]), results[i % 4]);
}

static void mask_of_zero_silences_words(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);

	memset(m->words, 0xff, MAP_PAGES * sizeof(*m->words));
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_READ), 0);
	KUNIT_EXPECT_EQ(test, m->write_faults, 0);
	KUNIT_EXPECT_EQ(test, rights(m->words[0]), READABLE);
}

static void write_to_read_only_is_eperm(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ);

	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_WRITE), -EPERM);
	KUNIT_EXPECT_EQ(test, m->faults, 0);
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_READ), 0);
	KUNIT_EXPECT_EQ(test, rights(m->words[0]), READABLE);
}

static void unreadable_vma_is_an_error(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_NONE);
	unsigned long i;

	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_READ), -EFAULT);
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_WRITE), -EFAULT);
	KUNIT_EXPECT_EQ(test, m->faults, 0);
	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
	for (i = 0; i < MAP_PAGES; i++)
		KUNIT_EXPECT_EQ(test, m->words[i], HMM_PFN_ERROR);
}

static void vma_without_pages_is_an_error(struct kunit *test)
{
	static const vm_flags_t kinds[] = { VM_IO, VM_PFNMAP };
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);
	int i;

	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		vma_flags_change(m, kinds[i], 0);
		KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_READ), -EFAULT);
		KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
		KUNIT_EXPECT_EQ(test, m->words[MAP_PAGES - 1], HMM_PFN_ERROR);
		vma_flags_change(m, 0, kinds[i]);
	}
	KUNIT_EXPECT_EQ(test, m->faults, 0);
}

/* Three VMAs' worth of pages: there, gone, there. */
static void missing_vma_is_an_error(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);

	KUNIT_ASSERT_EQ(test, 0, vm_munmap(page_addr(m, 4), 4 * PAGE_SIZE));

	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
	KUNIT_EXPECT_EQ(test, m->words[3], 0);
	KUNIT_EXPECT_EQ(test, m->words[4], HMM_PFN_ERROR);
	KUNIT_EXPECT_EQ(test, m->words[7], HMM_PFN_ERROR);
	KUNIT_EXPECT_EQ(test, m->words[8], 0);

	/* What asks for nothing there does no harm. */
	m->range.pfn_flags_mask = ASK_WRITE;
	memset(m->words, 0, MAP_PAGES * sizeof(*m->words));
	m->words[3] = ASK_WRITE;
	m->words[8] = ASK_WRITE;
	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
	KUNIT_EXPECT_EQ(test, m->faults, 2);
	KUNIT_EXPECT_EQ(test, rights(m->words[3]), WRITABLE);
	KUNIT_EXPECT_EQ(test, m->words[5], HMM_PFN_ERROR);
	KUNIT_EXPECT_EQ(test, rights(m->words[8]), WRITABLE);

	/* Results up to the page that fails, requests from there. */
	memset(m->words, 0, MAP_PAGES * sizeof(*m->words));
	m->words[5] = ASK_READ;
	m->words[8] = ASK_READ;
	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), -EFAULT);
	KUNIT_EXPECT_EQ(test, rights(m->words[3]), WRITABLE);
	KUNIT_EXPECT_EQ(test, m->words[4], HMM_PFN_ERROR);
	KUNIT_EXPECT_EQ(test, m->words[5], ASK_READ);
	KUNIT_EXPECT_EQ(test, m->words[8], ASK_READ);
}

static void range_beyond_all_vmas(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);

	KUNIT_ASSERT_EQ(test, 0, vm_munmap(m->addr, MAP_PAGES << PAGE_SHIFT));
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_READ), -EFAULT);
	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
	KUNIT_EXPECT_EQ(test, m->words[0], HMM_PFN_ERROR);
}

static void stale_sequence_is_ebusy(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);

	KUNIT_ASSERT_EQ(test, mirror_all(m, ASK_WRITE), 0);
	m->words[0] = 0x55;
	KUNIT_ASSERT_EQ(test, 0, do_madvise(m->mm, m->addr, PAGE_SIZE, MADV_DONTNEED));
	KUNIT_EXPECT_EQ(test, m->invalidations, 1);
	KUNIT_EXPECT_EQ(test, mirror_try(m), -EBUSY);
	KUNIT_EXPECT_EQ(test, m->words[0], 0x55);

	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
	KUNIT_EXPECT_EQ(test, m->words[0], 0);
	KUNIT_EXPECT_EQ(test, rights(m->words[1]), WRITABLE);
}

struct failure_case {
	const char *name;
	vm_fault_t fault;
	int error;
};

static const struct failure_case failure_cases[] = {
	{ "no memory", VM_FAULT_OOM, -ENOMEM },
	{ "hwpoison", VM_FAULT_HWPOISON, -EHWPOISON },
	{ "hwpoison of a hugetlb page", VM_FAULT_HWPOISON_LARGE, -EHWPOISON },
	{ "SIGBUS", VM_FAULT_SIGBUS, -EFAULT },
	{ "SIGSEGV", VM_FAULT_SIGSEGV, -EFAULT },
};

KUNIT_ARRAY_PARAM_DESC(failure, failure_cases, name);

/* A failing fault has its own errno, and results end where it failed. */
static void failed_fault_tells_why_and_where(struct kunit *test)
{
	const struct failure_case *c = test->param_value;
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);
	unsigned long i;

	m->range.pfn_flags_mask = ASK_WRITE;
	for (i = 0; i < MAP_PAGES; i++)
		m->words[i] = ASK_WRITE;
	m->bad_addr = page_addr(m, 5);
	m->bad_fault = c->fault;
	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), c->error);
	for (i = 0; i < 5; i++)
		KUNIT_EXPECT_NE(test, m->words[i] & ~HMM_PFN_FLAGS, 0);
	for (; i < MAP_PAGES; i++)
		KUNIT_EXPECT_EQ(test, m->words[i], ASK_WRITE);
	KUNIT_EXPECT_EQ(test, anon_pages(m), 5);

	/* And it can be gone on with from there. */
	m->bad_fault = 0;
	m->range.start = page_addr(m, 5);
	m->range.hmm_pfns = m->words + 5;
	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
	KUNIT_EXPECT_EQ(test, m->faults, MAP_PAGES - 5);
}

static void range_may_cross_page_tables(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, 2 * PMD_NR, PROT_READ | PROT_WRITE);
	unsigned long i;

	m->range.start = page_addr(m, PMD_NR - 2);
	m->range.end = page_addr(m, PMD_NR + 2);
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_WRITE), 0);
	KUNIT_EXPECT_EQ(test, m->faults, 4);
	for (i = 0; i < 4; i++) {
		KUNIT_EXPECT_EQ(test, rights(m->words[i]), WRITABLE);
		expect_right_page(test, m, PMD_NR - 2 + i, m->words[i]);
	}
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
static struct mirror *mirror_map_thp(struct kunit *test)
{
	struct mirror *m = mirror_map(test, PMD_NR, PROT_READ | PROT_WRITE);

	KUNIT_ASSERT_EQ(test, 0, do_madvise(m->mm, m->addr, PMD_SIZE, MADV_HUGEPAGE));
	KUNIT_ASSERT_EQ(test, mirror_all(m, ASK_WRITE), 0);
	if (!hmm_pfn_to_map_order(m->words[0]))
		kunit_skip(test, "no THP to be had");
	return m;
}

static void thp_is_one_fault(struct kunit *test)
{
	struct mirror *m = mirror_map_thp(test);
	unsigned long i;

	KUNIT_EXPECT_EQ(test, m->faults, 1);
	for (i = 0; i < PMD_NR; i++) {
		if (m->words[i] != m->words[0] + i)
			break;
	}
	KUNIT_EXPECT_EQ(test, i, PMD_NR);
	KUNIT_EXPECT_EQ(test, rights(m->words[0]), WRITABLE);
	KUNIT_EXPECT_EQ(test, hmm_pfn_to_map_order(m->words[0]), HPAGE_PMD_ORDER);
	expect_right_page(test, m, 0, m->words[0]);
	expect_right_page(test, m, PMD_NR - 1, m->words[PMD_NR - 1]);
}

static void part_of_a_thp_has_its_order(struct kunit *test)
{
	struct mirror *m = mirror_map_thp(test);
	unsigned long first = m->words[0], i;

	m->range.start = page_addr(m, 3);
	m->range.end = page_addr(m, 16);
	memset(m->words, 0, 16 * sizeof(*m->words));
	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
	for (i = 0; i < 13; i++)
		KUNIT_EXPECT_EQ(test, m->words[i], first + 3 + i);
	KUNIT_EXPECT_EQ(test, m->words[13], 0);
}

static void one_wanted_page_brings_a_thp(struct kunit *test)
{
	struct mirror *m = mirror_map_thp(test);

	KUNIT_ASSERT_EQ(test, 0, do_madvise(m->mm, m->addr, PMD_SIZE, MADV_DONTNEED));
	memset(m->words, 0, PMD_NR * sizeof(*m->words));
	m->range.pfn_flags_mask = ASK_WRITE;
	m->words[100] = ASK_WRITE;
	m->words[300] = ASK_WRITE;
	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
	KUNIT_EXPECT_EQ(test, m->faults, 1);
	/* What was settled before the fault stays a hole: a snapshot. */
	KUNIT_EXPECT_EQ(test, m->words[99], 0);
	KUNIT_EXPECT_EQ(test, rights(m->words[100]), WRITABLE);
	KUNIT_EXPECT_EQ(test, rights(m->words[200]), WRITABLE);
	KUNIT_EXPECT_EQ(test, rights(m->words[PMD_NR - 1]), WRITABLE);
}

static void split_thp_loses_its_order(struct kunit *test)
{
	struct mirror *m = mirror_map_thp(test);
	unsigned long first = m->words[0];

	KUNIT_ASSERT_EQ(test, 0, do_madvise(m->mm, page_addr(m, 7), PAGE_SIZE,
					    MADV_DONTNEED));
	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
	KUNIT_EXPECT_EQ(test, m->words[7], 0);
	KUNIT_EXPECT_EQ(test, rights(m->words[8]), WRITABLE);
	KUNIT_EXPECT_EQ(test, (m->words[8] ^ (first + 8)) & ~HMM_PFN_FLAGS, 0);

	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_WRITE), 0);
	KUNIT_EXPECT_EQ(test, m->faults, 1);
	KUNIT_EXPECT_EQ(test, rights(m->words[7]), WRITABLE);
}
#endif /* CONFIG_TRANSPARENT_HUGEPAGE */

static struct kunit_case hmm_test_cases[] = {
	KUNIT_CASE_PARAM(need_follows_table, need_gen_params),
	KUNIT_CASE(need_is_monotone),
	KUNIT_CASE(request_masks_words),
	KUNIT_CASE(pte_gives_pfn_and_rights),
	KUNIT_CASE(hugetlb_has_order_only_if_present),
	KUNIT_CASE(entry_advances_if_valid),
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	KUNIT_CASE(pmd_gives_pfn_rights_order),
#endif
#ifdef CONFIG_HAVE_ARCH_TRANSPARENT_HUGEPAGE_PUD
	KUNIT_CASE(pud_gives_pfn_rights_order),
#endif
	KUNIT_CASE(empty_stencil_fits_nothing),
	KUNIT_CASE(stencil_converts_alike_ptes),
	KUNIT_CASE(stencil_refuses_other_ptes),
	KUNIT_CASE(stencil_of_one_pfn),
#ifdef CONFIG_DEVICE_PRIVATE
	KUNIT_CASE(private_gives_pfn_and_rights),
	KUNIT_CASE(stencil_converts_private_ptes),
#endif
	KUNIT_CASE(bad_arguments_are_einval),
	KUNIT_CASE(hole_snapshot_is_zero),
	KUNIT_CASE(write_fault_fills_hole),
	KUNIT_CASE(read_fault_gives_zero_pages),
	KUNIT_CASE(cow_of_a_run_takes_one_retry),
	KUNIT_CASE(only_wanted_pages_are_faulted),
	KUNIT_CASE(words_ask_for_mixed_rights),
	KUNIT_CASE(mask_of_zero_silences_words),
	KUNIT_CASE(write_to_read_only_is_eperm),
	KUNIT_CASE(unreadable_vma_is_an_error),
	KUNIT_CASE(vma_without_pages_is_an_error),
	KUNIT_CASE(missing_vma_is_an_error),
	KUNIT_CASE(range_beyond_all_vmas),
	KUNIT_CASE(stale_sequence_is_ebusy),
	KUNIT_CASE_PARAM(failed_fault_tells_why_and_where, failure_gen_params),
	KUNIT_CASE(range_may_cross_page_tables),
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	KUNIT_CASE(thp_is_one_fault),
	KUNIT_CASE(part_of_a_thp_has_its_order),
	KUNIT_CASE(one_wanted_page_brings_a_thp),
	KUNIT_CASE(split_thp_loses_its_order),
#endif
	{ }
};

static struct kunit_suite hmm_test_suite = {
	.name = "hmm",
	.test_cases = hmm_test_cases,
};

kunit_test_suite(hmm_test_suite);

MODULE_DESCRIPTION("Tests of the page-table mirror");
MODULE_LICENSE("GPL");
