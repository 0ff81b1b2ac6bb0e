"""Print what the number formats cost and lose: the same pruned SmolLM2 in each, in one run.

    python benchmarks/formats.py              prunes SmolLM2 for "100 tokens < 75%" first
    python benchmarks/formats.py --model DIR  takes a checkpoint that is there

All artifacts are measured on this machine in turn, request by request, by what measures on targets.
Two rows are made by the libraries themselves, for comparison: "optimum, dynamic" is optimum's graph
after `quantize_dynamic(per_channel=True, weight_type=QInt8)`, "float32 head" is onnxruntime's
`MatMulNBitsQuantizer` with the output head, and the embedding, left out. Perplexity is taken on the
evaluation text, through the runtime of the artifact.

At last the reply of `edgeprune.on_target.engine_onnx` is timed against onnxruntime-genai's
generator on the same graph, in turn, each in a process of its own, both with the same threads.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.host import describe_machine
from edgeprune.export.artifact import artifact_name, export
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.onnx_formats import BLOCK
from edgeprune.model.shape import Shape
from edgeprune.model.tokenizer import tokenizer_of
from edgeprune.on_target.engine_onnx import Engine
from edgeprune.quality.evaluate import perplexity
from edgeprune.run.options import Options
from edgeprune.run.pipeline import run
from edgeprune.target.interval import ratio_interval
from edgeprune.target.measure import measure, send
from edgeprune.target.measurement import Measurement, Workload
from edgeprune.target.session import open_device
from edgeprune.target.target import LOCAL, load_target

FORMATS = ("Q4_K_M", "Q8_0", "onnx:int8", "onnx:int8-dynamic", "onnx:int4")
OPTIMUM, FLOAT_HEAD = "optimum, dynamic", "onnx:int8, float32 head"
BUDGET, N_PROMPT, N_NEW, REQUESTS = "100 tokens < 75%", 128, 100, 12
PAIRS = 60  # of replies by both generators


def main() -> int:
    """Make, measure and print."""
    parser = argparse.ArgumentParser(description="Compare number formats on one pruned model.")
    parser.add_argument("--model", type=Path, help="a checkpoint; else SmolLM2 is pruned")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # of the exporters
    with TemporaryDirectory() as scratch, Console(stderr=True).status(
            "starting", refresh_per_second=2) as status:
        say = status.update
        source = arguments.model or pruned(Path(scratch), say)
        checkpoint = Checkpoint(source)
        print(f"{describe_machine()}; {datetime.now(UTC):%Y-%m-%d}; {checkpoint.shape.describe()}")
        made = artifacts(checkpoint, Path(scratch), say)
        threads, measured = measure_all(made, arguments.requests, say)
        print(f"{threads} threads, {N_PROMPT} prompt and {N_NEW} new tokens, "
              f"{arguments.requests} requests of each, in turn\n")
        print("| format | size, MiB | peak RAM, MiB | prefill, tokens/s | decode, tokens/s | "
              "perplexity |\n| --- | --- | --- | --- | --- | --- |")
        for name, one in measured.items():
            say(f"perplexity of {name}")
            found = perplexity(made[name], notify=say).perplexity
            print(f"| {name} | {one.file_bytes / 2**20:.1f} | "
                  f"{one.memory.peak_bytes / 2**20:.0f} | {one.prefill_tokens_per_s:.0f} | "
                  f"{one.decode_tokens_per_s:.1f} | {found:.2f} |")
        seen = sorted({d for one in measured.values() for d in one.disturbances})
        print(f"\ndisturbances: {'; '.join(seen) or 'none'}")
        for name in ("onnx:int8", "onnx:int4"):
            say(f"{name}: two generators in turn")
            print(generators(made[name], checkpoint.shape, threads, PAIRS, name))
    return 0


def pruned(scratch: Path, say: Callable[[str], None]) -> Path:
    """Let edgeprune prune SmolLM2 on this machine; return the checkpoint."""
    outcome = run(Options(model="smollm2", target=LOCAL, budget=BUDGET, runs=scratch / "runs",
                          profiles=scratch / "profiles"), notify=say)
    return outcome.directory / "model"


def artifacts(checkpoint: Checkpoint, scratch: Path, say: Callable[[str], None]) -> dict[str, Path]:
    """Return the artifacts by the name of their row."""
    tokenizer = tokenizer_of(checkpoint.path, scratch / "tokenizer.gguf")
    found = {}
    for quant in (*FORMATS, "onnx:fp32"):
        say(f"writing {quant}")
        found[quant] = scratch / artifact_name("smollm2", quant)
        export(checkpoint, tokenizer, found[quant], quant=quant, name="smollm2")
    say("optimum's export, and dynamic quantization")
    found[OPTIMUM] = optimum_dynamic(checkpoint, scratch)
    found[FLOAT_HEAD] = float_head(found["onnx:fp32"], scratch)
    for name in (OPTIMUM, FLOAT_HEAD):
        shutil.copyfile(found["onnx:int8"] / "tokenizer.gguf", found[name] / "tokenizer.gguf")
    return found


def optimum_dynamic(checkpoint: Checkpoint, scratch: Path) -> Path:
    """Export with optimum and quantize dynamically, per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from optimum.exporters.onnx import main_export

    exported, destination = scratch / "optimum", scratch / "optimum-dynamic"
    destination.mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        main_export(str(checkpoint.path), output=str(exported), task="text-generation-with-past",
                    do_validation=False)
        quantize_dynamic(exported / "model.onnx", destination / "model.onnx", per_channel=True,
                         weight_type=QuantType.QInt8)
    return destination


