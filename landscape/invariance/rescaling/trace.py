"""Following a network's computation on an example: which factor each entry of each tensor may carry.

The trace sees every function of torch that the network calls, also those behind Python control flow, and hands it to
the rule of that name (see `rules`). What has no rule ends the path: its inputs keep the factor 1.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from landscape.errors import InputError
from landscape.invariance.rescaling.heads import BENT, POSITIONAL, STRAIGHT, Mixing
from landscape.invariance.rescaling.units import ANY, Units, compact
from landscape.invariance.rescaling.uses import LARGEST_TIED, Use, agree, entries
from landscape.random import forked

HINTS = ("opaque", "homogeneous")
ESCAPES = {"__bool__", "item", "tolist", "numpy", "__int__", "__float__", "__index__", "__array__", "__complex__"}
ESCAPES |= {"equal", "allclose", "is_nonzero", "__contains__"}
_LARGEST_RAW = 1_000_000
# What a function does to outputs of linear layers (see `Mixing`); what is not named bends them.
_LINEAR = {"linear", "matmul", "rmatmul", "bmm", "mm", "addmm", "einsum", "multi_head_attention_forward"}
_LINEAR |= {"scaled_dot_product_attention", "dropout", "neg", "negative", "positive", "clone", "contiguous", "detach"}
_LINEAR |= {"to", "type", "float", "double", "type_as", "zeros_like", "ones_like", "full_like"}
_LINEAR |= {"view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "moveaxis", "t"}
_LINEAR |= {".T", ".mT", "squeeze", "unsqueeze", "expand", "repeat", "repeat_interleave", "chunk", "split", "unbind"}
_LINEAR |= {"narrow", "select", "flip", "getitem", "cat", "concat", "concatenate", "stack", "broadcast_to", "view_as"}
_LINEAR |= {"expand_as", "reshape_as", "tensor_split", "index_select"}
_SUMS = {"add", "iadd", "radd", "sub", "isub", "rsub", "subtract"}
_PRODUCTS = {"mul", "imul", "rmul", "multiply", "div", "idiv", "truediv", "itruediv", "divide", "true_divide"}
NO_FACTOR = torch.zeros((), dtype=torch.int64)
Rule = Callable[["ObservedRun", Any, tuple, dict, Any], Any]


class Untraceable(InputError):
    """The network does something that the trace cannot follow."""


@dataclass
class _Known:
    tensor: Tensor  # kept alive, so that its id stays its own
    labels: Tensor
    whole: bool = False  # made of whole numbers of the input alone: token ids, masks


class ObservedRun(TorchFunctionMode):
    """One run of a model under observation.

    Args:
        model: in evaluation mode; its hooks are used while the trace runs.
        hints: module name or class (shell patterns) -> "opaque" or "homogeneous", see `find`.
        rules: name of a function of torch -> its rule, called as rule(trace, function, args, kwargs, outputs), which
            returns the labels of the outputs.
    """

    def __init__(self, model: nn.Module, hints: Mapping[str, str], rules: Mapping[str, Rule]) -> None:
        super().__init__()
        self._rules = rules
        self.model, self.hints, self.units, self.mixing = model, hints, Units(), Mixing()
        self.uses: dict[str, Use] = {}
        self.notes: list[str] = []
        tensors = [*self.model.named_parameters(remove_duplicate=False), *self.model.named_buffers()]
        self._names: dict[int, str] = {}
        for name, tensor in tensors:
            self._names.setdefault(id(tensor), name)
        self._trainable = {id(p) for p in self.model.parameters()}
        self._known: dict[int, _Known] = {}
        self._inside: list[tuple[str, nn.Module]] = []
        self._hinted = 0

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Run the model; its inputs and outputs carry the factor 1.

        Raises:
            Untraceable: the model branches on values, or computes beyond torch's functions.
        """
        for tensor in tensors_of((args, kwargs)):
            self.set(tensor, torch.zeros(tensor.shape, dtype=torch.int64), whole=not tensor.is_floating_point())
        handles = list(self._hooks())
        try:
            with forked(), torch.enable_grad(), self:
                outputs = self.model(*args, **kwargs)
            self.end(outputs)
        finally:
            for handle in handles:
                handle.remove()

    # -- what rules use ------------------------------------------------------------------------------------------

    def labels(self, tensor: Any) -> Tensor:
        """Labels of a tensor (or number) in its shape: of a result, a parameter, or a constant."""
        if not isinstance(tensor, Tensor):
            return torch.tensor(ANY if tensor == 0 else 0)
        if id(tensor) in self._known:
            return self._known[id(tensor)].labels
        if id(tensor) in self._trainable:
            return self._raw(tensor)
        if tensor.grad_fn is not None:
            raise self._escaped("computes with functions that cannot be followed (TorchScript, a custom function)")
        zero = tensor.detach().to("cpu") == 0
        return torch.where(zero, ANY, 0) if zero.any() else torch.zeros((), dtype=torch.int64).expand(tensor.shape)

    def features(self, tensor: Tensor) -> Tensor:
        """One label a feature of (..., features): the rows are tied."""
        labels = self.labels(tensor)
        return self.units.reduce(labels, range(labels.dim() - 1)).reshape(-1)

    def set(self, tensor: Tensor, labels: Tensor, *, whole: bool = False) -> None:
        """Give a result its labels."""
        self._known[id(tensor)] = _Known(tensor, labels.expand(tensor.shape), whole)

    def end(self, value: Any) -> None:
        """End the path of every tensor in a structure: their factors are 1."""
        for tensor in tensors_of(value):
            if id(tensor) in self._trainable and self._names[id(tensor)] not in self.uses:
                self.uses[self._names[id(tensor)]] = Use([], raw=False)
            elif id(tensor) in self._trainable:
                self._fix(self.uses[self._names[id(tensor)]])
            else:
                self.units.fix(self.labels(tensor))

    def is_parameter(self, tensor: Any) -> bool:
        """Whether this is a parameter of the model itself."""
        return isinstance(tensor, Tensor) and id(tensor) in self._trainable

    def use(
        self, tensor: Tensor | None, *factors: tuple[Tensor, int], epsilon: float | None = None, raw: bool = False
    ) -> None:
        """Record how a parameter or a buffer scales; one that is used twice scales in one way that suits both."""
        if tensor is None:
            return
        if id(tensor) not in self._names:  # a constant or a computed weight: it cannot be rescaled
            for labels, _ in factors:
                self.units.fix(labels)
            return
        name, new = self._names[id(tensor)], Use(list(factors), epsilon, raw)
        old = self.uses.setdefault(name, new)
        if old is new:
            return
        same = len(old.factors) == len(factors) and all(
            a.shape == b.shape and s == t for (a, s), (b, t) in zip(old.factors, factors, strict=True)
        )
        if not same or old.raw != raw:
            if not agree(self.units, old, new, tensor.shape):
                self._fix(old)
                self._fix(new)
            return
        for i, ((a, s), (b, _)) in enumerate(zip(old.factors, factors, strict=True)):
            self.units.tie(a, b)
            old.factors[i] = (torch.where(a == ANY, b, a), s)

    def linear_layer(self, units: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor | None, axis: int = 0) -> None:
        """Record a linear layer of two axes, its outputs along `axis`: how it scales, and what it reads and makes."""
        self.use(weight, (units.unsqueeze(1 - axis), 1), (inputs.unsqueeze(axis), -1))
        self.use(bias, (units, 1))
        self.makes(units, (weight, axis, 0), (bias, 0, 0))
        self.mixing.reads(inputs, self._names[id(weight)], 1 - axis)

    def makes(self, units: Tensor, *slices: tuple[Tensor | None, int, int]) -> None:
        """Record which slices of parameters make the units of a linear layer: tensor, axis of outputs, first place."""
        there = [(tensor, axis, start) for tensor, axis, start in slices if tensor is not None]
        if all(self.is_parameter(tensor) for tensor, _, _ in there):
            self.mixing.layer(units, [(self._names[id(tensor)], axis, start) for tensor, axis, start in there])

    def module_name(self) -> str:
        """The module that computes now, as the user would call it."""
        name, module = self._inside[-1] if self._inside else ("", self.model)
        return f"module {name!r} ({type(module).__name__})" if name else f"the model itself ({type(module).__name__})"

    # -- observing -----------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._hinted or not self._involved((args, kwargs)):
            return func(*args, **kwargs)
        if getattr(func, "__name__", "") in ESCAPES and any(id(t) in self._known for t in tensors_of(args)):
            if not self._whole(args):
                raise self._escaped("reads the values of a tensor (a branch on them, .item(), numpy)")
            note = f"{self.module_name()} reads token ids or a mask: inputs that take another branch were not seen"
            self.notes += [] if note in self.notes else [note]
            return func(*args, **kwargs)
        if _in_place(func) and args and isinstance(args[0], Tensor) and not self._involved(args[0]):
            self.set(args[0], self.labels(args[0]))  # a constant that the call writes into: as it is before
        out = func(*args, **kwargs)
        if plain_name(func) == "setitem":
            self._assign(*args)
        elif tensors_of(out):
            self._follow(func, args, kwargs, out)
        return out

    def _follow(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        """Label the outputs of one call by the rule of the function's name; without a rule the path ends."""
        rule = self._rules.get(plain_name(func))
        self._bend(plain_name(func), args, kwargs)
        if rule is None:
            self.end((args, kwargs))
        labels = rule(self, func, args, kwargs, out) if rule else NO_FACTOR
        outputs = tensors_of(out)
        one_each = list(labels) if isinstance(labels, list | tuple) else [labels] * len(outputs)
        for tensor, label in zip(outputs, one_each, strict=True):
            if label is not None and not self.is_parameter(tensor):  # None: lengths and the like, free to be read
                self.set(tensor, label, whole=self._whole((args, kwargs)))

    def _bend(self, name: str, args: tuple, kwargs: dict) -> None:
        """Record what a function does to the outputs of linear layers among its arguments."""
        if name in _LINEAR:
            return
        known = [compact(self._known[id(t)].labels)[0] for t in tensors_of((args, kwargs)) if id(t) in self._known]
        carrying = [labels for labels in known if bool(((labels != 0) & (labels != ANY)).any())]
        level = BENT
        if name in _SUMS:
            level = POSITIONAL
        elif name in _PRODUCTS and len(carrying) == 1:
            others = [t for t in tree_leaves((args, kwargs)) if not (isinstance(t, Tensor) and id(t) in self._known)]
            learned = any(self.is_parameter(t) for t in others)
            numbers = all(not isinstance(t, Tensor) or t.numel() == 1 for t in others)
            level = BENT if learned else STRAIGHT if numbers and len(known) == 1 else POSITIONAL
        for labels in carrying:
            self.mixing.bend(labels, level)

    def _assign(self, target: Tensor, index: Any, value: Any) -> None:
        """x[index] = value: these entries carry the factors of the value from now on."""
        labels = self.labels(target).clone()
        self.mixing.bend(self.labels(value))
        labels[host(index)] = self.labels(value)
        self.set(target, labels)

    def _whole(self, values: Any) -> bool:
        """Whether all that is followed among the arguments was made of whole numbers of the input alone."""
        return all(id(t) in self._known and self._known[id(t)].whole for t in tensors_of(values) if self._involved(t))

    def _involved(self, values: Any) -> bool:
        followed = (self._known, self._trainable)
        return any(t.grad_fn is not None or any(id(t) in known for known in followed) for t in tensors_of(values))

    def _raw(self, parameter: Tensor) -> Tensor:
        """Labels of a parameter that takes part as a tensor: a unit of its own for each entry."""
        name = self._names[id(parameter)]
        use = self.uses.get(name)
        if use is not None and use.raw:
            return use.factors[0][0]
        if use is not None and use.epsilon is None and parameter.numel() <= LARGEST_TIED:
            return entries(self.units, use).expand(parameter.shape)
        if use is not None or parameter.numel() > _LARGEST_RAW:
            self.end(parameter)
            return torch.zeros((), dtype=torch.int64).expand(parameter.shape)
        labels = self.units.fresh(parameter.numel()).view(parameter.shape)
        self.uses[name] = Use([(labels, 1)], raw=True)
        return labels

    def _fix(self, use: Use) -> None:
        for labels, _ in use.factors:
            self.units.fix(labels)

    # -- modules -------------------------------------------------------------------------------------------------

    def _hooks(self) -> Iterator[Any]:
        for name, module in self.model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks: the module that holds it is looked at
                continue
            hint = self._hint(name, module)
            yield module.register_forward_pre_hook(self._enter(name, hint), with_kwargs=True)
            yield module.register_forward_hook(self._leave(hint), with_kwargs=True)

    def _hint(self, name: str, module: nn.Module) -> str | None:
        hints = [
            h
            for p, h in self.hints.items()
            if fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(type(module).__name__, p)
        ]
        return hints[-1] if hints else None

    def _enter(self, name: str, hint: str | None) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._inside.append((name, module))
            self._hinted += hint is not None

        return hook

    def _leave(self, hint: str | None) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
            if hint is not None:
                self._hinted -= 1
                if not self._hinted:
                    self._bridge(hint, module, (args, kwargs), outputs)
            elif not self._hinted and self._unseen(outputs):
                self.notes.append(f"{self.module_name()} could not be followed: it ends every path that enters it")
                self._bridge("opaque", module, (args, kwargs), outputs)
            self._inside.pop()

        return hook

    def _unseen(self, outputs: Any) -> bool:
        return any(
            id(t) not in self._known and id(t) not in self._trainable and t.grad_fn is not None
            for t in tensors_of(outputs)
        )

    def _bridge(self, hint: str, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Label the outputs of a module that is not looked into."""
        self.end(list(module.parameters()))
        tensors = tensors_of(inputs)
        if hint == "homogeneous" and tensors:
            labels = self.labels(tensors[0])
            self.end(tensors[1:])
            for out in tensors_of(outputs):
                kept = labels
                if out.shape != labels.shape:
                    kept = self.units.reduce(labels, range(2, labels.dim())).reshape(
                        [*labels.shape[:2], *[1] * (out.dim() - 2)]
                    )
                self.set(out, kept)
            return
        self.end(inputs)
        for out in tensors_of(outputs):
            self.set(out, torch.zeros((), dtype=torch.int64))

    def _escaped(self, what: str) -> Untraceable:
        name = self._inside[-1][0] if self._inside else ""
        hint = name or "NAME"
        return Untraceable(
            f"{self.module_name()} {what}: its rescaling symmetries cannot be traced; "
            + ("" if name else "move that part into a module of its own NAME and ")
            + f'pass hints={{"{hint}": "opaque"}} (it ends every path) or "homogeneous" (f(c x) = c f(x) per channel); '
            "on the command line --hint"
        )


def plain_name(func: Any) -> str:
    """The name of a function without underscores: add for torch.add, Tensor.__add__, Tensor.add_; shape for .shape."""
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":
        return "." + func.__self__.__name__
    return name.strip("_")


def _in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))


def tensors_of(value: Any) -> list[Tensor]:
    """Every tensor in a structure of tuples, lists and dicts."""
    return [t for t in tree_leaves(value) if isinstance(t, Tensor)]


def host(index: Any) -> Any:
    """An index whose tensors lie on the CPU, as the labels do."""
    if isinstance(index, Tensor):
        return index.cpu()
    return type(index)(host(i) for i in index) if isinstance(index, list | tuple) else index
