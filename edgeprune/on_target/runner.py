"""What runs on the target: models in processes of their own, timed token by token.

In: a job's `job.json`, from `agent.py`. Out: what goes into its `result.json` and `samples.jsonl`.
Jobs, by `kind`:

    info       what the runtime is
    bandwidth  "threads", "seconds": how fast that many threads read memory together
    bench      requests: "models", "n_prompt", "n_new", "n_ctx", "n_ubatch", "warmup", "requests",
               "threads", "seconds" (no further round after these), "precision" (nor once the
               times are known this well: `standard_error`)

A model is {"path"}, a whole GGUF file, or {"header", "size_bytes"}: the header of a quantized GGUF
file; the data behind it is left as a hole, which reads as zero blocks: speed depends on shapes and
types, not on weights. With "format": "onnx" the path is that of a graph, its weights beside it, and
a synthetic model is {"graph", "size_bytes"}: a graph, compressed by gzip, and what weights it has.
A model may have its own "n_prompt", "n_new", "n_ctx" and "threads".

Standard library only, Python 3.9 and later; what runs a model is in `engine_llama.py` and
`engine_onnx.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import math
import os
import random
import signal
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SETTLE_S = 0.1
SCAN_S = 1.0  # long enough for a quiet moment: 30 ms told less than decoding reached
LEAST_ROUNDS, LEAST_TO_JUDGE = 3, 6  # whatever "seconds" says; before "precision" is looked at
SEED = 20240229  # prompts are the same token ids in every run


# --- the machine --------------------------------------------------------------------------------


def read(path: str | Path) -> str | None:
    """Return a small file's text, stripped, or None when it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def machine_state(processes: list[int]) -> dict[str, Any]:
    """Return what tells a quiet, cool, unswapped machine from another, at this moment.

    `processes` are our own: their CPU time is told apart, their major faults are told.
    """
    cpu = [int(x) for x in (read("/proc/stat") or "cpu 0").splitlines()[0].split()[1:]]
    cpu += [0] * (8 - len(cpu))
    vm = table("/proc/vmstat", " ")
    memory = table("/proc/meminfo", ":")
    frequencies = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    zones = Path("/sys/class/thermal").glob("thermal_zone*/temp")
    own = [(read(f"/proc/{pid}/stat") or "").rsplit(")", 1)[-1].split() for pid in processes]
    return {
        "monotonic_s": time.monotonic(),
        "load_1min": float((read("/proc/loadavg") or "0").split()[0]),
        # user nice system idle iowait irq softirq steal, in clock ticks
        "cpu_busy_ticks": sum(cpu[:3]) + sum(cpu[5:8]),
        "cpu_steal_ticks": cpu[7],
        "own_ticks": sum(int(fields[11]) + int(fields[12]) for fields in own),
        "ticks_per_s": os.sysconf("SC_CLK_TCK"),
        "cpus": os.cpu_count(),
        "swapped_pages": int(vm.get("pswpin", 0)) + int(vm.get("pswpout", 0)),
        "major_faults": sum(int(fields[9]) for fields in own),
        "available_bytes": kib(memory.get("MemAvailable", "0")),
        "frequencies_khz": [int(read(f) or 0) for f in sorted(frequencies)],
        "temperatures_mc": [int(read(z) or 0) for z in sorted(zones)],
        "throttled": read("/sys/devices/platform/soc/soc:firmware/get_throttled"),
    }


def table(path: str, separator: str) -> dict[str, str]:
    """Return a /proc file of "name value" lines; empty when it cannot be read."""
    lines = [line.partition(separator) for line in (read(path) or "").splitlines()]
    return {name: value for name, _, value in lines}


def kib(text: str) -> int:
    """Return bytes for a /proc value such as "123 kB"."""
    return int(text.split(maxsplit=1)[0]) * 1024


