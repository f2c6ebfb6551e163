"""Train a byte-level BPE tokenizer on a text: `create_tokenizer`.

`symmetric.py` trains one without a direction. GPT-2's kind is trained by the `tokenizers` library, on all cores; what
is ours is how it is fed. It pre-tokenizes an item of the feed in one thread, and is faster with lines than with a whole
text (3.7 and 2.5 MB a CPU second), so texts go in as lines, cut where its pattern cannot see across (before a line
break that follows a non-space): the tokenizer is the one that the whole text in one piece would give.

A run of letters, digits, signs or blanks longer than LONGEST_RUN (a text without blanks is one) goes in as several: the
time that merging takes grows with the text times the length of its words, and for one word of 20 MB it would not end.
Ordinary texts have none.

The counts of distinct words stay in memory, some 100 bytes each: for texts of tens of GB train on a sample
(`sample_bytes`), taken evenly from the whole text and the same each time.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import regex
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from modules.system.console import bar
from modules.system.errors import UserError, interruptibly
from modules.system.files import replacing
from modules.system.limits import MOST_BYTES, SMALLEST_VOCAB, check_number
from modules.system.locks import alone
from modules.system.names import check_name
from modules.system.processes import meet, this_process
from modules.tok_utils import symmetric
from modules.tok_utils.cuts import pieces
from modules.tok_utils.inspection import taken_texts
from modules.tok_utils.progress import say
from modules.tok_utils.text_source import TextSource, find_texts, not_utf8
from modules.tokenizer import BOS_TOKEN, MOST_IDS, get_tokenizer
from modules.tokenizer import Tokenizer as SavedTokenizer

FEED_BYTES = 1 << 20
SPLITS = ("gpt2", "symmetric")
LINE_BREAK = re.compile(r"(?<=\S)(?=\n)")
LONGEST_RUN = 4000  # characters; no word of a language comes near, and 20 MB without a blank cost half a minute more
LONG_RUN = regex.compile(
    rf"\p{{L}}{{{LONGEST_RUN}}}|\p{{N}}{{{LONGEST_RUN}}}|[^\s\p{{L}}\p{{N}}]{{{LONGEST_RUN}}}|\s{{{LONGEST_RUN}}}"
)


def create_tokenizer(
    txt_path: str | os.PathLike,
    tokenizer_folder: str | os.PathLike,
    tokenizer_name: str = "tokenizer",
    vocab_size: int = 50257,
    sample_bytes: int | None = None,
    errors: str = "strict",
    split: str = "gpt2",
) -> Path:
    """Train a BPE tokenizer on a text and save it as `<tokenizer_folder>/<tokenizer_name>`.

    Byte-level, `<|endoftext|>` as id 0, then the 256 bytes, then what was learned. The folder opens with
    `get_tokenizer` and with `transformers.AutoTokenizer.from_pretrained`. A tokenizer that is there already is kept,
    with a note: another training would change the ids under data that was made with it.

    Args:
        txt_path: a text (.txt, .txt.gz, .txt.xz, .txt.zst), or a folder of them.
        vocab_size: number of ids to reach; a small text may give fewer.
        sample_bytes: train on about so many bytes taken evenly from the text; None: on all of it.
        errors: "strict" refuses text that is not UTF-8, "replace" replaces what is not by U+FFFD.
        split: "gpt2" splits a text into words by GPT-2's pattern; "symmetric" splits and merges it alike from both ends
            (`symmetric.py`): the tokens of the reversed text are the reversed tokens.

    Returns the tokenizer's folder. Under torchrun the first process trains and the others wait for it.

    Raises UserError for a text that is missing, empty or not UTF-8, and for a vocab_size below 257 or below that of the
    tokenizer there, for another split than the two or than that of the tokenizer there. Another command at work on the
    same tokenizer is waited for.
    """
    folder = Path(tokenizer_folder) / check_name(tokenizer_name, "tokenizer_name")
    check_number(
        "vocab_size",
        vocab_size,
        SMALLEST_VOCAB,
        MOST_IDS,
        f"at least the bytes and {BOS_TOKEN}, at most what memory is had for",
    )
    if sample_bytes is not None:
        check_number("sample_bytes", sample_bytes, 1, MOST_BYTES, "bytes of text; none for the whole")
    if split not in SPLITS:
        raise UserError(f"split: expected {' or '.join(SPLITS)}, found {split!r}")
    process = this_process()
    meet(process, "come")
    if process.rank > 0:
        find_texts(txt_path)
        meet(process, "seen the tokenizer trained")
        return folder
    texts = taken_texts(Path(txt_path))
    if not _is_there(folder, vocab_size, split):
        with alone(folder):
            if not _is_there(folder, vocab_size, split):  # by the command that was waited for
                _train(folder, texts, txt_path, vocab_size, sample_bytes, errors, split)
    meet(process, "seen the tokenizer trained")
    return folder


def _is_there(folder: Path, vocab_size: int, split: str) -> bool:
    """Whether there is a tokenizer already, and if so a note. UserError where it is larger than wanted, or of another
    split."""
    if not (folder / "tokenizer.json").exists():
        return False
    there = get_tokenizer(folder)
    existing = there.vocab_size
    if existing > vocab_size:
        raise UserError(
            f"{folder}: there is a tokenizer of {existing} ids already, and {vocab_size} are wanted: delete it or take another name"
        )
    if symmetric.shares_blanks(there) != (split == "symmetric"):
        raise UserError(
            f"{folder}: there is a tokenizer already, and not one of split={split!r}: delete it or take another name"
        )
    say(f"{folder}: using the tokenizer that is there ({existing} ids); delete it to train anew")
    return True


def _train(
    folder: Path,
    texts: list[Path],
    txt_path: str | os.PathLike,
    vocab_size: int,
    sample_bytes: int | None,
    errors: str,
    split: str,
) -> None:
    say(f"training a tokenizer of {vocab_size} ids on {txt_path}")
    feed = _feed(texts, sample_bytes, errors, split)
    if split == "symmetric":
        backend = interruptibly(lambda: symmetric.train(feed, vocab_size))
    else:
        backend = untrained()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[BOS_TOKEN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        interruptibly(lambda: backend.train_from_iterator(feed, trainer))
    _save(backend, folder)
    reached = backend.get_vocab_size()
    if reached < vocab_size:
        say(f"{folder}: the text gave {reached} ids, fewer than the {vocab_size} asked for")


def untrained() -> Tokenizer:
    """A tokenizer with GPT-2's split into pieces and no merges yet."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _save(backend: Tokenizer, folder: Path) -> None:
    """Write the two files that make a Hugging Face tokenizer folder, tokenizer.json last: where it is, the folder is
    whole."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS_TOKEN,
        "eos_token": BOS_TOKEN,
        "unk_token": BOS_TOKEN,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
    }
    with replacing(folder / "tokenizer_config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    with replacing(folder / "tokenizer.json") as temporary:
        backend.save(str(temporary), pretty=False)


def _feed(texts: list[Path], sample_bytes: int | None, errors: str, split: str) -> Iterator[list[str]]:
    """The texts, or an even sample of them, as lists of short items."""
    splitter = SavedTokenizer(Path(), {}, symmetric.untrained() if split == "symmetric" else _bytes_only())
    total = 0
    for text in texts:
        with TextSource(text) as source:
            total += source.estimated_size()
    share = 1.0 if sample_bytes is None else min(1.0, sample_bytes / total)
    runs_said, fed = False, 0
    with bar(desc="read", total=int(total * share), unit="B", unit_scale=True) as progress:
        for text in texts:
            with TextSource(text) as source:
                for number, piece in enumerate(pieces(source, FEED_BYTES, splitter)):
                    if math.ceil((number + 1) * share) == math.ceil(
                        number * share
                    ):  # `share` of the numbers, evenly spread, 0 among them
                        continue
                    lines = LINE_BREAK.split(_decode(source.read(piece.start, piece.stop), text, piece.start, errors))
                    items = [item for line in lines for item in without_long_runs(line)]
                    if len(items) > len(lines) and not runs_said:
                        say(
                            f"{text}: runs of more than {LONGEST_RUN:,} letters, digits, signs or blanks are cut at that length for training"
                        )
                        runs_said = True
                    yield items
                    progress.update(piece.stop - piece.start)
                    fed += piece.stop - piece.start
        if not fed:
            raise UserError(f"{texts[0]}: the text is empty")
    say("merging")


def without_long_runs(line: str) -> list[str]:
    """A line, cut within each run that is longer than LONGEST_RUN."""
    if len(line) <= LONGEST_RUN:
        return [line]
    cuts = [match.end() for match in LONG_RUN.finditer(line)]
    return [line[start:stop] for start, stop in pairwise([0, *cuts, len(line)]) if start < stop]


def _bytes_only() -> Tokenizer:
    """Splits like the tokenizer to be, so that `cuts.py` can try its cuts before there is one."""
    backend = untrained()
    alphabet = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend.model = models.BPE(alphabet, [])
    return backend


def _decode(data: bytes, text: Path, start: int, errors: str) -> str:
    try:
        return data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise not_utf8(text, start + error.start, data[error.start]) from None
