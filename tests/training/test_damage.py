"""Damaged files: each kind that we read, its content changed at random. Two outcomes are right, one line that names the
file or the very result of the file as it was, and none may touch another file.

Some kinds cannot know better: in a config, a text or a tokenizer that a person wrote, another digit is another file.
There a third outcome counts, `another`: a valid file whose difference shows (another config, another fingerprint).

`-m slow -s` shows a table; MUTATIONS=400 in the environment tries more. The description of a trial is the seed of its
mutation.
"""

import contextlib
import copy
import gzip
import io
import json
import lzma
import math
import os
import pickle
import random
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zstandard

from modules.config import load_config, parse_config
from modules.data.token_file import open_tokens
from modules.measurement import report
from modules.measurement.comparison import curve
from modules.measurement.evaluation import load_model
from modules.measurement.measure import Wish, report_on_losses
from modules.measurement.pairing import read_run
from modules.system.errors import UserError
from modules.tok_utils import make_h5, tokenize_folder
from modules.tok_utils.encoder import Encoder, fast_tokenizer
from modules.tokenizer import BOS_TOKEN, get_tokenizer
from modules.training import checkpoint
from modules.training.metrics import Metrics, read_metrics
from modules.training.parallel import Processes
from modules.training.resume import check_same_run, check_same_settings, files_of, find_state, stages_of, with_cooldown
from modules.training.run import data_of, prepare, restore
from tests.faults import copied, digest, outcome, train, write_toy
from tests.tok_texts import sample_text, trained

HERE = Processes(0, 1, torch.device("cpu"))
MUTATIONS = int(
    os.environ.get("MUTATIONS", 40)
)  # of the bytes of each kind; and as many of the structure of those that have one
CHUNK_BYTES = 8_000
TRIAL_S = 30


# Mutations
# ----------------------------------------------------------------------------------------------------------------


def flip_bit(data: bytearray, chance: random.Random, _) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def flip_bytes(data: bytearray, chance: random.Random, _) -> None:
    for _ in range(16):
        data[chance.randrange(len(data))] = chance.randrange(256)


def truncate(data: bytearray, chance: random.Random, _) -> None:
    del data[chance.choice([0, 1, len(data) - 1, chance.randrange(len(data))]) :]


def duplicate(data: bytearray, chance: random.Random, _) -> None:
    start, length = chance.randrange(len(data)), chance.randint(1, 200)
    data[start:start] = data[start : start + length]


def cut_out(data: bytearray, chance: random.Random, _) -> None:
    start = chance.randrange(len(data))
    del data[start : start + chance.randint(1, 200)]


def zero(data: bytearray, chance: random.Random, _) -> None:
    start = chance.randrange(len(data))
    stop = min(len(data), start + chance.choice([1, 64, 512, 4096]))
    data[start:stop] = bytes(stop - start)


def move(data: bytearray, chance: random.Random, _) -> None:
    start = chance.randrange(len(data))
    moved = data[start : start + 300]
    del data[start : start + 300]
    at = chance.randint(0, len(data))
    data[at:at] = moved


def append(data: bytearray, chance: random.Random, _) -> None:
    data += chance.choice([b"\n", b"\0" * 100, chance.randbytes(100), bytes(data[:100])])


def replace_by_another_kind(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    data[:] = chance.choice(
        [
            *others,
            b"",
            b"\n",
            b"[]",
            b"{}",
            b"null",
            b"1",
            b'"text"',
            b"[" * 100_000,
            b"\xff\xfe",
            chance.randbytes(5_000),
            pickle.dumps({"a": 1}),
            pickle.dumps(Path("/")),
        ]
    )


BYTES = [flip_bit, flip_bytes, truncate, duplicate, cut_out, zero, move, append, flip_bit, replace_by_another_kind]
ODD = [
    None,
    True,
    False,
    0,
    -1,
    1,
    -(10**30),
    10**30,
    2**63,
    2**64,
    1.5,
    -0.0,
    1e300,
    -1e-300,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "text",
    "\0",
    "../x",
    "x" * 5_000,
    "1",
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"a": {"b": []}},
]


