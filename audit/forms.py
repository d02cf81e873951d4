"""Losses in closed form: value, gradient, Hessian and expected rise under noise by their formulas, in numpy.

L(w) = mean over examples i of w' A_i w / 2 + b_i' w + c_i + sum_j a_ij cos(f_j w_j + s_ij) + sum_j q_ij w_j^4 / 4.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray


@dataclass(frozen=True)
class Form:
    """L of n examples in d weights.

    Attributes:
        a: (n, d, d) symmetric matrices.
        b: (n, d) slopes.
        c: (n,) constants.
        height: (n, d) of the waves.
        frequency: (d,) of the waves.
        phase: (n, d) of the waves.
        quartic: (n, d) coefficients.
    """

    a: Array
    b: Array
    c: Array
    height: Array
    frequency: Array
    phase: Array
    quartic: Array

    @property
    def quadratic(self) -> bool:
        """Whether nothing but the quadratic part is there."""
        return not (self.height.any() or self.quartic.any())

    def of(self, rows: slice | Array) -> Form:
        """L of some of the examples."""
        per_example = {f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self) if f.name != "frequency"}
        return replace(self, **per_example)

    def value(self, w: Array) -> float:
        """L(w)."""
        quadratic = np.einsum("nij,i,j->n", self.a, w, w) / 2 + self.b @ w + self.c
        waves = self.height * np.cos(self.frequency * w + self.phase)
        return float(np.mean(quadratic + (waves + self.quartic * w**4 / 4).sum(1)))

    def gradient(self, w: Array) -> Array:
        """(d,)."""
        waves = -self.frequency * self.height * np.sin(self.frequency * w + self.phase)
        return np.asarray(np.mean(self.a @ w + self.b + waves + self.quartic * w**3, axis=0))

    def hessian(self, w: Array) -> Array:
        """(d, d)."""
        waves = -(self.frequency**2) * self.height * np.cos(self.frequency * w + self.phase)
        return self.a.mean(0) + np.diag(np.mean(waves + 3 * self.quartic * w**2, axis=0))

    def mean_rise(self, w: Array, scale: Array, p: float) -> float:
        """E L(w + scale xi) - L(w): xi standard normal (p = 2) or uniform in [-1, 1] (p = inf)."""
        t, second, fourth = self.frequency * scale, 1.0, 3.0
        kept = np.exp(-(t**2) / 2)
        if math.isinf(p):
            kept, second, fourth = np.sinc(t / math.pi), 1 / 3, 1 / 5
        quadratic = second * (np.diagonal(self.a, axis1=1, axis2=2) @ scale**2) / 2
        waves = self.height * np.cos(self.frequency * w + self.phase) * (kept - 1)
        quartic = self.quartic / 4 * (6 * w**2 * scale**2 * second + scale**4 * fourth)
        return float(np.mean(quadratic + (waves + quartic).sum(1)))


class FormModel(nn.Module):
    """The same losses as a network: takes the numbers of examples, gives the loss of each; its weights are two layers.

    The layers are never called: they say which weights form a filter, a layer, a bias.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    height: Tensor
    frequency: Tensor
    phase: Tensor
    quartic: Tensor

    def __init__(self, form: Form, w: Array, shape: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        rows, columns = shape
        self.inner, self.outer = nn.Linear(columns, rows), nn.Linear(rows, 1, bias=False)
        for field in dataclasses.fields(form):
            self.register_buffer(field.name, torch.from_numpy(getattr(form, field.name)))
        pieces = torch.from_numpy(w).split([p.numel() for p in self.parameters()])
        for parameter, piece in zip(self.parameters(), pieces, strict=True):
            parameter.data = piece.view_as(parameter).clone()
        self.to(dtype)

    def forward(self, index: Tensor) -> Tensor:
        w = torch.cat([p.reshape(-1) for p in self.parameters()])
        quadratic = (self.a[index] @ w @ w) / 2 + self.b[index] @ w + self.c[index]
        waves = self.height[index] * torch.cos(self.frequency * w + self.phase[index])
        return quadratic + (waves + self.quartic[index] * w**4 / 4).sum(1)


def dimension(shape: tuple[int, int]) -> int:
    """Number of weights of `FormModel`."""
    rows, columns = shape
    return rows * columns + 2 * rows


def scales(w: Array, shape: tuple[int, int], kind: str, biases: str, eta: float) -> Array:
    """T of adaptive sharpness, (d,): by element, filter (output row) or layer; asam-official: |w| + eta on weights."""
    rows, columns = shape
    inner, bias, outer = np.split(w, [rows * columns, rows * columns + rows])
    if kind == "identity":
        pieces = [np.ones_like(v) for v in (inner, bias, outer)]
    elif kind == "layerwise":
        pieces = [np.full_like(v, np.linalg.norm(v)) for v in (inner, bias, outer)]
    elif kind == "filterwise":
        by_row = np.linalg.norm(inner.reshape(rows, columns), axis=1)
        pieces = [np.repeat(by_row, columns), np.abs(bias), np.full_like(outer, np.linalg.norm(outer))]
    else:
        pieces = [np.abs(v) for v in (inner, bias, outer)]
    if kind != "identity":
        pieces = [v + eta for v in pieces]
    if biases == "fixed":
        pieces[1] = np.zeros(rows)
    elif biases == "unscaled" or kind == "asam-official":
        pieces[1] = np.ones(rows)
    return np.concatenate(pieces)


def one_step(h: Array, scale: Array, rho: float, p: float) -> tuple[Array, float]:
    """The epsilon with ||epsilon / T||_p <= rho that raises the linear part most, and by how much; h = T g."""
    if math.isinf(p):
        return rho * scale * np.sign(h), rho * float(np.abs(h).sum())
    if p == 1:
        u = np.where(np.abs(h) == np.abs(h).max(), np.sign(h), 0.0)
        return rho * scale * u / max(np.abs(u).sum(), 1), rho * float(np.abs(h).max())
    q = p / (p - 1)
    norm = float((np.abs(h) ** q).sum() ** (1 / q))
    if not norm:
        return np.zeros_like(h), 0.0
    return rho * scale * np.sign(h) * (np.abs(h) / norm) ** (q - 1), rho * norm


def largest_rise(h: Array, b: Array, rho: float, p: float) -> float:
    """At least the maximum of h'u + u'Bu / 2 over ||u||_p <= rho; for p = 2 the maximum itself, by duality."""
    if math.isinf(p):
        if len(h) <= 12 and np.linalg.eigvalsh(b).min() >= 0:  # convex: at a corner
            corners = rho * (2 * ((np.arange(2 ** len(h))[:, None] >> np.arange(len(h))) & 1) - 1)
            return float((corners @ h + np.einsum("ki,ij,kj->k", corners, b, corners) / 2).max())
        return float(rho * np.abs(h).sum() + rho**2 * np.abs(b).sum() / 2)
    values, vectors = np.linalg.eigh(b)
    slopes = (vectors.T @ h) ** 2

    def dual(multiplier: float) -> float:  # above both the largest eigenvalue and 0, every value is a bound
        return float((slopes / (multiplier - values)).sum() / 2 + multiplier * rho**2 / 2)

    low = max(0.0, float(values[-1]))
    gaps = np.geomspace(1e-12, 1.0, 2000) * (np.linalg.norm(h) / rho + np.abs(values).max() + 1e-300)
    best = low + gaps[int(np.argmin([dual(low + g) for g in gaps]))]
    fine = best + np.linspace(-0.03, 0.03, 2001) * (best - low)
    return min(dual(m) for m in fine)


# -- what is drawn -----------------------------------------------------------------------------------------------------


def regression(x: np.ndarray, y: np.ndarray) -> Form:
    """Mean of |W x + b - y|^2 over examples and outputs, as a quadratic of (W, b)."""
    (n, columns), rows = x.shape, y.shape[1]
    design = np.zeros((n, rows, rows * columns + rows))
    for i in range(rows):
        design[:, i, i * columns : (i + 1) * columns] = x
        design[:, i, rows * columns + i] = 1
    flat = np.zeros((n, design.shape[2]))
    a = 2 / rows * np.einsum("nri,nrj->nij", design, design)
    b = -2 / rows * np.einsum("nri,nr->ni", design, y)
    return Form(a, b, (y**2).mean(1), flat, flat[0], flat, flat)


def drawn(r: np.random.Generator, kind: str, n: int, d: int) -> Form:
    """A loss of one of the kinds but regression."""
    flat = np.zeros((n, d))
    form = Form(np.zeros((n, d, d)), r.normal(size=(n, d)), r.normal(size=n), flat, flat[0], flat, flat)
    if kind in ("convex", "quartic"):
        form = replace(form, a=_symmetric(r.normal(size=(n, d, d)), np.full(d, 1 / d)))
    if kind == "indefinite":
        form = replace(form, a=_symmetric(r.normal(size=(n, d, d)), r.choice([-1, 1], d) / d))
    if kind == "low rank":
        form = replace(
            form, a=_symmetric(np.repeat(r.normal(size=(1, 2, d)), n, 0), np.array([1.0, r.choice([-1, 1])]))
        )
    if kind == "quartic":
        form = replace(form, quartic=r.uniform(0, 1, (n, d)))
    if kind == "waves":
        phase, frequency = r.uniform(0, 2 * math.pi, (n, d)), r.uniform(0.2, 3, d)
        form = replace(form, phase=phase, height=r.normal(size=(n, d)), frequency=frequency)
    return form


def _symmetric(factors: Array, signs: Array) -> Array:
    return np.asarray(np.einsum("nki,k,nkj->nij", factors, signs, factors))


KINDS = ("convex", "indefinite", "low rank", "linear", "waves", "quartic", "regression")
