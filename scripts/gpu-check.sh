#!/bin/sh
# Whether mimic is right on this machine's graphics card, and how fast.
#
#   scripts/gpu-check.sh pack DIR   builds and puts into a folder all that the check needs: it can be carried to a machine that has a
#                                   card and nothing else
#   DIR/gpu-check.sh                the check: parity and gradients, the networks timed, 300 frames rendered, beside PyTorch where
#                                   there is one for the card. Under 8 minutes; gpu-check.json and gpu-check.md are what it found
#
# PROFILE is the build's (release), FEATURES cudnn where NVIDIA's compiler is here (scripts/cuda-toolkit.sh brings it) and else none.
# DEVICE is what is tested (cuda:0 where there is a card, else cpu).
set -eu

frames=300

pack() {
    cd "$(dirname "$0")/.."
    profile=${PROFILE:-release}
    if [ -z "${FEATURES+given}" ]; then
        if [ -x "${NVCC:-}" ] || command -v nvcc >/dev/null 2>&1; then FEATURES=cudnn; else FEATURES=; fi
    fi
    [ -n "$FEATURES" ] || echo "gpu-check: no nvcc here, so the check will know the CPU alone (scripts/cuda-toolkit.sh DIR brings it)" >&2
    tests=$(cargo test --locked --profile "$(test "$profile" = debug && echo dev || echo "$profile")" --features "$FEATURES" \
        --test gpu --no-run --message-format json | sed -n 's/.*"name":"gpu".*"executable":"\([^"]*\)".*/\1/p' | tail -1)
    [ -x "$tests" ] || { echo "gpu-check: cargo made no tests" >&2; exit 1; }
    # Beside the tests, cargo builds the program that they may run.
    mimic=$(dirname "$tests")/../mimic
    mkdir -p "$1/weights" "$1/tests/fixtures" "$1/assets" "$1/peers" "$1/lib"
    cp "$tests" "$1/gpu-tests"
    cp "$mimic" scripts/gpu-check.sh "$1/"
    cp weights/mimic-small.safetensors "$1/weights/"
    for name in vox_tiny mobile_tiny mimic-small.golden; do cp "tests/fixtures/$name.safetensors" "$1/tests/fixtures/"; done
    cp assets/mona-lisa.jpg assets/driver.mp4 "$1/assets/"
    cp benches/peers/gpu.py benches/peers/networks.py benches/peers/presets.py "$1/peers/"
    # CUDA's libraries, but not the driver's, which comes with the card.
    if [ -n "$FEATURES" ]; then
        cuda=${CUDA_HOME:-$(dirname "$(dirname "$(command -v nvcc)")")}
        for name in cublas cublasLt curand cudart nvrtc nvrtc-builtins cudnn 'cudnn_*'; do
            for library in "$cuda"/lib64/lib$name.so.[0-9]* ${CUDNN_LIB:+"$CUDNN_LIB"/lib$name.so.[0-9]*}; do
                [ ! -e "$library" ] || cp -L "$library" "$1/lib/"
            done
        done
    fi
    # Read without ffmpeg too.
    mkdir -p "$1/assets/frames"
    ffmpeg -v error -y -stream_loop -1 -i assets/driver.mp4 -frames:v $frames -vf crop=ih:ih,scale=256:256 -q:v 3 "$1/assets/frames/%05d.jpg"
    echo "gpu-check: $1 is ready; run $1/gpu-check.sh on the machine with the card"
}

say() { echo "gpu-check: $*" >&2; }

# Seconds since the start.
spent() { echo $(($(date +%s) - begun)); }

