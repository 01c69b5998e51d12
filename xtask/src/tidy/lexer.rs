//! Just enough of Rust's lexical grammar to look at code without its comments and literals.

/// The source with every comment, string and character literal blanked, line ends kept: what is left at a place is code at that
/// place.
pub(crate) fn code_only(source: &str) -> String {
    let mut lexer = Lexer {
        rest: source,
        code: String::with_capacity(source.len()),
    };
    while !lexer.rest.is_empty() {
        lexer.step();
    }
    lexer.code
}

struct Lexer<'a> {
    rest: &'a str,
    code: String,
}

impl Lexer<'_> {
    fn step(&mut self) {
        let rest = self.rest;
        if rest.starts_with("//") {
            self.blank(rest.find('\n').unwrap_or(rest.len()));
        } else if rest.starts_with("/*") {
            self.blank(block_comment(rest));
        } else if let Some(length) = self.raw_string() {
            self.blank(length);
        } else if rest.starts_with('"') {
            self.blank(quoted(rest, '"'));
        } else if is_char_literal(rest) {
            self.blank(quoted(rest, '\''));
        } else {
            self.keep();
        }
    }

    /// The length of a raw string that begins here. An `r` at the end of a longer word begins none.
    fn raw_string(&self) -> Option<usize> {
        let in_word = self
            .code
            .ends_with(|last: char| last.is_alphanumeric() || last == '_');
        // `br"` and `cr"` come here at their `r`.
        let prefixed = self.code.ends_with(['b', 'c'])
            && !self.code[..self.code.len() - 1].ends_with(char::is_alphanumeric);
        if in_word && !prefixed {
            return None;
        }
        let after = self.rest.strip_prefix('r')?;
        let hashes = after.len() - after.trim_start_matches('#').len();
        let content = after[hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        let length = content.find(&end).map_or(content.len(), |at| at + end.len());
        Some(1 + hashes + 1 + length)
    }

    fn keep(&mut self) {
        let mut rest = self.rest.chars();
        self.code.extend(rest.next());
        self.rest = rest.as_str();
    }

    fn blank(&mut self, length: usize) {
        let (blanked, rest) = self.rest.split_at(length);
        self.code
            .extend(blanked.chars().map(|each| if each == '\n' { '\n' } else { ' ' }));
        self.rest = rest;
    }
}

/// The length of the comment that begins here; comments nest.
fn block_comment(source: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < source.len() {
        let rest = &source.as_bytes()[at..];
        let (change, step) = match rest {
            [b'/', b'*', ..] => (1, 2),
            [b'*', b'/', ..] => (-1, 2),
            _ => (0, 1),
        };
        depth += change;
        at += step;
        if depth == 0 {
            return at;
        }
    }
    source.len()
}

/// The length of the literal that begins here and ends at the next quote without a backslash.
fn quoted(source: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, each) in source.char_indices().skip(1) {
        match each {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if each == quote => return at + each.len_utf8(),
            _ => {}
        }
    }
    source.len()
}

/// Tells `'a'` and `'\n'` from the lifetime `'a`.
fn is_char_literal(source: &str) -> bool {
    let mut chars = source.chars();
    chars.next() == Some('\'') && (chars.next() == Some('\\') || chars.next() == Some('\''))
}

#[cfg(test)]
mod tests {
    use super::code_only;

    fn words(source: &str) -> Vec<String> {
        code_only(source).split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn comments_go() {
        assert_eq!(words("a // b\nc /* d /* e */ f */ g"), ["a", "c", "g"]);
        assert_eq!(words("/// docs\nfn"), ["fn"]);
    }

    #[test]
    fn literals_go() {
        assert_eq!(words(r#"a "b \" c" d"#), ["a", "d"]);
        assert_eq!(words("a r#\"b \" c\"# d br\"e\\\" f"), ["a", "d", "b", "f"]);
        assert_eq!(words(r"a '{' b '\'' c"), ["a", "b", "c"]);
    }

    #[test]
    fn lifetimes_and_words_that_end_in_r_stay() {
        assert_eq!(words("fn f<'a>(x: &'a str)"), ["fn", "f<'a>(x:", "&'a", "str)"]);
        assert_eq!(words("for \"x\" in"), ["for", "in"]);
    }

    #[test]
    fn lines_stay_where_they_are() {
        let source = "\"one\ntwo\"\n/* three\n*/ four";
        let blanked = code_only(source);
        assert_eq!(blanked.lines().position(|line| line.contains("four")), Some(3));
    }
}
