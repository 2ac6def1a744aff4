"""How a recipe pools (`model.pooling`, `model.begin_token`): in training, in exports, elsewhere.

The oracles are sentence-transformers, and plain transformers with the pooling written out. Tiny
models with random weights: a Llama, whose tokenizer puts a begin token before a text, and a Qwen3,
whose tokenizer puts nothing around it.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaTokenizer,
)

from tests.conftest import QUICKSTART, free_port, refused
from toolkit import export, launch, train
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_json
from toolkit.encoding.encoder import Encoder
from toolkit.model.backbone import load_config
from toolkit.model.declared import digest_of_base
from toolkit.model.tokenizer import save_tokenizer, special_around, training_tokenizer
from toolkit.model.vector_rules import trained_rules
from toolkit.model.weights import merge_weights, write_encoder_files
from toolkit.parallel import comm
from toolkit.runs.records import read_metrics
from toolkit.settings.model_schema import BeginToken, Model, TrainedPooling
from toolkit.settings.model_source import ModelSource, resolve_model
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import TrainingRecipe
from toolkit.text.pair_stream import TaskPair
from toolkit.text.pairs import Pair, PairTask, open_pairs, write_pairs
from toolkit.text.shards import open_shards
from toolkit.text.stream import Sample
from toolkit.training.data import open_tokenizer
from toolkit.training.objectives import build_objective

BEGIN, END, MAX_TOKENS, ROW = 1, 2, 96, 32
PROMPT, PROMPT_OF_TASK = "Find the same: ", "Find it; "
SHAPE = {
    "vocab_size": 8192,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "pad_token_id": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": MAX_TOKENS,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SHAPE),
    "qwen3": transformers.Qwen3Config(**SHAPE, head_dim=16),
}
NEUTRAL: list[tuple[TrainedPooling, BeginToken]] = [("mean", "pool"), ("mean", "none")]
WAYS: list[tuple[TrainedPooling, BeginToken]] = [
    ("mean", "skip"),
    *NEUTRAL,
    ("last", "skip"),
    ("last", "none"),
    ("weighted_mean", "pool"),
    ("weighted_mean", "none"),
]

# Those that change what stands around a text.
AROUND: list[tuple[TrainedPooling, BeginToken]] = [
    ("mean", "none"),
    ("last", "skip"),
    ("last", "none"),
]
FLAG = {
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
}

Vectors = NDArray[np.float32]


def make_base(folder: Path, *, family: str) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family])
    with torch.no_grad():  # random states of one size would all be alike after a norm
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.25 + (parameter.ndim == 1))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(QUICKSTART / "tiny-mistral" / name, folder / name)
    if family == "qwen3":
        content = read_json(folder / "tokenizer.json")
        processor = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
        processor["use_regex"] = True
        write_json(folder / "tokenizer.json", {**content, "post_processor": processor})
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: make_base(folder / family, family=family) for family in CONFIGS}


@pytest.fixture
def _ranks() -> Iterator[None]:
    place = {"rank": 0, "world_size": 1, "local_rank": 0, "address": "127.0.0.1"}
    with mock.patch.dict(os.environ):  # `start` writes there
        comm.start(**place, port=free_port(), timeout_s=60)
        yield
        comm.stop()


@pytest.fixture(scope="module")
def texts(shards: Path) -> list[str]:
    """30 pieces of the shipped encyclopedia, from a word to more than is read."""
    opened = open_shards(shards, verify=False)
    lengths = [5, 20, 80, 200, 500, 1200]
    return [opened.text(n)[: lengths[n % 6] + n].strip() for n in range(30)]


def settings(base: Path, pooling: TrainedPooling, begin: BeginToken) -> Model:
    return Model(base=str(base), dtype="fp32", pooling=pooling, begin_token=begin, lora=None)


def exported(out: Path, *, base: Path, model: Model) -> Path:
    """The base as an export of such a recipe."""
    source = resolve_model(str(base))
    out.mkdir()
    merge_weights(base, dtype="fp32", out=out)
    write_encoder_files(
        out,
        config=load_config(source),
        tokenizer=training_tokenizer(source, model=model),
        max_tokens=MAX_TOKENS,
        dtype="fp32",
        rules=trained_rules(model),
    )
    return out


def assert_same(found: Vectors, expected: Vectors) -> None:
    assert found.shape == expected.shape
    lengths = np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1)
    assert np.abs(lengths[0] / lengths[1] - 1).max() <= 1e-4
    assert (np.vecdot(found, expected) / (lengths[0] * lengths[1])).min() >= 0.99999
    assert float(found.std(axis=0).mean()) > 0.01  # not everything has one vector


def by_hand(ids: Sequence[Sequence[int]], *, model: Any, pooling: str) -> torch.Tensor:
    """Row by row, without padding, all tokens pooled."""
    vectors = []
    for row in ids:
        states = model(input_ids=torch.tensor([list(row)])).last_hidden_state[0]
        weights = {
            "mean": torch.ones(len(row)),
            "last": torch.eye(len(row))[-1],
            "weighted_mean": torch.arange(1.0, len(row) + 1),
        }[pooling]
        vectors.append(weights @ states / weights.sum())
    return torch.stack(vectors)


@pytest.mark.parametrize(
    ("family", "pooling", "begin"),
    [
        *(("llama", *way) for way in WAYS),
        ("qwen3", "mean", "pool"),
        ("qwen3", "last", "skip"),
        ("qwen3", "weighted_mean", "none"),
    ],
)
def test_an_export_is_the_same_encoder_in_sentence_transformers(
    family: str,
    pooling: TrainedPooling,
    begin: BeginToken,
    bases: dict[str, Path],
    texts: list[str],
    tmp_path: Path,
) -> None:
    folder = exported(
        tmp_path / "out", base=bases[family], model=settings(bases[family], pooling, begin)
    )
    ours = Encoder.from_pretrained(folder, max_tokens=MAX_TOKENS, device="cpu")
    theirs = SentenceTransformer(str(folder), device="cpu")
    assert theirs.max_seq_length == MAX_TOKENS
    assert_same(ours.encode(texts), theirs.encode(texts))
    if begin != "skip" or pooling == "last":
        # Instructions, as an export of this kind pools them: like any other token.
        assert_same(ours.encode(texts, prompt=PROMPT), theirs.encode(texts, prompt=PROMPT))
        kinds = [module["type"].rpartition(".")[2] for module in read_json(folder / "modules.json")]
        assert kinds == ["Transformer", "Pooling"]
        # TEI looks for this file and no other, and wants both of these flags.
        flags = read_json(folder / "1_Pooling" / "config.json")
        assert flags["pooling_mode_cls_token"] is False
        assert flags["pooling_mode_mean_tokens"] is (pooling == "mean")
        # vLLM took the first that is true for the mode.
        assert [key for key, value in flags.items() if value is True] == [FLAG[pooling]]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(("pooling", "begin"), [*NEUTRAL, ("last", "none")])
def test_an_engine_that_pools_all_tokens_gives_the_same_vectors(
    family: str,
    pooling: TrainedPooling,
    begin: BeginToken,
    bases: dict[str, Path],
    texts: list[str],
    tmp_path: Path,
) -> None:
    """Plain transformers, its tokenizer and the attention mask; with an instruction before it."""
    folder = exported(
        tmp_path / "out", base=bases[family], model=settings(bases[family], pooling, begin)
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    ours = Encoder.from_pretrained(folder, max_tokens=MAX_TOKENS, device="cpu")
    has_begin = family == "llama" and begin == "pool"
    for prompt in ("", PROMPT):
        whole = [prompt + text for text in texts]
        ids = tokenizer(whole, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        assert {row[0] == BEGIN for row in ids} == {has_begin}
        # The end token stays where a text is cut.
        assert {row[-1] == END for row in ids} == {pooling == "last"}
        assert max(map(len, ids)) == MAX_TOKENS
        with torch.inference_mode():
            expected = by_hand(ids, model=model, pooling=pooling).numpy()
        assert_same(ours.encode(texts, prompt=prompt), expected)


def recipe_of(kind: str, *, base: Path, pooling: str, begin: str, **more: str) -> TrainingRecipe:
    given = [f"model.pooling={pooling}", f"model.begin_token={begin}", f"model.base={base}"]
    given += [f"data.max_tokens={ROW}", *(f"{key}={value}" for key, value in more.items())]
    recipe = load_recipe(f"tiny_{kind}", overrides=given)
    assert isinstance(recipe, TrainingRecipe)
    return recipe


def row_by_hand(text: str, *, folder: Path, pooling: str, begin: str) -> list[int]:
    """Without the tokenizer's own way of putting tokens around a text, and of cutting it."""
    inner = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    before = [BEGIN] if folder.name == "llama" and begin != "none" else []
    after = [END] if pooling == "last" else []
    return [*before, *inner[: ROW - len(before) - len(after)], *after]


