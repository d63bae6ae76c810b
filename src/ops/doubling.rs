//! Filters that change a packed map's size, for face restorers: twice as large, or blurred before every
//! second pixel is taken.
//!
//! Both filter by 1, 3, 3, 1 along rows and columns. Zeros between pixels, that filter, and twice the gain
//! make of two neighbours a and b first (3 a + b) / 4, then (a + 3 b) / 4: bilinear enlargement. What
//! happens at the border is what restorers differ in.

use super::blocked::Size;
use super::simd::BLOCK;
use super::threads::Workers;

type Line = [f32; BLOCK];

/// What lies around a map that is enlarged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// Zeros, and the result has a pixel more on each side, for a 3x3 convolution without padding.
    Margin,
    /// Zeros.
    Zero,
    /// The outermost pixels again.
    Repeat,
}

/// The size of an enlarged map.
pub fn doubled(size: Size, edge: Edge) -> Size {
    let more = if edge == Edge::Margin { 2 } else { 0 };
    Size {
        height: 2 * size.height + more,
        width: 2 * size.width + more,
    }
}

/// Twice as large, each padded channel times its `scale` where there is one.
///
/// # Panics
/// When a slice has not the length that its size asks for: a fault of the program.
pub fn double(
    workers: &Workers,
    from: &[f32],
    size: Size,
    scale: Option<&[f32]>,
    edge: Edge,
    to: &mut [f32],
) {
    let out = doubled(size, edge);
    let blocks = from.len() / (size.pixels() * BLOCK);
    assert_eq!(from.len(), size.values(blocks));
    assert_eq!(to.len(), out.values(blocks));
    assert!(scale.is_none_or(|scale| scale.len() >= blocks * BLOCK));
    let from: &[Line] = from.as_chunks().0;
    let to: &mut [Line] = to.as_chunks_mut().0;
    // Of the margin only the first pixel counts: the filter begins there.
    let first = usize::from(edge != Edge::Margin);
    workers.rows(to, out.width, |row, line| {
        let (block, at) = (row / out.height, row % out.height + first);
        let map = &from[block * size.pixels()..][..size.pixels()];
        let scale: Line = match scale {
            Some(scale) => std::array::from_fn(|lane| scale[block * BLOCK + lane]),
            None => [1.0; BLOCK],
        };
        let row_at = |y: usize| &map[y * size.width..][..size.width];
        let last = size.height - 1;
        // The two rows of the map between which this one lies, if they are in it.
        let (above, below) = ((at / 2).checked_sub(1), at / 2);
        let (above, below) = match edge {
            Edge::Repeat => (Some(above.unwrap_or(0)), Some(below.min(last))),
            Edge::Margin | Edge::Zero => (above, (below <= last).then_some(below)),
        };
        let near = if at % 2 == 0 { 0.25 } else { 0.75 };
        let [upper, lower] = [above, below].map(|y| y.map(row_at));
        let column = |x: usize| -> Line {
            std::array::from_fn(|lane| {
                let upper = upper.map_or(0.0, |row| row[x][lane]);
                let lower = lower.map_or(0.0, |row| row[x][lane]);
                scale[lane] * (near * lower + (1.0 - near) * upper)
            })
        };
        let mut before = match edge {
            Edge::Repeat => column(0),
            Edge::Margin | Edge::Zero => [0.0; BLOCK],
        };
        for x in 0..=size.width {
            let here = if x < size.width {
                column(x)
            } else if edge == Edge::Repeat {
                before
            } else {
                [0.0; BLOCK]
            };
            let mix = |near: f32| -> Line {
                std::array::from_fn(|lane| near * here[lane] + (1.0 - near) * before[lane])
            };
            for (place, near) in [(2 * x, 0.25), (2 * x + 1, 0.75)] {
                if let Some(out) = place.checked_sub(first).and_then(|x| line.get_mut(x)) {
                    *out = mix(near);
                }
            }
            before = here;
        }
    });
}

/// The size of a blurred map.
pub fn blurred(size: Size) -> Size {
    Size {
        height: size.height + 1,
        width: size.width + 1,
    }
}

