//! The messages, a type for each direction.
//!
//! Fields are public and unchecked; [`crate::encode`] and [`crate::decode`] check them. The order of
//! variants and of fields is the encoding, so changing it changes the version of the protocol.
//!
//! Lists and texts are [`Cow`]s so that a sender can lend what it has. What was received owns them.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::numbers::{Errno, Kpfn, RegionId, Sequence, Span};
use crate::outcomes::OutcomeRun;

/// What of a client's memory is to be merged. The client's agent decides what it registers; this
/// tells the engine, for its statistics and rules.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Scope {
    /// What the program marked with `MADV_MERGEABLE` or `PR_SET_MEMORY_MERGE`.
    Advised,
    /// Also large private anonymous mappings that the program makes.
    Mapped,
    /// What the program registers itself through the agent's API.
    Api,
}

/// How the memory of an unmerge's ranges was given back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Unmerged {
    /// All pages of the ranges have memory of their own.
    Done,
    /// There was too little memory: some pages may still be merged. Worth another try later.
    OutOfMemory,
    /// Something else failed: some pages may still be merged.
    Failed(Errno),
}

/// The answer to a question of the engine's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Answer<'a> {
    /// To `Merge`: what became of each page, runs in their order, each in ascending order.
    Merged(Cow<'a, [OutcomeRun]>),
    /// To `Unmerge`.
    Unmerged(Unmerged),
    /// To `Mappings`.
    Mappings {
        /// Mappings the program has, its own included.
        used: u64,
        /// The most it may have (`vm.max_map_count`), at least 1.
        limit: u64,
    },
    /// To anything: it was not carried out, nothing was changed.
    Refused(Errno),
}

/// From a client to its engine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToEngine<'a> {
    /// The first message, and only the first. Goes with one descriptor: the client's
    /// `/proc/self/pagemap`, open for reading only.
    Hello {
        /// Version of the protocol: [`crate::limits::VERSION`].
        version: u32,
        /// Bytes of a page.
        page_size: u32,
        /// What is to be merged.
        scope: Scope,
        /// The security domain asked for; none: the client's default.
        domain: Option<Cow<'a, str>>,
    },
    /// These pages are to be merged from now on. Writes to them are tracked already.
    Register {
        /// The client's number for them, which no other region of the connection has now.
        region: RegionId,
        /// The pages; none of them is in another region.
        span: Span,
    },
    /// The program unmapped or replaced these pages: none of them is mapped to a frame any more,
    /// or in a region.
    Gone {
        /// The pages, whichever regions they were in, if any.
        span: Span,
    },
    /// The client wants the pages of a region back as memory of its own. The engine unmerges them
    /// and answers `Unregistered`.
    Unregister {
        /// The region.
        region: RegionId,
    },
    /// The answer to the question of this number.
    Done {
        /// The number.
        sequence: Sequence,
        /// The answer.
        answer: Answer<'a>,
    },
    /// The last message: no page of the client is mapped to a frame any more, or will be looked at.
    Bye,
}

/// What an engine allows a client, for the whole connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// Most regions at one time.
    pub regions: u32,
    /// Most pages of one region.
    pub region_pages: u64,
    /// Most pages of all regions together, at one time.
    pub pages: u64,
    /// Most runs of one merge that the engine will ask for, so that the client can keep room.
    pub merge_runs: u32,
    /// Most pages of one merge, its runs together, that the engine will ask for.
    pub merge_pages: u32,
}

/// Why an engine turns a client away.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Reason {
    /// The engine speaks another version of the protocol.
    Version,
    /// The engine counts in pages of another size.
    PageSize,
    /// The client may not be in the security domain it asked for.
    Domain,
    /// The engine has as many clients as it may have.
    TooManyClients,
    /// The engine may not look at this client's memory, or does not serve its user.
    Permission,
    /// The engine is ending or starting: worth another try later.
    Unavailable,
    /// The client broke a rule of the protocol.
    Protocol,
    /// Anything else, which the text tells.
    Other,
}

/// What is the matter with a region.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum RegionError {
    /// To `Unregister`: there is no region of this number.
    Unknown,
    /// To `Register`: the client would have more regions or pages than it may. Not registered.
    OverLimit,
    /// To `Register`: the number is in use, or pages are in another region. Not registered.
    InUse,
    /// To `Unregister`: too little memory. Some pages may still be merged, and the region is still
    /// registered; worth another try later.
    OutOfMemory,
    /// To `Register`: it is not registered. To `Unregister`: some pages may still be merged, and the
    /// region is still registered.
    Failed(Errno),
}

/// What the pages of a run are to become.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Target {
    /// The first page is mapped to this frame, the next to the frame after it, and so on, if need
    /// be on into the next file.
    Frames(Kpfn),
    /// All pages are mapped to the kernel's page of zeros.
    Zero,
}

/// Adjacent pages to be merged in one go.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The pages.
    pub span: Span,
    /// What they are merged with.
    pub target: Target,
}

/// From an engine to its client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToClient<'a> {
    /// The client is served: the answer to `Hello`.
    Welcome {
        /// Version of the protocol, the same as the client's.
        version: u32,
        /// What the client is allowed.
        limits: Limits,
    },
    /// The client is not served, or no longer; the engine closes the connection.
    Rejected {
        /// Why, for programs.
        reason: Reason,
        /// Why, for people. May be empty.
        text: Cow<'a, str>,
    },
    /// A file of frames that merges can ask for from now on. Goes with one descriptor: the file,
    /// open for reading only.
    Frames {
        /// Its number, new to the client.
        file: u32,
        /// Pages the file has.
        pages: u64,
    },
    /// Compare each page with its target while nobody can write to it, and map it if it is equal.
    Merge {
        /// Number of the question.
        sequence: Sequence,
        /// The runs.
        runs: Cow<'a, [Run]>,
    },
    /// Give each page memory of its own, with the same content.
    Unmerge {
        /// Number of the question.
        sequence: Sequence,
        /// The pages.
        ranges: Cow<'a, [Span]>,
    },
    /// How many mappings has the program?
    Mappings {
        /// Number of the question.
        sequence: Sequence,
    },
    /// The region is unmerged, and is the client's alone; or, with an error, what else. Also sent
    /// unasked, about a region that the engine does not take.
    Unregistered {
        /// The region.
        region: RegionId,
        /// What went wrong, if anything.
        error: Option<RegionError>,
    },
    /// The engine ends.
    Leave {
        /// Pages stay merged, and the client waits for another engine. Else the client gives all
        /// its pages memory of their own.
        keep: bool,
    },
    /// Comes right after `Welcome`, if at all. Goes with one descriptor: the device `/dev/userfaultfd`,
    /// open for reading only, by which the client may make userfaultfds.
    Userfaultfd,
}
