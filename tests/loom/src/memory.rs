//! Words in private memory of loom's, with the face of `src/shm/memory.rs`.

use crate::base::sync::is_fenceless;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Condvar, Mutex};
use std::cell::RefCell;
use std::io;
use std::sync::Arc;

/// A line that was streamed: into which words, from which on, and what.
type Streamed = (Arc<Vec<AtomicU64>>, usize, [u64; 8]);

loom::thread_local! {
    /// Lines that the modelled thread has streamed and that nobody sees yet. They are lost when it dies.
    static ON_THEIR_WAY: RefCell<Vec<Streamed>> = RefCell::new(Vec::new());
}

/// 64-bit words, each with a queue of sleepers of its own where somebody sleeps.
#[derive(Debug)]
pub struct Words {
    words: Arc<Vec<AtomicU64>>,
    sleepers: Sleepers,
}

/// Who sleeps on a word of this memory.
#[derive(Debug)]
pub struct Sleepers {
    pub(crate) bucket: Mutex<()>,
    pub(crate) woken: Condvar,
}

/// What a futex call names.
#[derive(Debug)]
pub struct Half<'a> {
    pub(crate) word: &'a AtomicU64,
    pub(crate) sleepers: &'a Sleepers,
}

impl Words {
    /// So many zeros. Call inside a model.
    pub fn private(words: usize) -> Arc<Self> {
        let sleepers = Sleepers { bucket: Mutex::new(()), woken: Condvar::new() };
        Arc::new(Self { words: Arc::new((0..words).map(|_| AtomicU64::new(0)).collect()), sleepers })
    }

    /// Number of words.
    #[expect(clippy::len_without_is_empty, reason = "the sources ask for the length only")]
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// The word at `index`.
    pub fn word(&self, index: usize) -> &AtomicU64 {
        &self.words[index]
    }

    /// Eight words from `index` on.
    pub fn line(&self, index: usize) -> &[AtomicU64; 8] {
        self.words[index..].first_chunk().expect("a line inside the memory")
    }

    /// Eight words from `index` on. Every other line is there as soon as loom lets others see it, the rest only when the stream
    /// [ends](end_stream), whatever was stored in between: both are what a processor may do.
    pub fn stream_line(&self, index: usize, words: [u64; 8]) {
        let line = (self.words.clone(), index, words);
        if (index / words.len()).is_multiple_of(2) {
            arrive(line);
        } else {
            ON_THEIR_WAY.with(|lines| lines.borrow_mut().push(line));
        }
    }

    /// The word at `index`, to be named in futex calls. One sleeper per memory.
    pub fn half(&self, index: usize) -> Half<'_> {
        Half { word: &self.words[index], sleepers: &self.sleepers }
    }
}

fn arrive((words, index, line): Streamed) {
    words[index..].iter().zip(line).for_each(|(to, word)| to.store(word, Ordering::Relaxed));
}

/// All that was streamed before goes before what is stored after; not in a thread that does without fences.
pub fn end_stream() {
    if !is_fenceless() {
        ON_THEIR_WAY.with(|lines| lines.take().into_iter().for_each(arrive));
    }
}

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// Stands for what models do not have: an object that could be handed to another process.
#[derive(Debug)]
pub enum SharedObject {}

impl SharedObject {
    /// There is none.
    pub fn create_sparse(_label: &str, _bytes: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Never called.
    pub fn bytes(&self) -> usize {
        match *self {}
    }
}

/// The owner's side of an arena's memory: private, and there from the start.
#[derive(Debug)]
pub struct ArenaMemory(Arc<Words>);

/// A reader's side.
#[derive(Debug)]
pub struct ArenaWindow(Arc<Words>);

impl ArenaMemory {
    /// Never called.
    pub fn adopt(object: SharedObject) -> io::Result<Self> {
        match object {}
    }

    /// Memory of `bytes` bytes.
    pub fn private(bytes: usize, _there_is: usize) -> Self {
        Self(Words::private(bytes / 8))
    }

    /// None.
    pub fn object(&self) -> Option<&SharedObject> {
        None
    }

    /// A reader's side of the same memory.
    pub fn private_window(&self) -> Option<ArenaWindow> {
        Some(ArenaWindow(self.0.clone()))
    }

    /// All of it.
    pub fn bytes(&self) -> usize {
        self.0.len() * 8
    }

    /// All of it is there.
    pub fn commit(&self, _offset: usize, _bytes: usize) -> io::Result<()> {
        Ok(())
    }

    /// The word at `index`.
    pub fn word(&self, index: usize) -> &AtomicU64 {
        self.0.word(index)
    }

    /// Loom's words are no plain memory.
    pub fn start_of(&self, _offset: usize, _bytes: usize) -> *mut u8 {
        panic!("models write by words")
    }

    /// Writes `from`, whole words of it.
    pub fn write(&self, offset: usize, from: &[u8]) {
        let (words, rest) = from.as_chunks::<8>();
        assert!(rest.is_empty() && offset.is_multiple_of(8), "models write whole words");
        for (at, word) in words.iter().enumerate() {
            self.0.word(offset / 8 + at).store(u64::from_ne_bytes(*word), Ordering::Relaxed);
        }
    }
}

/// Never called: loom's words are no plain memory, so no model has any to stream into.
pub fn stream(whole: &mut [u8], line: &mut impl FnMut(usize) -> [u64; 8]) {
    let _ = (whole, line);
    unreachable!("no model streams");
}

impl ArenaWindow {
    /// The eight words from `index` on.
    pub fn line(&self, index: usize) -> &[AtomicU64; 8] {
        self.0.line(index)
    }

    /// Never called.
    pub fn open(object: SharedObject) -> io::Result<Self> {
        match object {}
    }

    /// All of it.
    pub fn bytes(&self) -> usize {
        self.0.len() * 8
    }

    /// There are no holes.
    pub fn filled_until(&self, _offset: usize) -> io::Result<usize> {
        Ok(self.bytes())
    }

    /// Nothing to do.
    pub fn prefault(&self, _offset: usize, _bytes: usize) {}

    /// The word at `index`.
    pub fn word(&self, index: usize) -> &AtomicU64 {
        self.0.word(index)
    }

    /// Fills `into`, whole words of it.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let (words, rest) = into.as_chunks_mut::<8>();
        assert!(rest.is_empty() && offset.is_multiple_of(8), "models read whole words");
        for (at, word) in words.iter_mut().enumerate() {
            *word = self.0.word(offset / 8 + at).load(Ordering::Relaxed).to_ne_bytes();
        }
    }

    /// Appends `bytes` bytes, whole words.
    pub fn append_to(&self, offset: usize, bytes: usize, into: &mut Vec<u8>) {
        let start = into.len();
        into.resize(start + bytes, 0);
        self.read(offset, &mut into[start..]);
    }

    /// Loom's words are no plain memory.
    pub fn start_of(&self, _offset: usize, _bytes: usize) -> *const u8 {
        panic!("models read by words")
    }
}
