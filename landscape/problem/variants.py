"""Other problems of the same function: other batches, parameters, networks, statistics, or whole weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

from torch import Tensor, nn

from landscape.ball.spread import spread_of
from landscape.errors import InputError
from landscape.problem import additivity, checks
from landscape.problem.batch_passes import BatchPasses
from landscape.problem.batches import Batch
from landscape.problem.evaluator import copied
from landscape.problem.parameters import Parameters
from landscape.problem.sharded import ShardedEvaluator
from landscape.problem.skeleton import skeleton

if TYPE_CHECKING:
    from landscape.problem.problem import Problem


class Variants(BatchPasses):
    """What a `Problem` derives from itself."""

    @property
    def undividable(self) -> str | None:
        """Why the batches may not be regrouped, in words; None where L provably stays as it is.

        Tried out once, see `landscape.problem.additivity`.
        """
        if not self._shared.division:
            self.settle_division(additivity.obstacle(cast("Problem", self.alone())))
        return self._shared.division[0]

    def settle_division(self, reason: str | None) -> None:
        """Divide the batches from here on, or, for a reason, never; a note says so where L is that of these batches."""
        self._shared.division = [reason]
        coupled = reason in additivity.COUPLED or (reason is not None and not self.objective.exact)
        if coupled and len(self.batches) > 1:
            self.notes.append(f"L is that of these {len(self.batches)} batches, never regrouped: {reason}")

    def alone(self) -> Self:
        """The same loss over the batches of this process alone."""
        other = copy.copy(self)
        other.distributed = False
        checks.total(other)
        return other

    def few_examples(self, count: int) -> Batch:
        """The first examples some of whose targets count, of one batch; all of it where it cannot be divided."""
        batch = next(self.weighted_batches())
        if self.undividable is not None:
            return batch
        parts = (batch.rows(i, i + count) for i in range(0, batch.size, count))
        return next((part for part in parts if self.weighed(part).weight), batch)

    def with_batches(self, batches: Sequence[Batch]) -> Self:
        """The same model, loss and weights over other batches; passes are counted together."""
        other = copy.copy(self)
        other.batches = other.calibration_batches = self.batches.of(batches)
        checks.total(other)
        return other

    def rebatched(self, size: int) -> Self:
        """The same L(w) computed in batches of `size` examples.

        Raises:
            InputError: the batches cannot be divided without changing L.
        """
        if self.undividable is not None:
            raise InputError(
                f"batches of {size} would be another function ({self.undividable}): keep the batches as given"
            )
        return self.divided(size)

    def divided(self, size: int) -> Self:
        """What `rebatched` returns, whatever it does to L; statistics are recalibrated on the batches as given."""
        other = self.with_batches(self.batches.split(size))
        other.calibration_batches = self.calibration_batches
        return other

    def restricted(self, pattern: str | Sequence[str]) -> Self:
        """The same loss as a function of the parameters that match the pattern alone, the others at their weights."""
        other = copy.copy(self)
        other.parameters = type(self.parameters).of(self.model, pattern)
        other.weights = other.parameters.read(self.model)
        other.evaluator = self.evaluator.rebound(self.model, other.parameters)
        return other

    def updated(self) -> Self:
        """The same loss at the weights that the model has by now.

        Raises:
            InputError: since the Problem was made the model has moved to another device, changed its dtype, or had a
                layer or parameter replaced by another.
        """
        if change := self.evaluator.change(self.parameters):
            raise InputError(
                f"{change} since the Problem was made: make the Problem again, of the network as it is now"
            )
        weights = self.parameters.read(self.model)
        if (weights.device, weights.dtype) != (self.weights.device, self.weights.dtype):
            raise InputError(
                f"the Problem was made of a model in {self.weights.dtype} on {self.weights.device}, which is in "
                f"{weights.dtype} on {weights.device} by now: move the model first, then make the Problem"
            )
        other = copy.copy(self)
        other.weights = weights
        return other

    def relocated(self, w: Tensor, buffers: Mapping[str, Tensor] | None = None) -> Self:
        """The same loss and batches for a copy of the model that holds the weights w (d,) and these named buffers."""
        other = copy.copy(self)
        other.model, other.weights = copied(self.model), self.at(w).clone()
        self.parameters.write(other.model, other.weights)
        held = dict(other.model.named_buffers())
        for name, tensor in (buffers or {}).items():
            held[name].data.copy_(tensor)
        other.evaluator = self.evaluator.rebound(other.model, self.parameters)
        return other

    def in_network(self, model: nn.Module) -> Self:
        """The same loss, batches and weights in another network whose tensors have the same names and shapes."""
        other = copy.copy(self)
        other.model = model
        other.evaluator = self.evaluator.rebound(model, self.parameters)
        return other

    def with_batch_norm(self, policy: str) -> Self:
        """The same loss with another BatchNorm policy."""
        other = copy.copy(self)
        other.batch_norm = policy
        other.evaluator = self.evaluator.rebound(self.model, self.parameters, policy)
        checks.require_common_statistics(other)
        return other

    def gathered(self, w: Tensor | None = None) -> Self:
        """The same loss with whole weights on every process, of a copy of the network without shards.

        Every derivative can be taken there, second ones included; each process still holds its own examples, and what
        it computes is summed. The copy and its passes need the memory of an unsharded network.

        Raises:
            InputError: a network that is not sharded, or that fully_shard computes in another precision.
        """
        spread = spread_of(self.weights)
        if spread is None:
            raise InputError("the parameters are whole already: gathered() is for models that fully_shard has divided")
        assert isinstance(self.evaluator, ShardedEvaluator)
        narrow = self.evaluator.mixed_precision()
        if narrow is not None and narrow != self.weights.dtype:
            raise InputError(
                f"fully_shard computes in {narrow} with weights in {self.weights.dtype}, which a whole copy would not: "
                'take hvp="differences", or call fully_shard without mp_policy'
            )
        other = copy.copy(self)
        other.weights = self.whole(self.at(w))
        named: dict[str, Any] = dict(self.model.named_parameters())
        tensors = {
            n: p.detach().full_tensor() if hasattr(p, "placements") else p.detach()
            for n, p in named.items()
            if n not in self.parameters.names
        }
        pieces = other.weights.split([named[n].numel() for n in self.parameters.names])
        tensors |= {n: t.view(named[n].shape) for n, t in zip(self.parameters.names, pieces, strict=True)}
        other.model = skeleton(self.model, tensors)
        other.parameters = Parameters.of(other.model, self.parameters.names)
        other.evaluator = self.evaluator.whole(other.model, other.parameters)
        return other

    def whole(self, vector: Tensor) -> Tensor:
        """All d entries of a vector of weights, on every process, also where it is spread over several."""
        spread = spread_of(self.weights)
        return vector if spread is None else spread.whole(self.at(vector))
