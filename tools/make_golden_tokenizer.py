#!/usr/bin/env python3
"""Small tokenizers of every supported form and what the `tokenizers` library makes of some text, for tests/tokenizer.cpp.

    python3 tools/make_golden_tokenizer.py        (needs tokenizers 0.20; rewrites tests/golden/tokenizer_*.json)
"""
import json
import pathlib
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PROSE = """The adapter changes how the model answers, and the description says what the change should be.
A small network reads the description once; from what it read it makes the matrices of every layer.
Nothing is trained when a new task comes: the matrices are computed, written to a file, and loaded.
Don't say it's slow: we've measured it, they'll measure it again, and I'm sure you'd get the same numbers.
In 2024 there were 1234567 rows, 42 columns and 3.14 reasons to count them; 10 20 30 100 1000.
Größe und Straße, été et garçon, niño y mañana. Привет мир. Καλημέρα κόσμε. 今天天气很好。 これは文です。
def f(x):
    return {"key": [x + 1, x * 2], 'other': None}  # comment
"""
TEXTS = [
    "", " ", "  ", "\n", "\t \r\n", "a", " a ", "The adapter changes how the model answers.", "THE ADAPTER, don't! It's I'LL we'Ve they'\u017f",
    "what  is\tthis \n\n  thing?\r\n  Indented\n", "Größe Straße STRASSE été ÉTÉ e\u0301te\u0301 \u00c5 A\u030a \u212b ﬁ Ǆ İstanbul ıI", "今天天气很好 ok これは文です カタカナ 한국어 \u1112\u1161\u11ab",
    "Привет, Καλημέρα ΑΣ ς", "1234567 1,000.50 ½ ² ٣٤ Ⅷ 12ab34", "😀 👩‍👩‍👧 🇩🇪 ❤️ 1️⃣", "\u0000x\u0001y\u007f \u200b\u200d\ufeff\u00ad\u2028\u3000\u00a0z\u0085w\u1680\u180e.", "\ufffd \U0010ffff \ue000",
    "foo_bar(baz)[0] == {'k': \"v\"} $x^2 + y~`|<> \u2014 \u201cq\u201d \u3001\u3002", "q\u0323\u0307 q\u0307\u0323 a\u0300\u0301\u0302b \u0301start \u093f", "x" * 101, "y" * 100, "unaffable" * 12, "!" * 40, " " * 30 + "end" + " " * 9,
    "<s>", "<s> hi</s>hi", " <s>  hi </s> ", "[CLS] a [SEP] b[MASK]", "a  \t<left>  b", "a <right> \n b", "a  <both>  b", "<right>  <left>", "<both><both> <both>", "golden goldenrod golden, xgolden golden_ golden", "Fancy Word fancy word xFancy Wordx Fancy  Word",
    "Straße strasse", "<0x41><0x0A> \u2581already \u2581\u2581 Ġhere Ċ", "\u2581", "\u2581\u2581\u2581x", "the model, the model , do not can 't", "\u1734\u1885\u1886\ua9bd\u166d\U000111c9 x", "ｆｕｌｌ　ＷＩＤＴＨ",
]


def special(content, **flags):
    return AddedToken(content, **{**dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True), **flags})


def awkward():
    return [
        special("<left>", lstrip=True), special("<right>", rstrip=True), special("<both>", lstrip=True, rstrip=True, special=False),
        special("golden", single_word=True, special=False), special("Fancy Word", normalized=True, special=False),
        special("Straße", normalized=True, special=False),
    ]


def template(tokenizer, before, after):
    ids = [(t, tokenizer.token_to_id(t)) for t in before + after]
    around = lambda text, kind: [f"{t}:{kind}" for t in before] * (kind == 0) + [f"{text}:{kind}"] + [f"{t}:{kind}" for t in after]
    single, pair = around("$A", 0), around("$A", 0) + around("$B", 1)
    return processors.TemplateProcessing(single=" ".join(single), pair=" ".join(pair), special_tokens=ids)


def bert():
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    # By hand: the library's WordPiece trainer is not repeatable.
    words = [w for w, _ in splitter.pre_tokenize_str(normalizer.normalize_str(PROSE))]
    vocabulary = dict.fromkeys(specials)
    vocabulary |= dict.fromkeys(sorted(set("".join(words))) + ["##" + c for c in sorted(set("".join(words)))])
    vocabulary |= dict.fromkeys(w for w in words if len(w) <= 6)
    vocabulary |= dict.fromkeys(["un", "##aff", "##able", "##ing", "##tion", "adapt", "##er", "##s", "descri", "'", "t", "##''"])
    t = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    t.normalizer, t.pre_tokenizer, t.decoder = normalizer, splitter, decoders.WordPiece()
    t.add_special_tokens([special(s) for s in specials])
    t.post_processor = template(t, ["[CLS]"], ["[SEP]"])
    return t


