//! Messages that come over HTTP go on through shared memory: the gateway is a client of the swarm like any other.
//!
//! It attaches when the first message comes, on a thread of its own, which sleeps while nobody sends anything. The
//! supervisor never sees these messages.

use super::Ask;
use crate::base::clock::Nanos;
use crate::client::{Attach, Client, ClientError, Correlation, Mail, Peer, PortError, What};
use crate::messaging::Lane;
use crate::os::clock;
use crate::supervisor::action::{Action, Answer, Refused, Reply};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// While a reply is awaited, new messages are looked for this often.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Takes messages out of the stream of actions and delivers them; hands everything else on.
pub(super) struct Messenger {
    supervisor: Arc<dyn Ask>,
    jobs: Sender<(Action, Answer)>,
}

impl Messenger {
    /// Delivers through the swarm whose control socket is `control`.
    pub(super) fn start(supervisor: Arc<dyn Ask>, control: &Path) -> std::io::Result<Self> {
        let (jobs, receiver) = unbounded();
        let courier = Courier {
            supervisor: supervisor.clone(),
            control: control.to_owned(),
            client: None,
            awaited: Vec::new(),
            mail: Mail::default(),
        };
        std::thread::Builder::new().name("messenger".to_owned()).spawn(move || courier.run(&receiver))?;
        Ok(Self { supervisor, jobs })
    }
}

impl Ask for Messenger {
    fn ask(&self, action: Action, answer: Answer) {
        match action {
            Action::SendMessage { .. } | Action::BroadcastMessage { .. } => {
                // Without its thread the answer is dropped, which the asker notices.
                let _ = self.jobs.send((action, answer));
            }
            action => self.supervisor.ask(action, answer),
        }
    }
}

struct Awaited {
    correlation: Correlation,
    asked: Nanos,
    deadline: Nanos,
    answer: Answer,
}

struct Courier {
    supervisor: Arc<dyn Ask>,
    control: PathBuf,
    client: Option<Client>,
    awaited: Vec<Awaited>,
    mail: Mail,
}

