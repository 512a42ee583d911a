"""One small network for each operator that moves, ties or mixes channels; a residual or a head makes each prunable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.prune.networks import Net, rows


class Around(nn.Module):
    """A 1 × 1 convolution, something in the middle, a 1 × 1 convolution."""

    def __init__(self, middle: nn.Module, inputs: int = 16, outputs: int | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, inputs, 1)
        self.middle = middle
        self.last = nn.Conv2d(outputs or inputs, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.middle(F.relu(self.first(x)))))


class Apply(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)


def chunks_swapped(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([b, a], 1)


def gated(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return a * torch.sigmoid(b)


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class ConcatPlus(nn.Module):
    """A concatenation added to one tensor: channels of two layers are tied to parts of a third."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 24, 1), nn.Conv2d(16, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x)], 1) + self.c(x)


class Twice(nn.Module):
    """One layer used twice, so that its outputs are tied to its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.conv(x)))


class Attention(nn.Module):
    """Self-attention with its projections in one layer or in three, keys and values of fewer heads or not."""

    def __init__(self, width: int = 32, heads: int = 4, fused: bool = False, kv_heads: int | None = None) -> None:
        super().__init__()
        self.heads, self.fused, self.kv_heads = heads, fused, kv_heads or heads
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            inner = width // heads * self.kv_heads
            self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, inner), nn.Linear(width, inner)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, steps = x.shape[:2]
        q, k, v = self.qkv(x).chunk(3, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
        q, k, v = (
            y.reshape(n, steps, heads, -1).transpose(1, 2)
            for y, heads in ((q, self.heads), (k, self.kv_heads), (v, self.kv_heads))
        )
        if self.kv_heads != self.heads:
            k, v = (y.repeat_interleave(self.heads // self.kv_heads, dim=1) for y in (k, v))
        y = torch.softmax(q @ k.transpose(-1, -2) / 4, -1) @ v
        return self.out(y.transpose(1, 2).reshape(n, steps, -1))


class Encoder(nn.Module):
    """One pre-norm block between two linear layers."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 32)
        self.norm1, self.attention = nn.LayerNorm(32), attention
        self.norm2, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class Multihead(nn.Module):
    """PyTorch's own attention layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], bidirectional: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 16)
        self.rnn = kind(16, 20, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(40 if bidirectional else 20, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(F.relu(self.embed(x)))[0].mean(1))


class Embedded(nn.Module):
    """Two embeddings added; the rows are words, the columns are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 24), nn.Parameter(torch.randn(7, 24))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.words(x) + self.places).mean(1))


class TokenFirst(nn.Module):
    """Patches as tokens after a class token, as a ViT has them."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 32)), nn.Parameter(torch.randn(1, 5, 32))
        self.up, self.down, self.head = nn.Linear(32, 48), nn.Linear(48, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x[:, 0])


def around(name: str, middle: Callable[[], nn.Module], inputs: int = 16, outputs: int | None = None) -> Net:
    return Net(name, lambda: Around(middle(), inputs, outputs), rows(3, 8, 8), ("last",))


def function(name: str, apply: Callable[[Tensor], Tensor], inputs: int = 16, outputs: int | None = None) -> Net:
    return around(name, lambda: Apply(apply), inputs, outputs)


def encoder(name: str, attention: Callable[[], nn.Module], heads: dict[str, int], round_to: int | None = None) -> Net:
    told = {f"attention.{layer}": count for layer, count in heads.items()}
    return Net(name, lambda: Encoder(attention()), rows(9, 12), ("head",), heads=told, round_to=round_to)


OPERATORS = (
    around("grouped_conv", lambda: nn.Conv2d(16, 32, 3, padding=1, groups=4), 16, 32),
    around("grouped_conv_same", lambda: nn.Conv2d(16, 16, 3, padding=1, groups=4)),
    around("grouped_conv_residual", lambda: Residual(nn.Conv2d(16, 16, 3, padding=1, groups=4))),
    around("depthwise", lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16)),
    around("depthwise_multiplier", lambda: nn.Conv2d(16, 32, 3, padding=1, groups=16), 16, 32),
    around("group_norm", lambda: nn.GroupNorm(4, 16)),
    around("instance_norm", lambda: nn.InstanceNorm2d(16, affine=True)),
    around("prelu", lambda: nn.PReLU(16)),
    around("squeeze_excite", lambda: SqueezeExcite(16)),
    around("residual", lambda: Residual(nn.Sequential(nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Conv2d(24, 16, 1)))),
    around("concat_plus", ConcatPlus, 16, 32),
    around("used_twice", Twice),
    function("channel_shuffle", shuffle),
    function("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), 16, 4),
    function("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), 4, 16),
    function("chunks_swapped", chunks_swapped),
    function("gated", gated, 32, 16),
    function("slice", lambda x: x[:, 4:12], 16, 8),
    function("strided_slice", lambda x: x[:, 1::2], 16, 8),
    function("tile", lambda x: x.repeat(1, 2, 1, 1), 16, 32),
    function("repeat_interleave", lambda x: x.repeat_interleave(2, 1), 16, 32),
    function("maximum_of_two", lambda x: torch.maximum(*x.chunk(2, 1)), 16, 8),
    function("softmax", lambda x: torch.softmax(x, 1)),
    function("channel_mean", lambda x: x - x.mean(1, keepdim=True)),
    function("upsample", lambda x: F.interpolate(x, scale_factor=2.0)),
    function("pad", lambda x: F.pad(x, (1, 1, 1, 1))),
    encoder("attention", Attention, {"q": 4, "k": 4, "v": 4}),
    encoder("attention-unsaid", Attention, {}),
    encoder("attention_fused", lambda: Attention(fused=True), {"qkv": 4}),
    encoder("attention_grouped", lambda: Attention(kv_heads=2), {"q": 4, "k": 2, "v": 2}),
    encoder("multihead", Multihead, {}, round_to=4),
    Net("lstm", lambda: Recurrent(nn.LSTM, False), rows(9, 12), ("head",)),
    Net("bilstm", lambda: Recurrent(nn.LSTM, True), rows(9, 12), ("head",)),
    Net("gru", lambda: Recurrent(nn.GRU, False), rows(9, 12), ("head",)),
    Net("embedding", Embedded, lambda: {"x": torch.randint(0, 50, (2, 7))}, ("head",)),
    Net("class_token", TokenFirst, rows(3, 8, 8), ("head",)),
)