def places(value, path=()) -> Iterator[tuple]:
    """The path of every entry in nested dictionaries and lists."""
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield *path, key
        yield from places(entry, (*path, key))


def odd_entry(value, chance: random.Random):
    """`value`, nested data, with one entry gone, doubled, nested or of another type or range; and what was done, in
    words."""
    value = copy.deepcopy(value)
    by_depth = {}
    for path in places(value):
        by_depth.setdefault((len(path), *path[:-1], type(path[-1]).__name__)[:3], []).append(path)
    path = chance.choice(chance.choice(list(by_depth.values())))  # not mostly in the longest of its lists
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    key, old = path[-1], holder[path[-1]]
    how = chance.choice(["delete", "add", "nest", "odd", "odd", "odd"])
    if isinstance(old, torch.Tensor):
        odd = [
            old.double(),
            old.long(),
            old[..., None],
            old.flatten()[:-1],
            torch.full(old.shape, math.nan),
            torch.full(old.shape, -math.inf),
            old.to(torch.complex64),
            torch.zeros(0),
            old.float().to_sparse(),
            torch.empty(old.shape, device="meta"),
            old.bool(),
            {"a": old},
            *ODD,
        ]
    else:
        odd = ODD if not isinstance(old, (int, float)) or isinstance(old, bool) else [*ODD, str(old), [old], -old - 1]
    new = chance.choice(odd)
    if how == "delete":
        del holder[key]
    elif how == "add":
        if isinstance(holder, dict):
            holder["unknown"] = new
        else:
            holder.insert(key, new)
    else:
        holder[key] = {"nested": old} if how == "nest" else new
    return value, f"{how} {'.'.join(map(str, path))} <- {str(new)[:60]}"


# Kinds
# --------------------------------------------------------------------------------------------------------------------


@dataclass
class Kind:
    """A kind of file, as it lies in a folder with what belongs to it.

    file: the one to damage, relative. use: what a user's command does with it; its result, as plain data. another:
    whether a result that differs from the expected one is right all the same. restructure: (path, chance) damages the
    structure and says how.
    """

    name: str
    folder: Path
    file: str
    use: Callable[[Path], object]
    another: Callable[[Path, object, object], bool] = lambda folder, result, expected: False
    restructure: Callable[[Path, random.Random], str] | None = None


def restructured_json(path: Path, chance: random.Random) -> str:
    value, what = odd_entry(json.loads(path.read_text(encoding="utf-8")), chance)
    path.write_text(json.dumps(value), encoding="utf-8")
    return what


def restructured_torch(path: Path, chance: random.Random) -> str:
    value, what = odd_entry(torch.load(path, weights_only=True), chance)
    torch.save(value, path)
    return what


def restructured_line(path: Path, chance: random.Random) -> str:
    lines = path.read_text().splitlines()
    number = chance.randrange(len(lines))
    value, what = odd_entry({"line": json.loads(lines[number])}, chance)
    lines[number] = json.dumps(value.get("line"))
    path.write_text("\n".join(lines) + "\n")
    return f"line {number + 1}: {what}"


