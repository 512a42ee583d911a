"""Choosing what to do to which layer, by measurement."""
