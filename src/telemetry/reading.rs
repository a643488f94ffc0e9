//! A value, or the reason why there is none. No `Option`, no NaN, no default stands between a sensor and a reader.
//!
//! JSON: `{"v":61.5,"q":"measured"}` or `{"v":null,"reason":"permission","detail":"...","fix":"..."}`.

use std::borrow::Cow;
use std::fmt;

use serde::ser::{Serialize, SerializeMap, Serializer};

pub use crate::os::sysfs::{Missing, Reason};

/// How a value came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quality {
    /// Read as it is.
    Measured,
    /// Computed from several readings: a rate, a sum, a share.
    Derived,
}

impl Quality {
    /// The stable word in JSON.
    pub fn code(self) -> &'static str {
        match self {
            Quality::Measured => "measured",
            Quality::Derived => "derived",
        }
    }
}

/// A value, or absent with its reason.
#[derive(Debug, Clone, PartialEq)]
pub enum Reading<T> {
    /// It was read.
    Value {
        /// The value.
        v: T,
        /// How it came about.
        quality: Quality,
    },
    /// It could not be.
    Absent {
        /// Stable code.
        reason: Reason,
        /// A sentence for a person.
        detail: Cow<'static, str>,
        /// What would change it, where known.
        fix: Option<Cow<'static, str>>,
    },
}

impl<T> Reading<T> {
    /// Read as it is.
    pub fn measured(v: T) -> Reading<T> {
        Reading::Value { v, quality: Quality::Measured }
    }

    /// Computed from several readings.
    pub fn derived(v: T) -> Reading<T> {
        Reading::Value { v, quality: Quality::Derived }
    }

    /// Absent for a reason.
    pub fn absent(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Reading<T> {
        Reading::Absent { reason, detail: detail.into(), fix: None }
    }

    /// Absent until there is a second sample.
    pub fn warming_up() -> Reading<T> {
        Reading::absent(Reason::WarmingUp, "needs a second sample")
    }

    /// The value, if there is one.
    pub fn value(&self) -> Option<&T> {
        match self {
            Reading::Value { v, .. } => Some(v),
            Reading::Absent { .. } => None,
        }
    }

    /// The reason, if there is no value.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Reading::Value { .. } => None,
            Reading::Absent { reason, .. } => Some(*reason),
        }
    }

    /// True when there is a value.
    pub fn is_present(&self) -> bool {
        self.value().is_some()
    }

    /// The same with another value; absence is kept.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Reading<U> {
        match self {
            Reading::Value { v, quality } => Reading::Value { v: f(v), quality },
            Reading::Absent { reason, detail, fix } => Reading::Absent { reason, detail, fix },
        }
    }
}

impl<T: Copy> Reading<T> {
    /// A copy of the value, if there is one.
    pub fn get(&self) -> Option<T> {
        self.value().copied()
    }
}

impl<T> From<Missing> for Reading<T> {
    fn from(missing: Missing) -> Reading<T> {
        Reading::Absent { reason: missing.reason, detail: missing.detail, fix: missing.fix }
    }
}

impl<T> From<Result<T, Missing>> for Reading<T> {
    fn from(result: Result<T, Missing>) -> Reading<T> {
        result.map_or_else(Reading::from, Reading::measured)
    }
}

impl<T: fmt::Display> fmt::Display for Reading<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reading::Value { v, .. } => v.fmt(f),
            Reading::Absent { reason, detail, .. } => write!(f, "unavailable: {reason}: {detail}"),
        }
    }
}

impl<T: Serialize> Serialize for Reading<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self {
            Reading::Value { v, quality } => {
                map.serialize_entry("v", v)?;
                map.serialize_entry("q", quality.code())?;
            }
            Reading::Absent { reason, detail, fix } => {
                map.serialize_entry("v", &())?;
                map.serialize_entry("reason", reason.code())?;
                map.serialize_entry("detail", detail)?;
                if let Some(fix) = fix {
                    map.serialize_entry("fix", fix)?;
                }
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_a_value_or_a_reason() {
        let json = |reading: Reading<f64>| serde_json::to_string(&reading).unwrap();
        assert_eq!(json(Reading::measured(61.5)), r#"{"v":61.5,"q":"measured"}"#);
        let missing = Missing::new(Reason::Permission, "no").fix("sudo x");
        assert_eq!(json(missing.into()), r#"{"v":null,"reason":"permission","detail":"no","fix":"sudo x"}"#);
        assert_eq!(
            json(Reading::warming_up()),
            r#"{"v":null,"reason":"warming_up","detail":"needs a second sample"}"#
        );
    }
}
