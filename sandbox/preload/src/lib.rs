//! Maps Windows paths of a job to where its files lie in the jail: the convenience, never the barrier.
//!
//! Loaded by `/etc/ld.so.preload` of the jail. No allocator, no thread-local data, no library of its own, so
//! that it works in any dynamically linked program. A program without it only misses its Windows paths.
#![cfg_attr(not(test), no_std)]

mod format;
mod redirect;

#[cfg(not(test))]
mod hooks;
#[cfg(not(test))]
mod real;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    real::stop()
}
