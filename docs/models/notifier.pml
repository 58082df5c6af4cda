/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The interval notifier, a driver that mirrors one address, and invalidations of it.
 *
 *	mm/mmu_notifier.c	mmu_interval_read_begin(), _read_retry(), insert and
 *				remove; invalidate_range_start() and _end()
 *	lib/test_hmm.c		dmirror_ask_and_lock(), dmirror_invalidate(), the use
 *				of an entry under the device's lock
 *	mm/hmm.c		the walk, with a fault where nothing is mapped
 *
 * Property: the device never uses a page after its invalidation returned. An entry
 * of the device's page table is the PTE as it is now, whenever the device's lock is
 * free; and after _remove() no callback runs.
 *
 * A section under a spinlock is one step. What is read without a lock is a step of
 * its own.
 *
 * RUN
 * RUN -DNR_INV=3 -DNR_DEV=1
 *
 * Variants that are wrong on purpose, each of which has to fail:
 *
 *	BROKEN_NO_RETRY		the entry is stored without mmu_interval_read_retry()
 *	BROKEN_RETRY_UNLOCKED	it is asked before the device's lock is taken
 *	BROKEN_NO_SET_SEQ	the callback erases, without mmu_interval_set_seq()
 *	BROKEN_NO_LOCK		the callback does not take the device's lock
 *	BROKEN_LATE_BEGIN	the walk comes before mmu_interval_read_begin()
 *	BROKEN_NO_WAIT		read_begin() does not wait for an invalidation
 *	BROKEN_EARLY_CHANGE	the PTE changes before invalidate_range_start()
 *	BROKEN_FIRST_END	the first of two invalidate_range_end() ends both
 *	BROKEN_INSERT		insert takes a running invalidation for none
 *	BROKEN_REMOVE		remove does not wait for a running invalidation
 */
#define TRIES		2

#ifndef NR_INV
#define NR_INV		2
#endif
#ifndef NR_DEV
#define NR_DEV		2
#endif

/* The address space: what is mapped, 0 for nothing, and how often that changed. */
byte pte;
byte gen;
bool used[NR_INV + 2];	/* a page for each that takes one away, and 0 */

/* struct mmu_notifier_subscriptions */
byte seq = 2;
byte nr_active;
bool in_tree, to_insert, to_remove;
bool others;		/* in the tree: notifiers of other drivers */

/* struct mmu_interval_notifier, and the driver around it */
byte sub_seq;
bool locked;
byte entry, entry_gen;
bool closing;		/* no ioctl runs, so nobody uses an entry */
bool gone;		/* after remove: the memory is free */
byte callbacks;		/* that run */
byte done, ended;	/* devices, invalidations */

inline lock_device()	{ atomic { !locked; locked = true } }
inline unlock_device()	{ locked = false }

#define ENTRY_IS_TRUE	(entry == 0 || closing || (entry == pte && entry_gen == gen && used[entry]))

/* A page for nothing: no invalidation, as nobody can know of what was not there. */
inline fault()
{
	atomic {
		if
		:: pte == 0 ->
			do
			:: used[pte] -> pte++
			:: else -> break
			od;
			used[pte] = true;
			gen++
		:: else
		fi
	}
}

/* Takes the page away, or puts another one there; the old one is free then. */
inline change_pte()
{
	atomic {
		old = pte;
		pte = 0;
		gen++;
		if
		:: true
		:: fault()
		fi
	}
	if
	:: old != 0 -> used[old] = false
	:: else
	fi
}

inline callback()
{
	callbacks++;
	assert(!gone);
#ifndef BROKEN_NO_LOCK
	lock_device();
#endif
#ifndef BROKEN_NO_SET_SEQ
	sub_seq = cur;
#endif
	entry = 0;
#ifndef BROKEN_NO_LOCK
	assert(ENTRY_IS_TRUE);
	unlock_device();
#endif
	callbacks--
}

