"""What a model folder says of its own vectors: computed as its makers meant, or refused by name.

sentence-transformers itself writes the folders, and says what their vectors are. Training and
exports know plain decoders only, and refuse by name what encoding computes
(tests/encoding/test_layouts.py has the layouts of published models).
"""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling, WordWeights
from transformers import AutoTokenizer

from tests.conftest import QUICKSTART
from toolkit import evaluate, train
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_json
from toolkit.encoding.encoder import Encoder
from toolkit.model.adapters import chain_of
from toolkit.model.backbone import load_config
from toolkit.model.declared import Use, check_declared, digest_of_base, vector_rules
from toolkit.model.tokenizer import load_tokenizer, special_ids
from toolkit.model.weights import write_encoder_files
from toolkit.settings.model_source import ModelSource, resolve_model
from toolkit.settings.schema import EncoderSettings

TEXTS = ["A short text about canals.", "x", "Two words here.", "The Bridge was closed. " * 40]
WIDTH = 256

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def plain(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bidirectional model whose tokenizer puts nothing around a text."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    shutil.copytree(tiny_model, folder)
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "is_causal": False})
    path = folder / "tokenizer.json"
    write_json(path, {**read_json(path), "post_processor": None})
    return folder


@pytest.fixture(scope="module")
def mean(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that most tests change: the mean after the model."""
    return saved(tmp_path_factory.mktemp("mean") / "saved", [Pooling(WIDTH, "mean")], base=plain)


@pytest.fixture
def save(plain: Path, mean: Path, tmp_path: Path) -> Save:
    """Have sentence-transformers save a folder of these modules after the model."""

    def call(*modules: Any, base: Path = plain, **options: Any) -> Path:
        if modules or base != plain or options:
            given = [*(modules or [Pooling(WIDTH, "mean")])]
            return saved(tmp_path / "saved", given, base=base, **options)
        return shutil.copytree(mean, tmp_path / "saved")

    return call


def saved(folder: Path, modules: list[Any], *, base: Path, **options: Any) -> Path:
    every = [Transformer(str(base)), *modules]
    model = SentenceTransformer(modules=every, device="cpu", **options)
    model.save(str(folder), create_model_card=False)
    return folder


def theirs(folder: Path, texts: list[str] = TEXTS) -> Any:
    options = {"dtype": "float32"}  # not as it is stored, in bf16
    return SentenceTransformer(str(folder), device="cpu", model_kwargs=options).encode(texts)


def ours(folder: Path, **options: Any) -> Any:
    options = {"max_tokens": 1024, **options}
    return Encoder(EncoderSettings(model=str(folder), **options)).encode(TEXTS)


def distance(left: Any, right: Any) -> float:
    return float(np.abs(left - right).max())


def as_before_6(folder: Path, *, pooling: dict[str, Any], **changes: Any) -> None:
    """Rewrite a folder as sentence-transformers wrote it before version 6."""
    modules = read_json(folder / "modules.json")
    for module in modules:
        module["type"] = "sentence_transformers.models." + module["type"].rpartition(".")[2]
    write_json(folder / "modules.json", modules)
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": 1024, "do_lower_case": False, **changes},
    )
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": WIDTH, **pooling})


def test_what_is_computed_here_is_accepted_with_the_same_vectors(save: Save) -> None:
    folder = save()
    assert distance(theirs(folder), ours(folder)) <= 1e-5
    assert digest_of_base(resolve_model(str(folder)))
    flags = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    for pooling in (flags, {}):  # none is the mean as well
        as_before_6(folder, pooling=pooling)
        assert distance(theirs(folder), ours(folder)) <= 1e-5
    # Ways to call it that change no vector.
    path = folder / "config_sentence_transformers.json"
    other = {"similarity_fn_name": "dot", "prompts": {"query": "", "STS": "Same: "}}
    write_json(path, {**read_json(path), **other})
    assert distance(theirs(folder), ours(folder)) <= 1e-5


def refused_by_training(folder: Path, message: str) -> None:
    """And by the export of an adapter upon it."""
    with pytest.raises(BadInput, match=message) as refused:
        digest_of_base(resolve_model(str(folder)))
    assert "give a copy of the folder without modules.json" in str(refused.value)
    with pytest.raises(BadInput, match=message):
        chain_of(str(folder)).check(Use(causal=False))


def test_word_weights_that_leave_out_special_tokens_are_accepted(
    save: Save, plain: Path, tiny_model: Path
) -> None:
    base = shutil.copytree(plain, plain.parent / "begin")
    shutil.copyfile(tiny_model / "tokenizer.json", base / "tokenizer.json")
    tokenizer = load_tokenizer(resolve_model(str(base)))
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    weights = {words[number]: 0.0 for number in special_ids(tokenizer)}
    folder = save(WordWeights(words, weights), Pooling(WIDTH, "mean"), base=base)
    assert distance(theirs(folder), ours(folder)) <= 1e-5
    path = folder / "1_WordWeights" / "config.json"
    whole = read_json(path)
    write_json(path, {**whole, "unknown_word_weight": 0.5})
    with pytest.raises(BadInput, match=r"WordWeights gives '<unk>' the weight 0.5; valid: 0 for"):
        ours(folder)
    write_json(path, {**whole, "word_weights": {}})
    with pytest.raises(BadInput, match=r"WordWeights gives '<s>' the weight 1; valid: 0 for"):
        ours(folder)
    # Other poolings would take the zeros that they make of special tokens.
    write_json(path, whole)
    write_json(folder / "2_Pooling" / "config.json", {"pooling_mode": "max"})
    with pytest.raises(BadInput, match=r"WordWeights stand before the pooling mode 'max', not"):
        ours(folder)
    # And without them, the begin token is in the mean.
    shutil.rmtree(folder)
    folder = save(base=base)
    assert distance(theirs(folder), ours(base)) > 0.05
    assert distance(theirs(folder), ours(folder)) <= 1e-5
    refused_by_training(folder, r"Pooling takes '<s>' into the mean, without WordWeights")


def test_exported_weights_are_of_special_tokens_alone(tiny_model: Path, tmp_path: Path) -> None:
    """sentence-transformers looks up a word that has no weight in small letters."""
    tokenizer = load_tokenizer(resolve_model(str(tiny_model)))
    tokenizer.add_tokens(["<S>", "<Pad>"])
    config = load_config(resolve_model(str(tiny_model)))
    write_encoder_files(tmp_path, config=config, tokenizer=tokenizer, max_tokens=64, dtype="fp32")
    found = WordWeights(**read_json(tmp_path / "1_WordWeights" / "config.json"))
    weights = found.emb_layer.weight.flatten().tolist()
    assert len(weights) == len(tokenizer) == 8194
    assert [number for number, weight in enumerate(weights) if weight == 0] == [1, 2, 3]
    assert set(weights) == {0.0, 1.0}


def test_an_export_keeps_the_first_tokens(tiny_model: Path, tmp_path: Path) -> None:
    """Whatever the base's tokenizer says: the encoder was trained so."""
    tokenizer = load_tokenizer(resolve_model(str(tiny_model)))
    tokenizer.truncation_side = "left"
    config = load_config(resolve_model(str(tiny_model)))
    write_encoder_files(tmp_path, config=config, tokenizer=tokenizer, max_tokens=64, dtype="fp32")
    assert AutoTokenizer.from_pretrained(tmp_path).truncation_side == "right"


def dense() -> Dense:
    torch.manual_seed(0)
    return Dense(WIDTH, WIDTH)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        *(
            ([Pooling(WIDTH, mode)], f"the pooling mode is '{mode}', another pooling than 'mean'")
            for mode in ("cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
        ),
        ([Pooling(WIDTH, ("mean", "max"))], "the pooling mode is 'mean' and 'max', another"),
        ([Pooling(WIDTH, "mean"), Normalize()], "Normalize divides each vector by its length"),
        ([Pooling(WIDTH, "mean"), dense()], "Dense multiplies each vector with a matrix"),
        ([Pooling(WIDTH, "mean"), LayerNorm(WIDTH)], "LayerNorm normalises each vector; valid: "),
    ],
)
def test_training_refuses_the_modules_that_encoding_computes(
    modules: list[Any], message: str, save: Save, plain: Path
) -> None:
    """And rightly: the vectors are others than those of a plain decoder."""
    folder = save(*modules)
    found, expected = ours(plain), theirs(folder)
    assert found.shape != expected.shape or distance(found, expected) > 0.05
    if isinstance(modules[-1], LayerNorm):
        with pytest.raises(BadInput, match=message):
            ours(folder)
    else:
        # Not every pooling makes numbers of about one.
        assert distance(ours(folder), expected) <= 1e-5 * max(1.0, np.abs(expected).max())
    refused_by_training(folder, message)
    (folder / "modules.json").unlink()  # what the message says
    assert distance(ours(folder), found) == 0.0


