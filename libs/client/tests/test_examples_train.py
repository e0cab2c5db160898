"""The training example does what it says: ranks really average, end with one model, and resume from a checkpoint."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
ROOT = Path(__file__).resolve().parents[3]
TRAIN = ROOT / "examples" / "train"


def run_ranks(count: int, checkpoints: Path, epochs: int) -> list[str]:
    """What each rank printed; fails when one of them does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [
        sys.executable,
        "train.py",
        "--epochs",
        str(epochs),
        "--port",
        str(port),
        "--checkpoints",
        str(checkpoints),
    ]
    ips = "\n".join(["127.0.0.1"] * count)
    processes = [
        subprocess.Popen(
            command,
            cwd=TRAIN,
            env={
                **os.environ,
                "SKYPILOT_NODE_RANK": str(rank),
                "SKYPILOT_NODE_IPS": ips,
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        out = [process.communicate(timeout=90)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * count, out
    return out


def accuracy(text: str) -> float:
    return float(text.partition("final test accuracy: ")[2].split()[0])


@pytest.mark.integration
@pytest.mark.slow
def test_two_ranks_learn_one_model_and_resume(tmp_path: Path) -> None:
    head, worker = run_ranks(2, tmp_path / "c", 8)
    assert "rank 0 of 2: 719 pictures" in head
    assert "rank 1 of 2: 718 pictures" in worker
    assert "all 2 ranks hold the same model" in head
    assert accuracy(head) > 0.9
    again, _ = run_ranks(2, tmp_path / "c", 10)
    assert "resuming after epoch 8" in again
    assert [line.split()[1] for line in again.splitlines() if line.startswith("epoch")] == ["9/10", "10/10"]
