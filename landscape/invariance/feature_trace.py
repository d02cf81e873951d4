"""Following features through one run of a network: which axis of which tensor carries which of its feature spaces.

One rule per family of functions, found by the function's name, as in `landscape.invariance.rescaling`. What has no rule
fixes the features that enter it: that is always right, it only finds fewer maps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from landscape.invariance.feature_spaces import FeatureSpace, NormCall, Spaces
from landscape.invariance.rescaling.rules import named
from landscape.invariance.rescaling.trace import host, plain_name, tensors_of
from landscape.problem.batches import Batch
from landscape.problem.evaluator import copied
from landscape.random import forked

Dims = tuple[int | None, ...]


def feature_spaces(model: nn.Module, example: Batch) -> list[FeatureSpace]:
    """Candidates, found from one run of a copy of the model in evaluation mode; they are to be verified.

    Args:
        model: neither changed nor run itself.
        example: a few examples.

    Cost: one forward pass.
    """
    double = _with_known_norms(copied(model).double().eval())
    batch = example.map(lambda t: t.double() if t.is_floating_point() else t)
    trace = SpaceTrace(double)
    with forked(), torch.no_grad(), trace:
        outputs = double(*batch.args, **batch.kwargs)
    trace.spaces.fix(trace.dims_of(outputs))
    return trace.spaces.collected()


def _with_known_norms(model: nn.Module) -> nn.Module:
    """The model with torch's own RMSNorm in place of modules that are called so: they write it out, and in float32."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            weights = dict(child.named_parameters())
            if (
                type(child).__name__.endswith("RMSNorm")
                and weights.keys() == {"weight"}
                and weights["weight"].dim() == 1
            ):
                norm = nn.RMSNorm(weights["weight"].shape, dtype=torch.float64)
                norm.weight = weights["weight"]
                setattr(module, name, norm)
    return model


