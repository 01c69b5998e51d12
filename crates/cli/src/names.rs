//! Names of guests.

use thiserror::Error;

/// Longest name in characters.
pub const MAX_NAME: usize = 64;

/// A name that no guest can have.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{0:?} cannot be the name of a guest: use 1 to {MAX_NAME} letters, digits, dots, underscores or dashes, and begin \
     with a letter or digit"
)]
pub struct BadName(String);

/// Checks a name: it becomes the name of a directory, and may come from a peer.
///
/// # Errors
/// [`BadName`].
pub fn check(name: &str) -> Result<(), BadName> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let good = name.len() <= MAX_NAME
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(plain);
    match good {
        true => Ok(()),
        false => Err(BadName(name.chars().take(MAX_NAME + 1).collect())),
    }
}

/// [`check`] for an argument of the command line.
///
/// # Errors
/// [`BadName`].
pub fn parse(name: &str) -> Result<String, BadName> {
    check(name).map(|()| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_words_are_names_and_paths_are_not() {
        for name in ["a", "web-1", "db.prod_2", "9", &"x".repeat(64)] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        let long = "x".repeat(65);
        for name in [
            "", ".", "..", "../etc", "a/b", "/a", "-rf", "_a", ".a", "a b", "a\0", "é", "a\n", &long,
        ] {
            assert!(check(name).is_err(), "{name:?}");
        }
    }
}
