//! A picture on the window's device, and its halves: a photo of six thousand pixels on a stage of eight
//! hundred would shimmer if every seventh were picked out.

use bytemuck::bytes_of;
use image::RgbaImage;

use super::Device;
use super::context::{TILE, pipeline};
use crate::geometry::Rect;

const SHADER: &str = include_str!("../../shaders/halve.wgsl");

/// Pictures up to this side are shown as they are: no screen makes them much smaller.
const SMALL: u32 = 1024;
/// Levels at most: the last is a sixteenth.
const LEVELS: u32 = 5;

/// A texture that changes every frame. `Rgba8Unorm`, as the networks and the compositor see colours.
#[derive(Debug)]
pub struct Canvas {
    on: Device,
    made: Option<Made>,
}

#[derive(Debug)]
struct Made {
    texture: wgpu::Texture,
    view: wgpu::TextureView,
    halves: Vec<Half>,
}

/// How a level comes from the one before.
#[derive(Debug)]
struct Half {
    size: (u32, u32),
    part: wgpu::Buffer,
    bindings: wgpu::BindGroup,
}

impl Canvas {
    /// An empty one.
    pub fn new(on: &Device) -> Self {
        Self {
            on: on.clone(),
            made: None,
        }
    }

    /// The largest side that fits.
    pub fn max_side(&self) -> u32 {
        self.on.max_side()
    }

    /// Takes these pixels; true when the texture is another than before. Empty pictures and those larger than
    /// [`Canvas::max_side`] change nothing.
    pub fn show(&mut self, image: &RgbaImage) -> bool {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 || width.max(height) > self.max_side() {
            return false;
        }
        let same = |made: &Made| (made.texture.width(), made.texture.height()) == (width, height);
        let fresh = !self.made.as_ref().is_some_and(same);
        if fresh {
            self.made = Some(Made::new(&self.on, width, height));
        }
        self.update(image, Rect::of_size(width, height));
        fresh
    }

    /// Takes a part of a picture that is shown otherwise.
    pub fn update(&mut self, image: &RgbaImage, part: Rect) {
        let part = part.intersect(&Rect::of_size(image.width(), image.height()));
        let Some(made) = self.made.as_ref().filter(|made| {
            (made.texture.width(), made.texture.height()) == image.dimensions() && !part.is_empty()
        }) else {
            return;
        };
        let (x, y) = (part.x1.unsigned_abs(), part.y1.unsigned_abs());
        let row = image.width() * 4;
        self.on.queue.write_texture(
            wgpu::TexelCopyTextureInfo {
                origin: wgpu::Origin3d { x, y, z: 0 },
                ..made.texture.as_image_copy()
            },
            image,
            wgpu::TexelCopyBufferLayout {
                offset: u64::from(y) * u64::from(row) + u64::from(x) * 4,
                bytes_per_row: Some(row),
                rows_per_image: None,
            },
            wgpu::Extent3d {
                width: part.width(),
                height: part.height(),
                depth_or_array_layers: 1,
            },
        );
        self.halve(part);
    }

    /// Makes the smaller levels of a part anew, after the texture was drawn into.
    pub fn halve(&self, part: Rect) {
        let Some(made) = self.made.as_ref().filter(|made| !made.halves.is_empty()) else {
            return;
        };
        let mut encoder = self.on.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(self.on.halve());
            let mut part = part;
            for half in &made.halves {
                part = halved(part, half.size);
                let (x, y) = (part.x1.unsigned_abs(), part.y1.unsigned_abs());
                let (width, height) = (part.width(), part.height());
                self.on
                    .queue
                    .write_buffer(&half.part, 0, bytes_of(&[x, y, width, height]));
                pass.set_bind_group(0, &half.bindings, &[]);
                pass.dispatch_workgroups(width.div_ceil(TILE), height.div_ceil(TILE), 1);
            }
        }
        self.on.queue.submit([encoder.finish()]);
    }

    /// The picture's texture, once it has been shown.
    pub fn texture(&self) -> Option<&wgpu::Texture> {
        self.made.as_ref().map(|made| &made.texture)
    }

    /// All levels of it, to be drawn with a linear mip map filter.
    pub fn view(&self) -> Option<&wgpu::TextureView> {
        self.made.as_ref().map(|made| &made.view)
    }
}

