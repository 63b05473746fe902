from __future__ import annotations

from dataclasses import replace

import fedcondense as fc


def test_a_card_says_what_a_stranger_needs() -> None:
    train, test = fc.load_data("digits")
    synthetic = fc.condense(train, ipc=1, objective="dm", steps=2)
    assert "Not measured." in synthetic.card()
    measured = fc.evaluate(synthetic, test, recipe=fc.Fit(steps=2), seeds=[0, 1])
    text = (held := synthetic.with_evaluation(measured.to_dict())).card()
    for said in (
        "# digits: a synthetic set",
        f"10 images of 1 x 8 x 8 and their labels in {held.nbytes:,} bytes (codec raw)",
        "method: dm; stored as: Pixels; network: convnet2-w32; started from: gaussian; steps: 2",
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
