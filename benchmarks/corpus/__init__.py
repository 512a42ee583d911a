"""Where the benchmark models come from."""
