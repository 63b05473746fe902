"""Label-robust and augmentation-robust score: Li et al., DD-Ranking, 2025, https://arxiv.org/abs/2505.13300

Accuracies depend on soft labels and augmentation as much as on a set's images; the two scores take either out. They are
columns beside the accuracy, not a ranking: methods made for soft labels are judged without, and the weights are a
choice. Both are computed here from the paper's formulas, on accuracies that `sweeps` measures at the last step: the
authors' program takes the best epoch on the test data and searches the step size of the random images.
"""

from __future__ import annotations

import math

__all__ = ["augmentation_robust_score", "hard_label_recovery", "improvement_over_random", "label_robust_score"]


def hard_label_recovery(real_hard: float, synthetic_hard: float) -> float:
    r"""Return HLR, in points: how far hard labels leave the set behind all real data. Small is good.

    .. math:: \mathrm{HLR} = \mathrm{acc}_\mathrm{real, hard} - \mathrm{acc}_\mathrm{synthetic, hard}

    Args:
        real_hard: Percent, of networks trained on all real data with their labels.
        synthetic_hard: Percent, of networks trained on the set, each image with its most likely label alone.
    """
    return real_hard - synthetic_hard


def improvement_over_random(synthetic: float, random: float) -> float:
    r"""Return IOR, in points: what the set gains over random real images under its own evaluation. Large is good.

    .. math:: \mathrm{IOR} = \mathrm{acc}_\mathrm{synthetic} - \mathrm{acc}_\mathrm{random}

    Args:
        synthetic: Percent, with the set's own labels.
        random: Percent, of as many bytes of random real images, trained in the same way.
    """
    return synthetic - random


def label_robust_score(hlr: float, ior: float, weight: float = 0.5) -> float:
    r"""Return LRS in [0, 100]: 100 for the gain of a whole accuracy, 26.9 where nothing is gained and nothing lost.

    .. math:: \mathrm{LRS} = 100\,(e^\alpha - e^{-1}) / (e - e^{-1}),
        \quad \alpha = w\,\mathrm{IOR} - (1 - w)\,\mathrm{HLR}

    Args:
        hlr: Points, `hard_label_recovery`.
        ior: Points, `improvement_over_random`.
        weight: w, in [0, 1]; a half as published.

    >>> label_robust_score(hlr=0.0, ior=100.0, weight=1.0), round(label_robust_score(hlr=0.0, ior=0.0), 1)
    (100.0, 26.9)
    """
    return _normalised(weight * ior - (1 - weight) * hlr)


def augmentation_robust_score(augmented_gain: float, plain_gain: float, weight: float = 0.5) -> float:
    r"""Return ARS in [0, 100]: the gain over random real images with augmented training and with plain training.

    .. math:: \mathrm{ARS} = 100\,(e^\beta - e^{-1}) / (e - e^{-1}),
        \quad \beta = \gamma\,(\mathrm{acc}_\mathrm{synthetic} - \mathrm{acc}_\mathrm{random})_\mathrm{augmented}
        + (1 - \gamma)\,(\mathrm{acc}_\mathrm{synthetic} - \mathrm{acc}_\mathrm{random})_\mathrm{plain}

    Args:
        augmented_gain: Points over random real images of as many bytes, where training augments.
        plain_gain: The same where it does not.
        weight: gamma, in [0, 1]; a half as published.
    """
    return _normalised(weight * augmented_gain + (1 - weight) * plain_gain)


def _normalised(points: float) -> float:
    """Map points in [-100, 100] to [0, 100] along the exponential."""
    return 100 * (math.exp(points / 100) - math.exp(-1)) / (math.e - math.exp(-1))
