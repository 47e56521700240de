#!/usr/bin/env python3
"""The small world's table from nothing: base models, oracles, hypernetworks and their scores, over seeds.

    reproduce.py [--quick | --tiny] [--out build/reproduce] [--bin build/bin] [--threads N] [--device cpu] [--stages a,b] [--dry-run]

A stage is a folder of --out with stage.json in it, written once more when all else is there; what is finished is kept, a
training that was cut off goes on from its last checkpoint, and a stage whose settings or inputs have changed is made anew.
As many stages run at once as there are threads, each on one; with a single seed, its two long trainings run on all.
--stages makes only the stages whose names begin so, with what they need. Ends with the table, results.json and index.html.
Seed s is the seed of world, base model and all that is trained on it.
"""
import argparse
import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from array import array
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from page import write_page

HERE = os.path.dirname(os.path.abspath(__file__))
SETS = ("seen", "compositions", "parameters")
ALL_MODULES = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"


@dataclass
class Scale:
    seeds: int
    parts: set  # of plan(), below
    world: dict = field(default_factory=dict)
    steps: dict = field(default_factory=dict)  # of t2l-train's verbs, where not the configuration's
    other: dict = field(default_factory=dict)  # settings of t2l-train's verbs
    blocks: int = 16  # of 64 training tasks, that get an oracle for reconstruction


SCALES = {
    "full": Scale(3, {"oracles", "references", "variants", "reconstruct", "ablations"}),
    "quick": Scale(1, {"oracles"}, steps={"pretrain": 12000, "sft": 5000}),
    "tiny": Scale(
        1, {"oracles", "references", "reconstruct"},
        world={"tasks": 400, "rows": 32, "test-rows": 20, "descriptions": 16, "hidden": 48, "layers": 3, "intermediate": 96},
        steps={"pretrain": 2000, "sft": 250, "reconstruct": 20, "lora": 10, "multitask": 20, "hyperdecoders": 20},
        other={"pretrain": {"save_freq": 100, "batch_size": 32},
               "sft": {"save_freq": 50, "n_tasks_per_batch": 32, "lr": 0.003}},
        blocks=1),
}

# For --dry-run and the time that remains: CPU milliseconds of a step on one core of an AMD Zen 4 server, and the steps of
# configs/; besides them about START seconds of reading and embedding.
COST = {"pretrain": (60, 20000), "lora": (400, 80), "multitask": (40, 8000), "hyperdecoders": (70, 8000),
        "sft-L": (65, 8000), "sft-M": (65, 8000), "sft-S": (220, 8000),
        "reconstruct-L": (16, 4000), "reconstruct-M": (20, 4000), "reconstruct-S": (90, 4000)}
START = 5


# ---- the plan -------------------------------------------------------------------------------------------------------

@dataclass
class Stage:
    name: str  # also its folder
    needs: list  # names of earlier stages
    settings: dict  # what determines the result, with the needs
    run: object  # of the folder; returns what results.json needs
    seconds: float  # estimated, on one core
    wide: bool = False  # runs alone, on all threads
    key: str = ""


