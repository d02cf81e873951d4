"""Networks whose parameters `fully_shard` (FSDP2) has divided among processes: their layout, and their evaluation.

Every process holds some rows of each parameter. The flat vector of weights is spread likewise, see
`landscape.ball.spread`: here are the entries of the rows that are here, one parameter after the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from landscape.ball.spread import Spread, plain
from landscape.errors import InputError
from landscape.problem.evaluator import Evaluator
from landscape.problem.fully_shard import abandon_pass, groups, postpones, reshard, unreduced
from landscape.problem.parameters import Parameters, Slot

REASON = "the parameters are sharded over processes, which have to make the same passes"
"""Why the batches of a sharded network stay as they are."""


@dataclass(frozen=True)
class SpreadSlot(Slot):
    """The rows of one parameter that are here; what lies along axis 0 is put together from all processes.

    Attributes:
        spread: how the flat vector is spread.
        whole: shape of the whole parameter.
    """

    spread: Spread | None = None
    whole: torch.Size = torch.Size()

    @property
    def whole_shape(self) -> torch.Size:
        """As of `Slot`."""
        return self.whole

    def norm(self, tensor: Tensor, axes: Sequence[int]) -> Tensor:
        """As of `Slot`."""
        here = super().norm(plain(tensor), axes)
        return torch.linalg.vector_norm(self._everywhere(here), dim=0) if 0 in axes else here

    def sum(self, tensor: Tensor, axes: Sequence[int]) -> Tensor:
        """As of `Slot`."""
        here = super().sum(plain(tensor), axes)
        return self._everywhere(here).sum(0) if 0 in axes else here

    def count(self, axes: Sequence[int]) -> int:
        """As of `Slot`."""
        return torch.Size([self.whole[a] for a in axes]).numel()

    def _everywhere(self, here: Tensor) -> Tensor:
        assert self.spread is not None
        return self.spread.gathered(here)


@dataclass(frozen=True)
class SpreadParameters(Parameters):
    """Layout of the part of the flat vector that is here."""

    spread: Spread | None = None

    @classmethod
    def of(cls, model: nn.Module, pattern: str | Sequence[str] | None = None) -> SpreadParameters:
        """As of `Parameters`.

        Raises:
            InputError: also a tensor that is whole, or divided otherwise than by rows over one group of processes.
        """
        slots = Parameters.of(model, pattern).slots
        named: dict[str, Any] = dict(model.named_parameters())
        tensors = [named[s.name] for s in slots]
        for slot, tensor in zip(slots, tensors, strict=True):
            _require_rows(slot.name, tensor, tensors)
        mesh = tensors[0].device_mesh
        dim = next(i for i, p in enumerate(tensors[0].placements) if not p.is_replicate())
        rank, count = mesh.get_local_rank(dim), mesh.size(dim)
        ranges, shapes = [], []
        for slot, tensor in zip(slots, tensors, strict=True):
            rows, size = tensor.shape[0], tensor.shape[1:].numel()
            first = min(rank * -(-rows // count), rows)
            shapes.append(plain(tensor).shape)
            ranges.append((slot.start + first * size, slot.start + (first + shapes[-1][0]) * size))
        spread = Spread.of(mesh.get_group(dim), tuple(ranges), slots[-1].stop)
        start, parts = 0, []
        for slot, shape in zip(slots, shapes, strict=True):
            parts.append(
                SpreadSlot(slot.name, shape, start, slot.kind, slot.filter_axis, slot.dtype, spread, slot.shape)
            )
            start += shape.numel()
        return cls(tuple(parts), spread)

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """The rows that are here, in the layout's order -> this part of the flat vector."""
        assert self.spread is not None
        return super().flatten([plain(t) for t in tensors]).as_subclass(self.spread.type)

    def read(self, model: nn.Module) -> Tensor:
        """This part of the model's present weights."""
        reshard(model)
        return self.flatten([plain(t) for t in self.own_tensors(model)]).clone()

    def write(self, model: nn.Module, flat: Tensor) -> None:
        """Copy this part of a flat vector into the model's own shards, in place."""
        reshard(model)
        for own, tensor in zip(self.own_tensors(model), self.unflatten(flat), strict=True):
            plain(own).copy_(plain(tensor))


