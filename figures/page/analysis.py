"""An analysis directory: measures of one or several checkpoints, computed once, kept in HDF5, summarized in JSON."""

from __future__ import annotations

import csv
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import landscape
from figures.page.meanings import labelled
from landscape import MEASURES
from landscape.errors import InputError
from landscape.files import write_json
from landscape.problem.outputs import example_hits
from landscape.problem.problem import Problem
from landscape.results import hdf5
from landscape.results.result import Result, plain
from landscape.surfaces.result import Surface
from trainers.names import checked_arguments, parse_name
from trainers.rebuild import Subject

SURFACE = "surface"
SUBSETS, SUBSET_EXAMPLES = 8, 32
KEPT_VECTOR_ENTRIES = 10_000_000
"""Eigenvectors over this size (40 MB) are left out of the file: ask for them in Python."""
DEFAULT_MEASURES = ("sam_sharpness", "adaptive_sharpness", "hessian_top_eigenvalues")


@dataclass(frozen=True)
class Request:
    """One measure with its arguments; `key` names its result."""

    key: str
    measure: str
    arguments: dict[str, Any]


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
        parameters: dimension d of w.
        measures: key -> result.
        surface: the loss surface, or None.
        history: rows of history.csv beside the checkpoint, or None.
        examples: "loss" and "accuracy" of each example (n,), where there is one value per example.
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
    parameters: int
    measures: dict[str, Result] = field(default_factory=dict)
    surface: Surface | None = None
    history: list[dict[str, float]] | None = None
    examples: dict[str, np.ndarray] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    def summary(self) -> dict[str, Any]:
        """The checkpoint's object in summary.json."""
        keys = ("label", "checkpoint", "sha256", "loss", "accuracy", "samples", "parameters")
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


def requests(texts: Sequence[str], rho: Sequence[float] = (), **common: Any) -> list[Request]:
    """Measures as the command line names them, `NAME` or `NAME:rho=0.5,scaling=filterwise`.

    Args:
        texts: the names; several radii are a tuple, `rho=(0.1,0.2)`.
        rho: radii of the plain measures (those whose entry has the fact `plain_radius`) that do not state their own.
        common: arguments for every measure that has an option of that name (k, seed); None is left out.
    """
    requests: dict[str, Request] = {}
    for text in texts:
        name, stated = parse_name(text)
        entry = MEASURES.entry(name)
        arguments = {o.name: common[o.name] for o in entry.options if common.get(o.name) is not None}
        if rho and entry.facts.get("plain_radius"):
            arguments["rho"] = tuple(rho)
        key = name if name not in requests else text
        if key in requests:
            raise InputError(f"--measure {text} is given twice: give it once")
        requests[key] = Request(key, name, checked_arguments(entry, {**arguments, **stated}))
    return list(requests.values())


def surface_request(grid: int, radius: float, seed: int, directions: str = "gaussian") -> Request:
    """The loss surface as one of the things that are wanted."""
    arguments = {"directions": directions, "radius": radius, "grid": grid, "seed": seed}
    return Request(SURFACE, SURFACE, arguments)


def labels(paths: Sequence[Path]) -> list[str]:
    """A short unique name for each checkpoint: its directory's name for ckpt.pt, else its stem."""
    short = [p.resolve().parent.name if p.name == "ckpt.pt" else p.stem for p in paths]
    labels: list[str] = []
    for name in short:
        numbered = (f"{name}-{n}" for n in itertools.count(1))
        free = (label for label in numbered if label not in labels and label not in short)
        labels.append(name if short.count(name) == 1 else next(free))
    return labels


class Store:
    """analysis.h5: results are written as soon as they are there and reused where nothing about them changed."""

    def __init__(self, path: Path, owners: dict[str, str]) -> None:
        self.path, self.owners = path, owners
        self.known: dict[str, Result] = {}
        self.settings: dict[str, Any] = {}
        if path.exists():
            held = hdf5.attributes(path).get("checkpoints", {})
            for label, sha in held.items():
                if owners.get(label) != sha:
                    raise InputError(
                        f"{path} holds results of another checkpoint ({label}, {sha[:12]}): choose another --out"
                    )
            self.settings = hdf5.attributes(path).get("settings", {})
            loaded = hdf5.load(path) if self.settings else {}
            self.known = loaded if isinstance(loaded, dict) else {}

    def get(self, name: str, settings: dict[str, Any]) -> Result | None:
        """The stored result called `name` if it was computed with exactly these settings."""
        return self.known.get(name) if self.settings.get(name) == plain(settings) else None

    def put(self, name: str, result: Result, settings: dict[str, Any]) -> None:
        """Keep a result; it is on disk when this returns."""
        self.known[name] = result
        self.settings[name] = plain(settings)
        self._write({name: result})

    def claim(self) -> None:
        """Say in the file whose results it holds, before anything else writes to it."""
        self._write({})

    def _write(self, new: dict[str, Result]) -> None:
        hdf5.save(self.path, new, {"checkpoints": self.owners, "settings": self.settings})


