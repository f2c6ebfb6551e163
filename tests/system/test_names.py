"""Any name that a file can have is a run's, and is shown as what it is; what would lead out of its folder is
refused."""

import json
import os
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote_to_bytes
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from modules import cli, plots
from modules.config import load_config
from modules.measurement import figures, report
from modules.measurement.pairing import read_run
from modules.system import names
from modules.system.errors import UserError
from modules.system.names import LONGEST_NAME, check_name, distinct, file_name, in_markdown, link_to, one_line
from modules.tok_utils import create_tokenizer
from modules.training.checkpoint import backup_path, backups_of
from modules.training.resume import files_of
from modules.training.run import Request, run
from tests.measurement.test_report import comparison
from tests.toy import PROJECT, write_config
from tests.training.test_training import HERE

NASTY = [
    "lr[3e-4]_forward",
    "a $x$ b",
    "$",
    "$$",
    r"\$x$ \frac{",
    "_leading",
    "__",
    "_it_ a __b__",
    "a  b ",
    "(1) [2] {3}",
    "'\"`",
    "``` ~~~",
    "100%",
    "%s%d%(a)s",
    "{}{0}",
    "#1 #",
    "a&amp;b",
    "a|b\\|c\\",
    "<script>alert(1)</script>",
    "<!-- -->",
    "a\\b",
    "two\nlines\r\n## x",
    "\t\x1b[31m\x07",
    "**bold** *it* ~~no~~",
    "![x](y)",
    "😀👩\u200d💻",
    "Ωμέγα",
    "e\u0301",
    "中文",
    "\u202eevil",
    "ends in dots...",
    "...",
    "-rf",
    "~",
    "a:b",
    "x" * LONGEST_NAME,
    "é" * 110,
    "1. x",
    "http:www.x.y",
    "\udcff\udc80",
]
CHARACTERS = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
FILE_NAMES = st.text(CHARACTERS, min_size=1, max_size=60).filter(lambda name: name not in (".", ".."))
# Runs whose names begin alike, or mean each other as patterns.
ALIKE = st.sampled_from(
    ["a", "a_step5", "a_step000000005", "a*", "[a]", "a?", "a.state", "a.", "a_step000000005.state"]
)
ELSEWHERE = ["", ".", "..", "../x", "/x", "a/b", "a/../../b", "a\0b", "x" * (LONGEST_NAME + 1), "é" * 111, None, 3]


def read_markdown(text: str):
    """The tokens that a reader of Markdown with GitHub's tables sees."""
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def visible(token) -> str:
    """The text of an inline token, of which nothing may be markup."""
    assert {child.type for child in token.children} <= {"text", "text_special"}, token
    return "".join(child.content for child in token.children)


# Which names there are
# --------------------------------------------------------------------------------------------------


@given(FILE_NAMES)
def test_any_name_of_a_file_is_a_name(name):
    assert check_name(name, "x") == name


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_leads_elsewhere_is_refused_in_one_line(tmp_path, name):
    config = load_config(write_config(tmp_path))
    refusing = [
        lambda: config.with_name(name),
        lambda: files_of(config, name),
        lambda: create_tokenizer(tmp_path / "no text", tmp_path, name),
    ]
    if isinstance(name, str):
        arguments = cli.training_parser("").parse_args([str(tmp_path / "toy.json"), f"--run_name={name}"])
        refusing.append(lambda: cli.config_of(arguments, "gpt"))
    torch.save({"model": {}, "optimizer": {}, "step": 1, "run": name, "config": config.to_dict()}, tmp_path / "a.state")
    refusing.append(lambda: read_run(tmp_path / "a.state"))
    for refused in refusing:
        with pytest.raises(UserError, match="expected (a name that a file can have|at most 220 bytes)") as caught:
            refused()
        assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.state", "toy.h5", "toy.json"]


@pytest.mark.parametrize(
    "file, name",
    [
        ("lr.1.json", "lr.1"),
        ("a..json", "a."),
        ("A.JSON", "A"),
        ("...json", ".."),
        ("..json", "."),
        (".json", ""),
        ("a.txt", "a"),
        (".json.json", ".json"),
    ],
)
def test_a_run_is_called_like_its_config(tmp_path, file, name):
    path = write_config(tmp_path).rename(tmp_path / file)
    config = load_config(path)
    assert config.name == name
    if name in ("", ".", ".."):
        with pytest.raises(UserError, match="--run_name"):
            run(config.with_model("gpt"), Request(PROJECT), HERE)
        assert not (tmp_path / "runs").exists()
        assert files_of(config.with_name("better"), PROJECT).state.name == "better.state"
    else:
        assert files_of(config, PROJECT).state.name == f"{name}.state"


