"""Runs that begin with weights from elsewhere: a state of ours, a published GPT-2; what does not fit is refused with
what differs, and what was begun with is part of what a run is."""

import json
import shutil

import pytest
import torch

from modules.config import load_config, parse_config
from modules.exchange.gpt2 import GPT2Config
from modules.measurement.comparison import history_of
from modules.measurement.measure import Wish, measured_states, report_on
from modules.measurement.pairing import pair_up, read_run
from modules.measurement.runs import planned_runs, with_controls_of
from modules.models import build_model
from modules.system.errors import UserError
from modules.training.checkpoint import load_state
from modules.training.initial import initial_of
from modules.training.parallel import Processes
from modules.training.resume import files_of
from modules.training.run import Request, data_of, new_model, run
from tests.toy import PROJECT, ROOT, config_dict, run_script, state_path, write_config, write_tokens

HERE = Processes(0, 1, torch.device("cpu"))
SHORT = {"training_params__steps_to_train": 4, "training_params__save_every": 100}
GPT2 = dict(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)


def config_of(folder, name="toy", model="gpt", **changes):
    return load_config(write_config(folder, name, **SHORT | changes)).with_model(model)


def train(folder, name="toy", **changes):
    assert run(config_of(folder, name, **changes), Request(PROJECT), HERE) == 0
    return load_state(state_path(folder, name))


def first_model(config):
    """The model with which a run of `config` begins."""
    return new_model(config, HERE.device, initial_of(config))


def refused(config) -> str:
    with pytest.raises(UserError) as error:
        initial_of(config)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("init [a] $b")
    write_tokens(folder / "toy.h5", 6_000)
    train(folder, "source_forward")
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A folder that transformers itself wrote, tied; its model."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    model = GPT2LMHeadModel(GPT2Config(**GPT2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("hub") / "gpt2"
    model.save_pretrained(folder)
    return folder, model


def test_a_run_begins_with_a_states_weights_at_step_0_with_a_fresh_optimizer(folder):
    source = load_state(state_path(folder, "source_forward"))
    config = config_of(
        folder,
        "back",
        training_params__backwards=True,
        training_params__init_from=str(state_path(folder, "source_forward")),
    )
    model = first_model(config)
    assert all(torch.equal(tensor, source["model"][name]) for name, tensor in model.state_dict().items())
    assert run(config, Request(PROJECT), HERE) == 0
    state = load_state(state_path(folder, "back"))
    assert state["step"] == 4 and state["stages"][0]["first_step"] == 0
    assert {int(entry["step"]) for entry in state["optimizer"]["state"].values()} == {4}
    assert state["initial_weights"] == initial_of(config).facts.model_dump()
    assert state["initial_weights"]["family"] is None and len(state["initial_weights"]["fingerprint"]) == 64


def test_it_goes_on_where_it_was_to_the_bit_with_the_file_gone_too(folder, tmp_path):
    init = tmp_path / "init.state"
    shutil.copy(state_path(folder, "source_forward"), init)
    changes = {"training_params__init_from": str(init), "training_params__steps_to_train": 8}
    whole = train(folder, "whole", **changes)
    train(folder, "halves", **changes | {"training_params__steps_to_train": 4})
    moved = init.rename(tmp_path / "moved.state")
    state = train(folder, "halves", **changes)
    assert all(torch.equal(state["model"][name], whole["model"][name]) for name in whole["model"])
    assert state["initial_weights"] == whole["initial_weights"]
    # the same weights at another place are the same; others, or none, are another run
    more = {"training_params__steps_to_train": 9}
    train(folder, "halves", **more, training_params__init_from=str(moved))
    for other in (str(state_path(folder, "whole")), None):
        with pytest.raises(UserError, match="init_from, whose weights have the fingerprint"):
            train(folder, "halves", **more, training_params__init_from=other)


