"""The passes and recipes as data: what ``onnxopt passes`` and the documentation show."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from dataclasses import dataclass
from itertools import pairwise

from onnxopt import recipes
from onnxopt.pass_base import Pass
from onnxopt.passes import ALL


@dataclass
class Option:
    """One option of a pass."""

    name: str
    type: str
    default: str
    doc: str


@dataclass
class Entry:
    """One pass."""

    name: str
    exact: bool
    summary: str
    doc: str
    options: list[Option]


@dataclass
class RecipeEntry:
    """One recipe."""

    name: str
    summary: str
    passes: list[str]


def entries() -> list[Entry]:
    """Every pass of the catalogue, in its order."""
    return [entry(pass_) for pass_ in ALL]


def entry(pass_: type[Pass]) -> Entry:
    """One pass; its documentation is that of its module."""
    module = sys.modules[pass_.__module__]
    summary = inspect.cleandoc(pass_.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    doc = inspect.cleandoc(module.__doc__ or pass_.__doc__ or "")
    return Entry(pass_.name, pass_.exact, summary, doc, options(pass_))


def options(pass_: type[Pass]) -> list[Option]:
    """The options of a pass, its own first, with the text that stands under each in the source."""
    docs: dict[str, str] = {}
    for holder in reversed(pass_.__mro__):
        if dataclasses.is_dataclass(holder):
            docs |= _field_docs(holder)
    fields = dataclasses.fields(pass_)
    shared = {field.name for field in dataclasses.fields(Pass)}
    found = [
        Option(f.name, str(f.type), "" if f.default is dataclasses.MISSING else repr(f.default), docs.get(f.name, ""))
        for f in fields
    ]
    return sorted(found, key=lambda option: option.name in shared)


def _field_docs(holder: type) -> dict[str, str]:
    try:
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(holder))).body
    except (OSError, TypeError, ValueError):  # no source, as for a class made at run time
        return {}
    found: dict[str, str] = {}
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for field, text in pairwise(statements):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            if isinstance(text.value, ast.Constant) and isinstance(text.value.value, str):
                found[field.target.id] = inspect.cleandoc(text.value.value).replace("\n", " ")
    return found


def recipe_entries() -> list[RecipeEntry]:
    """Every bundled recipe."""
    return [recipe_entry(name) for name in recipes.names()]


def recipe_entry(name: str) -> RecipeEntry:
    """One bundled recipe. Raises ``OptionError`` if it is not valid."""
    return RecipeEntry(name, recipes.description(name), [str(pass_) for pass_ in recipes.recipe(name)])
