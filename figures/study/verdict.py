"""Verdicts: a published claim, our value with an interval over seeds, and what follows from the two.

The rule. A claim states a region that a quantity lies in (a difference above 0, a spread below 1%). With the quantity's
two-sided 95% interval over seeds:

* the whole interval inside the region: **supported**;
* the whole interval outside: **not supported**;
* else, or with fewer than three seeds, or where the quantity could not be computed: **undecided**. So is a difference
  of exactly the bound on every seed: accuracies on a few hundred examples tie.

Quantities without sampling error (an identity in float64) are compared by their value. Intervals are Student's t over
seeds, of the differences paired by seed where methods are compared; each is a 95% interval of its own, not adjusted for
the number of claims.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from landscape.files import atomic, write_json
from landscape.results.result import plain

LEVEL = 0.95
LEAST_SEEDS = 3
MOST_DROPPED = 0.05
"""Share of bootstrap draws that may give no number: leaving out more would move the interval's ends."""
SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"
RULE = (
    "supported: the 95% interval lies inside the claim's region; not supported: outside; undecided: otherwise, or "
    f"with fewer than {LEAST_SEEDS} seeds (of a bootstrap: rows or clusters). Exact quantities are compared by value. "
    "Intervals are not adjusted for the number of claims."
)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval.

    Attributes:
        value: the point estimate.
        low: lower end.
        high: upper end.
        n: seeds (or other independent draws, clusters of a cluster bootstrap) behind it.
        kind: how the interval was made: "t", "paired t", "t of ln", "bootstrap", "cluster bootstrap", "exact".
        draws: of a bootstrap.
        dropped: draws that gave no finite number and were left out; more than 5% leave no interval.
    """

    value: float
    low: float
    high: float
    n: int
    kind: str
    draws: int = 0
    dropped: int = 0


def mean(values: Sequence[float] | np.ndarray, kind: str = "t") -> Estimate:
    """Mean over seeds with Student's t interval; no interval (nan) for fewer than two values."""
    from scipy import stats

    x = np.asarray(values, dtype=np.float64).ravel()
    if len(x) < 2 or not np.isfinite(x).all():
        value = float(x.mean()) if len(x) else math.nan
        return Estimate(value, math.nan, math.nan, len(x), kind)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Estimate(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, len(x), kind)


def paired(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> Estimate:
    """Mean of a - b, paired by seed."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape} cannot be paired")
    return mean(a - b, "paired t")


def geometric_mean(values: Sequence[float] | np.ndarray) -> Estimate:
    """Geometric mean of positive values, Student's t interval of the logarithm: for spreads and ratios."""
    x = np.asarray(values, dtype=np.float64)
    e = mean(np.log(np.where(x > 0, x, np.nan)), "t of ln")
    return Estimate(math.exp(e.value), math.exp(e.low), math.exp(e.high), e.n, e.kind)


def exact(value: float) -> Estimate:
    """A quantity without sampling error."""
    return Estimate(float(value), float(value), float(value), 1, "exact")


def bootstrap(
    statistic: Callable[..., float],
    *columns: np.ndarray,
    clusters: Sequence[Any] | np.ndarray | None = None,
    seed: int = 0,
    draws: int = 2000,
) -> Estimate:
    """Expanded percentile interval of statistic(*columns) over resampled rows, or over whole clusters of rows.

    Rows that share something (a method's seeds) are no independent observations: with `clusters`, whole clusters are
    drawn with replacement and every one keeps all of its rows (Field and Welsh 2007). n is then the number of clusters.

    Args:
        statistic: of the columns; nan or infinite where it cannot be computed.
        columns: one entry a row each.
        clusters: (rows,) label of each row's cluster; None: every row is one of its own.
        seed: of the draws.
        draws: resamples.

    Returns:
        The estimate; without interval (nan) where more than 5% of the draws gave no finite number.
    """
    rows = len(columns[0])
    labels = np.arange(rows) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    if len(labels) != rows:
        raise ValueError(f"{len(labels)} labels of clusters for {rows} rows")
    members = [np.flatnonzero(labels == i) for i in range(int(labels.max()) + 1)]
    generator = np.random.default_rng(seed)
    picks = (
        np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))]) for _ in range(draws)
    )
    found = np.array([statistic(*(c[pick] for c in columns)) for pick in picks], dtype=np.float64)
    finite = found[np.isfinite(found)]
    dropped = draws - len(finite)
    kind = "bootstrap" if clusters is None else "cluster bootstrap"
    low = high = math.nan
    if dropped <= MOST_DROPPED * draws:
        tail = _expanded_tail(len(members))
        low, high = (float(q) for q in np.quantile(finite, [tail, 1 - tail]))
    return Estimate(float(statistic(*columns)), low, high, len(members), kind, draws, dropped)


def _expanded_tail(n: int) -> float:
    """Share of the draws beyond each end of the interval.

    Percentiles of n resampled rows are too narrow as a normal interval with the biased variance is: both factors,
    sqrt(n / (n - 1)) and Student's t for the normal quantile, are put into the level (Hesterberg 2015,
    arXiv 1411.5279, the expanded percentile interval).
    """
    from scipy import stats

    if n < 2:
        return 0.0
    return float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf((1 + LEVEL) / 2, n - 1)))


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


def write(stem: Path, claims: Sequence[Claim], facts: dict[str, Any]) -> None:
    """Write `stem`-verdict.json and `stem`-verdict.md."""
    content = {"figure": stem.name, "rule": RULE, "facts": plain(facts), "claims": [c.entry() for c in claims]}
    write_json(stem.with_name(f"{stem.name}-verdict.json"), content)
    _write_text(stem.with_name(f"{stem.name}-verdict.md"), f"# {stem.name}\n\n{_table(content)}\n{RULE}\n")


def collect(directory: Path) -> Path:
    """Write verdicts.md from every NAME-verdict.json in the directory, with the number of each outcome."""
    found = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(directory.glob("*-verdict.json"))]
    outcomes = [c["verdict"] for f in found for c in f["claims"]]
    counts = ", ".join(f"{outcomes.count(v)} {v}" for v in (SUPPORTED, NOT_SUPPORTED, UNDECIDED))
    parts = [f"# Verdicts\n\n{len(outcomes)} claims: {counts}.\n\n{RULE}\n"]
    parts += [f"## {f['figure']}\n\n{_table(f)}" for f in found]
    path = directory / "verdicts.md"
    _write_text(path, "\n".join(parts))
    return path


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
