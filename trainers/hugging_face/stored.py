"""Files of transformers whose names of tensors are not those of the network in memory.

Releases 5 and later rename (and join) tensors when they load a file, and undo that when they save one.
"""

from __future__ import annotations

import fnmatch
import sys
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from landscape import checkpoint
from landscape.checkpoint import Selection, UnfitWeights
from landscape.errors import CheckpointWarning
from trainers.hugging_face.library import local


def loaded(network: nn.Module, content: Any, path: Path, selection: Selection) -> nn.Module:
    """The network with the weights of a file in whichever names: those of its tensors, or those of its files.

    A file of the network below a head fits too, where the head's tensors are among `selection.allow_missing`.

    Raises:
        InputError: as `landscape.checkpoint.load_weights`.
    """
    try:
        return _whole(network, content, path, selection)
    except UnfitWeights as error:
        prefix, head = _head(network)
        if not head:
            raise
        if not all(any(fnmatch.fnmatchcase(name, p) for p in selection.allow_missing) for name in head):
            globs = " ".join(f"--allow-missing '{name}.*'" for name in sorted({n.partition(".")[0] for n in head}))
            raise UnfitWeights(f"{error}; where the file holds the network below its head: {globs}") from None
        setattr(network, prefix, _whole(getattr(network, prefix), content, path, selection))
        network.tie_weights()  # type: ignore[operator]
        text = f"{path}: as the model was built, not from the file: {', '.join(head[:6])}"
        warnings.warn(CheckpointWarning(text + (f" and {len(head) - 6} more" if len(head) > 6 else "")), stacklevel=4)
        return network


def _head(network: nn.Module) -> tuple[str, list[str]]:
    """The name of the network below the head, and the names of the head's tensors; none where there is no head."""
    prefix = getattr(network, "base_model_prefix", "")
    base = getattr(network, prefix, None) if _of_transformers(network) and prefix else None
    if not isinstance(base, nn.Module):
        return "", []
    held = {id(tensor) for tensor in base.state_dict(keep_vars=True).values()}
    return prefix, [name for name, t in network.state_dict(keep_vars=True).items() if id(t) not in held]


def _of_transformers(network: nn.Module) -> bool:
    return "transformers" in sys.modules and isinstance(network, sys.modules["transformers"].PreTrainedModel)


def _whole(network: nn.Module, content: Any, path: Path, selection: Selection) -> nn.Module:
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
    if not _of_transformers(network):
        return None
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # releases before 5
        return None
    state = network.state_dict()
    named = revert_weight_conversion(network, dict(state))
    return None if named.keys() == state.keys() else _tree(named)


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
