//! A picture that changes every frame, as one texture that egui knows.
//!
//! Bytes are written straight into a texture of wgpu: egui's own way would copy them twice. egui takes its
//! `Rgba8Unorm` for gamma space, as the networks and the compositor do.

use eframe::egui::{TextureId, Vec2, vec2};
use eframe::egui_wgpu::RenderState;
use image::RgbaImage;

use crate::geometry::Rect;
use crate::gpu::{self, Canvas};

/// One texture, made anew only when the size changes.
pub(super) struct Picture {
    state: RenderState,
    canvas: Canvas,
    id: Option<TextureId>,
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Picture")
            .field("canvas", &self.canvas)
            .finish_non_exhaustive()
    }
}

impl Picture {
    /// `device` is that of `state`.
    pub(super) fn new(state: &RenderState, device: &gpu::Device) -> Self {
        Self {
            state: state.clone(),
            canvas: Canvas::new(device),
            id: None,
        }
    }

    /// Shows these pixels from now on; nothing larger than the device can.
    pub(super) fn show(&mut self, image: &RgbaImage) {
        if self.canvas.show(image) {
            self.register();
        }
    }

    /// Shows a part of a picture that is shown otherwise.
    pub(super) fn update(&mut self, image: &RgbaImage, part: Rect) {
        self.canvas.update(image, part);
    }

    /// The texture, to be drawn into.
    pub(super) fn canvas(&self) -> &Canvas {
        &self.canvas
    }

    /// For `egui::Image`, with the size in pixels.
    pub(super) fn texture(&self) -> Option<(TextureId, Vec2)> {
        let texture = self.canvas.texture()?;
        let size = vec2(texture.width() as f32, texture.height() as f32);
        Some((self.id?, size))
    }

    fn register(&mut self) {
        let Some(view) = self.canvas.view() else {
            return;
        };
        let sampler = wgpu::SamplerDescriptor {
            mag_filter: wgpu::FilterMode::Linear,
            min_filter: wgpu::FilterMode::Linear,
            mipmap_filter: wgpu::MipmapFilterMode::Linear,
            ..wgpu::SamplerDescriptor::default()
        };
        let device = &self.state.device;
        let mut renderer = self.state.renderer.write();
        match self.id {
            Some(id) => renderer.update_egui_texture_from_wgpu_texture_with_sampler_options(
                device, view, sampler, id,
            ),
            None => {
                self.id = Some(
                    renderer.register_native_texture_with_sampler_options(device, view, sampler),
                );
            }
        }
    }
}
