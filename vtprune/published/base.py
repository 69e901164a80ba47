"""What is known of one published model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from vtprune.published.tokens import Vocabulary


@dataclasses.dataclass(frozen=True)
class Published:
    """One published model: its numbers, not its weights.

    Args:
        name: The name after `random:`.
        checkpoint: The Hub id of the published weights, to compare with.
        parameters: Number of parameters of the published weights.
        vocabulary: Ids and special tokens.
        make_config: The config for a vocabulary; with True, the small one.
        make_processor: The processor around a tokenizer.
        aliases: Other names that are understood.
    """

    name: str
    checkpoint: str
    parameters: int
    vocabulary: Vocabulary
    make_config: Callable[[Vocabulary, bool], PreTrainedConfig]
    make_processor: Callable[[PreTrainedTokenizerFast], Any]
    aliases: tuple[str, ...] = ()

    def sized(self, small: bool) -> Vocabulary:
        """The vocabulary of the full or the small model."""
        return self.vocabulary.shrunk() if small else self.vocabulary
