"""What a benchmark says about the machine and the process it ran on.

In: /proc. Out: one line for the machine, the process's peak of resident memory.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe_machine() -> str:
    """Say architecture, processors and Python in one line."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def peak_rss_bytes() -> int:
    """Read this process's peak resident memory.

    Not getrusage's ru_maxrss: Linux hands that down through fork and exec, so that a child of a
    large process begins with its parent's peak.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
