"""Which other hosts may reach the server: those in one range of addresses, at this host's own addresses within it."""

import ipaddress
import re
import shutil
import socket
from pathlib import Path

import psutil

from .account import Account
from .errors import PostgresError
from .files import read_file, write_file
from .passfile import ADMIN

OFF = "off"
HBA_FILE = "pg_hba.conf"
BEGIN, END = "# Other hosts (taskyard up --lan); rewritten at each start.", "# End of other hosts."
EXAMPLE = "Write it like 192.168.1.0/24."


def checked_range(text: str) -> str:
    """The range as `network/bits`, or empty for "off". Raises PostgresError where it is none, or all there is."""
    if text.strip().lower() == OFF:
        return ""
    try:
        network = ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise PostgresError(f"{text!r} is not a range of addresses.", EXAMPLE) from None
    if network.prefixlen == 0:
        raise PostgresError(
            f"{network} is everybody.", f"Name the network in which your hosts are, and nobody else. {EXAMPLE}"
        )
    return str(network)


def own_addresses(lan: str) -> list[str]:
    """This host's addresses in the range."""
    network = ipaddress.ip_network(lan)
    found = (ipaddress.ip_address(told) for told in _addresses())
    return [str(address) for address in found if address in network]


def addresses_for(lan: str) -> list[str]:
    """The same, for a range that was just named. Raises PostgresError where this host has none in it."""
    found = own_addresses(lan)
    if not found:
        has = ", ".join(told for told in _addresses() if not ipaddress.ip_address(told).is_loopback) or "none"
        raise PostgresError(f"This host has no address in {lan}; it has: {has}", "Name the range of one of these.")
    return found


def _addresses() -> list[str]:
    families = (socket.AF_INET, socket.AF_INET6)
    # Link-local ones need the interface's name behind them, and nobody types that.
    entries = [entry for found in psutil.net_if_addrs().values() for entry in found if entry.family in families]
    return sorted({entry.address for entry in entries if "%" not in entry.address})


def access_rules(lan: str, tls: bool) -> str:
    """The lines of pg_hba.conf for the range: passwords, TLS where the server has it, no superuser."""
    if not lan:
        return ""
    kind = "hostssl" if tls else "host   "
    return f"{BEGIN}\nhost    all  {ADMIN}  {lan}  reject\n{kind} all  all  {lan}  scram-sha-256\n{END}\n"


def with_rules(hba: str, rules: str) -> str:
    """The text of pg_hba.conf with these rules in place of the earlier ones; what else somebody wrote stays."""
    without = re.sub(rf"^{re.escape(BEGIN)}\n.*?^{re.escape(END)}\n", "", hba, flags=re.MULTILINE | re.DOTALL)
    return without.rstrip("\n") + "\n" + rules


def write_rules(data: Path, rules: str, account: Account) -> None:
    """Bring pg_hba.conf up to date. Raises OSError."""
    text = read_file(data / HBA_FILE)
    if (wanted := with_rules(text, rules)) != text:
        write_file(data / HBA_FILE, wanted, account)


def firewall_hint(lan: str, port: int) -> str | None:
    """The command that lets the range through the firewall that is installed here; None where none is known."""
    family = f"ipv{ipaddress.ip_network(lan).version}"
    if shutil.which("ufw"):
        return f"sudo ufw allow from {lan} to any port {port} proto tcp"
    if shutil.which("firewall-cmd"):
        rule = f'rule family="{family}" source address="{lan}" port port="{port}" protocol="tcp" accept'
        return f"sudo firewall-cmd --permanent --add-rich-rule='{rule}' && sudo firewall-cmd --reload"
    return None
