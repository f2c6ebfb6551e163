"""Which devices there are to train on."""

import contextlib

import pytest
import torch

from modules.config import load_config
from modules.system.errors import UserError
from modules.training.devices import compiles, first_device, pick_device
from modules.training.graph import pick_graph
from modules.training.loop import finite_mean
from modules.training.parallel import Processes
from modules.training.run import data_of, prepare
from tests.toy import write_config


@pytest.mark.parametrize(
    "name",
    [
        "",
        "meta",
        "cpu:5",
        "cpu:-1",
        "cuda:-1",
        "cuda:99",
        "cuda:x",
        "mps:7",
        "xla",
        "xla:0",
        "hpu",
        "gpu",
        "cpu cpu",
        "\N{GREEK SMALL LETTER ALPHA}",
        "c" * 10_000,
    ],
)
def test_a_device_that_cannot_train_is_refused_in_one_line(name):
    with pytest.raises(UserError, match="no device '.* here; there is .*cpu") as caught:
        pick_device(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_gpu_that_is_not_there_says_why():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match="this torch sees no GPU"):
        pick_device("cuda")


def test_the_cpu_has_one_name():
    assert str(pick_device("cpu")) == str(pick_device("cpu:0")) == "cpu"


@pytest.mark.parametrize(
    "accelerator, expected", [(None, "cpu"), ("cuda", "cuda:0"), ("mps", "mps:0"), ("xpu", "cpu"), ("hpu", "cpu")]
)
def test_the_first_gpu_is_chosen_apples_too(accelerator, expected):
    assert str(first_device(accelerator and torch.device(accelerator))) == expected


@pytest.mark.parametrize(
    "device, changes, expected",
    [
        ("cuda:0", {}, True),
        ("cuda:0", {"training_params__parallel": "fsdp"}, False),
        ("cuda:0", {"training_params__compile": True}, True),
        ("cuda:0", {"training_params__compile": False}, False),
        ("cuda:0", {"training_params__checkpoint_activations": True}, False),
        ("cuda:0", {"training_params__batch_size": 10**6}, False),  # no longer small
        ("cuda:0", {"training_params__aggregate": 10**5}, False),
        ("cpu", {}, False),
        ("mps:0", {}, False),
    ],
)
def test_small_steps_are_a_cuda_graph_on_an_nvidia_gpu(tmp_path, device, changes, expected):
    config = load_config(write_config(tmp_path, **changes)).with_model("gpt")
    assert pick_graph(config, Processes(0, 1, torch.device(device)), pays=True) == expected
    assert not pick_graph(config, Processes(0, 1, torch.device(device)), pays=False)
    assert not pick_graph(config, Processes(0, 2, torch.device(device)), pays=True)


class Broken(torch.nn.Module):
    """A model that fails as it is compiled."""

    def __init__(self, error: Exception):
        super().__init__()
        self.error = error

    def compile_parts(self):
        pass

    def loss(self, inputs_BT, targets_BT):
        raise self.error


def test_a_compiler_that_fails_is_told_of_and_too_little_memory_is_another_matter(capsys, monkeypatch):
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # which it sets, put back afterwards
    inputs = torch.zeros(1, 2, dtype=torch.int64)
    assert not compiles(Broken(RuntimeError("no C++ compiler")), inputs, inputs, contextlib.nullcontext)
    assert "torch.compile does not work here" in capsys.readouterr().err
    with pytest.raises(torch.OutOfMemoryError):
        compiles(Broken(torch.OutOfMemoryError("8 GiB")), inputs, inputs, contextlib.nullcontext)


class OnMps(torch.Tensor):
    """A tensor as on Apple's GPU: it has no fp64 until it has come to the CPU."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        out = super().__torch_function__(function, types, args, kwargs or {})
        if function is torch.Tensor.cpu:
            return out.as_subclass(torch.Tensor)
        assert not isinstance(out, torch.Tensor) or out.dtype != torch.float64, "mps has no float64"
        return out


def test_losses_on_apples_gpu_are_logged(tmp_path):
    with pytest.raises(AssertionError, match="no float64"):
        torch.ones(2).as_subclass(OnMps).double()
    config = load_config(write_config(tmp_path)).with_model("gpt")
    here = Processes(0, 1, torch.device("cpu"))
    training = prepare(config, data_of(config, None, here), here)
    training.unlogged = [torch.tensor(loss).as_subclass(OnMps) for loss in (2.0, 3.0)]
    assert finite_mean(training) == 2.5
