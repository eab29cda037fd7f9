//! Hooks of sockets that are named by a path.

use super::{CHANGE, CHANGE_LINK, FAILED, Way, mapped, through::call_next};
use crate::real::{self, set_errno};

const AF_UNIX: u16 = 1;
/// Bytes before the path of an address, and of its path.
const PATH_AT: usize = 2;
const MOST_PATH: usize = 108;
const ENAMETOOLONG: i32 = 36;

/// An address as C lays it out, with one byte more, so that its path always ends with NUL.
#[repr(C, align(2))]
struct Address([u8; PATH_AT + MOST_PATH + 1]);

/// Call with the address to use and its length.
fn addressed(
    address: usize,
    length: usize,
    way: Way,
    call: impl Fn(usize, usize) -> usize,
) -> usize {
    // socklen_t is 32 bits wide.
    let n_bytes = length & 0xffff_ffff;
    if address == 0
        || real::table().is_none()
        || !(PATH_AT + 1..=PATH_AT + MOST_PATH).contains(&n_bytes)
    {
        return call(address, length);
    }
    let mut own = Address([0; PATH_AT + MOST_PATH + 1]);
    // SAFETY: the caller's address has so many bytes, and the length was checked against our own.
    unsafe { core::ptr::copy_nonoverlapping(address as *const u8, own.0.as_mut_ptr(), n_bytes) };
    let family = u16::from_ne_bytes([own.0[0], own.0[1]]);
    // Abstract names begin with NUL and lie in no folder.
    if family != AF_UNIX || own.0[PATH_AT] == 0 {
        return call(address, length);
    }
    let path = own.0.as_ptr() as usize + PATH_AT;
    mapped(path, way, FAILED, |chosen| {
        if chosen == path {
            return call(address, length);
        }
        // SAFETY: what `mapped` hands on ends with NUL.
        let name = unsafe { core::ffi::CStr::from_ptr(chosen as *const core::ffi::c_char) };
        let name = name.to_bytes_with_nul();
        if name.len() > MOST_PATH {
            set_errno(ENAMETOOLONG);
            return FAILED;
        }
        let mut other = Address([0; PATH_AT + MOST_PATH + 1]);
        other.0[..PATH_AT].copy_from_slice(&AF_UNIX.to_ne_bytes());
        other.0[PATH_AT..PATH_AT + name.len()].copy_from_slice(name);
        call(other.0.as_ptr() as usize, PATH_AT + name.len())
    })
}

#[unsafe(no_mangle)]
extern "C" fn bind(socket: usize, address: usize, length: usize) -> usize {
    addressed(
        address,
        length,
        CHANGE_LINK,
        |address, length| call_next!(bind(socket, address, length) else FAILED),
    )
}

#[unsafe(no_mangle)]
extern "C" fn connect(socket: usize, address: usize, length: usize) -> usize {
    addressed(
        address,
        length,
        CHANGE,
        |address, length| call_next!(connect(socket, address, length) else FAILED),
    )
}

#[unsafe(no_mangle)]
extern "C" fn __connect(socket: usize, address: usize, length: usize) -> usize {
    connect(socket, address, length)
}

#[unsafe(no_mangle)]
extern "C" fn sendto(
    socket: usize,
    bytes: usize,
    n_bytes: usize,
    flags: usize,
    address: usize,
    length: usize,
) -> usize {
    addressed(
        address,
        length,
        CHANGE,
        |address, length| call_next!(sendto(socket, bytes, n_bytes, flags, address, length) else FAILED),
    )
}

/// The start of C's struct msghdr, which is the same in every libc, and the rest of it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Message {
    address: usize,
    length: u32,
    rest: [u32; 11],
}

#[unsafe(no_mangle)]
extern "C" fn sendmsg(socket: usize, message: usize, flags: usize) -> usize {
    if message == 0 {
        return call_next!(sendmsg(socket, message, flags) else FAILED);
    }
    // SAFETY: the caller passes a struct msghdr, of 56 bytes.
    let own = unsafe { *(message as *const Message) };
    addressed(own.address, own.length as usize, CHANGE, |address, length| {
        let length = u32::try_from(length).unwrap_or(own.length);
        let other = Message { address, length, rest: own.rest };
        let other = core::ptr::from_ref(&other) as usize;
        call_next!(sendmsg(socket, other, flags) else FAILED)
    })
}
