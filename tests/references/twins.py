"""Models of graphs/ once more, as one would write them in PyTorch, from the papers and not from our texts.

A module takes a batch by the names that the data have, and returns what is asked of it by name: the loss, and what it
is judged by. Noise may be given (arguments that are None else), since no two libraries draw alike.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def classified(logits: Tensor, label: Tensor) -> dict[str, Tensor]:
    """What a classifier is judged by."""
    accuracy = (logits.argmax(-1) == label).to(logits.dtype).mean()
    return {"loss": F.cross_entropy(logits, label), "accuracy": accuracy}


class Dropout(nn.Dropout):
    """Dropout whose mask may be given."""

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        if keep is None or not self.training:
            return super().forward(x)
        return x * keep / (1 - self.p)


class LeNet(nn.Module):
    """LeCun and others 1998, with today's parts; pictures of side × side in rows."""

    def __init__(self, side: int = 8, channels: int = 32, hidden: int = 128) -> None:
        super().__init__()
        self.side = side
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.before, self.after = Dropout(0.25), Dropout(0.5)
        self.hidden = nn.Linear(2 * channels * (side // 4) ** 2, hidden)
        self.out = nn.Linear(hidden, 10)

    def forward(
        self, x: Tensor, label: Tensor, before: Tensor | None = None, after: Tensor | None = None
    ) -> dict[str, Tensor]:
        features = self.features(x.view(-1, 1, self.side, self.side))
        h = torch.relu(self.hidden(self.before(features, before)))
        return classified(self.out(self.after(h, after)), label)


class Block(nn.Module):
    """A residual block: He, Zhang, Ren and Sun 2015."""

    def __init__(self, width: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.short: nn.Module = nn.Identity()
        if stride > 1:
            self.short = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.short(x))


class ResNet(nn.Module):
    """Three stages of residual blocks, for small pictures: the paper's section 4.2."""

    def __init__(self, side: int = 28, blocks: int = 3, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.side = side
        self.conv, self.norm = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        for before, out, stride in ((width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)):
            stages += [Block(before, out, stride), *(Block(out, out) for _ in range(blocks - 1))]
        self.blocks = nn.Sequential(*stages)
        self.out = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor, label: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.norm(self.conv(x.view(-1, 1, self.side, self.side))))
        return classified(self.out(self.blocks(y).mean((2, 3))), label)


class Forecast(nn.Module):
    """The next value of a series, by an LSTM: Hochreiter and Schmidhuber 1997, Gers and others 2000."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, hidden, batch_first=True)
        self.out = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        states, _ = self.lstm(x[:, :, None])
        return {"loss": F.mse_loss(self.out(states[:, -1])[:, 0], y)}


class CharLSTM(nn.Module):
    """A text, character by character."""

    def __init__(self, vocab: int = 63, width: int = 64, hidden: int = 256) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        self.out = nn.Linear(hidden, vocab)

    def forward(self, token: Tensor, next: Tensor) -> dict[str, Tensor]:
        logits = self.out(self.lstm(self.embed(token))[0])
        return {"loss": F.cross_entropy(logits.flatten(0, 1), next.flatten())}


class Attention(nn.Module):
    """Causal attention of several heads, without biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = (f(x).view(n, t, self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(a.transpose(1, 2).reshape(n, t, c))


class Layer(nn.Module):
    """A Transformer's layer with the normalisation in front: Xiong and others 2020."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Radford and others 2018, over characters."""

    def __init__(self, vocab: int = 63, width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocab, width), nn.Parameter(torch.zeros(128, width))
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, vocab)

    def forward(self, token: Tensor, next: Tensor) -> dict[str, Tensor]:
        x = self.embed(token) + self.place[: token.shape[1]]
        logits = self.out(self.norm(self.layers(x)))
        return {"loss": F.cross_entropy(logits.flatten(0, 1), next.flatten())}


class GraphConvolution(nn.Module):
    """D^-1/2 (A + I) D^-1/2 X W + b: Kipf and Welling 2016, with A as it is there, a matrix."""

    def __init__(self, features: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(features, out)), nn.Parameter(torch.zeros(out))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor, adjacent: Tensor) -> Tensor:
        around = adjacent + torch.eye(len(x), dtype=x.dtype)
        scale = around.sum(1).rsqrt()
        return scale[:, None] * around * scale @ (x @ self.weight) + self.bias


class GCN(nn.Module):
    """Classes of a graph's nodes by two such layers."""

    def __init__(self, features: int = 64, classes: int = 10, hidden: int = 16, rate: float = 0.5) -> None:
        super().__init__()
        self.one, self.two = GraphConvolution(features, hidden), GraphConvolution(hidden, classes)
        self.before, self.after = Dropout(rate), Dropout(rate)

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        seen: Tensor,
        label: Tensor,
        before: Tensor | None = None,
        after: Tensor | None = None,
    ) -> dict[str, Tensor]:
        adjacent = torch.zeros(len(x), len(x), dtype=x.dtype)
        adjacent.index_put_((target, source), torch.ones(len(source), dtype=x.dtype), accumulate=True)
        h = torch.relu(self.one(self.before(x, before), adjacent))
        return classified(self.two(self.after(h, after), adjacent)[seen], label)


class Timed(nn.Module):
    """A convolution, the time added to each of its channels, a normalisation, a rectifier."""

    def __init__(self, channels: int, out: int, time: int) -> None:
        super().__init__()
        self.conv, self.time = nn.Conv2d(channels, out, 3, padding=1), nn.Linear(time, out)
        self.norm = nn.GroupNorm(1, out)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x) + self.time(time)[:, :, None, None]))


