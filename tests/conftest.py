"""What holds for all tests: they draw the same examples in each run, and cache in a directory of the run.

``pytest --hypothesis-profile default`` draws new examples.
"""

import copy
from typing import Any

import hypothesis
import numpy as np
import pytest

hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")


_STATES: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _same_draws(request: pytest.FixtureRequest) -> None:
    """Each test draws the same of its module's ``RNG``, whichever tests run before it in the same process."""
    rng = getattr(request.module, "RNG", None)
    if isinstance(rng, np.random.Generator):
        rng.bit_generator.state = copy.deepcopy(_STATES.setdefault(request.module.__name__, rng.bit_generator.state))


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
