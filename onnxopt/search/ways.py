"""The ways to make a model smaller or faster, as pipelines for one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from onnxopt import recipes
from onnxopt.pass_base import Pass
from onnxopt.passes.quantize._targets import Device, target
from onnxopt.search.space import Method

Goal = Literal["latency", "size"]

_ALL = "operators=[MatMul,Gemm,LSTM,GRU,RNN,Conv,Gather],min_elements=4096"
"""Where size is all that counts, weights are stored in few bits also where that makes nothing faster."""


@dataclass(frozen=True)
class Way:
    """One thing that may be done to a model."""

    name: str
    about: str
    pipeline: str
    """As text; a recipe by its name."""
    own: tuple[str, ...]
    """The passes that do it; the others only clean up."""
    nothing: str
    """What is said where they change nothing."""
    fitted: bool = False
    """Whether it takes samples."""
    method: Method | None = None
    """What a search calls it, if it knows it."""
    why_not: str = ""
    """Why it is of no use on the device, whatever the model."""

    @property
    def exact(self) -> bool:
        """Whether it changes no output."""
        return not self.own

    @property
    def options(self) -> list[str]:
        """As options of ``onnxopt optimize``."""
        return ["--recipe" if self.pipeline in recipes.names() else "--passes", self.pipeline]

    def passes(self) -> list[Pass]:
        """As passes."""
        return recipes.parse_pipeline(self.pipeline)


def ways(name: str, goal: Goal, measured: bool) -> list[Way]:
    """What may be done to a model for the device of this name, those first that take least time to try; ``measured``:
    it is this machine."""
    device = target(name).device
    clean = device.cleanup
    if measured:
        int8, factors = "int8", "low-rank"
    else:
        int8 = f"{clean},quantize-static{{target={name},placement=all}}"
        factors = f"{clean},split-conv{{min_sqnr=25,timed=false}},split-matmul{{min_sqnr=25,timed=false}},{clean}"
    half = "fp16" if clean == "cleanup" else f"{clean},convert-fp16,merge-casts"
    return [
        Way("cleanup", "fold, fuse and remove what changes no output", clean, (), "it finds nothing to do"),
        Way(
            "int8", "activations and weights in 8 bits, on grids from samples", int8, ("quantize-static",),
            "no node is computed with integers", fitted=True, method="quantize",
        ),
        Way(
            "int8-dynamic", "activations rounded to 8 bits at run time", _dynamic(device), ("quantize-dynamic",),
            "no matrix product or LSTM is computed with integers",
            why_not="" if device.dynamic else "the device has no kernels that quantize activations at run time",
        ),
        *(_weights(device, goal, bits) for bits in (8, 4)),
        Way("fp16", "computed and stored in float16", half, ("convert-fp16",), "nothing can be computed in float16"),
        *(_pruned(device, share, measured) for share in (30, 50)),
        _zeros(device),
        Way(
            "low-rank", "layers as thinner ones, one behind the other", factors, ("split-conv", "split-matmul"),
            "no layer is split", fitted=True, method="split",
            why_not="" if device.low_rank or goal == "size" else "thinner layers are not faster on the device",
        ),
    ]  # fmt: skip


def _dynamic(device: Device) -> str:
    return "int8-dynamic" if device.cleanup == "cleanup" else f"{device.cleanup},quantize-dynamic"


def _weights(device: Device, goal: Goal, bits: int) -> Way:
    options = [f"bits={bits}"] if bits != 4 else []
    options += [f"form={device.weights}"] if device.weights != "matmulnbits" else []
    options += [_ALL] if goal == "size" else []
    text = f"{device.cleanup},quantize-weights{{{','.join(options)}}}" if options else "int4-weights"
    return Way(
        f"int{bits}-weights", f"weights alone in {bits} bits", text, ("quantize-weights",),
        f"no weight is stored in {bits} bits",
        why_not="" if device.weights else "the device has no kernels for weights of few bits",
    )  # fmt: skip


def _pruned(device: Device, share: int, measured: bool) -> Way:
    text = f"prune-{share}"
    if not measured:
        rounded = f",round_to={device.round_to}" if device.round_to else ""
        options = f"ratio={share / 100:g},of=macs,scope=global{rounded},timed=false"
        text = f"{device.cleanup},prune-channels{{{options}}},reconstruct,{device.cleanup}"
    return Way(
        f"prune-{share}", f"{share} % of the arithmetic removed as whole channels", text, ("prune-channels",),
        "no layer has channels that may go", fitted=True, method="prune",
    )  # fmt: skip


def _zeros(device: Device) -> Way:
    pattern, about = device.sparsity, "half of the weights set to zero"
    option = f'pattern="{pattern}"' if pattern else "sparsity=0.5"
    name = f"sparse-{pattern}" if pattern else "sparse"
    text = f"{device.cleanup},prune-weights{{{option}}}"
    about += f", in the pattern {pattern}" if pattern else ", anywhere"
    return Way(name, about, text, ("prune-weights",), "no weight is set to zero")


def within(passes: Sequence[Pass], max_drop: float | None) -> list[Pass]:
    """The passes, with this budget where they keep one."""
    if max_drop is None:
        return list(passes)
    budget: dict[str, Any] = {"max_drop": max_drop}
    return [replace(each, **budget) if hasattr(each, "max_drop") else each for each in passes]
