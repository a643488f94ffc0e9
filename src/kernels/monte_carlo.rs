//! `monte_carlo`: a European call under Black and Scholes, simulated path by path.
//!
//! Path `i` takes its random number from counter `i` of a Philox generator keyed by the seed, so the answer
//! depends on the seed and the number of paths only; levels differ in the last digits.

use serde_json::json;

use super::reference::{EuropeanOption, OptionKind, black_scholes};
use super::{Call, KernelError, Outcome, Total, number, simd};

/// Paths between two beats: about 3 ms of scalar code.
const PATHS: u64 = 1 << 16;

/// Result: `price`, `std_error` (of the estimate), `closed_form`, `paths`.
pub(super) fn monte_carlo(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let value = |name| call.params.float(name).unwrap_or(f64::NAN);
    let option = EuropeanOption {
        spot: value("spot"),
        strike: value("strike"),
        rate: value("rate"),
        volatility: value("volatility"),
        years: value("maturity"),
        kind: OptionKind::Call,
    };
    let paths = call.params.count("paths") as u64;
    let seed = call.params.count("seed") as u64;
    let (mut sum, mut squares) = (Total::default(), Total::default());
    let mut first = 0;
    while first < paths {
        call.pulse.beat()?;
        let count = PATHS.min(paths - first);
        let (part, part_squares) = simd::monte_carlo_block(call.level(), &option, seed, first, count);
        sum.add(part);
        squares.add(part_squares);
        first += count;
    }
    let n = paths as f64;
    let price = sum.value() / n;
    // Rounding can take an exact 0 a little below it.
    let variance = ((squares.value() - n * price * price) / (n - 1.0)).max(0.0);
    let result = json!({
        "price": number(price),
        "std_error": number((variance / n).sqrt()),
        "closed_form": number(black_scholes(&option)),
        "paths": paths,
    });
    Ok(Outcome { result: Some(result), ..Outcome::default() })
}
