//! Maps the artist's paths of a job to where its files lie: the convenience, never the barrier.
//!
//! Loaded by `/etc/ld.so.preload` of the jail, and by `LD_PRELOAD` for programs of another libc. No allocator,
//! no thread-local data, no library of its own, so that it works in any dynamically linked program. A program
//! without it only misses its Windows paths.
#![cfg_attr(not(test), no_std)]

mod fold;
mod format;
mod marks;
mod posix;
mod redirect;
mod rules;

#[cfg(not(test))]
mod hooks;
#[cfg(not(test))]
mod kernel;
#[cfg(not(test))]
mod real;
#[cfg(not(test))]
mod record;

#[cfg(test)]
mod tests;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    kernel::stop()
}
