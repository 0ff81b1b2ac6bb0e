"""The layer-by-layer computation equals transformers'."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import LlamaForCausalLM

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.pruning import forward
from edgeprune.pruning.loss import worse_half
from edgeprune.pruning.sample import Sample
from tests.tiny import make_tiny

TOKENS = torch.tensor([[5, 9, 2, 7, 7, 1], [3, 3, 8, 100, 64, 2]])


def _compare(directory: Path) -> None:
    checkpoint = Checkpoint(directory)
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        theirs = model(TOKENS, output_hidden_states=True)
        x = forward.embed(checkpoint, TOKENS)
        positions = forward.positions_of(checkpoint.shape, TOKENS.shape[1])
        for layer in range(checkpoint.shape.num_hidden_layers):
            torch.testing.assert_close(x, theirs.hidden_states[layer], rtol=1e-4, atol=1e-4)
            weights = forward.load_layer(checkpoint, layer)
            x = forward.decoder_layer(x, weights, checkpoint.shape, positions[layer])
        cut = x + torch.linspace(-1, 1, x.shape[-1])
        end, after_cut = (forward.Output(states, forward.output_head(checkpoint))
                          for states in (x, cut))
        (same, other) = forward.losses([end, after_cut], end, Sample.of_one_kind(TOKENS))
        norm, head = model.model.norm, model.lm_head
        changed = head(norm(cut))
    for loss, logits in ((same, theirs.logits), (other, changed)):
        following = F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
        assert abs(loss.nats - float(following)) < 1e-4
    p, q = (logits[:, :-1].double().softmax(-1) for logits in (theirs.logits, changed))
    assert abs(other.divergence - float((p * (p / q).log()).sum(-1).mean())) < 1e-4
    assert same.divergence < 1e-5
    assert other.divergence > 1e-3


def test_hidden_states_and_loss_equal_those_of_transformers(tiny: Path) -> None:
    _compare(tiny)


def test_biases_are_heeded(tmp_path: Path) -> None:
    _compare(make_tiny(tmp_path, "mha-untied", attention_bias=True, mlp_bias=True))


def test_a_model_of_32_bits_is_never_rounded(tiny: Path) -> None:
    assert forward.quick_dtype(Checkpoint(tiny)) == torch.float32


@pytest.mark.smollm2
def test_quick_products_lose_next_to_nothing(smollm2: Path) -> None:
    checkpoint = Checkpoint(smollm2)
    positions = forward.positions_of(checkpoint.shape, TOKENS.shape[1])
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        x = forward.embed(checkpoint, TOKENS)
        for layer in range(checkpoint.shape.num_hidden_layers):
            weights = forward.load_layer(checkpoint, layer, dtype=dtype)
            x = forward.run_layer(x, weights, checkpoint.shape, positions[layer])
        assert x.dtype == torch.float32
        ends.append(forward.Output(x, forward.output_head(checkpoint)))
    with torch.inference_mode():
        (loss,) = forward.losses(ends[1:], ends[0], Sample.of_one_kind(TOKENS))
    assert 0 < loss.divergence < 0.01  # a layer of 30 less is 0.06 at least


def test_divergences_of_large_vocabularies_are_exact() -> None:
    generator = torch.Generator().manual_seed(3)
    states, tokens = torch.randn(4, 128, 8, generator=generator), torch.zeros(4, 128).long()
    head = forward.Head(torch.full((8,), 2.0), torch.randn(49152, 8, generator=generator), 1e-6)
    unpruned = forward.Output(states, head)
    pruned = forward.Output(states + 0.3 * torch.randn(states.shape, generator=generator), head)
    with torch.inference_mode():
        same, other = forward.losses([unpruned, pruned], unpruned,
                                     Sample.of_one_kind(tokens))
        p, q = (one.logits(slice(0, 4)).double().log_softmax(-1) for one in (unpruned, pruned))
    assert same.divergence < 1e-5
    # how exact float32 is depends on the CPU's instructions; one sum over all is off by 1e-3
    assert abs(other.divergence - float((p.exp() * (p - q)).sum(-1).mean())) < 3e-4


def test_what_is_lost_on_the_worse_half_of_the_kinds() -> None:
    generator = torch.Generator().manual_seed(3)
    states, tokens = torch.randn(5, 9, 8, generator=generator), torch.zeros(5, 9).long()
    head = forward.Head(torch.ones(8), torch.randn(32, 8, generator=generator), 1e-6)
    unpruned = forward.Output(states, head)
    pruned = forward.Output(states + torch.randn(states.shape, generator=generator), head)
    text = Sample(tokens, ("a", "b", "a", "b", "c"))
    with torch.inference_mode():
        (loss,) = forward.losses([pruned], unpruned, text)
        (mine,) = forward.losses([pruned], unpruned, text._replace(own="c"))
        alone = [forward.losses([forward.Output(pruned.states[mine], head)],
                                forward.Output(states[mine], head),
                                Sample.of_one_kind(tokens[mine]))[0].divergence
                 for mine in ([0, 2], [1, 3], [4])]
    assert abs(loss.worse - sum(sorted(alone)[1:]) / 2) < 1e-5  # two of three kinds
    assert loss.worse > loss.divergence
    assert abs(mine.worse - (alone[2] + max(alone[:2])) / 2) < 1e-5  # the user's own has half


def test_one_kind_is_its_own_worse_half() -> None:
    assert worse_half({"a": 0.3}) == 0.3
    assert worse_half({"a": 0.1, "b": 0.5, "c": 0.2, "d": 0.4}) == pytest.approx(0.45)
    assert worse_half({"a": -1e-9}) == 0.0  # rounding: no divergence is negative


def test_the_users_own_kind_has_half_of_the_weight() -> None:
    lost = {"a": 0.1, "mine": 0.7, "b": 0.5, "c": 0.2, "d": 0.4}
    assert worse_half(lost, "mine") == pytest.approx((0.7 + 0.45) / 2)
    assert worse_half({**lost, "mine": 0.0}, "mine") == pytest.approx(0.45 / 2)
    assert worse_half({"mine": 0.7}, "mine") == 0.7
