"""Errors as people read them: what was wrong with what they gave; of our own faults only that there is one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
import torch

REFUSED = "That does not work"
"""Over messages about what was given."""

LONGEST = 800
"""Letters of a message."""

_log = logging.getLogger("vtprune.demo")


@contextmanager
def told() -> Iterator[None]:
    """Turn errors into messages in the page; those about what was given say so, all others go to the server's log."""
    try:
        yield
    except gr.Error:
        raise
    except (ValueError, TypeError) as error:
        # A wrong type may be a fault of ours as well: its traceback is kept.
        _log.info("refused: %s", error, exc_info=isinstance(error, TypeError))
        raise gr.Error(_line(str(error)), title=REFUSED, print_exception=False) from None
    except torch.OutOfMemoryError:
        _log.exception("out of memory")
        say = "The device has not enough memory for this. Try a smaller picture, fewer frames or a smaller model."
        raise gr.Error(say, title="Not enough memory", print_exception=False) from None
    except Exception:
        _log.exception("a request failed")
        say = "Something went wrong that you could not know of. The server's log says what."
        raise gr.Error(say, title="Sorry", print_exception=False) from None


def _line(message: str) -> str:
    """One line, as long as people read."""
    line = " ".join(message.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"
