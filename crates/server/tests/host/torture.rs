//! Everything at once, at random: clients that write, replace, fork, stop, are killed, hang up, and a
//! server that merges and unmerges meanwhile. No page ever has another content than was written to it.

use std::time::{Duration, Instant};

use numerge_engine::Knob;
use numerge_server::Server;

use crate::bed::{Bed, Client};
use crate::bounds::Bounds;
use crate::random::Random;

const PAGES: u64 = 300;
const CLIENTS: usize = 4;
const LONG: Duration = Duration::from_secs(6);

/// A client, and what its pages must be.
struct Known {
    client: Client,
    contents: Vec<u64>,
    next_region: u64,
    children: Vec<String>,
    is_connected: bool,
}

impl Known {
    fn new(bed: &Bed) -> Self {
        let client = bed.client_with(PAGES, 1, 1);
        let contents = (1..=PAGES).collect();
        Self { client, contents, next_region: 1, children: Vec::new(), is_connected: true }
    }

    fn check(&mut self) {
        for (page, content) in self.contents.iter().enumerate() {
            let right = self.client.ask(&format!("is 0 {page} {content}"));
            assert_eq!(right, "true", "page {page} is not {content}");
        }
    }

    fn step(&mut self, random: &mut Random) {
        let (page, content) = (random.below(PAGES), random.below(40) + 1);
        match random.below(100) {
            0..60 => {
                self.client.ask(&format!("write 0 {page} {content}"));
                self.contents[usize::try_from(page).unwrap()] = content;
            }
            60..75 => {
                let wanted = self.contents[usize::try_from(page).unwrap()];
                assert_eq!(self.client.ask(&format!("is 0 {page} {wanted}")), "true");
            }
            75..85 if self.is_connected => {
                let end = (page + 1 + random.below(40)).min(PAGES);
                let region = self.next_region;
                self.next_region += 1;
                self.client.ask(&format!("replace 0 {page} {end} {content} {region}"));
                for page in page..end {
                    self.contents[usize::try_from(page).unwrap()] = content;
                }
            }
            85..88 => {
                let child = self.client.ask("fork-as-is 0");
                self.children.push(child);
            }
            88..93 => {
                if let Some(child) = self.children.pop() {
                    let is_whole = self.client.ask(&format!("reap {child}"));
                    assert_eq!(is_whole, "true", "a child saw something else");
                }
            }
            93..98 => {
                self.client.signal(libc::SIGSTOP);
                std::thread::sleep(Duration::from_millis(random.below(30)));
                self.client.signal(libc::SIGCONT);
            }
            _ => {}
        }
    }

    fn end(mut self, random: &mut Random) {
        self.check();
        for child in std::mem::take(&mut self.children) {
            assert_eq!(self.client.ask(&format!("reap {child}")), "true");
        }
        if random.below(2) == 0 {
            self.client.ask("hang-up");
            self.check();
        }
    }
}

fn steer(server: &Server, random: &mut Random, bounds: &mut Bounds) {
    match random.below(300) {
        // It may be that somebody is stopped.
        0 => {
            let _ = server.set(Knob::Run, 2);
            // Full scans are counted anew.
            *bounds = Bounds::default();
        }
        1..4 => server.set(Knob::Run, 0).unwrap(),
        _ => {}
    }
    if random.below(20) == 0 {
        server.set(Knob::Run, 1).unwrap();
    }
}

#[test]
fn s1_1_no_page_changes_whatever_happens() {
    let Some(bed) = Bed::new() else { return };
    let mut random = Random(7);
    let mut clients: Vec<Known> = (0..CLIENTS).map(|_| Known::new(&bed)).collect();
    let began = Instant::now();
    let (mut steps, mut most, mut bounds) = (0, 0, Bounds::default());
    while began.elapsed() < LONG {
        let chosen = usize::try_from(random.below(CLIENTS as u64)).unwrap();
        clients[chosen].step(&mut random);
        steer(&bed.server, &mut random, &mut bounds);
        if random.below(400) == 0 {
            let another = Known::new(&bed);
            std::mem::replace(&mut clients[chosen], another).end(&mut random);
        }
        steps += 1;
        let counters = bed.server.counters();
        bounds.check(counters);
        most = most.max(counters.pages_sharing);
    }
    println!("{steps} steps, at most {most} pages saved");
    assert!(most > PAGES);
    for known in &mut clients {
        known.check();
        for child in std::mem::take(&mut known.children) {
            assert_eq!(known.client.ask(&format!("reap {child}")), "true");
        }
    }
    bed.server.set(Knob::Run, 1).unwrap();
    bed.scan_twice();
    clients.iter_mut().for_each(Known::check);
    bed.server.set_patiently(Knob::Run, 2).unwrap();
    assert_eq!(bed.server.counters().pages_shared, 0);
    clients.iter_mut().for_each(Known::check);
    bed.no_errors_but_silence();
}
