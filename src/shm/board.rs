//! The board: latest values that everybody in the swarm may read, without disturbing who writes them.
//!
//! ```text
//!  header │ host cell │ thermal cell │ usage cells, one per slot │ counts, one per slot │ lives, one per slot │ costs │ variants
//! ```
//! Cells of several words are [`seqlock`]s: a writer that dies half-way leaves one that readers see as
//! [`None`], and the successor starts over. Costs and variants are single words, whole by nature.
//!
//! Values are advice. Whoever reads them checks ranges; the ledger never depends on them.

use super::memory::Words;
use super::segment::{Segment, SegmentError};
use super::seqlock;
use crate::base::ids::{AgentSlot, Incarnation};
use crate::base::sync::{AtomicU64, Ordering};
use crate::os::counting::{Counts, EVENTS};
use crate::os::sysfs::Reason;

/// First word of a board: says what it is and in which layout.
const MAGIC: u64 = 0x3230_4452_414F_4241; // "ABOARD02" read as little-endian bytes
/// Kernels that have rows in the tables.
pub const KERNELS: usize = 32;
/// Size classes per kernel.
pub const CLASSES: usize = 32;
/// Element types that variants are chosen for.
pub const DTYPES: usize = 16;

const HEADER_WORDS: usize = 64;
/// Words of a cell, version word included.
const CELL_WORDS: usize = 16;
/// Words of a life: a cache line, so that agents do not disturb each other.
const LIFE_WORDS: usize = 8;
/// Values in a cell.
pub const CELL_VALUES: usize = CELL_WORDS - 1;

/// The values of one cell; `f64::NAN` stands for "not known", never for 0.
pub type Cell = [f64; CELL_VALUES];

/// A learned cost: mean nanoseconds of service and how many finished tasks it rests on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Mean service time, ns.
    pub mean_ns: f32,
    /// Tasks behind it.
    pub samples: u32,
}

/// What was counted while the kernels of an agent ran, in one life.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counted {
    /// Which life.
    pub incarnation: u32,
    /// Tasks for which something was counted.
    pub tasks: f64,
    /// What was counted for these.
    pub counts: Counts,
    /// Why an event is not counted.
    pub reasons: [Option<Reason>; EVENTS.len()],
}

/// What an agent shows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// Grows while it makes progress.
    pub beat: u64,
    /// When it began with the task it runs, ns; `None` when it runs none.
    pub running_since_ns: Option<u64>,
    /// Tasks it ended well, in this life.
    pub tasks: u64,
    /// Tasks that failed on it for reasons that may be its own, in this life.
    pub failures: u64,
    /// Kernel and size class of the task that it began last.
    pub work: Option<(u8, u8)>,
}

/// Everything on the board, mapped.
pub struct Board {
    segment: Segment,
    slots: usize,
}

impl Board {
    fn lives_at(slots: usize) -> usize {
        HEADER_WORDS + (2 + 2 * slots) * CELL_WORDS
    }

    fn costs_at(&self) -> usize {
        Self::lives_at(self.slots) + self.slots * LIFE_WORDS
    }

    fn words_for(slots: usize) -> usize {
        Self::lives_at(slots)
            + slots * LIFE_WORDS
            + KERNELS * CLASSES * (slots + 1)
            + KERNELS * DTYPES * CLASSES
    }

    /// Bytes of a board with room for `slots` agents.
    pub fn bytes(slots: usize) -> usize {
        (Self::words_for(slots) * 8).next_multiple_of(4096)
    }

    /// Creates the board of a swarm.
    pub fn create(name: &str, slots: usize) -> Result<Self, SegmentError> {
        let segment = Segment::create(name, Self::bytes(slots))?;
        let board = Self { segment, slots };
        board.announce();
        for cell in 0..2 + 2 * slots {
            board.write_cell(HEADER_WORDS + cell * CELL_WORDS, &[f64::NAN; CELL_VALUES]);
        }
        Ok(board)
    }

    /// Writes what a fresh agent looks for. Every agent may write here: before each start the creator makes sure that nobody
    /// has written over it.
    pub fn announce(&self) {
        self.words().word(1).store(self.slots as u64, Ordering::Relaxed);
        self.words().word(0).store(MAGIC, Ordering::Release);
    }

