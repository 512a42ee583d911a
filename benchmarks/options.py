"""Options that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection


def names(what: str, known: Collection[str]) -> Callable[[str], list[str]]:
    """How argparse reads comma-separated names of which all must be ``known``; ``what`` is what one is called."""

    def read(text: str) -> list[str]:
        given = text.split(",")
        if unknown := set(given) - set(known):
            raise argparse.ArgumentTypeError(
                f"no {what} is called {', '.join(sorted(unknown))}; there are {', '.join(known)}"
            )
        return given

    return read
