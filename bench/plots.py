# SPDX-License-Identifier: GPL-2.0
"""Pictures, by gnuplot, and the page that shows everything."""
import html
import math
import os
import subprocess

import results
import rows

COLOURS = {"ours": "#1b6ca8", "stock": "#c8553d", "target": "#3a7d44"}
LINES = ("#1b6ca8", "#c8553d", "#3a7d44", "#8d6a9f", "#b8860b", "#555555")


def quote(text):
    return '"' + text.replace('"', "'") + '"'


def least(lines):
    """Where a logarithmic axis begins, so that all of @lines is above it."""
    values = [v for x in lines for v in (x.ours, x.stock, x.target) if v]
    return 10 ** math.floor(math.log10(min(values)))


def bars(title, unit, lines):
    """One group of bars for each row."""
    columns = [(i, what, COLOURS[what])
               for i, what in enumerate(("ours", "stock", "target"), 2)
               if any(getattr(x, what) for x in lines)]
    plot = ", ".join(f"$data using {i}{':xtic(1)' if i == 2 else ''} title \"{what}\" "
                     f"lc rgb \"{colour}\"" for i, what, colour in columns)
    data = "\n".join(f"{quote(x.row.name)} {x.ours} {x.stock if x.stock else 'NaN'} "
                     f"{x.target if x.target else 'NaN'}" for x in lines)
    return f"""
set title {quote(title)}
set ylabel {quote(unit)}
set logscale y
set yrange [{least(lines)}:*]
set style data histogram
set style histogram clustered gap 1
set style fill solid 0.9 noborder
set boxwidth 0.9
set xtics rotate by -35 left nomirror
set bmargin 8
set key outside right
$data << EOD
{data}
EOD
plot {plot}
"""


def curves(title, unit, axis, lines):
    """One line for each series and kernel, over what the group varies."""
    blocks, plots = [], []
    names = list(dict.fromkeys(x.row.series for x in lines if x.row.series))
    for i, name in enumerate(names):
        some = [x for x in lines if x.row.series == name]
        blocks.append(f"$d{i} << EOD\n" + "\n".join(
            f"{x.row.x} {x.ours} {x.stock if x.stock else 'NaN'}" for x in some) + "\nEOD")
        for column, kernel, dash in ((2, "ours", 1), (3, "stock", 2)):
            plots.append(f"$d{i} using 1:{column} with linespoints lw 2 dt {dash} pt 7 "
                         f"ps 0.6 lc rgb \"{LINES[i % len(LINES)]}\" "
                         f"title {quote(f'{name}, {kernel}')}")
    return f"""
set title {quote(title)}
set ylabel {quote(unit)}
set xlabel {quote(axis)}
set logscale xy
set xrange [*:*]
set yrange [{least(lines)}:*]
set grid ytics lc rgb "#dddddd"
set key outside right
set xtics ({', '.join(f'"{x:g}" {x:g}' for x in sorted({x.row.x for x in lines if x.row.x}))})
{chr(10).join(blocks)}
plot {', '.join(plots)}
"""


def draw(script, path):
    """The same picture as SVG and PNG."""
    for kind, terminal in (("svg", "svg size 900,480 dynamic font 'sans,12' background 'white'"),
                           ("png", "pngcairo size 900,480 font 'sans,10'")):
        text = f"set terminal {terminal} noenhanced\nset output {quote(f'{path}.{kind}')}\n{script}"
        out = subprocess.run(["gnuplot", "-"], input=text, text=True, check=False,
                             capture_output=True)
        if out.returncode:
            raise RuntimeError(f"gnuplot: {out.stderr.strip()}\n{text}")


def draw_all(lines, folder):
    """[(name, title)] of the pictures."""
    done = []
    for method in ("exact", "wall"):
        for group, title in rows.GROUPS.items():
            some = [x for x in lines if x.method == method and x.row.group == group]
            if not some or group not in (*BARS_AND_AXES,):
                continue
            unit = some[0].unit
            name = f"{group}-{method}"
            full = f"{title}, {unit}"
            if group in rows.BARS:
                script = bars(full, unit, some)
            else:
                some = [x for x in some if x.row.x]
                if len({x.row.x for x in some}) < 2:
                    continue
                script = curves(full, unit, rows.AXES[group], some)
            draw(script, os.path.join(folder, name))
            done.append((name, full))
    return done


BARS_AND_AXES = (*rows.BARS, *rows.AXES)

STYLE = """
body { font: 15px/1.45 sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: .5em 0 1.5em; font-size: 13px; }
th, td { padding: .2em .7em; border-bottom: 1px solid #ddd; text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
tr.slower td { background: #fbe3dd; } tr.misses td { background: #fff6d6; }
img { max-width: 100%; height: auto; } pre { background: #f5f5f5; padding: .7em; }
"""


def html_table(lines):
    def row(tag, fields, kind=""):
        return f"<tr{kind}>" + "".join(
            f"<{tag}{' class=n' if 3 <= i <= 7 else ''}>{html.escape(f)}</{tag}>"
            for i, f in enumerate(fields)) + "</tr>"

    out = [row("th", results.HEAD)]
    for x in lines:
        kind = (" class=slower" if x.slower else
                " class=misses" if "misses" in results.remark(x) else "")
        out.append(row("td", results.cells(x), kind))
    return "<table>" + "\n".join(out) + "</table>"


def page(lines, pictures, folder, about):
    parts = [f"<!DOCTYPE html><meta charset=utf-8><title>Benchmark</title>"
             f"<style>{STYLE}</style><h1>Device memory: ours against the base</h1>"
             f"<pre>{html.escape(about)}</pre>"
             "<p>A row on red is slower than the base, one on yellow misses its target.</p>"]
    for name, _ in pictures:
        parts.append(f'<p><img src="{name}.svg" alt="{name}">')
    for title, some in results.sections(lines):
        parts.append(f"<h2>{html.escape(title)}</h2>{html_table(some)}")
    with open(os.path.join(folder, "index.html"), "w", encoding="utf-8") as f:
        f.write("\n".join(parts) + "\n")
