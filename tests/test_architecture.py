"""The house rules: layers, sizes, one home for each name. A guard that cannot fail is no guard, so
each rule is also run on code that breaks it."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import TypeGuard

import pytest

from tests.conftest import ROOT
from toolkit.__main__ import DOORS
from toolkit.base import layout
from toolkit.settings.catalogue import BASE_DIR, STAGES

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
MAX_PARAMETERS = 7
SOURCES = sorted([*(ROOT / "toolkit").rglob("*.py"), *(ROOT / "data_scripts").glob("*.py")])
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def size_faults(name: str, source: str) -> list[str]:
    """What is too long, or takes too many parameters."""
    faults = []
    if source.count("\n") > MAX_FILE_LINES:
        faults.append(f"{name}: {source.count(chr(10))} lines")
    for node in functions(ast.parse(source)):
        lines = (node.end_lineno or 0) - node.lineno + 1
        arguments = node.args
        count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)
        count -= bool(arguments.args and arguments.args[0].arg in ("self", "cls"))
        if lines > MAX_FUNCTION_LINES:
            faults.append(f"{name}: {node.name} has {lines} lines")
        if count > MAX_PARAMETERS:
            faults.append(f"{name}: {node.name} takes {count} parameters")
    return faults


def twins(sources: dict[str, str]) -> list[str]:
    """Functions of three statements or more with the same body."""
    seen: dict[str, str] = {}
    faults = []
    for name, source in sources.items():
        for node in functions(ast.parse(source)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if sum(isinstance(inner, ast.stmt) for b in body for inner in ast.walk(b)) < 3:
                continue
            key = ast.dump(ast.Module(body=body, type_ignores=[]))
            where = f"{name}:{node.name}"
            if key in seen:
                faults.append(f"{where} is {seen[key]} again")
            seen[key] = where
    return faults


def misplaced_imports(name: str, source: str) -> list[str]:
    """deepspeed outside parallel/zero.py, torch.distributed outside parallel/."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    faults = []
    if name != "toolkit/parallel/zero.py" and any(f.split(".")[0] == "deepspeed" for f in found):
        faults.append(f"{name} imports deepspeed")
    if not name.startswith("toolkit/parallel/") and any(
        f.startswith("torch.distributed") for f in found
    ):
        faults.append(f"{name} names torch.distributed")
    return faults


LOOKS = ("exists", "is_file", "is_dir", "is_committed", "iterdir", "isdir", "isfile")
WRITES = ("write_atomic", "write_json", "rename", "write_text", "write_bytes")
# Functions that look at names and then write over one, each with why two of them that come together
# do no harm. What claims a name for one writer uses `create_atomic`, `place_new` or
# `committed_directory`, and reads back what is there.
MAY_LOOK_AND_WRITE = {
    "toolkit/cluster/heartbeats.py:write": "asks only whether the run has begun; the last is right",
    "toolkit/cluster/heartbeats.py:write_forever": "as `write`, which stands in it",
    "toolkit/encoding/index.py:_save": "looks after it has written, and writes again what is gone",
    "toolkit/base/files.py:_place_in_turn": "looks and renames while it alone may",
    "toolkit/base/files.py:publish": "a rename onto a directory that is not empty fails, and that "
    "is handled",
    "toolkit/base/files.py:remove_committed": "of two that rename it away one fails, removing "
    "nothing",
    "toolkit/prefetch.py:prefetch": "looks at shards, not at what it writes",
    "toolkit/text/assembly.py:_seal": "in a temporary directory of its own",
    "toolkit/text/assembly.py:finish": "what it writes is in a temporary directory of its own",
    "toolkit/training/export.py:seal": "in a temporary directory of its own",
    "toolkit/training/merges.py:_write_side_files": "in a temporary directory of its own",
    "toolkit/training/starts.py:loading": "asks whether the directory is new, to remove it if it "
    "stays empty; of two that start the last to write is the one that status tells of",
    "toolkit/training/preflight.py:_look": "a file whose name has the job's id, for a moment",
}


def looks_and_writes(name: str, source: str) -> list[str]:
    """Functions that look whether something is there, and write where somebody else may have
    written since."""
    faults = []
    for node in functions(ast.parse(source)):
        called = set()
        for inner in ast.walk(node):
            if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute | ast.Name):
                what = inner.func.attr if isinstance(inner.func, ast.Attribute) else inner.func.id
                # A path's has one argument, a text's two, that of a data class has keywords.
                is_move = what == "replace" and not inner.keywords
                is_move &= len(inner.args) == 1 or ast.unparse(inner.func) == "os.replace"
                called.add("rename" if is_move else what)
        if called & set(LOOKS) and called & set(WRITES):
            faults.append(f"{name}:{node.name}")
    return faults


