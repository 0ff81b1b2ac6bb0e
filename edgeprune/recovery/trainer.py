"""Train a Llama on examples: on the text itself, or on an unpruned model's predictions.

In: models, examples, a recipe, a work directory. Out: trained weights in the work directory, and
the losses. The loop, checkpoints and several processes are transformers' and accelerate's
(`accelerate launch`), the examples' tokens TRL's; what distillation minimizes is in
`edgeprune.recovery.losses`. Killed, it goes on from the newest whole checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody uses
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from edgeprune.errors import InputError
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.stock import stock_model
from edgeprune.pruning.forward import multiplies_bfloat16
from edgeprune.recovery.held_out import UNLABELLED
from edgeprune.recovery.losses import state_error, summed_loss
from edgeprune.recovery.recipe import Method, Recipe
from edgeprune.recovery.texts import Examples

CHECKPOINTS = "checkpoints"
WARMUP = 0.05  # of the steps
SAVES = 20  # checkpoints of a training
_STATE = "trainer_state.json"  # what transformers writes last into a checkpoint


class Trained(NamedTuple):
    """What a training leaves.

    Attributes:
        directory: The weights, or the adapters.
        losses: Of each step.
        seconds: That it took, since the last start.
        began_at: The step that the last start went on from; 0 from the beginning.
        n_examples: That it was trained on.
        held_out: Token ids and labels of the examples that it was not trained on.
        processes: That trained.
        is_main: Whether this process is the one that writes.
    """

    directory: Path
    losses: tuple[float, ...]
    seconds: float
    began_at: int
    n_examples: int
    held_out: list[tuple[list[int], list[int]]]
    processes: int
    is_main: bool


class Teacher(NamedTuple):
    """The unpruned model.

    Attributes:
        path: Its checkpoint directory.
        layers: Its layers that the pruned model kept.
    """

    path: Path
    layers: Sequence[int]


class Models(NamedTuple):
    """Who learns, from whom.

    Attributes:
        student: Checkpoint directory of the pruned model.
        teacher: The unpruned model, for distillation.
        tokenizer: Of both.
    """

    student: Path
    teacher: Teacher | None
    tokenizer: PreTrainedTokenizerBase


def train(
    models: Models,
    examples: Examples,
    recipe: Recipe,
    work: Path,
    *,
    key: str = "",
    checkpointing: bool = True,
    notify: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train, or go on with a training that was killed.

    Args:
        models: Who learns, from whom.
        examples: What is trained on.
        recipe: How.
        work: Where checkpoints and the trained weights are kept; another key's are deleted.
        key: Identifies the models and the examples.
        checkpointing: Compute activations again when they are needed, instead of holding them.
        notify: Told what is being done just now.

    Raises:
        UsageError: The batch does not fit the number of processes.
        InputError: TRL refuses the examples.
    """
    arguments = _arguments(recipe, work / CHECKPOINTS, checkpointing=checkpointing)
    arguments.gradient_accumulation_steps = recipe.accumulation(arguments.world_size)
    # transformers 5 has no share of the steps
    arguments.warmup_steps = ceil(WARMUP * recipe.epochs * len(examples.train) / recipe.batch)
    with arguments.main_process_first(local=False):
        newest = _newest_checkpoint(work, key)
    model = stock_model(Checkpoint(models.student), torch.float32)
    try:
        trainer = (_Distiller if recipe.method is Method.DISTILL else SFTTrainer)(
            model=model, args=arguments, processing_class=models.tokenizer,
            train_dataset=Dataset.from_list(examples.train),
            eval_dataset=Dataset.from_list(examples.held_out) if examples.held_out else None,
            peft_config=_adapters(recipe), callbacks=[_Progress(notify)])
    except ValueError as error:  # TRL's, over the examples
        raise InputError(f"{examples.name} cannot be trained on ({error})") from error
    if isinstance(trainer, _Distiller) and models.teacher is not None:
        trainer.learn_from(models.teacher, recipe)
    trainer.remove_callback(PrinterCallback)  # it prints on stdout
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers', over its own ways
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    seconds = time.monotonic() - began
    trainer.save_model(str(work / "trained"))
    losses = tuple(float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    held_out = [(row["input_ids"], row["labels"]) for row in trainer.eval_dataset or ()]
    return Trained(
        directory=work / "trained", losses=losses, seconds=seconds,
        began_at=_step(newest) if newest else 0, n_examples=len(trainer.train_dataset),
        held_out=held_out, processes=arguments.world_size, is_main=trainer.is_world_process_zero())


def _arguments(recipe: Recipe, directory: Path, *, checkpointing: bool) -> SFTConfig:
    on_gpu, several = torch.cuda.is_available(), int(os.environ.get("WORLD_SIZE", "1")) > 1
    return SFTConfig(
        output_dir=str(directory), num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate, lr_scheduler_type="cosine",
        weight_decay=0.0, max_grad_norm=1.0, per_device_train_batch_size=recipe.micro_batch,
        max_length=recipe.n_tokens, seed=recipe.seed, data_seed=recipe.seed,
        bf16=torch.cuda.is_bf16_supported() if on_gpu else multiplies_bfloat16(),
        use_cpu=not on_gpu, ddp_backend="gloo" if several and not on_gpu else None,
        ddp_find_unused_parameters=False, gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False}, dataloader_pin_memory=on_gpu,
        logging_steps=1, report_to="none", disable_tqdm=True, save_strategy="steps",
        save_steps=1 / SAVES, save_total_limit=1, eval_strategy="no")


