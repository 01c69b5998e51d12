//! The rules for one file of Rust.

use super::{FILE_LINES, FUNCTION_LINES, Finding, Source, lexer};

/// The crates that may be unsafe.
const UNSAFE_CRATES: [&str; 2] = ["crates/memory/", "crates/guest-kvm/"];

/// What is code that was left unfinished.
const UNFINISHED: [(&str, &str); 3] = [
    (
        "todo!",
        "write it, or return an error that says what is not supported",
    ),
    (
        "unimplemented!",
        "write it, or return an error that says what is not supported",
    ),
    ("dbg!", "remove it, or use `tracing::debug!`"),
];

/// What a folder keeps out by design: the words, and why.
const ABSENT: [(&str, &[&str], &str); 3] = [
    (
        "crates/core/src/",
        &[
            "std::fs",
            "std::net",
            "std::thread",
            "std::process",
            "Instant::now",
            "SystemTime",
        ],
        "`core` decides and never acts: take what you need as an observation, return an action",
    ),
    (
        "crates/wire/src/",
        &["std::net", "std::fs", "std::thread"],
        "`wire` has no sockets: put it into `transport`",
    ),
    (
        "crates/transport/src/",
        &["tokio"],
        "the page path is plain threads with blocking sockets",
    ),
];

/// Checks one file. `is_excepted` says whether a function (empty: the file) may be long.
pub(crate) fn check(source: &Source, mut is_excepted: impl FnMut(&str) -> bool) -> Vec<Finding> {
    let code = lexer::code_only(&source.text);
    let mut findings = Vec::new();
    let mut find = |line: usize, message: String| findings.push(Finding::new(&source.path, line, message));

    // Tables of cases and simulated worlds read best in one piece: lengths are a rule for what ships.
    let is_test = source.path.split('/').any(|part| part == "tests");
    let lines = source.text.lines().count();
    if lines > FILE_LINES && !is_test && !is_excepted("") {
        find(
            lines,
            format!("{lines} lines where {FILE_LINES} are the rule: give each concept a file of its own"),
        );
    }
    for function in functions(&code) {
        if function.lines > FUNCTION_LINES && !is_test && !is_excepted(&function.name) {
            let Function { name, lines, .. } = &function;
            find(
                function.line,
                format!(
                    "fn {name} has {lines} lines where {FUNCTION_LINES} are the rule: split it by its steps"
                ),
            );
        }
    }
    for (index, line) in code.lines().enumerate() {
        for (word, remedy) in UNFINISHED {
            if line.contains(word) {
                find(index + 1, format!("`{word}`: {remedy}"));
            }
        }
        for (folder, words, why) in ABSENT {
            let word = words
                .iter()
                .find(|word| source.path.starts_with(folder) && line.contains(**word));
            if let Some(word) = word {
                find(index + 1, format!("`{word}` in {folder}: {why}"));
            }
        }
        if has_word(line, "unsafe") && !may_be_unsafe(&source.path) {
            find(
                index + 1,
                "`unsafe` outside crates/memory: put the operation there, behind a safe interface".to_owned(),
            );
        }
    }
    // In comments too, and not to be found in this very line.
    let marker = concat!("FIX", "ME");
    for (index, _) in source
        .text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.contains(marker))
    {
        find(
            index + 1,
            format!("{marker}: mend it, or open an issue and say here what holds until then"),
        );
    }
    if is_crate_root(&source.path)
        && !may_be_unsafe(&source.path)
        && !code.contains("#![forbid(unsafe_code)]")
    {
        find(
            1,
            "no `#![forbid(unsafe_code)]` in this crate's root: add it below the crate's documentation"
                .to_owned(),
        );
    }
    findings
}

fn may_be_unsafe(path: &str) -> bool {
    UNSAFE_CRATES.iter().any(|folder| path.starts_with(folder))
}

/// `lib.rs`, `main.rs`, and binaries of their own; integration tests and benches are left to the check for the word.
fn is_crate_root(path: &str) -> bool {
    path.ends_with("src/lib.rs") || path.ends_with("src/main.rs") || path.contains("src/bin/")
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|each: char| !each.is_alphanumeric() && each != '_')
        .any(|part| part == word)
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
struct Function {
    name: String,
    /// Where its `fn` is, counted from one.
    line: usize,
    lines: usize,
}

