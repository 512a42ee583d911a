"""The cleanup recipe (exact simplification) beside its peers: ``python -m benchmarks.cleanup``."""
