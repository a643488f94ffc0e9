//! Both directions between two processes, with large payloads: what links and lines have in common.
//!
//! A payload of up to [`INLINE_MAX`] bytes travels in slots. A longer one is written into a block of the sender's
//! arena; the slots carry its descriptor, and the receiver gives the block back when it has read it.

use super::envelope::Encode;
use super::lanes::{INLINE_MAX, Lane, LaneReceiver, LaneSender};
use super::store::{BadBlock, RELEASE, Returns, Shelf, Store, StoreError};
use crate::shm::arena::{ArenaError, BadRelease, Descriptor};
use crate::shm::ring::{Corrupt, FLAG_BLOCK, Message, PushError};

/// Messages that only give blocks back, handled in one call.
const RELEASES_PER_CALL: usize = 64;

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No room now; try again after the receiver took or gave back some.
    #[error("no room: {0}")]
    Full(&'static str),
    /// It can never be sent.
    #[error("{0}")]
    TooLong(String),
    /// The receiver wrote nonsense.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// The arena cannot be used.
    #[error(transparent)]
    Store(StoreError),
}

impl From<PushError> for SendError {
    fn from(error: PushError) -> Self {
        match error {
            PushError::Full => SendError::Full("the lane is full"),
            PushError::Corrupt(corrupt) => SendError::Corrupt(corrupt),
            PushError::TooLong { .. } => SendError::TooLong(error.to_string()),
        }
    }
}

impl From<StoreError> for SendError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Arena(ArenaError::Full { .. }) => SendError::Full("the arena is full"),
            StoreError::Arena(ArenaError::TooLarge { .. }) => SendError::TooLong(error.to_string()),
            other => SendError::Store(other),
        }
    }
}

