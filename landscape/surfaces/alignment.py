"""Alignment: two networks of one function can lie far apart, and a barrier between them is an artifact.

What a network's parameters can be exchanged for is found from the network itself and confirmed by its outputs: units
behind ReLU (`landscape.rescaling`) and behind any function of single entries trade places, heads of attention too,
invertible matrices pass through each head, and orthogonal ones through the residual stream where its norms allow it
(`landscape.invariance.feature_spaces`). The group of each is matched by its weights, one after the other, until none
brings the networks nearer (Ainsworth 2022, arXiv 2209.04836, algorithm 1; for transformers Theus 2025, arXiv
2506.22712).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from landscape import random
from landscape.ball.vectors import cosine
from landscape.errors import InputError
from landscape.invariance.feature_trace import feature_spaces
from landscape.invariance.rescaling import find
from landscape.problem.problem import Problem
from landscape.surfaces.matching.features import FeatureGroup
from landscape.surfaces.matching.heads import HeadGroup, head_groups
from landscape.surfaces.matching.units import unit_groups

Named = dict[str, Tensor]
_SWEEPS = 100
_LEAST = 1e-6
"""Smallest share of the squared distance by which a step must shorten it."""
_ROUNDING = 1e-28
"""Squared distance, in multiples of that from the origin, that is 0 but for rounding."""
_TRIALS = 2
"""Random members of a group that must leave the outputs."""
_SLACK = 10
"""What all groups together may change of the outputs, in multiples of what one may."""
_EXAMPLES = 16


class Group(Protocol):
    """Changes of a network's tensors that leave its function."""

    @property
    def name(self) -> str:
        """The parameter that comes first."""

    @property
    def units(self) -> int:
        """What can change places: units, features or heads."""

    def tensors(self) -> set[str]:
        """Names of what is changed."""

    def random(self, tensors: Named, generator: torch.Generator) -> Named:
        """The tensors after a random member."""

    def matched(self, first: Named, second: Named) -> tuple[Named, int]:
        """The second tensors after the member that brings them nearest to the first, and how many units moved."""


@dataclass(frozen=True)
class Alignment:
    """A network in the coordinates of another one.

    Attributes:
        weights: (d,), the same function as before.
        buffers: name -> buffer, reordered with the units.
        facts: groups, units, how many moved, heads, features that were turned, sweeps, cosine of the weights and their
            distance (of ||w0||) before and after, largest relative change of the outputs, groups that were found but
            could not be confirmed.
    """

    weights: Tensor
    buffers: Named
    facts: dict[str, Any] = field(default_factory=dict)


def align(first: Problem, second: Problem, *, seed: int = 0) -> Alignment:
    """The second network, mapped so that its weights lie as near to the first's as can be found.

    Coordinate descent: one group after the other, in random order, is matched given all others, until none brings the
    weights nearer; their distance falls with every accepted step. Where features of a residual stream can be mapped it
    starts twice: as the network is, and with the features matched by those parameters alone that no other group
    touches (embeddings); the nearer end is kept.

    Args:
        first: the network that gives the coordinates.
        second: the network that is mapped; neither is changed.
        seed: of the order of the groups.

    Raises:
        InputError: different architectures, nothing through which a map passes, or outputs that change in the end.

    Cost: the trace of the network, three forward passes on 16 examples per group; for h heads of width s in n
    dimensions O(h^2 s^2 n) per layer and sweep, for a stream of D features O(D) per parameter that it touches.
    """
    from landscape.surfaces.comparison import check_same_architecture

    check_same_architecture(first, second)
    groups, rejected = permutable(second, seed, first)
    if not groups:
        raise InputError(
            "no hidden units that can be permuted were found: alignment needs layers joined by functions of single "
            "entries (ReLU, GELU), heads of attention, or a residual stream"
        )
    target = _double(_named(first))
    start = _double({**_named(second), **_buffers(second)})
    ends = [_descended(groups, target, s, seed) for s in _starts(groups, target, start)]
    moving, facts = min(ends, key=lambda end: _gap(target, end[0]))
    change = _output_change(second, moving)
    if not change <= _SLACK * _tolerance(second):
        raise InputError(
            f"alignment did not keep what the network computes (outputs change by {change:.1g}, relative): a part is "
            "mapped wrongly, or weights are too ill-conditioned for this precision; compare without alignment"
        )
    weights = second.parameters.flatten([moving[n].to(t.dtype) for n, t in _named(second).items()])
    before = float(cosine(first.weights, second.weights))
    scale = float(first.weights.double().norm()) or 1.0
    facts = {
        "groups": len(groups),
        "units": sum(g.units for g in groups),
        **facts,
        "heads": sum(g.units for g in groups if isinstance(g, HeadGroup)),
        "turned": sum(g.units for g in groups if isinstance(g, FeatureGroup) and g.space.orthogonal),
        "cosine": [before, float(cosine(first.weights, weights))],
        "distance": [_gap(target, t) ** 0.5 / scale for t in (start, moving)],
        "output_change": change,
        "rejected": rejected,
    }
    return Alignment(weights, {n: moving[n].to(b.dtype) for n, b in _buffers(second).items()}, facts)


