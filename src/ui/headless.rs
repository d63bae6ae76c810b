//! The window without a window: the same [`App`], drawn into a texture. For screenshots and measurements on
//! machines without a display.

use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use eframe::egui::{self, Context, Pos2, Rect, Vec2};
use eframe::egui_wgpu::{RenderState, RendererOptions, ScreenDescriptor};
use image::RgbaImage;

use super::{App, Error, Start};

/// Between two frames of the window.
const FRAME: Duration = Duration::from_millis(16);
/// The same while something moves: no display is faster.
const SHORTEST: Duration = Duration::from_millis(4);

/// Runs the window for `after` and writes its picture.
///
/// # Errors
/// When there is no adapter, or the file cannot be written.
pub fn screenshot(start: Start, size: [f32; 2], after: Duration, file: &Path) -> Result<(), Error> {
    let mut window = Headless::new(start, size)?;
    let began = Instant::now();
    while began.elapsed() < after {
        window.frame();
        window.rest();
    }
    let picture = window.picture()?;
    picture.save(file).map_err(|e| Error::Screenshot {
        path: file.to_owned(),
        why: e.to_string(),
    })
}

/// What was measured of the window.
#[derive(Clone, Debug)]
pub struct Measured {
    /// From the start to the first picture on the stage, seconds.
    pub first_picture: f64,
    /// From the start to the first animated frame, seconds.
    pub first_animated: f64,
    /// Animated frames per second.
    pub fps: f64,
    /// From the driver's frame to the window, milliseconds.
    pub latency: f64,
    /// Milliseconds between two frames of the driver.
    pub interval: f64,
    /// Milliseconds of the networks a frame.
    pub inference: f64,
    /// What the governor has made of it: "full quality", "half size".
    pub quality: String,
    /// What putting a frame's faces into the photo took on the window's thread, milliseconds: a running mean.
    pub composing: f64,
    /// Predictions stayed on the card at the end.
    pub zero_copy: bool,
    /// The longest time that one frame of the window took, milliseconds: the window answers within it.
    pub slowest: f64,
}

/// Runs the window for `long` and measures it; `each` is called every second. Nothing is painted: that is
/// the adapter's speed, not the program's; everything else is as in the window.
///
/// # Errors
/// When there is no adapter.
pub fn measure(
    start: Start,
    size: [f32; 2],
    long: Duration,
    mut each: impl FnMut(),
) -> Result<Measured, Error> {
    let began = Instant::now();
    let mut window = Headless::new(start, size)?;
    let (mut picture, mut animated, mut slowest) = (None, None, Duration::ZERO);
    let mut seconds = 0;
    while began.elapsed() < long {
        let frame = Instant::now();
        window.frame();
        // The first frames load fonts and textures.
        if animated.is_some() {
            slowest = slowest.max(frame.elapsed());
        }
        if picture.is_none() && window.app.stage.photo().is_some() {
            picture = Some(began.elapsed().as_secs_f64());
        }
        if animated.is_none() && window.app.stats.latency > 0.0 {
            animated = Some(began.elapsed().as_secs_f64());
        }
        if began.elapsed().as_secs() > seconds {
            seconds += 1;
            each();
        }
        window.rest();
    }
    let quality = window.app.quality_text();
    let stats = &window.app.stats;
    Ok(Measured {
        first_picture: picture.unwrap_or(f64::INFINITY),
        first_animated: animated.unwrap_or(f64::INFINITY),
        fps: f64::from(stats.inference_fps()),
        latency: f64::from(stats.latency),
        interval: 1000.0 / f64::from(stats.driver_fps()).max(0.001),
        inference: f64::from(stats.stages.total()),
        quality: quality.unwrap_or_else(|| "full quality".to_owned()),
        composing: f64::from(stats.compose),
        zero_copy: window.app.stage.on_card(),
        slowest: slowest.as_secs_f64() * 1000.0,
    })
}

struct Headless {
    ctx: Context,
    state: RenderState,
    app: App,
    size: [f32; 2],
    began: Instant,
    /// When something wants to be drawn.
    woken: Receiver<()>,
    shapes: Option<(Vec<egui::ClippedPrimitive>, f32)>,
}

impl Headless {
    fn new(start: Start, size: [f32; 2]) -> Result<Self, Error> {
        let configuration = super::graphics();
        let instance = pollster::block_on(configuration.wgpu_setup.new_instance());
        let create =
            RenderState::create(&configuration, &instance, None, RendererOptions::default());
        let state = pollster::block_on(create).map_err(|error| {
            tracing::debug!("{error}");
            Error::NoAdapter
        })?;
        let ctx = Context::default();
        let (wake, woken) = sync_channel(1);
        ctx.set_request_repaint_callback(move |asked| {
            if asked.delay <= super::WAKE {
                let _ = wake.try_send(());
            }
        });
        let app = App::new(&ctx, &state, start)?;
        Ok(Self {
            ctx,
            state,
            app,
            size,
            began: Instant::now(),
            woken,
            shapes: None,
        })
    }

