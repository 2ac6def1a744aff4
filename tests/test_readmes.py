"""Every README: its length, the paths that it names, and the commands that it shows."""

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.conftest import ROOT, run
from tests.project_files import project_files
from toolkit.__main__ import DOORS
from toolkit.settings.catalogue import recipe_names
from toolkit.settings.pipelines import resolve

MAX_WORDS, MAX_LINES = 1500, 220
READMES = sorted(project_files(ROOT, "*README.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
OURS = ("toolkit", "data_scripts", "slurm", "tests", "ds_configs")
PROGRAM = re.compile(r"python -m (toolkit\.\w+|tests\.[\w.]+|pytest)|python (data_scripts/\w+\.py)")


def text_of(readme: str) -> str:
    return (ROOT / readme).read_text(encoding="utf-8")


# --- length ---


def length_faults(text: str) -> list[str]:
    faults = []
    if (words := len(text.split())) > MAX_WORDS:
        faults.append(f"{words} words, at most {MAX_WORDS}")
    if (lines := text.count("\n")) > MAX_LINES:
        faults.append(f"{lines} lines, at most {MAX_LINES}")
    return faults


def test_the_readme_is_short() -> None:
    assert length_faults(text_of("README.md")) == []


def test_the_length_guard_fails_on_what_is_long() -> None:
    assert length_faults("word " * (MAX_WORDS + 1)) == ["1501 words, at most 1500"]
    assert length_faults("\n" * (MAX_LINES + 1)) == ["221 lines, at most 220"]


def test_there_is_a_readme_beside_the_code_it_speaks_of() -> None:
    beside = {"", "toolkit/", "data_scripts/", "slurm/", "tests/", "tests/benchmarks/"}
    assert {f"{folder}README.md" for folder in beside} <= set(READMES)


# --- links and paths ---


def anchor(title: str) -> str:
    """The name that a heading can be linked by."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    return {anchor(title) for title in re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)}


def link_faults(readme: str, text: str) -> list[str]:
    """Links to files and headings that are not there, and paths in code that are not."""
    faults, folder = [], (ROOT / readme).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = target.partition("#")
        if target.startswith("https://"):
            continue
        file = folder / path if path else ROOT / readme
        if not file.exists():
            faults.append(f"{readme}: {target}: no such file")
        elif heading and heading not in anchors(text if not path else file.read_text()):
            faults.append(f"{readme}: {target}: no such heading")
    for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)):
        for word in span.split():
            if re.fullmatch(rf"(?:{'|'.join(OURS)})/[\w./-]*", word) and not (ROOT / word).exists():
                faults.append(f"{readme}: {word}: no such file")
            # A file of the folder that the page stands in.
            elif re.fullmatch(r"[\w/]+\.(?:py|sh)", word):
                places = (folder / word, ROOT / word)
                if not any(place.exists() for place in places):
                    faults.append(f"{readme}: {word}: no such file")
    return faults


@pytest.mark.parametrize("readme", READMES)
def test_every_link_and_path_exists(readme: str) -> None:
    assert link_faults(readme, text_of(readme)) == []


@pytest.mark.parametrize(
    "text",
    [
        "[a](absent.md)",
        "[a](toolkit/README.md#no-such-heading)",
        "[a](#no-such-heading)",
        "`toolkit/absent.py`",
        "`absent.py`",
        "`slurm/absent.sh ARGUMENTS`",
    ],
)
def test_the_link_guard_fails_on_what_is_absent(text: str) -> None:
    assert len(link_faults("README.md", text)) == 1
    assert link_faults("README.md", "[a](toolkit/README.md#the-map), `slurm/env.sh`") == []


def test_the_map_has_every_folder_and_loose_file() -> None:
    text = text_of("toolkit/README.md")
    entries = [path for path in (ROOT / "toolkit").iterdir() if path.name[:2] != "__"]
    named = {path.name if path.is_file() else f"{path.name}/" for path in entries}
    assert {name for name in named if f"`{name}`" not in text} == {"README.md"}


# --- commands ---


def commands(text: str) -> Iterator[str]:
    """The lines of code blocks that start a program or a target of make, and such spans of code."""
    for language, block in FENCE.findall(text):
        if language in ("", "sh", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                yield from (part.strip() for part in line.partition("  #")[0].split("&&"))
    for span in re.findall(r"`(python [^`]+)`", FENCE.sub("", text)):
        yield re.sub(r"\[[^\]]*\]", "", " ".join(span.split()))


def program_of(command: str) -> tuple[str, list[str]] | None:
    """The module or script that a command ends up in, and its arguments; None: no program of ours.

    A script of slurm/ hands its arguments on to the program in its last command.
    """
    if script := re.match(r"(?:(\w+)=(\S+) )?sbatch .*?(slurm/\w+\.sh)(.*)", command):
        last = (ROOT / script[3]).read_text().replace("\\\n", " ").strip().splitlines()[-1]
        found = PROGRAM.search(last)
        assert found, script[3]
        default = re.search(r"\$\{RECIPE:-(\w+)\}", last)
        recipe = script[2] if script[1] == "RECIPE" else (default[1] if default else None)
        return found[1] or found[2], [*([recipe] if recipe else []), *shlex.split(script[4])]
    found = re.search(r"(?:^|\s)-m (toolkit\.\w+)", command) or PROGRAM.search(command)
    if not found:
        return None
    name = next(group for group in found.groups() if group)
    return name, shlex.split(command[found.end() :])


class Parsed(Exception):
    """The command line was understood; nothing more is to be done."""


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[str]], argparse.Namespace]:
    """Have the real parser of a program read arguments; `AssertionError` for what it refuses."""
    asked: list[argparse.Namespace] = []
    ways = ("parse_args", "parse_intermixed_args")
    readers = {name: getattr(argparse.ArgumentParser, name) for name in ways}

    def stop_after(name: str) -> Callable[..., NoReturn]:
        def read(self: argparse.ArgumentParser, *given: object, **named: object) -> NoReturn:
            asked.append(readers[name](self, *given, **named))
            raise Parsed

        return read

    for name in readers:
        monkeypatch.setattr(argparse.ArgumentParser, name, stop_after(name))

    def call(program: str, arguments: list[str]) -> argparse.Namespace:
        module = program.removesuffix(".py").replace("/", ".")
        found = importlib.import_module(module)
        try:
            # What a package runs is in a module of its own, unless it gives it.
            if not hasattr(found, "main"):
                found = importlib.import_module(f"{module}.__main__")
            found.main(arguments)
        except Parsed:
            return asked.pop()
        except SystemExit as stop:
            raise AssertionError(f"{program}: exit {stop.code}") from stop
        raise AssertionError(f"{program}: did not read its arguments")

    return call


def is_mine(recipe: str) -> bool:
    """Whether a recipe of the project is named, and no file of the reader's."""
    return recipe in recipe_names() or not re.fullmatch(r"RECIPE|[\w/]+\.yaml", recipe)


def check_command(
    command: str, parse: Callable[[str, list[str]], argparse.Namespace]
) -> str | None:
    """Have a command's own parser, and for a recipe its schema, read it; what it ran, if ours."""
    if made := re.match(r"make ([\w-]+)", command):
        assert re.search(rf"^{made[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
        return "make"
    found = program_of(command)
    if found is None:
        return None
    program, arguments = found
    if program == "pytest":
        files = [word for word in arguments if word.startswith("tests/")]
        assert all((ROOT / file).exists() for file in files), command
        return program
    asked = vars(parse(program, arguments))
    recipe, overrides = asked.get("recipe"), list(asked.get("overrides") or [])
    if program == "toolkit.launch":
        words = [word for word in overrides if "=" not in word]
        overrides = [word for word in overrides if "=" in word]
        recipe = recipe or (words[0] if words else "llm2vec_mistral_7b")
    if isinstance(recipe, str) and is_mine(recipe):
        resolve(recipe, overrides=overrides)
    return program


@pytest.mark.parametrize("readme", READMES)
def test_every_command_is_one_that_its_door_understands(
    readme: str, parse: Callable[[str, list[str]], argparse.Namespace]
) -> None:
    for command in commands(text_of(readme)):
        check_command(command, parse)


def test_the_commands_of_the_readme_are_found(
    parse: Callable[[str, list[str]], argparse.Namespace],
) -> None:
    """Else the test above would hold of any text."""
    ran = [check_command(command, parse) for command in commands(text_of("README.md"))]
    assert ran.count("make") == 4
    for program in ("launch", "train", "encode", "search", "export", "prefetch", "status"):
        assert f"toolkit.{program}" in ran
    assert "data_scripts/shard_wikipedia.py" in ran


@pytest.mark.parametrize(
    "command",
    [
        "python -m toolkit.train tiny_mntp train.stpes=3",
        "python -m toolkit.train absent",
        "python -m toolkit.absent",
        "python -m toolkit.export RUN",
        "python -m toolkit.launch tiny_pipeline --nodse 3",
        "torchrun --nproc-per-node 2 -m toolkit.train tiny_mntp --nonesuch",
        "sbatch slurm/mntp_mistral.sh train.stpes=3",
        "RECIPE=absent sbatch slurm/mntp_mistral.sh",
        "sbatch slurm/absent.sh",
        "python data_scripts/shard_wikipedia.py --output DIR --inptu x",
        "python -m tests.benchmarks.bench_rows --rosw 3",
        "python -m pytest tests/absent.py",
        "make absent",
    ],
)
def test_the_command_guard_fails_on_what_would_not_work(
    command: str, parse: Callable[[str, list[str]], argparse.Namespace]
) -> None:
    block = f"```\n{command}   # as it stands in a README\n```\n"
    (found,) = commands(block)
    with pytest.raises((AssertionError, ValueError, ImportError, OSError)):
        check_command(found, parse)


# --- examples in help texts ---

PROGRAMS = [f"toolkit.{name}" for name in DOORS if name != "quickstart"]
PROGRAMS += sorted(project_files(ROOT, "data_scripts/*.py"))


def examples(help_text: str) -> Iterator[str]:
    """The commands after "example:", without what follows a pipe or stands in brackets."""
    _, _, tail = help_text.partition("\nexample")
    for line in tail.replace("\\\n", " ").splitlines():
        for command in re.split(r" (?:&&|[|>]) |  \(", line):
            if (
                re.match(r" *(?:\w+=\S+ )?(?:python (?!-c)|srun |sbatch )", command)
                and "..." not in command
            ):
                yield " ".join(command.split())


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_example_of_a_help_text_is_one_that_its_door_understands(
    program: str,
    parse: Callable[[str, list[str]], argparse.Namespace],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(AssertionError, match="exit 0"):
        parse(program, ["--help"])
    for command in examples(capsys.readouterr().out):
        assert check_command(command, parse), command


def test_the_examples_of_a_help_text_are_found() -> None:
    text = """
examples:
  python -m toolkit.ready tiny_mntp run_dir=runs/a && \\
    sbatch slurm/mntp_mistral.sh run_dir=runs/a
  HF_HOME=/hub python -m toolkit.status --all --json | jq .
  python -m toolkit.launch --nodes 4      (the whole pipeline)
  python data_scripts/verify_shards.py ...
"""
    assert list(examples(text)) == [
        "python -m toolkit.ready tiny_mntp run_dir=runs/a",
        "sbatch slurm/mntp_mistral.sh run_dir=runs/a",
        "HF_HOME=/hub python -m toolkit.status --all --json",
        "python -m toolkit.launch --nodes 4",
    ]


# --- Python ---


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    """As it stands there, in the top folder; the best of the three texts comes first."""
    (code,) = [block for language, block in FENCE.findall(text_of("README.md")) if language]
    assert len(code.strip().splitlines()) <= 12
    (tmp_path / "code.py").write_text(code)
    printed = run([sys.executable, str(tmp_path / "code.py")]).splitlines()
    assert len(printed) == 3
    assert printed[0].endswith("Tennis is played with a ball.")
