"""Serves an artifact over HTTP as OpenAI's API does: completions, chat, streams.

    python -m edgeprune.on_target.serve.server config.json

In: a configuration. Out: llama-cpp-python's own server, whose model is a GGUF file or an ONNX one
(`served.py`), behind limits (`limits.py`). Runs on the target, where this directory, the modules
that it needs and a runtime are all that there is of edgeprune; Python 3.9 and later.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import uvicorn
from llama_cpp import Llama
from llama_cpp.server import app as llama_server
from llama_cpp.server.model import LlamaProxy
from llama_cpp.server.settings import ModelSettings, ServerSettings
from llama_cpp.server.types import CreateChatCompletionRequest, CreateCompletionRequest
from pydantic import ValidationError

from edgeprune.on_target.serve.limits import App, Limits
from edgeprune.on_target.serve.meter import Meter
from edgeprune.on_target.serve.served import BoundedLlama, OnnxLlama

KEY_VARIABLE = "EDGEPRUNE_API_KEY"
CREDENTIAL = "api_key"  # what systemd hands over, in the directory of its credentials
SPARE_CONNECTIONS = 32  # for health, metrics and refusals, beside those that may wait


class ConfigurationError(Exception):
    """The server cannot be started so; the message says why, and the remedy."""


@dataclass(frozen=True)
class Config:
    """What is served, and how: `config.json`.

    Attributes:
        model: A GGUF file, or the directory of an ONNX model; relative to the configuration.
        name: What clients call it.
        version: Of the bundle.
        n_ctx: Tokens of the context: of a prompt and its reply together.
        threads: CPU threads.
        queue: Requests that may wait for the one that is answered.
        time_limit_s: After which a reply ends.
        most_body_bytes: Of a request.
        host: Where it listens; anything but loopback needs an API key.
        port: Likewise.
    """

    model: Path
    name: str
    version: str
    n_ctx: int
    threads: int
    queue: int = 8
    time_limit_s: float = 300.0
    most_body_bytes: int = 2**20
    host: str = "127.0.0.1"
    port: int = 8080


def read_config(path: Path) -> Config:
    """Read a configuration.

    Raises:
        ConfigurationError: It cannot be read.
    """
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
        return Config(**{**keys, "model": path.parent / keys["model"]})
    except (OSError, ValueError, TypeError, KeyError) as error:
        known = ", ".join(field.name for field in fields(Config))
        raise ConfigurationError(f"{path} cannot be read ({error}); its keys are {known}"
                                 ) from error


def api_key() -> str | None:
    """Return the API key: systemd's credential, else the environment's; None without one."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory and (file := Path(directory) / CREDENTIAL).is_file():
        return file.read_text(encoding="utf-8").strip() or None
    return os.environ.get(KEY_VARIABLE) or None


def check_open(host: str, key: str | None) -> None:
    """Refuse to listen to a network without a key.

    Raises:
        ConfigurationError: The host is not loopback, and there is no key.
    """
    try:
        is_own = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise ConfigurationError(f"the host must be an address: got {host!r}") from error
    if not (is_own or key):
        raise ConfigurationError(f"whoever reaches {host} could ask: set {KEY_VARIABLE}, or listen "
                                 "on 127.0.0.1")


def open_model(config: Config, meter: Meter) -> Llama:
    """Load what is served."""
    if config.model.is_dir():
        return OnnxLlama(config.model, config.name, meter, n_ctx=config.n_ctx,
                         n_threads=config.threads)
    return BoundedLlama(config.model, config.name, meter, n_ctx=config.n_ctx, n_batch=config.n_ctx,
                        n_threads=config.threads, n_threads_batch=config.threads)


def build(config: Config, key: str | None) -> App:
    """Load the model and return the application."""
    meter = Meter(config.name, config.version)

    class Proxy(LlamaProxy):  # type: ignore[misc]
        @staticmethod
        def load_llama_from_model_settings(settings: ModelSettings) -> Llama:  # noqa: ARG004
            return open_model(config, meter)

    os.environ.pop("CONFIG_FILE", None)  # which llama-cpp-python's server would obey instead
    # the server has no other way to be given a model of another class
    llama_server.LlamaProxy = Proxy
    app = llama_server.create_app(
        server_settings=ServerSettings(interrupt_requests=False, api_key=None),
        model_settings=[ModelSettings(model=str(config.model), model_alias=config.name)])
    return Limits(app, meter, fault_of, queue=config.queue, time_limit_s=config.time_limit_s,
                  most_body_bytes=config.most_body_bytes, key=key)


def fault_of(path: str, body: bytes) -> str | None:
    """Say what is wrong with a request for a reply, which the server would call its own error."""
    kind = CreateChatCompletionRequest if "chat" in path else CreateCompletionRequest
    try:
        kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'the request'}: {first['msg']}"
    return None


def serve(config: Config, socket: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT; what is being answered then is answered to its end.

    Args:
        config: What and how.
        socket: A Unix socket to listen on instead of host and port.

    Raises:
        ConfigurationError: Open to a network without a key.
    """
    key = api_key()
    if socket is None:
        check_open(config.host, key)
    uvicorn.run(
        build(config, key), host=config.host, port=config.port,
        uds=str(socket) if socket else None, log_level="warning", access_log=False,
        limit_concurrency=config.queue + SPARE_CONNECTIONS,
        timeout_graceful_shutdown=int(config.time_limit_s * (config.queue + 1)))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Serve an artifact over HTTP.")
    parser.add_argument("config", type=Path)
    parser.add_argument("--host", help="listen there instead of where the configuration says")
    parser.add_argument("--socket", type=Path, help="listen on this Unix socket instead")
    options = parser.parse_args()
    try:
        config = read_config(options.config)
        serve(replace(config, host=options.host or config.host), options.socket)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
