"""Symmetries: the verified group of rescalings and of maps of attention, and how it acts on the flat vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from landscape.errors import InputError
from landscape.invariance.rescaling.heads import Head
from landscape.invariance.rescaling.units import ANY
from landscape.invariance.rescaling.uses import Use
from landscape.problem.parameters import Parameters


@dataclass(frozen=True)
class Touch:
    """A tensor's part that one unit scales: tensor[..., index, ...] along `axis`, times tau ** exponent.

    Attributes:
        tensor: dotted name of the parameter or buffer.
        axis: the axis that the index runs along; None where the part is not a set of slices of one axis.
        index: places along the axis: one for an output row, a run of inputs behind a flatten.
        exponent: +1 for what enters the unit, -1 for what leaves it.
    """

    tensor: str
    axis: int | None
    index: tuple[int, ...]
    exponent: float


@dataclass(frozen=True)
class Unit:
    """One free factor tau and everything that it scales."""

    number: int
    block: str
    touches: tuple[Touch, ...]


@dataclass(frozen=True)
class Block:
    """Units of one layer (or of layers that an addition ties): they scale the same tensors.

    Attributes:
        name: the tensor that the units enter first.
        units: their numbers: places in the vector tau.
        incoming: tensors multiplied by tau (buffers too).
        outgoing: tensors divided by tau.
        residual: max |f' - f| / max |f| of the verification that it went through.
        verified: whether that was below the tolerance; a block that was not is not used.
    """

    name: str
    units: tuple[int, ...]
    incoming: tuple[str, ...]
    outgoing: tuple[str, ...]
    residual: float = float("nan")
    verified: bool = True


@dataclass(frozen=True)
class Rescaled:
    """A transformed network: flat weights (d,) and the buffers that moved with them."""

    weights: Tensor
    buffers: dict[str, Tensor]


@dataclass(frozen=True)
class Symmetries:
    """The group of changes of a network's weights that leave its function: rescalings, and maps of attention.

    Attributes:
        parameters: layout of the flat vector that it acts on.
        blocks: what was found and verified.
        rejected: what the trace found but the network did not confirm.
        notes: parts of the network that ended paths because they could not be followed.
        residual: max |f' - f| / max |f| with every unit rescaled at once.
        uses: parameter or buffer -> how the network uses it.
        matrix: (labels, dimension): the logarithm of each label's factor is this times log tau.
        buffers: the moved ones as they were when the symmetries were found.
        heads: of attention, with the invertible matrices that pass through each unseen, verified likewise.
        rejected_heads: what the trace took for such heads but the network did not confirm.
    """

    parameters: Parameters
    blocks: tuple[Block, ...]
    rejected: tuple[Block, ...]
    notes: tuple[str, ...]
    residual: float
    uses: Mapping[str, Use]
    matrix: csr_matrix
    buffers: Mapping[str, Tensor]
    heads: tuple[Head, ...] = ()
    rejected_heads: tuple[Head, ...] = ()

    @property
    def dimension(self) -> int:
        """Dimension of the group of rescalings: the number of free factors tau."""
        return self.matrix.shape[1]

    def sample(self, generator: torch.Generator, low: float = 0.5, high: float = 1.5) -> Tensor:
        """Factors tau (dimension,), float64, uniform in [low, high).

        Raises:
            InputError: unless 0 < low < high.
        """
        if not 0 < low < high < float("inf"):
            raise InputError(f"low={low}, high={high}: factors are positive, 0 < low < high is needed")
        return low + (high - low) * torch.rand(self.dimension, generator=generator, dtype=torch.float64)

    def sample_maps(self, generator: torch.Generator, low: float = 0.5, high: float = 1.5) -> list[Tensor]:
        """A random matrix (size, size), float64, for every head: singular values uniform in [low, high)."""
        return [head.sample(generator, low, high) for head in self.heads]

    def scales(self, tau: Tensor, *, weights_only: bool = False) -> Tensor:
        """The action on the flat vector: w' = scales * w; (d,) float64 on the CPU."""
        logs = self._logs(tau)
        pieces = []
        for slot in self.parameters:
            use = self.uses.get(slot.name)
            kept = use is None or (weights_only and slot.kind == "bias")
            log = torch.zeros(()) if kept or use is None else _exponent(use, logs)
            pieces.append(torch.exp(log.double()).expand(slot.shape).reshape(-1))
        return torch.cat(pieces)

    def apply(
        self,
        w: Tensor,
        tau: Tensor,
        *,
        maps: Sequence[Tensor] | None = None,
        buffers: Mapping[str, Tensor] | None = None,
        weights_only: bool = False,
    ) -> Rescaled:
        """The network at w with its units rescaled by tau, then its heads mapped; nothing is written into the model.

        Args:
            w: flat weights (d,).
            tau: factors (dimension,), all > 0.
            maps: an invertible matrix for every head, as `sample_maps` draws them; None leaves the heads.
            buffers: the model's buffers; default those it had when the symmetries were found.
            weights_only: leave the biases as they are. That is *not* a symmetry of a network with biases: it is what a
                scaling of "incoming weights" read literally does.
        """
        if tau.shape != (self.dimension,) or not bool((tau > 0).all()):
            raise InputError(f"tau: {self.dimension} positive factors are needed, received shape {tuple(tau.shape)}")
        scales = self.scales(tau, weights_only=weights_only).to(w.device)
        before, logs = self.buffers if buffers is None else buffers, self._logs(tau)
        moved = {n: _buffer(before[n], u, logs) for n, u in self.uses.items() if n in self.buffers}
        return Rescaled(self._mapped(w.double() * scales, maps or ()).to(w.dtype), moved)

    def _mapped(self, w: Tensor, maps: Sequence[Tensor]) -> Tensor:
        tensors = dict(zip(self.parameters.names, self.parameters.unflatten(w), strict=True))  # views into w
        for head, a in zip(self.heads if maps else (), maps, strict=True):
            head.apply(tensors, a)
        return w

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """Every unit with the tensors and axes that it touches."""
        owner = {number: block.name for block in self.blocks for number in block.units}
        touches: dict[int, list[Touch]] = {number: [] for number in range(self.dimension)}
        for name, use in self.uses.items():
            for number, touch in _touches(name, use, self.matrix):
                touches[number].append(touch)
        return tuple(Unit(n, owner[n], tuple(t)) for n, t in touches.items())

    def summary(self) -> dict[str, Any]:
        """Plain values: dimension, residual, blocks, what was rejected, notes."""

        def entry(block: Block) -> dict[str, Any]:
            return {
                "name": block.name,
                "units": len(block.units),
                "incoming": list(block.incoming),
                "outgoing": list(block.outgoing),
                "residual": block.residual,
            }

        return {
            "dimension": self.dimension,
            "residual": self.residual,
            "blocks": [entry(b) for b in self.blocks],
            "rejected": [entry(b) for b in self.rejected],
            "heads": _head_entries(self.heads),
            "rejected_heads": _head_entries(self.rejected_heads),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """A table: block, number of units, what is multiplied by tau, what is divided."""
        heads = _head_lines(self.heads, "") + _head_lines(self.rejected_heads, " rejected")
        if not self.blocks and not self.rejected:
            return "\n".join(["no rescaling symmetry was found", *heads, *self.notes])
        rows = [("units", "multiplied by tau", "divided by tau")]
        rows += [(str(len(b.units)), _short(b.incoming), _short(b.outgoing)) for b in self.blocks]
        rows += [(f"{len(b.units)} rejected", _short(b.incoming), _short(b.outgoing)) for b in self.rejected]
        widths = [max(len(r[i]) for r in rows) for i in range(3)]
        lines = ["  ".join(c.ljust(n) for c, n in zip(r, widths, strict=True)).rstrip() for r in rows]
        total = f"dimension {self.dimension}; outputs agree to {self.residual:.1e} with every unit rescaled"
        return "\n".join([*lines, total, *heads, *self.notes])

    def _logs(self, tau: Tensor) -> Tensor:
        return torch.from_numpy(self.matrix @ np.log(tau.detach().cpu().double().numpy()))


def _head_entries(heads: Sequence[Head]) -> list[dict[str, Any]]:
    """Heads of the same tensors and kind in one entry, with their number."""
    entries: dict[tuple, dict[str, Any]] = {}
    for head in heads:
        sides = head.tensors(dual=False), head.tensors(dual=True)
        kind = (*sides, head.size, len(head.free), len(head.planes))
        names = ("mapped", "inversely", "size", "free", "planes")
        entry = entries.setdefault(kind, dict(zip(names, kind, strict=True)) | {"heads": 0, "residual": 0.0})
        entry["heads"] += 1
        entry["residual"] = max(entry["residual"], head.residual)
    return [{k: list(v) if isinstance(v, tuple) else v for k, v in entry.items()} for entry in entries.values()]


def _head_lines(heads: Sequence[Head], ending: str) -> list[str]:
    lines = []
    for e in _head_entries(heads):
        rotary = f", {e['planes']} planes of rotary embeddings" if e["planes"] else ""
        matrices = f"{e['free']} x {e['free']} matrices" if e["free"] else "scaled rotations"
        between = f"{_short(e['mapped'])} and {_short(e['inversely'])}; outputs agree to {e['residual']:.1e}"
        lines.append(f"{e['heads']} heads{ending}: {matrices}{rotary} between {between}")
    return lines


def _exponent(use: Use, logs: Tensor) -> Tensor:
    """Log of the factor of every entry, broadcastable to the tensor."""
    total = torch.zeros((), dtype=torch.float64)
    for labels, exponent in use.factors:
        clean = torch.where(labels == ANY, 0, labels)
        total = total + exponent * torch.sign(clean) * logs[clean.abs()]
    return total


def _buffer(buffer: Tensor, use: Use, logs: Tensor) -> Tensor:
    scale = torch.exp(_exponent(use, logs)).to(buffer.device)
    if use.epsilon is None:
        return (buffer.double() * scale).to(buffer.dtype)
    # May come out negative, which is legal: only var + eps is ever used.
    return (scale**2 * (buffer.double() + use.epsilon) - use.epsilon).to(buffer.dtype)


def _touches(name: str, use: Use, matrix: csr_matrix) -> list[tuple[int, Touch]]:
    touches = []
    for labels, exponent in use.factors:
        axes = [i for i, n in enumerate(labels.shape) if n > 1]
        axis = axes[0] if len(axes) == 1 else 0 if not axes else None
        flat = torch.where(labels == ANY, 0, labels).reshape(-1).numpy()
        ids, inverse = np.unique(np.abs(flat), return_inverse=True)
        for unit, places in zip(ids, _runs(inverse, len(ids)), strict=True):
            row = matrix[unit]
            sign = 1 if flat[places[0]] > 0 else -1
            for number, value in zip(row.indices, row.data, strict=True) if unit else ():
                index = tuple(int(p) for p in places) if axis is not None else ()
                touches.append((int(number), Touch(name, axis, index, float(sign * exponent * value))))
    return touches


def _runs(inverse: np.ndarray, count: int) -> list[np.ndarray]:
    order = np.argsort(inverse, kind="stable")
    return np.split(order, np.searchsorted(inverse[order], np.arange(1, count)))


def _short(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown + (f", ... ({len(names)} tensors)" if len(names) > most else "")
