# SPDX-License-Identifier: GPL-2.0
"""What is measured: every row of the benchmark.

A row is a command of hmm_bench, and what its number means. "x" rows are counted
in instructions, one CPU; "w" rows are timed on two CPUs; "xw" rows both ways.
"""
from dataclasses import dataclass

GROUPS = {
    "mirror": "The mirror: hmm_range_fault()",
    "migrate": "Migration by folio size",
    "kinds": "Migration of other kinds of memory",
    "batch": "Migration by size of a call",
    "range": "Migration by size of the range",
    "threads": "Threads, each with memory of its own",
    "pgmap": "Page maps: memremap_pages(), memunmap_pages()",
    "dma": "DMA addresses for what the mirror found",
    "tlb": "Remote TLB flushes per 1000 pages, another thread on the other CPU",
    "dmirror": "The dmirror driver, with its data",
}

# Rows of these groups are drawn as bars; those of the others as lines.
BARS = ("mirror", "kinds", "dma", "dmirror")

# What is on the x axis of the others
AXES = {
    "migrate": "folio size, kB",
    "batch": "pages per call",
    "range": "size of the range, MiB",
    "threads": "threads",
    "pgmap": "size of the page map, GiB",
}


# Of the machine; and of the one for rows that need more of it
MEMORY_MB, LARGE_MB = 4096, 8192


@dataclass(frozen=True)
class Row:
    name: str
    group: str
    title: str
    command: str
    target: float = None        # instructions per page
    how: str = "x"
    unit: str = "per page"
    series: str = None          # line of the group's plot
    x: float = None             # and where on it
    instead: str = None         # stock moves none of it: what it has to do then
    none_moves: bool = False    # on any kernel: what is measured is the refusal
    memory: int = MEMORY_MB     # what the machine has,
    board: str = ""             # and which devices


def size_name(kb):
    return f"{kb // 1024}M" if kb >= 1024 else f"{kb}K"


def mirror():
    big = "pages=8192 batch=8192"
    for name, title, command, target in (
            ("snapshot-4k", "snapshot, 4K PTEs", "snapshot", 12),
            ("snapshot-64k", "snapshot, 64K folios", "snapshot folio=64", None),
            ("snapshot-private", "snapshot, device-private PTEs",
             "snapshot on=device", 12),
            ("snapshot-thp", "snapshot, THP", "snapshot folio=2048", 3),
            ("fault-thp", "write-fault of a hole, THP allowed",
             "mirror_fault memory=hole folio=2048", 560),
            ("fault-64k", "write-fault of a hole, 64K allowed",
             "mirror_fault memory=hole folio=64", None),
            ("fault-4k", "write-fault of a hole, 4K",
             "mirror_fault memory=hole", 2300),
            ("fault-cached", "read-fault of a file that is in the page cache",
             "mirror_fault memory=cached read=1", None),
            ("fault-swap", "write-fault of 4K pages that are swapped out",
             "mirror_fault memory=swap", None)):
        yield Row(name, "mirror", title, f"{command} {big}", target, how="xw")


TARGETS = {
    ("to-dev", 4): 600, ("to-ram", 4): 600, ("cpu-fault", 4): 2500,
    ("to-dev", 64): 90,
    ("to-dev", 2048): 45, ("to-ram", 2048): 50, ("cpu-fault", 2048): 60,
}

WAYS = (("to-dev", "to the device", "to_dev"),
        ("to-ram", "to RAM", "to_ram on=device"),
        ("cpu-fault", "CPU fault back", "cpu_fault on=device"))


def migrate():
    for kb in (4, 16, 64, 256, 1024, 2048):
        for name, title, command in WAYS:
            size = size_name(kb)
            yield Row(f"{name}-{size.lower()}", "migrate", f"{title}, {size} folios",
                      f"{command} folio={kb}", TARGETS.get((name, kb)), how="xw",
                      series=title, x=kb,
                      instead=None if kb == 4 else f"{name}-4k")
    for name, title, command in WAYS:
        yield Row(f"{name}-2m-pte", "kinds", f"{title}, 2M folios mapped by PTEs",
                  f"{command} folio=2048 map=pte", instead=f"{name}-4k")


