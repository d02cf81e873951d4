"""Grids of points and their evaluation."""
