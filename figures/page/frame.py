"""One self-contained page that works offline: the frame around every report.

Nothing in a page is trusted but our own scripts: every text of a checkpoint is escaped, by the template, by the
embedding of the JSON and by the labels of the plots; and the page's content security policy allows three scripts by
their hash and no request at all. plotly.js, 4.8 MB of text, lies in the page compressed to 2 MB; report.js unpacks it.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import landscape
from figures.page.specification import Plot
from landscape.files import atomic
from landscape.results import digest
from landscape.results.result import plain


def render(
    template: str,
    plots: Sequence[Plot],
    *,
    arrays: Mapping[str, Any],
    summary: Mapping[str, Any],
    table: Sequence[Sequence[Any]],
    scenes: Sequence[Any] = (),
    scatter: Mapping[str, Any] | None = None,
    **shown: Any,
) -> str:
    """The page as text.

    Args:
        template: a file beside this one that extends base.html.
        plots: that the page draws.
        arrays: which the plots refer to.
        summary: what the page offers as JSON.
        table: rows of what it offers as CSV.
        scenes: what pictures can show instead, see `figures.page.specification.Scene`.
        scatter: columns that a plot of dots can show against each other, see `figures.page.joined_report`.
        shown: what the template shows: title, subtitle, tiles, notes, sections, command, ...
    """
    import jinja2
    from markupsafe import Markup

    early, script = _file("theme.js"), _file("report.js")
    plotly = (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    data = {
        "plots": {p.id: {"id": p.id, "group": p.group or p.id, "modes": p.modes} for p in plots},
        "scenes": scenes,
        "scatter": scatter,
        "arrays": arrays,
        "summary": summary,
        "table": table,
    }
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(
        **shown,
        version=landscape.__version__,
        css=Markup(_file("report.css")),
        early=Markup(early),
        # No time stamp: the same numbers make the same page.
        plotly=base64.b64encode(gzip.compress(plotly, mtime=0)).decode(),
        script=Markup(script),
        script_hashes=[Markup(script_hash(s)) for s in (early.encode(), plotly, script.encode())],
        data=Markup(embedded(data)),
    )


def write(page: str, path: str | Path) -> Path:
    """Write a page, atomically."""
    path = Path(path)
    with atomic(path) as temporary:
        # No newline translation: the scripts' hashes are of these very characters.
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return path


def embedded(data: Any) -> str:
    """JSON that may stand inside a <script> element: no tag, comment or line separator can end it."""
    text = json.dumps(plain(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def script_hash(script: bytes) -> str:
    """What the content security policy calls a script."""
    return "'sha256-" + base64.b64encode(bytes.fromhex(digest.of_parts([script]))).decode() + "'"


def facts(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, text) of every value that is there, those of nested mappings under both names."""
    for key, value in values.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from facts(value, f"{name}: ")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(str(v) for v in value)
        elif value is not None:
            yield name, f"{value:.6g}" if isinstance(value, float) else str(value)


def _file(name: str) -> str:
    return (resources.files("figures.page") / name).read_text(encoding="utf-8")
