"""Workers on devices of different kinds never mix two number types in one encoding."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import contents
from tests.encoding.conftest import embed
from toolkit.base.errors import BadInput
from toolkit.encoding.encoder import Encoder
from toolkit.encoding.units import planned_dtype
from toolkit.model import precision

Inputs = tuple[str, str]
AUTO = "encoder.dtype=auto"


@pytest.fixture
def device_has(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make this machine's device one that has bf16, or has not."""
    return lambda bf16: monkeypatch.setattr(precision, "has_bf16", lambda _: bf16)


def dtype_in(output: Path) -> str:
    """The number type of a finished encoding, by its manifest, where its readers find it."""
    return str(json.loads((output / "manifest.json").read_text())["encoder"]["dtype"])


def test_auto_is_the_same_encoding_as_the_type_that_it_settles(
    tmp_path: Path, whole: Path, inputs: Inputs, device_has: Any
) -> None:
    device_has(False)
    embed(tmp_path / "out", *inputs, AUTO)
    assert contents(tmp_path / "out") == contents(whole)
    assert dtype_in(whole) == "fp32"


def test_a_worker_on_another_device_goes_on_in_the_type_of_the_plan(
    tmp_path: Path, whole: Path, inputs: Inputs, device_has: Any
) -> None:
    """Whether it comes later, or a restart."""
    copied = tmp_path / "copied"
    shutil.copytree(whole, copied)
    for lost in ("00003.json", "00007.json"):
        (copied / "units" / lost).unlink()
    (copied / "manifest.json").unlink()
    device_has(True)
    embed(copied, *inputs, AUTO)
    assert contents(copied) == contents(whole)
    embed(tmp_path / "new", *inputs, AUTO)
    assert dtype_in(tmp_path / "new") == "bf16"
    before = contents(tmp_path / "new")
    (tmp_path / "new" / "units" / "00003.json").unlink()
    device_has(False)
    embed(tmp_path / "new", *inputs, AUTO)
    assert contents(tmp_path / "new") == before


def test_of_two_that_begin_at_once_one_settles_it(
    tmp_path: Path, whole: Path, inputs: Inputs, device_has: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While we load the model in bf16, a worker without bf16 makes the plan."""
    output, load, loaded = tmp_path / "out", Encoder.__init__, []

    def slow(self: Encoder, settings: Any, **named: Any) -> None:
        loaded.append(settings.dtype)
        load(self, settings, **named)
        output.mkdir(exist_ok=True)
        shutil.copy(whole / "plan.json", output)

    monkeypatch.setattr(Encoder, "__init__", slow)
    device_has(True)
    embed(output, *inputs, AUTO)
    assert loaded == ["bf16", "fp32"]
    assert contents(output) == contents(whole)


def test_other_differences_are_refused_as_ever(
    tmp_path: Path, whole: Path, inputs: Inputs, device_has: Any
) -> None:
    shutil.copytree(whole, tmp_path / "copied")
    device_has(True)
    with pytest.raises(BadInput, match="holds an encoding of another encoder"):
        embed(tmp_path / "copied", *inputs, AUTO, "encoder.max_tokens=17")
    with pytest.raises(BadInput, match="holds an encoding of another encoder"):
        embed(tmp_path / "copied", *inputs, "encoder.dtype=bf16")


@pytest.mark.parametrize(
    ("plan", "dtype"),
    [
        ({"encoder": {"dtype": "bf16"}}, "bf16"),
        ({"encoder": {"dtype": "auto"}}, None),
        ({"encoder": {"dtype": ["bf16"]}}, None),
        ({"encoder": 3}, None),
        ([], None),
    ],
)
def test_only_a_valid_type_is_read_from_a_plan(
    plan: Any, dtype: str | None, tmp_path: Path
) -> None:
    assert planned_dtype(tmp_path) is None
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert planned_dtype(tmp_path) == dtype
