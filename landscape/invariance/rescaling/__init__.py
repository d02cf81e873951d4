"""Positive-scaling symmetries of a network: found from the model itself, verified, sampled and applied.

Multiply what enters a hidden unit, its bias too, by tau > 0 and divide what leaves it by tau: behind a positively
homogeneous function (ReLU, LeakyReLU, PReLU, pooling, dropout in evaluation mode, none at all) the network computes
the same. Such rescalings form a group; sharpness that is to say something about the function may not depend on it.
Through a head of attention whole matrices pass unseen: queries against keys, values against the output projection.

>>> symmetries = landscape.invariance.rescaling.find(model, example_input)
>>> print(symmetries)
>>> tau = symmetries.sample(landscape.random.stream(0, "tau"), 0.5, 1.5)
>>> moved = symmetries.apply(problem.weights, tau)
"""

from landscape.invariance.rescaling.heads import Head, Part
from landscape.invariance.rescaling.search import find
from landscape.invariance.rescaling.symmetries import Block, Rescaled, Symmetries, Touch, Unit

__all__ = ["Block", "Head", "Part", "Rescaled", "Symmetries", "Touch", "Unit", "find"]
