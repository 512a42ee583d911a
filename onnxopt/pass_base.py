"""What a pass is, and what it says about its work.

A pass is a frozen dataclass whose fields are its options. It edits the model through an ``Editor`` and
returns a ``Report``: what it changed and what it would not, node by node. Most passes look at one node at a
time and derive from ``NodePass``. Every change goes through a ``Gate``, so that the manager can filter nodes,
and, when something breaks, replay the run up to any change to find the one that broke it.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Protocol, runtime_checkable

import onnx_ir as ir

from onnxopt.graph import Editor, label


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

    @property
    def changed(self) -> int:
        """The number of changes; 0 exactly when the model is untouched."""
        return len(self.changes)


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


@dataclass
class Context:
    """What a pass is given: the model under edit, and the gate that its changes go through."""

    editor: Editor
    gate: Gate = field(default_factory=Gate)


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """One transformation of a model.

    ``exact`` passes keep every output up to the rounding of floats and are run until nothing changes;
    others are run once and measured. ``ops`` names the operator types without which the pass has nothing to
    do (``None``: always run it).
    """

    name: ClassVar[str]
    exact: ClassVar[bool]
    ops: ClassVar[frozenset[str] | None] = None

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

    def changed(self, node: str, text: str) -> None:
        """Note a change that has just been made."""
        self._changes.append(Note(node, text))
        self._gate.log.append((self._pass.name, node))

    def refused(self, node: str, text: str) -> None:
        """Note a node that was recognised and left alone."""
        self._refusals.append(Note(node, text))

    def report(self) -> Report:
        return Report(self._pass.name, tuple(self._changes), tuple(self._refusals))


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
            name = label(node)
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
