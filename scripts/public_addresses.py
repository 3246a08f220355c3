"""Refuses to start Ray where the whole internet could reach it.

python scripts/public_addresses.py ADDRESS ...       addresses of this machine; exit code 2 if one of them is public

In a cluster, Ray's daemons listen on all addresses of a machine, and can't be restricted to some.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Sequence

_ASKED = "BEHIND_FIREWALL"
_REFUSED = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    public = public_addresses(sys.argv[1:] if argv is None else argv)
    if not public or os.environ.get(_ASKED) == "yes":
        return 0
    sys.stderr.write(
        f"error: this machine has the public address {', '.join(public)}, and Ray would listen on it. Let a firewall "
        f"close the ports in docs/cluster.md to others, then begin the `ray start` commands of cluster.yaml with "
        f"`export {_ASKED}=yes;`.\n"
    )
    return _REFUSED


def public_addresses(addresses: Sequence[str]) -> list[str]:
    """Return those addresses, IPv4 or IPv6, that the internet routes."""
    return [address for address in addresses if ipaddress.ip_address(address.split("%")[0]).is_global]


if __name__ == "__main__":
    sys.exit(main())
