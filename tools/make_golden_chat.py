#!/usr/bin/env python3
"""Chat templates, rendered by transformers' own environment, for tests/chat_template.cpp.

    python3 tools/make_golden_chat.py                        (rewrites tests/golden/chat.json)
    python3 tools/make_golden_chat.py --seed 7 --random 5000 --out other.json; T2L_EXPECTED_CHAT=other.json test_chat_template

Needs transformers 4.46 and jinja2 3.1. Besides the templates and expressions below, it renders random ones: of all
operators, filters, tests, methods and statements, well-formed but mostly meaningless, many of which raise.
"""
import argparse
import json
import os
import pathlib
import random
import re
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
from transformers.utils.chat_template_utils import _compile_jinja_template

CONVERSATIONS = [
    [{"role": "system", "content": " Answer briefly. "}, {"role": "user", "content": "Why is the sky blue?\n"}, {"role": "assistant", "content": "Scattering."}, {"role": "user", "content": "{{ and }} red?"}],
    [{"role": "user", "content": "größer, 更大 😀 \u00a0\u2003"}],
    [{"role": "assistant", "content": "first"}, {"role": "user", "content": ""}],
    [{"content": "keys in another order", "role": "user", "name": "Ann"}, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "sum", "arguments": {"z": 1, "a": [2.5, True, None, "é\"\\"]}}}]}, {"role": "tool", "content": {"value": 1e20}}],
    [{"role": "user", "content": [{"type": "text", "text": "see "}, {"type": "image"}]}],
    [{"role": "user"}],
    [],
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"b": [1, 2.5, None, True], "a": "é<&>"}}}]

