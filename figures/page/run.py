"""A run measured: every measure at each of its checkpoints, one row per checkpoint, kept as soon as it is there."""

from __future__ import annotations

import csv
import functools
import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from figures.page.meanings import title
from landscape import MEASURES
from landscape.errors import InputError, InputWarning
from landscape.files import write_bytes
from landscape.formatting import number
from landscape.progress import Bar
from landscape.results import digest
from landscape.results.journal import Journal
from landscape.results.result import LabelledArrays, plain
from landscape.shards import Claims
from landscape.shared_rows import opened
from landscape.statistics import Z
from trainers.monitor.columns import columns_of
from trainers.monitor.measurements import Measurements
from trainers.rebuild import Subject
from trainers.requests import MeasureRequest
from trainers.run_checkpoints import Stage
from trainers.subject_checks import Diverged

_KEY = "landscape analyze of a run"
"""What the rows of its journal belong to."""
_CHAIN = 4
"""Checkpoints whose eigenvectors start from one another's."""


def measure_run(
    first: Subject,
    stages: Sequence[Stage],
    read: Callable[[Path], Subject],
    requests: Sequence[MeasureRequest],
    journal: Path,
    claims: Claims | None = None,
) -> list[dict[str, Any]]:
    """One row per checkpoint, in their order; rows that an earlier call has kept are not computed again.

    Eigenvectors start from those of the checkpoint before, but for every fourth, which starts over: so a run that is
    shared or interrupted gets the same numbers. In the middle of the run they are computed from random ones too, so
    that what this saves is measured (`hvps_from_random` beside `hvps`). A checkpoint whose loss is not finite, or a
    measure that fails there, has no number.

    Args:
        first: the first checkpoint, brought back to life.
        stages: of the run.
        read: brings a checkpoint back to life.
        requests: measures.
        journal: where rows are kept.
        claims: the rows are shared with the other processes that claim them.

    Raises:
        InputError: a checkpoint of another network, or no checkpoint whose loss is finite.
    """
    settings = digest.of_configuration(_settings(first, requests))
    names = {s: f"{s.path.name} {digest.of_path(s.path)} {settings}" for s in stages}
    chained = Measurements(requests, first.companions).chained
    size = _CHAIN if chained else 1
    blocks = [stages[i : i + size] for i in range(0, len(stages), size)]
    compared = _compared(stages, size)

    def rows_of(block: Sequence[Stage], kept: Journal) -> list[dict[str, Any]]:
        measurements = Measurements(requests, first.companions)
        rows = []
        for stage in block:
            compute = functools.partial(_row, first, stage, read, measurements, stage == compared)
            rows.append(kept.row(names[stage], compute))
            bar.advance()
        return rows

    stored = Journal(journal, resume=True)
    try:
        with Bar("checkpoints", len(stages)) as bar:
            shared = {tuple(names[s] for s in b): functools.partial(rows_of, b, Journal()) for b in blocks}
            kept = opened(stored, _KEY, shared, claims, bar)
            if chained:
                for block in blocks:
                    _drop_interrupted(kept, [names[s] for s in block])
            rows = [row for block in blocks for row in rows_of(block, kept)]
        stored.remove_parts()
    finally:
        stored.close()
    _require_a_loss(rows)
    return rows


def _compared(stages: Sequence[Stage], size: int) -> Stage:
    """The one in the middle, or behind it where a chain begins there."""
    middle = len(stages) // 2
    begins = size > 1 and middle % size == 0 and middle + 1 < len(stages)
    return stages[middle + begins]


def _drop_interrupted(kept: Journal, names: Sequence[str]) -> None:
    """Of a chain that was cut off, its beginning too: what follows starts from its eigenvectors."""
    there = [name in kept.rows for name in names]
    if not all(there) and there == sorted(there, reverse=True):
        kept.drop([name for name in names if name in kept.rows])


