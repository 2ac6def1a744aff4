"""Our scores beside published ones: on the tiny model for real, and on cases worked out by hand."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import QUICKSTART
from toolkit import evaluate, train
from toolkit.base.errors import BadInput
from toolkit.evaluation.reproduction import (
    Reference,
    Scored,
    chain,
    read_reference,
    reference_names,
    report,
)
from toolkit.settings.schema import EncoderSettings

SETTINGS = {
    "mntp": {"train.lr": 1e-3, "train.steps": 1000, "data.train": "wiki", "model.lora.rank": 8}
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, shards: Path, tiny_model: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "mntp"
    given = [f"data.train={shards}", f"model.base={tiny_model}", f"run_dir={run_dir}"]
    assert train.main(["tiny_mntp", *given, "train.steps=1", "train.log_every_steps=1"]) == 0
    return run_dir


def test_every_reference_reads_and_has_its_recipe() -> None:
    names = ["llama2_7b", "llama3_8b", "mistral_7b", "sheared_llama_1b", "tiny"]
    assert reference_names() == names
    for name in names:
        reference = read_reference(name, encoders=["bi_mntp"])
        assert all(0 < v < 100 for row in reference.scores.values() for v in row.values())
    mistral = read_reference("mistral_7b", encoders=["uni"])
    assert mistral.scores["bi_mntp_simcse"]["Average"] == 56.80
    with pytest.raises(BadInput, match=r"knows uni, bi_mntp, .*no encoder of the recipe"):
        read_reference("mistral_7b", encoders=["mine"])
    with pytest.raises(BadInput, match=r"reference=gpt9: give a \.yaml file, or one of llama2_7b"):
        read_reference("gpt9", encoders=["uni"])


def test_a_report_of_a_case_worked_out_by_hand(run_dir: Path) -> None:
    scores = {"bi": {"Average": 50.0, "STS": 60.0, "Retrieval": 30.0}, "uni": {"Average": 1.0}}
    reference = Reference("mine", "a paper", scores, SETTINGS, {"mntp": 2.0})
    scored = [Scored("bi", "STS", 0.5), Scored("bi", "STS", 0.7), Scored("bi", "Clustering", 0.3)]
    scored.append(Scored("other", "STS", 0.9))
    text = report(
        reference,
        scored,
        encoders={"bi": EncoderSettings(model=str(run_dir / "encoder"))},
    )
    assert "| bi | Average | 3 | 50.00 | 50.00 | +0.00 |" in text
    assert "| bi | STS | 2 | 60.00 | 60.00 | +0.00 |" in text
    assert "| bi | Retrieval | 0 | - | 30.00 | - |" in text
    assert "uni" not in text.split("## Settings")[0].split("|---")[1]
    differences = re.findall(r"`(\S+)` is (.*), in the reference (.*)", text)
    assert ("train.steps", "1", "1000") in differences
    assert "data.train" in {key for key, _, _ in differences}
    assert not {"train.lr", "model.lora.rank"} & {key for key, _, _ in differences}
    assert re.search(r"\(mntp\): 0\.00 hours of cpu, 1 ranks; reference 2\.00", text)


def test_the_chain_of_runs_is_followed_to_its_base(run_dir: Path, tmp_path: Path) -> None:
    config = (run_dir / "config.yaml").read_text()
    (tmp_path / "later").mkdir()
    base = next(line for line in config.splitlines() if line.startswith("  base: "))
    later = config.replace(base, f"  base: {run_dir / 'encoder'}")
    (tmp_path / "later" / "config.yaml").write_text(later)
    assert [run for run, _ in chain(str(tmp_path / "later"))] == [tmp_path / "later", run_dir]
    assert list(chain("somebody/model")) == []


def test_the_untrained_tiny_model_has_the_scores_of_its_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {"model": "{toolkit}/quickstart/tiny-mistral", "max_tokens": 256}
    recipe = {
        "kind": "evaluate",
        "output_dir": str(tmp_path / "scores"),
        "reference": "tiny",
        "encoders": {"uni": {**common, "causal": True}, "bi": common},
        "sts": {"STS": str(QUICKSTART / "sts_test.tsv")},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
    assert evaluate.main([str(tmp_path / "mine.yaml")]) == 0
    text = (tmp_path / "scores" / "reproduction.md").read_text()
    assert text in capsys.readouterr().out
    rows = re.findall(r"\| (uni|bi) \| STS \| 1 \| \S+ \| \S+ \| (\S+) \|", text)
    assert [name for name, _ in rows] == ["uni", "bi"]
    assert all(abs(float(difference)) <= 0.05 for _, difference in rows)


def test_reproduce_is_short_for_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--reproduce", "mistral_7b", "--print-config"]) == 0
    assert "benchmark: MTEB(eng, v1)" in capsys.readouterr().out
