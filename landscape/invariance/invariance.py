"""The invariance test: which measures of sharpness see the network's function, and which its parametrization.

A network is replaced by n others that compute the same function, random members of its group of rescalings
(`landscape.invariance.rescaling`), and, where it has attention, by n whose heads are mapped by random matrices; every
measure is taken at each. What changes then is not a property of the function.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.invariance import rescaling
from landscape.invariance.experiment import Experiment, relative_change
from landscape.invariance.measures import InvarianceOptions
from landscape.invariance.result import Invariance
from landscape.problem.problem import Problem
from landscape.progress import Bar
from landscape.random import stream
from landscape.results import digest
from landscape.results.journal import Journal
from landscape.results.result import Result
from landscape.shards import Claims
from landscape.shared_rows import opened
from landscape.sharpness.checks import check_weights


def rescaling_invariance(
    problem: Problem,
    *,
    transforms: int = 50,
    low: float = 0.5,
    high: float = 1.5,
    settings: InvarianceOptions | None = None,
    hints: Mapping[str, str] | None = None,
    seed: int = 0,
    journal: Journal | None = None,
    claims: Claims | None = None,
    stored: Callable[[], Result | None] = lambda: None,
) -> Invariance:
    """Take every measure at random rescalings of a network that keep its function.

    The symmetries are found from the model and verified (`landscape.rescaling.find`); each transform draws all factors
    tau uniformly from [low, high) and moves weights and BatchNorm statistics. Expected in float64: outputs equal to
    rounding; element-wise adaptive sharpness with biases scaled or fixed, and the top eigenvalue of T H T, equal to
    1e-9; not so SAM sharpness, the top eigenvalue of H, filter-wise and layer-wise sharpness, the ASAM authors' code.

    Where the network has attention, n more networks are made by a random invertible matrix for every head, with
    singular values from [low, high): queries against keys, values against the layer that reads them (`mapped`). Of all
    measures of sharpness geodesic sharpness alone stays, and the Fisher-Rao norm; under rescalings that reach into a
    head's weights from outside (a gain of a norm) geodesic sharpness varies.

    Not claimed, and shown: element-wise measures are invariant under positive diagonal rescaling only. Where two linear
    layers have no activation between them, rotating what passes between them keeps the function too, and changes them
    (`rotations`). And a scaling of weights that leaves the biases is not a symmetry (`biases`).

    Args:
        problem: the loss; a float64 model shows the invariance to 1e-9, a float32 one to its own rounding.
        transforms: number n of networks.
        low: smallest factor, > 0.
        high: largest factor.
        settings: radii, orders, steps of the measures.
        hints: for a model that cannot be traced, see `landscape.invariance.rescaling.find`.
        seed: of the factors.
        journal: keeps what is finished, so that an interrupted run goes on; default in memory only.
        claims: the networks are shared with the other processes that were given the same `journal` and everything else
            (see `landscape.shards`); each returns the whole result.
        stored: reads a result that was saved, or None; the same test is not computed again.

    Returns:
        The values and their verdicts; without any measure where the network has no symmetry.

    Raises:
        InputError: outputs that differ between two evaluations (the test would mean nothing), a model that cannot be
            traced, fewer than 2 transforms, not 0 < low < high, a radius that is not positive, p not 2 or inf, nan
            weights.

    Cost: for each transform about 5 worst-case ascents for each p and 2 Lanczos runs; with attention twice that.
    Source: Kwon 2021 (arXiv 2102.11600), Definition 2 and Theorem 2.
    """
    settings = (settings or InvarianceOptions()).with_hints(hints or {})
    if transforms < 2:
        raise InputError(f"transforms={transforms}: a spread needs at least 2")
    check_weights(problem)
    reference = _deterministic_outputs(problem)
    chosen = {**asdict(settings), "orders": ["inf" if math.isinf(p) else p for p in settings.orders]}
    arguments = {"transforms": transforms, "low": low, "high": high, "seed": seed, **chosen}
    identity = _identity(problem, {**arguments, "hints": dict(hints or {})})
    if (before := _finished(stored, identity)) is not None:
        return before
    start = time.perf_counter()
    with problem.counting() as cost:
        symmetries = rescaling.find(
            problem.model,
            problem.few_examples(8),
            parameters=problem.parameters,
            hints=hints,
            batch_norm=problem.batch_norm,
        )
        generator = stream(seed, "rescaling")
        taus = [symmetries.sample(generator, low, high) for _ in range(transforms)]
        maps = [symmetries.sample_maps(stream(seed, f"maps {j}"), low, high) for j in range(transforms)]
        heads = maps if symmetries.heads else []
        experiment = Experiment(problem, symmetries, taus, heads, settings, reference, seed)
        rows = experiment.rows() if symmetries.dimension else {}
        with Bar("rescalings", len(rows)) as bar:
            journal = opened(journal or Journal(), identity, experiment.blocks(rows), claims, bar)
            if rows.keys() - journal.rows.keys() and (before := _finished(stored, identity)) is not None:
                return before  # others came to the end of all, and their rows are gone
            computed = {name: experiment.row(name, compute, journal, bar) for name, compute in rows.items()}
    return Invariance(
        **(experiment.outcome(computed) if computed else _nothing()),
        groups=symmetries.summary(),
        identity=identity,
        arguments=arguments,
        cost=cost,
        seconds=time.perf_counter() - start,
        provenance=problem.provenance(),
    )


def _finished(stored: Callable[[], Result | None], identity: str) -> Invariance | None:
    """The result of the same test, where it was saved."""
    result = stored()
    return result if isinstance(result, Invariance) and result.identity == identity else None


def _nothing() -> dict[str, Any]:
    empty = np.zeros(0)
    arrays = dict.fromkeys(("reference", "rho", "tolerance", "output_changes"), empty)
    return {"names": [], "values": np.zeros((0, 0)), "logits": np.zeros((0, 0, 0)), **arrays}


def _deterministic_outputs(problem: Problem) -> Tensor:
    first, second = problem.outputs(), problem.outputs()
    change = relative_change(second, first)
    if not change <= 100 * torch.finfo(first.dtype).eps:
        causes = "; ".join(problem.random_causes) or "randomness or state in the model"
        raise InputError(
            f"two evaluations of the outputs differ by {change:.1e} relative ({causes}): an invariance test would mean "
            "nothing; make the model and the batches deterministic"
        )
    return first


def _identity(problem: Problem, arguments: dict[str, Any]) -> str:
    """What a test and its rows belong to: the weights, buffers and sample of a problem, and what was asked."""
    asked = json.dumps(arguments, sort_keys=True, default=str)
    facts = (problem.batches.fingerprint(), problem.batch_norm, problem.parameters.names, problem.loss_name)
    return digest.of_parts([asked, problem.weights, *problem.model.buffers(), repr(problem.model), str(facts)])
