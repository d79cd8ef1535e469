"""A task on sequences, with classes or with numbers, and a small transformer for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.data.task import Split, TaskData

WORDS, WIDTH, HEADS, LENGTH = 24, 16, 4, 8


class Layer(nn.Module):
    """Attention and an MLP, each with a norm before it."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """Words -> ``outputs`` numbers; whole texts are averaged."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.Sequential(Layer(), Layer(), Layer())
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.layers(self.words(words)).mean(dim=1))


def texts(rows: int, seed: int, numbers: bool) -> Split:
    """Whether most words are of the first half, or which share of them."""
    words = torch.randint(0, WORDS, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))
    share = (words < WORDS // 2).float().mean(dim=1)
    return Split((words,), share[:, None] * 4 if numbers else (share > 0.5).long())


def r2(outputs: Tensor, targets: Tensor) -> float:
    return float(1 - F.mse_loss(outputs, targets) / targets.var())


def task(numbers: bool) -> TaskData:
    train = texts(256, 0, numbers)
    return TaskData(
        train=train, calibration=train.take(torch.arange(64)), validation=texts(200, 1, numbers),
        test=texts(100, 2, numbers), class_names=() if numbers else ("few", "many"), input_names=("words",),
        preprocessing={}, prepare=lambda inputs: inputs, augment=lambda inputs, _i, _v: inputs,
        free_axes={"words": {1: "length"}}, loss=F.mse_loss if numbers else None, metric=r2 if numbers else None,
    )  # fmt: skip
