"""Torch's default dtype, which what is made by name does not follow: data and networks are in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def float32_by_default() -> Iterator[None]:
    """Within the context torch's default dtype is float32; afterwards, also after an exception, the one before."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
