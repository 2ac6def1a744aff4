"""`toolkit.verify --against`: the same vectors by another engine pass, others are refused by name.

sentence-transformers is the real one, in a process of its own. The servers are stand-ins that speak
as TEI's and vLLM's documentation says; the real ones were not run. llm2vec: test_export_llm2vec.py.
"""

import contextlib
import http.server
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit import export, verify
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_json
from toolkit.encoding import engine_worker
from toolkit.encoding.encoder import Encoder
from toolkit.encoding.engines import TEXTS, compare, parse_engine

Answer = Callable[[str, Any], Any]
Refusal = Callable[..., str]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("engines") / "encoder"
    assert export.main([str(tiny_model), str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def vectors(encoder: Path) -> dict[str, list[float]]:
    """By text."""
    found = Encoder.from_pretrained(encoder).encode(list(TEXTS))
    return {text: row.tolist() for text, row in zip(TEXTS, found, strict=True)}


@contextlib.contextmanager
def served(answer: Answer) -> Iterator[str]:
    """The URL of a server that gives `answer(path, body)`, or 413 for none."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(None)

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body: Any) -> None:
            found = answer(self.path, body)
            self.send_response(413 if found is None else 200)
            self.end_headers()
            self.wfile.write(b"too large" if found is None else json.dumps(found).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture
def refusal(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """The one line with which a comparison with an engine is refused, of these texts if given."""

    def call(against: str, *texts: str) -> str:
        (tmp_path / "texts.txt").write_text("\n".join(texts))
        asked = ["--texts", str(tmp_path / "texts.txt")] if texts else []
        assert verify.main([str(encoder), "--against", against, *asked]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return call


def test_sentence_transformers_makes_the_same_vectors(
    encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(encoder), "--against", "sentence-transformers,vllm"]) == 0
    said = capsys.readouterr().out
    assert "sentence-transformers 6" in said
    assert "16 texts, least cosine 0.99999" in said or "16 texts, least cosine 1.0" in said
    assert "vllm: not installed" in said


def test_a_causal_reading_of_the_model_is_another(
    tiny_model: Path, vectors: dict[str, list[float]], tmp_path: Path
) -> None:
    """sentence-transformers reads a plain decoder's folder with its own, causal, attention."""
    request = {"engine": "sentence-transformers", "model": str(tiny_model), "texts": list(TEXTS)}
    request |= {"dtype": "float32", "device": "cpu"}
    (tmp_path / "request.json").write_text(json.dumps(request))
    out = tmp_path / "out.npz"
    assert engine_worker.main([str(tmp_path / "request.json"), str(out)]) == 0
    found = compare(np.array(list(vectors.values()), dtype=np.float32), np.load(out)["vectors"])
    assert not found.is_same("fp32")
    assert found.least_cosine < 0.99


def test_a_tei_server(encoder: Path, vectors: dict[str, list[float]]) -> None:
    asked = []

    def answer(path: str, body: Any) -> Any:
        if path == "/info":
            return {"model_id": "my-encoder", "version": "1.9.0"}
        asked.append(body)
        return [vectors[text] for text in body["inputs"]] if path == "/embed" else None

    with served(answer) as url:
        assert verify.main([str(encoder), "--against", f"tei={url}/"]) == 0
    assert [text for body in asked for text in body["inputs"]] == list(TEXTS)
    assert not any(body["normalize"] for body in asked)


def test_a_vllm_server_that_normalises_and_answers_in_any_order(
    encoder: Path, vectors: dict[str, list[float]], capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(path: str, body: Any) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": "my-encoder"}]}
        assert body["model"] == "my-encoder"
        rows = [np.array(vectors[text]) for text in body["input"]]
        data = [
            {"index": number, "embedding": (row / np.linalg.norm(row)).tolist()}
            for number, row in enumerate(rows)
        ]
        return {"data": data[::-1]}

    with served(answer) as url:
        assert verify.main([str(encoder), "--against", f"vllm={url}"]) == 0
    assert "normalised there, not here" in capsys.readouterr().out


def test_texts_of_ones_own_and_the_one_that_differs_is_named(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"clause number {number}" for number in range(40)]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = Encoder.from_pretrained(encoder).encode(texts)
    found[33] = found[0]

    def answer(path: str, body: Any) -> Any:
        if path == "/info":
            return {}
        return [found[texts.index(text)].tolist() for text in body["inputs"]]

    with served(answer) as url:
        asked = ["--against", f"tei={url}", "--texts", str(file)]
        assert verify.main([str(encoder), *asked]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "other vectors by tei" in line
    assert "40 texts" in line
    assert "'clause number 33'" in line


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda path, _: {} if path == "/info" else None, "413 too large"),
        (lambda path, _: {} if path == "/info" else [[1.0, 2.0]], "its vectors have 2 numbers"),
        (lambda path, _: {} if path == "/info" else [], "instead of a vector for each"),
    ],
)
def test_a_server_that_cannot_is_named(answer: Answer, why: str, refusal: Refusal) -> None:
    with served(answer) as url:
        assert why in refusal(f"tei={url}", "a text")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("tei", lambda *_: []),
        ("vllm", lambda *_: {"data": []}),
        ("vllm", lambda path, _: {"data": [{"id": "m"}]} if "models" in path else {"x": 1}),
        ("tei", lambda path, _: {} if path == "/info" else {"error": "x"}),
        ("tei", lambda path, _: {} if path == "/info" else [["a", "b"]]),
        ("tei", lambda path, body: {} if path == "/info" else [[1.0], [1.0, 2.0]][: len(body)]),
    ],
)
def test_an_answer_of_another_form_is_one_line(name: str, answer: Answer, refusal: Refusal) -> None:
    with served(answer) as url:
        assert name in refusal(f"{name}={url}", "a text", "another")


