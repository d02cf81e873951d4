"""MESA: the memory-efficient variant of SAF.

Paper: Du, Zhou, Feng, Tan, Zhou 2022, arXiv 2205.14083. Official implementation: AngusDujw/SAF.
As there: the averaged network sees the same view, in evaluation mode; its buffers are averaged too; the divergence
carries tau^2. Deviations from it: the average's horizon and the start scale with the run unless recipe = "paper"; the
averaged network runs from the start of the term on (there from the first epoch on); integer buffers are copied.

The horizon. A decay is a number of steps, 1 / (1 - decay), and means nothing without the length of a step and of the
run. The code's 0.9998 on ImageNet in batches of 1,024 is 4 of its 90 epochs (the paper's 0.9995: 1.6; 0.9992 in its
script of 300 epochs: less). How far an average lags behind falling weights depends on the horizon's share of the run,
as the learning rate's schedule does: so the default is 4 epochs, and in a run of fewer than 90 that share of it, 4/90.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.registry import register
from trainers.method import trajectory
from trainers.method.examples import mean_over_positions
from trainers.method.method import Context, Method, Pass, State, Step, Task, require

PAPER_DECAY = 0.9995
HORIZON = 4.0
SHARE = 4 / 90
"""Horizon over length of the authors' run on ImageNet."""


@register(
    "mesa",
    source="strength 0.8, tau 5, start 0.3, horizon 4 of 90 epochs: AngusDujw/SAF, arXiv 2205.14083 (README and code)",
    cost="(2 - start) forward + 1 backward; from the start of the term on 2 forward",
    statistics="the only training pass",
    revision=3,
)
@dataclass(frozen=True)
class MESA(Method):
    """Stay close to an average of the past weights: loss + strength tau^2 mean_i KL(f_v(x_i) || f_w(x_i)).

    v <- decay v + (1 - decay) w after every step, from v = w at the beginning; probabilities at temperature tau.

    Memory of a second network.

    Args:
        strength: lambda; with tau^2 the factor is 20.
        tau: temperature.
        horizon: epochs that the average looks back over, decay = 1 - 1 / (horizon x steps of an epoch); default 4, in
            a run of fewer than 90 epochs 4/90 of it, the share that it is in the authors' recipe.
        decay: of the average at each step, instead of `horizon`; the paper's 0.9995 is recipe = "paper", timm's default
            is 0.9998.
        start: share of the run after which the term is added.
        recipe: "scaled" (`horizon` and `start`) or "paper" (decay 0.9995, the term is added after 5 epochs).
    """

    strength: float = 0.8
    tau: float = 5.0
    horizon: float | None = None
    decay: float | None = None
    start: float = 0.3
    recipe: str = "scaled"

    needs_batch = True

    def __post_init__(self) -> None:
        trajectory.check(self.strength, self.tau, self.recipe, self.start)
        require(self.horizon is None or self.horizon > 0, f"horizon must be above 0 epochs, received {self.horizon}")
        need = "leave it out for a horizon of 4 epochs, at most 4/90 of the run; the paper's value is 0.9995"
        require(self.decay is None or 0 < self.decay < 1, f"decay must be in (0, 1), received {self.decay}: {need}")
        other = f"decay={self.decay}" if self.decay is not None else "recipe=paper"
        free = self.horizon is None or (self.decay is None and self.recipe != "paper")
        require(free, f"horizon={self.horizon} and {other} both say how far the average looks back: choose one")

    def init(self, task: Task, context: Context) -> State:
        """The average starts at the weights."""
        return {"average": {name: tensor.clone() for name, tensor in task.named_tensors().items()}}

    def announcement(self, task: Task, context: Context) -> str:
        """Decay and memory of the average."""
        size = trajectory.size_text(sum(t.nbytes for t in task.named_tensors().values()))
        return f"mesa averages weights with decay {self._decay(context):.6g}: {size} on {task.device}"

    def compute(self, step: Step, state: State) -> Pass:
        """From the start on a forward of the average; then one pass."""
        if not trajectory.started(step.context, self.recipe, self.start):
            return step.backward()
        past = torch.log_softmax(step.outputs_with(state["average"]) / self.tau, dim=1)

        def objective(result: Pass) -> Tensor:
            trajectory.require_classes(result, "mesa", sequences=True)
            each = mean_over_positions(trajectory.divergence(past, result.logits, self.tau), result.target)
            return result.losses + self.strength * self.tau**2 * each

        return step.backward(objective=objective)

    def after_step(self, step: Step, state: State) -> None:
        """Move the average, v <- decay v + (1 - decay) w, in place: a step that is taken back never comes here."""
        average, now = state["average"], step.task.named_tensors()
        moving = [name for name, tensor in now.items() if tensor.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_([average[n] for n in moving], [now[n] for n in moving], 1 - self._decay(step.context))
            for name in now.keys() - set(moving):
                average[name].copy_(now[name])

    def _decay(self, context: Context) -> float:
        if self.decay is not None:
            return self.decay
        if self.recipe == "paper":
            return PAPER_DECAY
        steps = (self.horizon or HORIZON) * context.steps_per_epoch
        if self.horizon is None and context.total_steps > 1:
            steps = min(steps, context.total_steps * SHARE)
        return 1 - 1 / max(2.0, steps)
