#!/usr/bin/env python3
"""A step of reconstruction at Mistral-7B shapes beside the official code's, in turns, on the same threads.

    peer_reconstruct.py --official DIR [--peer FILE] [--bench build/bin/t2l-bench] [--python PYTHON] [--rounds 2]
                        [--steps 3] [--json]

--official  a checkout of SakanaAI/text-to-lora
--peer      the script that times it (default ../shared/bench/peer_recon.py)
--python    an interpreter with PyTorch (default: this one)
Factorized L and M at 32 layers, dense L at 4; and ours alone, dense L at all 32. Seconds are medians of the rounds'.
Exit 77 where the script or the checkout is absent.
"""
import argparse
import json
import os
import sys
import tempfile

from peer import measured, medians

MISTRAL = dict(model_type="mistral", hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
               num_key_value_heads=8, intermediate_size=14336)
CASES = [("L", False, 32), ("M", False, 32), ("L", True, 4)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", required=True)
    parser.add_argument("--peer", default="../shared/bench/peer_recon.py")
    parser.add_argument("--bench", default="build/bin/t2l-bench")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not os.path.exists(args.peer) or not os.path.isdir(args.official):
        print(f"{args.peer} or {args.official} is not here; skipped", file=sys.stderr)
        return 77
    threads = str(len(os.sched_getaffinity(0)))
    results = []
    with tempfile.TemporaryDirectory() as model:
        with open(f"{model}/config.json", "w") as f:
            json.dump(MISTRAL, f)

        def ours(variant, dense, layers):
            return measured([args.bench, "reconstruct", "--model", model, "--variant", variant, "--layers", str(layers),
                             "--repeat", str(args.steps), "--threads", threads, "--json"] + ["--dense"] * dense)

        def official(variant, dense, layers):
            return measured([args.python, args.peer, "--official", args.official, "--variant", variant, "--layers",
                             str(layers), "--steps", str(args.steps), "--threads", threads,
                             "--mode", "dense" if dense else "factorized"])

        for case in CASES:
            rounds = [(ours(*case), official(*case)) for _ in range(args.rounds)]
            (seconds, memory), (peer_seconds, peer_memory) = (medians(side) for side in zip(*rounds))
            results.append(dict(variant=case[0], dense=case[1], layers=case[2], seconds=seconds, peak_mib=memory,
                                official_seconds=peer_seconds, official_peak_mib=peer_memory,
                                ratio=peer_seconds / seconds))
        seconds, memory = ours("L", True, 32)
        results.append(dict(variant="L", dense=True, layers=32, seconds=seconds, peak_mib=memory))
    if args.json:
        print(json.dumps(results, indent=2))
        return 0
    print(f"{'':<28}{'ours':>9}{'official':>10}{'':>8}{'peak memory, MiB':>20}")
    for r in results:
        name = f"{r['variant']} {'dense' if r['dense'] else 'factorized'}, {r['layers']} layers"
        peer = f"{r['official_seconds']:>8.2f} s{r['ratio']:>7.1f}x" if "ratio" in r else f"{'':>18}"
        memory = f"{r['official_peak_mib']:>8.0f}" if "ratio" in r else ""
        print(f"{name:<28}{r['seconds']:>7.2f} s{peer}{r['peak_mib']:>12.0f}{memory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
