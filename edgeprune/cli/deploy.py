"""The commands `package`, `deploy`, `status`, `rollback`, `undeploy`: parse, call, print."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeprune.cli.console import (
    AsJson,
    TargetName,
    Targets,
    open_with_progress,
    print_table,
    progress,
)

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE_OR_RUN", help=(
    "A directory that `package` has made, or a run directory: its bundle is made first."))]
Key = Annotated[Path | None, typer.Option("--key", help=(
    "The SSH key that signs bundles; edgeprune's own in ~/.config/edgeprune, made at its first "
    "use, when left out."))]
Version = Annotated[str | None, typer.Option("--version", help=(
    "Of the bundle; made from what is in it when left out."))]


def package(
    subject: Annotated[Path, typer.Argument(metavar="RUN_OR_ARTIFACT", help=(
        "A run directory; or a .gguf file or the directory of an ONNX model, with --target and "
        "--budget."))],
    out: Annotated[Path | None, typer.Option(help=(
        "The directory to make; NAME-VERSION beside the run or artifact when left out."))] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help=(
        "What an artifact is for; a run knows its own."))] = None,
    budget: Annotated[str | None, typer.Option("--budget", "-b", help=(
        "What an artifact has to hold on the target, in absolute limits; a run knows its own."))
    ] = None,
    version: Version = None,
    context: Annotated[int | None, typer.Option(min=2, help=(
        "Tokens of a prompt and its reply together; the budget's when left out."))] = None,
    queue: Annotated[int, typer.Option(min=0, help=(
        "Requests that may wait for the one that is answered; more get a 503."))] = 8,
    time_limit: Annotated[float, typer.Option("--time-limit", min=1, help=(
        "Seconds after which a reply ends."))] = 300,
    licence: Annotated[str | None, typer.Option(help=(
        "Of the model; as its model card says when left out."))] = None,
    key: Key = None,
    targets: Targets = Path("targets"),
    as_json: AsJson = False,
) -> None:
    """Make a signed bundle of all that a target needs to serve a model, without a network there.

    Example: edgeprune package runs/my-run

    Another: edgeprune package my.gguf --target board --budget 'decode > 8 tokens/s, ram < 4 GB'
    """
    from edgeprune.deploy.bundle import Serving

    with progress(quiet=as_json) as (say, notify):
        served = _served(subject, target, budget, licence, context, targets, notify)
        made, manifest = _packaged(served, Serving(queue=queue, time_limit_s=time_limit), out,
                                   subject.parent, key, version, notify)
        size = sum(file.size_bytes for file in manifest.files.values())
        say(f"{made}: {manifest.name} {manifest.version}, {size / 2**20:.1f} MiB, "
            f"{len(manifest.files)} files, for {manifest.architecture} with {manifest.cpu_flags}")
    if as_json:
        print(json.dumps({"bundle": str(made), **manifest.model_dump(mode="json")}, indent=2))


def deploy(
    bundle: Bundle,
    target: Annotated[list[str], typer.Option("--target", "-t", help=(
        "A name in targets/; several times for several of them."))],
    wave: Annotated[int, typer.Option(min=1, help=(
        "Targets at a time; after a wave in which one refused, no other is tried."))] = 1,
    listen: Annotated[str | None, typer.Option(help=(
        "ADDRESS:PORT of the service; 127.0.0.1:8080 at first. Anything but loopback needs "
        "EDGEPRUNE_API_KEY in the environment."))] = None,
    key: Key = None,
    replace_signer: Annotated[bool, typer.Option("--replace-signer", help=(
        "Let the target trust this key instead of the one that it trusts."))] = False,
    targets: Targets = Path("targets"),
    as_json: AsJson = False,
) -> None:
    """Serve a bundle on targets: installed beside what is served, tried, then switched to.

    What does not hold its budget there is refused, and what was served before still is.

    Example: edgeprune deploy runs/my-run --target board
    """
    from edgeprune.deploy.deployment import deploy as deploy_to
    from edgeprune.deploy.deployment import in_waves
    from edgeprune.deploy.signing import own_key, public_key
    from edgeprune.errors import DeploymentError

    with progress(quiet=as_json) as (say, notify):
        directory = _bundle_of(bundle, key, targets, notify)
        signer = public_key(key or own_key())

        def one(name: str) -> dict[str, Any]:
            with _opened(name, targets, notify) as device:
                return deploy_to(device, directory, signer, listen=listen,
                                 api_key=os.environ.get("EDGEPRUNE_API_KEY") or None,
                                 replace_signer=replace_signer)

        if len(target) == 1:
            said = one(target[0])
            if as_json:
                print(json.dumps(said))
            for line in _deployed_lines(target[0], said):
                say(line)
            return
        results = in_waves(target, wave, one)
    if as_json:
        print(json.dumps([result.model_dump(mode="json") for result in results], indent=2))
    else:
        print_table(f"{directory.name}", ("target", "version", "tokens/s", "outcome"),
                     [_row(result.target, result.said, result.error) for result in results])
    if refused := [result.target for result in results if result.error]:
        raise DeploymentError(f"refused by {', '.join(refused)}",
                              remedy="what was served there before still is")


def status(
    target: TargetName, targets: Targets = Path("targets"), as_json: AsJson = False
) -> None:
    """Show what is served on a target: version, uptime, tokens/s, RAM.

    Example: edgeprune status --target board
    """
    from edgeprune.deploy.deployment import status as status_of

    with open_with_progress(target, targets) as (device, _):
        said = status_of(device)
    if as_json:
        print(json.dumps(said, indent=2))
        return
    if said.get("version") is None:
        print(f"{target}: nothing is served")
        return
    health = said.get("health") or {}
    rows = [("version", f"{said.get('model')} {said['version']}"),
            ("address", said.get("listen")), ("state", "active" if said.get("active") else "down"),
            ("uptime", f"{health.get('uptime_s', 0):.0f} s"),
            ("last reply", f"{health.get('tokens_per_s', 0):.1f} tokens/s"),
            ("peak RAM", f"{health.get('peak_ram_bytes', 0) / 2**20:.0f} MiB"),
            ("requests in hand", health.get("in_hand", 0)),
            ("restarts", said.get("restarts")), ("version before", said.get("previous") or "none")]
    for label, text in rows:
        print(f"{label:<18} {text}")


def rollback(
    target: TargetName, targets: Targets = Path("targets"), as_json: AsJson = False
) -> None:
    """Go back to the version that was served before.

    Example: edgeprune rollback --target board
    """
    from edgeprune.deploy.deployment import rollback as go_back

    with open_with_progress(target, targets) as (device, _):
        said = go_back(device)
    print(json.dumps(said) if as_json else f"{target} serves version {said['version']} again")


def undeploy(
    target: TargetName, targets: Targets = Path("targets"), as_json: AsJson = False
) -> None:
    """Stop what is served on a target, and remove all of it.

    Example: edgeprune undeploy --target board
    """
    from edgeprune.deploy.deployment import undeploy as remove

    with open_with_progress(target, targets) as (device, _):
        said = remove(device)
    print(json.dumps(said) if as_json else f"{target} serves nothing any more")


def _opened(name: str, targets: Path, notify: Any) -> Any:
    from edgeprune.target.session import open_device
    from edgeprune.target.target import load_target

    return open_device(load_target(name, targets), notify=notify)


def _served(
    subject: Path, target: str | None, budget: str | None, licence: str | None,
    context: int | None, targets: Path, notify: Any,
) -> Any:
    from edgeprune.deploy.served import served_of_artifact, served_of_run
    from edgeprune.errors import UsageError
    from edgeprune.extras import check_extra
    from edgeprune.report.artifacts import outcome_of
    from edgeprune.rundir import REQUEST

    check_extra("deploy", ("cyclonedx", "prometheus_client"), "packaging")
    if (subject / REQUEST).is_file():
        return served_of_run(subject, outcome_of(subject), licence)
    if target is None or budget is None:
        raise UsageError("of an artifact alone it is not known what it is for", got=str(subject),
                         remedy="name --target and --budget, or give a run directory")
    with _opened(target, targets, notify) as device:
        return served_of_artifact(subject, device.facts, device.threads, budget, licence, context)


def _packaged(
    served: Any, serving: Any, out: Path | None, beside: Path, key: Path | None,
    version: str | None, notify: Any,
) -> tuple[Path, Any]:
    """Make a bundle under the name that the user gave, or under its own."""
    from edgeprune.deploy.bundle import package as make
    from edgeprune.deploy.signing import own_key
    from edgeprune.errors import UsageError

    if out is not None and out.exists():
        raise UsageError("the bundle exists", got=str(out), remedy="choose another --out")
    made = out or beside / f".{served.name}.bundle{os.getpid()}"
    manifest = make(served, serving, made, key or own_key(), version=version, notify=notify)
    if out is None:
        out = beside / f"{manifest.name}-{manifest.version}"
        if out.exists():  # the same version: the same bytes
            import shutil

            shutil.rmtree(out)
        made.rename(out)
    return out, manifest


def _bundle_of(bundle: Path, key: Path | None, targets: Path, notify: Any) -> Path:
    from edgeprune.rundir import REQUEST

    if not (bundle / REQUEST).is_file():
        return bundle  # without what makes one, which takes seconds to load
    from edgeprune.deploy.bundle import Serving

    served = _served(bundle, None, None, None, None, targets, notify)
    return _packaged(served, Serving(), None, bundle, key, None, notify)[0]


def _deployed_lines(target: str, said: dict[str, Any]) -> list[str]:
    if "already" in said:
        return [f"{target} serves version {said['version']} already"]
    measured = said.get("measured", {})
    tried = (f"{1e3 / measured['token_ms']:.1f} tokens/s, "
             f"{measured['ram_bytes'] / 2**20:.0f} MiB of RAM, in {said.get('took_s')} s")
    return [f"{target} serves version {said['version']} at {said.get('listen')}",
            f"  tried there: {tried}",
            f"  version before: {said.get('previous') or 'none'}"]


def _row(target: str, said: dict[str, Any] | None, error: str) -> tuple[str, ...]:
    if said is None:
        return target, "", "", error or "not tried"
    rate = f"{1e3 / said['measured']['token_ms']:.1f}" if "measured" in said else ""
    return target, str(said["version"]), rate, said.get("already", "served")
