"""Rescalings that leave a network's function as it is: those that are found, all of them, and what they change.

The reference is the null space of the outputs' derivative with respect to the logarithm of every weight (of the
statistics of a BatchNorm channel together), over many inputs and many draws of the weights: what leaves the outputs as
they are at all of them is a rescaling, and its dimension is the number of free factors. Weights that nothing depends on
are left out on both sides. Outputs and measures are computed anew at the rescaled weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import landscape
from audit.networks.rescaled import ACTIVATIONS, FAMILIES, NORMS, WEIGHT_NORMS, Statistics, built, inputs
from audit.verdict import WRONG, Verdict
from landscape.errors import InputError
from landscape.invariance.measures import InvarianceOptions

EXAMPLES, POINTS = 16, 12
NULL, SEEN = 1e-11, 1e-8
"""Relative singular values: below is a symmetry, above none; in between nothing is said."""
BIASES = ("scaled", "fixed")


def audit(seed: int) -> Verdict:
    """Draw by seed and compare."""
    return again(choice(seed))


def choice(seed: int) -> dict[str, Any]:
    """What is drawn by seed."""
    r = np.random.default_rng([31, seed])
    return {
        "seed": seed,
        "family": str(r.choice(FAMILIES)),
        "depth": int(r.integers(1, 4)),
        "width": int(r.integers(2, 5)),
        "activation": str(r.choice(ACTIVATIONS, p=[0.35, 0.15, 0.1, 0.15, 0.15, 0.1])),
        "norm": str(r.choice(NORMS)),
        "weight_norm": str(r.choice(WEIGHT_NORMS)),
        "bias": bool(r.random() < 0.7),
        "residual": bool(r.random() < 0.3),
        "rho": float(10 ** r.uniform(-2, -0.5)),
        "p": float(r.choice([2.0, math.inf])),
        "reach": float(r.uniform(1.2, 5)),
        "loss": str(r.choice(["mse", "cross-entropy"])),
    }


def again(kept: dict[str, Any]) -> Verdict:
    """Compare what was drawn before."""
    verdict = Verdict(kept["seed"], f"{kept['family']}, {kept['activation']}", choice=kept)
    try:
        model = built(kept)
        x = _finite(model, inputs(kept, EXAMPLES))
        weights = sum(p.numel() for p in model.parameters())
        points = max(POINTS, weights // EXAMPLES)  # three outputs of every example: three rows for every weight
        sensitivity = np.concatenate([_sensitivity(built(kept, True, draw), x) for draw in range(points)])
    except Exception as error:  # the audit's own fault
        verdict.wrong(f"the audit failed: {type(error).__name__}: {error}")
        return verdict
    with verdict.watching("find"):
        try:
            symmetries = landscape.rescaling.find(model, x)
        except InputError:
            if kept["family"] != "branching":
                verdict.wrong("find refused")
            raise
        if kept["family"] == "branching":
            verdict.wrong("find took a network that branches on values")
        _group(verdict, symmetries, _logs(symmetries, model), sensitivity)
        if symmetries.dimension and verdict.outcome != WRONG:
            _moved(verdict, kept, symmetries, model)
    return verdict


def simpler(kept: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Choices with one thing less in them."""
    changes: list[dict[str, Any]] = [{"residual": False}, {"weight_norm": "none"}, {"norm": "none"}, {"bias": False}]
    changes += [{"activation": "identity"}, {"activation": "relu"}, {"p": 2.0}, {"family": "mlp"}, {"loss": "mse"}]
    changes += [{"depth": n} for n in range(1, kept["depth"])] + [{"width": n} for n in range(2, kept["width"])]
    return (kept | change for change in changes if kept | change != kept)


# -- the group ---------------------------------------------------------------------------------------------------------


