"""The address that gloo would offer to other machines."""

import socket
from typing import Any

import pytest

from alignkd.student_train.distributed.own_address import check_own_address
from alignkd.student_train.errors import TrainError


def known_as(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def found(name: str, *_: Any, **__: Any) -> list[Any]:
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "gethostname", lambda: "box")
    monkeypatch.setattr(socket, "getaddrinfo", found)
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0"), (3, "ib0")])


def test_a_loopback_address_is_refused_with_the_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    known_as(monkeypatch, "127.0.1.1")
    with pytest.raises(TrainError) as error:
        check_own_address({})
    assert str(error.value) == (
        "host box: its own name leads to 127.0.1.1, which other machines cannot reach; set GLOO_SOCKET_IFNAME there to "
        "the interface that connects the machines (one of eth0, ib0), or correct /etc/hosts"
    )


def test_a_name_that_is_unknown_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    known_as(monkeypatch)
    with pytest.raises(TrainError, match="host box: its own name is unknown here; set GLOO_SOCKET_IFNAME"):
        check_own_address({})


def test_an_interface_that_the_user_has_chosen_is_not_questioned(monkeypatch: pytest.MonkeyPatch) -> None:
    known_as(monkeypatch, "127.0.1.1")
    check_own_address({"GLOO_SOCKET_IFNAME": "eth0"})


def test_the_first_address_that_can_be_bound_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """192.0.2.1 is of no machine; gloo passes it over."""
    known_as(monkeypatch, "192.0.2.1", "127.0.0.1")
    with pytest.raises(TrainError, match=r"leads to 127\.0\.0\.1"):
        check_own_address({})
    known_as(monkeypatch, "0.0.0.0")
    check_own_address({})
