"""measure_arrow.py: what it trains, what it compares, what it refuses, and that it goes on where it was."""

import html
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import measure_arrow
from modules.cli import config_of, training_parser
from modules.config import parse_config
from modules.corpora import synthetic as sources
from modules.data.token_file import open_tokens
from modules.measurement import evaluation, kept_evaluations
from modules.measurement import measure as evaluate_and_report
from modules.measurement.pairing import base_name, pair_up, read_run
from modules.measurement.runs import planned_runs
from modules.models import build_model
from modules.system.errors import UserError
from modules.tok_utils import create_tokenizer
from modules.tokenizer import Tokenizer, get_tokenizer
from modules.training.checkpoint import load_state
from modules.training.run import PROJECT_FOLDER, Request
from modules.training.side_by_side import training_command

PROJECT = Path(__file__).parents[2]
LINE = sources.linear_circuit_line(3)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with circuits as text, their tokenizer, `circuit.h5` and a config."""
    folder = tmp_path_factory.mktemp("measure")
    text = "".join(sources.linear_circuit(400, bits=3))
    (folder / "circuit.txt").write_text(text)
    toki = get_tokenizer(
        create_tokenizer(str(folder / "circuit.txt"), str(folder), tokenizer_name="bytes", vocab_size=257)
    )
    with h5py.File(folder / "circuit.h5", "w") as file:
        tokens = file.create_dataset("tokens", data=np.array(toki.encode(text), dtype=np.uint16))
        tokens.attrs.update(
            {
                "vocab_size": 257,
                "tokenizer_fingerprint": toki.fingerprint,
                "bos_id": toki.bos_id,
                "text_bytes": len(text),
            }
        )
    write_config(folder, "tiny")
    return folder


def write_config(folder: Path, name: str, steps: int = 30, save_every: int = 15, **model) -> Path:
    config = {
        "model_params": {
            "vocab_size": 257,
            "n_layers": 1,
            "n_heads": 2,
            "embed_dim": 16,
            "attn_length": LINE,
            "dropout": 0.1,
        }
        | model,
        "training_params": {
            "dataset_folder": str(folder / "circuit.h5"),
            "batch_size": 16,
            "steps_to_train": steps,
            "save_every": save_every,
            "step_log": 5,
            "valid_steps": 2,
            "stride": LINE,
            "state_save_loc": str(folder / "runs"),
        },
        "optim_params": {"lr": 0.01, "warmup_steps": 5, "oscil_steps": 100, "lr_init": 0.0, "lr_min": 1e-4},
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    return path


@dataclass
class Told:
    """What a command left: its exit status and its output."""

    returncode: int
    stdout: str
    stderr: str


def measure(*arguments) -> Told:
    """measure_arrow.py with these arguments, in this process: starting another one takes seconds."""
    with (
        patch.object(sys, "argv", ["measure_arrow.py", *map(str, arguments)]),
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
    ):
        try:
            status = measure_arrow.main()
        except SystemExit as ended:
            status = ended.code
    return Told(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def measured(data) -> Told:
    """Two seeds of the tiny config, trained side by side and compared."""
    return measure(data / "tiny.json", "--seeds", 2, "--jobs", 2, "-d", "cpu", "-p", "test", "-t", data / "bytes")


def states(data: Path) -> list[Path]:
    return sorted((data / "runs" / "test" / "state").glob("tiny_*.state"))


def test_it_trains_both_directions_of_each_seed_and_reports(data, measured):
    assert measured.returncode == 0, measured.stderr
    assert [path.stem for path in states(data)] == [
        f"tiny_{way}_seed{seed}" for way in ("backward", "forward") for seed in (0, 1)
    ]
    report = data / "runs" / "test" / "report"
    (comparison,) = json.loads((report / "arrow.json").read_text())["comparisons"]
    assert (
        comparison["compared"]["seeds"] == [0, 1]
        and comparison["compared"]["steps"] == 30
        and comparison["arrow"]["nats"]["seeds"]
    )
    assert comparison["compared"]["tokens_seen"] == 30 * 16 * LINE and comparison["held_out"]["tokens"] == 2 * 16 * LINE
    assert comparison["losses"]["forward"]["bits_per_byte"] == pytest.approx(
        comparison["losses"]["forward"]["nats_per_token"] / np.log(2)
    )
    for file in ("report.md", "tiny-loss.png", "tiny-loss.svg", "arrow-by-checkpoint.png", "tiny-page.html"):
        assert (report / file).stat().st_size > 0
    for words in (
        f"forward {comparison['losses']['forward']['nats_per_token']:.4f}",
        f"{comparison['arrow']['percent']['value']:+.2f} %, standard error",
        comparison["arrow"]["verdict"],
        "forward snippet: '",
        "backward snippet: '",
        str(report / "tiny-loss.png"),
    ):
        assert words in measured.stdout


def test_losses_are_those_of_a_plain_evaluation(data, measured):
    """Logits, softmax and windows written out anew, from the text and the two states."""
    tokens = torch.tensor(get_tokenizer(data / "bytes").encode((data / "circuit.txt").read_text()))[
        -2 * 16 * LINE :
    ].view(-1, LINE)
    losses = {}
    for path in states(data):
        state = torch.load(path, weights_only=True)
        params, backwards = state["config"]["model_params"], state["config"]["training_params"]["backwards"]
        model = build_model("gpt", 99, **params).eval()
        model.load_state_dict(state["model"])
        targets = tokens.flip(1) if backwards else tokens
        logits = model(torch.cat([torch.zeros(len(targets), 1, dtype=torch.int64), targets[:, :-1]], dim=1))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()
        losses.setdefault("backward" if backwards else "forward", []).append(loss)
    (comparison,) = json.loads((data / "runs" / "test" / "report" / "arrow.json").read_text())["comparisons"]
    for direction in ("forward", "backward"):
        assert [seed[direction] for seed in comparison["arrow"]["per_seed"]] == pytest.approx(
            losses[direction], abs=1e-5
        )


def test_each_state_and_the_data_are_read_once(data, measured, tmp_path, monkeypatch):
    """A measurement with snippets, a page of held-out text and one of another text."""
    (tmp_path / "mine.txt").write_text("010 110\n")
    read, opened = [], []
    monkeypatch.setattr(evaluation, "load_state", lambda path: read.append(path) or load_state(path))
    monkeypatch.setattr(evaluate_and_report, "open_tokens", lambda path: opened.append(path) or open_tokens(path))
    wish = evaluate_and_report.Wish(
        tmp_path, str(data / "bytes"), texts=evaluate_and_report.read_texts([tmp_path / "mine.txt"], data / "bytes")
    )
    told = evaluate_and_report.report_on(
        evaluate_and_report.measured_states(states(data), torch.device("cpu"), wish), wish
    )
    assert sorted(read) == states(data) and len(opened) == 1
    assert told.count("snippet") == 2 and told.count("coloured") == 2


def test_a_state_that_is_replaced_while_it_is_measured_is_refused(data, measured, tmp_path):
    run = read_run(changed(states(data)[0], tmp_path / "x.state", lambda state: None))
    changed(states(data)[0], tmp_path / "x.state", lambda state: state.update(step=29))
    with pytest.raises(UserError, match=r"x\.state: was replaced while it was measured \(step 30 before, 29 now\)"):
        evaluation.load_model(run, torch.device("cpu"))


def test_finished_runs_are_used_as_they_are(data, measured, monkeypatch):
    """Neither trained nor evaluated again."""
    before = {path: path.read_bytes() for path in states(data)}
    monkeypatch.delattr(kept_evaluations, "evaluate")
    again = measure(data / "tiny.json", "--seeds", 2, "-d", "cpu", "-p", "test", "-t", data / "bytes")
    assert again.returncode == 0 and {path: path.read_bytes() for path in states(data)} == before
    assert again.stdout.splitlines()[-8:] == measured.stdout.splitlines()[-8:]


def test_any_text_can_be_coloured(data, measured, tmp_path):
    (tmp_path / "mine.txt").write_text("010 110\nÀ moi <b>\n")
    done = measure(
        "--states",
        *states(data),
        "-t",
        data / "bytes",
        "--text",
        tmp_path / "mine.txt",
        "-o",
        tmp_path / "out",
        "-d",
        "cpu",
    )
    page = tmp_path / "out" / "tiny-mine-page.html"
    assert done.returncode == 0 and f"coloured {tmp_path / 'mine.txt'}: {page}" in done.stdout
    text = re.sub(r"<[^>]*>", "", re.search(r'<div class="text">(.*?)</div>', page.read_text(), re.DOTALL)[1])
    assert html.unescape(text).replace("↵", "") == (tmp_path / "mine.txt").read_text()


def test_a_tokenizer_that_does_not_tell_its_bytes_gives_no_classes_and_no_page(data, measured, tmp_path, monkeypatch):
    monkeypatch.setattr(Tokenizer, "token_bytes", lambda _: None)
    done = measure("--states", *states(data), "-t", data / "bytes", "-o", tmp_path, "-d", "cpu")
    assert (
        done.returncode == 0
        and "snippet" in done.stdout
        and "coloured" not in done.stdout
        and not list(tmp_path.glob("*.html"))
    )
    (comparison,) = json.loads((tmp_path / "arrow.json").read_text())["comparisons"]
    assert comparison["by_class"] is None
    assert comparison["losses"]["forward"]["bits_per_byte"] == pytest.approx(
        comparison["losses"]["forward"]["nats_per_token"] / np.log(2)
    )


@pytest.mark.parametrize(
    "content, problem", [(b"", "the text is empty"), (b"ab\xff", "expected UTF-8 text"), (None, "No such file")]
)
def test_a_text_that_cannot_be_coloured_is_refused_before_the_work(data, measured, tmp_path, content, problem):
    if content is not None:
        (tmp_path / "mine.txt").write_bytes(content)
    done = measure(
        "--states",
        *states(data),
        "-t",
        data / "bytes",
        "--text",
        tmp_path / "mine.txt",
        "-o",
        tmp_path / "out",
        "-d",
        "cpu",
    )
    assert done.returncode == 1 and problem in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_two_texts_of_one_name_are_refused(data, measured, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.txt").write_text("010\n")
    done = measure(
        "--states",
        *states(data),
        "-t",
        data / "bytes",
        "--text",
        tmp_path / "a" / "mine.txt",
        tmp_path / "b" / "mine.txt",
        "-d",
        "cpu",
    )
    assert done.returncode == 1 and "two texts of one name" in done.stderr


def test_states_can_be_compared_without_their_metrics_or_a_tokenizer(data, measured, tmp_path):
    for path in states(data):
        (tmp_path / "state").mkdir(exist_ok=True)
        (tmp_path / "state" / path.name).write_bytes(path.read_bytes())
    told = measure("--states", *(tmp_path / "state").iterdir(), "-d", "cpu")
    assert told.returncode == 0 and (tmp_path / "report" / "report.md").exists()
    assert "loss curves" not in told.stdout and "snippet" not in told.stdout
    found, expected = (re.search(r"forward .*\n  arrow .*", output)[0] for output in (told.stdout, measured.stdout))
    assert found == expected


def changed(path: Path, to: Path, change) -> Path:
    """A copy of a state with `change` applied to its dictionary."""
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, to)
    return to


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda state: state["stages"][0]["optim_params"].update(lr=0.02),
            "the learning rate of step 1 (0.002 and 0.004)",
        ),
        (
            lambda state: state["stages"][0]["optim_params"].update(weight_decay=0.5),
            "optim_params.weight_decay from step 0 on (0.01 and 0.5)",
        ),
        (
            lambda state: state["stages"].append(state["stages"][0] | {"first_step": 7, "precision": "bf16"}),
            "precision from step 7 on (fp32 and bf16)",
        ),
        (lambda state: state.update(step=29), "steps trained (30 and 29)"),
        (lambda state: state["config"]["training_params"].update(seed=7), "training_params.seed (0 and 7)"),
        (lambda state: state.update(held_out_tokens=48 * LINE), "held-out windows (32 and 48)"),
        (lambda state: state["config"]["training_params"].update(batch_size=8), "batch_size x aggregate (16 and 8)"),
        (lambda state: state["dataset"].update(fingerprint="another"), "data ("),
        (lambda state: state["dataset"].update(tokenizer_fingerprint="another"), "tokenizer ("),
        (lambda state: state["config"]["model_params"].update(n_heads=1), "model_params.n_heads (2 and 1)"),
    ],
)
def test_unfair_comparisons_are_refused_with_the_difference(data, measured, tmp_path, change, words):
    backward, _, forward, _ = states(data)
    with pytest.raises(UserError, match="no fair comparison") as refused:
        pair_up([read_run(forward), read_run(changed(backward, tmp_path / "other.state", change))])
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["config"]["training_params"].update(
            dataset_folder="elsewhere/circuit.h5", state_save_loc="elsewhere", step_log=1
        ),
        lambda state: state["config"]["training_params"].update(
            batch_size=8, aggregate=2, valid_batch_size=32, valid_steps=1
        ),
    ],
)
def test_what_cannot_change_a_result_may_differ(data, measured, tmp_path, change):
    backward, _, forward, _ = states(data)
    (pairs,) = pair_up([read_run(forward), read_run(changed(backward, tmp_path / "other.state", change))])
    assert [(each.order, each.seed) for each in pairs[0]] == [("forward", 0), ("backward", 0)]


def test_a_run_without_the_other_direction_or_given_twice_is_refused(data, measured):
    backward, _, forward, other_seed = states(data)
    for given, words in (
        ([forward, other_seed], "no run of another order"),
        ([forward, backward, backward], "found 2 that are alike"),
    ):
        with pytest.raises(UserError, match=words):
            pair_up([read_run(path) for path in given])
    refused = measure("--states", forward, other_seed)
    assert refused.returncode == 1 and len(refused.stderr.strip().splitlines()) == 1


def test_changed_data_and_a_wrong_tokenizer_are_refused(data, measured, tmp_path):
    with h5py.File(data / "circuit.h5") as file:
        tokens, attributes = file["tokens"][:], dict(file["tokens"].attrs)
    other = tmp_path / "circuit.h5"
    with h5py.File(other, "w") as file:
        file.create_dataset("tokens", data=tokens[::-1]).attrs.update(attributes)
    moved = [
        changed(
            path,
            tmp_path / path.name,
            lambda state: state["config"]["training_params"].update(dataset_folder=str(other)),
        )
        for path in states(data)
    ]
    refused = measure("--states", *moved, "-o", tmp_path / "report")
    assert refused.returncode == 1 and "not the data" in refused.stderr and not (tmp_path / "report").exists()
    (tmp_path / "x.txt").write_text("aa ab ab " * 50)
    create_tokenizer(str(tmp_path / "x.txt"), str(tmp_path), tokenizer_name="other", vocab_size=258)
    refused = measure("--states", *states(data), "-o", tmp_path / "report", "-t", tmp_path / "other")
    assert refused.returncode == 1 and "not the tokenizer" in refused.stderr


@pytest.mark.parametrize("jobs", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_interrupted_it_saves_and_goes_on(data, jobs):
    write_config(data, f"long{jobs}", steps=200, save_every=100)
    arguments = [str(data / f"long{jobs}.json"), "--seeds", "1", "-p", "test", "-d", "cpu", "--jobs", str(jobs)]
    command = [sys.executable, str(PROJECT / "measure_arrow.py"), *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    metrics = data / "runs" / "test" / "metrics" / f"long{jobs}_forward_seed0.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "report" not in told
    state = read_run(data / "runs" / "test" / "state" / f"long{jobs}_forward_seed0.state").state
    assert 0 < state["step"] < 200
    assert measure(*arguments).returncode == 0
    assert read_run(data / "runs" / "test" / "state" / f"long{jobs}_backward_seed0.state").state["step"] == 200


def test_a_run_that_fails_side_by_side_is_named_with_its_error(data):
    path = write_config(data, "broken", attn_length=5_000)  # no text is that long
    failed = measure(path, "--seeds", 1, "-p", "test", "--jobs", 2)
    assert failed.returncode == 1
    assert re.search(
        r"broken_\w+_seed0 failed: error: .*circuit\.h5.*holds 3,200 tokens", failed.stderr.splitlines()[-1]
    )


@pytest.mark.slow
def test_processes_of_torchrun_train_together_and_one_reports(data):
    path = write_config(data, "together", steps=10)
    told = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            "2",
            str(PROJECT / "measure_arrow.py"),
            str(path),
            "-p",
            "test",
            "-d",
            "cpu",
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("report: ") == 1


# Plans
# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, base",
    [
        ("demo_forward", "demo"),
        ("en_gpt1_256_backward_seed12", "en_gpt1_256"),
        ("forward_looking", "forward_looking"),
        ("seed3", "seed3"),
        ("a_backward_b", "a_b"),
        ("fr_reversed_seedling", "fr_reversed_seedling"),
    ],
)
def test_base_names(name, base):
    assert base_name(name) == base


def test_a_pair_of_configs_is_one_measurement_and_seeds_count_up_from_its_own(data, tmp_path):
    config = json.loads((data / "tiny.json").read_text())
    for direction in ("forward", "backward"):
        config["training_params"] |= {"backwards": direction == "backward", "seed": 5}
        (tmp_path / f"x_{direction}.json").write_text(json.dumps(config))
    runs = planned_runs([str(tmp_path / "x_forward.json"), str(tmp_path / "x_backward.json")], seeds=2)
    assert [run.name for run in runs] == [
        f"x_{direction}_seed{seed}" for seed in (5, 6) for direction in ("forward", "backward")
    ]
    assert [(run.training_params.backwards, run.training_params.seed) for run in runs] == [
        (False, 5),
        (True, 5),
        (False, 6),
        (True, 6),
    ]

    config["optim_params"]["lr"] = 0.5
    (tmp_path / "x_backward.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="same name"):
        planned_runs([str(tmp_path / "x_forward.json"), str(tmp_path / "x_backward.json")], seeds=1)


def test_a_recurrent_config_has_to_say_which_model_it_is(tmp_path):
    config = {
        "model_params": {"vocab_size": 9, "n_layers": 1, "embed_dim": 8, "desired_attn_length": 4},
        "training_params": {"dataset_folder": "x.h5", "batch_size": 1},
        "optim_params": {"lr": 1e-3},
    }
    (tmp_path / "x.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match='expected "gru" or "lstm"'):
        planned_runs([str(tmp_path / "x.json")], seeds=1)
    (tmp_path / "x.json").write_text(json.dumps(config | {"model": "gru"}))
    assert parse_config(planned_runs([str(tmp_path / "x.json")], seeds=1)[0].to_dict(), "x").model == "gru"


def test_arguments_that_make_no_sense_are_refused(data):
    for arguments in ((), (data / "tiny.json", "--states", "a.state"), (data / "tiny.json", "--seeds", 0)):
        assert measure(*arguments).returncode == 2


def test_configs_projects_and_texts_may_have_any_name(data):
    name, project, text = "a $x$ (1) | <b>", "-p [x]", "t*" + "é" * 110 + " #"
    config = write_config(data, name, steps=4, save_every=4)
    (data / f"{text}.txt").write_text("".join(sources.linear_circuit(3, bits=3)), encoding="utf-8")
    done = measure(
        config, f"--project_name={project}", "-t", data / "bytes", "--text", data / f"{text}.txt", "-d", "cpu"
    )
    assert done.returncode == 0, done.stderr
    report = data / "runs" / project / "report"
    assert f"![{name}-loss".replace("$", "\\$").replace("|", "\\|").replace("<b>", "&lt;b&gt;") in (
        report / "report.md"
    ).read_text(encoding="utf-8")
    assert (report / f"{name}-loss.png").exists()
    pages = [
        html.unescape((report / page).read_text(encoding="utf-8"))
        for page in os.listdir(report)
        if page.endswith(".html")
    ]
    assert len(pages) == 2 and all(name in page for page in pages) and sum(f"{text}.txt" in page for page in pages) == 1


def test_a_run_beside_others_is_started_under_the_names_that_were_given(data):
    config = planned_runs([write_config(data, "-x [1]")], 1)[0]
    command = training_command(PROJECT_FOLDER / "train_script.py", config, Request("-p x"), "cpu")
    arguments = training_parser("").parse_args(command[2:])
    assert arguments.project_name == "-p x" and arguments.device == "cpu" and config_of(arguments, "gpt") == config
    assert config_of(arguments, "gpt").name == "-x [1]_forward_seed0"
