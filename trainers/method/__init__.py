"""The seam between methods and the loop."""
