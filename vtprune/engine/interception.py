"""A decoder layer's attention, between its rotary embedding and its output projection, in other hands for one call.

Attention modules of transformers ask their config which attention function to call. A stand-in for the config of one
module answers with our name where something else is to be computed, in this thread, in this call; in all others with
the config's own. So no forward is copied, masks are made as ever, and the module's own function is at hand.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from vtprune.compat import attention_function

NAME = "vtprune_stages"

Instead = Callable[[Tensor, Tensor, Tensor], Tensor | None]
"""From queries (rows, heads, slots, dim), keys and values (rows, kv_heads, entries, dim), rotated and with all entries,
to (rows, slots, heads, dim); None: what the module computes by itself."""


class _Local(threading.local):
    instead: Instead | None = None


class Intercepted:
    """What stands in for the config of an attention module, until `remove`.

    Args:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.__dict__.update(_module=module, _config=module.config, _local=_Local())
        module.config = self  # type: ignore[assignment]

    def remove(self) -> None:
        """Give the module its config back."""
        self._module.config = self._config

    def compute(self, instead: Instead | None) -> None:
        """What the next call of the attention function on this thread computes; None: what it always does."""
        self._local.instead = instead

    @property
    def waiting(self) -> bool:
        """Whether that call has not been made."""
        return self._local.instead is not None

    @property
    def _attn_implementation(self) -> str:
        return NAME if self.waiting else self._config._attn_implementation

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_config"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._config, name, value)


def _forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls: (batch, heads, rows, dim) in, (batch, rows, heads, dim) out."""
    config: Any = module.config
    instead: Instead = config._local.instead
    config.compute(None)
    for name in ("softcap", "s_aux", "position_bias", "sliding_window"):
        if kwargs.get(name) is not None:
            raise ValueError(f"methods inside the attention cannot work where it has {name}; use others there.")
    out = instead(query, key, value)
    if out is not None:
        return out.contiguous(), None
    forward = attention_function(module, config._attn_implementation)
    return forward(module, query, key, value, attention_mask, **kwargs)


def dropout_of(module: nn.Module) -> float:
    """Dropout of a module's attention in this mode."""
    return float(getattr(module, "attention_dropout", 0.0)) if module.training else 0.0


def missed(config: Intercepted) -> None:
    """To be called behind a module's forward.

    Raises:
        RuntimeError: The attention function that was waited for has not been called.
    """
    if config.waiting:
        config.compute(None)
        raise RuntimeError(
            "a decoder layer made no attention call that a method could act on: it was compiled, or calls no attention "
            "functions of transformers."
        )


AttentionInterface.register(NAME, _forward)
