"""A model exported for others: transformers itself opens it and gives our logits; whatever goes wrong leaves nothing
half."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch

from modules.config import load_config, parse_config
from modules.data.token_file import open_tokens
from modules.data.windows import Windows
from modules.export import export
from modules.models import build_model
from modules.system.errors import UserError
from modules.system.files import new_folder, sweep
from modules.tokenizer import get_tokenizer
from modules.training.checkpoint import load_state, save_state
from modules.training.parallel import Processes
from modules.training.run import Request, run
from tests.faults import Failing, Killed, Moment, in_process
from tests.toy import PROJECT, run_script, state_path, write_config, write_tokens

HERE = Processes(0, 1, torch.device("cpu"))
TEXT = "the cat sat on the mat, and the dog ran\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, their tokenizer and short runs: state_path(folder, name)."""
    from modules.tok_utils import create_tokenizer

    folder = tmp_path_factory.mktemp("runs $HOME [a] b")
    (folder / "text.txt").write_text(TEXT * 200)
    toki = get_tokenizer(create_tokenizer(folder / "text.txt", folder, "toki", vocab_size=300))
    size = {"model_params__vocab_size": toki.vocab_size, "training_params__steps_to_train": 2}
    write_tokens(folder / "toy.h5", 6_000, toki.vocab_size, tokenizer_fingerprint=toki.fingerprint)
    models = {
        "gpt": {"training_params__backwards": True},
        "rope": {"model_params__position": "rope", "model_params__gelu": "exact"},
        "none": {"model_params__position": "none", "model_params__mlp_ratio": 2.5},
        "even_odd": {"training_params__order": "even_odd", "training_params__backwards": None},
        "both": {"training_params__order": "both", "training_params__backwards": None},
        "fresh": {"training_params__order": "fresh_random", "training_params__backwards": None},
    }
    for name, changes in models.items():
        config = load_config(write_config(folder, name, **size, **changes)).with_model("gpt")
        assert run(config, Request(PROJECT), HERE) == 0
        roughen(state_path(folder, name))
    for name in ("gru", "lstm"):
        config = json.loads(write_config(folder, name, **size).read_text())
        for key in ("n_heads", "attn_length"):
            del config["model_params"][key]
        config["model_params"]["desired_attn_length"] = 16
        (folder / f"{name}.json").write_text(json.dumps(config))
        assert run(load_config(folder / f"{name}.json").with_model(name), Request(PROJECT), HERE) == 0
    return folder


def roughen(path: Path) -> None:
    """Random numbers on all weights of a state: at zero biases and norms of one a mix-up would not show."""
    state, generator = load_state(path), torch.Generator().manual_seed(7)
    state["model"] = {
        name: tensor + 0.2 * torch.randn(tensor.shape, generator=generator) for name, tensor in state["model"].items()
    }
    save_state(state, path)


def ours(path: Path) -> torch.nn.Module:
    state = load_state(path)
    config = parse_config(state["config"], state["run"])
    model = build_model(config.trained_model, 0, **config.model_arguments).eval()
    model.load_state_dict(state["model"])
    return model


@pytest.mark.parametrize(
    "name, kind", [("gpt", "GPT2LMHeadModel"), ("none", "GPT2LMHeadModel"), ("rope", "GPTNeoXForCausalLM")]
)
def test_transformers_gives_our_logits(folder, tmp_path, name, kind):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    line = export(state_path(folder, name), tmp_path / "out", str(folder / "toki"), "the command")
    assert kind in line
    peer, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(peer).__name__ == kind and not any(info[key] for key in info if "keys" in key), info
    toki = get_tokenizer(folder / "toki")
    tokens = torch.randint(toki.vocab_size, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = ours(state_path(folder, name))(tokens), peer.eval()(tokens).logits
    assert (expected - found).abs().max() < 1e-4 and expected.std() > 0.3
    assert not peer.config.tie_word_embeddings
    assert peer.config.bos_token_id == peer.config.eos_token_id == toki.bos_id

    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (TEXT, "é 世界 \n\n  x", ""):
        assert theirs(text, add_special_tokens=False).input_ids == toki.encode(text)
    assert theirs.bos_token_id == theirs.eos_token_id == toki.bos_id
    assert theirs.decode(toki.encode(TEXT)) == TEXT


@pytest.mark.parametrize("name", ["gpt", "even_odd", "gru", "lstm"])
def test_the_card_says_what_is_known_and_its_code_reads_as_the_model_was_trained(folder, tmp_path, monkeypatch, name):
    """The logits of the card's code are those that give the losses of our own windows, in the model's order."""
    path, out = state_path(folder, name), tmp_path / "out"
    export(path, out, str(folder / "toki"), "python export_hf.py $x `y`")
    state, text = load_state(path), (out / "README.md").read_text()
    config = parse_config(state["config"], state["run"])
    dataset = state["dataset"]
    for fact in (dataset["fingerprint"], dataset["tokenizer_fingerprint"], "2 steps", "    python export"):
        assert fact in text, text
    assert re.search(r"held-out loss \| \d\.\d{4} nats per token over the 512 tokens", text), text
    assert ("reads-backward" in text) == (name == "gpt")
    known = json.loads((out / "config.json").read_text())["backperplexity"]
    assert (known["order"], known["step"], known["command"]) == (config.order, 2, "python export_hf.py $x `y`")

    code = text.partition("```python\n")[2].partition("```")[0]
    sentence = re.search(r'text = "(.*)"', code)[1]
    toki = get_tokenizer(folder / "toki")
    ids = toki.encode(sentence)[:16]
    assert len(ids) == 16
    code = code.replace(f'"{sentence}"', repr(toki.backend.decode(ids)))
    monkeypatch.chdir(out)
    there: dict = {}
    exec(code, there)
    windows = Windows(open_tokens(folder / "toy.h5"), 0, 1, 16, 16, config.reading)
    monkeypatch.setattr(type(windows.token_file), "gather", lambda *_: torch.tensor([ids]).numpy())
    inputs, targets = windows.batch(torch.tensor([0]).numpy())
    assert there["read"].tolist() == inputs.tolist()
    expected = ours(path).losses(inputs, targets)
    found = torch.nn.functional.cross_entropy(there["logits"][0], targets[0], reduction="none")
    torch.testing.assert_close(found, expected[0], atol=1e-4, rtol=1e-4)
    assert ("written" in there) == (name != "even_odd")


def test_lm_eval_opens_it(folder, tmp_path):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    path = state_path(folder, "none")
    export(path, tmp_path / "out", str(folder / "toki"), "the command")
    model = huggingface.HFLM(pretrained=str(tmp_path / "out"), device="cpu", batch_size=1)
    (found,) = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("the cat sat",), 0)])
    toki = get_tokenizer(folder / "toki")
    ids = toki.encode("the cat sat")
    losses = ours(path).losses(torch.tensor([[toki.bos_id, *ids[:-1]]]), torch.tensor([ids]))
    assert found == pytest.approx(-losses.sum().item(), abs=1e-3)


