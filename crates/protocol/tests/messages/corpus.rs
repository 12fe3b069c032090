//! The kept corpus of the fuzz target, which is also what version 2 looks like in bytes.
//!
//! If a test here fails because messages have changed, the version of the protocol must change too;
//! `NUMERGE_WRITE_CORPUS=1 cargo test -p numerge-protocol --test messages corpus` writes the corpus
//! anew.

use std::path::{Path, PathBuf};

use numerge_protocol::{ToClient, ToEngine, decode};

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
