"""The server as clients see it: curl, the official client, too many of them, some that go away."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgeprune.model.gguf import GgufModel
from edgeprune.on_target.serve.server import ConfigurationError, check_open, read_config
from tests.cli.test_app import assert_one_line
from tests.conftest import Cli
from tests.on_target.serve.conftest import Running, serving

LONG = " ".join(map(str, range(2000)))
CHAT = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 5}


def _counted(server: Running, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)
    return sum(sample.value for family in families for sample in family.samples
               if sample.name == name and labels.items() <= sample.labels.items())


def _wait_until_idle(server: Running) -> None:
    for _ in range(300):
        if server.health()["in_hand"] == 0:
            return
        time.sleep(0.05)
    pytest.fail("a request is still in hand")


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_curl_and_the_official_client_are_served(
    gguf_and_onnx: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    with serving(gguf_and_onnx[kind], tmp_path) as server:
        done = subprocess.run(
            ["curl", "--silent", "--show-error", "--no-buffer", f"{server.url}/v1/chat/completions",
             "--header", "content-type: application/json", "--data",
             json.dumps({**CHAT, "stream": True})], capture_output=True, text=True, check=True)
        events = [line[6:] for line in done.stdout.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        assert [json.loads(event)["choices"][0]["finish_reason"] for event in events[:-1]][-1] in {
            "length", "stop"}

        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        assert [model.id for model in client.models.list()] == ["small"]
        said = client.chat.completions.create(model="small", messages=[
            {"role": "user", "content": "Who are you?"}], max_tokens=5, temperature=0)
        assert said.usage is not None
        assert said.usage.completion_tokens <= 5
        pieces = client.chat.completions.create(model="small", messages=[
            {"role": "user", "content": "Who are you?"}], max_tokens=5, temperature=0, stream=True)
        streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        assert streamed == said.choices[0].message.content
        with pytest.raises(openai.BadRequestError, match="context"):
            client.completions.create(model="small", prompt=LONG, max_tokens=5, stream=True)
        health = server.health()
        assert (health["status"], health["version"]) == ("ok", "1.0")
        assert health["tokens_per_s"] > 0
        assert health["peak_ram_bytes"] > 2**24


def test_an_onnx_model_says_what_the_gguf_file_says(
    gguf_and_onnx: dict[str, Path], server: Running, tmp_path: Path
) -> None:
    """Greedy, after a prompt of which a part is known from before, and drawn with a grammar."""
    with serving(gguf_and_onnx["onnx"], tmp_path) as other:
        for prompt in ("One, two, three", "One, two, four and five", "One, two, three"):
            told = [one.ask(prompt, 24).json()["choices"][0]["text"] for one in (server, other)]
            assert told[0] == told[1]
        for seed in (1, 2):
            text = other.ask("One", 12, temperature=1.5, seed=seed, repeat_penalty=1.2,
                             grammar='root ::= ("a" | "b")+').json()["choices"][0]["text"]
            assert set(text) <= {"a", "b"}
            assert text


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_a_reply_of_half_a_character_ends_as_any_other(
    gguf_and_onnx: dict[str, Path], server: Running, tmp_path: Path, kind: str
) -> None:
    file = gguf_and_onnx["gguf"]
    with GgufModel(file, vocab_only=True) as model:
        (begins, *_) = model.tokenize("\U0001f600")
    with contextlib.nullcontext(server) if kind == "gguf" else serving(
            gguf_and_onnx[kind], tmp_path) as one:
        for n_new, n_said in ((4, 4), (10_000, None), (0, None)):
            answer = one.ask("One", n_new, logit_bias={str(begins): 100.0})
            assert answer.status_code == 200, answer.text
            said = answer.json()
            assert said["usage"]["completion_tokens"] == n_said or (
                n_said is None and said["usage"]["total_tokens"] >= 256)
            assert said["choices"][0]["finish_reason"] == "length"
        pieces = openai.OpenAI(base_url=f"{one.url}/v1", api_key="none").completions.create(
            model="small", prompt="One", max_tokens=4, stream=True, logit_bias={str(begins): 100})
        assert [piece.choices[0].finish_reason for piece in pieces][-1] == "length"


def test_who_finds_the_queue_full_is_told_so_and_the_others_are_served(server: Running) -> None:
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda i: server.ask(f"Client {i}:", 200), range(8)))
    refused = [answer for answer in answers if answer.status_code == 503]
    served = [answer for answer in answers if answer.status_code == 200]
    assert len(refused) + len(served) == 8
    assert len(refused) >= 3
    assert len(served) >= 3
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    assert refused[0].json()["error"]["code"] == "queue_full"
    assert all(answer.json()["usage"]["completion_tokens"] for answer in served)
    assert server.ask("And now?", 2).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_ends_when_its_client_is_gone(server: Running, stream: bool) -> None:
    _wait_until_idle(server)
    before = _counted(server, "edgeprune_tokens_total", kind="new")
    request = {"prompt": "On and on", "max_tokens": 500, "stream": stream, "temperature": 0}
    wait_s = 60 if stream else 0.1
    with (contextlib.suppress(httpx.ReadTimeout), httpx.Client(timeout=wait_s) as client,
          client.stream("POST", f"{server.url}/v1/completions", json=request) as answer):
        next(answer.iter_bytes())  # of a stream; else it waits in vain
    _wait_until_idle(server)
    for _ in range(100):  # a stream that was left is counted when its generator is let go
        n_new = _counted(server, "edgeprune_tokens_total", kind="new") - before
        if n_new or not stream:
            break
        time.sleep(0.1)
    assert n_new < 450
    assert n_new > 0 or not stream  # a machine that is busy may not have begun


def test_a_reply_ends_in_time(gguf_and_onnx: dict[str, Path], tmp_path: Path) -> None:
    with serving(gguf_and_onnx["gguf"], tmp_path, time_limit_s=0.1) as server:
        answer = server.ask("On and on", 480).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert 0 < answer["usage"]["completion_tokens"] < 400


@pytest.mark.parametrize(("path", "body", "status", "named"), [
    ("/v1/completions", {"prompt": LONG}, 400, "context"),
    ("/v1/completions", {"prompt": LONG, "stream": True}, 400, "context"),
    ("/v1/chat/completions", {"messages": "hello"}, 400, "messages"),
    ("/v1/chat/completions", b"{", 400, "JSON"),
    ("/v1/completions", {"prompt": "x" * 2**21}, 413, "bytes"),
    ("/v1/embeddings", {"input": "x"}, 404, "/v1/embeddings"),
    ("/docs", {}, 404, "/docs"),
])
def test_a_request_that_cannot_be_served_is_told_why(
    server: Running, path: str, body: dict[str, object] | bytes, status: int, named: str
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(server.url + path, content=data, timeout=30,
                        headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert named in answer.json()["error"]["message"]
    assert answer.headers["connection"] == "close"


def test_a_body_that_does_not_say_how_large_it_is_is_read_no_further_than_allowed(
    server: Running
) -> None:
    pieces = [b"x" * 2**16] * 17  # the last one is too much
    answer = httpx.post(f"{server.url}/v1/completions", content=iter(pieces), timeout=30)
    assert answer.status_code == 413
    assert server.ask("And now?", 2).status_code == 200


def test_a_key_is_asked_for(gguf_and_onnx: dict[str, Path], tmp_path: Path) -> None:
    with serving(gguf_and_onnx["gguf"], tmp_path, key="secret") as server:
        assert server.ask("One", 2).status_code == 401
        for path in ("/metrics", "/v1/models", "/v1/completions"):
            assert httpx.get(server.url + path).status_code == 401
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret")
        assert client.completions.create(model="small", prompt="One", max_tokens=2).choices
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="other").models.list()


def test_what_is_being_said_at_the_end_is_said_to_its_end(
    gguf_and_onnx: dict[str, Path], tmp_path: Path
) -> None:
    with serving(gguf_and_onnx["gguf"], tmp_path) as server:
        with ThreadPoolExecutor(1) as clients:
            waiting = clients.submit(server.ask, "On and on", 300)
            for _ in range(300):
                if server.health()["in_hand"]:
                    break
                time.sleep(0.01)
            status = threading.Thread(target=server.terminate)
            status.start()
            assert waiting.result().json()["usage"]["completion_tokens"] > 0
            status.join()
        assert server.process.returncode == -signal.SIGTERM  # which uvicorn hands on at its end


def test_nobody_serves_a_network_without_a_key(cli: Cli, gguf_and_onnx: dict[str, Path]) -> None:
    done = cli("serve", str(gguf_and_onnx["gguf"]), "--host", "0.0.0.0")  # noqa: S104
    assert done.returncode == 2
    assert "EDGEPRUNE_API_KEY" in done.stderr.splitlines()[-1]
    for host in ("127.0.0.1", "::1", "localhost"):
        check_open(host, None)
    check_open("192.0.2.1", "secret")
    with pytest.raises(ConfigurationError, match="address"):
        check_open("nowhere", None)


def test_the_command_serves_an_artifact(
    cli: Cli, gguf_and_onnx: dict[str, Path], tmp_path: Path
) -> None:
    assert_one_line(cli("serve", str(tmp_path)), 6, "neither an artifact nor a run")
    help_text = cli("serve", "--help").stdout
    assert "Example: edgeprune serve" in help_text
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeprune.cli", "serve", str(gguf_and_onnx["onnx"]), "--port",
         "18231", "--threads", "1"], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert "http://127.0.0.1:18231/v1" in process.stderr.readline()
        server = Running(18231, process)  # type: ignore[arg-type]
        for _ in range(300):
            try:
                assert server.health()["model"] == "small-onnx"
                break
            except httpx.TransportError:
                time.sleep(0.1)
        assert server.terminate() == 0
    finally:
        process.kill()
        process.communicate()


def test_a_configuration_that_cannot_be_read_says_what_it_takes(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for text in ("{", "[]", '{"model": "a"}', '{"nonsense": 1}'):
        file.write_text(text)
        with pytest.raises(ConfigurationError, match="its keys are model, name"):
            read_config(file)
    done = subprocess.run([sys.executable, "-m", "edgeprune.on_target.serve.server", str(file)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