class SpaceTrace(TorchFunctionMode):
    """One run of a model, in which every axis of a tensor carries the class of its features, or none."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.spaces = Spaces()
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._known: dict[int, tuple[Tensor, Dims]] = {}

    def dims(self, tensor: Any) -> Dims:
        """The classes along the axes of a tensor."""
        if not isinstance(tensor, Tensor):
            return ()
        if id(tensor) not in self._known:
            name = self._names.get(id(tensor))
            axes = enumerate(tensor.shape)
            fresh = [None if name is None or n == 1 else self.spaces.fresh(n, (name, i)) for i, n in axes]
            self._known[id(tensor)] = tensor, tuple(fresh)
        return self._known[id(tensor)][1]

    def dims_of(self, values: Any) -> list[int | None]:
        """All classes in a structure of tensors."""
        return [d for t in tensors_of(values) for d in self.dims(t)]

    def name(self, parameter: Tensor | None) -> str | None:
        """The name of a parameter; None for anything else."""
        return None if parameter is None else self._names.get(id(parameter))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, plain_name(func)
        out = func(*args, **kwargs)
        outputs = tensors_of(out)
        if outputs or name == "setitem":
            rule = _RULES.get(name, _unknown)
            try:
                result = rule(self, func, args, kwargs, out)
            except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # a form of the call no rule knows
                result = _unknown(self, func, args, kwargs, out)  # type: ignore[func-returns-value]
            each = result if isinstance(result, list) else [result] * len(outputs)
            for tensor, dims in zip(outputs, each, strict=True):
                if id(tensor) not in self._names:
                    self._known[id(tensor)] = tensor, dims or (None,) * tensor.dim()
        return out


# -- rules ---------------------------------------------------------------------------------------------------------


def _unknown(trace: SpaceTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
    trace.spaces.fix(trace.dims_of((args, kwargs)))


def _linear(trace: SpaceTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> Dims:
    a = named(func, args, kwargs, "input weight bias")
    x, weight = trace.dims(a["input"]), trace.dims(a["weight"])
    trace.spaces.tie(x[-1], weight[1])
    return (*x[:-1], _biased(trace, weight[0], a.get("bias")))


def _biased(trace: SpaceTrace, space: int | None, bias: Tensor | None) -> int | None:
    return space if bias is None else trace.spaces.tie(space, trace.dims(bias)[-1])


def _convolution(trace: SpaceTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> Dims | None:
    a = named(func, args, kwargs, "input weight bias stride padding dilation groups")
    if a.get("groups", 1) != 1:
        _unknown(trace, func, args, kwargs, out)
        return None
    x, weight = trace.dims(a["input"]), trace.dims(a["weight"])
    channel = len(x) - len(weight) + 1
    trace.spaces.tie(x[channel], weight[1])
    trace.spaces.fix([*x[channel + 1 :], *weight[2:]])
    return (*x[:channel], _biased(trace, weight[0], a.get("bias")), *[None] * (len(weight) - 2))


def _embedding(trace: SpaceTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> Dims:
    a = named(func, args, kwargs, "input weight")
    trace.spaces.fix(trace.dims(a["weight"])[:1])
    return (*[None] * a["input"].dim(), trace.dims(a["weight"])[1])


def _product(trace: SpaceTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> Dims | None:
    a = named(func, args, kwargs, "input other")
    left, right = trace.dims(a["input"]), trace.dims(a.get("other", kwargs.get("mat2")))
    if len(left) < 2 or len(right) != 2:
        _unknown(trace, func, args, kwargs, out)
        return None
    trace.spaces.tie(left[-1], right[0])
    return (*left[:-1], right[1])


def _sum_and_product(trace: SpaceTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> Dims:
    a = named(func, args, kwargs, "input mat1 mat2")
    left, right = trace.dims(a["mat1"]), trace.dims(a["mat2"])
    trace.spaces.tie(left[-1], right[0])
    return (left[0], _biased(trace, right[1], a["input"]))


def _norm(trace: SpaceTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> Dims | None:
    centered = plain_name(func) == "layer_norm"
    a = named(func, args, kwargs, "input shape weight bias" if centered else "input shape weight")
    x, gain, bias = trace.dims(a["input"]), a.get("weight"), a.get("bias")
    known = all(t is None or trace.name(t) for t in (gain, bias))
    if x[-1] is None or not known or (gain is not None and gain.dim() != 1) or gain is a["input"]:
        _unknown(trace, func, args, kwargs, out)
        return None
    written = trace.spaces.fresh(trace.spaces.of(x[-1]).size)
    trace.spaces.norms.append(NormCall(centered, x[-1], written, trace.name(gain), trace.name(bias)))
    return (*x[:-1], written)


def _sum(trace: SpaceTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> Dims:
    """Terms agree on their features; a number, or one number for all features, is not turned along."""
    return _elementwise(trace, args, kwargs, out, summed=True)


def _scaled(trace: SpaceTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> Dims:
    """Factors agree on their features; one factor for all features leaves them free."""
    return _elementwise(trace, args, kwargs, out, summed=False)


def _elementwise(trace: SpaceTrace, args: tuple, kwargs: dict, out: Any, *, summed: bool) -> Dims:
    tensors = [t for t in tensors_of((args, kwargs)) if t.dim()]
    rows = [(t, (None,) * (out.dim() - t.dim()) + trace.dims(t)) for t in tensors]
    number = summed and len(tensors) < 2
    dims: list[int | None] = []
    for axis, size in enumerate(out.shape):
        here = [d for t, d in ((t, row[axis]) for t, row in rows) if _spans(t, out, axis)]
        narrow = len(here) < len(rows)
        space = here[0] if here else None
        for other in here[1:]:
            space = trace.spaces.tie(space, other, summed=summed)
        if (number or (narrow and summed) or (len(here) > 1 and not summed)) and size > 1:
            trace.spaces.bend([space])
        dims.append(space)
    return tuple(dims)


def _spans(tensor: Tensor, out: Tensor, axis: int) -> bool:
    """Whether a tensor is as long as the result along its axis, and not one entry for all."""
    mine = axis - out.dim() + tensor.dim()
    return mine >= 0 and tensor.shape[mine] == out.shape[axis]


def _entrywise(trace: SpaceTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> Dims:
    dims = trace.dims(args[0] if args else kwargs["input"])
    trace.spaces.bend(dims)
    return dims


def _unchanged(trace: SpaceTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> Dims:
    return trace.dims(args[0] if args else kwargs["input"])


def _reduced(trace: SpaceTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> Dims | None:
    a = named(func, args, kwargs, "input dim keepdim")
    x, dim = trace.dims(a["input"]), a.get("dim")
    gone = range(len(x)) if dim is None else [d % len(x) for d in ([dim] if isinstance(dim, int) else dim)]
    trace.spaces.bend([x[d] for d in gone])
    if a.get("keepdim"):
        return tuple(None if i in gone else d for i, d in enumerate(x))
    return tuple(d for i, d in enumerate(x) if i not in gone)


def _shaped(trace: SpaceTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """A class stays with the axis along which its places still run in order; cut or mixed it is fixed."""
    x, *rest = args
    outputs = tensors_of(out)
    found: list[list[int | None]] = [[None] * t.dim() for t in outputs]
    for axis, space in enumerate(trace.dims(x)):
        if space is None:
            continue
        places = torch.arange(x.shape[axis]).view([-1 if i == axis else 1 for i in range(x.dim())])
        carried = func(places.expand(x.shape).contiguous(), *(host(a) for a in rest), **kwargs)
        for number, moved in enumerate(tensors_of(carried)):
            where = next((e for e in range(moved.dim()) if _runs_along(moved, e, x.shape[axis])), None)
            if where is None:
                trace.spaces.fix([space])
            else:
                found[number][where] = space
    return [tuple(dims) for dims in found]


def _runs_along(places: Tensor, axis: int, size: int) -> bool:
    if places.shape[axis] != size:
        return False
    expected = torch.arange(size).view([-1 if i == axis else 1 for i in range(places.dim())])
    return bool((places == expected).all())


def _joined(trace: SpaceTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> Dims:
    a = named(func, args, kwargs, "tensors dim")
    rows = [trace.dims(t) for t in a["tensors"] if t.numel()]  # a cache begins with an empty tensor of one axis
    stacked = out.dim() > len(rows[0])
    dim = a.get("dim", 0) % out.dim()
    dims: list[int | None] = []
    for axis, column in enumerate(zip(*rows, strict=True)):
        space = column[0]
        for other in column[1:]:
            space = trace.spaces.tie(space, other, summed=True)
        if axis == dim and not stacked:
            trace.spaces.fix(column)
            space = None
        dims.append(space)
    return tuple([*dims[:dim], None, *dims[dim:]] if stacked else dims)


def _attention(trace: SpaceTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """Attention of torch itself reads its inputs by linear layers and writes by one; the heads in between are fixed."""
    names = (
        "query key value width heads in_proj_weight in_proj_bias bias_k bias_v add_zero dropout_p out_weight out_bias"
    )
    a = named(func, args, kwargs, names)
    weight = a.get("in_proj_weight")
    if weight is None or a.get("bias_k") is not None or not (a["query"] is a["key"] is a["value"]):
        _unknown(trace, func, args, kwargs, out)
        return None
    x, packed = trace.dims(a["query"]), trace.dims(weight)
    written = trace.dims(kwargs.get("out_proj_weight", a.get("out_weight")))
    bias = kwargs.get("out_proj_bias", a.get("out_bias"))
    trace.spaces.tie(x[-1], packed[1])
    trace.spaces.fix([packed[0], written[1], *trace.dims(a.get("in_proj_bias"))])
    outputs = tensors_of(out)
    return [(*x[:-1], _biased(trace, written[0], bias)), *[(None,) * t.dim() for t in outputs[1:]]]


_Rule = Callable[[SpaceTrace, Any, tuple, dict, Any], Any]
_NAMES: dict[_Rule, str] = {
    _linear: "linear",
    _convolution: "conv1d conv2d conv3d",
    _embedding: "embedding",
    _product: "matmul mm",
    _sum_and_product: "addmm",
    _norm: "layer_norm rms_norm",
    _sum: "add iadd radd sub isub subtract",
    _scaled: "mul imul rmul multiply div idiv truediv itruediv divide true_divide",
    _entrywise: "gelu relu silu tanh sigmoid elu selu celu mish softplus leaky_relu hardswish hardtanh relu6 "
    "logsigmoid square pow sqrt rsqrt exp abs softmax log_softmax clamp erf sin cos",
    _unchanged: "dropout clone contiguous detach to float double type_as requires_grad",
    _reduced: "mean sum",
    _shaped: "view reshape flatten unflatten permute transpose swapaxes swapdims movedim moveaxis t .T .mT squeeze "
    "unsqueeze expand getitem select narrow chunk split unbind index_select view_as expand_as reshape_as",
    _joined: "cat concat concatenate stack",
    _attention: "multi_head_attention_forward",
}
_RULES: dict[str, _Rule] = {name: rule for rule, names in _NAMES.items() for name in names.split()}
