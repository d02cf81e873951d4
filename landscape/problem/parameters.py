"""The flat weight vector and its layout.

Everything that perturbs, projects, normalizes or multiplies works on flat vectors of shape (d,); named tensors appear
only where a model is evaluated.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from landscape.errors import InputError
from landscape.problem.skeleton import skeleton
from landscape.random import forked

NORM_LAYERS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Slot:
    """One parameter tensor in the flat vector.

    Attributes:
        name: dotted name in the model.
        shape: shape of the tensor.
        start: offset of its first entry in the flat vector.
        kind: "weight" (two or more dimensions), "bias" (of any layer), "norm" (scale of a normalization layer) or
            "other" (tokens, embeddings of position, learned scales: one-dimensional or not part of a known layer).
        filter_axis: the output dimension of a weight; its slices are the filters (one output row of a Linear).
        dtype: of the model's own tensor.
    """

    name: str
    shape: torch.Size
    start: int
    kind: str
    filter_axis: int = 0
    dtype: torch.dtype = torch.float32

    @property
    def stop(self) -> int:
        """Offset after its last entry."""
        return self.start + self.shape.numel()

    @property
    def whole_shape(self) -> torch.Size:
        """Shape of the model's tensor, of which a process may hold some rows."""
        return self.shape

    def norms(self, tensor: Tensor, block: str) -> Tensor:
        """Norm of the block that each entry belongs to, broadcastable to the tensor.

        Args:
            tensor: the parameter or a direction in its space.
            block: "element", "filter" (slices along the output dimension; an entry of a one-dimensional tensor is its
                own filter) or "layer" (the whole tensor). Norms accumulate in float64.
        """
        if block == "element" or (block == "filter" and tensor.dim() < 2):
            return tensor.abs()
        axes = [a for a in range(tensor.dim()) if block == "layer" or a != self.filter_axis]
        if not axes:
            return tensor.abs()
        return self.norm(tensor, axes).to(tensor.dtype)

    def norm(self, tensor: Tensor, axes: Sequence[int]) -> Tensor:
        """Norm over these axes, which are kept with length 1; float64."""
        return torch.linalg.vector_norm(tensor, dim=list(axes), keepdim=True, dtype=torch.float64)

    def sum(self, tensor: Tensor, axes: Sequence[int]) -> Tensor:
        """Sum over these axes, which are kept with length 1."""
        return tensor.sum(list(axes), keepdim=True)

    def count(self, axes: Sequence[int]) -> int:
        """Entries along these axes."""
        return torch.Size([self.shape[a] for a in axes]).numel()


@dataclass(frozen=True)
class Parameters:
    """Layout of the flat vector: which entries are which tensor of the model."""

    slots: tuple[Slot, ...]

    @classmethod
    def of(cls, model: nn.Module, pattern: str | Sequence[str] | None = None) -> Parameters:
        """Layout of the model's trainable parameters, each shared tensor once.

        Args:
            model: any module.
            pattern: shell pattern(s) of dotted names; a pattern also selects everything below a module of that name.

        Raises:
            InputError: no trainable parameter, or a pattern that matches none (the nearest names are shown).
        """
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        lazy = [n for n, p in named if nn.parameter.is_lazy(p)]
        if lazy:
            raise InputError(f"the parameter {lazy[0]!r} has no shape yet: run one batch through the model first")
        if not named:
            quantized = next((n for n, m in model.named_modules() if "quantized" in type(m).__module__), None)
            raise InputError(
                "the model has no trainable parameter: set requires_grad=True on those to be analyzed"
                if quantized is None
                else f"the model's weights are quantized ({quantized}) and have no gradient: give the network before "
                "quantization"
            )
        wrong = next(((n, p.dtype) for n, p in named if p.is_complex() or not p.is_floating_point()), None)
        if wrong:
            raise InputError(
                f"the parameter {wrong[0]!r} is of {wrong[1]}: weights must be real floating-point numbers (store a "
                "complex one as real and imaginary parts, torch.view_as_real)"
            )
        chosen, kinds = _match([n for n, _ in named], pattern), dict(_kinds(model))
        slots, start = [], 0
        for name, parameter in named:
            if name in chosen:
                kind, axis = kinds.get(name, ("other", 0))
                slots.append(Slot(name, parameter.shape, start, kind, axis, parameter.dtype))
                start += parameter.numel()
        return cls(tuple(slots))

    @property
    def dimension(self) -> int:
        """Number of entries d of the flat vector."""
        return self.slots[-1].stop if self.slots else 0

    @property
    def names(self) -> tuple[str, ...]:
        """Dotted names in order."""
        return tuple(s.name for s in self.slots)

    @property
    def mixed(self) -> bool:
        """Whether the model's tensors are of several dtypes; the flat vector is then of the widest."""
        return len({s.dtype for s in self.slots}) > 1

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors in the layout's order -> one flat vector (d,)."""
        return torch.cat([t.reshape(-1) for t in tensors])

    def unflatten(self, flat: Tensor) -> list[Tensor]:
        """Flat vector (d,) -> views in the model's shapes, in the layout's order."""
        if flat.shape != (self.dimension,):
            raise InputError(f"a flat vector of shape ({self.dimension},) is needed, this one is {tuple(flat.shape)}")
        pieces = flat.split([s.shape.numel() for s in self.slots])
        return [p.view(s.shape) for p, s in zip(pieces, self.slots, strict=True)]

    def typed(self, flat: Tensor) -> list[Tensor]:
        """The tensors that the model computes with: `unflatten`, each in its own dtype where they differ."""
        tensors = [aligned(t) for t in self.unflatten(flat)]
        return [t.to(s.dtype) for t, s in zip(tensors, self.slots, strict=True)] if self.mixed else tensors

    def own_tensors(self, model: nn.Module) -> list[nn.Parameter]:
        """The model's own parameters in the layout's order: what an optimizer knows them by."""
        named = dict(model.named_parameters())
        return [named[s.name] for s in self.slots]

    def read(self, model: nn.Module) -> Tensor:
        """The model's present weights as a new flat vector (d,)."""
        return self.flatten([t.detach() for t in self.own_tensors(model)]).clone()

    def write(self, model: nn.Module, flat: Tensor) -> None:
        """Copy a flat vector (d,) into the model's own tensors, in place."""
        with torch.no_grad():
            for own, tensor in zip(self.own_tensors(model), self.unflatten(flat), strict=True):
                own.copy_(tensor)

    def norms(self, flat: Tensor, block: str) -> Tensor:
        """(d,) norm of the element, filter or layer that each entry belongs to (see `Slot.norms`)."""
        tensors = self.unflatten(flat)
        pieces = [s.norms(t, block).expand_as(t) for s, t in zip(self.slots, tensors, strict=True)]
        return self.flatten(pieces)

    def mask(self, keep: Callable[[Slot], bool], like: Tensor) -> Tensor:
        """(d,) ones where `keep(slot)` and zeros elsewhere."""
        return torch.cat([like.new_full((s.shape.numel(),), float(keep(s))) for s in self.slots])


