"""Quantization: weights and activations on integer grids, where that pays."""
