"""What a comparison says, by rule from its numbers: which is flatter, by how much, how sure; what speaks against it.

A ratio is a measure at one checkpoint over that at the first, where both are positive. Its interval is that of their
difference (paired, where both were measured on the same parts of the examples) in units of the first one's value: it
leaves out 1 where the difference leaves out 0, and then the measure tells the two checkpoints apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from figures.page.rows import Row
from landscape.formatting import beside, count, number

if TYPE_CHECKING:
    from figures.page.analysis import Analysis

ALIKE = 0.05
"""Relative difference of losses or of passes up to which two trainings count as equal."""
SAME = 0.005
"""The same up to which they are called equal in a sentence."""
NAMED = 3
"""Measures that a sentence names."""


@dataclass(frozen=True)
class Ratio:
    """A measure over that of the first checkpoint.

    Attributes:
        label: of the measure, with its setting.
        value: the ratio, above 0.
        low, high: its interval; nan where an error is not known.
        flat: whether "small" or "large" values are flat.
    """

    label: str
    value: float
    low: float
    high: float
    flat: str

    @property
    def known(self) -> bool:
        """Whether the error of the ratio is known."""
        return math.isfinite(self.low)

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 1."""
        return self.low > 1 or self.high < 1

    @property
    def flatter(self) -> bool:
        """Whether the checkpoint is on the flat side of the first."""
        return (self.value < 1) == (self.flat == "small")

    @property
    def flatness(self) -> float:
        """Sharpness relative to the first one's: below 1 is flatter, whichever end is the flat one."""
        return self.value if self.flat == "small" else 1 / self.value

    @property
    def text(self) -> str:
        """The ratio with its interval."""
        if not self.known:
            return f"{number(self.value, 2, zeros=True)}×"
        half = self.high - self.value
        if half < 0.005 * self.value:
            return f"{number(self.value, 2 if self.value < 1 else 3, zeros=True)}×"
        return f"{beside(self.value, half)}× [{beside(self.low, half)}, {beside(self.high, half)}]"


@dataclass(frozen=True)
class Answer:
    """The first screen of a comparison.

    Attributes:
        sentences: one for each checkpoint but the first.
        measures: labels of the measures that are compared.
        ranking: (label of a checkpoint, a ratio's text a measure), by the first measure, the flattest first.
        cautions: what differs between the checkpoints beside the method, and how to make the comparison fair.
    """

    sentences: tuple[str, ...]
    measures: tuple[str, ...]
    ranking: tuple[tuple[str, tuple[str, ...]], ...]
    cautions: tuple[str, ...]


def answer(analyses: Sequence[Analysis], table: Sequence[Row]) -> Answer | None:
    """What the rows of a comparison say; None for one checkpoint or where no measure of flatness was taken.

    Args:
        analyses: in the order of the columns; ratios are taken to the first.
        table: its rows, see `figures.page.rows.rows`.
    """
    compared = [row for row in table if row.flat]
    if len(analyses) < 2 or not compared:
        return None
    ratios = [[_ratio(row, i) for row in compared] for i in range(len(analyses))]
    return Answer(
        sentences=tuple(_sentence(analyses, i, [r for r in ratios[i] if r]) for i in range(1, len(analyses))),
        measures=tuple(row.name for row in compared),
        ranking=tuple(_ranking(analyses, ratios)),
        cautions=tuple(_cautions(analyses)),
    )


def _ratio(row: Row, index: int) -> Ratio | None:
    first, other, difference = row.cells[0], row.cells[index], row.differences[index]
    if first is None or other is None or not (first.value or 0) > 0 or not (other.value or 0) > 0:
        return None
    assert first.value is not None
    assert other.value is not None
    value, half = other.value / first.value, math.nan
    if index == 0:
        half = 0.0
    elif difference is not None and difference.error is not None:
        half = difference.error / first.value
    low = value - half if math.isnan(half) else max(value - half, 0.0)  # both are positive
    return Ratio(row.name, value, low, value + half, row.flat)


def _sentence(analyses: Sequence[Analysis], index: int, ratios: Sequence[Ratio]) -> str:
    """One comparison with the first checkpoint."""
    one, first = analyses[index].label, analyses[0].label
    flatter = [r for r in ratios if r.clear and r.flatter]
    sharper = [r for r in ratios if r.clear and not r.flatter]
    alike = [r for r in ratios if r.known and not r.clear]
    unknown = [r for r in ratios if not r.known]
    parts = []
    if flatter and sharper:
        parts.append(f"{one} and {first}: the measures disagree")
        parts.append(f"{one} is flatter by {_listed(flatter)}, sharper by {_listed(sharper)}")
    elif flatter or sharper:
        parts.append(f"{one} is {'flatter' if flatter else 'sharper'} than {first}: {_listed(flatter or sharper)}")
    elif alike:
        parts.append(f"{one} and {first} are not told apart by {_listed(alike)}")
    else:
        parts.append(f"Whether {one} or {first} is flatter is not known")
    if alike and (flatter or sharper):
        parts.append(f"not told apart by {_listed(alike)}")
    if unknown:
        parts.append(f"without an interval: {_listed(unknown)}")
    if not ratios:
        parts.append("no measure of flatness is positive at both")
    parts += [context] if (context := _context(analyses[0], analyses[index])) else []
    return "; ".join(parts) + "."


