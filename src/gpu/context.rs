//! The graphics adapter: found without a window, opened with the limits it has, watched for errors.
//!
//! wgpu turns errors into panics unless somebody listens: here they become [`Error`]s. Without any
//! adapter nothing panics either, there is just none.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::Error;
use crate::geometry::Rect;

/// Longest wait for one frame, far above what a slow software adapter takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Side of the shaders' workgroups, their `@workgroup_size`.
pub(super) const TILE: u32 = 16;

/// One graphics adapter, for `mimic doctor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterReport {
    /// What the driver calls it.
    pub name: String,
    /// Through which interface: "Vulkan", "Metal", "DX12".
    pub backend: String,
    /// "discrete", "integrated", "virtual", "software" or "unknown".
    pub kind: &'static str,
    /// Name and version of the driver, as far as it tells.
    pub driver: String,
}

impl AdapterReport {
    fn of(info: &wgpu::AdapterInfo) -> Self {
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "unknown",
        };
        let driver = format!("{} {}", info.driver, info.driver_info)
            .trim()
            .to_owned();
        Self {
            name: info.name.clone(),
            backend: info.backend.to_string(),
            kind,
            driver,
        }
    }
}

/// Every adapter that wgpu finds here; the environment variable `WGPU_BACKEND` restricts it.
pub fn adapters() -> Vec<AdapterReport> {
    let instance = instance();
    let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    found
        .iter()
        .map(|adapter| AdapterReport::of(&adapter.get_info()))
        .collect()
}

/// What a device is asked to allow on an adapter: pictures and buffers as large as it can.
pub fn limits(adapter: &wgpu::Adapter) -> wgpu::Limits {
    let has = adapter.limits();
    // What is older than compute shaders can still show a window.
    let usual = if wgpu::Limits::default().check_limits(&has) {
        wgpu::Limits::default()
    } else {
        wgpu::Limits::downlevel_webgl2_defaults()
    };
    wgpu::Limits {
        max_texture_dimension_2d: has.max_texture_dimension_2d,
        max_storage_buffer_binding_size: has.max_storage_buffer_binding_size,
        max_buffer_size: has.max_buffer_size,
        ..usual
    }
}

/// A device that the window has opened, for the compositor to work on too: what is composed there needs
/// not be read back to be shown. All that is done with it is done on the window's thread.
#[derive(Clone, Debug)]
pub struct Device {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    lost: Lost,
    /// See [`super::Canvas`].
    pub(super) halve: Arc<OnceLock<wgpu::ComputePipeline>>,
}

/// Why a device is gone, once it is.
type Lost = Arc<Mutex<Option<String>>>;

impl Device {
    /// Takes the window's device over; from now on the device tells this when it is lost.
    pub fn new(adapter: &wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let lost = watch(&device);
        Self {
            info: adapter.get_info(),
            device,
            queue,
            lost,
            halve: Arc::default(),
        }
    }

    /// Why nothing can be drawn with it any more: the card was taken out, or its driver gave up.
    pub fn lost(&self) -> Option<String> {
        said(&self.lost)
    }

    /// The largest side of a picture on it.
    pub fn max_side(&self) -> u32 {
        self.device.limits().max_texture_dimension_2d
    }

    /// Whether it computes on the CPU.
    pub(super) fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// Whether it runs compute shaders.
    pub(super) fn computes(&self) -> bool {
        self.device.limits().max_compute_invocations_per_workgroup >= TILE * TILE
    }
}

/// Keeps why a device is lost.
fn watch(device: &wgpu::Device) -> Lost {
    let lost = Lost::default();
    let keep = Arc::clone(&lost);
    device.set_device_lost_callback(move |reason, why| {
        let why = if why.is_empty() {
            format!("{reason:?}").to_lowercase()
        } else {
            why
        };
        *keep.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    });
    lost
}

fn said(slot: &Mutex<Option<String>>) -> Option<String> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// An opened adapter.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    /// Its name and interface, for people.
    pub(crate) name: String,
    /// Largest side of a picture.
    max_side: u32,
    /// Largest buffer in bytes.
    max_bytes: u64,
    /// The last error that no scope has caught.
    stray: Arc<Mutex<Option<String>>>,
    lost: Lost,
}

