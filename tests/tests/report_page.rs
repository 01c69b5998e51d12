//! The page of `vmferry bench report` as a browser sees it.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use vmferry_tests::{Answer, browser, need, vmferry};

/// Every kind of figure, a variant that cannot be measured, and claims that hold and that do not.
const SMALL: &str = r#"
title = "small"
repetitions = 2
warm_up_s = 0.3
cool_down_s = 0.2
links = ["none"]
[[guest]]
name = "little <b>"
kind = "synth"
memory = "16M"
load = "write:2M,rate=20M + fill:4M"
[[guest]]
name = "larger, with a name that is far longer than a phone is wide, so that it has to be broken somewhere"
kind = "synth"
memory = "32M"
load = "write:4M,rate=20M + fill:8M"
[[variant]]
strategy = "pre-copy"
[[variant]]
strategy = "post-copy-push"
[[variant]]
strategy = "pre-copy-filter"
options = { samples = 2, interval = "20ms", bandwidth = "20mbit" }
[[variant]]
name = "impossible"
strategy = "pre-copy-filter"
options = { regions = 7 }
[[claim]]
text = "post-copy moves execution sooner"
metric = "execution_transfer_ms"
variant = "post-copy-push"
relative_to = "pre-copy"
at_most = 1000
[[claim]]
text = "nothing crosses"
metric = "data_bytes"
variant = "pre-copy"
at_most = 1
[[figure]]
id = "bars"
title = "Bars"
source = ["hybrid-learning Fig. 3"]
claim = "It is said."
why = "It is known why."
kind = "bars"
metrics = ["data_bytes", "execution_transfer_ms"]
[[figure]]
id = "relative"
title = "Bars of ratios, on a logarithmic scale"
kind = "bars"
metrics = ["total_ms"]
relative_to = "pre-copy"
log = true
[[figure]]
id = "lines"
title = "Lines"
kind = "lines"
metrics = ["total_ms"]
x = "guest"
[[figure]]
id = "timeline"
title = "Timeline"
kind = "timeline"
[[figure]]
id = "latency"
title = "Latency"
kind = "latency"
[[figure]]
id = "distribution"
title = "Distribution"
kind = "distribution"
[[figure]]
id = "states"
title = "States"
kind = "states"
[[figure]]
id = "rounds"
title = "Rounds"
kind = "rounds"
metrics = ["pages_sent"]
[[figure]]
id = "table"
title = "Table"
kind = "table"
metrics = ["cpu_seconds.source"]
[[figure]]
id = "nothing"
title = "What cannot be"
kind = "bars"
metrics = ["total_ms"]
variants = ["impossible"]
"#;

/// A phone, and a desk.
const WIDTHS: [u32; 2] = [390, 1280];

/// What of the page has an SVG, and how many of them at least: one for each metric and guest, or for guest and variant.
const DRAWN: [(&str, usize); 8] = [
    ("small--bars", 4),
    ("small--relative", 2),
    ("small--lines", 1),
    ("small--timeline", 6),
    ("small--latency", 12),
    ("small--distribution", 2),
    ("small--states", 2),
    ("small--rounds", 2),
];

fn bench(arguments: &[&str], folder: &Path) {
    let mut command = Command::new(vmferry::program());
    command.arg("bench").args(arguments).current_dir(folder);
    let answer = Answer::of(&mut command);
    assert_eq!(answer.code, Some(0), "{answer:?}");
}

/// Synthetic guests count for themselves and wait for no answers: the file gets the latencies of a client.
fn with_latencies(file: &Path) {
    let mut results: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    for run in results["runs"].as_array_mut().unwrap() {
        // A run that failed measured nothing, and looking for it must not put it there.
        let measured = run["outcome"].get_mut("measured");
        let Some(seen) = measured.and_then(|measured| measured.get_mut("operations")) else {
            continue;
        };
        let Some(windows) = seen["windows"].as_array().map(Vec::len) else {
            continue;
        };
        let latency = json!({"count": 10, "p50_ms": 0.5, "p90_ms": 2.0, "p99_ms": 30.0, "max_ms": 90.0});
        seen["latency"] = json!({
            "before": latency, "during": latency, "after": latency, "deciles_ms": (1..=11).collect::<Vec<_>>(),
            "tail_ms": [11, 12, 13], "windows": vec![latency.clone(); windows]
        });
    }
    std::fs::write(file, results.to_string()).unwrap();
}