def around_the_console(name: str, source: str) -> list[str]:
    """What would show text of others as it comes: only `toolkit.base.console` prints, and only
    `toolkit.command_line.door` makes a command line's parser. rich's Text is given what is
    `visible`."""
    if name in ("toolkit/base/console.py", "toolkit/command_line/door.py"):
        return []
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name | ast.Attribute):
            used = ast.unparse(node)
            if used in ("print", "sys.stdout.write", "sys.stderr.write"):
                faults.append(f"{name}: {used}, line {node.lineno}")
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), [ast.unparse(argument) for argument in node.args]
        if called in ("Console", "tqdm", "argparse.ArgumentParser"):
            faults.append(f"{name}: {called}, line {node.lineno}")
        if called == "console.print" and not given[0].startswith("table("):
            faults.append(f"{name}: {called}, line {node.lineno}")
        if called == "Text" and not given[0].startswith("visible("):
            faults.append(f"{name}: {called}, line {node.lineno}")
    return faults


def stray_files(files: set[str], *, folders: set[str]) -> list[str]:
    """What stands loose at the top of toolkit/ and is no command, and commands that are not there.
    `folders` are those that can be run, which a command may be instead of a file."""
    wanted = {"__init__", "__main__", *(set(DOORS) - folders)}
    return sorted(files ^ wanted) + sorted(folders - set(DOORS))


# Names of base/layout.py that are somebody else's names too.
OTHERS_NAMES = {"toolkit/text/sources.py": {"state.json"}}  # of a saved data set of `datasets`


def names_on_disk() -> set[str]:
    """All that stand in base/layout.py."""
    return {value for name, value in vars(layout).items() if name.isupper()}


def names_outside_layout(name: str, source: str) -> list[str]:
    """Names of base/layout.py that are written anywhere else: the name of a file as a text of its
    own or at the end of a path, that of a directory where a path is put together."""
    if name == "toolkit/base/layout.py":
        return []
    known = names_on_disk() - OTHERS_NAMES.get(name, set())
    files = {one for one in known if "." in one or one.isupper()}
    tree, faults = ast.parse(source), []
    joined = [node.right for node in ast.walk(tree) if is_join(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            joined += node.args if node.func.attr in ("joinpath", "with_name", "glob") else []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split("/")
            is_path = len(words) > 1 and not re.search(r"\s", node.value)
            if node.value in files or (is_path and words[-1] in files):
                faults.append(f"{name}: {node.value!r}, line {node.lineno}")
    for node in joined:
        if isinstance(node, ast.Constant) and set(str(node.value).split("/")) & (known - files):
            faults.append(f"{name}: {node.value!r}, line {node.lineno}")
    return faults


def is_join(node: ast.AST) -> TypeGuard[ast.BinOp]:
    """Whether this puts a path together."""
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)


# What torch's own modules have, too; all else of an engine is asked for in toolkit/parallel.
ENGINE_MAY = {"module", "train", "eval"}
DEEPSPEED_KEYS = re.compile(
    "zero_(optimization|hpz_.*|allow_.*)|train_(micro_)?batch_size.*|gradient_(acc|clip).*|"
    "offload_(param|optimizer)|grad_accum_dtype|steps_per_print"
)


def deepspeed_words(name: str, source: str) -> list[str]:
    """What asks an engine itself for anything, and DeepSpeed's keys, outside of toolkit/parallel
    and of the page that reads layouts."""
    if name.startswith("toolkit/parallel/") or name == "toolkit/settings/layouts.py":
        return []
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr not in ENGINE_MAY:
            if re.fullmatch(r"(.*\.)?_?engine", ast.unparse(node.value)):
                faults.append(f"{name}: {ast.unparse(node)}, line {node.lineno}")
        elif isinstance(node, ast.Constant) and DEEPSPEED_KEYS.fullmatch(str(node.value)):
            faults.append(f"{name}: {node.value!r}, line {node.lineno}")
    return faults


def own_warnings(name: str, source: str) -> list[str]:
    """Texts that begin with "warning:", which `console.warn` is for."""
    if name == "toolkit/base/console.py":
        return []
    texts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return [
        f"{name}: line {node.lineno}"
        for node in texts
        if isinstance(node.value, str) and node.value.lower().startswith("warning:")
    ]


def unnamed_files(package: str, *, about: str | None, files: set[str]) -> list[str]:
    """Files of a package that its docstring does not say anything of."""
    named = set(re.findall(r"`(\w+)`", about or ""))
    return [f"{package}/{name}.py" for name in sorted(files - named)]


def packages() -> dict[str, tuple[str | None, set[str]]]:
    """The docstring and the files of each package of the toolkit."""
    return {
        str(path.parent.relative_to(ROOT)): (
            ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))),
            {file.stem for file in path.parent.glob("*.py") if file.stem[:2] != "__"},
        )
        for path in sorted((ROOT / "toolkit").glob("*/__init__.py"))
    }


