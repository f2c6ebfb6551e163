"""The committed configs: all load, are what the generator writes, and come in pairs that differ in direction only."""

from pathlib import Path

import pytest

from configs.make_configs import HELD_OUT_TOKENS, LANGUAGES, REVERSED_TEXT, config_files
from modules.config import load_config

FOLDER = Path(__file__).parent.parent / "configs"
FILES = sorted(FOLDER.rglob("*.json"))


def test_the_files_are_what_the_generator_writes():
    assert {file.relative_to(FOLDER).as_posix(): file.read_bytes().decode() for file in FILES} == config_files()


def test_run_names_are_unique():
    assert len({file.stem for file in FILES}) == len(FILES) > 100


@pytest.mark.parametrize(
    "forward", [file for file in FILES if file.stem.endswith("_forward")], ids=lambda file: file.stem
)
def test_pairs_load_and_differ_in_direction_only(forward):
    config = load_config(forward)
    other = load_config(forward.with_name(forward.name.replace("_forward", "_backward")))
    assert (config.training_params.backwards, other.training_params.backwards) == (False, True)
    assert config.with_training(backwards=True).to_dict() == other.to_dict()
    if forward.parent.name in LANGUAGES + REVERSED_TEXT:
        assert config.held_out_windows * config.model_params.context == HELD_OUT_TOKENS


def test_every_file_has_its_pair():
    stems = {file.stem.rsplit("_", 1)[0] for file in FILES}
    assert len(FILES) == 2 * len(stems)
