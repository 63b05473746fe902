from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fedcondense as fc
from fedcondense.memory import Condenser, Memory


def test_a_card_says_what_a_stranger_needs() -> None:
    train, test = fc.load_data("digits")
    synthetic = fc.condense(train, ipc=1, objective="dm", steps=2)
    assert "Not measured." in synthetic.card()
    measured = fc.evaluate(synthetic, test, recipe=fc.Fit(steps=2), seeds=[0, 1])
    text = (held := synthetic.with_evaluation(measured.to_dict())).card()
    for said in (
        "# digits: a synthetic set",
        f"10 images of 1 x 8 x 8 and their labels in {held.nbytes:,} bytes (codec raw)",
        "method: dm; stored as: Pixels; network: convnet2-w32; started from: draws from each class's mean and "
        "principal directions (gaussian); steps: 2; size: the bytes of 1 plain image per class at most; augmentation: ",
        f"| 3 | 1 | {train.counts[3]} |",
        f"{measured.accuracy:.1f} ± {measured.accuracy_std:.1f} % of digits, {len(test)} images",
        "2 network(s) convnet2-w32, trained on this set alone by the protocol own (steps 2,",
        "they are no records",
        "No privacy is promised",
        "To be stated by whoever publishes this file",
        'fc.SyntheticSet.load("set.safetensors")',
    ):
        assert said in text, said


def test_records_among_the_images_are_said_and_names_stay_in_their_cell() -> None:
    train, _ = fc.load_data("digits")
    chosen = fc.select(train, 1, "random")
    assert "Among its images are records" in chosen.card()
    named = [replace(part, record=replace(part.record, classes=tuple("|#bcdefghi"))) for part in chosen.parts]
    text = fc.SyntheticSet.join([chosen, fc.SyntheticSet([*named])]).card()
    assert "| \\# | 1 |" in text
    assert "; 2 part(s)" in text


def test_the_card_of_a_memory_is_in_words(tmp_path: Path) -> None:
    memory = Memory(8, Condenser("dm", network="convnet1-w16", steps=1), groups=2)
    train, _ = fc.load_data("digits")
    for digit in (3, 5):
        memory.observe(train.images[train.labels == digit][:20], [str(digit)] * 20)
    text = fc.SyntheticSet.load(memory.save(tmp_path / "memory.safetensors")).card()
    assert "started from: what a replay memory held of a class, and draws as for any set where that was " in text
    assert "too little; steps: 1" in text
    assert "size: the bytes of 4 plain images per class at most" in text
    assert "from_memory" not in text


def test_the_card_of_a_memory_that_starts_from_records_says_so() -> None:
    memory = Memory(4, Condenser("dm", network="convnet1-w16", steps=1, start="real"))
    train, _ = fc.load_data("digits")
    memory.observe(train.images[:20], ["any"] * 20)
    assert memory.synthetic is not None
    assert "images that started from records" in memory.synthetic.card()


def test_every_start_of_ours_is_said_in_words_and_another_by_its_name() -> None:
    train, _ = fc.load_data("digits")
    made = fc.select(train, 1)
    for start in (*fc.STARTS, "from_memory_or_new", "from_memory_or_real", "last_round"):
        assert f"started from: {start};" not in made.with_record(start=start).card()
    assert "started from: mine;" in made.with_record(start="mine").card()
