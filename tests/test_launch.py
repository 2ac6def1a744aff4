"""The launcher without SLURM: what it would submit, what it refuses, and the other doors' help."""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT, run
from toolkit import launch
from toolkit.base.errors import BadInput
from toolkit.cluster import submit
from toolkit.settings.pipeline_schema import PipelineRecipe
from toolkit.settings.recipes import load_recipe, to_yaml

DOORS = ["launch", "plan", "export", "search", "encode", "train", "evaluate", "verify", "status"]
DOORS += ["merge", "ready", "prefetch", "report"]

# What sbatch gets for each stage; {dependency}, {array} and the shape differ.
SCRIPT = """\
# ---- {stage} ----
#!/bin/bash

# Parameters
{array}#SBATCH --cpus-per-task=4
{dependency}#SBATCH --gpus-per-node={gpus}
#SBATCH --job-name=my-run-{stage}
#SBATCH --kill-on-invalid-dep=yes
{memory}#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={gpus}
#SBATCH --open-mode=append
#SBATCH --output={logs}/{stage}/{batch_job}_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
source '{root}/slurm/env.sh'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output {logs}/{stage}/{batch_job}_%t_log.out --kill-on-bad-exit=1 \
--cpus-per-task=4 {python} -u -m submitit.core._submit {logs}/{stage}
"""
TRAINING = {"gpus": 8, "nodes": 4, "batch_job": "%j", "array": "", "memory": ""}
EMBEDDING = {"gpus": 1, "nodes": 1, "batch_job": "%A_%a", "array": "#SBATCH --array=0-31%32\n"}
EMBEDDING["memory"] = "#SBATCH --mem-per-gpu=32G\n"
STAGES = [("mntp", TRAINING), ("simcse", TRAINING), ("embed", EMBEDDING)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory that holds nothing but what the launcher takes for shards."""
    made = tmp_path_factory.mktemp("work")
    (made / "shards").mkdir()
    (made / "shards" / "COMMITTED").touch()
    return made


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOOLKIT_ENV_SH", raising=False)


def paths(folder: Path) -> list[str]:
    shards = folder / "shards"
    return [f"run_dir={folder / 'my-run'}", f"data.train={shards}", f"corpus.input={shards}"]


@contextlib.contextmanager
def nothing_happens(folder: Path) -> Iterator[None]:
    """In `folder`, where nothing may be written, and nothing submitted or run."""
    before = sorted(folder.rglob("*"))
    refuse = mock.Mock(side_effect=AssertionError("a job was started"))
    fakes = {"submit_slurm": refuse, "run_here": refuse, "has_slurm": lambda: True}
    with contextlib.chdir(folder), mock.patch.multiple(submit, **fakes):
        yield
    assert sorted(folder.rglob("*")) == before


def refusal(*arguments: str, folder: Path) -> str:
    """The one line with which the launcher refuses."""
    err = io.StringIO()
    with nothing_happens(folder), contextlib.redirect_stderr(err):
        assert launch.main(arguments) == 2, arguments
    assert err.getvalue().startswith("error: ")
    assert len(err.getvalue().splitlines()) == 1, err.getvalue()
    return err.getvalue()


def dry_run(*arguments: str, folder: Path) -> str:
    out = io.StringIO()
    with nothing_happens(folder), contextlib.redirect_stdout(out):
        assert launch.main([*arguments, "--dry-run"]) == 0
    return out.getvalue()


@pytest.mark.parametrize("name", DOORS)
def test_every_door_has_a_help(name: str) -> None:
    text = run([sys.executable, "-m", f"toolkit.{name}", "--help"])
    assert text.startswith(f"usage: python -m toolkit.{name}")


@pytest.mark.parametrize("name", [*("launch", "search", "plan", "status", "verify"), *DOORS[-3:]])
def test_a_login_node_does_not_wait_for_torch(name: str) -> None:
    code = f"import toolkit.{name}, sys; assert 'torch' not in sys.modules"
    run([sys.executable, "-c", code], real=True)


def test_the_scripts_of_the_whole_recipe(
    folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["--cluster", "slurm", "--gpus-per-node", "8", "--nodes", "4"]
    found = dry_run(*shape, *paths(folder), f"model.base={tiny_model}", folder=folder)
    assert capsys.readouterr().err == "", "what an earlier stage writes is not missing"
    quoted = {"root": ROOT, "python": sys.executable, "logs": folder / "my-run" / "logs"}
    expected, before = "", ""
    for stage, asked in STAGES:
        after = f"#SBATCH --dependency='afterok:<id of {before}>'\n" if before else ""
        expected += SCRIPT.format(stage=stage, dependency=after, **asked, **quoted) + "\n"
        before = stage
    assert found == expected


def test_a_single_recipe_is_one_job_and_blanks_are_quoted(folder: Path) -> None:
    arguments = ["--cluster", "slurm", "--recipe", "tiny_mntp", "--gpus-per-node", "0"]
    arguments += ["--partition", "a,b", "--account", "us.3", "--mem-gib", "7", *paths(folder)[1:2]]
    found = dry_run(*arguments, f"run_dir={folder}/runs/my run (é)", folder=folder)
    assert found.count("#!/bin/bash") == 1
    assert "--gpus-per-node" not in found
    assert "--dependency" not in found
    for line in ("partition=a,b", "account=us.3", "mem=7G", "job-name=my-run-mntp"):
        assert f"#SBATCH --{line}\n" in found
    logs = f"{folder}/runs/my run (é)/logs/mntp"
    assert f"#SBATCH --output='{logs}/%j_0_log.out'\n" in found
    assert shlex.split(found)[-1] == logs


@pytest.mark.parametrize(
    ("asked", "training", "embedding"),
    [
        ([], "", "mem-per-gpu=32G"),
        (["--mem-per-gpu-gib", "90"], "mem-per-gpu=90G", "mem-per-gpu=90G"),
        (["--mem-gib", "90"], "mem=90G", "mem=45G"),
    ],
)
def test_tasks_with_one_gpu_leave_the_rest_of_the_node_to_others(
    asked: list[str], training: str, embedding: str, folder: Path
) -> None:
    """Without memory of its own SLURM may give each task all of its node's."""
    shape = ["--cluster", "slurm", "--recipe", "tiny_pipeline", "--gpus-per-node", "2"]
    found = dry_run(*shape, *asked, *paths(folder), folder=folder)
    assert "--exclusive" not in found
    memory = [re.findall(r"^#SBATCH --(mem.*)$", job, re.M) for job in found.split("# ---- ")[1:]]
    assert memory == [[training] if training else []] * 2 + [[embedding]]


def test_this_machine_runs_stages_in_order(folder: Path) -> None:
    arguments = ["--cluster", "local", "--recipe", "tiny_pipeline", "--gpus-per-node", "2"]
    found = dry_run(*arguments, *paths(folder), folder=folder)
    heads = [line for line in found.splitlines() if line.startswith("# ")]
    assert heads == [
        f"# {stage}: 2 process(es) on this machine, logs in {folder}/my-run/logs/{stage}"
        for stage in ("mntp", "simcse", "embed")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "absent"], "unknown recipe 'absent'"),
        (["--nodes", "4", "--cluster", "local"], "this machine is one node"),
        (["--chain", "0"], "--chain 0: at least 1"),
        (["--nodes", "0"], "nodes is 0: at least 1"),
        (["--mem-gib", "0"], "mem_gib is 0: at least 1"),
        (["--mem-per-gpu-gib", "0", "--gpus-per-node", "1"], "mem_per_gpu_gib is 0: at least 1"),
        (
            ["--mem-per-gpu-gib", "9", "--mem-gib", "8", "--gpus-per-node", "1"],
            "--mem-gib 8 --mem-per-gpu-gib 9: one is per node, the other per GPU",
        ),
        (["--mem-per-gpu-gib", "9", "--gpus-per-node", "0"], "there are no GPUs; give --mem-gib"),
        (["--time-min", "0"], "time_min is 0: at least 1"),
        (["--gpus-per-node", "-1"], "--gpus-per-node -1: 0 or more"),
        (
            ["--nodes", "3", "train.fit_ranks=false"],
            "train.global_batch_rows=8 cannot be dealt to 3 ranks",
        ),
        (
            ["mntp.train.global_batch_rows=6", "--nodes", "4", "mntp.train.fit_ranks=false"],
            "use a multiple of 4, such as 8",
        ),
        (["data.train=shards/absent"], "mntp: shards/absent: no whole shard directory"),
        (["corpus.input=."], "embed: .: no whole shard directory; make it with data_scripts/"),
        (["model.base=./absent"], "model './absent': no such folder"),
        (["simcse.model.base=shards"], "model 'shards': the folder has no config.json"),
        (["train.stpes=3"], "no stage has the key 'train.stpes'"),
        (["simcse.train.stpes=3"], "unknown key 'train.stpes'; valid keys here: steps,"),
        (["train.steps=0"], "key 'train.steps': input should be greater than or equal to 1, not 0"),
        (["train.steps=3.5"], "key 'train.steps': input should be a valid integer, not 3.5"),
        (["train.steps"], "override 'train.steps': write key.path=value"),
        (["deepspeed.config=zero9"], "'zero9' is neither a file nor one of zero0, zero1"),
        (["--recipe", "supervised_mistral_7b"], "pairs/e5: no whole shard directory; make it with"),
        (['run_dir="a\\n#SBATCH --uid=0/b"'], "a path without % and \\ and line breaks"),
        (["run_dir=runs/%j"], "runs/%j': use a path without % and \\ and line breaks"),
    ],
)
def test_refused_in_one_line(arguments: list[str], message: str, folder: Path) -> None:
    given_first = ["--recipe", "tiny_pipeline", "--cluster", "slurm", "--gpus-per-node", "1"]
    own = [] if "supervised_mistral_7b" in arguments else paths(folder)
    assert message in refusal(*given_first, *own, *arguments, folder=folder)


