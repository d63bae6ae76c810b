#!/bin/sh
# Sees to the system packages that mimic needs, and to a Rust toolchain: installs what is missing through apt (Debian,
# Ubuntu) or brew (macOS), elsewhere names it and stops. Says and does nothing when all is there.
#
#   scripts/packages.sh          what building, running and testing need
#   scripts/packages.sh fuzz     and what `make fuzz` needs
#   scripts/packages.sh camera   and what `make test-camera` needs
#   scripts/packages.sh mpi      and what `make test-ranks` needs
set -eu

on_path() { command -v "$1" >/dev/null 2>&1; }

linux() { [ "$(uname -s)" = Linux ]; }

any() { # whether one of some files is there
    for file in "$@"; do
        [ -e "$file" ] && return
    done
    return 1
}

# A Vulkan driver of any kind: the tests of the shaders want one, Mesa's software driver will do.
vulkan() {
    linux || return 0 # Metal and Direct3D come with the system
    [ -n "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ] && return
    any /etc/vulkan/icd.d/*.json /usr/share/vulkan/icd.d/*.json /usr/local/share/vulkan/icd.d/*.json
}

# libclang with its own headers, as any package brings them: the bindings of the kernel's video interface are made when
# mimic is built.
libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return
    any /usr/lib*/libclang.so* /usr/lib*/*/libclang.so* /usr/lib*/llvm*/lib*/libclang.so* \
        /usr/lib*/libclang-[0-9]*.so* /usr/lib*/*/libclang-[0-9]*.so* &&
        any /usr/lib*/clang/*/include/stddef.h /usr/lib*/llvm*/lib*/clang/*/include/stddef.h
}

# A library that is loaded by name when the window opens.
library() { any /usr/lib/*/"$1" /usr/lib64/"$1" /usr/lib/"$1" /lib/*/"$1"; }

# A font with Chinese characters, the one that the pictures in tests/snapshots were drawn with.
chinese() { [ -n "$(find -L /usr/share/fonts /usr/local/share/fonts -name wqy-microhei.ttc 2>/dev/null)" ]; }

debian='' brew='' others=''
missing() { # what to call it, its Debian packages, its brew formulas
    others="$others${others:+, }$1" debian="$debian $2" brew="$brew $3"
}

on_path ffmpeg && on_path ffprobe || missing ffmpeg ffmpeg ffmpeg
on_path cc || missing 'a C compiler (cc)' 'gcc libc6-dev' ''
on_path c++ || missing 'a C++ compiler (c++, for tests)' g++ ''
vulkan || missing "a Vulkan driver (Mesa's lavapipe)" mesa-vulkan-drivers ''
if linux; then
    libclang || missing libclang libclang-dev ''
    # winit opens them by name. Wayland's come with every Wayland desktop.
    library libxkbcommon-x11.so.0 || missing libxkbcommon-x11 libxkbcommon-x11-0 ''
    library libX11.so.6 && library libX11-xcb.so.1 && library libXcursor.so.1 && library libXi.so.6 ||
        missing 'the X11 libraries' 'libx11-6 libx11-xcb1 libxcursor1 libxi6' ''
    on_path Xvfb || missing 'Xvfb (for tests)' xvfb ''
    on_path exiftool || missing 'exiftool (for tests)' libimage-exiftool-perl ''
    on_path xdotool || missing 'xdotool (for tests)' xdotool ''
    chinese || missing 'the font WenQuanYi Micro Hei (for tests)' fonts-wqy-microhei ''
fi
if [ "${1:-}" = camera ] && linux; then
    on_path qemu-system-x86_64 || missing qemu-system-x86_64 'qemu-system-x86 seabios' ''
    on_path busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1 || missing 'a static busybox' busybox-static ''
    on_path cpio || missing cpio cpio ''
    on_path strip && on_path make || missing 'make and binutils' 'make binutils' ''
    [ -x /sbin/depmod ] || missing depmod kmod ''
fi
if [ "${1:-}" = mpi ]; then
    on_path mpirun && on_path mpicc || missing OpenMPI 'libopenmpi-dev openmpi-bin' open-mpi
fi
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
    elif on_path brew && { [ "$others" = ffmpeg ] || [ "$others" = OpenMPI ]; }; then
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
