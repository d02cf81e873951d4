"""Small networks of every kind, with the examples that they take. One function a kind; its name is the kind's."""

from audit.networks import images, linear, losses, sequences, shapes
from audit.networks.network import Network

KINDS = {**linear.KINDS, **images.KINDS, **sequences.KINDS, **shapes.KINDS, **losses.KINDS}

__all__ = ["KINDS", "Network"]
