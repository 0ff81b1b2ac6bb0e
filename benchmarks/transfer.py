"""Print how fast a file is sent, as a ratio to `scp`, over a real sshd on loopback.

    python benchmarks/transfer.py [--mib 200] [--pairs 7]

In turn: `scp`, `scp` and sha256sum on both sides, and edgeprune's transfer, which hashes the file
on both sides, too, sees to it that it is on the disk, and renames it. Needs openssh-server
(tests/sshd.py install).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.host import describe_machine
from edgeprune.target.ssh import SSHTransport
from tests.sshd import serve


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=7)
    asked = parser.parse_args()
    with TemporaryDirectory() as scratch, serve(Path(scratch)) as server:
        file, there = Path(scratch) / "model", Path(scratch) / "there"
        file.write_bytes(os.urandom(asked.mib * 2**20))
        target = server.target()
        scp = ["scp", "-q", "-i", str(target.key), "-P", str(target.port), "-o",
               f"UserKnownHostsFile={target.known_hosts}", str(file),
               f"{target.user}@{target.host}:{there}"]
        own = SSHTransport(target)

        def scp_and_sums() -> None:
            subprocess.run(scp, check=True)
            subprocess.run(["sha256sum", file], check=True, stdout=subprocess.DEVNULL)
            own.run(["sha256sum", str(there)])

        ways: dict[str, Callable[[], object]] = {
            "scp": lambda: subprocess.run(scp, check=True),
            "scp, sha256sum on both sides": scp_and_sums,
            "edgeprune": lambda: own.put(file, str(there)),
        }
        took: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(asked.pairs):
            for name, send in ways.items():
                there.unlink(missing_ok=True)
                began = time.perf_counter()
                send()
                took[name].append(time.perf_counter() - began)
                if there.read_bytes() != file.read_bytes():
                    raise RuntimeError(f"{name} sent something else")
        own.close()
    print(f"{datetime.now(UTC):%Y-%m-%d}; {describe_machine()}; {asked.mib} MiB over loopback, "
          f"{asked.pairs} rounds\n")
    print("| | median s | MiB/s | rate to scp's: median (least, most) |")
    print("| :-- | --: | --: | --: |")
    for name, seconds in took.items():
        ratios = [scp_s / own for scp_s, own in zip(took["scp"], seconds, strict=True)]
        middle = statistics.median(seconds)
        print(f"| {name} | {middle:.2f} | {asked.mib / middle:.0f} | "
              f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f}) |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
