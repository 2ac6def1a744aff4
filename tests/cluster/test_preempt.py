"""When a run is told to stop: signals, and the end of a SLURM job's time."""

import math
import os
import shutil
import signal
import time

import pytest

from toolkit.base.errors import BadInput
from toolkit.cluster.preempt import INTERRUPTED, StopSignal, requeue_command, seconds_to_stop

JOB = {"SLURM_JOB_START_TIME": "1000", "SLURM_JOB_END_TIME": "11000"}


@pytest.mark.parametrize(
    ("environ", "now", "seconds"),
    [
        (JOB, 1000, 9880),  # two minutes before the end
        (JOB | {"SLURM_JOB_END_TIME": "1100"}, 1000, 90),  # a tenth of a short job
        (JOB, 20000, 0),
        ({}, 1000, math.inf),
        ({"SLURM_JOB_END_TIME": "11000", "SLURM_JOB_START_TIME": "Unknown"}, 1000, math.inf),
    ],
)
def test_the_end_of_a_job_is_a_wish_to_stop(
    environ: dict[str, str], now: float, seconds: float
) -> None:
    assert seconds_to_stop(environ, now=now) == seconds


def test_a_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    times = {"SLURM_JOB_START_TIME": str(now), "SLURM_JOB_END_TIME": str(now + 1000)}
    with StopSignal(times) as stop:
        monkeypatch.setattr(time, "time", lambda: now + 1e6)
        assert not stop.received


def test_the_signal_can_be_another(capsys: pytest.CaptureFixture[str]) -> None:
    with StopSignal({"TOOLKIT_STOP_SIGNAL": "SIGHUP"}) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)  # the second changes nothing
        assert stop.received
    with pytest.raises(BadInput, match="TOOLKIT_STOP_SIGNAL='USR9': no signal"):
        StopSignal({"TOOLKIT_STOP_SIGNAL": "USR9"})


def test_the_usual_signal_stays_one_beside_another() -> None:
    """It is what the launcher and the scripts ask SLURM for."""
    with StopSignal({"TOOLKIT_STOP_SIGNAL": "HUP"}) as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.received


def test_a_task_of_an_array_requeues_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one has the number of the array as its job's."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    task = {"SLURM_JOB_ID": "36", "SLURM_ARRAY_JOB_ID": "36", "SLURM_ARRAY_TASK_ID": "3"}
    assert requeue_command(task) == ["scontrol", "requeue", "36_3"]
    assert requeue_command({"SLURM_JOB_ID": "36"}) == ["scontrol", "requeue", "36"]


def test_a_link_of_a_chain_asks_for_no_requeue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else it would call submitit's handler, which requeues, or wait for scontrol."""
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waits"))
    before = signal.signal(signal.SIGUSR2, lambda *_: pytest.fail("requeues"))
    try:
        with StopSignal({}) as stop:
            os.kill(os.getpid(), signal.SIGUSR2)
            with pytest.raises(SystemExit) as left:
                stop.leave({"TOOLKIT_CHAIN": "1", "SLURM_JOB_ID": "7"}, leads=True)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert left.value.code == INTERRUPTED
