"""The pictures show what the rows say."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from fedcondense.sweeps import figures
from fedcondense.sweeps.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def row(objective: str, accuracy: float | None, ipc: int | None = 10, tested: str = "net", **more: Any) -> Row:
    made = "" if objective in ("random", "all-real") else "net"
    values: dict[str, Any] = {"network": made, "parametrization": "pixels", "sets": 2, "networks": 2} | more
    return Row(
        objective=objective,
        accuracy=accuracy,
        ipc=ipc,
        data="data",
        test_network=tested,
        nbytes=100,
        accuracy_std=1.0,
        **values,
    )


def labels(axes: Any) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def drawn(axes: Any) -> list[Any]:
    """Return x and y of what has error bars, a list a series."""
    return [container.lines[0].get_xydata().tolist() for container in axes.containers]


ROWS = [row("random", 50.0), row("dm", 70.0), row("dsa", 60.0), row("all-real", 90.0, None)]


class TestByMethod:
    def test_methods_are_in_order_and_real_images_below(self) -> None:
        (axes,) = figures.by_method(ROWS).axes
        assert labels(axes) == ["random", "dsa", "dm"]
        assert drawn(axes) == [[[50.0, 0.0]], [[60.0, 1.0]], [[70.0, 2.0]]]
        assert axes.get_title() == "data, 10 per class"

    def test_there_is_a_panel_for_each_size(self) -> None:
        sizes = [row("random", 50.0, n) for n in (1, 10, 50)] + [row("dm", 60.0, n) for n in (1, 10, 50)]
        assert [axes.get_title() for axes in figures.by_method(sizes).axes] == [
            f"data, {n} per class" for n in (1, 10, 50)
        ]

    def test_parametrizations_are_told_apart(self) -> None:
        (axes,) = figures.by_method([row("dm", 70.0), row("dm", 71.0, parametrization="bases")]).axes
        assert labels(axes) == ["dm, pixels", "dm, bases"]


def test_the_matrix_has_each_number_in_its_place() -> None:
    rows = [row("random", 50.0, tested=b) for b in "xy"] + [row("dm", 60.0, tested="x"), row("dm", None, tested="y")]
    axes = figures.by_network(rows).axes[0]
    assert labels(axes) == ["random", "dm, net"]
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "50.0\n± 1.0", (1, 0): "50.0\n± 1.0", (0, 1): "60.0\n± 1.0", (1, 1): "failed"}


def test_each_factor_is_a_panel_with_its_values_and_the_random_images_beside() -> None:
    rows = [row("random", 50.0)]
    rows += [row("dm", 60.0 + k, varied="lr", value=0.01 * 2**k) for k in range(3)]
    rows += [row("dm", 70.0, varied="seed", value=k) for k in range(2)]
    axes: list[Any] = figures.by_factor(rows).axes
    step_size, seed = axes
    assert drawn(step_size) == [[[0.01, 60.0], [0.02, 61.0], [0.04, 62.0]]]
    assert step_size.get_xscale() == "log"
    assert drawn(seed) == [[[0.0, 70.0], [1.0, 70.0]]]
    assert [text.get_text() for text in step_size.get_legend().get_texts()] == ["random real images", "dm"]


def test_scaling_marks_where_it_no_longer_pays() -> None:
    rows = [row("random", 50.0 + 10 * k, 10**k) for k in range(3)] + [row("dm", 70.0, 10**k) for k in range(3)]
    axes: Any = figures.by_ipc(rows).axes[0]
    assert sorted(drawn(axes)) == [[[1, 50], [10, 60], [100, 70]], [[1, 70], [10, 70], [100, 70]]]
    assert [text.get_text() for text in axes.texts] == ["dm: no longer pays"]
    assert axes.texts[0].xy[0] == 100


@pytest.mark.parametrize("draw", [figures.by_method, figures.by_network, figures.by_factor, figures.by_ipc])
@pytest.mark.parametrize("rows", [ROWS, [row("dm", None)]], ids=["some", "failed"])
def test_each_is_a_picture_even_of_failures(draw: Callable[[list[Row]], Figure], rows: list[Row]) -> None:
    buffer = io.BytesIO()
    draw(rows).savefig(buffer, format="png", dpi=60)
    pixels = np.asarray(Image.open(buffer).convert("L"))
    assert min(pixels.shape) > 50
    if rows is ROWS and draw is not figures.by_factor:  # which has no line without a factor
        assert pixels.std() > 5
