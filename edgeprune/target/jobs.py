"""Jobs on a target: begun, waited for, fetched; they outlive the connection and their host.

In: what a job is to do (`edgeprune.on_target.runner`). Out: its result. A job that a killed
edgeprune of this machine left running is gone on with when it is the one that is wanted, and ended
when not.
One job runs at a time: the agent's lock sees to it.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from edgeprune.errors import ConnectionLost, DeviceError
from edgeprune.on_target.agent import BUSY, start_time
from edgeprune.records import Record, digest
from edgeprune.target.transport import Transport, checked

LIMIT_S = 3 * 3600
POLL_S, LOCAL_POLL_S = 20, 5  # so long the agent waits for a job's end before it answers
SILENT_S = 60  # without a heartbeat, before the user hears of it
STALE_S = 600  # without a look from its host, before a job counts as forgotten
FRESH_S = 3600  # a result that a killed edgeprune left is taken as long as this
GRACE_S = 2  # for a second Ctrl-C
MOST_RESTARTS = 2  # of the machine, while a job runs
_JOB = re.compile(r"[\w-]{1,64}")
_NAME = r"^[\w.\\@$+-]*$"  # is shown to the user: no control characters


class Owner(Record):
    """The process that wants a job done, so that a later one can tell whether it still lives."""

    host: str = Field(max_length=255, pattern=_NAME)
    user: str = Field(max_length=255, pattern=_NAME)
    pid: int
    started: int | None
    key: str = Field(max_length=64)

    @property
    def is_gone(self) -> bool:
        """True when it ran on this machine and runs no more."""
        return self.host == socket.gethostname() and start_time(self.pid) != self.started


class Holder(Record):
    """What runs on a target now: the agent's answer to `holder`."""

    job: str = Field(pattern=f"^{_JOB.pattern}$")
    owner: Owner | None
    age_s: float | None
    watched_s: float | None

    def describe(self) -> str:
        """Return in words whose job it is, and for how long."""
        whose = f"{self.owner.user}@{self.owner.host}" if self.owner else "an unknown host"
        return (f"a job of {whose}, begun {_ago(self.age_s)}, "
                f"last looked after {_ago(self.watched_s)}")

    @property
    def is_stale(self) -> bool:
        """True when nobody looks after it any more."""
        return (self.owner is not None and self.owner.is_gone) or (
            self.watched_s is None or self.watched_s > STALE_S)


class State(Record):
    """The agent's answer to `wait`; see `edgeprune.on_target.agent.state_of`."""

    state: str = Field(pattern="^(done|running|lost)$")
    requests: int = Field(ge=0)
    silent_s: float | None
    ended_s: float | None = None
    restarted: bool = False


