"""The training engine: exact under kills, aggregation, direction and number of processes; and what it leaves on
disk."""

import json
import os
import random
import signal
import time

import numpy as np
import pytest
import torch

from modules.config import load_config
from modules.system.errors import UserError
from modules.training import batches
from modules.training.checkpoint import backups_of, load_state
from modules.training.loop import batches_of, steps
from modules.training.parallel import Processes
from modules.training.run import Request, data_of, prepare, run
from modules.training.schedule import lr_at
from tests.processes import children_of, is_running
from tests.toy import PROJECT, config_dict, metrics_of, run_script, start_script, state_path, write_config

HERE = Processes(0, 1, torch.device("cpu"))


def prepared(config):
    return prepare(config, data_of(config, None, HERE), HERE)


def train(folder, name="toy", **changes):
    """Train in this process; the run's state."""
    request = Request(
        PROJECT,
        cooldown=changes.pop("cooldown", None),
        more_steps=changes.pop("more_steps", False),
        accept_changes=changes.pop("accept_changes", False),
    )
    config = load_config(write_config(folder, name, **changes)).with_model("gpt")
    assert run(config, request, HERE) == 0
    return load_state(state_path(folder, name))


def same_weights(a, b):
    return a["model"].keys() == b["model"].keys() and all(
        torch.equal(a["model"][key], b["model"][key]) for key in a["model"]
    )


