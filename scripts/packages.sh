#!/bin/sh
# Sees to the system packages that mimic needs, and to a Rust toolchain: installs what is missing through apt (Debian,
# Ubuntu) or brew (macOS), elsewhere names it and stops. Says and does nothing when all is there.
#
#   scripts/packages.sh          what building, running and testing need
#   scripts/packages.sh fuzz     and what `make fuzz` needs
set -eu

on_path() { command -v "$1" >/dev/null 2>&1; }

# A Vulkan driver of any kind: the tests of the shaders want one, Mesa's software driver will do.
vulkan() {
    [ "$(uname -s)" != Linux ] && return # Metal and Direct3D come with the system
    [ -n "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ] && return
    for folder in /etc/vulkan/icd.d /usr/share/vulkan/icd.d /usr/local/share/vulkan/icd.d; do
        for file in "$folder"/*.json; do
            [ -e "$file" ] && return
        done
    done
    return 1
}

debian='' brew='' others=''
missing() { # what to call it, its Debian packages, its brew formulas
    others="$others${others:+, }$1" debian="$debian $2" brew="$brew $3"
}

on_path ffmpeg && on_path ffprobe || missing ffmpeg ffmpeg ffmpeg
on_path cc || missing 'a C compiler (cc)' 'gcc libc6-dev' ''
vulkan || missing "a Vulkan driver (Mesa's lavapipe)" mesa-vulkan-drivers ''
if [ "${1:-}" = fuzz ]; then
    on_path c++ || missing 'a C++ compiler (c++)' g++ ''
fi

if [ -n "$others" ]; then
    if on_path apt-get; then
        as_root=''
        if [ "$(id -u)" != 0 ]; then
            on_path sudo || { echo "mimic needs $others: as root, apt-get install$debian" >&2; exit 1; }
            as_root=sudo
        fi
        echo "Installing$debian." >&2
        $as_root apt-get update -q >&2
        # shellcheck disable=SC2086 # several packages
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
            -o DPkg::Lock::Timeout=300 $debian >&2
    elif on_path brew && [ "$others" = ffmpeg ]; then
        echo "Installing$brew." >&2
        # shellcheck disable=SC2086
        brew install $brew >&2
    else
        case "$(uname -s)" in
        Darwin) how=' (ffmpeg from https://brew.sh, the compilers by xcode-select --install)' ;;
        *) how='' ;;
        esac
        echo "mimic needs $others. Please install what is missing$how and try again." >&2
        exit 1
    fi
fi

if ! cargo --version >/dev/null 2>&1; then
    # Debian's rustup package comes without a toolchain.
    on_path rustup || { echo 'mimic needs Rust: install it from https://rustup.rs and try again.' >&2; exit 1; }
    rustup default stable >&2
fi
