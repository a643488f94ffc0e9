//! `run`: job files through a private swarm, from arrays in files to arrays in files, with the report.

use crate::support::{Place, Ran, Swarm, detail, fixture, is_report, read_array};
use ai_swarm::arrays::{ArrayRef, Element};
use num_complex::Complex;
use rustix::process::Signal;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};

/// A task of the job and the array that NumPy makes of it, with the tolerance.
struct Case {
    task: Value,
    want: Option<(String, f64)>,
}

fn array_path(name: &str) -> String {
    fixture(&format!("arrays/{name}.npy")).to_str().expect("text").to_owned()
}

fn case(id: &str, kernel: &str, params: Value, inputs: &[&str], want: Option<(&str, f64)>) -> Case {
    let inputs: Vec<String> = inputs.iter().map(|name| array_path(name)).collect();
    let mut task = json!({"id": id, "kernel": kernel, "params": params, "inputs": inputs});
    if want.is_some() {
        task["output"] = format!("{id}.npy").into();
    }
    Case { task, want: want.map(|(name, tolerance)| (name.to_owned(), tolerance)) }
}

/// Every kernel, with what NumPy computed.
fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("noop", "noop", json!({}), &[], None),
        case("sleep", "sleep", json!({"seconds": 0.01}), &[], None),
        case("price", "monte_carlo", json!({"paths": 100_000}), &[], None),
        case("sha256_i64", "hash", json!({}), &["read_i64_3d_fortran"], None),
    ];
    for (f, ulp) in [("f32", f64::from(f32::EPSILON)), ("f64", f64::EPSILON)] {
        let name = |stem: &str| format!("{stem}_{f}");
        let mut add = |id: &str, kernel: &str, params: Value, inputs: &[&str], want: Option<(&str, f64)>| {
            let inputs: Vec<String> = inputs.iter().map(|stem| name(stem)).collect();
            let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
            let want = want.map(|(stem, tolerance)| (name(stem), tolerance * ulp));
            let want = want.as_ref().map(|(stem, tolerance)| (&**stem, *tolerance));
            cases.push(case(&name(id), kernel, params, &inputs, want));
        };
        add("matmul", "matmul", json!({}), &["in_a", "in_b"], Some(("out_matmul", 100.0)));
        add("dot", "dot", json!({}), &["in_x", "in_y"], None);
        add("axpy", "axpy", json!({"alpha": 2.5}), &["in_x", "in_y"], Some(("out_axpy", 8.0)));
        for op in ["sum", "mean", "min", "max", "std", "norm2"] {
            add(&format!("reduce_{op}"), "reduce", json!({"op": op}), &["in_cube"], None);
            let (id, want) = (format!("along_{op}"), format!("out_reduce_{op}_1"));
            add(&id, "reduce", json!({"op": op, "axis": 1}), &["in_cube"], Some((&want, 16.0)));
        }
        add("sort", "sort", json!({}), &["in_sort"], Some(("out_sort", 0.0)));
        for axis in 0..3 {
            let (sums, powers) = (format!("out_cumsum_{axis}"), format!("out_softmax_{axis}"));
            add(
                &format!("cumsum_{axis}"),
                "cumsum",
                json!({"axis": axis}),
                &["in_cube"],
                Some((&sums, 16.0)),
            );
            add(
                &format!("softmax_{axis}"),
                "softmax",
                json!({"axis": axis}),
                &["in_cube"],
                Some((&powers, 2.0)),
            );
        }
        add("argsort", "argsort", json!({}), &["in_few"], Some(("out_argsort", 0.0)));
        add("top_k", "top_k", json!({"k": 12}), &["in_few"], Some(("out_top_k_largest", 0.0)));
        let matrix = ["in_spmv_data", "in_spmv_indices", "in_spmv_indptr", "in_spmv_x"];
        add("spmv", "spmv", json!({}), &matrix, Some(("out_spmv", 8.0)));
        add(
            "convolve2d",
            "convolve2d",
            json!({}),
            &["in_grid", "in_weights"],
            Some(("out_convolve2d_full", 40.0)),
        );
        add("rfft", "rfft", json!({"axes": 2}), &["in_cube"], Some(("out_rfft_2d", 90.0)));
        add("irfft", "irfft", json!({"axes": 2}), &["out_rfft_2d"], Some(("in_cube", 16.0)));
        add("histogram", "histogram", json!({"bins": 64}), &["in_histogram"], Some(("out_histogram", 0.0)));
        let params = json!({"steps": 7, "alpha": 0.2});
        add("stencil5", "stencil5", params, &["in_grid"], Some(("out_stencil5", 50.0)));
        for metric in ["ip", "cosine", "l2"] {
            let (id, want) = (format!("knn_{metric}"), format!("out_knn_{metric}"));
            let params = json!({"k": 10, "metric": metric});
            add(&id, "knn", params, &["in_queries", "in_corpus"], Some((&want, 0.0)));
        }
    }
    for (c, tolerance) in [("c64", 1e-5), ("c128", 2e-14)] {
        let input = format!("in_fft_{c}");
        for kernel in ["fft", "ifft"] {
            let id = format!("{kernel}_{c}");
            cases.push(case(&id, kernel, json!({}), &[&input], Some((&format!("out_{id}"), tolerance))));
        }
    }
    for i in ["i32", "i64", "u8", "u32", "u64"] {
        let want = format!("out_sort_{i}");
        cases.push(case(
            &format!("sort_{i}"),
            "sort",
            json!({}),
            &[&format!("in_sort_{i}")],
            Some((&want, 0.0)),
        ));
    }
    cases
}