def _sensitivity(model: nn.Module, x: Tensor) -> np.ndarray:
    """Derivatives of the outputs by the log of every weight and of the scale of every channel's statistics."""
    norms = [m for m in model.modules() if isinstance(m, Statistics)]
    statistics = [t.requires_grad_() for m in norms for t in (m.running_mean, m.running_var)]
    leaves = [*model.parameters(), *statistics]
    outputs = model(x).reshape(-1)
    options: dict[str, Any] = {"is_grads_batched": True, "allow_unused": True, "materialize_grads": True}
    slopes = torch.autograd.grad(outputs, leaves, torch.eye(len(outputs), dtype=x.dtype), **options)
    weights = [(g * p).flatten(1) for g, p in zip(slopes, model.parameters(), strict=False)]
    pairs = zip(norms, slopes[len(weights) :: 2], slopes[len(weights) + 1 :: 2], strict=True)
    scales = [g * m.running_mean + 2 * v * (m.running_var + m.eps) for m, g, v in pairs]
    table = torch.cat([*weights, *scales], dim=1).detach()
    # A row says where 0 is, however long it is; where an output has no derivative (0 / 0) it says nothing.
    return np.asarray(F.normalize(table[table.isfinite().all(1)], dim=1, eps=1e-200).numpy())


def _logs(symmetries: Any, model: nn.Module) -> np.ndarray:
    """(unit, weight and channel): the logarithm of the factor where a unit's own is e."""
    rows = []
    names = [n for n, _ in model.named_buffers() if n.endswith("running_mean")]
    before = dict(model.named_buffers())
    for unit in range(symmetries.dimension):
        tau = torch.ones(symmetries.dimension, dtype=torch.float64)
        tau[unit] = math.e
        moved = symmetries.apply(torch.cat([p.detach().reshape(-1) for p in model.parameters()]), tau)
        scale = [(moved.weights / torch.cat([p.detach().reshape(-1) for p in model.parameters()])).log()]
        scale += [(moved.buffers.get(n, before[n]) / before[n]).log() for n in names]
        rows.append(torch.cat(scale).numpy())
    return np.array(rows)


def _group(verdict: Verdict, symmetries: Any, logs: np.ndarray, sensitivity: np.ndarray) -> None:
    """Every unit leaves the outputs as they are, and there are no more of them."""
    size = np.linalg.norm(sensitivity, axis=0)
    alive = size > 1e-12 * size.max()
    values = np.linalg.svd(sensitivity[:, alive], compute_uv=False)
    if symmetries.rejected:
        verdict.wrong(f"rejected {[b.name for b in symmetries.rejected]}")
    if symmetries.dimension:
        change = np.abs(sensitivity @ logs.T).max(axis=0) / np.linalg.norm(sensitivity)
        if change.max() > 1e-10:
            verdict.wrong(
                f"unit {int(change.argmax())} of {symmetries.dimension} changes the outputs by {change.max():.1e}"
            )
    relative = values / values[0]
    if np.any((relative > NULL) & (relative < SEEN)):
        return
    right = int(alive.sum()) - int((relative >= SEEN).sum())
    rank = int(np.linalg.matrix_rank(logs[:, alive], tol=1e-8)) if symmetries.dimension else 0
    if rank != right:
        verdict.wrong(f"found {rank} symmetries of {right}: {symmetries}")


# -- measures at rescaled weights --------------------------------------------------------------------------------------


def _moved(verdict: Verdict, kept: dict[str, Any], symmetries: Any, model: nn.Module) -> None:
    """The same function, the same where a measure says it is invariant, another value where it does not."""
    tau = torch.exp(
        math.log(kept["reach"]) * (2 * torch.rand(symmetries.dimension, generator=_stream(kept)).double() - 1)
    )
    w = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    moved = symmetries.apply(w, tau)
    other, x = built(kept), _finite(model, inputs(kept, 2 * EXAMPLES)[EXAMPLES:])
    with torch.no_grad():
        nn.utils.vector_to_parameters(moved.weights, other.parameters())
        for name, value in moved.buffers.items():
            other.get_buffer(name).copy_(value)
        before, after = model(x), other(x)
    verdict.same("the outputs at rescaled weights", after, before, 1e-10, float(before.abs().max()))
    few = min(12, len(x))
    if few < 4:
        return
    y = torch.randint(before.shape[1], (few,), generator=_stream(kept))
    target = y if kept["loss"] == "cross-entropy" else F.one_hot(y, before.shape[1]).double()
    criterion = nn.CrossEntropyLoss() if kept["loss"] == "cross-entropy" else nn.MSELoss()
    problems = [landscape.Problem(m, criterion, [(x[:few], target)]) for m in (model, other)]
    _invariant(verdict, kept, problems)
    _changing(verdict, kept, problems, [model, other], lambda m: criterion(m(x[:few]), target))


