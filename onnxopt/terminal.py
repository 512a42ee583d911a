"""Results as tables for people.

Names in models are not ours: they are never read as markup, and what a terminal would obey is escaped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxopt.supervise import one_line
from onnxopt.wording import count as _count
from onnxopt.wording import decibels as _decibels
from onnxopt.wording import size as _bytes

if TYPE_CHECKING:
    from onnxopt.evaluation import Quality
    from onnxopt.inspection import Comparison, Costs, Inspection
    from onnxopt.recipes.catalogue import Entry, RecipeEntry
    from onnxopt.run_report import RunReport
    from onnxopt.search.advise import Advice
    from onnxopt.search.auto import AutoResult
    from onnxopt.search.pareto import ParetoSet
    from onnxopt.search.sensitivity import LowRankSensitivity, PruningSensitivity, Sensitivity


class _Page:
    """Standard output, as plain text."""

    def line(self, text: str = "", style: str = "", indent: int = 0) -> None:
        """One line, however long; ``style`` is for terminals."""
        print(" " * indent + one_line(text))

    def text(self, text: str) -> None:
        """Several lines as they are."""
        for line in text.splitlines():
            self.line(line, indent=len(line) - len(line.lstrip()))

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> None:
        """A table; all but the first ``text_columns`` columns are figures."""
        cells = [[one_line(cell) for cell in row] for row in ([headings] if any(headings) else []) + list(rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            aligned = (
                cell.ljust(width) if at < text_columns else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            print("  ".join(aligned).rstrip())


class _Terminal(_Page):
    """A terminal, which has a width and colours."""

    def __init__(self) -> None:
        from rich.console import Console

        class _Console(Console):
            def on_broken_pipe(self) -> None:
                raise  # noqa: PLE0704  called while the error is handled, where rich itself would end the process

        self._console = _Console(markup=False, highlight=False, emoji=False)

    def line(self, text: str = "", style: str = "", indent: int = 0) -> None:
        from rich.text import Text

        self._console.print(Text(" " * indent + one_line(text), style), soft_wrap=True)

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_header=any(headings), header_style="bold")
        for at, heading in enumerate(headings):
            table.add_column(heading, justify="left" if at < text_columns else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(one_line(cell)) for cell in row))
        self._console.print(table)


def _screen() -> _Page:
    """Standard output. To import what terminals need takes as long as to optimize a small model."""
    return _Terminal() if sys.stdout.isatty() else _Page()


def show_optimized(
    before: Costs, after: Costs, report: RunReport, files: Sequence[Path], seconds: float, details: bool
) -> None:
    """What a pipeline did to a model."""
    screen = _screen()
    screen.table(["", "before", "after", "change"], _cost_rows(before, after))
    _show_dims(screen, before)
    screen.line()
    if not report.changed:
        screen.line("Nothing was changed: no pass found anything to do.", "bold")
    for each in report.passes:
        if each.changed or each.refusals:
            refused = f", {len(each.refusals)} refused" if each.refusals else ""
            screen.line(f"{each.name}: {_count(each.changed, 'change')}{refused}")
        if details:
            for note in each.changes:
                screen.line(str(note), indent=4)
            for note in each.refusals:
                screen.line(f"refused: {note}", "dim", indent=4)
        if details and each.facts:
            _show_facts(screen, each.facts)
    for name, quality in report.quality.items():
        screen.line(f"{name}: {_quality(quality)}")
    if report.overall is not None and len(report.quality) > 1:
        screen.line(f"All together: {_quality(report.overall)}", "bold")
    for warning in report.warnings:
        screen.line(f"Warning: {warning}", "yellow")
    screen.line(f"Verification: {report.verification}", "green" if report.verified else "yellow")
    screen.line(f"Wrote {', '.join(map(str, files))} in {seconds:.2f} s")


def _show_facts(screen: _Page, facts: Sequence[Mapping[str, object]]) -> None:
    """A row a node, with a column for whatever any of them tells."""
    columns = list(dict.fromkeys(name for fact in facts for name in fact))
    numbers = {n for n in columns if all(isinstance(fact.get(n, 0), int | float) for fact in facts)}
    columns.sort(key=lambda name: name in numbers)
    rows = (
        [f"{value:.4g}" if isinstance(value := fact.get(name, ""), float) else str(value) for name in columns]
        for fact in facts
    )
    screen.table(columns, rows, text_columns=len(columns) - len(numbers))


def _quality(quality: Quality) -> str:
    """What a lossy pass did to the outputs, in a line."""
    sqnr = ", ".join(f"{output} {_decibels(db)}" for output, db in quality.sqnr_db.items())
    parts = [f"SQNR {sqnr}"] if sqnr else []
    parts += [f"agreement of {output} {share:.2%}" for output, share in quality.agreement.items()]
    parts += [f"accuracy of {output} {a:.2%} → {b:.2%}" for output, (a, b) in quality.accuracy.items()]
    where = f"on {_count(quality.samples, 'sample')}" if quality.samples else "on generated inputs"
    return f"{'; '.join(parts)} ({where})"


def show_inspection(found: Inspection, details: bool) -> None:
    """A model described."""
    screen = _screen()
    costs = found.costs
    weights = ", ".join(f"{name.lower()} {_bytes(size)}" for name, size in costs.weight_bytes.items())
    rows = [
        ("nodes", f"{costs.nodes:,}"),
        ("parameters", f"{costs.parameters:,}"),
        ("multiply-accumulates", _macs(costs)),
        ("file", _bytes(costs.file_bytes)),
        ("weights", weights or "none"),
        ("external data", ", ".join(f"{f} ({_bytes(n)})" for f, n in found.external_files.items()) or "none"),
        *(("input", str(value)) for value in found.inputs),
        *(("output", str(value)) for value in found.outputs),
        ("opsets", ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())),
        ("IR version", str(found.ir_version)),
        ("producer", found.producer or "not named"),
        ("metadata", ", ".join(found.metadata) or "none"),
        ("subgraphs", f"{found.subgraphs}, {found.subgraph_depth} deep" if found.subgraphs else "none"),
        ("local functions", ", ".join(f"{f} ({_count(n, 'node')})" for f, n in found.functions.items()) or "none"),
        ("quantized", ", ".join(found.quantization) or "no"),
    ]
    if found.cleanup is not None:
        nodes, after = found.cleanup["nodes"], found.cleanup["after"]
        rows.append(("cleanup", f"{nodes:,} → {after:,} nodes" if after != nodes else "finds nothing to do"))
    screen.table(["", ""], rows, text_columns=2)
    _show_dims(screen, costs)
    if details and costs.macs_unknown:
        screen.line(f"Shapes unknown: {', '.join(costs.macs_unknown)}")
    screen.line()
    screen.table(["operator", "nodes"], ((name, f"{n:,}") for name, n in costs.operators.items()))
    if found.groups is not None:
        screen.line()
        rows_of_groups = (
            (g.node, "; ".join(g.frozen) or f"free: {', '.join(g.constants)}", f"{g.channels:,}") for g in found.groups
        )
        screen.table(["channels of", "", "channels"], rows_of_groups, text_columns=2)


def show_comparison(found: Comparison) -> None:
    """Two models side by side."""
    screen = _screen()
    screen.table(["", "A", "B", "change"], _cost_rows(found.a.costs, found.b.costs))
    _show_dims(screen, found.a.costs)
    screen.line()
    if found.outputs:
        screen.table(
            ["output", "", "SQNR", "largest movement", "same argmax"],
            (
                (
                    each.name,
                    "same" if each.same else f"differs: {each.text}",
                    "" if each.movement is None else "exact" if not each.movement else _decibels(each.sqnr_db),
                    "" if each.movement is None else f"{each.movement:.2g}",
                    "" if each.agreement is None else f"{each.agreement:.2%}",
                )
                for each in found.outputs
            ),
            text_columns=2,
        )
    for text in (*found.interface, *found.notes):
        screen.line(text, "yellow")
    if found.latency_ratio is not None:
        screen.line(f"Latency of B / A: {found.latency_ratio} at {_count(found.threads, 'thread')}")
    verdict = "The outputs agree within the noise of A" if found.same else "The outputs differ"
    screen.line(f"{verdict} ({_count(found.probes, 'probe')}).", "green" if found.same else "red")


def show_sensitivity(found: Sequence[Sensitivity]) -> None:
    """What each node gains and harms, quantized alone."""
    screen = _screen()
    if not found:
        screen.line("No node could be quantized: optimize with --recipe int8 says why.")
        return
    screen.table(
        ("node", "operator", "alone", "float", "integer"),
        (
            (each.node, each.op, _decibels(each.sqnr_db), f"{each.float_us:.0f} µs", f"{each.integer_us:.0f} µs")
            for each in found
        ),
        text_columns=2,
    )


def show_pruning_sensitivity(found: Sequence[PruningSensitivity]) -> None:
    """What each layer gains and harms without some of its channels."""
    screen = _screen()
    if not found:
        screen.line("No layer has channels that can be removed: inspect --groups says why.")
        return
    screen.table(
        ("layer", "channels", "MACs", "parameters", "alone"),
        (
            (e.node, f"{e.channels} → {e.kept}", f"−{e.macs:.1%}", f"−{e.parameters:.1%}", _decibels(e.sqnr_db))
            for e in found
        ),
    )


def show_low_rank_sensitivity(found: Sequence[LowRankSensitivity]) -> None:
    """What each layer gains and harms in two factors."""
    screen = _screen()
    if not found:
        screen.line("No layer has a constant weight that two factors of lower rank would make smaller.")
        return
    screen.table(
        ("layer", "rank", "MACs", "µs", "split", "lost", "alone"),
        (
            (
                e.node, str(e.rank), f"{e.macs:.0%}", f"{e.whole_us:.1f}", f"{e.split_us:.1f}", f"{e.lost:.2%}",
                _decibels(e.sqnr_db),
            )
            for e in found
        ),
    )  # fmt: skip


def show_found(result: AutoResult, pareto: ParetoSet, *files: Path) -> None:
    """What a search found."""
    show_pareto(pareto)
    screen = _screen()
    chosen, final = result.chosen, result.chosen.final
    screen.line()
    screen.line(f"Chosen: {chosen.measured.plan}", "bold")
    screen.line(f"latency ×{chosen.latency:.3f}, size ×{chosen.size:.3f}, MACs ×{chosen.macs:.3f}", indent=2)
    if final is not None:
        screen.line(
            f"{result.metric} {final.before:.4f} → {final.after:.4f} on {_count(final.samples, 'sample')} that nothing "
            f"was fitted to or chosen by: {final.drop:.2%} lost, at most {final.high:.2%} (95 %)",
            indent=2,
        )
    budget = f"at most {result.budget.max_drop:.2%} lost"
    budget += "".join(f", {name} at most ×{most:g}" for name, most in result.budget.limits.items())
    holds = "holds" if result.holds else "DOES NOT HOLD"
    screen.line(f"The budget ({budget}) {holds}.", "green" if result.holds else "yellow")
    made = f"{_count(result.evaluations, 'evaluation')}, {result.reused} known from before"
    screen.line(f"Wrote {', '.join(map(str, files))} in {result.seconds:.0f} s ({made})")


def show_advice(found: Advice) -> None:
    """What each method would bring and cost, the best first."""
    screen = _screen()

    def times(factor: float | None) -> str:
        return "" if factor is None else f"×{factor:.2f}"

    def share(value: float | None) -> str:
        return "" if value is None else f"{max(value, 0.0):.2%}"

    screen.line(f"{found.model} on {found.device} ({found.description}): least {found.target} first", "bold")
    screen.table(
        ("", "method", "", "latency", "size", "MACs", f"{found.metric} lost" if found.metric else "lost", "at most"),
        (
            (
                str(at), f.method, f.basis, times(f.latency), times(f.size), times(f.macs), share(f.drop),
                share(f.drop_at_most),
            )
            for at, f in enumerate(found.findings, 1)
        ),
        text_columns=3,
    )  # fmt: skip
    screen.line()
    for at, each in enumerate(found.findings, 1):
        style = {"use it": "green", "try it": "yellow"}.get(each.verdict, "dim")
        screen.line(f"{at} {each.method}: {each.told}", style)
        if each.command and style != "dim":
            screen.line(each.command, indent=4)
    screen.line()
    for note in found.notes:
        screen.line(f"Note: {note}", "yellow")
    screen.line(f"Recommended: {found.why}{':' if found.recommended else ''}", "bold")
    if found.recommended:
        screen.line(found.recommended, indent=4)


def show_pareto(found: ParetoSet) -> None:
    """Models, from the least loss on."""
    _screen().table(
        ("", "what was done", "latency", "size", "MACs", f"{found.metric} lost", "at most"),
        (
            (
                f"{e.number}{' *' if e.chosen else ''}", e.plan, f"×{e.latency:.3f}", f"×{e.size:.3f}",
                f"×{e.macs:.3f}", f"{e.drop:.2%}", f"{e.drop_at_most:.2%}",
            )
            for e in found.models
        ),
        text_columns=2,
    )  # fmt: skip


def show_catalogue(found: dict[str, list[Any]] | Entry | RecipeEntry) -> None:
    """All passes and recipes, or one of them."""
    screen = _screen()
    if isinstance(found, dict):
        screen.table(
            ["pass", "", ""],
            ((e.name, "exact" if e.exact else "lossy", e.summary) for e in found["passes"]),
            text_columns=3,
        )
        screen.line()
        screen.table(["recipe", ""], ((e.name, e.summary) for e in found["recipes"]), text_columns=2)
        return
    if hasattr(found, "passes"):
        screen.line(f"{found.name}: {found.summary}", "bold")
        for step in found.passes:
            screen.line(step, indent=4)
        return
    screen.line(f"{found.name} ({'exact' if found.exact else 'lossy'})", "bold")
    screen.text(found.doc)
    screen.line()
    rows = ((o.name, o.type, o.default, o.doc) for o in found.options)
    screen.table(["option", "type", "default", ""], rows, text_columns=4)


def _cost_rows(before: Costs, after: Costs) -> list[tuple[str, str, str, str]]:
    def row(name: str, a: int | None, b: int | None, show: Any = "{:,}".format) -> tuple[str, str, str, str]:
        change = "" if a is None or b is None or a == b else f"{(b - a) / a:+.1%}" if a else "new"
        return (name, "unknown" if a is None else show(a), "unknown" if b is None else show(b), change)

    return [
        row("nodes", before.nodes, after.nodes),
        row("operator types", len(before.operators), len(after.operators)),
        row("parameters", before.parameters, after.parameters),
        row("multiply-accumulates", before.macs, after.macs),
        row("file size", before.file_bytes, after.file_bytes, _bytes),
    ]


def _show_dims(screen: _Page, costs: Costs) -> None:
    if costs.macs is not None and costs.macs_at:
        sizes = ", ".join(f"{name}={size}" for name, size in costs.macs_at.items())
        screen.line(f"Multiply-accumulates are at {sizes}.", "dim")
    if costs.macs_unknown:
        screen.line(f"They leave out {_count(len(costs.macs_unknown), 'node')} of unknown shapes.", "dim")
    if costs.macs_counted_once:
        screen.line(f"They count {_count(len(costs.macs_counted_once), 'loop')} of unknown length once.", "dim")


def _macs(costs: Costs) -> str:
    return "unknown" if costs.macs is None else f"{costs.macs:,}"