def test_a_folder_with_modules_says_whether_attention_is_causal(save: Save, plain: Path) -> None:
    base = shutil.copytree(plain, plain.parent / "causal")
    write_json(base / "config.json", {**read_json(base / "config.json"), "is_causal": True})
    folder = save(base=base)
    assert distance(theirs(folder), ours(base)) > 0.05
    path = folder / "config.json"
    for told in ({"is_causal": True}, {}):
        config = {key: value for key, value in read_json(path).items() if key != "is_causal"}
        write_json(path, config | told)
        for options in ({}, {"causal": True}):
            assert distance(theirs(folder), ours(folder, **options)) <= 1e-5
        with pytest.raises(BadInput, match=r"causal attention .*; .* give encoder\.causal=true;"):
            chain_of(str(folder)).check(Use(causal=False))  # an export would be bidirectional
    assert digest_of_base(resolve_model(str(folder)))  # training is to change it
    # A plain decoder says nothing of vectors.
    assert distance(ours(base), ours(plain)) == 0.0
    # This does not make it bidirectional unless config.json has the key: too subtle to follow.
    path = folder / "sentence_bert_config.json"
    write_json(path, {**read_json(path), "config_kwargs": {"is_causal": False}})
    assert distance(theirs(folder), ours(base, causal=True)) <= 1e-5
    with pytest.raises(BadInput, match=r"config_kwargs\.is_causal is False, an unknown setting"):
        ours(folder)


