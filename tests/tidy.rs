//! The rules of the tree that no compiler holds: who imports whom, where `unsafe` lives, what stands on top of
//! a file. Offenders are named by file and line.

use std::fs;
use std::path::{Path, PathBuf};

/// Folder, and the folders that it may import from. Folders without a line are not held.
const IMPORTS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("os", &["base"]),
    ("shm", &["base", "os"]),
    ("arrays", &["base", "os"]),
    ("kernels", &["base", "os", "arrays"]),
    ("messaging", &["base", "shm", "os"]),
    ("tasks", &["base", "messaging", "shm", "os"]),
    ("journal", &["base", "os", "kernels", "tasks"]),
    ("balancer", &["base", "tasks", "telemetry"]),
];
/// All that the supervisor may know of agents.
const SUPERVISOR_KNOWS: &[&str] = &["AgentStart", "Settings", "runner"];
/// Where `unsafe` may stand.
const UNSAFE_FOLDERS: &[&str] = &["shm", "os", "kernels"];
/// Words of unfinished work.
const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "#[ignore", "dbg!"];

/// One source file.
struct Source {
    path: PathBuf,
    /// The first folder below `src`, or the file's own name.
    folder: String,
    text: String,
    /// The text with comments and literals blanked out, line by line as before.
    code: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("an entry of a folder that can be read").path();
        if path.is_dir() {
            files_below(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn sources(top: &str) -> Vec<Source> {
    let mut paths = Vec::new();
    files_below(&root().join(top), &mut paths);
    paths.sort();
    assert!(!paths.is_empty(), "no source file below {top}");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("source files are readable text");
        let path = path.strip_prefix(root()).expect("below the root").to_owned();
        let folder = path.iter().nth(1).expect("below a top folder").to_string_lossy();
        Source { folder: folder.trim_end_matches(".rs").to_owned(), code: blank(&text), path, text }
    };
    paths.into_iter().map(read).collect()
}

/// Comments and literals replaced by spaces, so that words in them do not count.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    let mut erase = |from: usize, to: usize| {
        for byte in &mut out[from..to] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    };
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = if rest.starts_with(b"//") {
            at + rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            at + 2 + text[at + 2..].find("*/").map_or(rest.len() - 2, |end| end + 2)
        } else if let Some(end) = raw_string(text, at).filter(|_| at == 0 || !is_word(bytes[at - 1])) {
            end
        } else if rest[0] == b'"' {
            at + 1 + end_of_string(&rest[1..])
        } else if let Some(length) = char_literal(&text[at..]) {
            at + length
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
            continue;
        };
        erase(at, end);
        at = end;
    }
    String::from_utf8(out).expect("whole literals were replaced by spaces")
}

