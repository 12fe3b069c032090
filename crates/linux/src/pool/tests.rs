use super::*;
use crate::sharers::Shared;

fn pools() -> (FramePools, Nid) {
    let topology = Topology::discover().expect("the machine's nodes");
    let nid = topology.nodes().iter().find(|node| node.memory_bytes > 0);
    let nid = nid.expect("a node with memory").nid;
    (FramePools::new(Arc::new(topology)).expect("pools"), nid)
}

fn list(run: &Range<Kpfn>) -> Vec<Kpfn> {
    (run.start.0..run.end.0).map(Kpfn).collect()
}

/// Memory the files have, in pages.
fn backed(pools: &FramePools) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = pools.files.read().expect("files");
    let blocks = files.iter().map(|file| file.frames().file().metadata().expect("stat").blocks());
    blocks.sum::<u64>() / 8
}

/// Who gives frames back locks what waits, then the list of files, which who adds a file wants
/// alone: who locks them the other way round holds up all three for ever.
#[test]
fn who_counts_metadata_waits_without_the_list_of_files() {
    let (pools, _) = pools();
    std::thread::scope(|scope| {
        let waiting = pools.waiting();
        scope.spawn(|| pools.metadata_bytes());
        std::thread::sleep(std::time::Duration::from_millis(50));
        let is_free = pools.files.try_write().is_ok();
        drop(waiting);
        assert!(is_free, "locked by who waits");
    });
}

#[test]
fn s6_frames_have_memory_when_handed_out_and_none_when_given_back() {
    let (pools, nid) = pools();
    let run = pools.allocate(nid, 100).expect("frames");
    assert_eq!(run.end.0 - run.start.0, 100);
    assert_eq!(backed(&pools), 100);
    let content = [7; PAGE_SIZE];
    for kpfn in list(&run) {
        pools.write(kpfn, &content);
    }
    let mut back = [0; PAGE_SIZE];
    pools.read(run.start.plus(99), &mut back);
    assert_eq!(back, content);
    let mut nids = Vec::new();
    pools.nodes_of(&list(&run), &mut nids);
    assert!(nids.iter().all(|found| *found == Some(nid)));
    pools.free(&list(&(run.start.plus(10)..run.start.plus(60))));
    pools.settle();
    assert_eq!(backed(&pools), 50);
    pools.read(run.start.plus(60), &mut back);
    assert_eq!(back, content);
    assert!(pools.metadata_bytes() < 64 << 10);
}

#[test]
fn allocations_rotate_over_files_and_are_never_handed_out_twice() {
    let (pools, nid) = pools();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let run = pools.allocate(nid, 3).expect("frames");
        assert!(list(&run).into_iter().all(|kpfn| seen.insert(kpfn)));
    }
    assert_eq!(pools.files.read().expect("files").len(), STRIPES);
    let first = *seen.first().expect("a frame");
    pools.free(&[first]);
    pools.settle();
    assert!(pools.locate(first, 1).is_none());
}

#[test]
fn more_than_a_file_holds_is_given_in_pieces() {
    let (pools, nid) = pools();
    // Not filled up: 1 GiB in a test is too much. The limit shows in what is asked of a file.
    assert!(pools.locate(Kpfn(0), 1).is_none());
    let run = pools.allocate(nid, 1).expect("a frame");
    assert!(pools.locate(run.start, FILE_FRAMES + 1).is_none());
    assert!(pools.allocate(Nid(4000), 1).is_err());
}

#[test]
fn what_others_map_is_kept_and_the_rest_given_back() {
    let (pools, nid) = pools();
    let run = pools.allocate(nid, 100).expect("frames");
    let (file, start) = (0, run.start.0 % FILE_FRAMES);
    let shared =
        |frames: Range<u64>| Shared { file, frames: start + frames.start..start + frames.end };
    let shared = vec![shared(50..60), shared(10..20), shared(15..30), shared(90..200)];
    let kept = pools.punch_unless(vec![run.clone()], shared);
    let part = |range: Range<u64>| run.start.plus(range.start)..run.start.plus(range.end);
    assert_eq!(kept, [part(10..30), part(50..60), part(90..100)]);
    assert_eq!(backed(&pools), 40);
}

/// A child that maps a frame and waits to be killed.
fn child_with(run: &FrameRun) -> libc::pid_t {
    child_mapping(run, libc::MAP_PRIVATE)
}

fn child_mapping(run: &FrameRun, kind: i32) -> libc::pid_t {
    let (fd, offset) = (run.fd(), i64::try_from(run.first() << PAGE_SHIFT).expect("an offset"));
    // SAFETY: maps a page of a file at an address of the kernel's choice; the child inherits it,
    // makes no call but to wait, and the mapping here is taken away again.
    unsafe {
        let mapped = libc::mmap(std::ptr::null_mut(), PAGE_SIZE, libc::PROT_READ, kind, fd, offset);
        assert_ne!(mapped, libc::MAP_FAILED);
        let child = libc::fork();
        if child == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            loop {
                libc::pause();
            }
        }
        libc::munmap(mapped, PAGE_SIZE);
        child
    }
}

