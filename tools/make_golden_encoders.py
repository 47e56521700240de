#!/usr/bin/env python3
"""Remakes tests/golden/encoders: tiny random encoders, and what they give in double precision.

    make_golden_encoders.py --out tests/golden/encoders [--reference DIR]

The forward passes below are the reference; they need numpy alone. They are checked against transformers' BertModel if that
is installed and, with --reference, against recorded outputs of the original gte code: a folder that holds, per model,
config.json, model.safetensors and golden.safetensors with input_ids_<i> and last_hidden_state_<i>.

cases.json       name -> weights, config; several cases may share weights
<weights>.safetensors
golden.safetensors   <name>/ids_<i> i32 [n], <name>/hidden_<i> [n, hidden]; pipeline/<pooling> [texts, hidden], normalised
tokenizer.json, texts.json   for the pipeline, with the case "bert"
"""
import argparse
import json
import math
import os
import struct

import numpy as np

DTYPES = {"F32": "<f4", "I32": "<i4", "I64": "<i8"}


def save(tensors, path, metadata=None):
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name in sorted(tensors):
        x = np.ascontiguousarray(tensors[name])
        kind = next(k for k, v in DTYPES.items() if np.dtype(v) == x.dtype)
        header[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": [len(data), len(data) + x.nbytes]}
        data += x.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def load(path):
    raw = open(path, "rb").read()
    n = struct.unpack("<Q", raw[:8])[0]
    out = {}
    for name, v in json.loads(raw[8:8 + n]).items():
        if name != "__metadata__":
            begin, end = v["data_offsets"]
            out[name] = np.frombuffer(raw[8 + n + begin:8 + n + end], DTYPES[v["dtype"]]).reshape(v["shape"])
    return out


# ---- the reference --------------------------------------------------------------------------------------------------
erf = np.vectorize(math.erf)
ACTIVATIONS = {"gelu": lambda x: x / 2 * (1 + erf(x / math.sqrt(2))),
               "gelu_new": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))),
               "silu": lambda x: x / (1 + np.exp(-x))}


class Reference:
    def __init__(self, config, weights):
        self.c = config
        self.w = {k.removeprefix("new.").removeprefix("bert."): v.astype(np.float64) for k, v in weights.items()}

    def linear(self, x, name):
        return x @ self.w[name + ".weight"].T + self.w.get(name + ".bias", 0)

    def norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + self.c["layer_norm_eps"]) * self.w[name + ".weight"] + self.w[name + ".bias"]

    def attention(self, q, k, v, rotate=None, factor=1.0):
        n, d = q.shape[0], self.c["hidden_size"] // self.c["num_attention_heads"]
        q, k, v = (t.reshape(n, -1, d).transpose(1, 0, 2) for t in (q, k, v))
        if rotate:
            q, k = rotate(q) * factor, rotate(k)
        s = q @ k.transpose(0, 2, 1) / math.sqrt(d)
        p = np.exp(s - s.max(-1, keepdims=True))
        return (p / p.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(n, -1)

    def frequencies(self):
        d = self.c["hidden_size"] // self.c["num_attention_heads"]
        exponent = -np.arange(0, d, 2) / d
        theta, s = self.c.get("rope_theta", 10000), self.c.get("rope_scaling")
        if "rope_parameters" in self.c:
            s = self.c["rope_parameters"]
            theta = s["rope_theta"]
        kind = s and s.get("rope_type", s.get("type"))
        if kind == "ntk":
            return (theta * s["factor"]) ** exponent / s["factor"] ** (2 / d)
        return theta ** exponent / (s["factor"] if kind == "linear" else 1)

    def embeddings(self, ids):
        x = self.w["embeddings.word_embeddings.weight"][ids]
        if self.c["type_vocab_size"]:
            x = x + self.w["embeddings.token_type_embeddings.weight"][0]
        if self.c["model_type"] == "bert":
            x = x + self.w["embeddings.position_embeddings.weight"][:len(ids)]
        return self.norm(x, "embeddings.LayerNorm")

    def bert(self, ids):
        act, x = ACTIVATIONS[self.c["hidden_act"]], self.embeddings(ids)
        for i in range(self.c["num_hidden_layers"]):
            p = f"encoder.layer.{i}."
            q, k, v = (self.linear(x, p + "attention.self." + m) for m in ("query", "key", "value"))
            x = self.norm(x + self.linear(self.attention(q, k, v), p + "attention.output.dense"), p + "attention.output.LayerNorm")
            y = act(self.linear(x, p + "intermediate.dense"))
            x = self.norm(x + self.linear(y, p + "output.dense"), p + "output.LayerNorm")
        return x

    def new(self, ids):
        c, act, x, n = self.c, ACTIVATIONS[self.c["hidden_act"]], self.embeddings(ids), len(ids)
        angle = np.arange(n)[:, None] * self.frequencies()[None]

        def rotate(t):
            a, b = np.split(t, 2, -1)
            return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)

        factor = math.log(n) / math.log(c["max_position_embeddings"]) if c.get("logn_attention_scale") else 1.0
        if c.get("logn_attention_clip1") and c.get("logn_attention_scale"):
            factor = max(factor, 1.0)
        for i in range(c["num_hidden_layers"]):
            p = f"encoder.layer.{i}."
            if c["pack_qkv"]:
                q, k, v = np.split(self.linear(x, p + "attention.qkv_proj"), 3, -1)
            else:
                q, k, v = (self.linear(x, p + f"attention.{m}_proj") for m in "qkv")
            x = self.norm(x + self.linear(self.attention(q, k, v, rotate, factor), p + "attention.o_proj"), p + "attn_ln")
            up, gate = np.split(self.linear(x, p + "mlp.up_gate_proj"), 2, -1)
            x = self.norm(x + self.linear(act(gate) * up, p + "mlp.down_proj"), p + "mlp_ln")
        return x

    def __call__(self, ids):
        return getattr(self, self.c["model_type"])(np.asarray(ids))


