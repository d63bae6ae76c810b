#!/bin/sh
# Puts NVIDIA's compiler and libraries into a folder, from their Python wheels: all that `cargo build --features cudnn` needs, on a
# machine that has neither CUDA nor a graphics card. 1.5 GB to download; nothing outside the folder is touched.
#
#   scripts/cuda-toolkit.sh DIR      then, in every shell that builds: . DIR/env.sh
#
# CUDA_VERSION is the toolkit's (13.0, which asks for driver 580 or newer), CUDA_COMPUTE_CAP the oldest card that is built for (80).
set -eu
[ $# = 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
version=${CUDA_VERSION:-13.0}
major=${version%%.*}

python3 -m pip install --quiet --no-deps --upgrade --target "$dir" \
    "nvidia-cuda-nvcc==$version.*" "nvidia-cuda-crt==$version.*" "nvidia-nvvm==$version.*" \
    "nvidia-cuda-runtime==$version.*" "nvidia-cuda-cccl==$version.*" "nvidia-cuda-nvrtc==$version.*" \
    "nvidia-cublas==$version.*" 'nvidia-curand<11' "nvidia-cudnn-cu$major"

cuda="$dir/nvidia/cu$major"
cudnn="$dir/nvidia/cudnn"
[ -x "$cuda/bin/nvcc" ] || { echo "cuda-toolkit.sh: the wheels brought no $cuda/bin/nvcc" >&2; exit 1; }
ln -sfn lib "$cuda/lib64"
# Wheels have libraries by their full names only, and a linker looks for the short ones.
for library in "$cuda"/lib/lib*.so.* "$cudnn"/lib/lib*.so.*; do
    ln -sf "$(basename "$library")" "${library%%.so.*}.so"
done

# The driver's own library comes with the driver. To link without one, a library of the same name whose functions all answer
# CUDA_ERROR_STUB_LIBRARY, as NVIDIA's toolkits bring one too.
mkdir -p "$cuda/lib/stubs"
grep -oE '\bcu[A-Z][A-Za-z0-9_]*' "$cuda/include/cuda.h" | sort -u | sed 's/.*/int &(void) { return 34; }/' |
    cc -w -shared -fPIC -Wl,-soname,libcuda.so.1 -x c - -o "$cuda/lib/stubs/libcuda.so.1"
ln -sf libcuda.so.1 "$cuda/lib/stubs/libcuda.so"

cat >"$dir/env.sh" <<END
export CUDA_HOME='$cuda' CUDA_PATH='$cuda' CUDA_ROOT='$cuda' NVCC='$cuda/bin/nvcc' CUDNN_LIB='$cudnn/lib'
export CUDA_COMPUTE_CAP='${CUDA_COMPUTE_CAP:-80}'
export LIBRARY_PATH='$cuda/lib:$cuda/lib/stubs:$cudnn/lib'
export PATH='$cuda/bin':"\$PATH"
END
echo "now: . $dir/env.sh"
