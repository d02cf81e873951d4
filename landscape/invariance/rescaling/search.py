"""Finding the rescaling symmetries of a network: trace, assemble, verify."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from landscape.errors import InputError
from landscape.invariance.rescaling import layers, normalized, recurrent
from landscape.invariance.rescaling.symmetries import Block, Symmetries
from landscape.invariance.rescaling.trace import HINTS, ObservedRun, tensors_of
from landscape.invariance.rescaling.uses import Use
from landscape.problem.batches import Batch
from landscape.problem.evaluator import POLICIES, copied
from landscape.problem.parameters import Parameters
from landscape.random import forked, stream

TOLERANCE = 1e-12


def find(
    model: nn.Module,
    example_input: Any,
    *,
    parameters: Parameters | None = None,
    hints: Mapping[str, str] | None = None,
    batch_norm: str = "frozen",
    tolerance: float = TOLERANCE,
) -> Symmetries:
    """The positive-scaling symmetries of a network, and the invertible maps of its attention.

    A copy of the model in float64 runs once on the example under observation: every function of torch that it calls
    carries the factors of its inputs to its outputs, additions tie them, layers make new ones, and what is not
    positively homogeneous ends the path. Then all units are rescaled by random factors and the outputs compared; where
    they differ by more than the tolerance the blocks are tried one by one and those at fault are set aside.

    The trace is of what the model computes on this example. (A symbolic trace would refuse Python control flow that
    this one follows; a branch on the *values* of a tensor is refused here too, since another input takes another path.)

    Args:
        model: any module; it is neither changed nor run itself.
        example_input: a tensor, a tuple of positional arguments, a dict of keyword arguments or a `Batch`. Real inputs:
            the verification is done on them. A few examples are enough.
        parameters: layout of the flat vector; default all trainable parameters. A unit that would scale a parameter
            outside it is not free.
        hints: module name or class name (shell patterns) -> "opaque" (it ends every path that enters it) or
            "homogeneous" (f(c x) = c f(x) entry by entry, or channel by channel where the shape changes).
        batch_norm: "frozen" (running statistics, which move with the weights), or "batch".
        tolerance: largest max |f' - f| / max |f| of a verified block.

    Returns:
        The group; `dimension` 0 where there is none.

    Raises:
        InputError: the model branches on values (naming the module), an unknown hint, nan weights.

    Cost: three forward passes over the example, and one a block or head where a verification fails.

    Source: Dinh 2017 (arXiv 1703.04933) for the rescaling, Kwon 2021 (arXiv 2102.11600) for its use.
    """
    hints = dict(hints or {})
    check_hints(hints, model)
    if batch_norm not in POLICIES:
        raise InputError(f"batch_norm must be one of {', '.join(POLICIES)}, received {batch_norm!r}")
    layout = parameters or Parameters.of(model)
    double = copied(model).double().eval()
    if batch_norm != "frozen":
        for module in double.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
    example = _example(example_input, layout.read(double))
    if not bool(torch.isfinite(layout.read(double)).all()):
        raise InputError("the weights hold nan or inf: rescaling and comparing outputs would be meaningless")
    trace = ObservedRun(double, hints, {**layers.RULES, **normalized.RULES, **recurrent.RULES})
    few = example.rows(0, 2) if example.sliceable else example
    trace.run(few.args, few.kwargs)
    symmetries = _assemble(trace, layout, double)
    with torch.no_grad():
        reference = _outputs(double, example)
        symmetries = _verified(symmetries, double, example, reference, tolerance)
        symmetries = _verified_heads(symmetries, double, example, reference, tolerance)
    buffers = dict(model.named_buffers())
    return replace(symmetries, buffers={name: buffers[name].detach().clone() for name in symmetries.buffers})


# -- from the trace to the group -----------------------------------------------------------------------------------


def check_hints(hints: Mapping[str, str], model: nn.Module | None = None) -> None:
    """Raise InputError for a hint of another kind, or of a module that the model does not have."""
    for name, hint in hints.items():
        if hint not in HINTS:
            raise InputError(f"hint {hint!r} of {name!r}: one of {', '.join(HINTS)} is needed")
    modules = [] if model is None else [(name, type(module).__name__) for name, module in model.named_modules()]
    for pattern in hints if modules else ():
        if not any(fnmatch.fnmatchcase(text, pattern) for names in modules for text in names):
            known = ", ".join(f"{name!r} ({kind})" for name, kind in modules[1:4])
            raise InputError(f"hint of {pattern!r}: no module has this name or class; there are {known or 'none'}, ...")


def _assemble(trace: ObservedRun, layout: Parameters, model: nn.Module) -> Symmetries:
    shapes = {n: t.shape for n, t in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]}
    inside, buffers = set(layout.names), dict(model.named_buffers())
    uses = {name: use for name, use in trace.uses.items() if use.factors}
    for name, use in uses.items():
        if name not in inside and name not in buffers:
            for labels, _ in use.factors:
                trace.units.fix(labels)
    matrix, _ = trace.units.solve()
    touched = np.zeros(matrix.shape[1], dtype=bool)
    for name, use in uses.items():
        if name in inside:
            touched[matrix[np.abs(use.signed_units())].indices] = True
    matrix = matrix[:, np.flatnonzero(touched)]
    uses = {n: u for n, u in uses.items() if n in inside or n in buffers}
    blocks = _blocks(uses, matrix, shapes)
    kept = {n: buffers[n].clone() for n in uses if n in buffers}
    heads = trace.mixing.assembled(trace.units, inside)
    return Symmetries(layout, blocks, (), tuple(trace.notes), float("nan"), uses, matrix, kept, heads)


def _blocks(uses: Mapping[str, Use], matrix: csr_matrix, shapes: Mapping[str, torch.Size]) -> tuple[Block, ...]:
    """Units with the same tensors and exponents form one block; its name is the first tensor's module."""
    signature: dict[int, list[tuple[str, bool]]] = {n: [] for n in range(matrix.shape[1])}
    for name, use in uses.items():
        signed = use.signed_units()
        part = matrix[np.abs(signed)].tocoo()
        for row, number, value in zip(part.row, part.col, part.data, strict=True):
            entry = (name, bool(value * signed[row] > 0))
            if entry not in signature[number]:
                signature[number].append(entry)
    grouped: dict[tuple, list[int]] = {}
    for number, touches in signature.items():
        grouped.setdefault(tuple(touches), []).append(number)
    blocks = []
    for entries, numbers in grouped.items():
        incoming = tuple(n for n, up in entries if up)
        outgoing = tuple(n for n, up in entries if not up)
        blocks.append(Block((incoming or outgoing)[0].rpartition(".")[0], tuple(numbers), incoming, outgoing))
    return tuple(blocks)


