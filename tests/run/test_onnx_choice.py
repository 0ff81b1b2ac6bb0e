"""Which ONNX format is deployed: good enough, and of two ways to int8 the faster on the target."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.cli.test_app import assert_one_line
from tests.conftest import Cli
from tests.run.test_pipeline import QUIET_OR_NOT

pytestmark = pytest.mark.measures
ONNX = ("--format", "onnx:int8")


def test_where_both_ways_to_int8_are_good_enough_the_faster_on_the_target_is_taken(
    cli: Cli, small: Path, tmp_path: Path
) -> None:
    arguments = ("run", str(small), *ONNX, "--target", "local", "--name", "r", "--budget",
                 "4 tokens after 8 < 1 min, size < 80%, kl < 1")
    done = cli(*arguments)
    assert done.returncode in QUIET_OR_NOT, done.stderr
    run = tmp_path / "runs/r"
    measured = json.loads((
        run / "quantization/formats-onnx-int8-onnx-int8-dynamic.json").read_text())["measured"]
    median = {quant: sorted(times[-1] for times in one["token_ns"])
              for quant, one in measured.items()}
    assert set(median) == {"onnx:int8", "onnx:int8-dynamic"}
    faster = min(median, key=lambda quant: sum(median[quant][4:6]))  # of ten
    outcome = json.loads((run / "run.json").read_text())
    assert outcome["quant"] == outcome["reference"] == faster
    assert f"{faster} is taken" in done.stdout + done.stderr
    size = next(j for j in outcome["judgements"] if j["metric"] == "file_bytes")
    assert size["verdict"] == "met"
    # the graph loses nodes with its layers, which is not predicted
    assert size["measured"]["point"] == pytest.approx(outcome["plan"]["cost"]["file_bytes"],
                                                      rel=0.01)
    artifact = run / "artifact" / f"small-{faster.replace(':', '-')}"
    assert {path.name for path in artifact.iterdir()} == {
        "model.onnx", "model.onnx.data", "tokenizer.gguf"}
    assert "onnxruntime" in outcome["system_info"]
    stamps = {path.name: path.read_text() for path in (run / ".stages").iterdir()}

    # had the float32 graph been much better, of the unpruned model or of the pruned one: refused
    for part, refused in (("quantization", "onnx:int8"), ("quality-after", faster)):
        exact = run / f"{part}-onnx-fp32.json"
        told = exact.read_text()
        exact.write_text(json.dumps({**json.loads(told), "perplexity": 1.0}))
        assert_one_line(_last_line(cli(*arguments)), 8, f"{refused} raises perplexity by",
                        "--allow-quality-loss")
        if part == "quantization":
            exact.write_text(told)
    assert cli(*arguments, "--allow-quality-loss").returncode in QUIET_OR_NOT
    kept = {name for name in stamps if "bench" not in name and not name.startswith("formats")}
    assert all((run / ".stages" / name).read_text() == stamps[name] for name in kept)


def _last_line(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Leave of a command's standard error what it said last, without its progress."""
    done.stderr = done.stderr.rstrip().splitlines()[-1]
    return done
