"""A run is what it was trained as, not what its last config says: what may change between its two halves, and what then
is known of it.

`EVERY_KEY` edits each key of a config between the halves. "refused": it is another run. "asked": refused unless the
change is accepted, and then recorded. "free": it only says where, how long or how fast, and the end is that of a run in
which nothing was edited.
"""

import shutil

import numpy as np
import pytest
import torch

from modules.config import OptimParams, TrainingParams, load_config, parse_config
from modules.data.token_file import open_tokens
from modules.measurement.evaluation import held_out_windows
from modules.measurement.pairing import pair_up, read_run
from modules.models import GPTParams
from modules.system.errors import UserError
from modules.training import history
from modules.training.checkpoint import backups_of, load_state, save_state
from modules.training.parallel import Processes
from modules.training.resume import check_same_settings, files_of, find_state
from modules.training.run import Request, data_of, run
from modules.training.schedule import lr_at
from tests.toy import PROJECT, config_dict, metrics_of, state_path, write_config, write_tokens

HERE = Processes(0, 1, torch.device("cpu"))
HALF, WHOLE = 10, 20

# Key -> the edited value, and what becomes of it. The toy config of tests/toy.py has the values before.
EVERY_KEY = {
    "model_params__vocab_size": (65, "refused"),
    "model_params__n_layers": (1, "refused"),
    "model_params__n_heads": (4, "refused"),
    "model_params__embed_dim": (16, "refused"),
    "model_params__attn_length": (8, "refused"),
    "model_params__mlp_ratio": (2.0, "refused"),
    "model_params__dropout": (0.2, "refused"),
    "model_params__embd_dropout": (0.1, "refused"),
    "model_params__position": ("rope", "refused"),
    "model_params__gelu": ("exact", "refused"),
    "training_params__dataset_folder": ("moved.h5", "free"),
    "training_params__batch_size": (8, "refused"),
    "training_params__aggregate": (2, "refused"),
    "training_params__order": ("even_odd", "refused"),
    "training_params__backwards": (True, "refused"),
    "training_params__steps_to_train": (WHOLE + 2, "free"),
    "training_params__save_every": (3, "free"),
    "training_params__backup_every": (7, "free"),
    "training_params__step_log": (4, "free"),
    "training_params__valid_steps": (3, "refused"),
    "training_params__held_out_tokens": (1024, "refused"),
    "training_params__held_out_fold": ("by_seed", "refused"),
    "training_params__state_save_loc": ("elsewhere", "another run"),
    "training_params__seed": (1, "refused"),
    "training_params__stride": (4, "refused"),
    "training_params__precision": ("bf16", "asked"),
    "training_params__compile": (False, "free"),
    "training_params__valid_batch_size": (5, "free"),
    "training_params__parallel": ("ddp", "free"),
    "training_params__checkpoint_activations": (True, "free"),
    "training_params__tokenizer_path": ("elsewhere", "free"),
    "training_params__init_from": ("runs/tests/state/toy.state", "refused"),
    "training_params__cooldown_finish": (0.25, "recorded"),
    "optim_params__lr": (2e-3, "asked"),
    "optim_params__warmup_steps": (12, "asked"),
    "optim_params__oscil_steps": (30, "asked"),
    "optim_params__lr_shrink": (0.5, "asked"),
    "optim_params__lr_init": (1e-5, "asked"),
    "optim_params__lr_min": (1e-4, "asked"),
    "optim_params__weight_decay": (0.1, "asked"),
    "optim_params__grad_clip": (0.5, "asked"),
    "optim_params__cooldown_steps": (5, "recorded"),
    "optim_params__cooldown_start": (15, "recorded"),
}


def train(folder, name="toy", cooldown=None, more_steps=False, accept_changes=False, **changes):
    """Train in this process; the run's state."""
    changes = {"training_params__steps_to_train": WHOLE, "training_params__save_every": 100, **changes}
    config = load_config(write_config(folder, name, **changes)).with_model("gpt")
    assert run(config, Request(PROJECT, None, more_steps, cooldown, accept_changes), HERE) == 0
    return load_state(state_path(folder, name))


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """A folder with half a run, and the state of the whole run."""
    folder = tmp_path_factory.mktemp("halves")
    train(folder, training_params__steps_to_train=HALF)
    write_tokens(folder / "moved.h5")
    return folder, train(tmp_path_factory.mktemp("whole"))


def half_of(halves, tmp_path):
    shutil.copytree(halves[0], tmp_path / "copy")
    return tmp_path / "copy"


