#!/bin/sh
# Makes the pictures in screenshots/ with the program itself: the demo as a GIF, one frame at the photo's own size with none
# and all of the photo's detail, and the window on a virtual screen. Run by `make screenshots`.
set -eu
cd "$(dirname "$0")/.."

mimic=target/release/mimic
crop=150,60,670,580
frame=48
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

ffmpeg -v error -nostdin -ss 0 -i assets/driver.mp4 -frames:v $frame "$work/driver.mp4"
for detail in 0 1; do
    $mimic animate --source-image assets/mona-lisa.jpg --driving-video "$work/driver.mp4" --crop $crop \
        --detail $detail -o "$work/$detail/%05d.png" >/dev/null
    # The face alone, one pixel of the photo for one of the picture.
    ffmpeg -v error -nostdin -y -i "$work/$detail/$(printf %05d $frame).png" -vf crop=420:460:200:100 \
        "screenshots/detail-$detail.png"
done
ffmpeg -v error -nostdin -y -i screenshots/detail-0.png -i screenshots/detail-1.png -filter_complex hstack \
    -q:v 2 screenshots/detail.jpg
rm screenshots/detail-0.png screenshots/detail-1.png
cp output/demo.gif screenshots/demo.gif

# Every face of a group follows one driver: the paintings above, a frame of the result below.
for painting in american-gothic syndics; do
    $mimic animate --source-image assets/$painting.jpg --driving-video "$work/driver.mp4" \
        -o "$work/$painting/%05d.png" >/dev/null
    ffmpeg -v error -nostdin -y -i assets/$painting.jpg -i "$work/$painting/$(printf %05d $frame).png" \
        -filter_complex 'vstack,scale=-2:960' "$work/$painting.png"
done
ffmpeg -v error -nostdin -y -i "$work/american-gothic.png" -i "$work/syndics.png" -filter_complex hstack \
    -q:v 3 screenshots/groups.jpg

# A training run to look at, of a few minutes: the heads of the paintings as the driver moves them.
for painting in american-gothic girl-with-a-pearl-earring la-donna-velata mona-lisa rembrandt-self-portrait; do
    $mimic animate --source-image assets/$painting.jpg --driving-video "$work/driver.mp4" -o "$work/heads/$painting.mp4" \
        >/dev/null
done
$mimic train prepare "$work/heads" -o "$work/clips" --size 128
$mimic train --config-file configs/faces-quick.yaml --data "$work/clips" --output "$work/run" --steps 200 \
    -o log_config.interval=4

# The window, on a virtual screen.
MIMIC_PROGRAM=$PWD/$mimic MIMIC_RUN=$work/run cargo test --locked --test window -- --ignored --exact screenshots
