"""The one-step maximizer over a scaled p-ball: SAM takes it in training, SAM sharpness measures it.

It works on lists of tensors, so that training needs no copies; a flat vector is a list of one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from landscape.ball.spread import local
from landscape.ball.vectors import norm, ratio


def ascent(
    gradients: Sequence[Tensor], rho: float | Tensor, scales: Sequence[Tensor] | None = None, p: float = 2.0
) -> list[Tensor]:
    """Maximizer of <g, epsilon> over ||T^-1 epsilon||_p <= rho.

    With h = T g and 1/p + 1/q = 1: epsilon = rho T sign(h) |h|^(q-1) / ||h||_q^(q-1); for p = 2 this is
    rho T^2 g / ||T g||_2, for p = inf rho T sign(T g), for p = 1 the step along the largest |h| alone.

    Args:
        gradients: g, one tensor a parameter.
        rho: radius.
        scales: T, tensors broadcastable to the gradients; None is T = 1.
        p: order of the norm, in [1, inf].

    Returns:
        epsilon, one tensor a parameter; zero where the gradient or T is zero, and everywhere for a zero gradient.

    Source: Foret 2020 (arXiv 2010.01412, eq. 2) for T = 1; Kwon 2021 (arXiv 2102.11600) for T = |w|.
    """
    h = list(gradients if scales is None else torch._foreach_mul(list(gradients), list(scales)))
    if p == 2:
        # Near the underflow of the gradient the ratio overflows: then the step is shorter, not infinite.
        largest_ratio = min(torch.finfo(t.dtype).max for t in h)
        u = list(torch._foreach_mul(h, ratio(rho, norm(h)).clamp(max=largest_ratio)))
    elif math.isinf(p):
        u = [torch.sign(t) * rho for t in h]
    elif p == 1:
        largest = norm(h, math.inf)
        hits = [(t.abs() == largest) & (largest > 0) for t in h]
        count = norm([b.to(t.dtype) for b, t in zip(hits, h, strict=True)], 1).clamp(min=1)
        u = [torch.sign(t) * b * (rho / count) for t, b in zip(h, hits, strict=True)]
    else:
        q = p / (p - 1)
        # The largest entry is divided out first: |h|^q underflows for small gradients and large q.
        scaled = [t.abs().double() * ratio(1.0, norm(h, math.inf)) for t in h]
        factor = ratio(rho, norm(scaled, q) ** (q - 1))
        u = [torch.sign(t) * (s ** (q - 1) * factor).to(t.dtype) for t, s in zip(h, scaled, strict=True)]
    epsilon = u if scales is None else torch._foreach_mul(u, list(scales))
    # A 0-dim parameter takes the dtype of a 0-dim factor.
    return [e.to(g.dtype) for e, g in zip(epsilon, gradients, strict=True)]


@contextlib.contextmanager
def perturbed(tensors: Sequence[Tensor], epsilon: Sequence[Tensor]) -> Iterator[None]:
    """Within the context the tensors hold w + epsilon; afterwards, also after an exception, w to the last bit.

    The weights are restored by copying: subtracting epsilon again would drift, rebinding storage breaks DDP views. An
    autocast region around it keeps what it has cast, and would go on with weights of before: it is told to forget.
    """
    tensors = local(tensors)
    with torch.no_grad():
        saved = [t.detach().clone() for t in tensors]
        torch._foreach_add_(tensors, local(epsilon))
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(tensors, saved)
        torch.clear_autocast_cache()
