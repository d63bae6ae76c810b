//! RGBA to what H.264 and VP9 encoders take: yuv420p, BT.709, limited range.
//!
//! A result's frames are a photo in which a face moves, so most of a frame is what it was: only what
//! differs from the frame before is converted. Arithmetic is in whole numbers, within one level of the exact
//! result; chroma is the mean of 2x2 pixels, in their middle, as ffmpeg makes it.

use image::RgbaImage;

/// A frame as planes, kept so that the next one needs to change little.
#[derive(Debug)]
pub(super) struct Planes {
    /// Of the pictures.
    size: (usize, usize),
    /// Of the luma plane: the pictures', or with one more column or row, a copy of the last.
    padded: (usize, usize),
    /// The picture that `planes` was made of; empty before the first.
    last: Vec<u8>,
    /// Luma, then blue and red differences at half the size, rounded up.
    planes: Vec<u8>,
}

/// Pixels that are compared at once.
const RUN: usize = 16;

impl Planes {
    /// For pictures of `size`, to be delivered as `padded`, which is the same or one more.
    pub(super) fn new(size: (u32, u32), padded: (u32, u32)) -> Self {
        let [size, padded] = [size, padded].map(|(w, h)| (w as usize, h as usize));
        let chroma = padded.0.div_ceil(2) * padded.1.div_ceil(2);
        Self {
            size,
            padded,
            last: Vec::new(),
            planes: vec![0; padded.0 * padded.1 + 2 * chroma],
        }
    }

    /// The planes of a picture of the size this was made for, behind each other.
    pub(super) fn convert(&mut self, picture: &RgbaImage) -> &[u8] {
        let (width, height) = self.size;
        let first = self.last.is_empty();
        if first {
            self.last.extend_from_slice(picture);
        }
        let stride = 4 * width;
        let (luma, chroma) = self.planes.split_at_mut(self.padded.0 * self.padded.1);
        let (blue, red) = chroma.split_at_mut(chroma.len() / 2);
        let half = self.padded.0.div_ceil(2);
        let pairs = picture
            .chunks(2 * stride)
            .zip(self.last.chunks_mut(2 * stride));
        for (i, (new, old)) in pairs.enumerate() {
            // The columns that change in either row; from the first of a 2x2 cell to the end of one.
            let changed = new
                .chunks(stride)
                .zip(old.chunks(stride))
                .filter_map(difference);
            let changed = changed.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
            let (from, to) = match changed {
                _ if first => (0, width),
                Some((from, to)) => (from / 2 * 2, to.next_multiple_of(2).min(width)),
                None => continue,
            };
            for (new, old) in new.chunks(stride).zip(old.chunks_mut(stride)) {
                old[4 * from..4 * to].copy_from_slice(&new[4 * from..4 * to]);
            }
            let top = &new[..stride];
            let bottom = new.chunks(stride).next_back().unwrap_or(top);
            for (row, y) in [(top, 2 * i), (bottom, 2 * i + 1)] {
                // An odd last row has a copy only where the planes have room for one.
                if y < self.padded.1 {
                    let out = &mut luma[y * self.padded.0..][..self.padded.0];
                    to_luma(&row[4 * from..4 * to], &mut out[from..to]);
                    if let Some((copy, rest)) = out[width - 1..].split_last_mut()
                        && let [last, ..] = rest
                    {
                        *copy = *last;
                    }
                }
            }
            let cells = i * half + from / 2..i * half + to.div_ceil(2);
            to_chroma(
                &top[4 * from..4 * to],
                &bottom[4 * from..4 * to],
                &mut blue[cells.clone()],
                &mut red[cells],
            );
        }
        debug_assert!(height.div_ceil(2) * half <= blue.len());
        &self.planes
    }
}

/// The pixels from the first to the last that differ between two rows, by runs; none when there are none.
fn difference((new, old): (&[u8], &[u8])) -> Option<(usize, usize)> {
    if new == old {
        return None;
    }
    let mut runs = new.chunks(4 * RUN).zip(old.chunks(4 * RUN));
    let first = runs.position(|(new, old)| new != old)?;
    let last = runs
        .rposition(|(new, old)| new != old)
        .map_or(first, |i| first + 1 + i);
    Some((first * RUN, ((last + 1) * RUN).min(new.len() / 4)))
}

/// Bits behind the point: products of a level and a coefficient fit 32 bits with room for four of them.
const SHIFT: u32 = 15;

/// Red, green and blue in luma, 16..=235 (ITU-R BT.709).
const LUMA: [i32; 3] = fixed([0.2126, 0.7152, 0.0722], 219.0 / 255.0);
/// In the blue difference, 16..=240.
const BLUE: [i32; 3] = fixed([-0.2126, -0.7152, 1.0 - 0.0722], 224.0 / 255.0 / 1.8556);
/// In the red difference.
const RED: [i32; 3] = fixed([1.0 - 0.2126, -0.7152, -0.0722], 224.0 / 255.0 / 1.5748);