    /// Attaches to the board that the supervisor announced.
    pub fn open(name: &str, slots: usize) -> Result<Self, SegmentError> {
        let segment = Segment::open(name, Self::bytes(slots))?;
        let found = segment.words().word(1).load(Ordering::Relaxed);
        if segment.words().word(0).load(Ordering::Acquire) != MAGIC || found != slots as u64 {
            return Err(SegmentError::Size { name: name.into(), found: found as usize, announced: slots });
        }
        Ok(Self { segment, slots })
    }

    /// Name under /dev/shm.
    pub fn name(&self) -> &str {
        self.segment.name()
    }

    /// Agents that have a place.
    pub fn slots(&self) -> usize {
        self.slots
    }

    fn words(&self) -> &Words {
        self.segment.words()
    }

    fn write_cell(&self, at: usize, values: &Cell) {
        seqlock::write(self.words(), at, values.iter().map(|value| value.to_bits()));
    }

    fn read_cell(&self, at: usize) -> Option<Cell> {
        // A writer needs some 20 ns; one that is still not through after so many looks is dead.
        for _ in 0..1000 {
            if let Some(values) = seqlock::look::<CELL_VALUES>(self.words(), at) {
                return Some(values.map(f64::from_bits));
            }
            std::hint::spin_loop();
        }
        None
    }

    fn usage_at(&self, slot: AgentSlot) -> Option<usize> {
        (slot.index() < self.slots).then(|| HEADER_WORDS + (2 + slot.index()) * CELL_WORDS)
    }

    /// The resource agent publishes the host.
    pub fn publish_host(&self, host: &Host) {
        self.write_cell(HEADER_WORDS, &host.to_cell());
    }

    /// The host as last sampled; `None` while a writer died half-way.
    pub fn host(&self) -> Option<Host> {
        self.read_cell(HEADER_WORDS).map(|cell| Host::from_cell(&cell))
    }

    /// The thermal agent publishes temperature and cap.
    pub fn publish_thermal(&self, thermal: &Thermal) {
        self.write_cell(HEADER_WORDS + CELL_WORDS, &thermal.to_cell());
    }

    /// Temperature and cap as last read.
    pub fn thermal(&self) -> Option<Thermal> {
        self.read_cell(HEADER_WORDS + CELL_WORDS).map(|cell| Thermal::from_cell(&cell))
    }

    /// The resource agent publishes what an agent uses.
    pub fn publish_usage(&self, slot: AgentSlot, usage: &Usage) {
        if let Some(at) = self.usage_at(slot) {
            self.write_cell(at, &usage.to_cell());
        }
    }

    /// What an agent used when it was last sampled.
    pub fn usage(&self, slot: AgentSlot) -> Option<Usage> {
        self.read_cell(self.usage_at(slot)?).map(|cell| Usage::from_cell(&cell))
    }

    fn counts_at(&self, slot: AgentSlot) -> Option<usize> {
        (slot.index() < self.slots).then(|| HEADER_WORDS + (2 + self.slots + slot.index()) * CELL_WORDS)
    }

    /// An agent publishes what was counted while its kernels ran.
    pub fn publish_counted(&self, slot: AgentSlot, counted: &Counted) {
        if let Some(at) = self.counts_at(slot) {
            let mut cell = [f64::NAN; CELL_VALUES];
            (cell[0], cell[1]) = (f64::from(counted.incarnation), counted.tasks);
            for (event, value) in cell[2..].iter_mut().take(EVENTS.len()).enumerate() {
                // One word has room for either: a count is not negative.
                let reason = counted.reasons[event].map(|reason| -1.0 - f64::from(reason as u8));
                *value = reason.or(counted.counts.get(event)).unwrap_or(f64::NAN);
            }
            self.write_cell(at, &cell);
        }
    }

    /// What was counted in this life of an agent.
    pub fn counted(&self, slot: AgentSlot, incarnation: Incarnation) -> Option<Counted> {
        let cell = self.read_cell(self.counts_at(slot)?)?;
        let mut counted = Counted {
            incarnation: incarnation.0,
            tasks: cell[1],
            counts: Counts::NONE,
            reasons: [None; EVENTS.len()],
        };
        for (event, &value) in cell[2..].iter().take(EVENTS.len()).enumerate() {
            if value < 0.0 {
                counted.reasons[event] = Reason::from_code_number((-1.0 - value) as u8);
            } else {
                counted.counts.set(event, value);
            }
        }
        (cell[0] == f64::from(incarnation.0)).then_some(counted)
    }

