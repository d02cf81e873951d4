"""SAF: sharpness-aware training for free.

Paper: Du, Zhou, Feng, Tan, Zhou 2022, arXiv 2205.14083. Official implementation: AngusDujw/SAF.
As in the code, not in the poster: the divergence carries tau^2. Both views of an example differ where images are
augmented: the term rewards consistency too.
Faults of the code that are not inherited: outputs filed under the next batch's indices; a store per process, although
examples change process every epoch (here every process files what all have seen); a store that is lost on resuming and
entries that are read without having been written (here each entry knows its epoch, and one of another epoch counts as
none); log(softmax) in half precision; outputs of mixed images filed under one of the two (here refused).
Deviations from it: the store holds log-probabilities at temperature tau in half precision, `lag` epochs of them (there
lag + 1 slots of float32 logits); the start is a share of the run unless recipe = "paper".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.errors import InputError, unknown
from landscape.registry import register
from trainers.method import trajectory
from trainers.method.method import Context, Method, Pass, State, Step, Task, require

PRECISIONS = ("half", "full")
NEVER = -(2**31)
"""The epoch of an entry that was not written yet: e - lag of no epoch e."""
SMALLEST = -1e4
"""Log-probabilities are clamped here: half precision ends at -65504."""


@register(
    "saf",
    source="strength 0.3, tau 5, lag 3, start 0.3 (paper: 5 epochs): README of AngusDujw/SAF, arXiv 2205.14083",
    cost="1 forward + 1 backward",
    statistics="the only pass",
)
@dataclass(frozen=True)
class SAF(Method):
    """Stay close to the outputs of `lag` epochs ago: loss + strength tau^2 mean_i KL(p_i^(e - lag) || p_i).

    p = softmax(logits / tau); the past is a constant, stored for every training example. An example whose outputs of
    that epoch are not in the store has no term.

    A store of lag x n x C half-precision numbers lies on the training device and in the checkpoint. The loader must
    give the examples' indices, and Context the training set.

    Args:
        strength: lambda; with tau^2 the factor is 7.5.
        tau: temperature.
        lag: epochs between the outputs that are compared, E-tilde.
        start: share of the run after which the term is added.
        recipe: "scaled" (`start`) or "paper" (the term is added after 5 epochs).
        store: precision of the store, "half" or "full".
        top: classes of an example that are stored, all others being one event; default every class.
    """

    strength: float = 0.3
    tau: float = 5.0
    lag: int = 3
    start: float = 0.3
    recipe: str = "scaled"
    store: str = "half"
    top: int | None = None

    needs_batch = True
    needs_indices = True

    def __post_init__(self) -> None:
        trajectory.check(self.strength, self.tau, self.recipe, self.start)
        require(self.lag >= 1, f"lag must be at least 1 epoch, received {self.lag}: the authors' value is 2 or 3")
        if self.store not in PRECISIONS:
            raise unknown("store", self.store, PRECISIONS)
        require(self.top is None or self.top >= 1, f"top must be at least 1 class, received {self.top}")

    def init(self, task: Task, context: Context) -> State:
        """An empty store."""
        if task.group_size is not None and task.world > 1:
            raise InputError("saf perturbs nothing that m-groups would divide, and files whole batches: leave out m")
        examples, classes = self._extent(context)
        shape = (self.lag, examples, self.top or classes)
        dtype = torch.float16 if self.store == "half" else torch.promote_types(task.parameters[0].dtype, torch.float32)
        state: State = {
            "log_probabilities": torch.zeros(shape, dtype=dtype, device=task.device),
            "epoch_written": torch.full(shape[:2], NEVER, dtype=torch.int32, device=task.device),
        }
        if self.top is not None:
            kind = torch.int16 if classes <= 2**15 else torch.int32
            state["classes"] = torch.zeros(shape, dtype=kind, device=task.device)
        return state

    def announcement(self, task: Task, context: Context) -> str:
        """The size of the store."""
        examples, classes = self._extent(context)
        stored = self.top or classes
        size = 2 if self.store == "half" else max(4, task.parameters[0].element_size())
        size += 0 if self.top is None else 2 if classes <= 2**15 else 4
        total = self.lag * examples * (stored * size + 4)
        return (
            f"saf stores {stored} outputs of {examples:,} examples for {self.lag} epochs: "
            f"{trajectory.size_text(total)} on {task.device}"
        )

    def compute(self, step: Step, state: State) -> Pass:
        """One pass, with the divergence from the stored outputs; then the outputs are stored."""
        indices, context = step.indices, step.context
        self._refuse_mixtures(step)
        objective = None
        if trajectory.started(context, self.recipe, self.start) and context.epoch >= self.lag:
            values, classes, known = self._read(state, indices, context.epoch)

            def objective(result: Pass) -> Tensor:
                trajectory.require_classes(result, "saf")
                term = trajectory.divergence(values, result.logits, self.tau, classes)
                return result.losses + self.strength * self.tau**2 * (known * term)

        result = step.backward(objective=objective)
        trajectory.require_classes(result, "saf")
        self._write(state, step.everywhere(indices), step.everywhere(result.logits), context.epoch)
        return result

    # -- the store -------------------------------------------------------------------------------------------------

    def _read(self, state: State, indices: Tensor, epoch: int) -> tuple[Tensor, Tensor | None, Tensor]:
        slot = epoch % self.lag
        values = state["log_probabilities"][slot].index_select(0, indices)
        classes = None if self.top is None else state["classes"][slot].index_select(0, indices).long()
        return values, classes, state["epoch_written"][slot].index_select(0, indices) == epoch - self.lag

    def _write(self, state: State, indices: Tensor, logits: Tensor, epoch: int) -> None:
        slot, stored = epoch % self.lag, state["log_probabilities"]
        values = F.log_softmax(logits / self.tau, dim=1)
        # Where float16 overflowed in the network there is nothing to come back to.
        written = torch.where(values.isfinite().all(dim=1), epoch, NEVER).to(torch.int32)
        values = values.nan_to_num(nan=SMALLEST).clamp(min=SMALLEST)
        if self.top is not None:
            values, classes = values.topk(self.top, dim=1)
            state["classes"][slot].index_copy_(0, indices, classes.to(state["classes"].dtype))
        stored[slot].index_copy_(0, indices, values.to(stored.dtype))
        state["epoch_written"][slot].index_copy_(0, indices, written)

    def _extent(self, context: Context) -> tuple[int, int]:
        known = context.training_set
        if known is None:
            raise InputError(
                "saf keeps the outputs of every training example and knows neither their number nor the classes: give "
                "method.init a Context(training_set=...) with .examples and .classes"
            )
        require(
            self.top is None or self.top < known.classes,
            f"top must be below the number of classes, {known.classes}, received {self.top}: leave it out to store all",
        )
        return known.examples, known.classes

    @staticmethod
    def _refuse_mixtures(step: Step) -> None:
        target = step.batch.target
        require(
            not (isinstance(target, Tensor) and target.is_floating_point()),
            "saf compares an example with its own past and the targets are mixtures of classes: turn mixup and cutmix "
            "off, or use mesa, which compares outputs of the same view",
        )
