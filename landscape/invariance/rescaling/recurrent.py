"""How recurrent layers with ReLU carry scale factors: every hidden entry is one unit at all times.

With tanh, LSTM and GRU the hidden entries have no factor; what their first layer reads has, its columns divide by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from landscape.invariance.rescaling.rules import RULES, opaque, rule
from landscape.invariance.rescaling.trace import NO_FACTOR, ObservedRun, plain_name, tensors_of

__all__ = ["RULES"]


@rule("rnn_relu")
def recurrent(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """nn.RNN: h_t = relu(W x_t + b + U h_(t-1) + c), layer upon layer; U_ij scales by tau_i / tau_j."""
    # Padded: (input, hx, weights, has_biases, layers, ...); packed: (data, batch_sizes, hx, weights, ...).
    state, weights, has_biases, layers = args[2:6] if isinstance(args[3], list | tuple) else args[1:5]
    if not all(trace.is_parameter(w) for w in weights):
        return opaque(trace, func, args, kwargs, out)
    per_cell = 4 if has_biases else 2
    cells = [weights[i : i + per_cell] for i in range(0, len(weights), per_cell)]
    directions = len(cells) // layers
    inputs = trace.features(args[0])
    states: list[Tensor] = []
    for layer in range(layers):
        hidden = [trace.units.fresh(w.shape[0]) for w, *_ in cells[:directions]]
        for units, cell in zip(hidden, cells[layer * directions :], strict=False):
            _use(trace, cell, units, inputs, units)
        inputs, states = torch.cat(hidden), [*states, *hidden]
    stacked = torch.stack(states)[:, None]
    trace.units.tie(trace.labels(state), stacked)
    sequence, last = tensors_of(out)
    return [inputs.expand(sequence.shape), stacked.expand(last.shape)]


@rule("rnn_relu_cell")
def cell(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """nn.RNNCell: one step."""
    x, state, *weights = args
    weights = [w for w in weights if w is not None]
    if not all(trace.is_parameter(w) for w in weights):
        return opaque(trace, func, args, kwargs, out)
    hidden = trace.units.fresh(out.shape[-1])
    _use(trace, weights, hidden, trace.features(x), trace.features(state))
    return hidden.expand(out.shape)


@rule("gru", "lstm", "rnn_tanh")
def bounded(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """The columns of the first layer's input weights divide by the factors of the inputs; all else is fixed."""
    start = 3 if isinstance(args[3], list | tuple) else 2  # of the weights, as in `recurrent`
    weights, layers, directions = args[start], args[start + 2], 2 if args[start + 5] else 1
    per_cell = len(weights) // (layers * directions)
    return _fixed_but_inputs(trace, args[0], args[start - 1], weights, weights[: per_cell * directions : per_cell])


@rule("gru_cell", "lstm_cell", "rnn_tanh_cell")
def bounded_cell(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """As one step of such a layer."""
    return _fixed_but_inputs(trace, args[0], args[1], [w for w in args[2:] if w is not None], args[2:3])


def _fixed_but_inputs(
    trace: ObservedRun, inputs: Tensor, state: Any, weights: Sequence[Tensor], first: Sequence[Tensor]
) -> Tensor:
    trace.end(state)
    trace.end([w for w in weights if not any(w is f for f in first)])
    for weight in first:
        trace.use(weight, (trace.features(inputs)[None, :], -1))
    return NO_FACTOR


@rule("pack_padded_sequence", "pad_packed_sequence")
def packed(trace: ObservedRun, func: Any, args: tuple, kwargs: dict, out: Any) -> Any:
    """The steps and examples of a feature carry one factor, packed or padded by zeros; their numbers have none."""
    padding = plain_name(func) == "pad_packed_sequence"
    if padding and args[3]:
        return opaque(trace, func, args, kwargs, out)
    labels = trace.labels(args[0])
    kept = trace.units.reduce(labels, [0] if padding else [0, 1])
    shape = kept.shape[1 if padding else 2 :]
    return [kept.reshape(shape).expand(out[0].shape), None]


def _use(trace: ObservedRun, weights: Sequence[Tensor], hidden: Tensor, inputs: Tensor, before: Tensor) -> None:
    """The weights (input to hidden, hidden to hidden) and biases of a cell."""
    trace.use(weights[0], (hidden[:, None], 1), (inputs[None, :], -1))
    trace.use(weights[1], (hidden[:, None], 1), (before[None, :], -1))
    for bias in weights[2:]:
        trace.use(bias, (hidden, 1))