impl Courier {
    /// Until the gateway is gone.
    fn run(mut self, jobs: &Receiver<(Action, Answer)>) {
        loop {
            let job = if self.awaited.is_empty() {
                jobs.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                jobs.try_recv().map_err(|error| match error {
                    crossbeam::channel::TryRecvError::Empty => RecvTimeoutError::Timeout,
                    crossbeam::channel::TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                })
            };
            match job {
                Ok((action, answer)) => self.deliver(action, answer),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if !self.awaited.is_empty() {
                self.hear();
            } else if let Some(client) = &mut self.client {
                // The next message may be long in coming: what was counted is shown now.
                client.port().tidy();
            }
        }
    }

    fn deliver(&mut self, action: Action, answer: Answer) {
        let outcome = match action {
            Action::SendMessage { to, payload, request: None } => {
                self.send(&to, &payload).map(|()| sent(1, None, None))
            }
            Action::SendMessage { to, payload, request: Some(within) } => {
                match self.request(&to, &payload, within) {
                    Ok(correlation) => {
                        let asked = clock::now();
                        let deadline = asked.plus(within);
                        self.awaited.push(Awaited { correlation, asked, deadline, answer });
                        return;
                    }
                    Err(error) => Err(error),
                }
            }
            Action::BroadcastMessage { topic, payload } => {
                self.broadcast(topic.as_deref(), &payload).map(|delivered| sent(delivered, None, None))
            }
            _ => return,
        };
        answer(outcome.unwrap_or_else(|error| self.refusal(&error)));
    }

    fn refusal(&mut self, error: &ClientError) -> Reply {
        let is_ours = |error: &ClientError| {
            matches!(error, ClientError::Ended | ClientError::Broken(_) | ClientError::NotRunning { .. })
                || matches!(error, ClientError::Port(PortError::Supervisor(_)))
        };
        if is_ours(error) {
            // The next message attaches anew.
            self.client = None;
        }
        let text = error.to_string();
        Reply::Refused(match error {
            ClientError::Port(PortError::Refused(_)) if text.starts_with("no member") => {
                Refused::NotFound(text)
            }
            _ => Refused::Conflict(text),
        })
    }

    fn client(&mut self) -> Result<&mut Client, ClientError> {
        if self.client.as_ref().is_none_or(Client::has_ended) {
            let client = Attach::at(&self.control).as_client("gateway").spin(false).attach()?;
            self.client = Some(client);
        }
        let client = self.client.as_mut().expect("just made");
        client.turn()?;
        if client.has_ended() {
            return Err(ClientError::Ended);
        }
        Ok(client)
    }

    /// The line to a member.
    fn peer(&mut self, to: &str) -> Result<(&mut Client, Peer), ClientError> {
        let client = self.client()?;
        if to == client.id() {
            return Err(ClientError::Refused(format!(
                "{to:?} is this door itself: what is sent here goes on to agents and clients"
            )));
        }
        let peer = client.connect(to)?;
        Ok((client, peer))
    }

    fn send(&mut self, to: &str, payload: &[u8]) -> Result<(), ClientError> {
        let (client, peer) = self.peer(to)?;
        client.send(peer, payload)
    }

    fn request(&mut self, to: &str, payload: &[u8], within: Duration) -> Result<Correlation, ClientError> {
        let (client, peer) = self.peer(to)?;
        let correlation = client.port().request(peer, Lane::Normal, payload, within)?;
        client.flush();
        Ok(correlation)
    }

    fn broadcast(&mut self, topic: Option<&str>, payload: &[u8]) -> Result<usize, ClientError> {
        if let Some(topic) = topic {
            return self.client()?.publish(topic, payload);
        }
        let ids = self.members();
        let client = self.client()?;
        let own = client.id().to_owned();
        let mut peers: Vec<Peer> = Vec::new();
        for id in ids.iter().filter(|id| **id != own) {
            // One that left since then is no error.
            peers.extend(client.connect(id).ok());
        }
        client.broadcast(&peers, payload)
    }

    /// Everybody that a line can lead to.
    fn members(&self) -> Vec<String> {
        let mut ids = Vec::new();
        if let Some(Reply::Agents(agents)) = self.call(Action::Agents) {
            ids.extend(agents.into_iter().filter(|agent| agent.state == "ready").map(|agent| agent.id));
        }
        if let Some(Reply::Statistics(statistics)) = self.call(Action::Statistics) {
            ids.extend(statistics.members.into_iter().map(|member| member.id));
        }
        ids
    }

    fn call(&self, action: Action) -> Option<Reply> {
        let (sender, receiver) = crossbeam::channel::bounded(1);
        let answer = move |reply| {
            let _ = sender.send(reply);
        };
        self.supervisor.ask(action, Box::new(answer));
        receiver.recv_timeout(Duration::from_secs(5)).ok()
    }

    /// Takes replies; tells those whose time is over.
    fn hear(&mut self) {
        let mut mail = std::mem::take(&mut self.mail);
        let heard = match self.client() {
            Ok(client) => client.receive(&mut mail, LOOK_EVERY).unwrap_or(false),
            // Nothing can be heard for now, which is no reason to ask a thousand times a millisecond.
            Err(_) => {
                std::thread::sleep(LOOK_EVERY);
                false
            }
        };
        let now = clock::now();
        for at in (0..self.awaited.len()).rev() {
            let Awaited { correlation, asked, deadline, .. } = self.awaited[at];
            let reply = match mail.what {
                What::Reply(found) if heard && found == correlation => {
                    let took = now.since(asked).as_nanos() as f64 / 1000.0;
                    sent(1, Some(mail.to_vec()), Some(took))
                }
                What::Refusal(found) if heard && found == correlation => {
                    let why = String::from_utf8_lossy(&mail.to_vec()).into_owned();
                    Reply::Refused(Refused::Conflict(format!("the member gives no reply: {why}")))
                }
                _ if now >= deadline => sent(1, None, None),
                _ => continue,
            };
            (self.awaited.swap_remove(at).answer)(reply);
        }
        mail.parcel = None;
        self.mail = mail;
    }
}

fn sent(delivered: usize, reply: Option<Vec<u8>>, latency_us: Option<f64>) -> Reply {
    Reply::Sent { delivered, reply, latency_us }
}
