//! Configuration text with its places: every key and value keeps its line and column, and a key given twice
//! is noticed. `serde_json` judges the syntax first; this walk only sees text that passed, so it may be simple.

use serde_json::Value;

/// Line and column, both from 1; the column counts characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// A value and where it starts.
pub(super) struct Node {
    pub place: Place,
    pub content: Content,
}

/// Objects are taken apart, everything else (lists too) stays one value.
pub(super) enum Content {
    Object(Vec<Entry>),
    Value(Value),
}

/// One key of an object.
pub(super) struct Entry {
    pub key: String,
    pub place: Place,
    pub node: Node,
}

impl Content {
    /// The plain JSON again, to show in a message.
    pub fn to_json(&self) -> Value {
        match self {
            Content::Value(value) => value.clone(),
            Content::Object(entries) => {
                Value::Object(entries.iter().map(|e| (e.key.clone(), e.node.content.to_json())).collect())
            }
        }
    }
}

/// Reads text into nodes, or says where the syntax is wrong.
pub(super) fn parse(text: &str) -> Result<Node, (Place, String)> {
    if let Err(error) = serde_json::from_str::<Value>(text) {
        let message = error.to_string();
        let words = message.rsplit_once(" at line ").map_or(message.as_str(), |(words, _)| words);
        return Err((Place { line: error.line().max(1), column: error.column().max(1) }, words.to_owned()));
    }
    let mut walk = Walk { text, at: 0, place: Place { line: 1, column: 1 } };
    walk.skip_space();
    walk.node()
}

struct Walk<'t> {
    text: &'t str,
    at: usize,
    place: Place,
}

impl Walk<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn advance(&mut self, to: usize) {
        for character in self.text[self.at..to].chars() {
            if character == '\n' {
                self.place = Place { line: self.place.line + 1, column: 1 };
            } else {
                self.place.column += 1;
            }
        }
        self.at = to;
    }

    fn skip_space(&mut self) {
        let rest = &self.text[self.at..];
        self.advance(self.at + (rest.len() - rest.trim_start_matches([' ', '\t', '\r', '\n']).len()));
    }

    /// Skips space and one of `{ } : ,`.
    fn skip_mark(&mut self) {
        self.skip_space();
        self.advance(self.at + 1);
        self.skip_space();
    }

    /// Where the value that starts here ends: brackets are balanced outside strings.
    fn value_end(&self) -> usize {
        let bytes = self.text.as_bytes();
        let (mut depth, mut in_string, mut at) = (0_usize, false, self.at);
        while let Some(&byte) = bytes.get(at) {
            match byte {
                b'\\' if in_string => at += 1,
                b'"' => {
                    in_string = !in_string;
                    if !in_string && depth == 0 {
                        return at + 1;
                    }
                }
                _ if in_string => {}
                b'[' | b'{' => depth += 1,
                b']' | b'}' | b',' | b':' | b' ' | b'\t' | b'\r' | b'\n' if depth == 0 => return at,
                b']' | b'}' => {
                    depth -= 1;
                    if depth == 0 {
                        return at + 1;
                    }
                }
                _ => {}
            }
            at += 1;
        }
        at.min(bytes.len())
    }

    fn slice<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, (Place, String)> {
        let end = self.value_end();
        let place = self.place;
        let value = serde_json::from_str(&self.text[self.at..end]).map_err(|e| (place, e.to_string()))?;
        self.advance(end);
        Ok(value)
    }

    fn node(&mut self) -> Result<Node, (Place, String)> {
        let place = self.place;
        if self.peek() != Some(b'{') {
            return Ok(Node { place, content: Content::Value(self.slice()?) });
        }
        let mut entries = Vec::new();
        self.skip_mark();
        while self.peek() == Some(b'"') {
            let place = self.place;
            let key = self.slice()?;
            self.skip_mark();
            let node = self.node()?;
            entries.push(Entry { key, place, node });
            self.skip_space();
            if self.peek() == Some(b',') {
                self.skip_mark();
            }
        }
        self.advance((self.at + 1).min(self.text.len()));
        Ok(Node { place, content: Content::Object(entries) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn places_point_at_keys_and_values() {
        let node = parse("{\n  \"ä\": {\"b\" : [1, \"}\"]},\n  \"c\": -1 }").ok().unwrap();
        let Content::Object(top) = &node.content else { panic!() };
        assert_eq!((top[0].place.line, top[0].place.column), (2, 3));
        let Content::Object(inner) = &top[0].node.content else { panic!() };
        assert_eq!((inner[0].node.place.line, inner[0].node.place.column), (2, 15));
        assert_eq!((top[1].node.place.line, top[1].node.place.column), (3, 8));
    }

    proptest! {
        #[test]
        fn the_walk_sees_what_the_parser_sees(text in "[\\[\\]{}:,\" a1\\\\n\\-.]{0,40}") {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                let node = parse(&text).map_err(|(_, words)| TestCaseError::fail(words))?;
                prop_assert_eq!(node.content.to_json(), value);
            } else {
                prop_assert!(parse(&text).is_err());
            }
        }
    }
}
