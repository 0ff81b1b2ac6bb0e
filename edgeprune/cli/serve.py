"""The command `edgeprune serve`: parse, call."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgeprune.records import __version__

DEFAULT_CONTEXT = 2048
NEEDED = ("fastapi", "prometheus_client", "sse_starlette", "starlette_context", "uvicorn")


def serve(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT_OR_RUN", help=(
        "A .gguf file, the directory of an ONNX model, or a run directory."))],
    host: Annotated[str, typer.Option(help=(
        "Where it listens; anything but loopback needs EDGEPRUNE_API_KEY in the environment."))
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    context: Annotated[int | None, typer.Option(min=2, help=(
        "Tokens of a prompt and its reply together; a run's own, else 2048, when left out."))
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="All CPUs when left out.")] = None,
    queue: Annotated[int, typer.Option(min=0, help=(
        "Requests that may wait for the one that is answered; more get a 503."))] = 8,
    time_limit: Annotated[float, typer.Option("--time-limit", min=1, help=(
        "Seconds after which a reply ends."))] = 300,
) -> None:
    """Serve an artifact on this machine, as OpenAI's API does: completions, chat, streams.

    Also /health, and /metrics in Prometheus' form. Ends with Ctrl-C or SIGTERM.

    Example: edgeprune serve runs/my-run --port 8080
    """
    from edgeprune.errors import UsageError
    from edgeprune.extras import check_extra
    from edgeprune.report.artifacts import servable_of

    check_extra("deploy", NEEDED, "a server")
    from edgeprune.on_target.serve.server import Config, ConfigurationError
    from edgeprune.on_target.serve.server import serve as serve_http

    found = servable_of(artifact)
    config = Config(model=found.artifact, name=found.name, version=__version__,
                    n_ctx=context or found.n_ctx or DEFAULT_CONTEXT,
                    threads=threads or os.cpu_count() or 1, queue=queue, time_limit_s=time_limit,
                    host=host, port=port)
    print(f"serving {found.name} at http://{host}:{port}/v1", file=sys.stderr)
    try:
        serve_http(config)
    except ConfigurationError as error:
        raise UsageError(str(error)) from error
