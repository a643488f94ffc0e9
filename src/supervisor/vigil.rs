//! Wakes a sleeping supervisor when an agent's thread dies, before the kernel has torn down its memory.
//!
//! The supervisor sleeps in epoll, and a futex cannot ring there; so a thread of its own waits for the words that agents
//! hold as long as they live (`os::robust`) and rings the supervisor's bell. It decides nothing: the supervisor looks at
//! the words itself, and the kernel's word about the process counts in the end. Kernels before 5.16 cannot wait for many
//! words: then deaths are heard through the pidfd alone, a little later.

use crate::base::sync::{AtomicU32, Ordering};
use crate::messaging::link::LifeWord;
use crate::os::{clock, futex, process};
use crate::shm::doorbell::HubBell;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Stack of the thread: it calls next to nothing.
const STACK: usize = 64 << 10;

/// A sleep of less is none.
const SHORT: Duration = Duration::from_micros(50);
/// So many of them in a row, and the thread pauses between two looks.
const IN_VAIN_MAX: u32 = 64;
/// That pause.
const PAUSE: Duration = Duration::from_millis(1);

/// See the module.
pub(super) struct Vigil {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// Whom to wait for; `None` ends the thread.
    words: Mutex<Option<Vec<LifeWord>>>,
    /// Grows with every change of the list.
    changes: AtomicU32,
    bell: HubBell,
}

impl Vigil {
    pub(super) fn begin(bell: HubBell) -> io::Result<Self> {
        let words = Mutex::new(Some(Vec::new()));
        let shared = Arc::new(Shared { words, changes: AtomicU32::new(0), bell });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("vigil".to_owned())
            .stack_size(STACK)
            .spawn(move || keep(&theirs))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Waits for these from now on. Only as many as one call of the kernel takes; the others are heard of by pidfd.
    pub(super) fn watch(&self, words: Vec<LifeWord>) {
        self.shared.change(Some(words));
    }
}

impl Drop for Vigil {
    fn drop(&mut self) {
        self.shared.change(None);
        // A panic there has been printed; nothing depends on it.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn change(&self, words: Option<Vec<LifeWord>>) {
        *self.words.lock().unwrap_or_else(PoisonError::into_inner) = words;
        self.changes.fetch_add(1, Ordering::Release);
        futex::wake(&self.changes);
    }
}

fn keep(shared: &Shared) {
    process::set_turn(super::TURN);
    let mut in_vain = 0;
    loop {
        // An agent may write to its own word as often as it likes; it shall not keep this thread busy.
        if in_vain > IN_VAIN_MAX {
            std::thread::sleep(PAUSE);
        }
        // Before the list: a change after this look is not slept through.
        let changes = shared.changes.load(Ordering::Acquire);
        let Some(words) = shared.words.lock().unwrap_or_else(PoisonError::into_inner).clone() else { return };
        let held: Vec<(&AtomicU32, u32)> = words.iter().filter_map(LifeWord::held).collect();
        if held.len() < words.len() {
            shared.bell.ring();
        }
        let mut waits = vec![(&shared.changes, changes)];
        waits.extend(held.into_iter().take(futex::WAIT_ANY_MAX - 1));
        let began = clock::now();
        if !futex::wait_any(&waits, None) {
            return;
        }
        let slept = clock::now().since(began);
        in_vain = if slept < SHORT { in_vain + 1 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::memory::Access;
    use crate::shm::{SharedObject, pages};
    use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

    #[test]
    fn the_bell_rings_when_a_word_is_let_go_and_not_before() {
        let page =
            || SharedObject::create("page", pages::PAGE_BYTES).and_then(|page| page.map(Access::Write));
        let (hub, desk) = (page().expect("memory"), page().expect("memory"));
        let event = eventfd(0, EventfdFlags::NONBLOCK).expect("a descriptor");
        let bell = HubBell::new((hub.clone(), pages::HUB_ASLEEP), event.try_clone().expect("a descriptor"));
        // The supervisor sleeps all the time.
        hub.word(pages::HUB_ASLEEP).store(1, Ordering::Release);
        let rings_within = |span: Duration| {
            let span = rustix::time::Timespec { tv_sec: 0, tv_nsec: span.as_nanos() as i64 };
            poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&span)).expect("a look") > 0
        };
        const HELD: u64 = 77;
        desk.word(pages::DESK_LIFE).store(HELD, Ordering::Release);
        let vigil = Vigil::begin(bell).expect("a thread");
        vigil.watch(vec![LifeWord::on(desk.clone())]);
        assert!(!rings_within(Duration::from_millis(50)), "it lives");
        // As the kernel does it when the thread that holds the word dies.
        desk.word(pages::DESK_LIFE).store(HELD | 1 << 30, Ordering::Release);
        futex::wake(desk.half(pages::DESK_LIFE));
        assert!((0..40).any(|_| rings_within(Duration::from_millis(500))), "nobody heard of it");
    }
}
