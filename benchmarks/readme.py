"""Print the runs that the README shows, and that of docs/board.md on the emulated ARM machine.

    python benchmarks/readme.py [--write] [--only local]

Runs `edgeprune run smollm2` on both machines, as a user would, and prints what it printed, with
machine and date; and a table of both real models under one budget on this machine. With --write,
the part of the page between two markers is replaced by that text.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

from edgeprune.records import write_text
from tests.arm import machine as arm

ROOT = Path(__file__).parent.parent
LOCAL, ARM, MODELS = "local", "qemu-arm64", "models"
PAGES = {LOCAL: ROOT / "README.md", ARM: ROOT / "docs/board.md", MODELS: ROOT / "README.md"}
COMPARED, BUDGET = ("smollm2", "gemma3-270m"), "100 tokens < 80%"
QUICK = ("--effort", "low", "--profile-seconds", "60")
TITLES = {LOCAL: "This machine", ARM: "The emulated ARM machine, over SSH"}
OPTIONS = {LOCAL: ("--budget", "100 tokens < 75%", "--quant", "auto", "--effort", "low",
                   "--profile-seconds", "20"),
           ARM: ("--budget", "8 tokens after 4 < 80%")}


def main() -> int:
    """Measure, print, and write when asked to."""
    parser = argparse.ArgumentParser(description="Measure the runs that README and docs show.")
    parser.add_argument("--write", action="store_true", help="replace them in the pages")
    parser.add_argument("--only", choices=tuple(PAGES), help="measure one part only")
    arguments = parser.parse_args()
    for part in [arguments.only] if arguments.only else PAGES:
        booted = arm.boot(arm.build()) if part == ARM else nullcontext()
        with tempfile.TemporaryDirectory() as scratch, booted:
            text = _models(Path(scratch)) if part == MODELS else _section(part, Path(scratch))
        print(text)
        if arguments.write:
            _replace(part, text)
    return 0


def _replace(target: str, text: str) -> None:
    """Put a section between its markers in its page."""
    page = PAGES[target]
    begin, end = (f"<!-- {word} benchmarks/readme.py {target} -->" for word in ("begin", "end"))
    before, rest = page.read_text(encoding="utf-8").split(begin)
    write_text(page, f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def _section(target: str, scratch: Path) -> str:
    """Run the main job and return its output as Markdown; stops when it did not end met."""
    arguments = ("--target", target, *OPTIONS[target])
    said, seconds = _run(scratch, "smollm2", *arguments)
    shown = said.replace(f"{scratch}/", "runs/").strip()
    quoted = " ".join(f"'{word}'" if " " in word else word for word in arguments)
    when = f"{datetime.now(UTC):%Y-%m-%d}, {seconds:.0f} s, profiling included"
    return (f"{TITLES[target]}, {when}:\n\n"
            f"```console\n$ edgeprune run smollm2 {quoted}\n{shown}\n```")


def _models(scratch: Path) -> str:
    """Run both models under one budget; return a row for each as Markdown."""
    rows = []
    for model in COMPARED:
        said, seconds = _run(scratch, model, "--target", LOCAL, "--budget", BUDGET, *QUICK,
                             "--json")
        found = json.loads(said)
        before, after, kinds = found["before"], found["after"], found["kinds"]["kinds"]
        latency = found["judgements"][0]["measured"]["point"] / before["latency_p50_ms"]
        lost = {kind: math.log(step["after"] / step["before"]) for kind, step in kinds.items()}
        worst = max(lost, key=lambda kind: lost[kind])
        rows.append(
            f"| `{model}` | {before['latency_p50_ms']:.0f} ms | {latency:.0%} | "
            f"{before['file_bytes'] / 2**20:.0f} -> {after['file_bytes'] / 2**20:.0f} MiB | "
            f"{lost[worst]:.3f} on {worst} | {seconds:.0f} s |")
    return "\n".join([
        (f"| `{BUDGET}`, {datetime.now(UTC):%Y-%m-%d} | unpruned | latency | file "
        "| loses most, nats per token | the run took |"),
        "| :-- | --: | --: | --: | --: | --: |", *rows])


def _run(scratch: Path, model: str, *arguments: str) -> tuple[str, float]:
    """Run the main job; return what it printed, and the seconds it took; stops when not met."""
    argv = [sys.executable, "-m", "edgeprune.cli", "run", model, *arguments]
    places = ["--runs", str(scratch), "--targets", str(ROOT / "targets"),
              "--profiles", str(scratch / "profiles")]
    began = time.monotonic()
    done = subprocess.run([*argv, *places], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stdout)
        raise SystemExit(f"the run ended with {done.returncode}: try on a quieter machine")
    return done.stdout, time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
