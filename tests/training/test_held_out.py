"""Held-out documents are never trained on, and the loss on them is that of a naive computation, on
any number of ranks."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.conftest import QUICKSTART
from tests.text.making import shard_articles
from toolkit.base.errors import BadInput
from toolkit.base.files import committed_directory, write_json
from toolkit.base.sealed import content_digest
from toolkit.model.backbone import load_backbone, load_config
from toolkit.settings.model_source import resolve_model
from toolkit.settings.recipes import load_recipe, to_yaml
from toolkit.settings.schema import MntpRecipe, TrainingRecipe
from toolkit.settings.training_checks import check_training
from toolkit.text.held_out import HeldOut
from toolkit.text.mixture import Mixture
from toolkit.text.records import Article
from toolkit.text.shards import open_shards
from toolkit.text.stream import HeldOutBlocks, Stream
from toolkit.text.token_shards import TokenFiles, finish_token_files, make_token_files
from toolkit.training import data
from toolkit.training.checkpoint import Origin, check_origin
from toolkit.training.mntp import MntpObjective
from toolkit.training.objectives import build_objective

Door = Callable[..., str]
NUM_HELD_OUT = 7
NUM_TOLD = 120


def held_out_rows(run_dir: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").open()]
    return [row for row in rows if "held_out_loss" in row]


def make_all(*sources: TokenFiles) -> None:
    for files in sources:
        make_token_files(files, part=0, parts=1)
        assert finish_token_files(files)


def naive(
    model: Path,
    *,
    shards: Path,
    trained: Path | None = None,
    documents: int = NUM_HELD_OUT,
    overrides: Sequence[str] = (),
) -> tuple[float, float]:
    """Loss and accuracy on held-out documents with all logits, block by block, each document
    alone."""
    own = [f"data.train={shards}", f"model.base={model}", f"data.held_out_documents={documents}"]
    recipe = load_recipe("tiny_mntp", overrides=[*own, *overrides])
    assert isinstance(recipe, MntpRecipe)
    tokenizer = data.open_tokenizer(recipe, base=resolve_model(recipe.model.base))
    make_all(*data.token_files(recipe, tokenizer=tokenizer))
    objective = build_objective(recipe, tokenizer=tokenizer)
    assert isinstance(objective, MntpObjective)
    stream = data.open_stream(recipe, tokenizer=tokenizer)
    assert isinstance(stream, Stream | Mixture)
    decoder = load_backbone(
        resolve_model(str(model)),
        config=load_config(resolve_model(str(model))),
        head=True,
        dtype="fp32",
        attention="eager",
    ).eval()
    if trained:
        decoder.model.load_state_dict(load_file(trained / "model.safetensors"))
    loss, correct, units = 0.0, 0, 0
    blocks = objective.encode(stream.held_out(0, stream.num_held_out))
    # An odd number of micro-batches of four, the last one short: a turn in which a rank has none.
    assert documents != NUM_HELD_OUT or (len(blocks) % 4 and -(-len(blocks) // 4) % 2)
    for block in blocks:
        for ids_T, predict_T, target_M in zip(
            block.rows, block.predict, block.targets, strict=True
        ):
            with torch.no_grad():
                logits_TV = decoder(input_ids=torch.from_numpy(ids_T)[None]).logits[0]
            found_MV, target = logits_TV[torch.from_numpy(predict_T)], torch.from_numpy(target_M)
            loss += float(F.cross_entropy(found_MV, target, reduction="sum"))
            correct += int((found_MV.argmax(dim=1) == target).sum())
            units += len(target)
    return loss / units, correct / units


def test_held_out_figures_are_the_naive_ones_on_any_number_of_ranks(
    door: Door, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    common = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}", "train.steps=3"]
    common += [f"data.held_out_documents={NUM_HELD_OUT}", "mntp.evaluate_every_steps=2"]
    common += ["model.lora.dropout=0.5", "train.log_every_steps=100"]
    for ranks in (1, 2):
        run_dir = tmp_path / str(ranks)
        door("train", *common, f"run_dir={run_dir}", ranks=ranks)
        rows = held_out_rows(run_dir)
        assert [row["step"] for row in rows] == [0, 2, 3]
        before = naive(tiny_model, shards=shards)
        assert rows[0]["held_out_loss"] == pytest.approx(before[0], rel=1e-5)
        assert rows[0]["held_out_accuracy"] == pytest.approx(before[1], abs=1e-9)
    # After the last step: of the weights that the run has written, on two ranks.
    after = naive(tiny_model, shards=shards, trained=tmp_path / "2" / "encoder")
    assert rows[2]["held_out_loss"] == pytest.approx(after[0], rel=1e-5)
    assert after[0] < before[0]


def test_a_restart_before_the_first_checkpoint_does_not_repeat_itself(
    shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from toolkit.runs.records import read_metrics
    from toolkit.training.metrics import MetricsLog

    for _ in range(2):
        MetricsLog(tmp_path, step=0).write({"step": 0, "held_out_loss": 1.0})
    assert read_metrics(tmp_path) == [{"step": 0, "held_out_loss": 1.0}]
    MetricsLog(tmp_path, step=3)
    assert len(read_metrics(tmp_path)) == 1


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of documents that tell their number with every other word."""
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("told")
    articles = [
        Article(
            id=str(number),
            title="",
            url="",
            text=" ".join(
                f"All of <{number:03d}> is in <{number:03d}> and by <{number:03d}>."
                for _ in range(int(rng.integers(1, 12)))
            ),
        )
        for number in range(NUM_TOLD)
    ]
    return shard_articles(articles, output=folder / "shards", rows_per_shard=30)


