"""The doors and what a person may get wrong: exit code 2, one line that says what to do, and
nothing written."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import QUICKSTART, ROOT, run
from toolkit.command_line.door import guarded
from toolkit.evaluation import corpora
from toolkit.evaluation import program as evaluation
from toolkit.settings.catalogue import made_of, recipe_names
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import KINDS

DOORS = ("train", "encode", "questions", "evaluate", "export", "search", "launch", "plan", "ready")
Harm = Callable[[Path], None]
Refused = Callable[..., str]


def main(door: str, *arguments: object) -> int:
    code: int = import_module(f"toolkit.{door}").main([str(argument) for argument in arguments])
    return code


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a door that must refuse; its one line."""

    def call(door: str, *arguments: object) -> str:
        capsys.readouterr()
        assert main(door, *arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return call


@pytest.fixture
def command(tmp_path: Path, shards: Path, tiny_model: Path) -> Callable[..., list[str]]:
    """The command line of a door that would work, on this model and these shards; it writes to
    `tmp_path / "out"`."""

    def arguments(door: str, *, model: Path = tiny_model, corpus: Path = shards) -> list[str]:
        out = tmp_path / "out"
        if door == "encode":
            places = [f"output_dir={out}", f"encoder.model={model}", f"corpus.input={corpus}"]
            return ["tiny_embed", *places]
        if door == "evaluate":
            task = {"corpus": str(corpus), "queries": str(QUICKSTART / "queries_dev.jsonl")}
            recipe = {
                "kind": "evaluate",
                "output_dir": str(out),
                "encoders": {"one": {"model": str(model), "max_tokens": 8}},
                "retrieval": {"articles": task},
            }
            path = tmp_path / "evaluate.yaml"
            path.write_text(json.dumps(recipe))
            return [str(path)]
        assert door in ("tiny_mntp", "tiny_simcse")
        return [door, f"run_dir={out}", f"model.base={model}", f"data.train={corpus}"]

    return arguments


def door_of(name: str) -> str:
    return "train" if name.startswith("tiny_") else name


def test_these_commands_would_work(
    command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Else the refusals below might have another reason. Encoding and training have own tests."""
    for module in (evaluation, corpora):
        monkeypatch.setattr(module, "LINE_S", 0.0)  # what takes longer says how far it is
    assert main("evaluate", *command("evaluate")) == 0
    assert (tmp_path / "out" / "scores.json").is_file()
    printed = capsys.readouterr().out
    assert "one: encode: 170/170 rows" in printed and "one: encode: 60/60 rows" in printed


# --- the shards ---


def missing(folder: Path) -> None:
    shutil.rmtree(folder)


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def flipped(folder: Path) -> None:
    path = folder / "shard-00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["tiny_mntp", "encode", "evaluate"])
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (missing, "no such directory; make it with: python data_scripts/shard_wikipedia.py"),
        (emptied, "has no shards; make it with: python data_scripts/shard_wikipedia.py"),
        (flipped, "shard-00000.parquet: is damaged (its SHA-256 differs); delete"),
    ],
)
def test_shards_that_cannot_be_used(
    name: str,
    harm: Harm,
    message: str,
    shards: Path,
    tmp_path: Path,
    command: Callable[..., list[str]],
    refused: Refused,
) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(shards, corpus)
    harm(corpus)
    assert message in refused(door_of(name), *command(name, corpus=corpus))
    assert not (tmp_path / "out").exists()


# --- the model ---


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_a_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def configured(**changes: object) -> Harm:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return change


MODELS: dict[str, tuple[Harm, str]] = {
    "gone": (missing, "no such folder, and not a hub name (owner/name)"),
    "no weights": (without_weights, "has no weights (*.safetensors); download the model whole"),
    "no config": (without_config, "the folder has no config.json"),
    "no tokenizer": (without_tokenizer, "no tokenizer that can be read"),
    "truncated": (truncated, "model.safetensors: is not a whole safetensors file"),
    "a weight missing": (without_a_weight, "1 weights are missing: "),
    "other shapes": (configured(intermediate_size=512), "have another shape than its config.json"),
    "fewer layers": (configured(num_hidden_layers=1), "weights of 2 layers, and num_hidden_layers"),
    "other family": (configured(model_type="nonesuch"), "cannot be read (The checkpoint you are"),
    "code of its own": (configured(auto_map={"AutoModel": "x.Y"}), "wants to run code of its own"),
}


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("name", ["tiny_mntp", "tiny_mntp zero2", "encode", "evaluate"])
def test_models_that_cannot_be_used(
    name: str,
    case: str,
    tiny_model: Path,
    tmp_path: Path,
    command: Callable[..., list[str]],
    refused: Refused,
) -> None:
    """tiny_mntp is ZeRO-3, where transformers loads by other code: nothing is filled at random."""
    harm, message = MODELS[case]
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    harm(model)
    recipe, *layout = name.split()
    arguments = [*command(recipe, model=model), *(f"deepspeed.config={text}" for text in layout)]
    line = refused(door_of(recipe), *arguments)
    assert message in line
    assert str(model) in line
    assert not (tmp_path / "out").exists()


# --- the recipe ---


@pytest.mark.parametrize("door", ["train", "encode", "evaluate"])
def test_recipes_that_cannot_be_used(
    door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, key = {
        "train": ("tiny_mntp", "train.stpes"),
        "encode": ("tiny_embed", "encoder.modle"),
        "evaluate": ("quickstart_evaluate", "output_dri"),
    }[door]
    assert "unknown recipe 'mntp_gpt9'; a YAML file or one of: " in refused(door, "mntp_gpt9")
    wrong = "tiny_embed" if door == "train" else "tiny_mntp"
    assert f"toolkit.{door} takes " in refused(door, wrong)
    line = refused(door, recipe, f"{key}=3")
    assert f"unknown key '{key}'; valid keys here: " in line
    assert "write key.path=value, such as train.steps=100" in refused(door, recipe, "steps")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        ("tiny_simcse", "train.global_batch_rows=1", "a contrastive row needs others beside it"),
        ("tiny_mntp", "mntp.mask_token=[MASK]", "mntp.mask_token"),
        ("tiny_mntp", "mntp.mask_token=nonesuch", "is not a token of this model; use one that"),
        ("tiny_mntp", "model.lora.targets=[wq]", "'wq' is no linear layer of this model; valid: "),
        ("tiny_mntp", "deepspeed.config=zero9", "is neither a file nor one of zero0, zero1, "),
        ("tiny_simcse", "train.micro_batch_tokens=0", "greater than or equal to 1, not 0"),
    ],
)
def test_settings_that_do_not_fit(
    recipe: str,
    override: str,
    message: str,
    tmp_path: Path,
    command: Callable[..., list[str]],
    refused: Refused,
) -> None:
    assert message in refused("train", *command(recipe), override)
    assert not (tmp_path / "out").exists()


def test_a_token_budget_needs_packed_rows(
    command: Callable[..., list[str]], tmp_path: Path, refused: Refused
) -> None:
    arguments = [*command("tiny_simcse"), "train.micro_batch_tokens=64", "model.attention=sdpa"]
    assert "needs model.attention=packed, not sdpa" in refused("train", *arguments)
    assert not (tmp_path / "out").exists()


def test_ranks_that_do_not_divide_the_batch(
    command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Found out before the ranks look for each other: two of the three do not exist. A recipe that
    fits any ranks takes a larger batch, and says so once."""
    from toolkit.training import program

    def started(*_arguments: object, **_settings: object) -> None:
        raise AssertionError("the ranks look for each other")

    # A watchdog that fails ends its process, which here would be pytest's own.
    monkeypatch.setattr(program, "Watchdog", started)
    ranks = {"RANK": 0, "WORLD_SIZE": 3, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 3}
    for variable, value in ranks.items():
        monkeypatch.setenv(variable, str(value))
    line = refused("train", *command("tiny_mntp"), "train.fit_ranks=false")
    assert "train.global_batch_rows=8 cannot be dealt to 3 ranks; use a multiple of 3" in line
    assert not (tmp_path / "out").exists()
    with pytest.raises(AssertionError, match="the ranks look for each other"):
        main("train", *command("tiny_mntp"), "train.global_batch_rows=9")
    capsys.readouterr()
    for rank, said in ((0, ["mntp: train.global_batch_rows is 9 instead of 8"]), (1, [])):
        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises(AssertionError, match="the ranks look for each other"):
            main("train", *command("tiny_mntp"))
        assert [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()] == said


@pytest.mark.parametrize("name", ["tiny_mntp", "encode", "evaluate"])
def test_an_output_that_is_a_file(
    name: str, tmp_path: Path, command: Callable[..., list[str]], refused: Refused
) -> None:
    (tmp_path / "out").write_text("mine")
    assert " is a file" in refused(door_of(name), *command(name))
    assert (tmp_path / "out").read_text() == "mine"


# --- what is refused at once ---


def test_what_can_be_refused_without_torch_is(
    shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """All doors in one new interpreter: importing torch and transformers takes seconds."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "plan.json").write_text("{}")
    (tmp_path / "evaluate.yaml").write_text(
        json.dumps(
            {
                "kind": "evaluate",
                "output_dir": str(tmp_path / "scores"),
                "encoders": {"one": {"model": str(tiny_model), "max_tokens": 8}},
                "sts": {"pairs": str(tmp_path / "pairs.tsv")},
            }
        )
    )
    absent, taken = str(tmp_path / "absent"), str(tmp_path / "taken")
    train = ["toolkit.train", "tiny_mntp", f"run_dir={tmp_path / 'run'}", f"data.train={shards}"]
    embed = ["toolkit.encode", "tiny_embed", f"output_dir={tmp_path / 'e'}"]
    mine = ["data_scripts.mine_negatives", "--output", str(tmp_path / "m"), "--pairs"]
    commands = [
        [*train[:3], f"data.train={absent}"],
        [*train, f"model.base={absent}"],
        [*train, f"model.base={taken}"],
        [*train, "deepspeed.config=zero9"],
        ["toolkit.train", "tiny_simcse", *train[2:], "train.global_batch_rows=1"],
        ["toolkit.train", "tiny_supervised", f"run_dir={absent}", f"data.train={absent}"],
        [*embed, f"corpus.input={absent}", f"encoder.model={tiny_model}"],
        [*embed, f"corpus.input={shards}", f"encoder.model={absent}"],
        ["toolkit.evaluate", str(tmp_path / "evaluate.yaml")],
        ["toolkit.evaluate", str(tmp_path / "evaluate.yaml"), f"encoders.one.model={absent}"],
        ["toolkit.export", absent, str(tmp_path / "out")],
        ["toolkit.export", taken, str(tmp_path / "out")],
        ["toolkit.export", str(tiny_model), taken],
        ["toolkit.merge", str(tiny_model), absent, str(tmp_path / "out"), "--ratios", "0.5"],
        ["toolkit.merge", absent, taken, str(tmp_path / "out"), "--weights", "0.5,0.6"],
        ["toolkit.search", absent, "query"],
        ["toolkit.search", str(tmp_path / "unfinished"), "query"],
        ["toolkit.search", absent, "--build-index", "flat"],
        ["toolkit.verify", absent],
        ["toolkit.verify", taken],
        ["toolkit.report", absent],
        ["toolkit.status", absent],
        ["toolkit.plan", absent],
        ["toolkit.prefetch", absent],
        ["toolkit.launch", "--recipe", absent],
        ["data_scripts.shard_wikipedia", "--input", absent, "--output", absent],
        ["data_scripts.shard_wikipedia", "--input", taken, "--output", absent, "--model", absent],
        ["data_scripts.tokenize_shards", "--shards", absent, "--model", str(tiny_model)],
        ["data_scripts.verify_shards", absent],
        ["data_scripts.prepare_pairs", "--input", absent, "--output", absent],
        [*mine, absent, "--embeddings", absent],
    ]
    code = """
import importlib, json, sys
for door, *arguments in json.loads(sys.argv[1]):
    code = importlib.import_module(door).main(arguments)
    slow = {"torch", "transformers", "deepspeed", "peft"} & set(sys.modules)
    assert code == 2 and not slow, (door, arguments, code, slow)
"""
    printed = run([sys.executable, "-c", code, json.dumps(commands)], real=True)
    assert printed.count("error: ") == len(commands), printed


# --- mistyped words ---


@pytest.mark.parametrize(
    ("door", "words", "near"),
    [
        ("train", ["tiny_mtnp"], "tiny_mntp"),
        ("encode", ["embed_korpus"], "embed_corpus"),
        ("evaluate", ["--reproduce", "mistrall_7b"], "reproduce_mistral_7b"),
        ("plan", ["llm2vec_mistral7b"], "llm2vec_mistral_7b"),
        ("plan", ["mntp_mistral_7b", "--gpu", "h10"], "h100"),
        ("launch", ["tiny_pipline"], "tiny_pipeline"),
        ("launch", ["tiny_pipeline", "mtnp.train.steps=3"], "mntp.train.steps"),
        ("launch", ["tiny_pipeline", "train.stpes=3"], "train.steps"),
        ("train", ["tiny_mntp", "train.stpes=3"], "train.steps"),
        ("launch", ["tiny_pipeline", "stpes=3"], "train.steps"),
        ("train", ["tiny_mntp", "lr=1"], "train.lr"),
        ("train", ["tiny_mntp", "stpes=3"], "train.steps"),
        ("train", ["tiny_mntp", "model.dtype=fp23"], "fp32"),
        ("train", ["tiny_mntp", "deepspeed.config=zer3"], "zero3"),
        ("evaluate", ["quickstart_evaluate", "encoders.mine.modle=x"], "encoders.mine.model"),
        ("evaluate", ["quickstart_evaluate", "retreival.a=x"], "retrieval"),
        ("evaluate", ["quickstart_evaluate", "sst.a=x"], "sts"),
    ],
)
def test_a_mistyped_recipe_or_key_is_recognised(
    door: str, words: list[str], near: str, tmp_path: Path, refused: Refused
) -> None:
    here = [] if door in ("plan", "launch", "encode", "evaluate") else [f"run_dir={tmp_path}/r"]
    assert refused(door, *words, *here).endswith(f"; did you mean {near!r}?")


def test_a_word_like_no_other_has_no_suggestion(refused: Refused) -> None:
    assert "did you mean" not in refused("train", "quetzalcoatl")
    assert "did you mean" not in refused("train", "tiny_mntp", "quetzalcoatl=3")


@pytest.mark.parametrize(
    ("door", "words", "near"),
    [
        ("launch", ["--nodse", "3"], "--nodes"),
        ("launch", ["--cluster", "slrum"], "slurm"),
        ("search", ["ENC", "--build-index", "hsnw"], "hnsw"),
        ("train", ["tiny_mntp", "--print-cofnig"], "--print-config"),
    ],
)
def test_a_mistyped_option_or_choice_is_recognised(
    door: str, words: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(door, *words)
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(f"; did you mean {near!r}?\n")


@pytest.mark.parametrize(("door", "needed"), [("train", "recipe"), ("search", "encoding")])
def test_only_what_is_required_is_said_to_be(
    door: str, needed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(door)
    assert capsys.readouterr().err.endswith(f"arguments are required: {needed}\n")


def test_a_mistyped_task_is_recognised(
    command: Callable[..., list[str]], tmp_path: Path, refused: Refused
) -> None:
    path = Path(command("evaluate")[0])
    recipe = json.loads(path.read_text())
    path.write_text(json.dumps({**recipe, "instructions": {"artcles": "Find the article"}}))
    line = refused("evaluate", path)
    assert line.endswith(
        "instructions.artcles: no such task; there are articles; did you mean 'articles'?"
    )
    assert not (tmp_path / "out").exists()


# --- which recipes a door lists ---


def recipes_listed(text: str) -> set[str]:
    """The names in the last paragraph of a help text, without the kinds before them."""
    given, _, bases = text.partition("recipes of the project:\n")[2].partition("\n  BASE: ")
    named, filled_in = (
        [name for line in f"{part}".splitlines() for name in line[13:].replace(",", " ").split()]
        for part in (given, f"  BASE: {bases}" if bases else "")
    )
    return expanded(named, bases=filled_in)


def expanded(names: Iterable[str], *, bases: Sequence[str]) -> set[str]:
    """The names, each STAGE_BASE as one for every base."""
    return {
        full
        for name in names
        for full in ([name.replace("BASE", base) for base in bases] if "BASE" in name else [name])
    }


@pytest.mark.parametrize(
    ("door", "kinds"),
    [
        ("train", {"mntp", "simcse", "supervised", "graded"}),
        ("encode", {"embed"}),
        ("questions", {"questions"}),
        ("evaluate", {"evaluate"}),
        ("plan", {"pipeline", "mntp", "simcse", "supervised", "graded", "embed", "questions"}),
        ("launch", set(KINDS)),
        ("ready", set(KINDS)),
        ("prefetch", set(KINDS)),
    ],
)
def test_a_door_lists_the_recipes_of_its_own_kinds(
    door: str, kinds: set[str], capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    own = {name for name in recipe_names() if load_recipe(name).kind in kinds}
    with pytest.raises(SystemExit):
        main(door, "--help")
    shown = capsys.readouterr().out
    assert recipes_listed(shown) == own
    assert all(f"\n  {kind} " in shown for kind in kinds)
    listed = refused(door, "quetzalcoatl").partition("one of: ")[2]
    bases = [name.partition("_")[2] for name in own if name.startswith("mntp_") and made_of(name)]
    assert expanded(listed.split(", "), bases=bases) == own


# --- the list of the doors ---


def test_the_package_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    from toolkit.__main__ import DOORS as LISTED
    from toolkit.__main__ import main as list_commands

    top = ROOT / "toolkit"
    files = {path.stem: path for path in top.glob("*.py") if path.stem != "__main__"}
    files |= {path.parent.name: path for path in top.glob("*/__main__.py")}
    programs = {
        name for name, path in files.items() if 'if __name__ == "__main__"' in path.read_text()
    }
    assert set(LISTED) == programs
    assert list_commands([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, what in LISTED.items():
        assert f"  python -m toolkit.{name:<12}{what}" in lines
    assert list_commands(["trian"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'trian'; did you mean 'train'?\n"
    assert list_commands(["train", "tiny_mntp"]) == 2
    assert "a command is run as python -m toolkit.train" in capsys.readouterr().err


# --- what every door answers ---


@pytest.mark.parametrize("name", ["tiny_mntp", "tiny_simcse", "encode", "evaluate"])
def test_a_printed_recipe_loads_again(
    name: str,
    command: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe, *overrides = command(name)
    assert main(door_of(name), recipe, *overrides, "--print-config") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    (tmp_path / "printed.yaml").write_text(captured.out)
    expected = load_recipe(recipe, overrides=overrides)
    assert load_recipe(str(tmp_path / "printed.yaml")) == expected
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("door", DOORS)
def test_help_shows_an_example(door: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(door, "--help")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert f"usage: python -m toolkit.{door}" in printed
    example = printed.partition("example")[2]
    assert f"-m toolkit.{door} " in example


@pytest.mark.parametrize("door", DOORS)
def test_an_unknown_option_is_a_usage_error(door: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(door, "--nonesuch")
    assert stop.value.code == 2
    assert f"usage: python -m toolkit.{door}" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 1), (errno.EACCES, 2)])
def test_a_full_disk_or_a_closed_door_is_one_line(
    number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number), "runs/a/file")

    assert guarded(fail) == code
    more = "; make room there, then the same command goes on with what is done" * (code == 1)
    assert capsys.readouterr().err == f"error: runs/a/file: {os.strerror(number)}{more}\n"
