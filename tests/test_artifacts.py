"""What an attempt leaves: collected without following it anywhere, then removed to the last file."""

import ctypes
import hashlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from taskyard.runner.sandbox import beneath
from taskyard.runner.sandbox.artifacts import MOST_LEVELS, Artifact, Collected, collect
from taskyard.runner.sandbox.beneath import Opener, Refused, by_openat2, by_walking
from taskyard.runner.sandbox.removal import remove_tree

from .hostile import NOBODY, SECRET, as_ordinary_user, deep, exchanging, in_child, leased, planted

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(autouse=True, params=[by_openat2, by_walking])
def opener(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Opener:
    monkeypatch.setattr(beneath, "opener", request.param)
    return request.param


@pytest.fixture
def folder(temporary_home: Callable[[], Path]) -> Path:
    """A folder that an ordinary user owns, reached by folders that it can enter."""
    made = temporary_home() / "left"
    made.mkdir()
    if os.geteuid() == 0:
        os.chown(made, NOBODY, NOBODY)
    return made


def artifact(path: str, content: bytes, *, kept: bool = True) -> Artifact:
    return Artifact(path, len(content), hashlib.sha256(content).hexdigest(), content if kept else None)


def paths(collected: Collected) -> list[str]:
    return [found.path for found in collected.artifacts]


def test_files_are_collected_in_order_with_their_hashes(tmp_path: Path) -> None:
    contents = {"b": b"2", "a/z": b"", "a/é": b"3" * 10, "a/b/c": b"1", "large": b"x" * 11}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "empty").mkdir()
    found = collect(tmp_path, content_limit=10)
    assert found == Collected(
        [
            *(artifact(name, contents[name]) for name in ("a/b/c", "a/z", "a/é", "b")),
            artifact("large", contents["large"], kept=False),
        ]
    )


@pytest.mark.timed
def test_nothing_but_files_is_collected_and_nothing_blocks(tmp_path: Path) -> None:
    work = planted(tmp_path)
    (work / "hard").unlink()
    os.link(work / "ok.txt", work / "second")
    started = time.monotonic()
    found = collect(work)
    assert time.monotonic() - started < 1
    assert found.artifacts == [artifact(name, b"inside") for name in ("café.txt", "ok.txt", "second", "sub/ok.txt")]
    others = {name for name in os.listdir(work) if (work / name).is_symlink() or not (work / name).is_file()}
    assert {path for path, _ in found.refused} == others - {"sub"} | {"sparse"}
    assert dict(found.refused)["absolute"] == "It is a link."
    assert dict(found.refused)["sparse"].startswith("It is larger than ")
    assert found.complete


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        (b"\xff", "\\udcff"),
        (b"a\nb", "a\\nb"),
        (b"\x1b[2J", "\\x1b[2J"),
        ("gpj.\u202etxt".encode(), "gpj.\\u202etxt"),
        (b"a\\b", "a\\b"),
        (b"C:x", "C:x"),
    ],
)
def test_a_name_that_cannot_be_kept_is_refused_in_printable_form(tmp_path: Path, name: bytes, printed: str) -> None:
    (tmp_path / "sub").mkdir()
    for place in (tmp_path, tmp_path / "sub"):
        Path(os.fsdecode(os.fsencode(place) + b"/" + name)).write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name + b"d")).mkdir()
    found = collect(tmp_path)
    assert found.artifacts == []
    assert {path for path, _ in found.refused} == {printed, f"{printed}d", f"sub/{printed}"}
    assert all(reason.startswith("Its path cannot be kept: ") for _, reason in found.refused)


def test_a_leased_file_is_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with leased(tmp_path / "file"):
        found = collect(tmp_path)
    assert (found.artifacts, found.refused) == ([], [("file", "Another process keeps it from being opened.")])


def test_a_file_that_grows_without_end_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(64 << 20))
    grow = "import os, sys; f = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)\nwhile True: os.write(f, bytes(64))"
    writer = subprocess.Popen([sys.executable, "-c", grow, str(file)])
    try:
        while file.stat().st_size == 64 << 20:
            assert writer.poll() is None
        found = collect(tmp_path, content_limit=1000)
    finally:
        writer.kill()
        writer.wait()
    assert (found.artifacts, found.refused) == ([], [("file", "It grows while it is read.")])


