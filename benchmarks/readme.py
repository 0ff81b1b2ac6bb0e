"""Print the README's figures: the main job on this machine and on the emulated ARM machine.

    python benchmarks/readme.py [--write]

Runs `edgeprune run smollm2` twice, as a user would, and prints what it printed, with machine and
date. With --write, the part of README.md between its two markers is replaced by the same text.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from edgeprune.records import write_text
from tests.arm import machine as arm

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- begin benchmarks/readme.py -->", "<!-- end benchmarks/readme.py -->"
LOCAL = ("--target", "local", "--budget", "100 tokens < 75%")
ARM = ("--target", "qemu-arm64", "--budget", "8 tokens after 4 < 80%")


def main() -> int:
    """Measure, print, and write when asked to."""
    parser = argparse.ArgumentParser(description="Measure the README's figures.")
    parser.add_argument("--write", action="store_true", help="replace them in README.md")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as scratch:
        parts = [_section("This machine", LOCAL, Path(scratch))]
        with arm.boot(arm.build()):
            parts.append(_section("The emulated ARM machine, over SSH", ARM, Path(scratch)))
    text = "\n\n".join(parts)
    print(text)
    if write:
        readme = ROOT / "README.md"
        before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
        write_text(readme, f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    return 0


def _section(title: str, arguments: tuple[str, ...], scratch: Path) -> str:
    """Run the main job and return its output as Markdown; stops when it did not end met."""
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
    return (f"{title}, {datetime.now(UTC):%Y-%m-%d}, {seconds:.0f} s, profiling included:\n\n"
            f"```console\n$ edgeprune run smollm2 {quoted}\n{shown}\n```")


if __name__ == "__main__":
    sys.exit(main())