def stream_of(kind: str, *, shards: Path, documents: int, overrides: list[str]) -> tuple[Any, Any]:
    """The stream of a recipe, and its tokenizer."""
    base = QUICKSTART / "tiny-mistral"
    own = [f"data.train={shards}", f"data.held_out_documents={documents}", f"model.base={base}"]
    recipe = load_recipe(f"tiny_{kind}", overrides=[*own, *overrides])
    assert isinstance(recipe, TrainingRecipe)
    tokenizer = data.open_tokenizer(recipe, base=resolve_model(recipe.model.base))
    if isinstance(recipe, MntpRecipe):
        make_all(*data.token_files(recipe, tokenizer=tokenizer))
    return data.open_stream(recipe, tokenizer=tokenizer), AutoTokenizer.from_pretrained(
        recipe.model.base
    )


def owners(samples: Sequence[Any], tokenizer: Any) -> set[int]:
    """The documents that samples hold a word of, by what the text says of itself."""
    found: set[int] = set()
    for sample in samples:
        pieces = [sample.content] if isinstance(sample.content, str) else sample.content
        for piece in pieces:
            text = piece if isinstance(piece, str) else tokenizer.decode(piece)
            numbers = re.findall(r"<\s*(\d\s*\d\s*\d)\s*>", text)
            assert numbers or len(text) < 20
            found |= {int(re.sub(r"\s", "", number)) for number in numbers}
    return found


def epoch_of(stream: Any) -> list[Any]:
    rows = stream.num_samples
    samples: list[Any] = stream.batch(0, global_rows=rows, start=0, stop=rows)
    return samples


@pytest.mark.parametrize("tokens", [64, 128])
@pytest.mark.parametrize("crossing", ["false", "true"])
def test_no_document_is_trained_on_and_held_out(
    tokens: int, crossing: str, told: Path, tmp_path: Path
) -> None:
    overrides = [f"data.max_tokens={tokens}", f"mntp.cross_documents={crossing}"]
    stream, tokenizer = stream_of("mntp", shards=told, documents=20, overrides=overrides)
    trained = owners(epoch_of(stream), tokenizer)
    held_out = owners(stream.held_out(0, stream.num_held_out), tokenizer)
    assert trained.isdisjoint(held_out)
    assert trained | held_out == set(range(NUM_TOLD)) and len(held_out) == 20
    # Their names say so too: the rows of shards of 30.
    for index in range(stream.num_samples + stream.num_held_out):
        rows = re.findall(r"shard-(\d+)\.parquet, rows? ([\d, ]+)", stream.name(index))
        named = {30 * int(n) + int(row) for n, some in rows for row in some.split(", ")}
        assert named and named <= (trained if index < stream.num_samples else held_out)
    # Neither the block length nor the objective decides which documents they are.
    sentences, _ = stream_of("simcse", shards=told, documents=20, overrides=[])
    assert owners(epoch_of(sentences), tokenizer) == trained
    assert sentences.num_held_out == 0


