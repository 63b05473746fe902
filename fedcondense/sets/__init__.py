"""The synthetic set: the one artefact, its file and wire format, exchange, real-image controls, ready sets."""
