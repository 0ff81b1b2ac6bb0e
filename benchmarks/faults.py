"""Put faults into a copy of the code, one at a time, and print which test catches each.

    python benchmarks/faults.py [NUMBER ...]

A test that cannot fail shows nothing. Each fault is one that a tired engineer might write, in
another area of the code; only the tests named beside it are run. It ends with status 1 when one of
them is caught by none. It takes half an hour on two cores, as root (some tests boot a Debian).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Fault(NamedTuple):
    """A fault: in which file of edgeprune what is written instead of what, and who should see."""

    what: str
    file: str
    right: str
    wrong: str
    tests: str


FAULTS = (
    Fault("rows of q and k stay in transformers' order", "export/gguf.py",
          "return halves.swapaxes(1, 2).reshape(array.shape)", "return array",
          "tests/export/test_gguf.py tests/quality/test_verified.py"),
    Fault("a verdict looks at the middle of an interval, not at its ends", "report/verdict.py",
          "verdict=verdict_of(found, limit))", "verdict=verdict_of(_exactly(found.point), limit))",
          "tests/report/test_verdict.py"),
    Fault("what a target receives is not hashed", "target/ssh.py",
          "if found.hexdigest() != expected:", "if False:",
          "tests/target/test_transport.py tests/target/test_ssh.py"),
    Fault("a version that is a hundred times too slow passes its trial",
          "on_target/install/trial.py", "if value > most:", "if value > 100 * most:",
          "tests/on_target/install"),
    Fault("roll-back does not switch", "on_target/install/installer.py",
          "    service.switch(version, old)\n    if old:\n", "    if old:\n",
          "tests/debian/test_deploy.py"),
    Fault("files of a bundle are not hashed", "on_target/install/checks.py",
          'if hashed.hexdigest() != told["sha256"]:', "if False:",
          "tests/on_target/install tests/debian/test_deploy.py"),
    Fault("a signature by anybody passes", "on_target/install/checks.py",
          "if done.returncode:", "if False:",
          "tests/on_target/install tests/debian/test_deploy.py"),
    Fault("plans may be a tenth over the budget", "planning/goals.py",
          "m: max(limit * (1 - margin), corner[m])", "m: max(limit * 1.1, corner[m])",
          "tests/planning"),
    Fault("the output head costs nothing", "planning/cost.py",
          'head = {"head MB": weights_read(shape, self.quant)[HEAD] / 1e6}',
          'head = {"head MB": 0.0}', "tests/planning tests/profiling/test_fit.py"),
    Fault("repair is damped towards zero, not towards the weights", "pruning/repair.py",
          "return prior + self.beyond(prior).change(damping)", "return self.change(damping)",
          "tests/pruning/test_repair.py tests/pruning/test_compress.py"),
    Fault("heads are cut one row off", "pruning/surgery.py",
          "torch.as_tensor(units)[:, None] * width + torch.arange(width)",
          "torch.as_tensor(units)[:, None] * width + (torch.arange(width) + (width > 1)) % width",
          "tests/pruning/test_surgery.py"),
    Fault("Llama 3's interpolation of rotary frequencies is turned round", "model/rope.py",
          "(1 - smooth) / scaling.factor + smooth", "smooth / scaling.factor + 1 - smooth",
          "tests/model/test_rope.py"),
    Fault("a stage is done whatever its inputs were", "rundir.py",
          "strip() == _versioned(key)", 'strip() != ""', "tests/test_rundir.py"),
    Fault("what other processes use is not seen", "target/measurement.py",
          "others / all_ticks > BUSY_LIMIT", "others / all_ticks > 2",
          "tests/target/test_measure.py tests/target/test_fitness.py"),
    Fault("distillation's divergence is the other way round", "recovery/losses.py",
          "divergence = (p * log_p.sub_(log_q)).sum(-1)",
          "divergence = (log_q.exp() * (log_q - log_p)).sum(-1)", "tests/recovery/test_losses.py"),
    Fault("any API key is the right one", "on_target/serve/limits.py",
          'return hmac.compare_digest(told, b"Bearer " + self._key.encode())', "return True",
          "tests/on_target/serve"),
    Fault("an untied output head is written as the embedding", "export/onnx.py",
          "tensors.EMBEDDING if shape.tie_word_embeddings else tensors.PROJECTION",
          "tensors.EMBEDDING", "tests/export/test_onnx.py"),
    Fault("text that was calibrated on may be judged on", "quality/windows.py",
          "if share > SHARED and name in users:", "if share > 2 and name in users:",
          "tests/quality/test_windows.py"),
    Fault("OBS takes no inverse of the Hessian", "pruning/elimination.py",
          "inverse = _damped_inverse(hessian, damping)",
          "inverse = torch.eye(len(hessian), dtype=hessian.dtype)",
          "tests/pruning/test_elimination.py"),
    Fault("the first pre-tokenizer is taken untried", "model/tokenizer.py",
          "if _split(destination, TRAPS) == expected:", "if True:",
          "tests/model/test_tokenizer.py tests/model/test_files.py"),
    Fault("Granite's residual multiplier is forgotten", "pruning/forward.py",
          "return added if shape.residual_multiplier == 1 else", "return added if True else",
          "tests/model/test_families.py"),
    Fault("an adapter that fits in part is merged", "model/adapter.py",
          "if missing or surplus:", "if False:", "tests/model/test_adapter.py"),
)


def main(numbers: list[int]) -> int:
    """Try the faults; return how many no test caught."""
    missed = 0
    with TemporaryDirectory() as scratch:
        copy = Path(scratch) / "copy"
        subprocess.run(["git", "clone", "-q", ROOT, copy], check=True)
        print("| fault | file | caught by | seconds |\n| :-- | :-- | :-- | --: |")
        for number, fault in enumerate(FAULTS, 1):
            if numbers and number not in numbers:
                continue
            began = time.monotonic()
            caught = tried(copy, fault)
            missed += not caught
            print(f"| {number}. {fault.what} | `{fault.file}` | {caught or '**none**'} | "
                  f"{time.monotonic() - began:.0f} |", flush=True)
    return missed


def tried(copy: Path, fault: Fault) -> str:
    """Return the first test that fails with a fault; nothing when none does.

    Raises:
        RuntimeError: The line that it changes is not there.
    """
    file = copy / "edgeprune" / fault.file
    whole = file.read_text(encoding="utf-8")
    if fault.right not in whole:
        raise RuntimeError(f"{fault.file} has no line {fault.right!r}")
    file.write_text(whole.replace(fault.right, fault.wrong), encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=120",
             *fault.tests.split()], cwd=copy, capture_output=True, text=True, check=False,
            timeout=1200, env={**os.environ, "PYTHONPATH": str(copy), "CI": "true"})
    finally:
        file.write_text(whole, encoding="utf-8")
    if found := re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE):
        return f"`{found[1]}`"
    return "a test that does not end" if "Timeout" in done.stdout + done.stderr else ""


if __name__ == "__main__":
    sys.exit(main([int(number) for number in sys.argv[1:]]) > 0)