def names_and_sources() -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in SOURCES}


def test_files_and_functions_are_small() -> None:
    assert [
        f for name, source in names_and_sources().items() for f in size_faults(name, source)
    ] == []


def short_docstrings(name: str, source: str) -> list[str]:
    """Docstrings of public names that have at most four words."""
    named = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        f"{name}: {node.name}: {docstring!r}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, named) and not node.name.startswith("_")
        if (docstring := ast.get_docstring(node)) is not None and len(docstring.split()) <= 4
    ]


def test_docstrings_of_public_names_say_something() -> None:
    sources = names_and_sources().items()
    assert [f for name, source in sources for f in short_docstrings(name, source)] == []


def test_docstring_guard_fails_on_a_planted_fault() -> None:
    assert short_docstrings("a", 'def close():\n    """As the class says."""')
    assert not short_docstrings("a", 'def close():\n    """Close the file and its lock."""')
    assert not short_docstrings("a", 'def _close():\n    """Close it."""\ndef other(): ...')


def test_no_twin_functions() -> None:
    assert twins(names_and_sources()) == []


def test_nobody_looks_and_then_writes_where_another_may_have_come_between() -> None:
    found = [f for name, text in names_and_sources().items() for f in looks_and_writes(name, text)]
    assert sorted(found) == sorted(MAY_LOOK_AND_WRITE)


def test_one_home_for_deepspeed_and_torch_distributed() -> None:
    sources = names_and_sources().items()
    assert [f for name, source in sources for f in misplaced_imports(name, source)] == []


def test_everything_is_printed_by_the_console() -> None:
    sources = names_and_sources().items()
    assert [f for name, source in sources for f in around_the_console(name, source)] == []


@pytest.mark.parametrize(
    "line",
    [
        "print(title)",
        "show = functools.partial(print, flush=True)",
        "sys.stderr.write(title)",
        "from rich.console import Console\nconsole = Console()",
        "console.print(title)",
        "rows.add_row(Text(title))",
        "for x in tqdm(titles): ...",
        "parser = argparse.ArgumentParser()",
    ],
)
def test_console_guard_fails_on_a_planted_fault(line: str) -> None:
    assert around_the_console("toolkit/planted.py", line)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("def f():\n" + "    x = 1\n" * 70, "f has 71 lines"),
        ("x = 1\n" * 401, "401 lines"),
        ("def f(a, b, c, d, e, g, h, i): ...\n", "f takes 8 parameters"),
    ],
)
def test_size_guard_fails_on_a_planted_fault(source: str, fault: str) -> None:
    assert any(fault in found for found in size_faults("planted.py", source))


def test_twin_guard_fails_on_a_planted_fault() -> None:
    body = "    a = x + 1\n    b = a * 2\n    return b\n"
    assert twins({"one.py": f"def f(x):\n{body}", "two.py": f"def g(x):\n{body}"})


@pytest.mark.parametrize(
    "body",
    [
        "if not path.is_file():\n        write_json(path, {})",
        "if out.exists():\n        raise BadInput\n    temporary.replace(out)",
        "if os.path.exists(path):\n        return\n    os.replace(temporary, path)",
    ],
)
def test_claim_guard_fails_on_a_planted_fault(body: str) -> None:
    assert looks_and_writes("planted.py", f"def claim(path):\n    {body}\n") == ["planted.py:claim"]
    assert not looks_and_writes(
        "planted.py", "def f(p):\n    return p.exists() and 'a'.replace('a', 'b')"
    )


@pytest.mark.parametrize("line", ["import deepspeed", "from deepspeed.utils import x"])
def test_import_guard_fails_on_a_planted_fault(line: str) -> None:
    assert misplaced_imports("toolkit/training/loop.py", line)
    assert misplaced_imports("toolkit/model/losses.py", "import torch.distributed as dist")


def test_the_top_of_the_package_holds_the_commands_alone() -> None:
    top = ROOT / "toolkit"
    files = {path.stem for path in top.glob("*.py")}
    folders = {path.parent.name for path in top.glob("*/__main__.py")}
    assert stray_files(files, folders=folders) == []
    assert len(files - {"__init__"}) <= 15


def test_top_guard_fails_on_a_planted_file() -> None:
    files = {"__init__", "__main__", *DOORS} - {"quickstart", "report"}
    assert stray_files(files | {"helpers"}, folders={"quickstart", "report"}) == ["helpers"]
    assert stray_files(files - {"plan"}, folders={"quickstart", "report"}) == ["plan"]
    assert stray_files(files, folders={"quickstart", "report", "runs"}) == ["runs"]


