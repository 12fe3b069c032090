//! What there is to count, by name.

use std::fmt;
use std::sync::Arc;

use numerge::{Counters, Knob, NodeReport};
use numerge_server::{ClientInfo, Domain, Server};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::together::Together;

/// Most programs that are named: those with most registered memory.
const PROGRAMS: usize = 512;

const PAGE_BYTES: i128 = 4096;

/// What kind of number it is.
#[derive(Clone, Copy)]
enum Kind {
    /// Goes up and down.
    Gauge,
    /// The same, in bytes.
    Bytes,
    /// Only rises, or begins anew.
    Counter,
}
use Kind::{Bytes, Counter, Gauge};

/// A number about something, its name and what it is.
type Figure<T> = (&'static str, Kind, &'static str, fn(&T) -> i128);

const HOST: [Figure<Counters>; 23] = [
    ("pages_registered", Gauge, "Pages of all programs that may be merged", |c| {
        c.pages_registered.into()
    }),
    ("pages_shared", Gauge, "Frames in use", |c| c.pages_shared.into()),
    ("pages_sharing", Gauge, "Pages saved: mapped to frames beyond the first of each", |c| {
        c.pages_sharing.into()
    }),
    ("pages_unshared", Gauge, "Candidates without a partner", |c| c.pages_unshared.into()),
    ("pages_volatile", Gauge, "Pages that change, or could not be merged", |c| {
        c.pages_volatile.into()
    }),
    ("ksm_zero_pages", Gauge, "Pages merged with the page of zeros", |c| c.ksm_zero_pages.into()),
    ("pages_untouched", Gauge, "Pages that no scan has found memory at", |c| {
        c.pages_untouched.into()
    }),
    ("pages_held", Gauge, "Candidates that the kernel would not merge (pinned)", |c| {
        c.pages_held.into()
    }),
    ("pages_over_budget", Gauge, "Candidates not merged for want of mappings", |c| {
        c.pages_over_budget.into()
    }),
    ("pages_scanned", Counter, "Looks at pages", |c| c.pages_scanned.into()),
    ("pages_skipped", Counter, "Looks left out by smart_scan", |c| c.pages_skipped.into()),
    ("pages_broken", Counter, "Merged pages found written to since", |c| c.pages_broken.into()),
    ("full_scans", Counter, "Times that everything was scanned, anew after run=2", |c| {
        c.full_scans.into()
    }),
    ("stable_node_chains", Gauge, "Contents with several frames", |c| c.stable_node_chains.into()),
    ("stable_node_dups", Gauge, "Frames of such contents", |c| c.stable_node_dups.into()),
    ("stable_nodes_queued", Gauge, "Frames moved by the system, waiting for their tree", |c| {
        c.stable_nodes_queued.into()
    }),
    ("stable_nodes_replaced", Counter, "Frames put in another tree after they moved", |c| {
        c.stable_nodes_replaced.into()
    }),
    ("fingerprint_collisions", Counter, "Two contents with one fingerprint", |c| {
        c.fingerprint_collisions.into()
    }),
    ("frames_refused", Counter, "Times that no new frame could be had", |c| {
        c.frames_refused.into()
    }),
    ("epoch_lag", Gauge, "Parts of the trees that wait to be freed", |c| c.epoch_lag.into()),
    ("metadata", Bytes, "What tracking takes", |c| c.metadata_bytes.into()),
    ("saved", Bytes, "What merging saves, tracking not subtracted", |c| c.bytes_saved().into()),
    ("general_profit", Bytes, "What merging saves less what tracking takes", |c| {
        c.general_profit().into()
    }),
];

/// What is counted of programs together, beside the engine's counters.
const ALL: [Figure<Together>; 2] = [
    ("mappings", Gauge, "Mappings of all programs when last counted", |all| {
        all.mappings.unwrap_or(0).into()
    }),
    (
        "stalls",
        Gauge,
        "Times that programs that are served were asked and silent for 100 ms",
        |all| all.stalls.count.into(),
    ),
];

