"""A tokenizer built in code: bytes, and the family's special tokens at their published ids."""

from __future__ import annotations

import dataclasses

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

SMALL_VOCABULARY = 512


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Which id stands for what.

    Ids between the bytes and the end that name no special token are made-up words, so that whatever a model with
    random weights writes can be read. Text is encoded as bytes only.

    Args:
        size: Number of ids, the `vocab_size` of the config.
        special: Special tokens and their ids, in ascending order.
        end: The special token that ends an answer.
        pad: The special token for padding.
        begin: The special token that the tokenizer puts before every text; None: it puts none.
        first_byte: Id of the byte 0; the 255 others follow.
        named: Special tokens that the family's processor asks the tokenizer for by name.
    """

    size: int
    special: dict[str, int]
    end: str
    pad: str
    begin: str | None = None
    first_byte: int = 0
    named: dict[str, str] = dataclasses.field(default_factory=dict)

    def shrunk(self) -> Vocabulary:
        """The same tokens in `SMALL_VOCABULARY` ids: special tokens above the bytes move down to just after them."""
        after = self.first_byte + 256
        low = {token: i for token, i in self.special.items() if i < self.first_byte}
        high = [token for token in self.special if token not in low]
        special = low | {token: after + rank for rank, token in enumerate(high)}
        return dataclasses.replace(self, size=SMALL_VOCABULARY, special=special)

    def __getitem__(self, token: str) -> int:
        return self.special[token]

    def unspoken(self) -> list[int]:
        """Ids that no answer needs: bytes, which might be control characters, and special tokens except the end's."""
        return sorted({*range(self.first_byte + 256), *self.special.values()} - {self.special[self.end]})

    def tokenizer(self, length: int) -> PreTrainedTokenizerFast:
        """The tokenizer; padding goes to the left, as for generation.

        Args:
            length: Most tokens that the model takes.
        """
        after = self.first_byte + 256
        ids = {_word(i): i for i in range(after, self.size)}
        ids |= {character: self.first_byte + byte for byte, character in enumerate(sorted(ByteLevel.alphabet()))}
        taken = set(self.special.values())
        ids = {token: i for token, i in ids.items() if i not in taken} | self.special
        backend = Tokenizer(BPE(vocab=ids, merges=[]))
        backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
        backend.decoder = ByteLevelDecoder()
        backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in self.special])
        if self.begin is not None:
            backend.post_processor = TemplateProcessing(
                single=f"{self.begin} $A",
                pair=f"{self.begin} $A {self.begin} $B",
                special_tokens=[(self.begin, self.special[self.begin])],
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token=self.begin,
            eos_token=self.end,
            pad_token=self.pad,
            padding_side="left",
            model_max_length=length,
            extra_special_tokens=self.named,
        )


def _word(i: int) -> str:
    """A word of letters for an id, different for every id; the byte-level alphabet writes a space as Ġ."""
    letters = ""
    while i:
        i, digit = divmod(i, 26)
        letters = chr(ord("a") + digit) + letters
    return "Ġ" + letters
