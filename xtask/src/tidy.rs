//! `cargo xtask tidy`: the rules of style that neither rustfmt nor clippy knows, after the example of TigerBeetle's `tidy`.
//!
//! A finding says where, what, and how to mend it. An exception stands in [`EXCEPTIONS`] with its reason, and is itself a finding once
//! nothing needs it any more.

mod lexer;
mod markdown;
mod project;
mod rust;

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// Lines in a file of Rust.
const FILE_LINES: usize = 600;

/// Lines in a function, from `fn` to the closing brace.
const FUNCTION_LINES: usize = 80;

/// Places that may break a rule of length: the file, the function (empty: the file itself), and why.
const EXCEPTIONS: [Exception; 0] = [];

/// A place that may be longer than the rule says.
struct Exception {
    path: &'static str,
    function: &'static str,
    reason: &'static str,
}

/// One broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    line: usize,
    /// What is wrong and how to mend it.
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            message: message.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// A file of the source tree.
struct Source {
    /// From the root of the tree, with `/`.
    path: String,
    text: String,
}

/// Checks the tree; prints every finding, and fails when there is one.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut sources = Vec::new();
    collect(root, "", &mut sources)?;
    let findings = check(&sources, |path| root.join(path).exists(), &EXCEPTIONS);
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        count => bail!("tidy: {count} to mend"),
    }
}

/// Every finding, by path and line. `exists` answers for files that are no text, and for folders.
fn check(sources: &[Source], exists: impl Fn(&str) -> bool, exceptions: &[Exception]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut used = vec![false; exceptions.len()];
    for source in sources {
        findings.extend(check_whitespace(source));
        if source.path.ends_with(".rs") {
            findings.extend(rust::check(source, |function| {
                let listed =
                    |exception: &Exception| exception.path == source.path && exception.function == function;
                let position = exceptions.iter().position(listed);
                position.inspect(|&index| used[index] = true).is_some()
            }));
        }
        if source.path.ends_with(".md") {
            findings.extend(markdown::check(source, sources, &exists));
        }
    }
    findings.extend(project::check(sources));
    for (exception, used) in exceptions.iter().zip(used) {
        if !used {
            let Exception {
                path,
                function,
                reason,
            } = exception;
            let message = format!("{path} {function} needs no exception ({reason}): remove it from the list");
            findings.push(Finding::new("xtask/src/tidy.rs", 1, message));
        }
    }
    findings.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
    findings
}

fn check_whitespace(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |line: usize, message: &str| findings.push(Finding::new(&source.path, line, message));
    for (index, line) in source.text.split('\n').enumerate() {
        if line.contains('\t') {
            find(
                index + 1,
                "a tab: indent with spaces, and write `\\t` in a string",
            );
        }
        if line.trim_end() != line {
            find(index + 1, "white space at the end of the line: remove it");
        }
    }
    if !source.text.is_empty() && !source.text.ends_with('\n') {
        find(
            source.text.lines().count(),
            "no line end at the end of the file: add one",
        );
    }
    findings
}

/// Reads the text files that the rules are about. Hidden folders, but for `.ci`, and build output are none of ours.
fn collect(root: &Path, folder: &str, sources: &mut Vec<Source>) -> Result<()> {
    let listing = fs::read_dir(root.join(folder))
        .with_context(|| format!("cannot list {}", root.join(folder).display()))?;
    for entry in listing {
        let entry = entry.with_context(|| format!("cannot list {}", root.join(folder).display()))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let path = if folder.is_empty() {
            name.clone()
        } else {
            format!("{folder}/{name}")
        };
        if entry.file_type()?.is_dir() {
            if (!name.starts_with('.') || name == ".ci") && name != "target" {
                collect(root, &path, sources)?;
            }
        } else if [".rs", ".md", ".toml", ".sh"]
            .iter()
            .any(|kind| name.ends_with(kind))
            || path == ".ci/run"
        {
            let text = fs::read_to_string(entry.path()).with_context(|| format!("cannot read {path}"))?;
            sources.push(Source { path, text });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    fn found(path: &str, text: &str, exceptions: &[Exception]) -> Vec<String> {
        let findings = check(&[source(path, text)], |_| false, exceptions);
        // No document is there, which is not what these tests are about.
        findings
            .iter()
            .filter(|finding| finding.path.ends_with(".rs"))
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn white_space_is_found_where_it_is() {
        let findings = check_whitespace(&source("a.md", "fine\n\tindented\nspace \nlast"));
        let lines: Vec<_> = findings
            .iter()
            .map(|finding| (finding.line, &finding.message[..3]))
            .collect();
        assert_eq!(lines, [(2, "a t"), (3, "whi"), (4, "no ")]);
        assert_eq!(check_whitespace(&source("a.md", "fine\n")), []);
    }

    #[test]
    fn a_long_file_needs_an_exception_and_an_exception_needs_a_long_file() {
        let long = "// x\n".repeat(FILE_LINES + 1);
        let findings = found("a.rs", &long, &[]);
        assert!(findings[0].starts_with("a.rs:601: 601 lines"), "{findings:?}");
        let exception = [Exception {
            path: "a.rs",
            function: "",
            reason: "a table",
        }];
        assert_eq!(found("a.rs", &long, &exception), Vec::<String>::new());
        let findings = found("a.rs", "// short\n", &exception);
        assert!(
            findings[0].contains("a.rs  needs no exception (a table)"),
            "{findings:?}"
        );
    }

    #[test]
    fn a_long_function_can_be_excepted_by_name() {
        let long = format!("fn long() {{\n{}}}\n", "    x();\n".repeat(FUNCTION_LINES));
        assert!(found("a.rs", &long, &[])[0].starts_with("a.rs:1: fn long has 82 lines"));
        let exception = [Exception {
            path: "a.rs",
            function: "long",
            reason: "a table",
        }];
        assert_eq!(found("a.rs", &long, &exception), Vec::<String>::new());
    }
}
