//! Which files there are, and what each is about.

use numerge_engine::{Counters, Knob, Nid, NodeReport};

use crate::source::Source;
use crate::text;

/// A counter of the whole host.
type Host = fn(&Counters) -> i128;
/// A counter of a node.
type OfNode = fn(&NodeReport) -> i128;

/// The counters of the kernel's directory.
const COUNTERS: [(&str, Host); 11] = [
    ("full_scans", |c| c.full_scans.into()),
    ("general_profit", |c| c.general_profit().into()),
    ("ksm_zero_pages", |c| c.ksm_zero_pages.into()),
    ("pages_scanned", |c| c.pages_scanned.into()),
    ("pages_shared", |c| c.pages_shared.into()),
    ("pages_sharing", |c| c.pages_sharing.into()),
    ("pages_skipped", |c| c.pages_skipped.into()),
    ("pages_unshared", |c| c.pages_unshared.into()),
    ("pages_volatile", |c| c.pages_volatile.into()),
    ("stable_node_chains", |c| c.stable_node_chains.into()),
    ("stable_node_dups", |c| c.stable_node_dups.into()),
];

/// Counters that the kernel does not have, in `numerge/`.
const OWN: [(&str, Host); 12] = [
    ("bytes_saved", |c| c.bytes_saved().into()),
    ("epoch_lag", |c| c.epoch_lag.into()),
    ("fingerprint_collisions", |c| c.fingerprint_collisions.into()),
    ("frames_refused", |c| c.frames_refused.into()),
    ("metadata_bytes", |c| c.metadata_bytes.into()),
    ("pages_broken", |c| c.pages_broken.into()),
    ("pages_held", |c| c.pages_held.into()),
    ("pages_over_budget", |c| c.pages_over_budget.into()),
    ("pages_registered", |c| c.pages_registered.into()),
    ("pages_untouched", |c| c.pages_untouched.into()),
    ("stable_nodes_queued", |c| c.stable_nodes_queued.into()),
    ("stable_nodes_replaced", |c| c.stable_nodes_replaced.into()),
];

/// Those of `nodes/N/`: all of [`COUNTERS`], and some of our own.
const NODE: [(&str, OfNode); 20] = [
    ("full_scans", |n| n.full_scans.into()),
    ("general_profit", |n| n.general_profit().into()),
    ("ksm_zero_pages", |n| n.ksm_zero_pages.into()),
    ("metadata_bytes", |n| n.metadata_bytes.into()),
    ("metadata_bytes_remote", |n| n.metadata_bytes_remote.into()),
    ("online", |n| n.online.into()),
    ("pages_broken", |n| n.pages_broken.into()),
    ("pages_home", |n| n.pages_home.into()),
    ("pages_scanned", |n| n.pages_scanned.into()),
    ("pages_scanned_remote", |n| n.pages_scanned_remote.into()),
    ("pages_shared", |n| n.pages_shared.into()),
    ("pages_sharing", |n| n.pages_sharing.into()),
    ("pages_skipped", |n| n.pages_skipped.into()),
    ("pages_unshared", |n| n.pages_unshared.into()),
    ("pages_volatile", |n| n.pages_volatile.into()),
    ("sharers_remote", |n| n.sharers_remote.into()),
    ("stable_node_chains", |n| n.stable_node_chains.into()),
    ("stable_node_dups", |n| n.stable_node_dups.into()),
    ("stable_nodes_left", |n| n.stable_nodes_left.into()),
    ("stable_nodes_replaced", |n| n.stable_nodes_replaced.into()),
];

/// What a file or directory is.
#[derive(Clone)]
pub(crate) enum Kind {
    /// With the numbers of what is in it.
    Directory(Vec<usize>),
    Knob(Knob),
    Counter(Host),
    OfNode(Nid, OfNode),
    /// A directory in which each process has one: see `processes`.
    Processes,
}

#[derive(Clone)]
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) parent: usize,
    pub(crate) kind: Kind,
}

impl File {
    pub(crate) const fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory(_) | Kind::Processes)
    }

    /// What is in it now. May take as long as the source does.
    pub(crate) fn read(&self, source: &dyn Source) -> String {
        match self.kind {
            Kind::Directory(_) | Kind::Processes => String::new(),
            Kind::Knob(knob) => text::format(knob, source.knob(knob)),
            Kind::Counter(counter) => format!("{}\n", counter(&source.counters())),
            Kind::OfNode(nid, counter) => {
                let nodes = source.nodes();
                let found = nodes.iter().find(|node| node.nid == nid);
                format!("{}\n", found.map_or(0, counter))
            }
        }
    }
}

/// All files, by their numbers. The root's is [`ROOT`].
pub(crate) struct Files(Vec<File>);

pub(crate) const ROOT: usize = 0;

impl Files {
    pub(crate) fn new(nids: &[Nid], has_processes: bool) -> Self {
        let directory = || Kind::Directory(Vec::new());
        let mut files = Self(vec![File { name: String::new(), parent: ROOT, kind: directory() }]);
        for knob in Knob::ALL {
            files.add(ROOT, knob.name(), Kind::Knob(knob));
        }
        for (name, counter) in COUNTERS {
            files.add(ROOT, name, Kind::Counter(counter));
        }
        let own = files.add(ROOT, "numerge", directory());
        for (name, counter) in OWN {
            files.add(own, name, Kind::Counter(counter));
        }
        if has_processes {
            files.add(own, "proc", Kind::Processes);
        }
        let nodes = files.add(ROOT, "nodes", directory());
        for nid in nids {
            let node = files.add(nodes, &nid.to_string(), directory());
            for (name, counter) in NODE {
                files.add(node, name, Kind::OfNode(*nid, counter));
            }
        }
        files
    }

    fn add(&mut self, parent: usize, name: &str, kind: Kind) -> usize {
        let number = self.0.len();
        if let Kind::Directory(inside) = &mut self.0[parent].kind {
            inside.push(number);
        }
        self.0.push(File { name: name.into(), parent, kind });
        number
    }

    pub(crate) fn get(&self, number: usize) -> Option<&File> {
        self.0.get(number)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// What is in a directory, by number; None if it is none.
    pub(crate) fn inside(&self, number: usize) -> Option<&[usize]> {
        match &self.get(number)?.kind {
            Kind::Directory(inside) => Some(inside),
            Kind::Processes => Some(&[]),
            _ => None,
        }
    }

    pub(crate) fn find(&self, parent: usize, name: &str) -> Option<usize> {
        self.inside(parent)?.iter().copied().find(|number| self.0[*number].name == name)
    }
}
