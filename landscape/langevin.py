"""Langevin dynamics around the weights: samples of exp(-U), U(w) = heat L(w) + tether ||w - w*||^2 / 2."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from landscape.ball import vectors
from landscape.problem.problem import Problem
from landscape.progress import Bar
from landscape.random import normal, stream
from landscape.sharpness.subsets import RandomBatches


class Langevin:
    """A family of chains that start at w*, the weights of the Problem.

    w' = w - (step / 2) grad U(w) + sqrt(step) (xi + xi') / 2, xi' the noise that the next step begins with (Leimkuhler
    and Matthews 2013): on a bowl the stationary distribution is exp(-U) for every stable step, step x curvature < 4.
    Noise of its own in every step would make it wider by 1 / (1 - step x curvature / 4).
    Every draw has a name of its own, of chain and step: no chain depends on another, or on where a run was stopped.

    Args:
        problem: L.
        heat: beta n, by which the loss is multiplied.
        tether: gamma.
        batch_size: random examples, without replacement, of which each gradient is taken; None for all. Their noise
            widens the distribution: little where step x heat^2 x its variance is far below 4.
        seed: of noise and batches.

    Raises:
        InputError: what `RandomBatches` raises.
    """

    def __init__(self, problem: Problem, *, heat: float, tether: float, batch_size: int | None, seed: int) -> None:
        self.problem, self.heat, self.tether, self.seed = problem, heat, tether, seed
        self.batches = RandomBatches(problem, batch_size, seed)
        self.center = problem.loss()

    def chain(self, name: str, step: float, steps: int, bar: Bar | None = None) -> tuple[np.ndarray, Tensor]:
        """What the chain meets before each step, and where it ends.

        Returns:
            (3, steps): the rise of the loss over L(w*) on the step's examples, ||w - w*||^2, and <w - w*, grad U>, of
            which exp(-U) has the mean d; nan from where a loss or gradient is not finite. And the last w, (d,).
        """
        w, noise = self.problem.weights, self._noise(name, 0)
        met: list[Tensor] = []
        for t in range(steps):
            part, share = self._examples(name, t)
            loss, gradient = part.loss_and_gradient(w)
            away = w - self.problem.weights
            rise = share * (loss - (self.center if part is self.problem else part.loss()))
            force = gradient * (self.heat * share) + self.tether * away
            if not bool(torch.isfinite(rise) & vectors.finite(force)):
                break
            met.append(torch.stack([rise, vectors.norm(away) ** 2, vectors.dot(away, force)]))
            following = self._noise(name, t + 1)
            w = w - force * (step / 2) + (noise + following) * (math.sqrt(step) / 2)
            noise = following
            if bar is not None:
                bar.advance()
        known = torch.stack(met).cpu().numpy().T if met else np.empty((3, 0))
        return np.pad(known, ((0, 0), (0, steps - known.shape[1])), constant_values=math.nan), w

    def _noise(self, name: str, t: int) -> Tensor:
        return normal(self.problem.weights, stream(self.seed, f"noise of chain {name}, {t}"))

    def _examples(self, name: str, t: int) -> tuple[Problem, float]:
        """The examples of a step, and the factor that makes their loss an unbiased estimate of L."""
        part = self.batches.draw(f"examples of chain {name}, {t}")
        return part, (self.problem.examples / part.examples) * (part.weight / self.problem.weight)
