"""Write one page a pass into docs/passes from the docstrings; run it after changing one."""

from __future__ import annotations

from pathlib import Path

from onnxopt import recipes
from onnxopt.pass_base import Pass
from onnxopt.passes import ALL
from onnxopt.recipes import catalogue

FOLDER = Path(__file__).parent / "passes"


def page(pass_: type[Pass]) -> str:
    """The page of one pass in Markdown."""
    entry = catalogue.entry(pass_)
    used = [name for name in recipes.names() if any(type(p) is pass_ for p in recipes.recipe(name))]
    lines = [
        f"# {pass_.name}",
        "",
        f"*{'exact' if pass_.exact else 'lossy'}*"
        + (f", in the recipe{'s' if len(used) > 1 else ''} {', '.join(f'`{u}`' for u in used)}" if used else ""),
        "",
        entry.doc.replace("``", "`"),
        "",
        "| option | type | default | |",
        "|---|---|---|---|",
    ]
    for option in entry.options:
        default = f"`{option.default}`" if option.default else "required"
        text = option.doc.replace("``", "`")
        lines.append(f"| `{option.name}` | `{option.type}` | {default} | {text} |".replace("  ", " "))
    return "\n".join([*lines, ""])


def index() -> str:
    """The list of all passes."""
    lines = ["# The passes", "", "| pass | | in a sentence |", "|---|---|---|"]
    for entry in catalogue.entries():
        sentence = entry.summary.replace("``", "`")
        lines.append(f"| [{entry.name}]({entry.name}.md) | {'exact' if entry.exact else 'lossy'} | {sentence} |")
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
