"""measure_arrow.py TEXT: from any text to an arrow, in one command."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from modules.config import load_config
from modules.data.token_file import open_tokens
from modules.measurement import measure as measuring
from modules.measurement import plan as rules
from modules.measurement import prepare
from modules.measurement.plan import Size
from modules.tokenizer import get_tokenizer
from tests.measurement.test_measure import measure
from tests.toy import run_script


def words(n_words: int, seed: int) -> str:
    """A text of a few hundred words, some much more frequent than others, in lines."""
    random = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    known = ["".join(random.choice(letters, random.integers(2, 9))) for _ in range(300)]
    drawn = random.zipf(1.5, n_words) % len(known)
    return "".join(known[word] + ("\n" if number % 12 == 11 else " ") for number, word in enumerate(drawn))


@pytest.fixture
def small(monkeypatch, tmp_path) -> Path:
    """A folder to work in, in which a model of 6,000 parameters is large enough."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rules, "LADDER", (Size(1, 1, 8, 16),))
    monkeypatch.setattr(rules, "VOCABULARIES", ((float("inf"), 300),))
    monkeypatch.setattr(rules, "TOKENS_A_PARAMETER", 3)
    monkeypatch.setattr(rules, "FEWEST_TOKENS_A_PARAMETER", 1)
    monkeypatch.setattr(rules, "STEPS", 60)
    return tmp_path


def write(path: Path, seed: int = 0, n_words: int = 12_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(words(n_words, seed))
    return path


def arrow_json(project: Path) -> dict:
    return json.loads((project / "report" / "arrow.json").read_text())


def test_a_text_becomes_an_arrow(small):
    text = write(small / "my texts [1]" / "a $b.txt")
    before = sorted(text.parent.iterdir()), text.stat().st_mtime_ns
    told = measure(text, "--seeds", 2, "--jobs", 1, "-d", "cpu")
    assert told.returncode == 0, told.stderr
    assert (sorted(text.parent.iterdir()), text.stat().st_mtime_ns) == before

    project = small / "runs" / "a $b"
    config = load_config(project / "a $b.json")
    tokens = open_tokens(project / "data" / "a $b.h5")
    assert tokens.symmetric  # so that the control costs nothing
    assert not (project / "data" / "a $b_tokens").exists()
    toki = get_tokenizer(project / "tokenizer" / "a $b")
    assert toki.detokenize(tokens.tokens[:]) == text.read_text()

    (comparison,) = arrow_json(project)["comparisons"]
    assert comparison["held_out"]["tokens"] == config.training_params.held_out_tokens
    assert comparison["compared"]["seeds"] == [0, 1]
    assert comparison["control"] is not None
    start = f"a $b: {len(tokens.tokens):,} tokens, 300 ids; the last "
    lines = told.stderr[told.stderr.index(start) :].splitlines()
    params = config.training_params
    assert f"{params.steps_to_train:,} steps of {params.batch_size} windows" in lines[1]
    assert "the interval will probably reach ±" in lines[2]
    assert re.search(r"seeds 1 of 2: a \$b [+-]\d+\.\d\d % \(one seed, which has no verdict\)", told.stdout)
    assert f"coloured held-out text: {Path('runs') / 'a $b' / 'report'}" in told.stdout

    states = {path: path.stat().st_mtime_ns for path in (project / "state").glob("*.state")}
    again = measure(text, "--seeds", 2, "--jobs", 1, "-d", "cpu")
    assert again.returncode == 0, again.stderr
    assert "there already, used as written" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in (project / "state").glob("*.state")} == states
    assert arrow_json(project)["comparisons"] == [comparison]


def test_several_texts_are_one_sweep(small):
    write(small / "one.txt", seed=1)
    write(small / "two" / "part.txt", seed=2)
    write(small / "two" / "rest.txt", seed=3, n_words=8_000)
    told = measure("one.txt", "two", "one.txt", "--seeds", 1, "--jobs", 1, "-d", "cpu", "-p", "both")
    assert told.returncode == 0, told.stderr
    comparisons = arrow_json(small / "runs" / "both")["comparisons"]
    assert [each["config"] for each in comparisons] == ["one", "two"]
    assert len({each["held_out"]["tokens"] for each in comparisons}) == 1
    assert (small / "runs" / "both" / "report" / "arrow-by-text.png").exists()
    one, two = (load_config(small / "runs" / "both" / f"{name}.json") for name in ("one", "two"))
    assert one.optim_params == two.optim_params
    assert one.training_params.steps_to_train == two.training_params.steps_to_train

    write(small / "three.txt", seed=4)  # joins the others, with what was chosen for them
    told = measure("one.txt", "two", "three.txt", "-p", "both", "--config_only", "--jobs", 1, "-d", "cpu")
    assert told.returncode == 0, told.stderr
    three = load_config(small / "runs" / "both" / "three.json")
    assert three.model_params == one.model_params
    changes = {"dataset_folder": "a.h5", "tokenizer_path": "t"}
    assert three.with_training(**changes).to_dict() == one.with_training(**changes).to_dict()


def test_orders_and_symbols(small):
    write(small / "text.txt")
    options = ["--symbols", "characters", "--orders", "even_odd", "--seeds", 1, "--jobs", 1, "-d", "cpu"]
    told = measure("text.txt", *options)
    assert told.returncode == 0, told.stderr
    (comparison,) = arrow_json(small / "runs" / "text")["comparisons"]
    assert comparison["order"] == "even_odd"
    assert open_tokens(small / "runs" / "text" / "data" / "text.h5").symbols == "characters"


