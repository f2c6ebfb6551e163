"""Real processes, killed, or at work side by side: the .h5 has the same bytes."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modules.tok_utils import make_h5, tokenize_folder
from tests.processes import children_of
from tests.tok_texts import sample_text, trained

ROOT = Path(__file__).resolve().parents[2]
CHUNK = 20_000
SCRIPT = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from modules.system.errors import one_line_errors
from modules.tok_utils import chunks, make_h5, tokenize_folder
from modules.tok_utils.encoder import Encoder
from modules.tokenizer import get_tokenizer
chunks.BYTES_A_THREAD = 1
@one_line_errors
def main(folder, tokenizer_path, num_workers, how="fast"):
    if how == "slowly":
        at_once = Encoder.encode_chunk
        Encoder.encode_chunk = lambda *arguments: time.sleep(0.1) or at_once(*arguments)
    chunks_folder = tokenize_folder(folder, tokenizer_path, num_workers=int(num_workers), chunk_bytes={CHUNK})
    make_h5(chunks_folder, folder + "/out", get_tokenizer(tokenizer_path))
main(*sys.argv[1:])
"""


@pytest.fixture(scope="module")
def toki(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("toki"), [sample_text(100_000)], 1500)


@pytest.fixture(scope="module")
def job(tmp_path_factory, toki):
    """A folder with a text of some 60 chunks and the script, and the .h5 of an uninterrupted run elsewhere."""
    folder = tmp_path_factory.mktemp("job")
    text = sample_text(1_000_000).encode("utf-8")
    for place in (folder / "killed", folder / "whole"):
        place.mkdir()
        (place / "t.txt").write_bytes(text)
    (folder / "script.py").write_text(SCRIPT)
    h5_path = make_h5(
        tokenize_folder(folder / "whole", toki.folder, num_workers=1, chunk_bytes=CHUNK), folder / "whole" / "out", toki
    )
    return folder, h5_path.read_bytes()


def start(folder: Path, place: str, toki, num_workers: int = 2, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, folder / "script.py", folder / place, toki.folder, str(num_workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | environment,
        text=True,
    )


def forget(folder: Path) -> None:
    """Remove what other tests tokenized."""
    for path in [*folder.glob("killed/t_tokens/*"), *folder.glob("killed/out/*")]:
        path.unlink()


def count(folder: Path) -> int:
    return len(list((folder / "killed" / "t_tokens").glob("chunk_*.pt")))


def kill_and_restart(folder: Path, toki, rng: random.Random, kills: int) -> int:
    """Kill the job `kills` times, each a few chunks further on or while the .h5 is written. Returns how many died
    before they were done."""
    died = 0
    for _ in range(kills):
        process = start(folder, "killed", toki)
        wait_for = count(folder) + rng.randrange(8)
        while process.poll() is None and count(folder) < wait_for and not list(folder.glob("killed/out/*")):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        died += process.returncode == -signal.SIGKILL
    return died


@pytest.mark.parametrize("kills", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_goes_on(job, toki, kills):
    folder, wanted = job
    forget(folder)
    rng = random.Random(kills)
    assert kill_and_restart(folder, toki, rng, kills) >= min(kills, 3)
    done_before = {path.name: path.stat().st_ino for path in (folder / "killed" / "t_tokens").glob("chunk_*.pt")}
    last = start(folder, "killed", toki)
    assert last.communicate()[0] is not None and last.returncode == 0
    assert (folder / "killed" / "out" / "t.h5").read_bytes() == wanted
    assert not list((folder / "killed").rglob(".*.tmp"))
    assert all(
        (folder / "killed" / "t_tokens" / name).stat().st_ino == inode for name, inode in done_before.items()
    )  # none was made twice


def copied(folder: Path, place: str, data: bytes | None = None) -> Path:
    (folder / place).mkdir()
    (folder / place / "t.txt").write_bytes(data or (folder / "whole" / "t.txt").read_bytes())
    return folder / place


def start_together(folder: Path, place: str, toki, processes: int) -> list[subprocess.Popen]:
    """As torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [
        start(
            folder, place, toki, 1,
            RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
        )
        for rank in range(processes)
    ]  # fmt: skip


def test_several_processes_share_the_work(job, toki):
    folder, wanted = job
    copied(folder, "shared")
    processes = start_together(folder, "shared", toki, 2)
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert (folder / "shared" / "out" / "t.h5").read_bytes() == wanted


@pytest.mark.slow
def test_where_one_process_ends_the_others_say_so_and_the_next_start_goes_on(job, toki):
    """Chunk 1, which is not UTF-8, is the second process's."""
    folder, wanted = job
    data = bytearray((folder / "whole" / "t.txt").read_bytes())
    at = data.index(b"The cat", CHUNK)
    before, data[at] = data[at], 0xFF
    copied(folder, "broken", bytes(data))
    processes = start_together(folder, "broken", toki, 2)
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert f"not UTF-8 at byte {at} " in outputs[1].splitlines()[-1]
    assert "process 1 of 2: the others have not all made their chunks" in outputs[0].splitlines()[-1]
    data[at] = before
    (folder / "broken" / "t.txt").write_bytes(data)
    shutil.rmtree(folder / "broken" / "t_tokens")  # of the text before it was mended
    processes = start_together(folder, "broken", toki, 2)
    assert [process.communicate() and process.returncode for process in processes] == [0, 0]
    assert (folder / "broken" / "out" / "t.h5").read_bytes() == wanted


@pytest.mark.slow
def test_torchrun_starts_again_what_was_killed(job, toki):
    """A process killed in the middle of its chunks: torchrun ends the other, starts both, and they go on."""
    folder, wanted = job
    copied(folder, "restarted")
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
        + ["--max-restarts", "3", "--monitor-interval", "0.2"]
        + [folder / "script.py", folder / "restarted", toki.folder, "1", "slowly"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    chunks = folder / "restarted" / "t_tokens"
    deadline = time.monotonic() + 120
    while len(list(chunks.glob("chunk_*.pt"))) < 6:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(children_of(process.pid, at_least=2)[1], signal.SIGKILL)
    made = {path: path.stat().st_ino for path in chunks.glob("chunk_*.pt")}
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert (folder / "restarted" / "out" / "t.h5").read_bytes() == wanted
    assert len(made) < 50 and all(path.stat().st_ino == inode for path, inode in made.items())  # none was made twice


@pytest.mark.slow
def test_under_torchrun(tmp_path):
    text = sample_text(400_000)
    (tmp_path / "t.txt").write_text(text, encoding="utf-8", newline="")
    arguments = [
        "--txt_path",
        tmp_path / "t.txt",
        "--out_h5_folder",
        tmp_path / "out",
        "--tokenizer_folder",
        tmp_path,
        "--tokenizer_name",
        "toki",
        "--vocab_size",
        "700",
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            "2",
            ROOT / "tokenize_to_h5.py",
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bytes a token") == 1 and (tmp_path / "out" / "t.h5").exists()
