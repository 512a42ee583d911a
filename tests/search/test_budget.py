"""What holds a budget."""

from __future__ import annotations

from onnxopt.search.budget import NO_SLOWER, Budget
from onnxopt.search.metric import Loss


def test_a_loss_of_just_what_is_allowed_holds() -> None:
    """Differences of shares are not exact in floating point: 692/700 − 685/700 > 0.01."""
    high = 692 / 700 - 685 / 700
    assert high > 0.01
    assert Budget(0.01).is_held(Loss(692 / 700, 688 / 700, 0.0, high, 700))
    assert not Budget(0.01).is_held(Loss(692 / 700, 688 / 700, 0.0, 8 / 700, 700))


def test_what_is_to_be_small_may_not_be_slow() -> None:
    assert Budget(0.01).limits == {}
    assert Budget(0.01, "size").limits == {"latency": NO_SLOWER}
    assert Budget(0.01, "size", max_latency=2.0).limits == {"latency": 2.0}
    assert Budget(0.01, "latency", max_size=0.5).limits == {"size": 0.5}
