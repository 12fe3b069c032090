//! The files of `numerge/proc/PID/`, as the kernel has them in `/proc/PID/`.
//!
//! Processes come and go, so these files are in no list: the inode number says whose a file is.

use fuser::INodeNo;

use crate::source::Process;

/// Set in the inode numbers of all these files, and in no others: those are counted up from 1.
const MARK: u64 = 1 << 63;
/// Below the number of a process, what it is.
const KIND_BITS: u32 = 2;

const PAGE_BYTES: u64 = 4096;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Directory = 0,
    Stat = 1,
    MergingPages = 2,
}

/// The files of a directory, by name.
pub(crate) const FILES: [(&str, Kind); 2] =
    [("ksm_merging_pages", Kind::MergingPages), ("ksm_stat", Kind::Stat)];

/// A process's directory, or a file in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OfProcess {
    pub(crate) pid: u32,
    pub(crate) kind: Kind,
}

impl OfProcess {
    /// The directory of this name.
    pub(crate) fn directory(name: &str) -> Option<Self> {
        let pid = name.parse().ok()?;
        let is_itself = u32::to_string(&pid) == name;
        is_itself.then_some(Self { pid, kind: Kind::Directory })
    }

    /// What has this inode number, if it is one of these.
    pub(crate) fn of(ino: INodeNo) -> Option<Self> {
        let rest = ino.0.checked_sub(MARK)?;
        let pid = u32::try_from(rest >> KIND_BITS).ok()?;
        let kinds = [Kind::Directory, Kind::Stat, Kind::MergingPages];
        let kind = kinds.into_iter().find(|kind| *kind as u64 == rest & ((1 << KIND_BITS) - 1))?;
        Some(Self { pid, kind })
    }

    pub(crate) fn ino(self) -> INodeNo {
        INodeNo(MARK | u64::from(self.pid) << KIND_BITS | self.kind as u64)
    }

    /// What has this name in the directory.
    pub(crate) fn find(self, name: &str) -> Option<Self> {
        let (_, kind) = FILES.into_iter().find(|(known, _)| *known == name)?;
        (self.kind == Kind::Directory).then_some(Self { kind, ..self })
    }

    /// What a file reads as.
    pub(crate) fn text(self, process: &Process) -> String {
        match self.kind {
            Kind::Directory => String::new(),
            Kind::MergingPages => format!("{}\n", process.merging_pages),
            Kind::Stat => stat(process),
        }
    }
}

fn stat(process: &Process) -> String {
    let Process { merging_pages, zero_pages, rmap_items, rmap_item_bytes, .. } = *process;
    let saved = i128::from(merging_pages + zero_pages) * i128::from(PAGE_BYTES);
    let profit = saved - i128::from(rmap_items) * i128::from(rmap_item_bytes);
    let answer = |is_so: bool| if is_so { "yes" } else { "no" };
    format!(
        "ksm_rmap_items {rmap_items}\nksm_zero_pages {zero_pages}\nksm_merging_pages {merging_pages}\n\
         ksm_process_profit {profit}\nksm_merge_any: {}\nksm_mergeable: {}\n",
        answer(process.merges_any),
        answer(process.is_mergeable),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_number_is_one_files_alone() {
        for pid in [1, 7, 1 << 22, u32::MAX] {
            for kind in [Kind::Directory, Kind::Stat, Kind::MergingPages] {
                let file = OfProcess { pid, kind };
                assert_eq!(OfProcess::of(file.ino()), Some(file));
            }
        }
        for other in [0, 1, MARK - 1, MARK | 3, u64::MAX] {
            assert_eq!(OfProcess::of(INodeNo(other)), None, "{other:x}");
        }
    }

    #[test]
    fn a_process_has_one_name() {
        assert_eq!(OfProcess::directory("17").map(|found| found.pid), Some(17));
        for name in ["", "017", "+17", "-1", "4294967296", "self", "17 "] {
            assert_eq!(OfProcess::directory(name), None, "{name}");
        }
    }

    #[test]
    fn a_process_that_costs_more_than_it_saves_has_a_negative_profit() {
        let costs = Process { rmap_items: 10, rmap_item_bytes: 24, ..Process::default() };
        assert!(stat(&costs).contains("ksm_process_profit -240\n"), "{}", stat(&costs));
    }
}
