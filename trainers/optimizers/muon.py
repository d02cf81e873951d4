"""Muon: momentum whose matrices are orthogonalized; AdamW for everything that is not a hidden matrix.

Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon (KellerJordan/Muon); the scale of the step is that of
Liu et al. 2025, arXiv 2502.16982 (Moonlight), with which AdamW's learning rate and weight decay serve both parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5: steep at 0, so that small singular values rise fast; its values stay near 1."""
ITERATIONS = 5
TINY = 1e-7


class Muon(torch.optim.Optimizer):
    """Matrices: m <- mu m + (1 - mu) g, w <- (1 - lr weight_decay) w - 0.2 sqrt(max(rows, columns)) lr O(u).

    u = mu m + (1 - mu) g is Nesterov's look ahead, and O replaces its singular values by about 1 (five Newton-Schulz
    iterations, which bring them to 0.7 ... 1.2). The factor gives the entries of a step of full rank AdamW's usual root
    mean square, 0.2 lr. A convolution is the matrix of its filters, (filters, all else). Groups with
    `orthogonal=False` take AdamW's step.

    Differs from `torch.optim.Muon`: convolutions are taken (there: two dimensions alone), AdamW's part is the same
    optimizer, the iterations run in the weights' own precision, float32 at least (there: bfloat16). On matrices the
    step is that of `torch.optim.Muon(nesterov=True, adjust_lr_fn="match_rms_adamw")` but for that rounding.

    Args:
        params: parameters, or groups of them.
        lr: of both parts.
        weight_decay: decoupled, of both parts.
        momentum: mu.
        betas: of AdamW's part.
        eps: of AdamW's part.
        orthogonal: default of the groups.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        orthogonal: bool = True,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(params, {**defaults, "orthogonal": orthogonal})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step along the gradients that lie in `.grad`; a parameter without one stays."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            (self._orthogonal if group["orthogonal"] else self._adamw)(parameters, group)
        return loss

    def _orthogonal(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        lr, mu = group["lr"], group["momentum"]
        for p in parameters:
            assert p.grad is not None
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["momentum_buffer"].lerp_(p.grad, 1 - mu)
            update = orthogonalized(p.grad.lerp(state["momentum_buffer"], mu).flatten(1))
            p.mul_(1 - lr * group["weight_decay"])
            p.add_(update.view(p.shape), alpha=-lr * 0.2 * math.sqrt(max(update.shape)))

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        for p in parameters:
            if not self.state[p]:
                self.state[p]["step"] = torch.tensor(0.0)
                for name in ("exp_avg", "exp_avg_sq"):
                    self.state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        first, second, steps = ([self.state[p][n] for p in parameters] for n in ("exp_avg", "exp_avg_sq", "step"))
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            first,
            second,
            [],
            steps,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalized(matrix: Tensor) -> Tensor:
    """About U V' of the singular value decomposition U S V' of a matrix; a zero matrix stays.

    Newton-Schulz: X <- a X + b (X X') X + c (X X')^2 X from X = M / ||M||, five times, on the smaller side.
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    x = x / x.norm().clamp(min=TINY)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)
