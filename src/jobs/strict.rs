//! JSON in which no key may be given twice: which of the two was meant, nobody knows.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// A value as `serde_json` reads it, but that an object with a doubled key is an error, at its place.
///
/// ```
/// use ai_swarm::jobs::Strict;
/// let Strict(task) = serde_json::from_str(r#"{"id": "a", "after": ["b"]}"#)?;
/// assert_eq!(task["id"], "a");
/// let error = serde_json::from_str::<Strict>(r#"{"id": "a", "id": "b"}"#).unwrap_err();
/// assert_eq!(error.to_string(), "the key `id` is given twice at line 1 column 16");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Strict(pub Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(Reader).map(Strict)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = items.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if values.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key `{key}` is given twice")));
            }
            let Strict(value) = entries.next_value()?;
            values.insert(key, value);
        }
        Ok(values.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_doubled_key_is_found_at_any_depth() {
        let read = serde_json::from_slice::<Strict>;
        let error = read(b"{\"tasks\": [{\"a\": 1},\n {\"b\": {\"c\": [], \"d\": 2, \"c\": 3}}]}");
        assert_eq!(error.expect_err("twice").to_string(), "the key `c` is given twice at line 2 column 28");
        assert!(read(br#"[{"a": 1}, {"a": 2, "b": {"a": 3}}]"#).is_ok(), "each object has its own");
        assert!(read(b"{} {}").is_err(), "one document");
        assert!(read(&b"[".repeat(100_000)).is_err(), "too deep, and no overflow");
    }

    proptest! {
        #[test]
        fn anything_else_reads_as_ever(text in "[\\[\\]{}:,\" a1\\\\n\\-.eE0]{0,40}") {
            match (serde_json::from_str::<Strict>(&text), serde_json::from_str::<Value>(&text)) {
                (Ok(Strict(ours)), Ok(theirs)) => prop_assert_eq!(ours, theirs),
                (Err(ours), Err(theirs)) => {
                    prop_assert!(ours.to_string().contains("twice") || ours.to_string() == theirs.to_string());
                }
                (Err(ours), Ok(_)) => prop_assert!(ours.to_string().contains("twice"), "{}", ours),
                (Ok(_), Err(theirs)) => prop_assert!(false, "{}", theirs),
            }
        }
    }
}
