"""Where a run's numbers go: a JSON-lines file always, Weights & Biases where it can be had.

W&B is a guest here: offline where the user is not logged in, never a question on the
terminal, and whatever goes wrong in it is a warning, not the end of a run of weeks.
"""
import json
import netrc
import os
import warnings
from collections.abc import Callable
from pathlib import Path

from modules.errors import UserError
from modules.files import replacing

WANDB_TIMEOUT_S = 30


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The entries of a metrics file, oldest first; a last line that a power cut left unfinished is dropped.

    Raises UserError where another line is not JSON.
    """
    # A file is appended to line by line and never rewritten while training, so only its end can be unfinished.
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    entries = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            raise UserError(f"{path}: line {number} is not JSON; was the file edited?") from None
    return entries


class Metrics:
    """The log of one run, continued from step `step`: entries after it belong to steps that will be done again.

    run_folder: where W&B keeps its files. config: plain data, recorded by W&B.
    """

    def __init__(self, path: Path, step: int, project: str, run_name: str, run_folder: Path, config: dict):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [entry for entry in read_metrics(path) if entry["step"] <= step] if path.exists() and step else []
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        self._file = open(path, "a", encoding="utf-8")
        self._wandb_run = self._guarded(lambda: _start_wandb(project, run_name, run_folder, config))

    def write(self, entry: dict) -> None:
        """Append one entry: step, split, loss (nats/token), lr, tokens, tokens_per_s."""
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def publish(self, entry: dict, snippet: str | None = None) -> None:
        """Tell W&B of an entry, with a generated snippet."""
        values = {f"{entry['split']}/{key}": value for key, value in entry.items() if key not in ("step", "split")}
        if snippet is not None:
            values["snippet"] = snippet
        self._guarded(lambda: self._wandb_run.log(values, step=entry["step"]) if self._wandb_run else None)

    def close(self) -> None:
        """Flush and close; W&B gets its time to upload."""
        self._file.close()
        self._guarded(lambda: self._wandb_run.finish() if self._wandb_run else None)

    def _guarded(self, call: Callable):
        """`call()`; where W&B fails, a warning and no more W&B for this run."""
        try:
            return call()
        except Exception as error:
            self._wandb_run = None
            warnings.warn(f"Weights & Biases does not work ({str(error).splitlines()[0]}); the metrics are in {self.path}", stacklevel=3)
            return None


def _start_wandb(project: str, run_name: str, run_folder: Path, config: dict):
    mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
    if mode == "disabled":
        return None
    import wandb  # takes a second

    run_folder.mkdir(parents=True, exist_ok=True)
    start = dict(project=project, name=run_name, id=f"{project}-{run_name}"[:64], resume="allow", dir=run_folder, config=config)
    settings = dict(silent=True, console="off", init_timeout=WANDB_TIMEOUT_S, login_timeout=WANDB_TIMEOUT_S)
    try:
        return wandb.init(mode=mode, settings=wandb.Settings(**settings), **start)
    except Exception:
        if mode != "online":
            raise
        return wandb.init(mode="offline", settings=wandb.Settings(**settings), **start)  # no network today; can be synced later


def _logged_in() -> bool:
    """Whether W&B has a key for this user. Asked here because W&B itself would ask the user."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    for name in (".netrc", "_netrc"):
        try:
            if netrc.netrc(Path.home() / name).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
