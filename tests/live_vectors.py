"""How many vectors of length d a computation holds at once."""

import traceback
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class LiveVectors(TorchDispatchMode):
    """Within the context: the bytes of all tensors of at least half of d entries that it made and that are alive.

    Attributes:
        most: at once, in vectors of length d.
    """

    def __init__(self, like: torch.Tensor) -> None:
        super().__init__()
        self._one, self._live, self.most = like.numel() * like.element_size(), {}, 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage()._cdata for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        self._live = {k: v for k, v in self._live.items() if not v[0].expired()}
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in known and 50 * storage.nbytes() >= self._one:
                    self._live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        now = sum(size for _, size in self._live.values()) / self._one
        if now > self.most:
            self.most, self.at = now, traceback.extract_stack()
        return result
