"""Ranks on hosts of their own: network namespaces with an address each, and a cable in between."""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, free_port, need
from tests.forking.start import forked_python
from toolkit.runs.records import read_metrics
from toolkit.training.checkpoint import load_newest

CHECK = """
import sys
from toolkit.settings.recipes import load_recipe
from toolkit.launching.jobs import CheckJob
from toolkit.training import admission
admission.CHECK_S = 8.0
CheckJob(load_recipe("tiny_mntp", overrides=sys.argv[1:]).model_dump(mode="json"))()
"""
HEART = ["train.heartbeat_s=1"]


class Hosts:
    """Two hosts h0 and h1 of this machine; what is put under `name` is a namespace of ours."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, [f"toolkit-{os.getpid()}-{n}" for n in range(2)]
        self.port = free_port()

    def begin(self) -> None:
        for name in self.names:
            self._ip("netns", "add", name)
        ends = [["name", "cable", "netns", name] for name in self.names]
        self._ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for number, name in enumerate(self.names):
            self._ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "cable")
            for device in ("cable", "lo"):
                self._ip("-n", name, "link", "set", device, "up")

    def end(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False)

    def cut(self, number: int) -> None:
        """Pull its cable."""
        self._ip("-n", self.names[number], "link", "set", "cable", "down")

    def block(self, number: int) -> None:
        """What a firewall does: no answer from the port of the first rank comes through."""
        rule = ["ipproto", "tcp", "sport", str(self.port), "blackhole"]
        self._ip("-n", self.names[number], "rule", "add", *rule)

    def start(self, *arguments: str, code: str = "") -> list[subprocess.Popen[bytes]]:
        """A rank on each host."""
        program = ["-c", code] if code else ["-m", "toolkit.train", "tiny_mntp"]
        started = []
        for rank, name in enumerate(self.names):
            place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
            place |= {"MASTER_ADDR": "10.77.0.1", "MASTER_PORT": self.port}
            environ = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "cable"}
            environ |= {key: str(value) for key, value in place.items()}
            inner = f'hostname h{rank} && exec "$@"'
            host = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", inner, "-"]
            with self.log(rank).open("w") as log:
                command = [*host, forked_python(), *program, *arguments]
                started.append(
                    subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log)
                )
        return started

    def log(self, rank: int) -> Path:
        """What a rank prints."""
        return self.folder / f"log-{rank}"

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    need(os.geteuid() == 0, "network namespaces need root")
    made = Hosts(tmp_path)
    try:
        made.begin()
        yield made
    finally:
        made.end()


@pytest.fixture
def given(shards: Path, tiny_model: Path) -> list[str]:
    return [f"data.train={shards}", f"model.base={tiny_model}", "deepspeed.config=zero3"]


def codes(started: Sequence[subprocess.Popen[bytes]], *, timeout_s: float = 120) -> list[int]:
    """The exit codes; no rank outlives a test that fails."""
    try:
        return [process.wait(timeout_s) for process in started]
    finally:
        for process in started:
            process.kill()


def test_two_hosts_train_as_one_machine_does(
    hosts: Hosts, given: list[str], tmp_path: Path
) -> None:
    two = [*given, "train.steps=2", f"run_dir={tmp_path / 'two'}"]
    assert codes(hosts.start(*two)) == [0, 0], hosts.log(0).read_text()
    assert "2 ranks on 2 hosts, same code and data" in hosts.log(0).read_text()
    one = [forked_python(), "-m", "torch.distributed.run", "--nproc-per-node=2"]
    one += [f"--master-port={free_port()}", "-m", "toolkit.train", "tiny_mntp", *given]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [*one, "train.steps=2", f"run_dir={tmp_path / 'one'}"], cwd=ROOT, env=environ, check=True
    )
    left, right = (load_newest(tmp_path / name) for name in ("one", "two"))
    assert left
    assert right
    assert left.weights.keys() == right.weights.keys()
    assert all(torch.equal(left.weights[name], right.weights[name]) for name in left.weights)


def test_a_cable_that_is_pulled_ends_the_run_and_names_the_host(
    hosts: Hosts, given: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    long = ["train.steps=100000", "train.horizon_steps=100000"]
    started = hosts.start(*given, *HEART, *long, f"run_dir={run_dir}")
    until = time.monotonic() + 90
    while len(read_metrics(run_dir) if run_dir.is_dir() else []) < 2:
        assert time.monotonic() < until, hosts.log(0).read_text()
        time.sleep(0.1)
    hosts.cut(1)
    began = time.monotonic()
    found = codes(started, timeout_s=60)
    print(json.dumps({"codes": found, "seconds": time.monotonic() - began}))
    assert found == [70, 70]
    assert "watchdog: rank 1 on host h1 is gone at step " in hosts.log(0).read_text()
    assert "watchdog: rank 0 is gone, its node or network" in hosts.log(1).read_text()


def test_a_blocked_port_is_found_by_the_check(
    hosts: Hosts, given: list[str], tmp_path: Path
) -> None:
    hosts.block(0)
    started = hosts.start(*given, f"run_dir={tmp_path / 'run'}", code=CHECK)
    assert codes(started) == [1, 1]
    first, second = hosts.log(0).read_text(), hosts.log(1).read_text()
    assert f"error: rank 1 on h1 did not reach rank 0 at 10.77.0.1:{hosts.port} for 8 s" in second
    assert "error: rank 0 on h0 waited for the others for 8 s" in first
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_found_by_the_check(hosts: Hosts, given: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", run_dir], check=True)
    try:
        assert codes(hosts.start(*given, f"run_dir={run_dir}", code=CHECK)) == [0, 0]
    finally:
        subprocess.run(["umount", run_dir], check=True)
    assert f"warning: {run_dir}: 0.0 GB and " in hosts.log(0).read_text()
