"""Options of the command line that several commands share, and how what is given for options is read."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any, TypeVar

import click

from onnxopt.report.files import ReportFile

F = TypeVar("F", bound=Callable[..., Any])


def limited(command: F) -> F:
    """The options of every command that runs a model."""
    for option in (
        click.option("-v", "--verbose", count=True, help="Say more; twice: with tracebacks and debug messages."),
        click.option(
            "--memory", type=click.FloatRange(min=0, min_open=True), metavar="GB", help="Stop when more is taken."
        ),
        click.option(
            "--timeout", type=click.FloatRange(min=0, min_open=True), default=3600.0, show_default=True,
            metavar="S", help="Stop after so many seconds.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
quiet = click.option("-q", "--quiet", is_flag=True, help="Print problems only.")
metric = click.option(
    "--metric", default="auto", show_default=True, metavar="NAME",
    help="The score: accuracy, f1, rmse, agreement, noise, or module:function.",
)  # fmt: skip
probes = click.option(
    "--probes", metavar="FILE.npz", help="Inputs to compare on: arrays named after the inputs, first axis = sample."
)


def _report_file(context: click.Context, option: click.Parameter, path: str | None) -> ReportFile | None:
    return None if path is None else ReportFile(path, shlex.join(["onnxopt", *context.find_root().obj]))


report = click.option(
    "--report", metavar="FILE.html", callback=_report_file,
    help="Write a report for people to FILE.html, and the same for programs to FILE.json.",
)  # fmt: skip


def read_share(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """A share such as 0.01 or 1%."""
    if text is None:
        return None
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise click.BadParameter(f"write a share such as 0.01 or 1%, got {text!r}", context, option)
    return share


def read_dims(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, int]:
    """Sizes by name, such as batch=1,width=320."""
    dims: dict[str, int] = {}
    for text in (part for given in texts for part in given.split(",")):
        name, found, size = text.rpartition("=")
        if not found or not size.strip().isdecimal():
            raise click.BadParameter(f"write name=value with a whole number, got {text!r}", context, option)
        dims[name.strip()] = int(size)
    return dims


def read_factor(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """A factor such as ×0.5."""
    if text is None:
        return None
    try:
        factor = float(text.lstrip("×x"))
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise click.BadParameter(f"write a factor such as ×0.5 or 0.5, got {text!r}", context, option)
    return factor


def read_seconds(context: click.Context, option: click.Parameter, text: str) -> float:
    """A time such as 90s, 30m or 2h, in seconds."""
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        seconds = float(text.rstrip("smh")) * units[text[-1:] if text[-1:] in units else "s"]
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise click.BadParameter(f"write a time such as 90s, 30m or 2h, got {text!r}", context, option)
    return seconds


def at_most(command: F) -> F:
    """What a model may cost."""
    for name in ("macs", "size", "latency"):
        text = f"The budget: {name} at most so many times the original's, as ×0.5."
        command = click.option(f"--max-{name}", callback=read_factor, metavar="FACTOR", help=text)(command)
    return command