def plan(scale, tools):
    """The stages in the order in which they begin."""
    stages = {}

    def stage(name, needs, settings, run, seconds, wide=False):
        stages[name] = Stage(name, needs, settings, run, seconds, wide)

    def train(name, verb, seed, needs=(), data="train", **settings):
        variant = settings.get("variant", "L")
        milliseconds, steps = COST.get(verb) or COST[f"{verb}-{variant}"]
        settings = {**scale.other.get(verb, {}), **settings, "seed": seed}
        if verb in scale.steps:
            settings["steps"] = scale.steps[verb]
        steps = settings.get("steps", steps)
        part = 1 if settings.get("target_modules") != ALL_MODULES else 3
        model = f"{seed}/world/base" if verb == "pretrain" else f"{seed}/base"
        needs = [f"{seed}/world"] + ([] if verb == "pretrain" else [f"{seed}/base"]) + list(needs)
        wide = scale.seeds == 1 and verb in ("pretrain", "sft")  # nothing else could run meanwhile
        stage(f"{seed}/{name}", needs, {"verb": verb, "data": data, "config": tools.config(verb), **settings},
              lambda out: tools.train(verb, out, model, f"{seed}/world/{data}", settings, wide),
              START + part * steps * milliseconds / 1000 * (0.35 if settings.get("equal_flops") else 1), wide)

    def scores(name, seed, needs=(), sets=SETS, **options):
        folders = {s: {k: str(v).replace("*", s) for k, v in options.items()} for s in sets}
        stage(f"{seed}/scores/{name}", [f"{seed}/world", f"{seed}/base", *needs], {"sets": sets, **options},
              lambda out: {s: tools.evaluate(f"{out}/{s}.json", f"{seed}/base", f"{seed}/world/test/{s}", o)
                           for s, o in folders.items()}, 6 if "hypernet" in options else 3)

    def hypernetwork(name, verb, seed, needs=(), sets=SETS, **settings):
        train(name, verb, seed, needs, **settings)
        scores(name, seed, [f"{seed}/{name}"], sets, hypernet=f"{seed}/{name}")

    for seed in range(scale.seeds):
        # The base model, and T2L-L through it.
        stage(f"{seed}/world", [], {**scale.world, "seed": seed}, lambda out, s=seed: tools.world(out, s, scale.world), 20)
        train("base", "pretrain", seed)
        scores("base", seed)
        scores("base-described", seed, **{"with-description": "", "descriptions": 3})
        scores("base-3-shots", seed, shots=3)
        hypernetwork("sft-L", "sft", seed)
        for describe in ("other", "random"):
            scores(f"sft-L-{describe}", seed, [f"{seed}/sft-L"], hypernet=f"{seed}/sft-L", describe=describe)

        if "oracles" in scale.parts:
            oracles = [f"{seed}/oracles/{s}" for s in SETS]
            for s in SETS:
                train(f"oracles/{s}", "lora", seed, data=f"test/{s}")
            scores("oracles", seed, oracles, adapters=f"{seed}/oracles/*")
        if "references" in scale.parts:
            for name in ("multitask", "hyperdecoders"):
                train(name, name, seed)
            scores("multitask", seed, [f"{seed}/multitask"], adapter=f"{seed}/multitask")
            scores("hyperdecoders", seed, [f"{seed}/hyperdecoders"], hypernet=f"{seed}/hyperdecoders", describe="input")
        if "reconstruct" in scale.parts:
            names = [f"oracles/train-{i:02}" for i in range(scale.blocks)]
            for i, name in enumerate(names):
                train(name, "lora", seed, block=i)
            needs = [f"{seed}/{name}" for name in names]
            stage(f"{seed}/oracles/all", needs, {}, lambda out, n=needs: tools.collect(out, n), 1)
            stage(f"{seed}/average", [f"{seed}/oracles/all"], {}, lambda out, s=seed: tools.average(out, f"{s}/oracles/all"), 2)
            scores("average", seed, [f"{seed}/average"], adapter=f"{seed}/average")
            for variant in "LMS" if "variants" in scale.parts and seed == 0 else "L":
                hypernetwork(f"reconstruct-{variant}", "reconstruct", seed, [f"{seed}/oracles/all"], variant=variant,
                             oracles=f"{seed}/oracles/all")
            nine = [f"{seed}/oracles/seen"]
            train("reconstruct-9", "reconstruct", seed, nine, oracles=nine[0], first=9)
            scores("reconstruct-9", seed, [f"{seed}/reconstruct-9"], ["seen"], hypernet=f"{seed}/reconstruct-9", first=9)
        if "variants" in scale.parts and seed == 0:
            for variant in "MS":
                hypernetwork(f"sft-{variant}", "sft", seed, variant=variant)
        if "ablations" in scale.parts and seed == 0:
            for n in (64, 128, 256, 479):
                hypernetwork(f"tasks-{n}", "sft", seed, n_train_ds=n)
            for name, modules in (("v", "v_proj"), ("all", ALL_MODULES)):
                hypernetwork(f"modules-{name}", "sft", seed, target_modules=modules)
            for variant in "MS":
                hypernetwork(f"flops-{variant}", "sft", seed, [f"{seed}/sft-L"], variant=variant, equal_flops=f"{seed}/sft-L")
        stage(f"{seed}/cost", [f"{seed}/sft-L", f"{seed}/base"], {}, lambda out, s=seed: tools.generation(out, s), 1)

    for s in stages.values():
        s.key = hashlib.sha256(json.dumps([s.name, s.settings, [stages[n].key for n in s.needs]]).encode()).hexdigest()[:16]
    return stages


