"""``results.md``: one table a question, honest about losses, each claim with its reason."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.cleanup.tools import Tool

Record = dict[str, Any]

GOOD = ("ok",)
"""States that count as right. ``altered`` works but declares less than before; the rest a caller would
notice."""

STATES = {
    "ok": "right",
    "altered": "declared interface altered",
    "wrong": "wrong outputs or interface",
    "invalid": "invalid file",
    "raised": "raised an error",
    "refused": "refused",
    "crashed": "crashed",
    "timeout": "timed out",
    "unjudged": "not judged",
}

MEASURED = ("in_process_wall", "in_process_cpu", "whole_wall", "whole_cpu", "peak_rss")

MB = 1e6


class Footnotes:
    """Numbered once for each text, in the order of mention."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return f"<sup>{self.texts.index(text) + 1}</sup>"

    def lines(self) -> list[str]:
        return [f"{i}. {_escape(text)}" for i, text in enumerate(self.texts, 1)]


def render(records: Sequence[Record], tools: Sequence[Tool], machine: dict[str, str]) -> str:
    notes = Footnotes()
    parts = [
        "# Cleanup: side by side",
        "Written by `python -m benchmarks.cleanup`; see `benchmarks/README.md` for how and why.",
        _machine(machine, tools),
        "## Summary",
        summary(records, tools),
        "## Nodes left",
        "Of the main graph, every subgraph and used local functions, `Constant` not counted. **Bold**: "
        "fewest of the "
        "right ones, where fewer than before. ~~Struck~~: not usable as a replacement, the footnote says "
        "why. "
        "†: usable, but what the file declares of its inputs and outputs was altered.",
        *_by_group(records, lambda group: nodes(group, tools, notes)),
        "\n".join(notes.lines()),
        "## File size (MB)",
        "External data included. The exact steps that make a file larger (folding `ConstantOfShape`, "
        "`Expand`) show "
        "here.",
        *_by_group(records, lambda group: grid(group, tools, _size, lambda r: f"{r['original']['size'] / MB:.3f}")),
    ]
    timed = [r for r in records if r["times"]]
    if timed:
        parts += [
            "## Time in process (ms)",
            "Load, clean, save, after import and one warm-up; median of five, wall clock.",
            *_by_group(timed, lambda group: grid(group, tools, _time("in_process_wall", 1e3, skip=1))),
            "## Time as a whole process (s)",
            "From start to exit of the command, interleaved between the tools; median of five, wall clock.",
            *_by_group(timed, lambda group: grid(group, tools, _time("whole_wall", 1.0))),
            "## Peak memory (MB)",
            "Largest resident size of the process tree.",
            *_by_group(timed, lambda group: grid(group, tools, _time("peak_rss", 1e-6))),
        ]
    parts += ["## Metadata", metadata(records, tools), "## Judging", judging(records)]
    return "\n\n".join(p for p in parts if p) + "\n"


def _machine(machine: dict[str, str], tools: Sequence[Tool]) -> str:
    lines = [f"- {k}: {v}" for k, v in machine.items()]
    lines += [f"- {t.label}: {t.versions()}; called as `{t.whole_text}`" for t in tools]
    return "\n".join(lines)


def _by_group(records: Sequence[Record], make: Callable[[Sequence[Record]], str]) -> Iterable[str]:
    titles = {"real": "Published models", "own": "Our own trained models", "export": "Exports and twins"}
    for group, title in titles.items():
        if chosen := [r for r in records if r["original"]["group"] == group]:
            yield f"### {title}"
            yield make(chosen)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def nodes(records: Sequence[Record], tools: Sequence[Tool], notes: Footnotes) -> str:
    rows = []
    for record in records:
        right = [t["nodes"] for t in record["tools"].values() if t["state"] in GOOD]
        best = min((n for n in right if n < record["original"]["nodes"]), default=None)
        cells = [_nodes(record["tools"].get(t.name), best, notes) for t in tools]
        rows.append([record["name"], str(record["original"]["nodes"]), *cells])
    return table(["model", "before", *(t.label for t in tools)], rows)


