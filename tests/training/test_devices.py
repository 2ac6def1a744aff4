"""Which device a rank takes, on GPUs that are only counted here."""

import pytest
import torch

from toolkit.base.errors import BadInput, NodeFault
from toolkit.parallel.comm import device_of


def see(monkeypatch: pytest.MonkeyPatch, *, count: int, allotted: str, cuda: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allotted)


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, count=4, allotted="0,1,2,3", cuda="13.0")
    assert [device_of(rank).index for rank in range(4)] == [0, 1, 2, 3]
    with pytest.raises(BadInput, match=r"local rank 4 on .*: there are 4 GPUs here"):
        device_of(4)
    see(monkeypatch, count=1, allotted="3", cuda="13.0")
    assert device_of(3) == torch.device("cuda", 0), "a process may see its own alone"


def test_allotted_gpus_that_torch_does_not_see_are_the_nodes_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    see(monkeypatch, count=0, allotted="0,1", cuda="13.0")
    with pytest.raises(NodeFault, match=r"GPUs 0,1 are allotted .* too old for CUDA 13\.0"):
        device_of(0)


@pytest.mark.parametrize(
    ("allotted", "cuda"), [("", "13.0"), ("-1", "13.0"), ("NoDevFiles", "13.0"), ("0,1", None)]
)
def test_without_gpus_it_is_the_cpu(
    allotted: str, cuda: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(monkeypatch, count=0, allotted=allotted, cuda=cuda)
    assert device_of(1) == torch.device("cpu")
