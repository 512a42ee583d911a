"""Pages as Chromium shows them: plots are drawn, nothing goes wrong, nothing sticks out, and nothing that a model
says is run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from onnxopt.report import Origin
from onnxopt.report.page import page
from onnxopt.report.write import document_of
from tests.report.cases import RESULTS, Parsed

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
_DARK, _LIGHT = "0", "1"


class Browser:
    """Headless Chromium."""

    def __init__(self, program: str, profile: Path) -> None:
        self._program, self._profile = program, profile

    def open(self, path: Path, *, scheme: str = _LIGHT) -> tuple[str, list[str]]:
        """The page after its scripts have run, and what they wrote to the console."""
        done = subprocess.run(
            [
                self._program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                f"--user-data-dir={self._profile}", f"--blink-settings=preferredColorScheme={scheme}",
                "--window-size=1280,1000", "--virtual-time-budget=10000", "--enable-logging=stderr", "--dump-dom",
                path.as_uri(),
            ],
            capture_output=True, text=True, timeout=240, check=True,
        )  # fmt: skip
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.fail(
            "reports are tested in Chromium, and there is none here: apt-get install chromium (or brew install "
            "chromium); to test all else, add --deselect tests/report/test_browser.py"
        )
    return Browser(program, tmp_path_factory.mktemp("profile"))


def _page(name: str) -> tuple[dict[str, Any], str]:
    document = document_of(RESULTS[name], Origin("m.onnx", "onnxopt", {}, {}, 1.0))
    return document.json, page(document)


@pytest.mark.parametrize("name", ["auto", "distill", "compare", "sensitivity-prune"])
def test_plots_are_drawn_and_nothing_goes_wrong(browser: Browser, name: str, tmp_path: Path) -> None:
    found, text = _page(name)
    (tmp_path / "r.html").write_text(text, encoding="utf-8")
    shown, console = browser.open(tmp_path / "r.html")
    assert console == []
    for key, body in found.items():
        if isinstance(body, dict) and "series" in body:
            plot = _between(shown, f'id="{key}-plot"', "</section>")
            assert '<svg class="main-svg"' in plot
            points = sum(map(len, body["series"].values()))
            assert len(re.findall(r'<path class="point"|<g class="point"', plot)) == points
    parsed = Parsed(shown)
    assert parsed.texts["title"][0] == f"onnxopt {found['kind']}: m.onnx"
    assert not {name for _, attributes in parsed.elements for name in attributes if name == "onerror"}
    assert parsed.count("img") == 0


def test_errors_would_be_seen(browser: Browser, tmp_path: Path) -> None:
    """The oracle of the test above works."""
    (tmp_path / "r.html").write_text("<title>t</title><script>document.title = 'ran'; absent()</script>")
    shown, console = browser.open(tmp_path / "r.html")
    assert "<title>ran</title>" in shown
    assert len(console) == 1
    assert "absent is not defined" in console[0]


def test_the_policy_keeps_strange_scripts_from_running(browser: Browser, tmp_path: Path) -> None:
    text = _page("compare")[1].replace("</main>", "<script>document.title = 'taken'</script></main>")
    (tmp_path / "r.html").write_text(text, encoding="utf-8")
    shown, console = browser.open(tmp_path / "r.html")
    assert "<title>taken</title>" not in shown
    assert any("Content Security Policy" in line for line in console)


_MEASURE = """<script>
const sizes = [document.documentElement.scrollWidth, innerWidth];
const plots = [...document.querySelectorAll(".main-svg")].map((svg) => svg.getBoundingClientRect().right);
const text = document.querySelector(".plot .xtick text, .plot .ytick text");
const colours = [getComputedStyle(document.body).backgroundColor, getComputedStyle(text).fill];
parent.postMessage(JSON.stringify({ sizes, plots, colours }), "*");
</script></body>"""


def _measured(browser: Browser, name: str, folder: Path, *, width: int, scheme: str) -> dict[str, Any]:
    """The page in a frame of this width; it says what it measures, which its policy would forbid."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", _page(name)[1])
    (folder / "r.html").write_text(text.replace("</body>", _MEASURE), encoding="utf-8")
    (folder / "frame.html").write_text(
        f"<script>onmessage = (said) => {{ document.body.dataset.said = said.data; }}</script><body>"
        f'<iframe src="r.html" style="border: 0; width: {width}px; height: 900px"></iframe></body>'
    )
    shown, _ = browser.open(folder / "frame.html", scheme=scheme)
    (said,) = (attributes["data-said"] for tag, attributes in Parsed(shown).elements if tag == "body")
    assert said is not None
    found: dict[str, Any] = json.loads(said)
    return found


@pytest.mark.parametrize("name", ["auto", "distill"])
def test_small_screens_need_not_scroll_aside(browser: Browser, name: str, tmp_path: Path) -> None:
    found = _measured(browser, name, tmp_path, width=400, scheme=_LIGHT)
    width, window = found["sizes"]
    assert window == 400
    assert width <= window
    assert found["plots"]
    assert max(found["plots"]) <= window


def test_dark_screens_get_a_dark_page_and_light_text(browser: Browser, tmp_path: Path) -> None:
    back, ink = {}, {}
    for scheme in (_DARK, _LIGHT):
        colours = _measured(browser, "auto", tmp_path, width=900, scheme=scheme)["colours"]
        back[scheme], ink[scheme] = (sum(map(int, re.findall(r"\d+", each)[:3])) for each in colours)
    assert back[_DARK] < 200
    assert back[_LIGHT] > 500
    assert ink[_DARK] > 500
    assert ink[_LIGHT] < 200


def _between(text: str, first: str, last: str) -> str:
    start = text.index(first)
    return text[start : text.index(last, start)]