def _invariant(verdict: Verdict, kept: dict[str, Any], problems: list[landscape.Problem]) -> None:
    rho, p = kept["rho"], kept["p"]
    measured: dict[str, Any] = {"loss": lambda q: q.loss()}
    for biases in BIASES:
        ball = {"scaling": "elementwise", "biases": biases, "p": p}
        measured |= {
            f"adaptive_sharpness, {biases} biases": lambda q, b=ball: (
                landscape.adaptive_sharpness(q, rho=rho, one_step_only=True, **b).value
            ),
            f"worst_case_sharpness, {biases} biases": lambda q, b=ball: (
                landscape.worst_case_sharpness(q, rho=rho, steps=4, **b).value
            ),
            f"average_sharpness, {biases} biases": lambda q, b=ball: (
                landscape.average_sharpness(q, rho=rho, draws=4, **b).value
            ),
            f"gradient_norm, {biases} biases": lambda q, b=ball: landscape.gradient_norm(q, **b).value,
        }
    if kept["weight_norm"] == "none":  # has no second derivative
        measured["adaptive_top_eigenvalues"] = lambda q: landscape.adaptive_top_eigenvalues(q, tol=1e-7).values[0]
    for name, measure in measured.items():
        one, two = (float(measure(q)) for q in problems)
        if math.isnan(one) and math.isnan(two):  # a step into 0 / 0
            continue
        verdict.same(f"{name} at rescaled weights", two, one, 1e-6 if "worst" in name or "top" in name else 1e-8, 0.1)


def _changing(verdict: Verdict, kept: dict[str, Any], problems: list[Any], models: list[nn.Module], loss: Any) -> None:
    """The gradient is divided by what multiplies the weights; SAM sharpness and the plain norm are as it says."""
    weights, gradients = [], []
    for problem, model in zip(problems, models, strict=True):
        value = loss(model)
        slopes = torch.autograd.grad(value, list(model.parameters()), allow_unused=True, materialize_grads=True)
        gradients.append(g := torch.cat([s.reshape(-1) for s in slopes]))
        weights.append(w := nn.utils.parameters_to_vector(model.parameters()).detach())
        if g.norm() < 1e-6:
            return
        with torch.no_grad():
            nn.utils.vector_to_parameters(w + kept["rho"] * g / g.norm(), model.parameters())
            rise = loss(model) - value
            nn.utils.vector_to_parameters(w, model.parameters())
        verdict.same("gradient_norm", landscape.gradient_norm(problem).value, g.norm(), 1e-8)
        if rise.isfinite():
            verdict.same("sam_sharpness", landscape.sam_sharpness(problem, rho=kept["rho"]).value, rise, 1e-8)
    right = gradients[0] * weights[0] / weights[1]
    verdict.same("the gradient at rescaled weights", gradients[1], right, 1e-8)
    if kept["seed"] % 8 == 0 and kept["norm"] != "root mean square":  # which divides 0 by 0 at other weights
        _study(verdict, problems[0])


def _study(verdict: Verdict, problem: landscape.Problem) -> None:
    """The toolkit's own invariance test comes to the same verdicts."""
    options = InvarianceOptions(steps=0, eigenvalues=False, extra={}, orders=(2.0,))
    study = landscape.rescaling_invariance(problem, transforms=2, settings=options)
    verdict.within("the outputs' change in rescaling_invariance", 0, float(study.output_changes.max()), 1e-10)
    for name in ("adaptive_sharpness", "adaptive_sharpness_fixed_biases"):
        largest = float(np.abs(study.of(name)).max())
        spread = float(np.ptp(study.of(name)))
        verdict.within(f"the spread of {name}", 0, spread, 1e-8 * (0.1 + largest))


def _finite(model: nn.Module, x: Tensor) -> Tensor:
    """The inputs that give numbers: a norm of your own divides 0 by 0 where every unit is off."""
    with torch.no_grad():
        return x[model(x).isfinite().all(1)]


def _stream(kept: dict[str, Any]) -> torch.Generator:
    return torch.Generator().manual_seed(kept["seed"] + 2)
