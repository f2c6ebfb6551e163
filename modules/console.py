"""What the user is told: lines, bars and warnings, none of which can end the work that they tell of."""
import sys

from tqdm import tqdm


def tell(line: str, stream=None) -> None:
    """Say a line on `stream` (standard output by default), above a bar if there is one."""
    tqdm.write(line, file=stream or sys.stdout)


def bar(*args, **kwargs) -> tqdm:
    """A progress bar, with tqdm's arguments."""
    return tqdm(*args, **kwargs)


def attempt(what: str, call):
    """`call()`, or None where it fails."""
    try:
        return call()
    except Exception as error:
        tell(f"warning: {what}: {error}", sys.stderr)
        return None
