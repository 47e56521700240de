#!/usr/bin/env python3
"""Writes tests/golden/training_data.json: small tasks of every family, and the samples that the official Text-to-LoRA
code makes of them.

usage: make_golden_training.py --official DIR [--out tests/golden/training_data.json]

DIR is a checkout of SakanaAI/text-to-lora, whose preprocessing.py and utils.py do the work. Needs torch, transformers,
pandas and yaml; wandb, torchmetrics and inflect are replaced by empty modules.
"""
import argparse
import json
import pathlib
import sys
import types

parser = argparse.ArgumentParser()
parser.add_argument("--official", required=True)
parser.add_argument("--out", default="tests/golden/training_data.json")
options = parser.parse_args()


def stub(name, **values):
    module = types.ModuleType(name)
    module.__dict__.update(values)
    module.__path__ = []
    sys.modules[name] = module


import yaml
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

# transformers looks for some of these packages, so the stand-ins come after it.
stub("wandb", run=None)
stub("inflect", engine=lambda: None)
stub("torchmetrics")
stub("torchmetrics.text")
stub("torchmetrics.text.rouge", ROUGEScore=object)
sys.path.insert(0, str(pathlib.Path(options.official).resolve() / "src"))
from hyper_llm_modulator.utils.preprocessing import get_preprocessing_fn, get_prompt_formatting_fn
from hyper_llm_modulator.utils.utils import get_inp_tokenize_fn

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "tests/golden"
TEMPLATE = """{{ bos_token }}
{% for m in messages %}
    {% if m['role'] == 'assistant' %}
        {{ ' ' + m['content'] + eos_token }}
    {% else %}
        {{ '[' + m['role'] + '] ' + m['content'] + ' ' }}
    {% endif %}
{% endfor %}
""".replace("{{ bos_token }}", "{% if messages[0]['role'] != 'assistant' %}{{ bos_token }}{% endif %}")


def instruction(definition, problem, output, index):
    return dict(id=f"task-{index}", output=output, input=(
        f"Definition: {definition}\n\nPositive Example 1 -\nInput: a\nOutput: b\n\n"
        f"Now complete the following example -\nInput: {problem}\nOutput:"))


def choices(texts, labels, answer, question):
    return dict(question=question, choices=dict(text=texts, label=labels), answerKey=answer)


LETTERS = ("{question}\n\n{choices[label][0]}: {choices[text][0]}\n{choices[label][1]}: {choices[text][1]}\n"
           "{choices[label][2]}: {choices[text][2]}\n{choices[label][3]}: {choices[text][3]}\n\nAnswer with a letter.")
TASKS = {
    "lol_7": (dict(user_prompt_template="{task_def}\n\n{problem}", response_field="answer"), [
        instruction("Name the colour.", "a red {hat}", ["red"], 0),
        instruction("Name the colours. Definition: twice", "green\tand blue 🍵", ["green", "blue"], 1),
        instruction("Say nothing", "Input: nested\nInput: again", ["x, y"], 2),
    ]),
    "arc_tiny": (dict(user_prompt_template=LETTERS, response_field="answerKey"), [
        choices(["one", "two", "three"], ["A", "B", "C"], "B", "Which is even?"),
        choices(["one", "two", "three"], ["1", "2", "3"], "2", "Which is even?"),
        choices(["a", "b", "c", "d", "e"], ["A", "B", "C", "D", "E"], "E", "Which comes last in the alphabet?"),
    ]),
    "mbpp_tiny": (dict(user_prompt_template="{prompt}\n```python\n{assertions}\n```", response_field="code",
                       assistant_prefill="```python\n", assistant_postfill="\n```"), [
        dict(prompt="Add one.", code="def f(x):\n    return x + 1\n", test_list=["assert f(1) == 2", "assert f(0) == 1"]),
        dict(prompt="Nothing", code="pass", test_list=["assert True"]),
    ]),
    "values": (dict(user_prompt_template="{{{name}}} {n} {flag} {x} {pair[1]} {deep[a][0]}", response_field="label",
                    system_message="Values of {name}.", assistant_prefill="It is {n}: "), [
        dict(name="café", n=3, flag=True, x=0.5, pair=["p", "q"], deep=dict(a=["z"]), label=1),
        dict(name="b", n=-12, flag=False, x=1e-7, pair=["r", "s"], deep=dict(a=["{y}"]), label=0),
        dict(name="c", n=0, flag=True, x=1e16, pair=["", ""], deep=dict(a=[""]), label=42),
    ]),
    "long": (dict(user_prompt_template="{text}", response_field="answer", system_message="Count."), [
        dict(text="one two three four five six seven eight nine ten " * 6, answer="sixty"),
        dict(text="short", answer="the answer is long, it goes on and on, and on, and then on once more " * 4),
        dict(text="many words stand here " * 8, answer="and as many stand there " * 8),
    ]),
}

fast = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer.from_str(json.dumps(json.loads((GOLDEN / "tokenizer_legacy.json").read_text())["tokenizer"])),
    bos_token="<s>", eos_token="</s>")
fast.truncation_side = "left"
fast.chat_template = TEMPLATE.replace("    ", "").replace("\n", "")

tasks, cases = {}, []
for name, (metadata, rows) in TASKS.items():
    metadata = dict(assistant_prefill="", system_message="", descriptions=[f"Description {i} of {name}" for i in range(3)],
                    ds_kwargs=dict(path="json", split="train")) | metadata
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    tasks[name] = dict(metadata=yaml.dump(metadata, allow_unicode=True), rows=lines)
    columns = {}
    for line in lines:
        row = json.loads(line)
        row = row | get_preprocessing_fn(name)(row)
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
    for chat in (True, False):
        for mode in ("completion", "causal_lm") if chat else ("completion", ):
            texts = get_prompt_formatting_fn(metadata, mode, fast.apply_chat_template, chat)(columns)
            for length in (512, 48, 25):
                made = get_inp_tokenize_fn(fast, mode, chat, length)(texts)
                cases.append(dict(task=name, chat=chat, completion=mode == "completion", inp_max_len=length,
                                  ids=made["input_ids"], labels=made["labels"]))

pathlib.Path(options.out).write_text(
    json.dumps(dict(template=TEMPLATE, tokens=dict(bos_token="<s>", eos_token="</s>"), tasks=tasks, cases=cases),
               ensure_ascii=False, separators=(",", ":")) + "\n")
print(f"{len(cases)} cases, {pathlib.Path(options.out).stat().st_size} bytes")
