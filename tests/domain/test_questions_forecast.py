"""What toolkit.plan says of questions beside what a run has then read and written."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.domain.conftest import NUM_DOCUMENTS, TIMES, Arguments, ask
from toolkit import plan
from toolkit.domain.decoder import Decoder


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert plan.main(["write_questions", *arguments]) == 0
    return capsys.readouterr().out


def test_the_plan_is_what_a_run_does(
    arguments: Arguments,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[int] = []
    real = Decoder._forward

    def counted(self: Decoder, ids_BT: Any, *, mask: Any, cache: Any) -> Any:
        if ids_BT.shape[1] > 1 and cache.get_seq_length():  # not what all share or is written
            read.append(int(mask[:, -ids_BT.shape[1] :].sum()))
        return real(self, ids_BT, mask=mask, cache=cache)

    monkeypatch.setattr(Decoder, "_forward", counted)
    ask(tmp_path / "out", *arguments)
    text = planned(capsys, *arguments)
    assert f"{NUM_DOCUMENTS} documents (read: {NUM_DOCUMENTS}), {TIMES} questions each" in text
    found = re.search(r"tokens: ([\d,]+) \+- 0 read \(95 %\), ([\d,]+) written at most", text)
    assert found
    assert int(found[1].replace(",", "")) == sum(read)
    assert int(found[2].replace(",", "")) == NUM_DOCUMENTS * TIMES * 10
    assert "--tokens-per-s" in text


def test_hours_and_cost_follow_from_a_speed_that_was_measured(
    arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tokens-per-s", "1", "--price", "3600", "--gpus-per-node", "4", "--nodes", "2"]
    text = planned(capsys, *arguments, *options)
    found = re.search(r"tokens: ([\d,]+) .*, ([\d,]+) written", text)
    assert found
    tokens = sum(int(number.replace(",", "")) for number in found.groups())
    assert f"time: at most {tokens / 8 / 3600:,.2f} h on 8 processes, each 1 tokens/s" in text
    each = tokens / NUM_DOCUMENTS * 1000
    assert f"cost: at most {tokens:,.2f} in all, {each:,.2f} per thousand documents" in text


def test_a_sample_has_an_error_and_bad_options_are_refused(
    arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    every = [*arguments, "documents=null", "part=null"]
    text = planned(capsys, *every, "--sample", "60")
    assert "170 documents (read: " in text and "+- 0 read" not in text
    for change in (["--tokens-per-s", "0"], ["prompt=absent"], ["part=dev"]):
        assert plan.main(["write_questions", *arguments, *change]) == 2
        assert capsys.readouterr().err.count("\n") == 1
