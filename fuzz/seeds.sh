#!/bin/sh
# Fills corpus/ with the test fixtures, each under the targets that read its format.
# The whole models are too large to mutate well: the small files of all kinds teach more.
set -eu
cd "$(dirname "$0")"
for target in safetensors torch_zip torch_legacy pdparams pickle; do
    mkdir -p "corpus/$target"
done
for file in ../tests/fixtures/unusual/* ../tests/fixtures/hostile/*; do
    size=$(wc -c < "$file")
    [ "$size" -le 4096 ] || continue
    case $file in
        *.safetensors) cp "$file" corpus/safetensors/ ;;
        *legacy*.pth | *storage*.pth | *machine*.pth | *view*.pth | *key_list*.pth)
            cp "$file" corpus/torch_legacy/
            cp "$file" corpus/torch_zip/ ;;
        *.pth) cp "$file" corpus/torch_zip/ ;;
        *.pdparams) cp "$file" corpus/pdparams/ ;;
    esac
done
# The pickle target takes data.pkl alone; the zips store it as their first record.
python3 - <<'PY'
import glob, os, zipfile
for path in glob.glob("corpus/torch_zip/*"):
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    target = "corpus/pickle/" + os.path.basename(path) + ".pkl"
                    open(target, "wb").write(archive.read(name))
    except Exception:
        pass  # Hostile seeds are for the zip target alone.
PY
cp corpus/pdparams/* corpus/pickle/
mkdir -p corpus/written corpus/take
cp ../configs/*.yaml ../tests/train/*.yaml ../weights/manifest.toml corpus/written/
python3 - <<'PY'
import json, struct
config = {"model": "mimic-small", "keypoints": 2, "jacobian": True}
for name, jacobian in ("with", True), ("without", False):
    header = json.dumps({**config, "jacobian": jacobian}).encode()
    numbers = 1 + 2 * (6 if jacobian else 2)
    records = b"".join(struct.pack(f"<{numbers}f", i / 25, *[0.1 * i] * (numbers - 1)) for i in range(3))
    open(f"corpus/take/{name}.take", "wb").write(b"mimic-take 1\n" + header + b"\n" + records)
PY
