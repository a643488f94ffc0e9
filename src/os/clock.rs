//! Reads the host's monotonic clock.

use crate::base::clock::Nanos;

/// Now, on the clock that all processes of this host share. About 20 ns, no system call (vDSO).
pub fn now() -> Nanos {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Nanos(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    #[test]
    fn time_moves_forward() {
        let first = super::now();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(super::now().since(first) >= std::time::Duration::from_millis(2));
    }
}
