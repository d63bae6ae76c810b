//! Memory that CUDA and Vulkan share, so that a prediction goes from the networks to the shaders without leaving the card.
//!
//! Vulkan allocates it, since it is the one that is particular about its kinds of memory, and exports it as a file descriptor
//! ([`SharedMemory::handle`]), which CUDA takes as memory of its own (`ops::fused::Shared`). A place of it is written by the networks,
//! which wait until that is done before they let the prediction go, and lent again when the shaders have read it.
//!
//! Linux alone: elsewhere the handles are others. What the window draws with must be the card that the networks run on.

#![allow(
    unsafe_code,
    reason = "wgpu knows no memory of others: it is made through Vulkan itself"
)]

use std::sync::Arc;

use super::Error;
use super::context::Context;
use super::prepare_pass::words;
use crate::frame::{Handle, Lent, Prediction, SharedMemory};

/// The largest prediction that a place has room for: sides of its picture and of its maps.
const LARGEST: (u32, u32) = (512, 128);
/// How many there are: a frame's faces being made, waiting, shown, and shown before.
const PLACES: u32 = 16;

/// The memory as the shaders have it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) buffer: wgpu::Buffer,
    pub(super) memory: Arc<SharedMemory>,
}

impl Shared {
    /// # Errors
    /// Where the adapter cannot export memory.
    pub(super) fn new(context: &Context) -> Result<Self, Error> {
        let place = words(LARGEST.0, LARGEST.1) * 4;
        let exported = export(&context.device, place * u64::from(PLACES));
        let (buffer, handle) = exported.map_err(|reason| Error::Sharing {
            adapter: context.name.clone(),
            reason,
        })?;
        let memory = SharedMemory::new(handle, place, PLACES);
        Ok(Self { buffer, memory })
    }

    /// Whether a place is one of this memory's.
    pub(super) fn holds(&self, lent: &Lent) -> bool {
        Arc::ptr_eq(lent.memory(), &self.memory)
    }

    /// A prediction that lies here, for those who cannot read it where it is.
    pub(super) fn read(
        &self,
        context: &Context,
        lent: &Lent,
        of: &Prediction,
    ) -> Result<Prediction, Error> {
        let bytes = words(of.size, of.map_size) * 4;
        let usage = wgpu::BufferUsages::MAP_READ;
        let copy = context.buffer("prediction read back", bytes, usage);
        let mut encoder = context.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&self.buffer, lent.start(), &copy, 0, bytes);
        context.queue.submit([encoder.finish()]);
        let all = context.mapped(&copy, <[u8]>::to_vec)?;
        let (rgba, maps) = all.split_at(4 * (of.size * of.size) as usize);
        let (deformation, occlusion) = maps.split_at(8 * (of.map_size * of.map_size) as usize);
        Ok(Prediction {
            size: of.size,
            rgba: rgba.to_vec(),
            map_size: of.map_size,
            deformation: bytemuck::pod_collect_to_vec(deformation),
            occlusion: bytemuck::pod_collect_to_vec(occlusion),
            lent: None,
        })
    }
}

#[cfg(not(target_os = "linux"))]
fn export(_: &wgpu::Device, _: u64) -> Result<(wgpu::Buffer, Handle), String> {
    Err("memory is shared on Linux alone".to_owned())
}

/// Makes a buffer whose memory others may take for theirs.
#[cfg(target_os = "linux")]
fn export(device: &wgpu::Device, bytes: u64) -> Result<(wgpu::Buffer, Handle), String> {
    use wgpu::hal::api::Vulkan;

    // SAFETY: nothing of the device is destroyed, and what is made on it is wgpu's in the end.
    let Some(hal) = (unsafe { device.as_hal::<Vulkan>() }) else {
        return Err("it is not used by Vulkan".to_owned());
    };
    let card = linux::card(&hal)?;
    let (buffer, file, size) = linux::allocate(&hal, bytes)?;
    drop(hal);
    let description = wgpu::BufferDescriptor {
        label: Some("shared predictions"),
        size: bytes,
        usage: wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    };
    // SAFETY: it was made on this device for these uses. What it holds at first is of no meaning to anybody.
    let buffer = unsafe { device.create_buffer_from_hal::<Vulkan>(buffer, &description) };
    let handle = Handle {
        file,
        bytes: size,
        card,
    };
    Ok((buffer, handle))
}

