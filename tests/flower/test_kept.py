from __future__ import annotations

import logging
import multiprocessing
import os
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch

from fedcondense.data.images import Data, Spec
from fedcondense.errors import OutputError, SettingError
from fedcondense.flower.kept import Kept, keep_data, kept_data
from fedcondense.flower.private_files import write_private

ENTRY = 32  # bytes that an entry takes beside its content


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "kept"


@pytest.fixture(params=["in a folder", "in memory"])
def where(request: pytest.FixtureRequest, folder: Path) -> Path | None:
    return folder if request.param == "in a folder" else None


class TestKeeping:
    def test_what_was_put_is_got_until_it_is_discarded(self, where: Path | None) -> None:
        kept = Kept(where, 10_000)
        assert kept.get("a") is None
        kept.put("a", b"first")
        kept.put("b", b"")
        kept.put("a", b"second")
        assert (kept.get("a"), kept.get("b"), kept.names()) == (b"second", b"", ["a", "b"])
        kept.discard("a")
        kept.discard("never-there")
        assert (kept.get("a"), kept.names()) == (None, ["b"])

    def test_what_was_not_used_for_longest_goes_first(self, where: Path | None) -> None:
        kept = Kept(where, 3 * (100 + ENTRY))
        for name in "abc":
            kept.put(name, bytes(100))
        kept.get("a")
        kept.put("b", bytes(100))  # its own place is enough
        assert kept.names() == ["a", "b", "c"]
        kept.put("d", bytes(100))
        assert kept.names() == ["a", "b", "d"]
        kept.put("e", bytes(150))
        assert kept.names() == ["d", "e"]  # a, then b
        assert sum(len(kept.get(name) or b"") + ENTRY for name in kept.names()) <= kept.limit_bytes

    def test_an_entry_above_the_bound_is_refused_and_nothing_else_goes(self, where: Path | None) -> None:
        kept = Kept(where, 1000)
        kept.put("a", bytes(500))
        with pytest.raises(SettingError, match="big: 1001 bytes to keep; this node keeps at most 1000 in all"):
            kept.put("big", bytes(1001 - ENTRY))
        assert kept.names() == ["a"]
        kept.put("big", bytes(1000 - ENTRY))
        assert kept.names() == ["big"]

    @pytest.mark.parametrize("name", ["a", "..", ".", "-rf", "A.b_c-9", "x" * 128, ".lock", ".a.kept.0.part"])
    def test_names_may_look_like_files_and_are_none(self, where: Path | None, name: str) -> None:
        kept = Kept(where, 1000)
        kept.put(name, b"1")
        kept.put("other", b"2")
        assert (kept.get(name), kept.names()) == (b"1", sorted([name, "other"]))

    @pytest.mark.parametrize("name", ["", "a/b", "../a", "a\\b", "a b", "é", "a\n", "a\0", "x" * 129, "/etc/passwd"])
    def test_what_could_be_a_path_is_no_name(self, where: Path | None, name: str) -> None:
        kept = Kept(where, 1000)
        for act in (kept.get, kept.discard, lambda name: kept.put(name, b"")):
            with pytest.raises(SettingError, match="needed: 1 to 128 letters, digits"):
                act(name)

    @pytest.mark.parametrize("limit", [-1, 1.5, True])
    def test_a_bound_is_a_whole_number(self, where: Path | None, limit: int) -> None:
        with pytest.raises(SettingError, match="needed: a whole number of bytes"):
            Kept(where, limit)


