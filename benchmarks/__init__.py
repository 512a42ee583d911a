"""Side-by-side measurements against peers; no part of the product and none of its tests."""
