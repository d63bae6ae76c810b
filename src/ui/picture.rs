//! A picture that changes every frame, as one texture that egui knows.
//!
//! Bytes are written straight into a texture of wgpu: egui's own way would copy them twice. The texture is
//! `Rgba8Unorm`, which egui takes for gamma space, as the networks and the compositor do.

use eframe::egui::{TextureId, Vec2, vec2};
use eframe::egui_wgpu::RenderState;
use image::RgbaImage;

/// One texture, made anew only when the size changes.
pub(super) struct Picture {
    state: RenderState,
    made: Option<(wgpu::Texture, TextureId)>,
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Picture")
            .field("made", &self.made)
            .finish_non_exhaustive()
    }
}

impl Picture {
    pub(super) fn new(state: RenderState) -> Self {
        Self { state, made: None }
    }

    /// The largest side that fits.
    pub(super) fn max_side(&self) -> u32 {
        self.state.device.limits().max_texture_dimension_2d
    }

    /// Shows these pixels from now on; nothing larger than [`Picture::max_side`].
    pub(super) fn show(&mut self, image: &RgbaImage) {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 || width.max(height) > self.max_side() {
            return;
        }
        let size = wgpu::Extent3d {
            width,
            height,
            depth_or_array_layers: 1,
        };
        if self
            .made
            .as_ref()
            .is_none_or(|(texture, _)| texture.size() != size)
        {
            self.make(size);
        }
        let Some((texture, _)) = &self.made else {
            return;
        };
        self.state.queue.write_texture(
            texture.as_image_copy(),
            image,
            wgpu::TexelCopyBufferLayout {
                offset: 0,
                bytes_per_row: Some(width * 4),
                rows_per_image: None,
            },
            size,
        );
    }

    /// For `egui::Image`, with the size in pixels.
    pub(super) fn texture(&self) -> Option<(TextureId, Vec2)> {
        let (texture, id) = self.made.as_ref()?;
        Some((*id, vec2(texture.width() as f32, texture.height() as f32)))
    }

    fn make(&mut self, size: wgpu::Extent3d) {
        let texture = self.state.device.create_texture(&wgpu::TextureDescriptor {
            label: Some("picture"),
            size,
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: wgpu::TextureFormat::Rgba8Unorm,
            usage: wgpu::TextureUsages::TEXTURE_BINDING | wgpu::TextureUsages::COPY_DST,
            view_formats: &[],
        });
        let view = texture.create_view(&wgpu::TextureViewDescriptor::default());
        let mut renderer = self.state.renderer.write();
        let filter = wgpu::FilterMode::Linear;
        let id = match self.made.take() {
            Some((_, id)) => {
                renderer.update_egui_texture_from_wgpu_texture(
                    &self.state.device,
                    &view,
                    filter,
                    id,
                );
                id
            }
            None => renderer.register_native_texture(&self.state.device, &view, filter),
        };
        self.made = Some((texture, id));
    }
}
