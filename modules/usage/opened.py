"""Trained models opened to be used: the runs behind states, and the tokenizer that they all read with."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from modules.data.token_file import open_tokens
from modules.measurement.pairing import Trained, read_run
from modules.system.errors import UserError
from modules.tokenizer import Tokenizer, get_tokenizer, load

OURS = Path(__file__).resolve().parents[1] / "tokenizers"


def runs_of(paths: Sequence[str]) -> list[Trained]:
    """The runs whose states these are, a model of several orders once for each of them. UserError where one is missing,
    damaged or none, or is given twice."""
    runs: list[Trained] = []
    for path in map(Path, paths):
        if any(path.resolve() == run.path.resolve() for run in runs):
            raise UserError(f"{path}: expected each state once, found it twice")
        runs += read_run(path).in_each_order()
    return runs


def tokenizer_of(runs: Sequence[Trained], path: str | None = None, data: str | None = None) -> tuple[Tokenizer, int]:
    """The tokenizer that `runs` read with, and the id that stands before a window: the one in the folder `path`, or the
    one that made the dataset `data`, or the one that a config names.

    UserError where it is not at hand, or not that of every run.
    """
    if path is not None:
        toki = get_tokenizer(path)
    elif data is not None:
        toki = tokenizer_of_data(runs, data)
    else:
        named = next((each for run in runs if (each := run.config.tokenizer_path) and Path(each).is_dir()), None)
        if named is None:
            raise UserError(
                f"{runs[0].path}: does not say where its tokenizer is: give its folder with -t, or the .h5 that it "
                "made with --data"
            )
        toki = get_tokenizer(named)
    for run in runs:
        check_tokenizer(run, toki)
    return toki, toki.bos_id if data is None else open_tokens(data).bos_id


def check_tokenizer(run: Trained, toki: Tokenizer) -> None:
    """UserError where `toki` cannot have made the data of `run`."""
    expected, vocab_size = run.state["dataset"]["tokenizer_fingerprint"], run.config.model_params.vocab_size
    if expected not in (None, toki.fingerprint) or toki.vocab_size > vocab_size:
        raise UserError(
            f"{toki.folder}: not the tokenizer of {run.path}: fingerprint {toki.fingerprint[:12]} with "
            f"{toki.vocab_size:,} ids, the state has {(expected or 'unknown')[:12]} and {vocab_size:,}; give the one "
            "that made its data"
        )


def tokenizer_of_data(runs: Sequence[Trained], data: str) -> Tokenizer:
    """The tokenizer that made the dataset `data` of `runs`, known by its fingerprint: looked for where the configs say,
    in folders beside the .h5 and beside its folder, in those that lie in them, and among ours. UserError where it is
    nowhere there."""
    token_file = open_tokens(data)
    for run in runs:
        if not token_file.matches(recorded := run.state["dataset"]["fingerprint"]):
            raise UserError(
                f"{data}: not the data that {run.path} was trained on (fingerprint {token_file.fingerprint}, expected "
                f"{recorded}); give the tokenizer's folder with -t"
            )
    if token_file.tokenizer_fingerprint is None:
        raise UserError(
            f"{data}: does not say which tokenizer made it (an earlier version wrote it, or it came from ids); give "
            "the tokenizer's folder with -t"
        )
    looked = 0
    for folder in dict.fromkeys(tokenizer_folders(runs, Path(data))):
        try:
            if load(folder)[0].fingerprint == token_file.tokenizer_fingerprint:
                return get_tokenizer(folder)
            looked += 1
        except UserError:  # no tokenizer of the kinds that we read
            continue
    raise UserError(
        f"{data}: the tokenizer that made it (fingerprint {token_file.tokenizer_fingerprint[:12]}) is not among the "
        f"{looked} near it: it was moved or changed; give its folder with -t"
    )


def tokenizer_folders(runs: Sequence[Trained], data: Path) -> Iterator[Path]:
    """The folders where the tokenizer of a dataset may be."""
    yield from (Path(path) for run in runs if (path := run.config.tokenizer_path))
    folder = data.resolve().parent
    near = [(place, pattern) for place in (folder, folder.parent) for pattern in ("*", "*/*")]
    for place, pattern in [*near, (OURS, "*")]:
        yield from sorted(file.parent for file in place.glob(f"{pattern}/tokenizer.json"))