#[test]
fn a_browser_shows_every_figure_at_each_width_in_light_and_dark_and_asks_nobody() {
    need!(Chromium);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("small.toml"), SMALL).unwrap();
    bench(&["./small.toml", "--json", "small.json"], folder);
    with_latencies(&folder.join("small.json"));
    // Two files of one scenario stand beside each other, too.
    std::fs::copy(folder.join("small.json"), folder.join("again.json")).unwrap();
    bench(
        &["report", "small.json", "again.json", "--html", "page.html"],
        folder,
    );
    let page = std::fs::read_to_string(folder.join("page.html")).unwrap();

    // Nothing to be fetched: the only address is that of the name space, which browsers do not ask.
    for word in ["http://", "https://", "src=", "@import", "url(", "<script"] {
        assert!(!page.contains(word), "{word}");
    }
    assert!(
        page.contains("little &lt;b&gt;"),
        "names are text, whatever is in them"
    );
    assert!(page.contains("7 regions"), "a failure is a row with its cause");

    let mut backgrounds = Vec::new();
    for dark in [false, true] {
        for (width, seen) in WIDTHS.into_iter().zip(browser::look(&page, &WIDTHS, dark)) {
            assert_eq!(seen.console, Vec::<String>::new(), "{width}");
            assert_eq!(seen.requests, Vec::<String>::new(), "{width}");
            assert_eq!((seen.width, seen.dark), (width, dark));
            assert!(
                seen.scroll_width <= width,
                "{} wide on {width}: {:?}",
                seen.scroll_width,
                seen.wide
            );
            for (anchor, least) in DRAWN {
                for anchor in [anchor.to_owned(), anchor.replace("small--", "small-2--")] {
                    let figure = seen.figures.iter().find(|figure| figure.id == anchor).unwrap();
                    assert!(figure.drawings >= least, "{anchor}: {}", figure.drawings);
                    assert_eq!(figure.empty_drawings, 0, "{anchor}");
                }
            }
            for id in ["small--table", "small--nothing"] {
                assert!(seen.figures.iter().any(|figure| figure.id == id), "{id}");
            }
            assert_eq!(seen.doubled_ids, Vec::<String>::new());
            assert_eq!(seen.dead_links, Vec::<String>::new());
            assert!(seen.contrast > 4.5, "text and page: {}", seen.contrast);
            backgrounds.push(seen.background);
        }
    }
    assert_eq!(backgrounds[0], backgrounds[1]);
    assert_ne!(backgrounds[0], backgrounds[2], "dark is another page");
}

#[test]
fn what_is_wrong_with_a_page_is_seen() {
    need!(Chromium);
    let page = "<!DOCTYPE html><html><body style='background:#fff;color:#eee'><a href='#nowhere'>x</a>\
                <p id=one>wide<div id=one style='width:700px'>wide</div><figure id=f><svg class=plot></svg></figure>\
                <img src='http://127.0.0.1:9/none.png'><script>console.error('alas')</script></body></html>";
    let seen = browser::look(page, &[390], false).remove(0);
    assert!(seen.scroll_width >= 700 && seen.wide.len() == 1, "{seen:?}");
    assert!(seen.console.iter().any(|line| line.contains("alas")), "{seen:?}");
    assert_eq!(seen.requests, ["http://127.0.0.1:9/none.png"]);
    assert_eq!(
        (seen.doubled_ids, seen.dead_links),
        (vec!["one".to_owned()], vec!["nowhere".to_owned()])
    );
    assert!(seen.contrast < 1.5);
    assert_eq!((seen.figures[0].drawings, seen.figures[0].empty_drawings), (1, 1));
}
