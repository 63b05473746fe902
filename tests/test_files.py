from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedcondense.errors import OutputError
from fedcondense.files import hold, write_file


def test_bytes_come_back_and_missing_folders_are_made(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a" / "b" / "file", b"bytes", overwrite=False)
    assert path.read_bytes() == b"bytes"
    assert [one.name for one in path.parent.iterdir()] == ["file"]


def test_an_existing_file_is_replaced_only_when_told(tmp_path: Path) -> None:
    path = write_file(tmp_path / "file", b"old", overwrite=False)
    with pytest.raises(OutputError, match=r"file exists; choose another path or pass overwrite=True \(--overwrite\)"):
        write_file(path, b"new", overwrite=False)
    assert path.read_bytes() == b"old"
    assert write_file(path, b"new", overwrite=True).read_bytes() == b"new"


def test_until_all_is_written_readers_see_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_file(tmp_path / "file", b"old", overwrite=False)
    seen: list[bytes] = []
    sync = os.fsync

    def look(descriptor: int) -> None:
        sync(descriptor)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            seen.append(path.read_bytes())

    monkeypatch.setattr(os, "fsync", look)
    write_file(path, b"new and longer", overwrite=True)
    assert seen == [b"old"]
    assert path.read_bytes() == b"new and longer"


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "set", tmp_path / "file" / "deeper" / "set", tmp_path / "folder"):
        with pytest.raises(OutputError, match="free the disk or choose a folder that can be written"):
            write_file(path, b"bytes", overwrite=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestModes:
    @pytest.fixture(params=[0o022, 0o077, 0o002])
    def umask(self, request: pytest.FixtureRequest) -> Iterator[int]:
        before = os.umask(request.param)
        yield request.param
        os.umask(before)

    def test_a_new_file_has_the_umasks_mode(self, umask: int, tmp_path: Path) -> None:
        assert mode(write_file(tmp_path / "file", b"", overwrite=True)) == 0o666 & ~umask

    @pytest.mark.parametrize("own", [0o600, 0o640, 0o444, 0o755])
    def test_a_replaced_one_keeps_its_own(self, own: int, umask: int, tmp_path: Path) -> None:
        path = write_file(tmp_path / "file", b"old", overwrite=True)
        path.chmod(own)
        assert mode(write_file(path, b"new", overwrite=True)) == own
        assert path.read_bytes() == b"new"

    def test_a_private_one_is_its_owners_whatever_it_was(self, umask: int, tmp_path: Path) -> None:
        path = write_file(tmp_path / "file", b"old", overwrite=True)
        path.chmod(0o666)
        assert mode(write_file(path, b"new", overwrite=True, private=True)) == 0o600

    def test_it_is_never_wider_on_its_way(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, seen, real = write_file(tmp_path / "file", b"old", overwrite=True), [], os.open
        path.chmod(0o600)

        def opened(where: Path, flags: int, *more: int) -> int:
            file = real(where, flags, *more)
            seen.append(stat.S_IMODE(os.fstat(file).st_mode))
            return file

        monkeypatch.setattr(os, "open", opened)
        write_file(path, b"new", overwrite=True)
        assert seen[0] == 0o600


class TestNeighbours:
    def test_its_name_cannot_be_guessed_and_what_lies_there_is_not_followed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outside = tmp_path / "outside"
        outside.write_bytes(b"untouched")
        for guess in (f".file.{os.getpid()}.part", ".file.0123456789abcdef.part"):
            (tmp_path / guess).symlink_to(outside)
        monkeypatch.setattr(secrets, "token_hex", lambda n: "0123456789abcdef")
        with pytest.raises(OutputError, match="File exists; free the disk"):
            write_file(tmp_path / "file", b"new", overwrite=True)
        monkeypatch.undo()
        write_file(tmp_path / "file", b"new", overwrite=True)
        assert outside.read_bytes() == b"untouched"

    def test_what_a_killed_run_left_goes_and_what_another_writes_stays(self, tmp_path: Path) -> None:
        script = (
            "import os, signal, sys\nfrom fedcondense import files\n"
            "os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)\n"
            "files.write_file(sys.argv[1], b'half', overwrite=True)\n"
        )
        killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "file")], check=False)
        assert killed.returncode < 0
        assert len(names(tmp_path)) == 1
        others = [".other.0.part", "file.part", ".file.0.part.txt"]
        for name in others:
            (tmp_path / name).touch()
        (tmp_path / ".file.folder.part").mkdir()
        (tmp_path / ".file.written.part").touch()
        with open(tmp_path / ".file.written.part") as busy:
            fcntl.flock(busy, fcntl.LOCK_EX)
            write_file(tmp_path / "file", b"whole", overwrite=True)
            assert names(tmp_path) == sorted(["file", ".file.folder.part", ".file.written.part", *others])
        write_file(tmp_path / "file", b"whole", overwrite=True)
        assert names(tmp_path) == sorted(["file", ".file.folder.part", *others])

    @pytest.mark.parametrize(
        "error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), MemoryError()]
    )
    def test_whatever_ends_a_write_leaves_the_old_file_and_nothing_else(
        self, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_file(tmp_path / "file", b"old", overwrite=True)

        def fail(file: int) -> None:
            raise error

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
            write_file(path, b"new", overwrite=True)
        assert (path.read_bytes(), names(tmp_path)) == (b"old", ["file"])

    def test_of_two_that_may_not_replace_one_another_one_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The other one's file comes between the look and the writing."""
        real = os.link

        def link(old: Path, new: Path) -> None:
            new.write_bytes(b"the other's")
            real(old, new)

        monkeypatch.setattr(os, "link", link)
        with pytest.raises(OutputError, match="file exists; choose another path"):
            write_file(tmp_path / "file", b"mine", overwrite=False)
        assert ((tmp_path / "file").read_bytes(), names(tmp_path)) == (b"the other's", ["file"])

    def test_a_file_system_without_links_and_locks_serves_all_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def unsupported(*_: object) -> None:
            raise OSError(errno.ENOTSUP, "Operation not supported")

        monkeypatch.setattr(os, "link", unsupported)
        monkeypatch.setattr(fcntl, "flock", unsupported)
        assert write_file(tmp_path / "file", b"bytes", overwrite=False).read_bytes() == b"bytes"
        assert "no files can be locked there; see to it that one process at a time writes there" in caplog.text
        with hold(tmp_path / "file"):
            pass
        assert names(tmp_path) == ["file"]


class TestHold:
    @pytest.mark.parametrize("is_folder", [False, True])
    def test_a_second_run_is_refused_by_a_line_with_the_process_until_the_first_ends(
        self, is_folder: bool, tmp_path: Path
    ) -> None:
        output = tmp_path / "output"
        for _ in range(2):
            with hold(output, is_folder=is_folder):
                said = (
                    rf"output is being written by another run, of process {os.getpid()} \(.*lock is locked\); wait for"
                )
                with pytest.raises(OutputError, match=said), hold(output, is_folder=is_folder):
                    pytest.fail("two at once")
                with hold(tmp_path / "another"):
                    pass
        assert names(tmp_path) == (["output"] if is_folder else [])
        assert not is_folder or not names(output)

    def test_a_killed_run_lets_go(self, tmp_path: Path) -> None:
        script = (
            "import os, signal, sys\nfrom fedcondense.files import hold\n"
            "with hold(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "output")], check=False)
        assert killed.returncode < 0
        assert names(tmp_path) == [".output.lock"]
        with hold(tmp_path / "output"):
            pass
        assert not names(tmp_path)

    def test_whoever_waits_comes_next(self, tmp_path: Path) -> None:
        order: list[str] = []

        def second() -> None:
            with hold(tmp_path / "output", wait=True):
                order.append("second")

        thread = threading.Thread(target=second)
        with hold(tmp_path / "output"):
            thread.start()
            order.append("first")
        thread.join(600)
        assert order == ["first", "second"]
        assert not names(tmp_path)

    def test_a_link_in_the_locks_place_is_refused_in_a_line(self, tmp_path: Path) -> None:
        (tmp_path / ".output.lock").symlink_to(tmp_path / "made")
        with pytest.raises(OutputError, match="choose a folder that can be written"), hold(tmp_path / "output"):
            pass
        assert names(tmp_path) == [".output.lock"]
