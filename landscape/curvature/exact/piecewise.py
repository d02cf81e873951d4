"""Whether the outputs of a network are piecewise multi-affine in its weights, read off the autograd graph.

Where they are, no single weight has a second derivative of the outputs, d2f/dw_i^2 = 0 almost everywhere, and the
diagonals (so the traces) of the Hessian and of the generalized Gauss-Newton matrix agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

# Operations that are linear, or linear on pieces, in all of their inputs together.
_LINEAR_NAMES = """
    Add Sub Neg View UnsafeView ReshapeAlias AsStrided T Transpose Permute Expand Clone Contiguous Copy Slice Select
    Split SplitWithSizes Unbind Chunk Cat Stack Squeeze Unsqueeze Index Gather Mean Sum Repeat Flip Roll Narrow
    Unfold Im2Col Col2Im ConstantPadNd ReflectionPad1D ReflectionPad2D ReplicationPad1D ReplicationPad2D
    AvgPool1D AvgPool2D AvgPool3D AdaptiveAvgPool2D MkldnnAdaptiveAvgPool2D AdaptiveAvgPool3D MaxPool1D
    MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D AdaptiveMaxPool3D MaxPool2D Max Amax Min Amin Maximum
    Minimum Relu LeakyRelu Hardtanh HardtanhBackward Threshold Abs Clamp ClampMin ClampMax Softshrink Hardshrink
    UpsampleNearest1D UpsampleNearest2D UpsampleBilinear2D PixelShuffle ToCopy Alias Detach MaskedFill Where Identity
"""
_LINEAR = frozenset(_LINEAR_NAMES.split())
# Operations that are linear in each of two inputs (their positions): these must not share a weight.
_BILINEAR = {
    "Mul": (0, 1),
    "Mm": (0, 1),
    "Bmm": (0, 1),
    "Mv": (0, 1),
    "Dot": (0, 1),
    "Addmm": (1, 2),
    "Addmv": (1, 2),
    "Baddbmm": (1, 2),
    "Convolution": (0, 1),
    "MkldnnConvolution": (0, 1),
    "Linear": (0, 1),
    "PreluKernel": (0, 1),
    "Embedding": (0, 0),
    "NativeBatchNorm": (0, 1),
    "Div": (0, 1),
}


def obstacle(outputs: Tensor, leaves: Sequence[Tensor]) -> str | None:
    """What keeps the outputs from being piecewise multi-affine in the leaves; None where they are.

    Conservative: an operation that is not known counts as an obstacle.

    Returns:
        The operation, or "a layer that is applied twice in depth"; None where tr(Hessian) = tr(GGN).
    """
    bits = {id(leaf): 1 << i for i, leaf in enumerate(leaves)}
    masks: dict[Any, int] = {None: 0}
    for node in _children_first(outputs.grad_fn):
        children = [masks[child] for child, _ in node.next_functions]
        name = node.name().removesuffix("0").removesuffix("1").removesuffix("2").split("::")[-1]
        name = name.removesuffix("Backward") or node.name()
        if hasattr(node, "variable"):
            masks[node] = bits.get(id(node.variable), 0)
            continue
        masks[node] = 0
        for mask in children:
            masks[node] |= mask
        if not masks[node] or name in _LINEAR:
            continue
        if name not in _BILINEAR:
            return _plain(name)
        first, second = (children[i] if i < len(children) else 0 for i in _BILINEAR[name])
        if first & second and _BILINEAR[name][0] != _BILINEAR[name][1]:
            return f"a product of two quantities that hold the same weight ({_plain(name)})"
        if name == "Div" and second:
            return "division by a quantity that holds a weight"
        if name == "NativeBatchNorm" and getattr(node, "_saved_training", False):
            return "BatchNorm with batch statistics"
    return None


def _children_first(root: Any) -> list[Any]:
    """Nodes of the graph, each after everything it depends on."""
    order: list[Any] = []
    seen: set[Any] = set()
    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        node, finished = stack.pop()
        if node is None or (node in seen and not finished):
            continue
        if finished:
            order.append(node)
            continue
        seen.add(node)
        stack.append((node, True))
        stack += [(child, False) for child, _ in node.next_functions if child not in seen]
    return order


def _plain(name: str) -> str:
    return name.lower()