@pytest.mark.usefixtures("_ranks")
@pytest.mark.parametrize(("family", "packed"), [("llama", True), ("qwen3", False)])
@pytest.mark.parametrize(("pooling", "begin"), WAYS)
def test_the_loss_is_that_of_the_formula(
    family: str,
    packed: bool,
    pooling: TrainedPooling,
    begin: BeginToken,
    bases: dict[str, Path],
    texts: list[str],
) -> None:
    """SimCSE without dropout, in two micro-batches; its gradient, too."""
    base = bases[family]
    attention = "packed" if packed else "sdpa"
    recipe = recipe_of(
        "simcse", base=base, pooling=pooling, begin=begin, **{"model.attention": attention}
    )
    tokenizer = open_tokenizer(recipe, base=resolve_model(str(base)))
    objective = build_objective(recipe, tokenizer=tokenizer)
    encoded = objective.encode([Sample(0, n, text) for n, text in enumerate(texts[:6])])
    batches = [objective.collate(encoded[:2]), objective.collate(encoded[2:])]
    model = bidirectional(base)
    loss = torch.tensor(0.0)
    for term, figures in objective.terms(forward_of(model, packed=packed), batches):
        term.backward()
        loss = figures.get("loss", loss)
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    rows = [row_by_hand(t, folder=base, pooling=pooling, begin=begin) for t in texts[:6]]
    if begin == "skip" and pooling == "mean":
        vectors = mean_without_begin(rows, model=model)
    else:
        vectors = by_hand(rows, model=model, pooling=pooling)
    expected = contrastive(vectors, vectors, scale=5.0)
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    for mine, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-3, atol=1e-4)


