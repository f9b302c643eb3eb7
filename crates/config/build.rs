//! Rebuilds the crate when a file of the embedded packs is added or removed.

fn main() {
    println!("cargo::rerun-if-changed=../../packs");
}
