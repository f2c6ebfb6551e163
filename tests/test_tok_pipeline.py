"""Text to .h5 with real files and real worker processes: the ids are those of the whole text, whatever the road."""
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from modules import tok_utils
from modules.tok_utils import create_tokenizer
from modules.tokenizer import get_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SENTENCES = ["The cat isn't on the mat; its 12 friends are.\n", "\n\n  Indented\t text\r\n", "À bientôt, 你好世界 🙂 …", " a<|endoftext|>b ", "Ελληνικά και 日本語\n\n\n"]


def sample_text(characters: int, seed: int = 0) -> str:
    chosen = np.random.default_rng(seed).integers(len(SENTENCES), size=characters)
    return "".join(f"{SENTENCES[i]}{n}" for n, i in enumerate(chosen))[:characters]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokenizer")
    return create_tokenizer(write(place / "t.txt", sample_text(100_000)), place, tokenizer_name="small", vocab_size=600)


def ids_in(h5_path: Path) -> list[int]:
    with h5py.File(h5_path) as file:
        return file["tokens"][:].tolist()


def test_the_star_import_is_the_three_names():
    names = {}
    exec("from modules.tok_utils import *", names)  # noqa: S102
    assert set(names) - {"__builtins__"} == set(tok_utils.__all__) == {"create_tokenizer", "tokenize_folder", "make_h5"}


def test_the_three_calls_of_the_readme(tmp_path):
    """In a script without `if __name__ == '__main__'`, run from another folder."""
    text = sample_text(300_000)
    write(tmp_path / "english" / "english.txt", text)
    write(tmp_path / "script.py", f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from modules import tokenizer
from modules.tok_utils import *
txt_path, out_h5_folder, tokenizer_folder, tokenizer_name = 'english/english.txt', 'out', 'tokenizers', 'mine'
create_tokenizer(txt_path, tokenizer_folder, tokenizer_name=tokenizer_name)
tokenize_folder(os.path.dirname(txt_path), os.path.join(tokenizer_folder, tokenizer_name))
toki = tokenizer.get_tokenizer(m_path=os.path.join(tokenizer_folder, tokenizer_name))
print(make_h5(os.path.dirname(txt_path), out_h5_folder, toki))
""")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == Path("out/english.h5")
    toki = get_tokenizer(tmp_path / "tokenizers" / "mine")
    with h5py.File(tmp_path / "out" / "english.h5") as file:
        tokens = file["tokens"]
        assert list(file) == ["tokens"] and tokens.chunks is None and tokens.id.get_offset() and tokens.dtype == np.uint16
        assert tokens[:].tolist() == toki.encode(text)
        assert tokens.attrs["vocab_size"] == toki.vocab_size and tokens.attrs["tokenizer_fingerprint"] == toki.fingerprint
        assert tokens.attrs["bos_id"] == 0 and tokens.attrs["text_bytes"] == len(text.encode("utf-8"))
    assert (tmp_path / "english" / "english.txt").read_bytes() == text.encode("utf-8")
