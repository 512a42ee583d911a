"""Figures in words, the same on a terminal and in a report."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """``1 node``, ``2,000 nodes``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(number: int | None) -> str:
    """Bytes in decimal units."""
    if number is None:
        return "unknown"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.2f} {unit}"
    return f"{number} B"


def decibels(value: float | None) -> str:
    """An SQNR; nothing where there is none."""
    return "" if value is None else f"{value:.1f} dB"
