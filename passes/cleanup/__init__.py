"""Exact passes: the graph gets smaller, the outputs stay."""