def same_bits(a, b):
    return all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])


def test_the_table_has_every_key():
    """And what becomes of a change is what the key is marked with."""
    sections = {"model_params": GPTParams, "training_params": TrainingParams, "optim_params": OptimParams}
    assert set(EVERY_KEY) == {f"{name}__{key}" for name, section in sections.items() for key in section.model_fields}


def test_what_becomes_of_a_change_is_what_the_key_is_marked_with(tmp_path):
    data = config_dict(tmp_path)
    config = parse_config(data, "toy")
    for key, (value, outcome) in EVERY_KEY.items():
        section, name = key.split("__")
        if name.startswith("cooldown") or outcome == "recorded":
            continue  # the two of them only come together, and then
        if name == "init_from":
            continue  # decides by the weights that are there, not by where they are
        changes = {name: value} | ({"n_heads": 2} if name == "embed_dim" else {})
        changed = parse_config(data | {section: data[section] | changes}, "toy")
        assert (changed.identity() != config.identity()) == (outcome == "refused"), key
        assert (changed.settings() != config.settings()) == (outcome == "asked"), key
    assert config.settings().keys() == OptimParams.model_fields.keys() | {"precision"}


@pytest.mark.parametrize("key", EVERY_KEY)
def test_a_key_edited_between_two_halves(halves, tmp_path, key):
    folder, (value, outcome) = half_of(halves, tmp_path), EVERY_KEY[key]
    value = str(folder / value) if key.endswith(("folder", "loc", "init_from")) else value
    changes = {key: value}
    if outcome == "recorded" and key.startswith("optim_params"):  # the two keys of a cool-down come together
        changes = {"optim_params__cooldown_steps": 5, "optim_params__cooldown_start": 15}
    before = state_path(folder).read_bytes()
    if outcome in ("refused", "asked"):
        if key == "model_params__embed_dim":
            changes["model_params__n_heads"] = 2
        with pytest.raises(UserError, match="accept_changes" if outcome == "asked" else "another run") as refused:
            train(folder, **changes)
        named = {
            "training_params.backwards": "training_params.order",
            "training_params.batch_size": "batch_size x aggregate",
            "training_params.aggregate": "batch_size x aggregate",
            "training_params.valid_steps": "held-out windows",
            "training_params.held_out_tokens": "held-out windows",
            "training_params.precision": "precision",
        }
        dotted = key.replace("__", ".")
        assert named.get(dotted, dotted if outcome == "refused" else dotted.split(".")[1]) in str(refused.value)
        assert len(str(refused.value).splitlines()) == 1 and "--run_name" in str(refused.value)
        assert state_path(folder).read_bytes() == before
    if outcome == "refused":
        return
    state = train(folder, **changes, accept_changes=outcome == "asked")
    if outcome == "another run":
        assert state["step"] == HALF and (tmp_path / "copy" / "elsewhere").exists()
    elif outcome == "free":
        assert len(state["stages"]) == 1
        steps = changes.get("training_params__steps_to_train", WHOLE)
        assert state["step"] == steps and (steps != WHOLE or same_bits(state, halves[1])), "the end is the same"
    else:
        assert [stage["first_step"] for stage in state["stages"]] == [0, HALF]
        then, now = (
            load_config(path).cooled(WHOLE).optim_params for path in (halves[0] / "toy.json", folder / "toy.json")
        )
        assert [stage["optim_params"] for stage in state["stages"]] == [then.model_dump(), now.model_dump()]


@pytest.mark.parametrize(
    "division",
    [
        dict(training_params__batch_size=4, training_params__aggregate=4),
        dict(training_params__valid_batch_size=3),
        dict(training_params__valid_steps=7, training_params__held_out_tokens=512),
    ],
)
def test_how_a_step_is_divided_moves_neither_the_split_nor_the_run(halves, tmp_path, division):
    folder = half_of(halves, tmp_path)
    windows = [data_of(load_config(write_config(folder, **changes)), None, HERE).held_out for changes in ({}, division)]
    assert windows[0].first == windows[1].first and len(windows[0]) == len(windows[1]) == 32
    state = train(folder, **division)
    assert state["step"] == WHOLE and len(state["stages"]) == 1


def test_the_way_out_of_another_split_works(halves, tmp_path):
    folder = half_of(halves, tmp_path)
    with pytest.raises(UserError, match="set training_params.held_out_tokens to 512 to keep"):
        train(folder, training_params__valid_steps=40)
    assert same_bits(train(folder, training_params__valid_steps=40, training_params__held_out_tokens=512), halves[1])


