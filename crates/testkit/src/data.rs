//! Public data sets that tests use and this project does not contain.

use std::path::{Path, PathBuf};

/// The folder `name`, which has `file`: in `$MILLRACE_TEST_DATA`, or in `shared/data` beside the repository.
/// `None` where there is neither of these, said on the error stream: the caller tests nothing then.
///
/// # Panics
/// If the variable is set, or `shared/data` is there, and the file is not in it: what should be tested would not be.
#[must_use]
pub fn data_set(name: &str, file: &str) -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "a test's own switch, not configuration")]
    let given = std::env::var("MILLRACE_TEST_DATA").ok().filter(|path| !path.is_empty()).map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    find(given, beside, name, file)
}

fn find(given: Option<PathBuf>, beside: PathBuf, name: &str, file: &str) -> Option<PathBuf> {
    let Some(data) = given.or_else(|| beside.is_dir().then_some(beside)) else {
        #[expect(clippy::print_stderr, reason = "a test that tests nothing says so")]
        {
            eprintln!("SKIPPED: there is no data set {name}: put it below $MILLRACE_TEST_DATA to test with it");
        }
        return None;
    };
    let folder = data.join(name);
    assert!(folder.join(file).is_file(), "{} is not there, though {} is", folder.join(file).display(), data.display());
    Some(folder.canonicalize().expect("the data set's folder"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_should_be_there_must_be_there() {
        let data = tempfile::tempdir().unwrap();
        let (here, absent) = (data.path().to_owned(), data.path().join("absent"));
        assert_eq!(find(None, absent.clone(), "bank", "a.tsv"), None);
        for (given, beside) in [(Some(here.clone()), absent.clone()), (None, here.clone())] {
            let missing = std::panic::catch_unwind(|| find(given.clone(), beside.clone(), "bank", "a.tsv"));
            assert!(missing.is_err());
        }
        std::fs::create_dir(here.join("bank")).unwrap();
        std::fs::write(here.join("bank/a.tsv"), "").unwrap();
        assert!(find(None, here, "bank", "a.tsv").is_some());
        let wrong = std::panic::catch_unwind(|| find(Some(absent.clone()), absent.clone(), "bank", "a.tsv"));
        assert!(wrong.is_err(), "a variable that names nothing is a mistake");
    }
}
