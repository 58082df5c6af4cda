#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Boot the test machine.

vm.py run   --image I --initrd R --logs D [--quiet] NAME COMMAND
            run one command in the machine, show its output, return its status
vm.py shell --image I --initrd R --logs D
            a shell in the machine; commands on stdin if that is no terminal

The machine is QEMU, by default with its own CPU (TCG), so that it needs nothing
from the host. It never outlives this process.
"""
import argparse
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

MEMORY_MB = 6144
HUGE_PAGES = 16

# 512 MB of RAM at 4 GB are taken from the kernel and become the memory of the
# two coherent devices; one KUnit test has it before them.
KEPT = ["memmap=512M$0x100000000",
        "spm_addr_dev0=0x100000000", "spm_addr_dev1=0x110000000",
        "memremap_test.spare=0x100000000"]

PR_SET_PDEATHSIG = 1
# Of all that TCG can do, not what it does a byte at a time (rep movsb), nor a
# fifth level of page tables: tests take two thirds of the time without.
TCG_CPU = "max,-erms,-fsrm,-la57"

# Persistent memory of the "bus" board, size in MB, and what makes a file system of
# it, extents aligned to huge pages. xfs wants 300 MB. A disk of virtio has struct
# pages from the beginning, an NVDIMM only if told so.
PMEM = [("mkfs.ext4 -q -F -b 4096 -E stride=512,stripe_width=512", 320, "virtio-pmem-pci"),
        ("mkfs.xfs -q -f -d agcount=2,su=2m,sw=1 -l size=64m,su=32k", 320, "virtio-pmem-pci"),
        (None, 64, "nvdimm")]

LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent():
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def cpio_file(name, data, mode=0o100755):
    """One file and the trailer, as a newc archive."""
    def entry(path, body, bits, ino):
        head = "070701" + "".join(f"{v:08X}" for v in (
            ino, bits, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(path) + 1, 0))
        raw = head.encode() + path.encode() + b"\0"
        raw += b"\0" * (-len(raw) % 4)
        return raw + body + b"\0" * (-len(body) % 4)
    return entry(name, data, mode, 7) + entry("TRAILER!!!", b"", 0, 0)


def make_initrd(base, extra, path):
    """The common initramfs and, behind it, one more file for this boot."""
    shutil.copyfile(base, path)
    with open(path, "ab") as f:
        f.write(b"\0" * (-f.tell() % 4))
        for name, text in extra.items():
            f.write(cpio_file(name, text.encode()))


def command_line(args, *more):
    line = ["console=ttyS0", "panic=-1", "oops=panic", "printk.devkmsg=on",
            "log_buf_len=4M", f"hugepages={HUGE_PAGES}", "hugepagesz=1G", "hugepages=1",
            *KEPT, *more]
    if args.append:
        line.append(args.append)
    return " ".join(line)


def qemu_command(args, logs, initrd, cmdline, serial):
    accel = getattr(args, "accel", None) or os.environ.get("ACCEL") or "tcg"
    cpu = "host" if accel == "kvm" else TCG_CPU
    if accel == "tcg":
        accel = "tcg,thread=multi"
    cmd = ["qemu-system-x86_64", "-accel", accel, "-cpu", cpu,
           "-smp", str(args.smp), "-m", f"{args.mem}M",
           "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
           *getattr(args, "qemu", ())]
    if getattr(args, "board", ""):
        cmd += BOARDS[args.board](args, logs)
    if args.numa:
        half = args.mem // 2
        for node in (0, 1):
            cmd += ["-object", f"memory-backend-ram,id=m{node},size={half}M",
                    "-numa", f"node,nodeid={node},memdev=m{node}"]
    return cmd + ["-kernel", args.image, "-initrd", initrd,
                  "-append", cmdline, *serial]


def dma_board(_args, _logs):
    """An IOMMU, and behind it a device that copies memory. What it reaches by
    itself is 28 bits of addresses."""
    return ["-machine", "q35", "-device", "intel-iommu", "-device", "edu"]


def bus_board(args, logs):
    """Persistent memory; and that device with more bits, behind a switch with an
    NVMe device that has memory of its own. Another one is not behind it."""
    cmd = ["-machine", "q35,nvdimm=on", "-m", f"slots=4,maxmem={2 * args.mem}M",
           "-device", "pcie-root-port,id=root,chassis=1",
           "-device", "x3130-upstream,id=up,bus=root",
           "-device", "xio3130-downstream,id=down0,bus=up,chassis=2,slot=0",
           "-device", "xio3130-downstream,id=down1,bus=up,chassis=2,slot=1",
           "-device", "nvme,serial=near,cmb_size_mb=16,bus=down0",
           "-device", "edu,dma_mask=0xffffffffffff,bus=down1",
           "-device", "nvme,serial=far,cmb_size_mb=16"]
    for i, (mkfs, size, kind) in enumerate(PMEM):
        path = os.path.join(logs, f"pmem{i}")
        with open(path, "wb") as f:
            f.truncate(size << 20)
        if mkfs and subprocess.run([*mkfs.split(), path], stdin=subprocess.DEVNULL).returncode:
            sys.exit(f"error: no file system on {path}")
        cmd += ["-object", f"memory-backend-file,id=pmem{i},share=off,mem-path={path},"
                           f"size={size}M",
                "-device", f"{kind},memdev=pmem{i}"]
    return cmd


BOARDS = {"dma": dma_board, "bus": bus_board}


class Machine:
    """One boot. It is over when QEMU is gone; wait() makes sure of that."""

    def __init__(self, args, logs, steps=None, script=None, cmdline=()):
        os.makedirs(logs, exist_ok=True)
        self.console = os.path.join(logs, "console.log")
        self.steps = os.path.join(logs, "steps.log")
        initrd = os.path.join(logs, "initrd")
        extra = {}
        if steps is not None:
            extra["steps"] = "".join(f"{n}\t{c}\n" for n, c in steps)
        if script is not None:
            extra["script"] = script
        make_initrd(args.initrd, extra, initrd)
        for path in (self.console, self.steps):
            open(path, "w").close()
        serial = ["-serial", f"file:{self.console}", "-serial", f"file:{self.steps}"]
        self.qemu_log = os.path.join(logs, "qemu.log")
        self.began = time.monotonic()
        with open(self.qemu_log, "w", encoding="utf-8") as errors:
            self.qemu = subprocess.Popen(
                qemu_command(args, logs, initrd, command_line(args, *cmdline), serial),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                start_new_session=True, preexec_fn=die_with_parent)
        self.initrd = initrd
        self.ended = None
        self.growth = (0, self.began)

    def size(self):
        return os.path.getsize(self.console) + os.path.getsize(self.steps)

    def poll(self, limit, silence):
        """None while it runs; then "" or what is wrong with how it ended."""
        now = time.monotonic()
        status = self.qemu.poll()
        if self.size() != self.growth[0]:
            self.growth = (self.size(), now)
        if status is not None:
            self.ended = ""
            if status:
                with open(self.qemu_log, encoding="utf-8") as f:
                    self.ended = f"qemu ended with status {status}: {f.read().strip()}"
            elif "Kernel panic" in self.tail():
                self.ended = "the kernel panicked"
        elif now - self.began > limit:
            self.kill()
            self.ended = f"did not end within {limit} s"
        elif now - self.growth[1] > silence:
            self.kill()
            self.ended = f"hangs: silent for {silence} s"
        if self.ended is not None:
            self.seconds = now - self.began
            if os.path.exists(self.initrd):
                os.unlink(self.initrd)
        return self.ended

    def tail(self):
        with open(self.console, "rb") as f:
            f.seek(max(0, os.path.getsize(self.console) - 65536))
            return f.read().decode("utf-8", "replace")

    def kill(self):
        if self.qemu.poll() is None:
            self.qemu.kill()
        self.qemu.wait()


def stop_on_signals():
    """SIGTERM and SIGHUP unwind like Ctrl-C, so that the machines are ended."""
    def stop(signum, _frame):
        raise KeyboardInterrupt(signum)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)


def run(args):
    """One command; its output as it comes, its status as ours."""
    steps = [("load", "dmirror load"), (args.name, args.command)]
    quiet = ("quiet", "loglevel=4", "kunit.enable=0")
    sys.stderr.write(">>> booting\n")
    vm = Machine(args, args.logs, steps=steps, cmdline=quiet)
    inside, status, failed_load = False, None, False
    try:
        with open(vm.steps, encoding="utf-8", errors="replace") as f:
            over, rest = False, ""
            while True:
                over = vm.poll(args.limit, args.limit) is not None
                rest += f.read()
                *lines, rest = rest.split("\n")
                for line in lines:
                    line = line.rstrip("\r")
                    if line.startswith("=== boot"):
                        sys.stderr.write(f"    up after {time.monotonic() - vm.began:.1f} s"
                                         f" ({line[9:]})\n")
                    elif line.startswith("=== step"):
                        inside = line.split()[2] == args.name
                    elif line.startswith("=== end"):
                        _, _, name, _, number = line.split()
                        if name == args.name:
                            status = int(number)
                        elif int(number):
                            failed_load = True
                        inside = False
                    elif inside:
                        print(line, flush=True)
                if over:
                    break
                time.sleep(0.05)
    finally:
        vm.kill()
    import report
    with open(vm.console, encoding="utf-8", errors="replace") as f:
        hits = report.trouble(f.read())
    for hit in hits:
        sys.stderr.write(f"kernel log: {hit}\n")
    if vm.ended or status is None or failed_load:
        sys.stderr.write(f"error: {vm.ended or 'the machine ended early'}, "
                         f"see {args.logs}\n")
        return 1
    return 1 if hits and not status else status


def shell(args):
    """Interactive on a terminal; else the commands come from stdin."""
    os.makedirs(args.logs, exist_ok=True)
    initrd = tempfile.NamedTemporaryFile(dir=args.logs, prefix="initrd.")
    script = None if sys.stdin.isatty() else sys.stdin.read()
    make_initrd(args.initrd, {} if script is None else {"script": script}, initrd.name)
    log = os.path.join(args.logs, "console.log")
    serial = ["-chardev", f"stdio,id=c,signal=off,logfile={log}",
              "-serial", "chardev:c"]
    cmdline = command_line(args, "quiet", "loglevel=4", "kunit.enable=0")
    cmd = qemu_command(args, args.logs, initrd.name, cmdline, serial)
    if script is None:
        sys.stderr.write(">>> booting; \"exit\" ends it\n")
        return subprocess.call(cmd, preexec_fn=die_with_parent)
    qemu = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            start_new_session=True, preexec_fn=die_with_parent)
    timer = time.monotonic() + args.limit
    status = 1
    try:
        os.set_blocking(qemu.stdout.fileno(), False)
        rest = ""
        while True:
            over = qemu.poll() is not None
            rest += (qemu.stdout.read() or b"").decode("utf-8", "replace")
            *lines, rest = rest.split("\n")
            for line in lines:
                line = line.rstrip("\r")
                end = re.match(r"=== script status (\d+)", line)
                if end:
                    status = int(end.group(1))
                else:
                    print(line, flush=True)
            if over:
                return status
            if time.monotonic() > timer:
                sys.stderr.write(f"error: did not end within {args.limit} s\n")
                return 1
            time.sleep(0.05)
    finally:
        if qemu.poll() is None:
            qemu.kill()
        qemu.wait()


def arguments(parser):
    parser.add_argument("--image", required=True)
    parser.add_argument("--initrd", required=True)
    parser.add_argument("--logs", required=True)
    parser.add_argument("--smp", type=int, default=int(os.environ.get("SMP") or 2))
    parser.add_argument("--mem", type=int, default=int(os.environ.get("MEM") or MEMORY_MB))
    parser.add_argument("--numa", action="store_true", help="two NUMA nodes")
    parser.add_argument("--board", choices=["", *BOARDS], default=os.environ.get("BOARD", ""),
                        help="devices that the plain machine does not have")
    parser.add_argument("--append", default=os.environ.get("APPEND", ""))
    parser.add_argument("--limit", type=int, default=300, help="seconds")


def main():
    ap = argparse.ArgumentParser()
    sub = ap.add_subparsers(dest="verb", required=True)
    for verb in ("run", "shell"):
        p = sub.add_parser(verb)
        arguments(p)
        if verb == "run":
            p.add_argument("name")
            p.add_argument("command")
    args = ap.parse_args()
    stop_on_signals()
    return run(args) if args.verb == "run" else shell(args)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
