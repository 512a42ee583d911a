"""The option that chooses how many models the conformance tests run on."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--conformance",
        choices=("default", "full"),
        default="default",
        help="full: every model twice over, with byte-identity and the fixed point checked on all of them",
    )
