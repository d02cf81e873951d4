"""Directions in the space of the weights."""
