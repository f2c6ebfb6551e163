"""Sharded states: exact on any number of processes, never half read, whole after any kill, and nothing in them is
run."""

import os
import pickle
import random
import resource
import shutil
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

from modules.config import load_config, parse_config
from modules.models import build_model
from modules.system.errors import UserError
from modules.training import sharded
from modules.training.checkpoint import load_state
from modules.training.history import Stage, as_data
from modules.training.parallel import Processes, joined, shared_loss
from modules.training.run import Request, run
from modules.training.sharded import (
    export_sharded,
    restore_sharded,
    save_sharded,
    sharded_facts,
    sharded_path,
    whole_sharded,
)
from tests.toy import PROJECT, config_dict, state_path, write_config

HERE = Processes(0, 1, torch.device("cpu"))
STEPS = (3, 5)
# Rows that no number of processes divides; a norm's 4 on three processes are 2, 2 and none.
MODEL = {"vocab_size": 7, "n_layers": 2, "n_heads": 2, "embed_dim": 4, "attn_length": 5, "dropout": 0.0}


def new(seed):
    """A model and its optimizer before the first step."""
    model = build_model("gpt", seed, **MODEL)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, fused=True)


def trained(steps, processes=HERE, seed=1):
    """A model, sharded where there are processes for it, and its optimizer after some steps."""
    model = build_model("gpt", seed, **MODEL)
    loss_of = shared_loss(model, "fsdp", "fp32", processes)[0] if processes.count > 1 else model.loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    train(loss_of, optimizer, steps)
    return model, optimizer, loss_of


