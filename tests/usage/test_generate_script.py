"""generate.py: each direction against the model's own logits, what is shown, and what is refused."""

import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
import torch

import generate
import score
from modules.measurement.evaluation import load_model
from modules.models.generate import Sampling
from modules.system.console import printable
from modules.training.checkpoint import load_state, save_state
from modules.usage.growing import grown, writers_of
from modules.usage.live import fitted, width_of
from modules.usage.opened import runs_of, tokenizer_of
from tests.toy import ROOT, command
from tests.usage.states import CONTEXT, TEXT, told_by

CPU = torch.device("cpu")


def written(made, *arguments, stdin=b""):
    return told_by(generate.main, *arguments, "-t", made.toki.folder, "-d", "cpu", stdin=stdin)


def model_of(made, name):
    return load_model(runs_of([str(made.states[name])])[0], CPU)


def greedy(model, start_id, read, n_tokens):
    """The truth: the likeliest token after all that was read, `n_tokens` times, as long as a window holds them."""
    read = [start_id, *read]
    for _ in range(n_tokens):
        with torch.no_grad():
            read.append(int(model(torch.tensor([read]))[0, -1].argmax()))
    return read[1:]


def shown(made, ids):
    """A text as it is printed: no control character is obeyed."""
    return printable(made.toki.detokenize(torch.tensor(ids)), keep="\n\t") + "\n"


@pytest.mark.parametrize("name", ["forward", "rope", "backward", "lstm"])
@pytest.mark.parametrize("text", ["", " the mat"])
def test_what_it_writes_is_the_likeliest_text_in_the_order_of_the_model(made, name, text):
    ids = made.toki.encode(text)
    backward = name in ("backward", "lstm")
    truth = greedy(model_of(made, name), made.toki.bos_id, ids[::-1] if backward else ids, CONTEXT - len(ids))
    done = written(made, made.states[name], text, "--temperature", 0, "--tokens", CONTEXT - len(ids))
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown(made, truth[::-1] if backward else truth)
    assert done.stdout.rstrip("\n").endswith(text) if backward else done.stdout.startswith(text)


def test_both_directions_take_turns_and_each_reads_all_that_there_is(made):
    runs = runs_of([str(made.states[name]) for name in ("backward", "forward")])
    toki, bos_id = tokenizer_of(runs, str(made.toki.folder))
    writers = writers_of(runs, bos_id, CPU)
    assert [writer.direction for writer in writers] == ["forward", "backward"]
    text = toki.encode(" the mat")
    *before, (ids,) = grown(writers, text, 1, 20, Sampling(temperature=0))
    assert len(ids) == len(text) + 40 and len(before) == 40
    truth = list(text)
    for turn in (16, 4):
        for writer in writers:  # each alone on what there is: `test_what_it_writes` has that from the model
            *_, (grown_on,) = grown([writer], truth, 1, turn, Sampling(temperature=0))
            truth = grown_on.tolist()
    assert ids.tolist() == truth
    assert before[1][0].tolist()[:-1] == text and before[17][0].tolist()[1:] == before[16][0].tolist()


def test_a_model_of_both_orders_is_told_which_by_its_start_token(made):
    model, ids = model_of(made, "both"), made.toki.encode(" the mat")
    size = made.toki.vocab_size
    for direction, start_id in (("forward", size), ("backward", size + 1)):
        backward = direction == "backward"
        truth = greedy(model, start_id, ids[::-1] if backward else ids, 5)
        done = written(
            made, made.states["both"], " the mat", "--temperature", 0, "--tokens", 5, "--direction", direction
        )
        assert done.stdout == shown(made, truth[::-1] if backward else truth)
    outward = written(made, made.states["both"], " the mat", "--temperature", 0, "--tokens", 3).stdout
    assert " the mat" in outward[1:-2]


def test_a_seed_repeats_and_samples_differ(made):
    def draw(seed, *more):
        return written(made, made.states["forward"], " The", "--seed", seed, "--tokens", 40, *more).stdout

    assert draw(1) == draw(1) != draw(2)
    several = draw(1, "--samples", 3)
    samples = re.split(r"--- \d of 3\n", several)[1:]
    assert len(set(samples)) == 3 and all(sample.startswith(" The") for sample in samples)
    assert draw(1, "--top_k", 1) == draw(2, "--top_p", 1e-9)


def test_lines_of_standard_input_one_after_another(made):
    arguments = (made.states["forward"], "--temperature", 0, "--tokens", 3)
    lines = written(made, *arguments, "--interactive", stdin=b" the mat\n\n12\n").stdout
    assert lines == "".join(written(made, *arguments, text).stdout for text in (" the mat", "", "12"))
    assert written(made, *arguments, "--interactive", stdin=b"").stdout == ""