/// The end of a raw string that begins at `at`.
fn raw_string(text: &str, at: usize) -> Option<usize> {
    let rest = text[at..].strip_prefix("br").or_else(|| text[at..].strip_prefix('r'))?;
    let hashes = rest.bytes().take_while(|&byte| byte == b'#').count();
    let body = rest[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(text.len() - body.len() + body.find(&end)? + end.len())
}

fn end_of_string(bytes: &[u8]) -> usize {
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The length of a character literal, as opposed to a lifetime.
fn char_literal(text: &str) -> Option<usize> {
    let body = text.strip_prefix('\'')?;
    if let Some(escaped) = body.strip_prefix('\\') {
        return escaped[1..].find('\'').map(|end| end + 4);
    }
    let first = body.chars().next()?;
    body[first.len_utf8()..].starts_with('\'').then(|| first.len_utf8() + 2)
}

/// The paths of the tree of names at the start of `text`: `a::{b, c::d}` gives `a b` and `a c d`.
fn expand(text: &str) -> (Vec<Vec<String>>, usize) {
    let start = text.len() - text.trim_start().len();
    let body = &text[start..];
    if let Some(inner) = body.strip_prefix('{') {
        let (mut paths, mut at) = (Vec::new(), 0);
        loop {
            let (more, length) = expand(&inner[at..]);
            paths.extend(more);
            at += length;
            // To the next name of the group or its end.
            match inner[at..].find([',', '}']) {
                Some(next) if inner.as_bytes()[at + next] == b',' => at += next + 1,
                Some(next) => return (paths, start + 1 + at + next + 1),
                None => return (paths, text.len()),
            }
        }
    }
    let length = body.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*')).unwrap_or(body.len());
    if length == 0 {
        return (Vec::new(), start);
    }
    let name = body[..length].to_owned();
    match body[length..].strip_prefix("::").filter(|rest| !rest.starts_with('<')) {
        Some(rest) => {
            let (tails, more) = expand(rest);
            let with_name = |tail: Vec<String>| std::iter::once(name.clone()).chain(tail).collect();
            let paths: Vec<Vec<String>> = tails.into_iter().map(with_name).collect();
            let paths = if paths.is_empty() { vec![vec![name]] } else { paths };
            (paths, start + length + 2 + more)
        }
        None => (vec![vec![name]], start + length),
    }
}

/// Every path that begins with `crate::`, with its line.
fn crate_paths(code: &str) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let line = line_of(code, at);
        found.extend(expand(&code[at + "crate::".len()..]).0.into_iter().map(|path| (line, path)));
    }
    found
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

#[track_caller]
fn none(offenders: &[String], rule: &str) {
    assert!(offenders.is_empty(), "{rule}:\n  {}", offenders.join("\n  "));
}

#[test]
fn folders_import_only_what_the_table_allows() {
    let mut offenders = Vec::new();
    for source in sources("src") {
        let Some((folder, allowed)) = IMPORTS.iter().find(|(folder, _)| *folder == source.folder) else {
            continue;
        };
        for (line, path) in crate_paths(&source.code) {
            if path[0] != *folder && !allowed.contains(&&*path[0]) {
                offenders.push(format!("{}:{line}: crate::{}", source.path.display(), path.join("::")));
            }
        }
    }
    none(&offenders, "imports against the table at the top of this test");
}

#[test]
fn agents_and_the_supervisor_meet_in_messages_only() {
    let mut offenders = Vec::new();
    for source in sources("src") {
        for (line, path) in crate_paths(&source.code) {
            let wrong = match (&*source.folder, &*path[0]) {
                ("agents", "supervisor") => true,
                ("supervisor", "agents") => {
                    !path.get(1).is_some_and(|name| SUPERVISOR_KNOWS.contains(&&**name))
                }
                _ => false,
            };
            if wrong {
                offenders.push(format!("{}:{line}: crate::{}", source.path.display(), path.join("::")));
            }
        }
    }
    none(&offenders, "agents never import the supervisor, which knows of them only how to start one");
}

#[test]
fn every_file_begins_with_what_it_is() {
    let missing: Vec<String> = sources("src")
        .iter()
        .chain(&sources("tests"))
        .filter(|source| !source.text.starts_with("//! "))
        .map(|source| format!("{}:1", source.path.display()))
        .collect();
    none(&missing, "files that do not begin with `//! ` and a sentence");
}

#[test]
fn unsafe_code_stays_in_its_folders() {
    let mut offenders = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        if source.path.starts_with("src") && UNSAFE_FOLDERS.contains(&&*source.folder) {
            continue;
        }
        for (at, word) in source.code.match_indices("unsafe") {
            let is_word_part = |c: char| c.is_alphanumeric() || c == '_';
            let rest = &source.code[at + word.len()..];
            if !source.code[..at].ends_with(is_word_part) && !rest.starts_with(is_word_part) {
                offenders.push(format!("{}:{}", source.path.display(), line_of(&source.code, at)));
            }
        }
    }
    none(&offenders, &format!("`unsafe` outside {}", UNSAFE_FOLDERS.join(", ")));
}

#[test]
fn nothing_is_left_unfinished_or_switched_off() {
    let mut offenders = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        for word in UNFINISHED {
            for (at, _) in source.code.match_indices(word) {
                if !source.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                    offenders.push(format!(
                        "{}:{}: {word}",
                        source.path.display(),
                        line_of(&source.code, at)
                    ));
                }
            }
        }
    }
    none(&offenders, "unfinished work or switched-off tests");
}

#[test]
fn this_test_reads_rust_well_enough() {
    let code = blank(
        "a('\"', '\\'', \"unsafe \\\" x\", r#\"unsafe\"#); // unsafe\nfn f<'a>() { /* todo! */ unsafe {} }",
    );
    assert_eq!(code.matches("unsafe").count(), 1, "{code}");
    assert!(!code.contains("todo!"), "{code}");
    let paths = crate_paths("use crate::{a::b, c};\nlet x = crate::d::{e, f::{g, h as i}};\nmycrate::no");
    let paths: Vec<String> = paths.iter().map(|(line, path)| format!("{line} {}", path.join("::"))).collect();
    assert_eq!(paths, ["1 a::b", "1 c", "2 d::e", "2 d::f::g", "2 d::f::h"]);
}
