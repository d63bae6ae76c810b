"""The networks that look at whole faces, in PyTorch as their authors write them, for timing: S3FD on a photo whose
longer side is 1280, GPEN and GFPGAN (the "clean" form) on 512 pixels. Weights are made up, which changes nothing
about the speed.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

FACES = ["s3fd-1280", "gpen-512", "gfpgan-512"]
WIDTHS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64}
STYLE, SIZE = 512, 512


def build(name):
    """The network and an input for it."""
    torch.manual_seed(0)
    net, shape = {
        "s3fd-1280": (S3fd, (1, 3, 960, 1280)),
        "gpen-512": (Gpen, (1, 3, SIZE, SIZE)),
        "gfpgan-512": (Gfpgan, (1, 3, SIZE, SIZE)),
    }[name]
    return net().eval(), torch.rand(shape)


def conv(c_in, c_out, kernel=3, **more):
    return nn.Conv2d(c_in, c_out, kernel, padding=more.pop("padding", kernel // 2), **more)


class S3fd(nn.Module):
    """VGG16 with heads at six sizes."""

    STAGES = [[3, 64, 64], [64, 128, 128], [128, 256, 256, 256], [256, 512, 512, 512], [512, 512, 512, 512]]

    def __init__(self):
        super().__init__()
        chain = lambda widths: nn.ModuleList(conv(a, b) for a, b in zip(widths, widths[1:]))  # noqa: E731
        self.stages = nn.ModuleList(map(chain, self.STAGES))
        self.extra = nn.ModuleList([
            nn.ModuleList([conv(512, 1024, padding=3), conv(1024, 1024, 1)]),
            nn.ModuleList([conv(1024, 256, 1), conv(256, 512, stride=2)]),
            nn.ModuleList([conv(512, 128, 1), conv(128, 256, stride=2)]),
        ])  # fmt: skip
        widths = [256, 512, 512, 1024, 512, 256]
        self.classes = nn.ModuleList(conv(w, 4 if i == 0 else 2) for i, w in enumerate(widths))
        self.boxes = nn.ModuleList(conv(w, 4) for w in widths)

    def forward(self, x):
        seen = []
        for i, stage in enumerate(self.stages):
            for layer in stage:
                x = F.relu(layer(x))
            if i >= 2:
                seen.append(10 * x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
            x = F.max_pool2d(x, 2)
        for pair in self.extra:
            for layer in pair:
                x = F.relu(layer(x))
            seen.append(x)
        return [(c(x), b(x)) for c, b, x in zip(self.classes, self.boxes, seen)]


class Modulated(nn.Module):
    """A convolution whose weights a style scales, and divides by their length."""

    def __init__(self, c_in, c_out, kernel=3, demodulate=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, kernel, kernel) / math.sqrt(c_in * kernel * kernel))
        self.modulation = nn.Linear(STYLE, c_in)
        self.demodulate = demodulate

    def modulated(self, style):
        weight = self.weight * self.modulation(style).view(1, -1, 1, 1)
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.pow(2).sum((1, 2, 3), keepdim=True) + 1e-8)
        return weight

    def forward(self, x, style):
        return F.conv2d(x, self.modulated(style), padding=self.weight.shape[-1] // 2)


class Blur(nn.Module):
    """1, 3, 3, 1 in both directions."""

    def __init__(self, pad, gain=1.0):
        super().__init__()
        line = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", (line[:, None] * line[None, :] / 64 * gain)[None, None])
        self.pad = pad

    def forward(self, x):
        c = x.shape[1]
        return F.conv2d(F.pad(x, self.pad), self.kernel.expand(c, 1, 4, 4), groups=c)


class Styled(nn.Module):
    """GPEN's layer: noise beside the features."""

    def __init__(self, c_in, c_out, up=False):
        super().__init__()
        self.conv, self.up = Modulated(c_in, c_out), up
        self.blur = Blur((1, 1, 1, 1), 4.0)
        self.noise, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1, 2 * c_out, 1, 1))

    def forward(self, x, style, noise):
        if self.up:
            weight = self.conv.modulated(style).transpose(0, 1)
            y = self.blur(F.conv_transpose2d(x, weight, stride=2))
        else:
            y = self.conv(x, style)
        return F.leaky_relu(torch.cat((y, self.noise * noise), 1) + self.bias, 0.2) * math.sqrt(2)