def kinds():
    for kind, of in (("fork", "pages that a child shares"),
                     ("private", "written pages of a private file mapping")):
        for name, title, command in WAYS[:2]:
            yield Row(f"{name}-{kind}", "kinds", f"{title}, {of}",
                      f"{command} memory={kind}")
    for name, title, memory in (("file", "page cache", "shared"),
                                ("swap", "swapped out", "swap")):
        yield Row(f"to-dev-{name}", "kinds", f"to the device, {title}: refused",
                  f"to_dev memory={memory}", none_moves=True)
    for kb in (4, 2048):
        size = size_name(kb)
        yield Row(f"evict-{size.lower()}", "kinds",
                  f"eviction of a full device, {size} folios",
                  f"evict on=device pages=8192 folio={kb}",
                  instead=None if kb == 4 else "evict-4k")


def batch():
    for nr in (1, 16, 512, 8192):
        for name, title, command in WAYS[:2]:
            yield Row(f"{name}-batch-{nr}", "batch", f"{title}, 4K, {nr} per call",
                      f"{command} pages=8192 batch={nr}", series=title, x=nr)


def ranges():
    for mb in (2, 16, 128, 1024, 4096):
        for name, title, command in WAYS[:2]:
            yield Row(f"{name}-range-{mb}m", "range", f"{title}, 4K, {mb} MiB",
                      f"{command} pages={mb * 256} reps={1 if mb > 128 else 3}",
                      memory=MEMORY_MB if mb <= 1024 else LARGE_MB, series=title, x=mb)


def threads():
    for nr in (1, 2, 4, 8):
        for name, title, command in WAYS:
            yield Row(f"{name}-threads-{nr}", "threads", f"{title}, 4K, {nr} threads",
                      f"{command} threads={nr} pages=4096", how="w", series=title, x=nr)


def pgmap():
    for gb, reps in ((1, 7), (16, 3), (64, 3), (256, 1)):
        for what, title, target in (("map", "memremap", 20), ("unmap", "memunmap", 12)):
            yield Row(f"pgmap-{what}-{gb}g", "pgmap", f"{title}, {gb} GiB",
                      f"{what} pages={gb << 18} reps={reps}", target,
                      how="xw" if gb == 1 else "x", series=what, x=gb,
                      memory=MEMORY_MB if gb <= 64 else LARGE_MB)


def dma():
    """Behind an IOMMU, and without one: then an address is that of RAM."""
    for board, where in (("dma", "IOMMU"), ("", "no IOMMU")):
        for kb in (4, 2048):
            size = size_name(kb)
            for what in ("map", "unmap"):
                yield Row(f"dma-{what}-{'iommu' if board else 'direct'}-{size.lower()}",
                          "dma", f"{what}, {where}, {size} folios",
                          f"dma_{what} folio={kb}", board=board)


def tlb():
    for kb in (4, 64, 2048):
        size = size_name(kb)
        yield Row(f"tlb-to-dev-{size.lower()}", "tlb", f"to the device, {size} folios",
                  f"to_dev tlb=1 folio={kb} pages=8192", how="w",
                  unit="flushes per 1000 pages",
                  instead=None if kb == 4 else "tlb-to-dev-4k")


def dmirror():
    for kb in (4, 2048):
        size = size_name(kb)
        for what, title in (("read", "device reads RAM"), ("write", "device writes RAM"),
                            ("to_dev", "to the device"), ("to_ram", "to RAM"),
                            ("cpu_fault", "CPU fault back")):
            yield Row(f"dmirror-{what.replace('_', '-')}-{size.lower()}", "dmirror",
                      f"{title}, {size} folios", f"dmirror_{what} folio={kb}", how="xw")
    yield Row("dmirror-cpu-fault-around-4k", "dmirror",
              "CPU fault back, 4K folios, with fault-around",
              "dmirror_cpu_fault around=1", how="xw")


ROWS = [row for make in (mirror, migrate, kinds, batch, ranges, threads, pgmap, dma,
                         tlb, dmirror) for row in make()]
