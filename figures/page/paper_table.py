"""A comparison as a table for a paper: a line for each checkpoint, or for each method over its seeds."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from figures.page.differences import paired
from figures.page.rows import Row, rows
from landscape import statistics
from landscape.errors import InputError
from landscape.formatting import printable
from landscape.results.cells import INTERVAL, Cell

if TYPE_CHECKING:
    from figures.page.analysis import Analysis

SEEDS = "95% interval over seeds"


@dataclass(frozen=True)
class Column:
    """One measure: a cell a line, and its difference from the first line (None where unknown)."""

    key: str
    label: str
    cells: tuple[Cell | None, ...]
    differences: tuple[Cell | None, ...]

    def clear(self, line: int) -> bool:
        """Whether the difference's interval leaves out zero."""
        difference = self.differences[line]
        return difference is not None and difference.clear


@dataclass(frozen=True)
class PaperTable:
    """Names of the lines, columns, and notes that say what the errors and the stars are."""

    names: tuple[str, ...]
    columns: tuple[Column, ...]
    notes: tuple[str, ...]


def paper_table(analyses: Sequence[Analysis], wanted: Sequence[str] = ()) -> PaperTable:
    """The table of these analyses.

    Trainings that differ by their seed alone share a line: the mean over the seeds with Student's t interval, and the
    difference from the first line paired by seed where both have the same seeds.

    Args:
        analyses: the first one is what differences are taken from.
        wanted: keys of rows (loss, accuracy, hessian_trace, ...); default all.
    """
    table = rows(analyses, paired(analyses))
    keys = [row.key for row in table]
    if unknown := [key for key in wanted if key not in keys]:
        raise InputError(f"--measure {unknown[0]}: there is {', '.join(dict.fromkeys(keys))}")
    chosen = [row for key in dict.fromkeys(wanted) for row in table if row.key == key] or table
    several = {key for key in keys if keys.count(key) > 1}
    chosen = [replace(row, key=f"{row.key} ({row.setting})") if row.key in several else row for row in chosen]
    groups = _groups(analyses)
    if max(map(len, groups)) == 1:
        columns = [Column(r.key, _head(r), r.cells, r.differences or (None,)) for r in chosen]
        names = [printable(a.label) for a in analyses]
        return PaperTable(tuple(names), tuple(columns), tuple(_notes(analyses, columns)))
    columns = [_over_seeds(row, groups, analyses) for row in chosen]
    names = [_method(analyses[g[0]]) or analyses[g[0]].label for g in groups]
    names = [printable(analyses[g[0]].label if names.count(n) > 1 else n) for n, g in zip(names, groups, strict=True)]
    seeds = [len(g) for g in groups]
    counted = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    notes = _notes(analyses, columns, f"Means over {counted} seeds.")
    return PaperTable(tuple(names), tuple(columns), tuple(notes))


def _head(row: Row) -> str:
    return row.name[:1].upper() + row.name[1:] if row.name else row.label


def _groups(analyses: Sequence[Analysis]) -> list[list[int]]:
    """Indices of analyses whose trainings differ by their seed alone; what was not trained here stands alone."""
    groups: dict[str, list[int]] = {}
    for i, a in enumerate(analyses):
        groups.setdefault(_all_but_the_seed(a) or str(i), []).append(i)
    apart: list[list[int]] = []
    for members in groups.values():
        seeds = {analyses[i].settings["seed"] for i in members} if len(members) > 1 else set()
        # One seed twice is not a second training: the same one, measured in two places or in two ways.
        apart += [members] if len(seeds) == len(members) else [[i] for i in members]
    return sorted(apart)


_NOT_THE_TRAINING = ("seed", "save_every", "keep_every", "data_dir")


def _all_but_the_seed(a: Analysis) -> str:
    """What a training was, but for its seed, and on what it was measured; "" where that is not known."""
    if "seed" not in a.settings or not _method(a):
        return ""
    facts: list[Any] = [a.metadata.get(k) for k in ("model", "method", "epoch", "step")]
    data = a.metadata.get("data")
    if isinstance(data, Mapping):
        arguments = data.get("arguments")
        kept = {k: v for k, v in arguments.items() if k != "seed"} if isinstance(arguments, Mapping) else arguments
        data = {**data, "arguments": kept}
    settings = {k: v for k, v in a.settings.items() if k not in _NOT_THE_TRAINING}
    measured = [a.provenance.get(k) for k in ("split", "dtype", "batch_norm", "loss")]
    return json.dumps([facts, data, settings, a.parameters, a.samples, measured], sort_keys=True, default=str)


def _method(a: Analysis) -> str:
    method = a.metadata.get("method")
    return str(method.get("name") or "") if isinstance(method, Mapping) else ""


def _over_seeds(row: Row, groups: Sequence[Sequence[int]], analyses: Sequence[Analysis]) -> Column:
    values = [_by_seed(row, group, analyses) for group in groups]
    cells = [_mean(list(v.values()), row) for v in values]
    differences: list[Cell | None] = [None]
    for other in values[1:]:
        shared = list(other)
        alike = set(shared) == set(values[0]) and len(shared) > 1
        pairs = [other[s] - values[0][s] for s in shared] if alike else []
        differences.append(_mean(pairs, row) if pairs else None)
    return Column(row.key, _head(row), tuple(cells), tuple(differences))