def test_a_tokenizer_with_a_direction_has_a_trained_control(small):
    write(small / "text.txt")
    told = measure("text.txt", "--split", "gpt2", "--seeds", 1, "--jobs", 1, "-d", "cpu")
    assert told.returncode == 0, told.stderr
    assert "x 4 runs, 1 side by side" in told.stderr
    assert arrow_json(small / "runs" / "text")["comparisons"][0]["control"]["name"] == "text_reversed"

    write(small / "other.txt", seed=5)
    tokenizer = Path("runs") / "text" / "tokenizer" / "text"
    told = measure("other.txt", "-t", tokenizer, "--no_control", "--config_only", "--jobs", 1, "-d", "cpu")
    assert told.returncode == 0, told.stderr
    assert "x 2 runs, 1 side by side" in told.stderr
    assert load_config(small / "runs" / "other" / "other.json").tokenizer_path == str(tokenizer)
    assert not (small / "runs" / "other" / "tokenizer").exists()


def test_config_only_trains_nothing_and_the_config_can_be_edited(small):
    write(small / "text.txt")
    told = measure("text.txt", "--config_only", "--jobs", 1, "-d", "cpu")
    assert told.returncode == 0, told.stderr
    project = small / "runs" / "text"
    assert sorted(path.name for path in project.iterdir()) == ["data", "text.json", "tokenizer"]
    config = json.loads((project / "text.json").read_text())
    config["training_params"]["steps_to_train"] = 8
    (project / "text.json").write_text(json.dumps(config))
    told = measure("text.txt", "--seeds", 1, "--jobs", 1, "-d", "cpu")
    assert told.returncode == 0, told.stderr
    assert arrow_json(project)["comparisons"][0]["compared"]["steps"] == 8


def test_the_time_that_there_is_ends_it(small, monkeypatch):
    """With time for the first seed and no more the report has one, and the same command goes on."""
    write(small / "text.txt")
    assert measure("text.txt", "--config_only", "--jobs", 1, "-d", "cpu").returncode == 0
    told = measure("text.txt", "--seeds", 3, "--jobs", 1, "-d", "cpu", "--minutes", 0.001)
    assert told.returncode == 0, told.stderr
    assert "stopped with 1 of 3 seeds" in told.stdout
    assert arrow_json(small / "runs" / "text")["comparisons"][0]["compared"]["seeds"] == [0]
    told = measure("text.txt", "--seeds", 2, "--jobs", 1, "-d", "cpu")
    assert told.returncode == 0, told.stderr
    assert arrow_json(small / "runs" / "text")["comparisons"][0]["compared"]["seeds"] == [0, 1]


def test_each_state_is_evaluated_once(small, monkeypatch):
    evaluated = []
    evaluate = measuring.evaluate_once
    monkeypatch.setattr(
        measuring, "evaluate_once", lambda run, *rest: evaluated.append(run.path) or evaluate(run, *rest)
    )
    write(small / "text.txt")
    told = measure("text.txt", "--seeds", 2, "--jobs", 1, "-d", "cpu")
    assert told.returncode == 0, told.stderr
    assert len(evaluated) == len(set(evaluated)) == 4


# What is refused
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["text.txt", "config.json"], "give texts, config files"),
        (["--config_only", "--states", "a", "b"], "--config_only goes with texts"),
        (["text.txt", "--minutes", "0"], "--minutes: expected a number above 0"),
        (["--states", "a", "b", "--minutes", "3"], "--minutes goes with texts"),
        (["nothing.txt"], "nothing.txt: no such text"),
        (["text.txt", "-p", "a/b"], "-p: expected a name"),
        (["empty.txt"], "empty.txt: the text is empty"),
        (["junk.txt"], "junk.txt: expected text in UTF-8"),
    ],
)
def test_mistakes_are_one_line(small, arguments, line):
    write(small / "text.txt")
    (small / "config.json").write_text("{}")
    (small / "empty.txt").write_bytes(b"")
    (small / "junk.txt").write_bytes(os.urandom(4096) + bytes(4096))
    before = sorted(small.iterdir())
    told = measure(*arguments, "-d", "cpu")
    assert told.returncode != 0
    assert line in told.stderr
    assert told.stderr.count("error: ") == 1
    assert [path for path in sorted(small.iterdir()) if path.name != "runs"] == before


def test_a_text_that_was_changed_is_another(small):
    write(small / "text.txt")
    assert measure("text.txt", "--config_only", "--jobs", 1, "-d", "cpu").returncode == 0
    write(small / "text.txt", seed=7)
    told = measure("text.txt", "--jobs", 1, "-d", "cpu")
    assert told.returncode != 0
    assert "measure under another name with -p" in told.stderr


def test_a_text_too_small_for_an_answer_is_refused(tmp_path):
    """By the real rules, as a user would meet them."""
    write(tmp_path / "short.txt", n_words=3_000)
    told = run_script("measure_arrow.py", "short.txt", "-d", "cpu", cwd=tmp_path)
    assert told.returncode == 1
    assert "short: expected at least " in told.stderr
    assert "give more text" in told.stderr
    assert not (tmp_path / "runs" / "short" / "short.json").exists()


def test_sizes_of_packed_texts_are_estimated(tmp_path):
    for name, size in (("a.txt", 100), ("b.txt.xz", 400), ("c.parquet", 300), ("d.jsonl.gz", 400)):
        (tmp_path / name).write_bytes(bytes(100))
        assert prepare.bytes_of_text(tmp_path / name) == size
