"""sbatch's own options and a site's defaults: passed on exactly, or refused by name."""

import argparse
import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit import launch
from toolkit.base.errors import BadInput
from toolkit.cluster.site import OPTIONS, read_site, site_file
from toolkit.cluster.submit import Resources, sbatch_text

HOSTILE = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["\n#SBATCH --uid=0", "$(id)", "`id`", "a;b", "'", '"', "\\", "é", "x" * 10_000, "", " "]
    ),
)
SHAPE = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0, "cpus_per_task": 1, "time_min": 5}


@settings(deadline=None, max_examples=1000)
@given(field=st.sampled_from([*OPTIONS, "name"]), text=HOSTILE)
def test_a_field_is_passed_on_exactly_or_refused(field: str, text: str) -> None:
    own = {"name": text} if field == "name" else {"name": "job", "options": {field: text}}
    asked, refusal = None, ""
    try:
        asked = Resources(**SHAPE, **own)  # type: ignore[arg-type]
    except BadInput as error:
        refusal = str(error)
    if asked is None:
        assert refusal.startswith(f"{field} ")
        assert len(refusal.splitlines()) == 1
        assert len(refusal) < 1500
        return
    script = sbatch_text(asked, folder=Path("/logs"), after=None, setup=[])
    directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    plain = sbatch_text(Resources(**SHAPE, name="job"), folder=Path("/logs"), after=None, setup=[])  # type: ignore[arg-type]
    added = 0 if field == "name" else 1
    assert len(script.splitlines()) == len(plain.splitlines()) + added
    option = "job-name" if field == "name" else field.replace("_", "-")
    (line,) = [line for line in directives if line.startswith(f"#SBATCH --{option}=")]
    assert shlex.split(line.removeprefix("#SBATCH "))[0] == f"--{option}={text}"


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("constraint", "a100&(ib|roce)"),
        ("exclude", "n[001-003,7],gpu-a1"),
        ("account", "abc@v100"),
        ("wckey", "team7"),
        ("mail_user", "a.b+c@example.org"),
        ("mail_type", "END,FAIL"),
        ("comment", "the second try, with a larger batch (64); $5 é"),
    ],
)
def test_what_people_write_is_taken(field: str, text: str) -> None:
    asked = Resources(**SHAPE, name="job", options={field: text})  # type: ignore[arg-type]
    assert asked.options == {field: text}


def defaults(text: str, folder: Path) -> dict[str, object]:
    (folder / "site.yaml").write_text(text)
    return read_site(folder / "site.yaml", parser=launch.parser())


def test_a_site_file_gives_defaults_that_the_command_line_overrides(tmp_path: Path) -> None:
    (tmp_path / "toolkit").mkdir()
    (tmp_path / "toolkit" / "site.yaml").write_text("partition: gpu\ntime_min: 720\nqos: long\n")
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    argv = ["--qos", "short", "train.steps=3"]
    plain = launch.parser().parse_intermixed_args(argv)
    found = launch.with_site(plain, argv=argv, environ=environ)
    assert (found.partition, found.time_min, found.qos) == ("gpu", 720, "short")
    assert found.overrides == ["train.steps=3"]
    assert launch.with_site(plain, argv=argv, environ={"XDG_CONFIG_HOME": "/absent"}) is plain
    (tmp_path / "other.yaml").write_text("account: team7\n")
    environ |= {"TOOLKIT_SITE": str(tmp_path / "other.yaml")}
    found = launch.with_site(plain, argv=argv, environ=environ)
    assert (found.partition, found.account) == (None, "team7")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin: gpu", r"unknown key 'partitoin'; valid: recipe, nodes, .*partition"),
        ("site: x", "unknown key 'site'"),
        ("help: x", "unknown key 'help'"),
        ("nodes: many", "nodes: must be a whole number, not 'many'"),
        ("nodes: true", "nodes: must be a whole number, not 'true'"),
        ("time_min: 12:00:00", "time_min: must be a whole number, not '12:00:00'"),
        ("account: [a]", r"account: must be text in one line, not \['a'\]"),
        ("account:", "account: must be text in one line, not ''"),
        ("cluster: moon", "cluster: 'moon' is none of auto, slurm, local"),
        ("- a", "must hold lines such as 'partition: gpu'"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_site_file_is_refused_by_key(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=rf"site file .*site\.yaml: {message}"):
        defaults(text, tmp_path)


def test_a_number_may_be_a_name(tmp_path: Path) -> None:
    assert defaults("account: 12\nnodes: 2\n", tmp_path) == {"account": "12", "nodes": 2}


def test_an_empty_site_file_says_nothing(tmp_path: Path) -> None:
    assert defaults("", tmp_path) == {}


def test_a_site_file_that_is_named_must_be_there() -> None:
    with pytest.raises(BadInput, match="site file /absent: no such file"):
        site_file("/absent", environ={})
    with pytest.raises(BadInput, match="site file /absent: no such file"):
        site_file(None, environ={"TOOLKIT_SITE": "/absent"})


def test_every_option_has_a_help() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        launch.parser().parse_args(["--help"])
    for name in (*OPTIONS, "site", "dependency", "array_throttle"):
        assert re.search(rf"--{name.replace('_', '-')} ", out.getvalue())
    assert isinstance(launch.parser(), argparse.ArgumentParser)
