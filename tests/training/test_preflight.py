"""Ranks that are not where they should be are refused before the first step; slow ones named."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import ROOT, free_port, need
from tests.forking.start import forked_python
from toolkit.base.errors import NodeFault
from toolkit.training import preflight as preflight_module
from toolkit.training.preflight import (
    Facts,
    check_product,
    refusals,
    slow_nodes,
    summary,
    warnings,
)

FACTS = Facts(
    rank=0,
    host="n0",
    code="c",
    data="d",
    clock_s=1000.0,
    sees_run_dir=True,
    free_bytes=10**12,
    free_inodes=10**6,
    device="H100",
    device_bytes=80 * 2**30,
    flops=600e12,
    bandwidth=200e9,
)
RUN = Path("/runs/a")


def ranks(**of_rank_2: object) -> list[Facts]:
    """Four ranks on two hosts, the third of which is different."""
    made = [dataclasses.replace(FACTS, rank=rank, host=f"n{rank // 2}") for rank in range(4)]
    made[2] = dataclasses.replace(made[2], **of_rank_2)  # type: ignore[arg-type]
    return made


def test_equal_ranks_are_neither_refused_nor_warned_of() -> None:
    assert refusals(ranks(), run_dir=RUN) == warnings(ranks(), run_dir=RUN) == []
    assert summary(ranks(clock_s=1000.3)) == (
        "preflight: 4 ranks on 2 hosts, same code and data, clocks within 0.3 s, 1,000 GB free, "
        "matmul at least 600 TFLOP/s (rank 0 on n0), all-reduce 200.00 GB/s"
    )


@pytest.mark.parametrize(
    ("fact", "value", "message"),
    [
        (
            "code",
            "x",
            "rank 2 on n1: code differs from that of rank 0 on n0; is the checkout on a file",
        ),
        (
            "data",
            "x",
            "rank 2 on n1: data differs from that of rank 0 on n0; are the shards the same",
        ),
        ("sees_run_dir", False, "does not see what rank 0 on n0 writes into run_dir=/runs/a"),
    ],
)
def test_what_must_not_go_on(fact: str, value: object, message: str) -> None:
    (found,) = refusals(ranks(**{fact: value}), run_dir=RUN)
    assert message in found


@pytest.mark.parametrize(
    ("fact", "value", "message"),
    [
        ("flops", 300e12, "rank 2 on n1 multiplies at 300 TFLOP/s, the others at 600: all will"),
        ("clock_s", 993.0, "rank 2 on n1: its clock is -7 s off that of rank 0 on n0"),
        ("device_bytes", 40 * 2**30, "devices differ: H100 of 40 GiB, H100 of 80 GiB"),
        ("free_bytes", 10**9, "/runs/a: 1.0 GB and 1,000,000 files of room are left"),
        ("free_inodes", 9, "/runs/a: 1000.0 GB and 9 files of room are left"),
    ],
)
def test_what_is_only_slow_or_scarce(fact: str, value: object, message: str) -> None:
    (found,) = warnings(ranks(**{fact: value}), run_dir=RUN)
    assert message in found


def test_the_host_of_a_slow_gpu_is_named_and_no_disturbed_cpu() -> None:
    assert slow_nodes(ranks()) == []
    assert slow_nodes(ranks(flops=300e12)) == ["n1"]
    on_cpus = [dataclasses.replace(one, device_bytes=0) for one in ranks(flops=1e12)]
    assert slow_nodes(on_cpus) == [] and len(warnings(on_cpus, run_dir=RUN)) == 1


def test_a_product_is_looked_at_number_by_number() -> None:
    product = torch.full((4, 4), 4.0)
    check_product(product)
    for wrong in (4.5, 0.0, float("nan")):
        product[2, 1] = wrong
        with pytest.raises(NodeFault, match="cpu multiplies wrongly: 1 of 16 numbers"):
            check_product(product)


def train_on_two(
    arguments: list[str], *, folder: Path, second_root: Path = ROOT, before_second: str = "true"
) -> list[tuple[int, str]]:
    """Exit codes and what was printed of two ranks; the second may run another checkout, and in a
    mount namespace of its own in which something has been done before."""
    port, started = free_port(), []
    for rank, root in enumerate((ROOT, second_root)):
        command = [forked_python(), "-m", "toolkit.train", "tiny_mntp", *arguments]
        if rank == 1 and before_second != "true":
            inner = f'{before_second} && exec "$@"'
            command = ["unshare", "--mount", "bash", "-c", inner, "bash", *command]
        environ = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}
        environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        with (folder / f"log-{rank}").open("w") as log:
            started.append(
                subprocess.Popen(
                    command,
                    cwd=root,
                    env={
                        **os.environ,
                        **{key: str(value) for key, value in environ.items()},
                        "PYTHONPATH": str(root),
                    },
                    stdout=log,
                    stderr=log,
                )
            )
    codes = [process.wait(300) for process in started]
    return [(code, (folder / f"log-{rank}").read_text()) for rank, code in enumerate(codes)]


@pytest.fixture
def arguments(shards: Path, tiny_model: Path, tmp_path: Path) -> list[str]:
    given = [f"data.train={shards}", f"model.base={tiny_model}", "train.steps=1"]
    return [*given, f"run_dir={tmp_path / 'run'}"]


def assert_refused(found: list[tuple[int, str]], message: str, *, tmp_path: Path) -> None:
    """Both ranks end with the code; the first says why, once for all."""
    assert [code for code, _ in found] == [2, 2], found
    printed = "".join(text for _, text in found)
    assert printed.count(f"error: rank 1 on {os.uname().nodename.partition('.')[0]}") == 1
    assert message in printed
    assert not (tmp_path / "run").exists()


def test_another_checkout_on_a_node_is_refused(arguments: list[str], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(ROOT / "toolkit", other / "toolkit")
    shutil.copytree(ROOT / "ds_configs", other / "ds_configs")
    with (other / "toolkit" / "batching" / "batch.py").open("a") as code:
        code.write("# a change that one node has not seen\n")
    found = train_on_two(arguments, folder=tmp_path, second_root=other)
    assert_refused(found, "code differs from that of rank 0", tmp_path=tmp_path)


def test_a_run_directory_that_is_not_shared_is_refused(
    arguments: list[str], tmp_path: Path
) -> None:
    need(os.geteuid() == 0 and bool(shutil.which("unshare")), "needs root and unshare")
    hide = f"mount -t tmpfs tmpfs {tmp_path}"
    found = train_on_two(arguments, folder=tmp_path, before_second=hide)
    assert_refused(found, "does not see what rank 0", tmp_path=tmp_path)


def test_other_shards_on_a_node_are_refused(
    arguments: list[str], shards: Path, tmp_path: Path
) -> None:
    need(os.geteuid() == 0 and bool(shutil.which("unshare")), "needs root and unshare")
    other, texts = tmp_path / "other", tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"Text number {n}."}) + "\n" for n in range(50)))
    shard = [sys.executable, "data_scripts/shard_wikipedia.py", "--input", str(texts)]
    subprocess.run([*shard, "--output", str(other)], cwd=ROOT, check=True, capture_output=True)
    swap = f"mount --bind {other} {shards}"
    found = train_on_two(arguments, folder=tmp_path, before_second=swap)
    assert_refused(found, "data differs from that of rank 0", tmp_path=tmp_path)


def test_the_figures_stand_in_the_record_of_starts(arguments: list[str], tmp_path: Path) -> None:
    for code, printed in train_on_two(arguments, folder=tmp_path):
        assert code == 0, printed
    assert "preflight: 2 ranks on 1 hosts, same code" in (tmp_path / "log-0").read_text()
    (line,) = (tmp_path / "run" / "starts.jsonl").read_text().splitlines()
    told = json.loads(line)["preflight"]
    assert len(told["matmul_tflops"]) == 2 and min(told["matmul_tflops"]) > 0
    assert told["all_reduce_gb_per_s"] > 0


def test_a_gpu_is_busy_for_half_a_second_before_it_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    clock = iter(range(100))
    eighths = SimpleNamespace(monotonic=lambda: next(clock) / 8)
    monkeypatch.setattr(preflight_module, "time", eighths)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("waited"))
    preflight_module._warm(lambda: calls.append("called"))
    assert calls == ["called", "waited"] * 3, "at 1/8, 2/8 and 3/8 of a second"
