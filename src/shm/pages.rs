//! The small objects beside the slots: who may write which word.
//!
//! ```text
//!  hub (supervisor writes, everybody reads)      word 0   supervisor is asleep
//!  sup.page (supervisor writes, one member reads)
//!    words 0..48       acknowledged heads of the up lanes, a line pair each
//!    word 64           cancel word: task and attempt that the agent shall give up, 0 = none
//!    word 65           1: this member shares its core, never spin
//!  desk (member writes; supervisor and peers read)
//!    words 0..48       acknowledged heads of the down lanes
//!    word 48           member is asleep
//!    word 64           beat: grows with every turn and every pulse of a kernel
//!    word 65           task that runs now, 0 = none
//!    word 66           when it started, ns
//!    word 67           lines to other members that it reads
//!    word 68           task and attempt whose output is appearing, 0 = none
//!    words 80..88      its arena: limit, committed, in use, out, high water, full answers, reclaimed
//!    word 96           held by the agent's thread; the kernel marks it when that dies
//!    words 128..176    what its sending end has counted
//!    words 256..640    what its receiving end has counted
//!  bell (everybody who may talk to the member writes, the member reads)
//!    word 0            grows when somebody rings: a hint, never believed beyond a sleep's length
//!    word 1            when somebody rang last, ns: a hint
//!    words 16..20      bit of each line on which something was sent: a hint too
//!  half of a line between two members (one of them writes, the other reads)
//!    words 0..48       acknowledged heads of what the other sends
//!    words 64..112     what the sending end has counted
//!    words 128..512    what the receiving end has counted
//!    words 512..1024   rows of topics: number, delivered, lost
//!    from word 1024    slots
//! ```
//! Heads lie 128 bytes apart because the adjacent-line prefetcher pulls lines in pairs.

/// Bytes of hub, sup.page and bell.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of a desk.
pub const DESK_BYTES: usize = 8192;

/// Word of the supervisor's asleep flag in the hub.
pub const HUB_ASLEEP: usize = 0;

/// First word of the acknowledged heads in sup.page, in a desk and in a half.
pub const HEADS: usize = 0;
/// Word of the cancelled task in sup.page.
pub const SUP_CANCEL: usize = 64;
/// Word that says whether the core is shared, in sup.page.
pub const SUP_SHARED_CORE: usize = 65;

/// Word of the member's asleep flag in its desk.
pub const DESK_ASLEEP: usize = 48;
/// Word of the agent's beat in its desk.
pub const DESK_BEAT: usize = 64;
/// Word of the running task in the agent's desk.
pub const DESK_TASK: usize = 65;
/// Word of the running task's start in the agent's desk.
pub const DESK_TASK_SINCE: usize = 66;
/// Word of the number of lines that the member reads, in its desk.
pub const DESK_LINES: usize = 67;
/// Word of the attempt whose output is appearing, in the agent's desk.
pub const DESK_COMMIT: usize = 68;
/// First word of the arena's numbers in a desk.
pub const DESK_ARENA: usize = 80;
/// Word that the agent's thread holds as long as it lives, in its desk.
pub const DESK_LIFE: usize = 96;
/// First word of the sending end's numbers in a desk.
pub const DESK_SENT: usize = 128;
/// First word of the receiving end's numbers in a desk.
pub const DESK_RECEIVED: usize = 256;

/// Word that grows when somebody rings.
pub const BELL: usize = 0;
/// First of the words with a bit per line.
pub const BELL_LINES: usize = 16;
/// Lines that have a bit.
pub const LINES_MAX: usize = 256;

/// First word of the sending end's numbers in a half.
pub const HALF_SENT: usize = 64;
/// First word of the receiving end's numbers in a half.
pub const HALF_RECEIVED: usize = 128;
/// First word of the rows of topics in a half.
pub const HALF_TOPICS: usize = 512;
/// Rows of topics in a half.
pub const TOPIC_ROWS: usize = 128;
/// First word of the slots in a half.
pub const HALF_SLOTS: usize = HALF_TOPICS + TOPIC_ROWS * 4;
/// Bytes of a half before its slots.
pub const HALF_HEAD_BYTES: usize = HALF_SLOTS * 8;

const _: () = assert!(
    DESK_LINES < DESK_COMMIT
        && DESK_COMMIT < DESK_ARENA
        && DESK_ARENA + 8 <= DESK_LIFE
        && DESK_LIFE < DESK_SENT
        && HEADS + 48 <= DESK_ASLEEP
);
const _: () = assert!((DESK_RECEIVED + 384) * 8 <= DESK_BYTES && HALF_RECEIVED + 384 <= HALF_TOPICS);
const _: () = assert!((BELL_LINES + LINES_MAX / 64) * 8 <= PAGE_BYTES);
