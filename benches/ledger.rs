//! The ledger: what a task costs the supervisor, apart from its way through the channels.

mod support;

use ai_swarm::base::clock::Nanos;
use ai_swarm::base::ids::{AgentSlot, Incarnation, TaskId};
use ai_swarm::kernels::KernelId;
use ai_swarm::tasks::ledger::{LedgerLimits, Transition};
use ai_swarm::tasks::{Lease, Ledger, Priority, TaskSpec, TaskState};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const LEASE: Lease = Lease { slot: AgentSlot(0), incarnation: Incarnation(1) };
/// More than the ledger remembers, so that forgetting is part of what is measured.
const FILLED: u64 = 250_000;
const BATCH: usize = 256;

fn noop(priority: Priority) -> TaskSpec {
    TaskSpec { kernel: KernelId::Noop.code(), kernel_name: "noop", priority, ..TaskSpec::default() }
}

/// Takes the next task and ends it well.
fn finish_next(ledger: &mut Ledger, now: &mut Nanos) -> (TaskId, Priority) {
    now.0 += 100;
    let task = ledger.peek(*now).expect("a task is queued");
    let (id, priority) = (task.id, task.spec.priority);
    let attempt = ledger.dispatch(id, LEASE, *now);
    ledger.check_holder(id, attempt, LEASE.slot, LEASE.incarnation).expect("the holder");
    assert_eq!(ledger.on_success(id, None, *now), Transition::Ended(TaskState::Succeeded));
    (id, priority)
}

/// A ledger as it is after some minutes: full of ended tasks.
fn used_ledger(now: &mut Nanos) -> Ledger {
    let mut ledger = Ledger::new(LedgerLimits::default());
    let mut ended = Vec::new();
    for _ in 0..FILLED {
        let id = ledger.submit(noop(Priority::Normal), *now).expect("accepted");
        assert_eq!(finish_next(&mut ledger, now).0, id);
        ledger.take_ended(&mut ended);
        ended.clear();
    }
    let counts = ledger.counts();
    assert_eq!((counts.succeeded, counts.duplicated, counts.open()), (FILLED, 0, 0));
    ledger
}

fn ledger(c: &mut Criterion) {
    let mut group = c.benchmark_group("ledger");
    let mut now = Nanos(1);
    let mut ended = Vec::new();

    let mut ledger = used_ledger(&mut now);
    group.throughput(Throughput::Elements(1));
    group.bench_function("submit_dispatch_done", |b| {
        b.iter(|| {
            ledger.submit(noop(Priority::Normal), now).expect("accepted");
            finish_next(&mut ledger, &mut now);
            ledger.take_ended(&mut ended);
            ended.clear();
        });
    });

    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("batch_256", |b| {
        b.iter(|| {
            let specs = (0..BATCH).map(|_| noop(Priority::Normal)).collect();
            assert!(ledger.submit_batch(specs, now).1.iter().all(Result::is_ok));
            (0..BATCH).for_each(|_| {
                finish_next(&mut ledger, &mut now);
            });
            ledger.take_ended(&mut ended);
            ended.clear();
        });
    });

    // Three classes queued together: the most urgent leave first.
    let mut mixed = |check: bool| {
        for at in 0..BATCH {
            ledger.submit(noop(Priority::ALL[at % 3]), now).expect("accepted");
        }
        let mut last = Priority::High;
        for _ in 0..BATCH {
            let (_, priority) = finish_next(&mut ledger, &mut now);
            assert!(!check || priority >= last, "{priority:?} after {last:?}");
            last = priority;
        }
        ledger.take_ended(&mut ended);
        ended.clear();
    };
    mixed(true);
    group.bench_function("priorities_256", |b| b.iter(|| mixed(false)));

    // Many wait: the time per task must not grow with them.
    for waiting in [0_u64, 100_000] {
        for _ in 0..waiting {
            ledger.submit(noop(Priority::Normal), now).expect("accepted");
        }
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("submit_dispatch_done_{waiting}_waiting"), |b| {
            b.iter(|| {
                ledger.submit(noop(Priority::Normal), now).expect("accepted");
                finish_next(&mut ledger, &mut now);
                ledger.take_ended(&mut ended);
                ended.clear();
            });
        });
        assert_eq!(ledger.queued() as u64, waiting);
    }
    assert_eq!(ledger.counts().duplicated, 0);
    group.finish();
}

criterion_group! { name = all; config = support::criterion(); targets = ledger }
criterion_main!(all);
