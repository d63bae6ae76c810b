"""How long PyTorch takes on an NVIDIA card for the frames that mimic makes: eager and compiled, f32 and f16.

    python gpu.py [--seconds 240] --json OUT.json

Whole frames with the photo's features cached and batch norm folded, as mimic makes them. Rows are written as they come, so that what was measured
is kept when time runs out; compiling (max-autotune, f16) comes last. Needs a PyTorch that was built for CUDA.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import networks
from presets import PRESETS

BATCHES = (1, 4, 16)
FRAMES = 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=240, help="no row is begun after so many")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    # f32 means f32, as it does in mimic.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    begun, rows = time.monotonic(), []
    for compiled, dtype in ((False, torch.float32), (False, torch.float16), (True, torch.float16)):
        for name in PRESETS:
            for batch in BATCHES:
                label = f"PyTorch {'f32' if dtype == torch.float32 else 'f16'}{', compiled' if compiled else ''}"
                if time.monotonic() - begun > args.seconds:
                    print(f"{name}, {label}, {batch} at once: no time left")
                    continue
                try:
                    row = measure(name, batch, dtype, compiled)
                except Exception as error:  # one row less, whatever it is
                    print(f"{name}, {label}, {batch} at once: {type(error).__name__}: {error}")
                    continue
                rows.append({"network": name, "engine": label, "photo": "cached", "batch": batch, **row})
                print(f"{name}, {label}, {batch} at once: {row['median_s'] * 1e3:.2f} ms a frame")
                versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
                args.json.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")


@torch.inference_mode()
def measure(name, batch, dtype, compiled):
    torch.manual_seed(0)
    kind = torch.channels_last
    net = networks.build(PRESETS[name])
    networks.tune(net)
    net = net.to("cuda", dtype).to(memory_format=kind)
    photo, driving, first = torch.rand(3, batch, 3, 256, 256, device="cuda", dtype=dtype).unbind(0)
    photo, driving = photo[:1].to(memory_format=kind), driving.to(memory_format=kind)
    source, initial = net.kp_detector(photo), net.kp_detector(first[:1])
    features, small = net.encode(photo)
    wide = [t.expand(batch, *t.shape[1:]).contiguous() for t in (features, small)]
    source, initial = (tuple(t.expand(batch, *t.shape[1:]) for t in kp) for kp in (source, initial))
    frame = torch.compile(net.cached, mode="max-autotune") if compiled else net.cached

    def run():
        # To bytes in the host's memory, where mimic's pictures end too.
        return (frame(*wide, driving, source, initial)[0] * 255).to(torch.uint8).cpu()

    for _ in range(5):
        run()
    seconds = []
    for _ in range(FRAMES):
        start = time.perf_counter()
        run()
        seconds.append((time.perf_counter() - start) / batch)
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "frames": FRAMES}


if __name__ == "__main__":
    main()
