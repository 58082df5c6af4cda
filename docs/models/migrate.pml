/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Device migration of one anonymous page, against everything that may happen to the
 * page meanwhile.
 *
 *	mm/migrate_device_collect.c	clear the PTE, flush, look for pins, write the
 *					migration entry, drop the rmap
 *	mm/migrate_device.c		unmap what others map, look for references, move
 *					the identity or not, drop the references
 *	mm/migrate_device_map.c		map the page, or its copy, where the entries are
 *
 * against a CPU that writes (TLB, faults, COW, reuse), GUP-fast (with a pin, for
 * writing and for reading; with a reference), fork and zap.
 *
 * Properties
 *
 *	data	at the end each process finds what was written last, by CPUs or by
 *		way of a pin; a CPU that finds nothing mapped had nothing there
 *	pins	a page that has moved has no holder; a pinned page is exclusive
 *	refs	a page with a PTE or a TLB entry has a reference, one with a migration
 *		entry is locked; at the end there are as many references as mappings
 *	anon	an exclusive page is mapped once
 *
 * Page tables 0 to 2 belong to three processes; the migration is in that of 0. The
 * destination is memory that a CPU can use: RAM, or a coherent device. What is done
 * under a page-table lock and seen by nobody without it is one step; PTEs, counts and
 * TLBs are seen without. The TLB of a process may fill and be used at any time up to
 * the flush; nothing waits for GUP-fast, as the IPIs of some machines do.
 *
 * RUN -DEXCLUSIVE -DGUP -DZAP
 * RUN -DEXCLUSIVE -DGUP -DFORK -DWRITES=1
 * RUN -DEXCLUSIVE -DGUP -DZAP -DPINS -DNO_REF_CHECK
 * RUN -DEXCLUSIVE -DTWICE -DZAP
 * RUN -DEXCLUSIVE -DFORK
 * RUN -DFORK -DWRITES=1
 * RUN -DGUP -DWRITES=1
 * RUN -DZAP -DWRITES=1
 *
 * EXCLUSIVE: the page is mapped by process 0 alone; otherwise by 0 and 1, for
 * reading. TWICE: two migrations at a time. PINS without a reference check: the look
 * for pins has to keep pins by itself. The others say who is there.
 *
 * Variants that are wrong on purpose, each of which has to fail in a run:
 *
 *	BROKEN_NO_FLUSH -DEXCLUSIVE
 *		collect does not flush the TLB
 *	BROKEN_SHARE_FIRST -DEXCLUSIVE -DGUP -DPINS -DNO_REF_CHECK
 *		collect looks for pins, then clears the PTE: what a missing barrier
 *		would do there
 *	BROKEN_NO_PIN_CHECK -DEXCLUSIVE -DGUP -DPINS -DNO_REF_CHECK
 *		it drops the exclusive flag and does not look for pins
 *	BROKEN_GAP -DEXCLUSIVE
 *		it drops the page-table lock before the entry is there
 *	BROKEN_LATE_PIN -DEXCLUSIVE -DGUP
 *		GUP-fast reads the PTE again, then pins: what a missing barrier would do
 *		there
 *	BROKEN_NO_REREAD -DEXCLUSIVE -DGUP
 *		GUP-fast does not read the PTE again
 *	BROKEN_LATE_REF_CHECK -DEXCLUSIVE -DGUP
 *		references are looked for after the copy alone
 *	BROKEN_NO_REF_CHECK -DEXCLUSIVE -DGUP
 *		a page moves whoever holds it
 *	BROKEN_DROP_REF -DEXCLUSIVE
 *		collect puts the reference of the mapping
 *	BROKEN_KEEP_REF -DEXCLUSIVE
 *		finalize does not put that of the migration
 *	BROKEN_BLIND_MAP -DEXCLUSIVE -DZAP
 *		finalize maps without a look at the entry
 *	BROKEN_NO_RMAP -DWRITES=1
 *		finalize does not look for entries elsewhere
 *	BROKEN_NO_MMAP_LOCK -DEXCLUSIVE -DFORK
 *		fork of process 0 in the middle
 *	BROKEN_NO_FOLIO_LOCK -DEXCLUSIVE -DTWICE
 *		a migration takes a page that another one has
 *	BROKEN_ZAP_FIRST -DEXCLUSIVE -DZAP
 *		zap puts the page before the flush
 */
