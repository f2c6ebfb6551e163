"""Ids that are there already become an .h5: the same ids, a vocabulary that is stated, a start token that is named or
added."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modules.data.token_file import check_file, open_tokens
from modules.system.errors import UserError
from modules.tok_utils import ids as ids_module
from modules.tok_utils.ids import ID_TYPES, ids_to_h5
from tests.toy import ROOT


@given(
    st.lists(st.integers(0, 299), min_size=1, max_size=50),
    st.sampled_from(ID_TYPES[1:]),
    st.sampled_from([".npy", ".bin"]),
    st.sampled_from([None, 0, 7]),
    st.integers(1, 60),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_ids_are_those_of_the_file(tmp_path, ids, id_type, suffix, bos_id, block):
    array = np.array(ids, dtype=np.dtype(id_type).newbyteorder("<"))
    path = tmp_path / f"t{suffix}"
    np.save(path, array) if suffix == ".npy" else array.tofile(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids_module, "BLOCK", block)
        h5_path = ids_to_h5(path, tmp_path, 300, bos_id, id_type)
    token_file = open_tokens(h5_path)
    assert token_file.tokens[:].tolist() == ids and token_file.tokens.dtype == np.uint16
    assert (token_file.vocab_size, token_file.bos_id) == ((301, 300) if bos_id is None else (300, bos_id))
    assert token_file.text_bytes is None and "as written" in check_file(h5_path)


def test_large_vocabularies_need_32_bits(tmp_path):
    np.save(tmp_path / "t.npy", np.array([65535, 0]))
    for vocab_size, bos_id, bits in ((65536, 1, 16), (65536, None, 32), (65537, 1, 32)):
        token_file = open_tokens(ids_to_h5(tmp_path / "t.npy", tmp_path, vocab_size, bos_id))
        assert token_file.tokens.dtype.itemsize == bits // 8 and token_file.tokens[:].tolist() == [65535, 0]


def test_nanogpts_file_from_the_command_line(tmp_path):
    np.array([5, 50256, 7], dtype=np.uint16).tofile(tmp_path / "train.bin")
    command = [sys.executable, ROOT / "tokenize_to_h5.py", "--ids", tmp_path / "train.bin", "--out_h5_folder", tmp_path]
    run = subprocess.run([*command, "--vocab_size", "50257", "--bos_id", "50256"], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.strip() == str(tmp_path / "train.h5")
    token_file = open_tokens(tmp_path / "train.h5")
    assert token_file.tokens[:].tolist() == [5, 50256, 7] and token_file.bos_id == 50256
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode and run.stderr == "error: --ids: give --vocab_size as well\n"


def test_refusals(tmp_path):
    np.array([1, 2, 300], dtype=np.uint16).tofile(tmp_path / "t.bin")
    np.save(tmp_path / "negative.npy", np.array([1, -2]))
    np.save(tmp_path / "floats.npy", np.array([1.0]))
    np.save(tmp_path / "square.npy", np.array([[1]]))
    np.save(tmp_path / "none.npy", np.array([], dtype=int))
    np.savez(tmp_path / "z", a=np.array([1]))
    (tmp_path / "z.npz").rename(tmp_path / "archive.npy")
    (tmp_path / "text.npy").write_text("no ids")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "square.npy").read_bytes()[:-3])
    (tmp_path / "odd.bin").write_bytes(b"abc")
    (tmp_path / "empty.bin").touch()
    (tmp_path / "t.pt").touch()
    for name, options, message in (
        ("t.bin", {}, "expected ids of 0 to 299, found 300 at position 2; give the --vocab_size"),
        ("negative.npy", {}, "found -2 at position 1"),
        ("floats.npy", {}, "expected a row of integers, found float64"),
        ("square.npy", {}, r"found int64 of shape \(1, 1\)"),
        ("none.npy", {}, r"of shape \(0,\)"),
        ("archive.npy", {}, "found an archive"),
        ("text.npy", {}, "expected a whole .npy"),
        ("cut.npy", {}, "expected a whole .npy"),
        ("odd.bin", {}, r"expected ids of 2 bytes each \(uint16\), found 3 bytes"),
        ("empty.bin", {}, "found 0 bytes"),
        ("t.bin", {"id_type": "float32"}, "id_type: expected one of"),
        ("t.bin", {"bos_id": 300}, "bos_id: expected 0 to 299"),
        ("t.bin", {"vocab_size": 0}, "vocab_size: expected 1"),
        ("t.pt", {}, "expected a .npy or a .bin"),
        ("missing.bin", {}, "no such file"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            ids_to_h5(tmp_path / name, tmp_path / "out", **({"vocab_size": 300} | options))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
