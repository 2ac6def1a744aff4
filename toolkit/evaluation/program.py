"""The program of an evaluation: scores of several encoders side by side, as JSON and a table.

Composition only. A restart goes on: what is scored already is not scored again.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.base.console import LINE_S, Progress, at_work, say, say_lines
from toolkit.base.errors import BadInput
from toolkit.base.files import write_atomic
from toolkit.base.layout import REPRODUCTION_FILE, SCORES_FILE
from toolkit.cluster.preempt import StopSignal
from toolkit.cluster.topology import detect, worker_of
from toolkit.evaluation import parts, reproduction
from toolkit.evaluation.baselines import (
    check_baselines,
    encoder_name,
    fused_part,
    in_order,
    not_better,
    outcome_with_words,
    words_part,
)
from toolkit.evaluation.corpora import LEAST_TEXTS, Corpora, ToldToStop
from toolkit.evaluation.forgetting import write_choice
from toolkit.evaluation.parts import Part
from toolkit.evaluation.reproduction import Reference, Scored, read_reference
from toolkit.evaluation.tables import table
from toolkit.evaluation.task import Outcome, RankingTask
from toolkit.evaluation.tasks import Named, check_mteb_data, read_tasks
from toolkit.settings.hub import is_offline
from toolkit.settings.merge_schema import Forgetting, check_forgetting
from toolkit.settings.model_source import check_reference
from toolkit.settings.schema import EncoderSettings, EvaluateRecipe
from toolkit.settings.task_schema import Mteb

if TYPE_CHECKING:
    from toolkit.encoding.encoder import Encoder
    from toolkit.evaluation.task import Vectors


Rows = dict[str, dict[str, float]]


def run(recipe: EvaluateRecipe, *, environ: Mapping[str, str]) -> Rows:
    """Score every encoder on every task, together with any other workers; write scores.json, print
    the table and return it. Empty when told to stop before the end.

    Raises `BadInput` before anything is written when a task, the output or the first encoder cannot
    be used, and later, at its turn, for another encoder.
    """
    with StopSignal(environ) as stop:
        topology = detect(environ)
        output_dir = Path(recipe.output_dir)
        if output_dir.exists() and not output_dir.is_dir():
            raise BadInput(f"output_dir={output_dir}: is a file; choose a directory")
        tasks = read_tasks(recipe)
        check_baselines(recipe, tasks=tasks)
        for settings in recipe.encoders.values():
            check_reference(settings.model)
        if recipe.forgetting:
            adapters = {name: one.adapters for name, one in recipe.encoders.items()}
            names = [one.name for one in tasks]
            check_forgetting(recipe.forgetting, encoders=adapters, tasks=names)
        reference = (
            read_reference(recipe.reference, encoders=list(recipe.encoders))
            if recipe.reference
            else None
        )
        recipe = settle_dtypes(recipe, local_rank=topology.local_rank)
        every = _parts(recipe, tasks=tasks)
        index, count = worker_of(topology, environ=environ)
        corpora = Corpora(recipe, should_stop=lambda: stop.received, place=index / count)
        scorer = _Scorer(recipe, tasks=tasks, local_rank=topology.local_rank, corpora=corpora)
        first = index * len(every) // count
        scores = parts.Scores(output_dir)
        missing = [part for part in every if scores.of(part) is None]
        if recipe.mteb != Mteb() and is_offline(environ):
            check_mteb_data(tasks, wanted={p.task for p in missing})
        if needing := [part for part in missing if encoder_name(part)]:
            # Loads the first encoder now: one of no use is refused before anything is written.
            scorer.load(needing[min(first, len(needing) - 1)])
        mine = parts.share(
            every,
            scores=scores,
            lease_s=recipe.lease_s,
            first=first,
            should_stop=lambda: stop.received,
            help_others=lambda: scorer.help_others(every),
        )
        # Told to stop inside of a part, we close `mine`, so that others can take the part.
        with contextlib.suppress(ToldToStop), contextlib.closing(mine):
            for part in mine:
                scores.keep(part, scorer.outcome(part))
                say(f"evaluate: {part.encoder} on {part.task} is scored")
        scored = scores.of_all(every)
        if scored is None:
            say("evaluate: told to stop; the same command goes on")
            stop.leave(environ, leads=topology.rank == 0)
            return {}
    return _show(recipe, scored, reference=reference)


def _show(
    recipe: EvaluateRecipe,
    scored: Sequence[tuple[Part, Mapping[str, float]]],
    *,
    reference: Reference | None,
) -> dict[str, dict[str, float]]:
    """Write scores.json and what else the recipe asks for, print it, and return the scores."""
    output_dir, by_encoder = Path(recipe.output_dir), _by_encoder(scored)
    # Unsorted: in the recipe's order, the encoders show what each stage of training adds.
    write_atomic(output_dir / SCORES_FILE, json.dumps(by_encoder, indent=2) + "\n")
    _print(by_encoder, scored=scored)
    if reference:
        of_encoders = [(part, one) for part, one in scored if part.encoder in recipe.encoders]
        main = [Scored(p.encoder, p.facts["category"], s[p.facts["main"]]) for p, s in of_encoders]
        text = reproduction.report(reference, main, encoders=recipe.encoders)
        write_atomic(output_dir / REPRODUCTION_FILE, text)
        say_lines(text)
    if recipe.forgetting:
        _choose(recipe, recipe.forgetting, scored)
    return by_encoder


def _print(by_encoder: Rows, *, scored: Sequence[tuple[Part, Mapping[str, float]]]) -> None:
    """Print the table, and which encoders do not beat words."""
    say_lines(table(by_encoder))
    main = dict.fromkeys(f"{part.task} {part.facts['main']}" for part, _ in scored)
    for line in not_better(by_encoder, main=main):
        say(f"evaluate: {line}")


def _choose(
    recipe: EvaluateRecipe, asked: Forgetting, scored: Sequence[tuple[Part, Mapping[str, float]]]
) -> None:
    main: dict[str, dict[str, float]] = {name: {} for name in recipe.encoders}
    of_encoders = [(part, scores) for part, scores in scored if part.encoder in main]
    for part, scores in of_encoders:
        main[part.encoder][part.task] = scores[part.facts["main"]]
    write_choice(
        Path(recipe.output_dir),
        scores=main,
        asked=asked,
        models={name: one.model for name, one in recipe.encoders.items()},
        digests={part.encoder: str(part.facts["encoder"]["model"]) for part, _ in of_encoders},
    )


def settle_dtypes(recipe: EvaluateRecipe, *, local_rank: int) -> EvaluateRecipe:
    """The recipe with a number type for each encoder that leaves it to the device. Scores depend on
    it, and so do the facts of a part: workers on other kinds of devices make scores of their own.
    """
    from toolkit.model.precision import dtype_for
    from toolkit.parallel.comm import device_of

    device = device_of(local_rank)
    encoders = {
        name: one.model_copy(update={"dtype": dtype_for(one.dtype, device=device)})
        for name, one in recipe.encoders.items()
    }
    return recipe.model_copy(update={"encoders": encoders})


def _parts(recipe: EvaluateRecipe, *, tasks: Sequence[Named]) -> list[Part]:
    from toolkit.model.adapters import chain_of

    # A task of MTEB ranks inside of MTEB, which knows nothing of words.
    ranking = [one for one in tasks if isinstance(one.task, RankingTask)]
    made = [words_part(one) for one in ranking] if recipe.baselines else []
    shown = [parts.shown(name) for name in recipe.encoders]
    if twice := [name for name in shown if shown.count(name) > 1]:
        raise BadInput(f"encoders: two are shown as {twice[0]!r}; rename one of them")
    for name, settings in recipe.encoders.items():
        chain = chain_of(settings.model, adapters=settings.adapters)
        # An encoder of no use must fail now, and not after hours of scoring the others.
        rules = chain.rules(settings)
        if recipe.words and rules.echo:
            raise BadInput(
                f"encoders.{name}.echo=true: tasks on words read a text once; leave out words, or "
                "this encoder"
            )
        made_by = {"model": rules.digest(chain.digest()), **settings.facts()}
        for one in tasks:
            facts = {
                "encoder": made_by,
                "task": one.digest,
                "instruction": recipe.instructions.get(one.name, one.instruction),
                "category": one.category,
                "main": one.task.main,
            }
            made.append(Part(name, one.name, facts))
            if recipe.fusion and one in ranking:
                made.append(fused_part(made[-1]))
    return made


class Embedder:
    """An encoder with the instruction of one task (a `toolkit.evaluation.task.Embed`). With
    `corpora` documents are embedded there, together with other workers."""

    def __init__(
        self,
        encoder: "Encoder",
        *,
        name: str,
        instruction: str,
        corpora: Corpora | None = None,
        remembers: bool = False,
    ) -> None:
        """`remembers`: the last vectors are kept, to be given again for the same texts."""
        self.encoder, self.name, self._corpora = encoder, name, corpora
        self._remembers = remembers
        self._last: dict[bool, tuple[list[str], Vectors]] = {}
        self._instruction = instruction
        self._before = encoder.before_text(instruction)

    @property
    def revision(self) -> str:
        """The digest of all that decides the vectors: weights, settings and instruction. All
        weights are read to compute it."""
        facts = [self.encoder.settings.facts(), self._instruction]
        made_by = json.dumps([self.encoder.digest(), *facts], sort_keys=True)
        return hashlib.sha256(made_by.encode()).hexdigest()

    def __call__(self, texts: Sequence[str], *, instructed: bool = True) -> "Vectors":
        """Vectors (N, D), fp32, in the order of `texts`."""
        if instructed in self._last and self._last[instructed][0] == list(texts):
            return self._last[instructed][1]
        if not instructed and self._corpora is not None and len(texts) >= LEAST_TEXTS:
            return self._corpora.vectors(texts, encoder=self.encoder, name=self.name)
        before = self._before if instructed else ""
        title = f"{self.name}: encode"
        progress = Progress(title, total=len(texts), unit="rows", least_s=LINE_S)
        vectors_ND = self.encoder.vectors_of(
            texts, instruction=before, on_rows=lambda rows, _: progress.advance(rows)
        )
        progress.close()
        if self._remembers:
            self._last[instructed] = list(texts), vectors_ND
        return vectors_ND


class _Scorer:
    """Scores parts. It keeps the last encoder, since the parts of one encoder come in a row."""

    def __init__(
        self,
        recipe: EvaluateRecipe,
        *,
        tasks: Sequence[Named],
        local_rank: int,
        corpora: Corpora,
    ) -> None:
        self._recipe, self._local_rank, self._corpora = recipe, local_rank, corpora
        self._tasks = {one.name: one.task for one in tasks}
        self._loaded: tuple[EncoderSettings, Encoder] | None = None
        self._embedder: tuple[Any, Embedder] | None = None

    def outcome(self, part: Part) -> Outcome:
        """The outcome of a part: of its encoder, of BM25 or of both, on its task."""
        task = self._tasks[part.task]
        if part.encoder in self._recipe.encoders:
            embed = self._embed(part)
            if isinstance(task, RankingTask):
                return task.outcome(task.cosines(embed))
            return Outcome(task.scores(embed))
        assert isinstance(task, RankingTask)
        return outcome_with_words(task, self._embed(part) if encoder_name(part) else None)

    def _embed(self, part: Part) -> Embedder:
        """The embedder of a part. That of the part before is used again for the same encoder and
        task: fused with BM25, an encoder need not embed the corpus a second time."""
        name = encoder_name(part)
        asked = (name, part.task)
        if self._embedder is None or self._embedder[0] != asked:
            self._embedder = None  # frees the memory of its vectors
            instruction = str(part.facts["instruction"])
            again = self._recipe.fusion and isinstance(self._tasks[part.task], RankingTask)
            embedder = Embedder(
                self.load(part),
                name=str(name),
                instruction=instruction,
                corpora=self._corpora if self._recipe.share_corpora else None,
                remembers=again,
            )
            self._embedder = asked, embedder
        return self._embedder[1]

    def load(self, part: Part) -> "Encoder":
        """Load the part's encoder. Raises `BadInput` when it cannot be used."""
        name = str(encoder_name(part))
        settings = self._recipe.encoders[name]
        # Here and not above: the help text of a door must not wait for torch.
        from toolkit.encoding.encoder import Encoder
        from toolkit.parallel.comm import device_of

        if self._loaded is None or self._loaded[0] != settings:
            self._loaded = None  # frees its memory for the next one
            with at_work(f"evaluate: loads {name}"):
                self._loaded = settings, Encoder(settings, device=device_of(self._local_rank))
        return self._loaded[1]

    def help_others(self, every: Sequence[Part]) -> bool:
        """Embed a corpus that another worker needs, by one of our encoders; returns whether there
        was one."""

        def encoder_of(made_by: Mapping[str, Any]) -> "Encoder | None":
            its = next((part for part in every if part.facts["encoder"] == made_by), None)
            return None if its is None else self.load(its)

        return self._corpora.help_others(encoder_of)


def _by_encoder(scored: Sequence[tuple[Part, Mapping[str, float]]]) -> Rows:
    """All scores of each row, the main one of a task first and the others by name, whoever made
    them: a part's file does not keep their order. BM25, the encoders, what is fused."""
    names = in_order(dict.fromkeys(part.encoder for part, _ in scored))
    rows: Rows = {parts.shown(name): {} for name in names}
    for part, scores in scored:
        row = rows[parts.shown(part.encoder)]
        main_first = sorted(scores, key=lambda metric: (metric != part.facts["main"], metric))
        row |= {f"{part.task} {metric}": scores[metric] for metric in main_first}
    return rows
