"""Distillation: what it wins back, beside passes that do without it and beside training on labels."""
