#!/usr/bin/env python3
"""Deletes each barrier of each kernel in turn: do the emulated tests notice?

    mutate.py [--build DIR] [--target TEST]... [--file REGEX] [--filter CATCH_FILTER] [--jobs N] [--list]

A barrier is a call of __syncthreads, __syncwarp, cp_async_wait or cp_async_commit in cuda/*.cu and cuda/*.cuh. For
each, the translation units that see it are compiled without it in a scratch folder, the tests are linked anew from the
build in DIR (default build, made with CMake) and run under every schedule until one fails. Survivors are reported and
fail the run, unless tools/mutate.allow proves that no test can notice. Its lines read

    cuda/FILE #K CALL: proof

where CALL is the K-th barrier of the file, counted from 1; lines that fit no barrier, or one that a test does notice,
fail too.
"""
import argparse
import concurrent.futures
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BARRIER = re.compile(r"\b(__syncthreads|__syncwarp|cp_async_wait<[^;()]*>|cp_async_commit)\([^;()]*\)(?=\s*;)")
DEFINES = {"ptx.cuh"}  # where they are defined, not used
SCHEDULES = ["descending", "ascending", "shuffled:1", "shuffled:2"]
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.M)


def barriers(path):
    """(number from 1, line, begin, end, call) of each barrier in a file; comments do not count."""
    text = open(os.path.join(ROOT, path)).read()
    number = 0
    for m in BARRIER.finditer(text):
        line_begin = text.rfind("\n", 0, m.start()) + 1
        if "//" in text[line_begin:m.start()]:
            continue
        number += 1
        yield number, text.count("\n", 0, m.start()) + 1, m.start(), m.end(), m[0]


def allowed():
    """{(file, number, call): proof} from mutate.allow."""
    path = os.path.join(ROOT, "tools", "mutate.allow")
    out = {}
    for line in open(path) if os.path.exists(path) else []:
        if line.strip() and not line.startswith("#"):
            m = re.fullmatch(r"(\S+) #(\d+) (.+?\)): (\S.*)\n?", line)
            if not m:
                sys.exit(f"tools/mutate.allow: not 'FILE #K CALL: proof': {line.strip()}")
            out[m[1], int(m[2]), m[3]] = m[4]
    return out


class Includes:
    """Which files a source includes, directly or not, by names relative to the repository."""

    def __init__(self):
        self.seen = {}

    def of(self, path):
        if path not in self.seen:
            self.seen[path] = set()
            try:
                names = INCLUDE.findall(open(os.path.join(ROOT, path)).read())
            except OSError:
                names = []
            for name in names:
                self.seen[path] |= {name} | self.of(name)
        return self.seen[path]


class Target:
    """A test program: its objects, and how it is linked."""

    def __init__(self, build, name, filter_):
        self.name, self.filter = name, filter_
        folder = os.path.join(build, "tests")
        script = os.path.join(folder, "CMakeFiles", name + ".dir", "link.txt")
        if os.path.exists(script):
            self.cwd, command = folder, open(script).read().strip()
        else:
            out = subprocess.run(["ninja", "-C", build, "-t", "commands", name], capture_output=True, text=True)
            if out.returncode:
                sys.exit(f"mutate: {build} has no target {name}: run cmake first, with tests on")
            self.cwd, command = build, out.stdout.strip().splitlines()[-1].split(" && ")[1]
        self.link = shlex.split(command)

    def objects(self):
        return {os.path.normpath(os.path.join(self.cwd, a)) for a in self.link if a.endswith(".o")}


def compile_commands(build):
    """{object: (source relative to the repository, folder, command)}"""
    out = {}
    for entry in json.load(open(os.path.join(build, "compile_commands.json"))):
        command = shlex.split(entry["command"])
        target = os.path.normpath(os.path.join(entry["directory"], command[command.index("-o") + 1]))
        out[target] = (os.path.relpath(entry["file"], ROOT), entry["directory"], command)
    return out


def run_tests(program, target, build, seconds):
    """None if they pass under every schedule, else the schedule that fails."""
    for schedule in SCHEDULES:
        env = dict(os.environ, T2L_EMU_SCHEDULE=schedule, T2L_BIN=os.path.join(build, "bin"), OMP_NUM_THREADS="1")
        command = [program, "--abort"] + ([target.filter] if target.filter else [])
        try:
            done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                  timeout=seconds)
        except subprocess.TimeoutExpired:
            return schedule + ", by hanging"
        if done.returncode:
            return schedule
    return None


