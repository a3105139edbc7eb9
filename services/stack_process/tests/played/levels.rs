//! What a played server has to report: of each object the latest state, to each client what it was not told.

use std::collections::BTreeMap;

use device_control::{Completion, PendingRequest};
use serde::Serialize;

#[derive(Default)]
pub struct Levels {
    levels: BTreeMap<String, Vec<u8>>,
    clients: BTreeMap<u64, Client>,
}

#[derive(Default)]
struct Client {
    told: BTreeMap<String, Vec<u8>>,
    pending: Option<PendingRequest>,
}

impl Levels {
    pub fn set(&mut self, object: String, level: &impl Serialize) {
        self.levels.insert(object, serde_json::to_vec(level).unwrap());
        self.serve();
    }

    /// The same of what was something else in between, that nobody was told of.
    pub fn set_anew(&mut self, object: String, level: &impl Serialize) {
        for client in self.clients.values_mut() {
            client.told.remove(&object);
        }
        self.set(object, level);
    }

    /// A client asks for the next report.
    pub fn next(&mut self, client: u64, pending: PendingRequest) {
        self.clients.entry(client).or_default().pending = Some(pending);
        self.serve();
    }

    /// Whether somebody listens who was told everything.
    pub fn all_told(&self) -> bool {
        let told =
            |client: &Client| client.pending.is_some() && news(&self.levels, client).is_none();
        !self.clients.is_empty() && self.clients.values().all(told)
    }

    pub fn gone(&mut self, client: u64) {
        self.clients.remove(&client);
    }

    fn serve(&mut self) {
        for client in self.clients.values_mut().filter(|client| client.pending.is_some()) {
            let Some((object, level)) = news(&self.levels, client) else { continue };
            client.told.insert(object.clone(), level.clone());
            let pending = client.pending.take().unwrap();
            let _ = pending.complete(Completion::output(level.clone(), 4096));
        }
    }
}

/// What a client was not told.
fn news<'a>(
    levels: &'a BTreeMap<String, Vec<u8>>,
    client: &Client,
) -> Option<(&'a String, &'a Vec<u8>)> {
    levels.iter().find(|(object, level)| client.told.get(*object) != Some(*level))
}
