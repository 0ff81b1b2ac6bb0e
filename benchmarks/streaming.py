"""Print the peak RAM of cutting an 8B model, and of taking its activation statistics.

    python benchmarks/streaming.py [--layers 32] [--windows 2] [--scratch DIR]

A synthetic checkpoint of Llama 3.1 8B's shape in bfloat16 (random weights, the same in every layer,
16 GB on disk) is cut to 24 layers, three quarters of the KV groups and an FFN of 10240, without
repair; then statistics are taken of all its layers, which leaves 0.9 GB a layer on disk. Each runs
in a process of its own. Needs 48 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.host import describe_machine, peak_rss_bytes
from edgeprune.model.checkpoint import Checkpoint, write_checkpoint
from edgeprune.model.cuts import Cuts, LayerImportance, kept_in_layer, kept_layers
from edgeprune.model.shape import Shape, config_of_shape, shape_of_config
from edgeprune.model.tensors import tensor_specs
from edgeprune.pruning.statistics import measure_statistics
from edgeprune.pruning.surgery import prune

HERE = Path(__file__).parent
CUTS = Cuts(layers=tuple(range(20, 28)), kv_groups=2, ffn_channels=4096)
WINDOW_TOKENS = 512


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Peak RAM for an 8B model.")
    parser.add_argument("--layers", type=int, default=32, help="of the synthetic model")
    parser.add_argument("--windows", type=int, default=2, help="of 512 tokens, for statistics")
    parser.add_argument("--scratch", type=Path, help="a directory with 48 GB of room")
    parser.add_argument("--alone", choices=("compress", "statistics"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        _alone(arguments)
        return 0
    with TemporaryDirectory(dir=arguments.scratch) as scratch:
        os.environ["TMPDIR"] = scratch
        shape = _write(Path(scratch) / "model", arguments.layers)
        size = sum(file.stat().st_size for file in (Path(scratch) / "model").iterdir())
        print(f"{datetime.now(UTC):%Y-%m-%d}; {describe_machine()}; {shape.describe()}, bfloat16, "
              f"{size / 1e9:.1f} GB")
        for step in ("compress", "statistics"):
            argv = [sys.executable, __file__, "--alone", step, "--scratch", scratch,
                    "--windows", str(arguments.windows)]
            done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout)
            print(f"{step}: peak RSS {found['peak'] / 1e9:.2f} GB, {found['seconds']:.0f} s "
                  f"({found['what']})", flush=True)
    return 0


def _alone(arguments: argparse.Namespace) -> None:
    checkpoint, began = Checkpoint(arguments.scratch / "model"), time.monotonic()
    shape = checkpoint.shape
    with TemporaryDirectory(dir=arguments.scratch) as out:
        if arguments.alone == "compress":
            cuts = Cuts(**{**CUTS.model_dump(), "layers": tuple(
                i for i in CUTS.layers if i < shape.num_hidden_layers - 1)})
            importance = LayerImportance(
                heads=tuple(torch.rand(shape.num_attention_heads).tolist()),
                channels=tuple(torch.rand(shape.intermediate_size).tolist()))
            kept = {i: kept_in_layer(shape, importance, cuts) for i in kept_layers(shape, cuts)}
            what = prune(checkpoint, cuts, kept, Path(out)).describe()
        else:
            tokens = torch.randint(0, shape.vocab_size, (arguments.windows, WINDOW_TOKENS))
            measure_statistics(checkpoint, tokens, Path(out))
            what = (f"{arguments.windows} windows of {WINDOW_TOKENS} tokens; each further one "
                    f"adds {WINDOW_TOKENS * shape.hidden_size * 4 / 1e6:.0f} MB")
    print(json.dumps({"peak": peak_rss_bytes(), "seconds": time.monotonic() - began,
                      "what": what}))


def _write(directory: Path, layers: int) -> Shape:
    """Write the synthetic checkpoint."""
    config = json.loads((HERE / "llama-3.1-8b" / "config.json").read_text())
    shape = shape_of_config({**config, "num_hidden_layers": layers})
    # names of the layers differ, their content need not: made once
    made: dict[str, Tensor] = {}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for spec in tensor_specs(shape):
            dims = spec.dims(shape)
            name = spec.name.split(".", 3)[-1]
            if name not in made or spec.layer is None:
                made[name] = (torch.randn(dims, dtype=torch.float32) * 0.02).bfloat16()
            yield spec.name, made[name].clone()  # safetensors refuses tensors that share memory

    write_checkpoint(directory, config_of_shape(shape, config), tensors())
    return shape


if __name__ == "__main__":
    sys.exit(main())
