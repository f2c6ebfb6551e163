"""Train a tokenizer on a text: `create_tokenizer`.

`bpe_training.py` trains GPT-2's kind, `symmetric.py` one without a direction; `symbols.py` takes the text's own symbols
and trains nothing. What is here is how they are fed, and how the result is saved.

The counts of distinct words stay in memory, some 100 bytes each: for texts of tens of GB train on a sample
(`sample_bytes`), taken evenly from the whole text and the same each time.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from modules.system.console import bar
from modules.system.errors import UserError, interruptibly
from modules.system.files import replacing, sweep
from modules.system.limits import MOST_BYTES, SMALLEST_VOCAB, check_number
from modules.system.locks import alone
from modules.system.names import check_name
from modules.system.processes import meet, this_process
from modules.tok_utils import bpe_training, symmetric
from modules.tok_utils import symbols as symbols_module
from modules.tok_utils.cuts import pieces
from modules.tok_utils.inspection import taken_texts
from modules.tok_utils.progress import say
from modules.tok_utils.readers import Reading
from modules.tok_utils.symbols import UNKNOWN, checked_symbols, symbols_of
from modules.tok_utils.text_source import PLAIN, TextSource, find_texts, not_utf8
from modules.tokenizer import BOS_TOKEN, MOST_IDS, get_tokenizer
from modules.tokenizer import Tokenizer as SavedTokenizer

FEED_BYTES = 1 << 20
SPLITS = ("gpt2", "symmetric")


def create_tokenizer(
    txt_path: str | os.PathLike,
    tokenizer_folder: str | os.PathLike,
    tokenizer_name: str = "tokenizer",
    vocab_size: int = 50257,
    sample_bytes: int | None = None,
    errors: str = "strict",
    split: str = "gpt2",
    symbols: str | None = None,
    reading: Reading = PLAIN,
) -> Path:
    """Train a BPE tokenizer on a text, or collect its symbols, and save it as `<tokenizer_folder>/<tokenizer_name>`.

    Byte-level, `<|endoftext|>` as id 0, then the 256 bytes, then what was learned. The folder opens with
    `get_tokenizer` and with `transformers.AutoTokenizer.from_pretrained`. A tokenizer that is there already is kept,
    with a note: another training would change the ids under data that was made with it.

    Args:
        txt_path: a text, or a folder of them (`readers.py` says of which names).
        vocab_size: number of ids to reach; a small text may give fewer.
        sample_bytes: train on about so many bytes taken evenly from the text; None: on all of it.
        errors: "strict" refuses text that is not UTF-8, "replace" replaces what is not by U+FFFD.
        split: "gpt2" splits a text into words by GPT-2's pattern; "symmetric" splits and merges it alike from both ends
            (`symmetric.py`): the tokens of the reversed text are the reversed tokens.
        symbols: no BPE, but "characters", "bytes", "words" or "kmers:6", say (`symbols.py`).
        reading: how the files become text (`readers.py`).

    Returns the tokenizer's folder. Under torchrun the first process trains and the others wait for it.

    Raises UserError for a text that is missing, empty or not UTF-8, and for a vocab_size below 257 or below that of the
    tokenizer there, for another split than the two or than that of the tokenizer there, and for symbols that are none.
    Another command at work on the same tokenizer is waited for.
    """
    folder = Path(tokenizer_folder) / check_name(tokenizer_name, "tokenizer_name")
    check_number(
        "vocab_size",
        vocab_size,
        SMALLEST_VOCAB if symbols in (None, "bytes") else symbols_module.SPECIAL + 1,
        MOST_IDS,
        f"at least the bytes and {BOS_TOKEN}, at most what memory is had for",
    )
    if sample_bytes is not None:
        check_number("sample_bytes", sample_bytes, 1, MOST_BYTES, "bytes of text; none for the whole")
    if split not in SPLITS:
        raise UserError(f"split: expected {' or '.join(SPLITS)}, found {split!r}")
    if symbols is not None:
        symbols = checked_symbols(symbols)
        if split != "gpt2":
            raise UserError(f"split: symbols ({symbols}) are not split; leave one of the two out")
    wanted = symbols or split
    process = this_process()
    meet(process, "come")
    if process.rank > 0:
        find_texts(txt_path)
        meet(process, "seen the tokenizer trained")
        return folder
    texts = taken_texts(Path(txt_path), reading)
    if not _is_there(folder, vocab_size, wanted):
        with alone(folder):
            if not _is_there(folder, vocab_size, wanted):  # by the command that was waited for
                _train(folder, texts, vocab_size, wanted, _Feed(texts, sample_bytes, errors, wanted, reading))
    meet(process, "seen the tokenizer trained")
    return folder


def _is_there(folder: Path, vocab_size: int, wanted: str) -> bool:
    """Whether there is a tokenizer already, and if so a note. UserError where it is larger than wanted, or of another
    kind."""
    if not (folder / "tokenizer.json").exists():
        return False
    there = get_tokenizer(folder)
    existing = there.vocab_size
    if existing > vocab_size:
        raise UserError(
            f"{folder}: there is a tokenizer of {existing} ids already, and {vocab_size} are wanted: "
            "delete it or take another name"
        )
    found = symbols_of(there) or ("symmetric" if symmetric.shares_blanks(there) else "gpt2")
    is_both = (found, wanted, existing) == ("bytes", "gpt2", vocab_size)  # with no id for a merge
    if found != wanted and not is_both:
        option = "split" if wanted in SPLITS else "symbols"
        raise UserError(
            f"{folder}: there is a tokenizer already, and not one of {option}={wanted!r}: "
            "delete it or take another name"
        )
    say(f"{folder}: using the tokenizer that is there ({existing} ids); delete it to train anew")
    return True


def _train(folder: Path, texts: list[Path], vocab_size: int, wanted: str, feed: "_Feed") -> None:
    where = texts[0] if len(texts) == 1 else texts[0].parent
    say(
        f"training a tokenizer of {vocab_size} ids on {where}"
        if wanted in SPLITS
        else f"collecting {wanted} of {where}"
    )
    if wanted == "symmetric":
        backend = interruptibly(lambda: symmetric.train(bpe_training.items_of(feed()), vocab_size))
    elif wanted == "gpt2":
        sweep(folder.parent)  # what a training that was killed there left
        backend = bpe_training.train(feed, vocab_size, folder.parent, feed.size)
    else:
        backend = symbols_module.train(feed(), wanted, vocab_size)
    _save(backend, folder)
    reached = backend.get_vocab_size()
    if wanted not in SPLITS:
        say(f"{folder}: {reached:,} ids, of symbols and {BOS_TOKEN}" + (f" and {UNKNOWN}" if wanted != "bytes" else ""))
    elif reached < vocab_size:
        say(f"{folder}: the text gave {reached} ids, fewer than the {vocab_size} asked for")


def _save(backend: Tokenizer, folder: Path) -> None:
    """Write the two files that make a Hugging Face tokenizer folder, tokenizer.json last: where it is, the folder is
    whole."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS_TOKEN,
        "eos_token": BOS_TOKEN,
        "unk_token": BOS_TOKEN if backend.token_to_id(UNKNOWN) is None else UNKNOWN,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
    }
    with replacing(folder / "tokenizer_config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    with replacing(folder / "tokenizer.json") as temporary:
        backend.save(str(temporary), pretty=False)


class _Feed:
    """The texts, or an even sample of them, as pieces at whose ends words and symbols end; `size` in bytes, about. Each
    call begins anew."""

    def __init__(self, texts: list[Path], sample_bytes: int | None, errors: str, wanted: str, reading: Reading):
        self._texts, self._errors, self._reading = texts, errors, reading
        if wanted in SPLITS:
            backend = symmetric.untrained() if wanted == "symmetric" else bpe_training.bytes_only()
            self._splitter = SavedTokenizer(Path(), {}, backend)
        else:
            self._splitter = symbols_module.untrained(wanted)
        total = 0
        for text in texts:
            with TextSource(text, reading) as source:
                total += source.estimated_size()
        self._share = 1.0 if sample_bytes is None else min(1.0, sample_bytes / total)
        self.size = int(total * self._share)

    def __call__(self) -> Iterator[str]:
        fed, share = 0, self._share
        with bar(desc="read", total=self.size, unit="B", unit_scale=True) as progress:
            for text in self._texts:
                with TextSource(text, self._reading) as source:
                    for number, piece in enumerate(pieces(source, FEED_BYTES, self._splitter)):
                        # `share` of the numbers, evenly spread, 0 among them
                        if math.ceil((number + 1) * share) == math.ceil(number * share):
                            continue
                        decoded = _decode(source.read(piece.start, piece.stop), text, piece.start, self._errors)
                        yield decoded
                        progress.update(piece.stop - piece.start)
                        fed += piece.stop - piece.start
            if not fed:
                raise UserError(f"{self._texts[0]}: the text is empty")
        if self._splitter.definition == {}:
            say("merging")


def _decode(data: bytes, text: Path, start: int, errors: str) -> str:
    try:
        return data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise not_utf8(text, start + error.start, data[error.start]) from None
