#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""What the consoles of a test machine say: results, and signs of trouble.

A machine has two serial ports. The kernel writes to the first (console.log):
its messages and the KUnit results. The steps that ran write to the second
(steps.log), each between "=== step NAME" and "=== end NAME status N".

Nothing counts as passed because it is absent: a step that did not begin or
end, a plan that is missing or not met, a machine that did not say "=== done",
all are failures.
"""
import re
from dataclasses import dataclass, field

PASS, FAIL, SKIP = "ok", "not ok", "skip"

# Any of these in a kernel log fails the machine it comes from.
TROUBLE = re.compile("|".join((
    r"\bWARNING: ",
    r"\bBUG: ",
    r"\bkernel BUG at ",
    r"\bOops\b",
    r"\bKernel panic\b",
    r"\bgeneral protection fault\b",
    r"\bdouble fault\b",
    r"\bCall Trace:",
    r"\bKASAN\b(?!.*\binitialized\b)",
    r"\bKCSAN\b(?!.*\b(?:enabled|strict|selftest)\b)",
    r"\bUBSAN\b",
    r"\bKFENCE: (?!initialized)",
    r"\bODEBUG: (?!selftest)",
    r"\bINFO: possible\b",
    r"\bpossible (?:circular|recursive|irq lock|deadlock)",
    r"\binconsistent lock state\b",
    r"\bbad unlock balance\b",
    r"\bheld lock freed\b",
    r"\block held when returning to user space\b",
    r"\bsuspicious RCU usage\b",
    r"\bInvalid wait context\b",
    r"\bnested lock was not taken\b",
    r"\bDEBUG_LOCKS_WARN_ON\b",
    r"\b(?:sleeping function called from invalid context|scheduling while atomic)\b",
    r"\bblocked for more than\b",
    r"\b(?:soft|hard) lockup\b|\bLOCKUP\b|\bworkqueue lockup\b",
    r"\brcu\w*: INFO:|\bdetected stalls?\b|\bself-detected stall\b",
    r"\bBad (?:page|rss-counter)\b|\bbad (?:pmd|pud|p4d|pgd|pte)\b",
    r"\bBad swap (?:file|offset) entry\b",
    r"\bpage[_ ]table[_ ]check\b.*\b(?:fail|bad)",
    r"\bunreferenced object\b|\bkmemleak: \d+ new\b",
    r"\bObjects remaining\b",
    r"\brefcount_t: ",
    r"\blist_(?:add|del) corruption\b",
    r"\b(?:slab|page|memory) leak",
    r"\bleaked\b",
    r"\bOut of memory: Killed\b|\binvoked oom-killer\b",
    r"\bUnable to handle\b|\bunable to handle\b",
    r"\bunhandled signal\b|\bsegfault at\b|\btrap (?:invalid opcode|divide error)\b",
    r"\bunchecked MSR access\b",
    r"\bDMAR: .*\bfault\b|\bDMA-API: .*: device driver\b",
    r"\bstack-protector\b|\bcorrupted stack end\b",
    r"\bIRQ \d+: nobody cared\b|irq \d+: nobody cared\b",
    r"\bInitramfs unpacking failed\b",
    r"\bunable to open an initial console\b",
)))

# Where allocations of faults fail on purpose, the kernel is to say so.
NO_MEMORY = re.compile(r"\bVM_FAULT_OOM leaked out to the #PF handler\b")

STAMP = re.compile(r"^(?:<\d>)?\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ?")
RESULT = re.compile(r"^(ok|not ok)\b(?: +(\d+))?(?: +-)?(?: +(.*))?$")
PLAN = re.compile(r"^1\.\.(\d+)(?: *# *SKIP *(.*))?$", re.I)
DIRECTIVE = re.compile(r"(?:^|\s)# *(SKIP|TODO|XFAIL|TIMEOUT|error)\b:? *(.*)$", re.I)
VERSION = re.compile(r"^K?TAP version \d+$")


@dataclass
class Case:
    name: str
    result: str
    reason: str = ""


@dataclass
class Step:
    """What one step of one machine came to."""
    name: str
    cases: list = field(default_factory=list)
    seconds: float = 0.0

    def add(self, name, result, reason=""):
        self.cases.append(Case(name, result, reason))

    def count(self, result):
        return sum(c.result == result for c in self.cases)

    @property
    def failed(self):
        return self.count(FAIL) or not self.cases


def clean(text):
    """Lines as written: without \\r, terminal escapes and time stamps."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1bc", "", text)
    return [STAMP.sub("", line) for line in text.replace("\r", "").split("\n")]


def read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read()
    except FileNotFoundError:
        return ""


