"""The program of questions: a decoder reads documents of a corpus and writes questions about them.

Composition only. Workers may come and go at any time; a restart, with any number of them, skips
what is finished, and the same seed gives the same questions.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.base.console import at_work, say
from toolkit.base.errors import BadInput, RunFailed
from toolkit.base.files import read_json
from toolkit.base.layout import MANIFEST_FILE
from toolkit.cluster.topology import Topology
from toolkit.domain.documents import choose, identity
from toolkit.domain.finishing import (
    counts_line,
    finish,
    nothing_left,
    own_faults,
    settings_of,
)
from toolkit.domain.output import QuestionOutput
from toolkit.domain.prompts import Frame, frame_of, read_examples, read_prompt, whole_prompt
from toolkit.encoding.progress import EncodingProgress
from toolkit.encoding.schedule import Schedule
from toolkit.encoding.sharing import run_shared
from toolkit.encoding.units import Unit, claim_directory, planned_dtype, units
from toolkit.settings.model_source import ModelSource, resolve_model
from toolkit.settings.questions_schema import QuestionsRecipe, check_questions
from toolkit.text.shards import open_shards

if TYPE_CHECKING:
    import torch

    from toolkit.domain.decoder import Decoder
    from toolkit.domain.writing import Question

WHAT = "questions"
# After so many, of which none can be used, it is not worth going on.
ENOUGH = 100


def run(recipe: QuestionsRecipe, *, environ: Mapping[str, str]) -> None:
    """Write those of `recipe`'s units that are not finished, together with any other workers, and
    make pairs, queries and judgements of all questions.

    Raises `BadInput` before anything is written when corpus, documents, prompt, model or output
    cannot be used, and `RunFailed` when no question can be used.
    """
    check_questions(recipe)
    run_shared(_Asking(recipe), recipe, environ=environ)


class _Asking:
    """The work of writing questions (`sharing.Work`)."""

    name = WHAT

    def __init__(self, recipe: QuestionsRecipe) -> None:
        self._recipe = recipe
        self._tried: list[Question] = []  # of this worker, while none of them could be used
        self._is_usable = False

    @at_work("questions: opens corpus and model")
    def open(self, *, topology: Topology, verify: bool) -> QuestionOutput:
        """Open the inputs, claim the output directory, and load the model."""
        recipe = self._recipe
        prompt, examples = read_prompt(_path(recipe.prompt)), read_examples(_path(recipe.examples))
        source = resolve_model(recipe.generator.model)
        self._shards = open_shards(Path(recipe.corpus.input), verify=verify)
        self._chosen = choose(recipe, self._shards)
        # Here and not above: neither the help text nor a refusal must wait for torch.
        from toolkit.domain.decoder import causal_config, most_tokens
        from toolkit.domain.writing import Writer
        from toolkit.model.tokenizer import load_tokenizer
        from toolkit.model.weights import base_folder, model_digest
        from toolkit.parallel.comm import device_of

        config, tokenizer = causal_config(source), load_tokenizer(source)
        frame = frame_of(
            whole_prompt(prompt, examples), tokenizer=tokenizer, chat=recipe.generator.chat
        )
        around = len(tokenizer(frame.before + frame.after)["input_ids"])
        _check_room(recipe, around=around, most=most_tokens(config))
        facts, decoder = self._claimed(
            source,
            frame=frame,
            device=device_of(topology.local_rank),
            model_digest=model_digest(base_folder(source)),
        )
        self._writer = Writer(recipe, decoder=decoder, frame=frame)
        self._output = QuestionOutput(
            Path(recipe.output_dir),
            facts["digest"],
            units(facts["bounds"]),
            settings_of(recipe),
            self._finish,
        )
        return self._output

    def _claimed(
        self, source: ModelSource, *, frame: Frame, device: "torch.device", model_digest: str
    ) -> "tuple[dict[str, Any], Decoder]":
        """The facts of the plan that the output directory has now, and the model in the number type
        of that plan. The first worker's device decides about dtype=auto, for all others and for
        every restart."""
        from toolkit.domain.decoder import Decoder
        from toolkit.model.precision import dtype_for

        recipe, output_dir = self._recipe, Path(self._recipe.output_dir)
        is_open = recipe.generator.dtype == "auto"
        dtype = dtype_for(recipe.generator.dtype, device=device)
        while True:
            dtype = (is_open and planned_dtype(output_dir, section="generator")) or dtype
            decoder = Decoder(source, dtype=dtype, device=device)
            generator = recipe.generator.model_copy(update={"dtype": dtype})
            facts = identity(
                recipe.model_copy(update={"generator": generator}),
                shards=self._shards,
                chosen=self._chosen,
                model_digest=model_digest,
                # No digest of a model has its generation_config.json, which names end tokens.
                asked={
                    "before": frame.before,
                    "after": frame.after,
                    "ends": sorted(decoder.ends),
                },
            )
            try:
                claim_directory(
                    output_dir,
                    facts=facts,
                    model=recipe.generator.model,
                    corpus=recipe.corpus.input,
                    what=WHAT,
                )
            except BadInput:
                # While we loaded it, a worker on another kind of device may have made the plan.
                if is_open and planned_dtype(output_dir, section="generator") not in (None, dtype):
                    continue
                raise
            return facts, decoder

    def do(self, work: Schedule) -> None:
        """Write the questions of the units that `work` gives."""
        progress = EncodingProgress(self._output, title=WHAT, unit="documents")
        began, done = time.perf_counter(), [0, 0]

        def on_batch(documents: int, tokens: int) -> None:
            progress.on_rows(documents, tokens)
            done[0] += documents
            done[1] += tokens

        try:
            while unit := work.take():
                try:
                    self._do(unit, work=work, on_batch=on_batch)
                except BaseException:
                    work.fail(unit)
                    raise
        finally:
            progress.close()
        total_s = max(time.perf_counter() - began, 1e-9)
        documents, tokens = done
        if not documents:
            say(f"{WHAT}: nothing was written here")
            return
        say(
            f"{WHAT}: {documents * self._recipe.per_document:,} questions of {documents:,} "
            f"documents, {tokens:,} tokens read and written in {total_s:,.1f} s: "
            f"{documents / total_s:,.2f} documents/s, {tokens / total_s:,.0f} tokens/s"
        )

    def _do(self, unit: Unit, *, work: Schedule, on_batch: Any) -> None:
        rows = self._chosen.rows_D[unit.start : unit.stop].tolist()
        questions = self._writer.questions(
            [self._shards.record(row) for row in rows],
            may_go_on=lambda: not work.stopped(),
            on_batch=on_batch,
        )
        # If another worker took the unit over, drop our result: that worker writes it.
        if questions is None or not work.holds(unit):
            work.give_back(unit)
            return
        self._look_at(questions, rows=rows)
        try:
            self._output.write(unit, questions)
        except OSError:
            # The worker that closes the output removes temporary files, even ours once another
            # worker has written our unit.
            if work.holds(unit):
                raise
        work.finish(unit)

    def _look_at(self, questions: "list[Question]", *, rows: list[int]) -> None:
        """Raise `RunFailed` when none of the first questions of this worker can be used."""
        if self._is_usable:
            return
        row_of = dict(zip((self._shards.record(row)["id"] for row in rows), rows, strict=True))
        faults = own_faults(
            questions,
            rows=[row_of[one.id] for one in questions],
            shards=self._shards,
            filters=self._recipe.filters,
        )
        self._tried += questions
        self._is_usable = "" in faults
        if not self._is_usable and len(self._tried) >= ENOUGH:
            raise RunFailed(nothing_left(questions, faults=faults, where=self._recipe.output_dir))

    def _finish(self, output: QuestionOutput) -> dict[str, Any]:
        return finish(output, recipe=self._recipe, shards=self._shards, rows_D=self._chosen.rows_D)

    def tell(self) -> None:
        """Say what became of every document and every question."""
        path = self._output.directory / MANIFEST_FILE
        if not path.is_file():  # we were told to stop while another worker writes it
            say(f"{WHAT}: another worker filters the questions")
            return
        manifest = read_json(path)
        line = counts_line(manifest["counts"], per_document=self._recipe.per_document)
        say(f"{WHAT}: {self._output.directory}: {line}")
        for name, count in manifest["own_pairs"].items():
            say(f"{count:>12,} pairs of the documents' own {name}")


def _check_room(recipe: QuestionsRecipe, *, around: int, most: int | None) -> None:
    """Raise `BadInput` when the longest passage, with the `around` tokens of prompt and examples
    and the question, is longer than the model can read."""
    generator, max_tokens = recipe.generator, recipe.corpus.max_tokens
    needed = around + max_tokens + generator.max_new_tokens
    if most is not None and needed > most:
        raise BadInput(
            f"prompt and examples ({around} tokens), corpus.max_tokens={max_tokens} and "
            f"generator.max_new_tokens={generator.max_new_tokens} are {needed} tokens together, "
            f"and {generator.model} reads {most}: give fewer"
        )


def _path(given: str | None) -> Path | None:
    return None if given is None else Path(given)
