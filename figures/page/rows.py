"""The summary table's content: a row for each measure, a cell for each checkpoint, with errors and differences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from figures.page.meanings import meaning, said, setting, title
from landscape import statistics
from landscape.formatting import signed
from landscape.meaning import Meaning
from landscape.results.cells import BOUND, EXACT, INTERVAL, Cell, cell_of, error, finite

if TYPE_CHECKING:
    from figures.page.analysis import Analysis

Differences = Mapping[str, Sequence[Mapping[str, float] | None]]
"""Row key -> for each checkpoint {"value", "low", "high"}: its difference from the first; None where unknown."""


@dataclass(frozen=True)
class Row:
    """One line of the table; `cells` and `differences` have one entry a checkpoint (None where not measured).

    `flat` says which end of the values is the flat one, "small", "large" or "" for neither, and `name` is what a
    sentence calls a measure: without what its interval alone depends on.
    """

    key: str
    label: str
    setting: str
    meaning: str
    cells: tuple[Cell | None, ...]
    differences: tuple[Cell | None, ...] = ()
    flat: str = ""
    name: str = ""

    def difference_text(self, index: int) -> str:
        """Difference of checkpoint `index` from the first one, with its sign."""
        cell = self.differences[index] if self.differences else None
        return "–" if cell is None else signed(cell.short)


def notes(analyses: Sequence[Analysis]) -> list[str]:
    """What a reader of the numbers has to know of L, with the checkpoints that it concerns where there are several."""
    concerned: dict[str, list[str]] = {}
    for a in analyses:
        for note in a.provenance.get("notes") or ():
            concerned.setdefault(str(note), []).append(a.label)
    return [note if len(analyses) == 1 else f"{', '.join(labels)}: {note}" for note, labels in concerned.items()]


def rows(analyses: Sequence[Analysis], differences: Differences | None = None) -> list[Row]:
    """Every row of the table over `analyses`, in the order in which the first checkpoint has them.

    Args:
        analyses: one or several.
        differences: intervals computed elsewhere (for example over seeds); by default they follow from the errors.
    """
    made = [
        _fact("loss", [Cell(finite(a.loss)) for a in analyses], _of_split(analyses)),
        _fact("accuracy", [_accuracy(a) for a in analyses], _of_split(analyses)),
        *_at_the_end(analyses),
    ]
    keys = keys_of(analyses)
    for key in keys:
        made.extend(_measure(key, analyses))
    made = [r for r in made if any(c and c.value is not None for c in r.cells)]
    if len(analyses) == 1:
        return made
    return [_with_differences(r, (differences or {}).get(r.key)) for r in made]


def keys_of(analyses: Sequence[Analysis]) -> list[str]:
    """Names of the measures that any of the analyses has, in the order in which they came."""
    return list(dict.fromkeys(k for a in analyses for k in a.measures))


class Alike(NamedTuple):
    """Results of one measure that one plot may show together: they were computed in one way.

    `id` is the key, with a number where the checkpoints computed the measure in several ways; `axis` names the axis of
    its values over radii; `members` are (index of the checkpoint, checkpoint).
    """

    key: str
    id: str
    title: str
    axis: str
    members: list[tuple[int, Analysis]]


def alike(analyses: Sequence[Analysis], *, several: bool = False) -> Iterator[Alike]:
    """Every measure's results, those apart that are no numbers of one kind; `several` takes the title in the plural."""
    for key in keys_of(analyses):
        groups: dict[str, list[tuple[int, Analysis]]] = {}
        for i, a in enumerate(analyses):
            if (result := a.measures.get(key)) is not None:
                words = title(key, result.summary(), result.arguments, several=several)
                groups.setdefault(words, []).append((i, a))
        unit = meaning(key.split(":")[0]).unit
        axis = "rise of the loss" if unit == "loss" else unit or "value"
        for n, (words, members) in enumerate(groups.items(), 1):
            yield Alike(key, key if n == 1 else f"{key}-{n}", words, axis, members)


def _fact(key: str, cells: Sequence[Cell | None], of: str = "") -> Row:
    text = meaning(key)
    label = f"{of} {text.label.lower()}" if of else text.label
    return Row(key, label, "", text.general, tuple(cells))


def _of_split(analyses: Sequence[Analysis]) -> str:
    """What the sample is a part of, in front of "loss" and "accuracy"."""
    splits = {a.provenance.get("split") for a in analyses}
    return {"train": "Training", "test": "Test"}.get(str(next(iter(splits))), "") if len(splits) == 1 else ""


def _at_the_end(analyses: Sequence[Analysis]) -> Iterator[Row]:
    """What the training's own log says of the test set, unless the sample is of it."""
    if _of_split(analyses) != "Training":
        return
    ends = [_logged(a) for a in analyses]
    for name in ("test_loss", "test_accuracy"):
        cells = [Cell(finite(end.get(name)), as_percent=name == "test_accuracy") for end in ends]
        yield _fact(name, [c if c.value is not None else None for c in cells])


