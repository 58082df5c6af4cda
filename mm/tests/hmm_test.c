// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of the mirror: its decisions as tables, and hmm_range_fault(), with
 * mmap_lock and without, on a real mm. Every fault that the mirror takes goes
 * through the fixture, which counts it and can make it fail, drop mmap_lock, or
 * do something else in its place.
 */
#include <kunit/resource.h>
#include <kunit/static_stub.h>
#include <kunit/test.h>
#include <kunit/test-bug.h>
#include <linux/hmm.h>
#include <linux/huge_mm.h>
#include <linux/kthread.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/percpu_counter.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/sizes.h>
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
	return hmm_stencil_fits(stencil, pte);
}

static void expect_converts(struct kunit *test, const struct hmm_stencil *s,
			    pte_t pte, unsigned long entry)
{
	KUNIT_EXPECT_TRUE(test, fits(s, pte));
	/* The other way that the bits of the pfn are had from a PTE. */
	KUNIT_EXPECT_EQ(test, (pte_val(pte) ^ s->flip) >> s->shift,
			hmm_stencil_distance(s, pte));
	KUNIT_EXPECT_EQ(test, (unsigned long)(s->entry + hmm_stencil_distance(s, pte)),
			entry);
}

static bool are_within(struct hmm_pfns pfns, u64 lo, u64 hi)
{
	return pfns.first >= lo && pfns.first + pfns.span <= hi;
}

static void stencil_has_the_largest_block(struct kunit *test)
{
	u64 lo, hi, pfn, i;

	for (hi = 0; hi < 40; hi++)
		for (lo = 1; lo <= hi; lo++)
			for (pfn = lo; pfn <= hi; pfn++) {
				struct hmm_pfns p = hmm_pfns_around(pfn, lo, hi);
				struct hmm_pfns twice = {
					.first = p.first & ~(p.span + 1),
					.span = 2 * p.span + 1,
				};

				KUNIT_ASSERT_TRUE(test, are_within(p, lo, hi));
				KUNIT_ASSERT_FALSE(test, are_within(twice, lo, hi));
				KUNIT_ASSERT_LE(test, pfn - p.first, p.span);
				for (i = 0; i <= p.span; i++)
					KUNIT_ASSERT_EQ(test, (p.first + i) ^ p.first, i);
			}
}

static void stencil_from_0_has_no_block(struct kunit *test)
{
	struct hmm_pfns p = hmm_pfns_around(0x12345, 0, 0x7fffe);

	KUNIT_EXPECT_EQ(test, p.first, 0);
	KUNIT_EXPECT_EQ(test, p.span, 0x7fffe);
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
/*
 * No power of two at either end, as the ranges of pgmaps may be. A stencil is
 * good for a block of what is between.
 */
#define PRIVATE_LO	0x3fff8000UL
#define PRIVATE_HI	0x4001abcdUL
#define PRIVATE_FIRST	0x40000000UL
#define PRIVATE_LAST	0x4000ffffUL

static void stencil_converts_private_ptes(struct kunit *test)
{
	struct hmm_stencil s = hmm_stencil_of_private(private_pte(0x40001234, true),
						      PRIVATE_LO, PRIVATE_HI);
	pte_t pte;

	expect_converts(test, &s, private_pte(PRIVATE_FIRST, true), WRITABLE | PRIVATE_FIRST);
	expect_converts(test, &s, private_pte(PRIVATE_LAST, true), WRITABLE | PRIVATE_LAST);
	expect_converts(test, &s, private_pte(0x40001235, true), WRITABLE | 0x40001235);
	KUNIT_EXPECT_FALSE(test, fits(&s, private_pte(PRIVATE_FIRST - 1, true)));
	KUNIT_EXPECT_FALSE(test, fits(&s, private_pte(PRIVATE_LAST + 1, true)));
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

/* Page tables: what is copied by a stencil, and where that ends. */

#define TABLE_PAGES	64UL
#define TABLE_ADDR	((unsigned long)SZ_1G)
#define TABLE_ORDER	6

/*
 * @pages: as many as the table has PTEs, in a row, no folio
 * @folio: as many again, a folio
 * @old: what words are before
 */
struct table {
	struct hmm_stencil stencil;
	pte_t (*pte_of)(unsigned long pfn);
	struct page *pages;
	struct page *folio;
	pte_t ptes[TABLE_PAGES];
	unsigned long words[TABLE_PAGES];
	unsigned long old[TABLE_PAGES];
};

static void table_free(void *data)
{
	struct table *t = data;

	if (t->pages)
		__free_pages(t->pages, TABLE_ORDER);
	if (t->folio)
		__free_pages(t->folio, TABLE_ORDER);
}

static struct table *table_alloc(struct kunit *test,
				 pte_t (*pte_of)(unsigned long pfn),
				 struct hmm_stencil (*stencil_of)(pte_t pte, u64 lo, u64 hi))
{
	struct table *t = kunit_kzalloc(test, sizeof(*t), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, t);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, table_free, t));
	t->pages = alloc_pages(GFP_KERNEL, TABLE_ORDER);
	t->folio = alloc_pages(GFP_KERNEL | __GFP_COMP, TABLE_ORDER);
	KUNIT_ASSERT_NOT_NULL(test, t->pages);
	KUNIT_ASSERT_NOT_NULL(test, t->folio);
	t->pte_of = pte_of;
	t->stencil = stencil_of(pte_of(page_to_pfn(t->pages)), 0,
				max(page_to_pfn(t->pages), page_to_pfn(t->folio)) +
				TABLE_PAGES - 1);
	KUNIT_ASSERT_TRUE(test, fits(&t->stencil, pte_of(page_to_pfn(t->folio))));
	return t;
}

/* Every @sparse-th word has something to keep, and all are full of rubbish. */
static void table_set_words(struct table *t, unsigned long sparse)
{
	unsigned long i;

	for (i = 0; i < TABLE_PAGES; i++) {
		t->old[i] = ~HMM_PFN_INOUT_FLAGS - i;
		if (sparse && i % sparse == 0)
			t->old[i] |= HMM_PFN_DMA_MAPPED | HMM_PFN_P2PDMA;
		t->words[i] = t->old[i];
	}
}

/* PTEs of pages in a row from the @first one on, and then round again. */
static void table_set_ptes(struct table *t, struct page *pages, long first, long step)
{
	unsigned long pfn = page_to_pfn(pages), i;

	for (i = 0; i < TABLE_PAGES; i++)
		t->ptes[i] = t->pte_of(pfn + (first + step * i) % TABLE_PAGES);
}

static unsigned long table_copy(struct table *t, unsigned long from, unsigned long nr)
{
	return hmm_copy_alike(&t->stencil, t->ptes + from, t->words + from,
			      TABLE_ADDR + (from << PAGE_SHIFT), nr);
}

