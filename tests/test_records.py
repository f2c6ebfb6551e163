"""Records of benchmarks: what was printed is kept, and RESULTS.md holds what its records say."""

import importlib
import json
import platform
import sys

import pytest

from benchmarks.records import RESULTS, filled, processor, recording
from modules.system.errors import UserError


def test_results_are_what_their_records_printed():
    page = RESULTS.read_text(encoding="utf-8")
    assert filled(page) == page, "run python -m benchmarks.records"


def test_what_is_printed_is_shown_and_kept(tmp_path, capsys):
    with recording("sizes", tmp_path):
        print("| a | b |")
    assert "| a | b |" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert record["printed"] == "| a | b |\n" and record["commit"] in path.name and record["machine"]["cores"] >= 1
    page = f"before\n<!-- record {path.stem} -->\nold\n<!-- end -->\nafter\n"
    assert filled(page, tmp_path) == page.replace("old", "| a | b |")


def test_a_benchmark_that_fails_leaves_no_record(tmp_path):
    with pytest.raises(ZeroDivisionError), recording("sizes", tmp_path):
        print(1 / 0)
    assert not list(tmp_path.iterdir())


def test_a_processor_that_linux_does_not_name(tmp_path):
    told = tmp_path / "cpuinfo"
    told.write_text("processor : 0\nCPU implementer : 0x41\n")  # ARM
    assert processor(told) == (platform.processor() or platform.machine())
    told.write_text("processor : 0\nmodel name\t: AMD EPYC\n")
    assert processor(told) == "AMD EPYC"


def test_a_record_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="2026-01-01-abc-x"):
        filled("<!-- record 2026-01-01-abc-x -->\n<!-- end -->", tmp_path)


# Benchmarks, at their smallest
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, options",
    [
        ("bench_data", "--tokens 200000 --batch 8 --context 16 --rounds 1 --seconds 0.05"),
        ("bench_generate", "--rounds 1 --tokens 2"),
        pytest.param("bench_tokenize", "--mb 1 --folder .", marks=pytest.mark.slow),
        pytest.param("bench_train_tokenizer", "--mb 1 --vocab_size 300 --folder .", marks=pytest.mark.slow),
        pytest.param(
            "bench_training",
            "--models gru:small --precision fp32 --batch 2 --context 16 --rounds 1 --seconds 0.1",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "bench_training",
            "--ways --models nano --batch 2 --context 16 --rounds 1 --seconds 0.1 --device cpu",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_benchmark_leaves_what_it_printed(name, options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(RESULTS.parents[1]))  # for the processes that it starts
    (tmp_path / "docstrings.txt").write_text("A corpus that is there is not collected again.\n" * 1000)
    benchmark = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(benchmark, "recording", lambda of: recording(of, tmp_path / "records"))
    monkeypatch.setattr(sys, "argv", [name, *options.split()])
    benchmark.main()
    (path,) = (tmp_path / "records").iterdir()
    printed = json.loads(path.read_text())["printed"]
    assert printed == capsys.readouterr().out and "|---|" in printed
