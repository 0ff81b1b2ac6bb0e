"""The commands `edgeprune target ...`: parse, call, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli.console import AsJson, Targets, open_with_progress
from edgeprune.errors import UsageError

target_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None,
                         help="The machines in targets/, and the built-in 'local'.")

Name = Annotated[str, typer.Argument(help="'local', a name in targets/, or a .toml file.")]


@target_app.command("list")
def target_list(targets: Targets = Path("targets"), as_json: AsJson = False) -> None:
    """List the known targets.

    Example: edgeprune target list
    """
    from edgeprune.target.target import list_targets

    found = list_targets(targets)
    if as_json:
        print(json.dumps([t.model_dump(mode="json") for t in found], indent=2))
        return
    for target in found:
        port = f":{target.port}" if target.port else ""
        where = f"{target.user or ''}@{target.host}{port}".lstrip("@")
        print(f"{target.name:<20} {'this machine' if target.is_local else where}")


@target_app.command("check")
def target_check(
    name: Name,
    artifact: Annotated[Path | None, typer.Option(help=(
        "A .gguf file or the directory of an ONNX model: is there disk and RAM for it?"))] = None,
    targets: Targets = Path("targets"),
) -> None:
    """Check that a target's file is right, that it can be reached, and that edgeprune can use it.

    Example: edgeprune target check board

    Another: edgeprune target check board --artifact model-Q4_K_M.gguf
    """
    from edgeprune.target.fitness import problems
    from edgeprune.target.measure import check_fits

    with open_with_progress(name, targets) as (device, say):
        found = list(problems(device.target, device.facts))
        for problem in found[:-1]:
            say(f"error: {problem}")
        if found:
            raise found[-1]
        if artifact is not None:
            check_fits(device, artifact)
        say(f"{name}: reached; {device.facts.describe()}; python {device.facts.python}, "
            f"{device.facts.disk_free_bytes / 2**30:.1f} GiB of disk free")


@target_app.command("unlock")
def target_unlock(
    name: Name,
    force: Annotated[bool, typer.Option(
        "--force", help="End it even when its owner looks after it.")] = False,
    targets: Targets = Path("targets"),
) -> None:
    """End the job that keeps a target busy, whoever began it.

    Example: edgeprune target unlock board
    """
    with open_with_progress(name, targets) as (device, say):
        jobs = device.jobs()
        if (holder := jobs.holder()) is None:
            say(f"{name}: nothing of edgeprune runs there")
            return
        if not (holder.is_stale or force):
            raise UsageError(f"{name} runs {holder.describe()}",
                             remedy="its owner looks after it; --force ends it all the same")
        jobs.discard(holder.job)
        say(f"{name}: ended {holder.describe()}")


@target_app.command("trust")
def target_trust(
    name: Name,
    fingerprint: Annotated[str | None, typer.Option("--fingerprint", help=(
        "SHA256:..., that you know it by: nothing is asked."))] = None,
    replace: Annotated[bool, typer.Option(
        "--replace", help="Trust it instead of the key that was trusted before.")] = False,
    targets: Targets = Path("targets"),
) -> None:
    """Look at the key of a target's host, and trust it from now on.

    It is kept beside the target's file, as NAME.known_hosts, or where its 'known_hosts' says.

    Example: edgeprune target trust board
    """
    from edgeprune.target.login import ask_passphrase, shown_key
    from edgeprune.target.target import load_target
    from edgeprune.target.trust import check_replaced, check_shown, own_file, pin, pinned

    target = load_target(name, targets)
    if target.is_local:
        raise UsageError("nothing is to be trusted", got=name, remedy="it is this machine")
    route, key = shown_key(target, ask_passphrase)
    print(f"{name} ({route.where}) shows {key.get_name()} {key.fingerprint}")
    if (before := pinned(target, route)) == key:
        print(f"trusted already: {own_file(target)}")
        return
    check_replaced(target, before, key, replace=replace)
    if fingerprint is not None:
        check_shown(target, key, fingerprint)
    elif not sys.stdin.isatty():
        raise UsageError("there is nobody to ask whether that is right",
                         remedy=f"when it is: --fingerprint {key.fingerprint}")
    else:
        typer.confirm("Is it what `ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` says over there?",
                      abort=True, err=True)
    print(f"trusted: {pin(target, route, key)}")


@target_app.command("probe")
def target_probe(name: Name, targets: Targets = Path("targets"), as_json: AsJson = False) -> None:
    """Show what a target is: CPU, features, RAM, caches, kernel, governor, emulated or not.

    Example: edgeprune target probe board --json
    """
    from edgeprune.report.tables import facts_rows

    with open_with_progress(name, targets) as (device, _):
        facts = device.facts
    if as_json:
        print(facts.model_dump_json(indent=2))
        return
    for label, text in facts_rows(facts):
        print(f"{label:<14} {text}")


@target_app.command("setup")
def target_setup(name: Name, targets: Targets = Path("targets"), as_json: AsJson = False) -> None:
    """Build the runtime for a target's CPU, put it there, and show the kernels that it uses.

    Example: edgeprune target setup board
    """
    with open_with_progress(name, targets) as (device, _):
        path = device.setup()
        info = device.run_job({"kind": "info"}, "asking the runtime")
    if as_json:
        print(json.dumps({"path": path or None, "system_info": info["system_info"]}))
        return
    print(f"runtime: {path or 'the installed llama-cpp-python'}")
    print(f"kernels: {info['system_info'].strip()}")