/// The other side wrote something that no correct process writes. The channel is of no further use.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// In its slots.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// In a descriptor or in a block's header.
    #[error(transparent)]
    Block(#[from] BadBlock),
    /// It gives back what it does not have.
    #[error(transparent)]
    Release(#[from] BadRelease),
}

/// Both directions to one peer.
#[derive(Debug)]
pub struct Wire {
    pub(super) outbox: LaneSender,
    pub(super) inbox: LaneReceiver,
    pub(super) store: Store,
    /// The peer's number among the readers of our arena.
    pub(super) reader: u16,
    pub(super) shelf: Shelf,
    pub(super) returns: Returns,
    /// Messages sent since [`take_unrung`](Self::take_unrung) was last called.
    unrung: u32,
    buffer: Vec<u8>,
}

impl Wire {
    pub(super) fn new(
        outbox: LaneSender,
        inbox: LaneReceiver,
        store: Store,
        reader: u16,
        shelf: Shelf,
    ) -> Self {
        Self {
            outbox,
            inbox,
            store,
            reader,
            shelf,
            returns: Returns::default(),
            unrung: 0,
            buffer: Vec::with_capacity(4096),
        }
    }

    #[inline]
    pub(super) fn send<M: Encode>(&mut self, lane: Lane, message: &M) -> Result<(), SendError> {
        self.unrung += 1;
        let kind = message.encode(&mut self.buffer);
        if self.buffer.len() <= INLINE_MAX {
            return Ok(self.outbox.try_push(lane, kind, &self.buffer)?);
        }
        self.send_block(lane, kind)
    }

    #[cold]
    fn send_block(&mut self, lane: Lane, kind: u8) -> Result<(), SendError> {
        let descriptor = self.store.put(&self.buffer, &[self.reader])?;
        let sent = self.send_descriptor(lane, kind, &[], &descriptor);
        if sent.is_err() {
            self.store.withdraw(&descriptor, self.reader);
        }
        sent
    }

    /// Sends bytes as they are.
    #[inline]
    pub(super) fn send_bytes(
        &mut self,
        lane: Lane,
        kind: u8,
        head: &[u8],
        body: &[u8],
    ) -> Result<(), SendError> {
        if head.is_empty() && body.len() <= INLINE_MAX {
            return Ok(self.outbox.try_push(lane, kind, body)?);
        }
        if head.len() + body.len() <= INLINE_MAX {
            self.buffer.clear();
            self.buffer.extend_from_slice(head);
            self.buffer.extend_from_slice(body);
            return Ok(self.outbox.try_push(lane, kind, &self.buffer)?);
        }
        let descriptor = self.store.put(body, &[self.reader])?;
        let sent = self.send_descriptor(lane, kind, head, &descriptor);
        if sent.is_err() {
            self.store.withdraw(&descriptor, self.reader);
        }
        sent
    }

    /// Sends as many of these as there is room for, and says how many.
    #[inline]
    pub(super) fn send_batch(
        &mut self,
        lane: Lane,
        kind: u8,
        payloads: &[impl AsRef<[u8]>],
    ) -> Result<usize, SendError> {
        Ok(self.outbox.try_push_batch(lane, kind, payloads)?)
    }

    /// Sends where a block lies that was published for this peer.
    pub(super) fn send_descriptor(
        &mut self,
        lane: Lane,
        kind: u8,
        head: &[u8],
        descriptor: &Descriptor,
    ) -> Result<(), SendError> {
        self.buffer.clear();
        self.buffer.extend_from_slice(head);
        self.buffer.extend_from_slice(&descriptor.to_bytes());
        self.outbox.try_push_with(lane, kind, FLAG_BLOCK, &self.buffer)?;
        self.outbox.count_block(lane, descriptor.len);
        Ok(())
    }

    /// The next message; a block that it describes is left where it lies.
    #[inline]
    pub(super) fn receive_raw(&mut self, message: &mut Message) -> Result<Option<Lane>, ReceiveError> {
        for _ in 0..RELEASES_PER_CALL {
            let Some(lane) = self.inbox.try_pop(message)? else { return Ok(None) };
            if message.kind != RELEASE {
                return Ok(Some(lane));
            }
            self.store.on_release(self.reader, message.payload())?;
        }
        Ok(None)
    }

    #[inline]
    pub(super) fn receive(&mut self, message: &mut Message) -> Result<Option<Lane>, ReceiveError> {
        for _ in 0..RELEASES_PER_CALL {
            let Some(lane) = self.inbox.try_pop(message)? else { return Ok(None) };
            if self.complete(lane, message)? {
                return Ok(Some(lane));
            }
        }
        Ok(None)
    }

    /// The next control message that does not only give blocks back; one with a block leaves it where it lies.
    pub(super) fn receive_control_raw(&mut self, message: &mut Message) -> Result<bool, ReceiveError> {
        for _ in 0..RELEASES_PER_CALL {
            if !self.inbox.try_pop_control(message)? {
                return Ok(false);
            }
            if message.kind != RELEASE {
                return Ok(true);
            }
            self.store.on_release(self.reader, message.payload())?;
        }
        Ok(false)
    }

    pub(super) fn receive_control(&mut self, message: &mut Message) -> Result<bool, ReceiveError> {
        for _ in 0..RELEASES_PER_CALL {
            if !self.inbox.try_pop_control(message)? {
                return Ok(false);
            }
            if self.complete(Lane::Control, message)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Handles what only concerns blocks; fetches a block. False when nothing is left for the caller.
    #[inline]
    fn complete(&mut self, lane: Lane, message: &mut Message) -> Result<bool, ReceiveError> {
        if message.kind == RELEASE {
            self.store.on_release(self.reader, message.payload())?;
            return Ok(false);
        }
        if message.flags & FLAG_BLOCK != 0 {
            let bytes = self.shelf.fetch(message, &mut self.returns)?;
            self.inbox.count_block(lane, bytes);
        }
        Ok(true)
    }

    /// Sends back the blocks that were read, as far as there is room.
    pub(super) fn give_back(&mut self) -> Result<(), PushError> {
        if self.returns.is_empty() {
            return Ok(());
        }
        self.unrung += 1;
        self.returns.flush(&mut self.outbox)
    }

    /// Whether anything was sent since the last call: without, nobody needs to be woken.
    pub(super) fn take_unrung(&mut self) -> bool {
        std::mem::take(&mut self.unrung) > 0
    }
}
