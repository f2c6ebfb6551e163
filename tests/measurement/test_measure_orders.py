"""Any orders of reading in measure_arrow.py: what is trained, what is compared with what, that all comes back to text
order, and what is refused."""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modules.data.token_file import open_tokens
from modules.measurement.loss_files import read_losses
from modules.measurement.pairing import base_name, in_run_name, pair_up, read_run
from modules.measurement.runs import planned_runs
from modules.models import build_model
from modules.system.errors import UserError
from modules.tokenizer import get_tokenizer
from tests.measurement.test_control import config, dataset
from tests.measurement.test_measure import measure

T, VOCAB = 16, 300
LISTED = [3, 1, 2, 0, *range(4, T)]
PLACES = {  # written out, by the name of the order
    "forward": list(range(T)),
    "backward": list(range(T))[::-1],
    "even_odd": [0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15],
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two seeds of three orders and of one model of both directions."""
    folder = tmp_path_factory.mktemp("orders")
    path = config(folder, dataset(folder))
    (folder / "mine.txt").write_text("It reads on. And on again, to the end.")
    told = measure(
        *(path, "--orders", "backward", "even_odd", "both", "--seeds", 2, "-p", "test", "-d", "cpu", "--save_losses"),
        *("--no_control", "-t", folder / "prose_tokenizer", "--text", folder / "mine.txt"),
    )
    assert told.returncode == 0, told.stderr
    return folder, told


def report_of(out) -> dict:
    return json.loads((out / "arrow.json").read_text())


def comparisons(out) -> dict:
    return {each["name"]: each for each in report_of(out)["comparisons"]}


def state(folder, order, seed=0):
    return folder / "runs" / "test" / "state" / f"tiny_{order}_seed{seed}.state"


def plain_losses(folder, run, places, start_id=None) -> np.ndarray:
    """Nats of the held-out tokens [160, T] in text order: windows, logits and softmax written out anew."""
    found = torch.load(state(folder, run), weights_only=True)
    data = open_tokens(folder / "prose.h5")
    text = torch.tensor(data.tokens[-160 * T :].astype(np.int64)).view(-1, T)
    own = {"start_tokens": 2} if start_id is not None else {}
    model = build_model("gpt", 99, **found["config"]["model_params"], **own).eval()
    model.load_state_dict(found["model"])
    targets = text[:, places]
    start = torch.full((len(text), 1), data.bos_id if start_id is None else start_id)
    with torch.no_grad():
        logits = model(torch.cat([start, targets[:, :-1]], dim=1))
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").numpy()
    in_text = np.empty_like(losses)
    in_text[:, places] = losses
    return in_text


def test_each_order_is_trained_once_for_each_seed_and_compared_to_forward(measured):
    folder, told = measured
    runs = sorted(path.stem for path in (folder / "runs" / "test" / "state").glob("*.state"))
    orders = ("backward", "both", "even_odd", "forward")
    assert runs == [f"tiny_{order}_seed{seed}" for order in orders for seed in (0, 1)]
    out = folder / "runs" / "test" / "report"
    found = comparisons(out)
    names = ["tiny", "tiny, even_odd", "tiny, forward + backward in one model"]
    assert set(found) == set(names)
    assert found["tiny, even_odd"]["compared"]["runs"] == [
        f"tiny_{order}_seed{seed}" for seed in (0, 1) for order in ("forward", "even_odd")
    ]
    assert found[names[2]]["compared"]["runs"] == ["tiny_both_seed0", "tiny_both_seed1"]
    for name in names:
        assert f"{name}: 2,560 held-out tokens, 2 seed(s)" in told.stdout
    for picture in ("tiny-orders", "tiny-loss", "tiny-loss-by-tokens-read", "tiny-loss-by-place"):
        assert (out / f"{picture}.png").stat().st_size and f"({picture}.png)" in (out / "report.md").read_text()
    assert not list(out.glob("tiny, even_odd-loss*")), "one figure for all orders of a config"


@pytest.mark.parametrize(
    "name, order, run, start_id",
    [
        ("tiny", "forward", "forward", None),
        ("tiny", "backward", "backward", None),
        ("tiny, even_odd", "even_odd", "even_odd", None),
        ("tiny, forward + backward in one model", "forward", "both", VOCAB),
        ("tiny, forward + backward in one model", "backward", "both", VOCAB + 1),
    ],
)
def test_losses_are_those_of_a_plain_evaluation_at_their_places_in_the_text(measured, name, order, run, start_id):
    folder, _ = measured
    found = comparisons(folder / "runs" / "test" / "report")[name]
    side, places = "forward" if order == "forward" else "backward", PLACES[order]
    losses = np.mean([plain_losses(folder, run, places, start_id)], axis=0)
    assert found["arrow"]["per_seed"][0][side] == pytest.approx(losses.mean(), abs=1e-5)
    assert set(found["losses"]) == {"forward", found["order"]}
    kept = read_losses(folder / "runs" / "test" / "report" / "losses.npz")
    of_name = kept["tiny" if found["in_one_model"] is None else name].by_order[order]
    np.testing.assert_allclose(of_name[0], losses, atol=1e-4)
    np.testing.assert_allclose(found["by_position"][side], of_name.mean(axis=(0, 1)), atol=1e-5)
    np.testing.assert_allclose(found["by_context"][side], of_name.mean(axis=(0, 1))[places], atol=1e-5)


def test_contrasts_hold_for_all_orders_together(measured):
    folder, _ = measured
    rows = {each["what"]: each for each in report_of(folder / "runs" / "test" / "report")["contrasts"]}
    assert list(rows) == [
        "tiny: backward - forward",
        "tiny: even_odd - forward",
        "tiny: backward - forward in one model of forward + backward",
        "tiny: backward - forward, in one model of forward + backward - in two",
    ]
    assert all(each["p_holm"] >= each["p"] for each in rows.values())
    found = comparisons(folder / "runs" / "test" / "report")
    assert rows["tiny: even_odd - forward"]["both"] == found["tiny, even_odd"]["arrow"]["percent"]["both"]
    one, two = (found[name]["arrow"]["percent"]["value"] for name in ("tiny, forward + backward in one model", "tiny"))
    assert list(rows.values())[-1]["value"] == pytest.approx(one - two)


def test_a_control_is_that_of_its_order_and_an_arrow_of_time_takes_two_mirrored_orders(measured, tmp_path):
    folder, _ = measured
    told = measure(
        *(folder / "tiny.json", "--orders", "backward", "even_odd", "--seeds", 1, "--control"),
        *("-p", "test", "-d", "cpu", "-o", tmp_path),
    )
    found = comparisons(tmp_path)
    assert set(found) == {"tiny", "tiny, even_odd", "tiny_reversed", "tiny_reversed, even_odd"}
    for name in ("tiny", "tiny, even_odd"):
        control, said = found[name.replace("tiny", "tiny_reversed")], found[name]["control"]
        assert said["name"] == control["name"] and control["order"] == found[name]["order"]
        assert said["arrow"] == control["arrow"]["percent"]
    assert told.stdout.count("The half that turns round with the text, the arrow of time, is") == 1
    assert told.stdout.count("The half that turns round with the text is") == 1


def test_checkpoints_of_one_model_have_both_orders(measured):
    folder, _ = measured
    found = comparisons(folder / "runs" / "test" / "report")["tiny, forward + backward in one model"]
    saved = [
        np.load(folder / "runs" / "test" / "validations" / f"tiny_both_seed{seed}" / "000000000004.npy")
        for seed in (0, 1)
    ]
    point = next(each for each in found["convergence"]["points"] if each["step"] == 4)
    forward, backward = np.mean(saved, axis=(0, 2), dtype=np.float64)
    assert point["percent"] == pytest.approx(100 * (backward / forward - 1), abs=1e-3)
    assert found["convergence"]["gaps"] is None, "a training loss is of both orders together"
    valid = found["curves"][0]["backward"]["valid"]
    assert valid["loss"][valid["step"].index(4)] == pytest.approx(saved[0][1].mean(dtype=np.float64), abs=1e-5)


def test_pages_of_any_order_hold_the_text_and_name_the_order(measured):
    folder, told = measured
    page = folder / "runs" / "test" / "report" / "tiny, even_odd-mine-page.html"
    assert str(page) in told.stdout
    html = page.read_text(encoding="utf-8")
    shown = re.sub(r"<[^>]*>", "", re.search(r'<div class="text">(.*?)</div>', html, re.DOTALL)[1])
    assert shown == (folder / "mine.txt").read_text()
    assert "cheaper even_odd" in html and "cheaper backward" not in html and "the arrow is even_odd minus" in html
    assert told.stdout.count("even_odd snippet") == 1


def test_states_are_paired_by_seed_whatever_their_order(measured, tmp_path):
    folder, _ = measured
    runs = [state(folder, order, seed) for seed in (1, 0) for order in ("even_odd", "both", "forward", "backward")]
    told = measure("--states", *runs, "-d", "cpu", "-o", tmp_path)
    assert told.returncode == 0, told.stderr
    found, before = comparisons(tmp_path), comparisons(folder / "runs" / "test" / "report")
    assert len(found) == 3
    for name, each in found.items():
        assert each["compared"]["seeds"] == [0, 1]
        assert each["arrow"]["nats"]["value"] == before[name]["arrow"]["nats"]["value"]


def test_any_order_can_be_the_reference(measured, tmp_path):
    folder, _ = measured
    runs = [state(folder, order, seed) for seed in (0, 1) for order in ("even_odd", "forward", "backward")]
    told = measure("--states", *runs, "-d", "cpu", "-o", tmp_path, "--reference", "even_odd", "--save_losses")
    assert told.returncode == 0, told.stderr
    found, before = comparisons(tmp_path), comparisons(folder / "runs" / "test" / "report")
    assert set(found) == {"tiny, forward against even_odd", "tiny, backward against even_odd"}
    turned = found["tiny, forward against even_odd"]
    assert turned["arrow"]["nats"]["value"] == pytest.approx(-before["tiny, even_odd"]["arrow"]["nats"]["value"])
    np.testing.assert_allclose(turned["by_context"]["forward"], before["tiny, even_odd"]["by_context"]["backward"])
    again = measure("--losses", tmp_path / "losses.npz", "--reference", "even_odd", "-o", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    refound = {each["order"]: each for each in report_of(tmp_path / "again")["comparisons"]}
    assert refound["forward"]["arrow"]["nats"]["value"] == pytest.approx(turned["arrow"]["nats"]["value"], abs=1e-6)
    np.testing.assert_allclose(refound["forward"]["by_context"]["forward"], turned["by_context"]["forward"], atol=1e-5)


def test_saved_losses_give_the_same_report_of_every_order(measured, tmp_path):
    folder, _ = measured
    told = measure("--losses", folder / "runs" / "test" / "report" / "losses.npz", "-o", tmp_path)
    assert told.returncode == 0, told.stderr
    found, before = comparisons(tmp_path), comparisons(folder / "runs" / "test" / "report")
    assert set(found) == set(before)
    for name, each in found.items():
        percent, earlier = each["arrow"]["percent"], before[name]["arrow"]["percent"]
        assert [percent["value"], *percent["both"]] == pytest.approx([earlier["value"], *earlier["both"]], abs=1e-3)


def test_fresh_orders_and_listed_positions_are_measured_too(measured, tmp_path):
    """The finished forward run is used as it is. A list of positions is no order of shorter windows."""
    folder, _ = measured
    before = state(folder, "forward").read_bytes()
    told = measure(
        *(folder / "tiny.json", "--orders", "fresh_random", json.dumps(LISTED), "--seeds", 1, "--no_control"),
        *("-p", "test", "-d", "cpu", "-o", tmp_path, "-t", folder / "prose_tokenizer"),
    )
    assert told.returncode == 0, told.stderr
    assert state(folder, "forward").read_bytes() == before
    fresh, listed = comparisons(tmp_path).values()
    assert (fresh["order"], listed["order"]) == ("fresh_random", in_run_name([tuple(LISTED)]))
    assert [row["length"] for row in listed["by_length"]] == [T]
    assert [row["length"] for row in fresh["by_length"]] == [2, 4, 8, T]
    losses = plain_losses(folder, listed["order"], LISTED)
    np.testing.assert_allclose(listed["by_position"]["backward"], losses.mean(axis=0), atol=1e-5)
    assert np.mean(fresh["by_context"]["backward"]) == pytest.approx(np.mean(fresh["by_position"]["backward"]))
    assert (tmp_path / "tiny, fresh_random-page.html").stat().st_size
    toki = get_tokenizer(folder / "prose_tokenizer")
    snippet = re.search(r"positions_\w+ snippet: '(.*)'", told.stdout)[1]
    assert len(toki.encode(snippet.encode().decode("unicode_escape"))) > 1


@pytest.mark.parametrize(
    "orders, words",
    [
        (["--orders", "even_ood"], "the nearest is even_odd"),
        (["--orders", "chunks:4", "chunks:4,0"], "chunks:4 and chunks:4,0 are the same order"),
        (["--orders", "[0, 1, 1]"], "expected 16 positions"),
        (["--orders", "[0, 1"], "expected positions such as [2, 0, 1]"),
        (["--orders", "forward"], "found it alone"),
        (["--orders", "backward+even_odd"], "expected forward, to which others are compared, among the orders"),
        (["--orders", "both", "--reference", "fast"], 'expected an order of reading, found "fast"'),
    ],
)
def test_orders_that_make_no_measurement_are_one_line_before_any_work(measured, orders, words, tmp_path):
    folder, _ = measured
    told = measure(folder / "tiny.json", *orders, "-p", "refused", "-d", "cpu")
    assert told.returncode == 1 and words in told.stderr and len(told.stderr.strip().splitlines()) == 1
    assert not (folder / "runs" / "refused").exists()


def test_states_without_a_fair_partner_are_refused(measured):
    folder, _ = measured
    forward, even_odd, both = (state(folder, order) for order in ("forward", "even_odd", "both"))
    for given, reference, words in (
        ([even_odd, state(folder, "backward")], "forward", "reads even_odd, but no forward run was given"),
        ([forward, both], "forward", "reads forward, but no run of another order was given"),
        ([both, both], "forward", r"expected one forward \+ backward run, found 2 that are alike"),
        ([both], "even_odd", r"reads forward \+ backward: expected even_odd among its orders"),
        ([forward, state(folder, "even_odd", 1)], "forward", r"differs in training_params.seed \(0 and 1\)"),
    ):
        with pytest.raises(UserError, match=words):
            pair_up([read_run(path) for path in given], reference)


def test_orders_go_with_configs_alone(measured):
    folder, _ = measured
    assert measure("--states", state(folder, "both"), "--orders", "both").returncode == 2


@pytest.mark.parametrize(
    "orders, word",
    [
        (["forward"], "forward"),
        (["forward", "backward"], "both"),
        (["chunks:8"], "chunks-8"),
        (["mallows:0.5,1"], "mallows-0.5,1"),
        (["backward", "even_odd"], "backward+even_odd"),
    ],
)
def test_a_runs_name_has_its_order_and_loses_it_again(orders, word):
    assert in_run_name(orders) == word
    assert base_name(f"a_{word}_b_{word}_seed3", orders) == "a_b" == base_name("a_b", orders)


def test_a_config_with_an_order_of_its_own_is_measured_in_that_order(measured, tmp_path):
    folder, _ = measured
    written = json.loads((folder / "tiny.json").read_text())
    written["training_params"] |= {"order": "even_odd", "backwards": None}
    (tmp_path / "x_even_odd.json").write_text(json.dumps(written))
    runs = planned_runs([str(tmp_path / "x_even_odd.json")], 1)
    assert [(run.name, run.order) for run in runs] == [("x_forward_seed0", "forward"), ("x_even_odd_seed0", "even_odd")]
    both = planned_runs([str(folder / "tiny.json")], 2, ["both"])
    assert [run.name for run in both] == ["tiny_both_seed0", "tiny_both_seed1"], "half the runs"
    several = planned_runs([str(folder / "tiny.json")], 1, ["forward+mallows:1e+0,3"])
    assert [run.orders for run in several] == [("forward", "mallows:1e+0,3")]
