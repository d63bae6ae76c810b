"""The networks that mimic runs, in PyTorch, to time them where PyTorch and ONNX Runtime run them.

Keypoint detector, dense motion and occlusion-aware generator of the First Order Motion Model, in the full and in the
depthwise ("mobile") variant, with the tensor names of the published checkpoints. Batch norm is in inference mode.
`tune` does what a careful user of PyTorch would do on top: batch norm folded into the convolutions before it, the
anti-aliased small picture by one strided convolution. Left out: training, and the blend at the picture's border.

Shapes are (b, c, h, w); keypoints are (x, y) in -1..1; a set of keypoints is a pair (values (b, k, 2), jacobians (b, k, 2, 2)).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

KEYPOINTS, CHANNELS, SCALE, TEMPERATURE, VARIANCE = 10, 3, 0.25, 0.1, 0.01
DEPTH = 5  # of both hourglasses


class Frame(nn.Module):
    """A whole frame: the driving picture's keypoints, relative motion, dense motion, generator."""

    def __init__(self, kp, gen, motion, blocks, mobile):
        super().__init__()
        self.kp_detector = KeypointDetector(*kp, mobile)
        self.generator = Generator(*gen, motion, blocks, mobile)

    def forward(self, photo, driving, source, initial):
        """As it comes: the photo is encoded in every frame, and warped once more for show."""
        features, small = self.encode(photo)
        picture, deformation, occlusion = self.cached(features, small, driving, source, initial)
        return picture, deformation, occlusion, warp(photo, deformation)

    def encode(self, photo):
        """What depends on the photo alone."""
        generator = self.generator
        features = generator.first(photo)
        for block in generator.down_blocks:
            features = block(features)
        return features, generator.dense_motion_network.down(photo)

    def cached(self, features, small, driving, source, initial):
        """The rest, once per driving picture."""
        moved = relative(source, self.kp_detector(driving), initial)
        return self.generator(features, small, moved, source)


def relative(source, driving, initial):
    """The driver's motion since its first picture, applied to the photo's keypoints."""
    value = driving[0] - initial[0] + source[0]
    jacobian = driving[1] @ inverse(initial[1]) @ source[1]
    return value, jacobian


class KeypointDetector(nn.Module):
    def __init__(self, width, limit, mobile):
        super().__init__()
        self.down = AntiAlias(mobile)
        self.predictor = Hourglass(CHANNELS, width, limit, mobile)
        found = self.predictor.out
        self.kp = head(found, KEYPOINTS, mobile, relu=False, pad=False)
        self.jacobian = head(found, 4 * KEYPOINTS, mobile, relu=False, pad=False)

    def forward(self, picture):
        features = self.predictor(self.down(picture))
        heat = self.kp(features)
        b, k, h, w = heat.shape
        heat = F.softmax(heat.reshape(b, k, h * w) / TEMPERATURE, dim=2)
        value = heat @ coordinates(h, w, heat).reshape(h * w, 2)
        slope = self.jacobian(features).reshape(b, k, 4, h * w)
        return value, (heat[:, :, None] * slope).sum(3).reshape(b, k, 2, 2)


class Generator(nn.Module):
    def __init__(self, width, limit, motion, blocks, mobile):
        super().__init__()
        wide = [min(limit, width << i) for i in range(3)]
        down, up, residual = (MobileDown, MobileUp, MobileResidual) if mobile else (Down, Up, Residual)
        self.dense_motion_network = DenseMotion(*motion, mobile)
        if mobile:
            self.first = nn.Sequential(*(Same(CHANNELS, o, 3, bias=False) for o in (CHANNELS, CHANNELS, wide[0])))
        else:
            self.first = Same(CHANNELS, wide[0], 7)
        self.down_blocks = nn.ModuleList(down(wide[i], wide[i + 1]) for i in range(2))
        self.bottleneck = nn.Sequential()
        for i in range(blocks):
            self.bottleneck.add_module(f"r{i}", residual(wide[2]))
        self.up_blocks = nn.ModuleList(up(wide[2 - i], wide[1 - i]) for i in range(2))
        self.final = head(wide[0], CHANNELS, mobile)

    def forward(self, features, small, driving, source):
        deformation, occlusion = self.dense_motion_network(small, driving, source)
        x = self.bottleneck(warp(features, deformation) * occlusion)
        for block in self.up_blocks:
            x = block(x)
        return torch.sigmoid(self.final(x)), deformation, occlusion


