"""Text as data: docstrings of installed packages, near-duplicates, tokens."""
