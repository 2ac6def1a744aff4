"""Models come from a hub on the login node; jobs find them without a network, and never try it."""

import contextlib
import functools
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.conftest import ROOT, need
from tests.forking.start import environ_of_starts, forking
from tests.model.test_adapters import make_adapter
from toolkit import encode, prefetch
from toolkit.base.files import read_json, write_json

REVISION = "0123456789abcdef0123456789abcdef01234567"
MODEL = "somebody/tiny"
# Python imports it at the start of each process: what the process wants of the network.
AUDIT = """
import os, sys
def note(line):
    with open(os.environ["SEEN"], "a") as handle:
        handle.write(line + "\\n")
def seen(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        note(f"{event} {arguments[1]!r}")
    elif event == "socket.getaddrinfo":
        note(f"{event} {arguments[0]!r}")
sys.addaudithook(seen)
note("begins")
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as its client needs for public models, by name."""

    def __init__(self, folders: Mapping[str, Path], *arguments: object) -> None:
        self.folders = folders
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        name = "/".join(path.removeprefix("/api/models").split("/")[1:3])
        if name not in self.folders:
            self.send_error(404)
            return
        folder = self.folders[name]
        files = sorted(file for file in folder.iterdir() if file.is_file())
        headers = {"X-Repo-Commit": REVISION}
        if path.startswith(f"/api/models/{name}/tree/"):
            content = json.dumps(
                [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": ""}
                    for f in files
                ]
            ).encode()
        elif path.startswith(f"/api/models/{name}"):
            siblings = [{"rfilename": file.name} for file in files]
            content = json.dumps({"id": name, "sha": REVISION, "siblings": siblings}).encode()
        elif path.startswith(f"/{name}/resolve/") and (folder / Path(path).name).is_file():
            content = (folder / Path(path).name).read_bytes()
            headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        else:
            self.send_error(404)
            return
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_arguments: object) -> None:
        """Not into the test's output."""


@contextlib.contextmanager
def serving(folders: Mapping[str, Path]) -> Iterator[str]:
    """The address of a hub with these models."""
    handler = functools.partial(Hub, folders)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def hub(tiny_model: Path) -> Iterator[str]:
    with serving({MODEL: tiny_model}) as address:
        yield address


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what this process asks of the hub's client."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))


def prefetch_from(address: str, *arguments: str) -> int:
    """The door, in this process, with this hub; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        return prefetch.main([*arguments])


def door(
    *arguments: str, environ: dict[str, str], python: str, before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [*before, python, "-m", *arguments]
    path = os.pathsep.join(filter(None, [environ.get("PYTHONPATH", ""), str(ROOT)]))
    environ = {**os.environ, **environ, "PYTHONPATH": path}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)


def test_fetched_here_and_run_where_there_is_no_network(
    hub: str, shards: Path, tmp_path: Path
) -> None:
    need(shutil.which("unshare") is not None, "unshare is not installed")
    cache = {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1"}
    given = [f"run_dir={tmp_path / 'run'}", f"model.base={MODEL}", f"data.train={shards}"]
    given += [f"corpus.input={shards}", "train.steps=1"]
    online = {**cache, "HF_HUB_OFFLINE": "0"}
    done = door("toolkit.prefetch", "tiny_pipeline", *given, environ=online, python=sys.executable)
    assert done.returncode == 0, done.stderr
    told = read_json(tmp_path / "run" / "prefetched.json")
    assert list(told["models"]) == [MODEL]  # what an earlier stage makes is not looked for
    assert Path(told["models"][MODEL]["folder"]).name == REVISION

    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "sitecustomize.py").write_text(AUDIT)
    environ = {"HF_HOME": cache["HF_HOME"], "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environ |= {"PYTHONPATH": str(tmp_path / "audit"), "SEEN": str(tmp_path / "seen")}
    shape = ["--recipe", "tiny_pipeline", "--cluster", "local", "--gpus-per-node", "2"]
    alone = ("unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "-")
    own = {**environ_of_starts(), **environ}
    with forking(own) as python:
        done = door("toolkit.launch", *shape, *given, environ=own, before=alone, python=python)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = (tmp_path / "seen").read_text().splitlines()
    assert seen.count("begins") >= 8  # the imports, the launcher, and two ranks of three stages
    own = ("127.0.0.1", "localhost")  # torch's ranks meet in C++, the launcher has no need to
    outside = [line for line in seen if line != "begins" and not any(at in line for at in own)]
    assert outside == []


def test_what_cannot_be_had_is_named(
    hub: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"run_dir={tmp_path / 'run'}", f"data.train={shards}"]
    assert prefetch_from(hub, "tiny_mntp", "model.base=somebody/absent", *given) == 2
    said = capsys.readouterr().err
    assert "model 'somebody/absent': not in the cache, and cannot be downloaded" in said
    assert not (tmp_path / "run").exists()
    assert prefetch_from(hub, "tiny_mntp", "data.train=nowhere") == 2
    assert capsys.readouterr().err[:15] == "error: nowhere:"


def test_adapters_are_fetched_with_the_base_that_they_name(
    shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    names = [f"somebody/{name}" for name in ("tiny", "tiny-mntp", "tiny-mntp-simcse")]
    folders = {MODEL: tiny_model}
    for seed, name in enumerate(names[1:]):
        folder = make_adapter(tmp_path / Path(name).name, base=tiny_model, seed=seed, head=False)
        told = read_json(folder / "adapter_config.json")
        write_json(folder / "adapter_config.json", {**told, "base_model_name_or_path": MODEL})
        folders[name] = folder
    given = ["tiny_embed", f"corpus.input={shards}", f"encoder.model={names[1]}"]
    given += [f"encoder.adapters=[{names[2]}]", f"output_dir={tmp_path / 'out'}"]
    with serving(folders) as address:
        assert prefetch_from(address, *given) == 0
    assert list(read_json(tmp_path / "out" / "prefetched.json")["models"]) == names
    assert constants.HF_HUB_OFFLINE
    assert encode.main(given) == 0
    plan = read_json(tmp_path / "out" / "plan.json")
    assert (plan["model_path"], plan["adapter_paths"]) == (names[1], names[2:])
