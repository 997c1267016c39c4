"""Encoders and training steps in compiled PyTorch: the baseline of `accelerator.py`.

Plain layers with the arithmetic of the networks in `zse_jax.models`: Vision Transformers by
`scaled_dot_product_attention`, CNNs in the channels-last layout. Differences that do not change the
cost: GELU in place of CLIP's activation, no LayerScale, padding on both sides.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.benchmarks.accelerator_plan import Run
from tests.benchmarks.torch_zse import Block, TorchRelation, TorchZSE
from zse_jax.models import efficientnet_lite


class ViT(nn.Module):
    """A Vision Transformer; returns the normalised class token."""

    def __init__(self, width=768, depth=12, heads=12, patch=32, size=224, outputs=0):
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, 4 * width, 0.0) for _ in range(depth)))
        self.final = nn.LayerNorm(width)
        self.project = nn.Linear(width, outputs, bias=False) if outputs else nn.Identity()

    def forward(self, images):
        """Images [b, 3, h, w] to [b, width]."""
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.project(self.final(self.blocks(x)[:, 0]))


def normed(inputs, outputs, size, stride=1, groups=1, activation=None):
    """A convolution, its batch normalisation and an activation."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), activation or nn.Identity())


class Residual(nn.Module):
    """A branch, a shortcut (which may be projected) and an activation of their sum."""

    def __init__(self, branch, shortcut, activation):
        super().__init__()
        self.branch, self.shortcut, self.activation = branch, shortcut, activation

    def forward(self, x):
        """Maps [b, c, h, w] to maps."""
        return self.activation(self.shortcut(x) + self.branch(x))


class Pooled(nn.Sequential):
    """Layers, and the mean over the places of the last map."""

    def forward(self, x):
        """Images [b, 3, h, w] to [b, c]."""
        return super().forward(x).mean((2, 3))


def resnet50(depths=(3, 4, 6, 3), width=64):
    """ResNet-50 without its head."""
    layers, channels = [normed(3, width, 7, 2, activation=nn.ReLU()), nn.MaxPool2d(3, 2, 1)], width
    for i, depth in enumerate(depths):
        inner = width << i
        for j in range(depth):
            stride = 2 if i and not j else 1
            branch = nn.Sequential(
                normed(channels, inner, 1, activation=nn.ReLU()),
                normed(inner, inner, 3, stride, activation=nn.ReLU()),
                normed(inner, 4 * inner, 1),
            )
            same = stride == 1 and channels == 4 * inner
            shortcut = nn.Identity() if same else normed(channels, 4 * inner, 1, stride)
            layers.append(Residual(branch, shortcut, nn.ReLU()))
            channels = 4 * inner
    return Pooled(*layers)


def efficientnet(variant):
    """EfficientNet-Lite without its head."""
    channels = efficientnet_lite.STEM
    layers = [normed(3, channels, 3, 2, activation=nn.ReLU6())]
    for stage in efficientnet_lite.stages(variant):
        for i in range(stage.blocks):
            inner, stride = channels * stage.expansion, 1 if i else stage.stride
            branch = nn.Sequential(
                *([normed(channels, inner, 1, activation=nn.ReLU6())] if inner > channels else []),
                normed(inner, inner, stage.kernel, stride, inner, nn.ReLU6()),
                normed(inner, stage.channels, 1),
            )
            same = stride == 1 and channels == stage.channels
            layers.append(Residual(branch, nn.Identity(), nn.Identity()) if same else branch)
            channels = stage.channels
    return Pooled(*layers, normed(channels, efficientnet_lite.HEAD, 1, activation=nn.ReLU6()))


class TokensOfZSE(TorchZSE):
    """ZSE's encoder."""

    def forward(self, images):
        """Images [b, 3, 224, 224] to tokens."""
        return self.tokens(images)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "ZSE B/16": TokensOfZSE,
    "CLIP B/32": lambda: ViT(outputs=512),
    "ResNet-50": resnet50,
    "EfficientNet-Lite0": lambda: efficientnet("lite0"),
    "EfficientNet-Lite2": lambda: efficientnet("lite2"),
    "DINOv2 S/14": lambda: ViT(384, 12, 6, 14),
    "DINOv2 B/14": lambda: ViT(patch=14),
}
"""The networks at their published sizes."""

