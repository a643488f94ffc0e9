//! `send` and `broadcast`: a message from the command line to members of a running swarm.

use super::inspect::{show_json, wrong_words};
use super::output::{OutputOptions, micros, plain, say};
use super::{Failure, exit};
use crate::gateway::client::Client;
use crate::gateway::payload::{self, PAYLOAD_BYTES_MAX};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::time::Duration;

/// The request of `broadcast`: the message is `text`, or else standard input.
pub(super) fn body(text: Option<&str>, topic: Option<&str>) -> Result<Value> {
    let payload = match text {
        Some(text) if text != "-" => text.as_bytes().to_vec(),
        None if io::stdin().is_terminal() => {
            return Err(Failure::new(exit::WRONG, "no message given")
                .hint("give it as a word, or on standard input: `-` reads it there")
                .into());
        }
        _ => read_input()?,
    };
    if payload.len() > PAYLOAD_BYTES_MAX {
        let words = format!("the message is too large: at most {PAYLOAD_BYTES_MAX} bytes can be sent");
        return Err(Failure::new(exit::WRONG, words).into());
    }
    let mut body = json!({ "payload": payload::to_json(&payload) });
    if let Some(topic) = topic {
        body["topic"] = topic.into();
    }
    Ok(body)
}

/// Standard input, and of one that is too long only so much that this is seen.
fn read_input() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::stdin()
        .lock()
        .take(PAYLOAD_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .context("cannot read standard input")?;
    Ok(bytes)
}

/// The request of `send`.
pub(super) fn send_body(to: &str, text: Option<&str>, reply_within: Option<Duration>) -> Result<Value> {
    let mut body = body(text, None)?;
    body["to"] = to.into();
    if let Some(span) = reply_within {
        body["reply_within_s"] = span.as_secs_f64().into();
    }
    Ok(body)
}

/// `send`. The reply goes to standard output, as it came.
pub(super) fn send(client: &mut Client, body: &Value, output: &OutputOptions) -> Result<u8> {
    let answer = match client.post("/api/v1/messages/send", body) {
        Ok(answer) => answer,
        Err(error) => return wrong_words(error),
    };
    if output.json {
        return show_json(&answer);
    }
    if answer["reply"].is_null() {
        say(output, &delivered(&answer));
        return Ok(exit::DONE);
    }
    let reply = payload::to_bytes(answer["reply"].clone()).map_err(anyhow::Error::msg)?;
    print_reply(&reply)?;
    if let Some(us) = answer["latency_us"].as_f64() {
        say(output, &format!("replied after {}", micros(us)));
    }
    Ok(exit::DONE)
}

/// `broadcast`.
pub(super) fn broadcast(client: &mut Client, body: &Value, output: &OutputOptions) -> Result<u8> {
    let answer = match client.post("/api/v1/messages/broadcast", body) {
        Ok(answer) => answer,
        Err(error) => return wrong_words(error),
    };
    if output.json {
        return show_json(&answer);
    }
    say(output, &delivered(&answer));
    Ok(exit::DONE)
}

fn delivered(answer: &Value) -> String {
    match answer["delivered"].as_u64() {
        Some(0) => "delivered to nobody".to_owned(),
        Some(1) => "delivered to 1 member".to_owned(),
        Some(n) => format!("delivered to {n} members"),
        None => "delivered".to_owned(),
    }
}

/// To a program every byte as it came, to a terminal nothing that could steer it.
fn print_reply(reply: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = if stdout.is_terminal() {
        match std::str::from_utf8(reply) {
            Ok(text) => text.lines().try_for_each(|line| writeln!(stdout, "{}", plain(line))),
            Err(_) => {
                writeln!(stdout, "{} bytes that are no text; redirect them, or use --json", reply.len())
            }
        }
    } else {
        let needs_end = std::str::from_utf8(reply).is_ok_and(|text| !text.ends_with('\n'));
        stdout.write_all(reply).and_then(|()| if needs_end { stdout.write_all(b"\n") } else { Ok(()) })
    };
    match written.and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_a_request() {
        let body = send_body("a", Some("hi"), Some(Duration::from_millis(1500))).expect("fine");
        assert_eq!(body, json!({"payload": "hi", "to": "a", "reply_within_s": 1.5}));
        assert_eq!(self::body(Some(""), None).expect("fine"), json!({"payload": ""}));
        let error = self::body(Some(&"x".repeat(PAYLOAD_BYTES_MAX + 1)), None).expect_err("too large");
        assert!(error.to_string().contains("at most 1048576 bytes"), "{error}");
    }

    #[test]
    fn who_has_it_is_said_in_words() {
        let words = [0, 1, 2].map(|n| delivered(&json!({ "delivered": n })));
        assert_eq!(words, ["delivered to nobody", "delivered to 1 member", "delivered to 2 members"]);
    }
}