static void expect_word(struct kunit *test, struct table *t, unsigned long i,
			unsigned int order)
{
	unsigned long entry = t->stencil.entry +
			      hmm_stencil_distance(&t->stencil, t->ptes[i]);

	entry |= (unsigned long)order << HMM_PFN_ORDER_SHIFT;
	entry |= t->old[i] & HMM_PFN_INOUT_FLAGS;
	KUNIT_ASSERT_EQ_MSG(test, t->words[i], entry, "page %lu", i);
}

/* Words before @from and from @to on are as before, those between are results. */
static void expect_words(struct kunit *test, struct table *t, unsigned long from,
			 unsigned long to, unsigned int order)
{
	unsigned long i;

	for (i = 0; i < TABLE_PAGES; i++) {
		if (i >= from && i < to)
			expect_word(test, t, i, order);
		else
			KUNIT_ASSERT_EQ_MSG(test, t->words[i], t->old[i], "page %lu", i);
	}
}

/* Of single pages in some order, all up to the first that does not fit. */
static void expect_copies_pages(struct kunit *test, struct table *t)
{
	static const long steps[] = { 1, -1, 5, 0 };
	unsigned long from, odd, sparse, i;

	for (i = 0; i < ARRAY_SIZE(steps); i++)
		for (from = 0; from < 9; from++)
			for (odd = from; odd <= TABLE_PAGES; odd++) {
				sparse = odd % 3 * 7;
				table_set_words(t, sparse);
				table_set_ptes(t, t->pages, from + odd + 64, steps[i]);
				if (odd < TABLE_PAGES)
					t->ptes[odd] = __pte(0);
				KUNIT_ASSERT_EQ(test, odd - from,
						table_copy(t, from, TABLE_PAGES - from));
				expect_words(test, t, from, odd, 0);
			}
}

/* A folio has its order where it is whole, and a large page can be had. */
static void expect_copies_folio(struct kunit *test, struct table *t)
{
	unsigned long i, sparse;

	for (sparse = 0; sparse < 20; sparse += 3) {
		table_set_ptes(t, t->folio, 0, 1);
		table_set_words(t, sparse);
		KUNIT_ASSERT_EQ(test, TABLE_PAGES, table_copy(t, 0, TABLE_PAGES));
		expect_words(test, t, 0, TABLE_PAGES, TABLE_ORDER);

		/* Not all of it */
		table_set_words(t, sparse);
		KUNIT_ASSERT_EQ(test, 63, table_copy(t, 1, TABLE_PAGES - 1));
		expect_words(test, t, 1, TABLE_PAGES, 0);
		table_set_words(t, sparse);
		KUNIT_ASSERT_EQ(test, 63, table_copy(t, 0, TABLE_PAGES - 1));
		expect_words(test, t, 0, TABLE_PAGES - 1, 0);

		/* At an address that is not for it */
		for (i = 1; i < TABLE_PAGES; i++) {
			table_set_ptes(t, t->folio, i, 1);
			table_set_words(t, sparse);
			KUNIT_ASSERT_EQ(test, TABLE_PAGES, table_copy(t, 0, TABLE_PAGES));
			expect_words(test, t, 0, TABLE_PAGES, 0);
		}

		/* Two pages have changed places. */
		table_set_ptes(t, t->folio, 0, 1);
		swap(t->ptes[7], t->ptes[8]);
		table_set_words(t, sparse);
		KUNIT_ASSERT_EQ(test, 0, table_copy(t, 0, TABLE_PAGES));
		expect_words(test, t, 0, 0, 0);

		/* One page is not like the others. */
		for (i = 1; i < TABLE_PAGES; i++) {
			table_set_ptes(t, t->folio, 0, 1);
			t->ptes[i] = __pte(0);
			KUNIT_ASSERT_EQ(test, 0, table_copy(t, 0, TABLE_PAGES));
			expect_words(test, t, 0, 0, 0);
		}
	}
}

static void pages_are_copied(struct kunit *test)
{
	expect_copies_pages(test, table_alloc(test, rw_pte, hmm_stencil_of_pte));
	expect_copies_pages(test, table_alloc(test, ro_pte, hmm_stencil_of_pte));
}

static void folio_is_copied(struct kunit *test)
{
	expect_copies_folio(test, table_alloc(test, rw_pte, hmm_stencil_of_pte));
}

/* Whatever is idle, and wherever: above the pfn, too, if there is any such bit. */
static void idle_bits_do_not_matter(struct kunit *test)
{
	struct table *t = table_alloc(test, rw_pte, hmm_stencil_of_pte);
	pte_t *ptes = t->ptes;

	table_set_ptes(t, t->folio, 0, 1);
	ptes[0] = pte_mkold(ptes[0]);
	ptes[9] = pte_mkclean(ptes[9]);
	ptes[20] = pte_mkold(pte_mkclean(ptes[20]));
	table_set_words(t, 0);
	KUNIT_EXPECT_EQ(test, TABLE_PAGES, table_copy(t, 0, TABLE_PAGES));
	expect_words(test, t, 0, TABLE_PAGES, TABLE_ORDER);

	t = table_alloc(test, ro_pte, hmm_stencil_of_pte);
	ptes = t->ptes;
	table_set_ptes(t, t->pages, 3, 1);
	ptes[0] = pte_mkold(ptes[0]);
	ptes[9] = pte_mkdirty(ptes[9]);
	ptes[20] = pte_mkold(pte_mkdirty(ptes[20]));
	table_set_words(t, 0);
	KUNIT_EXPECT_EQ(test, TABLE_PAGES, table_copy(t, 0, TABLE_PAGES));
	expect_words(test, t, 0, TABLE_PAGES, 0);
}

#ifdef CONFIG_DEVICE_PRIVATE
static pte_t writable_private_pte(unsigned long pfn)
{
	return private_pte(pfn, true);
}

static void private_pages_are_copied(struct kunit *test)
{
	expect_copies_pages(test, table_alloc(test, writable_private_pte,
					      hmm_stencil_of_private));
}

static void private_folio_is_copied(struct kunit *test)
{
	expect_copies_folio(test, table_alloc(test, writable_private_pte,
					      hmm_stencil_of_private));
}
#endif

/* hmm_range_fault() */

#define MAP_PAGES	16UL

/* For attempts that nobody disturbs for good. */
#define PLENTY		(10 * HZ)

/*
 * @instead: what a fault does if it is not to do what it always does; it may put
 *	itself out of action. Returns what the fault returns
 * @meanwhile: what somebody else does when @instead has dropped the lock
 * @writer: who wants to change the VMA
 */
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
	unsigned int tried_faults;
	unsigned int flags_of_all;
	unsigned int flags_of_any;
	unsigned int invalidations;
	vm_fault_t (*instead)(struct mirror *m, struct vm_area_struct *vma,
			      unsigned long addr, unsigned int flags);
	void (*meanwhile)(struct mirror *m);
	struct task_struct *writer;
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
	if (flags & FAULT_FLAG_TRIED)
		m->tried_faults++;
	m->flags_of_all &= flags;
	m->flags_of_any |= flags;
	if (m->bad_fault && addr == m->bad_addr)
		return m->bad_fault;
	if (m->instead)
		return m->instead(m, vma, addr, flags);
	return handle_mm_fault(vma, addr, flags, NULL);
}

