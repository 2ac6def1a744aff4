"""The corpora of an evaluation: texts that all workers embed together, once, unit by unit.

    OUT/corpora/<digest>/                 an encoding, as toolkit.encode makes one
    OUT/corpora/<digest>/texts.parquet    its texts, until all of them are embedded

The digest is that of the encoding's plan, which is made of the texts, the encoder and its settings.
So all tasks on the same texts share their vectors, two encoders never do, and a restart goes on
inside a corpus. A worker whose task needs a corpus embeds it together with all others that have
nothing else to do; they read the texts from the file, since they may have no task with them.

Knows texts, and where their vectors are. Refuses to know tasks and scores. Shapes: N texts, U
different texts, D width.
"""

import dataclasses
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.base.console import LINE_S, say, warn
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_atomic
from toolkit.base.layout import CORPUS_DIR, LEASE_DIR, MANIFEST_FILE, PLAN_FILE, TEXTS_FILE
from toolkit.cluster.leases import Leases
from toolkit.encoding.output import Output
from toolkit.encoding.progress import EncodingProgress
from toolkit.encoding.schedule import Claims, until_whole
from toolkit.encoding.store import VectorStore
from toolkit.encoding.units import Unit, claim_directory, identity, units
from toolkit.evaluation.task import Vectors, checked
from toolkit.settings.schema import Corpus, EmbedRecipe, EvaluateRecipe

if TYPE_CHECKING:  # imports torch
    from toolkit.encoding.encoder import Encoder

LEAST_TEXTS = 64  # fewer are not worth any files
# Rows of a unit. Many units share the work evenly and lose little when a worker is killed; but each
# costs three files, and a unit should fill some batches.
UNITS, LEAST_ROWS, MOST_ROWS = 64, 32, 4096
DIGITS = 32  # of a digest in a name


class ToldToStop(Exception):
    """This worker was told to stop, and the vectors it needs are not all there."""


@dataclasses.dataclass(frozen=True)
class _Planned:
    """Different texts, the encoder that embeds them, and the plan of this encoding."""

    texts: Sequence[str]
    encoder: "Encoder"
    facts: dict[str, Any]
    directory: Path

    def records(self, unit: Unit) -> list[dict[str, str]]:
        """The rows of a unit; a text's id is its place."""
        return [
            {"id": str(row), "title": "", "text": self.texts[row]}
            for row in range(unit.start, unit.stop)
        ]

    def is_whole(self) -> bool:
        """Whether all texts are embedded."""
        return (self.directory / MANIFEST_FILE).is_file()