# ---- the cases ------------------------------------------------------------------------------------------------------
def weights_for(c, rng):
    h, m = c["hidden_size"], c["intermediate_size"]
    shapes = {"embeddings.word_embeddings.weight": (c["vocab_size"], h)}
    if c["type_vocab_size"]:
        shapes["embeddings.token_type_embeddings.weight"] = (c["type_vocab_size"], h)

    def linear(name, out, inner, bias=True):
        shapes[name + ".weight"] = (out, inner)
        if bias:
            shapes[name + ".bias"] = (out,)

    def norm(name):
        shapes[name + ".weight"] = shapes[name + ".bias"] = (h,)

    norm("embeddings.LayerNorm")
    if c["model_type"] == "bert":
        shapes["embeddings.position_embeddings.weight"] = (c["max_position_embeddings"], h)
    for i in range(c["num_hidden_layers"]):
        p = f"encoder.layer.{i}."
        if c["model_type"] == "bert":
            for name in ("self.query", "self.key", "self.value", "output.dense"):
                linear(p + "attention." + name, h, h)
            norm(p + "attention.output.LayerNorm")
            linear(p + "intermediate.dense", m, h)
            linear(p + "output.dense", h, m)
            norm(p + "output.LayerNorm")
        else:
            if c["pack_qkv"]:
                linear(p + "attention.qkv_proj", 3 * h, h)
            else:
                for name in "qkv":
                    linear(p + f"attention.{name}_proj", h, h)
            linear(p + "attention.o_proj", h, h)
            norm(p + "attn_ln")
            linear(p + "mlp.up_gate_proj", 2 * m, h, bias=False)
            linear(p + "mlp.down_proj", h, m)
            norm(p + "mlp_ln")
    out = {}
    for name, shape in shapes.items():
        r = rng.standard_normal(shape)
        if "LayerNorm" in name or "_ln" in name:
            r = 0.3 * r + (1 if name.endswith("weight") else 0)
        elif "embeddings" in name:
            r *= 1.0 if "word" in name else 0.5
        elif name.endswith("bias"):
            r *= 0.4
        else:  # attention sharp enough that a wrong position or scale shows, not so sharp that it amplifies rounding
            r *= 1.3 / math.sqrt(shape[1])
        out[name] = r.astype(np.float32)
    return out


def cases():
    bert = dict(model_type="bert", hidden_size=20, num_attention_heads=2, num_hidden_layers=2, intermediate_size=27, vocab_size=61,
                max_position_embeddings=40, type_vocab_size=2, hidden_act="gelu", layer_norm_eps=1e-12, position_embedding_type="absolute")
    packed = dict(model_type="new", hidden_size=18, num_attention_heads=3, num_hidden_layers=2, intermediate_size=13, vocab_size=47,
                  max_position_embeddings=16, type_vocab_size=2, hidden_act="gelu", layer_norm_eps=1e-12, position_embedding_type="rope",
                  layer_norm_type="layer_norm", pack_qkv=True, rope_theta=160000, rope_scaling={"factor": 2.0, "type": "ntk"},
                  logn_attention_scale=False, logn_attention_clip1=False)
    upstream = {k: v for k, v in packed.items() if k not in ("rope_theta", "rope_scaling")}
    upstream["rope_parameters"] = {"rope_type": "linear", "rope_theta": 320000.0, "factor": 2.0 ** (2 / 6)}
    split = dict(packed, pack_qkv=False, type_vocab_size=0, rope_theta=10000.0, rope_scaling=None, hidden_size=16, num_attention_heads=2)
    return {
        "bert": ("bert", bert, (1, 2, 13, 40)),
        "bert_eps": ("bert", dict(bert, hidden_act="gelu_new", layer_norm_eps=1e-3), (7,)),
        "gte": ("gte_packed", packed, (1, 15, 16, 17, 32, 41)),
        "gte_upstream": ("gte_packed", upstream, (41,)),
        "gte_silu_logn": ("gte_packed", dict(packed, hidden_act="silu", logn_attention_scale=True), (1, 9, 16, 23)),
        "gte_plain": ("gte_split", split, (1, 19)),
        "gte_logn": ("gte_split", dict(split, logn_attention_scale=True, rope_scaling={"factor": 8.0, "type": "ntk"}), (2, 16, 37)),
        "gte_logn_clip": ("gte_split", dict(split, logn_attention_scale=True, logn_attention_clip1=True), (1, 5, 16, 37)),
    }


