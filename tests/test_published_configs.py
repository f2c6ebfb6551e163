"""The paper's authors' configs load and mean what they meant: a fixture in their form, and theirs where they lie beside
this project."""

import json
from pathlib import Path

import pytest

from modules.config import load_config
from modules.data.orders import positions
from modules.system.errors import UserError
from modules.training.schedule import lr_at

BESIDE = [folder / "shared" / "published" for folder in Path(__file__).parents]
PUBLISHED = next((folder for folder in BESIDE if folder.exists()), None)
LATER = {
    "model_params": {
        "vocab_size": 50257, "n_layers": 24, "n_heads": 16, "embed_dim": 1024, "attn_length": 8, "mlp_ratio": 4.0,
        "dropout": 0.1, "embd_dropout": None,
    },
    "training_params": {
        "dataset_folder": "datavol/french/french.h5", "tokenizer_path": "modules/tokenizers/fr_tokenizer",
        "batch_size": 100, "aggregate": 2, "backwards": None, "permutation": None, "steps_to_train": 400_000,
        "save_every": 3000, "backup_every": 15000, "step_log": 200, "valid_steps": 1000, "val_batch_size": 5,
        "state_save_loc": "runs", "save_loc": "datavol/refinements/runs/", "fast_scrambling": False,
        "cooldown_finish": 0.15,
    },
    "optim_params": {"lr": 0.0001, "warmup_steps": 5000, "lr_init": 1e-07, "lr_min": 1e-06},
}  # fmt: skip


@pytest.fixture
def later(tmp_path):
    def load(**changes):
        path = tmp_path / "later.json"
        path.write_text(json.dumps(LATER | {"training_params": LATER["training_params"] | changes}))
        return load_config(path)

    return load


def test_their_keys_mean_ours(later):
    config = later()
    params = config.training_params
    assert (params.state_save_loc, params.valid_batch_size) == ("datavol/refinements/runs/", 5)
    assert (config.order, params.backwards, params.tokenizer_path) == (
        "forward",
        False,
        "modules/tokenizers/fr_tokenizer",
    )
    assert later(save_loc=None).training_params.state_save_loc == "runs"


def test_a_permutation_goes_before_backwards(later):
    for backwards in (True, False, None):
        config = later(permutation=[0, 7, 1, 6, 2, 5, 3, 4], backwards=backwards)
        assert config.order == "ends_in" and not config.training_params.backwards
        config = later(permutation=[7, 6, 5, 4, 3, 2, 1, 0], backwards=backwards)
        assert config.order == "backward" and config.training_params.backwards
    with pytest.raises(UserError, match="order or permutation, which are the same"):
        later(permutation="even_odd", order="even_odd")


def test_warm_up_constant_cool_down(later):
    optim = later().cooled(400_000).optim_params
    assert (optim.oscil_steps, optim.cooldown_start, optim.cooldown_steps) == (None, 340_000, 60_000)
    rates = {step: lr_at(step, optim) for step in (0, 2_500, 5_000, 200_000, 340_000, 370_000, 400_000)}
    assert rates == pytest.approx(dict(zip(rates, [1e-7, 5.005e-5, 1e-4, 1e-4, 1e-4, 5e-5, 0], strict=True)))
    assert later(cooldown_finish=None).cooled(400_000).optim_params.cooldown_start is None


def test_a_word_where_a_permutation_belongs_is_refused(later):
    with pytest.raises(UserError, match='found "gugugaga"; valid are forward, backward, middle_out') as refused:
        later(permutation="gugugaga")
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(PUBLISHED is None, reason="the published configs are not here")
def test_all_that_they_published():
    orders = {
        "bw": "backward", "fw": "forward", "mid_out": "middle_out", "end_in": "ends_in", "even_odd": "even_odd",
        "odd_even": "odd_even", "half_bwff": "halves:backward,forward", "half_fwbw": "halves:forward,backward",
    }  # fmt: skip
    loaded, refused = 0, []
    for path in sorted(PUBLISHED.glob("configs*/**/*.json")):
        said = json.loads(path.read_text())["training_params"]
        try:
            config = load_config(path)
        except UserError as error:
            refused.append(str(error))
            continue
        loaded += 1
        expected = list(range(config.model_params.context))
        expected = said.get("permutation") or (expected[::-1] if said.get("backwards") else expected)
        (order,) = config.orders
        assert positions(order, config.model_params.context).tolist() == expected
        short = path.stem.removeprefix("fr_256_")
        assert "perm_zoo" not in path.parts or orders.get(short, config.order) == config.order
    assert loaded == 122 + 69 and len(refused) == 1 and "gugugaga" in refused[0]


def test_order_and_backwards_must_agree(later):
    for order, backwards in (("backward", False), ("even_odd", True), ("both", True), ([0, 1, 2, 3, 4, 5, 6, 7], True)):
        with pytest.raises(UserError, match=f"order and backwards to agree, .* {str(backwards).lower()}; leave"):
            later(order=order, backwards=backwards)
    for order, backwards in (("backward", True), ("backward", None), ("even_odd", False), ("both", False)):
        config = later(order=order, backwards=backwards)
        assert config.training_params.backwards == (order == "backward")
        assert config.with_training(seed=1).with_training(seed=0).to_dict() == config.to_dict()
    for changes in ({"order": "backward"}, {"backwards": True}):
        assert later(order="even_odd").with_training(**changes).order == "backward"
    assert later(backwards=True).with_training(order="forward").order == "forward"