static void mirror_unsubscribe(void *notifier)
{
	mmu_interval_notifier_remove(notifier);
}

/*
 * Map @nr_pages at an address that is a multiple of as many, and subscribe. A
 * file needs room for twice as many.
 */
static struct mirror *mirror_map_file(struct kunit *test, struct file *file,
				      unsigned long nr_pages,
				      unsigned long prot)
{
	unsigned long size = nr_pages << PAGE_SHIFT;
	struct mirror *m;
	unsigned long addr;

	m = kunit_kzalloc(test, sizeof(*m), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, m);
	m->words = kunit_kcalloc(test, nr_pages, sizeof(*m->words), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, m->words);

	addr = kunit_vm_mmap(test, file, 0, 2 * size, prot,
			     file ? MAP_SHARED : MAP_ANONYMOUS | MAP_PRIVATE, 0);
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

static struct mirror *mirror_map(struct kunit *test, unsigned long nr_pages,
				 unsigned long prot)
{
	return mirror_map_file(test, NULL, nr_pages, prot);
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

static void mirror_ask(struct mirror *m, unsigned long request)
{
	m->faults = 0;
	m->write_faults = 0;
	m->tried_faults = 0;
	m->flags_of_all = ~0U;
	m->flags_of_any = 0;
	m->range.default_flags = request;
}

static int mirror_all(struct mirror *m, unsigned long request)
{
	mirror_ask(m, request);
	return mirror_once(m);
}

static int mirror_unlocked(struct mirror *m, unsigned long request,
			   unsigned long timeout)
{
	mirror_ask(m, request);
	/* The sequence is not the caller's business. */
	m->range.notifier_seq = 0;
	return hmm_range_fault_unlocked_timeout(&m->range, timeout);
}

static bool vma_is_locked(const struct mirror *m)
{
	bool locked = false;
#ifdef CONFIG_PER_VMA_LOCK
	struct vm_area_struct *vma;

	mmap_read_lock(m->mm);
	vma = vma_lookup(m->mm, m->addr);
	locked = vma && rwsem_is_locked(&vma->vm_lock->lock);
	mmap_read_unlock(m->mm);
#endif
	return locked;
}

static void expect_unlocked(struct kunit *test, const struct mirror *m)
{
	KUNIT_EXPECT_FALSE(test, rwsem_is_locked(&m->mm->mmap_lock));
	KUNIT_EXPECT_FALSE(test, vma_is_locked(m));
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

/* A fatal signal, until the end of the test or flush_signals(). */
static void get_killed(void)
{
	/* A task has its own for as long as it lives. */
	struct sighand_struct *sighand =
		rcu_dereference_protected(current->sighand, true);

	spin_lock_irq(&sighand->siglock);
	sigaddset(&current->pending.signal, SIGKILL);
	set_thread_flag(TIF_SIGPENDING);
	spin_unlock_irq(&sighand->siglock);
}

/* What each bad input is answered, by both entry points. */

static void unaligned_start(struct mirror *m)
{
	m->range.start++;
}

static void unaligned_end(struct mirror *m)
{
	m->range.end--;
}

static void empty_range(struct mirror *m)
{
	m->range.end = m->range.start;
}

static void turned_round(struct mirror *m)
{
	swap(m->range.start, m->range.end);
}

static void no_words(struct mirror *m)
{
	m->range.hmm_pfns = NULL;
}

static void no_notifier(struct mirror *m)
{
	m->range.notifier = NULL;
}

static void notifier_of_nobody(struct mirror *m)
{
	static struct mmu_interval_notifier nobody;

	m->range.notifier = &nobody;
}

static void nothing_mapped(struct mirror *m)
{
	vm_munmap(m->addr, m->nr_pages << PAGE_SHIFT);
}

static void memory_of_a_device(struct mirror *m)
{
	vma_flags_change(m, VM_IO, 0);
}

static void memory_without_pages(struct mirror *m)
{
	vma_flags_change(m, VM_PFNMAP, 0);
}

static void no_access(struct mirror *m)
{
	vma_flags_change(m, 0, VM_READ | VM_WRITE);
}

static void not_writable(struct mirror *m)
{
	vma_flags_change(m, 0, VM_WRITE);
}

static void fault_ends_in(struct mirror *m, vm_fault_t fault)
{
	m->bad_addr = m->addr;
	m->bad_fault = fault;
}

static void no_memory(struct mirror *m)
{
	fault_ends_in(m, VM_FAULT_OOM);
}

static void poisoned(struct mirror *m)
{
	fault_ends_in(m, VM_FAULT_HWPOISON);
}

static void poisoned_large(struct mirror *m)
{
	fault_ends_in(m, VM_FAULT_HWPOISON_LARGE);
}

static void sigbus(struct mirror *m)
{
	fault_ends_in(m, VM_FAULT_SIGBUS);
}

static void sigsegv(struct mirror *m)
{
	fault_ends_in(m, VM_FAULT_SIGSEGV);
}

static void being_killed(__always_unused struct mirror *m)
{
	get_killed();
}

struct answer_case {
	const char *name;
	void (*make_bad)(struct mirror *m);
	unsigned long request;
	int error;
};

static const struct answer_case answer_cases[] = {
	{ "start not aligned", unaligned_start, ASK_WRITE, -EINVAL },
	{ "start not aligned, snapshot", unaligned_start, 0, -EINVAL },
	{ "end not aligned", unaligned_end, ASK_WRITE, -EINVAL },
	{ "end not aligned, snapshot", unaligned_end, 0, -EINVAL },
	{ "empty", empty_range, ASK_WRITE, -EINVAL },
	{ "end before start", turned_round, ASK_WRITE, -EINVAL },
	{ "no words", no_words, ASK_WRITE, -EINVAL },
	{ "no notifier", no_notifier, ASK_WRITE, -EINVAL },
	{ "notifier without mm", notifier_of_nobody, ASK_WRITE, -EINVAL },
	{ "no VMA", nothing_mapped, ASK_READ, -EFAULT },
	{ "no VMA, write", nothing_mapped, ASK_WRITE, -EFAULT },
	{ "VM_IO", memory_of_a_device, ASK_READ, -EFAULT },
	{ "VM_PFNMAP", memory_without_pages, ASK_READ, -EFAULT },
	{ "VM_PFNMAP, write", memory_without_pages, ASK_WRITE, -EFAULT },
	{ "not readable", no_access, ASK_READ, -EFAULT },
	{ "not readable, write", no_access, ASK_WRITE, -EFAULT },
	{ "not writable", not_writable, ASK_WRITE, -EPERM },
	{ "out of memory", no_memory, ASK_READ, -ENOMEM },
	{ "hwpoison", poisoned, ASK_READ, -EHWPOISON },
	{ "hwpoison of a large page", poisoned_large, ASK_WRITE, -EHWPOISON },
	{ "SIGBUS", sigbus, ASK_READ, -EFAULT },
	{ "SIGSEGV", sigsegv, ASK_WRITE, -EFAULT },
	{ "killed", being_killed, ASK_READ, -EINTR },
};

KUNIT_ARRAY_PARAM_DESC(answer, answer_cases, name);

static void bad_input_has_its_errno(struct kunit *test)
{
	const struct answer_case *c = test->param_value;
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);
	int with_lock, without_lock;

	m->words[0] = 0x55;
	c->make_bad(m);
	m->range.notifier_seq = mmu_interval_read_begin(&m->notifier);
	mirror_ask(m, c->request);
	with_lock = mirror_try(m);
	without_lock = mirror_unlocked(m, c->request, PLENTY);
	flush_signals(current);

	KUNIT_EXPECT_EQ(test, with_lock, c->error);
	KUNIT_EXPECT_EQ(test, without_lock, c->error);
	KUNIT_EXPECT_EQ(test, m->words[0], 0x55);
	KUNIT_EXPECT_EQ(test, anon_pages(m), 0);
	KUNIT_EXPECT_EQ(test, m->faults, m->bad_fault ? 1 : 0);
	expect_unlocked(test, m);
}

static void no_range_is_einval(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, hmm_range_fault(NULL), -EINVAL);
	KUNIT_EXPECT_EQ(test, hmm_range_fault_unlocked_timeout(NULL, 0), -EINVAL);
}

/* A snapshot is had without waiting, unless it is for mmap_lock. */
static void killed_task_may_still_look(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);

	get_killed();
	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, 0, PLENTY), -EINTR);
	flush_signals(current);
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, 0, PLENTY), 0);
}

