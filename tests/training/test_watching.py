"""What is shown of runs side by side, read from the metrics that they write."""

import io
import re
import sys
from types import SimpleNamespace
from weakref import WeakSet

import pytest
import torch

from modules.config import parse_config
from modules.models import evaluate
from modules.system import console
from modules.tok_utils import create_tokenizer, progress, tokenize_folder
from modules.training import watching
from modules.training.metrics import newest_entry
from modules.training.parallel import Processes
from modules.training.resume import files_of
from modules.training.run import Request, data_of, last_step_of, run
from modules.training.watching import Progress, last_step
from tests.toy import config_dict, write_tokens

LINE = '{"step": %d, "split": "train", "loss": %f, "lr": 0.1, "tokens": 9, "tokens_per_s": 1234}\n'


class Terminal(io.StringIO):
    """Standard error that is a terminal, or not."""

    def __init__(self, is_one: bool):
        super().__init__()
        self.is_one = is_one

    def isatty(self):
        return self.is_one


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs, of which one has written metrics up to step 20."""
    write_tokens(tmp_path / "toy.h5")
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0)
    found = []
    for name in ("first", "second"):
        config = parse_config(config_dict(tmp_path), name).with_model("gpt")
        found.append(SimpleNamespace(name=name, config=config, files=files_of(config, "p")))
    found[0].files.metrics.parent.mkdir(parents=True)
    found[0].files.metrics.write_text(LINE % (10, 4.5) + LINE % (20, 4.25) + '{"step": 25, "spl')
    return found


def test_in_a_log_each_run_is_in_the_line_of_all(runs, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal(False))
    with Progress(3, line_seconds=1e-9) as progress:
        progress.count(True)
        progress.show(runs)
    last = sys.stderr.getvalue().splitlines()[-1]
    assert last.startswith("training: 1 of 3 run (33 %), ")
    assert last.endswith(", first 20/40 loss 4.2500; second begins")


def test_in_a_terminal_each_run_has_a_line_that_goes_with_it(runs, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal(True))
    monkeypatch.setattr(console.tqdm, "_instances", WeakSet())  # those that other tests left broken have places too
    with Progress(2) as progress:
        progress.show(runs)
        drawn = sys.stderr.getvalue()
        for shown in ("training:   0%", "first:  50%", "20/40", "loss 4.2500, 1,234 tokens/s", "second:   0%", "0/40"):
            assert shown in drawn, shown
        assert drawn.count("\n") >= 2, "three lines"
        progress.count(True)
        progress.show(runs[1:])
        before = len(sys.stderr.getvalue())
        progress.show(runs[1:])
        assert "first" not in sys.stderr.getvalue()[before:]


@pytest.mark.parametrize("written", ["", "{", "x\n", LINE[:20], '{"step": 1}\n'])
def test_metrics_that_say_nothing_yet(tmp_path, written):
    (tmp_path / "m.jsonl").write_text(written)
    assert newest_entry(tmp_path / "m.jsonl") is None and newest_entry(tmp_path / "none") is None


def test_the_last_entry_of_a_long_log_is_found(tmp_path):
    (tmp_path / "m.jsonl").write_text("".join(LINE % (step, 1.0) for step in range(5000)) + "{")
    assert newest_entry(tmp_path / "m.jsonl")["step"] == 4999


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training_params__steps_to_train": None},
        {"optim_params__cooldown_start": 7, "optim_params__cooldown_steps": 5},
    ],
)
def test_the_last_step_is_that_of_the_run(tmp_path, changes):
    write_tokens(tmp_path / "toy.h5")
    config = parse_config(config_dict(tmp_path, **changes), "toy").with_model("gpt")
    here = Processes(0, 1, torch.device("cpu"))
    assert last_step(config) == last_step_of(config, len(data_of(config, None, here).windows))
    assert (
        last_step(
            config.with_training(dataset_folder="nowhere.h5", steps_to_train=None).with_optim(
                cooldown_start=None, cooldown_steps=None
            )
        )
        is None
    )


def test_a_log_of_training_and_one_of_tokenizing_have_lines_and_no_bar(tmp_path, monkeypatch):
    """A minute is shortened to nothing: each step may be a line, and each piece of a text."""
    real = console.bar

    def soon(*args, **named):
        return real(*args, line_seconds=0.0, **named | {"delay": 0})

    monkeypatch.setattr(console, "bar", soon)
    for module in (evaluate, progress):
        monkeypatch.setattr(module, "bar", soon)
    monkeypatch.setattr(sys, "stderr", Terminal(False))
    write_tokens(tmp_path / "toy.h5")
    config = parse_config(config_dict(tmp_path, training_params__steps_to_train=6), "toy").with_model("gpt")
    assert run(config, Request("p"), Processes(0, 1, torch.device("cpu"))) == 0
    (tmp_path / "text.txt").write_text("some words of a text " * 2000)
    tokenizer = create_tokenizer(tmp_path / "text.txt", tmp_path, "words", vocab_size=300)
    tokenize_folder(tmp_path / "text.txt", tokenizer, num_workers=1)
    said = sys.stderr.getvalue()
    step = (
        r"^toy: \d of 6 step \(\d+ %\), [\d.,]+ step/s, 00:\d\d so far(, 00:\d\d left)?, loss \d\.\d+, lr .* tokens/s$"
    )
    assert re.search(step, said, re.M), said
    assert re.search(r"^held-out: \d of \d batch \(\d+ %\)", said, re.M)
    assert re.search(r"^tokenize text: 42.0kB of 42.0kB \(100 %\), .*B/s, 00:\d\d so far, [\d,]+ tokens/s$", said, re.M)
    assert "\r" not in said and "|" not in said
