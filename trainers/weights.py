"""A checkpoint's weights in their network; those of an adapter in the network that it was trained over."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape import checkpoint
from landscape.checkpoint import Selection
from landscape.errors import CheckpointWarning, InputError
from trainers.architectures import BuiltIn, OfLibrary
from trainers.hugging_face import Folder, adapter_folder, stored

ADAPTER = ("alone", "merged")
"""What of an adapter's network is analyzed: the adapter's own parameters, or all weights with its change in them."""


def loaded(
    path: Path,
    network: nn.Module,
    content: Any,
    selection: Selection,
    dtype: torch.dtype,
    *,
    model: Callable[[], nn.Module] | BuiltIn | None = None,
    adapter: str | None = None,
) -> nn.Module:
    """The network in the analysis' dtype with the file's weights, which are rounded once and no more.

    Args:
        path: of the file or folder.
        network: as it was built; it is changed.
        content: of the file.
        selection: what is read of it; of an adapter what is read of its base.
        dtype: of the analysis.
        model: what built the network: a folder of Hugging Face holds the weights below an adapter too, a callable
            brings them with it.
        adapter: one of ADAPTER; default alone.

    Raises:
        InputError: tensors do not fit, complex ones, an adapter over a network without weights, nothing to merge.
    """
    if adapter not in (None, *ADAPTER):
        raise InputError(f"adapter {adapter!r}: alone or merged is needed")
    _require_real(network)
    network = network.to(dtype)
    folder = adapter_folder(path)
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    if folder is not None and not checkpoint.is_adapter(network.state_dict()):
        from trainers.hugging_face import adapters

        network = adapters.adapted(_with_base(path, network, selection, model), folder, content).to(dtype)
    else:
        frozen = []
        if checkpoint.is_ours(content) and selection.key is None:
            selection = replace(selection, key="model.state")
        network = stored.loaded(network, content, path, selection)
    if adapter == "merged":
        from trainers.hugging_face import adapters

        network = adapters.merged(network, frozen)
    return network


def _with_base(
    path: Path, network: nn.Module, selection: Selection, model: Callable[[], nn.Module] | BuiltIn | None
) -> nn.Module:
    """The network below an adapter with its weights."""
    if isinstance(model, BuiltIn | OfLibrary):
        raise InputError(
            f"{path} is an adapter, and --model names a network without weights: give --model hf:FOLDER of its base, "
            "or module:callable that returns the base with its weights"
        )
    if isinstance(model, Folder):
        return stored.loaded(network, checkpoint.contents(model.path), model.path, selection)
    warnings.warn(
        CheckpointWarning(f"{path}: an adapter; the network below it is as the model was built"), stacklevel=4
    )
    return copy.deepcopy(network)  # a callable may return one network again and again


def _require_real(network: nn.Module) -> None:
    tensors = [*network.named_parameters(), *network.named_buffers()]
    imaginary = next((name for name, tensor in tensors if tensor.is_complex()), None)
    if imaginary is not None:
        raise InputError(
            f"the model's {imaginary!r} is complex: weights must be real (store it as real and imaginary parts, "
            "torch.view_as_real)"
        )
