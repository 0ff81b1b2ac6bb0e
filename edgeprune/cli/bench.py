"""The command `edgeprune bench`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli.console import (
    AsJson,
    TargetName,
    Targets,
    open_with_progress,
    print_table,
)


def bench(
    artifact: Annotated[Path, typer.Argument(help=(
        "A .gguf file, or the directory of an ONNX model."))],
    target: TargetName,
    prompt: Annotated[int, typer.Option(min=1, help="Prompt tokens of a request.")] = 32,
    new: Annotated[int, typer.Option(min=2, help="New tokens of a request.")] = 100,
    requests: Annotated[int, typer.Option(min=1, help="Measured requests.")] = 10,
    targets: Targets = Path("targets"),
    as_json: AsJson = False,
) -> None:
    """Measure a GGUF file or an ONNX model on a target; exits 4 when the machine was disturbed.

    Example: edgeprune bench model-Q4_K_M.gguf --target board --prompt 128 --new 64
    """
    from edgeprune.records import Verdict
    from edgeprune.report.tables import measurement_rows
    from edgeprune.target.measure import bench_file
    from edgeprune.target.measurement import Workload

    workload = Workload(n_prompt=prompt, n_new=new, requests=requests)
    with open_with_progress(target, targets) as (device, _):
        measured = bench_file(device, artifact, workload)
    if as_json:
        print(measured.model_dump_json(indent=2))
    else:
        where = " (emulated)" if measured.emulated else ""
        print_table(f"{artifact.name} on {measured.target}{where}", ("measured", "value"),
                     measurement_rows(measured))
        print(measured.system_info.strip())
        for what in measured.disturbances:
            print(f"disturbed: {what}")
    if measured.disturbances:
        raise typer.Exit(Verdict.INCONCLUSIVE.exit_code)
