"""One output directory, one encoding: workers that arrive together, and units that are foreign."""

import itertools
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import contents
from tests.encoding.conftest import embed
from tests.encoding.making import output_of, write_all, write_chunks
from toolkit import verify
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_json
from toolkit.base.sealed import SELF_DIGEST, content_digest
from toolkit.encoding.output import MARKER_DIGEST, Output
from toolkit.encoding.store import VectorStore
from toolkit.encoding.units import FORMAT, claim_directory, facts_digest, units
from toolkit.text.shards import open_shards

ROWS, UNIT_ROWS, WIDTH = 6, 2, 3
CLAIMS = 10
BOUNDS = [*range(0, ROWS, UNIT_ROWS), ROWS]


def facts_of(worker: int) -> dict[str, object]:
    facts = {
        "format": FORMAT,
        "corpus": "c",
        "model": "m",
        "rows": ROWS,
        "bounds": [0, 2, 4, 6],
        "encoder": {"max_tokens": 16 + worker},
        "output": {"vectors": "fp32", "dims": None, "normalize": False},
    }
    return {**facts, "digest": facts_digest(facts)}


def digest_of(seed: int) -> str:
    return facts_digest({**facts_of(0), "bounds": BOUNDS, "seed": seed})


OURS, THEIRS = digest_of(1), digest_of(2)


def claim_many(folder: Path, worker: int, barrier: Barrier) -> None:
    """Claim one directory after another, each at the same moment as the other worker does; and
    write which of them we have, for `folder`/claimed-<worker>.json."""
    got = []
    sync = os.fsync

    def together(descriptor: int) -> None:
        """What is written is not there yet, and both have looked."""
        sync(descriptor)
        os.fsync = sync
        barrier.wait(timeout=60)

    for number in range(CLAIMS):
        os.fsync = together
        try:
            claim_directory(
                folder / str(number), facts=facts_of(worker), model=f"m{worker}", corpus="c"
            )
            got.append(number)
        except BadInput:
            pass
        barrier.wait(timeout=60)
    write_json(folder / f"claimed-{worker}.json", got)


