"""Which runs are trained where, with made-up machines."""

from collections import Counter
from multiprocessing import Pipe

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.config import parse_config
from modules.system.children import LAUNCHER
from modules.system.errors import UserError
from modules.training import placement
from modules.training import trial as trial_module
from modules.training.memory import GIB
from modules.training.placement import Place, estimated_need, place_for, placement_for, together
from modules.training.trial import Trial, try_out
from tests.toy import config_dict, write_tokens


def gpus(*free: float, most: int = 8) -> tuple[Place, ...]:
    return tuple(Place(f"cuda:{index}", room, most) for index, room in enumerate(free))


def filled(needs, places) -> Counter:
    """How many of these runs begin on each place before one has to wait."""
    taken = []
    for needed in needs:
        if (place := place_for(needed, places, taken)) is None:
            break
        taken.append((place, needed))
    return Counter(place.device for place, _ in taken)


@pytest.mark.parametrize(
    "needs, places, expected",
    [
        ([10] * 9, gpus(80, 80), {"cuda:0": 5, "cuda:1": 4}),  # spread, not heaped
        ([10] * 99, gpus(80, 80), {"cuda:0": 8, "cuda:1": 8}),
        ([1] * 99, gpus(80, most=4), {"cuda:0": 4}),  # cores to drive them, not memory
        ([30] * 9, gpus(80, 24), {"cuda:0": 2, "cuda:1": 1}),  # what fits nowhere is tried, alone
        ([200, 200, 200], gpus(80, 80), {"cuda:0": 1, "cuda:1": 1}),
        ([60, 60, 10, 10, 10, 10, 10], gpus(80, 80), {"cuda:0": 3, "cuda:1": 3}),  # to the last byte; the rest waits
        ([1] * 9, (Place(None, 3.5, 16),), {None: 3}),  # a CPU short of memory
        ([1] * 9, (Place(None, float("inf"), 2),), {None: 2}),
        ([], gpus(80), {}),
    ],
)
def test_runs_are_spread_by_memory(needs, places, expected):
    assert filled(needs, places) == expected


@given(
    needs=st.lists(st.floats(0, 100), min_size=1, max_size=30),
    free=st.lists(st.floats(1, 100), min_size=1, max_size=4),
    most=st.integers(1, 9),
)
def test_no_place_is_given_more_than_it_has_room_for_and_none_stays_empty(needs, free, most):
    places, taken = gpus(*free, most=most), []
    for needed in needs:
        if (place := place_for(needed, places, taken)) is None:
            break
        taken.append((place, needed))
    for place in places:
        there = [needed for where, needed in taken if where is place]
        assert len(there) <= 1 or (sum(there) <= place.room and len(there) <= most)
    assert len({place.device for place, _ in taken}) == min(len(needs), len(places))


def test_how_many_fit_together():
    assert together(10, gpus(80, 35)) == 11 and together(1000, gpus(80, 35)) == 2


@pytest.fixture
def runs(tmp_path):
    """Six small runs of one size, forward and backward."""
    write_tokens(tmp_path / "toy.h5")
    return [
        parse_config(
            config_dict(tmp_path, training_params__seed=seed, training_params__backwards=backwards),
            f"{backwards}{seed}",
        ).with_model("gpt")
        for seed in range(3)
        for backwards in (False, True)
    ]


def machine(monkeypatch, cores: int, gpus=(), free: float = 64 * GIB):
    monkeypatch.setattr(placement, "available_cores", lambda: cores)
    monkeypatch.setattr(placement, "available_memory", lambda: free)
    monkeypatch.setattr(placement, "gpus_here", lambda name: list(gpus))
    monkeypatch.setattr(placement, "_measured", {})


@pytest.mark.parametrize(
    "cores, free_gib, jobs, expected",
    [(4, 64, None, 4), (16, 64, None, 6), (4, 2, None, 2), (4, 0.1, None, 1), (2, 1, 5, 5)],
)
def test_on_a_cpu_auto_is_one_run_a_core_as_memory_allows_and_a_number_is_obeyed(
    runs, monkeypatch, cores, free_gib, jobs, expected
):
    machine(monkeypatch, cores, free=free_gib * GIB)
    plan = placement_for(runs, "cpu", jobs)
    assert plan.at_a_time == expected
    assert plan.line.startswith(
        f"6 runs, {expected} at a time: {cores} core(s), {free_gib:.1f} GiB free, up to 0.9 GiB"
    )


def test_on_gpus_a_run_of_each_size_is_measured_once(runs, monkeypatch):
    tried = []

    def measured(config, device):
        tried.append((config.name, device))
        return Trial(3 * GIB, 0.1, 40)

    monkeypatch.setattr(placement, "try_out", measured)
    machine(monkeypatch, 16, [("cuda:0", 70 * GIB), ("cuda:1", 9 * GIB)])
    larger = runs[0].with_name("larger").with_training(batch_size=64)
    plan = placement_for([*runs, larger], None, None)
    assert tried == [("False0", "cuda:0"), ("larger", "cuda:0")]
    assert plan.at_a_time == 7 and plan.needs["False0"] == plan.needs["larger"] == pytest.approx(4.32 * GIB)
    assert plan.line == "7 runs, 7 at a time: 2 GPU(s) with 9.0 GiB free, up to 4.3 GiB a run (measured)"
    tried.clear()
    assert placement_for(runs, None, 2).at_a_time == 2 and not tried, (
        "each has a GPU of its own: there is nothing to measure"
    )
    assert placement_for(runs, None, 4).at_a_time == 4 and not tried, "it is known by now"
    placement._measured.clear()
    assert placement_for(runs, None, 4).at_a_time == 4 and len(tried) == 1


def test_a_run_that_needs_more_than_a_gpu_has_gets_one_of_its_own(runs, monkeypatch):
    monkeypatch.setattr(placement, "try_out", lambda config, device: Trial(float("inf"), 0.0, 0))
    machine(monkeypatch, 16, [("cuda:0", 70 * GIB), ("cuda:1", 9 * GIB)])
    assert placement_for(runs, None, None).at_a_time == 2


def test_a_trial_of_a_run_tells_memory_and_time_and_its_errors(tmp_path, runs, monkeypatch):
    trial = try_out(runs[0], "cpu")
    assert 0.1 * GIB < trial.bytes < estimated_need(runs[0]) < 4 * GIB and 0 < trial.seconds < 60 and trial.steps == 40
    ours, theirs = Pipe()
    wrong = config_dict(tmp_path, model_params__vocab_size=9) | {"model": "gpt"}
    with monkeypatch.context() as patched:
        patched.setattr(trial_module, "end_with_launcher", lambda: None)  # it is this process
        patched.setenv(LAUNCHER, "")
        trial_module._work(wrong, "wrong", "cpu", 0, theirs)
    told = ours.recv()
    assert isinstance(told, UserError) and "vocab_size" in str(told)


def test_what_a_run_needs_is_known_for_all_models(tmp_path, runs):
    largest = parse_config(config_dict(tmp_path, model_params__embed_dim=2048), "large").with_model("gpt")
    assert estimated_need(runs[0]) < GIB < 2 * GIB < estimated_need(largest)
