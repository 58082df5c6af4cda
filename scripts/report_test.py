#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""The harness must fail where it should: one case for each way to go wrong.

Prints TAP. Boots nothing.
"""
import io
import os
import sys
import tempfile
import time
import unittest

import kcsan
import report
import stress
import vm

GOOD_TAP = """TAP version 13
1..3
# Starting 3 tests from 1 test cases.
#  RUN           hmm.one ...
#            OK  hmm.one
ok 1 hmm.one
ok 2 - hmm.two
ok 3 hmm.three
# PASSED: 3 / 3 tests passed.
# Totals: pass:3 fail:0 xfail:0 xpass:0 skip:0 error:0
"""

GOOD_KUNIT = """[    0.000000] Linux version 6.12.0
[    1.100000] KTAP version 1
[    1.100001] 1..2
[    1.100002]     KTAP version 1
[    1.100003]     # Subtest: mirror
[    1.100004]     # module: hmm
[    1.100005]     1..2
[    1.100006]     ok 1 aligned
[    1.100007]         KTAP version 1
[    1.100008]         # Subtest: need
[    1.100009]         ok 1 hole
[    1.100010]         ok 2 present
[    1.100011]     # need: pass:2 fail:0 skip:0 total:2
[    1.100012]     ok 2 need
[    1.100013] # mirror: pass:2 fail:0 skip:0 total:2
[    1.100014] ok 1 mirror
[    1.100015]     KTAP version 1
[    1.100016]     # Subtest: pgmap
[    1.100017]     1..1
[    1.100018]     ok 1 overlap
[    1.100019] ok 2 pgmap
[    1.200000] Run /init as init process
"""


def tap(text, name="step"):
    return report.parse_tap(text.split("\n"), report.Step(name))


def counts(step):
    return tuple(step.count(r) for r in (report.PASS, report.FAIL, report.SKIP))


def steps_log(body=GOOD_TAP, status=0, done="=== done\n"):
    return f"=== boot 6.12\n=== step t\n{body}\n=== end t status {status}\n{done}"


def machine(console="[ 0.1] fine\n", log=None, ended="", plan=(("t", "tap"),)):
    steps = report.judge_machine("m", console, log or steps_log(), list(plan), ended)
    return report.totals(steps)


class Tap(unittest.TestCase):
    def test_good(self):
        self.assertEqual(counts(tap(GOOD_TAP)), (3, 0, 0))

    def test_not_ok(self):
        self.assertEqual(counts(tap(GOOD_TAP.replace("ok 2", "not ok 2"))), (2, 1, 0))

    def test_skip_is_not_a_pass(self):
        step = tap(GOOD_TAP.replace("- hmm.two", "# SKIP no device"))
        self.assertEqual(counts(step), (2, 0, 1))
        self.assertEqual(step.cases[1].reason, "no device")

    def test_todo_and_xfail_say_ok(self):
        self.assertEqual(counts(tap("TAP version 13\n1..1\nok 1 a # XFAIL known\n")), (1, 0, 0))

    def test_timeout_is_a_failure(self):
        self.assertEqual(counts(tap("TAP version 13\n1..1\nok 1 a # TIMEOUT 45\n"))[1], 1)

    def test_no_plan(self):
        self.assertEqual(counts(tap(GOOD_TAP.replace("1..3\n", "")))[1], 1)

    def test_plan_not_met(self):
        self.assertEqual(counts(tap(GOOD_TAP.replace("1..3", "1..4")))[1], 1)

    def test_more_than_planned(self):
        self.assertEqual(counts(tap(GOOD_TAP.replace("1..3", "1..2")))[1], 1)

    def test_wrong_order(self):
        self.assertEqual(counts(tap(GOOD_TAP.replace("ok 3", "ok 7")))[1], 1)

    def test_bail_out(self):
        self.assertEqual(counts(tap(GOOD_TAP + "Bail out! no memory\n"))[1], 1)

    def test_nothing(self):
        self.assertEqual(counts(tap("hello\n")), (0, 1, 0))

    def test_empty_plan(self):
        self.assertEqual(counts(tap("TAP version 13\n1..0\n")), (0, 0, 0))
        self.assertTrue(tap("TAP version 13\n1..0\n").failed)

    def test_plan_of_skip(self):
        self.assertEqual(counts(tap("TAP version 13\n1..0 # SKIP no root\n")), (0, 0, 1))


class Kunit(unittest.TestCase):
    def kunit(self, text, suites=("mirror", "pgmap")):
        return counts(report.judge_kunit(text, suites))

    def test_good(self):
        self.assertEqual(self.kunit(GOOD_KUNIT), (4, 0, 0))

    def test_case_fails(self):
        bad = GOOD_KUNIT.replace("ok 2 present", "not ok 2 present").replace(
            "ok 2 need", "not ok 2 need").replace("ok 1 mirror", "not ok 1 mirror")
        self.assertEqual(self.kunit(bad), (3, 1, 0))

    def test_suite_fails_around_its_cases(self):
        self.assertEqual(self.kunit(GOOD_KUNIT.replace("ok 2 pgmap", "not ok 2 pgmap"))[1], 1)

    def test_suite_did_not_run(self):
        self.assertEqual(self.kunit(GOOD_KUNIT, ("mirror", "pgmap", "migrate"))[1], 1)

    def test_cut_off(self):
        cut = GOOD_KUNIT[:GOOD_KUNIT.index("[    1.100015]")]
        self.assertGreaterEqual(self.kunit(cut)[1], 1)

    def test_no_kunit(self):
        self.assertGreaterEqual(self.kunit("[ 0.1] Run /init as init process\n")[1], 1)

    def test_kernel_line_between(self):
        text = GOOD_KUNIT.replace("[    1.100006]", "[    1.1] pmem: hello\n[    1.100006]")
        self.assertEqual(self.kunit(text), (4, 0, 0))


class Machine(unittest.TestCase):
    def test_good(self):
        self.assertEqual(machine(), (5, 0, 0))

    def test_step_did_not_begin(self):
        self.assertEqual(machine(plan=(("t", "tap"), ("u", "tap")))[1], 1)

    def test_step_did_not_end(self):
        log = steps_log().replace("=== end t status 0\n", "")
        self.assertEqual(machine(log=log)[1], 1)

    def test_step_status(self):
        self.assertEqual(machine(log=steps_log(status=139))[1], 1)

    def test_plain_step(self):
        plan = (("t", "plain"),)
        self.assertEqual(machine(log=steps_log("x"), plan=plan), (3, 0, 0))
        self.assertEqual(machine(log=steps_log("x", 1), plan=plan)[1], 1)

    def test_ended_early(self):
        self.assertEqual(machine(log=steps_log(done=""))[1], 1)

    def test_hung_or_dead(self):
        self.assertEqual(machine(ended="hangs: silent for 180 s")[1], 1)

    def test_silent_console(self):
        self.assertEqual(machine(console="")[1], 1)

    def test_trouble_in_log(self):
        for line in TROUBLE_LINES:
            with self.subTest(line):
                self.assertEqual(machine(console=f"[    1.5] {line}\n")[1], 1)

    def test_no_trouble_in_log(self):
        for line in HARMLESS_LINES:
            with self.subTest(line):
                self.assertEqual(machine(console=f"[    1.5] {line}\n")[1], 0)

    def test_no_memory_is_expected_where_it_is_made_so(self):
        line = "[ 1.0] Huh VM_FAULT_OOM leaked out to the #PF handler. Retrying PF\n"
        for step, bad in (("failnth", 0), ("demo", 1)):
            log = f"[ 0.5] === step {step}\n{line}[ 2.0] === end {step} status 0\n"
            self.assertEqual(len(report.trouble(log)), bad, step)
        self.assertEqual(len(report.trouble("=== step failnth\nkernel BUG at x\n")), 1)


TROUBLE_LINES = (
    "WARNING: CPU: 1 PID: 77 at mm/memremap.c:12 memunmap_pages+0x1/0x2",
    "BUG: unable to handle page fault for address: ffff888000000000",
    "kernel BUG at include/linux/swapops.h:477!",
    "Oops: invalid opcode: 0000 [#1] PREEMPT SMP KASAN",
    "BUG: KASAN: slab-use-after-free in dmirror_fops_release+0x1/0x2",
    "BUG: KCSAN: data-race in a / b",
    "UBSAN: array-index-out-of-bounds in mm/hmm.c:10:3",
    "WARNING: possible circular locking dependency detected",
    "WARNING: inconsistent lock state",
    "WARNING: suspicious RCU usage",
    "WARNING: bad unlock balance detected!",
    "BUG: sleeping function called from invalid context at mm/memory.c:1",
    "BUG: scheduling while atomic: hmm-tests/77/0x00000002",
    "INFO: task hmm-tests:77 blocked for more than 60 seconds.",
    "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [hmm-tests:77]",
    "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
    "BUG: Bad page state in process hmm-tests  pfn:100",
    "BUG: Bad rss-counter state mm:00000000 type:MM_ANONPAGES val:1",
    "page_table_check: bad mapping",
    "BUG: workqueue lockup - pool cpus=0",
    "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
    "unreferenced object 0xffff888100000000 (size 64):",
    "BUG kmalloc-64 (Not tainted): Objects remaining in kmalloc-64",
    "refcount_t: underflow; use-after-free.",
    "list_del corruption. prev->next should be 1, but was 2",
    "ODEBUG: free active (active state 0) object: 0000 object type: work_struct",
    "Call Trace:",
    "general protection fault, probably for non-canonical address 0xdead",
    "Kernel panic - not syncing: Attempted to kill init!",
    "dmirror: 2 pages leaked",
    "hmm-tests[77]: segfault at 0 ip 0000000000401000 sp 00007ffc0 error 4",
    "Out of memory: Killed process 77 (hmm-tests)",
    "DMAR: [DMA Read NO_PASID] Request device [00:03.0] fault addr 0x1000 [fault reason 0x06] "
    "PTE Read access is not set",
    "DMAR: DRHD: handling fault status reg 2",
    "DMA-API: test_hmm_dma 0000:00:03.0: device driver has pending DMA allocations while released",
)

HARMLESS_LINES = (
    "kasan: KernelAddressSanitizer initialized",
    "Linux version 6.12.117-hmm (hmm@hmm) #1 SMP",
    "HMM test module loaded. This is only for testing HMM.",
    "rcu: Hierarchical RCU implementation.",
    "debug: debug_objects selftest passed",
    "Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar",
    "NMI watchdog: Perf NMI watchdog permanently disabled",
    "test_hmm: loading out-of-tree module taints kernel.",
    "DMAR: IOMMU enabled",
    "DMA-API: debugging enabled by kernel config",
)


class Output(unittest.TestCase):
    def steps(self, log):
        return report.judge_machine("m", "[ 0.1] x\n", log, [("t", "tap")], "")

    def test_closing_line(self):
        self.assertEqual(report.closing_line(self.steps(steps_log())),
                         "5 passed, 0 failed, 0 skipped")

    def test_own_output_parses_to_the_same(self):
        log = steps_log(GOOD_TAP.replace("ok 2", "not ok 2").replace(
            "hmm.three", "# SKIP why"), 1)
        steps = self.steps(log)
        out = io.StringIO()
        report.print_ktap(steps, out)
        again = tap(out.getvalue())
        self.assertEqual(counts(again), report.totals(steps))


class FakeQemu(unittest.TestCase):
    """The runner against machines that misbehave."""
    def poll(self, body, limit=20, silence=20):
        with tempfile.TemporaryDirectory() as d:
            fake = os.path.join(d, "qemu-system-x86_64")
            with open(fake, "w", encoding="utf-8") as f:
                f.write(f"#!/bin/sh\n{body}\n")
            os.chmod(fake, 0o755)
            initrd = os.path.join(d, "base")
            open(initrd, "w", encoding="utf-8").close()
            path = os.environ["PATH"]
            os.environ["PATH"] = f"{d}:{path}"
            try:
                class args:
                    smp, mem, numa, board, image, append = 1, 64, False, "", "none", ""
                args.initrd = initrd
                box = vm.Machine(args, os.path.join(d, "logs"), steps=[])
                while box.poll(limit, silence) is None:
                    time.sleep(0.01)
                with self.assertRaises(ProcessLookupError):
                    os.kill(box.qemu.pid, 0)
                return box.ended
            finally:
                os.environ["PATH"] = path

    def test_ends(self):
        self.assertEqual(self.poll("exit 0"), "")

    def test_dies(self):
        self.assertIn("status 3", self.poll("echo cannot >&2; exit 3"))

    def test_killed(self):
        self.assertIn("status -9", self.poll("kill -9 $$"))

    def test_hangs(self):
        self.assertIn("silent", self.poll("exec sleep 60", silence=0.3))

    def test_too_long(self):
        self.assertIn("within", self.poll("exec sleep 60", limit=0.3))


RACES = """[    1.0] === step movers
[    2.0] ==================================================================
[    2.1] BUG: KCSAN: data-race in collect_pte.isra.0 / folio_add_lru+0x1/0x2
[    2.2]
[    2.3] write to 0xffff888100000000 of 8 bytes by task 100 on cpu 0:
[    2.4]  collect_pte+0x10/0x20
[    2.5] ==================================================================
[    3.0] a line of somebody else
[    4.0] ==================================================================
[    4.1] BUG: KCSAN: data-race in do_madvise / zap_pte_range
[    4.2] ==================================================================
[    5.0] BUG: KCSAN: data-race in dmirror_open [test_hmm]
[    6.0] === step next
"""
OURS = {"collect_pte", "dmirror_open"}


class Races(unittest.TestCase):
    def judge(self, ignored=None, ours=None):
        return kcsan.judge(RACES, OURS if ours is None else ours, ignored or {})

    def test_ours_alone_count(self):
        _, bad, _, others = self.judge()
        self.assertEqual([r.title for r in bad],
                         ["collect_pte / folio_add_lru", "dmirror_open"])
        self.assertEqual([r.title for r in others], ["do_madvise / zap_pte_range"])

    def test_one_side_known_is_not_enough(self):
        known = {frozenset(("collect_pte", "folio_put")): "no reason"}
        self.assertEqual(len(self.judge(known)[1]), 2)

    def test_known(self):
        known = {frozenset(("folio_add_lru", "collect_pte")): "a hint"}
        self.assertEqual(len(self.judge(known)[1]), 1)

    def test_the_rest_is_still_judged(self):
        rest = self.judge()[0]
        self.assertEqual(report.trouble(rest), [])
        self.assertIn("somebody else", rest)
        self.assertEqual(report.trouble(kcsan.judge(
            RACES + "WARNING: CPU: 0\n", OURS, {})[0]), ["WARNING: CPU: 0"])

    def test_step(self):
        self.assertEqual(self.judge()[1][0].step, "movers")

    def test_ignored_needs_a_reason(self):
        with tempfile.NamedTemporaryFile("w", suffix=".ignore") as f:
            f.write("a / b\n")
            f.flush()
            with self.assertRaises(ValueError):
                kcsan.read_ignored(f.name)


class Stress(unittest.TestCase):
    LOG = """=== step movers
