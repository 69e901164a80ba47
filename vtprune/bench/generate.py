"""The request that is timed: greedy decoding of a fixed number of tokens, as `model.generate` does it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Requested:
    """Inputs as the processor makes them, and how many tokens are to be written."""

    inputs: Mapping[str, Any]
    new_tokens: int = 1


def generate(model: Any, request: Requested) -> Any:
    """Greedy decoding of exactly so many tokens: no token ends the answer."""
    own = model.generation_config
    model.generation_config = copy.deepcopy(own)
    # Not as an argument: generate takes None for "as the model has it".
    model.generation_config.eos_token_id = None
    if own.pad_token_id is None:
        model.generation_config.pad_token_id = 0
    try:
        return model.generate(
            **request.inputs,
            max_new_tokens=request.new_tokens,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
        )
    finally:
        model.generation_config = own