TRAINED = {
    "zse": TorchZSE,
    "clip_prompt": NETWORKS["CLIP B/32"],
    "efficient_cnn": resnet50,
    "efficient_cnn Lite0": NETWORKS["EfficientNet-Lite0"],
}
"""System -> the network of its training step: all of ZSE's, the image encoder of the others."""


def _device() -> str:
    # Both sides may use the tensor cores for float32, as JAX does by default.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    return "cuda" if torch.cuda.is_available() else "cpu"


def _compiled(function: Callable, device: str) -> Callable:
    return torch.compile(function) if device == "cuda" else function


def _waited(run: Callable[[], Any], device: str) -> Run:
    def wait(calls: int) -> None:
        for _ in range(calls):
            run()
        if device == "cuda":
            torch.cuda.synchronize()

    wait(2)  # compiles it
    return wait


def _floats(pixels: np.ndarray, device: str) -> torch.Tensor:
    """uint8 [b, h, w, 3] to floats [b, 3, h, w] in the channels-last layout."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def encoding(network: str, pixels: np.ndarray, dtype: str) -> Run:
    """Encoding of uint8 images; parameters and activations in `dtype`."""
    device = _device()
    model = NETWORKS[network]().eval().to(device, getattr(torch, dtype))
    model = model.to(memory_format=torch.channels_last)
    images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)

    def encode(images):
        return model(images.to(getattr(torch, dtype)).div(127.5).sub(1))

    encode = _compiled(encode, device)

    def run() -> None:
        with torch.no_grad():
            encode(images)

    return _waited(run, device)


def relation(pairs: int, dtype: str) -> Run:
    """Relation scores of `pairs` pairs; each image is projected again for each pair."""
    device = _device()
    model = TorchRelation().eval().to(device, getattr(torch, dtype))
    tokens = torch.randn(2, pairs, 197, 768, device=device, dtype=getattr(torch, dtype))
    score = _compiled(model, device)

    def run() -> None:
        with torch.no_grad():
            score(tokens[0], tokens[1])

    return _waited(run, device)


def training(system: str, pixels: np.ndarray, dtype: str) -> Run:
    """A step with float32 parameters, `dtype` activations and a fused AdamW.

    ZSE's with its losses. The others: forward and backward pass of the image encoder alone, of
    which CLIP-AT trains only the normalisations.
    """
    device = _device()
    model = TRAINED[system]().to(device, memory_format=torch.channels_last).train()
    if system == "clip_prompt":
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = isinstance(module, nn.LayerNorm)
    trained = [x for x in model.parameters() if x.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=1e-2, fused=True)
    images = _floats(pixels, device)

    def loss_of(images):
        return model.loss(images) if system == "zse" else F.normalize(model(images)).square().mean()

    loss_of = _compiled(loss_of, device)

    def run() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_of(images)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return _waited(run, device)


def depthwise(
    layers: Mapping[str, tuple[int, int, int, int]], count: int, dtype: str
) -> dict[str, Run]:
    """Depthwise convolutions of channels-last maps, forward and with gradients.

    Args:
      layers: title -> side, channels, kernel, stride.
      count: images.
      dtype: of maps and kernels.
    """
    device, runs = _device(), {}
    for title, (side, channels, size, stride) in layers.items():
        settings = {"device": device, "dtype": getattr(torch, dtype)}
        x = torch.randn(count, channels, side, side, **settings)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        kernel = torch.randn(channels, 1, size, size, **settings).requires_grad_()

        def forward(x=x, kernel=kernel, stride=stride, pad=size // 2):
            return F.conv2d(x, kernel, None, stride, pad, groups=x.shape[1])

        def both(x=x, kernel=kernel, forward=forward):
            y = forward()
            torch.autograd.grad(y, (x, kernel), y)

        def alone(forward=forward):
            with torch.no_grad():
                forward()

        runs[f"{title} forward"] = _waited(alone, device)
        runs[f"{title} with gradients"] = _waited(both, device)
    return runs