def test_what_cannot_be_read_is_refused(folder: Path) -> None:
    def collected() -> Collected:
        for name in ("closed", "open"):
            (folder / name).mkdir()
            (folder / name / "file").write_bytes(b"x")
        (folder / "open/secret").write_bytes(b"x")
        (folder / "open/secret").chmod(0)
        (folder / "closed").chmod(0)
        return collect(folder)

    found = as_ordinary_user(collected)
    assert found.artifacts == [artifact("open/file", b"x")]
    assert found.refused == [("closed", "Permission denied."), ("open/secret", "Permission denied.")]


def test_each_cap_ends_the_walk_and_says_so(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"{number:02}").write_bytes(b"12345")
    assert collect(tmp_path, most_files=50, most_entries=50, total_limit=250).complete
    for caps in ({"most_files": 49}, {"total_limit": 249}):
        found = collect(tmp_path, **caps)
        assert (paths(found), found.complete) == ([f"{number:02}" for number in range(49)], False)
    found = collect(tmp_path, most_entries=10)
    assert (len(found.artifacts), found.complete) == (10, False)
    assert paths(found) == sorted(paths(found))


def test_a_cap_inside_a_folder_ends_the_whole_walk(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(10):
        (tmp_path / "a" / str(number)).touch()
    (tmp_path / "b").touch()
    found = collect(tmp_path, most_entries=5)
    assert (len(found.artifacts), found.complete) == (3, False)


def test_depth_has_a_cap_too(tmp_path: Path) -> None:
    deep(tmp_path, 300, 0o700)
    found = collect(tmp_path)
    assert len(found.artifacts) == MOST_LEVELS
    assert [reason for _, reason in found.refused] == [f"It is more than {MOST_LEVELS} folders deep."]
    assert remove_tree(tmp_path)


def test_no_other_mount_is_collected() -> None:
    assert dict(collect(Path("/dev")).refused)["shm"] == "It leads to another file system."


def test_the_folder_itself_may_be_no_link(tmp_path: Path) -> None:
    work = planted(tmp_path)
    for name in ("outward", "absent", "ok.txt", "pipe"):
        with pytest.raises(Refused):
            collect(work / name)


def test_collecting_wins_against_links_that_are_swapped_in(tmp_path: Path) -> None:
    for name, content in {"outside": SECRET, "work/door": b"inside"}.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "secret").write_bytes(content)
    (tmp_path / "work/trap").symlink_to(tmp_path / "outside")
    taken: dict[bool, int] = {True: 0, False: 0}
    with exchanging(tmp_path / "work/door", tmp_path / "work/trap"):
        until = time.monotonic() + 2
        while time.monotonic() < until or not all(taken.values()):
            assert time.monotonic() < until + 60, "the racing process is not seen"
            found = collect(tmp_path / "work")
            assert {kept.content for kept in found.artifacts} <= {b"inside"}
            taken[bool(found.artifacts)] += 1


# Removal.


def removed_with_few_descriptors(folder: Path) -> bool:
    held = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 8, held + 8))
    return remove_tree(folder)


@pytest.mark.parametrize(("levels", "mode"), [(3000, 0), *((5, mode) for mode in range(0o100, 0o1000, 0o100))])
def test_thousands_of_levels_without_permissions_are_removed_by_their_owner(
    folder: Path, levels: int, mode: int
) -> None:
    tree = folder / "tree"

    def left_and_removed() -> bool:
        tree.mkdir()
        deep(tree, levels, mode)
        return removed_with_few_descriptors(tree)

    assert as_ordinary_user(left_and_removed)
    assert not tree.exists()


@as_root
def test_root_removes_what_an_ordinary_user_left(folder: Path) -> None:
    as_ordinary_user(lambda: deep(folder, 3000, 0))
    assert in_child(lambda: removed_with_few_descriptors(folder))
    assert not folder.exists()


