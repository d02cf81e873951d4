"""Networks whose parameters `fully_shard` (FSDP2) has divided among the processes.

Parameters and gradients are DTensors, and so is what a method makes of them entry by entry; norms and dots run over all
shards (`landscape.ball.vectors`). What is left is here: who may be trained so, and when the gathered copies go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from landscape import processes
from landscape.ball.spread import part_of
from landscape.errors import InputError
from landscape.problem.fully_shard import has_shards, postpones, units, unreduced

if TYPE_CHECKING:
    from trainers.method.method import Method


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's parameters are divided among processes.

    Raises:
        InputError: in FSDP1's flat tensors, or in part, or otherwise than `fully_shard` does it.
    """
    if not has_shards(model):
        return False
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    first: Any = next((p for _, p in named if hasattr(p, "placements")), None)
    if first is None:
        return False
    if not any(True for _ in units(model)):
        raise InputError("the parameters are DTensors that fully_shard has not made: methods train those alone")
    for name, parameter in named:
        _require_supported(name, parameter, first)
    return True


def require_whole(model: nn.Module) -> None:
    """Raise InputError for a sharded model, of which batches cannot be passed in parts."""
    if is_sharded(model):
        raise InputError(
            "the model's parameters are sharded (fully_shard): train it in a loop of your own by "
            "trainers.MethodOptimizer with a closure, or use DistributedDataParallel instead"
        )


def require_method(method: Method, base: torch.optim.Optimizer, *, synchronized: bool) -> None:
    """Raise InputError for what needs more than the shards and sums over them."""
    why = "it looks at the batch itself" if method.needs_batch else method.needs_whole_tensors
    if why is not None:
        raise InputError(
            f"{method.name} does not train a sharded model (fully_shard), {why}: use DistributedDataParallel, or a "
            "method that needs gradients alone (sam, asam, gsam, ...)"
        )
    if type(base).__name__ == "Muon":
        raise InputError(
            "Muon orthogonalizes whole matrices and the model's are sharded (fully_shard): choose a base optimizer "
            "that works entry by entry (SGD, AdamW, Lion, ...)"
        )
    if not synchronized:
        raise InputError(
            "synchronized=False is one perturbation a process, and the processes of a sharded model (fully_shard) hold "
            "one set of weights together: leave it out"
        )


def require_reduced(model: nn.Module, when: str) -> None:
    """Raise InputError if gradients have not been given to their shards.

    They wait after `set_requires_gradient_sync(False)`, and the next pass that does reduce would take them in.
    """
    if unreduced(model):
        raise InputError(
            f"gradients of fully_shard wait to be summed over the processes {when}: the last backward pass of each "
            "closure needs set_requires_gradient_sync(True), and none may come before the closure"
        )


def require_last_backward(model: nn.Module) -> None:
    """Raise InputError if no backward pass has waited for the gradients to come."""
    if postpones(model):
        raise InputError(
            "set_is_last_backward(False) is in force after the closure: its last backward pass needs "
            "set_is_last_backward(True)"
        )


def normal_like(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise in the shape of a parameter; each process draws all of it and keeps its shard."""
    whole = torch.randn(parameter.shape, generator=generator, device=parameter.device, dtype=parameter.dtype)
    return part_of(whole, parameter)


def _require_supported(name: str, parameter: Any, first: Any) -> None:
    if not hasattr(parameter, "placements"):
        raise InputError(
            f"the parameter {name} is whole and others are sharded: apply fully_shard to the model itself, after its "
            "layers, without ignored_params"
        )
    if parameter.device.type != parameter.device_mesh.device_type:
        raise InputError(
            f"the parameter {name} is offloaded to the {parameter.device.type}: call fully_shard without offload_policy"
        )
    mesh, divided = parameter.device_mesh, [p for p in parameter.placements if not p.is_replicate()]
    one = len(divided) == 1 and type(divided[0]).__name__ == "Shard"
    if not one or mesh != first.device_mesh or mesh.size() != processes.world():
        raise InputError(
            f"the parameter {name} is placed as {parameter.placements} on {mesh} among {processes.world()} processes: "
            "methods train what fully_shard divides along one dimension of one mesh of all processes (FSDP, HSDP)"
        )
