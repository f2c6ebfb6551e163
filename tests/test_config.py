"""Configs: what loads, what comes back out, and that each mistake is found and named."""

import copy
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.config import (
    MAX_STEP_TOKENS,
    MAX_STEPS,
    OptimParams,
    TrainingParams,
    expanded,
    key_table,
    load_config,
    parse_config,
)
from modules.models import GPTParams, RecurrentParams
from modules.system.errors import UserError
from modules.training.schedule import lr_at

# The example of the specification, with the comments taken out.
PUBLISHED = """{
    "model_params": {"vocab_size": 50257, "n_layers": 12, "n_heads": 12, "embed_dim": 768, "attn_length": 256,
                     "mlp_ratio": 4.0, "dropout": 0.1, "embd_dropout": null},
    "training_params": {"dataset_folder": "english/english.h5", "batch_size": 180, "aggregate": 1, "backwards": false,
                        "steps_to_train": null, "save_every": 3000, "backup_every": 15000, "step_log": 400,
                        "valid_steps": 1000, "state_save_loc": "datavol/vassilis/runs"},
    "optim_params": {"lr": 0.0001, "warmup_steps": 4000, "oscil_steps": 300000, "lr_shrink": 0.85, "lr_init": 1e-07,
                     "lr_min": 1e-06}
}"""
GPT = json.loads(PUBLISHED)
GRU = GPT | {
    "model_params": {
        "vocab_size": 50257,
        "n_layers": 3,
        "embed_dim": 512,
        "desired_attn_length": 256,
        "dropout": 0.0,
        "embd_dropout": 0.05,
    }
}


def changed(config: dict, dotted: str, value) -> dict:
    """A deep copy of plain config data with one key set."""
    config, *sections, key = copy.deepcopy(config), *dotted.split(".")
    section = config
    for name in sections:
        section = section[name]
    section[key] = value
    return config


def error_of(data) -> str:
    """The one line that this config is refused with."""
    with pytest.raises(UserError) as caught:
        parse_config(data, "run", source="dir/run.json")
    line = str(caught.value)
    assert line.startswith("dir/run.json: ") and "\n" not in line
    return line


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes):
        path = tmp_path / "en_gpt1_forward.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_the_specified_example_loads(write):
    config = load_config(write(PUBLISHED))
    assert config.name == "en_gpt1_forward"
    assert (config.model_params.context, config.model_params.embd_dropout) == (256, 0.0)
    assert (config.training_params.steps_to_train, config.training_params.seed, config.training_params.precision) == (
        None,
        0,
        "auto",
    )
    assert (config.stride, config.valid_batch_size, config.optim_params.grad_clip) == (128, 180, 1.0)
    assert config.model is None


def test_published_configs_leave_keys_out(write):
    for section, key in (
        ("training_params", "save_every"),
        ("training_params", "steps_to_train"),
        ("model_params", "embd_dropout"),
    ):
        missing = copy.deepcopy(GPT)
        del missing[section][key]
        null = changed(GPT, f"{section}.{key}", None)
        assert parse_config(missing, "run") == parse_config(null, "run")


def test_shape_of_model_params_tells_the_model():
    assert isinstance(parse_config(GPT, "run").model_params, GPTParams)
    recurrent = parse_config(GRU, "run")
    assert isinstance(recurrent.model_params, RecurrentParams) and recurrent.model_params.context == 256
    assert parse_config(GRU | {"model": "lstm"}, "run").model == "lstm"
    assert '"gru" or "lstm"' in error_of(GRU | {"model": "gpt"})
    assert 'expected model "gpt"' in error_of(GPT | {"model": "gru"})
    assert "only a GPT has it, and the other keys make this a GRU or LSTM" in error_of(
        changed(GRU, "model_params.n_heads", 4)
    )


def test_copies_are_validated_and_keep_the_name():
    config = parse_config(GPT, "run")
    backward = config.with_training(backwards=True, seed=3)
    assert (backward.training_params.backwards, backward.training_params.seed, backward.name) == (True, 3, "run")
    assert not config.training_params.backwards
    assert backward.with_training(backwards=False, seed=0) == config
    assert config.with_name("other").name == "other"
    assert config.with_model("gpt").model == "gpt"
    for refused in (
        lambda: config.with_training(bachwards=True),
        lambda: config.with_model("gru"),
        lambda: config.with_model("gpt").with_model("lstm"),
    ):
        with pytest.raises(UserError):
            refused()
    with pytest.raises(ValueError):
        config.training_params.seed = 4


