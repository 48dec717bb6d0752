//! When to try again.

use std::time::{Duration, SystemTime};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How long to wait before a call is repeated, and how often.
///
/// Before repetition `n` (from 1) the wait is `first * 2^(n-1)`, at most `longest`, times a factor drawn from 0.5
/// to 1 so that many callers do not come back together. A server's `Retry-After` is kept where it is longer, up to
/// `longest_asked`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// Calls at most, the first with them.
    pub attempts: u32,
    /// Before the first repetition.
    pub first: Duration,
    /// The longest wait of our own choice.
    pub longest: Duration,
    /// The longest wait that a server may ask for.
    pub longest_asked: Duration,
    /// Seed of the factors.
    pub seed: u64,
}

impl Default for Backoff {
    /// Six attempts, waits of half a second to 30 seconds, and up to two minutes where a server asks for them.
    fn default() -> Self {
        Self {
            attempts: 6,
            first: Duration::from_millis(500),
            longest: Duration::from_secs(30),
            longest_asked: Duration::from_secs(120),
            seed: 42,
        }
    }
}

impl Backoff {
    /// The wait before repetition `n` (from 1) of call `call`.
    pub fn wait(&self, call: usize, n: u32, asked: Option<Duration>) -> Duration {
        let doubled = self.first.saturating_mul(1u32.checked_shl(n - 1).unwrap_or(u32::MAX));
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(((call as u64) << 16) | u64::from(n));
        let own = doubled.min(self.longest).mul_f64(rng.random_range(0.5..1.0));
        asked.map_or(own, |asked| asked.min(self.longest_asked).max(own))
    }
}

/// The wait that a `Retry-After` header asks for: seconds, or a date (RFC 9110, section 10.2.3). A date in the past
/// asks for none.
pub fn retry_after(header: &str, now: SystemTime) -> Option<Duration> {
    let header = header.trim();
    if header.bytes().all(|b| b.is_ascii_digit()) && !header.is_empty() {
        // More digits than fit is a long time all the same.
        return Some(Duration::from_secs(header.parse().unwrap_or(u64::from(u32::MAX))));
    }
    Some(http_date(header)?.duration_since(now).unwrap_or_default())
}

/// A date in the one form that HTTP still allows to be sent: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let parts: Vec<&str> = text.split(' ').collect();
    let [weekday, day, month, year, time, "GMT"] = parts[..] else { return None };
    if !weekday.ends_with(',') {
        return None;
    }
    let month = MONTHS.iter().position(|name| *name == month)? as i64 + 1;
    let (day, year) = (number(day, 1..=31)?, number(year, 1970..=9999)?);
    let clock: Vec<&str> = time.split(':').collect();
    let [hour, minute, second] = clock[..] else { return None };
    let of_day = number(hour, 0..=23)? * 3600 + number(minute, 0..=59)? * 60 + number(second, 0..=60)?;
    let seconds = days_since_1970(year, month, day) * 86_400 + of_day;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().ok()?))
}

fn number(text: &str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
    text.parse().ok().filter(|n| range.contains(n))
}

/// Days from 1970-01-01 in the Gregorian calendar, counted in years that begin in March so that the leap day is
/// the last of its year.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let before = 365 * year + year / 4 - year / 100 + year / 400;
    before + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_retry_after_of_the_rfc() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 90);
        // 1994-11-06 08:49:37 is second 784111777 (RFC 9110, section 5.6.7; date -u +%s).
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(90)));
        assert_eq!(retry_after("Thu, 01 Jan 1970 00:00:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after(" 120 ", now), Some(Duration::from_secs(120)));
        assert_eq!(retry_after("0", now), Some(Duration::ZERO));
        for bad in ["", "-1", "soon", "1.5", "Sun, 06 Foo 1994 08:49:37 GMT", "Sun, 32 Nov 1994 08:49:37 GMT"]
        {
            assert_eq!(retry_after(bad, now), None, "{bad}");
        }
        // Leap days: 2000-02-29 is day 11016, 2024-03-01 day 19783.
        assert_eq!((days_since_1970(2000, 2, 29), days_since_1970(2024, 3, 1)), (11_016, 19_783));
    }

    #[test]
    fn waits_double_up_to_a_cap_and_repeat_with_the_seed() {
        let backoff = Backoff::default();
        for (n, full) in [(1, 0.5), (2, 1.0), (3, 2.0), (7, 30.0), (60, 30.0)] {
            let wait = backoff.wait(3, n, None).as_secs_f64();
            assert!((full / 2.0..=full).contains(&wait), "{n}: {wait}");
            assert_eq!(backoff.wait(3, n, None), backoff.wait(3, n, None));
        }
        assert_ne!(backoff.wait(1, 1, None), backoff.wait(2, 1, None));
        assert_ne!(Backoff { seed: 1, ..backoff }.wait(1, 1, None), backoff.wait(1, 1, None));
        assert_eq!(backoff.wait(0, 1, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(backoff.wait(0, 1, Some(Duration::from_secs(86_400))), Duration::from_secs(120));
        assert!(backoff.wait(0, 5, Some(Duration::ZERO)) >= Duration::from_secs(4));
    }
}