def _nodes(result: Record | None, best: int | None, notes: Footnotes) -> str:
    if result is None:
        return ""
    state = result["state"]
    if "nodes" not in result:
        return f"{state}{notes.mark(result['reason'] or state)}"
    text = str(result["nodes"])
    if state == "ok":
        return f"**{text}**" if result["nodes"] == best else text
    if state == "altered":
        return f"{text}†{notes.mark('; '.join(result['verdict']['altered']))}"
    return f"~~{text}~~{notes.mark(result['reason'])}"


def grid(
    records: Sequence[Record],
    tools: Sequence[Tool],
    cell: Callable[[Record, str], str],
    before: Callable[[Record], str] | None = None,
) -> str:
    head = ["model", *(["before"] if before else []), *(t.label for t in tools)]
    rows = [[r["name"], *([before(r)] if before else []), *(cell(r, t.name) for t in tools)] for r in records]
    return table(head, rows)


def _size(record: Record, tool: str) -> str:
    result = record["tools"].get(tool, {})
    if "size" not in result:
        return "–"
    text = f"{result['size'] / MB:.3f}"
    return text if usable(result) else f"~~{text}~~"


def usable(result: Record) -> bool:
    return result.get("state") in ("ok", "altered")


def sample(record: Record, tool: str, what: str) -> float | None:
    """The median, without the warm-up of in-process series; None if the tool left nothing usable or
    has no time."""
    values = record["times"].get(tool, {}).get(what) or []
    values = values[1:] if what.startswith("in_process") else values
    return statistics.median(values) if values and usable(record["tools"].get(tool, {})) else None


def _time(what: str, scale: float, skip: int = 0) -> Callable[[Record, str], str]:
    def cell(record: Record, tool: str) -> str:
        value = sample(record, tool, what)
        if value is None:
            return "–"
        value *= scale
        return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"

    return cell


def summary(records: Sequence[Record], tools: Sequence[Tool]) -> str:
    base = tools[0]
    head = [
        "tool",
        "right",
        "altered",
        "wrong",
        "invalid",
        "failed",
        "not repeatable",
        "fewest nodes",
        "nodes after/before",
        "size after/before",
        "in process, wall",
        "in process, CPU",
        "whole, wall",
        "whole, CPU",
        "memory",
    ]
    rows = []
    for tool in tools:
        results = [r["tools"][tool.name] for r in records if tool.name in r["tools"]]
        count = {s: sum(x["state"] == s for x in results) for s in STATES}
        done = [(r, r["tools"][tool.name]) for r in records if usable(r["tools"].get(tool.name, {}))]
        rows.append(
            [
                tool.label,
                f"{count['ok']}/{len(results)}",
                str(count["altered"]),
                str(count["wrong"]),
                str(count["invalid"]),
                str(count["raised"] + count["refused"] + count["crashed"] + count["timeout"]),
                str(sum(x.get("deterministic") is False for x in results)),
                str(sum(is_best(r, tool.name) for r in records)),
                _geomean([x["nodes"] / r["original"]["nodes"] for r, x in done if r["original"]["nodes"]]),
                _geomean([x["size"] / r["original"]["size"] for r, x in done]),
                *(_ratios(records, tool, base, w) for w in MEASURED),
            ]
        )
    legend = (
        "Counts are of models. *Failed*: an error, a refusal, a crash or a time-out. *Fewest nodes*: "
        "right, and no "
        "right result has fewer; ties count for each. Nodes and size: geometric mean over the tool's "
        "usable results. "
        f"Times and memory: median over models of the ratio to {base.label} on the same model, with its "
        f"interquartile "
        "range, where both have a usable result."
    )
    return table(head, rows) + "\n\n" + legend


def is_best(record: Record, tool: str) -> bool:
    right = {name: t["nodes"] for name, t in record["tools"].items() if t["state"] in GOOD}
    best = min(right.values(), default=0)
    return tool in right and right[tool] == best < record["original"]["nodes"]


