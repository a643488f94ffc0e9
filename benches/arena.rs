//! The arena: what it costs to take, hand over and give back a block, and to write and read a large one.

mod support;

use ai_swarm::shm::SharedObject;
use ai_swarm::shm::arena::{Arena, ArenaError, ArenaView};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::os::fd::AsFd as _;

const LIMIT: usize = 16 << 20;
const LARGE: usize = 1 << 20;
const READER: u16 = 3;

/// Both sides of one arena, its memory there already.
fn pair() -> (Arena, ArenaView) {
    let mut arena = Arena::create(LIMIT, 1).expect("memory");
    arena.reserve(LIMIT).expect("memory");
    let object = arena.object();
    let fd = object.as_fd().try_clone_to_owned().expect("a second descriptor");
    let object = SharedObject::adopt(fd, object.bytes()).expect("sealed");
    let view = ArenaView::new(object).expect("a mapping");
    (arena, view)
}

fn word(number: usize) -> u64 {
    number as u64 * 0x9E37_79B9
}

fn blocks(c: &mut Criterion) {
    let mut group = c.benchmark_group("arena");
    for (name, bytes) in
        [("loan_publish_open_release_4_kib", 4096), ("loan_publish_open_release_1_mib", LARGE)]
    {
        let (mut arena, mut view) = pair();
        let mut round = |check: bool| {
            let mut loan = arena.loan(bytes).expect("room");
            if check {
                arena.bytes_mut(&mut loan).fill(7);
            }
            let descriptor = arena.publish(loan, &[READER]);
            let block = view.open(black_box(&descriptor)).expect("a sound descriptor");
            if check {
                let mut copy = Vec::new();
                block.copy_to(&mut copy);
                assert_eq!(copy, vec![7; bytes], "what is read is what was written");
            }
            let free = arena.release(READER, descriptor.block, descriptor.generation);
            assert!(free.expect("a sound release"), "nobody else has it");
        };
        round(true);
        group.bench_function(name, |b| b.iter(|| round(false)));
        assert_eq!(arena.usage().blocks_out, 0, "all came back");
    }

    let (mut arena, _view) = pair();
    let _all = arena.loan(LIMIT / 2).expect("room");
    assert!(matches!(arena.loan(LIMIT), Err(ArenaError::TooLarge { .. } | ArenaError::Full { .. })));
    group.bench_function("loan_full", |b| b.iter(|| arena.loan(black_box(LIMIT - 65_536)).is_err()));
    group.finish();
}

fn bytes(c: &mut Criterion) {
    let mut group = c.benchmark_group("arena_1_mib");
    group.throughput(Throughput::Bytes(LARGE as u64));
    let (mut arena, mut view) = pair();
    let mut loan = arena.loan(LARGE).expect("room");
    let plain = |bytes: &mut [u8]| {
        for (number, to) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *to = word(number).to_le_bytes();
        }
    };
    group.bench_function("fill", |b| b.iter(|| plain(black_box(arena.bytes_mut(&mut loan)))));
    let line = |line: usize| std::array::from_fn(|at| word(line * 8 + at));
    group.bench_function("fill_past_caches", |b| b.iter(|| arena.stream(black_box(&mut loan), line)));

    arena.stream(&mut loan, line);
    let descriptor = arena.publish(loan, &[READER]);
    let block = view.open(&descriptor).expect("a sound descriptor");
    let (mut copy, mut seen) = (Vec::new(), 0);
    block.copy_to(&mut copy);
    block.for_each_line(|line| {
        assert_eq!(line[7], word(seen * 8 + 7), "line {seen}");
        seen += 1;
    });
    let expected: Vec<u8> = (0..LARGE / 8).flat_map(|number| word(number).to_le_bytes()).collect();
    assert!(copy == expected && seen == LARGE / 64, "what is read is what was written");
    group.bench_function("copy_out", |b| b.iter(|| block.copy_to(black_box(&mut copy))));
    group.bench_function("read_in_place", |b| {
        b.iter(|| {
            let mut sums = [0u64; 8];
            block.for_each_line(|line| {
                for (sum, word) in sums.iter_mut().zip(line) {
                    *sum = sum.wrapping_add(*word);
                }
            });
            sums
        });
    });
    group.finish();
}

criterion_group! { name = all; config = support::criterion(); targets = blocks, bytes }
criterion_main!(all);
