//! Places at which a test can make this process die, as if somebody had pulled its plug.
//!
//! The environment variable `AI_SWARM_DIE_AT` names one place, `NAME` or `NAME:COUNT`: the process kills itself
//! with `SIGKILL` when it comes by for the first, or the COUNT-th, time. Nothing runs after that: no destructor, no
//! flush, no message. The variable is read once, at the first place that is passed. Processes inherit it: if
//! `AI_SWARM_DIE_AS` is a word, only those that were started with this word die (`__agent`: agents), and if
//! `AI_SWARM_DIE_ONCE` names a file, only the one that creates it dies, and whoever finds it there lives on.
//!
//! Only builds with debug assertions have this. In all others [`point`] is empty and inlined, so that a place costs
//! nothing and no variable can kill a process in use.
//!
//! Places: of a ring `ring.write`, `ring.chain`, `ring.publish`, `ring.take`, `ring.acknowledge`; of an overwriting ring
//! `lossy.busy`, `lossy.write`, `lossy.chain`, `lossy.publish`, `lossy.tail`; of a board cell `seqlock.write`,
//! `seqlock.publish`; of an arena `arena.loan` (taken, not yet filled), `arena.write` (half filled), `arena.publish` (header half
//! written), `arena.release` (a message came, the block is not yet free), `arena.reclaim` (before each block that is taken back
//! from a dead reader); of a doorbell `doorbell.ring` (all is published, and whoever sleeps not yet woken).

/// A place called `name` is passed. Kills the process if `AI_SWARM_DIE_AT` says so.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::sync::OnceLock;
    static ORDER: OnceLock<Option<Order>> = OnceLock::new();
    let order = ORDER.get_or_init(|| Order::parse(&std::env::var("AI_SWARM_DIE_AT").ok()?));
    if order.as_ref().is_some_and(|order| order.is_due(name)) && is_meant() {
        let own = rustix::process::getpid();
        let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
        // Should the kernel refuse: still no return to the caller.
        std::process::abort();
    }
}

/// A place called `name` is passed, which means nothing in this build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_name: &str) {}

/// Whether this process is to die of the order: it is one of those named, and nobody has died of it before where it is
/// for one only.
#[cfg(debug_assertions)]
fn is_meant() -> bool {
    let named =
        std::env::var_os("AI_SWARM_DIE_AS").is_none_or(|word| std::env::args_os().any(|arg| arg == word));
    let is_first = |path| std::fs::File::create_new(path).is_ok();
    named && std::env::var_os("AI_SWARM_DIE_ONCE").is_none_or(is_first)
}

/// Where to die, and how many more times to pass there, the last one included.
#[cfg(debug_assertions)]
struct Order {
    name: String,
    left: crate::base::sync::AtomicU64,
}

#[cfg(debug_assertions)]
impl Order {
    fn parse(text: &str) -> Option<Self> {
        let (name, count) = match text.rsplit_once(':') {
            Some((name, count)) => (name, count.parse().ok().filter(|&count| count > 0)?),
            None => (text, 1),
        };
        let left = crate::base::sync::AtomicU64::new(count);
        (!name.is_empty()).then(|| Self { name: name.to_owned(), left })
    }

    fn is_due(&self, name: &str) -> bool {
        use crate::base::sync::Ordering::Relaxed;
        // Wraps after the last one, 2^64 passes away from a second death that nobody is left to die.
        self.name == name && self.left.fetch_sub(1, Relaxed) == 1
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_due_at_its_count_and_its_name_only() {
        let order = Order::parse("arena.loan:3").expect("well formed");
        let due: Vec<bool> = ["arena.loan", "arena.publish", "arena.loan", "arena.loan", "arena.loan"]
            .iter()
            .map(|name| order.is_due(name))
            .collect();
        assert_eq!(due, [false, false, false, true, false]);
        assert!(Order::parse("arena.loan").expect("without a count").is_due("arena.loan"));
    }

    #[test]
    fn a_process_dies_where_it_is_told() {
        const CHILD: &str = "AI_SWARM_TEST_PASSES";
        if let Ok(passes) = std::env::var(CHILD) {
            for _ in 0..passes.parse().expect("a count") {
                point("test.other");
                point("test.here");
            }
            return;
        }
        let once = std::env::temp_dir().join(format!("ai_swarm-test-died-{}", std::process::id()));
        let once = once.to_str().expect("plain");
        let _ = std::fs::remove_file(once);
        let deaths =
            [("2", None, None), ("3", None, Some(9)), ("3", Some(once), Some(9)), ("3", Some(once), None)];
        for (passes, once, signal) in deaths {
            let mut command = std::process::Command::new(std::env::current_exe().expect("this test"));
            command.args(["--exact", "base::crash::tests::a_process_dies_where_it_is_told"]);
            command.envs([(CHILD, passes), ("AI_SWARM_DIE_AT", "test.here:3")]);
            let end = command.envs(once.map(|once| ("AI_SWARM_DIE_ONCE", once))).output().expect("started");
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&end.status), signal, "{passes} passes");
            assert_eq!(end.status.success(), signal.is_none());
        }
        std::fs::remove_file(once).expect("made by the one that died");
    }

    #[test]
    fn nonsense_is_no_order() {
        for text in ["", ":1", "arena.loan:0", "arena.loan:x", "arena.loan:-1"] {
            assert!(Order::parse(text).is_none(), "{text:?}");
        }
    }
}
