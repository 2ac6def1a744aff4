"""A teacher's vectors by text; and runs that learn from another encoder, from its texts on."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import QUICKSTART
from tests.training.teachers import random_vectors, write_teacher
from toolkit import encode, train
from toolkit.base.errors import BadInput
from toolkit.encoding.output import Output
from toolkit.encoding.store import VectorStore
from toolkit.encoding.units import units
from toolkit.model.losses import FILLER
from toolkit.runs.records import read_metrics
from toolkit.settings import schema
from toolkit.text.pairs import Pair, PairTask, text_hash, text_id, write_pairs
from toolkit.training.teacher import Teacher, Teaching

TINY = QUICKSTART / "tiny-mistral"
TEXTS = [f"text number {number}" for number in range(25)]


def made(out: Path, *, texts: list[str] = TEXTS, width: int = 6) -> Path:
    def embed(some: object) -> np.ndarray:  # type: ignore[type-arg]
        return random_vectors(some, width=width)  # type: ignore[arg-type]

    write_teacher(texts, out=out, embed=embed, model=f"random-{width}", unit_rows=10)
    return out


def test_a_text_has_its_own_vector_of_unit_length(tmp_path: Path) -> None:
    teacher = Teacher(made(tmp_path / "teacher"), name="embeddings")
    wanted = [TEXTS[n] for n in (24, 0, 7, 7, 13)]
    found = teacher.vectors([*map(text_hash, wanted), FILLER])
    plain = random_vectors(wanted)
    expected = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-6)
    assert not found[-1].any()


def test_a_text_without_a_vector_is_refused(tmp_path: Path) -> None:
    teacher = Teacher(made(tmp_path / "teacher"), name="supervised.teacher.embeddings")
    teacher.check(map(text_hash, TEXTS))
    beyond = max(TEXTS, key=text_hash)
    for other in ("another text", "and one more"):
        hashes = [text_hash(beyond), text_hash(other)]
        for look in (teacher.vectors, teacher.check):
            with pytest.raises(BadInput, match=r"teacher.embeddings=.*no vector for 1 of 2 texts"):
                look(hashes)


def test_an_encoding_of_other_texts_is_refused(tmp_path: Path) -> None:
    for number, name in enumerate(("Q42", "0123456789abcdeg", "0123456789abcdef0")):
        out = made(tmp_path / str(number), texts=TEXTS[:1])
        output = Output(out, VectorStore(out).manifest["digest"], units([0, 1]))
        output.write(output.units[0], random_vectors(TEXTS[:1]), [{"id": name, "title": None}])
        output.write_manifest()
        with pytest.raises(BadInput, match=rf"ids such as '{name}', no hashes; encode the texts"):
            Teacher(out, name="embeddings")


def test_queries_may_have_an_encoding_of_their_own(tmp_path: Path) -> None:
    folders = [made(tmp_path / str(width), width=width) for width in (6, 7)]
    same, other = map(str, folders)
    settings = schema.Teacher(embeddings=same, query_embeddings=other)
    with pytest.raises(BadInput, match=r"query_embeddings: vectors of 7 numbers, and 6 in"):
        Teaching(settings, key="supervised.teacher")
    queries = made(tmp_path / "queries", texts=TEXTS[:3])
    both = schema.Teacher(embeddings=same, query_embeddings=str(queries))
    teaching = Teaching(both, key="supervised.teacher")
    hashes = [text_hash(text) for text in TEXTS[:4]]
    assert len(teaching.of_documents(hashes)) == 4
    with pytest.raises(BadInput, match=r"query_embeddings=.* no vector for 1 of 4 texts"):
        teaching.of_queries(hashes)
    assert teaching.digest != Teaching(schema.Teacher(embeddings=same), key="").digest


def encoded(texts: Path, *, folder: Path, settings: Sequence[str] = ()) -> Path:
    """The listed texts as toolkit.encode encodes them."""
    from data_scripts import shard_wikipedia

    shards = folder / "texts"
    assert shard_wikipedia.main(["--input", str(texts), "--output", str(shards)]) == 0
    out = folder / "teacher"
    arguments = [f"encoder.model={TINY}", f"corpus.input={shards}", f"output_dir={out}"]
    assert encode.main(["tiny_embed", *arguments, *settings]) == 0
    return out


def test_chunks_are_no_texts(tmp_path: Path) -> None:
    rows = [{"id": text_id(text), "text": text} for text in TEXTS]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = encoded(texts, folder=tmp_path, settings=["corpus.chunk_tokens=32"])
    with pytest.raises(BadInput, match="holds vectors of chunks"):
        Teacher(out, name="embeddings")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pairs") / "pairs"
    things = ("bridge", "river", "winter", "harvest", "clock", "engine", "neighbour", "secret")
    rows = [
        Pair(f"Who saw the {a} and the {b}?", f"The {b} near the {a}", (f"No {a} but a {b}",))
        for a in things
        for b in things
        if a != b
    ]
    write_pairs([(PairTask("one"), rows)], output=out, sources=[], quarantine=[])
    return out


@pytest.mark.parametrize("kind", ["supervised", "simcse"])
def test_a_run_learns_from_the_encoding_of_its_texts(
    kind: str, pairs: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher is the untrained model itself, and the contrastive loss has no weight."""
    from data_scripts import list_texts

    data = pairs if kind == "supervised" else shards
    recipe = [f"tiny_{kind}", f"data.train={data}", f"model.base={TINY}", "train.steps=4"]
    recipe += ["train.global_batch_rows=8", "train.micro_batch_rows=8"]
    texts = tmp_path / "texts.jsonl"
    assert list_texts.main([*recipe, "--output", str(texts)]) == 0
    assert list_texts.main([*recipe, "--output", str(texts)]) == 2
    assert "is there already" in capsys.readouterr().err
    rows = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()]
    assert all(row["id"] == text_id(row["text"]) for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    teacher = encoded(texts, folder=tmp_path)
    run = tmp_path / "run"
    key = f"{kind}.teacher"
    recipe += [f"run_dir={run}", f"{key}.embeddings={teacher}", f"{key}.weight=1.0"]
    # More steps read more texts. Nothing is written before that is known.
    assert train.main([*recipe, "train.steps=9", "train.horizon_steps=9"]) == 2
    said = capsys.readouterr().err
    assert f"{key}.embeddings={teacher}: has no vector for" in said
    assert "data_scripts/list_texts.py" in said
    assert not run.exists()
    assert train.main([*recipe, "train.steps=2"]) == 0
    metrics = read_metrics(run)
    assert [row["step"] for row in metrics] == [1, 2]
    for row in metrics:
        assert -1e-6 < row["teacher_kl"] < 1  # nothing but rounding at first
        assert row["loss"] == pytest.approx(row["teacher_kl"], abs=1e-6)
    card = (run / "encoder" / "README.md").read_text(encoding="utf-8")
    assert "embeddings: teacher\n" in card
    assert ", teacher teacher |" in card
    assert str(tmp_path) not in card
    # Another teacher in the same place is another run.
    teacher.rename(tmp_path / "before")
    made(teacher, texts=[row["text"] for row in rows])
    assert train.main([*recipe, "train.steps=4"]) == 2
    assert "its training data changed after it was trained" in capsys.readouterr().err


def test_queries_and_documents_are_listed_apart(pairs: Path, tmp_path: Path) -> None:
    from data_scripts import list_texts

    recipe = ["tiny_supervised", f"data.train={pairs}", "train.steps=7", "train.seed=3"]
    found = {}
    for only in ("queries", "documents", ""):
        out = tmp_path / f"{only}.jsonl"
        chosen = ["--only", only] if only else []
        assert list_texts.main([*recipe[:2], *chosen, "--output", str(out), *recipe[2:]]) == 0
        found[only] = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert all(text.endswith("?") for text in found["queries"])
    assert not any(text.endswith("?") for text in found["documents"])
    assert sorted(found[""]) == sorted(found["queries"] + found["documents"])


def test_what_has_no_contrastive_texts_is_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_scripts import list_texts

    out = ["--output", str(tmp_path / "out.jsonl")]
    for recipe in ("tiny_mntp", "tiny_embed", "tiny_pipeline"):
        assert list_texts.main([recipe, *out]) == 2
        assert "give one of simcse or supervised" in capsys.readouterr().err
    recipe = ["tiny_simcse", f"data.train={shards}", "--only", "queries"]
    assert list_texts.main([*recipe, *out]) == 2
    assert "leave --only out" in capsys.readouterr().err
    assert list_texts.main(["tiny_simcse", f"data.train={tmp_path}", *out]) == 2
    assert str(tmp_path) in capsys.readouterr().err
