"""A set's card: a page in Markdown to publish beside its file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["card_of"]

_LICENCE = "to be stated by whoever publishes this file; the terms of the data that it was made from apply as well."

_STARTS = {  # what names in records stand for; a name of the user's own stays
    "gaussian": "draws from each class's mean and principal directions (gaussian)",
    "grey": "noise around the data's mean colour (grey)",
    "noise": "uniform noise (noise)",
    "real": "real images (real)",
    "from_memory_or_new": "what a replay memory held of a class, and draws as for any set where that was too little",
    "from_memory_or_real": "what a replay memory held of a class, and real images where that was too little",
    "last_round": "what its site sent a round before, or where there was none as any set is",
}


def card_of(synthetic: SyntheticSet) -> str:
    """Return the card: what the set is, how it was made, its classes, what was measured, what it lets out, its use."""
    channels, height, width = synthetic.shape
    images = f"{len(synthetic)} images of {channels} x {height} x {width}"
    size = f"{synthetic.nbytes:,} bytes (codec {synthetic.codec})"
    blocks = [
        f"# {_flat(synthetic.name)}: a synthetic set",
        f"{images} and their labels in {size}, for training networks in the place of the data's own images.",
        f"## How it was made\n\n{_made(synthetic)}",
        f"## Classes\n\n{_classes(synthetic)}",
        f"## What it is worth\n\n{_worth(synthetic)}",
        f"## What it lets out\n\n{_lets_out(synthetic)}",
        f"## Licence\n\n{_LICENCE[0].upper()}{_LICENCE[1:]}",
        "## How to use it\n\n```python\nimport fedcondense as fc\n\n"
        'synthetic = fc.SyntheticSet.load("set.safetensors")  # the file beside this page\n'
        "network = fc.train(synthetic)  # or a torch Dataset of images in [0, 1] and labels\n```",
    ]
    return "\n\n".join(blocks) + "\n"


def _made(synthetic: SyntheticSet) -> str:
    """Return a line for each way in which parts were made."""
    lines = []
    for part in synthetic.parts:
        record = part.record
        facts = [
            ("data", record.data),
            ("method", record.method),
            ("stored as", type(part.parametrization).__name__),
            ("network", record.network),
            ("started from", _STARTS.get(record.start, record.start)),
            ("steps", record.steps),
            ("size", _size(record.ipc)),
            ("augmentation", ", ".join(record.augmentation)),
        ]
        lines.append("- " + "; ".join(f"{name}: {_flat(str(value))}" for name, value in facts if value))
    made = "\n".join(dict.fromkeys(lines))
    took = f"Made in {synthetic.seconds:,.1f} s" if synthetic.seconds else "How long it took is not said"
    return f"{made}\n\n{took}; {len(synthetic.parts)} part(s)."


def _size(ipc: int) -> str:
    """Return what images per class, which count bytes, mean; empty: nothing was said."""
    return f"the bytes of {ipc} plain image{'s' if ipc > 1 else ''} per class at most" if ipc else ""


def _classes(synthetic: SyntheticSet) -> str:
    """Return a table: of each class its images, and the records that they stand for, where parts say so."""
    stands = dict.fromkeys(synthetic.classes, 0)
    for record in (part.record for part in synthetic.parts):
        for name, count in zip(record.classes, record.counts or (0,) * len(record.classes), strict=True):
            stands[name] += count
    lines = ["| class | images | stand for records |", "|---|---:|---:|"]
    for name, count in zip(synthetic.classes, synthetic.counts().tolist(), strict=True):
        lines.append(f"| {_flat(name)} | {count} | {stands[name] or 'not said'} |")
    return "\n".join(lines)


def _worth(synthetic: SyntheticSet) -> str:
    found = synthetic.evaluation
    if not found or "accuracy" not in found:
        return "Not measured."
    recipe = ", ".join(f"{name} {value}" for name, value in dict(found.get("recipe", {})).items())
    test, network, protocol = (_flat(str(found.get(name, "not said"))) for name in ("test", "network", "protocol"))
    return (
        f"{found['accuracy']:.1f} ± {found.get('accuracy_std', 0.0):.1f} % of {test}: mean and deviation over "
        f"{len(found.get('seeds', ()))} network(s) {network}, trained on this set alone by the protocol {protocol} "
        f"({_flat(recipe)}), last step."
    )


def _lets_out(synthetic: SyntheticSet) -> str:
    records = [part.record for part in synthetic.parts]
    shown = "Its images were learned from records; they are no records, and may resemble some."
    if any(record.start in ("real", "from_memory_or_real") for record in records):
        shown = "Among its images are records, or images that started from records and may still show them."
    elif not all(record.start for record in records):
        shown = "What its images started from is not said: they may be records."
    stated = [record.privacy for record in records if record.privacy is not None]
    promised = f"Its record states: {_flat(str(stated))}." if stated else "No privacy is promised: none was computed."
    return f"{shown} Class names and counts are those of the records. {promised}"


def _flat(text: str) -> str:
    """Keep a text of a file in its line and cell."""
    return " ".join(text.split()).translate({ord(c): f"\\{c}" for c in "|`<#"})
