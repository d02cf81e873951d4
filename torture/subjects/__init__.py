"""A file a subject: `choose(seed)` draws a case as plain data, `play(choice, workshop)` does and judges it."""