check() {
    here=$(cd "$(dirname "$0")" && pwd)
    out=${OUT:-$here}
    mkdir -p "$out"
    begun=$(date +%s)
    # What the machine names itself comes before the folder's own.
    export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$here/lib"
    cd "$out"
    card=null
    if nvidia-smi -L >/dev/null 2>&1 && nvidia-smi -L | grep -q .; then
        device=${DEVICE:-cuda:0}
        fields=name,uuid,driver_version,compute_cap,memory.total,memory.used,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu,mig.mode.current,pcie.link.gen.current,pcie.link.width.current
        card=$(nvidia-smi --query-gpu=$fields --format=csv,noheader,nounits | head -1 | awk -F', ' -v names=$fields '{
            gsub(/"/, ""); n = split(names, name, ","); printf "{"
            for (i = 1; i <= n; i++) printf "%s\"%s\": \"%s\"", (i > 1 ? ", " : ""), name[i], $i
            print "}" }')
        nvidia-smi -q >nvidia-smi.txt 2>&1 || true
        say "the card is $(nvidia-smi -L | head -1)"
        # What is used of its memory, until the end.
        nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 200 >memory.txt 2>/dev/null &
        watcher=$!
        trap 'kill $watcher 2>/dev/null' EXIT
    else
        device=${DEVICE:-cpu}
        say "there is no NVIDIA card here (nvidia-smi finds none): the check runs on the CPU, which shows that its tests work and nothing of a card"
    fi
    if ! "$here/mimic" doctor >doctor.txt 2>&1 && ! grep -q '^mimic ' doctor.txt; then
        say "the program does not start: $(tail -1 doctor.txt)"
        exit 1
    fi

    say "parity and gradients on $device"
    tests=passed
    MIMIC_TEST_DEVICE=$device MIMIC_TEST_ROOT=$here "$here/gpu-tests" --nocapture --test-threads 1 >tests.txt 2>&1 || tests=failed
    grep -E '^test result|^test .*FAILED' tests.txt >&2 || tail -5 tests.txt >&2

    if [ "$device" = cpu ]; then
        set -- --network mimic-small --precision f32 --batch 1 --batch 4 --frames 3 --warm-up 1
    else
        set -- --network vox-256 --network vox-512 --network vox-mobile --network mimic-small \
            --precision f32 --precision auto --precision bf16 --batch 1 --batch 4 --batch 16 --frames 20
    fi
    say "the networks, $(spent) s"
    (cd "$here" && timeout 200 ./mimic bench --json --device "$device" "$@") >bench.json 2>bench.log || { say "mimic bench failed: $(tail -1 bench.log)"; echo null >bench.json; }

    say "$frames frames from end to end, $(spent) s"
    many="$here/assets/frames"
    if [ "$device" = cpu ]; then
        # A few show that it runs.
        many=$(mktemp -d) && cp "$here"/assets/frames/0000[1-8].jpg "$many"
    fi
    if command -v ffmpeg >/dev/null 2>&1; then result=render.mp4; else result=render/%05d.png; fi
    timeout 120 "$here/mimic" animate --source-image "$here/assets/mona-lisa.jpg" --crop 150,60,670,580 --driving-video "$many" --driving-crop whole \
        --device "$device" --batch-size 16 --json -o "$result" >render.json 2>render.log || { say "mimic animate failed: $(tail -1 render.log)"; echo null >render.json; }

    # The window, predictions copied and left on the card, where one draws.
    for way in '' --zero-copy; do
        echo null >"window$way.json"
        [ "$device" = cpu ] || timeout 40 "$here/mimic" bench --window --json --seconds 12 --device "$device" $way >"window$way.json" 2>"window$way.log" ||
            { say "mimic bench --window $way: $(tail -1 "window$way.log")"; [ -s "window$way.json" ] || echo null >"window$way.json"; }
    done

    echo null >peers.json
    if [ "$device" != cpu ] && python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
        left=$((440 - $(spent)))
        say "PyTorch on the same card, for $left s"
        timeout "$left" python3 "$here/peers/gpu.py" --seconds $((left - 60)) --json peers.json >peers.log 2>&1 || say "PyTorch was stopped: $(tail -1 peers.log)"
    elif [ "$device" != cpu ]; then
        say "no Python with a PyTorch for the card: mimic is timed alone"
    fi

    peak=$(sort -n memory.txt 2>/dev/null | tail -1)
    printf '{"device": "%s", "card": %s, "tests": "%s", "seconds": %s, "card_memory_peak_mib": %s, "bench": %s, "render": %s, "window": %s, "window_zero_copy": %s, "peers": %s}\n' \
        "$device" "$card" "$tests" "$(spent)" "${peak:-null}" "$(cat bench.json)" "$(cat render.json)" "$(cat window.json)" "$(cat window--zero-copy.json)" "$(cat peers.json)" >gpu-check.json
    table >gpu-check.md
    cat gpu-check.md
    say "done in $(spent) s: $out/gpu-check.json, gpu-check.md"
    [ "$tests" = passed ] && [ "$(cat bench.json)" != null ] && [ "$(cat render.json)" != null ]
}

# The rows of all that was timed, milliseconds a frame.
table() {
    echo "$(date +%Y-%m-%d), $device; card $card; most of its memory in use: ${peak:-unknown} MiB; parity and gradients: $tests; $(sed -n 's/^ *"fps": \([0-9.]*\).*/\1/p' render.json | head -1) frames a second from end to end."
    echo
    echo '| network | engine | photo | at once | median ms a frame | min ms |'
    echo '|---|---|---|---|---|---|'
    cat bench.json peers.json | awk '
        function value(line) { sub(/^[^:]*: */, "", line); sub(/,$/, "", line); gsub(/"/, "", line); return line }
        /^ *"batch":/ { batch = value($0) }
        /^ *"engine":/ { engine = value($0) }
        /^ *"median_s":/ { median = value($0) }
        /^ *"min_s":/ { least = value($0) }
        /^ *"network":/ { network = value($0) }
        /^ *"photo":/ { photo = value($0) }
        /^ *}/ && median != "" {
            printf "| %s | %s | %s | %s | %.2f | %.2f |\n", network, engine, photo, batch == "" ? 1 : batch, median * 1000, least * 1000
            median = batch = ""
        }'
}

case ${1:-} in
pack) [ $# = 2 ] || { echo "usage: $0 pack DIR" >&2; exit 2; }; mkdir -p "$2"; pack "$(cd "$2" && pwd)" ;;
'') check ;;
*) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
