//! The configuration for readers: what each key means (`config explain`), what is in force (`config show`).

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

use super::keys::{KEYS, Kind, SECTIONS};
use super::{Origin, SwarmConfig};

/// One key as `config explain` tells it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainRow {
    /// Dotted path.
    pub key: &'static str,
    /// Type in a word or two.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Default as JSON.
    pub default: Value,
    /// What is allowed, in words.
    pub allowed: String,
    /// What it means.
    pub meaning: &'static str,
}

/// One value in force.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShowRow {
    /// Dotted path.
    pub key: &'static str,
    /// Value as JSON.
    pub value: Value,
    /// `default`, `file PATH` or `flag --name`.
    pub origin: String,
}

/// Every key with type, default, what is allowed and meaning.
pub fn explain() -> Vec<ExplainRow> {
    let row = |key: &super::Key| ExplainRow {
        key: key.path,
        kind: key.kind.name(),
        default: key.default_value(),
        allowed: key.allowed(),
        meaning: key.meaning,
    };
    KEYS.iter().map(row).collect()
}

/// Every key with the value in force and where it came from.
pub fn show(config: &SwarmConfig) -> Vec<ShowRow> {
    let rows = KEYS.iter().zip(&config.values.0);
    rows.map(|(key, (value, origin))| ShowRow {
        key: key.path,
        value: value.clone(),
        origin: origin.to_string(),
    })
    .collect()
}

/// Whether a path is this key, or stands in this section.
pub fn is_within(path: &str, key_or_section: &str) -> bool {
    path.strip_prefix(key_or_section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// [`explain`] for a terminal of `width` columns. `filter` is a key or a section; `None` when nothing matches it.
pub fn explain_text(filter: Option<&str>, width: usize) -> Option<String> {
    let wanted = |path: &str| filter.is_none_or(|filter| is_within(path, filter));
    let mut text = String::new();
    let mut section = None;
    for key in KEYS.iter().filter(|key| wanted(key.path)) {
        if section != Some(key.section()) {
            section = Some(key.section());
            heading(&mut text, key.section(), width);
        }
        let kind = match key.kind {
            Kind::Integer { .. } | Kind::Number { .. } => format!("{}, ", key.kind.name()),
            // For all others the allowed values say it.
            _ => String::new(),
        };
        let _ = writeln!(text, "  {}", key.path);
        wrap(&mut text, &format!("default {}; {kind}{}", key.default, key.allowed()), 6, width);
        wrap(&mut text, key.meaning, 6, width);
    }
    for (path, _) in SECTIONS.iter().filter(|(path, _)| wanted(path)) {
        if !KEYS.iter().any(|key| key.path.starts_with(&format!("{path}."))) {
            heading(&mut text, path, width);
        }
    }
    (!text.is_empty()).then_some(text)
}

fn heading(text: &mut String, section: &str, width: usize) {
    if !text.is_empty() {
        text.push('\n');
    }
    match SECTIONS.iter().find(|(path, _)| *path == section) {
        Some((_, meaning)) => {
            let _ = writeln!(text, "[{section}]");
            wrap(text, meaning, 2, width);
        }
        None => text.push_str("[top level]\n"),
    }
}

/// [`show`] as an aligned table: key, value, origin; what is not a default is marked with `*`.
pub fn show_text(config: &SwarmConfig) -> String {
    let rows = show(config);
    let values: Vec<String> = rows.iter().map(|row| row.value.to_string()).collect();
    let key_width = rows.iter().map(|row| row.key.len()).max().unwrap_or(0);
    let value_width = values.iter().map(|value| value.chars().count()).max().unwrap_or(0).min(30);
    let mut text = String::new();
    for (row, value) in rows.iter().zip(&values) {
        let mark = if row.origin == Origin::Default.to_string() { ' ' } else { '*' };
        let _ = writeln!(text, "{mark} {:key_width$}  {value:value_width$}  {}", row.key, row.origin);
    }
    text
}

/// Appends words in lines of at most `width` columns, each indented.
pub(crate) fn wrap(text: &mut String, words: &str, indent: usize, width: usize) {
    let mut column = 0;
    for word in words.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > width {
            text.push('\n');
            column = 0;
        }
        if column == 0 {
            let _ = write!(text, "{:indent$}{word}", "");
            column = indent + length;
        } else {
            let _ = write!(text, " {word}");
            column += 1 + length;
        }
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explain_fits_eighty_columns_and_names_every_key() {
        let text = explain_text(None, 80).unwrap();
        for row in explain() {
            assert!(text.contains(row.key));
        }
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn explain_takes_a_key_or_a_section() {
        let one = explain_text(Some("tasks.window"), 80).unwrap();
        assert!(one.contains("tasks.window") && !one.contains("tasks.batch"), "{one}");
        assert!(explain_text(Some("agents"), 80).unwrap().contains("agents.fault.hang_after_s"));
        assert!(explain_text(Some("security"), 80).unwrap().contains("No keys"));
        assert_eq!(explain_text(Some("agent"), 80), None);
    }

    #[test]
    fn show_marks_what_is_not_a_default() {
        let config = crate::config::from_text(r#"{"max_agents": 3}"#, "c.json".as_ref(), &[]).unwrap();
        let text = show_text(&config);
        assert!(
            text.lines().any(|line| line.starts_with("* max_agents ") && line.ends_with("file c.json")),
            "{text}"
        );
        assert!(
            text.lines().any(|line| line.starts_with("  tasks.window ") && line.ends_with("default")),
            "{text}"
        );
    }
}