def restructured_h5(path: Path, chance: random.Random) -> str:
    def dataset(file, **kwargs):
        data, said = file["tokens"][:], dict(file["tokens"].attrs)
        del file["tokens"]
        changed = {key: value(data) if callable(value) else value for key, value in kwargs.items()}
        new = file.create_dataset("tokens", **{"data": data} | changed)
        new.attrs.update(said)

    structures = {
        "chunked": lambda file: dataset(file, chunks=(100,)),
        "compressed": lambda file: dataset(file, compression="gzip"),
        "float": lambda file: dataset(file, data=lambda data: data.astype(float)),
        "2-D": lambda file: dataset(file, data=lambda data: data[None]),
        "empty": lambda file: dataset(file, data=lambda data: data[:0]),
        "text": lambda file: dataset(file, data="tokens"),
        "negative": lambda file: dataset(file, data=lambda data: -1 - data.astype(np.int64)),
        "shorter": lambda file: dataset(file, data=lambda data: data[:-1]),
        "larger ids": lambda file: dataset(file, data=lambda data: data.astype(np.uint32) + 60_000),
        "wider": lambda file: dataset(file, data=lambda data: data.astype(np.uint64)),
        "big-endian": lambda file: dataset(file, data=lambda data: data.astype(">u2")),
        "group": lambda file: (file.pop("tokens"), file.create_group("tokens")),
        "gone": lambda file: file.pop("tokens"),
        "link": lambda file: (file.move("tokens", "other"), file.__setitem__("tokens", h5py.SoftLink("/nowhere"))),
        "outside": lambda file: (
            file.pop("tokens"),
            file.__setitem__("tokens", h5py.ExternalLink("other.h5", "tokens")),
        ),
    }
    with h5py.File(path, "r+") as file:
        if chance.random() < 0.3:
            how = chance.choice(sorted(structures))
            structures[how](file)
            return how
        attributes = file["tokens"].attrs
        name = chance.choice(sorted(attributes))
        old = attributes[name]
        new = chance.choice(
            [
                None,
                -1,
                2**63,
                2**31,
                1.5,
                math.nan,
                "text",
                "",
                [1, 2],
                np.zeros((2, 2)),
                [],
                True,
                np.bytes_(b"\xff"),
                h5py.Empty("f"),
                "x" * 5_000,
                str(old),
                [old],
                np.float64(0),
                0,
                old[::-1] if isinstance(old, str) else old + 1,
            ]
        )
        del attributes[name]
        if new is not None:
            attributes[name] = new
        return f"{name} <- {str(new)[:60]}"


def config_of(folder: Path, **changes):
    """The config of the toy run in `folder`, its paths made absolute."""
    config = load_config(folder / "toy.json").with_model("gpt")
    return config.with_training(dataset_folder=str(folder / "toy.h5"), state_save_loc=str(folder / "runs"), **changes)


def used_config(folder: Path) -> dict:
    return load_config(folder / "toy.json").with_model("gpt").to_dict()


def is_a_config(_, result: dict, expected: dict) -> bool:
    return parse_config(result, "again").to_dict() == result


def used_state(folder: Path) -> dict:
    """What a run goes on with from the state: as modules.training.run does it."""
    config = config_of(folder, parallel="ddp")
    files = files_of(config, "tests")
    data = data_of(config, None, HERE)
    found = find_state(files)
    if found is None:
        raise AssertionError("no state was found")
    check_same_run(found, config, data.token_file, files)
    config = with_cooldown(config, None, found, files)
    check_same_settings(found, config, False, False, files)
    training = prepare(config, data, HERE, stages_of(found), found["step"])
    restore(training, found, files.state)
    return {
        "tensors": digest(checkpoint.snapshot(training.model, training.optimizer)),
        "step": training.step,
        "validated": training.validated,
        "unlogged": digest(torch.stack(training.unlogged)) if training.unlogged else None,
        "stages": [stage.model_dump() for stage in training.stages],
    }


def measured_state(folder: Path) -> dict:
    """What a measurement reads of the state."""
    read = read_run(folder / "runs/tests/state/toy.state")
    return {
        "weights": digest(load_model(read, torch.device("cpu")).state_dict()),
        "step": read.state["step"],
        "held out": read.held_out_windows,
        "stages": [stage.model_dump() for stage in read.stages],
        "parameters": read.parameters,
    }


def shows_another_history(_, result: dict, expected: dict) -> bool:
    """Whether only the settings of its steps differ: a measurement compares them with the other direction's, step by
    step."""
    return result | {"stages": None} == expected | {"stages": None}


