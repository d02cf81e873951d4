"""Plain gradients: one forward and one backward pass, handed to the base optimizer.

Paper: none. Official implementation: torch.optim. Deviations: none.
"""

from __future__ import annotations

from dataclasses import dataclass

from landscape.registry import register
from trainers.method.method import Method, Pass, State, Step


@register("sgd", source="torch.optim.SGD", cost="1 forward + 1 backward", statistics="the only pass")
@dataclass(frozen=True)
class SGD(Method):
    """Stochastic gradient descent: w <- w - lr v, v = momentum v + g + weight_decay w.

    The gradient g of the batch, unchanged, for whichever base optimizer is chosen (SGD by default).

    """

    def compute(self, step: Step, state: State) -> Pass:
        """One pass at w."""
        return step.backward()