def train(loss_of, optimizer, steps):
    for step in range(steps):
        tokens = torch.randint(7, (3, 6), generator=torch.Generator().manual_seed(step))
        loss_of(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def facts_of(step):
    config = parse_config(config_dict(Path()), "toy")
    return {
        "step": step,
        "tokens": 256 * step,
        "run": "toy",
        "config": config.to_dict(),
        "precision": "fp32",
        "validated": 0,
        "unlogged": torch.arange(3.0),
        "held_out_tokens": 512,
        "stages": as_data([Stage(first_step=0, optim_params=config.optim_params, precision="fp32")]),
        "early_stages_unknown": False,
        "dataset": {"fingerprint": "f", "n_tokens": 600},
        "versions": {},
    }


def gathered(model, optimizer):
    """The whole of a model and its optimizer as torch itself gathers it: the truth to compare with."""
    weights, moments = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    return {"model": weights, "optimizer": moments}


def same(a, b):
    """Whether two nested structures are the same, tensors to the bit."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    return a == b


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def started(rank, work, count, port, *arguments):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined("cpu") as processes:
        work(processes, *arguments)
    os._exit(
        0
    )  # as modules.training.parallel.leave: what torch keeps of a process group may abort a process that is ending


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def on(count, work, *arguments):
    """Run `work` in `count` real processes; raises what one of them raised."""
    torch.multiprocessing.spawn(started, (work, count, free_port(), *arguments), nprocs=count)


def write_on_two(processes, folder):
    """States of two steps, and what is in them; then a save that fails in the second process alone."""
    model, optimizer, loss_of = trained(STEPS[0], processes)
    for step in STEPS:
        save_sharded(facts_of(step), model, optimizer, folder / f"{step}.sharded", processes)
        whole = gathered(model, optimizer)  # all processes take part
        if processes.is_main:
            torch.save(whole, folder / f"{step}.truth")
        train(loss_of, optimizer, STEPS[1] - STEPS[0])
    before = contents(folder / "5.sharded")
    if processes.rank == 1:
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))  # as on a full disk
    with pytest.raises(
        UserError, match="cannot save the sharded state .*5.sharded.*File too large.*the one saved before is as it was"
    ):
        save_sharded(facts_of(6), model, optimizer, folder / "5.sharded", processes)
    processes.wait_for_all()
    assert contents(folder / "5.sharded") == before and not sharded.leftovers(folder / "5.sharded")
    if processes.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    processes.wait_for_all()
    save_sharded(facts_of(6), model, optimizer, folder / "6.sharded", processes)


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """A folder of states of a model sharded on two processes, with the truth about each."""
    folder = tmp_path_factory.mktemp("states")
    on(2, write_on_two, folder)
    return folder


@pytest.fixture
def state(states, tmp_path):
    """A copy of one of them, to damage."""
    return Path(shutil.copytree(states / "3.sharded", tmp_path / "toy.sharded"))


def test_one_process_that_cannot_write_ends_the_save_in_all_and_the_next_one_works(states):
    assert sharded_facts(states / "6.sharded")["step"] == 6  # what is before it is checked in the processes themselves


@pytest.mark.parametrize("step", STEPS)
def test_what_two_processes_wrote_one_reads_to_the_bit(states, tmp_path, step):
    folder, truth = states / f"{step}.sharded", torch.load(states / f"{step}.truth")
    assert same(sharded_facts(folder), facts_of(step))
    for model, optimizer in (new(seed=2), trained(2, seed=2)[:2]):  # before its first step, and after
        restore_sharded(model, optimizer, folder)
        assert same(gathered(model, optimizer), truth)
    export_sharded(folder, tmp_path / "plain.state")
    assert same(load_state(tmp_path / "plain.state"), facts_of(step) | truth)
    assert sorted(path.name for path in folder.iterdir()) == [
        "facts.pt",
        "shard00000.safetensors",
        "shard00001.safetensors",
    ]
    rows = [load_file(folder / f"shard0000{i}.safetensors")["model.embedding.weight"] for i in range(2)]
    assert [len(part) for part in rows] == [4, 3] and torch.cat(rows).equal(truth["model"]["embedding.weight"])


def read_on_three(processes, folder):
    """The state of two, on three; one that only the last process finds damaged is refused in all of them."""
    model, optimizer, _ = trained(0, processes, seed=2)
    weights = [parameter.to_local().clone() for parameter in model.parameters()]
    with pytest.raises(UserError, match="damaged sharded state .shard00001"):
        restore_sharded(model, optimizer, folder / "damaged.sharded")
    assert not optimizer.state and all(
        map(torch.equal, weights, [parameter.to_local() for parameter in model.parameters()])
    )
    restore_sharded(model, optimizer, folder / "3.sharded")
    assert any(not len(parameter.to_local()) for parameter in model.parameters()) == (processes.rank == 2)
    assert same(gathered(model, optimizer), torch.load(folder / "3.truth"))
    save_sharded(facts_of(3), model, optimizer, folder / "three.sharded", processes)


def test_what_two_processes_wrote_three_read_to_the_bit(states, tmp_path):
    shutil.copytree(states, tmp_path, dirs_exist_ok=True)
    shutil.copytree(states / "3.sharded", tmp_path / "damaged.sharded")
    flip(tmp_path / "damaged.sharded" / "shard00001.safetensors", 4000)
    on(3, read_on_three, tmp_path)
    export_sharded(tmp_path / "three.sharded", tmp_path / "three.state")
    assert same(load_state(tmp_path / "three.state"), facts_of(3) | torch.load(states / "3.truth"))


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def mutate(folder, other, chance):
    """Damage a sharded state as disks, people and interrupted copies do; what was done."""
    paths = sorted(folder.iterdir())
    path, second = chance.sample(paths, 2)
    size = path.stat().st_size
    kind = chance.choice(
        [
            "flip",
            "flip",
            "truncate",
            "append",
            "zeros",
            "delete",
            "swap",
            "copy",
            "garbage",
            "empty",
            "older",
            "extra",
            "folder",
            "rename",
        ]
    )
    if kind == "flip":
        flip(path, chance.randrange(8 * size))
    elif kind == "truncate":
        os.truncate(path, chance.randrange(size))
    elif kind == "append":
        path.write_bytes(path.read_bytes() + chance.randbytes(chance.choice([1, 8, 4096])))
    elif kind == "zeros":
        begin = chance.randrange(size)
        data = path.read_bytes()
        path.write_bytes((data[:begin] + bytes(512) + data[begin + 512 :])[:size])
    elif kind == "delete":
        path.unlink()
    elif kind == "swap":
        first, last = path.read_bytes(), second.read_bytes()
        path.write_bytes(last)
        second.write_bytes(first)
    elif kind == "copy":
        shutil.copyfile(path, second)
    elif kind == "garbage":
        path.write_bytes(chance.randbytes(size))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "older":  # a file of another step's state: each is whole by itself
        shutil.copyfile(other / path.name, path)
    elif kind == "extra":
        shutil.copyfile(path, folder / "shard00002.safetensors")
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "rename":
        path.rename(folder / "shard00007.safetensors")
    return f"{kind} {path.name}"


def read_or_refuse(folder, truth):
    """Whether the state is refused: in one line that names it, nothing of it in model and optimizer. If not, all of it
    is right."""
    model, optimizer = new(seed=2)
    weights = [parameter.clone() for parameter in model.parameters()]
    refused = []
    for read in (
        lambda: restore_sharded(model, optimizer, folder),
        lambda: export_sharded(folder, folder.with_suffix(".state")),
    ):
        try:
            read()
            refused.append(False)
        except UserError as error:
            assert str(folder) in str(error) and "\n" not in str(error)
            refused.append(True)
    assert refused[0] == refused[1]
    if refused[0]:
        assert not optimizer.state and all(map(torch.equal, weights, model.parameters()))
        assert not folder.with_suffix(".state").exists()
    else:
        assert same(gathered(model, optimizer), truth)
        assert same(load_state(folder.with_suffix(".state")), sharded_facts(folder) | truth)
    return refused[0]


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_state_is_refused_or_read_right(states, tmp_path, seed):
    truth = torch.load(states / "3.truth")
    chance = random.Random(seed)
    for i in range(25):
        folder = Path(shutil.copytree(states / "3.sharded", tmp_path / f"{i}.sharded"))
        done = mutate(folder, states / "5.sharded", chance)
        refused = read_or_refuse(folder, truth)
        assert refused or done.endswith("facts.pt"), f"{done} in a shard is always found"


def rewritten(folder, change=lambda tensors: None, change_facts=lambda facts: None):
    """Change the shards' tensors and the facts, and make all checksums right again, as a hostile writer would."""
    facts = torch.load(folder / "facts.pt")
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        facts["sharded"]["files"][path.name] = {"bytes": path.stat().st_size, "crc32": sharded.crc32_of(path)}
    change_facts(facts)
    torch.save(facts, folder / "facts.pt")


NAME = "model.head.weight"
WITH_RIGHT_CHECKSUMS = {
    "a tensor missing in the files": (lambda tensors: tensors.pop(NAME), None, f"{NAME} is missing"),
    "a tensor too many": (lambda tensors: tensors.update(other=torch.zeros(1)), None, "other is no tensor of it"),
    "rows missing": (
        lambda tensors: tensors.update({NAME: tensors[NAME][1:].clone()}),
        None,
        r"expected float32 \[7, 4\], found 5 rows",
    ),
    "other columns": (
        lambda tensors: tensors.update({NAME: tensors[NAME][:, 1:].clone()}),
        None,
        r"expected rows of float32 \[7, 4\], found \[\d, 3\]",
    ),
    "another dtype": (
        lambda tensors: tensors.update({NAME: tensors[NAME].bfloat16()}),
        None,
        "expected rows of float32",
    ),
    "no rows at all": (lambda tensors: tensors.update({NAME: torch.tensor(1.0)}), None, "expected rows of float32"),
    "an entry missing in the facts": (None, lambda facts: facts["sharded"]["tensors"].pop(NAME), f"{NAME} is missing"),
    "a moment missing everywhere": (
        lambda tensors: tensors.pop("optimizer.head.weight.exp_avg"),
        lambda facts: facts["sharded"]["tensors"].pop("optimizer.head.weight.exp_avg"),
        "exp_avg is missing",
    ),
    "a weight missing everywhere": (
        lambda tensors: tensors.pop(NAME),
        lambda facts: facts["sharded"]["tensors"].pop(NAME),
        f"{NAME} is missing",
    ),
    "an absurd shape": (
        None,
        lambda facts: facts["sharded"]["tensors"].update({NAME: torch.empty(1 << 50, 4, device="meta")}),
        "has the shape",
    ),
    "a sparse tensor": (
        None,
        lambda facts: facts["sharded"]["tensors"].update({NAME: torch.zeros(7, 4).to_sparse()}),
        "is not of a model",
    ),
    "a step count on no device": (
        None,
        lambda facts: facts["sharded"]["tensors"].update(
            {"optimizer.head.weight.step": torch.empty((), device="meta")}
        ),
        "step is missing",
    ),
    "a list for the tensors": (
        None,
        lambda facts: facts["sharded"].update(tensors=[]),
        "sharded.tensors: expected a dictionary",
    ),
    "a text for the step": (None, lambda facts: facts.update(step="3"), "step: expected an integer"),
    "no config": (None, lambda facts: facts.pop("config"), "config: missing"),
    "nothing about shards": (None, lambda facts: facts.pop("sharded"), "sharded: missing"),
    "no files": (None, lambda facts: facts["sharded"].update(files={}), "shard00000.safetensors is no file of it"),
    "a file elsewhere": (
        None,
        lambda facts: facts["sharded"]["files"].update({"../x": {"bytes": 0, "crc32": 0}}),
        r"\.\./x is missing",
    ),
    "a rate that is no number": (
        None,
        lambda facts: facts["sharded"]["param_groups"][0].update(lr=float("nan")),
        "lr: expected a finite number",
    ),
    "no groups": (None, lambda facts: facts["sharded"].update(param_groups=[]), "is not of a model or of AdamW"),
    "no dictionary": (None, lambda facts: facts.clear(), "step: missing"),
}


@pytest.mark.parametrize("what", WITH_RIGHT_CHECKSUMS)
def test_right_checksums_do_not_make_a_wrong_state_right(states, state, what):
    change, change_facts, expected = WITH_RIGHT_CHECKSUMS[what]
    rewritten(state, *filter(None, [change or (lambda tensors: None), change_facts]))
    assert read_or_refuse(state, torch.load(states / "3.truth"))
    with pytest.raises(UserError, match=expected):
        export_sharded(state, state.with_suffix(".state"))


def test_a_state_of_another_model_is_refused_and_nothing_is_filled(state):
    for changes, expected in (
        (dict(vocab_size=8), r"embedding.weight.*expected float32 \[8, 4\], found float32 \[7, 4\]"),
        (dict(n_layers=1), "blocks.1.* is no part of it"),
        (dict(n_layers=3), "blocks.2.* is missing"),
    ):
        model = build_model("gpt", 0, **MODEL | changes)
        optimizer = torch.optim.AdamW(model.parameters())
        weights = [parameter.clone() for parameter in model.parameters()]
        with pytest.raises(UserError, match=f"not a state of this model: .*{expected}"):
            restore_sharded(model, optimizer, state)
        assert not optimizer.state and all(map(torch.equal, weights, model.parameters()))


def reads_of(folder):
    """The three ways in which a sharded state is read."""
    return (
        lambda: restore_sharded(*new(seed=2), folder),
        lambda: export_sharded(folder, folder.with_suffix(".state")),
        lambda: sharded_facts(folder),
    )


class Hostile:
    """An object whose pickle runs a command when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize(
    "name, expected",
    [
        (".metadata", "earlier version"),
        ("facts.pt", "damaged sharded state"),
        ("facts.pt in a zip", "damaged sharded state"),
        ("shard00001.safetensors", "damaged sharded state"),
        ("__0_0.distcp", "no file of it"),
    ],
)
def test_no_code_in_a_state_is_run(state, tmp_path, name, expected):
    """Through the same door as a user's run: a state folder that came from somewhere else."""
    config = load_config(write_config(tmp_path)).with_model("gpt")
    folder = sharded_path(state_path(tmp_path))
    folder.parent.mkdir(parents=True)
    shutil.move(state, folder)
    hostile = Hostile(tmp_path / "marker")
    if name == "facts.pt in a zip":
        torch.save({"step": 3, "config": {}, "sharded": hostile}, folder / "facts.pt")
        pickled = folder / "facts.pt"
    else:
        pickled = folder / name
        pickled.write_bytes(pickle.dumps(hostile))
        pickle.loads(pickled.read_bytes())
        (tmp_path / "marker").unlink()  # it would have worked
    with pytest.raises(UserError, match=f"{expected}.*plain .state"):
        run(config, Request(PROJECT), HERE)
    for read in reads_of(folder):
        with pytest.raises(UserError, match=expected):
            read()
    assert pickled.exists() and not (tmp_path / "marker").exists()


def test_a_folder_that_is_no_state_is_said_to_be_none(tmp_path):
    folder = tmp_path / "toy.sharded"
    assert whole_sharded(tmp_path / "toy.state") is None and whole_sharded(tmp_path / "none" / "toy.state") is None
    with pytest.raises(UserError, match="toy.sharded: not a sharded state"):
        sharded_facts(folder)
    folder.write_text("a user's file")
    with pytest.raises(UserError, match="toy.sharded: not a sharded state"):
        sharded_facts(whole_sharded(tmp_path / "toy.state"))
    folder.unlink()
    folder.mkdir()
    with pytest.raises(UserError, match="toy.sharded: a damaged sharded state .facts.pt is missing.*plain .state"):
        sharded_facts(whole_sharded(tmp_path / "toy.state"))


def test_what_cannot_be_read_is_not_called_damaged(state):
    new(seed=2)  # torch imports some of itself at its first use
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    for read in reads_of(state):
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limit[1]))  # no file can be opened any more
        try:
            with pytest.raises(
                UserError, match="toy.sharded: cannot read the sharded state: .*Too many open files"
            ) as told:
                read()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        assert "damaged" not in str(told.value) and "move" not in str(told.value)
    for allocate in (lambda: torch.empty(1 << 60, dtype=torch.uint8), lambda: bytearray(1 << 62)):
        with pytest.raises(UserError, match="toy.sharded: not enough memory"), sharded.reading(state):
            allocate()
    with (
        pytest.raises(UserError, match="cannot read the sharded state: Input/output error .os error 5"),
        sharded.reading(state),
    ):
        raise sharded.SafetensorError("Input/output error (os error 5)")
    with pytest.raises(RuntimeError, match="a bug of ours"), sharded.reading(state):
        raise RuntimeError("a bug of ours")


