"""Base optimizers that torch does not have, or not for all parameters of a network."""
