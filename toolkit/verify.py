# PYTHON_ARGCOMPLETE_OK
"""Is it still what was written?  python -m toolkit.verify PATH [PATH ...]

With --against: do other engines make the same vectors of a model?

Knows what a directory is by the names in it, and which module can check it. Refuses to know digests
and layouts: the module that writes a thing checks it too. Nothing is changed or created.
"""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from toolkit.base.console import at_work, say
from toolkit.base.documents import checked
from toolkit.base.errors import BadInput
from toolkit.base.files import is_committed, read_json
from toolkit.base.layout import (
    CHECKPOINT_DIR,
    CONFIG_FILE,
    CORPUS_DIR,
    DOCUMENTS_FILE,
    ENCODER_DIR,
    MANIFEST_FILE,
    MERGED_FILE,
    ORIGIN_FILE,
    PAGE_FILE,
    PART_DIR,
    PLAN_FILE,
    SCORES_FILE,
    SEARCHED_DIR,
    SOURCE_DIR,
    STATE_FILE,
    STEP_PREFIX,
    TRAIN_DIR,
    UNIT_DIR,
)
from toolkit.base.tensor_header import read_header
from toolkit.command_line.completion import answer_shell
from toolkit.command_line.door import Parser, guarded
from toolkit.settings.merge_schema import FolderName
from toolkit.settings.model_source import ModelSource

MAX_TOKENS = 512  # where a folder says nothing, as llm2vec
if TYPE_CHECKING:
    from toolkit.encoding.engines import Engine

KINDS = (
    "a run directory or a checkpoint of toolkit.train, a pipeline of toolkit.launch, an encoder of "
    "toolkit.export, merges of toolkit.merge, an encoding of toolkit.encode, questions of "
    "toolkit.questions, scores of toolkit.evaluate, shards or pairs of data_scripts, or a model "
    "folder"
)


class _Merged(TypedDict):
    merges: dict[FolderName, list[float]]


@dataclasses.dataclass(frozen=True)
class Thing:
    """A directory and its check, which raises `BadInput` with the name of a damaged file, or
    returns a word for the state of the directory."""

    path: Path
    check: Callable[[Path], str]


def main(argv: list[str] | None = None) -> int:
    """The door `python -m toolkit.verify`."""
    parser = Parser(
        prog="python -m toolkit.verify",
        description="Compare every byte with the recorded digests; with --against, the vectors of "
        "models with those that other engines make of them. Nothing is changed.",
        epilog="examples:\n  python -m toolkit.verify runs/simcse shards/wikipedia\n"
        "  python -m toolkit.verify my-encoder --against "
        "sentence-transformers,llm2vec=VENV/bin/python,tei=http://HOST:8080\n\n"
        f"PATH is {KINDS}.\n"
        "Exit codes: 0 all is as it was written, and the vectors are equal; 2 something is not: a "
        "line on stderr names it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="what to check")
    parser.add_argument(
        "--against",
        metavar="ENGINES",
        help="engines with commas between: sentence-transformers, llm2vec, vllm; NAME=PYTHON for "
        "one in another environment; tei=URL and vllm=URL for servers that have the model loaded",
    )
    parser.add_argument(
        "--texts",
        type=Path,
        metavar="FILE",
        help="with --against: a text per line, or JSON lines with a key `text`",
    )
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16"),
        default="fp32",
        help="with --against: of the weights, here and in engines that are started here",
    )
    answer_shell(parser)
    arguments = parser.parse_args(argv)
    if arguments.texts is not None and arguments.against is None:
        parser.error("--texts: needs --against")
    asked: list[Engine] = []
    if arguments.against is not None and (code := guarded(lambda: asked.extend(_asked(arguments)))):
        return code
    codes = [run(path) for path in arguments.paths]
    if asked and not max(codes):
        codes += [
            guarded(functools.partial(_compare, p, asked, arguments)) for p in arguments.paths
        ]
    return max(codes)


def _asked(arguments: argparse.Namespace) -> "list[Engine]":
    from toolkit.encoding.engines import parse_engine

    return [parse_engine(text) for text in arguments.against.split(",")]


