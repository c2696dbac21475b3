//! The last touch to every answer: where the gRPC library's words are not those that clients know.

use axum::http::HeaderValue;
use axum::response::Response;

/// gRPC's OUT_OF_RANGE.
const OUT_OF_RANGE: &[u8] = b"11";
/// gRPC's RESOURCE_EXHAUSTED.
const RESOURCE_EXHAUSTED: HeaderValue = HeaderValue::from_static("8");

/// A message over the receive limit is RESOURCE_EXHAUSTED everywhere but here: put right.
pub(crate) fn polish(response: &mut Response) {
    let headers = response.headers_mut();
    let is_out_of_range =
        headers.get("grpc-status").is_some_and(|status| status.as_bytes() == OUT_OF_RANGE);
    if !is_out_of_range {
        return;
    }
    let Some(message) = headers.get("grpc-message").and_then(|message| message.to_str().ok())
    else {
        return;
    };
    let words = message.replace("%20", " ").replace("%2C", ",").replace("%3A", ":");
    if !words.contains("message length too large") {
        return;
    }
    // "… found 3000000 bytes, the limit is: 2097152 bytes": the two numbers.
    let mut numbers =
        words.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
    let (found, limit) = (numbers.next().unwrap_or("?"), numbers.next().unwrap_or("?"));
    let text =
        format!("grpc:%20received%20message%20larger%20than%20max%20({found}%20vs.%20{limit})");
    if let Ok(text) = HeaderValue::from_str(&text) {
        headers.insert("grpc-message", text);
        headers.insert("grpc-status", RESOURCE_EXHAUSTED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn polished(status: tonic::Status) -> (String, String) {
        let mut response = status.into_http::<axum::body::Body>();
        polish(&mut response);
        let header = |name| response.headers()[name].to_str().unwrap().to_owned();
        (header("grpc-status"), header("grpc-message"))
    }

    #[test]
    fn a_message_over_the_limit_is_resource_exhausted() {
        let status = tonic::Status::out_of_range(
            "Error, decoded message length too large: found 3000000 bytes, the limit is: 2097152 bytes",
        );
        let (code, message) = polished(status);
        assert_eq!(code, "8");
        assert_eq!(
            message.replace("%20", " "),
            "grpc: received message larger than max (3000000 vs. 2097152)"
        );
    }

    #[test]
    fn other_errors_stay_as_they_are() {
        let (code, message) = polished(tonic::Status::out_of_range(
            "etcdserver: mvcc: required revision has been compacted",
        ));
        assert_eq!(code, "11");
        assert!(message.contains("compacted"));
    }
}
