"""Arguments: absurd ones are refused in one line, with nothing written."""

import argparse
import io
import sys
from contextlib import redirect_stderr
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

import collect_code
import collect_debian
import collect_docstrings
import collect_manpages
import collect_tunes
import generate_text
import measure_arrow
from modules import cli
from modules.cli import config_of, integer, number_above_zero, path, train_from_arguments, training_parser
from modules.system.errors import UserError
from tests.toy import run_script, write_config

HUGE = "9" * 10_000
COMMANDS = [
    *(
        [script, *rest, "--max_mb", value]
        for script, *rest in (
            ["collect_docstrings", "OUT"],
            ["collect_manpages", "fr", "OUT"],
            ["collect_debian", "x", "OUT"],
            ["collect_code", "OUT"],
            ["collect_tunes", "x", "OUT"],
        )
        for value in ("nan", "inf", "-inf", "-1", "0", "1e300", "1e-400", "", "x", HUGE)
    ),
    *(["collect_docstrings", value] for value in ("", "$THERE_IS_NO_SUCH_VARIABLE/x.txt")),
    ["collect_docstrings", "OUT", "--folder", ""],
    ["collect_debian", "OUT"],
    ["collect_debian", "x", "OUT"],
    ["collect_code", "OUT"],
    ["collect_tunes", "OUT"],
    ["collect_tunes", "x", "OUT"],
    *(
        ["generate_text", kind, "OUT", *flag]
        for kind, flag in [
            ("iid", ("--seed", "-1")),
            ("iid", ("--seed", str(2**70))),
            ("iid", ("--symbols", "1000000000")),
            ("iid", ("--symbols", "1")),
            ("iid", ("--characters", "0")),
            ("markov", ("--characters", "1e6")),
            ("markov", ("--characters", HUGE)),
            ("markov", ("--seed", "nan")),
            ("circuit", ("--bits", "1000000")),
            ("circuit", ("--bits", "0")),
            ("circuit", ("--lines", str(10**15))),
            ("circuit", ("--lines", str(10**12))),
            ("noisy_circuit", ("--flips", "0.7")),
            ("noisy_circuit", ("--bits", "3", "--ones", "5")),
            ("primes", ("--digits", "40")),
            ("primes", ("--digits", "-3")),
            ("primes", ("--lines", "")),
            ("mirror", ("--text", "")),
            ("mirror", ("--text", "x", "--block", "0")),
            ("mirror", ("--text", "x", "--block", str(10**18))),
        ]
    ),
    ["generate_text", "nonsense", "OUT"],
    ["generate_text"],
    ["generate_text", "iid", ""],
    *(
        ["measure_arrow", "config.json", *flag]
        for flag in [
            ("--seeds", "1000000000"),
            ("--seeds", "0"),
            ("--jobs", "3000"),
            ("--jobs", "-1"),
            ("--jobs", "two"),
            ("-o", ""),
            ("-t", ""),
            ("--states", "x"),
            ("--text", ""),
        ]
    ),
    ["measure_arrow", ""],
    ["measure_arrow"],
]
SCRIPTS = {
    "collect_code": collect_code,
    "collect_debian": collect_debian,
    "collect_docstrings": collect_docstrings,
    "collect_manpages": collect_manpages,
    "collect_tunes": collect_tunes,
    "generate_text": generate_text,
    "measure_arrow": measure_arrow,
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(word[:20] for word in command))
def test_absurd_arguments_are_refused_in_one_line_and_nothing_is_written(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    script, *arguments = [str(tmp_path / "new" / "out.txt") if word == "OUT" else word for word in command]
    with (
        patch.object(sys, "argv", [f"{script}.py", *arguments]),
        redirect_stderr(io.StringIO()) as errors,
        pytest.raises(SystemExit) as ended,
    ):
        SCRIPTS[script].main()
    (line,) = errors.getvalue().splitlines()
    assert ended.value.code in (1, 2) and line.startswith("error: ") and len(line) < 400
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flag", [("--cooldown", "0"), ("--cooldown", str(10**18)), ("--cooldown", "1.5"), ("-t", ""), ("-t", "$NO_SUCH/x")]
)
def test_absurd_arguments_of_training_are_refused(flag):
    with redirect_stderr(io.StringIO()) as errors, pytest.raises(SystemExit) as ended:
        training_parser("").parse_args(["config.json", *flag])
    assert ended.value.code == 2 and len(errors.getvalue().splitlines()) == 1


def test_short_forms_and_a_cool_down_without_a_number():
    args = training_parser("").parse_args(["config.json", "-r", "name", "-c"])
    assert (args.run_name, args.cooldown) == ("name", 0)
    assert training_parser("").parse_args(["-c", "12", "config.json"]).cooldown == 12
    assert training_parser("").parse_args(["config.json"]).cooldown is None


def test_the_config_names_the_tokenizer_where_no_argument_does(tmp_path):
    path = write_config(tmp_path, training_params__tokenizer_path=str(tmp_path / "of_config"))
    for arguments, named in (([], "of_config"), (["-t", str(tmp_path / "given")], "given")):
        args = training_parser("").parse_args([str(path), "-d", "cpu", *arguments])
        with pytest.raises(UserError, match=named):
            train_from_arguments(args, config_of(args, "gpt"))


@pytest.mark.parametrize("stream", ["<&-", "</dev/null"])
def test_help_needs_no_standard_input(stream):
    import subprocess

    from tests.toy import command

    done = subprocess.run(
        ["bash", "-c", f'exec "$@" {stream}', "bash", *command("train_script.py", "--help")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "file_location" in done.stdout and not done.stderr


def test_more_processes_than_a_machine_can_have_are_refused():
    done = run_script("train_parallel.py", "config.json", "--nproc", 100_000)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "16 for each core" in done.stderr


@given(st.text() | st.integers().map(str) | st.floats().map(str))
def test_types_give_a_number_within_bounds_or_say_what_they_expected(text):
    for kind, least, most in ((integer(3, 10**6), 3, 10**6), (number_above_zero(1e7, "because"), 0, 1e7)):
        try:
            assert least <= kind(text) <= most
        except argparse.ArgumentTypeError as error:
            assert "expected" in str(error) and len(str(error)) < 200


def test_a_path_is_expanded_where_the_shell_left_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert path("~/out") == "/home/ada/out"
    for refused in ("", "a\0b", "$THERE_IS_NO_SUCH_VARIABLE"):
        with pytest.raises(argparse.ArgumentTypeError):
            path(refused)
    assert cli.seed("0") == 0 and cli.steps("12") == 12
