#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Run the tests of the host, boot machines and run theirs, say what came of it.

Prints one KTAP document, a table, and last "N passed, N failed, N skipped".
Exit status 0 only if nothing failed and nothing was skipped.
"""
import argparse
import glob
import os
import re
import signal
import subprocess
import sys
import time

import report
import vm

GROUPS = ("host", "kunit", "selftest", "peer")
THP_MODES = ("always", "madvise", "never")
# hmm_dax and hmm_dma have machines of their own, hmm_dmirror_failnth a kernel.
NOT_TESTS = {"hmm_dax", "hmm_demo", "hmm_dma", "hmm_dmirror_failnth"}

# With all checks, in an emulator, on a busy host, the usual limits are too short.
PATIENCE = ["watchdog_thresh=60", "workqueue.watchdog_thresh=120"]

# These make the folios that they need, or need none; the mode changes little.
MODES_OF = {
    "hmm_dmirror_mirror": ("madvise",),
    "hmm_dmirror_large": ("always",),
    "hmm_dmirror_random": ("madvise",),
    "hmm_dmirror_fuzz": ("always",),
    "hmm_dmirror_security": ("always",),
    "hmm_dmirror_stress": ("madvise",),
}


def suites_in(tree, folder):
    """Names of the KUnit suites in the source: all of them must run."""
    names = []
    for path in sorted(glob.glob(os.path.join(tree, folder, "*_test.c"))):
        with open(path, encoding="utf-8") as f:
            for body in re.findall(r"struct kunit_suite \w+ = \{(.*?)\n\};", f.read(), re.S):
                names += re.findall(r"\.name\s*= \"([^\"]+)\"", body)
    return names


class Plan:
    """What one machine is to do."""
    def __init__(self, name, steps=(), suites=None, numa=False):
        self.name, self.steps, self.suites, self.numa = name, list(steps), suites, numa
        self.board = ""         # devices that the plain machine does not have
        self.owners = False     # keep who allocated each page: slow, debug kernel only
        self.boot = []          # more for the boot line


def board_plan(board, load, programs):
    """Programs that want devices which are there."""
    steps = [(f"{board}-load", "plain", f"dmirror load && modprobe {load}")]
    steps += [(f"{board}-{name}", "tap", command) for name, command in programs]
    steps.append((f"{board}-unload", "plain", "rmmod test_hmm_dma && dmirror unload"))
    plan = Plan(board, steps)
    plan.board = board
    return plan


def board_plans():
    """An IOMMU; persistent memory, and memory of a device beside another one."""
    yield board_plan("dma", "test_hmm_dma", [("edu", "hmm_dma -F p2p")])
    yield board_plan("bus", "test_hmm_dma addr_bits=48 && pmem up",
                     [("dax", "hmm_dax"), ("p2p", "hmm_dma -f p2p")])


def driver_plan(name, load, programs, modes=THP_MODES):
    """Programs in THP modes, with the driver that load loads."""
    steps = [(f"{name}-load", "plain", load)]
    for mode in modes:
        for program in programs:
            if mode not in MODES_OF.get(program, THP_MODES):
                continue
            label = name if len(modes) == 1 else f"{name}-{mode}"
            if len(programs) > 1:
                label += f"-{program}"
            steps.append((label, "tap", f"dmirror thp {mode} && cd /tmp && {program}"))
    steps.append((f"{name}-unload", "plain", "dmirror unload"))
    return Plan(name, steps)


HERE = os.path.dirname(os.path.abspath(__file__))

# What needs no machine: (name, command) that prints TAP.
HOST_STEPS = (
    ("harness", (sys.executable, "-B", os.path.join(HERE, "report_test.py"))),
    ("syzkaller", (sys.executable, "-B", os.path.join(HERE, "syz_test.py"))),
    ("licence", (os.path.join(HERE, "licence", "test"),)),
)
HOST_LIMIT = 300


def make_plans(args):
    """What to run, longest first."""
    built = {os.path.basename(p) for p in glob.glob(os.path.join(args.out, "bin", "*"))}
    own = sorted(p for p in built if p.startswith("hmm_") and p not in NOT_TESTS)
    wanted = set(args.groups or GROUPS)
    plans = []
    if "selftest" in wanted:
        for mode in THP_MODES:
            plan = driver_plan(f"selftest-{mode}", "dmirror load", own, [mode])
            plan.numa = True
            plans.append(plan)
        plans[0].steps.insert(-1, ("demo", "plain", "hmm_demo 16"))
        if args.kernel == "debug":
            plans.append(driver_plan("failnth", "dmirror load", ["hmm_dmirror_failnth -t 2"],
                                     ["madvise"]))
    if "kunit" in wanted:
        plan = Plan("kunit", suites=suites_in(args.tree, "mm/tests"))
        nouveau = " ".join(suites_in(args.tree, "drivers/gpu/drm/nouveau"))
        plan.steps.append(("kunit-nouveau", "tap", f"kunit_module nouveau {nouveau}"))
        plans.append(plan)
    if "peer" in wanted:
        plans.append(driver_plan("peer", "dmirror load", ["hmm-tests"]))
        plans[-1].owners = True
        if args.kernel != "stock":
            plan = driver_plan("peer-driver", "dmirror load peer", ["hmm-tests"])
            # Last, because the kernel is tainted by it, and ends lock debugging.
            plan.steps.append(("licence-insmod", "tap", "licence_insmod"))
            plans.append(plan)
    if "selftest" in wanted:
        plans += board_plans()
    return plans


class HostPlan:
    """What runs here."""
    def __init__(self, name, command):
        self.name, self.command = name, command


class HostRun:
    """It at work, and judged like what ran in a machine."""
    def __init__(self, plan, args):
        self.plan, self.now = plan, plan.name
        os.makedirs(args.logs, exist_ok=True)
        self.path = os.path.join(args.logs, f"{plan.name}.log")
        self.began = time.monotonic()
        with open(self.path, "wb") as log:
            self.process = subprocess.Popen(
                plan.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, env={**os.environ, "FLAVOUR": args.kernel})

    def poll(self):
        return (self.process.poll() is not None or
                time.monotonic() - self.began > HOST_LIMIT)

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def judge(self):
        status, name = self.process.poll(), self.plan.name
        self.kill()
        lines = report.read(self.path).split("\n")
        step = report.judge_step(name, "tap", {name: (lines, status)})
        step.seconds = time.monotonic() - self.began
        sys.stderr.write(f"{CLEAR}    [host] {name}: {step.seconds:.1f} s, status {status}\n")
        return [step]


class Run:
    """A machine at work on its plan."""
    def __init__(self, plan, args):
        self.plan, self.args = plan, args
        self.logs = os.path.join(args.logs, plan.name)
        args.numa, args.board = plan.numa, plan.board
        owners = ["page_owner=on"] if plan.owners else []
        kunit = "kunit.enable=1" if plan.suites is not None else "kunit.enable=0"
        self.vm = vm.Machine(args, self.logs, cmdline=[kunit, *args.more, *plan.boot, *owners],
                             steps=[(n, c) for n, _, c in plan.steps])
        self.now, self.times, self.seen = "boot", {}, 0
        self.mark = self.vm.began

    def poll(self):
        """True when over; keeps track of the step it is in."""
        over = self.vm.poll(self.args.limit, self.args.silence) is not None
        with open(self.vm.steps, encoding="utf-8", errors="replace") as f:
            f.seek(self.seen)
            text = f.read()
        complete = text.rfind("\n") + 1
        self.seen += len(text[:complete].encode("utf-8", "replace"))
        now = time.monotonic()
        for line in text[:complete].split("\n"):
            begin = re.match(r"=== step (\S+)", line)
            end = re.match(r"=== end (\S+) status (\d+)", line)
            if begin:
                self.now, self.mark = begin.group(1), now
            elif end:
                self.times[end.group(1)] = now - self.mark
                self.note(f"{end.group(1)}: {now - self.mark:.1f} s, status {end.group(2)}")
        return over

    def note(self, text):
        sys.stderr.write(f"{CLEAR}    [{self.plan.name}] {text}\n")

    def judge(self):
        steps = report.judge_machine(
            self.plan.name, report.read(self.vm.console), report.read(self.vm.steps),
            [(n, k) for n, k, _ in self.plan.steps], self.vm.ended, self.plan.suites)
        for step in steps:
            step.seconds = self.times.get(step.name, 0)
        steps[-1].seconds = self.vm.seconds
        if self.vm.ended:
            self.note(self.vm.ended)
        return steps

    def kill(self):
        self.vm.kill()


def begin(plan, args):
    return (HostRun if isinstance(plan, HostPlan) else Run)(plan, args)


CLEAR = "\r\x1b[K" if sys.stderr.isatty() else ""


def run_all(plans, args, start=begin):
    """All of them, a few at a time; their steps in the order of the plans."""
    waiting, running, results = list(plans), [], {}
    began = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < args.jobs:
                plan = waiting.pop(0)
                running.append(start(plan, args))
            for run in list(running):
                if run.poll():
                    running.remove(run)
                    results[run.plan.name] = run.judge()
            if CLEAR:
                at = ", ".join(f"{r.plan.name}: {r.now}" for r in running)
                sys.stderr.write(f"{CLEAR}    {time.monotonic() - began:.0f} s  {at}")
                sys.stderr.flush()
            time.sleep(0.1)
    finally:
        for run in running:
            run.kill()
        sys.stderr.write(CLEAR)
    return [step for plan in plans for step in results[plan.name]]


def main():
    ap = argparse.ArgumentParser()
    vm.arguments(ap)
    ap.add_argument("--tree", required=True, help="kernel source")
    ap.add_argument("--out", required=True, help="build folder")
    ap.add_argument("--kernel", default="test", help="test, debug or stock")
    ap.add_argument("--jobs", type=int, help="machines at a time")
    ap.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}; default: all")
    args = ap.parse_args()
    vm.stop_on_signals()

    slow = 6 if args.kernel == "debug" else 1
    args.limit, args.silence = 900 * slow, 180 * slow
    args.more = PATIENCE if args.kernel == "debug" else []
    # While one waits another one can work, if time is not short as it is.
    args.jobs = args.jobs or (os.cpu_count() or 1) + (args.kernel != "debug")

    plans = make_plans(args)
    if "host" in (args.groups or GROUPS):
        plans += [HostPlan(name, command) for name, command in HOST_STEPS]
    sys.stderr.write(f">>> testing the {args.kernel} kernel: "
                     f"{', '.join(p.name for p in plans)}\n")
    steps = run_all(plans, args)
    sys.stdout.flush()
    report.print_ktap(steps, sys.stdout)
    report.print_summary(steps, sys.stdout)
    return report.finish(steps, args.logs)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