static void hole_snapshot_is_zero(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);
	unsigned long i;

	memset_l(m->words, ~HMM_PFN_INOUT_FLAGS, MAP_PAGES);
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
	memset_l(m->words, ~HMM_PFN_INOUT_FLAGS, MAP_PAGES);
	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
	for (i = 0; i < MAP_PAGES; i++)
		KUNIT_EXPECT_EQ(test, rights(m->words[i]), results[i % 4]);
}

static void mask_of_zero_silences_words(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);

	memset_l(m->words, ~HMM_PFN_INOUT_FLAGS, MAP_PAGES);
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

/* What a driver keeps in its words stays there, whatever the result is. */
static void expect_kept(struct kunit *test, struct mirror *m, unsigned long want)
{
	static const unsigned long kept[] = {
		HMM_PFN_DMA_MAPPED, 0, HMM_PFN_DMA_MAPPED | HMM_PFN_P2PDMA,
		HMM_PFN_DMA_MAPPED | HMM_PFN_P2PDMA_BUS, HMM_PFN_INOUT_FLAGS,
	};
	unsigned long i, plain;

	for (i = 0; i < m->nr_pages; i++)
		m->words[i] = ~HMM_PFN_INOUT_FLAGS | kept[i % ARRAY_SIZE(kept)];
	KUNIT_ASSERT_EQ(test, mirror_all(m, want), 0);
	for (i = 0; i < m->nr_pages; i++)
		KUNIT_EXPECT_EQ(test, m->words[i] & HMM_PFN_INOUT_FLAGS,
				kept[i % ARRAY_SIZE(kept)]);

	/* Beside it, all is as without it. */
	for (i = 0; i < m->nr_pages; i++) {
		unsigned long word = m->words[i];

		plain = 0;
		m->range.start = page_addr(m, i);
		m->range.end = page_addr(m, i + 1);
		m->range.hmm_pfns = &plain;
		KUNIT_ASSERT_EQ(test, mirror_all(m, 0), 0);
		word &= ~HMM_PFN_INOUT_FLAGS;
		plain |= word & (0x1FUL << HMM_PFN_ORDER_SHIFT);
		KUNIT_EXPECT_EQ(test, word, plain);
	}
	m->range.start = m->addr;
	m->range.end = page_addr(m, m->nr_pages);
	m->range.hmm_pfns = m->words;
}

static void kept_bits_stay(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, 4 * MAP_PAGES,
					    PROT_READ | PROT_WRITE);

	expect_kept(test, m, 0);
	expect_kept(test, m, ASK_READ);
	/* Breaks COW, which takes a second time. */
	mirror_all(m, ASK_WRITE);
	expect_kept(test, m, ASK_WRITE);
	expect_kept(test, m, 0);
}

static void kept_bits_stay_in_holes(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, 4 * MAP_PAGES,
					    PROT_READ | PROT_WRITE);

	KUNIT_ASSERT_EQ(test, mirror_all(m, ASK_WRITE), 0);
	KUNIT_ASSERT_EQ(test, 0, do_madvise(m->mm, page_addr(m, 5), PAGE_SIZE,
					    MADV_DONTNEED));
	KUNIT_ASSERT_EQ(test, 0, do_madvise(m->mm, page_addr(m, 7), 40 * PAGE_SIZE,
					    MADV_DONTNEED));
	expect_kept(test, m, 0);
	KUNIT_EXPECT_EQ(test, rights(m->words[4]), WRITABLE);
	KUNIT_EXPECT_EQ(test, rights(m->words[5]), 0);
	KUNIT_EXPECT_EQ(test, rights(m->words[6]), WRITABLE);
	KUNIT_EXPECT_EQ(test, rights(m->words[7]), 0);
	KUNIT_EXPECT_EQ(test, rights(m->words[46]), 0);
	KUNIT_EXPECT_EQ(test, rights(m->words[47]), WRITABLE);
}

static void kept_bits_stay_in_an_error(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);

	vma_flags_change(m, VM_IO, 0);
	m->words[3] = HMM_PFN_DMA_MAPPED;
	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
	KUNIT_EXPECT_EQ(test, m->words[3], HMM_PFN_ERROR | HMM_PFN_DMA_MAPPED);
	KUNIT_EXPECT_EQ(test, m->words[4], HMM_PFN_ERROR);
	vma_flags_change(m, 0, VM_IO);
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

/* One fault maps what the page cache has around it; it is not asked for again. */
static void file_faults_bring_their_neighbours(struct kunit *test)
{
	unsigned long i, nr = 64, around = SZ_64K / PAGE_SIZE;
	struct file *file;
	struct mirror *m;

	file = shmem_kernel_file_setup("hmm_test", 2 * nr << PAGE_SHIFT, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR(file));
	m = mirror_map_file(test, file, nr, PROT_READ | PROT_WRITE);
	/* The mapping has a reference of its own. */
	fput(file);

	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_WRITE), 0);
	KUNIT_EXPECT_EQ(test, m->write_faults, nr);
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_WRITE), 0);
	KUNIT_EXPECT_EQ(test, m->faults, 0);

	/* The pages stay in the file. */
	KUNIT_ASSERT_EQ(test, 0, do_madvise(m->mm, m->addr, nr << PAGE_SHIFT,
					    MADV_DONTNEED));
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_READ), 0);
	KUNIT_EXPECT_EQ(test, m->faults, nr / around);
	for (i = 0; i < nr; i += 7) {
		KUNIT_EXPECT_TRUE(test, m->words[i] & HMM_PFN_VALID);
		expect_right_page(test, m, i, m->words[i]);
	}

	/* Only two pages are wanted, far from each other. */
	KUNIT_ASSERT_EQ(test, 0, do_madvise(m->mm, m->addr, nr << PAGE_SHIFT,
					    MADV_DONTNEED));
	memset(m->words, 0, nr * sizeof(*m->words));
	m->range.pfn_flags_mask = ASK_WRITE;
	m->words[3] = ASK_READ;
	m->words[50] = ASK_READ;
	KUNIT_EXPECT_EQ(test, mirror_all(m, 0), 0);
	KUNIT_EXPECT_EQ(test, m->faults, 2);
	KUNIT_EXPECT_EQ(test, m->words[around], 0);
	KUNIT_EXPECT_TRUE(test, m->words[3] & HMM_PFN_VALID);
	KUNIT_EXPECT_TRUE(test, m->words[50] & HMM_PFN_VALID);
}

