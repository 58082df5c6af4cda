# SPDX-License-Identifier: GPL-2.0
"""make profile: in which functions the instructions of a row are."""
import bisect
import collections
import os
import re
import subprocess

# Where hmm_bench puts the two functions that say when to count.
BEGIN, END = 0x123450000, 0x123450100

# The symbols of modules are not in System.map.
PREFIX = r"grep '\[.*\]' /proc/kallsyms; "

SHOWN = 40


def api_version():
    """QEMU refuses plugins that were made for too old an interface."""
    text = subprocess.run(["qemu-system-x86_64", "--version"], check=True,
                          capture_output=True, text=True).stdout
    major, minor = map(int, re.search(r"version (\d+)\.(\d+)", text).groups())
    return 1 if (major, minor) < (8, 2) else 2


def build(source, folder):
    plugin = os.path.join(folder, "profiler.so")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra",
                    f"-DPLUGIN_API={api_version()}", source, "-o", plugin], check=True)
    return plugin


def qemu_options(plugin, counts):
    return ["-plugin", f"{plugin},begin={BEGIN:#x},end={END:#x},out={counts}"]


class Symbols:
    def __init__(self, lines):
        table = {}
        for line in lines:
            words = line.split()
            if len(words) >= 3 and re.fullmatch("[0-9a-f]{16}", words[0]) and \
                    words[1] in "tTwW":
                table.setdefault(int(words[0], 16), words[2])
        self.addresses = sorted(table)
        self.names = [table[a] for a in self.addresses]

    def name(self, addr):
        if addr < 1 << 47:
            return "(program)"
        i = bisect.bisect_right(self.addresses, addr) - 1
        return self.names[i] if i >= 0 else hex(addr)


def table(kernel, counts, steps):
    """Instructions per page by function, most first."""
    with open(os.path.join(kernel.out, "System.map"), encoding="utf-8") as f:
        symbols = Symbols([*f, *steps.replace("\r", "").split("\n")])
    pages = sum(int(m) for m in re.findall(r"^rep \d+ (\d+)", steps, re.M))
    if not pages:
        raise RuntimeError(f"the row failed: {steps}")
    per_function = collections.Counter()
    with open(counts, encoding="utf-8") as f:
        for line in f:
            addr, number = line.split()
            per_function[symbols.name(int(addr, 16))] += int(number)
    total = sum(per_function.values())
    out = [f"{kernel.name}: {total / pages:.1f} instructions per page, "
           "what the driver does included"]
    for name, number in per_function.most_common(SHOWN):
        out.append(f"{number / pages:10.2f}  {100 * number / total:5.1f}%  {name}")
    return "\n".join(out) + "\n"
