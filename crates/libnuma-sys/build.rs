//! Links libnuma (Debian: libnuma-dev), which is where the linker looks anyway: there is nothing to
//! probe for and nothing to generate.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-lib=numa");
}
