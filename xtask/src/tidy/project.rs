//! The rules for the project as a whole: documents that must be there and must keep up with the code.

use super::{Finding, Source};

/// Documents every checkout has.
const DOCUMENTS: [&str; 4] = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"];

/// Where each algorithm has a file.
const POLICIES: &str = "crates/core/src/policy/";

/// The crates of programs, which may use `anyhow`; all others have a typed error.
const ANYHOW_CRATES: [&str; 3] = ["benches", "crates/cli", "xtask"];

/// The crates that stand on nothing of ours.
const GROUND: [&str; 2] = ["crates/core", "crates/memory"];

/// Checks what no single file can show.
pub(crate) fn check(sources: &[Source]) -> Vec<Finding> {
    let text_of = |path: &str| {
        sources
            .iter()
            .find(|source| source.path == path)
            .map(|source| source.text.as_str())
    };
    let mut findings = Vec::new();
    let mut find = |path: &str, message: String| findings.push(Finding::new(path, 1, message));

    for document in DOCUMENTS {
        if text_of(document).is_none_or(|text| text.trim().is_empty()) {
            find(document, "is missing or empty: write it".to_owned());
        }
    }
    let architecture = text_of("ARCHITECTURE.md").unwrap_or_default();
    for source in sources {
        let Some(folder) = source.path.strip_suffix("/Cargo.toml") else {
            continue;
        };
        if !names(architecture, folder) {
            find(
                "ARCHITECTURE.md",
                format!("does not name {folder}: say what it is for and what is deliberately not in it"),
            );
        }
        let dependencies: Vec<_> = dependencies(&source.text).collect();
        if dependencies.contains(&"anyhow") && !ANYHOW_CRATES.contains(&folder) {
            find(
                &source.path,
                "depends on anyhow: give the crate one typed error, with thiserror".to_owned(),
            );
        }
        if let Some(name) = dependencies.iter().find(|name| name.starts_with("vmferry-"))
            && GROUND.contains(&folder)
        {
            find(
                &source.path,
                format!("depends on {name}: {folder} stands on nothing of ours"),
            );
        }
    }
    for source in sources.iter().filter(|source| is_policy(&source.path)) {
        if !cites_source(&source.text) {
            let message = "this algorithm cites no source: add a line `//! Source: ...` (paper and year, system, or \"baseline\")";
            find(&source.path, message.to_owned());
        }
    }
    findings
}

/// Whether the text names the crate: by its folder, or by the folder's name in code type.
fn names(text: &str, folder: &str) -> bool {
    let name = folder.rsplit('/').next().unwrap_or(folder);
    text.contains(&format!("`{name}`"))
        || text.contains(&format!("`{name}/`"))
        || text.contains(&format!("{folder}/"))
        || text.contains(&format!("`{folder}`"))
}

/// The names under `[dependencies]`; those of tests and of platforms have tables of their own.
fn dependencies(manifest: &str) -> impl Iterator<Item = &str> {
    let lines = manifest
        .lines()
        .skip_while(|line| line.trim() != "[dependencies]")
        .skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| {
        line.split(['.', '=', ' '])
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))
    })
}

fn is_policy(path: &str) -> bool {
    path.strip_prefix(POLICIES)
        .is_some_and(|name| name.ends_with(".rs") && !name.contains('/') && name != "mod.rs")
}

fn cites_source(text: &str) -> bool {
    text.lines()
        .take_while(|line| line.starts_with("//!"))
        .any(|line| line.contains("Source:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(extra: &[(&str, &str)]) -> Vec<String> {
        let documents = DOCUMENTS.map(|path| (path, "Text about `core` and xtask/.\n"));
        let all = documents
            .iter()
            .filter(|(path, _)| extra.iter().all(|(other, _)| other != path))
            .chain(extra);
        let sources: Vec<_> = all
            .map(|(path, text)| Source {
                path: path.to_string(),
                text: text.to_string(),
            })
            .collect();
        check(&sources).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_crate_must_be_in_the_architecture() {
        assert_eq!(
            found(&[("crates/core/Cargo.toml", ""), ("xtask/Cargo.toml", "")]),
            Vec::<String>::new()
        );
        let findings = found(&[("crates/wire/Cargo.toml", "")]);
        assert!(
            findings[0].starts_with("ARCHITECTURE.md:1: does not name crates/wire"),
            "{findings:?}"
        );
    }

    #[test]
    fn a_document_must_be_there() {
        assert!(found(&[("CHANGELOG.md", "\n")])[0].starts_with("CHANGELOG.md:1: is missing or empty"));
    }

    #[test]
    fn dependencies_point_one_way() {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\nanyhow.workspace = true\nvmferry-wire = { path = \"..\" }\n\n\
                        [dev-dependencies]\nproptest.workspace = true\n";
        assert_eq!(
            dependencies(manifest).collect::<Vec<_>>(),
            ["anyhow", "vmferry-wire"]
        );
        let findings = found(&[("crates/core/Cargo.toml", manifest)]);
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[0].contains("typed error") && findings[1].contains("stands on nothing of ours"));
    }

    #[test]
    fn an_algorithm_must_cite_its_source() {
        let path = "crates/core/src/policy/pre_copy.rs";
        assert!(found(&[(path, "//! Rounds.\n")])[0].contains("cites no source"));
        assert_eq!(
            found(&[(path, "//! Rounds.\n//!\n//! Source: Clark et al., NSDI 2005.\n")]),
            Vec::<String>::new()
        );
        assert_eq!(
            found(&[("crates/core/src/policy/mod.rs", "//! All of them.\n")]),
            Vec::<String>::new()
        );
    }
}
