//! The rules for Markdown: every link into the tree leads somewhere.

use super::{Finding, Source};

/// Checks the links of one file. `exists` answers for what is not among the sources.
pub(crate) fn check(source: &Source, sources: &[Source], exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, target) in links(&source.text) {
        if target.contains("://") || target.starts_with("mailto:") {
            continue;
        }
        let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
        let path = if path.is_empty() {
            Some(source.path.clone())
        } else {
            resolve(&source.path, path)
        };
        let text = sources
            .iter()
            .find(|other| Some(&other.path) == path.as_ref())
            .map(|other| other.text.as_str());
        let is_there = text.is_some() || path.is_some_and(|path| exists(&path));
        let problem = if !is_there {
            Some(format!("the link to `{target}` leads nowhere: mend the path"))
        } else if !anchor.is_empty() && text.is_some_and(|text| !anchors(text).any(|known| known == anchor)) {
            Some(format!(
                "the link to `{target}` names no heading there: mend what follows `#`"
            ))
        } else {
            None
        };
        findings.extend(problem.map(|message| Finding::new(&source.path, line, message)));
    }
    findings
}

/// The lines outside fenced code, counted from one.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let is_fence = line.trim_start().starts_with("```");
        fenced ^= is_fence;
        (!fenced && !is_fence).then_some((index + 1, line))
    })
}

/// The targets of `[text](target)` and where they stand.
fn links(text: &str) -> impl Iterator<Item = (usize, &str)> {
    prose(text).flat_map(|(number, line)| {
        let after = line
            .match_indices("](")
            .map(move |(at, opening)| &line[at + opening.len()..]);
        after.filter_map(move |rest| Some((number, rest[..rest.find(')')?].split(' ').next()?)))
    })
}

/// The anchors of the headings, made as the usual web views make them: lower case, spaces to hyphens, punctuation dropped.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    let headings = prose(text).filter(|(_, line)| line.starts_with('#'));
    let headings = headings.map(|(_, line)| line.trim_start_matches('#').trim());
    headings.map(|heading| {
        let kept = heading
            .chars()
            .filter(|each| each.is_alphanumeric() || matches!(each, ' ' | '-' | '_'));
        kept.map(|each| {
            if each == ' ' {
                '-'
            } else {
                each.to_ascii_lowercase()
            }
        })
        .collect()
    })
}

/// The link's path from the root of the tree; `None` where it leaves the tree.
fn resolve(from: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let source = |path: &str, text: &str| Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let sources = [
            source("docs/a.md", text),
            source("README.md", "# Title\n## How it works: a look\n"),
        ];
        let findings = check(&sources[0], &sources, |path| {
            path == "docs/picture.svg" || path == "docs"
        });
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn links_that_lead_somewhere_are_fine() {
        let text = "# Here\n[a](../README.md) ![b](picture.svg) [c](#here) [d](https://example.org/x) [e](../README.md#how-it-works-a-look)\n\
                    [f](../docs) [g](picture.svg \"title\")\n";
        assert_eq!(found(text), Vec::<String>::new());
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let findings = found("fine\n[a](missing.md) and [b](../README.md#nothing)\n[c](../../outside.md)\n");
        assert_eq!(findings.len(), 3, "{findings:?}");
        assert!(findings[0].starts_with("docs/a.md:2: the link to `missing.md` leads nowhere"));
        assert!(findings[1].contains("names no heading"));
        assert!(findings[2].starts_with("docs/a.md:3:"));
    }

    #[test]
    fn fenced_code_has_no_links() {
        assert_eq!(found("```\n[a](missing.md)\n```\n"), Vec::<String>::new());
    }
}