def test_the_names_of_files_are_written_in_one_place() -> None:
    sources = names_and_sources().items()
    assert [f for name, source in sources for f in names_outside_layout(name, source)] == []


def test_every_name_on_disk_is_used_and_its_comment_names_files_that_are_there() -> None:
    text = (ROOT / "toolkit" / "base" / "layout.py").read_text(encoding="utf-8")
    others = [s for name, s in names_and_sources().items() if name != "toolkit/base/layout.py"]
    for name in (name for name in vars(layout) if name.isupper()):
        assert any(re.search(rf"\b{name}\b", source) for source in others), name
    comments = "".join(line for line in text.splitlines() if line.startswith("#"))
    for place in re.findall(r"`([a-z_.]+)`", comments):
        path = ROOT / "toolkit" / place.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), place


@pytest.mark.parametrize(
    "line",
    [
        'path = run_dir / "config.yaml"',
        'names & {"config.yaml"}',
        'path = f"{run_dir}/metrics.jsonl"',
        'path = run_dir / "checkpoints"',
        'path = run_dir / "logs/mntp"',
        'found = output_dir.glob("units/*.json")',
        'done = (folder / "COMMITTED").is_file()',
    ],
)
def test_name_guard_fails_on_a_planted_fault(line: str) -> None:
    assert len(names_outside_layout("toolkit/planted.py", line)) == 1
    assert not names_outside_layout("toolkit/base/layout.py", line)
    harmless = 'raise BadInput("no config.yaml")\nunits = manifest["units"]'
    assert not names_outside_layout("toolkit/planted.py", harmless)


def test_deepspeed_is_spoken_in_one_place() -> None:
    sources = names_and_sources().items()
    assert [f for name, source in sources for f in deepspeed_words(name, source)] == []


@pytest.mark.parametrize(
    "line",
    [
        "self.engine.backward(loss)",
        "trainer.engine.step()",
        "rate = engine.get_lr()",
        'stage = layout["zero_optimization"]',
        'rows = settings["train_micro_batch_size_per_gpu"]',
    ],
)
def test_deepspeed_guard_fails_on_a_planted_fault(line: str) -> None:
    assert len(deepspeed_words("toolkit/training/loop.py", line)) == 1
    assert not deepspeed_words("toolkit/parallel/zero.py", line)
    assert not deepspeed_words("toolkit/training/loop.py", "zero.step(self.engine)\nengine.eval()")


def test_one_function_says_warning() -> None:
    sources = names_and_sources().items()
    assert [f for name, source in sources for f in own_warnings(name, source)] == []


def test_warning_guard_fails_on_a_planted_fault() -> None:
    planted = 'say_beside(f"warning: {path} is old")'
    assert own_warnings("toolkit/planted.py", planted) == ["toolkit/planted.py: line 1"]
    assert not own_warnings("toolkit/planted.py", 'warn(f"{path} is old")')


def test_every_package_says_what_its_files_are_for() -> None:
    found = [
        fault
        for package, (about, files) in packages().items()
        for fault in unnamed_files(package, about=about, files=files)
    ]
    assert len(packages()) >= 15
    assert found == []


def test_package_guard_fails_on_a_planted_file() -> None:
    about, files = packages()["toolkit/runs"]
    assert unnamed_files("runs", about=about, files={*files, "new"}) == ["runs/new.py"]
    assert unnamed_files("runs", about=None, files={"table"}) == ["runs/table.py"]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_imports_keep_to_the_layers() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


def test_layer_guard_fails_on_a_planted_import(tmp_path: Path) -> None:
    (tmp_path / "setup.cfg").write_text((ROOT / "setup.cfg").read_text())
    for path in (ROOT / "toolkit").rglob("*.py"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8"))
    assert lint_imports(tmp_path).returncode == 0
    with (tmp_path / "toolkit" / "model" / "losses.py").open("a") as handle:
        handle.write("from toolkit.parallel import comm\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert "toolkit.model.losses -> toolkit.parallel" in done.stdout


LIGHT = [
    "launch",
    "export",
    "merge",
    "search",
    "train",
    "encode",
    "evaluate",
    "launching.jobs",
    "text.stream",
]


@pytest.mark.parametrize("module", LIGHT)
def test_login_node_modules_leave_torch_out(module: str) -> None:
    code = f"import sys, toolkit.{module}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_recipes_have_a_head_comment() -> None:
    folder = ROOT / "toolkit" / "recipes"
    for path in [*sorted(folder.glob("*.yaml")), *(BASE_DIR / f"{stage}.yaml" for stage in STAGES)]:
        head = path.read_text().partition("kind:")[0]
        assert head.startswith("# "), path.name
        assert "Expected" in head, path.name
        assert "Hardware" in head, path.name
