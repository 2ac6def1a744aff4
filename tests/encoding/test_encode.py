"""The encoding program: restarts, interruptions and any number of workers give the same bytes."""

import errno
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import contents, run
from tests.encoding.conftest import embed, flip_a_byte
from tests.mpi import mpi_command, mpi_environ
from tests.text.making import shard_articles
from toolkit import encode, search
from toolkit.base.errors import BadInput
from toolkit.cluster.leases import Leases
from toolkit.encoding import output as writing
from toolkit.encoding.encoder import Encoder
from toolkit.encoding.formats import unit_length
from toolkit.encoding.store import VectorStore
from toolkit.settings.schema import EncoderSettings
from toolkit.text.records import Article
from toolkit.text.shards import open_shards

Inputs = tuple[str, str]
NUM_UNITS = 11  # 170 articles, 16 a unit


def array_task(task: int, *, count: int, first: int = 0, step: int = 1) -> dict[str, str]:
    """The environment of one task of `--array=first-...:step`."""
    return {
        "SLURM_ARRAY_TASK_ID": str(first + task * step),
        "SLURM_ARRAY_TASK_COUNT": str(count),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_ARRAY_TASK_STEP": str(step),
    }


def times(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (output / "units").iterdir()}


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A finished encoding that a test may harm."""
    shutil.copytree(whole, tmp_path / "copied")
    return tmp_path / "copied"


def test_what_a_worker_says_of_itself_is_so(
    tmp_path: Path, inputs: Inputs, capsys: pytest.CaptureFixture[str]
) -> None:
    """Started by hand it knows of no others; and who embeds nothing has no figures."""
    embed(tmp_path / "out", *inputs)
    first = capsys.readouterr().out
    assert f":{os.getpid()} (claim): " in first and "worker 1 of 1" not in first
    assert "of the time outside of the model" in first
    embed(tmp_path / "out", *inputs)
    again = capsys.readouterr().out
    assert "embed: no unit was embedded here" in again and "outside of the model" not in again
    embed(tmp_path / "out", *inputs, "schedule=alone")
    assert "worker 1 of 1 (alone)" in capsys.readouterr().out


def test_every_article_has_its_vector(whole: Path, tiny_model: Path, shards: Path) -> None:
    found, corpus = VectorStore(whole), open_shards(shards)
    articles = corpus.records(0, corpus.num_rows)
    assert len(found.units) == NUM_UNITS
    assert found.ids() == [article["id"] for article in articles]
    settings = found.manifest["encoder"]
    assert settings["max_tokens"] == 16
    encoder = Encoder(EncoderSettings(model=str(tiny_model), **settings))
    sample = range(0, corpus.num_rows, 17)
    expected = encoder.encode([articles[row]["text"] for row in sample])
    np.testing.assert_allclose(found.vectors()[list(sample)], expected, atol=1e-5)


def test_a_restart_writes_no_finished_unit_again(copied: Path, inputs: Inputs) -> None:
    before, old = contents(copied), times(copied)
    embed(copied, *inputs)
    assert times(copied) == old
    assert contents(copied) == before


@pytest.mark.parametrize("harm", ["flipped vectors", "missing ids", "cut marker"])
def test_only_a_damaged_unit_is_made_again(
    harm: str, copied: Path, whole: Path, inputs: Inputs
) -> None:
    old = times(copied)
    if harm == "flipped vectors":
        flip_a_byte(copied / "units" / "00003.safetensors")
    elif harm == "missing ids":
        (copied / "units" / "00003.ids.parquet").unlink()
    else:
        (copied / "units" / "00003.json").write_text("{")
    embed(copied, *inputs)
    assert contents(copied) == contents(whole)
    new = times(copied)
    assert {name for name in new if new[name] != old[name]} == {
        "00003.safetensors",
        "00003.ids.parquet",
        "00003.json",
    }


@pytest.mark.parametrize("part", [".safetensors", ".ids.parquet", ".json"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    part: str, tmp_path: Path, whole: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before any of a unit's three files is there."""
    real = {name: getattr(writing, name) for name in ("write_atomic", "write_json")}

    class Killed(BaseException):
        pass

    def writer(name: str) -> object:
        def write(path: Path, content: object) -> None:
            if path.name == f"00004{part}":
                raise Killed
            real[name](path, content)

        return write

    output = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        for name in real:
            patch.setattr(writing, name, writer(name))
        with pytest.raises(Killed):
            embed(output, *inputs)
    assert not (output / "manifest.json").exists()
    done = times(output)
    assert "00003.json" in done
    assert "00004.json" not in done
    embed(output, *inputs)
    assert contents(output) == contents(whole)
    after = times(output)
    assert all(after[name] == at for name, at in done.items() if not name.startswith("00004"))


