"""Models of the Hub by name: from a local server that speaks its few calls, and from its cache."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from edgeprune.model.hub import is_hub_name
from tests.conftest import Cli
from tests.tiny import make_tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_test"  # noqa: S105
ASK = """
import sys
from edgeprune.errors import EdgePruneError
from edgeprune.model.source import resolve_model, shape_of_model
try:
    print(shape_of_model(sys.argv[2]).hidden_size if sys.argv[1] == "shape" else
          resolve_model(sys.argv[2])[1])
except EdgePruneError as error:
    print(f"refused: {error}")
"""


class _Hub(http.server.ThreadingHTTPServer):
    """What the Hub answers about one model.

    Attributes:
        files: By name.
        asked: Names of the files whose contents were asked for, and from which byte.
        breaks: So many bytes are sent of a file of weights before the connection breaks.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files, self.breaks = files, 0
        self.asked: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(http.server.BaseHTTPRequestHandler):
    server: _Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if "/resolve/" in path and not path.startswith("/org/gated"):
            name = path.split("/resolve/")[1].split("/", 1)[1]
            if name in self.server.files:
                return self._send_file(name, with_body=with_body)
        status, said = self._about(path)
        data = b"" if isinstance(said, str) else json.dumps(said).encode()
        self.send_response(status)
        if said and isinstance(said, str):
            self.send_header("X-Error-Code", said)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data if with_body else b"")
        return None

    def _about(self, path: str) -> tuple[int, Any]:
        """Return the status and what is said of a model: JSON, or the code of a refusal."""
        if "/resolve/" in path:
            return 404, "EntryNotFound"
        model, _, rest = path.removeprefix("/api/models/").partition("/revision/")
        model, _, tree = model.partition("/tree/")
        is_let_in = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        refusal = {"org/gated": (403, "GatedRepo"), "org/broken": (503, "")}.get(model)
        if refusal or model not in {"org/tiny", "org/private"}:
            return refusal or (404, "RepoNotFound")
        if model == "org/private" and not is_let_in:
            return 401, "RepoNotFound"
        if tree:
            return 200, [{"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                         for name, data in self.server.files.items()]
        if rest not in {"", "main", "v2", COMMIT}:
            return 404, "RevisionNotFound"
        return 200, {"id": model, "sha": COMMIT,
                     "siblings": [{"rfilename": name} for name in self.server.files]}

    def _send_file(self, name: str, *, with_body: bool) -> None:
        data, asked = self.server.files[name], self.headers.get("Range", "")
        first = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        for key, value in {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT,
                           "Accept-Ranges": "bytes",
                           "Content-Length": str(len(data) - first)}.items():
            self.send_header(key, value)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not with_body:
            return
        self.server.asked.append((name, asked))
        if self.server.breaks and name.endswith(".safetensors"):
            self.wfile.write(data[first : first + self.server.breaks])
            self.wfile.flush()
            self.connection.close()
            return
        self.wfile.write(data[first:])


def _etag(data: bytes) -> str:
    return sha256(data).hexdigest()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    # larger than the pieces in which the library writes, 10 MiB
    model = make_tiny(tmp_path_factory.mktemp("hub") / "model", tokenizer=True, vocab_size=2**17)
    found = {path.name: path.read_bytes() for path in model.iterdir()}
    return {**found, "pytorch_model.bin": b"pickled", "consolidated.safetensors": b"twice",
            "README.md": b"# tiny", "onnx/model.onnx": b"elsewhere"}


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Hub]:
    server = _Hub(files)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name in [name for name in os.environ if name.startswith("HF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield server
    server.shutdown()
    server.server_close()


def _ask(name: str, what: str = "model") -> str:
    """Resolve a name in a process of its own: the library reads its variables once."""
    done = subprocess.run([sys.executable, "-c", ASK, what, name], capture_output=True, text=True,
                          timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


def test_only_what_is_needed_is_fetched_and_once(
    hub: _Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _ask("org/tiny", "shape") == "64"
    assert {name for name, _ in hub.asked} == {"config.json"}
    directory = Path(_ask("org/tiny"))
    fetched = {path.name for path in directory.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert not {"pytorch_model.bin", "consolidated.safetensors", "README.md", "onnx"} & fetched
    assert len(hub.asked) == len(set(hub.asked))
    before = len(hub.asked)
    assert _ask("org/tiny@v2") == str(directory)  # the same commit
    assert len(hub.asked) == before
    hub.shutdown()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert _ask("org/tiny") == str(directory)
    assert "HF_HOME" in _ask("org/other")


def test_what_was_not_fetched_yet_and_what_is_not_there_are_told(
    hub: _Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _ask("org/tiny", "shape") == "64"
    hub.files = {"model.gguf": b"GGUF", "README.md": b"#"}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # of huggingface_hub 0 and 1
    assert re.match("refused: (org/tiny .* has no model.*safetensors, or none was fetched yet.*"
                    "run again with a network|.*nor was it fetched before: got 'org/tiny')",
                    _ask("org/tiny"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert re.match(r"refused: org/private .* has no .*\.gguf file: download it",
                    _ask("org/private"))


def test_what_broke_off_goes_on(hub: _Hub, files: dict[str, bytes]) -> None:
    hub.breaks = 12 * 2**20
    _ask("org/tiny")
    hub.breaks = 0
    directory = Path(_ask("org/tiny"))
    assert (directory / "model.safetensors").read_bytes() == files["model.safetensors"]
    ranges = [asked for name, asked in hub.asked if name == "model.safetensors"]
    assert not ranges[0]
    assert ranges[1].startswith(f"bytes={10 * 2**20}-")


@pytest.mark.parametrize(("name", "said"), [
    ("org/gated", "org/gated is gated.*HF_TOKEN"),
    ("org/nothing", "no such model on the Hugging Face Hub: got 'org/nothing'.*HF_TOKEN"),
    ("org/tiny@v3", "no such revision: got 'v3'"),
    ("org/broken", "503"),
    ("org/private", "HF_TOKEN"),
])
def test_what_the_hub_refuses_is_one_line_with_the_remedy(
    hub: _Hub, name: str, said: str
) -> None:
    assert hub.url
    answer = _ask(name)
    assert "\n" not in answer
    assert re.match(f"refused: .*{said}", answer), answer


def test_a_token_opens_what_is_private(hub: _Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert hub.url
    assert _ask("org/private", "shape") == "64"


def test_without_a_network_one_line_says_so(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    done = cli("export", "org/tiny", "tiny.gguf")
    assert done.returncode == 6, done.stderr
    assert "the Hugging Face Hub cannot be asked" in done.stderr
    assert "got 'org/tiny'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(("reference", "expected"), [
    ("org/name", True), ("org/name@v1", True), ("a.b/c-d_e", True), ("smollm2", False),
    ("./org/name", False), ("/org/name", False), ("a/b/c", False), ("org/name@", False),
    ("../x", False), ("models/my..llama", False), ("models/-x-", False), ("a--b/c", False),
    ("org/name.", False)])
def test_what_may_be_a_name_on_the_hub(reference: str, expected: bool) -> None:
    assert is_hub_name(reference) is expected
