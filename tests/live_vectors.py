"""What a computation holds in memory at once, in vectors."""

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class LiveVectors(TorchDispatchMode):
    """Within the context: the bytes of all tensors of at least a 50th of `like` that it made and that are alive.

    Attributes:
        most: at once, in multiples of `like`.
    """

    def __init__(self, like: torch.Tensor) -> None:
        super().__init__()
        self._one, self._live, self.most = like.numel() * like.element_size(), {}, 0.0

    @property
    def now(self) -> float:
        """What is alive now, in multiples of `like`."""
        self._live = {key: kept for key, kept in self._live.items() if not kept[0].expired()}
        return sum(size for _, size in self._live.values()) / self._one

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage()._cdata for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                kept = self._live.get(storage._cdata)
                new = storage._cdata not in known and (kept is None or kept[0].expired())
                if new and 50 * storage.nbytes() >= self._one:
                    self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.most = max(self.most, self.now)
        return result