def bytes_bpe(pre, normalizer=None, ignore_merges=False, size=400, prefix_space=False):
    t = Tokenizer(models.BPE())
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer, t.decoder = pre, decoders.ByteLevel()
    t.train_from_iterator(
        [PROSE], trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    )
    if ignore_merges:
        m = json.loads(t.to_str())
        m["model"]["vocab"] |= {w: len(m["model"]["vocab"]) + i for i, w in enumerate(["Ġmeasured", "adapter", "ÅĤÃ³"])}
        m["model"]["ignore_merges"] = True
        t = Tokenizer.from_str(json.dumps(m))
    t.add_special_tokens([special("<s>"), special("</s>")])
    t.post_processor = template(t, ["<s>"], []) if ignore_merges else processors.ByteLevel(trim_offsets=False)
    return t


def fallback_bpe(normalizer, pre, strip, size=420):
    prose = "".join(c for c in PROSE.replace(" ", "▁") if c.isascii() or PROSE.count(c) > 2 or c == "▁")
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    byte_tokens = [f"<0x{b:02X}>" for b in range(256) if b not in (0xF0, 0xE1)]
    t.train_from_iterator(
        [prose],
        trainers.BpeTrainer(vocab_size=size, special_tokens=["<unk>", "<s>", "</s>"] + byte_tokens, show_progress=False),
    )
    m = json.loads(t.to_str())
    m["added_tokens"], m["pre_tokenizer"] = m["added_tokens"][:3], None
    t = Tokenizer.from_str(json.dumps(m))
    if normalizer:
        t.normalizer = normalizer
    if pre:
        t.pre_tokenizer = pre
    t.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()] + ([decoders.Strip(" ", 1, 0)] if strip else [])
    )
    t.post_processor = template(t, ["<s>"], [] if strip else ["</s>"])
    return t


def main():
    split = lambda pattern: pre_tokenizers.Split(Regex(pattern), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    legacy = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    forms = {
        "bert": bert(),
        "bytes": bytes_bpe(pre_tokenizers.Sequence([split(LLAMA3), plain]), ignore_merges=True),
        "qwen": bytes_bpe(pre_tokenizers.Sequence([split(LLAMA3.replace("{1,3}", "")), plain]), normalizers.NFC()),
        "gpt2": bytes_bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        "digits": bytes_bpe(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])),
        "legacy": fallback_bpe(legacy, None, True),
        "metaspace": fallback_bpe(None, pre_tokenizers.Metaspace("▁", "first", False), True),
        "gemma": fallback_bpe(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"), False),
    }
    rng = random.Random(0)
    for name, t in forms.items():
        t.add_tokens(awkward())
        cases = []
        for text in TEXTS:
            full, ids = t.encode(text).ids, t.encode(text, add_special_tokens=False).ids
            at = next(i for i in range(len(full) + 1) if full[i : i + len(ids)] == ids)
            case = {"text": text, "ids": ids, "decoded": t.decode(full), "decoded_all": t.decode(full, skip_special_tokens=False)}
            if full != ids:
                case |= {"prefix": full[:at], "suffix": full[at + len(ids) :]}
            cases.append(case)
        pairs, truncated = [], []
        for _ in range(6):
            a, b = rng.sample(TEXTS[7:19], 2)
            e = t.encode(a, b)
            pairs.append({"a": a, "b": b, "ids": e.ids, "type_ids": e.type_ids})
            left, length = rng.random() < 0.5, rng.randint(4, 20)
            t.enable_truncation(length, direction="left" if left else "right")
            truncated.append({"text": a, "pair": b, "max_length": length, "left": left, "ids": t.encode(a).ids, "pair_ids": t.encode(a, b).ids})
            t.no_truncation()
        lines = ",\n".join(json.dumps(c, ensure_ascii=True) for c in cases)
        rest = {"pairs": pairs, "truncated": truncated}
        tokenizer = json.dumps(json.loads(t.to_str()), ensure_ascii=True, separators=(",", ":"))
        body = f'{{"tokenizer": {tokenizer},\n"cases": [\n{lines}],\n' + json.dumps(rest)[1:] + "\n"
        (OUT / f"tokenizer_{name}.json").write_text(body)
        print(name, t.get_vocab_size(), len(body))


if __name__ == "__main__":
    main()
