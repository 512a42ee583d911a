"""Our channels against Torch-Pruning's groups: for each channel that it starts from, which slices go with it.

    python -m benchmarks.prune.groups NETWORK.onnx ORACLE.json        # JSON on stdout

Slices are compared by initializer, axis and index. Where the sets differ, the model itself says which of them are
closed (see ``closed.py``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx import ModelProto
from onnxopt.channels import ChannelGraph
from onnxopt.graph import Editor
from onnxopt.model import to_proto

from benchmarks import probes
from benchmarks.prune import closed
from benchmarks.prune.prepared import prepared

Record = dict[str, Any]
Set = frozenset[tuple[str, int, int]]
"""Of (initializer, axis, index)."""


class Ours:
    """Our channels by their slices. Of a constant inside of a chain of Transpose the initializer counts."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = ChannelGraph(Editor(model))
        self._of: dict[tuple[str, int, int], tuple[int, int]] = {}
        self._sets: dict[tuple[int, int], Set] = {}
        for group in self.graph.groups:
            slices: list[set[tuple[str, int, int]]] = [set() for _ in range(group.size)]
            for member in group.members:
                for channel, indices in enumerate(member.index):
                    slices[channel] |= {(member.value.name or "", member.axis, int(i)) for i in indices}
            for channel, found in enumerate(slices):
                key = (group.number, channel)
                self._sets[key] = frozenset(found)
                self._of.update((each, key) for each in found)

    def channels(self, slices: Set) -> set[tuple[int, int]]:
        """The channels (group, number in it) that these slices belong to."""
        return {self._of[each] for each in slices if each in self._of}

    def slices(self, channels: set[tuple[int, int]]) -> Set:
        return frozenset().union(*(self._sets[each] for each in channels))

    def why(self, channels: set[tuple[int, int]]) -> list[str]:
        """What freezes them, if anything."""
        return sorted({why for number, _ in channels for why in self.graph.groups[number].frozen})


def theirs(channel: Record, names: set[str]) -> Set:
    return frozenset(
        (name, int(axis), index)
        for name, axes in channel["removed"].items()
        for axis, indices in axes.items()
        for index in indices
        if name in names
    )


def compare(path: Path, oracle: Record) -> list[Record]:
    network = prepared(path)
    model = to_proto(network)
    ours = Ours(network)
    names = {tensor.name for tensor in model.graph.initializer} & set(oracle["before"])
    feed = probes.feeds(path)[1]
    found = []
    for group in oracle.get("groups", ()):
        record: Record = {key: group[key] for key in ("root", "side", "size", "parts")}
        first = theirs(group["channels"][0], names)
        record["asked"] = len(group["channels"])
        record["pruned"] = sorted({(name, axis) for name, axis, _ in of_root(first, group) if name.endswith("weight")})
        record["places"] = max(len({i for n, _, i in of_root(first, group) if n.endswith("weight")}), 1)
        cases: dict[str, list[tuple[Record, Set, Set]]] = {}
        reasons: set[str] = set()
        for channel in group["channels"]:
            wanted = theirs(channel, names)
            mine = ours.channels(of_root(wanted, group))
            got = frozenset(each for each in ours.slices(mine) if each[0] in names)
            reasons |= set(ours.why(mine))
            verdict = "single" if group["size"] == 1 else judged(wanted, got, ours.why(mine))
            cases.setdefault(verdict, []).append((channel, wanted, got))
        record["verdicts"] = {verdict: len(each) for verdict, each in sorted(cases.items())}
        record["frozen"] = sorted(reasons)
        record["examples"] = {
            verdict: example(model, each, feed) for verdict, each in cases.items() if verdict not in ("equal", "single")
        }
        found.append(record)
    return found


def of_root(wanted: Set, group: Record) -> Set:
    """The slices of the layer that Torch-Pruning starts from, without those of its other side."""
    own = frozenset(each for each in wanted if each[0].rpartition(".")[0] == group["root"])
    if len({axis for name, axis, _ in own if name.endswith(".weight")}) > 1:
        side = 0 if group["side"] == "out" else 1
        return frozenset(each for each in own if each[0].endswith(".weight") and each[1] == side)
    return own


def judged(wanted: Set, got: Set, frozen: list[str]) -> str:
    if frozen:
        return "frozen"
    if not got:
        return "unknown"
    if got == wanted:
        return "equal"
    return "finer" if got < wanted else "coarser" if got > wanted else "different"


def grouped(slices: Set) -> dict[tuple[str, int], frozenset[int]]:
    found: dict[tuple[str, int], set[int]] = {}
    for name, axis, index in slices:
        found.setdefault((name, axis), set()).add(index)
    return {key: frozenset(indices) for key, indices in found.items()}


def example(model: ModelProto, cases: Sequence[tuple[Record, Set, Set]], feed: Mapping[str, Any]) -> Record:
    """The first case in words, and whether the sets of some of them are closed."""
    channel, wanted, got = cases[0]
    some = [cases[i] for i in sorted({0, len(cases) // 2, len(cases) - 1})]
    return {
        "index": channel["indices"][0],
        "only_theirs": list(told(wanted - got)),
        "only_ours": list(told(got - wanted)),
        "theirs_closed": _all(closed.is_closed(model, grouped(case[1]), feed) for case in some),
        "ours_closed": _all(closed.is_closed(model, grouped(case[2]), feed) for case in some if case[2]),
    }


def _all(answers: Iterable[bool | None]) -> bool | None:
    """False if one is, and ``None`` if that cannot be said."""
    found = set(answers)
    return False if False in found else None if None in found or not found else True


def told(slices: Set) -> Iterator[str]:
    for (name, axis), indices in sorted(grouped(slices).items()):
        chosen = sorted(indices)
        yield f"{name} axis {axis}: {chosen[:6]}{' …' if len(chosen) > 6 else ''}"


def main() -> None:
    path = Path(sys.argv[1])
    print(json.dumps(compare(path, json.loads(Path(sys.argv[2]).read_text()))))


if __name__ == "__main__":
    main()