def test_held_out_documents_are_a_function_of_seed_and_corpus(told: Path, tmp_path: Path) -> None:
    def held_out(number: int, *overrides: str, shards: Path = told) -> set[int]:
        stream, tokenizer = stream_of(
            "mntp", shards=shards, documents=number, overrides=[*overrides]
        )
        return owners(stream.held_out(0, stream.num_held_out), tokenizer)

    few = held_out(5)
    assert few < held_out(20) and few != held_out(5, "train.seed=43")
    articles = [Article(**record) for record in open_shards(told).records(0, NUM_TOLD)]
    again = shard_articles(articles, output=tmp_path / "s" / "shards", rows_per_shard=7)
    assert few == held_out(5, shards=again)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 500), st.data())
def test_any_number_of_documents_is_drawn_once_and_one_is_left(
    num_rows: int, data: st.DataObject
) -> None:
    documents = data.draw(st.integers(0, num_rows - 1))
    rows = HeldOut(documents=documents, seed=data.draw(st.integers(0, 2**40))).rows(num_rows)
    assert len(set(rows.tolist())) == documents and (np.diff(rows) > 0).all()
    assert not documents or (rows[0] >= 0 and rows[-1] < num_rows)
    with pytest.raises(BadInput, match=f"the shards hold {num_rows} documents"):
        HeldOut(documents=num_rows).rows(num_rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny_supervised", "data.held_out_documents=3"], "pairs do not come from documents"),
        (
            ["tiny_mntp", "mntp.held_out_blocks=9"],
            "whole documents are held out now, data.held_out_documents=N",
        ),
        (["tiny_simcse", "data.held_out_documents=3", "train.keep_best=true"], "nothing says"),
    ],
)
def test_what_cannot_be_held_out_is_refused(arguments: list[str], message: str) -> None:
    recipe = load_recipe(arguments[0], overrides=arguments[1:])
    assert isinstance(recipe, TrainingRecipe)
    with pytest.raises(BadInput, match=message):
        check_training(recipe, world_size=1)


def test_a_run_that_held_out_blocks_is_read_but_not_continued(tmp_path: Path) -> None:
    recipe = load_recipe("tiny_mntp", overrides=[f"run_dir={tmp_path}"])
    assert isinstance(recipe, MntpRecipe) and "held_out_blocks" not in to_yaml(recipe)
    old = load_recipe("tiny_mntp", overrides=["mntp.held_out_blocks=9"])
    (tmp_path / "config.yaml").write_text(to_yaml(old))
    assert load_recipe(str(tmp_path / "config.yaml")) == old
    with pytest.raises(BadInput, match="is finished by the version it began with"):
        check_training(recipe, world_size=1)


def test_held_out_documents_without_a_token_are_refused() -> None:
    """A mean over nothing is no loss. Shards hold no such document; a tokenizer may make one."""

    class Blank:
        block_tokens, wrap = 64, 1

        def held_out(self) -> list[tuple[int, int]]:
            return [(0, 0)]

        def document(self, shard: int, row: int) -> Any:
            return np.array([], dtype=np.uint16)

    blank: Any = Blank()
    for crossing in (False, True):
        with pytest.raises(BadInput, match="hold no text: hold out more of them"):
            assert HeldOutBlocks(blank, crossing=crossing).num_samples


def test_a_run_of_another_packing_is_not_continued(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-00000001"
    state = {"base_digest": "b", "data_digest": "d", "step": 1}
    with committed_directory(folder) as written:
        write_json(written / "state.json", {**state, "digest": content_digest(state)})
    check_origin(tmp_path, origin=Origin("x", base_digest="b", data_digest="d"))
    mntp = Origin("x", base_digest="b", data_digest="d", samples="toolkit-tokens/3")
    with pytest.raises(BadInput, match="another version of the toolkit packed"):
        check_origin(tmp_path, origin=mntp)
