//! Any bytes are an error, or the one encoding of the message they decode to.
//!
//! `cargo +nightly fuzz run decode` in `crates/protocol`; the corpus is that of the crate's tests
//! (`tests/messages/corpus.rs`), and what a run finds worth keeping is added as `found-...`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use numerge_protocol::limits::MESSAGE_BYTES;
use numerge_protocol::{Message, ToClient, ToEngine, decode, encode};

fn is_one_encoding<M: Message>(bytes: &[u8]) {
    if let Ok(message) = decode::<M>(bytes) {
        let mut buffer = vec![0; MESSAGE_BYTES];
        assert_eq!(encode(&message, &mut buffer).expect("what was decoded"), bytes);
    }
}

fuzz_target!(|bytes: &[u8]| {
    is_one_encoding::<ToEngine<'_>>(bytes);
    is_one_encoding::<ToClient<'_>>(bytes);
});
