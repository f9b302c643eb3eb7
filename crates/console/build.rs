//! Checks that the browser bundle is there before the crate embeds it.

use std::path::Path;

const FILES: [&str; 4] = ["app.css", "app.js", "boot.js", "charts.js"];

fn main() {
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../web/dist");
    for file in FILES {
        for name in [file.to_owned(), format!("{file}.gz"), format!("{file}.br")] {
            let path = dist.join(name);
            println!("cargo:rerun-if-changed={}", path.display());
            assert!(
                path.is_file(),
                "the browser bundle {} is absent: run `make web` (or `npm ci && npm run build` in web/)",
                path.display()
            );
        }
    }
}