def _by_seed(row: Row, group: Sequence[int], analyses: Sequence[Analysis]) -> dict[Any, float]:
    cells = {analyses[i].settings.get("seed"): row.cells[i] for i in group}
    return {seed: c.value for seed, c in cells.items() if c is not None and c.value is not None}


def _mean(values: Sequence[float], row: Row) -> Cell | None:
    if not values:
        return None
    estimate, as_percent = statistics.mean(values), any(c.as_percent for c in row.cells if c)
    half = (estimate.high - estimate.low) / 2
    known = half == half
    return Cell(estimate.value, half if known else None, SEEDS if known else "", as_percent=as_percent)


def _notes(analyses: Sequence[Analysis], columns: Sequence[Column], seeds: str = "") -> Iterator[str]:
    kinds = dict.fromkeys(c.kind for column in columns for c in column.cells if c and c.error_text)
    if seeds:
        yield seeds
    if kinds:
        yield f"±: {' or '.join(kinds)}."
    if any(column.clear(i) for column in columns for i in range(len(column.cells))):
        yield "*: the interval of the difference from the first line leaves out zero."
    if INTERVAL in kinds:
        yield "An interval speaks of these examples and probes, not of other training seeds."
    names = {"train": " of the training set", "test": " of the test set"}
    samples = {f"{a.samples:,} examples{names.get(str(a.provenance.get('split')), '')}" for a in analyses}
    yield f"Measured on {' or '.join(sorted(samples))}."


# -- forms -------------------------------------------------------------------------------------------------------------


def markdown(table: PaperTable) -> str:
    """A pipe table, notes below."""
    head = ["", *(_in_markdown(c.label) for c in table.columns)]
    lines = [head, ["---", *("---:" for _ in table.columns)]]
    for i, name in enumerate(table.names):
        lines.append([_in_markdown(name), *(_shown(c, i) for c in table.columns)])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{' '.join(table.notes)}\n"


def latex(table: PaperTable) -> str:
    r"""A tabular with the rules of booktabs (\usepackage{booktabs}); the notes are comments above it."""
    lines = [f"% {note}" for note in table.notes]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule"]
    lines += [" & ".join(["", *(_in_latex(c.label) for c in table.columns)]) + r" \\", r"\midrule"]
    for i, name in enumerate(table.names):
        lines.append(" & ".join([_in_latex(name), *(_number(_shown(c, i)) for c in table.columns)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def as_csv(table: PaperTable) -> str:
    """Numbers in full: value, error, kind of the error, difference from the first line and its error, by column."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parts = ("", " error", " error kind", " difference", " difference error")
    writer.writerow(["checkpoint", *(f"{c.key}{part}" for c in table.columns for part in parts)])
    for i, name in enumerate(table.names):
        line: list[Any] = [name]
        for column in table.columns:
            cell, difference = column.cells[i], column.differences[i]
            line += [cell.value, cell.error, cell.kind] if cell else [None] * 3
            line += [difference.value, difference.error] if difference else [None] * 2
        writer.writerow(line)
    return text.getvalue()


FORMS = {"latex": latex, "markdown": markdown, "csv": as_csv}


def _shown(column: Column, line: int) -> str:
    cell = column.cells[line]
    return "–" if cell is None else f"{cell.text}{'*' if column.clear(line) else ''}"


def _in_markdown(text: str) -> str:
    return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", " ".join(text.split()))


_ESCAPED = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_ESCAPED |= {c: f"\\{c}" for c in "&%$#_{}"}
_SIGNS = {"λ₁": r"$\lambda_1$", "λ": r"$\lambda$", "ρ": r"$\rho$", "σ": r"$\sigma$", "ε": r"$\varepsilon$"}
_SIGNS |= {"η": r"$\eta$", "²": "$^2$", "×": r"$\times$", "±": r"$\pm$", "−": "$-$", "–": "--", "∞": r"$\infty$"}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


def _in_latex(text: str) -> str:
    """Words: what LaTeX would read as commands is escaped, signs become its own."""
    escaped = "".join(_ESCAPED.get(c, c) for c in " ".join(text.split()))
    for sign, command in _SIGNS.items():
        escaped = escaped.replace(sign, command)
    return escaped


def _number(text: str) -> str:
    """A cell in math mode: powers of ten, signs, percent."""
    if text == "–":
        return "--"
    star = "{}^{*}" if text.endswith("*") else ""
    plain = re.sub(r"×10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", _power, text.rstrip("*"))
    for sign, command in (("±", r"\pm"), ("−", "-"), ("∞", r"\infty"), ("%", r"\%"), (",", "{,}")):
        plain = plain.replace(sign, command)
    return f"${plain}{star}$"


def _power(match: re.Match[str]) -> str:
    return rf" \times 10^{{{match[1].translate(_SUPERSCRIPTS)}}}"
