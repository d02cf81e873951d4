"""The network that a run trains: a built-in one from the settings, or the caller's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from landscape.errors import InputError
from trainers.datasets import Data
from trainers.loop.settings import Settings
from trainers.method.batch_norm import synchronize_batch_norm
from trainers.method.network import equal_on_all_processes
from trainers.method.sharded import require_whole
from trainers.models import arguments_for, build_model
from trainers.names import parse_name
from trainers.storable import without_tuples


@dataclass(frozen=True)
class Network:
    """A network on its device, ready to be trained.

    Attributes:
        model: the network.
        described: its name and arguments, as a checkpoint has them; no name for a caller's own.
        channels_last: whether it takes images in that memory format.
    """

    model: nn.Module
    described: dict[str, Any]
    channels_last: bool

    @classmethod
    def of(cls, settings: Settings, data: Data, device: torch.device, model: nn.Module | None) -> Network:
        """The network that the settings name, freshly initialized, or `model`, as it is on the first process."""
        if model is None:
            name, arguments = parse_name(settings.model)
            arguments = {**arguments_for(name, data), **arguments}
            _require_fit(arguments, data)
            # Training holds weights, gradient and, most often, momentum; on an accelerator not here.
            copies = 3 if device.type == "cpu" else 1
            network = build_model(name, seed=settings.seed, copies=copies, **arguments).to(device)
            described = {"name": name, "arguments": without_tuples(arguments)}
        else:
            require_whole(model)
            network, described = model.to(device), {"name": "", "arguments": {}}
        # Convolutions are 1.2 to 1.5 times faster so, on a CPU too; there a caller's own network is left as it is.
        left_alone = model is not None and device.type == "cpu"
        channels_last = len(data.input_shape) == 3 and not left_alone
        if channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        if model is not None:
            equal_on_all_processes(network)
        if settings.sync_batch_norm:
            network = synchronize_batch_norm(network)
        return cls(network, described, channels_last)


def _require_fit(arguments: Mapping[str, Any], data: Data) -> None:
    """Raise InputError where the stated shape of a network is not that of the data."""
    if tuple(arguments["input_shape"]) != tuple(data.input_shape) or arguments["classes"] < data.classes:
        stated = {name: arguments[name] for name in ("classes", "input_shape")}
        raise InputError(
            f"a network of {stated} for data of {data.classes} classes and inputs of shape {tuple(data.input_shape)}: "
            "leave classes and input_shape out, the data say them"
        )