#define NR_MM		3
#define NR_PAGES	6

#ifndef WRITES
#define WRITES		2	/* of the CPU of process 0 */
#endif
#ifdef BROKEN_NO_REF_CHECK
#define NO_REF_CHECK
#endif

#define FIRST		9	/* what the page has in it */

mtype = { NONE, WRITE, READ, MOVING_WRITE, MOVING_EXCL, MOVING_READ };

/* Page tables, TLBs with what may be written, and what a process has to find */
mtype kind[NR_MM] = NONE;
byte page[NR_MM];
bool ptl[NR_MM];
byte tlb[NR_MM];
byte zapped[NR_MM];		/* until it is flushed */
byte want[NR_MM];
byte zaps;			/* of process 0 */

/* Pages, from 1 on */
byte ref[NR_PAGES + 1];
byte mapped[NR_PAGES + 1];
byte pins[NR_PAGES + 1];	/* that were counted, if only for a moment */
byte held[NR_PAGES + 1];	/* for good: by a pin or a reference */
byte pinned[NR_PAGES + 1];	/* for good, by a pin */
bool exclusive[NR_PAGES + 1];
bool locked[NR_PAGES + 1];
bool moved[NR_PAGES + 1];
byte content[NR_PAGES + 1];

/* mmap_lock of process 0, and its write_protect_seq */
byte readers;
bool writer;
byte protect_seq;

byte todo;

#ifdef FORK
#define MAY_WRITE(pin)	(pin)
#else
#define MAY_WRITE(pin)	true
#endif

#define IS_MAPPED(m)	(kind[m] == WRITE || kind[m] == READ)
#define IS_MOVING(m)	(kind[m] == MOVING_WRITE || kind[m] == MOVING_EXCL || \
			 kind[m] == MOVING_READ)

inline lock_ptl(m)	{ atomic { !ptl[m]; ptl[m] = true } }
inline unlock_ptl(m)	{ ptl[m] = false }

inline alloc(p)
{
	atomic {
		p = 1;
		do
		:: ref[p] != 0 -> p++
		:: else -> break
		od;
		assert(p <= NR_PAGES);
		ref[p] = 1;
		content[p] = 0;
		exclusive[p] = false;
		moved[p] = false
	}
}

inline put(p)
{
	atomic {
		assert(ref[p] > 0);
		ref[p]--;
		assert(ref[p] > 0 || mapped[p] == 0)
	}
}

/* A page of @m's own. */
inline map_new(m, p)
{
	atomic {
		page[m] = p;
		mapped[p]++;
		exclusive[p] = true;
		kind[m] = WRITE
	}
}

/* --- Migration ------------------------------------------------------------ */

inline look_for_pins()
{
	atomic { busy = exclusive[src] && pins[src] > 0 }
}

inline replace()
{
	atomic {
		if
		:: old == WRITE -> kind[0] = MOVING_WRITE
		:: old == READ && exclusive[src] -> kind[0] = MOVING_EXCL
		:: old == READ && !exclusive[src] -> kind[0] = MOVING_READ
		fi;
		exclusive[src] = false;
		mapped[src]--;
#ifdef BROKEN_DROP_REF
		ref[src]--
#endif
	}
}

/* Under the page-table lock from the first look at the PTE to the entry. */
inline collect()
{
	lock_ptl(0);
	atomic {
		if
#ifdef BROKEN_NO_FOLIO_LOCK
		:: IS_MAPPED(0) ->
#else
		:: IS_MAPPED(0) && !locked[page[0]] ->
#endif
			src = page[0];
			locked[src] = true;
			old = kind[0]
		:: else -> unlock_ptl(0); goto out
		fi
	}
#ifdef BROKEN_SHARE_FIRST
	look_for_pins();
#endif
	kind[0] = NONE;
#ifndef BROKEN_NO_FLUSH
	tlb[0] = 0;
#endif
#ifdef BROKEN_GAP
	unlock_ptl(0);
	lock_ptl(0);
#endif
#ifndef BROKEN_SHARE_FIRST
	look_for_pins();
#endif
#ifdef BROKEN_NO_PIN_CHECK
	busy = false;
#endif
	if
	:: busy ->
		atomic { kind[0] = old; locked[src] = false }
		unlock_ptl(0);
		goto out
	:: else -> replace()
	fi;
	unlock_ptl(0)
}

