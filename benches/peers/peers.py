"""How long PyTorch and ONNX Runtime take for the frames that mimic makes, on this machine.

    python peers.py [--threads 2] [--frames 30] [--networks vox-256 ...] [--compile] [--add MIMIC.json ...] [--json OUT.json]

Each engine runs the whole frame (driving keypoints, relative motion, dense motion, generator) at 256x256, once as it
comes (the photo encoded in every frame, batch norm left for itself) and once tuned (the photo's features cached, batch
norm folded, weights in bf16 beforehand where bf16 is asked for). Median and minimum of the frames after a warm-up; pictures go in and come out as f32 tensors, so that reading,
compositing and writing are not in the numbers. `--add` puts the rows of `mimic bench --json` into the same table.
"""

import argparse
import gc
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from datetime import date
from pathlib import Path

# f32 means f32: oneDNN must not use bf16 units behind its back.
os.environ["ONEDNN_DEFAULT_FPMATH_MODE"] = "STRICT"

import numpy as np
import onnx
import onnxruntime
import torch

import check
import faces
import networks
from presets import PRESETS

COMES, TUNED = "each frame", "cached"
EMBEDDED = Path(__file__).resolve().parents[2] / "weights" / "mimic-small.safetensors"
BF16_UNITS = {"avx512_bf16", "amx_bf16", "bf16"}


def main():
    args = arguments()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    torch.set_num_interop_threads(1)

    rows = [row for file in args.add for row in json.loads(file.read_text())["rows"]]
    for name in args.networks:
        for engine, photo, run in engines(name, args):
            row = {"network": name, "engine": engine, "photo": photo, **measure(run, args)}
            rows.append(row)
            print(f"{name}, {engine}, photo {photo}: median {row['median_s']:.3f} s, min {row['min_s']:.3f} s", file=sys.stderr)
            del run
            gc.collect()
    for name in faces.FACES if args.faces else []:
        net, picture = faces.build(name)
        kind = torch.channels_last
        for layout, memory in (("", torch.contiguous_format), (", channels last", kind)):
            run = eager(net.to(memory_format=memory), (picture.contiguous(memory_format=memory),))
            row = {"network": name, "engine": f"PyTorch f32{layout}", "photo": COMES, **measure(run, args, 1, 5)}
            rows.append(row)
            print(f"{name}, {row['engine']}: median {row['median_s']:.3f} s, min {row['min_s']:.3f} s", file=sys.stderr)
        del net
        gc.collect()

    report = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "threads": args.threads,
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__,
                     "python": platform.python_version()},
        "rows": rows,
    }  # fmt: skip
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", type=int, default=30, help="timed frames for each row, at least 20 for a number to quote")
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--networks", nargs="*", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--faces", action="store_true", help="face detector and restorers too, seconds each")
    parser.add_argument("--compile", action="store_true", help="torch.compile too (needs a C++ compiler and some minutes)")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast even where the CPU has no unit for it")
    parser.add_argument("--weights", type=Path, default=EMBEDDED, help="of mimic-small; the others' are made up")
    parser.add_argument("--add", nargs="+", type=Path, default=[], help="what `mimic bench --json` and paddlegan.py printed")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    return parser.parse_args()


