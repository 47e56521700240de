#!/usr/bin/env python3
"""Who may include whom, and what may lie in the repository:

              tensor  <---  cuda
                ^
             autograd  <---  nn  <---  transformer  <---  t2l        tools and tests see all but cuda; tests see that too

Prints "file:line: what is wrong" for each fault and fails if there is one. --self-test proves that it finds each kind.
"""
import os
import re
import subprocess
import sys
import tempfile

STACK = ["tensor", "autograd", "nn", "transformer", "t2l"]
SEES = {folder: set(STACK[:i + 1]) for i, folder in enumerate(STACK)}
SEES["cuda"] = {"tensor", "cuda"}
SEES["tools"] = {*STACK, "tools"}
SEES["tests"] = {*STACK, "tools", "cuda", "tests"}

TOP_LEVEL = {*SEES, "Makefile", "CMakeLists.txt", "README.md", "LICENSE"}  # and dotfiles
LARGEST = 1 << 20  # bytes
WEIGHTS, LARGEST_WEIGHTS = "tools/demo/weights/", 12_000_000  # of the small world, altogether
SOURCES = (".h", ".cpp", ".cu", ".cuh", ".inc")
# What ties the repository to one machine. Written so that the patterns do not match themselves.
FORBIDDEN = re.compile(r"[/]work/|[/]home/\w|[/]root/|pypi[.]org|pythonhosted[.]org|npmjs[.](org|com)|crates[.]io|"
                       r"proxy[.]golang[.]org|deb[.]debian[.]org|anaconda[.]org")

INCLUDE = re.compile(r'\s*#\s*include\s*([<"])([^>"]+)[>"]')
CUDA_HEADER = re.compile(r"cuda|cublas|cudnn|curand|cusparse|cutlass|cute/|nv|nccl|cub/|thrust|cooperative_groups|mma\.h|"
                         r"driver_types|device_|vector_types|vector_functions|sm_\d")


def files_of(root):
    """What git holds, or would with the next `git add .`; without git, everything but build folders."""
    git = subprocess.run(["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                         capture_output=True, text=True)
    if git.returncode == 0:
        return sorted({f for f in git.stdout.split("\0") if os.path.isfile(os.path.join(root, f))})
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f != ".git" and f != "__pycache__" and not f.startswith("build")]
        found += [os.path.relpath(os.path.join(folder, name), root) for name in names]
    return sorted(found)


def include_fault(root, path, quote, header):
    """What is wrong with this #include in path, or None."""
    folder = path.split("/")[0]
    if quote == "<":
        if CUDA_HEADER.match(header) and folder != "cuda":
            return f"<{header}>: only cuda/ includes CUDA headers"
        if header.split("/")[0] in SEES and os.path.exists(os.path.join(root, header)):
            return f"<{header}>: our own headers are included with quotes"
        return None
    if not os.path.exists(os.path.join(root, header)):
        return f'"{header}": no such file; paths start at the root of the repository'
    seen = header.split("/")[0]
    if seen not in SEES.get(folder, ()):
        return f'"{header}": {folder}/ may not see {seen}/'
    return None


def faults(root):
    weights = 0
    for path in files_of(root):
        top, full = path.split("/")[0], os.path.join(root, path)
        if top not in TOP_LEVEL and not top.startswith("."):
            yield f"{path}:1: '{top}' is not among the top-level entries of the repository"
        size = os.path.getsize(full)
        if path.startswith(WEIGHTS):
            weights += size
            if weights - size <= LARGEST_WEIGHTS < weights:
                yield f"{path}:1: with it, the weights have {weights} bytes, more than {LARGEST_WEIGHTS}"
        elif size > LARGEST:
            yield f"{path}:1: {size} bytes, more than {LARGEST}"
            continue
        with open(full, "rb") as f:
            data = f.read()
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
            if found := FORBIDDEN.search(line):
                yield f"{path}:{number}: '{found[0]}' exists on one machine or network only"
            if path.endswith(SOURCES) and (include := INCLUDE.match(line)):
                if fault := include_fault(root, path, *include.groups()):
                    yield f"{path}:{number}: {fault}"


def self_test():
    good = {
        "README.md": "words\n", ".gitignore": "/build/\n",
        "tensor/a.h": "#include <vector>\n", "nn/b.h": '#include "tensor/a.h"\n#include <catch2/catch.hpp>\n',
        "cuda/c.cu": '#include <cuda_runtime.h>\n#include "tensor/a.h"\n#include "cuda/emu/e.h"\n', "cuda/emu/e.h": "",
        "tools/d.cpp": '#include "nn/b.h"\n', "tests/e.cpp": '#include "cuda/emu/e.h"\n  #include "tests/f.h"\n',
        "tests/f.h": "", WEIGHTS + "model": "\0" * (LARGEST + 1),
    }
    bad = {
        "upward": ("tensor/up.cpp", '\n\n#include "nn/b.h"\n', "tensor/up.cpp:3:"),
        "cuda sees tensor only": ("cuda/up.cu", '#include "nn/b.h"\n', "cuda/up.cu:1:"),
        "autograd sees cuda": ("autograd/x.cpp", '# include "cuda/emu/e.h"\n', "autograd/x.cpp:1:"),
        "a program sees cuda": ("tools/x.cpp", '#include "cuda/emu/e.h"\n', "tools/x.cpp:1:"),
        "the engine sees tests": ("t2l/x.cpp", '#include "tests/f.h"\n', "t2l/x.cpp:1:"),
        "CUDA header": ("nn/x.cpp", "\n#include <cublasLt.h>\n", "nn/x.cpp:2:"),
        "relative path": ("nn/x.cpp", '#include "b.h"\n', "nn/x.cpp:1:"),
        "own header in angles": ("nn/x.cpp", "#include <tensor/a.h>\n", "nn/x.cpp:1:"),
        "top level": ("notes.txt", "", "notes.txt:1:"),
        "size": ("tests/big", "x" * (LARGEST + 1), "tests/big:1:"),
        "weights": (WEIGHTS + "big", "x" * (LARGEST_WEIGHTS + 1), WEIGHTS + "big:1:"),
        "machine path": ("tests/x.py", "ok\nopen('/" + "work/data')\n", "tests/x.py:2:"),
        "registry": ("README.md", "https://pypi" + ".org/x\n", "README.md:1:"),
    }

    def faults_with(extra):
        with tempfile.TemporaryDirectory() as root:
            for path, text in {**good, **extra}.items():
                os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
                with open(os.path.join(root, path), "w") as f:
                    f.write(text)
            return list(faults(root))

    failed = 0
    for name, (path, text, place) in {"nothing": ("tests/x.py", "", None), **bad}.items():
        found = faults_with({path: text})
        right = len(found) == 1 and found[0].startswith(place) if place else not found
        failed += not right
        print(f"{'ok    ' if right else 'FAILED'} {name}: {found}")
    return failed


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        sys.exit(self_test() != 0)
    elif sys.argv[1:]:
        sys.exit("usage: check_layering.py [--self-test]")
    found = list(faults(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    print("\n".join(found) or "layering: no fault")
    sys.exit(bool(found))
