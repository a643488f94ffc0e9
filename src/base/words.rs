//! Numbers in sentences.

/// A number of things in words: `1 task`, `0 tasks`, `12 tasks`.
///
/// ```
/// use ai_swarm::base::words::things;
/// assert_eq!([0, 1, 2].map(|n| things(n, "task")), ["0 tasks", "1 task", "2 tasks"]);
/// ```
pub fn things(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}
