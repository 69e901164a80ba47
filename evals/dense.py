r"""Dense sequences: sixteen questions about a picture in one sequence, as if each had been asked alone.

The sequence is `<s>USER: <picture>\n`, then one slot per question with its answer. A mask lets each slot see the prefix
and itself, and its positions go on from the prefix. So the vision tower and the 256 visual tokens are paid for once per
picture and not once per question, which is most of the cost; the results are those of the ordinary prompts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vtprune.evals.auxiliary import Targets, scene_targets
from vtprune.evals.questions import KINDS, Question, ask
from vtprune.evals.scenes import draw_scene, make_scene
from vtprune.evals.tiny_llava import EOS_ID, VISUAL_TOKENS
from vtprune.evals.vocabulary import build_tokenizer

QUESTIONS = 16
SLOT = 13
"""Tokens per slot: the longest question and its answer, without the closing </s>, which is only predicted."""

IGNORED = -100
"""Label of tokens that are not predicted."""

_TRIES = 80


class Item(NamedTuple):
    """A picture with its questions; in a batch every tensor has a leading dimension.

    Attributes:
        picture: (224, 224, 3) uint8.
        targets: What lies under the patches.
        ids: (questions, 13) int64, question and answer of each slot, padded with 0 at the end.
        labels: (questions, 13) int64, the token that follows each answer token, `IGNORED` elsewhere.
        kinds: (questions,) int64, place of each question's kind in `KINDS`; -1 for an empty slot.
    """

    picture: Tensor
    targets: Targets
    ids: Tensor
    labels: Tensor
    kinds: Tensor


@functools.cache
def _tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@functools.cache
def _prefix() -> tuple[list[int], list[int]]:
    """The ids before and behind the picture."""
    tokenizer = _tokenizer()
    return tokenizer("USER: ").input_ids, tokenizer("\n", add_special_tokens=False).input_ids


@functools.lru_cache(maxsize=100_000)
def _ids(text: str) -> tuple[int, ...]:
    return tuple(_tokenizer()(text, add_special_tokens=False).input_ids)


def first_token(text: str) -> int:
    """Id of the first token of a text inside an answer."""
    return _ids(text)[0]


def encode(question: str, answer: str, slot: int = SLOT) -> tuple[list[int], list[int]] | None:
    """Ids and labels of a slot, each of `slot` numbers; None if the question is too long for it."""
    asked = list(_ids(f"{question} ASSISTANT:"))
    answered = [*_ids(f" {answer}"), EOS_ID]
    length = len(asked) + len(answered) - 1
    if length > slot:
        return None
    ids = [*asked, *answered[:-1]] + [0] * (slot - length)
    labels = [IGNORED] * (len(asked) - 1) + answered + [IGNORED] * (slot - length)
    return ids, labels


def make_item(
    seed: int, *, characters: float, questions: int = QUESTIONS, shares: Sequence[float] | None = None
) -> Item:
    """The picture of a seed with its questions, no two alike; the same arguments always give the same item.

    Args:
        seed: Seed of the scene and of the questions.
        characters: Share of objects that carry a character.
        questions: Number of slots; few scenes have too little to ask about, then the last slots stay empty.
        shares: How often each of `KINDS` is drawn, in proportion; None for all alike.
    """
    scene = make_scene(seed, characters=characters)
    rng = np.random.default_rng((seed, 7))
    odds = None if shares is None else np.asarray(shares) / sum(shares)
    drawn = (rng.choice(len(KINDS), p=odds) for _ in range(_TRIES))
    slots = fill_slots(((kind, ask(scene, rng, KINDS[kind])) for kind in drawn), questions, SLOT)
    return Item(torch.from_numpy(np.array(draw_scene(scene))), scene_targets(scene), *slots)


def fill_slots(
    asked: Iterable[tuple[int, Question | None]], questions: int, slot: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Put the first `questions` different questions of (number of the kind, question) into slots of `slot` tokens.

    Returns:
        ids, labels and kinds, as `Item` has them.
    """
    ids, labels = np.zeros((questions, slot), dtype=np.int64), np.full((questions, slot), IGNORED)
    kinds = np.full(questions, -1)
    texts: set[str] = set()
    if questions:
        for kind, question in asked:
            encoded = encode(question.text, question.answer, slot) if question and question.text not in texts else None
            if question is None or encoded is None:
                continue
            ids[len(texts)], labels[len(texts)] = encoded
            kinds[len(texts)] = kind
            texts.add(question.text)
            if len(texts) == questions:
                break
    return torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(kinds)


@functools.lru_cache(maxsize=16)
def dense_mask(prefix: int, questions: int) -> Tensor:
    """Who may look at whom: (1, 1, length, length) bool, length = prefix + 13 questions."""
    slot = torch.cat((torch.full((prefix,), -1), torch.arange(questions).repeat_interleave(SLOT)))
    place = torch.arange(len(slot))
    allowed = (place[:, None] >= place) & ((slot == -1) | (slot[:, None] == slot))
    return allowed[None, None]


def dense_states(
    model: LlavaForConditionalGeneration, features: Tensor, ids: Tensor, kept: Tensor | None = None
) -> Tensor:
    """Run the decoder over dense sequences.

    Args:
        model: The model.
        features: Projected visual tokens, (batch, 256, width).
        ids: Slots, (batch, questions, 13).
        kept: Visual tokens that take part, as sorted numbers (batch, kept), each at its own position; None for all.

    Returns:
        The last hidden states of the slots, (batch, questions, 13, width).
    """
    batch, questions = ids.shape[:2]
    device = features.device
    before, behind = (torch.tensor(part, device=device) for part in _prefix())
    visual = torch.arange(VISUAL_TOKENS, device=device).expand(batch, -1)
    if kept is not None:
        visual = kept
        features = features.gather(1, kept[..., None].expand(-1, -1, features.shape[-1]))
    embed = model.model.language_model.embed_tokens
    parts = [embed(before).expand(batch, -1, -1), features, embed(behind).expand(batch, -1, -1), embed(ids.flatten(1))]
    prefix = len(before) + visual.shape[1] + len(behind)
    start = len(before) + VISUAL_TOKENS
    positions = [
        torch.arange(len(before), device=device).expand(batch, -1),
        visual + len(before),
        (start + torch.arange(len(behind), device=device)).expand(batch, -1),
        (start + len(behind) + torch.arange(SLOT, device=device)).repeat(questions).expand(batch, -1),
    ]
    states = model.model.language_model(
        inputs_embeds=torch.cat([part.to(features.dtype) for part in parts], dim=1),
        attention_mask=dense_mask(prefix, questions).to(device).expand(batch, 1, -1, -1),
        position_ids=torch.cat(positions, dim=1),
        use_cache=False,
    ).last_hidden_state
    return states[:, prefix:].unflatten(1, (questions, SLOT))


def foreground_first(targets: Targets, count: int, generator: torch.Generator) -> Tensor:
    """Numbers of `count` visual tokens, sorted, (batch, count): drawn from the objects, then from the background."""
    objects = targets.words[..., 0] > 0
    order = torch.rand(objects.shape, generator=generator).to(objects.device) + 2.0 * objects
    return order.topk(count, dim=1).indices.sort(dim=1).values
