"""How layers with weights, and attention, carry scale factors: they make new units."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.invariance.rescaling.rules import RULES, named, opaque, rule
from landscape.invariance.rescaling.trace import NO_FACTOR, ObservedRun, plain_name, tensors_of
from landscape.invariance.rescaling.units import ANY, compact

__all__ = ["RULES"]


@rule("linear")
def linear(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """W_ij scales by tau_out(i) / tau_in(j), the bias by tau_out: every output is a new unit."""
    arguments = named(func, args, kwargs, "input weight bias")
    weight, bias = arguments["weight"], arguments.get("bias")
    inputs = trace.features(arguments["input"])
    if not trace.is_parameter(weight):
        trace.mixing.bend(inputs)
        return _computed(trace, trace.labels(weight), inputs[None, :], bias).expand(out.shape)
    outputs = trace.units.fresh(weight.shape[0])
    trace.linear_layer(outputs, inputs, weight, bias)
    return outputs.expand(out.shape)


@rule("addmm")
def affine(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """For parameters b and W, b + X W is a linear layer (GPT-2 writes its layers so)."""
    arguments = named(func, args, kwargs, "input mat1 mat2")
    bias, x, weight = arguments["input"], arguments["mat1"], arguments["mat2"]
    plain = trace.is_parameter(weight) and trace.is_parameter(bias) and bias.dim() == 1
    if not plain or {"alpha", "beta"} & kwargs.keys():
        return opaque(trace, func, args, kwargs, out)
    outputs = trace.units.fresh(weight.shape[1])
    trace.linear_layer(outputs, trace.features(x), weight, bias, axis=1)
    return outputs.expand(out.shape)


@rule("conv1d", "conv2d", "conv3d")
def convolution(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """As a linear layer, a unit an output channel; a group reads its own run of input channels."""
    arguments = named(func, args, kwargs, "input weight bias stride padding dilation groups")
    weight, groups = arguments["weight"], arguments.get("groups") or 1
    places = weight.dim() - 2
    inputs = _channels(trace, trace.labels(arguments["input"]), places).view(groups, -1)
    ones = [1] * places
    rows = inputs.repeat_interleave(weight.shape[0] // groups, 0) if groups > 1 else inputs
    if not trace.is_parameter(weight):
        made = _computed(trace, trace.labels(weight), rows.reshape(*rows.shape, *ones), arguments.get("bias"))
        return made.view(-1, *ones).expand(out.shape)
    outputs = trace.units.fresh(weight.shape[0])
    trace.use(weight, (outputs.view(-1, 1, *ones), 1), (rows.reshape(*rows.shape, *ones), -1))
    trace.use(arguments.get("bias"), (outputs, 1))
    return outputs.view(-1, *ones).expand(out.shape)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """The weight's first axis is the input channel, the second the output channel within its group."""
    arguments = named(func, args, kwargs, "input weight bias stride padding output_padding groups dilation")
    weight, groups = arguments["weight"], arguments.get("groups") or 1
    places, per_group = weight.dim() - 2, weight.shape[1]
    inputs = _channels(trace, trace.labels(arguments["input"]), places)
    if not trace.is_parameter(weight):
        by_group = trace.labels(weight).unflatten(0, (groups, -1)).movedim(2, 1).flatten(0, 1)
        rows = inputs.view(groups, -1).repeat_interleave(per_group, 0)
        made = _computed(trace, by_group, rows.reshape(*rows.shape, *[1] * places), arguments.get("bias"))
        return made.view(-1, *[1] * places).expand(out.shape)
    outputs = trace.units.fresh(per_group * groups)
    ones = [1] * places
    columns = outputs.view(groups, per_group).repeat_interleave(weight.shape[0] // groups, 0)
    trace.use(weight, (columns.reshape(*columns.shape, *ones), 1), (inputs.view(-1, 1, *ones), -1))
    trace.use(arguments.get("bias"), (outputs, 1))
    return outputs.view(-1, *ones).expand(out.shape)


@rule("embedding")
def embedding(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """Every feature of the table is a unit."""
    arguments = named(func, args, kwargs, "input weight padding_idx max_norm")
    if not trace.is_parameter(arguments["weight"]) or arguments.get("max_norm") is not None:
        return opaque(trace, func, args, kwargs, out)
    outputs = trace.units.fresh(arguments["weight"].shape[1])
    trace.use(arguments["weight"], (outputs[None, :], 1))
    return outputs.expand(out.shape)


@rule("batch_norm")
def batch_norm(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """With running statistics those absorb the factor of the input; scale and shift make a new unit a channel.

    running_mean' = c running_mean and running_var' = c^2 (running_var + eps) - eps keep the function exactly. Batch
    statistics absorb it up to eps only: there the path ends.
    """
    if func is not F.batch_norm:  # torch.batch_norm orders its arguments otherwise
        return opaque(trace, func, args, kwargs, out)
    arguments = named(func, args, kwargs, "input running_mean running_var weight bias training momentum eps")
    labels = trace.labels(arguments["input"])
    if arguments.get("training") or arguments["running_mean"] is None:
        trace.end(arguments["input"])
    else:
        inputs = trace.units.reduce(labels, [d for d in range(labels.dim()) if d != 1]).reshape(-1)
        trace.use(arguments["running_mean"], (inputs, 1))
        trace.use(arguments["running_var"], (inputs, 1), epsilon=arguments.get("eps", 1e-5))
    return _affine(trace, arguments, 1, out)


@rule("group_norm")
def group_norm(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """The path ends (eps); scale and shift make a new unit a channel."""
    arguments = named(func, args, kwargs, "input num_groups weight bias eps")
    if func is not F.group_norm:
        return opaque(trace, func, args, kwargs, out)
    trace.end(arguments["input"])
    return _affine(trace, arguments, 1, out)


@rule("instance_norm")
def instance_norm(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """As GroupNorm."""
    arguments = named(func, args, kwargs, "input running_mean running_var weight bias use_input_stats momentum eps")
    if func is not F.instance_norm:
        return opaque(trace, func, args, kwargs, out)
    trace.end(arguments["input"])
    return _affine(trace, arguments, 1, out)


@rule("layer_norm", "rms_norm")
def layer_norm(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """The path ends (eps); scale and shift make a new unit an entry of the normalized shape."""
    arguments = named(func, args, kwargs, "input normalized_shape weight bias eps")
    if plain_name(func) == "rms_norm":
        arguments = named(func, args, kwargs, "input normalized_shape weight eps")
    trace.end(arguments["input"])
    return _affine(trace, arguments, None, out)


@rule("matmul", "rmatmul", "bmm", "mm")
def matmul(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """X W for a parameter W is a linear layer; A x for an A without factors mixes tied rows; else the pair cancels."""
    arguments = named(func, args, kwargs, "input other")
    a, b = arguments["input"], arguments["other"]
    if plain_name(func) == "rmatmul":
        a, b = b, a
    if trace.is_parameter(b) and b.dim() == 2:
        x = trace.labels(a)
        inputs, outputs = trace.units.reduce(x, range(x.dim() - 1)).reshape(-1), trace.units.fresh(b.shape[1])
        trace.linear_layer(outputs, inputs, b, None, axis=1)
        return outputs.expand(out.shape)
    if min(a.dim(), b.dim()) < 2:
        return opaque(trace, func, args, kwargs, out)
    return _contract(trace, trace.labels(a), trace.labels(b), out.shape)


@rule("einsum")
def einsum(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """Of two operands, as a matrix product: one without factors mixes the other's entries; else the pair cancels."""
    equation, *rest = args
    operands = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
    plain = isinstance(equation, str) and "->" in equation and "." not in equation
    sides = equation.replace(" ", "").split("->") if plain else []
    terms = sides[0].split(",") if sides else []
    if len(terms) != 2 or any(len(set(t)) != len(t) for t in terms):
        return opaque(trace, func, args, kwargs, out)
    labels = [trace.labels(o) for o in operands]
    if any(trace.units.fixed(one) for one in labels):
        mixed = 1 if trace.units.fixed(labels[0]) else 0
        _record_values(trace, labels[mixed], terms[mixed], terms[1 - mixed])
        return _spread(trace, labels[mixed], terms[mixed], sides[1], out.shape)
    shared = [i for i in terms[0] if i in terms[1]]
    a, b = (_spread(trace, one, t, "".join(shared), None) for one, t in zip(labels, terms, strict=True))
    summed = [i for i, index in enumerate(shared) if index not in sides[1]]
    if len(summed) == 1:
        trace.mixing.product(a.movedim(summed[0], -1), b.movedim(summed[0], -1))
    _cancel(trace, a, b)
    return NO_FACTOR


@rule("scaled_dot_product_attention")
def attention(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """Queries times tau, keys over tau, for each dimension of each head; values pass to the output."""
    arguments = named(func, args, kwargs, "query key value attn_mask")
    q, k, v = (trace.labels(arguments[n]) for n in ("query", "key", "value"))
    if kwargs.get("enable_gqa"):
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    trace.end([arguments.get("attn_mask")])
    q, k, v = (trace.units.reduce(labels, [-2]) for labels in (q, k, v))
    trace.mixing.product(q, k)
    trace.mixing.mixed(v)
    _cancel(trace, q, k)
    return v.expand(out.shape)


@rule("multi_head_attention_forward")
def multi_head_attention(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """nn.MultiheadAttention: three projections (packed or separate), attention, the output projection."""
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = bound.arguments
    trace.end([arguments[n] for n in ("bias_k", "bias_v", "attn_mask", "key_padding_mask", "static_k", "static_v")])
    inputs = [trace.features(arguments[n]) for n in ("query", "key", "value")]
    width = arguments["embed_dim_to_check"]
    made = trace.units.fresh(3 * width)
    q, k, v = made.split(width)
    if arguments["use_separate_proj_weight"]:
        for i, (o, x) in enumerate(zip((q, k, v), inputs, strict=True)):
            weight = arguments[f"{'qkv'[i]}_proj_weight"]
            trace.use(weight, (o[:, None], 1), (x[None, :], -1))
            trace.makes(o, (weight, 0, 0), (arguments["in_proj_bias"], 0, i * width))
    else:
        columns = torch.cat([x[None, :].expand(width, width) for x in inputs])
        trace.use(arguments["in_proj_weight"], (made[:, None], 1), (columns, -1))
        trace.makes(made, (arguments["in_proj_weight"], 0, 0), (arguments["in_proj_bias"], 0, 0))
    trace.use(arguments["in_proj_bias"], (made, 1))
    for labels in inputs:  # no map of what enters is looked for
        trace.mixing.bend(labels)
    trace.mixing.product(q.view(arguments["num_heads"], -1), k.view(arguments["num_heads"], -1))
    trace.mixing.mixed(v.view(arguments["num_heads"], -1))
    _cancel(trace, q, k)
    outputs = trace.units.fresh(arguments["out_proj_weight"].shape[0])
    trace.linear_layer(outputs, v, arguments["out_proj_weight"], arguments["out_proj_bias"])
    tensors = tensors_of(out)
    return [outputs.expand(tensors[0].shape), *[NO_FACTOR] * (len(tensors) - 1)]


# -- parts of rules ------------------------------------------------------------------------------------------------


def _channels(trace: ObservedRun, labels: Tensor, places: int) -> Tensor:
    """One label a channel of (..., channels, *places): the places and the examples of a channel are tied."""
    channel = labels.dim() - places - 1
    return trace.units.reduce(labels, [d for d in range(labels.dim()) if d != channel]).reshape(-1)


def _computed(trace: ObservedRun, labels: Tensor, inputs: Tensor, bias: Tensor | None) -> Tensor:
    """Outputs (out,) of a weight (out, in, ...) that the network computes: all that one output sums carries one factor.

    Where the weight's factors are the same along its inputs, the inputs are tied and their factor passes.

    Args:
        trace: the trace.
        labels: of the weight.
        inputs: labels that broadcast against them.
        bias: of the layer, if it has one.
    """
    rest = list(range(1, labels.dim()))
    if compact(labels)[0].shape[1:].numel() == 1:
        inputs = trace.units.reduce(inputs, rest)
        labels = labels[(slice(None), *[slice(1)] * len(rest))]
    outputs = trace.units.reduce(trace.units.product(labels, inputs), rest).reshape(-1)
    if bias is not None and (trace.is_parameter(bias) or bias.grad_fn is None):
        trace.use(bias, (outputs, 1))
    elif bias is not None:
        trace.units.tie(trace.labels(bias), outputs)
    return outputs


def _affine(trace: ObservedRun, arguments: dict[str, Any], channel: int | None, out: Tensor) -> Tensor:
    """Scale and shift of a normalization layer are the incoming parameters of a new unit; none without them."""
    weight, bias = arguments.get("weight"), arguments.get("bias")
    if weight is None or not trace.is_parameter(weight):
        trace.end([weight, bias])
        return NO_FACTOR
    made = trace.units.fresh(weight.numel()).view(weight.shape)
    trace.use(weight, (made, 1))
    trace.use(bias, (made, 1))
    return (made if channel is None else made.view(-1, *[1] * (out.dim() - channel - 1))).expand(out.shape)


def _spread(trace: ObservedRun, labels: Tensor, term: str, wanted: str, shape: Sequence[int] | None) -> Tensor:
    """Labels of an operand with the indices `term`, tied along all but the `wanted` ones and put in their order."""
    kept = trace.units.reduce(labels, [d for d, i in enumerate(term) if i not in wanted])
    there = [i for i in wanted if i in term]
    kept = kept.squeeze([d for d, i in enumerate(term) if i not in wanted])
    kept = kept.permute([[i for i in term if i in wanted].index(i) for i in there])
    if shape is None:
        return kept
    return kept[tuple(slice(None) if i in term else None for i in wanted)].expand(shape)


def _cancel(trace: ObservedRun, q: Tensor, k: Tensor) -> None:
    """Tie k to 1 / q, so that their products carry no factor."""
    trace.units.tie(torch.where(k == ANY, ANY, -k), q)


def _contract(trace: ObservedRun, a: Tensor, b: Tensor, shape: Sequence[int]) -> Tensor:
    """A (.., i, k) times B (.., k, j): the factors of a_ik b_kj may not depend on k."""
    units = trace.units
    if units.fixed(a):
        trace.mixing.mixed(units.reduce(b, [-2]))
        return units.reduce(b, [-2]).expand(shape)
    if units.fixed(b):
        trace.mixing.bend(a)
        return units.reduce(a, [-1]).expand(shape)
    q, k = units.reduce(a, [-2]).squeeze(-2), units.reduce(b, [-1]).squeeze(-1)
    trace.mixing.product(q, k)
    _cancel(trace, q, k)
    return NO_FACTOR


def _record_values(trace: ObservedRun, labels: Tensor, term: str, mixer: str) -> None:
    """In an einsum with attention weights: values of a head lie along the one index that the weights have not."""
    features = [d for d, i in enumerate(term) if i not in mixer]
    if len(features) == 1:
        trace.mixing.mixed(labels.movedim(features[0], -1))
    else:
        trace.mixing.bend(labels)