def test_smallest_stride_is_one():
    assert parse_config(changed(GPT, "model_params.attn_length", 3), "run").stride == 1
    assert parse_config(changed(GPT, "training_params.stride", 256), "run").stride == 256


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("model_params.n_layers", 256.0, "expected an integer, found 256.0"),
        ("model_params.n_layers", "12", 'expected an integer, found "12"'),
        ("model_params.n_layers", True, "expected an integer, found true"),
        ("model_params.n_layers", None, "expected an integer, found null"),
        ("model_params.n_layers", 0, "expected at least 1, found 0"),
        ("model_params.attn_length", 1, "expected at least 2, found 1"),
        ("model_params.dropout", 1.0, "expected less than 1, found 1.0"),
        ("model_params.dropout", -0.1, "expected at least 0, found -0.1"),
        ("model_params.dropout", True, "expected a number, found true"),
        ("training_params.backwards", 1, "expected true or false, found 1"),
        ("training_params.dataset_folder", "", 'expected a path, found ""'),
        ("training_params.dataset_folder", 3, "expected a string, found 3"),
        ("training_params.precision", "fp16", "expected 'auto', 'fp32' or 'bf16', found \"fp16\""),
        ("training_params.compile", 1, "expected 'auto', True or False"),
        ("training_params.parallel", "dp", "expected 'ddp' or 'fsdp'"),
        ("training_params.stride", 0, "expected at least 1"),
        ("training_params.seed", -1, "expected at least 0"),
        ("training_params.seed", 2**63, "expected at most"),
        ("optim_params.lr", 0, "expected greater than 0"),
        ("optim_params.lr", "1e-4", 'expected a number, found "1e-4"'),
        ("optim_params.lr_shrink", 1.5, "expected at most 1"),
        ("optim_params.grad_clip", 0, "expected greater than 0"),
        ("training_params", [], "expected an object"),
        ("model", "rnn", "expected 'gpt', 'gru' or 'lstm'"),
    ],
)
def test_wrong_values_are_named(key, value, expected):
    line = error_of(changed(GPT, key, value))
    assert f" {key}: " in line and expected in line


# Numbers that nothing trains with
# ------------------------------------------------------------------------------------------

ABSURD = [
    10**12,
    10**15,
    10**18,
    10**30,
    2**63,
    2**64,
    10**400,
    10**5_000,
    -1,
    -(10**30),
    0,
    1e300,
    -1e300,
    1.8e308,
    1e-300,
    5e-324,
    -0.0,
    float("inf"),
    float("-inf"),
    float("nan"),
    "9" * 10_000,
    "NaN",
    [],
    {},
    [[[[]]]],
    True,
]
KEYS = [
    f"{section}.{key}"
    for section, keys in parse_config(GPT, "run").to_dict().items()
    if isinstance(keys, dict)
    for key in keys
]


def check_what_follows(config) -> None:
    """What a run computes from its numbers is finite, and its counts fit 64 bits."""
    params, optim, context = config.training_params, config.optim_params, config.model_params.context
    last_step = params.steps_to_train or (optim.cooldown_start or 0) + (optim.cooldown_steps or MAX_STEPS)
    step_windows = params.batch_size * params.aggregate
    assert np.arange(last_step * step_windows, last_step * step_windows + 2).dtype == np.int64
    assert last_step * step_windows * context < 2**63 and config.valid_batch_size * context <= MAX_STEP_TOKENS
    assert 0 < config.stride < 2**63 and 0 <= params.seed < 2**63
    for step in (0, 1, last_step // 2, last_step):
        assert 0 <= lr_at(step, optim) <= 1.01 * optim.lr and math.isfinite(np.float32(lr_at(step, optim)))
    if isinstance(config.model_params, GPTParams):
        assert 1 <= int(config.model_params.mlp_ratio * config.model_params.embed_dim) < 2**31


@pytest.mark.parametrize("key", KEYS)
def test_absurd_values_of_any_key_are_refused_in_one_short_line_or_harmless(key):
    for value in ABSURD:
        try:
            config = parse_config(changed(GPT, key, value), "run")
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 300 and "expected" in str(error)
        else:
            check_what_follows(config)


@given(
    data=st.data(),
    value=st.integers()
    | st.floats()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False).map(lambda x: x * 1e200)
    | st.sampled_from([2**b + d for b in range(1, 80) for d in (-1, 0, 1)]),
)
def test_any_number_for_any_keys_is_refused_or_gives_a_run_that_can_be_counted(data, value):
    config = copy.deepcopy(data.draw(st.sampled_from([GPT, GRU])))
    for key in data.draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3)):
        section, name = key.split(".")
        config[section][name] = value
    try:
        check_what_follows(parse_config(config, "run"))
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("model_params.n_layers", 10**12, "expected at most 10,000 (a layer takes time whatever its width"),
        (
            "training_params.steps_to_train",
            10**18,
            "expected at most 100,000,000,000 (at a thousand steps a second, three years), found 1000000000000000000",
        ),
        ("optim_params.warmup_steps", 10**30, "a 64-bit integer"),
        ("optim_params.lr", 1e300, "fp32"),
        ("model_params.mlp_ratio", 1e300, "expected at most 1,000"),
        ("model_params.mlp_ratio", 1e-300, "embed_dim * mlp_ratio of at least 1"),
        ("training_params.batch_size", 10**15, "expected at most 33,554,432 (with windows of two tokens"),
        (
            "training_params.batch_size",
            10**6,
            "batch_size x aggregate x context of at most 67,108,864 tokens (the largest published steps), "
            "found 1,000,000 x 256",
        ),
        ("training_params.valid_batch_size", 10**6, "valid_batch_size x context of at most 67,108,864"),
        ("training_params.dataset_folder", "a\0b", "a path has no NUL"),
        ("training_params.state_save_loc", "\ud800", "expected a valid string"),
        ("training_params." + "k" * 10_000, 1, "kkk...: unknown key"),
    ],
)
def test_bounds_say_why(key, value, expected):
    assert expected in error_of(changed(GPT, key, value))