def test_a_published_gpt2_gives_its_logits_tied_heads_untied(folder, gpt2):
    path, peer = gpt2
    model = first_model(config_of(folder, "hub", training_params__init_from=str(path))).eval()
    tokens = torch.randint(64, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (model(tokens) - peer(tokens).logits).abs().max() < 1e-4
    assert torch.equal(model.head.weight, model.embedding.weight)
    assert model.head.weight.data_ptr() != model.embedding.weight.data_ptr()
    state = train(folder, "hub", training_params__init_from=str(path))
    assert not torch.equal(state["model"]["head.weight"], state["model"]["embedding.weight"])


@pytest.mark.parametrize("how", ["in parts", "as torch's file", "bare names and masks", "half precision"])
def test_the_ways_in_which_weights_are_published(folder, gpt2, tmp_path, how):
    """The same weights have the same fingerprint, but for those that were rounded."""
    from safetensors.torch import load_file, save_file

    path, peer = gpt2
    expected = initial_of(config_of(folder, "hub", training_params__init_from=str(path))).facts.fingerprint
    other = tmp_path / "other"
    if how == "in parts":
        peer.save_pretrained(other, max_shard_size="20KB")
        assert (other / "model.safetensors.index.json").exists()
    else:
        shutil.copytree(path, other)
        tensors = load_file(other / "model.safetensors")
        (other / "model.safetensors").unlink()
        if how == "as torch's file":
            torch.save(tensors, other / "pytorch_model.bin")
        elif how == "half precision":
            save_file({name: tensor.half() for name, tensor in tensors.items()}, other / "model.safetensors")
        else:  # as openai-community/gpt2 is
            bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
            bare |= {f"h.{i}.attn.bias": torch.ones(1, 1, 16, 16).tril() for i in range(2)}
            save_file(bare, other / "model.safetensors")
    found = initial_of(config_of(folder, "hub", training_params__init_from=str(other))).facts.fingerprint
    assert (found == expected) == (how != "half precision")


def test_our_export_comes_back_as_it_was(folder, tmp_path):
    from safetensors.torch import save_file

    from modules.exchange.gpt2 import as_transformers

    config = config_of(folder, "export")
    model = build_model("gpt", 5, **config.model_arguments)
    tensors, theirs = as_transformers(model.state_dict(), config.model_params, 0)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    back = first_model(config_of(folder, "export", training_params__init_from=str(tmp_path)))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.state_dict().items())


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"vocab_size": 65}, ["vocab_size 64 there and 65 here", "embedding.weight [64, 32] there and [65, 32] here"]),
        ({"attn_length": 8}, ["attn_length 16 there and 8 here", "position.weight [16, 32] there and [8, 32] here"]),
        ({"attn_length": 32}, ["position.weight [16, 32] there and [32, 32] here"]),
        ({"n_layers": 3}, ["n_layers 2 there and 3 here", "blocks.2.norm_1.weight none there and [32] here", "more"]),
        ({"n_layers": 1}, ["blocks.1.attention.out.bias [32] there and none here", "more"]),
        ({"n_heads": 4}, ["n_heads 2 there and 4 here"]),
        ({"mlp_ratio": 2.0}, ["blocks.0.mlp.up.weight [128, 32] there and [64, 32] here"]),
        ({"gelu": "exact"}, ["gelu tanh there and exact here"]),
        (
            {"position": "none"},
            ["position learned there and none here", "position.weight [16, 32] there and none here"],
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("source", ["state", "folder"])
def test_another_shape_is_refused_with_what_differs(folder, gpt2, changes, named, source):
    path = state_path(folder, "source_forward") if source == "state" else gpt2[0]
    keys = {f"model_params__{key}": value for key, value in changes.items()}
    line = refused(config_of(folder, "other", training_params__init_from=str(path), **keys))
    for each in named:
        assert each in line, line


def test_a_model_of_several_orders_and_another_kind_of_model_are_refused(folder, gpt2):
    path = str(state_path(folder, "source_forward"))
    both = {"training_params__order": "both", "training_params__backwards": None}
    line = refused(config_of(folder, "both", training_params__init_from=path, **both))
    assert "embedding.weight [64, 32] there and [66, 32] here" in line
    config = config_dict(folder, training_params__init_from=path)
    config["model_params"] = dict(vocab_size=64, n_layers=2, embed_dim=32, desired_attn_length=16)
    for where, expected in ((path, "model gpt there and gru here"), (str(gpt2[0]), "GPT")):
        config["training_params"]["init_from"] = where
        (folder / "gru.json").write_text(json.dumps(config))
        assert expected in refused(load_config(folder / "gru.json").with_model("gru"))


def damaged_folders():
    def truncated(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])

    def junk(folder):
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)

    def no_weights(folder):
        (folder / "model.safetensors").unlink()

    def no_config(folder):
        (folder / "config.json").unlink()

    def another_kind(folder):
        (folder / "config.json").write_text('{"model_type": "llama"}')

    def another_scale(folder):
        edited(folder, scale_attn_by_inverse_layer_idx=True)

    def another_activation(folder):
        edited(folder, activation_function="relu")

    def no_json(folder):
        (folder / "config.json").write_bytes(b"\xff\x00{")

    def pickled(folder):
        (folder / "model.safetensors").unlink()
        torch.save({"weights": print}, folder / "pytorch_model.bin")

    def index_leads_elsewhere(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"wte.weight": "../../x.safetensors"}}')

    def part_is_missing(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"wte.weight": "x.safetensors"}}')

    def not_finite(folder):
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        tensors["transformer.wpe.weight"][3, 3] = float("nan")
        save_file(tensors, folder / "model.safetensors")

    def edited(folder, **changes):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return {
        truncated: "truncated, damaged",
        junk: "truncated, damaged",
        no_weights: "expected model.safetensors",
        no_config: "no such file",
        another_kind: "expected 'gpt2', found \"llama\"",
        another_scale: "scale_attn_by_inverse_layer_idx",
        another_activation: "gelu relu there and tanh here",
        no_json: "expected JSON",
        pickled: "without running code",
        index_leads_elsewhere: "expected the name of a file",
        part_is_missing: "x.safetensors",
        not_finite: "not finite",
    }