# ---- what a stage runs ----------------------------------------------------------------------------------------------

class Tools:
    def __init__(self, args):
        self.out, self.bin, self.threads, self.device = args.out, args.bin, args.threads, args.device
        self.scale, self.lock = SCALES[args.scale], None
        self.programs = set()  # that run
        self.updates = {}  # of the trainings that were begun

    def path(self, name):
        return os.path.join(self.out, name)

    def tasks(self, folder):
        return sorted(f.name for f in os.scandir(self.path(folder)) if f.is_dir())

    def config(self, verb):
        with open(f"{HERE}/configs/{verb}.yaml") as f:
            return f.read()

    def run(self, program, arguments, wide=False):
        """The JSON that `program` prints, if any. It runs on one thread, or a wide one on all."""
        command = [os.path.join(self.bin, program), *arguments, "--json", "--device", self.device, "--quiet",
                   "--threads", str(self.threads if wide else 1)]
        libc = ctypes.CDLL(None)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              pass_fds=[self.lock] if self.lock else [],
                              preexec_fn=lambda: libc.prctl(1, signal.SIGTERM)) as child:  # PR_SET_PDEATHSIG
            self.programs.add(child)
            stdout, stderr = child.communicate()
            self.programs.discard(child)
        if child.returncode:
            sys.exit(f"{stderr}error: {program} failed ({child.returncode}); the same command again goes on from here: "
                     + " ".join(command))
        return json.loads(stdout or "{}")

    def progress(self, name):
        """How far a stage that runs has come, in words."""
        try:
            with open(self.path(f"{name}/metrics.jsonl"), "rb") as f:
                f.seek(-min(4096, f.seek(0, os.SEEK_END)), os.SEEK_CUR)
                last = f.read().decode().split("\n")[-2]
            return f"{name} {json.loads(last)['step']}/{self.updates[name]}"
        except (OSError, KeyError, IndexError, ValueError):
            return name

    def world(self, out, seed, options):
        wanted = [x for key, value in options.items() for x in (f"--{key}", str(value))]
        return self.run("t2l-world", ["--out", self.path(out), "--force", "--seed", str(seed), *wanted])

    def train(self, verb, out, model, data, settings, wide):
        s = dict(settings)
        if (block := s.pop("block", None)) is not None:
            s["train_ds_names"] = ",".join(self.tasks(data)[64 * block:64 * block + 64])
        if oracles := s.pop("oracles", None):
            have = set(self.tasks(oracles))
            s["oracle_dir"] = self.path(oracles)
            s["train_ds_names"] = ",".join([t for t in self.tasks(data) if t in have][:s.pop("first", None)])
        arguments = [verb, "--config", f"{HERE}/configs/{verb}.yaml", "--model_dir", self.path(model), "--data", self.path(data),
                     "--cache_dir", self.path("cache")]
        given = lambda: [f"--{key}={value}" for key, value in s.items()]
        if equal := s.pop("equal_flops", None):
            step = self.flops(self.run("t2l-train", arguments + given() + ["--dry-run"]))
            s["steps"] = max(1, round(self.done(equal)["flops"] / step["flops"] * step["updates"]))
        counted = self.flops(self.run("t2l-train", arguments + given() + ["--dry-run"]))
        checkpoints = self.path(f"{out}/checkpoints")
        go_on = "--resume" if os.path.isdir(checkpoints) and os.listdir(checkpoints) else "--force"
        self.updates[out] = counted["updates"]
        result = self.run("t2l-train", arguments + given() + ["--out", self.path(out), go_on], wide)
        losses = self.losses(out)
        return {**counted, "parameters": result["parameters"], "loss": [losses[0], sum(losses[-20:]) / len(losses[-20:])],
                "times": {"seconds": self.step_seconds(out)}}

    def rows(self, out):
        with open(self.path(f"{out}/metrics.jsonl")) as f:
            return [row for row in map(json.loads, f) if "loss" in row and "step" in row]

    def losses(self, out):
        return [row["loss"] for row in self.rows(out)]

    def step_seconds(self, out):
        return sum(row.get("seconds", 0) for row in self.rows(out))

    @staticmethod
    def flops(dry):
        per_token = 0
        if dry["micro_batch"]["tokens"]:
            per_token = sum(part["forward"] for name, part in dry["flops_per_micro_batch"].items()
                            if name in ("attention", "head", "linear layers")) / dry["micro_batch"]["tokens"]
        return {"flops": dry["flops_per_micro_batch"]["total"] * dry["micro_batches"], "updates": dry["updates"],
                "flops_per_token": per_token, "tasks": dry["data"]["tasks"]}

    def evaluate(self, file, model, data, options):
        o = dict(options)
        if "first" in o:
            o["tasks"] = ",".join(self.tasks(data)[:int(o.pop("first"))])
        arguments = ["--model", self.path(model), "--data", self.path(data)]
        for key, value in o.items():
            path = self.path(value) if key in ("adapter", "adapters", "hypernet") else str(value)
            arguments += [f"--{key}"] + ([path] if path else [])
        result = self.run("t2l-eval", arguments)
        questions = sum(t["examples"] * len(t.get("descriptions", [1])) for t in result["tasks"])
        return {"tasks": {t["name"]: [100 * t["exact_match"], t["revealed"]] for t in result["tasks"]},
                "tokens_per_question": result["tokens"] / questions,
                "times": {"score": result["seconds"]["score"] / questions}}

    def collect(self, out, blocks):
        """One folder of links to the adapters of all blocks, as reconstruction wants them."""
        for block in blocks:
            for task in self.tasks(block):
                if os.path.exists(self.path(f"{block}/{task}/adapter_config.json")):
                    link = self.path(f"{out}/{task}")
                    os.symlink(os.path.relpath(self.path(f"{block}/{task}"), os.path.dirname(link)), link)
        return {}

    def average(self, out, oracles):
        """The mean of the oracles' factors. Safetensors: length of the header (u64), header, f32 data; ours are laid out
        alike, so that one header serves all."""
        folders = [self.path(f"{oracles}/{t}") for t in self.tasks(oracles)]
        header, total = None, None
        for folder in folders:
            with open(f"{folder}/adapter_model.safetensors", "rb") as f:
                head = f.read(8)
                head += f.read(struct.unpack("<Q", head)[0])
                values = array("f", f.read())
            if header not in (None, head):
                sys.exit(f"error: {folder}: adapters of different shapes have no mean")
            header, total = head, values if total is None else array("d", map(float.__add__, map(float, total), values))
        with open(self.path(f"{out}/adapter_model.safetensors"), "wb") as f:
            f.write(header + array("f", (x / len(folders) for x in total)).tobytes())
        shutil.copy(f"{folders[0]}/adapter_config.json", self.path(out))
        return {}

    def generation(self, out, seed):
        """What an adapter from a description costs."""
        task = "reverse the list and then add two to each number."
        r = self.run("t2l-gen", ["--hypernet", self.path(f"{seed}/sft-L"), "--encoder", self.path(f"{seed}/base"), "--task", task,
                                 "--out", self.path(f"{out}/adapter"), "--force"])
        words = len(task.split()) + 3  # <bos>, the full stop, <sep>
        return {"flops": r["hypernet_flops"] + words * self.done(f"{seed}/base")["flops_per_token"],
                "times": {"seconds": r["seconds"]["encode"] + r["seconds"]["hypernet"]}}

    def done(self, name):
        """What stage `name` returned."""
        with open(self.path(f"{name}/stage.json")) as f:
            return json.load(f)["result"]


