/* SPDX-License-Identifier: GPL-2.0 */
/*
 * CPUs touch a page in private memory of a device, all at once.
 *
 *	mm/migrate_device_map.c	device_private_fault(), wait_for_other_fault()
 *	mm/migrate_device*.c	the migration that migrate_to_ram() makes of it, and
 *				migrate_device_range(), which finds the page by pfn
 *
 * against each other, against a driver that empties its memory, and against zap.
 *
 * Properties
 *
 *	progress	each thread gets to its page in a bounded number of faults: one
 *			to wait, one to find it there, one more for each time that the
 *			driver was in the way
 *	data		what a CPU finds is what was on the device, or nothing after zap
 *	refs		the page has a reference while an entry leads to it; it is freed
 *			once, and nobody waits at a page that is gone for ever
 *
 * One process, one page. A reference that is about to go, between an unlock and a put,
 * or a get and a trylock that fails, makes others try once more. That is left out: it
 * lasts for a few instructions, and who fails for it comes back.
 *
 * RUN -DFAULTS=4
 * RUN -DFAULTS=3 -DEVICT -DZAP
 * RUN -DFAULTS=4 -DEVICT
 * RUN -DFAULTS=3 -DEVICT -DFAIL
 *
 * FAIL: the first copy fails, and the page stays.
 *
 * Variants that are wrong on purpose, each of which has to fail:
 *
 *	BROKEN_WAIT_WITH_REF -DFAULTS=2
 *		who waits holds a reference: it looks like a pin to the one who migrates
 *	BROKEN_LATE_REF -DFAULTS=1 -DEVICT -DZAP
 *		the first thread takes its reference after the page-table lock is free
 *	BROKEN_NO_COUNT -DFAULTS=1
 *		the reference of the fault itself is taken for a pin
 *	BROKEN_NO_LOCK -DFAULTS=2
 *		a fault does not take the folio lock
 */
#ifndef FAULTS
#define FAULTS		2
#endif

#ifdef FAIL
#define MAX_TRIES	4
#elif defined(EVICT)
#define MAX_TRIES	3
#else
#define MAX_TRIES	2
#endif

#define DATA		7

mtype = { NONE, DEVICE, MOVING, RAM };

mtype kind = DEVICE;
bool ptl;

/* The page of the device, and what the RAM that it moves to has in it. */
byte ref = 1;
byte mapped = 1;
bool locked;
byte freed;
byte ram;
bool zapped;
#ifdef FAIL
bool fails = true;
#else
bool fails;
#endif

byte todo;

inline lock_ptl()	{ atomic { !ptl; ptl = true } }
inline unlock_ptl()	{ ptl = false }

inline put()
{
	atomic {
		assert(ref > 0);
		ref--;
		if
		:: ref == 0 -> assert(mapped == 0); freed++
		:: else
		fi
	}
}

/* The locked page goes to RAM if it has no more than @known references. */
inline migrate(known)
{
	lock_ptl();
	if
	:: kind == DEVICE ->
		/* The reference of the mapping is the migration's now. */
		atomic { kind = MOVING; mapped-- }
		mine = true
	:: else
	fi;
	unlock_ptl();
	moves = mine && ref <= known;
	if
	:: moves && !fails -> ram = DATA
	:: moves && fails -> fails = false; moves = false
	:: else
	fi;
	moves = moves && ref <= known;
	lock_ptl();
	atomic {
		if
		:: kind == MOVING && moves -> kind = RAM
		:: kind == MOVING && mine && !moves -> kind = DEVICE; mapped++; ref++
		:: else
		fi
	}
	unlock_ptl()
}

inline let_go()
{
	atomic {
		locked = false;
		if
		:: mine -> put()
		:: else
		fi;
		put()
	}
}

proctype fault()
{
	byte tries;
	bool mine, moves;

	do
	:: true ->
		tries++;
		assert(tries <= MAX_TRIES);
		mine = false;
		lock_ptl();
		if
		:: kind == NONE -> assert(zapped); unlock_ptl(); break
		:: kind == RAM -> assert(ram == DATA); unlock_ptl(); break
		:: kind == MOVING ->
			unlock_ptl();
			!locked
#ifdef BROKEN_NO_LOCK
		:: kind == DEVICE ->
#else
		:: kind == DEVICE && locked ->
#ifdef BROKEN_WAIT_WITH_REF
			ref++;
			unlock_ptl();
			!locked;
			put()
#else
			unlock_ptl();
			!locked
#endif
		:: atomic { kind == DEVICE && !locked -> locked = true }
#endif
#ifdef BROKEN_LATE_REF
			unlock_ptl();
			assert(!freed);
			ref++;
#else
			ref++;
			unlock_ptl();
#endif
#ifdef BROKEN_NO_COUNT
			migrate(1);
#else
			migrate(2);
#endif
			let_go()
		fi
	od;
	todo--
}

/* By pfn: a reference first, if there is one to be had, then the lock. */
proctype evict()
{
	bool mine, moves, got;

	atomic {
		got = (ref > 0 && !locked);
		if
		:: got -> ref++; locked = true
		:: else -> goto out
		fi
	}
	migrate(2);
	let_go();
out:	todo--
}

proctype zap()
{
	bool last;

	lock_ptl();
	atomic {
		last = (kind == DEVICE);
		mapped = mapped - last;
		kind = NONE;
		zapped = true
	}
	unlock_ptl();
	if
	:: last -> put()
	:: else
	fi;
	todo--
}

init {
	byte i;

	atomic {
		for (i : 1 .. FAULTS) {
			todo++;
			run fault()
		}
#ifdef EVICT
		todo++;
		run evict();
#endif
#ifdef ZAP
		todo++;
		run zap();
#endif
	}
end:	atomic {
		todo == 0;
		assert(freed == 1 && ref == 0 && mapped == 0 && !locked);
		assert(kind == (zapped -> NONE : RAM))
	}
}

active proctype monitor()
{
end:	atomic {
		(kind == DEVICE && (freed || mapped != 1)) ||
		(kind == MOVING && (!locked || freed)) || freed > 1 -> assert(false)
	}
}