def test_what_is_held_out_was_never_trained_on(halves):
    """By the state alone, whatever its last config says."""
    trained = read_run(state_path(halves[0]))
    held_out = held_out_windows(trained)
    windows = data_of(trained.config, None, HERE).windows
    assert windows.first + (len(windows) - 1) * windows.stride + windows.length <= held_out.first
    assert held_out.first + len(held_out) * held_out.length == len(held_out.token_file.tokens)


def test_runs_that_took_other_ways_are_no_fair_comparison(tmp_path):
    """Forward 10 steps at a fifth of the rate and 2 at the whole, backward 12 at the whole: the last configs are the
    same."""
    slow = dict(optim_params__lr=6e-4)
    train(tmp_path, "a_forward", training_params__steps_to_train=10, **slow)
    train(tmp_path, "a_forward", training_params__steps_to_train=12, accept_changes=True)
    train(tmp_path, "a_backward", training_params__steps_to_train=12, training_params__backwards=True)
    both = [read_run(state_path(tmp_path, name)) for name in ("a_forward", "a_backward")]
    assert both[0].config.optim_params == both[1].config.optim_params
    with pytest.raises(UserError, match=r"no fair comparison.*the learning rate of step 1 \("):
        pair_up(both)
    train(tmp_path, "b_backward", training_params__steps_to_train=10, training_params__backwards=True, **slow)
    train(
        tmp_path, "b_backward", training_params__steps_to_train=12, training_params__backwards=True, accept_changes=True
    )
    (group,) = pair_up([both[0], read_run(state_path(tmp_path, "b_backward"))])
    assert history.changes(group[0][0].stages) == ["from step 10: lr 0.0006 -> 0.003"]


def test_a_cool_down_in_one_direction_alone_is_refused(tmp_path):
    for name, backwards in (("forward", False), ("backward", True)):
        train(tmp_path, name, training_params__steps_to_train=10, training_params__backwards=backwards)
    train(tmp_path, "forward", cooldown=5)
    train(tmp_path, "backward", training_params__steps_to_train=15, training_params__backwards=True)
    with pytest.raises(UserError, match="the learning rate of step 11"):
        pair_up([read_run(state_path(tmp_path, name)) for name in ("forward", "backward")])


def test_after_a_cool_down_the_usual_command_leaves_the_cooled_state_alone(tmp_path, capsys):
    train(tmp_path, training_params__steps_to_train=10)
    cooled = train(tmp_path, cooldown=5)
    again = train(tmp_path, training_params__steps_to_train=100)
    assert again["saved_at"] == cooled["saved_at"] and again["step"] == 15
    told = capsys.readouterr().out
    backup = backups_of(state_path(tmp_path))[0]
    assert "nothing to do, it is cooled down" in told and f"replace the state by a copy of {backup}" in told
    with pytest.raises(UserError, match=r"cools down from step 10 to 15 already.*a copy of"):
        train(tmp_path, cooldown=7)
    assert train(tmp_path, cooldown=5)["saved_at"] == cooled["saved_at"], "the same command has nothing left to do"
    shutil.copyfile(backup, state_path(tmp_path))
    assert train(tmp_path, training_params__steps_to_train=20)["step"] == 20, "the way out works"


def test_a_cool_down_goes_on_without_being_asked_for_again(tmp_path):
    train(tmp_path, training_params__steps_to_train=10)
    whole = train(tmp_path, cooldown=8)
    state = load_state(backups_of(state_path(tmp_path))[0])
    config = load_config(write_config(tmp_path, "half", training_params__steps_to_train=10)).with_model("gpt")
    save_state(state | {"run": "half"}, state_path(tmp_path, "half"))
    stopping = type(
        "Stop", (), {"asked": lambda self: find_state_step(tmp_path) >= 14, "reason": "a test", "exit_status": 99}
    )()

    def find_state_step(folder):
        return training.step

    from modules.training.recording import record
    from modules.training.resume import files_of, stages_of
    from modules.training.run import prepare, restore

    data, found = data_of(config, None, HERE), load_state(state_path(tmp_path, "half"))
    files = files_of(config, PROJECT)
    cooling = config.with_optim(cooldown_start=10, cooldown_steps=8)
    training = prepare(cooling, data, HERE, stages_of(found), found["step"])
    restore(training, found, files.state)
    assert not record(training, 18, files, PROJECT, None, stopping)
    assert load_state(files.state)["step"] == 14
    assert same_bits(train(tmp_path, "half", training_params__steps_to_train=10), whole)


