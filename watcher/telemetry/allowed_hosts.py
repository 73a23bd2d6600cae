"""Decide to which host an HTTP request may be addressed: it keeps web pages away from a server on the loopback.

A page may give its own name our address (DNS rebinding); its requests then come with that name in `Host`. So a server
that listens on the loopback answers to the names of the loopback and to those that an operator allows. One that listens
elsewhere answers to every name unless an operator allows some: how it is called there, only the operator knows. There
an address is as good as a name that is allowed: no name can be rebound into it, and a cluster's probes ask by address.

Pure. Source: RFC 9110, 7.2 (Host); RFC 6761, 6.3 (localhost).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_HOST = re.compile(r"(?:\[([0-9a-f:.%]+)\]|([^:\[\]\s,]+))(?::\d{0,5})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Hosts:
    """The names to which a server answers that listens on `bound`; `allowed` are those that an operator gave."""

    bound: str
    allowed: tuple[str, ...] = ()

    def answers(self, header: str) -> bool:
        """Whether a request with this `Host` is answered."""
        if not self.allowed and not is_loopback(self.bound):
            return True
        name = _name_in(header)
        if name is None:
            return False
        if is_loopback(name) or name in {self.bound.lower(), *(one.lower() for one in self.allowed)}:
            return True
        return not is_loopback(self.bound) and _address(name) is not None


def is_loopback(name: str) -> bool:
    """Whether this address or name can mean only the own machine."""
    address = _address(name)
    return name.lower() == "localhost" if address is None else address.is_loopback


def _name_in(header: str) -> str | None:
    """The host of `name`, `name:port` or `[address]:port`, in lower case; None when it is none."""
    found = _HOST.fullmatch(header.strip().lower())
    return None if found is None else found[1] or found[2].removesuffix(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return None
