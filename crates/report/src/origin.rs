//! Where the figures come from: machines, command lines, files.

use maud::{Markup, html};
use sha2::{Digest as _, Sha256};
use vmferry_lab::bench::quantity::Unit;
use vmferry_lab::bench::{Machine, Results};

use crate::{Source, number};

/// Machines, command lines, files.
pub(crate) fn origin(sources: &[Source]) -> Markup {
    html! {
        section id="origin" {
            h2 { "Where the figures come from" }
            h3 { "Machines and programs" }
            (machines(sources))
            h3 { "Command lines" }
            p {
                "Each run has hosts, a link and a guest of its own. Runs were mixed: one repetition after the other, and within each everything \
                 in an order of chance that the scenario's seed decides."
            }
            @for source in sources { (commands(source)) }
            h3 { "Files" }
            (files(sources))
        }
    }
}

fn machines(sources: &[Source]) -> Markup {
    let mut machines: Vec<&Machine> = Vec::new();
    for machine in sources.iter().flat_map(|source| &source.results.machines) {
        if !machines.contains(&machine) {
            machines.push(machine);
        }
    }
    html! {
        @for machine in machines {
            dl class="facts" {
                @for (name, value) in facts(machine) { div { dt { (name) } dd { (value) } } }
            }
        }
    }
}

/// What is known of a machine.
pub(crate) fn facts(machine: &Machine) -> Vec<(&'static str, String)> {
    let built = if machine.optimised {
        ""
    } else {
        ", built without optimisation"
    };
    let revision = machine
        .revision
        .as_ref()
        .map(|revision| format!(", revision {revision}"));
    let mut facts = vec![
        (
            "vmferry",
            format!("{}{}{built}", machine.vmferry, revision.unwrap_or_default()),
        ),
        ("QEMU", machine.qemu.clone().unwrap_or_else(|| "none".into())),
        ("kernel", format!("Linux {}", machine.kernel)),
        ("processors", format!("{} x {}", machine.cpus, machine.cpu)),
        ("memory", number::show(Unit::Bytes, machine.memory_bytes as f64)),
    ];
    let known = [
        ("distribution", &machine.distribution),
        ("hypervisor below", &machine.hypervisor),
        ("huge pages", &machine.huge_pages),
    ];
    facts.extend(
        known
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.clone()?))),
    );
    facts
}

fn commands(source: &Source) -> Markup {
    let results = &source.results;
    let mut guests: Vec<(&str, String)> = Vec::new();
    let mut moves: Vec<(&str, String)> = Vec::new();
    for run in &results.runs {
        if !moves.iter().any(|(variant, _)| *variant == run.key.variant) {
            let words = run.command.iter().filter(|word| !word.starts_with("--to=unix:/"));
            let words: Vec<_> = words.map(String::as_str).collect();
            moves.push((&run.key.variant, words.join(" ")));
        }
        if let Some(measured) = run.outcome.measured()
            && !guests.iter().any(|(guest, _)| *guest == run.key.guest)
        {
            guests.push((&run.key.guest, without_folders(&measured.guest.config)));
        }
    }
    moves.sort_by_key(|(variant, _)| {
        results
            .content
            .variants
            .iter()
            .position(|it| it.name() == *variant)
    });
    html! {
        h4 { code { (results.scenario) } " (seed " (results.content.seed) ")" }
        dl class="commands" {
            @for (variant, words) in moves { dt { (variant) } dd { code { "vmferry migrate " (words) } } }
            @for (guest, config) in guests { dt { (guest) } dd { code { (config) } } }
        }
    }
}

/// A guest's configuration; of files only their names, the folders are those of one machine.
fn without_folders(config: &serde_json::Value) -> String {
    let text = config.to_string();
    let mut short = String::with_capacity(text.len());
    for word in text.split_inclusive(['"', '=', ',', ' ']) {
        match word.starts_with('/').then(|| word.rsplit_once('/')).flatten() {
            Some((_, name)) => short.push_str(name),
            None => short.push_str(word),
        }
    }
    short
}

fn files(sources: &[Source]) -> Markup {
    html! {
        div class="scroll" tabindex="0" role="region" aria-label="files" {
            table {
                thead { tr {
                    th scope="col" { "file" } th scope="col" { "scenario" } th scope="col" class="number" { "runs" }
                    th scope="col" class="number" { "size" } th scope="col" { "SHA-256" }
                } }
                tbody {
                    @for source in sources {
                        tr {
                            th scope="row" { (source.file) }
                            td { (source.results.scenario) " (" code { (source.results.hash) } ", format " (source.results.format) ")" }
                            td class="number" { (source.results.runs.len()) }
                            td class="number" { (number::show(Unit::Bytes, source.bytes.len() as f64)) }
                            td { code class="hash" { (hash(&source.bytes)) } }
                        }
                    }
                }
            }
        }
    }
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The median of how busy the machine was when runs began, and how many runs began on a machine with more to do than it has
/// processors.
pub(crate) fn load(results: &[&Results]) -> Option<(f64, usize)> {
    let mut loads = Vec::new();
    let mut busy = 0;
    for results in results {
        for run in &results.runs {
            let cpus = results
                .machines
                .get(run.machine)
                .map_or(1, |machine| machine.cpus);
            if let Some(load) = run.load_average {
                loads.push(load);
                // The bench's own guest and daemons keep about one busy.
                busy += usize::from(load > cpus as f64 + 1.0);
            }
        }
    }
    loads.sort_by(f64::total_cmp);
    (!loads.is_empty()).then(|| (vmferry_lab::bench::statistics::quantile(&loads, 0.5), busy))
}
