# SPDX-License-Identifier: GPL-2.0
"""From what the machines printed to one line for each row."""
import csv
import statistics
from dataclasses import dataclass, field

import rows

# Interrupts and the like: what two runs of the same code may differ by.
NOISE = 0.005


@dataclass
class Run:
    """What one boot of one kernel said about one row."""
    values: list = field(default_factory=list)      # ns, or flushes, per page
    moved: float = 1.0                              # part of the pages
    parts: dict = field(default_factory=dict)
    error: str = None
    timed: bool = False

    @property
    def value(self):
        """Of times the least one: others only add to it."""
        return min(self.values) if self.timed else statistics.median(self.values)

    @property
    def spread(self):
        if not self.value:
            return 0.0
        return (max(self.values) - min(self.values)) / self.value


def parse_run(row, lines, method):
    run = Run(timed=method == "wall" and row.unit == "per page")
    for line in lines:
        words = line.split()
        if line.startswith("error:"):
            run.error = line
        if words[:1] != ["rep"]:
            continue
        ns, pages, moved = map(int, words[1:4])
        parts = {k: int(v) for k, v in (w.split("=") for w in words[4:])}
        flushes = row.unit.startswith("flushes")
        run.values.append(1000 * parts["flushes"] / pages if flushes else ns / pages)
        run.moved = min(run.moved, moved / pages)
        run.parts = {k: v / pages for k, v in parts.items()}
    if not run.values and not run.error:
        run.error = "no result"
    return run


def parse_steps(text, method):
    """{row name: Run} from the log of a machine."""
    known = {row.name: row for row in rows.ROWS}
    runs, name, lines = {}, None, []
    for line in text.replace("\r", "").split("\n"):
        if line.startswith("=== step "):
            name, lines = line.split()[2], []
        elif line.startswith("=== end ") and name in known:
            runs[name] = parse_run(known[name], lines, method)
            status = line.split()[-1]
            if status != "0" and not runs[name].error:
                runs[name].error = f"status {status}"
            name = None
        else:
            lines.append(line)
    return runs


@dataclass
class Line:
    """A row of the table."""
    row: object
    method: str                 # exact, wall
    ours: float
    stock: float                # None: not measured
    ratio: float                # ours / stock
    low: float                  # the same, least and most of all pairs
    high: float
    spread: float
    note: str = ""

    @property
    def unit(self):
        if self.row.unit != "per page":
            return self.row.unit
        return "instructions/page" if self.method == "exact" else "ns/page"

    @property
    def target(self):
        return self.row.target if self.method == "exact" else None

    @property
    def slower(self):
        """Worse than the base by more than noise: of pairs, in each of them."""
        if self.ratio is None:
            return False
        if self.method == "exact":
            return self.ratio > 1 + max(NOISE, self.spread)
        return self.low > 1 + NOISE


def stock_run(row, runs):
    """What the base has to do for the same, and a remark."""
    run = runs.get(row.name)
    if run is None or run.error or row.none_moves or run.moved > 0.99:
        return run, ""
    if not row.instead or runs.get(row.instead) is None:
        return run, f"stock moves {run.moved:.0%}"
    return runs[row.instead], f"stock moves {run.moved:.0%} of it; as 4K pages"


def line_of(row, method, pairs):
    """pairs: (runs of ours, runs of stock), one for each pair of boots."""
    ours, stock, ratios, notes, spreads = [], [], [], [], [0.0]
    for mine, theirs in pairs:
        a = mine[row.name]
        b, note = stock_run(row, theirs)
        if a.error:
            raise ValueError(f"{row.name}: {a.error}")
        if a.moved < 0.99 and not row.none_moves:
            notes.append(f"moves {a.moved:.0%}")
        ours.append(a.value)
        spreads.append(a.spread)
        if b is None or b.error:
            notes.append("stock: " + (b.error if b else "not run"))
            continue
        if note:
            notes.append(note)
        stock.append(b.value)
        spreads.append(b.spread)
        if b.value:
            ratios.append(a.value / b.value)
    middle = statistics.median
    return Line(row, method, middle(ours), middle(stock) if stock else None,
                middle(ratios) if ratios else None, min(ratios, default=None),
                max(ratios, default=None), max(spreads), "; ".join(dict.fromkeys(notes)))


def lines_of(exact, wall):
    """All rows that were run; a row that failed is an error."""
    lines, errors = [], []
    for method, pairs, letter in (("exact", exact, "x"), ("wall", wall, "w")):
        for row in rows.ROWS:
            if letter not in row.how or not pairs or row.name not in pairs[0][0]:
                continue
            try:
                lines.append(line_of(row, method, pairs))
            except ValueError as e:
                errors.append(str(e))
    return lines, errors


def number(v):
    if v is None:
        return "-"
    if v >= 100:
        return f"{v:.0f}"
    return f"{v:.1f}" if v >= 10 else f"{v:.2f}"


def times(ratio):
    return f"{1 / ratio:.2f}x" if ratio else "-"


def faster(line):
    return times(line.ratio)


def spread_of(line):
    if line.method == "wall" and line.ratio:
        return f"{times(line.high)} .. {times(line.low)}"
    return f"{100 * line.spread:.1f}%"


def remark(line):
    words = []
    if line.slower:
        words.append("SLOWER THAN STOCK")
    if line.target and line.ours > line.target * (1 + NOISE):
        words.append("misses the target")
    if line.note:
        words.append(line.note)
    return "; ".join(words)


HEAD = ("row", "what", "unit", "ours", "stock", "faster", "target", "spread", "remark")


def cells(line):
    return (line.row.name, line.row.title, line.unit, number(line.ours),
            number(line.stock), faster(line), number(line.target), spread_of(line),
            remark(line))


def sections(lines):
    """(heading, lines) by method and group."""
    for method, means in (("exact", "instructions, one CPU"),
                          ("wall", "time, two CPUs")):
        for group, title in rows.GROUPS.items():
            some = [x for x in lines if x.method == method and x.row.group == group]
            if some:
                yield f"{title} ({means})", some


def table(lines):
    widths = [max(len(c[i]) for c in [HEAD, *map(cells, lines)])
              for i in range(len(HEAD))]
    out = []

    def add(fields):
        out.append("  ".join(
            f.rjust(w) if 3 <= i <= 7 else f.ljust(w)
            for i, (f, w) in enumerate(zip(fields, widths))).rstrip())

    for title, some in sections(lines):
        out += ["", title]
        add(HEAD)
        for line in some:
            add(cells(line))
    return "\n".join(out[1:]) + "\n"


FIELDS = ("method", "row", "what", "unit", "ours", "stock", "ratio", "ratio_low",
          "ratio_high", "spread", "target", "remark")


def write_csv(lines, path):
    with open(path, "w", newline="", encoding="utf-8") as f:
        out = csv.writer(f)
        out.writerow(FIELDS)
        for x in lines:
            out.writerow([x.method, x.row.name, x.row.title, x.unit, x.ours, x.stock,
                          x.ratio, x.low, x.high, x.spread, x.target, remark(x)])


def read_csv(path):
    """{(method, row): ours} of an earlier run."""
    try:
        with open(path, newline="", encoding="utf-8") as f:
            return {(r["method"], r["row"]): float(r["ours"]) for r in csv.DictReader(f)}
    except FileNotFoundError:
        return {}
