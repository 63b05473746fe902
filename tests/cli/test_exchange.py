"""Sets from elsewhere and for elsewhere, by command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from fedcondense.data.loading import load_data
from fedcondense.sets.synthetic import SyntheticSet


@pytest.mark.parametrize("name", ["zoo", "import", "export"])
def test_help_ends_in_an_example_and_documents_the_json_keys(cli: Any, name: str) -> None:
    text = " ".join(cli.run(name, "-h").stdout.split())
    assert re.search(rf"Example: fedcondense {name}", text)
    assert "JSON keys:" in text


def test_zoo_lists_files_that_other_commands_take(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = cli.done("zoo")["sets"]
    assert {"mnist-ipc1", "fashion-mnist-ipc10", "cifar10-ipc10"} <= set(sets)
    assert all(Path(ready["path"]).stat().st_size == ready["nbytes"] for ready in sets.values())
    said = cli.run("zoo")
    assert "cifar10-ipc10" in said.stdout
    monkeypatch.chdir(tmp_path)
    following = shlex.split(re.search(r"next: (.*)", said.stderr)[1])  # type: ignore[index]
    assert cli.run(*following[1:]).exit_code == 0
    assert (tmp_path / following[-1]).read_bytes().startswith(b"\x89PNG")


def test_import_makes_a_set_that_evaluates(cli: Any, tmp_path: Path) -> None:
    spec = load_data("digits").train.spec
    images, labels, output = tmp_path / "images_best.pt", tmp_path / "labels_best.pt", tmp_path / "set.safetensors"
    torch.save(spec.normalise(torch.rand(20, 1, 8, 8)), images)
    torch.save(torch.arange(20) % 10, labels)
    arguments = ("import", images, labels, "--data", "digits", "--method", "mtt", "--output", output)
    assert cli.done(*arguments) == {
        "data": "digits", "method": "mtt", "ipc": 2, "images": 20, "nbytes": output.stat().st_size,
        "output": str(output),
    }  # fmt: skip
    assert cli.done("evaluate", output, "--seeds", 1)["data"] == "digits"
    assert "exists; choose another path or pass --overwrite" in cli.refused(*arguments)


def test_import_of_one_file(cli: Any, tmp_path: Path) -> None:
    both = tmp_path / "res.pt"
    torch.save({"data": [[torch.rand(10, 1, 8, 8), torch.arange(10)]]}, both)
    output = tmp_path / "set.safetensors"
    assert cli.done("import", both, "--data", "digits", "--unit", "--output", output)["ipc"] == 1
    torch.testing.assert_close(
        SyntheticSet.load(output).pixels().images, torch.load(both)["data"][0][0], rtol=0, atol=0.5 / 255 + 1e-6
    )


def test_import_of_something_else_is_one_line_and_writes_nothing(cli: Any, tmp_path: Path) -> None:
    torch.save({"data": [[torch.rand(10, 1, 8, 8), torch.nn.ReLU()]]}, tmp_path / "res.pt")
    output = tmp_path / "set.safetensors"
    said = cli.refused("import", tmp_path / "res.pt", "--data", "digits", "--output", output)
    assert "res.pt: holds torch.nn.modules.activation.ReLU" in said
    assert "did you mean 'digits'" in cli.refused("import", tmp_path / "res.pt", "--data", "digit", "--output", output)
    assert not output.exists()


def test_a_folder_without_a_test_part_is_condensed_where_nothing_is_measured(
    cli: Any, made: Path, tmp_path: Path
) -> None:
    cli.done("export", made, "--output", tmp_path / "images")
    output = tmp_path / "again.safetensors"
    arguments = ("condense", f"folder:{tmp_path / 'images'}", "--ipc", 1, "--method", "random", "--output", output)
    assert "has no test part to measure on; pass --no-evaluate" in cli.refused(*arguments)
    assert not output.exists()
    assert cli.done(*arguments, "--no-evaluate")["images"] == 10


@pytest.mark.parametrize("name", ["images", "arrays.npz"])
def test_export_writes_what_condense_reads(cli: Any, made: Path, name: str, tmp_path: Path) -> None:
    output = tmp_path / name
    arguments = ("export", made, "--output", output, "--data", "digits")
    assert cli.done(*arguments) == {"output": str(output), "images": 10, "test": 364}
    kind = "npz" if name.endswith(".npz") else "folder"
    again = tmp_path / "again.safetensors"
    cli.done("condense", f"{kind}:{output}", "--ipc", 1, "--method", "random", "--no-evaluate", "--output", again)
    first, second = (SyntheticSet.load(path).parts[0].codes["images"] for path in (made, again))
    assert torch.equal(first, second)
    assert "exists; choose another path" in cli.refused(*arguments)
    assert cli.run(*arguments, "--overwrite").exit_code == 0


def test_export_without_test_images_says_so(cli: Any, made: Path, tmp_path: Path) -> None:
    assert cli.done("export", made, "--output", tmp_path / "images")["test"] is None
    assert "repeats the synthetic images" in " ".join(cli.run("export", "-h").stdout.split())
