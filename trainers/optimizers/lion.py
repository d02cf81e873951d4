"""Lion: descend along the sign of an interpolated momentum.

Paper: Chen et al. 2023, arXiv 2302.06675, algorithm 2. Official implementation: google/automl (lion).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """One step: u = sign(beta1 m + (1 - beta1) g), w <- (1 - lr weight_decay) w - lr u, m <- beta2 m + (1 - beta2) g.

    Every entry moves by lr, whatever the size of its gradient: a learning rate 3 to 10 times below AdamW's, and a
    weight decay as many times above, are the authors' advice. Memory of one gradient (Adam: two).

    Args:
        params: parameters, or groups of them.
        lr: length of an entry's step.
        betas: of the interpolation and of the momentum.
        weight_decay: decoupled, as AdamW's.
    """

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step along the gradients that lie in `.grad`; a parameter without one stays."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._move(parameters, group)
        return loss

    def _move(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        gradients = [p.grad for p in parameters]
        for p in parameters:
            if not self.state[p]:
                self.state[p]["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        momenta = [self.state[p]["exp_avg"] for p in parameters]
        update = torch._foreach_lerp(gradients, momenta, beta1)  # type: ignore[arg-type]
        torch._foreach_sign_(update)
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_add_(parameters, update, alpha=-lr)
        torch._foreach_lerp_(momenta, gradients, 1 - beta2)  # type: ignore[arg-type]
