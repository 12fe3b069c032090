//! What is told of processes, where anything is.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use numerge_control_fs::{Process, Source};

use crate::bed::{NoEngine, mount};

const MERGED: Process = Process {
    owner: (12, 34),
    merging_pages: 5,
    zero_pages: 2,
    rmap_items: 9,
    rmap_item_bytes: 24,
    merges_any: false,
    is_mergeable: true,
};

fn text(merging_pages: u64, profit: i64) -> String {
    format!(
        "ksm_rmap_items 9\nksm_zero_pages 2\nksm_merging_pages {merging_pages}\n\
         ksm_process_profit {profit}\nksm_merge_any: no\nksm_mergeable: yes\n"
    )
}

#[test]
fn s5_5_each_process_has_the_files_that_the_kernel_has_in_proc() {
    let told = Arc::new(NoEngine::default());
    told.processes.lock().extend([(7, MERGED), (4_000_000, Process::default())]);
    let place = tempfile::tempdir().unwrap();
    let source: Arc<dyn Source> = told.clone();
    let Some(files) = mount(&place.path().join("ksm"), source) else { return };
    let processes = files.path().join("numerge/proc");
    let names = |directory: &std::path::Path| {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(names(&processes), ["7", "4000000"]);
    let seven = processes.join("7");
    assert_eq!(names(&seven), ["ksm_merging_pages", "ksm_stat"]);
    assert_eq!(fs::read_to_string(seven.join("ksm_merging_pages")).unwrap(), "5\n");
    assert_eq!(fs::read_to_string(seven.join("ksm_stat")).unwrap(), text(5, 7 * 4096 - 9 * 24));
    let about = fs::metadata(seven.join("ksm_stat")).unwrap();
    assert_eq!((about.mode(), about.uid(), about.gid(), about.size()), (0o100_400, 12, 34, 0));
    let other = fs::read_to_string(processes.join("4000000/ksm_merging_pages")).unwrap();
    assert_eq!(other, "0\n");
    for name in ["8", "07", "self", "-7", "7/ksm_pages", "7/ksm_stat/7"] {
        assert!(fs::metadata(processes.join(name)).is_err(), "{name}");
    }
    let refused = fs::write(seven.join("ksm_stat"), "1").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES), "{refused}");
}

/// Users of these files open them once.
#[test]
fn s5_5_who_has_a_processs_file_open_reads_what_it_is_then_until_the_process_is_gone() {
    let told = Arc::new(NoEngine::default());
    told.processes.lock().insert(7, MERGED);
    let place = tempfile::tempdir().unwrap();
    let source: Arc<dyn Source> = told.clone();
    let Some(files) = mount(&place.path().join("ksm"), source) else { return };
    let open = fs::File::open(files.path().join("numerge/proc/7/ksm_stat")).unwrap();
    let read = || {
        let mut bytes = [0; 512];
        let length = open.read_at(&mut bytes, 0)?;
        std::io::Result::Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    };
    assert_eq!(read().unwrap(), text(5, 7 * 4096 - 9 * 24));
    told.processes.lock().insert(7, Process { merging_pages: 0, ..MERGED });
    assert_eq!(read().unwrap(), text(0, 2 * 4096 - 9 * 24));
    told.processes.lock().clear();
    assert_eq!(read().unwrap_err().raw_os_error(), Some(libc::ESRCH));
}
