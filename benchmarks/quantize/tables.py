"""``results.md``: one table a question, losses included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.cleanup.tables import Footnotes, table
from benchmarks.quantize import verdicts
from benchmarks.quantize.task import METRICS
from benchmarks.quantize.tools import Tool

Record = dict[str, Any]

TITLES = {"real": "Published models", "own": "Our own trained models", "export": "torchvision", "given": "Given"}


def render(records: Sequence[Record], tools: Sequence[Tool], machine: dict[str, str]) -> str:
    notes = Footnotes()
    peers = [t for t in tools if t.peer]
    parts = [
        "# Quantization: side by side",
        "Written by `python -m benchmarks.quantize`; see `benchmarks/README.md` for how and why.",
        "\n".join(f"- {k}: {v}" for k, v in machine.items()),
        "\n".join(f"- `{t.name}`: {t.text} ({t.versions()})" for t in tools),
        "## Summary",
        summary(records, tools),
    ]
    if any(not t.peer for t in tools):
        parts += ["## What it must reach", *(reached(records, t, peers) for t in tools if not t.peer)]
    parts += [
        "## The bar",
        "Of the peers' results that are right and not slower than the original: the one of best quality (of equals the "
        "fastest), and the fastest.",
        bars(records, peers),
        "## Quality and time",
        "Score after quantization, SQNR of the worst output in dB, latency ratio to the original. **Bold**: right, and "
        "no right result is both faster and better. ~~Struck~~: wrong, that is below 20 dB and more than 1 point lost. "
        "†: nothing is quantized in it. "
        "Metrics: " + "; ".join(f"*{k}*: {v}" for k, v in METRICS.items()) + ".",
        *by_group(records, lambda group: matrix(group, tools, notes)),
        "\n".join(notes.lines()),
        "## Latency ratio",
        "Median of paired ratios of CPU time, one thread, one sample, with its interquartile range.",
        *by_group(records, lambda group: grid(group, tools, _latency, ("ms", _milliseconds))),
        "## File size, after / before",
        grid(records, tools, _size, ("MB", lambda r: f"{r['original']['size'] / 1e6:.2f}")),
        "## Time to quantize (s)",
        "The whole process, CPU time / wall time.",
        grid(records, tools, _seconds),
        "## Peak memory (MB)",
        "Largest resident size of the process tree.",
        grid(records, tools, lambda r: f"{r['peak_rss'] / 1e6:.0f}"),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def by_group(records: Sequence[Record], make: Callable[[Sequence[Record]], str]) -> list[str]:
    found = []
    for group, title in TITLES.items():
        if chosen := [r for r in records if r["group"] == group]:
            found += [f"### {title}", make(chosen)]
    return found


def grid(
    records: Sequence[Record],
    tools: Sequence[Tool],
    cell: Callable[[Record], str],
    before: tuple[str, Callable[[Record], str]] | None = None,
) -> str:
    head = ["model", *([before[0]] if before else []), *(t.name for t in tools)]
    rows = []
    for record in records:
        cells = (cell(record["tools"][t.name]) if t.name in record["tools"] else "" for t in tools)
        rows.append([record["name"], *([before[1](record)] if before else []), *cells])
    return table(head, rows)


def _milliseconds(record: Record) -> str:
    known = [r["latency"]["original_ms"] for r in record["tools"].values() if r.get("latency")]
    return f"{min(known):.2f}" if known else "–"


def _latency(result: Record) -> str:
    if (r := verdicts.ratio(result)) is None:
        return "–"
    low, high = result["latency"]["ratio_iqr"]
    return f"{r:.2f} [{low:.2f}, {high:.2f}]"


def _size(result: Record) -> str:
    return f"{result['size'] / result['original_size']:.2f}" if "size" in result else "–"


def _seconds(result: Record) -> str:
    return f"{result['cpu']:.1f} / {result['wall']:.1f}"


def number(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)


def short(result: Record) -> str:
    """Score · SQNR · ratio."""
    parts = []
    if (score := result["quality"]["score"]) is not None:
        parts.append(f"{score:.1f} %")
    if (noise := verdicts.sqnr(result)) is not None:
        parts.append("exact" if noise >= 200 else "NaN" if noise <= -200 else f"{noise:.0f} dB")
    parts.append("×" + number(verdicts.ratio(result)) + ("" if verdicts.quantized(result) else "†"))
    return " · ".join(parts)


def matrix(records: Sequence[Record], tools: Sequence[Tool], notes: Footnotes) -> str:
    rows = []
    for record in records:
        front = verdicts.front(record["tools"])
        scores = [r["quality"]["original"] for r in record["tools"].values() if verdicts.works(r)]
        first = f"{scores[0]:.1f} % {record['original']['metric']}" if scores and scores[0] is not None else "–"
        cells = []
        for tool in tools:
            result = record["tools"].get(tool.name)
            if result is None:
                cells.append("")
            elif not verdicts.works(result):
                cells.append(result["state"] + notes.mark(result["reason"] or result["state"]))
            else:
                text = short(result)
                cells.append(f"**{text}**" if tool.name in front else text if verdicts.right(result) else f"~~{text}~~")
        rows.append([record["name"], first, *cells])
    return table(["model", "original", *(t.name for t in tools)], rows)


def summary(records: Sequence[Record], tools: Sequence[Tool]) -> str:
    head = [
        "tool",
        "right",
        "wrong",
        "failed",
        "slower than the original",
        "right and not slower",
        "of these quantized",
    ]
    head += ["undominated"]
    head += ["latency ratio", "points lost", "SQNR (dB)", "size", "CPU time / ort-minmax", "peak memory (MB)"]
    rows = []
    for tool in tools:
        results = [(r, r["tools"][tool.name]) for r in records if tool.name in r["tools"]]
        done = [x for _, x in results if verdicts.works(x)]
        base = [(x, r["tools"].get("ort-minmax")) for r, x in results if verdicts.works(x)]
        times = [x["cpu"] / b["cpu"] for x, b in base if b and verdicts.works(b)]
        good = [x for x in done if verdicts.right(x)]
        rows.append(
            [
                tool.name,
                f"{len(good)}/{len(results)}",
                str(len(done) - len(good)),
                str(len(results) - len(done)),
                str(sum(map(verdicts.slower, done))),
                str(sum(not verdicts.slower(x) for x in good)),
                str(sum(not verdicts.slower(x) and verdicts.quantized(x) for x in good)),
                str(sum(tool.name in verdicts.front(r["tools"]) for r, _ in results)),
                number(verdicts.median(map(verdicts.ratio, done))),
                number(verdicts.median(map(verdicts.loss, done))),
                number(verdicts.median(map(verdicts.sqnr, done)), ".1f"),
                number(verdicts.median(x["size"] / x["original_size"] for x in done)),
                number(verdicts.median(times)),
                f"{max((x['peak_rss'] for _, x in results), default=0) / 1e6:.0f}",
            ]
        )
    legend = (
        "Right: at least 20 dB on every output, or at most 1 point of the score lost. Slower: by more than "
        f"{100 * verdicts.SAME_TIME:.0f} % and beyond the middle half of the measurements. Undominated: right, and no "
        "other tool's right result is both faster and of better quality. Medians are over the tool's own results, so "
        "over different models where some failed; memory is the largest."
    )
    return table(head, rows) + "\n\n" + legend


def bars(records: Sequence[Record], peers: Sequence[Tool]) -> str:
    rows = []
    for record in records:
        results = {t.name: record["tools"][t.name] for t in peers if t.name in record["tools"]}
        good = {k: r for k, r in results.items() if verdicts.right(r) and not verdicts.slower(r)}
        fast = min(good, key=lambda k: verdicts.ratio(good[k]) or 9e9, default=None)
        best = verdicts.bar(results)
        cells = [f"{k}: {short(results[k])}" if k else "nobody" for k in (best, fast)]
        rows.append([record["name"], *cells])
    return table(["model", "best quality, not slower", "fastest, right"], rows)


def reached(records: Sequence[Record], tool: Tool, peers: Sequence[Tool]) -> str:
    """The requirements, each with the models that miss it."""
    mine = [(r, r["tools"][tool.name]) for r in records if tool.name in r["tools"]]
    others = [{p.name: r["tools"][p.name] for p in peers if p.name in r["tools"]} for r, _ in mine]
    dominated = []
    for (r, x), peer in zip(mine, others, strict=True):
        if by := [f"{k} {short(o)}" for k, o in peer.items() if verdicts.dominates(o, x)]:
            dominated.append(f"{r['name']} ({short(x)}; {', '.join(by)})")
    won = [r["name"] for (r, x), peer in zip(mine, others, strict=True) if verdicts.wins(x, peer)]
    lost = [r["name"] for r, _ in mine if r["name"] not in won]
    slow = [f"{r['name']} (×{number(verdicts.ratio(x))})" for r, x in mine if verdicts.slower(x)]
    wrong = [f"{r['name']} ({short(x) if verdicts.works(x) else x['state']})" for r, x in mine if not verdicts.right(x)]
    pairs = [(x, r["tools"].get("ort-minmax")) for r, x in mine]
    times = verdicts.median(x["cpu"] / o["cpu"] for x, o in pairs if o and verdicts.works(x) and verdicts.works(o))
    memory = [
        f"{r['name']} ({x['peak_rss'] / 1e6:.0f} MB)" for r, x in mine if x["peak_rss"] > x["original_size"] + 1e9
    ]

    def line(what: str, missed: Sequence[str]) -> list[str]:
        return [what, "reached" if not missed else f"missed on {len(missed)} of {len(mine)}", ", ".join(missed)]

    rows = [
        line("no peer is both faster and more accurate", dominated),
        [
            "at least the best peer's quality at equal or better latency",
            f"{len(won)} of {len(mine)}",
            "not on " + ", ".join(lost) if lost else "",
        ],
        line("never slower", slow),
        line("never wrong", wrong),
        ["CPU time / ort-minmax, median ≤ 1", number(times), ""],
        line("peak memory ≤ model + 1 GB", memory),
    ]
    return f"`{tool.name}`:\n\n" + table(["requirement", "result", "models"], rows)