def _compare(path: Path, asked: "Sequence[Engine]", arguments: argparse.Namespace) -> None:
    """Print a line per engine. Raises `BadInput` when one makes other vectors or cannot use the
    model, after all were asked; and when none is installed."""
    from toolkit.encoding import engines
    from toolkit.encoding.encoder import Encoder
    from toolkit.model.declared import limit_of

    texts = _read_texts(arguments.texts) if arguments.texts else list(engines.TEXTS)
    model = path / ENCODER_DIR if (path / ENCODER_DIR).is_dir() else path
    max_tokens = limit_of(model) or MAX_TOKENS
    encoder = Encoder.from_pretrained(model, dtype=arguments.dtype, max_tokens=max_tokens)
    ours = encoder.encode(texts)
    faults, compared = [], 0
    for peer in asked:
        try:
            version, theirs = engines.vectors_of(
                peer,
                model=str(model.absolute()),
                texts=texts,
                dtype=arguments.dtype,
                device=encoder.device.type,
            )
            found = engines.compare(ours, theirs)
        except engines.NotInstalled:
            say(f"{model}: {peer.name}: not installed for {peer.place}")
            continue
        except BadInput as error:
            faults.append(str(error))
            continue
        compared += 1
        line = f"{peer.name} {version}: {found.told(texts)}"
        if found.is_same(arguments.dtype):
            say(f"{model}: {line}")
        else:
            faults.append(f"other vectors by {line}")
    if faults:
        raise BadInput(f"{model}: " + "; ".join(faults))
    if not compared:
        raise BadInput(f"{model}: none of these engines is installed; nothing was compared")


def _read_texts(file: Path) -> list[str]:
    try:
        # Not `splitlines`, which would also cut a text at other signs, such as U+2028.
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--texts {file}: {error}") from error
    lines = [line.removesuffix("\r") for line in lines if line.strip()]
    if file.suffix == ".jsonl":
        try:
            lines = [json.loads(line)["text"] for line in lines]
        except (ValueError, TypeError, KeyError) as error:
            raise BadInput(f"--texts {file}: has a line without a key `text`") from error
    if not lines:
        raise BadInput(f"--texts {file}: has no text")
    return lines


def run(path: Path) -> int:
    """Check what is at `path` and print one line per thing in it; returns the exit code.

    A damaged thing gets its line on stderr, and the others are checked all the same. In a pipeline
    every stage is checked, and a last line sums up.
    """
    stages: dict[str, Path] = {}
    if code := guarded(lambda: stages.update(stages_of(path))):
        return code
    if not stages:
        return _run_one(path)
    codes = {name: _run_one(output) for name, output in stages.items() if output.exists()}
    if not codes:
        return guarded(functools.partial(_refuse, f"{path}: none of its stages has begun"))
    parts = [f"{sum(not code for code in codes.values())} of {len(stages)} stages whole"]
    parts += [f"{name} is not" for name, code in codes.items() if code]
    parts += [f"{name} has not begun" for name in stages if name not in codes]
    say(f"{path}: pipeline, {', '.join(parts)}")
    return max(codes.values())


def stages_of(path: Path) -> dict[str, Path]:
    """The directory of each stage of a pipeline, by name; none where `path` is no pipeline.

    Each is looked for where it was launched, or else below `path`, which may have been moved.
    """
    from toolkit.runs.launched import read_launched
    from toolkit.settings.pipeline_schema import PipelineRecipe
    from toolkit.settings.pipelines import output_of, resolve_stages
    from toolkit.settings.recipes import load_recipe

    config = path / CONFIG_FILE
    recipe = load_recipe(str(config)) if config.is_file() else None
    if not isinstance(recipe, PipelineRecipe):
        return {}
    below = resolve_stages(recipe.model_copy(update={"run_dir": str(path)}))
    outputs = {name: output_of(stage) for name, stage in below.items()}
    launched = {stage.name: Path(stage.output) for stage in read_launched(path)}
    return outputs | {name: where for name, where in launched.items() if where.exists()}


def _refuse(why: str) -> None:
    raise BadInput(why)


def _run_one(path: Path) -> int:
    things: list[Thing] = []
    code = guarded(lambda: things.extend(things_at(path)))
    return max([code, *(guarded(functools.partial(_check, thing)) for thing in things)])


