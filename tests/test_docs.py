"""The generated pages are those of the code, and the README's links lead somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest

import onnxopt

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_pages_of_passes_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    found = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "passes").glob("*.md")}
    assert found == generate.pages(), "run python docs/generate.py"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_public_names_and_modules_do_not_clash() -> None:
    """``onnxopt.x`` must be the same thing whatever was imported before."""
    modules = {path.stem for path in (ROOT / "onnxopt").iterdir()}
    assert not modules & set(onnxopt.__all__)
    for name in onnxopt.__all__:
        assert getattr(onnxopt, name) is not None