PREFIX = {"bert": "", "gte_packed": "", "gte_split": "new."}
TEXTS = ["a bad dog", "  Name the sum of two numbers ", "Sum 2 and 2?", "\u00dcber\u00e4hnliche S\u00e4tze entscheiden\u00a0", "x (y)",
         "a cat and a dog and a bird and a fish and a cow and a hen and a fox and a bee and an ant and an owl and one more than fits",
         "7"]
WORDS = ["a", "bad", "dog", "name", "the", "sum", "of", "two", "num", "##bers", "2", "and", "?", ".", "(", ")", "x", "y", "cat", "bird", "fish", "cow"]


def tokenizer(vocab_size):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + WORDS + ["##" + c for c in "abcdefghijklmnoprstuwxz"]
    assert len(tokens) <= vocab_size
    t = Tokenizer(models.WordPiece({w: i for i, w in enumerate(tokens)}, unk_token="[UNK]", max_input_chars_per_word=100))
    t.normalizer = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.post_processor = processors.TemplateProcessing(single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
                                                     special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    t.add_special_tokens(tokens[:5])
    return t


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def check_bert(config, weights, golden):
    try:
        import torch
        import transformers
    except ImportError:
        return print("transformers is not installed: bert not checked against it")
    config = {k: v for k, v in config.items() if k != "model_type"}
    model = transformers.BertModel(transformers.BertConfig(**config), add_pooling_layer=False).eval().double()
    model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    for ids, hidden in golden:
        with torch.no_grad():
            got = model(torch.tensor(np.int64(ids))[None]).last_hidden_state[0].numpy()
        assert relative(got, hidden) < 1e-6, relative(got, hidden)
    print("agrees with transformers")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--reference")
    a = parser.parse_args()
    os.makedirs(a.out, exist_ok=True)
    if a.reference:
        for name in sorted(os.listdir(a.reference)):
            folder = os.path.join(a.reference, name)
            if not os.path.exists(os.path.join(folder, "model.safetensors")):
                continue
            run = Reference(json.load(open(os.path.join(folder, "config.json"))), load(os.path.join(folder, "model.safetensors")))
            gold = load(os.path.join(folder, "golden.safetensors"))
            worst = max(relative(gold[f"last_hidden_state_{i}"], run(gold[f"input_ids_{i}"])) for i in range(sum(k.startswith("input_ids") for k in gold)))
            print(f"{name}: relative L2 {worst:.1e} from the original")
            assert worst < 1e-5

    golden, listing, made = {}, {}, {}
    for k, (name, (weights, config, lengths)) in enumerate(cases().items()):
        rng = np.random.default_rng(7 * k + 1)
        if weights not in made:
            made[weights] = weights_for(config, rng)
            stored = {PREFIX[weights] + key: v for key, v in made[weights].items()}
            if weights == "bert":  # a buffer that old files carry
                stored["embeddings.position_ids"] = np.arange(config["max_position_embeddings"], dtype=np.int64)[None]
            save(stored, os.path.join(a.out, weights + ".safetensors"))
        listing[name] = {"weights": weights + ".safetensors", "config": config}
        run, here = Reference(config, made[weights]), []
        for i, n in enumerate(lengths):
            ids = rng.integers(0, config["vocab_size"], n).astype(np.int32)
            here.append((ids, run(ids)))
            golden[f"{name}/ids_{i}"], golden[f"{name}/hidden_{i}"] = ids, here[-1][1].astype(np.float32)
        if name.startswith("bert"):
            check_bert(config, made[weights], here)

    config = listing["bert"]["config"]
    t = tokenizer(config["vocab_size"])
    t.save(os.path.join(a.out, "tokenizer.json"))
    t.enable_truncation(config["max_position_embeddings"])
    run, rows = Reference(config, made["bert"]), []
    pooled = {"cls": [], "mean": [], "last_token": []}
    for text in TEXTS:
        formatted = text.strip()
        formatted += "." if formatted[-1].isalpha() else ""
        ids = t.encode(formatted).ids
        h = run(ids)
        rows.append({"text": text, "formatted": formatted, "ids": ids})
        for mode, e in (("cls", h[0]), ("mean", h.mean(0)), ("last_token", h[-1])):
            pooled[mode].append(e / np.linalg.norm(e) * math.sqrt(len(e)))
    for mode, e in pooled.items():
        golden["pipeline/" + mode] = np.stack(e).astype(np.float32)
    save(golden, os.path.join(a.out, "golden.safetensors"))
    json.dump(listing, open(os.path.join(a.out, "cases.json"), "w"), indent=1)
    json.dump(rows, open(os.path.join(a.out, "texts.json"), "w"), indent=1)


if __name__ == "__main__":
    main()
