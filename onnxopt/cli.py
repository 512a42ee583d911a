"""The command line: what can be asked for. What is then done stands in ``commands.py``.

Only click is imported here: ``--help`` and mistakes must be answered at once, and the process that does the
work is forked before anything heavy is loaded (see ``supervise.py``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from onnxopt.commands import carry_out
from onnxopt.supervise import (
    DONE,
    INTERRUPTED,
    READER_GONE,
    USER_ERROR,
    Limits,
    Stage,
    can_watch_memory,
    one_line,
    supervise,
)

_EXIT_CODES = """\b
Exit codes:
  0  done
  1  done, but the check failed: outputs differ, or --strict was not met
  2  a mistake in the call, the model, the data or the output path
  3  ONNX Runtime or onnxopt itself crashed, hung or ran out of memory
130  interrupted with Ctrl-C
141  whoever read the output went away
"""

F = TypeVar("F", bound=Callable[..., Any])


class _Group(click.Group):
    """Commands that are mistyped get a suggestion, in every version of click."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"commands: {', '.join(self.list_commands(ctx))}"
            raise click.UsageError(f"no command is called {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


def _version(context: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        import onnxopt

        click.echo(f"onnxopt {onnxopt.__version__}")
        context.exit()


@click.group(cls=_Group, epilog=_EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit."
)
def cli() -> None:
    """Make ONNX models smaller and faster inside a loss budget."""


def _limited(command: F) -> F:
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


_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
_probes = click.option(
    "--probes", metavar="FILE.npz", help="Inputs to compare on: arrays named after the inputs, first axis = sample."
)


def _share(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise click.BadParameter(f"write a share such as 0.01 or 1%, got {text!r}", context, option)
    return share


@cli.command(epilog=_EXIT_CODES)
@click.argument("model")
@click.option("-o", "--output", required=True, metavar="OUT", help="Where to write the optimized model.")
@click.option("--recipe", metavar="NAME|FILE.toml", help="A named pipeline (default: cleanup), or a file of your own.")
@click.option("--passes", metavar="TEXT", help="A pipeline as text: 'cleanup,some-pass{option=1}'.")
@click.option(
    "--verify", type=click.Choice(["each", "end", "off"]), default="end", show_default=True,
    help="When to compare outputs with the original's.",
)  # fmt: skip
@click.option(
    "--data", metavar="SOURCE",
    help="Samples to calibrate on: an .npz file, a directory, or module:callable; 'random' only to try things out.",
)  # fmt: skip
@click.option("--eval-data", metavar="SOURCE", help="Other samples, to judge lossy passes by; default: half of --data.")
@click.option("--min-sqnr", type=float, metavar="DB", help="The budget: the least SQNR of an output, in dB.")
@click.option(
    "--max-drop", metavar="SHARE", callback=_share,
    help="The budget: the largest loss of accuracy (without labels: of agreement), as 0.01 or 1%.",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Fail if nothing matches or a change has to be left out.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@_probes
@click.option("--external-data/--inline", default=None, help="Weights beside OUT, or inside; default: as in MODEL.")
@_json
@click.option("-q", "--quiet", is_flag=True, help="Print problems only.")
@_limited
def optimize(**options: Any) -> int:
    """Run a recipe or passes on MODEL and write the result."""
    return _supervised("optimize", options, output=options["output"])


def _dims(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, int]:
    dims: dict[str, int] = {}
    for text in (part for given in texts for part in given.split(",")):
        name, found, size = text.rpartition("=")
        if not found or not size.strip().isdecimal():
            raise click.BadParameter(f"write name=value with a whole number, got {text!r}", context, option)
        dims[name.strip()] = int(size)
    return dims


@cli.command(epilog=_EXIT_CODES)
@click.argument("model")
@click.option(
    "--dims", multiple=True, callback=_dims, metavar="NAME=N,…",
    help="Sizes of dynamic dims for counting multiply-accumulates; default: 1 on the first axis, 128 elsewhere.",
)  # fmt: skip
@click.option(
    "--cleanup/--no-cleanup", default=None,
    help="Try what the recipe cleanup would leave; default: for models of up to 2,000 nodes.",
)  # fmt: skip
@click.option("--groups", is_flag=True, help="List the groups of channels that can be pruned, and why others cannot.")
@_json
@_limited
def inspect(**options: Any) -> int:
    """Describe MODEL: operators, parameters, arithmetic, sizes, interface."""
    return _supervised("inspect", options)


@cli.command(epilog=_EXIT_CODES)
@click.argument("model", metavar="A")
@click.argument("other", metavar="B")
@_probes
@_json
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="For ONNX Runtime.")
@click.option(
    "--seconds", type=click.FloatRange(min=0), default=2.0, show_default=True,
    help="How long to measure latency; 0: not at all.",
)  # fmt: skip
@_limited
def compare(**options: Any) -> int:
    """Compare the outputs, cost and latency of B with those of A.

    Exits with 1 if outputs differ by more than A's own noise.
    """
    return _supervised("compare", options)


@cli.command(epilog=_EXIT_CODES)
@click.argument("model")
@click.option("--data", required=True, metavar="SOURCE", help="Samples to calibrate on and to judge by.")
@click.option(
    "--method", type=click.Choice(["int8", "prune", "low-rank"]), default="int8", show_default=True,
    help="What is done to one layer at a time: quantized; a quarter, half, three quarters of its channels removed; "
    "split at a quarter and half of its rank.",
)  # fmt: skip
@click.option("-o", "--output", metavar="OUT.json", help="Where to save the measurements.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="For ONNX Runtime.")
@_json
@_limited
def sensitivity(**options: Any) -> int:
    """Measure what each layer of MODEL gains and harms when it alone is quantized, pruned or split."""
    return _supervised("sensitivity", options)


@cli.command(epilog=_EXIT_CODES)
@click.argument("name", required=False)
@_json
@click.option("-v", "--verbose", count=True, hidden=True)
def passes(verbose: int, **options: Any) -> int:
    """List passes and recipes, or show the documentation of NAME."""
    return carry_out(Stage(None), command="passes", verbose=verbose, options=options)


def _supervised(command: str, options: dict[str, Any], output: str | None = None) -> int:
    limits = Limits(options.pop("timeout"), options.pop("memory"))
    if limits.memory is not None and not can_watch_memory():
        raise click.UsageError("--memory needs /proc, which this system has not")
    work = {"command": command, "verbose": options.pop("verbose"), "options": options}
    return supervise(
        carry_out, work, what=options["model"], limits=limits,
        output=None if output is None else Path(output), quiet=options.get("quiet", False),
    )  # fmt: skip


def run(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line; returns the exit code."""
    try:
        code = cli.main(list(arguments) if arguments is not None else None, "onnxopt", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USER_ERROR
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        message = one_line(error.format_message()).rstrip(".")
        see = f" (see {context.command_path} --help)" if context is not None else ""
        click.echo(f"onnxopt: {message[:1].lower()}{message[1:]}{see}", err=True)
        return USER_ERROR
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    return code if isinstance(code, int) else DONE


def main() -> NoReturn:
    """The entry point ``onnxopt``."""
    sys.exit(run())
