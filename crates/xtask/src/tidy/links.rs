//! Relative links in Markdown pages lead somewhere: to a file or folder, and to a heading in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path},
};

use super::Finding;

/// Every relative link that leads nowhere.
pub(crate) fn check(files: &BTreeMap<String, String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, content) in files.iter().filter(|(path, _)| path.ends_with(".md")) {
        for (line, target) in links(content) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, heading) = target.split_once('#').map_or((target, None), |(f, h)| (f, Some(h)));
            let goal = if file.is_empty() { Some(path.clone()) } else { resolve(path, file) };
            let message = match goal {
                None => Some(format!("the link `{target}` leads out of the repository")),
                Some(goal) => {
                    missing(files, &goal, heading).map(|what| format!("the link `{target}` leads nowhere: {what}"))
                }
            };
            findings.extend(message.map(|message| Finding { path: path.clone(), line, message }));
        }
    }
    findings
}

/// What is missing at the end of a link.
fn missing(files: &BTreeMap<String, String>, goal: &str, heading: Option<&str>) -> Option<String> {
    let folder = format!("{goal}/");
    let Some(content) = files.get(goal) else {
        // pictures are no text, so they are looked for on the disk, as folders are in the list
        let there = goal.is_empty() || files.keys().any(|p| p.starts_with(&folder)) || on_disk(goal);
        return (!there).then(|| format!("there is no {goal}"));
    };
    let heading = heading?;
    (goal.ends_with(".md") && !slugs(content).contains(heading)).then(|| format!("no heading `#{heading}` in {goal}"))
}

fn on_disk(goal: &str) -> bool {
    crate::root().is_ok_and(|root| root.join(goal).exists())
}

/// `(line, target)` of each `[text](target)` outside code.
fn links(content: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (number, line) in content.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            let in_code = line.get(..at).is_some_and(|before| before.matches('`').count() % 2 == 1);
            let target = line.get(at + 2..).and_then(|rest| rest.split([')', ' ']).next());
            if let (Some(target), false) = (target, in_code) {
                found.push((number + 1, target));
            }
        }
    }
    found
}

/// A link's file, relative to the repository.
fn resolve(page: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = Path::new(page).parent()?.to_str()?.split('/').filter(|p| !p.is_empty()).collect();
    for component in Path::new(link).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::ParentDir => {
                parts.pop()?;
            }
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

/// The headings' anchors, as the usual viewers make them.
fn slugs(content: &str) -> BTreeSet<String> {
    content
        .lines()
        .filter_map(|line| line.strip_prefix('#').map(|rest| rest.trim_start_matches('#').trim()))
        .map(|heading| {
            heading
                .to_lowercase()
                .chars()
                .filter_map(|c| match c {
                    ' ' => Some('-'),
                    c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                    _ => None,
                })
                .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_page(page: &str) -> Vec<String> {
        let files = BTreeMap::from([
            ("docs/a.md".to_owned(), page.to_owned()),
            ("docs/b.md".to_owned(), "# The `B` page\n## Two words\n".to_owned()),
            ("crates/x/src/lib.rs".to_owned(), "//! X.".to_owned()),
        ]);
        check(&files).into_iter().map(|f| f.message).collect()
    }

    #[test]
    fn good_links_pass() {
        let page = "# Here\n[b](b.md) [b](./b.md#two-words) [b](b.md#the-b-page) [x](../crates/x/src/lib.rs) \
                    [x](../crates/x) [h](#here) [w](https://example.com) `[no](nowhere.md)`\n```\n[no](nowhere.md)\n```\n";
        assert_eq!(check_page(page), Vec::<String>::new());
    }

    #[test]
    fn broken_links_are_found() {
        for link in ["c.md", "b.md#three-words", "../../out.md", "/abs.md", "#nowhere", "../crates/y"] {
            assert_eq!(check_page(&format!("# Here\n[l]({link})\n")).len(), 1, "{link}");
        }
    }
}
