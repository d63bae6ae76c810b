"""Times training steps of mimic-small's networks in PyTorch: what `mimic train --config-file configs/faces.yaml` does in a step
without a perceptual network. Keypoints of source, driving and deformed pictures, the generator, L1, equivariance under an affine
transform (mimic's is a thin-plate spline), Adam.

    python benches/peers/train.py [--steps 8] [--batch 4] [--threads 2] [--channels-last]
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

import networks
import presets


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    net = networks.build(presets.PRESETS["mimic-small"]).train()
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    net = net.to(memory_format=layout)
    adam = torch.optim.Adam(net.parameters(), lr=3e-4, betas=(0.5, 0.999))
    shape = (args.batch, 3, args.size, args.size)
    took = []
    for step in range(args.steps + 2):
        source, driving = (torch.rand(shape).to(memory_format=layout) for _ in range(2))
        start = time.perf_counter()
        loss = losses(net, source, driving)
        adam.zero_grad()
        loss.backward()
        adam.step()
        if step >= 2:
            took.append(time.perf_counter() - start)
    print(f"{statistics.median(took):.2f} s a step (median of {args.steps}), {min(took):.2f} s the quickest")


def losses(net, source, driving):
    at_source, at_driving = net.kp_detector(source), net.kp_detector(driving)
    features, small = net.encode(source)
    prediction = net.generator(features, small, at_driving, at_source)[0]
    # What is at A x of the driving picture is at x of the deformed one.
    matrix = torch.eye(2) + 0.05 * torch.randn(len(source), 2, 2)
    grid = F.affine_grid(F.pad(matrix, (0, 1)), source.shape, align_corners=True)
    deformed = F.grid_sample(driving, grid, padding_mode="reflection", align_corners=True)
    value, jacobian = net.kp_detector(deformed)
    moved = value @ matrix.transpose(1, 2)
    turned = networks.inverse(at_driving[1]) @ matrix[:, None] @ jacobian
    equivariance = (at_driving[0] - moved).abs().mean() + (torch.eye(2) - turned).abs().mean()
    return 10 * (prediction - driving).abs().mean() + 10 * equivariance


if __name__ == "__main__":
    main()