    fn life_word(&self, slot: AgentSlot, word: usize) -> Option<&AtomicU64> {
        (slot.index() < self.slots)
            .then(|| self.words().word(Self::lives_at(self.slots) + slot.index() * LIFE_WORDS + word))
    }

    /// An agent shows that it makes progress. One store, as often as it likes.
    #[inline]
    pub fn beat(&self, slot: AgentSlot) {
        if let Some(word) = self.life_word(slot, 0) {
            word.store(word.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// An agent says whether it runs a task (since when, ns), and how its tasks ended so far.
    pub fn publish_life(&self, slot: AgentSlot, running_since_ns: Option<u64>, tasks: u64, failures: u64) {
        for (word, value) in [(1, running_since_ns.unwrap_or(0)), (2, tasks), (3, failures)] {
            if let Some(word) = self.life_word(slot, word) {
                word.store(value, Ordering::Relaxed);
            }
        }
    }

    /// An agent says what kind of task it begins.
    #[inline]
    pub fn publish_work(&self, slot: AgentSlot, kernel: u8, class: u8) {
        if let Some(word) = self.life_word(slot, 4) {
            word.store(1 << 16 | u64::from(kernel) << 8 | u64::from(class), Ordering::Relaxed);
        }
    }

    /// What an agent last showed of itself.
    pub fn life(&self, slot: AgentSlot) -> Option<Life> {
        let word = |at| self.life_word(slot, at).map(|word| word.load(Ordering::Relaxed));
        let since = word(1)?;
        let running_since_ns = (since != 0).then_some(since);
        let work = Some(word(4)?).filter(|work| work >> 16 == 1).map(|work| ((work >> 8) as u8, work as u8));
        Some(Life { beat: word(0)?, running_since_ns, tasks: word(2)?, failures: word(3)?, work })
    }

    fn cost_word(&self, kernel: u8, class: u8, column: usize) -> Option<&AtomicU64> {
        let (kernel, class) = (usize::from(kernel), usize::from(class));
        if kernel >= KERNELS || class >= CLASSES || column > self.slots {
            return None;
        }
        Some(self.words().word(self.costs_at() + (kernel * CLASSES + class) * (self.slots + 1) + column))
    }

    /// The learning agent publishes what a kernel costs on one agent, or on any (`None`).
    pub fn publish_cost(&self, kernel: u8, class: u8, slot: Option<AgentSlot>, cost: Cost) {
        let column = slot.map_or(self.slots, AgentSlot::index);
        if let Some(word) = self.cost_word(kernel, class, column) {
            word.store(u64::from(cost.mean_ns.to_bits()) << 32 | u64::from(cost.samples), Ordering::Relaxed);
        }
    }

    /// The learned cost, if there is one and it makes sense.
    pub fn cost(&self, kernel: u8, class: u8, slot: Option<AgentSlot>) -> Option<Cost> {
        let column = slot.map_or(self.slots, AgentSlot::index);
        let word = self.cost_word(kernel, class, column)?.load(Ordering::Relaxed);
        let cost = Cost { mean_ns: f32::from_bits((word >> 32) as u32), samples: word as u32 };
        (cost.samples > 0 && cost.mean_ns.is_finite() && cost.mean_ns >= 0.0).then_some(cost)
    }

    fn variant_word(&self, kernel: u8, dtype: u8, class: u8) -> Option<&AtomicU64> {
        let (kernel, dtype, class) = (usize::from(kernel), usize::from(dtype), usize::from(class));
        if kernel >= KERNELS || dtype >= DTYPES || class >= CLASSES {
            return None;
        }
        let base = self.costs_at() + KERNELS * CLASSES * (self.slots + 1);
        Some(self.words().word(base + (kernel * DTYPES + dtype) * CLASSES + class))
    }

    /// The optimization agent publishes which variant to use; the code's meaning belongs to `kernels`.
    pub fn publish_variant(&self, kernel: u8, dtype: u8, class: u8, variant: u16) {
        if let Some(word) = self.variant_word(kernel, dtype, class) {
            word.store(1 << 32 | u64::from(variant), Ordering::Relaxed);
        }
    }

    /// The variant published for this kernel, element type and size class.
    pub fn variant(&self, kernel: u8, dtype: u8, class: u8) -> Option<u16> {
        let word = self.variant_word(kernel, dtype, class)?.load(Ordering::Relaxed);
        (word >> 32 == 1).then_some(word as u16)
    }

    /// The supervisor publishes whether work waits, so that others stay out of its way.
    pub fn publish_backlog(&self, waiting: usize, running: usize) {
        self.words()
            .word(2)
            .store((waiting as u64) << 32 | (running as u64 & 0xFFFF_FFFF), Ordering::Relaxed);
    }

    /// Tasks waiting and running as the supervisor last said.
    pub fn backlog(&self) -> (usize, usize) {
        let word = self.words().word(2).load(Ordering::Relaxed);
        ((word >> 32) as usize, (word & 0xFFFF_FFFF) as usize)
    }
}

/// Declares a cell's type: named f64 values in a fixed order.
macro_rules! cell {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct $name { $($(#[$field_meta])* pub $field: f64),+ }

        impl $name {
            /// Nothing known yet: every value NaN.
            pub const UNKNOWN: Self = Self { $($field: f64::NAN),+ };

            fn to_cell(self) -> Cell {
                let mut cell = [f64::NAN; CELL_VALUES];
                for (slot, value) in cell.iter_mut().zip([$(self.$field),+]) {
                    *slot = value;
                }
                cell
            }

            fn from_cell(cell: &Cell) -> Self {
                let mut values = cell.iter().copied();
                Self { $($field: values.next().unwrap_or(f64::NAN)),+ }
            }
        }
    };
}

cell! {
    /// The host as the resource agent sampled it. NaN is "not known".
    Host {
        /// When, ns of the monotonic clock.
        sampled_ns,
        /// Processor use of the whole host, percent.
        cpu_percent,
        /// Time taken by the hypervisor, percent.
        steal_percent,
        /// Memory in use, percent.
        memory_percent,
        /// Memory available, bytes.
        memory_available_bytes,
        /// Share of time in which something waited for a processor, percent.
        pressure_cpu_percent,
        /// Share of time in which something waited for memory, percent.
        pressure_memory_percent,
        /// Share of time in which something waited for a disk, percent.
        pressure_io_percent,
        /// Disk reads, bytes/s.
        disk_read_bytes_per_s,
        /// Disk writes, bytes/s.
        disk_write_bytes_per_s,
        /// Load average over a minute.
        load_1m,
    }
}

cell! {
    /// Temperature and the cap derived from it. NaN temperature: unavailable, the reason is an event.
    Thermal {
        /// When, ns of the monotonic clock.
        sampled_ns,
        /// The hottest sensor, degrees Celsius.
        hottest_celsius,
        /// Compute agents that may run at once; NaN: no cap.
        cap_agents,
        /// Code of the reason for a missing temperature, meaningful when `hottest_celsius` is NaN.
        reason_code,
    }
}

cell! {
    /// What one agent uses, as the resource agent sampled it.
    Usage {
        /// When, ns of the monotonic clock.
        sampled_ns,
        /// Process number that was sampled.
        pid,
        /// Processor use, percent of one core.
        cpu_percent,
        /// Resident memory, bytes.
        rss_bytes,
        /// Time runnable but not running, percent.
        run_delay_percent,
        /// Context switches per second.
        context_switches_per_s,
        /// Major page faults since start.
        major_faults,
        /// Threads.
        threads,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(what: &str, slots: usize) -> Board {
        Board::create(&format!("ai_swarm-test-board-{what}-{}", std::process::id()), slots).expect("board")
    }

    #[test]
    fn a_fresh_board_knows_nothing() {
        let board = board("fresh", 4);
        assert!(board.host().expect("readable").cpu_percent.is_nan());
        assert!(board.thermal().expect("readable").hottest_celsius.is_nan());
        assert_eq!(board.cost(1, 1, None), None);
        assert_eq!(board.variant(1, 1, 1), None);
        assert_eq!(board.usage(AgentSlot(4)), None, "a slot that does not exist");
    }

    #[test]
    fn a_header_that_somebody_wrote_over_is_announced_again() {
        let board = board("header", 4);
        for word in [0, 1] {
            board.words().word(word).store(7, Ordering::Relaxed);
            assert!(Board::open(board.name(), 4).is_err(), "word {word}");
            board.announce();
            assert!(Board::open(board.name(), 4).is_ok(), "word {word}");
        }
    }

    #[test]
    fn what_one_publishes_another_reads() {
        let board = board("publish", 4);
        let guest = Board::open(board.name(), 4).expect("open");
        guest.publish_host(&Host { cpu_percent: 12.5, ..Host::UNKNOWN });
        guest.publish_cost(3, 7, Some(AgentSlot(2)), Cost { mean_ns: 1500.0, samples: 9 });
        guest.publish_cost(3, 7, None, Cost { mean_ns: 1600.0, samples: 20 });
        guest.publish_variant(31, 15, 31, 513);
        guest.publish_cost(200, 7, None, Cost { mean_ns: 1.0, samples: 1 });
        guest.beat(AgentSlot(3));
        guest.publish_life(AgentSlot(3), Some(8), 2, 1);
        guest.publish_work(AgentSlot(3), 7, 255);
        let life = Life { beat: 1, running_since_ns: Some(8), tasks: 2, failures: 1, work: Some((7, 255)) };
        assert_eq!((board.life(AgentSlot(3)), board.life(AgentSlot(4))), (Some(life), None));
        board.publish_backlog(70_000, 3);
        assert_eq!(board.host().expect("readable").cpu_percent, 12.5);
        assert!(board.host().expect("readable").load_1m.is_nan());
        assert_eq!(board.cost(3, 7, Some(AgentSlot(2))), Some(Cost { mean_ns: 1500.0, samples: 9 }));
        assert_eq!(board.cost(3, 7, None), Some(Cost { mean_ns: 1600.0, samples: 20 }));
        assert_eq!(board.cost(3, 7, Some(AgentSlot(1))), None);
        assert_eq!(board.variant(31, 15, 31), Some(513));
        assert_eq!(guest.backlog(), (70_000, 3));
        assert!(Board::open(board.name(), 5).is_err(), "another layout");
    }

    #[test]
    fn what_was_counted_belongs_to_one_life() {
        let board = board("counted", 2);
        let (slot, life) = (AgentSlot(1), Incarnation(3));
        assert_eq!(board.counted(slot, life), None);
        let mut counts = Counts::NONE;
        counts.set(7, 12.0);
        let mut reasons = [None; EVENTS.len()];
        (reasons[0], reasons[9]) = (Some(Reason::NoPmu), Some(Reason::Asleep));
        let counted = Counted { incarnation: 3, tasks: 2.0, counts, reasons };
        board.publish_counted(slot, &counted);
        assert_eq!(board.counted(slot, life), Some(counted));
        assert_eq!((board.counted(slot, Incarnation(4)), board.counted(AgentSlot(2), life)), (None, None));
    }

    #[test]
    fn a_writer_that_died_half_way_is_noticed_and_its_successor_heals_the_cell() {
        let board = board("half", 1);
        board.words().word(HEADER_WORDS).fetch_or(1, Ordering::Relaxed);
        assert_eq!(board.host(), None);
        board.publish_host(&Host { load_1m: 2.0, ..Host::UNKNOWN });
        assert_eq!(board.host().expect("healed").load_1m, 2.0);
    }

    #[test]
    fn readers_never_see_half_a_cell() {
        let board = board("torn", 1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 0..200_000 {
                    let v = f64::from(i);
                    board.publish_host(&Host {
                        sampled_ns: v,
                        load_1m: v,
                        memory_percent: v,
                        ..Host::UNKNOWN
                    });
                }
            });
            for _ in 0..100_000 {
                if let Some(host) = board.host() {
                    assert!(host.sampled_ns.is_nan() || host.sampled_ns == host.load_1m);
                    assert_eq!(host.load_1m.to_bits(), host.memory_percent.to_bits());
                }
            }
        });
    }

    #[test]
    fn nonsense_costs_are_not_believed() {
        let board = board("nonsense", 1);
        for mean_ns in [f32::NAN, f32::INFINITY, -1.0] {
            board.publish_cost(1, 1, None, Cost { mean_ns, samples: 5 });
            assert_eq!(board.cost(1, 1, None), None);
        }
    }
}