TEMPLATES = {
    "turns": "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "system first": """{%- if messages and messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}{% set rest = messages[1:] %}
{%- else %}
    {%- set system = 'none given' %}{% set rest = messages %}
{%- endif %}
{{- bos_token + '[' + system + ']' }}
{%- for m in rest %}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must take turns, not ' ~ m['role']) }}
    {%- endif %}
    {{- '\\n' ~ loop.index ~ '/' ~ loop.length ~ ' ' ~ m['content'] }}{% if loop.last and add_generation_prompt %} >{% endif %}
{%- endfor %}""",
    "last question": """{% set ns = namespace(last=-1, seen='') %}
{% for m in messages[::-1] %}
  {% if m.role == 'user' and m.content is string and ns.last < 0 %}
    {% set ns.last = messages | length - 1 - loop.index0 %}
  {% endif %}
  {% set ns.seen = ns.seen + m.role[0] %}
{% endfor %}
{{ ns.last }} {{ ns.seen }}""",
    "tools": """{% if tools is defined and tools %}{% for t in tools %}{{ t | tojson }}
{{ t.function.parameters | tojson(indent=2) }}{% endfor %}{% endif %}
{% for m in messages %}{% if m.tool_calls is defined %}{% for c in m.tool_calls %}{{ {"name": c.function.name, "arguments": c.function.arguments} | tojson }}{% endfor %}
{% elif m.content is mapping %}{{ m.content | tojson }}{% elif m.content is iterable and m.content is not string %}{{ m.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join }}
{% else %}{{ m.content }}{% endif %}{% endfor %}""",
    "macros": """{% macro turn(role, text='', close=true) -%}
<{{ role }}>{{ text | upper if role == 'user' else text }}{{ caller() if caller is defined }}{% if close %}</{{ role }}>{% endif %}
{%- endmacro %}
{% for m in messages %}{{ turn(m.role, m.content, close=not loop.last) }}{% endfor %}
{% call turn('end', close=false) %} of {{ messages | length }}{% endcall %}""",
    "white space": "  {% if true %}  \n  a  {%- if true -%}  b  {%- endif +%}\n  {# x #}\n\tc\n  {%+ if true %} d{% endif %}\n{{ 'e' -}}\n  f {{- 'g' }}\n {% raw -%}  {{ h }}\n {%- endraw %}\n{% for x in [1] %}\n  {{ x }}\n{% endfor %}\n\n",
    "loops": """{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ loop.previtem.role }}>{{ m.role }}{{ '>' ~ loop.nextitem.role if loop.nextitem is defined }} {{ loop.revindex }}{{ loop.cycle(',', ';') }}{% if loop.index == 3 %}{% break %}{% endif %}{% else %}nothing{% endfor %}
{% for a in range(3) %}{% for b in range(a) if b != a - 2 %}{{ a }}{{ b }}{{ loop.last }} {% endfor %}{% endfor %}
{% for n in [1, [2, [3]]] recursive %}{{ loop(n) if n is iterable else n }}@{{ loop.depth }} {% endfor %}""",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.role }}{% endif %}{% endfor %}",
    "blocks": "{% set x = 1 %}{% set y %}<{{ x }}>{% endset %}{% with x = 2, z = x %}{{ x }}{{ z }}{% endwith %}{% filter upper | replace('A', 'b') %}a{{ y }}{% endfilter %}{% block q %}{{ x }}{% endblock %}{% autoescape true %}{{ y }}{{ '<' }}{% endautoescape %}",
    "late": "{% for m in messages %}{{ m.role }}{% endfor %}{{ raise_exception('so far\nand no farther') }}",
}

EXPRESSIONS = r"""{{ 7 // -2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 2 ** 0.5 }} {{ 2 ** -2 }} {{ 10 / 4 }} {{ 1e22 }} {{ 123456789 * 987654321123 }}
{{ 18446744073709551616 - 1 }} {{ 9223372036854775807 + 1 }} {{ -9223372036854775808 }} {{ 99999999999 * 99999999999 }}
{{ 1 == 1.0 }} {{ true == 1 }} {{ 9007199254740993 == 9007199254740992.0 }} {{ 1 < 1.5 < 2 }} {{ 'a' < 'B' }} {{ (1, 'b') < (1, 'c') }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ [1] + (2,) }}
{{ 'a' ~ 1 + 2 }}
{{ 2 ** 3 ** 2 }} {{ -2 ** 2 }} {{ not 1 == 2 }} {{ 1 if none else 2 if 0 else 3 }}
{{ 1e16 }} {{ 1e-5 }} {{ 0.0001 }} {{ -0.0 }} {{ 123456789.125 }} {{ 1e15 + 0.5 }} {{ 5e-324 }} {{ 1.7976931348623157e308 * 10 }} {{ 'nan' | float }}
{{ "\x41\u00e9\t\101\q" }} {{ ['\x00\x7f\u200b\'"', "it's", '\\'] }} {{ '\é' }}
{{ 'abc'[::-1] }} {{ 'aé😀b'[1:3] }} {{ 'aé😀b'[-2] }} {{ [1, 2, 3, 4][3:0:-2] }} {{ (1, 2, 3)[:-1] }} {{ 'abc'[5:] }} {{ [1, 2][7] is defined }}
{{ 'straße'.upper() }} {{ 'ΟΔΟΣ'.lower() }} {{ 'ǆa ŉb'.title() }} {{ 'éCOLE'.capitalize() }} {{ 'aB'.swapcase() }} {{ "don't stop-it (now" | title }}
{{ ' a  b '.split() }} {{ ' a  b '.split(' ') }} {{ 'a b c'.split(none, 1) }} {{ 'a b c '.rsplit(none, 1) }} {{ 'a-b-c'.rsplit('-', 1) }} {{ 'a\nb\r\nc\x0bd\u2028e'.splitlines() }}
{{ 'xyx'.strip('x') }} {{ '\u2003x\x1f'.strip() }} {{ 'abcabc'.find('c', 3) }} {{ 'abcabc'.rfind('c') }} {{ 'aaaa'.count('aa') }} {{ 'abc'.partition('b') }} {{ 'a.b.c'.rpartition('.') }}
{{ 'ab'.center(5, '*') }} {{ 'abc'.center(6, '*') }} {{ '-7'.zfill(5) }} {{ 'a\tb'.expandtabs(4) }} {{ 'x'.join(['a', 'b']) }}
{{ '%5.1f|%-6s|%06d|%x|%+d|%e|%g|%%|%r|%(a)s' % {'a': 1} }}
{{ '%5.1f|%-6s|%06d|%#x|%+d|%.3e|%g|%%|%r|%c' % (2.25, 'ab', -42, 255, 5, 12345.678, 0.0001, 'q', 'z') }}
{{ '%d %s' % (1,) }}
{{ '{:>8}|{:^7}|{:<5}|{:08.3f}|{:+,d}|{:#x}|{:e}|{:%}|{!r:>6}|{{}}'.format('a', 'b', 3, 3.14159, 1234567, 255, 12345.6789, 0.25, 'q') }}
{{ '{0[k]} {1.role} {n:{w}}'.format({'k': 'v'}, messages[0], n=5, w=4) }}
{{ [3, 1, 2] | sort }} {{ ['b', 'A', 'c'] | sort }} {{ ['b', 'A'] | sort(case_sensitive=true, reverse=true) }} {{ [1, 'a'] | sort | length }}
{{ messages | map(attribute='role') | unique | sort | join(',') }} {{ messages | groupby('role') | map(attribute='list') | map('length') | list }}
{{ messages | selectattr('role', 'in', ['user', 'tool']) | map(attribute='content') | first }} {{ messages | rejectattr('role', 'eq', 'user') | list | length }}
{{ {'b': [1, {'a': 2.0}], 'a': 'é\u2028\x1f"'} | tojson }} {{ {'b': [1, {}], 'a': []} | tojson(indent=2, sort_keys=true) }} {{ 'é😀' | tojson(ensure_ascii=true) }} {{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }}
{{ {(1, 2): 3} | tojson }}
{{ x | tojson }}
{{ x }}[{{ x | default('d') }}{{ '' | default('e', true) }}{{ x.y is defined }}]
{{ x is defined }} {{ x | length }} {{ x == y }} {{ [x] }} {{ x ~ 'a' }} {{ x in [1] }} {{ x or 2 }}
{{ x + 1 }}
{{ x[0] }}
{{ messages.append(1) }}
{{ messages.append is defined }} {{ {'pop': 1}.pop is defined }} {{ {'pop': 1}['pop'] }} {{ {'get': 1}.get is callable }}
{{ ''.__class__ }}
{{ ''.__class__.__base__ }}
{{ {'__class__': 1}['__class__'] }} {{ messages.__len__ is defined }}
{{ [1, 2, 3, 4, 5] | batch(2, 'x') | list }} {{ [1, 2, 3, 4, 5] | slice(3) | list }} {{ 'a\nb\n\nc' | indent(2) }} {{ 'aaa bbb ccc' | truncate(7, leeway=0) }} {{ 'a_b c-d' | wordcount }}
{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 1234.5 | round(-2) }} {{ 1.21 | round(1, 'ceil') }} {{ 7 | round }} {{ '3.9' | int }} {{ ' 0x1F ' | int(base=16) }} {{ '1_000' | int }} {{ '1e3' | float }} {{ 'q' | int(4) }}
{{ '<a href="x">' | e }} {{ '<' | e | e }} {{ ('<' | e) + '>' }} {{ '<' | safe ~ '>' }} {{ '<' | forceescape }} {{ 'a b&c/d é' | urlencode }} {{ {'a': 1, 'b': none} | xmlattr }} {{ 1536 | filesizeformat }} {{ 1536 | filesizeformat(true) }}
{{ 1 is number and true is number and 1 is not float }} {{ {} is mapping }} {{ 'a' is sequence }} {{ range(3) is sequence }} {{ 3 is divisibleby 3 }} {{ 'Ab' is upper }} {{ [] is sameas [] }} {{ 'map' is filter }} {{ 2 is in [1, 2] }}
{{ dict(a=1, **{'b': 2}) }} {{ dict([['a', 1]]) }} {{ range(5, 0, -2) | list }} {{ range(3)[-1] }} {{ range(3) }} {{ range(100001) }}
{{ namespace(a=1).a }} {% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.current }} {% set j = joiner('+') %}{{ j() }}{{ j() }}
{% macro f(a, b=a) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1) }} {{ f(1, 2, 3, c=4) }} {{ f() }} {{ f.name }} {{ f(*[1, 2]) }} {{ f(**{'b': 5}) }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(b=2) }}
{% set a, (b, c) = 1, [2, 3] %}{{ a + b + c }}{% set a, b = [1] %}
{% set d = {} %}{% set d.a = 1 %}
{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% endfor %}{% for c in 'é😀' %}[{{ c }}]{% endfor %}{% for x in 3 %}{% endfor %}
{% set x = 'o' %}{% for i in [1, 2] %}{{ x }}{% set x = i %}{{ x }}{% endfor %}{{ x }}
{% if x is defined and x.y %}{{ 1 | nothing }}{% endif %}fine
{% if false %}{% for i in [] %}{{ 1 | nothing }}{% endfor %}{% endif %}
{{ 1 is nothing }}
{% break %}
{% for x in [1] %}{% macro f() %}{% break %}{% endmacro %}{% endfor %}
{% for loop in [1] %}{% endfor %}
{% if true %}
{% endif %}
{{ 'a }}
{{ (1 }}
{{ 1 2 }}
{{ .5 }}
{% set 1 = 2 %}
{% unknown %}
{# no end
{% include 'other' %}
{% if false %}{% include 'other' %}{% endif %}{% print 1, 'a' %}
{{ strftime_now('%%') }} {{ strftime_now('%Y') | length }}
{{ messages[0] }} {{ messages[0].keys() }} {{ messages[0].values() | list | length }} {{ 'role' in messages[0] }} {{ messages[0].get('nope', 'q') }} {{ messages[0] | items | first }}
{{ [1, 2] | map('nothing') }}{{ 5 }}""".split("\n")

# ---- random ones ----------------------------------------------------------------------------------------------------
STRINGS = ["'a'", "'Hello World'", "''", "' pad '", "'a,b,c'", "'ß İ ŉ ǆ'", "'x\\ny\\r\\nz'", "'12'", "'3.5'", "'é😀'", "'ΑΣ ΣΑΣ'", "\"it's\"", "'<b>&'", "'\\u00a0t\\u2003'", "'x-y (z'", "'%s'", "'{}'", "'aaa'", "'-7'", "'0x1f'", "'ABC'"]
NUMBERS = ["0", "1", "-1", "2", "3", "7", "10", "1.5", "-2.5", "0.1", "1e16", "1e-7", "true", "false", "100", "2.0", "12345678901234567890"]
LISTS = ["[]", "[1, 2, 3]", "['b', 'A', 'c']", "[1, 'a', none]", "messages", "(1, 2)", "[3, 1, 2, 1]", "[[1, 2], [3, 4]]", "range(4)", "['x', 'X', 'y']", "[0, 1, '', none]", "[{'k': 1}, {'k': 2}]", "[{'k': 'b', 'v': 1}, {'k': 'A', 'v': 2}, {'v': 3}]", "(1,)"]
DICTS = ["{}", "{'a': 1}", "{'b': 2, 'a': [1, {'c': none}]}", "messages[0]", "{'x': 'y', 'n': none}", "{1: 2, 'k': 3.0}", "tools"]
OTHERS = ["none", "undefined_name", "messages[99]", "bos_token", "add_generation_prompt"]
SMALL = ["0", "1", "2", "-1", "3", "5"]
SUBSCRIPTS = ["0", "-1", "5", "'role'", "'a'", "true"]
SLICES = ["1:", "::-1", ":2", "1:3", "::2", "-2:", "3:0:-1", ":-1"]
ATTRIBUTES = ["role", "a", "x", "content", "nope", "k", "0", "1", "_p"]
OPERATORS = "+ - * / // % ** ~ ~ == != < > <= >= in and or".split() + ["not in"]
METHODS = """upper() lower() title() capitalize() strip() lstrip() rstrip() strip(S) split() split(S) split(S,N) rsplit(S,N) rsplit(none,N) split(none,N) splitlines() splitlines(true) replace(S,S)
replace(S,S,N) startswith(S) endswith(S) startswith((S,S),N) find(S) rfind(S) find(S,N) find(S,N,N) index(S) count(S) count(S,N) join(A) center(N5) ljust(8,'*') rjust(8) zfill(6) swapcase()
casefold() isalpha() isdigit() isalnum() isspace() isupper() islower() istitle() isnumeric() isdecimal() isascii() isprintable() partition(S) rpartition(S) removeprefix(S) removesuffix(S) expandtabs()
format(A,A) get(A) get('a',A) items() keys() values() items()|list copy() count(A) index(A) append(1) pop() update({}) nope() __len__()""".split()
FILTERS = """upper lower title capitalize trim trim(S) length count first last list string int float abs round round(1) round(2) round(1,'floor') round(1,'ceil') sort sort(reverse=true) sort(attribute='k')
sort(case_sensitive=true) reverse|list unique|list max min sum join join(S) join(',',attribute='role') tojson tojson(indent=2) tojson(indent=1,sort_keys=true) tojson(ensure_ascii=true)
tojson(separators=(',',':')) default(A) default(A,true) d('x',boolean=true) dictsort dictsort(by='value') dictsort(true) items|list map('upper')|list map('length')|list map(attribute='role')|list
map(attribute='k',default='z')|list map('string')|join select|list select('odd')|list select('string')|list reject('none')|list selectattr('role','equalto','user')|list selectattr('k')|list
rejectattr('role','in',['user'])|list selectattr('k','defined')|map(attribute='k')|list batch(2)|list batch(3,'f')|list slice(2)|list slice(3,0)|list indent indent(2,true) indent('>',blank=true)
truncate(5) truncate(3,true) truncate(4,false,'.',0) wordcount center(9) replace('a','b') replace('','-') format(1,'x') escape|length urlencode attr('role') groupby('role')|list
groupby('k',default='q')|list xmlattr filesizeformat int(5) int(0,16) float(2.5) map('int')|sum first|default('none') nofilter map('nofilter')|list map('first')|list map('default',3)|list
sum(start=10) sum(attribute='k') min(attribute='k') max(attribute='v') unique(attribute='k')|list""".split()
TESTS = """defined undefined none string number integer float boolean true false mapping sequence iterable callable odd even divisibleby(2) eq(A) ne(A) lt(A) in(A) lower upper filter escaped notest
ge(2) le(2)""".split() + ["divisibleby 3", "gt 1", "equalto 2"]
SPACES = ["", "", "", "\n", " ", "  \n", "\n  ", "\t", "x", "\n\n"]
BODIES = ["", "{{ loop.index }}", "{{ loop.last }}{{ loop.length }}", "{{ loop.previtem }}{{ loop.revindex0 }}", "{{ x }}{{ k }}", "{{ m.role }}: {{ m.content }}", "{% if loop.index > 1 %}{% break %}{% endif %}", "{% if loop.first %}{% continue %}{% endif %}",
          "{{ loop.cycle('a', 'b') }}{{ loop.changed(x) }}", "{{ loop.nextitem is defined }}{{ loop.depth }}"]


class Random:
    def __init__(self, seed):
        self.rng = random.Random(seed)

    def pick(self, *groups):
        return self.rng.choice(self.rng.choice(groups))

    def chance(self, p):
        return self.rng.random() < p

    def atom(self):
        return self.pick(STRINGS, STRINGS, NUMBERS, LISTS, DICTS, OTHERS)

    def filled(self, pattern):
        """S, N and A in a pattern's arguments stand for a string, a small number, anything."""
        name, paren, arguments = pattern.partition("(")
        make = {"S": lambda: self.pick(STRINGS), "N": lambda: self.pick(SMALL), "A": self.atom}
        return name + paren + re.sub("[SNA]", lambda m: make[m[0]](), arguments)

    def expression(self, depth=0):
        kind = self.rng.random()
        deeper = lambda: self.expression(depth + 1)
        if depth > 3 or kind < 0.18: return self.atom()
        if kind < 0.34:
            first, second = self.pick(OPERATORS), self.pick(OPERATORS)
            return f"({deeper()} {first} {deeper()})" if self.chance(0.85) else f"{deeper()} {first} {deeper()} {second} {deeper()}"
        if kind < 0.38: return f"{deeper()}[{self.pick(SUBSCRIPTS)}]"
        if kind < 0.42: return f"{self.pick(STRINGS, LISTS[:8])}[{self.pick(SLICES)}]"
        if kind < 0.46: return f"{deeper()}.{self.pick(ATTRIBUTES)}"
        if kind < 0.64: return f"{deeper() if self.chance(0.5) else self.pick(STRINGS, DICTS)}.{self.filled(self.pick(METHODS))}"
        if kind < 0.86: return f"{deeper()}|{self.filled(self.pick(FILTERS))}"
        if kind < 0.92: return f"({deeper()} is {self.pick(['', 'not '])}{self.filled(self.pick(TESTS))})"
        if kind < 0.95: return f"({deeper()} if {deeper()}{' else ' + deeper() if self.chance(0.5) else ''})"
        if kind < 0.97: return f"{self.pick(['-', '+', 'not '])}{deeper()}"
        return f"[{deeper()}, {deeper()}]" if self.chance(0.5) else f"{{'k': {deeper()}, {self.pick(STRINGS, NUMBERS)}: {deeper()}}}"

    def tag(self, body):
        return "{%" + self.pick(["", "", "", "-", "+"]) + " " + body + " " + self.pick(["", "", "", "-", "+"]) + "%}" + self.pick(SPACES)

    def output(self):
        return "{{" + self.pick(["", "", "-"]) + " " + self.expression(2) + " " + self.pick(["", "", "-"]) + "}}" + self.pick(SPACES)

    def statement(self, depth=0):
        kind = self.rng.random()
        deeper = lambda: self.statement(depth + 1)
        if depth > 3 or kind < 0.25: return self.output()
        if kind < 0.35:
            return self.tag("if " + self.expression(2)) + deeper() + (self.tag("elif " + self.expression(3)) + deeper() if self.chance(0.3) else "") + (self.tag("else") + deeper() if self.chance(0.5) else "") + self.tag("endif")
        if kind < 0.55:
            where = self.pick(LISTS, DICTS, ["messages", "{'a': 1}.items()", "messages|selectattr('role')"])
            condition = self.pick(["", "", "", " if x", " if true", " if loop is defined"])
            return (self.tag(f"for {self.pick(['x', 'm', 'k, v', '(k, v)'])} in {where}{condition}") + self.pick(BODIES) + deeper() +
                    (self.tag("else") + deeper() if self.chance(0.2) else "") + self.tag("endfor"))
        if kind < 0.65: return self.tag(f"set {self.pick(['x', 'm', 'y', 'a, b', 'ns.q'])} = {self.expression(2)}") + self.pick(["", "{{ x }}{{ y }}", "{{ ns.q }}"])
        if kind < 0.7: return self.tag(f"set x{self.pick(['', ' | upper', ' | trim | length'])}") + deeper() + self.tag("endset") + "{{ x }}"
        if kind < 0.78:
            return (self.tag(f"macro f(a, b={self.expression(3)}{self.pick(['', ', c=a'])})") + "{{ a }}" + deeper() + self.pick(["", "{{ varargs }}", "{{ kwargs }}", "{{ caller() if caller is defined }}"]) + self.tag("endmacro") +
                    "{{ f(" + self.pick(["", "1", "1, 2", "b=3", "1, 2, 3", "1, z=5", "x", "*[1, 2]", "**{'a': 1}"]) + ") }}" + self.pick(["", "{% call f(2) %}in{{ x }}{% endcall %}"]))
        if kind < 0.83: return self.tag("filter " + self.pick(["upper", "trim", "replace('a', 'o')", "length", "indent(2)"])) + deeper() + self.tag("endfilter")
        if kind < 0.87: return self.tag(f"with x = {self.expression(3)}, y = x") + deeper() + self.tag("endwith")
        if kind < 0.9: return "{#" + self.pick(["", "-", "+"]) + " c " + self.pick(["", "-", "+"]) + "#}" + self.pick(SPACES)
        if kind < 0.93: return self.tag("raw") + "{{ a }}{% if" + self.tag("endraw")
        if kind < 0.95: return self.tag("generation") + deeper() + self.tag("endgeneration")
        return self.pick(["text ", "\n", "  ", "{{ x }}"]) + deeper() + deeper()

    def template(self):
        if self.chance(0.6): return "{{ " + self.expression() + " }}"
        return "{% set ns = namespace(q=1) %}" + self.pick(SPACES) + self.statement() + self.statement()


# ---- rendering ------------------------------------------------------------------------------------------------------
def render(source, conversation, prompt, **variables):
    """{"text"} or {"raises"}; None for what takes too long or prints the address of an object."""
    def late(*_):
        raise TimeoutError
    signal.signal(signal.SIGALRM, late)
    signal.alarm(2)
    try:
        text = _compile_jinja_template(source).render(messages=json.loads(json.dumps(CONVERSATIONS[conversation])), add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>", **variables)
        return None if " at 0x" in text or len(text) > 20000 or "function" in text or "<class" in text else {"text": text}
    except (TimeoutError, MemoryError):
        return None
    except Exception as e:
        return {"raises": type(e).__name__}
    finally:
        signal.alarm(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random", type=int, default=400)
    parser.add_argument("--out", default=str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "chat.json"))
    args = parser.parse_args()
    rows = []

    def add(source, conversation, prompt, tools, keep_failure=True):
        result = render(source, conversation, prompt, tools=json.loads(json.dumps(TOOLS)) if tools else None, documents=None)
        if result and (keep_failure or "text" in result): rows.append({"source": source, "conversation": conversation, "prompt": prompt, "tools": tools} | result)

    for source in TEMPLATES.values():
        for c in range(len(CONVERSATIONS)):
            for prompt in (False, True): add(source, c, prompt, c == 3)
    for source in EXPRESSIONS: add(source, 0, True, False)
    generator = Random(args.seed)
    wanted = len(rows) + args.random
    while len(rows) < wanted: add(generator.template(), generator.rng.randrange(len(CONVERSATIONS)), True, generator.chance(0.3), generator.chance(0.3))
    lines = ",\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
    head = json.dumps({"tools": TOOLS, "conversations": CONVERSATIONS}, ensure_ascii=False)[:-1]
    pathlib.Path(args.out).write_text(f'{head}, "renders": [\n{lines}\n]}}\n', encoding="utf-8")
    print(f"{len(rows)} renders, {sum('raises' in r for r in rows)} of them raise")


if __name__ == "__main__":
    main()
