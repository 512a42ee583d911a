"""Passes that make weights zero, or take channels, heads and blocks out."""
