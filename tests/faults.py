"""Faults on purpose: processes killed, signalled or refused at a chosen moment of what they do to files.

Every change that a process makes to files below one folder passes a `Watch`: each creation, each write that reaches the
system, fsync, rename, removal, each record that torch writes. A *moment* is one of them, named by what it does to which
file for which time: a trial can be repeated alone although threads take turns as they like. Writes are struck when half
of their bytes are out.

Trials run in processes that multiprocessing's fork server forks from one that has imported everything: tens of
milliseconds each.
"""

import builtins
import contextlib
import errno
import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from tqdm import tqdm

from tests.toy import ROOT

PRELOADED = [
    "h5py",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "modules.plots",
    "modules.measurement.measure",
    "modules.training.run",
    "modules.tok_utils",
    "tests.faults",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.utils.serialization",
    "PIL.PngImagePlugin",
]
LASTING = (errno.ENOSPC, errno.EDQUOT)  # a full disk stays full
TRIAL_S = 120
TEXT_BYTES = 600_000


class Moment(NamedTuple):
    """The `number`-th time (from 1) that `action` happens to `where`, a path below the watched folder."""

    action: str
    where: str
    number: int

    def __str__(self) -> str:
        return f"{self.action} no. {self.number} of {self.where}"


class Killed(NamedTuple):
    """The process ends, as by a power cut, at the moment; with `signal_number` other than SIGKILL it is only sent
    that."""

    moment: Moment | int
    signal_number: int = signal.SIGKILL

    def __str__(self) -> str:
        moment = self.moment if isinstance(self.moment, Moment) else f"event {self.moment}"
        return f"{signal.Signals(self.signal_number).name} at {moment}"


class Failing(NamedTuple):
    """The operation of the moment fails with `number`, an errno; a full disk fails from then on."""

    moment: Moment
    number: int

    def __str__(self) -> str:
        return f"{errno.errorcode[self.number]} at {self.moment}"


