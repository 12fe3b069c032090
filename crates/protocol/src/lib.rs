//! The messages between a numerge engine and the agents inside its client programs, and the sockets
//! that they go over.
//!
//! This is the specification of the protocol, version 2. It knows bytes, and neither side's insides.
//!
//! # Connection
//!
//! A Unix socket of type SOCK_SEQPACKET; a packet is a message, whole. The engine listens
//! ([`Listener`]), a client connects ([`Socket`]). A connection is one process (a fork's child makes
//! its own, and closes its copy of its parent's). Messages of one connection arrive in the order in
//! which they were sent, in each direction. A client that sends from several threads must see to the
//! order itself where it matters, which is below.
//!
//! # Encoding
//!
//! | byte | is |
//! | --- | --- |
//! | 0 | for whom: 0 for an engine ([`ToEngine`]), 1 for a client ([`ToClient`]) |
//! | 1 | the kind, counted from 0 in the order of the variants of that type |
//! | 2.. | the fields in their order, as postcard 1 encodes them |
//!
//! Which is, for all that occurs here: an unsigned number of more than 8 bits is little-endian base
//! 128, 7 bits a byte, the high bit set in all but the last byte (LEB128). A bool is a byte, 0 or 1.
//! A structure is its fields one after the other. A choice ([`Scope`], [`Answer`], [`Unmerged`],
//! [`Outcome`], [`Target`], [`Reason`], [`RegionError`]) is the number of its variant, counted from 0
//! and encoded as a number, and then the variant's fields. An optional field is a byte 0, or a byte 1
//! and the field. A list is the number of its elements and then the elements; a text is the number of
//! its bytes and then those, in UTF-8. Numbers have the fewest bytes possible, and after the last
//! field comes nothing: **a message has one encoding, and whatever is encoded otherwise is refused.**
//!
//! # Descriptors
//!
//! `Hello`, `Frames` and `Userfaultfd` go with one descriptor each (SCM_RIGHTS), the others with none.
//! It is open for reading and for nothing else (O_RDONLY, not O_PATH). A message with too many or too
//! few, or with another one, is refused, and what came is closed. What the descriptor *is*, the
//! receiver must look at itself: an engine must not take a pagemap for that of the process at the other
//! end ([`Socket::peer`], [`Socket::peer_pidfd`]) because somebody said so, nor a client any descriptor
//! for the device.
//!
//! # Limits
//!
//! All are in [`limits`], and belong to the version. Both ends check every message ([`Message::check`]):
//!
//! | what | least | most |
//! | --- | --- | --- |
//! | bytes of a message | 2 | 65 536 |
//! | page size | 4096 | 65 536, a power of two |
//! | name of a domain | 1 byte | 64 bytes, of `A-Z a-z 0-9 . _ -` |
//! | text for people | 0 bytes | 256 bytes, no control characters |
//! | pages of a region, or gone | 1 | 2^36, and they end at or before page 2^36 |
//! | runs of a merge | 1 | 1024 |
//! | pages of a merge | 1 a run | 16 384 in all |
//! | first frame of a run | 0 | such that the last is below 2^36 |
//! | ranges of an unmerge | 1 | 1024 |
//! | pages of an unmerge | 1 a range | 2^18 in all |
//! | outcomes of a merge | 1 a run | 16 384 in all; adjacent runs differ |
//! | number of a file | 0 | 2^18 - 1 |
//! | pages of a file | 1 | 2^18 |
//! | mappings in use; allowed | 0; 1 | 2^31 - 1 |
//! | number of an error | 1 | 4095 |
//! | messages about regions that an engine keeps for one client | | 16 384 |
//! | in `Welcome`: regions, their pages, runs and pages of a merge | 1 | 2^16, 2^36, 1024, 16 384 |
//!
//! # Conversation
//!
//! 1. The client sends `Hello`, first and once. The engine answers `Welcome` or `Rejected`; before
//!    `Welcome` the client sends nothing more but `Bye`. An engine that lends its clients the device
//!    `/dev/userfaultfd` sends `Userfaultfd` right after `Welcome`, before it answers anything else; a
//!    client that does not need it closes it.
//! 2. The client sends `Register` for each region, when it tracks the writes to it already. There is
//!    no answer if all is well; if the engine does not take it, it sends `Unregistered` with an error.
//! 3. The engine asks: `Merge`, `Unmerge`, `Mappings`. The client answers each with one `Done` of the
//!    same number, in any order. Numbers are the engine's to choose; of two unanswered questions
//!    none has the number of the other. An engine keeps the number of unanswered questions low, and
//!    asks nothing about pages that a question under way is about.
//! 4. A `Merge` names frames only of files that were sent before with `Frames`, all in one connection.
//!    A frame's number is `file number * 2^18 + page in the file`. A client that can't carry out a
//!    question at all, as when it has no such file, answers `Refused`. A page that it does not have,
//!    or that is in no region, is no error but [`Outcome::Gone`].
//! 5. The client sends `Gone` when the program has unmapped or replaced pages. Only then may it send a
//!    later `Register` of any of them: **`Gone` comes before.** A `Done` sent before `Gone` told of the
//!    old pages, and `Gone` ends what it told. A `Merge` that crosses with `Gone` is carried out for the
//!    other pages, and the client answers [`Outcome::Gone`] for these: after `Gone` no `Done` says of
//!    them that they are merged, before they are registered again. An engine that has an unanswered
//!    question about pages gone takes the answer for the other pages.
//! 6. The client sends `Unregister` to have a region back. The engine asks `Unmerge` until all is
//!    unmerged, and then answers `Unregistered`. From then on the engine says nothing of its pages.
//!    With [`RegionError::OutOfMemory`] or [`RegionError::Failed`] the region is still registered.
//!
//! # Ending
//!
//! - `Bye` is a client's last message: it has unmerged all, or ends. It closes the connection then.
//!   The engine closes its end when it has read the `Bye`.
//! - `Rejected` is an engine's last message: instead of `Welcome`, or later when the client broke a
//!   rule. It closes the connection then. The client keeps its memory; pages that are merged stay so,
//!   for it has the frames' files, and it gives them memory of their own as it can.
//! - `Leave` is an engine's last message when it ends itself. The client answers what it was asked, or
//!   not; it does as it is told, sends `Bye` and closes. The engine waits for that a while.
//! - **The end of the connection without any of these** is the same as `Bye` to an engine that sees
//!   the client's process end, and as `Leave { keep: true }` to a client. An engine whose client
//!   closes but lives must take the pages for merged still: their frames are not free. But a process
//!   sends another `Hello` only when it carries out nothing any more that it was asked before.
//! - Who receives what is refused here closes the connection: an engine after `Rejected`, a client
//!   after `Bye`. Descriptors that came with it are closed by [`Socket::receive`].
//!
//! # Back-pressure
//!
//! A socket holds some messages and no more; who sends then waits, or gets `WouldBlock`. An engine
//! must never wait for one client: its sockets do not block, and a client that does not read or
//! answer in time is left alone. A client must go on reading while it waits to send, for an engine
//! may drop one whose socket is full.
//!
//! # Versions
//!
//! Whatever changes what bytes mean changes [`limits::VERSION`]: kinds, variants, fields, their
//! order or width, limits, number of descriptors, or the rules above. There are no optional parts.
//! The versions of both ends must be equal; there is no haggling. Of all versions, these hold: byte 0
//! and byte 1 as above; `Hello` and `Welcome` are kind 0 and begin with the version; `Rejected` is kind
//! 1, and is a reason, of which 0 means [`Reason::Version`], and a text, which says what version the
//! engine speaks. So an engine can tell what version a client wanted
//! ([`Violation::Version`] from decoding), and any client can read why it was turned away.
//!
//! # In foreign programs
//!
//! Sending a message without a list, or with [`Socket::send_with`], allocates nothing. Receiving
//! allocates the message's lists and texts, and a place for descriptors. No function panics, whatever
//! is received; none raises SIGPIPE; all descriptors are closed on exec.

mod check;
mod codec;
mod error;
pub mod limits;
mod listener;
mod message;
mod numbers;
mod outcomes;
mod peer;
pub mod proc_files;
mod socket;

pub use check::{Violation, check_domain};
pub use codec::{DecodeError, EncodeError, Message, Reading, decode, encode};
pub use error::{DescriptorError, ReceiveError, SendError, SocketError};
pub use listener::Listener;
pub use message::{
    Answer, Limits, Reason, RegionError, Run, Scope, Target, ToClient, ToEngine, Unmerged,
};
pub use numbers::{Errno, Kpfn, RegionId, Sequence, Span, Vpn};
pub use outcomes::{Outcome, OutcomeRun};
pub use peer::Credentials;
pub use socket::{Buffer, Socket};
