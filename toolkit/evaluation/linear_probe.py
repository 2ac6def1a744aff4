"""A linear probe: one layer on frozen word vectors, and its file.

It is trained on the CPU on vectors that were encoded once: an epoch costs a fraction of encoding.
Shapes: W words, D width, L labels, S sentences.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from toolkit.base.console import LINE_S, Progress
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_atomic, write_json
from toolkit.base.layout import PROBE_FILE, PROBE_WEIGHTS_FILE
from toolkit.settings.task_schema import WordTask

Floats = NDArray[np.float32]

WORDS_AT_ONCE = 65536
# Adam's constants, with torch's defaults.
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


@dataclasses.dataclass(frozen=True)
class Probe:
    """A linear layer in fp32: its logits are vectors (., D) times `weight_LD` plus `bias_L`."""

    labels: Sequence[str]
    weight_LD: Floats
    bias_L: Floats

    def predict(self, vectors_WD: NDArray[Any]) -> NDArray[np.int64]:
        """The number of the most likely label of each word (W,), without dropout."""
        predicted = [np.zeros(0, dtype=np.int64)]
        for start in range(0, len(vectors_WD), WORDS_AT_ONCE):
            some_WD = np.asarray(vectors_WD[start : start + WORDS_AT_ONCE], dtype=np.float32)
            predicted.append((some_WD @ self.weight_LD.T + self.bias_L).argmax(axis=1))
        return np.concatenate(predicted)

    def save(self, folder: Path, *, about: Mapping[str, Any]) -> None:
        """Write the weights (safetensors) and beside them, as JSON, the labels in the order of the
        weights' rows and `about`."""
        weights = save({"weight": self.weight_LD, "bias": self.bias_L})
        write_atomic(folder / PROBE_WEIGHTS_FILE, weights)
        # Two evaluations may write here at once: the digest shows which weights the JSON is for.
        digest = hashlib.sha256(weights).hexdigest()
        write_json(folder / PROBE_FILE, {**about, "labels": list(self.labels), "sha256": digest})


def load_probe(folder: Path) -> Probe:
    """Load what `Probe.save` wrote; `BadInput` when it is not whole."""
    about = read_json(folder / PROBE_FILE)
    labels = about.get("labels") if isinstance(about, dict) else None
    if not isinstance(labels, list):
        raise BadInput(f"{folder / PROBE_FILE}: has no labels")
    try:
        weights = (folder / PROBE_WEIGHTS_FILE).read_bytes()
        tensors = load(weights)
        probe = Probe(labels, tensors["weight"], tensors["bias"])
    except Exception as error:  # safetensors has its own error class, without a stable home
        raise BadInput(f"{folder / PROBE_WEIGHTS_FILE}: is not a whole probe ({error})") from error
    digest = hashlib.sha256(weights).hexdigest()
    if about.get("sha256", digest) != digest:  # older files have none
        raise BadInput(
            f"{folder / PROBE_WEIGHTS_FILE}: does not belong to {PROBE_FILE} beside it; "
            "evaluate again"
        )
    if not len(labels) == len(probe.weight_LD) == len(probe.bias_L):
        raise BadInput(f"{folder}: {len(labels)} labels, {len(probe.weight_LD)} rows of weights")
    return probe


def train_probe(
    vectors_WD: NDArray[Any],
    *,
    label_W: NDArray[np.int64],
    labels: Sequence[str],
    lengths: Sequence[int],
    task: WordTask,
) -> Probe:
    """Train on the words of sentences of these lengths, by Adam on the mean cross-entropy of each
    batch; the rate falls linearly to zero. Dropout acts on the vectors, as in the reference.

    The result is a function of the arguments alone: the layer begins at zero (the loss is convex),
    and `task.seed` decides the order of sentences and the dropout.
    """
    random = np.random.default_rng(task.seed)
    width = vectors_WD.shape[1]
    layer = np.zeros((len(labels), width + 1), dtype=np.float32)  # the bias is the last column
    gradient, mean, square = (np.zeros_like(layer) for _ in range(3))
    batches = word_batches(lengths, size=task.batch_sentences, random=random)
    progress = Progress("word probe", total=task.steps, unit="steps", least_s=LINE_S)
    for step, chosen in enumerate(itertools.islice(batches, task.steps), 1):
        inputs_WD = np.asarray(vectors_WD[chosen], dtype=np.float32)
        if task.dropout:
            inputs_WD *= dropout_mask(inputs_WD.shape, rate=task.dropout, random=random)
        error_WL = _softmax(inputs_WD @ layer[:, :width].T + layer[:, width])
        # The gradient of cross-entropy with respect to the logits: softmax minus the one-hot label.
        error_WL[np.arange(len(chosen)), label_W[chosen]] -= 1
        error_WL /= len(chosen)
        gradient[:, :width] = error_WL.T @ inputs_WD
        gradient[:, width] = error_WL.sum(axis=0)
        mean += (1 - BETA_1) * (gradient - mean)
        square += (1 - BETA_2) * (gradient * gradient - square)
        rate = task.lr * (1 - (step - 1) / task.steps) / (1 - BETA_1**step)
        layer -= rate * mean / (np.sqrt(square / (1 - BETA_2**step)) + EPSILON)
        progress.advance(1)
    progress.close()
    return Probe(labels, layer[:, :width].copy(), layer[:, width].copy())


def dropout_mask(shape: tuple[int, ...], *, rate: float, random: np.random.Generator) -> Floats:
    """A mask to multiply with: zeros at `rate`, elsewhere the factor that keeps the mean. The rate
    is rounded to one of 65,536 steps, since 16 random bits are much cheaper than a float."""
    drawn = random.integers(2**16, size=shape, dtype=np.uint16)
    return (drawn >= round(rate * 2**16)) * np.float32(1 / (1 - rate))


def word_batches(
    lengths: Sequence[int], *, size: int, random: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Endless batches with the words of `size` sentences; each epoch has every sentence once."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    while True:
        order = random.permutation(len(lengths))
        for first in range(0, len(order), size):
            some = order[first : first + size]
            yield np.concatenate([np.arange(starts[s], ends[s]) for s in some])


def _softmax(logits_WL: Floats) -> Floats:
    logits_WL -= logits_WL.max(axis=1, keepdims=True)
    np.exp(logits_WL, out=logits_WL)
    logits_WL /= logits_WL.sum(axis=1, keepdims=True)
    return logits_WL