class Gpen(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = sorted(WIDTHS)
        down = [WIDTHS[size] for size in reversed(sizes)]
        self.widen = conv(3, down[0], 1)
        self.down = nn.ModuleList(conv(a, b, stride=2, padding=0) for a, b in zip(down, down[1:]))
        self.blur = Blur((2, 2, 2, 2))
        self.last = nn.Linear(WIDTHS[4] * 16, STYLE)
        self.mapping = nn.Sequential(*[m for _ in range(8) for m in (nn.Linear(STYLE, STYLE), nn.LeakyReLU(0.2))])
        self.input = nn.Parameter(torch.randn(1, WIDTHS[4], 4, 4))
        self.first, self.first_rgb = Styled(WIDTHS[4], WIDTHS[4]), Modulated(2 * WIDTHS[4], 3, 1, False)
        pairs = [(WIDTHS[a], WIDTHS[b]) for a, b in zip(sizes, sizes[1:])]
        self.ups = nn.ModuleList(Styled(2 * a, b, True) for a, b in pairs)
        self.sames = nn.ModuleList(Styled(2 * b, b) for _, b in pairs)
        self.rgbs = nn.ModuleList(Modulated(2 * b, 3, 1, False) for _, b in pairs)
        self.enlarge = Blur((2, 1, 2, 1), 4.0)

    def forward(self, x):
        x = F.leaky_relu(self.widen(x), 0.2)
        noises = [x]
        for layer in self.down:
            x = F.leaky_relu(layer(self.blur(x)), 0.2)
            noises.insert(0, x)
        style = self.mapping(F.leaky_relu(self.last(x.flatten(1)), 0.2))
        x = self.first(self.input, style, noises[0])
        rgb = self.first_rgb(x, style)
        for up, same, to_rgb, noise in zip(self.ups, self.sames, self.rgbs, noises[1:]):
            x = same(up(x, style, noise), style, noise)
            spread = rgb.new_zeros(1, 3, 2 * rgb.shape[2], 2 * rgb.shape[3])
            spread[:, :, ::2, ::2] = rgb
            rgb = to_rgb(x, style) + self.enlarge(spread)
        return rgb


def resized(x, factor):
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class Residual(nn.Module):
    def __init__(self, c_in, c_out, factor):
        super().__init__()
        self.first, self.second, self.factor = conv(c_in, c_in), conv(c_in, c_out), factor
        self.skip = conv(c_in, c_out, 1, bias=False)

    def forward(self, x):
        y = F.leaky_relu(self.second(resized(F.leaky_relu(self.first(x), 0.2), self.factor)), 0.2)
        return y + self.skip(resized(x, self.factor))


class Noised(nn.Module):
    """GFPGAN's layer: noise added to the features."""

    def __init__(self, c_in, c_out, size, up=False):
        super().__init__()
        self.conv, self.up = Modulated(c_in, c_out), up
        self.register_buffer("noise", torch.randn(1, 1, size, size))
        self.bias = nn.Parameter(torch.zeros(1, c_out, 1, 1))

    def forward(self, x, style):
        x = resized(x, 2) if self.up else x
        return F.leaky_relu(self.conv(x, style) * math.sqrt(2) + self.noise + self.bias, 0.2)


class Gfpgan(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = sorted(WIDTHS)
        half = {size: width // 2 for size, width in WIDTHS.items()}
        pairs = list(zip(sizes, sizes[1:]))
        self.widen, self.last = conv(3, half[SIZE], 1), conv(half[4], half[4])
        self.down = nn.ModuleList(Residual(half[b], half[a], 0.5) for a, b in reversed(pairs))
        self.up = nn.ModuleList(Residual(half[a], half[b], 2) for a, b in pairs)
        self.styles = nn.Linear(half[4] * 16, 2 * len(sizes) * STYLE)
        condition = lambda c: nn.Sequential(conv(c, c), nn.LeakyReLU(0.2), conv(c, c))  # noqa: E731
        self.scales = nn.ModuleList(condition(half[b]) for _, b in pairs)
        self.shifts = nn.ModuleList(condition(half[b]) for _, b in pairs)
        self.input = nn.Parameter(torch.randn(1, WIDTHS[4], 4, 4))
        self.first, self.first_rgb = Noised(WIDTHS[4], WIDTHS[4], 4), Modulated(WIDTHS[4], 3, 1, False)
        self.ups = nn.ModuleList(Noised(WIDTHS[a], WIDTHS[b], b, True) for a, b in pairs)
        self.sames = nn.ModuleList(Noised(WIDTHS[b], WIDTHS[b], b) for _, b in pairs)
        self.rgbs = nn.ModuleList(Modulated(WIDTHS[b], 3, 1, False) for _, b in pairs)

    def forward(self, x):
        x = F.leaky_relu(self.widen(x), 0.2)
        skips = []
        for block in self.down:
            x = block(x)
            skips.insert(0, x)
        x = F.leaky_relu(self.last(x), 0.2)
        styles = self.styles(x.flatten(1)).view(-1, STYLE)
        y = self.first(self.input, styles[:1])
        rgb = self.first_rgb(y, styles[1:2])
        for i, skip in enumerate(skips):
            x = self.up[i](x + skip)
            y = self.ups[i](y, styles[2 * i + 1][None])
            same, moved = y.chunk(2, 1)
            y = torch.cat((same, moved * self.scales[i](x) + self.shifts[i](x)), 1)
            y = self.sames[i](y, styles[2 * i + 2][None])
            rgb = self.rgbs[i](y, styles[2 * i + 3][None]) + resized(rgb, 2)
        return rgb