def test_data_that_moved_are_known_by_their_fingerprint(halves, tmp_path):
    """A finished run: the usual command with the new path remembers it, and --data needs no command at all."""
    folder = half_of(halves, tmp_path)
    (folder / "toy.h5").rename(folder / "moved elsewhere.h5")
    write_config(folder)  # makes another toy.h5 at the path where the states of `halves` have theirs
    state = load_state(state_path(folder))
    gone = folder / "gone.h5"
    state["config"]["training_params"]["dataset_folder"] = str(gone)
    save_state(state, state_path(folder))
    with pytest.raises(UserError, match=r"gone\.h5: the data that .* was trained on are no longer there.*--data"):
        held_out_windows(read_run(state_path(folder)))
    moved = folder / "moved elsewhere.h5"
    found = read_run(state_path(folder), [open_tokens(moved)])
    assert held_out_windows(found).token_file.path == str(moved)

    state = train(folder, training_params__steps_to_train=HALF, training_params__dataset_folder=str(moved))
    assert state["step"] == HALF and state["config"]["training_params"]["dataset_folder"] == str(moved)
    assert held_out_windows(read_run(state_path(folder))).token_file.path == str(moved)
    write_tokens(moved, seed=1)
    with pytest.raises(UserError, match="the data's fingerprint"):
        train(folder, training_params__dataset_folder=str(moved))
    with pytest.raises(UserError, match="not the data that"):
        held_out_windows(read_run(state_path(folder)))


class StopsIn:
    """A request to stop that comes at the n-th time that somebody asks."""

    reason, exit_status = "a test", 143

    def __init__(self, n):
        self.left = n

    def asked(self):
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("save_every, backup_every", [(100, 100), (100, 7)])
def test_a_validation_that_was_given_up_is_owed_and_made(tmp_path, monkeypatch, save_every, backup_every):
    """A stop in the last validation, and in one that belongs to a backup only."""
    options = dict(
        training_params__save_every=save_every,
        training_params__backup_every=backup_every,
        training_params__valid_batch_size=1,
    )
    whole = train(tmp_path, "whole", **options)
    step = backup_every if backup_every < WHOLE else WHOLE
    stop = StopsIn(step + 5)  # asked once a step, then once a batch of the validation
    monkeypatch.setattr(
        "modules.training.run.stopping_on_signals", lambda processes: __import__("contextlib").nullcontext(stop)
    )
    config = load_config(write_config(tmp_path, training_params__steps_to_train=WHOLE, **options)).with_model("gpt")
    assert run(config, Request(PROJECT), HERE) == 143, "it was stopped, and does not say that it is finished"
    stopped = load_state(state_path(tmp_path))
    assert stopped["step"] == step and stopped["validated"] < step
    monkeypatch.undo()
    finished = train(tmp_path, **options)
    assert same_bits(finished, whole)
    held_out = [
        [(entry["step"], entry["loss"]) for entry in metrics_of(tmp_path, name) if entry["split"] == "valid"]
        for name in ("toy", "whole")
    ]
    assert held_out[0] == held_out[1]
    assert [path.name.removeprefix("toy") for path in backups_of(state_path(tmp_path))] == [
        path.name.removeprefix("whole") for path in backups_of(state_path(tmp_path, "whole"))
    ]


def test_a_backup_that_a_kill_prevented_is_made_on_resuming(tmp_path):
    train(tmp_path, training_params__steps_to_train=10, training_params__backup_every=10)
    backups_of(state_path(tmp_path))[0].unlink()
    train(tmp_path, training_params__steps_to_train=11, training_params__backup_every=10)
    assert [load_state(path)["step"] for path in backups_of(state_path(tmp_path))] == [10]


def test_one_held_out_window_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match="at least two held-out windows of 16 tokens, found 1"):
        train(tmp_path, training_params__held_out_tokens=20)


# States
# ------------------------------------------------------------------------------------------------------------------


def edited(path, change):
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def drop(*keys):
    def change(state):
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return change


def put(value, *keys):
    def change(state):
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


