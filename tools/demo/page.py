"""The page of reproduce.py: one HTML file, figures as inline SVG, no scripts, light and dark."""
from html import escape

STYLE = """
:root { --ink: #1c2024; --soft: #667078; --rule: #d8dde1; --page: #ffffff; --a: #2166a5; --b: #c2571a; --c: #3b8a4f; --d: #8d6bb0 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --soft: #98a2ab; --rule: #3a4148; --page: #14171a; --a: #6cabe6; --b: #ec9458; --c: #76c48b; --d: #bda0dc }
}
body { color: var(--ink); background: var(--page); font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: bottom }
th:first-child, td:first-child { text-align: left }
small { color: var(--soft) }
svg { display: block; width: 100%; height: auto; margin: 1rem 0 } svg text { fill: var(--ink); font: 12px system-ui, sans-serif }
.rule { stroke: var(--rule) }
.seen { fill: var(--a); stroke: var(--a) } .compositions { fill: var(--b); stroke: var(--b) }
.parameters { fill: var(--c); stroke: var(--c) } .revealed { fill: var(--d); stroke: var(--d) }
.line { fill: none; stroke-width: 2 }
"""


def table(head, rows):
    cells = lambda tag, row: "".join(f"<{tag}>{c}</{tag}>" for c in row)
    return f"<table><tr>{cells('th', head)}</tr>" + "".join(f"<tr>{cells('td', r)}</tr>" for r in rows) + "</table>"


def cell(v):
    if not v:
        return "–"
    return f"{v['mean']:.1f}" + (f" <small>{v['min']:.1f}–{v['max']:.1f}</small>" if v["seeds"] > 1 else "")


def legend(columns, y, x=230):
    out = ""
    for i, (name, text) in enumerate(columns.items()):
        out += (f'<rect class="{name}" x="{x}" y="{y + 16 * i - 9}" width="10" height="10"/>'
                f'<text x="{x + 16}" y="{y + 16 * i}">{escape(text)}</text>')
    return out


def bars(rows, columns):
    """rows: (label, {column: %} or {column: {mean, min, max}}). Horizontal bars with whiskers from min to max."""
    left, width, thick = 230, 560, 8
    y, out = 8, ""
    for label, values in rows:
        have = [c for c in columns if c in values]
        out += f'<text x="{left - 8}" y="{y + thick * len(have) / 2 + 4}" text-anchor="end">{escape(label)}</text>'
        for c in have:
            v = values[c] if isinstance(values[c], dict) else {"mean": values[c], "min": values[c], "max": values[c]}
            at = lambda key: left + width * v[key] / 100
            out += (f'<rect class="{c}" x="{left}" y="{y}" width="{max(0.5, at("mean") - left):.1f}" height="{thick - 1}" stroke="none">'
                    f'<title>{escape(columns[c])}: {v["mean"]:.1f} %</title></rect>')
            if v["max"] > v["min"]:
                out += (f'<line x1="{at("min"):.1f}" x2="{at("max"):.1f}" y1="{y + 3.5}" y2="{y + 3.5}" stroke="var(--ink)" '
                        'stroke-width="1.5"/>')
            y += thick
        y += 8
    grid = "".join(f'<line class="rule" x1="{left + width * p / 100}" x2="{left + width * p / 100}" y1="4" y2="{y}"/>'
                   f'<text x="{left + width * p / 100}" y="{y + 14}" text-anchor="middle">{p}</text>' for p in range(0, 101, 20))
    height = y + 36 + 16 * len(columns)
    return f'<svg viewBox="0 0 820 {height}" role="img">{grid}{out}{legend(columns, y + 36)}</svg>'


def lines(rows, columns, axis):
    """rows: (label, {column: %}), spaced evenly: accuracy against what the labels say."""
    left, right, top, bottom = 60, 780, 10, 250
    x = lambda i: left + (right - left) * (i + 0.5) / len(rows)
    y = lambda v: bottom - (bottom - top) * v / 100
    out = "".join(f'<line class="rule" x1="{left}" x2="{right}" y1="{y(p)}" y2="{y(p)}"/>'
                  f'<text x="{left - 8}" y="{y(p) + 4}" text-anchor="end">{p}</text>' for p in range(0, 101, 20))
    out += "".join(f'<text x="{x(i)}" y="{bottom + 18}" text-anchor="middle">{escape(r[0])}</text>' for i, r in enumerate(rows))
    out += f'<text x="{(left + right) / 2}" y="{bottom + 36}" text-anchor="middle">{escape(axis)}</text>'
    for c in columns:
        points = [(x(i), y(r[1][c])) for i, r in enumerate(rows) if c in r[1]]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        out += f'<polyline class="{c} line" style="fill: none" points="{path}"/>'
        out += "".join(f'<circle class="{c}" cx="{px:.1f}" cy="{py:.1f}" r="3.5"/>' for px, py in points)
    return f'<svg viewBox="0 0 820 {bottom + 60 + 16 * len(columns)}" role="img">{out}{legend(columns, bottom + 62, left)}</svg>'


