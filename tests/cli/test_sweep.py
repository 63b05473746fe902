"""Sweeps as a user runs them: resumed, killed, failing, side by side."""

from __future__ import annotations

import csv
import json
import re
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedcondense.objectives import OBJECTIVES
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sweeps import KEYS
from fedcondense.training import PROTOCOLS

COMMANDS = ("table", "parametrizations", "architectures", "sensitivity", "scaling")
NETWORK = "convnet1-w16"
QUICK = ("--sets", "2", "--seeds", "1", "--evaluation-steps", "3", "--network", NETWORK)
TABLE = (
    *("sweep", "table", "digits", "--objectives", "dm,kip", "--ipc", "1", "--steps", "2", "--controls", "random"),
    *QUICK,
)


@pytest.fixture(scope="module")
def whole(cli: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a table that ran without interruption."""
    folder = tmp_path_factory.mktemp("sweep") / "whole"
    cli.done(*TABLE, "--output", folder)
    return folder


def table_of(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV but for seconds and memory, which are never the same."""
    costs = ("cpu_seconds", "peak_bytes")
    with open(folder / "table.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key not in costs} for row in csv.DictReader(file)]


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    kept = [*(folder / "cells").iterdir(), *(folder / "sets").iterdir()]
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in kept}


class TestHelp:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_has_an_example_and_the_json_keys(self, cli: Any, name: str) -> None:
        text = " ".join(cli.run("sweep", name, "-h").stdout.split())
        assert re.search(rf"Example: fedcondense sweep {name} digits", text)
        assert "JSON keys:" in text
        assert all(key in text for key in KEYS)

    def test_lists_the_sweeps(self, cli: Any) -> None:
        assert all(name in cli.run("sweep", "--help").stdout for name in COMMANDS)


class TestTable:
    def test_writes_what_it_prints(self, cli: Any, whole: Path) -> None:
        ended = cli.run(*TABLE, "--output", whole)
        assert ended.exit_code == 0
        assert ended.stdout == (whole / "table.md").read_text()
        assert [f"wrote {whole / name}" in ended.stderr for name in ("table.md", "table.csv", "figure.png")] == [
            True
        ] * 3

    def test_rows_have_the_documented_keys_in_the_order_of_the_csv(self, cli: Any, whole: Path) -> None:
        result = cli.done(*TABLE, "--output", whole)
        assert list(result) == ["rows", "conclusions", "cells", "failed", "output"]
        assert (result["cells"], result["failed"]) == (6, 0)
        assert [row["objective"] for row in result["rows"]] == ["random", "dm", "kip"]
        assert all(list(row) == list(KEYS) for row in result["rows"])
        with open(whole / "table.csv", newline="") as file:
            assert [float(row["accuracy"]) for row in csv.DictReader(file)] == [r["accuracy"] for r in result["rows"]]

    def test_rows_are_of_equal_bytes_and_these_are_the_files(self, cli: Any, whole: Path) -> None:
        rows = cli.done(*TABLE, "--output", whole)["rows"]
        assert max(row["nbytes"] for row in rows) < 1.05 * min(row["nbytes"] for row in rows)
        for row in rows:
            sizes = [path.stat().st_size for path in (whole / "sets").glob(f"digits-{row['objective']}-*")]
            assert len(sizes) == 2
            assert all(abs(size - row["nbytes"]) <= 32 for size in sizes)  # seed and seconds: 0 is left out

    def test_the_picture_is_one(self, whole: Path) -> None:
        with Image.open(whole / "figure.png") as image:
            pixels = np.asarray(image.convert("L"))
        assert min(pixels.shape) > 200
        assert len(np.unique(pixels)) > 20

    def test_what_is_done_is_not_done_again(self, cli: Any, whole: Path) -> None:
        before = state(whole)
        assert len(before) == 12
        cli.done(*TABLE, "--output", whole)
        assert state(whole) == before

    def test_another_setting_in_the_same_folder_adds_cells(self, cli: Any, whole: Path, tmp_path: Path) -> None:
        folder = tmp_path / "both"
        cli.done(*TABLE[:-2], "--output", folder, "--controls", "none", "--objectives", "kip", "--network", NETWORK)
        first = state(folder)
        cli.done(*TABLE, "--output", folder)
        assert first.items() <= state(folder).items()
        assert table_of(folder) == table_of(whole)

    def test_ends_with_a_command_that_shows_a_set(self, cli: Any, whole: Path) -> None:
        following = re.search(r"next: (.*)", cli.run(*TABLE, "--output", whole).stderr)
        assert following
        assert cli.run(*shlex.split(following[1])[1:]).exit_code == 0
        assert (whole / "best.png").exists()

    def test_two_protocols_stand_in_one_table_over_the_same_sets(
        self, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("quick", "slow"):
            monkeypatch.setitem(PROTOCOLS, name, PROTOCOLS["short"])  # gone again after the test
        plugin, folder = tmp_path / "quick.py", tmp_path / "sweep"
        plugin.write_text(
            "from fedcondense.training import PROTOCOLS, Fit, Protocol\n"
            "PROTOCOLS['quick'] = Protocol(Fit(epochs=2), 16)\nPROTOCOLS['slow'] = Protocol(Fit(epochs=3), 16)\n"
        )
        words = [word for word in TABLE if word not in ("--evaluation-steps", "3")]
        rows = cli.done(*words, "--protocol", "quick,slow", "--against", "dm", "--plugin", plugin, "-o", folder)["rows"]
        found = [
            (row["protocol"], row["objective"], row["against"], row["setting"]["evaluation"]["epochs"]) for row in rows
        ]
        assert found == [
            ("quick", "random", "dm", 2), ("quick", "dm", "", 2), ("quick", "kip", "dm", 2),
            ("slow", "random", "dm", 3), ("slow", "dm", "", 3), ("slow", "kip", "dm", 3),
        ]  # fmt: skip
        made = [json.loads(path.read_text()) for path in (folder / "cells").iterdir()]
        assert (len(made), len(list((folder / "sets").iterdir()))) == (12, 6)
        assert sum(cell["peak_bytes"] is None for cell in made) == 6  # those whose set was there already
        assert "no row is called 'dn'" in cli.refused(*TABLE, "--against", "dn", "--output", tmp_path / "none")

    def test_two_workers_give_what_one_gives_and_know_the_plugins(self, cli: Any, whole: Path, tmp_path: Path) -> None:
        plugin, folder = tmp_path / "mine.py", tmp_path / "sweep"
        plugin.write_text(
            "from fedcondense.objectives import OBJECTIVES\n"
            "from fedcondense.objectives.distribution import DistributionMatching\n"
            "OBJECTIVES['mine'] = DistributionMatching(per_class=4)\n"
        )
        try:
            arguments = [*TABLE, "--objectives", "dm,kip,mine", "--plugin", plugin, "--workers", 2]
            assert cli.done(*arguments, "--output", folder)["failed"] == 0
        finally:
            OBJECTIVES.pop("mine", None)
        rows = table_of(folder)
        assert [row["objective"] for row in rows] == ["random", "dm", "kip", "mine"]
        assert rows[:3] == table_of(whole)
        for path in (whole / "sets").iterdir():
            here, there = (SyntheticSet.load(p).with_record(seconds=0.0) for p in (path, folder / "sets" / path.name))
            assert here.to_bytes() == there.to_bytes()

    def test_an_objective_whose_file_was_changed_is_computed_anew_and_the_others_are_kept(
        self, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(OBJECTIVES, "mine", OBJECTIVES["dm"])  # gone again after the test
        plugin, folder = tmp_path / "mine.py", tmp_path / "sweep"
        arguments = [*TABLE, "--objectives", "dm,mine", "--sets", 1, "--plugin", plugin, "--output", folder]
        states = []
        for power in ("1", "3", "1"):
            plugin.write_text(
                "from fedcondense.objectives import OBJECTIVES\n"
                "from fedcondense.objectives.distribution import DistributionMatching\n"
                "class Mine(DistributionMatching):\n"
                "    def distance(self, real, synthetic):\n"
                f"        return super().distance(real, synthetic) ** {power}\n"
                "OBJECTIVES['mine'] = Mine()\n"
            )
            assert cli.done(*arguments)["failed"] == 0
            states.append(state(folder))
        assert [len(held) for held in states] == [6, 8, 8]
        assert states[0].items() <= states[1].items()
        assert states[2] == states[1]

    def test_a_plugin_that_fails_costs_its_own_cells(
        self, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(OBJECTIVES, "bad", OBJECTIVES["dm"])  # gone again after the test
        plugin = tmp_path / "bad.py"
        (tmp_path / "beside_it.py").write_text("ZERO = 0\n")
        plugin.write_text(
            "from beside_it import ZERO\n"
            "from fedcondense.objectives import OBJECTIVES\n"
            "from fedcondense.objectives.distribution import DistributionMatching\n"
            "class Bad(DistributionMatching):\n"
            "    def distance(self, real, synthetic):\n"
            "        return 1 / ZERO\n"
            "OBJECTIVES['bad'] = Bad()\n"
        )
        ended = cli.run(
            *TABLE, "--objectives", "bad,dm", "--sets", 1, "--plugin", plugin, "-o", tmp_path / "s", "--json"
        )
        assert ended.exit_code == 1
        found = json.loads(ended.stdout)
        assert found["failed"] == 1
        assert "bad.py, line 6, in distance: ZeroDivisionError" in json.dumps(found)

    def test_progress_vanishes_in_a_pipe(self, cli: Any, whole: Path) -> None:
        assert len(cli.run(*TABLE, "--output", whole).stderr.splitlines()) == 4

    def test_scores_fill_their_columns(self, cli: Any, tmp_path: Path) -> None:
        rows = cli.done(*TABLE, "--scores", "--output", tmp_path)["rows"]
        assert [row["objective"] for row in rows] == ["random", "dm", "kip", "all-real"]
        assert rows[0]["ars"] == pytest.approx(26.89, abs=0.01)  # random images gain nothing over themselves
        assert all(0 < row["lrs"] < 100 for row in rows[:3])
        assert rows[3]["ipc"] is None
        assert rows[3]["accuracy"] > 50


class TestTheOtherSweeps:
    def test_parametrizations(self, cli: Any, tmp_path: Path) -> None:
        arguments = ["sweep", "parametrizations", "digits", "--parametrizations", "pixels,multi-formation", *QUICK]
        arguments += ["--ipc", "1", "--steps", "2", "--controls", "random", "--output", str(tmp_path)]
        rows = cli.done(*arguments)["rows"]
        assert [(row["objective"], row["parametrization"]) for row in rows[1:]] == [
            ("mmd-ridge", "pixels"),
            ("mmd-ridge", "multi-formation"),
        ]
        assert max(row["nbytes"] for row in rows) - min(row["nbytes"] for row in rows) < 100  # of names in the records

    def test_architectures_print_the_matrix_and_share_the_sets(self, cli: Any, tmp_path: Path) -> None:
        ended = cli.run("sweep", "architectures", "digits", "--objective", "dm", "--ipc", 1, "--steps", 2, *QUICK,
                        "--made-with", f"{NETWORK},{NETWORK}-batch", "--tested-with", f"{NETWORK}-none,{NETWORK}",
                        "--output", tmp_path)  # fmt: skip
        assert ended.exit_code == 0
        lines = ended.stdout.splitlines()
        assert lines[0] == rf"| made with \ tested with | {NETWORK}-none | {NETWORK} |"
        assert [line.split(" | ")[0] for line in lines[2:5]] == [
            "| random",
            f"| dm, {NETWORK}",
            f"| dm, {NETWORK}-batch",
        ]
        assert len(list((tmp_path / "sets").iterdir())) == 3 * 2

    def test_sensitivity_of_an_objective_with_a_real_batch(self, cli: Any, tmp_path: Path) -> None:
        rows = cli.done("sweep", "sensitivity", "digits", "--objective", "kip", "--ipc", 1, "--steps", 2, *QUICK,
                        "--output", tmp_path)["rows"]  # fmt: skip
        assert list(dict.fromkeys(row["varied"] for row in rows)) == ["", "lr", "steps", "per_class", "seed"]
        assert [row["value"] for row in rows if row["varied"] == "steps"] == [1, 2, 4, 8]

    def test_scaling_says_where_it_stops_to_pay(self, cli: Any, tmp_path: Path) -> None:
        result = cli.done("sweep", "scaling", "digits", "--objective", "dm", "--ipc", "1,4", "--steps", 2, *QUICK,
                          "--output", tmp_path)  # fmt: skip
        assert [row["ipc"] for row in result["rows"]] == [1, 1, 1, 4, 4, 4]
        (said,) = result["conclusions"]
        assert said.startswith(f"digits, {NETWORK}: dm (pixels) ")
        assert said in (tmp_path / "table.md").read_text()

    def test_a_budget_chooses_the_steps(self, cli: Any, tmp_path: Path) -> None:
        arguments = ["sweep", "table", "digits", "--objectives", "kip", "--ipc", 1, "--seconds", 0.2, *QUICK]
        (row,) = cli.done(*arguments, "--controls", "none", "--output", tmp_path)["rows"]
        assert row["steps"] == json.loads(next((tmp_path / "steps").iterdir()).read_text())["steps"] > 1
        assert cli.done(*arguments, "--controls", "none", "--output", tmp_path)["rows"] == [row]
        assert cli.done(*arguments, "--controls", "none", "--output", tmp_path, "--so-far")["rows"] == [row]


class TestFailures:
    def test_so_far_times_and_computes_nothing(self, cli: Any, tmp_path: Path) -> None:
        timed = [text.replace("--steps", "--seconds") for text in TABLE]
        said = cli.refused(*timed, "--output", tmp_path, "--so-far")
        assert said == f"error: {tmp_path} holds no cell of this sweep; leave --so-far out to compute them"
        assert list(tmp_path.iterdir()) == []

    def test_an_objective_without_the_recipe_is_a_row_that_says_so(self, cli: Any, tmp_path: Path) -> None:
        ended = cli.run("sweep", "table", "digits", "--objectives", "kip", "--ipc", 1, "--recipe", "published", *QUICK,
                        "--controls", "none", "--output", tmp_path)  # fmt: skip
        assert ended.exit_code == 1
        assert "2 failed: kip has no 'published' recipe; take 'tuned'" in ended.stdout

    def test_a_cell_that_fails_is_a_row_and_the_others_go_on(self, cli: Any, tmp_path: Path) -> None:
        arguments = ["sweep", "architectures", "digits", "--objective", "dm", "--ipc", 1, "--steps", 2, *QUICK]
        ended = cli.run(*arguments, "--made-with", f"{NETWORK},convnet4-w16", "--tested-with", NETWORK,
                        "--format", "json", "--output", tmp_path)  # fmt: skip
        assert ended.exit_code == 1
        assert ended.stderr.splitlines()[-1].startswith("2 of 6 cells failed; ")
        rows = json.loads(ended.stdout)["rows"]
        assert [row["accuracy"] is None for row in rows] == [False, False, True]
        assert "halves 8x8 to nothing" in rows[2]["error"]
        assert "failed[^" in (tmp_path / "table.md").read_text()
        assert len(list((tmp_path / "cells").iterdir())) == 6

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("table", "digit"), "did you mean 'digits'?"),
            (("table", "digits", "--objectives", "dm,dms"), "no objective is called 'dms'"),
            (("table", "digits", "--objectives", ","), "--objectives ,; needed: a list by commas without empty items"),
            (
                ("architectures", "digits", "--made-with", ","),
                "--made-with ,; needed: a list by commas",
            ),
            (
                ("architectures", "digits", "--tested-with", "resnet19"),
                "did you mean 'resnet18'? all of them: convnetD",
            ),
            (("table", "digits", "--ipc", "1 10"), "--ipc 1 10; needed: whole numbers from 1 by commas, such as 1,10"),
            (("table", "digits", "--ipc", "0"), "--ipc 0"),
            (("table", "digits", "--ipc", "1", "10"), "lists go by commas: --ipc 1,10"),
            (("table", "digits", "--controls", "k-mean"), "did you mean 'k-means'?"),
            (("table", "digits", "--sets", "0"), "--sets 0; needed: a whole number from 1"),
            (("table", "digits", "--seconds", "5", "--steps", "5"), "--seconds chooses the steps"),
            (("table", "digits", "--seconds", "0"), "--seconds 0; needed: a finite number above 0"),
            (("table", "digits", "--ray", "auto", "--workers", "2"), "leave one out"),
            (("table", "digits", "--network", "convnet2-w3"), "no network is called"),
            (("parametrizations", "digits", "--parametrizations", "pixel"), "did you mean 'pixels'?"),
            (("architectures", "digits", "--tested-with", "mlpp"), "no network is called 'mlpp'"),
            (("sensitivity", "digits", "--vary", "momentum"), "no number 'momentum' to vary"),
            (("scaling", "digits", "--objective", "kipp"), "did you mean 'kip'?"),
        ],
    )
    def test_what_cannot_work_is_refused_before_any_cell(
        self, cli: Any, arguments: tuple[str, ...], says: str, tmp_path: Path
    ) -> None:
        assert says in cli.refused("sweep", *arguments, "--output", tmp_path)
        assert not (tmp_path / "cells").exists()


class TestInterruption:
    @pytest.fixture
    def begun(self, start: Any, tmp_path: Path) -> Any:
        """Start the sweep and wait until a cell is done."""
        process = start(tmp_path, *TABLE, "--output", tmp_path / "sweep")
        end = time.monotonic() + 120
        while not list((tmp_path / "sweep" / "cells").glob("*.json")):
            assert process.is_running(), process.end()
            assert time.monotonic() < end
            time.sleep(0.005)
        return process

    def test_killed_and_resumed_gives_the_same_table(self, cli: Any, whole: Path, begun: Any, tmp_path: Path) -> None:
        begun.send(signal.SIGKILL)
        begun.end()
        folder = tmp_path / "sweep"
        before = state(folder)
        assert not (folder / "table.md").exists()
        cli.done(*TABLE, "--output", folder, "--so-far")
        assert state(folder) == before
        assert sum(int(row["sets"]) for row in table_of(folder)) == len(list((folder / "cells").iterdir())) < 6
        cli.done(*TABLE, "--output", folder)
        assert before.items() <= state(folder).items()
        assert table_of(folder) == table_of(whole)

    def test_ctrl_c_keeps_the_cells_and_says_how_to_go_on(self, begun: Any, tmp_path: Path) -> None:
        begun.send(signal.SIGINT)
        code, printed, said = begun.end()
        folder = tmp_path / "sweep"
        assert (code, printed) == (130, "")
        assert said.startswith(f"interrupted; {folder} keeps the cells that are done; go on with: fedcondense sweep")
        assert len(said.splitlines()) == 1
        assert len(list((folder / "cells").iterdir())) < 6