/// Blurred, with two zeros around the map: one pixel larger.
///
/// # Panics
/// When a slice has not the length that its size asks for: a fault of the program.
pub fn blur(workers: &Workers, from: &[f32], size: Size, to: &mut [f32]) {
    const TAPS: [f32; 4] = [0.125, 0.375, 0.375, 0.125];
    let out = blurred(size);
    let blocks = from.len() / (size.pixels() * BLOCK);
    assert_eq!(from.len(), size.values(blocks));
    assert_eq!(to.len(), out.values(blocks));
    let from: &[Line] = from.as_chunks().0;
    let to: &mut [Line] = to.as_chunks_mut().0;
    workers.rows(to, out.width, |row, line| {
        let (block, y) = (row / out.height, row % out.height);
        let map = &from[block * size.pixels()..][..size.pixels()];
        let rows: [Option<&[Line]>; 4] = std::array::from_fn(|tap| {
            let y = (y + tap).checked_sub(2).filter(|&y| y < size.height)?;
            Some(&map[y * size.width..][..size.width])
        });
        let column = |x: usize| -> Line {
            let mut sum = [0.0; BLOCK];
            for (row, tap) in rows.iter().zip(TAPS) {
                if let Some(pixel) = row.and_then(|row| row.get(x)) {
                    for (sum, value) in sum.iter_mut().zip(pixel) {
                        *sum += tap * value;
                    }
                }
            }
            sum
        };
        let mut window = [[0.0; BLOCK]; 4];
        window[3] = column(0);
        for (x, out) in line.iter_mut().enumerate() {
            window.rotate_left(1);
            window[3] = column(x + 1);
            // The window's last is a pixel further than the blurred one reaches.
            *out = std::array::from_fn(|lane| (0..4).map(|i| TAPS[i] * window[i][lane]).sum());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::blocked::{Channels, pack, unpack};
    use super::super::reference::{error, noise};
    use super::*;

    const SIZE: Size = Size {
        height: 5,
        width: 7,
    };

    /// The value of a channel's pixel, 0 outside.
    fn pixel(plane: &[f32], y: i64, x: i64) -> f32 {
        let inside = |v: i64, n: usize| (0..n as i64).contains(&v);
        match inside(y, SIZE.height) && inside(x, SIZE.width) {
            true => plane[y as usize * SIZE.width + x as usize],
            false => 0.0,
        }
    }

    #[test]
    fn enlarged_maps_are_filtered_zeros_and_pixels() {
        let channels = Channels::new(20);
        let workers = Workers::new(2).unwrap();
        let planes = noise(20 * SIZE.pixels(), 1);
        let scale = noise(2 * BLOCK, 2);
        for (edge, margin) in [(Edge::Margin, 3), (Edge::Zero, 2), (Edge::Repeat, 2)] {
            let out = doubled(SIZE, edge);
            let mut to = vec![0.0; out.values(2)];
            let packed = pack(&planes, &channels, SIZE);
            double(&workers, &packed, SIZE, Some(&scale), edge, &mut to);
            let mut wanted = Vec::new();
            for (plane, scale) in planes.chunks(SIZE.pixels()).zip(&scale) {
                for i in 0..out.pixels() {
                    let (y, x) = ((i / out.width) as i64, (i % out.width) as i64);
                    let mut sum = 0.0;
                    for tap in 0..16 {
                        let (ty, tx) = (tap / 4, tap % 4);
                        let taps = [0.25, 0.75, 0.75, 0.25];
                        let (y, x) = (y + ty - margin, x + tx - margin);
                        // Between the pixels there are zeros.
                        if y.rem_euclid(2) == 0 && x.rem_euclid(2) == 0 {
                            let (mut y, mut x) = (y.div_euclid(2), x.div_euclid(2));
                            if edge == Edge::Repeat {
                                y = y.clamp(0, SIZE.height as i64 - 1);
                                x = x.clamp(0, SIZE.width as i64 - 1);
                            }
                            let weight = taps[ty as usize] * taps[tx as usize];
                            sum += weight * pixel(plane, y, x);
                        }
                    }
                    wanted.push(scale * sum);
                }
            }
            let got = unpack(&to, &channels, out);
            assert!(error(&got, &wanted) < 1e-5, "{edge:?}");
        }
    }

    #[test]
    fn blurred_maps_are_one_larger() {
        let channels = Channels::new(3);
        let workers = Workers::new(2).unwrap();
        let planes = noise(3 * SIZE.pixels(), 1);
        let out = blurred(SIZE);
        let mut to = vec![0.0; out.values(1)];
        blur(&workers, &pack(&planes, &channels, SIZE), SIZE, &mut to);
        let mut wanted = Vec::new();
        for plane in planes.chunks(SIZE.pixels()) {
            for i in 0..out.pixels() {
                let (y, x) = ((i / out.width) as i64, (i % out.width) as i64);
                let taps = [0.125, 0.375, 0.375, 0.125];
                let sum: f32 = (0..16)
                    .map(|tap| {
                        let (ty, tx) = (tap / 4, tap % 4);
                        let weight = taps[ty as usize] * taps[tx as usize];
                        weight * pixel(plane, y + ty - 2, x + tx - 2)
                    })
                    .sum();
                wanted.push(sum);
            }
        }
        assert!(error(&unpack(&to, &channels, out), &wanted) < 1e-5);
    }
}
