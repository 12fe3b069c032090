//! How a process asks to be shown files of its own in `/proc`, as `numerge run --as-ksm` has them.
//!
//! A connection of its own, to a socket of its own, of type SOCK_SEQPACKET. The client sends one packet of one
//! byte, [`SOME`] or [`ANY`]. The engine shows the files if it can, and closes the connection: that is the
//! answer, which does not say whether it could. Whose files they are the kernel says
//! ([`crate::Socket::peer`]), so no process can ask for another. Who has files and asks again has the same
//! ones, which tell what it said last. Both sides are of one build, so there are no versions.

use std::time::Duration;

/// What the process marks by madvise(2) is to be merged.
pub const SOME: u8 = 0;
/// All that it maps is (PR_SET_MEMORY_MERGE).
pub const ANY: u8 = 1;

/// How long the client waits for the answer, and goes on without.
pub const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// How long the engine, which hears one client after the other, waits for the byte.
pub const ASK_WAIT: Duration = Duration::from_millis(100);
