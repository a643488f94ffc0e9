//! Links the binary to a fixed address, and the unwinder into it.
//!
//! Every agent is a process of this binary, and somebody waits for the one that replaces a dead one. Loaded at a random
//! address, the loader has to write to some sixty pages of tables first, which costs each start 0.4 to 0.5 ms of 3 here.
//! The price: the addresses of our own code are known to an attacker. Stacks, libraries and all shared memory stay at random
//! ones. A static binary has no loader and is left as it is.
//!
//! The unwinder is the compiler's `libgcc_s`, a library of its own that nothing else is needed from: found, mapped and asked for
//! the processor's kind, which a hypervisor answers slowly, 0.1 to 0.2 ms of each start. Where the compiler has it as an archive,
//! `libgcc_eh`, that is linked instead.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    let is_static = features.split(',').any(|feature| feature == "crt-static");
    if is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu") && !is_static {
        println!("cargo:rustc-link-arg-bins=-no-pie");
        // The compiler that links knows the archive; when another target is built for, it is another one, and this one's is of no use.
        let is_native = env::var("HOST") == env::var("TARGET");
        if let Some(folder) = is_native.then(folder_of_unwinder).flatten() {
            println!("cargo:rustc-link-search=native={}", folder.display());
            println!("cargo:rustc-link-lib=static:-bundle=gcc_eh");
        }
    }
}

fn folder_of_unwinder() -> Option<PathBuf> {
    let answer = Command::new("cc").arg("-print-file-name=libgcc_eh.a").output().ok()?;
    // Without one it prints the bare name.
    let path = PathBuf::from(String::from_utf8(answer.stdout).ok()?.trim());
    (path.is_absolute() && path.exists()).then(|| path.parent().map(PathBuf::from)).flatten()
}
