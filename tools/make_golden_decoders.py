#!/usr/bin/env python3
"""Remakes tests/golden/decoders: tiny random decoders with an adapter each, and what they give in double precision.

    make_golden_decoders.py --out tests/golden/decoders

The forward pass below is the reference; its gradients are PyTorch's, in double precision. It is checked against
transformers and PEFT where these are installed (qwen3 needs transformers >= 4.51).

<name>/config.json, generation_config.json, model.safetensors, adapter/      in Hugging Face's and PEFT's layout
<name>/golden.safetensors   for samples i: ids_<i>, labels_<i> i32 [n]; logits_<i>, adapted_<i> [n, vocab];
                            greedy_<i> i32 [24]: greedy continuation, end tokens ignored; hidden_<i> [n, hidden]: before the last block
                            loss_<i> [1]: of the adapted model, label smoothing 0.1, mean over labels that are not -100
                            grad_<i>/<adapter tensor>: its gradient
                            base_loss [1]: mean of the three losses without adapter;  base_grad/<weight>: its gradient
"""
import argparse
import json
import math
import os

import numpy as np
import torch

from make_golden_encoders import save

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LENGTHS = (1, 9, 23)
CASES = {
    "llama3": dict(model_type="llama", hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=43,
                   vocab_size=61, tie_word_embeddings=True, rope_theta=500000.0, eos_token_id=[58, 60],
                   rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                     original_max_position_embeddings=16)),
    "llama_bias": dict(model_type="llama", hidden_size=30, num_attention_heads=3, num_key_value_heads=3,
                       intermediate_size=37, vocab_size=53, tie_word_embeddings=False, attention_bias=True, mlp_bias=True,
                       rope_theta=10000.0, rope_scaling=dict(type="linear", factor=2.5)),
    "mistral": dict(model_type="mistral", hidden_size=28, num_attention_heads=3, num_key_value_heads=1, head_dim=10,
                    intermediate_size=45, vocab_size=59, sliding_window=6,
                    rope_parameters=dict(rope_type="default", rope_theta=1e6), dtype="float32"),
    "gemma2": dict(model_type="gemma2", hidden_size=36, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
                   intermediate_size=41, vocab_size=57, sliding_window=7, query_pre_attn_scalar=14,
                   attn_logit_softcapping=4.0, final_logit_softcapping=6.0, hidden_activation="gelu_pytorch_tanh",
                   rope_theta=10000.0),
    "qwen2": dict(model_type="qwen2", hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=39,
                  vocab_size=55, tie_word_embeddings=True, rope_theta=1e6, sliding_window=5, use_sliding_window=False,
                  max_window_layers=1),
    "qwen3": dict(model_type="qwen3", hidden_size=28, num_attention_heads=3, num_key_value_heads=3, head_dim=14,
                  intermediate_size=47, vocab_size=51, tie_word_embeddings=True, rope_theta=1e6),
}


def frequencies(c, dim):
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    theta = rope.get("rope_theta", c.get("rope_theta"))
    f = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "linear":
        return f / rope["factor"]
    if kind == "llama3":
        low, high, n = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
        wave = 2 * math.pi / f
        smooth = ((n / wave - low) / (high - low)).clamp(0, 1)
        return (1 - smooth) * f / rope["factor"] + smooth * f
    return f


def cap(x, c):
    return torch.tanh(x / c) * c if c else x


