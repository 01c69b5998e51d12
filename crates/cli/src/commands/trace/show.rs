//! `vmferry trace show`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use vmferry_report::standalone::trace_svg;
use vmferry_trace::summary::{HeatMap, operations_per_s};
use vmferry_trace::{Blend, ClassBytes, LoadMark, Summary};

use super::read;
use crate::cli::Common;
use crate::commands::output;
use crate::{table, units};

/// Columns and rows of the heat map on a terminal.
const COLUMNS: usize = 64;
const ROWS: usize = 16;
/// From nothing to the most.
const SHADES: [char; 6] = [' ', '.', ':', '+', '#', '@'];

/// Shows a trace: how fast the guest writes over time, where in its memory, how large its working set is, and what its
/// pages hold.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// A trace
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Also draw it, as SVG
    #[arg(long, value_name = "OUT")]
    svg: Option<PathBuf>,
    /// Use what is whole of a trace that is cut short or damaged
    #[arg(long)]
    partial: bool,
}

pub(super) fn run(common: &Common, args: &ShowArgs) -> Result<ExitCode> {
    let summary = read(&args.file, args.partial)?.summary();
    if let Some(svg) = &args.svg {
        std::fs::write(svg, trace_svg(&summary))
            .with_context(|| format!("cannot write {}", svg.display()))?;
    }
    match common.json {
        true => output::json(&summary)?,
        false => output::text(&format!("{}{}", render(&summary), pictures(&summary)))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Name and value.
pub(super) fn render(summary: &Summary) -> String {
    let mut table = table::plain();
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    let size = |bytes: u64| units::size(bytes);
    row("guest", summary.vm.clone());
    row(
        "memory",
        format!(
            "{}, {} hold data",
            size(summary.ram_bytes),
            size(summary.data_bytes)
        ),
    );
    let looked = match summary.sparsest {
        0 | 1 => "all pages in each".to_owned(),
        one_in => format!(
            "all pages in {}, down to one in {one_in} in the others",
            summary.full_samples
        ),
    };
    row(
        "recorded",
        format!(
            "{} of {}, in {} samples in {} bursts; {looked}",
            units::millis(summary.observed_ms),
            units::millis(summary.length_ms),
            summary.samples,
            summary.bursts
        ),
    );
    if let Some(cost) = summary.cost_percent {
        row("estimated cost", format!("{cost:.1} % of the guest's time"));
    }
    cpu(summary).into_iter().for_each(|cpu| row("CPU", cpu));
    client_load(summary)
        .into_iter()
        .for_each(|load| row("load", load));
    let (least, most) = summary.dirty_bytes_per_s_range;
    row(
        "dirtied",
        format!(
            "{} on average, {} to {}",
            units::rate(summary.dirty_bytes_per_s),
            units::rate(least),
            units::rate(most)
        ),
    );
    row(
        "working set",
        format!(
            "{}, of {} written",
            size(summary.working_set_bytes),
            size(summary.written_bytes)
        ),
    );
    for (name, value) in contents(summary) {
        row(name, value);
    }
    table::render(table)
}

/// What its pages hold, and what they are used for.
fn contents(summary: &Summary) -> Vec<(&'static str, String)> {
    let content = &summary.content;
    let looked_at = content.looked_at;
    let all = format!("{} ({looked_at} pages looked at)", compressible(content));
    let mut rows = vec![("content", all)];
    let written = &summary.written_content;
    if written.looked_at > 0 {
        let delta = summary
            .delta
            .map(|delta| format!(", differences to {:.0} %", delta * 100.0));
        let written = format!("{}{}", compressible(written), delta.unwrap_or_default());
        rows.push(("written pages", written));
    }
    if !summary.used_for.is_empty() {
        let of_class = |used: &ClassBytes| format!("{} {}", used.class, units::size(used.bytes));
        let used: Vec<String> = summary.used_for.iter().map(of_class).collect();
        rows.push(("used for", used.join(", ")));
    }
    rows
}

/// How much CPU the guest used, in samples where that is known.
fn cpu(summary: &Summary) -> Option<String> {
    let percents = summary.rates.iter().filter_map(|rate| rate.cpu_percent);
    let (sum, most, count) = percents.fold((0.0, 0.0, 0), |(sum, most, count), percent| {
        (sum + percent, f64::max(most, percent), count + 1)
    });
    (count > 0).then(|| {
        format!(
            "{:.0} % of one core on average, at most {most:.0} %",
            sum / f64::from(count)
        )
    })
}

/// What its clients had of it, and what it says of itself: the mean of each figure that is known.
fn client_load(summary: &Summary) -> Option<String> {
    let mean_of = |of: fn(&LoadMark) -> Option<f64>| {
        let known: Vec<f64> = summary.loads.iter().filter_map(of).collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    };
    let operations = operations_per_s(&summary.loads);
    let most = operations.iter().map(|(_, per_s)| *per_s).fold(0.0, f64::max);
    let ms: f64 = operations.iter().map(|(span, _)| span.1 - span.0).sum();
    let done: f64 = operations
        .iter()
        .map(|(span, per_s)| (span.1 - span.0) * per_s)
        .sum();
    let parts = [
        (ms > 0.0).then(|| {
            format!(
                "{} operations a second on average, at most {}",
                units::count((done / ms) as u64),
                units::count(most as u64)
            )
        }),
        mean_of(|mark| mark.load_average.map(f64::from)).map(|load| format!("load average {load:.2}")),
        mean_of(|mark| mark.memory_available_bytes.map(|bytes| bytes as f64))
            .map(|bytes| format!("{} of memory available", units::size(bytes as u64))),
    ];
    let known: Vec<String> = parts.into_iter().flatten().collect();
    (!known.is_empty()).then(|| known.join("; "))
}

/// What encodings make of pages.
fn compressible(content: &Blend) -> String {
    format!(
        "{:.0} % of one byte, the rest to {:.0} % by lz4 and {:.0} % by zstd",
        content.uniform_share() * 100.0,
        content.lz4 * 100.0,
        content.zstd * 100.0
    )
}

/// Dirty rate and heat map in characters.
fn pictures(summary: &Summary) -> String {
    let HeatMap {
        pages_per_s,
        columns_ms,
        ..
    } = &summary.heat;
    if pages_per_s.is_empty() {
        return String::new();
    }
    let a_column = pages_per_s.len().div_ceil(COLUMNS);
    let columns: Vec<Vec<f64>> = pages_per_s.chunks(a_column).map(mean).collect();
    let a_row = columns[0].len().div_ceil(ROWS).max(1);
    let rows = columns[0].len().div_ceil(a_row);
    let rates: Vec<f64> = columns.iter().map(|column| column.iter().sum()).collect();
    let most = rates.iter().copied().fold(0.0, f64::max);
    let mut text = format!(
        "\ndirty rate over {}, at most {}\n",
        units::millis(columns_ms.last().map_or(0.0, |(_, end)| *end)),
        units::rate(most * vmferry_core::PAGE_SIZE as f64)
    );
    for level in (0..4).rev() {
        let line = rates.iter().map(|rate| match rate / most.max(1e-9) * 4.0 {
            high if high >= f64::from(level) + 1.0 => '#',
            part if part > f64::from(level) + 0.5 => '+',
            part if part > f64::from(level) => '.',
            _ => ' ',
        });
        push_line(&mut text, line);
    }
    let cell = |column: &Vec<f64>, row: usize| column.iter().skip(row * a_row).take(a_row).sum::<f64>();
    let hottest = columns
        .iter()
        .flat_map(|column| (0..rows).map(|row| cell(column, row)))
        .fold(0.0, f64::max);
    let _ = writeln!(
        text,
        "memory over time, from its begin (top) to its end, each line {}; {:?} wrote most",
        units::size(summary.ram_bytes / rows as u64),
        SHADES[SHADES.len() - 1]
    );
    for row in 0..rows {
        let line = columns.iter().map(|column| {
            let level = (cell(column, row) / hottest.max(1e-9)).sqrt() * (SHADES.len() - 1) as f64;
            SHADES[(level.ceil() as usize).min(SHADES.len() - 1)]
        });
        push_line(&mut text, line);
    }
    text
}

fn push_line(text: &mut String, line: impl Iterator<Item = char>) {
    let line: String = line.collect();
    // A string takes everything.
    let _ = writeln!(text, "|{line}|");
}

fn mean(columns: &[Vec<f64>]) -> Vec<f64> {
    let mut sum = vec![0.0; columns[0].len()];
    for column in columns {
        sum.iter_mut()
            .zip(column)
            .for_each(|(sum, value)| *sum += value / columns.len() as f64);
    }
    sum
}
