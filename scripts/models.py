#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Have spin look through the models in docs/models.

The head of a model says what is to be done:

    * RUN [-DNAME...]             no error in any state, all states looked at
    * BROKEN_NAME [-DNAME...]     wrong on purpose: an error has to be found

A line of the model that no RUN reaches is an error, too: it says nothing. Prints TAP,
a table, and last "N passed, N failed, N skipped".
"""
import argparse
import concurrent.futures
import glob
import os
import re
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
MODELS = os.path.join(os.path.dirname(HERE), "docs", "models")

MEMORY_MB = 4000        # of one search
SECONDS = 1200          # for one search
DEPTH = 1000000


class Search:
    """One model with some definitions, and what came of it."""
    def __init__(self, path, defines, broken):
        self.path, self.defines, self.broken = path, defines, broken
        self.model = os.path.splitext(os.path.basename(path))[0]
        self.name = " ".join([self.model] + [d[2:] for d in defines])
        self.states = self.depth = 0
        self.seconds = 0.0
        self.error = self.trouble = ""
        self.lines, self.reached = {}, set()

    def command(self, folder, *words, limit=SECONDS):
        return subprocess.run(words, cwd=folder, text=True, timeout=limit,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def build(self, folder):
        os.makedirs(folder, exist_ok=True)
        for step in (("spin", "-o3", *self.defines, "-a", self.path),
                     ("gcc", "-O2", "-w", "-DSAFETY", "-DCOLLAPSE",
                      f"-DMEMLIM={MEMORY_MB}", "-o", "pan", "pan.c")):
            done = self.command(folder, *step)
            if done.returncode:
                self.trouble = (done.stdout.strip().split("\n") or ["?"])[0]
                return False
        return True

    def run(self, root):
        folder = os.path.join(root, self.name.replace(" ", "_"))
        began = time.monotonic()
        try:
            if self.build(folder):
                self.read(self.command(folder, "./pan", f"-m{DEPTH}").stdout, folder)
        except subprocess.TimeoutExpired:
            self.trouble = f"no end after {SECONDS} s"
        self.seconds = time.monotonic() - began
        return self

    def read(self, text, folder):
        with open(os.path.join(folder, "pan.log"), "w", encoding="utf-8") as f:
            f.write(text)
        errors = re.search(r"errors: (\d+)", text)
        states = re.search(r"(\d+) states, stored", text)
        depth = re.search(r"depth reached (\d+)", text)
        if not errors or not states:
            self.trouble = "no result"
            return
        self.states, self.depth = int(states.group(1)), int(depth.group(1))
        if re.search(r"max search depth too small|out of memory|Search not completed", text) \
                and not int(errors.group(1)):
            self.trouble = "not all states were looked at"
        found = re.search(r"pan:1: (.*?) \(at depth", text)
        self.error = found.group(1) if int(errors.group(1)) and found else ""
        if int(errors.group(1)) and not found:
            self.trouble = "an error that is not understood"
        self.read_reached(text, self.command(folder, "./pan", "-d").stdout)

    def read_reached(self, text, table):
        """A line is reached if it is in one of the places that an inline went to."""
        unreached = set()
        for part in re.split(r"^unreached in ", text, flags=re.M)[1:]:
            proc = part.split("\n", 1)[0].split()[-1]
            unreached |= {(proc, n) for n in re.findall(r"\.pml:\d+, state (\d+),", part)}
        for part in re.split(r"^(?:proctype|init|claim)", table, flags=re.M)[1:]:
            proc = part.split("\n", 1)[0].strip() or "init"
            for n, line, what in re.findall(r"^\s+state +(\d+) -.*\.pml:(\d+) => (.*)$",
                                            part, re.M):
                if what in ("-end-", "(1)", ".(goto)"):
                    continue
                self.lines[int(line)] = what
                if (proc, n) not in unreached:
                    self.reached.add(int(line))

    @property
    def good(self):
        return not self.trouble and bool(self.error) == self.broken

    def says(self):
        if self.trouble:
            return self.trouble
        if self.broken:
            return "found" if self.error else "NOT FOUND"
        return self.error or "no error"


def searches(path):
    with open(path, encoding="utf-8") as f:
        head = f.read().split("*/", 2)
    for first, rest in re.findall(r"^ \*\s+(RUN|BROKEN_\w+)((?: -D\w+(?:=\w+)?)*)(?:\s|$)",
                                  head[1], re.M):
        broken = first != "RUN"
        yield Search(path, ([f"-D{first}"] if broken else []) + rest.split(), broken)


def jobs():
    with open("/proc/meminfo", encoding="ascii") as f:
        free = int(re.search(r"MemAvailable:\s+(\d+)", f.read()).group(1)) >> 10
    return max(1, min(os.cpu_count() or 1, free // MEMORY_MB))


def never_reached(done):
    """Per model: the lines that none of its runs came to."""
    lines, reached = {}, {}
    for s in done:
        if not s.broken and not s.trouble:
            lines.setdefault(s.model, {}).update(s.lines)
            reached.setdefault(s.model, set()).update(s.reached)
    return {m: {n: w for n, w in lines[m].items() if n not in reached[m]} for m in lines}


def show(done):
    print(f"\n{'states':>10} {'depth':>6} {'s':>7}  search")
    for s in done:
        print(f"{s.states:>10} {s.depth:>6} {s.seconds:>7.1f}  {s.name}: {s.says()}")


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--out", required=True, help="where the searches are built")
    ap.add_argument("models", nargs="*", help="names; default: all")
    args = ap.parse_args()

    paths = [p for p in sorted(glob.glob(os.path.join(MODELS, "*.pml")))
             if not args.models or os.path.basename(p)[:-4] in args.models]
    todo = [s for path in paths for s in searches(path)]
    # A variant without a line in the head would be one that nobody runs.
    for path in paths:
        with open(path, encoding="utf-8") as f:
            named = set(re.findall(r"\bBROKEN_\w+", f.read()))
        named -= {d[2:] for s in todo if s.path == path for d in s.defines}
        if named:
            sys.exit(f"{path}: no line in its head: {', '.join(sorted(named))}")

    results = []
    print("TAP version 13")
    with concurrent.futures.ThreadPoolExecutor(jobs()) as pool:
        done = []
        for n, s in enumerate(pool.map(lambda s: s.run(args.out), todo), 1):
            done.append(s)
            results.append(s.good)
            print(f"{'ok' if s.good else 'not ok'} {n} {s.name}: {s.says()}", flush=True)
    for model, lines in never_reached(done).items():
        results.append(not lines)
        print(f"{'not ok' if lines else 'ok'} {len(results)} {model}: all lines are reached")
        for line, what in sorted(lines.items()):
            print(f"# {model}.pml:{line}: {what}")
    print(f"1..{len(results)}")
    show(done)
    failed = results.count(False)
    print(f"\n{len(results) - failed} passed, {failed} failed, 0 skipped")
    return failed > 0 or not results


if __name__ == "__main__":
    sys.exit(main())