def used_metrics(folder: Path) -> list:
    """The curve that is drawn, and what a resumed run leaves of the file."""
    path = folder / "runs/tests/metrics/toy.jsonl"
    curve(read_metrics(path), "forward")
    before = path.read_bytes()
    Metrics(path, 10**9, "tests", "toy", folder / "runs", {}).close()
    kept = read_metrics(path)
    # A last line without an end may go.
    if len(kept) < before.count(b"\n") and before not in [other.read_bytes() for other in path.parent.iterdir()]:
        raise AssertionError("lines of the user's record are lost: no copy of the file as it was")
    return kept


def are_entries(_, result: list, expected: list) -> bool:
    """All of them such as a run writes: what is damaged may be left out, not shown."""
    return all(
        isinstance(entry["step"], int) and entry["split"] in ("train", "valid") and math.isfinite(entry["loss"])
        for entry in result
    )


def used_h5(folder: Path) -> dict:
    token_file = open_tokens(folder / "out.h5")
    token_file.check_ids(token_file.vocab_size or 1_500)
    said = [token_file.vocab_size, token_file.tokenizer_fingerprint, token_file.bos_id, token_file.text_bytes]
    return {
        "tokens": digest(np.asarray(token_file.tokens[:], dtype=np.uint32)),
        "attributes": said,
        "known as": token_file.fingerprint,
    }


def used_tokenizer(folder: Path) -> dict:
    toki = get_tokenizer(folder / "toki")
    fast = fast_tokenizer(toki)
    ids = Encoder(toki, not isinstance(fast, str)).encode(sample_text(3_000).encode("utf-8"))
    return {
        "ids": digest(np.asarray(ids, dtype=np.int64)),
        "alone": toki.encode(sample_text(300)),
        "bos": toki.bos_id,
        "size": toki.vocab_size,
        "known as": toki.fingerprint,
    }


def is_known_as_another(_, result: dict, expected: dict) -> bool:
    return result["known as"] != expected["known as"]


def restructured_npz(path: Path, chance: random.Random) -> str:
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    name = chance.choice(sorted(arrays))
    old = arrays.pop(name)
    new = chance.choice(
        [
            None,
            old * math.nan,
            old + math.inf,
            old[0, 0],
            old[:0],
            old.astype(str),
            old.astype(complex),
            old[..., :-1],
            old[None],
            old.astype(object),
            old > 0,
            np.array("losses"),
            np.zeros((0, 0)),
            -old,
        ]
    )
    if new is not None:
        arrays[name] = new
    np.savez(path, **arrays)
    return f"{name} <- {'nothing' if new is None else f'{new.dtype} {new.shape}'}"


def used_losses(folder: Path) -> str:
    """The numbers of the report on losses that somebody else measured."""
    report_on_losses(str(folder / "losses.npz"), Wish(folder / "report"))
    return json.dumps(json.loads((folder / "report" / "arrow.json").read_text())["comparisons"])


def joined(folder: Path) -> str:
    """The .h5 made of the chunks that are there."""
    return digest(make_h5(folder / "text_tokens", folder / "out", get_tokenizer(folder / "toki")).read_bytes())


def tokenized_again(folder: Path) -> str:
    """The .h5 of the command that goes on with the chunks that are there."""
    return digest(made(folder, "text.txt").read_bytes())


def made(folder: Path, text: str) -> Path:
    made_of = tokenize_folder(folder / text, folder / "toki", num_workers=1, chunk_bytes=CHUNK_BYTES)
    return make_h5(made_of, folder / "out", get_tokenizer(folder / "toki"))


def used_text(name: str) -> Callable[[Path], list]:
    def use(folder: Path) -> list:
        with h5py.File(made(folder, name)) as file:
            return file["tokens"][:].tolist()

    return use