def memory_of_self() -> dict[str, Any]:
    """Return the memory of this process: peak, and how it splits into anonymous and file pages."""
    status, split = table("/proc/self/status", ":"), table("/proc/self/smaps_rollup", ":")
    return {
        "peak_bytes": kib(status["VmHWM"]),
        "resident_bytes": kib(status["VmRSS"]),
        "anonymous_bytes": kib(split["Pss_Anon"]) if "Pss_Anon" in split else None,
        "file_bytes": kib(split["Pss_File"]) if "Pss_File" in split else None,
    }


# --- bench --------------------------------------------------------------------------------------


def bench(spec: dict[str, Any], job: Path) -> dict[str, Any]:
    """Measure requests of N new tokens after P prompt tokens; return everything that was seen.

    Each model runs in a process of its own; they take turns, request by request, so that what
    drifts in the machine drifts for all of them and cancels in their ratios.
    """
    workers: list[Worker] = []
    for number, model in enumerate(spec["models"]):
        workers.append(Worker({**spec, **model}, job / f"model-{number}.gguf"))
        workers[-1].answer()  # loaded and warm, before the next one loads
    processes = [os.getpid(), *(worker.pid for worker in workers)]
    took: list[list[int]] = [[] for _ in workers]
    before = machine_state(processes)
    with (job / "samples.jsonl").open("w") as samples:
        begin = time.monotonic()
        for turn in range(spec["requests"]):
            if is_enough(spec, turn, time.monotonic() - begin, took):
                break
            for number, worker in enumerate(workers):
                sample = {"model": number, **worker.ask("request")}
                took[number].append(sample["token_ns"][-1])
                samples.write(json.dumps(sample) + "\n")
                samples.flush()
    after = machine_state(processes)
    return {
        "before": before,
        "after": after,
        "models": [worker.ask("end") for worker in workers],
    }


def is_enough(
    spec: dict[str, Any], rounds: int, seconds: float, took: Sequence[Sequence[float]]
) -> bool:
    """Return whether these rounds are enough, by the time they took or by how well they agree."""
    if rounds >= LEAST_ROUNDS and spec.get("seconds") and seconds > spec["seconds"]:
        return True
    precision: Any = spec.get("precision")
    return bool(precision) and rounds >= LEAST_TO_JUDGE and standard_error(took) <= precision


def standard_error(took: Sequence[Sequence[float]]) -> float:
    """Return how well the models' times are known, as a share of them: of the middle model.

    That of a median of n samples, pi/2 (sigma^2/n) of its square, sigma from the median absolute
    deviation: what the machine does to single requests says little. What it does to a whole round
    falls out, since only the models' ratios count.

    Args:
        took: Times by model and round, `(models, rounds)`; two models at least, else it is 0.
    """
    models = [centred([math.log(time) for time in times]) for times in took]
    # of each round what befell all models
    common = [statistics.median(model[turn] for model in models) for turn in range(len(models[0]))]
    errors = []
    for model in models:
        own = centred([model[turn] - drift for turn, drift in enumerate(common)])
        sigma = 1.4826 * statistics.median(abs(value) for value in own)
        errors.append(sigma * math.sqrt(math.pi / 2 / len(own)))
    return statistics.median(errors)


def centred(values: Sequence[float]) -> list[float]:
    """Return values less their median."""
    middle = statistics.median(values)
    return [value - middle for value in values]


