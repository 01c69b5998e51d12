//! QEMU's command line, read as far as vmferry has to understand it.

/// One option of a command line with its value, if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arg<'a> {
    /// The option without its dashes.
    pub(crate) name: &'a str,
    /// What follows it, up to the next option.
    pub(crate) value: Option<&'a str>,
    /// Index of the option in the command line.
    pub(crate) at: usize,
}

/// The options of a command line. QEMU takes one dash or two.
pub(crate) fn options(args: &[String]) -> impl Iterator<Item = Arg<'_>> {
    args.iter().enumerate().filter_map(|(at, arg)| {
        let name = arg
            .strip_prefix("--")
            .or_else(|| arg.strip_prefix('-'))
            .filter(|name| !name.is_empty())?;
        let value = args
            .get(at + 1)
            .map(String::as_str)
            .filter(|next| !next.starts_with('-'));
        Some(Arg { name, value, at })
    })
}

/// Whether one of `names` is among the options.
pub(crate) fn has_option(args: &[String], names: &[&str]) -> bool {
    options(args).any(|arg| names.contains(&arg.name))
}

/// Splits `first,key=value,flag` at its commas; two commas stand for one inside a value. The first element's
/// key is empty when it has no `=`, a flag's value is `on`.
pub(crate) fn key_values(value: &str) -> Vec<(String, String)> {
    let mut parts = vec![String::new()];
    let mut chars = value.chars().peekable();
    while let Some(next) = chars.next() {
        if next != ',' {
            parts.last_mut().expect("never empty").push(next);
        } else if chars.next_if_eq(&',').is_some() {
            parts.last_mut().expect("never empty").push(',');
        } else {
            parts.push(String::new());
        }
    }
    let pair = |(index, part): (usize, String)| match part.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None if index == 0 => (String::new(), part),
        None => (part, "on".to_owned()),
    };
    parts.into_iter().enumerate().map(pair).collect()
}

/// The value of `key` in an option's value.
pub(crate) fn value_of(value: &str, key: &str) -> Option<String> {
    key_values(value)
        .into_iter()
        .rev()
        .find(|(name, _)| name == key)
        .map(|(_, value)| value)
}

/// `text` as part of an option's value.
pub(crate) fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

/// Key-value pairs put together again.
pub(crate) fn join(pairs: &[(String, String)]) -> String {
    let part = |(key, value): &(String, String)| {
        if key.is_empty() {
            escape(value)
        } else {
            format!("{key}={}", escape(value))
        }
    };
    pairs.iter().map(part).collect::<Vec<_>>().join(",")
}

/// A size as QEMU writes it (`512M`, `4G`, `1048576`); without a suffix in units of `default_unit` bytes.
pub(crate) fn parse_size(text: &str, default_unit: u64) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => default_unit,
        "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return None,
    };
    match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => digits.parse::<u64>().ok(),
    }?
    .checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_with_their_values() {
        let args = ["-S", "--smp", "2", "-device", "virtio-rng-pci"].map(String::from);
        let found: Vec<_> = options(&args).map(|arg| (arg.name, arg.value, arg.at)).collect();
        assert_eq!(
            found,
            [
                ("S", None, 0),
                ("smp", Some("2"), 1),
                ("device", Some("virtio-rng-pci"), 3)
            ]
        );
    }

    #[test]
    fn key_values_survive_escapes_and_flags() {
        let value = "socket,path=/run/a,,b.sock,server=on,nowait";
        let pairs = key_values(value);
        assert_eq!(pairs[0], (String::new(), "socket".into()));
        assert_eq!(pairs[1], ("path".into(), "/run/a,b.sock".into()));
        assert_eq!(pairs[3], ("nowait".into(), "on".into()));
        assert_eq!(join(&pairs), "socket,path=/run/a,,b.sock,server=on,nowait=on");
        assert_eq!(value_of(value, "server").as_deref(), Some("on"));
    }

    #[test]
    fn sizes_as_qemu_reads_them() {
        assert_eq!(parse_size("512", 1 << 20), Some(512 << 20));
        assert_eq!(parse_size("4G", 1), Some(4 << 30));
        assert_eq!(parse_size("0x1000", 1), Some(4096));
        assert_eq!(parse_size("4X", 1), None);
        assert_eq!(parse_size("99999999999T", 1), None);
    }
}
