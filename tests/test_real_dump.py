"""The main job on a real Wikipedia dump: shards, MNTP, SimCSE, merged encoder, corpus, search."""

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import run
from toolkit import search
from toolkit.settings.pipeline_schema import PipelineRecipe
from toolkit.settings.pipelines import resolve_stages
from toolkit.settings.recipes import load_recipe, to_yaml
from toolkit.settings.schema import EmbedRecipe

DUMP = "mediawiki_dump/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
# Written before the first run and not touched since: none holds its article's title.
QUERIES = {
    "fraction of sunlight reflected by a surface such as snow or ice": "Albedo",
    "president who led the Union during the Civil War and ended slavery": "Abraham Lincoln",
    "first mission that landed two people on the Moon": "Apollo 11",
    "novel in which the beasts of a manor rebel against their human farmer": "Animal Farm",
    "African mammal that digs and eats ants and termites at night": "Aardvark",
    "Japanese martial art of throws and joint locks": "Aikido",
    "counting frame with beads used for calculation": "Abacus",
    "physicist who developed the theory of relativity": "Albert Einstein",
    "sticky black petroleum material used for road surfaces": "Asphalt",
    "tennis player from Las Vegas who won Grand Slam titles": "Andre Agassi",
}


def pipeline(folder: Path, *, shards: Path) -> Path:
    """A pipeline of one's own: the quickstart's stages without its scores, given by path."""
    recipe = load_recipe("quickstart")
    assert isinstance(recipe, PipelineRecipe)
    stages = {name: stage for name, stage in recipe.stages.items() if name != "evaluate"}
    changed = {
        "run_dir": str(folder / "run"),
        "data": {"train": str(shards)},
        "corpus": {"input": str(shards)},
    }
    own = PipelineRecipe.model_validate({**recipe.model_dump(), **changed, "stages": stages})
    assert isinstance(resolve_stages(own)["embed"], EmbedRecipe)
    (folder / "own.yaml").write_text(to_yaml(own))
    return folder / "own.yaml"


@pytest.mark.parametrize(
    ("mntp_steps", "simcse_steps", "least"),
    [(4, 8, 5), pytest.param(100, 200, 7, marks=pytest.mark.slow)],
)
def test_ten_queries_on_the_real_dump(
    mntp_steps: int,
    simcse_steps: int,
    least: int,
    real_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Five of ten in the top 5 of 106 by chance: a probability of 0.00005."""
    shards = tmp_path / "shards"
    script = [sys.executable, "data_scripts/shard_wikipedia.py", "--input", str(real_data / DUMP)]
    printed = run([*script, "--output", str(shards)])
    assert "106 articles kept" in printed
    assert "100 left out: redirect" in printed
    launch = [sys.executable, "-m", "toolkit.launch", "--cluster", "local", "--gpus-per-node", "0"]
    steps = [f"mntp.train.steps={mntp_steps}", f"simcse.train.steps={simcse_steps}"]
    run([*launch, "--recipe", str(pipeline(tmp_path, shards=shards)), *steps])
    embeddings = tmp_path / "run" / "embeddings"
    assert search.main([str(embeddings), *QUERIES, "--json", "--top", "5"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[0] == "{"]
    right = [QUERIES[row["query"]] in [hit["title"] for hit in row["hits"]] for row in found]
    assert len(right) == 10
    assert sum(right) >= least, dict(zip(QUERIES, right, strict=True))
