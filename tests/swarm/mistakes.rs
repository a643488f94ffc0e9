//! One job file per typical mistake (`fixtures/jobs`): what is said about it, with which exit code, and that
//! the other tasks of the file go on.

use crate::support::{Place, detail, fixture, is_report};
use std::collections::BTreeSet;
use std::fs;

/// One task `bad` is wrong; the task `good` beside it succeeds. The words stand in the error of `bad`, in order.
const WRONG_TASKS: &[(&str, &[&str])] = &[
    ("input_missing.json", &["inputs[0]", "nowhere.npy: cannot be read: No such file"]),
    ("input_is_a_folder.json", &["inputs[0]", "cannot be read: a directory"]),
    (
        "input_truncated.json",
        &["inputs[0]", "bad_data_cut.npy: truncated: shape (3, 5) of f64 needs 120 bytes, file has 119"],
    ),
    ("input_header_cut.json", &["inputs[0]", "truncated: header needs 128 bytes, file has 50"]),
    ("input_empty.json", &["inputs[0]", "not a .npy file", "the file is empty"]),
    (
        "input_not_npy.json",
        &["inputs[0]", "bad_garbage.npy: not a .npy file: begins with", "needs \\x93NUMPY"],
    ),
    ("input_npz.json", &["inputs[0]", "not a .npy file: begins with `PK"]),
    ("input_of_strings.json", &["inputs[0]", "dtype `<U3` is not supported; allowed are f32, f64"]),
    ("input_not_a_path.json", &["field `inputs[0]` is 7, needs a path"]),
    ("inputs_not_a_list.json", &["field `inputs` is \"../arrays/in_sort_f32.npy\", needs an array of paths"]),
    ("too_few_inputs.json", &["field `inputs`: matmul: 1 inputs, needs 2 (a, b)"]),
    ("dtype_f16.json", &["inputs[0]", "dtype `<f2` is not supported; allowed are f32, f64"]),
    ("dtype_integers.json", &["matmul: inputs[0] \"a\" has dtype i32, needs f32, f64"]),
    ("dtypes_differ.json", &["matmul: inputs[1] \"b\" has dtype f64, needs f32"]),
    ("shapes_do_not_fit.json", &["matmul: inputs[1] \"b\" has shape (13, 17), needs (17, *)"]),
    ("too_many_axes.json", &["matmul: inputs[1] \"b\" has shape (17, 9), needs (6, *) or (4, 6, *)"]),
    ("axis_out_of_range.json", &["parameter `axis` is 3, needs a whole number from -3 to 2"]),
    ("k_above_corpus.json", &["knn: inputs[1] \"corpus\" has shape (90, 12)", "because k is 1000"]),
    ("kernel_misspelt.json", &["field `kernel`: no kernel is called \"matmull\"; did you mean \"matmul\"?"]),
    ("kernel_unknown.json", &["field `kernel`: no kernel is called \"teleport\"; there are matmul, dot"]),
    ("kernel_missing.json", &["field `kernel` is missing; it is one of matmul, dot"]),
    ("kernel_not_a_word.json", &["field `kernel` is 5, needs one of matmul, dot"]),
    ("field_misspelt.json", &["unknown field `priorty`; did you mean `priority`?"]),
    ("field_unknown.json", &["unknown field `colour`; allowed are id, kernel, inputs"]),
    (
        "parameter_misspelt.json",
        &["field `params`: sleep: unknown parameter `second`; did you mean `seconds`?"],
    ),
    (
        "parameter_of_a_kernel_without.json",
        &["field `params`: noop: unknown parameter `speed`; it takes none"],
    ),
    ("parameter_out_of_range.json", &["sleep: parameter `seconds` is -1, needs a number from 0"]),
    ("parameter_of_wrong_type.json", &["parameter `op` is \"median\", needs one of sum, mean, min, max"]),
    ("params_not_an_object.json", &["field `params` is [1], needs an object"]),
    ("output_missing.json", &["field `output` is missing; matmul writes an array"]),
    ("output_not_wanted.json", &["field `output`: dot yields numbers", "leave the field out"]),
    (
        "output_folder_missing.json",
        &["output: ", "no/such/folder/z.npy: cannot be written: No such file or directory"],
    ),
    (
        "output_is_a_folder.json",
        &["output: ", "cannot be written: something that is not a regular file stands there"],
    ),
    ("priority_unknown.json", &["field `priority` is \"urgent\", needs high, normal or low"]),
    ("timeout_negative.json", &["field `timeout_s` is -1, needs a number of seconds above 0"]),
    ("retries_not_whole.json", &["field `retries` is 1.5, needs a whole number from 0"]),
    ("backend_unknown.json", &["field `backend` is \"cuda\", needs auto or one that this host has: scalar"]),
    ("after_not_a_list.json", &["field `after` is \"good\", needs an array of task ids"]),
    ("after_unknown.json", &["field `after`: no task has the id \"goood\""]),
    ("after_itself.json", &["field `after`: the tasks wait for each other in a cycle: bad -> bad"]),
    ("after_a_cycle.json", &["field `after`: the tasks wait for each other in a cycle: c -> b -> bad -> c"]),
    ("after_a_failed_one.json", &["not run: task \"broken\", which it comes after, failed"]),
    ("after_a_refused_one.json", &["field `after`: task \"wrong\" was refused or did not succeed"]),
];

