"""The verdicts of an invariance test, as the report shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures.page.meanings import meaning
from landscape.files import read_json
from landscape.formatting import number
from landscape.results.cells import finite

if TYPE_CHECKING:
    from figures.page.analysis import Analysis


@dataclass(frozen=True)
class Verdict:
    """One measure over all rescalings, as text."""

    name: str
    verdict: str
    good: bool
    spread: str
    low: str
    high: str


@dataclass(frozen=True)
class Table:
    """The verdicts for one checkpoint; `lead` says what was done and by how much the outputs moved."""

    label: str
    lead: str
    verdicts: tuple[Verdict, ...]


def invariance_tables(analyses: Sequence[Analysis]) -> list[Table]:
    """A table for every invariance test: among the measures, or written beside the checkpoint by its own command."""
    return [_table(a.label, s) for a in analyses for s in _summaries(a)]


def is_invariance(summary: Mapping[str, Any]) -> bool:
    """Whether this is the summary of an invariance test (it holds verdicts, not a value)."""
    held = summary.get("measures")
    return isinstance(held, Mapping) and all(isinstance(v, Mapping) and "relative_spread" in v for v in held.values())


def _summaries(a: Analysis) -> Iterator[Mapping[str, Any]]:
    held = [r.summary() for r in a.measures.values()]
    beside = Path(a.checkpoint).parent / "invariance" / "invariance.json"
    if beside.exists():
        stored = read_json(beside)
        # The verdicts of `landscape invariance` on this very checkpoint, not on one that was there before.
        held += [stored] if stored.get("sha256") == a.sha256 else []
    yield from (s for s in held if is_invariance(s) and s["measures"])


def _table(label: str, summary: Mapping[str, Any]) -> Table:
    change = finite((summary.get("outputs") or {}).get("max_relative_change"))
    number_of = max(len(v.get("values") or ()) for v in summary["measures"].values())
    lead = f"Each measure at {number_of} rescalings of the network that leave its function unchanged"
    lead += f" (its outputs moved by at most {number(change, 2)}, relatively)." if change is not None else "."
    return Table(label, lead, tuple(_verdict(k, v) for k, v in summary["measures"].items()))


def _verdict(name: str, entry: Mapping[str, Any]) -> Verdict:
    words = str(entry.get("verdict", ""))
    values = [v for v in map(finite, entry.get("values") or ()) if v is not None]
    return Verdict(
        meaning(name).label,
        words,
        words.lower().startswith("invariant"),
        number(finite(entry.get("relative_spread")), 2),
        number(min(values, default=None)),
        number(max(values, default=None)),
    )