def write_json(file, value):
    with open(file + ".part", "w") as f:
        json.dump(value, f, indent=1)
        f.flush()
        os.fsync(f.fileno())
    os.replace(file + ".part", file)


def state_of(tools, stage):
    """done, begun, or none."""
    try:
        with open(tools.path(f"{stage.name}/stage.json")) as f:
            state = json.load(f)
    except (OSError, ValueError):
        return "none"
    return "none" if state["key"] != stage.key else "done" if "result" in state else "begun"


def make(tools, stage):
    folder = tools.path(stage.name)
    if state_of(tools, stage) == "none" or "verb" not in stage.settings:
        shutil.rmtree(folder, ignore_errors=True)  # only a training can go on
    os.makedirs(folder, exist_ok=True)
    if state_of(tools, stage) == "none":
        write_json(f"{folder}/stage.json", {"key": stage.key})
    begin = time.monotonic()
    result = stage.run(stage.name)
    write_json(f"{folder}/stage.json", {"key": stage.key, "settings": {k: v for k, v in stage.settings.items() if k != "config"},
                                        "seconds": time.monotonic() - begin, "result": result})
    shutil.rmtree(f"{folder}/checkpoints", ignore_errors=True)


# ---- the table ------------------------------------------------------------------------------------------------------

COLUMNS = {  # of hidden tasks: those that their inputs do not reveal
    "seen": "training tasks, unseen descriptions",
    "compositions": "unseen compositions",
    "parameters": "unseen parameter values",
    "revealed": "revealed, unseen tasks",
}
METHODS = {
    "base": "base model",
    "base-described": "base + description in the prompt",
    "base-3-shots": "base + 3 examples in the prompt",
    "average": "average LoRA",
    "multitask": "multi-task LoRA",
    "hyperdecoders": "Hyperdecoders",
    "oracles": "task-specific LoRA (oracle)",
    "reconstruct-L": "T2L-L, reconstruction", "reconstruct-M": "T2L-M, reconstruction", "reconstruct-S": "T2L-S, reconstruction",
    "sft-L": "T2L-L, SFT", "sft-M": "T2L-M, SFT", "sft-S": "T2L-S, SFT",
    "sft-L-other": "T2L-L, SFT, another task's description",
    "sft-L-random": "T2L-L, SFT, random words",
}


