"""Structured pruning beside Torch-Pruning: which slices go together, how many are left, what it costs and gains."""
