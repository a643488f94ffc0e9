//! The real binary with real processes: every test has its own folders and its own swarm names, waits for
//! conditions and not for times, and ends by looking whether a process, a segment or a socket is left.

mod api;
mod bench;
mod chaos;
mod cli;
mod clients;
mod death;
mod foresight;
mod gateway;
mod hedging;
mod hostile;
mod in_place;
mod intruder;
mod journal;
mod killing;
mod lifecycle;
mod mistakes;
mod placement;
mod run;
mod snapshots;
mod support;
mod takeover;
mod wide;
