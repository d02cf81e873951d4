"""Measures on losses in closed form: quadratics, waves, quartics, linear regression, each number beside its formula.

What the methods only bound (the worst case found by an ascent) is held to its bounds: never below the one step, never
above the true maximum, and on quadratics in the 2-ball no more than 1% below it. Estimates are held to five of their
standard errors, of three seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import landscape
from audit import forms
from audit.verdict import WRONG, Verdict

SLACK = {"float64": 1e-9, "float32": 5e-5}
OPERATIONS_A_DRAW = 4
TREATMENTS = ("scaled", "unscaled", "fixed")


def audit(seed: int) -> Verdict:
    """Draw by seed and compare."""
    return again(choice(seed))


def choice(seed: int) -> dict[str, Any]:
    """What is drawn by seed."""
    r = np.random.default_rng([21, seed])
    scaling = str(r.choice(["identity", "elementwise", "filterwise", "layerwise", "asam-official"]))
    return {
        "seed": seed,
        "kind": str(r.choice(forms.KINDS)),
        "rows": int(r.integers(1, 5)),
        "columns": int(r.integers(1, 5)),
        "examples": int(r.integers(1, 7)),
        "batches": int(r.integers(1, 4)),
        "dtype": str(r.choice(["float64", "float64", "float32"])),
        "rho": float(10 ** r.uniform(-2, 0.3)),
        "p": float(r.choice([2.0, math.inf, 1.0, 1.5, 3.0], p=[0.4, 0.3, 0.1, 0.1, 0.1])),
        "scaling": scaling,
        "biases": str(r.choice(TREATMENTS)),
        "eta": float(r.choice([0.0, 0.01, 0.5])),
        "groups": bool(r.random() < 0.3),
        "operations": [str(o) for o in r.choice(list(OPERATIONS), OPERATIONS_A_DRAW, replace=False)],
    }


def again(kept: dict[str, Any]) -> Verdict:
    """Compare what was drawn before."""
    verdict = Verdict(kept["seed"], kept["kind"], choice=kept)
    try:
        bowl = _bowl(kept, verdict)
    except Exception as error:  # the audit's own fault
        verdict.wrong(f"the audit failed: {type(error).__name__}: {error}")
        return verdict
    for name in ("loss", *kept["operations"]):
        with verdict.watching(name):
            (OPERATIONS | {"loss": loss})[name](bowl)
        if verdict.outcome == WRONG:
            break
    return verdict


def simpler(kept: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Choices with one thing less in them."""
    changes: list[dict[str, Any]] = [{"operations": [o]} for o in kept["operations"] if len(kept["operations"]) > 1]
    changes += [{"dtype": "float64"}, {"groups": False}, {"eta": 0.0}, {"biases": "scaled"}, {"scaling": "identity"}]
    changes += [{"batches": 1}, {"p": 2.0}]
    changes += [{name: n} for name in ("rows", "columns", "examples") for n in range(1, kept[name])]
    return (kept | change for change in changes if kept | change != kept)


@dataclass
class Bowl:
    """One loss on both sides.

    Attributes:
        kept: the choice.
        form: L by its formula.
        w: (d,) float64.
        scale: T, (d,).
        problem: landscape's.
        verdict: what is wrong goes there.
    """

    kept: dict[str, Any]
    form: forms.Form
    w: np.ndarray
    scale: np.ndarray
    problem: landscape.Problem
    verdict: Verdict

    @property
    def ball(self) -> dict[str, Any]:
        """Arguments of a measure of the ball."""
        return {name: self.kept[name] for name in ("scaling", "biases", "eta")}

    def same(self, what: str, seen: object, right: object, scale: float = 1.0) -> None:
        self.verdict.same(what, seen, right, SLACK[self.kept["dtype"]], scale + abs(self.form.value(self.w)))

    def near(self, what: str, estimate: Callable[[int], tuple[float, float]], right: float) -> None:
        """Wrong where the estimates of three seeds all miss by more than five of their standard errors."""
        estimates = [estimate(seed) for seed in range(3)]
        slack = SLACK[self.kept["dtype"]] * (1 + abs(right) + abs(self.form.value(self.w)))
        if not any(abs(value - right) <= 5 * error + slack for value, error in estimates):
            self.verdict.wrong(f"{what} is {estimates} (value, standard error), right is {right:.9g}")


