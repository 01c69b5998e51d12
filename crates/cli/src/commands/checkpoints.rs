//! `vmferry checkpoints`: what a store holds. No daemon is needed.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use vmferry_core::PAGE_SIZE;
use vmferry_store::{CheckpointId, Manifest, Merged, Retention, Scope, Store, Swept, Verified};

use super::output;
use crate::cli::Common;
use crate::store_args::StoreArgs;
use crate::{names, table, units};

/// Looks after the checkpoints of a store.
#[derive(Debug, Args)]
pub(crate) struct CheckpointsArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the complete checkpoints
    List {
        /// Only those of this VM
        #[arg(value_parser = names::parse)]
        vm: Option<String>,
    },
    /// Show a checkpoint
    Show {
        /// Which, as VM/NUMBER
        checkpoint: CheckpointId,
    },
    /// Read every chunk, and name what is damaged and which checkpoints that hurts
    Verify {
        /// A VM, or a checkpoint as VM/NUMBER; all without it
        what: Option<String>,
    },
    /// Delete checkpoints
    Delete {
        /// Which, as VM/NUMBER
        #[arg(required = true)]
        checkpoints: Vec<CheckpointId>,
    },
    /// Delete old checkpoints, and everything that no checkpoint needs
    ///
    /// The newest checkpoint of a VM always stays. Without --keep and --older-than only what no checkpoint needs is removed.
    /// What was put by a checkpoint being taken just now, or is being read, stays.
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
struct PruneArgs {
    /// Only checkpoints of this VM
    #[arg(value_parser = names::parse)]
    vm: Option<String>,
    /// Keep this many of each VM
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// Delete what is older, as in 90m or 24h
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration)]
    older_than: Option<Duration>,
    /// Put the pages of old chunks that are still needed together, so that the rest can go
    #[arg(long)]
    merge: bool,
}

