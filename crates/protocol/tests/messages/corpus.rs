//! The kept corpus of the fuzz target, which is also what version 2 looks like in bytes, and what runs of
//! it have found (`found-...`).
//!
//! If a test here fails because messages have changed, the version of the protocol must change too;
//! `NUMERGE_WRITE_CORPUS=1 cargo test -p numerge-protocol --test messages corpus` writes the corpus
//! anew.

use std::path::{Path, PathBuf};

use numerge_protocol::{ToClient, ToEngine, decode};

use crate::properties::is_one_encoding;
use crate::samples;
use crate::unchecked;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/decode")
}

fn wanted() -> Vec<(String, Vec<u8>)> {
    let engine = samples::to_engine().into_iter();
    let engine = engine.map(|(name, message)| (format!("engine-{name}"), unchecked(&message)));
    let client = samples::to_client().into_iter();
    let client = client.map(|(name, message)| (format!("client-{name}"), unchecked(&message)));
    engine.chain(client).collect()
}

#[test]
fn corpus_is_the_samples() {
    let wanted = wanted();
    if std::env::var_os("NUMERGE_WRITE_CORPUS").is_some() {
        std::fs::create_dir_all(folder()).unwrap();
        for (name, bytes) in &wanted {
            std::fs::write(folder().join(name), bytes).unwrap();
        }
    }
    for (name, bytes) in &wanted {
        let kept = std::fs::read(folder().join(name)).expect(name);
        assert_eq!(&kept, bytes, "{name} is encoded otherwise than it was: see the module's head");
    }
}

#[test]
fn corpus_decodes() {
    for (name, bytes) in wanted() {
        if name.starts_with("engine-") {
            decode::<ToEngine<'_>>(&bytes).expect(&name);
        } else {
            decode::<ToClient<'_>>(&bytes).expect(&name);
        }
    }
}

/// What the fuzz target is run with, which is not built here.
#[test]
fn each_file_of_the_corpus_is_one_encoding_or_none() {
    let samples: Vec<String> = wanted().into_iter().map(|(name, _)| name).collect();
    let mut found = 0;
    for file in std::fs::read_dir(folder()).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        found += usize::from(name.starts_with("found-"));
        assert!(name.starts_with("found-") || samples.iter().any(|one| one == name), "{name}");
        let bytes = std::fs::read(&path).unwrap();
        is_one_encoding::<ToEngine<'_>>(&bytes).expect(name);
        is_one_encoding::<ToClient<'_>>(&bytes).expect(name);
    }
    assert!(found > 0, "nothing was kept of what was found");
}