/// The parts of an array as doubles, NaN included.
fn parts(array: &ArrayRef) -> Vec<f64> {
    fn of<T: Element>(array: &ArrayRef, part: impl Fn(&T) -> f64) -> Option<Vec<f64>> {
        array.as_slice::<T>().map(|elements| elements.iter().map(part).collect())
    }
    let complex = |elements: &[Complex<f64>]| elements.iter().flat_map(|z| [z.re, z.im]).collect();
    of::<f32>(array, |v| f64::from(*v))
        .or_else(|| of::<f64>(array, |v| *v))
        .or_else(|| of::<i64>(array, |v| *v as f64))
        .or_else(|| of::<u64>(array, |v| *v as f64))
        .or_else(|| array.as_slice::<Complex<f64>>().map(complex))
        .or_else(|| {
            let elements = array.as_slice::<Complex<f32>>()?;
            Some(elements.iter().flat_map(|z| [f64::from(z.re), f64::from(z.im)]).collect())
        })
        .unwrap_or_else(|| array.bytes().iter().map(|byte| f64::from(*byte)).collect())
}

#[track_caller]
fn same_array(got: &ArrayRef, want: &ArrayRef, tolerance: f64, what: &str) {
    assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()), "{what}");
    for (at, (got, want)) in parts(got).into_iter().zip(parts(want)).enumerate() {
        let same = got == want || got.is_nan() && want.is_nan() || (got - want).abs() <= tolerance;
        assert!(same, "{what} at {at}: {got:e}, NumPy has {want:e}, tolerance {tolerance:e}");
    }
}

fn job(tasks: impl IntoIterator<Item = Value>) -> String {
    json!({"tasks": tasks.into_iter().collect::<Vec<_>>()}).to_string()
}

/// Runs a job and reads its report.
#[track_caller]
fn run(place: &Place, text: &str, words: &[&str]) -> (Ran, Value) {
    place.write("job.json", text);
    let ran = place.cli(&[&["run", "job.json", "--report", "report.json"], words].concat());
    let report = fs::read_to_string(place.path("report.json"))
        .unwrap_or_else(|error| panic!("{error}\n{}", ran.story()));
    let report = serde_json::from_str(&report).expect("the report is JSON");
    is_report(&report);
    (ran, report)
}