def closeness(a, b):
    return max((a["model"][key] - b["model"][key]).abs().max().item() for key in a["model"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed: its folder and its state."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder)


def test_a_run_leaves_state_backups_metrics_and_a_picture(whole):
    folder, state = whole
    assert state["step"] == 40 and state["tokens"] == 40 * 16 * 16 and state["config"]["training_params"]["seed"] == 0
    assert set(state["model"]) == set(prepared(load_config(folder / "toy.json").with_model("gpt")).model.state_dict())
    assert [path.name for path in backups_of(state_path(folder))] == [
        "toy_step000000040.state",
        "toy_step000000020.state",
    ]
    assert load_state(backups_of(state_path(folder))[1])["step"] == 20
    picture = folder / "runs" / PROJECT / "metrics" / "toy.png"
    assert picture.read_bytes().startswith(b"\x89PNG")

    entries = metrics_of(folder)
    assert [entry["step"] for entry in entries if entry["split"] == "train"] == list(range(5, 41, 5))
    assert [entry["step"] for entry in entries if entry["split"] == "valid"] == [10, 20, 30, 40]
    assert all(set(entry) == {"step", "split", "loss", "lr", "tokens", "tokens_per_s"} for entry in entries)
    optim = load_config(folder / "toy.json").optim_params
    assert all(
        entry["lr"] == lr_at(entry["step"] - 1, optim) and entry["tokens"] == entry["step"] * 256 for entry in entries
    )
    assert entries[-1]["loss"] < entries[0]["loss"] - 0.1, "it learns"


def test_the_logged_losses_are_those_of_a_loop_written_out(whole, tmp_path):
    """The engine against the plainest possible loop: same windows, torch's own loss, optimizer and clipping."""
    folder, state = whole
    config = load_config(write_config(tmp_path, model_params__dropout=0.0, training_params__aggregate=2)).with_model(
        "gpt"
    )
    run(config, Request(PROJECT), HERE)
    training = prepared(config)
    model, optimizer = training.model, torch.optim.AdamW(training.model.parameters(), weight_decay=0.01)
    from modules.data.windows import step_order

    losses = []
    for step in range(40):
        inputs, targets = training.windows.batch(step_order(step, 32, len(training.windows), 0))
        loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, config.optim_params)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    logged = [entry["loss"] for entry in metrics_of(tmp_path) if entry["split"] == "train"]
    np.testing.assert_allclose(logged, np.mean(np.reshape(losses, (-1, 5)), axis=1), atol=2e-5)
    inputs, targets = training.held_out.batch(np.arange(len(training.held_out)))
    with torch.no_grad():
        held_out = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()
    assert abs(held_out - metrics_of(tmp_path)[-1]["loss"]) < 1e-4


def test_killed_at_random_moments_it_ends_with_the_same_bits(whole, tmp_path):
    """Real processes, real SIGKILLs, dropout on."""
    config = write_config(tmp_path, training_params__save_every=3)
    moments = random.Random(0)
    arguments = ("train_script.py", config, "-d", "cpu", "-p", PROJECT)
    seen = set()
    for _ in range(5):
        process = start_script(*arguments)
        before = state_path(tmp_path).stat().st_mtime_ns if state_path(tmp_path).exists() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:  # until it has made some progress of its own
            if state_path(tmp_path).exists() and state_path(tmp_path).stat().st_mtime_ns != before:
                break
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.communicate()
        seen.add(load_state(state_path(tmp_path))["step"])
    finished = run_script(*arguments)
    assert finished.returncode == 0, finished.stderr
    assert len(seen) > 1, "it was killed at different steps"
    assert same_weights(load_state(state_path(tmp_path)), whole[1])

    def losses(folder, split):
        return {entry["step"]: entry["loss"] for entry in metrics_of(folder) if entry["split"] == split}

    assert losses(tmp_path, "train") == losses(whole[0], "train"), "and the curve shows no seam"
    assert [entry["step"] for entry in metrics_of(tmp_path)] == sorted(entry["step"] for entry in metrics_of(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_and_says_where(whole, tmp_path, number):
    config = write_config(
        tmp_path,
        training_params__steps_to_train=100_000,
        training_params__save_every=50_000,
        training_params__backup_every=50_000,
    )
    process = start_script("train_script.py", config, "-d", "cpu", "-p", PROJECT)
    metrics = tmp_path / "runs" / PROJECT / "metrics" / "toy.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    step = load_state(state_path(tmp_path))["step"]
    assert process.returncode == (-number if number == signal.SIGINT else 128 + number)  # a shell has 130 for both
    assert f"stopped by {number.name} at step {step:,}, saved in" in output
    assert step >= 5
    state = train(tmp_path, training_params__steps_to_train=step + 3, training_params__save_every=50_000)
    assert state["step"] == step + 3


def test_more_steps_continue_where_up_to_steps_is_done(whole, tmp_path):
    first = train(tmp_path, training_params__steps_to_train=20)
    assert train(tmp_path, training_params__steps_to_train=20)["saved_at"] == first["saved_at"], "nothing to do"
    more = train(tmp_path, training_params__steps_to_train=20, more_steps=True)
    assert more["step"] == 40 and same_weights(more, whole[1])


def test_null_steps_train_one_epoch(tmp_path):
    state = train(tmp_path, training_params__steps_to_train=None, training_params__stride=300)
    windows = (60_000 - 2 * 16 * 16 - 16) // 300 + 1
    assert state["step"] == windows // 16


def test_aggregated_micro_batches_are_one_large_batch(tmp_path):
    options = dict(model_params__dropout=0.0, training_params__steps_to_train=10)
    large = train(tmp_path, "large", training_params__batch_size=24, **options)
    small = train(tmp_path, "small", training_params__batch_size=8, training_params__aggregate=3, **options)
    assert closeness(large, small) < 1e-5
    assert abs(metrics_of(tmp_path, "large")[-1]["loss"] - metrics_of(tmp_path, "small")[-1]["loss"]) < 1e-5


def test_pieces_of_a_batch_are_the_whole_batch(tmp_path):
    """24 windows of 16 tokens in five pieces, which do not divide it."""
    options = dict(
        model_params__dropout=0.0,
        training_params__batch_size=24,
        training_params__aggregate=2,
        training_params__steps_to_train=10,
    )
    whole, parts = (prepared(load_config(write_config(tmp_path, **options)).with_model("gpt")) for _ in range(2))
    parts.pieces = batches.pieces_of_a_batch(parts.config, HERE, most_tokens=80)
    assert (whole.pieces, parts.pieces) == (1, 5)
    losses = [[loss.item() for loss in steps(training, 10)] for training in (whole, parts)]
    np.testing.assert_allclose(*losses, atol=1e-5)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_directions_share_weights_windows_and_order(tmp_path):
    trainings = [
        prepared(load_config(write_config(tmp_path, training_params__backwards=backwards)).with_model("gpt"))
        for backwards in (False, True)
    ]
    forward, backward = trainings
    assert all(torch.equal(a, b) for a, b in zip(forward.model.parameters(), backward.model.parameters(), strict=True))
    both = [batches_of(training) for training in trainings]
    for _ in range(30):
        (_, forward_targets), (_, backward_targets) = map(next, both)
        assert forward_targets.equal(backward_targets.flip(1))
    assert np.array_equal(forward.held_out.batch([0, 5])[1], backward.held_out.batch([0, 5])[1].flip(1))


@pytest.mark.parametrize(
    "how, counts, batch_size", [("ddp", (2, 4), 16), ("fsdp", (2,), 16), ("ddp", (4,), 7), ("fsdp", (2,), 5)]
)
def test_one_config_is_one_run_on_any_number_of_processes(tmp_path, how, counts, batch_size):
    """Also where the number of processes does not divide the batch."""
    options = dict(
        model_params__dropout=0.0,
        training_params__steps_to_train=15,
        training_params__aggregate=2,
        training_params__batch_size=batch_size,
    )
    alone = train(tmp_path, "alone", **options)
    for count in counts:
        config = write_config(tmp_path, f"on{count}", training_params__parallel=how, **options)
        done = run_script("train_parallel.py", config, "--nproc", count, "-d", "cpu", "-p", PROJECT)
        assert done.returncode == 0, done.stderr
        together = load_state(state_path(tmp_path, f"on{count}"))
        assert closeness(alone, together) < 1e-4
        for mine, theirs in zip(metrics_of(tmp_path, "alone"), metrics_of(tmp_path, f"on{count}"), strict=True):
            assert mine["step"] == theirs["step"] and abs(mine["loss"] - theirs["loss"]) < 1e-4


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_processes_with_unequal_shares_compute_in_equally_many_pieces(tmp_path, how):
    """25 and 24 windows of 64 tokens at width 512: the one share is just over what goes through at once, the other is
    not."""
    options = dict(
        model_params__dropout=0.0,
        model_params__embed_dim=512,
        model_params__attn_length=64,
        model_params__n_layers=1,
        training_params__batch_size=49,
        training_params__valid_batch_size=16,
        training_params__valid_steps=2,
        training_params__steps_to_train=3,
        training_params__precision="fp32",
        training_params__step_log=1,
    )
    train(tmp_path, "alone", **options)
    config = write_config(tmp_path, "two", training_params__parallel=how, **options)
    done = run_script("train_parallel.py", config, "--nproc", 2, "-d", "cpu", "-p", PROJECT)
    assert done.returncode == 0, done.stderr
    losses = [[entry["loss"] for entry in metrics_of(tmp_path, name)] for name in ("alone", "two")]
    np.testing.assert_allclose(*losses, atol=1e-4)


def test_a_run_on_many_goes_on_with_one_and_back(tmp_path):
    """Sharded over two processes, then alone, then copied on two: the curve of a run that was alone throughout."""
    options = dict(model_params__dropout=0.0, training_params__save_every=10)
    alone = train(tmp_path, "alone", **options, training_params__steps_to_train=30)

    def together(how, steps):
        config = write_config(
            tmp_path, "moved", **options, training_params__parallel=how, training_params__steps_to_train=steps
        )
        done = run_script("train_parallel.py", config, "--nproc", 2, "-d", "cpu", "-p", PROJECT)
        assert done.returncode == 0, done.stderr

    together("fsdp", 10)
    exported = load_state(state_path(tmp_path, "moved"))
    state_path(tmp_path, "moved").unlink()  # now only the shards are left
    moved = train(tmp_path, "moved", **options, training_params__steps_to_train=20)
    assert exported["step"] == 10 and moved["step"] == 20
    together("ddp", 30)
    assert closeness(alone, load_state(state_path(tmp_path, "moved"))) < 1e-4


def test_one_failing_process_ends_all_and_the_state_stays(tmp_path):
    before = train(tmp_path, training_params__steps_to_train=20)
    config = write_config(tmp_path, training_params__steps_to_train=100_000)
    process = start_script("train_parallel.py", config, "--nproc", "2", "-d", "cpu", "-p", PROJECT)
    children = children_of(process.pid, at_least=2)
    time.sleep(3)
    os.kill(children[1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not any(is_running(child) for child in children)
    assert load_state(state_path(tmp_path))["step"] >= before["step"], "a whole state"


def test_a_cool_down_falls_to_zero_and_keeps_what_was_before(tmp_path):
    train(tmp_path, training_params__steps_to_train=10, training_params__backup_every=1000)
    cooled = train(tmp_path, cooldown=8, training_params__steps_to_train=1000, training_params__step_log=1)
    assert cooled["step"] == 18
    rates = [entry["lr"] for entry in metrics_of(tmp_path) if entry["split"] == "train" and entry["step"] > 10]
    start = lr_at(10, load_config(tmp_path / "toy.json").optim_params)
    np.testing.assert_allclose(rates, [start * (1 - i / 8) for i in range(8)])
    assert [load_state(path)["step"] for path in backups_of(state_path(tmp_path))] == [10]
    configured = train(
        tmp_path,
        "config",
        optim_params__cooldown_start=10,
        optim_params__cooldown_steps=8,
        training_params__steps_to_train=1000,
    )
    assert same_weights(cooled, configured)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    train(tmp_path, training_params__steps_to_train=10)
    before = state_path(tmp_path).read_bytes()
    with pytest.raises(UserError, match=r"training loss is (nan|inf) at step 1\d .*the last good state.*stays"):
        train(tmp_path, optim_params__lr=1e30, optim_params__lr_min=1e30, accept_changes=True)
    assert state_path(tmp_path).read_bytes() == before


def test_a_damaged_state_is_named_and_the_backup_offered(tmp_path):
    train(tmp_path)
    backup = backups_of(state_path(tmp_path))[0]
    whole = state_path(tmp_path).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[: len(whole) // 2], b"", b"junk" * 1000, bytes(flipped)):
        state_path(tmp_path).write_bytes(damaged)
        with pytest.raises(
            UserError, match=f"toy.state: a truncated or damaged state.*whole backup is of step 40.*{backup.name}"
        ):
            train(tmp_path, training_params__steps_to_train=50)
        assert state_path(tmp_path).read_bytes() == damaged, "nothing of the user's is touched"
    backup.write_bytes(whole[:100])
    with pytest.raises(UserError, match="whole backup is of step 20"):
        train(tmp_path, training_params__steps_to_train=50)


@pytest.mark.parametrize(
    "changes, expected",
    [
        (dict(model_params__embed_dim=64), r"model_params.embed_dim 32 there and 64 in the config"),
        (dict(training_params__backwards=True), r"training_params.order forward there and backward"),
        (dict(training_params__seed=5), r"training_params.seed 0 there and 5"),
        (dict(training_params__batch_size=32), r"batch_size x aggregate 16 there and 32"),
    ],
)
def test_a_state_of_another_run_is_refused(whole, changes, expected):
    before = state_path(whole[0]).read_bytes()
    with pytest.raises(UserError, match=expected):
        train(whole[0], training_params__steps_to_train=60, **changes)
    assert state_path(whole[0]).read_bytes() == before


def test_a_full_disk_at_a_save_is_one_clear_line_and_the_state_before_stays(tmp_path):
    train(tmp_path, training_params__steps_to_train=10)
    before = state_path(tmp_path).read_bytes()
    config = write_config(tmp_path, training_params__steps_to_train=60)
    limit = len(before) // 2 // 1024  # a file may not grow beyond half a state: writing one fails as on a full disk
    import subprocess

    from toy import command

    line = " ".join(command("train_script.py", config, "-d", "cpu", "-p", PROJECT))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f {limit}; exec {line}"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "cannot save the state" in done.stderr.splitlines()[-1] and "as it was" in done.stderr.splitlines()[-1]
    assert state_path(tmp_path).read_bytes() == before
    assert not list(state_path(tmp_path).parent.glob("*.tmp"))


def test_two_processes_cannot_train_the_same_run(tmp_path):
    import fcntl

    train(tmp_path)
    with open(state_path(tmp_path).with_suffix(".lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is training this run"):
            train(tmp_path, training_params__steps_to_train=50)


def test_bf16_trains_close_to_fp32(whole, tmp_path):
    train(tmp_path, training_params__precision="bf16")
    assert abs(metrics_of(tmp_path)[-1]["loss"] - metrics_of(whole[0])[-1]["loss"]) < 0.05


@pytest.mark.slow
def test_compiled_training_gives_the_same_curve(whole, tmp_path):
    train(tmp_path, training_params__compile=True, model_params__dropout=0.0)
    train(tmp_path, "eager", training_params__compile=False, model_params__dropout=0.0)
    for compiled, eager in zip(metrics_of(tmp_path), metrics_of(tmp_path, "eager"), strict=True):
        assert abs(compiled["loss"] - eager["loss"]) < 1e-4


def test_a_dry_run_tells_and_leaves_nothing(tmp_path):
    done = run_script("train_script.py", write_config(tmp_path), "-d", "cpu", "--dry_run", "-p", PROJECT)
    assert done.returncode == 0, done.stderr
    for word in ("parameters", "one step", "16 windows, 256 tokens", "one epoch", "memory", "expected time"):
        assert word in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("script, model", [("train_gru.py", "gru"), ("train_lstm.py", "lstm")])
def test_recurrent_models_train(tmp_path, script, model):
    config = config_dict(tmp_path, training_params__steps_to_train=30)
    config["model_params"] = {
        "vocab_size": 64,
        "n_layers": 1,
        "embed_dim": 32,
        "desired_attn_length": 16,
        "dropout": 0.0,
        "embd_dropout": 0.05,
    }
    write_config(tmp_path)
    (tmp_path / "toy.json").write_text(json.dumps(config))
    done = run_script(script, tmp_path / "toy.json", "-d", "cpu", "-p", PROJECT)
    assert done.returncode == 0, done.stderr
    assert load_state(state_path(tmp_path))["config"]["model"] == model
    losses = [entry["loss"] for entry in metrics_of(tmp_path)]
    assert losses[-1] < losses[0]
