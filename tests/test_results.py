"""The committed reports: what README.md says of them is theirs, and each can be made again."""

import json
import re
import subprocess

import pytest

from modules.corpora.synthetic import noisy_circuit_entropy, prime_products_entropy
from modules.plots import save
from results.listing import arrow_rows, listing
from results.make_results import FIGURES, command_of
from results.measurements import CIRCUIT_FLOORS, HERE, PRIMES_FLOOR, RESULTS, ROOT, comparisons_of

MADE = [name for name in RESULTS if (HERE / name).exists()]


def test_the_list_is_what_the_reports_hold():
    assert (HERE / "README.md").read_text(encoding="utf-8") == listing()
    assert MADE and all(f"({name}/report.md)" in listing() for name in MADE)


@pytest.mark.parametrize("draw", FIGURES)
def test_the_committed_figures_are_of_these_reports(draw, tmp_path):
    """By the words and the numbers of lines in them; coordinates may differ in the last digit from machine to
    machine."""
    save(draw(), tmp_path / "drawn")
    drawn, committed = (
        (re.findall(r"<!-- (.*) -->|<(path|use)\b", path.read_text(encoding="utf-8")))
        for path in (tmp_path / "drawn.svg", HERE / f"{draw.__name__}.svg")
    )
    assert drawn == committed


def test_the_first_table_of_the_readme_has_what_the_reports_found():
    """In bold what is a finding among all measurements."""
    found = {}
    for _, _, _, _, forward, arrow, interval, _, p, *_ in arrow_rows():
        found[f"{float(forward):.3f}", arrow, interval] = p == "< 0.001" or float(p) < 0.05
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    row = r"^\| (\**)[^|]+\| ([\d.]+) \| \**([+-][\d.]+)\** \| \**([+-][\d.]+ to [+-][\d.]+)"
    rows = re.findall(row, page, re.MULTILINE)
    assert len(rows) >= 5
    for bold, *numbers in rows:
        assert found[tuple(numbers)] == bool(bold), numbers


@pytest.mark.parametrize("name", MADE)
def test_a_report_says_where_its_texts_are_from_and_names_no_folder_of_ours(name):
    about = json.loads((HERE / name / "source.json").read_text(encoding="utf-8"))
    assert about["cpu_seconds"] > 0 and about["command"] == " ".join(["python", *command_of(name)])
    for text in RESULTS[name].texts:
        assert all({"package", "licence"} <= source.keys() for source in about["texts"][text]["sources"])
    found = comparisons_of(name)
    controls = {each["control"]["name"] for each in found if each["control"]}
    texts = [each["compared"] for each in found if each["name"] not in controls]
    assert {text["config"]["training_params"]["dataset_folder"] for text in texts} == {
        json.loads((ROOT / path).read_text(encoding="utf-8"))["training_params"]["dataset_folder"]
        for path in command_of(name)
        if path.endswith(".json")
    }


def test_floors_are_the_entropies_of_the_made_texts():
    assert prime_products_entropy(5, from_digits=1, ordered=True) == pytest.approx(PRIMES_FLOOR, abs=1e-6)
    (floor,) = RESULTS["circuit20"].floors.values()
    assert noisy_circuit_entropy(bits=20, ones=6) == pytest.approx(floor, abs=1e-6)


@pytest.mark.slow  # a gigabyte and some seconds each
@pytest.mark.parametrize("ones", CIRCUIT_FLOORS)
def test_floors_of_circuits_of_25_bits(ones):
    assert noisy_circuit_entropy(bits=25, ones=ones) == pytest.approx(CIRCUIT_FLOORS[ones], abs=1e-6)


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
