//! Hooks that make a file with a new name and write that name back into the caller's template.

use core::ffi::CStr;

use super::{CREATE, FAILED, mapped, through::call_next};
use crate::real::set_errno;

const EINVAL: i32 = 22;
/// The part of a template that libc replaces.
const N_REPLACED: usize = 6;

/// The last bytes of a string, at a place that may be written.
fn tail(text: usize, length: usize) -> Option<usize> {
    // SAFETY: a template is a string that ends with NUL.
    let n = unsafe { CStr::from_ptr(text as *const core::ffi::c_char) }.count_bytes();
    n.checked_sub(length).map(|start| text + start)
}

fn copy(from: usize, to: usize, length: usize) {
    // SAFETY: both places were found so many bytes before the ends of their strings.
    unsafe { core::ptr::copy(from as *const u8, to as *mut u8, length) };
}

fn equal(one: usize, other: usize, length: usize) -> bool {
    // SAFETY: as for `copy`.
    let bytes = |text: usize| unsafe { core::slice::from_raw_parts(text as *const u8, length) };
    bytes(one) == bytes(other)
}

/// Make a file from a mapped template; what libc put into the mapped one is copied to the caller's.
fn made(template: usize, suffix: usize, failed: usize, call: impl Fn(usize) -> usize) -> usize {
    // The upper half of an int's register may hold anything.
    let length = N_REPLACED + (suffix & 0xffff_ffff);
    mapped(template, CREATE, failed, |chosen| {
        if chosen == template {
            return call(template);
        }
        // Where the mapped name ends otherwise, there is nothing to write back to.
        let (Some(own), Some(other)) = (tail(template, length), tail(chosen, length)) else {
            set_errno(EINVAL);
            return failed;
        };
        if !equal(own, other, length) {
            set_errno(EINVAL);
            return failed;
        }
        let result = call(chosen);
        copy(other, own, length);
        if result == chosen { template } else { result }
    })
}

/// Open a new file; the number of bytes after the replaced part may be among the arguments.
macro_rules! templates {
    ($($name:ident($template:ident $(, $arg:ident)*) with $suffix:expr, else $failed:expr;)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($template: usize $(, $arg: usize)*) -> usize {
                made($template, $suffix, $failed, |$template| {
                    call_next!($name($template $(, $arg)*) else $failed)
                })
            }
        )*
    };
}

templates! {
    mkstemp(template) with 0, else FAILED;
    mkstemp64(template) with 0, else FAILED;
    mkostemp(template, flags) with 0, else FAILED;
    mkostemp64(template, flags) with 0, else FAILED;
    mkstemps(template, suffix) with suffix, else FAILED;
    mkstemps64(template, suffix) with suffix, else FAILED;
    mkostemps(template, suffix, flags) with suffix, else FAILED;
    mkostemps64(template, suffix, flags) with suffix, else FAILED;
    mkdtemp(template) with 0, else 0;
}

/// Only makes up a name; an empty one says that there is none.
fn named(template: usize, call: impl Fn(usize) -> usize) -> usize {
    let made = made(template, 0, 0, |chosen| {
        call(chosen);
        // SAFETY: a template is a string that ends with NUL.
        let empty = unsafe { *(chosen as *const u8) } == 0;
        if empty { 0 } else { chosen }
    });
    if made == 0 && template != 0 {
        // SAFETY: the caller's template may be written.
        unsafe { *(template as *mut u8) = 0 };
    }
    template
}

#[unsafe(no_mangle)]
extern "C" fn mktemp(template: usize) -> usize {
    named(template, |template| call_next!(mktemp(template) else 0))
}

#[unsafe(no_mangle)]
extern "C" fn __mktemp(template: usize) -> usize {
    named(template, |template| call_next!(__mktemp(template) else 0))
}
