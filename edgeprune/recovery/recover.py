"""Recovery: a pruned checkpoint in, the same shape out, trained.

In: the directory of a pruned model, the unpruned one, a recipe, the user's text. Out: a stock
Llama checkpoint in the precision of the pruned one, and what it came to on text not trained on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import psutil
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from edgeprune.errors import InputError, UsageError
from edgeprune.model.checkpoint import Checkpoint, write_checkpoint
from edgeprune.model.shape import Shape
from edgeprune.model.stock import stock_model, stock_tokenizer
from edgeprune.model.tensors import tensor_specs
from edgeprune.records import digest, file_digest
from edgeprune.recovery.held_out import Labelled, cross_entropy, n_predicted
from edgeprune.recovery.recipe import KindLoss, Method, Pruned, Recipe, Recovered
from edgeprune.recovery.texts import read_examples
from edgeprune.recovery.trainer import Models, Teacher, Trained, quiet, train

MERGED = "merged"


def recover(
    pruned: Pruned,
    destination: Path,
    recipe: Recipe,
    *,
    data: Path | None,
    work: Path,
    checkpointing: bool | None = None,
    notify: Callable[[str], None] = lambda _: None,
) -> Recovered | None:
    """Train a pruned model.

    Args:
        pruned: The model.
        destination: The checkpoint directory to write; what is there is replaced at the end.
        recipe: How it is trained.
        data: The user's text; the shipped calibration kinds when None.
        work: Where a training that is killed is gone on with; deleted at the end.
        checkpointing: Compute activations again instead of holding them; None does so when they
            would take more than half of the RAM that is free.
        notify: Told what is being done just now.

    Returns:
        What it came to; None in a process that is not the first of several.

    Raises:
        InputError: A model or the text cannot be read, or they do not fit each other.
        UsageError: The recipe does not fit the models or the number of processes.
    """
    quiet()
    student = Checkpoint(pruned.path)
    original = None if pruned.original is None else Checkpoint(pruned.original)
    teacher = _teacher(recipe, student, original, pruned.layers)
    tokenizer = _tokenizer(student)
    examples = read_examples(data, tokenizer, recipe.n_tokens)
    notify("hashing the weights")
    key = digest(recipe, student.digest(), original.digest() if original else None,
                 digest(examples.train) if data is None else file_digest(data))
    notify("loading the models")
    if checkpointing is None:
        checkpointing = _activation_bytes(student.shape, recipe) > _room_bytes() / 2
    trained = train(Models(pruned.path, teacher, tokenizer), examples, recipe, work, key=key,
                    checkpointing=checkpointing, notify=notify)
    if not trained.is_main:
        return None
    notify("writing the trained model")
    _write(student, trained, recipe, work, destination)
    models = {"unpruned": original, "pruned": student, "trained": Checkpoint(destination)}
    texts = {kind: [(tokens, tokens) for tokens in windows]
             for kind, windows in examples.kinds.items() if windows}
    kinds = {kind: _judged(models, kind, found, notify) for kind, found in texts.items()}
    own = trained.held_out or [example for found in texts.values() for example in found]
    whole = (_judged(models, "text not trained on", own, notify) if trained.held_out
             else _mean(list(kinds.values())))
    shutil.rmtree(work)
    return Recovered(
        recipe=recipe, text=examples.name, n_examples=trained.n_examples,
        processes=trained.processes, seconds=trained.seconds, began_at=trained.began_at,
        losses=trained.losses, n_held_out=n_predicted(own), kinds=kinds, **whole.model_dump())


def check_text(model: Path, recipe: Recipe, data: Path | None) -> None:
    """See whether a text can be trained on, before hours were spent on what comes first.

    Raises:
        InputError: It holds too little, or the model's tokenizer cannot take it.
    """
    quiet()
    tokenizer = _tokenizer(Checkpoint(model))
    if data is not None:
        read_examples(data, tokenizer, recipe.n_tokens)


def _judged(
    models: Mapping[str, Checkpoint | None], what: str, examples: Sequence[Labelled],
    notify: Callable[[str], None],
) -> KindLoss:
    """Return the cross entropies of the unpruned, the pruned and the trained model on a text."""
    found = list[float | None]()
    for name, checkpoint in models.items():
        notify(f"judging the {name} model on {what}")
        found.append(None if checkpoint is None else cross_entropy(checkpoint, examples))
    return KindLoss.model_validate(dict(zip(KindLoss.model_fields, found, strict=True)))


def _mean(kinds: Sequence[KindLoss]) -> KindLoss:
    """Return the means over kinds of text, all alike."""
    originals = [kind.original for kind in kinds if kind.original is not None]
    return KindLoss(original=fmean(originals) if originals else None,
                    pruned=fmean(kind.pruned for kind in kinds),
                    recovered=fmean(kind.recovered for kind in kinds))


def _teacher(
    recipe: Recipe, student: Checkpoint, original: Checkpoint | None, layers: Sequence[int] | None
) -> Teacher | None:
    """Return who is learnt from.

    Raises:
        UsageError: Nobody is there, or hidden states cannot be compared.
        InputError: The models have different vocabularies.
    """
    if recipe.method is not Method.DISTILL:
        return None
    if original is None:
        raise UsageError("distillation learns from the unpruned model, which is not known",
                         got=str(student.path), remedy="name it with --original, or take "
                         "--method sft")
    ours, theirs = student.shape, original.shape
    if ours.vocab_size != theirs.vocab_size:
        raise InputError(f"{student.path} and {original.path} have different vocabularies",
                         got=f"{ours.vocab_size} and {theirs.vocab_size} tokens",
                         remedy="name the model that it was pruned from")
    if layers is None and ours.num_hidden_layers == theirs.num_hidden_layers:
        layers = range(theirs.num_hidden_layers)
    if recipe.hidden_weight and (layers is None or ours.hidden_size != theirs.hidden_size):
        raise UsageError(
            "hidden states cannot be compared", got=f"{ours.describe()}, of {theirs.describe()}",
            remedy="it takes one hidden size, and all layers or a run directory that tells which "
            "stayed; leave --hidden out")
    return Teacher(original.path, layers or ())


def _tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    tokenizer = stock_tokenizer(checkpoint)
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise InputError("the model's tokenizer names neither a padding nor an end token",
                         got=str(checkpoint.path), remedy="complete its tokenizer_config.json")
    return tokenizer


def _activation_bytes(shape: Shape, recipe: Recipe) -> float:
    """Estimate what the backward pass needs held of a micro-batch, float32.

    Of a token and a layer: eight vectors of hidden states, five of the FFN, queries, keys, values;
    of a token: five rows of the vocabulary.
    """
    heads = shape.num_attention_heads + 2 * shape.num_key_value_heads
    layer = 8 * shape.hidden_size + 5 * shape.intermediate_size + 3 * heads * shape.head_dim
    token = shape.num_hidden_layers * layer + 5 * shape.vocab_size
    return 4.0 * token * recipe.micro_batch * recipe.n_tokens


def _room_bytes() -> float:
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)


def _write(
    student: Checkpoint, trained: Trained, recipe: Recipe, work: Path, destination: Path
) -> None:
    """Write the trained weights as the pruned model's were: config, precision, companions."""
    directory = trained.directory
    if recipe.rank:
        model = stock_model(student, torch.float32)
        merged = PeftModel.from_pretrained(model, str(directory)).merge_and_unload()
        directory = work / MERGED
        merged.save_pretrained(directory)
    found = Checkpoint(directory)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for spec in tensor_specs(student.shape):
            yield spec.name, found.tensor(spec.name).to(student.tensor(spec.name).dtype)

    part = destination.with_name(destination.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    write_checkpoint(part, student.config, tensors(), companions=student.path)
    shutil.rmtree(destination, ignore_errors=True)
    part.rename(destination)