def weight_of(state):
    return next(key for key in state["model"] if state["model"][key].ndim == 2)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda state: state["model"].pop(weight_of(state)), "found nothing"),
        (lambda state: state["model"].update(extra=torch.zeros(2)), "extra: expected no such tensor"),
        (lambda state: state["model"].update({weight_of(state): torch.zeros(3, 3)}), r"found torch.float32 \[3, 3\]"),
        (lambda state: state["model"][weight_of(state)].fill_(float("nan")), "not finite"),
        (lambda state: state["optimizer"]["state"].pop(weight_of(state)), "optimizer exp_avg: .*found nothing"),
        (lambda state: state["optimizer"]["state"][weight_of(state)].pop("exp_avg_sq"), "optimizer exp_avg_sq"),
        (drop("optimizer"), "has no optimizer"),
        (put({}, "optimizer", "state"), "optimizer exp_avg"),
        (put([], "optimizer"), "optimizer: expected a dictionary, found \\[\\]"),
        (drop("validated"), "validated: missing"),
        (put("7", "step"), "step: expected an integer"),
        (put(-1, "step"), "step: expected at least 0"),
        (put(10**18, "step"), "step: expected at most"),
        (put(3, "run"), "its run: expected a name that a file can have"),
        (put([1], "config"), "config: expected a dictionary"),
        (drop("config", "optim_params"), "optim_params: required and missing"),
        (put("fp16", "precision"), "precision: expected"),
        (put(torch.zeros(2, 2), "unlogged"), "unlogged: expected a list of losses"),
        (put([], "stages"), "stages: "),
        (lambda state: state["stages"][0].update(first_step=3), "first steps that rise from 0"),
        (put(None, "dataset", "fingerprint"), "dataset.fingerprint: expected a string"),
        (put(0, "held_out_tokens"), "held_out_tokens: expected at least 1"),
    ],
)
def test_a_state_with_nonsense_inside_is_one_line_and_trains_nothing(halves, tmp_path, change, words):
    folder = half_of(halves, tmp_path)
    edited(state_path(folder), change)
    before = state_path(folder).read_bytes()
    with pytest.raises(UserError, match=words) as refused:
        train(folder)
    assert str(state_path(folder)) in str(refused.value) and len(str(refused.value).splitlines()) == 1
    assert state_path(folder).read_bytes() == before


def test_a_state_of_three_keys_is_no_state_and_one_without_optimizer_can_be_measured(halves, tmp_path):
    folder = half_of(halves, tmp_path)
    state = torch.load(state_path(folder), weights_only=True)
    torch.save({key: state[key] for key in ("model", "step", "config")}, tmp_path / "three.state")
    with pytest.raises(UserError, match=r"three\.state: not a state of this project: tokens: missing"):
        read_run(tmp_path / "three.state")
    del state["optimizer"]
    torch.save(state, tmp_path / "slim.state")
    assert read_run(tmp_path / "slim.state").state["step"] == HALF


def test_a_state_of_an_earlier_version_goes_on_and_is_marked(halves, tmp_path):
    folder = half_of(halves, tmp_path)

    def as_before(state):
        for key in ("stages", "held_out_tokens", "early_stages_unknown"):
            del state[key]
        del state["config"]["training_params"]["held_out_tokens"]

    edited(state_path(folder), as_before)
    assert find_state(type("Files", (), {"state": state_path(folder)}))["held_out_tokens"] == 512
    state = train(folder)
    assert same_bits(state, halves[1]) and state["early_stages_unknown"]