def float_head(exact: Path, scratch: Path) -> Path:
    """Quantize all matrices of a float32 graph but the output head; the embedding stays, too."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    destination = scratch / "float-head"
    destination.mkdir()
    config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, bits=8,
                                          accuracy_level=4)
    quantizer = MatMulNBitsQuantizer(
        onnx.load(exact / "model.onnx"), nodes_to_exclude=["/lm_head/MatMul"],
        algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(destination / "model.onnx"),
                                       use_external_data_format=True)
    return destination


def measure_all(
    made: dict[str, Path], requests: int, say: Callable[[str], None]
) -> tuple[int, dict[str, Measurement]]:
    """Measure all artifacts on this machine, in turn; return the threads and what was seen."""
    workload = Workload(n_prompt=N_PROMPT, n_new=N_NEW, requests=requests)
    with open_device(load_target(LOCAL, Path("targets")), notify=say) as device:
        subjects = [send(device, path) for path in made.values()]
        try:
            found = measure(device, subjects, workload, "measuring all formats")
        finally:
            for path in made.values():
                device.forget(device.remote_name(path))
        return device.threads, dict(zip(made, found, strict=True))


def generators(model: Path, shape: Shape, threads: int, requests: int, name: str) -> str:
    """Time both generators on a graph, in turn; say how their decode compares."""
    (model / "genai_config.json").write_text(json.dumps(genai_config(shape, threads)))
    prompt = np.random.default_rng(0).integers(0, shape.vocab_size, N_PROMPT).tolist()
    context = multiprocessing.get_context("spawn")
    pipes, workers = [], []
    for serve in (serve_engine, serve_genai):
        ours, theirs = context.Pipe()
        workers.append(context.Process(target=serve, args=(theirs, model, prompt, threads),
                                       daemon=True))
        workers[-1].start()
        pipes.append(ours)
        ours.recv()  # loaded and warm
    times: list[list[float]] = [[], []]
    replies: list[list[int]] = [[], []]
    for _ in range(requests):
        for i, pipe in enumerate(pipes):
            pipe.send("request")
            token_ns, replies[i] = pipe.recv()
            times[i].append((token_ns[-1] - token_ns[0]) / (N_NEW - 1) / 1e6)
    for pipe, worker in zip(pipes, workers, strict=True):
        pipe.send(None)
        worker.join()
    own, genai = (float(np.median(one)) for one in times)
    ratio = ratio_interval(times[1], times[0], 50)
    alike = sum(a == b for a, b in zip(*replies, strict=True))
    return (f"{name}, decode of the same graph: engine_onnx {1e3 / own:.1f} tokens/s, "
            f"onnxruntime-genai {1e3 / genai:.1f}; ratio {ratio.point:.3f} "
            f"({ratio.low:.3f} to {ratio.high:.3f}, median of {requests} pairs); "
            f"{alike} of {N_NEW} tokens alike")


def serve_engine(pipe: Connection, model: Path, prompt: list[int], threads: int) -> None:
    """Answer each request with token times and tokens of edgeprune's engine."""
    engine = Engine({"path": str(model / "model.onnx"), "threads": threads, "n_prompt": N_PROMPT,
                     "n_new": N_NEW}, model)

    def once() -> tuple[list[int], list[int]]:
        return engine.request(prompt, N_NEW)["token_ns"], []

    reply = engine.generate(prompt, N_NEW)
    pipe.send(once())
    while pipe.recv():
        pipe.send((once()[0], reply))


def serve_genai(pipe: Connection, model: Path, prompt: list[int], threads: int) -> None:  # noqa: ARG001 - in its config
    """Answer each request with token times and tokens of onnxruntime-genai's generator."""
    import onnxruntime_genai as og

    loaded = og.Model(str(model))

    def once() -> tuple[list[int], list[int]]:
        params = og.GeneratorParams(loaded)
        params.set_search_options(max_length=N_PROMPT + N_NEW, do_sample=False)
        generator = og.Generator(loaded, params)
        times, reply = [], []
        begin = time.perf_counter_ns()
        generator.append_tokens(np.array([prompt], dtype=np.int32))
        for _ in range(N_NEW):
            generator.generate_next_token()
            reply.append(int(generator.get_next_tokens()[0]))
            times.append(time.perf_counter_ns() - begin)
        return times, reply

    pipe.send(once())
    while pipe.recv():
        pipe.send(once())


def genai_config(shape: Shape, threads: int) -> dict[str, Any]:
    """Return what onnxruntime-genai must know of a graph."""
    return {
        "model": {
            "bos_token_id": 0, "eos_token_id": shape.vocab_size, "pad_token_id": 0, "type": "llama",
            "context_length": shape.max_position_embeddings, "vocab_size": shape.vocab_size,
            "decoder": {
                "session_options": {"intra_op_num_threads": threads, "provider_options": []},
                "filename": "model.onnx", "head_size": shape.head_dim,
                "hidden_size": shape.hidden_size,
                "num_attention_heads": shape.num_attention_heads,
                "num_key_value_heads": shape.num_key_value_heads,
                "num_hidden_layers": shape.num_hidden_layers,
                "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask",
                           "past_key_names": "past_key_values.%d.key",
                           "past_value_names": "past_key_values.%d.value"},
                "outputs": {"logits": "logits", "present_key_names": "present.%d.key",
                            "present_value_names": "present.%d.value"}}},
        "search": {"past_present_share_buffer": True, "max_length": N_PROMPT + N_NEW,
                   "do_sample": False, "num_beams": 1, "batch_size": 1},
    }


if __name__ == "__main__":
    sys.exit(main())
