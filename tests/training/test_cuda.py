"""What only an NVIDIA GPU shows: bf16 and torch.compile as they are chosen there, TF32, its memory, NCCL.

    python -m pytest -m cuda

They are left out where there is no GPU.
"""

import json

import pytest
import torch
import torch.nn.functional as F

from modules.config import parse_config
from modules.kernels.cross_entropy import loss_and_gradient, mean_loss, token_losses
from modules.kernels.precision import fp32_products, has_tf32
from modules.models import build_model
from modules.models.evaluate import held_out_losses
from modules.system.errors import NO_MEMORY, UserError
from modules.training import graph
from modules.training.checkpoint import load_state
from modules.training.devices import gpus_here
from modules.training.loop import steps
from modules.training.memory import GIB
from modules.training.parallel import Processes
from modules.training.placement import placement_for
from modules.training.resume import files_of
from modules.training.run import Request, data_of, prepare, run
from tests.toy import PROJECT, VOCAB_SIZE, config_dict, metrics_of, run_script, write_config, write_tokens

DEVICE = "cuda:0"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: python -m pytest -m cuda there"),
]
HERE = Processes(0, 1, torch.device(DEVICE))
ON_CPU = Processes(0, 1, torch.device("cpu"))
MODELS = {
    "gpt": {"n_layers": 2, "n_heads": 2, "embed_dim": 64, "attn_length": 16, "dropout": 0.0},
    "rope": {"n_layers": 2, "n_heads": 2, "embed_dim": 64, "attn_length": 16, "dropout": 0.0, "position": "rope"},
    "gru": {"n_layers": 2, "embed_dim": 64, "desired_attn_length": 16},
    "lstm": {"n_layers": 2, "embed_dim": 64, "desired_attn_length": 16},
}


def toy(folder, kind="gpt", **changes):
    """A run of one of MODELS."""
    if not (folder / "toy.h5").exists():
        write_tokens(folder / "toy.h5")
    config = config_dict(folder, **changes) | {"model_params": {"vocab_size": VOCAB_SIZE, **MODELS[kind]}}
    return parse_config(config | {"model": "gpt" if kind == "rope" else kind}, kind)


def trained(config, processes=HERE, steps=40):
    assert run(config.with_training(steps_to_train=steps), Request(PROJECT), processes) == 0
    return load_state(files_of(config, PROJECT).state)


def test_auto_is_bf16_and_compiled_and_trains_as_fp32_does(tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "SMALL_STEP", 0)
    config = toy(tmp_path)
    training = prepare(config, data_of(config, None, HERE), HERE)
    assert training.compiled and training.graph is None and training.pieces == 1
    assert training.precision == ("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32")
    trained(config)
    trained(config.with_name("plain").with_training(precision="fp32", compile=False))
    for one, other in zip(metrics_of(tmp_path, "gpt"), metrics_of(tmp_path, "plain"), strict=True):
        assert abs(one["loss"] - other["loss"]) < 0.05


