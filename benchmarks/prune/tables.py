"""``results.md``: one table a question, losses included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.cleanup.tables import Footnotes, table
from benchmarks.prune import verdicts
from benchmarks.prune.peer import REQUIREMENTS

Record = dict[str, Any]

TITLES = {
    "tests": "Torch-Pruning's own test networks",
    "operators": "One network an operator",
    "architectures": "Architectures",
}
KINDS = ("equal", "single", "partly", "finer", "coarser", "different", "frozen", "unknown")
RATIOS = ("0.3", "0.5")
VARIANTS = ("plain", "rounded", "half", "steps")


def render(results: Record, machine: dict[str, str]) -> str:
    networks, notes = results["networks"], Footnotes()
    parts = [
        "# Pruning: side by side",
        "Written by `python -m benchmarks.prune`; see `benchmarks/README.md` for how and why.",
        "\n".join(f"- {k}: {v}" for k, v in machine.items()),
        "Peer: " + ", ".join(r.replace("==", " ") for r in REQUIREMENTS) + ".",
        "## What it must reach",
        reached(results),
    ]
    if networks:
        parts += [
            "## Which slices go together",
            "For each layer that Torch-Pruning starts from, whether the slices that go with each of its channels are "
            "the same. *Single*: a layer of one channel. *Finer*: ours are part of Torch-Pruning's, so that more "
            "can be removed apart. *Counts*: layers of equal groups with as many channels left, over both ratios and "
            "importances. *All shapes*: every parameter of the network has Torch-Pruning's shape every time.",
            *by_kind(networks, lambda some: same(some, notes)),
            "\n".join(notes.lines()),
            "### Where the sets differ",
            "Who is right, asked of the model itself: with the slices of a set at zero, nothing that makes the channel "
            "may be seen at the outputs.",
            differences(networks),
            "## Pruned, and run",
            "Parameters left, multiply–accumulates left, after `prune-channels` at ratios 0.3 and 0.5, `l2`. *Plain*: "
            "any number of channels. *Default*: rounded as the kernels want, and refused where it is slower; with the "
            "latency ratio on one thread, batch 1.",
            *by_kind(networks, pruned),
        ]
    if results["published"]:
        parts += [
            "## Published models",
            pruned(results["published"]),
            "### What stays, and why",
            why(results["published"]),
        ]
    if results["trained"]:
        parts += [
            "## Accuracy",
            "One-shot at the multiply–accumulates that Torch-Pruning leaves at that ratio of channels; *recovered*: "
            "our criterion and `reconstruct` on 1,000 unlabelled samples. *Plain*: at the same multiply–accumulates; "
            "*rounded*: the same ratio of channels, in multiples that kernels want; *half*, *steps*: at half of the "
            "multiply–accumulates. In %, @ the share of multiply–accumulates left.",
            damage(results["trained"]),
        ]
    if results["scale"]:
        parts += ["## Time", scale(results["scale"])]
    return "\n\n".join(p for p in parts if p) + "\n"


def by_kind(networks: Sequence[Record], make: Any) -> list[str]:
    found = []
    for kind, title in TITLES.items():
        if chosen := [n for n in networks if n["kind"] == kind]:
            found += [f"### {title}", make(chosen)]
    return found


def share(part: int, of: int) -> str:
    return f"{part} of {of}"


def reached(results: Record) -> str:
    rows: list[list[str]] = []
    for kind, title in TITLES.items():
        networks = [n for n in results["networks"] if n["kind"] == kind]
        if not networks:
            continue
        kinds = verdicts.all_kinds(networks)
        real = sum(kinds.values()) - kinds["single"]
        rows.append([f"{title}: groups equal", share(kinds["equal"], real)])
        held = [verdicts.right(root) in verdicts.OURS for n in networks for root in verdicts.uneven(n)]
        rows.append([f"{title}: of the others, ours hold in the model itself", share(sum(held), len(held))])
        answers = [same for n in networks for _, _, same in verdicts.counts(n)]
        rows.append([f"{title}: counts equal, of equal groups", share(answers.count(True), len(answers))])
        ran = [
            verdicts.pruned(result, n["measured"]["said"]["parameters"])
            for n in networks
            for result in verdicts.runs(n, "plain").values()
        ]
        rows.append([f"{title}: smaller, and runs", share(sum(ran), 2 * len(networks))])
    published = [
        verdicts.pruned(result, m["measured"]["said"]["parameters"])
        for m in results["published"]
        for result in verdicts.runs(m, "plain").values()
    ]
    if published:
        rows.append(["Published models: smaller, and run", share(sum(published), 2 * len(results["published"]))])
    timed = [verdicts.pays(model, "0.5") for model in (*results["networks"], *results["published"])]
    if known := [t for t in timed if t is not None]:
        text = f"latency ratio ≤ {verdicts.OVERHEAD} × that of multiply–accumulates, 0.5, convolutional nets"
        rows.append([text, share(sum(known), len(known))])
    rows += damage_reached(results["trained"])
    if said := results["scale"].get("said"):
        rows.append(["groups of 5,000 nodes ≤ 5 s", f"{said['analysis']['wall']:.1f} s"])
        rows.append(["L1 on 100 MB ≤ 10 s", f"{said['l1']['wall']:.1f} s"])
    return table(["requirement", "result"], rows)


def damage_reached(trained: Sequence[Record]) -> Iterable[list[str]]:
    for importance in ("l1", "l2"):
        pairs = [
            (r["said"]["theirs"][importance], r["said"]["ours"][importance])
            for r in trained
            if "accuracy" in r.get("said", {}).get("theirs", {}).get(importance, {})
        ]
        if pairs:
            won = sum(ours.get("accuracy", 0) >= theirs["accuracy"] for theirs, ours in pairs)
            yield [f"accuracy ≥ Torch-Pruning's, {importance}, equal multiply–accumulates", share(won, len(pairs))]
    for variant in VARIANTS:
        shares = [verdicts.recovered(r["said"], variant) for r in trained if "said" in r]
        if known := [s for s in shares if s is not None]:
            won = sum(s >= 0.9 for s in known)
            yield [f"≥ 90 % of the lost accuracy recovered ({variant})", share(won, len(known))]


def same(networks: Sequence[Record], notes: Footnotes) -> str:
    rows = []
    for network in networks:
        kinds = verdicts.all_kinds([network])
        answers = [each for _, _, each in verdicts.counts(network)]
        failed = "; ".join(f"{k}: {v}" for k, v in network["peer_failures"].items())
        ours = network["groups"].get("failure", "")
        name = network["name"] + (notes.mark(f"Torch-Pruning: {failed[:200]}") if failed else "")
        name += notes.mark(f"ours: {ours}") if ours else ""
        whole = verdicts.whole(network)
        cells = [str(kinds[k] or "") for k in KINDS]
        counted = share(answers.count(True), len(answers)) if answers else "–"
        rows.append([name, str(sum(kinds.values())), *cells, counted, {True: "yes", False: "no", None: "–"}[whole]])
    return table(["network", "layers", *KINDS, "counts", "all shapes"], rows)


def differences(networks: Sequence[Record]) -> str:
    rows = []
    for network in networks:
        for root in verdicts.uneven(network):
            example = next(iter(root["examples"].values()))
            text = [f"only theirs: {s}" for s in example["only_theirs"][:2]]
            text += [f"only ours: {s}" for s in example["only_ours"][:2]] + root["frozen"][:1]
            told = f"channel {example['index']}: " + "; ".join(text).replace("|", "\\|")
            rows.append([network["name"], root["root"], verdicts.kind(root), verdicts.right(root), told])
    return table(["network", "layer", "ours", "closed", "for example"], rows) if rows else "None."


def cell(result: Record | None, parameters: int, macs: int) -> str:
    if result is None:
        return "–"
    if result["state"] != "ok":
        return f"~~{result['state']}~~: {result['reason'][:80]}"
    if not result["changed"]:
        slower = any("takes" in reason and "as long" in reason for reason in result["refused"])
        return "slower, refused" if slower else "unchanged"
    text = f"{result['parameters'] / parameters:.2f} · {result['macs'] / macs if macs else float('nan'):.2f}"
    return text + (f" · ×{result['latency'][0]:.2f}" if result.get("latency") else "")


def pruned(models: Sequence[Record]) -> str:
    rows = []
    for model in models:
        said = model["measured"].get("said")
        if said is None:
            rows.append([model["name"], model["measured"]["failure"][:120], *[""] * 4])
            continue
        cells = [
            cell(said[variant].get(ratio), said["parameters"], said["macs"])
            for variant in ("plain", "default")
            for ratio in RATIOS
        ]
        rows.append([model["name"], f"{said['parameters']:,}", *cells])
    heads = (f"{variant} {ratio}" for variant in ("plain", "default") for ratio in RATIOS)
    return table(["model", "parameters", *heads], rows)


def why(models: Sequence[Record]) -> str:
    lines = []
    for model in models:
        for reason in verdicts.runs(model, "plain").get("0.5", {}).get("refused", ())[:12]:
            lines.append(f"- {model['name']}: {reason[:240]}")
    return "\n".join(lines) or "Everything can be pruned."


def damage(trained: Sequence[Record]) -> str:
    rows = []
    for record in trained:
        said = record.get("said")
        if said is None:
            rows.append([record["name"], str(record["ratio"]), record["failure"][:120], *[""] * 13])
            continue
        cells: list[str] = []
        for importance in ("l1", "l2"):
            cells += [percent(said["theirs"].get(importance)), percent(said["ours"].get(importance))]
        for variant in VARIANTS:
            cells += [percent(said["ours"].get(f"{variant}-{when}")) for when in ("before", "recovered")]
            back = verdicts.recovered(said, variant)
            cells.append("–" if back is None else f"{100 * back:.0f}")
        rows.append([said["name"], str(said["ratio"]), f"{said['dense']:.1f}", *cells])
    head = ["model", "ratio", "dense", *(f"{who} {i}" for i in ("l1", "l2") for who in ("theirs", "ours"))]
    for variant in VARIANTS:
        head += [variant, "recovered", "% of the loss"]
    return table(head, rows)


def percent(result: Record | None) -> str:
    """Accuracy, and at which share of multiply–accumulates."""
    if not result:
        return "–"
    if "failure" in result:
        return "failed"
    return f"{result['accuracy']:.1f} @{result['macs']:.2f}"


def scale(result: Record) -> str:
    said = result.get("said")
    if said is None:
        return str(result["failure"])
    rows = [
        [name, f"{times['wall']:.2f}", f"{times['cpu']:.2f}"]
        for name, times in (
            (f"groups of a graph of {said['nodes']:,} nodes", said["analysis"]),
            (f"L1, load and save, {said['bytes'] / 1e6:.0f} MB", said["l1"]),
        )
    ]
    return table(["what", "wall (s)", "CPU (s)"], rows)
