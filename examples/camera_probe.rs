//! Tries mimic's camera code on the kernel's virtual video driver, vivid: `make test-camera` runs it in a virtual
//! machine. It loads and unloads the driver, so it is nothing for a machine that is used for other things.
//!
//! One line for each check; exits with 1 when one has failed.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    checks::run()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("This probe needs Linux and its vivid driver.");
}

#[cfg(target_os = "linux")]
#[allow(clippy::print_stdout, reason = "its lines are its result")]
mod checks {
    use std::process::{Command, ExitCode};
    use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
    use std::time::{Duration, Instant};

    use image::{Rgba, RgbaImage};
    use mimic::frame::PixelFormat::{self, Bgr, Grey, Nv12, Rgb, Yuyv};
    use mimic::media::camera::{Camera, CameraInfo, Error, Event, Opened, VARIABLE, Wish, list};
    use mimic::media::virtual_camera::{self, VirtualCamera};

    /// The driver as one USB camera.
    const VIVID: [&str; 5] = [
        "vivid",
        "n_devs=1",
        "node_types=0x1",
        "num_inputs=1",
        "input_types=0x0",
    ];

    /// As mimic tells its users to load it, under a number after the camera's.
    const LOOPBACK: [&str; 4] = [
        "v4l2loopback",
        "exclusive_caps=1",
        "card_label=mimic",
        "video_nr=9",
    ];

    /// Software emulation is slow; a check that takes longer than this hangs.
    const PATIENCE: Duration = Duration::from_secs(20);

    type Outcome = Result<String, String>;

