"""Hard texts and small tokenizers, shared by the tests of the tokenization."""

import json
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from modules.tok_utils.bpe_training import untrained
from modules.tok_utils.text_source import TextInMemory
from modules.tokenizer import Tokenizer, get_tokenizer

SENTENCES = [
    "The cat isn't on the mat; its 12 friends'll come, they've said.\n",
    "\n\n  Indented\t text\r\n",
    "À bientôt, 你好世界 🙂 …",
    " a<|endoftext|>b ",
    "Ελληνικά και 日本語\n\n\n",
    "1234567890",
    "'''''s",
    "e\u0301\u0301 \u00a0\u2003\u3000x",
    "\x00\x85\u2028",
    "no-spaces_at.all()",
]
# Characters of every class and every role in GPT-2's pattern, and what looks like one class and is another.
CHARACTERS = list(
    "abstrevmld'’ST \t\n\r0129²Ⅷ٣!.,-_é\u0301ñ你語🙂\u00a0\u2003\u3000\x85\x1c\u200b\u180e\ufeff\u0378\U0001f1eb\x00"
) + ["'s", "'re", "  ", "\n\n", " '", "''"]

hard_text = st.lists(st.sampled_from(CHARACTERS), max_size=60).map("".join) | st.text(max_size=40)


def sample_text(characters: int, seed: int = 0) -> str:
    """Sentences of many kinds, the same for the same seed."""
    chosen = np.random.default_rng(seed).integers(len(SENTENCES), size=characters // 8 + 1)
    return "".join(f"{SENTENCES[i]}{n % 97}" for n, i in enumerate(chosen))[:characters]


def trained(folder: Path, texts: list[str], vocab_size: int, backend=None) -> Tokenizer:
    """A tokenizer trained on `texts` by the library itself, saved and loaded again."""
    from tokenizers import pre_tokenizers, trainers

    backend = backend or untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    return get_tokenizer(folder)


def in_memory(text: str) -> TextInMemory:
    return TextInMemory(text.encode("utf-8"))


def library_tokenizer(
    folder: Path,
    texts: list[str],
    pre_tokenizer=None,
    decoder=None,
    normalizer=None,
    special=("<unk>", "<s>"),
    byte_fallback=False,
    vocab_size=600,
    **model,
) -> Tokenizer:
    """A BPE tokenizer of any kind, trained and saved by the library; with `byte_fallback` all bytes are in the
    vocabulary, as SentencePiece has them."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, trainers

    backend = Backend(models.BPE(unk_token=special[0] if special else None, byte_fallback=byte_fallback, **model))
    for name, part in (("pre_tokenizer", pre_tokenizer), ("decoder", decoder), ("normalizer", normalizer)):
        if part is not None:
            setattr(backend, name, part)
    byte_names = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[*special, *byte_names], show_progress=False)
    )
    definition = json.loads(backend.to_str())
    definition["added_tokens"] = [token for token in definition["added_tokens"] if token["content"] not in byte_names]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>" if "<s>" in special else None}))
    return get_tokenizer(folder)


def llama2_like(folder: Path, texts: list[str]) -> Tokenizer:
    """SentencePiece's BPE as Llama 2 has it: blanks by the normalizer, no pre-tokenizer, bytes for what the vocabulary
    lacks."""
    from tokenizers import decoders, normalizers

    return library_tokenizer(
        folder,
        texts,
        byte_fallback=True,
        normalizer=normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]),
        decoder=decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    )
