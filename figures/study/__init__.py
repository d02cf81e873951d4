"""Studies: what figures need is run once; verdicts."""
