//! Errors as RFC 9457 problem documents.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};

/// Media type of a problem document.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// What went wrong with a request.
///
/// ```
/// use ai_swarm::gateway::problem::Problem;
/// let problem = Problem::not_found("no task has the id \"x\"");
/// assert_eq!(problem.to_json()["title"], "Not Found");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// What failed, the value, what is allowed.
    pub detail: String,
    /// Members beyond those of the standard.
    pub members: Map<String, Value>,
}

impl Problem {
    /// A problem with this status.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), members: Map::new() }
    }

    /// The request is wrong.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// There is no such thing.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// It cannot be done now, or at all.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    /// Nobody is there to do it.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    /// Bytes that are no JSON, or JSON that is not this request: says what and where.
    pub fn bad_json(error: &serde_json::Error) -> Self {
        let what = match error.classify() {
            serde_json::error::Category::Data => "the body is JSON, but not such a request",
            _ => "the body is not valid JSON",
        };
        let mut problem = Self::bad_request(format!("{what}: {error}"));
        problem.members.insert("line".to_owned(), error.line().into());
        problem.members.insert("column".to_owned(), error.column().into());
        problem
    }

    /// The document. Its `type` is `about:blank`: the status says what kind of problem it is.
    pub fn to_json(&self) -> Value {
        let mut document = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Value::Object(members) = &mut document {
            members.extend(self.members.clone());
        }
        document
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.to_json().to_string()));
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            // What is refused for now is looked at again that often, or oftener.
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_the_members_of_the_standard() {
        let document = Problem::conflict("8 run already").to_json();
        let text = document.to_string();
        assert_eq!(
            text,
            r#"{"type":"about:blank","title":"Conflict","status":409,"detail":"8 run already"}"#
        );
        let response = Problem::conflict("x").into_response();
        assert_eq!(response.status(), StatusCode::CONFLICT);
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
        assert!(!response.headers().contains_key(header::RETRY_AFTER), "it would be no use");
    }

    #[test]
    fn who_is_refused_for_now_is_told_when_to_ask_again() {
        let response = Problem::unavailable("short of memory").into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }

    #[test]
    fn broken_json_is_located() {
        let error = serde_json::from_str::<Value>("{\n  \"tasks\": [}").expect_err("broken");
        let problem = Problem::bad_json(&error).to_json();
        assert_eq!((problem["line"].as_u64(), problem["column"].as_u64()), (Some(2), Some(13)));
        assert!(problem["detail"].as_str().expect("text").contains("at line 2 column 13"), "{problem}");
    }

    #[test]
    fn a_missing_field_is_named() {
        #[derive(Debug, serde::Deserialize)]
        struct Body {
            #[expect(dead_code, reason = "never there")]
            to: String,
        }
        let error = serde_json::from_str::<Body>("{}").expect_err("incomplete");
        let detail = Problem::bad_json(&error).detail;
        assert!(detail.contains("missing field `to`") && !detail.contains("not valid JSON"), "{detail}");
    }
}
