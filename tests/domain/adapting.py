"""The pipeline of a domain on the tiny model: documents, command, and the files that are results.

Knows what a run of it writes. Refuses to know where it runs.
"""

from collections.abc import Sequence
from pathlib import Path

from tests.conftest import QUICKSTART, contents
from tests.slurm.test_jobs import timeless
from toolkit.base.layout import (
    CONFIG_FILE,
    HEARTBEATS_FILE,
    LAUNCHED_FILE,
    LOG_DIR,
    METRICS_FILE,
    REPORT_DIR,
    STARTS_FILE,
)
from toolkit.text.readers import Columns
from toolkit.text.records import Article
from toolkit.text.sources import find_inputs, open_source

SETTINGS = (
    "skip=[mntp]",
    "train.save_every_steps=100",
    "choose.baselines=[bm25]",
    "evaluate.encoders.after.max_tokens=32",
)
HERE = ("--cluster", "local", "--gpus-per-node", "0")
OF_LAUNCHES = {LOG_DIR, REPORT_DIR, CONFIG_FILE, LAUNCHED_FILE}
OF_STARTS = {STARTS_FILE, HEARTBEATS_FILE}


def write_papers(folder: Path) -> Path:
    """Sixty articles of the encyclopedia, each a text file, named as people name files."""
    (given,) = find_inputs([QUICKSTART / "encyclopedia.xml.bz2"])
    source = open_source(given, columns=Columns())
    pages = (source.document(raw, number=place) for place, raw in enumerate(source.rows(0)))
    articles = [page for page in pages if isinstance(page, Article)][:60]
    for article in articles:
        text = article.text.replace("\n", "\n\n")
        (folder / f"About {article.title.replace('/', '-')}.txt").write_text(text)
    return folder


def command(papers: Path, *settings: str, where: Sequence[str] = HERE) -> list[str]:
    """What launches the pipeline, without the interpreter. Its run directory is `run` below the
    current one: a copy of it elsewhere is the same run, for all that it says about itself."""
    launcher = ["-m", "toolkit.launch", "tiny_adapt_domain", *where]
    return [*launcher, f"data.source={papers}", "run_dir=run", *settings]


def differing(out: Path, other: Path) -> list[str]:
    """The results in which two runs differ, by file."""
    left, right = (results(one, runs=(out, other)) for one in (out, other))
    return sorted(name for name in {**left, **right} if left.get(name) != right.get(name))


def results(out: Path, *, runs: Sequence[Path]) -> dict[str, object]:
    """What all stages have written, by file, with one name for the places of `runs` and without
    clocks: not what tells of launches and starts, nor copies of shards, which are cached by path.
    """
    found: dict[str, object] = {}
    for name, content in contents(out).items():
        parts = Path(name).parts
        if parts[0] in OF_LAUNCHES or parts[-1] in OF_STARTS or ".cache" in parts:
            continue
        for one in runs:
            content = content.replace(bytes(one), b"run")
        found[name] = timeless(out / parts[0]) if parts[-1] == METRICS_FILE else content
    return found
