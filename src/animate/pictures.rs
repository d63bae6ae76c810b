//! Between pictures of bytes and the networks' tensors.

use candle_core::{DType, Device, Result, Tensor, bail};
use image::RgbaImage;

use crate::frame::Prediction;
use crate::model::GeneratorOutput;
use crate::ops::fused;

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

/// What the compositor needs of each frame of a batch, into buffers that are reused. Its pictures and maps are square.
pub fn predictions(output: &GeneratorOutput, out: &mut [Prediction]) -> Result<()> {
    let flat = |t: &Tensor| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    let (batch, _, size, _) = output.prediction.dims4()?;
    let (_, map_size, map_width, _) = output.used_deformation.dims4()?;
    if out.len() != batch {
        bail!("{} places for {batch} predictions", out.len());
    }
    let rgba = rgba(&output.prediction)?;
    let deformation = flat(&output.used_deformation)?;
    let (deformation, _) = deformation.as_chunks::<2>();
    let occlusion = output.used_occlusion.as_ref().map(flat).transpose()?;
    let (pixels, places) = (size * size * 4, map_size * map_width);
    for (i, out) in out.iter_mut().enumerate() {
        (out.size, out.map_size) = (size as u32, map_size as u32);
        fill(&mut out.rgba, &rgba[i * pixels..][..pixels]);
        fill(&mut out.deformation, &deformation[i * places..][..places]);
        out.occlusion.clear();
        match &occlusion {
            Some(map) => out
                .occlusion
                .extend_from_slice(&map[i * places..][..places]),
            None => out.occlusion.resize(places, 1.0),
        }
    }
    Ok(())
}

/// Pictures (b, 3, h, w) in 0..1 as RGBA bytes.
fn rgba(pictures: &Tensor) -> Result<Vec<u8>> {
    if fused::fuses(pictures) {
        return fused::pack(pictures)?.flatten_all()?.to_vec1();
    }
    let (_, _, h, w) = pictures.dims4()?;
    let values: Vec<f32> = pictures.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    let plane = h * w;
    let of_picture = |picture: &[f32]| -> Vec<u8> {
        (0..plane)
            .flat_map(|i| {
                // A float as a byte saturates, and NaN becomes 0.
                let byte = |channel: usize| (picture[channel * plane + i] * 255.0 + 0.5) as u8;
                [byte(0), byte(1), byte(2), 255]
            })
            .collect()
    };
    Ok(values
        .chunks_exact(3 * plane.max(1))
        .flat_map(of_picture)
        .collect())
}

fn fill<T: Copy>(buffer: &mut Vec<T>, values: &[T]) {
    buffer.clear();
    buffer.extend_from_slice(values);
}

#[cfg(test)]
mod tests {
    use candle_core::IndexOp;

    use super::*;

    fn prediction(output: &GeneratorOutput) -> Prediction {
        let mut out = [Prediction::default()];
        predictions(output, &mut out).unwrap();
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
        let output = GeneratorOutput {
            prediction: tensor,
            used_deformation: maps.reshape((1, 2, 2, 2)).unwrap(),
            used_occlusion: None,
            deformation: maps.clone(),
            mask: maps.clone(),
            occlusion_map: None,
            sparse_deformed: maps,
        };
        let prediction = prediction(&output);
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
    fn values_that_no_byte_can_hold_saturate() {
        let picture = [-1f32, 2.0, f32::NAN];
        let map = Tensor::zeros((1, 1, 1, 2), DType::F32, &Device::Cpu).unwrap();
        let output = GeneratorOutput {
            prediction: Tensor::from_slice(&picture, (1, 3, 1, 1), &Device::Cpu).unwrap(),
            used_deformation: map.clone(),
            used_occlusion: Some(map.i((.., .., .., 1..)).unwrap()),
            deformation: map.clone(),
            mask: map.clone(),
            occlusion_map: None,
            sparse_deformed: map,
        };
        let prediction = prediction(&output);
        assert_eq!(prediction.rgba, [0, 255, 0, 255]);
        assert_eq!(prediction.occlusion, [0.0]);
    }
}
