"""The base optimizer: what takes the gradient that a method leaves; decay groups and clipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape.ball import vectors
from landscape.errors import InputError
from landscape.problem.parameters import Parameters
from trainers.loop.settings import Settings
from trainers.optimizers.lion import Lion
from trainers.optimizers.muon import Muon


def base_optimizer(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    """The base optimizer in groups: decayed parameters before the others, in Muon the matrices before both.

    With weight decay inside the perturbed loss the optimizer decays nothing (see `inner_decay`).

    Raises:
        InputError: Muon, and no matrix to orthogonalize.
    """
    assert settings.lr is not None
    decay = 0.0 if settings.decay_inside else settings.weight_decay
    groups: list[dict[str, Any]] = []
    for parameters, decayed, orthogonal in parameter_groups(model, settings.base, settings.decay_all):
        groups.append({"params": parameters, "weight_decay": decay if decayed else 0.0})
        if settings.base == "muon":
            groups[-1]["orthogonal"] = orthogonal
    if settings.base == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "lion": Lion, "muon": Muon}[settings.base]
    return kind(groups, lr=settings.lr)


def parameter_groups(model: nn.Module, base: str, decay_all: bool) -> list[tuple[list[nn.Parameter], bool, bool]]:
    """(parameters, whether they are decayed, whether Muon orthogonalizes them), in the optimizer's order; none empty.

    Raises:
        InputError: Muon, and no matrix to orthogonalize.
    """
    decayed = {id(p) for p in decayed_parameters(model, decay_all)}
    matrices = {id(p) for p in hidden_matrices(model)} if base == "muon" else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    divided = [
        (
            [p for p in trained if (id(p) in decayed) is shrinks and (id(p) in matrices) is orthogonal],
            shrinks,
            orthogonal,
        )
        for orthogonal in (True, False)
        for shrinks in (True, False)
    ]
    return [group for group in divided if group[0]]


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights of two and more dimensions but for embeddings and the last of them, the output layer's.

    An output layer that is tied to the embedding is the last of them, too: no hidden layer is left out in its place.

    Raises:
        InputError: there is none.
    """
    named = dict(model.named_parameters())
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    weights = {id(p): p for p in (named[s.name] for s in Parameters.of(model) if s.kind == "weight")}
    uses = [id(p) for _, p in model.named_parameters(remove_duplicate=False) if id(p) in weights]
    matrices = [p for number, p in weights.items() if number not in {*embeddings, *uses[-1:]}]
    if not matrices:
        raise InputError(
            "muon orthogonalizes the weights of hidden layers and the network has none that is trained: choose adamw"
        )
    return matrices


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take up a checkpoint's state, in which tuples are lists."""
    groups = [{**g, **({"betas": tuple(g["betas"])} if "betas" in g else {})} for g in saved["param_groups"]]
    optimizer.load_state_dict({**saved, "param_groups": groups})


def stored_optimizer(content: Mapping[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a checkpoint over the parameters of the network that was rebuilt from it.

    Raises:
        InputError: the checkpoint holds none, or one of another network.
    """
    if not content.get("optimizer") or not content.get("settings"):
        raise InputError("the checkpoint holds no optimizer: train with this toolkit, or give the optimizer in Python")
    try:
        optimizer = base_optimizer(Settings(**content["settings"]), model)
        load_optimizer(optimizer, content["optimizer"])
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"the checkpoint's optimizer does not fit its network ({error}): use another copy") from error
    return optimizer


def in_model_order(state: dict[str, Any], model: nn.Module, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a `base_optimizer` with its parameters numbered as the model has them.

    torch numbers them group by group.
    """
    groups = parameter_groups(model, settings.get("base", Settings.base), settings.get("decay_all", False))
    places = {id(p): i for i, p in enumerate(p for p in model.parameters() if p.requires_grad)}
    order = [places[id(p)] for parameters, _, _ in groups for p in parameters]
    return {**state, "state": {order[int(number)]: held for number, held in state["state"].items()}}


def inner_decay(settings: Settings, model: nn.Module) -> list[float] | None:
    """L2 coefficients, one per parameter, of a decay that belongs to the perturbed loss; None: it is outside."""
    if not settings.decay_inside:
        return None
    assert settings.weight_decay is not None
    decayed = {id(p) for p in decayed_parameters(model, settings.decay_all)}
    return [settings.weight_decay * (id(p) in decayed) for p in model.parameters() if p.requires_grad]


def decayed_parameters(model: nn.Module, everything: bool = False) -> list[nn.Parameter]:
    """The parameters that weight decay shrinks: weights of two and more dimensions, or all.

    Decay of a bias or of a norm's scale does not simplify the function; most recipes for ImageNet leave them out.
    """
    named = dict(model.named_parameters())
    return [named[s.name] for s in Parameters.of(model) if everything or s.kind == "weight"]


def clip_gradient(parameters: Sequence[Tensor], limit: float) -> None:
    """Scale the gradient down to the Euclidean norm `limit` where it is longer, without a host synchronization."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = vectors.norm(gradients)
    torch._foreach_mul_(gradients, (limit / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1))
