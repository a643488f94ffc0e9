//! Places at which a test can make storage fail, as if the disk had done it.
//!
//! The environment variable `AI_SWARM_FAIL_AT` names one place and the passes that fail: `NAME:3` the third one only,
//! `NAME:3-` the third and all after it, `NAME:3-9` the third to the ninth. With `=full` behind it the error is that of a full disk, else
//! that of a broken one. The variable is read once, at the first place that is passed.
//!
//! Only builds with debug assertions have this; in all others [`check`] is empty and inlined.
//!
//! Places: of the journal `journal.commit` (a group goes into the store), `journal.head` (its place in the front is given
//! free), `journal.sync` (what was acknowledged goes to the disk), `journal.read` (a group is read from the front).

use std::io;

/// A place called `name` is passed. Fails if `AI_SWARM_FAIL_AT` says so.
#[cfg(debug_assertions)]
pub fn check(name: &str) -> io::Result<()> {
    use std::sync::OnceLock;
    static ORDER: OnceLock<Option<Order>> = OnceLock::new();
    let order = ORDER.get_or_init(|| Order::parse(&std::env::var("AI_SWARM_FAIL_AT").ok()?));
    order.as_ref().map_or(Ok(()), |order| order.pass(name))
}

/// A place called `name` is passed, which means nothing in this build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn check(_name: &str) -> io::Result<()> {
    Ok(())
}

/// Which passes of which place fail, and how.
#[cfg(debug_assertions)]
struct Order {
    name: String,
    first: u64,
    last: u64,
    error: rustix::io::Errno,
    passed: crate::base::sync::AtomicU64,
}

#[cfg(debug_assertions)]
impl Order {
    fn parse(text: &str) -> Option<Self> {
        let (text, error) = match text.strip_suffix("=full") {
            Some(text) => (text, rustix::io::Errno::NOSPC),
            None => (text, rustix::io::Errno::IO),
        };
        let (name, passes) = text.rsplit_once(':')?;
        let number = |text: &str| text.parse::<u64>().ok().filter(|&number| number > 0);
        let (first, last) = match passes.split_once('-') {
            None => (number(passes)?, number(passes)?),
            Some((first, "")) => (number(first)?, u64::MAX),
            Some((first, last)) => (number(first)?, number(last)?),
        };
        let passed = crate::base::sync::AtomicU64::new(0);
        (!name.is_empty()).then(|| Self { name: name.to_owned(), first, last, error, passed })
    }

    fn pass(&self, name: &str) -> io::Result<()> {
        if self.name != name {
            return Ok(());
        }
        let pass = self.passed.fetch_add(1, crate::base::sync::Ordering::Relaxed) + 1;
        if (self.first..=self.last).contains(&pass) { Err(self.error.into()) } else { Ok(()) }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    fn failing(order: &str, passes: u64) -> Vec<u64> {
        let order = Order::parse(order).expect("well formed");
        (1..=passes).filter(|_| order.pass("a.b").is_err()).collect()
    }

    #[test]
    fn passes_fail_as_ordered() {
        let count = |order| failing(order, 10).len();
        assert_eq!([count("a.b:3"), count("a.b:3-"), count("a.b:3-4=full"), count("a.c:3-")], [1, 8, 2, 0]);
        let full = Order::parse("a.b:1=full").expect("well formed").pass("a.b").expect_err("fails");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn nonsense_is_no_order() {
        for text in ["", "a", ":1", "a:0", "a:x", "a:1-x"] {
            assert!(Order::parse(text).is_none(), "{text:?}");
        }
    }
}