def test_a_read_that_fails_for_another_reason_is_not_called_damage(halves, tmp_path, monkeypatch):
    folder = half_of(halves, tmp_path)

    def denied(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied", str(state_path(folder)))

    monkeypatch.setattr("zipfile.ZipFile", denied)
    with pytest.raises(UserError, match="cannot be read.*Permission denied") as refused:
        train(folder)
    assert "damaged" not in str(refused.value) and "backup" not in str(refused.value)


# History
# -----------------------------------------------------------------------------------------------------------------


def stage(first_step, precision="fp32", **optim):
    return history.Stage(
        first_step=first_step,
        optim_params=OptimParams(lr=1e-3, warmup_steps=10, oscil_steps=50, **optim),
        precision=precision,
        tf32=False,
    )


def test_histories_are_compared_by_what_each_step_was_trained_with():
    """Against the learning rates of all steps, written out."""
    random = np.random.default_rng(0)
    for _ in range(40):
        ways = [
            [stage(0, weight_decay=random.choice([0.0, 0.1]))]
            + [
                stage(
                    int(first),
                    weight_decay=random.choice([0.0, 0.1]),
                    cooldown_start=int(first),
                    cooldown_steps=int(random.integers(1, 30)),
                )
                for first in sorted(random.choice(np.arange(1, 40), size=random.integers(0, 3), replace=False))
            ]
            for _ in range(2)
        ]
        if random.random() < 0.5:
            ways[1] = [*ways[0], stage(70)]  # what differs after the last step is no difference
        by_step = [
            [
                (lr_at(step, history.at(way, step).optim_params), history.at(way, step).optim_params.weight_decay)
                for step in range(60)
            ]
            for way in ways
        ]
        assert (history.first_difference(*ways, steps=60) is None) == (by_step[0] == by_step[1])
    planned = [stage(0, cooldown_start=30, cooldown_steps=10)]
    asked_for = [stage(0), stage(30, cooldown_start=30, cooldown_steps=10)]
    assert history.first_difference(planned, asked_for, steps=40) is None, (
        "the same cool-down, in the config or asked for at its start"
    )


def test_going_on_replaces_what_lies_ahead_and_joins_what_is_alike():
    config = type("Config", (), {"optim_params": stage(0).optim_params})
    assert history.continued([], 0, config, "fp32") == [stage(0)]
    assert history.continued([stage(0)], 7, config, "fp32") == [stage(0)]
    assert history.continued([stage(0)], 7, config, "bf16") == [stage(0), stage(7, "bf16")]
    assert history.continued([stage(0), stage(7, "bf16")], 7, config, "fp32") == [stage(0)], (
        "no step was trained at bf16"
    )


def test_a_run_in_tf32_is_another_than_one_in_fp32():
    optim = OptimParams(lr=1e-3)
    tf32, fp32, unknown = (
        history.Stage(first_step=0, optim_params=optim, precision="fp32", tf32=each) for each in (True, False, None)
    )
    assert "precision from step 0 on (fp32 (TF32 products) and fp32)" in history.first_difference([tf32], [fp32], 9)
    for one in (tf32, fp32):  # states of earlier versions did not say
        assert history.first_difference([one], [unknown], 9) is None
        assert history.first_difference([unknown], [one], 9) is None
        assert history.first_difference([one], [one], 9) is None


def test_a_run_goes_on_in_the_arithmetic_that_it_had(tmp_path):
    config = load_config(write_config(tmp_path, training_params__precision="fp32")).with_model("gpt")
    files = files_of(config, PROJECT)
    stages = history.continued([], 0, config, "fp32", tf32=True)
    found = {"stages": history.as_data(stages), "step": 8}
    check_same_settings(found, config, True, False, files)
    with pytest.raises(UserError, match=r"precision fp32 \(TF32 products\) up to step 8 and fp32 in the config"):
        check_same_settings(found, config, False, False, files)
    check_same_settings(found, config, False, True, files)
    assert [stage.tf32 for stage in history.continued(stages, 8, config, "fp32", tf32=False)] == [True, False]
    assert history.continued(stages, 8, config, "fp32", tf32=True) == stages
    assert history.continued([], 0, config, "bf16", tf32=True)[0].tf32 is False
    before = {"stages": [history.as_data(stages)[0] | {"tf32": None}], "step": 8}
    check_same_settings(before, config, False, False, files)


def in_tf32(state: dict) -> None:
    state["stages"][-1]["tf32"] = True


def test_a_run_that_a_gpu_has_finished_is_finished_on_a_cpu_too(tmp_path, capsys):
    config = load_config(write_config(tmp_path, training_params__precision="fp32")).with_model("gpt")
    here = Processes(0, 1, torch.device("cpu"))
    assert run(config, Request(PROJECT), here) == 0
    edited(files_of(config, PROJECT).state, in_tf32)
    assert run(config, Request(PROJECT), here) == 0
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"precision fp32 \(TF32 products\) up to step 40 and fp32 in the config"):
        run(config, Request(PROJECT, more_steps=True), here)


def test_a_run_that_a_gpu_has_cooled_is_finished_on_a_cpu_too(tmp_path, capsys):
    config = load_config(write_config(tmp_path, training_params__precision="fp32")).with_model("gpt")
    further = config.with_training(steps_to_train=80)
    here = Processes(0, 1, torch.device("cpu"))
    assert run(config, Request(PROJECT), here) == 0
    assert run(further, Request(PROJECT, cooldown=10), here) == 0
    edited(files_of(config, PROJECT).state, in_tf32)
    for request in (Request(PROJECT), Request(PROJECT, cooldown=10)):
        assert run(further, request, here) == 0
        assert "nothing to do, it is cooled down" in capsys.readouterr().out
