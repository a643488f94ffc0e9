//! Pins the calling thread to one core.

/// Pins the calling thread (and what it spawns later) to `core`. False when the kernel refuses,
/// for instance because the core is offline or outside this process's cpuset.
pub fn pin_current_thread(core: usize) -> bool {
    core_affinity::set_for_current(core_affinity::CoreId { id: core })
}

/// The core on which the caller runs at this moment, for reports; it may have changed by the time it is read.
pub fn current_core() -> usize {
    rustix::thread::sched_getcpu()
}

/// The cores that a thread may run on, to be given back later.
#[derive(Clone, Copy)]
pub struct CoreMask(rustix::thread::CpuSet);

impl CoreMask {
    /// These cores. One that no mask has room for is left out.
    pub fn of(cores: impl IntoIterator<Item = usize>) -> Self {
        let mut mask = rustix::thread::CpuSet::new();
        cores
            .into_iter()
            .filter(|&core| core < rustix::thread::CpuSet::MAX_CPU)
            .for_each(|core| mask.set(core));
        Self(mask)
    }

    /// Those of the calling thread; `None` when the kernel does not say.
    pub fn current() -> Option<Self> {
        rustix::thread::sched_getaffinity(None).ok().map(Self)
    }

    /// Lets the calling thread, and those that it starts from now on, run on them.
    pub fn apply(&self) {
        // Refused only when none of them is there; then the thread stays where it is.
        let _ = rustix::thread::sched_setaffinity(None, &self.0);
    }

    /// Has the main thread of process `pid` run on them: one that sleeps wakes up there, and one that waits for its turn
    /// elsewhere comes over at once. False when the kernel refuses.
    pub fn apply_to(&self, pid: u32) -> bool {
        let pid = rustix::process::Pid::from_raw(pid as i32);
        pid.is_some_and(|pid| rustix::thread::sched_setaffinity(Some(pid), &self.0).is_ok())
    }
}

impl std::fmt::Debug for CoreMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CoreMask({} cores)", self.0.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_runs_where_it_was_told() {
        let before = CoreMask::current().expect("the kernel says");
        let core = core_affinity::get_core_ids().expect("the host says which cores there are")[0].id;
        std::thread::spawn(move || {
            assert!(pin_current_thread(core));
            assert_eq!(current_core(), core);
            assert!(!pin_current_thread(1023), "a core that no test host has");
            assert_eq!(CoreMask::current().map(|mask| mask.0.count()), Some(1));
            before.apply();
            assert_eq!(CoreMask::current().map(|mask| mask.0), Some(before.0));
            // A thread is a process to the scheduler.
            let thread = rustix::thread::gettid().as_raw_nonzero().get() as u32;
            assert!(CoreMask::of([core]).apply_to(thread));
            assert!(!CoreMask::of([1 << 20]).apply_to(thread) && !CoreMask::of([core]).apply_to(0));
            assert_eq!(CoreMask::current().map(|mask| mask.0.count()), Some(1));
        })
        .join()
        .expect("the pinned thread ends well");
    }
}
