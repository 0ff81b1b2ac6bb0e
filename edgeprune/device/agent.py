"""The agent: job control on the target. Standard library only, as is all that runs there.

    python3 agent.py start JOB    run JOB/job.json detached; returns at once
    python3 agent.py wait JOB S   wait up to S seconds, print the state as one JSON line
    python3 agent.py stop JOB     end a running job

A job directory holds `job.json` (in), `samples.jsonl` (one line for each request, as it ends),
`result.json` (written whole at the end), `log.txt` and `pid`. What a job does is in `runner.py`,
which lies beside this file on the target. Runs on Python 3.9 and later.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any


def main(argv: list[str]) -> int:
    """Run one of the commands in the module docstring; return the exit status."""
    command, job = argv[1], Path(argv[2])
    if command == "start":
        return start(job)
    if command == "wait":
        print(json.dumps(wait(job, float(argv[3]))))
        return 0
    if command == "stop":
        return stop(job)
    print(f"unknown command {command}", file=sys.stderr)
    return 2


def start(job: Path) -> int:
    """Detach from the caller and run the job in `job`; the caller returns at once."""
    sys.stdout.flush()
    if os.fork():
        return 0
    os.setsid()
    if os.fork():
        os._exit(0)
    with open(os.devnull) as null, (job / "log.txt").open("a") as log:  # noqa: PTH123
        os.dup2(null.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    write_json(job / "pid", {"pid": os.getpid(), "group": os.getpgrp(),
                             "started": start_time(os.getpid())})
    (job / "samples.jsonl").touch()
    status = 0
    try:
        spec = json.loads((job / "job.json").read_text())
        work = importlib.import_module("runner").JOBS[spec["kind"]]
        write_json(job / "result.json", {"ok": True, **work(spec, job)})
    except BaseException as error:  # noqa: BLE001 - whatever it was, the host must hear of it
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        write_json(job / "result.json", {"ok": False, "error": message})
        status = 1
    sys.stdout.flush()
    os._exit(status)


def wait(job: Path, seconds: float) -> dict[str, Any]:
    """Wait until the job has ended, at most `seconds`; return its state.

    States: "done" (result.json is there), "running", "lost" (the process is gone without a result).
    """
    end = time.monotonic() + seconds
    while True:
        state = state_of(job)
        if state["state"] != "running" or time.monotonic() >= end:
            return state
        time.sleep(0.2)


def state_of(job: Path) -> dict[str, Any]:
    """Return the state of a job and how many requests it has finished."""
    samples = job / "samples.jsonl"
    done = samples.read_bytes().count(b"\n") if samples.exists() else 0
    if (job / "result.json").exists():
        return {"state": "done", "requests": done}
    state = "running" if alive(job) else "lost"
    if state == "lost" and (job / "result.json").exists():  # ended between the two looks
        state = "done"
    return {"state": state, "requests": done}


def alive(job: Path) -> bool:
    """Tell whether the job's process runs (a recycled pid does not count)."""
    try:
        pid = json.loads((job / "pid").read_text())
    except (OSError, ValueError):
        # not yet written: give a starting job ten seconds
        return time.time() - (job / "job.json").stat().st_mtime < 10
    return bool(start_time(pid["pid"]) == pid["started"])


def start_time(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since boot, or None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def stop(job: Path) -> int:
    """End a running job and the processes that run its models: politely, then by force."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not (job / "pid").exists() or not alive(job):
            return 0
        os.killpg(json.loads((job / "pid").read_text())["group"], number)
        time.sleep(1)
    return 0


def write_json(path: Path, value: object) -> None:
    """Write JSON to `path`, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value))
    part.rename(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