@pytest.mark.parametrize("damage, expected", damaged_folders().items(), ids=lambda each: getattr(each, "__name__", ""))
def test_a_damaged_folder_is_one_line(folder, gpt2, tmp_path, damage, expected):
    shutil.copytree(gpt2[0], tmp_path / "copy")
    damage(tmp_path / "copy")
    line = refused(config_of(folder, "damaged", training_params__init_from=str(tmp_path / "copy")))
    assert expected in line, line


def test_a_missing_and_a_truncated_state_are_one_line(folder, tmp_path):
    assert "no such state or folder" in refused(
        config_of(folder, "x", training_params__init_from=str(tmp_path / "none"))
    )
    path = tmp_path / "cut.state"
    path.write_bytes(state_path(folder, "source_forward").read_bytes()[:-500])
    assert "truncated or damaged" in refused(config_of(folder, "x", training_params__init_from=str(path)))


def test_only_runs_that_began_alike_are_compared(folder, tmp_path):
    """The same weights for both orders; or each order's own, where the path says so and these might be compared."""
    train(folder, "source_backward", training_params__backwards=True)
    source, other = (str(state_path(folder, f"source_{order}")) for order in ("forward", "backward"))

    def pair(name, forward, backward):
        for order, init in (("forward", forward), ("backward", backward)):
            init = {"training_params__init_from": init}
            train(folder, f"{name}_{order}", training_params__backwards=order == "backward", **init)
        return [read_run(state_path(folder, f"{name}_{order}")) for order in ("forward", "backward")]

    ((found, *_),) = (pair_up(pair("same", source, source)),)
    lines = history_of(found[0][0])
    assert len(lines) == 1 and "began with the weights of" in lines[0] and source in lines[0]
    for name, forward, backward in (("mixed", source, other), ("half", source, None)):
        with pytest.raises(UserError, match="initial weights"):
            pair_up(pair(name, forward, backward))
    by_order = str(state_path(folder, "source_{order}"))
    runs = pair("own", by_order, by_order)
    assert len(pair_up(runs)) == 1
    began = [one.state["initial_weights"] for one in runs]
    assert began[0]["fingerprint"] != began[1]["fingerprint"] and began[0]["family"] == began[1]["family"]
    assert [each["path"] for each in began] == [source, other]
    # a source that was trained for longer is of another family
    train(folder, "longer_forward", training_params__steps_to_train=5)
    shutil.copy(state_path(folder, "source_backward"), state_path(folder, "longer_backward"))
    by_order = str(state_path(folder, "longer_{order}"))
    with pytest.raises(UserError, match="initial weights"):
        pair_up(pair("unlike", by_order, by_order))