class Reference:
    """w: name -> f64 weight; lora: (module path) -> (A, B, scale)."""

    def __init__(self, c, w):
        self.c, self.w, self.gemma = c, w, c["model_type"] == "gemma2"
        self.heads, self.kv = c["num_attention_heads"], c["num_key_value_heads"]
        self.dim = c.get("head_dim", c["hidden_size"] // self.heads)

    def norm(self, x, name):
        y = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.c["rms_norm_eps"])
        return y * (self.w[name + ".weight"] + (1 if self.gemma else 0))

    def linear(self, x, path, lora):
        y = x @ self.w[path + ".weight"].T
        if path + ".bias" in self.w:
            y = y + self.w[path + ".bias"]
        if lora:
            a, b, scale = lora[path]
            y = y + scale * (x @ a.T) @ b.T
        return y

    def rotate(self, x):  # [n, heads, dim]
        angle = torch.arange(len(x), dtype=torch.float64)[:, None, None] * frequencies(self.c, self.dim)
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def window(self, layer):
        kind = self.c["model_type"]
        if kind == "mistral" or (kind == "gemma2" and layer % 2 == 0):
            return self.c["sliding_window"]
        return 1 << 30

    def attention(self, x, at, layer, lora):
        n = len(x)
        q, k, v = (self.linear(x, f"{at}.self_attn.{p}_proj", lora).view(n, h, self.dim)
                   for p, h in (("q", self.heads), ("k", self.kv), ("v", self.kv)))
        if self.c["model_type"] == "qwen3":
            q, k = self.norm(q, at + ".self_attn.q_norm"), self.norm(k, at + ".self_attn.k_norm")
        q, k = self.rotate(q), self.rotate(k)
        k, v = (t.repeat_interleave(self.heads // self.kv, 1) for t in (k, v))
        scale = self.c.get("query_pre_attn_scalar", self.dim) ** -0.5
        scores = cap(torch.einsum("ihd,jhd->hij", q, k) * scale, self.c.get("attn_logit_softcapping"))
        i, j = torch.arange(n)[:, None], torch.arange(n)[None]
        scores = scores.masked_fill((j > i) | (i - j >= self.window(layer)), -math.inf)
        out = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(n, -1)
        return self.linear(out, at + ".self_attn.o_proj", lora)

    def mlp(self, x, at, lora):
        gate, up = (self.linear(x, f"{at}.mlp.{p}_proj", lora) for p in ("gate", "up"))
        act = torch.nn.functional.gelu(gate, approximate="tanh") if self.gemma else torch.nn.functional.silu(gate)
        return self.linear(act * up, at + ".mlp.down_proj", lora)

    def __call__(self, ids, lora=None):
        x = self.w["model.embed_tokens.weight"][ids.long()]
        if self.gemma:
            x = x * self.c["hidden_size"] ** 0.5
        for layer in range(self.c["num_hidden_layers"]):
            self.before_last = x
            at = f"model.layers.{layer}"
            y = self.attention(self.norm(x, at + ".input_layernorm"), at, layer, lora)
            x = x + (self.norm(y, at + ".post_attention_layernorm") if self.gemma else y)
            before = ".pre_feedforward_layernorm" if self.gemma else ".post_attention_layernorm"
            y = self.mlp(self.norm(x, at + before), at, lora)
            x = x + (self.norm(y, at + ".post_feedforward_layernorm") if self.gemma else y)
        head = self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"])
        return cap(self.norm(x, "model.norm") @ head.T, self.c.get("final_logit_softcapping"))


def loss_of(logits, labels):
    return torch.nn.functional.cross_entropy(logits[:-1], labels[1:].long(), ignore_index=-100, label_smoothing=0.1)


def shapes(c):
    d, m = c["hidden_size"], c["intermediate_size"]
    dim = c.get("head_dim", d // c["num_attention_heads"])
    q, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
    out = {"model.embed_tokens.weight": (c["vocab_size"], d), "model.norm.weight": (d,)}
    linear = dict(q_proj=(q, d), k_proj=(kv, d), v_proj=(kv, d), o_proj=(d, q), gate_proj=(m, d), up_proj=(m, d),
                  down_proj=(d, m))
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for name, shape in linear.items():
            attention = name in MODULES[:4]
            path = f"{at}{'self_attn' if attention else 'mlp'}.{name}"
            out[path + ".weight"] = shape
            bias = c.get("attention_bias") if attention else c.get("mlp_bias")
            if bias or (c["model_type"] == "qwen2" and name in MODULES[:3]):
                out[path + ".bias"] = shape[:1]
        for norm in ["input_layernorm", "post_attention_layernorm"] + (
                ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if c["model_type"] == "gemma2" else []):
            out[f"{at}{norm}.weight"] = (d,)
        if c["model_type"] == "qwen3":
            out[at + "self_attn.q_norm.weight"] = out[at + "self_attn.k_norm.weight"] = (dim,)
    if not c.get("tie_word_embeddings", c["model_type"] == "gemma2"):
        out["lm_head.weight"] = out["model.embed_tokens.weight"]
    return out


def make(name, config, folder, seed):
    r = np.random.default_rng([seed, sorted(CASES).index(name)])
    c = dict(config, num_hidden_layers=2, rms_norm_eps=1e-6, max_position_embeddings=128, bos_token_id=1,
             torch_dtype="float32", architectures=["tiny"])
    c.setdefault("eos_token_id", 2)
    gemma = c["model_type"] == "gemma2"
    weights = {}
    for key, shape in shapes(c).items():
        scale = 1.0 if len(shape) == 1 else 3.0 / math.sqrt(shape[-1]) if "proj" not in key else 1.2 / math.sqrt(shape[-1])
        x = r.normal(size=shape) * (0.2 if len(shape) == 1 else scale)
        weights[key] = (x + (1 if key.endswith("norm.weight") and not gemma else 0)).astype(np.float32)
    lora, adapter, rank, alpha = {}, {}, 3, 7
    for key in weights:
        path = key.removesuffix(".weight")
        if path.split(".")[-1] in MODULES and key.endswith(".weight"):
            out, inp = weights[key].shape
            adapter[f"base_model.model.{path}.lora_A.weight"] = (r.normal(size=(rank, inp)) / math.sqrt(inp)).astype(np.float32)
            adapter[f"base_model.model.{path}.lora_B.weight"] = (r.normal(size=(out, rank)) * 0.3).astype(np.float32)
    os.makedirs(folder + "/adapter", exist_ok=True)
    json.dump(c, open(folder + "/config.json", "w"), indent=1)
    json.dump(dict(eos_token_id=c["eos_token_id"]), open(folder + "/generation_config.json", "w"))
    save(weights, folder + "/model.safetensors", {"format": "pt"})
    save(adapter, folder + "/adapter/adapter_model.safetensors", {"format": "pt"})
    json.dump(dict(peft_type="LORA", r=rank, lora_alpha=alpha, use_rslora=True, target_modules=MODULES, bias="none",
                   task_type="CAUSAL_LM", lora_dropout=0.05, inference_mode=True), open(folder + "/adapter/adapter_config.json", "w"))

    double = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in weights.items()}
    trained = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in adapter.items()}
    for key in double:
        path, name_a = key.removesuffix(".weight"), f"base_model.model.{key.removesuffix('.weight')}.lora_A.weight"
        if name_a in trained:
            lora[path] = (trained[name_a], trained[name_a.replace("lora_A", "lora_B")], alpha / math.sqrt(rank))
    model, golden, losses = Reference(c, double), {}, []
    for i, n in enumerate(LENGTHS):
        ids = torch.tensor(r.integers(3, c["vocab_size"] - 4, size=n))
        labels = ids.clone()
        labels[:n // 3] = -100
        golden[f"ids_{i}"], golden[f"labels_{i}"] = ids.numpy().astype(np.int32), labels.numpy().astype(np.int32)
        plain, adapted = model(ids), model(ids, lora)
        hidden = model.before_last
        with torch.no_grad():
            model(ids)
            golden[f"hidden_{i}"] = model.before_last.numpy().astype(np.float32)
            golden[f"logits_{i}"] = plain.numpy().astype(np.float32)
            golden[f"adapted_{i}"] = adapted.numpy().astype(np.float32)
            seq, margin = ids, 1e9
            for _ in range(24):
                last = model(seq)[-1]
                top = last.topk(2).values
                margin = min(margin, float(top[0] - top[1]))
                seq = torch.cat([seq, last.argmax()[None]])
            assert margin > 1e-3, f"{name}: greedy choice too close"
            golden[f"greedy_{i}"] = seq[n:].numpy().astype(np.int32)
        if n > 1:
            loss = loss_of(adapted, labels)
            loss.backward()
            golden[f"loss_{i}"] = np.array([loss.item()], np.float32)
            for key, t in trained.items():
                golden[f"grad_{i}/{key}"] = t.grad.numpy().astype(np.float32)
                t.grad = None
            for t in double.values():
                t.grad = None
            losses.append(loss_of(model(ids), labels))
    base = sum(losses) / len(losses)
    base.backward()
    golden["base_loss"] = np.array([base.item()], np.float32)
    for key, t in double.items():
        golden["base_grad/" + key] = t.grad.numpy().astype(np.float32)
    save(golden, folder + "/golden.safetensors")
    return c, golden


def check(name, c, golden, folder):
    try:
        import transformers
        from peft import PeftModel
    except ImportError:
        return print(f"{name}: transformers and PEFT are not here; not checked")
    if c["model_type"] not in transformers.models.auto.configuration_auto.CONFIG_MAPPING:
        return print(f"{name}: this transformers does not know it; not checked")
    rope = c.get("rope_parameters")
    fields = {k: v for k, v in c.items() if k not in ("rope_parameters", "dtype", "architectures")}
    if rope:
        fields["rope_theta"] = rope["rope_theta"]
    config = transformers.AutoConfig.for_model(**fields, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config, torch_dtype=torch.float32,
                                                              attn_implementation="eager")
    worst = 0.0
    relative = lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b))
    with torch.no_grad():
        ids = [torch.tensor(golden[f"ids_{i}"]).long()[None] for i in range(len(LENGTHS))]
        for i, x in enumerate(ids):
            worst = max(worst, relative(model(x, use_cache=False).logits[0].numpy(), golden[f"logits_{i}"]))
        adapted = PeftModel.from_pretrained(model, folder + "/adapter")
        for i, x in enumerate(ids):
            worst = max(worst, relative(adapted(x, use_cache=False).logits[0].numpy(), golden[f"adapted_{i}"]))
    print(f"{name}: transformers and PEFT agree to {worst:.1e}")
    assert worst < 5e-6


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=2)
    args = parser.parse_args()
    for case, settings in CASES.items():
        target = os.path.join(args.out, case)
        check(case, *make(case, settings, target, args.seed), target)
