"""AdamW.

Paper: Loshchilov and Hutter 2017, arXiv 1711.05101. Official implementation: torch.optim.AdamW. Deviations: none.
"""

from __future__ import annotations

from dataclasses import dataclass

from landscape.registry import register
from trainers.methods.sgd import SGD


@register(
    "adamw", source="Loshchilov 2017, arXiv 1711.05101", cost="1 forward + 1 backward", statistics="the only pass"
)
@dataclass(frozen=True)
class AdamW(SGD):
    """Adam with decoupled weight decay: w <- w - lr (m' / (sqrt(v') + 1e-8) + weight_decay w).

    The betas are 0.9 and 0.999.
    """

    base = "adamw"
