"""Processes killed at each moment of what they do to files, and at random ones: whatever was interrupted ends as if
nothing had been.

`-m slow -s` shows the counts. A fault names its trial: a moment (see tests/faults.py) or a time.
"""

import random
import signal
import socket
import time
from itertools import groupby

import pytest

from tests.faults import (
    TEXT_BYTES,
    Killed,
    Moment,
    Trials,
    contents,
    copied,
    difference,
    in_process,
    measure,
    started,
    tokenize,
    train,
    write_toy,
)
from tests.tok_texts import sample_text

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOPPED = tuple(128 + number for number in SIGNALS)  # exit statuses
MANY, FEW = 16, 4


def undisturbed(folder, work, *args, **kwargs):
    """The events of `work` and what it leaves in `folder`."""
    ended = in_process(folder, work, *args, **kwargs)
    assert ended.how == "ok" and (ended.value in (0, None) or isinstance(ended.value, str)), ended
    return ended.events, contents(folder)


def aimed(events: list[Moment], most: int | None = None) -> list[Moment]:
    """The moments to strike at: all, but FEW of what happens MANY times to one file (the writes of a state); evenly
    thinned to `most`."""
    moments = []
    for _, group in groupby(
        sorted(events, key=lambda moment: (moment.action, moment.where)), key=lambda moment: moment[:2]
    ):
        group = list(group)
        moments += group if len(group) < MANY else [group[(len(group) - 1) * i // (FEW - 1)] for i in range(FEW)]
    return moments if most is None or len(moments) <= most else [moments[len(moments) * i // most] for i in range(most)]


def resumed(trials: Trials, fault, folder, expected: dict, work, *args, killed) -> None:
    """Start what was `killed` in `folder` again, to its end; count the trial."""
    again = in_process(folder, work, *args)
    problem = (
        difference(contents(folder), expected)
        if again.how == "ok"
        else f"resumed, it ended with {again.how}: {again.value}"
    )
    how = "killed" if killed.how is None else "stopped" if killed.value in STOPPED else "ended before"
    trials.count(how, fault, problem)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder to train in, the events of an undisturbed run and what it leaves."""
    folder = tmp_path_factory.mktemp("toy")
    base = write_toy(folder / "base")
    return base, *undisturbed(copied(base, folder / "whole"), train)


def test_a_kill_between_a_state_and_its_backup_costs_nothing(toy, tmp_path):
    """The quick representative of what follows."""
    base, _, expected = toy
    trials = Trials("one kill")
    fault = Killed(Moment("open", "runs/tests/state/backups/.toy_step000000010.state.tmp", 1))
    folder = copied(base, tmp_path / "t")
    killed = in_process(folder, train, fault=fault)
    assert killed.status == -signal.SIGKILL and not any("backups/toy" in name for name in contents(folder))
    resumed(trials, fault, folder, expected, train, killed=killed)
    trials.settle(1)


@pytest.mark.slow
def test_training_killed_at_each_moment(toy, tmp_path):
    base, events, expected = toy
    trials = Trials("training, aimed")
    for moment in aimed(events, most=140):
        folder = copied(base, tmp_path / "t")
        killed = in_process(folder, train, fault=Killed(moment))
        resumed(trials, Killed(moment), folder, expected, train, killed=killed)
    trials.settle(100)


@pytest.mark.slow
def test_training_killed_at_random_times(toy, tmp_path):
    base, _, expected = toy
    trials, moments = Trials("training, random times"), random.Random(0)
    start = time.monotonic()
    undisturbed(copied(base, tmp_path / "t"), train)
    takes_s = time.monotonic() - start
    for _ in range(40):
        folder, after_s = copied(base, tmp_path / "t"), moments.uniform(0, takes_s)
        killed = in_process(folder, train, kill_after_s=after_s)
        resumed(trials, f"killed after {after_s:.3f} s", folder, expected, train, killed=killed)
    trials.settle(40)


@pytest.mark.slow
def test_a_cool_down_killed_at_aimed_moments(tmp_path):
    base = write_toy(tmp_path / "base", training_params__steps_to_train=12)
    undisturbed(base, train)
    events, expected = undisturbed(copied(base, tmp_path / "whole"), train, "toy", 8)
    trials = Trials("cool-down")
    for moment in aimed(events, most=40):
        folder = copied(base, tmp_path / "t")
        killed = in_process(folder, train, "toy", 8, fault=Killed(moment))
        resumed(trials, Killed(moment), folder, expected, train, "toy", 8, killed=killed)
    trials.settle(40)


@pytest.mark.slow
def test_killed_again_and_again_until_it_is_done(toy, tmp_path):
    """Each attempt is killed at a random one of its events."""
    base, events, expected = toy
    trials, chance = Trials("chains of kills"), random.Random(1)
    for chain in range(8):
        folder, faults = copied(base, tmp_path / "t"), []
        for _ in range(30):
            faults.append(Killed(chance.randint(1, len(events) // 2)))
            ended = in_process(folder, train, fault=faults[-1])
            if ended.how is not None:
                break
            trials.count("killed")
        description = f"chain {chain}: {', '.join(map(str, faults))}"
        problem = (
            difference(contents(folder), expected)
            if ended.how == "ok"
            else f"ended with {ended.how} {ended.status}: {ended.value}"
        )
        trials.count("done", description, problem)
    trials.settle(30)


@pytest.mark.slow
def test_tokenization_killed_at_aimed_moments(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "text.txt").write_bytes(
        sample_text(TEXT_BYTES).encode("utf-8")[:TEXT_BYTES].decode("utf-8", "ignore").encode("utf-8")
    )
    events, expected = undisturbed(copied(base, tmp_path / "whole"), tokenize)
    trials = Trials("tokenization")
    for moment in aimed(events, most=50):
        folder = copied(base, tmp_path / "t")
        killed = in_process(folder, tokenize, fault=Killed(moment))
        resumed(trials, Killed(moment), folder, expected, tokenize, killed=killed)
    trials.settle(50)


@pytest.mark.slow
def test_a_report_is_old_or_new_whenever_its_writer_is_killed(tmp_path):
    """Each of its files by itself: one report of another measurement is there, and is replaced."""
    base = write_toy(tmp_path / "base")
    for name, seed in (("old", 0), ("new", 1)):
        for backwards in (False, True):
            run = f"{name}_{'backward' if backwards else 'forward'}"
            write_toy(
                base,
                run,
                training_params__steps_to_train=4,
                training_params__seed=seed,
                training_params__backwards=backwards,
            )
            undisturbed(base, train, run)
    undisturbed(base, measure, "old")
    for path in list((base / "report").iterdir()):
        path.rename(path.with_name(path.name.replace("old", "new")))
    before = contents(base)
    events, expected = undisturbed(copied(base, tmp_path / "whole"), measure, "new")
    trials = Trials("report")
    for moment in aimed(events, most=40):
        folder = copied(base, tmp_path / "t")
        killed = in_process(folder, measure, "new", fault=Killed(moment))
        halves = {
            name: found
            for name, found in contents(folder).items()
            if not name.endswith(".tmp") and found not in (before.get(name), expected.get(name))
        }
        if halves:
            trials.count("killed", Killed(moment), f"neither old nor new: {halves}")
        resumed(trials, Killed(moment), folder, expected, measure, "new", killed=killed)
    trials.settle(25)


@pytest.mark.slow
def test_signals_at_aimed_moments_save_and_stop(toy, tmp_path):
    """128 + the signal and resumed to the same bits, or, come too late, all done and 0; never the one under the name of
    the other."""
    base, events, expected = toy
    trials = Trials("signals")
    begun = next(number for number, moment in enumerate(events) if "metrics" in moment.where)
    for number, moment in enumerate(aimed(events[begun:], most=50)):
        fault = Killed(moment, SIGNALS[number % 2])
        folder = copied(base, tmp_path / "t")
        ended = in_process(folder, train, fault=fault)
        if (ended.how, ended.value) == ("ok", 0):
            trials.count("finished", fault, difference(contents(folder), expected))
        elif (ended.how, ended.value) == ("ok", 128 + fault.signal_number):
            saved = "runs/tests/state/toy.state" in contents(folder)
            if saved != ("saved in" in ended.output):
                trials.count(
                    "stopped",
                    fault,
                    f"a state is {'there' if saved else 'not there'}, and it said {ended.output[-200:]!r}",
                )
            resumed(trials, fault, folder, expected, train, killed=ended)
        else:
            trials.count("other", fault, f"ended with {ended.how} {ended.status}: {ended.value}")
    trials.settle(50)


def sharded(folder, fault=None):
    """Train on two processes that share a model; the ends of both. Where one is killed, the other cannot end well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    first, second = (
        started(
            folder,
            train,
            fault=fault if rank == 0 else None,
            environment=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    )
    ended = first()
    return ended, second(None if ended.how == "ok" else 10)


def plain(listing: dict) -> dict:
    """What is not inside a sharded state: its bytes may differ from run to run."""
    return {name: found for name, found in listing.items() if ".sharded/" not in name}


@pytest.mark.slow
def test_a_sharded_run_killed_while_it_saves(tmp_path):
    base = write_toy(tmp_path / "base", training_params__parallel="fsdp", training_params__steps_to_train=10)
    whole = copied(base, tmp_path / "whole")
    ended, _ = sharded(whole)
    assert (ended.how, ended.value) == ("ok", 0), ended
    expected = plain(contents(whole))
    trials = Trials("fsdp")
    saving = [
        moment
        for moment in ended.events
        if "/state/" in moment.where and "sharded" in moment.where or moment.action == "rename"
    ]
    for moment in aimed(saving, most=24):
        folder = copied(base, tmp_path / "t")
        killed, _ = sharded(folder, Killed(moment))
        again, _ = sharded(folder)
        left = difference(plain(contents(folder)), expected)
        problem = left if again.how == "ok" else f"resumed, it ended with {again.how}: {again.value}"
        trials.count("killed" if killed.how is None else "ended before", Killed(moment), problem)
    trials.settle(20)