def _geomean(values: Sequence[float]) -> str:
    return f"{math.exp(statistics.fmean(map(math.log, values))):.3f}" if values else "–"


def _ratios(records: Sequence[Record], tool: Tool, base: Tool, what: str) -> str:
    ratios = []
    for record in records:
        mine, theirs = sample(record, tool.name, what), sample(record, base.name, what)
        if mine is not None and theirs:
            ratios.append(mine / theirs)
    if not ratios:
        return "–"
    if len(ratios) < 2:
        return f"{ratios[0]:.2f}"
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def metadata(records: Sequence[Record], tools: Sequence[Tool]) -> str:
    head = [
        "tool",
        "model fields lost",
        "metadata_props lost",
        "node metadata_props kept",
        "node doc_strings kept",
        "names of values known",
        "names of initializers known",
        "names of nodes known",
        "opset raised",
        "input untouched",
    ]
    rows = []
    for tool in tools:
        pairs = [(r, r["tools"][tool.name]) for r in records if "kept" in r["tools"].get(tool.name, {})]
        kept = [x["kept"] for _, x in pairs]
        rows.append(
            [
                tool.label,
                _named(f for k in kept for f in k["lost_model_fields"]),
                _named(f for k in kept for f in k["lost_props"]),
                *(
                    _mean(k[what] for k in kept)
                    for what in ("node_props", "node_docs", "value_names", "initializer_names", "node_names")
                ),
                str(sum(_raised(r, x) for r, x in pairs)),
                f"{sum(x['input_intact'] for _, x in pairs)}/{len(pairs)}",
            ]
        )
    legend = (
        "Lost: number of models on which a non-empty field did not survive unchanged. Kept: mean share, "
        "of nodes whose "
        "first output survives and that had such data. Known: mean share of the result's names that the "
        "original used."
    )
    return table(head, rows) + "\n\n" + legend


def _named(names: Iterable[str]) -> str:
    count: dict[str, int] = {}
    for name in names:
        short = "doc_string of a port" if name.startswith("doc_string of ") else name
        count[short] = count.get(short, 0) + 1
    return ", ".join(f"{k} ({v})" for k, v in sorted(count.items(), key=lambda kv: -kv[1])[:6]) or "none"


def _mean(values: Iterable[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{statistics.fmean(known):.2f} ({len(known)})" if known else "–"


def _raised(record: Record, result: Record) -> bool:
    """An absent domain and ``ai.onnx`` spell the same one."""
    before, after = ({k or "ai.onnx": v for k, v in o["opset"].items()} for o in (record["original"], result))
    return bool(after.get("ai.onnx") != before.get("ai.onnx"))


def judging(records: Sequence[Record]) -> str:
    """What the judge could not see, and what it noticed beside the verdicts."""
    blind = sorted(
        {r["name"] for r in records for t in r["tools"].values() if t.get("verdict") and t["verdict"]["blind"]}
    )
    lines = []
    if blind:
        lines.append(
            "Outputs that are one constant whatever goes in, so that structure alone is judged: "
            + ", ".join(blind)
            + "."
        )
    seen = [
        f"- {r['name']}, {name}: {note}"
        for r in records
        for name, t in r["tools"].items()
        if t.get("verdict")
        for note in t["verdict"]["notes"]
    ]
    worst = sorted(
        (
            (t["verdict"]["worst"], r["name"], name)
            for r in records
            for name, t in r["tools"].items()
            if t.get("verdict") and t["state"] in GOOD
        ),
        reverse=True,
    )[:5]
    if worst:
        near = "; ".join(f"{w:.2g} ({model}, {tool})" for w, model, tool in worst)
        lines.append(f"Largest error among the right ones, in units of what is allowed: {near}.")
    return "\n\n".join([*lines, "\n".join(map(_escape, seen))])


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("_", "\\_").replace("*", "\\*")
