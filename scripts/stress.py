#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Boot kernels that check a lot, and let many things happen at once in them.

Each kernel runs with the models of preemption that it has, all scenarios of
hmm_dmirror_stress one after the other; the base's kernel runs each in a machine
of its own, as few are good for anything afterwards. Prints a table, for each
failure the command that repeats it, and last "N passed, N failed, N skipped".
Exit status 0 only if nothing of ours failed and nothing was skipped.
"""
import argparse
import math
import os
import re
import subprocess
import sys

import kcsan
import report
import run_tests
import vm

HERE = os.path.dirname(os.path.abspath(__file__))
IGNORED = os.path.join(HERE, "..", "configs", "kcsan.ignore")
PROGRAM, FAILNTH = "hmm_dmirror_stress", "hmm_dmirror_failnth"
MODELS = ("none", "full")
# What a machine may need beyond its time, and how long it may say nothing.
EXTRA, SILENCE, STOCK_EXTRA = 3600, 400, 240


class Kernel:
    """What is built, and how it is run."""
    def __init__(self, text):
        self.name, self.image, self.initrd, self.out = text.split(",")
        self.stock = self.name == "stock"
        self.races = self.name == "kcsan"
        self.fails = self.name == "debug"
        # Checks, 64 threads and an emulator: seconds for one call
        self.wait = 120 if self.races or self.fails else 30
        self.models = MODELS if self.has("CONFIG_PREEMPT_DYNAMIC") else ("",)

    def has(self, option):
        with open(os.path.join(self.out, ".config"), encoding="utf-8") as f:
            return f"{option}=y\n" in f

    def objects(self):
        """Our object files, for the names of our functions."""
        source = os.path.join(HERE, "..", "mm")
        names = [f[:-2] + ".o" for f in os.listdir(source) if f.endswith(".c")]
        paths = [os.path.join(self.out, "mm", n) for n in names]
        paths.append(os.path.join(self.out, "lib", "test_hmm.o"))
        return [p for p in paths if os.path.exists(p)]


def listed(kernel, program):
    """Names that the program prints with -l."""
    out = subprocess.run([os.path.join(kernel.out, "bin", program), "-l"],
                         stdout=subprocess.PIPE, check=True, text=True)
    return [line.split()[0] for line in out.stdout.splitlines()]


class StressRun(run_tests.Run):
    """A machine; what it says about races is read before the rest."""
    def judge(self):
        plan, kernel = self.plan, self.plan.kernel
        console, bad = report.read(self.vm.console), []
        if kernel.races:
            console, bad, known, others = kcsan.judge(
                console, kcsan.functions_in(kernel.objects()), kcsan.read_ignored(IGNORED))
            self.note(f"data races: {len(bad)} of ours, {len(known)} known, "
                      f"{len(others)} elsewhere")
        steps_log = report.read(self.vm.steps)
        steps = report.judge_machine(plan.name, console, steps_log,
                                     [(n, k) for n, k, _ in plan.steps], self.vm.ended)
        if self.vm.ended:
            self.note(self.vm.ended)
        if kernel.races:
            steps.append(races_step(plan.name, bad, console))
        plan.ended, plan.numbers = self.vm.ended, numbers_in(steps_log)
        plan.trouble = trouble_by_step(console)
        for race in bad:
            plan.trouble.setdefault(race.step, race.lines[0])
        plan.failed = {s.name for s in steps if s.failed} | set(plan.trouble)
        for step in steps[:len(plan.steps)]:
            step.seconds = self.times.get(step.name, 0)
            step.name = f"{plan.name}-{step.name}"
        return steps


def races_step(name, bad, console):
    step = report.Step(f"{name}-races")
    if "kcsan: enabled" not in console:
        step.add(f"{name}: KCSAN", report.FAIL, "is not on")
    for race in bad:
        step.add(race.title, report.FAIL, "data race, see console.log")
    if not bad:
        step.add(f"{name}: no data race of ours", report.PASS)
    return step


def trouble_by_step(console):
    """{step: first bad line of the kernel's log in it}"""
    found = {}
    for step, line in report.trouble_by_step(console):
        found.setdefault(step, line.strip())
    return found


def numbers_in(steps_log):
    """{scenario: {"rounds": "12", ...}}, and why it failed under "why"."""
    found = {}
    for line in steps_log.replace("\r", "").split("\n"):
        line = line.strip()
        if line.startswith("# stress: "):
            pairs = dict(re.findall(r"(\w+)=(.*?)(?= \w+=|$)", line[10:]))
            found.setdefault(pairs["scenario"], {}).update(pairs)
        else:
            why = re.match(r"# (\w+): (.*)$", line)
            if why and why.group(1) in found:
                found[why.group(1)].setdefault("why", why.group(2))
    return found


def plan_for(kernel, args, scenarios, model=""):
    """All scenarios in one machine; or one of them, for the base's kernel."""
    share = args.time / len(args.scenarios)
    name = "-".join(filter(None, (kernel.name, model)))
    if kernel.stock:
        name += f"-{scenarios[0]}"
    steps = [("load", "plain", "dmirror load && dmirror thp madvise")]
    for s in scenarios:
        steps.append((s, "tap", f"{PROGRAM} -s {args.seed} -t {share:.1f} -w {kernel.wait} {s}"))
    if kernel.fails and not args.scenario:
        each = args.time / len(listed(kernel, FAILNTH))
        steps.append(("failnth", "tap", f"{FAILNTH} -s {args.seed} -t {each:.1f}"))
    if not kernel.stock:
        steps.append(("unload", "plain", "dmirror unload"))
    plan = run_tests.Plan(name, steps, numa=True)
    plan.kernel, plan.model = kernel, model
    plan.boot = [f"preempt={model}"] if model else []
    return plan


def plans_for(kernel, args):
    if kernel.stock:
        return [plan_for(kernel, args, [s]) for s in args.scenarios]
    models = [m for m in kernel.models if not args.preempt or m in ("", args.preempt)]
    return [plan_for(kernel, args, args.scenarios, m) for m in models]


def run_kernel(kernel, args):
    args.image, args.initrd, args.out = kernel.image, kernel.initrd, kernel.out
    args.more = run_tests.PATIENCE if kernel.races or kernel.fails else []
    args.limit = args.time * (2 if kernel.fails else 1) + EXTRA
    args.silence = SILENCE
    if kernel.stock:
        args.limit = args.time / len(args.scenarios) + STOCK_EXTRA
    plans = plans_for(kernel, args)
    sys.stderr.write(f">>> {kernel.name} kernel, seed {args.seed}: "
                     f"{', '.join(p.name for p in plans)}\n")
    return plans, run_tests.run_all(plans, args, StressRun)


def cells(numbers):
    """Columns of the table for what a scenario printed."""
    if not numbers:
        return ["-"] * 5
    pages, kb = int(numbers.get("pages", -1)), int(numbers.get("kb", 0))
    return [numbers.get("rounds", "-"), numbers.get("failures", "-"),
            numbers.get("longest", "-"), "?" if pages < 0 else str(pages),
            f"{max(kb, 0) / 1024:.0f}"]


HEAD = ["rounds", "failures", "longest wait, s", "device pages lost", "RAM lost, MiB"]


def row_text(columns):
    return "| " + " | ".join(columns) + " |"


def print_head(columns, out):
    print(row_text(columns), file=out)
    print(row_text(["---"] * len(columns)), file=out)


def print_table(plans, args, out):
    print_head(["scenario", "kernel", "preempt", "seed", *HEAD], out)
    for scenario in args.scenarios:
        for plan in plans:
            numbers = plan.numbers.get(scenario)
            print(row_text([scenario, plan.kernel.name, plan.model or "voluntary",
                            str(args.seed), *cells(numbers)]), file=out)


def what_happened(plan, scenario):
    """Of the base's kernel in one scenario."""
    text = plan.trouble.get(scenario) or plan.ended
    text = text or plan.numbers.get(scenario, {}).get("why") or "passed"
    return text.replace("|", "/")[:90]


def print_side_by_side(ours, stock, args, out):
    by_scenario = {p.steps[1][0]: p for p in stock}
    print_head(["scenario", "seed", *(f"ours: {h}" for h in HEAD),
                *(f"stock: {h}" for h in HEAD), "what stock did"], out)
    for scenario in args.scenarios:
        plan = by_scenario[scenario]
        print(row_text([scenario, str(args.seed),
                        *cells(ours[0].numbers.get(scenario)),
                        *cells(plan.numbers.get(scenario)),
                        what_happened(plan, scenario)]), file=out)


def print_repeat(plans, args, out):
    """For each failure of ours, the command that does it again."""
    seconds = math.ceil(args.time / len(args.scenarios))
    for plan in plans:
        for scenario in args.scenarios:
            if scenario in plan.failed:
                print(f"again: make stress SEED={args.seed} TIME={seconds} "
                      f"KERNEL={plan.kernel.name} PREEMPT={plan.model} "
                      f"SCENARIO='^{scenario}$'", file=out)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--kernel", action="append", required=True, help="NAME,IMAGE,INITRD,OUT")
    ap.add_argument("--logs", required=True)
    ap.add_argument("--time", type=float, default=60)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--scenario", default="", help="regexp")
    ap.add_argument("--preempt", default="", help="none or full, instead of both")
    ap.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = ap.parse_args()
    args.smp = int(os.environ.get("SMP") or 2)
    args.mem = int(os.environ.get("MEM") or vm.MEMORY_MB)
    args.append = os.environ.get("APPEND", "")
    vm.stop_on_signals()

    kernels = [Kernel(k) for k in args.kernel]
    args.scenarios = [s for s in listed(kernels[-1], PROGRAM) if re.search(args.scenario, s)]
    if not args.scenarios:
        sys.exit(f"error: no scenario matches {args.scenario}")
    ours, stock, steps = [], [], []
    for kernel in kernels:
        plans, results = run_kernel(kernel, args)
        if kernel.stock:
            stock += plans
            continue
        ours += plans
        steps += results
    report.print_summary(steps, sys.stdout)
    print()
    if stock:
        print_side_by_side(ours, stock, args, sys.stdout)
    else:
        print_table(ours, args, sys.stdout)
    print_repeat(ours, args, sys.stdout)
    return report.finish(steps, args.logs)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