#[track_caller]
fn all_succeeded(report: &Value, total: u64) {
    let tasks = &report["tasks"];
    assert_eq!((&tasks["total"], &tasks["succeeded"]), (&json!(total), &json!(total)), "{tasks}");
    assert_eq!((&tasks["lost"], &tasks["duplicated"]), (&json!(0), &json!(0)), "{tasks}");
}

#[test]
fn every_kernel_makes_of_files_what_numpy_makes_of_them() {
    let place = Place::new();
    let cases = cases();
    let (ran, report) = run(&place, &job(cases.iter().map(|case| case.task.clone())), &[]);
    let ran = ran.ends(0);
    all_succeeded(&report, cases.len() as u64);

    let kernels: BTreeSet<&str> = report["kernels"]
        .as_array()
        .expect("kernels")
        .iter()
        .filter_map(|row| row["kernel"].as_str())
        .collect();
    // All but `expr`, `kmeans` and `quantize`, for which NumPy has no files.
    assert_eq!(kernels.len(), 22, "every kernel ran: {kernels:?}");

    let numbers: Value =
        serde_json::from_str(&fs::read_to_string(fixture("arrays/expected.json")).expect("numbers"))
            .expect("JSON");
    for case in &cases {
        let id = case.task["id"].as_str().expect("an id");
        let result = &detail(&report, id)["result"];
        if let Some((want, tolerance)) = &case.want {
            let got = read_array(&place.path(&format!("{id}.npy")));
            same_array(&got, &read_array(&fixture(&format!("arrays/{want}.npy"))), *tolerance, id);
        }
        if let Some(want) = numbers.get(id).and_then(Value::as_f64) {
            let got = result.as_f64().or_else(|| result["value"].as_f64());
            let got = got.unwrap_or_else(|| panic!("{id} gave {result}"));
            assert!((got - want).abs() <= 1e-11 * want.abs().max(1.0), "{id}: {got}, NumPy has {want}");
        }
        if let Some(want) = numbers.get(id).filter(|want| want.is_string()) {
            assert_eq!(result, want, "{id}");
        }
        if !result.is_null() {
            let line = ran.out.lines().find_map(|line| line.strip_prefix(&format!("{id}\t")));
            let line = line.unwrap_or_else(|| panic!("no result of {id} on standard output\n{}", ran.out));
            assert_eq!(&serde_json::from_str::<Value>(line).expect("a result is JSON"), result);
        }
    }
    for f in ["f32", "f64"] {
        let range = &detail(&report, &format!("histogram_{f}"))["result"];
        assert_eq!(json!([range["min"], range["max"]]), numbers[format!("histogram_{f}")]);
        let path = &detail(&report, &format!("top_k_{f}"))["result"]["places_path"];
        let places = read_array(path.as_str().expect("a path").as_ref());
        let want = read_array(&fixture(&format!("arrays/out_places_largest_{f}.npy")));
        same_array(&places, &want, 0.0, "places");
        for metric in ["ip", "cosine", "l2"] {
            let path = &detail(&report, &format!("knn_{metric}_{f}"))["result"]["scores_path"];
            let scores = read_array(path.as_str().expect("a path").as_ref());
            let want = read_array(&fixture(&format!("arrays/out_knn_scores_{metric}_{f}.npy")));
            same_array(
                &scores,
                &want,
                16.0 * if f == "f32" { f64::from(f32::EPSILON) } else { f64::EPSILON },
                metric,
            );
        }
    }
    let temporary = fs::read_dir(place.path("")).expect("the folder").flatten();
    let temporary: Vec<_> = temporary
        .map(|entry| entry.file_name())
        .filter(|name| name.to_string_lossy().ends_with(".tmp"))
        .collect();
    assert!(temporary.is_empty(), "{temporary:?}");
}

