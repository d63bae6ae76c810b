"""How long PaddleGAN itself takes for a frame, from a checkout of it: rows for the table of peers.py.

    python paddlegan.py CHECKOUT [--threads 2] [--frames 30] > paddle.json
    python peers.py --add paddle.json

In a virtual environment of its own (paddlepaddle==3.3.1, opencv-python-headless), since PaddlePaddle and PyTorch bring different
copies of the same libraries. The networks are the checkout's, as they come: the photo is encoded in every frame. Their
weights are PaddlePaddle's first guess, which changes nothing about the speed.
"""

import argparse
import json
import statistics
import sys
import time
import types
from pathlib import Path

import paddle

from presets import PRESETS


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--networks", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    args = parser.parse_args()
    paddle.set_device("cpu")
    paddle.core.set_num_threads(args.threads)
    paddle.seed(0)
    detector_of, generator_of = reference(args.checkout)

    rows = []
    for name in args.networks:
        preset, hourglass = PRESETS[name], dict(num_blocks=5, scale_factor=0.25)
        common = dict(num_kp=10, num_channels=3, estimate_jacobian=True, mobile_net=preset["mobile"])
        detector = detector_of(**common, **width(preset["kp"]), **hourglass, temperature=0.1)
        generator = generator_of(
            **common, **width(preset["gen"]), num_down_blocks=2, num_bottleneck_blocks=preset["blocks"],
            estimate_occlusion_map=True, dense_motion_params={**width(preset["motion"]), **hourglass}, inference=True,
        )  # fmt: skip
        detector.eval(), generator.eval()
        seconds = time_frames(detector, generator, args)
        rows.append({"network": name, "engine": f"PaddleGAN on PaddlePaddle {paddle.__version__} f32", "photo": "each frame",
                     "median_s": round(statistics.median(seconds), 5), "min_s": round(min(seconds), 5), "frames": args.frames})  # fmt: skip
        print(f"{name}: median {rows[-1]['median_s']:.3f} s, min {rows[-1]['min_s']:.3f} s", file=sys.stderr)
    print(json.dumps({"rows": rows}, indent=1))


def width(pair):
    return dict(block_expansion=pair[0], max_features=pair[1])


def reference(checkout):
    """The two networks' classes. The packages around them are left empty: they import much that is not needed here."""
    for name in ("ppgan", "ppgan.modules", "ppgan.models", "ppgan.models.generators"):
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    from ppgan.models.generators.occlusion_aware import OcclusionAwareGenerator
    from ppgan.modules.keypoint_detector import KPDetector

    return KPDetector, OcclusionAwareGenerator


@paddle.no_grad()
def time_frames(detector, generator, args):
    photo, driving, first = (paddle.rand([1, 3, 256, 256]) for _ in range(3))
    source, initial = detector(photo), detector(first)
    seconds = []
    for _ in range(args.warm_up + args.frames):
        start = time.perf_counter()
        found = detector(driving)
        moved = {
            "value": found["value"] - initial["value"] + source["value"],
            "jacobian": found["jacobian"] @ paddle.inverse(initial["jacobian"]) @ source["jacobian"],
        }
        generator(photo, kp_driving=moved, kp_source=source)["prediction"].numpy()
        seconds.append(time.perf_counter() - start)
    return seconds[args.warm_up :]


if __name__ == "__main__":
    main()
