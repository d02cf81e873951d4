"""A differential test: draws at random, measured by landscape and by slow references that share no code with it."""
