"""MSAM: SAM along the momentum, at the cost of SGD.

Paper: Becker, Altrock, Risse 2024, arXiv 2401.12033. Official implementation: MarlonBecker/MSAM.
As there: the gradient is taken at w - rho v / ||v||, on the side that descends along the momentum v.
Deviations from it: weights are perturbed and restored within the step (there they stay perturbed between steps, and a
checkpoint holds perturbed weights unless one moves back first); weight decay acts on the unperturbed weights (there on
the perturbed ones); any number of parameter groups (there one); the first moment of Adam, AdamW and Lion serves too.

The radius. The class of the authors has 0.3, their runs of wide residual networks 3. A distance is short or long beside
the weights' norm, which He initialization makes about sqrt(2 x channels of all layers): 60 to 130 for WRN-16-4 and
WRN-28-10, so that 3 is 2% to 5% of it, and 15 to 30 for networks of some hundred channels, where 0.3 is 1% to 2%. The
default is the class's; a wide network takes the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.ball.perturbation import ascent
from landscape.registry import register
from trainers.method.method import Context, Method, Pass, State, Step, Task, require


@register(
    "msam",
    source="rho 0.3: class of MarlonBecker/MSAM, arXiv 2401.12033 (3 in its runs of wide networks on CIFAR)",
    cost="1 forward + 1 backward",
    statistics="the only pass, at the perturbed weights",
    revision=2,
)
@dataclass(frozen=True)
class MSAM(Method):
    """The gradient at w - rho v / ||v||, v the momentum of the base optimizer; one pass.

    The first step, which has no momentum yet, is a plain one. Checkpoints hold the unperturbed w.

    Args:
        rho: distance of the perturbation; 3 for wide networks, about 3% of the norm of their weights,
            which are several times as long.
    """

    rho: float = 0.3

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}: the class of the authors has 0.3")

    def init(self, task: Task, context: Context) -> State:
        """Nothing is remembered: the momentum is the optimizer's."""
        optimizer = task.optimizer
        need = "msam perturbs along the base optimizer's momentum: "
        if optimizer is None:
            require(False, need + "give Task the optimizer")
        else:
            momenta = [bool(g.get("momentum", 0)) or "betas" in g for g in optimizer.param_groups]
            require(all(momenta), need + "it has none: choose a momentum above 0, or another base")
        return {}

    def compute(self, step: Step, state: State) -> Pass:
        """One pass at the weights perturbed along the momentum."""
        with step.perturbed(ascent(self._momentum(step), -self.rho)):
            return step.backward()

    @staticmethod
    def _momentum(step: Step) -> list[Tensor]:
        optimizer = step.task.optimizer
        assert optimizer is not None
        states = [optimizer.state.get(p, {}) for p in step.parameters]
        buffers = [s.get("momentum_buffer", s.get("exp_avg")) for s in states]
        return [torch.zeros_like(p) if b is None else b for p, b in zip(step.parameters, buffers, strict=True)]
