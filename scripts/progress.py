#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Count the lines of a noisy command and show how far it is.

Lines that match --match are counted and kept to the log; all others (warnings,
errors) are shown as they come. A terminal gets one line that is rewritten, a
log file a line every 20 seconds.
"""
import argparse
import re
import sys
import time


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("label")
    ap.add_argument("--total", type=int, default=0)
    ap.add_argument("--match", default=".")
    ap.add_argument("--drop", default="^$", help="lines not worth showing")
    ap.add_argument("--log")
    args = ap.parse_args()

    match, drop = re.compile(args.match), re.compile(args.drop)
    log = open(args.log, "w", encoding="utf-8") if args.log else None
    tty = sys.stderr.isatty()
    every = 0.2 if tty else 20
    began = shown = time.monotonic()
    count, last = 0, ""

    def show(end=False):
        took = time.monotonic() - began
        part = f"{count}"
        if args.total and not end:
            part += f" of about {max(args.total, count)}"
        text = f"    {args.label}: {part}, {took:.0f} s"
        if tty:
            tail = "" if end else "  " + last[-40:]
            sys.stderr.write(f"\r\x1b[K{text}{tail}" + ("\n" if end else ""))
        elif count or end:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    for raw in sys.stdin.buffer:
        line = raw.decode("utf-8", "replace").rstrip("\n")
        if log:
            log.write(line + "\n")
        if match.search(line):
            count += 1
            last = line.split()[-1] if line.split() else ""
        elif not drop.search(line):
            sys.stderr.write(("\r\x1b[K" if tty else "") + line + "\n")
        now = time.monotonic()
        if now - shown >= every:
            shown = now
            show()
    if count:
        show(end=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
