"""Adam.

Paper: Kingma and Ba 2014, arXiv 1412.6980. Official implementation: torch.optim.Adam. Deviations: none (weight decay is
added to the gradient, as there).
"""

from __future__ import annotations

from dataclasses import dataclass

from landscape.registry import register
from trainers.methods.sgd import SGD


@register("adam", source="Kingma 2014, arXiv 1412.6980", cost="1 forward + 1 backward", statistics="the only pass")
@dataclass(frozen=True)
class Adam(SGD):
    """Adam on plain gradients: m and v are running means of g and g^2, w <- w - lr m' / (sqrt(v') + 1e-8).

    The betas are 0.9 and 0.999.
    """

    base = "adam"