    type Check = (&'static str, fn() -> Outcome);

    pub(super) fn run() -> ExitCode {
        if std::env::var_os(VARIABLE).is_some() {
            return report(&[
                ("nokhwa lists the camera", || listed(&camera()?)),
                ("nokhwa captures YUYV", || captures(Yuyv, false)),
                ("nokhwa captures RGB", || captures(Rgb, false)),
                ("nokhwa captures BGR", || captures(Bgr, false)),
            ]);
        }
        report(&[
            ("without the driver there is no camera", none),
            ("the camera is listed", || {
                insert()?;
                listed(&camera()?)
            }),
            ("YUYV", || captures(Yuyv, true)),
            ("NV12", || captures(Nv12, true)),
            ("RGB", || captures(Rgb, true)),
            ("BGR", || captures(Bgr, true)),
            ("GREY", || captures(Grey, true)),
            ("a camera in use says so and is taken over", busy),
            ("a silent camera is stalled and comes back", stall),
            ("an unplugged camera is lost and comes back", unplug),
            ("a dropped camera is free at once", dropped),
            ("the virtual camera takes pictures", output),
        ])
    }

    fn report(checks: &[Check]) -> ExitCode {
        let mut failed = false;
        for (what, check) in checks {
            let start = Instant::now();
            let (mark, said) = match check() {
                Ok(said) => ("ok    ", said),
                Err(said) => {
                    failed = true;
                    ("FAILED", said)
                }
            };
            println!(
                "{mark} {what}: {said} [{:.1} s]",
                start.elapsed().as_secs_f64()
            );
        }
        ExitCode::from(u8::from(failed))
    }

    fn none() -> Outcome {
        match list().as_slice() {
            [] => Ok("none".to_owned()),
            some => Err(format!("{some:?}")),
        }
    }

    fn camera() -> Result<CameraInfo, String> {
        // The node appears a moment after the driver.
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(camera) = list().into_iter().next() {
                return Ok(camera);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err("no camera appeared".to_owned())
    }

    fn listed(camera: &CameraInfo) -> Outcome {
        // nokhwa has the name of the node.
        if ["vivid", "vivid-000-vid-cap"].contains(&camera.name.as_str()) {
            Ok(format!(
                "{} at {}: {}",
                camera.name, camera.place, camera.formats
            ))
        } else {
            Err(format!("{camera:?}"))
        }
    }

    /// What a camera has told, owned.
    #[derive(Debug)]
    enum Told {
        Opened(Opened),
        Frame(RgbaImage),
        Stalled,
        Lost(Error),
        Resumed,
    }

    fn start(wish: &Wish) -> Result<(Camera, Receiver<Told>), String> {
        start_one(&camera()?, wish)
    }

    fn start_one(which: &CameraInfo, wish: &Wish) -> Result<(Camera, Receiver<Told>), String> {
        let (tell, told) = sync_channel(64);
        let on = move |event: Event<'_>| {
            let _ = tell.try_send(match event {
                Event::Opened(opened) => Told::Opened(opened),
                Event::Frame { image, .. } => Told::Frame(std::mem::take(image)),
                Event::Stalled => Told::Stalled,
                Event::Lost(error) => Told::Lost(error),
                Event::Resumed => Told::Resumed,
            });
        };
        let camera = Camera::start(which, wish, Box::new(on)).map_err(|e| e.to_string())?;
        Ok((camera, told))
    }

    fn wait<T>(
        told: &Receiver<Told>,
        what: &str,
        mut pick: impl FnMut(Told) -> Option<T>,
    ) -> Result<T, String> {
        let start = Instant::now();
        let mut last = "nothing".to_owned();
        loop {
            match told.recv_timeout(Duration::from_millis(200)) {
                Ok(told) => {
                    if !matches!(told, Told::Frame(_)) {
                        last = format!("{told:?}");
                    }
                    if let Some(picked) = pick(told) {
                        return Ok(picked);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(format!("{what}: the thread ended"));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("{what} did not happen, but {last}"));
            }
        }
    }

    fn frame(told: &Receiver<Told>) -> Result<RgbaImage, String> {
        wait(told, "a frame", |told| match told {
            Told::Frame(image) => Some(image),
            _ => None,
        })
    }

    fn opened(told: &Receiver<Told>) -> Result<Opened, String> {
        wait(told, "opening", |told| match told {
            Told::Opened(opened) => Some(opened),
            _ => None,
        })
    }

    fn lost(told: &Receiver<Told>) -> Result<Error, String> {
        wait(told, "a loss", |told| match told {
            Told::Lost(error) => Some(error),
            _ => None,
        })
    }

    /// Half a second of frames in one format, which must show the driver's colour bars.
    fn captures(format: PixelFormat, exact: bool) -> Outcome {
        let wish = Wish {
            formats: vec![format],
            ..Wish::default()
        };
        let (camera, told) = start(&wish)?;
        let opened = opened(&told)?;
        if opened.format != format {
            return Err(format!("{opened:?}"));
        }
        // The driver's 640x480 has at most 25 frames a second.
        if exact && ((opened.width, opened.height) != (640, 480) || opened.fps < 24.0) {
            return Err(format!("not 640x480 at 25: {opened:?}"));
        }
        let first = frame(&told)?;
        let (start, mut count) = (Instant::now(), 0);
        let mut image = first;
        while start.elapsed() < Duration::from_millis(1000) {
            image = frame(&told)?;
            count += 1;
        }
        let rate = f64::from(count) / start.elapsed().as_secs_f64();
        drop(camera);
        bars(&image, format == Grey)?;
        Ok(format!(
            "{}x{} at {:.0}, {rate:.1} fps here, colour bars as they should be",
            image.width(),
            image.height(),
            opened.fps
        ))
    }

    /// 75 % bars: white, yellow, cyan, green, magenta, red, blue, black.
    fn bars(image: &RgbaImage, grey: bool) -> Result<(), String> {
        const HIGH: u8 = 191;
        for bar in 0..8u32 {
            let x = image.width() * (2 * bar + 1) / 16;
            let Rgba(got) = *image.get_pixel(x, image.height() * 9 / 10);
            let on = |bit: u32| if bar & bit == 0 { HIGH } else { 0 };
            let (r, g, b) = (on(2), on(4), on(1));
            let want = if grey {
                // The driver has its own idea of grey: BT.709.
                let luma = 0.2126 * f32::from(r) + 0.7152 * f32::from(g) + 0.0722 * f32::from(b);
                [luma as u8, luma as u8, luma as u8]
            } else {
                [r, g, b]
            };
            if (0..3).any(|c| got[c].abs_diff(want[c]) > 4) {
                return Err(format!("bar {bar} is {got:?} in place of {want:?}"));
            }
        }
        Ok(())
    }

    fn busy() -> Outcome {
        let (first, told) = start(&Wish::default())?;
        frame(&told)?;
        let (second, told) = start(&Wish::default())?;
        let error = lost(&told)?;
        if !matches!(error, Error::Busy { .. }) {
            return Err(error.to_string());
        }
        drop(first);
        wait(&told, "resuming", |told| {
            matches!(told, Told::Resumed).then_some(())
        })?;
        frame(&told)?;
        drop(second);
        Ok(error.to_string())
    }

    fn stall() -> Outcome {
        let (camera, told) = start(&Wish::default())?;
        frame(&told)?;
        let start = Instant::now();
        drop_buffers(100)?;
        wait(&told, "a stall", |told| {
            matches!(told, Told::Stalled).then_some(())
        })?;
        let after = start.elapsed();
        drop_buffers(0)?;
        wait(&told, "resuming", |told| {
            matches!(told, Told::Resumed).then_some(())
        })?;
        frame(&told)?;
        drop(camera);
        Ok(format!("stalled after {:.1} s", after.as_secs_f64()))
    }

    /// Makes the driver lose so many percent of its frames.
    fn drop_buffers(percent: i64) -> Result<(), String> {
        let failed = |e: std::io::Error| e.to_string();
        let device = v4l::Device::new(camera()?.index as usize).map_err(failed)?;
        let controls = device.query_controls().map_err(failed)?;
        let control = controls
            .iter()
            .find(|control| control.name == "Percentage of Dropped Buffers")
            .ok_or("the driver cannot drop frames")?;
        device
            .set_control(v4l::Control {
                id: control.id,
                value: v4l::control::Value::Integer(percent),
            })
            .map_err(failed)
    }

    fn unplug() -> Outcome {
        let (camera, told) = start(&Wish::default())?;
        frame(&told)?;
        std::fs::write("/sys/bus/platform/drivers/vivid/unbind", "vivid.0")
            .map_err(|e| format!("unbind: {e}"))?;
        let error = lost(&told)?;
        if !matches!(error, Error::Unplugged { .. }) {
            return Err(error.to_string());
        }
        command("rmmod", &["vivid"])?;
        none()?;
        insert()?;
        wait(&told, "resuming", |told| {
            matches!(told, Told::Resumed).then_some(())
        })?;
        bars(&frame(&told)?, false)?;
        drop(camera);
        Ok(error.to_string())
    }

    fn dropped() -> Outcome {
        let (camera, told) = start(&Wish::default())?;
        frame(&told)?;
        let start = Instant::now();
        drop(camera);
        let took = start.elapsed();
        // Its threads end and let go of the device.
        while !matches!(
            told.recv_timeout(PATIENCE),
            Err(RecvTimeoutError::Disconnected)
        ) {
            if start.elapsed() > Duration::from_secs(3) {
                return Err("its threads go on".to_owned());
            }
        }
        if took > Duration::from_millis(100) {
            return Err(format!("dropping took {took:?}"));
        }
        Ok(format!(
            "dropped in {took:?}, all quiet after {:?}",
            start.elapsed()
        ))
    }

    /// What is written to the virtual camera comes out of it as a camera.
    fn output() -> Outcome {
        match VirtualCamera::open(640, 480) {
            Err(virtual_camera::Error::None) => {}
            other => return Err(format!("without a device: {other:?}")),
        }
        command("modprobe", &LOOPBACK)?;
        let failed = |e: virtual_camera::Error| e.to_string();
        let mut output = VirtualCamera::open(641, 480).map_err(failed)?;
        if (output.name(), output.size()) != ("mimic", (640, 480)) {
            return Err(format!("{output:?}"));
        }
        let colours = [[200, 40, 60], [30, 180, 90], [20, 60, 220], [128, 128, 128]];
        let picture = RgbaImage::from_fn(640, 480, |x, y| {
            let [r, g, b] = colours[(x / 320 + y / 240 * 2) as usize];
            Rgba([r, g, b, 255])
        });
        output.write(&picture).map_err(failed)?;
        match VirtualCamera::open(640, 480) {
            Err(virtual_camera::Error::Busy(_)) => {}
            other => return Err(format!("opened twice: {other:?}")),
        }
        let cameras = list();
        let back = cameras
            .iter()
            .find(|camera| camera.name == "mimic")
            .ok_or_else(|| format!("it is not among {cameras:?}"))?;
        let (camera, told) = start_one(back, &Wish::default())?;
        let start = Instant::now();
        let seen = loop {
            output.write(&picture).map_err(failed)?;
            match told.recv_timeout(Duration::from_millis(33)) {
                Ok(Told::Frame(seen)) => break seen,
                Ok(Told::Lost(error)) => return Err(error.to_string()),
                _ if start.elapsed() > PATIENCE => return Err("nothing came out".to_owned()),
                _ => {}
            }
        };
        drop(camera);
        for (x, y) in [(160, 120), (480, 120), (160, 360), (480, 360)] {
            let (got, want) = (seen.get_pixel(x, y), picture.get_pixel(x, y));
            if (0..3).any(|c| got[c].abs_diff(want[c]) > 3) {
                return Err(format!("{x},{y} is {got:?} in place of {want:?}"));
            }
        }
        // Another size is fitted in.
        let wide = RgbaImage::from_pixel(99, 33, Rgba([200, 100, 0, 255]));
        output.write(&wide).map_err(failed)?;
        Ok("what goes in comes out of the camera \"mimic\"".to_owned())
    }

    fn insert() -> Result<(), String> {
        command("modprobe", &VIVID)
    }

    fn command(program: &str, arguments: &[&str]) -> Result<(), String> {
        let output = Command::new(program)
            .args(arguments)
            .output()
            .map_err(|e| format!("{program}: {e}"))?;
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }
}
