"""The ZSE network in plain PyTorch, of equal arithmetic: the baseline of training and scoring.

Written as anybody would write it, with PyTorch's own layers and dropout; needs the `torch` package,
which the project itself does not.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


def attend(q, k, v, dropout: float = 0.0):
    """Attention of [b, heads, t, c]; on a GPU by PyTorch's fused kernels."""
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return F.dropout(weights, dropout, training=dropout > 0) @ v


class Block(nn.Module):
    """Pre-norm ViT block with fused qkv."""

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)

    def drop(self, x):
        """Dropout in training."""
        return F.dropout(x, self.dropout, self.training)

    def forward(self, x):
        """Tokens [b, t, d] to tokens."""
        b, t, d = x.shape
        q, k, v = (
            self.qkv(self.norm_attention(x))
            .view(b, t, 3, self.heads, d // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        x = x + self.drop(self.out(attend(q, k, v).transpose(1, 2).reshape(b, t, d)))
        hidden = self.drop(F.gelu(self.mlp_in(self.norm_mlp(x))))
        return x + self.drop(self.mlp_out(hidden))


class CrossLayer(nn.Module):
    """One direction of cross-attention: keys from the other image, values from its own."""

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp_in, self.mlp_out = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(width)) for _ in range(2)])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(width)) for _ in range(2)])

    def drop(self, x):
        """Dropout in training."""
        return F.dropout(x, self.dropout, self.training)

    def norm(self, i: int, x):
        """Normalisation by the unbiased standard deviation."""
        std = x.std(-1, keepdim=True) + 1e-6
        return self.scales[i] * (x - x.mean(-1, keepdim=True)) / std + self.biases[i]

    def forward(self, own, other):
        """This side's tokens after meeting the other's."""
        b, t, d = own.shape
        q, k, v = (
            layer(x).view(b, t, self.heads, -1).transpose(1, 2)
            for layer, x in ((self.query, own), (self.key, other), (self.value, own))
        )
        dropout = self.dropout if self.training else 0.0
        attended = self.out(attend(q, k, v, dropout).transpose(1, 2).reshape(b, t, d))
        x = self.norm(0, own + self.drop(attended))
        return self.norm(1, x + self.drop(self.mlp_out(self.drop(F.relu(self.mlp_in(x))))))


class TorchZSE(nn.Module):
    """ZSE B/16 with 49 anchors; images are [b, 3, 224, 224], already normalised."""

    def __init__(
        self,
        width=768,
        depth=12,
        heads=12,
        mlp_width=3072,
        dropout=0.1,
        scale_channels=64,
        cross_mlp_width=1024,
        anchor_width=512,
    ):
        super().__init__()
        self.dropout = dropout
        self.patch = nn.Conv2d(3, width, 16, 16)
        channels = (3, *(scale_channels * n for n in (1, 2, 4)), width)
        self.scale = nn.Sequential(
            *(
                layer
                for i in range(4)
                for layer in (
                    nn.Conv2d(
                        channels[i], channels[i + 1], 3 if i else 7, 2, 1 if i else 3, bias=False
                    ),
                    nn.ReLU() if i < 3 else nn.Identity(),
                )
            )
        )
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 197, width))
        self.blocks = nn.Sequential(
            *(Block(width, heads, mlp_width, dropout) for _ in range(depth))
        )
        self.final = nn.LayerNorm(width)
        self.sketch_layer, self.photo_layer = (
            CrossLayer(width, 8, cross_mlp_width, dropout) for _ in "sp"
        )
        self.merge = nn.Conv2d(width, anchor_width, 2, 2)
        self.relation = nn.Sequential(
            nn.Linear(49 * 49, 343),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(343, 49),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(49, 1),
        )

    def tokens(self, images):
        """Images to tokens [b, 197, width]."""
        x = ((self.patch(images) + self.scale(images)) / 2).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.final(self.blocks(F.dropout(x, self.dropout, self.training)))

    def loss(self, images):
        """Loss of [4n, 3, 224, 224]: matching sketches, others, matching photos, others."""
        sketch, photo = self.tokens(images).chunk(2)
        sketch, photo = self.sketch_layer(sketch, photo), self.photo_layer(photo, sketch)
        n = len(images) // 4
        p, q = (
            F.normalize(self.merge(x[:, 1:].reshape(2 * n, -1, 14, 14)).flatten(2), dim=1)
            for x in (sketch, photo)
        )
        score = self.relation((p.transpose(1, 2) @ q).flatten(1)).sigmoid()[:, 0]
        target = torch.cat([score.new_full((n,), 0.99), score.new_full((n,), 0.01)])
        triplet = F.triplet_margin_loss(sketch[:n, 0], photo[:n, 0], photo[n:, 0])
        return 2 * triplet + 4 * F.mse_loss(score, target)


class TorchRelation(nn.Module):
    """Cross-attention and relation network alone: the baseline of `scoring.py`."""

    def __init__(self, width=768, heads=8, mlp_width=1024, anchor_width=512):
        super().__init__()
        self.sketch_layer, self.photo_layer = (
            CrossLayer(width, heads, mlp_width, 0.1) for _ in "sp"
        )
        self.merge = nn.Conv2d(width, anchor_width, 2, 2)
        self.relation = nn.Sequential(
            nn.Linear(49 * 49, 343), nn.ReLU(), nn.Linear(343, 49), nn.ReLU(), nn.Linear(49, 1)
        )

    def forward(self, sketch, photo):
        """Scores of the pairs (sketch i, photo i) from tokens [b, 197, width]."""
        sketch, photo = self.sketch_layer(sketch, photo), self.photo_layer(photo, sketch)
        p, q = (
            F.normalize(self.merge(x[:, 1:].reshape(len(x), -1, 14, 14)).flatten(2), dim=1)
            for x in (sketch, photo)
        )
        return self.relation((p.transpose(1, 2) @ q).flatten(1)).sigmoid()[:, 0]
