"""GNP (also GNR): penalizing the gradient's norm.

Paper: Zhao, Zhang, Hu 2022, arXiv 2202.03599. Official implementation: zhaoyang-0204/gnp (JAX).
Deviations from it: the gradients are mixed as in the paper; the authors' code has mixed the normalized first gradient
since 2022-06-26 (`norm_perturbations=True`): (1 - alpha) g1 / ||g1|| + alpha g2, the same at alpha = 1 alone, offered
as `normalized`. A zero gradient gives a zero perturbation (there: nan); weight decay is outside the perturbed loss
unless chosen otherwise (there: inside).
The warm-up of the penalty is that of Zhao, Zhang, Hu 2024, arXiv 2406.09723 ("When will gradient regularization be
harmful?"), of which the abstract and the README were at hand, not the formulas: lambda or r rise linearly with the
learning rate, alpha staying what it is where r rises, or the penalty is left out until the warm-up is over.
"""

from __future__ import annotations

from dataclasses import dataclass

from landscape.ball.perturbation import ascent
from landscape.errors import unknown
from landscape.registry import register
from trainers.method.method import Context, Method, Pass, State, Step, Task, require
from trainers.method.mixing import leave_mixture

WARMUPS = ("none", "lambda", "r", "zero")


@register(
    "gnp",
    source="rho 0.1, alpha 0.8: Zhao 2022, arXiv 2202.03599 (CIFAR; rho 0.05 for ImageNet)",
    cost="2 forward + 2 backward; 1 of each in a zero warm-up",
    statistics="the first pass, at the unperturbed weights",
)
@dataclass(frozen=True)
class GNP(Method):
    """Minimize L(w) + alpha rho ||grad L(w)||: descend along (1 - alpha) g1 + alpha g2, g2 = grad L(w + rho g1/||g1||).

    alpha = 1 is SAM.

    Args:
        rho: distance of the finite difference that approximates the penalty's gradient; the paper's r.
        alpha: weight of the perturbed gradient; the penalty's coefficient is lambda = alpha rho.
        normalized: mix the normalized first gradient, as the authors' code does.
        penalty_warmup: what the penalty does during the learning rate's warm-up: none (it is there from the first step
            on), lambda (alpha rises from 0), r (rho rises from 0) or zero (it is left out: one pass). With Adam and a
            warm-up the authors found the full penalty harmful and zero best.
    """

    rho: float = 0.1
    alpha: float = 0.8
    normalized: bool = False
    penalty_warmup: str = "none"

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}: the paper's value is 0.1")
        require(self.alpha >= 0, f"alpha must be >= 0, received {self.alpha}: the paper's value is 0.8, 1 is SAM")
        if self.penalty_warmup not in WARMUPS:
            raise unknown("penalty-warmup", self.penalty_warmup, WARMUPS)

    def init(self, task: Task, context: Context) -> State:
        """Nothing is remembered; a warm-up of the penalty needs one of the learning rate."""
        follows = self.penalty_warmup != "none" and context.warmup_steps == 0
        require(
            not follows,
            f"penalty_warmup={self.penalty_warmup} follows the learning rate's warm-up, which is 0 steps: "
            "give --warmup (MethodOptimizer: warmup=)",
        )
        return {}

    def compute(self, step: Step, state: State) -> Pass:
        """The gradient at w, the gradient at w + epsilon, their mixture."""
        clean = step.backward()
        if self.penalty_warmup == "zero" and step.context.warming:
            return clean
        gradient = step.gradients()
        rising = {} if self.penalty_warmup == "none" else {self.penalty_warmup: step.context.warmed}
        with step.perturbed(ascent(gradient, self.rho * rising.get("r", 1.0))):
            step.backward()
        leave_mixture(step, gradient, self.alpha * rising.get("lambda", 1.0), self.normalized)
        return clean
