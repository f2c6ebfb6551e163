"""What stands around the code says one thing: pins, lock, metadata."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PINNED = re.compile(r"^([\w-]+)==([\w.]+)", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    return dict(PINNED.findall((ROOT / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_the_lock_has_what_is_pinned_and_a_hash_for_all_of_it(name):
    locked = pins("requirements.lock")
    assert pins(name).items() <= locked.items(), "make lock"
    entries = re.split(r"\n(?=[\w-]+==)", (ROOT / "requirements.lock").read_text(encoding="utf-8"))[1:]
    assert len(entries) == len(re.findall(PINNED, "\n".join(entries))) and all("--hash=sha256:" in e for e in entries)


def test_the_hooks_use_the_ruff_that_is_pinned():
    rev = re.search(r"rev: v([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))[1]
    assert rev == pins("requirements-dev.txt")["ruff"]


def test_license_and_version_of_python_are_said_once_and_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == "MIT" and (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert "license: MIT" in citation and f"name: {project['authors'][0]['name']}" in citation
    assert "2401.17505" in citation
