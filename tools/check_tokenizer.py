#!/usr/bin/env python3
"""Compares our tokenizer with the `tokenizers` library on real text.

    python3 tools/check_tokenizer.py --tokenizer DIR [DIR ...] --test TEST_PROGRAM [--lines N] [--seed S] [--speed] TEXT [TEXT ...]

TEXT: files, or directories searched for them: .yaml (the `descriptions` of each), .jsonl and .json (all strings in them),
anything else line by line; "random" makes up Unicode. N lines, as many from each TEXT, are tokenized by the library;
TEST_PROGRAM (test_tokenizer, of the Catch2 tests) compares. With --speed both encode the lines as one text instead.
"""
import argparse
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time
import unicodedata


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def read(path):
    if path.is_dir():
        for p in sorted(path.rglob("*")):
            if p.suffix in (".yaml", ".json", ".jsonl", ".txt", ".py", ".md"):
                yield from read(p)
    elif path.suffix == ".yaml":
        import yaml

        value = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        yield from strings(value.get("descriptions", []) if isinstance(value, dict) else value)
    elif path.suffix == ".json":
        yield from strings(json.loads(path.read_text()))
    elif path.suffix == ".jsonl":
        for line in path.read_text().splitlines():
            yield from strings(json.loads(line))
    else:
        yield from path.read_text().splitlines()


def random_text(random):
    """Up to 40 characters of a few kinds, all of them assigned."""
    ranges = random.choices([(32, 126), (0, 0x2FF), (0, 0x2FFF), (0x3000, 0xFFFF), (0, 0x1FFFF), (0x1F300, 0x1F6FF)], k=2)
    text = ""
    for _ in range(random.randrange(40)):
        c = chr(random.randint(*random.choice(ranges)))
        text += " " if unicodedata.category(c) in ("Cn", "Cs") else c
    return text


def sample(path, lines, random):
    if str(path) == "random":
        return [random_text(random) for _ in range(lines)]
    texts = sorted(set(read(path)))
    random.shuffle(texts)
    return texts[:lines]


def run_test(program, case, **environment):
    return subprocess.run([program, case], env={**os.environ, **environment}, capture_output=True, text=True)


def speed(folder, tokenizer, texts, program):
    """We get one text, the library the lines: an encode() of all of them takes it several times as long."""
    text = "\n".join(texts)
    with tempfile.NamedTemporaryFile("w") as out:
        out.write(text)
        out.flush()
        run = run_test(program, "[.speed]", T2L_SPEED_TOKENIZER=str(folder), T2L_SPEED_TEXT=out.name)
    ours = float(re.search(r"([0-9.]+) MiB/s", run.stdout)[1])
    start = time.perf_counter()
    tokenizer.encode_batch_fast(texts)
    theirs = len(text.encode()) / 2**20 / (time.perf_counter() - start)
    print(f"{folder}: {ours:.1f} MiB/s, tokenizers {theirs:.1f} MiB/s: {ours / theirs:.1f}x")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="+", type=pathlib.Path)
    parser.add_argument("--tokenizer", nargs="+", required=True, type=pathlib.Path)
    parser.add_argument("--test", required=True)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", action="store_true")
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer, __version__

    generator = random.Random(args.seed)
    texts = [t for path in args.text for t in sample(path, args.lines // len(args.text), generator)]
    failed = False
    for folder in args.tokenizer:
        t = Tokenizer.from_file(str(folder / "tokenizer.json"))
        t.no_truncation()
        t.no_padding()
        if args.speed:
            speed(folder, t, texts, args.test)
            continue
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as out:
            print(json.dumps({"tokenizer": str(folder)}), file=out)
            for text in texts:
                ids, full = t.encode(text, add_special_tokens=False).ids, t.encode(text).ids
                at = next(i for i in range(len(full) + 1) if full[i : i + len(ids)] == ids)
                row = {"text": text, "ids": ids, "prefix": full[:at], "suffix": full[at + len(ids) :]}
                row |= {"decoded": t.decode(full), "decoded_all": t.decode(full, skip_special_tokens=False)}
                print(json.dumps(row), file=out)
            out.flush()
            run = run_test(args.test, "[expected]", T2L_EXPECTED_IDS=out.name)
        print(f"{folder}: {len(texts)} lines, tokenizers {__version__}: {'identical' if run.returncode == 0 else 'DIFFER'}")
        if run.returncode != 0:
            failed = True
            print(run.stdout)
    sys.exit(failed)


if __name__ == "__main__":
    main()
