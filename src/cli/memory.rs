//! How much memory this process uses.

/// Peak resident memory in bytes, where the system tells.
pub(super) fn peak() -> Option<u64> {
    of("VmHWM:")
}

/// Resident memory in bytes, where the system tells.
pub(super) fn now() -> Option<u64> {
    of("VmRSS:")
}

fn of(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}
