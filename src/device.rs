//! What the networks run on: the CPU, or a graphics card that this build knows how to use.
//!
//! A card that cannot be had is one sentence, never a panic; who asked goes on with the next one ([`Choice::order`]).

use std::fmt;
use std::panic::catch_unwind;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, DeviceLocation};

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The first that works: CUDA, Metal, the CPU.
    #[default]
    Auto,
    /// No card.
    Cpu,
    /// NVIDIA's card of this number, from 0.
    Cuda(usize),
    /// Apple's.
    Metal,
}

impl Choice {
    /// The cards to try, one after the other, before the CPU is taken.
    pub fn order(self) -> Vec<Self> {
        let built = [
            (cfg!(feature = "cuda"), Self::Cuda(0)),
            (cfg!(feature = "metal"), Self::Metal),
        ];
        match self {
            Self::Auto => built
                .into_iter()
                .filter(|(here, _)| *here)
                .map(|(_, card)| card)
                .collect(),
            Self::Cpu => Vec::new(),
            card => vec![card],
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse::<u16>().ok())
                .map(|number| Self::Cuda(usize::from(number)))
                .ok_or_else(|| format!("'{text}' is none of auto, cpu, cuda:N and metal")),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

/// A card that was opened.
#[derive(Clone, Debug)]
pub struct Card {
    /// Where tensors live.
    pub device: Device,
    /// For people.
    pub name: String,
    /// What its networks compute in where nobody asks for something else.
    pub usual: DType,
}

impl Card {
    /// The same card by a stream of its own, on which nothing waits for what others do on the card; tensors of the one are not for the
    /// other.
    ///
    /// # Errors
    /// When the device fails.
    pub fn with_own_stream(&self) -> candle_core::Result<Self> {
        let device = match self.device.location() {
            DeviceLocation::Cuda { gpu_id } => Device::new_cuda_with_stream(gpu_id)?,
            _ => self.device.clone(),
        };
        Ok(Self {
            device,
            ..self.clone()
        })
    }
}

/// Opens a card, once in a process: who uses it shares its stream, on which all comes one after the other, and what it has loaded.
///
/// # Errors
/// In a sentence why it cannot be had.
pub fn open(card: Choice) -> Result<Card, String> {
    static OPENED: Mutex<Vec<(Choice, Card)>> = Mutex::new(Vec::new());
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, here)) = opened.iter().find(|(choice, _)| *choice == card) {
        return Ok(here.clone());
    }
    let new = open_now(card)?;
    opened.push((card, new.clone()));
    Ok(new)
}

fn open_now(card: Choice) -> Result<Card, String> {
    // candle and what is below it panic where a library or a driver is missing.
    let opened = catch_unwind(|| match card {
        Choice::Cuda(number) => cuda(number),
        Choice::Metal => metal(),
        Choice::Auto | Choice::Cpu => Err("the CPU is no card".to_owned()),
    });
    opened.unwrap_or_else(|_| {
        Err(match card {
            Choice::Metal => "Metal cannot be had: the system's library is missing".to_owned(),
            _ => "CUDA cannot be had: NVIDIA's driver or one of CUDA's libraries is missing"
                .to_owned(),
        })
    })
}

#[cfg(feature = "cuda")]
fn cuda(number: usize) -> Result<Card, String> {
    let said = |error: candle_core::Error| sentence(number, &error.to_string());
    // A stream of its own: the default one is another for every thread of the host.
    let device = Device::new_cuda_with_stream(number).map_err(said)?;
    let context = std::sync::Arc::clone(
        device
            .as_cuda_device()
            .map_err(said)?
            .cuda_stream()
            .context(),
    );
    let told = context
        .name()
        .and_then(|name| Ok((name, context.compute_capability()?)));
    let (name, (major, _)) = told.map_err(|error| sentence(number, &format!("{error:?}")))?;
    Ok(Card {
        device,
        name: format!("{name}, cuda:{number}"),
        // Before Volta nothing is gained by it.
        usual: if major >= 7 { DType::F16 } else { DType::F32 },
    })
}

#[cfg(not(feature = "cuda"))]
fn cuda(number: usize) -> Result<Card, String> {
    Err(format!(
        "cuda:{number} cannot be had: this mimic was built without CUDA (cargo build --features cudnn)"
    ))
}