/// Vulkan itself.
#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::os::fd::FromRawFd;

    use ash::khr::external_memory_fd;
    use ash::vk::{self, ExternalMemoryFeatureFlags as Features};
    use wgpu::hal::vulkan::{Buffer, Device};

    const KIND: vk::ExternalMemoryHandleTypeFlags = vk::ExternalMemoryHandleTypeFlags::OPAQUE_FD;

    /// What the buffer is used for.
    fn uses() -> vk::BufferUsageFlags {
        vk::BufferUsageFlags::STORAGE_BUFFER
            | vk::BufferUsageFlags::TRANSFER_SRC
            | vk::BufferUsageFlags::TRANSFER_DST
    }

    /// The card's UUID, if it can export such a buffer.
    pub(super) fn card(device: &Device) -> Result<[u8; vk::UUID_SIZE], String> {
        let instance = device.shared_instance();
        let extensions = device.enabled_device_extensions();
        if !extensions.contains(&external_memory_fd::NAME)
            || instance.instance_api_version() < vk::API_VERSION_1_1
        {
            return Err("its driver has no VK_KHR_external_memory_fd".to_owned());
        }
        let (instance, card) = (instance.raw_instance(), device.raw_physical_device());
        let asked = vk::PhysicalDeviceExternalBufferInfo::default()
            .usage(uses())
            .handle_type(KIND);
        let mut answer = vk::ExternalBufferProperties::default();
        let mut identity = vk::PhysicalDeviceIDProperties::default();
        let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut identity);
        // SAFETY: a card of this instance, which is of Vulkan 1.1.
        unsafe {
            instance.get_physical_device_external_buffer_properties(card, &asked, &mut answer);
            instance.get_physical_device_properties2(card, &mut properties);
        }
        let can = answer.external_memory_properties.external_memory_features;
        if !can.contains(Features::EXPORTABLE) || can.contains(Features::DEDICATED_ONLY) {
            return Err("its driver does not export buffers".to_owned());
        }
        Ok(identity.device_uuid)
    }

    /// A buffer, what the system calls its memory, and how large that is.
    pub(super) fn allocate(device: &Device, bytes: u64) -> Result<(Buffer, File, u64), String> {
        let raw = device.raw_device();
        let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(KIND);
        let wanted = vk::BufferCreateInfo::default()
            .size(bytes)
            .usage(uses())
            .sharing_mode(vk::SharingMode::EXCLUSIVE)
            .push_next(&mut external);
        // SAFETY: the device is alive, and the description whole.
        let buffer = unsafe { raw.create_buffer(&wanted, None) }.map_err(|e| e.to_string())?;
        // SAFETY: a buffer of this device.
        let needs = unsafe { raw.get_buffer_memory_requirements(buffer) };
        let memory = own_memory(device, &needs).and_then(|kind| {
            let mut exported = vk::ExportMemoryAllocateInfo::default().handle_types(KIND);
            let wanted = vk::MemoryAllocateInfo::default()
                .allocation_size(needs.size)
                .memory_type_index(kind)
                .push_next(&mut exported);
            // SAFETY: as much and of a kind as the buffer needs.
            unsafe { raw.allocate_memory(&wanted, None) }.map_err(|e| e.to_string())
        });
        let memory = memory.inspect_err(|_| {
            // SAFETY: nobody else knows it.
            unsafe { raw.destroy_buffer(buffer, None) };
        })?;
        let wanted = vk::MemoryGetFdInfoKHR::default()
            .memory(memory)
            .handle_type(KIND);
        let instance = device.shared_instance().raw_instance();
        // SAFETY: buffer and memory were made for each other, and the memory to be exported.
        let descriptor = unsafe {
            raw.bind_buffer_memory(buffer, memory, 0).and_then(|()| {
                external_memory_fd::Device::new(instance, raw).get_memory_fd(&wanted)
            })
        };
        let descriptor = descriptor.map_err(|error| {
            // SAFETY: nobody else knows them.
            unsafe {
                raw.destroy_buffer(buffer, None);
                raw.free_memory(memory, None);
            }
            error.to_string()
        })?;
        // SAFETY: Vulkan has given the descriptor away, and buffer and memory are wgpu's from here on.
        let (file, buffer) = unsafe {
            let buffer = Buffer::from_raw_managed(buffer, memory, 0, needs.size);
            (File::from_raw_fd(descriptor), buffer)
        };
        Ok((buffer, file, needs.size))
    }

    /// The kind of memory that is the card's own and that a buffer can have.
    pub(super) fn own_memory(
        device: &Device,
        needs: &vk::MemoryRequirements,
    ) -> Result<u32, String> {
        let instance = device.shared_instance().raw_instance();
        let card = device.raw_physical_device();
        // SAFETY: a card of this instance.
        let kinds = unsafe { instance.get_physical_device_memory_properties(card) };
        let own = |&kind: &u32| {
            let flags = kinds.memory_types[kind as usize].property_flags;
            needs.memory_type_bits & (1 << kind) != 0
                && flags.contains(vk::MemoryPropertyFlags::DEVICE_LOCAL)
        };
        (0..kinds.memory_type_count)
            .find(own)
            .ok_or_else(|| "it has no memory of its own for buffers".to_owned())
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::os::fd::IntoRawFd;

    use ash::vk;
    use image::RgbaImage;
    use wgpu::hal::{api::Vulkan, vulkan};

    use super::*;
    use crate::geometry::Rect;
    use crate::gpu::{Choice, Compositor, PasteMode, PasteSettings, model_view};

    /// Writes by another device of Vulkan, as CUDA would, what the compositor is then to find in a place.
    struct Writer {
        context: Context,
        buffer: wgpu::Buffer,
    }

    impl Writer {
        fn of(memory: &SharedMemory) -> Self {
            let Handle { file, bytes, card } = memory.handle().unwrap();
            let context = Context::open(true).unwrap();
            let flags = vk::BufferUsageFlags::TRANSFER_DST;
            let kind = vk::ExternalMemoryHandleTypeFlags::OPAQUE_FD;
            // SAFETY: the handle is of memory as large as that, which a device of the same driver has exported; buffer and memory
            // become wgpu's.
            let buffer = unsafe {
                let hal = context.device.as_hal::<Vulkan>().unwrap();
                let raw = hal.raw_device();
                assert_eq!(linux::card(&hal).unwrap(), card);

                let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(kind);
                let wanted = vk::BufferCreateInfo::default()
                    .size(bytes)
                    .usage(flags)
                    .push_next(&mut external);
                let buffer = raw.create_buffer(&wanted, None).unwrap();
                let needs = raw.get_buffer_memory_requirements(buffer);
                let mut imported = vk::ImportMemoryFdInfoKHR::default()
                    .handle_type(kind)
                    .fd(file.into_raw_fd());
                let wanted = vk::MemoryAllocateInfo::default()
                    .allocation_size(bytes)
                    .memory_type_index(linux::own_memory(&hal, &needs).unwrap())
                    .push_next(&mut imported);
                let memory = raw.allocate_memory(&wanted, None).unwrap();
                raw.bind_buffer_memory(buffer, memory, 0).unwrap();
                drop(hal);
                let buffer = vulkan::Buffer::from_raw_managed(buffer, memory, 0, bytes);
                let description = wgpu::BufferDescriptor {
                    label: Some("imported"),
                    size: bytes,
                    usage: wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                };
                let device = &context.device;
                device.create_buffer_from_hal::<Vulkan>(buffer, &description)
            };
            Self { context, buffer }
        }

        fn write(&self, prediction: &Prediction, lent: &Lent) {
            let parts = [
                prediction.rgba.clone(),
                bytemuck::cast_slice(&prediction.deformation).to_vec(),
                bytemuck::cast_slice(&prediction.occlusion).to_vec(),
            ];
            let (queue, bytes) = (&self.context.queue, parts.concat());
            queue.write_buffer(&self.buffer, lent.start(), &bytes);
            queue.submit([]);
            self.context.wait().unwrap();
        }
    }

    const CROPS: [Rect; 2] = [Rect::new(4, 6, 70, 72), Rect::new(60, 20, 120, 80)];

    fn photo() -> RgbaImage {
        RgbaImage::from_fn(130, 90, |x, y| {
            image::Rgba([(x * 2) as u8, (y * 3 + x) as u8, (x ^ y) as u8, 255])
        })
    }

    fn predictions(by: f32) -> Vec<Prediction> {
        CROPS
            .map(|crop| {
                let here = |i: usize| 2.0 * i as f32 / 7.0 - 1.0;
                Prediction {
                    size: 32,
                    rgba: model_view(&photo(), crop, 32).unwrap().into_raw(),
                    map_size: 8,
                    deformation: (0..64).map(|i| [here(i % 8) + by, here(i / 8)]).collect(),
                    occlusion: (0..64).map(|i| i as f32 / 63.0).collect(),
                    lent: None,
                }
            })
            .to_vec()
    }

    /// Compositor with shared memory, where the adapter has that.
    fn sharing() -> Option<(Compositor, Arc<SharedMemory>)> {
        let made = Compositor::new(Choice::Wgpu).and_then(|mut compositor| {
            compositor.set_photo(&photo(), &CROPS, 32)?;
            let memory = compositor.share()?;
            Ok((compositor, memory))
        });
        match made {
            Ok(made) => Some(made),
            Err(_) if std::env::var("MIMIC_TEST_NO_ADAPTER").is_ok_and(|v| v == "1") => None,
            Err(error) => panic!("{error}; MIMIC_TEST_NO_ADAPTER=1 leaves this test out"),
        }
    }

    fn lent(of: &[Prediction], memory: &Arc<SharedMemory>, writer: &Writer) -> Vec<Prediction> {
        let places = memory.lend(of.len()).unwrap();
        let pairs = of.iter().zip(places);
        pairs
            .map(|(prediction, place)| {
                writer.write(prediction, &place);
                Prediction {
                    size: prediction.size,
                    map_size: prediction.map_size,
                    lent: Some(place),
                    ..Prediction::default()
                }
            })
            .collect()
    }

    #[test]
    fn what_another_interface_has_left_on_the_card_is_composed_as_what_is_uploaded() {
        let Some((mut compositor, memory)) = sharing() else {
            return;
        };
        let writer = Writer::of(&memory);
        for (mode, by) in [(PasteMode::Feather, 0.1), (PasteMode::PaddleGan, 0.2)] {
            let settings = PasteSettings {
                mode,
                ..PasteSettings::default()
            };
            let uploaded = predictions(by);
            let there = lent(&uploaded, &memory, &writer);
            let expected = compositor.composite(&uploaded, &settings).unwrap().clone();
            assert!(expected != photo(), "the faces have moved");
            // As often as there are places, and again: each comes back when it was read.
            for _ in 0..2 * PLACES {
                let there = lent(&uploaded, &memory, &writer);
                assert!(*compositor.composite(&there, &settings).unwrap() == expected);
            }
            assert!(*compositor.composite(&there, &settings).unwrap() == expected);
        }
    }

    #[test]
    fn a_place_comes_back_when_it_was_read_and_nobody_keeps_it() {
        let Some((mut compositor, memory)) = sharing() else {
            return;
        };
        let writer = Writer::of(&memory);
        let there = lent(&predictions(0.1), &memory, &writer);
        let others = memory.lend(PLACES as usize - there.len()).unwrap();
        compositor
            .compose(&there, &PasteSettings::default())
            .unwrap();
        // Reading the picture waits for what was submitted before.
        compositor.output().unwrap();
        assert!(memory.lend(1).is_none(), "they may be composed again");
        drop(there);
        assert!(memory.lend(CROPS.len()).is_some(), "they were read");
        drop(others);
    }

    #[test]
    fn predictions_of_another_card_are_an_error_and_no_picture() {
        let (Some((_, memory)), Some((mut other, _))) = (sharing(), sharing()) else {
            return;
        };
        let writer = Writer::of(&memory);
        let there = lent(&predictions(0.1), &memory, &writer);
        let settings = PasteSettings::default();
        for mut compositor in [Compositor::new(Choice::Cpu).unwrap(), {
            other.set_photo(&photo(), &CROPS, 32).unwrap();
            other
        }] {
            compositor.set_photo(&photo(), &CROPS, 32).unwrap();
            let error = compositor.composite(&there, &settings).unwrap_err();
            assert!(matches!(error, Error::Elsewhere { index: 0 }), "{error}");
        }
        let mut large = there;
        large[1].size = 1024;
        let (mut compositor, _) = sharing().unwrap();
        assert!(compositor.composite(&large, &settings).is_err());
        let error = Compositor::new(Choice::Cpu).unwrap().share().unwrap_err();
        assert!(error.to_string().contains("--zero-copy"), "{error}");
    }

    #[test]
    fn a_photo_too_large_for_the_adapter_takes_them_from_the_card() {
        let Some((mut compositor, memory)) = sharing() else {
            return;
        };
        let writer = Writer::of(&memory);
        let uploaded = predictions(0.1);
        let there = lent(&uploaded, &memory, &writer);
        let settings = PasteSettings::default();
        let mut twin = Compositor::new(Choice::Cpu).unwrap();
        twin.set_photo(&photo(), &CROPS, 32).unwrap();
        let expected = twin.composite(&uploaded, &settings).unwrap();
        compositor.pretend_max_side(64);
        compositor.set_photo(&photo(), &CROPS, 32).unwrap();
        assert_eq!(compositor.device_name(), "CPU");
        assert!(compositor.composite(&there, &settings).unwrap() == expected);
    }
}
