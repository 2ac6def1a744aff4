"""Questions of the shipped encyclopedia by the tiny model, and how the tests of this folder make
others. The tiny model goes on with a passage, which passes for a question here."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toolkit import questions
from toolkit.settings.questions_schema import QuestionsRecipe
from toolkit.settings.recipes import load_recipe
from toolkit.text.shards import open_shards

ALONE: Mapping[str, str] = {}
NUM_DOCUMENTS, TIMES = 36, 2
SMALL = [
    f"per_document={TIMES}",
    "corpus.unit_documents=4",
    "corpus.max_tokens=24",
    "generator.max_new_tokens=10",
    "generator.temperature=0.9",
    "generator.dtype=fp32",
    "filters.language=any",
    "filters.unfinished=true",
    "filters.round_trip_top=80",
]
Arguments = list[str]


def write_split(path: Path, parts: Mapping[str, str]) -> Path:
    """The file of documents, with the part of each id."""
    pq.write_table(pa.table({"id": [*parts], "part": [*parts.values()]}), path)
    return path


def ask(output: Path, *overrides: str, environ: Mapping[str, str] = ALONE) -> None:
    """Run the program of questions in this process."""
    recipe = load_recipe("write_questions", overrides=[f"output_dir={output}", *overrides])
    assert isinstance(recipe, QuestionsRecipe)
    questions.run(recipe, environ=environ)


@pytest.fixture(scope="session")
def corpus_ids(shards: Path) -> list[str]:
    corpus = open_shards(shards)
    return [corpus.record(row)["id"] for row in range(len(corpus))]


@pytest.fixture(scope="session")
def arguments(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    shards: Path,
    corpus_ids: list[str],
) -> Arguments:
    """The overrides of a small run over some of the documents, but for its output."""
    folder = tmp_path_factory.mktemp("questions")
    (folder / "prompt.txt").write_text("An encyclopedia.\n\n{passage}")
    parts = {one: "train" if n < NUM_DOCUMENTS else "test" for n, one in enumerate(corpus_ids)}
    split = write_split(folder / "split.parquet", parts)
    return [
        *SMALL,
        f"generator.model={tiny_model}",
        f"corpus.input={shards}",
        f"documents={split}",
        "part=train",
        f"prompt={folder / 'prompt.txt'}",
    ]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, arguments: Arguments) -> Path:
    """Questions by one process without a break. Not to be written to."""
    output = tmp_path_factory.mktemp("asked") / "whole"
    ask(output, *arguments)
    return output


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: Arguments
) -> Callable[..., str]:
    """The one line with which the door refuses the small run with these changes, or fails with
    another exit code; it must have written nothing unless it failed."""

    def call(*overrides: str, code: int = 2) -> str:
        capsys.readouterr()
        output = tmp_path / "refused"
        every = [f"output_dir={output}", *arguments, *overrides]
        assert questions.main(["write_questions", *every]) == code
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert code != 2 or not output.exists()
        return lines[0]

    return call
