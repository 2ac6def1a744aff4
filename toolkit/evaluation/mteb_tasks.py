"""MTEB's own tasks, run by MTEB on our vectors; its results are kept as its JSON.

Needs the package mteb (an extra). Tasks read their data from the hub's cache: where compute nodes
are offline, fetch it first.
"""

import dataclasses
import hashlib
import logging
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.console import say
from toolkit.base.errors import BadInput, did_you_mean
from toolkit.evaluation.task import Embed, Vectors, checked
from toolkit.settings.task_schema import Mteb

try:
    import mteb
    from mteb.cache import ResultCache
    from mteb.models.model_meta import ModelMeta
    from mteb.similarity_functions import cos_sim, pairwise_cos_sim
except ImportError as error:
    raise BadInput("MTEB's tasks need the package mteb: pip install mteb") from error

# BehnamGhader et al. 2024, appendix: the tasks on which they chose their settings.
LLM2VEC_15 = (
    "SciFact",
    "ArguAna",
    "NFCorpus",
    "StackOverflowDupQuestions",
    "SciDocsRR",
    "BiorxivClusteringS2S",
    "MedrxivClusteringS2S",
    "TwentyNewsgroupsClustering",
    "SprintDuplicateQuestions",
    "Banking77Classification",
    "EmotionClassification",
    "MassiveIntentClassification",
    "STS17",
    "SICK-R",
    "STSBenchmark",
)
SUBSETS = {"llm2vec-15": LLM2VEC_15}
ENGLISH, TEST = ("eng",), "test"


class MtebModel:
    """An encoder as MTEB wants it (its `EncoderProtocol`); documents carry no instruction."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", embed.name).strip("-.") or "encoder"
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={"name": f"toolkit/{name}", "revision": embed.revision}
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        prompt_type: Any = None,
        **others: Any,  # noqa: ARG002 (task, split, batch size: nothing depends on them)
    ) -> Vectors:
        """Vectors (N, D), fp32, of all texts of `inputs` (batches with a list `text`)."""
        texts = [text for batch in inputs for text in batch["text"]]
        is_document = getattr(prompt_type, "value", prompt_type) == "document"
        return checked(self._embed(texts, instructed=not is_document), texts=texts)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The cosine of every two embeddings, (N, M)."""
        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The cosine of each pair of embeddings, (N,)."""
        return pairwise_cos_sim(embeddings1, embeddings2)


@dataclasses.dataclass(frozen=True)
class MtebTask:
    """One task. MTEB does not score again what `results_dir` has scores of."""

    task: Any
    results_dir: Path
    main: str = "main score"

    def scores(self, embed: Embed) -> dict[str, float]:
        """MTEB's main score, the mean over splits and languages."""
        logging.getLogger("mteb").setLevel(logging.ERROR)
        load_data(self.task)
        # A clustering task draws samples by a generator whose state would carry over from encoder
        # to encoder: begin it anew.
        for one in _single(self.task):
            one.rng_state = random.Random(one.seed)  # noqa: S311 (MTEB's own)
            one.np_rng = np.random.default_rng(one.seed)
        results = mteb.evaluate(
            MtebModel(embed),
            self.task,
            cache=ResultCache(self.results_dir),
            co2_tracker=False,
            show_progress_bar=False,
        )
        # MTEB's JSON keeps six digits: rounded here too, a restart gets the same score.
        return {self.main: round(float(results.task_results[0].get_score()), 6)}


def load_data(task: Any) -> None:
    """Read a task's data. Raises `BadInput` when it is neither cached nor can be downloaded."""
    for one in _single(task):
        try:
            one.load_data()
        except Exception as error:  # hub, data set and file errors of a dozen unrelated classes
            raise BadInput(
                f"{one.metadata.name}: its data is neither in the cache nor available ({error}); "
                "fetch it first: python -m toolkit.prefetch RECIPE"
            ) from error


def check_data(tasks: Sequence[Any]) -> None:
    """Raise `BadInput` with the names of all tasks whose data cannot be read here. The data of each
    are read as scoring will read them, since no file name tells what a cache holds."""
    missing = []
    for number, task in enumerate(tasks, 1):
        name, before = task.metadata.name, [one for one in _single(task) if one.data_loaded]
        say(f"evaluate: is the data of {name} here? ({number} of {len(tasks)})")
        try:
            load_data(task)
        except BadInput as error:
            missing.append((name, error))
        for one in _single(task):
            # The data of all tasks at once may not fit in memory.
            if one.data_loaded and one not in before:
                one.unload_data()
    if missing:
        names = ", ".join(name for name, _ in missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise BadInput(
            f"mteb: {len(missing)} of {len(tasks)} tasks have no data here: {names}; the first: "
            f"{missing[0][1]}"
        )


def paths_of(task: Any) -> list[str]:
    """The data sets that a task reads, by their names on the hub."""
    return [str(one.metadata.dataset["path"]) for one in _single(task)]


def _single(task: Any) -> Sequence[Any]:
    """The tasks with data of their own: the task itself, or the parts whose mean it is."""
    return list(task.tasks) if task.is_aggregate else [task]


def tasks_of(asked: Mteb) -> Sequence[Any]:
    """The tasks that a recipe names. Raises `BadInput` for names that MTEB does not know, and for a
    task that has nothing in the languages asked for."""
    names = [*asked.tasks, *SUBSETS.get(asked.benchmark or "", ())]
    languages = list(ENGLISH if asked.languages is None else asked.languages) or None
    tasks = []
    for name in names:
        try:
            task = mteb.get_task(name, languages=languages, exclusive_language_filter=True)
            # Some tasks also score their validation part, which no published table includes.
            if TEST in task.eval_splits:
                task = task.filter_eval_splits([TEST])
            tasks.append(task)
        except KeyError as error:
            raise BadInput(f"mteb.tasks: {error.args[0]}") from error
        except ValueError as error:
            raise BadInput(
                f"mteb.languages={languages}: {name} has nothing in them ({error})"
            ) from error
    if asked.benchmark is not None and asked.benchmark not in SUBSETS:
        if asked.languages is not None:
            raise BadInput(
                f"mteb.languages={languages}: {asked.benchmark} itself chooses the "
                "languages of its tasks; name the tasks instead"
            )
        try:
            tasks += list(mteb.get_benchmark(asked.benchmark).tasks)
        except KeyError as error:
            near = did_you_mean(asked.benchmark, (one.name for one in mteb.get_benchmarks()))
            raise BadInput(
                f"mteb.benchmark={asked.benchmark!r}: MTEB has no such benchmark{near}"
            ) from error
    return tasks


def instruction_of(task: Any) -> str:
    """MTEB's own instruction for a task, or for its queries; empty if it has none."""
    prompt = task.metadata.prompt
    return str((prompt.get("query", "") if isinstance(prompt, dict) else prompt) or "")


def digest_of(task: Any) -> str:
    """The digest of a task: its data set and revision, its splits and subsets, MTEB's version."""
    made_of = (
        mteb.__version__,
        task.metadata.name,
        *(one.metadata.dataset for one in _single(task)),
        task.eval_splits,
        task.hf_subsets,
    )
    return hashlib.sha256(repr(made_of).encode()).hexdigest()
