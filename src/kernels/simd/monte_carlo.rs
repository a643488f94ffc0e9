//! Monte Carlo pricing of a European option.
//!
//! Path numbers, not random streams, decide the random numbers: paths `2 p` and `2 p + 1` use Philox4x32-10
//! (Salmon, Moraes, Dror, Shaw, SC 2011) with counter `p` and the seed as key, then Box-Muller. Any cut of the
//! paths into blocks therefore sees the same paths, on every level; only the last bits of the sums differ.

use super::lanes::{BitLanes, Isa, Lanes, Lanes64};
use super::math::{exp_inside, ln_inside, sin_cos_turns};
use super::{Compensated, kernel};
use crate::kernels::reference::{EuropeanOption, OptionKind, PHILOX_M0, PHILOX_M1, PHILOX_W0, PHILOX_W1};

/// Vector steps summed before the sums go to the compensated totals.
const STEPS: usize = 256;

/// What every path needs, in all lanes.
#[derive(Clone, Copy)]
struct Model<L> {
    drift: L,
    spread: L,
    /// Discounted spot, with the sign of the payoff.
    spot: L,
    /// Discounted strike, with the sign of the payoff.
    strike: L,
}

impl<L: Lanes64> Model<L> {
    /// The discounted payoff for a standard normal number.
    #[inline(always)]
    fn payoff(self, normal: L) -> L {
        let x = normal.mul_add(self.spread, self.drift);
        // Beyond these ends the price is 0 or infinite as far as money goes, and `exp_inside` must not see it.
        let growth = exp_inside(x.min(x.same(709.0)).max(x.same(-708.0)));
        growth.mul_add(self.spot, self.strike).max(x.same(0.0))
    }
}

/// Two standard normal numbers for each pair number in `pair`.
#[inline(always)]
fn normals<L: Lanes64>(pair: L::Bits, keys: &[[L::Bits; 2]; 10]) -> (L, L) {
    let (m0, m1) = (pair.same(u64::from(PHILOX_M0)), pair.same(u64::from(PHILOX_M1)));
    let zero = pair.same(0);
    // `mul32` and the final masks look at the low halves only, so the high halves may hold rubbish.
    let (mut c0, mut c1, mut c2, mut c3) = (pair, pair.shr::<32>(), zero, zero);
    for key in keys {
        let (p0, p1) = (c0.mul32(m0), c2.mul32(m1));
        c0 = p1.shr::<32>().xor(c1).xor(key[0]);
        c2 = p0.shr::<32>().xor(c3).xor(key[1]);
        c1 = p1;
        c3 = p0;
    }
    let low = pair.same(0xFFFF_FFFF);
    let one = pair.same(1.0_f64.to_bits());
    let a = L::from_bits(c0.and(low).or(c1.shl::<32>()).shr::<12>().or(one));
    let b = L::from_bits(c2.and(low).or(c3.shl::<32>()).shr::<12>().or(one));
    // a and b are in [1, 2): 2 - a is in (0, 1], where the logarithm is finite.
    let radius = ln_inside(a.same(2.0).sub(a)).mul(a.same(-2.0)).max(a.same(0.0)).sqrt();
    let (sin, cos) = sin_cos_turns(b.sub(b.same(1.0)));
    (radius.mul(cos), radius.mul(sin))
}

/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn monte_carlo_body<I: Isa>(
    option: &EuropeanOption,
    seed: u64,
    first_path: u64,
    count: u64,
) -> (f64, f64) {
    if !option.is_valid() {
        return (f64::NAN, f64::NAN);
    }
    let n = I::F64::N;
    let sign = match option.kind {
        OptionKind::Call => 1.0,
        OptionKind::Put => -1.0,
    };
    let discount = sign * (-option.rate * option.years).exp();
    let drift = (option.rate - 0.5 * option.volatility * option.volatility) * option.years;
    let (mut total, mut total_sq) = (Compensated::default(), Compensated::default());
    // SAFETY: the processor has `I` by contract; loads and stores go to arrays of 8 or more elements, and no
    // type has more than 8 lanes of 64 bits.
    unsafe {
        let model = Model {
            drift: I::F64::splat(drift),
            spread: I::F64::splat(option.volatility * option.years.sqrt()),
            spot: I::F64::splat(discount * option.spot),
            strike: I::F64::splat(-discount * option.strike),
        };
        let mut keys = [[<I::F64 as Lanes64>::Bits::splat(0); 2]; 10];
        let (mut k0, mut k1) = (seed as u32, (seed >> 32) as u32);
        for key in &mut keys {
            *key = [
                <I::F64 as Lanes64>::Bits::splat(u64::from(k0)),
                <I::F64 as Lanes64>::Bits::splat(u64::from(k1)),
            ];
            (k0, k1) = (k0.wrapping_add(PHILOX_W0), k1.wrapping_add(PHILOX_W1));
        }
        let lane_numbers = [0_u64, 1, 2, 3, 4, 5, 6, 7];
        let lane_number = <I::F64 as Lanes64>::Bits::load(lane_numbers.as_ptr());

        // Slot `s` is path `first_path - odd + s`; wanted are slots `odd .. odd + count`. The end is a u128
        // because it may be 2^64.
        let odd = first_path & 1;
        let end = u128::from(odd) + u128::from(count);
        let (mut slot, mut pair) = (0_u128, first_path >> 1);
        let group = 2 * n as u128;
        while slot < end {
            let zero = I::F64::splat(0.0);
            let (mut sum_a, mut sum_b, mut sq_a, mut sq_b) = (zero, zero, zero, zero);
            let whole_from = u128::from(odd);
            let steps =
                if slot < whole_from { 0 } else { ((end - slot) / group).min(STEPS as u128) as usize };
            for _ in 0..steps {
                let base = <I::F64 as Lanes64>::Bits::splat(pair);
                let (za, zb) = normals::<I::F64>(base.add(lane_number), &keys);
                let (a, b) = (model.payoff(za), model.payoff(zb));
                sum_a = sum_a.add(a);
                sum_b = sum_b.add(b);
                sq_a = a.mul_add(a, sq_a);
                sq_b = b.mul_add(b, sq_b);
                pair = pair.wrapping_add(n as u64);
            }
            if steps > 0 {
                total.add(sum_a.add(sum_b).reduce_add());
                total_sq.add(sq_a.add(sq_b).reduce_add());
                slot += steps as u128 * group;
                continue;
            }
            // The group at either end, of which only some paths are wanted.
            let base = <I::F64 as Lanes64>::Bits::splat(pair);
            let (za, zb) = normals::<I::F64>(base.add(lane_number), &keys);
            let (mut a, mut b) = ([0.0; 8], [0.0; 8]);
            model.payoff(za).store(a.as_mut_ptr());
            model.payoff(zb).store(b.as_mut_ptr());
            for i in 0..2 * n {
                let at = slot + i as u128;
                if at >= whole_from && at < end {
                    let payoff = if i % 2 == 0 { a[i / 2] } else { b[i / 2] };
                    total.add(payoff);
                    total_sq.add(payoff * payoff);
                }
            }
            pair = pair.wrapping_add(n as u64);
            slot += group;
        }
    }
    (total.value(), total_sq.value())
}

