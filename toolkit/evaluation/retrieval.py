"""Retrieval and reranking: do the right documents come first? Scored like trec_eval, but with no
order among equal scores (`toolkit.evaluation.ranking`).

Shapes: Q queries, N documents, U different texts, V different vectors, D width.
"""

import csv
import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from toolkit.base.console import warn
from toolkit.base.errors import BadInput
from toolkit.base.files import RepeatedName, without_repeats
from toolkit.evaluation.ranking import Ranking, best_rows, equal_rows, ranking_of
from toolkit.evaluation.task import Embed, Found, Outcome, Scores, checked, unit
from toolkit.text.bm25 import Bm25
from toolkit.text.delimited import UTF_8, Tabs

DEPTH = 100  # the deepest place that any measure of retrieval looks at
SCORING = "equal scores in no order"  # in digests: scores by another rule are made again
NUM_FIRST = 3  # documents that are kept for people who compare encoders, per query
QUERY_BLOCK = 64
TITLES_HINT = '{"query": "...", "relevant": ["title"]}'
Grades = dict[str, dict[str, int]]


@dataclasses.dataclass(frozen=True)
class Judged:
    """Queries by id, and the grades (0: not relevant) of the documents judged for each. Documents
    are named by their ids or, if `by_title`, by their titles."""

    queries: dict[str, str]
    grades: Grades
    by_title: bool = False


def read_queries(path: Path) -> Judged:
    """Read JSON lines {"query": text, "relevant": [title, ...]}; `BadInput` names a bad line."""
    queries: dict[str, str] = {}
    grades: Grades = {}
    for number, row in _lines(path, hint=TITLES_HINT):
        query, titles = row.get("query"), row.get("relevant")
        # A text in place of a list would count as a set of letters, and an empty list would divide
        # by zero.
        if not isinstance(query, str) or not isinstance(titles, list) or not titles:
            raise BadInput(f"{path}, line {number}: is not like {TITLES_HINT}")
        queries[str(number)] = query
        grades[str(number)] = {str(title): 1 for title in titles}
    return Judged(queries, grades, by_title=True)


def read_judged(path: Path, *, judgements: Path) -> Judged:
    """Read queries as in BEIR, JSON lines {"_id": ..., "text": ...}, and their judgements: a .tsv
    of query, document, grade with a header line, or the four columns of TREC.

    Raises `BadInput` when no judgement belongs to a query. A warning counts judgements of unknown
    queries: Cranfield's judgements number queries by their place, and so match two thirds of its
    topics' own numbers, but mean other topics.
    """
    hint = '{"_id": "...", "text": "..."}'
    queries: dict[str, str] = {}
    for number, row in _lines(path, hint=hint):
        name, text = row.get("_id", row.get("id")), row.get("text")
        if not isinstance(name, str | int) or not isinstance(text, str):
            raise BadInput(f"{path}, line {number}: is not like {hint}")
        if str(name) in queries:
            raise BadInput(f"{path}, line {number}: the id {name!r} occurs twice")
        queries[str(name)] = text
    every = _judgements(judgements)
    known = {name: graded for name, graded in every.items() if name in queries}
    num, num_known = (sum(map(len, some.values())) for some in (every, known))
    if not num_known:
        raise BadInput(
            f"{judgements}: none of {num} judgements belongs to a query of {path}: ids are like "
            f"{next(iter(every))!r} there and {next(iter(queries))!r} here"
        )
    if num_known < num:
        strangers = f"{num - num_known} of {num} judgements belong to no query of {path}"
        warn(f"{strangers}: do both files use the same ids?")
    return Judged({name: queries[name] for name in known}, known)


