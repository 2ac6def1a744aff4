"""Scores of a word-level task: how well one linear layer on frozen word vectors tags the test
part.

Accuracy, which the paper reports, counts every word. F1 is that of whole spans (seqeval) where tags
mark spans, and else the mean over tags. Shapes: W words, D width, A alignments.
"""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqeval.metrics
import seqeval.scheme
from sklearn.metrics import f1_score

from toolkit.base.console import say, warn
from toolkit.base.errors import BadInput
from toolkit.evaluation.linear_probe import train_probe
from toolkit.evaluation.word_features import TokenEncoder, WordFeatures, word_features
from toolkit.evaluation.words import CONLLEVAL, Tagged, WordData
from toolkit.settings.task_schema import WordTask


def word_scores(
    encoder: TokenEncoder,
    task: WordTask,
    *,
    data: WordData,
    name: str,
    folder: Path | None = None,
) -> dict[str, float]:
    """Train a linear probe for each alignment on `data`, and score it on the test part.

    Scores are accuracy and F1 or macro F1, named with ", shifted" where vectors are taken one token
    earlier. The linear probes are written into `folder`/`name`, and with `cache="disk"` the word
    vectors into `folder`. Raises `BadInput` for vectors that cannot be used (`fill`).
    """
    if task.cache == "disk" and folder is None:
        raise BadInput("cache=disk: there is no folder to keep vectors in; use cache=memory")
    shifts = (0, 1) if task.shift == "both" else (int(task.shift),)
    train, test = (
        _features(encoder, part, task=task, shifts=shifts, folder=folder)
        for part in (data.train, data.test)
    )
    labels = sorted(set(data.train.all_tags))
    # Tags that occur in the test part alone have no label, and so can never be predicted.
    number_of = {label: number for number, label in enumerate(labels)}
    label_W = np.array([number_of[tag] for tag in data.train.all_tags], dtype=np.int64)
    lengths = [len(words) for words in data.train.sentences]
    scores: dict[str, float] = {}
    began = time.monotonic()
    for place, shift in enumerate(shifts):
        probe = train_probe(
            train.vectors_AWD[place], label_W=label_W, labels=labels, lengths=lengths, task=task
        )
        if folder:
            about = {"name": name, "shift": bool(shift), "task": task.model_dump()}
            about |= {"encoder": encoder.settings.model_dump(), "model": encoder.digest()}
            probe.save(folder / f"{name}{'_shifted' if shift else ''}", about=about)
        predicted_W = [labels[number] for number in probe.predict(test.vectors_AWD[place])]
        measures = tag_scores(data.test, predicted_W=predicted_W, scheme=data.scheme)
        scores |= {f"{what}{', shifted' * shift}": value for what, value in measures.items()}
    epochs = len(shifts) * task.steps * task.batch_sentences / len(lengths)
    spent_s = time.monotonic() - began
    encoded = "were on the disk" if train.seconds is None else f"took {train.seconds:,.1f} s"
    say(
        f"{name}: the vectors of {len(label_W):,} words {encoded}; {epochs:,.1f} epochs over them "
        f"took {spent_s:,.1f} s"
    )
    return scores


def tag_scores(gold: Tagged, *, predicted_W: Sequence[str], scheme: str) -> dict[str, float]:
    """`accuracy` of all words, and `F1` of spans, or `macro F1` of tags where scheme is `none`.

    With `conlleval`, spans are read as by the program of that name, which scores CoNLL's tasks and
    lets a predicted I begin a span. With a named scheme they are read strictly.
    """
    gold_W = gold.all_tags
    scores = {
        "accuracy": float(np.mean([a == b for a, b in zip(gold_W, predicted_W, strict=True)]))
    }
    if scheme == "none":
        scores["macro F1"] = float(f1_score(gold_W, predicted_W, average="macro", zero_division=0))
        return scores
    # Predictions come word by word: cut them into sentences like the tags.
    words = iter(predicted_W)
    predicted = [[next(words) for _ in row] for row in gold.tags]
    given = [list(row) for row in gold.tags]
    reading: dict[str, Any] = {}
    if scheme != CONLLEVAL:
        reading = {"mode": "strict", "scheme": getattr(seqeval.scheme, scheme.upper())}
    with warnings.catch_warnings():
        # seqeval warns of kinds of spans that are never predicted: their F1 is 0.
        warnings.simplefilter("ignore")
        scores["F1"] = float(seqeval.metrics.f1_score(given, predicted, **reading))
    return scores


def _features(
    encoder: TokenEncoder,
    part: Tagged,
    *,
    task: WordTask,
    shifts: Sequence[int],
    folder: Path | None,
) -> WordFeatures:
    features = word_features(
        encoder,
        part.sentences,
        shifts=shifts,
        dtype=task.cache_dtype,
        folder=folder if task.cache == "disk" else None,
    )
    if features.num_empty:
        warn(
            f"{part.name}: {features.num_empty} words give no token: "
            "the zero vector stands for them"
        )
    if features.num_split:
        warn(
            f"{part.name}: {features.num_split} sentences are longer than max_tokens="
            f"{encoder.settings.max_tokens} and were encoded in pieces"
        )
    return features
