//! The board: what publishing and reading the latest values costs, alone and beside a busy writer.

mod support;

use ai_swarm::base::ids::AgentSlot;
use ai_swarm::os::affinity::pin_current_thread;
use ai_swarm::shm::board::{Board, CLASSES, Cost, Host, KERNELS};
use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};

const SLOTS: usize = 40;

fn host(number: f64) -> Host {
    Host { sampled_ns: number, cpu_percent: number, load_1m: number, ..Host::UNKNOWN }
}

fn board(c: &mut Criterion) {
    let board = Board::create(&format!("ai_swarm-bench-{}", std::process::id()), SLOTS).expect("a board");
    let mut group = c.benchmark_group("board");

    board.publish_host(&host(12.5));
    assert_eq!(board.host().map(|host| (host.sampled_ns, host.load_1m)), Some((12.5, 12.5)));
    group.bench_function("publish_cell", |b| b.iter(|| board.publish_host(black_box(&host(1.0)))));
    group.bench_function("read_cell", |b| b.iter(|| black_box(&board).host()));

    let slot = AgentSlot(3);
    board.beat(slot);
    assert_eq!(board.life(slot).map(|life| life.beat), Some(1));
    group.bench_function("beat", |b| b.iter(|| board.beat(black_box(slot))));
    group.bench_function("read_life", |b| b.iter(|| board.life(black_box(slot))));

    // Every cell of the table another cost, so that the looks go all over it.
    let cost = |kernel: usize, class: usize, slot: usize| Cost {
        mean_ns: (kernel * 1000 + class * 10 + slot) as f32,
        samples: 5,
    };
    for (kernel, class, slot) in cells() {
        let slot_id = AgentSlot(slot as u16);
        board.publish_cost(kernel as u8, class as u8, Some(slot_id), cost(kernel, class, slot));
    }
    for (kernel, class, slot) in cells() {
        let found = board.cost(kernel as u8, class as u8, Some(AgentSlot(slot as u16)));
        assert_eq!(found, Some(cost(kernel, class, slot)));
    }
    group.bench_function("cost_hot", |b| b.iter(|| board.cost(black_box(3), black_box(20), Some(slot))));
    let mut at = cells().cycle();
    group.bench_function("cost_all_over", |b| {
        b.iter(|| {
            let (kernel, class, slot) = at.next().expect("a cycle");
            black_box(&board).cost(kernel as u8, class as u8, Some(AgentSlot(slot as u16)))
        });
    });

    match support::cores() {
        (_, Some(core)) => {
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    assert!(pin_current_thread(core), "cannot pin to core {core}");
                    let mut number = 0.0;
                    while !stop.load(Ordering::Relaxed) {
                        number += 1.0;
                        board.publish_host(&host(number));
                        // A busy writer, not one that never pauses: a thousand times as often as the real one.
                        (0..20_000).for_each(|_| std::hint::spin_loop());
                    }
                });
                group.bench_function("read_cell_beside_writer", |b| {
                    b.iter(|| {
                        let host = board.host().expect("the writer lives");
                        assert_eq!(host.sampled_ns.to_bits(), host.load_1m.to_bits(), "a cell is never torn");
                    });
                });
                stop.store(true, Ordering::Relaxed);
            });
        }
        (_, None) => eprintln!("read_cell_beside_writer: skipped, this host has one core"),
    }
    group.finish();
}

/// Every place of the cost table.
fn cells() -> impl Iterator<Item = (usize, usize, usize)> + Clone {
    (1..KERNELS).flat_map(|kernel| {
        (0..CLASSES).flat_map(move |class| (0..SLOTS).map(move |slot| (kernel, class, slot)))
    })
}

criterion_group! { name = all; config = support::criterion(); targets = board }
criterion_main!(all);
