"""Symmetries of a network, and which measures they leave as they are."""
