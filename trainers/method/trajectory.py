"""The trajectory loss that SAF and MESA share: the divergence from the network's own past outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.errors import InputError, unknown
from trainers.method.method import Context, Pass, require

RECIPES = ("scaled", "paper")
START = 0.3
"""Share of the run after which the term is added: "30% of the epochs" in the authors' README."""
PAPER_START = 5
"""E_start of the authors' README, in epochs of a run of 90 to 300."""


def check(strength: float, tau: float, recipe: str, start: float) -> None:
    """Raise InputError where a hyperparameter of the trajectory loss is out of range."""
    require(strength >= 0, f"strength must be >= 0, received {strength}")
    require(tau > 0, f"tau must be > 0, received {tau}: the authors' temperature is 5")
    require(0 <= start <= 1, f"start is a share of the run, from 0 to 1, received {start}")
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    fixed = "recipe=paper adds the term after 5 epochs"
    require(recipe == "scaled" or start == START, f"start={start} and {fixed}: choose one")


def started(context: Context, recipe: str, start: float) -> bool:
    """Whether the loss has its trajectory term: after a share of the run, or after the paper's 5 epochs."""
    return context.epoch >= PAPER_START if recipe == "paper" else context.progress >= start


def require_classes(result: Pass, method: str, sequences: bool = False) -> None:
    """Raise InputError unless the outputs are logits (n, C), or with `sequences` (n, C, ...)."""
    if result.logits.dim() < 2 or (result.logits.dim() > 2 and not sequences):
        raise InputError(
            f"{method} compares class probabilities: outputs of shape (examples, classes) are needed, received "
            f"{tuple(result.logits.shape)}"
        )


def size_text(size: int) -> str:
    """Bytes as people read them: 640 bytes, 15.2 KiB, 20.1 GiB."""
    if size < 1024:
        return f"{size} bytes"
    power = min((size.bit_length() - 1) // 10, 4)
    return f"{size / 1024**power:,.1f} {' KMGT'[power]}iB"


def divergence(past: Tensor, logits: Tensor, tau: float, classes: Tensor | None = None) -> Tensor:
    """KL(past || softmax(logits / tau)) of each example, (n,); of logits (n, C, ...) at each position, (n, ...).

    With `classes` the distributions are compared over these classes and one event for all the others: a lower bound of
    the full divergence, exact where the past puts no weight on the others.

    Args:
        past: log-probabilities at temperature tau, (n, C), or (n, k) of `classes`; a constant.
        logits: (n, C), with their graph.
        tau: temperature.
        classes: (n, k) int64, k < C.
    """
    now = F.log_softmax(logits / tau, dim=1)
    past = past.to(now.dtype)
    if classes is None:
        return (past.exp() * (past - now)).sum(dim=1)
    kept = now.gather(1, classes)
    rest = (1 - past.exp().sum(dim=1)).clamp(min=0)
    rest_now = now.scatter(1, classes, -torch.inf).logsumexp(dim=1)
    return (past.exp() * (past - kept)).sum(dim=1) + torch.special.xlogy(rest, rest) - rest * rest_now