@pytest.mark.parametrize("kind", ["gpt", "rope"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_as_a_cuda_graph_are_the_steps(tmp_path, kind, precision):
    """With dropout, whose choices a graph has to make anew in each step, a learning rate that changes, and two
    micro-batches a step; stopped and resumed."""
    config = toy(tmp_path, kind, training_params__precision=precision, training_params__aggregate=2)
    dropout = {**config.to_dict()["model_params"], "dropout": 0.1}
    config = parse_config(config.to_dict() | {"model_params": dropout}, "usual")
    training = prepare(config, data_of(config, None, HERE), HERE)
    losses = list(steps(training, 40))
    assert training.graph is not None and training.graph.recorded and not training.compiled
    usual = prepare(config.with_training(compile=False), data_of(config, None, HERE), HERE)
    expected = list(steps(usual, 40))
    assert usual.graph is None
    assert max(abs(one - other) for one, other in zip(losses, expected, strict=True)) < 2e-5
    for one, other in zip(training.model.parameters(), usual.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-4)
    whole = trained(config.with_name("whole"))
    trained(config.with_name("halves"), steps=17)
    halves = trained(config.with_name("halves"))
    (of_whole,), (of_halves,) = (state["optimizer"]["param_groups"] for state in (whole, halves))
    assert of_whole["lr"] == of_halves["lr"] and not of_whole["capturable"]
    for name, weight in whole["model"].items():
        assert torch.allclose(weight, halves["model"][name], atol=2e-4), name


@pytest.mark.parametrize("vocabulary", [64, 1000, 1001])
@pytest.mark.parametrize("pointwise", [loss_and_gradient, torch.compile(loss_and_gradient, dynamic=False)])
def test_the_loss_of_a_padded_vocabulary_is_the_loss(vocabulary, pointwise):
    hidden_ND = torch.randn(300, 64, device=DEVICE, requires_grad=True)
    weight_VD = torch.randn(vocabulary, 64, device=DEVICE, requires_grad=True)
    targets_N = torch.randint(vocabulary, (300,), device=DEVICE)
    expected = F.cross_entropy((hidden_ND.double() @ weight_VD.double().T), targets_N)
    right = torch.autograd.grad(expected, (hidden_ND, weight_VD))
    assert abs(token_losses(hidden_ND, weight_VD, targets_N).mean() - expected) < 1e-4
    for chunk_bytes in (None, 100 * 4 * vocabulary):
        for dtype, off in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
            with torch.autocast("cuda", dtype, enabled=dtype == torch.bfloat16):
                found = mean_loss(hidden_ND, weight_VD, targets_N, pointwise, chunk_bytes)
            assert abs(found - expected) < off * expected
            for one, other in zip(torch.autograd.grad(found, (hidden_ND, weight_VD)), right, strict=True):
                assert (one - other).norm() < off * other.norm()


@pytest.mark.parametrize("kind", MODELS)
def test_fp32_there_is_fp32_on_the_cpu(tmp_path, kind):
    """Evaluated by the same weights, and trained for some steps in TF32."""
    config = toy(tmp_path, kind, training_params__precision="fp32", training_params__compile=False)
    for name, processes in (("gpu", HERE), ("cpu", ON_CPU)):
        trained(config.with_name(name), processes, steps=20)
    for one, other in zip(metrics_of(tmp_path, "gpu"), metrics_of(tmp_path, "cpu"), strict=True):
        assert abs(one["loss"] - other["loss"]) < 5e-3
    model = build_model(config.trained_model, 0, **config.model_arguments)
    model.load_state_dict(load_state(files_of(config.with_name("cpu"), PROJECT).state)["model"])
    held_out = data_of(config, None, ON_CPU).held_out
    here = held_out_losses(model, held_out, 8, torch.device("cpu"))
    there = held_out_losses(model.to(DEVICE), held_out, 8, HERE.device)
    assert abs(here - there).max() < 2e-4, "TF32 would be off by 1e-3"


def test_products_are_in_tf32_where_they_are_asked_to_be_and_nowhere_else():
    if not has_tf32(HERE.device):
        pytest.skip("a GPU before Ampere")
    a, b = torch.randn(512, 512, device=DEVICE), torch.randn(512, 512, device=DEVICE)
    exact = a.double() @ b.double()
    errors = {}
    for tf32 in (True, False):
        with fp32_products(tf32):
            errors[tf32] = (a @ b - exact).abs().max().item()
    assert errors[False] < 1e-3 < errors[True]


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    config = toy(tmp_path, training_params__compile=False)
    whole = trained(config.with_name("whole"))
    trained(config.with_name("halves"), steps=17)
    halves = trained(config.with_name("halves"))
    for name, weight in whole["model"].items():
        assert torch.allclose(weight, halves["model"][name], atol=1e-4), name


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_gpu_of_a_launch_trains_like_one_alone(tmp_path, parallel):
    changes = {"training_params__compile": False, "model_params__dropout": 0.0}
    path = write_config(tmp_path, "shared", training_params__parallel=parallel, **changes)
    done = run_script("train_parallel.py", path, "--nproc", 1, "-d", DEVICE.split(":")[0], "-p", PROJECT)
    assert done.returncode == 0, done.stderr
    alone = write_config(tmp_path, "alone", **changes)
    assert run_script("train_script.py", alone, "-d", DEVICE, "-p", PROJECT).returncode == 0
    for one, other in zip(metrics_of(tmp_path, "shared"), metrics_of(tmp_path, "alone"), strict=True):
        assert abs(one["loss"] - other["loss"]) < 0.02


def test_a_measurement_of_both_directions_side_by_side_on_one_gpu(tmp_path):
    path = write_config(tmp_path)
    done = run_script("measure_arrow.py", path, "--seeds", 2, "--jobs", "auto", "-p", PROJECT, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "training 4 runs, " in done.stderr and "a run (measured)" in done.stderr
    report = json.loads((tmp_path / "runs" / PROJECT / "report" / "arrow.json").read_text())
    assert len(report["comparisons"]) == 1


def test_what_a_run_needs_is_measured_and_fits(tmp_path):
    runs = [toy(tmp_path).with_training(seed=seed).with_name(f"run{seed}") for seed in range(20)]
    plan = placement_for(runs, None, None)
    needs, gpus = plan.needs["run0"], gpus_here(None)
    assert 0.1 * GIB < needs < 4 * GIB and len(gpus) <= plan.at_a_time <= 8 * len(gpus)
    assert plan.at_a_time * needs <= 1.1 * sum(free for _, free in gpus)


def test_too_little_memory_is_told_as_such(tmp_path):
    write_tokens(tmp_path / "toy.h5", 2**16)
    few = {"valid_steps": None, "held_out_tokens": 1024, "valid_batch_size": 1}
    config = toy(tmp_path).with_training(batch_size=2**15, stride=1, compile=False, **few)
    held = torch.empty(int(torch.cuda.mem_get_info(DEVICE)[0] - GIB // 2), dtype=torch.uint8, device=DEVICE)
    with pytest.raises(UserError) as caught:
        run(config, Request(PROJECT), HERE)
    del held
    assert NO_MEMORY.search(str(caught.value)) and "smaller batch_size" in str(caught.value)