proctype invalidate()
{
	byte cur, old;
	bool found;

#ifdef BROKEN_EARLY_CHANGE
	change_pte();
#endif
	atomic {
		nr_active++;
		found = in_tree;
		if
		:: in_tree || others -> seq = seq | 1
		:: else
		fi;
		cur = seq
	}
	if
	:: found -> callback()
	:: else
	fi;
#ifndef BROKEN_EARLY_CHANGE
	change_pte();
#endif
	atomic {
		nr_active--;
		if
#ifdef BROKEN_FIRST_END
		:: seq & 1 ->
#else
		:: nr_active == 0 && (seq & 1) ->
#endif
			seq++;
			if
			:: to_insert -> in_tree = true; to_insert = false
			:: else
			fi;
			if
			:: to_remove -> in_tree = false; to_remove = false
			:: else
			fi
		:: else
		fi
	}
	ended++
}

inline read_begin()
{
	atomic {
		my_seq = sub_seq;
		wait = (my_seq == seq)
	}
#ifndef BROKEN_NO_WAIT
	if
	:: wait -> (seq != my_seq)
	:: else
	fi
#endif
}

inline walk()
{
	fault();
	atomic { page = pte; page_gen = gen }
}

proctype device()
{
	byte my_seq, page, page_gen, tries;
	bool wait, collided;

	do
	:: tries == TRIES -> break
	:: tries < TRIES ->
		tries++;
#ifdef BROKEN_LATE_BEGIN
		walk();
		read_begin();
#else
		read_begin();
		walk();
#endif
		if
		:: page == 0 -> goto again
		:: else
		fi;
#ifdef BROKEN_RETRY_UNLOCKED
		collided = (sub_seq != my_seq);
		lock_device();
#else
		lock_device();
		collided = (sub_seq != my_seq);
#endif
#ifdef BROKEN_NO_RETRY
		collided = false;
#endif
		if
		:: collided -> unlock_device(); goto again
		:: else
		fi;
		atomic { entry = page; entry_gen = page_gen }
		unlock_device();

		/* Whenever it likes: use what the device has. */
		lock_device();
		assert(ENTRY_IS_TRUE);
		unlock_device();
		break;
again:		skip
	od;
	done++
}

inline insert()
{
	atomic {
		if
#ifndef BROKEN_INSERT
		:: nr_active > 0 ->
			if
			:: seq & 1 -> to_insert = true
			:: else -> seq = seq | 1; in_tree = true
			fi;
			sub_seq = seq
#endif
		:: else -> sub_seq = seq - 1; in_tree = true
		fi
	}
}

inline remove()
{
	atomic {
		wait = false;
		if
		:: seq & 1 ->
			if
			:: to_insert -> to_insert = false
			:: else -> to_remove = true; wait = true
			fi;
			my_seq = seq
		:: else -> assert(in_tree); in_tree = false
		fi
	}
#ifndef BROKEN_REMOVE
	if
	:: wait -> (seq != my_seq)
	:: else
	fi
#endif
}

init {
	byte i, my_seq;
	bool wait;

	if
	:: others = true
	:: others = false
	fi;
	atomic {
		used[0] = true;
		pte = 1;
		used[1] = true;
		for (i : 1 .. NR_INV) {
			run invalidate()
		}
	}
	insert();
	/* The file is closed when no ioctl runs on it; invalidations may. */
	if
	:: true
	:: atomic {
		for (i : 1 .. NR_DEV) {
			run device()
		}
	   }
	   (done == NR_DEV)
	fi;
	closing = true;
	remove();
	gone = true;
	assert(callbacks == 0);
	(ended == NR_INV);
	assert(nr_active == 0 && !(seq & 1) && !in_tree)
}

/* At all times, for whoever could take the lock now. */
active proctype monitor()
{
end:	atomic { !locked && !ENTRY_IS_TRUE -> assert(false) }
}
