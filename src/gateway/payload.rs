//! Payloads of messages as JSON: any bytes must be able to travel in a request and in its answer.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

/// Longest payload of a message through the gateway.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// Bytes as JSON: text as text, anything else as `{"base64": …}`.
///
/// ```
/// use ai_swarm::gateway::payload;
/// for bytes in [&b"hello"[..], b"", b"\xff\x00", br#"{"base64": 1}"#] {
///     assert_eq!(payload::to_bytes(payload::to_json(bytes)).as_deref(), Ok(bytes));
/// }
/// ```
pub fn to_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({ "base64": BASE64.encode(bytes) }),
    }
}

/// The bytes that a value stands for: text as it is, `{"base64": …}` decoded, other JSON as its text.
pub fn to_bytes(payload: Value) -> Result<Vec<u8>, String> {
    match payload {
        Value::String(text) => Ok(text.into_bytes()),
        Value::Object(object) if object.len() == 1 && object.contains_key("base64") => {
            match &object["base64"] {
                Value::String(text) => {
                    BASE64.decode(text).map_err(|error| format!("`payload.base64` is not base64: {error}"))
                }
                found => Err(format!("`payload.base64` is {found}, needs text")),
            }
        }
        other => Ok(other.to_string().into_bytes()),
    }
}
