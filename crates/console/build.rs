//! Checks that the browser bundle is there before the crate embeds it.

use std::path::Path;

const FILES: [&str; 4] = ["app.css", "app.js", "boot.js", "charts.js"];

fn main() {
    // asked when it runs: a checkout may have been moved since this was compiled
    let Some(here) = std::env::var_os("CARGO_MANIFEST_DIR") else {
        println!("cargo::error=this is run by cargo");
        return;
    };
    let dist = Path::new(&here).join("../../web/dist");
    let mut absent = Vec::new();
    for file in FILES {
        for name in [file.to_owned(), format!("{file}.gz"), format!("{file}.br")] {
            let path = dist.join(&name);
            println!("cargo::rerun-if-changed={}", path.display());
            if !path.is_file() {
                absent.push(name);
            }
        }
    }
    if !absent.is_empty() {
        println!(
            "cargo::error=web/dist has no {}: run `make web` (or `npm ci && npm run build` in web/)",
            absent.join(", ")
        );
    }
}
