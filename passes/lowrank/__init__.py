"""Passes that write one layer as several thin ones."""
