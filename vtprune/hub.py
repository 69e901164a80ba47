"""Whether the Hub can be asked at all."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

_PATIENCE = 3.0  # seconds


def hub_out_of_reach() -> bool:
    """Whether there is no way to the Hub: not wanted (HF_HUB_OFFLINE), no name service, or nobody answers.

    Known within seconds; without asking, half a minute of retries goes by where there is no net. Behind a proxy it
    counts as reachable.
    """
    if constants.HF_HUB_OFFLINE:
        return True
    if getproxies():
        return False
    hub = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((hub.hostname, hub.port or (80 if hub.scheme == "http" else 443)), _PATIENCE).close()
    except OSError:
        return True
    return False