# Names of files that are made of them
# -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(ALIKE | FILE_NAMES, unique=True, min_size=2, max_size=4),
    st.sets(st.integers(0, 10**10), min_size=1, max_size=4),
)
def test_a_run_finds_its_backups_and_no_others(tmp_path_factory, runs, steps):
    folder = tmp_path_factory.mktemp("state")
    made = {}
    for name in runs:
        path = folder / f"{name}.state"
        made[path] = [backup_path(path, step) for step in sorted(steps, reverse=True)]
        for backup in made[path]:
            backup.parent.mkdir(exist_ok=True)
            backup.touch()
    for path, backups in made.items():
        assert backups_of(path) == backups, "newest first"
        (folder / "backups" / f"{path.name[: -len('.state')]}_step5.state").touch()  # not a name that we give
        (folder / "backups" / f"{path.name[: -len('.state')]}_step{5:09d}.state.bak").touch()
        assert backups_of(path) == backups
    other = next(name for name in ("none", "other", "third", "fourth", "fifth") if name not in runs)
    assert backups_of(folder / f"{other}.state") == [] and backups_of(folder / "no" / "folder.state") == []


@given(st.lists(st.text(st.sampled_from("aAé\u0301e2-İß"), max_size=4), max_size=12))
def test_names_are_told_apart(given_names):
    for key in (str, names.as_file_systems_see):
        apart = distinct(given_names, key)
        assert len({key(name) for name in apart}) == len(given_names)
        assert all(name.startswith(original) for name, original in zip(apart, given_names, strict=True))
        assert distinct(apart, key) == apart


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=400), st.sampled_from([".png", "-page.html"]))
def test_whatever_a_page_is_called_it_has_a_name_that_a_file_can_have(stem, suffix):
    name = file_name(stem, suffix)
    assert name.endswith(suffix) and len(os.fsencode(name)) <= 255 and "/" not in name and "\0" not in name
    assert (name == stem + suffix) == (len(os.fsencode(stem + suffix)) <= 255 and "/" not in stem and "\0" not in stem)
    assert file_name("x" * 300 + stem, suffix) != file_name("x" * 300 + stem + "y", suffix)


# How they are shown
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NASTY)
def test_a_nasty_name_is_read_in_markdown_as_it_is(name):
    is_read_as_it_is(name)


@given(st.text(st.one_of(st.characters(), st.sampled_from("\\`*_[]()<>&|~$#!-+.\n \"'")), min_size=1, max_size=20))
def test_any_text_is_read_in_markdown_as_it_is(text):
    is_read_as_it_is(text)


def is_read_as_it_is(text: str) -> None:
    wanted = one_line(text)
    assert "\n" not in wanted and wanted.encode() is not None
    heading = read_markdown(f"## {in_markdown(text)}")
    table = read_markdown(report.table(["head", "er"], [[text, "other"], ["after", text]]))
    assert [token.type for token in heading] == ["heading_open", "inline", "heading_close"] and visible(
        heading[1]
    ) == wanted.strip()
    assert [visible(token) for token in table if token.type == "inline"] == [
        "head",
        "er",
        wanted.strip(),
        "other",
        "after",
        wanted.strip(),
    ]
    item = read_markdown(f"- x: {in_markdown(text)}\n- y: 1")
    assert [visible(token) for token in item if token.type == "inline"] == [f"x: {wanted}".rstrip(), "y: 1"]
    (inline,) = [token for token in read_markdown(report.picture(text, "file.png")) if token.type == "inline"]
    (image,) = inline.children
    assert image.type == "image" and image.attrs["src"] == "file.png" and visible(image).strip() == wanted.strip()
    assert "<" not in in_markdown(text) and ">" not in in_markdown(text)


@given(FILE_NAMES)
def test_a_link_leads_to_the_file(name):
    assert os.fsdecode(unquote_to_bytes(link_to(name))) == name
    (inline,) = [token for token in read_markdown(f"[x]({link_to(name)})") if token.type == "inline"]
    assert inline.children[0].attrs["href"] == link_to(name)


