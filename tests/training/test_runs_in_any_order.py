"""Runs in other orders of reading: they train, are validated in text order, resume bit by bit, stay what they are."""

import json

import numpy as np
import pytest
import torch

from modules.config import load_config
from modules.data.orders import positions
from modules.measurement.evaluation import held_out_windows, load_model
from modules.measurement.pairing import pair_up, read_run
from modules.models import LanguageModel
from modules.models.evaluate import held_out_losses, snippet
from modules.system.errors import UserError
from modules.training import validations
from modules.training.checkpoint import load_state
from modules.training.parallel import Processes
from modules.training.run import Request, run
from tests.toy import PROJECT, metrics_of, state_path, write_config

HERE = Processes(0, 1, torch.device("cpu"))
CPU = torch.device("cpu")


def train(folder, name="toy", model="gpt", steps=8, cooldown=None, **changes):
    """Train in this process; the run's state."""
    changes = {"steps_to_train": steps, "save_every": 100, "backwards": None, **changes}
    path = write_config(folder, name, **{f"training_params__{key}": value for key, value in changes.items()})
    if model != "gpt":
        config = json.loads(path.read_text())
        config["model_params"]["desired_attn_length"] = config["model_params"].pop("attn_length")
        del config["model_params"]["n_heads"]
        path.write_text(json.dumps(config))
    assert run(load_config(path).with_model(model), Request(PROJECT, cooldown=cooldown), HERE) == 0
    return load_state(state_path(folder, name))


def same_bits(a, b):
    return all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])


