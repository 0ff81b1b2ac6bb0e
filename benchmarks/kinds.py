"""Print what cuts lose on each kind of text, by what they were calibrated on, repaired or not.

    python benchmarks/kinds.py [--effort medium] [--calibrations wikitext,broad] [--cuts NAME,...]

SmolLM2, float32: increase of the loss in nats per token over the unpruned model, on windows of 512
tokens of the shipped evaluation kinds and of the WikiText excerpt. `wikitext` is the shipped
calibration excerpt, `broad` the shipped calibration kinds, a passage of each in turn. Nothing is
planned: the cuts are the same in every row of a name, what is kept within a layer is chosen by each
calibration.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from itertools import chain, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from transformers import AutoTokenizer

from benchmarks.host import describe_machine
from edgeprune.cutting import Cutting
from edgeprune.data import shipped_text
from edgeprune.data.kinds import Passage, shipped_kinds
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.model.gguf import GgufModel
from edgeprune.model.source import resolve_model
from edgeprune.pruning import forward
from edgeprune.pruning.calibration import Effort, Windows, windows
from edgeprune.pruning.surgery import cut_layers
from edgeprune.rundir import RunDirectory
from edgeprune.strategies import strategy_of

EVALUATED = Windows(8, 512)
CUTS = {"components": Cuts(components=64), "layers": Cuts(layers=(12, 13, 14, 17)),
        "ffn": Cuts(ffn_channels=512), "layer-and-components": Cuts(layers=(14,), components=64)}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What is lost on each kind of text.")
    parser.add_argument("--effort", default=Effort.MEDIUM, choices=list(Effort))
    parser.add_argument("--calibrations", default="wikitext,broad", help="names with commas")
    parser.add_argument("--cuts", default=",".join(CUTS), help="names with commas")
    arguments = parser.parse_args()
    checkpoint = Checkpoint(resolve_model("smollm2")[1])
    texts = evaluation_windows(checkpoint.path)
    unpruned = {kind: output(checkpoint, tokens) for kind, tokens in texts.items()}
    print(f"{datetime.now(UTC):%Y-%m-%d}; {describe_machine()}; torch {torch.__version__}; "
          f"effort {arguments.effort}\n")
    print(f"| cut | calibrated on | repaired | {' | '.join(texts)} | worst | s |")
    print("| :-- | :-- | :-- |" + " --: |" * (len(texts) + 2), flush=True)
    for calibration in arguments.calibrations.split(","):
        content = shipped_text("calibration") if calibration == "wikitext" else broad_text()
        for name in arguments.cuts.split(","):
            cuts = CUTS[name]
            for repair in (True, False):
                if cuts.components and not repair:
                    continue  # components are what repair makes of a model
                began = time.monotonic()
                found = losses(checkpoint, content, cuts, Effort(arguments.effort), repair, texts,
                               unpruned)
                print(f"| {name} | {calibration} | {'yes' if repair else 'no'} | "
                      + " | ".join(f"{loss:.3f}" for loss in found)
                      + f" | {max(found):.3f} | {time.monotonic() - began:.0f} |", flush=True)
    return 0


def broad_text() -> str:
    """Return the calibration kinds, a passage of each in turn, as running text."""
    kinds = shipped_kinds("calibration").values()
    return "\n\n".join(as_text(passage) for passage in chain(*zip_longest(*kinds)) if passage)


def as_text(passage: Passage) -> str:
    """Return a passage as running text."""
    if isinstance(passage, str):
        return passage
    return "\n".join(f"{message.role.capitalize()}: {message.content}" for message in passage)


def evaluation_windows(model: Path) -> dict[str, torch.Tensor]:
    """Return windows of each kind, `(b, 512)`; conversations as the chat template has them."""
    template = AutoTokenizer.from_pretrained(model)

    def text_of(passage: Passage) -> str:
        if isinstance(passage, str):
            return passage + "\n\n"
        return str(template.apply_chat_template([m._asdict() for m in passage], tokenize=False))

    texts = {"wikitext": shipped_text("evaluation")} | {
        kind: "".join(map(text_of, passages))
        for kind, passages in shipped_kinds("evaluation").items()}
    with GgufModel(model / "tokenizer.gguf", vocab_only=True) as tokenizer:
        return {kind: windows(tokenizer.tokenize(text, special=kind == "dialogue"), EVALUATED)
                for kind, text in texts.items()}


@torch.inference_mode()
def losses(
    checkpoint: Checkpoint, content: str, cuts: Cuts, effort: Effort, repair: bool,  # noqa: FBT001
    texts: dict[str, torch.Tensor], unpruned: dict[str, forward.Output],
) -> list[float]:
    """Return the increase of the loss on each text, nats per token."""
    with TemporaryDirectory() as scratch, Console(stderr=True).status("cutting") as status:
        cutting = Cutting(checkpoint, "smollm2", checkpoint.path / "tokenizer.gguf", content,
                          strategy_of("edgeprune", repair=repair), effort,
                          RunDirectory(Path(scratch)), status.update)
        cutting.write(cuts, Path(scratch) / "out")
        pruned = Checkpoint(Path(scratch) / "out")
        found = []
        for kind, tokens in texts.items():
            ours, theirs = forward.losses([output(pruned, tokens), unpruned[kind]],
                                          unpruned[kind], tokens)
            found.append(ours.nats - theirs.nats)
        return found


@torch.inference_mode()
def output(checkpoint: Checkpoint, tokens: torch.Tensor) -> forward.Output:
    """Return what a model makes of windows."""
    return forward.output_of(checkpoint, cut_layers(checkpoint, Cuts(), {}), tokens)


if __name__ == "__main__":
    sys.exit(main())
