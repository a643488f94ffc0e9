//! The process that [`hostile`](crate::hostile) lets loose: it attaches by hand, maps what it is given, and writes
//! what no correct process writes. Its exit code says how it ended.

use ai_swarm::base::prng::SplitMix64;
use ai_swarm::base::sync::Ordering;
use ai_swarm::messaging::attach::{FromMember, Heard, MemberTalk, Rule, ToMember, VERSION};
use ai_swarm::messaging::lanes::capacities;
use ai_swarm::messaging::store::RELEASE;
use ai_swarm::os::socket;
use ai_swarm::shm::arena::Descriptor;
use ai_swarm::shm::lossy::LossyMemory;
use ai_swarm::shm::ring::{FLAG_BLOCK, FLAG_STAMPED};
use ai_swarm::shm::{Access, SharedObject, Words, pages};
use rustix::fs::{FallocateFlags, OFlags};
use rustix::net::SocketType;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// It was cut off and may not come back.
pub const BARRED: i32 = 40;
/// Its line was closed, and a new one opened when it asked.
pub const LINE_CLOSED: i32 = 41;
/// Nobody had reason to do anything.
pub const UNNOTICED: i32 = 42;
/// Something ought to have happened within [`PATIENCE`] and did not.
pub const NOTHING_HAPPENED: i32 = 43;

/// How long it waits for the consequences.
const PATIENCE: Duration = Duration::from_secs(30);
/// Vocabulary of lines between members.
const DIRECT: u8 = 1;
const TOPIC: u8 = 2;
const REQUEST: u8 = 3;
/// Vocabulary of clients.
const SUBMIT: u8 = 96;
const GIVE_UP: u8 = 97;
/// Length of a slot of an overwriting ring that is being written.
const BUSY: u8 = 255;

/// Whom it harms: the supervisor, or the member with this id.
pub const SUPERVISOR: &str = "supervisor";

/// What it can do to a channel.
pub const CHANNEL_ATTACKS: [&str; 11] = [
    "noise",
    "sequence",
    "length",
    "chain",
    "stamp",
    "kind",
    "short",
    "descriptor",
    "release",
    "mix",
    "heads",
];
/// What nobody needs to notice, because whoever reads it believes nothing, and what must be impossible.
pub const IDLE_ATTACKS: [&str; 5] = ["numbers", "bells", "eventfd", "seals", "holes"];

/// Correct messages before a wrong one, at most.
const INNOCENTS_MAX: u64 = 3;

/// A control word.
fn control_word(sequence: u64, kind: u8, length: u8, following: u8, flags: u8) -> u64 {
    let fields = [(kind, 32), (length, 40), (following, 48), (flags, 56)];
    fields
        .into_iter()
        .fold(u64::from(sequence as u32), |word, (field, shift)| word | u64::from(field) << shift)
}

fn adopt(fd: OwnedFd) -> SharedObject {
    let bytes = rustix::fs::fstat(&fd).expect("a file").st_size as usize;
    SharedObject::adopt(fd, bytes).expect("a sealed object")
}

/// One lane that it writes, slot by slot.
#[derive(Debug)]
struct Pen {
    slots: Arc<Words>,
    first: usize,
    capacity: u64,
    next: u64,
}

