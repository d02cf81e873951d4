"""K-SAM: SAM on the K examples with the largest loss.

Paper: Ni, Chiang, Geiping, Goldblum, Wilson, Goldstein 2022, arXiv 2210.12864. Official implementation: none found.
Deviations: none known; these choices the abstract leaves open. Examples are ranked by a forward pass without a graph
over the whole batch; the same K examples serve both gradients; gradients are means over K; BatchNorm statistics move in
the ranking pass alone; losses are compared in float32 and ties go to whichever topk returns. Large losses include wrong
labels: label noise hurts.
"""

from __future__ import annotations

from dataclasses import dataclass

from landscape.ball.perturbation import ascent
from landscape.registry import register
from trainers.method.method import Context, Method, Pass, State, Step, Task, require


@register(
    "k-sam",
    source="k a third of the batch: the cost of SGD, as Ni 2022, arXiv 2210.12864 claims; rho 0.05: SAM's",
    cost="(1 + 2 * k / batch) forward + (2 * k / batch) backward",
    statistics="the ranking forward pass over the whole batch, at the unperturbed weights",
)
@dataclass(frozen=True)
class KSAM(Method):
    """SAM whose two gradients are taken of the K examples with the largest loss.

    The passes cost 1/3 + 2K/B of SGD's: as much with K = B/3. With many classes the paper reaches SAM's accuracy at 65%
    of its cost (K about B/2).

    Args:
        rho: radius of the ball.
        k: examples that the gradients are taken of; default a third of the batch.
    """

    rho: float = 0.05
    k: int | None = None

    needs_batch = True

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}")
        require(self.k is None or self.k >= 1, f"k must be at least 1 example, received {self.k}")

    def init(self, task: Task, context: Context) -> State:
        """The largest batch so far, which K must not exceed: an epoch's last batch may be smaller."""
        known = [n for n in (context.batch_size, task.group_size) if n is not None]
        if known:
            share = 1 if task.synchronized or task.group_size else task.world
            self._check(min(known) // share)
        return {"largest_batch": 0}

    def compute(self, step: Step, state: State) -> Pass:
        """A ranking, then SAM's two passes on the top K."""
        ranked = step.forward(statistics=True)
        state["largest_batch"] = max(state["largest_batch"], step.size, step.task.group_size or 0)
        self._check(state["largest_batch"])
        k = min(self.k or max(1, step.size // 3), step.size)
        rows = step.largest(ranked.losses, k) if k < step.size else None
        step.backward(rows=rows)
        with step.perturbed(ascent(step.gradients(), self.rho)):
            step.backward(rows=rows)
        return ranked

    def _check(self, batch: int) -> None:
        require(
            self.k is None or self.k <= batch,
            f"k must not exceed the batch: received k = {self.k} for batches of {batch} examples: choose k <= {batch}",
        )