@pytest.mark.parametrize("order", ["even_odd", "fresh_random", "both"])
def test_a_run_resumes_bit_by_bit_in_any_order(tmp_path, order):
    for folder, halves in ((tmp_path / "whole", [8]), (tmp_path / "halves", [3, 8])):
        folder.mkdir()
        states = [train(folder, steps=steps, order=order, stride=300) for steps in halves]  # several epochs
    assert same_bits(states[-1], load_state(state_path(tmp_path / "whole")))
    config = json.loads((folder / "toy.json").read_text())
    assert load_config(folder / "toy.json").order == ("forward + backward" if order == "both" else order)
    config["training_params"]["order"] = "forward"
    (folder / "toy.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"training_params.order .* there and forward in the config"):
        run(load_config(folder / "toy.json").with_model("gpt"), Request(PROJECT), HERE)


def test_both_is_refused_with_a_state_of_one_direction(tmp_path):
    train(tmp_path, steps=2)
    with pytest.raises(UserError, match=r"training_params.order forward there and forward \+ backward in the config"):
        train(tmp_path, steps=4, order="both")


@pytest.mark.parametrize("model", ["gpt", "gru", "lstm"])
def test_the_logged_loss_is_that_of_the_evaluated_state_in_each_order(tmp_path, model):
    train(tmp_path, model=model, order=["backward", "chunks:4", "forward"])
    trained = read_run(state_path(tmp_path))
    entry = metrics_of(tmp_path)[-1]
    by_order = validations.read(tmp_path / "runs" / PROJECT / "validations" / "toy", 8, 3, trained.held_out_windows)
    assert list(entry["losses"]) == ["backward", "chunks:4", "forward"]
    losses = []
    for number, windows in enumerate(held_out_windows(trained).in_each_order()):
        losses.append(held_out_losses(load_model(trained, CPU), windows, 16, CPU))
        assert entry["losses"][list(entry["losses"])[number]] == pytest.approx(losses[-1].mean(), rel=1e-6)
        np.testing.assert_allclose(by_order[number], losses[-1].mean(axis=1), rtol=1e-5)
    assert entry["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert not np.allclose(losses[0], losses[2]), "told by its start token, it reads otherwise"
    compared = [[(one.order, other.order) for one, other in pairs] for pairs in pair_up([trained])]
    assert compared == [[("forward", "backward")], [("forward", "chunks:4")]], "with itself"


@pytest.mark.parametrize("order", ["forward", "backward", "even_odd", "fresh_random", "both"])
def test_snippets_are_in_text_order(tmp_path, order):
    """A model that writes its steps down, 1, 2, 3 ... after BOS, shows when each place of the text was read."""
    train(tmp_path, steps=1, order=order)
    (windows := held_out_windows(read_run(state_path(tmp_path)))).batch([0])

    class Counting(LanguageModel):
        def next_logits(self, tokens_BT, cache=None):
            assert (tokens_BT.ndim == 3) == (order == "fresh_random")
            return torch.eye(64)[tokens_BT.shape[1]][None] * 1e9

    class Toki:
        def detokenize(self, tokens):
            return " ".join(map(str, tokens.flatten().tolist()))

    made = snippet(Counting(64, 2, 16), windows, Toki(), 5, 0, CPU)
    if order == "both":
        assert made == "forward: 1 2 3 4 5\nbackward: 5 4 3 2 1"
    elif order in ("forward", "backward"):
        assert made == ("1 2 3 4 5" if order == "forward" else "5 4 3 2 1")
    else:
        places = windows.places([0]).ravel() if order == "fresh_random" else positions(order, 16)
        read_at = np.array([int(step) for step in made.split()])
        assert read_at[places].tolist() == list(range(1, 17))


def test_a_cool_down_as_a_share_of_the_steps(tmp_path):
    state = train(tmp_path, "share", steps=20, cooldown_finish=0.25, save_every=10)
    stage = state["stages"][-1]["optim_params"]
    assert (stage["cooldown_start"], stage["cooldown_steps"]) == (15, 5) and len(state["stages"]) == 1
    train(tmp_path, "now", steps=9, cooldown_finish=None)
    state = train(tmp_path, "now", steps=9, cooldown_finish=0.25, cooldown=0)  # 3 of 12 steps
    assert (state["step"], state["stages"][-1]["optim_params"]["cooldown_start"]) == (12, 9)
    with pytest.raises(UserError, match="--cooldown: expected a number of steps, as nothing is trained yet"):
        train(tmp_path, "new", cooldown_finish=0.25, cooldown=0)
    with pytest.raises(
        UserError, match="--cooldown: expected a number of steps, as the config has no .*cooldown_finish"
    ):
        train(tmp_path, "share2", cooldown=0)


@pytest.mark.parametrize(
    "changes, problem",
    [
        (dict(order="evenodd"), 'order: expected an order of reading, found "evenodd"; the nearest is even_odd'),
        (dict(order=[0, 1, 2]), "order: expected 16 positions, as many as the context has tokens, found 3"),
        (dict(order=[0, *range(15)]), "order: .* found 0 twice or more and 15 missing"),
        (dict(order=7), "order: expected a name or a list, found 7"),
        (dict(order="fresh_random", model="gru"), 'order: expected a fixed order, found "fresh_random"'),
    ],
)
def test_bad_orders_are_one_line(tmp_path, changes, problem):
    with pytest.raises(UserError, match=f"training_params.{problem}") as refused:
        train(tmp_path, **changes)
    assert "\n" not in str(refused.value)


def test_fresh_orders_need_learned_positions(tmp_path):
    for position in ("rope", "none"):
        path = write_config(tmp_path, training_params__order="fresh_random", model_params__position=position)
        with pytest.raises(UserError, match='model_params.position "learned"'):
            load_config(path)
    path = write_config(tmp_path, model_params__position="rope", model_params__embed_dim=34)
    with pytest.raises(UserError, match="heads of even width for rotary positions, found embed_dim / n_heads = 17"):
        load_config(path)


@pytest.mark.parametrize("position", ["rope", "none"])
def test_other_positions_train_in_any_order(tmp_path, position):
    path = write_config(tmp_path, training_params__order="chunks:8", model_params__position=position)
    assert run(load_config(path).with_model("gpt"), Request(PROJECT), HERE) == 0
    losses = [entry["loss"] for entry in metrics_of(tmp_path)]
    assert losses[-1] < losses[0] - 0.2