@pytest.mark.parametrize("thousands", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_thousands_of_files_are_removed(tmp_path: Path, thousands: int) -> None:
    tree = tmp_path / "tree"
    for number in range(thousands):
        (tree / str(number)).mkdir(parents=True)
        held = os.open(tree / str(number), os.O_RDONLY)
        # Names of one file, as so many files are slow to make on a busy disk.
        os.mknod("0", dir_fd=held)
        for name in range(1, 1000):
            os.link("0", str(name), src_dir_fd=held, dst_dir_fd=held)
        os.close(held)
    assert remove_tree(tree)
    assert os.listdir(tmp_path) == []


def test_links_are_removed_and_never_followed(tmp_path: Path) -> None:
    work = planted(tmp_path)
    (tmp_path / "outside").chmod(0o555)
    (tmp_path / "outside/secret").chmod(0o444)
    assert remove_tree(work)
    assert os.listdir(tmp_path) == ["outside"]
    assert (tmp_path / "outside").stat().st_mode & 0o777 == 0o555
    assert (tmp_path / "outside/secret").stat().st_mode & 0o777 == 0o444
    assert (tmp_path / "outside/secret").read_bytes() == SECRET


def test_only_the_name_is_removed_where_it_is_no_folder(tmp_path: Path) -> None:
    work = planted(tmp_path)
    for name in ("outward", "inner", "loop", "pipe", "ok.txt"):
        assert remove_tree(work / name)
        assert not os.path.lexists(work / name)
    assert (tmp_path / "outside/secret").read_bytes() == SECRET
    assert (work / "sub/ok.txt").exists()


def test_what_is_absent_is_gone(tmp_path: Path) -> None:
    assert remove_tree(tmp_path / "absent")
    assert remove_tree(tmp_path / "absent/too")


def test_nothing_is_removed_through_a_link_in_the_path(tmp_path: Path) -> None:
    work = planted(tmp_path)
    assert not remove_tree(work / "outward/secret")
    assert (tmp_path / "outside/secret").read_bytes() == SECRET


def test_links_swapped_in_while_it_is_removed_lead_nowhere(tmp_path: Path) -> None:
    outside, work = tmp_path / "outside", tmp_path / "work"
    (outside / "door").mkdir(parents=True)
    (outside / "door/secret").write_bytes(SECRET)
    until = time.monotonic() + 2
    while time.monotonic() < until:
        (work / "door").mkdir(parents=True)
        for number in range(50):
            (work / "door" / str(number)).mkdir()
            (work / "door" / str(number) / "secret").touch()
        (work / "trap").symlink_to(outside)
        with exchanging(work / "door", work / "trap"):
            remove_tree(work)
        assert (outside / "door/secret").read_bytes() == SECRET
        remove_tree(work)
    assert not work.exists()


def test_a_folder_moved_away_while_it_is_emptied_leads_nowhere(
    tmp_path: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    for name in ("tree/a/first/x", "tree/a/second/x", "outside/first", "outside/second"):
        (tmp_path / name).mkdir(parents=True)

    def moving(directory: int, parts: Sequence[str], flags: int, *, crossing: bool = False) -> int:
        opened = opener(directory, parts, flags, crossing=crossing)
        if list(parts) in (["first"], ["second"]) and not (outside / "moved").exists():
            os.rename(parts[0], outside / "moved", src_dir_fd=directory)
        return opened

    monkeypatch.setattr(beneath, "opener", moving)
    assert remove_tree(tree)
    assert sorted(os.listdir(outside)) == ["first", "moved", "second"]


@as_root
def test_what_belongs_to_another_stays_and_is_reported(folder: Path) -> None:
    (folder / "tree/others").mkdir(parents=True)
    (folder / "tree/others/file").touch()
    os.chown(folder / "tree", NOBODY, NOBODY)

    def removed() -> bool:
        (folder / "tree/mine").mkdir()
        (folder / "tree/mine/file").touch()
        return remove_tree(folder / "tree")

    assert not as_ordinary_user(removed)
    assert os.listdir(folder / "tree") == ["others"]
    assert remove_tree(folder / "tree")


@pytest.fixture
def mounts() -> Iterator[Callable[[Path], None]]:
    """Mounts a file system in a mount namespace of our own; for use in a child process."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, recursively_private = 0x20000, 0x44000  # CLONE_NEWNS; MS_REC | MS_PRIVATE

    def mount(place: Path) -> None:
        assert libc.unshare(new_mounts) == 0, os.strerror(ctypes.get_errno())
        assert libc.mount(b"none", b"/", None, recursively_private, None) == 0
        assert libc.mount(b"none", os.fsencode(place), b"tmpfs", 0, None) == 0

    yield mount


@as_root
def test_another_mount_is_left_alone(tmp_path: Path, mounts: Callable[[Path], None]) -> None:
    tree = tmp_path / "tree"
    (tree / "sub/mount").mkdir(parents=True)
    (tree / "sub/file").touch()

    def removed_around_it() -> tuple[bool, list[str], list[str]]:
        mounts(tree / "sub/mount")
        (tree / "sub/mount/kept").touch()
        return remove_tree(tree), os.listdir(tree / "sub"), os.listdir(tree / "sub/mount")

    assert in_child(removed_around_it) == (False, ["mount"], ["kept"])
    assert remove_tree(tree)