@pytest.mark.parametrize("flag", [True, "all"])
def test_the_flag_of_gemma_makes_no_other_model_bidirectional(flag: Any, save: Save) -> None:
    """transformers ignores it in most families: the vectors stay those of causal attention."""
    folder = save()
    wanted, path = theirs(folder), folder / "config.json"
    config = {key: value for key, value in read_json(path).items() if key != "is_causal"}
    write_json(path, {**config, "use_bidirectional_attention": flag})
    assert distance(theirs(folder), wanted) > 0.05
    assert distance(theirs(folder), ours(folder)) <= 1e-5
    message = (
        rf"use_bidirectional_attention={flag!r} and no is_causal=false: .* encoder\.causal=true; "
        '.* write "is_causal": false into'
    )
    with pytest.raises(BadInput, match=message):
        chain_of(str(folder)).check(Use(causal=False))
    assert distance(theirs(folder), ours(folder, causal=True)) <= 1e-5
    write_json(path, {**config, "use_bidirectional_attention": flag, "is_causal": False})
    assert distance(theirs(folder), ours(folder)) <= 1e-5
    assert distance(theirs(folder), wanted) == 0.0


@pytest.mark.parametrize("file", ["tokenizer_config.json", "tokenizer.json"])
def test_a_tokenizer_that_keeps_the_last_tokens_is_refused(file: str, save: Save) -> None:
    folder = save()
    as_before_6(folder, pooling={}, max_seq_length=16)
    wanted, path = theirs(folder), folder / file
    left = {
        "tokenizer_config.json": {"truncation_side": "left"},
        "tokenizer.json": {
            "truncation": {
                "direction": "Left",
                "max_length": 16,
                "strategy": "LongestFirst",
                "stride": 0,
            }
        },
    }
    config = folder / "tokenizer_config.json"
    write_json(config, {k: v for k, v in read_json(config).items() if k != "truncation_side"})
    write_json(path, {**read_json(path), **left[file]})
    assert distance(theirs(folder), wanted) > 0.01
    with pytest.raises(
        BadInput, match=r"truncation_side 'left', which cuts off a text's beginning"
    ):
        ours(folder, max_tokens=16)
    (folder / "modules.json").unlink()
    (folder / "llm2vec_config.json").write_text("{}")
    with pytest.raises(
        BadInput, match=r"truncation_side 'left', which cuts off a text's beginning"
    ):
        ours(folder, max_tokens=16)
    (folder / "llm2vec_config.json").unlink()
    assert distance(wanted, ours(folder, max_tokens=16)) <= 1e-5  # what the message says