def analyze(
    subject: Subject,
    label: str,
    store: Store,
    wanted: Sequence[Request],
    *,
    prefix: str = "",
    command: str = "",
) -> Analysis:
    """Compute (or take from the store) the wanted measures of one checkpoint.

    Args:
        subject: the checkpoint brought back to life.
        label: its name.
        store: where results are kept.
        wanted: measures; `surface` is one of them.
        prefix: of the groups in the store, "" or "label/".
        command: what the user typed.
    """
    problem = subject.problem
    provenance = {**problem.provenance(), "checkpoint_sha256": subject.sha256, "sample_seed": subject.seed}
    at = problem.evaluate()
    if not at.loss.isfinite():
        raise InputError(
            f"{subject.path}: the loss over the sample is {float(at.loss)}: nothing can be measured around it"
        )
    computed: dict[str, Result] = {}
    for request in wanted:
        settings = {
            "arguments": request.arguments,
            "parameters": list(problem.parameters.names),
            **{k: provenance[k] for k in ("loss", "sample_sha256", "batch_norm", "dtype")},
            # The code of --model decides the value too, and cannot be seen.
            "loss_at_weights": f"{float(at.loss):.4g}",
        }
        name = prefix + request.key
        result = store.get(name, settings)
        if result is None:
            result = _compute(request, problem, store, name)
            result = dataclasses.replace(result, provenance={**result.provenance, **provenance})
            store.put(name, result, settings)
        computed[request.key] = result
    surface = computed.pop(SURFACE, None)
    return Analysis(
        label=label,
        checkpoint=str(subject.path),
        sha256=subject.sha256,
        loss=float(at.loss),
        accuracy=float(at.accuracy),
        samples=problem.examples,
        parameters=problem.dimension,
        surface=surface if isinstance(surface, Surface) else None,
        measures=computed,
        examples=_examples(problem),
        history=read_history(subject.path.parent / "history.csv"),
        metadata=subject.metadata,
        provenance=provenance,
        command=command,
    )


def read_history(path: Path) -> list[dict[str, float]] | None:
    """Rows of a training's history.csv; None where there is none."""
    if not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8") as stream:
        return [{k: _number(v) for k, v in row.items() if k} for row in csv.DictReader(stream)]


def write_summary(path: Path, analyses: Sequence[Analysis]) -> None:
    """Write summary.json."""
    write_json(path, summarize(analyses))


def subsets_for(problems: Sequence[Problem]) -> int:
    """Disjoint subsets for the intervals of sharpness: 8, or 0 for small samples and those that are streamed."""
    large = all(p.batches.kept is not None and p.examples >= SUBSETS * SUBSET_EXAMPLES for p in problems)
    return SUBSETS if large else 0


def _examples(problem: Problem) -> dict[str, np.ndarray]:
    """Loss and hit of each example in one forward pass; empty where the loss knows no single examples."""
    losses: list[torch.Tensor] = []
    hits: list[torch.Tensor | None] = []
    try:
        with torch.no_grad(), problem.bound():
            for batch in problem.batches:
                outputs = problem.forward(batch)
                losses.append(problem.example_losses(outputs, batch).double())
                hits.append(example_hits(outputs, batch.target))
    except (InputError, RuntimeError, ValueError):
        return {}
    examples = {"loss": torch.cat(losses).cpu().numpy()}
    right = [h for h in hits if h is not None]
    if len(right) == len(hits):
        examples["accuracy"] = torch.cat(right).double().cpu().numpy()
    return examples


def _compute(request: Request, problem: Problem, store: Store, name: str) -> Result:
    if request.measure == SURFACE:
        # Its points are journaled beside the file as they are finished: a killed analysis goes on within the surface.
        store.claim()
        return landscape.surface(problem, **request.arguments, file=store.path, name=name, replace_other=True)
    result = MEASURES[request.measure](problem, **request.arguments)
    vectors = getattr(result, "vectors", None)
    if vectors is not None and vectors.numel() > KEPT_VECTOR_ENTRIES:
        return dataclasses.replace(result, vectors=None)  # type: ignore[call-arg]
    return result


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
