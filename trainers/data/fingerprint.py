"""The hash by which a run says what it was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from landscape.results import digest

WHOLE_BYTES = 256 << 20
"""Up to this size an array is hashed whole; of a larger one BLOCKS evenly spaced blocks of examples."""
BLOCKS = 1024


def fingerprint(*arrays: Any) -> str:
    """SHA-256 over dtype, shape and bytes of the arrays; of noise images over their definition."""
    return digest.of_parts(_parts(*arrays))


def _parts(*arrays: Any) -> Iterator[str | Tensor]:
    for array in arrays:
        yield f"{array.dtype} {tuple(array.shape)};"
        if not isinstance(array, Tensor):
            yield repr(array)
        elif array.nbytes <= WHOLE_BYTES:
            yield array
        else:
            rows = max(1, WHOLE_BYTES // BLOCKS // (array.nbytes // len(array)))
            for start in torch.linspace(0, max(0, len(array) - rows), BLOCKS).long().tolist():
                yield array[start : start + rows]
