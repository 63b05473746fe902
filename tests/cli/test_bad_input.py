"""What a user can mend is one line on stderr: what was given, what is needed, what to do."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcondense.sets.synthetic import SyntheticSet

QUICK = ("--ipc", "1", "--steps", "2", "--no-evaluate")
_BEFORE = rb"\"crc32\":\""  # the digits of a set's checksum, which a sender makes as he likes


class TestBadInput:
    """Each is one line with what was given, what is needed and what to do."""

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("digit",), "no data set is called 'digit'; did you mean 'digits'?"),
            (("digits", "--objective", "dm-rigde"), "did you mean 'dm-ridge'?"),
            (("digits", "--network", "convnet2-w3"), "no network is called"),
            (("digits", "--parametrization", "pixel"), "did you mean 'pixels'?"),
            (("digits", "--method", "k-mean"), "did you mean 'k-means'?"),
            (("digits", "--start", "gausian"), "did you mean 'gaussian'?"),
            (("digits", "--ipc", "0"), "ipc 0"),
            (("digits", "--steps", "-1"), "--steps -1; needed: a whole number from 1"),
            (("digits", "--threads", "0"), "--threads 0; needed: a whole number from 1"),
            (("digits", "--device", "gpu"), "device 'gpu' cannot be used"),
            (("digits", "--plugin", "missing.py"), "missing.py: no such plugin"),
            (("digits", "--method", "random", "--objective", "dm"), "leave one side out"),
            (("npz:nowhere.npz",), "no nowhere.npz here, nor in the data root"),
            (("folder:nowhere",), "no nowhere here, nor in the data root"),
        ],
    )
    def test_of_condense(self, cli: Any, arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
        output = tmp_path / "set.safetensors"
        assert says in cli.refused("condense", *arguments, "--output", output, "--no-evaluate", "--data-root", tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_nan_in_the_data(self, cli: Any, tmp_path: Path) -> None:
        images = np.zeros((4, 8, 8), np.float32)
        images[0, 0, 0] = np.nan
        labels = np.arange(4) % 2
        np.savez(tmp_path / "nan.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        said = cli.refused("condense", f"npz:{tmp_path / 'nan.npz'}", *QUICK, "--output", tmp_path / "set.safetensors")
        assert re.search("(?i)nan|finite", said)

    def test_more_images_than_records_takes_what_is_there_and_says_so(self, start: Any, tmp_path: Path) -> None:
        images, labels = np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2
        images += np.arange(4, dtype=np.uint8)[:, None, None]
        np.savez(tmp_path / "few.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        command = ["condense", f"npz:{tmp_path / 'few.npz'}", "--ipc", 9, "--method", "random", "--no-evaluate"]
        ended = start(tmp_path, *command, "--output", tmp_path / "set.safetensors", "--format", "json").end()
        assert ended.code == 0, ended.err
        assert json.loads(ended.out)["images"] == 4
        assert "they get what is there" in ended.err

    def test_an_output_that_exists_is_refused_before_work_and_kept(self, cli: Any, tmp_path: Path) -> None:
        output = tmp_path / "set.safetensors"
        output.write_text("precious")
        assert "exists; choose another path or pass --overwrite" in cli.refused(
            "condense", "nonsense", "--output", output
        )
        assert output.read_text() == "precious"

    @pytest.mark.parametrize("folder", ["/proc/here", "{tmp}/file"])
    def test_a_folder_that_cannot_be_written_is_refused_before_work(
        self, cli: Any, folder: str, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        output = Path(folder.format(tmp=tmp_path)) / "set.safetensors"
        assert "choose a folder that can be written" in cli.refused("condense", "nonsense", "--output", output)

    def test_a_folder_as_the_output(self, cli: Any, tmp_path: Path) -> None:
        assert "is a folder" in cli.refused("condense", "digits", "--output", tmp_path)

    @pytest.mark.parametrize("name", ["evaluate", "show"])
    @pytest.mark.parametrize("damage", ["missing", "corrupt", "truncated", "newer"])
    def test_a_file_that_is_no_whole_set(self, cli: Any, name: str, damage: str, made: Path, tmp_path: Path) -> None:
        file = tmp_path / "bad.safetensors"
        if damage == "corrupt":
            file.write_bytes(b"\xff" * 100)
        elif damage == "truncated":
            file.write_bytes(made.read_bytes()[:-7])
        elif damage == "newer":
            blob = re.sub(rb'(\\"version\\":)\d', rb"\g<1>9", made.read_bytes(), count=1)
            assert blob != made.read_bytes()
            at = blob.index(_BEFORE) + len(_BEFORE)
            sum_of_both = zlib.crc32(blob[at + 8 :], zlib.crc32(blob[:at]))
            file.write_bytes(blob[:at] + b"%08x" % sum_of_both + blob[at + 8 :])
        options = ("--output", tmp_path / "grid.png") if name == "show" else ()
        said = cli.refused(name, file, *options)
        assert str(file) in said
        if damage == "truncated":
            assert "get it again" in said
        if damage == "newer":
            assert "upgrade fedcondense" in said

    def test_a_strangers_file_does_not_choose_what_is_read_from_this_disk(
        self, cli: Any, made: Path, tmp_path: Path
    ) -> None:
        synthetic = SyntheticSet.load(made).with_record(data="folder:/etc")
        file = synthetic.save(tmp_path / "odd.safetensors")
        assert "name the data with --data" in cli.refused("evaluate", file)
        assert "name the data with --data" in cli.refused("relabel", file, "--output", tmp_path / "taught.safetensors")
        assert cli.run("evaluate", file, "--data", "digits", "--seeds", 1).exit_code == 0

    def test_names_in_a_file_cannot_reach_the_terminals_controls(self, cli: Any, made: Path, tmp_path: Path) -> None:
        blob = SyntheticSet.load(made).with_record(data="a name to be!").to_bytes()
        evil = blob.replace(b"a name to be!", rb"\\u001b[31mne")
        assert evil != blob
        at = evil.index(_BEFORE) + len(_BEFORE)
        sum_of_both = zlib.crc32(evil[at + 8 :], zlib.crc32(evil[:at]))
        file = tmp_path / "odd.safetensors"
        file.write_bytes(evil[:at] + b"%08x" % sum_of_both + evil[at + 8 :])
        for command in (("show", file, "--output", tmp_path / "grid.png"), ("evaluate", file)):
            said = cli.refused(*command)
            assert "\x1b" not in said
            assert "U+001B" in said

    def test_no_result_in_a_folder(self, cli: Any, tmp_path: Path) -> None:
        for command in ("report", "show"):
            assert "result.json does not exist" in cli.refused(command, tmp_path)

    def test_missing_data_says_which_files_were_looked_for_and_where(self, cli: Any, tmp_path: Path) -> None:
        said = cli.refused(
            "condense", "tiny-imagenet", "--data-root", tmp_path / "root", "--output", tmp_path / "a.safetensors"
        )
        assert str(tmp_path / "root") in said
        assert "wnids.txt" in said

    def test_zero_seeds(self, cli: Any, made: Path) -> None:
        assert "--seeds 0; needed: a whole number from 1" in cli.refused("evaluate", made, "--seeds", 0)
