"""What encoders are set beside: BM25, and the ranking of an encoder fused with that of BM25.

Knows names of rows, and scores of queries and texts. Refuses to know what a word is, and how
rankings become one. No torch.

Shapes: N texts of a query.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.base.errors import BadInput
from toolkit.evaluation.parts import Part
from toolkit.evaluation.ranking import best_rows
from toolkit.evaluation.task import Embed, Outcome, RankingTask, Scores
from toolkit.settings.schema import EvaluateRecipe
from toolkit.text.bm25 import K1, WORDS, B
from toolkit.text.fusion import CONSTANT, DEPTH, fused

if TYPE_CHECKING:  # imports scikit-learn
    from toolkit.evaluation.tasks import Named

BM25 = "BM25"  # the row of words alone
FUSED = f" + {BM25}"  # after the name of an encoder: its ranking fused with that of BM25
# Scores that were made otherwise are made again.
_WORDS = {"scored by": BM25, "k1": K1, "b": B, "words": WORDS}
_FUSION = {"fusion": "reciprocal ranks", "constant": CONSTANT, "depth": DEPTH}


def check_baselines(recipe: EvaluateRecipe, *, tasks: Sequence["Named"]) -> None:
    """Raise `BadInput` for baselines without a task that they are for, fusion without BM25, and an
    encoder that has the name of such a row."""
    if recipe.fusion and not recipe.baselines:
        raise BadInput("fusion=true: fuses with BM25; add baselines: [bm25]")
    if not recipe.baselines:
        return
    if not any(isinstance(one.task, RankingTask) for one in tasks):
        raise BadInput(
            "baselines: BM25 ranks texts for queries, and the recipe has no task that does: give "
            "it retrieval or reranking"
        )
    if taken := [name for name in recipe.encoders if is_beside(name)]:
        raise BadInput(f"encoders: {taken[0]!r} is the name of a baseline; rename the encoder")


def words_part(one: "Named") -> Part:
    """The part of BM25 on a task; it has no encoder."""
    facts = {"encoder": _WORDS, "task": one.digest, "instruction": "", "category": one.category}
    return Part(BM25, one.name, {**facts, "main": one.task.main})


def fused_part(part: Part) -> Part:
    """The part of the same encoder on the same task, fused with BM25."""
    made_by = {**part.facts["encoder"], "fused with": {**_WORDS, **_FUSION}}
    return Part(part.encoder + FUSED, part.task, {**part.facts, "encoder": made_by})


def encoder_name(part: Part) -> str | None:
    """The recipe's name of the encoder that a part needs; None if it needs none."""
    return None if part.encoder == BM25 else part.encoder.removesuffix(FUSED)


def outcome_with_words(task: RankingTask, embed: Embed | None) -> Outcome:
    """The outcome of an encoder fused with BM25; without an encoder, that of BM25 alone."""
    if embed is None:
        return task.outcome(task.word_scores())
    both = zip(task.cosines(embed), task.word_scores(), strict=True)
    return task.outcome(_fused(cosine_N, word_N) for cosine_N, word_N in both)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of rows: BM25, the encoders in their order, then what is fused."""
    return sorted(names, key=lambda name: (name != BM25) + name.endswith(FUSED))


def not_better(rows: Mapping[str, Mapping[str, float]], *, main: Iterable[str]) -> Iterator[str]:
    """A line for each encoder and each of the `main` scores by which it does not beat BM25."""
    words = rows.get(BM25, {})
    encoders = {encoder: row for encoder, row in rows.items() if not is_beside(encoder)}
    for name in (one for one in main if one in words):
        for encoder, row in encoders.items():
            if name in row and row[name] <= words[name]:
                beside = f"{row[name]:.3f}, {BM25} {words[name]:.3f}"
                yield f"{encoder} does not beat {BM25} on {name}: {beside}"


def _fused(cosine_N: Scores, word_N: Scores) -> Scores:
    """The fused score (N,) of each text, from the first `DEPTH` of both rankings; 0 where a text is
    in neither. What shares the score of the last of them is ranked, too."""
    near, found = best_rows(cosine_N, depth=DEPTH), best_rows(word_N, depth=DEPTH)
    found = found[word_N[found] > 0]
    rows_F, scores_F = fused([(near, cosine_N[near]), (found, word_N[found])])
    fused_N: np.ndarray[Any, np.dtype[np.float64]] = np.zeros(len(cosine_N))
    fused_N[rows_F] = scores_F
    return fused_N


def is_beside(name: str) -> bool:
    """Whether a row is a baseline's, or fused with it, and no encoder's."""
    return name == BM25 or name.endswith(FUSED)