def mean(values):
    return sum(values) / len(values)


def columns_of(sets):
    """Means over tasks, in %: of those that are hidden, by set; of the unseen ones that are revealed."""
    picked = {name: [] for name in COLUMNS}
    for name, result in sets.items():
        for score, revealed in result["tasks"].values():
            if not revealed:
                picked[name].append(score)
            elif name != "seen":
                picked["revealed"].append(score)
    return {name: mean(values) for name, values in picked.items() if values}


def results_of(tools, scale_name, stages):
    """All that the page shows, from the stages that are done. Everything measured in seconds is under "times"."""
    done = {n: tools.done(n) for n, s in stages.items() if state_of(tools, s) == "done"}
    seeds = sorted({n.split("/")[0] for n in done})
    by_seed = {s: {n.split("/scores/")[1]: columns_of(r) for n, r in done.items() if n.startswith(f"{s}/scores/")} for s in seeds}

    def over_seeds(name):
        rows = [by_seed[s][name] for s in seeds if name in by_seed[s]]
        columns = {c: [r[c] for r in rows if c in r] for c in COLUMNS}
        return {c: {"mean": mean(v), "min": min(v), "max": max(v), "seeds": len(v)} for c, v in columns.items() if v}

    out = {"scale": scale_name, "columns": COLUMNS, "seeds": by_seed,
           "table": {n: over_seeds(n) for n in METHODS if any(n in by_seed[s] for s in seeds)}, "times": {}}
    first = by_seed.get("0", {})
    pick = lambda names: {label: first[n] for label, n in names.items() if n in first}
    out["tasks"] = pick({**{str(n): f"tasks-{n}" for n in (64, 128, 256, 479)}, "all": "sft-L"})
    out["modules"] = pick({"v_proj": "modules-v", "q_proj, v_proj": "sft-L", "all seven": "modules-all"})
    out["equal_steps"] = pick({v: f"sft-{v}" for v in "LMS"})
    out["equal_flops"] = pick({"L": "sft-L", "M": "flops-M", "S": "flops-S"}) if "flops-M" in first else {}
    out["nine"] = []
    for s in seeds:
        if f"{s}/scores/reconstruct-9" in done and f"{s}/scores/oracles" in done:
            of = done[f"{s}/scores/reconstruct-9"]["seen"]["tasks"]
            oracle = done[f"{s}/scores/oracles"]["seen"]["tasks"]
            out["nine"].append({"reconstructed": mean([of[t][0] for t in of]), "oracles": mean([oracle[t][0] for t in of])})
    out["training"] = {n: {k: v for k, v in r.items() if k in ("flops", "updates", "parameters", "loss")}
                       for n, r in done.items() if "flops" in r and "updates" in r}
    out["times"]["training"] = {n: r["times"]["seconds"] for n, r in done.items() if "updates" in r}
    if "0/cost" in done:  # of one adapter; of a question
        cost, times = {"generated": done["0/cost"]["flops"]}, {"generated": done["0/cost"]["times"]["seconds"]}
        if oracle := done.get("0/oracles/seen"):
            cost["trained"] = oracle["flops"] / oracle["tasks"]
            times["trained"] = oracle["times"]["seconds"] / oracle["tasks"]
        question, shots = (done.get(f"0/scores/{n}") for n in ("base", "base-3-shots"))
        if question and shots:
            per_token = done["0/base"]["flops_per_token"]
            tokens = [mean([r[s]["tokens_per_question"] for s in SETS]) for r in (question, shots)]
            cost |= {"question": per_token * tokens[0], "question with 3 examples": per_token * tokens[1]}
            times |= {n: mean([r[s]["times"]["score"] for s in SETS])
                      for n, r in (("question", question), ("question with 3 examples", shots))}
        out["cost"], out["times"]["cost"] = cost, times
    out["notes"] = notes_on(out)
    return out


