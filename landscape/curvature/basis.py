"""Orthonormal vectors that outgrow no cache: dots in float64 over slices, memory in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from landscape.ball import vectors
from landscape.ball.spread import plain

BLOCK = 32
_LARGEST = 256 * 2**20
# Columns that become float64 at once: measured best for 10 to 30 vectors on a CPU; on a GPU few launches count.
_COLUMNS = {"cpu": 2**16}
_DEFAULT_COLUMNS = 2**22


class Basis:
    """Orthonormal vectors that are added one by one; memory grows in blocks of up to 32 rows and 256 MB.

    Args:
        like: a vector with the length, dtype and device of those that come and go.
        device: where the basis lives, and is worked with: a vector that is orthogonalized travels there and back; None
            is the device of `like`. Not for vectors that are spread over processes.
    """

    def __init__(self, like: Tensor, device: torch.device | None = None) -> None:
        self._like, self._type = plain(like), type(like)
        self._home, self._away = device or like.device, device is not None
        self._blocks: list[Tensor] = []
        self.size = 0
        self._rows = min(max(_LARGEST // max(like.numel() * like.element_size(), 1), 1), BLOCK)
        self._columns = _COLUMNS.get(self._home.type, _DEFAULT_COLUMNS)

    def append(self, vector: Tensor) -> None:
        """Add a vector of unit length."""
        if self.size == self._rows * len(self._blocks):
            self._blocks.append(self._like.new_empty((self._rows, self._like.numel()), device=self._home))
        self._blocks[-1][self.size % self._rows].copy_(plain(vector))
        self.size += 1

    def __getitem__(self, index: int) -> Tensor:
        row = self._blocks[index // self._rows][index % self._rows].as_subclass(self._type)
        return row.to(self._like.device, copy=True) if self._away else row

    def dots(self, vector: Tensor) -> Tensor:
        """Dot product with every vector: (size,) float64."""
        parts = []
        for rows in self._filled():
            parts.append(vectors.dots(rows, vector, self._columns))
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=vector.device)

    def subtract(self, coefficients: Tensor, vector: Tensor) -> None:
        """Vector -= sum_i coefficients[i] basis[i], in place."""
        start = 0
        for rows in self._filled():
            some = coefficients[start : start + rows.shape[0]].to(vector.dtype)
            vector.addmv_(rows.mT, some, alpha=-1.0)
            start += rows.shape[0]

    def orthogonalize(self, vector: Tensor) -> Tensor:
        """Remove the basis from a vector, in place (Gram-Schmidt twice); returns the removed coefficients (float64)."""
        here = vector.to(self._home, copy=True) if self._away else vector
        total = self.dots(here)
        self.subtract(total, here)
        again = self.dots(here)
        self.subtract(again, here)
        if self._away:
            vector.copy_(here)
        return (total + again).to(vector.device)

    def combined(self, coefficients: np.ndarray) -> Tensor:
        """Combinations of the first vectors, where the basis lives: coefficients (m, k) -> (k, d)."""
        weights = torch.from_numpy(np.ascontiguousarray(coefficients.T)).to(self._home)
        result = self._like.new_empty((weights.shape[0], self._like.numel()), device=self._home)
        for columns in self._slices():
            stacked = torch.cat([rows[:, columns] for rows in self._filled()])[: weights.shape[1]]
            result[:, columns] = (weights @ stacked.double()).to(result.dtype)
        return result.as_subclass(self._type)

    def replace(self, coefficients: np.ndarray, last: Tensor) -> None:
        """Become the given combinations, followed by `last`; in place, without a second copy."""
        weights = torch.from_numpy(np.ascontiguousarray(coefficients.T)).to(self._home)
        last = last.clone()
        for columns in self._slices():
            stacked = torch.cat([rows[:, columns] for rows in self._filled()])[: weights.shape[1]]
            new = (weights @ stacked.double()).to(stacked.dtype)
            for i, rows in enumerate(new.split(self._rows)):
                self._blocks[i][: rows.shape[0], columns] = rows
        self.size = weights.shape[0]
        del self._blocks[-(-(self.size + 1) // self._rows) :]
        self.append(last)

    def _filled(self) -> Iterator[Tensor]:
        for i, block in enumerate(self._blocks):
            rows = min(self.size - i * self._rows, self._rows)
            if rows > 0:
                yield block[:rows]

    def _slices(self) -> Iterator[slice]:
        return vectors.pieces(self._like.numel(), self._columns)
