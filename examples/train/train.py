"""Trains a small network on handwritten digits, data-parallel: every rank holds the whole model and a share of the data.

Ranks find each other by SKYPILOT_NODE_IPS and SKYPILOT_NODE_RANK, and average their gradients after every step, so that
all of them take the same step. Rank 0 prints, and writes a checkpoint after every epoch; a new run goes on from the last.
Needs numpy and scikit-learn (whose wheel carries the data), nothing else.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
from ranks import Ranks
from sklearn.datasets import load_digits

HIDDEN = 64
BATCH = 32
RATE = 0.2
TEST_SHARE = 5  # every fifth picture is for testing

Weights = list[np.ndarray]


def main() -> None:
    options = parse_options()
    rank = int(os.environ.get("SKYPILOT_NODE_RANK", "0"))
    addresses = os.environ.get("SKYPILOT_NODE_IPS", "127.0.0.1").split()
    with Ranks(rank, addresses, options.port) as ranks:
        train(ranks, options.epochs, options.checkpoints.expanduser())


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--port", type=int, default=29700)
    parser.add_argument("--checkpoints", type=Path, default=Path("~/checkpoints"))
    return parser.parse_args()


def train(ranks: Ranks, epochs: int, checkpoints: Path) -> None:
    pictures, labels, test_pictures, test_labels = load_data()
    mine = slice(ranks.rank, None, ranks.size)
    pictures, labels = pictures[mine], labels[mine]
    weights, first = restore(ranks, checkpoints)
    say(
        ranks,
        f"rank {ranks.rank} of {ranks.size}: {len(labels)} pictures of my own, from epoch {first + 1}",
        everybody=True,
    )
    shuffle = np.random.default_rng(ranks.rank)
    for epoch in range(first, epochs):
        began = time.monotonic()
        loss = one_epoch(ranks, weights, pictures, labels, shuffle)
        accuracy = float((predict(weights, test_pictures).argmax(1) == test_labels).mean())
        if ranks.rank == 0:
            save(checkpoints, weights, epoch + 1)
        seconds = time.monotonic() - began
        say(
            ranks,
            f"epoch {epoch + 1:3d}/{epochs}  loss {loss:.4f}  test accuracy {accuracy:.4f}  ({seconds:.2f}s)",
        )
    accuracy = float((predict(weights, test_pictures).argmax(1) == test_labels).mean())
    say(ranks, f"final test accuracy: {accuracy:.4f}")
    agree(ranks, weights)


def one_epoch(
    ranks: Ranks, weights: Weights, pictures: np.ndarray, labels: np.ndarray, shuffle: np.random.Generator
) -> float:
    """One pass over this rank's share; every rank takes the same number of steps. The mean loss over all ranks."""
    order = shuffle.permutation(len(labels))
    steps = int(ranks.smallest(len(labels))) // BATCH
    losses = []
    for step in range(steps):
        batch = order[step * BATCH : (step + 1) * BATCH]
        loss, gradients = loss_and_gradients(weights, pictures[batch], labels[batch])
        for weight, gradient in zip(weights, ranks.mean(gradients), strict=True):
            weight -= RATE * gradient
        losses.append(loss)
    return float(ranks.mean([np.array([np.mean(losses)])])[0][0])


def load_data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    digits = load_digits()
    pictures = (digits.data / 16.0).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(pictures))
    pictures, labels = pictures[order], digits.target[order]
    test = np.arange(len(pictures)) % TEST_SHARE == 0
    return pictures[~test], labels[~test], pictures[test], labels[test]


def new_weights() -> Weights:
    """The same on every rank: the seed is fixed."""
    random = np.random.default_rng(7)
    return [
        (random.standard_normal((64, HIDDEN)) * np.sqrt(2 / 64)).astype(np.float32),
        np.zeros(HIDDEN, np.float32),
        (random.standard_normal((HIDDEN, 10)) * np.sqrt(2 / HIDDEN)).astype(np.float32),
        np.zeros(10, np.float32),
    ]


def predict(weights: Weights, pictures: np.ndarray) -> np.ndarray:
    hidden = np.maximum(pictures @ weights[0] + weights[1], 0)
    scores = hidden @ weights[2] + weights[3]
    scores = np.exp(scores - scores.max(1, keepdims=True))
    return scores / scores.sum(1, keepdims=True)


def loss_and_gradients(weights: Weights, pictures: np.ndarray, labels: np.ndarray) -> tuple[float, Weights]:
    count = len(labels)
    hidden = np.maximum(pictures @ weights[0] + weights[1], 0)
    chances = predict(weights, pictures)
    loss = float(-np.log(chances[np.arange(count), labels] + 1e-9).mean())
    error = chances.copy()
    error[np.arange(count), labels] -= 1
    error /= count
    back = (error @ weights[2].T) * (hidden > 0)
    return loss, [pictures.T @ back, back.sum(0), hidden.T @ error, error.sum(0)]


def save(folder: Path, weights: Weights, epoch: int) -> None:
    """Whole or not at all: a machine may go at any moment."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / ".last.npz"
    np.savez(scratch, *weights, epoch=np.array([epoch]))
    scratch.replace(folder / "last.npz")


def restore(ranks: Ranks, folder: Path) -> tuple[Weights, int]:
    """The last checkpoint of rank 0 on every rank, or a new model."""
    weights, epoch = new_weights(), 0
    path = folder / "last.npz"
    if ranks.rank == 0 and path.exists():
        with np.load(path) as kept:
            weights = [kept[f"arr_{index}"] for index in range(len(weights))]
            epoch = int(kept["epoch"][0])
        print(f"resuming after epoch {epoch} from {path}", flush=True)
    *weights, at = ranks.from_first([*weights, np.array([epoch], np.float32)])
    return weights, int(at[0])


def agree(ranks: Ranks, weights: Weights) -> None:
    """Data-parallel means that all ranks end with one model; say so, or fail."""
    apart = max(float(np.abs(a - b).max()) for a, b in zip(weights, ranks.from_first(weights), strict=True))
    if apart > 1e-4:
        raise SystemExit(f"rank {ranks.rank}: my model is {apart} away from rank 0's")
    say(ranks, f"all {ranks.size} ranks hold the same model")


def say(ranks: Ranks, text: str, *, everybody: bool = False) -> None:
    if ranks.rank == 0 or everybody:
        print(text, flush=True)


if __name__ == "__main__":
    main()
