//! The outermost pixels as [`Border::PaddleGan`](super::Border::PaddleGan) treats them.

/// Width in pixels of the border that [`Border::PaddleGan`] treats on its own.
pub(super) const BORDER_WIDTH: usize = 5;

/// The kernel by which PaddleGAN softens the border: OpenCV's gaussian of 9 without a given sigma.
/// For small sizes OpenCV has fixed tables; this is the one for 9, in 1/256.
const BORDER_BLUR: [f64; 9] = [4.0, 13.0, 30.0, 51.0, 60.0, 51.0, 30.0, 13.0, 4.0];

/// 1 inside the border, 0 in it, along one side of a picture.
pub(super) fn inside(size: usize) -> Vec<f64> {
    let inner = BORDER_WIDTH..size.saturating_sub(BORDER_WIDTH);
    (0..size)
        .map(|i| if inner.contains(&i) { 1.0 } else { 0.0 })
        .collect()
}

/// The same, softened.
pub(super) fn blurred(line: &[f64]) -> Vec<f64> {
    let radius = BORDER_BLUR.len() / 2;
    // Beyond the picture is more border: nothing to add.
    let at = |i: usize| {
        i.checked_sub(radius)
            .and_then(|i| line.get(i))
            .copied()
            .unwrap_or(0.0)
    };
    (0..line.len())
        .map(|i| {
            BORDER_BLUR
                .iter()
                .enumerate()
                .map(|(k, v)| v / 256.0 * at(i + k))
                .sum()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_narrower_than_its_borders_is_all_border() {
        assert_eq!(inside(9), [0.0; 9]);
        assert_eq!(blurred(&inside(3)), [0.0; 3]);
    }
}