impl Pen {
    /// Writes a slot as if it were the one at `next + ahead`.
    fn slot(&self, ahead: u64, word: u64, payload: &[u8]) {
        let at = self.first + ((self.next + ahead) % self.capacity) as usize * 8;
        for (index, piece) in payload.chunks(8).take(7).enumerate() {
            let mut bytes = [0; 8];
            bytes[..piece.len()].copy_from_slice(piece);
            self.slots.word(at + 1 + index).store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
        self.slots.word(at).store(word, Ordering::Release);
    }

    /// A whole message of one slot, as a correct process writes it, whatever is in it.
    fn push(&mut self, kind: u8, flags: u8, payload: &[u8]) {
        self.slot(0, control_word(self.next + 1, kind, payload.len() as u8, 0, flags), payload);
        self.next += 1;
    }
}

/// One channel to somebody, and what it acknowledges of theirs.
#[derive(Debug)]
pub struct Face {
    pens: [Pen; 3],
    /// Ours to write: what we claim to have taken.
    heads: Arc<Words>,
    is_link: bool,
}

impl Face {
    fn new(slots: &Arc<Words>, first_slot: usize, heads: &Arc<Words>, is_link: bool) -> Self {
        let mut first = first_slot;
        let pens = capacities((slots.len() - first_slot) * 8).map(|capacity| {
            let pen = Pen { slots: slots.clone(), first, capacity, next: 0 };
            first += capacity as usize * 8;
            pen
        });
        Self { pens, heads: heads.clone(), is_link }
    }
}

/// A line to another member.
#[derive(Debug)]
pub struct Line {
    /// Its number.
    pub number: u32,
    /// Only to be read: their half, their desk, their arena.
    pub read_only: Vec<(&'static str, SharedObject)>,
    half: Arc<Words>,
    bell: Arc<Words>,
    bell_object: SharedObject,
    face: Face,
}

impl Line {
    /// Says that it has taken so many slots of each lane.
    pub fn acknowledge(&self, slots: u64) {
        for lane in 0..3 {
            self.half.word(pages::HEADS + lane * 16).store(slots, Ordering::Release);
        }
    }
}

/// A client that does everything by hand.
#[derive(Debug)]
pub struct Intruder {
    /// What the supervisor hears and says.
    pub talk: MemberTalk,
    /// Only to be read.
    pub read_only: Vec<(&'static str, SharedObject)>,
    /// Everybody's bells that it was given.
    pub bells: Vec<SharedObject>,
    luck: SplitMix64,
    desk: Arc<Words>,
    up_object: SharedObject,
    bell: Arc<Words>,
    arena: Arc<Words>,
    arena_object: SharedObject,
    event: OwnedFd,
    face: Face,
    seq: u64,
}

/// A connection to where clients attach.
pub fn knock(control: &Path) -> MemberTalk {
    let path = control.with_file_name("attach.sock");
    MemberTalk::new(socket::connect(&path, SocketType::SEQPACKET).expect("the swarm listens"))
}

/// The next word; `None` when the other side has closed.
pub fn hear(talk: &mut MemberTalk, within: Duration) -> Option<(ToMember, Vec<OwnedFd>)> {
    let began = Instant::now();
    loop {
        match talk.hear() {
            Ok(Heard::Message(word, fds)) => return Some((word, fds)),
            Ok(Heard::Closed) => return None,
            Ok(Heard::Nothing) => {}
            Err(error) => panic!("the supervisor talks nonsense: {error}"),
        }
        assert!(began.elapsed() < within, "nothing was said within {within:?}");
        talk.wait(Duration::from_millis(50));
    }
}

/// Says `Hello` under this name. `Err`: why not.
pub fn hello(control: &Path, name: &str) -> Result<(MemberTalk, Vec<OwnedFd>), String> {
    let mut talk = knock(control);
    // Whoever is refused at once may have been hung up on already.
    let _ = talk.say(&FromMember::Hello { version: VERSION, name: Some(name.to_owned()) }, &[]);
    match hear(&mut talk, PATIENCE) {
        Some((ToMember::Welcome { .. }, fds)) => Ok((talk, fds)),
        Some((ToMember::Refused { why, .. }, _)) => Err(why),
        other => panic!("no answer to Hello: {other:?}"),
    }
}

impl Intruder {
    /// Attaches under this name.
    pub fn attach(control: &Path, name: &str, seed: u64) -> Self {
        let (talk, fds) = hello(control, name).expect("nobody is barred yet");
        let fds: [OwnedFd; 9] = fds.try_into().expect("nine descriptors");
        let [down, up, sup_page, desk, bell, arena, hub, hub_arena, event] = fds;
        let [up_object, desk, bell, arena_object] = [up, desk, bell, arena].map(adopt);
        let read_only = [("down", down), ("sup_page", sup_page), ("hub", hub), ("hub_arena", hub_arena)];
        let write = |object: &SharedObject| object.map(Access::Write).expect("ours to write");
        let (up, desk_words) = (write(&up_object), write(&desk));
        let mut luck = SplitMix64::new(seed);
        let arena = write(&arena_object);
        // Some memory, so that descriptors lead somewhere; sealed or not, as readers want it or not.
        arena_object.commit(0, 64 << 10).expect("memory");
        arena.populate(0, 64 << 10).expect("memory");
        if luck.below(4) > 0 {
            arena_object.seal_writes().expect("sealed");
        }
        Self {
            talk,
            read_only: read_only.into_iter().map(|(name, fd)| (name, adopt(fd))).collect(),
            luck,
            face: Face::new(&up, 0, &desk_words, true),
            desk: desk_words,
            up_object,
            bell: write(&bell),
            bells: vec![bell],
            arena,
            arena_object,
            event,
            seq: 0,
        }
    }