def is_that_text(name: str) -> Callable:
    """Whether the ids are those of the whole text as it is now, by other means."""

    def read(path: Path) -> bytes:
        data = path.read_bytes()
        if path.suffix == ".gz":
            return gzip.decompress(data)
        if path.suffix == ".xz":
            return lzma.decompress(data)
        if path.suffix == ".zst":
            return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True).read()
        return data

    return lambda folder, result, expected: (
        result == get_tokenizer(folder / "toki").encode(read(folder / name).decode("utf-8"))
    )


# Trials
# -------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    def late(*_):
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


class Table:
    """The counts of all kinds, and every fault."""

    def __init__(self):
        self.rows, self.faults = {}, []

    def trial(self, kind: Kind, expected: object, folder: Path, damage: Callable[[Path], str], seed: str) -> None:
        """Damage the file, use it, judge."""
        copied(kind.folder, folder)
        what = damage(folder / kind.file)
        before = files_in(folder)
        with within(TRIAL_S), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            how, value = outcome(kind.use, folder)
        counts = self.rows.setdefault(kind.name, Counter())
        after = files_in(folder)
        touched = [name for name in before if after.get(name) != before[name]]
        touched += [name for name in after.keys() - before.keys() if "_tokens/" not in name]
        if how == "refused":
            named = (
                Path(kind.file).name in value
                or Path(kind.file).parent.name not in ("", ".")
                and Path(kind.file).parent.name in value
            )
            problem = (
                f"the line does not name the file: {value}"
                if not named
                else f"refused, but touched {touched}"
                if touched
                else ""
            )
        elif how == "ok":
            same = value == expected
            how = "identical" if same else "another"
            with contextlib.suppress(Exception):
                same = same or kind.another(folder, value, expected)
            problem = "" if same else f"another result, in silence: {str(value)[:300]} where {str(expected)[:300]} was"
        else:
            problem = value
        counts["fault" if problem else how] += 1
        if problem:
            self.faults.append(f"{seed}: {what}: {problem}")

    def bytes(self, kind: Kind, folder: Path, others: list[bytes], count: int = MUTATIONS) -> None:
        """`count` mutations of the file's bytes."""
        expected = self.undamaged(kind, folder)
        for number in range(count):
            mutate, seed = BYTES[number % len(BYTES)], f"{kind.name}, bytes {number}"

            def damage(path: Path) -> str:
                data = bytearray(path.read_bytes())
                mutate(data, random.Random(seed), others)  # noqa: B023 (used at once)
                path.write_bytes(data)
                return mutate.__name__  # noqa: B023

            self.trial(kind, expected, folder, damage, seed)

    def structure(self, kind: Kind, folder: Path, count: int = MUTATIONS) -> None:
        """`count` mutations of what the file says."""
        expected = self.undamaged(kind, folder)
        for number in range(count):
            seed = f"{kind.name}, structure {number}"
            mutate = partial(lambda seed, path: kind.restructure(path, random.Random(seed)), seed)
            self.trial(kind, expected, folder, mutate, seed)

    def undamaged(self, kind: Kind, folder: Path) -> object:
        with contextlib.redirect_stderr(io.StringIO()):
            how, expected = outcome(kind.use, copied(kind.folder, folder))
        assert how == "ok", (kind.name, expected)
        return expected

    def settle(self) -> None:
        print(f"\n{'kind':28} {'mutations':>9} {'refused':>9} {'identical':>9} {'another':>9} {'faults':>9}")
        for name, counts in self.rows.items():
            print(
                f"{name:28} {sum(counts.values()):9}",
                *(f"{counts[how]:9}" for how in ("refused", "identical", "another", "fault")),
            )
        assert not self.faults, f"{len(self.faults)} faults:\n" + "\n".join(self.faults)


