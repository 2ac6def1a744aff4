"""From units to vectors on disk in one process: reading, model and writing run side by side.

    reader thread:  take a unit, read its texts, tokenise, lay out batches
    this thread:    the model
    writer thread:  files and digests

Knows stages and how long they wait. Refuses to know where units come from (`schedule`), and what is
read and written. Each stage is at most one unit ahead, since a worker must not hoard units that
others could do.
"""

import dataclasses
import time
from collections.abc import Callable

from toolkit.encoding.encoder import Encoder
from toolkit.encoding.formats import Kept, Vectors
from toolkit.encoding.pipe import Pipe, Stage
from toolkit.encoding.preparing import Preparer, Records, UnitRows
from toolkit.encoding.reuse import OldVectors
from toolkit.encoding.schedule import Schedule
from toolkit.encoding.units import ChunkRules, Unit


@dataclasses.dataclass
class Figures:
    """Rows and tokens that were embedded, texts whose vectors an older encoding had, and the
    seconds of each stage. `unit_s` is how long the reader waited for units, `text_s` how long the
    model waited for the reader (`unit_s` included), and `room_s` how long it waited for the
    writer."""

    rows: int = 0
    reused: int = 0
    tokens: int = 0
    total_s: float = 0.0
    model_s: float = 0.0
    unit_s: float = 0.0
    read_s: float = 0.0
    tokenise_s: float = 0.0
    write_s: float = 0.0
    text_s: float = 0.0
    room_s: float = 0.0

    @property
    def outside(self) -> float:
        """The fraction of the time in which the model did not run."""
        return 1 - self.model_s / self.total_s if self.total_s else 0.0

    def __str__(self) -> str:
        total_s = max(self.total_s, 1e-9)
        reused = f"{self.reused:,} texts reused; " if self.reused else ""
        return (
            f"{reused}{self.rows:,} rows, {self.tokens:,} tokens in {total_s:,.1f} s: "
            f"{self.rows / total_s:,.1f} rows/s, {self.tokens / total_s:,.0f} tokens/s; "
            f"{self.outside:.1%} of the time outside of the model ({self.text_s / total_s:.1%} "
            f"waiting for text, {self.room_s / total_s:.1%} for the writer); meanwhile "
            f"{self.unit_s:,.2f} s for units, {self.read_s:,.2f} s reading, "
            f"{self.tokenise_s:,.2f} s tokenising, {self.write_s:,.2f} s writing"
        )


@dataclasses.dataclass(frozen=True)
class _Texts:
    unit: Unit
    rows: UnitRows


@dataclasses.dataclass(frozen=True)
class _Done:
    unit: Unit
    rows: UnitRows
    vectors_RD: Vectors


class Pipeline:
    """Does the units of `work`: `read` gives the records of a unit, `write` puts them on disk with
    their vectors. With `chunks` each chunk of a text gets a vector. Texts that stand in `old` get
    their vectors from there. Call `run` once only."""

    def __init__(
        self,
        work: Schedule,
        *,
        encoder: Encoder,
        read: Callable[[Unit], Records],
        write: Callable[[Unit, Vectors, Records, Kept | None], None],
        on_rows: Callable[[int, int], None],
        chunks: ChunkRules | None = None,
        old: OldVectors | None = None,
    ) -> None:
        self._chunks = chunks
        self._preparer = Preparer(encoder, chunks=chunks, old=old)
        self._work, self._encoder, self._read, self._write = work, encoder, read, write
        self._on_rows = on_rows
        self._texts, self._vectors = Pipe[_Texts](), Pipe[_Done]()
        self.figures = Figures()

    def run(self) -> Figures:
        """Work until no unit is left, or we are told to stop. An error of any stage ends all of
        them, after they have given their units back."""
        began = time.perf_counter()
        with Stage("reader", self._read_on), Stage("writer", self._write_on):
            try:
                for texts in self._texts:
                    if self._work.stopped():
                        self._work.give_back(texts.unit)
                    elif not self._vectors.put(self._embed(texts)):
                        self._work.give_back(texts.unit)
                        break
            finally:
                for texts in self._texts.close():
                    self._work.give_back(texts.unit)
                self._vectors.end()
        figures = self.figures
        figures.total_s = time.perf_counter() - began
        figures.text_s, figures.room_s = self._texts.empty_s, self._vectors.full_s
        return figures

    def _embed(self, texts: _Texts) -> _Done:
        began = time.perf_counter()
        try:
            fresh_FD = self._encoder.embed(texts.rows.prepared, on_rows=self._on_batch)
        except BaseException:
            self._work.fail(texts.unit)
            raise
        self.figures.model_s += time.perf_counter() - began
        rows = texts.rows
        # With chunks, rows of the corpus are complete when their unit is.
        self._on_rows(
            texts.unit.stop - texts.unit.start if self._chunks else rows.num_kept_texts, 0
        )
        self.figures.rows += rows.prepared.num_rows
        self.figures.reused += rows.num_kept_texts
        self.figures.tokens += rows.prepared.num_tokens
        return _Done(texts.unit, rows, rows.vectors(fresh_FD))

    def _on_batch(self, rows: int, tokens: int) -> None:
        # Progress counts rows of the corpus.
        self._on_rows(0 if self._chunks else rows, tokens)

    def _read_on(self) -> None:
        figures, error = self.figures, None
        try:
            # Wait for room before taking a unit: one that waits here for the model could be done by
            # others.
            while self._texts.has_room():
                began = time.perf_counter()
                unit = self._work.take(lambda: self._texts.is_closed)
                figures.unit_s += time.perf_counter() - began
                if unit is None:
                    break
                try:
                    texts = self._prepare(unit)
                except BaseException:
                    self._work.fail(unit)
                    raise
                if not self._texts.put(texts):
                    self._work.give_back(unit)
        except BaseException as failure:
            error = failure  # `end` hands it to the model's thread, which raises it
        self._texts.end(error)

    def _prepare(self, unit: Unit) -> _Texts:
        began = time.perf_counter()
        records = self._read(unit)
        read = time.perf_counter()
        rows = self._preparer.prepare(unit, records)
        self.figures.read_s += read - began
        self.figures.tokenise_s += time.perf_counter() - read
        return _Texts(unit, rows)

    def _write_on(self) -> None:
        for done in self._vectors:
            began = time.perf_counter()
            try:
                self._put(done)
            except BaseException:
                self._work.fail(done.unit)
                # Close both pipes, so that the other two stages stop waiting.
                left = [it.unit for it in self._vectors.close()]
                for unit in [*left, *(it.unit for it in self._texts.close())]:
                    self._work.give_back(unit)
                raise
            self.figures.write_s += time.perf_counter() - began

    def _put(self, done: _Done) -> None:
        # If another worker took the unit over, drop our result: that worker writes it.
        if not self._work.holds(done.unit):
            self._work.give_back(done.unit)
            return
        try:
            self._write(done.unit, done.vectors_RD, done.rows.records, done.rows.kept)
        except OSError:
            # The worker that closes the encoding removes temporary files, even ours once another
            # worker has written our unit.
            if self._work.holds(done.unit):
                raise
        self._work.finish(done.unit)
