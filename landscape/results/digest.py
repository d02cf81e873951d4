"""SHA-256 digests: names for files, tensors and configurations, equal only where the content is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 1 << 22
"""Numbers of a tensor that are brought to the host at once."""


def of_parts(parts: Iterable[bytes | str | Tensor]) -> str:
    """Hexadecimal SHA-256 of the parts in order: bytes, text as UTF-8, tensors by the bytes of their numbers.

    Tensors are brought to the host piece by piece. Shapes, dtypes and the borders between parts do not count: put them
    in as text where they matter, or see `of_tensors`. A tensor that is divided among processes counts by the digests of
    its parts, in their order: the same in every process, another one for another number of them.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
        elif isinstance(part, bytes):
            digest.update(part)
        else:
            for piece in _parts(part) if _divided(part) else _bytes(part):
                digest.update(piece)
    return digest.hexdigest()


def of_tensors(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the tensors' shapes, dtypes and bytes, in order."""
    return of_parts(part for t in tensors for part in (str((_shape(t), t.dtype)), t))


def of_file(path: str | Path) -> str:
    """SHA-256 of the file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def of_path(path: str | Path) -> str:
    """SHA-256 of a file's bytes; of a folder, over the names and digests of the files that lie in it."""
    path = Path(path)
    if not path.is_dir():
        return of_file(path)
    return of_parts(f"{p.name}\n{of_file(p)}\n" for p in sorted(path.iterdir()) if p.is_file())


def of_configuration(content: Any) -> str:
    """SHA-256 of plain values as JSON with sorted keys; what JSON does not know counts by its `str`."""
    return of_parts([json.dumps(content, sort_keys=True, default=str)])


def _divided(tensor: Tensor) -> bool:
    return hasattr(tensor, "spread") or hasattr(tensor, "placements")


def _parts(tensor: Any) -> Iterator[bytes]:
    import torch

    here = tensor.to_local() if hasattr(tensor, "placements") else tensor.as_subclass(torch.Tensor)
    everywhere = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, of_parts([here]))
    yield "".join(everywhere).encode()


def _shape(tensor: Any) -> tuple[int, ...]:
    return (tensor.spread.length,) if hasattr(tensor, "spread") else tuple(tensor.shape)


def _bytes(tensor: Tensor) -> Iterator[memoryview]:
    import torch

    dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    for piece in dense.reshape(-1).split(_PIECE):
        flat = piece.cpu().contiguous()
        # One number with another stride counts as contiguous, but has no bytes to view.
        flat = flat if flat.stride(-1) == 1 else flat.clone(memory_format=torch.contiguous_format)
        yield flat.view(torch.uint8).numpy().data