def notes_on(r):
    """What the table says of the claims, in words that follow its numbers."""
    t, notes = r["table"], []
    value = lambda method, column: t.get(method, {}).get(column, {}).get("mean")
    t2l, oracle = t.get("sft-L", {}), t.get("oracles", {})
    shares = [f"{COLUMNS[c]} {100 * t2l[c]['mean'] / oracle[c]['mean']:.1f} %" for c in COLUMNS
              if c in t2l and c in oracle and oracle[c]["mean"] > 0]
    if shares:
        notes.append("T2L-L, SFT, as a share of the task-specific LoRAs: " + ", ".join(shares) + ".")
    if None not in (a := (value("base-described", "compositions"), value("sft-L", "compositions"))) and a[0] >= a[1] - 1:
        notes.append(f"The paper's adapters beat a description in the prompt. That does not show here ({a[0]:.1f} % of unseen "
                     f"compositions, T2L {a[1]:.1f} %): the base model was trained on described tasks. An adapter replaces the "
                     "description, no more.")
    if None not in (a := (value("multitask", "compositions"), value("multitask", "revealed"))):
        notes.append(f"The multi-task LoRA sees the input only: {a[0]:.1f} % of hidden compositions, {a[1]:.1f} % of the unseen "
                     "tasks that their inputs reveal. The paper's benchmarks are of the second kind, so look there for its lead.")
    if None not in (a := (value("sft-L", "compositions"), value("reconstruct-L", "compositions"))) and a[1] >= a[0]:
        notes.append(f"SFT's lead over reconstruction does not show here: {a[0]:.1f} % and {a[1]:.1f} % of unseen compositions.")
    if (a := value("sft-L-random", "seen")) is not None and a < 50:
        notes.append(f"In the paper a random description still gives a usable adapter; here {a:.1f} %, as nothing but the description "
                     "says what a hidden task is.")
    if r["nine"]:
        notes.append("Reconstruction of 9 adapters, against their oracles: "
                     + ", ".join(f"{n['reconstructed']:.1f} of {n['oracles']:.1f} %" for n in r["nine"]) + ".")
    growth = [row["compositions"] for row in r["tasks"].values() if "compositions" in row]
    if len(growth) > 2 and sorted(growth) != growth:
        notes.append("Accuracy does not rise with each step of the number of training tasks.")
    return notes


def cell(v):
    if not v:
        return "-"
    return f"{v['mean']:.1f}" + (f" ({v['min']:.1f}-{v['max']:.1f})" if v["seeds"] > 1 else "")


def print_table(r):
    print(f"\nexact match, %: mean of tasks{', mean (range) over seeds' if len(r['seeds']) > 1 else ''}")
    width = max(len(METHODS[m]) for m in r["table"]) if r["table"] else 0
    short = ["unseen descriptions", "compositions", "parameter values", "revealed tasks"]
    print(" " * width + "".join(f"  {c:>19}" for c in short))
    for method, row in r["table"].items():
        print(f"{METHODS[method]:<{width}}" + "".join(f"  {cell(row.get(c)):>19}" for c in COLUMNS))
    print()
    for note in r["notes"]:
        print(note)