def bidirectional(base: Path) -> Any:
    config = AutoConfig.from_pretrained(base)
    config.is_causal = False
    return AutoModel.from_pretrained(base, config=config).eval()


def mean_without_begin(rows: Sequence[Sequence[int]], *, model: Any) -> torch.Tensor:
    states = [model(input_ids=torch.tensor([list(row)])).last_hidden_state[0] for row in rows]
    return torch.stack(
        [state[int(row[0] == BEGIN) :].mean(dim=0) for state, row in zip(states, rows, strict=True)]
    )


def contrastive(query: torch.Tensor, candidate: torch.Tensor, *, scale: float) -> torch.Tensor:
    cosine = F.cosine_similarity(query[:, None], candidate[None], dim=-1)
    return F.cross_entropy(scale * cosine, torch.arange(len(query)), reduction="sum")


def forward_of(model: Any, *, packed: bool) -> Callable[..., Any]:
    if not packed:
        return lambda **arguments: model(**arguments)

    # Packed rows, one after another: the naive model knows no bounds.
    def forward(input_ids: torch.Tensor, **arguments: Any) -> Any:
        bounds = [*(arguments["position_ids"][0] == 0).nonzero().flatten().tolist()]
        rows = np.split(np.arange(input_ids.shape[1]), bounds[1:])
        states = [model(input_ids=input_ids[:, torch.from_numpy(row)]) for row in rows]
        whole = torch.cat([one.last_hidden_state for one in states], dim=1)
        return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=whole)

    return forward


