"""Perturbations of bounded size: scaled balls, the ascent within them, noise."""