@pytest.mark.parametrize(("nodes", "gpus"), [(2, 8), (3, 8), (5, 4), (2, 0)])
def test_the_pipeline_for_trying_a_cluster_fits_any(
    nodes: int, gpus: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["--cluster", "slurm", "--nodes", str(nodes), "--gpus-per-node", str(gpus)]
    found = dry_run("tiny_pipeline", *shape, *paths(folder), folder=folder)
    assert found.count(f"--ntasks-per-node={max(1, gpus)}\n") >= 2
    ranks = nodes * max(1, gpus)
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {stage}: train.global_batch_rows is {-(-own // ranks) * ranks} "
        f"instead of {own}, which {ranks} ranks cannot share evenly (train.fit_ranks=true)"
        for stage, own in {"mntp": 8, "simcse": 16}.items()
        if own % ranks
    ]


@settings(deadline=None)  # each example reads three recipes
@given(
    field=st.sampled_from(["partition", "account"]),
    before=st.text(max_size=5),
    hostile=st.sampled_from(
        ["\n", "\r", "\n#SBATCH --uid=0", "'", '"', "$(id)", "`", ";", " ", "&"]
    ),
    after=st.text(max_size=5),
    cluster=st.sampled_from(["slurm", "local"]),
)
def test_no_field_smuggles_a_command(
    folder: Path, field: str, before: str, hostile: str, after: str, cluster: str
) -> None:
    value = before + hostile + after
    arguments = ["--recipe", "tiny_pipeline", "--cluster", cluster, *paths(folder)]
    arguments += ["--gpus-per-node", "1", f"--{field}={value}"]
    assert f"error: {field} {value!r}: use letters" in refusal(*arguments, folder=folder)


def test_the_partition_is_checked_before_sinfo_sees_it(folder: Path) -> None:
    arguments = ["--recipe", "tiny_pipeline", "--cluster", "slurm", *paths(folder)]
    with mock.patch.object(subprocess, "run", side_effect=AssertionError("a program was started")):
        assert "use letters" in refusal(*arguments, "--partition=a b", folder=folder)


def test_without_sbatch_nothing_is_submitted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    before = sorted(folder.rglob("*"))
    arguments = ["--recipe", "tiny_mntp", "--cluster", "slurm", *paths(folder)[:2]]
    assert launch.main(arguments) == 2
    assert capsys.readouterr().err == (
        "error: --cluster slurm: no sbatch and srun on PATH; submit from a login node\n"
    )
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("asked", [["--cluster", "slurm"], ["--nodes", "2"]])
def test_a_dry_run_needs_no_slurm(
    asked: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    before = sorted(folder.rglob("*"))
    arguments = ["--recipe", "tiny_mntp", *asked, *paths(folder)[:2], "--dry-run"]
    assert launch.main(arguments) == 0
    printed = capsys.readouterr()
    assert "#SBATCH --gpus-per-node=1\n" in printed.out
    assert printed.err == (
        "warning: sinfo cannot be run (No such file or directory); the scripts ask for 1 GPU per "
        "node, or give --gpus-per-node\n"
    )
    assert launch.main([*arguments, "--gpus-per-node", "4"]) == 0
    printed = capsys.readouterr()
    assert "#SBATCH --gpus-per-node=4\n" in printed.out and not printed.err
    assert sorted(folder.rglob("*")) == before


def test_a_slurm_that_does_not_answer_is_refused_with_what_to_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sbatch", "srun", "sinfo"):
        (programs / name).write_text(f"#!/bin/sh\necho {name}: no controller >&2\nexit 1\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    message = refusal("--recipe", "tiny_mntp", *paths(folder)[:2], folder=folder)
    assert message.endswith(
        "sinfo failed (sinfo: no controller); give --gpus-per-node, or --cluster local\n"
    )


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("printf 'p|gpu:a100:8(S:0-1)\\np|gpu:4\\np|(null)\\n'", 8),
        ("echo 'p|gpu:1'", 1),
        ("echo 'p|(null)'", 0),
        ("echo 'p*|gpu:a100:4,gpu:h100:8,nvme:2'", 8),
        ("true", r"partition 'p': has no nodes"),
        ("echo sinfo: down >&2; exit 1", r"sinfo failed \(sinfo: down\)$"),
    ],
)
def test_gpus_by_sinfo(
    script: str, expected: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sinfo").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    if isinstance(expected, int):
        assert submit.gpus_of_partition("p") == expected
    else:
        with pytest.raises(BadInput, match=expected):
            submit.gpus_of_partition("p")


def test_without_a_partition_the_default_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "#!/bin/sh\nprintf 'cpu|(null)\\na100*|gpu:a100:4\\nh100|gpu:h100:8\\n'\n"
    (tmp_path / "sinfo").write_text(script)
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert submit.gpus_of_partition(None) == 4


@pytest.mark.parametrize("place", ["taken", "taken/below"])
def test_a_run_directory_that_is_a_file(place: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    arguments = ["--recipe", "tiny_mntp", "--cluster", "local", *paths(folder)[1:2]]
    message = refusal(*arguments, f"run_dir={tmp_path / place}", folder=folder)
    assert f"{tmp_path}/taken is a file" in message


def test_a_pipeline_that_is_refused_half_way_says_what_is_queued(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--recipe", "tiny_pipeline", "--cluster", "slurm", "--gpus-per-node", "1"]
    answers = {"has_slurm": lambda: True}
    submits = mock.Mock(side_effect=["12", "13", BadInput("sbatch refused the job x: no")])
    with mock.patch.multiple(submit, submit_slurm=submits, **answers):
        assert launch.main([*arguments, *paths(folder)[1:], f"run_dir={tmp_path}"]) == 2
    after = [call.kwargs["after"] for call in submits.call_args_list]
    assert after == [None, "afterok:12", "afterok:13"]
    assert capsys.readouterr().err == (
        "error: sbatch refused the job x: no; the jobs up to 13 are queued: scancel them\n"
    )


def test_a_chain_is_jobs_after_jobs_of_training_stages_only(folder: Path, tmp_path: Path) -> None:
    arguments = ["--recipe", "tiny_pipeline", "--cluster", "slurm", "--gpus-per-node", "1"]
    arguments += ["--chain", "2", *paths(folder)[1:], f"run_dir={tmp_path}"]
    submits = mock.Mock(side_effect=[str(number) for number in range(5)])
    with mock.patch.multiple(submit, submit_slurm=submits, has_slurm=lambda: True):
        assert launch.main(arguments) == 0
    after = [call.kwargs["after"] for call in submits.call_args_list]
    assert after == [None, "afterany:0", "afterok:1", "afterany:2", "afterok:3"]
    assert [call.args[0].chained for call in submits.call_args_list] == [1, 2, 1, 2, 0]
    printed = dry_run(*arguments, folder=folder)
    assert printed.count("#SBATCH --no-requeue\n") == 2
    assert printed.count("#SBATCH --requeue\n") == 1  # the embedding
    assert printed.count("export TOOLKIT_CHAIN=1\n") == 2
    assert printed.count("# 2 such jobs, each afterany of the one before") == 2


def test_a_check_waits_as_a_run_would(folder: Path, tmp_path: Path) -> None:
    arguments = ["--recipe", "tiny_mntp", "--cluster", "slurm", "--gpus-per-node", "1", "--check"]
    arguments += ["--dependency", "afterok:77", *paths(folder)[1:2], f"run_dir={tmp_path}"]
    there = mock.Mock()
    with mock.patch.multiple(submit, run_there=there, has_slurm=lambda: True):
        assert launch.main(arguments) == 0
    assert there.call_args.kwargs["after"] == "afterok:77"


def test_an_array_of_workers_that_are_each_alone_is_refused(folder: Path) -> None:
    arguments = ["--recipe", "tiny_embed", "--cluster", "slurm", "--gpus-per-node", "2"]
    message = refusal(*arguments, "schedule=alone", folder=folder)
    assert "embed: schedule=alone is for one worker, and these nodes have 2" in message


def test_a_file_of_a_task_that_is_not_there_is_named_now(folder: Path, tmp_path: Path) -> None:
    recipe = {"kind": "evaluate", "output_dir": "scores", "encoders": {"one": {"model": "m"}}}
    (tmp_path / "r.yaml").write_text(json.dumps({**recipe, "sts": {"pairs": "absent.csv"}}))
    arguments = ["--recipe", str(tmp_path / "r.yaml"), "--cluster", "slurm"]
    message = refusal(*arguments, "--gpus-per-node", "1", folder=folder)
    assert "evaluate: absent.csv: no such file" in message


def hub_cache(folder: Path, model: str, *names: str) -> None:
    """A hub cache with these files of a model, an index of two files of weights among them."""
    place = folder / "hub" / f"models--{model.replace('/', '--')}"
    snapshot = place / "snapshots" / "abc"
    snapshot.mkdir(parents=True, exist_ok=True)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text("abc")
    weights = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    for name in names:
        told = weights if name.endswith("index.json") else {"base_model_name_or_path": "us/base"}
        (snapshot / name).write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ([], "us/model is not in this machine's hub cache"),
        (
            ["config.json"],
            r"us/model is not whole here \(no \*\.safetensors\)",
        ),  # as of toolkit.plan
        (
            ["config.json", "model.safetensors.index.json", "1.safetensors"],
            r"\(no 2\.safetensors\)",
        ),
        (["adapter_config.json"], r"\(no adapter_model\.safetensors\)"),
        (["adapter_config.json", "adapter_model.safetensors"], "us/base is not in this machine's"),
        (["config.json", "model.safetensors"], ""),
    ],
)
def test_a_model_that_offline_jobs_could_not_fetch_is_refused(
    there: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub_cache(tmp_path, "us/model", *there)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    recipe = ["--recipe", "tiny_mntp", "--cluster", "slurm", "--gpus-per-node", "1"]
    given = [*recipe, *paths(folder)[:2], "model.base=us/model"]
    queued = mock.Mock(side_effect=BadInput("it would be queued"))
    for environ, options, refuses in (
        ({"HF_HUB_OFFLINE": "1"}, [], True),
        ({}, [], True),  # as slurm/env.sh has it
        ({"HF_HUB_OFFLINE": "0"}, [], False),
        ({}, ["--allow-missing-models"], False),
    ):
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        with mock.patch.multiple(submit, submit_slurm=queued, has_slurm=lambda: True):
            assert launch.main([*given, *options]) == 2
        said = capsys.readouterr().err
        assert ("it would be queued" in said) is not (refuses and bool(message)), said
        assert re.search(f"(warning|error): mntp: .*{message}", said) or not message, said


def test_the_site_settings_of_a_job(folder: Path, tmp_path: Path) -> None:
    def lines(value: str) -> list[str]:
        return launch.environment_script({"TOOLKIT_ENV_SH": value})

    assert launch.environment_script({}) == [f"source '{ROOT}/slurm/env.sh'"]
    assert lines("") == []
    for name in ("site.sh", "it's.sh"):
        (tmp_path / name).touch()
    with contextlib.chdir(tmp_path):
        assert lines("site.sh") == [f"source '{tmp_path}/site.sh'"]
        with pytest.raises(BadInput, match="a path without quotes"):
            lines("it's.sh")
        with pytest.raises(BadInput, match=r"TOOLKIT_ENV_SH='absent\.sh': no such file"):
            lines("absent.sh")


def test_a_pipeline_does_not_write_over_a_run(tmp_path: Path) -> None:
    """Nor over the configuration that a run writes while the pipeline is being launched."""
    pipeline = load_recipe("tiny_pipeline", overrides=[f"run_dir={tmp_path}"])
    assert isinstance(pipeline, PipelineRecipe)
    launch.claim_pipeline(tmp_path, pipeline)
    launch.claim_pipeline(tmp_path, pipeline)
    assert (tmp_path / "config.yaml").read_text() == to_yaml(pipeline)
    of_a_run = to_yaml(load_recipe("tiny_mntp"))
    (tmp_path / "config.yaml").write_text(of_a_run)
    with pytest.raises(BadInput, match="is a run of kind 'mntp'; choose another run_dir"):
        launch.claim_pipeline(tmp_path, pipeline)
    assert (tmp_path / "config.yaml").read_text() == of_a_run


# --- which recipe ---


@pytest.mark.parametrize(
    "words",
    [
        ["tiny_mntp"],
        ["--recipe", "tiny_mntp"],
        ["train.steps=7", "--recipe", "tiny_mntp"],
        ["--dry-run", "tiny_mntp", "train.steps=7"],
    ],
)
def test_a_recipe_is_the_first_word_or_an_option(words: list[str], folder: Path) -> None:
    found = dry_run("--cluster", "local", *words, *paths(folder)[:2], folder=folder)
    assert [line for line in found.splitlines() if line.startswith("# ")] == [
        f"# mntp: 1 process(es) on this machine, logs in {folder}/my-run/logs/mntp"
    ]
    assert ("  steps: 7\n" in found) == ("train.steps=7" in words)


def test_without_a_recipe_it_is_the_default_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["train.steps=7", "--print-config"]) == 0
    assert "base: mistralai/Mistral-7B-Instruct-v0.2" in capsys.readouterr().out
    site = tmp_path / "site.yaml"
    site.write_text("recipe: tiny_pipeline\n")
    for words, expected in (([], ["mntp", "simcse", "embed"]), (["tiny_mntp"], ["mntp"])):
        assert launch.main([*words, "--site", str(site), "--print-config"]) == 0
        kinds = re.findall(r"^kind: (\w+)", capsys.readouterr().out, flags=re.MULTILINE)
        assert kinds == expected


def test_a_word_behind_the_option_is_no_second_recipe(folder: Path) -> None:
    message = refusal("--recipe", "tiny_mntp", "tiny_simcse", folder=folder)
    assert "override 'tiny_simcse': write key.path=value" in message


# --- a dry run needs nothing ---


def test_a_dry_run_says_what_is_missing_and_prints_the_scripts_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["--cluster", "slurm", "--gpus-per-node", "8", "--gpu", "h100"]
    places = ["data.train=no/shards", "corpus.input=no/corpus", "model.base=./no/model"]
    printed = dry_run("tiny_pipeline", *shape, *places, folder=tmp_path)
    assert printed.count("#!/bin/bash\n") == 3
    warned = capsys.readouterr().err.splitlines()
    assert all(line.startswith("warning: ") for line in warned)
    for missing in (
        "mntp: no/shards: no whole shard directory; make it with",
        "model './no/model': no such folder",
        "simcse: no/shards: no whole shard directory",
        "embed: no/corpus: no whole shard directory",
        "cannot tell whether it fits: model './no/model'",
    ):
        assert any(missing in line for line in warned), (missing, warned)
    assert list(tmp_path.iterdir()) == []


def test_without_a_dry_run_the_same_is_refused(tmp_path: Path) -> None:
    shape = ["--cluster", "local", "--gpus-per-node", "0"]
    message = refusal("tiny_mntp", *shape, "data.train=no/shards", folder=tmp_path)
    assert "mntp: no/shards: no whole shard directory" in message


def test_a_dry_run_names_every_missing_file_of_an_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = ["sts.a=a.tsv", "sts.b=b.tsv"]
    dry_run("quickstart_evaluate", "--cluster", "local", *tasks, folder=tmp_path)
    warned = capsys.readouterr().err
    assert "evaluate: a.tsv: no such file\n" in warned
    assert "evaluate: b.tsv: no such file\n" in warned


def test_an_evaluation_has_workers_for_its_parts_or_for_a_corpus(tmp_path: Path) -> None:
    """Two encoders, one task: two can score it, and any number embeds its documents."""
    encoders = {"a": {"model": "m"}, "b": {"model": "n"}}
    common = {"kind": "evaluate", "output_dir": "scores", "encoders": encoders}
    tasks = {"retrieval": {"x": {"corpus": "c", "queries": "q.jsonl"}}, "sts": {"x": "p.csv"}}
    for name, sharing, array in (
        ("retrieval", "true", "0-15"),
        ("retrieval", "false", "0-1"),
        ("sts", "true", "0-1"),
    ):
        file = tmp_path / f"{name}.yaml"
        file.write_text(json.dumps({**common, name: tasks[name]}))
        shape = ["--cluster", "slurm", "--nodes", "2", "--gpus-per-node", "8"]
        asked = [str(file), *shape, f"share_corpora={sharing}"]
        assert f"#SBATCH --array={array}%" in dry_run(*asked, folder=tmp_path), name


def test_a_dry_run_still_refuses_what_no_data_would_mend(folder: Path) -> None:
    shape = ["--cluster", "slurm", "--gpus-per-node", "3", "--dry-run"]
    message = refusal("quickstart", *shape, "data.train=no/shards", folder=folder)
    assert "cannot be dealt to 3 ranks" in message
