//! One plain process that runs a job file task after task: what the swarm is compared with.

use crate::arrays::{NpyFile, write_npy};
use crate::jobs::{Body, Defaults, parse_file};
use crate::kernels::{Call, KernelId, Level, Variant, check_params, run};
use std::ffi::OsString;
use std::path::Path;
use std::time::Instant;

/// The word that makes the binary such a process.
pub const SINGLE_WORD: &str = "__single";

/// Runs the job file; prints `{"wall_s": …}`. Returns the exit code.
pub(super) fn main(mut words: impl Iterator<Item = OsString>) -> u8 {
    let Some(job) = words.next() else { return super::exit::WRONG };
    match run_all(Path::new(&job)) {
        Ok(wall_s) => {
            println!("{}", serde_json::json!({ "wall_s": wall_s }));
            super::exit::DONE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            super::exit::FAILED
        }
    }
}

fn run_all(job: &Path) -> anyhow::Result<f64> {
    let began = Instant::now();
    for task in parse_file(job, &Defaults { timeout: None, retries: 0 })? {
        let task = task.map_err(|refused| anyhow::anyhow!(refused.error))?;
        let kernel = KernelId::from_code(task.kernel).expect("a parsed task has a kernel");
        let body = Body::decode(&task.body)?;
        let params = check_params(kernel, &body.params)?;
        let inputs = body
            .inputs
            .iter()
            .map(|path| NpyFile::open(path)?.into_array())
            .collect::<Result<Vec<_>, _>>()?;
        let variant = Variant::default_for(kernel, Level::best());
        let outcome = run(&Call { kernel, params: &params, inputs: &inputs, variant, pulse: &() })?;
        if let (Some(output), Some(array)) = (&body.output, &outcome.array) {
            write_npy(output, array, "single")?;
        }
    }
    Ok(began.elapsed().as_secs_f64())
}