fn end(child: libc::pid_t) {
    // SAFETY: ends and reaps a child of this process.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
}

/// Settles until as many frames wait: while processes come and go nothing can be told.
fn settle_at(pools: &FramePools, wanted: u64) {
    for _ in 0..1000 {
        if pools.settle() == wanted {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{} frames wait, not {wanted}", pools.waiting_frames());
}

#[test]
fn s1_1_frames_wait_for_who_mapped_them_before_it_was_served() {
    let (pools, nid) = pools();
    let pools = Arc::new(pools);
    let frames = list(&pools.allocate(nid, 3).expect("frames"));
    let child = child_with(&pools.locate(frames[1], 1).expect("a frame"));
    let pid = NonZero::new(child).expect("a child");
    let serving = pools.serve(pid, 4242).expect("a process");
    pools.free(&frames);
    settle_at(&pools, 1);
    drop(serving);
    settle_at(&pools, 1);
    end(child);
    settle_at(&pools, 0);
    assert_eq!(backed(&pools), 0);
}

/// It may be in the midst of a merge, which maps a frame only afterwards.
#[test]
fn s1_1_frames_wait_for_who_was_served_and_looks_at_them_still() {
    let (pools, nid) = pools();
    let pools = Arc::new(pools);
    let frames = list(&pools.allocate(nid, 3).expect("frames"));
    let child = child_mapping(&pools.locate(frames[1], 1).expect("a frame"), libc::MAP_SHARED);
    let pid = NonZero::new(child).expect("a child");
    drop(pools.serve(pid, 4242).expect("a process"));
    pools.free(&frames);
    settle_at(&pools, 1);
    // It has come again, so that merge is over.
    let serving = pools.serve(pid, 4242).expect("a process");
    settle_at(&pools, 0);
    drop(serving);
    end(child);
}

/// Also of one that maps others since before it was served.
#[test]
fn s2_6_frames_do_not_wait_for_who_is_served_and_looks_at_them() {
    let (pools, nid) = pools();
    let pools = Arc::new(pools);
    let frames = list(&pools.allocate(nid, 3).expect("frames"));
    let child = child_mapping(&pools.locate(frames[1], 1).expect("a frame"), libc::MAP_SHARED);
    let process = ProcessId::of(child.unsigned_abs()).expect("a process");
    pools.served().now.insert(7, process);
    pools.served().next = 8;
    pools.free(&frames);
    settle_at(&pools, 0);
    end(child);
}

#[test]
fn s1_1_frames_do_not_wait_for_who_is_served() {
    let (pools, nid) = pools();
    let pools = Arc::new(pools);
    let frames = list(&pools.allocate(nid, 3).expect("frames"));
    let child = child_with(&pools.locate(frames[1], 1).expect("a frame"));
    let pid = child.unsigned_abs();
    let known = ProcessId::of(pid).expect("a process");
    pools.served().known.insert(7, known);
    pools.served().next = 8;
    pools.free(&frames[..2]);
    settle_at(&pools, 0);
    pools.served().known.clear();
    let first = pools.locate(frames[2], 1).expect("a frame");
    let other = child_with(&first);
    pools.free(&frames[2..]);
    settle_at(&pools, 1);
    end(other);
    settle_at(&pools, 0);
    end(child);
}

#[test]
fn a_file_for_others_is_open_for_reading_only() {
    let (pools, nid) = pools();
    let kpfn = pools.allocate(nid, 1).expect("a frame").start;
    pools.write(kpfn, &[5; PAGE_SIZE]);
    assert_eq!(pools.file_numbers(), 0..1);
    let fd = pools.read_only_file(0).expect("open").expect("a file");
    let flags = rustix::fs::fcntl_getfl(&fd).expect("flags");
    assert_eq!(flags & rustix::fs::OFlags::ACCMODE, rustix::fs::OFlags::RDONLY);
    let file = std::fs::File::from(fd);
    let mut content = [0; PAGE_SIZE];
    file.read_exact_at(&mut content, (kpfn.0 % FILE_FRAMES) << PAGE_SHIFT).expect("read");
    assert_eq!(content, [5; PAGE_SIZE]);
    assert!(file.write_all_at(&content, 0).is_err());
    assert!(pools.read_only_file(1).expect("no failure").is_none());
}

#[test]
fn runs_end_where_files_end() {
    let last = Kpfn(FILE_FRAMES - 1);
    let kpfns = [last.plus(1), Kpfn(5), last, Kpfn(4), last.plus(2)];
    let runs = [Kpfn(4)..Kpfn(6), last..last.plus(1), last.plus(1)..last.plus(3)];
    assert_eq!(runs_of(&kpfns), runs);
}

#[test]
fn another_user_can_not_open_a_file_for_writing() {
    use std::os::unix::fs::PermissionsExt;
    let (pools, nid) = pools();
    pools.allocate(nid, 1).expect("a frame");
    let files = pools.files.read().expect("files");
    let mode = files[0].frames().file().metadata().expect("stat").permissions().mode();
    assert_eq!(mode & 0o777, 0o400);
    assert!(files[0].frames().file().set_len(0).is_err(), "sealed against shrinking");
}
