"""The program's plans beside greedy and uniform ones with as much noise allowed, all carried out.

    python -m benchmarks.auto.allocation NAME TARGET SECONDS      # JSON on stdout

Greedy takes, change by change, what saves most for its noise; uniform takes one level for all. Each gets the same
measurements of single changes and the same allowance of expected noise.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from onnxopt.data import load_data
from onnxopt.model import load
from onnxopt.runtime import Snapshot
from onnxopt.search.allocation import Correction, Plan, allocate, predict
from onnxopt.search.bench import Bench
from onnxopt.search.jobs import Evaluations, InProcess
from onnxopt.search.space import METHODS, Space, explore
from onnxopt.search.trials import Trials

from benchmarks.auto.cases import case

Record = dict[str, Any]
_PLAIN = Correction(dict.fromkeys(METHODS, 1.0), dict.fromkeys(METHODS, 1.0))
_NOISES = (0.003, 0.03)


def compared(name: str, target: Any, seconds: float) -> Iterator[Record]:
    """A record for each allowance: what each way saves of the target, as expected, and the noise it makes, measured."""
    one = case(name)
    model = load(one.model)
    fitted, rest = load_data(one.split(0)[0], model).split(0.5)
    bench = Bench(Snapshot.of(model), fitted, rest, "auto")
    evaluations = Evaluations(bench.packed(), bench.key, InProcess(), time.monotonic() + seconds, lambda text: None)
    space = explore(bench, METHODS, evaluations, small=target == "size")
    evaluations.end = time.monotonic() + seconds
    trials = Trials(bench, evaluations)
    for noise in _NOISES:
        plans = {"program": allocate(space, target, noise, _PLAIN) or Plan()}
        plans |= {"greedy": greedy(space, target, noise), "uniform": uniform(space, target, noise)}
        total = {"latency": space.seconds, "size": space.bytes, "macs": space.macs}[target]
        record: Record = {"noise": noise}
        for way, plan in plans.items():
            (measured,) = trials.measure([plan])
            size, macs = measured.bytes / space.bytes, measured.macs / space.macs
            left = {"latency": measured.latency, "size": size, "macs": macs}
            expected = 1 - predict(space, plan, _PLAIN).saved[target] / (total or 1.0)
            record[way] = {"expected": expected, "left": left[target], "noise": measured.noise}
        yield record


def single(space: Space) -> Iterator[Plan]:
    """Each change alone."""
    for group in space.groups:
        yield from (Plan(prune=((group.name, share),)) for share in group.levels)
    for layer in space.layers:
        yield from (Plan(split=((layer.name, rank),)) for rank in layer.split)
        yield from (Plan(precisions=((layer.name, precision),)) for precision in layer.precisions)


def joined(first: Plan, second: Plan) -> Plan:
    """Both, the second in place of what the first does in the same way at the same place."""
    return Plan(
        tuple({**dict(first.prune), **dict(second.prune)}.items()),
        tuple({**dict(first.split), **dict(second.split)}.items()),
        tuple({**dict(first.precisions), **dict(second.precisions)}.items()),
        timed=False,
    )


def greedy(space: Space, target: Any, noise: float) -> Plan:
    """Always next what saves most for the noise that it adds, while the allowance lasts."""
    plan, every = Plan(timed=False), list(single(space))
    while True:
        now, best = predict(space, plan, _PLAIN), (0.0, plan)
        for change in every:
            wider = joined(plan, change)
            then = predict(space, wider, _PLAIN)
            gain, cost = then.saved[target] - now.saved[target], max(then.noise - now.noise, 1e-12)
            if then.noise <= noise and gain > 0 and gain / cost > best[0]:
                best = gain / cost, wider
        if best[1] is plan:
            return plan
        plan = best[1]


def uniform(space: Space, target: Any, noise: float) -> Plan:
    """One level of one method for all, with integers or without: the one that saves most within the allowance."""
    options = [Plan(timed=False)]
    for share in {share for group in space.groups for share in group.levels}:
        options.append(Plan(prune=tuple((g.name, share) for g in space.groups if share in g.levels)))
    for rank in {rank for layer in space.layers for rank in layer.split}:
        options.append(Plan(split=tuple((e.name, rank) for e in space.layers if rank in e.split)))
    for precision in {p for layer in space.layers for p in layer.precisions}:
        whole = Plan(precisions=tuple((e.name, precision) for e in space.layers if precision in e.precisions))
        options += [joined(option, whole) for option in list(options)]
    able = [plan for plan in options if predict(space, plan, _PLAIN).noise <= noise]
    return max(able, key=lambda plan: predict(space, plan, _PLAIN).saved[target])


def main() -> None:
    name, target, seconds = sys.argv[1:]
    print(json.dumps(list(compared(name, target, float(seconds)))))


if __name__ == "__main__":
    main()