const DOMAIN: [Figure<Counters>; 8] = [
    ("domain_pages_registered", Gauge, "As numerge_pages_registered, of a security domain", |c| {
        c.pages_registered.into()
    }),
    ("domain_pages_shared", Gauge, "As numerge_pages_shared, of a security domain", |c| {
        c.pages_shared.into()
    }),
    ("domain_pages_sharing", Gauge, "As numerge_pages_sharing, of a security domain", |c| {
        c.pages_sharing.into()
    }),
    ("domain_pages_unshared", Gauge, "As numerge_pages_unshared, of a security domain", |c| {
        c.pages_unshared.into()
    }),
    ("domain_pages_volatile", Gauge, "As numerge_pages_volatile, of a security domain", |c| {
        c.pages_volatile.into()
    }),
    ("domain_ksm_zero_pages", Gauge, "As numerge_ksm_zero_pages, of a security domain", |c| {
        c.ksm_zero_pages.into()
    }),
    ("domain_pages_broken", Counter, "As numerge_pages_broken, of a security domain", |c| {
        c.pages_broken.into()
    }),
    ("domain_saved", Bytes, "As numerge_saved_bytes, of a security domain", |c| {
        c.bytes_saved().into()
    }),
];

const OF_DOMAIN: [Figure<Together>; 2] = [
    ("domain_mappings", Gauge, "As numerge_mappings, of a security domain", |all| {
        all.mappings.unwrap_or(0).into()
    }),
    ("domain_stalls", Gauge, "As numerge_stalls, of a security domain", |all| {
        all.stalls.count.into()
    }),
];

const NODE: [Figure<NodeReport>; 17] = [
    ("node_online", Gauge, "Whether a NUMA node is online", |n| n.online.into()),
    ("node_pages_registered", Gauge, "Pages at home on a node: that its threads scan", |n| {
        n.pages_home.into()
    }),
    ("node_pages_shared", Gauge, "Frames in use on a node", |n| n.pages_shared.into()),
    ("node_pages_sharing", Gauge, "Pages saved by a node's frames", |n| n.pages_sharing.into()),
    ("node_pages_unshared", Gauge, "Candidates without a partner at home on a node", |n| {
        n.pages_unshared.into()
    }),
    ("node_pages_volatile", Gauge, "Pages at home on a node that change or were not merged", |n| {
        n.pages_volatile.into()
    }),
    ("node_ksm_zero_pages", Gauge, "Pages at home on a node merged with the page of zeros", |n| {
        n.ksm_zero_pages.into()
    }),
    ("node_pages_broken", Counter, "Merged pages at home on a node found written to since", |n| {
        n.pages_broken.into()
    }),
    ("node_sharers_remote", Gauge, "Pages at home elsewhere that map a node's frames", |n| {
        n.sharers_remote.into()
    }),
    ("node_pages_scanned", Counter, "Looks at a node's pages", |n| n.pages_scanned.into()),
    ("node_pages_scanned_remote", Counter, "Looks at a node's pages by others' threads", |n| {
        n.pages_scanned_remote.into()
    }),
    ("node_pages_skipped", Counter, "Looks at a node's pages left out by smart_scan", |n| {
        n.pages_skipped.into()
    }),
    ("node_stable_nodes_left", Counter, "Frames that left a node's tree", |n| {
        n.stable_nodes_left.into()
    }),
    ("node_stable_nodes_replaced", Counter, "Frames that came to a node's tree", |n| {
        n.stable_nodes_replaced.into()
    }),
    ("node_metadata", Bytes, "What tracking a node's pages takes on it", |n| {
        n.metadata_bytes.into()
    }),
    ("node_metadata_remote", Bytes, "What tracking a node's pages takes elsewhere", |n| {
        n.metadata_bytes_remote.into()
    }),
    ("node_saved", Bytes, "What a node's frames and its pages of zeros save", |n| {
        n.bytes_saved().into()
    }),
];

const PROGRAM: [Figure<ClientInfo>; 6] = [
    ("process_pages_registered", Gauge, "Pages of a process that may be merged", |c| {
        c.pages_registered.into()
    }),
    ("process_pages_merged", Gauge, "Pages of a process that are mapped to frames", |c| {
        c.counters.pages_merged.into()
    }),
    ("process_pages_broken", Counter, "Merged pages of a process found written to since", |c| {
        c.counters.pages_broken.into()
    }),
    ("process_saved", Bytes, "What a process has of what merging saves, an estimate", |c| {
        i128::from(c.counters.pages_saved) * PAGE_BYTES
    }),
    ("process_mappings", Gauge, "Mappings of a process when last counted, 0 if not", |c| {
        c.mappings.unwrap_or(0).into()
    }),
    ("process_stalls", Counter, "Times that a process was asked and silent for 100 ms", |c| {
        c.stalls.count.into()
    }),
];

