"""Pipelines from text and from TOML recipes.

Text: ``"cleanup,fold-constants{max_growth=0},fuse-gelu"``: names of passes and recipes, with options in braces.
A recipe is a TOML file::

    description = "what it is for"

    [[pass]]
    name = "fold-constants"
    max_growth = 4096

    [[pass]]
    recipe = "cleanup"                # all passes of another recipe

``data_share`` says on which share of the samples that the user gives the passes run; the rest tells of them afterwards.
Recipes of this folder are known by name. Every mistake gets an ``OptionError`` that says where it is.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from onnxopt.errors import OptionError
from onnxopt.pass_base import Pass
from onnxopt.passes import CATALOGUE, imported

_FOLDER = Path(__file__).parent
_STEP = re.compile(r"\s*([\w./\\:-]+)\s*(\{)?")
_BARE_WORD = re.compile(r"(?<=[=\[,])\s*([A-Za-z_*?/][\w*?./-]*|[1-9]\d*[:x]\d+)\s*(?=[,\]]|$)")


class _Recipe(msgspec.Struct, forbid_unknown_fields=True):
    steps: list[dict[str, Any]] = msgspec.field(name="pass")
    description: str = ""
    data_share: float = 1.0


def names() -> list[str]:
    """The recipes that come with onnxopt."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def description(name: str) -> str:
    """What a bundled recipe is for."""
    return _read(_FOLDER / f"{name}.toml").description


def recipe(name_or_path: str | os.PathLike[str]) -> list[Pass]:
    """The passes of a bundled recipe, or of a TOML file.

    Raises ``OptionError`` if there is no such recipe or it is not valid.
    """
    name = os.fspath(name_or_path)
    if re.fullmatch(r"[a-z0-9-]+", name) and (_FOLDER / f"{name}.toml").is_file():
        return list(_bundled(name))
    path = Path(name)
    if not path.is_file():
        raise OptionError(f"no recipe is called {name!r}{_suggestion(name, names())}; recipes: {', '.join(names())}")
    return _passes(path)


def data_share(name_or_path: str | os.PathLike[str]) -> float:
    """On which share of the samples the passes of a recipe run."""
    path = Path(name_or_path)
    return _read(path).data_share if path.suffix == ".toml" and path.is_file() else 1.0


@cache
def _bundled(name: str) -> tuple[Pass, ...]:
    return tuple(_passes(_FOLDER / f"{name}.toml"))  # passes hold nothing but options, so they can be shared


def _passes(path: Path) -> list[Pass]:
    passes: list[Pass] = []
    for at, step in enumerate(_read(path).steps, 1):
        where, inner = f"{path.name}, pass {at}", step.get("recipe")
        if inner is None:
            passes.append(_make(where, dict(step)))
        elif len(step) > 1 or inner not in names() or inner == path.stem:
            raise OptionError(f"{where}: recipe = … names another bundled recipe, alone; got {step}")
        else:
            passes += recipe(inner)
    return passes


def parse_pipeline(text: str) -> list[Pass]:
    """The passes of a pipeline written as text.

    Raises ``OptionError`` for unknown names and options, values out of range and malformed text.
    """
    passes: list[Pass] = []
    rest = text.strip()
    while rest:
        match = _STEP.match(rest)
        if match is None:
            raise OptionError(f"cannot read the pipeline at {rest[:30]!r}; write name{{option=value}},name")
        name, braces = match.group(1), match.group(2)
        rest = rest[match.end() :]
        options: dict[str, Any] = {}
        if braces:
            body, closed, rest = rest.partition("}")
            if not closed:
                raise OptionError(f"the braces after {name!r} are not closed")
            options = _options(name, body)
        rest = rest.lstrip()
        if rest and not rest.startswith(","):
            raise OptionError(f"a comma is missing before {rest[:30]!r} in the pipeline")
        rest = rest[1:].lstrip()
        if name in names() or name.endswith(".toml"):
            if options:
                raise OptionError(f"the recipe {name!r} takes no options; give them to a pass")
            passes += recipe(name)
        else:
            passes.append(_make("the pipeline", {"name": name, **options}))
    if not passes:
        raise OptionError("the pipeline is empty; name at least one pass or recipe")
    return passes


def find(name: str) -> type[Pass]:
    """The pass of that name. Raises ``OptionError`` with a suggestion if there is none."""
    if name in CATALOGUE:
        return imported(name)
    raise OptionError(f"no pass is called {name!r}{_suggestion(name, [*CATALOGUE, *names()])}")


def _make(where: str, options: dict[str, Any]) -> Pass:
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise OptionError(f"{where}: a pass needs a name")
    pass_ = find(name)
    known = [field.name for field in dataclasses.fields(pass_)]
    for option in options:
        if option not in known:
            raise OptionError(
                f"{where}: {name} has no option {option!r}{_suggestion(option, known)}; options: {', '.join(known)}"
            )
    try:
        return msgspec.convert(options, pass_)
    except msgspec.ValidationError as error:
        raise OptionError(f"{where}: {name}: {error}") from error




def _options(name: str, body: str) -> dict[str, Any]:
    """Options in the syntax of a TOML inline table, in which plain words need no quotes."""
    quoted = _BARE_WORD.sub(
        lambda m: m.group(0) if m.group(1) in ("true", "false", "inf", "nan") else f'"{m.group(1)}"', body
    )
    try:
        return dict(tomllib.loads(f"options = {{{quoted}}}")["options"])
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"cannot read the options of {name!r}: {{{body}}} ({error})") from error


def _read(path: Path) -> _Recipe:
    try:
        return msgspec.toml.decode(path.read_bytes(), type=_Recipe)
    except (msgspec.DecodeError, OSError, UnicodeDecodeError) as error:
        raise OptionError(f"the recipe {path} is not valid: {error}") from error


def _suggestion(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
