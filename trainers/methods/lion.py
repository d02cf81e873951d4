"""Lion.

Paper: Chen et al. 2023, arXiv 2302.06675. Official implementation: google/automl (lion). Deviations: none.
"""

from __future__ import annotations

from dataclasses import dataclass

from landscape.registry import register
from trainers.methods.sgd import SGD


@register("lion", source="Chen 2023, arXiv 2302.06675", cost="1 forward + 1 backward", statistics="the only pass")
@dataclass(frozen=True)
class Lion(SGD):
    """Signs of the momentum: w <- (1 - lr weight_decay) w - lr sign(0.9 m + 0.1 g), then m <- 0.99 m + 0.01 g.

    The learning rate is the distance that every entry moves: a tenth of AdamW's by default.
    """

    base = "lion"