def _starts(groups: Sequence[Group], target: Named, start: Named) -> list[Named]:
    """The network as it is; and with streams matched by parameters that no other group touches."""
    anchored = start
    for group in groups:
        if isinstance(group, FeatureGroup):
            touched = set().union(*(other.tensors() for other in groups if other is not group))
            if any(target[name].dim() > 1 for name in group.tensors() - touched):
                anchored, _ = group.matched(target, anchored, without=touched)
    return [start] if anchored is start else [start, anchored]


def _descended(groups: Sequence[Group], target: Named, moving: Named, seed: int) -> tuple[Named, dict[str, Any]]:
    """The tensors after coordinate descent, and what it did."""
    moved = [0] * len(groups)
    generator, sweeps, changed = random.stream(seed, "order of alignment"), 0, True
    gap, whole = _gap(target, moving), _gap(target, {n: torch.zeros_like(t) for n, t in target.items()})
    while changed and sweeps < _SWEEPS:
        changed, sweeps = False, sweeps + 1
        for i in torch.randperm(len(groups), generator=generator).tolist():
            proposed, count = groups[i].matched(target, moving)
            nearer = _gap(target, proposed)
            # A group that a tensor meets on both axes makes the assignment a linearization: accept what is better.
            if nearer < (1 - _LEAST) * gap and gap > _ROUNDING * whole:
                moving, gap, changed = proposed, nearer, True
                moved[i] = max(moved[i], count)
    return moving, {"moved": sum(moved), "sweeps": sweeps, "converged": not changed}


def permutable(problem: Problem, seed: int = 0, first: Problem | None = None) -> tuple[list[Group], list[str]]:
    """Groups of changes, each confirmed by the outputs; and the names of those that were not.

    Args:
        problem: of the network that is changed.
        seed: of the trial members.
        first: of the network whose norms' gains the changed one takes over; by default its own.
    """
    symmetries = find(problem.model, next(iter(problem.batches)), parameters=problem.parameters)
    tensors = {**_named(problem), **_buffers(problem)}
    gains = _double(_named(first or problem))
    kept: list[Group] = []
    doubtful: list[Group] = []

    def confirmed(group: Group) -> bool:
        generator = random.stream(seed, "trial permutation")
        trials = (group.random(_double(tensors), generator) for _ in range(_TRIALS))
        return all(_output_change(problem, moved) <= _tolerance(problem) for moved in trials)

    for group in unit_groups(symmetries.units):
        (kept if confirmed(group) else doubtful).append(group)
    taken = {place for group in kept for place in group.places}  # type: ignore[attr-defined]
    for space in feature_spaces(problem.model, problem.few_examples(2)):
        if space.tensors() - set(tensors) or not taken.isdisjoint(space.members):
            continue
        candidate = FeatureGroup(space, gains)
        if not (candidate.foldable(tensors) and confirmed(candidate)):
            candidate = FeatureGroup(space.permutation(), gains)
        (kept if candidate.space is space or confirmed(candidate) else doubtful).append(candidate)
    for heads in head_groups(symmetries.heads):
        kept.append(heads if not heads.trade or confirmed(heads) else HeadGroup(heads.heads, trade=False))
    # Rescalings of a head's dimensions or of a norm's gain are no permutations, and other groups have their tensors.
    covered = set().union(*(group.tensors() for group in kept))
    return kept, [group.name for group in doubtful if group.tensors() - covered]


# -- tensors and outputs ---------------------------------------------------------------------------------------------


def _named(problem: Problem) -> Named:
    return dict(zip(problem.parameters.names, problem.parameters.unflatten(problem.weights), strict=True))


def _buffers(problem: Problem) -> Named:
    return {n: b.detach() for n, b in problem.model.named_buffers()}


def _double(tensors: Named) -> Named:
    return {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}


def _gap(first: Named, second: Named) -> float:
    """Squared distance of the parameters."""
    return float(sum((first[n] - second[n]).square().sum() for n in first))


def _tolerance(problem: Problem) -> float:
    """Relative change of the outputs that one group may make by rounding."""
    return 1e-9 if problem.computed_in == torch.float64 else 1e-4


def _output_change(problem: Problem, tensors: Named) -> float:
    """Max |f' - f| / max |f| on a few examples, with the weights and buffers in `tensors`."""
    before, after = (outputs_at(problem, t) for t in ({**_named(problem), **_buffers(problem)}, tensors))
    return float((after - before).abs().max() / before.abs().max().clamp(min=1e-30))


def outputs_at(problem: Problem, tensors: Mapping[str, Tensor]) -> Tensor:
    """Outputs on the first 16 examples with these weights and buffers."""
    few, passes = problem.few_examples(_EXAMPLES), problem.passes.forward
    with (
        torch.no_grad(),
        problem.evaluator.bound(
            [tensors[n].to(t.dtype) for n, t in _named(problem).items()],
            [tensors[n].to(b.dtype) for n, b in _buffers(problem).items()],
        ),
    ):
        outputs = problem.batch_outputs(few).detach().double()
    problem.passes.forward = passes
    return outputs
