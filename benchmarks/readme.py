"""Print the run that the README shows, and that of docs/board.md on the emulated ARM machine.

    python benchmarks/readme.py [--write] [--only local]

Runs `edgeprune run smollm2` on both, as a user would, and prints what it printed, with machine and
date. With --write, the part of the page between a machine's two markers is replaced by that text.
"""

from __future__ import annotations

import argparse
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
LOCAL, ARM = "local", "qemu-arm64"
PAGES = {LOCAL: ROOT / "README.md", ARM: ROOT / "docs/board.md"}
TITLES = {LOCAL: "This machine", ARM: "The emulated ARM machine, over SSH"}
OPTIONS = {LOCAL: ("--budget", "100 tokens < 75%", "--quant", "auto", "--effort", "low",
                   "--profile-seconds", "20"),
           ARM: ("--budget", "8 tokens after 4 < 80%")}


def main() -> int:
    """Measure, print, and write when asked to."""
    parser = argparse.ArgumentParser(description="Measure the runs that README and docs show.")
    parser.add_argument("--write", action="store_true", help="replace them in the pages")
    parser.add_argument("--only", choices=tuple(TITLES), help="measure one machine only")
    arguments = parser.parse_args()
    for target in [arguments.only] if arguments.only else TITLES:
        booted = arm.boot(arm.build()) if target == ARM else nullcontext()
        with tempfile.TemporaryDirectory() as scratch, booted:
            text = _section(target, Path(scratch))
        print(text)
        if arguments.write:
            _replace(target, text)
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
    argv = [sys.executable, "-m", "edgeprune.cli", "run", "smollm2", *arguments]
    places = ["--runs", str(scratch), "--targets", str(ROOT / "targets"),
              "--profiles", str(scratch / "profiles")]
    began = time.monotonic()
    done = subprocess.run([*argv, *places], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stdout)
        raise SystemExit(f"the run ended with {done.returncode}: try on a quieter machine")
    seconds = time.monotonic() - began
    shown = done.stdout.replace(f"{scratch}/", "runs/").strip()
    quoted = " ".join(f"'{word}'" if " " in word else word for word in arguments)
    when = f"{datetime.now(UTC):%Y-%m-%d}, {seconds:.0f} s, profiling included"
    return (f"{TITLES[target]}, {when}:\n\n"
            f"```console\n$ edgeprune run smollm2 {quoted}\n{shown}\n```")


if __name__ == "__main__":
    sys.exit(main())