class DenseMotion(nn.Module):
    def __init__(self, width, limit, mobile):
        super().__init__()
        self.down = AntiAlias(mobile)
        self.hourglass = Hourglass((KEYPOINTS + 1) * (CHANNELS + 1), width, limit, mobile)
        self.mask = head(self.hourglass.out, KEYPOINTS + 1, mobile)
        self.occlusion = head(self.hourglass.out, 1, mobile)

    def forward(self, small, driving, source):
        b, c, h, w = small.shape
        here = coordinates(h, w, small)

        def bell(points):
            return torch.exp((here - points[:, :, None, None]).square().sum(-1) / (-2 * VARIANCE))

        heat = F.pad(bell(driving[0]) - bell(source[0]), (0, 0, 0, 0, 1, 0))  # the background has none
        # Near each keypoint: T(z) = source + J_source J_driving^-1 (z - driving); the background stays where it is.
        affine = source[1] @ inverse(driving[1])
        offset = (here - driving[0][:, :, None, None]).reshape(b, KEYPOINTS, h * w, 2)
        near = offset @ affine.transpose(2, 3) + source[0][:, :, None]
        still = here.reshape(1, 1, h * w, 2).expand(b, -1, -1, -1)
        grids = torch.cat([still, near], 1).reshape(b * (KEYPOINTS + 1), h, w, 2)
        copies = small[:, None].expand(-1, KEYPOINTS + 1, -1, -1, -1).reshape(b * (KEYPOINTS + 1), c, h, w)
        copies = warp(copies, grids).reshape(b, KEYPOINTS + 1, c, h, w)
        seen = self.hourglass(torch.cat([heat[:, :, None], copies], 2).reshape(b, -1, h, w))

        mask = F.softmax(self.mask(seen), dim=1)
        deformation = (mask[..., None] * grids.reshape(b, KEYPOINTS + 1, h, w, 2)).sum(1)
        return deformation, torch.sigmoid(self.occlusion(seen))


class Hourglass(nn.Module):
    """Down `DEPTH` times and up again, each step up joined by what was seen on the way down."""

    def __init__(self, channels, width, limit, mobile):
        super().__init__()
        down, up = (MobileDown, MobileUp) if mobile else (Down, Up)
        wide = [min(limit, width << i) for i in range(DEPTH + 1)]
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.down_blocks = nn.ModuleList(down(channels if i == 0 else wide[i], wide[i + 1]) for i in range(DEPTH))
        self.decoder.up_blocks = nn.ModuleList(
            up(wide[i + 1] * (1 if i == DEPTH - 1 else 2), wide[i]) for i in reversed(range(DEPTH))
        )
        self.out = width + channels

    def forward(self, x):
        seen = [x]
        for block in self.encoder.down_blocks:
            seen.append(block(seen[-1]))
        x = seen.pop()
        for block in self.decoder.up_blocks:
            x = torch.cat([block(x), seen.pop()], 1)
        return x


class Same(nn.Module):
    def __init__(self, i, o, kernel=3, bias=True):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(i, o, kernel, padding=kernel // 2, bias=bias), nn.BatchNorm2d(o)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


class Down(Same):
    def forward(self, x):
        return F.avg_pool2d(super().forward(x), 2)


class Up(Same):
    def forward(self, x):
        return super().forward(F.interpolate(x, scale_factor=2))


class MobileSame(nn.Module):
    """Depthwise, then pointwise, each with its norm."""

    def __init__(self, i, o):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(i, i, 3, padding=1, groups=i, bias=False), nn.BatchNorm2d(i)
        self.conv1, self.norm1 = nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o)

    def forward(self, x):
        return F.relu(self.norm1(self.conv1(F.relu(self.norm(self.conv(x))))))


class MobileDown(MobileSame):
    def forward(self, x):
        return F.avg_pool2d(super().forward(x), 2)


class MobileUp(MobileSame):
    def forward(self, x):
        return super().forward(F.interpolate(x, scale_factor=2))


class Residual(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c), nn.Conv2d(c, c, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(c), nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class MobileResidual(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c)
        self.conv_pw, self.norm_pw = nn.Conv2d(c, 2 * c, 1, bias=False), nn.BatchNorm2d(2 * c)
        self.conv_dw, self.norm_dw = nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c, bias=False), nn.BatchNorm2d(2 * c)
        self.conv_pw_linear, self.norm_pw_linear = nn.Conv2d(2 * c, c, 1, bias=False), nn.BatchNorm2d(c)

    def forward(self, x):
        y = self.norm_pw(self.conv_pw(F.relu(self.norm1(x))))
        y = F.relu(self.norm_dw(self.conv_dw(y)))
        return x + self.norm_pw_linear(self.conv_pw_linear(y))


