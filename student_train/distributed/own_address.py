"""The address at which gloo tells the other machines to connect to this one."""

import socket
from collections.abc import Mapping
from ipaddress import ip_address

from alignkd.student_train.errors import TrainError

INTERFACE = "GLOO_SOCKET_IFNAME"


def check_own_address(environment: Mapping[str, str]) -> None:
    """Refuse a machine whose own name leads to itself only, in a run on several machines.

    gloo offers the other machines the address of this machine's name. Where /etc/hosts has 127.0.1.1 for it, as
    installers of Debian write it, they connect to themselves, and this machine waits for them.

    Raises:
        TrainError: the message names the interfaces that the user can choose.
    """
    if environment.get(INTERFACE):
        return
    name = socket.gethostname()
    found = _address(name)
    if found is not None and not ip_address(found.partition("%")[0]).is_loopback:
        return
    leads = "is unknown here" if found is None else f"leads to {found}, which other machines cannot reach"
    interfaces = ", ".join(interface for _, interface in socket.if_nameindex() if interface != "lo")
    raise TrainError(
        f"host {name}: its own name {leads}; set {INTERFACE} there to the interface that connects the machines "
        f"(one of {interfaces}), or correct /etc/hosts"
    )


def _address(name: str) -> str | None:
    """The first address of a name that this machine can bind, as gloo chooses it."""
    try:
        entries = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return None
    for family, kind, protocol, _, address in entries:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
        except OSError:
            continue
        return str(address[0])
    return None
