#!/usr/bin/env python3
"""Registers, spills and shared memory of every kernel, from the logs that the build left in BUILD/cuda; no GPU needed.

    check_nvcc.py BUILD [--arch 90a] [--allow REGEX]

Fails if a kernel spills registers to memory, or if a .cu file has no log of each architecture asked for. --allow names
kernels that may spill. --self-test proves both on logs made up for it.
"""
import argparse
import glob
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
SPILL = re.compile(r"(\d+) bytes spill (?:stores|loads)")
REGISTERS = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


def kernels_of(log):
    """(name, arch, registers, spilled bytes, bytes of static shared memory) of each kernel in the log of one file."""
    entries = list(ENTRY.finditer(log))
    for entry, following in zip(entries, entries[1:] + [None]):
        report = log[entry.end():following.start() if following else None]
        registers, shared = REGISTERS.search(report), SHARED.search(report)
        yield (*entry.groups(), int(registers[1]), sum(map(int, SPILL.findall(report))), int(shared[1]) if shared else 0)


def demangled(names):
    try:
        out = subprocess.run(["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {name: name for name in names}
    short = (re.sub(r"t2l::cuda::|\(anonymous namespace\)::|^void ", "", line) for line in out.splitlines())
    return dict(zip(names, short))


def check(sources, build, archs, allow, show=print):
    """The number of faults; shows a row per kernel."""
    faults, rows = 0, []
    for source in sources:
        base = os.path.splitext(os.path.basename(source))[0]
        try:
            with open(os.path.join(build, "cuda", base + ".o.log")) as f:
                kernels = list(kernels_of(f.read()))
        except FileNotFoundError:
            show(f"FAILED {base}.cu: not compiled by nvcc in {build}")
            faults += 1
            continue
        seen = {arch for _, arch, *_ in kernels}
        with open(source) as f:
            has_kernels = "__global__" in f.read()
        for arch in archs:
            if has_kernels and arch not in seen:
                show(f"FAILED {base}.cu: no kernel for sm_{arch} in its log")
                faults += 1
        rows += [(base, *kernel) for kernel in kernels if not archs or kernel[1] in archs]
    names = demangled(sorted({row[1] for row in rows}))
    show(f"{'file':<14}{'sm':>4}{'registers':>11}{'spilled':>9}{'shared':>8}  kernel")
    for base, name, arch, registers, spilled, shared in sorted(rows):
        allowed = allow and re.search(allow, names[name])
        bad = spilled and not allowed
        faults += bool(bad)
        show(f"{base:<14}{arch:>4}{registers:>11}{spilled:>9}{shared:>8}  {names[name]}{'  SPILLS' if bad else ''}")
    show(f"nvcc: {len(rows)} kernels, {faults} faults")
    return faults


def self_test():
    entry = """ptxas info    : Compiling entry function '_Z1kPf' for 'sm_90a'
ptxas info    : Function properties for _Z1kPf
    {0} bytes stack frame, {0} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 512 bytes smem
"""
    cases = [("clean", entry.format(0), ["90a"], None, 0), ("spill", entry.format(8), ["90a"], None, 1),
             ("spill among others", entry.format(0) + entry.format(8) + entry.format(0), ["90a"], None, 1),
             ("allowed", entry.format(8), ["90a"], "^k", 0), ("other arch", entry.format(0), ["80"], None, 1),
             ("no log", None, ["90a"], None, 1)]
    failed = 0
    for name, log, archs, allow, expected in cases:
        with tempfile.TemporaryDirectory() as build:
            os.mkdir(os.path.join(build, "cuda"))
            source = os.path.join(build, "k.cu")
            with open(source, "w") as f:
                f.write("__global__ void k(float*) {}\n")
            if log is not None:
                with open(os.path.join(build, "cuda", "k.o.log"), "w") as f:
                    f.write(log)
            lines = []
            faults = check([source], build, archs, allow, lines.append)
        failed += faults != expected
        print(f"{'ok    ' if faults == expected else 'FAILED'} {name}: {faults} faults")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", nargs="?", default="build")
    parser.add_argument("--arch", action="append", default=[])
    parser.add_argument("--allow")
    parser.add_argument("--self-test", action="store_true")
    args = parser.parse_args()
    if args.self_test:
        sys.exit(self_test() != 0)
    sys.exit(check(sorted(glob.glob(os.path.join(ROOT, "cuda", "*.cu"))), args.build, args.arch, args.allow) != 0)