def _listed(ratios: Sequence[Ratio]) -> str:
    named = ", ".join(f"{r.label} {r.text}" for r in ratios[:NAMED])
    more = len(ratios) - NAMED
    return f"{named} and {more} more" if more > 0 else named


def _context(first: Analysis, other: Analysis) -> str:
    """At what loss, and for what cost."""
    split = {"train": "training ", "test": "test "}.get(str(first.provenance.get("split")), "")
    ratios = [
        (f"at {{}} {split}loss", other.loss / first.loss if first.loss > 0 and other.loss > 0 else None),
        ("with {} training passes", _passes_ratio(first, other)),
    ]
    return ", ".join(
        words.format("equal" if abs(r - 1) < SAME else f"{number(r, 2)}× its") for words, r in ratios if r is not None
    )


def _passes_ratio(first: Analysis, other: Analysis) -> float | None:
    costs = [_spent(a) for a in (first, other)]
    return costs[1] / costs[0] if costs[0] and costs[1] else None


def _spent(a: Analysis) -> float | None:
    """Cost of the training in forward passes of an example; a backward pass counts as two."""
    spent = a.metadata.get("spent")
    if not isinstance(spent, Mapping):
        return None
    forward, backward = spent.get("forward_examples"), spent.get("backward_examples")
    return forward + 2 * backward if isinstance(forward, int) and isinstance(backward, int) else None


def _ranking(
    analyses: Sequence[Analysis], ratios: Sequence[Sequence[Ratio | None]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    def rank(i: int) -> float:
        first = ratios[i][0]
        return math.inf if first is None else first.flatness

    for i in sorted(range(len(analyses)), key=rank):
        yield analyses[i].label, tuple("–" if r is None else "1" if i == 0 else r.text for r in ratios[i])


# -- what speaks against it ------------------------------------------------------------------------------------------


def _cautions(analyses: Sequence[Analysis]) -> Iterator[str]:
    """Where the checkpoints differ in more than in their method."""
    losses = [a.loss for a in analyses]
    if min(losses) <= 0 or max(losses) / min(losses) > 1 + ALIKE:
        yield (
            f"Losses differ, {number(min(losses), 3)} to {number(max(losses), 3)}: sharpness changes with the loss "
            "that a training has reached. To compare at equal loss: landscape figures matched-loss."
        )
    costs = [c for a in analyses if (c := _spent(a))]
    if len(costs) == len(analyses) and max(costs) / min(costs) > 1 + ALIKE:
        yield (
            f"The dearest training cost {number(max(costs) / min(costs), 2)}× the passes of the cheapest: "
            "train with the same --budget-passes for equal cost."
        )
    for name, words in _MUST_AGREE.items():
        values = list(dict.fromkeys(str(a.provenance.get(name)) for a in analyses))
        if len(values) > 1:
            yield f"The checkpoints are measured on {words}{_shown(values)}: their numbers are not of one function."
    kinds = list(dict.fromkeys(str(_named(a, "model")) for a in analyses))
    sizes = list(dict.fromkeys(f"{count(a.parameters)} parameters" for a in analyses))
    if len(kinds) > 1 or len(sizes) > 1:
        shown = kinds if len(kinds) > 1 else sizes
        yield f"The networks differ{_shown(shown)}: sharpness depends on the parametrization."
    if len(data := list(dict.fromkeys(str(_named(a, "data")) for a in analyses))) > 1:
        yield f"The networks were trained on different data{_shown(data)}."
    yield from _seeds(analyses)


_MUST_AGREE = {
    "sample_sha256": "different examples",
    "loss": "different losses",
    "batch_norm": "different BatchNorm policies",
    "dtype": "different precisions",
}


def _shown(values: Sequence[str]) -> str:
    return f" ({', '.join(values)})" if all(len(v) < 40 for v in values) else ""


def _named(a: Analysis, part: str) -> str | None:
    entry = a.metadata.get(part)
    return str(entry.get("name")) if isinstance(entry, Mapping) else None


def _seeds(analyses: Sequence[Analysis]) -> Iterator[str]:
    methods: dict[str, list[Any]] = {}
    for a in analyses:
        methods.setdefault(str(a.metadata.get("method")), []).append(a.settings.get("seed"))
    singles = [m for m, seeds in methods.items() if len(seeds) == 1]
    if not any("method" in a.metadata for a in analyses):
        yield "What trained these networks is not in the files: a seed for each is assumed, and another may reverse it."
    elif len(methods) > 1 and len(singles) == len(methods):
        yield "One seed for each method: another seed may reverse the order. Train each with --seed 1, 2, ... too."
    elif len(methods) > 1 and singles:
        yield "A single seed speaks for a method here: another seed may reverse the order."
    if len(singles) == len(methods) > 1 and len({str(s[0]) for s in methods.values()}) > 1:
        yield "The seeds differ: initial weights and order of the examples do too."
