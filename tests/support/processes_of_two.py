"""The environment of two processes that train together on this machine."""

import socket


def place_of_two() -> dict[str, str]:
    """What a launcher sets for each of two processes, without RANK and LOCAL_RANK."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
