//! The `mimic` program: see `mimic help`, and the library for how it is built.

use std::process::ExitCode;

fn main() -> ExitCode {
    hush();
    mimic::cli::main()
}

/// Where a session has no runtime folder (in containers, over ssh, under cron), Mesa's layer that orders the
/// graphics cards by the screen they drive writes an error for every card. There it is left out.
fn hush() {
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: no other thread runs yet.
        #[allow(unsafe_code, reason = "before any thread there is nobody to race with")]
        unsafe {
            std::env::set_var("NODEVICE_SELECT", "1");
        }
    }
}