/* The rmap leads to processes in the order of their forks. */
inline unmap_others()
{
	m = 1;
	do
	:: m == NR_MM || mapped[src] == 0 -> break
	:: else ->
		shared = true;
		lock_ptl(m);
		if
		:: IS_MAPPED(m) && page[m] == src && !(exclusive[src] && pins[src]) ->
			kind[m] = NONE;
			atomic { tlb[m] = 0; exclusive[src] = false }
			atomic { kind[m] = MOVING_READ; mapped[src]-- }
			put(src)
		:: else
		fi;
		unlock_ptl(m);
		m++
	od
}

inline map_again(m)
{
	lock_ptl(m);
	atomic {
		if
#ifdef BROKEN_BLIND_MAP
		:: true ->
#else
		:: IS_MOVING(m) && page[m] == src ->
#endif
			ref[target]++;
			mapped[target]++;
			page[m] = target;
			if
			:: kind[m] == MOVING_READ -> kind[m] = READ
			:: kind[m] == MOVING_EXCL ->
				kind[m] = READ;
				exclusive[target] = true
			:: else ->
				kind[m] = WRITE;
				exclusive[target] = true
			fi
		:: else -> shared = true
		fi
	}
	unlock_ptl(m)
}

inline map_others()
{
	m = 0;
	do
	:: m == NR_MM || !shared -> break
	:: else -> map_again(m); m++
	od
}

proctype migrate()
{
	byte src, dst, target, m;
	mtype old;
	bool busy, shared, moves;

	atomic { !writer; readers++ }
	collect();
	unmap_others();
	moves = (mapped[src] == 0 && ref[src] == 1);
#if defined(BROKEN_LATE_REF_CHECK) || defined(NO_REF_CHECK)
	moves = true;
#endif

	/* The driver: a page, and the copy. */
	if
	:: moves ->
		atomic { alloc(dst); locked[dst] = true }
		content[dst] = content[src]
	:: else
	fi;
	atomic {
		if
#ifndef NO_REF_CHECK
		:: mapped[src] != 0 || ref[src] != 1 -> moves = false
#endif
		:: else
		fi;
		moved[src] = moves;
		target = (moves -> dst : src)
	}
	map_again(0);
#ifndef BROKEN_NO_RMAP
	map_others();
#endif
	locked[src] = false;
	atomic {
#ifndef BROKEN_KEEP_REF
		put(src);
#endif
		moved[src] = moved[src] && ref[src]
	}
	if
	:: dst -> locked[dst] = false; put(dst)
	:: else
	fi;
out:	readers--;
	todo--
}

/* --- A CPU ---------------------------------------------------------------- */

/* Everybody sees the PTE; who maps the page first has it. */
inline write_fault()
{
	lock_ptl(m);
	if
	:: kind[m] == WRITE
	:: kind[m] == NONE ->
		assert(want[m] == 0);
		alloc(p);
		map_new(m, p)
	:: IS_MOVING(m) ->
		p = page[m];
		unlock_ptl(m);
		/* Without a reference: until the lock is free, or the entry gone. */
		(!locked[p] || !IS_MOVING(m) || page[m] != p);
		goto again
	:: kind[m] == READ ->
		p = page[m];
		if
		:: exclusive[p] -> kind[m] = WRITE
		:: atomic { !exclusive[p] && ref[p] == 1 && !locked[p] ->
			exclusive[p] = true;
			kind[m] = WRITE
		   }
		:: !exclusive[p] && (ref[p] > 1 || locked[p]) -> copy_on_write()
		fi
	fi;
	unlock_ptl(m)
}