def test_the_first_settings_that_say_something_count(save: Save) -> None:
    folder = save()
    as_before_6(folder, pooling={})
    write_json(folder / "sentence_bert_config.json", {})
    other = {"max_seq_length": 16, "do_lower_case": False}
    write_json(folder / "sentence_distilbert_config.json", other)
    with pytest.raises(BadInput, match=r"cut at 16 tokens .*sentence_distilbert_config\.json"):
        ours(folder)
    assert distance(theirs(folder), ours(folder, max_tokens=16)) <= 1e-5
    wanted = theirs(folder)
    write_json(folder / "sentence_distilbert_config.json", {**other, "do_lower_case": True})
    assert distance(theirs(folder), wanted) > 0.05
    assert distance(theirs(folder), ours(folder, max_tokens=16)) <= 1e-5
    refused_by_training(folder, r"sentence_distilbert_config\.json: do_lower_case is true")


def test_a_length_of_null_is_that_of_the_tokenizer(save: Save) -> None:
    folder = save()
    as_before_6(folder, pooling={}, max_seq_length=None)
    path = folder / "tokenizer_config.json"
    write_json(path, {**read_json(path), "model_max_length": 16})
    with pytest.raises(BadInput, match=r"cut at 16 tokens \(.*model_max_length\)"):
        ours(folder)
    assert distance(theirs(folder), ours(folder, max_tokens=16)) <= 1e-5


@pytest.mark.parametrize("length", [0, -1, True, False, 16.5, "16", [16]])
def test_a_length_that_is_none_is_refused(length: Any, save: Save) -> None:
    folder = save()
    as_before_6(folder, pooling={}, max_seq_length=length)
    with pytest.raises(BadInput, match=r"max_seq_length is .*; valid: a whole number from 1 on"):
        ours(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": {"a": "Say: "}, "default_prompt_name": "a"}, "default prompt puts 'Say: '"),
        ({"prompts": {"query": "query: "}}, "the prompt of 'query' puts 'query: ' before each"),
        ({"truncate_dim": 16}, "truncate_dim keeps 16 numbers of each vector"),
    ],
)
def test_training_refuses_the_settings_that_encoding_follows(
    options: dict[str, Any], message: str, save: Save
) -> None:
    folder = save(**options)
    assert distance(ours(folder), theirs(folder)) <= 1e-5
    refused_by_training(folder, message)
    if "truncate_dim" in options:
        settings = EncoderSettings(model=str(folder), max_tokens=1024)
        assert Encoder(settings).width == 16
        assert distance(Encoder(settings, dims=16).encode(TEXTS), theirs(folder)) <= 1e-5
        assert distance(Encoder(settings, dims=8).encode(TEXTS), theirs(folder)[:, :8]) <= 1e-5