/// The wrong task has no name of its own.
const NAMELESS: &[(&str, &[&str])] = &[
    ("id_twice.json", &["task \"good\": field `id`: another task has this id; ids must be unique"]),
    ("id_not_a_word.json", &["task #1: field `id` is 7, needs a string"]),
    ("number_instead_of_task.json", &["task #1: found a number, needs an object with at least `kernel`"]),
    ("field_twice.jsonl", &["field_twice.jsonl:2:27: not valid JSON: the key `kernel` is given twice"]),
    ("broken_line.jsonl", &["broken_line.jsonl:2:25: not valid JSON: expected value"]),
];

/// The job is wrong as a whole: nothing runs, exit code 2.
const WRONG_JOBS: &[(&str, &[&str])] = &[
    ("field_twice.json", &["field_twice.json:3:43: not valid JSON: the key `kernel` is given twice"]),
    ("broken_json.json", &["broken_json.json:3:1: not valid JSON"]),
    ("number_instead_of_job.json", &["found a number, needs an object {\"tasks\": [...]}"]),
    ("list_instead_of_job.json", &["found an array, needs an object {\"tasks\": [...]}"]),
    ("tasks_not_a_list.json", &["`tasks` is an object, needs an array of tasks"]),
    ("tasks_misspelt.json", &["unknown key `task`; a job has the key `tasks`"]),
    ("no_tasks.json", &["the key `tasks` is missing"]),
    ("not_text.json", &["not_text.json: cannot be read", "UTF-8"]),
    ("no_such_file.json", &["no_such_file.json: cannot be read: No such file or directory"]),
];

/// A place with the job files beside their arrays: outputs go there and not into the source tree.
fn place() -> Place {
    let place = Place::new();
    fs::create_dir(place.path("jobs")).expect("a folder");
    for entry in fs::read_dir(fixture("jobs")).expect("the job files").flatten() {
        fs::copy(entry.path(), place.path("jobs").join(entry.file_name())).expect("copied");
    }
    std::os::unix::fs::symlink(fixture("arrays"), place.path("arrays")).expect("a link");
    place
}

#[track_caller]
fn in_order(text: &str, words: &[&str], what: &str) {
    let mut rest = text;
    for word in words {
        let at = rest
            .find(word)
            .unwrap_or_else(|| panic!("{what}: {text:?} lacks {word:?}, or not in this order"));
        rest = &rest[at + word.len()..];
    }
}

#[test]
fn a_wrong_task_is_named_with_what_is_wrong_and_the_others_go_on() {
    let place = place();
    for (file, words) in WRONG_TASKS {
        let job = format!("jobs/{file}");
        let ran = place
            .cli(&["run", &job, "--report", "report.json"])
            .ends(1)
            .says("good\t")
            .complains("task \"bad\"");
        let report = serde_json::from_str(&fs::read_to_string(place.path("report.json")).expect("a report"));
        let report: serde_json::Value = report.expect("JSON");
        is_report(&report);
        let (bad, good) = (detail(&report, "bad"), detail(&report, "good"));
        assert_eq!(good["state"], "succeeded", "{file}: {report:#}");
        assert_ne!(bad["state"], "succeeded", "{file}: {report:#}");
        in_order(bad["error"].as_str().unwrap_or_default(), words, file);
        in_order(&ran.err, words, file);
        assert_eq!(
            (&report["tasks"]["lost"], &report["tasks"]["duplicated"]),
            (&0.into(), &0.into()),
            "{file}"
        );
        // A wrong input stays wrong: it is not tried again.
        assert!(bad["attempts"].as_u64() <= Some(1), "{file}: {bad:#}");
        assert!(!place.path("jobs/z.npy").exists(), "{file}: an output of a task that failed");
        place.is_clean();
    }
}

#[test]
fn a_wrong_task_without_a_name_is_found_by_its_place() {
    let place = place();
    for (file, words) in NAMELESS {
        let job = format!("jobs/{file}");
        let ran = place.cli(&["run", &job, "--report", "report.json"]).ends(1).says("good\t");
        in_order(&ran.err, words, file);
    }
}

#[test]
fn a_job_that_is_wrong_as_a_whole_runs_nothing() {
    let place = place();
    for (file, words) in WRONG_JOBS {
        let job = format!("jobs/{file}");
        let ran = place.cli(&["run", &job, "--report", "report.json"]).ends(2).complains("hint: ");
        in_order(&ran.err, words, file);
        assert!(ran.out.is_empty(), "{}", ran.story());
        assert!(!place.path("report.json").exists(), "{file}");
    }
}

#[test]
fn one_bad_file_among_good_ones_starts_nothing() {
    let place = place();
    place.write("good.json", r#"{"tasks": [{"id": "x", "kernel": "noop"}]}"#);
    place.cli(&["run", "good.json", "jobs/broken_json.json"]).ends(2).complains("broken_json.json:3:1");
}

#[test]
fn every_job_file_of_the_fixtures_is_used() {
    let used: BTreeSet<String> =
        [WRONG_TASKS, NAMELESS, WRONG_JOBS].concat().iter().map(|(file, _)| (*file).to_owned()).collect();
    for entry in fs::read_dir(fixture("jobs")).expect("the job files").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(used.contains(&name), "tests/fixtures/jobs/{name} is in no table");
    }
}
