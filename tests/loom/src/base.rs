//! `crate::base`, as far as the included sources import it.

#[path = "../../../src/base/clock.rs"]
pub mod clock;

/// Loom's atomics where the real module has those of the standard library.
pub mod sync {
    pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
    use std::cell::Cell;

    loom::thread_local! {
        static FENCELESS: Cell<bool> = Cell::new(false);
    }

    /// A fence, unless the calling modelled thread is to run [`without_fences`].
    pub fn fence(order: Ordering) {
        if !is_fenceless() {
            loom::sync::atomic::fence(order);
        }
    }

    /// Whether the calling modelled thread is to do without fences.
    pub(crate) fn is_fenceless() -> bool {
        FENCELESS.with(Cell::get)
    }

    /// Runs `act` with every fence of this modelled thread left out.
    pub fn without_fences<R>(act: impl FnOnce() -> R) -> R {
        FENCELESS.with(|fenceless| fenceless.set(true));
        let result = act();
        FENCELESS.with(|fenceless| fenceless.set(false));
        result
    }
}

/// Points at which a modelled thread dies, where the real module kills the process.
pub mod crash {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    /// What ends a modelled thread at a point.
    struct Died;

    loom::thread_local! {
        /// Points that the thread still passes before it dies.
        static LEFT: Cell<Option<usize>> = Cell::new(None);
    }

    /// A point, whatever its name.
    pub fn point(_name: &str) {
        let left = LEFT.with(Cell::get);
        LEFT.with(|cell| cell.set(left.and_then(|left| left.checked_sub(1))));
        if left == Some(0) {
            // No panic message: this is no failure. What it drops on its way is private to the thread.
            resume_unwind(Box::new(Died));
        }
    }

    /// Runs `act` on this modelled thread, which dies after `points` more points. `None` if it did.
    pub fn dying_after<R>(points: usize, act: impl FnOnce() -> R) -> Option<R> {
        LEFT.with(|cell| cell.set(Some(points)));
        let outcome = catch_unwind(AssertUnwindSafe(act));
        LEFT.with(|cell| cell.set(None));
        match outcome {
            Ok(result) => Some(result),
            Err(cause) if cause.is::<Died>() => None,
            Err(cause) => resume_unwind(cause),
        }
    }
}