def check(arguments, targets, commands, includes, path, barrier):
    """Who noticed that the barrier is gone; None: nobody."""
    _, _, begin, end, _ = barrier
    with tempfile.TemporaryDirectory(prefix="mutate-") as scratch:
        text = open(os.path.join(ROOT, path)).read()
        mutant = os.path.join(scratch, path)
        os.makedirs(os.path.dirname(mutant))
        open(mutant, "w").write(text[:begin] + "((void)0)" + text[end:])
        built = {}
        for target in targets:
            link = list(target.link)
            touched = False
            for i, word in enumerate(link):
                obj = os.path.normpath(os.path.join(target.cwd, word))
                source, folder, command = commands.get(obj, (None, None, None))
                if source is None or source != path and path not in includes.of(source):
                    continue
                touched = True
                if obj not in built:
                    built[obj] = os.path.join(scratch, f"{len(built)}.o")
                    command = [mutant if os.path.normpath(os.path.join(folder, w)) == os.path.join(ROOT, source)
                               and source == path else w for w in command]
                    command[command.index("-o") + 1] = built[obj]
                    at = next(k for k, w in enumerate(command) if w.startswith("-I"))
                    command[at:at] = ["-I" + scratch]
                    done = subprocess.run(command + ["-Wno-error"], cwd=folder, capture_output=True, text=True)
                    if done.returncode:
                        raise RuntimeError(f"{path} without its barrier does not compile:\n{done.stderr[-2000:]}")
                link[i] = built[obj]
            if not touched:
                continue
            program = os.path.join(scratch, target.name)
            link[link.index("-o") + 1] = program
            done = subprocess.run(link, cwd=target.cwd, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{target.name} does not link:\n{done.stderr[-2000:]}")
            schedule = run_tests(program, target, arguments.build, arguments.timeout)
            if schedule:
                return f"{target.name}, {schedule}"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=os.path.join(ROOT, "build"))
    parser.add_argument("--target", action="append", help="default: test_emulator and op_tests")
    parser.add_argument("--file", default="", help="only files whose name matches")
    parser.add_argument("--filter", help="which Catch2 test cases to run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one run of one test program")
    parser.add_argument("--list", action="store_true", help="only show the barriers")
    arguments = parser.parse_args()
    arguments.build = os.path.abspath(arguments.build)

    files = sorted(f"cuda/{f}" for f in os.listdir(os.path.join(ROOT, "cuda"))
                   if f.endswith((".cu", ".cuh")) and f not in DEFINES and re.search(arguments.file, f))
    work = [(path, barrier) for path in files for barrier in barriers(path)]
    if arguments.list:
        for path, (number, line, _, _, call) in work:
            print(f"{path}:{line}: #{number} {call}")
        return 0

    names = arguments.target or ["test_emulator", "op_tests"]
    subprocess.run(["cmake", "--build", arguments.build, "--target", *names, "-j", str(arguments.jobs)], check=True,
                   stdout=subprocess.DEVNULL)
    targets = [Target(arguments.build, name, arguments.filter) for name in names]
    commands, includes = compile_commands(arguments.build), Includes()
    for target in targets:
        program = next(os.path.join(target.cwd, b) for a, b in zip(target.link, target.link[1:]) if a == "-o")
        failed = run_tests(os.path.normpath(program), target, arguments.build, arguments.timeout)
        if failed:
            sys.exit(f"mutate: {target.name} fails as it is ({failed}): nothing can be concluded")

    proofs, problems, noticed = allowed(), 0, 0
    known = {(path, barrier[0], barrier[4]) for path, barrier in work}
    for key in sorted(k for k in set(proofs) - known if re.search(arguments.file, os.path.basename(k[0]))):
        print(f"tools/mutate.allow: there is no {key[0]} #{key[1]} {key[2]}")
        problems += 1
    for source, _, _ in commands.values():
        includes.of(source)  # before threads share it
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {pool.submit(check, arguments, targets, commands, includes, *w): w for w in work}
        for future in concurrent.futures.as_completed(futures):
            path, (number, line, _, _, call) = futures[future]
            by, proof = future.result(), proofs.get((path, number, call))
            if by and proof:
                print(f"{path}:{line}: #{number} {call}: in tools/mutate.allow, but noticed by {by}")
            elif by:
                print(f"{path}:{line}: #{number} {call}: noticed by {by}")
            elif proof:
                print(f"{path}:{line}: #{number} {call}: allowed: {proof}")
            else:
                print(f"{path}:{line}: #{number} {call}: SURVIVED")
            problems += bool(by) == bool(proof)
            noticed += bool(by)
            sys.stdout.flush()
    print(f"{len(work)} barriers, {noticed} noticed by a test, {problems} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
