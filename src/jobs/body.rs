//! Inputs, output and parameters of a task as they travel to the agent.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Body {
    /// Arrays to read.
    #[serde(rename = "i", default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<PathBuf>,
    /// Where the array goes.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    pub output: Option<PathBuf>,
    /// Parameters as given; the agent fills in the defaults.
    #[serde(rename = "p", default, skip_serializing_if = "Map::is_empty")]
    pub params: Map<String, Value>,
}

impl Body {
    /// As bytes; none when there is nothing to say.
    pub fn encode(&self) -> Result<Vec<u8>, String> {
        if *self == Self::default() {
            return Ok(Vec::new());
        }
        serde_json::to_vec(self).map_err(|_| "a path is not valid UTF-8; the job's folder must be".to_owned())
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        if bytes.is_empty() { Ok(Self::default()) } else { serde_json::from_slice(bytes) }
    }
}