def test_one_config_measures_from_given_weights_without_a_control(folder, gpt2, capsys):
    """The control has tokens of its own, which these weights do not know."""
    path = write_config(folder, "measured", **SHORT, training_params__init_from=str(gpt2[0]))
    runs = with_controls_of(planned_runs([str(path)], seeds=1), PROJECT, wanted=None)
    assert [one.order for one in runs] == ["forward", "backward"]
    assert "init_from has weights of the text's tokens" in capsys.readouterr().err
    for one in runs:
        assert run(one, Request(PROJECT), HERE) == 0
    states = [files_of(one, PROJECT).state for one in runs]
    wish = Wish(folder / "report", command="the command")
    report_on(measured_states(states, HERE.device, wish), wish)
    assert "began with the weights of" in (folder / "report" / "report.md").read_text()
    with pytest.raises(UserError, match="no control to train: training_params.init_from"):
        with_controls_of(runs, PROJECT, wanted=True)


@pytest.mark.slow
def test_processes_that_share_a_model_begin_with_the_same(folder, gpt2):
    """Half a minute: two processes that start."""
    sharded = write_config(
        folder,
        "sharded",
        **SHORT,
        training_params__init_from=str(gpt2[0]),
        training_params__parallel="fsdp",
        model_params__dropout=0.0,
    )
    done = run_script("train_parallel.py", sharded, "--nproc", 2, "-d", "cpu", "-p", PROJECT)
    assert done.returncode == 0, done.stderr
    plain = train(folder, "plain", training_params__init_from=str(gpt2[0]), model_params__dropout=0.0)
    found = load_state(state_path(folder, "sharded"))
    assert found["initial_weights"] == plain["initial_weights"]
    for name, tensor in plain["model"].items():
        torch.testing.assert_close(found["model"][name], tensor, atol=2e-3, rtol=0)
    # the folder of a sharded state is a state like any other
    source = state_path(folder, "sharded").with_suffix(".sharded")
    config = config_of(folder, "again", training_params__init_from=str(source))
    assert all(torch.equal(tensor, found["model"][name]) for name, tensor in first_model(config).state_dict().items())


def test_another_tokenizer_is_told_of(folder, tmp_path, capsys):
    write_tokens(tmp_path / "toy.h5", 6_000, tokenizer_fingerprint="e" * 64)
    train(tmp_path, "other", training_params__init_from=str(state_path(folder, "source_forward")))
    assert "ids mean other tokens" in capsys.readouterr().err
    train(folder, "same", training_params__init_from=str(state_path(folder, "source_forward")))
    assert "ids mean other tokens" not in capsys.readouterr().err


def test_a_dry_run_reads_them_too(folder, gpt2):
    from modules.training.dry_run import dry_run

    dry_run(config_of(folder, "dry", training_params__init_from=str(gpt2[0])), HERE)
    with pytest.raises(UserError, match="no such state or folder"):
        dry_run(config_of(folder, "dry", training_params__init_from="nowhere"), HERE)
    assert data_of(config_of(folder, "dry"), None, HERE)


def test_the_config_that_the_page_shows_is_one():
    page = (ROOT / "docs" / "exchange.md").read_text(encoding="utf-8")
    shown = page.partition("A published GPT-2, trained on")[2].partition("```json\n")[2].partition("```")[0]
    config = parse_config(json.loads(shown), "gpt2")
    published = GPT2Config(model_type="gpt2")
    there = [published.vocab_size, published.n_layer, published.n_head, published.n_embd, published.n_positions]
    assert config.init_path == "gpt2" and list(config.model_params.model_dump().values())[:5] == there
