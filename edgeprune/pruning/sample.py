"""Windows of token ids, each of one kind of text. Pure.

In: the tokens of several kinds, the share of each. Out: a `Sample`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from edgeprune.data.spread import spread
from edgeprune.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


class Windows(NamedTuple):
    """How much text: so many windows of so many tokens."""

    n_windows: int
    n_tokens: int


class Sample(NamedTuple):
    """Windows of several kinds of text.

    Attributes:
        tokens: Token ids, `(b, t)`.
        kinds: What each is of, `(b,)`.
        own: The kind that is the user's own, if one is.
    """

    tokens: Tensor
    kinds: tuple[str, ...]
    own: str | None = None

    @classmethod
    def of_one_kind(cls, tokens: Tensor) -> Sample:
        """Return windows, `(b, t)`, that are all of one kind."""
        return cls(tokens, ("text",) * len(tokens))

    def folds(self, most: int) -> tuple[int, ...]:
        """Return the fold of each window, `(b,)`: a kind is in one, when there are several."""
        names = sorted(set(self.kinds))
        if len(names) == 1:
            return tuple(i % most for i in range(len(self.kinds)))
        return tuple(names.index(kind) % most for kind in self.kinds)


def sample(
    tokens: Mapping[str, Sequence[int]], share: Callable[[str], float], wanted: Windows
) -> Sample:
    """Cut windows out of the tokens of several kinds. Pure.

    Each next window goes to the kind that is furthest behind its share, as long as there
    is text of it; within a kind windows are spread evenly, and none overlap.

    Raises:
        InputError: There are too few tokens.
    """
    import torch  # noqa: PLC0415 - heavy: what is refused before text is read does without

    room = {kind: len(found) // wanted.n_tokens for kind, found in tokens.items()}
    if sum(room.values()) < wanted.n_windows:
        raise InputError("the calibration text is too short",
                         got=f"{sum(map(len, tokens.values()))} tokens",
                         remedy=f"{wanted.n_windows * wanted.n_tokens} are needed; a lower "
                         "--effort needs fewer")
    counts = dict.fromkeys(tokens, 0)
    for _ in range(wanted.n_windows):
        given = sum(counts.values()) + 1
        behind = max((kind for kind in tokens if counts[kind] < room[kind]),
                     key=lambda kind: share(kind) * given - counts[kind])
        counts[behind] += 1
    kinds = [kind for kind, count in counts.items() if count]
    parts = [windows(tokens[kind], Windows(counts[kind], wanted.n_tokens)) for kind in kinds]
    return Sample(torch.cat(parts or [torch.empty(0, wanted.n_tokens, dtype=torch.long)]),
                  tuple(kind for kind in kinds for _ in range(counts[kind])))


def windows(tokens: Sequence[int], wanted: Windows) -> Tensor:
    """Cut windows out of tokens, `(count, n_tokens)`: evenly spread, none overlap another. Pure.

    Raises:
        InputError: There are too few tokens.
    """
    import torch  # noqa: PLC0415

    count, length = wanted
    if len(tokens) < count * length:
        raise InputError("the calibration text is too short", got=f"{len(tokens)} tokens",
                         remedy=f"{count * length} are needed; a lower --effort needs fewer")
    return torch.tensor([list(window) for window in spread(tokens, count, length)])
