"""A document as one page of HTML that needs nothing else: styles, scripts and data are inside.

Texts come from models, which are untrusted. They are escaped wherever they stand; and the page's own policy lets a
browser run no script but the two that are inside, known by their hashes, and load nothing from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import msgspec

from onnxopt._version import VERSION
from onnxopt.report.document import (
    Axis,
    Body,
    Cell,
    Document,
    Facts,
    Figure,
    Notes,
    Section,
    Series,
    Shown,
    Table,
)
from onnxopt.report.files import require_plots
from onnxopt.supervise import one_line

_TONES = {True: "good", False: "bad", None: ""}


def page(document: Document) -> str:
    """The page. Raises ``OptionError`` without plotly."""
    require_plots()
    from plotly.offline import get_plotlyjs

    own = files(__package__)
    scripts = [get_plotlyjs(), own.joinpath("page.js").read_text("utf-8")]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    figures = [_figure(s.key, s.body) for s in document.sections if isinstance(s.body, Figure)]
    links = "".join(f'<a href="#{s.key}">{_text(s.title)}</a>' for s in document.sections)
    title = f"onnxopt {document.kind}"
    return "\n".join((
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(f'{title}: {document.title}')}</title>",
        f"<style>\n{own.joinpath('page.css').read_text('utf-8')}</style>\n</head>\n<body>\n<main>",
        f'<header><p class="kind">{_text(title)}</p><h1>{_text(document.title)}</h1></header>',
        f'<p class="verdict {_TONES[document.holds]}">{_text(document.verdict)}</p>\n<nav>{links}</nav>',
        *map(_section, document.sections),
        f"<footer>Made by onnxopt {VERSION}. The same as data is in the JSON file beside this page.</footer>\n</main>",
        f'<script type="application/json" id="figures">{_data(figures)}</script>',
        *(f"<script>{script}</script>" for script in scripts),
        "</body>\n</html>\n",
    ))  # fmt: skip


def _text(text: str) -> str:
    return escape(one_line(text))


def _data(value: Any) -> str:
    """JSON that cannot end the element that it stands in."""
    return msgspec.json.encode(value).decode().replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _section(section: Section) -> str:
    intro = f'<p class="intro">{_text(section.intro)}</p>\n' if section.intro else ""
    body = "\n".join(_body(section.key, section.body))
    return f'<section id="{section.key}">\n<h2>{_text(section.title)}</h2>\n{intro}{body}\n</section>'


def _body(key: str, body: Body) -> Iterator[str]:
    match body:
        case Table():
            kinds = [_kind(body, at) for at in range(len(body.columns))]
            headings = zip(kinds, body.columns, strict=True)
            yield '<div class="scroll"><table>\n<thead><tr>'
            yield "".join(f'<th scope="col" class="{kind}">{_text(c.heading)}</th>' for kind, c in headings)
            yield "</tr></thead>\n<tbody>"
            for at, row in enumerate(body.rows):
                cells = "".join(map(_cell, kinds, row))
                yield f'<tr class="marked">{cells}</tr>' if at in body.marked else f"<tr>{cells}</tr>"
            yield "</tbody></table></div>"
        case Facts():
            rows = (f"<dt>{_text(fact.label)}</dt><dd>{_text(_shown(fact.cell))}</dd>" for fact in body.facts)
            yield f"<dl>{''.join(rows)}</dl>"
        case Notes():
            yield f"<ul>{''.join(f'<li>{_text(note)}</li>' for note in body.notes)}</ul>"
        case Figure():
            bars = " bars" if any(series.style == "bars" for series in body.series) else ""
            yield f'<div class="plot{bars}" id="{key}-plot"></div>\n<noscript>The plot needs JavaScript.</noscript>'


def _kind(table: Table, at: int) -> str:
    """How wide a column wants to be."""
    if table.columns[at].figures:
        return "figures"
    longest = max((len(_shown(row[at])) for row in table.rows), default=0)
    return "short" if longest <= 24 else "name" if longest <= 48 else "text"


def _cell(kind: str, cell: Cell) -> str:
    number = isinstance(cell, Shown) and isinstance(cell.value, int | float) and not isinstance(cell.value, bool)
    value = f' data-value="{cell.value!r}"' if number and isinstance(cell, Shown) else ""
    return f'<td class="{kind}"{value}>{_text(_shown(cell))}</td>'


def _shown(cell: Cell) -> str:
    return cell.text if isinstance(cell, Shown) else cell


def _figure(key: str, figure: Figure) -> dict[str, Any]:
    """What the page's script draws. Plotly reads texts as a kind of HTML, so they are escaped."""
    return {
        "id": f"{key}-plot", "x": _axis(figure.x), "y": _axis(figure.y),
        "series": [_series(each) for each in figure.series if each.points],
        "limits": [{"y": y, "name": _text(name)} for y, name in figure.limits],
    }  # fmt: skip


def _axis(axis: Axis) -> dict[str, Any]:
    return {"title": _text(axis.title), "type": axis.scale, "share": axis.share}


def _series(series: Series) -> dict[str, Any]:
    points = series.points
    found: dict[str, Any] = {
        "name": _text(series.name), "style": series.style,
        "x": [_text(point.x) if isinstance(point.x, str) else point.x for point in points],
        "y": [point.y for point in points], "text": ["<br>".join(map(_text, point.about)) for point in points],
    }  # fmt: skip
    if series.style == "bars":
        found["shown"] = [f"{point.y:.1%}" for point in points]
    if all(point.low is not None for point in points):
        found["more"] = _distances([(point.y, point.high) for point in points])
        found["less"] = _distances([(point.low, point.y) for point in points])
    return found


def _distances(pairs: Sequence[tuple[float | None, float | None]]) -> list[float]:
    return [max(b - a, 0.0) if a is not None and b is not None else 0.0 for a, b in pairs]
