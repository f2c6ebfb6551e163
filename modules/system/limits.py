"""Bounds of the numbers that a user gives, each with its reason."""

from modules.system.errors import UserError

WORKERS_A_CORE = 4  # more wait for each other's cores, with a cache of words each
SMALLEST_VOCAB = 257  # BOS and the 256 bytes
LARGEST_CHUNK = 1 << 30  # bytes; each thread holds two such pieces of text and their ids
MOST_BYTES = 1 << 63  # more than any file has


def check_number(name: str, value: int, least: int, most: int, reason: str) -> None:
    """UserError unless `value` is an integer from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        found = (
            value if not isinstance(value, int) or abs(value) < 1 << 64 else f"a number of {value.bit_length()} bits"
        )
        raise UserError(f"{name}: expected {least:,} to {most:,} ({reason}), found {found}")
