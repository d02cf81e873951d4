"""report.html: one self-contained page about one checkpoint or several, that works offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures.page import frame
from figures.page.answer import answer
from figures.page.grids import Remark, grids
from figures.page.invariance_table import invariance_tables
from figures.page.plots import plots
from figures.page.rows import Differences, Row, notes, rows
from figures.page.specification import Plot
from landscape.formatting import count, duration, number, percent

if TYPE_CHECKING:
    from figures.page.analysis import Analysis

SECTIONS = {
    "surface": ("Loss surface", ""),
    "sharpness": (
        "Sharpness against radius",
        "How much the loss rises inside a ball around the weights. Each measure has a ball of its own shape: compare "
        "checkpoints within a panel, not radii between panels.",
    ),
    "curvature": ("Curvature", ""),
    "layers": ("Layer by layer", ""),
    "training": ("Training", ""),
}


@dataclass(frozen=True)
class Section:
    """A heading with rows of plots, and what stands around them."""

    id: str
    name: str
    lead: str
    rows: list[list[Plot]]
    modes: list[str]
    checks: list[tuple[str, tuple[Remark, ...]]]


def write(
    analyses: Sequence[Analysis], path: str | Path, *, command: str = "", differences: Differences | None = None
) -> Path:
    """Write the report of one or several analyses to `path`, atomically.

    Args:
        analyses: in the order of the columns; differences are taken from the first.
        path: the HTML file.
        command: what to type to make it again.
        differences: intervals of the differences computed elsewhere; see `figures.page.rows.Differences`.
    """
    return frame.write(render(analyses, command=command, differences=differences), path)


def render(analyses: Sequence[Analysis], *, command: str = "", differences: Differences | None = None) -> str:
    """The page as text."""
    table = rows(analyses, differences)
    drawn, arrays = plots(analyses)
    tables = invariance_tables(analyses)
    sections = _sections(drawn, analyses)
    names = [Section("summary", "Summary", "", [], [], []), *sections]
    if tables:
        names.append(Section("invariance", "Invariance", "", [], [], []))
    return frame.render(
        "report.html",
        drawn,
        arrays=arrays,
        summary={"checkpoints": [a.summary() for a in analyses], "command": command},
        table=_table(table, analyses),
        scenes=next(([asdict(s) for s in p.choices] for p in drawn if p.choices), []),
        title=_title(analyses),
        subtitle=_subtitle(analyses),
        tiles=_tiles(analyses[0]) if len(analyses) == 1 else [],
        notes=notes(analyses),
        answer=answer(analyses, table),
        checkpoints=[_checkpoint(a) for a in analyses],
        rows=table,
        sections=[*names, Section("provenance", "Provenance", "", [], [], [])],
        invariance=tables,
        command=command,
    )


def _sections(drawn: Sequence[Plot], analyses: Sequence[Analysis]) -> list[Section]:
    sections = []
    for key, (name, lead) in SECTIONS.items():
        plots = [p for p in drawn if p.section == key]
        if not plots:
            continue
        modes = next((list(p.modes) for p in plots if p.group == key and len(p.modes) > 1), [])
        checks = [(g.label, g.checks) for g in grids(analyses)] if key == "surface" else []
        if key == "surface" and any(p.three_d for p in plots):
            lead = (
                "Drag to turn, scroll to zoom, point to read the loss; with the keyboard: arrow keys, + and −. Between "
                "the computed points (button Points) the surface is interpolated, for the eye only."
            )
            if choices := next((p.choices for p in plots if p.choices), ()):
                shown = sum(p.three_d for p in plots)
                lead += (
                    f" A browser keeps {shown} pictures in 3-D: these are the first {shown} of {len(choices)} "
                    "checkpoints, and the box above each shows any other one in its place."
                )
            if len(analyses) > 1:
                if "rise" in modes:
                    lead += " Rise: of the loss above that of each checkpoint's own trained weights (the dot)."
                lead += " Colors, contour levels and heights are the same for every checkpoint, and all turn together."
        sections.append(Section(key, name, lead, _rows(plots, len(analyses)), modes, checks))
    return sections


def _rows(plots: Sequence[Plot], checkpoints: int) -> list[list[Plot]]:
    """Plots that belong side by side: one kind over several checkpoints, both pictures of one surface."""
    kinds: dict[str, list[Plot]] = {}
    for plot in plots:
        row = "surface" if checkpoints == 1 and plot.row in ("3d", "contour") else plot.row
        kinds.setdefault(row, []).append(plot)
    return list(kinds.values())


def _title(analyses: Sequence[Analysis]) -> str:
    if len(analyses) == 1:
        return analyses[0].label
    labels = [a.label for a in analyses]
    return " against ".join(labels) if len(labels) == 2 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def _subtitle(analyses: Sequence[Analysis]) -> str:
    return described(analyses[0].metadata) if len(analyses) == 1 else f"{len(analyses)} checkpoints side by side"


def described(facts: Mapping[str, Any]) -> str:
    """One phrase about a checkpoint: "mlp on digits, trained with sam, epoch 20"."""
    name = {k: _name(facts.get(k)) for k in ("model", "data", "method")}
    parts = [" on ".join(n for n in (name["model"], name["data"]) if n)]
    parts += [f"trained with {name['method']}"] if name["method"] else []
    parts += [f"epoch {facts['epoch']}"] if isinstance(facts.get("epoch"), int) else []
    return ", ".join(p for p in parts if p)


def _name(entry: Any) -> str:
    return str(entry.get("name") or "") if isinstance(entry, Mapping) else str(entry or "")


def _tiles(a: Analysis) -> list[dict[str, str]]:
    split = str(a.provenance.get("split") or "")
    tiles = [
        {"name": "Loss", "value": number(a.loss), "note": f"mean over {a.provenance.get('weighing', 'examples')}"},
        {"name": "Accuracy", "value": percent(a.accuracy), "note": ""},
        {"name": "Examples", "value": count(a.samples), "note": f"{split} set" if split else ""},
        {"name": "Parameters", "value": count(a.parameters), "note": str(a.provenance.get("dtype") or "")},
    ]
    # The policy changes every number, but a network without such layers has none.
    if a.provenance.get("has_batch_norm", True) and a.provenance.get("batch_norm"):
        tiles.append({"name": "BatchNorm", "value": str(a.provenance["batch_norm"]), "note": "policy of the measures"})
    return tiles


def _checkpoint(a: Analysis) -> dict[str, Any]:
    """What the template shows of one checkpoint, all of it text."""
    facts = [("checkpoint", a.checkpoint), ("SHA-256", a.sha256)]
    facts += [
        (name, value) for name, value in frame.facts({**a.metadata, **a.provenance}) if value not in ("", a.sha256)
    ]
    results = dict(a.measures) if a.surface is None else {**a.measures, "surface": a.surface}
    return {
        "label": a.label,
        "described": described(a.metadata),
        "loss": number(a.loss),
        "accuracy": percent(a.accuracy),
        "parameters": count(a.parameters),
        "samples": count(a.samples),
        "sha256": a.sha256,
        "facts": facts,
        "costs": [_cost(name, result) for name, result in results.items()],
    }


def _cost(name: str, result: Any) -> dict[str, str]:
    passes = [f"{count_passes(v)} {k.replace('_', ' ')}" for k, v in (result.cost or {}).items() if v]
    arguments = [f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in result.arguments.items()]
    return {
        "name": name.replace("_", " "),
        "arguments": ", ".join(arguments),
        "passes": ", ".join(passes) or "–",
        "time": duration(result.seconds),
    }


def count_passes(value: float) -> str:
    """Passes are whole as a rule; a part of the sample makes fractions."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def _table(table: Sequence[Row], analyses: Sequence[Analysis]) -> list[list[Any]]:
    """The summary table as rows for CSV: numbers in full, not as they are shown."""
    head: list[Any] = ["key", "measure", "setting"]
    for i, a in enumerate(analyses):
        head += [a.label, f"{a.label} error", f"{a.label} error kind"]
        head += [f"{a.label} minus {analyses[0].label}", f"{a.label} difference error"] if i else []
    lines = [head]
    for row in table:
        line: list[Any] = [row.key, row.label, row.setting]
        for i, cell in enumerate(row.cells):
            line += [cell.value, cell.error, cell.kind] if cell else [None, None, None]
            if i:
                difference = row.differences[i]
                line += [difference.value, difference.error] if difference else [None, None]
        lines.append(line)
    return lines
