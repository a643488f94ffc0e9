//! What the benches share: the cores they are pinned to, and rings over real shared memory.
//!
//! Cores are the first two usable ones, or those named in `AI_SWARM_BENCH_CORES=2,3`.
#![allow(dead_code, reason = "every bench compiles this module and uses a part of it")]

use ai_swarm::os::affinity::pin_current_thread;
use ai_swarm::os::topology::Topology;
use ai_swarm::shm::ring::{Consumer, Producer, RingMemory, SLOT_WORDS};
use ai_swarm::shm::{Access, SharedObject, Words};
use criterion::Criterion;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Names the cores to measure on, as `2,3`.
const CORES_VARIABLE: &str = "AI_SWARM_BENCH_CORES";

/// The cores to measure on; the second is absent on a host with one core.
pub fn cores() -> (usize, Option<usize>) {
    // Read once, before anything is pinned: afterwards only the one core is usable.
    static CORES: OnceLock<Vec<usize>> = OnceLock::new();
    let usable = CORES.get_or_init(|| match std::env::var(CORES_VARIABLE) {
        Err(_) => Topology::read().usable().to_vec(),
        Ok(text) => {
            let cores: Result<Vec<usize>, _> = text.split(',').map(|core| core.trim().parse()).collect();
            cores.unwrap_or_else(|_| panic!("{CORES_VARIABLE} is {text:?}, needs core numbers like 2,3"))
        }
    });
    (usable[0], usable.get(1).copied())
}

/// Pins the calling thread to the first core and says where things run.
pub fn pin() {
    let (first, second) = cores();
    assert!(pin_current_thread(first), "cannot pin to core {first}");
    let second = second.map_or_else(|| "none".to_owned(), |core| core.to_string());
    let model = Topology::read().model.unwrap_or_else(|why| format!("processor unknown ({why})"));
    eprintln!("on core {first}, the other side on {second}; {model}");
}

/// Long enough for a steady figure, short enough to be run often.
pub fn criterion() -> Criterion {
    pin();
    Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2))
}

/// Shared memory of so many words, as between two processes.
pub fn shared_words(words: usize) -> Arc<Words> {
    let object = SharedObject::create("bench", (words * 8).next_multiple_of(4096)).expect("shared memory");
    object.map(Access::Write).expect("a mapping")
}

/// Both ends of a ring over shared memory.
pub fn ring(capacity: u64) -> (Producer, Consumer) {
    let memory = RingMemory {
        slots: shared_words(capacity as usize * SLOT_WORDS),
        first_word: 0,
        capacity,
        heads: shared_words(1),
        head_word: 0,
    };
    (Producer::new(memory.clone()), Consumer::new(memory))
}
