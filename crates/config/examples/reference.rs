//! Prints `docs/configuration.md`: `make docs`.

use std::io::Write as _;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(millrace_config::reference().as_bytes())
}
