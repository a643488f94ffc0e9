//! The balancer: one decision and one lesson, among few and many agents of several backends. No policy may allocate in
//! either, which is checked first.

#![allow(unsafe_code, reason = "counting allocations takes an allocator, and its trait is unsafe")]

mod support;

use ai_swarm::balancer::simulator::Scenario;
use ai_swarm::balancer::{Learned, POLICIES, placer};
use ai_swarm::base::ids::AgentSlot;
use ai_swarm::tasks::{Ask, Candidate, Finished, Placer};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

/// The system's allocator, which counts for each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came; counting touches no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn candidates(agents: u16) -> Vec<Candidate> {
    let candidate = |slot: u16| Candidate {
        slot: AgentSlot(slot),
        backend: if slot + 2 < agents { 0 } else { (slot + 3 - agents) as u8 },
        room: true,
        in_flight: 1,
        backlog_ns: 1000.0 * f64::from(slot % 7),
        expected_ns: Some(5000.0),
    };
    (0..agents).map(candidate).collect()
}

fn ask(turn: u64) -> Ask {
    let now_ns = turn * 100;
    Ask { kernel: (turn % 6) as u8, log2_size: 10.0 + (turn % 10) as f32, queued_ns: now_ns, now_ns }
}

fn calibrated() -> Learned {
    let world = Scenario::named("steady_070").expect("listed").world(1, 5000);
    Learned::new(1).with_model(world.calibrated(1))
}

/// One lesson from a decision.
fn lesson(ask: &Ask, slot: AgentSlot, backend: u8, service_ns: f64) -> Finished {
    let Ask { kernel, log2_size, now_ns, .. } = *ask;
    Finished {
        kernel,
        log2_size,
        slot,
        backend,
        service_ns,
        total_ns: 2.0 * service_ns,
        overhead_ns: None,
        now_ns,
    }
}

fn check_that_nothing_is_allocated(mut policy: Box<dyn Placer>) {
    let candidates = candidates(64);
    let before = ALLOCATIONS.get();
    let mut placed = 0;
    for turn in 0..20_000 {
        let ask = ask(turn);
        if turn % 4 == 0 {
            policy.begin(ask.now_ns);
        }
        policy.patience_ns(&ask);
        if let Some(placement) = policy.place(&ask, &candidates) {
            let Candidate { slot, backend, .. } = candidates[placement.at];
            policy.finished(&lesson(&ask, slot, backend, 4000.0 + (turn % 100) as f64));
            placed += 1;
        }
    }
    let allocations = ALLOCATIONS.get() - before;
    assert!(
        allocations == 0 && placed > 1000,
        "{}: {allocations} allocations, {placed} placed",
        policy.name()
    );
}

fn balancer(c: &mut Criterion) {
    for name in POLICIES {
        check_that_nothing_is_allocated(placer(name, "learned").expect("listed"));
    }
    check_that_nothing_is_allocated(Box::new(calibrated()));
    let mut group = c.benchmark_group("balancer");
    for agents in [16, 64] {
        let candidates = candidates(agents);
        for name in ["jsq", "ect"] {
            let mut policy = placer(name, "learned").expect("listed");
            let mut turn = 0;
            group.bench_function(BenchmarkId::new(format!("decide_{name}"), agents), |b| {
                b.iter(|| {
                    turn += 1;
                    policy.place(black_box(&ask(turn)), &candidates)
                });
            });
        }
        let mut policy = calibrated();
        let mut turn = 0;
        let trusted = (0..600).filter_map(|turn| policy.place(&ask(turn), &candidates)?.expected_ns).count();
        assert!(
            trusted > 500,
            "{trusted} of 600 decisions rest on the model; the others are the safe rule's"
        );
        group.bench_function(BenchmarkId::new("decide_learned", agents), |b| {
            b.iter(|| {
                turn += 1;
                policy.place(black_box(&ask(turn)), &candidates)
            });
        });
    }
    let mut policy = calibrated();
    let mut turn = 0;
    group.bench_function("learn", |b| {
        b.iter(|| {
            turn += 1;
            let slot = AgentSlot((turn % 10) as u16);
            policy.finished(black_box(&lesson(&ask(turn), slot, 0, 4000.0 + (turn % 100) as f64)));
        });
    });
    group.finish();
}

criterion_group! { name = all; config = support::criterion(); targets = balancer }
criterion_main!(all);
