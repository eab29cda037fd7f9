//! The program in the jail of this package's tests: does one act and prints what came of it.
#![allow(
    unsafe_code,
    reason = "a test program whose acts are system calls that no safe interface offers"
)]

use std::{
    env, fs,
    io::{self, Read},
    time::Duration,
};

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match act(&words) {
        Ok(text) => println!("ok {text}"),
        Err(e) => println!("error {} {e}", e.raw_os_error().unwrap_or(-1)),
    }
}

fn act(words: &[&str]) -> io::Result<String> {
    match words {
        ["read", path] => fs::read_to_string(path),
        ["write", path, text] => fs::write(path, text).map(|()| String::new()),
        ["list", path] => {
            let mut names: Vec<String> = fs::read_dir(path)?
                .map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()))
                .collect::<io::Result<_>>()?;
            names.sort();
            Ok(names.join(" "))
        }
        ["env"] => Ok(env::vars().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(";")),
        ["where"] => Ok(env::current_dir()?.display().to_string()),
        ["echo"] => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text)?;
            Ok(text)
        }
        ["exit", code] => std::process::exit(i32::try_from(number(code)).unwrap_or(1)),
        _ => act_on_others(words),
    }
}

fn act_on_others(words: &[&str]) -> io::Result<String> {
    match words {
        ["memory", bytes] => Ok(touch(usize::try_from(number(bytes)).unwrap_or(0))),
        ["linger", path] => linger(path),
        ["linger-and-stay", path] => {
            linger(path)?;
            act(&["sleep"])
        }
        ["sleep"] => loop {
            std::thread::sleep(Duration::from_secs(60));
        },
        ["spin"] => loop {
            std::hint::spin_loop();
        },
        ["call", rest @ ..] => call(rest),
        #[cfg(target_arch = "x86_64")]
        ["call-32"] => Ok(call_32().to_string()),
        ["run", program, rest @ ..] => {
            let done = std::process::Command::new(program).args(rest).output()?;
            let text = [done.stdout, done.stderr].concat();
            Ok(format!("{:?} {}", done.status.code(), String::from_utf8_lossy(&text)))
        }
        _ => Err(io::Error::other("unknown act")),
    }
}

fn number(text: &str) -> i64 {
    let hex = text.strip_prefix("0x").map(|h| u64::from_str_radix(h, 16).map(u64::cast_signed));
    hex.unwrap_or_else(|| text.parse()).expect("a number")
}

/// One system call by number; an argument that is no number is passed as a string.
fn call(words: &[&str]) -> io::Result<String> {
    let strings: Vec<std::ffi::CString> =
        words.iter().map(|w| std::ffi::CString::new(*w).expect("no NUL")).collect();
    let mut a = [0_i64; 7];
    for (i, word) in words.iter().enumerate().take(7) {
        let numeric = word.starts_with(|c: char| c.is_ascii_digit() || c == '-');
        a[i] = if numeric { number(word) } else { strings[i].as_ptr() as i64 };
    }
    // SAFETY: the arguments are numbers or live strings; the tests choose calls that write nothing.
    let n = unsafe { libc::syscall(a[0], a[1], a[2], a[3], a[4], a[5], a[6]) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n.to_string()) }
}

/// `getpid` through the interface of 32-bit programs, whose numbers no 64-bit filter knows.
#[cfg(target_arch = "x86_64")]
fn call_32() -> u64 {
    let result: u64;
    // SAFETY: takes no argument and changes the result's register only.
    unsafe { std::arch::asm!("int 0x80", inlateout("rax") 20_u64 => result) };
    result
}

fn touch(bytes: usize) -> String {
    let mut memory: Vec<u8> = Vec::new();
    if memory.try_reserve_exact(bytes).is_err() {
        return "refused".to_owned();
    }
    memory.resize(bytes, 1);
    memory.iter().map(|b| u64::from(*b)).sum::<u64>().to_string()
}

/// Leave a process behind that has its own session and parent, and writes to a file for ever.
fn linger(path: &str) -> io::Result<String> {
    // SAFETY: both sides go on with safe code; this program has one thread.
    if unsafe { libc::fork() } == 0 {
        // SAFETY: takes nothing.
        unsafe { libc::setsid() };
        // SAFETY: as above.
        if unsafe { libc::fork() } == 0 {
            for n in 0_u64.. {
                fs::write(path, n.to_string())?;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        std::process::exit(0);
    }
    loop {
        if fs::read(path).is_ok_and(|t| !t.is_empty()) {
            return Ok(String::new());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
