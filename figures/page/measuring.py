"""One checkpoint measured: what is asked for is computed once and kept; what is kept is not computed again."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import landscape
from figures.page.analysis import Analysis, read_history
from figures.page.requests import SURFACE
from figures.page.store import Store
from landscape import MEASURES
from landscape.errors import InputError
from landscape.problem.outputs import class_counts, example_hits
from landscape.problem.problem import Problem
from landscape.progress import Bar
from landscape.results import digest
from landscape.results.result import Result
from landscape.shards import Claims, Item
from landscape.surfaces.result import Surface
from trainers.rebuild import Subject
from trainers.requests import MeasureRequest

SUBSETS, SUBSET_EXAMPLES = 8, 32
KEPT_VECTOR_ENTRIES = 10_000_000
"""Eigenvectors over this size (40 MB) are left out of the file: ask for them in Python."""


def analyze(
    measured: Measured,
    label: str,
    store: Store,
    wanted: Sequence[MeasureRequest],
    *,
    prefix: str = "",
    command: str = "",
) -> Analysis:
    """Compute (or take from the store) the wanted measures of one checkpoint.

    Args:
        measured: the checkpoint.
        label: its name.
        store: where results are kept.
        wanted: measures; `surface` is one of them.
        prefix: of the groups in the store, "" or "label/".
        command: what the user typed.
    """
    subject, problem = measured.subject, measured.subject.problem
    computed = {request.key: measured.result(request, prefix + request.key, store) for request in wanted}
    surface = computed.pop(SURFACE, None)
    return Analysis(
        label=label,
        checkpoint=str(subject.path),
        sha256=subject.sha256,
        loss=float(measured.at.loss),
        accuracy=float(measured.at.accuracy),
        samples=problem.examples,
        classified=problem.classified,
        parameters=problem.dimension,
        surface=surface if isinstance(surface, Surface) else None,
        measures=computed,
        examples=_examples(problem),
        history=read_history(subject.path.parent / "history.csv"),
        metadata=subject.metadata,
        provenance=measured.provenance,
        command=command,
    )


class Measured:
    """A checkpoint at which measures are taken.

    Attributes:
        subject: the checkpoint brought back to life.
        at: loss and accuracy.
        provenance: of every result.

    Raises:
        InputError: the loss is not finite.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject, problem = subject, subject.problem
        self.provenance = {
            **problem.provenance(),
            "checkpoint_sha256": subject.sha256,
            "sample_seed": subject.seed,
            **({"split": subject.split} if subject.split else {}),
        }
        self.at = problem.evaluate()
        if not self.at.loss.isfinite():
            raise InputError(
                f"{subject.path}: the loss over the sample is {float(self.at.loss)}: nothing can be measured around it"
            )

    def settings(self, request: MeasureRequest) -> dict[str, Any]:
        """What decides the result."""
        return {
            "arguments": request.arguments,
            **self.subject.companions.facts(request),
            "parameters": list(self.subject.problem.parameters.names),
            **{k: self.provenance[k] for k in ("loss", "sample_sha256", "batch_norm", "dtype")},
            # The code of --model decides the value too, and cannot be seen.
            "loss_at_weights": f"{float(self.at.loss):.4g}",
        }

    def result(self, request: MeasureRequest, name: str, store: Store) -> Result:
        """As the store holds it, or computed now and kept there."""
        settings = self.settings(request)
        result = store.get(name, settings)
        if result is None:
            result = _compute(request, self.subject, store, name)
            result = dataclasses.replace(result, provenance={**result.provenance, **self.provenance})
            store.put(name, result, settings)
        return result


def share(checkpoints: Mapping[str, Measured], store: Store, wanted: Sequence[MeasureRequest], claims: Claims) -> None:
    """Compute the wanted measures that nobody else has until the store's file holds all of them.

    Args:
        checkpoints: prefix of the groups in the store -> checkpoint.
        store: as in `analyze`.
        wanted: likewise.
        claims: of this process.
    """
    taken = [
        (measured, request, prefix + request.key) for prefix, measured in checkpoints.items() for request in wanted
    ]
    parts = [store.part(name, measured.settings(request)) for measured, request, name in taken]
    whole = f"analysis {digest.of_configuration([p.name for p in parts])[:16]}"

    def item(measured: Measured, request: MeasureRequest, name: str, part: Path) -> Item:
        def run() -> None:
            unfinished = Store(part.with_name(f"unfinished-{part.name}"), store.owners)
            measured.result(request, name, unfinished)
            os.replace(unfinished.path, part)

        held = store.holds(name, measured.settings(request))
        return Item(f"{name} {part.stem}", run, lambda: held or part.exists() or claims.has_ended(whole))

    def merge() -> None:
        merged = Store(store.path, store.owners)
        for measured, request, name in taken:
            merged.get(name, measured.settings(request))
        merged.remove_parts()

    with Bar("measures", len(taken)) as bar:
        for _ in claims.settle([item(*one, part) for one, part in zip(taken, parts, strict=True)]):
            bar.advance()
    claims.once(whole, merge)


def subsets_for(problems: Sequence[Problem]) -> int:
    """Disjoint subsets for the intervals of sharpness: 8, or 0 for small samples and those that cannot be divided."""
    large = all(p.examples >= SUBSETS * SUBSET_EXAMPLES and p.undividable is None for p in problems)
    return SUBSETS if large and all(p.batches.whole() is not None for p in problems) else 0


def eigenpairs_needed(wanted: Sequence[MeasureRequest]) -> int | None:
    """Most eigenpairs that one of the measures holds, at least one; None where no Hessian product is wanted."""
    curvature = [r for r in wanted if r.measure != SURFACE and {"chunk_size", "hvp"} & r.arguments.keys()]
    if not any(r.arguments.get("hvp", "double-backward") == "double-backward" for r in curvature):
        return None
    return max(r.arguments.get("k", 1) * (2 if r.arguments.get("which") == "BE" else 1) for r in curvature)


def _examples(problem: Problem) -> dict[str, np.ndarray]:
    """Loss of each example, where the loss knows single ones, and hit of each whose class counts; one forward pass."""
    losses: list[torch.Tensor] | None = []
    hits: list[torch.Tensor | None] = []
    share = problem.examples / problem.weight
    with problem.values():
        for batch in problem.batches:
            outputs = problem.forward(batch)
            try:
                if losses is not None:
                    losses.append(problem.example_losses(outputs, batch).detach().double() * share)
            except (InputError, RuntimeError, ValueError):
                losses = None
            right = example_hits(outputs, batch.target)
            hits.append(None if right is None else right[class_counts(batch.target, problem.objective.ignored)])
    examples = {} if losses is None else {"loss": torch.cat(losses).cpu().numpy()}
    known = [h for h in hits if h is not None]
    if len(known) == len(hits):
        examples["accuracy"] = torch.cat(known).double().cpu().numpy()
    return examples


def _compute(request: MeasureRequest, subject: Subject, store: Store, name: str) -> Result:
    if request.measure == SURFACE:
        # Its points are journaled beside the file as they are finished: a killed analysis goes on within the surface.
        store.claim()
        return landscape.surface(subject.problem, **request.arguments, file=store.path, name=name, replace_other=True)
    result = MEASURES[request.measure](subject.problem, **subject.companions.arguments(request))
    vectors = getattr(result, "vectors", None)
    if vectors is not None and vectors.numel() > KEPT_VECTOR_ENTRIES:
        return dataclasses.replace(result, vectors=None)  # type: ignore[call-arg]
    return result
