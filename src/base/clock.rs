//! Time as the swarm uses it: nanoseconds of the host's monotonic clock, comparable between processes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds of `CLOCK_MONOTONIC`; the same clock in every process of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Nanos(pub u64);

impl Nanos {
    /// The span from `earlier` to this instant, 0 when `earlier` is later.
    pub fn since(self, earlier: Nanos) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This instant moved forward.
    pub fn plus(self, span: Duration) -> Nanos {
        Nanos(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// The next instant that is a multiple of `period`. What processes do now and then they do at the same moments: a core that
    /// was woken for one is awake for the others.
    pub fn next(self, period: Duration) -> Nanos {
        let period = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX).max(1);
        Nanos((self.0 / period + 1).saturating_mul(period))
    }
}

/// Wall-clock time as RFC 3339 in UTC with microseconds. For display; durations come from the
/// monotonic clock only.
pub fn wall_rfc3339() -> String {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (secs, micros) = (since_epoch.as_secs(), since_epoch.subsec_micros());
    let (days, second_of_day) = ((secs / 86_400) as i64, secs % 86_400);
    // Civil date from a day count, after H. Hinnant, "chrono-compatible low-level date algorithms".
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second_of_day / 3_600, second_of_day / 60 % 60, second_of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_never_go_below_zero() {
        assert_eq!(Nanos(5).since(Nanos(9)), Duration::ZERO);
        assert_eq!(Nanos(9).since(Nanos(5)), Duration::from_nanos(4));
        assert_eq!(Nanos(u64::MAX).plus(Duration::from_secs(1)), Nanos(u64::MAX));
    }

    #[test]
    fn the_next_moment_is_always_to_come() {
        let ten = Duration::from_nanos(10);
        assert_eq!([0, 1, 9, 10].map(|now| Nanos(now).next(ten).0), [10, 10, 10, 20]);
        assert_eq!(Nanos(7).next(Duration::ZERO), Nanos(8));
        assert_eq!(Nanos(u64::MAX).next(ten), Nanos(u64::MAX));
    }

    #[test]
    fn wall_time_has_the_shape_of_rfc_3339() {
        let text = wall_rfc3339();
        assert_eq!(text.len(), "2026-11-21T02:53:14.931523Z".len(), "{text}");
        assert!(text.starts_with("20") && text.ends_with('Z') && text.as_bytes()[10] == b'T', "{text}");
    }
}
