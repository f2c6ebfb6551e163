"""What a dry run says of times that no run lasts."""

import pytest

from modules.training.dry_run import duration


@pytest.mark.parametrize(
    "seconds, expected",
    [(0.2, "0:00:00"), (90_061, "1 day, 1:01:01"), (3.2e9, "101 years"), (1e15, "31,688,088 years")],
)
def test_durations(seconds, expected):
    assert duration(seconds) == expected