def _adapters(recipe: Recipe) -> LoraConfig | None:
    """Return LoRA on every matrix of the layers, as QLoRA found it to be needed (2305.14314)."""
    if not recipe.rank:
        return None
    return LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules="all-linear",
                      lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")


def _newest_checkpoint(work: Path, key: str) -> Path | None:
    """Return the newest whole checkpoint; delete those of another training, and broken ones."""
    stamp = work / "key"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != key:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        stamp.write_text(key, encoding="utf-8")
    newest = None
    for path in sorted((work / CHECKPOINTS).glob("checkpoint-*"),
                       key=_step):
        if _is_whole(path):
            newest = path
        else:
            shutil.rmtree(path, ignore_errors=True)
    return newest


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # killed while it was written
        return False
    return True


class _Distiller(SFTTrainer):  # type: ignore[misc]
    """Learns the unpruned model's predictions and, as far as its recipe says, the text."""

    def learn_from(self, teacher: Teacher, recipe: Recipe) -> None:
        """Name what is learnt from."""
        dtype = torch.bfloat16 if self.args.bf16 else torch.float32
        model = stock_model(Checkpoint(teacher.path), dtype).eval()
        model.requires_grad_(requires_grad=False)
        self._teacher = self.accelerator.prepare_model(model, evaluation_mode=True)
        # hidden_states[i + 1] is what layer i puts out; the last one's is normed, and left to KL
        self._taught_layers = [layer + 1 for layer in teacher.layers[:-1]]
        self._recipe = recipe

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False,  # noqa: FBT001, FBT002
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a micro-batch, of the mean over the step's predicted tokens."""
        given = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        wants_states = self._recipe.hidden_weight > 0
        with torch.no_grad():
            taught = self._teacher(**given, use_cache=False, output_hidden_states=wants_states)
        learnt = model(**given, use_cache=False, output_hidden_states=wants_states)
        # a token is predicted at the one before it; what follows an example is not known
        labels = F.pad(inputs["labels"][:, 1:], (0, 1), value=UNLABELLED)
        predicted = labels != UNLABELLED
        loss = summed_loss(taught.logits.flatten(0, 1), learnt.logits.flatten(0, 1),
                           labels.flatten(), self._recipe.text_weight)
        if wants_states:
            theirs = [taught.hidden_states[i] for i in self._taught_layers]
            loss = loss + self._recipe.hidden_weight * predicted.sum() * state_error(
                theirs, learnt.hidden_states[1:-1], predicted)
        count = predicted.sum() if num_items_in_batch is None else num_items_in_batch
        loss = loss / torch.as_tensor(count).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # which DDP takes the mean of
        return (loss, learnt) if return_outputs else loss


class _Progress(TrainerCallback):
    """Tells how far a training is."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._began: tuple[float, int] | None = None

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None, **_: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        now, step = time.monotonic(), state.global_step
        began, first = self._began = self._began or (now, step)
        left = (now - began) / max(step - first, 1) * (state.max_steps - step)
        self._notify(f"training: step {step} of {state.max_steps}, loss {logs['loss']:.3f}"
                     + (f", {left / 60:.0f} min left" if step > first else ""))


def quiet() -> None:
    """Keep what transformers, TRL and datasets say off the terminal; errors stay."""
    import datasets  # noqa: PLC0415 - for this alone
    import transformers  # noqa: PLC0415

    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