    /// Until the next frame: at the display's rate, or as soon as there is something new.
    fn rest(&self) {
        let since = Instant::now();
        let _ = self.woken.recv_timeout(FRAME);
        std::thread::sleep(SHORTEST.saturating_sub(since.elapsed()));
    }

    /// One frame of the window, without painting it.
    fn frame(&mut self) {
        let input = egui::RawInput {
            screen_rect: Some(Rect::from_min_size(Pos2::ZERO, Vec2::from(self.size))),
            time: Some(self.began.elapsed().as_secs_f64()),
            ..egui::RawInput::default()
        };
        let app = &mut self.app;
        let mut output = self.ctx.run_ui(input, |ui| {
            app.logic(&ui.ctx().clone());
            app.draw(ui);
        });
        {
            let mut renderer = self.state.renderer.write();
            for (id, deltas) in &output.textures_delta.set {
                for delta in deltas {
                    renderer.update_texture(&self.state.device, &self.state.queue, *id, delta);
                }
            }
            for id in &output.textures_delta.free {
                renderer.free_texture(id);
            }
        }
        output.textures_delta.clear();
        // What is written into textures is kept until something is submitted; a window does so every frame.
        self.state.queue.submit([]);
        let _ = self.state.device.poll(wgpu::PollType::Poll);
        let points = output.pixels_per_point;
        self.shapes = Some((self.ctx.tessellate(output.shapes, points), points));
    }

    /// The frame made last, painted.
    fn picture(&self) -> Result<RgbaImage, Error> {
        let Some((primitives, points)) = &self.shapes else {
            return Ok(RgbaImage::default());
        };
        let RenderState {
            device,
            queue,
            target_format,
            ..
        } = &self.state;
        let [width, height] = self
            .size
            .map(|side| (side * points).round().max(1.0) as u32);
        let extent = wgpu::Extent3d {
            width,
            height,
            depth_or_array_layers: 1,
        };
        let target = device.create_texture(&wgpu::TextureDescriptor {
            label: Some("window"),
            size: extent,
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: *target_format,
            usage: wgpu::TextureUsages::RENDER_ATTACHMENT | wgpu::TextureUsages::COPY_SRC,
            view_formats: &[],
        });
        let view = target.create_view(&wgpu::TextureViewDescriptor::default());
        let screen = ScreenDescriptor {
            size_in_pixels: [width, height],
            pixels_per_point: *points,
        };
        let mut renderer = self.state.renderer.write();
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let commands = renderer.update_buffers(device, queue, &mut encoder, primitives, &screen);
        {
            let pass = encoder.begin_render_pass(&wgpu::RenderPassDescriptor {
                label: Some("window"),
                color_attachments: &[Some(wgpu::RenderPassColorAttachment {
                    view: &view,
                    resolve_target: None,
                    ops: wgpu::Operations {
                        load: wgpu::LoadOp::Clear(wgpu::Color::BLACK),
                        store: wgpu::StoreOp::Store,
                    },
                    depth_slice: None,
                })],
                ..wgpu::RenderPassDescriptor::default()
            });
            renderer.render(&mut pass.forget_lifetime(), primitives, &screen);
        }
        let row = (width * 4).next_multiple_of(256);
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("screenshot"),
            size: u64::from(row) * u64::from(height),
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        });
        encoder.copy_texture_to_buffer(
            target.as_image_copy(),
            wgpu::TexelCopyBufferInfo {
                buffer: &buffer,
                layout: wgpu::TexelCopyBufferLayout {
                    offset: 0,
                    bytes_per_row: Some(row),
                    rows_per_image: None,
                },
            },
            extent,
        );
        queue.submit(commands.into_iter().chain([encoder.finish()]));
        buffer.map_async(wgpu::MapMode::Read, .., |_| ());
        let wait = wgpu::PollType::Wait {
            submission_index: None,
            timeout: Some(Duration::from_secs(20)),
        };
        device
            .poll(wait)
            .map_err(|e| Error::Window(e.to_string()))?;
        let bytes = buffer
            .get_mapped_range(..)
            .map_err(|e| Error::Window(e.to_string()))?;
        let bgra = matches!(
            target_format,
            wgpu::TextureFormat::Bgra8Unorm | wgpu::TextureFormat::Bgra8UnormSrgb
        );
        let mut picture = RgbaImage::new(width, height);
        let rows = picture.chunks_exact_mut(width as usize * 4);
        for (to, from) in rows.zip(bytes.chunks_exact(row as usize)) {
            to.copy_from_slice(&from[..to.len()]);
        }
        for pixel in picture.pixels_mut() {
            if bgra {
                pixel.0.swap(0, 2);
            }
            pixel.0[3] = 255;
        }
        Ok(picture)
    }
}
