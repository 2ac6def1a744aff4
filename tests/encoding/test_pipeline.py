"""Reading, the model and writing beside each other; and how each of them may end."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.encoding.making import output_of
from toolkit.base.layout import LEASE_DIR
from toolkit.cluster.leases import Leases
from toolkit.encoding.batches import Prepared
from toolkit.encoding.encoder import Encoder
from toolkit.encoding.formats import Vectors
from toolkit.encoding.output import Output
from toolkit.encoding.pipeline import Figures, Pipeline
from toolkit.encoding.schedule import Claims
from toolkit.encoding.store import VectorStore
from toolkit.encoding.units import Unit
from toolkit.settings.schema import EncoderSettings

ROWS, UNIT_ROWS = 40, 4
Records = Sequence[Mapping[str, str]]


class SlowEncoder(Encoder):
    """The tiny encoder, and then a pause; it fails at its `fails`-th unit."""

    pause_s = 0.0
    fails = 0
    _done = 0

    def embed(
        self, prepared: Prepared, *, on_rows: Callable[[int, int], None] | None = None
    ) -> Vectors:
        vectors_RD = super().embed(prepared, on_rows=on_rows)
        time.sleep(self.pause_s)
        self._done += 1
        if self._done == self.fails:
            raise RuntimeError("out of memory")
        return vectors_RD


@pytest.fixture
def encoder(tiny_model: Path) -> SlowEncoder:
    settings = EncoderSettings(model=str(tiny_model), max_tokens=16)
    return SlowEncoder(settings, device=torch.device("cpu"))


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return output_of(tmp_path / "out", rows=ROWS, unit_rows=UNIT_ROWS)


def records_of(unit: Unit) -> list[dict[str, str]]:
    return [
        {"id": f"id{n}", "title": f"T{n}", "text": f"The number {n}."}
        for n in range(unit.start, unit.stop)
    ]


def pipeline_of(
    output: Output,
    encoder: Encoder,
    *,
    leases: Leases,
    read: Callable[[Unit], Records] = records_of,
    write: Callable[[Unit, Vectors, Records], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Pipeline:
    work = Claims(output, leases=leases, first=0, should_stop=should_stop)
    return Pipeline(
        work,
        encoder=encoder,
        read=read,
        write=output.write
        if write is None
        else lambda unit, found, rows, _: write(unit, found, rows),
        on_rows=lambda rows, tokens: None,
    )


@pytest.fixture
def leases(output: Output) -> Leases:
    return Leases(output.directory / LEASE_DIR, lease_s=60)


def test_the_vectors_are_those_of_the_encoder(
    output: Output, encoder: SlowEncoder, leases: Leases
) -> None:
    with leases:
        figures = pipeline_of(output, encoder, leases=leases).run()
    assert output.write_manifest() == []
    texts = [record["text"] for unit in output.units for record in records_of(unit)]
    np.testing.assert_allclose(
        VectorStore(output.directory).vectors(), encoder.encode(texts), atol=1e-5
    )
    assert figures.rows == ROWS
    assert figures.tokens == sum(len(row) for row in encoder.tokenizer.encode(texts))


def test_the_stages_work_beside_each_other(
    output: Output, encoder: SlowEncoder, leases: Leases
) -> None:
    """Three stages of 50 ms: about 50 ms a unit, not 150; and little of it outside of the model."""
    encoder.pause_s = pause_s = 0.05

    def read(unit: Unit) -> Records:
        time.sleep(pause_s * 0.8)
        return records_of(unit)

    def write(unit: Unit, vectors_RD: Vectors, records: Records) -> None:
        time.sleep(pause_s * 0.8)
        output.write(unit, vectors_RD, records)

    with leases:
        figures = pipeline_of(output, encoder, leases=leases, read=read, write=write).run()
    parts_s = figures.model_s + figures.read_s + figures.write_s
    assert parts_s > 2.5 * len(output.units) * pause_s
    assert figures.total_s < 0.9 * parts_s
    assert " 0.0 rows/s" not in str(figures)
    assert "% of the time outside of the model" in str(figures)


@pytest.mark.parametrize(("slow", "waits"), [("read", "text_s"), ("write", "room_s")])
def test_the_waits_tell_the_slow_stage(
    slow: str, waits: str, output: Output, encoder: SlowEncoder, leases: Leases
) -> None:
    def read(unit: Unit) -> Records:
        time.sleep(0.2 if slow == "read" else 0)
        return records_of(unit)

    def write(unit: Unit, vectors_RD: Vectors, records: Records) -> None:
        time.sleep(0.2 if slow == "write" else 0)
        output.write(unit, vectors_RD, records)

    with leases:
        figures = pipeline_of(output, encoder, leases=leases, read=read, write=write).run()
    other = {"text_s": "room_s", "room_s": "text_s"}[waits]
    assert getattr(figures, waits) > getattr(figures, other)
    assert getattr(figures, waits) > 0.5


@pytest.mark.parametrize("stage", ["read", "model", "write"])
def test_an_error_of_any_stage_ends_all_and_gives_everything_back(
    stage: str, output: Output, encoder: SlowEncoder, leases: Leases
) -> None:
    """At the fourth unit; those before it are written, unless the error came first."""
    broken = output.units[3]

    def read(unit: Unit) -> Records:
        if stage == "read" and unit == broken:
            raise RuntimeError("out of memory")
        return records_of(unit)

    def write(unit: Unit, vectors_RD: Vectors, records: Records) -> None:
        if stage == "write" and unit == broken:
            raise RuntimeError("out of memory")
        output.write(unit, vectors_RD, records)

    encoder.fails = 4 if stage == "model" else 0
    with leases:
        with pytest.raises(RuntimeError, match="out of memory"):
            pipeline_of(output, encoder, leases=leases, read=read, write=write).run()
        assert leases.taken() == {}
    assert output.finished() == {unit.name for unit in output.units[:3]}
    assert not [t for t in threading.enumerate() if t.name in ("reader", "writer")]


def take_over(output: Output, unit: Unit) -> None:
    """What another worker does with a lease that it takes for stale."""
    (output.directory / LEASE_DIR / f"{unit.name}.1").write_text("")


@pytest.mark.parametrize("when", ["before it is written", "while it is written"])
def test_who_was_taken_over_drops_what_it_made(
    when: str, output: Output, encoder: SlowEncoder, leases: Leases
) -> None:
    """And is not troubled if its temporary files are removed under its hands."""
    lost, written = output.units[3], list[Unit]()

    def read(unit: Unit) -> Records:
        if unit == lost and when.startswith("before"):
            take_over(output, unit)
        return records_of(unit)

    def write(unit: Unit, vectors_RD: Vectors, records: Records) -> None:
        if unit == lost:
            assert not when.startswith("before")
            take_over(output, unit)
            raise FileNotFoundError(unit.name)
        output.write(unit, vectors_RD, records)
        written.append(unit)

    with leases:
        pipeline_of(
            output,
            encoder,
            leases=leases,
            read=read,
            write=write,
            should_stop=lambda: len(written) == len(output.units) - 1,
        ).run()
        assert leases.taken() == {lost.name: 1}  # the other's
    assert written == [unit for unit in output.units if unit != lost]


def test_an_error_is_not_kept_back_until_the_others_are_done(
    output: Output, encoder: SlowEncoder, leases: Leases
) -> None:
    """The writer fails while the reader waits for a unit that another worker has."""

    def write(unit: Unit, vectors_RD: Vectors, records: Records) -> None:
        time.sleep(0.3)
        take_over(output, unit)  # else the reader would get it again
        raise RuntimeError("broken")

    with leases, Leases(output.directory / LEASE_DIR, lease_s=60) as others:
        assert all(others.take(unit.name) for unit in output.units[1:])
        began = time.monotonic()
        with pytest.raises(RuntimeError, match="broken"):
            pipeline_of(output, encoder, leases=leases, write=write).run()
        assert time.monotonic() - began < 5


def test_told_to_stop_it_finishes_a_unit_and_gives_back_the_others(
    output: Output, encoder: SlowEncoder, leases: Leases
) -> None:
    encoder.pause_s = 0.05
    written = list[str]()

    def write(unit: Unit, vectors_RD: Vectors, records: Records) -> None:
        output.write(unit, vectors_RD, records)
        written.append(unit.name)

    with leases:
        figures = pipeline_of(
            output, encoder, leases=leases, write=write, should_stop=lambda: len(written) >= 2
        ).run()
        assert leases.taken() == {}
    assert 2 <= len(written) <= 4
    assert figures.rows == len(written) * UNIT_ROWS
    assert output.finished() == set(written)


def test_a_worker_has_few_units_at_a_time(
    output: Output, encoder: SlowEncoder, leases: Leases
) -> None:
    """One that is read, one in the model, one or two that are written; however slow the model."""
    most = 0

    def write(unit: Unit, vectors_RD: Vectors, records: Records) -> None:
        nonlocal most
        most = max(most, len(leases.taken()))
        output.write(unit, vectors_RD, records)

    encoder.pause_s = 0.02
    with leases:
        pipeline_of(output, encoder, leases=leases, write=write).run()
    assert 1 <= most <= 4


def test_nothing_to_do_takes_no_time() -> None:
    assert str(Figures()).startswith("0 rows, 0 tokens in 0.0 s")