@pytest.mark.parametrize(
    ("settings_of_all", "message"),
    [
        ({"default_prompt_name": "b"}, "is 'b', which is none of its prompts; valid: 'a'"),
        ({"default_prompt_name": 5}, "default_prompt_name is 5, not the name of a prompt"),
        ({"prompts": {"a": 5}}, "the prompt 'a' is 5, not a text"),
        ({"truncate_dim": 0}, "truncate_dim is 0; valid: a whole number from 1 on"),
        ({"truncate_dim": 999}, "dims=999: the vectors of .* have 256 numbers"),
        ({"model_type": "SparseEncoder"}, "another than 'SentenceTransformer'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    settings_of_all: dict[str, Any], message: str, save: Save
) -> None:
    folder = save(prompts={"a": "Say: "})
    path = folder / "config_sentence_transformers.json"
    write_json(path, {**read_json(path), **settings_of_all})
    with pytest.raises(BadInput, match=message):
        ours(folder)


def test_a_chat_template_is_refused(save: Save, plain: Path) -> None:
    """sentence-transformers puts every text into it, without being told to."""
    base = shutil.copytree(plain, plain.parent / "chat")
    template = "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
    (base / "chat_template.jinja").write_text(template)
    folder = save(base=base)
    assert distance(theirs(folder), ours(base)) > 0.05
    with pytest.raises(BadInput, match=r"modality_config has 'message': .*, not only plain text"):
        ours(folder)


def test_texts_are_not_cut_later_than_they_were_meant_to_be(save: Save) -> None:
    folder = save()
    path = folder / "tokenizer_config.json"
    write_json(path, {**read_json(path), "model_max_length": 24})
    with pytest.raises(BadInput, match=r"max_tokens=1024: .* cut at 24 tokens .*at most 24"):
        ours(folder)
    assert distance(theirs(folder), ours(folder, max_tokens=24)) <= 1e-5
    as_before_6(folder, pooling={}, max_seq_length=16)
    with pytest.raises(
        BadInput, match=r"max_tokens=24: .* \(.*sentence_bert_config\.json: max_seq"
    ):
        ours(folder, max_tokens=24)
    assert distance(theirs(folder), ours(folder, max_tokens=16)) <= 1e-5


@pytest.mark.parametrize(
    ("pooling", "changes", "message"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, {}, "'cls', another"),
        (
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            {},
            "'cls' and 'mean'",
        ),
        ({}, {"do_lower_case": True}, "do_lower_case is true, which lowers a text's letters"),
    ],
)
def test_old_layouts_are_read_too(
    pooling: dict[str, Any], changes: dict[str, Any], message: str, save: Save
) -> None:
    folder = save()
    as_before_6(folder, pooling=pooling, **changes)
    assert distance(theirs(folder), ours(folder)) <= 1e-5
    refused_by_training(folder, message)


@pytest.mark.parametrize(
    ("pooling", "changes", "message"),
    [
        ({"pooling_mode_new_tokens": True}, {}, "pooling_mode_new_tokens is True, an unknown"),
        ({"pooling_mode": "median"}, {}, "the pooling mode is 'median'; valid: cls, max, mean"),
        ({"pooling_mode": []}, {}, "the pooling mode is none; valid: cls, max, mean"),
        ({}, {"model_args": {"subfolder": "x"}}, "model_args.subfolder is 'x', an unknown setting"),
    ],
)
def test_unknown_settings_of_modules_are_refused(
    pooling: dict[str, Any], changes: dict[str, Any], message: str, save: Save
) -> None:
    folder = save()
    as_before_6(folder, pooling=pooling, **changes)
    with pytest.raises(BadInput, match=message):
        ours(folder)
    refused_by_training(folder, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_features": 99}, "Dense takes vectors of 99 numbers, and gets 256"),
        ({"out_features": 99}, r"holds .*, and its config\.json says .*99"),
        ({"bias": False}, r"holds .*linear\.bias.*, and its config\.json says"),
        ({"in_features": None}, r"are \[None, 256\]; valid: whole numbers from 1 on"),
        ({"use_residual": True}, "use_residual is True, an unknown setting"),
        ({"activation_function": "torch.nn.Softmax"}, "'torch.nn.Softmax'; valid, of torch.nn: "),
        ({"activation_function": "mine.Tanh"}, "activation_function is 'mine.Tanh'; valid"),
        ({"module_input_name": "token_embeddings"}, "another than 'sentence_embedding'"),
    ],
)
def test_a_dense_that_does_not_fit_is_refused(
    changes: dict[str, Any], message: str, save: Save
) -> None:
    folder = save(Pooling(WIDTH, "mean"), dense())
    path = folder / "2_Dense" / "config.json"
    whole = read_json(path)
    write_json(path, whole | changes)
    with pytest.raises(BadInput, match=message):
        ours(folder)
    write_json(path, whole)
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"model\.safetensors: is missing; convert the weights of"):
        ours(folder)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            [("custom_st.Transformer", ""), ("custom_st.Pooling", "1_Pooling")],
            "a module of its own",
        ),
        ([("sentence_transformers.models.Transformer", "")], "the modules are Transformer; valid"),
        ([], "the modules are none; valid"),
        (
            [
                ("sentence_transformers.models.Transformer", ""),
                ("sentence_transformers.models.Normalize", "2_Normalize"),
                ("sentence_transformers.models.Pooling", "1_Pooling"),
            ],
            "the modules are Transformer, Normalize, Pooling; valid",
        ),
        *(
            (
                [
                    ("sentence_transformers.models.Transformer", ""),
                    ("sentence_transformers.models.Pooling", "1_Pooling"),
                    (f"sentence_transformers.models.{kind}", f"2_{kind}"),
                ],
                message,
            )
            for kind, message in (
                ("Router", "Router sends texts through different modules"),
                ("CNN", "CNN is another way to a vector"),
                ("LSTM", "LSTM is another way to a vector"),
                ("Dropout", "Dropout drops numbers of each vector"),
                ("WeightedLayerPooling", "WeightedLayerPooling is another way to a vector"),
            )
        ),
        (
            [
                ("sentence_transformers.models.Transformer", "0_Transformer"),
                ("sentence_transformers.models.Pooling", "1_Pooling"),
            ],
            "the Transformer is in '0_Transformer', not in this folder",
        ),
    ],
)
def test_other_modules_are_refused(
    modules: list[tuple[str, str]], message: str, save: Save
) -> None:
    folder = save()
    rows = [{"type": kind, "path": path} for kind, path in modules]
    write_json(folder / "modules.json", rows)
    with pytest.raises(BadInput, match=message):
        ours(folder)


