"""Before the first step: does every rank see the same code and data, and is it fast enough?

Each rank reports what it sees (code, data, clock, disk, device, how fast it multiplies). All ranks
get all reports and come to the same verdict. What would give wrong results or lose work is refused.
What would only be slow is a warning that names rank and host, and the node of a slow GPU is left
out when the job starts again. A rank whose device cannot multiply ends the job at once. This takes
a second or two.

Knows files, clocks and devices. Refuses to know models.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import toolkit
from toolkit.base.console import say, warn
from toolkit.base.errors import BadInput, NodeFault
from toolkit.cluster.topology import Topology
from toolkit.parallel import comm
from toolkit.parallel.agreement import alike

MAX_SKEW_S = 5.0
SLOW, SLOW_CPU = 0.7, 0.25  # of the median speed; ranks on CPUs disturb each other
LOW_BYTES, LOW_INODES = 2 * 2**30, 10_000
REPEATS = 5
WARM_S = 0.5  # of a GPU
NONCE = "preflight"
GB = 1e9


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a rank sees. `code` and `data` are hexadecimal digests, `clock_s` is its Unix time at a
    common barrier, and `sees_run_dir` says whether it sees a file that rank 0 wrote. Sizes are in
    bytes, speeds in FLOP/s and bytes/s."""

    rank: int
    host: str
    code: str
    data: str
    clock_s: float
    sees_run_dir: bool
    free_bytes: int
    free_inodes: int
    device: str
    device_bytes: int
    flops: float
    bandwidth: float

    @property
    def name(self) -> str:
        """The rank and its host, for messages."""
        return f"rank {self.rank} on {self.host}"


def preflight(
    run_dir: Path,
    *,
    topology: Topology,
    data_digest: str,
    device: torch.device,
    alone_too: bool = False,
) -> dict[str, Any]:
    """Check all ranks. Rank 0 prints any warnings, and with several ranks (or `alone_too`) the
    summary. Collective.

    Returns figures for the record. All ranks raise `BadInput` for a problem that must stop the run;
    a rank whose device does not work raises `NodeFault`.
    """
    mine = _look(run_dir, topology=topology, data_digest=data_digest, device=device)
    ranks = [Facts(**json.loads(text)) for text in comm.gather_texts(_to_json(mine))]
    if problems := refusals(ranks, run_dir=run_dir):
        raise alike(BadInput("; ".join(problems)))
    if topology.rank == 0:
        for warning in warnings(ranks, run_dir=run_dir):
            warn(warning)
        if len(ranks) > 1 or alone_too:
            say(summary(ranks))
    return {
        "matmul_tflops": [round(one.flops / 1e12, 4) for one in ranks],
        "all_reduce_gb_per_s": round(min(one.bandwidth for one in ranks) / GB, 3),
        "clock_skew_s": round(_skew(ranks), 3),
        "free_gb": round(min(one.free_bytes for one in ranks) / GB, 1),
        "slow_nodes": slow_nodes(ranks),
    }


def refusals(ranks: Sequence[Facts], *, run_dir: Path) -> list[str]:
    """The problems that would give wrong results, or lose them, one line each."""
    first, problems = ranks[0], []
    for what, hint in (
        ("code", "is the checkout on a file system that all nodes share?"),
        ("data", "are the shards the same on all nodes?"),
    ):
        others = [one for one in ranks if getattr(one, what) != getattr(first, what)]
        if others:
            problems.append(f"{_names(others)}: {what} differs from that of {first.name}; {hint}")
    if blind := [one for one in ranks if not one.sees_run_dir]:
        problems.append(
            f"{_names(blind)}: does not see what {first.name} writes into run_dir={run_dir}; "
            "choose a directory that all nodes share"
        )
    return problems


def warnings(ranks: Sequence[Facts], *, run_dir: Path) -> list[str]:
    """What will be slow, or may run out of room, one line each."""
    lines = []
    typical = _typical_flops(ranks)
    for one in ranks:
        if _is_slow(one, typical=typical):
            lines.append(
                f"{one.name} multiplies at {one.flops / 1e12:.3g} TFLOP/s, the others at "
                f"{typical / 1e12:.3g}: all will wait for it"
            )
        if abs(one.clock_s - ranks[0].clock_s) > MAX_SKEW_S:
            lines.append(
                f"{one.name}: its clock is {one.clock_s - ranks[0].clock_s:+.0f} s off "
                f"that of {ranks[0].name}"
            )
    kinds = {(one.device, one.device_bytes) for one in ranks}
    if len(kinds) > 1:
        shown = ", ".join(f"{name} of {size / 2**30:.0f} GiB" for name, size in sorted(kinds))
        lines.append(f"devices differ: {shown}; the slowest and smallest counts")
    free, inodes = (min(getattr(one, f"free_{it}") for one in ranks) for it in ("bytes", "inodes"))
    if free < LOW_BYTES or inodes < LOW_INODES:
        lines.append(f"{run_dir}: {free / GB:.1f} GB and {inodes:,} files of room are left")
    return lines


def slow_nodes(ranks: Sequence[Facts]) -> list[str]:
    """The hosts of slow GPUs. A slow CPU rank is left out: others may just be disturbing it."""
    typical = _typical_flops(ranks)
    slow = [one.host for one in ranks if one.device_bytes and _is_slow(one, typical=typical)]
    return sorted(set(slow))


