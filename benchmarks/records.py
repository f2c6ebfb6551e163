"""What a benchmark printed, kept with where it came from, and RESULTS.md made from that.

    python -m benchmarks.records    writes the records that RESULTS.md names into it

A benchmark prints within `recording(name)`, which leaves `records/<date>-<commit>-<name>.json`: the command, the
machine, the versions, and the lines that it printed. RESULTS.md names a record between two marks,

    <!-- record 2026-11-25-0123abc-data -->
    <!-- end -->

and what stands between them is the record's.
"""

import contextlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from modules.system.errors import UserError, one_line_errors
from modules.system.files import replacing
from modules.system.processes import available_cores

HERE = Path(__file__).parent
RECORDS = HERE / "records"
RESULTS = HERE / "RESULTS.md"
MARKED = re.compile(r"(<!-- record ([\w.+-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
PACKAGES = ("torch", "numpy", "tokenizers", "gigatoken", "gigabpe", "transformers")


@contextlib.contextmanager
def recording(name: str, folder: Path = RECORDS) -> Iterator[None]:
    """Keep what is printed within, once all of it is: `<folder>/<date>-<commit>-<name>.json`."""
    printed = _Both(sys.stdout)
    began = time.time()
    with contextlib.redirect_stdout(printed):
        yield
    record = {
        "name": name,
        "command": " ".join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "began": time.strftime("%Y-%m-%d %H:%M", time.gmtime(began)),
        "seconds": round(time.time() - began, 1),
        "commit": commit(),
        "machine": machine(),
        "printed": printed.getvalue(),
    }
    path = folder / f"{time.strftime('%Y-%m-%d', time.gmtime(began))}-{record['commit']}-{name}.json"
    folder.mkdir(exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"record: {path}", file=sys.stderr)


class _Both(io.StringIO):
    """Keeps what is written, and writes it to `stream` too."""

    def __init__(self, stream):
        super().__init__()
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(text)
        self._stream.flush()
        return super().write(text)


def commit() -> str:
    """The commit that is checked out, with "+" where files differ from it; "unknown" outside of git."""
    git = ["git", "-C", str(HERE)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout else "")


def machine() -> dict[str, str | float]:
    """Processor, GPU, cores, load and the versions of what the figures depend on."""
    import torch

    found: dict[str, str | float] = {"processor": processor(), "cores": available_cores()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(ModuleNotFoundError):
            versions[package] = version(package)
    if hasattr(os, "getloadavg"):  # not on Windows
        found["load"] = round(os.getloadavg()[0], 1)
    return found | {"python": platform.python_version(), **versions}


def processor(told: Path = Path("/proc/cpuinfo")) -> str:
    """Its name as Linux has it; what kind it is where Linux has none, as on ARM."""
    with contextlib.suppress(OSError):
        if name := re.search(r"model name\s*: (.*)", told.read_text()):
            return name[1]
    return platform.processor() or platform.machine()


def filled(page: str, folder: Path = RECORDS) -> str:
    """The page, with what the records that it names printed. UserError where one is not there."""

    def printed(match: re.Match) -> str:
        path = folder / f"{match[2]}.json"
        if not path.exists():
            raise UserError(f"{RESULTS.name} names the record {match[2]}, expected {path}")
        return match[1] + json.loads(path.read_text(encoding="utf-8"))["printed"].strip("\n") + "\n" + match[3]

    return MARKED.sub(printed, page)


@one_line_errors
def main() -> None:
    page = filled(RESULTS.read_text(encoding="utf-8"))
    with replacing(RESULTS) as temporary:
        temporary.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
