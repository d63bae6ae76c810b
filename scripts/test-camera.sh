#!/usr/bin/env bash
# Tries the camera code on real drivers without a camera: boots Debian's kernel in qemu with its virtual camera, vivid,
# and v4l2loopback, and runs examples/camera_probe.rs there. One line for each check; fails when one fails.
#
#   scripts/test-camera.sh [PROBE]     PROBE: a camera_probe that is built already
#
# The kernel, its headers and v4l2loopback (85 MB) are fetched once by apt-get download and kept unpacked in
# target/camera; nothing of them is installed. DEBS names a folder that has the packages already.
set -euo pipefail
cd "$(dirname "$0")/.."

LIMIT=150 # seconds for the machine; it needs about 60

cache=${CARGO_TARGET_DIR:-target}/camera
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ "$(uname -m)" != x86_64 ]; then
    echo 'test-camera: skipped: it boots an x86-64 kernel with the libraries of this machine.' >&2
    exit 0
fi

# 1. The kernel, and the modules.
depends() { # the packages that one depends on and whose names begin with a pattern
    apt-cache depends "$1" 2>/dev/null | sed -n "s/^ *Depends: \\($2[^ ]*\\)\$/\\1/p"
}
if [ ! -e "$cache/ready" ]; then
    debs=${DEBS:-}
    if [ -z "$debs" ]; then
        debs=$work/debs
        mkdir "$debs"
        image=$(depends linux-image-amd64 'linux-image-[0-9]' | head -n 1)
        headers=linux-headers-${image#linux-image-}
        # shellcheck disable=SC2046 # several packages
        if [ -z "$image" ] || ! (cd "$debs" && apt-get download -q "$image" "$headers" \
            $(depends "$headers" linux-headers- && depends "$headers" linux-kbuild-) v4l2loopback-dkms >&2); then
            echo 'test-camera: cannot fetch the kernel (linux-image-amd64, linux-headers-amd64, v4l2loopback-dkms): this' >&2
            echo 'needs a Debian with network and fresh package lists (apt-get update), or DEBS=FOLDER with the packages.' >&2
            exit 1
        fi
    fi
    rm -rf "$cache"
    mkdir -p "$cache"
    dpkg-deb --fsys-tarfile "$debs"/linux-image-*.deb | tar -x -C "$cache" --wildcards \
        './boot/vmlinuz-*' './lib/modules/*/kernel/drivers/media/*' './lib/modules/*/modules.*'
    version=$(basename "$cache"/lib/modules/*)
    for deb in "$debs"/linux-{headers,kbuild}-*.deb "$debs"/v4l2loopback-*.deb; do
        dpkg-deb -x "$deb" "$work/build"
    done
    headers=$work/build/usr/src/linux-headers-$version
    sed -i "s|^include /usr/src|include $work/build/usr/src|" "$headers/Makefile"
    loopback=$(echo "$work"/build/usr/src/v4l2loopback-*)
    make -s -C "$headers" M="$loopback" modules >"$work/make.log" 2>&1 || { cat "$work/make.log" >&2; exit 1; }
    mkdir "$cache/lib/modules/$version/extra"
    cp "$loopback/v4l2loopback.ko" "$cache/lib/modules/$version/extra"
    /sbin/depmod -b "$cache" "$version"
    touch "$cache/ready"
fi
version=$(basename "$cache"/lib/modules/*)

# 2. The probe.
probe=${1:-}
if [ -z "$probe" ]; then
    probe=$(cargo build --locked --example camera_probe --message-format=json-render-diagnostics |
        sed -n 's/.*"executable":"\([^"]*camera_probe\)".*/\1/p')
fi

# 3. A file system with both, busybox, and the libraries of the probe.
root=$work/root
modules=lib/modules/$version
mkdir -p "$root"/{bin,sbin,dev,proc,sys,tmp,etc,"$modules"}
cp "$(command -v busybox)" "$root/bin/busybox"
for name in sh mount rmmod modprobe poweroff; do
    ln -s busybox "$root/bin/$name"
done
strip -o "$root/bin/probe" "$probe"
ldd "$probe" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
(cd "$cache/$modules" && grep -E '/(vivid|v4l2loopback)\.ko:' modules.dep | tr -d ':' | tr ' ' '\n' |
    cat - <(echo modules.dep) | sort -u | cpio --quiet -pdm "$root/$modules")
cat >"$root/init" <<'INIT'
#!/bin/sh
export PATH=/bin:/sbin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
/bin/probe
first=$?
MIMIC_CAMERA=nokhwa /bin/probe
echo "probe: exit $((first + $?))"
poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initramfs.gz"

# 4. The machine. Never KVM: where it is half there it opens and hangs.
start=$SECONDS
timeout -k 5 "$LIMIT" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 768 -nodefaults -no-reboot -display none \
    -kernel "$cache"/boot/vmlinuz-"$version" -initrd "$work/initramfs.gz" \
    -append 'console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off' -serial stdio </dev/null |
    tr -d '\r' | tee "$work/log" | grep --line-buffered -E '^(ok|FAILED|thread|probe:)' || true
if grep -q '^probe: exit 0$' "$work/log"; then
    echo "test-camera: all is well, $((SECONDS - start)) s in the machine"
else
    echo "test-camera: failed after $((SECONDS - start)) s; the last that the machine said:" >&2
    tail -n 40 "$work/log" >&2
    exit 1
fi
