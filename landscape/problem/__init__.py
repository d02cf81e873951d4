"""The function L(w): a model, an objective, fixed batches."""