/* A monitor has to answer, or somebody has locked a folio. */
static vm_fault_t does_not_wait(struct mirror *m, struct vm_area_struct *vma,
				unsigned long addr, unsigned int flags)
{
	if (!(flags & FAULT_FLAG_RETRY_NOWAIT))
		return handle_mm_fault(vma, addr, flags, NULL);
	KUNIT_EXPECT_TRUE(kunit_get_current_test(), flags & FAULT_FLAG_ALLOW_RETRY);
	return VM_FAULT_RETRY;
}

/* It does not meet a monitor unannounced, and tells it from a locked folio. */
static void locked_fault_asks_no_monitor(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);

	if (!IS_ENABLED(CONFIG_USERFAULTFD))
		kunit_skip(test, "no userfaultfd");
	m->instead = does_not_wait;
	vma_flags_change(m, VM_UFFD_MISSING, 0);
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_READ), -EFAULT);
	KUNIT_EXPECT_EQ(test, m->faults, 1);

	/* Holes are nothing to a monitor that looks after protected pages alone. */
	vma_flags_change(m, VM_UFFD_WP, VM_UFFD_MISSING);
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_READ), 0);
	KUNIT_EXPECT_EQ(test, m->faults, 2 * MAP_PAGES);
	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_WRITE), -EBUSY);
	vma_flags_change(m, 0, VM_UFFD_WP);
}

/* hmm_range_fault_unlocked_timeout() */

#define MAY_WAIT	(FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE)
#define IN_VMA		(IS_ENABLED(CONFIG_PER_VMA_LOCK) ? FAULT_FLAG_VMA_LOCK : 0)

static void only_unlocked_faults_may_wait(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);

	KUNIT_EXPECT_EQ(test, mirror_all(m, ASK_READ), 0);
	KUNIT_EXPECT_EQ(test, m->faults, MAP_PAGES);
	KUNIT_EXPECT_EQ(test, m->flags_of_any, FAULT_FLAG_REMOTE);

	KUNIT_ASSERT_EQ(test, 0, do_madvise(m->mm, m->addr, MAP_PAGES << PAGE_SHIFT,
					    MADV_DONTNEED));
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, ASK_READ, PLENTY), 0);
	KUNIT_EXPECT_EQ(test, m->faults, MAP_PAGES);
	KUNIT_EXPECT_EQ(test, m->flags_of_all, FAULT_FLAG_REMOTE | MAY_WAIT | IN_VMA);
	KUNIT_EXPECT_EQ(test, m->flags_of_any, FAULT_FLAG_REMOTE | MAY_WAIT | IN_VMA);
}

static void expect_all_writable(struct kunit *test, struct mirror *m,
				unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i++) {
		KUNIT_EXPECT_EQ(test, rights(m->words[i]), WRITABLE);
		expect_right_page(test, m, i, m->words[i]);
	}
	KUNIT_EXPECT_FALSE(test, mmu_interval_read_retry(&m->notifier,
							 m->range.notifier_seq));
	expect_unlocked(test, m);
}

static void unlocked_sees_to_lock_and_sequence(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);

	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, ASK_WRITE, 0), 0);
	KUNIT_EXPECT_EQ(test, m->write_faults, MAP_PAGES);
	expect_all_writable(test, m, MAP_PAGES);

	KUNIT_ASSERT_EQ(test, 0, do_madvise(m->mm, m->addr, PAGE_SIZE, MADV_DONTNEED));
	KUNIT_EXPECT_TRUE(test, mmu_interval_read_retry(&m->notifier,
							m->range.notifier_seq));
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, ASK_WRITE, 0), 0);
	KUNIT_EXPECT_EQ(test, m->faults, 1);
	expect_all_writable(test, m, MAP_PAGES);
}

/* Breaking COW moves the sequence, which is for the callee to deal with here. */
static void unlocked_tries_again_after_cow(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);

	KUNIT_ASSERT_EQ(test, mirror_all(m, ASK_READ), 0);
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, ASK_WRITE, PLENTY), 0);
	KUNIT_EXPECT_EQ(test, m->faults, MAP_PAGES);
	expect_all_writable(test, m, MAP_PAGES);
}

static vm_fault_t without_mmap_lock(struct mirror *m, struct vm_area_struct *vma,
				    unsigned long addr, unsigned int flags)
{
	struct kunit *test = kunit_get_current_test();

	KUNIT_EXPECT_TRUE(test, flags & FAULT_FLAG_VMA_LOCK);
	KUNIT_EXPECT_FALSE(test, rwsem_is_locked(&m->mm->mmap_lock));
	return handle_mm_fault(vma, addr, flags, NULL);
}

static void one_vma_needs_no_mmap_lock(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, 2 * PMD_NR, PROT_READ | PROT_WRITE);

	if (!IS_ENABLED(CONFIG_PER_VMA_LOCK))
		kunit_skip(test, "VMAs have no lock");
	m->instead = without_mmap_lock;
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, ASK_WRITE, PLENTY), 0);
	KUNIT_EXPECT_EQ(test, m->faults, 2 * PMD_NR);
	expect_all_writable(test, m, 2 * PMD_NR);
}

#ifdef CONFIG_PER_VMA_LOCK

static int write_lock_vma(void *data)
{
	struct mirror *m = data;

	mmap_write_lock(m->mm);
	vma_start_write(vma_lookup(m->mm, m->addr));
	mmap_write_unlock(m->mm);
	return 0;
}

/* During the second fault somebody wants to change the VMA. */
static vm_fault_t writer_comes(struct mirror *m, struct vm_area_struct *vma,
			       unsigned long addr, unsigned int flags)
{
	unsigned long began = jiffies;

	if (m->faults == 2) {
		m->writer = kthread_create(write_lock_vma, m, "hmm_test");
		if (IS_ERR(m->writer))
			return VM_FAULT_OOM;
		get_task_struct(m->writer);
		wake_up_process(m->writer);
		while (!rwsem_is_contended(&vma->vm_lock->lock) &&
		       time_before(jiffies, began + PLENTY))
			schedule_timeout_uninterruptible(1);
	}
	return handle_mm_fault(vma, addr, flags, NULL);
}

