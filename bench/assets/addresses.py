"""Which machines a download may ask.

A list of links is a stranger's: its addresses may name this machine or the private network that it
stands in, and a server that answers a harmless address may redirect to one of these. Whoever is
asked is judged by the address that the connection really has, once it stands and before anything
is sent, so that no name can lead elsewhere.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import urllib.parse
import urllib.request
from typing import Any


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
        return self.do_open(_guarded(http.client.HTTPConnection, req), req)  # type: ignore[arg-type]


class Https(urllib.request.HTTPSHandler):
    """https, with a look at who answers."""

    def https_open(self, req: Any) -> Any:
        return self.do_open(_guarded(http.client.HTTPSConnection, req), req)  # type: ignore[arg-type]


def _guarded(kind: type[http.client.HTTPConnection], request: Any) -> Any:
    def connection(*arguments: Any, **settings: Any) -> http.client.HTTPConnection:
        made = kind(*arguments, **settings)
        plain = made.connect

        def connect() -> None:
            plain()
            # A proxy of the user's own often stands in a private network, and it alone is met.
            if not (request.has_proxy() or getattr(request, "_tunnel_host", None)):
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
    """Whether an IP address is one of this machine or of a private network; False for a name."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_global


def leads_to_private(url: str) -> bool:
    """Whether the machine that an address names is in a private network, as far as can be told
    now; True for files of this machine.
    """
    host = urllib.parse.urlsplit(url).hostname
    if host is None:
        return True
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return any(is_private(str(entry[4][0])) for entry in found)
