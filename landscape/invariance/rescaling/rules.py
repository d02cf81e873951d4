"""How torch's functions carry scale factors from their inputs to their outputs.

One rule a family of functions, found by the function's name without underscores (add: torch.add, Tensor.__iadd__).
A rule returns the labels of the outputs. A function without a rule ends the path: its inputs carry the factor 1, and so
do its outputs. That is always true of the network, it only finds fewer symmetries: GELU, SiLU, tanh, softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.invariance.rescaling.trace import NO_FACTOR, ObservedRun, Rule, host, plain_name, tensors_of
from landscape.invariance.rescaling.units import ANY, elementwise

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the functions of these names."""

    def mark(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return mark


def opaque(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """End the path."""
    trace.end((args, kwargs))
    return NO_FACTOR


@rule(
    "relu", "leaky_relu", "rrelu", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "native_dropout"
)
@rule(
    "feature_alpha_dropout", "abs", "absolute", "neg", "negative", "positive", "clone", "contiguous", "detach", ".data"
)
@rule("to", "type", "float", "double", "half", "bfloat16", "cpu", "cuda", "type_as", "requires_grad")
def homogeneous(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """f(c x) = c f(x) for c > 0, entry by entry."""
    return trace.labels(_first(args, kwargs))


@rule("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
def constant(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """A constant in the shape of a tensor reads nothing of it; zeros fit every factor."""
    return torch.where(out.detach().cpu() == 0, ANY, 0)


@rule("prelu")
def prelu(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """PReLU passes; its slope is not rescaled."""
    trace.end(named(func, args, kwargs, "input weight")["weight"])
    return trace.labels(_first(args, kwargs))


@rule("clamp", "clip", "clamp_min", "threshold")
def clamp(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """A clamp at 0 from below is ReLU; any other bound ends the path."""
    names = {"clamp_min": "input min max", "threshold": "input min value"}.get(plain_name(func), "input min max")
    arguments = named(func, args, kwargs, names)
    bound = arguments.get("min")
    zero = isinstance(bound, int | float) and bound == 0
    rest = arguments.get("value") if plain_name(func) == "threshold" else arguments.get("max")
    passes = zero and (rest is None or (plain_name(func) == "threshold" and rest == 0))
    return homogeneous(trace, func, args, kwargs, out) if passes else opaque(trace, func, args, kwargs, out)


@rule("view", "reshape", "flatten", "unflatten", "ravel", "permute", "transpose", "swapaxes", "swapdims", "movedim")
@rule("moveaxis", "t", ".T", ".mT", "adjoint", "squeeze", "unsqueeze", "expand", "repeat", "repeat_interleave", "tile")
@rule("chunk", "split", "tensor_split", "unsafe_split", "unsafe_chunk", "unbind", "narrow", "select", "flip", "roll")
@rule("index_select", "getitem", "gather", "take_along_dim", "unfold", "diagonal", "view_as", "expand_as", "reshape_as")
@rule("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "broadcast_to")
@rule("channel_shuffle", "pixel_shuffle", "pixel_unshuffle")
def shape(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """Labels are cut, joined and moved as the tensor's entries are: the same function acts on them."""
    if func is F.unfold or any(isinstance(a, torch.dtype) for a in args):  # x.view(dtype) reads other numbers
        return opaque(trace, func, args, kwargs, out)
    if plain_name(func) in ("view", "view_as"):  # labels need not lie in memory as the tensor does
        return trace.labels(args[0]).reshape(out.shape)
    first, *rest = args
    labels = [trace.labels(t) for t in first] if isinstance(first, list | tuple) else trace.labels(first)
    return func(labels, *(host(a) for a in rest), **{k: host(v) for k, v in kwargs.items()})


@rule("pad")
def pad(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """Padding by zeros fits every factor; by another constant the path ends."""
    arguments = named(func, args, kwargs, "input pad mode value")
    mode, value, labels = arguments.get("mode") or "constant", arguments.get("value"), trace.labels(arguments["input"])
    if mode == "constant":
        return F.pad(labels, arguments["pad"], value=ANY if not value else 0)
    # Reflection takes floating point only; labels are exact there, far below 2^53.
    return F.pad(labels.double(), arguments["pad"], mode=mode).long()


@rule("add", "iadd", "radd", "sub", "isub", "rsub", "subtract", "maximum", "minimum")
def add(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """Terms of a sum carry one factor: a residual addition ties the units of its branches."""
    arguments = named(func, args, kwargs, "input other")
    a, b = trace.labels(arguments["input"]), trace.labels(arguments["other"])
    return _joined(trace, a, b)


@rule("where")
def where(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """Both choices carry one factor."""
    arguments = named(func, args, kwargs, "condition input other")
    if len(arguments) < 3:
        return opaque(trace, func, args, kwargs, out)
    return _joined(trace, trace.labels(arguments["input"]), trace.labels(arguments["other"]))


@rule("masked_fill")
def masked_fill(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """As a choice between the tensor and the value."""
    arguments = named(func, args, kwargs, "input mask value")
    return _joined(trace, trace.labels(arguments["input"]), trace.labels(arguments["value"]))


@rule("mul", "imul", "rmul", "multiply")
def multiply(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """Factors multiply: gates, learned scales, constants."""
    arguments = named(func, args, kwargs, "input other")
    return trace.units.product(trace.labels(arguments["input"]), trace.labels(arguments["other"]))


@rule("div", "idiv", "truediv", "itruediv", "divide", "true_divide", "rdiv", "rtruediv")
def divide(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """Factors divide."""
    arguments = named(func, args, kwargs, "input other")
    if kwargs.get("rounding_mode"):
        return opaque(trace, func, args, kwargs, out)
    a, b = trace.labels(arguments["input"]), trace.labels(arguments["other"])
    if plain_name(func) in ("rdiv", "rtruediv"):
        a, b = b, a
    return trace.units.product(a, torch.where(b == ANY, 0, -b))


@rule("square", "sqrt", "rsqrt", "reciprocal", "pow")
def power(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """(c x)^a = c^a x^a for a number a, whole or half; any other exponent ends the path."""
    arguments = named(func, args, kwargs, "input exponent")
    plain = {"square": 2, "sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1}
    exponent = plain.get(plain_name(func), arguments.get("exponent"))
    if not isinstance(exponent, int | float) or 2 * exponent % 1 or not 0 < abs(exponent) <= 4:
        return opaque(trace, func, args, kwargs, out)
    labels, times = trace.labels(arguments["input"]), abs(exponent)
    if exponent < 0:
        labels = torch.where(labels == ANY, 0, -labels)
    if times % 1:
        labels, times = trace.units.root(labels), 2 * times
    powers = labels
    for _ in range(int(times) - 1):
        powers = trace.units.product(powers, labels)
    return powers


@rule("cumsum", "topk", "sort")
def ordered(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """Entries along a dimension that are summed up or sorted carry one factor."""
    names = "input k dim" if plain_name(func) == "topk" else "input dim"
    arguments = named(func, args, kwargs, names)
    labels, outputs = trace.labels(arguments["input"]), tensors_of(out)
    dim = arguments.get("dim", kwargs.get("axis", -1))
    if not isinstance(dim, int):
        return opaque(trace, func, args, kwargs, out)
    kept = trace.units.reduce(labels, [dim])
    return [kept.expand(outputs[0].shape), *[NO_FACTOR] * (len(outputs) - 1)]


@rule("gt", "ge", "lt", "le", "eq", "ne", "greater", "less", "sign", "signbit")
def sign(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """The sign of an entry does not change with a positive factor; other comparisons end the path."""
    other = args[1] if len(args) > 1 else kwargs.get("other", 0)
    zero = isinstance(other, int | float) and other == 0
    return NO_FACTOR if zero else opaque(trace, func, args, kwargs, out)


@rule("glu")
def gated_linear_unit(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """The product a sigmoid(b) of the two halves: b ends its path, a passes."""
    arguments = named(func, args, kwargs, "input dim")
    first, second = trace.labels(arguments["input"]).chunk(2, arguments.get("dim", -1))
    trace.units.fix(second)
    return first


@rule("mean", "sum", "nanmean", "nansum", "amax", "amin", "max", "min", "median")
def statistic(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """Entries that are averaged, summed or compared carry one factor, and so does what comes out."""
    arguments = named(func, args, kwargs, "input dim keepdim")
    labels, dim = trace.labels(arguments["input"]), arguments.get("dim", kwargs.get("axis"))
    if isinstance(dim, Tensor):
        return _joined(trace, labels, trace.labels(dim))
    dims = range(labels.dim()) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    kept = trace.units.reduce(labels, dims)
    outputs = tensors_of(out)
    return [kept.reshape(outputs[0].shape), *[NO_FACTOR] * (len(outputs) - 1)]


@rule(*(f"{kind}_pool{n}d" for n in (1, 2, 3) for kind in ("max", "avg", "lp", "adaptive_avg", "adaptive_max")))
@rule(*(f"max_pool{n}d_with_indices" for n in (1, 2, 3)), *(f"adaptive_max_pool{n}d_with_indices" for n in (1, 2, 3)))
@rule("interpolate", "upsample")
def pool(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """The places of a channel carry one factor, before and after (interpolation keeps it as pooling does)."""
    labels, outputs = trace.labels(_first(args, kwargs)), tensors_of(out)
    digits = [c for c in plain_name(func) if c.isdigit()]
    places = int(digits[0]) if digits else labels.dim() - 2
    kept = trace.units.reduce(labels, range(-places, 0))
    return [kept.expand(outputs[0].shape), *[NO_FACTOR] * (len(outputs) - 1)]


# -- parts of rules ------------------------------------------------------------------------------------------------


def named(func: Any, args: Sequence[Any], kwargs: dict, names: str) -> dict[str, Any]:
    """Arguments by the names of their positions; `self` of a method is the first."""
    arguments = dict(zip(names.split(), args, strict=False))
    arguments.update(kwargs)
    return arguments


def _first(args: tuple, kwargs: dict) -> Any:
    return args[0] if args else kwargs["input"]


def _joined(trace: ObservedRun, a: Tensor, b: Tensor) -> Tensor:
    trace.units.tie(a, b)
    return elementwise(lambda x, y: torch.where(x == ANY, y, x), a, b)
