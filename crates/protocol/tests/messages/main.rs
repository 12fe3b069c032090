//! Every message: its limits, its encoding, and what is no encoding of any.

mod corpus;
mod encoding;
mod limits;
mod properties;
mod samples;

use numerge_protocol::Message;

/// What `encode` would make of a message if it checked nothing.
fn unchecked<M: Message>(message: &M) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let used = postcard::to_slice(message, &mut bytes[1..]).expect("room for any").len();
    bytes[0] = M::DIRECTION;
    bytes.truncate(1 + used);
    bytes
}
