"""Configs: what loads, what comes back out, and that each mistake is found and named."""
import copy
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.config import GPTParams, OptimParams, RecurrentParams, TrainingParams, key_table, load_config, parse_config
from modules.errors import UserError

# The example of the specification, with the comments taken out.
PUBLISHED = """{
    "model_params": {"vocab_size": 50257, "n_layers": 12, "n_heads": 12, "embed_dim": 768, "attn_length": 256, "mlp_ratio": 4.0,
                     "dropout": 0.1, "embd_dropout": null},
    "training_params": {"dataset_folder": "english/english.h5", "batch_size": 180, "aggregate": 1, "backwards": false,
                        "steps_to_train": null, "save_every": 3000, "backup_every": 15000, "step_log": 400, "valid_steps": 1000,
                        "state_save_loc": "datavol/vassilis/runs"},
    "optim_params": {"lr": 0.0001, "warmup_steps": 4000, "oscil_steps": 300000, "lr_shrink": 0.85, "lr_init": 1e-07, "lr_min": 1e-06}
}"""
GPT = json.loads(PUBLISHED)
GRU = GPT | {"model_params": {"vocab_size": 50257, "n_layers": 3, "embed_dim": 512, "desired_attn_length": 256, "dropout": 0.0,
                              "embd_dropout": 0.05}}


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
    assert (config.training_params.steps_to_train, config.training_params.seed, config.training_params.precision) == (None, 0, "auto")
    assert (config.stride, config.valid_batch_size, config.optim_params.grad_clip) == (128, 180, 1.0)
    assert config.model is None


def test_published_configs_leave_keys_out(write):
    for section, key in (("training_params", "save_every"), ("training_params", "steps_to_train"), ("model_params", "embd_dropout")):
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
    assert "only a GPT has it" in error_of(changed(GRU, "model_params.n_heads", 4))


def test_copies_are_validated_and_keep_the_name():
    config = parse_config(GPT, "run")
    backward = config.with_training(backwards=True, seed=3)
    assert (backward.training_params.backwards, backward.training_params.seed, backward.name) == (True, 3, "run")
    assert not config.training_params.backwards
    assert backward.with_training(backwards=False, seed=0) == config
    assert config.with_name("other").name == "other"
    assert config.with_model("gpt").model == "gpt"
    for refused in (lambda: config.with_training(bachwards=True), lambda: config.with_model("gru"),
                    lambda: config.with_model("gpt").with_model("lstm")):
        with pytest.raises(UserError):
            refused()
    with pytest.raises(ValueError):
        config.training_params.seed = 4


def test_smallest_stride_is_one():
    assert parse_config(changed(GPT, "model_params.attn_length", 3), "run").stride == 1
    assert parse_config(changed(GPT, "training_params.stride", 256), "run").stride == 256


@pytest.mark.parametrize("key, value, expected", [
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
])
def test_wrong_values_are_named(key, value, expected):
    line = error_of(changed(GPT, key, value))
    assert f" {key}: " in line and expected in line


@pytest.mark.parametrize("key, value, expected", [
    ("model_params.n_heads", 7, "embed_dim divisible by n_heads, found 768 and 7"),
    ("optim_params.lr_min", 1e-3, "lr_min of at most lr, found lr_min 0.001 and lr 0.0001"),
    ("optim_params.lr_init", 1e-3, "lr_init of at most lr"),
    ("optim_params.cooldown_steps", 100, "together"),
    ("optim_params.cooldown_start", 100, "together"),
])
def test_rules_between_keys(key, value, expected):
    line = error_of(changed(GPT, key, value))
    assert key.split(".")[0] in line and expected in line


@pytest.mark.parametrize("data", [3, None, [], "text"])
def test_a_config_is_an_object(data):
    assert "expected an object" in error_of(data)


def test_only_these_keys_are_required():
    smallest = {"model_params": {"vocab_size": 10, "n_layers": 1, "n_heads": 1, "embed_dim": 4, "attn_length": 8},
                "training_params": {"dataset_folder": "a.h5", "batch_size": 1}, "optim_params": {"lr": 1e-3}}
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
        "[" * 100_000: "not a config",
    }
    for text, expected in cases.items():
        with pytest.raises(UserError, match=expected):
            load_config(write(text))
    with pytest.raises(UserError, match="no such config file"):
        load_config(tmp_path / "missing.json")


def test_a_byte_order_mark_is_no_mistake(write):
    assert load_config(write(b"\xef\xbb\xbf" + PUBLISHED.encode())) == parse_config(GPT, "en_gpt1_forward")


@given(st.data())
def test_every_key_with_a_letter_dropped_is_found(data):
    config = parse_config(data.draw(st.sampled_from([GPT, GRU])), "run").to_dict()
    section = data.draw(st.sampled_from(["model_params", "training_params", "optim_params"]))
    key = data.draw(st.sampled_from([key for key in config[section] if len(key) > 2]))
    at = data.draw(st.integers(0, len(key) - 1))
    typo = key[:at] + key[at + 1:]
    config[section][typo] = config[section].pop(key)
    assert f"{section}.{typo}: unknown key, nearest valid key: {section}.{key}" in error_of(config)


positive = st.integers(1, 10**12)
rate = st.floats(1e-9, 1.0)
optional = {"mlp_ratio": st.floats(0.5, 8), "dropout": st.floats(0, 0.99), "embd_dropout": st.none() | st.floats(0, 0.99)}


@given(
    heads=st.integers(1, 64), head_width=st.integers(2, 64),
    model=st.fixed_dictionaries({"vocab_size": st.integers(2, 10**6), "n_layers": positive, "attn_length": st.integers(2, 10**5)},
                                optional=optional),
    training=st.fixed_dictionaries({"dataset_folder": st.text(min_size=1), "batch_size": positive}, optional={
        "aggregate": positive, "backwards": st.booleans(), "steps_to_train": st.none() | positive, "stride": st.none() | positive,
        "seed": st.integers(0, 2**63 - 1), "compile": st.sampled_from(["auto", True, False]),
        "parallel": st.sampled_from(["ddp", "fsdp"])}),
    rates=st.lists(rate, min_size=3, max_size=3).map(sorted),
    optim=st.fixed_dictionaries({}, optional={
        "warmup_steps": st.integers(0, 10**9), "oscil_steps": positive, "lr_shrink": st.floats(0.01, 1)}),
)
def test_round_trip(heads, head_width, model, training, rates, optim):
    data = {"model_params": model | {"n_heads": heads, "embed_dim": heads * head_width}, "training_params": training,
            "optim_params": optim | dict(zip(("lr_init", "lr_min", "lr"), rates, strict=True))}
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


def test_the_readme_shows_the_keys_as_they_are():
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert key_table() in readme, "paste the output of python -m modules.config"