def test_a_hundred_thousand_unknown_keys_are_one_line():
    assert "and 99997 more" in error_of(GPT | {f"key{number}": 1 for number in range(100_000)})


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("model_params.n_heads", 7, "embed_dim divisible by n_heads, found 768 and 7"),
        ("optim_params.lr_min", 1e-3, "lr_min of at most lr, found lr_min 0.001 and lr 0.0001"),
        ("optim_params.lr_init", 1e-3, "lr_init of at most lr"),
        ("optim_params.cooldown_steps", 100, "together"),
        ("optim_params.cooldown_start", 100, "together"),
    ],
)
def test_rules_between_keys(key, value, expected):
    line = error_of(changed(GPT, key, value))
    assert key.split(".")[0] in line and expected in line


@pytest.mark.parametrize("data", [3, None, [], "text"])
def test_a_config_is_an_object(data):
    assert "expected an object" in error_of(data)


def test_only_these_keys_are_required():
    smallest = {
        "model_params": {"vocab_size": 10, "n_layers": 1, "n_heads": 1, "embed_dim": 4, "attn_length": 8},
        "training_params": {"dataset_folder": "a.h5", "batch_size": 1},
        "optim_params": {"lr": 1e-3},
    }
    parse_config(smallest, "run")
    for section, keys in smallest.items():
        for key in keys:
            without = copy.deepcopy(smallest)
            del without[section][key]
            assert f"{section}.{key}: required and missing" in error_of(without)


def test_misplaced_and_hopeless_keys():
    assert "nearest valid key: optim_params.lr" in error_of(changed(GPT, "training_params.lr", 1e-4))
    assert "valid keys: dataset_folder, batch_size" in error_of(changed(GPT, "training_params.zzz", 1))
    assert "unknown key" in error_of(GPT | {"name": "x"})


def test_several_mistakes_make_one_line():
    assert error_of({"model_params": {}, "training_params": {}, "optim_params": {}}).endswith("and 5 more")


def test_files_that_are_no_config(write, tmp_path):
    cases = {
        '{\n  "model_params": { # Model parameters\n': r"not JSON: line 2 column 21: .*JSON has no comments",
        "": "not JSON: line 1 column 1",
        '{"a": 1,\n "a": 2}': 'key "a" stands twice',
        '{"a": NaN}': "NaN is not a JSON number",
        b'{"a": "\xff"}': "byte 7 is not UTF-8",
        "[" * 100_000: "nested too deep",
        '{"a": ' * 100_000: "nested too deep",
        '{"a": 1e400}': r"1e400 is beyond what a number can be",
        '{"a": -1' + "0" * 10_000 + "}": r"-100000000... \(10,002 digits\) is beyond what a number can be",
        b"\x7fELF\x00\xff": "byte 5 is not UTF-8",
        " " * (2 << 20): "expected a config file of some kB, found 2,097,152 bytes",
    }
    for text, expected in cases.items():
        with pytest.raises(UserError, match=expected):
            load_config(write(text))
    os.mkfifo(tmp_path / "pipe.json")
    for path, expected in (
        (tmp_path / "missing.json", "no such config file"),
        (tmp_path, "found a folder"),
        (tmp_path / "pipe.json", "no regular file"),
        ("a\0b", "no path that a file can have"),
    ):
        with pytest.raises(UserError, match=expected):
            load_config(path)


def test_a_byte_order_mark_is_no_mistake(write):
    assert load_config(write(b"\xef\xbb\xbf" + PUBLISHED.encode())) == parse_config(GPT, "en_gpt1_forward")


