"""Which machines a download may ask.

A list of links is a stranger's: its addresses may name this machine or the private network that it
stands in, and a server that answers a harmless address may redirect to one of these. Whoever is
asked is judged by the address that the connection really has, once it stands and before the request
is sent, so that no name can lead elsewhere.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import urllib.parse
import urllib.request
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
NAT64 = ipaddress.ip_network("64:ff9b::/96")


class PrivateAddress(Exception):
    """An address of this machine or of a private network, which may not be asked."""


class Asked(urllib.request.Request):
    """A request that says whether it may go to a private network, and whether it did."""

    may_be_private = False
    was_private = False


class Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects stay outside private networks, but for those that begin inside."""

    def redirect_request(self, *arguments: Any) -> Asked | None:
        found = super().redirect_request(*arguments)
        if found is None:
            return None
        asked = Asked(
            found.full_url,
            headers=dict(found.headers),
            origin_req_host=found.origin_req_host,
            unverifiable=True,
        )
        asked.may_be_private = getattr(arguments[0], "was_private", False)
        return asked


class Http(urllib.request.HTTPHandler):
    """http, with a look at who answers."""

    def http_open(self, req: Any) -> Any:
        connection: Any = _guarded(http.client.HTTPConnection, req)
        return self.do_open(connection, req)


class Https(urllib.request.HTTPSHandler):
    """https, with a look at who answers."""

    def https_open(self, req: Any) -> Any:
        connection: Any = _guarded(http.client.HTTPSConnection, req)
        return self.do_open(connection, req)


def _guarded(kind: type[http.client.HTTPConnection], request: Any) -> Any:
    proxied = request.has_proxy() or getattr(request, "_tunnel_host", None)
    # Behind a proxy its own address is met, which often is a private one: what can be judged is
    # where the name leads from here.
    if proxied and leads_to_private(request.full_url):
        request.was_private = True
        if not getattr(request, "may_be_private", False):
            raise PrivateAddress(urllib.parse.urlsplit(request.full_url).hostname)

    def connection(*arguments: Any, **settings: Any) -> http.client.HTTPConnection:
        made = kind(*arguments, **settings)
        plain = made.connect

        def connect() -> None:
            plain()
            if not proxied:
                _judge(made.sock, request)

        made.connect = connect  # type: ignore[method-assign]
        return made

    return connection


def _judge(connected: socket.socket, request: Any) -> None:
    peer = str(connected.getpeername()[0])
    request.was_private = is_private(peer)
    if request.was_private and not getattr(request, "may_be_private", False):
        connected.close()
        raise PrivateAddress(peer)


def is_private(host: str) -> bool:
    """Whether an IP address is none of the public internet: of this machine, of a private network,
    of a group of machines, or reserved. False for a name.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    found = _inner(address)
    return not found.is_global or found.is_multicast or found.is_reserved


def _inner(address: Address) -> Address:
    """The IPv4 address that one of IPv6 stands for, in the forms that lead to one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if inner := address.ipv4_mapped or address.sixtofour:
        return inner
    if address in NAT64 or address.packed[:12] == bytes(12):
        return ipaddress.IPv4Address(address.packed[12:])
    return address


def leads_to_private(url: str) -> bool:
    """Whether the machine that an address names is in a private network, as far as can be told
    now; True for files of this machine.
    """
    try:
        host = urllib.parse.urlsplit(url).hostname
        found = socket.getaddrinfo(host, None) if host else None
    except (OSError, ValueError):  # nothing that can be asked; UnicodeError is a ValueError
        return False
    return found is None or any(is_private(str(entry[4][0])) for entry in found)
