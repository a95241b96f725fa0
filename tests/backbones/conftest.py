"""Every test of a backbone runs with the network refused: adapters may ask for it only to fetch weights."""

import os
import socket
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[list[str]]:
    """What was asked of the network, which a module's tests must leave empty; HF_HUB_OFFLINE does not help them."""
    from huggingface_hub import constants

    asked: list[str] = []
    connect = socket.socket.connect

    def refuse(*told: object, **_: object) -> None:
        asked.append(repr(told))
        raise RuntimeError(f"the network was asked for {told}")

    def refuse_internet(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            refuse(address)
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(socket.socket, "connect", refuse_internet)
        patch.setattr(socket.socket, "connect_ex", refuse_internet)
        for name in ("create_connection", "getaddrinfo", "gethostbyname"):
            patch.setattr(socket, name, refuse)
        assert "HF_HUB_OFFLINE" not in os.environ
        yield asked
    assert asked == [], "a backbone touched the network"