def test_data_stand_for_their_tokenizer(made, tmp_path):
    arguments = (made.states["forward"], " The", "--temperature", 0, "--tokens", 5, "-d", "cpu")
    done = told_by(generate.main, *arguments, "--data", made.folder / "data.h5")
    assert done.returncode == 0, done.stderr
    assert done.stdout == written(made, *arguments).stdout
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "data.h5").symlink_to(made.folder / "data.h5")
    copy = tmp_path / "deep" / "er" / "copy.h5"
    copy.write_bytes((made.folder / "data.h5").read_bytes())
    done = told_by(generate.main, *arguments, "--data", copy)
    assert done.returncode == 1 and "is not among the 1 near it: it was moved or changed" in done.stderr


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["even_odd", " x"], "reads even_odd: expected a model that reads forward or backward"),
        (["forward", "rope", " x"], "expected one model that reads forward, found another"),
        (["forward", "forward"], "expected each state once, found it twice"),
        (["forward", "a", "b"], "expected states and one text, found 2 that are no files"),
        (["forward", "--direction=backward"], "expected a model that reads backward, found forward"),
        (["forward", "--interactive", "x"], "expected no text beside the states"),
        (["forward", "a \udcff"], "lone surrogate"),
        (["nowhere.state"], "nowhere.state: no such state"),
        (["forward", "nowhere.state"], "nowhere.state: no such state"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(made, arguments, words):
    done = written(made, *(made.states.get(each, each) for each in arguments))
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""


def test_another_tokenizer_is_refused(made):
    arguments = (made.states["forward"], "x", "-d", "cpu")
    done = told_by(generate.main, *arguments, "-t", "modules/tokenizers/en_tokenizer")
    assert done.returncode == 1 and "not the tokenizer of" in done.stderr
    done = told_by(generate.main, *arguments)
    assert done.returncode == 1 and "give its folder with -t, or the .h5 that it made with --data" in done.stderr


def test_the_tokenizer_that_the_config_names_is_taken(made, tmp_path):
    state = load_state(made.states["forward"])
    state["config"]["training_params"]["tokenizer_path"] = str(made.toki.folder)
    save_state(state, tmp_path / "named.state")
    arguments = (" The", "--temperature", 0, "--tokens", 5)
    done = told_by(generate.main, tmp_path / "named.state", *arguments, "-d", "cpu")
    assert done.stdout == written(made, made.states["forward"], *arguments).stdout != ""


def test_states_that_are_none_are_refused(made, tmp_path):
    whole = made.states["forward"].read_bytes()
    for name, content in {
        "cut.state": whole[: len(whole) // 2],
        "empty.state": b"",
        "junk $HOME [x]\n.state": bytes(range(256)) * 40,
    }.items():
        (tmp_path / name).write_bytes(content)
        done = written(made, tmp_path / name.replace("$HOME", "$HOME"), "x")
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "no such state" in written(made, tmp_path, "x").stderr


def test_fitted_lines_are_as_wide_and_as_many_as_the_terminal_has():
    text = TEXT[:3000] + "你好世界🙂" * 40
    for columns, rows in ((20, 8), (79, 23), (3, 5)):
        lines = fitted(text, columns, rows)
        assert len(lines) <= rows and all(sum(map(width_of, line)) <= columns for line in lines)
        assert text.replace("\t", "").startswith(lines[0][:3]) and "⋮" in lines
    assert fitted("a\nb", 10, 5) == ["a", "b"]


def screen_of(output: str) -> str:
    """What a terminal shows of it: the little of one that live.py uses, long lines not wrapped."""
    lines, row = [""], 0
    for part in re.split(r"(\r\n|\n|\r|\x1b\[\d+A|\x1b\[J)", output):
        if part in ("\r\n", "\n"):
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part == "\x1b[J":
            lines = [*lines[:row], ""]
        elif part != "\r":
            lines[row] += part
    return "\n".join(lines)


@pytest.mark.skipif(os.name == "nt", reason="a pseudo-terminal")
def test_in_a_terminal_the_text_is_pushed_to_the_right_and_ends_whole(made):
    parent, child = pty.openpty()
    arguments = [made.states["backward"], " the mat", "--temperature", 0, "--tokens", 40]
    process = subprocess.Popen(
        command("generate.py", *arguments, "-t", made.toki.folder, "-d", "cpu"),
        stdout=child,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "60", "LINES": "20"},
    )
    os.close(child)
    output, until = b"", time.monotonic() + 120
    while time.monotonic() < until:
        if select.select([parent], [], [], 1)[0]:
            try:
                output += os.read(parent, 1 << 16)
            except OSError:  # it has ended
                break
    assert process.wait() == 0, process.stderr.read()
    process.stderr.close()
    os.close(parent)
    output = output.decode()
    assert output.count("\x1b[J") > 20, "drawn again and again"
    assert screen_of(output) == written(made, *arguments).stdout


@pytest.mark.skipif(os.name == "nt", reason="pipes of a shell")
def test_who_reads_no_more_ends_it(made):
    process = subprocess.Popen(
        [*command("generate.py", made.states["forward"], "--tokens", 10**6, "-t", made.toki.folder, "-d", "cpu")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read().decode().startswith("warning: nothing more can be written to standard output")
    process.stderr.close()
    assert sys.stdout is not None


def test_the_page_about_both_scripts_knows_their_flags():
    page = (ROOT / "docs" / "using.md").read_text(encoding="utf-8")
    explained = "".join(told_by(script.main, "--help").stdout for script in (generate, score))
    flags = set(re.findall(r"(?<=[\s`(])--?[a-z]\w*", page)) - {"-m"}
    assert {"--top_p", "--by_document", "--choices", "-t"} <= flags
    assert {flag for flag in flags if not re.search(rf"{flag}\b", explained)} == set()
