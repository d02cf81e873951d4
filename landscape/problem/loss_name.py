"""What a loss is called: results of one loss must not be taken for those of another."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from landscape.results import digest

_PLAIN = (bool, int, float, str, type(None))


def loss_name(loss: Callable[..., Any] | None) -> str:
    """A text that two losses share only where they compute the same, as far as that can be read off.

    Modules are told apart by their type, plain attributes and tensors; functions of your own by name, code, constants
    and plain variables of the enclosing scope; those of torch by name. What a function calls in turn is not followed,
    and the module's name does not count: a script's loss is the same when the script is imported.
    """
    if loss is None:
        return "outputs.loss"
    if isinstance(loss, functools.partial):
        arguments = [*map(repr, loss.args), *(f"{k}={v!r}" for k, v in sorted(loss.keywords.items()))]
        return f"{loss_name(loss.func)}({', '.join(arguments)})"
    if isinstance(loss, nn.Module):
        facts = {k: v for k, v in vars(loss).items() if isinstance(v, _PLAIN) and k[0] != "_" and k != "training"}
        facts |= {k: _digest(t.detach().double().cpu().tolist()) for k, t in loss.state_dict().items()}
        inside = [f"{k}={v!r}" for k, v in sorted(facts.items())] + [loss_name(m) for m in loss.children()]
        return f"{type(loss).__qualname__}({', '.join(inside)})"
    name, code = getattr(loss, "__qualname__", type(loss).__qualname__), getattr(loss, "__code__", None)
    if code is None or (loss.__module__ or "").startswith("torch."):
        return name
    cells = [c.cell_contents for c in getattr(loss, "__closure__", None) or ()]
    defaults = getattr(loss, "__defaults__", None) or ()
    known = [v for v in (*code.co_consts, *defaults, *cells) if isinstance(v, _PLAIN)]
    return f"{name}#{_digest((code.co_code, known))}"


def _digest(value: Any) -> str:
    return digest.of_parts([repr(value)])[:8]
