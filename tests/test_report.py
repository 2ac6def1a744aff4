"""The page of a run: what it shows is what the run's files say, and a real browser shows it."""

import base64
import datetime
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import need
from tests.encoding.conftest import embed
from toolkit import train
from toolkit.base.files import committed_directory, write_json
from toolkit.encoding.store import VectorStore
from toolkit.evaluation.parts import Part, Scores, main_scores
from toolkit.evaluation.task import Found, Outcome
from toolkit.report import main
from toolkit.report.domain import of_domain
from toolkit.report.page import SAMPLES, date, report, shown, written
from toolkit.runs.launched import Launched, write_launched
from toolkit.runs.records import read_metrics
from toolkit.runs.standing import Standing

PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shards: Path, tiny_model: Path) -> Path:
    """A stage that was started twice, its corpus embedded, scores; a name that HTML must escape."""
    folder = tmp_path_factory.mktemp("runs") / "a <b>run</b> & more"
    given = [f"data.train={shards}", f"model.base={tiny_model}", f"run_dir={folder / 'mntp'}"]
    for steps in (2, 4):
        assert train.main(["tiny_mntp", *given, f"train.steps={steps}", *LOGGED]) == 0
    embed(folder / "embed", f"corpus.input={shards}", f"encoder.model={tiny_model}")
    scores = {
        "before": {"STS Spearman": 0.25, "STS isotropy": 0.5},
        "after": {"STS Spearman": 0.75},
    }
    part = Part("before", "STS", {"main": "Spearman"})
    Scores(folder / "evaluate").keep(part, Outcome({"Spearman": 0.25}))
    (folder / "evaluate" / "scores.json").write_text(json.dumps(scores))
    stages = [
        Launched(name, name, str(folder / name), str(folder / "logs" / name), steps)
        for name, steps in (("mntp", 4), ("embed", None), ("evaluate", None))
    ]
    write_launched(folder, stages)
    assert main([str(folder)]) == 0
    return folder


LOGGED = ("train.log_every_steps=1", "train.save_every_steps=1")


def test_the_page_holds_what_the_files_say(run: Path) -> None:
    page = (run / "report" / "index.html").read_text()
    assert "a &lt;b&gt;run&lt;/b&gt; &amp; more" in page
    parts = re.search(r"steps went on rank 0: reading ([\d.]+)%, (.*), saving ([\d.]+)%\.<", page)
    assert parts and "forward" in parts[2]
    every = re.findall(r"([\d.]+)%", parts[0])
    assert len(every) == 6 and sum(map(float, every)) == pytest.approx(100, abs=0.4)
    assert "<b>" not in page
    assert f"{read_metrics(run / 'mntp')[-1]['loss']:.4f}" in page
    assert len(re.findall(r"<td>20\d\d-\d\d-\d\dT", page)) == 2  # starts
    assert "<th>score</th><th>before</th><th>after</th>" in page
    assert "<td>STS Spearman</td><td>0.2500</td><td>0.7500</td>" in page
    assert "<td>STS isotropy</td><td>0.5000</td><td>-</td>" in page
    titles = [record["title"] for record in records(run / "embed")]
    nearest = re.findall(r"<tr><td>([^<]+)</td><td>([^<]+ \(\d\.\d{3}\);[^<]+)</td>", page)
    assert len(nearest) == SAMPLES
    assert {name for name, _ in nearest} <= set(titles)


def test_the_page_has_dates(run: Path) -> None:
    """When a stage began and last wrote, by its files; when the page was made, by its caller."""
    first = (run / "mntp" / "starts.jsonl").read_text().splitlines()[0]
    began = datetime.datetime.fromisoformat(json.loads(first)["time"]).timestamp()
    os.utime(run / "mntp" / "encoder" / "COMMITTED", (began + 3600, began + 3600))
    plan, manifest = run / "embed" / "plan.json", run / "embed" / "manifest.json"
    os.utime(plan, (1.7e9, 1.7e9))
    os.utime(manifest, (2e9, 2e9))
    pages = []
    for name in ("one", "two"):
        report(run, output=run / name, now=1.8e9)
        pages.append((run / name / "index.html").read_text())
    page = pages[0]
    assert "The run as it was on 2027-01-15 08:00:00 UTC." in page
    assert "<th>began</th><th>last written</th>" in page
    assert f"<td>{date(began)}</td><td>{date(began + 3600)}</td>" in page
    assert "<td>2023-11-14 22:13:20 UTC</td><td>2033-05-18 03:33:20 UTC</td>" in page
    assert len(re.findall(r"<td>20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC</td>", page)) == 6
    assert pages[0] == pages[1]  # by nothing else than its files and that date


def test_times_that_are_none_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "starts.jsonl").write_text('{"time": "yesterday", "step": 0, "job": "local"}\n')
    one = Standing("r", "mntp", "mntp")
    assert written(one, output=tmp_path) == ("", "")
    (tmp_path / "metrics.jsonl").write_text("")
    os.utime(tmp_path / "metrics.jsonl", (0, 0))
    assert written(one, output=tmp_path) == ("1970-01-01 00:00:00 UTC",) * 2


def records(encoding: Path) -> list[dict[str, str]]:
    store = VectorStore(encoding)
    return [record for unit in store.units for record in store.records(unit)]