def amount(x, unit):
    for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ")):
        if x >= scale:
            return f"{x / scale:.3g} {prefix}{unit}"
    return f"{x:.3g} {unit}"


def cost_section(r):
    cost, times = r["cost"], r["times"]["cost"]
    names = {"generated": "an adapter from a description: text and hypernetwork", "trained": "a task-specific LoRA, trained (of 100 at once)",
             "question": "a question, adapter or not", "question with 3 examples": "a question behind 3 examples"}
    out = table(["", "counted work", "time"],
                [[names[n], amount(cost[n], "FLOP"), amount(times[n], "s")] for n in names if n in cost])
    if "trained" in cost:
        out += (f"<p>Generating an adapter takes 1/{cost['trained'] / cost['generated']:.0f} of the work of training one, and "
                f"1/{times['trained'] / times['generated']:.0f} of the time.")
    if "question with 3 examples" in cost:
        extra = cost["question with 3 examples"] - cost["question"]
        out += f" Against 3 examples in each prompt it has paid for itself after {cost['generated'] / max(extra, 1):.1f} questions.</p>"
    return out


def write_page(file, r, methods):
    columns = r["columns"]
    hidden = {c: t for c, t in columns.items() if c != "revealed"}
    unseen = {c: hidden[c] for c in ("compositions", "parameters")}
    seeds = len(r["seeds"])
    parts = [f"<h1>Text-to-LoRA in the small world</h1><p>Exact match in %, mean over tasks"
             + (f", then mean and <small>range</small> over {seeds} seeds of world, base model and hypernetwork" if seeds > 1 else "")
             + ". The first three columns are of tasks that the input does not reveal; the last one's inputs say what is asked."
             + ("" if r["scale"] == "full" else f" This is the <b>{r['scale']}</b> run.") + "</p>"]
    parts.append(table(["", *map(escape, columns.values())],
                       [[escape(methods[m]), *(cell(row.get(c)) for c in columns)] for m, row in r["table"].items()]))
    parts += [f"<p>{escape(n)}</p>" for n in r["notes"]]
    parts += ["<h2>By method</h2>", bars([(methods[m], row) for m, row in r["table"].items()], columns)]
    if len(r["tasks"]) > 1:
        parts += ["<h2>Number of training tasks</h2><p>T2L-L, SFT, the same number of steps, seed 0.</p>",
                  lines(list(r["tasks"].items()), unseen, "training tasks")]
    if len(r["equal_steps"]) > 1:
        training, times = r["training"], r["times"]["training"]
        stage = lambda prefix, v: f"0/{'sft' if v == 'L' else prefix}-{v}"
        for title, prefix, rows in (("equal steps", "sft", r["equal_steps"]), ("equal counted work", "flops", r["equal_flops"])):
            if rows:
                parts += [f"<h2>L, M and S at {title}</h2>", bars([(f"T2L-{v}", row) for v, row in rows.items()], hidden),
                          table(["", "parameters", "steps", "counted work", "time"],
                                [[f"T2L-{v}", f"{training[s]['parameters']:,}", training[s]["updates"],
                                  amount(training[s]["flops"], "FLOP"), f"{times[s]:.0f} s"] for v in rows for s in [stage(prefix, v)]])]
    if len(r["modules"]) > 1:
        parts += ["<h2>Which modules are adapted</h2>", bars(list(r["modules"].items()), hidden)]
    if r.get("cost"):
        parts += ["<h2>What an adapter costs</h2>", cost_section(r)]
    parts.append("<h2>Training</h2>" + table(
        ["", "steps", "loss, first to last", "time", ""],
        [[escape(n), t["updates"], f"{t['loss'][0]:.3f} → {t['loss'][1]:.3f}", f"{r['times']['training'][n]:.0f} s",
          f'<a href="{escape(n)}/report.html">curves</a>'] for n, t in r["training"].items() if "oracles/train" not in n]))
    parts.append("<p>The report of each hypernetwork has the heat map of its adapters, like tasks side by side.</p>")
    with open(file, "w") as f:
        f.write('<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
                f"<title>Text-to-LoRA in the small world</title><style>{STYLE}</style>" + "\n".join(parts) + "</html>\n")
