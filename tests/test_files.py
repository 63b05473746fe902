from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedcondense.errors import OutputError
from fedcondense.files import write_file


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
