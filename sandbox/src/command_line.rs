//! The command line of the jailed program, as the kernel takes it.

use std::{collections::BTreeMap, ffi::CString, io, path::Path};

use crate::{
    layout::{PRELOAD_AT, program_at},
    spec::Spec,
    sys,
};

/// A program, its arguments with its own name, and its environment, in the form of execve(2).
pub(crate) type CommandLine = (CString, Vec<CString>, Vec<CString>);

/// What is started in a jail.
pub(crate) fn command_line(spec: &Spec) -> io::Result<CommandLine> {
    let mut env = spec.environment();
    if spec.preload.is_some() {
        // musl reads no /etc/ld.so.preload; glibc loads the library once, however often it is named.
        env.insert("LD_PRELOAD".to_owned(), format!("/{PRELOAD_AT}"));
    }
    exec_form(&program_at(spec), &spec.args, &env)
}

/// A command line in the form of execve(2).
pub(crate) fn exec_form(
    program: &Path,
    args: &[String],
    env: &BTreeMap<String, String>,
) -> io::Result<CommandLine> {
    let text = |s: String| CString::new(s).map_err(|_nul| sys::errno(sys::EINVAL));
    let program = sys::c_path(program)?;
    let args = std::iter::once(Ok(program.clone()))
        .chain(args.iter().cloned().map(text))
        .collect::<io::Result<_>>()?;
    let env = env
        .iter()
        .map(|(name, value)| text(format!("{name}={value}")))
        .collect::<io::Result<_>>()?;
    Ok((program, args, env))
}
