//! Options of a command, as a scenario has them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Options of a command, without their dashes.
pub type Options = BTreeMap<String, OptionValue>;

/// Value of an option.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OptionValue {
    /// A flag, given or not.
    Flag(bool),
    /// A whole number.
    Integer(i64),
    /// Another number.
    Number(f64),
    /// Anything else.
    Text(String),
}

/// Options as words of a command line.
pub(crate) fn words(options: &Options) -> std::result::Result<Vec<String>, String> {
    let mut words = Vec::new();
    for (name, value) in options {
        if name.is_empty() || name.starts_with('-') {
            return Err(format!("option {name:?} has to be written without its dashes"));
        }
        let value = match value {
            OptionValue::Flag(false) => continue,
            OptionValue::Flag(true) => None,
            OptionValue::Integer(number) => Some(number.to_string()),
            OptionValue::Number(number) => Some(number.to_string()),
            OptionValue::Text(text) => Some(text.clone()),
        };
        words.push(match value {
            None => format!("--{name}"),
            Some(value) => format!("--{name}={value}"),
        });
    }
    Ok(words)
}
