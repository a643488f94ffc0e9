//! `sleep`: waiting, for tests of time-outs, cancellation and placement.

use std::time::{Duration, Instant};

use super::{Call, KernelError, Outcome};

/// Longest wait between two beats.
const SLICE: Duration = Duration::from_millis(20);

/// Waits `seconds`, beating at least every [`SLICE`].
pub(super) fn sleep(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let end = Instant::now() + Duration::from_secs_f64(call.params.float("seconds").unwrap_or(0.0));
    loop {
        call.pulse.beat()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Outcome::default());
        }
        std::thread::sleep(left.min(SLICE));
    }
}
