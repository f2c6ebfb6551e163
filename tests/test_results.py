"""The committed reports: what README.md says of them is theirs, and each can be made again."""

import json
import subprocess

import pytest

from results.make_results import HERE, RESULTS, ROOT, command_of, listing

MADE = [name for name in RESULTS if (HERE / name).exists()]


def test_the_list_is_what_the_reports_hold():
    assert (HERE / "README.md").read_text(encoding="utf-8") == listing()
    assert MADE and all(f"({name}/report.md)" in listing() for name in MADE)


@pytest.mark.parametrize("name", MADE)
def test_a_report_says_where_its_texts_are_from_and_names_no_folder_of_ours(name):
    about = json.loads((HERE / name / "source.json").read_text(encoding="utf-8"))
    assert about["cpu_seconds"] > 0 and about["command"] == " ".join(["python", *command_of(name)])
    for text in RESULTS[name].texts:
        assert all({"package", "licence"} <= source.keys() for source in about["texts"][text]["sources"])
    found = json.loads((HERE / name / "arrow.json").read_text(encoding="utf-8"))["comparisons"]
    assert {each["compared"]["config"]["training_params"]["dataset_folder"] for each in found} == {
        json.loads((ROOT / path).read_text(encoding="utf-8"))["training_params"]["dataset_folder"]
        for path in command_of(name)
        if path.endswith(".json")
    }


@pytest.mark.parametrize("name", RESULTS)
def test_make_knows_how_to_make_the_data_of_each(name):
    # the tests may be run by make itself, which would then name the folder that it enters
    command = ["make", "-n", "--no-print-directory", f"result-{name}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for path in command_of(name):
        if path.endswith(".json"):
            data = json.loads((ROOT / path).read_text(encoding="utf-8"))["training_params"]["dataset_folder"]
            assert (ROOT / data).exists() or f"--out_h5_folder {data.rpartition('/')[0]} " in done.stdout
    assert done.stdout.strip().endswith(f"-m results.make_results {name}")
