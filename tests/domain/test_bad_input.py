"""What the door of questions refuses, and what it says of a generator that is of no use."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from tests.conftest import contents
from tests.domain.conftest import Arguments, ask, write_split
from tests.text.making import shard_articles
from toolkit import launch, questions, ready
from toolkit.domain import program
from toolkit.domain.decoder import Decoder
from toolkit.domain.finishing import counts_fault, counts_of
from toolkit.domain.writing import Question
from toolkit.text.manifest import write_manifest
from toolkit.text.records import Article
from toolkit.text.shards import FORMAT, ShardRules, write_shard

Refused = Callable[..., str]


def model_of(folder: Path, **config: object) -> Path:
    """A model folder with this configuration and weights that nobody reads."""
    import torch

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# --- prompt and examples ---


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Write a question.", "has 0 times {passage}; write it once"),
        ("{passage} and {passage}", "has 2 times {passage}; write it once"),
        ("{passage}\n{examples}", "write {examples} once at most, before {passage}"),
        ("{examples}{examples}{passage}", "write {examples} once at most, before {passage}"),
    ],
)
def test_a_prompt_without_its_placeholder(
    text: str, said: str, refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "prompt.txt").write_text(text)
    line = refused(f"prompt={tmp_path / 'prompt.txt'}")
    assert f"prompt={tmp_path / 'prompt.txt'}" in line and said in line


@pytest.mark.parametrize("name", ["prompt", "examples"])
def test_a_file_that_cannot_be_read(name: str, refused: Refused, tmp_path: Path) -> None:
    assert f"{name}={tmp_path / 'absent'}: cannot be read" in refused(
        f"{name}={tmp_path / 'absent'}"
    )
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    assert "cannot be read" in refused(f"{name}={tmp_path / 'bytes'}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"passage": "a", "question": "b"}\n{"passage": "a"}', "line 2: is not like"),
        ("What is it?", "line 1: is not like"),
        ('["a", "b"]', "line 1: is not like"),
        ('{"passage": "a", "question": 3}', "line 1: is not like"),
        ('{"passage": " ", "question": "b"}', "line 1: is not like"),
        ('{"passage": "a", "passage": "b", "question": "c"}', "line 1: "),
        ("[" * 100_000, "line 1: is not like"),
        ("\n\n", "has no example"),
    ],
)
def test_examples_that_are_none(content: str, said: str, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "examples.jsonl").write_text(content)
    line = refused(f"examples={tmp_path / 'examples.jsonl'}")
    assert f"examples={tmp_path / 'examples.jsonl'}" in line and said in line


def test_a_prompt_that_is_longer_than_the_model_reads(refused: Refused) -> None:
    said = refused("corpus.max_tokens=100000")
    assert "corpus.max_tokens=100000" in said and "give fewer" in said


# --- documents ---


def test_documents_that_are_no_list_of_documents(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "split.parquet"
    assert f"documents={path}: cannot be read as Parquet" in refused(f"documents={path}")
    path.write_text("id,part\n1,train\n")
    assert f"documents={path}: cannot be read as Parquet" in refused(f"documents={path}")
    pq.write_table(pa.table({"id": ["1"], "split": ["train"]}), path)
    assert "has no column 'part'; it has id, split" in refused(f"documents={path}")
    pq.write_table(pa.table({"id": [1], "part": ["train"]}), path)
    assert "column 'id' holds 1, which is no text" in refused(f"documents={path}")
    pq.write_table(pa.table({"id": ["1", "1"], "part": ["train", "dev"]}), path)
    assert "the id '1' stands in it twice" in refused(f"documents={path}")


def test_documents_of_another_corpus_or_of_no_such_part(refused: Refused, tmp_path: Path) -> None:
    path = write_split(tmp_path / "split.parquet", {"1": "train", "strange": "train"})
    said = refused(f"documents={path}")
    assert "1 of 2 ids are not in corpus.input=" in said and "such as 'strange'" in said
    path = write_split(path, {"1": "train", "2": "test"})
    said = refused(f"documents={path}", "part=dev")
    assert "no document of part=dev; its parts are test, train" in said


def test_a_corpus_that_is_absent_or_has_an_id_twice(
    refused: Refused, tmp_path: Path, shards: Path
) -> None:
    assert str(tmp_path / "absent") in refused(f"corpus.input={tmp_path / 'absent'}")
    # data_scripts makes no such shards; a copy by hand may be one.
    folder = tmp_path / "twice"
    folder.mkdir()
    articles = [Article("same", "T", "", text) for text in ("one text", "another text")]
    entry = write_shard(articles, path=folder / "shard-00000.parquet", rules=ShardRules())
    write_manifest(folder, {"format": FORMAT, "rows": 2, "shards": [entry]})
    (folder / "COMMITTED").touch()
    said = refused(f"corpus.input={folder}", "documents=null", "part=null")
    assert "two documents have the id 'same'" in said


def test_ids_that_judgements_cannot_hold(refused: Refused, tmp_path: Path) -> None:
    articles = [Article(name, "T", "", "a text of words") for name in ("one", "two\tthree")]
    shards = shard_articles(articles, output=tmp_path / "shards")
    said = refused(f"corpus.input={shards}", "documents=null", "part=null")
    assert "the id 'two\\tthree' has white space" in said


# --- settings ---


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["per_document=0"], "key 'per_document': input should be greater than or equal to 1"),
        (["part=null"], "documents and part belong together"),
        (["generator.temperature=0"], "writes the same question 2 times"),
        (["filters.min_words=40"], "filters.min_words=40 is more than filters.max_words=32"),
        (["generator.chat=true"], "the tokenizer has no chat template"),
        (["generator.top_p=0"], "key 'generator.top_p'"),
        (["filters.language=english"], "key 'filters.language'"),
        (["part=training"], "key 'part'"),
        (["generator.temperatur=1"], "did you mean 'generator.temperature'"),
    ],
)
def test_settings_that_cannot_be(overrides: list[str], said: str, refused: Refused) -> None:
    assert said in refused(*overrides)


# --- models ---


def test_a_model_that_is_no_causal_language_model(
    refused: Refused, tmp_path: Path, tiny_model: Path
) -> None:
    for kind in ("bert", "t5", "vit"):
        model = model_of(tmp_path / kind, model_type=kind)
        said = refused(f"generator.model={model}")
        assert f"a model of type {kind!r} is no causal language model" in said
    encoder = tmp_path / "encoder"
    shutil.copytree(tiny_model, encoder)
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps({**config, "is_causal": False}))
    said = refused(f"generator.model={encoder}")
    assert "is an encoder, which attends in both directions" in said
    assert "no such folder" in refused(f"generator.model={tmp_path / 'absent'}")


# --- a generator of which nothing can be used ---


def test_a_generator_that_writes_nothing_says_so(refused: Refused, tmp_path: Path) -> None:
    """After the shipped examples, which it has not learnt to follow, the tiny model writes hardly
    anything."""
    said = refused("prompt=null", "filters.min_words=9", code=1)
    assert "none of 72 questions is left (" in said and "nothing written" in said
    assert "It wrote '" in said
    assert not (tmp_path / "refused" / "manifest.json").exists()


def test_a_generator_that_loops_is_stopped_after_its_first_questions(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[int] = []

    def looping(self: Decoder, prompts: list[object], **given: object) -> list[list[object]]:
        from toolkit.domain.decoder import Continuation

        asked.append(len(prompts))
        text = "what is the value of the value of the value of the value"
        return [[Continuation(text, tokens=12, ended=False)] * 2 for _ in prompts]

    monkeypatch.setattr(Decoder, "continued", looping)
    monkeypatch.setattr(program, "ENOUGH", 20)
    said = refused("generator.batch_rows=4", code=1)
    assert "8 loops" in said and "It wrote 'what is the value of the value" in said
    assert sum(asked) < 20, "it went on for all documents"


def test_counts_that_do_not_add_up_are_told() -> None:
    rows = [Question("a", 0, "what is it", 3, True), Question("a", 1, "", 0, True)]
    texts = ["a text", " "]
    counts = counts_of(rows, faults=["", "nothing written"], texts=texts)
    assert counts_fault(counts, per_document=2) == ""
    assert (counts["without_text"], counts["written"], counts["kept"]) == (1, 1, 1)
    assert "have to be" in counts_fault(counts, per_document=3)
    lost = {**counts, "kept": 0}
    assert "are accounted for" in counts_fault(lost, per_document=2)  # type: ignore[arg-type]


# --- before anything is queued ---


def test_what_a_job_would_refuse_is_refused_at_once(
    arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = ["write_questions", *arguments, f"output_dir={tmp_path / 'out'}"]
    assert ready.main(every) == 0
    for change, said in (
        ("prompt=absent.txt", "questions: absent.txt: no such file"),
        ("documents=absent.parquet", "questions: absent.parquet: no such file"),
        ("corpus.input=absent", "questions: absent: no whole shard directory"),
        ("generator.model=./absent", "no such folder"),
        ("generator.temperature=0", "writes the same question 2 times"),
    ):
        capsys.readouterr()
        assert ready.main([*every, change]) == 2
        assert said in capsys.readouterr().err
    given = [*every, "schedule=alone", "--nodes", "2", "--gpus-per-node", "4", "--dry-run"]
    assert launch.main(given) == 2
    assert "schedule=alone is for one worker" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_pipeline_may_write_the_documents_before(
    arguments: Arguments, tmp_path: Path, shards: Path
) -> None:
    from toolkit.launching.stages import missing_inputs
    from toolkit.settings.recipes import load_recipe

    first = load_recipe("write_questions", overrides=[f"output_dir={tmp_path / 'first'}"])
    own = [*arguments, f"documents={tmp_path / 'first' / 'split.parquet'}"]
    second = load_recipe("write_questions", overrides=[*own, f"output_dir={tmp_path / 'b'}"])
    both = {"first": first, "second": second}
    assert list(missing_inputs(both, name="second", models_must_be_here=True)) == []  # type: ignore[arg-type]
    alone = {"second": second}
    (said,) = missing_inputs(alone, name="second", models_must_be_here=True)  # type: ignore[arg-type]
    assert "split.parquet: no such file" in said


def test_an_output_that_is_something_else_is_left_alone(
    arguments: Arguments, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    for place, said in (("notes", "is neither empty nor questions"), ("notes/mine.txt", "a file")):
        given = [*arguments, f"output_dir={tmp_path / place}"]
        assert questions.main(["write_questions", *given]) == 2
        assert said in capsys.readouterr().err
    assert contents(tmp_path / "notes") == {"mine.txt": b"mine"}
    shutil.copytree(whole, tmp_path / "changed")
    plan = json.loads((tmp_path / "changed" / "plan.json").read_text())
    (tmp_path / "changed" / "plan.json").write_text(json.dumps({**plan, "digest": "0" * 64}))
    with pytest.raises(Exception, match="is damaged"):
        ask(tmp_path / "changed", *arguments)