class Worker:
    """The process that runs one model, and the two pipes to talk to it in lines of JSON."""

    def __init__(self, spec: dict[str, Any], scratch: Path) -> None:
        """Start the process; it answers once when the model is loaded and warm."""
        asked, ask = os.pipe()
        answers, answered = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the job
            serve(spec, scratch, asked, answered)
        os.close(asked)
        os.close(answered)
        self._ask, self._answers = os.fdopen(ask, "w"), os.fdopen(answers)

    def ask(self, command: str) -> dict[str, Any]:
        """Give a command and wait for its answer."""
        with contextlib.suppress(BrokenPipeError):  # `answer` says what ended the process
            self._ask.write(command + "\n")
            self._ask.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Wait for an answer; an error in the process, or its death, is raised here."""
        line = self._answers.readline()
        if not line:
            status = os.waitpid(self.pid, 0)[1]
            raise RuntimeError(f"the process that ran the model was ended by signal {status & 127}"
                               " (9: out of memory?)")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


def serve(spec: dict[str, Any], scratch: Path, asked: int, answered: int) -> None:
    """Be a worker: load the model, warm up, do requests as they are asked for, and exit."""
    answers = os.fdopen(answered, "w")

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        baseline = memory_of_self()["resident_bytes"]
        engine = engine_of(spec).Engine(spec, scratch)
        prompt = prompt_tokens(engine.n_vocab, spec["n_prompt"])
        for _ in range(spec["warmup"]):
            engine.request(prompt, min(spec["n_new"], 4))
        answer({"ready": True})
        for line in os.fdopen(asked):
            if line.strip() == "end":
                break
            settle(lambda: engine.request(prompt[:1], 1))
            answer(engine.request(prompt, spec["n_new"]))
        answer({"memory": {**memory_of_self(), "python_bytes": baseline}, **engine.report()})
        os._exit(0)  # nothing is freed: the process ends, and the runtime with it
    except BaseException as error:  # noqa: BLE001 - the job must hear of it
        traceback.print_exc()
        sys.stderr.flush()
        answer({"error": f"{type(error).__name__}: {error}"})
        os._exit(1)


def settle(work: Callable[[], object]) -> None:
    """Work unmeasured for `SETTLE_S`, so that the scheduler has spread our threads over the CPUs.

    After another model's turn its load still counts where it ran: new threads are put beside the
    main one instead, and wait for each other in turn. (Models of a few MB, whose tokens take less
    than a millisecond, are slow in turns all the same.)
    """
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end:
        work()


def engine_of(model: dict[str, Any]) -> Any:
    """Return the module that runs a model: of llama.cpp, or of onnxruntime."""
    return importlib.import_module(
        "engine_onnx" if model.get("format") == "onnx" else "engine_llama")


def info(_spec: dict[str, Any], _job: Path) -> dict[str, Any]:
    """Return what llama.cpp says of itself: the kernels that it was built with and uses."""
    return {"system_info": importlib.import_module("engine_llama").system_info()}


def prompt_tokens(n_vocab: int, count: int) -> list[int]:
    """Return `count` token ids, the same in every run."""
    source = random.Random(SEED)  # noqa: S311 - a prompt, not a secret
    return [source.randrange(n_vocab) for _ in range(count)]


def bandwidth(spec: dict[str, Any], _job: Path) -> dict[str, Any]:
    """Return how many bytes a second `threads` threads read from memory together, at best.

    Each searches memory of its own for a byte that is not there: glibc's memchr reads it all.
    """
    threads = spec["threads"]
    size = max(2**24, min(2**26, 2**29 // threads))  # beyond caches, and small on small boards
    libc = ctypes.CDLL(None)
    libc.memchr.restype = ctypes.c_void_p
    libc.memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    buffers = [ctypes.create_string_buffer(size) for _ in range(threads)]
    for buffer in buffers:
        ctypes.memset(buffer, 1, size)  # untouched pages would all be the one zero page

    def scan(number: int) -> None:
        libc.memchr(buffers[number], 0, size)

    seconds: list[float] = []
    end = time.monotonic() + spec.get("seconds", SCAN_S)
    while len(seconds) < 8 or time.monotonic() < end:
        readers = [threading.Thread(target=scan, args=(n,)) for n in range(threads)]
        began = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        seconds.append(time.perf_counter() - began)
    return {"read_bytes_per_s": threads * size / min(seconds)}


JOBS = {"bench": bench, "bandwidth": bandwidth, "info": info}
