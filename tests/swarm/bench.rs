//! `bench kernels`: the form of its figures, and that no kernel is missing. How fast anything is, is not asked here.

use crate::support::Place;
use ai_swarm::kernels::{KernelId, LEVEL_VARIABLE, Level};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Stdio;

#[test]
fn every_kernel_is_measured_beside_what_the_core_can_do() {
    // Not the widest level, where there is another: the one asked for is the one that runs and is named.
    let level = if Level::Avx2.is_available() { Level::Avx2 } else { Level::Scalar };
    let place = Place::new();
    let mut command = place.command(&["bench", "kernels", "--quick", "--json"]);
    let ran = place.finish(command.env(LEVEL_VARIABLE, level.name()).stdin(Stdio::null())).ends(0);
    let figures: Vec<Value> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let text = |figure: &Value, key: &str| figure[key].as_str().unwrap_or_default().to_owned();
    let number = |figure: &Value, key: &str| figure[key].as_f64();
    let names: Vec<String> = figures.iter().map(|figure| text(figure, "name")).collect();

    assert_eq!(names[..3], ["peak_f32", "peak_f64", "triad"]);
    let distinct: BTreeSet<&String> = names.iter().collect();
    assert_eq!(distinct.len(), names.len(), "{names:?}");
    for kernel in KernelId::ALL {
        let idle = matches!(kernel, KernelId::Noop | KernelId::Sleep);
        let dtypes = ["f32", "f64", "u8", "c64", "c128"];
        let is_row =
            |name: &String| dtypes.iter().any(|dtype| name.starts_with(&format!("{kernel}_{dtype}_")));
        assert_eq!(names.iter().any(is_row), !idle, "{kernel} in {names:?}");
    }
    for figure in &figures {
        let name = text(figure, "name");
        let own = ["peak_", "triad", "tuned_all"].iter().any(|start| name.starts_with(start));
        assert_eq!(text(figure, "bench"), "kernels");
        let units = ["GFLOP/s", "GB/s", "Melem/s", "ms", "x"];
        assert!(units.contains(&text(figure, "unit").as_str()), "{figure}");
        let value = number(figure, "value").unwrap_or_default();
        assert!(value > 0.0 && value.is_finite(), "{figure}");
        assert_eq!(number(figure, "p50"), Some(value), "{figure}");
        // The slow end of rates is below, that of times above.
        let p99 = number(figure, "p99").unwrap_or_default();
        assert!(if text(figure, "unit") == "ms" { p99 >= value } else { p99 <= value }, "{figure}");
        assert!(!text(figure, "note").is_empty(), "{figure}");
        let stolen = number(figure, "stolen_percent");
        assert!(stolen.is_some_and(|stolen| (0.0..=100.0).contains(&stolen)), "{figure}");
        let (floor, ratio) = (number(figure, "floor"), number(figure, "ratio"));
        if own {
            assert_eq!((floor, ratio), (None, None), "{figure}");
        } else {
            let right = value / floor.unwrap_or_default();
            assert!(ratio.is_some_and(|ratio| (ratio / right - 1.0).abs() < 1e-9), "{figure}");
        }
        // Limits are shares of floors, but for one, which is a time.
        match (name.as_str(), number(figure, "limit"), text(figure, "limit_is").as_str()) {
            ("knn_f32_100000x384_coded", limit, "at most") => assert_eq!(limit, Some(8.0)),
            (name, Some(limit), "at most") if name.starts_with("tuned_") => {
                assert!((limit / floor.unwrap_or_default() * 0.98 - 1.0).abs() < 1e-9, "{figure}");
            }
            (name, Some(limit), "at most") if name.starts_with("divided_") => {
                // Of what needs cores two agents lose at most 15 %; nothing may become slower.
                let ratios = [0.5 / 0.85, 1.0 / 0.95];
                let ratio = limit / floor.unwrap_or_default();
                assert!(ratios.iter().any(|allowed| (ratio / allowed - 1.0).abs() < 1e-9), "{figure}");
            }
            (_, Some(limit), "at least") => {
                assert!((limit / floor.unwrap_or_default() / 0.9 - 1.0).abs() < 1e-9, "{figure}");
            }
            (_, limit, _) => assert_eq!(limit, None, "{figure}"),
        }
    }
    for own in ["tuned_all", "divided_matmul_f32_2048"] {
        assert!(names.iter().any(|name| name == own), "no {own} in {names:?}");
    }
    let limited: Vec<&Value> = figures.iter().filter(|figure| !figure["limit"].is_null()).collect();
    for name in ["matmul_f32_512", "matmul_f32_1024", "matmul_f64_512", "matmul_f64_1024", "axpy_f64_8m"] {
        assert!(limited.iter().any(|figure| text(figure, "name") == name), "{name} has no limit");
    }
    for (name, word) in [("peak_f32", level.name()), ("axpy_f32_16m", level.name()), ("fft_c64_1m", "native")]
    {
        let of_name = figures.iter().find(|figure| text(figure, "name") == name);
        assert!(of_name.is_some_and(|figure| text(figure, "note").contains(word)), "{name}: {of_name:?}");
    }
}
