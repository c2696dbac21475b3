//! How long a gRPC client waits for its answer: what it says of that itself (`grpc-timeout`).
//!
//! Clients stop waiting by themselves. But what stands between them and us may not, and a request that nobody waits for
//! any more is work for nothing.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Response};
use tonic::Status;

/// The most digits that gRPC allows for a time.
const DIGITS_MAX: usize = 8;

/// The time in the head of a request; none when nothing, or no time, is said.
pub(super) fn of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > DIGITS_MAX || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// The answer once it is over.
pub(super) fn passed() -> Response<Body> {
    Status::deadline_exceeded("context deadline exceeded").into_http()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn times_are_read_in_every_unit_and_nonsense_is_none() {
        for (text, expected) in [
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("5S", Some(Duration::from_secs(5))),
            ("100m", Some(Duration::from_millis(100))),
            ("7u", Some(Duration::from_micros(7))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("999999999n", None),
            ("", None),
            ("S", None),
            ("5", None),
            ("-5S", None),
            ("5s", None),
            ("5\u{e9}", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_bytes(text.as_bytes()).unwrap());
            assert_eq!(of(&headers), expected, "{text:?}");
        }
        assert_eq!(of(&HeaderMap::new()), None);
    }
}