def _require_a_loss(rows: Sequence[dict[str, Any]]) -> None:
    if all(row["loss"] is None or not math.isfinite(row["loss"]) for row in rows):
        raise InputError(
            f"the loss over the sample is nan or infinite at all {len(rows)} checkpoints, so that nothing can be "
            "measured: look for NaN in the inputs and the targets, and give the loss and the dtype of the training"
        )


def _settings(first: Subject, requests: Sequence[MeasureRequest]) -> dict[str, Any]:
    """What decides the numbers besides a checkpoint; the code of --model shows in the loss alone."""
    facts = first.problem.provenance()
    return plain(
        {
            "requests": [[r.key, r.measure, r.arguments, *_beside(first, r)] for r in requests],
            "parameters": list(first.problem.parameters.names),
            **{k: facts[k] for k in ("loss", "sample_sha256", "batch_norm", "dtype")},
            "loss_at_first": f"{float(first.problem.loss()):.4g}",
        }
    )


def _beside(first: Subject, request: MeasureRequest) -> list[dict[str, Any]]:
    facts = first.companions.facts(request)
    return [facts] if facts else []


def _row(
    first: Subject, stage: Stage, read: Callable[[Path], Subject], measurements: Measurements, compared: bool
) -> dict[str, Any]:
    row: dict[str, Any] = {"checkpoint": str(stage.path), "step": stage.step, "epoch": stage.epoch}
    row |= {"samples": first.problem.examples, "parameters": first.problem.dimension}
    row |= {"loss": None, "accuracy": None, "measures": {}}
    try:
        subject = first if stage.path == first.path else read(stage.path)
    except Diverged as error:
        warnings.warn(InputWarning(str(error)), stacklevel=2)
        return row | {"sha256": digest.of_path(stage.path)}
    _require_one_network(first, subject)
    at = subject.problem.evaluate()
    row |= {"sha256": subject.sha256, "loss": float(at.loss), "accuracy": float(at.accuracy)}
    if at.loss.isfinite():
        row["measures"] = dict(_summaries(subject, measurements, compared))
    else:
        text = f"{subject.path}: the loss over the sample is {float(at.loss):g}: nothing is measured there"
        warnings.warn(InputWarning(text), stacklevel=2)
    return plain(row)


def _summaries(subject: Subject, measurements: Measurements, compared: bool) -> Iterator[tuple[str, Any]]:
    for request in measurements.requests:
        try:
            start = measurements.start(request)
            summary = measurements.result(subject.problem, request, subject.companions).summary()
            if compared and start and "hvps" in summary:
                arguments = subject.companions.arguments(request)
                summary["hvps_from_random"] = MEASURES[request.measure](subject.problem, **arguments).summary()["hvps"]
            yield request.key, summary
        except InputError as error:
            warnings.warn(InputWarning(f"{subject.path}: {request.key} has no number: {error}"), stacklevel=2)


def _require_one_network(first: Subject, other: Subject) -> None:
    shapes, others = ([(n, tuple(p.shape)) for n, p in s.model.named_parameters()] for s in (first, other))
    kinds = [s.metadata.get("model") for s in (first, other)]
    if shapes != others or kinds[0] != kinds[1]:
        raise InputError(
            f"{other.path} holds another network ({_network(other)}) than {first.path} ({_network(first)}): "
            "give the checkpoints of one run"
        )


def _network(subject: Subject) -> str:
    name = (subject.metadata.get("model") or {}).get("name")
    weights = f"{sum(p.numel() for p in subject.model.parameters()):,} weights"
    return f"{name}, {weights}" if name else weights


def as_table(
    rows: Sequence[dict[str, Any]], unit: str, stages: Sequence[Stage], wanted: Sequence[str] = (), **facts: Any
) -> LabelledArrays:
    """The rows as arrays over the axis `step` (or `epoch`, `number`): loss, accuracy, every number with its error.

    Of the measures in `wanted`, one that has a number nowhere is a column of nan.
    """
    table = LabelledArrays(**facts)
    table.axis(unit, [stage.at(unit) for stage in stages])
    table.add("checkpoint", (unit,), np.array([Path(row["checkpoint"]).name for row in rows]))
    numbers = [_numbers(row) for row in rows]
    numbers[0] |= {key: None for key in wanted if not any(key in row["measures"] for row in rows)}
    for name in dict.fromkeys(name for row in numbers for name in row):
        values = [row.get(name) for row in numbers]
        table.add(name, (unit,), np.array([math.nan if v is None else v for v in values], dtype=float))
    return table


