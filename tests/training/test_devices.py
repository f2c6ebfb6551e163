"""Which devices there are to train on."""

import pytest
import torch

from modules.system.errors import UserError
from modules.training.devices import pick_device


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