@pytest.mark.parametrize("url", ["http://127.0.0.1:abc", "http://[x", "http://127.0.0.1:1"])
def test_a_url_that_is_none_is_one_line(url: str, refusal: Refusal) -> None:
    assert url in refusal(f"tei={url}")


def test_a_file_that_is_no_python_is_one_line(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "python").write_bytes(b"\0\1")
    (tmp_path / "python").chmod(0o755)
    assert "is no Python" in refusal(f"llm2vec={tmp_path / 'python'}")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xe9", b"\n"])
def test_texts_that_cannot_be_read(
    content: bytes | None, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.txt"
    if content is not None:
        file.write_bytes(content)
    assert verify.main([str(encoder), "--against", "vllm", "--texts", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--texts {file}: " in line
    with pytest.raises(SystemExit):
        verify.main([str(encoder), "--texts", str(file)])


@pytest.mark.parametrize("limit", [16, 700])
def test_texts_are_cut_where_the_folder_says(limit: int, encoder: Path, tmp_path: Path) -> None:
    """And not at line separators of Unicode, which stand within a text."""
    folder = shutil.copytree(encoder, tmp_path / "encoder")
    for name in ("COMMITTED", "origin.json"):
        (folder / name).unlink()
    settings = folder / "sentence_bert_config.json"
    write_json(settings, {**read_json(settings), "max_seq_length": limit})
    texts = ["one\u2028two", "The long river crosses the bridge. " * 90]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    whole = Encoder.from_pretrained(encoder, max_tokens=limit).encode(texts)

    def answer(path: str, body: Any) -> Any:
        if path == "/info":
            return {}
        return [whole[texts.index(text)].tolist() for text in body["inputs"]]

    with served(answer) as url:
        asked = ["--against", f"tei={url}", "--texts", str(tmp_path / "texts.txt")]
        assert verify.main([str(folder), *asked]) == 0


def test_no_engine_at_all(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(encoder), "--against", "vllm"]) == 2
    assert "nothing was compared" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("llm2ec", "did you mean 'llm2vec'?"),
        ("tei", "give the URL of its server"),
        ("sentence-transformers=http://a:1", "has no server"),
        ("llm2vec=/no/such/python", "is no Python"),
        ("", "no such engine"),
    ],
)
def test_an_engine_that_cannot_be_asked(text: str, why: str) -> None:
    with pytest.raises(BadInput, match="--against") as refused:
        parse_engine(text)
    assert why in str(refused.value)


def test_an_engine_of_another_python() -> None:
    engine = parse_engine(f"llm2vec={sys.executable}")
    assert (engine.name, engine.place, engine.is_server) == ("llm2vec", sys.executable, False)


def test_the_comparison_by_hand() -> None:
    ours = np.array([[3, 4], [0, 2]], dtype=np.float32)
    theirs = np.array([[3, 4], [2, 2]], dtype=np.float32)
    found = compare(ours, theirs)
    assert found.least_cosine == pytest.approx(0.5**0.5)
    assert found.worst == 1
    assert found.largest_difference == pytest.approx(0.5**0.5)
    assert found.stretch == pytest.approx(2**0.5 - 1)
    assert compare(ours, 2 * ours).stretch == pytest.approx(1)
    assert not compare(ours, 2 * ours).is_same("fp32")
    unit = ours / np.linalg.norm(ours, axis=1, keepdims=True)
    assert compare(ours, unit).is_same("fp32")
    assert not compare(unit, ours).is_same("fp32")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_number_is_no_vector(bad: float) -> None:
    ours = np.eye(3, dtype=np.float32)
    theirs = ours.copy()
    theirs[1, 1] = bad
    assert not compare(ours, theirs).is_same("fp32")
    assert compare(ours, theirs).worst == 1
