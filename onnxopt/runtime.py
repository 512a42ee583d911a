"""ONNX Runtime, seen from here: sessions on snapshots, errors of our own type, latency as a ratio."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.errors import EngineError
from onnxopt.model import slim_proto

Feeds = Mapping[str, Any]
"""What a model is run on: input name → array."""


@dataclass(frozen=True)
class Snapshot:
    """A model as bytes, cheap to make and to keep: its large weights stay in files of ``directory``."""

    content: bytes
    directory: Path | None

    @classmethod
    def of(cls, model: ir.Model) -> Snapshot:
        """The model as it is now."""
        proto, directory = slim_proto(model)
        return cls(proto.SerializeToString(), directory)


class Session:
    """A model loaded by ONNX Runtime on the CPU."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        optimize: bool = False,
        threads: int = 0,
        profile: Path | None = None,
        training: bool = False,
    ) -> None:
        """Load ``snapshot``; ``optimize`` turns all of ONNX Runtime's own optimizations on; ``profile`` is how the
        name of the file begins that is to say how long each kernel takes; ``training`` computes floats between
        DequantizeLinear and QuantizeLinear, and gives memory back as soon as it is free.

        Raises ``EngineError`` with ONNX Runtime's reason if it refuses the model.
        """
        import onnxruntime as ort

        options = ort.SessionOptions()
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = self.threads = threads
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        if threads != 1:  # for throughput: threads that wait by spinning take time from whoever else is there
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not optimize:  # this session is for checking: memory matters, speed does not
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.enable_cpu_mem_arena = False
            options.enable_mem_pattern = False  # planning takes time quadratic in the number of nodes
        if training:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            options.enable_mem_pattern = False  # one block for all a step needs is a third larger than the pieces
        if snapshot.directory is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(snapshot.directory)
            )
        try:
            self._session = ort.InferenceSession(snapshot.content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the binding raises many unrelated types
            raise EngineError(f"ONNX Runtime cannot load the model: {reason(error)}") from error
        self.outputs: list[str] = [output.name for output in self._session.get_outputs()]
        self.inputs: list[str] = [value.name for value in self._session.get_inputs()]

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> list[Any]:
        """The outputs (all, or the named ones) for one set of inputs.

        Raises ``EngineError`` if the model does not run on them.
        """
        try:
            return list(self._session.run(outputs, dict(feeds)))
        except Exception as error:
            raise EngineError(f"ONNX Runtime cannot run the model: {reason(error)}") from error

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Callable[[], None]:
        """A run that reads all inputs from these arrays and writes the outputs into those, without a copy.

        Each run raises ``EngineError`` if the model does not run.
        """
        import onnxruntime as ort

        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        kept = (inputs, outputs)  # ONNX Runtime holds no reference to the arrays

        def run() -> None:
            assert kept
            try:
                self._session.run_with_iobinding(binding)
            except Exception as error:
                raise EngineError(f"ONNX Runtime cannot run the model: {reason(error)}") from error

        return run

    def end_profiling(self) -> Path:
        """The file with what was measured (see ``profile``)."""
        return Path(self._session.end_profiling())


def reason(error: Exception) -> str:
    """The part of an ONNX Runtime message that says what is wrong, on one line."""
    text = " ".join(str(error).split())
    for mark in ("Status Message: ", " : FAIL : ", " : INVALID_ARGUMENT : ", " : NOT_IMPLEMENTED : "):
        if mark in text:
            text = text.split(mark, 1)[1]
    return text[:500]


@dataclass(frozen=True)
class Ratio:
    """How long ``b`` takes in units of ``a``: median of paired ratios, with the middle half of them."""

    median: float
    low: float
    high: float
    best: float
    """The shortest time of ``b`` over that of ``a``, which other work on the machine disturbs least."""

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}…{self.high:.2f})"


def latency_ratio(a: Session, b: Session, feeds: Feeds, *, seconds: float = 2.0) -> Ratio:
    """Latency of ``b`` over latency of ``a``, run in turns so that a noisy clock hits both alike.

    ``seconds`` is about how long to measure. Raises ``EngineError`` if either does not run.
    """
    return latency_ratios(a, [b], feeds, seconds=seconds)[0]


def one_thread_ratio(before: Snapshot, after: Snapshot, feeds: Feeds, *, seconds: float) -> Ratio:
    """The same for two models as they are deployed, on one thread."""
    a, b = (Session(each, optimize=True, threads=1) for each in (before, after))
    return latency_ratio(a, b, feeds, seconds=seconds)


def latency_ratios(
    a: Session,
    others: Sequence[Session],
    feeds: Feeds,
    *,
    seconds: float = 2.0,
    rounds: int = 10_000,
    precision: float = 0.0,
) -> list[Ratio]:
    """The same for several models at once, each over ``a``; at most ``rounds`` times.

    None is run any more whose median is known to within ``precision``, or to within a twentieth of what it is below 1,
    or a quarter of what it is above (with 95 % confidence; McGill, Tukey and Larsen, "Variations of Box Plots", 1978).
    """
    for session in (a, *others):
        session.run(feeds)
    # What runs on the calling thread alone is timed by it, so that it does not matter who else wants the processor.
    # Windows counts a thread's time in ticks that are longer than most runs.
    alone = all(session.threads == 1 for session in (a, *others)) and sys.platform != "win32"
    clock = time.thread_time if alone else time.perf_counter
    pairs: list[list[tuple[float, float]]] = [[] for _ in others]
    known: set[int] = set()
    end, done = clock() + seconds, 0
    while len(known) < len(others) and (done < 5 or (clock() < end and done < rounds)):
        racing = {-1: a} | {at: other for at, other in enumerate(others) if at not in known}
        order = list(racing)
        times = {}
        for at in (*order[done % len(order) :], *order[: done % len(order)]):
            start = clock()
            racing[at].run(feeds)
            times[at] = clock() - start
        if not all(times.values()):  # the clock of a virtual machine stands still at times
            continue
        for at in order[1:]:
            pairs[at].append((times[-1], times[at]))
        done += 1
        if precision and done % 5 == 0:
            known.update(at for at in order[1:] if _is_known(_ratio(pairs[at]), done, precision))
    return [_ratio(each) for each in pairs]


def _is_known(ratio: Ratio, rounds: int, precision: float) -> bool:
    half = 1.57 * (ratio.high - ratio.low) / math.sqrt(rounds)
    if rounds < 10:  # so few may lie near each other by chance
        half *= 2
    return half <= max(precision, (1 - ratio.median) / 20, (ratio.median - 1) / 4)


def _ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    first, second = np.array(pairs).T
    ratios = np.sort(second / first)
    low, median, high = np.interp(np.array([0.25, 0.5, 0.75]) * (len(ratios) - 1), np.arange(len(ratios)), ratios)
    return Ratio(float(median), float(low), float(high), float(second.min() / first.min()))