def _numbers(row: dict[str, Any]) -> dict[str, float | None]:
    """Column -> number of one checkpoint."""
    numbers = {name: row[name] for name in ("loss", "accuracy")}
    for key, summary in row["measures"].items():
        numbers |= columns_of(key, summary, MEASURES.entry(key.split(":")[0]))
    return numbers


def write_csv(table: LabelledArrays, unit: str, path: Path) -> None:
    """One row per checkpoint, a column per number; empty where there is none."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    names = [unit, *(n for n in table.values if n != unit)]
    writer.writerow(names)
    writer.writerows([_cell(table[n][i]) for n in names] for i in range(len(table[unit])))
    write_bytes(path, text.getvalue().encode())


def _cell(value: Any) -> str:
    if isinstance(value, np.floating):
        return "" if math.isnan(value) else repr(float(value))
    return str(value)


def text(table: LabelledArrays, unit: str) -> str:
    """The table for a terminal: a line per checkpoint, every value without its error."""
    names = shown(table, unit)
    rows = [[unit, *names], *([_brief(table[n][i]) for n in (unit, *names)] for i in range(len(table[unit])))]
    widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


def shown(table: LabelledArrays, unit: str) -> list[str]:
    """Names of the values, without what says how sure they are or what they cost."""
    about = (".stderr", ".error_bound", ".low", ".high", ".hvps")
    return [n for n in table.values if n not in (unit, "checkpoint") and not n.endswith(about)]


def titles(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Measure -> what was computed, in words."""
    return {key: title(key, one, {}, several="values" in one) for row in rows for key, one in row["measures"].items()}


def panels(table: LabelledArrays, unit: str, titles: Mapping[str, str]) -> dict[str, list[str]]:
    """What is drawn in one panel -> names of its values: the loss, the accuracy where there is one, every measure."""
    names = shown(table, unit)
    drawn = {"loss": ["loss"], "accuracy": ["accuracy"] if np.isfinite(table["accuracy"]).any() else []}
    drawn |= {key: [n for n in names if n == key or n.startswith(f"{key}.")] for key in titles}
    return {key: columns for key, columns in drawn.items() if columns}


def products(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line per measure of eigenvalues: its Hessian-vector products, and what its start vectors saved."""
    lines = []
    for key, words in titles(rows).items():
        spent = [(row, one["hvps"]) for row in rows if "hvps" in (one := row["measures"].get(key, {}))]
        if not spent:
            continue
        line = f"{words}: {sum(n for _, n in spent)} Hessian-vector products at {len(spent)} checkpoints"
        for row, warm in spent:
            if (cold := row["measures"][key].get("hvps_from_random")) is not None:
                name = Path(row["checkpoint"]).name
                saved = f"{cold - warm} saved" if cold > warm else "none saved"
                line += (
                    f"; {name} took {warm} from the vectors of the checkpoint before, {cold} from random ones: {saved}"
                )
        lines.append(line)
    return lines


def half_width(table: LabelledArrays, name: str) -> np.ndarray | None:
    """Of the error bound or the 95% interval of a value over the steps; None where neither is known."""
    if f"{name}.high" in table.values:
        return np.maximum(table[f"{name}.high"] - table[name], table[name] - table[f"{name}.low"])
    if f"{name}.error_bound" in table.values:
        return table[f"{name}.error_bound"]
    return Z * table[f"{name}.stderr"] if f"{name}.stderr" in table.values else None


def _brief(value: Any) -> str:
    return number(float(value)) if isinstance(value, np.floating) else str(value)
