"""The widths of the networks that are compared; everything else about them is the same.

kp: width and limit of the keypoint detector; gen: of the generator; motion: of dense motion; blocks: in the bottleneck.
"""

PRESETS = {
    "vox-256": dict(kp=(32, 1024), gen=(64, 512), motion=(64, 1024), blocks=6, mobile=False),
    "vox-mobile": dict(kp=(32, 256), gen=(32, 256), motion=(32, 256), blocks=6, mobile=True),
    "mimic-small": dict(kp=(16, 256), gen=(32, 256), motion=(32, 256), blocks=4, mobile=False),
}