class Watch:
    """Counts what this process does to the files below `folder`, and lets `fault` happen at its moment."""

    def __init__(self, folder: Path, fault: Killed | Failing | None = None):
        self.folder, self.fault = str(folder.resolve()), fault
        self.events: list[Moment] = []
        self._counts, self._lock, self._full = Counter(), threading.Lock(), False

    def where(self, path) -> str | None:
        """The watched path that a path or descriptor means, without what is random in names of temporary files; None
        outside the folder."""
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return None
            if not path.startswith("/"):  # a pipe or a socket
                return None
        path = os.path.abspath(os.fsdecode(path))
        if not path.startswith(self.folder + os.sep):
            return None
        return re.sub(r"\.([0-9a-f]{12,}|\d+)(?=\.)", "", os.path.relpath(path, self.folder))

    def happens(
        self,
        action: str,
        path,
        half: Callable[[], object] = lambda: None,
        error: Callable[[int], Exception] | None = None,
    ) -> None:
        """Count the event; at the fault's moment do `half` of it and strike. `error` makes the exception of an
        errno."""
        where = self.where(path)
        if where is None:
            return
        with self._lock:
            self._counts[action, where] += 1
            moment = Moment(action, where, self._counts[action, where])
            self.events.append(moment)
            number = len(self.events)
        writes = action in ("write", "record", "copy")
        if self.fault is None:
            return
        if isinstance(self.fault, Killed):
            if self.fault.moment in (moment, number):
                if self.fault.signal_number == signal.SIGKILL:
                    half()
                os.kill(os.getpid(), self.fault.signal_number)
        elif moment == self.fault.moment or (self._full and (writes or action == "fsync")):
            if writes and not self._full:
                half()
            self._full = self.fault.number in LASTING
            raise error(self.fault.number) if error else OSError(self.fault.number, os.strerror(self.fault.number))

    @contextlib.contextmanager
    def watching(self) -> Iterator["Watch"]:
        """Everything passes this watch inside the block."""
        import h5py
        import torch

        watch, real_open = self, io.open

        class File(io.FileIO):
            def write(self, data):
                watch.happens(
                    "write",
                    self.fileno(),
                    lambda: super(File, self).write(memoryview(data).cast("B")[: len(data) // 2]),
                )
                return super().write(data)

        class Writer(torch._C.PyTorchFileWriter):
            def __init__(self, target, *args, **kwargs):
                super().__init__(target, *args, **kwargs)
                self._target = (
                    target if isinstance(target, (str, os.PathLike)) else os.devnull
                )  # a file object counts its own writes

            def write_record(self, name, *args, **kwargs):
                watch.happens(
                    "record",
                    self._target,
                    error=lambda _: RuntimeError(
                        "[enforce fail at inline_container.cc:837] . PytorchStreamWriter failed writing file "
                        f"{name}: file write failed"
                    ),
                )
                return super().write_record(name, *args, **kwargs)

            def write_end_of_file(self):
                watch.happens(
                    "record",
                    self._target,
                    error=lambda _: RuntimeError(
                        "[enforce fail at inline_container.cc:743] . PytorchStreamWriter failed writing central "
                        "directory: file write failed"
                    ),
                )
                return super().write_end_of_file()

        def open_watched(
            file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None
        ):
            if not set(mode) & set("wax+") or watch.where(file) is None:
                return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
            if not isinstance(file, int):
                watch.happens("open", file, error=named(file))
            raw = File(file, "".join(set(mode) & set("rwax+")), closefd, opener)
            buffered = raw if buffering == 0 else (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            if "b" in mode:
                return buffered
            text = io.TextIOWrapper(
                buffered, io.text_encoding(encoding), errors, newline, line_buffering=buffering == 1
            )
            text.mode = mode
            return text

        def named(*paths):
            second = (None, os.fspath(paths[1])) if len(paths) > 1 else ()
            return lambda number: OSError(number, os.strerror(number), os.fspath(paths[0]), *second)

        def before(action, real, of=0, with_names=1):
            """`real`, counted as `action` on its argument number `of`."""

            def watched(*args, **kwargs):
                watch.happens(action, args[of], error=named(*args[:with_names]) if with_names else None)
                return real(*args, **kwargs)

            return watched

        def open_descriptor(path, flags, *args, **kwargs):
            if flags & (os.O_WRONLY | os.O_RDWR):
                watch.happens("open", path, error=named(path))
            return real_os["open"](path, flags, *args, **kwargs)

        def write_descriptor(descriptor, data):
            watch.happens(
                "write", descriptor, lambda: real_os["write"](descriptor, memoryview(data).cast("B")[: len(data) // 2])
            )
            return real_os["write"](descriptor, data)

        def create_h5(name, *args, **kwargs):
            watch.happens(
                "hdf5",
                name,
                error=lambda number: OSError(number, "Unable to synchronously create file (unable to open file)"),
            )
            return real_h5(name, *args, **kwargs)

        watched_os = {
            "open": open_descriptor,
            "write": write_descriptor,
            "fsync": before("fsync", os.fsync, with_names=0),
            "replace": before("rename", os.replace, of=1, with_names=2),
            "rename": before("rename", os.rename, of=1, with_names=2),
            "unlink": before("unlink", os.unlink),
            "remove": before("unlink", os.remove),
            "mkdir": before("mkdir", os.mkdir),
            "rmdir": before("rmdir", os.rmdir),
            "sendfile": before("copy", os.sendfile, with_names=0),
            "truncate": before("truncate", os.truncate),
        }
        real_os = {name: getattr(os, name) for name in watched_os}
        real_h5, real_writer = h5py.h5f.create, torch._C.PyTorchFileWriter
        try:
            for name, function in watched_os.items():
                setattr(os, name, function)
            io.open = builtins.open = open_watched
            torch._C.PyTorchFileWriter, h5py.h5f.create = Writer, create_h5
            yield self
        finally:
            for name, function in real_os.items():
                setattr(os, name, function)
            io.open = builtins.open = real_open
            torch._C.PyTorchFileWriter, h5py.h5f.create = real_writer, real_h5


class Ended(NamedTuple):
    """How a trial's process ended: exit status or minus the signal; "ok" with what its work returned, "refused" with
    one line, "fault" with what else it raised, None where it was killed; the events of its files, and what it
    printed."""

    status: int
    how: str | None
    value: Any
    events: list[Moment]
    output: str


def in_process(
    folder: Path,
    work: Callable,
    *args,
    fault: Killed | Failing | None = None,
    kill_after_s: float | None = None,
    environment: dict[str, str] | None = None,
) -> Ended:
    """`work(*args)` in a process of its own whose working folder is `folder` and whose files there are watched."""
    return started(folder, work, *args, fault=fault, environment=environment)(kill_after_s)


def started(
    folder: Path,
    work: Callable,
    *args,
    fault: Killed | Failing | None = None,
    environment: dict[str, str] | None = None,
) -> Callable[..., Ended]:
    """As `in_process`, at once; the returned function waits for the end (and kills after so many seconds)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_trial, args=(theirs, folder, work, args, fault, environment or {}))
    process.start()
    theirs.close()
    told = []

    def listen():
        with contextlib.suppress(EOFError, OSError):
            told.append(ours.recv())

    listener = threading.Thread(target=listen)
    listener.start()

    def ended(kill_after_s: float | None = None) -> Ended:
        process.join(TRIAL_S if kill_after_s is None else kill_after_s)
        hung = process.is_alive() and kill_after_s is None
        if process.is_alive():
            process.kill()
            process.join()
        listener.join(5)
        ours.close()
        output = _output_of(folder).read_text(errors="replace") if _output_of(folder).exists() else ""
        if hung:
            return Ended(process.exitcode, "fault", f"did not end within {TRIAL_S} s", [], output)
        return Ended(process.exitcode, *(told[0] if told else (None, None, [])), output)

    ended.pid = process.pid
    return ended


def _output_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.output")


def _trial(connection, folder: Path, work: Callable, args: tuple, fault, environment: dict[str, str]) -> None:
    output = os.open(_output_of(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (
        open(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2)
    )  # the server has none to share
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed process leaves behind
    os.environ.update(environment)
    os.chdir(folder)
    watch = Watch(folder, fault)
    with watch.watching():
        how, value = outcome(work, *args)
    connection.send((how, value, watch.events))
    connection.close()
    os._exit(0)


def outcome(work: Callable, *args) -> tuple[str, Any]:
    """("ok", what `work(*args)` returns), ("refused", the one line that a user gets), or ("fault", what else was
    raised, and where)."""
    from modules.system.errors import UserError, describe_os_error

    try:
        return "ok", work(*args)
    except UserError as error:
        line = str(error)
    except OSError as error:
        line = describe_os_error(error)
        if not error.filename:
            return "fault", f"an OSError that names no file: {in_short(error)}"
    except BaseException as error:  # SystemExit and torch's CheckpointException among them
        return "fault", in_short(error)
    return ("refused", line) if line and "\n" not in line else ("fault", f"not one line: {line!r}")


def in_short(error: BaseException) -> str:
    """Kind and message of an exception, and the places in this project that it came through."""
    places = [
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if f"{ROOT}{os.sep}" in frame.filename
        and "site-packages" not in frame.filename
        and Path(frame.filename) != Path(__file__)
    ]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({' > '.join(places)})"


# What is there afterwards
# --------------------------------------------------------------------------------------------------


def contents(folder: Path, but: tuple[str, ...] = (".lock",)) -> dict[str, str]:
    """A digest of each file below `folder`, by relative path, of what must be the same from run to run: times and
    speeds are left out."""
    return {
        str(path.relative_to(folder)): digest_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in but
    }


def digest_of(path: Path) -> str:
    """A digest of a file's content; "damaged: ..." for a state or a metrics file that cannot be read."""
    from modules.system.errors import UserError
    from modules.training.checkpoint import load_state
    from modules.training.metrics import read_metrics

    try:
        if path.suffix == ".state":
            return digest({key: value for key, value in load_state(path).items() if key != "saved_at"})
        if path.suffix == ".jsonl":
            return digest(
                [{key: value for key, value in entry.items() if key != "tokens_per_s"} for entry in read_metrics(path)]
            )
    except UserError as error:
        return f"damaged: {error}"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def digest(value) -> str:
    """A digest of tensors, arrays and plain values, to the bit."""
    hashed = hashlib.sha256()

    def add(value):
        import numpy as np
        import torch

        if isinstance(value, torch.Tensor):
            add(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy() if value.numel() else np.zeros(0))
            hashed.update(f"{value.dtype} {tuple(value.shape)}".encode())
        elif isinstance(value, np.ndarray):
            hashed.update(f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=repr):
                hashed.update(repr(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            hashed.update(f"[{len(value)}".encode())
            for entry in value:
                add(entry)
        else:
            hashed.update(repr(value).encode())

    add(value)
    return hashed.hexdigest()[:16]


def difference(found: dict, expected: dict) -> str:
    """What one listing has that another has not, in words; empty where they are equal."""

    def what(name: str) -> str:
        return (
            "missing"
            if name not in found
            else "there, and should not be"
            if name not in expected
            else f"other content ({found[name]})"
        )

    return "; ".join(
        f"{name}: {what(name)}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    )


# Trainings, as a trial's work
# ----------------------------------------------------------------------------------------------

TINY = dict(figsize=(0.1, 0.1))  # inches: a real picture takes half a second


def train(name: str = "toy", cooldown: int | None = None, pictures: bool = False) -> int:
    """Train the config `<name>.json` of the working folder; the exit status. Pictures are empty, in the curve's colour,
    unless asked."""
    import torch
    from matplotlib.figure import Figure

    from modules import plots
    from modules.config import load_config
    from modules.training.parallel import Processes, joined
    from modules.training.run import Request, run

    torch.set_num_threads(1)

    def empty(name, direction, entries, *_):
        return Figure(
            **TINY, facecolor=f"#{digest([(entry['step'], entry['split'], entry['loss']) for entry in entries])[:6]}"
        )

    request, config = Request("tests", cooldown=cooldown), load_config(f"{name}.json").with_model("gpt")
    with patch.object(plots, "run_curve", plots.run_curve if pictures else empty):
        if "RANK" in os.environ:
            with joined("cpu") as processes:
                return run(config, request, processes)
        return run(config, request, Processes(0, 1, torch.device("cpu")))


def tokenize() -> None:
    """All of tokenize_to_h5.py for `text.txt` in the working folder."""
    from modules.tok_utils import create_tokenizer, make_h5, tokenize_folder
    from modules.tokenizer import get_tokenizer

    folder = create_tokenizer("text.txt", "tokenizers", "toki", vocab_size=400)
    chunks = tokenize_folder("text.txt", folder, num_workers=1, chunk_bytes=TEXT_BYTES // 30, out_h5_folder="out")
    make_h5(chunks, "out", get_tokenizer(folder))


def measure(name: str) -> str:
    """Measure `<name>_forward` and `<name>_backward` of the working folder, into `report/`; pictures are empty, in
    colours."""
    from dataclasses import asdict

    import torch
    from matplotlib.figure import Figure

    from modules.measurement import measure, report

    torch.set_num_threads(1)

    def empty(comparisons):
        names = [f"{comparisons[0].name}-loss", "arrow-by-checkpoint", "arrow-by-tokens-seen"]
        colour = f"#{digest(list(map(asdict, comparisons)))[:6]}"
        return {each: Figure(**TINY, facecolor=colour) for each in names}

    states = [Path("runs/tests/state") / f"{name}_{direction}.state" for direction in ("forward", "backward")]
    wish = measure.Wish(Path("report"), command="the command", save_losses=True)
    with patch.object(report, "draw_all", empty):
        return measure.report_on(measure.measured_states(states, torch.device("cpu"), wish), wish)


def write_toy(folder: Path, name: str = "toy", **changes) -> Path:
    """A folder with data and the config of a run of seconds, whose paths are relative: equal runs in two folders have
    equal states."""
    from tests.toy import config_dict, write_tokens

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "toy.h5").exists():
        write_tokens(folder / "toy.h5", n_tokens=6_000)
    small = dict(
        training_params__steps_to_train=20,
        training_params__save_every=5,
        training_params__backup_every=10,
        training_params__step_log=4,
        training_params__batch_size=8,
        optim_params__oscil_steps=15,
        model_params__n_layers=1,
    )
    config = config_dict(folder, **small | changes)
    config["training_params"] |= {"dataset_folder": "toy.h5", "state_save_loc": "runs"}
    (folder / f"{name}.json").write_text(json.dumps(config))
    return folder


def copied(source: Path, folder: Path) -> Path:
    """A copy of a folder, where nothing of an earlier trial is left."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, symlinks=True)
    return folder


class Trials:
    """Trials of one kind: counts them, collects what went wrong, and tells both."""

    def __init__(self, kind: str):
        self.kind, self.counts, self.faults = kind, Counter(), []

    def count(self, outcome: str, description: object = "", problem: str = "") -> None:
        """One more trial that ended as `outcome`; with a `problem`, a fault, told with the trial's description."""
        self.counts[outcome] += 1
        if problem:
            self.faults.append(f"{self.kind}: {description}: {problem}")

    def settle(self, at_least: int) -> None:
        """Print the counts; fail where a trial went wrong or there were fewer than `at_least`."""
        total = sum(self.counts.values())
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.counts.items()))
        print(f"\n{self.kind}: {total} trials: {counts}; {len(self.faults)} faults")
        assert not self.faults, f"{len(self.faults)} faults of {total} trials:\n" + "\n".join(self.faults)
        assert total >= at_least, f"{self.kind}: only {total} trials"