#[test]
fn big_endian_and_fortran_files_are_read_too() {
    let place = Place::new();
    let pairs = [("read_f64_2d_c", "read_f64_2d_bigfortran"), ("read_i32_3d_c", "read_i32_3d_big")];
    let tasks = pairs.iter().flat_map(|(plain, other)| {
        [*plain, *other].map(|name| json!({"id": name, "kernel": "sort", "inputs": [array_path(name)], "output": format!("{name}.npy")}))
    });
    let (ran, _) = run(&place, &job(tasks), &[]);
    ran.ends(0);
    for (plain, other) in pairs {
        let read = |name: &str| read_array(&place.path(&format!("{name}.npy")));
        same_array(&read(other), &read(plain), 0.0, other);
    }
}

#[test]
fn the_report_keeps_its_contract_wherever_it_goes() {
    let place = Place::new();
    let text = job([
        json!({"id": "a", "kernel": "monte_carlo", "params": {"paths": 10_000}}),
        json!({"id": "b", "kernel": "sleep", "params": {"seconds": 0.001}, "after": ["a"]}),
    ]);
    let (ran, report) = run(&place, &text, &[]);
    ran.ends(0).says("a\t");
    all_succeeded(&report, 2);
    assert_eq!(report["swarm"], place.name());
    assert!(
        report["ready_s"].as_f64() > Some(0.0) && report["wall_s"].as_f64() >= report["ready_s"].as_f64(),
        "{report:#}"
    );
    assert!(report["throughput_tasks_per_s"].as_f64() > Some(0.0), "{report:#}");
    let a = detail(&report, "a");
    assert!(a["result"]["price"].is_f64() && a["error"].is_null() && a["attempts"] == 1, "{a:#}");
    assert!(a["service_us"].as_f64() > Some(0.0) && a["backend"].is_string(), "{a:#}");
    let agents = report["agents"].as_array().expect("agents");
    assert!(agents.iter().any(|agent| agent["id"] == a["agent"] && agent["kind"] == "compute"), "{report:#}");
    let done: u64 = agents.iter().filter_map(|agent| agent["tasks"].as_u64()).sum();
    assert_eq!(done, 2, "{report:#}");
    assert_eq!(report["kernels"].as_array().map(Vec::len), Some(2), "{report:#}");

    // Alone on standard output: nothing else may stand beside it.
    let alone = place.cli(&["run", "job.json", "--report", "-"]).ends(0).json();
    is_report(&alone);
    let json = place.cli(&["run", "job.json", "--json"]).ends(0).json();
    is_report(&json);
    let both = place.cli(&["run", "job.json", "--json", "--report", "-"]).ends(0).json();
    is_report(&both);
    assert_eq!(both["tasks_detail"].as_array().map(Vec::len), Some(2));
    place
        .cli(&["run", "job.json", "--report", "no/such/report.json"])
        .ends(1)
        .complains("--report no/such/report.json: cannot be written: No such file or directory");
}

#[test]
fn jobs_come_as_lines_from_standard_input_and_in_several_files() {
    let place = Place::new();
    let lines = "{\"id\": \"a\", \"kernel\": \"noop\"}\n\n{\"id\": \"b\", \"kernel\": \"noop\", \"after\": [\"a\"]}\r\n";
    place.write("lines.jsonl", lines);
    let ran = place.cli(&["run", "lines.jsonl", "--json"]).ends(0).json();
    all_succeeded(&ran, 2);
    let ran = place.cli_with(&["run", "-", "--json"], lines).ends(0).json();
    all_succeeded(&ran, 2);
    let ran = place.cli_with(&["run", "--json"], lines).ends(0).json();
    all_succeeded(&ran, 2);
    place.write("more.json", &job([json!({"id": "c", "kernel": "noop", "after": ["b"]})]));
    let ran = place.cli(&["run", "lines.jsonl", "more.json", "--json"]).ends(0).json();
    all_succeeded(&ran, 3);
    // Paths on standard input are relative to where we stand.
    place.write_array("x.npy", &[2], &[3.0, 4.0]);
    let text = job([json!({"id": "n", "kernel": "reduce", "params": {"op": "norm2"}, "inputs": ["x.npy"]})]);
    place.cli_with(&["run", "-"], &text).ends(0).says("n\t5.0");
    // And in a file relative to the file.
    fs::create_dir(place.path("sub")).expect("a folder");
    fs::rename(place.path("x.npy"), place.path("sub/x.npy")).expect("moved");
    place.write("sub/job.json", &text);
    place.cli(&["run", "sub/job.json"]).ends(0).says("n\t5.0");
}

