"""Runs on a device that is no CPU, as far as they go without one: what is where, what is copied, no float64 (Apple's
GPUs have none), a batch in one piece, the chunks of a GPU. The numbers are the CPU's: tests/emulated.py."""

import json
import os
import subprocess
import sys

import pytest
import torch

from modules.config import load_config
from modules.kernels import attention, cross_entropy, dropout, linear, products, rotary
from modules.training import run as training_run
from modules.training.batches import pieces_of_a_batch
from modules.training.parallel import Processes
from modules.training.run import Request, run
from tests.toy import PROJECT, ROOT, config_dict, metrics_of, write_config, write_tokens

HERE = Processes(0, 1, torch.device("cpu"))

SCRIPT = """
import json, sys
from pathlib import Path
from unittest import mock
import numpy as np, torch
from modules.config import parse_config
from modules.kernels.cross_entropy import CHUNK_BYTES, chunk_bytes_on
from modules.measurement.measure import Wish, measured_states
from modules.models.evaluate import snippet
from modules.training.checkpoint import load_state
from modules.training.parallel import Processes
from modules.training.resume import files_of
from modules.training.run import Request, data_of, prepare, run
from tests import emulated

folder = Path(sys.argv[1])
config = json.loads((folder / "config.json").read_text())
cpu, gpu = Processes(0, 1, torch.device("cpu")), Processes(0, 1, emulated.become_available())

def train(name, here, steps=None, **changes):
    one = parse_config(config, name).with_model("gpt").with_training(**changes)
    for last in steps or [8]:
        assert run(one.with_training(steps_to_train=last), Request("p"), here) == 0
    return load_state(files_of(one, "p").state)

def difference(one, other):
    return max(float((one["model"][key] - other["model"][key]).abs().max()) for key in one["model"])

found = {}
with emulated.Device(), mock.patch("modules.training.recording.draw_loss"):  # pictures take longer than all the rest
    for kind in (torch.ones(2).to(gpu.device).double, lambda: torch.ones(2, dtype=torch.float64).to(gpu.device)):
        try:
            kind()
        except AssertionError as error:
            found["float64"] = str(error)
    prepared = prepare(parse_config(config, "x").with_model("gpt"), data_of(parse_config(config, "x"), None, gpu), gpu)
    assert {type(each.data) for each in prepared.model.parameters()} == {emulated.OnDevice}
    found |= {"pieces": prepared.pieces, "compiled": prepared.compiled, "precision": prepared.precision}
    found["chunk"] = chunk_bytes_on(gpu.device) == CHUNK_BYTES["cuda"] != CHUNK_BYTES["cpu"]
    whole = train("whole", gpu)
    found["resumed"] = difference(whole, train("resumed", gpu, [5, 8]))
    train("back", gpu, backwards=True)
    states = [folder / "runs" / "p" / "state" / f"{name}.state" for name in ("whole", "back")]
    (on_gpu,) = measured_states(states, gpu.device, Wish())
    for order in ("even_odd", "both", "random:1"):
        found[order] = difference(train(f"{order} gpu", gpu, order=order), train(f"{order} cpu", cpu, order=order))
    config["model_params"] |= {"position": "rope"}
    found["rope"] = difference(train("rope gpu", gpu), train("rope cpu", cpu))
    config["model_params"] |= {"position": "learned"}
    model, held_out = prepared.model, prepared.held_out
    words = mock.Mock(detokenize=lambda ids: " ".join(map(str, ids.tolist())))
    # Of a generator there is no emulation: the draws are the CPU's.
    with mock.patch.object(torch, "Generator", lambda device, real=torch.Generator: real("cpu")):
        found["snippet"] = len(snippet(model, held_out, words, 9, 0, gpu.device).split())
    found["forward"] = difference(whole, train("on the cpu", cpu))
(on_cpu,) = measured_states(states, cpu.device, Wish())
found["measured"] = abs(on_gpu.comparison.arrow.nats.value - on_cpu.comparison.arrow.nats.value)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the script found in a process of its own: torch knows the device for as long as that lives."""
    folder = tmp_path_factory.mktemp("emulated")
    write_tokens(folder / "toy.h5")
    small = {"model_params__dropout": 0.0, "training_params__save_every": 50, "training_params__backup_every": 50}
    config = config_dict(folder, **small, training_params__aggregate=2, training_params__valid_steps=1)
    (folder / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder], cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_float64_tensor_on_the_device_would_be_found(found):
    assert found["float64"] == "a float64 tensor on the device"


def test_a_batch_goes_through_whole_in_the_chunks_of_a_gpu(found):
    assert found["pieces"] == 1 and found["chunk"] and found["precision"] == "fp32" and not found["compiled"]


@pytest.mark.parametrize("run", ["forward", "even_odd", "both", "random:1", "rope"])
def test_training_there_is_training_here(found, run):
    assert found[run] < 1e-4


def test_a_run_goes_on_there_to_the_same_bits(found):
    assert found["resumed"] == 0.0


def test_what_is_measured_there_is_what_is_measured_here(found):
    assert found["measured"] < 1e-6 and found["snippet"] == 9


# What a GPU is given, given to the CPU
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def as_a_gpu_does(monkeypatch):
    """A batch in one piece, logits in a GPU's chunks and buffer, torch's own kernels, and AdamW that is not fused."""
    monkeypatch.setitem(cross_entropy.CHUNK_BYTES, "cpu", cross_entropy.CHUNK_BYTES["cuda"])
    monkeypatch.setitem(cross_entropy.ROWS_MULTIPLE, "cpu", 48)  # of the toy's 64 ids
    monkeypatch.setattr(cross_entropy, "CPU_CACHE_BYTES", 1 << 40)
    monkeypatch.setattr(training_run, "pieces_of_a_batch", lambda config, processes: 1)
    for module in (attention, dropout, linear, products, rotary):
        monkeypatch.setattr(module, "eager_on_cpu", lambda tensor: False)
    usual = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, **named: usual(*args, **named | {"fused": False}))


def losses(folder, name, **changes):
    """Of a run of 8 steps, whose batches a CPU takes in two pieces; all that its log has."""
    changes = {
        "model_params__dropout": 0.0,
        "training_params__batch_size": 1600,
        "training_params__held_out_tokens": 1024,
    } | changes
    config = load_config(write_config(folder, name, training_params__steps_to_train=8, **changes)).with_model("gpt")
    assert pieces_of_a_batch(config, HERE) == 2
    assert run(config, Request(PROJECT), HERE) == 0
    return [entry["loss"] for entry in metrics_of(folder, name)]


def test_the_ways_of_a_gpu_give_the_losses_of_a_cpu(tmp_path, request):
    usual = losses(tmp_path, "usual")
    request.getfixturevalue("as_a_gpu_does")
    assert losses(tmp_path, "gpu") == pytest.approx(usual, abs=1e-4)


@pytest.mark.slow
def test_compiled_and_in_bf16_they_do_too(tmp_path, request):
    usual = losses(tmp_path, "usual")
    request.getfixturevalue("as_a_gpu_does")
    compiled = {"training_params__compile": True, "training_params__precision": "bf16"}
    assert losses(tmp_path, "gpu", **compiled) == pytest.approx(usual, abs=0.05)