class Corpora:
    """The corpora of an evaluation. `place` is where this worker begins among the units
    of a corpus, from 0 to 1."""

    def __init__(
        self,
        recipe: EvaluateRecipe,
        *,
        should_stop: Callable[[], bool],
        place: float = 0.0,
    ) -> None:
        self._directory, self._lease_s = Path(recipe.output_dir) / CORPUS_DIR, recipe.lease_s
        self._should_stop, self._place = should_stop, place

    def vectors(self, texts: Sequence[str], *, encoder: "Encoder", name: str) -> Vectors:
        """The vectors (N, D) of texts without an instruction, fp32: those on disk, after embedding
        what is missing together with other workers. Units that were damaged since are made again.

        Raises `ToldToStop` when told to stop before all are there, and `BadInput` for a vector that
        is not finite.
        """
        some = list(dict.fromkeys(texts))
        planned = self._planned(some, encoder)
        for is_again in (False, True):
            if not planned.is_whole():
                self._begin(planned)
                self._embed(planned, name=name, check=is_again)
            try:
                vectors_UD = VectorStore(planned.directory).vectors()
                break
            except BadInput as error:
                if is_again:
                    raise
                warn(f"{str(error).partition(';')[0]}; it is embedded again")
                (planned.directory / MANIFEST_FILE).unlink(missing_ok=True)
        if len(some) == len(texts):
            return vectors_UD
        place = {text: number for number, text in enumerate(some)}
        return vectors_UD[[place[text] for text in texts]]

    def help_others(self, encoder_of: Callable[[Mapping[str, Any]], "Encoder | None"]) -> bool:
        """Embed a corpus that another worker needs, together with it; returns whether there was
        one. `encoder_of` gives the encoder with this digest and these
        settings, None if it is none of ours. Raises `ToldToStop`."""
        for directory in sorted(self._directory.glob("*")):
            made_by = _made_by(directory)
            encoder = encoder_of(made_by) if made_by else None
            if encoder is None:
                continue
            try:
                texts = pq.read_table(directory / TEXTS_FILE)["text"].to_pylist()
            except FileNotFoundError:  # whole by now
                continue
            except (OSError, pa.ArrowException) as error:
                raise BadInput(f"{directory / TEXTS_FILE}: cannot be read ({error})") from error
            planned = self._planned(texts, encoder)
            if planned.directory == directory:  # else these are not the texts of the plan
                self._embed(planned, name="for others")
                return True
        return False

    def _planned(self, texts: Sequence[str], encoder: "Encoder") -> _Planned:
        rows = min(max(len(texts) // UNITS, LEAST_ROWS), MOST_ROWS)
        recipe = EmbedRecipe(
            kind="embed",
            output_dir=str(self._directory),
            encoder=encoder.settings,
            corpus=Corpus(input=TEXTS_FILE, unit_rows=rows),
        )
        facts = identity(
            recipe,
            corpus_digest=_digest(texts),
            model_digest=encoder.digest(),
            num_chars_N=np.array([len(text) for text in texts], dtype=np.int64),
        )
        return _Planned(texts, encoder, facts, self._directory / facts["digest"][:DIGITS])

    def _begin(self, planned: _Planned) -> None:
        """Write the plan, and then the texts for others to embed, unless they are there."""
        settings, texts_file = planned.encoder.settings, planned.directory / TEXTS_FILE
        claim_directory(
            planned.directory,
            facts=planned.facts,
            model=settings.model,
            adapters=settings.adapters,
            corpus=str(texts_file),
        )
        if not texts_file.is_file():
            _write_texts(texts_file, planned.texts)

    def _embed(self, planned: _Planned, *, name: str, check: bool = False) -> None:
        """Embed units until none is missing. With `check` those on disk are compared first."""
        facts, directory = planned.facts, planned.directory
        output = Output(directory, facts["digest"], units(facts["bounds"]))
        with Leases(directory / LEASE_DIR, lease_s=self._lease_s) as leases:
            first = int(self._place * len(output.units))
            work = Claims(output, leases=leases, first=first, should_stop=self._should_stop)
            if check:
                work.check(output.units)
            left = until_whole(
                work, lambda: _run(work, planned, output=output, name=name), directory=directory
            )
        if left:
            raise ToldToStop
        (directory / TEXTS_FILE).unlink(missing_ok=True)


def _run(work: Claims, planned: _Planned, *, output: Output, name: str) -> None:
    """Embed and write the units that this worker gets."""
    from toolkit.encoding.pipeline import Pipeline

    def write(
        unit: Unit, vectors_RD: Vectors, records: Sequence[Mapping[str, Any]], _: Any
    ) -> None:
        texts = [record["text"] for record in records]
        output.write(unit, checked(vectors_RD, texts=texts), records)

    progress = EncodingProgress(output, title=f"{name}: encode", least_s=LINE_S)
    pipeline = Pipeline(
        work, encoder=planned.encoder, read=planned.records, write=write, on_rows=progress.on_rows
    )
    try:
        figures = pipeline.run()
    finally:
        progress.close()
    if figures.rows:
        rows = f"{figures.rows:,} of its {len(planned.texts):,} texts"
        say(f"evaluate: {name}: corpus {output.directory.name[:8]}: embedded {rows} here")


def _made_by(directory: Path) -> Mapping[str, Any] | None:
    """The digest of the encoder, and its settings, of a corpus that is not whole; None if it is, or
    if its plan cannot be read, of which the worker that needs it says what is wrong."""
    if (directory / MANIFEST_FILE).is_file() or not (directory / TEXTS_FILE).is_file():
        return None
    try:
        plan: dict[str, Any] = read_json(directory / PLAN_FILE)
        output = Output(directory, plan["digest"], units(plan["bounds"]))
        return {"model": plan["model"], **plan["encoder"]} if output.unfinished() else None
    except (BadInput, KeyError, TypeError):
        return None


def _write_texts(path: Path, texts: Sequence[str]) -> None:
    sink = io.BytesIO()
    table = pa.table({"text": pa.array(texts, pa.large_string())})
    pq.write_table(table, sink, compression="zstd")
    try:
        write_atomic(path, sink.getvalue())
    except FileNotFoundError:
        # Others have embedded all, and removed what looked like a killed writer's file.
        return


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        digest.update(b"%d " % len(data) + data)
    return digest.hexdigest()