@pytest.fixture(autouse=True)
def only_what_reads(monkeypatch):
    monkeypatch.setattr(report, "draw_all", lambda comparisons: {})  # pictures: seconds, and nothing is read from them


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of 22 steps, two of them not yet logged: config, data, state, backups, metrics."""
    folder = write_toy(
        tmp_path_factory.mktemp("run") / "run", training_params__steps_to_train=22, training_params__backup_every=100
    )
    here = os.getcwd()
    os.chdir(folder)
    try:
        assert train() == 0
    finally:
        os.chdir(here)
    losses = np.random.default_rng(0).gamma(2.0, size=(2, 1, 20, 16))
    np.savez(folder / "losses.npz", forward_x=losses[0], backward_x=losses[1])
    return folder


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    """A text in four forms, a tokenizer, the chunks and the .h5 of the text."""
    folder = tmp_path_factory.mktemp("text") / "text"
    folder.mkdir()
    text = sample_text(40_000)
    trained(folder / "toki", [text], 500)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS_TOKEN,
        "eos_token": BOS_TOKEN,
        "model_max_length": 1024,
    }
    (folder / "toki" / "tokenizer_config.json").write_text(json.dumps(config))
    data = text.encode("utf-8")
    for name, packed in (
        ("text.txt", data),
        ("plain.txt", data),
        ("g.txt.gz", gzip.compress(data, mtime=0)),
        ("x.txt.xz", lzma.compress(data)),
        ("z.txt.zst", zstandard.ZstdCompressor(write_checksum=True).compress(data)),
    ):
        (folder / name).write_bytes(packed)
    shutil.copy(made(folder, "text.txt"), folder / "out.h5")
    shutil.rmtree(folder / "out")
    return folder


def kinds_of_runs(folder: Path) -> list[Kind]:
    state = "runs/tests/state/toy.state"
    return [
        Kind("config", folder, "toy.json", used_config, is_a_config, restructured_json),
        Kind("state, to train on", folder, state, used_state, restructure=restructured_torch),
        Kind("state, to measure", folder, state, measured_state, shows_another_history, restructured_torch),
        Kind("losses", folder, "losses.npz", used_losses, restructure=restructured_npz),
        Kind("metrics", folder, "runs/tests/metrics/toy.jsonl", used_metrics, are_entries, restructured_line),
    ]


def kinds_of_texts(folder: Path) -> list[Kind]:
    chunk, manifest = "text_tokens/chunk_000002.pt", "text_tokens/manifest.json"
    return [
        Kind("h5", folder, "out.h5", used_h5, is_known_as_another, restructured_h5),
        Kind("tokenizer.json", folder, "toki/tokenizer.json", used_tokenizer, is_known_as_another, restructured_json),
        Kind(
            "tokenizer_config.json", folder, "toki/tokenizer_config.json", used_tokenizer, restructure=restructured_json
        ),
        Kind("chunk, joined", folder, chunk, joined, restructure=restructured_torch),
        Kind("chunk, gone on with", folder, chunk, tokenized_again, restructure=restructured_torch),
        Kind("manifest, joined", folder, manifest, joined, restructure=restructured_json),
        Kind("manifest, gone on with", folder, manifest, tokenized_again, restructure=restructured_json),
        *(
            Kind(f"text {name.partition('.')[2]}", folder, name, used_text(name), is_that_text(name))
            for name in ("plain.txt", "g.txt.gz", "x.txt.xz", "z.txt.zst")
        ),
    ]


def all_kinds(run_folder: Path, text_folder: Path) -> tuple[list[Kind], list[bytes]]:
    """The kinds, and the bytes of one file of each, to be put in the place of others."""
    kinds = kinds_of_runs(run_folder) + kinds_of_texts(text_folder)
    return kinds, [(kind.folder / kind.file).read_bytes() for kind in kinds]


def test_a_sample_of_damaged_files(run_folder, text_folder, tmp_path):
    """The quick representative of what follows."""
    kinds, others = all_kinds(run_folder, text_folder)
    table = Table()
    for kind in kinds:
        table.bytes(kind, tmp_path / "t", others, count=3)
    table.settle()


@pytest.mark.slow
def test_forty_mutations_of_the_bytes_of_each_kind(run_folder, text_folder, tmp_path):
    kinds, others = all_kinds(run_folder, text_folder)
    table = Table()
    for kind in kinds:
        table.bytes(kind, tmp_path / "t", others)
    table.settle()


@pytest.mark.slow
def test_forty_mutations_of_what_each_kind_says(run_folder, text_folder, tmp_path):
    table = Table()
    for kind in all_kinds(run_folder, text_folder)[0]:
        if kind.restructure:
            table.structure(kind, tmp_path / "t")
    table.settle()


@pytest.mark.slow
def test_two_files_of_one_kind_in_each_others_place(run_folder, text_folder, tmp_path):
    """A chunk for another; parts of a sharded state below."""
    table = Table()
    kinds = {kind.name: kind for kind in all_kinds(run_folder, text_folder)[0]}
    other = text_folder / "text_tokens/chunk_000003.pt"
    for name in ("chunk, joined", "chunk, gone on with"):
        expected = table.undamaged(kinds[name], tmp_path / "t")
        table.trial(
            kinds[name], expected, tmp_path / "t", lambda path: str(shutil.copy(other, path)), f"{name}, swapped"
        )
    table.settle()


@pytest.mark.slow
def test_forty_mutations_of_a_sharded_state(tmp_path):
    """Any file of its folder, whatever the format: bytes, swapped, gone, one too many."""
    from tests.training.test_kills import sharded

    folder = write_toy(tmp_path / "sharded", training_params__parallel="fsdp", training_params__steps_to_train=7)
    ended, _ = sharded(folder)
    assert (ended.how, ended.value) == ("ok", 0), ended
    (folder / "runs/tests/state/toy.state").unlink()
    shards = Path("runs/tests/state/toy.sharded")
    names = sorted(path.name for path in (folder / shards).iterdir())
    table = Table()
    for number in range(2 * MUTATIONS):
        seed = f"sharded, {number}"
        chance = random.Random(seed)
        name = names[number % len(names)]
        kind = Kind("sharded state", folder, str(shards / name), used_state)
        mutate = BYTES[number // len(names) % len(BYTES)]

        def damage(path: Path) -> str:
            how = chance.choice(["bytes"] * 6 + ["gone", "another file's", "added"])  # noqa: B023
            if how == "gone":
                path.unlink()
            elif how == "another file's":
                shutil.copy(path.with_name(chance.choice(names)), path.with_name("swapped.tmp"))  # noqa: B023
                path.with_name("swapped.tmp").rename(path)
            elif how == "added":
                shutil.copy(path, path.with_name(f"{path.stem}9{path.suffix}"))
            else:
                data = bytearray(path.read_bytes())
                mutate(data, chance, [(folder / "toy.h5").read_bytes()])  # noqa: B023
                path.write_bytes(data)
                how = mutate.__name__  # noqa: B023
            return f"{how} {path.name}"

        if not number:
            expected = table.undamaged(kind, tmp_path / "t")
        table.trial(kind, expected, tmp_path / "t", damage, seed)
    table.settle()


def test_a_refusal_is_told_from_a_fault():
    """The judge itself: what it must tell apart."""

    def of(error):
        def work():
            raise error

        return outcome(work)[0]

    assert of(UserError("one line")) == "refused" and of(UserError("two\nlines")) == "fault"
    assert (
        of(OSError(28, "No space left on device", "/a")) == "refused"
        and of(OSError(28, "No space left on device")) == "fault"
    )
    assert of(KeyError("key")) == "fault" and of(SystemExit(1)) == "fault"


def test_a_state_with_bytes_cut_out_is_damaged_and_not_unreadable(run_folder, tmp_path):
    """So that its user is led to a backup: Python's zipfile has an error of the system's for it."""
    folder = copied(run_folder, tmp_path / "t")
    state = folder / "runs/tests/state/toy.state"
    data = state.read_bytes()
    state.write_bytes(data[:1000] + data[1100:])
    with pytest.raises(checkpoint.DamagedState):
        checkpoint.load_state(state)
