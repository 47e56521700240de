#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets: small valid files that reach every part of each parser.

usage: make_fuzz_corpus.py tests/fuzz/corpus
"""
import io
import json
import pathlib
import struct
import sys
import zipfile


def safetensors(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def string(s):
    return b"X" + struct.pack("<I", len(s)) + s


ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def tensor(storage, key, numel, offset, size, stride, parameter=False):
    ints = lambda xs: b"(" + b"".join(b"J" + struct.pack("<i", x) for x in xs) + b"t"
    call = (b"ctorch._utils\n_rebuild_tensor_v2\n((" + string(b"storage") + b"ctorch\n" + storage + b"\n" + string(key) +
            string(b"cpu") + b"K" + bytes([numel]) + b"tQM" + struct.pack("<H", offset) + ints(size) + ints(stride) +
            b"\x89" + ORDERED_DICT + b"tR")
    return b"ctorch._utils\n_rebuild_parameter\n(" + call + b"\x88" + ORDERED_DICT + b"tR" if parameter else call


def pickles():
    yield b"\x80\x02" + ORDERED_DICT + b"q\x00(" + string(b"a") + tensor(b"FloatStorage", b"0", 16, 0, [2, 8], [8, 1]) + string(
        b"b") + b"q\x01" + tensor(b"LongStorage", b"1", 8, 1, [3, 2], [1, 3]) + b"u}" + string(b"_metadata") + b"h\x00sb."
    yield b"\x80\x02}r\x00\x00\x00\x00(" + string(b"p") + tensor(b"HalfStorage", b"0", 32, 4, [7], [2], True) + b"u."
    yield b"\x80\x04\x95\x20\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01k\x94\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02ls\x85R\x94u."
    yield b"\x80\x02}(U\x01aN]K\x01a(NG" + struct.pack(">d", 1.5) + b"e\x8a\x02\xff\x7f)\x85\x86\x87\x8f(K\x02\x90u."


def archive(pickle):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name, data in (("a/data.pkl", pickle), ("a/data/0", bytes(range(64))), ("a/data/1", bytes(64)), ("a/version", b"3\n")):
            z.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


def archive64(pickle):
    """With a zip64 end of directory, as torch.save writes it."""
    z = archive(pickle)
    end = z[-22:]
    count, size, start = struct.unpack("<HII", end[10:20])
    end64 = struct.pack("<IQHHIIQQQQ", 0x06064b50, 44, 798, 45, 0, 0, count, count, size, start)
    return z[:-22] + end64 + struct.pack("<IIQI", 0x07064b50, 0, len(z) - 22, 1) + end


def tokenizer(text, vocab, added=(), **parts):
    model = dict(type="BPE", vocab={t: i for i, t in enumerate(vocab)}) | parts.pop("model")
    extra = [dict(id=vocab.index(t), content=t, special=True, normalized=False, single_word=False, lstrip=False, rstrip=True) for t in added]
    return json.dumps(dict(version="1.0", added_tokens=extra, model=model, **parts), separators=(",", ":")).encode() + b"\0" + text.encode()


def template(before):
    piece = lambda kind, name: {kind: {"id": name, "type_id": 0}}
    return dict(type="TemplateProcessing", single=[piece("SpecialToken", before), piece("Sequence", "A")],
                pair=[piece("Sequence", "A"), piece("Sequence", "B")], special_tokens={before: dict(id=before, ids=[1], tokens=[before])})


def tokenizers():
    yield tokenizer("Naïve \u4e2d caf\u00e9s, don't", ["[UNK]", "[CLS]", "n", "##a", "##i", "##v", "##e", "cafe", "##s", ",", "don", "'", "t"], ["[CLS]"],
                    normalizer=dict(type="BertNormalizer", clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True),
                    pre_tokenizer=dict(type="BertPreTokenizer"), post_processor=template("[CLS]"), decoder=dict(type="WordPiece", prefix="##", cleanup=True),
                    model=dict(type="WordPiece", unk_token="[UNK]", continuing_subword_prefix="##", max_input_chars_per_word=20))
    yield tokenizer("ab  1 ab<s> c\u00e9", ["<u>", "<s>", "a", "b", "ab", "\u0120", "1", "\u0120a", "\u00c3", "\u00a9", "c"], ["<s>"],
                    pre_tokenizer=dict(type="Sequence", pretokenizers=[dict(type="Split", pattern={"Regex": "\\p{N}| ?\\p{L}+|\\s+(?!\\S)"}, behavior="Isolated", invert=False),
                                                                       dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)]),
                    post_processor=template("<s>"), decoder=dict(type="ByteLevel"), normalizer=dict(type="NFC"),
                    model=dict(merges=["a b", "\u0120 a"], ignore_merges=True, unk_token=None))
    yield tokenizer(" a \u00e9b\u2581", ["<unk>", "<s>", "\u2581", "a", "b", "\u2581a", "<0xC3>", "<0xA9>"], ["<s>"], post_processor=template("<s>"),
                    normalizer=dict(type="Sequence", normalizers=[dict(type="Prepend", prepend="\u2581"), dict(type="Replace", pattern={"String": " "}, content="\u2581")]),
                    decoder=dict(type="Sequence", decoders=[dict(type="Replace", pattern={"String": "\u2581"}, content=" "), dict(type="ByteFallback"), dict(type="Fuse"),
                                                            dict(type="Strip", content=" ", start=1, stop=0)]),
                    model=dict(merges=[["\u2581", "a"]], byte_fallback=True, fuse_unk=True, unk_token="<unk>"))


CHAT = b'[{"role": "system", "content": "s"}, {"role": "user", "content": "a\\n<b>"}, {"content": [1, {"x": null}], "role": "tool"}]'
TEMPLATES = [
    b"{% for m in messages if m.role != 'x' %}{{ '<' ~ m['role'] ~ '>' + m.content | string | trim }}{% if loop.last %}{{ eos_token }}{% continue %}{% endif %}{% else %}-{% endfor %}\0" + CHAT,
    b"{%- macro f(a, b=a, *c) %}{% endmacro %}",
    b"{%- macro f(a, b=a) -%} {{ a }}{{ caller(1) if caller }}{{ varargs }}{{ kwargs }} {%- endmacro %}{{ f(1, c=2) }}{% call(q) f(*[1, 2], **{'b': 3}) %}{{ q }}{% endcall %}",
    b"{% set ns = namespace(x=0) %}{% for i in range(3, 0, -1) recursive %}{% set ns.x = ns.x + i ** 2 // 2 % 5 %}{{ loop.cycle('a', 'b') }}{% break %}{% endfor %}{{ -ns.x / 3 }}",
    b"  {#- c #}\n {%+ raw -%} {{ }} {% endraw %}{% filter upper | indent(2) %}a\nb{% endfilter %}{% set b | e %}<{% endset %}{% with y = b %}{{ y }}{% endwith %}{% block z scoped %}{% endblock %}",
    b"{{ messages | tojson(indent=2) }}{{ '%-5s|%05.1f|%x' % ('a', 2.5, 255) }}{{ '{:>8.3f}|{0[1]!r}'.format(1.5) }}{{ 'a,b'.split(',', 1)[::-1] }}",
    b"{{ messages | selectattr('role', 'in', ['user']) | map(attribute='content') | join(', ') }}{{ [3, 1] | sort | batch(2, 0) | list }}{{ {'a': 1}.items() | list }}{{ messages | groupby('role') }}",
    "{{ 'Stra\u00dfe'.upper().title() }}{{ '\u00e9\U0001f600'[1:] }}{{ ' a\u2003'.strip().center(9, '*') }}{{ '\\x41\\u00e9\\101' }}{% autoescape true %}{{ '<' | safe ~ '>' }}{% endautoescape %}".encode(),
    b"{% generation %}{{ 1 < 2 <= 3 != 4 and not none in [1] or x is defined and 2 is divisibleby 2 }}{% endgeneration %}{{ 1 if x else 0x1f if 1_0 else 1e3 }}{{ strftime_now('%Y') }}{{ raise_exception('no') }}",
]

def decoders():
    common = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=12, vocab_size=9)
    for more in (dict(model_type="llama", rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1, high_freq_factor=4,
                                                            original_max_position_embeddings=64), attention_bias=True, mlp_bias=True),
                 dict(model_type="mistral", rope_parameters=dict(rope_type="linear", rope_theta=1e6, factor=2), sliding_window=5, head_dim=6, dtype="bfloat16"),
                 dict(model_type="gemma2", attn_logit_softcapping=50.0, final_logit_softcapping=30.0, query_pre_attn_scalar=256, hidden_activation="gelu_pytorch_tanh",
                      layer_types=["sliding_attention", "full_attention"], sliding_window=4),
                 dict(model_type="qwen2", use_sliding_window=True, max_window_layers=1, sliding_window=3, tie_word_embeddings=True, eos_token_id=[1, 2]),
                 dict(model_type="qwen3", do_sample=True, temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.1, rope_scaling=None, eos_token_id=3)):
        yield json.dumps(common | more).encode()


def adapters():
    config = dict(peft_type="LORA", r=1, lora_alpha=2, use_rslora=True, target_modules=["q_proj"], bias="none", alpha_pattern={}, modules_to_save=None)
    at = "base_model.model.model.layers.%d.%s.lora_%s%s.weight"
    for names in ([at % (0, "self_attn.q_proj", ab, "") for ab in "AB"], [at % (11, "mlp.down_proj", ab, ".default") for ab in "AB"]):
        yield json.dumps(config).encode() + b"\0" + safetensors({names[0]: entry("F32", [1, 2], 0, 8), names[1]: entry("BF16", [3, 1], 8, 14)}, bytes(14))


SEEDS = {
    "template": TEMPLATES,
    "tokenizer": list(tokenizers()),
    "decoder_config": list(decoders()),
    "adapter": list(adapters()),
    "index": [
        b'{"metadata": {"total_size": 36}, "weight_map": {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}',
        b'{"weight_map": {"a": "1.safetensors", "c": "../2.safetensors"}}',
    ],
    "prompts": [
        b'{"text": "a\\u00e9"}\n\n{"ids": [1, 2], "adapter": "x", "strength": 0.5}\r\n{"ids": [], "adapter": ["x", "y"], "strength": [1, -2]}\n',
        b'{"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": false}\nno json\n{"ids": [-1]}',
    ],
    "safetensors": [
        safetensors({"__metadata__": {"format": "pt"}, "a": entry("F32", [2, 1], 0, 8), "b": entry("BF16", [3], 8, 14)}, bytes(14)),
        safetensors({"h": entry("F16", [], 0, 2), "l": entry("I64", [1], 8, 16), "z": entry("F64", [0, 2], 2, 2),
                     "u": entry("U8", [2, 3], 2, 8), "i": entry("I32", [1], 16, 20)}, bytes(20)),
        safetensors(b"{}", b""),
    ],
    "task": [
        b"lol_1\nuser_prompt_template: \"{task_def}\\n\\n{problem}\"\nresponse_field: answer\ndescriptions: [a, b]\n---\n"
        b'{"input": "Definition: d\\n\\nPositive Example Now complete the following example -\\nInput: i\\nOutput:", "output": ["x", "y"]}\n{}\n',
        b"arc_\nuser_prompt_template: '{question} {choices[label][3]} {{x}} {choices[text][0]}'\nresponse_field: answerKey\n"
        b"assistant_prefill: 'so '\nassistant_postfill: .\nsystem_message: be brief\nds_kwargs: {split: 'train[10%:-3]'}\n---\n"
        b'{"question": 1.5, "choices": {"text": ["a"], "label": ["1"]}, "answerKey": true}\nnot json',
        b"mbpp\nuser_prompt_template: '{assertions}'\nresponse_field: code\n---\n" b'{"test_list": ["a", "b"], "code": -1}\n{"test_list": []}',
        b"x\nlr: 1e-5\nepochs: 3\nsave_freq: 1" + b"0" * 100 + b"\ntrain_ds_names: [a]\neval_ds_info: {a: {descriptions: [b]}}\nvariant: S\n",
        b'{"Definition": ["a", "b"], "Instances": [{"input": "x", "output": ["y"]}, {"input": 3}, null]}',
    ],
    "torch_archive": [b"\1" + p for p in pickles()] + [b"\0" + f(next(pickles())) for f in (archive, archive64)],
    "json": [
        b'{"a": 1.5e-3, "b": [true, false, null, -12, 18446744073709551615], "c": {"d": "\\u00e9\\ud83d\\ude00\\n"}}',
        b'\xef\xbb\xbf[[[]], {}, "", 0]',
        b'{"a": "1e-5"}',
    ],
    "yaml": [
        b"a: 1\nb:\n- x\n- 'it''s'\n- \"\\u00e9\\x41\\n\"\nc: {d: [1, 2.5e-05, ~], e: yes}\nsave_freq: " + b"1" + b"0" * 100 + b"\n",
        b"# comment\ntext: |\n  one\n  two\nfolded: >-\n  three\n  four\n? complex\n: value\n",
        b"base: &x [1, 2]\ncopy: *x\n--- \nsecond: document\n",
        b"%YAML 1.1\n---\na: !!str 1\n? [k]\n: v\n<<: {b: c}\n...\n",
    ],
}

if __name__ == "__main__":
    for target, seeds in SEEDS.items():
        folder = pathlib.Path(sys.argv[1], target)
        folder.mkdir(parents=True, exist_ok=True)
        for i, seed in enumerate(seeds):
            (folder / f"seed{i}").write_bytes(seed)
