"""Vectors leave the device while it computes the next ones, and it never holds many."""

import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from toolkit.base.errors import BadInput
from toolkit.encoding import encoder as encoders
from toolkit.encoding.encoder import Encoder
from toolkit.model import copied_out as copies
from toolkit.model.copied_out import copied_out, made_ahead, start_copy
from toolkit.settings.schema import EncoderSettings


class Device:
    """A device as slow as it may be: a copy has no content before somebody waits for it, and when
    somebody does, all that was queued before it is done."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.most_held = 0
        self._held: list[weakref.ref[Tensor]] = []
        self._copies = 0

    def work(self, item: int) -> Tensor:
        self.log.append(f"work {item}")
        return torch.full((2, 3), float(item))

    def start_copy(self, result: Tensor) -> Callable[[], Tensor]:
        self._held = [one for one in self._held if one() is not None] + [weakref.ref(result)]
        self.most_held = max(self.most_held, len(self._held))
        host, number = torch.full(result.shape, float("nan")), self._copies
        self._copies += 1

        def arrived() -> Tensor:
            self.log.append(f"wait {number}")
            return host.copy_(result)

        return arrived


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(copies, "start_copy", made.start_copy)
    return made


def test_the_next_work_is_queued_before_a_copy_is_waited_for(device: Device) -> None:
    found = [(item, float(result[0, 0])) for item, result in copied_out(device.work, range(4))]
    assert found == [(n, float(n)) for n in range(4)]
    expected = "work 0, work 1, wait 0, work 2, wait 1, work 3, wait 2, wait 3"
    assert device.log == expected.split(", ")


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_alone(count: int, device: Device) -> None:
    assert len(list(copied_out(device.work, range(count)))) == count
    assert device.log == ["work 0", "wait 0"] * count


def test_results_are_given_back_however_many_there_are(device: Device) -> None:
    for _ in copied_out(device.work, range(50)):
        pass
    assert device.most_held <= 2


def test_an_error_of_the_work_is_raised(device: Device) -> None:
    def fail(item: int) -> Tensor:
        if item == 2:
            raise ValueError("no more memory")
        return device.work(item)

    results = copied_out(fail, range(9))
    assert next(results)[0] == 0
    with pytest.raises(ValueError, match="no more memory"):
        next(results)


def test_an_encoder_puts_each_vector_in_its_place(
    device: Device, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EncoderSettings(model=str(tiny_model), max_tokens=32, batch_tokens=64)
    encoder = Encoder(settings, device=torch.device("cpu"), dims=64)
    texts = [f"Canal {n} carries barges. " * (1 + n % 5) for n in range(30)] + [""]
    expected, seen = encoder.encode(texts), []
    monkeypatch.setattr(encoders, "to_device", lambda rows, **_: rows)
    monkeypatch.setattr(encoder, "device", torch.device("cuda"))
    found = encoder.vectors_of(texts, on_rows=lambda rows, _: seen.append(rows))
    np.testing.assert_array_equal(found, expected)
    assert found.shape == (31, 64) and not found[-1].any()
    assert len(seen) > 5
    assert sum(seen) == 31
    assert device.most_held <= 2
    assert len(device.log) == len(seen)
    assert encoder.vectors_of([]).shape == (0, 64)
    # Many texts go in pieces, of which the next is tokenised meanwhile.
    monkeypatch.setattr(encoders, "PIECE_TEXTS", 7)
    np.testing.assert_allclose(encoder.vectors_of(texts), expected, atol=1e-5)
    with pytest.raises(BadInput, match="no room is left"):
        encoder.vectors_of(texts, instruction="Canals carry barges. " * 20)


def test_what_is_made_ahead_comes_in_order_and_one_item_ahead() -> None:
    begun = [threading.Event() for _ in range(5)]

    def make(item: int) -> int:
        begun[item].set()
        return 10 * item

    made = made_ahead(make, range(5))
    for item in range(5):
        assert next(made) == 10 * item
        if item < 4:  # begun before the one that was given is used; a thread waits for nobody
            assert begun[item + 1].wait(timeout=60)
        assert not any(event.is_set() for event in begun[item + 2 :])
    assert list(made) == list(made_ahead(make, [])) == []


def test_an_error_ahead_is_raised_where_its_result_is_taken() -> None:
    made = made_ahead(lambda item: 6 // item, [3, 0, 1])
    assert next(made) == 2
    with pytest.raises(ZeroDivisionError):
        next(made)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_copy_is_pinned_and_little_memory_is_held() -> None:
    def work(item: int) -> Any:
        return torch.full((1024, 1024), float(item), device="cuda") + 1

    assert start_copy(work(1))().is_pinned()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for item, result in copied_out(work, range(100)):
        assert (result == item + 1).all()
    assert torch.cuda.max_memory_allocated() - before <= 6 * 4 * 1024**2