static void writer_waits_for_one_fault(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);

	m->instead = writer_comes;
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, ASK_WRITE, PLENTY), 0);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, m->writer);
	KUNIT_EXPECT_EQ(test, kthread_stop_put(m->writer), 0);
	KUNIT_EXPECT_EQ(test, m->faults, MAP_PAGES);
	/* The first two had the VMA's lock, the others had mmap_lock. */
	KUNIT_EXPECT_TRUE(test, m->flags_of_any & FAULT_FLAG_VMA_LOCK);
	KUNIT_EXPECT_FALSE(test, m->flags_of_all & FAULT_FLAG_VMA_LOCK);
	expect_all_writable(test, m, MAP_PAGES);
}

#else

static void writer_waits_for_one_fault(struct kunit *test)
{
	kunit_skip(test, "VMAs have no lock");
}

#endif /* CONFIG_PER_VMA_LOCK */

/* Two VMAs have no common lock but mmap_lock. */
static void two_vmas_need_mmap_lock(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);

	KUNIT_ASSERT_EQ(test, 0, do_madvise(m->mm, page_addr(m, 1), PAGE_SIZE,
					    MADV_DONTFORK));
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, ASK_WRITE, PLENTY), 0);
	KUNIT_EXPECT_EQ(test, m->faults, MAP_PAGES);
	KUNIT_EXPECT_EQ(test, m->flags_of_any, FAULT_FLAG_REMOTE | FAULT_FLAG_WRITE | MAY_WAIT);
	expect_all_writable(test, m, MAP_PAGES);
}

/* The lock that the fault was called with. */
static void drop_lock(struct vm_area_struct *vma, unsigned int flags)
{
	if (flags & FAULT_FLAG_VMA_LOCK)
		vma_end_read(vma);
	else
		mmap_read_unlock(vma->vm_mm);
}

/* A fault that can do nothing without mmap_lock, as many of drivers. */
static vm_fault_t insist_on_mmap_lock(struct mirror *m, struct vm_area_struct *vma,
				      unsigned long addr, unsigned int flags)
{
	if (!(flags & FAULT_FLAG_VMA_LOCK))
		return handle_mm_fault(vma, addr, flags, NULL);
	drop_lock(vma, flags);
	return VM_FAULT_RETRY;
}

static void fault_gets_mmap_lock(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);

	if (!IS_ENABLED(CONFIG_PER_VMA_LOCK))
		kunit_skip(test, "VMAs have no lock");
	m->instead = insist_on_mmap_lock;
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, ASK_WRITE, PLENTY), 0);
	/* It is asked once, and not for each page; and may still wait, if it has to. */
	KUNIT_EXPECT_EQ(test, m->faults, MAP_PAGES + 1);
	KUNIT_EXPECT_EQ(test, m->tried_faults, 0);
	expect_all_writable(test, m, MAP_PAGES);
}

/* A fault that has to wait: it lets go of the lock, and wants to be repeated. */
static vm_fault_t wait_at_first(struct mirror *m, struct vm_area_struct *vma,
				unsigned long addr, unsigned int flags)
{
	void (*meanwhile)(struct mirror *m) = m->meanwhile;

	if ((flags & FAULT_FLAG_TRIED) || !(flags & FAULT_FLAG_ALLOW_RETRY))
		return handle_mm_fault(vma, addr, flags, NULL);

	drop_lock(vma, flags);
	m->meanwhile = NULL;
	if (meanwhile)
		meanwhile(m);
	return VM_FAULT_RETRY;
}

/* One that lets go of the lock when it is done, and need not be repeated. */
static vm_fault_t complete_and_unlock(struct mirror *m,
				      struct vm_area_struct *vma,
				      unsigned long addr, unsigned int flags)
{
	vm_fault_t fault = handle_mm_fault(vma, addr, flags, NULL);

	if (fault & (VM_FAULT_ERROR | VM_FAULT_RETRY))
		return fault;
	drop_lock(vma, flags);
	return fault | VM_FAULT_COMPLETED;
}

static void every_fault_may_drop_the_lock(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);

	m->instead = wait_at_first;
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, ASK_WRITE, PLENTY), 0);
	/* The first one lets go of the VMA's lock, and then of mmap_lock. */
	KUNIT_EXPECT_EQ(test, m->faults, 2 * MAP_PAGES + !!IN_VMA);
	KUNIT_EXPECT_EQ(test, m->tried_faults, MAP_PAGES);
	expect_all_writable(test, m, MAP_PAGES);
}

static void completed_fault_is_not_repeated(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);

	m->instead = complete_and_unlock;
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, ASK_WRITE, PLENTY), 0);
	KUNIT_EXPECT_EQ(test, m->faults, MAP_PAGES);
	KUNIT_EXPECT_EQ(test, m->tried_faults, 0);
	expect_all_writable(test, m, MAP_PAGES);
}

static void unmap_all(struct mirror *m)
{
	vm_munmap(m->addr, m->nr_pages << PAGE_SHIFT);
}

static void drop_first_page(struct mirror *m)
{
	do_madvise(m->mm, m->addr, PAGE_SIZE, MADV_DONTNEED);
}

static void drop_second_page(struct mirror *m)
{
	do_madvise(m->mm, page_addr(m, 1), PAGE_SIZE, MADV_DONTNEED);
}

/* The VMA is another one, or none, when the lock is back. */
static void vma_is_looked_up_again(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);

	m->instead = wait_at_first;
	m->meanwhile = not_writable;
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, ASK_WRITE, PLENTY), -EPERM);
	KUNIT_EXPECT_EQ(test, m->faults, 1);
	vma_flags_change(m, VM_WRITE, 0);
	m->meanwhile = memory_of_a_device;
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, ASK_WRITE, PLENTY), -EFAULT);
	KUNIT_EXPECT_EQ(test, m->faults, 1);
	vma_flags_change(m, 0, VM_IO);
	m->meanwhile = unmap_all;
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, ASK_WRITE, PLENTY), -EFAULT);
	KUNIT_EXPECT_EQ(test, m->faults, 1);
	expect_unlocked(test, m);
}

/* All pages are there but the one whose fault waits, in the second page table. */
static struct mirror *mirror_map_but_last(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, 2 * PMD_NR, PROT_READ | PROT_WRITE);

	KUNIT_ASSERT_EQ(test, mirror_all(m, ASK_WRITE), 0);
	KUNIT_ASSERT_EQ(test, 0, do_madvise(m->mm, page_addr(m, 2 * PMD_NR - 1),
					    PAGE_SIZE, MADV_DONTNEED));
	m->instead = wait_at_first;
	return m;
}

/* What was stored before the wait is kept, and not looked at twice. */
static void wait_keeps_results(struct kunit *test)
{
	struct mirror *m = mirror_map_but_last(test);
	unsigned int before = m->invalidations;

	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, ASK_WRITE, PLENTY), 0);
	KUNIT_EXPECT_EQ(test, m->faults, 2 + !!IN_VMA);
	KUNIT_EXPECT_EQ(test, m->invalidations, before);
	expect_all_writable(test, m, 2 * PMD_NR);
}