# ---- the driver -----------------------------------------------------------------------------------------------------

def duration(seconds):
    seconds = int(round(seconds))
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def wanted(stages, prefixes):
    """Those whose name, with or without the seed's folder, begins with one of the prefixes, and all they need."""
    if not prefixes:
        return stages
    keep = set()

    def add(name):
        if name not in keep:
            keep.add(name)
            for n in stages[name].needs:
                add(n)

    for prefix in prefixes:
        hits = [n for n in stages if n.startswith(prefix) or n.split("/", 1)[1].startswith(prefix)]
        if not hits:
            sys.exit(f"error: --stages {prefix}: there is no such stage; --dry-run lists them")
        for name in hits:
            add(name)
    return {n: s for n, s in stages.items() if n in keep}


def make_all(tools, missing):
    """Each stage as soon as what it needs is there: as many at once as there are threads."""
    waiting, running = {s.name: s for s in missing}, {}
    spent, estimated, begin = 0.0, 0.0, time.monotonic()  # core seconds of what is done, and what they were taken for

    def start_some(pool):
        for s in list(waiting.values()):
            now = [r for r, _ in running.values()]
            if any(n in waiting or n in [r.name for r in now] for n in s.needs):
                continue
            if any(r.wide for r in now) or len(now) >= (1 if s.wide else tools.threads):
                return
            del waiting[s.name]
            running[pool.submit(make, tools, s)] = s, time.monotonic()
            pace = spent / estimated if estimated > 20 else 1  # of this machine, against COST
            left = sum(x.seconds for x in [*waiting.values(), *(r for r, _ in running.values())]) * pace / tools.threads
            say(f"[{len(missing) - len(waiting)}/{len(missing)}] {s.name}, {duration(time.monotonic() - begin)} elapsed, "
                f"about {duration(left)} left\n")

    def say(text):
        sys.stderr.write(("\r\x1b[K" if sys.stderr.isatty() else "") + text)
        sys.stderr.flush()

    with ThreadPoolExecutor(tools.threads) as pool:
        try:
            while waiting or running:
                start_some(pool)
                for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                    s, start = running.pop(future)
                    future.result()
                    spent += (time.monotonic() - start) * (tools.threads if s.wide else 1)
                    estimated += s.seconds
                if sys.stderr.isatty():
                    say("   ".join(tools.progress(r.name) for r, _ in running.values()))
        except BaseException:
            for program in list(tools.programs):  # or the pool would wait for them
                program.terminate()
            raise


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    scale = parser.add_mutually_exclusive_group()
    for name in ("quick", "tiny"):
        scale.add_argument(f"--{name}", dest="scale", action="store_const", const=name, default="full")
    parser.add_argument("--out", default="build/reproduce")
    parser.add_argument("--bin", default="build/bin")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stages", type=lambda s: [x for x in s.split(",") if x], default=[])
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    args.out, args.bin = os.path.abspath(args.out), os.path.abspath(args.bin)
    args.threads = args.threads or len(os.sched_getaffinity(0))
    tools = Tools(args)
    stages = plan(tools.scale, tools)
    chosen = wanted(stages, args.stages)
    missing = [s for s in chosen.values() if state_of(tools, s) != "done"]
    if args.dry_run:
        for s in chosen.values():
            print(f"{s.name:<28} {duration(s.seconds):>8}  {state_of(tools, s).replace('none', '')}")
        print(f"{len(missing)} of {len(chosen)} stages to do, about {duration(sum(s.seconds for s in missing) / args.threads)} on {args.threads} "
              "cores")
        return 0

    os.makedirs(args.out, exist_ok=True)
    # The programs hold the lock too: one that outlives this script for a moment does not meet its successor.
    tools.lock = os.open(tools.path("lock"), os.O_CREAT | os.O_RDWR)
    fcntl.flock(tools.lock, fcntl.LOCK_EX)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    make_all(tools, missing)
    results = results_of(tools, args.scale, stages)
    write_json(tools.path("results.json"), results)
    write_page(tools.path("index.html"), results, METHODS)
    print_table(results)
    print(f"\n{tools.path('results.json')}\n{tools.path('index.html')}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
