"""Target profiles: which operators a runtime computes with integers, and in which form it wants to see them.

A profile is a TOML file in ``targets/``, one section an operator type; ``Operator`` says what its keys mean.
An operator that a profile does not name has no integer kernel there, and stays float. The section ``device`` says what
is worth doing to a model for such a machine. With ``like`` a profile takes from another what it does not say itself.
"""

from __future__ import annotations

import difflib
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec
import onnx_ir as ir

from onnxopt.errors import OptionError
from onnxopt.graph import attribute

_FOLDER = Path(__file__).parent / "targets"

IntegerType = Literal["uint8", "int8", "uint16", "int16", "int4"]
Form = Literal["int8", "fp16", "weights8", "weights4", "sparse"]
"""How a multiply–accumulate may be computed other than with floats: ``weights8`` and ``weights4`` have only the weights
in so many bits; ``sparse`` skips zeros."""


class Operator(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the runtime computes one operator type with integers."""

    output: Literal["needed", "either", "same"]
    """``needed``: there is an integer kernel only if a QuantizeLinear follows. ``either``: also without, the
    result then is float. ``same``: it moves or selects elements, which keep scale and zero point."""
    float_beside: bool = True
    """Whether some may read the float result while others read the quantized one."""
    takes: list[str] = []
    """Operators right behind that the kernel takes in (Relu, Clip): the QuantizeLinear goes behind them."""
    attributes: dict[str, Any] = {}
    """Values that attributes must have; one that a node does not give counts as right."""
    by_clip: bool = False
    """Whether HardSigmoid (and HardSwish) is written as a Clip of integers (see ``_hard``)."""
    as_pool: bool = False
    """Whether a ReduceMean over all spatial axes is written as the GlobalAveragePool that it is."""
    per_channel: bool = True
    """Whether its weight may have one scale an output channel."""
    constants: bool = True
    """Whether an operand may be a constant."""
    reason: str = ""
    """Why the attributes must be so, for the report."""


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is worth doing to a model that is to run there."""

    goal: Literal["latency", "size"]
    """What there is least of."""
    measurable: bool = False
    """Whether it is ONNX Runtime on CPUs of a kind, so that times can be measured on one of these."""
    times: dict[Form, float] | None = None
    """How long a multiply–accumulate takes in each form, in units of one of floats, by the peak rates of such machines;
    a form that is not named is not faster. Without a table nothing is known."""
    cleanup: Literal["cleanup", "cleanup-primitives"] = "cleanup"
    """The recipe that leaves operators which the runtime knows."""
    dynamic: bool = False
    """Whether activations can be quantized at run time."""
    weights: Literal["matmulnbits", "dequantize-linear"] | None = None
    """The form in which matrices with weights of few bits are read, if they are."""
    sparsity: str = ""
    """The pattern of zeros that its kernels skip, if they skip any."""
    round_to: int = 0
    """Of what the number of channels that are left should be a multiple; 0: what ONNX Runtime's kernels want."""
    low_rank: bool = True
    """Whether thinner layers, one behind the other, can be faster."""


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A runtime on a kind of machine."""

    description: str
    activations: list[IntegerType]
    """The types its kernels take for activations, the best first."""
    weights: list[IntegerType]
    """The same for weights."""
    symmetric: bool
    """Whether activations need the zero point 0."""
    bias: Literal["int32", "float"]
    """The form in which its kernels take a bias."""
    saturates: bool
    """Whether sums of two products saturate at 16 bits, so that weights get 7 bits."""
    operators: dict[str, Operator]
    device: Device
    saturating_takes: bool = False
    """Whether Relu and Clip are taken in only because integers saturate at the same limits, which
    a symmetric grid does not."""

    def operator(self, node: ir.Node) -> Operator | None:
        """The entry of the node's type, ``None`` if it has none."""
        return self.operators.get(node.op_type) if node.domain == "" else None


def misfit(node: ir.Node, operator: Operator) -> str | None:
    """Why the kernel does not take this node, ``None`` if it does."""
    for name, wanted in sorted(operator.attributes.items()):
        found = attribute(node, name, wanted)
        if found != wanted:
            return operator.reason or f"the integer kernel wants {name} = {wanted}, not {found}"
    return None


def names() -> list[str]:
    """The profiles that come with onnxopt."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


@cache
def target(name: str) -> Target:
    """The profile of this name. Raises ``OptionError`` if there is none."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise OptionError(f"no target is called {name!r}{hint}; targets: {', '.join(names())}")
    return msgspec.convert(_content(name), Target)


def _content(name: str) -> dict[str, Any]:
    content = tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    if "like" not in content:
        return content
    other = _content(content.pop("like"))
    return other | content | {"device": other["device"] | content.get("device", {})}


def detect() -> str:
    """The profile for ONNX Runtime on the CPU of this machine.

    ``ort-cpu-vnni`` only where the operating system says that the CPU has VNNI: weights of 7 bits are right
    on every CPU, 8 bits are not.
    """
    import platform

    if platform.machine().lower() in ("arm64", "aarch64"):
        return "ort-cpu-arm"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return "ort-cpu-avx2"
    return "ort-cpu-vnni" if "avx512_vnni" in flags or "avx_vnni" in flags else "ort-cpu-avx2"