def engines(name, args):
    """Yields (engine, photo, a function that makes one frame)."""
    kind = torch.channels_last
    photo, driving, first = (x.contiguous(memory_format=kind) for x in torch.rand(3, 1, 3, 256, 256))
    net, tuned = networks.build(PRESETS[name]), networks.build(PRESETS[name])
    if name == "mimic-small" and args.weights.exists():
        check.load(net, args.weights)
        check.load(tuned, args.weights)
    with torch.inference_mode():
        source, initial = net.kp_detector(photo), net.kp_detector(first)
    ways = [(COMES, net, net.forward, (photo, driving, source, initial))]
    networks.tune(tuned)
    with torch.inference_mode():
        features, small = tuned.encode(photo)
    ways.append((TUNED, tuned, tuned.cached, (features, small, driving, source, initial)))

    for way, net, forward, inputs in ways:
        yield "ONNX Runtime f32", way, onnx_runtime(net, forward, inputs, args.threads)
    for way, net, forward, inputs in ways:
        net.to(memory_format=kind)
        yield "PyTorch f32", way, eager(forward, inputs)
    if args.compile:
        for way, net, forward, inputs in ways:
            yield "PyTorch f32, compiled", way, eager(torch.compile(forward), inputs)
    if not (args.bf16 or BF16_UNITS & set(machine()["vector_units"])):
        print(f"{name}: no bf16 row, this CPU would emulate it, many times slower than f32 (--bf16 insists)", file=sys.stderr)
        return
    for way, net, forward, inputs in ways:
        if way == TUNED:  # autocast would convert every weight in every frame
            for module in net.modules():
                if isinstance(module, torch.nn.Conv2d):
                    module.to(torch.bfloat16)
        yield "PyTorch bf16", way, eager(forward, inputs, bf16=True)


def eager(forward, inputs, bf16=False):
    @torch.inference_mode()
    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return forward(*inputs)

    return run


def onnx_runtime(net, forward, inputs, threads):
    """Exports to ONNX and gives back a function that runs it there. The first run is compared with PyTorch's."""

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, *inputs):
            return forward(*inputs)

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "frame.onnx"
        with torch.inference_mode():
            torch.onnx.export(Wrapped(), inputs, str(path), opset_version=20, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    flat = [t for x in inputs for t in (x if isinstance(x, tuple) else (x,))]
    feeds = {i.name: np.ascontiguousarray(t.numpy()) for i, t in zip(session.get_inputs(), flat, strict=True)}

    with torch.inference_mode():
        expected = forward(*inputs)[0].numpy()
    off = np.abs(session.run(None, feeds)[0] - expected).mean()
    if not off < 1e-3:
        sys.exit(f"ONNX Runtime's picture is off PyTorch's by {off}")
    return lambda: session.run(None, feeds)


def measure(run, args, warm_up=1000, frames=1000):
    for _ in range(min(args.warm_up, warm_up)):
        run()
    seconds = []
    for _ in range(min(args.frames, frames)):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"median_s": round(statistics.median(seconds), 5), "min_s": round(min(seconds), 5), "frames": len(seconds)}


def machine():
    try:
        info = Path("/proc/cpuinfo").read_text()
        fields = dict(line.split(":", 1) for line in info.split("\n\n")[0].replace("\t", "").splitlines() if ":" in line)
        flags = (fields.get("flags") or fields.get("Features", "")).split()
    except OSError:
        fields, flags = {}, []
    units = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16") if flag in flags]
    return {"cpu": fields.get("model name", platform.processor() or platform.machine()).strip(), "cores": os.cpu_count(),
            "vector_units": units, "system": platform.system()}  # fmt: skip


def table(report):
    """Seconds a frame in Markdown: a row for each engine and way, fastest first, a column for each network."""
    rows = report["rows"]
    columns = [name for name in [*PRESETS, *faces.FACES] if any(row["network"] == name for row in rows)]
    cells = {(row["engine"], row["photo"], row["network"]): row for row in rows}
    lines = list(dict.fromkeys((row["engine"], row["photo"]) for row in rows))
    lines.sort(key=lambda line: next((cells[*line, c]["median_s"] for c in columns if (*line, c) in cells), 0))

    def cell(row):
        return f"{row['median_s']:.3f} ({row['min_s']:.3f})" if row else ""

    machine, versions = report["machine"], report["versions"]
    text = [
        f"{report['date']}, {machine['cpu']}, {machine['cores']} cores ({' '.join(machine['vector_units']) or 'no vector units known'}), "
        f"{report['threads']} threads; " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "Seconds a frame at 256x256: median (minimum).",
        "",
        "| engine | photo's features | " + " | ".join(columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for line in lines:
        text.append(f"| {line[0]} | {line[1]} | " + " | ".join(cell(cells.get((*line, c))) for c in columns) + " |")
    return "\n".join(text)


if __name__ == "__main__":
    main()