@pytest.mark.parametrize(("task", "count", "first", "step"), [(1, 2, 0, 1), (2, 3, 5, 2)])
def test_an_array_task_that_is_alone_does_everything(
    task: int, count: int, first: int, step: int, tmp_path: Path, whole: Path, inputs: Inputs
) -> None:
    """It begins at its own part: the units' times tell."""
    output = tmp_path / "shared"
    embed(output, *inputs, environ=array_task(task, count=count, first=first, step=step))
    assert contents(output) == contents(whole)
    begun = min(times(output), key=lambda name: times(output)[name])
    assert begun == f"{task * NUM_UNITS // count:05d}.safetensors"


def test_alone_needs_no_leases(tmp_path: Path, whole: Path, inputs: Inputs) -> None:
    embed(tmp_path / "alone", *inputs, "schedule=alone")
    assert contents(tmp_path / "alone") == contents(whole)


def test_what_others_are_at_is_waited_for(tmp_path: Path, whole: Path, inputs: Inputs) -> None:
    """Units that somebody has a lease of are left to them, until nothing moves there any more."""
    output = tmp_path / "shared"
    with Leases(tmp_path / "elsewhere", lease_s=60) as others:
        assert others.take("00004")
        (lease,) = (tmp_path / "elsewhere").iterdir()
        embed(output, *inputs)
        shutil.rmtree(output / "units")
        (output / "manifest.json").unlink()
        (output / "leases").mkdir()
        shutil.copy(lease, output / "leases" / "00004.0")
        began = time.monotonic()
        embed(output, *inputs, "lease_s=2")
        assert time.monotonic() - began >= 2
    assert contents(output) == contents(whole)
    last = max(times(output), key=lambda name: times(output)[name])
    assert last == "00004.json"


def other_corpus(shards: Path, folder: Path) -> str:
    """Shards of half the articles."""
    records = open_shards(shards).records(0, 85)
    shard_articles([Article(**record) for record in records], output=folder / "half")
    return f"corpus.input={folder / 'half'}"


def other_model(model: Path, folder: Path) -> str:
    """The same architecture with other weights."""
    shutil.copytree(model, folder / "model")
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] *= 2
    save_file(tensors, path, metadata={"format": "pt"})
    return f"encoder.model={folder / 'model'}"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("model", "model"),
        ("corpus", "corpus and rows"),
        ("encoder.max_tokens=17", "encoder"),
        ("encoder.dtype=bf16", "encoder"),
        ("encoder.causal=true", "encoder"),
        ("corpus.unit_rows=15", "unit_rows"),
        ("vectors=fp16", "output"),
        ("dims=64", "output"),
        ("normalize=true", "output"),
    ],
)
def test_an_output_directory_of_another_encoding_is_refused(
    change: str, named: str, whole: Path, inputs: Inputs, tmp_path: Path
) -> None:
    before = contents(whole)
    model, shards = (Path(text.partition("=")[2]) for text in inputs)
    made = {"model": other_model, "corpus": other_corpus}.get(change)
    override = change
    if made:
        override = made(model if change == "model" else shards, tmp_path)
    with pytest.raises(BadInput, match=f"holds an encoding of another {named}; choose another"):
        embed(whole, *inputs, override)
    assert contents(whole) == before


@pytest.mark.parametrize("form", ["fp32", "fp16", "bf16", "int8", "binary"])
def test_vectors_are_cut_and_divided_by_their_length_and_stored_as_asked(
    form: str, whole: Path, tmp_path: Path, inputs: Inputs, capsys: pytest.CaptureFixture[str]
) -> None:
    """And searched: the queries are cut as the rows were."""
    output = tmp_path / form
    embed(output, *inputs, f"vectors={form}", "dims=64", "normalize=true")
    found = VectorStore(output, verify=True)
    wanted = unit_length(VectorStore(whole).vectors()[:, :64])
    assert found.width == 64
    if form == "binary":
        np.testing.assert_array_equal(found.vectors(), np.where(wanted > 0, 1, -1))
    else:
        precision = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 1e-2, "int8": 0.51 / 127}[form]
        np.testing.assert_allclose(found.vectors(), wanted, atol=precision)
    assert found.ids() == VectorStore(whole).ids()
    article = open_shards(Path(inputs[1].partition("=")[2])).record(42)
    assert search.main([str(output), article["text"], "--top", "1", "--json"]) == 0
    (hit,) = json.loads(capsys.readouterr().out.splitlines()[-1])["hits"]
    assert hit["id"] == article["id"]


def test_more_numbers_than_a_vector_has_are_refused(tmp_path: Path, inputs: Inputs) -> None:
    with pytest.raises(BadInput, match=r"dims=257: the vectors of .*tiny-mistral have 256 numbers"):
        embed(tmp_path / "out", *inputs, "dims=257")
    assert not (tmp_path / "out").exists()


