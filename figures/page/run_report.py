"""report.html of a run: every measure over its steps as plots, a table of all checkpoints, what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from figures.page import frame
from figures.page.report import Section, count_passes, described
from figures.page.run import half_width, panels, products, shown, titles
from figures.page.specification import Plot, band, linear_log, rounded, slug, text
from landscape import MEASURES
from landscape.formatting import count, duration
from landscape.results.cells import BOUND, INTERVAL, Cell, finite
from landscape.results.result import LabelledArrays

_MOST = 16
"""Lines of one plot: as many as there are colors."""


def write(
    table: LabelledArrays, rows: Sequence[Mapping[str, Any]], unit: str, path: Path, *, command: str, facts: Any
) -> Path:
    """Write the report, atomically.

    Args:
        table: see `figures.page.run.as_table`; its label is the title.
        rows: a row per checkpoint, see `figures.page.run.measure_run`.
        unit: name of the axis of steps.
        path: the HTML file.
        command: what to type to make it again.
        facts: what the first checkpoint says of itself.
    """
    return frame.write(render(table, rows, unit, command=command, facts=facts), path)


def render(
    table: LabelledArrays, rows: Sequence[Mapping[str, Any]], unit: str, *, command: str, facts: Mapping[str, Any]
) -> str:
    """The page as text."""
    words = titles(rows)
    facts = {k: v for k, v in facts.items() if k not in ("epoch", "step")}
    drawn = list(_plots(table, unit, words))
    names = shown(table, unit)
    steps = Section("steps", f"Over the {unit}s", "", [drawn[i : i + 2] for i in range(0, len(drawn), 2)], [], [])
    others = [Section(id, name, "", [], [], []) for id, name in (("summary", "Summary"), ("provenance", "Provenance"))]
    return frame.render(
        "run.html",
        drawn,
        arrays={},
        summary={"checkpoints": rows, "command": command},
        table=_numbers(table, unit),
        title=table.label,
        subtitle=described(facts),
        tiles=_tiles(table, rows, unit),
        notes=list(table.provenance.get("notes") or ()),
        sections=[steps, *others],
        columns=[unit, *(_heading(name, words) for name in names)],
        lines=list(_lines(table, unit, names)),
        products=products(rows),
        costs=[_cost(key, words[key], rows) for key in words],
        facts=[fact for fact in frame.facts({**facts, **table.provenance}) if fact[1]],
        digests=[(Path(row["checkpoint"]).name, row["sha256"]) for row in rows],
        command=command,
    )


def _plots(table: LabelledArrays, unit: str, words: Mapping[str, str]) -> Iterator[Plot]:
    for key, columns in panels(table, unit, words).items():
        traces: list[dict[str, Any]] = []
        kinds: dict[str, None] = {}
        for i, name in enumerate(columns[:_MOST]):
            half = half_width(table, name)
            if half is not None and np.isfinite(half).any():
                traces += band(i, table[unit], table[name] - half, table[name] + half)
                kinds[_kind(table, name)] = None
            traces.append(_line(i, table, unit, name, len(columns) > 1))
        known = np.concatenate([table[name][np.isfinite(table[name])] for name in columns[:_MOST]])
        modes = linear_log(traces, unit, _axis(key))
        modes["linear"]["layout"]["yaxis"]["rangemode"] = "normal"
        positive = known.size and known.min() > 0 and key != "accuracy"
        if not positive:
            modes = {"": modes["linear"]}
        elif known.max() > 30 * known.min():
            modes = {"log": modes["log"], "linear": modes["linear"]}
        more = f" The first {_MOST} of {len(columns)}; all are in the downloads." if len(columns) > _MOST else ""
        said = f"The band is {' or '.join(kinds)}." if kinds else ""
        heading = {"loss": "Loss", "accuracy": "Accuracy"}.get(key, words.get(key, key))
        yield Plot(f"run-{slug(key)}", "steps", heading, f"{said}{more}".strip(), modes, group=f"run-{slug(key)}")


def _line(i: int, table: LabelledArrays, unit: str, name: str, several: bool) -> dict[str, Any]:
    label = name.rpartition(".")[2] if several else name
    return {
        "type": "scatter", "mode": "lines+markers", "x": rounded(table[unit]), "y": rounded(table[name]),
        "text": [text(n) for n in table["checkpoint"]], "name": text(label), "showlegend": several,
        "line": {"color": f"$series{i}"}, "marker": {"size": 6},
        "hovertemplate": f"{unit} %{{x}}: <b>%{{y:.6g}}</b><br>%{{text}}<extra>%{{fullData.name}}</extra>",
    }  # fmt: skip


def _kind(table: LabelledArrays, name: str) -> str:
    known = f"{name}.high" not in table.values and f"{name}.error_bound" in table.values
    return f"an {BOUND}" if known else f"a {INTERVAL}"


def _axis(key: str) -> str:
    if key in ("loss", "accuracy"):
        return key
    return str(MEASURES.entry(key.split(":")[0]).facts.get("unit") or "value")


def _tiles(table: LabelledArrays, rows: Sequence[Mapping[str, Any]], unit: str) -> list[dict[str, str]]:
    at = table[unit]
    facts = table.provenance
    tiles = [
        {"name": "Checkpoints", "value": count(len(rows)), "note": f"{unit} {count(at[0])} to {count(at[-1])}"},
        {"name": "Examples", "value": count(rows[0]["samples"]), "note": ""},
        {"name": "Parameters", "value": count(rows[0]["parameters"]), "note": str(facts.get("dtype") or "")},
    ]
    if facts.get("has_batch_norm", True) and facts.get("batch_norm"):
        tiles.append({"name": "BatchNorm", "value": str(facts["batch_norm"]), "note": "policy of the measures"})
    return tiles


def _heading(name: str, words: Mapping[str, str]) -> str:
    key = next((k for k in sorted(words, key=len, reverse=True) if name == k or name.startswith(f"{k}.")), "")
    if not key:
        return name[:1].upper() + name[1:]
    return words[key] if name == key else f"{words[key]}, {name.removeprefix(key + '.')}"


def _lines(table: LabelledArrays, unit: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What the template shows of each checkpoint."""
    halves = {name: half_width(table, name) for name in names}
    for i, at in enumerate(table[unit]):
        cells = []
        for name in names:
            half = halves[name]
            error = None if half is None else finite(float(half[i]))
            kind = "" if error is None else _kind(table, name).partition(" ")[2]
            cells.append(Cell(finite(float(table[name][i])), error, kind, as_percent=name == "accuracy"))
        yield {"label": int(at), "described": str(table["checkpoint"][i]), "cells": cells}


def _cost(key: str, words: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Passes and seconds of one measure at all checkpoints."""
    summaries = [row["measures"][key] for row in rows if key in row["measures"]]
    passes: dict[str, float] = {}
    for summary in summaries:
        for kind, number in (summary.get("cost") or {}).items():
            passes[kind] = passes.get(kind, 0.0) + (number or 0.0)
    return {
        "name": words,
        "passes": ", ".join(f"{count_passes(n)} {k.replace('_', ' ')}" for k, n in passes.items() if n) or "–",
        "time": duration(sum(summary.get("seconds") or 0.0 for summary in summaries)),
    }


def _numbers(table: LabelledArrays, unit: str) -> list[list[Any]]:
    """The content of run.csv."""
    names = [unit, *(n for n in table.values if n != unit)]
    return [names, *([table[n][i].item() for n in names] for i in range(len(table[unit])))]
