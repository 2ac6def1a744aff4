"""The door that checks anything: what is whole passes, and a flipped byte anywhere is found by the
name of its file."""

import contextlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.conftest import ROOT
from tests.encoding.conftest import embed
from tests.text.test_pairs import made as made_pairs
from toolkit import train, verify
from toolkit.base.errors import BadInput
from toolkit.encoding.encoder import Encoder
from toolkit.runs.launched import Launched, write_launched
from toolkit.settings.recipes import load_recipe, to_yaml
from toolkit.text.pairs import open_pairs
from toolkit.text.shards import open_shards

KINDS = ("checkpoint", "encoder", "shards", "pairs", "encoding")
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory, shards: Path, tiny_model: Path) -> Path:
    """A folder with one of everything, each made by its own program; not to be changed for good."""
    folder = tmp_path_factory.mktemp("things")
    shutil.copytree(shards, folder / "shards", ignore=shutil.ignore_patterns(".cache"))
    data = [f"data.train={folder / 'shards'}", f"model.base={tiny_model}"]
    data += [f"run_dir={folder / 'run'}", "train.steps=3", "train.save_every_steps=1"]
    assert train.main(["tiny_mntp", *data]) == 0
    open_shards(folder / "shards")  # which makes the Arrow copy
    open_pairs(made_pairs(folder / "pairs"))
    model = f"encoder.model={folder / 'run' / 'encoder'}"
    embed(folder / "encoding", model, f"corpus.input={folder / 'shards'}")
    (folder / "checkpoint").symlink_to(folder / "run" / "checkpoints" / "step-00000003")
    (folder / "encoder").symlink_to(folder / "run" / "encoder")
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Check what must be refused; the one line that says why."""

    def call(*paths: Path) -> str:
        capsys.readouterr()
        assert verify.main([str(path) for path in paths]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return call


@contextlib.contextmanager
def changed(path: Path, *, place: int, to: int) -> Iterator[None]:
    """A file with another byte, for a while."""
    before = path.read_bytes()
    path.write_bytes(before[:place] + bytes([to]) + before[place + 1 :])
    try:
        yield
    finally:
        path.write_bytes(before)


def checked_files(thing: Path) -> list[Path]:
    """The files of a thing whose damage must be found. Left out are
    - empty ones, the COMMITTED marker and lock files: there is nothing to flip;
    - the Arrow copies in .cache: their padding cannot matter, and their rows have a test below;
    - dataset_info.json beside them: each opening compares rows and columns with the manifest;
    - the other JSON in .cache: what is damaged there is made again, or refused by who reads it;
    - the card of an encoder, README.md: people edit it.
    """
    return [
        path
        for path in sorted(thing.rglob("*"))
        if path.is_file()
        and path.stat().st_size
        and path.name != "README.md"
        and not (".cache" in path.parts and path.suffix in (".arrow", ".json"))
    ]


def a_flip(path: Path, *, chance: random.Random) -> tuple[int, int]:
    """A place and the byte that stands there after the damage. Not a blank for a blank between the
    words of JSON, which nobody reads: what it says must have changed."""
    data = path.read_bytes()
    while True:
        place = chance.randrange(len(data))
        to = data[place] ^ chance.randrange(1, 256)
        harmed = data[:place] + bytes([to]) + data[place + 1 :]
        try:
            if path.suffix != ".json" or json.loads(harmed) != json.loads(data):
                return place, to
        except ValueError:
            return place, to


def flip_and_look(things: Path, *, flips: int, refused: Refused) -> None:
    for number in range(flips):
        chance = random.Random(number)
        thing = things / KINDS[number % len(KINDS)]
        path = chance.choice(checked_files(thing))
        place, to = a_flip(path, chance=chance)
        with changed(path, place=place, to=to):
            line = refused(thing)
        assert f"error: {path}: " in line, f"flip {number}, byte {place} of {path}: {line}"


def test_a_flipped_byte_is_found_by_name(things: Path, refused: Refused) -> None:
    flip_and_look(things, flips=40, refused=refused)


def test_a_flipped_byte_of_an_export_is_found_before_it_embeds(things: Path) -> None:
    encoder = things / "run" / "encoder"
    Encoder.from_pretrained(str(encoder))
    for name in ("model.safetensors", "config.json", "tokenizer.json", "origin.json"):
        for place, of in ((encoder / name, encoder), (encoder / name, things / "run")):
            size = place.stat().st_size
            with (
                changed(place, place=size // 2, to=place.read_bytes()[size // 2] ^ 1),
                pytest.raises(BadInput, match=name),
            ):
                Encoder.from_pretrained(str(of))


@pytest.mark.slow
def test_500_flipped_bytes_are_found_by_name(things: Path, refused: Refused) -> None:
    flip_and_look(things, flips=500, refused=refused)


def test_everything_that_is_whole_passes(
    things: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [things / name for name in ("run", "shards", "pairs", "encoding")]
    assert verify.main([*map(str, paths), str(tiny_model)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    told = dict(line.split(": ", 1) for line in captured.out.splitlines())
    run = things / "run"
    assert list(told) == [
        *(str(run / "checkpoints" / f"step-0000000{step}") for step in (2, 3)),
        *map(str, [run / "encoder", *paths[1:], tiny_model]),
    ]
    for name, line in told.items():
        files = [path for path in Path(name).rglob("*") if path.is_file()]
        num_files = sum(".cache" not in path.parts for path in files)
        assert f", {num_files} files, " in line
        assert line.startswith("readable (no digests" if name == str(tiny_model) else "whole, ")
        assert line.endswith(" MB")


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_file_is_named(kind: str, things: Path, tmp_path: Path, refused: Refused) -> None:
    copy = tmp_path / (things / kind).resolve().name
    shutil.copytree(things / kind, copy)
    assert verify.main([str(copy)]) == 0
    for path in checked_files(copy):
        path.rename(tmp_path / "aside")
        line = refused(copy)
        assert str(path.relative_to(tmp_path)) in line or (
            path.name == "manifest.json" and f"error: {copy}: " in line
        )
        (tmp_path / "aside").rename(path)
    (copy / "COMMITTED").unlink(missing_ok=True)
    if kind != "encoding":  # which has no marker: its manifest is it
        assert "COMMITTED" in refused(copy)


@pytest.mark.parametrize("kind", ["shards", "pairs"])
def test_a_harmed_arrow_copy_is_found(kind: str, things: Path, refused: Refused) -> None:
    """Whatever flip changes the rows that are read from it, and no flip that does not."""
    (path,) = (things / kind / ".cache").rglob("*.arrow")
    data, found = path.read_bytes(), 0
    with pa.ipc.open_stream(data) as reader:
        rows = reader.read_all()
    for number in range(40):
        chance = random.Random(number)
        place, to = chance.randrange(len(data)), chance.randrange(256)
        harmed = data[:place] + bytes([to]) + data[place + 1 :]
        try:
            with pa.ipc.open_stream(harmed) as reader:
                read = reader.read_all()
            read.validate(full=True)
            same = read.equals(rows)
        except (OSError, ValueError, pa.ArrowException):
            same = False
        with changed(path, place=place, to=to):
            if same:
                assert verify.main([str(things / kind)]) == 0
            else:
                found += 1
                assert f"{path}: is damaged" in refused(things / kind)
    assert found > 5


def test_a_damaged_checkpoint_does_not_hide_the_others(
    things: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = things / "run" / "checkpoints"
    with changed(checkpoints / "step-00000002" / "state.json", place=5, to=0):
        assert verify.main([str(things / "run"), str(things / "pairs")]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "step-00000002/state.json: is not valid JSON" in captured.err
    assert [line.partition(": ")[0] for line in captured.out.splitlines()] == [
        str(checkpoints / "step-00000003"),
        str(things / "run" / "encoder"),
        str(things / "pairs"),
    ]


def test_a_lost_marker_in_a_run_is_named(things: Path, tmp_path: Path, refused: Refused) -> None:
    """Training would go on from the checkpoint before it, and say nothing."""
    shutil.copytree(things / "run", tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000003" / "COMMITTED").unlink()
    assert "step-00000003: is not a whole checkpoint (no COMMITTED" in refused(tmp_path / "run")


def test_a_truncated_weights_file_of_a_model_is_named(
    tiny_model: Path, tmp_path: Path, refused: Refused
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path}: is not a whole safetensors file" in refused(tmp_path / "model")
    path.unlink()
    assert "has no weights (*.safetensors)" in refused(tmp_path / "model")


def test_what_is_nothing_known_is_told_what_would_do(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").touch()
    for path, message in (
        (tmp_path, "nothing in it can be checked"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "nowhere", "no such directory"),
    ):
        line = refused(path)
        assert f"error: {path}: {message}; give a run directory or a checkpoint of " in line
        assert "an encoder of toolkit.export" in line


def test_a_run_without_a_checkpoint_is_no_whole_run(
    things: Path, tmp_path: Path, refused: Refused
) -> None:
    shutil.copy(things / "run" / "config.yaml", tmp_path)
    assert "has no checkpoint yet" in refused(tmp_path)


def test_an_encoder_without_digests_is_not_taken_for_whole(
    things: Path, tmp_path: Path, refused: Refused
) -> None:
    shutil.copytree(things / "encoder", tmp_path / "encoder")
    (tmp_path / "encoder" / "origin.json").write_text('{"kind": "mntp", "step": 3}\n')
    assert "origin.json: records no digests" in refused(tmp_path / "encoder")


def test_the_help_text_does_not_wait_for_torch(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        verify.main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "usage: python -m toolkit.verify" in printed
    assert "-m toolkit.verify runs/" in printed.partition("example")[2]
    code = "import sys, toolkit.verify; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_a_pipeline_is_the_sum_of_its_stages(
    things: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it was moved to, and when a stage has not begun; a damaged one hides no other."""
    run_dir = tmp_path / "pipeline"
    shutil.copytree(things / "run", run_dir / "mntp")
    shutil.copytree(things / "encoding", run_dir / "embeddings")
    pipeline = load_recipe("tiny_pipeline", overrides=["run_dir=runs/elsewhere"])
    (run_dir / "config.yaml").write_text(to_yaml(pipeline))
    launched = [Launched("mntp", "mntp", "/nowhere/mntp", "/nowhere/logs/mntp", 3)]
    write_launched(run_dir, launched)
    assert verify.main([str(run_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert str(run_dir / "mntp" / "encoder") in lines[-3] and "embeddings: whole" in lines[-2]
    summed = f"{run_dir}: pipeline, "
    assert lines[-1] == f"{summed}2 of 3 stages whole, simcse has not begun"
    state = run_dir / "mntp" / "checkpoints" / "step-00000003" / "state.json"
    with changed(state, place=5, to=0):
        assert verify.main([str(run_dir)]) == 2
    captured = capsys.readouterr()
    assert f"{state}: is not valid JSON" in captured.err and captured.err.count("\n") == 1
    said = "1 of 3 stages whole, mntp is not, simcse has not begun"
    assert captured.out.splitlines()[-1] == summed + said
    for stage in ("mntp", "embeddings"):
        shutil.rmtree(run_dir / stage)
    assert verify.main([str(run_dir)]) == 2
    assert capsys.readouterr().err == f"error: {run_dir}: none of its stages has begun\n"


def test_scores_are_read(tmp_path: Path, refused: Refused) -> None:
    part = tmp_path / "parts" / "one" / "STS.json"
    part.parent.mkdir(parents=True)
    part.write_text('{"scores": {}}')
    (tmp_path / "scores.json").write_text("{}")
    assert verify.main([str(tmp_path)]) == 0
    part.write_text('{"scores": {')
    assert f"{part}: is not valid JSON" in refused(tmp_path)