def test_only_the_main_score_of_a_task_has_a_bar(run: Path) -> None:
    assert main_scores(run / "evaluate") == ["STS Spearman"]
    rows = {"before": {"STS Spearman": 0.25, "STS isotropy": 0.5}}
    assert shown(rows, main=["STS Spearman"]) == {"before": {"STS Spearman": 0.25}}
    assert shown(rows, main=[]) == rows
    assert main([str(run / "evaluate"), "--output", str(run / "alone")]) == 0
    assert "STS Spearman" in (run / "alone" / "index.html").read_text()


def test_it_needs_nothing_else(run: Path) -> None:
    """The pictures are in the page, and as files beside it; nothing comes from the network."""
    page = (run / "report" / "index.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(sources) == 4
    inside = {base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources}
    beside = {path.read_bytes() for path in (run / "report").glob("*.png")}
    assert inside == beside
    assert all(picture.startswith(PNG) for picture in beside)
    assert "http" not in re.sub(r'src="[^"]+"', "", page)


def test_a_browser_shows_it(run: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    need(browser is not None, "no chromium")
    page = (run / "report" / "index.html").as_uri()
    headless = [str(browser), "--headless", "--no-sandbox", "--disable-gpu"]
    headless += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    script = "document.title=[...document.images].every(i=>i.complete&&i.naturalWidth>300)"
    probe = tmp_path / "probe.html"
    probe.write_text((run / "report" / "index.html").read_text() + f"<script>{script}</script>")
    done = subprocess.run(
        [*headless, "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert "<title>true</title>" in done.stdout, done.stderr[-2000:]
    shot = tmp_path / "shot.png"
    subprocess.run(
        [*headless, "--window-size=1300,2000", f"--screenshot={shot}", page],
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert shot.read_bytes().startswith(PNG)
    assert shot.stat().st_size > 50_000  # a blank page of this size has 8 kB


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_two_encoders_query_by_query_the_worst_first(tmp_path: Path) -> None:
    scores = Scores(tmp_path)
    for encoder, values in (("the_first", (0.5, 0.25, 1.0)), ("last", (0.75, 0.0, 1.0))):
        queries: dict[str, Found] = {
            str(number): {
                "query": f"query <{number}>",
                "score": value,
                "first": [f"{encoder} hit {number}"],
                "relevant": ["r"],
            }
            for number, value in enumerate(values)
        }
        part = Part(encoder, "law", {"main": "nDCG@10"})
        scores.keep(part, Outcome({"nDCG@10": sum(values) / 3}, queries))
    rows = {"BM25": {"law nDCG@10": 0.1}, "the first": {"law nDCG@10": 0.5}}
    rows["last"] = {"law nDCG@10": 0.5}
    (tmp_path / "scores.json").write_text(json.dumps(rows))
    assert main([str(tmp_path)]) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "law, last beside the first" in page
    assert "the first 0.583, last 0.583: +0.000 (95 % interval -0.250 to +0.250)" in page
    assert "Of 3 queries 1 are better and 1 worse." in page
    worse = page.index("What became worse")
    assert worse < page.index("query &lt;1&gt;") < page.index("What became better")
    assert page.index("What became better") < page.index("query &lt;0&gt;")
    assert "query &lt;2&gt;" not in page  # as good as before
    assert "<td>the_first hit 1</td><td>last hit 1</td><td>0.250</td><td>0.000</td>" in page


def test_what_was_not_read_is_counted_by_its_reason(tmp_path: Path) -> None:
    parts = {"train": {"documents": 3, "passages": 4}}
    made = {"documents": 3, "parts": parts, "settings": {"source": "papers"}}

    def told(**more: object) -> str:
        write_json(tmp_path / "documents.json", {**made, **more})
        stage = Standing("r", "documents", "documents")
        sections = of_domain(tmp_path, [stage], places={"documents": tmp_path})
        return next(text for title, text, *_ in sections if title == "What it was trained on")

    line = "<p>Not read: .pdf 1,200, .a&amp;b 2, hidden 2.</p>"
    assert line in told(not_read={"hidden": 2, ".a&b": 2, ".pdf": 1200})
    assert "Not read" not in told(not_read={})
    assert "Not read" not in told()  # documents that were collected before this was counted


def test_an_encoder_that_was_not_merged_is_deployed_from_its_training(tmp_path: Path) -> None:
    parts = {"train": {"documents": 3, "passages": 4}}
    made = {"documents": 3, "parts": parts, "settings": {"source": "papers"}}
    write_json(tmp_path / "documents" / "documents.json", made)
    places = {name: tmp_path / name for name in ("documents", "simcse", "supervised", "evaluate")}
    stages = [Standing("r", name, name) for name in places]

    def deployment() -> str:
        found = {title: text for title, text, *_ in of_domain(tmp_path, stages, places=places)}
        return found.get("The encoder, and how to deploy it", "")

    assert deployment() == ""
    for stage in ("simcse", "supervised"):
        with committed_directory(places[stage] / "encoder"):
            pass
        assert f"vllm serve {tmp_path}/{stage}/encoder --runner" in deployment()
    assert "Trained by the stage supervised, and not merged" in deployment()
    chosen = {"encoder": "merged_50", "ratio": 0.5, "model": "/m/0.5", "digest": "d" * 64}
    write_json(places["evaluate"] / "chosen.json", chosen)
    assert "vllm serve /m/0.5 --runner" in deployment()
