"""The fixture of the tests that need a real SLURM: one four-node cluster per test session."""

import getpass
import os
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, missing_programs


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A running cluster whose four nodes are idle; see tests/slurm/cluster.py."""
    if missing := missing_programs():
        reason = (
            f"not installed: {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge)"
        )
        if os.environ.get("TOOLKIT_REQUIRE_ALL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def idle(slurm: Cluster) -> Iterator[None]:
    """Begin on idle nodes, and leave no job behind when a test fails half-way."""
    slurm.wait_idle()
    yield
    slurm.run(["scancel", f"--user={getpass.getuser()}"])