def trouble_by_step(text):
    """(step, line) for each line of a kernel log that must not be there."""
    now = "boot"
    for line in clean(text):
        begin = re.match(r"=== step (\S+)", line)
        if begin:
            now = begin.group(1)
        elif TROUBLE.search(line) and not (now == "failnth" and NO_MEMORY.search(line)):
            yield now, line


def trouble(text):
    """Lines of a kernel log that must not be there."""
    return [line for _, line in trouble_by_step(text)]


class _Level:
    """One nesting level of KTAP while it is read."""
    def __init__(self, indent, name=""):
        self.indent, self.name = indent, name
        self.plan = None
        self.seen = 0
        self.wrong_number = None


def parse_tap(lines, step):
    """Add the results in these lines to the step: the leaves, by full name.

    A result line that closes a subtest counts only if it says "not ok" though
    every case in it passed: then something around the cases failed.
    """
    stack = []
    closed = None           # (level, failures, cases) of the subtest just read
    title = ""
    found = False

    def finish(level, nested):
        nonlocal title
        where = level.name or step.name
        if level.plan is None and not nested:
            step.add(f"{where}: plan", FAIL, "no plan line")
        elif level.plan is not None and level.plan != level.seen:
            step.add(f"{where}: plan", FAIL,
                     f"planned {level.plan}, {level.seen} ran")
        if level.wrong_number is not None:
            step.add(f"{where}: order", FAIL,
                     f"result {level.wrong_number} is out of order")

    def level_at(indent, name=""):
        nonlocal closed
        while stack and stack[-1].indent > indent:
            level = stack.pop()
            # A parametrised KUnit case has no plan: its parent's line ends it.
            finish(level, nested=len(stack) >= 2)
            closed = level
        if not stack or stack[-1].indent < indent:
            level = _Level(indent, name)
            level.first = len(step.cases)
            stack.append(level)
        return stack[-1]

    for line in lines:
        body = line.lstrip(" ")
        indent = len(line) - len(body)
        subtest = re.match(r"^# Subtest: (.*)$", body)
        result = RESULT.match(body)
        plan = PLAN.match(body)
        if subtest:
            title = subtest.group(1).strip()
            parent = [lv.name for lv in stack if lv.indent < indent and lv.name]
            level = level_at(indent)
            level.name = ".".join(parent[-1:] + [title])
        elif VERSION.match(body):
            closed = None
            level_at(indent)
        elif plan:
            found = True
            level = level_at(indent)
            level.plan = int(plan.group(1))
            if plan.group(2) is not None:
                step.add(level.name or step.name, SKIP, plan.group(2))
                level.plan = level.seen
        elif body.startswith("Bail out!"):
            step.add(f"{step.name}: bail out", FAIL, body[9:].strip())
        elif result:
            found = True
            closed = None
            level = level_at(indent)
            level.seen += 1
            if result.group(2) and int(result.group(2)) != level.seen:
                if level.wrong_number is None:
                    level.wrong_number = int(result.group(2))
            name = result.group(3) or f"test {level.seen}"
            what, reason = (PASS if result.group(1) == "ok" else FAIL), ""
            directive = DIRECTIVE.search(name)
            if directive:
                kind, reason = directive.group(1).upper(), directive.group(2)
                name = name[:directive.start()].strip() or f"test {level.seen}"
                if kind == "SKIP":
                    what = SKIP
                elif kind in ("TIMEOUT", "ERROR"):
                    what, reason = FAIL, f"{kind.lower()} {reason}".strip()
            full = f"{level.name}.{name}" if level.name else name
            if closed is not None and closed.seen:
                inside = step.cases[closed.first:]
                if what == FAIL and not any(c.result == FAIL for c in inside):
                    step.add(full, FAIL, reason or "failed outside its cases")
                elif what == SKIP and not inside:
                    step.add(full, SKIP, reason)
            else:
                step.add(full, what, reason)
    while stack:
        finish(stack.pop(), nested=len(stack) >= 2)
    if not found:
        step.add(f"{step.name}: results", FAIL, "no test result was printed")
    return step


def split_steps(text):
    """name -> (lines, status or None), in the order they began."""
    steps, name, done = {}, None, False
    for line in text.replace("\r", "").split("\n"):
        begin = re.match(r"^=== step (\S+)", line)
        end = re.match(r"^=== end (\S+) status (\d+)", line)
        if begin:
            name = begin.group(1)
            steps[name] = ([], None)
        elif end and end.group(1) in steps:
            steps[end.group(1)] = (steps[end.group(1)][0], int(end.group(2)))
            name = None
        elif line.startswith("=== done"):
            done = True
        elif name:
            steps[name][0].append(line)
    return steps, done