# -- verification --------------------------------------------------------------------------------------------------


def _verified(
    symmetries: Symmetries, model: nn.Module, example: Batch, reference: list[Tensor], tolerance: float
) -> Symmetries:
    if not symmetries.dimension:
        return replace(symmetries, residual=0.0)
    tau = symmetries.sample(stream(0, "verify rescaling"), 0.5, 1.5)

    def residual(numbers: Sequence[int]) -> float:
        some = torch.ones_like(tau)
        some[list(numbers)] = tau[list(numbers)]
        return _residual(symmetries, model, example, reference, some)

    whole = residual(range(symmetries.dimension))
    if whole <= tolerance:
        return replace(symmetries, residual=whole, blocks=tuple(replace(b, residual=whole) for b in symmetries.blocks))
    tried = [replace(b, residual=r, verified=r <= tolerance) for b in symmetries.blocks for r in [residual(b.units)]]
    good, bad = [b for b in tried if b.verified], [b for b in tried if not b.verified]
    numbers = [n for b in good for n in b.units]
    position = {n: i for i, n in enumerate(numbers)}
    kept = replace(
        symmetries,
        blocks=tuple(replace(b, units=tuple(position[n] for n in b.units)) for b in good),
        rejected=tuple(bad),
        residual=residual(numbers) if numbers else 0.0,
        matrix=symmetries.matrix[:, numbers],
    )
    if kept.residual > tolerance:
        raise InputError(
            f"the rescalings found change the outputs by {kept.residual:.1e} together, not one by one: "
            "the model's outputs are not a fixed function of its weights; look for randomness or state in it"
        )
    return kept


def _verified_heads(
    symmetries: Symmetries, model: nn.Module, example: Batch, reference: list[Tensor], tolerance: float
) -> Symmetries:
    """Those heads through which random maps pass: all at once, or else one by one; the others are set aside."""
    maps = symmetries.sample_maps(stream(0, "verify maps of heads"), 0.5, 1.5)
    ones = torch.ones(symmetries.dimension, dtype=torch.float64)

    def residual(mapped: Mapping[int, Tensor]) -> float:
        chosen = [mapped.get(i, torch.eye(head.size, dtype=torch.float64)) for i, head in enumerate(symmetries.heads)]
        return _residual(symmetries, model, example, reference, ones, chosen)

    whole = residual(dict(enumerate(maps))) if maps else 0.0
    if whole <= tolerance:
        return replace(symmetries, heads=tuple(replace(h, residual=whole) for h in symmetries.heads))
    tried = [replace(h, residual=residual({i: maps[i]})) for i, h in enumerate(symmetries.heads)]
    return replace(
        symmetries,
        heads=tuple(h for h in tried if h.residual <= tolerance),
        rejected_heads=tuple(h for h in tried if not h.residual <= tolerance),
    )


def _residual(
    symmetries: Symmetries,
    model: nn.Module,
    example: Batch,
    reference: list[Tensor],
    tau: Tensor,
    maps: Sequence[Tensor] | None = None,
) -> float:
    w = symmetries.parameters.read(model)
    moved = symmetries.apply(w, tau, maps=maps)
    buffers = dict(model.named_buffers())
    try:
        symmetries.parameters.write(model, moved.weights)
        for name, value in moved.buffers.items():
            buffers[name].copy_(value)
        outputs = _outputs(model, example)
    finally:
        symmetries.parameters.write(model, w)
        for name in moved.buffers:
            buffers[name].copy_(symmetries.buffers[name])
    worst = 0.0
    for new, old in zip(outputs, reference, strict=True):
        scale = old.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
        change = float((new - old).abs().max() / scale)
        worst = max(worst, change if change == change else float("inf"))
    return worst


def _outputs(model: nn.Module, example: Batch) -> list[Tensor]:
    with forked():
        outputs = tensors_of(model(*example.args, **example.kwargs))
    return [t.double() for t in outputs if t.is_floating_point() and t.numel()]


def _example(inputs: Any, like: Tensor) -> Batch:
    def move(tensor: Tensor) -> Tensor:
        # A copy: a layer that works in place would write into the user's example.
        return tensor.detach().to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype, copy=True)

    if isinstance(inputs, Batch):
        return inputs.map(move)
    args = inputs if isinstance(inputs, tuple | list) else () if isinstance(inputs, Mapping) else (inputs,)
    batch = Batch(tuple(args), dict(inputs) if isinstance(inputs, Mapping) else {}, None, 0).map(move)
    tensors = [t for t in batch.tensors() if t.dim()]
    if not tensors:
        raise InputError("example_input holds no tensor: a tensor, a tuple or a dict of the model's inputs is needed")
    return replace(batch, size=tensors[0].shape[0])