const fn fixed(coefficients: [f64; 3], scale: f64) -> [i32; 3] {
    let one = (1 << SHIFT) as f64;
    let [r, g, b] = coefficients;
    [
        (r * scale * one).round() as i32,
        (g * scale * one).round() as i32,
        (b * scale * one).round() as i32,
    ]
}

fn weighed([r, g, b]: [i32; 3], by: [i32; 3]) -> i32 {
    r * by[0] + g * by[1] + b * by[2]
}

fn to_luma(row: &[u8], out: &mut [u8]) {
    for (&[r, g, b, _], out) in row.as_chunks().0.iter().zip(out) {
        let sum = weighed([r, g, b].map(i32::from), LUMA);
        *out = ((sum + (16 << SHIFT) + (1 << (SHIFT - 1))) >> SHIFT) as u8;
    }
}

fn to_chroma(top: &[u8], bottom: &[u8], blue: &mut [u8], red: &mut [u8]) {
    let out = blue.iter_mut().zip(red);
    for ((top, bottom), (blue, red)) in top.chunks(8).zip(bottom.chunks(8)).zip(out) {
        // An odd last column counts twice.
        let right = top.len() - 4;
        let sum = [0, 1, 2].map(|c| {
            let [a, b] = [top, bottom].map(|row| i32::from(row[c]) + i32::from(row[right + c]));
            a + b
        });
        let level = |by| {
            let sum = weighed(sum, by) + (128 << (SHIFT + 2)) + (1 << (SHIFT + 1));
            (sum >> (SHIFT + 2)) as u8
        };
        (*blue, *red) = (level(BLUE), level(RED));
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use image::Rgba;

    use super::super::ffmpeg::{ffmpeg, quiet, run};
    use super::*;

    /// All colours and no pattern.
    fn noise(width: u32, height: u32, seed: u32) -> RgbaImage {
        let mut state = seed;
        RgbaImage::from_fn(width, height, |_, _| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let [_, r, g, b] = state.to_le_bytes();
            Rgba([r, g, b, 255])
        })
    }

    fn largest_difference(a: &[u8], b: &[u8]) -> u8 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    }

    #[test]
    fn the_planes_are_ffmpegs_within_a_level() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("picture.rgba");
        // Not smaller: to a picture of one cell ffmpeg gives another chroma than the mean.
        for (width, height) in [(64, 48), (33, 17)] {
            let picture = noise(width, height, width);
            std::fs::write(&file, picture.as_raw()).unwrap();
            let mut command: Command = quiet(ffmpeg());
            command.args(["-f", "rawvideo", "-pix_fmt", "rgba", "-video_size"]);
            command
                .arg(format!("{width}x{height}"))
                .arg("-i")
                .arg(&file);
            command.args([
                "-vf",
                "scale=out_color_matrix=bt709:out_range=tv:flags=area+accurate_rnd+full_chroma_inp",
            ]);
            command.args(["-pix_fmt", "yuv420p", "-f", "rawvideo", "-"]);
            let theirs = run(command, 1 << 20).unwrap();
            assert!(theirs.status.success(), "{}", theirs.said);
            let mut planes = Planes::new((width, height), (width, height));
            let ours = planes.convert(&picture);
            let luma = (width * height) as usize;
            let worst = largest_difference(&ours[..luma], &theirs.stdout[..luma]);
            assert!(worst <= 1, "luma of {width}x{height}: {worst}");
            // What ffmpeg does with half a cell at the border is its own matter.
            if width % 2 + height % 2 == 0 {
                let worst = largest_difference(ours, &theirs.stdout);
                assert!(worst <= 1, "chroma of {width}x{height}: {worst}");
            }
        }
    }

    #[test]
    fn only_what_changed_is_converted_and_nothing_is_missed() {
        for (size, padded) in [
            ((70, 31), (70, 32)),
            ((70, 31), (70, 31)),
            ((33, 18), (34, 18)),
            ((1, 1), (2, 2)),
        ] {
            let mut kept = Planes::new(size, padded);
            let mut picture = noise(size.0, size.1, 5);
            for step in 0..200 {
                let fresh = Planes::new(size, padded).convert(&picture).to_vec();
                assert!(kept.convert(&picture) == fresh, "{size:?}, step {step}");
                let (x, y) = (step * 37 % size.0, step * 23 % size.1);
                picture.put_pixel(x, y, Rgba([step as u8, 255, 0, 255]));
            }
        }
    }

    #[test]
    fn an_odd_edge_is_copied() {
        let mut planes = Planes::new((3, 3), (4, 4));
        let planes = planes.convert(&noise(3, 3, 1)).to_vec();
        for i in 0..4 {
            assert_eq!(planes[4 * i + 3], planes[4 * i + 2]);
            assert_eq!(planes[12 + i], planes[8 + i]);
        }
        let white = Planes::new((3, 3), (4, 4))
            .convert(&RgbaImage::from_pixel(3, 3, Rgba([255; 4])))
            .to_vec();
        assert_eq!(white, [[235; 16].as_slice(), &[128; 8]].concat());
    }
}