# -- what is measured --------------------------------------------------------------------------------------------------


def loss(bowl: Bowl) -> None:
    value, slope = bowl.problem.loss_and_gradient()
    bowl.same("the loss", value, bowl.form.value(bowl.w))
    bowl.same("the gradient", slope, bowl.form.gradient(bowl.w), 10)


def products(bowl: Bowl) -> None:
    v = np.random.default_rng(bowl.kept["seed"]).normal(size=len(bowl.w))
    product = bowl.problem.hvp(torch.from_numpy(v).to(bowl.problem.weights))
    bowl.same("hvp(v)", product, bowl.form.hessian(bowl.w) @ v, 100)


def one_step(bowl: Bowl) -> None:
    """SAM's and adaptive sharpness: L(w + epsilon) - L(w), also of groups of examples, and its first order."""
    kept, n = bowl.kept, len(bowl.form.c)
    m = max(1, n // 2) if kept["groups"] else n
    groups = [bowl.form.of(slice(i, i + m)) for i in range(0, n, m)]
    for plain in (True, False):
        scale = np.ones_like(bowl.w) if plain else bowl.scale
        rises = []
        for group in groups:
            epsilon, slope = forms.one_step(scale * group.gradient(bowl.w), scale, kept["rho"], kept["p"])
            rises.append((group.value(bowl.w + epsilon) - group.value(bowl.w), slope, len(group.c)))
        value, first, _ = np.average(rises, axis=0, weights=[r[2] for r in rises])
        size: dict[str, Any] = {"rho": kept["rho"], "p": kept["p"], "m": m if kept["groups"] else None}
        result = (
            landscape.sam_sharpness(bowl.problem, **size)
            if plain
            else landscape.adaptive_sharpness(bowl.problem, one_step_only=True, **size, **bowl.ball)
        )
        name = "sam_sharpness" if plain else "adaptive_sharpness"
        bowl.same(name, result.value, value, 10 * (1 + first))
        bowl.same(f"the first order of {name}", result.first_order, np.array([first]), 10)


def worst_case(bowl: Bowl) -> None:
    p, rho = bowl.kept["p"] if bowl.kept["p"] in (2.0, math.inf) else 2.0, bowl.kept["rho"]
    result = landscape.worst_case_sharpness(bowl.problem, rho=(rho / 2, rho), p=p, **bowl.ball)
    assert result.one_step is not None
    h = bowl.scale * bowl.form.gradient(bowl.w)
    step, first = forms.one_step(h, bowl.scale, rho, p)
    value = bowl.form.value(bowl.w)
    slack = 10 * SLACK[bowl.kept["dtype"]] * (1 + first + abs(value))
    if h.any():  # a stationary point has no one step
        bowl.same("one_step", result.one_step[1], bowl.form.value(bowl.w + step) - value, 10 * (1 + first))
    least, most = max(0.0, float(result.one_step[1]), float(result.sharpness[0])) - slack, math.inf
    if bowl.form.quadratic:
        b = bowl.scale[:, None] * bowl.form.hessian(bowl.w) * bowl.scale
        most = forms.largest_rise(h, b, rho, p)
        if p == 2:
            least = max(least, 0.99 * most - slack)
    bowl.verdict.within("worst_case_sharpness", least, float(result.sharpness[1]), most + slack * (1 + abs(most)))


def keskar(bowl: Bowl) -> None:
    rho, value = bowl.kept["rho"] / 10, bowl.form.value(bowl.w)
    if value <= -0.9:
        return
    result = landscape.keskar_sharpness(bowl.problem, rho=rho)
    scale = np.abs(bowl.w) + 1
    h = scale * bowl.form.gradient(bowl.w)
    step, first = forms.one_step(h, scale, rho, math.inf)
    rise = bowl.form.value(bowl.w + step) - value
    slack = 10 * SLACK[bowl.kept["dtype"]] * (1 + first + abs(value))
    most = math.inf
    if bowl.form.quadratic:
        most = forms.largest_rise(h, scale[:, None] * bowl.form.hessian(bowl.w) * scale, rho, math.inf) + slack
    percent = 100 / (1 + value)
    bowl.verdict.within("keskar_sharpness", percent * (max(0.0, rise) - slack), result.value, percent * (most + slack))


def average(bowl: Bowl) -> None:
    p, rho = bowl.kept["p"] if bowl.kept["p"] in (2.0, math.inf) else 2.0, bowl.kept["rho"]

    def estimate(seed: int) -> tuple[float, float]:
        result = landscape.average_sharpness(bowl.problem, rho=rho, p=p, draws=100, seed=seed, **bowl.ball)
        length = rho * float(np.linalg.norm(bowl.scale)) / (math.sqrt(3) if math.isinf(p) else 1)
        bowl.same("rms_norm", result.rms_norm, np.array([length]))
        return result.value, float(result.stderr[0])

    bowl.near("average_sharpness", estimate, bowl.form.mean_rise(bowl.w, rho * bowl.scale, p))


def noise(bowl: Bowl) -> None:
    """The sigma of PAC-Bayes: where its expected rise is the wanted one, to the slope of the rise there."""
    aware = bowl.kept["scaling"] != "identity"
    scale = np.abs(bowl.w) if aware else np.ones_like(bowl.w)
    if not bowl.form.quadratic:
        return
    curvature = bowl.form.mean_rise(bowl.w, scale, 2.0)
    if curvature < 1e-3 * np.abs(np.diagonal(bowl.form.a.mean(0))).max() or not curvature:
        return

    def estimate(seed: int) -> tuple[float, float]:
        options: dict[str, Any] = {"rise": 0.1, "draws": 60, "seed": seed, "magnitude_aware": aware}
        result = landscape.pac_bayes_sigma(bowl.problem, **options)
        return result.value, (result.stderr if math.isfinite(result.stderr) else math.inf) + 0.002 * result.value

    bowl.near("pac_bayes_sigma", estimate, math.sqrt(0.1 / curvature))


def eigenvalues(bowl: Bowl) -> None:
    """Of H, of T H T and of both ends; residual bounds hold, and what is called converged is right."""
    k = 1 + bowl.kept["seed"] % min(3, len(bowl.w))
    which = ("LA", "SA", "LM")[bowl.kept["seed"] % 3]
    hessian = bowl.form.hessian(bowl.w)
    result = landscape.top_eigenvalues(bowl.problem, k=k, which=which, tol=1e-5)
    _spectrum(bowl, f"top_eigenvalues ({which})", result, hessian, which)
    scaling = {"scaling": bowl.kept["scaling"], "biases": bowl.kept["biases"]}
    if bowl.kept["scaling"] != "identity":
        eta = 0.01 if bowl.kept["scaling"] == "asam-official" else 0.0
        t = forms.scales(bowl.w, _shape(bowl.kept), bowl.kept["scaling"], bowl.kept["biases"], eta)
        result = landscape.adaptive_top_eigenvalues(bowl.problem, k=k, which=which, tol=1e-5, **scaling)
        _spectrum(bowl, f"adaptive_top_eigenvalues ({which})", result, t[:, None] * hessian * t, which)
    ends = landscape.extreme_eigenvalues(bowl.problem, tol=1e-5)
    values = np.linalg.eigvalsh(hessian)
    size = 100 * float(np.abs(values).max()) + 1e-3
    bowl.same("lambda_min", ends.lambda_min, values[0], size * (1 if ends.converged else math.inf))
    bowl.same("lambda_max", ends.lambda_max, values[-1], size * (1 if ends.converged else math.inf))


def _spectrum(bowl: Bowl, name: str, result: Any, matrix: np.ndarray, which: str) -> None:
    values = np.linalg.eigvalsh(matrix)
    order = {"LA": values[::-1], "SA": values, "LM": values[np.argsort(-np.abs(values), kind="stable")]}[which]
    wanted = order[: len(result.values)]
    seen = np.sort(result.values)
    size = float(np.abs(values).max())
    if result.converged:  # the tolerance is relative to each; two of one magnitude come in either order
        seen, wanted = (np.sort(np.abs(x)) if which == "LM" else np.sort(x) for x in (seen, wanted))
        slack = 1.01e-5 * np.abs(wanted) + result.rounding + SLACK[bowl.kept["dtype"]] * (1e-3 + size)
        if np.any(np.abs(seen - wanted) > slack):
            bowl.verdict.wrong(f"{name}: {seen.tolist()} called converged, right {wanted.tolist()}")
    nearest = np.abs(result.values[:, None] - values).min(axis=1)
    allowed = result.error_bounds + result.rounding + 10 * SLACK[bowl.kept["dtype"]] * (1e-3 + size)
    if np.any(nearest > allowed):
        bowl.verdict.wrong(f"{name}: no eigenvalue within {result.error_bounds.tolist()} of {result.values.tolist()}")


def trace(bowl: Bowl) -> None:
    eta = 0.01 if bowl.kept["scaling"] == "asam-official" else 0.0
    scale = forms.scales(bowl.w, _shape(bowl.kept), bowl.kept["scaling"], "scaled", eta)
    hessian = scale[:, None] * bowl.form.hessian(bowl.w) * scale
    method = ("auto", "hutchinson", "hutch++")[bowl.kept["seed"] % 3]

    def estimate(seed: int) -> tuple[float, float]:
        options: dict[str, Any] = {"method": method, "probes": 24, "seed": seed}
        result = landscape.trace(bowl.problem, scaling=bowl.kept["scaling"], **options)
        bowl.same("the sum of the layers' traces", result.layer_values.sum(), result.value, 10 * np.abs(hessian).sum())
        return result.value, result.stderr + SLACK[bowl.kept["dtype"]] * float(np.abs(hessian).sum())

    bowl.near(f"trace ({method})", estimate, float(np.trace(hessian)))


def diagonal(bowl: Bowl) -> None:
    result = landscape.hessian_diagonal(bowl.problem, probes=8)
    if result.exact and result.matrix == "hessian":
        bowl.same("hessian_diagonal", result.values, np.diagonal(bowl.form.hessian(bowl.w)), 100)


def gradient_norm(bowl: Bowl) -> None:
    h = bowl.scale * bowl.form.gradient(bowl.w)
    result = landscape.gradient_norm(bowl.problem, p=bowl.kept["p"], **bowl.ball)
    bowl.same("gradient_norm", result.value, np.linalg.norm(h, bowl.kept["p"]), 10)
    for p, value in result.norms.items():
        bowl.same(f"gradient_norm, p = {p}", value, np.linalg.norm(h, float(p)), 10)


def layers(bowl: Bowl) -> None:
    hessian, cut = bowl.form.hessian(bowl.w), int(bowl.problem.parameters.slots[1].stop)
    result = landscape.layer_eigenvalues(bowl.problem, tol=1e-5)
    blocks = [hessian[:cut, :cut], *([hessian[cut:, cut:]] if cut < len(bowl.w) else [])]
    right = np.array([np.linalg.eigvalsh(b)[-1] for b in blocks])
    seen = result.values[:, 0] if result.converged else right
    size = max(float(np.abs(np.linalg.eigvalsh(b)).max()) for b in blocks)
    bowl.same("layer_eigenvalues", seen, right, (2e4 if bowl.kept["dtype"] == "float64" else 10) * (1e-3 + size))


def soft_rank(bowl: Bowl) -> None:
    """Of all eigenvalues, with the effective dimension; what lies too far below 0 is refused or Gauss-Newton's."""
    values, n = np.linalg.eigvalsh(bowl.form.hessian(bowl.w)), len(bowl.form.c)
    size = float(np.abs(values).max())
    damping = max(bowl.kept["rho"] * size, 20 * max(0.0, -float(values[0])), 1e-3)
    result = landscape.soft_rank(bowl.problem, damping=damping, precision=damping * n, matrix="hessian", takeuchi=False)
    right = float((values / (values + damping)).sum())
    bowl.same("soft_rank", result.value, right, 100)
    bowl.same("the effective dimension", result.effective_dimension, right, 100)
    bowl.same("the smallest eigenvalue", result.smallest, values[0], 10 * size)


def rounding(bowl: Bowl) -> None:
    """The rise under rounding of the layers' weights, and its quadratic prediction."""
    slots, value = list(bowl.problem.parameters), bowl.form.value(bowl.w)
    bits = 2 + bowl.kept["seed"] % 7
    result = landscape.quantization_rise(bowl.problem, bits=bits)
    for i, granularity in enumerate(result.granularities):
        e = np.zeros_like(bowl.w)
        for slot in (s for s in slots if s.name.endswith("weight")):
            rows = bowl.w[slot.start : slot.stop].reshape(slot.shape[0] if granularity == "channel" else 1, -1)
            step = np.abs(rows).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
            e[slot.start : slot.stop] = (np.rint(rows / step) * step - rows).reshape(-1)
        first, second = bowl.form.gradient(bowl.w) @ e, e @ bowl.form.hessian(bowl.w) @ e / 2
        scale = 10 * (1 + abs(first) + abs(second))
        bowl.same(f"quantization_rise ({granularity})", result.rise[i, 0], bowl.form.value(bowl.w + e) - value, scale)
        bowl.same("its first order", result.first_order[i, 0], first, scale)
        bowl.same("its second order", result.second_order[i, 0], second, scale)


def flatness(bowl: Bowl) -> None:
    """Relative flatness of the first layer, block by block."""
    slot, hessian = next(iter(bowl.problem.parameters)), bowl.form.hessian(bowl.w)
    n, m = slot.shape
    rows, block = bowl.w[: slot.stop].reshape(n, m), hessian[: slot.stop, : slot.stop].reshape(n, m, n, m)
    right = sum(rows[s] @ rows[t] * np.trace(block[s, :, t]) for s in range(n) for t in range(n))
    result = landscape.relative_flatness(bowl.problem, layer="first")
    bowl.same("relative_flatness", result.value, right, 100 * (1 + float(np.abs(rows).sum() ** 2)))


def fine_tuning(bowl: Bowl) -> None:
    """Gradient descent on the same loss, step by step; short enough to go down or up by a little."""
    lr = 0.1 / (1 + float(np.abs(np.linalg.eigvalsh(bowl.form.hessian(bowl.w))).max()))
    w = bowl.w
    for _ in range(4):
        w = w - lr * bowl.form.gradient(w)
    result = landscape.forgetting(bowl.problem, bowl.problem, steps=4, lr=lr, batch_size=None)
    bowl.same("forgetting", result.value, bowl.form.value(w) - bowl.form.value(bowl.w), 10)
    bowl.same("its distance", result.distance[-1], np.linalg.norm(w - bowl.w), 10)


OPERATIONS: dict[str, Callable[[Bowl], None]] = {
    f.__name__: f
    for f in (
        *(products, one_step, worst_case, keskar, average, noise, eigenvalues, trace, diagonal, gradient_norm),
        *(layers, soft_rank, rounding, flatness, fine_tuning),
    )
}


# -- what is drawn -----------------------------------------------------------------------------------------------------


def _shape(kept: dict[str, Any]) -> tuple[int, int]:
    return kept["rows"], kept["columns"]


def _bowl(kept: dict[str, Any], verdict: Verdict) -> Bowl:
    r, (rows, columns), n = np.random.default_rng([22, kept["seed"]]), _shape(kept), kept["examples"]
    dtype = getattr(torch, kept["dtype"])
    if kept["kind"] == "regression":
        x, y = r.normal(size=(n, columns)), r.normal(size=(n, rows))
        form, d = forms.regression(x, y), rows * columns + rows
        model: nn.Module = nn.Sequential(nn.Linear(columns, rows))
        inputs, targets = torch.from_numpy(x).to(dtype), torch.from_numpy(y).to(dtype)
        criterion: Any = nn.MSELoss()
    else:
        d = forms.dimension((rows, columns))
        form = forms.drawn(r, kept["kind"], n, d)
        inputs, targets = torch.arange(n), torch.zeros(n)
        criterion = _mean
    # As landscape sees it: rounded to the dtype.
    w = torch.from_numpy(r.normal(size=d)).to(dtype).double().numpy()
    if kept["kind"] == "regression":
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(torch.from_numpy(w).to(dtype), model.to(dtype).parameters())
    else:
        model = forms.FormModel(form, w, (rows, columns), dtype)
    scale = forms.scales(w, (rows, columns), kept["scaling"], kept["biases"], kept["eta"])
    size = -(-n // kept["batches"])
    batches = list(zip(inputs.split(size), targets.split(size), strict=True))
    return Bowl(kept, form, w, scale, landscape.Problem(model, criterion, batches), verdict)


def _mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.mean()
