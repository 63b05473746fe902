from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

from fedcondense.data.loading import load_data
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.fit import Fit
from fedcondense.training.ready import train as train_network


@pytest.fixture(scope="module")
def chosen() -> SyntheticSet:
    return select(load_data("digits").train, 2, "random")


def test_a_set_is_a_dataset(chosen: SyntheticSet) -> None:
    batch = chosen.pixels()
    image, label = chosen[3]
    assert torch.equal(image, batch.images[3])
    assert int(label) == int(batch.targets[3].argmax())
    assert torch.equal(chosen[-1][0], batch.images[-1])
    images, labels = next(iter(DataLoader(chosen, batch_size=20)))  # type: ignore[arg-type]
    assert images.shape == (20, 1, 8, 8)
    assert labels.dtype == torch.int64
    with pytest.raises(IndexError, match="20"):
        chosen[20]
    assert len(list(chosen)) == 20  # type: ignore[call-overload]
    image.zero_()
    assert float(chosen[3][0].sum()) > 0  # edits leave the set alone


def test_it_is_tensors_on_a_device(chosen: SyntheticSet) -> None:
    images, labels = chosen.to("cpu").tensors
    assert torch.equal(images, chosen.pixels().images)
    assert torch.equal(labels, chosen.pixels().targets.argmax(1))


def test_soft_labels_stay_probabilities(chosen: SyntheticSet) -> None:
    (part,) = chosen.parts
    probabilities = torch.rand(20, 10, generator=torch.Generator().manual_seed(0)).softmax(1).half()
    soft = SyntheticSet([replace(part, targets=probabilities)])
    assert soft[0][1].shape == (10,)
    assert float(soft[0][1].sum()) == pytest.approx(1, abs=1e-3)


def test_a_notebook_shows_it(chosen: SyntheticSet) -> None:
    page = chosen._repr_html_()
    assert "data:image/png;base64," in page
    assert "20 images" in page


def test_a_network_of_it_can_be_used(chosen: SyntheticSet) -> None:
    network = train_network(chosen, recipe=Fit(steps=30), network="convnet1-w16")
    assert network.classes == chosen.classes
    assert network.card.network == "convnet1-w16"
    found = network.predict(chosen.pixels().images)
    assert float((found == chosen.pixels().targets.argmax(1)).float().mean()) > 0.5
