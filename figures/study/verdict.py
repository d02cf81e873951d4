"""Verdicts: a published claim, our value with an interval over seeds, and what follows from the two.

The rule. A claim states a region that a quantity lies in (a difference above 0, a spread below 1%). With the quantity's
two-sided 95% interval over seeds:

* the whole interval inside the region: **supported**;
* the whole interval outside: **not supported**;
* else, or with fewer than three seeds, or where the quantity could not be computed: **undecided**. So is a difference
  of exactly the bound on every seed: accuracies on a few hundred examples tie.

Quantities without sampling error (an identity in float64) are compared by their value. Intervals are Student's t over
seeds, of the differences paired by seed where methods are compared. "The lowest of several" is tested against each
rival (`statistics.against_each`). Each claim stands by itself, with a 95% interval: between claims nothing is adjusted,
and `chance` says what that means for a table of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from landscape.files import atomic, read_json, write_json
from landscape.results.result import plain
from landscape.statistics import MOST_DROPPED, Estimate

LEAST_SEEDS = 3
SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
RULE = (
    "supported: the 95% interval lies inside the claim's region; not supported: outside; undecided: otherwise, or "
    f"with fewer than {LEAST_SEEDS} seeds (of a bootstrap: rows or clusters). Exact quantities are compared by value. "
    "A claim against several rivals is adjusted for their number. Between claims nothing is: each errs in at most 5%."
)


@dataclass(frozen=True)
class Claim:
    """A published statement about one quantity.

    Attributes:
        text: the claim, in a sentence.
        quantity: what was computed, in words.
        published: the paper's value, or "-".
        ours: our value.
        above: the claim holds above this; None for no bound.
        below: the claim holds below this.
        unit: of the quantity.
        note: what a reader has to know besides.
    """

    text: str
    quantity: str
    published: str
    ours: Estimate
    above: float | None = None
    below: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """Supported, not supported or undecided: the rule at the top of this file."""
        if self.above is None and self.below is None:
            raise ValueError(f"the claim {self.text!r} states no region")
        e = self.ours
        few = e.kind != "exact" and e.n < LEAST_SEEDS
        if few or not (math.isfinite(e.low) and math.isfinite(e.high)):
            return UNDECIDED
        above = -math.inf if self.above is None else self.above
        below = math.inf if self.below is None else self.below
        if e.low > above and e.high < below:
            return SUPPORTED
        touching = e.low == e.high and e.kind != "exact" and e.low in (above, below)
        if (e.high <= above or e.low >= below) and not touching:
            return NOT_SUPPORTED
        return UNDECIDED

    def entry(self) -> dict[str, Any]:
        """Plain values for the JSON file."""
        return plain({**asdict(self), "verdict": self.verdict})


def chance(claims: int) -> str:
    """What unadjusted intervals mean for that many claims with sampling error; empty for a single one."""
    if claims < 2:
        return ""
    return (
        f"{claims} of these rest on intervals: were each of their quantities exactly at its bound, about "
        f"{0.05 * claims:.2g} would be decided by chance alone."
    )


def write(stem: Path, claims: Sequence[Claim], facts: dict[str, Any]) -> None:
    """Write `stem`-verdict.json and `stem`-verdict.md."""
    content = {"figure": stem.name, "rule": RULE, "facts": plain(facts), "claims": [c.entry() for c in claims]}
    write_json(stem.with_name(f"{stem.name}-verdict.json"), content)
    _write_text(stem.with_name(f"{stem.name}-verdict.md"), f"# {stem.name}\n\n{_table(content)}\n{_rule([content])}\n")


def collect(directory: Path) -> Path:
    """Write verdicts.md from every NAME-verdict.json in the directory, with the number of each outcome."""
    contents = [read_json(p) for p in sorted(directory.glob("*-verdict.json"))]
    outcomes = [c["verdict"] for f in contents for c in f["claims"]]
    counts = ", ".join(f"{outcomes.count(v)} {v}" for v in (SUPPORTED, NOT_SUPPORTED, UNDECIDED))
    parts = [f"# Verdicts\n\n{len(outcomes)} claims: {counts}.\n\n{_rule(contents)}\n"]
    parts += [f"## {f['figure']}\n\n{_table(f)}" for f in contents]
    path = directory / "verdicts.md"
    _write_text(path, "\n".join(parts))
    return path


def _rule(contents: Sequence[dict[str, Any]]) -> str:
    drawn = sum(c["ours"]["kind"] != "exact" for f in contents for c in f["claims"])
    return " ".join(filter(None, (RULE, chance(drawn))))


def _table(content: dict[str, Any]) -> str:
    facts = content["facts"]
    head = f"{facts['title']}. Preset {facts['preset']}, {facts['source']}.\n"
    rows = [
        "| claim | quantity | published | ours (95% interval) | n | claim holds | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    notes: list[str] = []
    for c in content["claims"]:
        mark = ""
        if note := " ".join(filter(None, (c["note"], _dropped(c["ours"])))):
            if note not in notes:
                notes.append(note)
            mark = f" [{notes.index(note) + 1}]"
        cells = [c["text"] + mark, c["quantity"], c["published"], _value(c), str(c["ours"]["n"]), _region(c)]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in [*cells, f"**{c['verdict']}**"]) + " |")
    return "\n".join([head, *rows, "", *(f"[{i}] {note}\n" for i, note in enumerate(notes, 1))]) + "\n"


def _dropped(e: dict[str, Any]) -> str:
    if not e.get("dropped"):
        return ""
    outcome = "left out" if e["dropped"] <= MOST_DROPPED * e["draws"] else "too many for an interval"
    return f"{e['dropped']} of {e['draws']} bootstrap draws gave no number: {outcome}."


def _value(claim: dict[str, Any]) -> str:
    e = claim["ours"]
    if e["value"] is None:
        return "not computed"
    unit = f" {claim['unit']}" if claim["unit"] else ""
    if e["kind"] == "exact":
        return f"{e['value']:.3g}{unit} (exact)"
    if e["low"] is None:
        return f"{e['value']:.3g}{unit} (no interval)"
    # A difference of equal means is rounding: 0, not 2.8e-15.
    value = 0.0 if abs(e["value"]) < 1e-9 * (e["high"] - e["low"]) else e["value"]
    return f"{value:.3g} [{e['low']:.3g}, {e['high']:.3g}]{unit}"


def _region(claim: dict[str, Any]) -> str:
    parts = [f"above {claim['above']:g}"] if claim["above"] is not None else []
    parts += [f"below {claim['below']:g}"] if claim["below"] is not None else []
    return " and ".join(parts)


def _write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
