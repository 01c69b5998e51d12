//! `/proc/cmdline`: what the kernel was told at its start.

/// Whether the kernel checks what free pages hold: it fills them with a pattern and takes any other content, such as the
/// zeros of a page that did not cross, for damage.
pub(crate) fn checks_free_pages(cmdline: &str) -> bool {
    cmdline.split_ascii_whitespace().any(|word| {
        word.split_once('=').is_some_and(|(name, value)| {
            ["page_poison", "debug_pagealloc"].contains(&name) && ["1", "on", "y", "Y"].contains(&value)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poisoned_pages_are_not_dropped() {
        assert!(checks_free_pages("quiet page_poison=1\n"));
        assert!(checks_free_pages("debug_pagealloc=on root=/dev/vda"));
        assert!(!checks_free_pages("page_poison=0 init_on_free=1 init_on_alloc=1"));
    }
}