def judge_step(name, kind, found):
    """kind: "tap", or "plain" where the exit status is the result."""
    step = Step(name)
    if name not in found:
        step.add(f"{name}: run", FAIL, "did not begin")
        return step
    lines, status = found[name]
    if kind == "tap":
        parse_tap(lines, step)
    elif status is not None:
        last = [line for line in lines if line.strip()][-1:]
        step.add(name, PASS if status == 0 else FAIL,
                 "" if status == 0 else f"status {status}: {' '.join(last)}")
    if status is None:
        step.add(f"{name}: end", FAIL, "did not end")
    elif kind == "tap" and status not in (0, 4) and not step.count(FAIL):
        step.add(f"{name}: status", FAIL, f"ended with status {status}")
    return step


def kunit_lines(console):
    """The KTAP part of a kernel log: from its header to the first process."""
    lines = clean(console)
    begin = next((i for i, line in enumerate(lines)
                  if line.strip() == "KTAP version 1"), None)
    if begin is None:
        return []
    end = next((i for i, line in enumerate(lines[begin:], begin)
                if re.match(r"Run /\S*init as init process|=== ", line)), len(lines))
    return lines[begin:end]


def judge_kunit(console, suites, name="kunit"):
    """KUnit at boot; each of the suites must have run."""
    step = parse_tap(kunit_lines(console), Step(name))
    ran = {c.name.split(".")[0].split(":")[0] for c in step.cases}
    for suite in suites:
        if suite not in ran:
            step.add(suite, FAIL, "the suite did not run")
    return step


def judge_machine(name, console, steps_log, plan, ended, suites=None):
    """All steps of one machine, then the machine itself.

    plan: [(step, kind)]; ended: "" or how the machine failed to end.
    """
    found, done = split_steps(steps_log)
    steps = []
    if suites is not None:
        steps.append(judge_kunit(console, suites, f"{name}-kunit" if plan else name))
    steps += [judge_step(step, kind, found) for step, kind in plan]

    machine = Step(f"{name}-log")
    if ended or not done:
        machine.add(f"{name}: machine", FAIL, ended or "switched off before the end")
    else:
        machine.add(f"{name}: machine", PASS)
    hits = trouble(console)
    if not console.strip():
        machine.add(f"{name}: log", FAIL, "the kernel printed nothing")
    elif hits:
        machine.add(f"{name}: log", FAIL, f"{len(hits)} lines: {hits[0]}")
    else:
        machine.add(f"{name}: log", PASS)
    machine.hits = hits
    steps.append(machine)
    return steps


def totals(steps):
    return tuple(sum(s.count(r) for s in steps) for r in (PASS, FAIL, SKIP))


def print_ktap(steps, out):
    """The results of all machines as one KTAP document."""
    print("KTAP version 1", file=out)
    print(f"1..{len(steps)}", file=out)
    for number, step in enumerate(steps, 1):
        print("    KTAP version 1", file=out)
        print(f"    # Subtest: {step.name}", file=out)
        print(f"    1..{len(step.cases)}", file=out)
        for n, case in enumerate(step.cases, 1):
            mark = "not ok" if case.result == FAIL else "ok"
            name = case.name.replace("#", "\\#")
            tail = f" # SKIP {case.reason}" if case.result == SKIP else ""
            print(f"    {mark} {n} {name}{tail}", file=out)
            if case.result == FAIL and case.reason:
                print(f"    # {case.name}: {case.reason}", file=out)
        for hit in getattr(step, "hits", [])[:40]:
            print(f"    # kernel log: {hit}", file=out)
        print(f"{'not ok' if step.failed else 'ok'} {number} {step.name}", file=out)


def print_summary(steps, out):
    width = max(len(s.name) for s in steps)
    print(f"\n{'step':<{width}}  passed  failed  skipped  seconds", file=out)
    for s in steps:
        print(f"{s.name:<{width}}  {s.count(PASS):6}  {s.count(FAIL):6}  "
              f"{s.count(SKIP):7}  {s.seconds:7.1f}", file=out)
    for s in steps:
        for c in s.cases:
            if c.result == FAIL:
                print(f"FAILED  {s.name}: {c.name}  {c.reason}", file=out)
            elif c.result == SKIP:
                print(f"SKIPPED {s.name}: {c.name}  {c.reason}", file=out)


def finish(steps, logs):
    """The last lines of a run; its exit status."""
    print(f"logs: {logs}")
    print(closing_line(steps), flush=True)
    passed, failed, skipped = totals(steps)
    return 0 if passed and not failed and not skipped else 1


def closing_line(steps):
    passed, failed, skipped = totals(steps)
    return f"{passed} passed, {failed} failed, {skipped} skipped"