class DDPM(nn.Module):
    """Ho, Jain and Abbeel 2020, on digits of 8 × 8: a small U-Net tells the noise that was added."""

    def __init__(self, turns: int = 200, width: int = 32) -> None:
        super().__init__()
        self.turns = turns
        self.time = nn.Linear(32, 2 * width)
        self.fine1, self.fine2 = Timed(1, width, 2 * width), Timed(width, width, 2 * width)
        self.coarse1 = Timed(width, 2 * width, 2 * width)
        self.coarse2, self.coarse3 = (Timed(2 * width, 2 * width, 2 * width) for _ in range(2))
        self.up1, self.up2 = Timed(3 * width, width, 2 * width), Timed(width, width, 2 * width)
        self.out = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor, u: Tensor | None = None, noise: Tensor | None = None) -> dict[str, Tensor]:
        """u: in 0 … 1, tells how far each picture is gone; noise: what is added to it."""
        u = torch.rand(len(x), dtype=x.dtype) if u is None else u
        noise = torch.randn_like(x) if noise is None else noise
        now = (torch.floor(u * self.turns) + 1) / self.turns
        kept = (torch.cos((now + 0.008) / 1.008 * math.pi / 2) ** 2).clamp(1e-5, 0.9999)[:, None]
        mixed = kept.sqrt() * (2 * x - 1) + (1 - kept).sqrt() * noise
        return {"loss": F.mse_loss(self.found(mixed, now), noise)}

    def found(self, x: Tensor, now: Tensor) -> Tensor:
        """The noise in x."""
        angle = now[:, None] * 2 ** (torch.arange(16, dtype=x.dtype) / 2)
        time = F.silu(self.time(torch.cat((angle.sin(), angle.cos()), 1)))
        a = self.fine1(x.view(-1, 1, 8, 8), time)
        a = a + self.fine2(a, time)
        b = self.coarse1(F.avg_pool2d(a, 2), time)
        b = b + self.coarse2(b, time)
        b = b + self.coarse3(b, time)
        d = self.up1(torch.cat((a, F.interpolate(b, scale_factor=2)), 1), time)
        d = d + self.up2(d, time)
        return self.out(d).flatten(1)


TWINS: dict[str, type[nn.Module]] = {
    "lenet": LeNet,
    "resnet20": ResNet,
    "lstm": Forecast,
    "char_lm_lstm": CharLSTM,
    "gpt": GPT,
    "gcn": GCN,
    "ddpm": DDPM,
}
"""By the names of the recipes."""
