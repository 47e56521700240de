#!/usr/bin/env python3
"""Compares our tokenizer with the `tokenizers` library on real text.

    python3 tools/check_tokenizer.py --tokenizer DIR [DIR ...] --test TEST_PROGRAM [--lines N] [--seed S] TEXT [TEXT ...]

TEXT: files, or directories searched for them: .yaml (the `descriptions` of each), .jsonl and .json (all strings in them),
anything else line by line. N random lines are tokenized by the library; TEST_PROGRAM (the Catch2 tests) compares.
"""
import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="+", type=pathlib.Path)
    parser.add_argument("--tokenizer", nargs="+", required=True, type=pathlib.Path)
    parser.add_argument("--test", required=True)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from tokenizers import Tokenizer, __version__

    texts = sorted({t for path in args.text for t in read(path)})
    random.Random(args.seed).shuffle(texts)
    texts = texts[: args.lines]
    failed = False
    for folder in args.tokenizer:
        t = Tokenizer.from_file(str(folder / "tokenizer.json"))
        t.no_truncation()
        t.no_padding()
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as out:
            print(json.dumps({"tokenizer": str(folder)}), file=out)
            for text in texts:
                ids, full = t.encode(text, add_special_tokens=False).ids, t.encode(text).ids
                at = next(i for i in range(len(full) + 1) if full[i : i + len(ids)] == ids)
                row = {"text": text, "ids": ids, "prefix": full[:at], "suffix": full[at + len(ids) :]}
                row |= {"decoded": t.decode(full), "decoded_all": t.decode(full, skip_special_tokens=False)}
                print(json.dumps(row), file=out)
            out.flush()
            run = subprocess.run([args.test, "[expected]"], env={**os.environ, "T2L_EXPECTED_IDS": out.name}, capture_output=True, text=True)
        print(f"{folder}: {len(texts)} lines, tokenizers {__version__}: {'identical' if run.returncode == 0 else 'DIFFER'}")
        if run.returncode != 0:
            failed = True
            print(run.stdout)
    sys.exit(failed)


if __name__ == "__main__":
    main()