    /// Says that this peer wrote nonsense; the line is closed for it.
    fn complain(&mut self, peer: &str) {
        let line = self.connect(peer).number;
        let reason = format!("slot 0 carries sequence {}", "\u{7f}\\\"".repeat(500));
        self.talk.say(&FromMember::Poisoned { line, reason }, &[]).expect("room");
        loop {
            match hear(&mut self.talk, PATIENCE).expect("a client's word") {
                (ToMember::Closed { line: closed, why }, _) if closed == line => {
                    assert!(why.len() < 200, "what one says is passed on: {} bytes", why.len());
                    return;
                }
                _ => {}
            }
        }
    }

    /// Opens a line.
    pub fn connect(&mut self, peer: &str) -> Line {
        self.seq += 1;
        let asked = self.seq;
        self.talk.say(&FromMember::Connect { seq: asked, peer: peer.to_owned() }, &[]).expect("room");
        loop {
            match hear(&mut self.talk, PATIENCE) {
                Some((ToMember::Line { seq: Some(seq), line, .. }, fds)) if seq == asked => {
                    let fds: [OwnedFd; 5] = fds.try_into().expect("five descriptors");
                    let [mine, theirs, desk, bell, arena] = fds.map(adopt);
                    let half = mine.map(Access::Write).expect("ours to write");
                    let words = bell.map(Access::Write).expect("everybody's to ring");
                    self.bells.push(bell.duplicate().expect("a copy"));
                    return Line {
                        number: line,
                        face: Face::new(&half, pages::HALF_SLOTS, &half, false),
                        read_only: vec![("half", theirs), ("desk", desk), ("arena", arena)],
                        half,
                        bell: words,
                        bell_object: bell,
                    };
                }
                Some((ToMember::Refused { seq, why }, _)) if seq == asked => {
                    panic!("no line to {peer}: {why}")
                }
                Some(_) => {}
                None => panic!("cut off before anything was done"),
            }
        }
    }

    /// Wakes whoever reads: the supervisor or the member at the other end of `line`.
    fn ring(&self, line: Option<&Line>) {
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        if let Some(line) = line {
            line.bell.word(pages::BELL).fetch_add(1, Ordering::Release);
            // Without the futex call: whoever sleeps there wakes by itself within a quarter of a second.
        }
    }

    /// Does something bad to a channel.
    fn harm(&mut self, face: &mut Face, attack: &str) {
        let lane = self.luck.below(3) as usize;
        // As plausible as it gets: some correct messages first.
        let mut innocent = [0; 8];
        innocent.copy_from_slice(&self.luck.next_u64().to_le_bytes());
        let kind = if face.is_link { GIVE_UP } else { DIRECT };
        if attack != "noise" && attack != "heads" {
            for _ in 0..self.luck.below(INNOCENTS_MAX + 1) {
                face.pens[lane].push(kind, 0, &innocent);
            }
        }
        let luck = &mut self.luck;
        let pen = &mut face.pens[lane];
        let position = pen.next;
        match attack {
            "noise" => noise(pen, luck),
            "sequence" => wrong_sequence(pen, luck, kind, &innocent),
            "length" => {
                pen.slot(0, control_word(position + 1, kind, 57 + luck.below(199) as u8, 0, 0), &innocent)
            }
            "chain" => torn_chain(pen, luck, kind, &innocent),
            "stamp" => {
                let length = luck.below(8) as u8;
                pen.slot(0, control_word(position + 1, kind, length, 0, FLAG_STAMPED | 0x80), &innocent);
            }
            "kind" => pen.push(
                128 + luck.below(100) as u8,
                luck.next_u64() as u8 & !(FLAG_STAMPED | FLAG_BLOCK),
                &innocent,
            ),
            "short" => {
                let kind = if face.is_link { SUBMIT } else { [TOPIC, REQUEST][luck.below(2) as usize] };
                pen.push(kind, 0, &innocent[..luck.below(4) as usize]);
            }
            "descriptor" => bad_descriptor(pen, luck, &self.arena, kind),
            "release" => {
                let block = [0u32, 1, 7, 1 << 20, u32::MAX][luck.below(5) as usize];
                let mut entry = u64::from(block).to_le_bytes();
                entry[4..].copy_from_slice(&(luck.below(5) as u32).to_le_bytes());
                pen.push(RELEASE, 0, &entry);
            }
            "heads" => wrong_heads(face, luck, &self.event),
            "mix" => mix(face, luck),
            other => panic!("no attack {other:?}"),
        }
    }