/// All numbers of one moment, or nearly.
#[derive(Debug)]
struct Now {
    host: Counters,
    clients: usize,
    waiting_frames: u64,
    knobs: Vec<(Knob, u64)>,
    nodes: Vec<NodeReport>,
    all: Together,
    domains: Vec<(String, Counters, Together)>,
    programs: Vec<ClientInfo>,
}

/// All of a server's numbers, as OpenMetrics text.
pub(crate) fn text(server: &Server) -> Result<String, fmt::Error> {
    let mut programs = server.clients();
    let (clients, all) = (programs.len(), programs.iter().collect());
    let domain = |domain: &Arc<Domain>| {
        let its = programs.iter().filter(|program| program.domain == *domain.id());
        (domain.id().to_string(), domain.engine().counters(), its.collect())
    };
    let domains = server.domains().iter().map(domain).collect();
    programs.sort_by_key(|client| std::cmp::Reverse(client.pages_registered));
    programs.truncate(PROGRAMS);
    let now = Now {
        host: server.counters(),
        clients,
        waiting_frames: server.waiting_frames(),
        knobs: Knob::ALL.map(|knob| (knob, server.knob(knob))).into(),
        nodes: server.nodes(),
        all,
        domains,
        programs,
    };
    let mut registry = Registry::with_prefix("numerge");
    registry.register_collector(Box::new(now));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for figure in &HOST {
            alone(&mut encoder, figure, &self.host)?;
        }
        for figure in &ALL {
            alone(&mut encoder, figure, &self.all)?;
        }
        let clients: Figure<Self> =
            ("clients", Gauge, "Programs that are served", |now| now.clients as i128);
        let waiting: Figure<Self> =
            ("waiting_frames", Gauge, "Frames that wait to be given back", |now| {
                now.waiting_frames.into()
            });
        for figure in [clients, waiting] {
            alone(&mut encoder, &figure, self)?;
        }
        let knob: Figure<u64> = ("knob", Gauge, "The value of a knob", |value| (*value).into());
        let knobs: Vec<_> =
            self.knobs.iter().map(|(knob, value)| ([("knob", knob.name())], *value)).collect();
        each(&mut encoder, &[knob], &knobs)?;
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|node| ([("node", node.nid.to_string())], node.clone()))
            .collect();
        each(&mut encoder, &NODE, &nodes)?;
        let domains: Vec<_> = self
            .domains
            .iter()
            .map(|(id, counters, _)| ([("domain", id.clone())], *counters))
            .collect();
        each(&mut encoder, &DOMAIN, &domains)?;
        let together: Vec<_> =
            self.domains.iter().map(|(id, _, all)| ([("domain", id.clone())], *all)).collect();
        each(&mut encoder, &OF_DOMAIN, &together)?;
        let label = |program: &ClientInfo| {
            [
                ("pid", program.pid.to_string()),
                ("uid", program.user.to_string()),
                ("domain", program.domain.to_string()),
            ]
        };
        let programs: Vec<_> =
            self.programs.iter().map(|program| (label(program), program.clone())).collect();
        each(&mut encoder, &PROGRAM, &programs)
    }
}

/// Each figure of each thing, things told apart by their labels.
fn each<L: EncodeLabelSet, T>(
    encoder: &mut DescriptorEncoder<'_>,
    figures: &[Figure<T>],
    things: &[(L, T)],
) -> fmt::Result {
    for figure in figures {
        let mut family = describe(encoder, figure)?;
        for (labels, thing) in things {
            encode(family.encode_family(labels)?, figure, thing)?;
        }
    }
    Ok(())
}

/// A figure of the one thing that has it.
fn alone<T>(encoder: &mut DescriptorEncoder<'_>, figure: &Figure<T>, thing: &T) -> fmt::Result {
    encode(describe(encoder, figure)?, figure, thing)
}

fn describe<'a, T>(
    encoder: &'a mut DescriptorEncoder<'_>,
    (name, kind, help, _): &'a Figure<T>,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    let unit = matches!(kind, Bytes).then_some(&Unit::Bytes);
    let metric_type = match kind {
        Gauge | Bytes => MetricType::Gauge,
        Counter => MetricType::Counter,
    };
    encoder.encode_descriptor(name, help, unit, metric_type)
}

fn encode<T>(metric: MetricEncoder<'_>, (_, kind, _, value): &Figure<T>, thing: &T) -> fmt::Result {
    let value = value(thing);
    match kind {
        Gauge | Bytes => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric),
        Counter => ConstCounter::new(u64::try_from(value).unwrap_or(0)).encode(metric),
    }
}
