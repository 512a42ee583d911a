"""Write one page a pass into docs/passes from the docstrings; run it after changing one."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from pathlib import Path

from onnxopt import recipes
from onnxopt.pass_base import Pass
from onnxopt.passes import ALL

FOLDER = Path(__file__).parent / "passes"


def page(pass_: type[Pass]) -> str:
    """The page of one pass in Markdown."""
    module = inspect.cleandoc(sys.modules[pass_.__module__].__doc__ or "")
    used = [name for name in recipes.names() if any(type(p) is pass_ for p in recipes.recipe(name))]
    lines = [
        f"# {pass_.name}",
        "",
        f"*{'exact' if pass_.exact else 'lossy'}*"
        + (f", in the recipe{'s' if len(used) > 1 else ''} {', '.join(f'`{u}`' for u in used)}" if used else ""),
        "",
        module.replace("``", "`"),
        "",
        "| option | type | default | |",
        "|---|---|---|---|",
    ]
    docs = option_docs(pass_)
    for option in dataclasses.fields(pass_):
        default = "required" if option.default is dataclasses.MISSING else f"`{option.default!r}`"
        text = " ".join(docs.get(option.name, "").split()).replace("``", "`")
        lines.append(f"| `{option.name}` | `{option.type}` | {default} | {text} |".replace("  ", " "))
    return "\n".join([*lines, ""])


def option_docs(pass_: type[Pass]) -> dict[str, str]:
    """The string under each field, in the class and those it derives from."""
    found: dict[str, str] = {}
    for cls in reversed(pass_.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        body = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, doc in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
                    found[field.target.id] = str(doc.value.value)
    return found


def index() -> str:
    """The list of all passes."""
    lines = ["# The passes", "", "| pass | | in a sentence |", "|---|---|---|"]
    for pass_ in ALL:
        sentence = inspect.cleandoc(pass_.__doc__ or "").splitlines()[0].replace("``", "`")
        lines.append(f"| [{pass_.name}]({pass_.name}.md) | {'exact' if pass_.exact else 'lossy'} | {sentence} |")
    return "\n".join([*lines, ""])


def pages() -> dict[str, str]:
    """File name → content of everything in docs/passes."""
    return {"README.md": index(), **{f"{pass_.name}.md": page(pass_) for pass_ in ALL}}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    wanted = pages()
    for old in FOLDER.glob("*.md"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
