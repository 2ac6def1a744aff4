"""Process groups and the few collectives the toolkit needs; the same code for 1 and W ranks.

Knows torch.distributed. Refuses to know losses, models and launchers: the facts about the job are
passed as arguments. Shapes: B local rows, N rows of all ranks, D width, W ranks.
"""

import datetime
import os
import socket
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from toolkit.base.errors import BadInput, NodeFault


def start(
    *, rank: int, world_size: int, local_rank: int, address: str, port: int, timeout_s: float
) -> torch.device:
    """Join the job's process group (NCCL and gloo on GPUs, gloo on CPUs) and return our device.

    The facts are put into the environment, because DeepSpeed reads them there, and because
    torchrun's own store can only be found by `env://`. Raises `BadInput` when the ranks do not meet
    within `timeout_s` seconds.
    """
    device = device_of(local_rank)
    on_gpu = device.type == "cuda"
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(device.index if on_gpu else local_rank),  # DeepSpeed takes this GPU
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
    )
    if on_gpu:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            init_method="env://",
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=timeout_s),
        )
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        host, where = socket.gethostname(), f"{address}:{port}"
        what = "waited for the others" if rank == 0 else f"did not reach rank 0 at {where}"
        raise BadInput(
            f"rank {rank} on {host} {what} for {timeout_s:.0f} s ({' '.join(str(error).split())}); "
            "is a firewall between the nodes, or the address another network's?"
        ) from error
    return device


def device_of(local_rank: int) -> torch.device:
    """The GPU for a local rank, or the CPU if there is none. A process may see all GPUs of the node
    or only its own.

    Raises `NodeFault` when GPUs were allotted to this process and torch sees none of them: going on
    without would leave the ranks on other nodes waiting for a CPU. Raises `BadInput` for more ranks
    than GPUs, which would share one.
    """
    count = torch.cuda.device_count()
    allotted = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not count:
        # -1 and NoDevFiles (SLURM's) say that there is none.
        if torch.version.cuda and allotted not in ("", "-1", "NoDevFiles"):
            raise NodeFault(
                f"{socket.gethostname()}: GPUs {allotted} are allotted (CUDA_VISIBLE_DEVICES), and "
                f"torch sees none: is the driver too old for CUDA {torch.version.cuda}? "
                "See nvidia-smi"
            )
        return torch.device("cpu")
    if count == 1:
        return torch.device("cuda", 0)  # each rank sees its own GPU only, or there is one rank
    if local_rank >= count:
        raise BadInput(
            f"local rank {local_rank} on {socket.gethostname()}: there are {count} GPUs here, and "
            "each rank needs one of its own; start as many ranks per node as it has GPUs"
        )
    return torch.device("cuda", local_rank)


def stop() -> None:
    """Leave the process group, and remove its facts from the environment.

    Otherwise a later run in this process, or in a child of it, would take itself for a rank of this
    job.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


def rank() -> int:
    """This process's number in the job."""
    return dist.get_rank()


def world_size() -> int:
    """The number of processes in the job."""
    return dist.get_world_size()


def barrier() -> None:
    """Wait until every rank has called this."""
    dist.barrier()


def all_reduce(values: Tensor) -> None:
    """Replace `values` by their sum over all ranks, in place."""
    dist.all_reduce(values)


def sum_over_ranks(*values: float, device: torch.device) -> list[float]:
    """Each value summed over all ranks, in fp64 so that token counts stay exact."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return [float(value) for value in total.tolist()]


def sum_of_each(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Each scalar summed over all ranks, in fp64 and in one collective. All ranks must pass the
    same names in the same order."""
    total = torch.stack([value.double() for value in values.values()])
    dist.all_reduce(total)
    return dict(zip(values, total.tolist(), strict=True))


def max_over_ranks(*values: float, device: torch.device) -> list[float]:
    """Each value's maximum over all ranks."""
    most = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return [float(value) for value in most.tolist()]


def require_equal(value: int, *, what: str, device: torch.device) -> None:
    """Raise `RuntimeError` on every rank unless all of them hold the same value.

    A shared file system may show two ranks different states of a directory. If they went on, they
    would wait in different collectives forever.
    """
    # If the mean of all values and the mean of their squares are those of ours, all are equal.
    total, squares = sum_over_ranks(value, value * value, device=device)
    if total != value * world_size() or squares != value * value * world_size():
        raise RuntimeError(f"rank {rank()} sees {value} for {what}, others see something else")


def gather_rows(rows_BD: Tensor) -> Tensor:
    """The rows (N, D) of all ranks in rank order, WITH the gradient through the gather.

    Every rank must pass the same number of rows. The backward pass sums, over all ranks, the
    gradients with respect to our rows. If each rank takes the loss of its own rows, and gradients
    are averaged over ranks (as DDP and ZeRO do), the result equals that of one process with the
    whole batch. Without this gradient the result would be wrong, because the rows of one rank are
    negatives in the losses of the others.
    """
    gathered: Tensor = _GatherRows.apply(rows_BD)  # type: ignore[no-untyped-call]
    return gathered


def gather_values(values_B: Tensor) -> Tensor:
    """The values (N,) of all ranks in rank order, such as hashes, that carry no gradient."""
    parts = [torch.empty_like(values_B) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values_B.contiguous())
    return torch.cat(parts)


def gather_to(part: Tensor, *, owner: int) -> list[Tensor] | None:
    """On rank `owner` the parts of all ranks, which have the same size, in rank order; None on the
    other ranks."""
    parts = None
    if dist.get_rank() == owner:
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.gather(part.contiguous(), parts, dst=owner)
    return parts


def gather_texts(text: str) -> list[str]:
    """The text of every rank, in rank order. It is sent as plain bytes; torch would use pickle."""
    # Ranks can gather only tensors of equal size, so texts are padded to the longest. An empty one
    # becomes a blank, because torch makes no tensor of an empty buffer.
    data = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
    sizes = gather_values(torch.tensor([len(data)])).tolist()
    padded = torch.nn.functional.pad(data, (0, max(sizes) - len(data)))
    parts = gather_values(padded).view(len(sizes), -1)
    texts = (bytes(part[:size].tolist()) for part, size in zip(parts, sizes, strict=True))
    return [encoded.decode().strip(" ") for encoded in texts]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor) -> Tensor:
        ctx.num_rows = rows_BD.shape[0]
        parts = [torch.empty_like(rows_BD) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        # A copy, because the sum below is in place and autograd may still use the original.
        gradient_ND: Tensor = gradients[0].contiguous().clone()
        # all_reduce and a slice: gloo has no reduce_scatter, and these matrices are small.
        dist.all_reduce(gradient_ND)
        start = dist.get_rank() * ctx.num_rows
        return gradient_ND[start : start + ctx.num_rows]
