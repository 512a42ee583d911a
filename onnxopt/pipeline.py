"""Run passes so that they can be trusted: order, verification, bisection, rollback.

Exact passes repeat until nothing changes; a lossy pass runs once and its effect is measured. What exact
passes did is verified on probe inputs; when that fails, the run is replayed up to each change, by bisection,
until the first one that breaks the model is found. That change is left out, the rest is kept, and the result
says so. A pass that raises is treated the same. The user's model is never edited.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import onnx_ir as ir

from onnxopt._garbage import without_gc
from onnxopt._version import VERSION
from onnxopt.errors import DataError, EngineError, OptionError, PassError
from onnxopt.evaluation import Quality, Samples, compare, evaluate
from onnxopt.graph import Editor
from onnxopt.judge import Judge
from onnxopt.model import copy
from onnxopt.pass_base import Context, Gate, Pass, PassFailure, Report
from onnxopt.probes import interface_inputs
from onnxopt.run_report import RunReport
from onnxopt.runtime import Feeds, Session, Snapshot
from onnxopt.shapes import check_types
from onnxopt.verify import Reference

log = logging.getLogger(__name__)

Verify = Literal["each", "end", "off"]

MAX_ROUNDS = 30
"""Exact passes that still change something after so many rounds undo each other, which is a fault."""

MAX_CULPRITS = 8
"""After so many changes had to be left out, everything since the last verified state is."""

_UNJUDGED = (
    "what passes lose was measured on made-up inputs, for there are no samples, and says little of real ones; give some"
)

AUDIT_KEY = "onnxopt.passes"
"""The metadata entry of the model that says what was run on it."""


class PassManager:
    """A pipeline of passes that is verified while it runs."""

    def __init__(
        self,
        passes: Sequence[Pass],
        *,
        verify: Verify = "end",
        strict: bool = False,
        probes: Sequence[Feeds] | None = None,
        data: Any = None,
        evaluation: Any = None,
        data_share: float = 1.0,
        on_report: Callable[[Report], None] | None = None,
        on_stage: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare a pipeline.

        ``verify``: compare outputs after ``each`` pass, at the ``end`` of a row of exact passes (and after
        each lossy one), or not at all (``off``). ``strict``: a pass that matches nothing is an error.
        ``probes``: inputs to compare on, instead of generated ones. ``data``: samples to calibrate on, in any
        form that ``load_data`` takes; ``evaluation``: others, to judge lossy passes by; without them half of
        ``data`` is kept for that; ``data_share``: of ``data`` only so much counts. ``on_report``: called after each
        pass. ``on_stage``: called with what begins: the name of a pass, or ``verification``.

        Raises ``DataError`` if a pass needs data and there are none.
        """
        if verify not in ("each", "end", "off"):
            raise OptionError(f"verify is one of each, end, off; got {verify!r}")
        self.passes = tuple(passes)
        self.verify: Verify = verify
        self.strict = strict
        self.probes = probes
        self.data, self.evaluation, self.data_share = data, evaluation, data_share
        needy = [pass_.name for pass_ in self.passes if pass_.needs != "none"]
        if needy and data is None:
            raise DataError(
                f"{', '.join(dict.fromkeys(needy))} needs calibration data: give data=, or --data FILE.npz on the "
                "command line (--data random only to try things out)"
            )
        self.on_report = on_report or (lambda report: None)
        self.on_stage = on_stage or (lambda stage: None)

    def run(
        self, model: ir.Model, *, reload: Callable[[], ir.Model] | None = None
    ) -> tuple[ir.Model, RunReport]:
        """Run all passes on a copy of ``model``, or, if ``reload`` can bring it back, on ``model`` itself.

        Raises ``PassError`` if, under ``strict``, a pass matches nothing or breaks the model, ``ModelError`` if
        the model itself is not valid, and ``DataError`` for data that do not fit it.
        """
        run = _Run(self, copy(model) if reload is None else model)
        with without_gc():
            for lossy, row in _rows(self.passes):
                run.apply(row, lossy, reload)
                reload = None
        run.finish()
        return run.model, run.report