def _logged(a: Analysis) -> Mapping[str, float]:
    """The log's row of the checkpoint's epoch; empty where there is none."""
    return next((row for row in reversed(a.history or []) if row.get("epoch") == a.metadata.get("epoch")), {})


def _accuracy(a: Analysis) -> Cell:
    """With Wilson's interval."""
    p, n = finite(a.accuracy), a.classified
    if p is None or not n:
        return Cell(p, as_percent=True)
    wilson = statistics.share(p, n)
    return Cell(p, max(p - wilson.low, wilson.high - p), INTERVAL, as_percent=True)


def _measure(key: str, analyses: Sequence[Analysis]) -> list[Row]:
    """The rows of one measure: checkpoints that have computed it in another way stand in another row."""
    summaries = [a.measures[key].summary() if key in a.measures else None for a in analyses]
    ways = [None if s is None else _way(key, s, a) for s, a in zip(summaries, analyses, strict=True)]
    made = []
    for way in dict.fromkeys(w for w in ways if w is not None):
        made += _alike(key, analyses, [s if w == way else None for s, w in zip(summaries, ways, strict=True)])
    return made


def _way(key: str, summary: Mapping[str, Any], a: Analysis) -> tuple[str, str]:
    # An interval from subsets of the examples speaks of the same number.
    how = setting(key, summary, a.measures[key].arguments, without=("subsets",))
    return meaning(key.split(":")[0], summary).label, how


def _alike(key: str, analyses: Sequence[Analysis], summaries: Sequence[Mapping[str, Any] | None]) -> list[Row]:
    name, cells = key.split(":")[0], tuple(None if s is None else cell_of(s) for s in summaries)
    first, a = next((s, a) for s, a in zip(summaries, analyses, strict=True) if s is not None)
    text, how = meaning(name, first), setting(key, first, a.measures[key].arguments)
    if any(c is not None and c.value is not None for c in cells):
        line = said(name, first, a.loss) if len(analyses) == 1 else text.general
        apart = setting(key, first, a.measures[key].arguments, without=("subsets",))
        called = f"{_within(text.label)} ({apart})" if apart else _within(text.label)
        return [Row(key, text.label, how, line, cells, flat=text.flat, name=called)]
    return _generic(key, text, how, summaries, {*_NOT_VALUES, *a.measures[key].arguments})


def _within(label: str) -> str:
    """The label within a sentence: its first letter small, but for names and abbreviations."""
    return label if label.startswith(_NAMES) or not label[1:2].islower() else label[:1].lower() + label[1:]


_NAMES = ("Hessian", "Gauss", "Fisher", "Keskar", "Takeuchi")


def _generic(
    key: str, text: Meaning, how: str, summaries: Sequence[Mapping[str, Any] | None], without: set[str]
) -> list[Row]:
    """Rows for a measure that has no `value`: the fields that its meaning names, else a few of its other scalars."""
    names = list(dict.fromkeys(n for s in summaries if s for n, v in s.items() if finite(v) is not None))
    fields = text.fields or {
        n: (f"{text.label}: {n.replace('_', ' ')}", "", text.general)
        for n in [n for n in names if n not in without][:4]
    }
    return [
        Row(f"{key}.{n}", label, how, words, tuple(_field(s, n, bound) for s in summaries))
        for n, (label, bound, words) in fields.items()
    ]


_NOT_VALUES = {"seconds", "samples", "hvps"}


def _field(summary: Mapping[str, Any] | None, name: str, bound: str) -> Cell | None:
    if summary is None:
        return None
    half = finite(summary.get(bound))
    return Cell(finite(summary.get(name)), half, "" if half is None else BOUND)


def _with_differences(row: Row, intervals: Sequence[Mapping[str, float] | None] | None) -> Row:
    made = []
    for i, cell in enumerate(row.cells):
        stated = intervals[i] if intervals is not None and i < len(intervals) else None
        known = i > 0 and cell is not None and row.cells[0] is not None
        made.append((_stated(stated, row) if stated else _difference(row.cells[0], cell)) if known else None)
    return replace(row, differences=tuple(made))


def _stated(interval: Mapping[str, float], row: Row) -> Cell:
    half, kind = error(interval)
    as_percent = any(c.as_percent for c in row.cells if c)
    return Cell(finite(interval.get("value")), half, kind, as_percent=as_percent)


def _difference(first: Cell | None, other: Cell | None) -> Cell | None:
    if first is None or other is None or first.value is None or other.value is None:
        return None
    value = other.value - first.value
    if first.error is None or other.error is None:
        return Cell(value, as_percent=first.as_percent)
    if first.kind == other.kind == EXACT:
        return Cell(value, 0.0, EXACT)
    kinds = {first.kind, other.kind}
    half = math.hypot(first.error, other.error) if kinds == {INTERVAL} else first.error + other.error
    return Cell(value, half, INTERVAL if INTERVAL in kinds else BOUND, as_percent=first.as_percent)
