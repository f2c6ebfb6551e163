"""A model that does not fit is refused before it is built."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.config import parse_config
from modules.models import build_model, count_parameters
from modules.system.errors import UserError
from modules.training.memory import available_memory, check_memory, machine_memory
from modules.training.parallel import Processes
from tests.system.test_processes import groups
from tests.toy import config_dict, run_script, write_config

HERE = Processes(0, 1, torch.device("cpu"))
GIB = 2**30


@settings(deadline=None)  # torch imports much at the first
@given(
    name=st.sampled_from(["gpt", "gru", "lstm"]),
    layers=st.integers(1, 4),
    width=st.integers(1, 9),
    vocabulary=st.integers(2, 40),
    context=st.integers(2, 20),
    ratio=st.floats(1, 5),
)
def test_parameters_are_counted_as_they_are_built(name, layers, width, vocabulary, context, ratio):
    params = {"vocab_size": vocabulary, "n_layers": layers, "embed_dim": width}
    params |= (
        {"n_heads": 1, "attn_length": context, "mlp_ratio": ratio}
        if name == "gpt"
        else {"desired_attn_length": context}
    )
    assert count_parameters(name, **params) == sum(
        parameter.numel() for parameter in build_model(name, 0, **params).parameters()
    )


@pytest.mark.parametrize(
    "membership, files, expected",
    [
        ("0::/\n", {"memory_max": f"{GIB}\n", "memory.swap_max": "0\n"}, GIB),
        ("0::/\n", {"memory_max": f"{GIB}\n", "memory.swap_max": f"{GIB // 2}\n"}, 1.5 * GIB),
        ("0::/a\n", {"a__memory_max": "max\n", "memory_max": f"{GIB}\n"}, 3 * GIB),  # 2 GiB of swap, without a limit
        (
            "5:memory:/docker/1\n",
            {"memory__memory.limit_in_bytes": f"{GIB}\n", "memory__memory.memsw.limit_in_bytes": f"{GIB}\n"},
            GIB,
        ),
        ("5:memory:/docker/1\n", {"memory__memory.limit_in_bytes": f"{GIB}\n"}, 3 * GIB),
    ],
)
def test_a_containers_limit_counts(tmp_path, membership, files, expected):
    groups(tmp_path, membership, **files)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1 kB\nSwapTotal:       2097152 kB\n")
    assert machine_memory(tmp_path) == expected


@pytest.mark.parametrize(
    "membership, files, expected",
    [
        ("", {}, 3 * GIB),  # what the machine has free
        ("0::/\n", {"memory_max": f"{2 * GIB}\n", "memory.current": f"{GIB}\n", "memory.stat": "anon 5\n"}, GIB),
        (  # files that were read count as the group's, and go where memory is asked for
            "0::/\n",
            {
                "memory_max": f"{2 * GIB}\n",
                "memory.current": f"{GIB}\n",
                "memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
            },
            1.5 * GIB,
        ),
        ("0::/\n", {"memory_max": f"{GIB}\n", "memory.current": f"{2 * GIB}\n", "memory.stat": ""}, 0),
        ("0::/\n", {"memory_max": "max\n", "memory.current": f"{GIB}\n", "memory.stat": ""}, 3 * GIB),
        (
            "5:memory:/docker/1\n",
            {
                "memory__memory.limit_in_bytes": f"{2 * GIB}\n",
                "memory__memory.usage_in_bytes": f"{GIB}\n",
                "memory__memory.stat": f"total_inactive_file {GIB // 4}\ninactive_file 0\n",
            },
            1.25 * GIB,
        ),
    ],
)
def test_what_is_free_is_the_machines_or_what_a_container_has_left(tmp_path, monkeypatch, membership, files, expected):
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2**20, "SC_PAGE_SIZE": 2**14}.__getitem__)  # 16 GiB
    groups(tmp_path, membership, **files)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:  {3 * 2**20} kB\n")
    assert available_memory(tmp_path) == expected


def test_without_limits_it_is_the_machines(tmp_path):
    whole = machine_memory(tmp_path)
    assert 2**28 < whole < 2**50
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("SwapTotal: 1024 kB\n")
    assert machine_memory(tmp_path) == whole + 2**20


@pytest.mark.parametrize("count, parallel, process_memory", [(1, "ddp", 1), (4, "ddp", 1), (4, "fsdp", 4)])
def test_all_processes_of_the_machine_share_its_memory(tmp_path, monkeypatch, count, parallel, process_memory):
    config = parse_config(config_dict(tmp_path, training_params__parallel=parallel), "toy").with_model("gpt")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(count))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(count))
    needed = count * 16 * count_parameters("gpt", **config.model_params.model_dump()) / process_memory
    check_memory(config, Processes(0, count, torch.device("cpu")), there=needed)
    with pytest.raises(UserError, match=rf"toy: \d+,\d+ parameters are too many here: {count} process"):
        check_memory(config, Processes(0, count, torch.device("cpu")), there=needed - 1)


def test_the_largest_model_that_a_config_allows_is_refused_at_once(tmp_path):
    largest = {
        "vocab_size": 2**31 - 1,
        "n_layers": 10_000,
        "n_heads": 1,
        "embed_dim": 2**20,
        "attn_length": 2**24,
        "mlp_ratio": 1000.0,
    }
    data = config_dict(tmp_path)
    data["model_params"], data["training_params"]["batch_size"] = largest, 1
    data["training_params"]["valid_batch_size"] = 1
    with pytest.raises(UserError, match=r"22,038,744,792,576,294,912 parameters"):
        check_memory(parse_config(data, "toy").with_model("gpt"), HERE)


def test_the_script_says_it_in_one_line_and_writes_nothing(tmp_path):
    path = write_config(tmp_path, model_params__embed_dim=2**18)
    done = run_script("train_script.py", path, "-d", "cpu")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "GiB for weights, gradients and optimizer, and there are" in done.stderr
    assert not list((tmp_path / "runs").rglob("*.state"))