# stress: scenario=movers seed=7 seconds=1.0 rounds=12 failures=1
# stress: scenario=movers ops=100 busy=0 pages=0 kb=2048
# stress: scenario=movers longest=0.25 slowest=to the device
# movers: CPU: page 3 of 9
not ok 1 movers
"""

    def test_numbers(self):
        found = stress.numbers_in(self.LOG)["movers"]
        self.assertEqual(found["why"], "CPU: page 3 of 9")
        self.assertEqual(found["slowest"], "to the device")
        self.assertEqual(stress.cells(found), ["12", "1", "0.25", "0", "2"])

    def test_nothing_printed(self):
        self.assertEqual(stress.cells(None), ["-"] * 5)

    def test_trouble_has_its_step(self):
        log = "=== step a\n=== step b\nWARNING: CPU: 1\nWARNING: CPU: 2\n"
        self.assertEqual(stress.trouble_by_step(log), {"b": "WARNING: CPU: 1"})


class TapResult(unittest.TestResult):
    """One TAP line per test, and why below those that failed."""
    def __init__(self):
        super().__init__()
        self.wrong = ""

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.wrong += self.failures[-1][1]

    def addError(self, test, err):
        super().addError(test, err)
        self.wrong += self.errors[-1][1]

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err:
            self.wrong += f"{subtest}: {err[1]}\n"

    def startTest(self, test):
        super().startTest(test)
        self.wrong = ""

    def stopTest(self, test):
        super().stopTest(test)
        name = f"{type(test).__name__}.{test._testMethodName}"
        print("not ok" if self.wrong else "ok", self.testsRun, name)
        for line in self.wrong.splitlines():
            print("#", line)


def main():
    tests = unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"])
    print("TAP version 13")
    print(f"1..{tests.countTestCases()}")
    return 0 if tests.run(TapResult()).wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
