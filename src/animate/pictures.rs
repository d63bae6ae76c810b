//! Between pictures of bytes and the networks' tensors.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use image::RgbaImage;

use crate::frame::{Lent, Prediction};
use crate::model::Moved;
use crate::ops::fused::{self, Staging, floats};

/// A picture as (1, 3, h, w) in 0..1; alpha is left out.
pub fn to_tensor(picture: &RgbaImage, device: &Device) -> Result<Tensor> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let plane = width * height;
    let mut values = vec![0f32; 3 * plane];
    for (i, pixel) in picture.pixels().enumerate() {
        for channel in 0..3 {
            values[channel * plane + i] = f32::from(pixel.0[channel]) / 255.0;
        }
    }
    Tensor::from_vec(values, (1, 3, height, width), device)
}

/// What the compositor needs of each frame of a batch, to be read back: pixels (b, h, w, 4) of RGBA bytes, places (b, h', w', 2) and,
/// where there is one, the map of what is seen (b, 1, h', w'). Pictures and maps are square.
pub fn shown(moved: &Moved) -> Result<Vec<Tensor>> {
    let mut shown = vec![
        pixels(&moved.prediction)?,
        moved.deformation.to_dtype(DType::F32)?.contiguous()?,
    ];
    if let Some(map) = &moved.occlusion {
        shown.push(map.to_dtype(DType::F32)?.contiguous()?);
    }
    Ok(shown)
}

