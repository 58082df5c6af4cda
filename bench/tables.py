# SPDX-License-Identifier: GPL-2.0
"""Numbers of an accepted run, in the tables of docs/performance.md.

Which rows these tables have, and in which order, is the document's affair: a line
begins with a row's title, and the head of its table says how it was measured.
"""
import csv

import results
import rows

HEADS = {"| | ours | stock | faster | target |": "exact",
         "| | ours | stock | faster | of pairs |": "wall"}
PREFIXES = {"dma": "DMA: ", "dmirror": "dmirror: "}


def rows_of(run):
    """{(how, title as the document has it): what is in @run, a results.csv}"""
    groups = {r.name: r.group for r in rows.ROWS if r.unit == "per page"}
    with open(run, newline="", encoding="utf-8") as f:
        return {(r["method"], PREFIXES.get(groups[r["row"]], "") + r["what"]): r
                for r in csv.DictReader(f) if r["row"] in groups}


def line_of(title, row):
    stock, ratio, low, high = (float(row[k]) if row[k] else None
                               for k in ("stock", "ratio", "ratio_low", "ratio_high"))

    def times(x):
        return results.times(x).rstrip("x")

    last = times(high) + " .. " + times(low)
    if row["method"] == "exact":
        last = results.number(float(row["target"])) if row["target"] else ""
    return (f"| {title} | {results.number(float(row['ours']))} | "
            f"{results.number(stock)} | {times(ratio)} | {last} |")


def update(document, run):
    """Put what @run, a results.csv, says into @document; all of it or nothing."""
    found = rows_of(run)
    with open(document, encoding="utf-8") as f:
        lines = f.read().split("\n")
    method = None
    for i, line in enumerate(lines):
        if not line.startswith("|"):
            method = None
        elif line in HEADS:
            method = HEADS[line]
        elif method and not line.startswith("|--"):
            title = line.split("|")[1].strip()
            if (method, title) not in found:
                raise RuntimeError(f"{title}: not in this run, which is not a whole one")
            lines[i] = line_of(title, found[method, title])
    with open(document, "w", encoding="utf-8") as f:
        f.write("\n".join(lines))
