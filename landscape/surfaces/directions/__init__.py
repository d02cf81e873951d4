"""Directions in the space of the weights."""

from landscape.surfaces.directions.directions import directions

__all__ = ["directions"]