/// Puts what was read back of [`shown`] into buffers that are reused, one for each frame; the pictures' side is `side`.
pub fn fill(shown: &[Cow<'_, [u8]>], side: usize, out: &mut [Prediction]) -> Result<()> {
    let [rgba, deformation, occlusion @ ..] = shown else {
        bail!("{} tensors are no frames", shown.len());
    };
    let pixels = 4 * side * side;
    if out.is_empty() || rgba.len() != out.len() * pixels {
        bail!("{} bytes for {} pictures", rgba.len(), out.len());
    }
    let deformation = floats(deformation);
    let (deformation, _) = deformation.as_chunks::<2>();
    let occlusion = occlusion.first().map(|map| floats(map));
    let places = deformation.len() / out.len();
    for (i, out) in out.iter_mut().enumerate() {
        (out.size, out.map_size) = (side as u32, places.isqrt() as u32);
        replace(&mut out.rgba, &rgba[i * pixels..][..pixels]);
        replace(&mut out.deformation, &deformation[i * places..][..places]);
        match &occlusion {
            Some(map) => replace(&mut out.occlusion, &map[i * places..][..places]),
            None => {
                out.occlusion.clear();
                out.occlusion.resize(places, 1.0);
            }
        }
        out.lent = None;
    }
    Ok(())
}

/// [`shown`] with a map of what is seen in any case: ones where the model has none.
pub fn with_occlusion(mut shown: Vec<Tensor>) -> Result<Vec<Tensor>> {
    if let [_, deformation] = &shown[..] {
        // (b, 1, h', w') and kernels alone, as it may be recorded.
        let ones = deformation
            .narrow(3, 0, 1)?
            .contiguous()?
            .affine(0.0, 1.0)?;
        let (b, h, w, _) = ones.dims4()?;
        shown.push(ones.reshape((b, 1, h, w))?);
    }
    Ok(shown)
}

/// Says of frames that lie in `places` where they are; `parts` is how many bytes the tensors of [`with_occlusion`] take of each.
pub fn fill_lent(
    parts: &[usize],
    side: usize,
    places: Vec<Arc<Lent>>,
    out: &mut [Prediction],
) -> Result<()> {
    let &[rgba, deformation, occlusion] = parts else {
        bail!("{} tensors are no frames", parts.len());
    };
    let map = (occlusion / 4).isqrt();
    if (rgba, deformation) != (4 * side * side, 8 * map * map) {
        bail!("{rgba}, {deformation} and {occlusion} bytes are no frame");
    }
    for (out, place) in out.iter_mut().zip(places) {
        (out.size, out.map_size) = (side as u32, map as u32);
        out.rgba.clear();
        out.deformation.clear();
        out.occlusion.clear();
        out.lent = Some(place);
    }
    Ok(())
}

/// Square RGBA pictures of `side` pixels as pixels (b, h, w, 4) on a device, by way of `staging`.
///
/// # Panics
/// When a picture has another size: a fault of the program.
pub fn upload(
    staging: &mut Staging,
    pictures: &[&[u8]],
    side: usize,
    device: &Device,
) -> Result<Tensor> {
    assert!(
        pictures.iter().all(|rgba| rgba.len() == 4 * side * side),
        "pictures of {side}x{side} pixels"
    );
    staging.upload(pictures, &[pictures.len(), side, side, 4], device)
}

/// Pixels (b, h, w, 4) of RGBA bytes as pictures (b, 3, h, w) in 0..1.
pub fn planes(pixels: &Tensor) -> Result<Tensor> {
    if pixels.device().is_metal() {
        let planes = pixels.to_dtype(DType::F32)?.narrow(3, 0, 3)?;
        return planes
            .permute((0, 3, 1, 2))?
            .contiguous()?
            .affine(1.0 / 255.0, 0.0);
    }
    fused::unpack(pixels)
}

/// Pictures (b, 3, h, w) in 0..1 as pixels (b, h, w, 4) of RGBA bytes.
fn pixels(pictures: &Tensor) -> Result<Tensor> {
    if pictures.device().is_metal() {
        return fused::pack(&pictures.to_device(&Device::Cpu)?);
    }
    fused::pack(pictures)
}

fn replace<T: Copy>(buffer: &mut Vec<T>, values: &[T]) {
    buffer.clear();
    buffer.extend_from_slice(values);
}

#[cfg(test)]
mod tests {
    use candle_core::IndexOp;

    use super::*;
    use crate::ops::fused::Recorder;

    fn prediction(moved: &Moved) -> Prediction {
        let mut out = [Prediction::default()];
        let side = moved.prediction.dims()[2];
        let shown = shown(moved).unwrap();
        let mut recorder = Recorder::default();
        let shown = recorder.run("", &[&shown[0]], |_| Ok(shown.clone()));
        fill(&shown.unwrap(), side, &mut out).unwrap();
        let [prediction] = out;
        prediction
    }

    #[test]
    fn pictures_become_planes_and_planes_pictures() {
        let mut picture = RgbaImage::new(2, 2);
        picture.put_pixel(1, 0, image::Rgba([255, 51, 0, 255]));
        picture.put_pixel(0, 1, image::Rgba([1, 2, 3, 0]));
        let tensor = to_tensor(&picture, &Device::Cpu).unwrap();
        assert_eq!(tensor.dims(), [1, 3, 2, 2]);
        let green = tensor.i((0, 1)).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(green, [[0.0, 0.2], [2.0 / 255.0, 0.0]]);

        let maps = Tensor::arange(0f32, 8.0, &Device::Cpu).unwrap();
        let prediction = prediction(&Moved {
            prediction: tensor,
            deformation: maps.reshape((1, 2, 2, 2)).unwrap(),
            occlusion: None,
        });
        assert_eq!((prediction.size, prediction.map_size), (2, 2));
        assert_eq!(
            prediction.rgba,
            [0, 0, 0, 255, 255, 51, 0, 255, 1, 2, 3, 255, 0, 0, 0, 255]
        );
        assert_eq!(
            prediction.deformation,
            [[0., 1.], [2., 3.], [4., 5.], [6., 7.]]
        );
        assert_eq!(prediction.occlusion, [1.0; 4]);
    }

    #[test]
    fn what_is_uploaded_becomes_planes_of_shares() {
        let photo = [[255u8, 51, 0, 9].repeat(4), [0, 102, 255, 0].repeat(4)];
        let both: [&[u8]; 2] = [&photo[0], &photo[1]];
        let pixels = upload(&mut Staging::default(), &both, 2, &Device::Cpu).unwrap();
        let planes = planes(&pixels).unwrap();
        assert_eq!(planes.dims(), [2, 3, 2, 2]);
        let green = planes.i((.., 1, 0, 0)).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(green, [0.2, 0.4]);
        assert_eq!(planes.max_all().unwrap().to_scalar::<f32>().unwrap(), 1.0);
    }

    #[test]
    fn values_that_no_byte_can_hold_saturate() {
        let picture = [-1f32, 2.0, f32::NAN];
        let map = Tensor::zeros((1, 1, 1, 2), DType::F32, &Device::Cpu).unwrap();
        let prediction = prediction(&Moved {
            prediction: Tensor::from_slice(&picture, (1, 3, 1, 1), &Device::Cpu).unwrap(),
            occlusion: Some(map.i((.., .., .., 1..)).unwrap()),
            deformation: map,
        });
        assert_eq!(prediction.rgba, [0, 255, 0, 255]);
        assert_eq!(prediction.occlusion, [0.0]);
    }
}