impl Context {
    /// Opens the fastest adapter; a software one only if `software` says so.
    pub(crate) fn open(software: bool) -> Result<Self, Error> {
        let none = |reason: String| Error::NoAdapter { reason };
        let instance = instance();
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = pollster::block_on(instance.request_adapter(&options))
            .map_err(|e| none(e.to_string()))?;
        let info = adapter.get_info();
        if info.device_type == wgpu::DeviceType::Cpu && !software {
            return Err(none(format!(
                "only {}, which computes on the CPU",
                info.name
            )));
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("mimic"),
            required_limits: limits(&adapter),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|e| none(format!("{}: {e}", info.name)))?;
        let stray = Arc::<Mutex<Option<String>>>::default();
        let keep = Arc::clone(&stray);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            *keep.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        }));
        let lost = watch(&device);
        Ok(Self {
            stray,
            ..Self::on(Device {
                device,
                queue,
                info,
                lost,
                halve: Arc::default(),
            })
        })
    }

    /// On the window's device. Errors outside [`Self::checked`] are the window's.
    pub(crate) fn on(shared: Device) -> Self {
        let limits = shared.device.limits();
        Self {
            name: format!("{} ({})", shared.info.name, shared.info.backend),
            max_side: limits.max_texture_dimension_2d,
            max_bytes: limits
                .max_storage_buffer_binding_size
                .min(limits.max_buffer_size),
            device: shared.device,
            queue: shared.queue,
            stray: Arc::default(),
            lost: shared.lost,
        }
    }

    /// Whether a picture of that size, `bytes` large, can be worked on.
    pub(crate) fn fits(&self, width: u32, height: u32, bytes: u64) -> bool {
        width.max(height) <= self.max_side && bytes <= self.max_bytes
    }

    /// Lowers the limits, to test what happens beyond them.
    #[cfg(test)]
    pub(crate) fn pretend_max_side(&mut self, side: u32) {
        self.max_side = side;
    }

    /// Runs `work` and returns what it returns, or the first error that wgpu has found in it.
    pub(crate) fn checked<T>(&self, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
        let scopes = [Internal, Validation, OutOfMemory].map(|f| self.device.push_error_scope(f));
        let result = work();
        let mut found = None;
        // Scopes are a stack: the last one pushed is the first to go.
        for scope in scopes.into_iter().rev() {
            found = found.or(pollster::block_on(scope.pop()));
        }
        let stray = self
            .stray
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // What a lost device refuses is no error of its own: it has to be asked.
        let _ = self.device.poll(wgpu::PollType::Poll);
        let lost = said(&self.lost);
        match found.map(|e| e.to_string()).or(stray).or(lost) {
            Some(reason) => Err(self.failed(reason)),
            None => result,
        }
    }

    /// Waits for all that was submitted.
    pub(crate) fn wait(&self) -> Result<(), Error> {
        let wait = wgpu::PollType::Wait {
            submission_index: None,
            timeout: Some(PATIENCE),
        };
        self.device
            .poll(wait)
            .map(|_| ())
            .map_err(|e| self.failed(e.to_string()))
    }

    /// What `read` makes of a buffer that may be mapped, when all that was submitted is done.
    pub(crate) fn mapped<T>(
        &self,
        buffer: &wgpu::Buffer,
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, Error> {
        buffer.map_async(wgpu::MapMode::Read, .., |_| ());
        self.wait()?;
        let result = match buffer.get_mapped_range(..) {
            Ok(bytes) => Ok(read(&bytes)),
            Err(error) => Err(self.failed(error.to_string())),
        };
        buffer.unmap();
        result
    }

    pub(crate) fn failed(&self, reason: impl Into<String>) -> Error {
        Error::Adapter {
            adapter: self.name.clone(),
            reason: reason.into(),
        }
    }

    /// See [`pipeline`].
    pub(crate) fn pipeline(&self, label: &str, source: &str) -> wgpu::ComputePipeline {
        pipeline(&self.device, label, source)
    }

    /// An empty buffer for shaders; copies go in, and out with `COPY_SRC`.
    pub(crate) fn buffer(
        &self,
        label: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes,
            usage: usage | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// Binds whole buffers to the bindings 0, 1, 2 … of a pipeline.
    pub(crate) fn bind(
        &self,
        label: &str,
        pipeline: &wgpu::ComputePipeline,
        buffers: &[&wgpu::Buffer],
    ) -> wgpu::BindGroup {
        let entries: Vec<_> = (0u32..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(label),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        })
    }
}

/// A compute pipeline from a shader whose entry point is `main`; its bindings are the shader's.
pub(super) fn pipeline(device: &wgpu::Device, label: &str, source: &str) -> wgpu::ComputePipeline {
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some(label),
        source: wgpu::ShaderSource::Wgsl(source.into()),
    });
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(label),
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    })
}

/// Runs a pipeline once for each pixel of a crop.
pub(super) fn dispatch(
    pass: &mut wgpu::ComputePass<'_>,
    pipeline: &wgpu::ComputePipeline,
    bindings: &wgpu::BindGroup,
    crop: Rect,
) {
    pass.set_pipeline(pipeline);
    pass.set_bind_group(0, bindings, &[]);
    pass.dispatch_workgroups(crop.width().div_ceil(TILE), crop.height().div_ceil(TILE), 1);
}

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
}