def _require_rows(name: str, tensor: Any, tensors: Sequence[Any]) -> None:
    from torch.distributed.tensor import Shard

    mesh = next(t.device_mesh for t in tensors if hasattr(t, "placements"))
    if not hasattr(tensor, "placements"):
        raise InputError(
            f"the parameter {name!r} is whole on every process while others are sharded: apply fully_shard to the "
            "model itself, after its layers"
        )
    divided = [p for p in tensor.placements if not p.is_replicate()]
    if (
        len(divided) != 1
        or type(divided[0]) is not Shard
        or divided[0].dim != 0
        or tensor.device_mesh != mesh
        or mesh.size() != torch.distributed.get_world_size()
    ):
        raise InputError(
            f"the parameter {name!r} is placed as {', '.join(map(repr, tensor.placements))} on {tensor.device_mesh}: "
            "analyses take parameters that fully_shard has divided by rows over all processes; with tensor or pipeline "
            "parallelism save the checkpoint and analyze it whole"
        )
    if plain(tensor).device.type != mesh.device_type:
        raise InputError(
            f"the parameter {name!r} is offloaded to {plain(tensor).device}: call fully_shard without offload_policy"
        )


def _refuse_max_norm(model: nn.Module) -> None:
    """Of whole weights `landscape.problem.checks` sees whatever writes to them."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise InputError(
                f"the embedding {name!r} has max_norm and writes to its weights in the forward pass, so that the loss "
                "is not a function of the weights: take that out, or do it once before"
            )


class ShardedEvaluator(Evaluator):
    """Evaluates a sharded network by its own passes, which gather one layer after the other.

    These passes read the shards: weights are copied into them, and afterwards back from a copy, to the last bit.
    """

    def __init__(
        self, model: nn.Module, parameters: Parameters, batch_norm: str = "frozen", *, evaluation_mode: bool = True
    ) -> None:
        super().__init__(model, parameters, batch_norm, evaluation_mode=evaluation_mode)
        _refuse_max_norm(model)
        usual = {"reduce_grads": True, "all_reduce_grads": True, "gradient_divide_factor": None}
        changed = {k for g in groups(model) for k, v in usual.items() if getattr(g, k, v) != v}
        if changed or postpones(model) or unreduced(model):
            raise InputError(
                f"gradients of fully_shard are held back or scaled ({', '.join(sorted(changed)) or 'some wait'}): call "
                "set_requires_gradient_sync(True), set_is_last_backward(True), set_gradient_divide_factor(None)"
            )

    def mixed_precision(self) -> torch.dtype | None:
        """The dtype that fully_shard was told to compute in, None for that of the parameters."""
        return next((g.mp_policy.param_dtype for g in groups(self.model) if g.mp_policy.param_dtype is not None), None)

    @contextlib.contextmanager
    def _lent(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        if any(t.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors):
            raise InputError(
                "the parameters are sharded: derivatives by single tensors do not reach them; take problem.gathered(), "
                'whose weights are whole on every process, or hvp="differences"'
            )
        reshard(self.model)
        everything = list(self.model.parameters())
        own = [plain(slots[name]) for (slots, name), *_ in self._places]
        saved, gradients = [t.clone() for t in own], [p.grad for p in everything]
        try:
            for here, tensor in zip(own, tensors, strict=True):
                here.copy_(plain(tensor))
            for parameter in everything:
                parameter.grad = None
            yield
        except BaseException:
            abandon_pass(self.model)
            raise
        finally:
            reshard(self.model)
            for here, tensor in zip(own, saved, strict=True):
                here.copy_(tensor)
            for parameter, gradient in zip(everything, gradients, strict=True):
                parameter.grad = gradient

    def whole(self, model: nn.Module, parameters: Parameters) -> Evaluator:
        """The same way of evaluating a copy of the network that is not sharded."""
        return self._alike(Evaluator, model, parameters)

    def backward(self, loss: Tensor, leaves: Sequence[Tensor]) -> None:
        """Add the gradient of the sum of all processes' losses; fully_shard takes their mean."""
        (loss * torch.distributed.get_world_size()).backward()

    def slopes(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """What `backward` has added up, the rows that are here.

        Raises:
            InputError: gradients that stayed with the gathered parameters: no backward pass has told fully_shard.
        """
        if unreduced(self.model):
            raise InputError(
                "fully_shard has not reduced the gradients: torch finds no tensors in what forward() returns; let it "
                "return tensors, a dict of them or a dataclass"
            )
        reshard(self.model)
        own = [slots[name] for (slots, name), *_ in self._places]
        return [torch.zeros_like(plain(p)) if p.grad is None else plain(p.grad) for p in own]

    def gradients(self, loss: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
        """The gradient of the sum of all processes' losses, the rows that are here."""
        if loss.requires_grad:
            self.backward(loss, leaves)
        result = self.slopes(leaves)
        for parameter in self.model.parameters():
            parameter.grad = None
        return result