def killed_at(operation, work):
    """Do `work` in a process that is killed before its `operation`-th operation on the file system; whether it came to
    that."""
    child = os.fork()
    if child == 0:
        count = 0

        def kill(event, _arguments):
            nonlocal count
            if event in (
                "open",
                "os.rename",
                "os.remove",
                "os.rmdir",
                "os.mkdir",
                "os.chmod",
                "os.listdir",
                "os.scandir",
            ):
                count += 1
                if count == operation:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_save_killed_at_any_instant_leaves_a_whole_state_and_the_next_one_clears_up(tmp_path):
    """A name that is a pattern's, and another run's name that begins alike, beside it. After every second kill a save
    that is not killed."""
    seen = set()
    for parity in (0, 1):
        (tmp_path / str(parity)).mkdir()
        seen |= seen_after_kills(tmp_path / str(parity), parity)
    assert seen == {(0, True), (1, False), (1, True)}, "before the swap, between its two renames, after it"


def seen_after_kills(tmp_path, parity):
    """How many steps were gained, and whether the folder was in its place, after a kill at each operation of a save."""
    path = tmp_path / "lr[3e-4].state"
    folder = sharded_path(path)
    other = tmp_path / ".lr[3e-4].sharded.of_someone.tmp"
    other.write_text("another's")
    model, optimizer, _ = trained(3)

    def save(step):
        with torch.no_grad():
            model.norm.weight.fill_(step)
        save_sharded(facts_of(step), model, optimizer, folder, HERE)

    save(1)
    step, seen, kills = 1, set(), 0
    while killed_at(kills + 1, partial(save, step + 1)):
        kills += 1
        whole = whole_sharded(path)
        found = sharded_facts(whole)["step"]
        assert found in (step, step + 1)
        seen.add((found - step, whole == folder))
        read, read_optimizer = new(seed=3)
        restore_sharded(read, read_optimizer, whole)
        assert (read.norm.weight == found).all()
        if kills % 2 == parity:  # the next save, or another kill on top of what this one left
            save(step := found + 1)
            assert sorted(os.listdir(tmp_path)) == sorted([folder.name, other.name])
        else:
            step = found
    assert kills > 15
    assert sharded_facts(folder)["step"] == step + 1 and sorted(os.listdir(tmp_path)) == sorted(
        [folder.name, other.name]
    )
    return seen