impl Made {
    fn new(on: &Device, width: u32, height: u32) -> Self {
        use wgpu::TextureUsages as Usage;
        let levels = if width.max(height) > SMALL && on.computes() {
            LEVELS.min(width.min(height).ilog2() + 1)
        } else {
            1
        };
        let mut usage = Usage::TEXTURE_BINDING | Usage::COPY_DST | Usage::COPY_SRC;
        if levels > 1 {
            usage |= Usage::STORAGE_BINDING;
        }
        let texture = on.device.create_texture(&wgpu::TextureDescriptor {
            label: Some("picture"),
            size: wgpu::Extent3d {
                width,
                height,
                depth_or_array_layers: 1,
            },
            mip_level_count: levels,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: wgpu::TextureFormat::Rgba8Unorm,
            usage,
            view_formats: &[],
        });
        let level = |level| {
            texture.create_view(&wgpu::TextureViewDescriptor {
                base_mip_level: level,
                mip_level_count: Some(1),
                ..wgpu::TextureViewDescriptor::default()
            })
        };
        let halves = (1..levels)
            .map(|number| {
                let part = on.device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("part"),
                    size: 16,
                    usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                });
                let (large, small) = (level(number - 1), level(number));
                let resources = [
                    wgpu::BindingResource::TextureView(&large),
                    wgpu::BindingResource::TextureView(&small),
                    part.as_entire_binding(),
                ];
                let entries: Vec<_> = (0u32..)
                    .zip(resources)
                    .map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource })
                    .collect();
                let bindings = on.device.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some("halve"),
                    layout: &on.halve().get_bind_group_layout(0),
                    entries: &entries,
                });
                Half {
                    size: ((width >> number).max(1), (height >> number).max(1)),
                    part,
                    bindings,
                }
            })
            .collect();
        Self {
            view: texture.create_view(&wgpu::TextureViewDescriptor::default()),
            texture,
            halves,
        }
    }
}

impl Device {
    /// Made when the first large picture is shown.
    fn halve(&self) -> &wgpu::ComputePipeline {
        self.halve
            .get_or_init(|| pipeline(&self.device, "halve", SHADER))
    }
}

/// What of a level of `size` a part of the level before touches.
fn halved(part: Rect, (width, height): (u32, u32)) -> Rect {
    Rect::new(
        part.x1 / 2,
        part.y1 / 2,
        (part.x2 + 1) / 2,
        (part.y2 + 1) / 2,
    )
    .intersect(&Rect::of_size(width, height))
}

#[cfg(test)]
mod tests {
    use image::Rgba;

    use super::*;
    use crate::frame::Prediction;
    use crate::gpu::{Choice, Compositor, PasteSettings, limits, model_view};

    /// As a window opens one.
    fn device() -> Option<Device> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let adapter = match pollster::block_on(instance.request_adapter(&Default::default())) {
            Ok(adapter) => adapter,
            Err(_) if std::env::var("MIMIC_TEST_NO_ADAPTER").is_ok_and(|v| v == "1") => {
                return None;
            }
            Err(error) => panic!("{error}; MIMIC_TEST_NO_ADAPTER=1 leaves this test out"),
        };
        let descriptor = wgpu::DeviceDescriptor {
            required_limits: limits(&adapter),
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
        Some(Device::new(&adapter, device, queue))
    }

