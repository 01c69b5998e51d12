//! Which figures of the papers are on the page, and where the others are.

use maud::{Markup, html};
use vmferry_lab::bench::catalog;
use vmferry_lab::bench::papers::{PAPERS, Paper};

use crate::scenario::Section;

/// A table of all of them.
pub(crate) fn coverage(sections: &[Section<'_>]) -> Markup {
    html! {
        section id="papers" {
            h2 { "Figures of the papers" }
            @for paper in PAPERS {
                h3 { (paper.name) }
                p class="source" { (paper.reference) }
                div class="scroll" tabindex="0" role="region" aria-label={ "figures of " (paper.name) } {
                    table {
                        thead { tr { th scope="col" { "figure" } th scope="col" { "shows" } th scope="col" { "here" } } }
                        tbody {
                            @for figure in paper.figures {
                                tr {
                                    th scope="row" { (figure.number) }
                                    td class="text" { (figure.about) }
                                    td class="text" { (place(sections, &paper, figure.number)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Links to where it is; else who measures it.
fn place(sections: &[Section<'_>], paper: &Paper, number: &str) -> Markup {
    let name = format!("{} {number}", paper.name);
    let here = |section: &Section<'_>| -> Vec<_> {
        let figures = section
            .figures()
            .filter(|(shown, _)| shown.source.contains(&name));
        figures
            .map(|(shown, anchor)| (shown.title.clone(), anchor.clone()))
            .collect()
    };
    let here: Vec<_> = sections.iter().flat_map(here).collect();
    html! {
        @if here.is_empty() {
            @let measured_by = measured_by(&name);
            @if measured_by.is_empty() {
                "not measured"
            } @else {
                "not in these results; measured by "
                @for (index, scenario) in measured_by.iter().enumerate() { @if index > 0 { ", " } code { (scenario) } }
            }
        } @else {
            @for (index, (title, anchor)) in here.iter().enumerate() {
                @if index > 0 { "; " } a href={ "#" (anchor) } { (title) }
            }
        }
    }
}

/// Scenarios that come with vmferry and have this figure.
fn measured_by(name: &str) -> Vec<&'static str> {
    let has = |scenario: &&str| {
        let content = catalog::find(scenario).ok();
        content.is_some_and(|(_, content)| {
            content
                .figures
                .iter()
                .any(|figure| figure.source.iter().any(|it| it == name))
        })
    };
    catalog::names().filter(has).collect()
}
