//! Control files of an engine on a machine in memory.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use numerge_control_fs::{ControlFs, MountError, Process, Source};
use numerge_engine::in_memory::Machine;
use numerge_engine::machine::{Memory, MemoryError, Vpn};
use numerge_engine::{
    Counters, Engine, EngineOptions, Knob, KnobError, Nid, NodeReport, RegionHandle, Topology,
    UnmergeError,
};
use numerge_topology::Node;
use parking_lot::Mutex;
use tempfile::TempDir;

pub(crate) const NIDS: [Nid; 2] = [Nid(0), Nid(5)];

/// After so long, what has not come about is not going to.
const LONG: Duration = Duration::from_secs(60);

pub(crate) struct EngineSource(pub(crate) Engine);

impl Source for EngineSource {
    fn knob(&self, knob: Knob) -> u64 {
        self.0.knob(knob)
    }

    fn set(&self, knob: Knob, value: u64) -> Result<(), KnobError> {
        self.0.set(knob, value)
    }

    fn interrupt(&self) {
        if self.0.knob(Knob::Run) == 2 {
            let _ = self.0.set(Knob::Run, 0);
        }
    }

    fn counters(&self) -> Counters {
        self.0.counters()
    }

    fn nids(&self) -> Vec<Nid> {
        NIDS.into()
    }

    fn nodes(&self) -> Vec<NodeReport> {
        self.0.nodes()
    }
}

/// No engine: tells of these processes, and sets nothing if its programs do not answer.
#[derive(Default)]
pub(crate) struct NoEngine {
    pub(crate) processes: Mutex<BTreeMap<u32, Process>>,
    pub(crate) is_silent: bool,
}

impl Source for NoEngine {
    fn knob(&self, knob: Knob) -> u64 {
        knob.default_value()
    }

    fn set(&self, _: Knob, _: u64) -> Result<(), KnobError> {
        let silence = KnobError::Unmerge(UnmergeError::Memory(MemoryError::NoAnswer));
        if self.is_silent { Err(silence) } else { Ok(()) }
    }

    fn interrupt(&self) {}

    fn counters(&self) -> Counters {
        Counters::default()
    }

    fn nids(&self) -> Vec<Nid> {
        Vec::new()
    }

    fn nodes(&self) -> Vec<NodeReport> {
        Vec::new()
    }

    fn processes(&self) -> Option<Vec<u32>> {
        Some(self.processes.lock().keys().copied().collect())
    }

    fn process(&self, pid: u32) -> Option<Process> {
        self.processes.lock().get(&pid).copied()
    }
}

pub(crate) struct Bed {
    files: Option<ControlFs>,
    pub(crate) machine: Arc<Machine>,
    pub(crate) source: Arc<EngineSource>,
    _region: RegionHandle,
    _place: TempDir,
}

impl Bed {
    /// A program of so many pages; None, with the reason printed, where nothing may be mounted.
    pub(crate) fn new(pages: u64) -> Option<Self> {
        let node = |nid: Nid| Node {
            nid,
            cpus: vec![nid.0],
            memory_bytes: 1 << 30,
            distances: NIDS.iter().map(|at| if *at == nid { 10 } else { 20 }).collect(),
        };
        let topology = Topology::new(NIDS.map(node).into()).unwrap();
        let machine = Machine::new(topology, usize::try_from(pages).unwrap());
        let options = EngineOptions::default();
        let engine = Engine::new(machine.clone(), machine.clone(), options).unwrap();
        let memory: Arc<dyn Memory> = machine.clone();
        let region = engine.register(&memory, Vpn(0)..Vpn(pages)).unwrap();
        let source = Arc::new(EngineSource(engine));
        let place = tempfile::tempdir().unwrap();
        let shown: Arc<dyn Source> = source.clone();
        let files = mount(&place.path().join("ksm"), shown)?;
        Some(Self { files: Some(files), machine, source, _region: region, _place: place })
    }

    pub(crate) fn directory(&self) -> &Path {
        self.files.as_ref().unwrap().path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn number(&self, name: &str) -> u64 {
        let text = self.read(name);
        text.trim_end().parse().unwrap_or_else(|_| panic!("{name}: {text:?}"))
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> io::Result<()> {
        fs::write(self.path(name), text)
    }

    pub(crate) fn unmount(&mut self) {
        drop(self.files.take());
    }
}

/// None, with the reason printed, where that is not permitted.
pub(crate) fn mount(path: &Path, source: Arc<dyn Source>) -> Option<ControlFs> {
    match ControlFs::mount(path, source) {
        Ok(files) => Some(files),
        Err(MountError::Mount { source, .. })
            if [Some(libc::EPERM), Some(libc::EACCES), Some(libc::ENOENT), Some(libc::ENODEV)]
                .contains(&source.raw_os_error()) =>
        {
            println!("SKIPPED: control files can't be mounted: {source}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

pub(crate) fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