@dataclasses.dataclass(frozen=True)
class RetrievalTask:
    """nDCG@10, recall@100 and @3, and MRR@10 over a corpus, by cosine."""

    judged: Judged
    names: Sequence[str]
    texts: Sequence[str]
    corpus: str = ""
    main: str = "nDCG@10"

    def scores(self, embed: Embed) -> Mapping[str, float]:
        """Means over the queries with a relevant document; only queries have the instruction."""
        return self.outcome(self.cosines(embed)).scores

    def outcome(self, found: Iterable[Scores]) -> Outcome:
        """The means and, for each query, its nDCG@10 and the names of the first documents, given
        the scores (N,) of all texts for each query."""
        rankings: list[Ranking] = []
        queries: dict[str, Found] = {}
        for name, (ranking, first) in zip(self._relevant, self._ranked(found), strict=True):
            rankings.append(ranking)
            grades = self.judged.grades[name]
            best = sorted((one for one in grades if grades[one] > 0), key=lambda one: -grades[one])
            queries[name] = {
                "query": self.judged.queries[name],
                "score": ranking.ndcg(10),
                "first": first,
                "relevant": best[:NUM_FIRST],
            }
        scores = {
            "nDCG@10": _mean(ranking.ndcg(10) for ranking in rankings),
            "R@100": _mean(ranking.recall(DEPTH) for ranking in rankings),
            "recall@3": _mean(ranking.recall(3) for ranking in rankings),
            "MRR@10": _mean(ranking.reciprocal_rank(10) for ranking in rankings),
        }
        return Outcome(scores, queries, self.corpus)

    def rankings(self, embed: Embed) -> list[Ranking]:
        """The ranking of each query with a relevant document, in the order of the judgements."""
        return [ranking for ranking, _ in self._ranked(self.cosines(embed))]

    def cosines(self, embed: Embed) -> Iterator[Scores]:
        """The cosines (N,) of all texts, for each query with a relevant document."""
        texts = [self.judged.queries[name] for name in self._relevant]
        some = list(dict.fromkeys(self.texts))
        place = {text: number for number, text in enumerate(some)}
        # First the documents, with which other workers may help.
        text_UD = unit(checked(embed(some, instructed=False), texts=some)).astype(np.float32)
        query_QD = unit(checked(embed(texts), texts=texts)).astype(np.float32)
        first, number_U = equal_rows(text_UD)
        vector_VD, vector_N = text_UD[first], number_U[[place[text] for text in self.texts]]
        for start in range(0, len(texts), QUERY_BLOCK):
            yield from (query_QD[start : start + QUERY_BLOCK] @ vector_VD.T)[:, vector_N]

    def word_scores(self) -> Iterator[Scores]:
        """As `cosines`, by BM25: 0 for a text without any word of the query."""
        return (self._index.scores(self.judged.queries[name]) for name in self._relevant)

    @functools.cached_property
    def _index(self) -> Bm25:
        return Bm25(self.texts)

    @functools.cached_property
    def _relevant(self) -> list[str]:
        """The queries with a relevant document."""
        grades = self.judged.grades
        return [name for name in grades if max(grades[name].values()) > 0]

    def _ranked(self, found: Iterable[Scores]) -> Iterator[tuple[Ranking, list[str]]]:
        """The ranking of each query, and the names of its first documents."""
        documents = _Documents.of(self.names)
        for name, score_N in zip(self._relevant, found, strict=True):
            yield documents.ranking(score_N, grades=self.judged.grades[name])


@dataclasses.dataclass(frozen=True)
class _Documents:
    """Rows of a corpus by name. If several rows have a name, the best of them counts."""

    number: Mapping[str, int]
    number_N: NDArray[np.int64]
    name_of: Sequence[str]

    @classmethod
    def of(cls, names: Sequence[str]) -> "_Documents":
        number = {name: place for place, name in enumerate(dict.fromkeys(names))}
        number_N = np.array([number[name] for name in names], dtype=np.int64)
        return cls(number, number_N, list(number))

    def ranking(
        self, score_N: NDArray[np.float32], *, grades: Mapping[str, int]
    ) -> tuple[Ranking, list[str]]:
        """The ranking of a query, down to `DEPTH`, and the names of its first documents; of equal
        scores the one that comes first in the corpus is first."""
        if len(self.number) < len(score_N):
            best = np.full(len(self.number), -np.inf, dtype=np.float32)
            np.maximum.at(best, self.number_N, score_N)
            score_N = best
        grade_N = np.zeros(len(score_N), dtype=np.int64)
        for name, grade in grades.items():
            if name in self.number:
                grade_N[self.number[name]] = grade
        rows = best_rows(score_N, depth=DEPTH)
        wanted = [grade for grade in grades.values() if grade > 0]
        ranking = ranking_of(score_N[rows], grade_N=grade_N[rows], wanted=wanted)
        first = rows[np.argsort(-score_N[rows], kind="stable")[:NUM_FIRST]]
        return ranking, [self.name_of[row] for row in first.tolist()]


def check_corpus(name: str, judged: Judged, *, names: Sequence[str]) -> None:
    """Warn of judged documents that are not in the corpus, which count as not found. Raises
    `BadInput` when none is there."""
    known = set(names)
    wanted = {document for graded in judged.grades.values() for document in graded}
    strange = sorted(wanted - known)
    kind = "title" if judged.by_title else "id"
    if len(strange) == len(wanted):
        raise BadInput(f"{name}: no judged {kind} is in the corpus, such as {strange[0]!r}")
    if strange:
        share = f"{len(strange)} of {len(wanted)}"
        warn(f"{name}: judged {kind} {strange[0]!r} is not in the corpus ({share}): never found")


