#!/usr/bin/env python3
"""t2l-bench kernels beside PyTorch's scaled_dot_product_attention on the CPU: the same shapes, types and threads.

    tools/peer_attention.py BUILD/bin/t2l-bench [--filter TEXT] [--threads 2] [--rounds 3]

The two take turns, round by round; each row gives the best time of either and their ratio (above 1: t2l is faster).
PyTorch gets what suits it: contiguous [batch, heads, length, dim] (repeating key heads is not timed), a padded batch
with a mask for texts of unequal length. It has no soft cap, so for such rows it computes less. Without PyTorch the
script says so and ends well.
"""
import argparse
import json
import os
import subprocess
import sys
import time


def twin(row, torch):
    """Functions that run PyTorch's forward and backward once; the latter returns its own seconds."""
    sdpa = torch.nn.functional.scaled_dot_product_attention
    dtype = torch.float32 if row["dtype"] == "f32" else torch.bfloat16
    lengths = [row["length"] or 5 + i * 37 % 56 for i in range(row["samples"])]
    decode, longest = row["use"] == "decode", max(lengths)
    def tensor(length):
        return torch.randn(row["samples"], row["heads"], length, row["dim"], dtype=dtype, requires_grad=not decode)
    q, k, v = tensor(1 if decode else longest), tensor(longest), tensor(longest)
    mask, causal = None, row["use"] not in ("decode", "encoder")
    if row["window"]:
        i = torch.arange(longest)
        mask, causal = (i[None] <= i[:, None]) & (i[None] > i[:, None] - row["window"]), False
    elif len(set(lengths)) > 1:
        mask = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None])[:, None, None]

    def forward():
        with torch.no_grad():
            sdpa(q, k, v, attn_mask=mask, is_causal=causal)

    def backward():
        o = sdpa(q, k, v, attn_mask=mask, is_causal=causal)
        do = torch.randn_like(o)
        begin = time.perf_counter()
        torch.autograd.grad(o, (q, k, v), do)
        return time.perf_counter() - begin

    return forward, None if decode else backward


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench")
    parser.add_argument("--filter", default="attention")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("skipped: PyTorch is not installed")
        return
    torch.set_num_threads(args.threads)
    environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads))
    best, twins = {}, {}
    for _ in range(args.rounds):
        ours = json.loads(subprocess.run([args.bench, "kernels", "--json", "--filter", args.filter], check=True,
                                         stdout=subprocess.PIPE, env=environment).stdout)
        for row in ours["rows"]:
            name = row["name"]
            if name not in twins:
                twins[name] = twin(row, torch)
            forward, backward = twins[name]
            times = best.setdefault(name, [float("inf")] * 4)
            times[0] = min(times[0], row["forward"]["best_milliseconds"])
            calls = max(1, min(50, int(5 / times[0])))
            forward()
            for _ in range(9):
                begin = time.perf_counter()
                for _ in range(calls):
                    forward()
                times[1] = min(times[1], (time.perf_counter() - begin) / calls * 1e3)
            if backward:
                times[2] = min(times[2], row["backward"]["best_milliseconds"])
                for _ in range(9):
                    times[3] = min(times[3], backward() * 1e3)
    print(f"{ours['isa']}, {args.threads} threads, PyTorch {torch.__version__}")
    print(f"{'ms':<44} {'forward':>9} {'torch':>9} {'ratio':>6} {'backward':>9} {'torch':>9} {'ratio':>6}")
    for name, t in best.items():
        line = f"{name:<44} {t[0]:9.3f} {t[1]:9.3f} {t[1] / t[0]:6.2f}"
        if twins[name][1]:
            line += f" {t[2]:9.3f} {t[3]:9.3f} {t[3] / t[2]:6.2f}"
        print(line)


if __name__ == "__main__":
    sys.exit(main())