def _typical_flops(ranks: Sequence[Facts]) -> float:
    return statistics.median(one.flops for one in ranks)


def _is_slow(one: Facts, *, typical: float) -> bool:
    return one.flops < (SLOW if one.device_bytes else SLOW_CPU) * typical


def summary(ranks: Sequence[Facts]) -> str:
    """The line about all ranks for the log."""
    hosts = len({one.host for one in ranks})
    slowest = min(ranks, key=lambda one: one.flops)
    speeds = f"matmul at least {slowest.flops / 1e12:.3g} TFLOP/s ({slowest.name})"
    if len(ranks) > 1:
        speeds += f", all-reduce {min(one.bandwidth for one in ranks) / GB:.2f} GB/s"
    free = min(one.free_bytes for one in ranks) / GB
    return (
        f"preflight: {len(ranks)} ranks on {hosts} hosts, same code and data, clocks within "
        f"{_skew(ranks):.1f} s, {free:,.0f} GB free, {speeds}"
    )


def code_digest() -> str:
    """The digest of the toolkit's own files, which this process runs."""
    folder, digest = Path(toolkit.__file__).parent, hashlib.sha256()
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.yaml")]):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _look(run_dir: Path, *, topology: Topology, data_digest: str, device: torch.device) -> Facts:
    nonce = run_dir / f".{NONCE}.{topology.job_id}.{topology.main_port}.tmp"
    is_new = topology.rank == 0 and not run_dir.exists()
    if topology.rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        nonce.write_text("seen")
    comm.barrier()
    # All ranks have just met: their clocks should now agree.
    clock_s, sees = time.time(), _is_there(nonce)
    place = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    room, files = shutil.disk_usage(place), os.statvfs(place)
    comm.barrier()
    if topology.rank == 0:
        nonce.unlink()
        if is_new:  # a refusal must leave nothing behind
            run_dir.rmdir()
    on_gpu = device.type == "cuda"
    return Facts(
        rank=topology.rank,
        host=topology.node_name,
        code=code_digest(),
        data=data_digest,
        clock_s=clock_s,
        sees_run_dir=sees,
        free_bytes=room.free,
        # Some file systems count no inodes.
        free_inodes=files.f_favail if files.f_files else LOW_INODES,
        device=torch.cuda.get_device_name(device) if on_gpu else "cpu",
        device_bytes=torch.cuda.get_device_properties(device).total_memory if on_gpu else 0,
        flops=_matmul_flops(device),
        bandwidth=_all_reduce_bandwidth(device),
    )


def _is_there(path: Path) -> bool:
    """Whether a file is there; a network file system may take seconds to show another node's."""
    for wait_s in (0.0, 0.2, 1.0, 3.0):
        time.sleep(wait_s)
        os.listdir(path.parent) if path.parent.is_dir() else ()  # makes NFS look again
        if path.is_file():
            return True
    return False


def _matmul_flops(device: torch.device) -> float:
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (384, torch.float32)
    left = torch.ones(size, size, device=device, dtype=dtype)

    def multiply() -> None:
        torch.mm(left, left)

    try:
        product = torch.mm(left, left)
        if device.type == "cuda":
            _warm(multiply)
        each_s = _seconds(multiply, device=device)
    except RuntimeError as error:  # CUDA's own among them
        why = str(error).partition("\n")[0]
        raise NodeFault(f"its device {device} cannot multiply: {why}") from error
    check_product(product)
    return 2 * size**3 / each_s


def _warm(action: Callable[[], None]) -> None:
    """Keep a GPU busy until its clocks have risen: from idle it would look slow, and its node would
    be left out. Every rank does this for itself, so `action` must be no collective."""
    until = time.monotonic() + WARM_S
    while time.monotonic() < until:
        action()
        torch.cuda.synchronize()


def check_product(product: torch.Tensor) -> None:
    """Raise `NodeFault` unless this is the product of two square matrices of ones, to within a
    hundredth (bf16 may be summed in parts)."""
    size = product.shape[0]
    wrong = int((~((product - size).abs() <= 0.01 * size)).sum())  # NaN is wrong too
    if wrong:
        raise NodeFault(
            f"its device {product.device} multiplies wrongly: {wrong:,} of {product.numel():,} "
            "numbers"
        )


def _all_reduce_bandwidth(device: torch.device) -> float:
    """All-reduced bytes of a tensor per second."""
    size = 2**26 if device.type == "cuda" else 2**20
    values = torch.ones(size, device=device)
    return 4 * size / _seconds(lambda: comm.all_reduce(values), device=device)


def _seconds(action: Any, *, device: torch.device) -> float:
    """Seconds per call: the median of some calls after a first one."""
    times = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def _skew(ranks: Sequence[Facts]) -> float:
    return max(one.clock_s for one in ranks) - min(one.clock_s for one in ranks)


def _names(ranks: Sequence[Facts]) -> str:
    shown = ", ".join(one.name for one in ranks[:4])
    return f"{shown} and {len(ranks) - 4} more" if len(ranks) > 4 else shown


def _to_json(facts: Facts) -> str:
    return json.dumps(dataclasses.asdict(facts))
