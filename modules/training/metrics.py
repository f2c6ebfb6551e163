"""Where a run's numbers go: a JSON-lines file always, Weights & Biases where it can be had.

W&B is a guest here: offline where the user is not logged in or there is no network, never a question on the terminal,
never waited for while training (it lives in a thread of its own), and whatever goes wrong in it is a warning, not the
end of a run of weeks.
"""

import contextlib
import hashlib
import json
import os
import queue
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from modules.system import console
from modules.system.errors import UserError
from modules.system.files import replacing
from modules.system.schema import Schema, checked

# How long W&B may try to reach its server before a run is recorded offline, and to upload what is left.
WANDB_START_S, WANDB_END_S = 30, 30
LAST_BYTES = 1 << 16  # of a file, in which its last entry is; each is some hundred bytes
WANDB_ID_LENGTH, WANDB_PROJECT_LENGTH = 64, 128  # the most that it takes
WANDB_REFUSES = re.compile(r"""[:;,#?/\\%'"\x00-\x1f\x7f\ud800-\udfff]""")  # in ids and names of projects


# The file
# ---------------------------------------------------------------------------------------------------------------


class Entry(Schema):
    """A line of a metrics file."""

    step: int = Field(ge=0, lt=2**63)
    split: Literal["train", "valid"]
    loss: float  # nats per token
    lr: float
    tokens: int = Field(ge=0, lt=2**63)
    tokens_per_s: float
    losses: dict[str, float] | None = None  # in each order of a model of several, of which `loss` is the mean


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The entries of a metrics file, oldest first; a last line that a power cut left unfinished is dropped.

    Damaged lines are left out, with a warning that names the first.
    """
    entries, problems = _entries(Path(path))
    if problems:
        more = f", and {len(problems) - 1:,} lines more" if len(problems) > 1 else ""
        console.warn_once(f"{problems[0]}{more}: left out", key=f"damaged {path}")
    return entries


def _entries(path: Path) -> tuple[list[dict], list[str]]:
    """The entries of a metrics file, and a description of each line that cannot be read."""
    entries, problems = [], []
    # A file is appended to line by line and never rewritten while training, so only its end can be unfinished.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        where = f"{path}: line {number}"
        try:
            entry = json.loads(line.decode("utf-8"))
            checked(Entry, entry, where)
            entries.append(entry)
        except UserError as error:
            problems.append(str(error))
        except (ValueError, RecursionError):
            problems.append(f"{where} is not JSON")
    return entries, problems


def newest_entry(path: Path) -> dict | None:
    """The last entry of a metrics file that is being written; None where there is none yet."""
    with contextlib.suppress(OSError, ValueError, IndexError, UserError):
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            entry = json.loads(file.read().split(b"\n")[-2])
        checked(Entry, entry, str(path))
        return entry
    return None


class Metrics:
    """The log of one run, continued from step `step`: entries after it belong to steps that will be done again.

    A file with damaged lines is kept beside as `<run>.jsonl.damaged` before it is written anew without them.
    run_folder: where W&B keeps its files. config: plain data, recorded by W&B.

    Raises OSError, with the path, where the file cannot be written.
    """

    def __init__(self, path: Path, step: int, project: str, run_name: str, run_folder: Path, config: dict):
        self.path = path
        entries, problems = _entries(path) if path.exists() else ([], [])
        if problems:
            console.warn_once(
                f"{problems[0]}: {len(problems):,} such line(s) left out; the file as it was is {_keep_aside(path)}"
            )
        with replacing(path) as temporary:
            temporary.write_text(
                "".join(json.dumps(entry) + "\n" for entry in entries if step and entry["step"] <= step),
                encoding="utf-8",
            )
        self._file = open(path, "ab", buffering=0)
        self._wandb = None
        if os.environ.get("WANDB_MODE") != "disabled":
            what = f"Weights & Biases does not work (the metrics are in {path})"
            self._wandb = console.attempt(
                what, lambda: _Wandb(what, lambda: _start_wandb(project, run_name, run_folder, config))
            )

    def write(self, entry: dict) -> None:
        """Append one entry, a whole line or nothing: step, split, loss (nats/token), lr, tokens, tokens_per_s."""
        line = f"{json.dumps(entry)}\n".encode()
        end = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(end)
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def publish(self, entry: dict, snippet: str | None = None) -> None:
        """Give an entry, with the text generated after it, to W&B. Neither fails nor waits."""
        values = {f"{entry['split']}/{key}": value for key, value in entry.items() if key not in ("step", "split")}
        for order, loss in values.pop(f"{entry['split']}/losses", {}).items():
            values[f"{entry['split']}/loss {order}"] = loss
        if self._wandb:
            self._wandb.log(values | ({} if snippet is None else {"snippet": snippet}), entry["step"])

    def close(self) -> None:
        """Close the file; W&B gets its time to upload."""
        self._file.close()
        if self._wandb:
            self._wandb.close()


def _keep_aside(path: Path) -> Path:
    """Copy a file to a name beside it that is free."""
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while aside.exists():
        number, aside = number + 1, path.with_name(f"{path.name}.damaged{number + 1}")
    with replacing(aside) as temporary:
        temporary.write_bytes(path.read_bytes())
    return aside


# Weights & Biases
# -------------------------------------------------------------------------------------------------------


class _Wandb:
    """W&B in a thread of its own: starting it can take half a minute without a network, and its process can hang."""

    def __init__(self, what: str, start: Callable):
        self._what, self._queue = what, queue.SimpleQueue()
        self._thread = threading.Thread(
            target=lambda: console.attempt(what, lambda: self._serve(start)), name="W&B", daemon=True
        )
        self._thread.start()

    def _serve(self, start: Callable) -> None:
        if (run := start()) is None:
            return
        while (logged := self._queue.get()) is not None:
            values, step = logged
            run.log(values, step=step)
        run.finish()
        _end_wandb()

    def log(self, values: dict, step: int) -> None:
        self._queue.put((values, step))

    def close(self) -> None:
        """Let W&B finish, in bounded time."""
        self._queue.put(None)
        self._thread.join(WANDB_START_S + WANDB_END_S)
        if self._thread.is_alive():
            console.warn_once(f"{self._what}: no answer for {WANDB_START_S + WANDB_END_S} s", key=self._what)
            console.attempt(self._what, _kill_wandb)


def _start_wandb(project: str, run_name: str, run_folder: Path, config: dict):
    """The W&B run, online, or offline where the user is not logged in or the server cannot be reached; None where the
    user disabled W&B."""
    os.environ.setdefault(
        "WANDB_ERROR_REPORTING", "false"
    )  # what W&B tells its makers can hold up the end of a process for half a minute
    import wandb  # takes a second

    mode: Any = wandb.setup(settings=wandb.Settings(silent=True)).settings.mode
    if mode == "disabled":
        return None
    if mode == "online" and not console.attempt(
        "the login of Weights & Biases", lambda: wandb.login(prompt=False, verify=False)
    ):
        mode = "offline"
    run_folder.mkdir(parents=True, exist_ok=True)

    def init(mode: Literal["online", "offline", "shared"]):
        return wandb.init(
            mode=mode,
            project=accepted(project, WANDB_PROJECT_LENGTH),
            name=console.one_line(run_name),
            id=accepted(f"{project}-{run_name}", WANDB_ID_LENGTH),
            resume="allow",
            dir=run_folder,
            config=config,
            settings=wandb.Settings(silent=True, console="off", init_timeout=WANDB_START_S, finish_timeout=WANDB_END_S),
        )

    try:
        return init(mode)
    except Exception as error:
        if mode == "offline":
            raise
        console.warn_once(
            f"Weights & Biases cannot be reached ({console.reason(error)}); this run is recorded offline: "
            f"wandb sync {run_folder}/wandb/offline-*"
        )
        _end_wandb()  # which still holds the run's id
        return init("offline")


def _end_wandb() -> None:
    """End W&B's process, and wait for it."""
    import wandb

    with contextlib.suppress(SystemExit):  # which W&B raises where its process ended otherwise than well
        wandb.teardown()


def _kill_wandb() -> None:
    """End W&B's process where it does not answer: Python would wait for it at its end. There is no public way to."""
    from wandb.sdk import wandb_setup

    wandb_setup.singleton()._connection._proc._process.kill()  # pyrefly: ignore
    _end_wandb()


def accepted(name: str, length: int) -> str:
    """`name` itself where W&B takes it, else one that it takes and that no other name gives."""
    plain = WANDB_REFUSES.sub("-", name)
    if plain == name.strip() and len(name.encode()) <= length:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{plain.encode()[: length - 17].decode(errors='ignore').strip()}-{digest}"