def things_at(path: Path) -> Iterator[Thing]:
    """The things to check; a run directory has several. `BadInput` where there is none."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "no such directory"
        raise BadInput(f"{path}: {what}; give {KINDS}")
    names = {entry.name for entry in path.iterdir()}
    if STATE_FILE in names or path.name.startswith(STEP_PREFIX):
        yield Thing(path, _checkpoint)
    elif names & {CONFIG_FILE, CHECKPOINT_DIR}:
        yield from _things_of_run(path)
    elif ORIGIN_FILE in names or (is_committed(path) and "config.json" in names):
        yield Thing(path, _encoder)
    elif names & {PLAN_FILE, UNIT_DIR}:
        yield Thing(path, _units)
    elif MERGED_FILE in names:
        content = checked(
            read_json(path / MERGED_FILE), _Merged, source=path / MERGED_FILE, advice="merge again"
        )
        yield from (Thing(path / name, _encoder) for name in content["merges"])
    elif names & {SCORES_FILE, PART_DIR}:
        yield Thing(path, _scores)
        # Those that are not finished yet are no fault: the evaluation goes on.
        whole = sorted((path / CORPUS_DIR).glob(f"*/{MANIFEST_FILE}"))
        yield from (Thing(file.parent, _corpus) for file in whole)
    elif DOCUMENTS_FILE in names:
        folders = (SOURCE_DIR, SEARCHED_DIR, TRAIN_DIR)
        yield from (Thing(path / name, _texts) for name in folders)
    elif PAGE_FILE in names:
        yield Thing(path, _page)
    elif MANIFEST_FILE in names or any(name.endswith(".parquet") for name in names):
        yield Thing(path, _texts)
    elif "config.json" in names or any(name.endswith(".safetensors") for name in names):
        yield Thing(path, _model)
    else:
        raise BadInput(f"{path}: nothing in it can be checked; give {KINDS}")


def _things_of_run(run_dir: Path) -> Iterator[Thing]:
    from toolkit.training.runs import run_recipe

    run_recipe(run_dir)
    # Those without a marker too: a checkpoint lacks it only if somebody has removed it.
    saved = sorted((run_dir / CHECKPOINT_DIR).glob(f"{STEP_PREFIX}*"))
    if not saved:
        raise BadInput(f"{run_dir}: has no checkpoint yet; there is nothing to check")
    yield from (Thing(folder, _checkpoint) for folder in saved)
    if (run_dir / ENCODER_DIR).exists():
        yield Thing(run_dir / ENCODER_DIR, _encoder)


def _check(thing: Thing) -> None:
    with at_work(f"verify: {thing.path}"):
        word = thing.check(thing.path)
    files = [path for path in thing.path.rglob("*") if path.is_file()]
    # Caches are checked but not counted: one that is missing is made again, and nothing is lost.
    sizes = [f.stat().st_size for f in files if ".cache" not in f.relative_to(thing.path).parts]
    say(f"{thing.path}: {word}, {len(sizes)} files, {sum(sizes) / 1e6:,.1f} MB")


def _checkpoint(folder: Path) -> str:
    # Here and not above, as in the others: the help text of a door must not wait for torch.
    from toolkit.training.checkpoint import check_files

    check_files(folder)
    return "whole"


def _page(folder: Path) -> str:
    (folder / PAGE_FILE).read_text(encoding="utf-8")
    return "a page"


def _encoder(folder: Path) -> str:
    from toolkit.training.export import check_encoder

    check_encoder(folder)
    return "whole"


def _units(folder: Path) -> str:
    """Vectors or questions, which the plan tells apart."""
    plan = read_json(folder / PLAN_FILE) if (folder / PLAN_FILE).is_file() else None
    is_asked = isinstance(plan, dict) and "per_document" in plan
    return _questions(folder) if is_asked else _encoding(folder)


def _questions(folder: Path) -> str:
    from toolkit.domain.finishing import check_output

    counts = check_output(folder)
    return f"whole, {counts['kept']:,} of {counts['asked']:,} questions kept"


def _encoding(folder: Path) -> str:
    from toolkit.encoding.completeness import proven_line
    from toolkit.encoding.index import check_indexes
    from toolkit.encoding.store import VectorStore
    from toolkit.encoding.word_index import check_word_index
    from toolkit.runs.records import read_reuse

    store = VectorStore(folder, verify=True)
    check_indexes(store)
    check_word_index(store)
    read_reuse(folder)
    return f"whole, {proven_line(store)}"


def _corpus(folder: Path) -> str:
    """The encoding of a corpus inside of an evaluation, which no toolkit.encode can make anew."""
    try:
        return _encoding(folder)
    except BadInput as error:
        what = str(error).partition(";")[0]
        raise BadInput(f"{what}; delete {folder}: a task that needs it embeds it again") from error


def _scores(folder: Path) -> str:
    """Scores have no digests: all that can be checked is that each file can be read."""
    files = [*sorted((folder / PART_DIR).glob("*/*.json")), folder / SCORES_FILE]
    for file in files:
        read_json(file)
    return "readable (no digests are recorded)"


def _texts(folder: Path) -> str:
    from toolkit.text.verify import believable_manifest, check_copies, verify

    if faults := verify(folder):
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise BadInput(
            f"{folder / faults[0].file}: {faults[0].problem}{more}; "
            f"see python data_scripts/verify_shards.py {folder}"
        )
    manifest = believable_manifest(folder)
    sets = manifest.get("sets", [manifest])  # of pairs there are several, each with its shards
    check_copies(folder, shards=[entry["file"] for one in sets for entry in one["shards"]])
    return "whole"


def _model(folder: Path) -> str:
    from toolkit.model.backbone import load_config, weight_files
    from toolkit.model.tokenizer import load_tokenizer
    from toolkit.model.weights import model_digest

    files = weight_files(folder)
    if not files:
        raise BadInput(f"{folder}: has no weights (*.safetensors); download the model whole")
    for file in files:
        read_header(file)
    source = ModelSource.of_folder(folder.absolute())
    load_config(source)
    load_tokenizer(source)
    digest = model_digest(folder)
    return f"readable (no digests are recorded, its own is {digest[:16]})"


if __name__ == "__main__":
    sys.exit(main())
