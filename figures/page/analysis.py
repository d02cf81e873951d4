"""What is known of one checkpoint or several: all that tables, figures and the report read."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from figures.page.meanings import labelled
from landscape.results.result import Result, plain
from landscape.surfaces.result import Surface
from trainers.loop.run_directory import read_rows


@dataclass(frozen=True)
class Analysis:
    """Everything that is known of one checkpoint; figures and reports read this and nothing else.

    Attributes:
        label: short name, unique within a comparison.
        checkpoint: path as given.
        sha256: of the checkpoint's bytes.
        loss: L(w) over the sample.
        accuracy: in [0, 1]; nan where it has no meaning.
        samples: number of examples.
        classified: number of those whose class counts, which the accuracy runs over.
        parameters: dimension d of w.
        measures: key -> result.
        surface: the loss surface, or None.
        history: rows of history.csv beside the checkpoint, or None.
        examples: "loss" of each example (n,), where there is one value per example, and "accuracy" of each whose class
            counts.
        metadata: what the checkpoint says of itself.
        provenance: of the Problem.
        command: that makes the analysis again.
    """

    label: str
    checkpoint: str
    sha256: str
    loss: float
    accuracy: float
    samples: int
    classified: int
    parameters: int
    measures: dict[str, Result] = field(default_factory=dict)
    surface: Surface | None = None
    history: list[dict[str, float]] | None = None
    examples: dict[str, np.ndarray] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """Of the training, whatever its method; empty where the file does not say."""
        settings = self.metadata.get("settings")
        return dict(settings) if isinstance(settings, Mapping) else {}

    def summary(self) -> dict[str, Any]:
        """The checkpoint's object in summary.json."""
        keys = ("label", "checkpoint", "sha256", "loss", "accuracy", "samples", "classified", "parameters")
        entry = {k: getattr(self, k) for k in keys}
        entry["measures"] = {k: labelled(k, r.summary()) for k, r in self.measures.items()}
        if self.surface is not None:
            entry["surface"] = self.surface.summary()
        entry["metadata"] = self.metadata
        entry["provenance"] = {**self.provenance, "command": self.command}
        return plain(entry)


def summarize(analyses: Sequence[Analysis]) -> dict[str, Any]:
    """The content of summary.json."""
    return {"checkpoints": [a.summary() for a in analyses]}


def labels(paths: Sequence[Path]) -> list[str]:
    """A short unique name for each checkpoint: its directory's name for ckpt.pt (RUN-average), else its stem."""
    short = [_of_folder(p.resolve().parent) if p.name == "ckpt.pt" else p.stem for p in paths]
    labels: list[str] = []
    for name in short:
        numbered = (f"{name}-{n}" for n in itertools.count(1))
        free = (label for label in numbered if label not in labels and label not in short)
        labels.append(name if short.count(name) == 1 else next(free))
    return labels


def _of_folder(folder: Path) -> str:
    return f"{folder.parent.name}-average" if folder.name == "average" else folder.name


def read_history(path: Path) -> list[dict[str, float]] | None:
    """Rows of a training's history.csv; None where there is none."""
    if not path.exists():
        return None
    return [{k: _number(v) for k, v in row.items() if k} for row in read_rows(path)]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
