"""Pages need nothing from anywhere, and nothing that a model says is taken for markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import pytest

from onnxopt.report import Origin
from onnxopt.report.page import page
from onnxopt.report.write import document_of
from tests.report.cases import ENTITY, IMAGE, RESULTS, SCRIPT, Parsed

ORIGIN = Origin("m.onnx", "onnxopt", {}, {}, 1.0)


@pytest.fixture(scope="module", params=RESULTS)
def made(request: pytest.FixtureRequest) -> tuple[dict[str, Any], str]:
    document = document_of(RESULTS[request.param], ORIGIN)
    return document.json, page(document)


def test_nothing_is_loaded_from_anywhere(made: tuple[dict[str, Any], str]) -> None:
    parsed = Parsed(made[1])
    for tag, attributes in parsed.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form", "video", "audio")
        assert not attributes.keys() & {"src", "srcset", "action", "data", "background", "poster", "ping"}
        assert (attributes.get("href") or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    for style in parsed.texts["style"]:
        assert "@import" not in style
        assert "url(" not in style


def test_browsers_may_run_only_what_is_inside(made: tuple[dict[str, Any], str]) -> None:
    parsed = Parsed(made[1])
    (policy,) = (a["content"] for tag, a in parsed.elements if tag == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    scripts = re.findall(r"<script>(.*?)</script>", made[1], re.DOTALL)
    assert {base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts} == allowed
    assert len(allowed) == 2
    assert parsed.count("script") == 3


def test_names_of_nodes_are_text(made: tuple[dict[str, Any], str]) -> None:
    found, text = made
    said = json.dumps(found, ensure_ascii=False)
    for name in (SCRIPT, IMAGE):
        assert name not in text
    assert "onerror" not in {name for _, attributes in Parsed(text).elements for name in attributes}
    assert "\u202e" not in text
    assert "\x07" not in text
    if json.dumps(SCRIPT)[1:-1] in said:
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    if json.dumps(ENTITY, ensure_ascii=False)[1:-1] in said:
        assert "&amp;lt;b&amp;gt; %{x} &quot; &#x27; \\u202e\\x07" in text


def test_what_is_drawn_is_what_the_document_says(made: tuple[dict[str, Any], str]) -> None:
    found, text = made
    (data,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    figures = {figure["id"].removesuffix("-plot"): figure for figure in json.loads(data)}
    drawn = {key for key, body in found.items() if isinstance(body, dict) and "series" in body}
    assert figures.keys() == drawn
    for key, figure in figures.items():
        points = [[p["y"] for p in series] for series in found[key]["series"].values() if series]
        assert [series["y"] for series in figure["series"]] == points
        assert "<" not in "".join(t for s in figure["series"] for t in s["text"]).replace("<br>", "")


def test_everything_in_a_table_is_in_the_page(made: tuple[dict[str, Any], str]) -> None:
    found, text = made
    rows = sum(len(body) for body in found.values() if isinstance(body, list) and body and isinstance(body[0], dict))
    tables = sum(isinstance(body, list) and bool(body) and isinstance(body[0], dict) for body in found.values())
    assert Parsed(text).count("tr") == rows + tables


def test_the_same_result_gives_the_same_bytes() -> None:
    first, second = (page(document_of(RESULTS["auto"], ORIGIN)) for _ in range(2))
    assert first == second