@pytest.mark.parametrize(("pooling", "begin"), WAYS)
def test_an_instruction_is_pooled_where_all_tokens_are(
    pooling: TrainedPooling, begin: BeginToken, bases: dict[str, Path], tmp_path: Path
) -> None:
    """Supervised training, of which the packed tokens are looked at."""
    base, task = bases["llama"], PairTask("one", query_instruction="Find it")
    pairs = [Pair("who built it", "the masons did", ("a dog",)), Pair("the river", "a long river")]
    write_pairs([(task, pairs)], output=tmp_path / "pairs", sources=[], quarantine=[])
    recipe = recipe_of(
        "supervised", base=base, pooling=pooling, begin=begin, **{"data.train": str(tmp_path)}
    )
    tokenizer = open_tokenizer(recipe, base=resolve_model(str(base)))
    objective = build_objective(recipe, tokenizer=tokenizer)
    opened = open_pairs(tmp_path / "pairs")
    samples = [Sample(0, n, TaskPair(pair, opened.tasks[0])) for n, pair in enumerate(pairs)]
    batch = objective.collate(objective.encode(samples))
    bounds = batch.rows.bounds
    texts = [PROMPT_OF_TASK + pairs[0].query, PROMPT_OF_TASK + pairs[1].query]
    texts += [pairs[0].positive, pairs[1].positive, "a dog"]
    for number, text in enumerate(texts):
        span = slice(bounds[number], bounds[number + 1])
        row = row_by_hand(text, folder=base, pooling=pooling, begin=begin)
        assert batch.rows.ids_BT[0, span].tolist() == row
        own = batch.rows.own_BT[0, span]
        if begin == "skip" and pooling == "mean":
            alone = len(row_by_hand(text.removeprefix(PROMPT_OF_TASK), folder=base,
                                    pooling=pooling, begin="none"))  # fmt: skip
            assert own.tolist() == [0] * (len(row) - alone) + [1] * alone
        else:
            assert own.all()


def trained(kind: str, run_dir: Path, **given: object) -> int:
    values = {"train.steps": 1, "data.max_tokens": ROW, **given}
    overrides = [f"{key}={value}" for key, value in values.items()]
    return train.main([f"tiny_{kind}", f"run_dir={run_dir}", *overrides])


LAST = {"model.pooling": "last", "model.begin_token": "none"}