/* A page that was settled before the wait has gone in it: it is faulted, alone. */
static void results_from_before_a_wait_are_not_stale(struct kunit *test)
{
	struct mirror *m = mirror_map_but_last(test);

	m->meanwhile = drop_first_page;
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, ASK_WRITE, PLENTY), 0);
	/*
	 * A wait for the last page, then two faults for each of the two, and one
	 * more for the first of them with the VMA's lock.
	 */
	KUNIT_EXPECT_EQ(test, m->faults, 5 + !!IN_VMA);
	KUNIT_EXPECT_EQ(test, m->tried_faults, 2);
	expect_all_writable(test, m, 2 * PMD_NR);
}

/* A result left in the word by the first attempt is no request of the second. */
static void words_ask_the_same_again(struct kunit *test)
{
	struct mirror *m = mirror_map_but_last(test);

	memset(m->words, 0, 2 * PMD_NR * sizeof(*m->words));
	m->range.pfn_flags_mask = ASK_WRITE;
	m->words[0] = ASK_WRITE;
	m->words[2] = ASK_READ;
	m->words[2 * PMD_NR - 1] = ASK_WRITE;
	m->meanwhile = drop_second_page;
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, 0, PLENTY), 0);
	/* The last page alone, in both attempts first with the VMA's lock. */
	KUNIT_EXPECT_EQ(test, m->faults, 2 + 2 * !!IN_VMA);
	KUNIT_EXPECT_EQ(test, rights(m->words[0]), WRITABLE);
	KUNIT_EXPECT_EQ(test, m->words[1], 0);
	KUNIT_EXPECT_EQ(test, rights(m->words[2]), WRITABLE);
	KUNIT_EXPECT_EQ(test, rights(m->words[2 * PMD_NR - 1]), WRITABLE);
}

static void move_sequence(struct mirror *m)
{
	struct mmu_notifier_range range;

	mmu_notifier_range_init(&range, MMU_NOTIFY_CLEAR, 0, m->mm, m->addr,
				m->addr + PAGE_SIZE);
	mmu_notifier_invalidate_range_start(&range);
	mmu_notifier_invalidate_range_end(&range);
}

/* Whatever a fault brings is taken away at once. */
static vm_fault_t storm(struct mirror *m,
			__always_unused struct vm_area_struct *vma,
			__always_unused unsigned long addr,
			__always_unused unsigned int flags)
{
	move_sequence(m);
	return 0;
}

static vm_fault_t storm_and_kill(struct mirror *m,
				 __always_unused struct vm_area_struct *vma,
				 __always_unused unsigned long addr,
				 __always_unused unsigned int flags)
{
	move_sequence(m);
	if (m->faults == 100)
		get_killed();
	return 0;
}

static vm_fault_t storm_for_a_while(struct mirror *m,
				    struct vm_area_struct *vma,
				    unsigned long addr, unsigned int flags)
{
	if (m->faults == 100)
		m->instead = NULL;
	return storm(m, vma, addr, flags);
}

static void storm_ends_at_the_timeout(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);
	unsigned long timeout = HZ / 10, began = jiffies;

	m->instead = storm;
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, ASK_WRITE, timeout), -EBUSY);
	KUNIT_EXPECT_GE(test, jiffies - began, timeout);
	KUNIT_EXPECT_LT(test, jiffies - began, PLENTY);
	KUNIT_EXPECT_GT(test, m->faults, 1);
	expect_unlocked(test, m);
}

static void storm_without_timeout_is_outlasted(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);

	m->instead = storm_for_a_while;
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, ASK_WRITE, 0), 0);
	KUNIT_EXPECT_GE(test, m->faults, 100);
	expect_all_writable(test, m, MAP_PAGES);
}

static void storm_without_timeout_ends_when_killed(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);
	int ret;

	m->instead = storm_and_kill;
	ret = mirror_unlocked(m, ASK_WRITE, 0);
	flush_signals(current);
	KUNIT_EXPECT_EQ(test, ret, -EINTR);
	KUNIT_EXPECT_EQ(test, m->faults, 100);
	expect_unlocked(test, m);
}

static void sleep_and_move_sequence(struct mirror *m)
{
	schedule_timeout_uninterruptible(HZ / 2);
	move_sequence(m);
}

/* A slow monitor is not a storm. */
static void wait_is_not_part_of_the_timeout(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, 1, PROT_READ | PROT_WRITE);

	m->instead = wait_at_first;
	m->meanwhile = sleep_and_move_sequence;
	KUNIT_EXPECT_EQ(test, mirror_unlocked(m, ASK_WRITE, HZ / 4), 0);
	expect_all_writable(test, m, 1);
}

static void get_killed_meanwhile(__always_unused struct mirror *m)
{
	get_killed();
}

static void killed_while_a_fault_waits(struct kunit *test)
{
	struct mirror *m = mirror_map_small(test, MAP_PAGES, PROT_READ | PROT_WRITE);
	int ret;

	m->instead = wait_at_first;
	m->meanwhile = get_killed_meanwhile;
	ret = mirror_unlocked(m, ASK_WRITE, 0);
	flush_signals(current);
	KUNIT_EXPECT_EQ(test, ret, -EINTR);
	KUNIT_EXPECT_EQ(test, m->faults, 1);
	expect_unlocked(test, m);
}