kernel! {
    /// Sum and sum of squares of the discounted payoff over paths `first_path .. first_path + count`.
    ///
    /// The price estimate is `sum / count`; the sums of disjoint blocks add up. Each payoff is within about
    /// 1e-14 of `spot` of the exact one for its random words. An invalid option gives NaN. The pair number of
    /// a path wraps only beyond path 2^64.
    pub fn monte_carlo_block(
        option: &EuropeanOption, seed: u64, first_path: u64, count: u64
    ) -> (f64, f64) = monte_carlo_body
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, levels};
    use super::*;
    use crate::kernels::reference;

    fn option(kind: OptionKind) -> EuropeanOption {
        EuropeanOption { spot: 100.0, strike: 103.0, rate: 0.02, volatility: 0.25, years: 1.25, kind }
    }

    #[test]
    fn every_count_and_start_matches_reference() {
        for kind in [OptionKind::Call, OptionKind::Put] {
            let option = option(kind);
            for first in [0, 1, 2, 7, 16, 33, (1 << 33) - 5, u64::MAX - 200] {
                for count in (0..70).chain([127, 128]) {
                    let want = reference::monte_carlo(&option, 99, first, count);
                    for level in levels() {
                        let got = monte_carlo_block(level, &option, 99, first, count);
                        let what = format!("{level} {kind:?} {first} + {count}");
                        close(got.0, want.0, 1e-12 * (1.0 + want.0), &what);
                        close(got.1, want.1, 1e-12 * (1.0 + want.1), &what);
                    }
                }
            }
        }
    }

    #[test]
    fn blocks_add_up_to_the_whole() {
        let option = option(OptionKind::Call);
        let want = reference::monte_carlo(&option, 5, 3, 40_001);
        for level in levels() {
            let whole = monte_carlo_block(level, &option, 5, 3, 40_001);
            close(whole.0, want.0, 1e-11 * want.0, &format!("whole {level}"));
            close(whole.1, want.1, 1e-11 * want.1, &format!("whole {level}"));
            let (mut at, mut sum) = (3, 0.0);
            for count in [1, 2, 3, 17, 5000, 9999, 24_979] {
                sum += monte_carlo_block(level, &option, 5, at, count).0;
                at += count;
            }
            assert_eq!(at, 3 + 40_001);
            close(sum, whole.0, 1e-12 * whole.0, &format!("pieces {level}"));
        }
    }

    #[test]
    fn the_estimate_meets_black_scholes() {
        for kind in [OptionKind::Call, OptionKind::Put] {
            let option = option(kind);
            let n = 400_000;
            for level in levels() {
                let (sum, sum_sq) = monte_carlo_block(level, &option, 2024, 0, n);
                let mean = sum / n as f64;
                let error = ((sum_sq / n as f64 - mean * mean) / n as f64).sqrt();
                close(mean, reference::black_scholes(&option), 4.0 * error, &format!("{level} {kind:?}"));
            }
        }
    }

    #[test]
    fn odd_options_have_their_limits() {
        for level in levels() {
            let still = EuropeanOption { volatility: 0.0, years: 0.0, ..option(OptionKind::Put) };
            assert_eq!(monte_carlo_block(level, &still, 1, 0, 10), (30.0, 90.0));
            let bad = EuropeanOption { rate: f64::NAN, ..still };
            assert!(monte_carlo_block(level, &bad, 1, 0, 10).0.is_nan());
            assert_eq!(monte_carlo_block(level, &still, 1, 0, 0), (0.0, 0.0));
        }
    }
}
