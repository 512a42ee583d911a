"""What all evaluations of a search share: the model, the samples, and how a loss is measured.

It travels to workers as bytes; what follows from it is computed there, once.
"""

from __future__ import annotations

import pickle
import platform
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import onnx
import onnx_ir as ir

from onnxopt import _cache, choices, metrics
from onnxopt._version import VERSION
from onnxopt.channels import ChannelGraph, Group
from onnxopt.data import Dataset
from onnxopt.evaluation import Samples
from onnxopt.graph import Editor
from onnxopt.judge import Judge
from onnxopt.model import from_proto, outline, to_proto
from onnxopt.pass_base import Context
from onnxopt.passes.prune._importance import Array
from onnxopt.passes.prune._plan import Costs, Limits, costs, kept_counts
from onnxopt.passes.prune._rounding import wanted_multiple
from onnxopt.passes.prune.prune_channels import ranking
from onnxopt.pipeline import PassManager
from onnxopt.recipes import recipe
from onnxopt.runtime import Feeds, Snapshot
from onnxopt.search.metric import Yardstick, metric_for, source

_FORMAT = "10"
"""To be raised when evaluations are done in another way."""
_IN_ONE_FILE = 1 << 30
"""Models with fewer bytes of weights are written out to be counted; of larger ones the small parts are estimated."""


@dataclass(frozen=True)
class Bench:
    """One model on one set of samples."""

    original: Snapshot
    data: Dataset
    """What passes may see,"""
    compared: Dataset
    """and what plans are compared on."""
    metric: str
    """By name, or ``module:function``."""

    @cached_property
    def key(self) -> str:
        """A hash of all that results depend on, the machine included."""
        import onnxruntime

        proto = onnx.ModelProto.FromString(self.original.content)
        model = _cache.digest(proto, self.original.directory)
        here = VERSION, _FORMAT, onnxruntime.__version__, np.__version__, platform.machine(), choices.processor()
        return _cache.key(model, self.data.fingerprint, self.compared.fingerprint, source(self.metric), *here)

    def packed(self) -> bytes:
        """To be sent to a worker. Arrays travel; files are read where the work is done."""
        return pickle.dumps(Bench(self.original, self.data, self.compared, self.metric))

    @cached_property
    def model(self) -> ir.Model:
        """The original; not to be edited."""
        return from_proto(onnx.ModelProto.FromString(self.original.content), self.original.directory or ".")

    @cached_property
    def samples(self) -> Samples:
        """Some to fit to, others to judge by, as a pipeline divides them."""
        return Samples.of(self.data, None, self.model)

    @cached_property
    def yardstick(self) -> Yardstick:
        """The metric, on what plans are compared on."""
        return Yardstick(metric_for(self.metric, self.original, self.compared), self.original, self.compared)

    @cached_property
    def cleaned(self) -> ir.Model:
        """The original as the recipe ``cleanup`` leaves it; not to be edited."""
        return PassManager(recipe("cleanup"), verify="off").run(self.model)[0]

    @cached_property
    def size(self) -> int:
        """How many bytes the cleaned model takes as a file."""
        return file_size(self.cleaned)

    def context(self, model: ir.Model) -> Context:
        """To run a pass on a model that is made of the cleaned one."""
        samples = self.samples
        return Context(Editor(model), data=samples.calibration, evaluation=samples.evaluation, original=self.cleaned)

    @cached_property
    def feeds(self) -> Feeds:
        """What times are measured on."""
        return self.compared.one().feeds

    @cached_property
    def judge(self) -> Judge:
        """Tells how much noise a change of the cleaned model makes."""
        return self.context(self.cleaned).judge()

    @cached_property
    def groups(self) -> list[Group]:
        """The groups of channels that may lose some."""
        every = ChannelGraph(Editor(self.cleaned)).groups
        return [group for group in every if group.makers and not group.frozen]

    @cached_property
    def frozen(self) -> list[tuple[str, str]]:
        """The groups of channels that may lose none, with the reason."""
        every = ChannelGraph(Editor(self.cleaned)).groups
        return [(group.name, "; ".join(group.frozen)) for group in every if group.makers and group.frozen]

    @cached_property
    def order(self) -> dict[int, Array]:
        """The channels of each group, from the least important on."""
        return ranking(self.groups, self.context(self.cleaned)) if self.groups else {}

    @cached_property
    def costs(self) -> Costs:
        """What the cleaned model costs with fewer channels."""
        return costs(Editor(self.cleaned), self.groups)

    def least(self, group: Group, share: float) -> list[int]:
        """The channels of a group that go if this share of them does, as ``prune-channels`` rounds their number."""
        number, order = group.number, self.order[group.number]
        kept = kept_counts({number: order}, share, {number: Limits(wanted_multiple(group))}, [[number]])[number]
        found: list[int] = order[: group.size - kept].tolist()
        return found


@lru_cache(maxsize=1)
def unpack(packed: bytes) -> Bench:
    """A bench that was packed."""
    found = pickle.loads(packed)
    assert isinstance(found, Bench)
    return found


def file_size(model: ir.Model) -> int:
    """How many bytes a model takes as a file, with all its weights."""
    weights = sum(metrics.weights(model).values())
    if weights < _IN_ONE_FILE:
        return int(to_proto(model).ByteSize())
    return weights + int(outline(model).ByteSize())
