//! The links of a scenario.

/// A link without a limit.
pub(crate) const NO_LIMIT: &str = "none";

/// Whether `tc` reads it as a rate above zero; or `none`.
pub fn is_rate(text: &str) -> bool {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let known = ["bit", "kbit", "mbit", "gbit"].contains(&unit.as_str());
    text == NO_LIMIT || known && digits.parse::<u32>().is_ok_and(|number| number > 0)
}
