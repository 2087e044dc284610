"""Which hosts a confined child may reach: patterns of names, and rules for the addresses behind them. Pure.

Patterns are those of scopes.network_allow: example.com is that host, *.example.com all below it and not itself. The
address ranges are those of https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry;
ipaddress.is_global is no substitute, since it takes multicast for global, and changed between releases of 3.11.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

LONGEST_NAME = 253  # characters (RFC 1035, without the trailing dot)

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
# The last label neither is a number nor looks like one: 127.1, 0x7f.1 and 2130706433 are addresses to inet_aton().
_NAME = re.compile(rf"(?:{_LABEL}\.)+(?!0x[0-9a-f]*$|[0-9]+$){_LABEL}")

_NOT_PUBLIC_4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier-grade NAT
            "127.0.0.0/8",
            "169.254.0.0/16",  # link-local, and with it the metadata services of clouds
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",
        ),
    )
)
_PUBLIC_6 = ipaddress.IPv6Network("2000::/3")  # all else is link-local, unique local, multicast, or not given out
_NOT_PUBLIC_6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # Teredo, benchmarking, ORCHID
            "2001:db8::/32",
            "2002::/16",  # 6to4
            "3fff::/20",
        ),
    )
)
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # what DNS64 makes of every IPv4 address, public ones too


@dataclass(frozen=True, slots=True)
class Verdict:
    """One connection that a confined child asked for, noted when it was refused or has ended.

    `host` is as the child wrote it where it is no valid name. `reason` is a clause, to be put after the host and a
    colon. `sent` and `received` are bytes, as seen from the child: of a tunnel, or of the bodies that went through the
    gateway.
    """

    host: str
    port: int
    allowed: bool
    reason: str
    sent: int = 0
    received: int = 0


def host_name(text: str) -> str | None:
    """The name in lower case; None for what is none: an address in any notation, a name without a dot or with one at
    its end, anything but ASCII (internationalised names come as A-labels, xn--...).
    """
    name = text.lower()
    return name if text.isascii() and len(name) <= LONGEST_NAME and _NAME.fullmatch(name) else None


def covers(pattern: str, host: str) -> bool:
    """Whether a pattern admits a host, whatever their case."""
    pattern, host = pattern.lower(), host.lower()
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and host != pattern[1:]
    return pattern == host


def permitted(allow: Iterable[str] | None, host: str) -> bool:
    """Whether any of the patterns admits a host; None admits all, of which public() then leaves the public ones."""
    return allow is None or any(covers(pattern, host) for pattern in allow)


def public(address: str) -> bool:
    """Whether an IPv4 or IPv6 address, as getaddrinfo() writes it, is one on the public internet."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found.scope_id is not None:
            return False
        if found not in _MAPPED and found not in _NAT64:
            return found in _PUBLIC_6 and not any(found in network for network in _NOT_PUBLIC_6)
        found = ipaddress.IPv4Address(found.packed[-4:])
    return not any(found in network for network in _NOT_PUBLIC_4)
