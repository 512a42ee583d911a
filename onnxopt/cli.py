"""The command line: what can be asked for. What is then done stands in ``commands.py``.

Only click is imported here: ``--help`` and mistakes must be answered at once, and the process that does the
work is forked before anything heavy is loaded (see ``supervise.py``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from onnxopt import cli_options as shared
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
    "--max-drop", metavar="SHARE", callback=shared.read_share,
    help="The budget: the largest loss of accuracy (without labels: of agreement), as 0.01 or 1%.",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Fail if nothing matches or a change has to be left out.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@shared.probes
@click.option("--external-data/--inline", default=None, help="Weights beside OUT, or inside; default: as in MODEL.")
@shared.report
@shared.as_json
@shared.quiet
@shared.limited
def optimize(**options: Any) -> int:
    """Run a recipe or passes on MODEL and write the result."""
    return _supervised("optimize", options, output=options["output"])


@cli.command(epilog=_EXIT_CODES)
@click.argument("teacher")
@click.argument("model", metavar="STUDENT")
@click.option("-o", "--output", required=True, metavar="OUT", help="Where to write the trained student.")
@click.option(
    "--teacher", "more_teachers", multiple=True, metavar="MODEL",
    help="A further teacher, as often as there are: the mean of all is taught.",
)  # fmt: skip
@click.option(
    "--data",
    required=True,
    metavar="SOURCE",
    help="Samples to learn from: an .npz file, a directory, or module:callable.",
)
@click.option("--eval-data", metavar="SOURCE", help="Other samples, to judge by; default: half of --data.")
@click.option("--epochs", type=click.IntRange(min=1), default=10, show_default=True, help="How often each is seen.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Samples of a step.")
@click.option("--lr", type=float, default=1e-3, show_default=True, help="The largest learning rate.")
@click.option("--temperature", type=float, default=4.0, show_default=True, help="Scores are divided by this.")
@click.option(
    "--hard",
    metavar="SHARE",
    callback=shared.read_share,
    default="0.1",
    show_default=True,
    help="What labels count, if there are any.",
)
@click.option("--features", type=float, default=0.0, show_default=True, help="What values inside count.")
@click.option(
    "--feature-loss", type=click.Choice(["attention", "hints", "similarity"]), default="attention", show_default=True,
    help="How these are compared.",
)  # fmt: skip
@click.option(
    "--pair", "pairs", multiple=True, metavar="OWN=TAUGHT",
    help="Such a value of STUDENT, and that of TEACHER; default: ends of blocks, by size and depth.",
)  # fmt: skip
@click.option("--checkpoint", metavar="FILE", help="Where to keep the state, and to go on from if it is there.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="What the order follows from.")
@click.option("--strict", is_flag=True, help="Fail if the student learns nothing.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--external-data/--inline", default=None, help="Weights beside OUT, or inside; default: as in STUDENT.")
@shared.report
@shared.as_json
@shared.quiet
@shared.limited
def distill(**options: Any) -> int:
    """Train STUDENT to give what TEACHER gives and write the result."""
    return _supervised("distill", options, output=options["output"])


@cli.command(epilog=_EXIT_CODES)
@click.argument("model")
@click.option(
    "--dims", multiple=True, callback=shared.read_dims, metavar="NAME=N,…",
    help="Sizes of dynamic dims for counting multiply-accumulates; default: 1 on the first axis, 128 elsewhere.",
)  # fmt: skip
@click.option(
    "--cleanup/--no-cleanup", default=None,
    help="Try what the recipe cleanup would leave; default: for models of up to 2,000 nodes.",
)  # fmt: skip
@click.option("--groups", is_flag=True, help="List the groups of channels that can be pruned, and why others cannot.")
@shared.as_json
@shared.limited
def inspect(**options: Any) -> int:
    """Describe MODEL: operators, parameters, arithmetic, sizes, interface."""
    return _supervised("inspect", options)


@cli.command(epilog=_EXIT_CODES)
@click.argument("model", metavar="A")
@click.argument("other", metavar="B")
@shared.probes
@click.option("--force", is_flag=True, help="Replace the report if it exists.")
@shared.report
@shared.as_json
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="For ONNX Runtime.")
@click.option(
    "--seconds", type=click.FloatRange(min=0), default=2.0, show_default=True,
    help="How long to measure latency; 0: not at all.",
)  # fmt: skip
@shared.limited
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
@click.option("--force", is_flag=True, help="Replace OUT.json and the report if they exist.")
@shared.report
@shared.as_json
@shared.limited
def sensitivity(**options: Any) -> int:
    """Measure what each layer of MODEL gains and harms when it alone is quantized, pruned or split."""
    return _supervised("sensitivity", options)


@cli.command(epilog=_EXIT_CODES)
@click.argument("model")
@click.option("-o", "--output", required=True, metavar="OUT", help="Where to write the model that is found.")
@click.option(
    "--data", required=True, metavar="SOURCE",
    help="Samples to fit to, with labels if there are any; without --eval-data also to compare and to judge on.",
)  # fmt: skip
@click.option(
    "--eval-data", metavar="SOURCE", help="Other samples, to compare and to judge on; default: 60 % of --data."
)
@click.option(
    "--max-drop", metavar="SHARE", callback=shared.read_share, default="1%", show_default=True,
    help="The budget: the largest loss of the score.",
)  # fmt: skip
@click.option(
    "--target", type=click.Choice(["latency", "size", "macs"]), default="latency", show_default=True,
    help="What is to be as small as it can.",
)  # fmt: skip
@shared.at_most
@shared.metric
@click.option(
    "--method", "methods", multiple=True, type=click.Choice(["prune", "split", "quantize"]),
    default=("prune", "split", "quantize"), help="What may be done; can be given several times. Default: all.",
)  # fmt: skip
@click.option("--train/--no-train", default=True, show_default=True, help="Whether models may be distilled.")
@click.option(
    "--time-budget", metavar="TIME", callback=shared.read_seconds, default="30m", show_default=True,
    help="After this no other evaluation begins.",
)  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes to evaluate in.")
@click.option(
    "--worker-memory", type=click.FloatRange(min=0, min_open=True), metavar="GB", help="What each of them may take."
)
@click.option("--dask", metavar="ADDRESS", help="The scheduler of a Dask cluster to evaluate on.")
@click.option("--pareto", metavar="DIR", help="Where to write the Pareto set; default: OUT with .pareto.")
@click.option("--force", is_flag=True, help="Replace what exists.")
@shared.report
@shared.as_json
@shared.quiet
@shared.limited
def auto(**options: Any) -> int:
    """Search for the smallest or fastest form of MODEL within a budget.

    Exits with 1 if none is found; the nearest is then written, with .nearest in its name.
    """
    options["timeout"] = max(options["timeout"], 4 * options["time_budget"])
    return _supervised("auto", options, output=options["output"])


@cli.command(epilog=_EXIT_CODES)
@click.argument("model")
@click.option(
    "--data", metavar="SOURCE",
    help="Samples to fit to and to judge by, with labels if there are any; without them losses are not known.",
)  # fmt: skip
@click.option(
    "--target-device", "device", default="auto", show_default=True, metavar="NAME",
    help="Where the model is to run: ort-cpu-vnni, ort-cpu-avx2, ort-cpu-arm, mobile, tensorrt, openvino, generic; "
    "auto: ONNX Runtime on this machine.",
)  # fmt: skip
@click.option(
    "--target", "goal", type=click.Choice(["latency", "size"]),
    help="What is to be as small as it can; default: what the device wants.",
)  # fmt: skip
@click.option(
    "--max-drop", metavar="SHARE", callback=shared.read_share,
    help="The budget: the largest loss of the score; default: 1%, and recipes keep their own budgets.",
)  # fmt: skip
@shared.metric
@click.option(
    "--time-budget", metavar="TIME", callback=shared.read_seconds, default="3m", show_default=True,
    help="After this nothing else is tried.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the report if it exists.")
@shared.report
@shared.as_json
@shared.limited
def advise(**options: Any) -> int:
    """Say what each method would bring to MODEL on a device, and cost.

    Everything is tried on copies; MODEL stays as it is.
    """
    options["timeout"] = max(options["timeout"], 4 * options["time_budget"])
    return _supervised("advise", options)


@cli.command(epilog=_EXIT_CODES)
@click.argument("model", metavar="PARETO")
@click.option("-o", "--output", metavar="OUT", help="Where to write the model; without it the set is listed.")
@click.option("--max-drop", metavar="SHARE", callback=shared.read_share, help="The largest loss of the score.")
@shared.at_most
@click.option("--number", type=click.IntRange(min=1), metavar="N", help="The model of this number.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@shared.as_json
@shared.limited
def pick(**options: Any) -> int:
    """Take one model out of the set PARETO that a search wrote."""
    return _supervised("pick", options, output=options["output"])


@cli.command(epilog=_EXIT_CODES)
@click.argument("name", required=False)
@shared.as_json
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
        given = list(sys.argv[1:] if arguments is None else arguments)
        code = cli.main(given, "onnxopt", standalone_mode=False, obj=given)
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
