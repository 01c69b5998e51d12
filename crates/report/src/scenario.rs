//! A scenario on the page.

use maud::{Markup, html};
use vmferry_lab::bench::Results;
use vmferry_lab::bench::scenario::Figure;

use crate::{Source, figure, verdict};

/// A file of results with its name on the page.
pub(crate) struct Section<'a> {
    pub(crate) results: &'a Results,
    pub(crate) anchor: String,
    /// The figures, each with its own name on the page.
    figures: Vec<(Figure, String)>,
}

impl<'a> Section<'a> {
    /// A section for each file. Files of the same scenario are told apart by a number.
    pub(crate) fn all(sources: &'a [Source]) -> Vec<Self> {
        let mut sections: Vec<Self> = Vec::new();
        for source in sources {
            let results = &source.results;
            let plain = |letter: char| {
                if letter.is_ascii_alphanumeric() {
                    letter.to_ascii_lowercase()
                } else {
                    '-'
                }
            };
            let name: String = results.scenario.chars().map(plain).collect();
            let earlier = sections
                .iter()
                .filter(|section| section.results.scenario == results.scenario);
            let anchor = match earlier.count() {
                0 => name,
                earlier => format!("{name}-{}", earlier + 1),
            };
            let figures = match results.content.figures.is_empty() {
                true => figure::usual(results),
                false => results.content.figures.clone(),
            };
            let named = figures.into_iter().map(|figure| {
                let name = format!("{anchor}--{}", figure.id);
                (figure, name)
            });
            sections.push(Self {
                results,
                figures: named.collect(),
                anchor,
            });
        }
        sections
    }

    /// Its figures with their names on the page.
    pub(crate) fn figures(&self) -> impl Iterator<Item = (&Figure, &String)> {
        self.figures.iter().map(|(figure, anchor)| (figure, anchor))
    }

    /// What is said of none of its figures.
    pub(crate) fn beside(&self) -> Vec<verdict::Judged<'_>> {
        let figures: Vec<_> = self.figures().map(|(figure, _)| figure).collect();
        verdict::beside(self.results, &figures)
    }

    /// Heading, figures, and the claims that no figure shows.
    pub(crate) fn show(&self) -> Markup {
        let results = self.results;
        let rest = self.beside();
        let failed = results
            .runs
            .iter()
            .filter(|run| run.outcome.measured().is_none())
            .count();
        html! {
            section id=(self.anchor) class="scenario" {
                h2 { (results.title) }
                p class="source" {
                    code { (results.scenario) }
                    @if let Some(source) = &results.source { ". " (source) }
                }
                @if results.quick {
                    p class="warning" { b { "Scaled down (--quick): " } "the figures show that it works, and little else." }
                }
                p class="group" { (self.conditions()) "; " (results.runs.len()) " runs, " (failed) " failed." }
                @for (shown, anchor) in self.figures() { (figure::figure(results, shown, anchor)) }
                @if !rest.is_empty() {
                    h3 { "Claims beside the figures" }
                    ul class="claims" { @for it in &rest { (it.show()) } }
                }
            }
        }
    }

    /// Guests and links as they really were.
    fn conditions(&self) -> String {
        let content = &self.results.content;
        let guests = content.guests.iter().map(|guest| {
            let load = guest
                .load
                .as_deref()
                .map(|load| format!(", {load}"))
                .unwrap_or_default();
            format!("{} ({}, {} vCPU{load})", guest.name, guest.memory, guest.vcpus)
        });
        let measured = self.results.runs.iter().filter_map(|run| run.outcome.measured());
        let mut links: Vec<_> = measured.map(|measured| measured.link.as_str()).collect();
        links.sort_unstable();
        links.dedup();
        format!(
            "Guests: {}. Links: {}",
            guests.collect::<Vec<_>>().join("; "),
            links.join("; ")
        )
    }
}