def test_a_report_of_nasty_names_shows_them_and_its_pictures_are_there(tmp_path):
    drawn = ["a $x$ b", "<script>alert(1)</script>", "two\nlines\r\n## x"]  # the others in legends
    one = comparison(n_seeds=1)
    comparisons = [
        replace(
            one,
            name=name,
            config=name,
            compared=replace(one.compared, text=name),
            curves=one.curves if name in drawn else [],
        )
        for name in NASTY
    ]
    command = "python measure_arrow.py '``` ````\n# x.json' \udcff"
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error"
        )  # of glyphs that the font lacks, labels that are left out, layouts that do not fit
        paths = report.write_report(tmp_path / "out", comparisons, command)
    tokens = read_markdown(paths["report"].read_text(encoding="utf-8"))
    assert not any(token.type.startswith("html") for token in tokens)
    headings = [
        visible(after) for token, after in pairwise(tokens) if token.type == "heading_open" and token.tag == "h2"
    ]
    assert sorted(headings) == sorted([one_line(name).strip() for name in NASTY] + ["Made by"])
    pictures = [
        child.attrs["src"]
        for token in tokens
        if token.type == "inline"
        for child in token.children
        if child.type == "image"
    ]
    linked = {os.fsdecode(unquote_to_bytes(target)) for target in pictures}
    assert (
        linked == {path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".png"}
        and len(linked) == len(drawn) + 4
    )
    for path in (tmp_path / "out").glob("*.svg"):
        ElementTree.parse(path)
    assert tokens[-1].type == "fence" and tokens[-1].content == command.replace("\udcff", "\\udcff") + "\n"
    assert {one["name"] for one in json.loads(paths["json"].read_text())["comparisons"]} == set(NASTY)


def test_a_picture_shows_names_as_they_are():
    comparisons = [
        comparison(name, text=name, context=context, n_seeds=1)
        for name, context in (("_a $x$", 16), ("中\n", 32), ("x" * 200 + "1", 64), ("x" * 200 + "2", 8))
    ]
    wanted = ["_a $x$", r"\u4e2d\n", "x" * 19 + "…" + "x" * 18 + "1", "x" * 19 + "…" + "x" * 18 + "2"]
    for draw in (figures.arrow_by_checkpoint, figures.arrow_by_tokens_seen):
        assert [text.get_text() for text in draw(comparisons).axes[0].get_legend().get_texts()] == wanted
    by_context = figures.arrow_by_context_length(comparisons).axes[0].get_legend().get_texts()
    assert sorted(text.get_text() for text in by_context) == sorted(f"{name}, 2 layers, width 64" for name in wanted)
    assert sorted(text.get_text() for text in figures.arrow_by_text(comparisons).axes[0].get_xticklabels()) == sorted(
        wanted
    )
    assert plots.run_curve("a $x$", "forward", []).axes[0].get_title() == "a $x$"
    alike = [comparison("x" * 30 + middle + "x" * 30, n_seeds=1) for middle in "ab"]
    shown = [text.get_text() for text in figures.arrow_by_checkpoint(alike).axes[0].get_legend().get_texts()]
    assert len(set(shown)) == 2, "told apart though cut"


def test_comparisons_of_one_name_keep_their_own_pictures(tmp_path):
    one, other, upper = comparison("a", n_seeds=1), comparison("a", context=32, n_seeds=2), comparison("A", n_seeds=1)
    paths = report.write_report(tmp_path, [one, other, upper])
    assert {"a-loss", "a-2-loss", "A-loss"} < paths.keys()
    assert len({str(path).casefold() for path in paths.values()}) == len(paths)
    assert paths["a-loss"].read_bytes() != paths["a-2-loss"].read_bytes()


# All of it
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lr[3e-4]_forward", "$a$ | <b>\n#`*", "é" * 110, "x.1..."])
def test_a_run_of_any_name_trains_keeps_backups_and_goes_on_from_them(tmp_path, name):
    options = {f"training_params__{key}": 2 for key in ("save_every", "backup_every", "step_log", "valid_steps")}
    config = (
        load_config(write_config(tmp_path, training_params__steps_to_train=4, **options))
        .with_model("gpt")
        .with_name(name)
    )
    other = config.with_name("lr3_forward")  # what "lr[3e-4]_forward" means as a pattern
    project = f"{name} of {PROJECT}"[-60:]
    for each in (config, other):
        assert run(each, Request(project), HERE) == 0
    state = files_of(config, project).state
    assert [path.name for path in backups_of(state)] == [f"{name}_step00000000{step}.state" for step in (4, 2)]
    metrics = state.parent.parent / "metrics"
    runs, kinds = (name, "lr3_forward"), ("jsonl", "png", "svg")
    assert {path.name for path in metrics.iterdir()} == {f"{one}.{kind}" for one in runs for kind in kinds}
    state.write_bytes(b"damaged")
    with pytest.raises(UserError) as caught:
        run(config, Request(project), HERE)
    assert str(backups_of(state)[0]) in str(caught.value)
    state.write_bytes(backups_of(state)[1].read_bytes())
    assert run(config, Request(project), HERE) == 0 and read_run(state).state["step"] == 4
    assert not [path for path in Path(tmp_path).rglob(".*")]
