//! Links the binary to a fixed address.
//!
//! Every agent is a process of this binary, and somebody waits for the one that replaces a dead one. Loaded at a random
//! address, the loader has to write to some sixty pages of tables first, which costs each start 0.4 to 0.5 ms of 3 here.
//! The price: the addresses of our own code are known to an attacker. Stacks, libraries and all shared memory stay at random
//! ones. A static binary has no loader and is left as it is.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    let is_static = features.split(',').any(|feature| feature == "crt-static");
    if is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu") && !is_static {
        println!("cargo:rustc-link-arg-bins=-no-pie");
    }
}
