//! Two servers of redis's with the same data, asked and changed all the while.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::bed::{Host, Running, can_merge};

const SERVERS: usize = 2;
const KEYS: u64 = 6000;
/// Nearly all of a value is the same in both servers, wherever they put it.
const VALUE_BYTES: usize = 8000;
const ROUNDS: u64 = 12;
/// As many rounds as are for one dump.
const DUMP_EACH: u64 = 4;
/// Requests that are under way at one time.
const PIPELINE: u64 = 100;

/// One server, its client, and what it must hold.
struct Redis {
    input: BufReader<UnixStream>,
    output: UnixStream,
    /// Of each key.
    versions: Vec<u64>,
    _process: Running,
}

fn value(key: u64, version: u64) -> Vec<u8> {
    let word = format!("{key}.{version};");
    word.bytes().cycle().take(VALUE_BYTES).collect()
}

fn dump(number: usize) -> String {
    format!("dump{number}")
}

impl Redis {
    /// With what is in its dump, if there is one.
    fn start(mut run: Command, scratch: &Path, name: &str, number: usize) -> Self {
        let socket: PathBuf = scratch.join(format!("{name}{number}"));
        // It ends with what started it, however that ends.
        run.args(["setpriv", "--pdeathsig", "KILL", "redis-server", "--port", "0", "--save", ""]);
        run.args(["--appendonly", "no", "--daemonize", "no", "--dir"]).arg(scratch);
        run.arg("--dbfilename").arg(dump(number)).arg("--unixsocket").arg(&socket);
        let process = Running(run.stdout(Stdio::null()).spawn().unwrap());
        let end = Instant::now() + Duration::from_secs(30);
        let output = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < end, "redis-server: {error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let input = BufReader::new(output.try_clone().unwrap());
        let versions = vec![0; usize::try_from(KEYS).unwrap()];
        let mut server = Self { input, output, versions, _process: process };
        server.wait_until("loading:0");
        server
    }

    fn ask(&mut self, words: &[&[u8]]) {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).into_bytes());
            request.extend_from_slice(word);
            request.extend(b"\r\n");
        }
        self.output.write_all(&request).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.input.read_line(&mut line).unwrap();
        line.trim_end().into()
    }

    fn set(&mut self, keys: &[u64], version: u64) {
        for some in keys.chunks(usize::try_from(PIPELINE).unwrap()) {
            for key in some {
                self.ask(&[b"SET", format!("key{key}").as_bytes(), &value(*key, version)]);
            }
            for key in some {
                assert_eq!(self.line(), "+OK", "setting {key}");
                self.versions[usize::try_from(*key).unwrap()] = version;
            }
        }
    }

    /// Asks for keys, and compares every byte.
    fn check(&mut self, keys: &[u64]) {
        for key in keys {
            self.ask(&[b"GET", format!("key{key}").as_bytes()]);
            assert_eq!(self.line(), format!("${VALUE_BYTES}"), "getting {key}");
            let mut found = vec![0; VALUE_BYTES + 2];
            self.input.read_exact(&mut found).unwrap();
            found.truncate(VALUE_BYTES);
            let version = self.versions[usize::try_from(*key).unwrap()];
            assert!(found == value(*key, version), "key {key} is not of version {version}");
        }
    }

    /// Waits until the server says so of what it does to its files.
    fn wait_until(&mut self, wanted: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            self.ask(&[b"INFO", b"persistence"]);
            let bytes = self.line().strip_prefix('$').unwrap().parse::<usize>().unwrap();
            let mut said = vec![0; bytes + 2];
            self.input.read_exact(&mut said).unwrap();
            let said = String::from_utf8(said).unwrap();
            if said.lines().any(|line| line == wanted) {
                return;
            }
            assert!(Instant::now() < end, "not {wanted}: {said}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A child of its writes down its memory, which is changed meanwhile: what must be in the dump.
    fn begin_dump(&mut self) -> Vec<u64> {
        self.ask(&[b"BGSAVE"]);
        assert_eq!(self.line(), "+Background saving started");
        self.versions.clone()
    }

    fn end_dump(&mut self) {
        self.wait_until("rdb_bgsave_in_progress:0");
        self.wait_until("rdb_last_bgsave_status:ok");
    }
}

fn has_redis() -> bool {
    let found = Command::new("redis-server").arg("--version").output().is_ok();
    if !found {
        println!("SKIPPED: no redis-server: tools/setup installs it");
    }
    found
}

/// Its allocator maps memory by itself. The pages of both are equal, since they are asked for the same, and
/// nearly all of one are saved.
#[test]
fn s1_1_redis_answers_right_while_its_memory_is_merged() {
    if !can_merge() || !has_redis() {
        return;
    }
    let mut host = Host::new();
    let scratch = tempfile::tempdir().unwrap();
    let mut servers: Vec<Redis> = (0..SERVERS)
        .map(|number| Redis::start(host.run("mapped"), scratch.path(), "merged", number))
        .collect();
    let all: Vec<u64> = (0..KEYS).collect();
    servers.iter_mut().for_each(|server| server.set(&all, 1));
    let bytes = KEYS * u64::try_from(VALUE_BYTES).unwrap();
    host.wait_saved(bytes * 95 / 100);
    let mut dumped = Vec::new();
    for round in 0..ROUNDS {
        let changed: Vec<u64> = all.iter().copied().filter(|key| key % ROUNDS == round).collect();
        if round % DUMP_EACH == 0 {
            dumped = servers.iter_mut().map(Redis::begin_dump).collect();
        }
        for server in &mut servers {
            server.set(&changed, 2 + round);
            server.check(&changed);
            server.check(&all[..1000]);
        }
        if round % DUMP_EACH == DUMP_EACH - 1 {
            servers.iter_mut().for_each(Redis::end_dump);
        }
    }
    host.wait_saved(bytes * 95 / 100);
    println!("{bytes} bytes of data in each: {}", host.client.status().unwrap());
    servers.iter_mut().for_each(|server| server.check(&all));
    // What the last dumps hold, a server tells that is not merged.
    drop(servers);
    for (number, versions) in dumped.into_iter().enumerate() {
        let mut server = Redis::start(Command::new("env"), scratch.path(), "plain", number);
        server.versions = versions;
        server.check(&all);
    }
}
