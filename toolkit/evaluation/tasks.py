"""The tasks of a recipe, read from their files, each with a digest of its content."""

import dataclasses
import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from toolkit.base.errors import BadInput, did_you_mean
from toolkit.base.files import sha256_of
from toolkit.base.layout import MTEB_DIR, WORD_DIR
from toolkit.evaluation.classes import read_classification, read_clustering, read_pair_task
from toolkit.evaluation.retrieval import (
    SCORING,
    RetrievalTask,
    check_corpus,
    read_judged,
    read_queries,
    read_reranking,
)
from toolkit.evaluation.sts import StsTask, read_pairs
from toolkit.evaluation.tagging import read_tagging
from toolkit.evaluation.task import Task
from toolkit.settings.schema import EvaluateRecipe
from toolkit.settings.section import Section
from toolkit.settings.task_schema import Retrieval
from toolkit.text.shards import open_shards


@dataclasses.dataclass(frozen=True)
class Named:
    """A task of a recipe. `category` is one of MTEB's, `digest` changes with its files or settings,
    and `instruction` is used where the recipe gives none."""

    name: str
    category: str
    task: Task
    digest: str
    instruction: str = ""


def read_tasks(recipe: EvaluateRecipe) -> list[Named]:
    """Read all tasks, in the recipe's order.

    Raises `BadInput` for a file that cannot be scored, two tasks with the same name, an instruction
    for an unknown task, and a recipe without tasks.
    """
    tasks = [*_local(recipe), *_of_mteb(recipe)]
    names = [one.name for one in tasks]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"two tasks have the name {twice[0]!r}; rename one of them")
    if strange := [name for name in recipe.instructions if name not in names]:
        near = did_you_mean(strange[0], names)
        problem = f"no such task; there are {', '.join(names)}{near}"
        raise BadInput(f"instructions.{strange[0]}: {problem}")
    if words := [name for name in recipe.instructions if name in recipe.words]:
        raise BadInput(f"instructions.{words[0]}: a task on words takes no instruction")
    if not tasks:
        raise BadInput("the recipe has no task: give it sts, retrieval, classification, ...")
    return tasks


def _local(recipe: EvaluateRecipe) -> Iterator[Named]:
    for name, path in recipe.sts.items():
        yield Named(name, "STS", StsTask(read_pairs(Path(path))), _digest([path]))
    for name, asked in recipe.retrieval.items():
        retrieval, digest = read_retrieval(name, asked)
        yield Named(name, "Retrieval", retrieval, digest)
    for name, files in recipe.classification.items():
        task = read_classification(
            name,
            train=Path(files.train),
            test=Path(files.test),
            samples_per_label=files.samples_per_label,
            experiments=files.experiments,
        )
        digest = _digest([files.train, files.test], settings=files)
        yield Named(name, "Classification", task, digest)
    for name, path in recipe.clustering.items():
        yield Named(name, "Clustering", read_clustering(Path(path)), _digest([path]))
    for name, path in recipe.pair_classification.items():
        yield Named(name, "PairClassification", read_pair_task(Path(path)), _digest([path]))
    for name, path in recipe.reranking.items():
        reranking = read_reranking(Path(path))
        yield Named(name, "Reranking", reranking, _digest([path], extra=SCORING))
    for name, asked_words in recipe.words.items():
        tagging = read_tagging(name, asked_words, folder=Path(recipe.output_dir) / WORD_DIR)
        digest = _digest([], settings=asked_words, extra=tagging.data.digest)
        yield Named(name, "Words", tagging, digest)


def _of_mteb(recipe: EvaluateRecipe) -> Iterator[Named]:
    if not recipe.mteb.tasks and recipe.mteb.benchmark is None:
        return
    from toolkit.evaluation import mteb_tasks  # takes seconds, and needs the extra package mteb

    results_dir = Path(recipe.output_dir) / MTEB_DIR
    for one in mteb_tasks.tasks_of(recipe.mteb):
        task = mteb_tasks.MtebTask(one, results_dir)
        instruction = mteb_tasks.instruction_of(one) if recipe.mteb.instructions else ""
        yield Named(
            one.metadata.name, one.metadata.type, task, mteb_tasks.digest_of(one), instruction
        )


def check_mteb_data(tasks: Sequence[Named], *, wanted: Collection[str]) -> None:
    """Raise `BadInput` if MTEB's data are missing for a task that is `wanted`: before the first
    task is scored, not hours later at its turn. Local files have been read by then."""
    from toolkit.evaluation import mteb_tasks

    mine = [one.task for one in tasks if one.name in wanted]
    mteb_tasks.check_data([one.task for one in mine if isinstance(one, mteb_tasks.MtebTask)])


def read_retrieval(name: str, asked: Retrieval) -> tuple[RetrievalTask, str]:
    """Read a retrieval task; returns it with the digest of its files and corpus."""
    files = [path for path in (asked.queries, asked.judgements) if path is not None]
    if asked.judgements is None:
        judged = read_queries(Path(asked.queries))
    else:
        judged = read_judged(Path(asked.queries), judgements=Path(asked.judgements))
    shards = open_shards(Path(asked.corpus))
    records = shards.records(0, shards.num_rows)
    names = [record["title" if judged.by_title else "id"] for record in records]
    # Documents that are not in the corpus would only lower all scores alike, unseen.
    check_corpus(name, judged, names=names)
    task = RetrievalTask(judged, names, [record["text"] for record in records], shards.digest)
    return task, _digest(files, extra=f"{shards.digest} {SCORING}")


def _digest(files: Sequence[str], *, settings: Section | None = None, extra: str = "") -> str:
    """The digest of the content of files, wherever they are, and of settings."""
    parts = [sha256_of(Path(path)) for path in files] + [extra]
    if settings is not None:
        # Without the paths: a file that was moved still makes the same task.
        parts.append(settings.model_dump_json(exclude={"train", "test"}))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
