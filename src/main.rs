//! The `mimic` program: see `mimic help`, and the library for how it is built.

use std::process::ExitCode;

fn main() -> ExitCode {
    mimic::cli::main()
}
