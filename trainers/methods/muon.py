"""Muon.

Paper: none; Jordan et al. 2024, kellerjordan.github.io/posts/muon, and Liu et al. 2025, arXiv 2502.16982, for the
scale of the step. Official implementation: KellerJordan/Muon, MoonshotAI/Moonlight. Deviations: the iterations run in
the weights' precision (there: bfloat16); all weights of two and more dimensions that belong to neither an embedding nor
the last layer are orthogonalized (there the user chooses); AdamW's betas for the others are 0.9 and 0.999.
"""

from __future__ import annotations

from dataclasses import dataclass

from landscape.registry import register
from trainers.methods.sgd import SGD


@register(
    "muon",
    source="momentum 0.95, 0.2 sqrt(max(rows, columns)): Liu 2025, arXiv 2502.16982 (Moonlight)",
    cost="1 forward + 1 backward",
    statistics="the only pass",
)
@dataclass(frozen=True)
class Muon(SGD):
    """Orthogonalized momentum for the matrices of hidden layers, AdamW for all else.

    After m <- 0.95 m + 0.05 g: w <- (1 - lr weight_decay) w - 0.2 sqrt(max(rows, columns)) lr O(0.95 m + 0.05 g), where
    O sets all singular values to about 1 (0.7 to 1.2). A convolution is the matrix of its filters. Learning rate and
    weight decay are AdamW's.
    """

    base = "muon"
