# SPDX-License-Identifier: GPL-2.0
"""Data races that a KCSAN kernel reports: which are ours?

A strict KCSAN finds hundreds of races in the rest of the kernel. A report is
ours if one of the two accesses is in a function of our object files. Those
that are known to be harmless are in configs/kcsan.ignore, each with its reason.
"""
import os
import re
import subprocess
from dataclasses import dataclass

import report

TITLE = re.compile(r"BUG: KCSAN: (?:data-race|assert: race) in (.+)$")
RULE = re.compile(r"^={20,}$")


@dataclass
class Race:
    functions: tuple
    lines: list
    step: str           # in which it was

    @property
    def title(self):
        return " / ".join(self.functions)


def function_name(text):
    """A function as a report has it: without offset, module, and compiler's suffix."""
    name = text.strip().split(" ")[0].split("+")[0]
    return re.sub(r"\.(?:constprop|isra|part|cold)(?:\.\d+)*", "", name)


def split(console):
    """(lines of the log that are no report, [Race])"""
    rest, races, now, step = [], [], None, "boot"
    for line in report.clean(console):
        title = TITLE.search(line)
        if title:
            if rest and RULE.match(rest[-1].strip()):
                rest.pop()
            functions = tuple(function_name(f) for f in title.group(1).split(" / "))
            now = Race(functions, [line], step)
            races.append(now)
        elif line.startswith("=== step "):
            step, now = line.split()[2], None
            rest.append(line)
        elif now is None:
            rest.append(line)
        else:
            now.lines.append(line)
            if RULE.match(line.strip()):
                now = None
    return rest, races


def functions_in(objects):
    """Names of all functions in these object files."""
    names = set()
    for path in objects:
        out = subprocess.run(["nm", path], stdout=subprocess.PIPE, check=True, text=True)
        for line in out.stdout.split("\n"):
            found = re.match(r"[0-9a-f]+ [tT] (\S+)", line)
            if found and not found.group(1).startswith("__pfx_"):
                names.add(function_name(found.group(1)))
    return names


def read_ignored(path):
    """{functions: reason}; a line is "function / function: reason"."""
    ignored = {}
    if not os.path.exists(path):
        return ignored
    with open(path, encoding="utf-8") as f:
        for line in f:
            line = line.split("#")[0].strip()
            if line:
                names, _, reason = line.partition(":")
                if not reason.strip():
                    raise ValueError(f"{path}: no reason for {names}")
                ignored[frozenset(n.strip() for n in names.split("/"))] = reason.strip()
    return ignored


def judge(console, ours, ignored):
    """(log without reports, races of ours, races of ours that are known, the rest)"""
    rest, races = split(console)
    bad, known, others = [], [], []
    for race in races:
        if not ours & set(race.functions):
            others.append(race)
        elif frozenset(race.functions) in ignored:
            known.append(race)
        else:
            bad.append(race)
    return "\n".join(rest), bad, known, others