/// All functions with a body, closures left out, in blanked code.
fn functions(code: &str) -> Vec<Function> {
    let mut functions = Vec::new();
    for (start, _) in code.match_indices("fn ") {
        if code[..start].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
            continue;
        }
        let after = &code[start + 3..];
        let name: String = after
            .chars()
            .take_while(|each| each.is_alphanumeric() || *each == '_')
            .collect();
        let Some(length) = body_end(after) else { continue };
        if !name.is_empty() {
            let line = 1 + code[..start].matches('\n').count();
            functions.push(Function {
                name,
                line,
                lines: 1 + after[..length].matches('\n').count(),
            });
        }
    }
    functions
}

/// Where the first braces end; `None` for a declaration, which ends in a semicolon before any brace. A semicolon within
/// brackets is that of an array type.
fn body_end(signature: &str) -> Option<usize> {
    let (mut braces, mut brackets) = (0_usize, 0_usize);
    for (at, each) in signature.char_indices() {
        match each {
            '[' | '(' => brackets += 1,
            ']' | ')' => brackets = brackets.saturating_sub(1),
            ';' if braces == 0 && brackets == 0 => return None,
            '{' => braces += 1,
            '}' if braces == 1 => return Some(at),
            '}' => braces = braces.saturating_sub(1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<(usize, String)> {
        let source = Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        check(&source, |_| false)
            .into_iter()
            .map(|finding| (finding.line, finding.message))
            .collect()
    }

    fn only(path: &str, text: &str) -> (usize, String) {
        let mut findings = found(path, text);
        assert_eq!(findings.len(), 1, "{findings:?}");
        findings.remove(0)
    }

    #[test]
    fn functions_are_measured_from_fn_to_brace() {
        let code = "fn a(x: [u8; 4]) -> T\nwhere\n    T: U,\n{\n    if x { y } else { z }\n}\ntrait B { fn declared(&self); }\n\
                    impl C {\n    fn one_line(&self) {}\n}\n";
        let measured: Vec<_> = functions(code)
            .into_iter()
            .map(|f| (f.name, f.line, f.lines))
            .collect();
        assert_eq!(measured, [("a".to_owned(), 1, 6), ("one_line".to_owned(), 9, 1)]);
    }

    #[test]
    fn types_of_functions_are_no_functions() {
        assert_eq!(functions("struct A { is_met: fn() -> bool }\n"), []);
    }

    #[test]
    fn unfinished_code_is_found() {
        let (line, message) = only("src/a.rs", "fn a() {\n    todo!()\n}\n");
        assert!(line == 2 && message.starts_with("`todo!`"), "{message}");
        assert!(only("src/a.rs", "fn a() { dbg!(1) }\n").1.contains("tracing"));
        assert!(
            only("src/a.rs", concat!("// FIX", "ME later\n"))
                .1
                .contains("open an issue")
        );
        assert_eq!(
            found("src/a.rs", "// A comment may name todo!() and so may \"dbg!\".\n"),
            []
        );
    }

    #[test]
    fn what_a_crate_keeps_out_is_found() {
        let snippet = "fn now() -> Instant {\n    std::time::Instant::now()\n}\n";
        let (line, message) = only("crates/core/src/rates.rs", snippet);
        assert!(line == 2 && message.contains("observation"), "{message}");
        assert_eq!(found("crates/runtime/src/clock.rs", snippet), []);
        assert!(
            only("crates/wire/src/codec.rs", "use std::net::TcpStream;\n")
                .1
                .contains("transport")
        );
    }

    #[test]
    fn unsafe_stays_in_its_crates() {
        let snippet = "fn a() {\n    unsafe { b() }\n}\n";
        let (line, message) = only("crates/core/src/a.rs", snippet);
        assert!(line == 2 && message.contains("crates/memory"), "{message}");
        assert_eq!(found("crates/memory/src/a.rs", snippet), []);
        assert_eq!(
            found(
                "crates/core/src/a.rs",
                "// unsafe in a comment, \"unsafe\" in a string\nfn not_unsafe() {}\n"
            ),
            []
        );
    }

    #[test]
    fn crate_roots_forbid_unsafe_code() {
        for path in [
            "crates/core/src/lib.rs",
            "xtask/src/main.rs",
            "crates/cli/src/bin/other.rs",
        ] {
            assert!(only(path, "//! Docs.\n").1.contains("forbid"), "{path}");
            assert_eq!(found(path, "//! Docs.\n#![forbid(unsafe_code)]\n"), []);
        }
        assert_eq!(found("crates/memory/src/lib.rs", "//! Docs.\n"), []);
        assert_eq!(found("crates/core/src/page.rs", "//! Docs.\n"), []);
    }
}