inline copy_on_write()
{
	ref[p]++;
	unlock_ptl(m);
	alloc(copy);
	content[copy] = content[p];
	lock_ptl(m);
	if
	:: kind[m] == READ && page[m] == p ->
		map_new(m, copy);
		mapped[p]--;
		put(p)
	:: else -> put(copy)
	fi;
	put(p)
}

/* By what the TLB has; a write between the zap and its flush is nobody's. */
inline write_word(v)
{
	atomic {
		tlb[m] != 0;
		assert(ref[tlb[m]] > 0);
		content[tlb[m]] = v;
		if
		:: zapped[m] != tlb[m] -> want[m] = v
		:: else
		fi
	}
}

proctype cpu(byte m; byte v; byte writes)
{
	byte p, copy;

	do
	:: writes == 0 -> break
	:: writes > 0 && tlb[m] != 0 ->
		if
		:: write_word(v) -> v++; writes--
		:: tlb[m] == 0		/* flushed under us */
		fi
	:: writes > 0 && tlb[m] == 0 ->
again:		if
		:: atomic { kind[m] == WRITE -> tlb[m] = page[m] }
		:: kind[m] != WRITE -> write_fault()
		fi
	od;
	todo--
}

/* --- GUP-fast ------------------------------------------------------------- */

inline take()
{
	atomic {
		got = (ref[p] > 0);
		if
		:: got -> ref[p]++; pins[p] = pins[p] + pin
		:: else
		fi
	}
}

inline read_again()
{
	atomic {
		same = (kind[0] == seen && page[0] == p);
		zap = zaps
	}
#ifdef BROKEN_NO_REREAD
	same = true;
#endif
}

inline let_go()
{
	atomic { pins[p] = pins[p] - pin; put(p) }
}

proctype gup(byte pin; byte v)
{
	byte p, zap, seq;
	mtype seen;
	bool got, same;

	seq = protect_seq;
	if
	:: pin && (seq & 1) -> goto out
	:: else
	fi;
	atomic { seen = kind[0]; p = page[0] }
	if
	:: seen != WRITE && seen != READ -> goto out
	:: else
	fi;
#ifdef BROKEN_LATE_PIN
	read_again();
	take();
#else
	take();
	if
	:: got -> read_again()
	:: else
	fi;
#endif
	if
	:: !got -> goto out
	:: got && !same -> let_go(); goto out
	:: got && same
	fi;
	if
	:: pin && seen == READ && !exclusive[p] -> let_go(); goto out
	:: else
	fi;
	atomic {
		if
		:: pin && protect_seq != seq -> let_go(); goto out
		:: else
		fi;
		held[p]++;
		pinned[p] = pinned[p] + pin
	}

	/* A device works with it. Who writes without a pin must not fork. */
	if
	:: seen == WRITE && MAY_WRITE(pin) ->
		atomic {
			content[p] = v;
			if
			:: zap == zaps -> want[0] = v
			:: else
			fi
		}
	:: else
	fi;
	atomic { held[p]--; pinned[p] = pinned[p] - pin }
	let_go();
out:	todo--
}

/* --- zap and fork ---------------------------------------------------------- */

proctype zap()
{
	byte p;

	lock_ptl(0);
	atomic {
		if
		:: IS_MAPPED(0) ->
			p = page[0];
			zapped[0] = p;
			mapped[p]--;
			if
			:: mapped[p] == 0 -> exclusive[p] = false
			:: else
			fi
		:: else
		fi;
		kind[0] = NONE;
		want[0] = 0;
		zaps++
	}
	unlock_ptl(0);
#ifdef BROKEN_ZAP_FIRST
	if
	:: p -> put(p); p = 0
	:: else
	fi;
#endif
	atomic { tlb[0] = 0; zapped[0] = 0 }
	if
	:: p -> put(p)
	:: else
	fi;
	todo--
}

