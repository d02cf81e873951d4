"""One checkpoint measured: what is asked for is computed once and kept; what is kept is not computed again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

import landscape
from figures.page.analysis import Analysis, read_history
from figures.page.requests import SURFACE
from figures.page.store import Store
from landscape import MEASURES
from landscape.curvature.krylov import LEAST_BEYOND
from landscape.errors import InputError
from landscape.problem.outputs import class_counts, example_hits
from landscape.problem.problem import Problem
from landscape.results.result import Result
from landscape.surfaces.result import Surface
from trainers.rebuild import Subject
from trainers.requests import MeasureRequest

SUBSETS, SUBSET_EXAMPLES = 8, 32
KEPT_VECTOR_ENTRIES = 10_000_000
"""Eigenvectors over this size (40 MB) are left out of the file: ask for them in Python."""


def analyze(
    subject: Subject,
    label: str,
    store: Store,
    wanted: Sequence[MeasureRequest],
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
    provenance |= {"split": subject.split} if subject.split else {}
    at = problem.evaluate()
    if not at.loss.isfinite():
        raise InputError(
            f"{subject.path}: the loss over the sample is {float(at.loss)}: nothing can be measured around it"
        )
    computed: dict[str, Result] = {}
    for request in wanted:
        settings = {
            "arguments": request.arguments,
            **subject.companions.facts(request),
            "parameters": list(problem.parameters.names),
            **{k: provenance[k] for k in ("loss", "sample_sha256", "batch_norm", "dtype")},
            # The code of --model decides the value too, and cannot be seen.
            "loss_at_weights": f"{float(at.loss):.4g}",
        }
        name = prefix + request.key
        result = store.get(name, settings)
        if result is None:
            result = _compute(request, subject, store, name)
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
        classified=problem.classified,
        parameters=problem.dimension,
        surface=surface if isinstance(surface, Surface) else None,
        measures=computed,
        examples=_examples(problem),
        history=read_history(subject.path.parent / "history.csv"),
        metadata=subject.metadata,
        provenance=provenance,
        command=command,
    )


def subsets_for(problems: Sequence[Problem]) -> int:
    """Disjoint subsets for the intervals of sharpness: 8, or 0 for small samples and those that cannot be divided."""
    large = all(p.examples >= SUBSETS * SUBSET_EXAMPLES and p.undividable is None for p in problems)
    return SUBSETS if large and all(p.batches.whole() is not None for p in problems) else 0


def vectors_needed(wanted: Sequence[MeasureRequest]) -> int | None:
    """Vectors of the smallest basis that the wanted curvature works in; None where no Hessian product is wanted."""
    curvature = [r for r in wanted if r.measure != SURFACE and {"chunk_size", "hvp"} & r.arguments.keys()]
    if not any(r.arguments.get("hvp", "double-backward") == "double-backward" for r in curvature):
        return None
    return max(r.arguments.get("k", 0) for r in curvature) + LEAST_BEYOND


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
