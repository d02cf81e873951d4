"""Adapters of peft (LoRA and its kin) in the network that they were trained over, alone and merged into its weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from landscape.errors import InputError
from landscape.random import undisturbed
from trainers.hugging_face.library import library, local

CONFIGURATION = "adapter_config.json"


def adapter_folder(path: str | Path) -> Path | None:
    """The folder of an adapter, of whose files `path` is one or which it is itself; None for anything else."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    of_adapter = path.is_dir() or path.name.startswith("adapter_model.")
    return folder if of_adapter and (folder / CONFIGURATION).is_file() else None


def adapted(base: nn.Module, folder: Path, tensors: Any) -> nn.Module:
    """The network with an adapter in it, whose parameters alone are trainable.

    Args:
        base: with its weights; it is changed.
        folder: of the adapter's configuration.
        tensors: name -> tensor, as the adapter's file holds them.

    Raises:
        InputError: peft is not installed or cannot build the adapter, its tensors do not fit, a prompt's adapter.
    """
    peft = library("peft", f"the adapter {folder}")
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise InputError(f"{folder}: its adapter_model file holds no tensors by name: save it again by save_pretrained")
    with local(f"{folder}: peft cannot put this adapter into the network of --model"), undisturbed():
        configuration = peft.PeftConfig.from_pretrained(str(folder), local_files_only=True)
        if configuration.is_prompt_learning:
            raise InputError(
                f"{folder} is a learned prompt ({configuration.peft_type.value}), which stands in no layer: give "
                "--model module:callable that returns the whole network"
            )
        configuration.inference_mode = False
        network = peft.get_peft_model(base, configuration, autocast_adapter_dtype=False)
        fitted = peft.set_peft_model_state_dict(network, dict(tensors))
    lacking = [n for n in fitted.missing_keys if n in _trained(network)]
    if lacking or fitted.unexpected_keys:
        raise InputError(
            f"{folder}: the adapter does not fit the network of --model: it lacks {lacking[:3] or 'nothing'}, and has "
            f"no place for {list(fitted.unexpected_keys)[:3] or 'nothing'}: give the base that it was trained over"
        )
    return network


def merged(network: nn.Module, frozen: Collection[str] = ()) -> nn.Module:
    """The network below an adapter with the adapter's change in its own weights, which are trainable again.

    A weight that an adapter changes and that is one with another (a tied head) is set apart from it first: the adapter
    changes the one alone.

    Args:
        network: with the adapter; it is changed.
        frozen: names of parameters that were not trainable before.

    Raises:
        InputError: there is no adapter of peft, or one that no weights can hold.
    """
    merge: Any = getattr(network, "merge_and_unload", None)
    if merge is None:
        raise InputError("--adapter merged: the network of --model holds no adapter of peft (get_peft_model)")
    for layer in _changed(network):
        layer.weight = nn.Parameter(layer.weight.detach().clone())
    with local("--adapter merged: peft cannot merge this adapter into the weights below it"):
        whole = merge()
    for name, parameter in whole.named_parameters():
        parameter.requires_grad_(parameter.is_floating_point() and name not in frozen)
    return whole


def _trained(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def _changed(network: nn.Module) -> Iterator[Any]:
    """The layers below adapters whose weight is one with another's."""
    names: dict[int, int] = {}
    for _, parameter in network.named_parameters(remove_duplicate=False):
        names[id(parameter)] = names.get(id(parameter), 0) + 1
    for module in network.modules():
        layer = getattr(module, "base_layer", None)
        weight = getattr(layer, "weight", None)
        if isinstance(layer, nn.Module) and isinstance(weight, nn.Parameter) and names.get(id(weight), 0) > 1:
            yield layer
