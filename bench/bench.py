#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""The benchmark: our series against the base, row by row.

bench.py run      measure, print the table, write it, CSV, plots and HTML to --out
bench.py accept   keep what the last run found, in bench/results and docs/performance.md
bench.py profile  functions in which a row spends its instructions

Exact rows are counted: a machine with one CPU, where each instruction takes a
nanosecond of its clock. Wall rows are timed on two CPUs, the two kernels in turn.
"""
import argparse
import os
import re
import shutil
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True
sys.path.insert(1, os.path.join(HERE, "..", "scripts"))

import plots                    # noqa: E402
import profiler                 # noqa: E402
import report                   # noqa: E402
import results                  # noqa: E402
import rows                     # noqa: E402
import tables                   # noqa: E402
import vm                       # noqa: E402

LIMIT = 1800                    # seconds, for one boot
ICOUNT = ["-icount", "shift=0,sleep=off"]

# One THP scan would be in the way of everything.
QUIET = ("echo 3600000 > /sys/kernel/mm/transparent_hugepage/khugepaged/"
         "scan_sleep_millisecs; echo 0 > /proc/sys/kernel/randomize_va_space")
LOAD = (f"{QUIET}; f=$(awk '$3 == \"zone_device_folio_init\" {{ print $1 }}' "
        "/proc/kallsyms); insmod /lib/modules/$(uname -r)/hmm_bench.ko "
        "folio_init=0x${f:-0} && dmirror load")


class Kernel:
    def __init__(self, name, spec):
        self.name = name
        self.image, self.initrd, self.out = spec.split(",")


# Timed rows are repeated until what was timed is so long, or they are that many.
LONGER = "ms=300 most=20"


def inside(row, wall):
    """The command of a row, in the machine."""
    longer = wall and row.unit == "per page"
    return f"hmm_bench {row.command}" + (f" {LONGER}" if longer else "")


class Boot:
    """One machine that goes through rows that want the same of it, and what it said."""

    def __init__(self, kernel, method, todo, logs, qemu=(), prefix=""):
        self.kernel, self.method, self.todo = kernel, method, todo
        exact, wall = method == "exact", method == "wall"
        args = argparse.Namespace(
            image=kernel.image, initrd=kernel.initrd, mem=todo[0].memory, numa=False,
            board=todo[0].board,
            smp=2 if wall else 1, append=os.environ.get("APPEND", ""),
            accel=None if wall else "tcg,thread=single", qemu=[*(ICOUNT if exact else ()), *qemu])
        steps = [("load", LOAD)]
        steps += [(row.name, prefix + inside(row, wall)) for row in todo]
        cmdline = ["quiet", "loglevel=4", "tsc=reliable", "brd.rd_size=65536"]
        if not wall:
            cmdline.append("nokaslr")
        large = "large" if args.mem > rows.MEMORY_MB else ""
        name = "-".join(filter(None, (method, kernel.name, args.board, large)))
        self.machine = vm.Machine(args, os.path.join(logs, name), steps=steps,
                                  cmdline=cmdline)
        self.over = None

    def text(self):
        with open(self.machine.steps, encoding="utf-8", errors="replace") as f:
            return f.read()

    def done(self):
        return self.text().count("=== end ") - 1

    def poll(self):
        if self.over is None:
            self.over = self.machine.poll(LIMIT, LIMIT)
        return self.over is not None

    def runs(self):
        """{row: Run}; whatever the machine had to complain about is an error."""
        with open(self.machine.console, encoding="utf-8", errors="replace") as f:
            hits = report.trouble(f.read())
        if self.over or hits or "=== done" not in self.text():
            raise RuntimeError(f"{self.kernel.name}, {self.method}: "
                               f"{self.over or hits or 'ended early'}, see "
                               f"{os.path.dirname(self.machine.steps)}")
        return results.parse_steps(self.text(), self.method)


def go(boots):
    """Run machines side by side to their end."""
    shown = 0.0
    try:
        while not all([b.poll() for b in boots]):
            if sys.stderr.isatty() or time.monotonic() - shown > 20:
                shown = time.monotonic()
                sys.stderr.write("    " + ", ".join(
                    f"{b.method} {b.kernel.name} {max(b.done(), 0)}/{len(b.todo)}"
                    for b in boots) + ("\r" if sys.stderr.isatty() else "\n"))
            time.sleep(0.5)
    finally:
        for b in boots:
            b.machine.kill()
    return [b.runs() for b in boots]


def pick(pattern, letter):
    """The rows that are asked for, and those that stand in for them on stock."""
    some = [r for r in rows.ROWS if letter in r.how and re.search(pattern, r.name)]
    names = {r.name for r in some} | {r.instead for r in some}
    return [r for r in rows.ROWS if letter in r.how and r.name in names]


def by_machine(todo):
    """(what they want of it, rows), in the order of the rows."""
    groups = {}
    for row in todo:
        groups.setdefault((row.memory, row.board), []).append(row)
    return groups.items()


def free_mb():
    with open("/proc/meminfo", encoding="ascii") as f:
        return next(int(x.split()[1]) for x in f if x.startswith("MemAvailable")) // 1024


def measure_exact(kernels, pattern, logs):
    todo = pick(pattern, "x")
    if not todo:
        return []
    found = [{} for _ in kernels]
    for (memory, board), some in by_machine(todo):
        sys.stderr.write(f">>> counting {len(some)} rows"
                         f"{f', {memory} MB' if memory > rows.MEMORY_MB else ''}"
                         f"{', with an IOMMU' if board else ''}\n")
        if memory > rows.MEMORY_MB and memory > free_mb():
            sys.stderr.write(f"    not run, for want of {memory} MB of memory here: "
                             f"{' '.join(r.name for r in some)}\n")
            continue
        # Two of the large machines together are more than most hosts have.
        together = len(kernels) if memory <= rows.MEMORY_MB else 1
        for at in range(0, len(kernels), together):
            boots = [Boot(k, "exact", some, logs) for k in kernels[at:at + together]]
            for into, runs in zip(found[at:], go(boots)):
                into.update(runs)
    return [tuple(found)]


def measure_wall(kernels, pattern, logs, pairs):
    todo = pick(pattern, "w")
    if not todo:
        return []
    found = []
    for i in range(pairs):
        sys.stderr.write(f">>> timing {len(todo)} rows, pair {i + 1} of {pairs}\n")
        # Who is first changes, so that what creeps hits both.
        order = kernels if i % 2 == 0 else kernels[::-1]
        pair = {k.name: go([Boot(k, "wall", todo, logs)])[0] for k in order}
        found.append((pair["ours"], pair["stock"]))
    return found


def about(args):
    with os.popen("qemu-system-x86_64 --version") as f:
        qemu = f.readline().split("version ")[-1].split()[0]
    return (f"against {args.base}\nexact rows: instructions of one CPU, as QEMU "
            f"{qemu} counts them; wall rows: the best of each of {args.pairs} pairs of "
            f"boots, TCG, two CPUs\n\"faster\" is stock / ours; spread: of repetitions, or of pairs\n")


def changes(lines, old):
    """Exact rows that cost more than in the run that was accepted."""
    out = []
    for x in lines:
        before = old.get((x.method, x.row.name))
        if x.method == "exact" and before and \
                x.ours > before * (1 + max(0.02, x.spread)):
            out.append(f"{x.row.name}: {results.number(before)} before, "
                       f"{results.number(x.ours)} now")
    return out


def write(lines, args):
    shutil.rmtree(args.out, ignore_errors=True)
    os.makedirs(args.out)
    text = about(args) + "\n" + results.table(lines)
    with open(os.path.join(args.out, "table.txt"), "w", encoding="utf-8") as f:
        f.write(text)
    results.write_csv(lines, os.path.join(args.out, "results.csv"))
    print(text, flush=True)
    pictures = plots.draw_all(lines, args.out)
    plots.page(lines, pictures, args.out, about(args))


def run(args, kernels):
    exact = measure_exact(kernels, args.rows, args.logs)
    wall = measure_wall(kernels, args.rows, args.logs, args.pairs)
    if not exact and not wall:
        sys.exit(f"error: no row matches {args.rows}")
    lines, errors = results.lines_of(exact, wall)
    write(lines, args)
    for text in changes(lines, results.read_csv(
            os.path.join(HERE, "results", "results.csv"))):
        print(f"more than in bench/results: {text}")
    slower = [x.row.name for x in lines if x.slower]
    for text in errors:
        print(f"error: {text}")
    if slower:
        print("slower than stock: " + " ".join(slower))
    print(f"{len(lines)} rows, {len(slower)} slower than stock, {len(errors)} failed")
    print(f"{args.out}/index.html")
    if not args.rows and not errors:
        print("to keep it in bench/results: make bench ACCEPT=1")
    return 1 if slower or errors else 0


def accept(args):
    if not os.path.exists(os.path.join(args.out, "results.csv")):
        sys.exit("error: there is no run to accept: make bench")
    document = os.path.join(HERE, "..", "docs", "performance.md")
    tables.update(document, os.path.join(args.out, "results.csv"))
    to = os.path.join(HERE, "results")
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(args.out, to)
    print(f"in {to}, and the numbers in docs/performance.md")
    return 0


def profile(args, kernels):
    todo = [r for r in rows.ROWS if r.name == args.row]
    if not todo:
        sys.exit(f"error: no row {args.row}; there are "
                 + " ".join(r.name for r in rows.ROWS))
    plugin = profiler.build(os.path.join(HERE, "profiler.c"), args.logs)
    for kernel in kernels:
        counts = os.path.join(args.logs, f"profile-{kernel.name}.counts")
        qemu = profiler.qemu_options(plugin, counts)
        boot = Boot(kernel, "profile", todo, args.logs, qemu, profiler.PREFIX)
        go([boot])
        print(profiler.table(kernel, counts, boot.text()), flush=True)
    return 0


def main():
    ap = argparse.ArgumentParser()
    sub = ap.add_subparsers(dest="verb", required=True)
    for verb in ("run", "profile", "accept"):
        p = sub.add_parser(verb)
        p.add_argument("--out", required=True)
        if verb == "accept":
            continue
        for name in ("ours", "stock", "base", "logs"):
            p.add_argument(f"--{name}", required=True)
        if verb == "profile":
            p.add_argument("row")
        else:
            p.add_argument("--rows", default="")
            p.add_argument("--pairs", type=int, default=5)
    args = ap.parse_args()
    if args.verb == "accept":
        return accept(args)
    vm.stop_on_signals()
    os.makedirs(args.logs, exist_ok=True)
    kernels = [Kernel("ours", args.ours), Kernel("stock", args.stock)]
    return (run if args.verb == "run" else profile)(args, kernels)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as e:
        sys.exit(f"error: {e}")
