"""The documentation: what it points at is there, and its tree is the tree."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "configs" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "RESULTS.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_that_are_there(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_the_tree_names_every_module_and_script_and_nothing_else():
    tree = (ROOT / "docs" / "code.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^ *([\w.]+\.py) ", tree, re.MULTILINE))
    there = {path.name for path in [*ROOT.glob("*.py"), *(ROOT / "modules").rglob("*.py")]} - {"__init__.py"}
    assert named == there


def test_a_module_imports_only_what_stands_before_it_in_the_tree():
    order, folder = [], ""
    for line in (ROOT / "docs" / "code.md").read_text(encoding="utf-8").partition("\nmodules/\n")[2].splitlines():
        if found := re.match(r"( +)([\w.]+)(/?) ", line):
            if len(found[1]) == 2:
                folder = f"{found[2]}." if found[3] else ""
            if found[2].endswith(".py"):
                order.append(f"modules.{folder if len(found[1]) > 2 else ''}{found[2].removesuffix('.py')}")
    for number, module in enumerate(order):
        source = (ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
        for package, names in re.findall(r"^ *from (modules[\w.]*) import \(?([\w, \n]+)", source, re.MULTILINE):
            for name in names.split(","):
                imported = f"{package}.{name.strip().split(' ')[0]}" if package not in order else package
                if imported in order:
                    assert order.index(imported) < number, f"{module} imports {imported}, which stands after it"


@pytest.mark.slow
def test_readme_commands_of_the_demo_run_as_they_stand(tmp_path):
    """Five minutes: the commands that the README gives in place of `make demo`, in a copy of the project, but for those
    that make the environment."""
    for name in subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    block = (ROOT / "README.md").read_text(encoding="utf-8").partition("the same commands are:")[2].split("```")[1]
    commands = [line for line in block.splitlines() if line.startswith(".venv/bin/python ") and " pip " not in line]
    assert len(commands) == 2
    for command in commands:
        subprocess.run(command, shell=True, cwd=tmp_path, check=True, timeout=1800)
    assert (tmp_path / "demo" / "runs" / "demo" / "report" / "report.md").exists()


def test_readme_commands_know_their_flags():
    """Every flag of our scripts that the pages use is one that the script explains."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES[:2])
    for script in ("measure_arrow.py", "tokenize_to_h5.py", "train_script.py"):
        explained = subprocess.run(
            [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, timeout=120
        ).stdout
        for line in text.splitlines():
            if script in line and "python" in line:
                for flag in re.findall(r"(?<=\s)--?[a-z]\w*", line.partition(script)[2]):
                    assert flag in explained, f"{script} {flag}"