class Jobs(NamedTuple):
    """The jobs of a target's work directory.

    Attributes:
        transport: The way to the target.
        target: Its name.
        work: The work directory.
        python: The interpreter there.
        agent: Path of `agent.py` there.
        notify: Told what is being done.
        poll_s: How long the agent waits before it answers that a job still runs.
    """

    transport: Transport
    target: str
    work: str
    python: str
    agent: str
    notify: Callable[[str], None]
    poll_s: float

    def run(self, spec: dict[str, Any], what: str, runtime: Sequence[str]) -> dict[str, Any]:
        """Do a job and return its result, with the samples in `samples`.

        Args:
            spec: The content of `job.json`.
            what: Said to the user while it runs.
            runtime: Directories for its PYTHONPATH.

        Raises:
            DeviceError: The job failed, was killed, or took too long; another one runs.
        """
        key, restarts = digest(spec), 0
        while True:
            left_over = self._left_over(key)
            job = left_over or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
            try:
                if left_over is None:
                    self._begin(job, spec, key, runtime)
                state = self._await(job, spec, what)
                if state.restarted and restarts < MOST_RESTARTS:
                    restarts += 1
                    self.notify(f"{self.target} was restarted: beginning anew")
                    self.discard(job)
                    continue
                self._check_ended(job, state, what)
                result = self._fetch(job)
            except ConnectionLost:
                raise  # the job lives on, and is gone on with
            except KeyboardInterrupt:
                self.notify(f"stopping the job on {self.target} (Ctrl-C again leaves it running, "
                            "to be gone on with when you run this again)")
                time.sleep(GRACE_S)
                self._discard_quietly(job)
                raise
            except BaseException:
                self._discard_quietly(job)  # what failed is what the user must hear
                raise
            checked(self.transport, ["rm", "-rf", "--", f"{self.work}/jobs/{job}"])
            return result

    def holder(self) -> Holder | None:
        """Return what runs on the target now."""
        answer = checked(self.transport, [self.python, self.agent, "holder", self.work])
        return _holder(answer)

    def discard(self, job: str) -> None:
        """End a job, if it runs, and delete what it wrote."""
        path = f"{self.work}/jobs/{job}"
        checked(self.transport, [self.python, self.agent, "stop", path])
        checked(self.transport, ["rm", "-rf", "--", path])

    def _discard_quietly(self, job: str) -> None:
        with suppress(DeviceError):
            self.discard(job)

    def _left_over(self, key: str) -> str | None:
        """Return a job that a killed edgeprune left and that is wanted; others are ended."""
        wanted = None
        for job in checked(self.transport, ["ls", "--", f"{self.work}/jobs"]).split("\n"):
            # what it calls its jobs is data
            owner = self._owner_of(job) if _JOB.fullmatch(job) else None
            if owner is None or not owner.is_gone:
                continue
            if wanted is None and owner.key == key and self._is_good(job):
                self.notify("going on with the job that a killed edgeprune left on the target")
                self._own(job, key)
                wanted = job
            else:
                self.notify("ending a job that a killed edgeprune left on the target")
                self.discard(job)
        return wanted

    def _is_good(self, job: str) -> bool:
        state = self._state(job, 0)
        return state.state == "running" or (
            state.state == "done" and state.ended_s is not None and state.ended_s < FRESH_S)

    def _owner_of(self, job: str) -> Owner | None:
        written = self.transport.run(["cat", "--", f"{self.work}/jobs/{job}/owner.json"])
        try:
            return Owner.model_validate_json(written.stdout)
        except ValidationError:
            return None

    def _own(self, job: str, key: str) -> None:
        owner = Owner(host=socket.gethostname(), user=_user(), pid=os.getpid(),
                      started=start_time(os.getpid()), key=key)
        with TemporaryDirectory() as scratch:
            file = Path(scratch) / "owner.json"
            file.write_text(owner.model_dump_json(), encoding="utf-8")
            self.transport.put(file, f"{self.work}/jobs/{job}/owner.json")

    def _begin(self, job: str, spec: dict[str, Any], key: str, runtime: Sequence[str]) -> None:
        path = f"{self.work}/jobs/{job}"
        checked(self.transport, ["mkdir", "-p", "--", path])
        self._own(job, key)
        with TemporaryDirectory() as scratch:
            file = Path(scratch) / "job.json"
            file.write_text(json.dumps(spec), encoding="utf-8")
            self.transport.put(file, f"{path}/job.json")
        environment = ["env", f"PYTHONPATH={':'.join(runtime)}"] if runtime else []
        start = [*environment, self.python, self.agent, "start", path]
        done = self.transport.run(start)
        if done.status == 0:
            return
        if done.status != BUSY:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise DeviceError(f"the job cannot be started on {self.target} ({last[0][:200]})")
        holder = _holder(done.stdout)
        raise DeviceError(
            f"{self.target} is busy with {holder.describe() if holder else 'a job'}",
            remedy=f"wait for it, or end it: edgeprune target unlock {self.target}")

    def _await(self, job: str, spec: dict[str, Any], what: str) -> State:
        deadline = time.monotonic() + LIMIT_S
        asked = int(spec.get("requests", 0)) * len(spec.get("models", ()))
        # one waiting process there, not a poll from here: on a small machine polls are load (a
        # new python each second cost a 2-core machine 3 % of its CPU time)
        while True:
            state = self._state(job, self.poll_s)
            silent = f" (no sign of life for {state.silent_s:.0f} s)" if (
                state.silent_s is not None and state.silent_s > SILENT_S) else ""
            self.notify((f"{what}: {state.requests} of {asked} requests" if asked else what)
                        + silent)
            if state.state != "running":
                return state
            if time.monotonic() > deadline:
                raise DeviceError(f"{what}: no end after {LIMIT_S // 3600} hours")

    def _state(self, job: str, seconds: float) -> State:
        answer = checked(
            self.transport,
            [self.python, self.agent, "wait", f"{self.work}/jobs/{job}", str(seconds)],
            timeout_s=seconds + 120)
        try:
            return State.model_validate_json(answer)
        except ValidationError as error:
            raise DeviceError("the agent's answer cannot be read", got=answer[:200]) from error

    def _check_ended(self, job: str, state: State, what: str) -> None:
        """Raise what ended a job that has no result."""
        if state.state == "lost":
            log = self.transport.run(["tail", "-n", "3", f"{self.work}/jobs/{job}/log.txt"])
            raise DeviceError(
                f"{what}: the job's process vanished from {self.target}",
                got=log.stdout.strip()[-200:] or None,
                remedy="it restarts again and again" if state.restarted else
                "out of memory? (dmesg there tells); run again: finished stages are kept")

    def _fetch(self, job: str) -> dict[str, Any]:
        path = f"{self.work}/jobs/{job}"
        with TemporaryDirectory() as scratch:
            local = Path(scratch)
            self.transport.get(f"{path}/result.json", local / "result.json")
            self.transport.get(f"{path}/samples.jsonl", local / "samples.jsonl")
            try:
                result: dict[str, Any] = json.loads((local / "result.json").read_text("utf-8"))
                if not result.pop("ok"):
                    raise DeviceError("the job failed on the target",
                                      got=str(result.get("error"))[:500])
                lines = (local / "samples.jsonl").read_text("utf-8").splitlines()
                result["samples"] = [json.loads(line) for line in lines]
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise DeviceError("the job's result cannot be read", got=str(error)[:200]
                                  ) from error
        return result


def _holder(answer: str) -> Holder | None:
    """Read the agent's answer to `holder`."""
    try:
        found = json.loads(answer)
        return Holder.model_validate({**found, "owner": found["owner"] or None}) if found else None
    except (ValueError, KeyError, TypeError) as error:
        raise DeviceError("the agent's answer cannot be read", got=answer[:200]) from error


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "nobody knows when"
    return f"{seconds:.0f} s ago" if seconds < 120 else f"{seconds / 60:.0f} min ago"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        return str(os.getuid())
