//! Links the library without start files and libraries: whatever program loads it has a libc already.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let arguments = [
        "-nostartfiles",
        "-nodefaultlibs",
        "-Wl,-soname,libmeshfarm_preload.so",
        // Parts of core name the unwinder's entry although this profile aborts; nothing ever calls it.
        "-Wl,--defsym=rust_eh_personality=0",
        "-Wl,--gc-sections",
        "-Wl,--strip-debug",
    ];
    for argument in arguments {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
}
