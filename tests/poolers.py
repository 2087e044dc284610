"""Debian's PgBouncer in transaction mode, in front of a test's database."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from taskyard.runner.postgres.account import server_account

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
SIZE = 3  # server connections per login: fewer than clients, so that each transaction may get another one


@contextmanager
def pgbouncer(dsn: str, folder: Path) -> Generator[str]:
    """Start it in a folder that the server's account may enter; gives the connection string that leads through it."""
    assert PROGRAM is not None
    parts = conninfo_to_dict(dsn)
    user, database = str(parts["user"]), str(parts["dbname"])
    lines = Path(str(parts["passfile"])).read_text().splitlines()
    password = next(line.rsplit(":", 1)[1] for line in lines if line.split(":")[-2] == user)
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    (folder / "users.txt").write_text(f'"{user}" "{password}"\n')
    (folder / "pgbouncer.ini").write_text(
        f"""
[databases]
{database} = host=127.0.0.1 port={parts["port"]} dbname={database}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users.txt
pool_mode = transaction
default_pool_size = {SIZE}
max_client_conn = 200
logfile = {folder}/pgbouncer.log
"""
    )
    account = server_account()
    if account.switch:
        for path in (folder, *folder.iterdir()):
            os.chown(path, account.uid, account.gid)
    process = subprocess.Popen(
        [PROGRAM, "-q", str(folder / "pgbouncer.ini")],
        user=account.uid if account.switch else None,
        group=account.gid if account.switch else None,
        extra_groups=[] if account.switch else None,
    )
    try:
        deadline = time.monotonic() + 10
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "pgbouncer.log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield make_conninfo("", host="127.0.0.1", port=port, user=user, password=password, dbname=database)
    finally:
        process.terminate()
        process.wait(10)
