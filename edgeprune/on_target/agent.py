"""The agent: job control on the target. Standard library only.

    python3 agent.py start JOB    run JOB/job.json detached; returns at once
    python3 agent.py wait JOB S   wait up to S seconds, print the state as one JSON line
    python3 agent.py stop JOB     end a running job
    python3 agent.py holder WORK  print what runs in a work directory as one JSON line

A job directory, WORK/jobs/NAME, holds `job.json` and `owner.json` (in), `samples.jsonl` (one line
for each request, as it ends), `result.json` (written whole at the end), `log.txt`, `pid`,
`heartbeat` (touched while the job lives) and `watched` (touched while its host looks). A job holds
the lock WORK/lock while it lives: one at a time. Each command may be given twice: the second time
it changes nothing. What a job does is in `runner.py`, which lies beside this file on the target.
Runs on Python 3.9 and later.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

BUSY = 75  # exit status: another job runs, told on stdout
BEAT_S = 5


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
    if command == "holder":
        print(json.dumps(holder(job)))
        return 0
    print(f"unknown command {command}", file=sys.stderr)
    return 2


def start(job: Path) -> int:
    """Detach from the caller and run the job in `job`; the caller returns at once."""
    work = job.parent.parent
    lock = take_lock(work, job)
    if lock is None:
        found = holder(work)
        if found.get("job") == job.name:
            return 0  # started before
        print(json.dumps(found))
        return BUSY
    try:
        os.close(os.open(job / "begun", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        os.close(lock)
        return 0  # started before, and ended
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
    write_json(job / "pid", {"pid": os.getpid(), "group": os.getpgrp(), "boot": boot(),
                             "started": start_time(os.getpid())})
    (job / "samples.jsonl").touch()
    beat(job)
    status = 0
    try:
        spec = json.loads((job / "job.json").read_text())
        work_of = importlib.import_module("runner").JOBS[spec["kind"]]
        write_json(job / "result.json", {"ok": True, **work_of(spec, job)})
    except BaseException as error:  # noqa: BLE001 - whatever it was, the host must hear of it
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        write_json(job / "result.json", {"ok": False, "error": message})
        status = 1
    sys.stdout.flush()
    os._exit(status)


def take_lock(work: Path, job: Path) -> int | None:
    """Take the lock for a job; the kernel gives it back when the job's last process ends."""
    lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    os.ftruncate(lock, 0)
    os.write(lock, json.dumps({"job": job.name, "since": time.time()}).encode())
    return lock


def holder(work: Path) -> dict[str, Any]:
    """Tell what holds the lock: `{}` when nothing does, else job, owner, and two ages."""
    for _ in range(10):
        lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            with contextlib.suppress(ValueError):  # just being written
                found = json.loads(os.read(lock, 4096))
                job = work / "jobs" / found["job"]
                return {"job": found["job"], "owner": read_json(job / "owner.json"),
                        "age_s": time.time() - found["since"], "watched_s": age(job / "watched")}
            time.sleep(0.1)
        else:
            return {}
        finally:
            os.close(lock)
    return {"job": "", "owner": {}, "age_s": None, "watched_s": None}


def beat(job: Path) -> None:
    """Touch the heartbeat from now on; no thread, which would be copied by each fork."""
    def touch(*_: object) -> None:
        (job / "heartbeat").touch()

    touch()
    signal.signal(signal.SIGALRM, touch)
    signal.setitimer(signal.ITIMER_REAL, BEAT_S, BEAT_S)


def wait(job: Path, seconds: float) -> dict[str, Any]:
    """Wait until the job has ended, at most `seconds`; return its state.

    States: "done" (result.json is there), "running", "lost" (the process is gone without a result).
    """
    end = time.monotonic() + seconds
    (job / "watched").touch()
    while True:
        state = state_of(job)
        if state["state"] != "running" or time.monotonic() >= end:
            return state
        time.sleep(0.2)


def state_of(job: Path) -> dict[str, Any]:
    """Return the state of a job, its finished requests, and since when it gives no sign of life."""
    samples = job / "samples.jsonl"
    done = samples.read_bytes().count(b"\n") if samples.exists() else 0
    state = {"state": "done", "requests": done, "silent_s": age(job / "heartbeat")}
    if (job / "result.json").exists():
        return {**state, "ended_s": age(job / "result.json")}
    if alive(job):
        return {**state, "state": "running"}
    if (job / "result.json").exists():  # ended between the two looks
        return {**state, "ended_s": age(job / "result.json")}
    return {**state, "state": "lost",
            "restarted": read_json(job / "pid").get("boot", boot()) != boot()}


def age(path: Path) -> float | None:
    """Return how many seconds ago a file was touched, or None when there is none."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return None


def boot() -> str:
    """Return what tells this run of the machine from those before."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; empty when there is none."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def alive(job: Path) -> bool:
    """Tell whether the job's process runs (a recycled pid does not count)."""
    pid = read_json(job / "pid")
    if not pid:
        # not yet written: give a starting job ten seconds
        begun = age(job / "begun")
        return begun is not None and begun < 10
    return bool(pid["boot"] == boot() and start_time(pid["pid"]) == pid["started"])


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
        end = time.monotonic() + 1
        while alive(job) and time.monotonic() < end:
            time.sleep(0.02)
    return 0


def write_json(path: Path, value: object) -> None:
    """Write JSON to `path`, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value))
    part.rename(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