    fn read(on: &Device, texture: &wgpu::Texture, level: u32) -> RgbaImage {
        let (width, height) = (texture.width() >> level, texture.height() >> level);
        let row = (width * 4).next_multiple_of(256);
        let buffer = on.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: u64::from(row) * u64::from(height),
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        });
        let mut encoder = on.device.create_command_encoder(&Default::default());
        encoder.copy_texture_to_buffer(
            wgpu::TexelCopyTextureInfo {
                mip_level: level,
                ..texture.as_image_copy()
            },
            wgpu::TexelCopyBufferInfo {
                buffer: &buffer,
                layout: wgpu::TexelCopyBufferLayout {
                    offset: 0,
                    bytes_per_row: Some(row),
                    rows_per_image: None,
                },
            },
            wgpu::Extent3d {
                width,
                height,
                depth_or_array_layers: 1,
            },
        );
        on.queue.submit([encoder.finish()]);
        buffer.map_async(wgpu::MapMode::Read, .., |_| ());
        on.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        let bytes = buffer.get_mapped_range(..).unwrap();
        let rows = bytes.chunks_exact(row as usize);
        let packed: Vec<u8> = rows
            .flat_map(|r| r[..width as usize * 4].to_vec())
            .collect();
        RgbaImage::from_raw(width, height, packed).unwrap()
    }

    fn photo(width: u32, height: u32) -> RgbaImage {
        RgbaImage::from_fn(width, height, |x, y| {
            Rgba([(x * 3) as u8, (y * 5) as u8, (x ^ y) as u8, 255])
        })
    }

    /// Half a picture, as the shader makes it.
    fn half(image: &RgbaImage) -> RgbaImage {
        RgbaImage::from_fn(image.width() / 2, image.height() / 2, |x, y| {
            let of = |c: usize| {
                let sum: u32 = [(0, 0), (1, 0), (0, 1), (1, 1)]
                    .map(|(i, j)| u32::from(image.get_pixel(2 * x + i, 2 * y + j).0[c]))
                    .iter()
                    .sum();
                ((sum + 2) / 4) as u8
            };
            Rgba([of(0), of(1), of(2), of(3)])
        })
    }

    fn close(a: &RgbaImage, b: &RgbaImage) -> bool {
        a.dimensions() == b.dimensions() && a.iter().zip(b.iter()).all(|(a, b)| a.abs_diff(*b) <= 1)
    }

    #[test]
    fn a_part_that_changes_changes_its_halves_and_nothing_else() {
        let Some(on) = device() else { return };
        let mut canvas = Canvas::new(&on);
        let mut image = photo(1501, 1034);
        assert!(canvas.show(&image));
        assert!(!canvas.show(&image), "the texture stays");
        let part = Rect::new(701, 33, 1501, 500);
        for (x, y, pixel) in image.enumerate_pixels_mut() {
            if (701..1501).contains(&x) && (33..500).contains(&y) {
                pixel.0[0] ^= 0x5a;
            }
        }
        canvas.update(&image, part);
        let texture = canvas.texture().unwrap();
        let mut expected = image;
        for level in 0..LEVELS {
            assert!(
                close(&read(&on, texture, level), &expected),
                "level {level}"
            );
            expected = half(&expected);
        }
    }

    #[test]
    fn a_small_picture_has_no_halves_and_one_without_pixels_changes_nothing() {
        let Some(on) = device() else { return };
        let mut canvas = Canvas::new(&on);
        assert!(!canvas.show(&RgbaImage::new(0, 4)));
        assert!(canvas.texture().is_none());
        let image = photo(640, 480);
        canvas.show(&image);
        assert_eq!(canvas.texture().unwrap().mip_level_count(), 1);
        canvas.update(&image, Rect::new(-5, 900, 3, 2));
        assert!(close(&read(&on, canvas.texture().unwrap(), 0), &image));
    }

    #[test]
    fn what_is_composed_on_the_windows_device_is_there_without_being_read_back() {
        let Some(on) = device() else { return };
        let image = photo(300, 200);
        let crop = Rect::new(40, 20, 200, 180);
        let mut other = model_view(&image, crop, 64).unwrap();
        image::imageops::invert(&mut other);
        let prediction = Prediction {
            size: 64,
            rgba: other.into_raw(),
            map_size: 1,
            deformation: vec![[0.0, 0.0]],
            occlusion: vec![1.0],
            lent: None,
        };
        let settings = PasteSettings::default();
        let mut twin = Compositor::new(Choice::Cpu).unwrap();
        let mut shaders = Compositor::on(Choice::Wgpu, &on).unwrap();
        for compositor in [&mut twin, &mut shaders] {
            compositor.set_photo(&image, &[crop], 64).unwrap();
            compositor
                .compose(std::slice::from_ref(&prediction), &settings)
                .unwrap();
        }
        let mut canvas = Canvas::new(&on);
        canvas.show(&image);
        let texture = canvas.texture().unwrap();
        assert!(shaders.copy_into(texture).unwrap());
        assert!(!twin.copy_into(texture).unwrap());
        let expected = twin.output().unwrap();
        assert!(!close(expected, &image));
        assert!(close(&read(&on, texture, 0), expected));
        assert!(
            close(shaders.output().unwrap(), expected),
            "and can be read"
        );
        assert_eq!(shaders.touched(), crop);
    }

    #[test]
    fn a_software_device_composes_only_when_it_is_asked_to() {
        let Some(on) = device() else { return };
        let auto = Compositor::on(Choice::Auto, &on).unwrap();
        assert_eq!(auto.device_name() == "CPU", on.is_software());
        assert!(on.lost().is_none());
    }
}
