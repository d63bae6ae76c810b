"""Whether the networks timed here are the ones meant: compares them with recorded results, where those are.

    python check.py WEIGHTS/mimic-small.safetensors FOLDER

FOLDER holds any of `mimic-small.golden.safetensors`, `vox_tiny.safetensors`, `mobile_tiny.safetensors`. Each line names a
quantity, the mean and the largest difference; the exit status is 1 when one is off.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import networks
from presets import PRESETS

TINY = dict(kp=(8, 64), gen=(8, 64), motion=(8, 64), blocks=6)


@torch.no_grad()
def check(weights, folder):
    """Compares what it finds; returns the number of quantities that are off, and of those compared."""
    results = []
    if (path := folder / "mimic-small.golden.safetensors").exists() and weights.exists():
        net = load(networks.build(PRESETS["mimic-small"]), weights)
        for tuned in (False, True):
            results += embedded(networks.tune(net) if tuned else net, load_file(path), " tuned" if tuned else "")
    for name in ("vox_tiny", "mobile_tiny"):
        if (path := folder / f"{name}.safetensors").exists():
            results += tiny(name, load_file(path))
    for what, mean, largest, bar in results:
        print(f"{'ok ' if mean <= bar else 'OFF'} {what}: mean {mean:.1e}, max {largest:.1e}")
    return sum(mean > bar for _, mean, _, bar in results), len(results)


def load(net, weights):
    tensors = {name: tensor.float() for name, tensor in load_file(weights).items()}
    missing, extra = net.load_state_dict(tensors, strict=False)
    left = [name for name in missing if not name.endswith(("num_batches_tracked", "down.weight"))]
    if left or extra:
        sys.exit(f"{weights} is not of this network: missing {left}, extra {extra}")
    return net


def embedded(net, golden, note):
    """The embedded model: keypoints, relative motion, deformation, occlusion and picture."""
    photo, initial, driving = (picture(golden[k]) for k in ("source", "driving_initial", "driving"))
    source, first, now = (net.kp_detector(x) for x in (photo, initial, driving))
    moved = networks.relative(source, now, first)
    out = net(photo, driving, source, first)
    again = net.cached(*net.encode(photo), driving, source, first)
    pairs = [("kp_source", source), ("kp_initial", first), ("kp_driving", now), ("kp_norm", moved)]
    yield from (
        off(f"mimic-small{note} {k}.{part}", kp[i], golden[f"{k}.{part}"], 1e-4)
        for k, kp in pairs
        for i, part in enumerate(("value", "jacobian"))
    )
    for i, part in enumerate(("prediction", "deformation", "occlusion")):
        yield off(f"mimic-small{note} {part}", out[i], golden[part], 1e-3)
        yield off(f"mimic-small{note} {part}, photo cached", again[i], golden[part], 1e-3)


def tiny(name, golden):
    """A narrow network with procedural weights, absolute motion. The border is left out: it is blended in the recording."""
    net = networks.build(dict(TINY, mobile=name == "mobile_tiny"), seed=name)
    photo, driving = picture(golden["source"]), picture(golden["driving"][1])
    source, now = net.kp_detector(photo), net.kp_detector(driving)
    for k, kp in (("kp_source", source), ("kp_driving.1", now)):
        for i, part in enumerate(("value", "jacobian")):
            yield off(f"{name} {k}.{part}", kp[i], golden[f"{k}.{part}"], 1e-4)
    features, small = net.encode(photo)
    out = net.generator(features, small, now, source)
    inner = slice(80, -80)
    for part, mine in (("deformation", out[1]), ("prediction", out[0])):
        theirs = golden[f"out.1.absolute.{part}"]
        if part == "prediction":
            mine, theirs = mine[..., inner, inner], theirs[..., inner, inner]
        yield off(f"{name} {part}", mine, theirs, 1e-3)


def picture(rgb):
    return rgb[None].permute(0, 3, 1, 2).float().div(255).contiguous()


def off(what, mine, theirs, bar):
    difference = (mine - theirs).abs()
    return what, difference.mean().item(), difference.max().item(), bar


if __name__ == "__main__":
    wrong, of = check(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{of - wrong} of {of} quantities agree")
    sys.exit(1 if wrong or not of else 0)
