"""The network interface at which ranks of several hosts meet."""

import fcntl
import os
import socket
import struct
from collections.abc import MutableMapping, Sequence
from contextlib import suppress

# Names of all hosts of a run, joined by colons; the launcher sets it where there are several.
HOSTS = "GPTX_HOSTS"
_GLOO = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915


def choose_interface(variables: MutableMapping[str, str]) -> None:
    """Tell gloo which interface leads to the other hosts, unless the user has.

    By itself it takes the one of this host's own name, which Debian maps to 127.0.1.1.
    """
    hosts = variables.get(HOSTS, "")
    if hosts and _GLOO not in variables and (found := interface_to(hosts.split(":"))):
        variables[_GLOO] = found


def interface_to(hosts: Sequence[str]) -> str | None:
    """Return the interface that leads to the first host beyond this one, or None."""
    for host in hosts:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.connect((host, 9))  # sends nothing
            address = probe.getsockname()[0]
            if not address.startswith("127."):
                return _interface_of(address)
    return None


def _interface_of(address: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", os.fsencode(name))
            with suppress(OSError):  # it has no address
                answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None
