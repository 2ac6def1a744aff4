"""The probe during training: the scores that evaluation gives the same weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import QUICKSTART
from tests.light import FEW_ADAPTERS
from toolkit.base.errors import BadInput
from toolkit.encoding.encoder import Encoder
from toolkit.evaluation.program import Embedder
from toolkit.evaluation.sts import StsTask, read_pairs
from toolkit.evaluation.tasks import read_retrieval
from toolkit.runs.records import read_metrics
from toolkit.settings.schema import EncoderSettings
from toolkit.settings.task_schema import Probe, Retrieval
from toolkit.training.probe import open_probe

Door = Callable[..., str]
PAIRS, QUERIES = QUICKSTART / "sts_dev.tsv", QUICKSTART / "queries_dev.jsonl"
MAX_TOKENS = 32


def expected(model: Path, *, shards: Path) -> tuple[float, float]:
    settings = EncoderSettings(model=str(model), max_tokens=MAX_TOKENS)
    embed = Embedder(Encoder(settings, device=torch.device("cpu")), name="it", instruction="")
    asked = Retrieval(corpus=str(shards), queries=str(QUERIES))
    retrieval, _ = read_retrieval("probe", asked)
    sts = StsTask(read_pairs(PAIRS))
    return sts.scores(embed)["Spearman"], retrieval.scores(embed)["nDCG@10"]


@pytest.mark.parametrize("recipe", ["tiny_mntp", "tiny_simcse"])
def test_a_probe_is_what_evaluation_says_on_two_ranks(
    recipe: str, door: Door, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """ZeRO-3, with a language-model head and without; a head's text is a micro-batch of its own."""
    run_dir = tmp_path / "run"
    probe = [f"sts={PAIRS}", f"retrieval.corpus={shards}", f"retrieval.queries={QUERIES}"]
    given = [f"train.probe.{text}" for text in [*probe, "every_steps=2"]]
    given += [f"data.train={shards}", f"model.base={tiny_model}", f"run_dir={run_dir}"]
    given += ["train.steps=3", "train.log_every_steps=100", f"data.max_tokens={MAX_TOKENS}"]
    given += ["train.lr=1e-2", "train.keep_best=true", "train.save_every_steps=1"]
    given += ["train.keep_checkpoints=1", FEW_ADAPTERS]
    door("train", recipe, *given, ranks=2)
    rows = [row for row in read_metrics(run_dir) if "probe_spearman" in row]
    assert [row["step"] for row in rows] == [0, 2, 3]
    for row, model in ((rows[0], tiny_model), (rows[2], run_dir / "encoder")):
        sts, retrieval = expected(model, shards=shards)
        # Rounding may exchange two neighbours of 60 pairs, or of some hundred documents.
        assert row["probe_spearman"] == pytest.approx(sts, abs=2e-4)
        assert row["probe_ndcg_at_10"] == pytest.approx(retrieval, abs=2e-3)
    assert rows[0]["probe_spearman"] != rows[2]["probe_spearman"]
    kept = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    best = max((row["probe_spearman"], row["step"]) for row in rows[1:])[1]
    assert kept == sorted({f"step-{best:08d}", "step-00000003"})


def test_probes_that_cannot_be_scored_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="give it sts"):
        open_probe(Probe(every_steps=1))
    with pytest.raises(BadInput, match=r"p\.tsv: cannot be read"):
        open_probe(Probe(every_steps=1, sts=str(tmp_path / "p.tsv")))
    assert open_probe(None) is None