#[cfg(feature = "metal")]
fn metal() -> Result<Card, String> {
    let device = Device::new_metal(0)
        .map_err(|e| format!("Metal cannot be had: {}", first_line(&e.to_string())))?;
    Ok(Card {
        device,
        name: "Metal".to_owned(),
        usual: DType::F32,
    })
}

#[cfg(not(feature = "metal"))]
fn metal() -> Result<Card, String> {
    Err(
        "Metal cannot be had: this mimic was built without it (cargo build --features metal)"
            .to_owned(),
    )
}

/// What CUDA's answer means and what to do about it.
pub fn sentence(number: usize, answer: &str) -> String {
    let says = |name: &str| answer.contains(name);
    let why = if says("STUB_LIBRARY") {
        "NVIDIA's driver is not installed".to_owned()
    } else if says("NO_DEVICE") {
        match std::env::var("CUDA_VISIBLE_DEVICES") {
            Ok(seen) => format!("CUDA sees no card; CUDA_VISIBLE_DEVICES is '{seen}'"),
            Err(_) => "CUDA sees no card".to_owned(),
        }
    } else if says("INVALID_DEVICE") {
        "there is no card of this number (nvidia-smi -L lists them)".to_owned()
    } else if says("INSUFFICIENT_DRIVER")
        || says("UNSUPPORTED_PTX")
        || says("SYSTEM_DRIVER_MISMATCH")
        || says("INVALID_PTX")
        || says("NO_BINARY_FOR_GPU")
    {
        "NVIDIA's driver is too old for this mimic, or its card: update the driver".to_owned()
    } else if says("OUT_OF_MEMORY") || says("out of memory") || says("ALLOC_FAILED") {
        "its memory is full: end other programs that use it".to_owned()
    } else if says("DEVICES_UNAVAILABLE") || says("DEVICE_UNAVAILABLE") {
        "another program has it for itself".to_owned()
    } else {
        first_line(answer)
    };
    format!("cuda:{number} cannot be used: {why}")
}

/// Without the backtrace that candle adds.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read_and_said_in_the_same_words() {
        for text in ["auto", "cpu", "cuda:0", "cuda:12", "metal"] {
            assert_eq!(text.parse::<Choice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Choice::Cuda(0)));
        for text in [
            "",
            "gpu",
            "cuda:",
            "cuda:-1",
            "cuda:99999999999",
            "CPU",
            "cuda:0x1",
        ] {
            assert!(
                text.parse::<Choice>().unwrap_err().contains("cuda:N"),
                "{text}"
            );
        }
    }

    #[test]
    fn the_cpu_is_never_a_card_and_nothing_is_tried_that_was_not_asked_for() {
        assert!(Choice::Cpu.order().is_empty());
        assert_eq!(Choice::Cuda(3).order(), [Choice::Cuda(3)]);
        assert!(open(Choice::Cpu).is_err());
        assert!(!Choice::Auto.order().contains(&Choice::Cpu));
    }

    #[test]
    fn a_card_that_this_build_cannot_use_is_one_sentence() {
        for card in [Choice::Cuda(70), Choice::Metal] {
            let why = open(card).unwrap_err();
            assert!(why.contains("cannot be") && !why.contains('\n'), "{why}");
        }
    }

    #[test]
    fn cudas_answers_say_what_to_do() {
        for (answer, wanted) in [
            (
                "DriverError(CUDA_ERROR_STUB_LIBRARY, \"...\")",
                "not installed",
            ),
            (
                "DriverError(CUDA_ERROR_NO_DEVICE, \"no CUDA-capable device\")",
                "no card",
            ),
            ("DriverError(CUDA_ERROR_INVALID_DEVICE, \"\")", "nvidia-smi"),
            (
                "DriverError(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, \"\")",
                "update",
            ),
            ("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"\")", "full"),
            ("something\n   0: std::backtrace", "something"),
        ] {
            let said = sentence(2, answer);
            assert!(
                said.starts_with("cuda:2") && said.contains(wanted) && !said.contains('\n'),
                "{said}"
            );
        }
    }
}
