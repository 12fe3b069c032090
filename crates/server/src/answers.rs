//! Waiting for what clients were asked, by who holds nobody up: for all of them at once, however many are
//! silent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::domain::Domain;
use crate::host::Host;

/// Between two looks at whether they have answered.
const SOON: Duration = Duration::from_millis(1);

/// How far a client is with what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answers {
    /// None of what it was asked by then is a question any more.
    All,
    /// It may answer yet.
    Owed,
    /// It says nothing, or nothing of that.
    Silence,
}

impl Host {
    /// The clients of a domain that are served.
    pub(crate) fn clients_of(&self, domain: &Arc<Domain>) -> Vec<Arc<Client>> {
        let mut clients = self.all_clients();
        clients.retain(|client| Arc::ptr_eq(&client.domain, domain));
        clients
    }

    /// Waits until none of the clients may answer yet what it was asked by now, for as long as that is wanted
    /// and the server does not end. Gives those that are silent.
    pub(crate) fn wait_for_answers(
        &self,
        clients: &[Arc<Client>],
        is_wanted: impl Fn() -> bool,
    ) -> Vec<Arc<Client>> {
        let since = Instant::now();
        loop {
            let answers: Vec<_> =
                clients.iter().map(|client| client.memory.answers(since)).collect();
            if !answers.contains(&Answers::Owed) || !is_wanted() || self.waits_to_stop(SOON) {
                let silent = clients.iter().zip(answers);
                let silent = silent.filter(|(_, answers)| *answers == Answers::Silence);
                return silent.map(|(client, _)| Arc::clone(client)).collect();
            }
        }
    }
}