def test_a_full_disk_at_a_save_is_one_line_and_the_state_before_stays(tmp_path):
    folder = tmp_path / "toy.sharded"
    model, optimizer, _ = trained(3)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size, said in [(0, "no sharded state was saved yet")] + [(size, "as it was") for size in (0, 64, 1000, 4000)]:
        before = contents(folder) if folder.exists() else None
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
        try:
            with pytest.raises(
                UserError, match=f"cannot save the sharded state {folder}: .*{said}.*run the same command again$"
            ) as told:
                save_sharded(facts_of(4), model, optimizer, folder, HERE)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert "\n" not in str(told.value) and os.listdir(tmp_path) == ([folder.name] if before else [])
        if before is None:
            save_sharded(facts_of(3), model, optimizer, folder, HERE)
        else:
            assert contents(folder) == before


def test_links_that_somebody_planted_are_not_followed(tmp_path, monkeypatch):
    folder, private = tmp_path / "runs" / "toy.sharded", tmp_path / "private"
    private.mkdir()
    (private / "letter").write_text("private")
    folder.parent.mkdir()
    model, optimizer, _ = trained(3)
    for kind in ("tmp", "previous", f"{'0' * 16}.tmp", f"{'0' * 16}.previous"):
        (folder.parent / f".toy.sharded.{kind}").symlink_to(private)
    (private / "facts.pt").touch()
    assert whole_sharded(folder.with_suffix(".state")) is None
    (private / "facts.pt").unlink()
    folder.symlink_to(private)
    save_sharded(facts_of(3), model, optimizer, folder, HERE)
    assert (
        os.listdir(folder.parent) == ["toy.sharded"] and not folder.is_symlink() and sharded_facts(folder)["step"] == 3
    )
    assert contents(private) == {"letter": b"private"}
    monkeypatch.setattr(
        sharded, "remove_leftovers", lambda folder: None
    )  # planted in the instant after the sweep, the name guessed
    monkeypatch.setattr(sharded.secrets, "token_hex", lambda n: "0" * 2 * n)
    (folder.parent / f".toy.sharded.{'0' * 16}.tmp").symlink_to(private)
    with pytest.raises(UserError, match="File exists"):
        save_sharded(facts_of(4), model, optimizer, folder, HERE)
    assert contents(private) == {"letter": b"private"} and sharded_facts(folder)["step"] == 3


