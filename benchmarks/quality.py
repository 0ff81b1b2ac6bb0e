"""Print how our figures of quality agree with llama.cpp's, and what quantization alone loses.

    python benchmarks/quality.py

SmolLM2 in F16, Q8_0 and Q4_K_M: perplexity on the shipped evaluation text by `edgeprune eval` and
by llama.cpp's own perplexity tool (built on the first run, some minutes), with the same windows; KL
divergence of each from F16.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.host import describe_machine
from benchmarks.llama_perplexity import llama_perplexity
from edgeprune.data import shipped_text
from edgeprune.export.gguf import export_gguf
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.source import resolve_model
from edgeprune.quality.evaluate import evaluate
from edgeprune.quality.windows import Reading, Text

CONTEXT, STRIDE = 512, 256
CHARACTERS = 12_000  # of the text: some 10 windows


def main() -> int:
    """Measure and print."""
    checkpoint = Checkpoint(resolve_model("smollm2")[1])
    content = shipped_text("evaluation")[:CHARACTERS]
    text = Text("the shipped evaluation text", (content,))
    reading = Reading(context=CONTEXT, stride=STRIDE, windows=None)
    print(f"{datetime.now(UTC):%Y-%m-%d}; {describe_machine()}; context {CONTEXT}, "
          f"stride {STRIDE}\n")
    print("| | perplexity | by llama-perplexity | apart | KL from F16, mean | p99 | same first |")
    print("| :-- | --: | --: | --: | --: | --: | --: |")
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "text.txt"
        file.write_text(content, encoding="utf-8")
        exact = Path(scratch) / "F16.gguf"
        for quant in ("F16", "Q8_0", "Q4_K_M"):
            artifact = exact.with_name(f"{quant}.gguf")
            export_gguf(checkpoint, checkpoint.path / "tokenizer.gguf", artifact, quant=quant,
                        name="smollm2")
            found = evaluate(artifact, original=exact, text=text, reading=reading)
            assert found.total is not None  # noqa: S101 - for mypy
            # the tool adds half of the stride to its context, of which it makes more than one where
            # a batch holds them
            asked = str(CONTEXT - STRIDE // 2)
            theirs = llama_perplexity(artifact, file, "--ppl-stride", str(STRIDE), "-c", asked,
                                      "-b", asked)
            ours, kl = found.quality.perplexity, found.total.divergence
            print(f"| {quant} | {ours:.4f} | {theirs:.4f} | {ours / theirs - 1:+.2%} | "
                  f"{kl.kl_mean:.2g} | {kl.kl_p99:.2g} | {kl.top1_agreement:.2%} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