def test_what_changes_no_vector_is_no_other_encoding(
    copied: Path, inputs: Inputs, tiny_model: Path, tmp_path: Path
) -> None:
    """Where the model lies and how many rows share a batch."""
    shutil.copytree(tiny_model, tmp_path / "moved")
    old = times(copied)
    embed(copied, *inputs, "encoder.batch_tokens=99", f"encoder.model={tmp_path / 'moved'}")
    assert times(copied) == old


def test_a_foreign_directory_is_left_alone(tmp_path: Path, inputs: Inputs) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(BadInput, match="is neither empty nor an encoding"):
        embed(tmp_path, *inputs)
    assert contents(tmp_path) == {"thesis.tex": b"mine"}


def test_prefetched_and_launched_by_itself(tmp_path: Path, whole: Path, inputs: Inputs) -> None:
    """Both doors write into the output directory before the encoding does."""
    given = [*inputs, f"output_dir={tmp_path / 'out'}", "encoder.max_tokens=16"]
    run([sys.executable, "-m", "toolkit.prefetch", "tiny_embed", *given])
    command = [sys.executable, "-m", "toolkit.launch", "--recipe", "tiny_embed"]
    command += ["--cluster", "local", "--gpus-per-node", "0", *given]
    run(command)
    assert np.array_equal(VectorStore(tmp_path / "out").vectors(), VectorStore(whole).vectors())
    (tmp_path / "out" / "plan.json").unlink()
    printed = run(command, code=2)  # the stage's own words, from the process that ran it
    assert f"error: output_dir={tmp_path / 'out'} is neither empty nor an encoding" in printed


def test_no_vector_that_is_not_finite_is_written(
    tmp_path: Path, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Encoder.embed

    def broken(self: Encoder, *arguments: object, **settings: object) -> object:
        vectors = real(self, *arguments, **settings)  # type: ignore[arg-type]
        vectors[3, 7] = np.nan
        return vectors

    monkeypatch.setattr(Encoder, "embed", broken)
    with pytest.raises(BadInput, match="its vector is not finite"):
        embed(tmp_path / "out", *inputs)
    assert list(contents(tmp_path / "out")) == ["plan.json"]


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 1), (errno.EROFS, 2)])
def test_a_disk_that_is_full_or_read_only_costs_no_whole_unit(
    number: int,
    code: int,
    tmp_path: Path,
    whole: Path,
    inputs: Inputs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the fifth unit on: one line with the file, nothing half-written, and the same command
    goes on when there is room."""
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if target.name.startswith("00004"):
            raise OSError(number, os.strerror(number), str(target))
        real(source, target)

    given = [*inputs, f"output_dir={tmp_path / 'out'}", "encoder.max_tokens=16"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        capsys.readouterr()
        assert encode.main(["tiny_embed", *given]) == code
    error = capsys.readouterr().err
    assert f"error: {tmp_path / 'out/units/00004.safetensors'}: {os.strerror(number)}" in error
    left = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert not any(name.endswith(".tmp") for name in left)
    assert {"00003.json"} <= left and not any(name.startswith("00004") for name in left)
    embed(tmp_path / "out", *inputs)
    assert contents(tmp_path / "out") == contents(whole)


def test_mpi_ranks_write_the_same_bytes(tmp_path: Path, whole: Path, inputs: Inputs) -> None:
    output = tmp_path / "mpi"
    line = [sys.executable, "-m", "toolkit.encode", "tiny_embed", f"output_dir={output}"]
    printed = run(mpi_command([[*line, "encoder.max_tokens=16", *inputs]] * 2))
    assert contents(output) == contents(whole)
    for worker in (1, 2):
        assert f"embed: worker {worker} of 2 (mpi): 11 units" in printed
    assert printed.count("rows in the source = 170 with vectors (0 empty)") == 1


def test_mpi_of_another_kind_than_the_launcher_is_refused(tmp_path: Path, inputs: Inputs) -> None:
    """Each process would be rank 0 of one, and do all the work."""
    line = [sys.executable, "-m", "toolkit.encode", "tiny_embed", f"output_dir={tmp_path / 'out'}"]
    places = {"RANK": 0, "SIZE": 2, "LOCAL_RANK": 0, "LOCAL_SIZE": 2}
    given = [f"OMPI_COMM_WORLD_{name}={value}" for name, value in places.items()]
    given += [f"{name}={value}" for name, value in mpi_environ().items()]
    printed = run(["env", *given, *line, *inputs], code=2)
    assert "MPI sees 1 process(es) where the launcher has started 2" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lost", [".safetensors", ".ids.parquet", ".json"])
def test_a_task_of_an_array_makes_what_is_lost_in_the_share_of_another(
    lost: str, copied: Path, whole: Path, inputs: Inputs
) -> None:
    """As when a single task is requeued after files were purged."""
    (copied / "units" / f"00001{lost}").unlink()
    embed(copied, *inputs, environ=array_task(1, count=2))
    assert contents(copied) == contents(whole)
