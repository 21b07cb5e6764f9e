"""Hosts and addresses, for both ends; imports nothing heavy."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine and reached by nobody else: no proxy leads there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url_of(host: str, port: int) -> str:
    """Return the address of a server; IPv6 hosts stand in brackets."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
