"""Files of transformers whose names of tensors are not those of the network in memory.

Releases 5 and later rename (and join) tensors when they load a file, and undo that when they save one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from landscape import checkpoint
from landscape.checkpoint import Selection, UnfitWeights
from trainers.hugging_face.library import local


def loaded(network: nn.Module, content: Any, path: Path, selection: Selection) -> nn.Module:
    """The network with the weights of a file in whichever names: those of its tensors, or those of its files.

    Raises:
        InputError: as `landscape.checkpoint.load_weights`.
    """
    stored = _as_stored(network)
    if stored is None:
        checkpoint.load_weights(network, content, path, selection)
        return network
    try:
        checkpoint.load_weights(stored, content, path, selection)
    except UnfitWeights as error:
        try:
            checkpoint.load_weights(network, content, path, selection)
        except UnfitWeights:
            raise error from None
        return network
    with local(f"{path}: transformers cannot give the tensors their places in the network"):
        made = type(network).from_pretrained(  # type: ignore[attr-defined]
            None, config=network.config, state_dict=stored.state_dict(), dtype=next(network.parameters()).dtype
        )
    return made.eval()


def _as_stored(network: nn.Module) -> nn.Module | None:
    """The network's tensors under the names that save_pretrained writes; None where these are the network's."""
    if "transformers" not in sys.modules or not isinstance(network, sys.modules["transformers"].PreTrainedModel):
        return None
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # releases before 5
        return None
    own = network.state_dict()
    named = revert_weight_conversion(network, dict(own))
    return None if named.keys() == own.keys() else _tree(named)


def _tree(named: dict[str, Tensor]) -> nn.Module:
    """Modules that hold copies of the tensors under their dotted names; ties stay ties."""
    root, copies = nn.Module(), dict[Any, Tensor]()
    for name, tensor in named.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        key = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        copy = copies.setdefault(key, nn.Parameter(tensor.detach().clone(), tensor.is_floating_point()))
        if isinstance(copy, nn.Parameter) and copy.is_floating_point():
            module.register_parameter(last, copy)
        else:
            module.register_buffer(last, copy.detach())
    return root
