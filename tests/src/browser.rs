//! A page as headless Chromium has it.

use std::process::{Command, Stdio};

use serde::Deserialize;

/// What Chromium is called.
const PROGRAMS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// What a look at a page found.
#[derive(Debug, Deserialize)]
pub struct Seen {
    /// Width of the window, pixels.
    pub width: u32,
    /// Width of the content: more where it has to be scrolled sideways.
    pub scroll_width: u32,
    /// What reaches beyond the window, where something does.
    pub wide: Vec<String>,
    /// Whether it was shown in dark.
    pub dark: bool,
    /// Colour of the page.
    pub background: String,
    /// Contrast of text to page, 1 to 21.
    pub contrast: f64,
    /// What it asked for.
    pub requests: Vec<String>,
    /// Names that more than one thing has.
    pub doubled_ids: Vec<String>,
    /// Links within the page that lead nowhere.
    pub dead_links: Vec<String>,
    /// Its figures.
    pub figures: Vec<FigureSeen>,
    /// What the console says, of all widths together.
    #[serde(default)]
    pub console: Vec<String>,
}

/// A figure of the page.
#[derive(Debug, Deserialize)]
pub struct FigureSeen {
    /// Its name.
    pub id: String,
    /// How many plots it has.
    pub drawings: usize,
    /// How many of them take no room, show no shape or have no title.
    pub empty_drawings: usize,
}

const LOOK: &str = include_str!("look.js");

/// Where Chromium is; none where it cannot be started. A package that only says how to get another one counts as none.
pub fn program() -> Option<&'static str> {
    let runs = |program: &&str| {
        let output = Command::new(program)
            .arg("--version")
            .stdin(Stdio::null())
            .output();
        output.is_ok_and(|output| {
            output.status.success() && String::from_utf8_lossy(&output.stdout).contains("Chrom")
        })
    };
    PROGRAMS.into_iter().find(|program| runs(program))
}

/// Shows the page in a window of each of these widths.
///
/// # Panics
/// When Chromium does not do it.
pub fn look(page: &str, widths: &[u32], dark: bool) -> Vec<Seen> {
    let folder = tempfile::tempdir().unwrap();
    let quoted = page.replace('&', "&amp;").replace('"', "&quot;");
    let frame = |width: &u32| {
        format!("<iframe srcdoc=\"{quoted}\" style='width:{width}px;height:900px;border:0'></iframe>")
    };
    let frames: String = widths.iter().map(frame).collect();
    let html = format!(
        "<!DOCTYPE html><meta charset=utf-8><link rel=icon href='data:,'><pre id=found></pre>{frames}<script>{LOOK}</script>"
    );
    let file = folder.path().join("look.html");
    std::fs::write(&file, html).unwrap();
    let program = program().expect("there is a Chromium");
    let output = Command::new(program)
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--window-size=1400,1000",
        ])
        .args([
            "--enable-logging=stderr",
            "--v=0",
            "--no-first-run",
            "--disable-extensions",
            "--disable-background-networking",
        ])
        // Of Blink's: 0 is dark, 1 is light.
        .arg(format!(
            "--blink-settings=preferredColorScheme={}",
            u8::from(!dark)
        ))
        .arg(format!(
            "--user-data-dir={}",
            folder.path().join("profile").display()
        ))
        .arg("--dump-dom")
        .arg(format!("file://{}", file.display()))
        .env("HOME", folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let dom = String::from_utf8_lossy(&output.stdout);
    let found = dom
        .split_once("<pre id=\"found\">")
        .and_then(|(_, rest)| rest.split_once("</pre>"));
    let found = found
        .unwrap_or_else(|| panic!("Chromium shows nothing: {said}"))
        .0;
    let found = found
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&");
    let mut seen: Vec<Seen> =
        serde_json::from_str(&found).unwrap_or_else(|error| panic!("{error}: {found:?}; {said}"));
    let console: Vec<_> = said
        .lines()
        .filter(|line| line.contains("CONSOLE"))
        .map(str::to_owned)
        .collect();
    seen.iter_mut().for_each(|seen| seen.console.clone_from(&console));
    seen
}