@dataclasses.dataclass(frozen=True)
class RerankingTask:
    """Mean average precision, MRR@10 and nDCG@10 of each query's own candidates, by cosine."""

    queries: list[str]
    positive: list[list[str]]
    negative: list[list[str]]
    main: str = "MAP"

    def scores(self, embed: Embed) -> Mapping[str, float]:
        """Means over the queries, from 0 to 1. A candidate of several queries is embedded once."""
        return self.outcome(self.cosines(embed)).scores

    def outcome(self, found: Iterable[Scores]) -> Outcome:
        """The means, given the scores of its own candidates for each query."""
        rankings = []
        for (rows, num_right), score_N in zip(self._candidates, found, strict=True):
            grade_N = (np.arange(len(rows)) < num_right).astype(np.int64)
            rankings.append(ranking_of(score_N, grade_N=grade_N, wanted=[1] * num_right))
        scores = {
            self.main: _mean(ranking.average_precision() for ranking in rankings),
            "nDCG@10": _mean(ranking.ndcg(10) for ranking in rankings),
            "MRR@10": _mean(ranking.reciprocal_rank(10) for ranking in rankings),
        }
        return Outcome(scores)

    def cosines(self, embed: Embed) -> Iterator[Scores]:
        """The cosines of its own candidates, for each query."""
        texts = self._texts
        # First the documents, with which other workers may help.
        text_ND = unit(checked(embed(texts, instructed=False), texts=texts))
        query_QD = unit(checked(embed(self.queries), texts=self.queries))
        for query_D, (rows, _) in zip(query_QD, self._candidates, strict=True):
            yield np.array([text_ND[row] @ query_D for row in rows])

    def word_scores(self) -> Iterator[Scores]:
        """As `cosines`, by BM25 among the candidates of all queries."""
        for query, (rows, _) in zip(self.queries, self._candidates, strict=True):
            yield self._index.scores(query)[rows]

    @functools.cached_property
    def _index(self) -> Bm25:
        return Bm25(self._texts)

    @functools.cached_property
    def _texts(self) -> list[str]:
        """The different candidates of all queries."""
        every = (text for row in (*self.positive, *self.negative) for text in row)
        return list(dict.fromkeys(every))

    @functools.cached_property
    def _candidates(self) -> list[tuple[list[int], int]]:
        """The candidates of each query, as rows of `_texts`, and how many of them, the first ones,
        are right."""
        place = {text: number for number, text in enumerate(self._texts)}
        found = []
        for positive, negative in zip(self.positive, self.negative, strict=True):
            right = {place[text] for text in positive}
            found.append(([*right, *({place[text] for text in negative} - right)], len(right)))
        return found


def read_reranking(path: Path) -> RerankingTask:
    """Read JSON lines {"query": text, "positive": [text, ...], "negative": [text, ...]}."""
    hint = '{"query": "...", "positive": ["..."], "negative": ["..."]}'
    task = RerankingTask([], [], [])
    for number, row in _lines(path, hint=hint):
        query, positive, negative = (row.get(name) for name in ("query", "positive", "negative"))
        if not isinstance(query, str) or not _texts(positive) or not _texts(negative):
            raise BadInput(f"{path}, line {number}: is not like {hint}")
        task.queries.append(query)
        task.positive.append(positive)
        task.negative.append(negative)
    return task


def _texts(some: object) -> TypeGuard[list[str]]:
    return isinstance(some, list) and bool(some) and all(isinstance(text, str) for text in some)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _lines(path: Path, *, hint: str) -> list[tuple[int, dict[str, object]]]:
    rows = []
    try:
        with path.open(encoding=UTF_8) as handle:  # not splitlines: a text may hold U+2028
            for number, line in enumerate(handle, 1):
                row = json.loads(line, object_pairs_hook=without_repeats)
                if not isinstance(row, dict):
                    raise ValueError("another value")
                rows.append((number, row))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from error
    except RepeatedName as error:
        raise BadInput(f"{path}, line {len(rows) + 1}: {error}") from None
    except (ValueError, RecursionError):
        raise BadInput(f"{path}, line {len(rows) + 1}: is not like {hint}") from None
    if not rows:
        raise BadInput(f"{path}: no queries")
    return rows


def _judgements(path: Path) -> Grades:
    grades: Grades = {}
    try:
        with path.open(encoding=UTF_8, newline="") as handle:
            tabs = path.suffix == ".tsv"
            rows = csv.reader(handle, dialect=Tabs) if tabs else (line.split() for line in handle)
            for number, row in enumerate(rows, 1):
                if tabs and number == 1 and row and not row[-1].lstrip("-").isdecimal():
                    continue  # BEIR's header
                try:
                    query, document, given = row if tabs else (row[0], row[2], row[3])
                    grade = max(0, int(given))
                except (ValueError, IndexError):
                    form = "query, document, grade" if tabs else "query 0 document grade"
                    raise BadInput(f"{path}, line {number}: is not like {form}") from None
                before = grades.setdefault(query, {}).setdefault(document, grade)
                if before != grade:
                    raise BadInput(
                        f"{path}, line {number}: document {document!r} has grade {grade} for query "
                        f"{query!r}, and had {before} before"
                    )
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from error
    if not grades:
        raise BadInput(f"{path}: no judgements")
    if not any(grade for graded in grades.values() for grade in graded.values()):
        raise BadInput(f"{path}: no judgement is above 0: nothing is relevant")
    return grades
