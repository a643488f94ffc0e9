//! Places at which a test can make the system fail or dawdle, as if the disk or the host had done it.
//!
//! The environment variable `AI_SWARM_FAIL_AT` names one place and the passes that are meant: `NAME:3` the third one only,
//! `NAME:3-` the third and all after it, `NAME:3-9` the third to the ninth. They fail as on a broken disk; with `=full` behind it
//! as on a full one; with `=processes`, `=memory` or `=files` as on a host that has no more of these; with `=slow:20ms` they do
//! not fail and take so much longer. The variable is read once, at the first place that is passed.
//!
//! Only builds with debug assertions have this; in all others [`check`] is empty and inlined.
//!
//! Places: of the journal `journal.commit` (a group goes into the store), `journal.head` (the front notes that the
//! store has it), `journal.bring` (at level `power`, records go into the file, and the note of what was synced), `journal.sync` (what was
//! acknowledged goes to the disk), `journal.read` (a group is read from the front),
//! `journal.retain` (old records are forgotten, and their pages given back), `journal.close` (the store is closed), and of its start
//! `journal.create` (steps of making a store), `journal.front` (steps of making a front) and `journal.salvage` (steps of putting
//! what was salvaged in the place of what is damaged);
//! of the supervisor `spawn` (an agent or a standby is to be started), `spawn.step` (each step of that), `attach` (steps by which a
//! client and its lines come in); of whoever keeps state `snapshot` (steps of writing one).

use std::io;

/// A place called `name` is passed. Fails or takes its time if `AI_SWARM_FAIL_AT` says so.
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

/// Which passes of which place are meant, and what befalls them.
#[cfg(debug_assertions)]
struct Order {
    name: String,
    first: u64,
    last: u64,
    trouble: Trouble,
    passed: crate::base::sync::AtomicU64,
}

#[cfg(debug_assertions)]
enum Trouble {
    Error(rustix::io::Errno),
    Pause(std::time::Duration),
}

#[cfg(debug_assertions)]
impl Order {
    fn parse(text: &str) -> Option<Self> {
        let (text, trouble) = match text.split_once('=') {
            None => (text, Trouble::Error(rustix::io::Errno::IO)),
            Some((text, "full")) => (text, Trouble::Error(rustix::io::Errno::NOSPC)),
            Some((text, "processes")) => (text, Trouble::Error(rustix::io::Errno::AGAIN)),
            Some((text, "memory")) => (text, Trouble::Error(rustix::io::Errno::NOMEM)),
            Some((text, "files")) => (text, Trouble::Error(rustix::io::Errno::MFILE)),
            Some((text, how)) => {
                let millis = how.strip_prefix("slow:")?.strip_suffix("ms")?.parse().ok()?;
                (text, Trouble::Pause(std::time::Duration::from_millis(millis)))
            }
        };
        let (name, passes) = text.rsplit_once(':')?;
        let number = |text: &str| text.parse::<u64>().ok().filter(|&number| number > 0);
        let (first, last) = match passes.split_once('-') {
            None => (number(passes)?, number(passes)?),
            Some((first, "")) => (number(first)?, u64::MAX),
            Some((first, last)) => (number(first)?, number(last)?),
        };
        let passed = crate::base::sync::AtomicU64::new(0);
        (!name.is_empty()).then(|| Self { name: name.to_owned(), first, last, trouble, passed })
    }

    fn pass(&self, name: &str) -> io::Result<()> {
        if self.name != name {
            return Ok(());
        }
        let pass = self.passed.fetch_add(1, crate::base::sync::Ordering::Relaxed) + 1;
        if !(self.first..=self.last).contains(&pass) {
            return Ok(());
        }
        match self.trouble {
            Trouble::Error(error) => Err(error.into()),
            Trouble::Pause(pause) => {
                std::thread::sleep(pause);
                Ok(())
            }
        }
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
        let began = std::time::Instant::now();
        assert_eq!(count("a.b:2-3=slow:15ms"), 0, "slow is not broken");
        assert!(began.elapsed() >= std::time::Duration::from_millis(30));
    }

    #[test]
    fn nonsense_is_no_order() {
        for text in ["", "a", ":1", "a:0", "a:x", "a:1-x", "a:1=slow", "a:1=slow:ms", "a:1=broken"] {
            assert!(Order::parse(text).is_none(), "{text:?}");
        }
    }
}
