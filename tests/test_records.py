"""Records of benchmarks: what was printed is kept, and RESULTS.md holds what its records say."""

import json

import pytest

from benchmarks.records import RESULTS, filled, recording
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


def test_a_record_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="2026-01-01-abc-x"):
        filled("<!-- record 2026-01-01-abc-x -->\n<!-- end -->", tmp_path)
