//! Security domains: who shares frames with whom.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use numerge_engine::machine::{Frames, Nodes};
use numerge_engine::{Engine, EngineError, EngineOptions};
use numerge_linux::{FramePools, Machine};
use numerge_protocol::Reason;
use numerge_topology::Topology;

use crate::options::Domains;
use crate::rejection::Rejection;

/// The user that stands for all that a user namespace does not know (`kernel.overflowuid`).
const NOBODY: u32 = 65534;

/// Which domain it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum DomainId {
    /// That of the clients of a user and user namespace that ask for no other.
    User {
        /// The user.
        uid: u32,
        /// Device and inode of the namespace.
        namespace: (u64, u64),
    },
    /// One that the configuration lists.
    Named(String),
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User { uid, namespace } => write!(f, "user {uid} in user:[{}]", namespace.1),
            Self::Named(name) => f.write_str(name),
        }
    }
}

impl Domains {
    /// The domain that a client of a user may be in, as it asked for.
    pub(crate) fn resolve(
        &self,
        uid: u32,
        namespace: (u64, u64),
        wanted: Option<&str>,
    ) -> Result<DomainId, Rejection> {
        let refused = |text: String| Err(Rejection::new(Reason::Domain, text));
        match wanted {
            Some(name) => match self.named.get(name) {
                // The same for a domain that there is not: who may not be in it is not to know.
                Some(members) if members.users.contains(&uid) => Ok(DomainId::Named(name.into())),
                _ => refused(format!("user {uid} may not be in domain {name}")),
            },
            None if !self.by_user => refused("ask for a domain by its name".into()),
            None if uid == NOBODY => {
                refused(format!("user {NOBODY} may be anybody: ask for a domain by its name"))
            }
            None => Ok(DomainId::User { uid, namespace }),
        }
    }
}

/// A security domain: programs whose equal pages are merged with each other, and with no others.
pub struct Domain {
    id: DomainId,
    engine: Engine,
    pools: Arc<FramePools>,
    members: AtomicUsize,
}

/// A client's place in its domain, which stays for as long as anybody has one.
pub(crate) struct Member(Arc<Domain>);

impl Deref for Member {
    type Target = Arc<Domain>;

    fn deref(&self) -> &Arc<Domain> {
        &self.0
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.0.members.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Why there is no domain.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DomainError {
    #[error(transparent)]
    Pools(#[from] numerge_linux::Error),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl Domain {
    pub(crate) fn new(
        id: DomainId,
        topology: &Arc<Topology>,
        options: EngineOptions,
    ) -> Result<Self, DomainError> {
        let pools = Arc::new(FramePools::new(Arc::clone(topology))?);
        let frames: Arc<dyn Frames> = pools.clone();
        let nodes: Arc<dyn Nodes> = Arc::new(Machine::new(Arc::clone(topology)));
        // Full scans are counted from outside: see `scans`.
        let options = EngineOptions { advise_by_visits: false, ..options };
        let engine = Engine::new(frames, nodes, options)?;
        Ok(Self { id, engine, pools, members: AtomicUsize::new(0) })
    }

    pub(crate) fn join(self: &Arc<Self>) -> Member {
        self.members.fetch_add(1, Ordering::SeqCst);
        Member(Arc::clone(self))
    }

    /// Whether it has no members. Others may look at it all the same, or scan it.
    pub(crate) fn is_idle(&self) -> bool {
        self.members.load(Ordering::SeqCst) == 0
    }

    /// Which one it is.
    #[must_use]
    pub const fn id(&self) -> &DomainId {
        &self.id
    }

    /// Its engine. What is set here holds for this domain alone.
    #[must_use]
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Its frames.
    #[must_use]
    pub const fn pools(&self) -> &Arc<FramePools> {
        &self.pools
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Members;

    #[test]
    fn s6_a_named_domain_is_for_its_members_only() {
        let members = Members { users: [7, 8].into() };
        let domains = Domains { by_user: true, named: [("both".to_owned(), members)].into() };
        let namespace = (1, 2);
        let named = |uid, name| domains.resolve(uid, namespace, Some(name));
        assert_eq!(named(7, "both"), Ok(DomainId::Named("both".into())));
        assert_eq!(named(9, "both").unwrap_err().reason, Reason::Domain);
        assert_eq!(named(7, "other").unwrap_err().reason, Reason::Domain);
        let own = domains.resolve(7, namespace, None).unwrap();
        assert_eq!(own, DomainId::User { uid: 7, namespace });
        assert_ne!(own, domains.resolve(8, namespace, None).unwrap());
        assert_ne!(own, domains.resolve(7, (1, 3), None).unwrap());
        assert!(domains.resolve(NOBODY, namespace, None).is_err());
        let named_only = Domains { by_user: false, ..domains };
        assert!(named_only.resolve(7, namespace, None).is_err());
    }
}
