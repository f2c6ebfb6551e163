"""A step is the same windows, whatever number of processes and pieces it is divided over."""

import contextlib
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.config import load_config
from modules.data.orders import READ_FORWARD
from modules.data.token_file import open_tokens
from modules.data.windows import Windows, step_order
from modules.training import batches
from modules.training.parallel import Processes
from tests.toy import write_config, write_tokens

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    write_tokens(folder / "toy.h5")
    return folder


def config_of(folder, batch_size: int, aggregate: int = 1):
    return load_config(
        write_config(folder, training_params__batch_size=batch_size, training_params__aggregate=aggregate)
    ).with_model("gpt")


@settings(max_examples=60, deadline=None)
@given(
    batch_size=st.integers(1, 40),
    count=st.integers(1, 5),
    aggregate=st.integers(1, 3),
    piece_tokens=st.integers(1, 700),
    step=st.integers(0, 400),
)
def test_all_parts_of_a_step_together_are_its_windows(folder, batch_size, count, aggregate, piece_tokens, step):
    count = min(count, batch_size)
    config = config_of(folder, batch_size, aggregate)
    windows = Windows(open_tokens(folder / "toy.h5"), 0, 3000, 16, 16, READ_FORWARD)
    processes = [Processes(rank, count, CPU) for rank in range(count)]
    parts = []
    (pieces,) = {batches.pieces_of_a_batch(config, one, piece_tokens) for one in processes}
    for one in processes:
        with contextlib.closing(batches.training_batches(windows, config, one, step, pieces)) as upcoming:
            parts += [targets for _, targets in itertools.islice(upcoming, aggregate * pieces)]
    expected = windows.batch(step_order(step, batch_size * aggregate, len(windows), config.training_params.seed))[1]
    assert sorted(torch.cat(parts).tolist()) == sorted(expected.tolist())
    assert all(1 <= len(part) <= max(2, -(-piece_tokens // 16)) for part in parts), (
        "none is empty, none larger than asked"
    )


def test_a_gpu_gets_its_batch_whole_and_a_cpu_what_fits(folder):
    config = config_of(folder, batch_size=5000)  # 80,000 tokens of width 32
    assert batches.pieces_of_a_batch(config, Processes(0, 1, GPU)) == 1
    assert batches.pieces_of_a_batch(config, Processes(0, 1, CPU)) == 4
    assert batches.pieces_of_a_batch(config, Processes(1, 2, CPU)) == 2
    assert batches.pieces_of_a_batch(config_of(folder, batch_size=250), Processes(0, 1, CPU)) == 1
