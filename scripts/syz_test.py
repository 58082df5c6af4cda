#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""docs/dmirror.syz says what lib/test_hmm_uapi.h says: numbers, sizes, and nothing
left out. Prints TAP.
"""
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
HEADER = os.path.join(ROOT, "lib", "test_hmm_uapi.h")
TEXT = os.path.join(ROOT, "docs", "dmirror.syz")
CONST = TEXT + ".const"

SIZE = {"int8": 1, "int16": 2, "int32": 4, "int64": 8, "vma64": 8, "ptr64": 8}


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def compiled(names, fields):
    """Values of the header's macros, and (name, offset, size) of the fields."""
    lines = ['#include <stddef.h>', '#include <stdio.h>', f'#include "{HEADER}"',
             'int main(void) {']
    lines += [f'printf("{n} %llu\\n", (unsigned long long){n});' for n in names]
    lines += [f'printf("{f} %zu %zu\\n", offsetof(struct hmm_dmirror_cmd, {f}), '
              f'sizeof(((struct hmm_dmirror_cmd *)0)->{f}));' for f in fields]
    lines += ['printf("sizeof %zu\\n", sizeof(struct hmm_dmirror_cmd));', '}']
    program = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"syz_test.{os.getpid()}")
    try:
        subprocess.run(["gcc", "-x", "c", "-", "-o", program], check=True, text=True,
                       input="\n".join(lines))
        out = subprocess.run([program], check=True, text=True, capture_output=True).stdout
    finally:
        if os.path.exists(program):
            os.unlink(program)
    words = [line.split() for line in out.splitlines()]
    return ({w[0]: int(w[1]) for w in words if len(w) == 2},
            [(w[0], int(w[1]), int(w[2])) for w in words if len(w) == 3])


def layout(body):
    """(name, offset, size) of the fields of a struct in the description."""
    fields, at = [], 0
    for line in body.strip().split("\n"):
        name, kind = line.split(None, 1)
        inner = re.search(r", (int\d+)\]$", kind)
        size = SIZE[inner.group(1) if inner else re.match(r"\w+", kind).group()]
        fields.append((name, at, size))
        at += size
    return fields


def checks():
    header, text = read(HEADER), read(TEXT)
    ioctls = re.findall(r"#define (HMM_DMIRROR_\w+)\s+HMM_DMIRROR_IOC\(0x", header)
    flags = re.findall(r"#define (HMM_DMIRROR_FLAG_\w+)\s", header)
    members = re.search(r"struct hmm_dmirror_cmd \{(.*?)\};", header, re.S).group(1)
    values, fields = compiled(ioctls + flags, re.findall(r"(\w+)[,;]", members))
    const = dict(re.findall(r"^(\w+) = (\d+)$", read(CONST), re.M))
    const = {k: int(v) for k, v in const.items() if k.startswith("HMM_")}
    size = values.pop("sizeof")

    yield "the header has ioctls", len(ioctls) > 10 and size == 40
    for name in ioctls:
        call = f"ioctl${name}(fd fd_hmm_dmirror, cmd const[{name}], arg ptr[inout, hmm_dmirror_"
        yield f"{name} is described", call in text
        yield f"{name} has its size", values[name] >> 16 & 0x3fff == size
    named = re.findall(r"^ioctl\$(\w+)", text, re.M)
    yield "no other ioctl is described", sorted(named) == sorted(ioctls)
    listed = re.search(r"^hmm_dmirror_flags = (.*)$", text, re.M).group(1).split(", ")
    yield "the flags are described", sorted(listed) == sorted(flags)
    yield "the constants are those of the header", const == values
    structs = re.findall(r"^(hmm_dmirror_\w+) \{\n(.*?)^\}", text, re.S | re.M)
    yield "there are structs", len(structs) > 1
    for name, body in structs:
        yield f"{name} has the layout of the struct", layout(body) == fields


def main():
    failed = n = 0
    print("TAP version 13")
    for n, (name, good) in enumerate(checks(), 1):
        failed += not good
        print(f"{'ok' if good else 'not ok'} {n} {name}")
    print(f"1..{n}")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