/// A checkpoint in a list.
#[derive(Serialize)]
struct Listed {
    checkpoint: CheckpointId,
    #[serde(flatten)]
    content: Content,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content {
    Sound(Box<Summary>),
    Damaged { damaged: String },
}

#[derive(Serialize)]
struct Summary {
    created_ms: u64,
    parent: Option<CheckpointId>,
    ram_bytes: u64,
    written_bytes: u64,
    accessed_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    interval_ms: Option<u64>,
    pause_ms: f64,
    disks: usize,
}

pub(super) fn run(common: &Common, args: &CheckpointsArgs) -> Result<ExitCode> {
    let store = args.store.open()?;
    match &args.what {
        What::List { vm } => list(common, &store, vm.as_deref()),
        What::Show { checkpoint } => show(common, &store, checkpoint),
        What::Verify { what } => verify(common, &store, what.as_deref()),
        What::Delete { checkpoints } => delete(common, &store, checkpoints),
        What::Prune(prune) => prune_store(common, &store, prune),
    }
}

fn list(common: &Common, store: &Store, vm: Option<&str>) -> Result<ExitCode> {
    let mut listed = Vec::new();
    for checkpoint in store.list(vm)? {
        let content = match store.manifest(&checkpoint) {
            Ok(manifest) => Content::Sound(Box::new(summary(&manifest))),
            Err(error) if error.is_damage() => Content::Damaged {
                damaged: error.to_string(),
            },
            // Deleted in between.
            Err(vmferry_store::StoreError::NoCheckpoint(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        listed.push(Listed { checkpoint, content });
    }
    if common.json {
        output::json(&listed)?;
        return Ok(ExitCode::SUCCESS);
    }
    if listed.is_empty() {
        output::text(&format!("no checkpoint in {}\n", store.name()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let heading = [
        "checkpoint",
        "taken",
        "ram",
        "written",
        "stored",
        "pause",
        "disks",
        "parent",
    ];
    let mut rows = table::list(&heading);
    for Listed { checkpoint, content } in &listed {
        match content {
            Content::Sound(summary) => rows.add_row(row(checkpoint, summary)),
            Content::Damaged { .. } => rows.add_row([checkpoint.to_string(), "damaged".to_owned()]),
        };
    }
    table::align_right(&mut rows, &[2, 3, 4, 5, 6]);
    output::text(&table::render(rows))?;
    for Listed { checkpoint, content } in &listed {
        if let Content::Damaged { damaged } = content {
            eprintln!("{checkpoint}: {damaged}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(checkpoint: &CheckpointId, summary: &Summary) -> [String; 8] {
    [
        checkpoint.to_string(),
        when(summary.created_ms),
        units::size(summary.ram_bytes),
        units::size(summary.written_bytes),
        units::size(summary.stored_bytes),
        units::millis(summary.pause_ms),
        summary.disks.to_string(),
        summary
            .parent
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    ]
}

fn summary(manifest: &Manifest) -> Summary {
    Summary {
        created_ms: manifest.created_ms,
        parent: manifest.parent.clone(),
        ram_bytes: manifest.layout.bytes(),
        written_bytes: manifest.written.count() * PAGE_SIZE,
        accessed_bytes: manifest.accessed.count() * PAGE_SIZE,
        new_bytes: manifest.pages.new * PAGE_SIZE,
        stored_bytes: manifest.pages.stored_bytes,
        interval_ms: manifest.interval_ms,
        pause_ms: manifest.pause_ms,
        disks: manifest.disks.len(),
    }
}

fn show(common: &Common, store: &Store, checkpoint: &CheckpointId) -> Result<ExitCode> {
    let manifest = store.manifest(checkpoint)?;
    if common.json {
        let disks = manifest.disks.iter().map(|disk| {
            let kept: u64 = disk.extents.iter().map(|extent| extent.blob.bytes).sum();
            json!({"device": disk.device, "format": disk.format, "bytes": disk.bytes, "kept_bytes": kept})
        });
        output::json(&json!({
            "checkpoint": checkpoint,
            "summary": summary(&manifest),
            "device_state_bytes": manifest.device_state.bytes,
            "pages": manifest.pages,
            "disks": disks.collect::<Vec<_>>(),
            "layout": manifest.layout,
            "spec": manifest.spec,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let pages = |count: u64| units::size(count * PAGE_SIZE);
    let counts = manifest.pages;
    let mut rows = table::plain();
    let parent = manifest
        .parent
        .as_ref()
        .map_or("none".to_owned(), ToString::to_string);
    let since = match manifest.interval_ms {
        Some(ms) => format!("{} after its parent", units::millis(ms as f64)),
        None => "alone".to_owned(),
    };
    for (name, value) in [
        ("taken", format!("{}, {since}", when(manifest.created_ms))),
        ("parent", parent),
        ("pause", units::millis(manifest.pause_ms)),
        ("RAM", units::size(manifest.layout.bytes())),
        ("device state", units::size(manifest.device_state.bytes)),
        ("written", pages(manifest.written.count())),
        ("accessed", pages(manifest.accessed.count())),
        (
            "new pages",
            format!(
                "{}, {} stored",
                pages(counts.new),
                units::size(counts.stored_bytes)
            ),
        ),
        ("in the store before", pages(counts.deduplicated)),
        ("as in the parent", pages(counts.inherited)),
        ("of one byte", pages(counts.uniform)),
    ] {
        rows.add_row([name.to_owned(), value]);
    }
    for disk in &manifest.disks {
        let kept: u64 = disk.extents.iter().map(|extent| extent.blob.bytes).sum();
        let value = format!(
            "{} {}, {} kept",
            units::size(disk.bytes),
            disk.format,
            units::size(kept)
        );
        rows.add_row([format!("disk {}", disk.device), value]);
    }
    output::text(&format!("{checkpoint}\n{}", table::render(rows)))?;
    Ok(ExitCode::SUCCESS)
}

fn verify(common: &Common, store: &Store, what: Option<&str>) -> Result<ExitCode> {
    let scope = match what {
        None => Scope::All,
        Some(text) if text.contains('/') => Scope::One(text.parse()?),
        Some(vm) => Scope::Vm(names::parse(vm)?),
    };
    let target = match common.json {
        true => ProgressDrawTarget::hidden(),
        false => ProgressDrawTarget::stderr(),
    };
    let bar = ProgressBar::with_draw_target(None, target);
    let style = ProgressStyle::with_template("verify: {bar:40} {pos} of {len} chunks, ETA {eta}");
    bar.set_style(style.expect("a template that is correct"));
    let shown = bar.clone();
    let verified = store.verify(scope, move |read, total| {
        shown.set_length(total);
        shown.set_position(read);
    })?;
    bar.finish_and_clear();
    if verified.checkpoints == 0 && what.is_some() {
        bail!(
            "there is no checkpoint of {} in {}",
            what.unwrap_or_default(),
            store.name()
        );
    }
    match common.json {
        true => output::json(&verified)?,
        false => output::text(&verification(&verified))?,
    }
    Ok(match verified.damage.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn verification(verified: &Verified) -> String {
    let mut text = String::new();
    for damage in &verified.damage {
        let hurt: Vec<_> = damage.checkpoints.iter().map(ToString::to_string).collect();
        text += &format!(
            "{}: {}; needed by {}\n",
            damage.object,
            damage.why,
            hurt.join(", ")
        );
    }
    let read = format!(
        "{} checkpoints, {} chunks, {}",
        units::count(verified.checkpoints),
        units::count(verified.chunks),
        units::size(verified.bytes)
    );
    match verified.damage.len() {
        0 => text + &format!("all is well: {read}\n"),
        count => text + &format!("{count} damaged or missing: {read}\n"),
    }
}

fn delete(common: &Common, store: &Store, checkpoints: &[CheckpointId]) -> Result<ExitCode> {
    let listed = store.list(None)?;
    if let Some(missing) = checkpoints.iter().find(|id| !listed.contains(id)) {
        bail!(
            "there is no checkpoint {missing} in {}: nothing was deleted",
            store.name()
        );
    }
    for id in checkpoints {
        store.delete(id)?;
    }
    report(common, store, checkpoints, Merged::default())
}

fn prune_store(common: &Common, store: &Store, args: &PruneArgs) -> Result<ExitCode> {
    let retention = Retention {
        count: args.keep.map(|keep| keep as usize),
        age: args.older_than,
    };
    let gone = store.prune(args.vm.as_deref(), retention)?;
    let merged = match args.merge {
        true => store.merge()?,
        false => Merged::default(),
    };
    report(common, store, &gone, merged)
}

/// Sweeps after deletions, and says what went.
fn report(common: &Common, store: &Store, gone: &[CheckpointId], merged: Merged) -> Result<ExitCode> {
    if !gone.is_empty() || merged != Merged::default() {
        store.settle();
    }
    let swept: Swept = store.sweep()?;
    if common.json {
        output::json(&json!({"deleted": gone, "merged": merged, "swept": swept}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for id in gone {
        text += &format!("{id}: deleted\n");
    }
    if merged != Merged::default() {
        let (before, after) = (
            units::count(merged.chunks_before),
            units::count(merged.chunks_after),
        );
        text += &format!("pages of {before} chunks put into {after}\n");
    }
    text += &format!(
        "{} of {} objects freed\n",
        units::size(swept.bytes),
        units::count(swept.tables + swept.chunks)
    );
    if swept.kept_for_leases > 0 {
        let kept = units::count(swept.kept_for_leases);
        text += &format!("{kept} objects stay for now: somebody writes or reads who may need them\n");
    }
    output::text(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// A time as people read it, in UTC.
fn when(ms: u64) -> String {
    let time = i64::try_from(ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map_or_else(
        || "unknown".to_owned(),
        |time| time.strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}