    /// Does something that nobody needs to notice, and that must not matter.
    fn fidget(&mut self, line: &Line, attack: &str) {
        let ends = Instant::now() + Duration::from_millis(300);
        let mut random = |words: &Words, from: usize, to: usize| {
            let at = from + self.luck.below((to - from) as u64) as usize;
            let nasty = [0, 1, u64::MAX, u64::MAX - 1, 1 << 63, 1 << 32];
            let pick = self.luck.below(12) as usize;
            let word = nasty.get(pick).copied().unwrap_or_else(|| self.luck.next_u64());
            words.word(at).store(word, Ordering::Relaxed);
        };
        match attack {
            // Numbers of channels and topics, the beat, the task, the lines, the arena; everything but the heads.
            "numbers" => {
                while Instant::now() < ends {
                    random(&self.desk, pages::DESK_ASLEEP, pages::DESK_BYTES / 8);
                    random(&line.half, 48, pages::HALF_SLOTS);
                    random(&self.arena, 0, 512);
                }
            }
            "bells" => {
                let words = pages::PAGE_BYTES / 8;
                while Instant::now() < ends {
                    random(&line.bell, 0, words);
                    random(&self.bell, 0, words);
                }
            }
            // Makes the descriptor a waiting one, and is always quicker to read it: after the last ring, too.
            "eventfd" => {
                rustix::fs::fcntl_setfl(&self.event, OFlags::empty()).expect("our descriptor too");
                let event = self.event.try_clone().expect("a copy");
                std::thread::spawn(move || {
                    let mut count = [0; 8];
                    while rustix::io::read(&event, &mut count).is_ok() {}
                });
                while Instant::now() < ends {
                    let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            // So that nobody else could map it any more.
            "seals" => {
                use rustix::fs::SealFlags;
                for bell in self.bells.iter().chain([&line.bell_object]) {
                    for seal in [SealFlags::WRITE, SealFlags::FUTURE_WRITE] {
                        let sealed = rustix::fs::fcntl_add_seals(bell, seal);
                        assert!(sealed.is_err(), "a bell can be closed to others");
                    }
                }
            }
            // Takes the memory out from under what it writes.
            "holes" => {
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                for object in [&self.up_object, &self.arena_object] {
                    let _ = rustix::fs::fallocate(object, mode, 0, object.bytes() as u64);
                }
            }
            other => panic!("no attack {other:?}"),
        }
    }

    /// Waits for the consequences of what was done on `line`, or to the supervisor.
    fn await_judgement(mut self, control: &Path, line: Option<(&str, Line)>) -> i32 {
        let began = Instant::now();
        loop {
            // Whoever sleeps is woken now and then.
            self.ring(line.as_ref().map(|(_, line)| line));
            match self.talk.hear() {
                Ok(Heard::Closed) => return is_barred(control),
                Ok(Heard::Message(ToMember::Closed { line: number, .. }, _))
                    if line.as_ref().is_some_and(|(_, line)| line.number == number) =>
                {
                    // Who is cut off hears this first.
                    if let Some((peer, old)) = &line {
                        self.talk.wait(Duration::from_millis(200));
                        self.seq += 1;
                        let again = FromMember::Connect { seq: self.seq, peer: (*peer).to_owned() };
                        let asked = self.talk.say(&again, &[]);
                        while let (Ok(()), Some((word, _))) = (&asked, hear(&mut self.talk, PATIENCE)) {
                            if matches!(word, ToMember::Line { line, .. } if line != old.number) {
                                return LINE_CLOSED;
                            }
                        }
                    }
                    return is_barred(control);
                }
                Ok(Heard::Message(..)) => continue,
                Ok(Heard::Nothing) => {}
                Err(error) => panic!("the supervisor talks nonsense: {error}"),
            }
            if began.elapsed() > PATIENCE {
                return NOTHING_HAPPENED;
            }
            self.talk.wait(Duration::from_millis(20));
        }
    }
}

/// Cut off: now it may not come back, under whatever name.
fn is_barred(control: &Path) -> i32 {
    let why = hello(control, "somebody-else").expect_err("cut off, and in again");
    assert!(why.contains("barred"), "{why}");
    BARRED
}

/// Random words all over a lane.
fn noise(pen: &mut Pen, luck: &mut SplitMix64) {
    for _ in 0..2000 {
        let at = pen.first + luck.below(pen.capacity * 8) as usize;
        pen.slots.word(at).store(luck.next_u64(), Ordering::Relaxed);
    }
    // Where the reader looks next there is some for certain.
    pen.slot(0, luck.next_u64() | 0x8000_0000, &luck.next_u64().to_le_bytes());
}

/// A slot that is not the next one.
fn wrong_sequence(pen: &mut Pen, luck: &mut SplitMix64, kind: u8, innocent: &[u8]) {
    let position = pen.next;
    let capacity = pen.capacity;
    let wrong = [position, position + 2, position + 1 + capacity, u64::from(u32::MAX), position + (1 << 31)];
    let mut sequence = wrong[luck.below(wrong.len() as u64) as usize];
    // Position 0 is what an untouched slot says, and as such innocent.
    if sequence as u32 == 0 {
        sequence = 2;
    }
    pen.slot(0, control_word(sequence, kind, 8, 0, 0), innocent);
}

/// A chain whose slots do not agree, and whose last one is missing.
fn torn_chain(pen: &mut Pen, luck: &mut SplitMix64, kind: u8, innocent: &[u8]) {
    let position = pen.next;
    let following = luck.below(255) as u8 + 1;
    // Behind that stand the correct messages from before, perhaps unread: who takes those back has said nothing at all.
    let room = pen.capacity - INNOCENTS_MAX;
    for part in 1..u64::from(following).min(room) {
        // Slots of the chain that are there, but not all of them agree.
        if luck.below(3) > 0 {
            let left = following.wrapping_sub(part as u8);
            pen.slot(
                part,
                control_word(position + part + 1, kind ^ luck.below(2) as u8, 56, left, 0),
                innocent,
            );
        }
    }
    // The last one is missing for certain.
    if u64::from(following) < room {
        pen.slot(u64::from(following), 0, &[]);
    }
    pen.slot(0, control_word(position + 1, kind, 56, following, 0), innocent);
}

/// A descriptor that leads nowhere, or to noise.
fn bad_descriptor(pen: &mut Pen, luck: &mut SplitMix64, arena: &Words, kind: u8) {
    let words = |luck: &mut SplitMix64| {
        let nasty = [
            0,
            1,
            63,
            64,
            128,
            4096,
            64 << 10,
            (64 << 10) - 64,
            1 << 20,
            1 << 40,
            u64::MAX,
            u64::MAX - 63,
            1 << 63,
        ];
        if luck.below(4) == 0 { luck.next_u64() } else { nasty[luck.below(nasty.len() as u64) as usize] }
    };
    let wanted = Descriptor {
        offset: words(luck),
        len: words(luck),
        generation: luck.below(3) as u32,
        block: luck.below(3) as u32,
    };
    // Headers that might fit, but for the last bit.
    for at in 0..512 {
        arena.word(at).store(luck.next_u64(), Ordering::Relaxed);
    }
    arena.word(0).store(u64::from_le_bytes(*b"swarmar1"), Ordering::Relaxed);
    let bytes = wanted.to_bytes();
    let cut = if luck.below(8) == 0 { luck.below(24) as usize } else { 24 };
    pen.push(kind, FLAG_BLOCK, &bytes[..cut]);
}

/// Acknowledges what was never sent.
fn wrong_heads(face: &mut Face, luck: &mut SplitMix64, event: &OwnedFd) {
    // Enough work that whoever answers has to look at what we acknowledge.
    for at in [0, 16, 32] {
        let wrong = [u64::MAX, 1 << 40, 1 << 63][luck.below(3) as usize];
        face.heads.word(pages::HEADS + at).store(wrong, Ordering::Release);
    }
    let pen = &mut face.pens[1];
    let lap = pen.capacity - 1;
    for n in 0..lap + lap / 2 {
        if n == lap {
            // The answers to the first ones fill a lap, so for the next one there has to be room.
            let _ = rustix::io::write(event, &1u64.to_ne_bytes());
            std::thread::sleep(Duration::from_millis(300));
        }
        if face.is_link {
            // Each is refused, and each refusal is an answer.
            let mut task = n.to_le_bytes().to_vec();
            task.extend_from_slice(&[250, 0, 0, 0]);
            task.extend_from_slice(&[0; 4 + 8 + 12]);
            pen.push(SUBMIT, 0, &task);
        } else {
            let mut request = n.to_le_bytes().to_vec();
            request.extend_from_slice(&u64::MAX.to_le_bytes());
            request.extend_from_slice(&[7; 40]);
            pen.push(REQUEST, 0, &request);
        }
    }
}

/// A bit of everything, and then nonsense in every lane.
fn mix(face: &mut Face, luck: &mut SplitMix64) {
    for _ in 0..=luck.below(6) {
        let pen = &mut face.pens[luck.below(3) as usize];
        let word = luck.next_u64();
        match luck.below(4) {
            0 => pen.push(word as u8, (word >> 8) as u8, &word.to_le_bytes()),
            1 => pen.slot(luck.below(4), word, &word.to_le_bytes()),
            2 => face.heads.word(pages::HEADS + luck.below(48) as usize).store(word, Ordering::Relaxed),
            _ => pen.slot(
                0,
                control_word(pen.next + 1, word as u8, 56, luck.below(80) as u8, 3),
                &word.to_le_bytes(),
            ),
        }
    }
    // Whatever came of that: this is nonsense in every lane.
    for pen in &face.pens {
        for ahead in 0..16 {
            pen.slot(ahead, luck.next_u64() | 0x4000_0000, &[]);
        }
    }
}

/// What the process does: `attack target`, as hostile as `seed` makes it.
pub fn run(control: PathBuf, attack: &str, target: &str, seed: u64) -> i32 {
    let name = format!("intruder-{}", std::process::id());
    let said = babble(&control, &name, attack, seed).or_else(|| pester(&control, &name, attack, seed));
    if let Some(code) = said {
        return code;
    }
    let mut intruder = Intruder::attach(&control, &name, seed);
    if attack.starts_with("feed") {
        return overwrite(intruder, &control, attack, target);
    }
    if IDLE_ATTACKS.contains(&attack) {
        let line = intruder.connect(target);
        intruder.fidget(&line, attack);
        return UNNOTICED;
    }
    if attack == "complaint" {
        intruder.complain(target);
        return UNNOTICED;
    }
    if target == SUPERVISOR {
        let mut face = std::mem::replace(&mut intruder.face, no_face());
        intruder.harm(&mut face, attack);
        return intruder.await_judgement(&control, None);
    }
    let mut line = intruder.connect(target);
    let mut face = std::mem::replace(&mut line.face, no_face());
    intruder.harm(&mut face, attack);
    intruder.await_judgement(&control, Some((target, line)))
}

fn fresh_pens() -> [Pen; 3] {
    std::array::from_fn(|_| Pen { slots: Words::private(8), first: 0, capacity: 1, next: 0 })
}

fn no_face() -> Face {
    Face { pens: fresh_pens(), heads: Words::private(64), is_link: false }
}

/// A publisher whose overwriting ring is nonsense. `target` subscribes to the topic `noise`.
fn overwrite(mut intruder: Intruder, control: &Path, attack: &str, target: &str) -> i32 {
    let advertise = FromMember::Advertise { seq: 1, topic: "noise".to_owned() };
    intruder.talk.say(&advertise, &[]).expect("room");
    let (mut ring, mut number, mut line) = (None, None, None);
    while ring.is_none() || number.is_none() {
        match hear(&mut intruder.talk, PATIENCE).expect("not cut off yet") {
            (ToMember::Overwrite { topic, .. }, fds) => {
                number = Some(topic);
                ring = fds.into_iter().next().map(adopt);
            }
            (ToMember::Line { line: found, peer, .. }, fds) if peer == target => {
                let [_, _, _, bell, _]: [OwnedFd; 5] = fds.try_into().expect("five descriptors");
                line = Some((found, adopt(bell)));
            }
            _ => {}
        }
    }
    let (ring, number) =
        (ring.expect("just found").map(Access::Write).expect("ours"), number.expect("just found"));
    let (line, _bell) = line.expect("a line comes before its topic");
    let memory = LossyMemory::whole(ring.clone());
    let (capacity, tail) = (memory.capacity, memory.capacity as usize * 8);
    let pen = |position: u64, word: u64, payload: &[u8]| {
        Pen { slots: ring.clone(), first: 0, capacity, next: position }.slot(0, word, payload);
    };
    let mut record = number.to_le_bytes().to_vec();
    record.extend_from_slice(&[0xFF; 4 + 24]);
    match attack {
        // Random words everywhere, the tail included, again and again.
        "feed-noise" => {
            let ends = Instant::now() + Duration::from_millis(100);
            while Instant::now() < ends {
                for at in 0..=tail {
                    ring.word(at).store(intruder.luck.next_u64(), Ordering::Relaxed);
                }
            }
        }
        // Laps and laps ahead, at the very end of the numbers, and then one lost block after the other.
        "feed-end" => {
            let start = u64::MAX - 64;
            let lost = |position: u64| {
                let word = control_word(position.wrapping_add(1), TOPIC, record.len() as u8, 0, FLAG_BLOCK);
                pen(position, word, &record);
            };
            // Where the reader looks first comes last.
            ring.word(tail).store(start, Ordering::Release);
            (start - capacity..start).filter(|position| position % capacity != 0).for_each(lost);
            (start - capacity..start).filter(|position| position % capacity == 0).for_each(lost);
            std::thread::sleep(Duration::from_millis(600));
            for position in (0..2000u64).map(|n| start.wrapping_add(n)) {
                lost(position);
                ring.word(tail).store(position.wrapping_add(1), Ordering::Release);
                std::thread::sleep(Duration::from_micros(20));
            }
            pen(0, control_word(77, 0, BUSY, 0, 0), &[]);
            for at in 0..=tail {
                ring.word(at).store(intruder.luck.next_u64(), Ordering::Relaxed);
            }
        }
        other => panic!("no attack {other:?}"),
    }
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        match intruder.talk.hear().expect("the supervisor talks sense") {
            Heard::Closed => return is_barred(control),
            Heard::Message(ToMember::Closed { line: closed, .. }, _) if closed == line => return LINE_CLOSED,
            Heard::Message(..) => {}
            Heard::Nothing => {
                intruder.talk.wait(Duration::from_millis(20));
            }
        }
    }
    NOTHING_HAPPENED
}

/// Nonsense on the socket. `None`: `attack` is something else.
fn babble(control: &Path, name: &str, attack: &str, seed: u64) -> Option<i32> {
    let mut luck = SplitMix64::new(seed);
    let attached = || hello(control, name).expect("not barred yet").0;
    let closes = |mut talk: MemberTalk| {
        while hear(&mut talk, PATIENCE).is_some() {}
        is_barred(control)
    };
    Some(match attack {
        "no-json" => {
            let talk = attached();
            let bytes: Vec<u8> = (0..1 + luck.below(5000)).map(|_| luck.next_u64() as u8).collect();
            raw(&talk, &bytes, &[]).expect("room");
            closes(talk)
        }
        "deep" => {
            let talk = attached();
            raw(&talk, "[".repeat(60_000).as_bytes(), &[]).expect("room");
            closes(talk)
        }
        "long" => {
            let talk = attached();
            let mut bytes = b"{\"say\":\"connect\",\"seq\":1,\"peer\":\"".to_vec();
            bytes.resize(70_000, b'x');
            raw(&talk, &bytes, &[]).expect("room");
            closes(talk)
        }
        "unknown" => {
            let talk = attached();
            raw(&talk, b"{\"say\":\"become_root\",\"seq\":1}", &[]).expect("room");
            closes(talk)
        }
        "twice" => {
            let talk = attached();
            talk.say(&FromMember::Hello { version: VERSION, name: None }, &[]).expect("room");
            closes(talk)
        }
        "early" => {
            let talk = knock(control);
            talk.say(&FromMember::Connect { seq: 1, peer: "compute-0".to_owned() }, &[]).expect("room");
            closes(talk)
        }
        // A complaint about a line that leads from and to others.
        "foreign" => {
            let mut intruder = Intruder::attach(control, name, seed);
            let own = intruder.connect("compute-0").number;
            for line in 0..own {
                let poisoned = FromMember::Poisoned { line, reason: "I do not like it".to_owned() };
                // The first one may have been one too many.
                let _ = intruder.talk.say(&poisoned, &[]);
            }
            closes(intruder.talk)
        }
        _ => return None,
    })
}

fn raw(talk: &MemberTalk, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let socket = talk.as_fd().try_clone_to_owned().expect("a copy");
    socket::send(&socket, bytes, fds)
}

/// What is a nuisance and no nonsense: it ends with everybody as they were. `None`: `attack` is something else.
fn pester(control: &Path, name: &str, attack: &str, seed: u64) -> Option<i32> {
    let attached = || hello(control, name).expect("not barred yet").0;
    match attack {
        "slander" => slander(control, name, seed),
        "gifts" => gifts(attached()),
        "flood" => flood(&attached(), &mut SplitMix64::new(seed)),
        "never" => return Some(never(attached())),
        "crowd" => crowd(control),
        "churn" => churn(control, name, seed),
        _ => return None,
    }
    Some(UNNOTICED)
}

/// Complaints about an agent that did nothing, from several connections of one process.
fn slander(control: &Path, name: &str, seed: u64) {
    let mut connections = Vec::new();
    for connection in 0..6 {
        let mut intruder = Intruder::attach(control, &format!("{name}-{connection}"), seed);
        for peer in ["compute-0", "gateway", "listener"] {
            intruder.complain(peer);
        }
        connections.push(intruder);
    }
}

/// Many words with many descriptors, none of which anybody wants.
fn gifts(mut talk: MemberTalk) {
    let files: Vec<OwnedFd> = (0..16).map(|_| talk.as_fd().try_clone_to_owned().expect("a copy")).collect();
    let fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    for seq in 0..500 {
        let word = FromMember::Unsubscribe { seq, topic: "none".to_owned() };
        let bytes = serde_json::to_vec(&word).expect("JSON");
        if raw(&talk, &bytes, &fds).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        while let Ok(Heard::Message(..)) = talk.hear() {}
    }
}

/// Questions without end, and no answer is ever read.
fn flood(talk: &MemberTalk, luck: &mut SplitMix64) {
    let ends = Instant::now() + Duration::from_millis(500);
    let mut seq = 0;
    while Instant::now() < ends {
        seq += 1;
        let peer = ["nobody", "compute-0", "listener"][luck.below(3) as usize].to_owned();
        if talk.say(&FromMember::Connect { seq, peer }, &[]).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A publisher would wait for this subscriber for ever.
fn never(mut talk: MemberTalk) -> i32 {
    let rule = Rule::Block { within_ms: u64::MAX };
    let word = FromMember::Subscribe { seq: 5, topic: "news".to_owned(), rule };
    talk.say(&word, &[]).expect("room");
    loop {
        match hear(&mut talk, PATIENCE).expect("no reason to cut it off") {
            (ToMember::Refused { seq: 5, why }, _) => {
                assert!(why.contains("waits at most"), "{why}");
                return UNNOTICED;
            }
            (ToMember::Topic { .. } | ToMember::Done { .. }, _) => return NOTHING_HAPPENED,
            _ => {}
        }
    }
}

/// A thousand connections that say nothing, and as many that hang up at once.
fn crowd(control: &Path) {
    let path = control.with_file_name("attach.sock");
    let mut kept = Vec::new();
    for number in 0..1000 {
        // Full is an answer, too.
        let Ok(connection) = socket::connect(&path, SocketType::SEQPACKET) else { continue };
        if number % 2 == 0 {
            kept.push(connection);
        }
    }
    assert!(!kept.is_empty(), "nobody was let in");
    std::thread::sleep(Duration::from_millis(200));
}

/// In and out.
fn churn(control: &Path, name: &str, seed: u64) {
    for round in 0..40 {
        let mut intruder = Intruder::attach(control, &format!("{name}-{round}"), seed ^ round);
        let _line = intruder.connect("compute-0");
    }
}

/// Another descriptor of the same object, with every right that the system gives this process.
pub fn reopened(object: &SharedObject) -> rustix::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", object.as_fd().as_raw_fd());
    rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, rustix::fs::Mode::empty())
}
