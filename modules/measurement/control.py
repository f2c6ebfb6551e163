"""The reversed control: a text reversed by character and tokenized afresh, to be trained on and measured like the text
itself.

An arrow of the text turns round when the text does: what is behind is then in front. What does not turn round comes
from the tokenizer, which has a direction of its own, and from how fast each direction is learned. So the arrow of time
is the half that turns (contrast.turning).

The control lies in `<folder>/<dataset>_reversed/`: the reversed text, a tokenizer of as many ids trained on it, and its
.h5, which says whose control it is. A tokenizer without a direction (tok_utils/symmetric.py) makes all of it
superfluous: the control's tokens would be the text's own, backward.
"""

import sys
from pathlib import Path

from modules.config import Config
from modules.corpora.reverse import reverse_text
from modules.data.token_file import Text, TokenFile, open_tokens
from modules.measurement.pairing import base_name, in_run_name
from modules.system import console
from modules.system.errors import UserError
from modules.system.names import file_name
from modules.system.processes import this_process
from modules.tok_utils import create_tokenizer, make_h5, tokenize_folder
from modules.tok_utils.readers import Reading, kind_and_compression
from modules.tok_utils.text_source import fingerprint
from modules.tokenizer import get_tokenizer

SUFFIX = "_reversed"


def why_none(token_file: TokenFile) -> str | None:
    """What keeps a dataset from having a trained control, in words; None where nothing does."""
    if token_file.symmetric:
        return "its tokenizer has no direction, so its control is exact without training"
    if token_file.reversed_of is not None:
        return "it is a control itself"
    if not token_file.texts:
        return "it does not say which text it was made from (an earlier version made it, or it was made from ids)"
    for text in token_file.texts:
        if not Path(text.path).is_file():
            return f"its text is not at hand ({text.path})"
        if fingerprint(Path(text.path)) != text.fingerprint:
            return f"its text was changed since ({text.path})"
    return None


def control_of(token_file: TokenFile, folder: Path) -> Path:
    """The .h5 of the control of a dataset, made in `folder` if it is not there. Raises UserError where it cannot be
    made (see `why_none`)."""
    if (reason := why_none(token_file)) is not None:
        raise UserError(f"{token_file.path}: has no control to train: {reason}")
    name = file_name(Path(token_file.path).stem, SUFFIX)
    own = folder / name
    made = own / f"{name}.h5"
    if made.exists() and open_tokens(made).reversed_of == token_file.fingerprint:
        return made
    if this_process().launched:
        raise UserError(
            f"{made}: the control is not there yet, and is made by one process: start measure_arrow.py once without "
            "torchrun, or leave it out with --no_control"
        )
    console.tell(f"{token_file.path}: its control, the text reversed, is made in {own}", sys.stderr)
    texts, reading = own / name, Reading.of_identity(token_file.reading)
    turned = _reading_of_reversed(reading, token_file.texts)
    for number, text in enumerate(reversed(token_file.texts)):  # the last text comes first
        suffix = ".jsonl" if kind_and_compression(text.path)[0] in ("json", "parquet") else ".txt"
        stem = name if len(token_file.texts) == 1 else f"{number:06d}"
        reverse_text(text.path, texts / f"{stem}{suffix}", reading=reading)
    assert token_file.vocab_size is not None  # what says its texts says this too
    tokenizer = create_tokenizer(
        texts, own, "tokenizer", vocab_size=token_file.vocab_size, symbols=token_file.symbols, reading=turned
    )
    chunks = tokenize_folder(texts, tokenizer, reading=turned)
    return make_h5(chunks, own, get_tokenizer(tokenizer), reversed_of=token_file.fingerprint)


def _reading_of_reversed(reading: Reading, texts: tuple[Text, ...]) -> Reading:
    """How the reversed texts are to be read: JSON lines of ours, or texts in which what stood between documents is
    reversed too."""
    kinds = {kind_and_compression(text.path)[0] for text in texts}
    separator = reading.separator_of("fasta") if kinds == {"fasta"} else reading.document_separator
    return Reading(document_separator=separator and separator[::-1])


def control_run(run: Config, data: Path) -> Config:
    """The run on the control that belongs to `run`: the same in all but its data."""
    base, order = base_name(run.name, run.orders), in_run_name(run.orders)
    name = f"{base}{SUFFIX}_{order}_seed{run.training_params.seed}"
    return run.with_training(dataset_folder=str(data)).with_name(name)
