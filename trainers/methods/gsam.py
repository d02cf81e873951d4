"""GSAM: SAM that also shrinks the surrogate gap.

Paper: Zhuang, Gong, Yuan, Cui, Adam, Dvornek, Tatikonda, Duncan, Liu 2022, arXiv 2203.08065. Official implementations:
google-research/big_vision (JAX), juntang-zhuang/GSAM (PyTorch, tested by its author on CIFAR-10 alone).
Deviations from them: rho_t stays in [rho_min, rho], where the formula gives less than rho_min, even a negative radius,
for the learning rates of a warm-up; a constant learning rate has rho_t = rho, as in the PyTorch code; no epsilon in
norms; one perturbation and one decomposition for the whole batch unless m-groups or one per process are chosen (there:
one per device). Not offered: element-wise radii.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from landscape.ball.perturbation import ascent
from landscape.ball.vectors import rejection
from landscape.errors import InputWarning, unknown
from landscape.registry import register
from trainers.method.method import Context, Method, Pass, State, Step, Task, require

DESCENTS = ("perturbed", "clean")


@register(
    "gsam",
    source="rho 0.04 falling to 0.02, alpha 0.01: Zhuang 2022, arXiv 2203.08065, table 4 (ResNet-50, ImageNet)",
    cost="2 forward + 2 backward",
    statistics="the first pass, at the unperturbed weights",
)
@dataclass(frozen=True)
class GSAM(Method):
    """Descend along g2 - alpha g_perp, g_perp the part of g orthogonal to the gradient g2 at w + epsilon.

    epsilon = rho_t g / ||g|| with rho_t = rho_min + (rho - rho_min) (lr - lr_min) / (lr_max - lr_min): the radius falls
    with the learning rate. Removing g_perp raises L(w) a little and leaves L(w + epsilon) as it is: the gap shrinks.
    With descend="clean", the JAX code's minimize_fp=False: along g + alpha times the part of g2 orthogonal to g.

    Table 4 of the paper for vision transformers: rho 0.6 to 0 or 0.2, alpha 0.4 to 1.

    Args:
        rho: radius of the ball at the highest learning rate.
        rho_min: radius at the lowest; default half of rho, as the paper's ResNets have it.
        alpha: strength with which the surrogate gap is reduced.
        descend: "perturbed" (along g2, as the paper) or "clean" (along g: fewer spikes of the loss).
    """

    rho: float = 0.04
    rho_min: float | None = None
    alpha: float = 0.01
    descend: str = "perturbed"

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}: the paper's radius for ResNets is 0.04")
        low = 0.0 if self.rho_min is None else self.rho_min
        require(0 <= low <= self.rho, f"rho_min must be between 0 and rho = {self.rho}, received {self.rho_min}")
        require(self.alpha >= 0, f"alpha must be >= 0, received {self.alpha}: the paper's value for ResNets is 0.01")
        if self.descend not in DESCENTS:
            raise unknown("choice of descend", self.descend, DESCENTS)

    def init(self, task: Task, context: Context) -> State:
        """Nothing said of clamped radii yet."""
        return {"clamped": False}

    def radius(self, context: Context) -> tuple[float, bool]:
        """rho_t, and whether it was clamped."""
        low = self.rho / 2 if self.rho_min is None else self.rho_min
        span = context.lr_max - context.lr_min
        if span <= 0:
            return self.rho, False
        rho = low + (self.rho - low) * (context.lr - context.lr_min) / span
        clamped = min(max(rho, low), self.rho)
        return clamped, abs(clamped - rho) > 1e-12 * self.rho

    def compute(self, step: Step, state: State) -> Pass:
        """The gradient at w, the gradient at w + epsilon, their combination."""
        rho, clamped = self.radius(step.context)
        if clamped and not state["clamped"]:
            state["clamped"] = True
            self._say(step, rho)
        clean = step.backward()
        gradient = step.gradients()
        with step.perturbed(ascent(gradient, rho)):
            step.backward()
        ascended = step.gradients()
        if self.descend == "clean":
            step.leave(torch._foreach_add(gradient, rejection(ascended, gradient), alpha=self.alpha))
        elif self.alpha:
            step.leave(torch._foreach_sub(ascended, rejection(gradient, ascended), alpha=self.alpha))
        return clean

    @staticmethod
    def _say(step: Step, rho: float) -> None:
        context = step.context
        if step.task.rank == 0:
            text = (
                f"gsam: the learning rate {context.lr:g} lies outside [{context.lr_min:g}, {context.lr_max:g}]: rho_t "
                f"is clamped to {rho:g} there"
            )
            warnings.warn(InputWarning(text), stacklevel=2)