#[test]
fn an_empty_job_is_done_at_once() {
    let place = Place::new();
    let (ran, report) = run(&place, &job([]), &[]);
    ran.ends(0);
    all_succeeded(&report, 0);
}

#[test]
fn one_kernel_runs_from_the_command_line() {
    let place = Place::new();
    place.write_array("a.npy", &[2, 2], &[1.0f64, 2.0, 3.0, 4.0]);
    place.write_array("b.npy", &[2, 2], &[5.0f64, 6.0, 7.0, 8.0]);
    place.cli(&["run", "--kernel", "matmul", "a.npy", "b.npy", "-o", "c.npy"]).ends(0);
    assert_eq!(read_array(&place.path("c.npy")).as_slice::<f64>(), Some(&[19.0, 22.0, 43.0, 50.0][..]));
    place.cli(&["run", "-k", "reduce", "a.npy", "-p", "op=max"]).ends(0).says("t1\t4.0");
    let words = ["run", "-k", "reduce", "a.npy", "-p", "op=sum", "-p", "axis=0", "-o", "s.npy"];
    place
        .cli(&[&words[..], &["--priority", "high", "--timeout", "60", "--backend", "scalar"]].concat())
        .ends(0);
    assert_eq!(read_array(&place.path("s.npy")).as_slice::<f64>(), Some(&[4.0, 6.0][..]));
    place.cli(&["run", "-k", "matmul", "a.npy", "-o", "c.npy"]).ends(2).complains("1 inputs, needs 2");
}

#[test]
fn tasks_run_after_those_they_wait_for() {
    let place = Place::new();
    place.write_array("x.npy", &[3], &[1.0f64, 2.0, 3.0]);
    // x, 2x, 4x, ...: each from the file that the one before wrote; named backwards, so order alone does not help.
    let mut tasks: Vec<Value> = (1..=10)
        .map(|n| {
            let input = if n == 1 { "x.npy".to_owned() } else { format!("y{}.npy", n - 1) };
            let after: Vec<String> = if n == 1 { Vec::new() } else { vec![format!("t{}", n - 1)] };
            json!({"id": format!("t{n}"), "kernel": "axpy", "inputs": [input, input], "output": format!("y{n}.npy"), "after": after})
        })
        .collect();
    tasks.reverse();
    tasks
        .push(json!({"id": "end", "kernel": "reduce", "inputs": ["y10.npy"], "after": ["t3", "t10", "t10"]}));
    let (ran, report) = run(&place, &job(tasks), &[]);
    ran.ends(0).says("end\t6144.0");
    all_succeeded(&report, 11);
}

#[test]
fn tasks_after_a_failed_one_are_not_run_and_say_why() {
    let place = Place::new();
    let tasks = [
        json!({"id": "root", "kernel": "sort", "inputs": ["nowhere.npy"], "output": "z.npy"}),
        json!({"id": "child", "kernel": "noop", "after": ["root"]}),
        json!({"id": "grandchild", "kernel": "noop", "after": ["child"]}),
        json!({"id": "other", "kernel": "noop"}),
    ];
    let (ran, report) = run(&place, &job(tasks), &[]);
    ran.ends(1);
    let states = ["root", "child", "grandchild", "other"].map(|id| detail(&report, id)["state"].clone());
    assert_eq!(states, ["failed", "cancelled", "cancelled", "succeeded"], "{report:#}");
    let why = detail(&report, "child")["error"].as_str().expect("a reason");
    assert!(why.contains("\"root\"") && why.contains("failed"), "{why}");
    assert_eq!(detail(&report, "child")["attempts"], 0);
}

