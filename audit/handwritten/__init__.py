"""Training written out by hand: small networks, base optimizers and every method by its formula, in float64."""
