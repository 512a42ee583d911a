"""Training: gradients and what they cost."""
