"""Text of others on every screen: titles, names, log lines and paths that a terminal, rich, HTML,
Markdown or matplotlib would act upon. The doors run here, on a terminal of their own."""

import contextlib
import fcntl
import html.parser
import importlib
import json
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from tests.encoding.conftest import embed
from tests.text.making import shard_articles
from toolkit.base.console import Progress
from toolkit.evaluation import reproduction
from toolkit.evaluation.reproduction import Scored
from toolkit.evaluation.tables import table
from toolkit.launching import follow
from toolkit.report import pictures
from toolkit.report.page import report
from toolkit.runs.launched import Launched, write_launched
from toolkit.settings.schema import EncoderSettings
from toolkit.text.records import Article
from toolkit.training.card import CardFacts, model_card

# A title for the window, a cleared screen (by ESC and by one byte), turned reading direction, a
# forged line, rich's markup and its names of pictures, markup that nobody has opened.
NAME = "A\x1b]0;owned\x07\x1b[2J\x9b2J\u202eB\u2066[red]x[/]:warning:[/green]"
TITLE = f"{NAME}\r\n  1. 0.999  forged\x00\x7f\u2028"
RICHS_OWN = re.compile(r"\x1b\[[\d;]*m")  # colours, and nothing else
ACTING = re.compile("[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class Terminal:
    """Runs an action whose output goes to a terminal of 300 columns; what came there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, action: Callable[[], object]) -> str:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 300, 0, 0))
        heard: list[bytes] = []

        def listen() -> None:
            with contextlib.suppress(OSError):  # EIO: the other end is closed
                while piece := os.read(master, 65536):
                    heard.append(piece)

        thread = threading.Thread(target=listen)
        thread.start()
        with open(slave, "w", encoding="utf-8") as screen, self._monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", screen)
            patch.setattr(sys, "stderr", screen)
            patch.setenv("TERM", "xterm-256color")
            patch.setenv("COLUMNS", "300")
            for name in ("NO_COLOR", "FORCE_COLOR"):
                patch.delenv(name, raising=False)
            action()
        thread.join()
        os.close(master)
        return b"".join(heard).decode()

    def door(self, name: str, *arguments: object, code: int = 0) -> list[str]:
        """Its lines, in which nothing is left for the terminal to act upon but rich's colours."""
        main = importlib.import_module(name).main
        codes: list[int] = []
        shown = self(lambda: codes.append(main([str(argument) for argument in arguments])))
        assert codes == [code], shown
        return clean_lines(shown)


def clean_lines(shown: str) -> list[str]:
    text = RICHS_OWN.sub("", shown).replace("\r\n", "\n")
    assert not ACTING.search(text) and "\r" not in text, text
    return text.splitlines()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(monkeypatch)


def test_the_terminal_hears_what_acts(terminal: Terminal) -> None:
    """Else the tests below would find nothing."""
    with pytest.raises(AssertionError):
        clean_lines(terminal(lambda: print(NAME)))


@pytest.fixture(scope="module")
def encoding(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Three documents with such titles, ids and texts, embedded."""
    folder = tmp_path_factory.mktemp("hostile")
    articles = [
        Article(id=f"{number}{TITLE}", title=TITLE, url="", text=f"River {number} {NAME} water.")
        for number in range(3)
    ]
    shard_articles(articles, output=folder / "shards")
    embed(folder / "enc", f"corpus.input={folder / 'shards'}", f"encoder.model={tiny_model}")
    return folder / "enc"


def test_search_shows_titles_ids_and_snippets(terminal: Terminal, encoding: Path) -> None:
    lines = terminal.door("toolkit.search", encoding, f"river {NAME}", "--top", 3)
    assert len(lines) == 7, lines  # the query; a hit and its snippet, three times
    assert [line[:5] for line in lines[1::2]] == ["  1. ", "  2. ", "  3. "]
    assert all(r"A\x1b]0;owned\x07" in line for line in lines)
    assert all("[red]x[/]:warning:[/green]" in line for line in lines)


def test_search_as_json_is_exact(terminal: Terminal, encoding: Path) -> None:
    (line,) = terminal.door("toolkit.search", encoding, "river", "--top", 1, "--json")
    (hit,) = json.loads(line)["hits"]
    assert hit["title"] == TITLE
    assert hit["id"].endswith(TITLE)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose folder, stages, jobs and logs have such names."""
    folder = tmp_path / NAME.replace("/", "|")
    logs = folder / "logs"
    logs.mkdir(parents=True)
    (logs / f"1{NAME.replace('/', '|')}.out").write_text(f"error: {NAME} is wrong\n")
    stages = [
        Launched(f"{number}{NAME}", kind, str(folder / str(number)), str(logs), 5, (NAME,))
        for number, kind in enumerate(("mntp", "embed", "evaluate"))
    ]
    write_launched(folder, stages)
    (folder / "0").mkdir()
    row = {"step": 3, "loss": 1.5, "seconds": 1.0, "tokens_per_s": 9.0}
    (folder / "0" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    start = {"time": "2026-01-02T03:04:05+00:00", "step": 0, "job": NAME, "device": NAME}
    (folder / "0" / "starts.jsonl").write_text(json.dumps(start) + "\n")
    beats = {"nodes": [{"node": NAME, "seconds": 1.0, "step": 3, "phase": NAME}]}
    (folder / "0" / "heartbeats.json").write_text(json.dumps(beats))
    return folder


def test_status_shows_names_reasons_and_log_lines(terminal: Terminal, run: Path) -> None:
    lines = terminal.door("toolkit.status", run)
    assert sum("[red]x[/]" in line for line in lines) >= 3
    (beaten,) = [line for line in lines if "last heartbeat of" in line]
    assert beaten.count(":warning:") >= 2  # no picture
    below = terminal.door("toolkit.status", "--all", run.parent)
    assert any("[red]x[/]" in line for line in below)
    told = json.loads("\n".join(terminal.door("toolkit.status", run, "--json")))
    assert told[0]["stage"] == f"0{NAME}"


def test_following_shows_the_same(
    terminal: Terminal, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(follow, "LOOK_S", 0.0)
    monkeypatch.setattr(follow, "is_over", lambda one: True)  # there is no SLURM to say so
    shown = terminal(lambda: follow.follow(run))
    # Live moves the cursor; what is left is text.
    text = re.sub(r"\x1b\[(?:\d*[AK]|2K|\?25[lh])", "", RICHS_OWN.sub("", shown))
    assert not ACTING.search(text), text
    capsys.readouterr()
    follow.follow(run)
    captured = capsys.readouterr()
    assert not ACTING.search(captured.out + captured.err)
    assert r"A\x1b]0;owned" in captured.out and "error: " in captured.err


HOSTILE_PATH = f"absent/{NAME.replace('/', '|')}"


@pytest.mark.parametrize(
    "command",
    [
        ("toolkit.train", HOSTILE_PATH),
        ("toolkit.train", "tiny_mntp", f"{NAME}=1"),
        ("toolkit.train", "tiny_mntp", f"model.base=./{HOSTILE_PATH}"),
        ("toolkit.encode", "tiny_embed", f"corpus.input={HOSTILE_PATH}"),
        ("toolkit.evaluate", HOSTILE_PATH),
        ("toolkit.export", HOSTILE_PATH, "out"),
        ("toolkit.search", HOSTILE_PATH, "x"),
        ("toolkit.verify", HOSTILE_PATH),
        ("toolkit.report", HOSTILE_PATH),
        ("toolkit.status", HOSTILE_PATH),
        ("toolkit.plan", HOSTILE_PATH),
        ("toolkit.prefetch", HOSTILE_PATH),
        ("toolkit.launch", "--recipe", HOSTILE_PATH),
        ("data_scripts.shard_wikipedia", "--input", HOSTILE_PATH, "--output", "x"),
        ("data_scripts.tokenize_shards", "--shards", HOSTILE_PATH, "--model", "x"),
        ("data_scripts.verify_shards", HOSTILE_PATH),
        ("data_scripts.prepare_pairs", "--input", HOSTILE_PATH, "--output", "x"),
    ],
    ids=lambda command: f"{command[0]} {len(command)}",
)
def test_every_door_refuses_in_one_line(terminal: Terminal, command: tuple[str, ...]) -> None:
    (line,) = terminal.door(*command, code=2)
    assert line.startswith("error: ")
    assert r"\x1b]0;owned" in line.replace("\\\\", "\\").replace(r"\u001b", r"\x1b")


def test_an_option_that_a_file_name_looks_like(terminal: Terminal) -> None:
    def parse() -> None:
        with pytest.raises(SystemExit):
            importlib.import_module("toolkit.verify").main(["x", f"--{NAME}"])

    assert r"\x1b]0;owned" in clean_lines(terminal(parse))[-1]


def test_a_printed_recipe_and_a_dry_run(terminal: Terminal, tmp_path: Path, shards: Path) -> None:
    given = ["tiny_mntp", f"data.train={shards}", f"run_dir={tmp_path / 'run'}"]
    given.append(f"mntp.mask_token={json.dumps(TITLE)}")
    lines = terminal.door("toolkit.train", *given, "--print-config")
    assert yaml.safe_load("\n".join(lines))["mntp"]["mask_token"] == TITLE
    lines = terminal.door("toolkit.launch", "--recipe", *given, "--cluster", "local", "--dry-run")
    assert any(r"\x1b]0;owned" in line.replace(r"\e", r"\x1b") for line in lines)


def test_progress_on_a_terminal_and_in_a_log(terminal: Terminal, capsys: Any) -> None:
    def work() -> None:
        progress = Progress(NAME, total=1, unit="rows")
        progress.advance(1, note=NAME)
        progress.close()

    assert not ACTING.search(terminal(work).replace("\x1b[A", ""))
    work()
    assert not ACTING.search(capsys.readouterr().out)


def test_scores_of_encoders_with_such_names(terminal: Terminal) -> None:
    lines = table({TITLE: {f"{TITLE} F1": 0.5}}).split("\n")
    assert len(lines) == 3
    assert not ACTING.search("".join(lines)) and lines[2].rstrip().endswith("0.500*")


# --- HTML ---


class Page(html.parser.HTMLParser):
    """The elements and attributes of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[tuple[str, ...]] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add((tag, *(name for name, _ in attrs)))

    def handle_comment(self, data: str) -> None:
        self.found.add(("comment",))

    def handle_data(self, data: str) -> None:
        self.text += data


HTML = f"{NAME}</td><script>alert(1)</script><img src=x onerror=alert(2)>\" ' x='&lt;<!--"


def test_no_element_of_the_page_comes_from_a_name(tmp_path: Path) -> None:
    """Run, stages, scores, jobs, devices, log lines, documents."""
    run = tmp_path / HTML.replace("/", "|")
    stages = []
    for number, kind in enumerate(("mntp", "evaluate")):
        (run / str(number)).mkdir(parents=True)
        output, logs = run / str(number), run / "logs"
        stages.append(Launched(f"{HTML}{number}", kind, str(output), str(logs), 5, (HTML,)))
    (run / "logs").mkdir()
    (run / "logs" / "1.err").write_text(f"error: {HTML}\n")
    row = {"step": 3, "loss": 1.5, "seconds": 1.0, "tokens_per_s": 9.0}
    (run / "0" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    start = {"time": HTML, "step": 0, "job": HTML, "device": HTML, "attention": HTML}
    (run / "0" / "starts.jsonl").write_text(json.dumps(start) + "\n")
    (run / "1" / "scores.json").write_text(json.dumps({HTML: {HTML: 0.5}, "A$^$B": {HTML: 0.25}}))
    write_launched(run, stages)
    report(run, output=tmp_path / "out", now=0.0)
    page = Page((tmp_path / "out" / "index.html").read_text())
    tags = {"html", "meta", "title", "style", "h1", "h2", "p", "table", "tr", "th", "td"}
    tags |= {"figure", "img", "figcaption"}
    assert {tag for tag, *_ in page.found} == tags
    attributes = {(tag, *rest) for tag, *rest in page.found if rest}
    ours = {("html", "lang"), ("meta", "charset"), ("p", "class"), ("img", "alt", "src")}
    assert attributes == ours
    assert page.text.count("<script>alert(1)</script>") > 5  # shown as what it is
    assert not ACTING.search(page.text)
    beside = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(beside) == 3  # the page and two pictures, here and not in a folder of that name


def test_no_picture_is_written_outside_of_the_report(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "0").mkdir(parents=True)
    (run / "0" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    names = ("../../outside", "..|..|outside")
    write_launched(run, [Launched(n, "mntp", str(run / "0"), str(run), 5) for n in names])
    report(run, output=tmp_path / "out", now=0.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


# --- pictures ---

MATHS = [
    "A$^$B",
    "$",
    "$$",
    r"\$x$",
    "$\\frac{$",
    "_hidden",
    "x" * 500,
    "a\x00b\x1b[2J\ud800",
]


def test_pictures_of_any_names() -> None:
    import numpy as np

    scores = {name: dict.fromkeys(MATHS, 0.5) for name in MATHS}
    assert pictures.bars(scores).startswith(b"\x89PNG")
    unit_ND = np.eye(len(MATHS), 12, dtype=np.float32)
    assert pictures.embedding_map(unit_ND, names=MATHS, named=len(MATHS)).startswith(b"\x89PNG")
    assert pictures.heat_map(unit_ND, names=MATHS).startswith(b"\x89PNG")


def test_every_encoder_has_its_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib leaves out what begins with an underscore."""
    figures: list[Any] = []
    monkeypatch.setattr(pictures, "_png", lambda figure: figures.append(figure) or b"")
    pictures.bars({"_a": {"$x$": 0.5}, "b$": {"$x$": 0.25}})
    (axes,) = figures[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [" _a", r"b\$"]
    (label,) = axes.get_xticklabels()
    assert label.get_text() == r"\$x\$"
    assert label._preprocess_math(label.get_text()) == ("$x$", False)  # drawn so, and no formula


# --- Markdown ---

MARKDOWN = (
    f"{NAME}`x` | y\n---\nlicense: mit\n\n```\n</code><script>x</script> [l](javascript:x) *b* "
    "<NAME> ```` &lt; ![i](x) _e_ ~~s~~ <BASE> \" ' \\"
)


def elements(text: str) -> list[str]:
    """The kinds of all elements of a Markdown text, nested ones too."""
    found = []
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for token in markdown.parse(text):
        found += [token.type, *(child.type for child in token.children or [])]
    return found


def cards(text: str) -> Iterator[str]:
    """Of each form of export, with this for every name."""
    stages = [{"kind": text, "base": text, "steps": 1, "data": text}]
    scores = {text: {text: 0.5}}
    for form in ("merged", "llm2vec", "peft"):
        facts = CardFacts(
            form, f"owner/{text}", stages, 8, 512, f"{text}{{instruction}}{text}", None, scores
        )
        yield model_card(facts, name=text)


def test_a_card_has_no_element_and_no_setting_of_a_name() -> None:
    for hostile, plain in zip(cards(MARKDOWN), cards("plain"), strict=True):
        assert not ACTING.search(hostile)
        _, front, text = hostile.split("---\n", 2)
        settings = yaml.safe_load(front)
        assert settings["base_model"] == [f"owner/{MARKDOWN}"]
        assert set(settings) == {*yaml.safe_load(plain.split("---\n")[1])}
        found = [kind for kind in elements(text) if kind not in ("text", "softbreak")]
        expected = elements(plain.split("---\n", 2)[2])
        assert found == [kind for kind in expected if kind not in ("text", "softbreak")]


def test_code_of_a_card_names_the_folder_exactly() -> None:
    for text in cards(MARKDOWN):
        for literal in re.findall(r'(?:SentenceTransformer|from_pretrained)\((".*?")[,)]', text):
            assert eval(literal) in (MARKDOWN, f"owner/{MARKDOWN}")


def test_a_reproduction_has_no_element_of_a_name(tmp_path: Path) -> None:
    def written(name: str) -> list[str]:
        reference = reproduction.Reference(name, name, {name: {name: 50.0}}, {}, {})
        settings = EncoderSettings(model="x", max_tokens=8)
        text = reproduction.report(reference, [Scored(name, name, 0.5)], encoders={name: settings})
        assert not ACTING.search(text.replace("\n", ""))
        return [kind for kind in elements(text) if kind not in ("text", "softbreak")]

    assert written(MARKDOWN) == written("plain")