def _rows(passes: Sequence[Pass]) -> list[tuple[bool, list[Pass]]]:
    """The pipeline cut into rows of exact passes and single lossy ones; after the last lossy pass the exact
    ones get another chance, for it may have made work for them."""
    rows: list[tuple[bool, list[Pass]]] = []
    for pass_ in passes:
        if pass_.exact and rows and not rows[-1][0]:
            rows[-1][1].append(pass_)
        else:
            rows.append((not pass_.exact, [pass_]))
    exact = [pass_ for pass_ in passes if pass_.exact]
    if rows and rows[-1][0] and exact:
        rows.append((False, exact))
    return rows


class _Run:
    """One run of a pipeline on one model."""

    def __init__(self, manager: PassManager, model: ir.Model) -> None:
        self.manager = manager
        self.model = model
        self.report = RunReport()
        self._merged: dict[int, Report] = {}
        self._interface = interface(model)
        self._reference: Reference | None = None
        self._excluded: set[tuple[str, str]] = set()
        self._original: ir.Model | None = None
        self._source: ir.Model | None = None
        self._judged: tuple[Reference, Judge] | None = None
        self._keeps_function = True
        manager.on_stage("data")
        self._samples = Samples.of(manager.data, manager.evaluation, model, manager.data_share)
        self.report.warnings += self._samples.warnings
        self.report.held_out = self._samples.evaluation
        needy = [pass_.name for pass_ in manager.passes if pass_.needs == "labels"]
        if needy and not self._samples.labelled:
            raise DataError(f"{needy[0]} needs labels: add an array 'labels' to the data, one for each sample")
        if manager.verify != "off":
            self._reference = self._refer()

    def _refer(self) -> Reference | None:
        """What the model computes now, or ``None`` with the reason in the report."""
        self.manager.on_stage("verification")
        probes = self.manager.probes or self._samples.probes()
        try:
            return Reference.of(self.model, probes, stand_in=True)
        except EngineError as error:
            check_types(self.model)  # a model that is plainly wrong is the user's to mend: ModelError
            if self.manager.probes is None and probes is not None and _loads(self.model):
                raise DataError(f"the model does not run on the data: {error}") from error
            self.report.verification = f"not verified: {error}"
        except DataError as error:
            if self.manager.probes is not None:
                raise
            self.report.verification = f"not verified: {error}"
        return None

    def apply(self, row: list[Pass], once: bool, reload: Callable[[], ir.Model] | None) -> None:
        """Run a row of passes, to a fixed point or once, and make sure that the result is right."""
        if once and self._keeps_function:  # what lossy passes did up to now was another form of the same
            self._source = copy(self.model)
            self._original = self._original or self._source
            self._keeps_function = row[0].keeps_function
        if self.manager.verify == "each" and not once:
            for pass_ in row:
                self._apply_verified([pass_], once, None)
            reload = None  # single passes are at their fixed points; together they may not be
        self._apply_verified(row, once, reload)
        if self.manager.strict and once and not self._changes(row[0]):
            raise PassError(f"{row[0].name} matched nothing; its report says what it refused")

    def _apply_verified(
        self, row: list[Pass], once: bool, reload: Callable[[], ir.Model] | None
    ) -> None:
        if reload is None:
            saved = copy(self.model)
            before = partial(copy, saved)
        else:
            before = partial(reload)
        loaded = reload is not None
        if self._try(row, once, Gate(excluded=frozenset(self._excluded)), loaded, record=True):
            return
        for _ in range(MAX_CULPRITS):
            culprit, why = self._culprit(before, row, once, loaded)
            self._blame(culprit, why)
            self.model = before()
            if self._try(row, once, Gate(excluded=frozenset(self._excluded)), loaded, record=True):
                return
        names = ", ".join(pass_.name for pass_ in row)
        self.report.problems.append(f"{names}: rolled back, since too many of their changes break the model")
        self.model = before()

    def _blame(self, culprit: tuple[str, str], why: str) -> None:
        name, node = culprit
        text = f"{name} {'' if node == '*' else f'on node {node!r} '}was left out: {why}"
        if self.manager.strict:
            raise PassError(text)
        log.warning("%s", text)
        self.report.problems.append(text)
        self._excluded.add(culprit)

    def _culprit(
        self, before: Callable[[], ir.Model], row: list[Pass], once: bool, loaded: bool
    ) -> tuple[tuple[str, str], str]:
        """The first change that breaks the model, found by replaying ever shorter runs; and how it breaks it."""
        if self._failure is not None:  # it raised, so it is known already
            return self._failure, self._why
        good, bad = 0, len(self._failed_gate.log)
        culprit, why = self._failed_gate.log[-1], self._why
        while bad - good > 1:
            middle = (good + bad) // 2
            self.model = before()
            gate = Gate(middle, frozenset(self._excluded))
            if self._try(row, once, gate, loaded, record=False):
                good = middle
            else:
                bad = middle
                culprit, why = self._failure or gate.log[-1], self._why
        return culprit, why

    def _try(self, row: list[Pass], once: bool, gate: Gate, loaded: bool, *, record: bool) -> bool:
        """Run the row through ``gate`` and verify; on failure remember why and by whom.

        ``loaded``: the model has just been loaded and is as its file says.
        """
        self._failure: tuple[str, str] | None = None
        self._why = ""
        self._failed_gate = gate
        found: dict[int, Report] = {}
        try:
            self._sweep(row, once, gate, Editor(self.model, untouched=loaded), found)
        except PassFailure as failure:
            if isinstance(failure.__cause__, DataError):
                raise failure.__cause__ from None
            self._failure, self._why = (failure.pass_name, failure.node), f"it failed: {failure.__cause__!r}"
            return False
        problem = self._problem(row, once) if gate.log else None
        if problem is not None:
            self._why = problem
            return False
        if record:
            for pass_ in row:
                self._record(pass_, found.get(id(pass_), Report(pass_.name)))
        return True

    def _sweep(self, row: list[Pass], once: bool, gate: Gate, editor: Editor, found: dict[int, Report]) -> None:
        settled: dict[int, int] = {}  # pass → number of changes in the run after which it had nothing to do
        for round_ in range(MAX_ROUNDS):
            start = len(gate.log)
            for pass_ in row:
                if settled.get(id(pass_)) == len(gate.log) or gate.closed:
                    continue
                if pass_.ops is not None and not editor.has_any(pass_.ops):
                    continue
                self.manager.on_stage(pass_.name)
                report = self._run_pass(pass_, self._context(pass_, editor, gate))
                found[id(pass_)] = report.after(found.get(id(pass_)))
                if not report.changed:
                    settled[id(pass_)] = len(gate.log)
            if once or gate.closed:
                return
            if editor.refresh():
                settled.clear()
            elif len(gate.log) == start:
                return
            log.debug("round %d made %d changes", round_, len(gate.log) - start)
        raise PassFailure(row[-1].name, "*") from PassError(f"no fixed point after {MAX_ROUNDS} rounds")

    def _context(self, pass_: Pass, editor: Editor, gate: Gate) -> Context:
        def say(text: str) -> None:
            self.manager.on_stage(f"{pass_.name}: {text}")

        samples, judged = self._samples, self._reference is not None and self._samples.held_out is not None
        known = self._judge if judged else None
        return Context(editor, gate, samples.calibration, samples.evaluation, self._source, say, known)

    def _judge(self) -> Judge:
        """Compares with the model that the reference is of; one for all that are compared with it."""
        assert self._reference is not None
        assert self._samples.held_out is not None
        if self._judged is None or self._judged[0] is not self._reference:
            made = Judge(self.model, self._reference.original, self._samples.held_out)
            self._judged = self._reference, made
        return self._judged[1]

    @staticmethod
    def _run_pass(pass_: Pass, context: Context) -> Report:
        if not context.gate.allows(pass_.name, "*"):
            return Report(pass_.name)
        try:
            return pass_.run(context)
        except (PassFailure, OptionError, DataError):
            raise
        except Exception as error:
            raise PassFailure(pass_.name, "*") from error

    def _problem(self, row: list[Pass], once: bool) -> str | None:
        """What is wrong with the model now, if anything."""
        self.manager.on_stage("verification")
        after = interface(self.model)
        if after != self._interface:
            return f"the interface changed from {self._interface} to {after}"
        if self._reference is None:
            return None
        snapshot = Snapshot.of(self.model)
        if once:
            return self._measure(row[0], snapshot)
        differences = self._reference.differences(snapshot)
        return str(differences[0]) if differences else None

    def _measure(self, pass_: Pass, snapshot: Snapshot) -> str | None:
        """Record what a lossy pass did to the outputs; what follows is compared with the model after it."""
        assert self._reference is not None
        before = self._reference
        outputs = None
        try:
            if self._samples.held_out is None:
                session = before.session(snapshot)
                outputs = [session.run(feeds) for feeds in before.feeds]
                if _UNJUDGED not in self.report.warnings:
                    self.report.warnings.append(_UNJUDGED)
                found = compare(before.names, before.expected, outputs)
            else:
                self.manager.on_stage("evaluation")
                found = self._judge().quality(snapshot)
        except EngineError as error:
            return str(error)
        self.report.quality[str(pass_)] = found
        self.report.fidelity[str(pass_)] = found.sqnr_db
        self._reference = Reference(snapshot, before.feeds, outputs, before.names, before.stood_in)
        self._judged = None
        return None

    def _overall(self) -> Quality | None:
        """What all lossy passes did together, if that is more than one of them."""
        measured = list(self.report.quality.values())
        if len(measured) < 2 or self._samples.held_out is None or self._original is None:
            return measured[0] if len(measured) == 1 else None
        self.manager.on_stage("evaluation")
        return evaluate(Snapshot.of(self._original), Snapshot.of(self.model), self._samples.held_out)

    def _record(self, pass_: Pass, report: Report) -> None:
        self._merged[id(pass_)] = report.after(self._merged.get(id(pass_)))
        self.manager.on_report(report)

    def _changes(self, pass_: Pass) -> int:
        report = self._merged.get(id(pass_))
        return report.changed if report is not None else 0

    def finish(self) -> None:
        """Sum up, check strictness, and sign the model."""
        self.report.overall = self._overall()
        self.report.passes = [self._merged.get(id(p), Report(p.name)) for p in self.manager.passes]
        if self.manager.strict and self.manager.passes and not self.report.changed:
            names = ", ".join(pass_.name for pass_ in self.manager.passes)
            raise PassError(f"strict: nothing matched ({names})")
        if self._reference is not None:
            probes = len(self._reference.feeds)
            self.report.verified = True
            self.report.verification = (
                f"{'lossy passes aside, ' if self.report.quality else ''}"
                f"outputs equal on {probes} probe{'s' if probes != 1 else ''}, "
                f"largest movement {self._reference.worst:.1g} of the output's scale"
            )
            if self._reference.worst_noise:
                self.report.verification += f", where its own noise is {self._reference.worst_noise:.1g}"
            spared = sum(weight.length for weight in self._reference.stood_in)
            if spared:
                self.report.verification += f"; {spared / 1e6:.0f} MB of untouched weights were stood in for"
        if self.report.changed:
            steps = [str(p) for p in self.manager.passes if self._changes(p)]
            entry = f"{VERSION}: {','.join(steps)}"
            earlier = self.model.metadata_props.get(AUDIT_KEY)
            self.model.metadata_props[AUDIT_KEY] = f"{earlier}; {entry}" if earlier else entry


def _loads(model: ir.Model) -> bool:
    """Whether ONNX Runtime knows all operators of the model."""
    try:
        Session(Snapshot.of(model))
    except EngineError:
        return False
    return True


def interface(model: ir.Model) -> tuple[tuple[str, str, str], ...]:
    """What callers rely on: name, type and dims of each input and output, in order."""
    inputs = interface_inputs(model)
    return tuple((v.name or "", str(v.type), str(v.shape)) for v in (*inputs, *model.graph.outputs))