#[test]
fn high_priority_goes_first() {
    let place = Place::new();
    place.write("config.json", r#"{"max_agents": 1, "tasks": {"window": 1, "batch": 1}}"#);
    // One agent, which is busy with the first while the others queue up.
    let mut tasks =
        vec![json!({"id": "first", "kernel": "sleep", "params": {"seconds": 0.2}, "priority": "high"})];
    for n in 0..4 {
        for priority in ["low", "normal", "high"] {
            let id = format!("{priority}-{n}");
            tasks.push(
                json!({"id": id, "kernel": "sleep", "params": {"seconds": 0.001}, "priority": priority}),
            );
        }
    }
    let (ran, report) = run(&place, &job(tasks), &["--config", "config.json"]);
    ran.ends(0);
    all_succeeded(&report, 13);
    let finished = |priority: &str| {
        let times = (0..4)
            .map(|n| detail(&report, &format!("{priority}-{n}"))["finished_ns"].as_u64().expect("a time"));
        times.collect::<Vec<_>>()
    };
    let last = |priority: &str| finished(priority).into_iter().max();
    let first = |priority: &str| finished(priority).into_iter().min();
    assert!(last("high") < first("normal") && last("normal") < first("low"), "{report:#}");
}

#[test]
fn a_time_limit_stops_a_task_and_says_so() {
    let place = Place::new();
    let tasks = [
        json!({"id": "long", "kernel": "sleep", "params": {"seconds": 3600}, "timeout_s": 0.1, "retries": 0}),
        json!({"id": "again", "kernel": "sleep", "params": {"seconds": 3600}, "timeout_s": 0.05, "retries": 2}),
        json!({"id": "price", "kernel": "monte_carlo", "params": {"paths": 100_000_000_000u64}, "timeout_s": 0.1, "retries": 0}),
        json!({"id": "short", "kernel": "sleep", "params": {"seconds": 0.01}, "timeout_s": 100}),
    ];
    let (ran, report) = run(&place, &job(tasks), &[]);
    ran.ends(1).complains("exceeded its time limit of 0.1 s");
    for (id, attempts, limit) in [("long", 1, "0.1 s"), ("again", 3, "0.05 s"), ("price", 1, "0.1 s")] {
        let task = detail(&report, id);
        assert_eq!((&task["state"], &task["attempts"]), (&json!("failed"), &json!(attempts)), "{task:#}");
        let error = task["error"].as_str().expect("a reason");
        assert!(error.contains(&format!("exceeded its time limit of {limit}")), "{error}");
    }
    assert_eq!(detail(&report, "short")["state"], "succeeded", "{report:#}");
    assert_eq!(report["tasks"]["retried"], 2, "{report:#}");
    // Kernels that listen give a task up themselves; nobody had to be killed.
    assert_eq!(report["recoveries"], json!([]), "{report:#}");
}

#[test]
fn the_default_time_limit_and_retries_come_from_the_configuration() {
    let place = Place::new();
    place.write("config.json", r#"{"tasks": {"default_timeout_s": 0.05, "default_retries": 1}}"#);
    let tasks = [json!({"id": "a", "kernel": "sleep", "params": {"seconds": 3600}})];
    let (ran, report) = run(&place, &job(tasks), &["--config", "config.json"]);
    ran.ends(1);
    assert_eq!(detail(&report, "a")["attempts"], 2, "{report:#}");
}

#[test]
fn two_thousand_tiny_tasks_all_come_back() {
    let place = Place::new();
    let tasks = (0..2000).map(|n| json!({"id": format!("n{n}"), "kernel": "noop"}));
    let (ran, report) = run(&place, &job(tasks), &[]);
    ran.ends(0);
    all_succeeded(&report, 2000);
    let detail = report["tasks_detail"].as_array().expect("tasks in detail");
    assert_eq!(detail.len(), 2000);
    assert!(detail.iter().all(|task| task["state"] == "succeeded" && task["attempts"] == 1));
}

#[test]
fn above_ten_thousand_tasks_detail_is_written_when_asked_for() {
    let place = Place::new();
    let lines = "{\"kernel\":\"noop\"}\n".repeat(10_001);
    let (ran, report) = run(&place, &lines, &[]);
    ran.ends(0);
    all_succeeded(&report, 10_001);
    assert!(report.get("tasks_detail").is_none_or(Value::is_null), "not asked for");
    let (ran, report) = run(&place, &lines, &["--report-tasks"]);
    ran.ends(0);
    assert_eq!(report["tasks_detail"].as_array().map(Vec::len), Some(10_001));
}

#[test]
fn one_core_is_enough() {
    let place = Place::new();
    if Command::new("taskset").arg("-V").output().is_err() {
        println!("skipped: there is no taskset");
        return;
    }
    let mut command = Command::new("taskset");
    place.equip(&mut command);
    let binary = env!("CARGO_BIN_EXE_ai_swarm_deploy");
    command.args(["-c", "0", binary, "--name", place.name(), "run", "job.json", "--report", "-"]);
    place.write(
        "job.json",
        &job((0..200)
            .map(|n| json!({"id": format!("n{n}"), "kernel": "sleep", "params": {"seconds": 0.0002}}))),
    );
    let report = place.finish(command.stdin(Stdio::null())).ends(0).json();
    all_succeeded(&report, 200);
    assert_eq!(report["host"]["cores"], 1, "{report:#}");
    for agent in report["agents"].as_array().expect("agents") {
        assert_eq!(agent["cores"], json!([0]), "{agent}");
    }
}

#[test]
fn one_agent_is_enough_and_without_any_nothing_waits_for_ever() {
    let place = Place::new();
    let text = job((0..50).map(|n| json!({"id": format!("n{n}"), "kernel": "noop"})));
    place.write("config.json", r#"{"max_agents": 1}"#);
    let (ran, report) = run(&place, &text, &["--config", "config.json"]);
    ran.ends(0);
    all_succeeded(&report, 50);
    let computes =
        report["agents"].as_array().expect("agents").iter().filter(|agent| agent["kind"] == "compute");
    assert_eq!(computes.count(), 1, "{report:#}");
    place.write("config.json", r#"{"agents": {"compute": {"count": 0}}}"#);
    let (ran, report) = run(&place, &text, &["--config", "config.json"]);
    ran.ends(1).complains("no compute agent lives");
    assert_eq!(report["tasks"]["cancelled"], 50, "{report:#}");
}

#[test]
fn every_policy_gets_the_work_done() {
    let place = Place::new();
    place.write_array("x.npy", &[1000], &[1.0f32; 1000]);
    let mut configs: Vec<Value> = ["round_robin", "least_loaded", "ect"]
        .iter()
        .map(|policy| json!({"balancer": {"policy": policy}}))
        .collect();
    configs.push(json!({"load_balancing": false}));
    configs.push(json!({"load_balancing": true, "auto_scaling": false}));
    let tasks = (0..300).map(|n| match n % 3 {
        0 => json!({"id": format!("n{n}"), "kernel": "noop"}),
        1 => json!({"id": format!("n{n}"), "kernel": "reduce", "inputs": ["x.npy"]}),
        _ => json!({"id": format!("n{n}"), "kernel": "sleep", "params": {"seconds": 0.0005}}),
    });
    let text = job(tasks);
    for config in configs {
        let mut config = config;
        config["agents"] = json!({"compute": {"count": 2}});
        place.write("config.json", &config.to_string());
        let (ran, report) = run(&place, &text, &["--config", "config.json"]);
        ran.ends(0);
        all_succeeded(&report, 300);
        let each: Map<String, Value> = report["agents"]
            .as_array()
            .expect("agents")
            .iter()
            .filter(|agent| agent["kind"] == "compute")
            .map(|agent| (agent["id"].to_string(), agent["tasks"].clone()))
            .collect();
        assert_eq!(each.len(), 2, "{config}: {each:?}");
        assert!(
            each.values().all(|tasks| tasks.as_u64() > Some(0)),
            "{config}: somebody did nothing: {each:?}"
        );
    }
}

#[test]
fn a_job_without_tasks_is_done_at_once() {
    let place = Place::new();
    for text in [r#"{"tasks": []}"#, "", " \n"] {
        place.write("job.json", text);
        let ran =
            place.cli(&["run", "job.json", "--report", "report.json"]).ends(0).complains("nothing to do");
        assert!(ran.out.is_empty() && !ran.err.contains("0 of 0"), "{}", ran.story());
        let report = fs::read_to_string(place.path("report.json")).expect("a report all the same");
        is_report(&serde_json::from_str(&report).expect("JSON"));
        is_report(&place.cli(&["run", "job.json", "--json"]).ends(0).json());
    }
    let swarm = Swarm::deploy(&json!({}));
    let job = swarm.place.write("job.json", "");
    swarm.place.cli(&["submit", job.to_str().expect("text"), "--wait"]).ends(0).complains("nothing to do");
    swarm.end();
}

#[test]
fn a_run_does_not_warn_of_the_load_that_it_makes() {
    let place = Place::new();
    let config = json!({
        "monitoring_interval": 0.02,
        "performance_thresholds": {"cpu_critical": 1.0, "memory_critical": 0.1},
    });
    place.write("config.json", &config.to_string());
    let pause = ["--config", "config.json", "run", "--kernel", "sleep", "--param", "seconds=0.5"];
    let ran = place.cli(&pause).ends(0);
    assert!(!ran.err.contains("performance_alert"), "{}", ran.story());
    place.cli(&[&pause[..], &["--log-level", "info"]].concat()).ends(0).complains("performance_alert");
}

#[test]
fn a_run_that_is_interrupted_ends_cleanly() {
    let place = Place::new();
    place.write("config.json", r#"{"tasks": {"drain_s": 3600}}"#);
    place.write(
        "job.json",
        &job((0..4).map(|n| json!({"id": format!("n{n}"), "kernel": "sleep", "params": {"seconds": 3600}}))),
    );
    let mut command = place.command(&[
        "--config",
        "config.json",
        "run",
        "job.json",
        "--report",
        "report.json",
        "--log-level",
        "info",
    ]);
    let running = place.start(command.stdin(Stdio::null()));
    let busy = || running.err().contains("agent_ready").then_some(());
    crate::support::until("an agent is ready", busy, || running.err());
    assert!(crate::support::signal(running.pid(), Signal::INT));
    // Said at once: what runs may still take its time.
    let notice = || running.err().contains("stopping; press Ctrl-C again to hurry").then_some(());
    crate::support::until("it says that it stops", notice, || running.err());
    assert!(crate::support::signal(running.pid(), Signal::INT));
    let ran = running.finish().ends(0).complains("stopped on request");
    assert!(!ran.err.contains("cancelled: cancelled"), "{}", ran.story());
    let ran = ran.complains("task \"n0\" cancelled: the swarm stopped");
    assert!(ran.err.matches("the swarm stopped").count() == 4, "{}", ran.story());
    let report: Value =
        serde_json::from_str(&fs::read_to_string(place.path("report.json")).expect("a report"))
            .expect("JSON");
    is_report(&report);
    assert_eq!(
        (&report["tasks"]["cancelled"], &report["tasks"]["lost"]),
        (&json!(4), &json!(0)),
        "{report:#}"
    );
    place.is_clean();
}

#[test]
fn outputs_replace_what_was_there_and_may_be_their_own_input() {
    let place = Place::new();
    place.write_array("x.npy", &[4], &[3.0f64, 1.0, 2.0, 0.0]);
    place.write("out.npy", "something old");
    let tasks = [
        json!({"id": "a", "kernel": "sort", "inputs": ["x.npy"], "output": "out.npy"}),
        json!({"id": "b", "kernel": "axpy", "inputs": ["out.npy", "out.npy"], "output": "out.npy", "after": ["a"]}),
    ];
    let (ran, _) = run(&place, &job(tasks), &[]);
    ran.ends(0);
    assert_eq!(read_array(&place.path("out.npy")).as_slice::<f64>(), Some(&[0.0, 2.0, 4.0, 6.0][..]));
}