def test_what_llm2vec_says_is_read(tmp_path: Path, plain: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "model")
    path = folder / "llm2vec_config.json"
    whole = {"pooling_mode": "mean", "max_length": 1024, "skip_instruction": True}
    write_json(path, whole)
    assert distance(ours(folder), ours(plain)) == 0.0
    for changes, message in (
        ({"pooling_mode": "eos_token"}, "pooling_mode is 'eos_token', another pooling"),
        ({"skip_instruction": False}, "skip_instruction is false, which pools instructions too"),
        ({"max_length": 128}, r"max_tokens=1024: .* cut at 128 tokens"),
    ):
        write_json(path, whole | changes)
        with pytest.raises(BadInput, match=message):
            ours(folder)


def test_an_adapters_own_modules_count(save: Save, tiny_model: Path, tmp_path: Path) -> None:
    """sentence-transformers writes them beside an adapter as well."""
    folder = save(Pooling(WIDTH, "lasttoken"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": str(tiny_model), "r": 4}
    write_json(adapter / "adapter_config.json", config)
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        shutil.copyfile(folder / name, adapter / name)
    shutil.copytree(folder / "1_Pooling", adapter / "1_Pooling")
    with pytest.raises(
        BadInput, match=r"adapter/1_Pooling/config\.json: the pooling mode is 'last"
    ):
        chain_of(str(adapter)).check(Use(causal=False))
    rules = chain_of(str(adapter)).rules(EncoderSettings(model=str(adapter)))
    assert rules.modes == ("lasttoken",)


def test_training_refuses_before_it_works_and_evaluation_follows(
    save: Save, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(Pooling(WIDTH, "cls"))
    run = [f"run_dir={tmp_path / 'run'}", f"data.train={shards}", f"model.base={folder}"]
    assert train.main(["tiny_mntp", *run]) == 2
    assert "the pooling mode is 'cls'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    recipe = {
        "kind": "evaluate",
        "output_dir": str(tmp_path / "scores"),
        "encoders": {"whole": {"model": str(folder)}},
        "sts": {"dev": str(tmp_path / "dev.tsv")},
    }
    lines = (QUICKSTART / "sts_dev.tsv").read_text().splitlines()[:40]
    (tmp_path / "dev.tsv").write_text("\n".join(lines))
    (tmp_path / "scores.yaml").write_text(json.dumps(recipe))
    assert evaluate.main([str(tmp_path / "scores.yaml")]) == 0
    (scores,) = read_json(tmp_path / "scores" / "scores.json").values()
    golds, *sides = zip(*(line.split("\t") for line in lines), strict=True)
    found = [theirs(folder, list(side)) for side in sides]
    cosines = np.vecdot(*found) / np.prod([np.linalg.norm(side, axis=1) for side in found], axis=0)
    expected = spearmanr(cosines, [float(gold) for gold in golds]).statistic
    assert expected in [pytest.approx(score, abs=1e-3) for score in scores.values()] or any(
        score == pytest.approx(100 * expected, abs=0.1) for score in scores.values()
    )
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "median"})
    assert evaluate.main([str(tmp_path / "scores.yaml"), "output_dir=" + str(tmp_path / "b")]) == 2
    assert "the pooling mode is 'median'" in capsys.readouterr().err