@pytest.fixture(scope="module")
def run_dir(bases: dict[str, Path], shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SimCSE that pools the end token, with a probe."""
    folder = tmp_path_factory.mktemp("runs")
    scored = "".join(f"{n % 5}\tthe river {n * 7}\tthe {n} long rivers\n" for n in range(12))
    (folder / "sts.tsv").write_text(scored)
    probe = {"train.probe.sts": folder / "sts.tsv", "train.probe.every_steps": 1}
    given = {"model.base": bases["llama"], "data.train": shards, **LAST, **probe}
    assert trained("simcse", folder / "simcse", **given) == 0
    return folder / "simcse"


def test_a_run_its_probe_and_its_encoder_pool_alike(run_dir: Path, texts: list[str]) -> None:
    ours = Encoder.from_pretrained(run_dir, max_tokens=ROW, device="cpu")
    theirs = SentenceTransformer(str(run_dir / "encoder"), device="cpu")
    theirs.max_seq_length = ROW
    assert_same(ours.encode(texts), theirs.encode(texts))
    assert_same(ours.encode(texts, prompt=PROMPT), theirs.encode(texts, prompt=PROMPT))
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "encoder")
    assert special_around(tokenizer) == ((), (END,))
    rows = [line.split("\t") for line in (run_dir.parent / "sts.tsv").read_text().splitlines()]
    left, right = (ours.encode([row[side] for row in rows]) for side in (1, 2))
    cosine = np.vecdot(left, right) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    expected = spearmanr([float(row[0]) for row in rows], cosine).statistic
    probed = [row["probe_spearman"] for row in read_metrics(run_dir) if "probe_spearman" in row]
    assert probed[-1] == pytest.approx(expected, abs=1e-6)
    card = (run_dir / "encoder" / "README.md").read_text()
    assert "the last hidden state of the end token that stands after it; it has no begin" in card
    assert "WordWeights" not in card


def test_a_run_goes_on_with_its_own_pooling_only(
    run_dir: Path, bases: dict[str, Path], shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"run_dir={run_dir}", f"model.base={bases['llama']}", f"data.train={shards}"]
    given += [f"data.max_tokens={ROW}", "train.steps=2", "model.begin_token=none"]
    line = refused(capsys, train.main, "tiny_simcse", *given, "model.pooling=mean")
    assert "belongs to another recipe: model.pooling was last, now mean" in line


def test_the_weights_of_a_checkpoint_do_not_say_how_they_pool(
    run_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (weights,) = (run_dir / "checkpoints").glob("*/weights")
    with pytest.raises(BadInput, match="run pools with") as error:
        Encoder.from_pretrained(weights, device="cpu")
    assert f"give the run, {run_dir}, or its export" in str(error.value)
    assert "do not say" in refused(capsys, export.main, weights, tmp_path / "out")


def test_stages_of_a_pipeline_that_disagree_are_refused_before_anything_is_submitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shards: Path, bases: dict[str, Path]
) -> None:
    recipe = {
        "kind": "pipeline",
        "run_dir": str(tmp_path / "run"),
        "model": {"base": str(bases["llama"])},
        "data": {"train": str(shards)},
        "corpus": {"input": str(shards)},
        "stages": {
            "simcse": {
                "recipe": "tiny_simcse",
                "set": {
                    "run_dir": "{run_dir}/simcse",
                    "model.base": "{model.base}",
                    "data.train": str(shards),
                    "model.pooling": "last",
                },
            },
            "supervised": {
                "recipe": "tiny_supervised",
                "set": {
                    "run_dir": "{run_dir}/supervised",
                    "model.base": "{run_dir}/simcse/encoder",
                },
            },
        },
    }
    (tmp_path / "pipe.yaml").write_text(json.dumps(recipe))
    asked = ["--recipe", tmp_path / "pipe.yaml", "--cluster", "local", "--gpus-per-node", "0"]
    line = refused(capsys, launch.main, *asked, "--dry-run")
    assert "supervised: model.pooling=mean model.begin_token=skip, and simcse, from which" in line


@pytest.mark.parametrize("form", ["peft", "llm2vec"])
def test_a_format_that_cannot_say_it_is_refused(
    form: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, export.main, run_dir, tmp_path / "out", "--format", form)
    assert f"--format {form}: cannot say model.pooling=last model.begin_token=none" in line
    assert not (tmp_path / "out").exists()


def test_a_later_stage_states_the_pooling_of_the_one_before(
    run_dir: Path, tmp_path: Path, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [Pair(f"the river {n}", f"{n} rivers", (f"a cat {n}",)) for n in range(16)]
    write_pairs([(PairTask("one"), pairs)], output=tmp_path / "pairs", sources=[], quarantine=[])
    given = {"model.base": run_dir, "data.train": tmp_path / "pairs"}
    arguments = ["tiny_supervised", f"run_dir={tmp_path / 'run'}"]
    arguments += [f"{key}={value}" for key, value in given.items()]
    line = refused(capsys, train.main, *arguments)
    assert "model.pooling=mean model.begin_token=skip: " in line
    assert "was trained with model.pooling=last model.begin_token=none; give the same" in line
    assert not (tmp_path / "run").exists()
    # On purpose: a copy that does not say how it was trained, with what its tokenizer now does.
    plain = shutil.copytree(run_dir / "encoder", tmp_path / "plain")
    for name in ("modules.json", "origin.json"):
        (plain / name).unlink()
    again = {**given, "model.base": plain, "model.pooling": "mean"}
    assert trained("supervised", tmp_path / "other", **again) == 0
    assert trained("supervised", tmp_path / "run", **given, **LAST) == 0
    ours = Encoder.from_pretrained(tmp_path / "run", max_tokens=MAX_TOKENS, device="cpu")
    theirs = SentenceTransformer(str(tmp_path / "run" / "encoder"), device="cpu")
    assert_same(ours.encode(texts, prompt=PROMPT), theirs.encode(texts, prompt=PROMPT))


def test_after_mntp_any_pooling_may_be_asked_for(
    bases: dict[str, Path], shards: Path, tmp_path: Path, texts: list[str]
) -> None:
    """Its export says mean without the begin token, by which nothing was trained."""
    given = {"data.train": shards, "model.base": bases["llama"]}
    assert trained("mntp", tmp_path / "mntp", **given) == 0
    given["model.base"] = tmp_path / "mntp"
    way = {"model.pooling": "weighted_mean", "model.begin_token": "pool"}
    assert trained("simcse", tmp_path / "simcse", **given, **way) == 0
    ours = Encoder.from_pretrained(tmp_path / "simcse", max_tokens=MAX_TOKENS, device="cpu")
    theirs = SentenceTransformer(str(tmp_path / "simcse" / "encoder"), device="cpu")
    assert_same(ours.encode(texts), theirs.encode(texts))


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("mntp", ["model.pooling=last"], "model.begin_token=skip: MNTP makes no vectors"),
        ("mntp", ["model.begin_token=none"], "MNTP makes no vectors; leave both out"),
        (
            "simcse",
            ["model.pooling=weighted_mean"],
            "leaves no token out; give model.begin_token=pool or none",
        ),
        ("simcse", ["model.pooling=max"], "model.pooling"),
        ("simcse", ["model.begin_token=keep"], "model.begin_token"),
    ],
)
def test_what_cannot_be_is_refused(
    kind: str,
    given: list[str],
    message: str,
    bases: dict[str, Path],
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = [f"run_dir={tmp_path / 'run'}", f"data.train={shards}", f"model.base={bases['llama']}"]
    assert message in refused(capsys, train.main, f"tiny_{kind}", *place, *given)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_without_an_end_token_is_refused(
    bases: dict[str, Path], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(bases["llama"], tmp_path / "base")
    path = base / "tokenizer_config.json"
    write_json(path, {key: value for key, value in read_json(path).items() if key != "eos_token"})
    place = [f"run_dir={tmp_path / 'run'}", f"data.train={shards}", f"model.base={base}"]
    line = refused(capsys, train.main, "tiny_simcse", *place, "model.pooling=last")
    assert f"model.pooling=last: the tokenizer of {base} names no end token" in line


@pytest.mark.parametrize(
    ("way", "change", "message"),
    [
        (("mean", "pool"), {}, ""),
        (("mean", "skip"), {}, "Pooling takes '<s>' into the mean, without WordWeights"),
        (("last", "pool"), {}, "the pooling mode is 'mean', another pooling than 'lasttoken'"),
        (("mean", "none"), {}, "texts have a begin token, which model.begin_token=none leaves out"),
        (("mean", "pool"), {"include_prompt": False}, "include_prompt is false, and prompts would"),
        (
            ("last", "pool"),
            {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True},
            "the last token of a text is pooled, and here an end token would be",
        ),
    ],
)
def test_the_folder_of_somebody_else_is_trained_as_it_pools(
    way: tuple[TrainedPooling, BeginToken],
    change: dict[str, bool],
    message: str,
    bases: dict[str, Path],
    tmp_path: Path,
) -> None:
    neutral = settings(bases["llama"], "mean", "pool")
    folder = exported(tmp_path / "out", base=bases["llama"], model=neutral)
    path = folder / "1_Pooling" / "config.json"
    write_json(path, {**read_json(path), **change})
    source, model = resolve_model(str(folder)), settings(folder, *way)
    if not message:
        assert digest_of_base(source, model=model)
        return
    with pytest.raises(BadInput, match=message):
        digest_of_base(source, model=model)


def test_what_llm2vec_wrote_is_the_mean_of_a_texts_own_tokens(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(bases["llama"], tmp_path / "base")
    write_json(folder / "llm2vec_config.json", {"pooling_mode": "mean"})
    source = resolve_model(str(folder))
    assert digest_of_base(source, model=settings(folder, "mean", "skip"))
    with pytest.raises(BadInput, match=r"llm2vec_config.json: says that the mean of a text's own"):
        digest_of_base(source, model=settings(folder, "last", "skip"))


@pytest.mark.parametrize(
    ("kind", "processor"),
    [
        ("TokenizersBackend", "ours"),
        ("PreTrainedTokenizerFast", "llama3"),
        ("Qwen2Tokenizer", "bytes"),
        ("GPT2Tokenizer", "none"),
        ("GPTNeoXTokenizer", "bytes"),
    ],
)
def test_a_tokenizer_is_written_as_it_is_used(
    kind: str, processor: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """Whatever class it has, and whatever else its post-processor does."""
    base = shutil.copytree(bases["llama"], tmp_path / "base")
    path = base / "tokenizer_config.json"
    write_json(path, {**read_json(path), "tokenizer_class": kind})
    path = base / "tokenizer.json"
    ours = read_json(path)["post_processor"]
    of_bytes = read_json(bases["qwen3"] / "tokenizer.json")["post_processor"]
    changed = {
        "ours": ours,
        "bytes": of_bytes,
        "llama3": {"type": "Sequence", "processors": [of_bytes, ours]},
        "none": None,
    }[processor]
    write_json(path, {**read_json(path), "post_processor": changed})
    for pooling, begin in AROUND:
        source = ModelSource.of_folder(base)
        tokenizer = training_tokenizer(source, model=settings(base, pooling, begin))
        before, after = special_around(tokenizer)
        assert after == ((END,) if pooling == "last" else ())
        assert begin != "none" or not before
        out = tmp_path / f"{pooling}-{begin}"
        shutil.copytree(base, out)
        save_tokenizer(tokenizer, out=out)
        again = AutoTokenizer.from_pretrained(out)
        for text in ("a", "", "The old bridge crosses the river."):
            assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
            inner = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert again(text)["input_ids"] == [*before, *inner, *after]
        if processor == "llama3" and kind == "PreTrainedTokenizerFast":
            written = read_json(out / "tokenizer.json")["post_processor"]
            assert of_bytes in written["processors"]


@pytest.mark.parametrize("has_begin", [True, False])
def test_a_tokenizer_of_llamas_class_says_it_twice(has_begin: bool, tmp_path: Path) -> None:
    """transformers 4 builds what its tokenizer puts around a text from two flags alone."""
    vocab = {text: n for n, text in enumerate(["<unk>", "<s>", "</s>", "▁", *"abcde"])}
    base = tmp_path / "base"
    base.mkdir()
    LlamaTokenizer(vocab=vocab, merges=[], add_bos_token=has_begin).save_pretrained(base)
    write_json(base / "config.json", {"model_type": "llama"})
    for pooling, begin in AROUND:
        out = shutil.copytree(base, tmp_path / f"{pooling}-{begin}")
        model = settings(base, pooling, begin)
        save_tokenizer(training_tokenizer(ModelSource.of_folder(base), model=model), out=out)
        again = AutoTokenizer.from_pretrained(out)
        assert isinstance(again, LlamaTokenizer)
        before, after = has_begin and begin != "none", pooling == "last"
        assert special_around(again) == ((BEGIN,) * before, (END,) * after)
        written = read_json(out / "tokenizer_config.json")
        assert (written["add_bos_token"], written["add_eos_token"]) == (before, after)