def test_of_two_workers_with_other_settings_that_arrive_together_one_goes_on(
    tmp_path: Path,
) -> None:
    """Two processes, stopped between their look and their write until both are there."""
    start = multiprocessing.get_context("spawn")
    barrier = start.Barrier(2)
    workers = [start.Process(target=claim_many, args=(tmp_path, n, barrier)) for n in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    claimed = [read_json(tmp_path / f"claimed-{n}.json") for n in (0, 1)]
    assert sorted(claimed[0] + claimed[1]) == list(range(CLAIMS))  # each directory by one
    for worker, numbers in enumerate(claimed):
        for number in numbers:
            plan = read_json(tmp_path / str(number) / "plan.json")
            assert plan == {
                **facts_of(worker),
                "model_path": f"m{worker}",
                "adapter_paths": [],
                "corpus_path": "c",
            }
            assert [path.name for path in (tmp_path / str(number)).iterdir()] == ["plan.json"]


def test_an_encoding_that_arrives_between_look_and_write_is_not_mixed_with(
    tmp_path: Path, inputs: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole program: another encoding is made from its begin to its end at that moment."""
    sync, output = os.fsync, tmp_path / "out"
    for named in inputs:  # so that the plan is the first file that is written
        if named.startswith("corpus.input="):
            open_shards(Path(named.partition("=")[2]))

    def other_first(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        sync(descriptor)
        embed(output, *inputs, "vectors=fp16")

    monkeypatch.setattr(os, "fsync", other_first)
    with pytest.raises(BadInput, match="holds an encoding of another output; choose another"):
        embed(output, *inputs)
    assert VectorStore(output, verify=True).form == "fp16"


def encoding(folder: Path, *, seed: int, digest: str, first_id: int = 0) -> Output:
    """A whole encoding without a model; those of two digests differ in every unit."""
    facts = {**facts_of(0), "bounds": BOUNDS, "digest": digest, "seed": seed}
    claim_directory(folder, facts=facts, model="m", corpus="c")
    output = Output(folder, digest, units(BOUNDS))
    vectors = np.random.default_rng(seed).standard_normal((ROWS, WIDTH)).astype(np.float32)
    for unit in output.units:
        records = [
            {"id": f"id{first_id + n}", "title": f"T{n}"} for n in range(unit.start, unit.stop)
        ]
        output.write(unit, vectors[unit.start : unit.stop], records)
    assert output.write_manifest() == []
    return output


def as_before(folder: Path) -> None:
    """A manifest as one was made before units were compared with the plan: of whatever is there."""
    plan = read_json(folder / "plan.json")
    found = {p.stem: read_json(p) for p in sorted((folder / "units").glob("*.json"))}
    content = {**plan, "units": found}
    sealed = {**content, SELF_DIGEST: content_digest(content)}
    (folder / "manifest.json").write_text(json.dumps(sealed))


def copy_unit(source: Path, target: Path, *, number: int, to: int | None = None) -> None:
    for path in (source / "units").glob(f"{number:05d}.*"):
        name = path.name.replace(f"{number:05d}", f"{number if to is None else to:05d}")
        shutil.copyfile(path, target / "units" / name)


def test_a_foreign_unit_is_refused_by_manifest_store_and_verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = encoding(tmp_path / "ours", seed=1, digest=OURS)
    theirs = encoding(tmp_path / "theirs", seed=2, digest=THEIRS)
    copy_unit(theirs.directory, ours.directory, number=1)
    (ours.directory / "manifest.json").unlink()
    foreign = r"units/00001\.json: belongs to another encoding"
    with pytest.raises(BadInput, match=foreign):
        ours.write_manifest()
    assert not (ours.directory / "manifest.json").exists()
    as_before(ours.directory)
    for thorough in (False, True):
        with pytest.raises(BadInput, match=foreign):
            VectorStore(ours.directory, verify=thorough)
    assert verify.run(ours.directory) == 2
    assert "units/00001.json: belongs to another encoding" in capsys.readouterr().err


def test_a_unit_in_the_place_of_another_is_made_again(tmp_path: Path) -> None:
    ours = encoding(tmp_path / "ours", seed=1, digest=OURS)
    copy_unit(ours.directory, ours.directory, number=0, to=2)
    marker = ours.directory / "units" / "00002.json"
    told = json.loads(marker.read_text().replace("00000.", "00002."))
    write_json(marker, told)  # even with the names of its files put right
    assert not ours.is_finished(ours.units[2])
    assert ours.write_manifest() == ours.damaged(ours.units) == [ours.units[2]]
    as_before(ours.directory)
    with pytest.raises(BadInput, match=r"00002\.json: is of the rows from 0 on, not from 4 on"):
        VectorStore(ours.directory)


def test_units_that_are_not_of_the_plan_do_not_count(tmp_path: Path) -> None:
    ours = encoding(tmp_path / "ours", seed=1, digest=OURS)
    copy_unit(ours.directory, ours.directory, number=0, to=9)
    assert ours.finished() == {"00000", "00001", "00002"}


Change = Callable[[dict[str, object]], object]
MARKER_HARMS: dict[str, tuple[Change, str]] = {
    "fewer rows": (lambda m: m.update(rows=1), "has 1 rows, not 2"),
    "more rows": (lambda m: m.update(rows=3), "has 3 rows, not 2"),
    "rows in words": (lambda m: m.update(rows="2"), "is not the marker of a unit"),
    "no start": (lambda m: m.pop("start"), "is not the marker of a unit"),
    "no digests": (lambda m: m.pop("sha256"), "is not the marker of a unit"),
    "a file too many": (
        lambda m: m.update(sha256={"../../x": "", "00001.json": ""}),
        "is not the marker of a unit",
    ),
    "another width": (lambda m: m.update(width=4), "has vectors of 4 numbers, others of 3"),
}


@pytest.mark.parametrize("harm", MARKER_HARMS)
def test_a_marker_that_disagrees_with_the_plan_is_refused(harm: str, tmp_path: Path) -> None:
    ours = encoding(tmp_path / "ours", seed=1, digest=OURS)
    change, said = MARKER_HARMS[harm]
    path = ours.directory / "units" / "00001.json"
    told = read_json(path)
    change(told)
    kept = {key: value for key, value in told.items() if key != MARKER_DIGEST}
    write_json(path, {**kept, MARKER_DIGEST: content_digest(kept)})
    if harm == "another width":  # of a whole unit: it is for a person to say which is wrong
        with pytest.raises(BadInput, match=said):
            ours.write_manifest()
    else:
        assert ours.write_manifest() == ours.damaged(ours.units) == [ours.units[1]]
    as_before(ours.directory)
    with pytest.raises(
        BadInput, match=rf"00001\.json: {said}|json: is damaged or not ours \(.units\.00001\."
    ):
        VectorStore(ours.directory)


def test_a_plan_whose_rows_are_not_those_of_its_units_is_refused(tmp_path: Path) -> None:
    ours = encoding(tmp_path / "ours", seed=1, digest=OURS)
    plan = read_json(ours.directory / "plan.json")
    for bounds in ([0, 2, 4, 7], [1, 2, 4, 6], [0, 4, 2, 6], [], "0246"):
        changed = {**plan, "bounds": bounds}
        write_json(ours.directory / "plan.json", {**changed, "digest": facts_digest(changed)})
        as_before(ours.directory)
        said = (
            r"manifest\.json: (its units do not cover its 6 rows|is damaged or not ours .'bounds)"
        )
        with pytest.raises(BadInput, match=said):
            VectorStore(ours.directory)


def test_a_manifest_is_made_of_its_own_plan_only(tmp_path: Path) -> None:
    """Somebody has removed the directory under a worker, and another encoding has taken it."""
    ours = encoding(tmp_path / "ours", seed=1, digest=OURS)
    shutil.move(ours.directory, tmp_path / "kept")
    theirs = encoding(ours.directory, seed=2, digest=THEIRS)
    for unit in ours.units:  # what the worker goes on to write
        copy_unit(tmp_path / "kept", theirs.directory, number=unit.number)
    before = contents(theirs.directory)
    with pytest.raises(BadInput, match=r"plan\.json: belongs to another encoding"):
        ours.write_manifest()
    assert contents(theirs.directory) == before


def test_ids_that_two_units_share_are_found_by_verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both digests right: a defect of ours, or a forgery."""
    ours = encoding(tmp_path / "ours", seed=1, digest=OURS)
    records = [{"id": name, "title": ""} for name in ("id4", "id1")]
    ours.write(ours.units[0], np.ones((2, WIDTH), dtype=np.float32), records)
    assert ours.write_manifest() == []
    VectorStore(ours.directory)
    assert verify.run(ours.directory) == 2
    said = capsys.readouterr().err
    assert "units/00002.ids.parquet: row 4 has the id 'id4', and so has row 0" in said


def test_chunks_that_are_not_of_the_rows_of_their_unit_are_found_by_verify(tmp_path: Path) -> None:
    output = output_of(tmp_path, rows=4, unit_rows=2, chunks={"tokens": 8, "overlap": 2})
    vectors = np.random.default_rng(1).standard_normal((7, WIDTH)).astype(np.float32)
    write_chunks(output, vectors, counts=[1, 3, 1, 2])
    VectorStore(tmp_path, verify=True)

    def records(*rows: tuple[int, int]) -> list[dict[str, object]]:
        return [
            {"id": f"id{n}", "title": "", "row": n, "chunk": k, "begin": 0, "end": 1}
            for n, k in rows
        ]

    for wrong in (
        records((2, 0), (2, 1), (1, 0)),  # a row of the unit before
        records((3, 0), (2, 0), (2, 1)),  # in another order
        records((2, 0), (3, 0), (3, 2)),  # a chunk is missing
    ):
        output.write(output.units[1], vectors[4:], wrong)
        assert output.write_manifest() == []
        with pytest.raises(BadInput, match=r"00001\.ids\.parquet: has other rows than the plan"):
            VectorStore(tmp_path, verify=True)


Copied = list[tuple[str, int, int, frozenset[str]]]
SUFFIXES = (".safetensors", ".ids.parquet", ".json")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Output, dict[str, bytes]]:
    """An encoding to be harmed, and all files of it and of another as they were."""
    folder = tmp_path_factory.mktemp("both")
    ours = encoding(folder / "ours", seed=1, digest=OURS)
    encoding(folder / "theirs", seed=2, digest=THEIRS)
    return ours, contents(folder)


@given(
    copied=st.lists(
        st.tuples(
            st.sampled_from(("ours", "theirs")),
            st.integers(0, 2),
            st.integers(0, 2),
            st.frozensets(st.sampled_from(SUFFIXES), min_size=1),
        ),
        max_size=4,
    )
)
@settings(max_examples=200, deadline=None)
def test_whatever_is_copied_between_units_and_encodings_is_found(
    copied: Copied, both: tuple[Output, dict[str, bytes]]
) -> None:
    """Any files of any units, from there and from here: made again or refused by whoever makes the
    manifest; and refused by a store where somebody else has made one."""
    ours, files = both
    there = {name: data for name, data in files.items() if name.startswith("ours/")}
    for origin, source, target, suffixes in copied:
        for suffix in suffixes:
            data = files[f"{origin}/units/{source:05d}{suffix}"]
            there[f"ours/units/{target:05d}{suffix}"] = data
    is_whole = there.items() <= files.items()
    for name, data in there.items():
        (ours.directory.parent / name).write_bytes(data)
    try:
        to_do = ours.damaged(ours.units)
    except BadInput:
        to_do = list(ours.units)
    assert (not to_do) == is_whole
    as_before(ours.directory)
    try:
        VectorStore(ours.directory, verify=True)
        accepted = True
    except BadInput:
        accepted = False
    assert accepted == is_whole


def test_every_pair_of_units_may_not_change_places(tmp_path: Path) -> None:
    """With all their digests, under each other's names."""
    ours = encoding(tmp_path / "ours", seed=1, digest=OURS)
    for one, other in itertools.permutations(range(3), 2):
        shutil.copytree(ours.directory, tmp_path / "copy", dirs_exist_ok=True)
        copy = Output(tmp_path / "copy", OURS, ours.units)
        copy_unit(ours.directory, copy.directory, number=one, to=other)
        assert copy.damaged(copy.units) == [copy.units[other]]


def test_what_is_whole_stays_whole(tmp_path: Path) -> None:
    output = output_of(tmp_path, rows=5, unit_rows=2)
    write_all(output, np.ones((5, WIDTH), dtype=np.float32))
    assert output.damaged(output.units) == []
    assert verify.run(tmp_path) == 0
