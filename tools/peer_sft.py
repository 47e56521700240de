#!/usr/bin/env python3
"""A step of supervised fine-tuning through a 135M-parameter Llama beside the official code's, in turns, on the same threads.

    peer_sft.py --official DIR [--peer FILE] [--bench build/bin/t2l-bench] [--python PYTHON] [--rounds 2] [--steps 2]
                [--layers 30] [--max-len 512] [--json]

--official  a checkout of SakanaAI/text-to-lora
--peer      the script that times it (default ../shared/bench/peer_sft_step.py)
--python    an interpreter with PyTorch (default: this one)
SmolLM2-135M's shape, random weights, T2L-L, 8 tasks x 1 sample of an eighth to all of --max-len tokens, a quarter of each
response, dropout on. Both forms of the official code: its own, and with its adapters' hook as one batched product (--fast).
f32, and bf16 (there: autocast). Seconds and memory are medians of the rounds', which take turns.
Exit 77 where the script or the checkout is absent.
"""
import argparse
import json
import os
import sys
import tempfile

from peer import SMOLLM2, measured, medians


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", required=True)
    parser.add_argument("--peer", default="../shared/bench/peer_sft_step.py")
    parser.add_argument("--bench", default="build/bin/t2l-bench")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--max-len", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not os.path.exists(args.peer) or not os.path.isdir(args.official):
        print(f"{args.peer} or {args.official} is not here; skipped", file=sys.stderr)
        return 77
    threads, steps = str(len(os.sched_getaffinity(0))), str(args.steps)
    lengths = ",".join(str(max(8, args.max_len * i // 8)) for i in range(1, 9))
    results = []
    with tempfile.TemporaryDirectory() as model:
        with open(f"{model}/config.json", "w") as f:
            json.dump(SMOLLM2 | dict(num_hidden_layers=args.layers), f)

        def ours(dtype):
            return measured([args.bench, "train", "--model", model, "--random", "--lengths", lengths, "--response", "0.25",
                             "--variant", "L", "--steps", steps, "--dtype", dtype, "--device", "cpu", "--threads", threads, "--json"])

        def official(dtype, fast):
            return measured([args.python, args.peer, "--official", args.official, "--dtype", dtype, "--steps", steps, "--threads",
                             threads, "--layers", str(args.layers), "--max-len", str(args.max_len)] + ["--fast"] * fast)

        for dtype in ("f32", "bf16"):
            rounds = [(ours(dtype), official(dtype, False), official(dtype, True)) for _ in range(args.rounds)]
            (seconds, memory), *peers = (medians(side) for side in zip(*rounds))
            for form, (peer_seconds, peer_memory) in zip(("official", "fast"), peers):
                results.append(dict(dtype=dtype, form=form, seconds=seconds, peak_mib=memory, official_seconds=peer_seconds,
                                    official_peak_mib=peer_memory, ratio=peer_seconds / seconds, memory_ratio=peer_memory / memory))
    if args.json:
        print(json.dumps(results, indent=2))
        return 0
    print(f"{'':<18}{'ours':>9}{'theirs':>10}{'':>8}{'peak memory, MiB':>24}")
    for r in results:
        print(f"{r['dtype'] + ', ' + r['form']:<18}{r['seconds']:>7.2f} s{r['official_seconds']:>8.2f} s{r['ratio']:>7.1f}x"
              f"{r['peak_mib']:>12.0f}{r['official_peak_mib']:>8.0f}{r['memory_ratio']:>7.1f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