def test_files_of_shards_can_be_read_by_whom_the_folder_lets(states):
    modes = {path.stat().st_mode & 0o777 for path in (states / "3.sharded").glob("shard*")}
    mask = os.umask(0)
    os.umask(mask)
    assert modes == {0o666 & ~mask}


def written_by_hand(folder, tensors, parts):
    """A state of `tensors` {name: rows}, all of the model, as sharded.py describes the format; each divided into files
    of `parts` rows."""
    folder.mkdir()
    files = {}
    for i in range(len(parts[0])):
        path = folder / f"shard{i:05d}.safetensors"
        rows = {
            f"model.{name}": tensor.split(cuts)[i].clone()
            for (name, tensor), cuts in zip(tensors.items(), parts, strict=True)
        }
        save_file(rows, path)
        files[path.name] = {"bytes": path.stat().st_size, "crc32": sharded.crc32_of(path)}
    outlines = {f"model.{name}": tensor.to("meta") for name, tensor in tensors.items()}
    torch.save(
        facts_of(1) | {"sharded": {"files": files, "tensors": outlines, "param_groups": []}}, folder / "facts.pt"
    )


@settings(max_examples=40, deadline=None)
@given(strategies.data())
def test_rows_are_put_together_from_any_division_and_for_any_part(tmp_path_factory, data):
    n_files = data.draw(strategies.integers(1, 4))
    cuts = strategies.lists(strategies.integers(0, 3), min_size=n_files, max_size=n_files)
    parts = data.draw(strategies.lists(cuts, min_size=1, max_size=3))
    dtype = data.draw(strategies.sampled_from([torch.float32, torch.bfloat16, torch.int64]))
    tensors = {f"t{i}": torch.arange(2 * sum(cuts)).reshape(-1, 2).to(dtype) for i, cuts in enumerate(parts)}
    folder = tmp_path_factory.mktemp("hand") / "toy.sharded"
    written_by_hand(folder, tensors, parts)
    export_sharded(folder, folder.with_suffix(".state"))
    assert same(load_state(folder.with_suffix(".state"))["model"], tensors)
    name = data.draw(strategies.sampled_from(sorted(tensors)))
    first = data.draw(strategies.integers(0, len(tensors[name])))
    count = data.draw(strategies.integers(0, len(tensors[name]) - first))
    rows = torch.zeros(count, 2, dtype=dtype)
    sharded.read_rows(folder, sharded.read_facts(folder)[1], {f"model.{name}": (rows, first)})
    assert rows.equal(tensors[name][first : first + count])


def test_an_export_holds_the_state_in_memory_once(tmp_path):
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")
    folder = tmp_path / "toy.sharded"
    tensors = {f"t{i}": torch.ones(1024, 1024) for i in range(16)}
    written_by_hand(folder, tensors, [[512, 512]] * 16)
    size = sum(tensor.nbytes for tensor in tensors.values())
    del tensors

    def kilobytes(entry):
        return int(status.read_text().split(f"{entry}:")[1].split()[0])

    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    before = kilobytes("VmRSS")
    export_sharded(folder, tmp_path / "toy.state")
    assert kilobytes("VmHWM") - before < 1.3 * size / 1024
