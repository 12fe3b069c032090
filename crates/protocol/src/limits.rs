//! The limits of every message, in one place.
//!
//! They belong to the protocol's version: a message beyond one is refused by both ends, so changing
//! one changes the version.

/// The version of the protocol spoken here.
pub const VERSION: u32 = 2;

/// Most bytes of one message.
pub const MESSAGE_BYTES: usize = 64 << 10;
/// Most bytes of one message that holds no list; such a message is sent without allocating.
pub const SHORT_BYTES: usize = 512;
/// Most descriptors that go with one message.
pub const DESCRIPTORS: usize = 1;

/// Most runs of one merge.
pub const MERGE_RUNS: usize = 1024;
/// Most pages of one merge, its runs together.
pub const MERGE_PAGES: u64 = 16_384;
/// Most ranges of one unmerge.
pub const UNMERGE_RANGES: usize = 1024;
/// Most pages of one unmerge, its ranges together: 1 GiB, which takes about half a second.
pub const UNMERGE_PAGES: u64 = 1 << 18;

/// Pages of an address space; page numbers are below. 2^48 bytes: what the kernel gives a program
/// that does not ask for more.
pub const ADDRESS_PAGES: u64 = 1 << 36;
/// Frame numbers are below.
pub const FRAME_NUMBERS: u64 = 1 << 36;
/// Frame numbers that a pool file takes, and so the most pages it has.
pub const FILE_PAGES: u64 = 1 << 18;
/// File numbers are below: every frame has a number.
pub const FILES: u64 = FRAME_NUMBERS / FILE_PAGES;
/// Most regions that an engine can allow one client.
pub const REGIONS: u64 = 1 << 16;
/// Most messages about regions that an engine keeps waiting for one client. One that is asked to merge what it
/// has just told to be gone has to answer first: a client sends far less before it listens again.
pub const REGION_MESSAGES: usize = 1 << 14;
/// Most mappings that a program can be said to have, or to be allowed (the kernel's own bound of
/// `vm.max_map_count`).
pub const MAPPINGS: u64 = i32::MAX as u64;

/// Smallest page size that can be told.
pub const PAGE_SIZE_MIN: u64 = 4 << 10;
/// Largest page size that can be told.
pub const PAGE_SIZE_MAX: u64 = 64 << 10;
/// Most bytes of the name of a security domain.
pub const DOMAIN_BYTES: usize = 64;
/// Most bytes of a text for people.
pub const TEXT_BYTES: usize = 256;
/// Highest number of an error (the kernel's `MAX_ERRNO`).
pub const ERRNO: u64 = 4095;
