"""Break connections at random while a file is sent and while a job runs; print what came of it.

    python benchmarks/disconnects.py [--trials 200] [--mib 200] [--seed 0]

Each trial sends a new file through a relay to a real sshd on loopback, which is broken once after a
random number of bytes, and runs a job of a second, during which it is broken at a random moment. It
counts what arrived whole by its sha256, and the jobs that were started. Needs openssh-server.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.progress import track

from benchmarks.host import describe_machine
from edgeprune.records import file_digest
from edgeprune.target.session import Device, open_device
from tests.sshd import Relay, Server, serve

JOB_S = 1.0


def main() -> int:
    """Do the trials and print; the status is 1 when anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--mib", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    whole = done = 0
    began = time.monotonic()
    with TemporaryDirectory() as scratch, serve(Path(scratch)) as server, Relay(
            server.port) as relay:
        server.trusts(relay.port)
        file = Path(scratch) / "model"
        file.write_bytes(os.urandom(asked.mib * 2**20))
        with open_device(server.target(port=relay.port)) as device:
            # what it runs is of the standard library, so it may be any machine
            device.facts = device.facts.model_copy(
                update={"architecture": "aarch64", "glibc": "2.36"})
            for trial in track(range(asked.trials), "breaking connections"):
                source = random.Random(asked.seed + trial)  # noqa: S311 - to be repeated
                with file.open("r+b") as content:
                    content.write(trial.to_bytes(8, "little"))
                whole += _sends(device, relay, file, source)
                done += _runs(device, relay, source)
        started = _started(server)
        left = list((Path(scratch) / "work/jobs").iterdir())
    print(f"{datetime.now(UTC):%Y-%m-%d}; {describe_machine()}; seed {asked.seed}; "
          f"{time.monotonic() - began:.0f} s")
    print(f"{asked.trials} trials, {relay.cuts} disconnects: {whole} files of {asked.mib} MiB "
          f"arrived whole, {done} jobs were done, {started} were started, {len(left)} left behind")
    return int(not (whole == done == started == asked.trials and not left))


def _sends(device: Device, relay: Relay, file: Path, source: random.Random) -> bool:
    """Send the file through one disconnect; return whether it arrived whole."""
    relay.cut_after(source.randrange(1, file.stat().st_size))
    remote = device.put_model(file)
    is_whole = file_digest(Path(remote)) == file_digest(file)
    device.forget(remote)
    return is_whole


def _runs(device: Device, relay: Relay, source: random.Random) -> bool:
    """Run a job through one disconnect; return whether it was done."""
    breaking = threading.Timer(source.uniform(0, JOB_S + 0.5), relay.cut)
    breaking.start()
    result = device.run_job({"kind": "bandwidth", "threads": 1, "seconds": JOB_S}, "reading")
    breaking.join()
    return bool(result["read_bytes_per_s"] > 0)


def _started(server: Server) -> int:
    """Return how many jobs' own processes were started, by the commands that did."""
    return len({line.split()[-1] for line in server.commands() if " start " in line})


if __name__ == "__main__":
    sys.exit(main())