@pytest.mark.parametrize("name, why", [("both", "start tokens"), ("fresh", "places")])
def test_what_no_other_model_computes_is_refused(folder, tmp_path, name, why):
    with pytest.raises(UserError, match=why):
        export(state_path(folder, name), tmp_path / "out", str(folder / "toki"), "the command")
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_and_a_folder_that_is_there_are_refused(folder, tmp_path):
    path = state_path(folder, "gpt")
    with pytest.raises(UserError, match="not the tokenizer"):
        export(path, tmp_path / "out", "modules/tokenizers/en_tokenizer", "the command")
    with pytest.raises(UserError, match="found a folder without facts.pt"):
        export(tmp_path, tmp_path / "out", str(folder / "toki"), "the command")
    with pytest.raises(UserError, match="no such state"):
        export(tmp_path / "none.state", tmp_path / "out", str(folder / "toki"), "the command")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UserError, match="empty folder"):
        export(path, tmp_path / "out", str(folder / "toki"), "the command")
    with pytest.raises(UserError, match="empty folder"):
        export(path, tmp_path / "out" / "mine", str(folder / "toki"), "the command")
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "mine"] and (
        tmp_path / "out" / "mine"
    ).read_text() == "mine"


def test_the_script_says_what_it_did(folder, tmp_path):
    out = tmp_path / "a [b] c"
    done = run_script("export_hf.py", state_path(folder, "gpt"), out, "-t", folder / "toki")
    assert done.returncode == 0 and "reads backward" in done.stdout, done.stderr
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


# Faults
# ----------------------------------------------------------------------------------------------------------------------


def exported(folder: str, out: str) -> str:
    torch.set_num_threads(1)
    return export(state_path(Path(folder), "gpt"), Path(out), str(Path(folder) / "toki"), "the command")


def exported_to_a_small_disk(folder: str, out: str) -> str:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    return exported(folder, out)


def test_no_room_for_the_weights_is_one_line(folder, tmp_path):
    """safetensors writes past Python, where the watch of the trials below does not see it."""
    (tmp_path / "work").mkdir()
    ended = in_process(tmp_path / "work", exported_to_a_small_disk, str(folder), "out")
    assert ended.how == "refused" and "out: the weights cannot be written" in ended.value, ended
    assert os.listdir(tmp_path / "work") == []


def test_a_kill_or_a_full_disk_leaves_nothing_half_and_the_next_export_sweeps(folder, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    whole = in_process(work, exported, str(folder), "whole")
    assert whole.how == "ok", whole
    moments = [moment for moment in whole.events if moment.action in ("write", "mkdir", "fsync", "rename")]
    moments = moments[:: len(moments) // 9]
    assert len(moments) > 8
    for number, moment in enumerate(moments):
        moment = Moment(moment.action, moment.where.replace("whole", "out"), moment.number)
        fault = Killed(moment) if number % 2 else Failing(moment, 28)
        ended = in_process(work, exported, str(folder), "out", fault=fault)
        assert ended.how in (None, "refused") and not (work / "out").exists(), (str(fault), ended)
        if ended.how is None:
            assert ended.status == -signal.SIGKILL
    again = in_process(work, exported, str(folder), "out")
    assert again.how == "ok" and sorted(os.listdir(work)) == ["out", "whole"], again
    for file in (work / "out").iterdir():
        assert file.read_bytes() == (work / "whole" / file.name).read_bytes(), file.name


def test_a_new_folder_of_one_that_lives_is_left_alone(tmp_path):
    with new_folder(tmp_path / "out") as temporary:
        sweep(tmp_path)
        assert temporary.is_dir() and not (tmp_path / "out").exists()
        (temporary / "file").write_text("content")
    assert (tmp_path / "out" / "file").read_text() == "content" and len(os.listdir(tmp_path)) == 1
