#!/usr/bin/env python3
"""Prefill and batched decoding beside transformers in PyTorch: same shape, same threads, rounds that take turns.

    peer_decoder.py [--bench build/bin/t2l-bench] [--model DIR] [--dtype f32|bf16] [--rounds 7] [--json]

--model  a folder with config.json (default: the shape of SmolLM2-135M); weights are random on both sides
Prefill: one prompt of 512 tokens, logits of the last. Decoding: 8 sequences, greedy, 32 steps from prompts of about 30.
PyTorch runs its own loop over model(ids, past_key_values), without the overhead of generate().
Exit 77 where PyTorch or transformers are absent.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from peer import SMOLLM2

PROMPT, SEQUENCES, STEPS, SHORT = 512, 8, 32, 30


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default="build/bin/t2l-bench")
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        import torch
        import transformers
    except ImportError:
        print("PyTorch or transformers is not here; skipped", file=sys.stderr)
        return 77
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        if not args.model:
            json.dump(SMOLLM2, open(folder + "/config.json", "w"))
        model_dir = args.model or folder
        config = transformers.AutoConfig.from_pretrained(model_dir)
        torch.manual_seed(0)
        dtype = torch.float32 if args.dtype == "f32" else torch.bfloat16
        model = transformers.AutoModelForCausalLM.from_config(config, torch_dtype=dtype).eval()
        random = lambda n, m: torch.randint(0, config.vocab_size, (n, m))
        long, short = random(1, PROMPT), random(SEQUENCES, SHORT)

        def peer():
            with torch.inference_mode():
                begin = time.perf_counter()
                model(long, use_cache=True, num_logits_to_keep=1).logits[:, -1].argmax(-1)
                prefill = time.perf_counter() - begin
                out = model(short, use_cache=True, num_logits_to_keep=1)
                ids, past = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
                begin = time.perf_counter()
                for _ in range(STEPS - 1):
                    out = model(ids, past_key_values=past, use_cache=True)
                    ids, past = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
                return prefill, (time.perf_counter() - begin) / (STEPS - 1)

        def ours():
            out = subprocess.run([args.bench, "run", "--model", model_dir, "--random", "--dtype", args.dtype, "--device", "cpu",
                                  "--repeat", "1", "--threads", str(threads), "--prompt-tokens", str(PROMPT), "--n",
                                  str(SEQUENCES), "--new-tokens", str(STEPS), "--json"], check=True, capture_output=True, text=True)
            report = json.loads(out.stdout)
            return report["prefill_seconds"], report["decode_step_seconds"]

        peer()  # the first touches all memory
        rounds = [(ours(), peer()) for _ in range(args.rounds)]
    result = {"dtype": args.dtype, "threads": threads, "torch": torch.__version__, "transformers": transformers.__version__}
    for i, (name, tokens) in enumerate([("prefill", PROMPT), ("decode", SEQUENCES)]):
        mine, theirs = (statistics.median(r[side][i] for r in rounds) for side in (0, 1))
        result[name] = {"seconds": mine, "peer_seconds": theirs, "ratio": theirs / mine, "tokens_per_second": tokens / mine}
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print(f"{args.dtype}, {threads} threads, torch {torch.__version__}, medians of {args.rounds} rounds")
        for name in ("prefill", "decode"):
            r = result[name]
            print(f"{name:<8} {r['seconds'] * 1e3:8.1f} ms  PyTorch {r['peer_seconds'] * 1e3:8.1f} ms  {r['ratio']:.2f}x"
                  f"  {r['tokens_per_second']:.0f} tokens/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
