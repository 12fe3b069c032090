//! Copying memory that the program may be writing to.
//!
//! `process_vm_readv` on oneself does this too, and more: it fails cleanly where nothing is mapped.
//! But half of a first look went into it, most of that not into the copy (measured: 0.8 of 1.6 CPU
//! seconds for 4 GiB). What is registered stays mapped for as long as it is registered, which is
//! the contract of registering, so a plain load will do.
//!
//! To Rust, a load of what another thread may be writing to is a data race unless both are atomic.
//! So the copy is made where the language does not look, by one instruction, or elsewhere word by
//! word with atomic loads (0.22 against 0.36 us a page). Into one page that is used again and again,
//! for it stays in the innermost cache: 0.14 us a page; into 64 KiB in turn, 0.23.

use numerge_engine::machine::{PAGE_SIZE, Vpn};

use crate::num::pointer;

/// Copies a registered page. A page that is being merged is waited for. Which of several writes is
/// seen does not matter: a page that is written to now is reported as written at the next look.
pub(crate) fn page(page: Vpn, to: &mut [u8; PAGE_SIZE]) {
    copy(pointer(page), to);
}

/// Has a registered page brought into the cache while another is copied: the hardware foresees what
/// comes next in a page, and not which page comes next. Of pages that lie apart, reading took a quarter
/// less.
pub(crate) fn prefetch(page: Vpn) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..PAGE_SIZE).step_by(64) {
        // SAFETY: needed since Rust has no stable prefetch that asks nothing of what is there. This
        // one changes nothing but caches and never faults, whatever the address.
        unsafe {
            std::arch::asm!(
                "prefetcht0 [{from}]",
                from = in(reg) pointer(page).wrapping_add(line),
                options(nostack, preserves_flags, readonly),
            );
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = page;
}

#[cfg(target_arch = "x86_64")]
fn copy(from: *mut u8, to: &mut [u8; PAGE_SIZE]) {
    // SAFETY: needed since Rust has no load that may race. A registered page is mapped and readable,
    // no Rust reference to it exists, and `to` is exclusive and as long; the registers are declared,
    // and the direction flag is clear by the calling convention.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") PAGE_SIZE => _,
            inout("rsi") from => _,
            inout("rdi") to.as_mut_ptr() => _,
            options(nostack, preserves_flags),
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn copy(from: *mut u8, to: &mut [u8; PAGE_SIZE]) {
    use std::sync::atomic::{AtomicU64, Ordering};

    let (words, _) = to.as_chunks_mut::<{ size_of::<u64>() }>();
    for (place, word) in words.iter_mut().enumerate() {
        // SAFETY: a registered page is mapped, readable, and aligned to more than a word; no Rust
        // reference to it exists, so that it may be read atomically.
        let value = unsafe { AtomicU64::from_ptr(from.cast::<u64>().add(place)) };
        // Relaxed: pairs with nothing, for nothing is concluded from it that is not verified later.
        *word = value.load(Ordering::Relaxed).to_ne_bytes();
    }
}
