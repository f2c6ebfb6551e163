"""What the tests of this folder share."""

from tests.usage.states import made

__all__ = ["made"]