/* The notifier keeps the mm_struct, which is not enough. */
static void process_that_is_gone_is_efault(struct kunit *test)
{
	struct mirror *m = kunit_kzalloc(test, sizeof(*m), GFP_KERNEL);
	unsigned long word = 0x55;
	struct hmm_range range = {
		.start = PAGE_SIZE,
		.end = 2 * PAGE_SIZE,
		.hmm_pfns = &word,
	};

	KUNIT_ASSERT_NOT_NULL(test, m);
	mutex_init(&m->lock);
	m->mm = mm_alloc();
	KUNIT_ASSERT_NOT_NULL(test, m->mm);
	range.notifier = &m->notifier;
	if (mmu_interval_notifier_insert(&m->notifier, m->mm, 0, range.end,
					 &mirror_ops)) {
		mmput(m->mm);
		KUNIT_FAIL_AND_ABORT(test, "no notifier");
	}
	KUNIT_EXPECT_EQ(test, hmm_range_fault_unlocked_timeout(&range, 0), 0);
	KUNIT_EXPECT_EQ(test, word, HMM_PFN_ERROR);

	word = 0x55;
	mmput(m->mm);
	KUNIT_EXPECT_EQ(test, m->invalidations, 1);
	KUNIT_EXPECT_EQ(test, hmm_range_fault_unlocked_timeout(&range, 0),
			-EFAULT);
	KUNIT_EXPECT_EQ(test, word, 0x55);
	mmu_interval_notifier_remove(&m->notifier);
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

static void kept_bits_stay_in_a_thp(struct kunit *test)
{
	struct mirror *m = mirror_map_thp(test);
	unsigned long first = m->words[0], i;

	m->words[7] = HMM_PFN_DMA_MAPPED;
	KUNIT_ASSERT_EQ(test, mirror_all(m, 0), 0);
	for (i = 0; i < PMD_NR; i++)
		KUNIT_EXPECT_EQ(test, m->words[i],
				(first + i) | (i == 7 ? HMM_PFN_DMA_MAPPED : 0));

	/* The same when PTEs map it. */
	KUNIT_ASSERT_EQ(test, 0, do_madvise(m->mm, page_addr(m, 200), PAGE_SIZE,
					    MADV_DONTNEED));
	expect_kept(test, m, 0);
}

/* A large folio is known as such, whatever is kept in its words. */
/* Two VMAs for a moment, and PTEs from then on. */
static void map_thp_by_ptes(struct kunit *test, struct mirror *m)
{
	KUNIT_ASSERT_EQ(test, 0, do_madvise(m->mm, page_addr(m, PMD_NR / 2),
					    PMD_SIZE / 2, MADV_DONTFORK));
	KUNIT_ASSERT_EQ(test, 0, do_madvise(m->mm, page_addr(m, PMD_NR / 2),
					    PMD_SIZE / 2, MADV_DOFORK));
}

static void kept_bits_do_not_hide_an_order(struct kunit *test)
{
	struct mirror *m = mirror_map_thp(test);
	unsigned long i;

	map_thp_by_ptes(test, m);
	for (i = 0; i < PMD_NR; i++)
		m->words[i] = i % 3 ? 0 : HMM_PFN_DMA_MAPPED;
	KUNIT_ASSERT_EQ(test, mirror_all(m, 0), 0);
	KUNIT_EXPECT_EQ(test, hmm_pfn_to_map_order(m->words[0]), HPAGE_PMD_ORDER);
	KUNIT_EXPECT_EQ(test, hmm_pfn_to_map_order(m->words[PMD_NR - 1]), HPAGE_PMD_ORDER);
	KUNIT_EXPECT_TRUE(test, m->words[3] & HMM_PFN_DMA_MAPPED);
	KUNIT_EXPECT_FALSE(test, m->words[4] & HMM_PFN_DMA_MAPPED);
}

/* PTEs may differ in what makes no difference to a device, here and there. */
static void odd_ptes_do_not_hide_an_order(struct kunit *test)
{
	static const unsigned long odd[] = { 0, 1, 7, 8, 100, 101, 102, 103, PMD_NR - 1 };
	struct mirror *m = mirror_map_thp(test);
	pte_t *table, *ptep, pte;
	unsigned long i;
	spinlock_t *ptl;

	if (!IS_ENABLED(CONFIG_MEM_SOFT_DIRTY))
		kunit_skip(test, "no bit to play with");
	map_thp_by_ptes(test, m);
	mmap_read_lock(m->mm);
	table = get_locked_pte(m->mm, m->addr, &ptl);
	for (i = 0; i < ARRAY_SIZE(odd); i++) {
		ptep = table + odd[i];
		pte = ptep_get(ptep);
		set_pte_at(m->mm, page_addr(m, odd[i]), ptep,
			   pte_soft_dirty(pte) ? pte_clear_soft_dirty(pte) :
						 pte_mksoft_dirty(pte));
	}
	pte_unmap_unlock(table, ptl);
	mmap_read_unlock(m->mm);

	memset(m->words, 0, PMD_NR * sizeof(*m->words));
	KUNIT_ASSERT_EQ(test, mirror_all(m, 0), 0);
	for (i = 0; i < PMD_NR; i++) {
		KUNIT_ASSERT_EQ(test, rights(m->words[i]), WRITABLE);
		KUNIT_ASSERT_EQ(test, hmm_pfn_to_map_order(m->words[i]), HPAGE_PMD_ORDER);
		expect_right_page(test, m, i, m->words[i]);
	}
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
	KUNIT_CASE(stencil_has_the_largest_block),
	KUNIT_CASE(stencil_from_0_has_no_block),
	KUNIT_CASE(empty_stencil_fits_nothing),
	KUNIT_CASE(stencil_converts_alike_ptes),
	KUNIT_CASE(stencil_refuses_other_ptes),
	KUNIT_CASE(stencil_of_one_pfn),
	KUNIT_CASE(pages_are_copied),
	KUNIT_CASE(folio_is_copied),
	KUNIT_CASE(idle_bits_do_not_matter),
#ifdef CONFIG_DEVICE_PRIVATE
	KUNIT_CASE(private_gives_pfn_and_rights),
	KUNIT_CASE(stencil_converts_private_ptes),
	KUNIT_CASE(private_pages_are_copied),
	KUNIT_CASE(private_folio_is_copied),
#endif
	KUNIT_CASE_PARAM(bad_input_has_its_errno, answer_gen_params),
	KUNIT_CASE(no_range_is_einval),
	KUNIT_CASE(killed_task_may_still_look),
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
	KUNIT_CASE(kept_bits_stay),
	KUNIT_CASE(kept_bits_stay_in_holes),
	KUNIT_CASE(kept_bits_stay_in_an_error),
	KUNIT_CASE(stale_sequence_is_ebusy),
	KUNIT_CASE_PARAM(failed_fault_tells_why_and_where, failure_gen_params),
	KUNIT_CASE(range_may_cross_page_tables),
	KUNIT_CASE(file_faults_bring_their_neighbours),
	KUNIT_CASE(locked_fault_asks_no_monitor),
	KUNIT_CASE(only_unlocked_faults_may_wait),
	KUNIT_CASE(one_vma_needs_no_mmap_lock),
	KUNIT_CASE(writer_waits_for_one_fault),
	KUNIT_CASE(two_vmas_need_mmap_lock),
	KUNIT_CASE(fault_gets_mmap_lock),
	KUNIT_CASE(unlocked_sees_to_lock_and_sequence),
	KUNIT_CASE(unlocked_tries_again_after_cow),
	KUNIT_CASE(every_fault_may_drop_the_lock),
	KUNIT_CASE(completed_fault_is_not_repeated),
	KUNIT_CASE(vma_is_looked_up_again),
	KUNIT_CASE(wait_keeps_results),
	KUNIT_CASE(results_from_before_a_wait_are_not_stale),
	KUNIT_CASE(words_ask_the_same_again),
	KUNIT_CASE(storm_ends_at_the_timeout),
	KUNIT_CASE(storm_without_timeout_is_outlasted),
	KUNIT_CASE(storm_without_timeout_ends_when_killed),
	KUNIT_CASE(wait_is_not_part_of_the_timeout),
	KUNIT_CASE(killed_while_a_fault_waits),
	KUNIT_CASE(process_that_is_gone_is_efault),
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	KUNIT_CASE(thp_is_one_fault),
	KUNIT_CASE(kept_bits_stay_in_a_thp),
	KUNIT_CASE(kept_bits_do_not_hide_an_order),
	KUNIT_CASE(odd_ptes_do_not_hide_an_order),
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