@given(st.data())
def test_every_key_with_a_letter_dropped_is_found(data):
    config = parse_config(data.draw(st.sampled_from([GPT, GRU])), "run").to_dict()
    section = data.draw(st.sampled_from(["model_params", "training_params", "optim_params"]))
    key = data.draw(st.sampled_from([key for key in config[section] if len(key) > 2]))
    at = data.draw(st.integers(0, len(key) - 1))
    typo = key[:at] + key[at + 1 :]
    config[section][typo] = config[section].pop(key)
    assert f"{section}.{typo}: unknown key, nearest valid key: {section}.{key}" in error_of(config)


positive = st.integers(1, 2**63 - 1)
steps = st.integers(1, MAX_STEPS)
few = st.integers(1, 100)
rate = st.floats(1e-9, 1.0)
optional = {
    "mlp_ratio": st.floats(0.5, 8),
    "dropout": st.floats(0, 0.99),
    "embd_dropout": st.none() | st.floats(0, 0.99),
}


@given(
    heads=st.integers(1, 64),
    head_width=st.integers(2, 64),
    model=st.fixed_dictionaries(
        {"vocab_size": st.integers(2, 10**6), "n_layers": st.integers(1, 10_000), "attn_length": st.integers(2, 5_000)},
        optional=optional,
    ),
    training=st.fixed_dictionaries(
        {
            "dataset_folder": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
            "batch_size": few,
        },
        optional={
            "aggregate": few,
            "backwards": st.booleans(),
            "steps_to_train": st.none() | steps,
            "save_every": positive,
            "stride": st.none() | positive,
            "seed": st.integers(0, 2**63 - 1),
            "compile": st.sampled_from(["auto", True, False]),
            "parallel": st.sampled_from(["ddp", "fsdp"]),
        },
    ),
    rates=st.lists(rate, min_size=3, max_size=3).map(sorted),
    optim=st.fixed_dictionaries(
        {}, optional={"warmup_steps": st.integers(0, 10**9), "oscil_steps": positive, "lr_shrink": st.floats(0.01, 1)}
    ),
)
def test_round_trip(heads, head_width, model, training, rates, optim):
    data = {
        "model_params": model | {"n_heads": heads, "embed_dim": heads * head_width},
        "training_params": training,
        "optim_params": optim | dict(zip(("lr_init", "lr_min", "lr"), rates, strict=True)),
    }
    config = parse_config(data, "run")
    again = parse_config(json.loads(json.dumps(config.to_dict())), "run")
    assert again == config
    for section, keys in data.items():
        for key, value in keys.items():
            if value is not None:
                assert again.to_dict()[section][key] == value


def test_the_table_has_every_key_once():
    keys = re.findall(r"^\| `(\w+)`", key_table(), re.MULTILINE)
    fields = [list(section.model_fields) for section in (GPTParams, RecurrentParams, TrainingParams, OptimParams)]
    assert keys == sum(fields, [])


def test_the_docs_show_the_keys_as_they_are():
    shown = (Path(__file__).parent.parent / "docs" / "config.md").read_text(encoding="utf-8")
    assert key_table() in shown, "paste the output of python -m modules.config"


# Paths
# ------------------------------------------------------------------------------------------------------------------


def test_home_and_variables_in_paths_are_expanded_where_files_are_opened_and_kept_as_written(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    config = parse_config(
        changed(
            changed(GPT, "training_params.dataset_folder", "~/en.h5"),
            "training_params.state_save_loc",
            "${SCRATCH}/$SCRATCH/runs",
        ),
        "run",
    )
    assert config.dataset_path == "/home/ada/en.h5" and config.runs_folder == f"{tmp_path}/{tmp_path}/runs"
    assert (
        config.to_dict()["training_params"]["dataset_folder"] == "~/en.h5"
        and config.training_params.state_save_loc == "${SCRATCH}/$SCRATCH/runs"
    )
    for value in (None, ""):  # "$SCRATCH/runs" is not to become "/runs"
        monkeypatch.setenv("SCRATCH", value) if value is not None else monkeypatch.delenv("SCRATCH")
        with pytest.raises(UserError, match=r"run: training_params.state_save_loc: .*the variable SCRATCH is not set"):
            _ = config.runs_folder


def test_what_exists_under_a_name_with_a_dollar_is_used_as_it_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("x", "other")
    (tmp_path / "a $x$" / "$y").mkdir(parents=True)
    for path in (
        "a $x$",
        "a $x$/$y",
        "./a $x$/$y/new",
        str(tmp_path / "a $x$" / "new"),
        "price: 5 $",
        "a/$/b",
        "~ada-who-has-no-account/x",
        "x~",
    ):
        assert expanded(path, "path") == path
    assert expanded("a $x$/$x", "path") == "a $x$/other"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # a user without an entry
    with pytest.raises(UserError, match="no home folder"):
        expanded("~/runs", "path")
