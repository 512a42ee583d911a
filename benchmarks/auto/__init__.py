"""The search beside each method alone, its promises, its allocation and its predictions."""