def aligned(tensor: Tensor) -> Tensor:
    """The view, or a copy where it may stand for complex numbers and begins in the middle of one.

    `torch.view_as_complex` takes pairs at even places of their memory only.
    """
    pairs = tensor.dim() > 0 and tensor.shape[-1] == 2
    return tensor.clone() if pairs and tensor.storage_offset() % 2 else tensor


def _match(names: list[str], pattern: str | Sequence[str] | None) -> set[str]:
    if pattern is None:
        return set(names)
    chosen: set[str] = set()
    for one in [pattern] if isinstance(pattern, str) else pattern:
        matching = {n for n in names if fnmatch.fnmatchcase(n, one) or n.startswith(one + ".")}
        if not matching:
            near = difflib.get_close_matches(one, names, n=3, cutoff=0.3) or names[:3]
            raise InputError(f"no trainable parameter matches {one!r}: the nearest names are {', '.join(near)}")
        chosen |= matching
    return chosen


def _kinds(model: nn.Module) -> Iterator[tuple[str, tuple[str, int]]]:
    """(dotted name, (kind, filter axis)) by the type of the layer that owns the parameter, not by its dimensions."""
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            yield full, (_kind(module, name, parameter), int(_holds_inputs_first(module)))


def _holds_inputs_first(module: nn.Module) -> bool:
    """Whether a weight is (inputs, outputs, ...): transposed convolutions, and the Conv1D of transformers (GPT-2)."""
    conv1d = type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"
    return isinstance(module, _TRANSPOSED) or conv1d


def _kind(module: nn.Module, name: str, parameter: Tensor) -> str:
    if "bias" in name:
        return "bias"
    if isinstance(module, NORM_LAYERS) or (_is_vector(parameter) and normalizes(module)):
        return "norm"
    # A token or a position embedding has a leading dimension of one: it has no output dimension to slice along.
    return "weight" if parameter.dim() >= 2 and not (parameter.shape[0] == 1 and parameter.dim() == 3) else "other"


def normalizes(module: nn.Module) -> bool:
    """Whether a module of your own is a normalization, by what it does: four times the input, the same output.

    Only the user's modules that hold nothing but vectors of one length are tried, (n,) or (1, n, 1, 1); a copy of the
    module is called with vectors, sequences and images of n features.
    """
    vectors = list(module.parameters())
    if type(module).__module__.startswith("torch.") or any(True for _ in module.children()) or not vectors:
        return False
    first = vectors[0]
    if any(not _is_vector(p) or p.numel() != first.numel() or not p.is_floating_point() for p in vectors):
        return False
    n = first.numel()
    shapes = ((3, n), (3, 4, n), (3, n, 4), (3, n, 4, 4), (3, 4, 4, n))
    return any(_is_the_same_of_four_times(module, shape, first) for shape in shapes)


def _is_vector(parameter: Tensor) -> bool:
    return parameter.dim() > 0 and parameter.numel() == max(parameter.shape) > 0


def _is_the_same_of_four_times(module: nn.Module, shape: tuple[int, ...], like: Tensor) -> bool:
    x = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).sin().view(shape).mul(1e3).to(like)
    try:
        with torch.no_grad(), forked():
            # Ones in place of the parameters, which may be sharded.
            ones = {n: torch.ones(p.shape, dtype=p.dtype, device=p.device) for n, p in module.named_parameters()}
            clone = skeleton(module, ones).eval()
            once, again = clone(x), clone(4 * x)
    except Exception:  # another signature, another shape: no normalization of such an input
        return False
    same = isinstance(once, Tensor) and once.shape == x.shape and bool(once.isfinite().all())
    return same and bool(once.abs().max() > 0) and torch.allclose(once.float(), again.float(), rtol=1e-2, atol=1e-3)
