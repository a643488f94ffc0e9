//! A process of your own on a running swarm: tasks, a request to an agent, a topic.
//!
//! ```sh
//! cargo run --release -- &                     # a swarm
//! cargo run --release --example client         # this
//! ```

use ai_swarm::client::{Attach, Mail, Rule, What};
use serde_json::json;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let swarm = std::env::args().nth(1).unwrap_or_else(|| "default".to_owned());
    let second = Duration::from_secs(1);
    let mut client = Attach::to(&swarm).attach()?;
    println!("attached to {} as {}", client.swarm(), client.id());

    let ticket = client.submit_json(&json!({ "kernel": "monte_carlo", "params": { "paths": 100_000 } }))?;
    let end = client.wait(ticket, 10 * second)?;
    println!("a task {} on agent {:?}: {}", end.state, end.agent, end.text.as_deref().unwrap_or(""));

    let agent = client.connect("compute-0")?;
    println!("compute-0 says {}", String::from_utf8_lossy(&client.call(agent, b"status", second)?));

    // The same round trip again and again: both sides stay awake.
    let (rounds, began) = (10_000, Instant::now());
    for round in 0..rounds {
        let payload = u64::to_le_bytes(round);
        assert_eq!(client.call(agent, &payload, second)?, payload);
    }
    println!(
        "{rounds} requests and replies, {:.2} us each",
        began.elapsed().as_secs_f64() * 1e6 / rounds as f64
    );

    // A second member in the same process; it could be any other.
    let mut subscriber = Attach::to(&swarm).attach()?;
    subscriber.subscribe("demo/news", Rule::Block { within_ms: 100 })?;
    client.publish("demo/news", b"small")?;
    client.publish("demo/news", &vec![7; 10 << 20])?;
    let mut mail = Mail::default();
    while subscriber.receive(&mut mail, second / 10)? {
        let What::Topic(topic) = mail.what else { continue };
        let place = if mail.parcel.is_some() { "in the publisher's arena" } else { "in the ring" };
        println!("{}: {} bytes {place}", subscriber.port().topic_name(topic).unwrap_or("?"), mail.len());
    }
    Ok(())
}