def test_a_folder_of_the_hub_is_read_as_well(
    save: Save, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the cache; a plain decoder beside it stays one."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, folder in (("cls", save(Pooling(WIDTH, "cls"))), ("plain", plain)):
        cached = tmp_path / "hub" / f"models--owner--{name}"
        shutil.copytree(folder, cached / "snapshots" / ("0" * 40))
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("0" * 40)
    with pytest.raises(BadInput, match="the pooling mode is 'cls'"):
        digest_of_base(resolve_model("owner/cls"))
    assert digest_of_base(resolve_model("owner/plain")) == digest_of_base(resolve_model(str(plain)))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.sampled_from(["mean", "cls", "", "text"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("text"), inner),
    max_leaves=4,
)
KEYS = {
    "modules.json": (),
    "1_Pooling/config.json": ("pooling_mode", "pooling_mode_cls_token", "include_prompt"),
    "config_sentence_transformers.json": ("prompts", "default_prompt_name", "truncate_dim"),
    "sentence_bert_config.json": ("modality_config", "max_seq_length", "config_kwargs"),
    "config.json": ("is_causal", "use_bidirectional_attention"),
    "llm2vec_config.json": ("pooling_mode", "max_length"),
}


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_strange_values_are_refused_and_nothing_else(data: st.DataObject, tmp_path: Path) -> None:
    """Whatever JSON stands in these files, a folder is accepted or refused as `BadInput`."""
    contents: dict[str, Any] = {
        "modules.json": [
            {"type": "sentence_transformers.models.Transformer", "path": ""},
            {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
        ]
    }
    name = data.draw(st.sampled_from(sorted(KEYS)))
    keys = data.draw(st.sets(st.sampled_from(KEYS[name]))) if KEYS[name] else set()
    contents[name] = {key: data.draw(VALUES) for key in keys} if keys else data.draw(VALUES)
    for file in KEYS:
        write_json(tmp_path / file, contents.get(file, {}))
    with contextlib.suppress(BadInput):
        use = Use(causal=False, max_tokens=8, dims=None)
        check_declared([tmp_path], tokenizer=ModelSource.of_folder(tmp_path / "none"), use=use)
    with contextlib.suppress(BadInput):
        source = ModelSource.of_folder(tmp_path / "none")
        asked = EncoderSettings(model=str(tmp_path), max_tokens=8)
        vector_rules([tmp_path], tokenizer=source, settings=asked)
