//! The CPU time that a shard takes: that of its scanner and of its pool's threads, whatever they do.
//!
//! It is asked of the threads' own clocks, and only when somebody wants to know: batches and pages cost
//! nothing more for it.

use std::thread::ThreadId;
use std::time::Duration;

use parking_lot::Mutex;

use crate::machine::{CpuClock, Nodes};

/// What some threads have used.
#[derive(Default)]
pub(crate) struct CpuTime(Mutex<Threads>);

#[derive(Default)]
struct Threads {
    running: Vec<Running>,
    /// Used by those that are not counted any more.
    ended: Duration,
}

struct Running {
    thread: ThreadId,
    clock: CpuClock,
    /// What it had used before it was counted.
    before: Duration,
}

impl Running {
    fn used(&self) -> Duration {
        (self.clock)().saturating_sub(self.before)
    }
}

/// The calling thread is counted until this is dropped.
pub(crate) struct Counted<'a>(&'a CpuTime);

impl CpuTime {
    /// Counts what the calling thread uses from now on, until [`Self::end`].
    pub(crate) fn begin(&self, nodes: &dyn Nodes) {
        let clock = nodes.cpu_clock();
        let before = clock();
        self.0.lock().running.push(Running { thread: std::thread::current().id(), clock, before });
    }

    /// The calling thread ends, or goes on with something else. Nobody reads its clock any more.
    pub(crate) fn end(&self) {
        let this = std::thread::current().id();
        let mut threads = self.0.lock();
        if let Some(at) = threads.running.iter().position(|running| running.thread == this) {
            let running = threads.running.swap_remove(at);
            threads.ended += running.used();
        }
    }

    pub(crate) fn counted(&self, nodes: &dyn Nodes) -> Counted<'_> {
        self.begin(nodes);
        Counted(self)
    }

    pub(crate) fn total(&self) -> Duration {
        let threads = self.0.lock();
        threads.running.iter().map(Running::used).sum::<Duration>() + threads.ended
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_memory::Machine;
    use crate::machine::{Memory, Vpn};
    use numerge_topology::{Nid, Node, Topology};

    #[test]
    fn s5_4_threads_are_counted_from_their_beginning_to_their_end() {
        let only = Node { nid: Nid(0), cpus: vec![0], memory_bytes: 1 << 30, distances: vec![10] };
        let machine = Machine::new(Topology::new(vec![only]).unwrap(), 1);
        machine.write(Vpn(0), 7, Nid(0));
        machine.set_read_cost(Duration::from_millis(5));
        let read = || Memory::read(&*machine, &[Vpn(0)..Vpn(1)], &mut |_| {}).unwrap();
        let (cpu, ms) = (CpuTime::default(), Duration::from_millis);
        read();
        let counted = cpu.counted(&*machine);
        assert_eq!(cpu.total(), ms(0), "what it used before");
        read();
        assert_eq!(cpu.total(), ms(5));
        std::thread::scope(|scope| {
            let pool = scope.spawn(|| {
                cpu.begin(&*machine);
                read();
                read();
                assert_eq!(cpu.total(), ms(15), "both that run");
                cpu.end();
                read();
            });
            pool.join().unwrap();
        });
        assert_eq!(cpu.total(), ms(15), "who has ended is not forgotten");
        drop(counted);
        read();
        assert_eq!(cpu.total(), ms(15));
    }
}