class AntiAlias(nn.Module):
    """A gaussian, then every fourth pixel. `stride` 1 filters the whole picture first, as the reference does."""

    def __init__(self, mobile):
        super().__init__()
        step = int(1 / SCALE)
        sigma, half = (0.25, 1) if mobile else ((step - 1) / 2, round((step - 1) / 2 * 4))
        bell = torch.exp(-(torch.arange(-half, half + 1.0) ** 2) / (2 * sigma**2))
        kernel = torch.outer(bell, bell)
        self.register_buffer("weight", (kernel / kernel.sum()).repeat(CHANNELS, 1, 1, 1))
        self.half, self.step, self.stride = half, step, 1

    def forward(self, x):
        x = F.conv2d(x, self.weight, padding=self.half, stride=self.stride, groups=CHANNELS)
        return x if self.stride > 1 else x[:, :, :: self.step, :: self.step]


def head(i, o, mobile, relu=True, pad=True):
    """One 7x7 convolution, or in the mobile variant three of 3x3."""
    if not mobile:
        return nn.Conv2d(i, o, 7, padding=3 if pad else 0)
    convs = [nn.Conv2d(i, out, 3, padding=1 if pad else 0) for out in (i, i, o)]
    return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2]) if relu else nn.Sequential(*convs)


def coordinates(h, w, like):
    """(h, w, 2): the (x, y) of each pixel, -1 and 1 at the outermost ones."""
    line = [torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) for n in (h, w)]
    y, x = torch.meshgrid(*line, indexing="ij")
    return torch.stack([x, y], -1)


def warp(x, deformation):
    """Bilinear, zeros outside; a small deformation is enlarged to the picture's size first."""
    if deformation.shape[1:3] != x.shape[2:]:
        deformation = F.interpolate(deformation.permute(0, 3, 1, 2), x.shape[2:], mode="bilinear").permute(0, 2, 3, 1)
    return F.grid_sample(x, deformation, align_corners=True)


def inverse(m):
    """Of 2x2 matrices, written out: it can be exported."""
    a, b, c, d = m[..., 0, 0], m[..., 0, 1], m[..., 1, 0], m[..., 1, 1]
    return torch.stack([d, -b, -c, a], -1).reshape(m.shape) / (a * d - b * c)[..., None, None]


def tune(net):
    """Folds each batch norm that follows a convolution into it, and filters only the pixels that are kept."""
    after = {"conv": "norm", "conv1": "norm1", "conv_pw": "norm_pw", "conv_dw": "norm_dw", "conv_pw_linear": "norm_pw_linear"}
    for module in net.modules():
        if isinstance(module, AntiAlias):
            module.stride = module.step
        pairs = {"conv1": "norm2"} if isinstance(module, Residual) else after
        for conv, norm in pairs.items():
            if isinstance(getattr(module, conv, None), nn.Conv2d) and isinstance(getattr(module, norm, None), nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())
    return net


def build(config, seed="peers"):
    """A network in inference mode, filled with weights that follow from the tensors' names."""
    net = Frame(**config).eval().requires_grad_(False)
    for name, tensor in net.state_dict().items():
        if not name.endswith(("num_batches_tracked", "down.weight")):
            tensor.copy_(torch.from_numpy(procedural(seed, name, tensor.shape)))
    return net


def procedural(seed, name, shape):
    """Weights as the recorded fixtures define them: splitmix64 of the row-major index, keyed by FNV-1a of the name."""
    name = name.replace("running_mean", "_mean").replace("running_var", "_variance")
    key = 0xCBF29CE484222325
    for byte in f"{seed}.{name}".encode():
        key = (key ^ byte) * 0x100000001B3 % 2**64
    z = np.uint64(key) + np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    v = 2 * ((z >> np.uint64(40)) * 2.0**-24) - 1

    if len(shape) > 1:
        v *= 1.4 * math.sqrt(3 / math.prod(shape[1:]))
    elif name.endswith(("weight", "_variance")):
        v = 1 + 0.5 * v
    else:
        v *= 0.2 if name.endswith("_mean") else 0.1
    if "jacobian" in name:
        v *= 0.3
        if shape == (4 * KEYPOINTS,):
            v += np.tile([1.0, 0.0, 0.0, 1.0], KEYPOINTS)
    return v.reshape(shape).astype(np.float32)
