"""SAM-ON: SAM that perturbs the normalization layers only.

Paper: Mueller, Vlaar, Rolnick, Hein 2023, arXiv 2306.04226. Official implementation: mueller-mp/SAM-ON.
Deviations from it: normalization layers are found by their type (there by "norm" or "bn" in the name); the first pass
differentiates with respect to their parameters alone; BatchNorm statistics move once a step (there: twice); weights are
restored by copying.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from landscape.ball.perturbation import ascent
from landscape.problem.parameters import NORM_LAYERS
from landscape.registry import register
from trainers.method.method import Context, Method, Pass, State, Step, Task, require


@register(
    "sam-on",
    source="rho 0.5: train.py of mueller-mp/SAM-ON, arXiv 2306.04226",
    cost="2 forward + 2 backward; the first without the weight gradients of other layers",
    statistics="the first pass, at the unperturbed weights",
)
@dataclass(frozen=True)
class SAMON(Method):
    """SAM in the space of the scales and shifts of normalization layers: epsilon = rho g_N / ||g_N||.

    The descent gradient is that of all parameters, at w + epsilon.

    Args:
        rho: radius of the ball.
    """

    rho: float = 0.5

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}: the authors' value is 0.5")

    def init(self, task: Task, context: Context) -> State:
        """Nothing is remembered; the network must have normalization layers."""
        require(
            bool(_of_norms(task)),
            "sam-on perturbs normalization layers and the network has none that is trained: choose another model "
            "(resnet20, vit, ...) or sam",
        )
        return {}

    def compute(self, step: Step, state: State) -> Pass:
        """The gradient of the normalization layers at w, then that of all parameters at w + epsilon."""
        clean = step.backward(inputs=_of_norms(step.task))
        with step.perturbed(ascent(step.gradients(), self.rho)):
            step.backward()
        return clean


def _of_norms(task: Task) -> list[Tensor]:
    written = {s.name.rpartition(".")[0] for s in task.layout if s.kind == "norm"}  # by hand: known by what they do
    layers = [m for n, m in task.model.named_modules() if isinstance(m, NORM_LAYERS) or n in written]
    affine = {id(p) for m in layers for p in m.parameters(recurse=False)}
    return [p for p in task.parameters if id(p) in affine]
