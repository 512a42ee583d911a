"""Quantization side by side with peers: quality, latency, size, time and memory."""
