//! Memory of this process, where the system tells, in units of 10^6 bytes.

/// Largest resident memory so far.
pub(crate) fn peak_rss_mb() -> Option<f64> {
    status("VmHWM:")
}

/// Resident memory now, mapped files included.
pub(crate) fn rss_mb() -> Option<f64> {
    status("VmRSS:")
}

fn status(field: &str) -> Option<f64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}