class TestFolder:
    def test_the_next_process_finds_it(self, folder: Path) -> None:
        Kept(folder, 1000).put("a", b"x")
        assert Kept(folder, 1000).get("a") == b"x"

    def test_it_is_its_owners_alone(self, folder: Path) -> None:
        folder.mkdir(parents=True, mode=0o755)
        Kept(folder, 1000).put("a", b"x")
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.name for path in folder.iterdir()} == {"a.kept", ".lock"}
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}

    def test_a_bound_that_was_lowered_holds_from_the_next_entry_on(self, folder: Path) -> None:
        kept = Kept(folder, 10_000)
        for name in "abc":
            kept.put(name, bytes(1000))
        kept = Kept(folder, 500)
        assert kept.get("a") is None
        kept.put("d", b"")
        assert kept.names() == ["d"]

    @pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer", "renamed", "link", "folder", "pipe"])
    def test_a_damaged_entry_is_absent_and_named_and_the_others_serve_on(
        self, folder: Path, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        kept = Kept(folder, 1000)
        kept.put("a", b"precious")
        kept.put("b", b"other")
        path = folder / "a.kept"
        blob = path.read_bytes()
        if damage == "renamed":
            (folder / "b.kept").rename(path)
            kept.put("b", b"other")
        elif damage == "link":
            path.rename(folder.parent / "target")
            path.symlink_to(folder.parent / "target")
        elif damage in ("folder", "pipe"):
            path.unlink()
            path.mkdir() if damage == "folder" else os.mkfifo(path)
        else:
            edits = {"flip": blob[:-1] + b"?", "cut": blob[:-1], "empty": b"", "longer": blob + b"?"}
            path.write_bytes(edits[damage])
        with caplog.at_level(logging.WARNING):
            assert kept.get("a") is None
        assert "what was kept as a is damaged" in caplog.text
        assert kept.get("b") == b"other"
        assert kept.names() == ["b"]
        kept.put("a", b"anew")
        assert kept.get("a") == b"anew"

    @pytest.mark.parametrize("is_read", [False, True])
    def test_a_folder_with_something_in_an_entrys_place_is_put_aside(self, folder: Path, is_read: bool) -> None:
        kept = Kept(folder, 1000)
        (folder / "a.kept" / "deeper").mkdir(parents=True)
        if is_read:
            assert kept.get("a") is None
        kept.put("a", b"anew")
        assert kept.get("a") == b"anew"
        assert len([path for path in folder.iterdir() if (path / "deeper").is_dir()]) == 1

    def test_a_link_in_an_entrys_place_is_replaced_and_never_written_through(self, folder: Path) -> None:
        kept = Kept(folder, 1000)
        outside = folder.parent / "outside"
        outside.write_bytes(b"untouched")
        (folder / "a.kept").symlink_to(outside)
        kept.put("a", b"secret")
        assert (outside.read_bytes(), kept.get("a")) == (b"untouched", b"secret")

    def test_a_lock_that_is_a_link_is_refused(self, folder: Path) -> None:
        kept = Kept(folder, 1000)
        (folder / ".lock").symlink_to(folder.parent / "made")
        with pytest.raises(OutputError, match="needed: a plain file"):
            kept.put("a", b"x")
        assert not (folder.parent / "made").exists()

    def test_a_full_disk_leaves_the_old_entry(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        kept = Kept(folder, 1000)
        kept.put("a", b"old")

        def full(file: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OutputError, match="No space left on device; free the disk"):
                kept.put("a", b"new")
        assert kept.get("a") == b"old"
        assert {path.name for path in folder.iterdir()} == {"a.kept", ".lock"}

    def test_what_a_killed_writer_left_is_cleared_away(self, folder: Path) -> None:
        kept = Kept(folder, 1000)
        (folder / ".a.kept.0123.part").write_bytes(bytes(900))
        (folder / ".ledger.head.0123.part").touch()  # of somebody else
        kept.put("b", b"x")
        assert {p.name for p in folder.iterdir()} == {"b.kept", ".lock", ".ledger.head.0123.part"}

    def test_a_folder_that_cannot_be_made_is_refused_in_a_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="choose a folder of the node's own"):
            Kept(tmp_path / "file" / "kept", 1000)


def test_the_temporary_file_is_one_that_nobody_can_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, real = [], os.replace

    def replace_noted(old: Path, new: Path) -> None:
        names.append(Path(old).name)
        assert Path(old).stat().st_mode & 0o777 == 0o600
        real(old, new)

    monkeypatch.setattr(os, "replace", replace_noted)
    for _ in range(2):
        write_private(tmp_path / "a", b"x")
    assert len(set(names)) == 2
    assert all(name.startswith(".a.") and len(name) == len(".a..part") + 16 for name in names)


def write_many(folder: Path, start: Barrier, mine: int) -> None:
    """Put entries that all processes name alike, each of one byte repeated, and read what is there."""
    kept = Kept(folder, 5 * (5000 + ENTRY))
    start.wait()
    for k in range(40):
        kept.put(f"entry{k % 8}", bytes([mine]) * 5000)
        found = kept.get(f"entry{(k + mine) % 8}")
        if found is not None and (len(found) != 5000 or len(set(found)) != 1):
            os._exit(1)
    os._exit(0)


def test_processes_that_write_side_by_side_mix_nothing_and_keep_to_the_bound(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    processes = [context.Process(target=write_many, args=(folder, start, mine)) for mine in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    kept = Kept(folder, 5 * (5000 + ENTRY))
    assert len(kept.names()) == 5
    assert all(kept.get(name) for name in kept.names())
    assert not caplog.records
    assert not list(folder.glob("*.part"))


class TestData:
    @pytest.fixture
    def data(self) -> Data:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (7, 3, 4, 5), generator=generator).to(torch.uint8)
        spec = Spec("leaves", (3, 4, 5), ("a", "bé", "c"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ("flip",))
        return Data(images, torch.tensor([0, 2, 2, 0, 0, 2, 0]), spec)

    def test_they_come_back_as_they_were(self, where: Path | None, data: Data) -> None:
        kept = Kept(where, 10_000)
        assert kept_data(kept, "site") is None
        assert keep_data(kept, "site", data)
        again = kept_data(kept, "site")
        assert again is not None
        assert torch.equal(again.images, data.images)
        assert torch.equal(again.labels, data.labels)
        assert (again.spec, again.fingerprint) == (data.spec, data.fingerprint)

    def test_names_of_broken_files_come_back(self, where: Path | None, data: Data) -> None:
        kept = Kept(where, 10_000)
        keep_data(kept, "site", Data(data.images, data.labels, data.spec, ("oak/\u00e9.png",)))
        again = kept_data(kept, "site")
        assert again is not None
        assert again.broken == ("oak/\u00e9.png",)

    def test_slices_and_no_data_at_all_come_back_too(self, where: Path | None, data: Data) -> None:
        kept = Kept(where, 10_000)
        for part in (Data(data.images.flip(3)[::2], data.labels[::2], data.spec), data.subset(torch.tensor([]))):
            assert keep_data(kept, "site", part)
            again = kept_data(kept, "site")
            assert again is not None
            assert torch.equal(again.images, part.images)

    def test_data_above_the_bound_are_not_kept_and_the_log_says_so(
        self, where: Path | None, data: Data, caplog: pytest.LogCaptureFixture
    ) -> None:
        kept = Kept(where, 100)
        assert not keep_data(kept, "site", data)
        assert "this node keeps at most 100" in caplog.text
        assert kept_data(kept, "site") is None

    @pytest.mark.parametrize("blob", [b"", b"{}", bytes(8), b"\xff" * 50])
    def test_an_entry_of_another_kind_is_no_data(
        self, where: Path | None, blob: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        kept = Kept(where, 1000)
        kept.put("site", blob)
        assert kept_data(kept, "site") is None
        assert "what was kept as site is no decoded data" in caplog.text

    def test_a_file_of_tensors_that_break_their_spec_is_no_data(self, where: Path | None, data: Data) -> None:
        kept = Kept(where, 10_000)
        data.spec = replace(data.spec, classes=("a",))
        keep_data(kept, "site", data)
        assert kept_data(kept, "site") is None
