//! A pack's files: from a folder, from the binary, to a folder.

use std::{collections::BTreeMap, fs, path::Path};

use include_dir::{Dir, include_dir};
use millrace_base::files::{create_dir_all, write_atomic};

use crate::error::ConfigError;

static PACKS: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/../../packs");

/// Names of the folders with a `pack.toml` in them.
pub(super) fn embedded_names() -> Vec<String> {
    let mut names: Vec<String> = PACKS
        .dirs()
        .filter(|d| d.get_file(d.path().join("pack.toml")).is_some())
        .filter_map(|d| d.path().to_str().map(str::to_owned))
        .collect();
    names.sort();
    names
}

pub(super) fn embedded(name: &str) -> Option<BTreeMap<String, String>> {
    let folder = PACKS.get_dir(name).filter(|d| d.get_file(d.path().join("pack.toml")).is_some())?;
    let mut files = BTreeMap::new();
    collect(folder, folder.path(), &mut files);
    Some(files)
}

fn collect(folder: &Dir<'_>, root: &Path, files: &mut BTreeMap<String, String>) {
    for file in folder.files() {
        let path = file.path().strip_prefix(root).ok().and_then(Path::to_str);
        if let (Some(path), Some(text)) = (path, file.contents_utf8()) {
            files.insert(path.to_owned(), text.to_owned());
        }
    }
    for inner in folder.dirs() {
        collect(inner, root, files);
    }
}

/// Every text file below `folder`, except hidden ones (an editor's, a version control's).
pub(super) fn from_folder(folder: &Path) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut files = BTreeMap::new();
    let hidden = |entry: &walkdir::DirEntry| {
        entry.depth() > 0 && entry.file_name().to_str().is_none_or(|n| n.starts_with('.') || n.ends_with('~'))
    };
    for entry in walkdir::WalkDir::new(folder).follow_links(true).into_iter().filter_entry(|e| !hidden(e)) {
        let entry =
            entry.map_err(|e| ConfigError::Read { path: e.path().unwrap_or(folder).to_owned(), source: e.into() })?;
        if !entry.file_type().is_file() {
            continue;
        }
        let bytes =
            fs::read(entry.path()).map_err(|source| ConfigError::Read { path: entry.path().to_owned(), source })?;
        let text = String::from_utf8(bytes).map_err(|_| ConfigError::NotText { path: entry.path().to_owned() })?;
        if let Some(path) = entry.path().strip_prefix(folder).ok().and_then(Path::to_str) {
            files.insert(path.to_owned(), text);
        }
    }
    Ok(files)
}

pub(super) fn write(files: &BTreeMap<String, String>, folder: &Path) -> Result<(), ConfigError> {
    for (path, text) in files {
        let path = folder.join(path);
        let parent = path.parent().unwrap_or(folder);
        create_dir_all(parent, 0o755)
            .and_then(|()| write_atomic(&path, text.as_bytes(), 0o644))
            .map_err(|source| ConfigError::Write { path: path.clone(), source })?;
    }
    Ok(())
}