/* With the flush of what is write-protected: fork is not what is looked at. */
inline copy_pte(a, b)
{
	atomic {
		want[b] = want[a];
		if
		:: IS_MAPPED(a) && exclusive[page[a]] && pins[page[a]] ->
			alloc(p);
			content[p] = content[page[a]];
			map_new(b, p)
		:: IS_MAPPED(a) && !(exclusive[page[a]] && pins[page[a]]) ->
			p = page[a];
			ref[p]++;
			mapped[p]++;
			exclusive[p] = false;
			kind[a] = READ;
			kind[b] = READ;
			page[b] = p
		:: IS_MOVING(a) ->
			kind[a] = MOVING_READ;
			kind[b] = MOVING_READ;
			page[b] = page[a]
		:: kind[a] == NONE
		fi;
		tlb[a] = 0
	}
}

proctype fork(byte a, b)
{
	byte p;

	if
#ifndef BROKEN_NO_MMAP_LOCK
	:: a == 0 -> atomic { !writer && readers == 0; writer = true }
#endif
	:: else
	fi;
	protect_seq++;
	atomic { !ptl[a] && !ptl[b]; ptl[a] = true; ptl[b] = true }
	copy_pte(a, b);
	atomic { ptl[a] = false; ptl[b] = false }
	protect_seq++;
	if
#ifndef BROKEN_NO_MMAP_LOCK
	:: a == 0 -> writer = false
#endif
	:: else
	fi;
	atomic {
		if
#ifndef GUP
		:: b == 1 -> run cpu(1, 50, 1)
#endif
		:: else -> todo--
		fi
	}
}

/* --- The beginning, always, the end ---------------------------------------- */

inline start()
{
	page[0] = 1;
	ref[1] = 1;
	mapped[1] = 1;
	content[1] = FIRST;
	want[0] = FIRST;
#ifdef EXCLUSIVE
	if
	:: kind[0] = WRITE
	:: kind[0] = READ	/* as mprotect() there and back leaves it */
	fi;
	exclusive[1] = true;
#else
	kind[0] = READ;
	kind[1] = READ;
	page[1] = 1;
	want[1] = FIRST;
	ref[1] = 2;
	mapped[1] = 2;
	todo++;
	run cpu(1, 40, 1);
#endif
	todo++;
	run migrate();
#ifdef TWICE
	todo++;
	run migrate();
#endif
	todo++;
	run cpu(0, 20, WRITES);
#ifdef GUP
	todo++;
	if
#ifndef PINS
	:: run gup(0, 30)
#endif
	:: run gup(1, 30)
	fi;
#endif
#ifdef ZAP
	todo++;
	run zap();
#endif
#ifdef FORK
	todo++;
#ifdef EXCLUSIVE
	run fork(0, 1);
#else
	run fork(1, 2);
#endif
#endif
}

inline check_end()
{
	for (m : 0 .. NR_MM - 1) {
		assert(!IS_MOVING(m));
		assert(kind[m] != NONE || want[m] == 0);
		assert(!IS_MAPPED(m) || content[page[m]] == want[m])
	}
	for (p : 1 .. NR_PAGES) {
		assert(ref[p] == mapped[p] && pins[p] == 0 && !locked[p]);
		assert(mapped[p] == (IS_MAPPED(0) && page[0] == p) +
				    (IS_MAPPED(1) && page[1] == p) +
				    (IS_MAPPED(2) && page[2] == p))
	}
}

#define PTE_BAD(m)	((IS_MAPPED(m) && ref[page[m]] == 0) || \
			 (IS_MOVING(m) && !locked[page[m]]))
#define TLB_BAD(m)	(tlb[m] && ref[tlb[m]] == 0)
#define PAGE_BAD(p)	((moved[p] && held[p]) || (pinned[p] && mapped[p] && \
			 !exclusive[p]) || (exclusive[p] && mapped[p] > 1))

#define SOMETHING_BAD	(PTE_BAD(0) || PTE_BAD(1) || PTE_BAD(2) || \
			 TLB_BAD(0) || TLB_BAD(1) || TLB_BAD(2) || \
			 PAGE_BAD(1) || PAGE_BAD(2) || PAGE_BAD(3) || PAGE_BAD(4))

init {
	byte m, p;

	atomic { start() }
end:	atomic { todo == 0 -> check_end() }
}

active proctype monitor()
{
end:	atomic { SOMETHING_BAD -> assert(false) }
}
