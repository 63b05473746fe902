"""The published loops, class by class, as plainly as they can be written: what the speed experiments compare with.

A fresh forward pass over real images of each class in every step, one augmentation call a class with a grid for
every image, stock pooling, one backward pass at the end; kernel values and waves of one pair of classes after another.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


class PlainConvNet(nn.Module):
    """ConvNet-3 with instance norm and stock average pooling, the whole batch at once."""

    def __init__(self, channels: int, width: int, classes: int, padding: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for k in range(3):
            layers.append(nn.Conv2d(width if k else channels, width, 3, padding=1 if k else padding))
            layers += [nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * 16, classes)

    def embed(self, images: Tensor) -> Tensor:
        """Return (N, D)."""
        features: Tensor = self.body(images)
        return features.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.classifier(self.embed(images))
        return logits


def augment(images: Tensor, seed: int) -> Tensor:
    """Apply one operation to the whole batch, drawn from the seed; every image has numbers of its own, all equal."""
    generator = torch.Generator().manual_seed(seed)
    name = OPERATIONS[int(torch.randint(6, (), generator=generator))]
    n, _, height, width = images.shape
    device = images.device
    a, b = (torch.rand((), generator=generator).to(device).expand(n) for _ in range(2))
    if name == "color":
        images = images + (a.view(-1, 1, 1, 1) - 0.5)
        mean = images.mean(1, keepdim=True)
        images = (images - mean) * (2 * b.view(-1, 1, 1, 1)) + mean if images.shape[1] > 1 else images
        mean = images.mean((1, 2, 3), keepdim=True)
        return (images - mean) * (a.view(-1, 1, 1, 1) + 0.5) + mean
    if name in ("crop", "cutout"):
        rows, columns = torch.meshgrid(
            torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
        )
        if name == "crop":
            reach = int(height * 0.125 + 0.5)
            down, right = ((u * (2 * reach + 1)).long() - reach for u in (a, b))
            y = (rows + down.view(-1, 1, 1) + 1).clamp(0, height + 1)
            x = (columns + right.view(-1, 1, 1) + 1).clamp(0, width + 1)
            padded = F.pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1)
            return padded[torch.arange(n, device=device).view(-1, 1, 1), y, x].permute(0, 3, 1, 2)
        size = int(height * 0.5 + 0.5)
        top, left = ((u * (height + 1)).long().view(-1, 1, 1) - size // 2 for u in (a, b))
        inside = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
        return images * (~inside).unsqueeze(1)
    theta = torch.zeros(n, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    if name == "flip":
        return images.flip(3) if float(a[0]) < 0.5 else images
    if name == "scale":
        theta[:, 0, 0], theta[:, 1, 1] = (1 / 1.2 + u * (1.2 - 1 / 1.2) for u in (a, b))
    else:
        angle = (a - 0.5) * 30 * math.pi / 180
        theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
        theta[:, 0, 1], theta[:, 1, 0] = -angle.sin(), angle.sin()
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def distribution_matching_loss(network: PlainConvNet, real: list[Tensor], synthetic: list[Tensor], seed: int) -> Tensor:
    """Sum the squared distances of class means, a class after another."""
    loss = synthetic[0].new_zeros(())
    for c, (x, s) in enumerate(zip(real, synthetic, strict=True)):
        target = network.embed(augment(x, seed + c)).detach().mean(0)
        loss = loss + (target - network.embed(augment(s, seed + c)).mean(0)).square().sum()
    return loss


def class_gradients(
    network: PlainConvNet, weights: list[nn.Parameter], real: Tensor, synthetic: Tensor, label: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Return the gradients of one class in each weight: of its real images, and of its synthetic ones."""
    gradients = []
    for images, keep in ((real, False), (synthetic, True)):
        labels = torch.full((len(images),), label, device=images.device)
        entropy = F.cross_entropy(network(augment(images, seed + label)), labels)
        gradients.append(torch.autograd.grad(entropy, weights, create_graph=keep))
    return list(zip(*gradients, strict=True))


def gradient_matching_loss(network: PlainConvNet, real: list[Tensor], synthetic: list[Tensor], seed: int) -> Tensor:
    """Sum the row-wise cosine distances of gradients of all weights, a class after another."""
    parameters = list(network.parameters())
    loss = synthetic[0].new_zeros(())
    for c, (x, s) in enumerate(zip(real, synthetic, strict=True)):
        for g, h in class_gradients(network, parameters, x, s, c, seed):
            if g.ndim > 1:
                a, b = g.flatten(1), h.flatten(1)
                loss = loss + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return loss


def kernel_means_loss(network: PlainConvNet, real: list[Tensor], synthetic: list[Tensor], seed: int) -> Tensor:
    """Sum the squared maximum mean discrepancies, a class and a bandwidth after another."""
    loss = synthetic[0].new_zeros(())
    for c, (x, s) in enumerate(zip(real, synthetic, strict=True)):
        a, b = network.embed(augment(x, seed + c)).detach(), network.embed(augment(s, seed + c))
        spread = torch.cdist(a, a).square().mean()
        for width in (0.25, 0.5, 1.0, 2.0, 4.0):
            for one, other, factor in ((a, a, 1), (b, b, 1), (a, b, -2)):
                kernel = torch.exp(-torch.cdist(one, other).square() / (width * spread))
                loss = loss + factor * kernel.mean() / 5
    return loss


def characteristic_loss(network: PlainConvNet, real: list[Tensor], synthetic: list[Tensor], seed: int) -> Tensor:
    """Sum the distances of characteristic functions at 1,024 fresh frequencies, a class after another."""
    loss = synthetic[0].new_zeros(())
    waves = torch.randn(512, 1024, generator=torch.Generator().manual_seed(seed))
    for c, (x, s) in enumerate(zip(real, synthetic, strict=True)):
        a = F.normalize(network.embed(augment(x, seed + c)).detach(), dim=1) @ waves
        b = F.normalize(network.embed(augment(s, seed + c)), dim=1) @ waves
        across, along = a.cos().mean(0) - b.cos().mean(0), a.sin().mean(0) - b.sin().mean(0)
        loss = loss + ((across.square() + along.square()) / 2 + 1e-12).sqrt().mean()
    return loss


def absolute_gradient_loss(network: PlainConvNet, real: list[Tensor], synthetic: list[Tensor], seed: int) -> Tensor:
    """Sum the squared differences of the gradients of convolutions, a class after another."""
    weights = [p for p in network.parameters() if p.ndim == 4]
    loss = synthetic[0].new_zeros(())
    for c, (x, s) in enumerate(zip(real, synthetic, strict=True)):
        for g, h in class_gradients(network, weights, x, s, c, seed):
            loss = loss + (g - h).square().sum()
    return loss
