"""What a pass is, and what it says about its work.

A pass is a frozen dataclass whose fields are its options. It edits the model through an ``Editor`` and
returns a ``Report``: what it changed and what it would not, node by node. Most passes look at one node at a
time and derive from ``NodePass``. Every change goes through a ``Gate``, so that the manager can filter nodes,
and, when something breaks, replay the run up to any change to find the one that broke it.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir

from onnxopt.errors import DataError
from onnxopt.graph import Editor, label

if TYPE_CHECKING:
    from onnxopt.data import Dataset
    from onnxopt.judge import Judge
    from onnxopt.stats import Statistics

Needs = Literal["none", "inputs", "labels"]


class Refuse(Exception):
    """Raised by a pass that recognises a node and will not change it; the text is the reason."""


class PassFailure(Exception):
    """A pass raised: which one, and on which node (``*`` if it cannot be said)."""

    def __init__(self, pass_name: str, node: str) -> None:
        super().__init__(f"{pass_name} failed on {node}")
        self.pass_name, self.node = pass_name, node


@dataclass(frozen=True)
class Note:
    """One sentence about one node."""

    node: str
    text: str

    def __str__(self) -> str:
        return f"{self.node}: {self.text}" if self.node else self.text


@dataclass(frozen=True)
class Report:
    """What one run of a pass did, and what it refused to do."""

    name: str
    changes: tuple[Note, ...] = ()
    refusals: tuple[Note, ...] = ()
    facts: tuple[Mapping[str, object], ...] = ()
    """What was measured: a row a node, such as its method, its error and its time, in columns by name."""

    @property
    def changed(self) -> int:
        """The number of changes; 0 exactly when the model is untouched."""
        return len(self.changes)

    def after(self, first: Report | None) -> Report:
        """One report of two runs of a pass: all changes, and the refusals and the facts of this, the later one."""
        if first is None:
            return self
        return replace(self, changes=first.changes + self.changes, facts=self.facts or first.facts)


@dataclass
class Gate:
    """Decides which changes may happen: all, but for excluded ones, up to a limit.

    ``limit`` is the number of changes after which everything else is refused. Replaying a run with growing
    limits finds the first change that breaks something, as ``-opt-bisect-limit`` does in LLVM.
    """

    limit: int | None = None
    excluded: frozenset[tuple[str, str]] = frozenset()
    log: list[tuple[str, str]] = field(default_factory=list)

    @property
    def closed(self) -> bool:
        """Whether the limit is reached."""
        return self.limit is not None and len(self.log) >= self.limit

    def allows(self, pass_: str, node: str) -> bool:
        """Whether ``pass_`` may still change ``node``."""
        return not self.closed and (pass_, node) not in self.excluded

    @property
    def is_open(self) -> bool:
        """Whether any change is allowed, as in a run in which nothing has gone wrong."""
        return self.limit is None and not self.excluded


@dataclass
class Context:
    """What a pass is given: the model under edit, the gate that its changes go through, and data."""

    editor: Editor
    gate: Gate = field(default_factory=Gate)
    data: Dataset | None = None
    """Samples to calibrate on."""
    evaluation: Dataset | None = None
    """Held-out samples, disjoint from those, to judge by."""
    original: ir.Model | None = None
    """The model as it was before this run first changed what it computes; not to be edited."""
    on_progress: Callable[[str], None] | None = None
    """Called with what work that takes long is at."""
    known_judge: Callable[[], Judge] | None = None
    """Gives the judge that the run has already."""
    _statistics: tuple[int, Statistics] | None = None
    _original_statistics: Statistics | None = None

    def statistics(self) -> Statistics:
        """Statistics of the model as it is now, over ``data``; made anew after a change.

        Raises ``DataError`` if there are no data.
        """
        if self._statistics is None or self._statistics[0] != len(self.gate.log):
            self._statistics = len(self.gate.log), self._statistics_of(self.editor.model)
        return self._statistics[1]

    def original_statistics(self) -> Statistics:
        """Statistics of ``original``, over ``data``. Raises ``DataError`` if there are no data."""
        if self._original_statistics is None:
            self._original_statistics = self._statistics_of(self.original or self.editor.model)
        return self._original_statistics

    @property
    def judged_on(self) -> Dataset | None:
        """The samples to judge by: those to evaluate on, else those to calibrate on; ``None`` if there are none."""
        from onnxopt.evaluation import judging

        found = self.evaluation if self.evaluation is not None else self.data
        return None if found is None else judging(found)

    def judge(self) -> Judge:
        """Says how near models are to the one that the pass was given.

        Raises ``DataError`` if there are no samples to judge by, ``EngineError`` if the model does not run on them.
        """
        from onnxopt.judge import Judge
        from onnxopt.runtime import Snapshot

        if self.known_judge is not None:
            return self.known_judge()
        if self.judged_on is None:
            raise DataError("samples to judge by are needed: give data= or evaluation= (--data, --eval-data)")
        return Judge(self.editor.model, Snapshot.of(self.editor.model), self.judged_on)

    def _statistics_of(self, model: ir.Model) -> Statistics:
        from onnxopt.stats import Statistics

        if self.data is None:
            raise DataError("calibration data are needed: give data= (--data on the command line)")
        return Statistics(model, self.data, on_progress=self.on_progress)


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """One transformation of a model.

    ``exact`` passes keep every output up to the rounding of floats and are run until nothing changes;
    others are run once and measured. Of these some keep outputs up to rounding too (``keeps_function``): passes
    behind them take the model that they leave for the original. ``ops`` names the operator types without which
    the pass has nothing to do (``None``: always run it). ``needs`` says what data it cannot do without.
    """

    name: ClassVar[str]
    exact: ClassVar[bool]
    keeps_function: ClassVar[bool] = False
    ops: ClassVar[frozenset[str] | None] = None
    needs: ClassVar[Needs] = "none"

    include: tuple[str, ...] = ()
    """Globs over node names and operator types; if given, only these nodes are changed."""
    exclude: tuple[str, ...] = ()
    """Globs over node names and operator types that are left alone."""

    @abstractmethod
    def run(self, context: Context) -> Report:
        """Edit the model and say what was done."""

    def selects(self, node: ir.Node) -> bool:
        """Whether ``include`` and ``exclude`` leave this node to the pass."""
        return self.selects_name(label(node), node.op_type)

    def selects_name(self, *names: str) -> bool:
        """The same for what is called ``names`` and is no node: an initializer, a function, a domain."""

        def matches(globs: Sequence[str]) -> bool:
            return any(fnmatchcase(name, glob) for glob in globs for name in names)

        return (not self.include or matches(self.include)) and not matches(self.exclude)

    def may_change(self, node: ir.Node, context: Context) -> bool:
        """Whether filters and gate allow a change of ``node`` now; ask before changing anything."""
        if context.gate.is_open and not self.include and not self.exclude:
            return True  # by far the most frequent case
        return context.gate.allows(self.name, label(node)) and self.selects(node)

    def may_change_name(self, name: str, context: Context) -> bool:
        """The same for an initializer, a function or a domain."""
        return context.gate.allows(self.name, name) and self.selects_name(name)

    def options(self) -> dict[str, Any]:
        """The options that differ from their defaults, by name."""
        found = {}
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if value != option.default:
                found[option.name] = value
        return found

    def __str__(self) -> str:
        options = ",".join(f"{k}={_text(v)}" for k, v in self.options().items())
        return f"{self.name}{{{options}}}" if options else self.name


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ",".join(_text(v) for v in value) + "]"
    return str(value)


class Log:
    """Collects what a pass does and refuses, and tells the gate."""

    def __init__(self, pass_: Pass, context: Context) -> None:
        self._pass, self._gate = pass_, context.gate
        self._changes: list[Note] = []
        self._refusals: list[Note] = []
        self._facts: list[Mapping[str, object]] = []

    def changed(self, node: str, text: str) -> None:
        """Note a change that has just been made."""
        self._changes.append(Note(node, text))
        self._gate.log.append((self._pass.name, node))

    def refused(self, node: str, text: str) -> None:
        """Note a node that was recognised and left alone."""
        self._refusals.append(Note(node, text))

    def measured(self, **fact: object) -> None:
        """Note what was measured of a node: a row of the report, whose columns are the keywords."""
        self._facts.append({name: x.item() if isinstance(x, np.generic) else x for name, x in fact.items()})

    def report(self) -> Report:
        return Report(self._pass.name, tuple(self._changes), tuple(self._refusals), tuple(self._facts))


@dataclass(frozen=True, kw_only=True)
class NodePass(Pass):
    """A pass that looks at one node at a time."""

    ops: ClassVar[frozenset[str]]

    @abstractmethod
    def rewrite(self, node: ir.Node, editor: Editor) -> str | None:
        """Change the graph around ``node`` and say what was done; ``None`` if the node is no match.

        Must decide before it edits. Raises ``Refuse`` with a reason a user can act on.
        """

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        self.visit(self.ops, self.rewrite, context, log)
        return log.report()

    def visit(
        self, ops: frozenset[str], rewrite: Callable[[ir.Node, Editor], str | None], context: Context, log: Log
    ) -> None:
        """Offer each node of these types to ``rewrite``, and log what comes of it."""
        for node in context.editor.nodes(ops):
            if context.gate.closed:
                break
            if not self.may_change(node, context):
                continue
            name = node.name or label(node)
            try:
                text = rewrite(node, context.editor)
            except Refuse as refusal:
                log.refused(name, str(refusal))
            except Exception as error:
                raise PassFailure(self.name, name) from error
            else:
                if text is not None:
                    log.changed(name, text)


@runtime_checkable
class IrTransform(Protocol):
    """A pass of onnx-ir: called with a model, it edits it and returns a result with ``modified``."""

    def __call__(self, model: ir.Model, /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class IrPass(Pass):
    """An onnx-ir pass (``onnx_ir.passes``) in a pipeline; declared exact or not by whoever adds it."""

    name: ClassVar[str] = "onnx-ir-pass"
    exact: ClassVar[bool] = True

    transform: Callable[[ir.Model], Any]

    def run(self, context: Context) -> Report:
        log = Log(self, context)
        title = type(self.transform).__name__
        if context.gate.allows(self.name, title):
            result = self.transform(context.editor.model)
            if getattr(result, "model", context.editor.model) is not context.editor.model:
                raise TypeError(f"{title} returned another model; only in-place passes can be chained")
            if getattr(result, "modified", True):
                log.changed(title, "ran")
        return log.report()
