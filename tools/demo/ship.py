#!/usr/bin/env python3
"""Puts a trained small world into tools/demo/weights, where `make demo` finds it.

    ship.py --base DIR --hypernet DIR --world DIR [--out DIR] [--force]

base, hypernet   what the programs read of them, without what training leaves beside (checkpoints, metrics, report)
tasks            held-out tasks, the first of each kind in the world's own order: no accuracy is looked at
descriptions.json  one description of each of 1,024 training tasks, and some of the validation tasks, which nothing was trained
                 on: by them the demonstration judges how far a wording is from the world's language
"""
import argparse
import json
import os
import shutil
import sys
import tempfile

BASE = ["config.json", "generation_config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json",
        "tokenizer_config.json"]
# (of test/, whether the input reveals the task): how many tasks
TASKS = {("compositions", False): 4, ("parameters", False): 2, ("compositions", True): 1, ("parameters", True): 1}
ROWS = 25  # of each task
TRAINED = 1024  # of these tasks: all would only take longer to embed
HELD_OUT = 4  # descriptions of each validation task
MOST = 12_000_000  # bytes altogether


def fail(text):
    sys.exit(f"error: {text}")


def read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        fail(f"{path}: {error}")


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")


def copy(source, folder, name):
    if not os.path.isfile(f"{source}/{name}"):
        fail(f"{source}: has no {name}; is its training finished?")
    shutil.copyfile(f"{source}/{name}", f"{folder}/{name}")


def descriptions_of(folder):
    """Of a metadata.yaml as t2l-world writes it: a JSON string a line."""
    found = []
    with open(f"{folder}/metadata.yaml", encoding="utf-8") as file:
        for line in file:
            if line.startswith("- "):
                found.append(json.loads(line[2:]))
    return found


def ship_hypernet(source, base, folder, shipped_base):
    os.mkdir(folder)
    copy(source, folder, "hypernet.safetensors")
    net = read_json(f"{source}/hypernet.json")
    encoder = net["encoder"]["model"]
    if encoder and os.path.realpath(encoder) != os.path.realpath(base):
        fail(f"{source}/hypernet.json: its text encoder is {encoder}; only the base model itself is shipped")
    net["encoder"]["model"] = ""
    net["adapter"]["base_model"] = shipped_base
    write_json(f"{folder}/hypernet.json", net)


def ship_tasks(world, index, folder):
    for (kind, revealed), count in TASKS.items():
        names = [task["name"] for task in index["test"][kind] if task["revealed"] == revealed]
        if len(names) < count:
            fail(f"{world}/test/{kind}: has {len(names)} tasks with 'revealed: {str(revealed).lower()}', not {count}")
        for name in names[:count]:
            source, target = f"{world}/test/{kind}/{name}", f"{folder}/{name}"
            os.makedirs(target)
            copy(source, target, "metadata.yaml")
            with open(f"{target}/metadata.yaml", "a", encoding="utf-8") as file:
                file.write(f"kind: {kind}\n")
            with open(f"{source}/test.jsonl", encoding="utf-8") as rows, \
                    open(f"{target}/test.jsonl", "w", encoding="utf-8") as file:
                file.writelines(rows.readlines()[:ROWS])


def size_of(folder):
    return sum(os.path.getsize(os.path.join(d, name)) for d, _, names in os.walk(folder) for name in names)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("base", "hypernet", "world"):
        parser.add_argument(f"--{option}", required=True, metavar="DIR")
    parser.add_argument("--out", default="tools/demo/weights", metavar="DIR")
    parser.add_argument("--force", action="store_true", help="replace what is in --out")
    o = parser.parse_args()
    out = o.out.rstrip("/")
    if os.path.exists(out) and not o.force:
        fail(f"{out}: exists; --force replaces it")

    os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(out) or ".") as scratch:
        made = f"{scratch}/weights"
        os.makedirs(f"{made}/base")
        for name in BASE:
            copy(o.base, f"{made}/base", name)
        ship_hypernet(o.hypernet, o.base, f"{made}/hypernet", f"{out}/base")
        index = read_json(f"{o.world}/world.json")
        ship_tasks(o.world, index, f"{made}/tasks")
        write_json(f"{made}/descriptions.json", {
            "trained": [descriptions_of(f"{o.world}/train/{task['name']}")[0] for task in index["train"][:TRAINED]],
            "held_out": [d for task in index["valid"]
                         for d in descriptions_of(f"{o.world}/valid/{task['name']}")[:HELD_OUT]]})
        size = size_of(made)
        if size > MOST:
            fail(f"{size} bytes would be more than the {MOST} that the repository has room for; nothing was written")
        if os.path.exists(out):
            os.rename(out, f"{scratch}/before")
        os.rename(made, out)
    for part in sorted(os.listdir(out)):
        path = f"{out}/{part}"
        print(f"{size_of(path) if os.path.isdir(path) else os.path.getsize(path):>10}  {path}")
    print(f"{size:>10}  bytes altogether")


if __name__ == "__main__":
    main()
